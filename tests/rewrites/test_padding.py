"""Padding modes differ within the padding's reach and nowhere else; same and valid differ in size alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from convscope import rules
from convscope.errors import RequestError
from convscope.rewrites.rewrite import rewrite


def made(module: nn.Module, kind: str, size: str = "2x17x19") -> Any:
    return rewrite(nn.Sequential(module), rules.Padding(kind), input=size)


@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from(["reflect", "replicate", "circular", "partial"]),
    kernel=st.integers(2, 5),
    stride=st.integers(1, 3),
    padding=st.integers(1, 3),
    dilation=st.integers(1, 2),
)
def test_modes_are_exact_inside(kind: str, kernel: int, stride: int, padding: int, dilation: int) -> None:
    conv = nn.Conv2d(2, 3, kernel, stride, padding, dilation)
    edit = made(conv, kind, "2x40x41").done[0]
    assert edit.exactness == "exact-interior"
    assert edit.margin == (-(-padding // stride),) * 2
    assert edit.error is not None
    assert edit.error < 1e-12


@pytest.mark.parametrize("kind", ["reflect", "replicate", "circular"])
def test_the_border_is_torchs_own(kind: str) -> None:
    conv = nn.Conv2d(2, 3, 3, padding=1)
    new = made(conv, kind).net.module
    x = torch.randn(1, 2, 17, 19)
    expected = functional.conv2d(functional.pad(x, (1, 1, 1, 1), mode=kind), conv.weight, conv.bias)
    torch.testing.assert_close(new(x), expected)


def test_partial_padding_rescales_by_the_covered_area() -> None:
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.ones_(conv.weight)
    y = made(conv, "partial", "1x5x5").net.module(torch.ones(1, 1, 5, 5))
    torch.testing.assert_close(y, torch.full((1, 1, 5, 5), 9.0))


def test_same_and_valid_change_the_size_alone() -> None:
    conv = nn.Conv2d(2, 3, (3, 5))
    grown = made(conv, "same")
    x = torch.randn(1, 2, 17, 19)
    y = grown.net.module(x)
    assert y.shape[-2:] == (17, 19)
    torch.testing.assert_close(y[..., 1:-1, 2:-2], conv(x))
    assert grown.done[0].exactness == "exact-interior"

    padded = nn.Conv2d(2, 3, 5, padding=2, dilation=2)
    shrunk = made(padded, "valid").net.module(x)
    torch.testing.assert_close(shrunk, padded(x)[..., 2:-2, 2:-2])


def test_average_pooling() -> None:
    pool = nn.AvgPool2d(3, 2, 1)
    new = made(pool, "partial").net.module
    assert not new[0].count_include_pad
    assert made(new[0], "zeros").net.module[0].count_include_pad


@pytest.mark.parametrize(
    ("module", "kind", "reason"),
    [
        (nn.Conv2d(2, 2, 3), "reflect", "it has no padding"),
        (nn.Conv2d(2, 2, 3, padding=1), "zeros", "its padding is 'zeros' already"),
        (nn.Conv2d(2, 2, 3, padding=1), "same", "its padding is 'same' already"),
        (nn.Conv2d(2, 2, 3, stride=2), "same", "at stride 2x2 other padding samples other pixels"),
        (
            nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"),
            "valid",
            "its padding is 'reflect', not zeros",
        ),
        (nn.Conv2d(2, 2, 41, padding=20), "reflect", "leaves nothing to reflect"),
        (nn.Conv2d(2, 2, 41, padding=20), "circular", "leaves nothing to wrap around"),
        (nn.Conv2d(2, 2, 21, padding=10), "valid", "its map is smaller than its kernel"),
        (nn.AvgPool2d(2), "partial", "it has no padding"),
        (nn.AvgPool2d(3, 1, 1), "reflect", "an average pooling is padded by zeros or partially"),
        (nn.AvgPool2d(3, 1, 1, divisor_override=2), "partial", "it divides by a number of its own"),
        (nn.AvgPool2d(3, 1, 1), "zeros", "its padding is 'zeros' already"),
    ],
)
def test_refusals(module: nn.Module, kind: str, reason: str) -> None:
    edit = made(module, kind).edits[0]
    assert edit.refused
    assert reason in str(edit.reason)


def test_a_kind_is_checked() -> None:
    with pytest.raises(RequestError, match="kind='mirror' must be one of"):
        rules.Padding("mirror")


class Residual(nn.Module):
    """A block that adds its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


def test_sizes_that_no_longer_fit_are_taken_back() -> None:
    net = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), Residual())
    refused = rewrite(net, rules.Padding("valid"), input="2x17x19")
    assert [edit.layer for edit in refused.refused] == ["0", "1.conv"]
    assert str(refused.edits[0].reason).startswith(
        "the network does not run on maps of other sizes (The size of tensor"
    )
    assert str(refused.net.module) == str(net)
    x = torch.randn(1, 2, 17, 19)
    assert torch.equal(refused.net.module(x), net(x))
    done = rewrite(net, rules.Padding("valid", where="0"), input="2x17x19")
    assert done.net.module(x).shape == (1, 2, 15, 17)
