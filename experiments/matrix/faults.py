"""Faults while a client runs, at random moments from a recorded seed: how each is made to happen, and when what it
broke is whole again. What they cost is reckoned in losses.py."""

from __future__ import annotations

import math
import os
import random
import signal
import time
from collections.abc import Callable
from typing import Any

from matrix.fault_kinds import KINDS
from matrix.process import Child, Waiter, adopt_orphans, children_of, describe_exit
from matrix.serving import CellFailed, Serving, problem
from matrix.spec import Workload, options_of

LOOK_S = 0.005  # while something is not whole again
LOOKS = 3  # at what is open while nothing happens: a look may meet what is open for a moment
BEGIN_S = 0.2  # in which the clients of an open loop have all connected
# Below the shortest --worker-deadline in use: the default is 0.4 s, from a look at the worker on.
PAUSE_S = 0.2
REPLACED_S = 2.0  # a stopped worker that nobody has replaced by then is killed by us
UPGRADED_S = 15.0
REST_S = 3.0  # for descriptors to be closed once nobody is connected
DRAIN_S = 8.0  # the server's --drain-timeout of 5 s, and some for the end

Event = dict[str, Any]
Report = Callable[[], dict[str, Any] | None]


class NoWorker(Exception):
    """There is nobody to kill."""


class _Fault:
    """One kind. strike() makes one happen and gives what is to be known of it, or None if it could not;
    is_over() is asked from then on until all is whole again, which it helps."""

    ends_server = False  # so its end tells of nothing else while a fault is under way

    def __init__(self, serving: Serving, chance: random.Random) -> None:
        self._serving = serving
        self._chance = chance

    def strike(self) -> Event | None:
        raise NotImplementedError

    def is_over(self, event: Event, after_s: float) -> bool:
        raise NotImplementedError


