"""conv2d and conv1d by every algorithm against torch's, over the whole product of their arguments."""

from __future__ import annotations

import itertools
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.nn import functional as F

from convscope.algorithms import ALGORITHMS, conv1d, conv2d
from convscope.algorithms.problem import Problem
from convscope.errors import RequestError, UnknownName
from operators import database

NAMES = tuple(ALGORITHMS)
KERNELS = (*((k, k) for k in range(1, 12)), (3, 5), (4, 1))
LAST = torch.channels_last
BOUND = 1e-11  # float64, relative to the maximum

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")


def _draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    if not (dtype.is_floating_point or dtype.is_complex):
        return torch.randint(-4, 5, shape, generator=draw).to(dtype)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(shape, generator=draw, dtype=wide).to(dtype)


def _off(found: Tensor, wanted: Tensor) -> float:
    """The largest difference relative to the largest value."""
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    if not wanted.numel():
        return 0.0
    wide = torch.complex128 if wanted.dtype.is_complex else torch.float64
    difference = (found.to(wide) - wanted.to(wide)).abs().max()
    return float(difference / wanted.to(wide).abs().max().clamp_min(1e-300))


def _serves(name: str, x: Tensor, weight: Tensor, *arguments: Any) -> bool:
    return ALGORITHMS[name].refuses(Problem.of(x, weight, *arguments)) is None


# ---------------------------------------------------------------- the product of all arguments


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", NAMES)
def test_every_geometry_is_as_in_torch(name: str, kernel: tuple[int, int]) -> None:
    x, bias = _draw(2, 4, 12, 23), _draw(4, seed=1)
    served = 0
    for stride, dilation, groups, padding in itertools.product(
        (1, 2, (2, 3)), (1, 2), (1, 2, 4), (0, 1, (0, 2), "same", "valid", ((1, 3), (2, 0)))
    ):
        if padding == "same" and stride != 1:
            continue
        weight = _draw(4, 4 // groups, *kernel, seed=2)
        geometry = (stride, padding, dilation, groups)
        try:
            wanted = _reference(x, weight, bias, *geometry)
        except RuntimeError:
            with pytest.raises(RuntimeError, match="Calculated padded input size per channel"):
                conv2d(x, weight, bias, *geometry, algorithm=name)
            continue
        if not _serves(name, x, weight, *geometry):
            with pytest.raises(RequestError, match=f"algorithm='{name}' cannot serve"):
                conv2d(x, weight, bias, *geometry, algorithm=name)
            continue
        served += 1
        found = conv2d(x, weight, bias, *geometry, algorithm=name)
        assert _off(found, wanted) < _limit(name, Problem.of(x, weight, *geometry)), geometry
    assert served or (name, kernel) == ("winograd", (1, 1))


def _limit(name: str, problem: Problem, variant: str | None = None) -> float:
    """Five times what is expected, where that is more than the usual bound: Winograd's tiles of many points."""
    algorithm = ALGORITHMS[name]
    return max(BOUND, 5 * algorithm.error(problem, variant or algorithm.variants(problem)[0]).expected)


def _reference(x: Tensor, weight: Tensor, bias: Tensor, stride: Any, padding: Any, *more: Any) -> Tensor:
    if isinstance(padding, tuple) and isinstance(padding[0], tuple):
        (top, bottom), (left, right) = padding
        x, padding = F.pad(x, (left, right, top, bottom)), 0
    return F.conv2d(x, weight, bias, stride, padding, *more)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5, 8, 11])
