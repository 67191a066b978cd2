"""How a figure is estimated from its repetitions, and when two of them are called different."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from statistics import fmean, median, stdev

TRIM = 0.1  # of the values at each end
BOOTSTRAP_FROM = 15  # values; resamples of fewer are too much alike
RESAMPLES = 999
STUDENT = {2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228, 11: 2.201,
           12: 2.179, 13: 2.160}  # 97.5 % of its t, by degrees of freedom
NINE_OF_TEN = 1.65  # (1.96 + 1.28) / 1.96: a true difference so many half intervals wide is found so often


Interval = tuple[float, float]  # 95 %, low and high


@dataclass(frozen=True)
class Estimate:
    """A positive figure with its interval; without one where too few values tell of none."""

    value: float
    interval: Interval | None = None


def difference(ratio: Estimate | None) -> str:
    """Whether a ratio tells of one: "seen", "none" (seen), or "unknown" where nothing can be told."""
    if not ratio or not ratio.interval:
        return "unknown"
    return "none" if ratio.interval[0] <= 1 <= ratio.interval[1] else "seen"


def half_width(interval: Interval) -> float:
    """Of an interval, as the logarithm of a factor: it reaches as far to twice as to half."""
    return math.log(interval[1] / interval[0]) / 2


def paired_ratios(values: Mapping[int, float], base: Mapping[int, float]) -> list[float]:
    """value / base for each repetition that has both: what disturbs a whole repetition cancels."""
    return [values[rep] / base[rep] for rep in sorted(values) if base.get(rep)]


def _centre(logs: Sequence[float]) -> tuple[float, float]:
    """The trimmed mean of sorted values, and its standard error by the winsorized variance."""
    count = len(logs)
    if count < BOOTSTRAP_FROM:
        return fmean(logs), stdev(logs) / math.sqrt(count)
    cut = int(TRIM * count)
    kept = logs[cut : count - cut]
    winsorized = [kept[0]] * cut + list(kept) + [kept[-1]] * cut
    return fmean(kept), stdev(winsorized) * math.sqrt(count - 1) / _freedom(count)


def _freedom(count: int) -> float:
    kept = count - 2 * int(TRIM * count)
    return math.sqrt(kept * (kept - 1))


@lru_cache(maxsize=None)
def _picks(count: int, stream: int) -> list[itemgetter]:
    """Which of so many sorted values each resample keeps after trimming. The seed is fixed, so that the
    same data give the same interval, and the indices are sorted, so that no resample has to be."""
    chance = random.Random(1000 * stream + count)
    cut = int(TRIM * count)
    return [
        itemgetter(*sorted(chance.choices(range(count), k=count))[cut : count - cut]) for _ in range(RESAMPLES)
    ]


def _resampled(logs: Sequence[float], stream: int = 0) -> list[tuple[float, float]]:
    """For each resample how far its trimmed mean lies from that of the sample, and its squared error."""
    count, (centre, _) = len(logs), _centre(logs)
    cut = int(TRIM * count)
    kept, divisor = count - 2 * cut, _freedom(count) ** 2
    moved = [value - centre for value in logs]
    squares = [value * value for value in moved]
    found = []
    for pick in _picks(count, stream):
        values, of_squares = pick(moved), pick(squares)
        total = sum(values)
        winsorized = total + cut * (values[0] + values[-1])
        deviations = sum(of_squares) + cut * (values[0] ** 2 + values[-1] ** 2) - winsorized**2 / count
        found.append((total / kept, max(deviations, 0.0) / divisor))
    return found


def _critical(distances: Sequence[tuple[float, float]]) -> float:
    """What 95 % of the resamples' |t| stay below."""
    ordered = sorted(abs(far) / math.sqrt(error) if error > 0 else math.inf for far, error in distances)
    return ordered[math.ceil(0.95 * (RESAMPLES + 1)) - 1]


def _logs(values: Sequence[float]) -> list[float] | None:
    return sorted(map(math.log, values)) if values and min(values) > 0 else None


def _around(centre: float, reach: float) -> Estimate:
    if not math.isfinite(reach):
        return Estimate(math.exp(centre))
    return Estimate(math.exp(centre), (math.exp(centre - reach), math.exp(centre + reach)))


def estimate(values: Sequence[float]) -> Estimate | None:
    """The typical value with its 95 % interval, by the values' logarithms, so that twice and half count
    alike; None when a value is not positive.

    Why so: CPU per connection is nearly normal here, but rates have outliers that make their standard
    deviation half again as large as the spread of the rest; a tenth trimmed at each end costs the one nothing
    and rids the other of them (7,200 cells of the calibration run). Where equals are compared, a percentile bootstrap
    of the median calls 26 % of them different at 3 values and 6 to 11 % at 8 to 15, under even and skewed
    noise alike. The studentized bootstrap (each resample is divided by its own error) stays at 4 to 5.5 % from
    15 on; at 8 values its intervals are a sixth or more wider than Student's t, which stays at 5 % down to 3.
    Below 3 nothing can be told. tests/test_calibration.py holds it to this."""
    logs = _logs(values)
    if not logs:
        return None
    if len(logs) < 3:
        return Estimate(math.exp(fmean(logs)))
    centre, error = _centre(logs)
    if error == 0:
        return _around(centre, 0.0)
    critical = _critical(_resampled(logs)) if len(logs) >= BOOTSTRAP_FROM else STUDENT[len(logs) - 1]
    return _around(centre, critical * error)


def apart(values: Sequence[float], base: Sequence[float]) -> Estimate | None:
    """The ratio of two figures whose repetitions are not paired: of two runs, each resampled by itself."""
    first, second = _logs(values), _logs(base)
    if not first or not second:
        return None
    fewest = min(len(first), len(second))
    if fewest < 3:
        return Estimate(math.exp(fmean(first) - fmean(second)))
    (one, its_error), (other, other_error) = _centre(first), _centre(second)
    error = math.hypot(its_error, other_error)
    if error == 0:
        return _around(one - other, 0.0)
    if fewest < BOOTSTRAP_FROM:
        # Welch's degrees of freedom.
        freedom = error**4 / (its_error**4 / (len(first) - 1) + other_error**4 / (len(second) - 1))
        return _around(one - other, STUDENT[min(int(freedom), max(STUDENT))] * error)
    pairs = zip(_resampled(first), _resampled(second, stream=1))
    critical = _critical([(a - b, of_a + of_b) for (a, of_a), (b, of_b) in pairs])
    return _around(one - other, critical * error)


def unseen_below(intervals: Sequence[Interval | None], repetitions: int) -> float | None:
    """The relative difference that nine of ten such runs see, for a way of typical noise: the median over
    the ways' ratios, so that a single wild one does not blind the whole table.

    Few values often lie closer together than their kind: by the second factor the median of standard
    deviations is below the true one (Wilson and Hilferty)."""
    widths = [half_width(interval) for interval in intervals if interval]
    if not widths or repetitions < 3:
        return None
    return math.expm1(NINE_OF_TEN * median(widths) / (1 - 2 / (9 * (repetitions - 1))) ** 1.5)
