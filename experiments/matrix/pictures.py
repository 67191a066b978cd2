"""The charts as SVG files for NOTES.md, drawn by node, and the check that they still show the data."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from matrix import charts, topics
from matrix.charts import Chart
from matrix.page import FOLDER
from matrix.rows import sections
from matrix.store import Run, StoreError

RENDERER = FOLDER / "render.mjs"
IMAGE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\.svg\)")
LONGEST_S = 120


def write_all(run: Run, folder: Path) -> list[str]:
    """Every chart of the run; gives their names."""
    found = _charts(run)
    _write(_render(list(found.values())), folder)
    return list(found)


def update(run: Run, notes: Path) -> int:
    """Draws the charts of this run that the notes show; gives how many."""
    wanted = _shown(run, notes)
    if wanted:
        _write(_render(wanted), run.path)
    return len(wanted)


def differ(run: Run, notes: Path) -> str:
    """Which picture of this run in the notes does not show its data; empty when all do. With node they
    are drawn again; without it the hash of the data tells, which each has in it."""
    wanted = _shown(run, notes)
    drawn = _render(wanted) if wanted and not missing() else {}
    for chart in wanted:
        path = run.path / f"{chart.name}.svg"
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            return f"{path}: {error.strerror}"
        if _stamp(chart) not in text or drawn.get(chart.name, text) != text:
            return f"{path} differs from the run's data"
    return ""


def missing() -> str:
    """What of the renderer is not here."""
    if not shutil.which("node"):
        return "node is not installed"
    return "" if (FOLDER / "node_modules" / "vega-lite").is_dir() else f"{FOLDER / 'node_modules'} has no vega-lite"


def _charts(run: Run) -> dict[str, Chart]:
    found = topics.drawn(sections(run))
    return {chart.name: chart for of_topic in found.values() for chart in of_topic}


def _shown(run: Run, notes: Path) -> list[Chart]:
    """The charts of this run that the notes have as images. Its folder may hold other pictures."""
    try:
        text = notes.read_text(encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{notes}: {error.strerror}") from None
    paths = [(notes.parent / name).resolve() for name in IMAGE.findall(text)]
    names = [path.name for path in paths if path.parent == run.path.resolve() and path.name != "table"]
    found = _charts(run) if names else {}
    for name in names:
        if name not in found:
            raise StoreError(f"{notes}: {run.path} has no chart {name!r}; it has: {', '.join(found)}")
    return [found[name] for name in dict.fromkeys(names)]


def _stamp(chart: Chart) -> str:
    data = json.dumps(_whole(chart), sort_keys=True)
    return f"<!-- sha256 of its data: {hashlib.sha256(data.encode()).hexdigest()} -->"


def _whole(chart: Chart) -> charts.Spec:
    """With all that the page has around a chart: its points, looks and title."""
    return _rounded({
        **chart.spec,
        "data": {"name": "points", "values": chart.points},
        "config": charts.config(ink="#1f2328", background="#ffffff"),
        "title": {"text": chart.title, "anchor": "start", "fontSize": 13, "color": "#1f2328"},
        "padding": 8,
    })


def _rounded(value: Any) -> Any:
    """To six digits, finer than any screen: the last bits of a sum are not the same on every machine."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list | tuple) else value


def _render(wanted: list[Chart]) -> dict[str, str]:
    if problem := missing():
        raise StoreError(f"charts need node and Vega-Lite, and {problem}; get them: experiments/setup --no-build")
    specs = {chart.name: _whole(chart) for chart in wanted}
    try:
        done = subprocess.run(["node", str(RENDERER)], input=json.dumps(specs), capture_output=True,
                              encoding="utf-8", timeout=LONGEST_S, check=False)
        pictures = json.loads(done.stdout) if done.returncode == 0 else None
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise StoreError(f"node {RENDERER}: {error}") from None
    if pictures is None:
        raise StoreError(f"node {RENDERER}: exit code {done.returncode}: {_last_words(done.stderr)}")
    return {chart.name: f"{pictures[chart.name]}\n{_stamp(chart)}\n" for chart in wanted}


def _last_words(text: str) -> str:
    said = [line.strip() for line in text.splitlines() if "Error" in line]
    return said[0] if said else "it says nothing"


def _write(pictures: dict[str, str], folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in pictures.items():
            (folder / f"{name}.svg").write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise StoreError(f"{error.filename}: {error.strerror}") from None
