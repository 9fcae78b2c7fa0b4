"""Statistics of two networks that answered the same questions: what counts is where only one of them was right.

McNemar, "Note on the Sampling Error of the Difference between Correlated Proportions" (1947), in its exact form: of the
images that only one network gets right, each is as likely the one's as the other's if both are as good. The interval is
the one that belongs to it: Clopper and Pearson's (1934) of that share, as a difference of accuracies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import lgamma, log
from typing import Any

import numpy as np

from convscope.measures.figures import Estimate

TAIL = 0.025  # on each side of a 95 % interval


def _lower_tail(hits: int, tries: int, chance: float) -> float:
    """The probability of at most so many hits."""
    if hits >= tries or chance <= 0:
        return 1.0
    if hits < 0 or chance >= 1:
        return 0.0
    k = np.arange(hits + 1)
    ways = lgamma(tries + 1) - np.array([lgamma(n + 1) + lgamma(tries - n + 1) for n in k])
    return min(1.0, float(np.exp(ways + k * log(chance) + (tries - k) * np.log1p(-chance)).sum()))


def mcnemar(only_first: int, only_second: int) -> float:
    """The two-sided exact p-value: how often chance alone would part the two at least as far.

    Args:
        only_first, only_second: images that only the one is right on.

    Example:
        >>> mcnemar(1, 9)  # 2 (1 + 10) / 1024
        0.021484375
        >>> mcnemar(3, 3), mcnemar(0, 0)
        (1.0, 1.0)
    """
    tries = only_first + only_second
    return round(min(1.0, 2 * _lower_tail(min(only_first, only_second), tries, 0.5)), 12)


def difference(only_first: int, only_second: int, images: int) -> Estimate:
    """Accuracy of the second less that of the first, with the 95 % interval that goes with McNemar's exact test.

    It is without 0 just where the p-value is below 0.05. Where the two are right on the same images there is nothing to
    tell them apart by, and the interval is 0 to 0.

    Example:
        >>> difference(1, 9, 100).percent()
        '8.0 % (1.1 to 9.9)'
    """
    tries = only_first + only_second
    if not tries:
        return Estimate(0.0, 0.0, 0.0)
    low, high = clopper_pearson(only_second, tries)
    scale = tries / images
    return Estimate((only_second - only_first) / images, (2 * low - 1) * scale, (2 * high - 1) * scale)


def clopper_pearson(hits: int, tries: int) -> tuple[float, float]:
    """The exact 95 % interval of a share.

    Example:
        >>> low, high = clopper_pearson(0, 10)
        >>> low, round(high, 6), round(1 - 0.025 ** 0.1, 6)
        (0.0, 0.308497, 0.308497)
    """
    low = 0.0 if hits == 0 else _crossing(lambda p: 1 - _lower_tail(hits - 1, tries, p) - TAIL)
    high = 1.0 if hits == tries else _crossing(lambda p: TAIL - _lower_tail(hits, tries, p))
    return low, high


def _crossing(rising: Callable[[float], float]) -> float:
    """Where a rising function of 0 to 1 passes 0."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
    return (low + high) / 2


@dataclass(frozen=True)
class Accuracy:
    """How often two networks are right on the same labelled images.

    Attributes:
        images: how many.
        a, b: share of them, with Wilson's interval.
        only_a, only_b: images that only the one is right on.
    """

    images: int
    a: Estimate
    b: Estimate
    only_a: int
    only_b: int

    @property
    def difference(self) -> Estimate:
        """Of b less a, with the paired interval."""
        return difference(self.only_a, self.only_b, self.images)

    @property
    def p_value(self) -> float:
        """McNemar's, exact and two-sided."""
        return mcnemar(self.only_a, self.only_b)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "images": self.images,
            "a": self.a.to_dict(),
            "b": self.b.to_dict(),
            "difference": self.difference.to_dict(),
            "only_a": self.only_a,
            "only_b": self.only_b,
            "p_value": self.p_value,
        }
