"""What of a run is shown, and how it is grouped and ranked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from matrix.figures import METRICS, Measured
from matrix.rows import Row, Section, sections
from matrix.spec import UsageError
from matrix.store import Run

AXES = ("way", "method", "loop", "workers", "strategy", "workload", "connections", "kind", "group", "status")
OF_MEASURED = ("median", "interval", "ratio", "ratio_interval", "difference")


def condition(text: str) -> tuple[str, str]:
    """KEY=GLOB of --where."""
    key, equals, glob = text.partition("=")
    if not equals or key not in AXES:
        raise UsageError(f"--where: '{text}' is not KEY=GLOB; allowed keys: {', '.join(AXES)}")
    return key, glob


def axis_value(row: Row, axis: str) -> str:
    value = getattr(row, axis)
    return "" if value is None else str(value)


def select(run: Run, where: Sequence[str], baseline: str | None) -> list[Section]:
    """The sections of a run with the rows that meet all conditions; ratios are to the baseline even where
    that is not among them."""
    conditions = [condition(text) for text in where]
    found = sections(run, baseline)
    ways = {row.way for section in found for row in section.rows}
    if baseline is not None and baseline not in ways:
        raise UsageError(f"--baseline: no way '{baseline}'; allowed: {'; '.join(sorted(ways))}")
    kept = []
    for section in found:
        rows = [row for row in section.rows
                if all(fnmatchcase(axis_value(row, key), glob) for key, glob in conditions)]
        if rows:
            kept.append(replace(section, rows=rows))
    if not kept:
        raise UsageError(f"--where {' '.join(where)}: selects no row; {_allowed(found, conditions)}")
    return kept


def _allowed(found: list[Section], conditions: Sequence[tuple[str, str]]) -> str:
    """The values of the first axis whose condition no row meets, or of all that have one."""
    rows = [row for section in found for row in section.rows]
    alone = [key for key, glob in conditions if not any(fnmatchcase(axis_value(row, key), glob) for row in rows)]
    if not alone:
        return "no row meets them all"
    values = sorted({axis_value(row, alone[0]) or "''" for row in rows}, key=natural)
    return f"{alone[0]} is one of: {'; '.join(values)}"


def natural(text: str) -> list[tuple[int, str]]:
    """Sorts 16 before 1024."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]


@dataclass(frozen=True)
class Ranked:
    """A row and one figure of it."""

    row: Row
    section: Section
    measured: Measured | None

    @property
    def ratio(self) -> float | None:
        if self.row.way == self.section.baseline:
            return 1.0
        return self.measured.ratio if self.measured else None

    def rank(self, lower_is_better: bool, by_ratio: bool) -> tuple[bool, float]:
        """Best first; rows without a figure last."""
        if self.measured is None:
            return True, 0.0
        value = (self.ratio if by_ratio else None) or self.measured.median
        return False, value if lower_is_better else -value


def ranked(section: Section, metric: str) -> list[Ranked]:
    """By the ratio within repetitions where all have one, as that is what noise disturbs least."""
    lower = METRICS[metric].lower_is_better or section.figure.lower_is_better
    entries = [Ranked(row, section, section.measured(row.way, metric)) for row in section.rows]
    by_ratio = all(entry.ratio for entry in entries if entry.measured)
    return sorted(entries, key=lambda entry: entry.rank(lower, by_ratio))


def grouped(chosen: list[Section], metric: str, axis: str) -> Iterator[tuple[str, list[Ranked]]]:
    """The rows by the value of an axis, ranked within a group and workload."""
    groups: dict[str, list[Ranked]] = {}
    for section in chosen:
        for entry in ranked(section, metric):
            groups.setdefault(axis_value(entry.row, axis), []).append(entry)
    # Ways and workloads come in an order of their own.
    yield from groups.items() if axis in ("way", "workload") else sorted(
        groups.items(), key=lambda group: natural(group[0])
    )


def records(chosen: list[Section], metric: str | None, axis: str | None) -> list[dict[str, Any]]:
    """The rows for other programs: all figures, or the one that is asked for."""
    found = []
    for _, group in grouped(chosen, metric or "rate", axis or "workload") if metric or axis else []:
        found += [_record(entry, metric) if metric else asdict(entry.row) for entry in group]
    return found or [asdict(row) for section in chosen for row in section.rows]


def _record(entry: Ranked, metric: str) -> dict[str, Any]:
    row, measured = entry.row, entry.measured
    return {
        **{axis: getattr(row, axis) for axis in AXES},
        "reason": row.reason,
        "metric": metric,
        "title": METRICS[metric].title(entry.section.figure),
        "repetitions": len(measured.values) if measured else 0,
        "baseline": entry.section.baseline,
        **{key: getattr(measured, key, None) for key in OF_MEASURED},
    }
