"""What the tests of the matrix runner share: a fake server and client, small scripts in a temporary folder, and
run_matrix and inspect run against them."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "experiments"))

from matrix import inspect_cli, rows, run_cli, store  # noqa: E402

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

# Shell, as Python takes longer to start than all else that a cell of theirs does. What a fake does is told by files
# beside it: crash-STRATEGY, hang, unsupported, starts (which counts servers), die-STRATEGY (a fifo: the client opens it
# and waits, and so the server dies while it does), client-dies.
OPTIONS = """#!/bin/sh
here=${0%/*}
while [ $# -gt 0 ]; do
  case $1 in
    --list) listed=1 ;;
    --strategy) strategy=$2 ;;
    --ipc) acceptor_cpu_us=99900 ;;
    --report) report=$2 ;;
    --target) target=$2 ;;
    --connections) held=$2 ;;
    --json) json=$2 ;;
  esac
  shift
done
cores() {
  while read -r key list && [ "$key" != Cpus_allowed_list: ]; do :; done </proc/self/status
  IFS=, cores=
  for range in $list; do
    core=${range%-*}
    while [ "$core" -le "${range#*-}" ]; do cores="$cores${cores:+, }$core" core=$((core + 1)); done
  done
}
"""

SERVER = OPTIONS + """
if [ "$listed" ]; then
  [ -e "$here/unsupported" ] && away="no permission: errno 1" available=false
  echo '{"schema": "c10k-list/1", "strategies": [
    {"name": "epoll", "available": true, "reason": ""}, {"name": "select", "available": true, "reason": ""},
    {"name": "pool", "available": true, "reason": ""}], "methods": ['
  echo "{\\"name\\": \\"scm-stream\\", \\"available\\": ${available:-true}, \\"reason\\": \\"$away\\"},"
  echo '{"name": "inherited-listener", "available": true, "reason": ""}]}'
  exit
fi
finish() {
  cores
  echo '{"schema": "c10k-server-report/1", "books": {"balanced": true, "lost": 0}, "cores": ['"$cores"'],
    "totals": {"accepted": 1000, "echoes": 1000, "acceptor_cpu_us": '"${acceptor_cpu_us:-0}"',
               "worker_cpu_us": 99900, "errors": {}}}' >"$report"
  exit 0
}
trap finish TERM
if [ -e "$here/crash-$strategy" ]; then
  printf 'first line\nthe fake server fell over\n' >&2
  exit 1
fi
[ -e "$here/starts" ] && echo 1 >>"$here/starts"
if [ -e "$here/die-$strategy" ]; then
  echo listening 127.0.0.1:2
  read -r _ <"$here/die-$strategy"
  kill -KILL $$
fi
# Only a wait for a child misses no signal; it ends with this shell, however that does.
setpriv --pdeathsig KILL /bin/sh -c '[ $PPID = '$$' ] && exec sleep 600' &
echo listening 127.0.0.1:1
wait
"""

CLIENT = OPTIONS + """
[ -e "$here/client-dies" ] && kill -KILL $$
if [ "${target##*:}" = 2 ]; then
  echo 1 >"$(echo "$here"/die-*)"
  exec sleep 600
fi
if [ -e "$here/hang" ]; then
  read -r children <"/proc/$PPID/task/$PPID/children"
  for server in $children; do [ "$server" = $$ ] || break; done
  echo "$server $$" >"$here/hang"
  exec sleep 600
fi
cores
echo '{"schema": "c10k-client-result/1", "connections_per_s": 123456.7, "connect_all_s": 12.3, "cores": ['"$cores"'],
  "latency": {"count": 1, "p50_us": 1234567.0, "p99_us": 12345678.0, "buckets_ns": [[100, 1]]},
  "client": {"cpu_share": 0.99}, "attempts": '"$held"', "outcomes": {"echoed": '"$held"', "refused": 0},
  "peak_connections": '"$((held))"'}' >"$json"
"""


def run_inside(main: Callable[[list[str]], int], *arguments: str) -> subprocess.CompletedProcess[str]:
    """What a program's main function does with a command line, as if it were a process, whose start takes longer."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code: Any = main(list(arguments))
        except SystemExit as ended:
            code = ended.code
    return subprocess.CompletedProcess(list(arguments), code, out.getvalue(), err.getvalue())


class OneLine(unittest.TestCase):
    def assert_one_line(self, done: subprocess.CompletedProcess[str], *parts: str) -> None:
        self.assertEqual(done.stdout, "")
        self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
        for part in parts:
            self.assertIn(part, done.stderr)


class Case(OneLine):
    """`call` starts the program; `inside` and `inspect` do all that it does but the start."""

    _recorded: dict[tuple[str, ...], Path] = {}

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

    def record(self, *arguments: str) -> None:
        """Has a run in the run folder: once measured, then a copy of that."""
        if arguments not in self._recorded:
            self.call(self.fresh(*arguments))
            folder = tempfile.TemporaryDirectory(prefix="c10k-test-")
            unittest.addModuleCleanup(folder.cleanup)
            self._recorded[arguments] = Path(shutil.copytree(self.run_folder, Path(folder.name) / "run"))
        else:
            shutil.copytree(self._recorded[arguments], self.run_folder)

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

    def inside(self, command: list[str], code: int = 0) -> subprocess.CompletedProcess[str]:
        main = {"run_matrix": run_cli.main, "inspect": inspect_cli.main}[Path(command[0]).name]
        done = run_inside(main, *command[1:])
        self.assertEqual(done.returncode, code, done.stderr)
        return done

    def inspect(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        return self.inside([str(ROOT / "experiments" / "inspect"), str(self.run_folder), *arguments], code)

    def cells(self) -> list[dict[str, Any]]:
        return store.load(self.run_folder).cells

    def rows(self) -> dict[tuple[str, str], rows.Row]:
        found = rows.sections(store.load(self.run_folder))
        return {(row.workload, row.way): row for section in found for row in section.rows}
