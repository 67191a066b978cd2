"""Programs that stand beside ours in a matrix: the smallest ones in C, and what other projects do.

A peer that serves prints `listening HOST:PORT`, echoes until its client closes, and ends at SIGTERM with
exit code 0. It gives no report: what it served is what its client saw, and its CPU time is the kernel's."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "peers"


@dataclass(frozen=True)
class Server:
    """How a peer is started, by the folder of the built programs; `program` is what must be there."""

    program: Callable[[Path], str]
    arguments: tuple[str, ...] = ()

    def command(self, folder: Path) -> list[str]:
        return [self.program(folder), *self.arguments]

    def missing(self, folder: Path) -> str:
        program = self.program(folder)
        return "" if shutil.which(program) else f"{Path(program).name} is not installed"


@dataclass(frozen=True)
class Client:
    """A client other than ours, for the kinds of workload that it can do. It prints its result."""

    program: str
    kinds: tuple[str, ...]
    options: tuple[str, ...]  # of the workload's, without which it cannot start
    command: Callable[[str, str, dict[str, str]], list[str]]  # program, target, options of the workload
    result: Callable[[dict[str, Any]], dict[str, Any]]  # in the form of c10k-client's


def _python(script: str, *arguments: str) -> Server:
    return Server(lambda _: sys.executable, (str(FOLDER / script), *arguments))


def _node(script: str, *arguments: str) -> Server:
    return Server(lambda _: "node", (str(FOLDER / script), *arguments))


SERVERS = {
    "minimal-server": Server(lambda folder: str(folder / "minimal-server")),
    "cpython-queue": _python("queue_server.py"),
    "node-cluster-rr": _node("cluster_server.js", "rr"),
    "node-cluster-none": _node("cluster_server.js", "none"),
}


def _minimal_result(printed: dict[str, Any]) -> dict[str, Any]:
    echoed, faults, elapsed = printed["connections"], printed["faults"], printed["elapsed_s"]
    cpu_us = printed["user_us"] + printed["system_us"]
    return {
        "schema": "minimal-client-result/1",
        "elapsed_s": elapsed,
        "attempts": echoed + faults,
        "outcomes": {"echoed": echoed, "failed": faults},
        "connections_opened": echoed + faults,
        "connections_per_s": echoed / elapsed,
        "client": {
            "user_us": printed["user_us"],
            "system_us": printed["system_us"],
            "cpu_share": cpu_us / 1e6 / elapsed,
        },
    }


CLIENTS = {
    "minimal-client": Client(
        "minimal-client",
        ("crr",),
        ("--connections", "--duration"),
        lambda program, target, options: [program, target, options["--connections"], options["--duration"]],
        _minimal_result,
    ),
}


def server_report(cpu_us: dict[str, int], seen: dict[str, Any]) -> dict[str, Any]:
    """What stands for a report: CPU by the kernel, from ready to end; the rest as the client saw it."""
    return {
        "schema": "c10k-peer-report/1",
        "totals": {
            "accepted": seen.get("connections_opened", 0),
            "echoes": seen.get("outcomes", {}).get("echoed", 0),
            "errors": {},
            **cpu_us,
        },
        "books": {},
    }
