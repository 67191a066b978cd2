"""Tests of c10k-server from outside: limits, bad usage, and the system calls it makes.

What --list names is tested: a new strategy, loop or method needs no line here. How to run one class:

  cd tests; C10K_BIN_DIR=../build/release /usr/bin/python3 -m unittest -v test_limits.Limits

C10K_ONLY=REGEX picks shapes by their name, C10K_LOOP=NAME the loop of all pools, C10K_TIMES=1 prints how long each
took."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import sys
import time
import unittest
from collections import Counter
from collections.abc import Callable
from pathlib import Path

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
    method_shapes,
    run_client,
    run_program,
    scaled,
    strategy_shapes,
    wait_until,
    workers_of,
    close_all,
)


class Limits(unittest.TestCase):
    @for_each(all_shapes)
    def test_max_connections(self, shape: Shape) -> None:
        with shape.start("--max-connections", "3") as server, connections(server.address, 3) as socks:
            for sock in socks:
                echo(sock)
            with connect(server.address) as fourth:
                fourth.sendall(b"hello")
                books = server.report()["books"]
                self.assertEqual(books["active"] + books["in_hand_off"], 3)
                ticks = sum(map(support.cpu_ticks, server.group()))
                self.assertFalse(support.readable(fourth, 0.3), "served beyond the limit")
                self.assertLess(sum(map(support.cpu_ticks, server.group())) - ticks, scaled(6, 12), "ticks in 0.3 s")
                self.assertFalse(server.has_ended())
                for sock in socks:
                    echo(sock)
                socks[1].close()
                self.assertEqual(support.receive_exactly(fourth, 5), b"hello")
                echo(socks[0])
                echo(socks[2])
            close_all(socks)
            self.many_wait(server)
            self.assertEqual(server.finish().report["books"]["served"], 4 + 24)

    def many_wait(self, server: Server) -> None:
        """Workers that accept at the same time do not exceed together what each may."""
        with connections(server.address, 24) as waiting:
            for sock in waiting:
                sock.sendall(b"hello")
            rest = set(waiting)
            while rest:
                served: set[socket.socket] = set()

                def three_served() -> bool:
                    served.update(select.select(rest, [], [], 0.02)[0])
                    return len(served) >= 3

                wait_until(three_served, "three echoes")
                served.update(select.select(rest, [], [], 0.02)[0])
                self.assertEqual(len(served), 3, "served beyond the limit")
                close_all(list(served))
                rest -= served

    @for_each(lambda: strategy_shapes() + [s for s in method_shapes() if s.method in ("scm-seqpacket", "reuseport")])
    def test_a_drain_at_max_connections_waits_for_nobody_who_does_not_come(self, shape: Shape) -> None:
        options = ("--max-connections", "3", "--drain-timeout", "600")
        with shape.start(*options) as server, connections(server.address, 3) as socks:
            for sock in socks:
                echo(sock)
            server.signal(signal.SIGTERM)
            server.report()
            server.report()  # it has read both signals by now, in whichever order
            close_all(socks)
            self.assertEqual(server.finish(0).report["books"]["served"], 3)

    def test_idle_timeout_closes_the_idle_only(self) -> None:
        """All servers at once, as each takes its time: enough for a round of echoes on a busy machine."""
        timeout_s = 3
        with contextlib.ExitStack() as stack:
            servers: list[tuple[Shape, Server]] = []

            def begin(_: unittest.TestCase, shape: Shape) -> None:
                servers.append((shape, stack.enter_context(shape.start("--idle-timeout", str(timeout_s)))))

            for_each(all_shapes)(begin)(self)
            actives: list[socket.socket] = []
            idle: dict[socket.socket, float] = {}  # since when
            for _, server in servers:
                began = time.monotonic()
                active, silent, once = stack.enter_context(connections(server.address, 3))
                echo(active)
                echo(once)
                actives.append(active)
                idle.update({silent: began, once: began})
            connected = time.monotonic()
            while idle:
                self.assertLess(time.monotonic() - connected, BOUND_S)
                for active in actives:
                    echo(active)
                for sock in select.select(idle, [], [], 0.05)[0]:
                    self.assertTrue(ended(sock))
                    self.assertGreater(time.monotonic() - idle.pop(sock), timeout_s - 0.1)
            for active in actives:
                echo(active)
                active.close()
            for shape, server in servers:
                with self.subTest(shape=shape.name):
                    report = server.finish().report
                    self.assertEqual(report["totals"]["closed_idle"], 2)
                    self.assertEqual(report["books"]["served"], 3)

    @for_each(all_shapes)
    def test_the_report_is_for_stdout_and_the_stats_are_for_stderr(self, shape: Shape) -> None:
        stats = r"\d+ s: \d+ accepts/s, \d+ echoes/s, {} open, queue \d+, \d+ overflows, 0 shed, 0 lost\n"
        with shape.start("--stats-interval", "0.05", report="-") as server:
            with connect(server.address) as sock:
                echo(sock)
                line = re.compile(stats.format(1))
                wait_until(lambda: len(line.findall(server.err_text())) >= 3, "three lines")
            finished = server.finish()
        first, _, rest = finished.out.partition("\n")
        self.assertRegex(first, r"^listening 127\.0\.0\.1:\d+$")
        self.assertEqual(json.loads(rest)["books"]["served"], 1)
        self.assertRegex(finished.err, rf"\A({stats.format('[01]')})+\Z")


class Usage(unittest.TestCase):
    """Exit 2 for bad usage, 1 for what fails while running: one line on stderr, nothing on stdout."""

    def refused(self, code: int, *options: str, says: str = "", wrapper: tuple[str, ...] = ()) -> None:
        with self.subTest(options=options):
            got, out, err = run_program(*wrapper, SERVER, *options, bound_s=BOUND_S)
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
                wrapper=("prlimit", "--nofile=20:20"),
            )

    @for_each(all_shapes)
    def test_an_address_in_use(self, shape: Shape) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            self.refused(1, *shape.options, "--listen", address, says="in use.*--listen")

    # What a method has no part in: where the server listens, and where each worker does.
    @for_each(lambda: strategy_shapes() + [s for s in method_shapes() if s.method in ("scm-seqpacket", "reuseport")])
    def test_other_failures_at_run_time(self, shape: Shape) -> None:
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

    def quietest(self, strategy: str, passes: Callable[[dict[str, float]], bool]) -> dict[str, float]:
        """Of up to four runs: each turn takes what has come, which is less when a busy machine lets no client run."""
        runs: list[dict[str, float]] = []
        while len(runs) < 4 and not (runs and passes(runs[-1])):
            runs.append(self.per_connection(500, 2000, 64, "--strategy", strategy)["main"])
        return runs[-1] if passes(runs[-1]) else min(runs, key=lambda calls: sum(calls.values()))

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
        def but_for_turns(calls: dict[str, float]) -> tuple[float, float]:
            total = sum(count for call, count in calls.items() if call != "epoll_pwait2")
            return total, total - max(0.0, calls.get("accept4", 0) - 1) - calls.get("getsockopt", 0)

        def few(calls: dict[str, float]) -> bool:
            total, beside = but_for_turns(calls)
            return total <= 6.1 and beside <= 6.01

        calls = self.quietest("epoll", few)
        total, beside = but_for_turns(calls)
        self.assertLessEqual(total, 6.1, calls)
        self.assertLessEqual(beside, 6.01, calls)

    def test_single_uring_needs_hardly_one(self) -> None:
        """Accepts, receives, sends and closes are entries of io_uring_enter, which takes many at once."""
        calls = self.quietest("uring", lambda calls: sum(calls.values()) <= 1)
        self.assertLessEqual(sum(calls.values()), 1, calls)
        for call in ("accept4", "recvfrom", "sendto", "close"):
            self.assertLessEqual(calls.get(call, 0), 0.05, calls)


if __name__ == "__main__":
    unittest.main()
