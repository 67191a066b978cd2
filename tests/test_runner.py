"""Tests of what may go wrong while a matrix runs, and with its files. How to run one class:

  cd tests; C10K_BIN_DIR=../build/release /usr/bin/python3 -m unittest -v test_runner.Killed"""

from __future__ import annotations

import ctypes
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from matrix_support import BOUND_S, ROOT, Case  # noqa: E402
from matrix import pins, spec, store  # noqa: E402
from matrix.process import Child, Waiter
from proc_support import left_by_one_that_is_killed  # noqa: E402
from process_support import BIN_DIR  # noqa: E402

_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)

REAL = """
schema = "c10k-matrix/1"
summary = "for tests"
repetitions = 1
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


class Crashes(Case):
    def test_a_server_that_dies_under_load_is_a_row_and_the_rest_goes_on(self) -> None:
        os.mkfifo(self.folder / "die-select")
        self.inside(self.fresh("--only", "crr"), code=1)
        row = self.rows()["crr", "select"]
        self.assertEqual(row.status, "failed")
        self.assertEqual(row.reason, "server ended during the load, killed by SIGKILL: no message")
        self.assertEqual({row.status for key, row in self.rows().items() if key[1] != "select"}, {"ok"})

    def test_a_client_that_dies_is_a_row(self) -> None:
        (self.folder / "client-dies").touch()
        shown = self.inside(self.fresh("--only", "epoll"), code=1)
        row = self.rows()["crr", "epoll"]
        self.assertEqual((row.status, row.reason), ("failed", "client killed by SIGKILL: no result"))
        self.assertIn("4 of 4 cells failed", shown.stderr)


class Files(Case):
    """A file that was damaged, or is another's, is one line, and stays as it was."""

    def setUp(self) -> None:
        super().setUp()
        self.record("--only", "epoll")
        self.cells_file, self.run_file = self.run_folder / "cells.jsonl", self.run_folder / "run.json"

    def assert_refused(self, *parts: str) -> None:
        before = [path.read_bytes() for path in (self.cells_file, self.run_file)]
        for done in (self.inspect(code=1), self.inside(self.command("--resume", str(self.run_folder)), 1)):
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
        self.assert_one_line(self.inside(self.fresh(), 2), str(self.run_folder), "--resume")
        self.run_file.unlink()
        self.assert_one_line(self.inside(self.fresh(), 2), str(self.run_folder))
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
        once = ("--seed", "5", "--repetitions", "1")
        self.record(*once)
        one = len((self.run_folder / "cells.jsonl").read_bytes()) // 8
        limited = self.folder / "limited"
        size = max(5 * one + one // 2, len((self.run_folder / "run.json").read_bytes()) + 100)
        command = self.command(str(self.folder / "test.toml"), "--output", str(limited), *once)
        done = self.call(["prlimit", f"--fsize={size}", *command], 1)
        self.assertIn("cells.jsonl: File too large; all earlier cells are kept", done.stderr.splitlines()[-1])
        kept = (limited / "cells.jsonl").read_bytes()
        self.assertTrue(kept.endswith(b"\n") and size - 2 * one < len(kept) <= size, (len(kept), size))
        self.assertIn(f"interrupted: {len(kept.splitlines())} of 8 cells", " ".join(done.stdout.split()))
        self.call(self.command("--resume", str(limited)))
        whole = (limited / "cells.jsonl").read_bytes()
        self.assertTrue(whole.startswith(kept))
        self.assertEqual(whole.count(b"\n"), 8)

    def test_a_full_disk_is_one_line(self) -> None:
        place = self.mount("size=4k")
        run = ("--output", str(place / "run"))
        done = self.inside(self.command(str(self.folder / "test.toml"), *run), 1)
        self.assert_one_line(done, "No space left on device", str(place))
        self.assertEqual(list(place.glob("run/run.json*")), [])

    def test_a_read_only_disk_is_one_line(self) -> None:
        place = self.mount("size=1m")
        (place / "run").mkdir()
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        for output in (place / "run", place / "another"):
            command = self.command(str(self.folder / "test.toml"), "--output", str(output))
            self.assert_one_line(self.inside(command, 1), "Read-only file system", str(output))

    def test_a_folder_that_cannot_be_made_is_one_line(self) -> None:
        (self.folder / "file").touch()
        command = self.command("quick", "--output", str(self.folder / "file" / "run"))
        self.assert_one_line(self.inside(command, 1), "Not a directory")

    def test_a_table_that_cannot_be_written_loses_no_cell(self) -> None:
        self.record("--only", "epoll")
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
        self.record("--only", "epoll")
        other = store.Recorder(self.run_folder)
        before = other.path.read_bytes()
        self.assert_one_line(self.inside(self.command("--resume", str(self.run_folder)), 1), "another run_matrix",
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
        self.assertEqual(len(self.cells()), 8)

    def test_what_a_server_leaves_ends_with_it(self) -> None:
        """As an upgrade leaves the new server: an orphan in the process group of the first."""
        script = f"""
import pathlib, sys, time
sys.path.insert(0, {str(ROOT / "experiments")!r})
from matrix.process import Child, Waiter, adopt_orphans
adopt_orphans()
with Waiter() as waiter, Child(["/bin/sh", "-c", "sleep 600 & echo listening"], pathlib.Path({str(self.folder)!r}),
                               "server", pipe_stdout=True, guarded=True) as server:
    assert server.ended(waiter, time.monotonic() + 20)
    (left,) = server.members()
    print(left, flush=True)
    time.sleep(600)
"""
        left_by_one_that_is_killed(script, b"sleep")
        self.reap_all()


class Pins(Case):
    def pinned(self, pin: str) -> None:
        text = (self.folder / "test.toml").read_text()
        (self.folder / "test.toml").write_text(text + f"pin = {pin}\n")
        self.inside(self.fresh("--only", "hold", "--only", "epoll"))

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