@pytest.mark.parametrize("name", NAMES)
def test_every_geometry_of_one_dimension_is_as_in_torch(name: str, kernel: int) -> None:
    x, bias = _draw(2, 4, 29), _draw(6, seed=1)
    for stride, padding, dilation, groups in itertools.product(
        (1, 2, (3,)), (0, (2,), "same", "valid"), (1, [2]), (1, 2)
    ):
        weight = _draw(6, 4 // groups, kernel, seed=2)
        if (padding == "same" and stride != 1) or not _serves(
            name, *_flat(x, weight), (1, stride[0] if isinstance(stride, tuple) else stride), 9,
            (1, dilation[0] if isinstance(dilation, list) else dilation), groups,
        ):  # fmt: skip
            continue
        wanted = F.conv1d(x, weight, bias, stride, padding, dilation, groups)  # type: ignore[arg-type]
        found = conv1d(x, weight, bias, stride, padding, dilation, groups, algorithm=name)  # type: ignore[arg-type]
        assert _off(found, wanted) < BOUND, (stride, padding, dilation, groups)


def _flat(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return x.unsqueeze(-2), weight.unsqueeze(-2)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40)
@given(st.data())
def test_any_shape_is_as_in_torch(name: str, data: st.DataObject) -> None:
    groups = data.draw(st.integers(1, 4), "groups")
    channels = groups * data.draw(st.integers(1, 3), "channels of a group")
    outputs = groups * data.draw(st.integers(1, 3), "outputs of a group")
    batch, high, wide = (data.draw(st.integers(1, most)) for most in (3, 17, 33))
    kernel = data.draw(st.tuples(st.integers(1, 7), st.integers(1, 9)), "kernel")
    stride = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)), "stride")
    dilation = data.draw(st.tuples(st.integers(1, 2), st.integers(1, 3)), "dilation")
    padding = data.draw(st.tuples(st.integers(0, 5), st.integers(0, 9)), "padding")
    x, weight = _draw(batch, channels, high, wide), _draw(outputs, channels // groups, *kernel, seed=1)
    bias = data.draw(st.sampled_from([None, _draw(outputs, seed=2)]))
    arguments = (stride, padding, dilation, groups)
    try:
        wanted = F.conv2d(x, weight, bias, *arguments)
    except RuntimeError:
        with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
            conv2d(x, weight, bias, *arguments, algorithm=name)
        return
    if _serves(name, x, weight, *arguments):
        problem = Problem.of(x, weight, *arguments)
        for variant in ALGORITHMS[name].variants(problem):
            found = conv2d(x, weight, bias, *arguments, algorithm=f"{name}:{variant}")
            assert _off(found, wanted) < _limit(name, problem, variant), variant


# ---------------------------------------------------------------- batches, channels, layouts, types


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "shape", [(0, 3, 9, 8), (1, 3, 9, 8), (1, 1, 9, 8), (3, 9, 8), (1, 9, 8), (2, 3, 3, 3)]
)
def test_batches_and_channels(name: str, shape: tuple[int, ...]) -> None:
    x, weight, bias = _draw(*shape), _draw(5, shape[-3], 3, 3), _draw(5)
    for dtype in (torch.float64, torch.float32):
        arguments = x.to(dtype), weight.to(dtype), bias.to(dtype)
        limit = BOUND if dtype == torch.float64 else 1e-5
        assert _off(conv2d(*arguments, padding=1, algorithm=name), F.conv2d(*arguments, padding=1)) < limit


@pytest.mark.parametrize("name", NAMES)
def test_no_input_channels_is_what_torch_makes_of_it(name: str) -> None:
    x, weight = torch.zeros(2, 0, 6, 6), torch.zeros(4, 0, 3, 3)
    assert conv2d(x, weight, algorithm=name).shape == F.conv2d(x, weight).shape


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("x_last", [False, True])
@pytest.mark.parametrize("weight_last", [False, True])
def test_the_memory_format_is_that_of_torch(name: str, x_last: bool, weight_last: bool) -> None:
    x, weight = _draw(2, 4, 9, 10, dtype=torch.float32), _draw(8, 4, 3, 3, dtype=torch.float32)
    x = x.contiguous(memory_format=LAST) if x_last else x
    weight = weight.contiguous(memory_format=LAST) if weight_last else weight
    wanted = F.conv2d(x, weight, padding=1)
    for algorithm in (name, *(f"{name}:{v}" for v in ALGORITHMS[name].variants(Problem.of(x, weight)))):
        found = conv2d(x, weight, padding=1, algorithm=algorithm)
        assert found.stride() == wanted.stride(), algorithm
        assert _off(found, wanted) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_strided_views_are_read_right(name: str) -> None:
    x = _draw(2, 18, 20, 8, dtype=torch.float32).permute(0, 3, 2, 1)[:, ::2, 3:, ::2]
    weight = _draw(8, 4, 3, 6, dtype=torch.float32).transpose(0, 1)[..., 1::2].transpose(0, 1)
    assert _off(conv2d(x, weight, algorithm=name), F.conv2d(x, weight)) < 1e-5


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.int64]
)
@pytest.mark.parametrize("name", NAMES)
def test_every_type_is_as_exact_as_it_can_be(name: str, dtype: torch.dtype) -> None:
    x, weight, bias = (
        _draw(2, 16, 12, 13, dtype=dtype),
        _draw(8, 16, 3, 3, dtype=dtype),
        _draw(8, dtype=dtype),
    )
    problem = Problem.of(x, weight, padding=1)
    if ALGORITHMS[name].refuses(problem):
        assert (name, dtype) in {("winograd", torch.int64), ("fft", torch.int64), ("fft", torch.complex64)}
        with pytest.raises(RequestError, match=str(dtype).removeprefix("torch.")):
            conv2d(x, weight, bias, padding=1, algorithm=name)
        return
    wide = {torch.complex64: torch.complex128, torch.int64: torch.int64}.get(dtype, torch.float64)
    exact = F.conv2d(x.to(wide), weight.to(wide), bias.to(wide), padding=1)
    found = conv2d(x, weight, bias, padding=1, algorithm=name)
    assert found.dtype == dtype
    half = dtype in (torch.bfloat16, torch.float16)
    expected = ALGORITHMS[name].error(problem, ALGORITHMS[name].variants(problem)[0]).expected
    assert _off(found.to(wide), exact) <= (3 if half else 4) * expected


