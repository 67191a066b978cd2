"""Tests of the ladder of held connections: what it reckons before it starts, and a small one with the real
programs. How to run one class:

  cd tests; C10K_BIN_DIR=../build/release /usr/bin/python3 -m unittest -v test_ladder.Arithmetic"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import unittest
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))

from matrix import held, plan, rows, spec, store, table  # noqa: E402
from matrix.plan import Machine  # noqa: E402
from matrix.process import Child, Waiter  # noqa: E402
from process_support import BIN_DIR, BOUND_S, ROOT  # noqa: E402

GIB = 1 << 30
MACHINE = Machine(descriptors=20_000, files=2_400_000, memory_bytes=22 * GIB, ports=28_232, tracked=None)

MATRIX = """
schema = "c10k-matrix/1"
summary = "for tests"
repetitions = 1
baseline = "scm-seqpacket"
[server]
strategies = ["epoll"]
methods = ["scm-seqpacket", "reuseport", "inherited-listener"]
"""
STEP = """
[[workload]]
name = "{held}"
kind = "hold"
held = {held}
summary = "{held} held"
client = ["--engine", "epoll", "--active", "10", "--requests", "200", "--duration", "10", "--idle", "0.3"]
limit_s = 30
expected_s = 1
"""


class Arithmetic(unittest.TestCase):
    def test_no_process_gets_more_than_its_limit(self) -> None:
        for descriptors in (256, 1024, 20_000, 1_048_576):
            machine = replace(MACHINE, descriptors=descriptors)
            for connections in (1, 1000, 100_000, 1_000_000):
                made = plan.make(connections, True, machine)
                with self.subTest(descriptors=descriptors, connections=connections, made=made):
                    mean = connections / made.workers
                    self.assertLessEqual(mean + plan.DEVIATIONS * mean**0.5, descriptors - plan.SERVER_OWN)
                    each = -(-connections // made.processes)
                    self.assertLessEqual(each, descriptors - plan.CLIENT_OWN)
                    if made.workers > plan.LEAST_WORKERS:  # and there is not one worker too many
                        more = connections / (made.workers - 1)
                        self.assertGreater(more + plan.DEVIATIONS * more**0.5, descriptors - plan.SERVER_OWN)

    def test_a_million_fits_into_this_kind_of_machine(self) -> None:
        made = plan.make(1_000_000, True, MACHINE)
        self.assertEqual(made.refusal, "")
        self.assertEqual((made.workers, made.processes, made.sources), (53, 51, 250))
        self.assertIn("53", made.server_options())
        self.assertEqual(made.client_options(1_000_000)[:4], ("--connections", "1000000", "--processes", "51"))

    def refusal(self, connections: int, pool: bool = True, **limits: int) -> str:
        return plan.make(connections, pool, replace(MACHINE, **limits)).refusal

    def test_one_process_is_refused_what_a_pool_is_not(self) -> None:
        self.assertEqual(plan.make(19_000, False, MACHINE), plan.Plan(0, 1, 5))
        self.assertNotIn("--workers", plan.make(19_000, False, MACHINE).server_options())
        self.assertEqual(
            self.refusal(100_000, pool=False),
            "one process holds up to 19,968 connections (RLIMIT_NOFILE 20,000), and these are 100,000",
        )
        self.assertEqual(self.refusal(100_000), "")

    def test_each_limit_refuses_with_its_arithmetic(self) -> None:
        for limits, said in [
            ({"files": 2_000_000}, "needs 2,004,960 open files (2 for each connection), and fs.file-max leaves 2,000,000"),
            (
                {"memory_bytes": 8 * GIB},
                "needs 12.7 GiB (1,000,000 x 11,000 B + 104 processes x 4 MiB + 2.0 GiB to spare), and MemAvailable "
                "is 8.0 GiB",
            ),
            (
                {"ports": 7000},
                "needs 1,000,000 ports, and 254 addresses have 889,000 (50% of 7,000 each; beyond that connect gets "
                "slow)",
            ),
            ({"tracked": 262_144}, "needs 1,000,000 tracked connections, and nf_conntrack_max leaves 262,144"),
            ({"descriptors": 40}, "RLIMIT_NOFILE is 40, and a process needs more for itself"),
        ]:
            with self.subTest(limits=limits):
                self.assertEqual(self.refusal(1_000_000, **limits), said)

    def test_just_enough_is_enough(self) -> None:
        memory = 1_000_000 * plan.BYTES_PER_CONNECTION + 104 * plan.BYTES_PER_PROCESS + plan.BYTES_TO_SPARE
        self.assertEqual(self.refusal(1_000_000, memory_bytes=memory), "")
        self.assertIn("MemAvailable", self.refusal(1_000_000, memory_bytes=memory - 1))

    def test_this_machine_can_be_read(self) -> None:
        here = Machine.here()
        self.assertEqual(plan.make(100, True, here).refusal, "")

    def test_steps_are_climbed_from_below(self) -> None:
        steps = [cell.workload.held for cell in spec.cells(spec.load("ladder"), 7)]
        self.assertEqual(steps, sorted(steps))
        self.assertEqual(max(steps), 1_000_000)


class Climbing(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="c10k-test-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def climb(self, *steps: int) -> tuple[str, dict[tuple[str, str], rows.Row], list[dict]]:
        (self.folder / "small.toml").write_text(MATRIX + "".join(STEP.format(held=step) for step in steps))
        command = [str(ROOT / "experiments" / "run_matrix"), str(self.folder / "small.toml"), "--bin-dir", str(BIN_DIR),
                   "--output", str(self.folder / "run")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=3 * BOUND_S, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        run = store.load(self.folder / "run")
        found = {(row.workload, row.way): row for section in rows.sections(run) for row in section.rows}
        return done.stdout, found, run.cells

    def test_a_small_ladder(self) -> None:
        too_many = 10**9
        shown, found, cells = self.climb(100, 1000, too_many)
        for line in shown.splitlines():
            if not line.startswith("Data: "):
                self.assertLessEqual(len(line), table.WIDTH, line)
        for (step, way), row in found.items():
            with self.subTest(step=step, way=way):
                if int(step) == too_many:
                    self.assertEqual(row.status, "not run")
                    self.assertRegex(row.reason, "^(needs [0-9,]+ open files|one process holds up to) ")
                    continue
                self.assertEqual((row.status, row.faults), ("ok", 0))
                self.assertEqual(row.server_processes, 1 if way == "epoll" else 3)
                # A connection's object alone has a hundred; a process's own megabytes do not count.
                self.assertTrue(50 < (row.server_bytes or 0) < 5000, row.server_bytes)
                self.assertGreater(row.client_bytes or 0, 50)
                assert row.server_idle_cpu_us_per_s is not None
                self.assertLess(row.server_idle_cpu_us_per_s, 100_000, "nobody speaks")
        for cell in cells:
            if cell["status"] == "ok":
                wanted = int(cell["workload"])
                self.assertGreaterEqual(cell["held"]["kernel"]["sockets"]["held"]["inuse"], 2 * wanted)
                # Each twice, and those of the active phase.
                self.assertGreaterEqual(cell["client"]["outcomes"]["echoed"], 2 * wanted + 100)
                self.assertEqual(cell["server"]["books"]["served"], wanted)
        self.assertIn("not run: one process holds up to", shown)
        inspect = [str(ROOT / "experiments" / "inspect"), str(self.folder / "run")]
        again = subprocess.run(inspect, capture_output=True, text=True, timeout=BOUND_S, check=True)
        printed = shown.rsplit("Report: ", 1)[0]
        self.assertTrue(again.stdout.endswith(printed), again.stdout)  # below the bars

    def test_it_ends_before_memory_does(self) -> None:
        left = iter([2 * GIB, 2 * GIB, held.FLOOR_BYTES - 1])
        script = ["/bin/sh", "-c", "echo 'phase connect' >&2; exec sleep 600"]
        with (
            Waiter() as waiter,
            Child(["/bin/sleep", "600"], self.folder, "server") as server,
            Child(script, self.folder, "client", pipe_stderr=True) as client,
        ):
            watch = held.Watch(server, waiter, 1.0)
            with self.assertRaisesRegex(held.OutOfMemory, "MemAvailable fell to 1.0 GiB"):
                watch.follow(client, float("inf"), available=lambda: next(left))
            self.assertIsNone(watch.record)
            self.assertEqual(client.last_words(), "phase connect")


if __name__ == "__main__":
    unittest.main()
