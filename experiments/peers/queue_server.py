#!/usr/bin/python3
"""An echo server as the original experiment built one: real CPython hands each accepted socket to one of
two worker processes through a multiprocessing.Queue. Listens on 127.0.0.1 at a free port, and says which.
SIGTERM ends it with exit code 0."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import resource
import selectors
import signal
import socket
import sys
from typing import Any

WORKERS = 2
context = multiprocessing.get_context("fork")


def work(queue: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    selector = selectors.EpollSelector()
    # A worker has a queue of its own, so what makes it readable is for this worker.
    selector.register(queue._reader, selectors.EVENT_READ)
    parent = multiprocessing.parent_process().sentinel
    selector.register(parent, selectors.EVENT_READ)
    unsent: dict[socket.socket, bytes] = {}
    while True:
        for key, events in selector.select():
            if key.fileobj is queue._reader:
                sock = queue.get()
                sock.setblocking(False)
                selector.register(sock, selectors.EVENT_READ)
            elif key.fileobj == parent:
                return
            elif not echo(key.fileobj, events, unsent, selector):
                unsent.pop(key.fileobj, None)
                selector.unregister(key.fileobj)
                key.fileobj.close()


def echo(sock: Any, events: int, unsent: dict[socket.socket, bytes], selector: Any) -> bool:
    """False when the connection is at its end."""
    try:
        data = unsent.pop(sock, b"") or sock.recv(65536)
        if not data:
            return False
        sent = 0
        with contextlib.suppress(BlockingIOError):
            sent = sock.send(data)
    except BlockingIOError:
        return True
    except OSError:
        return False
    if sent < len(data):
        unsent[sock] = data[sent:]
    if (sent < len(data)) != bool(events & selectors.EVENT_WRITE):
        selector.modify(sock, selectors.EVENT_WRITE if sent < len(data) else selectors.EVENT_READ)
    return True


def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    queues = [context.Queue() for _ in range(WORKERS)]
    for queue in queues:
        context.Process(target=work, args=(queue,), daemon=True).start()
        # What nobody has taken when the server ends is of no use.
        queue.cancel_join_thread()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print("listening {}:{}".format(*listener.getsockname()), flush=True)
    for queue in itertools.cycle(queues):
        # Not closed here: put() serializes later, in a thread, and drops the socket when it has.
        queue.put(listener.accept()[0])


if __name__ == "__main__":
    main()
