"""Costs, counted by doing what they count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from convscope.algorithms import ALGORITHMS, Cost, cost
from convscope.algorithms.cook_toom import Matrix, Surd, matrices
from convscope.algorithms.kernels import host, winograd
from convscope.algorithms.problem import Problem
from convscope.algorithms.winograd_figures import columns, rows
from convscope.errors import RequestError

NAMES = tuple(ALGORITHMS)


class _Counted:
    """A number that counts what is done to it."""

    multiplications = additions = 0

    def __init__(self, value: Surd) -> None:
        self.value = value

    def times(self, factor: Surd) -> _Counted:
        if abs(float(factor)) != 1:
            _Counted.multiplications += 1
        return _Counted(self.value * factor)

    def __add__(self, other: _Counted) -> _Counted:
        _Counted.additions += 1
        return _Counted(self.value + other.value)

    def __sub__(self, other: _Counted) -> _Counted:
        _Counted.additions += 1
        return _Counted(self.value - other.value)


def _sum(row: Sequence[Surd], values: Sequence[Any]) -> _Counted:
    """The sum of products, without those by 0."""
    first, *rest = (value.times(factor) for factor, value in zip(row, values, strict=True) if factor)
    for term in rest:
        first = first + term
    return first


def _by_rows(matrix: Matrix, points: Sequence[Surd], values: list[_Counted]) -> list[_Counted]:
    """B^T d where all points but 0 are pairs p, -p, whose rows share their even and their odd half; else row by row."""
    paired = all(points[j] == -points[j + 1] for j in range(1, len(points) - 1, 2)) and len(points) % 2
    found: list[_Counted] = []
    while len(found) < len(matrix):
        j = len(found)
        if paired and 0 < j < len(points):
            even, odd = (_sum(matrix[j][k::2], values[k::2]) for k in (0, 1))
            alike = matrix[j][0::2] == matrix[j + 1][0::2]
            found += [even + odd, even - odd if alike else odd - even]
        else:
            found.append(_sum(matrix[j], values))
    return found


SIZES = [(2, 3), (3, 3), (4, 3), (6, 3), (2, 5), (4, 5), (1, 2), (5, 2)]


@pytest.mark.parametrize("size", SIZES)
def test_operations_of_an_input_transform_are_those_done(size: tuple[int, int]) -> None:
    found = matrices(*size)
    values = [_Counted(Surd(Fraction(7 * i + 1, 3))) for i in range(found.n)]
    _Counted.multiplications = _Counted.additions = 0
    done = _by_rows(found.input, found.points, values)
    assert (_Counted.multiplications, _Counted.additions) == rows(found.input, found.points)
    for row, result in zip(found.input, done, strict=True):
        assert result.value == _exactly(row, values)


@pytest.mark.parametrize("size", SIZES)
def test_operations_of_an_output_transform_are_those_done(size: tuple[int, int]) -> None:
    """Sums and differences of the pairs first; even rows of A^T take the sums, odd ones the differences."""
    found = matrices(*size)
    values = [_Counted(Surd(Fraction(5 * i + 2, 3))) for i in range(found.n)]
    pairs = [j for j in range(1, found.n - 2) if found.points[j] == -found.points[j + 1]]
    _Counted.multiplications = _Counted.additions = 0
    halves = {
        j: (values[j] + values[j + 1], values[j] - values[j + 1] if found.m > 1 else None) for j in pairs
    }
    for i, row in enumerate(found.output):
        kept = [j for j in range(found.n) if j - 1 not in pairs]
        result = _sum([row[j] for j in kept], [halves[j][i % 2] if j in halves else values[j] for j in kept])
        assert result.value == _exactly(row, values)
    assert (_Counted.multiplications, _Counted.additions) == columns(found.output, found.points)


def _exactly(row: Sequence[Surd], values: Sequence[_Counted]) -> Surd:
    total = Surd(Fraction(0))
    for factor, each in zip(row, values, strict=True):
        total = total + factor * each.value
    return total


def test_the_published_operations_of_f23() -> None:
    """Lavin and Gray 2015, section 4.1: 32 additions for the data of a 4x4 tile, 24 for the inverse, 16 products."""
    found = cost((1, 1, 4, 4), (1, 1, 3, 3), algorithm="winograd:F(2,3)")
    assert (found.multiplications, found.additions) == (16, 32 + 24)


def test_direct_costs_by_hand() -> None:
    """2 images of 3 channels to 4 x 3 x 2 outputs, 27 products each, stride 2."""
    found = cost((2, 3, 7, 6), (4, 3, 3, 3), stride=2, algorithm="direct:channels_last")
    outputs = 2 * 4 * 3 * 2
    assert found == Cost(outputs * 27, outputs * 26, 4 * (2 * 3 * 42 + 4 * 27), 4 * outputs, 0)
    assert found.operations == outputs * 53
    assert found.bytes == found.bytes_read + found.bytes_written
    assert cost((7, 6), (4, 7, 3)) == cost((1, 7, 6), (4, 7, 3)) == cost((1, 7, 1, 6), (4, 7, 1, 3))
    double = cost((2, 3, 7, 6), (4, 3, 3, 3), stride=2, dtype=torch.float64)
    assert (double.bytes, double.operations) == (2 * found.bytes, found.operations)
    both = cost((2, 3, 7, 6), (4, 3, 3, 3), stride=2, dtype=torch.complex64)
    assert (both.multiplications, both.additions) == (4 * outputs * 27, 2 * outputs * 27 + 2 * outputs * 26)
    assert set(found.to_dict()) == {
        "multiplications",
        "additions",
        "bytes_read",
        "bytes_written",
        "workspace",
    }


class _Copies(TorchDispatchMode):
    """Bytes of the copies that are made."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.clone.default, torch.ops.aten._unsafe_view.default):
            self.bytes += result.numel() * result.element_size() * (func == torch.ops.aten.clone.default)
        return result


