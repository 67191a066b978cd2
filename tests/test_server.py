"""Tests of c10k-server as a whole: every shape it has, from outside, by its contract (design.md, faults.md).

  C10K_BIN_DIR=build/release /usr/bin/python3 -m unittest -v tests/test_server.py

What --list names is tested: a new strategy, loop or method needs no line here. C10K_ONLY=REGEX picks
shapes by their name, C10K_TIMES=1 prints how long each took."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import socket
import sys
import threading
import time
import unittest
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import process_support as support  # noqa: E402
from process_support import (  # noqa: E402
    BOUND_S,
    SANITIZED,
    SERVER,
    Server,
    Shape,
    all_shapes,
    connect,
    connections,
    echo,
    ended,
    for_each,
    listing,
    loop_shapes,
    method_shapes,
    refuses,
    reset,
    run_client,
    run_program,
    scaled,
    sink_shapes,
    still_echoes,
    wait_until,
    workers_of,
)

PATTERN = random.Random(1).randbytes(1 << 20)  # a seed, so that a failure can be repeated


def close_all(socks: list[socket.socket]) -> None:
    for sock in socks:
        sock.close()


def totals_of(server: Server) -> dict[str, Any]:
    return server.report()["totals"]


class Hold(unittest.TestCase):
    """Ten thousand connections at once, which the project is named after."""

    @for_each(all_shapes)
    def test_all_connections_are_held_and_echo(self, shape: Shape) -> None:
        count = scaled(10_000, 200 if shape.strategy == "fork" else 1000)
        with shape.start() as server:
            code, result, err = run_client(
                server.target,
                *("--workload", "hold", "--connections", str(count), "--duration", "1", "--requests", "1000"),
                *("--timeout", "20"),
            )
            self.assertEqual(code, 0, err)
            self.assertEqual(result["peak_connections"], count)
            self.assertEqual(result["outcomes"]["echoed"], result["attempts"])
            self.assertEqual(result["errors"], {})
            report = server.finish().report
        books = report["books"]
        self.assertEqual(books["accepted"], count)
        self.assertEqual((books["lost"], books["shed"], books["active"]), (0, 0, 0))
        self.assertEqual(report["totals"]["echoes"], result["attempts"])
        self.assertEqual(report["totals"]["bytes"], 20 * result["attempts"])
        self.assertEqual(report["worker_deaths"], 0)

    @for_each(loop_shapes)
    def test_every_loop_with_every_method(self, shape: Shape) -> None:
        with shape.start() as server:
            code, result, err = run_client(
                server.target, "--connections", "32", "--requests", "500", "--duration", str(BOUND_S)
            )
            self.assertEqual(code, 0, err)
            self.assertEqual(result["outcomes"]["echoed"], 500)
            report = server.finish().report
        self.assertEqual(report["options"]["loop"], shape.options[-1])
        self.assertEqual(report["books"]["served"], 500)


class Bytes(unittest.TestCase):
    """What clients can do with a connection (fault 17), and that others do not notice."""

    def exchange(self, sock: socket.socket, data: bytes) -> bytes:
        """Sends and receives at the same time."""
        sock.setblocking(False)
        poller = select.poll()
        poller.register(sock, select.POLLIN | select.POLLOUT)
        sent, got = 0, bytearray()
        while len(got) < len(data):
            events = poller.poll(BOUND_S * 1000)
            self.assertTrue(events, f"silence after {sent} bytes out, {len(got)} in")
            if events[0][1] & select.POLLOUT and sent < len(data):
                sent += sock.send(memoryview(data)[sent : sent + 65_536])
                if sent == len(data):
                    poller.modify(sock, select.POLLIN)
            if events[0][1] & (select.POLLIN | select.POLLHUP | select.POLLERR):
                chunk = sock.recv(65_536)
                self.assertTrue(chunk, f"end of stream after {len(got)} bytes")
                got += chunk
        sock.settimeout(BOUND_S)
        return bytes(got)

    @for_each(all_shapes)
    def test_echo_byte_for_byte(self, shape: Shape) -> None:
        with shape.start() as server, connections(server.address, 4) as socks:
            for sock in socks:
                echo(sock)
                for value in b"one at a time\0\xff":
                    echo(sock, bytes([value]))
                self.assertEqual(self.exchange(sock, PATTERN), PATTERN)
                echo(sock)
            with connect(server.address) as silent:  # says nothing, and is no hindrance
                echo(socks[0])
                self.assertFalse(support.readable(silent, 0))
            close_all(socks)
            report = server.finish().report
        self.assertEqual(report["totals"]["bytes"], 4 * (20 + 15 + (1 << 20) + 20) + 20)
        self.assertEqual(report["totals"]["errors"], {})

    @for_each(all_shapes)
    def test_half_close_gets_everything_and_then_the_end(self, shape: Shape) -> None:
        with shape.start() as server, connections(server.address, 3) as (small, large, empty):
            small.sendall(b"last words")
            small.shutdown(socket.SHUT_WR)
            self.assertEqual(support.receive_exactly(small, 11), b"last words")
            empty.shutdown(socket.SHUT_WR)
            self.assertTrue(ended(empty))
            large.sendall(PATTERN[:200_000])
            large.shutdown(socket.SHUT_WR)
            self.assertEqual(support.receive_exactly(large, 200_001), PATTERN[:200_000])
            self.assertEqual(server.finish().report["books"]["served"], 3)

    @for_each(all_shapes)
    def test_urgent_bytes_stay_in_the_stream(self, shape: Shape) -> None:
        with shape.start() as server, connect(server.address) as sock:
            echo(sock)
            for _ in range(20):
                sock.sendall(b"before")
                sock.send(b"U", socket.MSG_OOB)
                sock.sendall(b"behind")
                self.assertEqual(support.receive_exactly(sock, 13), b"beforeUbehind")
            sock.close()
            server.finish()

    @for_each(all_shapes)
    def test_resets_harm_nobody_else(self, shape: Shape) -> None:
        with shape.start() as server, connect(server.address) as other:
            echo(other)
            stopped = server.group()
            for pid in stopped:
                support.stop_process(pid)
            for _ in range(10):  # gone before they are accepted
                reset(connect(server.address))
            server.signal_group(signal.SIGCONT)
            for _ in range(10):  # in the middle of an exchange
                sock = connect(server.address)
                echo(sock)
                sock.sendall(PATTERN[:100_000])
                reset(sock)
            for _ in range(10):  # with its echo on the way
                sock = connect(server.address)
                sock.sendall(PATTERN[:1000])
                reset(sock)
            echo(other)
            with connections(server.address, 4) as socks:
                for sock in socks:
                    echo(sock)
            other.close()
            report = server.finish().report
        self.assertEqual(report["worker_deaths"], 0)
        self.assertEqual(report["books"]["lost"], 0)

    @for_each(all_shapes)
    def test_slow_reader_costs_bounded_memory(self, shape: Shape) -> None:
        most = 64 << 20
        with shape.start(workers=1) as server, connections(server.address, 2) as (slow, other):
            echo(slow)
            echo(other)
            before = sum(map(support.rss_bytes, server.group()))
            slow.setblocking(False)
            writable = select.poll()
            writable.register(slow, select.POLLOUT)
            sent = 0
            # Nothing announces that a server has stopped taking; too early a guess only makes it easier.
            while sent < most and writable.poll(300):
                offset = sent % len(PATTERN)
                with contextlib.suppress(BlockingIOError):
                    sent += slow.send(memoryview(PATTERN)[offset : offset + 65_536])
            self.assertLess(sent, most, "the server took everything from a client that reads nothing")
            for _ in range(20):
                echo(other)
            grown = sum(map(support.rss_bytes, server.group())) - before
            self.assertLess(grown, scaled(4, 32) << 20, "bytes")
            slow.settimeout(BOUND_S)
            slow.shutdown(socket.SHUT_WR)
            received = 0
            while chunk := slow.recv(1 << 20):
                offset = received % len(PATTERN)
                expected = (PATTERN[offset:] + PATTERN[: max(0, offset + len(chunk) - len(PATTERN))])[: len(chunk)]
                if chunk != expected:
                    self.fail(f"wrong bytes behind {received}")
                received += len(chunk)
            self.assertEqual(received, sent)
            other.close()
            server.finish()

    @for_each(all_shapes)
    def test_busy_writer_does_not_starve_others(self, shape: Shape) -> None:
        with shape.start(workers=1) as server, connections(server.address, 2) as (busy, other):
            flowing, enough = threading.Event(), threading.Event()

            def write() -> None:
                with contextlib.suppress(OSError):
                    while not enough.is_set():
                        busy.sendall(PATTERN)

            def read() -> None:
                received = 0
                with contextlib.suppress(OSError):
                    while chunk := busy.recv(1 << 20):
                        received += len(chunk)
                        if received > 1 << 20:
                            flowing.set()

            threads = [threading.Thread(target=write), threading.Thread(target=read)]
            for thread in threads:
                thread.start()
            try:
                self.assertTrue(flowing.wait(BOUND_S))
                times = []
                for _ in range(50):
                    began = time.monotonic()
                    echo(other)
                    times.append(time.monotonic() - began)
            finally:
                enough.set()
                busy.shutdown(socket.SHUT_RDWR)
                for thread in threads:
                    thread.join()
            self.assertLess(max(times), 1, "seconds for an echo beside a busy connection")
            close_all([busy, other])
            server.finish()


class CloseAfterEcho(unittest.TestCase):
    """What the original experiment's client does."""

    @for_each(all_shapes)
    def test_one_echo_then_the_end(self, shape: Shape) -> None:
        with shape.start("--close-after-echo") as server:
            for size in (1, 20, 32):
                with connect(server.address) as sock:
                    echo(sock, PATTERN[:size])
                    self.assertEqual(sock.recv(1), b"", "an orderly end, not a reset")
            code, result, err = run_client(
                server.target,
                *("--close-by", "server", "--connections", "32", "--requests", "300"),
                *("--duration", str(BOUND_S)),
            )
            self.assertEqual(code, 0, err)
            self.assertEqual(result["outcomes"]["echoed"], 300)
            self.assertEqual(server.finish().report["books"]["served"], 303)


