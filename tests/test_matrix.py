"""Tests of experiments/matrix: /usr/bin/python3 -m unittest tests/test_matrix.py

They run experiments/run_matrix and experiments/inspect against a fake server and client, small scripts
that a temporary folder holds."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
import re
import select
import signal
import subprocess
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from matrix_support import BOUND_S, ROOT, Case  # noqa: E402
from matrix import stats, store, table  # noqa: E402

class Statistics(unittest.TestCase):
    def test_ratios_pair_within_a_repetition(self) -> None:
        # The second repetition was twice as slow for both: no difference.
        self.assertEqual(stats.paired_ratios({1: 50.0, 2: 25.0}, {1: 100.0, 2: 50.0}), [0.5, 0.5])
        self.assertEqual(stats.paired_ratios({1: 50.0, 3: 1.0}, {1: 100.0, 2: 50.0}), [0.5])

    def test_more_repetitions_see_smaller_differences(self) -> None:
        chance = random.Random(1)
        ways = [[chance.lognormvariate(0, 0.1) for _ in range(60)] for _ in range(20)]
        estimates = [[stats.estimate(ratios[:count]) for ratios in ways] for count in (3, 5, 15, 60)]
        seen = [stats.unseen_below([found.interval for found in each if found], count)
                for each, count in zip(estimates, (3, 5, 15, 60))]
        assert None not in seen
        self.assertEqual(seen, sorted(seen, reverse=True))
        self.assertIsNone(stats.unseen_below([None], 3))

    def test_too_few_repetitions_cannot_tell(self) -> None:
        for ratios in ([], [0.1], [0.1, 0.1]):
            self.assertEqual(stats.difference(stats.estimate(ratios)), "unknown")
        self.assertEqual(stats.difference(stats.estimate([0.1, 0.11, 0.12])), "seen")
        self.assertEqual(stats.difference(stats.estimate([1.0, 1.0, 1.0])), "none")


class Running(Case):
    def test_every_cell_is_recorded_and_shown_within_80_columns(self) -> None:
        shown = self.call(self.fresh("--seed", "5")).stdout
        self.assertEqual([cell["status"] for cell in self.cells()], ["ok"] * 16)
        self.assertNotIn("\x1b", shown)
        for line in shown.splitlines():
            if not line.startswith("Data: "):  # a path for copying is not wrapped
                self.assertLessEqual(len(line), table.WIDTH, line)
        self.assertIn("1.00 base", shown)
        self.assertIn("99.9+99.9", shown)

    def test_a_crashed_server_is_a_row_with_its_last_words(self) -> None:
        (self.folder / "crash-select").touch()
        shown = self.inside(self.fresh("--repetitions", "1"), code=1).stdout
        row = self.rows()["crr", "select"]
        self.assertEqual((row.status, row.repetitions), ("failed", 0))
        self.assertIn("exit code 1: the fake server fell over", row.reason)
        self.assertEqual(self.rows()["crr", "epoll"].status, "ok")
        for line in shown.splitlines():
            if not line.startswith("Data: "):
                self.assertLessEqual(len(line), table.WIDTH, line)
        self.assertRegex(shown, r"select +failed: server exit code 1: the fake server f")

    def test_missing_programs_are_rows(self) -> None:
        (self.folder / "c10k-client").unlink()
        self.inside(self.fresh("--only", "epoll"), code=1)
        self.assertIn("c10k-client", self.cells()[0]["reason"])

    def test_an_unsupported_method_is_a_row_with_its_reason(self) -> None:
        (self.folder / "unsupported").touch()
        shown = self.inside(self.fresh("--repetitions", "1")).stdout
        row = self.rows()["hold", "scm-stream"]
        self.assertEqual((row.status, row.reason), ("unsupported", "no permission: errno 1"))
        self.assertRegex(shown, r"scm-stream +unsupported: no permission: errno 1")

    def test_fewer_connections_than_wanted_are_no_figure(self) -> None:
        client = (self.folder / "c10k-client").read_text()
        client = client.replace("$((held))", "$((held - 7))")
        (self.folder / "c10k-client").write_text(client.replace('"refused": 0', '"refused": 7'))
        self.inside(self.fresh("--only", "hold", "--only", "epoll"))
        row = self.rows()["hold", "epoll"]
        self.assertEqual((row.status, row.faults), ("failed", 14))
        self.assertEqual(row.reason, "connected 9,993 of 10,000: 7 refused")

    def test_resume_after_a_torn_line_ends_as_if_never_interrupted(self) -> None:
        self.inside(self.fresh("--seed", "5", "--repetitions", "1"))
        whole = [(cell["way"], cell["workload"], cell["repetition"], cell["order"]) for cell in self.cells()]
        data = (self.run_folder / "cells.jsonl").read_bytes().splitlines(keepends=True)
        (self.run_folder / "cells.jsonl").write_bytes(b"".join(data[:3]) + data[3][:40])
        self.assertIn("half a line", self.inspect().stdout)
        self.call(self.command("--resume", str(self.run_folder)))
        self.assertEqual(
            [(cell["way"], cell["workload"], cell["repetition"], cell["order"]) for cell in self.cells()], whole
        )
        self.assertEqual((self.run_folder / "cells.jsonl").read_bytes().splitlines(keepends=True)[:3], data[:3])

    def interrupt(self, number: int) -> tuple[subprocess.Popen[str], list[int]]:
        """Sends a signal to run_matrix while a client hangs; gives it and its children's pidfds."""
        os.mkfifo(self.folder / "hang")
        runner = subprocess.Popen(
            self.fresh(), env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.addCleanup(lambda: (runner.kill(), runner.communicate()))
        pids = [int(pid) for pid in (self.folder / "hang").read_text().split()]
        children = [os.pidfd_open(pid) for pid in pids]
        for child in children:
            self.addCleanup(os.close, child)
        runner.send_signal(number)
        return runner, children

    def assert_ended(self, children: list[int]) -> None:
        for child in children:
            self.assertTrue(select.select([child], [], [], BOUND_S)[0], "a child still runs")

    def test_sigterm_ends_the_children_and_prints_what_there_is(self) -> None:
        runner, children = self.interrupt(signal.SIGTERM)
        shown, errors = runner.communicate(timeout=BOUND_S)
        self.assertEqual(runner.returncode, 1)
        self.assertIn("--resume", errors)
        self.assertIn("interrupted: 0 of 16 cells", " ".join(shown.split()))
        self.assert_ended(children)

    def test_sigkill_leaves_no_child_behind(self) -> None:
        _, children = self.interrupt(signal.SIGKILL)
        self.assert_ended(children)


class Usage(Case):
    def test_bad_usage_is_one_line_that_says_what_is_allowed(self) -> None:
        self.assert_one_line(self.call(self.command("quik"), 2), "quik", "quick")
        self.assert_one_line(self.inside(self.command(), 2), "quick")
        self.assert_one_line(self.inside(self.fresh("--only", "nothing*"), 2), "nothing*", "scm-stream")
        self.assert_one_line(self.inside(self.fresh("--repetitions", "0"), 2), "'0'", "1 to 1000")
        self.assert_one_line(self.inside(self.command("quick", "--resume", "there"), 2), "--resume", "quick")
        inspect = [str(ROOT / "experiments" / "inspect"), str(self.run_folder), "--json", "--csv"]
        self.assert_one_line(self.call(inspect, 2), "--json", "--csv")


class Inspecting(Case):
    def setUp(self) -> None:
        super().setUp()
        self.record("--seed", "5")

    def test_check_notes_finds_a_difference(self) -> None:
        notes = self.folder / "NOTES.md"
        option = ("--notes", str(notes))
        self.assertIn("No such file", self.inspect("--check-notes", *option, code=1).stderr)
        notes.write_text("no marks\n")
        self.assertIn("table:test begin", self.inspect("--check-notes", *option, code=1).stderr)
        notes.write_text("before\n<!-- table:test begin -->\n<!-- table:test end -->\nafter\n")
        self.inspect("--check-notes", *option, code=1)
        self.inspect("--update-notes", *option)
        self.inspect("--check-notes", *option)
        written = notes.read_text()
        self.assertTrue(written.startswith("before\n") and written.endswith("\nafter\n"))
        notes.write_text(re.sub("123,457", "123,458", written, count=1))
        self.assertIn("differs", self.inspect("--check-notes", *option, code=1).stderr)

    def test_figures_within_the_text_of_the_notes(self) -> None:
        notes = self.folder / "N.md"
        option = ("--notes", str(notes))

        def write(mark: str) -> None:
            notes.write_text(f"<!-- table:test begin -->\n<!-- table:test end -->\nHere {mark} there.\n")
            self.inspect("--update-notes", *option)

        write("<!--test; crr; select; rate-->?<!--/-->")
        self.assertIn("Here <!--test; crr; select; rate-->123,457<!--/--> there.", notes.read_text())
        self.inspect("--check-notes", *option)
        notes.write_text(notes.read_text().replace("rate-->123,457", "rate-->123,459"))
        self.assertIn("rate-->123,457", self.inspect("--check-notes", *option, code=1).stderr)
        write("<!--test; crr; select / scm-stream; ratio95-->?<!--/-->")
        self.assertIn("ratio95-->1.00<!--/-->", notes.read_text())
        for wrong, says in (("test; crr; nobody; rate", "no crr of nobody"), ("test; crr; epoll; rat", "unknown figure"),
                            ("test; crr; epoll / nobody; ratio", "no crr of nobody"),
                            ("test; crr; epoll; feeds-cores", "has no such figure"),
                            ("test; xrr; epoll; rate", "no xrr")):
            notes.write_text(f"<!-- table:test begin -->\n<!-- table:test end -->\n<!--{wrong}-->?<!--/-->")
            self.assert_one_line(self.inspect("--check-notes", *option, code=1), says)
        # Against what is recorded in the tree no run may be unknown: not of a figure, a table or an image.
        recorded = next(path for path in sorted((ROOT / "experiments" / "reference").iterdir()) if path.is_dir())
        check = [str(ROOT / "experiments" / "inspect"), str(recorded), "--check-notes", *option]
        for orphan in ("<!--nobody; crr; epoll; rate-->1<!--/-->", "<!-- table:nobody begin -->",
                       "![x](experiments/reference/nobody/cpu-crr.svg)"):
            notes.write_text(orphan)
            self.assert_one_line(self.inside(check, 1), "nobody")

    def test_a_recorded_copy_shows_the_same_without_buckets(self) -> None:
        copy = self.folder / "copy"
        self.inspect("--record", str(copy))
        self.assertIn("buckets_ns", (self.run_folder / "cells.jsonl").read_text())
        packed = copy / store.COPY
        self.assertNotIn(b"buckets_ns", gzip.decompress(packed.read_bytes()))
        original, copied = (table.markdown(store.load(path)) for path in (self.run_folder, copy))
        self.assertEqual(original.rsplit("\n", 2)[0], copied.rsplit("\n", 2)[0])  # but for the path
        before = packed.read_bytes()
        self.inspect("--record", str(copy))
        self.assertEqual(packed.read_bytes(), before)
        # It is no run to go on with, and a damaged one is said to be so.
        self.assertIn("recorded copy", self.inside(self.command("--resume", str(copy)), 1).stderr)
        for damaged in (before[:-20], b"garbage", before[:40] + b"\xff" * 40 + before[80:]):
            packed.write_bytes(damaged)
            self.assert_one_line(self.inside([str(ROOT / "experiments" / "inspect"), str(copy)], 1), store.COPY)

    def test_rows_as_json_and_csv(self) -> None:
        found = json.loads(self.call([str(ROOT / "experiments" / "inspect"), str(self.run_folder), "--json"]).stdout)
        self.assertEqual(len(found["rows"]), 8)
        as_csv = list(csv.DictReader(io.StringIO(self.inspect("--csv").stdout)))
        self.assertEqual([row["way"] for row in as_csv], [row["way"] for row in found["rows"]])

    def test_the_picture_fetches_nothing(self) -> None:
        picture = self.folder / "table.svg"
        self.inspect("--svg", str(picture))
        text = picture.read_text()
        self.assertIn("scm-stream", text)
        self.assertNotRegex(text, r"@font-face|url\(\"?http|href=")


if __name__ == "__main__":
    unittest.main()
