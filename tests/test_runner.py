"""Tests of what may go wrong while a matrix runs, and with its files. How to run one class:

  cd tests; C10K_BIN_DIR=../build/release /usr/bin/python3 -m unittest -v test_runner.Killed"""

from __future__ import annotations

import ctypes
import json
import os
import random
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from matrix_support import BOUND_S, ROOT, Case  # noqa: E402
from matrix import faults, losses, pins, rows, spec, store  # noqa: E402
from matrix.process import Child, Waiter
from matrix.serving import Serving  # noqa: E402
from process_support import BIN_DIR  # noqa: E402

_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)

REAL = """
schema = "c10k-matrix/1"
summary = "for tests"
repetitions = 2
baseline = "epoll"
[server]
strategies = ["epoll", "fork"]
methods = ["scm-seqpacket", "shared-table", "queue-python3", "inherited-listener"]
workers = 2
[[server.way]]
name = "CPython queue"
peer = "cpython-queue"
[[server.way]]
name = "Node, round robin"
peer = "node-cluster-rr"
[[workload]]
name = "crr"
kind = "crr"
summary = "short"
client = ["--connections", "16", "--processes", "2", "--duration", "0.1"]
limit_s = 20
expected_s = 0.2
"""
LIST = """
schema = "c10k-matrix/1"
summary = "for tests"
repetitions = 1
baseline = "scm-seqpacket"
[server]
methods = ["scm-seqpacket", "inherited-listener"]
workers = 2
retain = [false, true]
"""
FAULT = """
[[workload]]
name = "{fault}-{kind}"
kind = "{kind}"
summary = "for tests"
client = ["--connections", "{connections}", "--rate", "1000", "--duration", "{duration}", "--timeout", "2"]
ways = [{ways}]
fault = "{fault}"
every_s = {every_s}
limit_s = 20
expected_s = 2
"""


class Crashes(Case):
    def test_a_server_that_dies_under_load_is_a_row_and_the_rest_goes_on(self) -> None:
        os.mkfifo(self.folder / "die-select")
        self.call(self.fresh("--only", "crr"), code=1)
        row = self.rows()["crr", "select"]
        self.assertEqual(row.status, "failed")
        self.assertEqual(row.reason, "server ended during the load, killed by SIGKILL: no message")
        self.assertEqual({row.status for key, row in self.rows().items() if key[1] != "select"}, {"ok"})

    def test_a_client_that_dies_is_a_row(self) -> None:
        (self.folder / "client-dies").touch()
        shown = self.call(self.fresh("--only", "epoll"), code=1)
        row = self.rows()["crr", "epoll"]
        self.assertEqual((row.status, row.reason), ("failed", "client killed by SIGKILL: no result"))
        self.assertIn("4 of 4 cells failed", shown.stderr)


