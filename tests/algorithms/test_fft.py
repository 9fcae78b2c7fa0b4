"""FFT convolution against torch in float64: every argument, every derivative, both ways to compute it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from convscope.algorithms import fft, spectra
from convscope.algorithms.fft import Fft, layer_of
from convscope.algorithms.kernels import fourier, host
from convscope.algorithms.problem import Problem

FFT = Fft()
native = pytest.mark.skipif(
    fourier.refuses(torch.float32, "cpu") is not None, reason="no kernels on this machine"
)


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVSCOPE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def data(
    x: tuple[int, ...], weight: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(  # type: ignore[return-value]
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in (x, weight, weight[:1])
    )


def right(problem: Problem, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    (top, bottom), (left, right_) = problem.padding
    x, weight, bias = (None if each is None else each.double() for each in (x, weight, bias))
    x = F.pad(x, (left, right_, top, bottom))
    return F.conv2d(x, weight, bias, problem.stride, 0, problem.dilation, problem.groups)


def error(found: Tensor, wanted: Tensor) -> float:
    return ((found.double() - wanted).abs().max() / wanted.abs().max()).item() if wanted.numel() else 0.0


def variants(problem: Problem, *more: str) -> list[str]:
    return [v for v in {*FFT.variants(problem), *more} if FFT.refuses(problem, v) is None]


# ---------------------------------------------------------------- values

KERNELS = [(k, k) for k in range(1, 12)] + [(1, 5), (4, 3), (2, 7)]
GROUPS = [(4, 6, 1), (4, 6, 2), (4, 4, 4), (3, 6, 3), (1, 1, 1)]


@pytest.mark.parametrize("padding", [0, 2, "same", "valid", ((1, 2), (0, 3)), (12, 1)], ids=str)
@pytest.mark.parametrize("stride", [1, 2, (3, 1)], ids=str)
def test_every_argument(stride: Any, padding: Any) -> None:
    """The full product, in float64, which torch's operations compute."""
    tried = 0
    for dilation, (c, k, groups), kernel in itertools.product((1, (2, 3)), GROUPS, KERNELS):
        x, weight, bias = data((2, c, 23, 26), (k, c // groups, *kernel))
        try:
            problem = Problem.of(x, weight, stride, padding, dilation, groups)
        except RuntimeError:  # torch refuses: "same" with stride, kernels larger than the input
            continue
        for variant in variants(problem, "whole")[: 1 + tried % 2]:
            found = FFT.run(problem, x, weight, bias, variant)
            assert found.shape == problem.output_shape
            assert error(found, right(problem, x, weight, bias)) < 1e-13, (problem, variant)
        tried += 1
    assert tried or (padding == "same" and stride != 1)


PROBLEMS = [
    # shape of x, of the weight, stride, padding, dilation, groups
    ((2, 5, 19, 22), (7, 5, 5, 4), 1, "same", 1, 1),
    ((1, 16, 33, 30), (32, 4, 3, 3), 2, 1, 1, 4),
    ((2, 6, 21, 20), (12, 1, 3, 5), 2, 2, 3, 6),
    ((2, 6, 21, 20), (6, 6, 3, 3), 1, 4, 3, 1),
    ((1, 4, 24, 24), (8, 4, 4, 4), 4, 0, 1, 1),
    ((1, 3, 9, 9), (4, 3, 2, 2), 3, 5, 2, 1),
    ((0, 3, 9, 9), (4, 3, 2, 2), 1, 0, 1, 1),
]


@native
@pytest.mark.parametrize("case", PROBLEMS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_machine_code(case: tuple[Any, ...], dtype: torch.dtype) -> None:
    shape, kernel, *arguments = case
    x, weight, bias = data(shape, kernel, dtype)
    problem = Problem.of(x, weight, *arguments)
    wanted = right(problem, x, weight, bias)
    for variant in variants(problem, "tile 16")[:2]:
        bound = 2e-6 if dtype == torch.float32 else torch.finfo(dtype).eps
        for last in (False, True):
            image = x.contiguous(memory_format=torch.channels_last) if last else x
            ran = FFT.run(problem, image, weight, bias, variant)
            prepared = FFT.prepare(problem, weight, bias, variant)(image)
            for found in (ran, prepared):
                assert found.dtype == dtype
                assert found.shape == wanted.shape
                assert error(found, wanted) <= bound
                if last and found.numel():
                    assert found.is_contiguous(memory_format=torch.channels_last)
            assert (
                torch.equal(ran, prepared) or dtype == torch.float32 or error(ran, prepared.double()) <= bound
            )
        if dtype == torch.float32:
            relu = FFT.prepare(problem, weight, bias, variant, relu=True)(x)
            assert error(relu, wanted.relu()) <= bound


@given(st.data())
@settings(max_examples=60)
def test_any_shape(draw: st.DataObject) -> None:
    one, side = st.integers(1, 3), st.integers(1, 18)
    groups, per_in, per_out = (draw.draw(one) for _ in range(3))
    size, kernel = [draw.draw(side) for _ in range(2)], [draw.draw(st.integers(1, 7)) for _ in range(2)]
    stride, dilation = ([draw.draw(one) for _ in range(2)] for _ in range(2))
    padding = [[draw.draw(st.integers(0, 8)) for _ in range(2)] for _ in range(2)]
    fits = all(
        n + sum(zeros) > d * (k - 1) for n, zeros, d, k in zip(size, padding, dilation, kernel, strict=True)
    )
    assume(fits)
    x, weight, bias = data((draw.draw(one), groups * per_in, *size), (groups * per_out, per_in, *kernel))
    problem = Problem.of(x, weight, stride, padding, dilation, groups)
    variant = draw.draw(st.sampled_from(sorted(variants(problem, "whole", "tile 9"))))
    wanted = right(problem, x, weight, bias)
    found = FFT.run(problem, x, weight, bias, variant)
    # where outputs nearly cancel, their maximum says little: the sum of absolute products bounds the error as well
    scale = right(problem, x.abs(), weight.abs(), bias.abs()).max()
    assert (found - wanted).abs().max() <= 1e-13 * scale


@pytest.mark.parametrize(("channels", "kernel", "size"), [(512, 3, 14), (512, 13, 16), (64, 31, 40)], ids=str)
@pytest.mark.parametrize("way", ["machine code", "torch"])
def test_accuracy_with_many_channels(channels: int, kernel: int, size: int, way: str) -> None:
    """2e-6 of the output's maximum on data of unit variance, and near what `error` expects."""
    x, weight, _ = data((1, channels, size, size), (4, channels, kernel, kernel), torch.float32)
    problem = Problem.of(x, weight, padding="same")
    variant = FFT.variants(problem)[0]
    layer = layer_of(problem, variant)
    if way == "torch":
        found = spectra.correlate(layer, x, spectra.weight_parts(layer, weight))
    elif fourier.refuses(torch.float32, "cpu") is None:
        found = fourier.prepare(layer, weight)(x)
    else:
        pytest.skip("no kernels on this machine")
    measured, bound = error(found, right(problem, x, weight)), FFT.error(problem, variant)
    assert measured < 2e-6
    assert bound.expected / 3 < measured < 3 * bound.expected
    assert measured < bound.worst


def test_double_precision_and_half_know_their_error() -> None:
    problem = Problem(1, 64, 64, (56, 56), (31, 31), padding=((15, 15), (15, 15)))
    expected = [
        FFT.error(Problem(1, 64, 64, (56, 56), (31, 31), dtype=dtype), "whole").expected
        for dtype in (torch.float64, torch.float32, torch.bfloat16)
    ]
    assert expected[0] < 1e-14 < expected[1] < 2e-6 < expected[2]
    assert FFT.error(problem, "whole").worst > FFT.error(problem, "whole").expected


# ---------------------------------------------------------------- derivatives

DERIVED = [
    ((2, 4, 6, 7), (4, 2, 3, 2), 1, 1, 1, 2),
    ((1, 3, 7, 6), (6, 1, 2, 3), 2, 1, 2, 3),
    ((1, 2, 8, 9), (3, 2, 3, 3), (3, 1), 2, (1, 2), 1),
    ((1, 2, 4, 4), (2, 2, 1, 1), 1, 3, 1, 1),
    ((1, 2, 13, 12), (2, 2, 3, 3), 1, 0, 1, 1),
]


@pytest.mark.parametrize("case", DERIVED, ids=str)
@pytest.mark.parametrize("variant", ["whole", "tile 8"])
def test_derivatives(case: tuple[Any, ...], variant: str) -> None:
    shape, kernel, *arguments = case
    x, weight, bias = (each.requires_grad_() for each in data(shape, kernel))
    problem = Problem.of(x, weight, *arguments)

    def function(*inputs: Tensor) -> Tensor:
        return FFT.run(problem, *inputs, variant)  # type: ignore[arg-type]

    assert torch.autograd.gradcheck(function, (x, weight, bias), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (x, weight, bias), fast_mode=True)


@native
@pytest.mark.parametrize("case", [PROBLEMS[0], PROBLEMS[2]], ids=str)
def test_derivatives_of_machine_code(case: tuple[Any, ...]) -> None:
    shape, kernel, *arguments = case
    tensors = data(shape, kernel, torch.float32)
    problem = Problem.of(tensors[0], tensors[1], *arguments)
    leaves = [each.clone().requires_grad_() for each in tensors]
    y = FFT.run(problem, *leaves, FFT.variants(problem)[0])
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    doubles = [each.double().requires_grad_() for each in tensors]
    wanted = torch.autograd.grad(right(problem, *doubles), doubles, grad.double())
    for found, true in zip(torch.autograd.grad(y, leaves, grad), wanted, strict=True):
        assert error(found, true) < 2e-6


def test_only_what_is_asked_is_derived() -> None:
    x, weight, _ = data((1, 2, 6, 6), (3, 2, 3, 3))
    problem = Problem.of(x, weight)
    weight.requires_grad_()
    (found,) = torch.autograd.grad(FFT.run(problem, x, weight, None, "whole").sum(), weight)
    (true,) = torch.autograd.grad(F.conv2d(x, weight).sum(), weight)
    assert error(found, true) < 1e-13


def test_transforms_of_functions_see_torch_operations() -> None:
    x, weight, _ = data((3, 2, 2, 6, 6), (3, 2, 3, 3), torch.float32)
    layer = layer_of(Problem.of(x[0], weight), "whole")
    found = torch.vmap(lambda each: fft._correlate(layer, each, weight))(x)
    assert error(found, F.conv2d(x.flatten(0, 1).double(), weight.double()).unflatten(0, (3, 2))) < 2e-6


# ---------------------------------------------------------------- what it says of itself


def test_variants() -> None:
    large = Problem(1, 64, 64, (56, 56), (31, 31), padding=((15, 15), (15, 15)))
    assert "whole" in FFT.variants(large)
    small = Problem(1, 64, 64, (224, 224), (5, 5), padding=((2, 2), (2, 2)))
    assert len(FFT.variants(small)) == fft.OFFERED
    assert all(v.startswith("tile ") for v in FFT.variants(small))
    for problem in (large, small):
        layers = [layer_of(problem, variant) for variant in FFT.variants(problem)]
        assert len(set(layers)) == len(layers)
    long = Problem(1, 4, 4, (1, 100_000), (1, 101))
    assert FFT.variants(long)
    assert FFT.refuses(long, "whole") == "the image needs a transform of 100000, more than 16384"


@pytest.mark.parametrize(
    ("problem", "variant", "reason"),
    [
        (
            Problem(1, 2, 2, (9, 9), (3, 3), dtype=torch.int64),
            None,
            "the transforms are of real numbers, not int64",
        ),
        (Problem(1, 2, 2, (9, 9), (3, 3), dtype=torch.complex64), None, "real numbers, not complex64"),
        (Problem(1, 0, 2, (9, 9), (3, 3)), None, "there are no channels to transform"),
        (Problem(1, 2, 2, (9, 9), (3, 3)), "F(2,3)", "'F(2,3)' is neither 'whole' nor of the form 'tile N'"),
        (Problem(1, 2, 2, (99, 99), (9, 9)), "tile 8", "a kernel of 9 does not fit in transforms of 8"),
        (Problem(1, 2, 2, (99, 99), (9, 9)), "tile 20000", "transforms are of at most 16384"),
        (Problem(1, 512, 512, (224, 224), (3, 3)), "whole", "the transformed weight would take 49.7 GiB"),
    ],
    ids=str,
)
def test_what_it_refuses(problem: Problem, variant: str | None, reason: str) -> None:
    found = FFT.refuses(problem, variant)
    assert found is not None
    assert found.endswith(reason)
    if variant is None:
        assert FFT.variants(problem) == ()


def test_a_layer_needs_a_variant() -> None:
    with pytest.raises(ValueError, match="'half' is neither 'whole' nor of the form 'tile N'"):
        layer_of(Problem(1, 2, 2, (9, 9), (3, 3)), "half")


def test_cost_by_hand() -> None:
    """One channel, a 4 x 4 image and kernel, valid: transforms of 4, one output."""
    problem = Problem(1, 1, 1, (4, 4), (4, 4))
    cost = FFT.cost(problem, "whole")
    rows = 2 * 16 + 2 * 4 * 3  # two pairs of rows, 16 additions a transform of 4; taken apart in 3 columns
    columns = 3 * 16 * 2  # three columns, there and back
    out = 16 + 4 * 3  # one pair of rows, of which one is wanted
    assert cost.multiplications == 4 * 4 * 3
    assert cost.additions == rows + columns + out + 2 * 4 * 3
    sheets = 2 * 3 * (4 + 1)  # complex; rows in and rows out
    assert cost.bytes_read == 4 * (16 + sheets) + 8 * 4 * 3
    assert cost.bytes_written == 4 * (sheets + 1)


def test_large_kernels_cost_least_by_fft() -> None:
    problem = Problem(1, 64, 64, (56, 56), (31, 31), padding=((15, 15), (15, 15)))
    cost = FFT.cost(problem, "whole")
    assert 2 * problem.macs / cost.operations > 100


def test_workspace_of_either_way() -> None:
    problem = Problem(2, 16, 16, (30, 30), (5, 5))
    with host.pretend(host.narrowed(0)):
        composed = FFT.cost(problem, "whole").workspace
    assert composed == 5 * 4 * 2 * 30 * 16 * 32
    if fourier.refuses(torch.float32, "cpu") is None:
        assert FFT.cost(problem, "whole").workspace == fourier.workspace_of(layer_of(problem, "whole"))


@pytest.mark.parametrize("groups", [1, 4])
def test_prepared_without_machine_code(groups: int) -> None:
    """On a machine whose processor has none of the instructions, torch's operations serve."""
    x, weight, bias = data((2, 4, 12, 13), (8, 4 // groups, 3, 3), torch.float32)
    problem = Problem.of(x, weight, 1, 1, 1, groups)
    with host.pretend(host.narrowed(0)):
        kernel = FFT.prepare(problem, weight, bias, "tile 8", relu=True)
        found = kernel(x)
        assert error(FFT.run(problem, x, weight, bias, "tile 8").relu(), found.double()) < 1e-6
    assert error(found, right(problem, x, weight, bias).relu()) < 2e-6
    layer = layer_of(problem, "tile 8")
    frequencies = layer.down.length * (layer.across.length // 2 + 1)
    assert kernel.bytes == (3 * 4 * frequencies * 32 if groups == 1 else 8 * frequencies * 8)
