"""Tests of the methods whose workers accept for themselves: who gets a connection, what a death moves, the locks.

How to run one class:

  cd tests; C10K_BIN_DIR=../build/release /usr/bin/python3 -m unittest -v test_listeners.Steering"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import signal
import socket
import sys
import unittest
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import process_support as support  # noqa: E402
from fault_support import echo_those_that_wait_at_sigterm  # noqa: E402
from process_support import (  # noqa: E402
    BOUND_S,
    SERVER,
    Server,
    close_all,
    connections,
    echo,
    listing,
    run_client,
    run_program,
    wait_until,
    workers_of,
)

MIGRATE_REQ = Path("/proc/sys/net/ipv4/tcp_migrate_req")


def start(ipc: str, *options: str, workers: int = 2) -> Server:
    """A pool with a method and its options; skips the test where they are unsupported."""
    command = [SERVER, "--listen", "127.0.0.1:0", "--strategy", "pool", "--ipc", ipc, "--workers", "1"]
    with support.Program(command) as attempt:
        if not attempt.read_line():
            code, _, err = attempt.wait()
            assert code == 1, err
            raise unittest.SkipTest(err.strip())
    return Server("--strategy", "pool", "--ipc", ipc, "--workers", str(workers), *options)


def of_each(server: Server, key: str) -> list[int]:
    return [row[key] for row in workers_of(server.report())]


def kill(server: Server, slot: int) -> int:
    pid = server.worker_pid(slot)
    os.kill(pid, signal.SIGKILL)
    return pid


def wait_for_successor(server: Server, slot: int, old: int) -> None:
    def serves() -> bool:
        return server.worker_pid(slot) not in (0, old) and not server.report()["degraded"]

    wait_until(serves, f"worker {slot} is replaced")


def wait_for_active(server: Server, expected: list[int]) -> None:
    wait_until(lambda: of_each(server, "active") == expected, f"{expected} connections are open")


@contextlib.contextmanager
def pinned(cpu: int) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def served(server: Server, count: int) -> Iterator[list[socket.socket]]:
    """Connections, each echoed before the next one comes: no load is read while it is being corrected."""
    with contextlib.ExitStack() as stack:
        socks: list[socket.socket] = []
        for _ in range(count):
            socks.append(stack.enter_context(support.connect(server.address)))
            echo(socks[-1])
        yield socks


NO_DEADLINE = ("--worker-deadline", "0")
"""For a test that stops workers: none of them is replaced for it."""


class Steering(unittest.TestCase):
    """reuseport:steer=..."""

    def test_least_loaded_steers_away_from_who_has_many(self) -> None:
        for migrate in ("off", "on"):
            ipc = f"reuseport:steer=least-loaded,migrate={migrate}"
            with self.subTest(ipc=ipc), start(ipc) as server, served(server, 40) as socks:
                active = of_each(server, "active")
                self.assertEqual(sum(active), 40)
                self.assertLessEqual(abs(active[0] - active[1]), 2)  # a load may be read before it is corrected
                # Now one worker holds its half, and the other's successor nothing.
                half = active[0]
                wait_for_successor(server, 1, kill(server, 1))
                self.assertEqual(of_each(server, "active"), [half, 0])
                with served(server, half):
                    active = of_each(server, "active")
                    self.assertEqual(sum(active), 2 * half)
                    self.assertLessEqual(abs(active[0] - active[1]), 2)  # a load may be read before it is corrected
                wait_for_active(server, [half, 0])
                with served(server, 70 - 2 * half):  # and after what it had has ended
                    active = of_each(server, "active")
                    self.assertEqual(sum(active), 70 - half)
                    self.assertLessEqual(abs(active[0] - active[1]), 2)
                close_all(socks)
                self.assertEqual(server.finish().report["books"]["lost"], 40 - half)

    def test_least_loaded_counts_what_nobody_has_accepted_yet(self) -> None:
        # All come between two updates of the workers' own counts.
        for drain in ("all", "one"):
            with (
                self.subTest(drain=drain),
                start("reuseport:steer=least-loaded", "--accept-drain", drain, *NO_DEADLINE, workers=3) as server,
            ):
                workers = [row["pid"] for row in workers_of(server.report())]
                for pid in workers:
                    support.stop_process(pid)
                with connections(server.address, 60) as socks:
                    for pid in workers:
                        os.kill(pid, signal.SIGCONT)
                    for sock in socks:
                        echo(sock)
                    self.assertEqual(of_each(server, "active"), [20, 20, 20])
                    with served(server, 30):
                        self.assertEqual(of_each(server, "active"), [30, 30, 30])
                server.finish()

    def test_least_loaded_forgets_what_never_came(self) -> None:
        # SYNs that were steered to a worker and dropped there: it will never see them come.
        with (
            start("reuseport:steer=least-loaded", "--backlog", "1", *NO_DEADLINE) as server,
            contextlib.ExitStack() as stack,
        ):
            socks = stack.enter_context(served(server, 40))  # one by one: the queue holds no more
            old = kill(server, 1)
            wait_for_successor(server, 1, old)
            half = of_each(server, "active")[0]
            self.assertAlmostEqual(half, 20, delta=1)
            before = server.report()["listener"]["listen_overflows"]
            pid = server.worker_pid(1)
            support.stop_process(pid)
            for _ in range(20):
                with socket.socket() as dropped:
                    dropped.setblocking(False)
                    dropped.connect_ex(server.address)
            self.assertGreaterEqual(server.report()["listener"]["listen_overflows"] - before, 15)
            os.kill(pid, signal.SIGCONT)
            wait_until(lambda: of_each(server, "accepted")[1] > 40 - half, "the queue is accepted")
            wait_for_active(server, [half, 0])
            socks += stack.enter_context(served(server, half))
            active = of_each(server, "active")
            self.assertEqual(sum(active), 2 * half)
            self.assertLessEqual(abs(active[0] - active[1]), 2)  # a load may be read before it is corrected
            close_all(socks)
            server.finish()

    def test_least_loaded_spreads_ties(self) -> None:
        with start("reuseport:steer=least-loaded", workers=3) as server:
            for _ in range(60):  # one after the other: all workers have nothing each time
                with connections(server.address, 1) as socks:
                    echo(socks[0])
                wait_for_active(server, [0, 0, 0])
            report = server.finish().report
        # By the same chance for each, below 3 of 60 has a probability of 1e-7.
        self.assertGreaterEqual(min(row["accepted"] for row in workers_of(report)), 3)

    def test_least_loaded_passes_over_the_dead(self) -> None:
        with contextlib.ExitStack() as stack:  # both at once, as each takes what the back-offs take
            ipcs = [f"reuseport:steer=least-loaded,migrate={migrate}" for migrate in ("off", "on")]
            servers = [stack.enter_context(start(ipc)) for ipc in ipcs]
            for _ in range(8):
                for server, pid in [(server, kill(server, 0)) for server in servers]:
                    wait_for_successor(server, 0, pid)
            dead = [(server, kill(server, 0)) for server in servers]  # the next one waits for 2 s
            with contextlib.ExitStack() as held:
                for server, _ in dead:
                    wait_until(lambda server=server: server.report()["degraded"], "the report says so")
                    held.enter_context(served(server, 20))
                    self.assertTrue(server.report()["degraded"], "the test was too slow to mean anything")
                for server, pid in dead:
                    wait_for_successor(server, 0, pid)
                    with served(server, 20):
                        active = of_each(server, "active")
                        self.assertEqual(sum(active), 40)
                        self.assertLessEqual(abs(active[0] - active[1]), 2)  # a load may be read before it is corrected
            for server in servers:
                server.finish()

    def test_cpu_steers_by_the_cpu(self) -> None:
        # On loopback a SYN comes in on the CPU of who sends it.
        for migrate in ("off", "on"):
            ipc = f"reuseport:steer=cpu,migrate={migrate}"
            with self.subTest(ipc=ipc), start(ipc) as server:
                expected = [0, 0]
                for replaced in (False, True):
                    if replaced:
                        wait_for_successor(server, 0, kill(server, 0))
                    for cpu in sorted(os.sched_getaffinity(0)):
                        with pinned(cpu), connections(server.address, 5) as socks:
                            for sock in socks:
                                echo(sock)
                        expected[cpu % 2] += 5
                self.assertEqual(of_each(server, "accepted"), expected)
                server.finish()

    def test_most_workers(self) -> None:
        with start("reuseport:steer=least-loaded", workers=64) as server:
            with connections(server.address, 64) as socks:
                for sock in socks:
                    echo(sock)
                self.assertEqual(of_each(server, "active"), [1] * 64)
            server.finish()
        command = [SERVER, "--listen", "127.0.0.1:0", "--strategy", "pool", "--workers", "65"]
        code, out, err = run_program(*command, "--ipc", "reuseport:steer=least-loaded")
        self.assertEqual((code, out), (2, ""), err)
        self.assertRegex(err, r"\Ac10k-server: [^\n]*at most 64[^\n]*\n\Z")

    @unittest.skipUnless(os.geteuid() == 0 and shutil.which("setpriv"), "needs root and setpriv")
    def test_without_privilege_only_what_needs_it_is_unsupported(self) -> None:
        drop = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
        if Path("/proc/sys/kernel/unprivileged_bpf_disabled").read_text().strip() == "0":
            self.skipTest("kernel.unprivileged_bpf_disabled is 0")
        for options in ("steer=least-loaded", "migrate=on", "steer=cpu,migrate=on"):
            with self.subTest(options=options):
                code, out, err = run_program(
                    *drop, SERVER, "--listen", "127.0.0.1:0", "--strategy", "pool", "--ipc", f"reuseport:{options}"
                )
                self.assertEqual((code, out), (1, ""), err)
                self.assertRegex(err, r"unsupported, because bpf [^\n]*not permitted; [^\n]*CAP_BPF[^\n]*\n\Z")
        for options in ("steer=hash", "steer=cpu"):
            with (
                self.subTest(options=options),
                Server("--strategy", "pool", "--ipc", f"reuseport:{options}", wrapper=drop, report="-") as server,
            ):
                with connections(server.address, 4) as socks:
                    for sock in socks:
                        echo(sock)
                server.signal(signal.SIGTERM)
                self.assertEqual(server.wait()[0], 0)


class DeathWithAFullQueue(unittest.TestCase):
    """Fault 11: reuseport's worker dies while connections wait in its queue."""

    def lose_nobody(self, ipc: str) -> list[int]:
        """What each slot has accepted of 60 connections, half of them (by the hash) made to a worker that is
        then killed, before anybody accepted one."""
        count = 60
        with start(ipc, *NO_DEADLINE) as server:
            victim, other = (server.worker_pid(slot) for slot in (0, 1))
            for pid in (victim, other):
                support.stop_process(pid)
            with pinned(0), connections(server.address, count) as socks:
                for sock in socks:
                    sock.sendall(b"hello")
                os.kill(victim, signal.SIGKILL)
                wait_for_successor(server, 0, victim)
                os.kill(other, signal.SIGCONT)
                for sock in socks:
                    self.assertEqual(support.receive_exactly(sock, 5), b"hello")
            report = server.finish().report
        self.assertEqual(report["books"]["served"], count)
        self.assertEqual(report["worker_deaths"], 1)
        return [row["accepted"] for row in workers_of(report)]

    def test_migrate_on_moves_them_to_the_others(self) -> None:
        sysctl = MIGRATE_REQ.read_text()
        for steer in ("hash", "cpu", "least-loaded"):
            with self.subTest(steer=steer):
                # The other worker has all: also those that the dead one would have had.
                self.assertEqual(self.lose_nobody(f"reuseport:steer={steer},migrate=on"), [0, 60])
        self.assertEqual(MIGRATE_REQ.read_text(), sysctl)

    def test_migrate_off_keeps_them_for_the_successor(self) -> None:
        for steer in ("hash", "cpu", "least-loaded"):
            with self.subTest(steer=steer):
                first, second = self.lose_nobody(f"reuseport:steer={steer},migrate=off")
                self.assertEqual(first + second, 60)
                self.assertGreater(first, 0)
                if steer != "hash":
                    self.assertEqual(first, 60 if steer == "cpu" else 30)

    def test_the_queues_outlive_all_workers(self) -> None:
        for ipc in ("reuseport", *(f"reuseport:migrate=on,steer={s}" for s in ("hash", "cpu", "least-loaded"))):
            with self.subTest(ipc=ipc), start(ipc, *NO_DEADLINE) as server:
                for _ in range(2):
                    victims = [server.worker_pid(slot) for slot in (0, 1)]
                    for pid in victims:
                        support.stop_process(pid)
                    with connections(server.address, 40) as socks:
                        for sock in socks:
                            sock.sendall(b"hello")
                        # One after the other: a connection that arrives, or migrates, at the instant at which
                        # the listener that it was given closes is reset by the kernel.
                        for pid in victims:
                            os.kill(pid, signal.SIGKILL)
                            wait_until(lambda pid=pid: not Path(f"/proc/{pid}").exists(), "it has ended")
                        with connections(server.address, 10) as later:  # perhaps while there is no worker
                            for sock in later:
                                echo(sock)
                        for sock in socks:
                            self.assertEqual(support.receive_exactly(sock, 5), b"hello")
                    for slot, pid in enumerate(victims):
                        wait_for_successor(server, slot, pid)
                report = server.finish().report
                self.assertEqual(report["books"]["served"], 100)
                self.assertEqual(report["worker_deaths"], 4)

    def test_migrate_on_drains_what_waits(self) -> None:
        with start("reuseport:migrate=on", "--drain-timeout", "600") as server:
            echo_those_that_wait_at_sigterm(server, 40)
            self.assertEqual(server.finish(0).report["books"]["served"], 40)


