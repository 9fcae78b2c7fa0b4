"""Errors: what is expected against what is measured, the bounds, and the accuracy that is promised."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from convscope.algorithms import ALGORITHMS, error_bound
from convscope.algorithms.error import gamma, largest, unit
from convscope.algorithms.kernels import host
from convscope.algorithms.problem import Problem

NAMES = tuple(ALGORITHMS)


def _measured(problem: Problem, name: str, variant: str, seed: int) -> float:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(problem.input_shape, generator=draw).to(problem.dtype)
    weight = torch.randn(problem.weight_shape, generator=draw).to(problem.dtype)
    exact = _exact(problem, x, weight)
    y = ALGORITHMS[name].run(problem, x, weight, None, variant).double()
    return ((y - exact).abs().max() / exact.abs().max()).item()


def _exact(problem: Problem, x: Tensor, weight: Tensor) -> Tensor:
    (top, bottom), (left, right) = problem.padding
    x = F.pad(x.double(), (left, right, top, bottom))
    return F.conv2d(x, weight.double(), None, problem.stride, 0, problem.dilation, problem.groups)


PROBLEMS = [
    Problem(1, 8, 32, (28, 28), (3, 3), padding=((1, 1), (1, 1))),
    Problem(1, 96, 32, (20, 20), (3, 3)),
    Problem(1, 32, 32, (24, 24), (5, 5)),
    Problem(1, 16, 16, (24, 24), (7, 7), (2, 2)),
    Problem(1, 16, 16, (24, 24), (3, 3), dilation=(2, 2), groups=2),
    Problem(1, 64, 16, (1, 128), (1, 3)),
    Problem(1, 32, 16, (20, 20), (3, 3), dtype=torch.bfloat16),
    Problem(1, 32, 16, (20, 20), (3, 3), dtype=torch.float16),
]


@pytest.mark.parametrize(
    "problem", PROBLEMS, ids=lambda p: f"{p.in_channels}x{p.kernel}s{p.stride}d{p.dilation}"
)
@pytest.mark.parametrize("name", NAMES)
def test_expected_errors_are_those_measured(name: str, problem: Problem) -> None:
    found = ALGORITHMS[name]
    for variant in found.variants(problem):
        bound = found.error(problem, variant)
        measured = max(_measured(problem, name, variant, seed) for seed in range(2))
        assert bound.expected / 5 < measured < 3 * bound.expected, variant
        assert measured < bound.worst
        assert bound.expected < bound.worst


@pytest.mark.parametrize("variant", ["F(2,3)", "F(4,3)", "F(6,3)", "F(2,5)", "F(4,5)"])
def test_torchs_operations_are_as_exact_as_machine_code(variant: str) -> None:
    taps = int(variant[-2])
    problem = Problem(1, 32, 16, (24, 24), (taps, taps))
    with host.pretend(host.narrowed(0)):
        composed = _measured(problem, "winograd", variant, 0)
    expected = ALGORITHMS["winograd"].error(problem, variant).expected
    assert expected / 5 < composed < 3 * expected


@pytest.mark.parametrize(
    ("algorithm", "limit"),
    [
        ("winograd:F(2,3)", 2e-6),
        ("winograd:F(4,3)", 8e-6),
        ("winograd:F(6,3)", 8e-5),
        ("fft:whole", 2e-6),
        ("fft", 2e-6),
    ],
)
@pytest.mark.parametrize("channels", [16, 512])
def test_the_accuracy_promised(algorithm: str, limit: float, channels: int) -> None:
    name, _, variant = algorithm.partition(":")
    problem = Problem(1, channels, 32, (28, 28), (3, 3), padding=((1, 1), (1, 1)))
    variant = variant or ALGORITHMS[name].variants(problem)[0]
    assert _measured(problem, name, variant, channels) < limit
    assert ALGORITHMS[name].error(problem, variant).expected < limit


def test_whole_numbers_have_no_error() -> None:
    found = error_bound((1, 3, 8, 8), (4, 3, 3, 3), dtype=torch.int64)
    assert (found.worst, found.expected) == (0.0, 0.0)
    assert unit(torch.int64) == 0.0
    assert unit(torch.float64) == 2.0**-53


def test_bounds_of_tensors_shapes_and_one_dimension_agree() -> None:
    x, weight = torch.zeros(2, 3, 20), torch.zeros(4, 3, 3)
    for name in NAMES:
        of_tensors = error_bound(x, weight, padding=1, algorithm=name)
        assert of_tensors == error_bound((2, 3, 20), (4, 3, 3), padding=1, algorithm=name)
    assert set(error_bound(x, weight).to_dict()) == {"worst", "expected"}


def test_sums_too_long_for_a_bound_have_none() -> None:
    assert gamma(2.0**25, 2.0**-24) == math.inf
    assert gamma(3, 2.0**-24) == pytest.approx(3 * 2.0**-24, rel=1e-6)


def test_the_largest_of_many_normal_numbers() -> None:
    draws = torch.randn(2000, 1000, generator=torch.Generator().manual_seed(0))
    assert largest(1000) == pytest.approx(draws.abs().amax(1).median().item(), rel=0.02)
    assert largest(1) == pytest.approx(0.6745, rel=1e-3)
