"""Kernels grown in zeros are exact everywhere; shrunk ones are the least-squares best, against a brute-force fit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from convscope import rules
from convscope.errors import RequestError
from convscope.rewrites.rewrite import rewrite


@settings(max_examples=25, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    more=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    stride=st.integers(1, 3),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
)
def test_larger_is_exact(
    kernel: tuple[int, int],
    more: tuple[int, int],
    stride: int,
    padding: tuple[int, int],
    dilation: int,
    groups: int,
) -> None:
    conv = nn.Conv2d(2, 4, kernel, stride, padding, dilation, groups)
    wanted = (kernel[0] + more[0], kernel[1] + more[1])
    made = rewrite(nn.Sequential(conv), rules.KernelSize(wanted), input="2x13x15")
    if more == (0, 0):
        assert made.edits[0].reason is not None
        return
    assert made.done[0].exactness == "exact"
    new = made.net.module[0]  # type: ignore[index]
    assert new.kernel_size == wanted
    x = torch.randn(2, 2, 13, 15)
    torch.testing.assert_close(new(x), conv(x))


def test_shrinking_without_data_keeps_each_filters_sum() -> None:
    conv = nn.Conv2d(2, 3, 5, padding=2)
    made = rewrite(nn.Sequential(conv), rules.KernelSize(3), input="2x16x16")
    edit = made.done[0]
    assert (edit.exactness, edit.resolved) == ("approximate", {"method": "sum"})
    assert edit.notes == ("without data: the centre crop, each filter keeping its sum",)
    new = made.net.module[0]  # type: ignore[index]
    torch.testing.assert_close(new.weight.sum((2, 3)), conv.weight.sum((2, 3)))
    assert new.padding == (1, 1)
    x = torch.ones(1, 2, 16, 16)  # on a constant the sum is all that counts
    torch.testing.assert_close(new(x)[..., 2:-2, 2:-2], conv(x)[..., 2:-2, 2:-2])
    cropped = rewrite(nn.Sequential(conv), rules.KernelSize(3, method="crop"), input="2x16x16")
    torch.testing.assert_close(cropped.net.module[0].weight, conv.weight[:, :, 1:-1, 1:-1])  # type: ignore[index]


def test_shrinking_with_data_is_the_least_squares_fit() -> None:
    torch.manual_seed(0)
    first, conv = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 5, padding=2, groups=2)
    data = torch.randn(12, 3, 14, 14)
    data = data + data.roll(1, 2) + data.roll(1, 3)  # neighbours go together, as in pictures
    made = rewrite(
        nn.Sequential(first, nn.ReLU(), conv), rules.KernelSize(3, where="2"), data=data, input="3x14x14"
    )
    new = made.net.module[2]  # type: ignore[index]
    with torch.no_grad():
        x = functional.relu(first(data))
        y = conv(x)
        for group in range(2):  # the same by torch's own solver on the unfolded patches
            part = functional.unfold(x[:, 2 * group : 2 * group + 2], 3, padding=1).mT.flatten(0, 1)
            part = torch.cat([part, torch.ones(len(part), 1)], 1).double()
            target = y[:, 3 * group : 3 * group + 3].flatten(2).mT.flatten(0, 1).double()
            solved = torch.linalg.lstsq(part, target).solution
            weight = new.weight[3 * group : 3 * group + 3].flatten(1).double()
            torch.testing.assert_close(weight, solved[:-1].T, atol=2e-4, rtol=1e-3)
            torch.testing.assert_close(
                new.bias[3 * group : 3 * group + 3].double(), solved[-1], atol=2e-4, rtol=1e-3
            )
        fitted = (new(x) - y).square().mean()
        crop = rewrite(
            nn.Sequential(first, nn.ReLU(), conv), rules.KernelSize(3, "crop", where="2"), input="3x14x14"
        ).net.module
        assert fitted < 0.6 * (crop[2](x) - y).square().mean()  # type: ignore[index]


@pytest.mark.parametrize(
    ("conv", "size", "reason"),
    [
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), 5, "its padding is 'reflect'"),
        (nn.Conv2d(2, 2, (3, 5), padding=(1, 2)), (5, 3), "one axis would grow and the other shrink"),
        (nn.Conv2d(2, 2, 5, padding=1), 1, "its padding is narrower than what the kernel loses"),
        (nn.Conv2d(2, 2, 3), 3, "its kernel is 3x3 already"),
    ],
)
def test_refusals(conv: nn.Conv2d, size: int | tuple[int, int], reason: str) -> None:
    made = rewrite(nn.Sequential(conv), rules.KernelSize(size), input="2x16x16")
    assert made.edits[0].reason is not None
    assert reason in made.edits[0].reason


def test_least_squares_without_images_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(2, 2, 5, padding=2))
    made = rewrite(net, rules.KernelSize(3, "least_squares"), input="2x16x16")
    assert made.edits[0].reason == 'method="least_squares" needs images; give data='


def test_arguments_are_checked() -> None:
    with pytest.raises(RequestError, match="whole number from 1"):
        rules.KernelSize(0)
    with pytest.raises(RequestError, match="must be one of"):
        rules.KernelSize(3, "best")


def test_tensorflows_same_padding_grows_evenly() -> None:
    from convscope._torchvision import declare_missing_operators

    declare_missing_operators()
    from timm.layers.conv2d_same import Conv2dSame

    for size in (15, 16):
        conv = Conv2dSame(2, 4, 3, stride=2)
        made = rewrite(nn.Sequential(conv), rules.KernelSize(5), input=f"2x{size}x{size}")
        assert made.done[0].exactness == "exact"
        x = torch.randn(1, 2, size + 1, size)  # odd and even: the padding is another
        torch.testing.assert_close(made.net.module(x), conv(x))
    once = rewrite(nn.Sequential(Conv2dSame(2, 4, 3, stride=2)), rules.KernelSize(4), input="2x16x16")
    assert once.edits[0].reason is not None
    assert "same" in once.edits[0].reason
