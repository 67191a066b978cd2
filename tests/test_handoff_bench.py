"""Tests of handoff-bench from outside: its JSON, every method of the registry in it, usage, and the system calls that
--list claims.

  cd tests; C10K_BIN_DIR=../build/release /usr/bin/python3 -m unittest -v test_handoff_bench"""

from __future__ import annotations

import json
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import process_support as support  # noqa: E402
from process_support import BIN_DIR, BOUND_S, listing, run_program  # noqa: E402

BENCH = str(BIN_DIR / "handoff-bench")
FLOORS = {"dup-close", "dup-close-shared", "ring", "socketpair-byte", "pidfd-getfd-close"}
DESCRIPTORS = 200


def short(repetitions: int) -> tuple[str, ...]:
    cell = ("--descriptors", str(DESCRIPTORS), "--latencies", "20", "--seed", "7")
    return (*cell, "--repetitions", str(repetitions))


def run_bench(*options: str, repetitions: int = 2) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="c10k-test-") as folder:
        name = f"{folder}/result.json"  # all methods are more than a pipe holds, which is read at the end
        code, _, err = run_program(BENCH, "--json", name, *short(repetitions), *options, bound_s=3 * BOUND_S)
        assert code == 0 and not err, f"exit code {code}; stderr: {err}"
        return json.loads(Path(name).read_text())


def sinks() -> list[dict[str, Any]]:
    return [row for row in listing()["methods"] if not row["kernel_dispatches"]]