@pytest.mark.parametrize("name", NAMES)
def test_autocast_lowers_what_torch_would_and_no_more(name: str) -> None:
    x, weight, bias = (_draw(*shape, dtype=torch.float32) for shape in ((1, 64, 12, 12), (8, 64, 3, 3), (8,)))
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = conv2d(x, weight, bias, algorithm=name), F.conv2d(x, weight, bias)
    assert found.dtype == wanted.dtype == torch.bfloat16
    assert _off(found, wanted) < 0.01


def test_infinity_and_nan_reach_the_outputs_that_see_them() -> None:
    weight = _draw(4, 3, 3, 3, dtype=torch.float32)
    for bad in (float("nan"), float("inf")):
        x = _draw(1, 3, 24, 24, dtype=torch.float32)
        x[0, 1, 12, 12] = bad
        seen = ~F.conv2d(x, weight).isfinite()
        for name in NAMES:
            found = ~conv2d(x, weight, algorithm=name).isfinite()
            assert bool((found | ~seen).all()), name  # no bad value is lost
            if name in ("direct", "im2col"):
                assert torch.equal(found, seen)


# ---------------------------------------------------------------- errors


def test_what_torch_refuses_is_refused_by_every_algorithm() -> None:
    x, weight = torch.ones(1, 4, 6, 6), torch.ones(8, 4, 3, 3)
    wrong: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((torch.ones(4, 4), weight), {}),
        ((x, torch.ones(8, 4, 3)), {}),
        ((torch.ones(1, 3, 6, 6), weight), {}),
        ((x, weight), {"groups": 3}),
        ((x, weight), {"groups": 0}),
        ((x, torch.ones(9, 2, 3, 3)), {"groups": 2}),
        ((x, torch.ones(2, 1, 3, 3)), {"groups": 4}),
        ((x, weight, torch.ones(7)), {}),
        ((x, weight, torch.ones(8, 1)), {}),
        ((x, weight, torch.ones(8, dtype=torch.float64)), {}),
        ((x, weight.double()), {}),
        ((x, torch.ones(8, 4, 7, 7)), {}),
        ((x, torch.ones(8, 4, 0, 3)), {}),
        ((x, torch.ones(0, 4, 3, 3)), {}),
        ((x, weight), {"stride": 0}),
        ((x, weight), {"stride": -1}),
        ((x, weight), {"stride": (1, 1, 1)}),
        ((x, weight), {"stride": ()}),
        ((x, weight), {"stride": 1.5}),
        ((x, weight), {"stride": None}),
        ((x, weight), {"stride": True}),
        ((x, weight), {"dilation": 0}),
        ((x, weight), {"dilation": 3}),
        ((x, weight), {"padding": -1}),
        ((x, weight), {"padding": (1, 1, 1)}),
        ((x, weight), {"padding": "full"}),
        ((x, weight), {"padding": "same", "stride": 2}),
        ((torch.ones(1, 4, 0, 6), weight), {}),
        ((torch.ones(1, 4, 0, 6), weight), {"padding": 2}),
        (([1.0], weight), {}),
        ((x, weight, 1.0), {}),
        ((x, weight), {"groups": 1.0}),
    ]
    for arguments, keywords in wrong:
        with pytest.raises((RuntimeError, TypeError)) as torchs:
            F.conv2d(*arguments, **keywords)
        for name in (*NAMES, "auto"):
            with pytest.raises(torchs.type):
                conv2d(*arguments, **keywords, algorithm=name)


def test_what_torch_refuses_in_one_dimension_is_refused() -> None:
    x, weight = torch.ones(1, 4, 6), torch.ones(8, 4, 3)
    wrong: list[tuple[Any, Any, dict[str, Any]]] = [
        (torch.ones(4), weight, {}),
        (x, torch.ones(8, 4, 3, 3), {}),
        (x, torch.ones(8, 4, 9), {}),
        (x, weight, {"stride": (1, 1)}),
        (x, weight, {"padding": (1, 1)}),
        (x, weight, {"dilation": [1, 1]}),
        (x, weight, {"padding": "same", "stride": 2}),
    ]
    for a, b, keywords in wrong:
        with pytest.raises(RuntimeError):
            F.conv1d(a, b, **keywords)
        for name in NAMES:
            with pytest.raises(RuntimeError):
                conv1d(a, b, **keywords, algorithm=name)


