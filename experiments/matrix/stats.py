"""The few statistics that the table needs."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from statistics import median, stdev

__all__ = ["interval", "median", "noise", "paired_ratios", "spread", "unseen_below"]


def spread(values: Sequence[float]) -> float | None:
    """Half the range, as a share of the median; None when one value tells of no spread."""
    middle = median(values)
    if len(values) < 2 or middle == 0:
        return None
    return (max(values) - min(values)) / 2 / abs(middle)


def paired_ratios(values: Mapping[int, float], base: Mapping[int, float]) -> list[float]:
    """value / base for each repetition that has both: what disturbs a whole repetition cancels."""
    return [values[rep] / base[rep] for rep in sorted(values) if base.get(rep)]


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % bootstrap interval of the median; None when a single value tells of none."""
    if len(values) < 2:
        return None
    chance = random.Random(len(values))  # the same data gives the same interval
    medians = sorted(median(chance.choices(values, k=len(values))) for _ in range(2000))
    return medians[50], medians[1949]


def noise(ratios: Sequence[float]) -> float | None:
    """Standard deviation of the ratios' logarithms, so that twice and half count alike."""
    logs = [math.log(ratio) for ratio in ratios if ratio > 0]
    return stdev(logs) if len(logs) > 1 else None


def unseen_below(noises: Sequence[float], repetitions: int) -> float | None:
    """The relative difference from the baseline that a run of this many repetitions cannot tell from
    noise, for a way of typical noise: two standard errors of the median ratio.

    The typical noise is the median over the ways, so that a single wild one does not blind the whole
    table. 1.2: the median of standard deviations of three values lies that much below the true one
    (square root of ln 2). 1.25 / sqrt(n): the standard error of a median."""
    if not noises or repetitions < 2:
        return None
    typical = median(noises) / math.sqrt(math.log(2))
    return math.expm1(2 * typical * 1.2533 / math.sqrt(repetitions))
