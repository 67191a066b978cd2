"""A matrix as data: the ways, the workloads, and the cells that they make."""

from __future__ import annotations

import fnmatch
import itertools
import math
import random
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from matrix import peers
from matrix.fault_kinds import KINDS as FAULTS

FOLDER = Path(__file__).resolve().parents[1] / "matrices"
SCHEMA = "c10k-matrix/1"
STRATEGIES = ("fork", "select", "poll", "epoll", "uring", "pool")
LOOPS = ("select", "poll", "epoll", "uring")
KINDS = ("crr", "rr", "hold")
PINNED = ("acceptor", "workers", "client")
MOST_REPETITIONS = 1000


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
    group: str = ""  # ways that are read together, apart from the others: "anatomy"


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
    repetitions: int = 0  # 0: the matrix's
    ways: tuple[str, ...] = ()  # globs over names, groups and kinds of ways: those it is for; none: all
    not_ways: tuple[str, ...] = ()  # and of these it is for none
    fault: str = ""  # one of fault_kinds.KINDS, which happens during the load
    every_s: float = 0.0  # on average, from when all is whole again to the next
    # The cores that the processes of a cell are held to: {"acceptor": [0], "workers": [1], "client": [0]}.
    pin: dict[str, list[int]] = field(default_factory=dict)

    @property
    def has_rate(self) -> bool:
        """An open loop: the rate is given, and no figure of the server."""
        return "--rate" in self.client

    def takes(self, way: Way) -> bool:
        def named(patterns: tuple[str, ...]) -> bool:
            return any(_matches(way, pattern) for pattern in patterns)

        return (not self.ways or named(self.ways)) and not named(self.not_ways)


def options_of(argv: Sequence[str]) -> dict[str, str]:
    """What stands behind each word, so behind each option its value."""
    return dict(zip(argv, argv[1:]))


def _matches(way: Way, pattern: str) -> bool:
    words = filter(None, (way.name, way.group, way.kind))  # no group is not a group with an empty name
    return any(fnmatch.fnmatchcase(word, pattern) for word in words)


@dataclass(frozen=True)
class Matrix:
    name: str
    summary: str
    baseline: str
    repetitions: int
    ways: tuple[Way, ...]
    workloads: tuple[Workload, ...]
    balance: bool = False  # the table shows how evenly the workers are loaded

    def repetitions_of(self, load: Workload) -> int:
        return load.repetitions or self.repetitions

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Matrix:
        ways = tuple(Way(**{**way, "server": tuple(way["server"])}) for way in data["ways"])
        lists = ("client", "ways", "not_ways")
        workloads = tuple(
            Workload(**{**load, **{key: tuple(load[key]) for key in lists if key in load}})
            for load in map(_with_fault, data["workloads"])
        )
        return Matrix(**{**data, "ways": ways, "workloads": workloads})


def _with_fault(load: dict[str, Any]) -> dict[str, Any]:
    """Runs from when killing a worker was the only fault have another key for it."""
    others = {key: value for key, value in load.items() if key != "kill_every_s"}
    every_s = load.get("kill_every_s")
    return {**others, "fault": "kill", "every_s": every_s} if every_s else others


@dataclass(frozen=True)
class Cell:
    order: int
    repetition: int
    way: Way
    workload: Workload
    seed: str  # of what is random within the cell

    @property
    def key(self) -> tuple[str, str, int]:
        return (self.way.name, self.workload.name, self.repetition)


def names() -> dict[str, str]:
    """The matrices that come with the project, each with its summary."""
    found = {}
    for path in sorted(FOLDER.glob("*.toml")):
        try:
            found[path.stem] = str(tomllib.loads(path.read_text())["summary"])
        except (OSError, ValueError, KeyError) as error:
            found[path.stem] = f"({_say(error)})"
    return found


def load(name: str) -> Matrix:
    """The matrix of that name, or of that file when it ends in .toml."""
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not name.endswith(".toml") and name not in names():
        raise UsageError(f"unknown matrix '{name}'; allowed: {', '.join(names())}, or a file NAME.toml")
    try:
        with path.open("rb") as file:
            data = tomllib.load(file)
        if data.get("schema") != SCHEMA:
            raise ValueError(f"schema is {data.get('schema')!r}; allowed: {SCHEMA!r}")
        return _from_toml(path.stem, data)
    except OSError as error:
        raise UsageError(f"matrix {path}: {error.strerror}") from None
    except (KeyError, ValueError, RecursionError) as error:  # a TOML or Unicode error is a ValueError
        raise UsageError(f"matrix {path}: {_say(error)}") from None


