"""A recorded result of handoff-bench, as a table for NOTES.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matrix.store import StoreError

FILE = "handoff-bench.json"
SCHEMA = "c10k-handoff-bench/1"
NAME = "handoff-bench"


def is_bench(path: Path) -> bool:
    return (path / FILE).is_file()


def load(path: Path) -> dict[str, Any]:
    try:
        data = json.loads((path / FILE).read_text())
    except (OSError, ValueError) as error:
        raise StoreError(f"{path / FILE}: {error}") from None
    if data.get("schema") != SCHEMA:
        raise StoreError(f"{path / FILE}: schema is {data.get('schema')!r}, not {SCHEMA!r}")
    return data


def nanoseconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _us(value: float | None) -> str:
    return "-" if value is None else f"{value / 1000:.1f}"


def _median(row: dict[str, Any] | None, key: str) -> float | None:
    return row[key]["median"] if row and key in row else None


def markdown(data: dict[str, Any], source: str) -> str:
    streams = {(row["name"], row["pin"], row["batch"]): row for row in data["streams"]}
    latencies = {(row["name"], row["pin"]): row for row in data["latencies"]}
    constants = {(row["name"], row["batch"]): row for row in data["constants"]}
    batches = sorted({row["batch"] for row in data["streams"]})
    heads = [
        "way", *(f"CPU by {batch}, ns" for batch in batches), "of it s + r", "± at 64", "wall, free", "calls s + r",
        "p50 / p99, us", "in flight",
    ]
    lines = [f"| {' | '.join(heads)} |", "| --- |" + " ---: |" * (len(heads) - 1)]
    for subject in data["subjects"]:
        name = subject["name"]
        if not subject["available"]:
            lines.append(f"| `{name}` | unsupported: {subject['reason']} |" + " |" * (len(heads) - 2))
            continue
        at64 = streams.get((name, "one", 64)) or streams.get((name, "one", 1))
        constant = constants.get((name, 64)) or constants.get((name, 1)) or {}
        calls = constant.get("calls")
        flight = constant.get("in_flight")
        latency = latencies.get((name, "one"))
        spread = at64.get("cpu_ns") if at64 else None
        cells = [f"`{name}`" + (" (floor)" if subject["kind"] == "floor" else "")]
        cells += [nanoseconds(_median(streams.get((name, "one", batch)), "cpu_ns")) for batch in batches]
        cells.append(f"{nanoseconds(_median(at64, 'sender_cpu_ns'))} + {nanoseconds(_median(at64, 'receiver_cpu_ns'))}")
        half_range = (spread["q3"] - spread["q1"]) / 2 / spread["median"] if spread else None
        cells.append("-" if half_range is None else f"{half_range:.0%}")
        cells.append(nanoseconds(_median(streams.get((name, "free", 64)), "wall_ns")))
        if calls:
            sides = [sum(calls[f"{side}_per_descriptor"].values()) for side in ("sender", "receiver")]
            cells.append(f"{sides[0]:.2f} + {sides[1]:.2f}")
        else:
            cells.append("-")
        cells.append(f"{_us(_median(latency, 'p50_ns'))} / {_us(_median(latency, 'p99_ns'))}" if latency else "-")
        cells.append(f"{flight['descriptors']:,}" if flight else "-")
        lines.append(f"| {' | '.join(cells)} |")
    host = data["host"]
    lines += ["", *(f"- Target: {row['text']}: {row['outcome']}." for row in data["targets"])]
    options = data["options"]
    lines.append(f"- Medians of {options['repetitions']} repetitions in random order, each cell {options['duration_s']:g} s; "
                 "± is half of what lies between the quartiles.")
    lines.append(f"- Seed {data['seed']}, revision {host['revision'][:12]}, {host['build_type']} build, Linux {host['kernel']}, "
                 f"{host['cpu_model']}, {host['cores']} cores; flags: {', '.join(host['flags']) or 'none'}.")
    lines.append(f"- Data: `{source}/{FILE}`")
    return "\n".join(lines) + "\n"