class AcceptQueue(unittest.TestCase):
    """Fault 10. The overflow counter belongs to the network namespace: nothing else may run meanwhile."""

    def storm(self, server: Server, count: int) -> list[socket.socket]:
        """Connects while nobody can accept: what the queue does is decided by its length alone."""
        for pid in server.group():
            support.stop_process(pid)
        socks = []
        for _ in range(count):
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            sock.connect_ex(server.address)
            socks.append(sock)
        server.signal_group(signal.SIGCONT)
        return socks

    @for_each(all_shapes)
    def test_a_short_queue_overflows_and_says_so(self, shape: Shape) -> None:
        with shape.start("--backlog", "4", "--accept-drain", "one", "--drain-timeout", "1") as server:
            socks = self.storm(server, 300)
            wait_until(lambda: totals_of(server)["accepted"] >= 4, "the queue is accepted")
            listener = server.report()["listener"]
            close_all(socks)
            server.finish()
        self.assertEqual(listener["queue_limit"], 4)
        self.assertGreaterEqual(listener["queue_peak"], 4)
        self.assertGreater(listener["listen_overflows"], 0)

    @for_each(all_shapes)
    def test_the_default_queue_does_not(self, shape: Shape) -> None:
        count = scaled(1000, 100 if shape.strategy == "fork" else 1000)
        with shape.start() as server:
            socks = self.storm(server, count)
            wait_until(lambda: totals_of(server)["accepted"] == count, "all are accepted")
            close_all(socks)
            listener = server.finish().report["listener"]
        self.assertEqual(listener["listen_overflows"], 0)
        self.assertEqual(listener["queue_limit"], 4096)
        self.assertGreater(listener["queue_peak"], count / 4)  # a listener per worker has its share


