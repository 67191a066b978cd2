"""Tests of what a process may still do once it reads clients' bytes (--user), and of what a client may keep waiting.

How to run one class: cd tests; C10K_BIN_DIR=../build/release /usr/bin/python3 -m unittest -v test_security.Confined"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import process_support as support  # noqa: E402
from process_support import (  # noqa: E402
    NOBODY,
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
    strategy_shapes,
    wait_until,
)
from upgrade_support import end, place, sighup, successor_of  # noqa: E402


def trusted(shape: Shape) -> str:
    """Why its workers cannot be confined; empty when they can."""
    return next((row["needs_trust"] for row in listing()["methods"] if row["name"] == shape.method), "")


def confinable_shapes() -> list[Shape]:
    return [shape for shape in strategy_shapes() + loop_shapes() if not trusted(shape)]


def trusting_shapes() -> list[Shape]:
    return [shape for shape in method_shapes() if trusted(shape)]


def rights_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    rows = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    wanted = ("Uid", "Gid", "Groups", "CapPrm", "CapEff", "NoNewPrivs", "Seccomp")
    return {key: " ".join(rows[key].split()) for key in wanted}


def no_leak_check(_: str) -> dict[str, str]:
    """The leak sanitizer of a process that ends by exit() needs ptrace and clone, which it may not call."""
    return {"ASAN_OPTIONS": "detect_leaks=0"}


@unittest.skipUnless(os.getuid() == 0, "needs root to become another user")
class Confined(unittest.TestCase):
    def check_rights(self, pid: int) -> None:
        rights = rights_of(pid)
        same = " ".join([str(NOBODY)] * 4)
        self.assertEqual((rights["Uid"], rights["Gid"], rights["Groups"]), (same, same, ""))
        self.assertEqual((int(rights["CapPrm"], 16), int(rights["CapEff"], 16)), (0, 0))
        self.assertEqual((rights["NoNewPrivs"], rights["Seccomp"]), ("1", "2"))

    @for_each(confinable_shapes)
    def test_serves_is_replaced_and_drains(self, shape: Shape) -> None:
        with shape.start("--user", "nobody", environment=no_leak_check) as server:
            with connections(server.address, 4) as socks:
                for sock in socks:
                    echo(sock)
                    echo(sock, bytes(200_000))
                servers = server.children() or [server.pid]
                for pid in servers:
                    self.check_rights(pid)
            if shape.pool:
                victim = server.worker_pid(0)
                os.kill(victim, signal.SIGKILL)
                wait_until(lambda: server.worker_pid(0) not in (0, victim), "a successor")
                pid = server.worker_pid(0)
                # It is named from its fork on; the filter is the last that it puts on before it is ready.
                wait_until(lambda: rights_of(pid)["Seccomp"] == "2", "it is confined")
                self.check_rights(pid)
            with connect(server.address) as sock:
                echo(sock)
            finished = server.finish()
        # Whatever the filter killed would be a death more.
        self.assertEqual(finished.report["worker_deaths"], 1 if shape.pool else 0, finished.err)
        self.assertEqual(finished.report["options"]["user"], "nobody")

    def test_every_variant(self) -> None:
        """The options of a method change what its worker calls. On the default loop."""
        for method, variant in (
            ("queue-python3", "auth=off,connection=persistent"),
            ("inherited-listener", "wait=fcntl-lock"),
            ("inherited-listener", "wait=mutex"),
            ("reuseport", "steer=least-loaded,migrate=on"),
        ):
            row = next(row for row in listing()["methods"] if row["name"] == method)
            with self.subTest(method=method, variant=variant):
                if not row["available"]:
                    self.skipTest(row["reason"])
                with Server("--strategy", "pool", "--workers", "2", "--ipc", f"{method}:{variant}",
                            "--user", str(NOBODY)) as server:  # fmt: skip
                    with connections(server.address, 4) as socks:
                        for sock in socks:
                            echo(sock)
                    self.assertEqual(server.finish().report["worker_deaths"], 0)

    @for_each(lambda: [shape for shape in method_shapes() if shape.method in ("scm-seqpacket", "reuseport")])
    def test_a_pools_acceptor_starts_its_successor(self, shape: Shape) -> None:
        with place() as where, shape.start("--user", "nobody", report=str(where.path / "%p.json")) as server:
            pid = server.pid
            for _ in range(2):
                sighup(server, pid)
                pid = successor_of(server, pid)
                with connect(server.address) as sock:
                    echo(sock)
            self.assertEqual(end(server, where, pid)["worker_deaths"], 0)

    def test_a_single_process_has_no_successor(self) -> None:
        with Server("--strategy", "epoll", "--user", "nobody", environment=no_leak_check) as server:
            server.signal(signal.SIGHUP)
            wait_until(lambda: "SIGHUP: with --user" in server.err_text(), "it says so")
            with connect(server.address) as sock:
                echo(sock)
            server.finish()
        with place() as where:
            code, out, err = support.run_program(
                *(support.SERVER, "--listen", "127.0.0.1:0", "--user", "nobody", *where.here)
            )
        self.assertEqual((code, out, err.count("\n")), (2, "", 1), err)
        self.assertIn("--strategy pool", err)

    @for_each(trusting_shapes)
    def test_who_must_be_trusted_says_so(self, shape: Shape) -> None:
        code, out, err = support.run_program(
            support.SERVER, "--listen", "127.0.0.1:0", *shape.options, "--user", "nobody"
        )
        self.assertEqual((code, out, err.count("\n")), (2, "", 1), err)
        self.assertIn(f"--user: not with {shape.method}: {trusted(shape)}", err)

    @unittest.skipUnless(shutil.which("strace"), "needs strace")
    def test_a_forbidden_call_is_a_death_with_its_reason(self) -> None:
        """strace makes the worker call getuid in place of a recvfrom. It is harmless, and not on the list."""
        shape = next(shape for shape in method_shapes() if shape.method == "scm-seqpacket")
        # No deadline: a traced worker may look like one that is stopped.
        with shape.start("--user", "nobody", "--worker-deadline", "0") as server:
            victims = server.children()
            tracers = []
            try:
                for pid in victims:
                    tracer = subprocess.Popen(
                        ["strace", "-p", str(pid), "-e", "trace=recvfrom",
                         "-e", "inject=recvfrom:error=EIO:syscall=getuid"],  # fmt: skip
                        stderr=subprocess.PIPE,
                    )
                    tracers.append(tracer)
                    assert tracer.stderr is not None
                    self.assertIn(b"attached", tracer.stderr.readline())
                with connect(server.address) as sock:
                    sock.sendall(b"x")
                    # One whose copy the acceptor still has goes to another worker, which dies of it too, and
                    # then to a successor; of another one the client sees the end.
                    with contextlib.suppress(ConnectionResetError):
                        self.assertIn(support.receive_exactly(sock, 1), (b"x", b""))
                wait_until(lambda: server.report()["worker_deaths"] > 0, "the death is counted")
            finally:
                for tracer in tracers:
                    tracer.terminate()
                    tracer.communicate()
            wait_until(lambda: len(server.children()) == 2, "a successor")
            with connect(server.address) as sock:
                echo(sock)
            finished = server.finish()
        expected = r"worker \d \(process \d+\) ended: killed by signal 31 \(Bad system call\): it made a system call"
        self.assertEqual(len(re.findall(expected, finished.err)), finished.report["worker_deaths"], finished.err)

    def test_lines(self) -> None:
        command = (support.SERVER, "--listen", "127.0.0.1:0", "--user")
        code, out, err = support.run_program(*command, "no-such-user")
        self.assertEqual((code, out, err.count("\n")), (2, "", 1), err)
        self.assertIn("--user: there is no user 'no-such-user'", err)
        code, out, err = support.run_program(*support.as_user(NOBODY), *command, "1")
        self.assertEqual((code, out, err.count("\n")), (2, "", 1), err)
        self.assertIn(f"--user: uid {NOBODY} may not become 1", err)

    def test_who_is_that_user_already_needs_no_root(self) -> None:
        options = ("--strategy", "pool", "--workers", "1", "--user", "nobody")
        with Server(*options, wrapper=support.as_user(NOBODY)) as server:
            with connect(server.address) as sock:
                echo(sock)
            self.check_rights(server.worker_pid(0))
            server.finish()


def shared_memory_of(pid: int) -> set[int]:
    """The inodes of what it has mapped of ipc/shared_memory.hpp."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {int(line.split()[4]) for line in lines if "/memfd:c10k" in line}


