"""Stride and dilation taken out of a convolution, exactly: what is left has stride 1 and dilation 1.

*Dilation d at stride 1*: every d-th output sees every d-th pixel only. The d phases of an axis are d images of
their own, d times smaller: they join the batch, and their outputs interleave.

*Stride s* (with any dilation): y[o] = sum over j of w[j] x[s o + d j]. Tap j belongs to phase d j mod s of the
pixels, at place d j // s there. The phases join the channels (polyphase), those without taps are dropped.

*Stride of a depthwise convolution*: phases as channels would end its being depthwise; all outputs are computed,
and every s-th is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from convscope.algorithms.problem import Problem


@dataclass(frozen=True)
class Axis:
    """One axis, reduced.

    Attributes:
        size, kernel, low, high: of the reduced axis; `high` may be negative: pixels that no output needs.
        output: outputs wanted in the end.
        kind: where the phases go.
        factor: pixels from one of a phase to its next.
        before: zeros before the first pixel, so that phases begin together.
        phases: those with taps.
        places: for each tap its place in (phase, place in the phase), flattened; empty where taps stay.
        keep: every how many-th output is kept.
    """

    size: int
    kernel: int
    low: int
    high: int
    output: int
    kind: Literal["none", "batch", "channels"] = "none"
    factor: int = 1
    before: int = 0
    phases: tuple[int, ...] = (0,)
    places: tuple[int, ...] = ()
    keep: int = 1

    @property
    def split(self) -> int:
        """Number of phases."""
        return len(self.phases)


def axis(size: int, kernel: int, stride: int, dilation: int, zeros: tuple[int, int], thin: bool) -> Axis:
    """One axis of a problem.

    Args:
        size: pixels.
        kernel, stride, dilation: as in the problem.
        zeros: the padding before and after.
        thin: whether to compute the outputs at stride 1 and keep some.

    Example:
        >>> axis(10, 3, 2, 1, (1, 1), thin=False)
        Axis(size=6, kernel=2, low=0, high=0, output=5, kind='channels', factor=2, before=1, phases=(0, 1),
             places=(0, 2, 1), keep=1)
    """
    output = (size + sum(zeros) - dilation * (kernel - 1) - 1) // stride + 1
    keep = stride if thin else 1
    if thin:
        stride, needed = 1, (output - 1) * keep + 1
    else:
        needed = output
    if stride == dilation == 1:
        return Axis(size, kernel, zeros[0], needed + kernel - 1 - size - zeros[0], output, keep=keep)
    factor = dilation if stride == 1 else stride
    low, before = divmod(zeros[0], factor)
    length = -(-(size + before) // factor)
    if stride == 1:
        outputs = -(-needed // factor)
        high = outputs + kernel - 1 - length - low
        return Axis(
            length, kernel, low, high, output, "batch", factor, before, tuple(range(factor)), keep=keep
        )
    phases = tuple(sorted({dilation * j % stride for j in range(kernel)}))
    taps = dilation * (kernel - 1) // stride + 1
    places = tuple(phases.index(dilation * j % stride) * taps + dilation * j // stride for j in range(kernel))
    high = output + taps - 1 - length - low
    return Axis(length, taps, low, high, output, "channels", factor, before, phases, places)


@dataclass(frozen=True)
class Reduced:
    """A problem without stride and dilation, and the ways to it and back; all of them differentiable.

    Attributes:
        problem: as it was.
        down, across: its axes.
    """

    problem: Problem
    down: Axis
    across: Axis

    @classmethod
    def of(cls, problem: Problem) -> Reduced:
        """The reduction of a problem."""
        return cls(
            problem,
            *(
                axis(size, kernel, stride, dilation, zeros, problem.depthwise)
                for size, kernel, stride, dilation, zeros in zip(
                    problem.size,
                    problem.kernel,
                    problem.stride,
                    problem.dilation,
                    problem.padding,
                    strict=True,
                )
            ),
        )

    @property
    def batch(self) -> int:
        """Images after the reduction."""
        return self.problem.batch * self._phases("batch")

    @property
    def in_channels(self) -> int:
        """Input channels after the reduction."""
        return self.problem.in_channels * self._phases("channels")

    def _phases(self, kind: str) -> int:
        down, across = (axis.split if axis.kind == kind else 1 for axis in (self.down, self.across))
        return down * across

    def image(self, x: Tensor) -> Tensor:
        """The reduced input, `[batch, in_channels, down.size, across.size]`."""
        if self.down.kind == self.across.kind == "none":
            return x
        down, across = self.down, self.across
        ends = [
            axis.size * axis.factor - axis.before - size
            for axis, size in zip((down, across), self.problem.size, strict=True)
        ]
        x = F.pad(x, (across.before, ends[1], down.before, ends[0]))
        x = x.unflatten(-1, (across.size, across.factor)).unflatten(-3, (down.size, down.factor))
        x = x[:, :, :, list(down.phases)] if down.split < down.factor else x
        x = x[..., list(across.phases)] if across.split < across.factor else x
        # [n, c, row, row phase, column, column phase]: each phase to the images or to the channels
        first = [3 + 2 * i for i, axis in enumerate((down, across)) if axis.kind == "batch"]
        second = [3 + 2 * i for i, axis in enumerate((down, across)) if axis.kind != "batch"]
        x = x.permute(0, *first, 1, *second, 2, 4)
        return x.reshape(self.batch, self.in_channels, down.size, across.size)

    def weight(self, weight: Tensor) -> Tensor:
        """The reduced weight, `[out_channels, in_channels / groups, down.kernel, across.kernel]`."""
        split = []
        for dim, axis in ((-2, self.down), (-1, self.across)):
            if axis.places:
                shape = list(weight.shape)
                shape[dim] = axis.split * axis.kernel
                places = weight.new_tensor(axis.places, dtype=torch.int64)
                weight = weight.new_zeros(shape).index_copy(dim, places, weight)
                split.append(axis.split)
            else:
                split.append(1)
        weight = weight.unflatten(-1, (split[1], self.across.kernel)).unflatten(
            -3, (split[0], self.down.kernel)
        )
        return weight.permute(0, 1, 2, 4, 3, 5).flatten(1, 3)

    def output(self, y: Tensor) -> Tensor:
        """The problem's output from the reduced one's."""
        down, across = self.down, self.across
        if "batch" in (down.kind, across.kind):
            phases = [axis.split if axis.kind == "batch" else 1 for axis in (down, across)]
            y = y.unflatten(0, (self.problem.batch, *phases)).permute(0, 3, 4, 1, 5, 2)
            y = y.flatten(4, 5).flatten(2, 3)
        return y[..., :: down.keep, :: across.keep][..., : down.output, : across.output]
