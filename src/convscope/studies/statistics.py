"""The statistics of studies: means over seeds with t intervals, paired differences, Holm's correction, seeds needed.

The unit is the seed: an interval says how a mean would move with other initial weights and another order of the data. It
says nothing about another set of test images, which all runs share.
"""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

CONFIDENCE = 0.95
MOST_SEEDS = 1000


# ---------------------------------------------------------------- Student's t


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularized incomplete beta function I_x(a, b), by its continued fraction (Lentz's method)."""
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    tiny = 1e-300
    c, d = 1.0, 1 - (a + b) * x / (a + 1)
    d = 1 / (d if abs(d) > tiny else tiny)
    fraction = d
    for m in range(1, 500):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 + term * d
            c = 1 + term / c
            d = 1 / (d if abs(d) > tiny else tiny)
            c = c if abs(c) > tiny else tiny
            fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * fraction / a


def t_two_sided(t: float, degrees: int) -> float:
    """The probability that Student's t, by chance, is at least as far from 0.

    Example:
        >>> round(t_two_sided(2.776445, 4), 4)
        0.05
    """
    return _incomplete_beta(degrees / 2, 0.5, degrees / (degrees + t * t))


def t_quantile(degrees: int, confidence: float = CONFIDENCE) -> float:
    """How many standard errors the two-sided interval reaches to each side.

    Example:
        >>> round(t_quantile(4), 3), round(t_quantile(30), 3)
        (2.776, 2.042)
    """
    low, high = 0.0, 2.0
    while t_two_sided(high, degrees) > 1 - confidence:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        if t_two_sided(middle, degrees) > 1 - confidence:
            low = middle
        else:
            high = middle
    return (low + high) / 2


# ---------------------------------------------------------------- means and differences


@dataclass(frozen=True)
class Mean:
    """A mean over seeds, with the t interval in which it lies; the ends are None where one seed says nothing of them.

    Attributes:
        mean, low, high: in the unit of the values.
        deviation: standard deviation of single values (divided by count - 1); None for one value.
        count: how many values.
    """

    mean: float
    low: float | None
    high: float | None
    deviation: float | None
    count: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def mean_of(values: Sequence[float]) -> Mean:
    """Mean, and its 95 % t interval.

    Raises:
        ValueError: there are no values.

    Example:
        >>> found = mean_of([0.8, 0.82, 0.84])
        >>> round(found.mean, 3), round(found.low, 3), round(found.high, 3)
        (0.82, 0.77, 0.87)
    """
    if not values:
        raise ValueError("there are no values to take a mean of.")
    centre = statistics.fmean(values)
    if len(values) == 1:
        return Mean(centre, None, None, None, 1)
    deviation = statistics.stdev(values)
    reach = t_quantile(len(values) - 1) * deviation / math.sqrt(len(values))
    return Mean(centre, centre - reach, centre + reach, deviation, len(values))


@dataclass(frozen=True)
class Difference(Mean):
    """A mean of differences, seed by seed, and whether chance explains it.

    Attributes:
        p: of the paired t test; None for one pair.
        adjusted_p: after Holm's correction for the number of comparisons.
    """

    p: float | None = None
    adjusted_p: float | None = None


def paired(values: Sequence[float], baseline: Sequence[float]) -> Difference:
    """The mean of `values[i] - baseline[i]`, its interval and the paired t test; not yet corrected.

    Raises:
        ValueError: there are no pairs, or the lengths differ.

    Example:
        >>> found = paired([3.0, 5.0, 4.0], [1.0, 2.0, 3.0])
        >>> found.mean, round(found.p, 4)
        (2.0, 0.0742)
    """
    found = mean_of([value - base for value, base in zip(values, baseline, strict=True)])
    p = None
    if found.deviation is not None:
        if found.deviation > 0:
            p = t_two_sided(found.mean / (found.deviation / math.sqrt(found.count)), found.count - 1)
        else:
            p = 1.0 if found.mean == 0 else 0.0
    return Difference(**asdict(found), p=p)


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for their number: reject where the result is below 0.05, and one false alarm in twenty such
    families remains.

    Holm, "A Simple Sequentially Rejective Multiple Test Procedure" (1979).

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    adjusted = [0.0] * len(values)
    running = 0.0
    for rank, place in enumerate(order):
        running = max(running, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = running
    return adjusted


def seeds_needed(difference: Mean, margin: float) -> int | None:
    """About how many seeds bring the end of a difference's interval clear of a margin, if mean and spread stay.

    Returns:
        The number; None where one pair says nothing of the spread, or more than 1000 would be needed.

    Example:
        >>> seeds_needed(mean_of([0.0, 0.02, -0.004, 0.004, 0.01]), margin=0.01)
        24
    """
    if difference.deviation is None:
        return None
    distance = abs(margin - difference.mean)
    spread = difference.deviation

    def clear(count: int) -> bool:
        return t_quantile(count - 1) * spread < distance * math.sqrt(count)

    count = 2 + bisect.bisect_left(range(2, MOST_SEEDS + 1), True, key=clear)  # more seeds never widen it
    return count if count <= MOST_SEEDS else None
