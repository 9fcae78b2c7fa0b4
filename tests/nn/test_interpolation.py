"""Nearest, bilinear and bed-of-nails upsampling: hand-worked cases, and their definitions in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from convscope.errors import BadInput, RequestError
from convscope.nn.interpolation import BedOfNails2d, BilinearUpsample2d, NearestUpsample2d


def _hat(at: float, size: int) -> dict[int, float]:
    """Linear interpolation at a coordinate: which pixels, how much."""
    low = min(max(math.floor(at), 0), size - 1)
    high = min(low + 1, size - 1)
    share = min(max(at - low, 0.0), 1.0)
    weights: dict[int, float] = {low: 1.0 - share}
    weights[high] = weights.get(high, 0.0) + share
    return weights


def _matrix(size: int, out: int, read: Callable[[int], dict[int, float]]) -> Tensor:
    matrix = torch.zeros(out, size, dtype=torch.float64)
    for row in range(out):
        for column, weight in read(row).items():
            matrix[row, column] = weight
    return matrix


SIZES = st.tuples(st.integers(1, 6), st.integers(1, 6))


@given(SIZES, st.tuples(st.integers(1, 4), st.integers(1, 4)))
def test_whole_scales_are_what_the_docstrings_say(size: tuple[int, int], scale: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    out = (size[0] * scale[0], size[1] * scale[1])

    def separable(read: Callable[[int, int, int], Callable[[int], dict[int, float]]]) -> Tensor:
        rows, columns = (_matrix(n, m, read(n, m, s)) for n, m, s in zip(size, out, scale, strict=True))
        return rows @ x @ columns.mT

    near = separable(lambda n, m, s: lambda y: {y // s: 1.0})
    assert torch.equal(NearestUpsample2d(scale)(x), near)
    assert torch.equal(NearestUpsample2d(scale, exact=True)(x), near)
    half = separable(lambda n, m, s: lambda y: _hat(max((y + 0.5) / s - 0.5, 0.0), n))
    torch.testing.assert_close(BilinearUpsample2d(scale)(x), half)
    corners = separable(lambda n, m, s: lambda y: _hat(y * (n - 1) / (m - 1) if m > 1 else 0.0, n))
    torch.testing.assert_close(BilinearUpsample2d(scale, align_corners=True)(x), corners)
    torch.testing.assert_close(BilinearUpsample2d(size=out, align_corners=True)(x), corners)


@given(SIZES, st.floats(0.4, 3.5), st.floats(0.4, 3.5))
def test_output_size_at_any_scale(size: tuple[int, int], tall: float, wide: float) -> None:
    for layer in (NearestUpsample2d((tall, wide)), BilinearUpsample2d((tall, wide))):
        wanted = layer.output_size(size)
        if min(wanted) > 0:
            assert layer(torch.zeros(1, 1, *size)).shape[2:] == wanted


def test_exact_reads_at_pixel_centres() -> None:
    x = torch.arange(3.0).view(1, 1, 3)
    assert NearestUpsample2d(size=(1, 5))(x).tolist() == [[[0, 0, 1, 1, 2]]]
    assert NearestUpsample2d(size=(1, 5), exact=True)(x).tolist() == [[[0, 0, 1, 2, 2]]]


def test_antialias_averages_what_it_covers() -> None:
    x = torch.tensor([0.0, 1.0] * 8).expand(1, 1, 16, 16)
    plain, smooth = (BilinearUpsample2d(0.25, antialias=on)(x) for on in (False, True))
    assert smooth[..., 1:-1, 1:-1].sub(0.5).abs().max() < 1e-6
    assert plain.std() < 1e-6  # it happens to hit the same phase everywhere, and sees no alternation at all
    shifted = x.roll(1, -1)
    near = NearestUpsample2d(0.25)
    assert (near(x) - near(shifted)).abs().min() == 1.0  # without averaging the phase decides
    assert (BilinearUpsample2d(0.25, antialias=True)(shifted) - smooth).abs()[..., 1:-1].max() < 1e-6


@given(SIZES, st.tuples(st.integers(1, 4), st.integers(1, 4)), st.data())
def test_bed_of_nails(size: tuple[int, int], scale: tuple[int, int], data: st.DataObject) -> None:
    offset = tuple(data.draw(st.integers(0, s - 1)) for s in scale)
    x = torch.randn(2, 3, *size)
    wanted = torch.zeros(2, 3, size[0] * scale[0], size[1] * scale[1])
    for row in range(size[0]):
        for column in range(size[1]):
            wanted[:, :, row * scale[0] + offset[0], column * scale[1] + offset[1]] = x[:, :, row, column]
    layer = BedOfNails2d(scale, offset)
    assert torch.equal(layer(x), wanted)
    assert layer.output_size(size) == wanted.shape[2:]
    assert torch.equal(layer(x.long()), wanted.long())


def test_channels_last_stays() -> None:
    x = torch.randn(2, 8, 4, 4).to(memory_format=torch.channels_last)
    for layer in (NearestUpsample2d(2), BilinearUpsample2d(2)):
        assert layer(x).is_contiguous(memory_format=torch.channels_last)


def test_reprs() -> None:
    assert repr(NearestUpsample2d(2)) == "NearestUpsample2d(scale_factor=(2.0, 2.0))"
    assert repr(NearestUpsample2d(size=7, exact=True)) == "NearestUpsample2d(size=(7, 7), exact=True)"
    assert repr(BilinearUpsample2d(2)) == "BilinearUpsample2d(scale_factor=(2.0, 2.0), align_corners=False)"
    assert repr(BedOfNails2d(2)) == "BedOfNails2d(scale_factor=(2, 2))"
    assert repr(BedOfNails2d((2, 3), (0, 1))) == "BedOfNails2d(scale_factor=(2, 3), offset=(0, 1))"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NearestUpsample2d(), "scale_factor=None and size=None: exactly one of them must be given"),
        (lambda: BilinearUpsample2d(2, 4), "scale_factor=2 and size=4: exactly one"),
        (lambda: NearestUpsample2d(0), "scale_factor=0 must be a positive number"),
        (lambda: NearestUpsample2d(float("nan")), "scale_factor=nan must be"),
        (lambda: BilinearUpsample2d((1, 2, 3)), "scale_factor=(1, 2, 3) must be"),
        (lambda: BilinearUpsample2d(True), "scale_factor=True must be"),
        (lambda: NearestUpsample2d(size=(0, 1)), "size=(0, 1) must be"),
        (lambda: BedOfNails2d(1.5), "scale_factor=1.5"),
        (lambda: BedOfNails2d(2, 2), "offset=2 must lie in the block of scale_factor=2"),
        (lambda: BedOfNails2d(2, -1), "offset=-1 must be"),
    ],
)
def test_wrong_arguments(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        make()
    assert message in str(caught.value)


@pytest.mark.parametrize("layer", [NearestUpsample2d(2), BilinearUpsample2d(2), BedOfNails2d(2)])
def test_what_is_no_image(layer: nn.Module) -> None:
    with pytest.raises(BadInput, match=r"was given an input of shape \(2, 2\); it must be \[batch, channels"):
        layer(torch.zeros(2, 2))