@pytest.mark.parametrize("variant", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("kernel", "stride"), [((3, 3), 1), ((2, 5), 2), ((1, 1), 1)])
def test_the_columns_of_im2col_are_what_is_copied(variant: str, kernel: tuple[int, int], stride: int) -> None:
    x, weight = torch.randn(2, 6, 12, 13), torch.randn(4, 6, *kernel)
    if variant == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    problem = Problem.of(x, weight, stride)
    run = ALGORITHMS["im2col"].prepare(problem, weight, None, variant)
    with _Copies() as copies:
        run(x)
    outputs = 4 * math.prod(problem.output_shape)  # brought back into the layout of x, where need be
    workspace = cost(x, weight, stride, algorithm=f"im2col:{variant}").workspace
    assert copies.bytes in (workspace, workspace + outputs)
    assert (workspace == 0) == (kernel == (1, 1))


@pytest.mark.parametrize("name", NAMES)
def test_costs_grow_with_the_work(name: str) -> None:
    for problem, more in (
        (Problem(1, 8, 8, (24, 24), (3, 3)), Problem(2, 8, 8, (24, 24), (3, 3))),
        (Problem(1, 8, 8, (24, 24), (3, 3)), Problem(1, 8, 16, (24, 24), (3, 3))),
        (Problem(1, 8, 8, (24, 24), (3, 3), groups=2), Problem(1, 8, 8, (24, 24), (3, 3))),
        (Problem(1, 8, 8, (24, 24), (3, 3)), Problem(1, 8, 8, (48, 24), (3, 3))),
    ):
        variant = ALGORITHMS[name].variants(problem)[0]
        less, found = (ALGORITHMS[name].cost(each, variant) for each in (problem, more))
        assert less.operations < found.operations
        assert less.bytes <= found.bytes


def test_costs_of_what_is_refused() -> None:
    with pytest.raises(RequestError, match="cannot serve"):
        cost((1, 1, 4, 4), (1, 1, 1, 1), algorithm="winograd")
    with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
        cost((1, 1, 4, 4), (1, 1, 5, 5))


def test_the_workspace_of_winograd_is_that_of_what_runs() -> None:
    problem = Problem(1, 32, 32, (24, 24), (3, 3))
    with host.pretend(host.narrowed(0)):
        whole = ALGORITHMS["winograd"].cost(problem, "F(4,3)").workspace
    assert (
        whole == 4 * 36 * (32 + 32) * 6 * 6
    )  # all spectra and products of 22 x 22 outputs in tiles of 4 x 4
    if winograd.refuses(problem, 4) is None:
        kernel = winograd.prepare(problem, torch.zeros(32, 32, 3, 3), tile=4)
        assert ALGORITHMS["winograd"].cost(problem, "F(4,3)").workspace == kernel.workspace
