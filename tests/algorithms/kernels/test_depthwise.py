"""Depthwise convolution in machine code against float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from convscope.algorithms.kernels import depthwise, host, threads, workspace
from convscope.algorithms.problem import Problem
from convscope.errors import RequestError

WIDTHS = [width for width in (16, 8) if width <= host.detect().width]
pytestmark = pytest.mark.skipif(
    host.detect().refuses() is not None or threads.refuses() is not None, reason="no kernels on this machine"
)


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVSCOPE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def data(shape: tuple[int, ...], kernel: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = shape, (shape[1], 1, *kernel), (shape[1],)
    return tuple(torch.randn(each, generator=generator) for each in shapes)  # type: ignore[return-value]


def right(problem: Problem, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    (top, bottom), (left, right_) = problem.padding
    x = F.pad(x.double(), (left, right_, top, bottom))
    arguments = problem.stride, 0, problem.dilation, problem.groups
    return F.conv2d(x, weight.double(), bias.double(), *arguments)


CASES = [
    # shape of x, kernel, stride, padding, dilation
    ((2, 20, 13, 17), (3, 3), 1, 1, 1),
    ((1, 32, 15, 30), (7, 7), 1, "same", 1),
    ((1, 16, 20, 40), (5, 11), (2, 3), (2, 5), 1),
    ((3, 5, 12, 9), (4, 2), 1, ((0, 3), (5, 1)), (2, 3)),
    ((1, 2, 1, 1), (3, 3), 1, 1, 1),
    ((1, 17, 4, 33), (1, 1), 1, 0, 1),
    ((1, 18, 3, 3), (1, 2), 1, 9, 1),
    ((1, 16, 130, 130), (9, 9), 1, 4, 1),  # several bands
    ((0, 16, 9, 9), (3, 3), 1, 1, 1),
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_it_is_the_convolution(case: tuple[Any, ...], width: int) -> None:
    shape, kernel, *arguments = case
    x, weight, bias = data(shape, kernel)
    problem = Problem.of(x, weight, *arguments, groups=shape[1])
    wanted = right(problem, x, weight, bias)
    with host.pretend(host.narrowed(width)):
        found = depthwise.prepare(problem, weight, bias)(x)
        relu = depthwise.prepare(problem, weight, after=depthwise.RELU)(
            x.contiguous(memory_format=torch.channels_last)
        )
    assert found.is_contiguous()
    assert relu.is_contiguous(memory_format=torch.channels_last)
    scale = max(1.0, wanted.abs().max().item()) if wanted.numel() else 1.0
    torch.testing.assert_close(found.double(), wanted, atol=2e-6 * scale, rtol=0)
    torch.testing.assert_close(
        relu.double(), right(problem, x, weight, 0 * bias).relu(), atol=2e-6 * scale, rtol=0
    )


def test_a_nan_stays_where_torch_leaves_it() -> None:
    x, weight, bias = data((1, 20, 14, 15), (3, 3))
    x[0, 7, 5, 5], x[0, 2, 0, 0] = float("nan"), float("inf")
    problem = Problem.of(x, weight, 1, 1, 1, 20)
    found = depthwise.prepare(problem, weight, bias)(x)
    wanted = F.conv2d(x, weight, bias, 1, 1, 1, 20)
    torch.testing.assert_close(found, wanted, equal_nan=True, rtol=1e-5, atol=1e-5)


def test_threads_and_memory() -> None:
    x, weight, _ = data((2, 20, 30, 31), (5, 5))
    problem = Problem.of(x, weight, 1, 2, 1, 20)
    kernel = depthwise.prepare(problem, weight)
    wanted, before = kernel(x), torch.get_num_threads()
    try:
        for count in (2, 5):
            torch.set_num_threads(count)
            assert torch.equal(kernel(x), wanted)
            assert workspace.held() >= kernel.workspace
    finally:
        torch.set_num_threads(before)
    lanes = host.current().width
    assert kernel.bytes == 4 * 26 * -(-20 // lanes) * lanes


def test_what_it_refuses() -> None:
    x, weight, _ = data((1, 4, 9, 9), (3, 3))
    problem = Problem.of(x, weight, groups=4)
    assert depthwise.refuses(problem) is None
    dense = Problem(1, 4, 8, (9, 9), (3, 3), groups=4)
    assert depthwise.refuses(dense) == "this machine code is for one output channel for each input channel"
    double = Problem.of(x.double(), weight.double(), groups=4)
    assert depthwise.refuses(double) == "this machine code is for float32 on the CPU, not float64 on cpu"
    with pytest.raises(
        RequestError, match="no depthwise kernel can be built: this machine code is for float32"
    ):
        depthwise.prepare(double, weight)
    with host.pretend(host.narrowed(0)):
        assert "neither AVX-512 nor AVX2" in (depthwise.refuses(problem) or "")
    kernel = depthwise.prepare(problem, weight)
    with pytest.raises(
        RequestError, match=r"x is float32 \[1, 4, 9, 8\] on cpu; this kernel was prepared for"
    ):
        kernel(x[..., :8])