def _say(error: Exception) -> str:
    return f"the key {error} is missing" if isinstance(error, KeyError) else str(error)


NUMBER = (int, float)
CLIENT_COUNTS = ("--connections", "--processes", "--idle")
MATRIX_KEYS = {"schema": str, "summary": str, "repetitions": int, "baseline": str, "balance": bool, "server": dict,
               "workload": list}
SERVER_KEYS = {"strategies": list, "methods": list, "workers": (int, list), "loops": list, "retain": list,
               "way": list}
WAY_KEYS = {"name": str, "argv": list, "peer": str, "client": str, "group": str}
WORKLOAD_KEYS = {"name": str, "kind": str, "summary": str, "client": list, "limit_s": NUMBER, "expected_s": NUMBER,
                 "figure": str, "held": int, "repetitions": int, "ways": list, "not_ways": list,
                 "connections": list, "fault": str, "every_s": NUMBER, "pin": dict}
FROM_1 = (int, "numbers from 1")
LISTS_OF = {"connections": FROM_1, "workers": FROM_1, "retain": (bool, "true and false")}


def _check(table: Any, kinds: dict[str, Any], where: str) -> None:
    """Every key is known, and its value is of the right type; of a list, all are of one type."""
    if not isinstance(table, dict):
        raise ValueError(f"{where} is {table!r}; allowed: a table with {', '.join(kinds)}")
    for key, value in table.items():
        if key not in kinds:
            raise ValueError(f"{where}: unknown key '{key}'; allowed: {', '.join(kinds)}")
        allowed = kinds[key] if isinstance(kinds[key], tuple) else (kinds[key],)
        if not isinstance(value, allowed) or isinstance(value, bool) and bool not in allowed:
            raise ValueError(f"{where}: {key} is {value!r}; allowed: {' or '.join(kind.__name__ for kind in allowed)}")
        if isinstance(value, NUMBER) and not 0 <= value < math.inf:
            raise ValueError(f"{where}: {key} is {value!r}; allowed: 0 and more")
        if isinstance(value, list) and key not in ("way", "workload"):
            kind, allowed_here = LISTS_OF.get(key, (str, "texts"))
            for entry in value:
                if type(entry) is not kind or kind is int and entry < 1:
                    raise ValueError(f"{where}: {key} holds {entry!r}; allowed: {allowed_here}")


def _one_of(value: str, allowed: Any, what: str) -> None:
    if value not in allowed:
        raise ValueError(f"unknown {what} {value!r}; allowed: {', '.join(allowed)}")


def _from_toml(name: str, data: dict[str, Any]) -> Matrix:
    _check(data, MATRIX_KEYS, "the matrix")
    server = data["server"]
    _check(server, SERVER_KEYS, "[server]")
    workloads = tuple(made for load in data["workload"] for made in _workloads(load))
    planned = all(load.held for load in workloads)
    ways = (*_single(server), *_pools(server, planned), *(_way(way) for way in server.get("way", [])))
    balance = bool(data.get("balance", False))
    matrix = Matrix(name, data["summary"], data["baseline"], data["repetitions"], ways, workloads, balance)
    _check_names(matrix)
    for load in workloads:
        _check_workload(load, matrix)
    return matrix


def _single(server: dict[str, Any]) -> list[Way]:
    for strategy in server.get("strategies", []):
        _one_of(strategy, STRATEGIES, "strategy")
    return [Way(name, ("--strategy", name), "strategies", name) for name in server.get("strategies", [])]


def _pools(server: dict[str, Any], planned: bool) -> list[Way]:
    """Methods x loops x workers x retained or not. An axis with more than one value stands in the name:
    'pidfd-ring, uring x4', and what is retained says so."""
    methods, loops = server.get("methods", []), server.get("loops", [])
    for loop in loops:
        _one_of(loop, LOOPS, "loop")
    workers: Any = [0] if planned or not methods else server["workers"]
    workers = workers if isinstance(workers, list) else [workers]
    ways = []
    axes = (methods, loops or [""], workers, server.get("retain") or [False])
    for method, loop, count, retain in itertools.product(*axes):
        name = method + (f", {loop}" if len(loops) > 1 else "") + (f" x{count}" if len(workers) > 1 else "")
        name += ", retain" if retain else ""
        argv = ("--strategy", "pool", "--ipc", method)
        argv += (("--workers", str(count)) if count else ()) + (("--loop", loop) if loop else ())
        argv += ("--retain",) if retain else ()
        ways.append(Way(name, argv, "methods", method.split(":", 1)[0]))
    return ways


