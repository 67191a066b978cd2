"""Tests of the queue methods against what they stand for: the system calls of real CPython.

  cd tests; C10K_BIN_DIR=../build/release /usr/bin/python3 -m unittest -v test_queue"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import shutil
import signal
import sys
import unittest
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import fault_support as faults  # noqa: E402
import process_support as support  # noqa: E402
from process_support import BOUND_S, ROOT, SANITIZED, Server, connections, run_client, run_program  # noqa: E402

PEER = str(ROOT / "experiments" / "peers" / "queue_peer.py")

# The calls of a step, in the order they are made; a message with its size and what it says.
Steps = list[str]
Call = tuple[str, str, str]  # name, arguments, result
Traces = dict[int, list[Call]]  # by thread

# Of threads and memory, which an interpreter has more of.
ASIDE = {"futex", "mmap", "munmap", "mprotect", "brk", "madvise", "rt_sigprocmask", "gettid", "restart_syscall"}


def read_traces(folder: Path) -> Traces:
    """What strace -ff wrote: a file for each thread."""
    line = re.compile(r"(\w+)\((.*)\) += (-?\d+)")
    return {
        int(path.suffix[1:]): [
            (match[1], match[2], match[3])
            for text in path.read_text(errors="replace").splitlines()
            if (match := line.match(text)) and match[1] not in ASIDE
        ]
        for path in folder.glob("trace.*")
    }


def named(call: Call) -> str:
    name, arguments, result = call
    if name == "fcntl":
        return f"fcntl {arguments.split(', ')[1]}"
    if name not in ("read", "write", "sendmsg", "recvmsg"):
        return name
    word = re.search("#CHALLENGE#|#WELCOME#", arguments)
    descriptor = " SCM_RIGHTS" if "SCM_RIGHTS" in arguments else ""
    return f"{name} {result}{' ' + word[0] if word else ''}{descriptor}"


def pieces(calls: list[Call], first: str, last: str) -> Iterator[tuple[Steps, Steps]]:
    """The stretches from a call of one name up to the last of another name before the first one comes
    again, each with the two calls before it."""
    starts = [at for at, call in enumerate(calls) if call[0] == first and at >= 2]
    for start, end in zip(starts, starts[1:]):
        while end > start and calls[end - 1][0] != last:
            end -= 1
        yield [named(call) for call in calls[start - 2 : start]], [named(call) for call in calls[start:end]]


def shape(traces: Traces, request_bytes: Callable[[int], int]) -> dict[str, Steps]:
    """What each side does for a descriptor nearly always (a message is longer when a number in it is), by
    whatever the thread does most. request_bytes(pid) is the size of a worker's message (ticket, pid)."""

    def usual(found: Counter[tuple[str, ...]]) -> Steps:
        return list(found.most_common(1)[0][0]) if found else []

    worker = max(traces, key=lambda thread: sum(call[0] == "recvmsg" for call in traces[thread]))
    sharer = max(traces, key=lambda thread: sum(call[0] == "sendmsg" for call in traces[thread]))
    size = request_bytes(worker)
    request = {f"write {4 + size}": "write request", f"read {size}": "read request"}

    fetches = Counter[tuple[str, ...]]()
    for (first, second), piece in pieces(traces[worker], "socket", "getsockname"):
        fetches[tuple(request.get(step, step) for step in (first, second, *piece))] += 1
    served = Counter[tuple[str, ...]]()
    for _, piece in pieces(traces[sharer], "accept4", "close"):
        served[tuple(request.get(step, step) for step in piece)] += 1
    fed = Counter(
        (named(copy), named(ticket))
        for thread, calls in traces.items()
        if thread not in (worker, sharer)
        for copy, ticket in zip(calls, calls[1:])
        if copy[0] == "fcntl" and ticket[0] == "write"
    )
    return {"worker": usual(fetches), "sharer": usual(served), "feeder": usual(fed)}


