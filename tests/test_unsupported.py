"""Tests of kernels and rights that lack something, by refusing the system call (seccomp) and as another user.

What a method lacks makes it 'unsupported, because ...' and touches no other one. How to run one class:

  cd tests; C10K_BIN_DIR=../build/release /usr/bin/python3 -m unittest -v test_unsupported.Refused"""

from __future__ import annotations

import concurrent.futures
import errno
import json
import os
import re
import socket
import sys
import unittest
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import seccomp

sys.path.insert(0, str(Path(__file__).resolve().parent))

import process_support as support  # noqa: E402
from process_support import NOBODY, Result, Server, connections, echo, listing, wait_until  # noqa: E402
from upgrade_support import place, sighup, successor_of  # noqa: E402

IPPROTO_TCP, TCP_REPAIR = socket.IPPROTO_TCP, 19


@dataclass(frozen=True)
class Refusal:
    """A system call that fails, and the methods and the loops that cannot do without it."""

    call: str
    error: int
    methods: frozenset[str]
    level_and_option: tuple[int, int] | None = None  # of setsockopt
    loops: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"{self.call} {errno.errorcode[self.error]}"

    def add_to(self, rules: seccomp.SyscallFilter) -> None:
        arguments = []
        if self.level_and_option:
            level, option = self.level_and_option
            arguments = [seccomp.Arg(1, seccomp.EQ, level), seccomp.Arg(2, seccomp.EQ, option)]
        rules.add_rule(seccomp.ERRNO(self.error), self.call, *arguments)


PIDFD = frozenset({"pidfd-ring", "pidfd-mq"})
REFUSALS = [
    Refusal("pidfd_getfd", errno.ENOSYS, PIDFD),
    Refusal("pidfd_getfd", errno.EPERM, PIDFD),
    Refusal("io_uring_setup", errno.ENOSYS, frozenset({"uring-msg"}), loops=frozenset({"uring"})),
    Refusal("io_uring_setup", errno.EPERM, frozenset({"uring-msg"}), loops=frozenset({"uring"})),
    Refusal("seccomp", errno.EINVAL, frozenset({"seccomp-addfd"})),
    Refusal("setsockopt", errno.EPERM, frozenset({"tcp-repair"}), (IPPROTO_TCP, TCP_REPAIR)),
    Refusal("setsockopt", errno.ENOPROTOOPT, frozenset({"reuseport"}), (socket.SOL_SOCKET, socket.SO_REUSEPORT)),
    Refusal("bpf", errno.EPERM, frozenset({"tcp-repair"})),  # of reuseport only options need it
]


# What helps an unprivileged user.
REMEDY = "as root|set kernel.io_uring_disabled"


AS_NOBODY = support.as_user(NOBODY)


def under(refusals: Iterable[Refusal], do: Callable[[], Result]) -> Result:
    """do() in a thread whose programs are refused that. (A filter is a thread's; so nothing has to be a copy of this
    interpreter to put it on.)"""

    def run() -> Result:
        rules = seccomp.SyscallFilter(seccomp.ALLOW)
        for refusal in refusals:
            refusal.add_to(rules)
        rules.load()
        return do()

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


def listed(wrapper: tuple[str, ...] = ()) -> dict[str, dict[str, dict]]:
    """What --list says, by kind and name."""
    code, out, err = support.run_program(*wrapper, support.SERVER, "--list", "--json")
    assert code == 0, err
    kinds = {kind: rows for kind, rows in json.loads(out).items() if isinstance(rows, list)}
    return {kind: {row["name"]: row for row in rows} for kind, rows in kinds.items()}


class Case(unittest.TestCase):
    def check(
        self,
        methods: dict[str, dict],
        wrapper: tuple[str, ...] = (),
        more: Callable[[dict], tuple[str, ...]] = lambda row: (),
    ) -> None:
        """What is available serves, with `more` options; what is not says so in one line."""
        for name, row in methods.items():
            with self.subTest(method=name):
                options = ("--listen", "127.0.0.1:0", "--strategy", "pool", "--ipc", name, "--workers", "2")
                if row["available"]:
                    with Server(*options[2:], *more(row), wrapper=wrapper) as server:
                        with connections(server.address, 3) as socks:
                            for sock in socks:
                                echo(sock)
                        server.finish()
                    continue
                code, _, err = support.run_program(*wrapper, support.SERVER, *options)
                self.assertEqual((code, err.count("\n")), (1, 1), err)
                self.assertIn(f"{name} is unsupported, because {row['reason']}", err)


