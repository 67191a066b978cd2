"""The figures within the text of NOTES.md: each stands between marks that say where it is from,

    <!--RUN; WORKLOAD; WAY; FIGURE-->30.1<!--/-->

RUN is a folder of experiments/reference. WAY may be 'WAY / BASE' for a ratio to another way than the run's own
baseline. Of handoff-bench WORKLOAD is the batch. A name's | is escaped by a backslash, as it must be in a table."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from matrix import bench, cores, losses
from matrix.figures import METRICS, Measured
from matrix.points import number
from matrix.rows import Row, Section, sections
from matrix.store import Run, StoreError

NOTHING = number(None)
MARK = re.compile(r"<!--([^;<>]+);([^;<>]+);([^;<>]+);([^;<>]+)-->(.*?)<!--/-->", re.DOTALL)
ATTRIBUTES = ("kernel_bytes", "server_bytes", "client_bytes", "server_processes", "client_processes", "events",
              "fault_attempts", "fault_exposed", "fault_echoed", "redelivered", "reopened", "hung", "repetitions",
              "attempts",
              "queue_overflows", "lost_in_faults", "lost_per_event", "whole_ms", "whole_max_ms", "descriptors_left",
              "processes_left", "connections_largest_to_mean", "cpu_largest_to_mean")


@dataclass(frozen=True)
class Place:
    section: Section
    all_sections: list[Section]
    row: Row


def _with(value: float | None, bounds: tuple[float, float] | None) -> str:
    if not bounds:
        return number(value)
    return f"{number(value)} ({number(bounds[0])} to {number(bounds[1])})"


def _measured(place: Place, metric: str) -> Measured:
    if not (found := place.section.measured(place.row.way, metric)):
        raise ValueError(f"it has no {metric}")
    return found


def _typical(found: Measured) -> str:
    """With an interval goes the value that it is of, which is not quite the median."""
    return _with(found.typical.value, found.interval) if found.typical else NOTHING


def _ratio(found: Measured) -> str:
    return _with(found.ratio, found.ratio_interval)


def _cost(place: Place) -> cores.Cost:
    if not (cost := cores.cost_of(place.section, place.row.way)):
        raise ValueError("its CPU has no such figure")
    return cost


def _share(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.0%}"


FIGURES: dict[str, Callable[[Place], str]] = {
    **{name: lambda at, name=name: number(_measured(at, name).median) for name in METRICS},
    **{f"{name}95": lambda at, name=name: _typical(_measured(at, name)) for name in METRICS},
    "ratio": lambda at: number(_measured(at, "rate").ratio),
    "ratio95": lambda at: _ratio(_measured(at, "rate")),
    "cpu-ratio": lambda at: number(_measured(at, "cpu").ratio),
    "cpu-ratio95": lambda at: _ratio(_measured(at, "cpu")),
    "p50-ms": lambda at: number(at.row.latency_p50_us and at.row.latency_p50_us / 1000),
    "p99-ms": lambda at: number(at.row.latency_p99_us and at.row.latency_p99_us / 1000),
    "lost95": lambda at: _with(at.row.lost_per_event, at.row.lost_per_event_interval),
    "lost-bound": lambda at: losses.rate_text(at.row.lost_in_faults, at.row.events, at.row.fault_exposed, number,
                                              of=True),
    "failed": lambda at: f"{sum(at.row.failed_attempts.values()):,}",
    "unseen": lambda at: _share(at.section.unseen_below),
    "cpu-unseen": lambda at: _share(at.section.cpu_unseen_below),
    "acceptor-full": lambda at: number(_cost(at).full_at),
    "feeds-cores": lambda at: number(_cost(at).fed),
    **{f"on-{count}": lambda at, count=count: number(_cost(at).rate_on(count)) for count in cores.CORES},
    "predicted": lambda at: number(cores.predicted(at.all_sections, at.section, at.row.way)),
    **{name: lambda at, name=name: number(getattr(at.row, name)) if isinstance(getattr(at.row, name), float)
       else f"{getattr(at.row, name):,}" for name in ATTRIBUTES},
}


def of_run(run: Run) -> Callable[[str, str, str], str]:
    """What gives the figure for a workload, a way and the figure's name."""
    found = sections(run)

    def value(workload: str, way: str, figure: str) -> str:
        name, _, base = way.partition(" / ")
        section = next((section for section in found if section.workload.name == workload), None)
        row = section and next((row for row in section.rows if row.way == name), None)
        if section is None or row is None:
            raise ValueError(f"{run.path} has no {workload} of {name}")
        if figure not in FIGURES:
            raise ValueError(f"unknown figure; allowed: {', '.join(FIGURES)}")
        if base:
            if base not in section.cells:
                raise ValueError(f"{run.path} has no {workload} of {base}")
            section = replace(section, baseline=base, known={})
        text = FIGURES[figure](Place(section, found, row))
        if text == NOTHING:
            raise ValueError(f"{run.path} has no such figure of it")
        return text

    return value


def of_bench(data: dict[str, Any]) -> Callable[[str, str, str], str]:
    """CPU of both sides for a descriptor, pinned to one core."""

    def value(batch: str, way: str, figure: str) -> str:
        for row in data["streams"]:
            if (row["name"], row["pin"], str(row["batch"])) == (way, "one", batch) and figure in row:
                return bench.nanoseconds(row[figure]["median"])
        raise ValueError(f"{bench.NAME} has no {figure} of {way} by {batch}")

    return value


def filled(text: str, run: str, value: Callable[[str, str, str], str]) -> str:
    """The text with the figures of one run as its data has them."""

    def figure(match: re.Match[str]) -> str:
        name, workload, way, what = (part.strip().replace("\\|", "|") for part in match.groups()[:4])
        if name != run:
            return match[0]
        try:
            return f"<!--{';'.join(match.groups()[:4])}-->{value(workload, way, what)}<!--/-->"
        except (ValueError, TypeError) as error:
            raise StoreError(f"mark {match[0]!r}: {error}") from None

    return MARK.sub(figure, text)


def runs_named(text: str) -> set[str]:
    return {match[1].strip() for match in MARK.finditer(text)}
