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
import signal
import sys
import time
import unittest
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import fault_support as faults  # noqa: E402
import process_support as support  # noqa: E402
from fault_support import HANG_S, greet, needs_strace, outcomes, traced_each  # noqa: E402
from process_support import (  # noqa: E402
    CLIENT,
    SERVER,
    Program,
    Server,
    Shape,
    close_all,
    completion_shapes,
    connections,
    echo,
    for_each,
    method_shapes,
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

    RECEIVE = "recvmsg,read,pidfd_getfd,setsockopt,socketpair,accept4"
    # On its way into the n-th call of a kind: of those by which a connection comes, of those that touch it, of all.
    MOMENTS = (
        *((RECEIVE, 1), ("recvfrom", 1), ("sendto", 1), ("recvfrom", 2), ("sendto", 2)),
        *((RECEIVE, 2), ("epoll_ctl,io_uring_enter,ioctl", 1), ("all", 2), ("all", 3), ("write,getsockname", 3)),
    )

    def moments(self, shape: Shape, retain: bool) -> tuple[tuple[str, int], ...]:
        """All. Of those who are dealt to and can be retained, half with --retain and half without, and the other way
        round for the next method: so every two of method, moment and --retain meet."""
        if shape.why_not_retained or not self.is_dealt(shape):
            return self.MOMENTS
        number = [other.name for other in pools()].index(shape.name)
        return self.MOMENTS[(number + retain) % 2 :: 2]

    @staticmethod
    def is_dealt(shape: Shape) -> bool:
        return shape.chosen_by == "acceptor" and "--loop" not in shape.options

    def fewest_dead(self, shape: Shape, moments: tuple[tuple[str, int], ...]) -> int:
        """Whom the acceptor deals out to, in turn, meets every moment but perhaps the last, a call that not every way
        has, and one more that may be met by a later connection than the last one. Where workers take, one may have
        taken nearly all before the others woke, and io_uring reads and writes without these calls."""
        return len(moments) - 1 - (self.MOMENTS[-1] in moments) if self.is_dealt(shape) else 2

    def sweep(self, shape: Shape, *options: str) -> None:
        moments = self.moments(shape, "--retain" in options)
        workers, count = len(moments), 3 * len(moments)
        with shape.start("--worker-deadline", "0", *options, workers=workers) as server:
            kills = [
                (row["pid"], ("-e", f"trace={calls},recvfrom,sendto", f"--inject={calls}:signal=KILL:when={moment}"))
                for row, (calls, moment) in zip(workers_of(server.report()), moments)
            ]
            with connections(server.address, 0) as socks, contextlib.ExitStack() as stack:
                with traced_each(kills, server.folder) as tracers:
                    for _ in range(count):
                        sock = stack.enter_context(support.connect(server.address))
                        greet([sock])
                        socks.append(sock)
                    # Every call of ten processes is stopped at, and one that dies may be replaced only after others.
                    echoed, closed = outcomes(socks, 5 * HANG_S)
                dead = [tracer for tracer in tracers if faults.has_ended(tracer.pid)]
                # Those that a dead worker had echoed have ended since, unless the acceptor has kept them.
                survivors = sum(still_echoes(sock) for sock in echoed)
                closed = count - survivors
                faults.wait_for_new_workers(server, {slot: t.pid for slot, t in enumerate(tracers) if t in dead})
                close_all(socks)
            report = server.finish().report
        alive = [moment for moment, tracer in zip(moments, tracers) if tracer not in dead]
        self.assertGreaterEqual(len(dead), self.fewest_dead(shape, moments), f"these were never met: {alive}")
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
        rounds = scaled(4, 3)
        with shape.start() as server:
            before = support.open_files(server.pid)
            with Program(
                [CLIENT, "--target", server.target, "--workload", "crr", "--json", "-", "--announce-phases"]
                # Enough for some to be on their way at every kill; at full speed it would starve the restarts.
                + ["--connections", "8", "--rate", "2000", "--duration", "600", "--timeout", str(HANG_S)]
            ) as client:
                wait_until(lambda: "phase crr" in client.err_text(), "the load begins")
                wait_until(lambda: support.totals_of(server)["echoes"] > 16, "it flows")
                for _ in range(rounds):
                    self.assertFalse(client.has_ended(moments.uniform(0, 0.05)), client.err_text())
                    slot = moments.randrange(2)
                    pid = server.worker_pid(slot)
                    if pid:
                        with contextlib.suppress(ProcessLookupError):  # it has just been killed
                            os.kill(pid, signal.SIGKILL)
                wait_until(lambda: not server.report()["degraded"], "all are replaced")
                client.signal(signal.SIGINT)
                _, out, err = client.wait()
            wait_until(lambda: server.report()["books"]["active"] == 0, "all have ended")
            faults.wait_for_open_files(server.pid, before, f"what the acceptor has open; seed {seed}")
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
            support.stop_process(victim["pid"])
            with connections(server.address, 8) as late:
                greet(late)
                echoed, closed = outcomes(late)
                self.assertEqual((len(echoed), closed), (8, 0))
                if victim["active"]:  # else it owes nothing, and may have had nothing
                    self.assertEqual(sum(still_echoes(sock) for sock in early), 4 - victim["active"])
                    faults.wait_for_new_workers(server, {0: victim["pid"]})
                close_all(late)
            close_all(early)
            if faults.row_of(server, 0)["pid"] == victim["pid"] and not faults.has_ended(victim["pid"]):
                with contextlib.suppress(ProcessLookupError):  # it has been killed by now
                    os.kill(victim["pid"], signal.SIGCONT)
            finished = server.finish()
        report = finished.report
        self.assertEqual(report["books"]["lost"], victim["active"])
        self.assertEqual(report["stuck_workers"], report["worker_deaths"])
        if victim["active"]:
            self.assertEqual(report["stuck_workers"], 1)
            self.assertRegex(finished.err, r"worker 0 \(process \d+, state T\) made no progress for \d+ ms: killed")

    def test_nobody_is_killed_who_is_not_stuck(self) -> None:
        # The supervisor's doing, whatever the method: one that dispatches and one that does not, at the same time.
        shapes = [shape for shape in method_shapes() if shape.method in ("scm-seqpacket", "reuseport")]
        with contextlib.ExitStack() as stack:
            servers = []
            for shape in shapes:
                # A second is what a worker that is only late for its turn, on a busy machine, does not need.
                server = stack.enter_context(shape.start("--worker-deadline", "1"))
                servers.append((server, stack.enter_context(connections(server.address, 8))))

            def all_echo() -> None:
                for _, socks in servers:
                    for sock in socks:
                        echo(sock)

            def none_ends() -> None:
                """For longer than the deadline."""
                self.assertFalse(servers[0][0].has_ended(1.8))
                self.assertFalse(any(server.has_ended() for server, _ in servers))

            all_echo()
            # All stand still, and longer than the deadline; then one, for less.
            for server, _ in servers:
                server.signal_group(signal.SIGSTOP)
            none_ends()
            for server, _ in servers:
                server.signal_group(signal.SIGCONT)
            all_echo()
            for server, _ in servers:
                pid = server.worker_pid(0)
                support.stop_process(pid)
                os.kill(pid, signal.SIGCONT)
            all_echo()
            none_ends()  # idle ones owe nothing but a turn
            for shape, (server, socks) in zip(shapes, servers):
                with self.subTest(shape=shape.name):
                    close_all(socks)
                    report = server.finish().report
                    self.assertEqual((report["stuck_workers"], report["worker_deaths"]), (0, 0))
                    self.assertEqual(report["books"]["served"], 8)

    def test_one_that_works_longer_than_the_deadline_is_not_stuck(self) -> None:
        options = ("--strategy", "pool", "--workers", "1", "--service-time", "fixed:1000000")
        options += ("--worker-deadline", "0.4")  # it has 8 s for a second of CPU, and 0.8 if it counted as asleep
        with Server(*options) as server, connections(server.address, 1) as socks:
            echo(socks[0])
            close_all(socks)
            report = server.finish().report
        self.assertEqual((report["stuck_workers"], report["worker_deaths"]), (0, 0))

    def test_the_default_deadline_is_below_a_second(self) -> None:
        """The promise is an echo or an end within 1 s: 0.4 s without progress, in looks 0.2 s apart, make at most 0.8.
        The machine may be busy for one of three tries, not for all."""

        def took() -> float:
            with Server("--strategy", "pool", "--workers", "1") as server:
                os.kill(server.worker_pid(0), signal.SIGSTOP)
                with connections(server.address, 4) as socks:
                    began = time.monotonic()
                    greet(socks)
                    echoed, _ = outcomes(socks, support.BOUND_S)
                    seconds = time.monotonic() - began
                    self.assertEqual(len(echoed), 4)
                self.assertEqual(server.finish().report["stuck_workers"], 1)
            return seconds

        self.assertTrue(any(took() < scaled(1, 5) for _ in range(3)))


def accepting_shapes() -> list[Shape]:
    """Every way to accept: each strategy, a pool's acceptor, and workers that accept for themselves."""
    methods = [shape for shape in pools() if not shape.unsupported]
    acceptor = [shape for shape in methods if not shape.kernel_dispatches]
    return strategy_shapes() + acceptor[:1] + [shape for shape in methods if shape.kernel_dispatches]


@needs_strace
class AcceptErrors(unittest.TestCase):
    """Fault 8. (An accept by a completion gives way to accept4 at its first error: completion_intake.hpp.)"""

    NEXT = "ECONNABORTED EHOSTDOWN EHOSTUNREACH ENETDOWN ENETUNREACH ENONET ENOPROTOOPT EOPNOTSUPP EPERM EPROTO"
    NEXT += " ETIMEDOUT"
    PAUSE = "ENOBUFS ENOMEM ENOSR"
    SHED = "EMFILE ENFILE"

    @staticmethod
    def start(shape: Shape, **more: Any) -> Server:
        """A traced worker looks as if it were stopped, and its turns are long: without a deadline for them."""
        return shape.start(*(("--worker-deadline", "0") if shape.pool else ()), **more)

    @staticmethod
    def told(server: Server, shape: Shape, inject: str) -> contextlib.AbstractContextManager[list[faults.Tracer]]:
        """Who accepts is told so instead of getting a connection."""
        pids = server.children() if shape.kernel_dispatches else [server.pid]
        options = ("-e", "trace=accept4", f"--inject=accept4:{inject}")
        return traced_each([(pid, options) for pid in pids], server.folder)

    def goes_on(self, server: Server, shape: Shape, name: str) -> None:
        before = server.report()
        with self.told(server, shape, f"error={name}:when=1") as tracers, connections(server.address, 6) as socks:
            greet(socks)
            echoed, closed = outcomes(socks)
            self.assertEqual(len(echoed), 6 - closed)
        times = sum(tracer.text().count(f"= -1 {name} ") for tracer in tracers)
        self.assertGreaterEqual(times, 1, "nobody was told so")

        def errors() -> int:
            return support.totals_of(server)["errors"].get(name, 0) - before["totals"]["errors"].get(name, 0)

        wait_until(lambda: errors() >= times, "what they were told is counted")
        self.assertEqual(errors(), times)
        after = server.report()
        # At its limit it closes one for it, or leaves it to another one.
        self.assertEqual(after["books"]["shed"] - before["books"]["shed"], closed)
        self.assertLessEqual(closed, times if name in self.SHED else 0)

    @for_each(accepting_shapes)
    def test_what_passes_is_counted_and_passes(self, shape: Shape) -> None:
        for name in ("ECONNABORTED", "ENOMEM", "EMFILE"):
            with self.subTest(error=name), self.start(shape) as server:  # a new one: later it may accept by completions
                self.goes_on(server, shape, name)
                with connections(server.address, 4) as socks:
                    greet(socks)
                    self.assertEqual(len(outcomes(socks)[0]), 4)
                server.finish()

    def test_each_errno_has_its_place(self) -> None:
        shape = next(shape for shape in strategy_shapes() if shape.strategy == "epoll")
        with self.start(shape) as server:
            for name in f"{self.NEXT} {self.PAUSE} {self.SHED}".split():
                with self.subTest(error=name):
                    self.goes_on(server, shape, name)
            server.finish()

    @for_each(accepting_shapes)
    def test_a_listener_that_fails_ends_it_with_a_message(self, shape: Shape) -> None:
        for name in ("EBADF", "EINVAL"):
            with (
                self.subTest(error=name),
                self.start(shape, environment=lambda _: faults.UNDER_TRACE) as server,
                # What accepts by completions once it has accepted is not told so by a call.
                connections(server.address, 0 if "uring" in shape.name else 4) as held,
            ):
                for sock in held:
                    echo(sock)
                with self.told(server, shape, f"error={name}"), contextlib.ExitStack() as stack:
                    while not server.has_ended():  # until each of those who accept has been told
                        with contextlib.suppress(ConnectionError):
                            stack.enter_context(support.connect(server.address))
                        self.assertLess(len(server.err_text()), 10_000)
                # Who does not accept has not failed, and drains as when the acceptor is killed.
                survive = shape.strategy == "fork" or (shape.pool and not shape.kernel_dispatches)
                self.assertEqual([still_echoes(sock) for sock in held], [survive] * len(held))
                close_all(held)
                code, _, err = server.wait()
                self.assertEqual(code, 1, err)
                lines = err.splitlines()
                self.assertRegex(lines[-1], "^c10k-server: ")
                self.assertRegex(err, f"accept4 on listener [0-9]+: {os.strerror(getattr(errno, name))}")
                if not shape.kernel_dispatches:
                    self.assertEqual(len(lines), 1, err)
                books = support.json.loads(server.report_path.read_text())["books"]
                self.assertTrue(books["balanced"], books)

    def test_whom_no_process_can_be_made_for_sees_an_end(self) -> None:
        for hurried in (False, True):
            options = ("--strategy", "fork", "--drain-timeout", "600" if hurried else "0.3")
            with (
                self.subTest(hurried=hurried),
                Server(*options, environment=lambda _: faults.UNDER_TRACE) as server,
                traced_each([(server.pid, ("--inject=clone,clone3,fork:error=EAGAIN",))], server.folder),
                connections(server.address, 4) as socks,
            ):
                wait_until(lambda server=server: server.report()["books"]["in_hand_off"] == 4, "they are accepted")
                server.signal(signal.SIGTERM)
                wait_until(lambda server=server: support.refuses(server.address), "it drains")
                if hurried:
                    server.signal(signal.SIGTERM)
                books = server.finish(0).report["books"]
                self.assertEqual(books["lost"], books["accepted"])
                self.assertEqual(outcomes(socks), ([], 4))

    @for_each(lambda: [shape for shape in pools() if shape.kernel_dispatches])
    def test_a_worker_that_asks_not_to_be_restarted_is_not(self, shape: Shape) -> None:
        with self.start(shape, environment=lambda _: faults.UNDER_TRACE) as server:
            pids = [row["pid"] for row in workers_of(server.report())]
            with traced_each([(pids[0], ("--inject=accept4:error=EINVAL",))], server.folder):
                with contextlib.ExitStack() as stack:
                    while not faults.has_ended(pids[0]):
                        with contextlib.suppress(ConnectionError):
                            stack.enter_context(support.connect(server.address))
            wait_until(lambda: server.report()["degraded"], "the report says so")
            self.assertEqual(server.report()["degraded"], "worker 0 asked not to be restarted")
            self.assertEqual(server.worker_pid(0), 0)
            with connections(server.address, 12) as socks:  # the other one has them all
                greet(socks)
                self.assertEqual(len(outcomes(socks)[0]), 12)
            finished = server.finish()
        self.assertEqual((finished.report["worker_deaths"], finished.report["totals"]["restarts"]), (1, 0))
        self.assertEqual(finished.report["degraded"], "worker 0 asked not to be restarted")
        self.assertRegex(finished.err, r"worker 0 \(process \d+\) ended: exit code 2")


def with_few(user: int) -> tuple[str, ...]:
    """Another user, with few descriptors: what is in flight is bounded by its RLIMIT_NOFILE (unix(7))."""
    return ("prlimit", "--nofile=100:100", "--", *support.as_user(user))


# Has 120 descriptors in flight until it ends.
IN_FLIGHT = """
import array, resource, signal, socket
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
a, b = socket.socketpair()
for _ in range(2):
    a.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * 60))])
print("full", flush=True)
signal.pause()
"""


@unittest.skipUnless(os.geteuid() == 0, "needs root, to become another user")
class TooManyReferences(unittest.TestCase):
    """Fault 5: the user's limit of descriptors in flight is met by somebody else."""

    def test_clients_are_told_and_nobody_spins(self) -> None:
        user = 100_000 + os.getpid() % 100_000  # nobody else's
        met = set()

        @for_each(sink_shapes)
        def each(_: unittest.TestCase, shape: Shape) -> None:
            try:
                server = shape.start("--worker-deadline", "0", wrapper=with_few(user))
            except AssertionError as error:
                self.assertIn("not permitted", str(error))
                return
            with server:
                with Program([*with_few(user), "/usr/bin/python3", "-IS", "-c", IN_FLIGHT]) as other:
                    self.assertEqual(other.read_line(), "full\n", other.err_text())
                    with connections(server.address, 10) as socks:
                        greet(socks)
                        echoed, closed = outcomes(socks)
                        ticks = sum(map(support.cpu_ticks, server.group()))
                        self.assertFalse(server.has_ended(0.2))
                        spent = sum(map(support.cpu_ticks, server.group())) - ticks
                        self.assertLess(spent, scaled(5, 10), "ticks in 0.2 s")
                    totals = server.report()["totals"]
                    if "ETOOMANYREFS" in totals["errors"]:
                        met.add(shape.method)
                        self.assertEqual((closed, totals["shed"]), (10, 10))
                    else:
                        self.assertEqual((len(echoed), totals["shed"]), (10, 0))

                def well_again() -> bool:  # the kernel drops what is in flight a little later
                    with connections(server.address, 4) as socks:
                        greet(socks)
                        return len(outcomes(socks)[0]) == 4

                wait_until(well_again, "it serves again")
                self.assertEqual(server.finish().report["worker_deaths"], 0)

        each(self)
        if not os.environ.get("C10K_ONLY"):
            self.assertGreaterEqual(met, {"scm-stream", "scm-seqpacket", "scm-dgram", "scm-shared"})


@needs_strace
class KilledAtStart(unittest.TestCase):
    """Fault 14: nothing has a name that could be left behind."""

    CREATES = "openat,creat,mkdir,mkdirat,mknod,mknodat,bind,symlink,link,linkat,clone,fork,vfork,clone3"

    @for_each(method_shapes)
    def test_nothing_is_left(self, shape: Shape) -> None:
        with Program(["true"]) as place, Program(["true"]) as temporary:  # their folders
            trace = place.folder / "trace"
            before = set(os.listdir(temporary.folder))
            command = ["strace", "-D", "-f", "-o", str(trace), "-e", f"trace={self.CREATES}"]
            command += ["--inject=clone,fork,vfork:signal=KILL:when=2", SERVER, "--listen", "127.0.0.1:0"]
            folder = {"TMPDIR": str(temporary.folder)}
            with Program([*command, *shape.options, "--workers", "4"], environment=lambda _: folder) as server:
                code, out, err = server.wait()  # its workers too
            self.assertEqual((code, out), (-signal.SIGKILL, ""), err)
            self.assertEqual(set(os.listdir(temporary.folder)), before)
            # What Boost's queue and Python's listener cannot do without has no name any more (pidfd_mq.cpp).
            created = re.findall(r'(?:open|mkdir|mknod|link|creat)[^"]*"([^"]+)".*(?:O_CREAT|0700)', trace.read_text())
            self.assertEqual([path for path in created if os.path.exists(path)], [])
            named = {"pidfd-mq": "/dev/shm/", "queue-python2": "pymp", "queue-python3": "pymp"}.get(shape.method)
            self.assertEqual(bool(created), named is not None, created)


if __name__ == "__main__":
    unittest.main()
