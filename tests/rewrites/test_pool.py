"""Pools exchanged keep their size; strided convolutions are the exact mean or the least-squares best of a maximum."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from convscope import nn as layers
from convscope import rules
from convscope.errors import RequestError
from convscope.rewrites.rewrite import rewrite


def made(module: nn.Module, rule: rules.Pool, data: Tensor | None = None) -> Any:
    return rewrite(nn.Sequential(module), rule, input="4x16x18", data=data)


def test_max_and_average_are_exchanged() -> None:
    x = torch.randn(2, 4, 16, 18)
    there = made(nn.MaxPool2d(3, 2, 1), rules.Pool("average"))
    assert there.done[0].exactness == "approximate"
    y = functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
    torch.testing.assert_close(there.net.module(x), y)
    back = rewrite(there.net, rules.Pool("max"))
    torch.testing.assert_close(back.net.module(x), functional.max_pool2d(x, 3, 2, 1))
    wider = made(nn.MaxPool2d(2), rules.Pool("max", window=4))
    torch.testing.assert_close(wider.net.module(x), functional.max_pool2d(x, 4, 2, 1))


def test_an_average_is_a_convolution() -> None:
    for pool in (nn.AvgPool2d(2), nn.AvgPool2d(3, 2, 1)):
        edit = made(pool, rules.Pool("strided")).done[0]
        assert edit.exactness == "exact"
        assert edit.params == (0, 4 * pool.kernel_size**2)  # type: ignore[operator]


def test_a_maximum_is_fitted_by_least_squares() -> None:
    torch.manual_seed(0)
    data = torch.randn(64, 4, 16, 18).relu()
    edit = made(nn.MaxPool2d(2), rules.Pool("strided"), data)
    new = edit.net.module[0]
    for channel in range(4):
        patches = functional.unfold(data[:, channel : channel + 1], 2, stride=2).mT.flatten(0, 1).double()
        patches = torch.cat([patches, patches.new_ones(len(patches), 1)], 1)
        target = functional.max_pool2d(data[:, channel : channel + 1], 2).flatten().double()
        solved = torch.linalg.lstsq(patches, target[:, None]).solution[:, 0]
        torch.testing.assert_close(new.weight[channel].flatten().double(), solved[:4], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(new.bias[channel].double(), solved[4], atol=1e-4, rtol=1e-3)
    share = float(edit.done[0].notes[0].rpartition(" ")[2])
    assert abs(share - 0.76) < 0.03  # what rectified Gaussian inputs allow
    assert abs(float(new.weight.mean()) - 0.49) < 0.02
    without = made(nn.MaxPool2d(2), rules.Pool("strided"))
    assert without.done[0].notes == ("without data: the taps that suit rectified Gaussian inputs",)
    torch.testing.assert_close(without.net.module[0].weight, torch.full((4, 1, 2, 2), 0.49), atol=0, rtol=0)


def test_a_blurred_maximum() -> None:
    x = torch.randn(1, 4, 16, 18)
    new = made(nn.MaxPool2d(3, 2, 1), rules.Pool("blur")).net.module
    assert isinstance(new[0], layers.MaxBlurPool2d)
    assert new(x).shape == (1, 4, 8, 9)


def test_a_stride_moves_into_the_convolution() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, padding=1)
    net = nn.Sequential(conv, nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 2, 3)).eval()
    moved = rewrite(net, rules.Pool("moved"), input="4x16x18")
    edit = moved.done[0]
    assert edit.notes == ("its stride moved into 0, whose multiply-accumulates are told",)
    assert edit.macs == (6 * 4 * 9 * 16 * 18, 6 * 4 * 9 * 8 * 9)
    x = torch.randn(2, 4, 16, 18)
    kept = net[2](net[1](conv(x)))[..., ::2, ::2]
    torch.testing.assert_close(moved.net.module[:4](x), kept)  # type: ignore[index]
    assert edit.rms_error is not None
    assert 0.1 < edit.rms_error < 1.5


def test_identities_between_are_looked_through() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Identity(), nn.Dropout(0.5), nn.MaxPool2d(2)).eval()
    assert rewrite(net, rules.Pool("moved"), input="4x16x18").done[0].layer == "3"
    none = rewrite(nn.Sequential(nn.Identity(), nn.MaxPool2d(2)), rules.Pool("moved"), input="4x16x18")
    assert none.edits[0].reason == "no convolution gives its map to it alone"


def test_global_pools() -> None:
    x = torch.randn(2, 4, 16, 18)
    new = made(nn.AdaptiveAvgPool2d(1), rules.Pool("max")).net.module
    torch.testing.assert_close(new(x), x.amax((2, 3), keepdim=True))
    new = made(layers.GlobalMaxPool2d(keepdim=False), rules.Pool("average")).net.module
    torch.testing.assert_close(new(x), x.mean((2, 3)))


class Functional(nn.Module):
    """Pools by a function, and at the end by another."""

    def __init__(self, pool: Callable[[Tensor], Tensor], head: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.pool_by, self.head = nn.Conv2d(4, 4, 3), pool, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool_by(self.conv(x)))


class PaddedPool(nn.MaxPool2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(functional.pad(input, (0, 1, 0, 1)))


class Choosy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.max_pool2d(x, 2) if float(x.sum()) < 1e9 else x


class Padded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.max_pool2d(functional.pad(x, (0, 1, 0, 1), value=-math.inf), 2)


class Computed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.max_pool2d(x, x.shape[2] // 8)


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        (
            lambda x: functional.max_pool2d(x, 3, 2, 1),
            "AvgPool2d(kernel_size=(3, 3), stride=(2, 2), padding=(1, 1))",
        ),
        (
            lambda x: torch.max_pool2d(x, 2, stride=1),
            "AvgPool2d(kernel_size=(2, 2), stride=(1, 1), padding=(0, 0))",
        ),
        (lambda x: functional.adaptive_max_pool2d(x, 1), "AdaptiveAvgPool2d(output_size=1)"),
        (lambda x: x.amax(dim=(-2, -1), keepdim=True), "GlobalAvgPool2d()"),
    ],
)
def test_functional_pools_become_layers(pool: Callable[[Tensor], Tensor], expected: str) -> None:
    net = nn.Sequential(Functional(pool, torch.relu))
    new = rewrite(net, rules.Pool("average"), input="4x16x18")
    assert [(edit.layer, edit.after) for edit in new.done] == [("0.pool", expected)]
    assert new.net.module.state_dict().keys() == net.state_dict().keys()
    assert "pool" not in dict(net[0].named_children())
    back = rewrite(new.net, rules.Pool("max", where="0.pool"))
    x = torch.randn(2, 4, 16, 18)
    torch.testing.assert_close(back.net.module(x), net(x))


def test_functional_heads() -> None:
    net = nn.Sequential(Functional(lambda x: functional.avg_pool2d(x, 2), lambda x: x.mean([2, 3])))
    new = rewrite(net, rules.Pool("max"), input="4x16x18")
    x = torch.randn(2, 4, 16, 18)
    assert [edit.layer for edit in new.done] == ["0.pool", "0.pool2"]
    torch.testing.assert_close(new.net.module(x), functional.max_pool2d(net[0].conv(x), 2).amax((2, 3)))  # type: ignore[operator]


def test_a_forward_whose_pools_stay_stays() -> None:
    net = nn.Sequential(Functional(lambda x: functional.max_pool2d(x, 2), torch.relu))
    edit, *others = rewrite(net, rules.Pool("max"), input="4x16x18").edits
    assert not others
    assert edit.layer == "0"
    assert str(edit.reason).endswith("in its forward: it is a pooling by max of 2x2 already")
    chain = rules.Pool("max") | rules.KernelSize(5)
    new = rewrite(net, chain, input="4x16x18").net.module
    assert type(new[0]) is Functional  # type: ignore[index]
    assert new[0].conv.kernel_size == (5, 5)  # type: ignore[index]


@pytest.mark.parametrize(
    ("module", "rule", "reason"),
    [
        (nn.MaxPool2d(2), rules.Pool("max"), "it is a pooling by max of 2x2 already"),
        (nn.MaxPool2d(2), rules.Pool("average", window=3), "take one that differs by an even number"),
        (nn.MaxPool2d(2, dilation=2), rules.Pool("average"), "its window is dilated"),
        (nn.AvgPool2d(2, divisor_override=3), rules.Pool("max"), "it divides by a number of its own"),
        (nn.MaxPool2d(3, 2, ceil_mode=True), rules.Pool("strided"), "it rounds sizes up"),
        (nn.MaxPool2d(3, 2, ceil_mode=True), rules.Pool("blur"), "it rounds sizes up"),
        (nn.AvgPool2d(2), rules.Pool("blur"), "it is an average, which is a blur already"),
        (
            nn.AvgPool2d(3, 1, 1, count_include_pad=False),
            rules.Pool("strided"),
            "leaves its padding out of the mean",
        ),
        (nn.MaxPool2d(3, 2, 1), rules.Pool("moved"), "its padding or rounding would move"),
        (nn.MaxPool2d(3, 2), rules.Pool("moved"), "its windows overlap, or leave gaps"),
        (nn.MaxPool2d(2), rules.Pool("moved"), "no convolution gives its map to it alone"),
        (nn.AdaptiveAvgPool2d(2), rules.Pool("max"), "whose windows depend on the size of the input"),
        (nn.AdaptiveAvgPool2d(1), rules.Pool("strided"), "for which 'strided' has no meaning"),
        (nn.AdaptiveAvgPool2d(1), rules.Pool("moved"), "has no stride to move"),
        (nn.AdaptiveAvgPool2d(1), rules.Pool("average"), "it is a pooling by average already"),
        (
            PaddedPool(2),
            rules.Pool("average"),
            "it is a PaddedPool, whose forward pass may do more than pool",
        ),
        (Choosy(), rules.Pool("average"), "which cannot be traced"),
        (Padded(), rules.Pool("average"), "which has no call of a pool, of a map as it comes, with plain"),
        (Computed(), rules.Pool("average"), "which has no call of a pool, of a map as it comes, with plain"),
    ],
)
def test_refusals(module: nn.Module, rule: rules.Pool, reason: str) -> None:
    edit = made(module, rule).edits[0]
    assert edit.refused
    assert reason in str(edit.reason)


def test_a_map_too_small_to_be_blurred() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, (16, 17)), nn.MaxPool2d((1, 2), 1))  # of a map of 1x2
    edit = rewrite(net, rules.Pool("blur"), input="4x16x18").edits[0]
    assert str(edit.reason).startswith("its map of [1, 2] is too small for the new one (")


def test_arguments_are_checked() -> None:
    with pytest.raises(RequestError, match="must be one of max, average"):
        rules.Pool("median")
    with pytest.raises(RequestError, match="whole number from 1"):
        rules.Pool("max", window=0)
    with pytest.raises(RequestError, match="goes with kind='max' or 'average'"):
        rules.Pool("blur", window=3)


class Listed(nn.Module):
    """Pools by a function, and goes through a list of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return functional.avg_pool2d(x, 2)


@pytest.mark.parametrize("kind", ["average", "max"])
def test_a_list_of_layers_stays_one(kind: str) -> None:
    net = nn.Sequential(Listed(), nn.Flatten()).eval()
    x = torch.randn(2, 3, 12, 12)
    made = rewrite(net, f"pool:kind={kind}", input="3x12x12").net.module
    wanted = net(x) if kind == "average" else functional.max_pool2d(net[0].layers[1](net[0].layers[0](x)), 2)
    assert torch.allclose(made(x), wanted.flatten(1), atol=1e-6)
    assert type(made[0].layers) is nn.ModuleList