class Drain(unittest.TestCase):
    """SIGTERM and SIGINT: stop accepting, finish, report, exit 0."""

    def drain(self, shape: Shape, send: Any) -> None:
        with shape.start("--drain-timeout", "600") as server, connections(server.address, 4) as socks:
            for sock in socks:
                echo(sock)
            send(server)
            wait_until(lambda: refuses(server.address), "connects are refused")
            for _ in range(3):
                for sock in socks:
                    echo(sock)
            self.assertFalse(server.has_ended())
            socks.pop().close()
            for sock in socks:
                echo(sock)
                sock.close()
            report = server.finish(0).report
        self.assertGreaterEqual(report["books"]["accepted"], 4)
        self.assertEqual(report["books"]["accepted"], report["books"]["served"])
        self.assertEqual(report["totals"]["closed_draining"], 0)
        self.assertEqual(report["worker_deaths"], 0)

    @for_each(all_shapes)
    def test_sigterm_lets_clients_finish(self, shape: Shape) -> None:
        self.drain(shape, lambda server: server.signal(signal.SIGTERM))

    @for_each(all_shapes)
    def test_sigint_of_a_terminal_does_the_same(self, shape: Shape) -> None:
        # A terminal sends it to the whole group.
        self.drain(shape, lambda server: server.signal_group(signal.SIGINT))

    @for_each(all_shapes)
    def test_a_second_signal_ends_it_at_once(self, shape: Shape) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            with shape.start("--drain-timeout", "600") as server, connections(server.address, 4) as socks:
                for sock in socks:
                    echo(sock)
                server.signal(number)
                wait_until(lambda: refuses(server.address), "connects are refused")
                report = server.finish(number).report
                self.assertEqual(report["totals"]["closed_draining"], 4)
                for sock in socks:
                    self.assertTrue(ended(sock))

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

    @for_each(all_shapes)
    def test_what_has_completed_its_handshake_is_served(self, shape: Shape) -> None:
        # Connected while the server was stopped, and SIGTERM is there before it can accept.
        with shape.start("--drain-timeout", "600") as server:
            for pid in server.group():
                support.stop_process(pid)
            with connections(server.address, 20) as socks:
                server.signal(signal.SIGTERM)
                server.signal_group(signal.SIGCONT)
                for sock in socks:
                    echo(sock)
            report = server.finish(0).report
        self.assertEqual(report["books"]["served"], 20)

    @for_each(all_shapes)
    def test_sigusr1_reports_while_it_runs(self, shape: Shape) -> None:
        with shape.start() as server, connections(server.address, 10) as socks:
            for sock in socks:
                echo(sock)
            report = server.report()
            self.assertEqual(report["books"]["active"], 10)
            self.assertEqual(report["books"]["accepted"], 10)
            self.assertTrue(report["books"]["balanced"])
            if shape.strategy != "fork":  # its children count when they end
                # An echo is counted after it is sent, so a client can know of it first.
                wait_until(lambda: totals_of(server)["echoes"] == 10, "ten echoes are counted")
            for sock in socks[:4]:
                sock.close()
            wait_until(lambda: server.report()["books"]["active"] == 6, "four are gone")
            self.assertTrue(server.report()["books"]["balanced"])
            echo(socks[9])
            close_all(socks)
            server.finish()


