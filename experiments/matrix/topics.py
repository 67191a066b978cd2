"""The topics of the report, in their order, with the charts of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from matrix import charts, cores
from matrix.charts import Chart
from matrix.rows import Section


@dataclass(frozen=True)
class Topic:
    name: str
    title: str
    draw: Callable[[list[Section]], Iterator[Chart]]
    absent: str  # what a run without such charts lacks


def drawn(sections: list[Section]) -> dict[str, list[Chart]]:
    """No two have a name in common: loads named a|b and a-b would, as a file's name has neither."""
    taken: set[str] = set()

    def named(chart: Chart) -> Chart:
        names = (chart.name, *(f"{chart.name}-{count}" for count in range(2, len(taken) + 3)))
        name = next(name for name in names if name not in taken)
        taken.add(name)
        return replace(chart, name=name)

    return {topic.name: [named(chart) for chart in topic.draw(sections)] for topic in TOPICS}


TOPICS = (
    Topic("throughput", "Throughput of each way", charts.throughput, "no load that compares ways"),
    Topic("cpu", "CPU, acceptor and workers apart", charts.cpu, "no server's CPU"),
    Topic("latency", "Latency", charts.latency, "no latencies"),
    Topic("balance", "Balance over the workers", charts.balance, "no pool whose workers' shares are known"),
    Topic("anatomy", "Anatomy of the queue", charts.anatomy, "no ways of the group 'anatomy'; "
          "experiments/run_matrix queue-anatomy and full have them"),
    Topic("scaling", "Scaling with connections", charts.scaling, "no way with several numbers of connections; "
          "experiments/run_matrix scaling has them"),
    Topic("cores", "One acceptor and more cores", cores.capacity, "no pool whose acceptor's CPU is known"),
    Topic("placed", "The model against processes held to cores", cores.placed, "nothing held to cores; "
          "experiments/run_matrix saturation does"),
    Topic("crashes", "What is lost when something dies", charts.crashes, "no load during which faults happen; "
          "experiments/run_matrix faults has it"),
)