def _way(way: dict[str, Any]) -> Way:
    _check(way, WAY_KEYS, f"[[server.way]] {way.get('name', '') if isinstance(way, dict) else ''}".rstrip())
    argv = tuple(way.get("argv", ()))
    _check_counts(argv, ("--workers",), f"way {way['name']}")
    return Way(way["name"], argv, *_needs(way["name"], argv, way.get("peer", "")), way.get("client", ""),
               way.get("group", ""))


def _needs(name: str, argv: tuple[str, ...], peer: str) -> tuple[str, str]:
    """What the server's list must name for these options, or the peer that serves instead."""
    if peer:
        _one_of(peer, peers.SERVERS, "peer")
        if argv:
            raise ValueError(f"way {name}: the peer {peer!r} takes no argv")
        return "peers", peer
    options = options_of(argv)
    if "--ipc" in options:
        return "methods", options["--ipc"].split(":", 1)[0]
    if "--strategy" not in options:
        raise ValueError(f"way {name}: argv names no --strategy, and there is no peer")
    _one_of(options["--strategy"], STRATEGIES, "strategy")
    return "strategies", options["--strategy"]


def _workloads(load: Any) -> list[Workload]:
    """One; or with a list of connections one for each, 'crr-16' and so on."""
    _check(load, WORKLOAD_KEYS, f"[[workload]] {load.get('name', '') if isinstance(load, dict) else ''}".rstrip())
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in load.items()}
    counts = fields.pop("connections", None)
    for key in ("name", "kind", "summary", "client", "limit_s", "expected_s"):
        fields[key]  # noqa: B018 - a KeyError names what is missing
    one = Workload(**fields)
    if counts is None:
        return [one]
    if "--connections" in one.client or not counts:
        raise ValueError(f"workload {one.name}: connections is a list of numbers, and --connections is not in client")
    return [
        replace(one, name=f"{one.name}-{count}", client=(*one.client, "--connections", str(count)),
                summary=one.summary.replace("{connections}", f"{count:,}"))
        for count in counts
    ]


def _check_names(matrix: Matrix) -> None:
    for what, entries in (("way", matrix.ways), ("workload", matrix.workloads)):
        if not entries:
            raise ValueError(f"it has no {what}")
        name, count = Counter(entry.name for entry in entries).most_common(1)[0]
        if count > 1:
            raise ValueError(f"{count} {what}s are called {name!r}; a name stands for one")
    _one_of(matrix.baseline, [way.name for way in matrix.ways], "baseline")
    for repetitions in (matrix.repetitions, *(load.repetitions for load in matrix.workloads if load.repetitions)):
        if not 1 <= repetitions <= MOST_REPETITIONS:
            raise ValueError(f"repetitions is {repetitions}; allowed: 1 to {MOST_REPETITIONS}")


def _check_workload(load: Workload, matrix: Matrix) -> None:
    from matrix.figures import FIGURES  # which imports this module

    where = f"workload {load.name}"
    _one_of(load.kind, KINDS, f"kind in {where}:")
    _one_of(load.figure or load.kind, FIGURES, f"figure in {where}:")
    for pattern in (*load.ways, *load.not_ways):
        if not any(_matches(way, pattern) for way in matrix.ways):
            raise ValueError(f"{where}: {pattern!r} matches no way; allowed: globs over their names, groups and kinds")
    if load.held and ("--idle" not in load.client or "--connections" in load.client):
        raise ValueError(f"{where}: with 'held', client needs --idle and must not have --connections")
    _check_counts(load.client, CLIENT_COUNTS, where)
    if load.kind == "hold" and not load.held and "--connections" not in load.client:
        raise ValueError(f"{where}: a hold says how many: --connections N in client")
    for who, cores in load.pin.items():
        _one_of(who, PINNED, f"process in {where}, pin:")
        if not isinstance(cores, list) or not cores or not all(type(core) is int and core >= 0 for core in cores):
            raise ValueError(f"{where}: pin.{who} is {cores!r}; allowed: a list of cores, as [0]")
    taken = [way for way in matrix.ways if load.takes(way)]
    if not taken:
        raise ValueError(f"{where}: its ways and not_ways leave no way")
    if load.fault or load.every_s:
        _check_fault(load, taken, where)
    for way in taken:
        if way.client:
            _check_client(way, load)