class WorkerDeath(unittest.TestCase):
    """Faults 1, 2, 3, 11 and 16."""

    def replaced(self, server: Server, slot: int, old: int) -> int:
        return wait_until(
            lambda: pid if (pid := server.worker_pid(slot)) not in (0, old) else 0, f"worker {slot} is replaced"
        )

    @for_each(method_shapes)
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
            report = server.finish().report
        self.assertEqual(report["worker_deaths"], 1)
        self.assertEqual(report["books"]["accepted"], 40)
        self.assertEqual(report["books"]["lost"], victim["active"])

    @for_each(method_shapes)
    def test_all_workers_killed_under_load(self, shape: Shape) -> None:
        # Connections made in the gap wait for the successors: in the acceptor or in the accept queue.
        with shape.start() as server:
            for round_number in range(3):
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
            report = server.finish().report
        self.assertEqual(report["worker_deaths"], 6)

    @for_each(sink_shapes)
    def test_what_a_dead_worker_had_not_received_is_redelivered(self, shape: Shape) -> None:
        with shape.start("--dispatch", "round-robin") as server:
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

    @for_each(method_shapes)
    def test_a_crash_loop_backs_off(self, shape: Shape) -> None:
        with shape.start() as server:
            pid = server.worker_pid(0)
            waits = []
            for _ in range(7):
                os.kill(pid, signal.SIGKILL)
                began = time.monotonic()
                pid = self.replaced(server, 0, pid)
                waits.append(time.monotonic() - began)
            # 10 ms, doubled each time: the last waited for 640 ms.
            self.assertGreaterEqual(waits[6], 0.5, waits)
            os.kill(pid, signal.SIGKILL)  # and now 1.28 s
            wait_until(lambda: server.report()["degraded"], "the report says so")
            self.assertRegex(server.report()["degraded"], "worker 0")
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


class AcceptorDeath(unittest.TestCase):
    """Fault 15."""

    @for_each(lambda: [shape for shape in all_shapes() if shape.pool or shape.strategy == "fork"])
    def test_workers_finish_and_exit(self, shape: Shape) -> None:
        with shape.start("--drain-timeout", "1") as server, connections(server.address, 4) as socks:
            for sock in socks:
                echo(sock)
            server.signal(signal.SIGKILL)
            # They serve what they have to its end, or to the drain timeout.
            self.assertTrue(server.has_ended(BOUND_S))
            wait_until(lambda: not server.group(), "all processes have ended", 15)
            for sock in socks:
                self.assertTrue(ended(sock))
            self.assertTrue(refuses(server.address))

    @for_each(lambda: [shape for shape in all_shapes() if shape.pool or shape.strategy == "fork"])
    def test_connections_are_served_meanwhile(self, shape: Shape) -> None:
        with shape.start("--drain-timeout", "600") as server, connections(server.address, 4) as socks:
            for sock in socks:
                echo(sock)
            server.signal(signal.SIGKILL)
            self.assertTrue(server.has_ended(BOUND_S))
            for sock in socks:
                echo(sock)
            close_all(socks)
            wait_until(lambda: not server.group(), "all processes have ended", 15)


