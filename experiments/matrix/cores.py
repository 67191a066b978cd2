"""At which rate a single acceptor is full and what that means with more cores: a model, and the check of it on
this machine.

A connection costs the acceptor a, its worker w and the client c microseconds of CPU. Who shares a core shares
its second: the rate is what the busiest core carries, 1 / (sum of the costs on it). With the acceptor on a core of
its own, N cores serve min(1 / a, (N - 1) / w); where the kernel hands the connections out there is no acceptor,
and they serve N / w.

Assumed: costs stay what they were (no contention among more workers, no dearer memory of another socket), work
is spread evenly, clients are on other machines, and a network costs what loopback does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from matrix.charts import LOG, Chart, dots, file_name, interval_line, way_axis
from matrix.points import WAY, Point, bounds, figure, point, text, under_load
from matrix.rows import Row, Section

CORES = (8, 32, 128)
SUPERVISES_US = 0.5  # an acceptor that only watches its workers costs hundredths of that
WHO = {"acceptor": "acceptor", "workers": "worker", "client": "client"}  # in a pin, and here


@dataclass(frozen=True)
class Cost:
    """Microseconds of CPU for a connection."""

    acceptor: float
    worker: float
    client: float

    @property
    def full_at(self) -> float | None:
        """Connections a second that fill the acceptor's core."""
        return 1e6 / self.acceptor if self.acceptor > SUPERVISES_US else None

    @property
    def fed(self) -> float | None:
        """How many cores of workers that keeps busy."""
        return self.worker / self.acceptor if self.acceptor > SUPERVISES_US else None

    def rate_on(self, cores: int) -> float:
        if self.full_at is None:
            return cores * 1e6 / self.worker
        return min(self.full_at, (cores - 1) * 1e6 / self.worker)

    def rate_placed(self, cores: Iterable[Iterable[str]]) -> float:
        """Connections a second when who is named for a core runs there and nowhere else."""
        return 1e6 / max(sum(getattr(self, who) for who in core) for core in cores)


def cost_of(section: Section, way: str) -> Cost | None:
    found = [section.measured(way, f"{who}-cpu") for who in ("acceptor", "worker", "client")]
    return Cost(*(one.median for one in found)) if all(found) else None


def _unpinned(sections: list[Section]) -> list[Section]:
    """Short connections in a closed loop, where the scheduler places the processes."""
    return [section for section in sections if section.figure.key == "connections_per_s"
            and not section.workload.has_rate and not section.workload.pin]


def _pools(section: Section) -> list[Row]:
    return [row for row in under_load(section) if row.method]


def capacity(sections: list[Section]) -> Iterator[Chart]:
    """From the load that most pools were measured with."""
    section = max(_unpinned(sections), key=lambda load: len(_pools(load)), default=None)
    rows = [here for row in _pools(section) if (here := _capacity(section, row))] if section else []
    if not section or not rows:
        return
    marks = {f"on_{cores}": f"{cores} cores" for cores in CORES} | {"full_at": "acceptor full"}
    unit = "connections/s by the model"
    spec = dots(marks, "what", "rate", unit, way_axis("on_128", "descending"), shown="datum.rate > 0")
    rows.sort(key=lambda here: -here["on_128"])
    yield Chart(
        "cores",
        f"One acceptor and more cores: a model from the CPU of {section.workload.name}",
        "Not measured: what the CPU per connection allows when the acceptor has a core and workers have the others, "
        "costs stay as they are, work is even and clients are elsewhere. Where the marks of 8, 32 and 128 cores "
        "meet, the acceptor is full.",
        spec,
        ("on_128", "on_32", "on_8", "full_at"),
        tuple(rows),
        (WAY, figure("acceptor, us", "acceptor_cpu"), figure("workers, us", "worker_cpu"),
         figure("acceptor full at, conn/s", "full_at"), bounds("full_"), figure("feeds cores", "fed"),
         *(figure(f"on {cores}, conn/s", f"on_{cores}") for cores in CORES)),
    )


def _capacity(section: Section, row: Row) -> Point | None:
    cost = cost_of(section, row.way)
    if cost is None:
        return None
    measured = section.measured(row.way, "acceptor-cpu")
    low, high = (measured and measured.interval) or (None, None)
    if cost.full_at is None:
        low = high = None
    return {
        **point(row),
        **{f"on_{cores}": cost.rate_on(cores) for cores in CORES},
        "full_at": cost.full_at,
        "full_low": high and 1e6 / high,
        "full_high": low and 1e6 / low,
        "fed": cost.fed,
    }


def predicted(sections: list[Section], section: Section, way: str) -> float | None:
    """Connections a second of processes held to cores, by their costs where they were not."""
    free = next(iter(_unpinned(sections)), None)
    cost = cost_of(free, way) if free else None
    cores: dict[int, list[str]] = {}
    for who, where in section.workload.pin.items():
        for core in where:
            cores.setdefault(core, []).append(WHO[who])
    return cost.rate_placed(cores.values()) if cost and cores else None


def placed(sections: list[Section]) -> Iterator[Chart]:
    free = next(iter(_unpinned(sections)), None)
    marks = {"predicted": "predicted", "median": "measured"}
    for section in sections:
        if not section.workload.pin or free is None:
            continue
        rows = []
        for row in section.rows:
            rate = predicted(sections, section, row.way)
            if rate and row.median:
                rows.append({**point(row), "predicted": rate, "error": f"{row.median / rate - 1:+.0%}"})
        if not rows:
            continue
        unit = "conn/s"
        rows.sort(key=lambda here: -here["median"])
        spec = dots(marks, "what", "rate", unit, way_axis("median", "descending"),
                    interval_line("low", "high", unit, scale=LOG))
        yield Chart(
            file_name("placed", section.workload.name),
            f"{section.workload.name}: predicted and measured",
            f"{section.workload.summary}. Predicted is 1 / (CPU per connection of what is on the busiest core), with "
            f"the CPU that each had in {free.workload.name}; the line is the 95 % interval of what was measured.",
            spec,
            ("median", "predicted", "low", "high"),
            tuple(rows),
            (WAY, figure("predicted, conn/s", "predicted"), figure("measured, conn/s", "median"), bounds(""),
             text("measured to predicted", "error"), figure("acceptor, us", "acceptor_cpu"),
             figure("workers, us", "worker_cpu")),
        )
