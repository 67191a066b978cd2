"""Is the comparison to be trusted? /usr/bin/python3 -m unittest tests/test_calibration.py

It is held to what is known beforehand: simulated samples, and a recorded run in which four programs stand
twice under different names and once slowed by a tenth. That run is experiments/reference/calibration, made by

    experiments/run_matrix calibration --output RUN
    experiments/inspect RUN --record experiments/reference/calibration"""

from __future__ import annotations

import math
import random
import subprocess
import sys
import tempfile
import unittest
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "experiments"))

from matrix import calibration, spec, stats, store  # noqa: E402

REFERENCE = ROOT / "experiments" / "reference" / "calibration"
FULL = spec.load("full").repetitions  # of crr and rr
TRIES = 600
Noise = Callable[[random.Random], float]  # one cell, as a factor


def even(chance: random.Random) -> float:
    return chance.lognormvariate(0, 0.14)


def disturbed(chance: random.Random) -> float:
    """One cell in twenty is slowed by half again: what rates look like here."""
    return chance.lognormvariate(0, 0.07) * (1.5 if chance.random() < 0.05 else 1)


def skewed(chance: random.Random) -> float:
    return 1 + chance.expovariate(4)


class Estimator(unittest.TestCase):
    def verdicts(self, noise: Noise, repetitions: int, ratio: float = 1.0) -> list[str]:
        chance = random.Random(f"{noise.__name__}/{repetitions}")
        return [
            stats.difference(stats.estimate([ratio * noise(chance) / noise(chance) for _ in range(repetitions)]))
            for _ in range(TRIES if repetitions >= stats.BOOTSTRAP_FROM else 4 * TRIES)
        ]

    def test_equals_are_seldom_called_different(self) -> None:
        for noise in (even, disturbed, skewed):
            for repetitions in (3, 5, 14, 15, FULL):
                with self.subTest(noise=noise.__name__, repetitions=repetitions):
                    verdicts = self.verdicts(noise, repetitions)
                    self.assertLessEqual(verdicts.count("seen") / len(verdicts), 0.07)

    def test_two_repetitions_tell_nothing(self) -> None:
        self.assertEqual(set(self.verdicts(even, 2, ratio=9.0)), {"unknown"})

    def test_a_tenth_is_found_at_the_repetitions_of_full(self) -> None:
        self.assertGreaterEqual(self.verdicts(even, FULL, ratio=1.1).count("seen"), 0.9 * TRIES)

    def test_a_run_says_what_it_can_see(self) -> None:
        """Of differences as large as it says it finds nine of ten, give or take."""
        chance = random.Random(1)
        for repetitions in (3, 15, FULL):
            samples = [[even(chance) / even(chance) for _ in range(repetitions)] for _ in range(TRIES)]
            intervals = [found.interval for sample in samples if (found := stats.estimate(sample))]
            limit = stats.unseen_below(intervals, repetitions)
            assert limit
            found = [stats.difference(stats.estimate([(1 + limit) * value for value in sample])) for sample in samples]
            with self.subTest(repetitions=repetitions, limit=limit):
                self.assertTrue(0.85 <= found.count("seen") / TRIES <= 0.96, found.count("seen") / TRIES)

    def test_two_runs_are_compared_without_pairs(self) -> None:
        chance = random.Random(2)
        for first, second in ((3, 3), (5, 20), (15, 15), (FULL, FULL)):
            called = 0
            for _ in range(TRIES):
                a, b = ([even(chance) for _ in range(count)] for count in (first, second))
                called += stats.difference(stats.apart(b, a)) == "seen"
            with self.subTest(repetitions=(first, second)):
                self.assertLessEqual(called, 0.07 * TRIES)
        found = stats.apart([1.1 * even(chance) for _ in range(200)], [even(chance) for _ in range(200)])
        assert found and found.interval
        self.assertTrue(found.interval[0] < 1.1 < found.interval[1], found)

    def test_the_same_data_give_the_same_interval(self) -> None:
        values = [even(random.Random(index)) for index in range(FULL)]
        self.assertEqual(stats.estimate(values), stats.estimate(values[::-1]))

    def test_an_interval_does_not_depend_on_the_unit(self) -> None:
        values = [even(random.Random(index)) for index in range(FULL)]
        small, large = stats.estimate(values), stats.estimate([1000 * value for value in values])
        assert small and large and small.interval and large.interval
        self.assertAlmostEqual(large.interval[0] / small.interval[0], 1000, places=6)
        self.assertIsNone(stats.estimate([0.0, 1.0, 2.0]))


