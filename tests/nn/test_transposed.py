"""TransposedConv2d: torch's, bilinear starts against interpolation itself, the checkerboard of its weights."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional

from convscope.errors import RequestError
from convscope.nn.transposed import TransposedConv2d


def test_it_is_torchs_and_loads_its_weights() -> None:
    options = {
        "kernel_size": (3, 4),
        "stride": (2, 3),
        "padding": (1, 0),
        "output_padding": (1, 2),
        "dilation": 2,
    }
    for groups, bias in product((1, 2), (True, False)):
        torchs = nn.ConvTranspose2d(4, 6, groups=groups, bias=bias, **options)  # type: ignore[arg-type]
        ours = TransposedConv2d(4, 6, groups=groups, bias=bias, **options)  # type: ignore[arg-type]
        ours.load_state_dict(torchs.state_dict())
        x = torch.randn(2, 4, 5, 6)
        assert torch.equal(ours(x), torchs(x))
        assert ours(x).shape[2:] == ours.output_size((5, 6))
        assert torch.equal(ours(x[0]), torchs(x[0]))
        assert torch.equal(ours(x, output_size=[11, 23]), torchs(x, output_size=[11, 23]))
    torch.manual_seed(3)
    torchs = nn.ConvTranspose2d(4, 6, 3)
    torch.manual_seed(3)
    ours = TransposedConv2d(4, 6, 3)
    assert torch.equal(ours.weight, torchs.weight)  # the same draw
    assert repr(ours) == "TransposedConv2d(4, 6, kernel_size=(3, 3), stride=(1, 1))"


@pytest.mark.parametrize("stride", [1, 2, 3, 4, (2, 3)])
@pytest.mark.parametrize("extra", [0, 2])  # zeros around the tent change nothing
def test_a_bilinear_start_interpolates(stride: int | tuple[int, int], extra: int) -> None:
    strides = (stride, stride) if isinstance(stride, int) else stride
    kernel = [2 * s - s % 2 + extra for s in strides]
    padding = [(k - s) // 2 for k, s in zip(kernel, strides, strict=True)]
    layer = TransposedConv2d(3, 3, kernel, strides, padding, start="bilinear", dtype=torch.float64)
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    wanted = functional.interpolate(x, scale_factor=[float(s) for s in strides], mode="bilinear")
    y = layer(x)
    assert y.shape == wanted.shape
    inside = (..., slice(strides[0], -strides[0]), slice(strides[1], -strides[1]))
    torch.testing.assert_close(y[inside], wanted[inside])


@pytest.mark.parametrize("stride", [2, 3, 4])
def test_a_bilinear_start_with_aligned_corners(stride: int) -> None:
    layer = TransposedConv2d(
        2, 2, 2 * stride - 1, stride, stride - 1, groups=2, start="bilinear", dtype=torch.float64
    )
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64)
    size = (3 * stride + 1, 4 * stride + 1)
    wanted = functional.interpolate(x, size, mode="bilinear", align_corners=True)
    torch.testing.assert_close(layer(x), wanted)


def test_a_bilinear_start_between_numbers_of_channels() -> None:
    layer = TransposedConv2d(64, 32, 4, 2, 1, groups=2, start="bilinear", dtype=torch.float64)
    x = torch.randn(1, 64, 20, 20, dtype=torch.float64)
    y = layer(x)
    mixing = layer.weight[:, :, 1, 1] / 0.5625  # [in_channels, out_channels / groups]
    low = torch.einsum("ngihw,gio->ngohw", x.unflatten(1, (2, 32)), mixing.unflatten(0, (2, 32))).flatten(
        1, 2
    )
    wanted = functional.interpolate(low, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(y[..., 2:-2, 2:-2], wanted[..., 2:-2, 2:-2])
    assert 0.9 < low.var().item() < 1.1
    assert layer.bias is not None
    assert not layer.bias.any()
    flat = layer.checkerboard().ripple
    assert flat is not None
    assert flat.max() < 1e-6
    assert "start='bilinear'" in repr(layer)


def test_reset_parameters_starts_anew() -> None:
    for start in ("uniform", "bilinear"):
        layer = TransposedConv2d(3, 3, 4, 2, 1, start=start)
        nn.init.constant_(layer.weight, 7.0)
        layer.reset_parameters()
        assert layer.weight.abs().max() < 1
    fresh = TransposedConv2d(3, 3, 4, 2, 1, start="bilinear", device="meta")
    assert fresh.weight.is_meta


def test_checkerboard_of_the_weights() -> None:
    layer = TransposedConv2d(4, 6, 3, 2, 1, groups=2, dtype=torch.float64, bias=False)
    found = layer.checkerboard()
    assert found.taps == ((1, 2), (2, 4))
    y = layer(torch.ones(1, 4, 6, 6, dtype=torch.float64))[0]
    assert found.sums is not None
    torch.testing.assert_close(found.sums, y[:, 2:4, 2:4])
    assert not found.sums.requires_grad
    assert torch.equal(found.overlap(6), found.overlap((6, 6)))
    assert found.overlap(6).shape == y.shape[1:]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TransposedConv2d(0, 1, 3), "in_channels=0 must be a positive whole number"),
        (lambda: TransposedConv2d(4, 3, 3, groups=2), "out_channels=3 must be divisible by groups=2"),
        (lambda: TransposedConv2d(1, 1, 0), "kernel_size=0 must be"),
        (lambda: TransposedConv2d(1, 1, 3, 0), "stride=0 must be"),
        (lambda: TransposedConv2d(1, 1, 3, 2, -1), "padding=-1 must be"),
        (
            lambda: TransposedConv2d(1, 1, 3, 2, 0, 2),
            "output_padding=2 must be less than stride=2 or dilation=1",
        ),
        (lambda: TransposedConv2d(1, 1, 3, padding_mode="reflect"), "padding_mode='reflect' must be 'zeros'"),
        (lambda: TransposedConv2d(1, 1, 3, start="biliner"), "did you mean 'bilinear'?"),
        (lambda: TransposedConv2d(1, 1, 2, 2, start="bilinear"), "to be at least 2 stride - 1 = (3, 3)"),
        (lambda: TransposedConv2d(1, 1, 4, 2, dilation=2, start="bilinear"), "needs dilation=1"),
        (lambda: TransposedConv2d(1, 1, 1, 1, 1).output_size(2), "leaves an output of (0, 0)"),
    ],
)
def test_wrong_arguments(make: Callable[[], object], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        make()
    assert message in str(caught.value)
