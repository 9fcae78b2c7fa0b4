"""Overlap patterns against the operator itself: all-ones kernels on images of ones, and random weights."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from convscope.errors import RequestError
from convscope.nn.checkerboard import checkerboard

AXIS = st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(0, 3), st.integers(1, 3))


@given(AXIS, AXIS, st.integers(0, 2**31))
def test_the_pattern_is_what_the_operator_does_to_ones(
    rows: tuple[int, int, int, int], columns: tuple[int, int, int, int], seed: int
) -> None:
    kernel, stride, padding, dilation = zip(rows, columns, strict=True)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 3, *kernel, generator=generator, dtype=torch.float64)
    size = [d * (k - 1) // s + 2 + p for k, s, p, d in (rows, columns)]  # leaves whole periods in the middle

    def apply(w: torch.Tensor, groups: int) -> torch.Tensor:
        ones = torch.ones(1, w.shape[0], *size, dtype=torch.float64)
        return functional.conv_transpose2d(ones, w, None, stride, padding, 0, groups, dilation)[0]

    found = checkerboard(kernel, stride, padding, dilation, weight, groups=2)
    taps, sums = apply(torch.ones(1, 1, *kernel, dtype=torch.float64), 1)[0], apply(weight, 2)
    assert torch.equal(found.overlap(size), taps.long())
    for y in range(stride[0]):
        for x in range(stride[1]):
            inner = [  # a position well inside, in phase with (y, x)
                s * (-(-(d * (k - 1)) // s)) + phase
                for k, s, d, phase in zip(kernel, stride, dilation, (y, x), strict=True)
            ]
            assert taps[inner[0], inner[1]] == found.taps[y][x]
            assert found.sums is not None
            assert torch.allclose(sums[:, inner[0], inner[1]], found.sums[:, y, x], atol=1e-12)


def test_known_patterns() -> None:
    assert checkerboard(3, 2).taps == ((4, 2), (2, 1))
    assert checkerboard(3, 2, padding=1).taps == ((1, 2), (2, 4))  # the padding shifts the phase
    assert checkerboard(4, 2, padding=1).taps == ((4, 4), (4, 4))
    assert checkerboard(2, 3).taps == ((1, 1, 0), (1, 1, 0), (0, 0, 0))
    assert checkerboard((1, 3), (1, 2)).taps == ((2, 1),)
    assert [checkerboard(k, 2).even for k in range(1, 7)] == [False, True] * 3
    assert checkerboard(3, 2).evenness == 0.25
    assert checkerboard(2, 3).evenness == 0.0
    assert checkerboard(3, 2, dilation=2).taps == ((9, 0), (0, 0))  # dilation and stride in step: holes


def test_ripple_is_the_share_of_pattern() -> None:
    flat = torch.ones(2, 3, 4, 4)
    ripple = checkerboard(4, 2, weight=flat).ripple
    assert ripple is not None
    assert ripple.tolist() == [0.0] * 3
    sums = torch.tensor([[3.0, 1.0]])  # mean 2, deviation 1: sqrt((1 + 1) / (9 + 1))
    ripple = checkerboard((1, 2), (1, 2), weight=sums.view(1, 1, 1, 2)).ripple
    assert ripple is not None
    assert ripple.item() == pytest.approx(0.2**0.5)
    ripple = checkerboard(2, 2, weight=torch.zeros(1, 1, 2, 2)).ripple
    assert ripple is not None
    assert ripple.item() == 0.0
    assert checkerboard(3, 2).ripple is None


def test_it_prints_and_serializes() -> None:
    found = checkerboard(5, 2, 2, weight=torch.ones(1, 1, 5, 5))
    assert str(found) == (
        "kernel 5x5, stride 2x2: uneven, 4 to 9 taps\n  9 6\n  6 4\n"
        "ripple on a constant image: 0.275 mean, 0.275 at most"
    )
    assert json.loads(json.dumps(found.to_dict())) == {
        "kernel_size": [5, 5],
        "stride": [2, 2],
        "padding": [2, 2],
        "dilation": [1, 1],
        "taps": [[9, 6], [6, 4]],
        "even": False,
        "evenness": pytest.approx(4 / 9),
        "sums": [[[9.0, 6.0], [6.0, 4.0]]],
        "ripple": [pytest.approx((12.75 / 169) ** 0.5)],
    }
    assert checkerboard(3, 2).to_dict()["sums"] is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kernel_size": 0, "stride": 2}, "kernel_size=0 must be a whole number, positive"),
        ({"kernel_size": 3, "stride": (1, 2, 3)}, "stride=(1, 2, 3) must be"),
        ({"kernel_size": 3, "stride": 2, "padding": -1}, "padding=-1 must be"),
        ({"kernel_size": 3, "stride": 2, "weight": torch.ones(1, 1, 2, 3)}, "weight of shape (1, 1, 2, 3)"),
        (
            {"kernel_size": 1, "stride": 1, "weight": torch.ones(3, 1, 1, 1), "groups": 2},
            "divisible by groups=2",
        ),
    ],
)
def test_wrong_arguments(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        checkerboard(**wrong)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_overlap_of_an_output_that_is_not() -> None:
    with pytest.raises(RequestError, match="leaves no output"):
        checkerboard(2, 2, padding=3).overlap(2)
