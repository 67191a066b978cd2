"""What the tests of the matrix runner share: a fake server and client, small scripts in a temporary folder, and
run_matrix and inspect run against them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "experiments"))

from matrix import rows, store  # noqa: E402

BOUND_S = 30  # for whatever a test waits for; reached only when it fails

MATRIX = """
schema = "c10k-matrix/1"
summary = "for tests"
repetitions = 2
baseline = "epoll"
[server]
strategies = ["epoll", "select"]
methods = ["scm-stream", "inherited-listener:wait=exclusive,and=much,more=than,fits=there"]
workers = 2
[[workload]]
name = "crr"
kind = "crr"
summary = "connect, one echo, close"
client = ["--connections", "64"]
limit_s = 20
expected_s = 0.1
[[workload]]
name = "hold"
kind = "hold"
summary = "hold"
client = ["--connections", "10000"]
limit_s = 20
expected_s = 0.1
"""

# What a fake does is told by files beside it: crash-STRATEGY, hang, unsupported, starts (which counts servers),
# die-STRATEGY (a fifo: the client opens it and waits, and so the server dies while it does), client-dies.
SERVER = """#!/usr/bin/python3
import json, os, pathlib, signal, sys
here, argv = pathlib.Path(__file__).parent, sys.argv[1:]
def option(name): return argv[argv.index(name) + 1] if name in argv else None
if "--list" in argv:
    away = "no permission: errno 1" if (here / "unsupported").exists() else ""
    methods = [{"name": "scm-stream", "available": not away, "reason": away},
               {"name": "inherited-listener", "available": True, "reason": ""}]
    strategies = [{"name": name, "available": True, "reason": ""} for name in ("epoll", "select", "pool")]
    print(json.dumps({"schema": "c10k-list/1", "strategies": strategies, "methods": methods}))
    sys.exit()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
if (here / f"crash-{option('--strategy')}").exists():
    sys.exit("first line\\nthe fake server fell over")
if (here / "starts").exists():
    with (here / "starts").open("a") as starts:
        starts.write("1\\n")
die = here / f"die-{option('--strategy')}"
print("listening 127.0.0.1:" + ("2" if die.exists() else "1"), flush=True)
if die.exists():
    die.open("rb").read(1)
    os.kill(os.getpid(), signal.SIGKILL)
signal.sigwait([signal.SIGTERM])
totals = {"accepted": 1000, "echoes": 1000, "acceptor_cpu_us": 99900 if option("--ipc") else 0,
          "worker_cpu_us": 99900, "errors": {}}
report = {"schema": "c10k-server-report/1", "totals": totals, "books": {"balanced": True, "lost": 0},
          "cores": sorted(os.sched_getaffinity(0))}
pathlib.Path(option("--report")).write_text(json.dumps(report))
"""

CLIENT = """#!/usr/bin/python3
import json, os, pathlib, signal, sys
here, argv = pathlib.Path(__file__).parent, sys.argv[1:]
def option(name): return argv[argv.index(name) + 1] if name in argv else None
if (here / "client-dies").exists():
    os.kill(os.getpid(), signal.SIGKILL)
if option("--target").endswith(":2"):
    fifo = next(here.glob("die-*")).open("wb", buffering=0)
    fifo.write(b"1")
    signal.pause()
if (here / "hang").exists():
    children = pathlib.Path(f"/proc/{os.getppid()}/task/{os.getppid()}/children").read_text().split()
    server = [pid for pid in children if pid != str(os.getpid())]
    (here / "hang").write_text(f"{server[0]} {os.getpid()}\\n")
    signal.pause()
held = int(option("--connections"))
latency = {"count": 1, "p50_us": 1234567.0, "p99_us": 12345678.0, "buckets_ns": [[100, 1]]}
result = {"schema": "c10k-client-result/1", "attempts": held, "outcomes": {"echoed": held, "refused": 0},
          "connections_per_s": 123456.7, "connect_all_s": 12.3, "peak_connections": held,
          "latency": latency, "client": {"cpu_share": 0.99}, "cores": sorted(os.sched_getaffinity(0))}
pathlib.Path(option("--json")).write_text(json.dumps(result))
"""


class OneLine(unittest.TestCase):
    def assert_one_line(self, done: subprocess.CompletedProcess[str], *parts: str) -> None:
        self.assertEqual(done.stdout, "")
        self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
        for part in parts:
            self.assertIn(part, done.stderr)


class Case(OneLine):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="c10k-test-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.run_folder = self.folder / "run"
        # run_matrix puts the folders of its cells here; one that was killed cannot remove them.
        self.environment = {**os.environ, "TMPDIR": folder.name}
        (self.folder / "test.toml").write_text(MATRIX)
        for name, text in (("c10k-server", SERVER), ("c10k-client", CLIENT)):
            (self.folder / name).write_text(text)
            (self.folder / name).chmod(0o755)

    def command(self, *arguments: str) -> list[str]:
        return [str(ROOT / "experiments" / "run_matrix"), "--bin-dir", str(self.folder), *arguments]

    def fresh(self, *arguments: str) -> list[str]:
        return self.command(str(self.folder / "test.toml"), "--output", str(self.run_folder), *arguments)

    def call(self, command: list[str], code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=BOUND_S, check=False
        )
        self.assertEqual(done.returncode, code, done.stderr)
        return done

    def inspect(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        return self.call([str(ROOT / "experiments" / "inspect"), str(self.run_folder), *arguments], code)

    def cells(self) -> list[dict[str, Any]]:
        return store.load(self.run_folder).cells

    def rows(self) -> dict[tuple[str, str], rows.Row]:
        found = rows.sections(store.load(self.run_folder))
        return {(row.workload, row.way): row for section in found for row in section.rows}
