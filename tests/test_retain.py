"""Tests of --retain: the acceptor keeps a copy of every connection, so that the death of its worker costs nothing to
one that stands between requests.

  cd tests; C10K_BIN_DIR=../build/release /usr/bin/python3 -m unittest -v test_retain

C10K_ONLY=REGEX picks shapes by their name, C10K_TIMES=1 prints how long each took."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import fault_support as faults  # noqa: E402
import process_support as support  # noqa: E402
from fault_support import HANG_S, greet, needs_strace, outcomes, traced_each  # noqa: E402
from process_support import (  # noqa: E402
    BOUND_S,
    SERVER,
    Server,
    Shape,
    close_all,
    completion_shapes,
    connections,
    echo,
    ended,
    for_each,
    method_shapes,
    run_client,
    run_program,
    scaled,
    wait_until,
    workers_of,
)

DEADLINE = ("--worker-deadline", "0.1")


def shapes() -> list[Shape]:
    return [shape for shape in method_shapes() + completion_shapes() if not shape.why_not_retained]


class Taken(unittest.TestCase):
    """Over by another worker."""

    @for_each(shapes)
    def test_a_dead_or_stuck_worker_costs_nothing_between_requests(self, shape: Shape) -> None:
        with shape.start("--retain", *DEADLINE) as server:
            before = support.open_files(server.pid)
            with connections(server.address, 40) as socks:
                for sock in socks:
                    echo(sock)
                # One that is served by completions may still read until it has ended.
                for end in (faults.kill, support.stop_process):
                    victim = max(workers_of(server.report()), key=lambda row: row["active"])
                    end(victim["pid"])
                    greet(socks)
                    self.assertEqual(len(outcomes(socks)[0]), 40)
                    faults.wait_for_new_workers(server, {victim["slot"]: victim["pid"]})
                books = server.report()["books"]
                self.assertEqual((books["active"], books["lost"], books["balanced"]), (40, 0, True))
                close_all(socks)
            faults.wait_for_open_files(server.pid, before, "the copies are closed")
            report = server.finish().report
        self.assertEqual((report["worker_deaths"], report["stuck_workers"], report["books"]["lost"]), (2, 1, 0))
        self.assertGreater(report["books"]["redelivered_and_served"], 0)
        self.assertTrue(report["options"]["retain"])

    @needs_strace
    @for_each(shapes)
    def test_a_worker_that_fails_costs_nothing_between_requests(self, shape: Shape) -> None:
        """It ends by an exception, and no destructor ends a connection that another one can go on with."""
        with shape.start("--retain", "--worker-deadline", "0") as server, connections(server.address, 20) as socks:
            for sock in socks:
                echo(sock)
            victim = max(workers_of(server.report()), key=lambda row: row["active"])
            failing = (victim["pid"], ("--inject=epoll_pwait2,io_uring_enter:error=EBADF",))
            with traced_each([failing], server.folder):
                wait_until(lambda: faults.has_ended(victim["pid"]), "it fails")
            greet(socks)
            self.assertEqual(len(outcomes(socks)[0]), 20)
            close_all(socks)
            finished = server.finish()
        self.assertEqual((finished.report["worker_deaths"], finished.report["books"]["lost"]), (1, 0))
        self.assertGreaterEqual(finished.report["books"]["redelivered_and_served"], victim["active"])
        self.assertRegex(finished.err, rf"worker {victim['slot']} .process \d+.: .*{os.strerror(errno.EBADF)}")

    @for_each(shapes)
    def test_in_the_middle_of_a_request_it_is_closed(self, shape: Shape) -> None:
        # One request is burning CPU, which is after it has been read, and does so for longer than it takes to be seen
        # and killed; the other has not begun.
        with (
            shape.start("--retain", "--service-time", "fixed:5000000", "--worker-deadline", "0", workers=1) as server,
            connections(server.address, 2) as socks,
        ):
            wait_until(lambda: server.report()["books"]["active"] == 2, "the worker has them")
            victim = server.worker_pid(0)
            ticks = support.cpu_ticks(victim)
            socks[0].sendall(b"hello")
            wait_until(lambda: support.cpu_ticks(victim) > ticks + 1, "it works")
            os.kill(victim, signal.SIGKILL)
            self.assertTrue(ended(socks[0]))
            # The other one goes on. (That it is echoed: the test above. Here that would take its seconds of CPU.)
            wait_until(lambda: server.report()["totals"]["redelivered"] == 1, "another worker has the other one")
            self.assertFalse(support.readable(socks[1], 0), "it has ended")
            close_all(socks)
            report = server.finish().report
        books = report["books"]
        self.assertEqual((books["accepted"], books["lost"], books["redelivered_and_served"]), (2, 1, 1))

    def test_a_client_that_has_ended_its_stream_gets_its_echo(self) -> None:
        with Server("--strategy", "pool", "--workers", "1", "--retain", "--worker-deadline", "0") as server:
            with connections(server.address, 2) as (resting, fresh):
                echo(resting)
                wait_until(lambda: server.report()["books"]["active"] == 2, "the worker has them")
                victim = server.worker_pid(0)
                support.stop_process(victim)
                for sock in (resting, fresh):
                    sock.sendall(b"last words")
                    sock.shutdown(support.socket.SHUT_WR)
                os.kill(victim, signal.SIGKILL)
                for sock in (resting, fresh):
                    self.assertEqual(support.receive_exactly(sock, 11), b"last words")
            self.assertEqual(server.finish().report["books"]["lost"], 0)

    def test_after_one_echo_a_connection_that_is_to_be_closed_stands_nowhere(self) -> None:
        options = ("--strategy", "pool", "--workers", "1", "--retain", "--close-after-echo", "--worker-deadline", "0")
        with Server(*options) as server:
            with connections(server.address, 4) as socks:
                wait_until(lambda: server.report()["books"]["active"] == 4, "the worker has them")
                faults.kill(server.worker_pid(0))
                for sock in socks:  # untouched: they are served, once
                    echo(sock)
                    self.assertTrue(ended(sock))
            code, _, err = run_client(server.target, "--requests", "500", "--duration", str(BOUND_S))
            self.assertEqual(code, 0, err)
            report = server.finish().report
        self.assertEqual((report["books"]["accepted"], report["books"]["lost"]), (504, 0))


class Copies(unittest.TestCase):
    """They cost a descriptor each, and are closed as their connections end."""

    @for_each(shapes)
    def test_none_stays_after_short_connections(self, shape: Shape) -> None:
        with shape.start("--retain") as server:
            before = support.open_files(server.pid)
            code, result, err = run_client(
                *(server.target, "--connections", "32", "--requests", "300"),
                *("--duration", str(BOUND_S)),
            )
            self.assertEqual(code, 0, err)
            faults.wait_for_open_files(server.pid, before, "the copies are closed")
            self.assertEqual(server.finish().report["books"]["served"], result["outcomes"]["echoed"])

    @for_each(lambda: [shape for shape in shapes() if shape.method == "scm-seqpacket"])
    def test_more_end_at_once_than_the_worker_can_tell_of(self, shape: Shape) -> None:
        count = 1500  # it can tell of 1024 before the acceptor has read on
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed = count + 200
        if hard != resource.RLIM_INFINITY and hard < needed:
            self.skipTest(f"needs {needed} descriptors in this process; the hard RLIMIT_NOFILE is {hard}")
        if soft != resource.RLIM_INFINITY and soft < needed:
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
            self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        with shape.start("--retain", "--worker-deadline", "0", workers=1) as server:
            before = support.open_files(server.pid)
            with connections(server.address, count) as socks:
                for sock in socks:
                    echo(sock)
                self.assertEqual(support.descriptors_of(server.pid), len(before) + count)
                support.stop_process(server.pid)
                worker = server.children()[0]
                close_all(socks)
                wait_until(lambda: support.descriptors_of(worker) < 100, "the worker has closed them")
                os.kill(server.pid, signal.SIGCONT)
            faults.wait_for_open_files(server.pid, before, "the copies are closed")
            with connections(server.address, 4) as socks:
                for sock in socks:
                    echo(sock)
            self.assertEqual(server.finish().report["books"]["served"], count + 4)

    @for_each(shapes)
    def test_max_connections_counts_each_once(self, shape: Shape) -> None:
        with shape.start("--retain", "--max-connections", "3") as server, connections(server.address, 3) as socks:
            for sock in socks:
                echo(sock)
            with support.connect(server.address) as fourth:
                greet([fourth])
                self.assertFalse(support.readable(fourth, 0.1), "served beyond the limit")
                # Until it has ended, what is served by completions may still be read.
                faults.kill(server.worker_pid(0))
                for sock in socks:
                    echo(sock)
                self.assertFalse(support.readable(fourth, 0.1), "served beyond the limit")
                socks[0].close()
                self.assertEqual(len(outcomes([fourth])[0]), 1)
            close_all(socks)
            self.assertEqual(server.finish().report["books"]["lost"], 0)

    @for_each(shapes)
    def test_at_the_limit_of_descriptors_what_is_not_kept_is_served(self, shape: Shape) -> None:
        limit, count = 128, 160
        lower = ("prlimit", f"--nofile={limit}:{limit}", "--")
        with shape.start("--retain", wrapper=lower) as server, connections(server.address, count) as socks:
            greet(socks)
            echoed, closed = outcomes(socks, 5 * HANG_S)
            report = server.report()
            self.assertGreater(report["not_retained"], 0)
            self.assertEqual(report["books"]["shed"], closed)
            self.assertGreaterEqual(len(echoed), 40)
            ticks = sum(map(support.cpu_ticks, server.group()))
            self.assertFalse(server.has_ended(0.2))
            self.assertLess(sum(map(support.cpu_ticks, server.group())) - ticks, scaled(5, 10), "ticks in 0.2 s")
            for sock in echoed:
                echo(sock)
            close_all(socks)
            server.finish()


class Refused(unittest.TestCase):
    @for_each(lambda: [shape for shape in method_shapes() if shape.why_not_retained])
    def test_what_the_acceptor_has_no_copy_of(self, shape: Shape) -> None:
        code, out, err = run_program(SERVER, *shape.options, "--retain", "--listen", "127.0.0.1:0")
        self.assertEqual((code, out), (2, ""), err)
        self.assertRegex(err, rf"\Ac10k-server: --retain: with {shape.method} [^\n]+\n\Z")
        self.assertIn(shape.why_not_retained, err)

    def test_it_is_an_option_of_pools(self) -> None:
        code, _, err = run_program(SERVER, "--strategy", "epoll", "--retain")
        self.assertEqual(code, 2)
        self.assertIn("--strategy pool", err)


if __name__ == "__main__":
    unittest.main()
