"""Direct convolution: torch's own (oneDNN, cuDNN, ...), in either memory layout, or with its weight packed beforehand.

The layout alone can decide: a depthwise 31x31 convolution ran 38 times faster with channels last. Each variant
brings input and weight into its layout first and the output back into that of the input, which costs a copy each.
Packed is channels last with the weight in the form that oneDNN multiplies it in, which torch otherwise brings it into at every
call, and with the rectifier in the same pass.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from convscope.algorithms.base import in_format, last_format
from convscope.algorithms.cost import Cost, of_products
from convscope.algorithms.error import ErrorBound, of_sums
from convscope.algorithms.problem import Problem

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
PACKED = "packed"


class Direct:
    """torch's convolution; the variants are the memory layouts, "contiguous" and "channels_last", and "packed".

    Packed pays where a convolution is prepared; where it is not, or oneDNN does not serve, it is channels last.
    """

    name = "direct"

    def variants(self, problem: Problem) -> tuple[str, ...]:
        """Both layouts for floating point numbers, torch has only one for the others; packed where oneDNN serves."""
        if not problem.dtype.is_floating_point:
            return ("contiguous",)
        return (*FORMATS, PACKED) if _packs(problem) else tuple(FORMATS)

    def layout(self, problem: Problem, last: bool) -> str:
        """The variant to take unmeasured: the layout as it is, but for wide depthwise kernels on a CPU.

        Those oneDNN has no kernels for with channels first (seen at 31x31: 111 ms against 3.4 ms).
        """
        wide = problem.depthwise and max(problem.kernel) > 16 and problem.device == "cpu"
        both = len(self.variants(problem)) > 1
        return "channels_last" if both and (last or wide) else "contiguous"

    def refuses(self, problem: Problem, variant: str | None = None) -> str | None:
        """Nothing but an unknown layout."""
        known = (*FORMATS, PACKED) if problem.dtype.is_floating_point else self.variants(problem)
        if variant is None or variant in known:
            return None
        return f"direct has the variants {', '.join(known)} here, not {variant!r}"

    def prepare(
        self, problem: Problem, weight: Tensor, bias: Tensor | None, variant: str, *, relu: bool = False
    ) -> DirectKernel | PackedKernel:
        """The weight in the variant's layout."""
        kept = None if bias is None else bias.detach()
        if variant == PACKED and _packs(problem):
            return PackedKernel(problem, weight.detach(), kept, relu)
        with torch.no_grad():
            copy = weight.detach().contiguous(memory_format=_format(variant))
        return DirectKernel(problem, variant, copy, kept, relu, last_format(weight))

    def run(self, problem: Problem, x: Tensor, weight: Tensor, bias: Tensor | None, variant: str) -> Tensor:
        """torch's convolution in the layout of the variant."""
        last = last_format(x, weight)
        y = _convolve(problem, x, weight.contiguous(memory_format=_format(variant)), bias, variant)
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


class PackedKernel:
    """oneDNN's convolution with the weight in oneDNN's own form; the rectifier is part of it."""

    def __init__(self, problem: Problem, weight: Tensor, bias: Tensor | None, relu: bool) -> None:
        padding, extra = _even(problem)
        (left, right), (top, bottom) = extra
        high, wide = problem.size
        shape = [problem.batch, problem.in_channels, high + top + bottom, wide + left + right]
        geometry = (padding, list(problem.stride), list(problem.dilation), problem.groups)
        with torch.no_grad():
            packed = torch.ops.mkldnn._reorder_convolution_weight(weight.contiguous(), *geometry, shape)
        self.bytes = weight.numel() * weight.element_size()  # without what oneDNN may fill up
        self._around = sum(extra, ()) if extra != NO_EXTRA else None
        self._last = last_format(weight)
        self._run = torch.ops.mkldnn._convolution_pointwise.default
        self._arguments: tuple[Any, ...] = (packed, bias, *geometry, "relu" if relu else "none", [], "")

    def __call__(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            with torch.no_grad():
                return self(x)
        last = self._last or last_format(x)
        if self._around is not None:
            x = F.pad(x, self._around)
        y: Tensor = self._run(x.contiguous(memory_format=torch.channels_last), *self._arguments)
        return in_format(y, last)


@functools.cache
def _onednn() -> bool:
    """Whether torch has oneDNN with the operators that pack weights."""
    ops: Any = torch.ops.mkldnn
    return bool(torch.backends.mkldnn.is_available()) and hasattr(ops, "_reorder_convolution_weight")


def _packs(problem: Problem) -> bool:
    served = problem.device == "cpu" and problem.dtype == torch.float32 and _onednn()
    counts = (problem.batch, problem.in_channels, problem.out_channels, *problem.output_size)
    return served and bool(torch.backends.mkldnn.enabled) and min(counts) > 0


def _format(variant: str) -> torch.memory_format:
    return FORMATS["channels_last" if variant == PACKED else variant]


NO_EXTRA = ((0, 0), (0, 0))


def _even(problem: Problem) -> tuple[list[int], tuple[tuple[int, int], tuple[int, int]]]:
    """Padding as torch takes it, alike on both sides, and what is to be laid around before: (left, right), (top, bottom)."""
    (top, bottom), (left, right) = problem.padding
    down, across = min(top, bottom), min(left, right)
    return [down, across], ((left - across, right - across), (top - down, bottom - down))


def _convolve(problem: Problem, x: Tensor, weight: Tensor, bias: Tensor | None, variant: str) -> Tensor:
    padding, extra = _even(problem)
    if extra != NO_EXTRA:
        x = F.pad(x, sum(extra, ()))
    x = x.contiguous(memory_format=_format(variant))
    return F.conv2d(x, weight, bias, problem.stride, padding, problem.dilation, problem.groups)
