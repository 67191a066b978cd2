"""results/<run>/: run.json, and cells.jsonl with one line for each finished cell."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matrix.facts import ROOT

RUN_SCHEMA = "c10k-run/1"
CELL_SCHEMA = "c10k-cell/1"
RESULTS = ROOT / "results"


class StoreError(Exception):
    """A run cannot be read or written: one line, exit code 1."""


@dataclass
class Run:
    path: Path
    meta: dict[str, Any]
    cells: list[dict[str, Any]]
    remarks: list[str] = field(default_factory=list)
    whole_bytes: int = 0  # of cells.jsonl: where the last whole line ends


def load(path: Path) -> Run:
    meta = _object(path / "run.json", RUN_SCHEMA)
    run = Run(path, meta, [])
    try:
        data = (path / "cells.jsonl").read_bytes()
    except FileNotFoundError:
        return run
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from None
    lines = data.split(b"\n")
    torn = lines.pop()  # what stands behind the last line feed: nothing, unless a write was cut off
    for number, line in enumerate(lines, 1):
        where = f"{path / 'cells.jsonl'} line {number}"
        try:
            cell = json.loads(line)
        except ValueError as error:
            raise StoreError(f"{where}: {error}") from None
        schema = cell.get("schema") if isinstance(cell, dict) else None
        if schema != CELL_SCHEMA:
            raise StoreError(f"{where}: schema is {schema!r}; allowed: {CELL_SCHEMA!r}")
        run.cells.append(cell)
    run.whole_bytes = len(data) - len(torn)
    if torn:
        run.remarks.append("cells.jsonl ends in half a line, as an interrupted write leaves it: ignored")
    return run


def _object(path: Path, schema: str) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise StoreError(f"{path}: {error}") from None
    found = data.get("schema") if isinstance(data, dict) else None
    if found != schema:
        raise StoreError(f"{path}: schema is {found!r}; allowed: {schema!r}")
    return data


def newest(results: Path = RESULTS) -> Path:
    """The run that was started last."""
    started = {}
    for path in results.glob("*/run.json"):
        try:
            started[_object(path, RUN_SCHEMA)["started_at"]] = path.parent
        except (StoreError, KeyError):
            continue  # a foreign folder among the results is nobody's newest run
    if not started:
        raise StoreError(f"no run in {results}; make one with experiments/run_matrix quick, or name a folder")
    return started[max(started)]


def write_meta(path: Path, meta: dict[str, Any]) -> None:
    """Replaces run.json as a whole: there is never half of one."""
    draft = path / "run.json.new"
    try:
        with draft.open("w") as file:
            json.dump(meta, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path / "run.json")
    except OSError as error:
        raise StoreError(f"{path / 'run.json'}: {error.strerror}") from None


class Recorder:
    """Appends cells; each is on the disk before the next one starts. One writer at a time."""

    def __init__(self, path: Path, whole_bytes: int = 0) -> None:
        self.path = path / "cells.jsonl"
        # Unbuffered: what a full disk refused must not be tried again when the file is closed.
        self._file = self.path.open("ab", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(f"{path}: another run_matrix is writing to it") from None
        self._whole = whole_bytes
        self._file.truncate(whole_bytes)

    def append(self, cell: dict[str, Any]) -> None:
        line = json.dumps(cell, separators=(",", ":")).encode() + b"\n"
        try:
            written = 0
            while written < len(line):
                written += self._file.write(line[written:])
            os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(self._whole)  # a full disk may have taken a part of the line
            raise StoreError(f"{self.path}: {error.strerror}; all earlier cells are kept") from None
        self._whole += len(line)

    def close(self) -> None:
        self._file.close()


def record_copy(run: Run, target: Path) -> None:
    """A small copy to commit: everything but the histograms' buckets."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        write_meta(target, run.meta)
        lines = [json.dumps(_without_buckets(cell), separators=(",", ":")) for cell in run.cells]
        (target / "cells.jsonl").write_text("".join(f"{line}\n" for line in lines))
    except OSError as error:
        raise StoreError(f"{target}: {error.strerror}") from None


def _without_buckets(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_buckets(entry) for key, entry in value.items() if key != "buckets_ns"}
    if isinstance(value, list):
        return [_without_buckets(entry) for entry in value]
    return value
