"""A matrix as data: the ways, the workloads, and the cells that they make."""

from __future__ import annotations

import fnmatch
import random
import tomllib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from matrix import peers

FOLDER = Path(__file__).resolve().parents[1] / "matrices"
SCHEMA = "c10k-matrix/1"


class UsageError(Exception):
    """What the person asked for cannot be done: one line, exit code 2."""


@dataclass(frozen=True)
class Way:
    """One way of serving: how the server is started, and what its --list must name for it."""

    name: str
    server: tuple[str, ...]
    kind: str  # the key in c10k-server --list --json: "strategies" or "methods"; "peers" is not ours
    needs: str  # the name under that key
    client: str = ""  # the peer that makes the load instead of c10k-client


@dataclass(frozen=True)
class Workload:
    name: str
    kind: str
    summary: str
    client: tuple[str, ...]
    limit_s: float
    expected_s: float
    figure: str = ""  # what ranks the ways, where it is not the kind's own
    # So many connections are held: workers of a pool and client processes are as many as that takes, and
    # the kernel and the processes are looked at while nobody speaks.
    held: int = 0


@dataclass(frozen=True)
class Matrix:
    name: str
    summary: str
    baseline: str
    repetitions: int
    ways: tuple[Way, ...]
    workloads: tuple[Workload, ...]
    balance: bool = False  # the table shows how evenly the workers are loaded

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Matrix:
        ways = tuple(Way(**{**way, "server": tuple(way["server"])}) for way in data["ways"])
        workloads = tuple(Workload(**{**load, "client": tuple(load["client"])}) for load in data["workloads"])
        return Matrix(**{**data, "ways": ways, "workloads": workloads})


@dataclass(frozen=True)
class Cell:
    order: int
    repetition: int
    way: Way
    workload: Workload

    @property
    def key(self) -> tuple[str, str, int]:
        return (self.way.name, self.workload.name, self.repetition)


def names() -> dict[str, str]:
    """The matrices that come with the project, each with its summary."""
    found = {}
    for path in sorted(FOLDER.glob("*.toml")):
        with path.open("rb") as file:
            found[path.stem] = tomllib.load(file)["summary"]
    return found


def load(name: str) -> Matrix:
    """The matrix of that name, or of that file when it ends in .toml."""
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not name.endswith(".toml") and name not in names():
        raise UsageError(f"unknown matrix '{name}'; allowed: {', '.join(names())}, or a file NAME.toml")
    try:
        with path.open("rb") as file:
            data = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"matrix {path}: {error}") from None
    if data.get("schema") != SCHEMA:
        raise UsageError(f"matrix {path}: schema is {data.get('schema')!r}; allowed: {SCHEMA!r}")
    try:
        return _from_toml(path.stem, data)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UsageError(f"matrix {path}: {_say(error)}") from None


def _say(error: Exception) -> str:
    return f"the key {error} is missing" if isinstance(error, KeyError) else str(error)


def _from_toml(name: str, data: dict[str, Any]) -> Matrix:
    server = data["server"]
    ways = [Way(s, ("--strategy", s), "strategies", s) for s in server.get("strategies", [])]
    planned = all(load.get("held") for load in data["workload"])
    for method in server.get("methods", []):
        workers = () if planned else ("--workers", str(server["workers"]))
        options = ("--strategy", "pool", "--ipc", method, *workers)
        ways.append(Way(method, options, "methods", method.split(":", 1)[0]))
    for way in server.get("way", []):
        argv = tuple(way.get("argv", ()))
        ways.append(Way(way["name"], argv, *_needs(argv, way.get("peer", "")), way.get("client", "")))
    workloads = tuple(Workload(**{**load, "client": tuple(load["client"])}) for load in data["workload"])
    for way in ways:
        if way.client:
            _check_client(way, workloads)
    for load in workloads:
        if load.held and ("--idle" not in load.client or "--connections" in load.client):
            raise ValueError(f"workload {load.name}: with 'held', client needs --idle and must not have --connections")
    balance = bool(data.get("balance", False))
    return Matrix(name, data["summary"], data["baseline"], data["repetitions"], tuple(ways), workloads, balance)


def _check_client(way: Way, workloads: tuple[Workload, ...]) -> None:
    if way.client not in peers.CLIENTS:
        raise ValueError(f"unknown client {way.client!r}; allowed: {', '.join(peers.CLIENTS)}")
    for load in workloads:
        if load.kind not in peers.CLIENTS[way.client].kinds:
            raise ValueError(f"{way.client} cannot do {load.kind}")


def _needs(argv: tuple[str, ...], peer: str) -> tuple[str, str]:
    """What the server's list must name for these options, or the peer that serves instead."""
    if peer:
        if peer not in peers.SERVERS:
            raise ValueError(f"unknown peer {peer!r}; allowed: {', '.join(peers.SERVERS)}")
        if argv:
            raise ValueError(f"the peer {peer!r} takes no argv")
        return "peers", peer
    if "--ipc" in argv:
        return "methods", argv[argv.index("--ipc") + 1].split(":", 1)[0]
    return "strategies", argv[argv.index("--strategy") + 1]


def select(matrix: Matrix, patterns: list[str], repetitions: int | None) -> Matrix:
    """What of a matrix the person wants. Patterns that name ways widen each other, and so do patterns
    that name workloads; the two together narrow: --only crr --only 'scm-*' is crr of the scm ways."""
    ways, workloads = set(), set()
    for pattern in patterns:
        of_ways = {way.name for way in matrix.ways if fnmatch.fnmatchcase(way.name, pattern)}
        of_workloads = {load.name for load in matrix.workloads if fnmatch.fnmatchcase(load.name, pattern)}
        if not of_ways and not of_workloads:
            known = [entry.name for entry in (*matrix.workloads, *matrix.ways)]
            raise UsageError(f"--only: '{pattern}' selects nothing; allowed: {', '.join(known)}, or a glob")
        ways |= of_ways
        workloads |= of_workloads
    return replace(
        matrix,
        repetitions=repetitions or matrix.repetitions,
        ways=tuple(way for way in matrix.ways if not ways or way.name in ways),
        workloads=tuple(load for load in matrix.workloads if not workloads or load.name in workloads),
    )


def cells(matrix: Matrix, seed: int) -> list[Cell]:
    """All cells in the order they run: a block for each repetition, each block in random order. Only a
    ladder is climbed from below, as the memory of a high step is not given back at once."""
    ordered: list[Cell] = []
    for repetition in range(1, matrix.repetitions + 1):
        block = [(way, load) for load in matrix.workloads for way in matrix.ways]
        # A text as seed gives the same order on every machine and for every Python 3.
        random.Random(f"{seed}/{repetition}").shuffle(block)
        block.sort(key=lambda cell: cell[1].held)
        for way, load in block:
            ordered.append(Cell(len(ordered) + 1, repetition, way, load))
    return ordered
