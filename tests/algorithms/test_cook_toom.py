"""Transform matrices: exact identities, textbook cases, and the points' errors."""

from __future__ import annotations

import math
from fractions import Fraction

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from convscope.algorithms.cook_toom import ONE, POINTS, ZERO, Surd, Transform, matrices, points
from convscope.errors import RequestError

FRACTIONS = st.fractions(min_value=-4, max_value=4, max_denominator=12)
SURDS = st.builds(Surd, FRACTIONS, FRACTIONS)


# ---------------------------------------------------------------- numbers


@given(SURDS, SURDS)
def test_surds_compute_like_the_numbers_they_are(one: Surd, two: Surd) -> None:
    a, b = float(one), float(two)
    assert float(one + two) == pytest.approx(a + b, abs=1e-12)
    assert float(one - two) == pytest.approx(a - b, abs=1e-12)
    assert float(one * two) == pytest.approx(a * b, abs=1e-12)
    assert float(one**3) == pytest.approx(a**3, rel=1e-9, abs=1e-12)
    assert one + two - two == one
    if two:
        assert (one / two) * two == one


def test_surds_that_nearly_cancel_keep_their_digits() -> None:
    near = Surd(Fraction(99), Fraction(-70))  # 99 - 70 sqrt(2) = 1 / (99 + 70 sqrt(2))
    assert float(near) == pytest.approx(1 / (99 + 70 * math.sqrt(2)), rel=1e-15)


def test_surds_print_as_written() -> None:
    assert [str(each) for each in points(5)] == ["0", "1/2*sqrt(2)", "-1/2*sqrt(2)", "sqrt(2)", "-sqrt(2)"]
    assert str(Surd(Fraction(1), Fraction(2))) == "1 + 2*sqrt(2)"


# ---------------------------------------------------------------- matrices


def _exactly_convolves(found: Transform) -> None:
    """sum over j of A^T[i, j] G[j, k] B^T[j, d] is 1 where d = i + k, else 0: exactly."""
    for i in range(found.m):
        for k in range(found.r):
            for d in range(found.n):
                total = ZERO
                for j in range(found.n):
                    total = total + found.output[i][j] * found.filter[j][k] * found.input[j][d]
                assert total == (ONE if d == i + k else ZERO), (i, k, d)


@pytest.mark.parametrize("m", range(1, 7))
@pytest.mark.parametrize("r", [1, 2, 3, 5, 8])
def test_matrices_convolve_exactly(m: int, r: int) -> None:
    _exactly_convolves(matrices(m, r))


@given(
    st.lists(FRACTIONS, min_size=1, max_size=5, unique=True),
    st.data(),
)
def test_matrices_convolve_exactly_at_any_points(at: list[Fraction], data: st.DataObject) -> None:
    r = data.draw(st.integers(1, len(at) + 1))
    _exactly_convolves(matrices(len(at) + 2 - r, r, tuple(at)))


def test_the_textbook_f23_up_to_the_scale_of_each_point() -> None:
    found = matrices(2, 3)  # Lavin and Gray 2015, equation 7, with points 0, 1, -1, infinity
    lavin_input = [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]
    for ours, theirs in zip(found.input, lavin_input, strict=True):
        row = [float(each) for each in ours]
        assert row in ([float(x) for x in theirs], [-float(x) for x in theirs])
    assert [[float(each) for each in row] for row in found.output] == [[1, 1, 1, 0], [0, 1, -1, 1]]


def test_pairs_of_points_give_pairs_of_rows() -> None:
    for m, r in ((4, 3), (6, 3), (4, 5)):
        found = matrices(m, r)
        for j in range(1, found.n - 1, 2):
            assert found.points[j] == -found.points[j + 1]
            for one, two in ((found.input[j], found.input[j + 1]), (found.filter[j], found.filter[j + 1])):
                even = {a == b for a, b in zip(one[0::2], two[0::2], strict=True) if a}
                odd = {a == b for a, b in zip(one[1::2], two[1::2], strict=True) if a}
                assert even | odd == {True, False}
                assert len(even) == len(odd) == 1


def test_tensors_are_rounded_once() -> None:
    for dtype in (torch.float32, torch.float64, torch.complex64):
        for tensor, exact in zip(matrices(4, 3).tensors(dtype), _floats(matrices(4, 3)), strict=True):
            assert tensor.dtype == dtype
            assert torch.equal(tensor, exact.to(dtype))


def _floats(found: Transform) -> list[Tensor]:
    return [
        torch.tensor([[float(each) for each in row] for row in matrix], dtype=torch.float64)
        for matrix in (found.output, found.filter, found.input)
    ]


# ---------------------------------------------------------------- points


def _error(found: Transform, channels: int = 64) -> float:
    """Of a float32 tile in two dimensions, relative to the output's maximum."""
    draw = torch.Generator().manual_seed(0)
    d = torch.randn(64, channels, found.n, found.n, generator=draw)
    g = torch.randn(16, channels, found.r, found.r, generator=draw)
    exact = torch.nn.functional.conv2d(d.double(), g.double())
    a, _, b = found.tensors(torch.float32)
    filters = torch.einsum("ai,bj,kcij->abkc", *[found.tensors()[1]] * 2, g.double()).float()
    spectra = torch.einsum("ai,bj,tcij->abct", b, b, d)
    y = torch.einsum("pa,qb,abkt->tkpq", a, a, filters @ spectra)
    return ((y.double() - exact).abs().max() / exact.abs().max()).item()


def test_the_points_of_f43_are_three_times_as_exact_as_the_usual_ones() -> None:
    assert 3 * _error(matrices(4, 3)) < _error(matrices(4, 3, (0, 1, -1, 2, -2)))


@pytest.mark.parametrize(("size", "limit"), [((2, 3), 1e-6), ((4, 3), 4e-6), ((6, 3), 4e-5), ((4, 5), 2e-5)])
def test_single_precision_tiles_are_exact_enough(size: tuple[int, int], limit: float) -> None:
    assert _error(matrices(*size)) < limit


def test_amplification_grows_with_the_tile() -> None:
    factors = [matrices(m, 3).amplification for m in (1, 2, 4, 6)]
    assert factors == sorted(factors)
    assert factors[:2] == [pytest.approx(7 / 3), pytest.approx(8 / 3)]  # (1 2 + 3 1 + 1 2) / 3 by hand


def test_every_number_of_points_is_of_different_ones() -> None:
    for count, found in POINTS.items():
        assert len(found) == count == len(set(found))
    assert sorted(POINTS) == list(range(1, 14))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(RequestError, match=r"F\(0, 3\) needs at least one output"):
        matrices(0, 3)
    with pytest.raises(RequestError, match="needs 14 points; 1 to 13 are known"):
        matrices(8, 8)
    with pytest.raises(RequestError, match="needs 3 different finite points"):
        matrices(2, 3, (0, 1, 1))
    with pytest.raises(RequestError, match=r"the point 0\.5 is a float"):
        matrices(2, 3, (0, 1, 0.5))  # type: ignore[arg-type]
