"""ResizeConv2d, and the transposed convolution that it equals."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from convscope.errors import RequestError
from convscope.nn.resize_conv import ResizeConv2d


def test_it_resizes_then_convolves() -> None:
    x = torch.randn(2, 3, 5, 4)
    for mode, options in (
        ("nearest", {}),
        ("bilinear", {"align_corners": False}),
        ("bilinear", {"align_corners": True}),
    ):
        layer = ResizeConv2d(3, 6, (2, 3), 5, mode, **options)  # type: ignore[arg-type]
        big = functional.interpolate(x, scale_factor=[2.0, 3.0], mode=mode, **options)  # type: ignore[arg-type]
        torch.testing.assert_close(
            layer(x), functional.conv2d(big, layer.conv.weight, layer.conv.bias, padding=2)
        )
        assert layer.output_size((5, 4)) == (10, 12)


@given(
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(2, 4), st.integers(2, 4)),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.booleans(),
)
def test_as_transposed_is_exact(
    kernel: tuple[int, int], scale: tuple[int, int], size: tuple[int, int], bias: bool
) -> None:
    layer = ResizeConv2d(3, 2, scale, kernel, bias=bias, dtype=torch.float64).eval()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    twin = layer.as_transposed()
    torch.testing.assert_close(twin(x), layer(x))
    ripple = twin.checkerboard().ripple
    assert ripple is not None
    assert ripple.max() < 1e-7  # evened out, whatever the weights
    assert not twin.training
    assert twin.output_size(size) == layer.output_size(size)


def test_as_transposed_needs_fewer_multiplications() -> None:
    layer = ResizeConv2d(8, 8)
    assert layer.as_transposed().kernel_size == (4, 4)
    assert (2 * 2 * layer.conv.weight[0, 0].numel()) / layer.as_transposed().weight[0, 0].numel() == 2.25


def test_borders_stay_bright_with_replicated_pixels() -> None:
    dark, bright = (ResizeConv2d(1, 1, padding_mode=mode) for mode in ("zeros", "replicate"))
    ones = torch.ones(1, 1, 4, 4)
    assert bright(ones).std() < 1e-6
    assert dark(ones).std() > 1e-3


def test_starting_anew() -> None:
    layer = ResizeConv2d(2, 2)
    nn.init.constant_(layer.conv.weight, 7.0)
    layer.reset_parameters()
    assert layer.conv.weight.abs().max() < 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResizeConv2d(2, 0), "out_channels=0 must be"),
        (lambda: ResizeConv2d(2, 1, 0), "scale_factor=0 must be"),
        (lambda: ResizeConv2d(2, 1, mode="bicubic"), "mode='bicubic' must be 'nearest' or 'bilinear'"),
        (lambda: ResizeConv2d(2, 1, align_corners=True), "align_corners=True is for mode='bilinear'"),
        (lambda: ResizeConv2d(2, 1, mode="bilinear").as_transposed(), "as_transposed() needs mode='nearest'"),
        (
            lambda: ResizeConv2d(2, 1, padding_mode="reflect").as_transposed(),
            "not 'nearest', 'same' and 'reflect'",
        ),
    ],
)
def test_wrong_arguments(make: Callable[[], object], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        make()
    assert message in str(caught.value)
