"""What the kernel counts around a cell: queue overflows, CPU of the host, CPU of other processes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

# Of TcpExt in /proc/net/netstat: what tells of a full queue, a full table or a lost segment.
NETSTAT = (
    "ListenOverflows",
    "ListenDrops",
    "TCPTimeWaitOverflow",
    "TCPReqQFullDrop",
    "TCPReqQFullDoCookies",
    "TCPBacklogDrop",
    "TCPTimeouts",
    "TCPSynRetrans",
    "TCPAbortOnMemory",
    "TCPMigrateReqSuccess",
    "TCPMigrateReqFailure",
)


def _netstat() -> dict[str, int]:
    lines = Path("/proc/net/netstat").read_text().splitlines()
    for keys, values in zip(lines[::2], lines[1::2]):
        if keys.startswith("TcpExt:"):
            found = dict(zip(keys.split()[1:], map(int, values.split()[1:])))
            return {key: found[key] for key in NETSTAT if key in found}
    return {}


def _cpu_ticks() -> dict[str, tuple[int, int]]:
    """Busy and all clock ticks since boot: of all CPUs ("cpu"), and of each ("cpu0")."""
    found = {}
    for line in Path("/proc/stat").read_text().splitlines():
        if not line.startswith("cpu"):
            break
        name, *fields = line.split()
        ticks = [int(field) for field in fields[:8]]
        found[name] = (sum(ticks) - ticks[3] - ticks[4], sum(ticks))
    return found


def _process_ticks() -> dict[int, tuple[int, int]]:
    """Process group and CPU ticks, reaped children included, of every process but this one. Kernel
    threads (group 0) work for the load under test as much as for anybody, and stay out."""
    found = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            fields = Path(entry.path, "stat").read_bytes().rsplit(b")", 1)[1].split()
        except OSError:
            continue  # it ended meanwhile
        if group := int(fields[2]):
            found[int(entry.name)] = (group, sum(map(int, fields[11:15])))
    return found


@dataclass(frozen=True)
class Snapshot:
    netstat: dict[str, int]
    cpus: dict[str, tuple[int, int]]
    processes: dict[int, tuple[int, int]]

    @staticmethod
    def take() -> Snapshot:
        return Snapshot(_netstat(), _cpu_ticks(), _process_ticks())

    def netstat_since(self, before: Snapshot) -> dict[str, int]:
        return {key: value - before.netstat.get(key, 0) for key, value in self.netstat.items()}

    def _ticks_since(self, before: Snapshot, cpu: str) -> tuple[int, int]:
        busy, total = (now - then for now, then in zip(self.cpus[cpu], before.cpus[cpu]))
        return busy, total

    def cpu_since(self, before: Snapshot) -> dict[str, float]:
        """Share of each CPU's time that was not idle, and of all of them ("cpu")."""
        found = {}
        for cpu in self.cpus.keys() & before.cpus.keys():
            busy, total = self._ticks_since(before, cpu)
            found[cpu] = round(busy / total, 4) if total else 0.0
        return dict(sorted(found.items()))

    def other_cpu_since(self, before: Snapshot, own_groups: set[int]) -> float:
        """Share of all CPUs' time that processes outside the given groups used."""
        _, total = self._ticks_since(before, "cpu")
        # Summed before subtracting: a child that was reaped moved from its own line to its parent's.
        now, then = (
            sum(used for group, used in snapshot.processes.values() if group not in own_groups)
            for snapshot in (self, before)
        )
        return round(max(now - then, 0) / total, 4) if total else 0.0
