"""The equivalences between layers, as properties over shapes: where two layers are one, they give one result.

All in float64, on inputs and weights drawn at random; sizes, kernels, strides and channels are hypothesis's choice.
"""

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from convscope.nn import (
    BedOfNails2d,
    Conv2d,
    LocallyConnected1d,
    LocallyConnected2d,
    MaxUnpool2d,
    NearestUpsample2d,
    PointwiseConv2d,
    SeparableConv2d,
    SwitchedMaxPool2d,
    TransposedConv2d,
)

Pair = tuple[int, int]


def pairs(least: int, most: int) -> st.SearchStrategy[Pair]:
    return st.tuples(st.integers(least, most), st.integers(least, most))


BATCH = st.integers(0, 3)
CHANNELS = st.integers(1, 4)
F64 = torch.float64


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=F64)


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@given(BATCH, CHANNELS, CHANNELS, pairs(1, 6), pairs(1, 3), st.booleans())
def test_a_1x1_convolution_is_a_linear_layer_at_every_position(
    batch: int, inputs: int, outputs: int, size: Pair, stride: Pair, bias: bool
) -> None:
    conv = PointwiseConv2d(inputs, outputs, stride, bias=bias, dtype=F64)
    linear = nn.Linear(inputs, outputs, bias, dtype=F64)
    linear.load_state_dict(conv.state_dict() | {"weight": conv.weight[..., 0, 0]})
    x = draw(batch, inputs, *size)
    positions = x[..., :: stride[0], :: stride[1]].movedim(1, -1)  # [batch, height', width', channels]
    same(conv(x), linear(positions).movedim(-1, 1))


@given(
    BATCH,
    st.sampled_from([(1, 2, 1), (2, 4, 2), (4, 4, 4), (3, 1, 1)]),
    pairs(5, 8),
    pairs(1, 3),
    pairs(1, 3),
    pairs(1, 2),
    st.sampled_from(["valid", "same", "full", 1, ((0, 2), (1, 0))]),
    st.sampled_from(["zeros", "reflect", "replicate", "circular", "partial"]),
    st.booleans(),
)
def test_a_locally_connected_layer_with_tied_weights_is_a_convolution(
    batch: int,
    channels: tuple[int, int, int],
    size: Pair,
    kernel: Pair,
    stride: Pair,
    dilation: Pair,
    padding: str | int | tuple[Pair, Pair],
    mode: str,
    shared_bias: bool,
) -> None:
    inputs, outputs, groups = channels
    conv = Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, padding_mode=mode, dtype=F64)
    local = LocallyConnected2d.from_conv(conv, size, shared_bias=shared_bias)
    x = draw(batch, inputs, *size)
    y = conv(x)
    same(local(x), y)
    if mode == "partial":  # whose weights from_conv scales position by position
        return
    tied = torch.autograd.grad(y.sin().sum(), conv.weight)[0]
    untied = torch.autograd.grad(local(x).sin().sum(), local.weight)[0]  # [h', w', groups, out, kernel, in]
    same(untied.sum((0, 1)).flatten(0, 1).movedim(-1, 1), tied)


@given(BATCH, CHANNELS, CHANNELS, st.integers(4, 9), st.integers(1, 4), st.integers(1, 3))
def test_a_locally_connected_layer_with_tied_weights_is_a_convolution_in_one_dimension(
    batch: int, inputs: int, outputs: int, length: int, kernel: int, stride: int
) -> None:
    conv = nn.Conv1d(inputs, outputs, kernel, stride, padding=1, dtype=F64)
    x = draw(batch, inputs, length)
    same(LocallyConnected1d.from_conv(conv, length)(x), conv(x))


@given(BATCH, CHANNELS, st.integers(1, 12), pairs(1, 6), pairs(1, 4), pairs(1, 2))
def test_a_separable_convolution_of_full_rank_is_a_convolution(
    batch: int, inputs: int, outputs: int, size: Pair, kernel: Pair, stride: Pair
) -> None:
    conv = Conv2d(inputs, outputs, kernel, stride, "same", dtype=F64)
    rank = min(outputs, kernel[0] * kernel[1])
    layer = SeparableConv2d(inputs, outputs, kernel, stride, "same", depth_multiplier=rank, dtype=F64)
    slices = conv.weight.detach().flatten(2).transpose(0, 1)  # [inputs, outputs, taps]
    mixed, scale, taps = torch.linalg.svd(slices, full_matrices=False)
    with torch.no_grad():
        layer.depthwise.weight.copy_(taps.reshape(inputs * rank, 1, *kernel))
        mixed = (mixed * scale[:, None]).permute(1, 0, 2)  # [outputs, inputs, rank]
        layer.pointwise.weight.copy_(mixed.reshape(outputs, inputs * rank, 1, 1))
        layer.pointwise.bias.copy_(conv.bias)  # type: ignore[union-attr,arg-type]
    x = draw(batch, inputs, *size)
    same(layer(x), conv(x))


@given(
    BATCH,
    CHANNELS,
    pairs(6, 10),
    pairs(1, 3),
    pairs(1, 3),
    st.integers(1, 2),
    st.sampled_from(["valid", "same", "full", 2]),
)
def test_every_second_position_of_a_convolution_is_the_convolution_of_stride_two(
    batch: int, channels: int, size: Pair, kernel: Pair, stride: Pair, dilation: int, padding: str | int
) -> None:
    dense = Conv2d(channels, 2, kernel, 1, padding, dilation, dtype=F64)
    strided = Conv2d(channels, 2, kernel, stride, padding, dilation, dtype=F64)
    strided.load_state_dict(dense.state_dict())
    x = draw(batch, channels, *size)
    # "same" pads by the stride: the first position may lie a few pixels further on
    rows, columns = (
        slice(before - begin, None, step)
        for (before, _), (begin, _), step in zip(dense.sides(size), strided.sides(size), stride, strict=True)
    )
    y = strided(x)
    same(dense(x)[..., rows, columns][..., : y.shape[2], : y.shape[3]], y)
    if padding != "same":
        assert dense(x)[..., :: stride[0], :: stride[1]].shape == y.shape


