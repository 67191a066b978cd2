"""The figures of a cell: what ranks a workload, what else can be asked for, and how repetitions of any of
them are put together and compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from matrix import stats
from matrix.spec import Workload, options_of

Cell = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """The figure that ranks a kind of workload, and the unit of work that CPU is counted by."""

    key: str
    title: tuple[str, str]  # two lines of a column's head
    per: str  # "connection" or "request"
    lower_is_better: bool = False


FIGURES = {
    "crr": Figure("connections_per_s", ("conn", "/s"), "connection"),
    "rr": Figure("requests_per_s", ("requests", "/s"), "request"),
    "client-cpu": Figure("client_cpu_us", ("client CPU", "us/conn"), "connection", lower_is_better=True),
    "hold": Figure("connect_all_s", ("connect", "all, s"), "connection", lower_is_better=True),
    "echo": Figure("active_p50_us", ("echo p50", "us"), "request", lower_is_better=True),
    "latency": Figure("latency_p99_us", ("p99", "us"), "connection", lower_is_better=True),
}

OF_ALL_HELD = ("connect_all_s", "active_p50_us")


def figure_of(load: Workload) -> Figure:
    """At an open rate all serve as much as is asked for: there latency ranks."""
    if load.figure or not load.has_rate or load.fault:
        return FIGURES[load.figure or load.kind]
    return replace(FIGURES["latency"], per=FIGURES[load.kind].per)


def wanted(cell: Cell) -> int:
    return int(options_of(cell["client_options"])["--connections"])


def failed_attempts(client: dict[str, Any]) -> dict[str, int]:
    """By what became of them, in place of an echo."""
    return {key: count for key, count in client.get("outcomes", {}).items() if key != "echoed" and count}


def value_of(cell: Cell, figure: Figure) -> float | None:
    if cell["status"] != "ok":
        return None
    if figure.key == "client_cpu_us":
        used, echoed = cell["client"]["client"], cell["client"]["outcomes"]["echoed"]
        return (used["user_us"] + used["system_us"]) / echoed if echoed else None
    if figure.key in OF_ALL_HELD and cell["client"].get("peak_connections") != wanted(cell):
        return None  # with fewer connections it is another figure
    if figure.key == "active_p50_us":
        return cell["client"].get("active_latency", {}).get("p50_us")
    if figure.key == "latency_p99_us":
        return cell["client"].get("latency", {}).get("p99_us")
    return cell["client"].get(figure.key)


def _per_unit(*keys: str) -> Callable[[Cell, Figure], float | None]:
    """What the server used of it, by each connection or request that it did."""

    def value(cell: Cell, figure: Figure) -> float | None:
        totals = cell["server"].get("totals", {})
        done = totals.get("echoes" if figure.per == "request" else "accepted")
        known = [totals[key] for key in keys if key in totals]
        return sum(known) / done if done and known else None

    return value


def _client_cpu(cell: Cell, figure: Figure) -> float | None:
    used = cell["client"].get("client", {})
    known = [used[key] for key in ("user_us", "system_us") if key in used]
    done = cell["server"].get("totals", {}).get("echoes" if figure.per == "request" else "accepted")
    return sum(known) / done if done and known else None


def _latency(key: str) -> Callable[[Cell, Figure], float | None]:
    def value(cell: Cell, _: Figure) -> float | None:
        found = cell["client"].get("active_latency") or cell["client"].get("latency") or {}
        return found.get(key)

    return value


def per_worker(server: Mapping[str, Any]) -> dict[str, list[int]]:
    """Connections and CPU of each worker, as the report's processes have them or a recorded copy keeps them."""
    if kept := (server.get("balance") or {}).get("per_worker"):
        return kept
    workers = [one for one in server.get("processes", []) if one["role"] == "worker"]
    if not workers:
        return {}
    return {
        "connections": [one["received"] + one["accepted"] for one in workers],
        "cpu_us": [one["user_us"] + one["system_us"] for one in workers],
    }


@dataclass(frozen=True)
class Metric:
    """A figure that can be asked for by name; `per_unit` where it is by connection or request."""

    value: Callable[[Cell, Figure], float | None]
    what: str
    unit: str = ""
    per_unit: bool = False
    lower_is_better: bool = True

    def title(self, figure: Figure) -> str:
        if self.value is value_of:
            return " ".join(figure.title).replace(" /", "/")
        per = {"connection": "conn", "request": "req"}[figure.per]
        unit = f"{self.unit or '1'}/{per}" if self.per_unit else self.unit
        return f"{self.what}, {unit}"


METRICS = {
    "rate": Metric(value_of, "the figure that ranks the ways of a workload", lower_is_better=False),
    "cpu": Metric(_per_unit("acceptor_cpu_us", "worker_cpu_us"), "server CPU", "us", per_unit=True),
    "acceptor-cpu": Metric(_per_unit("acceptor_cpu_us"), "acceptor CPU", "us", per_unit=True),
    "worker-cpu": Metric(_per_unit("worker_cpu_us"), "worker CPU", "us", per_unit=True),
    "client-cpu": Metric(_client_cpu, "client CPU", "us", per_unit=True),
    "switches": Metric(_per_unit("voluntary_switches", "involuntary_switches"), "context switches", "", per_unit=True),
    "voluntary-switches": Metric(_per_unit("voluntary_switches"), "voluntary switches", "", per_unit=True),
    "involuntary-switches": Metric(_per_unit("involuntary_switches"), "involuntary switches", "", per_unit=True),
    "p50": Metric(_latency("p50_us"), "latency p50", "us"),
    "p90": Metric(_latency("p90_us"), "latency p90", "us"),
    "p99": Metric(_latency("p99_us"), "latency p99", "us"),
    "p99.9": Metric(_latency("p99_9_us"), "latency p99.9", "us"),
    "max": Metric(_latency("max_us"), "latency max", "us"),
}


def values_of(cells: Mapping[int, Cell], metric: str, figure: Figure) -> dict[int, float]:
    """The figure for each repetition that has it."""
    value = METRICS[metric].value
    return {
        rep: found
        for rep, cell in cells.items()
        if cell["status"] == "ok" and (found := value(cell, figure)) is not None
    }


@dataclass(frozen=True)
class Measured:
    """A figure of one way over the repetitions, and its ratio to the baseline within them."""

    values: tuple[float, ...]
    typical: stats.Estimate | None
    paired: stats.Estimate | None
    difference: str  # base, seen, none, unknown

    @property
    def median(self) -> float:
        return stats.median(self.values)

    @property
    def interval(self) -> stats.Interval | None:
        return self.typical.interval if self.typical else None

    @property
    def ratio(self) -> float | None:
        return self.paired.value if self.paired else None

    @property
    def ratio_interval(self) -> stats.Interval | None:
        return self.paired.interval if self.paired else None


def measure(values: Mapping[int, float], base: Mapping[int, float], is_base: bool = False) -> Measured | None:
    """None where no repetition has the figure."""
    if not values:
        return None
    paired = stats.estimate(stats.paired_ratios(values, base))
    difference = "base" if is_base else stats.difference(paired)
    numbers = tuple(values.values())
    return Measured(numbers, stats.estimate(numbers), paired, difference)