class Descriptors(unittest.TestCase):
    """Faults 4, 5 and 7, and that nothing leaks."""

    @for_each(all_shapes)
    def test_none_leaks(self, shape: Shape) -> None:
        held = scaled(300, 50)
        with shape.start() as server:
            begin = {pid: support.descriptors_of(pid) for pid in server.group()}
            for _ in range(2):
                with connections(server.address, held) as socks:
                    for sock in socks:
                        echo(sock)
                code, _, err = run_client(
                    server.target, "--connections", "64", "--requests", "500", "--duration", str(BOUND_S)
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
        count, limit = 200, 64
        set_limit = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))  # noqa: E731
        with shape.start(before_exec=set_limit) as server, connections(server.address, count) as socks:
            for sock in socks:
                with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                    sock.sendall(b"hello")
            began = time.monotonic()
            served, hanging = [], 0
            for sock in socks:
                if not support.readable(sock, max(0.0, began + 10 - time.monotonic())):
                    hanging += 1
                    continue
                with contextlib.suppress(ConnectionResetError):
                    got = support.receive_exactly(sock, 5)
                    self.assertIn(got, (b"hello", b""))
                    if got:
                        served.append(sock)
            took = time.monotonic() - began
            self.assertEqual(hanging, 0, f"clients without an echo or an end after 10 s; {len(served)} are served")
            # Now nothing happens, so it must cost nothing.
            ticks = sum(map(support.cpu_ticks, server.group()))
            self.assertFalse(server.has_ended(0.5))
            self.assertLess(sum(map(support.cpu_ticks, server.group())) - ticks, scaled(10, 20), "ticks in 0.5 s")
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
        self.assertLess(took, 5, "seconds until the last client knew")
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


class Limits(unittest.TestCase):
    @for_each(all_shapes)
    def test_max_connections(self, shape: Shape) -> None:
        with shape.start("--max-connections", "3") as server, connections(server.address, 3) as socks:
            for sock in socks:
                echo(sock)
            with connect(server.address) as fourth:
                fourth.sendall(b"hello")
                self.assertFalse(support.readable(fourth, 0.2), "served beyond the limit")
                books = server.report()["books"]
                self.assertEqual(books["active"] + books["in_hand_off"], 3)
                ticks = sum(map(support.cpu_ticks, server.group()))
                self.assertFalse(server.has_ended(0.3))
                self.assertLess(sum(map(support.cpu_ticks, server.group())) - ticks, scaled(6, 12), "ticks in 0.3 s")
                for sock in socks:
                    echo(sock)
                socks[1].close()
                self.assertEqual(support.receive_exactly(fourth, 5), b"hello")
                echo(socks[0])
                echo(socks[2])
            close_all(socks)
            self.assertEqual(server.finish().report["books"]["served"], 4)

    @for_each(all_shapes)
    def test_idle_timeout_closes_the_idle_only(self, shape: Shape) -> None:
        with shape.start("--idle-timeout", "1") as server, connections(server.address, 3) as (active, silent, idle):
            echo(idle)
            began = time.monotonic()
            ends = {silent, idle}
            while ends:
                self.assertLess(time.monotonic() - began, BOUND_S)
                echo(active)
                if support.readable(next(iter(ends)), 0.05):
                    self.assertTrue(ended(ends.pop()))
            self.assertGreater(time.monotonic() - began, 0.9)
            echo(active)
            active.close()
            report = server.finish().report
        self.assertEqual(report["totals"]["closed_idle"], 2)
        self.assertEqual(report["books"]["served"], 3)

    @for_each(all_shapes)
    def test_stats_interval_is_for_a_person_on_stderr(self, shape: Shape) -> None:
        with shape.start("--stats-interval", "0.05") as server, connect(server.address) as sock:
            echo(sock)
            line = re.compile(
                r"\d+ s: \d+ accepts/s, \d+ echoes/s, 1 open, queue \d+, \d+ overflows, 0 shed, 0 lost\n"
            )
            wait_until(lambda: len(line.findall(server.err_text())) >= 3, "three lines")
            sock.close()
            self.assertEqual(server.finish().out.count("\n"), 1)

    @for_each(all_shapes)
    def test_report_on_stdout(self, shape: Shape) -> None:
        with shape.start(report="-") as server:
            with connect(server.address) as sock:
                echo(sock)
            finished = server.finish()
        first, _, rest = finished.out.partition("\n")
        self.assertRegex(first, r"^listening 127\.0\.0\.1:\d+$")
        self.assertEqual(json.loads(rest)["books"]["served"], 1)
        self.assertEqual(finished.err, "")


