"""Tests of c10k-server from outside: ends, deaths and shortages.

What --list names is tested: a new strategy, loop or method needs no line here. How to run one class:

  cd tests; C10K_BIN_DIR=../build/release /usr/bin/python3 -m unittest -v test_lifecycle.Drain

C10K_ONLY=REGEX picks shapes by their name, C10K_LOOP=NAME the loop of all pools, C10K_TIMES=1 prints how long each
took."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import process_support as support  # noqa: E402
from fault_support import echo_those_that_wait_at_sigterm  # noqa: E402
from process_support import (  # noqa: E402
    BOUND_S,
    Server,
    Shape,
    all_shapes,
    connections,
    echo,
    ended,
    for_each,
    completion_shapes,
    method_shapes,
    run_client,
    scaled,
    strategy_shapes,
    dispatched_shapes,
    still_echoes,
    wait_until,
    workers_of,
    close_all,
    totals_of,
)


class Drain(unittest.TestCase):
    """SIGTERM and SIGINT: stop accepting, finish, report, exit 0."""

    @for_each(all_shapes)
    def test_sigterm_lets_clients_finish(self, shape: Shape) -> None:
        with shape.start("--drain-timeout", "600") as server, connections(server.address, 10) as socks:
            self.report_while_it_runs(shape, server, socks)
            echo_those_that_wait_at_sigterm(server, 20)
            self.go_on_in_a_drain(server, socks)
            socks.pop().close()
            for sock in socks:
                echo(sock)
                sock.close()
            report = server.finish(0).report
        self.assertGreaterEqual(report["books"]["accepted"], 30)
        self.assertEqual(report["books"]["accepted"], report["books"]["served"])
        self.assertEqual(report["totals"]["closed_draining"], 0)
        self.assertEqual(report["worker_deaths"], 0)

    def report_while_it_runs(self, shape: Shape, server: Server, socks: list[socket.socket]) -> None:
        """SIGUSR1; of ten connections it leaves six."""
        for sock in socks:
            echo(sock)
        report = server.report()
        self.assertEqual(report["books"]["active"], 10)
        self.assertEqual(report["books"]["accepted"], 10)
        self.assertTrue(report["books"]["balanced"])
        if shape.strategy != "fork":  # its children count when they end
            # An echo is counted after it is sent, so a client can know of it first.
            wait_until(lambda: totals_of(server)["echoes"] == 10, "ten echoes are counted")
        close_all(socks[:4])
        del socks[:4]
        wait_until(lambda: server.report()["books"]["active"] == 6, "four are gone")
        self.assertTrue(server.report()["books"]["balanced"])
        echo(socks[-1])

    def go_on_in_a_drain(self, server: Server, socks: list[socket.socket]) -> None:
        wait_until(lambda: support.refuses(server.address), "connects are refused")
        for _ in range(3):
            for sock in socks:
                echo(sock)
        self.assertFalse(server.has_ended())

    def end_at_once(self, server: Server, socks: list[socket.socket], number: int) -> None:
        """By the second signal."""
        # The last that asked may not have ended in there yet.
        wait_until(
            lambda: (books := server.report()["books"])["active"] == 4 and books["in_hand_off"] == 0,
            "they alone are left",
        )
        report = server.finish(number).report
        self.assertEqual(report["totals"]["closed_draining"], 4)
        self.assertEqual(report["books"]["accepted"], report["books"]["served"])
        self.assertEqual(report["worker_deaths"], 0)
        for sock in socks:
            self.assertTrue(ended(sock))

    @for_each(all_shapes)
    def test_sigint_of_a_terminal_does_the_same_and_a_second_ends_it_at_once(self, shape: Shape) -> None:
        with shape.start("--drain-timeout", "600") as server, connections(server.address, 4) as socks:
            for sock in socks:
                echo(sock)
            server.signal_group(signal.SIGINT)  # a terminal sends it to the whole group
            self.go_on_in_a_drain(server, socks)
            self.end_at_once(server, socks, signal.SIGINT)

    # A method has no part in which signal it is: one that dispatches and one that does not.
    @for_each(lambda: strategy_shapes() + [s for s in method_shapes() if s.method in ("scm-seqpacket", "reuseport")])
    def test_a_second_sigterm_ends_it_at_once(self, shape: Shape) -> None:
        with shape.start("--drain-timeout", "600") as server, connections(server.address, 4) as socks:
            for sock in socks:
                echo(sock)
            server.signal(signal.SIGTERM)
            wait_until(lambda: support.refuses(server.address), "connects are refused")
            self.end_at_once(server, socks, signal.SIGTERM)

    @for_each(all_shapes)
    def test_the_drain_timeout_bounds_it(self, shape: Shape) -> None:
        with shape.start("--drain-timeout", "0.1") as server, connections(server.address, 4) as socks:
            for sock in socks:
                echo(sock)
            report = server.finish(bound_s=10).report
            self.assertEqual(report["totals"]["closed_draining"], 4)
            self.assertEqual(report["books"]["served"], 4)
            for sock in socks:
                self.assertTrue(ended(sock))


class WorkerDeath(unittest.TestCase):
    """Faults 1, 2, 3, 11 and 16."""

    def replaced(self, server: Server, slot: int, old: int) -> int:
        return wait_until(
            lambda: pid if (pid := server.worker_pid(slot)) not in (0, old) else 0, f"worker {slot} is replaced"
        )

    @for_each(lambda: method_shapes() + completion_shapes())
    def test_a_killed_worker_is_replaced_and_its_connections_are_counted(self, shape: Shape) -> None:
        with shape.start() as server, connections(server.address, 20) as socks:
            for sock in socks:
                echo(sock)
            victim = workers_of(server.report())[0]
            os.kill(victim["pid"], signal.SIGKILL)
            served = sum(still_echoes(sock) for sock in socks)  # the others see their end
            self.assertEqual(served, 20 - victim["active"])
            self.replaced(server, 0, victim["pid"])
            with connections(server.address, 20) as later:
                for sock in later:
                    echo(sock)
            close_all(socks)
            books = server.report()["books"]
            self.assertEqual(books["accepted"], 40)
            self.assertEqual(books["lost"], victim["active"])
            self.all_killed_under_load(server)
            self.assertEqual(server.finish().report["worker_deaths"], 5)

    def all_killed_under_load(self, server: Server) -> None:
        """Connections made in the gap wait for the successors: in the acceptor or in the accept queue."""
        for _ in range(2):
            pids = [row["pid"] for row in workers_of(server.report())]
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            with connections(server.address, 10) as socks:
                for sock in socks:
                    # One handed to a worker that was just dying ends visibly; none may hang.
                    still_echoes(sock)
            for slot, pid in enumerate(pids):
                self.replaced(server, slot, pid)
            with connections(server.address, 10) as socks:
                for sock in socks:
                    echo(sock)

    @for_each(dispatched_shapes)
    def test_what_a_dead_worker_had_not_received_is_redelivered(self, shape: Shape) -> None:
        with shape.start("--dispatch", "round-robin", "--worker-deadline", "0") as server:
            victim = server.worker_pid(0)
            support.stop_process(victim)
            with connections(server.address, 20) as socks:
                for sock in socks:
                    sock.sendall(b"hello")
                wait_until(lambda: totals_of(server)["handed"] == 20, "all are handed over")
                os.kill(victim, signal.SIGKILL)
                for sock in socks:
                    self.assertEqual(support.receive_exactly(sock, 5), b"hello")
            report = server.finish().report
        self.assertEqual(report["books"]["lost"], 0)
        self.assertGreater(report["books"]["redelivered_and_served"], 0)
        self.assertEqual(report["books"]["accepted"], 20)
        self.assertEqual(report["totals"]["redelivered"], report["books"]["redelivered_and_served"])

    # The supervisor's doing, whatever the method: one that dispatches and one that does not.
    @for_each(lambda: [shape for shape in method_shapes() if shape.method in ("scm-seqpacket", "reuseport")])
    def test_a_crash_loop_backs_off(self, shape: Shape) -> None:
        with shape.start() as server:
            pid = server.worker_pid(0)
            waits = []
            for _ in range(7):
                began = time.monotonic()
                os.kill(pid, signal.SIGKILL)
                pid = self.replaced(server, 0, pid)
                waits.append(time.monotonic() - began)
            # 10 ms, doubled each time: the last waited for 640 ms.
            self.assertGreaterEqual(waits[6], 0.5, waits)
            os.kill(pid, signal.SIGKILL)  # and now 1.28 s
            # Not the first word of it: until its death is seen, it may be one that is not ready yet, and then is.
            wait_until(lambda: server.report()["degraded"] == "worker 0 waits to be replaced", "the report says so")
            with connections(server.address, 4) as socks:
                for sock in socks:
                    echo(sock)
            pid = self.replaced(server, 0, pid)
            report = server.finish().report
        self.assertEqual(report["worker_deaths"], 8)
        self.assertEqual(report["totals"]["restarts"], 8)
        self.assertEqual(report["degraded"], "")

    def test_a_killed_child_of_fork_is_lost_and_nobody_else(self) -> None:
        with Server("--strategy", "fork") as server, connections(server.address, 5) as socks:
            for sock in socks:
                echo(sock)
            os.kill(server.children()[0], signal.SIGKILL)
            self.assertEqual(sum(still_echoes(sock) for sock in socks), 4)
            close_all(socks)
            report = server.finish().report
        self.assertEqual(report["books"]["lost"], 1)
        self.assertEqual(report["worker_deaths"], 1)


class StuckWorker(unittest.TestCase):
    """Fault 6, with connections that the worker has already."""

    @for_each(lambda: method_shapes() + completion_shapes())
    def test_what_clients_send_meanwhile_is_bounded_and_arrives(self, shape: Shape) -> None:
        data = bytes(range(256)) * 2048  # 10 MB of all, which is more than it may keep
        with (
            shape.start("--worker-deadline", "0", workers=1) as server,
            connections(server.address, 20) as socks,
        ):
            for sock in socks:
                echo(sock)
            before = support.rss_bytes(server.pid)
            worker = server.worker_pid(0)
            support.stop_process(worker)
            sent = []
            for sock in socks:
                sock.settimeout(0.01)  # nothing announces that no more is taken
                count = 0
                with contextlib.suppress(TimeoutError):
                    while count < len(data):
                        count += sock.send(data[count:])
                sent.append(count)
            ticks = support.cpu_ticks(server.pid)
            self.assertFalse(server.has_ended(0.3))
            self.assertLess(support.cpu_ticks(server.pid) - ticks, scaled(6, 12), "ticks in 0.3 s")
            self.assertLess(support.rss_bytes(server.pid) - before, scaled(4, 32) << 20, "bytes")
            os.kill(worker, signal.SIGCONT)
            for sock, count in zip(socks, sent):
                sock.settimeout(BOUND_S)
                self.assertEqual(support.receive_exactly(sock, count), data[:count])
            close_all(socks)
            self.assertEqual(server.finish().report["books"]["served"], len(socks))


class AcceptorDeath(unittest.TestCase):
    """Fault 15."""

    # What has come through these is the worker's, without a number in the acceptor's table or a word of it. (So it is
    # with tcp-repair; but what its client sends before it is put together again meets nobody, and is reset.)
    WHOLE = ("scm-stream", "scm-seqpacket", "scm-dgram", "scm-shared", "shared-table", "uring-msg")

    @for_each(lambda: dispatched_shapes() + [shape for shape in completion_shapes() if not shape.kernel_dispatches])
    def test_what_waits_in_a_channel_is_served(self, shape: Shape) -> None:
        whole = shape.method in self.WHOLE
        count = 300 if whole else 20  # more than are received at a time
        with shape.start("--worker-deadline", "0", workers=1) as server:
            (worker,) = server.children()
            server.stop_group()  # the acceptor as well, so that it finds all at once, and few messages carry them
            with connections(server.address, count) as socks:
                os.kill(server.pid, signal.SIGCONT)
                wait_until(lambda: totals_of(server)["handed"] == count, "all are handed over")
                server.signal(signal.SIGKILL)
                self.assertTrue(server.has_ended(BOUND_S))
                os.kill(worker, signal.SIGCONT)
                served = sum(still_echoes(sock) for sock in socks)  # the others see their end
                if whole:
                    self.assertEqual(served, count)
                close_all(socks)
            wait_until(lambda: not server.group(), "all processes have ended", 15)

    def test_workers_finish_and_exit(self) -> None:
        """All servers at once, as each takes as long as its drain."""
        with contextlib.ExitStack() as stack:
            begun: list[tuple[Shape, Server, list[socket.socket], list[int]]] = []

            def begin(_: unittest.TestCase, shape: Shape) -> None:
                server = stack.enter_context(shape.start("--drain-timeout", "1"))
                socks = stack.enter_context(connections(server.address, 4))
                for sock in socks:
                    echo(sock)
                children = [os.pidfd_open(pid) for pid in server.children()]
                for child in children:
                    stack.callback(os.close, child)
                begun.append((shape, server, socks, children))

            for_each(lambda: [shape for shape in all_shapes() if shape.pool or shape.strategy == "fork"])(begin)(self)
            for _, server, _, _ in begun:
                server.signal(signal.SIGKILL)
            killed = time.monotonic()
            for shape, server, socks, children in begun:
                with self.subTest(shape=shape.name):
                    self.assertTrue(server.has_ended(BOUND_S))
                    # They serve what they have to its end, or to the drain timeout.
                    for child in children:
                        left = max(0.0, killed + 15 - time.monotonic())
                        self.assertTrue(support.readable(child, left), "a process outlives the drain")
                    wait_until(lambda server=server: not server.group(), "all processes have ended", 15)
                    for sock in socks:
                        self.assertTrue(ended(sock))
                    self.assertTrue(support.refuses(server.address))

    @for_each(lambda: [shape for shape in all_shapes() if shape.pool or shape.strategy == "fork"])
    def test_connections_are_served_meanwhile(self, shape: Shape) -> None:
        with shape.start("--drain-timeout", "600") as server, connections(server.address, 4) as socks:
            for sock in socks:
                echo(sock)
            server.signal(signal.SIGKILL)
            self.assertTrue(server.has_ended(BOUND_S))
            # Nobody accepts any more, so nobody waits in a queue either.
            wait_until(lambda: support.refuses(server.address), "connects are refused")
            for sock in socks:
                if shape.connections_stay:
                    self.assertTrue(ended(sock))
                else:
                    echo(sock)
            close_all(socks)
            wait_until(lambda: not server.group(), "all processes have ended", 15)


class Descriptors(unittest.TestCase):
    """Faults 4, 5 and 7, and that nothing leaks."""

    @for_each(all_shapes)
    def test_none_leaks(self, shape: Shape) -> None:
        # A process for each takes 10 ms; a descriptor that it leaves in the acceptor shows with few.
        held, load = (40, 60) if shape.strategy == "fork" else (scaled(150, 50), 300)
        with shape.start() as server:
            begin = {pid: support.descriptors_of(pid) for pid in server.group()}
            with connections(server.address, held) as socks:
                for sock in socks:
                    echo(sock)
            code, _, err = run_client(
                server.target, "--connections", "64", "--requests", str(load), "--duration", str(BOUND_S)
            )
            self.assertEqual(code, 0, err)

            def now() -> dict[int, int]:
                return {pid: support.descriptors_of(pid) for pid in server.group()}

            try:
                wait_until(lambda: now() == begin, "descriptors are back", 10)
            except AssertionError:
                self.fail(f"at the start {begin}, now {now()}")
            server.finish()

    @for_each(all_shapes)
    def test_too_few_for_all_clients(self, shape: Shape) -> None:
        # A process for each client may take 60 ms to start with a sanitizer in it.
        count, limit = 70 if shape.strategy == "fork" else 150, 64
        wrapper = ("prlimit", f"--nofile={limit}:{limit}")
        with shape.start(wrapper=wrapper) as server, connections(server.address, count) as socks:
            for sock in socks:
                with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                    sock.sendall(b"hello")
            began = time.monotonic()
            served, hanging = [], 0
            for sock in socks:
                if not support.readable(sock, max(0.0, began + BOUND_S - time.monotonic())):
                    hanging += 1
                    continue
                with contextlib.suppress(ConnectionResetError):
                    got = support.receive_exactly(sock, 5)
                    self.assertIn(got, (b"hello", b""))
                    if got:
                        served.append(sock)
            took = time.monotonic() - began
            self.assertEqual(hanging, 0, f"clients without an echo or an end; {len(served)} are served")
            # Now nothing happens, so it must cost nothing.
            ticks = sum(map(support.cpu_ticks, server.group()))
            self.assertFalse(server.has_ended(0.3))
            self.assertLess(sum(map(support.cpu_ticks, server.group())) - ticks, scaled(6, 12), "ticks in 0.3 s")
            for sock in served:
                echo(sock)
            at_limit = server.report()  # although the server can open no file
            self.assertTrue(at_limit["books"]["balanced"], at_limit["books"])
            self.assertLess(at_limit["listener"]["listen_overflows"], 1 << 32, "it went below zero")
            close_all(socks)

            def well_again() -> bool:  # a connection may still be shed while the old ones are being closed
                with connections(server.address, 10) as later:
                    return all([still_echoes(sock) for sock in later])

            wait_until(well_again, "ten connections are served again")
            shed_later = server.report()["books"]["shed"] - at_limit["books"]["shed"]
            report = server.finish().report
        self.assertLess(took, scaled(10, 30), "seconds until the last client knew")
        if shape.strategy == "fork":  # each child has one connection, and the acceptor none
            self.assertEqual(len(served), count)
            return
        self.assertGreaterEqual(len(served), 30)
        self.assertLess(len(served), count)
        totals = report["totals"]
        self.assertGreater(totals["shed"] + totals["refused"] + totals["redelivered"], 0)
        self.assertIn("EMFILE", totals["errors"])
        self.assertEqual(report["books"]["shed"], count - len(served) + shed_later)
        self.assertEqual(report["worker_deaths"], 0)


if __name__ == "__main__":
    unittest.main()
