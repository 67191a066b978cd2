"""Tests of c10k-server against clients that do not behave (fault 17), and of c10k-client --misbehave.

What --list and --misbehave name is tested: a new shape needs no line here, a new misbehaviour one in INTENDED.

  cd tests; C10K_BIN_DIR=../build/release /usr/bin/python3 -m unittest -v test_misbehave

C10K_ONLY=REGEX picks shapes by their name, C10K_TIMES=1 prints how long each took."""

from __future__ import annotations

import json
import signal
import sys
import time
import unittest
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import process_support as support  # noqa: E402
import test_client  # noqa: E402
from process_support import (  # noqa: E402
    BOUND_S,
    CLIENT,
    Program,
    Server,
    Shape,
    all_shapes,
    for_each,
    method_shapes,
    run_client,
    run_program,
    scaled,
    strategy_shapes,
    wait_until,
)

INTENDED = {
    "slow-reader": "echoed",
    "byte-by-byte": "echoed",
    "half-close": "echoed",
    "reset-at-connect": "reset",
    "reset-in-echo": "reset",
    "silent": "eof",  # where the server has an idle timeout
}


def misbehave(target: str, name: str, *options: str) -> tuple[int, dict[str, Any], str]:
    return run_client(target, "--misbehave", name, "--duration", str(BOUND_S), *options)


def some_at_once(shapes: Callable[[], list[Shape]]) -> Callable[..., Callable[[unittest.TestCase], None]]:
    """As for_each, with some shapes at a time: what a test does most is wait for a client that takes its time."""

    def decorate(test: Callable[[Any, Shape], None]) -> Callable[[unittest.TestCase], None]:
        def run(self: unittest.TestCase) -> None:
            chosen: list[Shape] = []
            for_each(shapes)(lambda _, shape: chosen.append(shape))(self)
            for shape, ran in test_client.at_once(lambda shape: test(self, shape), chosen, 4):
                with self.subTest(shape=shape.name):
                    ran.result()

        return run

    return decorate


class Others(unittest.TestCase):
    """Every server, with a client beside that behaves."""

    @some_at_once(all_shapes)
    def test_others_do_not_notice(self, shape: Shape) -> None:
        names = test_client.allowed("misbehave")
        with shape.start("--idle-timeout", "1") as server:

            def one_misbehaves(name: str) -> None:
                code, result, err = misbehave(
                    *(server.target, name, "--connections", "8", "--requests", "8", "--timeout", str(BOUND_S)),
                )
                self.assertEqual((code, err), (0, ""), name)
                self.assertEqual((result["attempts"], result["outcomes"][INTENDED[name]]), (8, 8), name)
                self.assertEqual((result["errors"], result["misbehave"]), ({}, name))

            with Program(
                [CLIENT, "--target", server.target, "--workload", "rr", "--json", "-", "--announce-phases"]
                + ["--connections", "4", "--rate", "200", "--duration", "600", "--timeout", str(BOUND_S)]
            ) as other, ThreadPoolExecutor(1) as pool:
                wait_until(lambda: "phase rr" in other.err_text(), "the other begins")
                silence = pool.submit(one_misbehaves, "silent")  # a second, for the others one after the other
                for name in names:
                    if name != "silent":
                        one_misbehaves(name)
                silence.result()
                other.signal(signal.SIGINT)
                code, out, err = other.wait()
            self.assertEqual((code, err), (0, "phase rr\n"))
            result = json.loads(out)
            self.assertEqual(result["outcomes"]["echoed"], result["attempts"])
            self.assertEqual(result["connections_opened"], 4)
            seconds = result["series"]["intervals"][:-1]
            self.assertGreaterEqual(len(seconds), 1)
            for second in seconds:
                self.assertGreater(second["echoed"], 20, seconds)  # of 200
            report = server.finish().report
        self.assertEqual(report["worker_deaths"], 0)
        self.assertEqual(report["totals"]["closed_idle"], 8)
        self.assertLessEqual(set(report["totals"]["errors"]), {"ECONNRESET", "EPIPE"})
        books = report["books"]
        self.assertEqual((books["accepted"], books["lost"], books["shed"]), (4 + 8 * len(names), 0, 0))


def narrow_shapes() -> list[Shape]:
    """Every loop; a worker, and an acceptor that keeps the connections. (fork has a process for each.)"""
    methods = [shape for shape in method_shapes() if not shape.unsupported]
    stay = [shape for shape in methods if shape.connections_stay]
    return [shape for shape in strategy_shapes() if shape.strategy != "fork"] + methods[:1] + stay


