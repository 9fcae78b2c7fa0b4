"""Convolution of pictures in machine code and its gradient against float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from convscope.algorithms.kernels import few_channels, host, threads
from convscope.algorithms.problem import Problem
from convscope.errors import RequestError

WIDTHS = [width for width in (16, 8) if width <= host.detect().width]
pytestmark = pytest.mark.skipif(
    host.detect().refuses() is not None or threads.refuses() is not None, reason="no kernels on this machine"
)
LAST = torch.channels_last


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVSCOPE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def some(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


CASES = [
    # shape of x, output channels, kernel, stride, padding
    ((2, 3, 13, 17), 20, (3, 3), 1, 1),
    ((1, 3, 15, 30), 32, (3, 3), 2, ((0, 1), (0, 1))),
    ((1, 1, 20, 40), 8, (5, 3), (2, 3), (2, 5)),
    ((3, 4, 12, 9), 5, (2, 2), 1, ((0, 3), (5, 1))),
    ((1, 2, 1, 1), 3, (3, 3), 1, 1),
    ((2, 2, 9, 8), 5, (2, 3), (3, 4), 0),  # some inputs meet no tap
    ((1, 1, 70, 66), 33, (5, 5), 2, ((1, 2), (1, 2))),
    ((9, 3, 40, 12), 7, (1, 1), 3, 0),
    ((0, 3, 9, 9), 4, (3, 3), 1, 1),
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_it_is_the_convolution_and_its_gradient(case: tuple[Any, ...], width: int) -> None:
    shape, out, kernel, stride, padding = case
    x, weight, bias = some(shape, (out, shape[1], *kernel), (out,))
    problem = Problem.of(x, weight, stride, padding)
    (top, bottom), (left, right) = problem.padding
    exact = x.double().requires_grad_()
    wanted = F.conv2d(
        F.pad(exact, (left, right, top, bottom)), weight.double(), bias.double(), problem.stride
    )
    of_y = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1))
    (slope,) = torch.autograd.grad(wanted, exact, of_y.double())
    with host.pretend(host.narrowed(width)):
        conv = few_channels.prepare(problem, weight, bias)
        y, found = conv(x.contiguous(memory_format=LAST)), conv.gradient(of_y)
    assert y.is_contiguous(memory_format=LAST)
    assert found.is_contiguous(memory_format=LAST)
    torch.testing.assert_close(y.double(), wanted, atol=3e-5, rtol=0)
    torch.testing.assert_close(found.double(), slope, atol=3e-5, rtol=0)


@pytest.mark.parametrize("few", [1, 3])
def test_the_gradient_writes_its_output_and_nothing_else(few: int) -> None:
    x, weight, of_y = some((2, few, 7, 5), (6, few, 3, 3), (2, 6, 4, 3))
    conv = few_channels.prepare(Problem.of(x, weight, 2, 1), weight)
    room = torch.full((x.numel() + 64,), -7.0)
    result = room[32 : 32 + x.numel()]
    of_y = of_y.contiguous(memory_format=LAST)
    conv._run(conv._back, [of_y, conv._turned, result], conv._shape.private(True))
    assert torch.equal(result.view(2, 7, 5, few).movedim(-1, 1), conv.gradient(of_y))
    assert (room[:32] == -7).all()
    assert (room[-32:] == -7).all()


def test_any_number_of_threads_gives_the_same_bits() -> None:
    x, weight = some((3, 3, 40, 24), (20, 3, 3, 3))
    x = x.contiguous(memory_format=LAST)
    found, before = [], torch.get_num_threads()
    try:
        for count in (1, 2, 7):
            torch.set_num_threads(count)
            conv = few_channels.prepare(Problem.of(x, weight, 2, 1), weight)
            found.append((conv(x), conv.gradient(conv(x))))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, found[0], strict=True))


def test_what_it_refuses() -> None:
    x, weight = some((1, 3, 9, 9), (4, 3, 3, 3))
    assert few_channels.refuses(Problem.of(x, weight)) is None
    assert "for float32 on the CPU" in (few_channels.refuses(Problem.of(x.double(), weight.double())) or "")
    for wrong in (
        Problem.of(x, weight, dilation=2),
        Problem.of(torch.ones(1, 5, 9, 9), torch.ones(4, 5, 3, 3)),
    ):
        assert "at most 4 channels, without groups and dilation" in (few_channels.refuses(wrong) or "")
    large = torch.ones(4, 3, 9, 9)
    with pytest.raises(RequestError, match="no kernel for few channels can be built: .*numbers a channel"):
        few_channels.prepare(Problem.of(x, large), large)
    with host.pretend(host.narrowed(0)):
        assert "neither AVX-512 nor AVX2" in (few_channels.refuses(Problem.of(x, weight)) or "")
