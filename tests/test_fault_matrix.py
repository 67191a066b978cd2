"""Tests of the faults that a matrix makes happen, and of what it says that they cost. How to run one class:

  cd tests; C10K_BIN_DIR=../build/release /usr/bin/python3 -m unittest -v test_fault_matrix.Kinds"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from matrix_support import BOUND_S, ROOT, Case  # noqa: E402
from matrix import faults, losses, rows, spec, store  # noqa: E402
from matrix.fault_kinds import KINDS  # noqa: E402
from matrix.process import Child, Waiter  # noqa: E402
from matrix.serving import Serving  # noqa: E402
from process_support import BIN_DIR  # noqa: E402

LIST = """
schema = "c10k-matrix/1"
summary = "for tests"
repetitions = 1
baseline = "scm-seqpacket"
[server]
methods = ["scm-seqpacket", "inherited-listener"]
workers = 2
retain = [false, true]
[[server.way]]
name = "patient"
argv = ["--strategy", "pool", "--workers", "2", "--ipc", "scm-seqpacket", "--worker-deadline", "5"]
"""
FAULT = """
[[workload]]
name = "{fault}-{kind}"
kind = "{kind}"
summary = "for tests"
client = ["--connections", "{connections}", "--rate", "{rate}", "--duration", "{duration}", "--timeout", "5"]
ways = [{ways}]
fault = "{fault}"
every_s = {every_s}
limit_s = 20
expected_s = 2
"""


class Kinds(unittest.TestCase):
    """Every kind with the real programs."""

    @classmethod
    def setUpClass(cls) -> None:
        """One run with every kind, which the tests look at."""
        folder = tempfile.TemporaryDirectory(prefix="c10k-test-")
        cls.addClassCleanup(folder.cleanup)
        # Runs at the same time, as they are mostly idle, and each about as long as the others.
        loads = (
            [("upgrade", "crr", 0.2, 3.0, 16, ("scm-seqpacket", "inherited-listener"))],
            [("kill", "crr", 0.3, 1.8, 16, ("scm-seqpacket", "inherited-listener")),
             ("pause", "rr", 0.1, 1.6, 16, ("patient",)),
             # While a worker stands still, its share of the attempts does as well.
             ("stop", "crr", 0.1, 2.0, 1000, ("scm-seqpacket",))],
            [("kill", "rr", 0.2, 1.2, 16, ("scm-seqpacket", "* retain")),
             ("acceptor", "rr", 0.6, 2.4, 16, ("scm-seqpacket",)),
             ("acceptor", "crr", 0.2, 2.0, 16, ("scm-seqpacket",)),
             ("upgrade", "rr", 0.2, 3.0, 16, ("scm-seqpacket, retain",))])
        with ThreadPoolExecutor(len(loads)) as pool:
            cls.runs = list(pool.map(cls.run_loads, (Path(folder.name) / name for name in "abc"), loads))
        cls.cells = [cell for run in cls.runs for cell in run.cells]
        cls.found = {(row.workload, row.way): row for run in cls.runs for section in rows.sections(run)
                     for row in section.rows}

    @staticmethod
    def run_loads(folder: Path, loads: list[tuple[Any, ...]]) -> store.Run:
        folder.mkdir()
        file, run = folder / "faults.toml", folder / "run"
        file.write_text(LIST + "".join(
            # As many attempts as it takes to meet every connection between two faults.
            FAULT.format(fault=fault, kind=kind, every_s=every_s, duration=duration, connections=connections,
                         rate=1000 if fault == "stop" else 300, ways=", ".join(f'"{way}"' for way in ways))
            for fault, kind, every_s, duration, connections, ways in loads))
        command = [str(ROOT / "experiments" / "run_matrix"), "--bin-dir", str(BIN_DIR), str(file), "--output", str(run),
                   "--seed", "3"]
        done = subprocess.run(command, env={**os.environ, "TMPDIR": str(folder)}, capture_output=True, text=True,
                              timeout=2 * BOUND_S, check=False)
        assert done.returncode == 0, done.stderr
        return store.load(run)

    def cell_of(self, load: str, way: str = "scm-seqpacket") -> dict[str, Any]:
        (cell,) = [cell for cell in self.cells if (cell["workload"], cell["way"]) == (load, way)]
        return cell

    def test_kills_are_recorded_with_what_they_cost(self) -> None:
        for way in ("scm-seqpacket", "inherited-listener"):
            cell, row = self.cell_of("kill-crr", way), self.found["kill-crr", way]
            kills = cell["faults"]["events"]
            self.assertGreaterEqual(len(kills), 2)
            times = [kill["at_s"] for kill in kills]
            self.assertEqual(times, sorted(times))
            self.assertGreaterEqual(times[0], 0.25)
            self.assertTrue(all(later - earlier >= 0.14 for earlier, later in zip(times, times[1:])), times)
            self.assertEqual(len({kill["pid"] for kill in kills}), len(kills))
            # In each round every worker has its turn.
            self.assertEqual({kill["worker"] for kill in kills[:2]}, {0, 1})
            self.assertTrue(all(kill["whole_s"] > 0 for kill in kills), kills)
            self.assertEqual(cell["server"]["worker_deaths"], len(kills))
            self.assertIs(cell["server"]["books"]["balanced"], True)
            self.assertEqual(sum(cell["client"]["outcomes"].values()), cell["client"]["attempts"])
            failed = cell["client"]["attempts"] - cell["client"]["outcomes"]["echoed"]
            self.assertEqual((row.events, row.lost_in_faults), (len(kills), failed))
            assert row.lost_per_event_interval and row.lost_per_event is not None
            self.assertAlmostEqual(row.lost_per_event, failed / len(kills))
            self.assertTrue(row.lost_per_event_interval[0] <= row.lost_per_event < row.lost_per_event_interval[1])
            self.assertEqual((row.descriptors_left, row.processes_left), (0, 0))
            self.assertEqual(row.worker_deaths, 0, "these deaths are no faults")

    def test_each_begins_a_while_after_the_one_before_is_over(self) -> None:
        for cell in self.cells:
            found = cell["faults"] or {"events": []}
            for earlier, later in zip(found["events"], found["events"][1:]):
                pause = later["at_s"] - earlier["at_s"] - earlier["whole_s"]
                self.assertGreaterEqual(pause, 0.5 * found["every_s"] - 0.001, (cell["workload"], found["events"]))
        self.assertGreaterEqual(len(self.cell_of("acceptor-crr")["faults"]["events"]), 2)

    def test_who_keeps_a_connection_loses_it_with_its_worker_unless_it_is_retained(self) -> None:
        plain, retained = (self.found["kill-rr", f"scm-seqpacket{more}"] for more in ("", ", retain"))
        for row in (plain, retained):
            assert row.events and row.reopened is not None
            self.assertEqual((row.descriptors_left, row.processes_left), (0, 0))
        # Half of the 16 connections are a worker's. Retained, only what was in its hands is lost.
        self.assertGreaterEqual(plain.reopened or 0, 3 * (plain.events or 0))
        self.assertEqual(plain.lost_in_faults, plain.reopened)
        self.assertLessEqual(retained.reopened or 0, 2 * (retained.events or 0))
        self.assertGreaterEqual(retained.redelivered or 0, 3 * (retained.events or 0))
        refused = self.found["kill-rr", "inherited-listener, retain"]
        self.assertEqual((refused.status, refused.reason),
                         ("unsupported", "--retain: with inherited-listener the acceptor never has the connection"))

    def test_a_stopped_worker_is_replaced_by_the_server(self) -> None:
        cell = self.cell_of("stop-crr")
        events = cell["faults"]["events"]
        self.assertTrue(events)
        self.assertTrue(all(event["whole_s"] > 0.3 and "not_replaced" not in event for event in events), events)
        self.assertEqual(cell["server"]["stuck_workers"], len(events))
        self.assertEqual(self.found["stop-crr", "scm-seqpacket"].worker_deaths, 0, "these deaths are no faults")

    def test_a_paused_worker_goes_on(self) -> None:
        cell = self.cell_of("pause-rr", "patient")
        self.assertGreaterEqual(len(cell["faults"]["events"]), 2)
        self.assertTrue(all(event["whole_s"] >= faults.PAUSE_S for event in cell["faults"]["events"]))
        self.assertEqual(cell["client"]["outcomes"]["echoed"], cell["client"]["attempts"])
        self.assertEqual((cell["server"]["worker_deaths"], self.found["pause-rr", "patient"].reopened), (0, 0))

    def test_a_dead_acceptor_is_replaced_on_its_port(self) -> None:
        cell = self.cell_of("acceptor-rr")
        # Its workers serve whom they have; nobody but the first server had clients, so there is no second kill.
        (event,) = cell["faults"]["events"]
        self.assertGreater(event["whole_s"], 0)
        self.assertEqual(cell["client"]["outcomes"]["echoed"], cell["client"]["attempts"])
        self.assertEqual(cell["server"]["books"]["accepted"], 0)
        row = self.found["acceptor-rr", "scm-seqpacket"]
        self.assertEqual((row.lost_in_faults, row.descriptors_left, row.processes_left), (0, 0, 0))


    def test_an_upgrade_loses_nothing_and_every_server_has_written_its_books(self) -> None:
        for load, way in (("upgrade-crr", "scm-seqpacket"), ("upgrade-crr", "inherited-listener"),
                          ("upgrade-rr", "scm-seqpacket, retain")):
            cell, row = self.cell_of(load, way), self.found[load, way]
            found = cell["faults"]
            with self.subTest(load=load, way=way):
                self.assertGreaterEqual(len(found["events"]), 2)
                self.assertEqual(len(found["earlier"]), len(found["events"]))
                self.assertEqual(len({event["pid"] for event in found["events"]}), len(found["events"]))
                self.assertTrue(all(report["books"]["balanced"] for report in found["earlier"]), found["earlier"])
                accepted = [*(report["totals"]["accepted"] for report in found["earlier"]),
                            cell["server"]["totals"]["accepted"]]
                self.assertEqual(sum(accepted), cell["client"]["connections_opened"])
                self.assertEqual(cell["client"]["outcomes"]["echoed"], cell["client"]["attempts"])
                self.assertEqual((row.lost_in_faults, row.not_over, row.missing_reports), (0, 0, 0))
                # The kernel counts overflows for the whole machine, and other tests run beside this one.
                own_faults = row.faults - row.queue_overflows
                self.assertEqual((row.descriptors_left, row.processes_left, own_faults), (0, 0, 0), row)


class Injecting(Case):
    """With a shell in the server's place."""

    def setUp(self) -> None:
        super().setUp()
        self.waiter = Waiter()
        self.addCleanup(self.waiter.__exit__)

    def shell(self, command: str) -> Serving:
        serving = Serving(["/bin/sh", "-c", command], self.folder, self.waiter)
        self.addCleanup(serving.__exit__)
        serving.listen()
        return serving

    def injector(self, serving: Serving, seed: str, every_s: float = 0.4, fault: str = "kill") -> faults.Injector:
        load = spec.Workload("w", "crr", "", ("--duration", "30"), 60, 30, fault=fault, every_s=every_s)
        return faults.Injector(serving, load, seed, self.waiter, lambda: None)

    def test_a_seed_gives_the_same_moments(self) -> None:
        serving = self.shell("sleep 600 & sleep 600 & echo listening :1; wait")
        first, again, other = (self.injector(serving, seed)._pause() for seed in ("1", "1", "2"))
        self.assertEqual(first, again)
        self.assertNotEqual(first, other)
        with self.assertRaises(faults.NoWorker):
            self.injector(self.shell("echo listening :1; exec sleep 600"), "1")

    def test_a_successor_whose_start_is_interrupted_is_ended(self) -> None:
        serving = self.shell("echo $$ >>pids; test -e first || { : >first; echo listening :1; }; exec sleep 600")
        serving._argv += ["--listen", ":0"]
        pids = self.folder / "pids"

        def interrupt(*_: object) -> None:
            if len(pids.read_text().split()) == 2:
                raise KeyboardInterrupt

        self.waiter._tick = interrupt
        with self.assertRaises(KeyboardInterrupt):
            serving.replace(time.monotonic() + BOUND_S)
        first, second = map(int, pids.read_text().split())
        self.assertEqual((serving.child.main, os.path.exists(f"/proc/{second}")), (first, False))

    def client(self) -> Child:
        child = Child(["/bin/sleep", "600"], self.folder, "client")
        self.addCleanup(child.end)
        return child

    def test_a_server_that_ends_is_not_waited_for(self) -> None:
        serving = self.shell("sleep 600 & echo listening :1; wait; exit 3")
        injector = self.injector(serving, "1", 0.01)
        self.assertFalse(injector.follow(self.client(), time.monotonic() + BOUND_S))
        self.assertEqual((len(injector.record["events"]), serving.child.end()), (1, 3))

    def test_what_is_left_behind_is_counted(self) -> None:
        serving = self.shell("trap 'exec 8</dev/null 9</dev/null' USR1; sleep 600 & echo listening :1; "
                             "while :; do wait; done")
        injector = self.injector(serving, "1")
        signal.pidfd_send_signal(serving.child.pidfd, signal.SIGUSR1)
        deadline = time.monotonic() + BOUND_S
        while serving.child.descriptors() < injector._at_rest + 2 and time.monotonic() < deadline:
            self.waiter.until((), time.monotonic() + 0.001)
        injector.finish()
        self.assertEqual(injector.record["descriptors_left"], 2)
        signal.pidfd_send_signal(serving.child.pidfd, signal.SIGKILL)
        self.assertTrue(serving.child.ended(self.waiter, time.monotonic() + BOUND_S))
        self.assertEqual(serving.processes(), 1)
        row = rows.Row("w", "x", descriptors_left=3, processes_left=2)
        self.assertEqual(rows.faults_text(row), "left behind: 3 descriptors, 2 processes")


