"""Tests of what experiments/inspect chooses, ranks and compares: /usr/bin/python3 -m unittest tests/test_inspect.py

They look at small runs that are made up here, so that every figure is known."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import unittest
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import made_up_runs  # noqa: E402
from matrix_support import BOUND_S, ROOT, OneLine, run_inside  # noqa: E402
from matrix import inspect_cli, rows, spec, store  # noqa: E402

REPETITIONS = 5
MATRIX = """
schema = "c10k-matrix/1"
summary = "made up"
repetitions = 5
baseline = "epoll"
[server]
strategies = ["epoll", "fork"]
methods = ["scm-stream", "reuseport:steer=hash"]
workers = 2
[[server.way]]
name = "scm-stream, uring"
argv = ["--strategy", "pool", "--ipc", "scm-stream", "--workers", "4", "--loop", "uring"]
[[workload]]
name = "crr"
kind = "crr"
summary = "connect, one echo, close"
client = ["--connections", "64"]
limit_s = 20
expected_s = 0.1
[[workload]]
name = "rr"
kind = "rr"
summary = "ping-pong"
client = ["--connections", "16"]
limit_s = 20
expected_s = 0.1
"""
# Of the baseline's: the rate, and CPU per connection or request.
FACTORS = {"epoll": (1.0, 1.0), "fork": (0.1, 10.0), "scm-stream": (0.9, 1.5), "reuseport:steer=hash": (1.01, 1.02),
           "scm-stream, uring": (0.8, 1.4)}
WOBBLE = (0.97, 1.02, 1.0, 0.99, 1.03)  # of a repetition; the ways differ in theirs by a shift


def cell(way: spec.Way, load: spec.Workload, repetition: int, faster: float) -> dict[str, Any]:
    rate, cpu = FACTORS[way.name]
    noise = WOBBLE[(repetition + 2 * list(FACTORS).index(way.name)) % 5]
    per_s = 20000.0 * rate * noise * faster
    totals = {"accepted": 1000, "echoes": 1000, "acceptor_cpu_us": 10000.0 * cpu / noise,
              "worker_cpu_us": 20000.0 * cpu, "voluntary_switches": 2000 * cpu, "involuntary_switches": 500, "errors": {}}
    latency = {f"{key}_us": 100.0 * (index + 1) for index, key in enumerate(("p50", "p90", "p99", "p99_9", "max"))}
    return made_up_runs.cell(
        way, load, repetition,
        client={"attempts": 1000, "outcomes": {"echoed": 1000}, "connections_per_s": per_s,
                "requests_per_s": 5 * per_s, "latency": latency, "client": {"cpu_share": 0.5}},
        server={"totals": totals, "books": {"balanced": True, "lost": 0}},
    )


class Case(OneLine):
    folder: Path

    @classmethod
    def setUpClass(cls) -> None:
        folder = tempfile.TemporaryDirectory(prefix="c10k-test-")
        cls.addClassCleanup(folder.cleanup)
        cls.folder = Path(folder.name)
        (cls.folder / "made-up.toml").write_text(MATRIX)
        cls.write("run")

    @classmethod
    def write(cls, name: str, faster: float = 1.0, cores: int = 2, drop: str = "") -> Path:
        matrix = spec.load(str(cls.folder / "made-up.toml"))
        made = made_up_runs.run(matrix, lambda way, load, repetition: cell(way, load, repetition, faster))
        made.meta["host"]["cores"] = cores
        made.cells = [one for one in made.cells if one["way"] != drop]
        return made_up_runs.write(made, cls.folder / name)

    def start(self, *arguments: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        """The program; call() does all that it does but the start."""
        done = subprocess.run(
            [str(ROOT / "experiments" / "inspect"), *arguments], env={**os.environ, **environment},
            capture_output=True, encoding="utf-8", errors="replace", timeout=BOUND_S, check=False,
        )
        self.assertEqual(done.returncode, code, done.stderr)
        return done

    def call(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = run_inside(inspect_cli.main, *arguments)
        self.assertEqual(done.returncode, code, done.stderr)
        return done

    def inspect(self, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
        return self.call(str(self.folder / "run"), *arguments, **more)

    def records(self, *arguments: str) -> list[dict[str, Any]]:
        return json.loads(self.inspect("--json", *arguments).stdout)["rows"]


class Rows(Case):
    def row(self, workload: str, way: str) -> rows.Row:
        found = rows.sections(store.load(self.folder / "run"))
        return next(row for section in found for row in section.rows if (row.workload, row.way) == (workload, way))

    def test_a_row_knows_its_axes(self) -> None:
        row = self.row("rr", "scm-stream, uring")
        self.assertEqual((row.strategy, row.method, row.loop, row.workers, row.connections, row.kind),
                         ("pool", "scm-stream", "uring", 4, 16, "rr"))
        row = self.row("crr", "epoll")
        self.assertEqual((row.strategy, row.method, row.loop, row.workers, row.connections),
                         ("epoll", "", "epoll", None, 64))

    def test_rate_and_cpu_are_compared_by_themselves(self) -> None:
        row = self.row("crr", "scm-stream")
        assert row.ratio and row.ratio_interval and row.cpu_ratio and row.cpu_ratio_interval
        self.assertAlmostEqual(row.ratio, 0.9, delta=0.02)
        self.assertTrue(row.ratio_interval[0] < 0.9 < row.ratio_interval[1])
        self.assertAlmostEqual(row.cpu_ratio, 1.5, delta=0.03)
        self.assertEqual((row.difference, row.cpu_difference), ("seen", "seen"))
        self.assertEqual(self.row("crr", "reuseport:steer=hash").difference, "none")
        self.assertEqual(self.row("crr", "epoll").difference, "base")

    def test_switches_and_latency_are_per_unit(self) -> None:
        row = self.row("crr", "scm-stream")
        self.assertEqual((row.voluntary_switches, row.involuntary_switches), (3.0, 0.5))
        self.assertEqual((row.latency_p50_us, row.latency_p90_us, row.latency_p99_us, row.latency_p99_9_us,
                          row.latency_max_us), (100, 200, 300, 400, 500))

    def test_fewer_than_three_repetitions_cannot_tell(self) -> None:
        run = store.load(self.folder / "run")
        run.cells = [one for one in run.cells if one["repetition"] < 3]
        found = {row.difference for section in rows.sections(run) for row in section.rows}
        self.assertEqual(found, {"base", "unknown"})


class Views(Case):
    def test_the_default_is_ranked_bars_and_the_table(self) -> None:
        shown = self.start(str(self.folder / "run")).stdout
        bars, table = shown.split("Best first")
        order = ["reuseport:steer=hash", "epoll", "scm-stream", "scm-stream, uring", "fork"]
        drawn = [line for line in bars.split("rr, requests/s")[0].splitlines() if "█" in line]
        self.assertEqual([line.split("  ")[0] for line in drawn], order)
        lengths = [line.count("█") + line.count("▓") for line in drawn]
        self.assertEqual(lengths, sorted(lengths, reverse=True))
        self.assertIn("CPU a+w", table)
        for line in shown.splitlines():
            if not line.startswith("Data: "):
                self.assertLessEqual(len(line), 80, line)

    def test_a_terminal_without_blocks_gets_plain_bars(self) -> None:
        shown = self.start(str(self.folder / "run"), "--metric", "rate", PYTHONIOENCODING="iso-8859-1").stdout
        self.assertNotIn("█", shown)
        self.assertRegex(shown, r"epoll .* base +#+=")

    def test_a_metric_ranks_the_least_first(self) -> None:
        shown = self.inspect("--metric", "cpu", "--where", "workload=crr").stdout
        self.assertIn("server CPU, us/conn", shown)
        self.assertNotIn("faults", shown)
        names = [row["way"] for row in self.records("--metric", "cpu", "--where", "workload=crr")]
        self.assertEqual(names, ["epoll", "reuseport:steer=hash", "scm-stream, uring", "scm-stream", "fork"])

    def test_every_metric_has_a_figure(self) -> None:
        for metric, value in (("acceptor-cpu", 10), ("worker-cpu", 20), ("switches", 2.5), ("p50", 100), ("p90", 200),
                              ("p99", 300), ("p99.9", 400), ("max", 500)):
            found = self.records("--metric", metric, "--where", "way=epoll", "--where", "workload=crr")
            self.assertEqual(len(found), 1)
            self.assertAlmostEqual(found[0]["median"], value, delta=value * 0.04, msg=metric)

    def test_rows_are_grouped_by_an_axis(self) -> None:
        shown = self.inspect("--by", "loop", "--where", "strategy=pool").stdout
        self.assertRegex(shown, r"(?s)loop epoll, .*loop uring, ")
        self.assertEqual([row["workers"] for row in self.records("--by", "workers", "--where", "strategy=pool")],
                         [2, 2, 2, 2, 4, 4])
        shown = self.inspect("--by", "way", "--where", "way=fork").stdout
        self.assertRegex(shown, r"(?m)^crr .*\n^rr ")

    def test_conditions_all_hold(self) -> None:
        found = self.records("--where", "way=scm*", "--where", "connections=16")
        self.assertEqual([(row["way"], row["workload"]) for row in found],
                         [("scm-stream", "rr"), ("scm-stream, uring", "rr")])

    def test_another_baseline_has_the_ratio_of_one(self) -> None:
        found = {row["way"]: row for row in self.records("--baseline", "scm-stream", "--where", "workload=crr")}
        self.assertEqual(found["scm-stream"]["difference"], "base")
        self.assertAlmostEqual(found["epoll"]["ratio"], 1 / 0.9, delta=0.03)
        self.assertIn("ratio to scm-stream", self.inspect("--baseline", "scm-stream", "--markdown").stdout)

    def test_the_forms_agree(self) -> None:
        arguments = ("--metric", "rate", "--by", "strategy", "--where", "workload=rr")
        found = self.records(*arguments)
        as_csv = list(csv.DictReader(io.StringIO(self.inspect("--csv", *arguments).stdout)))
        self.assertEqual([row["way"] for row in as_csv], [row["way"] for row in found])
        self.assertEqual(float(as_csv[0]["median"]), found[0]["median"])
        shown = self.inspect("--markdown", *arguments).stdout
        places = [shown.index(f"| `{row['way']}` |") for row in found]
        self.assertEqual(places, sorted(places))
        self.assertNotIn("█", shown)

    def test_a_large_table_comes_at_once(self) -> None:
        """30 ways x 5 workloads at 60 repetitions; generous, as the machine may be busy."""
        run = store.load(self.folder / "run")
        matrix = spec.Matrix.from_json(run.meta["matrix"])
        ways = tuple(replace(matrix.ways[0], name=f"way {index}") for index in range(30))
        loads = tuple(replace(matrix.workloads[0], name=f"load {index}") for index in range(5))
        run.meta["matrix"] = replace(matrix, ways=ways, workloads=loads, baseline="way 0", repetitions=60).to_json()
        template, chance = run.cells[0], random.Random(1)
        run.cells = []
        for way, load, repetition in itertools.product(ways, loads, range(1, 61)):
            totals = {**template["server"]["totals"], "worker_cpu_us": 20000 * chance.lognormvariate(0, 0.1)}
            run.cells.append({
                **template, "way": way.name, "workload": load.name, "repetition": repetition,
                "client": {**template["client"], "connections_per_s": 20000 * chance.lognormvariate(0, 0.1)},
                "server": {**template["server"], "totals": totals},
            })
        began = time.process_time()
        rows.sections(run)
        self.assertLess(time.process_time() - began, 6)


class Comparing(Case):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.write("faster", faster=1.2, cores=8, drop="fork")

    def compare(self, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
        return self.call("--compare", str(self.folder / "run"), str(self.folder / "faster"), *arguments, **more)

    def test_the_ratio_of_two_runs_has_an_interval(self) -> None:
        found = {(row["way"], row["metric"]): row for row in json.loads(self.compare(
            "--json", "--where", "workload=crr").stdout)["rows"]}
        rate, cpu = found["scm-stream", "rate"], found["scm-stream", "cpu"]
        self.assertTrue(rate["ratio_interval"][0] < 1.2 < rate["ratio_interval"][1], rate)
        self.assertEqual((rate["difference"], cpu["difference"]), ("seen", "none"))
        self.assertEqual(found["fork", "rate"]["difference"], "unknown")

    def test_it_says_how_hosts_builds_and_matrices_differ(self) -> None:
        shown = " ".join(self.compare().stdout.split())
        self.assertIn("Hosts (A | B): cores 2 | 8.", shown)
        self.assertIn("The programs are the same files.", shown)
        self.assertIn("Matrices: the same.", shown)
        for line in self.compare().stdout.splitlines():
            self.assertLessEqual(len(line), 80, line)

    def test_a_metric_narrows_it(self) -> None:
        found = list(csv.DictReader(io.StringIO(self.compare("--csv", "--metric", "p99").stdout)))
        self.assertEqual({row["metric"] for row in found}, {"p99"})
        self.assertIn("| `epoll` | 300 | 300 | 1.00~", self.compare("--markdown", "--metric", "p99").stdout)

    def test_nothing_in_common_is_one_line(self) -> None:
        other = str(ROOT / "experiments" / "reference" / "held")
        self.assert_one_line(self.call("--compare", str(self.folder / "run"), other, code=2), "in common")


class Usage(Case):
    def test_bad_usage_is_one_line_that_says_what_is_allowed(self) -> None:
        for arguments, parts in (
            (("--metric", "speed"), ("'speed'", "p99.9")),
            (("--by", "colour"), ("'colour'", "strategy")),
            (("--where", "way"), ("'way'", "KEY=GLOB")),
            (("--where", "colour=red"), ("'colour=red'", "strategy")),
            (("--where", "way=zz*"), ("way=zz*", "scm-stream, uring")),
            (("--where", "way=fork", "--where", "loop=uring"), ("no row meets them all",)),
            (("--baseline", "zz"), ("'zz'", "scm-stream, uring")),
            (("--record", "there", "--metric", "cpu"), ("--record", "--metric")),
            (("--compare", "a", "b"), ("--compare", "run")),
        ):
            with self.subTest(arguments=arguments):
                self.assert_one_line(self.inspect(*arguments, code=2), *parts)
        self.assert_one_line(self.start("--compare", "a", "b", "--baseline", "c", code=2), "--baseline")
        self.assert_one_line(self.call("--compare", str(self.folder / "run"), "nowhere", code=1), "nowhere")


if __name__ == "__main__":
    unittest.main()
