"""Untying is exact at its size; tying is the mean, or the least-squares best on images."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from convscope import rules
from convscope.errors import RequestError
from convscope.nn import LocallyConnected2d
from convscope.rewrites.rewrite import rewrite


@settings(max_examples=12, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    groups=st.sampled_from([1, 2]),
    mode=st.sampled_from(["zeros", "reflect"]),
)
def test_untied_and_tied_again(
    kernel: tuple[int, int], stride: int, padding: int, groups: int, mode: str
) -> None:
    conv = nn.Conv2d(2, 4, kernel, stride, padding, groups=groups, padding_mode=mode)
    made = rewrite(nn.Sequential(conv), rules.Untie() | rules.Tie(), input="2x7x9")
    untied, tied = made.done
    assert (untied.exactness, tied.exactness) == ("exact", "exact")
    assert untied.fixed_size
    assert untied.params is not None
    assert untied.macs is not None
    assert untied.params[1] == untied.macs[1] + 4  # one number a multiplication, and the shared bias
    x = torch.randn(2, 2, 7, 9)
    torch.testing.assert_close(made.net.module(x), conv(x))


def test_memory_is_capped() -> None:
    edit = rewrite(nn.Sequential(nn.Conv2d(3, 64, 3)), rules.Untie(memory=1), input="3x66x66").edits[0]
    assert (
        edit.reason == "its kernels would take 27 MiB, more than memory=1"
    )  # 64 x 64 positions of 1728 floats
    with pytest.raises(RequestError, match="positive number of MiB"):
        rules.Untie(0)


def test_several_sizes_are_refused() -> None:
    conv = nn.Conv2d(2, 2, 3)
    edit = rewrite(nn.Sequential(conv, nn.ReLU(), conv), rules.Untie(), input="2x9x9").edits[0]
    assert edit.reason == "it is called on maps of several sizes"


def test_tying_without_images_is_the_mean() -> None:
    layer = LocallyConnected2d(2, 3, 3, input_size=(6, 6))
    made = rewrite(nn.Sequential(layer), rules.Tie(), input="2x6x6")
    edit = made.done[0]
    assert (edit.exactness, edit.notes) == ("approximate", ("without data: the mean of the kernels",))
    mean = layer.weight.mean((0, 1))[0].movedim(-1, 1)
    torch.testing.assert_close(made.net.module[0].weight, mean)  # type: ignore[index]


@pytest.mark.parametrize("bias", [True, False])
def test_tying_with_images_is_the_least_squares_fit(bias: bool) -> None:
    torch.manual_seed(0)
    layer = LocallyConnected2d(2, 3, 3, padding=1, bias=bias, input_size=(5, 6), shared_bias=False)
    data = torch.randn(30, 2, 5, 6).cumsum(3)
    made = rewrite(nn.Sequential(layer), rules.Tie(), data=data, input="2x5x6")
    new = made.net.module[0]  # type: ignore[index]
    with torch.no_grad():
        patches = functional.unfold(data, 3, padding=1).mT.flatten(0, 1).double()
        if bias:
            patches = torch.cat([patches, patches.new_ones(len(patches), 1)], 1)
        solved = torch.linalg.lstsq(patches, layer(data).flatten(2).mT.flatten(0, 1).double()).solution
    torch.testing.assert_close(new.weight.flatten(1).double(), solved[:18].T, atol=1e-4, rtol=1e-3)
    if bias:
        torch.testing.assert_close(new.bias.double(), solved[18], atol=1e-4, rtol=1e-3)
    else:
        assert new.bias is None
