"""Pooling layers: hand-worked cases, torch's own, and fractional pooling by brute force over hand-made sequences."""

from __future__ import annotations

import copy
import itertools
import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from convscope.errors import RequestError, UnknownName
from convscope.nn import (
    AvgPool2d,
    BlurPool2d,
    FractionalMaxPool2d,
    GlobalAvgPool2d,
    GlobalMaxPool2d,
    MaxBlurPool2d,
    MaxPool2d,
    NoPool2d,
    StridedConvPool2d,
    pool2d,
    pooling,
)

# ---------------------------------------------------------------- windows


@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.data(),
)
def test_output_sizes_are_those_of_torch(
    size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], data: st.DataObject
) -> None:
    padding = data.draw(st.tuples(*[st.integers(0, k // 2) for k in kernel]))
    ceil = data.draw(st.booleans())
    dilation = data.draw(st.integers(1, 2))
    for layer in (
        MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil),
        AvgPool2d(kernel, stride, padding, ceil),
    ):
        try:
            expected = layer(torch.zeros(1, *size)).shape[1:]
        except RuntimeError:
            with pytest.raises(RequestError, match="smaller than the kernel"):
                layer.output_size(size)
        else:
            assert layer.output_size(size) == expected


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("padding", [0, 1])
def test_a_strided_convolution_begins_as_the_average(groups: int, padding: int) -> None:
    layer = StridedConvPool2d(4, (2, 3), (2, 1), padding, groups, dtype=torch.float64)
    x = torch.randn(2, 4, 6, 7, dtype=torch.float64)
    torch.testing.assert_close(layer(x), functional.avg_pool2d(x, (2, 3), (2, 1), padding))
    assert layer.weight.count_nonzero() == 4 * 6
    layer(x).square().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.count_nonzero() == layer.weight.numel()  # all of it learns


def test_blur_by_hand() -> None:
    x = torch.tensor([[0.0, 4, 8, 0]]).expand(4, 4)[None]
    # reflected: 4 0 4 8 0; at 0: (4 + 0 + 4) / 4, at 2: (4 + 16 + 0) / 4
    assert BlurPool2d(3)(x)[0].tolist() == [[2, 5]] * 2
    assert BlurPool2d(3, padding_mode="replicate")(x)[0].tolist() == [[1, 5]] * 2
    assert BlurPool2d(3, padding_mode="circular")(x)[0].tolist() == [[1, 5]] * 2
    # zeros above too: the first row sees three quarters of the image
    assert BlurPool2d(3, padding_mode="zeros")(x)[0].tolist() == [[0.75, 3.75], [1, 5]]
    assert BlurPool2d(1)(x)[0].tolist() == [[0, 8]] * 2
    assert BlurPool2d(2)(x)[0].tolist() == [[2, 4]] * 2


@pytest.mark.parametrize("kernel", range(1, 8))
def test_blur_keeps_constants_and_forgets_the_phase(kernel: int) -> None:
    layer = BlurPool2d(kernel)
    assert torch.allclose(layer(torch.full((1, 1, 9, 10), 3.0)), torch.tensor(3.0))
    assert layer.filter.sum().item() == pytest.approx(1)
    waves = (
        torch.tensor([1.0, -1.0]).repeat(5).expand(10, 10)[None]
    )  # the frequency that subsampling cannot keep
    if kernel > 1:
        inside = layer(waves)[..., 2:-2, 2:-2]
        assert inside.abs().max() < 1e-6


def test_max_blur_is_zhangs_composition() -> None:
    x = torch.randn(2, 3, 9, 8)
    expected = BlurPool2d(4, 2)(functional.max_pool2d(x, 3, 1, 1))
    assert torch.equal(MaxBlurPool2d(3, 2, 1, blur_size=4)(x), expected)


def test_global_pools() -> None:
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    assert torch.equal(GlobalMaxPool2d()(x), functional.adaptive_max_pool2d(x, 1))
    torch.testing.assert_close(GlobalAvgPool2d()(x), functional.adaptive_avg_pool2d(x, 1))
    torch.testing.assert_close(GlobalAvgPool2d(keepdim=False)(x), x.mean((2, 3)))
    assert torch.equal(GlobalMaxPool2d(keepdim=False)(x[0]), x[0].amax((1, 2)))
    assert GlobalMaxPool2d(keepdim=False).output_size(7) == ()
    tie = torch.ones(1, 1, 2, requires_grad=True)
    GlobalMaxPool2d()(tie).sum().backward()
    assert tie.grad is not None
    assert tie.grad.tolist() == [[[0.5, 0.5]]]


# ---------------------------------------------------------------- fractional


def brute_force(x: Tensor, rows: list[list[int]], columns: list[list[int]]) -> Tensor:
    """The maximum over every pair of a list of rows and a list of columns, one by one."""
    out = x.new_empty(*x.shape[:-2], len(rows), len(columns))
    for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
        out[..., i, j] = torch.stack([x[..., r, c] for r in row for c in column]).amax(0)
    return out


@pytest.mark.parametrize(
    ("overlapping", "regions"),
    [(False, [[0, 1], [2], [3, 4], [5, 6]]), (True, [[0, 1, 2], [2, 3], [3, 4, 5], [5, 6]])],
)
def test_a_sequence_made_by_hand(
    overlapping: bool, regions: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 2 1 2 2 (disjoint), 2 1 2 1 (overlapping) of seven pixels, along both axes."""
    starts = [0, 2, 3, 5, 6] if overlapping else [0, 2, 3, 5, 7]
    monkeypatch.setattr(pooling, "_sequence", lambda *_: torch.tensor(starts))
    x = torch.randn(2, 3, 7, 7, dtype=torch.float64)
    layer = FractionalMaxPool2d(output_size=4, overlapping=overlapping)
    assert torch.equal(layer(x), brute_force(x, regions, regions))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**24 - 1))
def test_pseudorandom_sequences_are_grahams(total: int, count: int, number: int) -> None:
    """a_i = ceil(alpha (i + u)), in fractions."""
    total, count = max(total, count), min(total, count)
    alpha, u = Fraction(total, count), Fraction(2 * number + 1, 2**25)
    a = [math.ceil(alpha * (i + u)) for i in range(count + 1)]
    found = pooling._sequence(torch.tensor([number]), total, count, "pseudorandom")
    assert found.tolist() == [each - a[0] for each in a]
    assert found[-1] == total
    steps = set(found.diff().tolist())
    assert steps <= {total // count, -(-total // count)}


def test_a_pseudorandom_sequence_by_hand() -> None:
    """alpha = 7 / 5, u just above a half: 0.7 2.1 3.5 4.9 6.3 7.7 rounded up, counted from the first."""
    found = pooling._sequence(torch.tensor([2**23]), 7, 5, "pseudorandom")
    assert found.tolist() == [0, 2, 3, 4, 6, 7]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32))
def test_random_sequences_are_a_shuffle_of_two_steps(total: int, count: int, seed: int) -> None:
    total, count = max(total, count), min(total, count)
    numbers = torch.randint(2**24, (count,), generator=torch.Generator().manual_seed(seed))
    found = pooling._sequence(numbers, total, count, "random")
    short, longer = divmod(total, count)
    assert sorted(found.diff().tolist()) == [short] * (count - longer) + [short + 1] * longer
    assert found[0] == 0


@given(
    st.tuples(st.integers(2, 14), st.integers(2, 14)),
    st.sampled_from(["random", "pseudorandom"]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**31),
    st.data(),
)
def test_fractional_pooling_is_the_brute_force_over_its_regions(
    size: tuple[int, int], sampling: str, overlapping: bool, training: bool, seed: int, data: st.DataObject
) -> None:
    out = data.draw(st.tuples(*[st.integers(1, n - overlapping) for n in size]))
    layer = FractionalMaxPool2d(None, out, sampling, overlapping, seed).train(training)
    same = copy.deepcopy(layer)
    x = torch.randn(2, *size, dtype=torch.float64)
    rows, columns = (
        [list(range(first, stop)) for first, stop in axis.T.tolist()] for axis in same.regions(size)
    )
    assert torch.equal(layer(x), brute_force(x, rows, columns))
    assert layer.output_size(size) == out
    for regions, n in ((rows, size[0]), (columns, size[1])):
        assert sorted({pixel for region in regions for pixel in region}) == list(range(n))  # every pixel
        shared = [a[-1] - b[0] + 1 for a, b in itertools.pairwise(regions)]
        assert shared == [int(overlapping)] * (len(regions) - 1)


def _regions(layer: FractionalMaxPool2d) -> list[list[list[int]]]:
    return [axis.tolist() for axis in layer.regions((48, 53))]  # 33 and 37 regions: as many phases


@pytest.mark.parametrize("sampling", ["random", "pseudorandom"])
def test_seeds_and_streams(sampling: str) -> None:
    layer, twin = (FractionalMaxPool2d(sampling=sampling, seed=3) for _ in range(2))
    drawn = [_regions(layer) for _ in range(4)]
    assert drawn == [_regions(twin) for _ in range(4)]
    assert len({str(regions) for regions in drawn}) == 4
    assert all(rows != columns for rows, columns in drawn)
    assert _regions(FractionalMaxPool2d(sampling=sampling, seed=4)) != drawn[0]
    resumed = FractionalMaxPool2d(sampling=sampling, seed=3)
    resumed.load_state_dict({"draws": torch.tensor(2)})
    assert [_regions(resumed), _regions(resumed)] == drawn[2:]
    layer.eval()
    assert _regions(layer) == _regions(layer) == drawn[0]
    layer.train().reset_parameters()
    assert _regions(layer) == drawn[0]


def test_without_a_seed_torchs_random_state_decides() -> None:
    layer = FractionalMaxPool2d()
    torch.manual_seed(7)
    drawn = [_regions(layer) for _ in range(2)]
    torch.manual_seed(7)
    assert drawn == [_regions(layer) for _ in range(2)]
    assert drawn[0] != drawn[1]
    before = torch.get_rng_state()
    layer.eval()
    assert _regions(layer) == _regions(layer) == _regions(FractionalMaxPool2d(seed=0).eval())
    FractionalMaxPool2d(seed=1)(torch.zeros(1, 9, 9))
    assert torch.equal(torch.get_rng_state(), before)
    assert not layer.state_dict()


def test_regions_are_spread_evenly() -> None:
    """Over many draws every pixel begins a region as often as 1 / alpha says."""
    layer = FractionalMaxPool2d(output_size=25, sampling="random", overlapping=False, seed=1)
    counts = torch.zeros(35)
    for _ in range(400):
        rows, _columns = layer.regions((35, 35))
        counts[rows[0]] += 1
    share = counts[1:] / 400
    assert share.mean().item() == pytest.approx(24 / 34, abs=1e-6)
    assert (share - 24 / 34).abs().max() < 5 * (0.71 * 0.29 / 400) ** 0.5


def test_halves_are_plain_max_pooling() -> None:
    x = torch.randn(2, 3, 8, 12)
    assert torch.equal(pool2d("fractional_max", 2)(x), functional.max_pool2d(x, 2))
    assert FractionalMaxPool2d(1 / 3).output_size((3, 12)) == (1, 4)
    assert FractionalMaxPool2d(1 / 49, overlapping=False).output_size(98) == (2, 2)


# ---------------------------------------------------------------- one word


def test_one_word_swaps_them() -> None:
    x = torch.randn(2, 4, 8, 12)
    kinds = "max", "avg", "strided_conv", "blur", "max_blur", "fractional_max"
    for kind in kinds:
        layer = pool2d(kind, 2, channels=4)
        assert layer(x).shape == (2, 4, 4, 6)
        assert layer.output_size((8, 12)) == (4, 6)  # type: ignore[operator]
    assert pool2d("none", 2)(x) is x
    assert pool2d("global_avg", 2)(x).shape == pool2d("global_max", 2)(x).shape == (2, 4, 1, 1)


def test_arguments_reach_the_layer() -> None:
    wide = pool2d("max", 3, 2, 1, dilation=2)
    assert (wide.kernel_size, wide.stride, wide.padding, wide.dilation) == (3, 2, 1, 2)
    assert pool2d("avg", (2, 3), ceil_mode=True).stride == (2, 3)
    assert pool2d("strided_conv", 3, 2, 1, channels=6, groups=6).weight.shape == (6, 1, 3, 3)
    assert repr(pool2d("blur", 5, 2, padding_mode="zeros")) == (
        "BlurPool2d(kernel_size=5, stride=(2, 2), padding_mode=zeros)"
    )
    assert pool2d("max_blur", 3, 2, 1, blur_size=5).blur.kernel_size == 5
    assert repr(pool2d("none", 3, 2)) == "NoPool2d(kernel_size=(3, 3), stride=(2, 2), padding=(0, 0))"
    assert not pool2d("global_max", keepdim=False).keepdim
    overlapping = pool2d("fractional_max", (2, 3), 2, sampling="random", seed=9)
    assert repr(overlapping) == (
        "FractionalMaxPool2d(output_ratio=(0.5, 0.5), sampling=random, overlapping=True, seed=9)"
    )
    assert not pool2d("fractional_max", 3, 3, output_size=2).overlapping


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pool2d("mx"), UnknownName, "there is no pool 'mx'; did you mean 'max'.*known are max, avg"),
        (lambda: pool2d("strided_conv"), RequestError, "give channels="),
        (lambda: pool2d("blur", 3, 2, 1), RequestError, r"padding=1 must be 0 for pool2d\('blur'\)"),
        (lambda: pool2d("blur", (3, 2)), RequestError, r"kernel_size=\(3, 2\) must be one number"),
        (lambda: pool2d("fractional_max", 2, padding=1), RequestError, "padding=1 must be 0"),
        (lambda: BlurPool2d(0), RequestError, "kernel_size=0 must be"),
        (lambda: BlurPool2d(padding_mode="partial"), RequestError, "padding_mode='partial' must be one of"),
        (lambda: StridedConvPool2d(4, groups=3), RequestError, "must be divisible by groups=3"),
        (lambda: NoPool2d(2, 0), RequestError, "stride=0 must be"),
        (
            lambda: FractionalMaxPool2d(0.5, 3),
            RequestError,
            "output_ratio=0.5 and output_size=3 say the same",
        ),
        (
            lambda: FractionalMaxPool2d(1.5),
            RequestError,
            "output_ratio=1.5 must be a number above 0, at most 1",
        ),
        (lambda: FractionalMaxPool2d((0.5, 0.5, 0.5)), RequestError, "or two of them"),
        (lambda: FractionalMaxPool2d(sampling="rndom"), RequestError, "did you mean 'random'"),
        (lambda: FractionalMaxPool2d(seed=-1), RequestError, "seed=-1 must be a whole number"),
        (lambda: FractionalMaxPool2d(1.0).output_size(8), RequestError, "cannot be cut into .* overlapping"),
        (
            lambda: FractionalMaxPool2d(output_size=4, overlapping=False)(torch.zeros(1, 8, 3)),
            RequestError,
            r"input_size=\(8, 3\) cannot be cut into \(4, 4\) disjoint regions",
        ),
        (lambda: MaxPool2d(3).output_size(2), RequestError, "smaller than the kernel"),
    ],
)
def test_wrong_arguments(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_torchs_pools_are_still_torchs() -> None:
    assert isinstance(MaxPool2d(2), nn.MaxPool2d)
    assert repr(MaxPool2d(3, 2)) == repr(nn.MaxPool2d(3, 2))
    assert repr(AvgPool2d(3, 2)) == repr(nn.AvgPool2d(3, 2))
