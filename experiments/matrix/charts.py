"""The charts of a run: a Vega-Lite specification each, as data, and the rows it draws.

The page and the pictures of NOTES.md draw the same specifications. A specification names its points
"points" and holds none, so that the page can hand it those that a filter leaves. What comes from a run
is only ever a point's value, never a part of a specification: there it could be read as an expression."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from matrix.fault_kinds import KINDS
from matrix.points import (ANATOMY, NO_POOL, NOTE, VERDICTS, WAY, Column, Point, bounds, figure, has_faults,
                           point, text, under_load, unit_of, whole, workers_text)
from matrix.rows import Row, Section

Spec = dict[str, Any]

# Told apart in all common kinds of colour blindness (Okabe and Ito, 2008), and on white as on near black:
# for that some of their colours are darkened here. Every series has a shape of its own as well.
BLUE, VERMILLION, GREEN, PURPLE, OCHRE, SKY, GREY = (
    "#0072b2", "#d55e00", "#009e73", "#b5658f", "#a87900", "#3a8fc4", "#808080")
COLOURS = [BLUE, VERMILLION, GREEN, PURPLE, OCHRE, SKY, GREY]
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left"]

LOG = {"type": "log", "nice": False, "padding": 12}
POINT = {"type": "point", "filled": True, "size": 70, "opacity": 1}
PARTS = {"acceptor_cpu": "acceptor", "worker_cpu": "workers", "cpu": "both"}
OF_EACH_POINT = ("--connections", "--sources", "--duration", "--idle", "--timeout")
UNSURE = {"none": " ~", "unknown": " ?"}
SHARES = ["acceptor_cpu", "worker_cpu"]
PERCENTILES = {"p50": "p50", "p90": "p90", "p99": "p99", "p99_9": "p99.9", "max": "max"}
OPEN_LOOP = "Left is better. At a given rate latency counts from when a start was intended: waiting is in it."
CLOSED_LOOP = ("A closed loop: who is served starts anew at once, so latency is mostly the number at once divided by "
               "the rate, and ranks ways as throughput does. It counts from when a start was made.")
BALANCES = {"connection_balance": "connections", "cpu_balance": "CPU"}


@dataclass(frozen=True)
class Chart:
    name: str  # of its file too
    title: str
    caption: str  # how to read it
    spec: Spec
    fields: tuple[str, ...]  # what it draws of a row; without the first a row is in the table alone
    rows: tuple[Point, ...]  # of its table
    columns: tuple[Column, ...]

    @property
    def points(self) -> list[Point]:
        """Each knows its row of the table: that is what it says on hover."""
        return [
            {"row": index, "way": row["way"], **{key: row[key] for key in self.fields}}
            for index, row in enumerate(self.rows)
            if row[self.fields[0]] is not None
        ]


def config(ink: str, background: str | None = None) -> Spec:
    """The looks that all charts share; `ink` is the colour of text."""
    axis = {"labelColor": ink, "titleColor": ink, "domainColor": GREY, "tickColor": GREY, "gridColor": GREY,
            "gridOpacity": 0.25, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"}
    return {
        "background": background,
        "font": "system-ui, sans-serif",
        "view": {"stroke": None, "continuousWidth": 620},
        "axis": axis,
        "axisX": {"labelOverlap": "greedy", "tickCount": {"signal": "ceil(width / 100)"}},
        "scale": {"bandPaddingInner": 0.25},
        # Cut in the middle: what tells the variants of a method apart stands at the end of their names.
        "axisY": {"labelLimit": 280, "labelExpr": "truncate(datum.label, 40, 'center')"},
        "legend": {"orient": "top", "labelColor": ink, "labelFontSize": 12, "labelLimit": 260},
        "text": {"color": ink},
    }


def spec_of(**parts: Any) -> Spec:
    return {"data": {"name": "points"}, "height": {"step": 19}, **parts}


def file_name(*parts: str) -> str:
    """A file's name: what a workload is called may be no part of a path."""
    return re.sub(r"[^\w.-]+", "-", "-".join(parts))


