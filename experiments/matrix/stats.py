"""How a figure is estimated from its repetitions, and when two of them are called different."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean, median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy

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


def _deviation(values: Sequence[float]) -> float:
    """The sample standard deviation. That of the standard library is exact to the last bit and 30 times slower."""
    mean = fmean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _centre(logs: Sequence[float]) -> tuple[float, float]:
    """The trimmed mean of sorted values, and its standard error by the winsorized variance."""
    count = len(logs)
    if count < BOOTSTRAP_FROM:
        return fmean(logs), _deviation(logs) / math.sqrt(count)
    cut = int(TRIM * count)
    kept = logs[cut : count - cut]
    winsorized = [kept[0]] * cut + list(kept) + [kept[-1]] * cut
    return fmean(kept), _deviation(winsorized) * math.sqrt(count - 1) / _freedom(count)


def _freedom(count: int) -> float:
    kept = count - 2 * int(TRIM * count)
    return math.sqrt(kept * (kept - 1))


@lru_cache(maxsize=None)
def _picks(count: int, stream: int) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]:
    """For each resample how often it keeps each of so many sorted values after trimming (a row of the first), and
    which is its lowest and its highest. The seed is fixed, so that the same data give the same interval."""
    import numpy

    chance = random.Random(1000 * stream + count)
    cut = int(TRIM * count)
    kept = numpy.array([
        sorted(chance.choices(range(count), k=count))[cut : count - cut] for _ in range(RESAMPLES)
    ])
    return (kept[:, :, None] == numpy.arange(count)).sum(axis=1).astype(float), kept[:, 0], kept[:, -1]


def _resampled(logs: Sequence[float], stream: int = 0) -> tuple[numpy.ndarray, numpy.ndarray]:
    """For each resample how far its trimmed mean lies from that of the sample, and its squared error."""
    import numpy  # here, as to load it takes longer than most commands that need no interval

    count, (centre, _) = len(logs), _centre(logs)
    cut = int(TRIM * count)
    times, lowest, highest = _picks(count, stream)
    values = numpy.array(logs) - centre
    first, last, total = values[lowest], values[highest], times @ values
    winsorized = total + cut * (first + last)
    deviations = times @ values**2 + cut * (first**2 + last**2) - winsorized**2 / count
    return total / (count - 2 * cut), deviations.clip(min=0) / _freedom(count) ** 2


def _critical(far: numpy.ndarray, error: numpy.ndarray) -> float:
    """What 95 % of the resamples' |t| stay below."""
    import numpy

    ts = numpy.full(RESAMPLES, math.inf)
    numpy.divide(abs(far), numpy.sqrt(error), out=ts, where=error > 0)
    ts.sort()
    return float(ts[math.ceil(0.95 * (RESAMPLES + 1)) - 1])


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
    critical = _critical(*_resampled(logs)) if len(logs) >= BOOTSTRAP_FROM else STUDENT[len(logs) - 1]
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
    (far, of_far), (other_far, of_other) = _resampled(first), _resampled(second, stream=1)
    critical = _critical(far - other_far, of_far + of_other)
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
