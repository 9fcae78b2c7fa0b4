"""im2col: every window unfolded into a column, then one matrix product with the filters.

The window of each output is copied out of the padded input, so that the convolution becomes
`[out_channels, terms] @ [terms, positions]`: what matrix libraries are best at, for `kernel area` times the input's
memory. Each group has a product of its own. Where every window is one pixel (a 1x1 kernel at stride 1) nothing is
copied.

Chellapilla, Puri and Simard, "High Performance Convolutional Neural Networks for Document Processing" (2006).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from convscope.algorithms.base import in_format, last_format
from convscope.algorithms.cost import Cost, copied, of_products
from convscope.algorithms.error import ErrorBound, of_sums
from convscope.algorithms.problem import Problem

VARIANTS = ("contiguous", "channels_last")


class Im2col:
    """Unfold and one matrix product.

    Variants: "contiguous" has a column a position and products of `[out_channels, terms] @ [terms, positions]` for
    each image, "channels_last" a row a position and one product for the whole batch.
    """

    name = "im2col"

    def variants(self, problem: Problem) -> tuple[str, ...]:
        """Both layouts."""
        return VARIANTS

    def refuses(self, problem: Problem, variant: str | None = None) -> str | None:
        """Nothing but an unknown layout, and what no matrix product is there for."""
        if problem.dtype == torch.bool:
            return "there is no product of bool matrices"
        if variant is None or variant in VARIANTS:
            return None
        return f"im2col has the variants {', '.join(VARIANTS)}, not {variant!r}"

    def prepare(
        self, problem: Problem, weight: Tensor, bias: Tensor | None, variant: str, *, relu: bool = False
    ) -> Im2colKernel:
        """The filters as the matrix of the variant."""
        with torch.no_grad():
            matrix = _matrix(problem, weight.detach(), variant).clone(memory_format=torch.contiguous_format)
        return Im2colKernel(
            problem, variant, matrix, None if bias is None else bias.detach(), relu, last_format(weight)
        )

    def run(self, problem: Problem, x: Tensor, weight: Tensor, bias: Tensor | None, variant: str) -> Tensor:
        """The convolution through torch's own differentiable operations."""
        y = _convolve(problem, x, _matrix(problem, weight, variant), bias, variant)
        return in_format(y, last_format(x, weight))

    def cost(self, problem: Problem, variant: str) -> Cost:
        """The products of the definition, and the columns written and read."""
        columns = self.columns(problem)
        if not columns:
            return of_products(problem)
        size = problem.dtype.itemsize
        return of_products(problem) + copied(columns, columns, size)

    def columns(self, problem: Problem) -> int:
        """Elements of the unfolded input; 0 where it need not be copied."""
        if problem.kernel == (1, 1) and problem.plain and problem.padded == problem.size:
            return 0
        return problem.batch * problem.groups * problem.terms * math.prod(problem.output_size)

    def error(self, problem: Problem, variant: str) -> ErrorBound:
        """That of plain sums."""
        return of_sums(problem)


@dataclass(frozen=True, eq=False)
class Im2colKernel:
    """im2col with the filters as a matrix."""

    problem: Problem
    variant: str
    matrix: Tensor
    bias: Tensor | None
    relu: bool
    last: bool

    @property
    def bytes(self) -> int:
        """Memory of the matrix."""
        return self.matrix.numel() * self.matrix.element_size()

    def __call__(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = _convolve(self.problem, x, self.matrix, self.bias, self.variant)
            y = y.relu_() if self.relu else y
            return in_format(y, self.last or last_format(x))


def _matrix(problem: Problem, weight: Tensor, variant: str) -> Tensor:
    """The filters, `[group, out, terms]` with terms (channel, y, x), or `[group, terms, out]` with (y, x, channel)."""
    per_group = weight.unflatten(0, (problem.groups, -1))  # [group, out, channel, y, x]
    if variant == "contiguous":
        return per_group.flatten(2)
    return per_group.permute(0, 3, 4, 2, 1).flatten(1, 3)


def _windows(problem: Problem, x: Tensor) -> Tensor:
    """A view of every window: `[batch, channel, out y, out x, kernel y, kernel x]`."""
    (top, bottom), (left, right) = problem.padding
    if top or bottom or left or right:
        x = F.pad(x, (left, right, top, bottom))
    for axis in (0, 1):
        x = x.unfold(2 + axis, problem.extent[axis], problem.stride[axis])
    return x[..., :: problem.dilation[0], :: problem.dilation[1]]


def _convolve(problem: Problem, x: Tensor, matrix: Tensor, bias: Tensor | None, variant: str) -> Tensor:
    groups, (high, wide) = problem.groups, problem.output_size
    windows = _windows(problem, x).unflatten(1, (groups, -1))  # [batch, group, channel, oy, ox, ky, kx]
    if variant == "contiguous":
        columns = windows.permute(0, 1, 2, 5, 6, 3, 4).flatten(5).flatten(2, 4)
        y = matrix @ columns  # [batch, group, out, position]
        y = y.reshape(problem.batch, problem.out_channels, high, wide)
        return y if bias is None else y + bias[:, None, None]
    rows = windows.permute(1, 0, 3, 4, 5, 6, 2).flatten(4).flatten(1, 3)  # [group, position, terms]
    y = torch.cat((rows @ matrix).unbind(0), 1)  # [position, out]
    y = y if bias is None else y + bias
    return y.unflatten(0, (problem.batch, high, wide)).permute(0, 3, 1, 2)
