"""The gradient of clipped depthwise convolutions in machine code, alone and behind an expansion, against float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from convscope.algorithms.kernels import depthwise, depthwise_gradient, expanded, host, threads
from convscope.algorithms.kernels.depthwise import Bounds
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


CASES = [
    # shape of the depthwise convolution's input, kernel, stride, padding
    ((2, 20, 13, 17), (3, 3), 1, 1),
    ((1, 32, 15, 30), (7, 7), 1, "same"),
    ((1, 16, 20, 40), (5, 11), (2, 3), (2, 5)),
    ((3, 5, 12, 9), (4, 2), 1, ((0, 3), (5, 1))),
    ((1, 2, 1, 1), (3, 3), 1, 1),
    ((1, 18, 3, 3), (1, 2), 1, 9),
    ((2, 16, 9, 9), (3, 3), 2, ((0, 1), (0, 1))),
    ((2, 18, 9, 8), (2, 3), (3, 4), 0),  # some inputs meet no tap
    ((1, 16, 70, 66), (5, 5), 2, ((1, 2), (1, 2))),  # several bands
]
CLIPS: list[tuple[Bounds | None, Bounds | None]] = [
    (None, None),
    ((-1.0, 1.5), (-2.0, 2.0)),
    (depthwise.RELU, None),
]


def clip(x: Tensor, bounds: Bounds | None) -> Tensor:
    return x if bounds is None else x.clamp(*bounds)


def some(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def right(problem: Problem, x: Tensor, weight: Tensor, bias: Tensor, clips: Any) -> Tensor:
    """In float64, by torch; differentiable."""
    (top, bottom), (left, right_) = problem.padding
    padded = F.pad(clip(x, clips[0]), (left, right_, top, bottom))
    y = F.conv2d(padded, weight.double(), bias.double(), problem.stride, 0, 1, problem.groups)
    return clip(y, clips[1])


@pytest.mark.parametrize("clips", CLIPS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_clips_and_gradient_are_torchs(case: Any, clips: Any, width: int) -> None:
    shape, kernel, stride, padding = case
    x, weight, bias = some(shape, (shape[1], 1, *kernel), (shape[1],))
    problem = Problem.of(x, weight, stride, padding, 1, shape[1])
    exact = x.double().requires_grad_()
    wanted = right(problem, exact, weight, bias, clips)
    of_y = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1))
    (slope,) = torch.autograd.grad(wanted, exact, of_y.double())
    before, after = clips
    x = x.contiguous(memory_format=LAST)
    with host.pretend(host.narrowed(width)):
        y = depthwise.prepare(problem, weight, bias, before=before, after=after)(x)
        found = depthwise_gradient.prepare(problem, weight, before=before, after=after)(of_y, y, x)
    assert found.is_contiguous(memory_format=LAST)
    torch.testing.assert_close(y.double(), wanted, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.double(), slope, atol=1e-4, rtol=0)


@pytest.mark.parametrize("clips", CLIPS[:2], ids=str)
@pytest.mark.parametrize(("case", "inner"), list(zip(CASES, (7, 16, 24, 1, 3, 20, 5, 32, 17), strict=True)))
@pytest.mark.parametrize("width", WIDTHS)
def test_behind_an_expansion(case: Any, inner: int, clips: Any, width: int) -> None:
    shape, kernel, stride, padding = case
    x, expand, given, weight, bias = some(
        (shape[0], inner, *shape[2:]),
        (shape[1], inner, 1, 1),
        (shape[1],),
        (shape[1], 1, *kernel),
        (shape[1],),
    )
    expand = expand / inner**0.5
    problem = Problem.of(torch.empty(shape), weight, stride, padding, 1, shape[1])
    exact = x.double().requires_grad_()
    wanted = right(problem, F.conv2d(exact, expand.double(), given.double()), weight, bias, clips)
    of_y = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1))
    (slope,) = torch.autograd.grad(wanted, exact, of_y.double())
    x = x.contiguous(memory_format=LAST)
    with host.pretend(host.narrowed(width)):
        kernel_ = expanded.prepare(problem, (expand, given), weight, bias, *clips)
        y = kernel_(x)
        found = kernel_.gradient(of_y, y, x)
    torch.testing.assert_close(y.double(), wanted, atol=2e-4, rtol=0)
    torch.testing.assert_close(found.double(), slope, atol=2e-4, rtol=0)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    x, expand, weight = some((3, 6, 20, 24), (20, 6, 1, 1), (20, 1, 3, 3))
    x = x.contiguous(memory_format=LAST)
    problem = Problem.of(torch.empty(3, 20, 20, 24), weight, 2, 1, 1, 20)
    wide = F.conv2d(x, expand).contiguous(memory_format=LAST)
    found, before = [], torch.get_num_threads()
    try:
        for count in (1, 2, 7):
            torch.set_num_threads(count)
            both = expanded.prepare(problem, (expand, None), weight, None, (0.0, 2.0), (0.0, 2.0))
            y = both(x)
            alone = depthwise_gradient.prepare(problem, weight, before=(0.0, 2.0), after=(0.0, 2.0))
            found.append((y, both.gradient(y, y, x), alone(y, y, wide)))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, found[0], strict=True))


def test_a_nan_stays_in_its_image() -> None:
    x, expand, weight = some((3, 6, 12, 12), (20, 6, 1, 1), (20, 1, 3, 3))
    x[1] = float("nan")
    x = x.contiguous(memory_format=LAST)
    problem = Problem.of(torch.empty(3, 20, 12, 12), weight, 1, 1, 1, 20)
    kernel = expanded.prepare(problem, (expand, None), weight, None, (0.0, 6.0), (0.0, 6.0))
    y = kernel(x)
    back = kernel.gradient(y, y, x)
    assert y[[0, 2]].isfinite().all()
    assert y[1].isnan().all()
    assert back[[0, 2]].isfinite().all()


def test_what_they_refuse() -> None:
    x, weight = some((1, 4, 9, 9), (4, 1, 3, 3))
    problem = Problem.of(x, weight, groups=4)
    assert depthwise_gradient.refuses(problem) is None
    assert expanded.refuses(problem, 4) is None
    dilated = Problem.of(x, weight, dilation=2, groups=4)
    assert depthwise_gradient.refuses(dilated) == "this machine code is for kernels without dilation"
    with pytest.raises(RequestError, match="no depthwise gradient can be built: this machine code is for"):
        depthwise_gradient.prepare(dilated, weight)
    assert "expansions of at most" in (expanded.refuses(problem, 1000) or "")
    with pytest.raises(RequestError, match="no expanded depthwise kernel can be built: .*without dilation"):
        expanded.prepare(dilated, (torch.ones(4, 2, 1, 1), None), weight, None, None, None)
    double = Problem.of(x.double(), weight.double(), groups=4)
    assert "for float32 on the CPU" in (depthwise_gradient.refuses(double) or "")


def test_an_empty_batch() -> None:
    weight = torch.ones(4, 1, 3, 3)
    problem = Problem.of(torch.empty(0, 4, 9, 9), weight, groups=4)
    kernel = expanded.prepare(problem, (torch.ones(4, 2, 1, 1), None), weight, None, None, None)
    x = torch.empty(0, 2, 9, 9)
    y = kernel(x)
    assert y.shape == (0, 4, 7, 7)
    assert kernel.gradient(y, y, x).shape == x.shape
    alone = depthwise_gradient.prepare(problem, weight)
    assert alone(y, y, torch.empty(0, 4, 9, 9)).shape == (0, 4, 9, 9)
