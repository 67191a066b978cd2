"""Two runs beside each other: of two machines, two revisions, or the same at two times."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from matrix import facts, layout, stats
from matrix.figures import METRICS, Measured
from matrix.layout import Block, Entry, number, ratio_text
from matrix.rows import Row, Section
from matrix.spec import Matrix, UsageError
from matrix.store import Run
from matrix.view import AXES, axis_value, natural

DEFAULT = ("rate", "cpu")
LEGEND = ("B/A is the ratio of the two runs' typical figures, each run resampled by itself, as their repetitions are "
          "not paired (± half of a 95 % interval; ~ no difference seen, ? cannot tell). What else differs between the "
          "runs is below: a difference of hosts is no difference of programs.")


@dataclass(frozen=True)
class Pair:
    """One figure of one way in both runs."""

    metric: str
    title: str
    first: Measured | None
    second: Measured | None

    @property
    def ratio(self) -> stats.Estimate | None:
        if not self.first or not self.second:
            return None
        return stats.apart(self.second.values, self.first.values)


@dataclass(frozen=True)
class Compared:
    """A row that both runs have."""

    first: Row
    second: Row
    load: Section
    pairs: tuple[Pair, ...]


def compared(a: list[Section], b: list[Section], metric: str | None, axis: str) -> list[Compared]:
    """In the order of A, or by the values of an axis."""
    others = {(row.workload, row.way): (section, row) for section in b for row in section.rows}
    found = []
    for section in a:
        for row in section.rows:
            if (row.workload, row.way) not in others:
                continue
            other, its_row = others[row.workload, row.way]
            names = (metric,) if metric else DEFAULT
            pairs = tuple(
                Pair(name, METRICS[name].title(section.figure), section.measured(row.way, name),
                     other.measured(row.way, name))
                for name in names
            )
            found.append(Compared(row, its_row, section, pairs))
    if not found:
        raise UsageError("--compare: the two runs have no way and workload in common (among those that are chosen)")
    if axis and axis not in ("way", "workload"):
        found.sort(key=lambda one: natural(axis_value(one.first, axis)))
    return found


def _blocks(found: list[Compared], axis: str) -> Iterator[Block]:
    groups: dict[str, list[Compared]] = {}
    for one in found:
        groups.setdefault(axis_value(one.first, axis or "workload"), []).append(one)
    for value, group in groups.items():
        several = len({one.first.workload for one in group}) > 1
        title = value if axis in ("", "way", "workload") else f"{axis} {value or 'none'}"
        about = group[0].load.workload.summary if axis in ("", "workload") else ""
        entries = [_entry(one, _name(one, axis, several)) for one in group]
        yield Block(title, about, "workload" if axis == "way" else "way", _heads(group), entries)


def _name(one: Compared, axis: str, several: bool) -> str:
    if axis == "way":
        return one.first.workload
    return f"{one.first.workload} {one.first.way}" if several else one.first.way


def _entry(one: Compared, name: str) -> Entry:
    if not any(pair.first or pair.second for pair in one.pairs):
        return layout.without_figures(one.first, name)
    texts = []
    for pair in one.pairs:
        ratio = pair.ratio
        texts += [number(side.median if side else None) for side in (pair.first, pair.second)]
        texts.append(ratio_text(ratio and ratio.value, ratio and ratio.interval, stats.difference(ratio)))
    return Entry(name, texts)


def _heads(group: list[Compared]) -> list[tuple[str, str]]:
    heads = []
    for index in range(len(group[0].pairs)):
        titles = {one.pairs[index].title for one in group}
        what, _, unit = titles.pop().rpartition(", ") if len(titles) == 1 else ("", "", group[0].pairs[index].metric)
        heads += [(layout.cut(what or unit, 13), "A"), (unit if what else "", "B"), ("", "B/A")]
    return heads


def _changes(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key in {**a, **b}:
        first, second = a.get(key), b.get(key)
        if isinstance(first, dict) and isinstance(second, dict):
            yield from _changes(first, second, f"{prefix}{key}.")
        elif first != second:
            yield f"{prefix}{key} {first} | {second}"


def _host(meta: dict[str, Any]) -> dict[str, Any]:
    """What of a host is the same whenever one looks."""
    return {key: value for key, value in meta["host"].items() if key != "load_average_1min"}


def _build(meta: dict[str, Any]) -> dict[str, Any]:
    """Of the programs only whether they are the same: their sums tell nobody anything."""
    build = {key: value for key, value in meta["build"].items() if key not in ("folder", "programs_sha256")}
    return {**build, "revision": (meta["source"]["revision"] or "unknown")[:12], "dirty": meta["source"]["dirty"]}


OF_WORKLOAD = ("kind", "client", "pin", "fault", "every_s", "held", "figure")


def _matrices(a: dict[str, Any], b: dict[str, Any]) -> Iterator[str]:
    for key in ("name", "repetitions", "baseline"):
        if a[key] != b[key]:
            yield f"{key} {a[key]} | {b[key]}"
    for key, fields in (("ways", ("server", "client")), ("workloads", OF_WORKLOAD)):
        first, second = ({entry["name"]: entry for entry in matrix[key]} for matrix in (a, b))
        for label, names in (("A", first.keys() - second.keys()), ("B", second.keys() - first.keys())):
            if names:
                yield f"{key} only in {label}: {' | '.join(sorted(names))}"
        other = sorted(name for name in first.keys() & second.keys()
                       if any(first[name].get(field) != second[name].get(field) for field in fields))
        if other:
            yield f"{key} with other options, not to be compared: {' | '.join(other)}"


def differences(a: Run, b: Run) -> list[str]:
    """One line each on the hosts, the builds and the matrices: A | B."""
    found = []
    for what, changes in (
        ("Hosts", _changes(_host(a.meta), _host(b.meta))),
        ("Builds", _changes(_build(a.meta), _build(b.meta))),
        ("Matrices", _matrices(*(Matrix.from_json(run.meta["matrix"]).to_json() for run in (a, b)))),
    ):
        text = "; ".join(changes)
        found.append(f"{what} (A | B): {text}." if text else f"{what}: the same.")
    programs = [run.meta["build"]["programs_sha256"] for run in (a, b)]
    found[1] += " The programs are the same files." if programs[0] == programs[1] else " The programs are other files."
    if a.meta["client_shape"] != b.meta["client_shape"]:
        found.append(f"Load (A | B): {a.meta['client_shape']} | {b.meta['client_shape']}.")
    flags = [facts.flags(run.meta, run.cells) for run in (a, b)]
    found += [f"Flags of {label}: {'; '.join(flag)}." for label, flag in zip("AB", flags) if flag]
    return found


def lines(a: Run, b: Run, found: list[Compared], axis: str) -> list[Text]:
    texts: list[Text] = []
    for block in _blocks(found, axis):
        texts += [*layout.lines(block), Text("")]
    for text in (f"A is {facts.shown_path(a.path)}, B is {facts.shown_path(b.path)}.", LEGEND, *differences(a, b)):
        texts += layout.paragraph(text, "dim")
    return texts


def markdown(a: Run, b: Run, found: list[Compared], axis: str) -> str:
    parts = [part for block in _blocks(found, axis) for part in layout.markdown(block)]
    which = "A is `{}`, B is `{}`.".format(*(facts.shown_path(run.path) for run in (a, b)))
    parts += [f"- {text}" for text in (which, LEGEND, *differences(a, b))]
    return "\n".join(parts) + "\n"


def records(found: list[Compared]) -> list[dict[str, Any]]:
    made = []
    for one in found:
        for pair in one.pairs:
            ratio = pair.ratio
            made.append({
                **{axis: getattr(one.first, axis) for axis in AXES if axis != "status"},
                "status_a": one.first.status,
                "status_b": one.second.status,
                "metric": pair.metric,
                "title": pair.title,
                "median_a": pair.first and pair.first.median,
                "interval_a": pair.first and pair.first.interval,
                "median_b": pair.second and pair.second.median,
                "interval_b": pair.second and pair.second.interval,
                "ratio": ratio and ratio.value,
                "ratio_interval": ratio and ratio.interval,
                "difference": stats.difference(ratio),
            })
    return made