@given(BATCH, CHANNELS, CHANNELS, pairs(1, 5), pairs(1, 4), pairs(1, 4))
def test_nearest_upsampling_and_a_constant_kernel_are_a_transposed_convolution(
    batch: int, inputs: int, outputs: int, size: Pair, scale: Pair, kernel: Pair
) -> None:
    conv = Conv2d(inputs, outputs, kernel, padding="full", dtype=F64)
    conv.weight.data[:] = conv.weight.data[..., :1, :1]  # a number for each pair of channels
    spread = [s + k - 1 for s, k in zip(scale, kernel, strict=True)]
    transposed = TransposedConv2d(inputs, outputs, spread, stride=scale, dtype=F64)
    box = torch.zeros(spread, dtype=F64)  # in how many ways a repeated pixel reaches an output
    for row, column, down, right in itertools.product(*map(range, (*scale, *kernel))):
        box[row + down, column + right] += 1
    with torch.no_grad():
        transposed.weight.copy_(conv.weight[..., 0, 0].t()[..., None, None] * box)
        transposed.bias.copy_(conv.bias)  # type: ignore[union-attr,arg-type]
    x = draw(batch, inputs, *size)
    same(conv(NearestUpsample2d(scale)(x)), transposed(x))


@given(BATCH, CHANNELS, CHANNELS, pairs(1, 5), pairs(1, 4), pairs(1, 4), st.data())
def test_bed_of_nails_and_a_convolution_are_a_transposed_convolution(
    batch: int, inputs: int, outputs: int, size: Pair, scale: Pair, kernel: Pair, data: st.DataObject
) -> None:
    cut = tuple(data.draw(st.integers(0, k - 1)) for k in kernel)  # the transposed convolution's padding
    wider = tuple((k - 1 - c, k - 1 - c) for k, c in zip(kernel, cut, strict=True))
    if any(n * s + k - 1 - 2 * c < 1 for n, s, k, c in zip(size, scale, kernel, cut, strict=True)):
        return  # all of it is cut away
    conv = Conv2d(inputs, outputs, kernel, padding=wider, dtype=F64)
    behind = tuple(s - 1 for s in scale)  # zeros after the last nail
    transposed = TransposedConv2d(inputs, outputs, kernel, scale, cut, behind, dtype=F64)
    with torch.no_grad():
        transposed.weight.copy_(conv.weight.transpose(0, 1).flip(-1, -2))
        transposed.bias.copy_(conv.bias)  # type: ignore[union-attr,arg-type]
    x = draw(batch, inputs, *size)
    same(conv(BedOfNails2d(scale)(x)), transposed(x))


@given(BATCH, CHANNELS, CHANNELS, pairs(1, 6))
def test_a_kernel_as_large_as_the_image_is_a_fully_connected_layer(
    batch: int, inputs: int, outputs: int, size: Pair
) -> None:
    conv = Conv2d(inputs, outputs, size, padding="valid", dtype=F64)
    linear = nn.Linear(inputs * size[0] * size[1], outputs, dtype=F64)
    linear.load_state_dict(conv.state_dict() | {"weight": conv.weight.flatten(1)})
    x = draw(batch, inputs, *size)
    same(conv(x).flatten(1), linear(x.flatten(1)))


@given(BATCH, CHANNELS, pairs(3, 9), pairs(1, 3), st.integers(1, 3), st.booleans())
def test_max_unpooling_after_max_pooling_restores_the_maxima_at_their_places(
    batch: int, channels: int, size: Pair, kernel: Pair, stride: int, padded: bool
) -> None:
    padding = tuple(k // 2 * padded for k in kernel)
    pool = SwitchedMaxPool2d(kernel, stride, padding)
    x = draw(batch, channels, *size)
    pooled = pool(x)
    y = MaxUnpool2d(pool)(pooled)
    assert y.shape == x.shape
    kept = y != 0
    assert torch.equal(y[kept], x[kept])  # what is there is at its place
    windows = nn.functional.pad(x, (padding[1],) * 2 + (padding[0],) * 2, value=-torch.inf)
    windows = windows.unfold(2, kernel[0], stride).unfold(3, kernel[1], stride).flatten(-2)
    assert torch.equal(pooled, windows.amax(-1))
    restored = nn.functional.pad(
        torch.where(kept, y, -torch.inf), (padding[1],) * 2 + (padding[0],) * 2, value=-torch.inf
    )
    restored = restored.unfold(2, kernel[0], stride).unfold(3, kernel[1], stride).flatten(-2)
    assert torch.equal(restored.amax(-1), pooled)  # the maximum of every window is there
    winners = torch.zeros_like(kept)  # and nothing else is
    for i, j in itertools.product(range(pooled.shape[2]), range(pooled.shape[3])):
        top, left = max(i * stride - padding[0], 0), max(j * stride - padding[1], 0)
        bottom, right = i * stride - padding[0] + kernel[0], j * stride - padding[1] + kernel[1]
        winners[..., top:bottom, left:right] |= (
            x[..., top:bottom, left:right] == pooled[..., i, j, None, None]
        )
    assert torch.equal(kept, winners)
