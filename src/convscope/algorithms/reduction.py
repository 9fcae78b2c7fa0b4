"""Exact rewrites of a convolution as one of stride 1, dilation 1 and small kernel: what Winograd can compute.

- Dilation d: pixels d apart never meet those in between. The d x d sub-images are convolved as a larger batch.
- Stride s: the s x s sub-images become channels, the kernel's taps are dealt out to them likewise, and the kernel
  shrinks by s.
- A kernel larger than r: cut in blocks of r taps, each with a shifted copy of the input as channels of its own, so
  that the sum over blocks is part of the sum over channels. A smaller one is padded with zeros.

Every step moves numbers and adds zeros; none is rounded. All steps are views, copies and padding that torch
differentiates.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn import functional as F

from convscope.algorithms.cost import Cost, copied
from convscope.algorithms.problem import Pair, Problem


@dataclass(frozen=True)
class Reduction:
    """A problem and the smaller one (`core`) that has the same answer.

    Attributes:
        problem: as it was asked.
        core: stride 1, dilation 1, and a kernel of r or 1 along each axis.
        blocks: pieces that the kernel was cut in, after the stride, along each axis.

    Example:
        >>> found = reduce(Problem(1, 3, 64, (224, 224), (7, 7), (2, 2), ((3, 3), (3, 3))), 5)
        >>> found.core.in_channels, found.core.kernel, found.core.size
        (12, (5, 5), (116, 116))
    """

    problem: Problem
    core: Problem
    blocks: Pair

    @property
    def trivial(self) -> bool:
        """Whether the core is the problem itself."""
        return self.core == self.problem

    @property
    def taps(self) -> Pair:
        """Taps of the kernel that falls on one sub-image, before it is cut in blocks."""
        (high, wide), (down, across) = self.problem.kernel, self.problem.stride
        return -(-high // down), -(-wide // across)

    @property
    def images(self) -> Pair:
        """Height and width of a sub-image: as much as the outputs need."""
        return tuple(  # type: ignore[return-value]
            output + taps - 1 for output, taps in zip(self.core.output_size, self.taps, strict=True)
        )

    def input(self, x: Tensor) -> Tensor:
        """The core's input `[batch, channel, y, x]`."""
        if self.trivial:
            return x
        return self._shifted(self._sub_images(x))

    def _sub_images(self, x: Tensor) -> Tensor:
        """Every d-th pixel as images of their own, or every s-th as channels, with the zeros around."""
        p, (high, wide) = self.problem, self.images
        down, across = p.stride if p.dilation == (1, 1) else p.dilation
        (top, _), (left, _) = p.padding
        x = F.pad(x, (left, wide * across - p.size[1] - left, top, high * down - p.size[0] - top))
        if (down, across) == (1, 1):
            return x
        x = x.unflatten(3, (wide, across)).unflatten(2, (high, down))  # [batch, channel, y, down, x, across]
        if p.dilation == (1, 1):
            return x.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
        return x.permute(3, 5, 0, 1, 2, 4).flatten(0, 2)

    def _shifted(self, x: Tensor) -> Tensor:
        """A copy for each block of the kernel, as channels."""
        (down, across), (tall, broad), (high, wide) = self.blocks, self.core.kernel, self.core.size
        x = F.pad(x, (0, across * broad - self.taps[1], 0, down * tall - self.taps[0]))
        if self.blocks == (1, 1):
            return x
        # windows of the core's size, tall and broad pixels apart: [batch, channel, down, across, y, x]
        return x.unfold(2, high, tall).unfold(3, wide, broad).flatten(1, 3)

    def weight(self, weight: Tensor) -> Tensor:
        """The core's weight `[out, channel, y, x]`."""
        if self.trivial:
            return weight
        p, (high, wide) = self.problem, self.taps
        down, across = p.stride
        weight = F.pad(weight, (0, wide * across - p.kernel[1], 0, high * down - p.kernel[0]))
        weight = weight.unflatten(3, (wide, across)).unflatten(
            2, (high, down)
        )  # [out, channel, y, down, x, across]
        weight = weight.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
        tall, broad = self.core.kernel
        rows, columns = self.blocks
        weight = F.pad(weight, (0, columns * broad - wide, 0, rows * tall - high))
        weight = weight.unflatten(3, (columns, broad)).unflatten(2, (rows, tall))
        return weight.permute(0, 1, 2, 4, 3, 5).flatten(1, 3)

    def output(self, y: Tensor) -> Tensor:
        """The problem's output from the core's."""
        p = self.problem
        if p.dilation == (1, 1):
            return y
        down, across = p.dilation
        (high, wide), (rows, columns) = self.core.output_size, p.output_size
        y = y.unflatten(0, (down, across, p.batch))  # [down, across, batch, channel, y, x]
        y = y.permute(2, 3, 4, 0, 5, 1).reshape(p.batch, p.out_channels, high * down, wide * across)
        return y[..., :rows, :columns]

    @property
    def cost(self) -> Cost:
        """Moving the numbers; all in copies."""
        if self.trivial:
            return Cost(0, 0, 0, 0, 0)
        p, core, size = self.problem, self.core, self.problem.dtype.itemsize
        moved = copied(math.prod(p.input_shape), math.prod(core.input_shape), size)
        if p.dilation == (1, 1):
            return moved
        return moved + copied(math.prod(core.output_shape), math.prod(p.output_shape), size)


def refuses(problem: Problem) -> str | None:
    """Why a problem has no such core, or None."""
    if problem.stride != (1, 1) and problem.dilation != (1, 1):
        return f"stride {problem.stride} together with dilation {problem.dilation} does not decompose"
    return None


@functools.lru_cache(maxsize=1024)
def reduce(problem: Problem, r: int) -> Reduction:
    """The core of a problem for kernels of r taps; axes along which the kernel has one tap keep it.

    Args:
        problem: without stride, or without dilation: see `refuses`.
        r: taps of the core's kernel along each axis that has several.
    """
    p = problem
    taps = -(-p.kernel[0] // p.stride[0]), -(-p.kernel[1] // p.stride[1])
    kernel = min(taps[0], r) if taps[0] == 1 else r, min(taps[1], r) if taps[1] == 1 else r
    blocks = -(-taps[0] // kernel[0]), -(-taps[1] // kernel[1])
    if p.plain and p.kernel == kernel:
        return Reduction(p, p, blocks)
    # as many outputs as the problem has; of each sub-image where they are images of their own
    high, wide = (-(-size // step) for size, step in zip(p.output_size, p.dilation, strict=True))
    core = replace(
        p,
        batch=p.batch * math.prod(p.dilation),
        in_channels=p.in_channels * math.prod(p.stride) * math.prod(blocks),
        size=(high + kernel[0] - 1, wide + kernel[1] - 1),
        kernel=kernel,
        stride=(1, 1),
        dilation=(1, 1),
        padding=((0, 0), (0, 0)),
    )
    return Reduction(p, core, blocks)