class SharedMemory(unittest.TestCase):
    @for_each(method_shapes)
    def test_a_worker_has_its_own_and_not_its_siblings(self, shape: Shape) -> None:
        """Worker 1 is forked after worker 0, and the successor of worker 0 after both: a child could inherit what the
        acceptor shares with one before it. What belongs to all is in all three of them."""
        with shape.start() as server:
            first = server.worker_pid(0)
            zero, one = shared_memory_of(first), shared_memory_of(server.worker_pid(1))
            os.kill(first, signal.SIGKILL)
            wait_until(lambda: server.worker_pid(0) not in (0, first), "a successor")
            successor = shared_memory_of(server.worker_pid(0))
            for_all = zero & one & successor
            self.assertEqual(zero & one, for_all)
            self.assertEqual(one & successor, for_all)
            for mapped in (one, successor):
                self.assertLess(for_all, mapped)  # at least its counters
                self.assertLessEqual(mapped, shared_memory_of(server.pid))
            server.finish()


class Deadlines(unittest.TestCase):
    """Limits that only the right client exceeds. One of them is the good clients' as well: they speak at once, and
    have a second for it."""

    def test_silent_and_stalled_clients_are_closed_and_counted(self) -> None:
        """For each shape: the silent ones' second passes while the stalled clients of others are waited for."""
        options = ("--first-byte-timeout", "1", "--write-timeout", "0.2", "--idle-timeout", "600")
        with contextlib.ExitStack() as stack:
            begun = []

            @for_each(all_shapes)
            def begin(_: unittest.TestCase, shape: Shape) -> None:
                server = stack.enter_context(shape.start(*options))
                good = stack.enter_context(connect(server.address))
                echo(good)
                silent = stack.enter_context(connect(server.address))
                with connect(server.address) as stalled:
                    self.stall(stalled)
                begun.append((shape, server, good, silent))

            begin(self)
            for shape, server, good, silent in begun:
                with self.subTest(shape=shape.name):
                    self.assertTrue(ended(silent))
                    echo(good)  # it has had its first byte, and takes what it is sent
                    good.close()
                    silent.close()
                    totals = server.finish().report["totals"]
                    found = (totals["closed_silent"], totals["closed_stalled"], totals["closed_idle"])
                    self.assertEqual(found, (1, 1, 0))

    def stall(self, sock: socket.socket) -> None:
        """Sends more than both ends and the server's own buffers hold, and never reads, until it is closed."""
        sock.setblocking(False)
        data = bytes(1 << 20)
        poller = select.poll()
        poller.register(sock, select.POLLOUT)
        gone = select.POLLHUP | select.POLLERR

        def is_closed() -> bool:
            if any(event & gone for _, event in poller.poll(0)):
                return True
            try:
                while True:  # at once: relay's kernel counts from when the first buffer is full
                    sock.send(data)
            except BlockingIOError:
                pass
            except (ConnectionResetError, BrokenPipeError):
                return True
            return False

        wait_until(is_closed, "the stalled connection is closed")

    def test_before_the_hand_off(self) -> None:
        with Server("--strategy", "pool", "--workers", "1", "--hand-off-at", "first-byte", "--first-byte-timeout",
                    "0.05", "--idle-timeout", "60") as server:  # fmt: skip
            with connect(server.address) as silent:
                self.assertTrue(ended(silent))
            totals = server.finish().report["totals"]
        self.assertEqual((totals["closed_silent"], totals["closed_idle"], totals["handed"]), (1, 0, 0))

    def test_the_shorter_one_counts(self) -> None:
        options = ("--first-byte-timeout", "60", "--write-timeout", "60", "--idle-timeout", "0.05")
        with Server("--strategy", "epoll", *options) as server:
            with connect(server.address) as silent:
                self.assertTrue(ended(silent))
            totals = server.finish().report["totals"]
        self.assertEqual((totals["closed_silent"], totals["closed_idle"]), (0, 1))


