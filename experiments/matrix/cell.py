"""One cell: a server, a client against it, and everything that they and the kernel say about it."""

from __future__ import annotations

import errno
import json
import subprocess
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from matrix import crashes, held, peers, pins, plan
from matrix.counters import Snapshot
from matrix.process import Child, Waiter, describe_exit
from matrix.spec import Cell, Way, options_of
from matrix.store import CELL_SCHEMA, StoreError

START_S = 10.0
STOP_S = 15.0
OURS = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE}  # run_matrix's own trouble, not the cell's
CLOSES_PER_S = 20_000  # a server may be that slow


class CellFailed(Exception):
    """The cell has no figures, and why."""


class Tools:
    """The programs, and what the server says it can do on this host."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = folder / "c10k-server"
        self.client = folder / "c10k-client"
        self.listed: dict[str, Any] = {}
        self.list_error = ""

    def ask(self) -> None:
        """Asks the server for its list. Where it cannot answer, every cell is tried and says why."""
        command = [str(self.server), "--list", "--json"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
            self.listed = json.loads(done.stdout)
            if self.listed["schema"] != "c10k-list/1":
                raise ValueError(f"its schema is {self.listed['schema']!r}, not 'c10k-list/1'")
        except (OSError, subprocess.TimeoutExpired, ValueError, KeyError, TypeError) as error:
            self.listed = {}
            self.list_error = f"{' '.join(command)}: {error}"

    def unsupported(self, way: Way) -> str:
        """Why this way cannot be measured here; empty when it can."""
        if way.kind == "peers":
            return peers.SERVERS[way.needs].missing(self.folder)
        if way.kind not in self.listed:
            return ""
        for entry in self.listed[way.kind]:
            if entry["name"] == way.needs:
                return "" if entry["available"] else entry["reason"] or "not available here"
        return f"this c10k-server has no {way.needs} among its {way.kind}"


def refusal(cell: Cell) -> str:
    """Why this machine cannot hold so many, or has not these cores; empty when it can."""
    planned = plan_of(cell)
    return (planned.refusal if planned else "") or pins.refusal(cell.workload)


def run(cell: Cell, tools: Tools, waiter: Waiter) -> dict[str, Any]:
    """Measures one cell and gives its record. Raises Interrupted, and StoreError for what would fail in every
    cell to come."""
    record = _empty(cell, tools)
    for status, reason in (("unsupported", tools.unsupported(cell.way)), ("not run", refusal(cell))):
        if reason:
            record["status"], record["reason"] = status, reason
            return record
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="c10k-cell-", ignore_cleanup_errors=True) as folder:
            _measure(record, cell, tools, waiter, Path(folder))
    except (CellFailed, crashes.NoWorker, held.OutOfMemory, OSError, subprocess.SubprocessError) as error:
        if isinstance(error, OSError) and error.errno in OURS:
            raise StoreError(f"{error.filename or 'run_matrix'}: {error.strerror}; this cell is not recorded") from None
        record["status"] = "failed"
        record["reason"] = str(error)
        if isinstance(error, OSError) and error.filename:
            record["reason"] = f"{Path(error.filename).name}: {error.strerror}"
    record["elapsed_s"] = round(time.monotonic() - started, 3)
    return record


def _empty(cell: Cell, tools: Tools) -> dict[str, Any]:
    """The record of a cell of which nothing is known yet but what it will do."""
    load = cell.workload
    server_options = [] if cell.way.kind == "peers" else ["--listen", "127.0.0.1:0", *cell.way.server]
    client_options = ["--workload", load.kind, *load.client]
    if planned := plan_of(cell):
        server_options += planned.server_options()
        client_options += planned.client_options(load.held)
    return {
        "schema": CELL_SCHEMA,
        "way": cell.way.name,
        "workload": load.name,
        "repetition": cell.repetition,
        "order": cell.order,
        "status": "ok",
        "reason": "",
        "server_options": server_options,
        "client_options": client_options,
        "server_program": cell.way.needs if cell.way.kind == "peers" else tools.server.name,
        "client_program": cell.way.client or tools.client.name,
        "pin": load.pin,
        "client": None,
        "server": None,
        "held": None,
        "crashes": None,
        "netstat": {},
        "host_cpu": None,
        "core_cpu": {},
        "other_cpu": 0.0,
        "started_at": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        "elapsed_s": 0.0,
    }


def _measure(record: dict[str, Any], cell: Cell, tools: Tools, waiter: Waiter, folder: Path) -> None:
    report = folder / "server.json"
    peer = peers.SERVERS[cell.way.needs] if cell.way.kind == "peers" else None
    if peer:
        argv = peer.command(tools.folder)
    else:
        argv = [str(tools.server), *record["server_options"], "--report", str(report)]
    with Child(argv, folder, "server", pipe_stdout=True) as server:
        target = _listening(server, waiter)
        pins.pin_server(server, cell.workload)
        cpu_before = server.cpu_us()
        problem = _load(record, cell, tools, waiter, folder, server, target)
        cpu_after = server.cpu_us()
        gone = server.ended(waiter, time.monotonic())
        stop_problem = "" if gone else _stop(server, waiter, STOP_S + cell.workload.held / CLOSES_PER_S)
        record["server"] = _peer_report(server, cpu_before, cpu_after, record) if peer else _read(report)
        if gone:
            exit_text = describe_exit(server.end())
            who = "server ended during the load,"
            raise CellFailed(_problem(who, exit_text, server.last_words(), "no message"))
        if problem or stop_problem:
            raise CellFailed(problem or stop_problem)
        if record["server"] is None:
            raise CellFailed(_problem("server", "exit code 0", server.last_words(), "no report"))
        if missing := [key for key in ("totals", "books") if key not in record["server"]]:
            raise CellFailed(f"server: its report has no {missing[0]}")


def _load(record: dict[str, Any], cell: Cell, tools: Tools, waiter: Waiter, folder: Path, server: Child,
          target: str) -> str:
    """Runs the client, records what it and the kernel saw, and gives what went wrong with it, or nothing."""
    load, result = cell.workload, folder / "client.json"
    loader = peers.CLIENTS.get(cell.way.client)
    if loader:
        options = dict(zip(load.client[::2], load.client[1::2]))
        argv = loader.command(str(tools.folder / loader.program), target, options)
    else:
        argv = [str(tools.client), "--target", target, *record["client_options"],
                "--progress", "off", "--json", str(result)]
    before = Snapshot.take()
    watch = held.Watch(server, waiter, _idle_s(record)) if load.held else None
    killer = crashes.Killer(server, waiter, load.kill_every_s, cell.seed) if load.kill_every_s else None
    with Child(argv, folder, "client", stdout=folder / "client.stdout", pipe_stderr=watch is not None,
               cores=load.pin.get("client", ())) as client:
        deadline = time.monotonic() + load.limit_s
        if follower := watch or killer:
            finished = follower.follow(client, deadline)
        else:
            finished = client.ended(waiter, deadline, server)
        after = Snapshot.take()
        code = client.end()
    record["held"] = watch and watch.record
    record["crashes"] = killer and killer.record
    record["netstat"] = after.netstat_since(before)
    record["core_cpu"] = after.cpu_since(before)
    record["host_cpu"] = record["core_cpu"].pop("cpu")
    record["other_cpu"] = after.other_cpu_since(before, {server.group, client.group})
    if loader:
        printed = _read(folder / "client.stdout")
        record["client"] = printed and loader.result(printed)
    else:
        record["client"] = _read(result)
    if not finished:
        return f"client did not end within {load.limit_s:g} s: killed"
    # 1 is a client that counted failed attempts: its result is whole, and they stand in the row.
    if code not in (0, 1) or record["client"] is None:
        return _problem("client", describe_exit(code), client.last_words(), "no result")
    if watch and not watch.record:
        return "client: it never said 'phase idle', so nothing was measured while all were held"
    if killer:
        killer.record["hung"] = crashes.hung(record["client"])
    return ""


def _peer_report(server: Child, before: dict[int, int], after: dict[int, int],
                 record: dict[str, Any]) -> dict[str, Any]:
    used = {pid: now - before.get(pid, 0) for pid, now in after.items()}
    first = used.pop(server.group, 0)
    # Alone it does the worker's work; with children it hands over to them.
    cpu = {"acceptor_cpu_us": first, "worker_cpu_us": sum(used.values())} if used else \
        {"acceptor_cpu_us": 0, "worker_cpu_us": first}
    return peers.server_report(cpu, record["client"] or {})


def plan_of(cell: Cell) -> plan.Plan | None:
    """For a cell that holds connections: what that takes here, by now."""
    if not cell.workload.held:
        return None
    return plan.make(cell.workload.held, cell.way.kind == "methods", plan.Machine.here())


def _idle_s(record: dict[str, Any]) -> float:
    return float(options_of(record["client_options"])["--idle"])


def _problem(who: str, exit_text: str, last_words: str, otherwise: str) -> str:
    return f"{who} {exit_text}: {last_words or otherwise}"


def _listening(server: Child, waiter: Waiter) -> str:
    line = server.first_line(waiter, time.monotonic() + START_S)
    if line is None:
        # Its stdout has ended or nothing came in time; an exit may be a moment behind the end of stdout.
        if server.ended(waiter, time.monotonic() + 1):
            exit_text = describe_exit(server.end())
            raise CellFailed(_problem("server", exit_text, server.last_words(), "no message"))
        raise CellFailed(f"server did not say 'listening' within {START_S:g} s: killed")
    word, _, target = line.partition(" ")
    if word != "listening" or ":" not in target:
        raise CellFailed(f"server: its first line is {line[:60]!r}, not 'listening HOST:PORT'")
    return target


def _stop(server: Child, waiter: Waiter, limit_s: float) -> str:
    """Ends the server in the orderly way; gives what went wrong with that, or nothing."""
    server.terminate()
    if not server.ended(waiter, time.monotonic() + limit_s):
        return f"server did not end within {limit_s:g} s of SIGTERM: killed"
    code = server.end()
    return _problem("server", describe_exit(code), server.last_words(), "no message") if code else ""


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON object that a program wrote; None when it wrote none. (Both open their file before they
    have anything to write, so that a bad path fails early.)"""
    try:
        text = path.read_bytes()
        if not text:
            return None
        data = json.loads(text)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CellFailed(f"{path.stem}: its JSON does not parse: {error}") from None
    if not isinstance(data, dict):
        raise CellFailed(f"{path.stem}: its JSON is no object")
    return data