def way_axis(field: str, order: str = "ascending") -> Spec:
    """A line for each way, ordered by a figure; with an operation, as layers share an order only so."""
    return {"field": "way", "type": "nominal", "title": None, "sort": {"field": field, "op": "min", "order": order}}


def quantity(field: str, title: str, **more: Any) -> Spec:
    return {"field": field, "type": "quantitative", "title": title, **more}


def series_of(field: str, names: dict[str, str]) -> Spec:
    """Colour and shape for each series; `names` maps the values in the points to what the legend says."""
    keys = list(names)
    label = "".join(f"datum.value === '{key}' ? '{name}' : " for key, name in names.items()) + "datum.label"
    columns = {"signal": f"width < 420 ? 2 : {len(keys)}"}
    legend = {"title": None, "labelExpr": label, "symbolOpacity": 1, "columns": columns}

    def channel(values: list[str]) -> Spec:
        scale = {"domain": keys, "range": values[: len(keys)]}
        return {"field": field, "type": "nominal", "legend": legend, "scale": scale}

    return {"color": channel(COLOURS), "shape": channel(SHAPES)}


def interval_line(low: str, high: str, title: str, **more: Any) -> Spec:
    return {"mark": {"type": "rule", "strokeWidth": 3, "color": GREY},
            "encoding": {"x": quantity(low, title, **more), "x2": {"field": high}}}


def dots(names: dict[str, str], series: str, value: str, unit: str, y: Spec, *under: Spec, shown: str = "") -> Spec:
    """Several figures of a way on one line, each of `names` a series; `under` are layers below their marks."""
    fold = {"fold": list(names), "as": [series, value]}
    mark = {"mark": POINT, "encoding": {"x": quantity(value, unit, scale=LOG), **series_of(series, names)}}
    return spec_of(transform=[fold, {"filter": shown}] if shown else [fold], encoding={"y": y}, layer=[*under, mark])


def _sorted(rows: list[Row], key: Callable[[Row], float | None], sign: int = 1) -> tuple[Point, ...]:
    """By a figure; those without it last."""
    return tuple(map(point, sorted(rows, key=lambda row: (key(row) is None, sign * (key(row) or 0)))))


def throughput(sections: list[Section]) -> Iterator[Chart]:
    for section in sections:
        rows, unit, lower = under_load(section), unit_of(section), section.figure.lower_is_better
        if not rows:
            continue
        compared = (f"the mark says how the way compares with {section.baseline} within the same repetitions."
                    if section.has_baseline else
                    f"{section.baseline} is not measured under this load: there are no ratios.")
        spec = spec_of(
            encoding={"y": way_axis("median", "ascending" if lower else "descending")},
            layer=[
                {"mark": {"type": "bar", "color": GREY, "opacity": 0.3}, "encoding": {"x": quantity("median", unit)}},
                interval_line("low", "high", unit),
                {"mark": POINT, "encoding": {"x": quantity("median", unit),
                                             **series_of("verdict", {name: name for name in VERDICTS.values()})}},
            ],
        )
        yield Chart(
            file_name("throughput", section.workload.name),
            f"{section.workload.name}: {section.workload.summary}",
            f"{'Shorter' if lower else 'Longer'} is better. The line at a bar's end is its 95 % interval; {compared}",
            spec,
            ("median", "low", "high", "verdict"),
            _sorted(rows, lambda row: row.median, 1 if lower else -1),
            (WAY, figure(unit, "median"), bounds(""), figure("ratio", "ratio"), bounds("ratio_"),
             text("verdict", "verdict"), text("loop", "loop"), text("workers", "workers"),
             whole("repetitions", "repetitions"), NOTE),
        )


