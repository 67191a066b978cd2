"""Tests of what shared/docs/faults.md promises: whatever dies, stands still or runs out, every connection is echoed,
handed over and echoed, or visibly closed; none hangs, the books balance, nothing is left behind.

Here are the faults that no other file has: 2, 5, 6, 8, 13, 14 and 16. The others: 1, 3, 4, 7, 15 test_lifecycle;
9, 17 test_misbehave and test_serving; 10, 18 test_serving; 11 test_listeners; with --retain test_retain; 2 step by
step dispatcher_test.

  cd tests; C10K_BIN_DIR=../build/release /usr/bin/python3 -m unittest -v test_faults.Killed

C10K_ONLY=REGEX picks shapes by their name, C10K_TIMES=1 prints how long each took, C10K_SEED=N repeats kills."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import resource
import shutil
import signal
import socket
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import fault_support as faults  # noqa: E402
import process_support as support  # noqa: E402
from fault_support import HANG_S, greet, needs_strace, outcomes, traced, traced_each  # noqa: E402
from process_support import (  # noqa: E402
    BOUND_S,
    CLIENT,
    SANITIZED,
    SERVER,
    Program,
    Server,
    Shape,
    close_all,
    completion_shapes,
    connections,
    echo,
    ended,
    for_each,
    method_shapes,
    run_program,
    scaled,
    sink_shapes,
    still_echoes,
    strategy_shapes,
    wait_until,
    workers_of,
)


def pools() -> list[Shape]:
    return method_shapes() + completion_shapes()


class Killed(unittest.TestCase):
    """Fault 2: a worker is killed on its way into a system call, each worker of the pool into another one."""

    # The n-th from now on; the first is the wait that strace interrupts by coming. A connection takes 5 calls or so;
    # where a worker asks for it by a socket of its own, 25.
    MOMENTS = (2, 3, 4, 5, 6, 7, 9, 12, 16, 21)[:: scaled(1, 2)]

    def sweep(self, shape: Shape, *options: str) -> None:
        workers, count = len(self.MOMENTS), 3 * len(self.MOMENTS)
        with shape.start("--worker-deadline", "0", *options, workers=workers) as server:
            kills = [
                (row["pid"], (f"--inject=all:signal=KILL:when={moment}",))
                for row, moment in zip(workers_of(server.report()), self.MOMENTS)
            ]
            with connections(server.address, 0) as socks, contextlib.ExitStack() as stack:
                with traced_each(kills, server.folder) as tracers:
                    for _ in range(count):
                        sock = stack.enter_context(support.connect(server.address))
                        greet([sock])
                        socks.append(sock)
                    echoed, closed = outcomes(socks)
                dead = [tracer for tracer in tracers if faults.has_ended(tracer.pid)]
                # Those that a dead worker had echoed have ended since, unless the acceptor has kept them.
                survivors = sum(still_echoes(sock) for sock in echoed)
                closed = count - survivors
                for slot, tracer in enumerate(tracers):
                    if tracer in dead:
                        faults.wait_for_new_worker(server, slot, tracer.pid)
                close_all(socks)
            report = server.finish().report
        self.assertGreaterEqual(len(dead), 1, "nobody was killed")
        self.assertEqual(report["worker_deaths"], len(dead))
        books = report["books"]
        read = sum(tracer.count("recvfrom") for tracer in dead)
        written = sum(tracer.count("sendto") for tracer in dead)
        if shape.kernel_dispatches:  # what had just been accepted is in no book
            self.assertLessEqual(books["lost"], closed)
            return
        self.assertEqual((books["accepted"], books["lost"]), (count, closed))
        if "--loop" in shape.options:  # what io_uring has read is not in the trace
            return
        if "--retain" in options:
            self.assertEqual(closed, read - written, "exactly those in the middle of a request are lost")
        elif not shape.why_not_retained:
            self.assertGreaterEqual(closed, read)

    @needs_strace
    @for_each(pools)
    def test_at_every_system_call(self, shape: Shape) -> None:
        self.sweep(shape)

    @needs_strace
    @for_each(lambda: [shape for shape in pools() if not shape.why_not_retained])
    def test_at_every_system_call_with_retain(self, shape: Shape) -> None:
        self.sweep(shape, "--retain")


class KilledUnderLoad(unittest.TestCase):
    """Faults 2 and 13, at moments from a seed: whatever the worker held, nobody else is held up."""

    @for_each(pools)
    def test_nobody_hangs_and_the_books_balance(self, shape: Shape) -> None:
        seed = int(os.environ.get("C10K_SEED", random.randrange(1 << 32)))
        moments = random.Random(seed)
        print(f"{shape.name}: C10K_SEED={seed}", flush=True)
        rounds = scaled(6, 3)
        with shape.start() as server:
            before = faults.descriptors(server)[server.pid]
            with Program(
                [CLIENT, "--target", server.target, "--workload", "crr", "--json", "-", "--announce-phases"]
                + ["--connections", "8", "--duration", "600", "--timeout", str(HANG_S)]
            ) as client:
                wait_until(lambda: "phase crr" in client.err_text(), "the load begins")
                for _ in range(rounds):
                    self.assertFalse(client.has_ended(moments.uniform(0, 0.05)), client.err_text())
                    slot = moments.randrange(2)
                    pid = server.worker_pid(slot)
                    if pid:
                        os.kill(pid, signal.SIGKILL)
                wait_until(lambda: not server.report()["degraded"], "all are replaced")
                client.signal(signal.SIGINT)
                _, out, err = client.wait()
            wait_until(lambda: server.report()["books"]["active"] == 0, "all have ended")
            with contextlib.suppress(AssertionError):
                wait_until(lambda: faults.descriptors(server)[server.pid] == before, "descriptors are back", 5)
            self.assertEqual(faults.descriptors(server)[server.pid], before, f"of the acceptor; seed {seed}")
            report = server.finish().report
        found = support.json.loads(out)["outcomes"]
        visible = found["reset"] + found["eof"]
        self.assertEqual(found["echoed"] + visible, sum(found.values()), f"{found}; seed {seed}")
        self.assertGreater(found["echoed"], 0)
        self.assertGreater(report["worker_deaths"], 0)
        if not shape.kernel_dispatches:  # what had just been accepted is in no book
            self.assertLessEqual(visible, report["books"]["lost"], f"{found}; seed {seed}")


class StoppedWorker(unittest.TestCase):
    """Fault 6: --worker-deadline."""

    DEADLINE = ("--worker-deadline", "0.1")

    @for_each(pools)
    def test_is_replaced_and_what_it_had_not_taken_is_served(self, shape: Shape) -> None:
        with shape.start(*self.DEADLINE) as server, connections(server.address, 4) as early:
            for sock in early:
                echo(sock)
            victim = workers_of(server.report())[0]
            os.kill(victim["pid"], signal.SIGSTOP)
            wait_until(lambda: support.state_of(victim["pid"]) in ("T", "Z", ""), "it stops")
            with connections(server.address, 8) as late:
                greet(late)
                echoed, closed = outcomes(late)
                self.assertEqual((len(echoed), closed), (8, 0))
                if victim["active"]:  # else it owes nothing, and may have had nothing
                    self.assertEqual(sum(still_echoes(sock) for sock in early), 4 - victim["active"])
                    faults.wait_for_new_worker(server, 0, victim["pid"])
                close_all(late)
            close_all(early)
            if faults.row_of(server, 0)["pid"] == victim["pid"] and not faults.has_ended(victim["pid"]):
                os.kill(victim["pid"], signal.SIGCONT)
            finished = server.finish()
        report = finished.report
        self.assertEqual(report["books"]["lost"], victim["active"])
        self.assertEqual(report["stuck_workers"], report["worker_deaths"])
        if victim["active"]:
            self.assertEqual(report["stuck_workers"], 1)
            self.assertRegex(finished.err, r"worker 0 \(process \d+, state T\) made no progress for \d+ ms: killed")

    # The supervisor's doing, whatever the method: one that dispatches and one that does not.
    @for_each(lambda: [shape for shape in method_shapes() if shape.method in ("scm-seqpacket", "reuseport")])
    def test_nobody_is_killed_who_is_not_stuck(self, shape: Shape) -> None:
        with shape.start(*self.DEADLINE) as server, connections(server.address, 8) as socks:
            for sock in socks:
                echo(sock)
            # All stand still, and far longer than the deadline; then one, for less.
            server.signal_group(signal.SIGSTOP)
            self.assertFalse(server.has_ended(0.5))
            server.signal_group(signal.SIGCONT)
            for sock in socks:
                echo(sock)
            pid = server.worker_pid(0)
            support.stop_process(pid)
            os.kill(pid, signal.SIGCONT)
            for sock in socks:
                echo(sock)
            self.assertFalse(server.has_ended(0.5))  # idle ones owe nothing but a turn
            close_all(socks)
            report = server.finish().report
        self.assertEqual((report["stuck_workers"], report["worker_deaths"]), (0, 0))
        self.assertEqual(report["books"]["served"], 8)

    def test_one_that_works_longer_than_the_deadline_is_not_stuck(self) -> None:
        options = ("--strategy", "pool", "--workers", "1", "--service-time", "fixed:400000", *self.DEADLINE)
        with Server(*options) as server, connections(server.address, 1) as socks:
            echo(socks[0])
            close_all(socks)
            report = server.finish().report
        self.assertEqual((report["stuck_workers"], report["worker_deaths"]), (0, 0))

    def test_the_default_deadline_is_below_a_second(self) -> None:
        with Server("--strategy", "pool", "--workers", "1") as server:
            os.kill(server.worker_pid(0), signal.SIGSTOP)
            with connections(server.address, 4) as socks:
                greet(socks)
                echoed, _ = outcomes(socks)
                self.assertEqual(len(echoed), 4)
            self.assertEqual(server.finish().report["stuck_workers"], 1)


def accepting_shapes() -> list[Shape]:
    """Every way to accept: each strategy, a pool's acceptor, and workers that accept for themselves."""
    methods = [shape for shape in pools() if not shape.unsupported]
    acceptor = [shape for shape in methods if not shape.kernel_dispatches]
    return strategy_shapes() + acceptor[:1] + [shape for shape in methods if shape.kernel_dispatches]


