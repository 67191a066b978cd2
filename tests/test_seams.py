"""Tests of what meets: a take-over with a signal or a shortage, a drain with a stopped worker or a refusal, and a slot
that is given up with connections that wait for it. (The same step by step: dispatcher_test; a worker that does not
start: supervisor_test; a worker that lies: hostile_worker_test.)

  cd tests; C10K_BIN_DIR=../build/release /usr/bin/python3 -m unittest -v test_seams.Signalled"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import sys
import unittest
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import fault_support as faults  # noqa: E402
import process_support as support  # noqa: E402
import upgrade_support as upgrades  # noqa: E402
from fault_support import greet, needs_strace, outcomes  # noqa: E402
from process_support import (  # noqa: E402
    SERVER,
    Program,
    Server,
    Shape,
    close_all,
    completion_shapes,
    connections,
    dispatched_shapes,
    echo,
    for_each,
    method_shapes,
    wait_until,
    workers_of,
)
from upgrade_support import HELLO, LONG, MESSAGE, READY, REFUSAL, Place, begin_load, end_load, place, said  # noqa: E402

NO_DEADLINE = ("--worker-deadline", "0")


def named(*names: str) -> list[Shape]:
    return [shape for shape in method_shapes() if shape.method in names]


def serves(server: Server, count: int = 4) -> None:
    with connections(server.address, count) as socks:
        for sock in socks:
            echo(sock)


class Signalled(unittest.TestCase):
    """Fault 12: the successor is told to end, or killed, while it takes over."""

    # On its way into the n-th call of its acceptor: its first word to the running server, and the fork of its second
    # worker. A signal that it handles does not keep it from the call, so that one may come with the word that it is
    # ready only as SIGKILL.
    MOMENTS = (
        *(("sendto", 1, number) for number in ("TERM", "KILL")),
        *(("clone,clone3", 2, number) for number in ("TERM", "KILL")),
        ("sendto", 2, "KILL"),
    )

    @needs_strace
    # One whose acceptor waits for the listener, and one with a listener for each worker. (What is before the first
    # word is the same for all, and the calls of other ways' trials would have to be counted.)
    @for_each(lambda: named("scm-seqpacket", "reuseport"))
    def test_before_it_is_ready_the_old_one_notices_only_that(self, shape: Shape) -> None:
        with (
            place() as where,
            shape.start(*LONG, *NO_DEADLINE, *where.here) as old,
            connections(old.address, 4) as held,
        ):
            for sock in held:
                echo(sock)
            wait_until(lambda: all_active(old, 4), "the workers have them")
            before = support.open_files(old.pid)
            with begin_load(old) as load:
                for number, (call, moment, name) in enumerate(self.MOMENTS, 1):
                    with self.subTest(call=call, moment=moment, signal=name):
                        self.succeed_and_end(shape, old, where, call, moment, name)
                        said(old, "this server goes on", number)
                        for sock in held:
                            echo(sock)
                wait_until(lambda: old.report()["books"]["accepted"] > 10, "clients go on")
                end_load(load)
            faults.wait_for_open_files(old.pid, before, "what the old one has open")
            self.assertEqual(os.listdir(where.path), ["control"])
            close_all(held)
            finished = old.finish()
            self.assertEqual(len(finished.err.splitlines()), len(self.MOMENTS), finished.err)
            self.assertEqual((finished.report["books"]["lost"], finished.report["worker_deaths"]), (0, 0))

    def succeed_and_end(self, shape: Shape, old: Server, where: Place, call: str, moment: int, name: str) -> None:
        """A successor gets a signal on its way into a call; when this returns all its processes have ended."""
        inject = f"--inject={call}:signal={name}:when={moment}"
        command = ["strace", "-D", "-o", "/dev/null", "-e", f"trace={call}", inject, SERVER]
        command += [*shape.options, "--workers", "2", "--listen", old.target, *where.take]
        with Program(command, environment=lambda _: faults.UNDER_TRACE) as successor:
            code, out, err = successor.wait()
        # One that handles SIGTERM already ends as if it had served; it has not.
        expected = {"KILL": (-signal.SIGKILL,), "TERM": (-signal.SIGTERM, 0)}[name]
        self.assertIn(code, expected, err)
        self.assertEqual(out, "", err)

    @needs_strace
    @for_each(lambda: named("reuseport", "inherited-listener"))
    def test_what_waits_in_the_queue_is_left_to_the_old_one(self, shape: Shape) -> None:
        # Its first worker is there already, and has the listener.
        for name in ("TERM", "KILL"):
            with (
                self.subTest(signal=name),
                place() as where,
                shape.start(*LONG, *NO_DEADLINE, *where.here) as old,
            ):
                workers = old.children()
                for pid in workers:
                    support.stop_process(pid)
                with connections(old.address, 16) as socks:
                    greet(socks)
                    self.succeed_and_end(shape, old, where, "clone,clone3", 2, name)
                    said(old, "this server goes on")
                    for pid in workers:
                        os.kill(pid, signal.SIGCONT)
                    echoed, closed = outcomes(socks, 5 * faults.HANG_S)
                    self.assertEqual((len(echoed), closed), (16, 0))
                    self.assertEqual(old.report()["totals"]["accepted"], 16)
                    close_all(socks)
                    self.assertEqual(old.finish().report["books"]["lost"], 0)

    @unittest.skipUnless(os.geteuid() == 0, "needs root, to steer with eBPF")
    def test_what_its_own_queues_have_is_served(self) -> None:
        """With reuseport:migrate=on its program steers from before its first word that it is ready. Its predecessor
        never answers that, and serves nobody; so what comes then can only be served by the workers that are left."""
        ipc = "reuseport:migrate=on"
        with place() as where, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
            control.settimeout(support.BOUND_S)
            control.bind(where.control)
            control.listen()
            listener = socket.create_server(("127.0.0.1", 0), reuse_port=True)
            target = "{}:{}".format(*listener.getsockname())
            command = [SERVER, "--strategy", "pool", "--ipc", ipc, "--workers", "2", "--listen", target, *where.take]
            with listener, Program(command) as successor:
                with contextlib.closing(control.accept()[0]) as peer:
                    upgrades.offer(peer, [listener])
                    self.assertEqual(upgrades.heard(peer)[0], READY)
                    with connections(listener.getsockname(), 16) as socks:
                        greet(socks)
                        self.assertFalse(support.readable(socks[0], 0), "it has not been told to begin")
                        successor.signal(signal.SIGKILL)
                        echoed, closed = outcomes(socks, 5 * faults.HANG_S)
                        self.assertEqual((len(echoed), closed), (16, 0))
                        close_all(socks)
                self.assertEqual(successor.wait()[0], -signal.SIGKILL)  # its workers end, too

    # A channel for each worker, and one for all; a descriptor table that the successor's workers keep open when its
    # acceptor has died; a worker that gives up connections by completions. (All others: test_upgrade.Retained.)
    @for_each(
        lambda: named("scm-seqpacket", "scm-shared", "shared-table")
        + [shape for shape in completion_shapes() if not shape.why_not_retained]
    )
    def test_while_it_adopts_none_is_lost(self, shape: Shape) -> None:
        # One of the old workers is stopped, so that what it has is still to be handed on.
        for number in (signal.SIGTERM, signal.SIGKILL):
            options = (*LONG, "--retain", *NO_DEADLINE)
            with (
                self.subTest(signal=number),
                place() as where,
                shape.start(*options, *where.here) as old,
                connections(old.address, 24) as held,
            ):
                for sock in held:
                    echo(sock)
                rows = workers_of(wait_until(lambda: all_active(old, 24), "the workers have them"))
                victim = max(rows, key=lambda row: row["active"])
                support.stop_process(victim["pid"])
                rest = 24 - victim["active"]
                with shape.start(*options, *where.take) as new:
                    wait_until(lambda: new.report()["totals"]["active"] == rest, "it has the others")
                    new.signal(number)
                    said(old, "its predecessor serves 0 connections on")
                    os.kill(victim["pid"], signal.SIGCONT)
                    for sock in held:
                        echo(sock)
                    close_all(held)
                    books = old.finish(0).report["books"]
                    self.assertEqual((books["handed_on"], books["served"]), (rest, victim["active"]))
                    self.assertEqual(books["lost"], 0)
                    if number == signal.SIGTERM:
                        books = new.finish(0).report["books"]
                        self.assertEqual((books["adopted"], books["served"], books["lost"]), (rest, rest, 0))
                    wait_until(lambda: not new.group(), "its workers end")
                self.assertEqual([name for name in os.listdir(where.path)], [])


def all_active(server: Server, count: int) -> dict[str, support.Any]:
    """A report, once so many are in workers."""
    report = server.report()
    return report if report["totals"]["active"] == count else {}


@contextlib.contextmanager
def numbers_left(pid: int, count: int) -> Iterator[None]:
    """Meanwhile a process can open so many descriptors more."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    limit = 0
    while count >= 0:
        if limit not in used:
            count -= 1
        limit += 1
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit - 1, before[1]))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


