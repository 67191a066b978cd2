"""What a run says, in a few sentences: the fastest, the cheapest, who loses connections, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass, replace

from matrix import table
from matrix.fault_kinds import KINDS
from matrix.points import NO_POOL, UNKNOWN, between, has_faults, number, under_load, unit_of, workers_text
from matrix.rows import Row, Section, faults_text
from matrix.view import ranked

NAMED = 6  # of a list of ways; the rest are a number
WORDS = {"rate": ("slower", "faster"), "cpu": ("dearer", "cheaper")}


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
    faults = [group for section in sections if has_faults(section) and (group := _of_faults(section))]
    absent = Group(KINDS["kill"].title, (), "Not measured in this run; experiments/run_matrix faults measures it.")
    return [*loads, *(faults or [absent])]


def _compared(sections: list[Section]) -> list[Section]:
    """For each kind of load the one that most ways were measured with. At a given rate all are as fast."""
    best: dict[str, Section] = {}
    for section in sections:
        if not section.workload.has_rate and _measured(section):
            known = best.get(section.workload.kind)
            if known is None or len(_measured(section)) > len(_measured(known)):
                best[section.workload.kind] = section
    return list(best.values())


def _measured(section: Section) -> list[Row]:
    return [row for row in under_load(section) if row.median is not None]


def _of_load(section: Section) -> Group:
    rows = _measured(section)
    pools = [row for row in rows if workers_text(row) not in (NO_POOL, UNKNOWN)]
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
    remarks = [table.seen([section])]
    if all(entry.ratio for entry in ranked(section, "rate") if entry.measured):
        remarks.append(f"First is who is so by the ratio to {section.baseline} within repetitions, not by medians.")
    if limited := sum(row.client_limited for row in rows):
        remarks.append(f"With {limited} of the {len(rows)} ways the client may have been the limit: they may be faster "
                       "than it could show.")
    if len(pools) < len(rows) and any(workers_text(row) == UNKNOWN for row in rows):
        remarks.append("Peers are not among those with workers: how many they have is not known here.")
    title = f"{section.workload.name}: {section.workload.summary}"
    return Group(title, tuple(finding for finding in findings if finding), " ".join(remarks))


def _value(row: Row, metric: str) -> float | None:
    return row.median if metric == "rate" else row.cpu_us


def _best(section: Section, question: str, rows: list[Row], metric: str, lower: bool, unit: str) -> Finding | None:
    known = [row for row in rows if _value(row, metric) is not None]
    if not known:
        return None
    ways = [row.way for row in known]
    first = next(entry.row for entry in ranked(section, metric) if entry.row.way in ways)
    measured = section.measured(first.way, metric)
    assert measured
    name, _, unit = unit.rpartition(", ")
    # With an interval goes the value that it is of, which is not quite the median.
    value = measured.typical.value if measured.typical else measured.median
    figure = f"{name} {number(value)} {unit}".strip()
    if measured.interval:
        figure += f" (95 %: {between(measured.interval)})"
    parts = [f"{figure}.", _certainty(section, first, known, metric, lower)]
    if first.client_limited:
        parts.append("The client may have been its limit.")
    if faults := faults_text(first):
        parts.append(f"Its faults: {faults}.")
    return Finding(question, first.way, " ".join(parts))


def _certainty(section: Section, first: Row, rows: list[Row], metric: str, lower: bool) -> str:
    """How the others compare with the first, each paired within the repetitions."""
    against = replace(section, baseline=first.way, known={})
    worse, better = WORDS[metric] if not lower or metric == "cpu" else ("worse", "better")
    found: dict[str, list[str]] = {"worse": [], "better": [], "none": [], "unknown": []}
    for row in rows:
        if row.way != first.way:
            measured = against.measured(row.way, metric)
            difference = measured.difference if measured else "unknown"
            if measured and measured.ratio and difference == "seen":
                difference = "worse" if (measured.ratio > 1) == lower else "better"
            found[difference].append(row.way)
    if not any(found.values()):
        return "No other way to compare with."
    parts = []
    if found["better"]:
        parts.append(f"Paired with it alone, seen to be {better}: {_names(found['better'])}.")
    if found["none"]:
        parts.append(f"No difference seen to {_names(found['none'])}.")
    if found["unknown"]:
        parts.append(f"Cannot tell from {_names(found['unknown'])}: too few repetitions.")
    if found["worse"]:
        count = len(found["worse"])
        others = f"{count} other{'s are' if count > 1 else ' is'}" if parts else "All others are"
        parts.append(f"{others} seen to be {worse}.")
    return " ".join(parts)


def _names(ways: list[str]) -> str:
    named = "; ".join(ways[:NAMED])
    return named if len(ways) <= NAMED else f"{named} and {len(ways) - NAMED} more"


def _of_faults(section: Section) -> Group | None:
    rows = [row for row in section.rows if row.lost_per_event is not None]
    if not rows:
        return None
    kind, keeps = KINDS[section.workload.fault], section.workload.kind == "rr"
    losing = sorted((row for row in rows if row.lost_per_event), key=lambda row: -(row.lost_per_event or 0))
    safe = [row for row in rows if not row.lost_per_event]
    bounds = [row.lost_per_event_interval for row in rows if row.lost_per_event_interval]
    differ = max(low for low, _ in bounds) > min(high for _, high in bounds)
    findings = _different(losing, safe) if differ or not losing or len(rows) == 1 else [_alike(losing, safe)]
    if hanging := [f"{row.way} ({row.hung:,}{', out of connections' * bool(row.ran_out)})" for row in rows if row.hung]:
        findings.append(Finding("Keep clients waiting over 1 s", _names(hanging), "attempts in all."))
    title = f"{kind.title}, {section.workload.name}: {section.workload.summary}"
    remark = "Lost is a connection that its client had to open again." if keeps else \
        "Lost is an attempt that did not end with its echo, whatever the outcome."
    if section.workload.fault == "acceptor" and not keeps:
        remark += " What was refused until another server listened is counted apart; what was reset is lost."
    if keeps and kind.of_worker:
        remark += " Those of one worker go together, so the intervals, which are of losses one by one, are too narrow."
    return Group(title, tuple(findings), remark)


def _events(rows: list[Row]) -> str:
    return f"{sum(row.events or 0 for row in rows):,} {KINDS[rows[0].fault or 'kill'].events}"


def _loss(row: Row) -> str:
    return f"{row.way} {row.lost_in_faults or 0:,} in {_events([row])}"


def _alike(losing: list[Row], safe: list[Row]) -> Finding:
    none = f" None seen lost in {_events(safe)}: {_names([row.way for row in safe])}." if safe else ""
    return Finding("Lose connections", f"No difference seen between the {len(losing) + len(safe)} ways:",
                   f"all their 95 % intervals overlap. Lost: {_names(list(map(_loss, losing)))}.{none}")


def _different(losing: list[Row], safe: list[Row]) -> list[Finding]:
    findings = []
    event = KINDS[(losing or safe)[0].fault or "kill"].event
    if losing:
        listed = _names([f"{_loss(row)} (95 %: {between(row.lost_per_event_interval)} per {event})" for row in losing])
        findings.append(Finding("Lose connections", f"{len(losing)} of {len(losing) + len(safe)} ways:", f"{listed}."))
    if safe:
        bound = max((row.lost_per_event_interval[1] for row in safe if row.lost_per_event_interval), default=0.0)
        told = [row.way for row in losing if row.lost_per_event_interval and row.lost_per_event_interval[0] > bound]
        more = _names(told) or f"none, after so few {event}s"
        versus = f" Seen to lose more than all these: {more}." if losing else ""
        findings.append(Finding("None seen lost", "; ".join(row.way for row in safe),
                                f"in {_events(safe)} in all: at most {number(bound)} per {event} each (95 %).{versus}"))
    return findings
