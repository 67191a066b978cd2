"""results/<run>/: run.json, and cells.jsonl with one line for each finished cell."""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import json
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matrix.facts import ROOT
from matrix.figures import per_worker
from matrix.spec import Matrix

RUN_SCHEMA = "c10k-run/1"
CELL_SCHEMA = "c10k-cell/1"
RESULTS = ROOT / "results"
# What every reader of a run relies on.
RUN_KEYS = {"started_at": str, "seed": int, "matrix": dict, "client_shape": str, "source": dict, "build": dict,
            "host": dict}
INNER_KEYS = {
    "source": ("revision", "dirty"),
    "build": ("cmake_build_type", "c10k_sanitize", "programs_sha256"),
    "host": ("kernel", "machine", "cpu_model", "hypervisor", "cores", "memory_bytes", "load_average_1min"),
}
CELL_KEYS = {"way": str, "workload": str, "repetition": int, "status": str, "reason": str, "server_options": list,
             "client_options": list, "netstat": dict}
MEASURED_KEYS = {"client": dict, "server": dict}


COPY = "cells.jsonl.gz"  # of a recorded copy, in place of cells.jsonl
LEFT_OUT = {"buckets_ns", "series", "phases", "first_echo_latency", "echo_latency"}


class StoreError(Exception):
    """A run cannot be read or written: one line, exit code 1."""


@dataclass
class Run:
    path: Path
    meta: dict[str, Any]
    cells: list[dict[str, Any]]
    remarks: list[str] = field(default_factory=list)
    whole_bytes: int = 0  # of cells.jsonl: where the last whole line ends
    known: dict[str | None, Any] = field(default_factory=dict)  # what rows.sections() has given, by baseline


def load(path: Path) -> Run:
    meta = _meta(path / "run.json")
    run = Run(path, meta, [])
    file = path / "cells.jsonl"
    try:
        data = gzip.decompress((path / COPY).read_bytes()) if (path / COPY).exists() else file.read_bytes()
    except FileNotFoundError:
        return run
    except OSError as error:  # gzip's are of its kind
        raise StoreError(f"{path / COPY if (path / COPY).exists() else file}: {error.strerror or error}") from None
    except (EOFError, zlib.error) as error:
        raise StoreError(f"{path / COPY}: {error}") from None
    ways, workloads = ({entry["name"] for entry in meta["matrix"][key]} for key in ("ways", "workloads"))
    lines = data.split(b"\n")
    torn = lines.pop()  # what stands behind the last line feed: nothing, unless a write was cut off
    for number, line in enumerate(lines, 1):
        try:
            cell = _object(line, CELL_SCHEMA, CELL_KEYS)
            if cell["status"] == "ok":
                _require(cell, MEASURED_KEYS)
            if cell["way"] not in ways or cell["workload"] not in workloads:
                raise ValueError(f"{cell['workload']} of {cell['way']} is no cell of this run's matrix")
        except ValueError as error:
            where = f"{path / 'cells.jsonl'} line {number}"
            raise StoreError(f"{where}: {error} (without this line its cell is measured again by --resume)") from None
        run.cells.append(cell)
    run.whole_bytes = len(data) - len(torn)
    if torn:
        run.remarks.append("cells.jsonl ends in half a line, as an interrupted write leaves it: ignored")
    return run


def _meta(path: Path) -> dict[str, Any]:
    try:
        meta = _object(path.read_bytes(), RUN_SCHEMA, RUN_KEYS)
        for key, inner in INNER_KEYS.items():
            if lacks := [name for name in inner if name not in meta[key]]:
                raise ValueError(f"{key} lacks {', '.join(lacks)}")
        Matrix.from_json(meta["matrix"])
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise StoreError(f"{path}: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path}: its matrix is not one of this program's: {error}") from None
    return meta


def _object(text: bytes, schema: str, kinds: dict[str, type]) -> dict[str, Any]:
    """What the text says, if it is of this schema; else ValueError."""
    try:
        data = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply for any of this program's files") from None
    found = data.get("schema") if isinstance(data, dict) else None
    if found != schema:
        raise ValueError(f"schema is {found!r}; allowed: {schema!r}")
    _require(data, kinds)
    return data


def _require(data: dict[str, Any], kinds: dict[str, type]) -> None:
    for key, kind in kinds.items():
        if not isinstance(data.get(key), kind):
            raise ValueError(f"{key} is {str(data.get(key))[:40]!r}, not a {kind.__name__}")


def holds_a_run(path: Path) -> bool:
    cells = path / "cells.jsonl"
    return (path / "run.json").exists() or (path / COPY).exists() or cells.exists() and cells.stat().st_size > 0


def newest(results: Path = RESULTS) -> Path:
    """The run that was started last."""
    started = {}
    for path in results.glob("*/run.json"):
        try:
            started[_meta(path)["started_at"]] = path.parent
        except StoreError:
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
        with contextlib.suppress(OSError):
            draft.unlink()
        raise StoreError(f"{path / 'run.json'}: {error.strerror}") from None


class Recorder:
    """Appends cells; each is on the disk before the next one starts. One writer at a time: a run that goes on
    is read once this exists, so that what is read is all that there will be."""

    def __init__(self, path: Path) -> None:
        if (path / COPY).exists():
            raise StoreError(f"{path}: a recorded copy, which no run goes on in; name another folder")
        self.path = path / "cells.jsonl"
        # Unbuffered: what a full disk refused must not be tried again when the file is closed.
        self._file = self.path.open("ab", buffering=0)
        self._whole = 0
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise StoreError(f"{path}: another run_matrix is writing to it; name another folder, or wait") from None

    def go_on_at(self, whole_bytes: int) -> None:
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
            kept = "all earlier cells are kept: make room, then --resume"
            raise StoreError(f"{self.path}: {error.strerror}; {kept}") from None
        self._whole += len(line)

    def close(self) -> None:
        self._file.close()


def record_copy(run: Run, target: Path) -> None:
    """A small copy to commit. The same run gives the same bytes."""
    lines = [json.dumps(_small(_with_shares(cell)), separators=(",", ":")) for cell in run.cells]
    try:
        target.mkdir(parents=True, exist_ok=True)
        draft = target / f"{COPY}.new"
        draft.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0))
        write_meta(target, run.meta)
        draft.replace(target / COPY)
        (target / "cells.jsonl").unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"{target}: {error.strerror}") from None


def _with_shares(cell: dict[str, Any]) -> dict[str, Any]:
    """What each worker had, which is all that is read of a report's processes."""
    server = cell.get("server") or {}
    if not (found := per_worker(server)):
        return cell
    return {**cell, "server": {**server, "balance": {**(server.get("balance") or {}), "per_worker": found}}}


def _small(value: Any) -> Any:
    """Without what no table, chart or page reads."""
    if isinstance(value, dict):
        return {key: _small(entry) for key, entry in value.items()
                if key not in LEFT_OUT and not (key == "processes" and isinstance(entry, list))}
    if isinstance(value, list):
        return [_small(entry) for entry in value]
    return value