def traced_server(test: unittest.TestCase, method: str, requests: int) -> tuple[Traces, int]:
    """The threads of a pool of one worker that has served so many connections, four at a time; and which of
    them is the acceptor's loop."""
    with support.Program(["true"]) as place:  # its folder
        trace = place.folder / "trace"
        # -D: the server stays our child, and the tracer becomes its grandchild.
        with Server(
            *("--strategy", "pool", "--ipc", method, "--workers", "1"),
            wrapper=("strace", "-D", "-ff", "-o", str(trace)),
        ) as server:
            code, _, err = run_client(
                server.target,
                *("--connections", "4", "--requests", str(requests)),
                *("--duration", str(BOUND_S), "--timeout", str(BOUND_S)),
            )
            test.assertEqual(code, 0, err)
            test.assertEqual(server.finish().report["books"]["served"], requests)
            main = server.pid
        return read_traces(place.folder), main


def traced_peer(test: unittest.TestCase, count: int) -> Traces:
    with support.Program(["true"]) as place:
        code, out, err = run_program(
            *("strace", "-ff", "-o", str(place.folder / "trace")),
            *(sys.executable, PEER, "--way", "queue", "--count", str(count), "--repetitions", "1", "--json"),
        )
        test.assertEqual(code, 0, err)
        test.assertEqual(json.loads(out)["count"], count)
        return read_traces(place.folder)


@unittest.skipIf(SANITIZED, "sanitizers make system calls of their own")
@unittest.skipUnless(shutil.which("strace"), "strace is not installed")
class RealCPython(unittest.TestCase):
    """Step by step as CPython: the same calls in the same order, and messages of the same size."""

    def test_queue_python3_is_the_interpreters_own_path(self) -> None:
        if sys.version_info[:2] != (3, 11):
            self.skipTest("queue-python3 stands for CPython 3.11")
        real = traced_peer(self, 60)
        emulated, _ = traced_server(self, "queue-python3", 60)
        self.maxDiff = None
        expected = shape(real, lambda pid: len(pickle.dumps((7, pid))))
        self.assertEqual(expected, shape(emulated, lambda _: 19))
        self.assertEqual([len(expected[side]) for side in ("worker", "sharer", "feeder")], [23, 21, 2])
        self.assertEqual(self.backlog(real), self.backlog(emulated))

    def backlog(self, traces: Traces) -> set[str]:
        """Of the listener on which workers fetch."""
        listeners = set()
        for calls in traces.values():
            paths = {args.split(",")[0] for name, args, _ in calls if name == "bind" and "AF_UNIX" in args}
            for name, args, _ in calls:
                if name == "listen" and args.split(",")[0] in paths:
                    listeners.add(args.split(", ")[1])
        self.assertEqual(len(listeners), 1)
        return listeners


