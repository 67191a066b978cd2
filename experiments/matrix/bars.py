"""One figure of every row as bars, ranked: what experiments/inspect shows first."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.text import Text

from matrix import layout, stats
from matrix.figures import METRICS
from matrix.layout import Block, Entry, number, plus_minus, ratio_text
from matrix.rows import Section
from matrix.view import Ranked, grouped

BAR = 26  # characters; the rest of 80 is the figures'
HEADROOM = 1.25  # by which an interval may exceed its figure before it is cut
LARGEST = 5  # times the median way: a bar beyond is cut, or one slow way leaves no room for the others

LEGEND = "Best first, by the ratio within repetitions (± half of a 95 % interval; ~ no difference seen, ? cannot tell)."
OF_BARS = "A bar ends at the median: ▓ from the low end of the interval on, ░ beyond it up to the high end; ▶ goes on."
PLAIN = str.maketrans("█▓░▶", "#=->")


def _drawn(ranked: Ranked, scale: float, unicode: bool) -> str:
    assert ranked.measured
    middle = ranked.measured.median
    low, high = ranked.measured.interval or (middle, middle)
    ends = [min(round(value / scale * BAR), BAR) for value in (min(low, middle), middle, max(high, middle))]
    if middle > scale:
        return ("█" * (BAR - 1) + "▶").translate({} if unicode else PLAIN)
    text = "█" * ends[0] + "▓" * (ends[1] - ends[0]) + "░" * (ends[2] - ends[1])
    return (text if unicode else text.translate(PLAIN)).ljust(BAR)


def _scales(groups: Sequence[tuple[str, list[Ranked]]], metric: str) -> dict[str, float]:
    """What a whole bar stands for: one scale for each unit, so that groups compare."""
    reach: dict[str, list[tuple[float, float]]] = {}
    for _, group in groups:
        for entry in group:
            if entry.measured:
                middle = entry.measured.median
                high = entry.measured.interval[1] if entry.measured.interval else middle
                title = METRICS[metric].title(entry.section.figure)
                reach.setdefault(title, []).append((middle, max(middle, min(high, HEADROOM * middle))))
    return {
        title: min(max(high for _, high in ends), LARGEST * stats.median([middle for middle, _ in ends])) or 1.0
        for title, ends in reach.items()
    }


def _name(axis: str, several: bool) -> Callable[[Ranked], str]:
    if axis == "way":
        return lambda entry: entry.row.workload
    return (lambda entry: f"{entry.row.workload} {entry.row.way}") if several else (lambda entry: entry.row.way)


def blocks(chosen: list[Section], metric: str, axis: str, unicode: bool = True, bars: bool = True) -> list[Block]:
    # Where faults happen the load is the same for all: no figure to rank by.
    ranked_by_rate = [section for section in chosen if not section.workload.fault]
    groups = list(grouped(ranked_by_rate if metric == "rate" else chosen, metric, axis))
    scales = _scales(groups, metric)
    found = []
    for value, group in groups:
        name = _name(axis, len({entry.row.workload for entry in group}) > 1)
        entries = []
        for one in group:
            scale = scales.get(METRICS[metric].title(one.section.figure), 1.0)
            bar = [_drawn(one, scale, unicode)] if bars and one.measured else []
            entries.append(_entry(one, name(one), bar))
        heads = [("", "median"), ("", "95 %"), ("ratio to", layout.cut(group[0].section.baseline, 11))]
        about = group[0].section.workload.summary if axis == "workload" else ""
        found.append(Block(_title(group, metric, axis, value or "none"), about,
                           "workload" if axis == "way" else "way", heads + [("", "")] * bars, entries))
    return found


def _title(group: list[Ranked], metric: str, axis: str, value: str) -> str:
    titles = " or ".join({METRICS[metric].title(entry.section.figure): None for entry in group})
    return f"{value if axis in ('way', 'workload') else f'{axis} {value}'}, {titles}"


def _entry(ranked: Ranked, name: str, bar: list[str]) -> Entry:
    one = ranked.measured
    if not one:
        return layout.without_figures(ranked.row, name)
    texts = [number(one.median), plus_minus(one.interval) or "-",
             ratio_text(one.ratio, one.ratio_interval, one.difference), *bar]
    return Entry(name, texts, style="red" if ranked.row.faults else "bold" if one.difference == "base" else "")


def lines(chosen: list[Section], metric: str, axis: str, console: Console) -> list[Text]:
    unicode = console.encoding.lower().replace("-", "") == "utf8"
    found: list[Text] = []
    for block in blocks(chosen, metric, axis, unicode):
        found += [*layout.lines(block), Text("")]
    return found + layout.paragraph(f"{LEGEND} {OF_BARS if unicode else OF_BARS.translate(PLAIN)}", "dim")


def markdown(chosen: list[Section], metric: str, axis: str) -> str:
    found = [line for block in blocks(chosen, metric, axis, bars=False) for line in layout.markdown(block)]
    return "\n".join([*found, f"- {LEGEND}"]) + "\n"