class Caps(unittest.TestCase):
    @for_each(lambda: method_shapes() + support.completion_shapes())
    def test_a_worker_has_no_more_than_its_cap(self, shape: Shape) -> None:
        """Six clients, room for four: two wait in the accept queue, and are served as others go."""
        with shape.start("--max-connections-per-worker", "2") as server, connections(server.address, 6) as socks:
            for sock in socks:
                sock.sendall(b"x")
            served: list[socket.socket] = []
            waiting = list(socks)
            # Where the kernel chooses by a hash, all may have come to one worker.
            least = 2 if shape.method == "reuseport" else 4
            poller = select.poll()
            for sock in socks:
                poller.register(sock, select.POLLIN)
            while len(served) < least:
                ready = {fd for fd, _ in poller.poll(support.BOUND_S * 1000)}
                self.assertTrue(ready, f"only {len(served)} are served")
                for sock in [sock for sock in waiting if sock.fileno() in ready]:
                    self.assertEqual(sock.recv(1), b"x")
                    waiting.remove(sock)
                    served.append(sock)
            report = server.report()
            for worker in support.workers_of(report):
                self.assertLessEqual(worker["active"], 2)
            self.assertLessEqual(len(served), 4)
            while waiting:
                poller.unregister(served[0])
                served.pop(0).close()
                for fd, _ in poller.poll(support.BOUND_S * 1000 if not served else 20):
                    sock = next(sock for sock in waiting if sock.fileno() == fd)
                    self.assertEqual(sock.recv(1), b"x")
                    waiting.remove(sock)
                    served.append(sock)
                self.assertTrue(served or not waiting, "those that wait are not served")
            for sock in served:
                echo(sock)
                sock.close()
            finished = server.finish()
        self.assertEqual(finished.report["totals"]["finished"], 6)
        self.assertEqual(finished.report["options"]["max_connections_per_worker"], 2)

    def test_the_default_listens_on_loopback(self) -> None:
        _, out, _ = support.run_program(support.SERVER, "--help")
        self.assertIn("127.0.0.1:8000", out)


if __name__ == "__main__":
    unittest.main()
