"""Gradients: of every algorithm by differences in float64, twice; of machine code against torch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from convscope.algorithms import ALGORITHMS, conv1d, conv2d
from convscope.algorithms.gradient import by_torch, plain
from convscope.algorithms.problem import Problem

NAMES = tuple(ALGORITHMS)
GEOMETRIES: list[dict[str, Any]] = [
    {"padding": 1},
    {"stride": 2, "padding": (2, 1)},
    {"dilation": 2, "padding": "same"},
    {"groups": 2, "padding": ((0, 2), (1, 0))},
]


def _draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_agree_with_differences(name: str, geometry: dict[str, Any]) -> None:
    kernel = 5 if "stride" in geometry else 3
    x, weight, bias = _draw(1, 2, 5, 6), _draw(2, 2 // geometry.get("groups", 1), kernel, kernel), _draw(2)

    def run(*tensors: Tensor) -> Tensor:
        return conv2d(*tensors, **geometry, algorithm=name)

    assert gradcheck(run, (x, weight, bias))
    assert gradgradcheck(run, (x, weight, bias), fast_mode=True)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_in_one_dimension(name: str) -> None:
    x, weight, bias = _draw(2, 2, 9), _draw(2, 2, 3), _draw(2)
    assert gradcheck(lambda *tensors: conv1d(*tensors, padding=1, algorithm=name), (x, weight, bias))


def _gradients(y: Tensor, *wanted: Tensor) -> list[Tensor]:
    seed = _draw(*y.shape, seed=5).detach().to(y.dtype)
    return list(torch.autograd.grad(y, wanted, seed))


@pytest.mark.parametrize(
    "variant", ["winograd:F(2,3)", "winograd:F(4,3)", "winograd:F(6,3)", "fft", "im2col"]
)
@pytest.mark.parametrize("padding", [1, ((0, 3), (5, 1))], ids=str)
def test_single_precision_gradients_are_as_exact_as_outputs(variant: str, padding: Any) -> None:
    """In machine code where the machine has it; padding wider than the kernel reaches included."""
    x, weight, bias = (_draw(*s, dtype=torch.float32) for s in ((2, 24, 13, 14), (24, 24, 3, 3), (24,)))
    found = _gradients(conv2d(x, weight, bias, padding=padding, algorithm=variant), x, weight, bias)
    wide = [each.detach().double().requires_grad_() for each in (x, weight, bias)]
    exact = _gradients(conv2d(*wide, padding=padding, algorithm="direct"), *wide)
    for one, two in zip(found, exact, strict=True):
        assert one.shape == two.shape
        assert (one - two).abs().max() < 3e-5 * two.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_only_what_is_asked_for_gets_a_gradient(name: str) -> None:
    for chosen in ((True, False, False), (False, True, False), (False, False, True)):
        tensors = [_draw(*s, dtype=torch.float32) for s in ((1, 8, 9, 9), (8, 8, 3, 3), (8,))]
        tensors = [t if wanted else t.detach() for t, wanted in zip(tensors, chosen, strict=True)]
        conv2d(*tensors, algorithm=name).sum().backward()
        assert [t.grad is not None for t in tensors] == list(chosen)
    with torch.no_grad():
        assert not conv2d(*(t.requires_grad_() for t in tensors), algorithm=name).requires_grad


def test_second_derivatives_of_machine_code() -> None:
    """A gradient penalty: the gradient of the gradient's norm."""

    def penalty(dtype: torch.dtype, name: str) -> list[Tensor]:
        x, weight = _draw(1, 8, 10, 10, dtype=dtype), _draw(8, 8, 3, 3, dtype=dtype)
        y = conv2d(x, weight, padding=1, algorithm=name).square().sum()
        (slope,) = torch.autograd.grad(y, x, create_graph=True)
        return list(torch.autograd.grad(slope.square().sum(), (x, weight)))

    for one, two in zip(
        penalty(torch.float32, "winograd:F(4,3)"), penalty(torch.float64, "direct"), strict=True
    ):
        assert (one - two).abs().max() < 1e-4 * two.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_transforms_of_functions(name: str) -> None:
    x, weight = (
        _draw(3, 2, 4, 8, 8, dtype=torch.float32).detach(),
        _draw(6, 4, 3, 3, dtype=torch.float32).detach(),
    )

    def run(x: Tensor) -> Tensor:
        return conv2d(x, weight, padding=1, algorithm=name)

    wanted = torch.stack([F.conv2d(each, weight, padding=1) for each in x])
    assert torch.allclose(torch.func.vmap(run)(x), wanted, atol=1e-4)
    slope = torch.func.grad(lambda w: conv2d(x[0], w, padding=1, algorithm=name).square().sum())(weight)
    leaf = weight.clone().requires_grad_()
    F.conv2d(x[0], leaf, padding=1).square().sum().backward()
    assert torch.allclose(slope, leaf.grad, rtol=1e-4, atol=1e-2)  # type: ignore[arg-type]


def test_machine_code_reads_plain_tensors_only() -> None:
    class Marked(Tensor):
        pass

    x = torch.ones(1, 1, 4, 4)
    assert plain(x, torch.nn.Parameter(x), None)
    assert not plain(x.as_subclass(Marked))
    assert isinstance(conv2d(x.as_subclass(Marked), torch.ones(1, 1, 3, 3), algorithm="winograd"), Marked)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_torchs_gradients_with_any_padding(geometry: dict[str, Any]) -> None:
    groups = geometry.get("groups", 1)
    x, weight = _draw(2, 4, 9, 8), _draw(6, 4 // groups, 3, 3)
    problem = Problem.of(x, weight, **geometry)
    y = conv2d(x, weight, **geometry, algorithm="im2col")
    seed = _draw(*y.shape, seed=5).detach()
    found = by_torch(seed, x, weight, problem.stride, problem.padding, problem.dilation, groups)
    for one, two in zip(found, _gradients(y, x, weight), strict=True):
        assert torch.allclose(one, two)
