"""Is the comparison itself to be trusted? A matrix may run one program under several names ('NAME twin' says so),
and also with a busy loop ('NAME slower'). Every pair of names in every stretch of its repetitions is a try, in
which equals must not be called different and a slower one must be."""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from matrix import facts, layout, stats, store
from matrix.figures import METRICS, Figure, figure_of, measure
from matrix.layout import Block, Entry
from matrix.spec import Matrix
from matrix.store import StoreError

FILE = "samples.csv"
TWIN, SLOWER = " twin", " slower"
LENGTHS = (3, 5, 15, 30, 60, 75)  # repetitions of a try
STRETCHES = 20  # of a pair at most: enough to count, and soon done
METRIC_NAMES = ("cpu", "rate")

Samples = dict[tuple[str, str], dict[int, float]]  # of a way and a metric, by repetition


@dataclass(frozen=True)
class Tries:
    """How the pairs of one kind came out, in stretches of so many repetitions."""

    called: int  # different
    untold: int  # neither different nor not
    tries: int
    seen_from: tuple[float, float] | None  # of the quietest pair, of the noisiest


@dataclass(frozen=True)
class Pairs:
    """Names of ways, the first of each as the baseline."""

    equal: list[tuple[str, str]]
    slower: list[tuple[str, str]]


def pairs(matrix: Matrix) -> Pairs:
    programs: dict[tuple[str, ...], list[str]] = {}
    for way in matrix.ways:
        if not way.name.endswith(SLOWER):
            programs.setdefault(way.server, []).append(way.name)
    slowed = {way.name: way.server for way in matrix.ways if way.name.endswith(SLOWER)}
    equal = [pair for names in programs.values() for pair in itertools.combinations(names, 2)]
    slower = [(name, other) for server, names in programs.items() for name in names
              for other, its_server in slowed.items() if its_server[: len(server)] == server]
    return Pairs(equal, slower)


def is_calibration(matrix: Matrix) -> bool:
    names = {way.name for way in matrix.ways}
    return all(any(name + kind in names for name in names) for kind in (TWIN, SLOWER))


def is_copy(run: store.Run) -> bool:
    """Of which only the summary can be made."""
    return (run.path / FILE).exists()


def sample(run: store.Run) -> Samples:
    """CPU per unit and the rate of every cell: of the recorded copy, or of the whole run."""
    if is_copy(run):
        return _read(run.path / FILE)
    figure = _figure(run)
    samples: Samples = {}
    for cell in run.cells:
        for metric in METRIC_NAMES if cell["status"] == "ok" else ():
            if (value := METRICS[metric].value(cell, figure)) is not None:
                samples.setdefault((cell["way"], metric), {})[cell["repetition"]] = value
    return samples


def _figure(run: store.Run) -> Figure:
    return figure_of(Matrix.from_json(run.meta["matrix"]).workloads[0])


def _read(path: Path) -> Samples:
    samples: Samples = {}
    number = 1
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for number, line in enumerate(csv.DictReader(file), 2):
                for column, text in line.items():
                    if column == "repetition" or not text:
                        continue
                    way, _, metric = column.rpartition(" ")
                    if not 0 < (value := float(text)) < math.inf:
                        raise ValueError(f"{column} is {text}")
                    samples.setdefault((way, metric), {})[int(line["repetition"])] = value
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from None
    except (csv.Error, ValueError, TypeError, AttributeError, KeyError) as error:
        raise StoreError(f"{path} line {number}: {error} (made by experiments/inspect RUN --record)") from None
    return samples


def record(run: store.Run, target: Path) -> None:
    """A copy small enough to commit: run.json, and a line for each repetition with two figures of each way."""
    samples = sample(run)
    columns = sorted(samples)
    repetitions = sorted({rep for values in samples.values() for rep in values})
    try:
        target.mkdir(parents=True, exist_ok=True)
        draft = target / f"{FILE}.new"
        with draft.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["repetition", *(f"{way} {metric}" for way, metric in columns)])
            for rep in repetitions:
                figures = (samples[column].get(rep) for column in columns)
                writer.writerow([rep, *("" if value is None else f"{value:.5g}" for value in figures)])
        store.write_meta(target, run.meta)
        draft.replace(target / FILE)
    except OSError as error:
        raise StoreError(f"{target}: {error.strerror}") from None