class Refused(Case):
    def test_only_what_needs_the_call_is_unsupported(self) -> None:
        here = {row["name"]: row for row in listing()["methods"]}
        for refusal in REFUSALS:
            with self.subTest(refused=str(refusal)):
                rows = under([refusal], listed)["methods"]
                for name, row in rows.items():
                    if name not in refusal.methods:
                        self.assertEqual(row["available"], here[name]["available"], row["reason"])
                    elif here[name]["available"]:
                        self.assertFalse(row["available"], name)
                        self.assertIn(os.strerror(refusal.error), row["reason"])
                self.assertLessEqual(refusal.methods, rows.keys())

    def test_the_rest_works(self) -> None:
        """Each method under all at once that it can do without, and under each that it cannot. A call that is refused
        in two ways is so in one round each."""
        whats = ((refusal.call, refusal.level_and_option) for refusal in REFUSALS)
        rounds = [dict(zip(whats, REFUSALS)).values()]
        rounds.append({(refusal.call, refusal.level_and_option): refusal for refusal in reversed(REFUSALS)}.values())
        for name in (row["name"] for row in listing()["methods"]):
            for refusals in rounds:
                spared = [refusal for refusal in refusals if name not in refusal.methods]
                with self.subTest(refused=" ".join(map(str, spared))):
                    under(spared, lambda name=name: self.check({name: listed()["methods"][name]}))
            for refusal in REFUSALS:
                if name in refusal.methods:
                    with self.subTest(refused=str(refusal)):
                        under([refusal], lambda name=name: self.check({name: listed()["methods"][name]}))

    def test_loops(self) -> None:
        """And the strategies that are one process with that loop."""
        for refusal in REFUSALS:
            rows = under([refusal], listed)
            for kind in ("loops", "strategies"):
                for here in listing()[kind]:
                    row = rows[kind][here["name"]]
                    with self.subTest(refused=str(refusal), kind=kind, name=row["name"]):
                        lacking = row["name"] in refusal.loops
                        self.assertEqual(row["available"], here["available"] and not lacking, row["reason"])
                        if not lacking or not here["available"]:
                            continue
                        self.assertIn(os.strerror(refusal.error), row["reason"])
                        how = ("pool", "--loop", row["name"]) if kind == "loops" else (row["name"],)
                        command = (support.SERVER, "--listen", "127.0.0.1:0", "--strategy", *how)
                        code, out, err = under([refusal], lambda command=command: support.run_program(*command))
                        self.assertEqual((code, out, err.count("\n")), (1, "", 1), err)
                        self.assertIn(f"{row['name']} is unsupported, because {row['reason']}", err)

    def test_the_tests_skip_with_the_reason(self) -> None:
        program = str(Path(support.SERVER).parent / "tests" / "handoff_conformance_test")
        run = lambda: support.run_program(program, "--gtest_filter=*BytesRoundTrip*pidfd*")  # noqa: E731
        code, out, err = under(REFUSALS[:1], run)
        self.assertEqual(code, 0, err)
        self.assertEqual(out.count("is unsupported, because pidfd_getfd: Function not implemented"), 2, out)