def cpu(sections: list[Section]) -> Iterator[Chart]:
    for section in sections:
        rows = under_load(section)
        if all(row.cpu_us is None for row in rows):
            continue
        unit = f"server CPU, us per {section.figure.per}"
        spec = dots(PARTS, "part", "us", unit, way_axis("cpu"),
                    interval_line("cpu_low", "cpu_high", unit, scale=LOG), shown="datum.us > 0.02 * datum.cpu")
        yield Chart(
            file_name("cpu", section.workload.name),
            f"{section.workload.name}: {unit}",
            "Left is cheaper; the scale is logarithmic. The line is the 95 % interval of both together. "
            "A server of one process has no acceptor: all its CPU counts as worker. Parts under 2 % are not drawn.",
            spec,
            ("cpu", "cpu_low", "cpu_high", "acceptor_cpu", "worker_cpu"),
            _sorted(rows, lambda row: row.cpu_us),
            (WAY, figure("both, us", "cpu"), bounds("cpu_"), figure("acceptor, us", "acceptor_cpu"),
             figure("workers, us", "worker_cpu"), figure("ratio", "cpu_ratio"), bounds("cpu_ratio_"),
             text("verdict", "cpu_verdict"), figure("voluntary switches", "voluntary"),
             figure("involuntary switches", "involuntary"), NOTE),
        )


def latency(sections: list[Section]) -> Iterator[Chart]:
    unit = "latency, us"
    reach = {"mark": {"type": "rule", "color": GREY},
             "encoding": {"x": quantity("p50", unit, scale=LOG), "x2": {"field": "max"}}}
    spec = dots(PERCENTILES, "percentile", "us", unit, way_axis("p50"), reach, shown="datum.us > 0")
    for section in sections:
        rows = under_load(section)
        if any(row.latency_p50_us is not None for row in rows):
            yield Chart(
                file_name("latency", section.workload.name),
                f"{section.workload.name}: latency",
                f"{OPEN_LOOP if section.workload.has_rate else CLOSED_LOOP} The scale is logarithmic; each mark is a "
                "percentile's median over the repetitions.",
                spec,
                tuple(PERCENTILES),
                _sorted(rows, lambda row: row.latency_p50_us),
                (WAY, *(figure(f"{name}, us", key) for key, name in PERCENTILES.items()), NOTE),
            )


def balance(sections: list[Section]) -> Iterator[Chart]:
    spec = spec_of(
        transform=[{"fold": list(BALANCES), "as": ["what", "largest"]}, {"filter": "datum.largest > 0"}],
        mark=POINT,
        encoding={"x": quantity("largest", "largest worker to the mean", scale={"zero": False}),
                  "y": way_axis("connection_balance"), **series_of("what", BALANCES)},
    )
    for section in sections:
        rows = [row for row in under_load(section) if row.method or row.connections_largest_to_mean is not None]
        if any(row.connections_largest_to_mean is not None for row in rows):
            yield Chart(
                file_name("balance", section.workload.name),
                f"{section.workload.name}: balance over the workers",
                "1 is even; where one worker has all, it is the number of workers. Medians over the repetitions; of "
                "the shares, that of the largest in each, of the next one, and so on.",
                spec,
                tuple(BALANCES),
                _sorted(rows, lambda row: row.connections_largest_to_mean),
                (WAY, text("workers", "workers"), figure("connections, largest to mean", "connection_balance"),
                 figure("CPU, largest to mean", "cpu_balance"), text("connections of each worker", "connection_shares"),
                 text("CPU of each worker", "cpu_shares"), NOTE),
            )


def anatomy(sections: list[Section]) -> Iterator[Chart]:
    for section in sections:
        rows = [row for row in section.rows if row.group == ANATOMY]
        if any(row.cpu_us is not None for row in rows):
            yield _anatomy(section, rows)


