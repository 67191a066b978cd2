"""The rows for other programs: JSON, CSV, and the table as a picture."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

from rich.console import Console

from matrix import table
from matrix.store import Run, StoreError

CHARACTER = 20 * 0.61  # width in rich's pictures: its font size by its aspect ratio
INDENTED = re.compile(r'x="([\d.]+)" y="([\d.]+)" textLength="([\d.]+)"([^>]*)>((?:&#160;)+)(?=[^<&])')


def as_json(source: Run, rows: list[dict[str, Any]], **more: Any) -> str:
    return json.dumps({"schema": "c10k-rows/1", "run": str(source.path), **more, "rows": rows}, indent=1) + "\n"


def as_csv(rows: list[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _flat(value) for key, value in row.items()})
    return out.getvalue()


def _flat(value: object) -> object:
    if isinstance(value, dict):
        return ";".join(f"{name}={count}" for name, count in value.items())
    return ";".join(f"{one:g}" for one in value) if isinstance(value, (list, tuple)) else value


def _indent_by_place(match: re.Match[str]) -> str:
    """A line's leading spaces as a place to start: some renderers leave them out."""
    x, y, length, attributes, spaces = match.groups()
    shift = CHARACTER * spaces.count(";")
    return f'x="{float(x) + shift:g}" y="{y}" textLength="{float(length) - shift:g}"{attributes}>'


def write_svg(run: Run, target: Path) -> None:
    console = Console(
        record=True, width=table.WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    table.show(run, console)
    svg = console.export_svg(title="experiments/inspect", unique_id="table")
    # rich names a font and where on the network to fetch it; a picture in a README fetches nothing.
    svg = re.sub(r"\s*@font-face\s*{[^}]*}", "", svg)
    svg = svg.replace("Fira Code, monospace", "ui-monospace, 'DejaVu Sans Mono', monospace")
    svg = INDENTED.sub(_indent_by_place, svg)
    try:
        target.write_text(svg)
    except OSError as error:
        raise StoreError(f"{target}: {error.strerror}") from None