# Runs a program with so many numbers left for what it opens.
LEAVE = (
    *("/usr/bin/python3", "-c"),
    """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
last = 2
while last < 255 - int(sys.argv[1]):
    last = os.dup(0)
    os.set_inheritable(last, True)
os.execv(sys.argv[2], sys.argv[2:])
""",
)


class Shortage(unittest.TestCase):
    """Fault 7 at the control socket. It is the same for every way of handing over."""

    POOL = ("--strategy", "pool", "--workers", "2", *LONG)

    @contextlib.contextmanager
    def old_one_with_four(self, where: Place) -> Iterator[tuple[Server, list[socket.socket], list[str]]]:
        """It, its connections, and what it has open."""
        with Server(*self.POOL, *where.here) as old, connections(old.address, 4) as held:
            for sock in held:
                echo(sock)
            wait_until(lambda: all_active(old, 4), "the workers have them")
            yield old, held, support.open_files(old.pid)

    def test_of_the_acceptor_does_not_make_it_take_a_busy_worker_for_a_stuck_one(self) -> None:
        # Two seconds of CPU: it has 4 s for them, and 0.4 s if it counted as asleep.
        options = ("--workers", "1", "--service-time", "fixed:2000000", "--worker-deadline", "0.2")
        with Server("--strategy", "pool", *options) as server, connections(server.address, 1) as socks:
            wait_until(lambda: all_active(server, 1), "the worker has it")
            with numbers_left(server.pid, 0):
                echo(socks[0])
            close_all(socks)
            self.assertEqual(server.finish().report["stuck_workers"], 0)

    def test_of_the_old_one_makes_the_successor_wait(self) -> None:
        with place() as where, self.old_one_with_four(where) as (old, held, before):
            with numbers_left(old.pid, 0), upgrades.Predecessor(where.control) as successor:
                successor.say(HELLO)
                said(old, "--control: accept4: Too many open files;")
                ticks = support.cpu_ticks(old.pid)
                self.assertFalse(old.has_ended(0.4))
                self.assertLess(support.cpu_ticks(old.pid) - ticks, support.scaled(4, 10), "ticks in 0.4 s")
                for sock in held:
                    echo(sock)
            said(old, "this server goes on")  # the one that waited has been heard, and has gone
            self.assertEqual(len(old.err_text().splitlines()), 2, old.err_text())
            serves(old)
            faults.wait_for_open_files(old.pid, before, "what it has open")
            with Server(*self.POOL, *where.take) as new:
                close_all(held)
                self.assertEqual(old.finish(0).report["books"]["lost"], 0)
                serves(new)
                new.finish()

    def test_of_the_old_one_at_sighup(self) -> None:
        with Server(*self.POOL, guarded=True) as server, connections(server.address, 4) as held:
            for sock in held:
                echo(sock)
            wait_until(lambda: all_active(server, 4), "the workers have them")
            before = support.open_files(server.pid)
            # A pair of sockets, and the pidfd.
            for left in range(3):
                with self.subTest(left=left), numbers_left(server.pid, left):
                    server.signal(signal.SIGHUP)
                    said(server, "SIGHUP: no successor: ", left + 1)
                    for sock in held:
                        echo(sock)
                    self.assertEqual(len(server.children()), 2)
            line = r"c10k-server: [^\n]+Too many open files; this server goes on\n"
            self.assertRegex(server.err_text(), rf"\A({line}){{3}}\Z")
            faults.wait_for_open_files(server.pid, before, "what it has open")
            serves(server)
            close_all(held)
            server.finish()

    def test_of_the_new_one_is_its_end(self) -> None:
        with place() as where, self.old_one_with_four(where) as (old, held, before):
            failures = 0
            for left in range(2, 64):
                with Program([*LEAVE, str(left), SERVER, "--listen", old.target, *self.POOL, *where.take]) as new:
                    if new.read_line():
                        close_all(held)
                        self.assertEqual(old.finish(0).report["books"]["lost"], 0)
                        new.signal(signal.SIGTERM)
                        self.assertEqual(new.wait()[0], 0)
                        break
                    failures += 1
                    code, _, err = new.wait()
                    self.assertEqual(code, 1, err)
                    # What a worker says of itself stands before it.
                    self.assertRegex(err, r"\A([^\n]+\n)?c10k-server: [^\n]+\n\Z", f"{left} are left")
                for sock in held:
                    echo(sock)
                faults.wait_for_open_files(old.pid, before, "what the old one has open")
            self.assertGreater(failures, 2)
            said_by_old = old.err_text().splitlines()
            self.assertLessEqual(len(said_by_old), failures)
            for line in said_by_old:
                self.assertIn("this server goes on", line)

    def test_a_refusal_is_heard_from_one_that_has_closed(self) -> None:
        # It closes with a word unread, which is an error at the other end, and that comes before the refusal.
        with place() as where, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(where.control)
            listener.listen()
            with Program([SERVER, "--listen", "127.0.0.1:0", *where.take]) as successor:
                self.assertTrue(support.readable(listener))
                peer, _ = listener.accept()
                self.assertTrue(support.readable(peer), "it says hello")
                peer.send(MESSAGE.pack(upgrades.MAGIC, upgrades.VERSION, REFUSAL, 0, 0, b"not today"))
                peer.close()
                code, out, err = successor.wait()
            self.assertEqual((code, out, err), (1, "", "c10k-server: --take-over: refused: not today\n"))