def _anatomy(section: Section, rows: list[Row]) -> Chart:
    unit = f"server CPU, us per {section.figure.per}"
    spec = spec_of(
        transform=[{"fold": SHARES, "as": ["part", "us"]}],
        encoding={"y": way_axis("order")},
        layer=[
            {"mark": {"type": "bar", "stroke": "white", "strokeWidth": 0.5},
             "encoding": {"x": quantity("us", unit, stack=True), "order": {"field": "part"},
                          "color": series_of("part", {key: PARTS[key] for key in SHARES})["color"]}},
            # Of the two points that a row became here, one has its text.
            {"mark": {"type": "text", "align": "left", "dx": 6},
             "encoding": {"x": quantity("end", unit),
                          "text": {"condition": {"test": "datum.part === 'worker_cpu'",
                                                 "field": "change"}, "value": ""}}},
        ],
    )
    return Chart(
        file_name("anatomy", section.workload.name),
        f"{section.workload.name}: one step less in each row",
        "The left part of a bar is the acceptor's, the right part the workers'. Beside it stands what the step changes "
        "against the row that the table names, in us; ~ where their ratio within the same repetitions shows no "
        "difference, ? where it cannot tell. Where steps between were left out of a run (--only), they count "
        "with the next.",
        spec,
        ("cpu", "acceptor_cpu", "worker_cpu", "end", "order", "change"),
        tuple(_steps(section, rows)),
        (WAY, figure("CPU, us", "cpu"), bounds("cpu_"), figure("acceptor, us", "acceptor_cpu"),
         figure("workers, us", "worker_cpu"), text("step changes, us", "change", is_number=True),
         figure("of it acceptor", "acceptor_change"), figure("of it workers", "worker_change"),
         text("share of the whole", "share", is_number=True), text("against", "against"),
         figure("ratio to that", "step_ratio"), bounds("step_"), figure(unit_of(section), "median"), NOTE),
    )


def _steps(section: Section, rows: list[Row]) -> list[Point]:
    """In the matrix's order, a way named "- ..." or "+ ..." is the one before it with a step less or more;
    what stands before the first of them is the whole that they take apart."""
    whole_at = max(0, next((index for index, row in enumerate(rows) if row.way[:1] in ("-", "+")), 0) - 1)
    points = [point(row) for row in rows]
    for index, here in enumerate(points):
        # Where the bar ends: medians of two parts add up to something else than that of both.
        end = (here["acceptor_cpu"] or 0) + (here["worker_cpu"] or 0)
        here.update(order=index, end=end, change="", acceptor_change=None, worker_change=None, share="", against="",
                    step_ratio=None, step_low=None, step_high=None)
        before = points[index - 1]
        if index <= whole_at or None in (here["cpu"], before["cpu"], points[whole_at]["cpu"]):
            continue
        change = here["cpu"] - before["cpu"]
        paired = replace(section, baseline=before["way"], known={}).measured(here["way"], "cpu")
        assert paired
        here["change"] = f"{change:+.1f}{UNSURE.get(paired.difference, '')}"
        here["against"], here["step_ratio"] = before["way"], paired.ratio
        here["step_low"], here["step_high"] = paired.ratio_interval or (None, None)
        here["acceptor_change"] = here["acceptor_cpu"] - before["acceptor_cpu"]
        here["worker_change"] = here["worker_cpu"] - before["worker_cpu"]
        here["share"] = f"{change / points[whole_at]['cpu']:+.1%}"
    return points


@dataclass(frozen=True)
class Load:
    """What points on one line must have in common."""

    kind: str
    unit: str
    lower_is_better: bool
    options: frozenset[str]  # of the client, and what is held to which cores


def _load(section: Section) -> Load:
    """Without what only says how long it goes on, or goes with the number of connections."""
    client = section.workload.client
    given = {f"{name[2:]} {value}" for name, value in zip(client, client[1:])
             if name.startswith("--") and name not in OF_EACH_POINT}
    pins = {f"{who} on {', '.join(map(str, cores))}" for who, cores in section.workload.pin.items()}
    return Load(section.workload.kind, unit_of(section), section.figure.lower_is_better, frozenset(given | pins))


def _name(load: Load, loads: Iterable[Load]) -> str:
    """With what tells it from the others of its kind."""
    same = [other for other in loads if other.kind == load.kind]
    units = [load.unit] * (len({other.unit for other in same}) > 1)
    own = load.options.difference(frozenset.intersection(*(other.options for other in same)))
    return ", ".join([load.kind, *units, *sorted(own)])


def scaling(sections: list[Section]) -> Iterator[Chart]:
    """The ways that were measured with several numbers of connections, a chart for each load and number of
    workers: more lines in one nobody can tell apart."""
    found: dict[Load, dict[str, list[Row]]] = {}
    for section in sections:
        for row in under_load(section):
            if row.connections is not None and not section.workload.has_rate:
                found.setdefault(_load(section), {}).setdefault(row.way, []).append(row)
    several = {load: lines for load, ways in found.items()
               if (lines := [rows for rows in ways.values() if len({row.connections for row in rows}) > 1])}
    for load, lines in several.items():
        by_workers: dict[str, list[Row]] = {}
        for rows in lines:
            by_workers.setdefault(_workers(rows), []).extend(rows)
        for workers, rows in by_workers.items():
            yield _scaling(_name(load, several), load, workers, rows)


