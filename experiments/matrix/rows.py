"""From cells to rows: one for each way and workload, whatever became of its cells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from matrix import figures, losses, stats
from matrix.figures import OF_ALL_HELD, Figure, Measured, figure_of, wanted
from matrix.spec import Matrix, Way, Workload, options_of
from matrix.stats import Interval
from matrix.store import Run

CLIENT_LIMIT = 0.95  # of one CPU: from here on the client may be what limits


KERNEL_SEEN_FROM = 10_000  # connections
MEDIANS = {
    "acceptor_cpu_us": "acceptor-cpu",
    "worker_cpu_us": "worker-cpu",
    "voluntary_switches": "voluntary-switches",
    "involuntary_switches": "involuntary-switches",
    "latency_p50_us": "p50",
    "latency_p90_us": "p90",
    "latency_p99_us": "p99",
    "latency_p99_9_us": "p99.9",
    "latency_max_us": "max",
}
Cells = dict[int, dict[str, Any]]  # of one way and workload, by repetition
INTERRUPTED = "interrupted before its turn"


@dataclass
class Row:
    workload: str
    way: str
    # What a row can be looked for by.
    kind: str = ""  # of the workload
    strategy: str = ""  # fork, select, poll, epoll, uring, pool, peer
    method: str = ""  # of a pool, with its options
    loop: str = ""
    workers: int | None = None
    connections: int | None = None  # of the client
    group: str = ""  # the matrix's own
    status: str = "not run"  # ok, failed, unsupported, not run
    reason: str = ""
    repetitions: int = 0  # with a value
    repetitions_without_value: int = 0
    metric: str = ""  # the figure that ranks
    per: str = ""
    median: float | None = None  # of that figure, and the next three
    min: float | None = None
    max: float | None = None
    interval: Interval | None = None
    ratio: float | None = None  # to the baseline, within repetitions
    ratio_interval: Interval | None = None
    difference: str = "unknown"  # base, seen, none, unknown
    cpu_us: float | None = None  # of the server, per connection or request
    cpu_interval: Interval | None = None
    cpu_ratio: float | None = None
    cpu_ratio_interval: Interval | None = None
    cpu_difference: str = "unknown"
    acceptor_cpu_us: float | None = None
    worker_cpu_us: float | None = None
    voluntary_switches: float | None = None  # of the server, per connection or request
    involuntary_switches: float | None = None
    latency_p50_us: float | None = None
    latency_p90_us: float | None = None
    latency_p99_us: float | None = None
    latency_p99_9_us: float | None = None
    latency_max_us: float | None = None
    connections_largest_to_mean: float | None = None  # over the workers
    cpu_largest_to_mean: float | None = None
    connection_shares: list[float] = field(default_factory=list)  # of each worker, the largest first
    cpu_shares: list[float] = field(default_factory=list)
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
    # Where faults are made to happen during the load.
    fault: str = ""  # one of fault_kinds.KINDS
    events: int | None = None
    fault_cells: int = 0
    fault_attempts: int | None = None
    fault_exposed: int | None = None  # of how many lost_in_faults is: losses.exposed()
    fault_echoed: int | None = None
    fault_failed: dict[str, int] | None = None  # by outcome
    reopened: int | None = None  # connections, by clients that keep theirs
    redelivered: int | None = None
    lost_in_faults: int | None = None  # failed attempts, or of clients that keep theirs connections reopened
    lost_per_event: float | None = None
    lost_per_event_interval: Interval | None = None
    hung: int | None = None  # attempts over 1 s
    ran_out: int = 0  # repetitions in which the client did, of connections: losses.ran_out()
    whole_ms: float | None = None  # from an event until it was over (Kind.until): the median, and the longest
    whole_max_ms: float | None = None
    not_replaced: int = 0  # stopped workers that the server left alone, as it does with one that has nothing to do
    not_over: int = 0  # events that were never over
    missing_reports: int = 0  # of servers that others have replaced
    descriptors_left: int | None = None  # more than before, when nobody is connected any more
    processes_left: int | None = None  # of the server, when it has ended


@dataclass
class Section:
    workload: Workload
    figure: Figure
    rows: list[Row]
    baseline: str
    cells: dict[str, Cells]  # of each way
    unseen_below: float | None = None  # relative differences under this are often not seen
    cpu_unseen_below: float | None = None
    known: dict[tuple[str, str], Measured | None] = field(default_factory=dict)  # what measured() has given

    @property
    def has_baseline(self) -> bool:
        return self.baseline in self.cells and self.measured(self.baseline, "rate") is not None

    def measured(self, way: str, metric: str) -> Measured | None:
        if (way, metric) not in self.known:
            self.known[way, metric] = self._measure(way, metric)
        return self.known[way, metric]

    def _measure(self, way: str, metric: str) -> Measured | None:
        values = {
            name: figures.values_of(self.cells[name], metric, self.figure)
            for name in (way, self.baseline)
            if name in self.cells
        }
        return figures.measure(values[way], values.get(self.baseline, {}), way == self.baseline)


def sections(run: Run, baseline: str | None = None) -> list[Section]:
    """Reckoned once: the table, the page and the notes all ask for them."""
    if baseline not in run.known:
        run.known[baseline] = _sections(run, baseline)
    return run.known[baseline]


def _sections(run: Run, baseline: str | None) -> list[Section]:
    matrix = Matrix.from_json(run.meta["matrix"])
    found: dict[tuple[str, str], Cells] = {}
    for cell in run.cells:
        found.setdefault((cell["way"], cell["workload"]), {})[cell["repetition"]] = cell
    return [
        _section([way for way in matrix.ways if load.takes(way)], load, found, baseline or matrix.baseline)
        for load in matrix.workloads
    ]


def _section(ways: Sequence[Way], load: Workload, found: dict[tuple[str, str], Cells], baseline: str) -> Section:
    cells = {way.name: found.get((way.name, load.name), {}) for way in ways}
    section = Section(load, figure_of(load), [], baseline, cells)
    for way in ways:
        row = _row(section, way)
        section.rows.append(row)
        _compare(row, section)
    others = [row for row in section.rows if row.way != baseline]
    most = max((row.repetitions for row in others), default=0)
    section.unseen_below = stats.unseen_below([row.ratio_interval for row in others], most)
    section.cpu_unseen_below = stats.unseen_below([row.cpu_ratio_interval for row in others], most)
    return section


def _row(section: Section, way: Way) -> Row:
    cells, figure = section.cells[way.name], section.figure
    row = Row(section.workload.name, way.name, metric=figure.key, per=figure.per)
    _place(row, section.workload, way, cells)
    _count_faults(row, cells.values())
    if not cells:
        row.reason = INTERRUPTED
        return row
    values = figures.values_of(cells, "rate", figure)
    without_value = [cell for rep, cell in sorted(cells.items()) if rep not in values]
    row.repetitions, row.repetitions_without_value = len(values), len(without_value)
    row.status = "ok" if values else "failed"
    if without_value:
        first = without_value[0]
        row.status = "ok" if values else first["status"].replace("ok", "failed")
        row.reason = first["reason"] or _shortfall(first, figure)
    if measured := [cell for cell in cells.values() if cell["status"] == "ok"]:
        _describe(row, section, measured)
        losses.describe(row, measured)
    return row


def _place(row: Row, load: Workload, way: Way, cells: Cells) -> None:
    """The axes, by how the programs were started; a cell that was run knows that better than the matrix."""
    ran = next(iter(cells.values()), None)
    server = options_of(ran["server_options"] if ran else way.server)
    client = options_of(ran["client_options"] if ran else load.client)
    row.kind, row.group = load.fault or load.kind, way.group
    row.strategy = "peer" if way.kind == "peers" else server.get("--strategy", "epoll")
    if row.strategy == "pool":
        row.method = server.get("--ipc", "")
        row.loop = server.get("--loop", "epoll")
        row.workers = int(server["--workers"]) if "--workers" in server else None
    elif row.strategy not in ("peer", "fork"):
        row.loop = row.strategy
    row.connections = int(client.get("--connections", load.held)) or None


def _shortfall(cell: dict[str, Any], figure: Figure) -> str:
    if figure.key in OF_ALL_HELD:
        peak = cell["client"].get("peak_connections", 0)
        failed = _text(figures.failed_attempts(cell["client"]))
        return f"connected {peak:,} of {wanted(cell):,}{': ' + failed if failed else ''}"
    return f"the client's result has no {figure.key}"


def _text(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {key}" for key, count in counts.items() if count)


def _describe(row: Row, section: Section, cells: list[dict[str, Any]]) -> None:
    """Medians over the repetitions. Not merged histograms: a recorded copy has no buckets, and its
    table must be the same."""

    def middle(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return stats.median(known) if known else None

    def largest_to_mean(cell: dict[str, Any], what: str) -> float | None:
        balance = cell["server"].get("balance", {}).get(what)
        return balance["largest_to_mean"] if balance else None

    row.connections_largest_to_mean = middle([largest_to_mean(cell, "connections") for cell in cells])
    row.cpu_largest_to_mean = middle([largest_to_mean(cell, "cpu") for cell in cells])
    row.connection_shares = _ranked_shares(cells, "connections")
    row.cpu_shares = _ranked_shares(cells, "cpu_us")
    for name, metric in MEDIANS.items():
        setattr(row, name, middle([figures.METRICS[metric].value(cell, section.figure) for cell in cells]))
    row.client_cpu_share = middle([cell["client"].get("client", {}).get("cpu_share") for cell in cells])
    row.client_limited = any(_client_limited(cell["client"].get("client", {})) for cell in cells)
    row.host_cpu = middle([cell["host_cpu"] for cell in cells])
    if seen := [cell for cell in cells if cell.get("held")]:
        _describe_held(row, seen)


def _ranked_shares(cells: list[dict[str, Any]], what: str) -> list[float]:
    """Medians of the largest worker's share, of the next one's and so on. Not by worker: where chance gives one
    the larger share, it is another one in the next repetition, and medians would be even."""
    found = []
    for cell in cells:
        each = figures.per_worker(cell["server"]).get(what, [])
        if sum(each):
            found.append(sorted((one / sum(each) for one in each), reverse=True))
    most = max(map(len, found), default=0)
    return [stats.median(ranked) for ranked in zip(*(shares for shares in found if len(shares) == most))]


def _describe_held(row: Row, cells: list[dict[str, Any]]) -> None:
    def each(value: Callable[[dict[str, Any]], float]) -> float:
        return stats.median([value(cell["held"]) / wanted(cell) for cell in cells])

    # The kernel's is the whole machine's, and other programs move it by megabytes.
    if wanted(cells[0]) >= KERNEL_SEEN_FROM:
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
        failed.update(figures.failed_attempts(client))
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


def reason_text(row: Row) -> str:
    """Why a row has no figure, or not one of every repetition."""
    if not row.reason:
        return ""
    missing = row.repetitions_without_value
    what = f"{missing} of {missing + row.repetitions} repetitions have no figure" if row.repetitions else row.status
    return f"{what}: {' '.join(row.reason.split())}"


def faults_text(row: Row) -> str:
    """What the faults of a row are; nothing when there are none."""
    left = {"descriptors": row.descriptors_left or 0, "processes": row.processes_left or 0}
    parts = [
        _text(row.failed_attempts),
        f"server: {_text(row.server_errors)}" if row.server_errors else "",
        f"{row.lost:,} lost by the books" if row.lost else "",
        f"{row.unbalanced_reports} server reports do not balance" if row.unbalanced_reports else "",
        f"{row.worker_deaths} worker deaths" if row.worker_deaths else "",
        f"the client ran out of connections in {row.ran_out} of {row.fault_cells} repetitions" if row.ran_out else "",
        f"{row.not_replaced} stopped workers were left alone" if row.not_replaced else "",
        f"{row.not_over} faults were never over" if row.not_over else "",
        f"{row.missing_reports} reports of replaced servers are missing" if row.missing_reports else "",
        f"left behind: {_text(left)}" if any(left.values()) else "",
        f"degraded: {row.degraded}" if row.degraded else "",
        f"{row.queue_overflows:,} queue overflows" if row.queue_overflows else "",
    ]
    return ", ".join(part for part in parts if part)


def _compare(row: Row, section: Section) -> None:
    if found := section.measured(row.way, "rate"):
        row.median, row.min, row.max = found.median, min(found.values), max(found.values)
        row.interval, row.difference = found.interval, found.difference
        row.ratio, row.ratio_interval = found.ratio, found.ratio_interval
    if found := section.measured(row.way, "cpu"):
        row.cpu_us, row.cpu_interval, row.cpu_difference = found.median, found.interval, found.difference
        row.cpu_ratio, row.cpu_ratio_interval = found.ratio, found.ratio_interval
