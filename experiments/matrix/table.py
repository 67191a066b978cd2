"""The table as a person reads it: in 80 columns of a terminal, or as Markdown.

Laid out here and not by rich's Table: a row that has a reason instead of figures spans the columns,
and nothing may be wrapped or cut but a way's name and a reason."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from matrix import facts, stats
from matrix.rows import CLIENT_LIMIT, INTERRUPTED, Row, Section, faults_text, sections
from matrix.stats import Interval
from matrix.store import Run

WIDTH = 80


@dataclass(frozen=True)
class Column:
    head: tuple[str, str]
    text: Callable[[Row], str]


def _number(value: float | None) -> str:
    """Three significant digits are more than the repetitions agree on."""
    if value is None:
        return "-"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else _number(value / 1000)


def plus_minus(interval: Interval | None) -> str:
    """Half an interval, as a share of the figure."""
    return "" if interval is None else f"±{math.expm1(stats.half_width(interval)):.0%}"


MARKS = {"seen": " ", "none": "~", "unknown": "?"}


def ratio_text(ratio: float | None, interval: Interval | None, difference: str) -> str:
    if difference == "base":
        return "1.00 base"
    return "-" if ratio is None else f"{ratio:.2f}{MARKS[difference]}{plus_minus(interval):4}"


def _cpu(row: Row) -> str:
    if row.worker_cpu_us is None:
        return "-"
    if not row.acceptor_cpu_us:
        return _number(row.worker_cpu_us)
    return f"{_number(row.acceptor_cpu_us)}+{_number(row.worker_cpu_us)}"


def _columns(section: Section, matrix: dict[str, Any]) -> list[Column]:
    baseline = section.baseline
    head = _cut(baseline, 11)
    per = {"connection": "us/conn", "request": "us/req"}[section.figure.per]
    rate = Column(section.figure.title, lambda row: _number(row.median))
    within = Column(("", "95 %"), lambda row: plus_minus(row.interval) or "-")
    ratio = Column(("ratio to", head), lambda row: ratio_text(row.ratio, row.ratio_interval, row.difference))
    p50 = Column(("p50", "ms"), lambda row: _milliseconds(row.latency_p50_us))
    p99 = Column(("p99", "ms"), lambda row: _milliseconds(row.latency_p99_us))
    cpu = Column(("CPU a+w", per), _cpu)
    cpu_ratio = Column(("CPU to", head),
                       lambda row: ratio_text(row.cpu_ratio, row.cpu_ratio_interval, row.cpu_difference))
    faults = Column(("", "faults"), lambda row: f"{row.faults:,}")
    if section.workload.held:
        return [rate, p50, p99, *_held_columns(), faults]
    if not matrix.get("balance"):
        return [rate, within, ratio, cpu, cpu_ratio, p99, faults]
    connections = Column(("conn max", "to mean"), lambda row: _number(row.connections_largest_to_mean))
    busy = Column(("CPU max", "to mean"), lambda row: _number(row.cpu_largest_to_mean))
    return [rate, ratio, p99, cpu, connections, busy, faults]


def _held_columns() -> list[Column]:
    def size(value: float | None) -> str:
        return "-" if value is None else f"{value:,.0f}"

    return [
        Column(("kernel", "B/conn"), lambda row: size(row.kernel_bytes)),
        Column(("server", "B/conn"), lambda row: size(row.server_bytes)),
        Column(("client", "B/conn"), lambda row: size(row.client_bytes)),
        Column(("idle", "us/s"), lambda row: size(row.server_idle_cpu_us_per_s)),
        Column(("proc.", "s+c"), lambda row: f"{row.server_processes or '-'}+{row.client_processes or '-'}"),
    ]


def _short(way: str, width: int) -> str:
    """A way's name without the keys of its options, and cut if that is still too long: in the method
    rather than in its options, which tell it from the next row."""
    if len(way) <= width or ":" not in way:
        return _cut(way, width)
    method, options = way.split(":", 1)
    options = ",".join(option.split("=", 1)[-1] for option in options.split(","))
    room = width - len(options) - 1
    return _cut(f"{_cut(method, room) if room > 4 else method}:{options}", width)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _section(section: Section, matrix: dict[str, Any]) -> list[Text]:
    baseline = section.baseline
    columns = _columns(section, matrix)
    figures = {row.way: [column.text(row) for column in columns] for row in section.rows if row.repetitions}
    widths = [
        max([len(part) for part in column.head] + [len(texts[index]) for texts in figures.values()])
        for index, column in enumerate(columns)
    ]
    names = max([len("way")] + [len(row.way) for row in section.rows])
    gap = 2 if names + sum(widths) + 2 * len(widths) <= WIDTH else 1
    names = min(names, WIDTH - sum(widths) - gap * len(widths))

    def line(name: str, texts: list[str]) -> str:
        cells = [text.rjust(width) for text, width in zip(texts, widths)]
        return (" " * gap).join([name.ljust(names), *cells])

    lines = [Text(f"{section.workload.name}: {section.workload.summary}", style="bold cyan")]
    for half in (0, 1):
        heads = [column.head[half] for column in columns]
        lines.append(Text(line("way" if half else "", heads), style="bold"))
    for row in section.rows:
        name = _short(row.way, names)
        if row.repetitions:
            style = "red" if row.faults else "bold" if row.way == baseline else ""
            lines.append(Text(line(name, figures[row.way]).rstrip(), style=style))
        else:
            text = f"{name.ljust(names)}{' ' * gap}{row.status}: {' '.join(row.reason.split())}"
            lines.append(Text(_cut(text, WIDTH), style="red" if row.status == "failed" else "yellow"))
    return lines


def _explained(all_sections: list[Section]) -> list[str]:
    """What stands behind the rows' faults and reasons, in full; said once where workloads agree."""
    said: dict[tuple[str, str], list[str]] = {}
    for section in all_sections:
        for row in section.rows:
            parts = [faults_text(row)] if row.faults else []
            if row.reason and row.repetitions:
                missing = row.repetitions_without_value
                of_all = f"{missing} of {missing + row.repetitions} repetitions"
                parts.append(f"{of_all} have no figure: {row.reason}")
            elif row.reason and row.reason != INTERRUPTED:
                parts.append(f"{row.status}: {row.reason}")
            if parts:
                said.setdefault((row.way, "; ".join(parts)), []).append(section.workload.name)
    ways: dict[tuple[str, str], list[str]] = {}
    for (way, text), loads in said.items():
        ways.setdefault((", ".join(loads), " ".join(text.split())), []).append(way)
    return [f"{', '.join(names)} ({loads}): {text}" for (loads, text), names in ways.items()]


