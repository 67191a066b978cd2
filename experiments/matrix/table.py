"""The table of a run: for each workload every way, with all that must be known to read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from matrix import facts, layout, losses, spec
from matrix.fault_kinds import KINDS
from matrix.layout import Block, Entry, number, plus_minus, ratio_text
from matrix.rows import CLIENT_LIMIT, INTERRUPTED, Row, Section, faults_text, reason_text, sections
from matrix.store import Run

WIDTH = layout.WIDTH


@dataclass(frozen=True)
class Column:
    head: tuple[str, str]
    text: Callable[[Row], str]


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else number(value / 1000)


def _cpu(row: Row) -> str:
    if row.worker_cpu_us is None:
        return "-"
    if not row.acceptor_cpu_us:
        return number(row.worker_cpu_us)
    return f"{number(row.acceptor_cpu_us)}+{number(row.worker_cpu_us)}"


def _columns(section: Section, matrix: dict[str, Any], wide: bool) -> list[Column]:
    """What fits into 80 columns; with `wide` also what is left out for that alone."""
    baseline = section.baseline
    head = layout.cut(baseline, 11)
    per = {"connection": "us/conn", "request": "us/req"}[section.figure.per]
    rate = Column(section.figure.title, lambda row: number(row.median))
    within = Column(("", "95 %"), lambda row: plus_minus(row.interval) or "-")
    ratio = Column(("ratio to", head), lambda row: ratio_text(row.ratio, row.ratio_interval, row.difference))
    p50 = Column(("p50", "ms"), lambda row: _milliseconds(row.latency_p50_us))
    p99 = Column(("p99", "ms"), lambda row: _milliseconds(row.latency_p99_us))
    cpu = Column(("CPU a+w", per), _cpu)
    cpu_ratio = Column(("CPU to", head),
                       lambda row: ratio_text(row.cpu_ratio, row.cpu_ratio_interval, row.cpu_difference))
    faults = Column(("", "faults"), lambda row: f"{row.faults:,}")
    if section.workload.fault:
        return _fault_columns(section, p99, faults, wide)
    if section.workload.held:
        return [rate, p50, p99, *_held_columns(), faults]
    if not matrix.get("balance"):
        return [rate, within, ratio, cpu, cpu_ratio, *[p50] * wide, p99, faults]
    connections = Column(("conn max", "to mean"), lambda row: number(row.connections_largest_to_mean))
    busy = Column(("CPU max", "to mean"), lambda row: number(row.cpu_largest_to_mean))
    balance = [connections, busy, faults]
    return [rate, within, ratio, cpu, cpu_ratio, p50, p99, *balance] if wide else [rate, ratio, p99, cpu, *balance]


def _fault_columns(section: Section, p99: Column, faults: Column, wide: bool) -> list[Column]:
    kind, keeps = KINDS[section.workload.fault], section.workload.kind == "rr"

    def count(value: int | None) -> str:
        return "-" if value is None else f"{value:,}"

    def between(row: Row) -> str:
        bounds = row.lost_per_event_interval
        return f"{number(bounds[0])} to {number(bounds[1])}" if bounds else "-"

    def left(row: Row) -> str:
        return "-" if row.descriptors_left is None else f"{row.descriptors_left}+{row.processes_left}"

    def rate(of: Callable[[Row], int | None]) -> Callable[[Row], str]:
        return lambda row: losses.rate_text(of(row), row.events, row.fault_attempts, number)

    def reopened(row: Row) -> str:
        return losses.rate_text(row.reopened, row.events, row.fault_exposed, number)

    def books(row: Row) -> str:
        if not kind.has_books:
            return "-"
        return f"{row.unbalanced_reports} not balanced" if row.unbalanced_reports else "balanced"

    def outcome(name: str) -> Column:
        return Column(("", name), rate(lambda row: None if row.fault_failed is None else row.fault_failed.get(name, 0)))

    attempts = Column(("", "attempts"), lambda row: count(row.fault_attempts))
    events = Column(("", "faults" if " " in kind.events else kind.events), lambda row: count(row.events))
    redelivered = Column(("redeli-", "vered"), lambda row: count(row.redelivered))
    if not wide:
        what = "reopened" if keeps else "lost"
        return [
            attempts,
            events,
            Column((what, "each"), lambda row: number(row.lost_per_event)),
            Column(("", "95 %"), between),
            redelivered,
            Column(("over", "1 s"), lambda row: count(row.hung)),
            Column(("left", "fd+p"), left),
            faults,
        ]
    return [
        events,
        attempts,
        Column(("", "echoed"), lambda row: count(row.fault_echoed)),
        redelivered,
        *map(outcome, ("eof", "reset", "refused", "timeout")),
        *[Column(("", "reopened"), reopened)] * keeps,
        Column(("", "over 1 s"), rate(lambda row: row.hung)),
        Column((kind.until, "after, ms"), lambda row: "-" if row.whole_ms is None else
               f"{number(row.whole_ms)}, at most {number(row.whole_max_ms)}"),
        Column(("left behind:", "descriptors + processes"), left),
        Column(("", "books"), books),
        p99,
    ]


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


def _block(section: Section, matrix: dict[str, Any], wide: bool = False) -> Block:
    columns = _columns(section, matrix, wide)
    entries = []
    for row in section.rows:
        if row.repetitions:
            style = "red" if row.faults else "bold" if row.way == section.baseline else ""
            entries.append(Entry(row.way, [column.text(row) for column in columns], style=style))
        else:
            entries.append(layout.without_figures(row, row.way))
    heads = [column.head for column in columns]
    return Block(section.workload.name, section.workload.summary, "way", heads, entries)


def _explained(all_sections: list[Section]) -> list[str]:
    """What stands behind the rows' faults and reasons, in full; said once where workloads agree."""
    said: dict[tuple[str, str], list[str]] = {}
    for section in all_sections:
        for row in section.rows:
            parts = [faults_text(row)] if row.faults else []
            if row.reason and row.reason != INTERRUPTED:
                parts.append(reason_text(row))
            if parts:
                said.setdefault((row.way, "; ".join(parts)), []).append(section.workload.name)
    ways: dict[tuple[str, str], list[str]] = {}
    for (way, text), loads in said.items():
        ways.setdefault((", ".join(loads), " ".join(text.split())), []).append(way)
    return [f"{', '.join(names)} ({loads}): {text}" for (loads, text), names in ways.items()]