@unittest.skipIf(SANITIZED, "sanitizers make system calls of their own")
@unittest.skipUnless(shutil.which("strace"), "strace is not installed")
class Anatomy(unittest.TestCase):
    """What each option takes away: system calls for a descriptor, from two runs, so that what a start and an
    end cost falls out."""

    # The worker's loop and its echo have others; the close of the connection itself is among these.
    OF_WORKER = ("socket", "ioctl", "fcntl", "connect", "read", "write", "getrandom", "getpid", "getsockname",
                 "recvmsg", "close")  # fmt: skip
    OF_LOOP = ("fcntl", "write")

    def per_connection(self, method: str) -> list[float]:
        few, many = (self.undisturbed(method, requests) for requests in (10, 110))
        return [(many[side] - few[side]) / 100 for side in ("loop", "threads", "worker")]

    def undisturbed(self, method: str, requests: int) -> Counter[str]:
        """Of a run in which the sharer has ended no exchange that stood still: the worker makes such a one twice."""
        for _ in range(10):
            found = self.counts(*traced_server(self, method, requests))
            if not found["ended"]:
                break
        return found

    def counts(self, traces: Traces, main: int) -> Counter[str]:
        found = Counter[str]()
        worker = max(traces, key=lambda thread: sum(call[0] == "recvmsg" for call in traces[thread]))
        for thread, calls in traces.items():
            names = Counter(call[0] for call in calls)
            if thread == worker:
                found["worker"] += sum(names[name] for name in self.OF_WORKER)
            elif thread == main:
                found["loop"] += sum(names[name] for name in self.OF_LOOP)
            else:  # feeder and sharer
                found["threads"] += names.total()
                found["ended"] += names["shutdown"]
        return found

    def test_each_option_takes_its_calls_away(self) -> None:
        for method, *expected in [
            ("queue-python2", 1, 1 + 20, 24 + 1),
            ("queue-python2:auth=off,connection=persistent", 1, 1 + 5, 7 + 1),
            ("queue-python2:auth=off,connection=persistent,dups=off,feeder=off,lock=off", 1, 4, 5 + 1),
            ("queue-python3", 0, 2 + 21, 23 + 1),
            ("queue-python3:auth=no-hmac", 0, 2 + 21, 23 + 1),
            ("queue-python3:auth=off", 0, 2 + 11, 13 + 1),
            ("queue-python3:auth=off,connection=persistent", 0, 2 + 8, 9 + 1),
            ("queue-python3:auth=off,connection=persistent,dups=off", 0, 1 + 4, 6 + 1),
            ("queue-python3:auth=off,connection=persistent,dups=off,feeder=off", 1, 4, 6 + 1),
        ]:
            with self.subTest(method=method):
                for found, wanted in zip(self.per_connection(method), expected):
                    self.assertAlmostEqual(found, wanted, delta=0.1, msg=f"loop, threads, worker: {expected}")


@faults.needs_strace
class StoppedInAnExchange(unittest.TestCase):
    """The acceptor's sharer serves one worker at a time, and waits for none that has stopped."""

    COUNT = 6  # half of them for each worker

    def test_the_others_are_served_and_it_loses_nothing(self) -> None:
        """Where CPython's thread would wait: before the worker has let the sharer in, and before it names its
        ticket. No deadline ends the worker, so that without the sharer's own nobody would ever be served."""
        for name in (entry["name"] for entry in support.listing()["methods"] if entry["name"].startswith("queue-")):
            for call in ("getrandom", "getpid"):
                with self.subTest(method=name, stopped_at=call):
                    self.stop_at(name, call)

    def stop_at(self, name: str, call: str) -> None:
        options = ("--strategy", "pool", "--ipc", name, "--workers", "2", "--worker-deadline", "0")
        with Server(*options) as server:
            pid = server.worker_pid(0)
            before = support.open_files(server.pid)
            inject = ("-e", f"trace={call}", "-e", f"inject={call}:signal=STOP:when=1")
            with contextlib.ExitStack() as stack:
                with faults.traced(pid, server.report_path.parent, *inject) as tracer:
                    socks = stack.enter_context(connections(server.address, 2))
                    support.wait_until(lambda: "stopped by SIGSTOP" in tracer.log.read_text(), "it has stopped")
                support.wait_until(lambda: support.state_of(pid) == "T", "it has stopped without its tracer as well")
                socks += stack.enter_context(connections(server.address, self.COUNT - 2))
                faults.greet(socks)

                def served() -> int:
                    return sum(support.readable(sock, 0) for sock in socks)

                support.wait_until(lambda: served() == self.COUNT / 2, "the other one's are echoed")
                os.kill(pid, signal.SIGCONT)
                echoed, closed = faults.outcomes(socks, support.BOUND_S)
                self.assertEqual((len(echoed), closed), (self.COUNT, 0))
            faults.wait_for_open_files(server.pid, before, "what the acceptor has open")
            report = server.finish().report
        self.assertEqual((report["worker_deaths"], report["totals"]["errors"]), (0, {}))
        self.assertEqual(report["books"]["served"], self.COUNT)


if __name__ == "__main__":
    unittest.main()
