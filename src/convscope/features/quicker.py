"""Modules that compute the same with less traffic through memory, put into the private network.

On a CPU a mobile network spends much of its time moving activations, not multiplying: a clipped activation that keeps
its output in place of its input and its gradient in place of the one it is given, and a "same" convolution that needs
no padded copy, make a step a third shorter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from convscope.algorithms.kernels import halving
from convscope.graph import Graph

# Operations whose backward pass hands out a gradient that nobody else holds.
_FRESH = {
    "aten.convolution",
    "aten.conv2d",
    "aten.mkldnn_convolution",
    "aten.max_pool2d_with_indices",
    "aten.max_pool2d",
    "aten.constant_pad_nd",
}


def quicken(module: nn.Module, graph: Graph, protected: Iterable[str] = ()) -> int:
    """Replaces what can be computed with less memory traffic, in place; returns how many modules.

    Args:
        module: a private copy.
        graph: as recorded from the original.
        protected: names of the layers whose output will be read.
    """
    owned = _owners(module, graph, set(protected))
    replaced = 0
    for prefix, parent in list(module.named_modules()):
        for name, part in list(parent.named_children()):
            better = _better(part, (f"{prefix}.{name}" if prefix else name) in owned)
            if better is not None:
                setattr(parent, name, better.train(part.training))
                replaced += 1
    return replaced


def _owners(module: nn.Module, graph: Graph, protected: set[str]) -> set[str]:
    """Modules that run once and whose output goes to one convolution or max pooling and nowhere else.

    The gradient such a module is given is its own, to write to.
    """
    if any(part._backward_hooks or part._backward_pre_hooks for part in module.modules()):
        return set()
    readers: dict[int, list[str]] = {}
    for op in graph.ops:
        for value in op.inputs:
            readers.setdefault(value, []).append(op.name)
    read = {value for call in graph.calls if call.name in protected for value in call.outputs}
    runs: dict[str, list[tuple[int, ...]]] = {}
    for call in graph.calls:
        runs.setdefault(call.name, []).append(tuple(call.outputs))
    return {
        name
        for name, outputs in runs.items()
        if len(outputs) == 1
        and len(outputs[0]) == 1
        and outputs[0][0] not in read
        and len(readers.get(outputs[0][0], ())) == 1
        and readers[outputs[0][0]][0] in _FRESH
    }


def has_hooks(part: nn.Module) -> bool:
    """Whether someone listens to the module, so that it must stay what it is."""
    return bool(
        part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks
    )


def is_same(part: nn.Module) -> bool:
    """Whether it is timm's convolution with TensorFlow's "same" padding."""
    return type(part).__name__ == "Conv2dSame" and type(part).__module__.startswith("timm.")


def ends_of_same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and behind that "same" padding adds along an axis.

    Example:
        >>> ends_of_same(128, 3, 2), ends_of_same(128, 3, 1)
        ((0, 1), (1, 1))
    """
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _better(part: nn.Module, owns_gradient: bool) -> nn.Module | None:
    if has_hooks(part):
        return None
    if isinstance(part, nn.Hardtanh) and type(part) in (nn.ReLU6, nn.Hardtanh):
        return Clip(float(part.min_val), float(part.max_val), bool(part.inplace), owns_gradient)
    if type(part) is nn.MaxPool2d and _halves(part):
        return Halving()
    if type(part) is nn.ReLU and owns_gradient:
        return Clip(0.0, math.inf, bool(part.inplace), owns_gradient)
    if is_same(part) and isinstance(part, nn.Conv2d) and not getattr(part, "parametrizations", None):
        plain = part.in_channels > _FEW and (
            part.dilation == (1, 1) and part.padding in ((0, 0), 0, "valid") and part.padding_mode == "zeros"
        )
        return SameConv2d(part) if plain else None
    return None


# Input channels up to which the padded copy is cheaper than a kernel grown by a row: the first convolution's.
_FEW = 4


