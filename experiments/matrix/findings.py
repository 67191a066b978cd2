"""What a run says, in a few sentences: the fastest, the cheapest, who loses connections, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass, replace

from matrix.points import between, has_rate, is_killed, number, under_load, unit_of
from matrix.rows import Row, Section

NAMED = 6  # of a list of ways; the rest are a number


@dataclass(frozen=True)
class Finding:
    question: str
    answer: str  # ways
    detail: str  # figures, and how sure


@dataclass(frozen=True)
class Group:
    title: str
    findings: tuple[Finding, ...]
    remark: str = ""


def groups(sections: list[Section]) -> list[Group]:
    loads = [_of_load(section) for section in _compared(sections)]
    return [*loads, _of_kills(sections)]


def _compared(sections: list[Section]) -> list[Section]:
    """For each kind of load the one that most ways were measured with. At a given rate all are as fast."""
    best: dict[str, Section] = {}
    for section in sections:
        if not has_rate(section) and _measured(section):
            known = best.get(section.workload.kind)
            if known is None or len(_measured(section)) > len(_measured(known)):
                best[section.workload.kind] = section
    return list(best.values())


def _measured(section: Section) -> list[Row]:
    return [row for row in under_load(section) if row.median is not None]


def _of_load(section: Section) -> Group:
    rows = _measured(section)
    pools = [row for row in rows if row.method]
    lower, unit = section.figure.lower_is_better, unit_of(section)
    cpu_unit = f"us of the server's CPU per {section.figure.per}"
    findings = [
        _best(section, "Best" if lower else "Fastest", rows, "rate", lower, unit),
        _best(section, "Cheapest in CPU", rows, "cpu", True, cpu_unit),
    ]
    if pools and len(pools) < len(rows):
        findings += [
            _best(section, "Best with workers" if lower else "Fastest with workers", pools, "rate", lower, unit),
            _best(section, "Cheapest in CPU with workers", pools, "cpu", True, cpu_unit),
        ]
    limits = {" in the figure": section.unseen_below, " in CPU": section.cpu_unseen_below}
    seen = ", ".join(f"{limit:.0%}{what}" for what, limit in limits.items() if limit is not None)
    remark = "Too few repetitions: no difference to the baseline can be told from noise."
    if seen:
        remark = f"Of true differences to {section.baseline}, nine of ten are seen from about this size on: {seen}."
    title = f"{section.workload.name}: {section.workload.summary}"
    return Group(title, tuple(finding for finding in findings if finding), remark)


def _value(row: Row, metric: str) -> float | None:
    return row.median if metric == "rate" else row.cpu_us


def _best(section: Section, question: str, rows: list[Row], metric: str, lower: bool, unit: str) -> Finding | None:
    known = [row for row in rows if _value(row, metric) is not None]
    if not known:
        return None
    first = sorted(known, key=lambda row: (_value(row, metric) or 0) * (1 if lower else -1))[0]
    interval = first.interval if metric == "rate" else first.cpu_interval
    name, _, unit = unit.rpartition(", ")
    figure = f"{name} {number(_value(first, metric))} {unit}".strip()
    if interval:
        figure += f" (95 %: {between(interval)})"
    return Finding(question, first.way, f"{figure}. {_certainty(section, first, known, metric, lower)}")


def _certainty(section: Section, first: Row, rows: list[Row], metric: str, lower: bool) -> str:
    """How the others compare with the first, each paired within the repetitions."""
    against = replace(section, baseline=first.way, known={})
    worse = "dearer" if metric == "cpu" else "worse" if lower else "slower"
    found: dict[str, list[str]] = {"seen": [], "none": [], "unknown": []}
    for row in rows:
        if row.way != first.way:
            measured = against.measured(row.way, metric)
            found[measured.difference if measured else "unknown"].append(row.way)
    if not any(found.values()):
        return "No other way to compare with."
    parts = []
    if found["none"]:
        parts.append(f"No difference seen to {_names(found['none'])}.")
    if found["unknown"]:
        parts.append(f"Cannot tell from {_names(found['unknown'])}: too few repetitions.")
    if found["seen"]:
        count = len(found["seen"])
        others = f"{count} other{'s are' if count > 1 else ' is'}" if parts else "All others are"
        parts.append(f"{others} seen to be {worse}.")
    return " ".join(parts)


def _names(ways: list[str]) -> str:
    named = ", ".join(ways[:NAMED])
    return named if len(ways) <= NAMED else f"{named} and {len(ways) - NAMED} more"


def _of_kills(sections: list[Section]) -> Group:
    title = "When a worker is killed"
    rows = [row for section in sections if is_killed(section) for row in section.rows if row.lost_per_kill is not None]
    if not rows:
        return Group(title, (), "Not measured in this run; experiments/run_matrix faults measures it.")
    rows.sort(key=lambda row: row.lost_per_kill or 0)
    safe = [row for row in rows if not row.lost_per_kill]
    losing = [row for row in rows if row.lost_per_kill]
    findings = []
    bound = max((row.lost_per_kill_interval[1] for row in safe if row.lost_per_kill_interval), default=0.0)
    if losing:
        listed = "; ".join(map(_loss, reversed(losing[-NAMED:])))
        more = f"; and {len(losing) - NAMED} that lose less" if len(losing) > NAMED else ""
        findings.append(Finding("Lose connections", f"{len(losing)} of {len(rows)} ways:", f"{listed}{more}."))
    if safe:
        kills = sum(row.kills or 0 for row in safe)
        told = [row.way for row in losing if row.lost_per_kill_interval and row.lost_per_kill_interval[0] > bound]
        versus = f" Seen to lose more than these: {_names(told) or 'none, after so few kills'}." if losing else ""
        findings.append(Finding("None seen lost", ", ".join(row.way for row in safe),
                                f"in {kills:,} kills in all: at most {number(bound)} per kill each (95 %).{versus}"))
    if hanging := [f"{row.way} ({row.hung:,})" for row in rows if row.hung]:
        findings.append(Finding("Keep clients waiting over 1 s", _names(hanging), "attempts in all."))
    return Group(title, tuple(findings), "Lost is an attempt that did not end with its echo, whatever the outcome.")


def _loss(row: Row) -> str:
    return f"{row.way} {number(row.lost_per_kill)} per kill (95 %: {between(row.lost_per_kill_interval)})"
