"""Direct convolution: torch's own (oneDNN, cuDNN, ...), in either memory layout.

The layout alone can decide: a depthwise 31x31 convolution ran 38 times faster with channels last. Each variant
brings input and weight into its layout first and the output back into that of the input, which costs a copy each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from convscope.algorithms.base import in_format, last_format
from convscope.algorithms.cost import Cost, of_products
from convscope.algorithms.error import ErrorBound, of_sums
from convscope.algorithms.problem import Problem

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class Direct:
    """torch's convolution; the variants are the memory layouts, "contiguous" and "channels_last"."""

    name = "direct"

    def variants(self, problem: Problem) -> tuple[str, ...]:
        """Both layouts for floating point numbers; torch has only one for the others."""
        if problem.dtype.is_floating_point:
            return tuple(FORMATS)
        return ("contiguous",)

    def layout(self, problem: Problem, last: bool) -> str:
        """The variant to take unmeasured: the layout as it is, but for wide depthwise kernels on a CPU.

        Those oneDNN has no kernels for with channels first (seen at 31x31: 111 ms against 3.4 ms).
        """
        wide = problem.depthwise and max(problem.kernel) > 16 and problem.device == "cpu"
        both = len(self.variants(problem)) > 1
        return "channels_last" if both and (last or wide) else "contiguous"

    def refuses(self, problem: Problem, variant: str | None = None) -> str | None:
        """Nothing but an unknown layout."""
        known = self.variants(problem)
        if variant is None or variant in known:
            return None
        return f"direct has the variants {', '.join(known)} here, not {variant!r}"

    def prepare(
        self, problem: Problem, weight: Tensor, bias: Tensor | None, variant: str, *, relu: bool = False
    ) -> DirectKernel:
        """The weight in the variant's layout."""
        with torch.no_grad():
            copy = weight.detach().contiguous(memory_format=FORMATS[variant])
        return DirectKernel(
            problem, variant, copy, None if bias is None else bias.detach(), relu, last_format(weight)
        )

    def run(self, problem: Problem, x: Tensor, weight: Tensor, bias: Tensor | None, variant: str) -> Tensor:
        """torch's convolution in the layout of the variant."""
        last = last_format(x, weight)
        y = _convolve(problem, x, weight.contiguous(memory_format=FORMATS[variant]), bias, variant)
        return in_format(y, last)

    def cost(self, problem: Problem, variant: str) -> Cost:
        """Every product of the definition, each tensor read or written once."""
        return of_products(problem)

    def error(self, problem: Problem, variant: str) -> ErrorBound:
        """That of plain sums."""
        return of_sums(problem)


@dataclass(frozen=True, eq=False)
class DirectKernel:
    """torch's convolution with the weight in its layout."""

    problem: Problem
    variant: str
    weight: Tensor
    bias: Tensor | None
    relu: bool
    last: bool

    @property
    def bytes(self) -> int:
        """Memory of the weight."""
        return self.weight.numel() * self.weight.element_size()

    def __call__(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = _convolve(self.problem, x, self.weight, self.bias, self.variant)
            y = y.relu_() if self.relu else y
            last = self.last or last_format(x)
            return in_format(y, last)


def _convolve(problem: Problem, x: Tensor, weight: Tensor, bias: Tensor | None, variant: str) -> Tensor:
    (top, bottom), (left, right) = problem.padding
    padding = min(top, bottom), min(left, right)
    if top != bottom or left != right:  # torch pads both sides alike; the rest is laid around before
        x = F.pad(x, (left - padding[1], right - padding[1], top - padding[0], bottom - padding[0]))
    x = x.contiguous(memory_format=FORMATS[variant])
    return F.conv2d(x, weight, bias, problem.stride, padding, problem.dilation, problem.groups)
