"""Direct, with its weight packed beforehand: the same convolution, with the rectifier in it, in the layout asked for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from convscope.algorithms import conv2d, direct, prepare
from convscope.algorithms.candidates import allowed
from convscope.algorithms.direct import DirectKernel, PackedKernel
from convscope.algorithms.problem import Problem

LAST = torch.channels_last
needs_onednn = pytest.mark.skipif(not direct._onednn(), reason="torch has no oneDNN here")


@needs_onednn
@given(
    st.integers(1, 2), st.sampled_from([1, 2, 4]), st.tuples(st.integers(1, 3), st.integers(1, 4)), st.integers(1, 2),
    st.tuples(*[st.integers(0, 2)] * 4), st.integers(1, 2), st.booleans(), st.booleans(),
)  # fmt: skip
def test_packed_is_the_convolution(
    batch: int, groups: int, kernel: tuple[int, int], stride: int, around: tuple[int, int, int, int], dilation: int,
    bias: bool, relu: bool,
) -> None:  # fmt: skip
    x, weight = torch.randn(batch, 4, 11, 13), torch.randn(8, 4 // groups, *kernel)
    added = torch.randn(8) if bias else None
    top, bottom, left, right = around
    padding = ((top, bottom), (left, right))
    plan = prepare(
        weight, added, stride=stride, padding=padding, dilation=dilation, groups=groups, algorithm="direct:packed",
        activation="relu" if relu else None,
    )  # fmt: skip
    wide = F.pad(x.double(), (left, right, top, bottom))
    wanted = F.conv2d(
        wide, weight.double(), None if added is None else added.double(), stride, 0, dilation, groups
    )
    y = plan(x)
    torch.testing.assert_close(y.double(), wanted.relu() if relu else wanted, atol=1e-4, rtol=1e-4)
    assert y.is_contiguous()
    assert plan(x.contiguous(memory_format=LAST)).is_contiguous(memory_format=LAST)
    assert isinstance(next(iter(plan._kernels.values())), PackedKernel)


def test_where_onednn_does_not_serve_it_is_channels_last(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(x: Tensor, weight: Tensor) -> object:
        plan = prepare(weight, algorithm="direct:packed")
        torch.testing.assert_close(plan(x), F.conv2d(x, weight))
        return next(iter(plan._kernels.values()), None)

    x, weight = torch.randn(1, 2, 6, 6), torch.randn(3, 2, 3, 3)
    assert isinstance(kernel(x.double(), weight.double()), DirectKernel)
    assert kernel(x[:0], weight) is None
    monkeypatch.setattr(direct, "_onednn", lambda: False)
    assert isinstance(kernel(x, weight), DirectKernel)


def test_unprepared_it_is_channels_last_and_nobodys_choice() -> None:
    x, weight = torch.randn(1, 2, 6, 6), torch.randn(3, 2, 3, 3)
    torch.testing.assert_close(conv2d(x, weight, algorithm="direct:packed"), F.conv2d(x, weight))
    problem = Problem.of(x, weight, 1, 0, 1, 1)
    found, out = allowed(problem, None, "once")
    assert all(each.variant != direct.PACKED for each in found)
    if direct._onednn():
        assert "its weight would be packed for one call" in [each.reason for each in out]
        assert any(each.variant == direct.PACKED for each in allowed(problem, None, "prepared")[0])


@needs_onednn
def test_packed_follows_its_weight_and_wants_no_gradient() -> None:
    x, weight = torch.randn(1, 2, 6, 6), torch.randn(3, 2, 3, 3)
    plan = prepare(weight, algorithm="direct:packed")
    plan(x)
    weight.mul_(2)
    y = plan(x)
    torch.testing.assert_close(y, F.conv2d(x, weight))
    assert not y.requires_grad