class Draining(unittest.TestCase):
    """SIGTERM to a server of which not all workers are well."""

    @for_each(dispatched_shapes)
    def test_a_refusal_that_comes_after_it_goes_to_another_worker(self, shape: Shape) -> None:
        # Worker 0 has no descriptor left, and is stopped until the server drains: then it refuses what it was handed.
        # Of some the client has gone by then.
        with shape.start("--dispatch", "round-robin", *LONG, *NO_DEADLINE) as server:
            worker = server.worker_pid(0)
            support.stop_process(worker)
            with numbers_left(worker, 0), connections(server.address, 12) as socks:
                greet(socks)
                wait_until(lambda: server.report()["totals"]["handed"] == 12, "all are handed over")
                for sock in socks[8:]:
                    sock.close()
                server.signal(signal.SIGTERM)
                for _ in range(2):  # by the end of the second it has read the signal before it
                    server.report()
                os.kill(worker, signal.SIGCONT)
                echoed, closed = outcomes(socks[:8], 5 * faults.HANG_S)
                self.assertEqual((len(echoed), closed), (8, 0))
                close_all(socks)
                report = server.finish(0).report
        self.assertEqual((report["books"]["accepted"], report["books"]["lost"]), (12, 0))
        self.assertEqual(report["worker_deaths"], 0)
        if shape.method.startswith("scm"):  # others need no number for some, or share the acceptor's
            self.assertGreaterEqual(report["totals"]["refused"], 4)

    def test_a_stopped_worker_does_not_outlive_it(self) -> None:
        """In each way, all at the same time: a worker is stopped with connections, and more come. Whatever becomes of
        them, they end or are echoed, and the server ends: its deadline ends that worker, or else the drain's."""
        bound_s = support.scaled(8, 20)  # of which the workers may take the timeout and 2 s of grace
        shapes = [shape for shape in method_shapes() + completion_shapes() if not shape.unsupported]
        # In turn, as it is the supervisor's, which does not know the method. (Without a drain, each with a deadline:
        # test_faults.StoppedWorker.)
        cases = [(shape, ("0", "0.1")[number % 2]) for number, shape in enumerate(shapes)]
        with contextlib.ExitStack() as stack:
            servers, victims, early, late = [], [], [], []
            for shape, deadline in cases:
                options = ("--drain-timeout", "0.3", "--worker-deadline", deadline)
                server = stack.enter_context(shape.start(*options))
                early.append(stack.enter_context(connections(server.address, 4)))
                for sock in early[-1]:
                    echo(sock)
                servers.append(server)
            for server in servers:
                victims.append(workers_of(server.report())[0])
                support.stop_process(victims[-1]["pid"])
                late.append(stack.enter_context(connections(server.address, 8)))
                greet(late[-1])
                server.signal(signal.SIGTERM)
            for (shape, deadline), server, victim, first, second in zip(cases, servers, victims, early, late):
                with self.subTest(shape=shape.name, deadline=deadline):
                    self.assertTrue(server.has_ended(bound_s), "it goes on")
                    outcomes(second, 5 * faults.HANG_S)  # the kernel may close a dead process's io_uring a little later
                    for sock in first:
                        self.assertTrue(support.ended(sock))
                    report = server.finish(0).report
                    if not shape.kernel_dispatches:  # what nobody has accepted is in no book
                        self.assertEqual(report["books"]["accepted"], 12)
                    if deadline == "0":
                        self.assertEqual(report["stuck_workers"], 0)
                    elif victim["active"]:  # else it owes nothing, and may have had nothing
                        self.assertEqual(report["stuck_workers"], 1)


