"""Which positions an operation reads along each axis: convolution, pooling, padding and resampling as tables of taps.

Every one of them is separable in what it reads, whatever its weights are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from convscope.graph import rules
from convscope.graph.rules import Step


def words(text: str) -> frozenset[str]:
    """The names in a text."""
    return frozenset(text.split())


CONVOLUTIONS = words("convolution _convolution convolution_overrideable mkldnn_convolution cudnn_convolution")
_PADS = {f"{kind}_pad{rank}d" for kind in ("reflection", "replication") for rank in (1, 2, 3)}


@dataclass(frozen=True)
class Along:
    """The taps of an operation along one axis.

    Attributes:
        axis: of the tensor read.
        taps: Tensor [out, in] of float64: how often each position of the result reads each position.
        outside: Tensor [out] of bool: whether it also reads beyond an end, where only padding is.
    """

    axis: int
    taps: Tensor
    outside: Tensor


def windows(step: Step) -> list[Along] | None:
    """The taps of an operation along each axis it has windows on; None for one that has none.

    Example:
        >>> from torch import nn
        >>> from convscope.graph import record
        >>> from convscope.graph.rules import follow
        >>> from convscope.models import InputSpec
        >>> graph = record(nn.Conv2d(1, 1, 3, padding=1), spec=InputSpec((1, 4, 5)))
        >>> rows, _ = windows(Step(graph.ops[0], follow(graph), ((1, 1, 4, 5),)))
        >>> rows.taps.tolist(), rows.outside.tolist()
        ([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0], [0.0, 1.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]],
         [True, False, False, True])
    """
    name = step.name
    if name in CONVOLUTIONS:
        return _convolution(step)
    if "pool" in name:
        return _adaptive(step) if "adaptive" in name else _pool(step)
    if name == "constant_pad_nd" or name in _PADS:
        return _pad(step)
    if "upsample" in name:
        return _resample(step)
    return None


def _along(axis: int, size: int, reads: Iterable[tuple[Tensor, Tensor]], count: int) -> Along:
    """From, for each tap, the position each result reads and whether it has that tap at all."""
    taps = torch.zeros(count, size, dtype=torch.float64)
    outside = torch.zeros(count, dtype=torch.bool)
    for at, exists in reads:
        inside = (at >= 0) & (at < size)
        outside |= exists & ~inside
        rows = (exists & inside).nonzero().flatten()
        taps[rows, at[rows]] += 1
    return Along(axis, taps, outside)


def _sliding(axis: int, size: int, count: int, kernel: int, stride: int, pad: int, dilation: int) -> Along:
    start = torch.arange(count) * stride - pad
    always = torch.ones(count, dtype=torch.bool)
    return _along(axis, size, ((start + dilation * tap, always) for tap in range(kernel)), count)


def _convolution(step: Step) -> list[Along]:
    weight, shape = step.tensor("weight").shape, step.tensor("input").shape
    rank = len(weight) - 2
    first = len(shape) - rank
    stride, pad, dilation = (rules._each(step.attr(name), rank) for name in ("stride", "padding", "dilation"))
    found = []
    for i in range(rank):
        axis, count = first + i, step.shape[first + i]
        if not step.attr("transposed", False):
            found.append(_sliding(axis, shape[axis], count, weight[2 + i], stride[i], pad[i], dilation[i]))
            continue
        # beyond the ends a transposed convolution misses what neighbours would add: zeros, in effect
        reads = []
        for tap in range(weight[2 + i]):
            at = torch.arange(count) + pad[i] - dilation[i] * tap
            reads.append((at.div(stride[i], rounding_mode="floor"), at % stride[i] == 0))
        found.append(_along(axis, shape[axis], reads, count))
    return found


def _pool(step: Step) -> list[Along]:
    shape = step.tensor().shape
    rank = int(step.name.partition("pool")[2][0])
    kernel = rules._each(step.attr("kernel_size"), rank)
    stride = rules._each(step.attr("stride") or kernel, rank)
    pad, dilation = rules._each(step.attr("padding", 0), rank), rules._each(step.attr("dilation", 1), rank)
    first = len(shape) - rank
    return [
        _sliding(
            first + i, shape[first + i], step.shape[first + i], kernel[i], stride[i], pad[i], dilation[i]
        )
        for i in range(rank)
    ]


def _adaptive(step: Step) -> list[Along]:
    shape = step.tensor().shape
    rank = int(step.name.partition("pool")[2][0])
    found = []
    for axis in range(len(shape) - rank, len(shape)):
        have, want = shape[axis], step.shape[axis]
        spans = [(q * have // want, -(-(q + 1) * have // want)) for q in range(want)]
        found.append(_listed(axis, have, [range(start, stop) for start, stop in spans]))
    return found


def _listed(axis: int, size: int, reads: Sequence[Sequence[int]], clamp: bool = False) -> Along:
    """From the list of positions that each result reads; `clamp` reads the last one in place of what is
    beyond.
    """
    taps = torch.zeros(len(reads), size, dtype=torch.float64)
    outside = torch.zeros(len(reads), dtype=torch.bool)
    for row, places in enumerate(reads):
        for at in places:
            outside[row] |= not 0 <= at < size
            if clamp or 0 <= at < size:
                taps[row, min(max(at, 0), size - 1)] += 1
    return Along(axis, taps, outside)


def _pad(step: Step) -> list[Along]:
    """What fills the new places is padding along an axis of the image, and nothing along any other."""
    trace = step.tensor()
    amounts = step.attr("pad", step.attr("padding"))
    found = []
    for i in range(len(amounts) // 2):
        axis, (before, after) = len(trace.axes) - 1 - i, amounts[2 * i : 2 * i + 2]
        if not (before or after):
            continue
        size, count = trace.axes[axis].size, step.shape[axis]
        at = torch.arange(count) - before
        outside = ((at < 0) | (at >= size)) & trace.axes[axis].is_spatial
        if step.name.startswith("reflection"):
            at = mirrored(at, size)
        elif step.name.startswith("replication"):
            at = at.clamp(0, size - 1)
        found.append(Along(axis, _along(axis, size, [(at, torch.ones_like(outside))], count).taps, outside))
    return found


def mirrored(at: Tensor, size: int) -> Tensor:
    """Positions beyond the ends reflected at them, as often as it takes.

    Example:
        >>> mirrored(torch.arange(-2, 6), 4).tolist()
        [2, 1, 0, 1, 2, 3, 2, 1]
    """
    period = max(2 * (size - 1), 1)
    at = at % period
    return torch.where(at < size, at, period - at)


def _resample(step: Step) -> list[Along]:
    shape = step.tensor().shape
    rank = int(step.name.removesuffix("_aa").removesuffix("d")[-1])
    found = []
    for i in range(rank):
        axis = len(shape) - rank + i
        have, want = shape[axis], step.shape[axis]
        if have == 1:
            found.append(_listed(axis, 1, [[0]] * want))
        elif have != want:
            scale = Fraction(rules._scale(step, i, rank, have, want))
            found.append(_listed(axis, have, _weighted(step, scale, want), clamp=True))
    return found


def _weighted(step: Step, scale: Fraction, want: int) -> list[list[int]]:
    """The old positions that have a weight in each new one."""
    if "nearest" in step.name or step.name.endswith("_aa"):
        return [list(range(first, last + 1)) for first, last in rules._taps(step, scale, want)]
    half = Fraction(1, 2)
    corners = step.attr("align_corners", False)
    before, after = (1, 2) if "bicubic" in step.name else (0, 1)
    reads = []
    for q in range(want):
        centre = q * scale if corners else (q + half) * scale - half
        floor = math.floor(centre)
        # right on a position, its neighbours weigh nothing
        reads.append([floor] if centre == floor else list(range(floor - before, floor + after + 1)))
    return reads