class Result(unittest.TestCase):
    def test_every_method_with_a_sink_has_its_rows_or_its_reason(self) -> None:
        # Once: what is made of several repetitions does not depend on the method (the next test).
        result = run_bench("--batch", "1,64", repetitions=1)
        self.assertEqual(result["schema"], "c10k-handoff-bench/1")
        self.assertEqual(result["seed"], 7)
        self.assertFalse(result["interrupted"])
        for key in ("kernel", "cpu_model", "cores", "rlimit_nofile", "build_type", "revision", "flags"):
            self.assertIn(key, result["host"])
        subjects = {row["name"]: row for row in result["subjects"]}
        self.assertEqual({row["name"] for row in sinks()} | FLOORS, set(subjects))
        for name, subject in subjects.items():
            with self.subTest(name=name):
                streams = [row for row in result["streams"] if row["name"] == name]
                if not subject["available"]:
                    self.assertTrue(subject["reason"])
                    self.assertEqual(streams, [])
                    continue
                cells = {(row["pin"], row["batch"]) for row in streams}
                self.assertEqual(cells, {(pin, batch) for pin in ("one", "free") for batch in (1, 64)})
                self.check_streams(streams, repetitions=1)
                self.check_constants(name, subject, result)
                self.check_latencies(name, 2, result, repetitions=1)

    def check_streams(self, streams: list[dict[str, Any]], repetitions: int) -> None:
        for row in streams:
            self.assertEqual(row["failure"], "")
            self.assertEqual([sample["block"] for sample in row["samples"]], list(range(repetitions)))
            for sample in row["samples"]:
                self.assertEqual(sample["descriptors"], DESCRIPTORS)
                self.assertGreater(sample["wall_ns"], 0)
                self.assertGreater(sample["sender_cpu_ns"], 0)
            self.assertGreater(row["cpu_ns"]["median"], 0)
            self.assertLessEqual(row["cpu_ns"]["q1"], row["cpu_ns"]["q3"])
            if row["name"] == "dup-close":
                self.assertEqual(row["cpu_ratio_to_baseline"], {"median": 1, "low": 1, "high": 1})
            else:
                self.assertGreater(row["cpu_ratio_to_baseline"]["median"], 0)

    def check_constants(self, name: str, subject: dict[str, Any], result: dict[str, Any]) -> None:
        constants = [row for row in result["constants"] if row["name"] == name]
        self.assertEqual([row["batch"] for row in constants], [1, 64])
        for row in constants:
            self.assertEqual(row["failure"], "")
            self.assertGreaterEqual(row["calls"]["descriptors"], 1)
            self.assertTrue(row["calls"]["sender_per_descriptor"])
            if subject["kind"] == "method":
                self.assertIn(row["in_flight"]["state"], ("full", "starved"))
                self.assertGreater(row["in_flight"]["descriptors"], 0)

    def check_latencies(self, name: str, pins: int, result: dict[str, Any], repetitions: int) -> None:
        latencies = [row for row in result["latencies"] if row["name"] == name]
        self.assertEqual(len(latencies), 0 if name.startswith("dup-close") else pins)
        for row in latencies:
            self.assertEqual(row["failure"], "")
            self.assertEqual(len(row["p50_samples_ns"]), repetitions)
            self.assertGreater(row["p50_ns"]["median"], 0)
            self.assertLessEqual(row["p50_ns"]["median"], row["p99_ns"]["median"])

    def test_system_calls_are_those_that_list_claims(self) -> None:
        """The claims are written for people; what is tested stands here beside the start of each."""
        claims = {
            "scm-stream": ("acceptor 1/batch (sendmsg), worker 1/batch (recvmsg)", "sendmsg", "recvmsg"),
            "shared-table": ("acceptor 1 (dup), worker 0", "fcntl", None),
            "pidfd-ring": ("acceptor 0, worker 1 (pidfd_getfd)", None, "pidfd_getfd"),
        }
        listed = {row["name"]: row for row in sinks()}
        chosen = [name for name in claims if listed[name]["available"]]
        result = run_bench("--methods", ",".join(chosen), "--batch", "1,64", "--pin", "one")
        self.check_streams(result["streams"], repetitions=2)
        for name in {*chosen, *FLOORS}:
            self.check_latencies(name, 1, result, repetitions=2)
        for row in result["constants"]:
            if row["name"] not in claims:
                continue
            with self.subTest(name=row["name"], batch=row["batch"]):
                claim, sends, receives = claims[row["name"]]
                self.assertTrue(listed[row["name"]]["syscalls"].startswith(claim), listed[row["name"]]["syscalls"])
                sender = dict(row["calls"]["sender_per_descriptor"])
                receiver = dict(row["calls"]["receiver_per_descriptor"])
                each = 1 / row["batch"] if sends == "sendmsg" else 1
                wake_up = 4 / row["calls"]["descriptors"]  # once in the run: a write, a read, the waits
                if sends:
                    self.assertAlmostEqual(sender.pop(sends), each, delta=1e-9)
                if receives:
                    self.assertAlmostEqual(receiver.pop(receives), each, delta=wake_up)
                self.assertAlmostEqual(receiver.pop("close"), 1, delta=wake_up)
                self.assertLessEqual(sum(sender.values()), wake_up, sender)
                self.assertLessEqual(sum(receiver.values()), wake_up, receiver)

    def test_what_is_consumed_is_made_ahead_and_bounded(self) -> None:
        """More than there are connections at once, and a limit that leaves room for a few hundred."""
        if not next(row["available"] for row in sinks() if row["name"] == "tcp-repair"):
            self.skipTest("no tcp-repair here")
        for limit, descriptors in (("$(ulimit -H -n)", 2500), ("600", 400)):
            command = f"ulimit -n {limit}; exec {BENCH} --methods tcp-repair --batch 64 --pin one --repetitions 1"
            command += f" --descriptors {descriptors} --latencies 20 --json -"
            with self.subTest(limit=limit):
                code, out, err = run_program("sh", "-c", command, bound_s=2 * BOUND_S)
                self.assertEqual((code, err), (0, ""))
                result = json.loads(out)
                row = next(row for row in result["streams"] if row["name"] == "tcp-repair")
                self.assertEqual((row["failure"], [one["descriptors"] for one in row["samples"]]), ("", [descriptors]))
                for row in result["latencies"] + result["constants"]:
                    self.assertEqual((row["name"], row["failure"]), (row["name"], ""))

    def test_table(self) -> None:
        what = ("--methods", "shared-table", "--batch", "16")
        code, out, err = run_program(BENCH, *short(2), *what, bound_s=2 * BOUND_S)
        self.assertEqual((code, err), (0, ""))
        for name in FLOORS | {"shared-table"}:
            self.assertRegex(out, rf"(?m)^{name} ")
        self.assertLessEqual(max(map(len, out.splitlines())), 80)

    def test_descriptors_do_not_leak(self) -> None:
        """Hundreds of cells at a limit that leaves less than one descriptor for each."""
        command = f"ulimit -n 1200; exec {BENCH} --repetitions 25 --descriptors 20 --latencies 1"
        command += " --batch 16 --pin one --methods shared-table,scm-stream,pidfd-ring --json"
        with tempfile.TemporaryDirectory(prefix="c10k-test-") as folder:
            code, _, err = run_program("sh", "-c", f"{command} {folder}/result.json", bound_s=3 * BOUND_S)
            self.assertEqual((code, err), (0, ""))
            result = json.loads(Path(folder, "result.json").read_text())
        cells = 0
        for row in result["streams"]:
            self.assertEqual((row["name"], row["failure"]), (row["name"], ""))
            cells += len(row["samples"])
        self.assertGreater(cells, 1200 - 1024)

    def test_interrupted_it_reports_what_there_is(self) -> None:
        with support.Program([BENCH, "--json", "-", "--repetitions", "1000", "--methods", "scm-stream"]) as bench:
            support.wait_until(lambda: len(bench.group()) > 1, "it measures")
            bench.signal(15)
            code, out, err = bench.wait()
        self.assertEqual((code, err), (0, ""))
        self.assertTrue(json.loads(out)["interrupted"])


