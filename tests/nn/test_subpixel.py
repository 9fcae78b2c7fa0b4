"""PixelShuffleUpsample2d: the order of its pixels, ICNR, and its checkerboard."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from convscope.errors import BadInput, RequestError
from convscope.nn.subpixel import PixelShuffleUpsample2d


@pytest.mark.parametrize("scale", [1, 2, 3, (1, 2), (3, 2)])
def test_pixels_come_from_channels(scale: int | tuple[int, int]) -> None:
    layer = PixelShuffleUpsample2d(3, 2, scale, start="uniform")
    x = torch.randn(2, 3, 4, 5)
    y, low = layer(x), layer.conv(x)
    tall, wide = layer.scale_factor
    assert y.shape == (2, 2, 4 * tall, 5 * wide)
    assert layer.output_size((4, 5)) == y.shape[2:]
    for c in range(2):
        for i in range(tall):
            for j in range(wide):
                assert torch.equal(y[:, c, i::tall, j::wide], low[:, (c * tall + i) * wide + j])
    if tall == wide:
        assert torch.equal(y, functional.pixel_shuffle(low, tall))
    torch.testing.assert_close(layer(x[0]), y[0])


@pytest.mark.parametrize("scale", [2, (3, 2)])
def test_icnr_starts_as_nearest_upsampling(scale: int | tuple[int, int]) -> None:
    layer = PixelShuffleUpsample2d(8, 4, scale, dtype=torch.float64)
    tall, wide = layer.scale_factor
    x = torch.randn(1, 8, 6, 6, dtype=torch.float64)
    y = layer(x)
    block = y[..., ::tall, ::wide]
    torch.testing.assert_close(y, block.repeat_interleave(tall, -2).repeat_interleave(wide, -1))
    assert block[0, 0].std() > 0.1
    found = layer.checkerboard()
    assert found.even
    assert found.ripple is not None
    assert found.ripple.max() < 1e-7  # of a start by ICNR
    weights = layer.conv.weight.view(4, -1, 8 * 9)
    assert weights[:, 0].std().item() == pytest.approx(
        (1 / (3 * 72)) ** 0.5, rel=0.1
    )  # uniform within 1 / sqrt(fan in)


def test_a_uniform_start_ripples() -> None:
    layer = PixelShuffleUpsample2d(8, 4, 2, bias=False, start="uniform", dtype=torch.float64)
    found = layer.checkerboard()
    y = layer(torch.ones(1, 8, 6, 6, dtype=torch.float64))[0]
    assert found.sums is not None
    torch.testing.assert_close(found.sums, y[:, 2:4, 2:4])
    assert found.ripple is not None
    assert found.ripple.min() > 0.1
    assert (found.kernel_size, found.stride, found.taps) == ((6, 6), (2, 2), ((9, 9), (9, 9)))


def test_padding_of_the_convolution() -> None:
    layer = PixelShuffleUpsample2d(2, 1, 2, 5, padding="valid")
    assert layer(torch.zeros(1, 2, 8, 9)).shape[2:] == layer.output_size((8, 9)) == (8, 10)
    constant = PixelShuffleUpsample2d(2, 1, 2, padding_mode="replicate")(torch.ones(1, 2, 4, 4))
    assert constant.std() < 1e-6  # no dark border


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PixelShuffleUpsample2d(2, 0), "out_channels=0 must be"),
        (lambda: PixelShuffleUpsample2d(0, 1), "in_channels=0 must be"),
        (lambda: PixelShuffleUpsample2d(2, 1, 1.5), "scale_factor=1.5 must be"),
        (lambda: PixelShuffleUpsample2d(2, 1, start="icrn"), "start='icrn' must be 'icnr' or 'uniform'"),
    ],
)
def test_wrong_arguments(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        make()
    assert message in str(caught.value)


def test_what_is_no_image() -> None:
    with pytest.raises(BadInput, match="was given an input of shape"):
        PixelShuffleUpsample2d(2, 1)(torch.zeros(2, 2))
