"""Runs the cells one after the other, and ends well however it ends."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from matrix import cell as cells_module
from matrix import page, store, table
from matrix.cell import Tools
from matrix.process import Interrupted, Waiter
from matrix.progress import Progress
from matrix.spec import Cell

PROGRAM = "run_matrix"


def run(path: Path, cells: list[Cell], left: list[Cell], tools: Tools, recorder: store.Recorder) -> int:
    """Measures what is left of the cells, prints the table, and gives the exit code."""
    problem = ""
    if tools.list_error:
        print(f"{PROGRAM}: what is unsupported is unknown: {tools.list_error}", file=sys.stderr)
    with Progress(Console(stderr=True), cells, left) as progress, Waiter(progress.tick) as waiter:
        try:
            for cell in left:
                waiter.check()
                progress.begin(cell)
                record = cells_module.run(cell, tools, waiter)
                recorder.append(record)
                progress.done(cell, record)
        except Interrupted:
            problem = f"interrupted; go on with: experiments/run_matrix --resume {path}"
        except store.StoreError as error:
            problem = str(error)
    recorded = store.load(path)
    table.show(recorded, Console())
    hindered = _report(recorded)
    failed = sum(cell["status"] == "failed" for cell in recorded.cells)
    if not problem and failed:
        problem = f"{failed} of {len(recorded.cells)} cells failed; their rows say why"
    problems = [text for text in (hindered, problem) if text]
    for text in problems:
        print(f"{PROGRAM}: {text}", file=sys.stderr)
    return 1 if problems else 0


def _report(recorded: store.Run) -> str:
    """Writes the page; gives what hindered it. The run itself is whole without it."""
    target = recorded.path / "report.html"
    try:
        page.write(recorded, target)
    except store.StoreError as error:
        return str(error)
    print(f"Report: {target}")
    return ""