def tried(samples: Samples, of: Sequence[tuple[str, str]], metric: str, length: int) -> Tries:
    """Every pair in every whole stretch of so many repetitions, by the very comparison that a table uses."""
    verdicts, seen_from = [], []
    for base, way in of:
        first, second = samples.get((base, metric), {}), samples.get((way, metric), {})
        both = sorted(first.keys() & second.keys())
        intervals = []
        for start in range(0, len(both) - length + 1, length)[:STRETCHES]:
            stretch = both[start : start + length]
            ratio = stats.estimate([second[rep] / first[rep] for rep in stretch])
            verdicts.append(stats.difference(ratio))
            intervals.append(ratio.interval if ratio else None)
        if (limit := stats.unseen_below(intervals, length)) is not None:
            seen_from.append(limit)
    bounds = (min(seen_from), max(seen_from)) if seen_from else None
    return Tries(verdicts.count("seen"), verdicts.count("unknown"), len(verdicts), bounds)


HEADS = [
    ("CPU: equals", "called different"), ("slower", "found"), ("seen from", "(9 of 10)"),
    ("rate: equals", "called different"), ("seen from", "(9 of 10)"),
]


def _of(tries: Tries) -> str:
    return f"{tries.called} of {tries.tries}"


def _from(tries: Tries) -> str:
    return "{:.0%} to {:.0%}".format(*tries.seen_from) if tries.seen_from else "-"


def block(run: store.Run, samples: Samples) -> Block:
    matrix = Matrix.from_json(run.meta["matrix"])
    of = pairs(matrix)
    entries = []
    for length in LENGTHS:
        same, slowed = (tried(samples, kind, "cpu", length) for kind in (of.equal, of.slower))
        rate = tried(samples, of.equal, "rate", length)
        if same.tries and slowed.tries:
            texts = [_of(same), _of(slowed), _from(same), _of(rate), _from(rate)]
            entries.append(Entry(f"{length}", texts))
    return Block("calibration", matrix.summary, "repetitions", HEADS, entries)


def sizes(run: store.Run, samples: Samples) -> str:
    """What the twins' and the slower ones' CPU per unit came to, over all repetitions."""
    found = []
    names = [way.name for way in Matrix.from_json(run.meta["matrix"]).ways]
    for name in names:
        base = name.removesuffix(TWIN).removesuffix(SLOWER)
        measured = measure(samples.get((name, "cpu"), {}), samples.get((base, "cpu"), {}))
        if name != base and measured and measured.ratio_interval:
            found.append(f"{name} {measured.ratio:.3f} ({{:.3f}} to {{:.3f}})".format(*measured.ratio_interval))
    return ", ".join(found)


def remarks(run: store.Run, samples: Samples) -> list[str]:
    return [
        "A try is one pair of cells in one stretch of so many repetitions: equals are one program under two names, so "
        "each pair called different is a false alarm (1 in 20 is what a 95 % interval allows); slower ones burn about "
        "a tenth more CPU per connection. Seen from: the difference that nine of ten find, of the quietest pair to "
        "the noisiest. The pairs of a stretch share cells, so these counts scatter more than as many tosses would. "
        "The comparison is the one of every table here.",
        f"CPU per connection to the same program's over all repetitions: {sizes(run, samples)}.",
        facts.origin(run.meta),
    ]


def lines(run: store.Run, samples: Samples) -> list[Text]:
    found = [*layout.lines(block(run, samples)), Text("")]
    for text in remarks(run, samples):
        found += layout.paragraph(text, "dim")
    return [*found, Text(f"Data: {facts.shown_path(run.path)}", style="dim")]


def markdown(run: store.Run, samples: Samples) -> str:
    parts = layout.markdown(block(run, samples)) + [f"- {text}" for text in remarks(run, samples)]
    return "\n".join([*parts, f"- Data: `{facts.shown_path(run.path)}`"]) + "\n"
