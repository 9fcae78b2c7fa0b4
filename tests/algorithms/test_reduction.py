"""Rewrites as a stride-1 convolution of small kernel: exact, whatever the geometry."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import assume, given
from torch import Tensor
from torch.nn import functional as F

from convscope.algorithms.problem import Problem
from convscope.algorithms.reduction import reduce, refuses

PAIR = st.tuples(st.integers(1, 3), st.integers(1, 3))


def _whole(*shape: int) -> Tensor:
    """Whole numbers: sums of them are exact, so results must be equal."""
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(0)).double()


@given(
    st.tuples(st.integers(1, 19), st.integers(1, 19)),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    PAIR,
    st.booleans(),
    st.tuples(*[st.tuples(st.integers(0, 4), st.integers(0, 4))] * 2),
    st.sampled_from([2, 3, 5]),
    st.sampled_from([1, 2]),
)
def test_the_core_has_the_same_answer(
    size: tuple[int, int],
    kernel: tuple[int, int],
    step: tuple[int, int],
    dilated: bool,
    padding: tuple[tuple[int, int], tuple[int, int]],
    r: int,
    groups: int,
) -> None:
    stride, dilation = ((1, 1), step) if dilated else (step, (1, 1))
    assume(all(s + sum(p) > d * (k - 1) for s, p, d, k in zip(size, padding, dilation, kernel, strict=True)))
    x, weight = _whole(2, 4, *size), _whole(6, 4 // groups, *kernel)
    problem = Problem.of(x, weight, stride, padding, dilation, groups)
    found = reduce(problem, r)
    core = found.core
    assert core.plain
    assert set(core.kernel) <= {1, r}
    image, filters = found.input(x), found.weight(weight)
    assert tuple(image.shape) == core.input_shape
    assert tuple(filters.shape) == core.weight_shape
    (top, bottom), (left, right) = core.padding
    y = F.conv2d(F.pad(image, (left, right, top, bottom)), filters, groups=groups)
    assert tuple(y.shape) == core.output_shape
    (top, bottom), (left, right) = padding
    wanted = F.conv2d(F.pad(x, (left, right, top, bottom)), weight, None, stride, 0, dilation, groups)
    assert torch.equal(found.output(y), wanted)


def test_what_needs_no_rewrite_is_left_alone() -> None:
    problem = Problem(2, 4, 4, (9, 9), (3, 1), padding=((1, 1), (0, 0)))
    found = reduce(problem, 3)
    assert found.trivial
    assert found.core is problem
    assert found.cost.bytes == 0
    x = torch.zeros(2, 4, 9, 9)
    assert found.input(x) is x


def test_sizes_by_hand() -> None:
    """7x7 at stride 2 of 224 x 224: four sub-images, 4 taps each, cut in 2 x 2 blocks of 3."""
    found = reduce(Problem(1, 3, 64, (224, 224), (7, 7), (2, 2), ((3, 3), (3, 3))), 3)
    assert (found.taps, found.blocks) == ((4, 4), (2, 2))
    assert found.core.in_channels == 3 * 4 * 4
    assert found.core.size == (114, 114)
    copied = 3 * 224 * 224 + 48 * 114 * 114
    assert found.cost.bytes == 4 * copied
    assert found.cost.workspace == 4 * 48 * 114 * 114


def test_stride_and_dilation_together_have_no_core() -> None:
    problem = Problem(1, 1, 1, (9, 9), (3, 3), (2, 2), ((0, 0), (0, 0)), (2, 2))
    assert refuses(problem) == "stride (2, 2) together with dilation (2, 2) does not decompose"


@pytest.mark.parametrize("step", ["stride", "dilation"])
def test_rewrites_are_differentiable(step: str) -> None:
    x, weight = (
        torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((1, 2, 6, 7), (2, 2, 3, 4))
    )
    found = reduce(Problem.of(x, weight, **{step: 2}), 2)

    def run(x: Tensor, weight: Tensor) -> Tensor:
        return found.output(F.conv2d(found.input(x), found.weight(weight)))

    assert torch.autograd.gradcheck(run, (x, weight))