class Files(Case):
    """A file that was damaged, or is another's, is one line, and stays as it was."""

    def setUp(self) -> None:
        super().setUp()
        self.call(self.fresh("--only", "epoll"))
        self.cells_file, self.run_file = self.run_folder / "cells.jsonl", self.run_folder / "run.json"

    def assert_refused(self, *parts: str) -> None:
        before = [path.read_bytes() for path in (self.cells_file, self.run_file)]
        for done in (self.inspect(code=1), self.call(self.command("--resume", str(self.run_folder)), 1)):
            self.assert_one_line(done, *parts)
        self.assertEqual([path.read_bytes() for path in (self.cells_file, self.run_file)], before)

    def test_cells(self) -> None:
        whole = self.cells_file.read_bytes().splitlines(keepends=True)
        cell = json.loads(whole[1])
        foreign = [{**cell, "way": "nobody"}, {**cell, "schema": "another/1"}, {**cell, "client": None},
                   {**cell, "netstat": 5}, {key: cell[key] for key in cell if key != "repetition"}, [], 7, None]
        for line, *parts in (
            (b"\xff\xfe\x00garbage", "line 2"), (b"", "line 2"), (b'{"schema": "c10k-cell/1"', "line 2"),
            (b"[" * 100_000, "line 2", "nested"),
            *((json.dumps(each).encode(), "line 2") for each in foreign),
        ):
            with self.subTest(line=line[:60]):
                self.cells_file.write_bytes(whole[0] + line + b"\n" + b"".join(whole[2:]))
                self.assert_refused("cells.jsonl", *parts)
        # What the message says helps: without the line its cell is measured again.
        self.cells_file.write_bytes(whole[0] + b"".join(whole[2:]))
        self.call(self.command("--resume", str(self.run_folder)))
        self.assertEqual(len(self.cells()), 4)

    def test_the_run(self) -> None:
        meta = json.loads(self.run_file.read_text())
        matrix = meta["matrix"]
        for text, *parts in (
            ("", "line 1"), ("{", "line 1"), ("\x00" * 512, "line 1"), ("[]", "None", "c10k-run/1"),
            (json.dumps({**meta, "schema": "c10k-handoff-bench/1"}), "c10k-handoff-bench/1"),
            (json.dumps({**meta, "seed": "x"}), "seed is 'x'"),
            (json.dumps({key: meta[key] for key in meta if key != "host"}), "host"),
            (json.dumps({**meta, "matrix": {**matrix, "ways": [{"name": "epoll"}]}}), "matrix"),
            (json.dumps({**meta, "matrix": {**matrix, "newer": 1}}), "newer"),
        ):
            with self.subTest(text=text[:60]):
                self.run_file.write_text(text)
                self.assert_refused("run.json", *parts)

    def test_a_folder_that_holds_a_run_is_not_written_over(self) -> None:
        before = self.cells_file.read_bytes()
        self.assert_one_line(self.call(self.fresh(), 2), str(self.run_folder), "--resume")
        self.run_file.unlink()
        self.assert_one_line(self.call(self.fresh(), 2), str(self.run_folder))
        self.assertEqual(self.cells_file.read_bytes(), before)