@needs_strace
class GivenUp(unittest.TestCase):
    """Fault 16, reuseport: a worker leaves and asks for no successor, while connections wait in its queue."""

    def test_nobody_waits_at_its_listener(self) -> None:
        for options in ("steer=hash", "steer=cpu", "steer=least-loaded", "migrate=on"):
            with self.subTest(options=options):
                self.leave("reuseport:" + options)

    def leave(self, ipc: str) -> None:
        pool = ("--strategy", "pool", "--workers", "2", "--ipc", ipc)
        with Program([SERVER, "--listen", "127.0.0.1:0", *pool]) as attempt:
            if not attempt.read_line():
                self.skipTest(attempt.wait()[2])
        with Server(*pool, *NO_DEADLINE, environment=lambda _: faults.UNDER_TRACE) as server:
            leaves = server.worker_pid(0)
            support.stop_process(leaves)
            with on_cpu(0), connections(server.address, 24) as socks:
                greet(socks)
                with faults.traced(leaves, server.folder, "--inject=accept4:error=EINVAL"):
                    os.kill(leaves, signal.SIGCONT)
                    echoed, closed = outcomes(socks, 5 * faults.HANG_S)
                    wait_until(lambda: faults.has_ended(leaves), "it leaves")
                if "migrate=on" in ipc:
                    self.assertEqual(closed, 0, "its queue moves to the other one")
                wait_until(lambda: server.report()["degraded"], "the report says so")
                self.assertEqual(server.report()["degraded"], "worker 0 asked not to be restarted")
                close_all(socks)
            # Nobody is steered to where nobody accepts, whatever the hash or the CPU says.
            for cpu in sorted(os.sched_getaffinity(0)):
                with on_cpu(cpu), connections(server.address, 24) as socks:
                    greet(socks)
                    self.assertEqual(len(outcomes(socks, 5 * faults.HANG_S)[0]), 24)
            finished = server.finish()
        self.assertEqual(finished.report["totals"]["restarts"], 0)


@contextlib.contextmanager
def on_cpu(cpu: int) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


if __name__ == "__main__":
    unittest.main()