class FullWorker(unittest.TestCase):
    """inherited-listener: a worker at its descriptor limit leaves what waits to those that have room."""

    def test_the_others_serve_and_nothing_is_shed(self) -> None:
        for wait in ("exclusive", "plain", "fcntl-lock", "mutex"):
            with (
                self.subTest(wait=wait),
                start(f"inherited-listener:wait={wait}") as server,
                contextlib.ExitStack() as socks,
            ):

                def serve_more(count: int) -> list[int]:
                    # One after the other: no later arrival wakes anybody for one that is left lying.
                    before = of_each(server, "accepted")
                    for _ in range(count):
                        echo(socks.enter_context(support.connect(server.address)))
                    return [now - then for now, then in zip(of_each(server, "accepted"), before, strict=True)]

                total = 0
                for _ in range(10):
                    served = serve_more(10)
                    slot = served.index(max(served))  # whom the kernel mostly wakes, unless it was busy just now
                    pid = server.worker_pid(slot)
                    numbers = [int(name) for name in os.listdir(f"/proc/{pid}/fd")]
                    limit = max(numbers) + 1 + 5
                    _, most = before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
                    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, most))
                    served = serve_more(40)
                    self.assertLessEqual(served[slot], limit - len(numbers))
                    total += 50
                    # Where all are woken, the other may have been faster each time.
                    if "EMFILE" in server.report()["totals"]["errors"] or wait != "exclusive":
                        break
                    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
                ticks = sum(map(support.cpu_ticks, server.group()))
                self.assertFalse(server.has_ended(0.3))
                self.assertLess(sum(map(support.cpu_ticks, server.group())) - ticks, support.scaled(6, 12))
                socks.close()
                report = server.finish().report
                self.assertEqual((report["books"]["served"], report["books"]["shed"]), (total, 0))
                errors = set(report["totals"]["errors"])
                self.assertIn(errors, [{"EMFILE"}] if wait == "exclusive" else [{"EMFILE"}, set()])