def test_our_own_mistakes_are_named() -> None:
    x, weight = torch.ones(1, 4, 6, 6), torch.ones(8, 4, 3, 3)
    with pytest.raises(UnknownName, match="there is no algorithm 'winogard'; did you mean 'winograd'?"):
        conv2d(x, weight, algorithm="winogard")
    with pytest.raises(
        RequestError, match="direct has the variants contiguous, channels_last, packed here, not 'nchw'"
    ):
        conv2d(x, weight, algorithm="direct:nchw")
    with pytest.raises(RequestError, match=r"'large' is not of the form F\(m,r\)"):
        conv2d(x, weight, algorithm="winograd:large")
    with pytest.raises(RequestError, match=r"F\(3,3\) is too inexact for float32: it has F\(2,3\), F\(2,5\)"):
        conv2d(x, weight, algorithm="winograd:F(3,3)")
    with pytest.raises(RequestError, match="a kernel of .1, 1. at stride .1, 1. has no sums to save"):
        conv2d(x, torch.ones(8, 4, 1, 1), algorithm="winograd")
    with pytest.raises(RequestError, match=r"would take 1/1\.00 of the multiplications"):
        conv2d(x, weight, stride=2, algorithm="winograd")
    with pytest.raises(RequestError, match="together with dilation .2, 2. does not decompose"):
        conv2d(torch.ones(1, 4, 16, 16), weight, stride=2, dilation=2, algorithm="winograd")
    with pytest.raises(RequestError, match="would be cut in 49 pieces"):
        conv2d(torch.ones(1, 4, 40, 40), torch.ones(8, 4, 31, 31), algorithm="winograd:F(4,5)")
    with pytest.raises(RuntimeError, match=r"expected padding to be \(\(top, bottom\), \(left, right\)\)"):
        conv2d(x, weight, padding=((1, 1), (1, 1, 1)))


def test_max_error_picks_a_tile_or_refuses() -> None:
    x, weight = _draw(1, 128, 16, 16, dtype=torch.float32), _draw(8, 128, 3, 3, dtype=torch.float32)
    exact = F.conv2d(x.double(), weight.double())
    loose = _off(conv2d(x, weight, algorithm="winograd", max_error=1e-4).double(), exact)
    tight = _off(conv2d(x, weight, algorithm="winograd", max_error=7e-7).double(), exact)
    assert tight < loose
    assert tight < 1e-6
    with pytest.raises(
        RequestError, match=r"algorithm='winograd:F\(6,3\)' expects an error of .* above max_error"
    ):
        conv2d(x, weight, algorithm="winograd:F(6,3)", max_error=1e-6)
    with pytest.raises(RequestError, match=r"algorithm='winograd' expects an error of"):
        conv2d(x, weight, algorithm="winograd", max_error=1e-9)


# ---------------------------------------------------------------- torch's own samples


@pytest.fixture(scope="module")
def operators() -> dict[str, Any]:
    return {name: database()[f"nn.functional.{name}"] for name in ("conv1d", "conv2d")}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.complex128, torch.bfloat16])
@pytest.mark.parametrize("function", [conv1d, conv2d])
def test_samples_of_torchs_operator_database(
    operators: dict[str, Any], function: Any, dtype: torch.dtype
) -> None:
    served = dict.fromkeys(NAMES, 0)
    for sample in operators[function.__name__].sample_inputs("cpu", dtype):
        wanted = getattr(F, function.__name__)(sample.input, *sample.args, **sample.kwargs)
        for name in NAMES:
            try:
                found = function(sample.input, *sample.args, **sample.kwargs, algorithm=name)
            except RequestError:
                continue
            served[name] += 1
            limit = {torch.float32: 2e-6, torch.bfloat16: 0.016}.get(dtype, BOUND)
            assert _off(found, wanted) < limit, (name, sample)
    assert served["direct"] == served["im2col"] >= 10
    assert served["winograd"] >= 3
    assert served["fft"] >= (0 if dtype.is_complex else 10)


@pytest.mark.parametrize("function", [conv1d, conv2d])
def test_errors_of_torchs_operator_database(operators: dict[str, Any], function: Any) -> None:
    count = 0
    for wrong in operators[function.__name__].error_inputs("cpu"):
        sample = wrong.sample_input
        for name in NAMES:
            with pytest.raises(wrong.error_type):
                function(sample.input, *sample.args, **sample.kwargs, algorithm=name)
        count += 1
    assert count >= 5
