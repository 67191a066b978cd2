"""Workers killed while a client runs, and what their deaths cost it."""

from __future__ import annotations

import math
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from matrix.figures import failed_attempts
from matrix.process import Child, Waiter

if TYPE_CHECKING:
    from matrix.rows import Row

LOOK_S = 0.01  # while a pool is not whole again
HUNG_NS = 1e9
ERROR = 0.025  # on each side of a 95 % interval


class NoWorker(Exception):
    """There is nobody to kill."""


class Killer:
    """Kills a random worker at random moments, each only once the pool is whole again: a supervisor takes
    quick deaths in a row for a crash loop and waits longer and longer before it replaces a worker."""

    def __init__(self, server: Child, waiter: Waiter, every_s: float, seed: str) -> None:
        self._server = server
        self._waiter = waiter
        self._every_s = every_s
        self._chance = random.Random(f"{seed}/kills")
        self._slots = dict(enumerate(server.children()))
        if not self._slots:
            raise NoWorker("the server has no worker process to kill")
        self._kills: list[dict[str, Any]] = []
        self.record: dict[str, Any] = {"seed": seed, "every_s": every_s, "kills": self._kills, "hung": 0}

    def follow(self, client: Child, deadline: float) -> bool:
        """Waits until the client ends (true), the server does, or the deadline passes."""
        began = time.monotonic()
        due = began + self._pause()
        while True:
            if client.ended(self._waiter, min(due, deadline), self._server):
                return True
            now = time.monotonic()
            if now >= deadline or self._server.ended(self._waiter, now):
                return False
            if self._is_whole() and self._kill(now - began):
                due = now + self._pause()
            else:
                due = now + LOOK_S

    def _pause(self) -> float:
        return self._every_s * self._chance.uniform(0.5, 1.5)

    def _is_whole(self) -> bool:
        """Every slot has a worker; a process not seen before stands in the slot that has lost its own."""
        alive = self._server.children()
        free = [slot for slot, pid in self._slots.items() if pid not in alive]
        new = [pid for pid in alive if pid not in self._slots.values()]
        self._slots.update(zip(free, new))
        return len(new) >= len(free)

    def _kill(self, at_s: float) -> bool:
        worker = self._chance.choice(sorted(self._slots))
        pid = self._slots[worker]
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        try:
            # What the descriptor stands for is still this server's child, and not another's with its number.
            if pid not in self._server.children():
                return False
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)
        self._kills.append({"at_s": round(at_s, 4), "pid": pid, "worker": worker})
        return True


def hung(client: dict[str, Any]) -> int:
    """Attempts that took over a second from their intended start: echoed so late, or given up."""
    late = sum(count for ns, count in client.get("latency", {}).get("buckets_ns", []) if ns > HUNG_NS)
    return late + client.get("outcomes", {}).get("timeout", 0)


def describe(row: Row, cells: list[dict[str, Any]]) -> None:
    """The kills of a row's cells and what they cost. The deaths are this workload's own doing, and so is what the
    dead held by the server's books: no faults. What clients lost of it is among their failed attempts."""
    seen = [cell for cell in cells if cell.get("crashes")]
    if not seen:
        return
    failed = Counter[str]()
    for cell in seen:
        failed.update(failed_attempts(cell["client"]))
    row.kills = sum(len(cell["crashes"]["kills"]) for cell in seen)
    row.kill_attempts = sum(cell["client"]["attempts"] for cell in seen)
    row.kill_failed = dict(failed)
    row.redelivered = sum(cell["server"]["totals"].get("redelivered", 0) for cell in seen)
    row.hung = sum(cell["crashes"]["hung"] for cell in seen)
    if row.kills:
        low, high = poisson_interval(failed.total())
        row.lost_per_kill = failed.total() / row.kills
        row.lost_per_kill_interval = (low / row.kills, high / row.kills)
    own = min(row.worker_deaths, row.kills)
    row.worker_deaths -= own
    row.faults -= own + row.lost


def poisson_interval(count: int) -> tuple[float, float]:
    """The exact (Garwood) 95 % interval of the mean of which this count was seen."""
    low = _mean(lambda mean: 1 - _at_most(count - 1, mean) >= ERROR, count) if count else 0.0
    return low, _mean(lambda mean: _at_most(count, mean) <= ERROR, count)


def _mean(reached: Callable[[float], bool], count: int) -> float:
    """The smallest mean that has reached it."""
    low, high = max(0.0, count - 6 * math.sqrt(count)), count + 6 * math.sqrt(count) + 6
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


def _at_most(count: int, mean: float) -> float:
    """The probability of so many or fewer. Terms further down are below what a float can add."""
    first = max(0, math.floor(count - 16 * math.sqrt(count)))
    logs = (i * math.log(mean) - mean - math.lgamma(i + 1) for i in range(first, count + 1))
    return math.fsum(map(math.exp, logs))