class Reckoning(unittest.TestCase):
    def test_attempts_over_a_second_are_hung(self) -> None:
        outcomes = {"echoed": 9, "timeout": 3, "reset": 1}
        client = {"latency": {"buckets_ns": [[5e8, 7], [1.5e9, 2]]}, "outcomes": outcomes}
        self.assertEqual(losses.hung(client), 5)

    def test_what_is_refused_is_apart_where_nobody_listens_and_nothing_else(self) -> None:
        failed = Counter({"refused": 5, "reset": 3, "eof": 2, "timeout": 1})
        self.assertEqual([losses._apart(kind, failed) for kind in KINDS], [5 * (kind == "acceptor") for kind in KINDS])

    def row(self, kind: str, load: str, events: list[dict[str, Any]], earlier: Any = (), peak: int = 99) -> rows.Row:
        """Of two cells with 400 clients each, that lost nothing; in an open loop."""
        found = {"kind": kind, "events": events, "earlier": earlier, "hung": 0}
        cell = {"client_options": ["--workload", load, "--connections", "400", "--rate", "9"], "faults": found,
                "client": {"attempts": 5000, "outcomes": {"echoed": 5000}, "connections_opened": 400,
                           "peak_connections": peak},
                "server": {"totals": {}, "books": {}}}
        row = rows.Row("w", "x", connections=400, workers=8)
        losses.describe(row, [cell, cell])
        return row

    def test_the_bound_is_of_what_could_be_lost(self) -> None:
        events = [{"whole_s": 0.1}] * 10
        for kind, load, exposed in (("kill", "crr", 10_000), ("kill", "rr", 1000), ("stop", "rr", 1000),
                                    ("acceptor", "rr", 800), ("upgrade", "rr", 800), ("upgrade", "crr", 10_000)):
            row = self.row(kind, load, events, [{"books": {"lost": 0}, "worker_deaths": 0,
                                                 "totals": {"errors": {}, "redelivered": 0}}] * 10)
            self.assertEqual((row.fault_exposed, row.lost_in_faults, row.events), (exposed, 0, 20), (kind, load))
            text = losses.rate_text(row.lost_in_faults, row.events, row.fault_exposed, str, of=True)
            self.assertTrue(text.startswith(f"0 of {exposed:,}: below "), text)

    def test_what_was_never_over_is_a_fault(self) -> None:
        row = self.row("stop", "crr", [{"whole_s": 0.1}, {}, {"whole_s": 0.1, "not_replaced": False}])
        self.assertEqual((row.not_over, row.not_replaced, row.faults), (2, 0, 2))
        self.assertEqual(rows.faults_text(row), "2 faults were never over")
        self.assertEqual(self.row("stop", "crr", [{"whole_s": 2.1, "not_replaced": True}]).not_replaced, 2)

    def test_a_client_that_ran_out_of_connections_is_told(self) -> None:
        for kind, peak, ran_out in (("crr", 399, 0), ("crr", 400, 2), ("rr", 400, 0)):
            row = self.row("kill", kind, [{"whole_s": 0.1}], peak=peak)
            self.assertEqual((row.ran_out, row.faults), (ran_out, ran_out))
        row = self.row("kill", "crr", [{"whole_s": 0.1}], peak=400)
        self.assertEqual(rows.faults_text(row), "the client ran out of connections in 2 of 2 repetitions")

    def test_what_a_replaced_server_says_or_does_not_say_counts(self) -> None:
        said = {"books": {"balanced": True, "lost": 0}, "worker_deaths": 0, "totals": {"errors": {}, "redelivered": 3}}
        events = [{"whole_s": 0.1}] * 2
        row = self.row("upgrade", "crr", events, [said, said])
        self.assertEqual((row.faults, row.redelivered), (0, 12))
        # One has not written, of one there is a report without books; errors are added up.
        failing = {**said, "totals": {"errors": {"EMFILE": 2}, "redelivered": 0}}
        for earlier in ([failing], [failing, {**said, "books": {}}]):
            row = self.row("upgrade", "crr", events, earlier)
            self.assertEqual((row.missing_reports, row.server_errors, row.faults), (2, {"EMFILE": 4}, 6))
            self.assertEqual(rows.faults_text(row), "server: 4 EMFILE, 2 reports of replaced servers are missing")

    def test_a_workloads_own_deaths_are_those_of_its_own_cells(self) -> None:
        cell = {"client_options": ["--workload", "crr"], "faults": {"kind": "kill", "events": [{"whole_s": 0.1}]},
                "client": {"attempts": 9, "outcomes": {"echoed": 9}},
                "server": {"totals": {}, "books": {"lost": 2}, "worker_deaths": 1}}
        cell["faults"]["hung"] = 0
        # The other cells of the row have failed: 4 more deaths and 5 more lost.
        row = rows.Row("w", "x", worker_deaths=5, lost=7, faults=12)
        losses.describe(row, [cell])
        self.assertEqual((row.worker_deaths, row.faults), (4, 9))

    def test_the_interval_is_the_exact_one(self) -> None:
        # Garwood's, as tables of chi-square quantiles give it.
        for count, low, high in ((0, 0, 3.6889), (1, 0.0253, 5.5716), (10, 4.7954, 18.3904), (100, 81.3640, 121.6272)):
            for found, right in zip(losses.poisson_interval(count), (low, high)):
                self.assertAlmostEqual(found, right, places=3)

    def test_of_none_the_bound_is_told(self) -> None:
        texts = [losses.rate_text(count, 10, 123_456, str, of) for count, of in ((0, False), (0, True), (None, True))]
        self.assertEqual(texts, ["0 (< 2.4e-5)", "0 of 123,456: below 2.4e-5", "-"])
        self.assertRegex(losses.rate_text(20, 10, 123_456, str), r"^20: 2\.0 \(1\.2\d* to 3\.0\d*\)$")


if __name__ == "__main__":
    unittest.main()