class _Clipped(torch.autograd.Function):
    """Clamps in place and keeps the result, which tells where the gradient passes as well as the input would."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float, owns_gradient: bool) -> Tensor:
        if high == math.inf:
            x.clamp_min_(low)
        else:
            x.clamp_(low, high)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        ctx.bounds, ctx.owns_gradient = (low, high), owns_gradient
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (result,) = gradients, ctx.saved_tensors
        low, high = ctx.bounds
        out = gradient if ctx.owns_gradient else torch.empty_like(gradient)
        if high == math.inf:
            torch.ops.aten.threshold_backward.grad_input(gradient, result, low, grad_input=out)
        else:
            torch.ops.aten.hardtanh_backward.grad_input(gradient, result, low, high, grad_input=out)
        return out, None, None, None


class Clip(nn.Module):
    """`nn.Hardtanh`, `nn.ReLU6` and `nn.ReLU`, in place where they were, without a copy of the input.

    Where it owns the gradient it is given (see `quicken`), it writes its own over it.
    """

    def __init__(self, low: float, high: float, inplace: bool, owns_gradient: bool) -> None:
        super().__init__()
        self.low, self.high, self.inplace, self.owns_gradient = low, high, inplace, owns_gradient

    def forward(self, x: Tensor) -> Tensor:
        """Values between `low` and `high`, of the same shape."""
        watched = torch._C._len_torch_function_stack() > 0  # someone looks for activation functions
        if self.inplace and x.requires_grad and not x.is_leaf and not watched:
            result: Tensor = _Clipped.apply(x, self.low, self.high, self.owns_gradient)
            return result
        if self.high == math.inf and self.low == 0.0:
            return functional.relu(x, self.inplace and not x.requires_grad)
        return functional.hardtanh(x, self.low, self.high, self.inplace and not x.requires_grad)


def _halves(pool: nn.MaxPool2d) -> bool:
    pairs = (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    return (
        all(pair in (number, (number, number)) for pair, number in zip(pairs, (2, 2, 0, 1), strict=True))
        and not pool.ceil_mode
        and not pool.return_indices
    )


class _Halved(torch.autograd.Function):
    """Max pooling of 2x2 windows that keeps its input, which it shares, in place of indices."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return halving.halve(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return halving.gradient(gradients[0], x)


class Halving(nn.Module):
    """`nn.MaxPool2d(2)`, in machine code where that serves."""

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channel, height, width] to [batch, channel, height // 2, width // 2]."""
        if halving.refuses(x) is None:
            result: Tensor = _Halved.apply(x)
            return result
        return functional.max_pool2d(x, 2)


class SameConv2d(nn.Module):
    """timm's `Conv2dSame` (TensorFlow's "same" padding) without a padded copy of the input.

    Where the padding is uneven, one row more behind than before, the kernel is grown by a row of zeros in front, which
    makes it even; the outputs are the same numbers.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.stride, self.groups = conv.stride, conv.groups
        self._grown: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        """[batch, in channel, height, width] to [batch, out channel, ceil(height / stride), ceil(width / stride)]."""
        top, bottom = self._ends(x.shape[-2], 0)
        left, right = self._ends(x.shape[-1], 1)
        weight = self.kernel((bottom - top, right - left))
        return functional.conv2d(x, weight, self.bias, self.stride, (bottom, right), 1, self.groups)

    def _ends(self, size: int, axis: int) -> tuple[int, int]:
        return ends_of_same(size, self.weight.shape[2 + axis], self.stride[axis])

    def kernel(self, extra: tuple[int, int]) -> Tensor:
        """The kernel, grown by so many rows and columns of zeros in front."""
        if extra == (0, 0):
            return self.weight
        found = self._grown.get(extra)
        if found is None or found[0] is not self.weight:
            grown = functional.pad(self.weight, (extra[1], 0, extra[0], 0))
            layout = (
                torch.channels_last if self.weight.is_contiguous(memory_format=torch.channels_last) else None
            )
            found = (self.weight, grown.contiguous(memory_format=layout) if layout else grown)
            self._grown[extra] = found
        return found[1]