def _workers(rows: list[Row]) -> str:
    """Of one way; where many connections ask for more of them, the range."""
    known = sorted({row.workers for row in rows if row.workers is not None})
    if not known:
        said = workers_text(rows[0])
        return said if said == NO_POOL else f"{said} workers"
    if len(known) > 1:
        return f"{known[0]} to {known[-1]} workers"
    return f"{known[0]} worker{'s' * (known[0] > 1)}"


def _scaling(name: str, load: Load, workers: str, rows: list[Row]) -> Chart:
    unit = load.unit

    def series(values: list[str], legend: Spec | None) -> Spec:
        return {"field": "way", "type": "nominal", "title": None, "scale": {"range": values}, "legend": legend}

    # Lines are coloured by another channel than points: of one channel, Vega-Lite makes a legend of its own.
    y, line = quantity("median", unit, scale=LOG), series(COLOURS, None)
    legend = {"columns": {"signal": "width < 420 ? 1 : width < 800 ? 2 : 4"}}
    spec = spec_of(
        height=300,
        encoding={"x": quantity("at_once", "connections at once", scale=LOG)},
        layer=[
            {"mark": {"type": "line", "strokeWidth": 1.5}, "encoding": {"y": y, "stroke": line}},
            {"mark": {"type": "rule"},
             "encoding": {"y": quantity("low", unit, scale=LOG), "y2": {"field": "high"}, "stroke": line}},
            {"mark": POINT, "encoding": {"y": y, "color": series(COLOURS, legend), "shape": series(SHAPES, legend)}},
        ],
    )
    return Chart(
        file_name("scaling", name, workers),
        f"{name}, {workers}: {unit} by connections",
        f"{'Lower' if load.lower_is_better else 'Higher'} is better; both scales are logarithmic. Upright lines are "
        "95 % intervals.",
        spec,
        ("median", "low", "high", "at_once"),
        tuple(map(point, sorted(rows, key=lambda row: (row.way, row.connections or 0)))),
        (WAY, whole("connections", "at_once"), text("workers", "workers", is_number=True), figure(unit, "median"),
         bounds(""), figure("server CPU, us", "cpu"), bounds("cpu_"), NOTE),
    )


def crashes(sections: list[Section]) -> Iterator[Chart]:
    for section in filter(has_faults, sections):
        kind, keeps = KINDS[section.workload.fault], section.workload.kind == "rr"
        unit = f"connections lost per {kind.event}"
        spec = spec_of(
            encoding={"y": way_axis("lost")},
            layer=[
                interval_line("lost_low", "lost_high", unit),
                {"mark": {**POINT, "color": VERMILLION}, "encoding": {"x": quantity("lost", unit)}},
            ],
        )
        lost = "that its client had to open again" if keeps else "whose attempt ended without its echo"
        yield Chart(
            file_name("crashes", section.workload.name),
            f"{section.workload.name}: {section.workload.summary}",
            f"{kind.what} At random moments, each once the one before is over. Left is safer; the line is the exact "
            f"95 % interval. Lost is a connection {lost}. The server's books count what a killed worker held, echoed or "
            "not.",
            spec,
            ("lost", "lost_low", "lost_high"),
            _sorted(section.rows, lambda row: row.lost_per_event),
            (WAY, whole(kind.events, "events"), figure(f"lost per {kind.event}", "lost"), bounds("lost_"),
             whole("attempts", "attempts"), text("failed", "failed"), *[whole("reopened", "reopened")] * keeps,
             whole("redelivered", "redelivered"), whole("over 1 s", "hung"),
             figure(f"{kind.until} after, ms", "whole_ms"),
             figure("at most", "whole_max_ms"), text("left behind", "left"),
             whole("lost in the server's books", "books_lost"), NOTE),
        )