def _check_fault(load: Workload, taken: Sequence[Way], where: str) -> None:
    _one_of(load.fault, FAULTS, f"fault in {where}:")
    if not load.every_s:
        raise ValueError(f"{where}: with 'fault', every_s says how many seconds to the next, and is above 0")
    if load.pin or load.held or any(way.kind != "methods" for way in taken):
        raise ValueError(f"{where}: with 'fault', its ways are all methods, and there is no pin and no held")
    duration, needed = options_of(load.client).get("--duration", ""), FAULTS[load.fault].settle_s + load.every_s
    if not _is_number(duration) or float(duration) <= needed:
        raise ValueError(f"{where}: with 'fault', client needs a --duration above {needed:g} (every_s, and "
                         f"{FAULTS[load.fault].settle_s:g} s in which its clients see the last one)")


def _check_counts(argv: Sequence[str], names: Sequence[str], where: str) -> None:
    """What this program reads out of a program's options itself."""
    for name, value in zip(argv, (*argv[1:], "")):
        if name in names and not (value.isdecimal() if name != "--idle" else _is_number(value)):
            raise ValueError(f"{where}: {name} is {value!r}; allowed: a number")


def _is_number(text: str) -> bool:
    try:
        return 0 <= float(text) < math.inf
    except ValueError:
        return False


def _check_client(way: Way, load: Workload) -> None:
    _one_of(way.client, peers.CLIENTS, "client")
    if load.kind not in peers.CLIENTS[way.client].kinds:
        raise ValueError(f"{way.client} cannot do {load.kind}")
    for name in peers.CLIENTS[way.client].options:
        if name not in load.client:
            raise ValueError(f"workload {load.name}: {way.client} needs {name} in client")


def select(matrix: Matrix, patterns: list[str], repetitions: int | None) -> Matrix:
    """What of a matrix the person wants. Patterns that name ways widen each other, and so do patterns
    that name workloads; the two together narrow: --only crr --only 'scm-*' is crr of the scm ways."""
    ways, workloads = set(), set()
    for pattern in patterns:
        of_ways = {way.name for way in matrix.ways if _matches(way, pattern)}
        of_workloads = {load.name for load in matrix.workloads if fnmatch.fnmatchcase(load.name, pattern)}
        if not of_ways and not of_workloads:
            known = [entry.name for entry in (*matrix.workloads, *matrix.ways)]
            raise UsageError(f"--only: '{pattern}' selects nothing; allowed: {', '.join(known)}, or a glob")
        ways |= of_ways
        workloads |= of_workloads
    kept_ways = tuple(way for way in matrix.ways if not ways or way.name in ways)
    kept = tuple(
        replace(load, repetitions=repetitions or load.repetitions)
        for load in matrix.workloads
        if (not workloads or load.name in workloads) and any(load.takes(way) for way in kept_ways)
    )
    if not kept:
        raise UsageError(f"--only: {', '.join(patterns)} selects no cell; no such workload is for such a way")
    used = tuple(way for way in kept_ways if any(load.takes(way) for load in kept))
    return replace(matrix, repetitions=repetitions or matrix.repetitions, ways=used, workloads=kept)


def cells(matrix: Matrix, seed: int) -> list[Cell]:
    """All cells in the order they run: a block for each repetition, each block in random order. Only a
    ladder is climbed from below, as the memory of a high step is not given back at once."""
    ordered: list[Cell] = []
    for repetition in range(1, max(map(matrix.repetitions_of, matrix.workloads)) + 1):
        left = [load for load in matrix.workloads if repetition <= matrix.repetitions_of(load)]
        block = [(way, load) for load in left for way in matrix.ways if load.takes(way)]
        # A text as seed gives the same order on every machine and for every Python 3.
        random.Random(f"{seed}/{repetition}").shuffle(block)
        block.sort(key=lambda cell: cell[1].held)
        for way, load in block:
            of_cell = f"{seed}/{repetition}/{load.name}/{way.name}"
            ordered.append(Cell(len(ordered) + 1, repetition, way, load, of_cell))
    return ordered