class Usage(unittest.TestCase):
    """Exit 2 for bad usage, 1 for what fails while running: one line on stderr, nothing on stdout."""

    def refused(self, code: int, *options: str, says: str = "", **popen: Any) -> None:
        with self.subTest(options=options):
            got, out, err = run_program(SERVER, *options, bound_s=BOUND_S, **popen)
            self.assertEqual((got, out), (code, ""), err)
            self.assertRegex(err, r"\Ac10k-server: [^\n]+\n\Z")
            self.assertRegex(err, says)

    def test_bad_values(self) -> None:
        pool = ("--strategy", "pool", "--listen", "127.0.0.1:0")
        for options, says in [
            (("--no-such-option",), "no-such-option"),
            (("stray",), "argument"),
            (("--strategy", "epol"), "epol.*fork, select, poll, epoll"),
            (("--strategy", ""), "strategy"),
            (("--strategy",), "strategy"),
            (("--strategy", "epoll", "--strategy", "poll"), "strategy"),
            ((*pool, "--loop", "kqueue"), "kqueue.*select, poll, epoll"),
            ((*pool, "--ipc", "carrier-pigeon"), "carrier-pigeon.*scm-stream"),
            ((*pool, "--ipc", ""), "method"),
            ((*pool, "--ipc", "scm-stream:"), "scm-stream"),
            ((*pool, "--ipc", "scm-stream:batch"), "key=value"),
            ((*pool, "--ipc", "scm-stream:batch="), "key=value"),
            ((*pool, "--ipc", "scm-stream:batch=0"), "1 to 253"),
            ((*pool, "--ipc", "scm-stream:batch=254"), "1 to 253"),
            ((*pool, "--ipc", "scm-stream:batch=4x"), "4x"),
            ((*pool, "--ipc", "scm-stream:batch=4,batch=5"), "twice"),
            ((*pool, "--ipc", "scm-stream:bach=4"), "bach.*batch"),
            ((*pool, "--ipc", "reuseport:nothing=1"), "nothing"),
            ((*pool, "--ipc", "inherited-listener:wait=eagerly"), "eagerly.*exclusive"),
            ((*pool, "--ipc", "inherited-listener", "--dispatch", "round-robin"), "kernel dispatches"),
            ((*pool, "--dispatch", "fair"), "fair.*round-robin"),
            ((*pool, "--hand-off-at", "dawn"), "dawn.*accept"),
            ((*pool, "--workers", "0"), "1 to 1024"),
            ((*pool, "--workers", "-1"), "1 to 1024"),
            ((*pool, "--workers", "1025"), "1 to 1024"),
            ((*pool, "--workers", "two"), "whole number"),
            ((*pool, "--workers", "99999999999999999999"), "1 to 1024"),
            (("--loop", "epoll"), "--strategy pool"),
            (("--ipc", "scm-stream"), "--strategy pool"),
            (("--workers", "2"), "--strategy pool"),
            (("--dispatch", "round-robin"), "--strategy pool"),
            (("--strategy", "fork", "--hand-off-at", "accept"), "--strategy pool"),
            (("--backlog", "0"), "--backlog"),
            (("--backlog", "-5"), "--backlog"),
            (("--backlog", "65536"), "--backlog"),
            (("--backlog", "4096.5"), "--backlog"),
            (("--backlog", ""), "--backlog"),
            (("--accept-drain", "some"), "all, one"),
            (("--max-connections", "-1"), "--max-connections"),
            (("--max-connections", "1e3"), "--max-connections"),
            (("--max-connections", "1000000"), "--max-connections"),
            (("--idle-timeout", "-1"), "--idle-timeout"),
            (("--idle-timeout", "soon"), "--idle-timeout"),
            (("--idle-timeout", "nan"), "--idle-timeout"),
            (("--idle-timeout", "inf"), "--idle-timeout"),
            (("--idle-timeout", "1e300"), "--idle-timeout"),
            (("--drain-timeout", "-0.5"), "--drain-timeout"),
            (("--drain-timeout", "5s"), "--drain-timeout"),
            (("--stats-interval", "0.0001"), "--stats-interval"),
            (("--stats-interval", "-1"), "--stats-interval"),
            (("--json",), "--list"),
            (("--listen", "127.0.0.1"), "--listen"),
            (("--listen", "127.0.0.1:"), "--listen"),
            (("--listen", "127.0.0.1:65536"), "--listen"),
            (("--listen", "127.0.0.1:-1"), "--listen"),
            (("--listen", "127.0.0.1:http"), "--listen"),
            (("--listen", ":::"), "--listen"),
            (("--listen", ""), "--listen"),
            (("--listen", "no-such-host.invalid:0"), "no-such-host.invalid"),
        ]:
            self.refused(2, *options, says=says)

    def test_exclusive_needs_a_loop_that_can(self) -> None:
        for row in listing()["loops"]:
            if row["name"] in ("select", "poll") and row["available"]:
                self.refused(
                    2,
                    *("--listen", "127.0.0.1:0", "--strategy", "pool", "--loop", row["name"]),
                    *("--ipc", "inherited-listener:wait=exclusive"),
                    says="exclusive",
                )

    def test_too_few_descriptors_to_start(self) -> None:
        for options in (("--strategy", "epoll"), ("--strategy", "fork"), ("--strategy", "pool", "--workers", "8")):
            self.refused(
                2,
                *("--listen", "127.0.0.1:0", *options),
                says="RLIMIT_NOFILE",
                before_exec=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20)),
            )

    @for_each(all_shapes)
    def test_failures_at_run_time(self, shape: Shape) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            self.refused(1, *shape.options, "--listen", address, says="in use.*--listen")
        for path in ("/no/such/folder/report.json", "/"):
            self.refused(1, *shape.options, "--listen", "127.0.0.1:0", "--report", path, says="--report")
        self.refused(1, *shape.options, "--listen", "192.0.2.1:0", says="192.0.2.1.*--listen")

    def test_privileged_port(self) -> None:
        if os.geteuid() == 0 and not shutil.which("setpriv"):
            self.skipTest("we are root and there is no setpriv")
        first = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
        if first == 0:
            self.skipTest("net.ipv4.ip_unprivileged_port_start is 0")
        drop = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups") if os.geteuid() == 0 else ()
        code, out, err = run_program(*drop, SERVER, "--listen", "127.0.0.1:1")
        self.assertEqual((code, out), (1, ""), err)
        self.assertRegex(err, r"\Ac10k-server: [^\n]*Permission denied[^\n]*--listen[^\n]*\n\Z")

    def test_help_version_and_list(self) -> None:
        for options, says in [
            (("--help",), "--listen"),
            (("--version",), r"c10k-server \d"),
            (("--list",), "scm-stream"),
        ]:
            with self.subTest(options=options):
                code, out, err = run_program(SERVER, *options)
                self.assertEqual((code, err), (0, ""))
                self.assertRegex(out, says)
        self.assertEqual(listing()["schema"], "c10k-list/1")
        for kind in ("strategies", "loops", "methods", "policies"):
            for row in listing()[kind]:
                self.assertEqual(row["available"], row["reason"] == "", row)

    def test_ipv6_and_names(self) -> None:
        with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
            with support.Program([SERVER, "--listen", "[::1]:0"]) as server:
                match = re.fullmatch(r"listening \[::1\]:(\d+)\n", server.read_line())
                self.assertIsNotNone(match)
                with socket.create_connection(("::1", int(match[1])), timeout=BOUND_S) as sock:
                    echo(sock)
        with support.Program([SERVER, "--listen", "localhost:0"]) as server:
            self.assertRegex(server.read_line(), r"^listening (127\.0\.0\.1|\[::1\]):\d+\n$")


