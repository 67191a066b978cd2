"""From cells to rows: one for each way and workload, whatever became of its cells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from matrix import crashes, stats
from matrix.spec import Matrix, Workload
from matrix.store import Run


CLIENT_LIMIT = 0.95  # of one CPU: from here on the client may be what limits


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
}

OF_ALL_HELD = ("connect_all_s", "active_p50_us")
KERNEL_SEEN_FROM = 10_000  # connections
INTERRUPTED = "interrupted before its turn"


@dataclass
class Row:
    workload: str
    way: str
    status: str = "not run"  # ok, failed, unsupported, not run
    reason: str = ""
    repetitions: int = 0  # with a value
    repetitions_without_value: int = 0
    metric: str = ""
    per: str = ""
    median: float | None = None
    min: float | None = None
    max: float | None = None
    spread: float | None = None
    ratio: float | None = None
    ratio_min: float | None = None
    ratio_max: float | None = None
    ratio_interval: tuple[float, float] | None = None  # 95 % of the median ratio
    difference_seen: bool | None = None
    latency_p50_us: float | None = None
    latency_p99_us: float | None = None
    acceptor_cpu_us: float | None = None  # of the server, per connection or request
    worker_cpu_us: float | None = None
    connections_largest_to_mean: float | None = None  # over the workers
    cpu_largest_to_mean: float | None = None
    client_cpu_share: float | None = None
    client_limited: bool = False  # in a cell or more it says so itself
    host_cpu: float | None = None
    # While connections are held and nobody speaks; memory is per connection.
    kernel_bytes: float | None = None  # of both ends
    server_bytes: float | None = None
    client_bytes: float | None = None
    server_idle_cpu_us_per_s: float | None = None
    server_processes: int | None = None
    client_processes: int | None = None
    attempts: int = 0
    failed_attempts: dict[str, int] = field(default_factory=dict)
    server_errors: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    unbalanced_reports: int = 0
    worker_deaths: int = 0
    degraded: str = ""  # why a server was not whole at its end
    queue_overflows: int = 0
    faults: int = 0


@dataclass
class Section:
    workload: Workload
    figure: Figure
    rows: list[Row]
    unseen_below: float | None  # relative differences under this are noise


def sections(run: Run) -> list[Section]:
    matrix = Matrix.from_json(run.meta["matrix"])
    found: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for cell in run.cells:
        found.setdefault((cell["way"], cell["workload"]), {})[cell["repetition"]] = cell
    return [
        _section(matrix, load, {way.name: found.get((way.name, load.name), {}) for way in matrix.ways if load.takes(way)})
        for load in matrix.workloads
    ]


def _section(matrix: Matrix, load: Workload, cells: dict[str, dict[int, dict[str, Any]]]) -> Section:
    figure = figure_of(load)
    values = {
        way: {rep: value for rep, cell in by_rep.items() if (value := value_of(cell, figure)) is not None}
        for way, by_rep in cells.items()
    }
    base = values.get(matrix.baseline, {})
    ratios = {way: stats.paired_ratios(of_way, base) for way, of_way in values.items()}
    noises = [
        noise
        for way, of_way in ratios.items()
        if way != matrix.baseline and (noise := stats.noise(of_way)) is not None
    ]
    unseen = stats.unseen_below(noises, len(base))
    rows = [_row(load, figure, way, by_rep, values[way]) for way, by_rep in cells.items()]
    for row in rows:
        _compare(row, ratios[row.way], unseen)
    return Section(load, figure, rows, unseen)


def figure_of(load: Workload) -> Figure:
    return FIGURES[load.figure or load.kind]


def value_of(cell: dict[str, Any], figure: Figure) -> float | None:
    if cell["status"] != "ok":
        return None
    if figure.key == "client_cpu_us":
        used, echoed = cell["client"]["client"], cell["client"]["outcomes"]["echoed"]
        return (used["user_us"] + used["system_us"]) / echoed if echoed else None
    if figure.key in OF_ALL_HELD and cell["client"].get("peak_connections") != _wanted(cell):
        return None  # with fewer connections it is another figure
    if figure.key == "active_p50_us":
        return cell["client"].get("active_latency", {}).get("p50_us")
    return cell["client"].get(figure.key)


def _wanted(cell: dict[str, Any]) -> int:
    options = cell["client_options"]
    return int(options[options.index("--connections") + 1])


def _row(load: Workload, figure: Figure, way: str, cells: dict[int, dict[str, Any]],
         values: dict[int, float]) -> Row:
    row = Row(load.name, way, metric=figure.key, per=figure.per)
    measured = [cell for cell in cells.values() if cell["status"] == "ok"]
    _count_faults(row, cells.values())
    if not cells:
        row.reason = INTERRUPTED
        return row
    without_value = [cell for rep, cell in sorted(cells.items()) if rep not in values]
    row.repetitions_without_value = len(without_value)
    row.status = "ok" if values else "failed"
    if without_value:
        first = without_value[0]
        row.status = "ok" if values else first["status"].replace("ok", "failed")
        row.reason = first["reason"] or _shortfall(first, figure)
    if values:
        numbers = list(values.values())
        row.repetitions = len(numbers)
        row.median, row.min, row.max = stats.median(numbers), min(numbers), max(numbers)
        row.spread = stats.spread(numbers)
    if measured:
        _describe(row, measured)
        crashes.describe(row, measured)
    return row


def _shortfall(cell: dict[str, Any], figure: Figure) -> str:
    if figure.key in OF_ALL_HELD:
        peak = cell["client"].get("peak_connections", 0)
        failed = _text({key: n for key, n in cell["client"].get("outcomes", {}).items() if key != "echoed"})
        return f"connected {peak:,} of {_wanted(cell):,}{': ' + failed if failed else ''}"
    return f"the client's result has no {figure.key}"


def _text(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {key}" for key, count in counts.items() if count)


def _describe(row: Row, cells: list[dict[str, Any]]) -> None:
    """Medians over the repetitions. Not merged histograms: a recorded copy has no buckets, and its
    table must be the same."""

    def middle(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return stats.median(known) if known else None

    def latency(cell: dict[str, Any]) -> dict[str, float]:
        return cell["client"].get("active_latency") or cell["client"].get("latency") or {}

    def cpu(cell: dict[str, Any], who: str) -> float | None:
        totals = cell["server"]["totals"]
        done = totals.get("echoes" if row.per == "request" else "accepted")
        return totals[f"{who}_cpu_us"] / done if done and f"{who}_cpu_us" in totals else None

    def largest_to_mean(cell: dict[str, Any], what: str) -> float | None:
        balance = cell["server"].get("balance", {}).get(what)
        return balance["largest_to_mean"] if balance else None

    row.connections_largest_to_mean = middle([largest_to_mean(cell, "connections") for cell in cells])
    row.cpu_largest_to_mean = middle([largest_to_mean(cell, "cpu") for cell in cells])
    row.latency_p50_us = middle([latency(cell).get("p50_us") for cell in cells])
    row.latency_p99_us = middle([latency(cell).get("p99_us") for cell in cells])
    row.acceptor_cpu_us = middle([cpu(cell, "acceptor") for cell in cells])
    row.worker_cpu_us = middle([cpu(cell, "worker") for cell in cells])
    row.client_cpu_share = middle([cell["client"].get("client", {}).get("cpu_share") for cell in cells])
    row.client_limited = any(_client_limited(cell["client"].get("client", {})) for cell in cells)
    row.host_cpu = middle([cell["host_cpu"] for cell in cells])
    if seen := [cell for cell in cells if cell.get("held")]:
        _describe_held(row, seen)


def _describe_held(row: Row, cells: list[dict[str, Any]]) -> None:
    def each(value: Callable[[dict[str, Any]], float]) -> float:
        return stats.median([value(cell["held"]) / _wanted(cell) for cell in cells])

    # The kernel's is the whole machine's, and other programs move it by megabytes.
    if _wanted(cells[0]) >= KERNEL_SEEN_FROM:
        row.kernel_bytes = each(lambda held: held["kernel"]["bytes"])
    # Without what the server used before there was a client. A client has its table of connections from
    # the start, so all of it counts.
    row.server_bytes = each(lambda held: held["server"]["own_bytes"] - held["server"]["ready_own_bytes"])
    row.client_bytes = each(lambda held: held["client"]["own_bytes"])
    idle = [cell["held"]["idle"] for cell in cells if cell["held"]["idle"]["window_s"] > 0]
    if idle:
        row.server_idle_cpu_us_per_s = stats.median([one["server_cpu_ns"] / 1e3 / one["window_s"] for one in idle])
    row.server_processes = cells[0]["held"]["server"]["processes"]
    row.client_processes = cells[0]["held"]["client"]["processes"]


def _client_limited(client: dict[str, Any]) -> bool:
    """A result that does not say it is of a client with one process."""
    limited = client.get("limited")
    return bool(limited) if limited is not None else (client.get("cpu_share") or 0) >= CLIENT_LIMIT


def _count_faults(row: Row, cells: Any) -> None:
    failed, errors = Counter[str](), Counter[str]()
    for cell in cells:
        client, server = cell["client"] or {}, cell["server"] or {}
        row.attempts += client.get("attempts", 0)
        failed.update({key: n for key, n in client.get("outcomes", {}).items() if key != "echoed" and n})
        errors.update(server.get("totals", {}).get("errors", {}))
        books = server.get("books", {})
        row.lost += books.get("lost", 0)
        row.unbalanced_reports += books.get("balanced") is False
        row.worker_deaths += server.get("worker_deaths", 0)
        row.degraded = server.get("degraded") or row.degraded
        # Every overflow is also counted as a drop.
        netstat = cell["netstat"]
        row.queue_overflows += max(netstat.get("ListenOverflows", 0), netstat.get("ListenDrops", 0))
    row.failed_attempts, row.server_errors = dict(failed), dict(errors)
    of_server = row.lost + row.unbalanced_reports + row.worker_deaths + bool(row.degraded)
    row.faults = failed.total() + errors.total() + of_server + row.queue_overflows


def faults_text(row: Row) -> str:
    """What the faults of a row are; nothing when there are none."""
    parts = [
        _text(row.failed_attempts),
        f"server: {_text(row.server_errors)}" if row.server_errors else "",
        f"{row.lost:,} lost" if row.lost else "",
        f"{row.unbalanced_reports} server reports do not balance" if row.unbalanced_reports else "",
        f"{row.worker_deaths} worker deaths" if row.worker_deaths else "",
        f"degraded: {row.degraded}" if row.degraded else "",
        f"{row.queue_overflows:,} queue overflows" if row.queue_overflows else "",
    ]
    return ", ".join(part for part in parts if part)


def _compare(row: Row, ratios: list[float], unseen: float | None) -> None:
    if not ratios:
        return
    row.ratio, row.ratio_min, row.ratio_max = stats.median(ratios), min(ratios), max(ratios)
    row.ratio_interval = stats.interval(ratios)
    if unseen is not None:
        agreed = row.ratio_min > 1 or row.ratio_max < 1
        row.difference_seen = agreed and max(row.ratio, 1 / row.ratio) - 1 >= unseen
