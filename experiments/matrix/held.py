"""What held connections cost while nobody speaks: memory of the kernel and of each side, and CPU."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matrix import plan
from matrix.process import Child, Waiter

# Where memory is short already, the run is ended: before the kernel kills somebody, or swaps.
FLOOR_BYTES = 1 << 30
LOOK_S = 1.0
TIME_WAIT_CACHES = ("tw_sock_TCP", "tw_sock_TCPv6")
MEMINFO = ("MemAvailable", "Slab", "SReclaimable", "SUnreclaim", "PageTables", "KernelStack", "Percpu", "AnonPages")


class OutOfMemory(Exception):
    """The machine had less than expected: what was held by then, and what is left."""


@dataclass(frozen=True)
class Kernel:
    """What the kernel says about its memory, in bytes."""

    meminfo: dict[str, int]
    sockets: dict[str, int]  # of /proc/net/sockstat, TCP: inuse, orphan, tw, alloc (sockets), mem (pages)
    # Of /proc/slabinfo: objects in use, size of one, size of all slabs; empty where only root may read it.
    caches: dict[str, tuple[int, int, int]]

    @staticmethod
    def take() -> Kernel:
        meminfo = {}
        for line in Path("/proc/meminfo").read_text().splitlines():
            key, value = line.split(":")
            if key in MEMINFO:
                meminfo[key] = int(value.split()[0]) * 1024
        line = next(line for line in Path("/proc/net/sockstat").read_text().splitlines() if line.startswith("TCP:"))
        words = line.split()[1:]
        return Kernel(meminfo, dict(zip(words[::2], map(int, words[1::2]))), _caches())

    def since(self, before: Kernel) -> dict[str, Any]:
        """What became more. The sum leaves out what is not of these connections: caches of files, which other
        programs fill, and the TIME_WAITs of an earlier run, which end meanwhile."""
        grown = {key: value - before.meminfo[key] for key, value in self.meminfo.items() if key in before.meminfo}
        caches = {
            name: {"objects": count - before.caches[name][0], "bytes": slabs - before.caches[name][2]}
            for name, (count, _, slabs) in self.caches.items()
            if name in before.caches
        }
        slab = grown["Slab"]
        if caches:
            # Of the reclaimable ones a socket has an inode and a dentry. Those of files have dentries as well.
            inodes = caches["sock_inode_cache"]
            slab = grown["SUnreclaim"] + inodes["bytes"] + inodes["objects"] * self.caches["dentry"][1]
            slab -= sum(caches[name]["bytes"] for name in TIME_WAIT_CACHES if name in caches)
        buffers = (self.sockets["mem"] - before.sockets["mem"]) * plan.page_bytes()
        large = {name: entry for name, entry in caches.items() if abs(entry["bytes"]) >= 1 << 20}
        return {
            "bytes": slab + buffers + grown["PageTables"] + grown["KernelStack"],
            "slab_bytes": slab,
            "tcp_buffers_bytes": buffers,
            "page_tables_bytes": grown["PageTables"],
            "kernel_stack_bytes": grown["KernelStack"],
            "available_bytes": grown["MemAvailable"],
            "meminfo_bytes": grown,
            "sockets": {"before": before.sockets, "held": self.sockets},
            "caches": dict(sorted(large.items(), key=lambda item: -item[1]["bytes"])),
        }


def _caches() -> dict[str, tuple[int, int, int]]:
    try:
        lines = Path("/proc/slabinfo").read_text().splitlines()
    except PermissionError:
        return {}
    found = {}
    for line in lines[2:]:
        name, active, _, size, _, pages, *rest = line.split()
        slabs = int(rest[rest.index("slabdata") + 2])
        found[name] = (int(active), int(size), slabs * int(pages) * plan.page_bytes())
    return found


def processes_of(group: int) -> list[int]:
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                fields = Path(entry.path, "stat").read_bytes().rsplit(b")", 1)[1].split()
            except OSError:
                continue  # it ended meanwhile
            if int(fields[2]) == group:
                found.append(int(entry.name))
    return found


def memory_of(group: int) -> dict[str, int]:
    """What the processes of a group use: a page that n processes map counts as an n-th in each (PSS). Their
    own memory is that which is no file's: what they have of a library depends on who else uses it."""
    pids = processes_of(group)
    totals = {"Pss": 0, "Pss_Anon": 0, "Pss_Shmem": 0}
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
            key, value = line.split(":")
            if key in totals:
                totals[key] += int(value.split()[0]) * 1024
    own = totals["Pss_Anon"] + totals["Pss_Shmem"]
    return {"processes": len(pids), "pss_bytes": totals["Pss"], "own_bytes": own}


def cpu_ns_of(group: int) -> int:
    """Time on a CPU, to the nanosecond (proc(5) has ticks of 10 ms)."""
    return sum(
        int(Path(task.path, "schedstat").read_text().split()[0])
        for pid in processes_of(group)
        for task in os.scandir(f"/proc/{pid}/task")
    )


class Watch:
    """Follows a client that holds connections through its phases."""

    def __init__(self, server: Child, waiter: Waiter, idle_s: float) -> None:
        self._server = server
        self._waiter = waiter
        self._idle_s = idle_s
        self._kernel = Kernel.take()
        self._server_ready = memory_of(server.group)
        self.record: dict[str, Any] | None = None

    def follow(self, client: Child, deadline: float, available: Callable[[], int] = plan.available_bytes) -> bool:
        """Waits until the client ends (true), the server does, or the deadline passes."""
        looked = 0.0
        while (now := time.monotonic()) < deadline:
            if now - looked >= LOOK_S:
                looked = now
                if (left := available()) < FLOOR_BYTES:
                    held = Kernel.take().sockets["inuse"] // 2
                    raise OutOfMemory(f"ended with {held:,} connections: MemAvailable fell to {left / 2**30:.1f} GiB")
            line = client.line(self._waiter, min(deadline, now + LOOK_S), self._server)
            if line == "phase idle":
                self.record = self._measure(client)
            elif line is None:
                if client.ended(self._waiter, now):
                    return True
                if self._server.ended(self._waiter, now):
                    return False
        return False

    def _measure(self, client: Child) -> dict[str, Any]:
        began = time.monotonic()
        server = memory_of(self._server.group)
        record = {
            "server": {**server, "ready_own_bytes": self._server_ready["own_bytes"]},
            "client": memory_of(client.group),
            "kernel": Kernel.take().since(self._kernel),
            "memory_took_s": round(time.monotonic() - began, 3),
        }
        groups = {"server": self._server.group, "client": client.group}
        before, at = {name: cpu_ns_of(group) for name, group in groups.items()}, time.monotonic()
        # Up to a little before the phase ends, or whatever else happens.
        self._waiter.until((client.pidfd, self._server.pidfd), max(began + 0.95 * self._idle_s, at))
        window = time.monotonic() - at
        used = {name: cpu_ns_of(group) - before[name] for name, group in groups.items()}
        record["idle"] = {"window_s": round(window, 3), **{f"{name}_cpu_ns": value for name, value in used.items()}}
        return record