class Dispatch(unittest.TestCase):
    @for_each(sink_shapes)
    def test_round_robin_is_even(self, shape: Shape) -> None:
        with shape.start("--dispatch", "round-robin", workers=3) as server:
            with connections(server.address, 60) as socks:
                for sock in socks:
                    echo(sock)
            report = server.finish().report
        self.assertEqual([row["received"] for row in workers_of(report)], [20, 20, 20])
        self.assertEqual(report["totals"]["handed"], 60)

    @for_each(sink_shapes)
    def test_least_connections_evens_out(self, shape: Shape) -> None:
        with shape.start("--dispatch", "least-connections") as server, connections(server.address, 40) as socks:
            for sock in socks:
                echo(sock)

            def active() -> list[int]:
                return [row["active"] for row in workers_of(server.report())]

            self.assertEqual(active(), [20, 20])
            close_all(socks[::2])  # they went in turn, so one worker loses them all
            wait_until(lambda: sum(active()) == 20, "half of them are gone")
            self.assertEqual(sorted(active()), [0, 20])
            with connections(server.address, 20) as more:
                for sock in more:
                    echo(sock)
                self.assertEqual(active(), [20, 20])
            close_all(socks)
            server.finish()

    def test_every_policy_serves(self) -> None:
        for row in listing()["policies"]:
            with self.subTest(policy=row["name"]), Server("--strategy", "pool", "--dispatch", row["name"]) as server:
                code, _, err = run_client(server.target, "--requests", "300", "--duration", str(BOUND_S))
                self.assertEqual(code, 0, err)
                self.assertEqual(server.finish().report["books"]["served"], 300)


