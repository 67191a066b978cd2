#!/usr/bin/python3
"""What real CPython takes to pass sockets to a worker process: the peer of the queue methods.

  queue        multiprocessing.Queue.put(socket), as queue-python3 does it without the interpreter
  send-handle  multiprocessing.reduction.send_handle over a Pipe that stays: the same standard library,
               without the queue, the ticket and the rendezvous

One loopback connection is passed again and again, and the worker closes what it gets. The ways take turns
within a repetition. CPU is user and system time from rusage, of all the threads of a side."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import socket
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any

LIMIT_S = 120  # for whatever a side waits for
IN_FLIGHT = 64  # sockets in the queue at most: each holds a descriptor here

context = multiprocessing.get_context("fork")


def cpu_us() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return (usage.ru_utime + usage.ru_stime) * 1e6


def receive_by_queue(queue: Any, report: Connection) -> None:
    began = cpu_us()
    count = 0
    while (sock := queue.get()) is not None:
        sock.close()
        count += 1
    report.send((count, cpu_us() - began))


def receive_by_handle(pipe: Connection, report: Connection) -> None:
    began = cpu_us()
    count = 0
    while True:
        try:
            socket.close(reduction.recv_handle(pipe))
        except EOFError:
            break
        count += 1
    report.send((count, cpu_us() - began))


def tcp_connection() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        return client, listener.accept()[0]


def passed_by_queue(sock: socket.socket, count: int) -> dict[str, float]:
    queue: Any = context.Queue(IN_FLIGHT)

    def send(_: int) -> None:
        for _ in range(count):
            queue.put(sock, timeout=LIMIT_S)
        queue.put(None, timeout=LIMIT_S)

    try:
        return passed(count, receive_by_queue, queue, lambda: None, send)
    finally:
        queue.close()
        queue.join_thread()


def passed_by_handle(sock: socket.socket, count: int) -> dict[str, float]:
    ours, theirs = context.Pipe()

    def send(pid: int) -> None:
        theirs.close()
        for _ in range(count):
            reduction.send_handle(ours, sock.fileno(), pid)
        ours.close()

    return passed(count, receive_by_handle, theirs, ours.close, send)


def passed(
    count: int,
    receive: Callable[[Any, Connection], None],
    channel: Any,
    close_senders_end: Callable[[], None],
    send: Callable[[int], None],
) -> dict[str, float]:
    report, reporter = context.Pipe(duplex=False)

    def work() -> None:
        close_senders_end()
        receive(channel, reporter)

    worker = context.Process(target=work, daemon=True)
    worker.start()
    try:
        began, cpu = time.monotonic(), cpu_us()
        send(worker.pid)
        if not report.poll(LIMIT_S):
            raise SystemExit(f"queue_peer: the worker has not got all within {LIMIT_S} s")
        elapsed, cpu = time.monotonic() - began, cpu_us() - cpu
        arrived, worker_cpu = report.recv()
        if arrived != count:
            raise SystemExit(f"queue_peer: {arrived} of {count} sockets arrived")
        worker.join(LIMIT_S)
    finally:
        worker.kill()
        worker.join()
    return {"per_s": count / elapsed, "sender_cpu_us": cpu / count, "receiver_cpu_us": worker_cpu / count}


WAYS = {"queue": passed_by_queue, "send-handle": passed_by_handle}


def pickle_us(sock: socket.socket) -> float:
    """Both directions of what the queue serializes for one socket, with no descriptor passed."""
    ticket = (reduction._rebuild_socket, (reduction.DupFd(sock.fileno()), sock.family, sock.type, sock.proto))
    rounds = 2000
    began = time.process_time()
    for _ in range(rounds):
        reduction.ForkingPickler.loads(reduction.ForkingPickler.dumps(ticket))
    return (time.process_time() - began) / rounds * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--way", choices=[*WAYS, "all"], default="all")
    parser.add_argument("--count", type=int, default=5000, help="sockets a repetition (default: %(default)s)")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options = parser.parse_args()
    if not 1 <= options.count <= 1_000_000 or not 1 <= options.repetitions <= 100:
        parser.error("--count is 1 to 1000000, --repetitions 1 to 100")
    ways = list(WAYS) if options.way == "all" else [options.way]
    client, sock = tcp_connection()
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(options.repetitions):
        for way in ways:
            runs[way].append(WAYS[way](sock, options.count))
    result: dict[str, Any] = {
        "schema": "c10k-queue-peer/1",
        "python": platform.python_version(),
        "count": options.count,
        "repetitions": options.repetitions,
        "ways": {
            way: {key: statistics.median(run[key] for run in of_way) for key in of_way[0]}
            for way, of_way in runs.items()
        },
    }
    if options.way == "all":
        result["pickle_us"] = pickle_us(sock)
    client.close()
    if options.json:
        json.dump(result, sys.stdout, indent=2)
        print()
        return
    print(f"CPython {result['python']}, {options.count} sockets, median of {options.repetitions}")
    print(f"{'way':<12} {'per s':>8} {'sender us':>10} {'receiver us':>12}   (CPU per socket)")
    for way, row in result["ways"].items():
        print(f"{way:<12} {row['per_s']:8,.0f} {row['sender_cpu_us']:10.1f} {row['receiver_cpu_us']:12.1f}")
    if "pickle_us" in result:
        print(f"of the queue's: serializing, both sides {result['pickle_us']:.1f}")


if __name__ == "__main__":
    main()
