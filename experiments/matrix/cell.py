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

from matrix import faults, held, losses, peers, pins, plan
from matrix.counters import Snapshot
from matrix.process import Child, Waiter, describe_exit
from matrix.serving import CellFailed, Serving, problem, stop
from matrix.spec import Cell, Way, options_of
from matrix.store import CELL_SCHEMA, StoreError

STOP_S = 60.0  # ten thousand processes take half of it to end where each takes 3 ms
OURS = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE}  # run_matrix's own trouble, not the cell's
CLOSES_PER_S = 20_000  # a server may be that slow


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
                if not entry["available"]:
                    return entry["reason"] or "not available here"
                refused = entry.get("why_not_retained") if "--retain" in way.server else ""
                return f"--retain: with {way.needs} {refused}" if refused else ""
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
    except (CellFailed, faults.NoWorker, held.OutOfMemory, OSError, subprocess.SubprocessError) as error:
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
        "faults": None,
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
    # A successor that a server starts by itself is nobody's child once that one has ended.
    with Serving(argv, folder, waiter, guarded=cell.workload.fault == "upgrade") as serving:
        serving.listen()
        pins.pin_server(serving.child, cell.workload)
        cpu_before = serving.child.cpu_us()
        load_problem = _load(record, cell, tools, waiter, folder, serving, report)
        server = serving.child
        cpu_after = server.cpu_us()
        gone = server.has_ended()
        stop_problem = "" if gone else stop(server, waiter, STOP_S + cell.workload.held / CLOSES_PER_S)
        if record["faults"]:
            record["faults"]["processes_left"] = serving.processes()
        record["server"] = _peer_report(server, cpu_before, cpu_after, record) if peer else _read(report)
        if gone:
            exit_text = describe_exit(server.end())
            who = "server ended during the load,"
            raise CellFailed(problem(who, exit_text, server.last_words(), "no message"))
        if load_problem or stop_problem:
            raise CellFailed(load_problem or stop_problem)
        if record["server"] is None:
            raise CellFailed(problem("server", "exit code 0", server.last_words(), "no report"))
        if missing := [key for key in ("totals", "books") if key not in record["server"]]:
            raise CellFailed(f"server: its report has no {missing[0]}")


def _load(record: dict[str, Any], cell: Cell, tools: Tools, waiter: Waiter, folder: Path, serving: Serving,
          report: Path) -> str:
    """Runs the client, records what it and the kernel saw, and gives what went wrong with it, or nothing."""
    load, result, target, server = cell.workload, folder / "client.json", serving.target, serving.child
    loader = peers.CLIENTS.get(cell.way.client)
    if loader:
        options = dict(zip(load.client[::2], load.client[1::2]))
        argv = loader.command(str(tools.folder / loader.program), target, options)
    else:
        argv = [str(tools.client), "--target", target, *record["client_options"],
                "--progress", "off", "--json", str(result)]
    before = Snapshot.take()
    watch = held.Watch(server, waiter, _idle_s(record)) if load.held else None
    injector = faults.Injector(serving, load, cell.seed, waiter, lambda: _read(report)) if load.fault else None
    record["faults"] = injector and injector.record
    with Child(argv, folder, "client", stdout=folder / "client.stdout", pipe_stderr=watch is not None,
               cores=load.pin.get("client", ())) as client:
        deadline = time.monotonic() + load.limit_s
        if follower := watch or injector:
            finished = follower.follow(client, deadline)
        else:
            finished = client.ended(waiter, deadline, server)
        after = Snapshot.take()
        code = client.end()
    record["held"] = watch and watch.record
    record["netstat"] = after.netstat_since(before)
    record["core_cpu"] = after.cpu_since(before)
    record["host_cpu"] = record["core_cpu"].pop("cpu")
    record["other_cpu"] = after.other_cpu_since(before, {serving.child.group, client.group})
    if loader:
        printed = _read(folder / "client.stdout")
        record["client"] = printed and loader.result(printed)
    else:
        record["client"] = _read(result)
    if not finished:
        return f"client did not end within {load.limit_s:g} s: killed"
    # 1 is a client that counted failed attempts: its result is whole, and they stand in the row.
    if code not in (0, 1) or record["client"] is None:
        return problem("client", describe_exit(code), client.last_words(), "no result")
    if watch and not watch.record:
        return "client: it never said 'phase idle', so nothing was measured while all were held"
    if injector:
        injector.record["hung"] = losses.hung(record["client"])
        injector.finish()
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