class Usage(unittest.TestCase):
    def test_bad_usage(self) -> None:
        for options, says in [
            (("--no-such-option",), "no-such-option"),
            (("stray",), "argument"),
            (("--methods", "pigeon"), "pigeon.*scm-stream"),
            (("--methods", "scm-stream,"), "empty"),
            (("--methods", "scm-stream,scm-stream"), "twice"),
            (("--methods", "reuseport"), "reuseport has no sink.*scm-stream"),
            (("--batch", "0"), "--batch.*1 to 253"),
            (("--batch", "254"), "--batch.*1 to 253"),
            (("--batch", "1,,2"), "--batch"),
            (("--pin", "two"), "--pin.*one, free, both"),
            (("--duration", "0"), "--duration"),
            (("--descriptors", "0"), "--descriptors"),
            (("--duration", "1", "--descriptors", "5"), "--descriptors.*--duration"),
            (("--repetitions", "0"), "--repetitions"),
            (("--latencies", "4097"), "--latencies"),
            (("--seed", "-1"), "--seed"),
            (("--baseline", "nothing"), "--baseline.*dup-close"),
            (("--json", ""), "--json"),
            (("--json", "/no/such/folder/x"), "--json.*No such file"),
        ]:
            with self.subTest(options=options):
                code, out, err = run_program(BENCH, *options)
                self.assertEqual((code, out), (2, ""), err)
                self.assertRegex(err, rf"\Ahandoff-bench: .*{says}.*\n\Z")

    def test_help_and_version(self) -> None:
        code, out, err = run_program(BENCH, "--help")
        self.assertEqual((code, err), (0, ""))
        for option in ("methods", "batch", "pin", "duration", "descriptors", "repetitions", "seed", "json", "check"):
            self.assertIn(f"--{option}", out)
        self.assertLessEqual(max(map(len, out.splitlines())), 80)
        code, out, _ = run_program(BENCH, "--version")
        self.assertEqual(code, 0)
        self.assertRegex(out, r"\Ahandoff-bench \d+\.\d+\.\d+\n\Z")

    def test_check_says_what_each_target_came_to(self) -> None:
        """Whether they are met depends on the machine; that the exit code follows from them does not."""
        with tempfile.TemporaryDirectory(prefix="c10k-test-") as folder:
            name = f"{folder}/result.json"
            code, out, err = run_program(BENCH, "--check", *short(2), "--json", name, bound_s=2 * BOUND_S)
            targets = json.loads(Path(name).read_text())["targets"]
        self.assertGreaterEqual(len(targets), 7)
        self.assertTrue(any(row["text"].startswith("uring-msg by 64: at most 0.5 x scm-seqpacket") for row in targets))
        missed = [row["text"] for row in targets if row["outcome"] == "missed"]
        self.assertEqual(code, 1 if missed else 0)
        self.assertEqual(err, f"handoff-bench: missed: {' | '.join(missed)}\n" if missed else "")
        for row in targets:
            self.assertIn(row["text"], out)


if __name__ == "__main__":
    unittest.main()
