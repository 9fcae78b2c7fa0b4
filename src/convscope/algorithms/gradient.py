"""Gradients of a convolution that runs in machine code, which torch cannot see into.

The gradient of the input is a convolution as well: of the output's gradient with the filters flipped and their
channels swapped, so that the algorithm computes its own. That of the weight is torch's. Both are differentiable again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from convscope.algorithms.problem import Pair, Problem

Forward = Callable[[Problem, Tensor, Tensor, Tensor | None], Tensor]
Again = Callable[[Problem, Tensor, Tensor], Tensor]


def plain(*tensors: Tensor | None) -> bool:
    """Whether machine code may read the memory of tensors: nothing stands in for it or watches the operations.

    Subclasses, `vmap` and other transforms of functions, and dispatch modes need torch's operations.
    """
    if torch._C._len_torch_dispatch_stack() or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    return all(each is None or type(each) in (Tensor, torch.nn.Parameter) for each in tensors)


def through(
    forward: Forward, again: Again, problem: Problem, x: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """A convolution by `forward`, recorded for autograd where that is asked for.

    Args:
        forward: computes it, without autograd.
        again: computes the convolution of another problem, differentiably; for the input gradient.
        problem: of stride 1.
        x, weight, bias: the data.
    """
    wanted = torch.is_grad_enabled() and any(
        each is not None and each.requires_grad for each in (x, weight, bias)
    )
    if not wanted:
        return forward(problem, x.detach(), weight.detach(), None if bias is None else bias.detach())
    return _Convolution.apply(x, weight, bias, problem, forward, again)


class _Convolution(torch.autograd.Function):
    """y = forward(x)."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem, forward: Forward, again: Again
    ) -> Tensor:
        return forward(problem, x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.problem, _, ctx.again = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias, *_ = ctx.needs_input_grad
        dx = by_input(ctx.problem, grad, x, weight, ctx.again) if of_x else None
        dw = by_weight(ctx.problem, grad, x, weight) if of_weight else None
        db = grad.sum((0, 2, 3)) if of_bias else None
        return dx, dw, db, None, None, None


def by_input(problem: Problem, grad: Tensor, x: Tensor, weight: Tensor, again: Again) -> Tensor:
    """The gradient of the input `[batch, in_channels, height, width]`, by the algorithm itself.

    Where the padding is wider than the kernel reaches, the outputs that see nothing but padding are left out.
    """
    (top, bottom), (left, right) = problem.padding
    high, wide = problem.kernel[0] - 1, problem.kernel[1] - 1
    kept = (min(top, high), min(bottom, high)), (min(left, wide), min(right, wide))
    inner = replace(problem, padding=kept)
    rows, columns = inner.output_size
    top, left = top - kept[0][0], left - kept[1][0]
    grad = grad[..., top : top + rows, left : left + columns]
    return again(inner.transposed(), grad, swapped(weight, problem.groups))


def swapped(weight: Tensor, groups: int) -> Tensor:
    """The filters of the input gradient: flipped, inputs and outputs of each group exchanged."""
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1).flip(2, 3)


def by_weight(problem: Problem, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """torch's gradient of the weight."""
    geometry = problem.stride, problem.padding, problem.dilation, problem.groups
    return by_torch(grad, x, weight, *geometry, of_x=False)[1]


def by_torch(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Pair,
    padding: tuple[Pair, Pair],
    dilation: Pair,
    groups: int,
    *,
    of_x: bool = True,
    of_weight: bool = True,
) -> tuple[Tensor, Tensor]:
    """torch's gradients of input and weight; what is not asked for is not to be used."""
    (top, bottom), (left, right) = padding
    high, wide = min(top, bottom), min(left, right)  # torch pads both sides alike
    around = (left - wide, right - wide, top - high, bottom - high)
    padded = torch.nn.functional.pad(x, around) if any(around) else x
    dx, dw, _ = torch.ops.aten.convolution_backward(
        grad,
        padded,
        weight,
        None,
        stride,
        (high, wide),
        dilation,
        False,
        (0, 0),
        groups,
        (of_x, of_weight, False),
    )
    if of_x and any(around):
        dx = dx[..., top - high : top - high + x.shape[2], left - wide : left - wide + x.shape[3]]
    return dx, dw