def seen(all_sections: list[Section]) -> str:
    """How large a difference this run can see."""
    limits = {
        what: [f"{section.workload.name} {limit:.0%}" for section in all_sections
               if (limit := getattr(section, field)) is not None]
        for what, field in (("the figure", "unseen_below"), ("CPU", "cpu_unseen_below"))
    }
    if not any(section.has_baseline for section in all_sections):
        return f"{all_sections[0].baseline} is not measured under this load: there are no ratios."
    if not any(limits.values()):
        return "Fewer than three repetitions: no difference can be told from noise."
    parts = "; ".join(f"{what} {', '.join(found)}" for what, found in limits.items() if found)
    return (f"What differs truly from {all_sections[0].baseline} is seen in nine of ten such runs from about this "
            f"difference on, and half of it seldom: {parts}. Of equals one in 20 is called different by chance.")


def interruption(run: Run) -> list[str]:
    planned = len(spec.cells(spec.Matrix.from_json(run.meta["matrix"]), run.meta["seed"]))
    if len(run.cells) >= planned:
        return []
    return [f"interrupted: {len(run.cells):,} of {planned:,} cells are recorded (go on: run_matrix --resume)"]


def _context(run: Run, all_sections: list[Section]) -> list[str]:
    """What must be known to read the figures, a paragraph each."""
    meta = run.meta
    cores = meta["host"]["cores"]
    limited: dict[str, list[str]] = {}
    for section in all_sections:
        for row in section.rows:
            if row.client_limited:
                limited.setdefault(section.workload.name, []).append(row.way)
    rows = {section.workload.name: len(section.rows) for section in all_sections}
    own = meta["matrix"]["repetitions"]
    times = " or ".join(map(str, sorted({section.workload.repetitions or own for section in all_sections})))
    every = {load: "every way" if len(ways) == rows[load] else ", ".join(ways) for load, ways in limited.items()}
    who = "; ".join(f"{load}: {ways}" for load, ways in every.items())
    found = [*facts.flags(meta, run.cells), *interruption(run)]
    paragraphs = [
        f"Median of {times} repetition{'s' * (times != '1')}; ± is half the 95 % interval of the typical value "
        "(the mean of the logarithms, trimmed from 15 on). A ratio is the typical one within repetitions: ~ no "
        "difference seen, ? cannot tell. " + seen(all_sections),
        "CPU is the server's, acceptor + workers (one figure: one process), from ready to end.",
        f"Client and server share {cores} cores; {meta['client_shape']}. Compare only within this load.",
        facts.origin(meta),
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
    loads = [section.workload for section in all_sections if section.workload.fault]
    if kinds := list(dict.fromkeys(load.fault for load in loads)):
        what = "; ".join(f"{kind}: {KINDS[kind].what}" for kind in kinds)
        paragraphs[2:2] = [
            f"Faults come at random moments, each once the one before is over: when the worker's successor has been "
            f"forked (replaced), or the next server listens. {what}",
            "Lost is an attempt without its echo, and of clients that keep their connections one that had to be "
            "reopened; each with the exact interval of a Poisson mean, for one fault. 0 (< 3/n): none of n attempts, "
            "so at 95 % a smaller share than that; of connections reopened, n is those that the faults met: one "
            "worker's share for each that was killed or stopped, else each connection once. Over 1 s were given up, or "
            "echoed later. Redelivered were handed to another worker. Left are descriptors that are "
            "still open when nobody is connected, and processes that are there when the server has ended.",
            *["Clients that keep their connections lose those of one worker together: the interval, which is of losses "
              "one by one, is too narrow for them."] * any(load.kind == "rr" and KINDS[load.fault].of_worker
                                                           for load in loads),
            *["When the acceptor is killed, what was refused until another server listened is counted apart; what was "
              "reset, in its accept queue or on its way to a worker, is lost. It has written no report: there are no "
              "books."] * ("acceptor" in kinds),
        ]
    if any(section.workload.held for section in all_sections):
        paragraphs.insert(2, "Memory is per connection, while all are held and nobody speaks: kernel is of both ends, "
                             "which on loopback are here (they are alike: half is the server's); server is what "
                             "its processes use more than before; client is all that its processes use, files "
                             "apart. idle: the server's CPU in that time. proc.: processes of server and client.")
    return paragraphs + [f"Note: {remark}." for remark in run.remarks]


def lines(run: Run, all_sections: list[Section] | None = None) -> list[Text]:
    """The whole table, each line at most WIDTH columns."""
    found: list[Text] = []
    all_sections = sections(run) if all_sections is None else all_sections
    for section in all_sections:
        found += [*layout.lines(_block(section, run.meta["matrix"])), Text("")]
    for note in _explained(all_sections):
        found += layout.paragraph(f"! {note}", "red")
    for text in _context(run, all_sections):
        found += layout.paragraph(text, "dim")
    # Not wrapped: a path is for copying.
    found.append(Text(f"Data: {facts.shown_path(run.path)}", style="dim"))
    return found


def show(run: Run, console: Console) -> None:
    layout.show(lines(run), console)


def markdown(run: Run, all_sections: list[Section] | None = None) -> str:
    all_sections = sections(run) if all_sections is None else all_sections
    blocks = [_block(section, run.meta["matrix"], wide=True) for section in all_sections]
    parts = [part for block in blocks for part in layout.markdown(block)]
    parts += [f"- {note}" for note in _explained(all_sections)]
    parts += [f"- {text}" for text in _context(run, all_sections)]
    parts.append(f"- Data: `{facts.shown_path(run.path)}`")
    return "\n".join(parts) + "\n"
