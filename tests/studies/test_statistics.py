"""Statistics against tables and cases worked by hand; the digits of t are those of scipy 1.17."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convscope.studies.statistics import Mean, holm, mean_of, paired, seeds_needed, t_quantile, t_two_sided

T_TABLE = {1: 12.706204736, 2: 4.302652730, 4: 2.776445105, 9: 2.262157163, 29: 2.045229642}
SCORES = st.lists(st.floats(0, 1), min_size=2, max_size=8)


@pytest.mark.parametrize(("degrees", "reach"), T_TABLE.items())
def test_quantiles_of_t(degrees: int, reach: float) -> None:
    assert t_quantile(degrees) == pytest.approx(reach, rel=1e-9)
    assert t_two_sided(reach, degrees) == pytest.approx(0.05, rel=1e-8)
    assert t_two_sided(-reach, degrees) == t_two_sided(reach, degrees)


def test_tails_of_t() -> None:
    assert t_two_sided(3.25, 7) == pytest.approx(0.014057284715193739, rel=1e-10)
    assert t_two_sided(0.0, 3) == 1
    for t in (0.3, 1.0, 5.0, 40.0):  # one degree is Cauchy's, two have a closed form
        assert t_two_sided(t, 1) == pytest.approx(1 - 2 / math.pi * math.atan(t), rel=1e-9)
        assert t_two_sided(t, 2) == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-9)


def test_a_mean_by_hand() -> None:
    found = mean_of([1.0, 2.0, 3.0, 4.0])  # deviation sqrt(5/3), t(3) = 3.18245
    assert (found.mean, found.count) == (2.5, 4)
    assert found.deviation == pytest.approx(math.sqrt(5 / 3))
    assert found.high == pytest.approx(2.5 + 3.182446305 * math.sqrt(5 / 3) / 2)
    assert found.low + found.high == pytest.approx(5)


def test_one_value_has_no_interval() -> None:
    assert mean_of([0.4]) == Mean(0.4, None, None, None, 1)
    assert paired([0.4], [0.3]).p is None
    assert seeds_needed(mean_of([0.4]), 0.01) is None
    with pytest.raises(ValueError, match="no values"):
        mean_of([])


def test_paired_differences() -> None:
    found = paired([3.0, 5.0, 4.0], [1.0, 2.0, 3.0])  # 2, 3, 1: mean 2, deviation 1, t = 2 sqrt(3)
    assert found.p == pytest.approx(1 - math.sqrt(12) / math.sqrt(2 + 12))
    assert paired([1.0, 2.0], [1.0, 2.0]).p == 1
    assert paired([2.0, 3.0], [1.0, 2.0]).p == 0
    with pytest.raises(ValueError, match="shorter|longer"):
        paired([1.0], [1.0, 2.0])


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.2, 0.002]) == pytest.approx([0.04, 0.09, 0.09, 0.2, 0.01])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_keeps_the_order_and_never_lowers(values: list[float]) -> None:
    adjusted = holm(values)
    assert all(after >= before for before, after in zip(values, adjusted, strict=True))
    order = sorted(range(len(values)), key=lambda place: (values[place], adjusted[place]))
    assert [adjusted[place] for place in order] == sorted(adjusted)


@given(SCORES, st.floats(0.001, 0.2))
def test_seeds_needed_is_the_first_that_suffices(scores: list[float], margin: float) -> None:
    found = mean_of(scores)
    count = seeds_needed(found, margin)

    def reach(seeds: int) -> float:
        return t_quantile(seeds - 1) * found.deviation / math.sqrt(seeds)

    distance = abs(found.mean - margin)
    if count is None:
        assert reach(1000) >= distance
    else:
        assert reach(count) < distance
        assert count == 2 or reach(count - 1) >= distance


def test_intervals_cover_what_they_promise() -> None:
    chance = random.Random(1)
    hits = 0
    for _ in range(400):
        found = mean_of([chance.gauss(0.5, 0.1) for _ in range(4)])
        hits += found.low <= 0.5 <= found.high
    assert 0.92 < hits / 400 < 0.98
