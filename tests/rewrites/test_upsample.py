"""One way to upsample as another: exact where it is one, the nearest kernel where it is not."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from convscope import nn as layers
from convscope import rules
from convscope.errors import RequestError
from convscope.rewrites.rewrite import rewrite

SIZE = "3x7x9"
WEIGHTLESS = {
    "nearest": lambda s: layers.NearestUpsample2d(s),
    "bilinear": lambda s: layers.BilinearUpsample2d(s),
    "bed_of_nails": lambda s: layers.BedOfNails2d(s, offset=(s - 1, 0)),
}


def made(module: nn.Module, kind: str) -> Any:
    return rewrite(nn.Sequential(module), rules.Upsample(kind), input=SIZE)


@pytest.mark.parametrize(
    ("old", "new", "scale"),
    list(itertools.product(WEIGHTLESS, ["transposed", "pixel_shuffle"], [1, 2, 3, 4])),
)
def test_weightless_ways_are_expressed(old: str, new: str, scale: int) -> None:
    module = WEIGHTLESS[old](scale)
    result = made(module, new)
    edge = old == "bilinear" and new == "transposed" and scale > 1
    assert result.done[0].exactness == ("exact-interior" if edge else "exact")
    x = torch.randn(2, 3, 7, 9)
    inner = (slice(None), slice(None), *[slice(scale, -scale)] * 2) if edge else ...
    torch.testing.assert_close(result.net.module(x)[inner], module(x)[inner])


def test_weightless_ways_are_exchanged() -> None:
    x = torch.randn(1, 3, 7, 9)
    for old, new in itertools.permutations(WEIGHTLESS, 2):
        result = made(WEIGHTLESS[old](2), new)
        assert result.done[0].exactness == "approximate"
        assert result.net.module(x).shape == (1, 3, 14, 18)
    assert made(nn.Upsample(scale_factor=2), "bilinear").done


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.integers(1, 6),
    stride=st.integers(1, 4),
    padding=st.integers(0, 3),
    extra=st.integers(0, 3),
    groups=st.sampled_from([1, 3]),
    bias=st.booleans(),
    kind=st.sampled_from(["bed_of_nails", "pixel_shuffle", "nearest", "bilinear"]),
)
def test_transposed_convolutions(
    kernel: int, stride: int, padding: int, extra: int, groups: int, bias: bool, kind: str
) -> None:
    if extra >= stride or 6 * stride - 2 * padding + kernel + extra < 1:
        return
    conv = nn.ConvTranspose2d(3, 6, kernel, stride, padding, extra, groups, bias)
    result = made(conv, kind)
    edit = result.edits[0]
    x = torch.randn(2, 3, 7, 9)
    if edit.refused:
        assert edit.reason
    elif edit.exactness == "exact":
        torch.testing.assert_close(result.net.module(x), conv(x))
    else:
        assert kind in ("nearest", "bilinear")
        assert result.net.module(x).shape == conv(x).shape


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "extra"),
    [(2, 2, 0, 0), (4, 2, 1, 0), (3, 2, 1, 1), (3, 3, 0, 0), (6, 3, 2, 1)],
)
@pytest.mark.parametrize("kind", ["bed_of_nails", "pixel_shuffle"])
def test_common_transposed_convolutions_are_expressed(
    kind: str, kernel: int, stride: int, padding: int, extra: int
) -> None:
    conv = nn.ConvTranspose2d(3, 4, kernel, stride, padding, extra)
    assert made(conv, kind).done[0].exactness == "exact"


@pytest.mark.parametrize("way", ["nearest", "bilinear"])
def test_a_resize_convolution_is_found_again(way: str) -> None:
    """A transposed convolution that is a resizing and a convolution: the fit is that convolution."""
    torch.manual_seed(0)
    taps = torch.tensor([1.0, 1.0] if way == "nearest" else [0.25, 0.75, 0.75, 0.25])
    spread = taps[:, None] * taps
    kernel = torch.randint(-4, 5, (4, 3, 3, 3)).float()  # behind the resizing, [out, in, height, width]
    both = torch.nn.functional.conv2d(
        torch.nn.functional.pad(spread, (2, 2, 2, 2)).expand(12, 1, -1, -1),
        kernel.reshape(12, 1, 3, 3),
        groups=1,
    )
    both = (
        both.diagonal().movedim(-1, 0).reshape(4, 3, *both.shape[2:]).transpose(0, 1)
    )  # [in, out, height, width]
    edge = both.shape[-1]
    conv = nn.ConvTranspose2d(3, 4, edge, 2, (edge - 2) // 2, bias=False)
    with torch.no_grad():
        conv.weight.copy_(both)
    result = made(conv, way)
    edit = result.done[0]
    assert edit.exactness == ("exact" if way == "nearest" else "approximate")
    resize, second = result.net.module[0]
    assert isinstance(resize, (layers.NearestUpsample2d, layers.BilinearUpsample2d))
    torch.testing.assert_close(second.weight, kernel, atol=1e-4, rtol=1e-4)
    x = torch.randn(1, 3, 7, 9)
    inner = (..., slice(4, -4), slice(4, -4))
    torch.testing.assert_close(result.net.module(x)[inner], conv(x)[inner], atol=1e-4, rtol=1e-4)


class Codec(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.pool = nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2)
        self.middle, self.up = nn.Conv2d(4, 4, 3, padding=1), nn.Upsample(scale_factor=2)
        self.last = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.up(self.middle(self.pool(self.first(x)))))


def test_max_unpooling_finds_its_pool() -> None:
    torch.manual_seed(0)
    net = Codec()
    result = rewrite(net, rules.Upsample("max_unpool"), input="3x8x10")
    assert result.done[0].notes == ("values go where pool found its maxima",)
    x = torch.randn(2, 3, 8, 10)
    wide = net.first(x)
    y, where = nn.functional.max_pool2d(wide, 2, return_indices=True)
    expected = net.last(nn.functional.max_unpool2d(net.middle(y), where, 2))
    torch.testing.assert_close(result.net.module(x), expected)
    missing = rewrite(nn.Sequential(nn.Upsample(scale_factor=2)), rules.Upsample("max_unpool"), input=SIZE)
    assert missing.edits[0].reason == "no max pool before it goes from [3, 14, 18] to [3, 7, 9]"


@pytest.mark.parametrize(
    ("module", "kind", "reason"),
    [
        (nn.Upsample(scale_factor=1.5), "bilinear", "by no whole factor"),
        (nn.Upsample(scale_factor=2), "nearest", "it is nearest already"),
        (nn.Upsample(scale_factor=2, mode="bicubic"), "nearest", "it interpolates by 'bicubic'"),
        (nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), "nearest", "it keeps the corners"),
        (nn.Upsample(scale_factor=(2, 3)), "pixel_shuffle", "a pixel shuffle enlarges both axes alike"),
        (nn.ConvTranspose2d(3, 3, 3, 2, dilation=2), "nearest", "its kernel is dilated"),
        (
            nn.ConvTranspose2d(3, 3, 3, 2),
            "pixel_shuffle",
            "its output is not the input's size times the stride",
        ),
        (nn.ConvTranspose2d(3, 3, 1, 2), "bed_of_nails", "its kernel is shorter than its stride"),
        (nn.ConvTranspose2d(3, 3, 2, 2), "transposed", "it is a transposed convolution already"),
        (nn.ConvTranspose2d(3, 3, 2, 2), "max_unpool", "which an unpooling cannot stand for"),
    ],
)
def test_refusals(module: nn.Module, kind: str, reason: str) -> None:
    edit = made(module, kind).edits[0]
    assert edit.refused
    assert reason in str(edit.reason)


def test_a_kind_is_checked() -> None:
    with pytest.raises(RequestError, match="must be one of nearest"):
        rules.Upsample("bicubic")
