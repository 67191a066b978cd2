"""The rows of a run as the report has them: flat, with texts for what a reader filters by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from matrix.rows import Row, Section, faults_text, reason_text

Point = dict[str, Any]

SHARES_SHOWN = 8  # workers
ANATOMY = "anatomy"  # the group of ways that take one way apart
NO_POOL, UNKNOWN, DEFAULT = "no pool", "unknown", "default"  # workers that are no number
VERDICTS = {"base": "baseline", "seen": "difference seen", "none": "no difference seen", "unknown": "cannot tell"}


@dataclass(frozen=True)
class Column:
    head: str
    text: Callable[[Point], str]
    is_number: bool = True


def number(value: float | None) -> str:
    """Three significant digits are more than the repetitions agree on; of little there are two, and never
    a zero that is none."""
    if value is None:
        return "–"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if 0 < abs(value) < 0.1:
        return f"{value:#.2g}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def between(ends: tuple[float | None, float | None] | None) -> str:
    low, high = ends or (None, None)
    return "–" if low is None or high is None else f"{number(low)} to {number(high)}"


def counts(found: dict[str, int] | None) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in (found or {}).items() if count)


def workers_text(row: Row) -> str:
    """A peer may have workers of its own, and a pool that is not told how many decides by the cores."""
    if row.workers is not None:
        return str(row.workers)
    return {"pool": DEFAULT, "peer": UNKNOWN}.get(row.strategy, NO_POOL)


def _shares(found: list[float]) -> str:
    """The largest first; of many the first ones and the last."""
    shown = [f"{share:.0%}" for share in found]
    return " ".join(shown if len(shown) <= SHARES_SHOWN else [*shown[: SHARES_SHOWN - 1], "…", shown[-1]])


def _faults(row: Row) -> str:
    """Where faults are made to happen, failed attempts and what the books call lost are figures of their own."""
    return faults_text(row if row.events is None else replace(row, failed_attempts={}, lost=0))


def point(row: Row) -> Point:
    """`low` and `high` of a figure are its 95 % interval."""
    here = {
        "workload": row.workload,
        "way": row.way,
        "strategy": row.strategy,
        "method": row.method,
        "loop": row.loop or "its own",
        "workers": workers_text(row),
        "connections": UNKNOWN if row.connections is None else str(row.connections),
        "at_once": row.connections,
        "reason": reason_text(row),
        "repetitions": row.repetitions,
        "faults": _faults(row),
        "limited": "the client may be the limit" if row.client_limited else "",
        "median": row.median,
        "ratio": row.ratio,
        "verdict": VERDICTS[row.difference],
        "cpu": row.cpu_us,
        "acceptor_cpu": row.acceptor_cpu_us,
        "worker_cpu": row.worker_cpu_us,
        "cpu_ratio": row.cpu_ratio,
        "cpu_verdict": VERDICTS[row.cpu_difference],
        "voluntary": row.voluntary_switches,
        "involuntary": row.involuntary_switches,
        "p50": row.latency_p50_us,
        "p90": row.latency_p90_us,
        "p99": row.latency_p99_us,
        "p99_9": row.latency_p99_9_us,
        "max": row.latency_max_us,
        "connection_balance": row.connections_largest_to_mean,
        "cpu_balance": row.cpu_largest_to_mean,
        "connection_shares": _shares(row.connection_shares),
        "cpu_shares": _shares(row.cpu_shares),
        "events": row.events,
        "attempts": row.fault_attempts,
        "failed": counts(row.fault_failed),
        "reopened": row.reopened,
        "redelivered": row.redelivered,
        "lost": row.lost_per_event,
        "hung": row.hung,
        "whole_ms": row.whole_ms,
        "whole_max_ms": row.whole_max_ms,
        "left": counts({"descriptors": row.descriptors_left or 0, "processes": row.processes_left or 0}) or
        ("none" if row.descriptors_left is not None else ""),
        "books_lost": row.lost,
    }
    intervals = {"": row.interval, "ratio_": row.ratio_interval, "cpu_": row.cpu_interval,
                 "cpu_ratio_": row.cpu_ratio_interval, "lost_": row.lost_per_event_interval}
    for prefix, bounds in intervals.items():
        here[f"{prefix}low"], here[f"{prefix}high"] = bounds or (None, None)
    return here


def unit_of(section: Section) -> str:
    return " ".join(section.figure.title).strip().replace(" /s", "/s")


def has_faults(section: Section) -> bool:
    return bool(section.workload.fault)


def under_load(section: Section) -> list[Row]:
    """The rows that compare ways. The anatomy's steps are a topic of their own, and so are faults."""
    return [] if has_faults(section) else [row for row in section.rows if row.group != ANATOMY]


def figure(head: str, key: str) -> Column:
    return Column(head, lambda here: number(here[key]))


def bounds(prefix: str) -> Column:
    return Column("95 %", lambda here: between((here[f"{prefix}low"], here[f"{prefix}high"])))


def whole(head: str, key: str) -> Column:
    return Column(head, lambda here: "–" if here[key] is None else f"{here[key]:,}")


def text(head: str, key: str, is_number: bool = False) -> Column:
    return Column(head, lambda here: here[key] or "–", is_number)


def _note(here: Point) -> str:
    """Why a row has no figure, and what to hold against one."""
    return "; ".join(here[key] for key in ("reason", "faults", "limited") if here[key]) or "–"


WAY = text("way", "way")
NOTE = Column("faults and notes", _note, is_number=False)
