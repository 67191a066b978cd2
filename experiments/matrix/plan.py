"""Held connections: how many processes they take, and whether this machine has what they need. Decided
before anything starts: a machine that runs out of memory half-way tells nothing."""

from __future__ import annotations

import math
import os
import resource
from dataclasses import dataclass
from pathlib import Path

# What a process needs descriptors for beside its connections: c10k-server's own reckoning for one
# process, and c10k-client's spare_descriptors; rounded up.
SERVER_OWN = 32
CLIENT_OWN = 64
# By a hash connections spread like balls thrown at random: no worker in thousands of runs is more than
# six standard deviations above the mean.
DEVIATIONS = 6
LEAST_WORKERS = 2
ADDRESSES = 254  # 127.0.0.1 to 127.0.0.254, as c10k-client takes them
# connect tries every second port first (net/ipv4/inet_hashtables.c, __inet_hash_connect). When the half of
# an address is taken, each further one tries all of that half: 18,000 connections from one address take 21 s
# here, from 254 addresses 1 s.
PORTS_USED = 0.5
CONNECTIONS_PER_ADDRESS = 4000
# Measured here with a million held: 8,400 bytes of the kernel for both ends, 150 in the server and 480 in the
# client. More, as the slabs of a kernel that has run for a while have gaps.
BYTES_PER_CONNECTION = 11_000
BYTES_PER_PROCESS = 4 << 20
BYTES_TO_SPARE = 2 << 30


@dataclass(frozen=True)
class Machine:
    descriptors: int  # of one process: RLIMIT_NOFILE, the hard limit, to which the programs raise theirs
    files: int  # of all processes: what fs.file-max leaves
    memory_bytes: int  # MemAvailable
    ports: int  # of one address: net.ipv4.ip_local_port_range
    tracked: int | None  # what nf_conntrack_max leaves; None where no connection is tracked

    @staticmethod
    def here() -> Machine:
        used, _, most = map(int, Path("/proc/sys/fs/file-nr").read_text().split())
        first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        return Machine(
            most if hard == resource.RLIM_INFINITY else hard, most - used, available_bytes(), last - first + 1, _tracked()
        )


def available_bytes() -> int:
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable:"))
    return int(line.split()[1]) * 1024


def _tracked() -> int | None:
    """The table exists as soon as the module is loaded; it is used only where a rule asks for it."""
    folder = Path("/proc/sys/net/netfilter")
    try:
        count, most = (int((folder / f"nf_conntrack_{name}").read_text()) for name in ("count", "max"))
    except OSError:
        return None
    return most - count if count else None


@dataclass(frozen=True)
class Plan:
    workers: int  # 0: one process serves all
    processes: int  # of the client
    sources: int
    refusal: str = ""  # why the machine cannot hold them; empty when it can

    def server_options(self) -> tuple[str, ...]:
        # What is left of a million connections takes longer to close than the default allows.
        drain = ("--drain-timeout", "60")
        return (*drain, "--workers", str(self.workers)) if self.workers else drain

    def client_options(self, connections: int) -> tuple[str, ...]:
        return ("--connections", str(connections), "--processes", str(self.processes), "--sources", str(self.sources),
                "--announce-phases")


def make(connections: int, pool: bool, machine: Machine) -> Plan:
    workers = _workers(connections, machine) if pool else 0
    processes = max(1, math.ceil(connections / max(1, machine.descriptors - CLIENT_OWN)))
    sources = min(ADDRESSES, math.ceil(connections / CONNECTIONS_PER_ADDRESS))
    return Plan(workers, processes, sources, _refusal(connections, max(workers, 1), processes, pool, machine))


def _workers(connections: int, machine: Machine) -> int:
    """The fewest of which none meets its descriptor limit."""
    room = max(1, machine.descriptors - SERVER_OWN)
    # mean + DEVIATIONS * sqrt(mean) = room, solved for sqrt(mean)
    mean = ((math.sqrt(DEVIATIONS**2 + 4 * room) - DEVIATIONS) / 2) ** 2
    return max(LEAST_WORKERS, math.ceil(connections / mean))


def _refusal(connections: int, servers: int, processes: int, pool: bool, machine: Machine) -> str:
    room = machine.descriptors - SERVER_OWN
    if not pool and connections > room:
        return (f"one process holds up to {room:,} connections (RLIMIT_NOFILE {machine.descriptors:,}), "
                f"and these are {connections:,}")
    if machine.descriptors <= max(SERVER_OWN, CLIENT_OWN):
        return f"RLIMIT_NOFILE is {machine.descriptors}, and a process needs more for itself"
    files = 2 * connections + servers * SERVER_OWN + processes * CLIENT_OWN
    if files > machine.files:
        return f"needs {files:,} open files (2 for each connection), and fs.file-max leaves {machine.files:,}"
    ports = int(ADDRESSES * machine.ports * PORTS_USED)
    if connections > ports:
        return (f"needs {connections:,} ports, and {ADDRESSES} addresses have {ports:,} "
                f"({PORTS_USED:.0%} of {machine.ports:,} each; beyond that connect gets slow)")
    if machine.tracked is not None and connections > machine.tracked:
        return f"needs {connections:,} tracked connections, and nf_conntrack_max leaves {machine.tracked:,}"
    memory = connections * BYTES_PER_CONNECTION + (servers + processes) * BYTES_PER_PROCESS + BYTES_TO_SPARE
    if memory > machine.memory_bytes:
        return (f"needs {_gib(memory)} ({connections:,} x {BYTES_PER_CONNECTION:,} B + {servers + processes} processes "
                f"x {BYTES_PER_PROCESS >> 20} MiB + {_gib(BYTES_TO_SPARE)} to spare), and MemAvailable is "
                f"{_gib(machine.memory_bytes)}")
    return ""


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def page_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE")
