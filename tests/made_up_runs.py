"""Runs that are made up, so that every figure in them is known: for tests of what is made of a run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "experiments"))

from matrix import spec, store  # noqa: E402

Cell = dict[str, Any]


def cell(way: spec.Way, load: spec.Workload, repetition: int, **what: Any) -> Cell:
    """One that went well, and what is said of it."""
    return {
        "schema": store.CELL_SCHEMA, "way": way.name, "workload": load.name, "repetition": repetition, "order": 1,
        "status": "ok", "reason": "", "server_options": list(way.server), "client_options": list(load.client),
        "server_program": "c10k-server", "client_program": "c10k-client", "held": None, "faults": None,
        "netstat": {}, "host_cpu": 0.9, "other_cpu": 0.0, "elapsed_s": 0.2, **what,
    }


def run(matrix: spec.Matrix, cell_of: Callable[[spec.Way, spec.Workload, int], Cell]) -> store.Run:
    """Of a recorded run's host and build."""
    meta = json.loads((ROOT / "experiments" / "reference" / "quick" / "run.json").read_text())
    meta["matrix"] = matrix.to_json()
    cells = [cell_of(way, load, repetition) for repetition in range(1, matrix.repetitions + 1)
             for load in matrix.workloads for way in matrix.ways if load.takes(way)]
    return store.Run(Path("nowhere"), meta, cells)


def write(made: store.Run, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    store.write_meta(folder, made.meta)
    (folder / "cells.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in made.cells))
    return folder