class SlowReaders(unittest.TestCase):
    @some_at_once(narrow_shapes)
    def test_slow_readers_cost_bounded_memory(self, shape: Shape) -> None:
        count, payload = 64, 1 << 20
        # Else the sanitizer keeps 256 MB of freed memory.
        freed = {"ASAN_OPTIONS": "quarantine_size_mb=1"}
        with shape.start(workers=1, environment=lambda _: freed) as server:
            group = server.group()
            before = sum(map(support.rss_bytes, group))
            most = 0
            with Program(
                [CLIENT, "--target", server.target, "--misbehave", "slow-reader", "--json", "-"]
                + ["--workload", "storm", "--connections", str(count), "--payload", str(payload)]
                + ["--timeout", str(BOUND_S)]
            ) as client:
                while not client.has_ended(0.05):
                    most = max(most, sum(map(support.rss_bytes, group)))
                code, out, err = client.wait()
            self.assertEqual((code, err), (0, ""))
            self.assertEqual(json.loads(out)["outcomes"]["echoed"], count)
            # A read's worth for each (64 KiB; a relay has several), not the payload.
            self.assertLess(most - before, count * payload // scaled(2, 1), "bytes")
            self.assertGreater(most, before)
            server.finish()


class Ends(unittest.TestCase):
    """How the client tells of it."""

    def test_silence_that_nobody_ends_is_a_timeout(self) -> None:
        with Server("--strategy", "epoll") as server:
            for workload in ("crr", "storm"):
                began = time.monotonic()
                code, result, err = misbehave(
                    *(server.target, "silent", "--workload", workload, "--connections", "8", "--requests", "16"),
                    *("--timeout", "0.3", "--processes", "2"),
                )
                attempts = 16 if workload == "crr" else 8
                self.assertEqual((code, err, result["ended"]), (0, "", "completed"))
                self.assertEqual((result["attempts"], result["outcomes"]["timeout"]), (attempts, attempts))
                self.assertGreaterEqual(time.monotonic() - began, 0.3 * attempts / 8)
            server.finish()

    def test_large_requests(self) -> None:
        with Server("--strategy", "epoll") as server:
            # byte-by-byte would take hours; silent sends nothing
            runs = test_client.at_once(
                lambda name: misbehave(
                    *(server.target, name, "--payload", str(1 << 19), "--connections", "4", "--requests", "8"),
                    *("--timeout", str(BOUND_S)),
                ),
                [name for name in INTENDED if name not in ("byte-by-byte", "silent")],
            )
            for name, run in runs:
                with self.subTest(name=name):
                    code, result, err = run.result()
                    self.assertEqual((code, err), (0, ""))
                    self.assertEqual(result["outcomes"][INTENDED[name]], 8, result["outcomes"])
            server.finish()

    def test_pieces_take_their_time(self) -> None:
        with Server("--strategy", "epoll") as server:
            for name, payload, pauses in (("byte-by-byte", 50, 50), ("slow-reader", 40_960, 10)):
                _, result, err = misbehave(
                    *(server.target, name, "--payload", str(payload), "--connections", "1", "--requests", "1")
                )
                self.assertEqual(result["outcomes"]["echoed"], 1, err)
                self.assertGreaterEqual(result["latency"]["p50_us"], pauses * 10_000 * 0.99)
            server.finish()

    def test_what_was_not_intended_is_a_failure(self) -> None:
        def run(what: tuple[str, test_client.Behaviour, str]) -> tuple[int, dict[str, Any], str]:
            name, behave, outcome = what
            timeout = "0.5" if outcome == "timeout" else str(BOUND_S)
            with test_client.BadServer(behave) as server:
                return misbehave(server.target, name, "--connections", "2", "--requests", "4", "--timeout", timeout)

        runs = [
            # A server that answers half a request with half an echo, or none.
            (name, behave, outcome)
            for name in ("slow-reader", "byte-by-byte", "half-close")
            for behave, outcome in (
                (test_client.wrong_byte, "mismatched"),
                (test_client.reset_it, "reset"),
                # To this server an end is the end.
                (test_client.silent, "eof" if name == "half-close" else "timeout"),
            )
        ]
        for (name, behave, outcome), ran in test_client.at_once(run, runs, 3):
            with self.subTest(name=name, behave=behave.__name__):
                code, result, err = ran.result()
                self.assertEqual((code, err.count("\n")), (1, 1), err)
                self.assertIn(outcome, err)
                self.assertEqual((result["attempts"], result["outcomes"][outcome]), (4, 4), result["outcomes"])
        for name in ("reset-at-connect", "reset-in-echo", "silent"):
            target = "127.0.0.1:1"  # nobody listens there
            code, out, err = run_program(CLIENT, "--target", target, "--misbehave", name)
            self.assertEqual((code, out), (1, ""))
            self.assertRegex(err, r"\Ac10k-client: [^\n]*refused[^\n]*\n\Z")

    def test_the_summary_says_what_was_intended(self) -> None:
        with Server("--strategy", "epoll") as server:
            code, out, err = run_program(
                *(CLIENT, "--target", server.target, "--misbehave", "reset-in-echo", "--requests", "20")
            )
            self.assertEqual((code, err), (0, ""))
            self.assertRegex(out, r"(?m)^misbehave +reset-in-echo: 20 ended as intended$")
            self.assertRegex(out, r"(?m)^attempts +20: 0 echoed, 0 failed$")
            server.finish()


class Usage(unittest.TestCase):
    def test_bad_usage(self) -> None:
        for options, says in [
            (("--misbehave", "politely"), "politely.*slow-reader.*silent"),
            (("--misbehave", "silent", "--engine", "epoll"), "--engine coroutines"),
            (("--misbehave", "silent", "--workload", "rr"), "crr, storm"),
            (("--misbehave", "silent", "--workload", "hold"), "crr, storm"),
            (("--misbehave", "silent", "--requests-per-connection", "2"), "one request"),
        ]:
            with self.subTest(options=options):
                code, out, err = run_program(CLIENT, *options)
                self.assertEqual((code, out), (2, ""), err)
                self.assertRegex(err, r"\Ac10k-client: [^\n]+\n\Z")
                self.assertRegex(err, says)

    def test_help_names_them_all(self) -> None:
        _, out, _ = run_program(CLIENT, "--help")
        for name in INTENDED:
            self.assertIn(f"{name}: ", out)
        self.assertEqual(sorted(INTENDED), sorted(test_client.allowed("misbehave")))

    def test_the_engine_that_can_is_the_default(self) -> None:
        with Server("--strategy", "epoll") as server:
            for engine in ((), ("--engine", "coroutines")):
                _, result, err = misbehave(server.target, "half-close", "--requests", "1", *engine)
                self.assertEqual(result["engine"], "coroutines", err)
            server.finish()


if __name__ == "__main__":
    unittest.main()
