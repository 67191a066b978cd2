"""The tables in NOTES.md: made from recorded data, and checked against it."""

from __future__ import annotations

import re
from pathlib import Path

from matrix.store import StoreError


def _block(name: str, table: str, notes: Path) -> tuple[str, re.Match[str], str]:
    """The text of the notes, the marked block in it, and what should stand there."""
    try:
        text = notes.read_text()
    except OSError as error:
        raise StoreError(f"{notes}: {error.strerror}") from None
    begin, end = f"<!-- table:{name} begin -->", f"<!-- table:{name} end -->"
    found = re.findall(f"{re.escape(begin)}\n.*?{re.escape(end)}", text, re.DOTALL)
    if len(found) != 1:
        raise StoreError(f"{notes}: needs one pair of lines '{begin}' and '{end}'; it has {len(found)}")
    match = re.search(re.escape(found[0]), text)
    assert match
    return text, match, f"{begin}\n{table}{end}"


def update(name: str, table: str, notes: Path) -> bool:
    """Puts a recorded table between its marks in the notes; true when that changed them."""
    text, match, wanted = _block(name, table, notes)
    if match[0] == wanted:
        return False
    try:
        notes.write_text(text[: match.start()] + wanted + text[match.end() :])
    except OSError as error:
        raise StoreError(f"{notes}: {error.strerror}") from None
    return True


def differ(name: str, table: str, notes: Path) -> bool:
    _, match, wanted = _block(name, table, notes)
    return match[0] != wanted
