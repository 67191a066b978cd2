"""What the tests ask /proc about a process, which may end meanwhile."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path


def stat_of(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third (the state) on; none when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def state_of(pid: int) -> str:
    return (stat_of(pid) or [""])[0]


def cpu_ticks(pid: int) -> int:
    fields = stat_of(pid)
    return int(fields[11]) + int(fields[12]) if fields else 0


def rss_bytes(pid: int) -> int:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return 0


def open_files(pid: int) -> list[str]:
    """What a process has open, numbers, inodes and process ids aside; nothing of one that has gone."""
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):  # no right to it is what one that ends meanwhile answers
                found.append(re.sub(r":\[\d+\]|(?<=^/proc/)\d+", "", os.readlink(f"/proc/{pid}/fd/{name}")))
    return sorted(found)


def descriptors_of(pid: int) -> int:
    return len(open_files(pid))


def left_by_one_that_is_killed(script: str, expected: bytes, environment: dict[str, str] | None = None) -> int:
    """Runs a Python script that prints the number of a process and goes on, and kills it then. Returns the number;
    its command line has the words that are expected."""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment) as killed:
        try:
            assert killed.stdout
            pid = int(killed.stdout.readline())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            assert expected in command, command
        finally:
            killed.kill()
    return pid