@unittest.skipUnless(os.getuid() == 0, "needs root to become another user")
class Unprivileged(Case):
    """Nobody gets all that needs no privilege, and for the rest a line: what is missing, and what to do."""

    def serves(self, *options: str) -> None:
        with Server(*options, wrapper=AS_NOBODY) as server:
            with connections(server.address, 3) as socks:
                for sock in socks:
                    echo(sock)
            report = server.finish().report
        self.assertEqual((report["worker_deaths"], report["books"]["served"]), (0, 3), report["books"])

    def is_refused(self, *options: str, code: int = 1, says: str) -> None:
        got, out, err = support.run_program(*AS_NOBODY, support.SERVER, "--listen", "127.0.0.1:0", *options)
        self.assertEqual((got, out), (code, ""), err)
        self.assertRegex(err, rf"\Ac10k-server: [^\n]*{says}[^\n]*\n\Z")

    def test_everything_that_needs_no_privilege_works(self) -> None:
        """And --retain and --user where the method can: who is that user already needs no root."""

        def more(row: dict) -> tuple[str, ...]:
            return (
                *(() if row["why_not_retained"] else ("--retain",)),
                *(() if row["needs_trust"] else ("--user", "nobody")),
            )

        methods = listed(AS_NOBODY)["methods"]
        self.check(methods, AS_NOBODY, more)
        for name, row in methods.items():
            if row["privilege"] == "none":
                with self.subTest(method=name):
                    self.assertTrue(row["available"], row["reason"])
            if not row["available"]:
                self.assertIn(os.strerror(errno.EPERM), row["reason"])
                self.assertRegex(row["reason"], REMEDY)

    def test_strategies_loops_and_policies(self) -> None:
        """None of them needs a privilege: what works here works for nobody."""
        here, nobodys = listing(), listed(AS_NOBODY)
        for kind in ("strategies", "loops", "policies"):
            rows = nobodys[kind]
            for row in here[kind]:
                reason = rows[row["name"]]["reason"]
                if row["available"] and reason:  # the machine forbids it to whoever is not root
                    self.assertRegex(reason, f"{os.strerror(errno.EPERM)}.*({REMEDY})")
                else:
                    self.assertEqual(rows[row["name"]]["available"], row["available"], reason)
        loops = [name for name, row in nobodys["loops"].items() if row["available"]]
        policies = [row["name"] for row in here["policies"]]
        shapes = [("--strategy", row["name"]) for row in nobodys["strategies"].values() if row["available"]]
        for i in range(max(len(loops), len(policies))):  # each of both at least once
            loop, policy = loops[i % len(loops)], policies[i % len(policies)]
            shapes.append(("--strategy", "pool", "--workers", "2", "--loop", loop, "--dispatch", policy))
        for shape in shapes:
            with self.subTest(options=" ".join(shape[1:])):
                self.serves(*shape)

    def test_variants(self) -> None:
        """What an option of a method needs, `privilege` says with the option's words. (With sanitizers only some.)"""
        refused = []
        for name, row in listed(AS_NOBODY)["methods"].items():
            for variant in row["variants"][:: support.scaled(1, 3)] if row["available"] else ():
                with self.subTest(method=name, variant=variant):
                    pool = ("--strategy", "pool", "--workers", "2", "--ipc", f"{name}:{variant}")
                    if any(option in row["privilege"] for option in variant.split(",")):
                        eperm = os.strerror(errno.EPERM)
                        self.is_refused(*pool, says=f"{name} is unsupported, because .*{eperm}.*CAP_.*run as root")
                        refused.append(variant)
                    else:
                        self.serves(*pool)
        self.assertNotEqual(refused, [])

    def test_upgrades(self) -> None:
        """By SIGHUP, then by path, with a connection that lives through both where the acceptor can keep it."""
        for method, retain in (("scm-seqpacket", ("--retain",)), ("reuseport", ())):
            with self.subTest(method=method), place() as where:
                os.chown(where.path, NOBODY, NOBODY)
                shape = ("--strategy", "pool", "--workers", "2", "--ipc", method, *retain)
                with Server(*shape, *where.here, wrapper=AS_NOBODY, **where.generations()) as server:
                    with connections(server.address, 1) as socks:
                        echo(socks[0])
                        if not retain:
                            socks[0].close()
                        sighup(server, server.pid)
                        second = successor_of(server, server.pid)
                        options = (*where.here, *where.take)
                        with Server(*shape, *options, wrapper=AS_NOBODY, guarded=True) as third:
                            self.assertEqual(third.target, server.target)
                            wait_until(lambda pid=second: support.state_of(pid) in ("", "Z"), "the second one ends")
                            for sock in socks if retain else ():
                                echo(sock)
                            with connections(third.address, 2) as others:
                                for sock in others:
                                    echo(sock)
                            for sock in socks:
                                sock.close()
                            books = third.finish().report["books"]
                            self.assertEqual(books["served"], 2 + len(retain), books)

    def test_lines(self) -> None:
        pool = ("--strategy", "pool", "--workers", "1")
        with place() as where:  # it is root's
            os.chmod(where.path, 0o755)
            self.is_refused(*pool, *where.here, says="--control: bind .*Permission denied; choose a directory")
            report = f"{where.path}/report"
            self.is_refused(*pool, "--report", report, says=f"--report: .*{report}: Permission denied; give a file")
            with Server(*pool, *where.here) as server:
                self.is_refused(*pool, *where.take, says="--take-over: .*Permission denied; be the user .* or root")
                server.finish()
        for strategy in (pool, ("--strategy", "epoll")):
            self.is_refused(
                *strategy, "--user", "root", code=2, says=f"--user: uid {NOBODY} may not become root .*as root .*CAP_"
            )

    def test_a_tree_of_somebody_elses(self) -> None:
        """Neither is built in it nor recorded, and the line says what to do. (That of missing packages comes first.)"""
        with place() as where:  # it is root's
            os.chmod(where.path, 0o755)
            (where.path / "experiments").mkdir()
            setup = where.path / "experiments" / "setup"
            text = (support.ROOT / "experiments" / "setup").read_text()
            setup.write_text(re.sub(r'packages="[^"]*"', 'packages="libc6"', text).replace("\ncharts ||", "\ntrue ||"))
            code, out, err = support.run_program(*AS_NOBODY, "sh", str(setup), "release")
            self.assertEqual((code, out), (1, ""), err)
            self.assertRegex(err, rf"\Asetup: nobody may not write to {where.path}/build; [^\n]*clone it[^\n]*\n\Z")
            code, out, err = support.run_program(
                *(*AS_NOBODY, str(support.ROOT / "experiments" / "run_matrix"), "quick", "--only", "epoll"),
                *("--bin-dir", str(support.BIN_DIR), "--output", f"{where.path}/run"),
            )
            self.assertEqual((code, out), (1, ""), err)
            self.assertRegex(err, rf"\Arun_matrix: {where.path}/run: Permission denied; give --output [^\n]*\n\Z")


if __name__ == "__main__":
    unittest.main()