@needs_strace
class AcceptErrors(unittest.TestCase):
    """Fault 8. (An accept by a completion gives way to accept4 at its first error: completion_intake.hpp.)"""

    NEXT = "ECONNABORTED EHOSTDOWN EHOSTUNREACH ENETDOWN ENETUNREACH ENONET ENOPROTOOPT EOPNOTSUPP EPERM EPROTO ETIMEDOUT"
    PAUSE = "ENOBUFS ENOMEM"
    SHED = "EMFILE ENFILE"

    def acceptors(self, server: Server, shape: Shape) -> list[int]:
        return server.children() if shape.kernel_dispatches else [server.pid]

    def serves_after(self, server: Server, shape: Shape, name: str) -> None:
        kills = [(pid, (f"--inject=accept4:error={name}:when=1",)) for pid in self.acceptors(server, shape)]
        with traced_each(kills, server.folder), connections(server.address, 4) as socks:
            greet(socks)
            echoed, closed = outcomes(socks, BOUND_S)
            # One that was at its limit has closed one for it, and only one.
            self.assertLessEqual(closed, len(kills) if name in self.SHED else 0, name)
            self.assertGreaterEqual(len(echoed), 4 - closed)
            tried = [tracer.text().count(f"= -1 {name}") for tracer in self.tracers_of(server)]
            self.assertGreaterEqual(sum(tried), 1, "it was never told so")
            self.assertLessEqual(sum(tried), len(kills), "it spins")

    def tracers_of(self, server: Server) -> list[faults.Tracer]:
        return []

    @for_each(accepting_shapes)
    def test_a_passing_error_is_counted_and_passes(self, shape: Shape) -> None:
        pass


if __name__ == "__main__":
    unittest.main()
