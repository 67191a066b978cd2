"""Blocks of rows as a person reads them: in 80 columns of a terminal, or as Markdown.

Laid out here and not by rich's Table: a row that has a reason instead of figures spans the columns,
and nothing may be wrapped or cut but a way's name and a reason."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from matrix import stats
from matrix.rows import INTERRUPTED, Row
from matrix.stats import Interval

WIDTH = 80
MARKS = {"seen": " ", "none": "~", "unknown": "?"}


@dataclass(frozen=True)
class Entry:
    """A row: its figures, or what is said in their place."""

    name: str
    texts: list[str]
    said: str = ""
    style: str = ""


@dataclass(frozen=True)
class Block:
    name: str
    summary: str
    first: str  # what the entries are: "way"
    heads: list[tuple[str, str]]  # two lines of each column's head
    entries: list[Entry]

    @property
    def title(self) -> str:
        return f"{self.name}: {self.summary}" if self.summary else self.name


def number(value: float | None) -> str:
    """Three significant digits are more than the repetitions agree on."""
    if value is None:
        return "-"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def plus_minus(interval: Interval | None) -> str:
    """Half an interval, as a share of the figure."""
    return "" if interval is None else f"±{math.expm1(stats.half_width(interval)):.0%}"


def ratio_text(ratio: float | None, interval: Interval | None, difference: str) -> str:
    if difference == "base":
        return "1.00 base"
    return "-" if ratio is None else f"{ratio:.2f}{MARKS[difference]}{plus_minus(interval):4}"


def cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def short(way: str, width: int) -> str:
    """A way's name without the keys of its options, and cut if that is still too long: in the method
    rather than in what follows it, which tells it from the next row."""
    if len(way) <= width:
        return way
    method, mark, rest = way.partition(":")
    if mark:
        rest = ",".join(option.split("=", 1)[-1] for option in rest.split(","))
    else:
        method, mark, rest = way.partition(", ")
    room = width - len(mark) - len(rest)
    return cut(f"{cut(method, room) if room > 4 else method}{mark}{rest}", width)


def without_figures(row: Row, name: str) -> Entry:
    reason = row.reason if row.reason == INTERRUPTED else " ".join(row.reason.split())
    return Entry(name, [], f"{row.status}: {reason}", "red" if row.status == "failed" else "yellow")


def lines(block: Block) -> list[Text]:
    """Each at most WIDTH columns."""
    figures = [entry.texts for entry in block.entries if entry.texts]
    widths = [
        max([len(part) for part in head] + [len(texts[index]) for texts in figures])
        for index, head in enumerate(block.heads)
    ]
    names = max([len(block.first)] + [len(entry.name) for entry in block.entries])
    gap = 2 if names + sum(widths) + 2 * len(widths) <= WIDTH else 1
    names = min(names, WIDTH - sum(widths) - gap * len(widths))

    def line(name: str, texts: list[str]) -> str:
        return (" " * gap).join([name.ljust(names), *(text.rjust(width) for text, width in zip(texts, widths))])

    found = [Text(cut(block.title, WIDTH), style="bold cyan")]
    for half in (0, 1):
        found.append(Text(line(block.first if half else "", [head[half] for head in block.heads]), style="bold"))
    for entry in block.entries:
        name = short(entry.name, names)
        text = line(name, entry.texts).rstrip() if entry.texts else f"{name.ljust(names)}{' ' * gap}{entry.said}"
        found.append(Text(cut(text, WIDTH), style=entry.style))
    return found


def markdown(block: Block) -> list[str]:
    heads = [block.first, *(" ".join(filter(None, head)) for head in block.heads)]
    title = f"**{block.name}**" + (f": {block.summary}" if block.summary else "")
    found = [title, "", f"| {' | '.join(heads)} |", "| --- |" + " ---: |" * len(block.heads)]
    for entry in block.entries:
        texts = [text.strip() for text in entry.texts]
        texts = texts or [entry.said.replace("|", "\\|"), *[""] * (len(block.heads) - 1)]
        found.append(f"| `{entry.name}` | {' | '.join(texts)} |")
    return [*found, ""]


def paragraph(text: str, style: str = "") -> list[Text]:
    wrapped = textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    return [Text(part, style=style) for part in wrapped]


def show(texts: list[Text], console: Console) -> None:
    for line in texts:
        console.print(line, no_wrap=True, overflow="ignore", crop=False, highlight=False)
