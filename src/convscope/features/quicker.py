"""Modules that compute the same with less traffic through memory, put into the private network.

On a CPU a mobile network spends much of its time moving activations, not multiplying: a clipped activation that keeps
its output in place of its input, and a "same" convolution that needs no padded copy, make a step a quarter shorter.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def quicken(module: nn.Module) -> int:
    """Replaces what can be computed with less memory traffic, in place; returns how many modules."""
    replaced = 0
    for parent in list(module.modules()):
        for name, part in list(parent.named_children()):
            better = _better(part)
            if better is not None:
                setattr(parent, name, better.train(part.training))
                replaced += 1
    return replaced


def has_hooks(part: nn.Module) -> bool:
    """Whether someone listens to the module, so that it must stay what it is."""
    return bool(
        part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks
    )


def _better(part: nn.Module) -> nn.Module | None:
    if has_hooks(part):
        return None
    if isinstance(part, nn.Hardtanh) and type(part) in (nn.ReLU6, nn.Hardtanh):
        return Clip(float(part.min_val), float(part.max_val), bool(part.inplace))
    is_same = type(part).__name__ == "Conv2dSame" and type(part).__module__.startswith("timm.")
    if is_same and isinstance(part, nn.Conv2d) and not getattr(part, "parametrizations", None):
        plain = (
            part.dilation == (1, 1) and part.padding in ((0, 0), 0, "valid") and part.padding_mode == "zeros"
        )
        return SameConv2d(part) if plain else None
    return None


class _Clipped(torch.autograd.Function):
    """Clamps in place and keeps the result, which tells where the gradient passes as well as the input would."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        x.clamp_(low, high)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        ctx.bounds = low, high
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (result,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(gradients[0], result, *ctx.bounds), None, None


class Clip(nn.Module):
    """`nn.Hardtanh` and `nn.ReLU6`, in place where they were, without a copy of the input."""

    def __init__(self, low: float, high: float, inplace: bool) -> None:
        super().__init__()
        self.low, self.high, self.inplace = low, high, inplace

    def forward(self, x: Tensor) -> Tensor:
        """Values between `low` and `high`, of the same shape."""
        watched = torch._C._len_torch_function_stack() > 0  # someone looks for activation functions
        if self.inplace and x.requires_grad and not x.is_leaf and not watched:
            result: Tensor = _Clipped.apply(x, self.low, self.high)
            return result
        return functional.hardtanh(x, self.low, self.high, self.inplace and not x.requires_grad)


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
        weight = self._kernel((bottom - top, right - left))
        return functional.conv2d(x, weight, self.bias, self.stride, (bottom, right), 1, self.groups)

    def _ends(self, size: int, axis: int) -> tuple[int, int]:
        kernel, stride = self.weight.shape[2 + axis], self.stride[axis]
        total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        return total // 2, total - total // 2

    def _kernel(self, extra: tuple[int, int]) -> Tensor:
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
