"""The tables and figures in NOTES.md: made from recorded data, and checked against it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from matrix import prose
from matrix.store import StoreError


def _read(notes: Path) -> str:
    try:
        return notes.read_text()
    except OSError as error:
        raise StoreError(f"{notes}: {error.strerror}") from None


def _wanted(name: str, table: str, value: Callable[[str, str, str], str] | None, notes: Path, text: str) -> str:
    """What the notes should say: the run's table between its marks, and its figures within the text."""
    begin, end = f"<!-- table:{name} begin -->", f"<!-- table:{name} end -->"
    found = re.findall(f"{re.escape(begin)}\n.*?{re.escape(end)}", text, re.DOTALL)
    if len(found) != 1:
        raise StoreError(f"{notes}: needs one pair of lines '{begin}' and '{end}'; it has {len(found)}")
    text = text.replace(found[0], f"{begin}\n{table}{end}")
    return prose.filled(text, name, value) if value else text


def update(name: str, table: str, value: Callable[[str, str, str], str] | None, notes: Path) -> bool:
    """Makes the notes say what a recorded run does; true when that changed them."""
    text = _read(notes)
    wanted = _wanted(name, table, value, notes, text)
    if wanted == text:
        return False
    draft = notes.with_name(notes.name + ".new")
    try:
        draft.write_text(wanted)
        draft.replace(notes)
    except OSError as error:
        raise StoreError(f"{notes}: {error.strerror}") from None
    return True


def differ(name: str, table: str, value: Callable[[str, str, str], str] | None, notes: Path) -> str:
    """The first line that differs from the data; empty when none does."""
    text = _read(notes)
    wanted = _wanted(name, table, value, notes, text)
    if text == wanted:
        return ""
    lines = zip(text.splitlines(), wanted.splitlines())
    return next((f"'{_cut(here)}' should be '{_cut(there)}'" for here, there in lines if here != there),
                "lines are missing")


def _cut(line: str) -> str:
    return line if len(line) <= 160 else line[:159] + "…"


def unknown_runs(notes: Path, reference: Path) -> list[str]:
    """Runs that a table, an image or a figure of the notes is said to be from, and that are not recorded."""
    text = _read(notes)
    images = re.findall(rf"\]\(experiments/{reference.name}/([^/)]+)/", text)
    named = prose.runs_named(text) | set(re.findall(r"<!-- table:(\S+) begin -->", text)) | set(images)
    return sorted(name for name in named if not (reference / name).is_dir())
