"""Problems: resolved as torch resolves them; names of algorithms."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import assume, given
from torch.nn import functional as F

from convscope.algorithms import ALGORITHMS
from convscope.algorithms.base import algorithm, in_format, last_format, resolve
from convscope.algorithms.problem import Problem, flat
from convscope.errors import RequestError, UnknownName


def _pair(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


@given(_pair(1, 20), _pair(1, 5), _pair(1, 3), _pair(1, 3), _pair(0, 4))
def test_shapes_are_those_of_torch(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    padding: tuple[int, int],
) -> None:
    x, weight = torch.empty(2, 4, *size, device="meta"), torch.empty(6, 2, *kernel, device="meta")
    assume(all(s + 2 * p > d * (k - 1) for s, p, d, k in zip(size, padding, dilation, kernel, strict=True)))
    problem = Problem.of(x, weight, stride, padding, dilation, 2)
    assert problem.output_shape == tuple(F.conv2d(x, weight, None, stride, padding, dilation, 2).shape)
    assert problem.input_shape == tuple(x.shape)
    assert problem.weight_shape == tuple(weight.shape)
    assert problem.macs == 2 * 6 * problem.output_size[0] * problem.output_size[1] * 2 * kernel[0] * kernel[1]


def test_same_pads_the_end_by_one_more() -> None:
    x = torch.empty(1, 1, 9, 9, device="meta")
    assert Problem.of(x, torch.empty(1, 1, 4, 3, device="meta"), padding="same").padding == ((1, 2), (1, 1))
    dilated = Problem.of(x, torch.empty(1, 1, 4, 3, device="meta"), padding="same", dilation=(1, 3))
    assert dilated.padding == ((1, 2), (3, 3))
    assert dilated.output_size == (9, 9)


def test_lists_and_single_numbers_are_the_same_problem() -> None:
    x, weight = torch.empty(1, 2, 9, 9), torch.empty(2, 1, 3, 3)
    one = Problem.of(x, weight, 2, 1, 1, 2)
    assert one == Problem.of(x, weight, [2], (1, 1), [1, 1], 2)
    assert one == Problem.of(x, weight, (2, 2), [[1, 1], [1, 1]], 1, 2)
    assert one.depthwise
    assert not Problem.of(x[:, :1], weight).depthwise


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 2), st.integers(0, 9), st.integers(0, 9))
def test_the_transposed_problem_is_the_gradient_of_the_input(
    high: int, wide: int, dilation: int, top: int, left: int
) -> None:
    reach = dilation * (high - 1), dilation * (wide - 1)
    assume(top <= reach[0] and left <= reach[1])
    problem = Problem(
        1, 2, 4, (9, 12), (high, wide), (1, 1), ((top, reach[0]), (left, 0)), (dilation,) * 2, 2
    )
    back = problem.transposed()
    assert back.output_size == problem.size
    assert (back.in_channels, back.out_channels, back.size) == (4, 2, problem.output_size)
    assert back.transposed() == problem


def test_what_has_no_transposed_problem() -> None:
    with pytest.raises(ValueError, match=r"stride \(2, 2\) is no plain convolution"):
        Problem(1, 1, 1, (9, 9), (3, 3), (2, 2)).transposed()
    with pytest.raises(ValueError, match="wider than the kernel reaches"):
        Problem(1, 1, 1, (9, 9), (3, 3), padding=((3, 0), (0, 0))).transposed()


def test_one_dimension_becomes_two() -> None:
    assert flat("stride", 2, 1) == flat("stride", [2], 1) == (1, 2)
    assert flat("padding", ((1, 2),), 0) == ((0, 0), (1, 2))
    assert flat("padding", "same", 0) == "same"
    with pytest.raises(
        RuntimeError, match=r"expected stride to be a single integer value or a list of 1 values"
    ):
        flat("stride", (1, 2), 1)


def test_tensors_on_different_devices_are_refused() -> None:
    class Elsewhere(torch.Tensor):
        device = torch.device("cuda")  # type: ignore[assignment]

    x, weight = torch.empty(1, 1, 4, 4), torch.empty(1, 1, 3, 3).as_subclass(Elsewhere)
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        Problem.of(x, weight)


# ---------------------------------------------------------------- names


def test_the_registry_knows_its_algorithms() -> None:
    assert list(ALGORITHMS) == ["direct", "im2col", "fft", "winograd"]
    assert len(ALGORITHMS) == 4
    assert "auto" not in ALGORITHMS
    for name, found in ALGORITHMS.items():
        assert found.name == name
        assert ALGORITHMS[name] is found


def test_names_are_resolved() -> None:
    problem = Problem(1, 8, 8, (32, 32), (3, 3))
    assert resolve("winograd", problem)[1] == ALGORITHMS["winograd"].variants(problem)[0] == "F(4,3)"
    assert resolve("winograd:F(2,3)", problem)[1] == "F(2,3)"
    assert algorithm("fft:whole")[1] == "whole"
    with pytest.raises(
        UnknownName, match=r"no algorithm 'drect'; did you mean 'direct'\?; known are direct, im2col"
    ):
        algorithm("drect")
    with pytest.raises(RequestError, match="algorithm='winograd' cannot serve this convolution: a kernel of"):
        resolve("winograd", Problem(1, 8, 8, (32, 32), (1, 1)))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_no_variant_of_an_algorithm_that_refuses_and_none_that_is_refused(name: str) -> None:
    for kernel in ((1, 1), (3, 3), (2, 7), (11, 11), (31, 31)):
        for stride, dilation in (((1, 1), (1, 1)), ((2, 2), (1, 1)), ((1, 1), (2, 3)), ((2, 2), (2, 2))):
            for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.int64):
                problem = Problem(1, 4, 4, (80, 80), kernel, stride, ((0, 0), (0, 0)), dilation, 2, dtype)
                found = ALGORITHMS[name]
                variants = found.variants(problem)
                assert bool(variants) == (found.refuses(problem) is None)
                assert all(found.refuses(problem, variant) is None for variant in variants)
                assert found.refuses(problem, "no such") is not None


def test_layouts_are_those_of_torch() -> None:
    last = torch.channels_last
    for shape in ((2, 3, 4, 5), (2, 1, 4, 5), (2, 3, 1, 1)):
        x = torch.zeros(shape)
        assert not last_format(x)
        assert last_format(x.to(memory_format=last)) == (min(shape[1:]) > 1)
        assert in_format(x, True).is_contiguous(memory_format=last)
