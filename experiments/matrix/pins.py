"""Processes held to cores, so that which core is full is known and not the scheduler's choice."""

from __future__ import annotations

import os

from matrix.process import Child
from matrix.spec import Workload


def refusal(load: Workload) -> str:
    """Why this machine cannot do it; empty when it can."""
    here = os.sched_getaffinity(0)
    missing = sorted({core for cores in load.pin.values() for core in cores} - here)
    if not missing:
        return ""
    return f"pins to core {', '.join(map(str, missing))}, and this process has {', '.join(map(str, sorted(here)))}"


def pin_server(server: Child, load: Workload) -> None:
    """All threads that there are; those they make later inherit it. A worker's successor has the acceptor's cores."""
    for who, pids in (("acceptor", [server.group]), ("workers", server.children())):
        for pid in pids if who in load.pin else []:
            for thread in os.listdir(f"/proc/{pid}/task"):
                os.sched_setaffinity(int(thread), load.pin[who])
