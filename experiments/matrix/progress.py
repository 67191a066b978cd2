"""What a person sees while the matrix runs: a live line on a terminal, else a line for each cell."""

from __future__ import annotations

import time
from collections import Counter
from statistics import median
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from matrix.fault_kinds import KINDS
from matrix.figures import failed_attempts, figure_of, value_of
from matrix.spec import Cell


def outcome(cell: Cell, record: dict[str, Any]) -> str:
    """The result of one cell in a few words."""
    if record["status"] != "ok":
        return f"{record['status']}: {record['reason']}"
    figure = figure_of(cell.workload)
    value = value_of(record, figure)
    shown = "none" if value is None else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"
    failed = sum(failed_attempts(record["client"]).values())
    events = f", {len(found['events'])} {KINDS[found['kind']].events}" if (found := record["faults"]) else ""
    return f"{figure.key} {shown}{events}" + (f", {failed:,} attempts failed" if failed else "")


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    return f"{minutes}:{rest:02d}"


class Progress:
    """Call begin and done around each cell, and tick from time to time. There is no thread behind it:
    children are forked from this process."""

    def __init__(self, console: Console, cells: list[Cell], left: list[Cell]) -> None:
        self._console = console
        self._all = len(cells)
        # Counted by workload and way: thousands of cells are too many to go through beside a measurement.
        self._left = Counter((cell.workload.name, cell.way.name) for cell in left)
        self._expected = {cell.workload.name: cell.workload.expected_s for cell in cells}
        self._current: Cell | None = None
        self._last = ""
        self._started = time.monotonic()
        self._cell_started = self._started
        self._took: dict[str, dict[str, float]] = {}  # seconds by workload and way, as seen in this run
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def begin(self, cell: Cell) -> None:
        self._current = cell
        self._cell_started = time.monotonic()
        self.tick()

    def done(self, cell: Cell, record: dict[str, Any]) -> None:
        self._left[cell.workload.name, cell.way.name] -= 1
        if record["status"] not in ("unsupported", "not run"):
            self._took.setdefault(cell.workload.name, {})[cell.way.name] = record["elapsed_s"]
        result = outcome(cell, record)
        self._last = f"{cell.workload.name} {cell.way.name}: {result}"
        if not self._live:
            self._console.print(
                f"{self._finished()}/{self._all} {self._last} ({clock(self._remaining())} left)",
                soft_wrap=True, highlight=False, markup=False,
            )

    def _finished(self) -> int:
        return self._all - self._left.total()

    def _remaining(self) -> float:
        others = {load: median(took.values()) for load, took in self._took.items()}
        return sum(
            count * self._took.get(load, {}).get(way, others.get(load, self._expected[load]))
            for (load, way), count in self._left.items()
        )

    def tick(self) -> None:
        if not self._live or not self._current:
            return
        now, cell = time.monotonic(), self._current
        finished = self._finished()
        remaining = max(self._remaining() - (now - self._cell_started), 0)
        line = Table.grid(padding=(0, 1))
        line.add_row(
            Text(f"cell {finished + 1} of {self._all}", style="bold"),
            ProgressBar(total=self._all, completed=finished, width=20),
            f"{clock(now - self._started)} elapsed, {clock(remaining)} left",
        )
        now_running = f"now   {cell.workload.name} {cell.way.name}, repetition {cell.repetition}"
        last = Text(f"last  {self._last or '-'}", style="dim", no_wrap=True, overflow="ellipsis")
        self._live.update(Group(line, Text(now_running), last), refresh=True)