def _seen(all_sections: list[Section]) -> str:
    """How large a difference this run can see."""
    limits = {
        what: [f"{section.workload.name} {limit:.0%}" for section in all_sections
               if (limit := getattr(section, field)) is not None]
        for what, field in (("the figure", "unseen_below"), ("CPU", "cpu_unseen_below"))
    }
    if not any(limits.values()):
        return "Fewer than three repetitions: no difference can be told from noise."
    parts = "; ".join(f"of {what} {', '.join(found)}" for what, found in limits.items() if found)
    return (f"Of true differences to {all_sections[0].baseline} this run sees nine of ten from about this size on, "
            f"and few of half of it: {parts}.")


def _context(run: Run, all_sections: list[Section]) -> list[str]:
    """What must be known to read the figures, a paragraph each."""
    meta, matrix = run.meta, run.meta["matrix"]
    cores = meta["host"]["cores"]
    limited: dict[str, list[str]] = {}
    for section in all_sections:
        for row in section.rows:
            if row.client_limited:
                limited.setdefault(section.workload.name, []).append(row.way)
    rows = {section.workload.name: len(section.rows) for section in all_sections}
    every = {load: "every way" if len(ways) == rows[load] else ", ".join(ways) for load, ways in limited.items()}
    who = "; ".join(f"{load}: {ways}" for load, ways in every.items())
    revision = (meta["source"]["revision"] or "unknown")[:12]
    found = facts.flags(meta, run.cells)
    repetitions = [section.workload.repetitions or matrix["repetitions"] for section in all_sections]
    planned = sum(times * len(section.rows) for times, section in zip(repetitions, all_sections))
    times = " or ".join(map(str, sorted(set(repetitions))))
    if len(run.cells) < planned:
        found.append(f"interrupted: {len(run.cells)} of {planned} cells are recorded (go on: run_matrix --resume)")
    paragraphs = [
        f"Median of {times} repetition{'s' * (times != '1')}; ± is half the 95 % "
        "interval. A ratio is the typical one within repetitions: ~ no difference seen, ? cannot tell. " + _seen(all_sections),
        "CPU is the server's, acceptor + workers (one figure: one process), from ready to end.",
        f"Client and server share {cores} cores; {meta['client_shape']}. Compare only within this load.",
        f"Seed {meta['seed']}, {meta['started_at'][:16]} UTC, revision {revision}, "
        f"{meta['build']['cmake_build_type'] or 'unknown'} build.",
        f"Host: {facts.one_line(meta['host'])}.",
        "Flags: " + ("; ".join(found) if found else "none") + ".",
    ]
    if who:
        why = f"a process used {CLIENT_LIMIT:.0%} of a CPU or more, or started late"
        paragraphs.insert(3, f"The client may be the limit ({why}) in {who}.")
    if any(section.figure.key == "client_cpu_us" for section in all_sections):
        paragraphs.insert(2, "The client's CPU is its own, user and system.")
    if any(section.figure.key == "connect_all_s" for section in all_sections):
        what = "hold: its latency is of the echoes while all are connected"
        paragraphs.insert(2, f"{what}; a ratio below 1 is faster.")
    if any(section.workload.held for section in all_sections):
        paragraphs.insert(2, "Memory is per connection, while all are held and nobody speaks: kernel is of both ends, "
                             "which on loopback are here (they are alike: half is the server's); server is what "
                             "its processes use more than before; client is all that its processes use, files "
                             "apart. idle: the server's CPU in that time. proc.: processes of server and client.")
    return paragraphs + [f"Note: {remark}." for remark in run.remarks]