class Disk(Case):
    def mount(self, options: str) -> Path:
        place = self.folder / "mounted"
        place.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", options, "c10k-test", str(place)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
            self.skipTest("mounting a tmpfs is not allowed here")
        self.addCleanup(subprocess.run, ["umount", str(place)], check=True)
        return place

    def test_what_was_recorded_before_the_limit_is_kept(self) -> None:
        self.call(self.fresh("--seed", "5"))
        one = len((self.run_folder / "cells.jsonl").read_bytes()) // 16
        limited = self.folder / "limited"
        arguments = (str(self.folder / "test.toml"), "--output", str(limited), "--seed", "5")
        size = max(5 * one + one // 2, len((self.run_folder / "run.json").read_bytes()) + 100)
        done = subprocess.run(
            self.command(*arguments), env=self.environment, capture_output=True, text=True, timeout=BOUND_S,
            check=False, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
        )
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn("cells.jsonl: File too large; all earlier cells are kept", done.stderr.splitlines()[-1])
        kept = (limited / "cells.jsonl").read_bytes()
        self.assertTrue(kept.endswith(b"\n") and size - 2 * one < len(kept) <= size, (len(kept), size))
        self.assertIn(f"interrupted: {len(kept.splitlines())} of 16 cells", " ".join(done.stdout.split()))
        self.call(self.command("--resume", str(limited)))
        whole = (limited / "cells.jsonl").read_bytes()
        self.assertTrue(whole.startswith(kept))
        self.assertEqual(whole.count(b"\n"), 16)

    def test_a_full_disk_is_one_line(self) -> None:
        place = self.mount("size=4k")
        run = ("--output", str(place / "run"))
        done = self.call(self.command(str(self.folder / "test.toml"), *run), 1)
        self.assert_one_line(done, "No space left on device", str(place))
        self.assertEqual(list(place.glob("run/run.json*")), [])

    def test_a_read_only_disk_is_one_line(self) -> None:
        place = self.mount("size=1m")
        (place / "run").mkdir()
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        for output in (place / "run", place / "another"):
            command = self.command(str(self.folder / "test.toml"), "--output", str(output))
            self.assert_one_line(self.call(command, 1), "Read-only file system", str(output))

    def test_a_folder_that_cannot_be_made_is_one_line(self) -> None:
        (self.folder / "file").touch()
        command = self.command("quick", "--output", str(self.folder / "file" / "run"))
        self.assert_one_line(self.call(command, 1), "Not a directory")

    def test_a_table_that_cannot_be_written_loses_no_cell(self) -> None:
        self.call(self.fresh("--only", "epoll"))
        shown = [str(ROOT / "experiments" / "inspect"), str(self.run_folder)]
        for command in (self.command("--resume", str(self.run_folder)), self.command("quick", "--dry-run"), shown,
                        [*shown, "--json"], [*shown, "--markdown"]):
            with open("/dev/full", "w") as full:
                done = subprocess.run(command, env=self.environment, stdout=full, stderr=subprocess.PIPE, text=True,
                                      timeout=BOUND_S, check=False)
            self.assertEqual(done.returncode, 1)
            program = "inspect" if command[: len(shown)] == shown else "run_matrix"
            self.assertEqual(done.stderr.splitlines()[-1], f"{program}: output: No space left on device")
            self.assertNotIn("Traceback", done.stderr)
        self.assertEqual(len(self.cells()), 4)

    def test_a_run_folder_in_use_is_one_line(self) -> None:
        self.call(self.fresh("--only", "epoll"))
        other = store.Recorder(self.run_folder)
        before = other.path.read_bytes()
        self.assert_one_line(self.call(self.command("--resume", str(self.run_folder)), 1), "another run_matrix",
                             str(self.run_folder))
        other.close()
        self.assertEqual(other.path.read_bytes(), before)


class Killed(Case):
    """SIGKILL of run_matrix: nobody is left behind, and only the cell in flight is lost."""

    def setUp(self) -> None:
        super().setUp()
        # Whoever loses its parent becomes a child of this process, so none can be overlooked.
        self.assertEqual(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), 0)
        self.addCleanup(_libc.prctl, _PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        self.chance = random.Random(7)

    def children(self) -> list[int]:
        found: list[int] = []
        for task in os.listdir("/proc/self/task"):
            found += map(int, Path(f"/proc/self/task/{task}/children").read_text().split())
        return found

    def reap_all(self) -> None:
        deadline = time.monotonic() + BOUND_S
        while children := self.children():
            for pid in children:
                pidfd = os.pidfd_open(pid)
                ended = select.select([pidfd], [], [], max(0, deadline - time.monotonic()))[0]
                os.close(pidfd)
                name = Path(f"/proc/{pid}/cmdline").read_bytes()
                if not ended:
                    os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                self.assertTrue(ended, f"{pid} outlived run_matrix: {name!r}")

    def kill_and_resume(self, command: list[str], kills: int, longest_s: float) -> None:
        recorded = b""
        for _ in range(kills):
            with subprocess.Popen(command, env=self.environment, stdout=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL) as runner:
                try:
                    runner.wait(self.chance.uniform(0.1, longest_s))
                except subprocess.TimeoutExpired:
                    runner.kill()
            self.reap_all()
            if (self.run_folder / "run.json").exists():
                command = self.command("--resume", str(self.run_folder))
                run = store.load(self.run_folder)
                now = (self.run_folder / "cells.jsonl").read_bytes()[: run.whole_bytes]
                self.assertTrue(now.startswith(recorded), "a recorded cell is gone")
                recorded = now
        self.call(command)
        self.assertTrue((self.run_folder / "cells.jsonl").read_bytes().startswith(recorded))
        self.reap_all()

    def test_at_random_moments(self) -> None:
        (self.folder / "starts").touch()
        kills = 6
        self.kill_and_resume(self.fresh("--seed", "5"), kills, 1.0)
        cells = self.cells()
        self.assertEqual([cell["order"] for cell in cells], list(range(1, 17)))
        self.assertEqual({cell["status"] for cell in cells}, {"ok"})
        servers = len((self.folder / "starts").read_text().split())
        self.assertLessEqual(16, servers)
        self.assertLessEqual(servers, 16 + kills)

    def test_real_programs_end_with_it(self) -> None:
        (self.folder / "test.toml").write_text(REAL)
        for program in BIN_DIR.glob("*-*"):
            if program.name in ("c10k-server", "c10k-client", "minimal-server", "minimal-client"):
                (self.folder / program.name).unlink(missing_ok=True)
                (self.folder / program.name).symlink_to(program.resolve())
        self.kill_and_resume(self.fresh("--seed", "5"), 6, 1.5)
        self.assertEqual(len(self.cells()), 16)


class Faults(Case):
    """The workloads during which something dies, with the real programs."""

    @classmethod
    def setUpClass(cls) -> None:
        """One run with every kind, which the tests look at."""
        folder = tempfile.TemporaryDirectory(prefix="c10k-test-")
        cls.addClassCleanup(folder.cleanup)
        file, run = Path(folder.name) / "faults.toml", Path(folder.name) / "run"
        loads = (("kill", "crr", 0.3, 1.6, 16, ("scm-seqpacket", "inherited-listener")),
                 ("kill", "rr", 0.2, 1.2, 16, ("scm-seqpacket", "* retain")),
                 # While a worker stands still, its share of the attempts does as well.
                 ("stop", "crr", 0.1, 2.0, 1000, ("scm-seqpacket",)),
                 ("pause", "rr", 0.1, 1.2, 16, ("scm-seqpacket",)),
                 ("acceptor", "rr", 0.2, 1.6, 16, ("scm-seqpacket",)))
        file.write_text(LIST + "".join(
            FAULT.format(fault=fault, kind=kind, every_s=every_s, duration=duration, connections=connections,
                         ways=", ".join(f'"{way}"' for way in ways))
            for fault, kind, every_s, duration, connections, ways in loads))
        done = subprocess.run([str(ROOT / "experiments" / "run_matrix"), "--bin-dir", str(BIN_DIR), str(file), "--output",
                               str(run), "--seed", "3"], env={**os.environ, "TMPDIR": folder.name},
                              capture_output=True, text=True, timeout=BOUND_S + 20, check=False)
        assert done.returncode == 0, done.stderr
        cls.run_ = store.load(run)
        cls.found = {(row.workload, row.way): row for section in rows.sections(cls.run_) for row in section.rows}

    def cell_of(self, load: str, way: str = "scm-seqpacket") -> dict[str, Any]:
        (cell,) = [cell for cell in self.run_.cells if (cell["workload"], cell["way"]) == (load, way)]
        return cell

    def test_kills_are_recorded_with_what_they_cost(self) -> None:
        for way in ("scm-seqpacket", "inherited-listener"):
            cell, row = self.cell_of("kill-crr", way), self.found["kill-crr", way]
            kills = cell["faults"]["events"]
            self.assertGreaterEqual(len(kills), 2)
            times = [kill["at_s"] for kill in kills]
            self.assertEqual(times, sorted(times))
            self.assertTrue(0.25 <= times[0] <= 1, times)
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
        cell = self.cell_of("pause-rr")
        self.assertGreaterEqual(len(cell["faults"]["events"]), 2)
        self.assertTrue(all(event["whole_s"] >= faults.PAUSE_S for event in cell["faults"]["events"]))
        self.assertEqual(cell["client"]["outcomes"]["echoed"], cell["client"]["attempts"])
        self.assertEqual((cell["server"]["worker_deaths"], self.found["pause-rr", "scm-seqpacket"].reopened), (0, 0))

    def test_a_dead_acceptor_is_replaced_on_its_port(self) -> None:
        cell = self.cell_of("acceptor-rr")
        events = cell["faults"]["events"]
        self.assertTrue(events)
        self.assertEqual(len({event["pid"] for event in events}), len(events))
        # Its workers serve whom they have; nobody but the first server had clients.
        self.assertEqual(cell["client"]["outcomes"]["echoed"], cell["client"]["attempts"])
        self.assertEqual(cell["server"]["books"]["accepted"], 0)
        row = self.found["acceptor-rr", "scm-seqpacket"]
        self.assertEqual((row.lost_in_faults, row.descriptors_left, row.processes_left), (0, 0, 0))

    def shell(self, command: str) -> Serving:
        serving = Serving(["/bin/sh", "-c", command], self.folder, self.waiter)
        self.addCleanup(serving.__exit__)
        serving.listen()
        return serving

    def setUp(self) -> None:
        super().setUp()
        self.waiter = Waiter()
        self.addCleanup(self.waiter.__exit__)

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
        before = serving.child.descriptors()
        signal.pidfd_send_signal(serving.child.pidfd, signal.SIGUSR1)
        deadline = time.monotonic() + BOUND_S
        while serving.child.descriptors() != before + 2 and time.monotonic() < deadline:
            self.waiter.until((), time.monotonic() + 0.001)
        injector.finish()
        self.assertEqual(injector.record["descriptors_left"], 2)
        signal.pidfd_send_signal(serving.child.pidfd, signal.SIGKILL)
        self.assertTrue(serving.child.ended(self.waiter, deadline))
        self.assertEqual(serving.processes(), 1)
        row = rows.Row("w", "x", descriptors_left=3, processes_left=2)
        self.assertEqual(rows.faults_text(row), "left behind: 3 descriptors, 2 processes")

    def test_attempts_over_a_second_are_hung(self) -> None:
        outcomes = {"echoed": 9, "timeout": 3, "reset": 1}
        client = {"latency": {"buckets_ns": [[5e8, 7], [1.5e9, 2]]}, "outcomes": outcomes}
        self.assertEqual(losses.hung(client), 5)

    def test_the_interval_is_the_exact_one(self) -> None:
        # Garwood's, as tables of chi-square quantiles give it.
        for count, low, high in ((0, 0, 3.6889), (1, 0.0253, 5.5716), (10, 4.7954, 18.3904), (100, 81.3640, 121.6272)):
            for found, right in zip(losses.poisson_interval(count), (low, high)):
                self.assertAlmostEqual(found, right, places=3)

    def test_of_none_the_bound_is_told(self) -> None:
        texts = [losses.rate_text(count, 10, 123_456, str, of) for count, of in ((0, False), (0, True), (None, True))]
        self.assertEqual(texts, ["0 (< 2.4e-5)", "0 of 123,456: below 2.4e-5", "-"])
        self.assertRegex(losses.rate_text(20, 10, 123_456, str), r"^20: 2\.0 \(1\.2\d* to 3\.0\d*\)$")


class Pins(Case):
    def pinned(self, pin: str) -> None:
        text = (self.folder / "test.toml").read_text()
        (self.folder / "test.toml").write_text(text + f"pin = {pin}\n")
        self.call(self.fresh("--only", "hold", "--only", "epoll"))

    def test_processes_are_where_they_are_told_to_be(self) -> None:
        here = sorted(os.sched_getaffinity(0))
        self.pinned(f"{{acceptor = [{here[0]}], client = [{here[-1]}]}}")
        for cell in self.cells():
            self.assertEqual((cell["server"]["cores"], cell["client"]["cores"]), ([here[0]], [here[-1]]))
            self.assertTrue({f"cpu{core}" for core in here} <= cell["core_cpu"].keys(), cell["core_cpu"])
            self.assertTrue(all(0 <= busy <= 1 for busy in cell["core_cpu"].values()), cell["core_cpu"])

    def test_workers_are_pinned_apart_from_the_acceptor(self) -> None:
        here = sorted(os.sched_getaffinity(0))
        load = spec.Workload("w", "crr", "", (), 1, 1, pin={"acceptor": here[:1], "workers": here[-1:]})
        with Waiter() as waiter, Child(["/bin/sh", "-c", "sleep 600 & sleep 600 & echo listening; wait"], self.folder,
                                       "shell", pipe_stdout=True) as server:
            server.first_line(waiter, time.monotonic() + BOUND_S)
            pins.pin_server(server, load)
            self.assertEqual(os.sched_getaffinity(server.group), set(here[:1]))
            self.assertEqual([os.sched_getaffinity(pid) for pid in server.children()], [set(here[-1:])] * 2)

    def test_a_core_that_is_not_there_is_a_row_that_says_so(self) -> None:
        self.pinned("{acceptor = [4096]}")
        row = self.rows()["hold", "epoll"]
        self.assertEqual(row.status, "not run")
        self.assertRegex(row.reason, "^pins to core 4096, and this process has 0")


if __name__ == "__main__":
    unittest.main()