class Recorded(unittest.TestCase):
    recorded: store.Run
    pairs: calibration.Pairs
    samples: calibration.Samples

    @classmethod
    def setUpClass(cls) -> None:
        cls.recorded = store.load(REFERENCE)
        cls.pairs = calibration.pairs(spec.Matrix.from_json(cls.recorded.meta["matrix"]))
        cls.samples = calibration.sample(cls.recorded)

    def tried(self, pairs: list[tuple[str, str]], metric: str) -> calibration.Tries:
        tries = calibration.tried(self.samples, pairs, metric, FULL)
        self.assertGreaterEqual(tries.tries, 40)
        self.assertEqual(tries.untold, 0)
        return tries

    def test_full_repeats_so_often(self) -> None:
        matrix = spec.load("full")
        for load in matrix.workloads:
            if load.name in ("crr", "rr"):
                self.assertEqual(matrix.repetitions_of(load), FULL)

    def test_of_forty_equals_at_most_four_are_called_different(self) -> None:
        for metric in calibration.METRIC_NAMES:
            tries = self.tried(self.pairs.equal, metric)
            with self.subTest(metric=metric, tries=tries):
                self.assertLessEqual(tries.called / tries.tries, 4 / 40)

    def test_of_forty_that_are_slower_by_a_tenth_thirty_six_are_found(self) -> None:
        tries = self.tried(self.pairs.slower, "cpu")
        self.assertGreaterEqual(tries.called / tries.tries, 36 / 40, tries)

    def test_slower_is_a_tenth(self) -> None:
        """Were it more, finding it would prove less."""
        for base, way in self.pairs.slower:
            of_base, slowed = self.samples[base, "cpu"], self.samples[way, "cpu"]
            logs = [math.log(slowed[rep] / of_base[rep]) for rep in slowed.keys() & of_base.keys()]
            self.assertTrue(1.06 < math.exp(sum(logs) / len(logs)) < 1.14, way)

    def test_inspect_says_so(self) -> None:
        command = [str(ROOT / "experiments" / "inspect"), str(REFERENCE)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        equal, slower = (self.tried(pairs, "cpu") for pairs in (self.pairs.equal, self.pairs.slower))
        self.assertRegex(done.stdout, rf"(?m)^{FULL} +{equal.called} of {equal.tries} +{slower.called} of {slower.tries} ")

    def test_a_copy_of_the_copy_is_the_same(self) -> None:
        with tempfile.TemporaryDirectory(prefix="c10k-test-") as folder:
            calibration.record(self.recorded, Path(folder))
            copies = [(path / calibration.FILE).read_bytes() for path in (Path(folder), REFERENCE)]
        self.assertEqual(*copies)

    def test_a_damaged_copy_is_one_line(self) -> None:
        with tempfile.TemporaryDirectory(prefix="c10k-test-") as folder:
            calibration.record(self.recorded, Path(folder))
            lines = (Path(folder) / calibration.FILE).read_text().splitlines(keepends=True)
            (Path(folder) / calibration.FILE).write_text("".join(lines[:7]) + "garbage,x,y\n")
            command = [str(ROOT / "experiments" / "inspect"), folder]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
        self.assertIn("samples.csv line 8", done.stderr)


if __name__ == "__main__":
    unittest.main()