def _shown_path(run: Run) -> str:
    path = run.path.resolve()
    return str(path.relative_to(facts.ROOT)) if path.is_relative_to(facts.ROOT) else str(path)


def lines(run: Run) -> list[Text]:
    """The whole table, each line at most WIDTH columns."""
    found: list[Text] = []
    all_sections = sections(run)
    for section in all_sections:
        found += [*_section(section, run.meta["matrix"]), Text("")]

    def paragraph(text: str, style: str = "") -> None:
        for part in textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False):
            found.append(Text(part, style=style))

    for note in _explained(all_sections):
        paragraph(f"! {note}", "red")
    for text in _context(run, all_sections):
        paragraph(text, "dim")
    # Not wrapped: a path is for copying.
    found.append(Text(f"Data: {_shown_path(run)}", style="dim"))
    return found


def show(run: Run, console: Console) -> None:
    for line in lines(run):
        console.print(line, no_wrap=True, overflow="ignore", crop=False, highlight=False)


def markdown(run: Run) -> str:
    baseline = run.meta["matrix"]["baseline"]
    all_sections = sections(run)
    parts: list[str] = []
    for section in all_sections:
        columns = _columns(section, run.meta["matrix"])
        heads = ["way", *(" ".join(filter(None, column.head)) for column in columns)]
        parts += [f"**{section.workload.name}**: {section.workload.summary}", ""]
        parts += [f"| {' | '.join(heads)} |", "| --- |" + " ---: |" * len(columns)]
        for row in section.rows:
            if row.repetitions:
                texts = [column.text(row).strip() for column in columns]
            else:
                reason = " ".join(row.reason.split()).replace("|", "\\|")
                texts = [f"{row.status}: {reason}", *[""] * (len(columns) - 1)]
            parts.append(f"| `{row.way}` | {' | '.join(texts)} |")
        parts.append("")
    parts += [f"- {note}" for note in _explained(all_sections)]
    parts += [f"- {text}" for text in _context(run, all_sections)]
    parts.append(f"- Data: `{_shown_path(run)}`")
    return "\n".join(parts) + "\n"