class _OfWorker(_Fault):
    """In each round of random order every worker has its turn once: a supervisor takes the quick deaths of one in a
    row for a crash loop, and waits twice as long each time before it replaces it."""

    number = signal.SIGKILL

    def __init__(self, serving: Serving, chance: random.Random) -> None:
        super().__init__(serving, chance)
        self._slots = dict(enumerate(serving.child.children()))
        self._round: list[int] = []
        if not self._slots:
            raise NoWorker("the server has no worker process to kill")

    def strike(self) -> Event | None:
        if not self._round:
            self._round = sorted(self._slots)
            self._chance.shuffle(self._round)
        worker = self._round[-1]
        if not self._send(self._slots[worker], self.number):
            return None
        return {"pid": self._slots[worker], "worker": self._round.pop()}

    def is_over(self, event: Event, after_s: float) -> bool:
        """Every slot has a process, which may have yet to begin; one not seen before stands in the slot that has lost
        its own."""
        alive = self._serving.child.children()
        free = [slot for slot, pid in self._slots.items() if pid not in alive]
        new = [pid for pid in alive if pid not in self._slots.values()]
        self._slots.update(zip(free, new))
        return len(new) >= len(free) and event["pid"] not in alive

    def _send(self, pid: int, number: signal.Signals) -> bool:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        try:
            # What the descriptor stands for is still this server's child, and not another's with its number.
            if pid not in self._serving.child.children():
                return False
            signal.pidfd_send_signal(pidfd, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(pidfd)
        return True


class _Stop(_OfWorker):
    number = signal.SIGSTOP

    def is_over(self, event: Event, after_s: float) -> bool:
        if super().is_over(event, after_s):
            return True
        if after_s > REPLACED_S and not event.get("not_replaced") and self._send(event["pid"], signal.SIGKILL):
            event["not_replaced"] = True
        return False


class _Pause(_OfWorker):
    number = signal.SIGSTOP

    def is_over(self, event: Event, after_s: float) -> bool:
        if after_s < PAUSE_S:
            return False
        # One that was replaced meanwhile is a death, which the server's report counts.
        self._send(event["pid"], signal.SIGCONT)
        super().is_over(event, after_s)
        return True


class _Acceptor(_Fault):
    ends_server = True

    def strike(self) -> Event | None:
        signal.pidfd_send_signal(self._serving.child.pidfd, signal.SIGKILL)
        return {"pid": self._serving.child.main}

    def is_over(self, event: Event, after_s: float) -> bool:
        return self._serving.replace(time.monotonic() + DRAIN_S - after_s)


class _Upgrade(_Fault):
    ends_server = True

    def __init__(self, serving: Serving, chance: random.Random) -> None:
        super().__init__(serving, chance)
        self._workers = len(serving.child.children())

    def strike(self) -> Event | None:
        signal.pidfd_send_signal(self._serving.child.pidfd, signal.SIGHUP)
        return {"pid": self._serving.child.main}

    def is_over(self, event: Event, after_s: float) -> bool:
        server = self._serving.child
        if server.main == event["pid"]:
            if not server.has_ended():
                if after_s > UPGRADED_S:
                    words = server.last_words() or "no message"
                    raise CellFailed(f"server did not hand over and end within {UPGRADED_S:g} s of SIGHUP: {words}")
                return False
            self._adopt_successor(server)
        return len(server.children()) >= self._workers

    def _adopt_successor(self, server: Child) -> None:
        """The one of the group that has lost its parent; workers of the old one that are still there as well have
        no children."""
        code = server.exit_code()
        members = server.members()
        orphans = [pid for pid, parent in members.items() if parent not in members]
        successors = [pid for pid in orphans if children_of(pid)]
        if code != 0 or len(successors) != 1:
            who = f"server ended after SIGHUP, with {len(successors)} successors,"
            raise CellFailed(problem(who, describe_exit(code), server.last_words(), "no message"))
        server.adopt(successors[0])


FAULTS: dict[str, type[_Fault]] = {"kill": _OfWorker, "stop": _Stop, "pause": _Pause, "acceptor": _Acceptor,
                                   "upgrade": _Upgrade}


class Injector:
    """Makes faults happen, one at a time and each only once all is whole again, and keeps the record of them."""

    def __init__(self, serving: Serving, load: Workload, seed: str, waiter: Waiter, report: Report) -> None:
        """`report` gives the report of a server that has ended and written one."""
        if FAULTS[load.fault].ends_server:
            adopt_orphans()
        self._serving = serving
        self._waiter = waiter
        self._report = report
        self._every_s = load.every_s
        self._last_s = float(options_of(load.client)["--duration"]) - KINDS[load.fault].settle_s
        self._chance = random.Random(f"{seed}/faults")
        self._fault = FAULTS[load.fault](serving, self._chance)
        self._struck: float | None = None  # when the one that is under way began
        self._most = 1 if KINDS[load.fault].leaves_clients and load.kind == "rr" else math.inf
        self._at_rest = self._fewest_descriptors()
        self._events: list[Event] = []
        self.record: dict[str, Any] = {"kind": load.fault, "seed": seed, "every_s": load.every_s,
                                       "events": self._events, "earlier": [], "hung": 0, "descriptors_left": 0,
                                       "processes_left": 0}

    def follow(self, client: Child, deadline: float) -> bool:
        """Waits until the client ends (true), the server does for another reason, or the deadline passes."""
        began = time.monotonic()
        due = began + BEGIN_S + self._pause()
        while True:
            watched = [] if self._struck is not None and self._fault.ends_server else [self._serving.child]
            wake = due if self._struck is None else time.monotonic() + LOOK_S
            if client.ended(self._waiter, min(wake, deadline), *watched):
                return True
            now = time.monotonic()
            if now >= deadline or any(server.ended(self._waiter, now) for server in watched):
                return False
            if self._struck is not None:
                # Counted from here, so that a fault never meets what the one before has yet to be repaired for.
                if self._look(now):
                    due = time.monotonic() + self._pause()  # a look waits for a server that starts
            elif now > began + self._last_s or len(self._events) >= self._most:
                due = deadline
            elif now >= due and not self._strike(now, began):
                due = now + LOOK_S

    def finish(self) -> None:
        """Once the client has ended: what is under way comes to its end, and what should have been closed by then
        is counted."""
        deadline = time.monotonic() + UPGRADED_S
        while self._struck is not None and time.monotonic() < deadline:
            self._wait()
            self._look(time.monotonic())
        deadline = time.monotonic() + REST_S
        while (left := self._serving.child.descriptors() - self._at_rest) > 0 and time.monotonic() < deadline:
            self._wait()
        self.record["descriptors_left"] = left
        deadline = time.monotonic() + DRAIN_S
        while any(map(Child.members, self._serving.retired)) and time.monotonic() < deadline:
            self._wait()

    def _fewest_descriptors(self) -> int:
        counts = []
        for _ in range(LOOKS):
            counts.append(self._serving.child.descriptors())
            self._wait()
        return min(counts)

    def _pause(self) -> float:
        return self._every_s * self._chance.uniform(0.5, 1.5)

    def _wait(self) -> None:
        self._waiter.until((), time.monotonic() + LOOK_S)

    def _strike(self, now: float, began: float) -> bool:
        event = self._fault.strike()
        if event is None:
            return False
        self._struck = now
        self._events.append({"at_s": round(now - began, 4), **event})
        return True

    def _look(self, now: float) -> bool:
        """Whether all is whole again."""
        assert self._struck is not None
        event, server = self._events[-1], self._serving.child.main
        if not self._fault.is_over(event, now - self._struck):
            return False
        event["whole_s"] = round(time.monotonic() - self._struck, 4)
        self._struck = None
        # A server that was killed has written none.
        if server != self._serving.child.main and (report := self._report()):
            self.record["earlier"].append(_kept(report))
        return True


def _kept(report: dict[str, Any]) -> dict[str, Any]:
    """What is read of the report of a server that another one has replaced."""
    totals = report.get("totals", {})
    return {"books": report.get("books", {}), "worker_deaths": report.get("worker_deaths", 0),
            "totals": {key: totals.get(key, 0) for key in ("accepted", "redelivered", "errors")}}
