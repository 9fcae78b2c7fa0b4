"""Max pooling of 2x2 windows in machine code, against torch's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from convscope.algorithms.kernels import halving
from convscope.algorithms.kernels.host import current, narrowed, pretend
from convscope.errors import RequestError

TYPES = (torch.float32, torch.bfloat16, torch.float16)

if current().refuses() is not None:
    pytest.skip(f"no machine code here: {current().refuses()}", allow_module_level=True)


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def by_torch(x: Tensor, of_y: Tensor) -> tuple[Tensor, Tensor]:
    x = x.float().requires_grad_()
    y = functional.max_pool2d(x, 2)
    (slope,) = torch.autograd.grad(y, x, of_y.float())
    return y.detach(), slope


@given(
    seed=st.integers(0, 9),
    batch=st.integers(1, 3),
    vectors=st.integers(1, 3),
    size=st.tuples(st.integers(2, 9), st.integers(2, 9)),
    dtype=st.sampled_from(TYPES),
    width=st.sampled_from([8, 16]),
    rectified=st.booleans(),
)
def test_values_and_gradients_are_those_of_torch(
    seed: int,
    batch: int,
    vectors: int,
    size: tuple[int, int],
    dtype: torch.dtype,
    width: int,
    rectified: bool,
) -> None:
    with pretend(narrowed(width)) as host:
        generator = torch.Generator().manual_seed(seed)
        channels = vectors * 4 * host.width // dtype.itemsize
        # few distinct values, so that ties are common
        x = torch.randint(-6, 7, (batch, channels, *size), generator=generator) / 4
        x = last((x.clamp_min(0) if rectified else x).to(dtype))
        assert halving.refuses(x) is None
        y = halving.halve(x)
        of_y = last(torch.randn(y.shape, generator=generator).to(dtype))
        wanted, slope = by_torch(x, of_y)
        assert torch.equal(y.float(), wanted)
        assert torch.equal(halving.gradient(of_y, x).float(), slope)
        assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_what_is_not_a_number_stays_so(dtype: torch.dtype, sign: float) -> None:
    x = torch.zeros(1, 64, 2, 2, dtype=dtype)
    x[0, 3, 1, 0] = torch.tensor(float("nan")).copysign(torch.tensor(sign))
    x[0, 5] = torch.tensor([[float("inf"), 1], [-float("inf"), 2]])
    x[0, 6] = -float("inf")
    y = halving.halve(last(x))[0, :, 0, 0].float()
    assert y.isnan().nonzero().flatten().tolist() == [3]
    assert y[5:7].tolist() == [float("inf"), -float("inf")]


def test_gradients_of_any_layout_are_taken() -> None:
    x = last(torch.rand(2, 64, 5, 7))
    of_y = torch.rand(2, 64, 2, 3)
    assert torch.equal(halving.gradient(of_y, x), by_torch(x, of_y)[1])


@pytest.mark.parametrize(
    ("x", "why"),
    [
        (torch.rand(1, 64, 4, 4, dtype=torch.float64), "not float64 on cpu"),
        (torch.rand(64, 4, 4), r"not \[64, 4, 4\]"),
        (last(torch.rand(1, 64, 1, 4)), r"at least 2x2, not \[1, 64, 1, 4\]"),
        (torch.rand(1, 64, 4, 4), "for channels last"),
        (last(torch.rand(1, 7, 4, 4)), "whole vectors of channels, not 7"),
    ],
)
def test_what_is_not_served(x: Tensor, why: str) -> None:
    with pytest.raises(RequestError, match=why):
        halving.halve(x)