class AcceptLocks(unittest.TestCase):
    """inherited-listener:wait=fcntl-lock and wait=mutex. (What a death within accept does: accept_lock_test.)"""

    LOOPS = [row["name"] for row in listing()["loops"] if row["available"]]

    def test_every_loop_serves_and_an_idle_server_sleeps(self) -> None:
        def switches(server: Server) -> dict[int, int]:
            find = re.compile(r"^voluntary_ctxt_switches:\s+(\d+)$", re.M)
            found = {pid: find.search(Path(f"/proc/{pid}/status").read_text()) for pid in server.group()}
            return {pid: int(match[1]) for pid, match in found.items() if match}

        for wait in ("fcntl-lock", "mutex"):
            for loop in self.LOOPS:
                with (
                    self.subTest(wait=wait, loop=loop),
                    start(
                        f"inherited-listener:wait={wait}",
                        *("--loop", loop, *NO_DEADLINE),  # with one, workers are looked after by a timer
                        workers=3,
                    ) as server,
                ):
                    code, result, err = run_client(
                        server.target, "--connections", "32", "--requests", "200", "--duration", str(BOUND_S)
                    )
                    self.assertEqual(code, 0, err)
                    self.assertEqual(result["outcomes"]["echoed"], 200)

                    def sleeps() -> bool:  # a worker may still be in its pause at first
                        before = switches(server)
                        self.assertFalse(server.has_ended(0.3))
                        return switches(server) == before

                    wait_until(sleeps, "an idle server does not wake up", 5)
                    with connections(server.address, 12) as socks:
                        for sock in socks:
                            echo(sock)
                        wait_until(sleeps, "idle connections wake nobody", 5)
                    self.assertEqual(server.finish().report["books"]["served"], 212)

    def test_workers_killed_under_load(self) -> None:
        for wait in ("fcntl-lock", "mutex"):
            with self.subTest(wait=wait), start(f"inherited-listener:wait={wait}") as server:
                for round_number in range(8):
                    slot = round_number % 2
                    with connections(server.address, 10) as socks:
                        pid = kill(server, slot)  # perhaps with the lock
                        for sock in socks:
                            support.still_echoes(sock)  # or it ends visibly; none may hang
                    with connections(server.address, 5) as socks:
                        for sock in socks:
                            echo(sock)
                    if round_number % 4 == 3:  # not at each: the back-off would take over
                        wait_for_successor(server, slot, pid)
                    else:
                        wait_until(lambda: server.worker_pid(slot) not in (0, pid), "it is replaced")
                server.finish()


if __name__ == "__main__":
    unittest.main()