@unittest.skipIf(SANITIZED, "sanitizers make system calls of their own")
@unittest.skipUnless(shutil.which("strace"), "strace is not installed")
class SystemCalls(unittest.TestCase):
    """What the study's explanations rest on: the system calls of each step, counted from outside."""

    def traced(self, requests: int, concurrent: int, *options: str) -> dict[str, Counter[str]]:
        """System calls by thread: "main", "worker", and for further threads what they are."""
        with support.Program(["true"]) as place:  # its folder
            trace = place.folder / "trace"
            # -D: the server stays our child, and the tracer becomes its grandchild.
            with Server(*options, wrapper=("strace", "-D", "-f", "-o", str(trace))) as server:
                workers = {row["pid"] for row in workers_of(server.report())}
                code, _, err = run_client(
                    server.target,
                    *("--connections", str(concurrent), "--requests", str(requests)),
                    *("--duration", str(BOUND_S), "--timeout", str(BOUND_S)),
                )
                self.assertEqual(code, 0, err)
                self.assertEqual(server.finish().report["books"]["served"], requests)
                main = server.pid
            by_thread: dict[int, Counter[str]] = {}
            for line in trace.read_text(errors="replace").splitlines():
                if match := re.match(r"(\d+) +(\w+)\(", line):  # one that is resumed has been counted
                    by_thread.setdefault(int(match[1]), Counter())[match[2]] += 1
        calls: dict[str, Counter[str]] = {}
        for thread, counts in by_thread.items():
            if thread == main:
                name = "main"
            elif thread in workers:
                name = "worker"
            else:
                name = "sharer" if counts["sendmsg"] else "feeder"
            calls.setdefault(name, Counter()).update(counts)
        return calls

    def per_connection(self, few: int, many: int, concurrent: int, *options: str) -> dict[str, dict[str, float]]:
        """From two runs, so that what a start and an end cost falls out."""
        first = self.traced(few, concurrent, *options)
        second = self.traced(many, concurrent, *options)
        return {
            name: {call: (count - first.get(name, Counter())[call]) / (many - few) for call, count in counts.items()}
            for name, counts in second.items()
        }

    def test_queue_python3_makes_the_calls_of_cpython(self) -> None:
        calls = self.per_connection(
            50, 250, 4, "--strategy", "pool", "--ipc", "queue-python3", "--workers", "1"
        )
        expected = {
            "worker": {
                "socket": 1, "ioctl": 1, "connect": 1, "read": 8, "write": 4, "getrandom": 1, "getpid": 1,
                "fcntl": 1, "getsockname": 2, "recvmsg": 1,
            },
            "sharer": {
                "accept4": 1, "getsockname": 2, "ioctl": 1, "getrandom": 1, "write": 3, "read": 8, "fcntl": 1,
                "sendmsg": 1, "close": 3,
            },
            "feeder": {"fcntl": 1, "write": 1},
        }  # fmt: skip
        for name, counts in expected.items():
            for call, count in counts.items():
                self.assertAlmostEqual(calls[name].get(call, 0), count, delta=0.1, msg=f"{name} {call}: {calls[name]}")

    def test_single_epoll_needs_six(self) -> None:
        calls = self.per_connection(1000, 4000, 64, "--strategy", "epoll")["main"]
        total = sum(count for call, count in calls.items() if call != "epoll_wait")
        self.assertLessEqual(total, 6.1, calls)
        beside = total - max(0.0, calls.get("accept4", 0) - 1) - calls.get("getsockopt", 0)
        self.assertLessEqual(beside, 6.01, calls)


if __name__ == "__main__":
    unittest.main()
