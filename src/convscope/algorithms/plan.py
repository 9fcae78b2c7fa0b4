"""A convolution whose weight is transformed once and used many times.

    plan = prepare(weight, bias, padding=1)
    y = plan(x)

A plan keeps a kernel for each shape, type, layout, device and number of threads that it met, the last few of them.
All are thrown away when the weight or the bias changes.
"""

from __future__ import annotations

import secrets
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from convscope.algorithms import base, function, gradient
from convscope.algorithms.base import Kernel, in_format, last_format
from convscope.algorithms.function import Step
from convscope.algorithms.problem import Padding, Problem, flat, frozen, pair, sides
from convscope.errors import RequestError

KEPT = 8  # kernels of a plan, each with a transformed weight of its own


def prepare(
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Step = 1,
    padding: Padding = 0,
    dilation: Step = 1,
    groups: int = 1,
    algorithm: str = "auto",
    activation: str | None = None,
    max_error: float | None = None,
) -> Plan:
    """A convolution with this weight, to be called often.

    Args:
        weight: `[out_channels, in_channels / groups, height, width]`, or without the height for one dimension.
        bias: `[out_channels]`.
        stride, padding, dilation, groups, algorithm, max_error: see `conv2d`.
        activation: "relu" to set negative outputs to 0 as part of the convolution.

    Returns:
        The plan; nothing is computed before its first call.

    Raises:
        RequestError: the activation is unknown, or the weight has not 3 or 4 axes.
        UnknownName: there is no such algorithm.

    Example:
        >>> plan = prepare(torch.ones(1, 1, 3, 3), padding=1, algorithm="winograd:F(2,3)", activation="relu")
        >>> plan(-torch.ones(1, 1, 2, 2)).sum().item(), plan.bytes > 0
        (0.0, True)
    """
    return Plan(weight, bias, stride, padding, dilation, groups, algorithm, activation, max_error)


class Plan:
    """A convolution with a weight of its own; `prepare` makes it, `plan(x)` runs it.

    The weight is the caller's tensor, not a copy: changing it in place (an optimizer's step), or through `.data`
    to other memory, drops what was prepared. Writing into the same memory behind autograd's back, with
    `weight.data.add_(1)`, cannot be seen; call `forget` after it.

    Where gradients are wanted, and where something traces or records, it is `conv2d` that runs.

    Attributes:
        weight, bias, algorithm, activation, max_error: as given.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        stride: Step,
        padding: Padding,
        dilation: Step,
        groups: int,
        algorithm: str,
        activation: str | None,
        max_error: float | None,
    ) -> None:
        if weight.dim() not in (3, 4):
            raise RequestError(
                f"weight has shape {list(weight.shape)}; a convolution's has 4 axes, or 3 for one dimension."
            )
        if activation not in (None, "relu"):
            raise RequestError(f"activation={activation!r} is unknown; give 'relu' or None.")
        if algorithm != "auto":
            base.algorithm(algorithm)
        self.weight, self.bias = weight, bias
        self.algorithm, self.activation, self.max_error = algorithm, activation, max_error
        self._axes = weight.dim() - 2
        self._geometry = (frozen(stride), frozen(padding), frozen(dilation), groups)
        self._start()

    def _start(self) -> None:
        self._kernels: dict[Any, Kernel] = {}
        self._lock = threading.Lock()
        self._number = secrets.randbits(62)  # by which a traced graph finds it
        _PLANS[self._number] = self

    def __getstate__(self) -> dict[str, Any]:
        """What is prepared is not copied or stored."""
        return {
            name: value for name, value in vars(self).items() if name not in ("_kernels", "_lock", "_number")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.weight.shape))
        return (
            f"Plan({shape}, algorithm={self.algorithm!r}, prepared={len(self._kernels)}, bytes={self.bytes})"
        )

    @property
    def bytes(self) -> int:
        """Memory that the transformed weights hold, all kernels together."""
        return sum(kernel.bytes for kernel in tuple(self._kernels.values()))

    def forget(self) -> None:
        """Drops what was prepared."""
        with self._lock:
            self._kernels.clear()

    def __call__(self, x: Tensor) -> Tensor:
        """The convolution of x.

        Args:
            x: `[batch, in_channels, height, width]`, or without the batch, or without the height for one dimension.

        Returns:
            `[batch, out_channels, height, width]` likewise.

        Raises:
            RuntimeError, TypeError, RequestError: see `conv2d`.
        """
        if torch.compiler.is_compiling():
            return self._traced(x)
        if self._differentiable(x) or not gradient.plain(x, self.weight, self.bias):
            return self._plainly(x)
        if self._axes == 1 and x.dim() in (2, 3):
            return self._run(x.unsqueeze(-2)).squeeze(-2)
        return self._run(x)

    def _differentiable(self, x: Tensor) -> bool:
        return torch.is_grad_enabled() and (
            x.requires_grad
            or self.weight.requires_grad
            or (self.bias is not None and self.bias.requires_grad)
        )

    def _plainly(self, x: Tensor) -> Tensor:
        convolve = function.conv1d if self._axes == 1 else function.conv2d
        y = convolve(x, self.weight, self.bias, *self._geometry, self.algorithm, max_error=self.max_error)
        return y.relu() if self.activation == "relu" else y

    def _run(self, x: Tensor) -> Tensor:
        """Two axes, no gradient."""
        if x.dim() == 3:
            return self._run(x.unsqueeze(0)).squeeze(0)
        key = (self._state(), x.shape, x.dtype, x.device, last_format(x), torch.get_num_threads())
        kernel = self._kernels.get(key)
        if kernel is None:
            if not x.numel() or x.dtype != self.weight.dtype or torch.is_autocast_enabled(x.device.type):
                y = self._plainly(x if self._axes == 2 else x.squeeze(-2))
                return y if self._axes == 2 else y.unsqueeze(-2)
            kernel = self._prepare(key, x)
        return kernel(x)

    def _state(self) -> tuple[Any, ...]:
        """What changes when weight or bias do."""
        return tuple(
            None if each is None else (_version(each), each.data_ptr(), each.dtype, each.device)
            for each in (self.weight, self.bias)
        )

    def _prepare(self, key: tuple[Any, ...], x: Tensor) -> Kernel:
        weight = self.weight.detach()
        stride, padding, dilation, groups = self._geometry
        if self._axes == 1:
            weight = weight.unsqueeze(-2)
            stride, padding = flat("stride", stride, 1), flat("padding", padding, 0)
            dilation = flat("dilation", dilation, 1)
        problem = Problem.of(x, weight, stride, padding, dilation, groups)
        with self._lock:
            for old in [old for old in self._kernels if old[0] != key[0]]:
                del self._kernels[old]
            if key in self._kernels:  # another thread made it meanwhile
                return self._kernels[key]
            found, variant = function.choose(problem, self.algorithm, x, weight, self.max_error, "prepared")
            with torch.inference_mode(False):
                kernel = found.prepare(problem, weight, self.bias, variant, relu=self.activation == "relu")
            while len(self._kernels) >= KEPT:
                del self._kernels[next(iter(self._kernels))]  # the oldest
            self._kernels[key] = kernel
            return kernel

    def _traced(self, x: Tensor) -> Tensor:
        """In a compiled graph: one operator that finds the plan by its number."""
        if self._differentiable(x) or self._axes == 1 or x.dim() != 4:
            return self._plainly(x)
        stride, padding, dilation, groups = self._geometry
        kernel = self.weight.shape[2], self.weight.shape[3]
        steps, spread = pair("stride", stride), pair("dilation", dilation)
        zeros = sides(padding, kernel, steps, spread)
        around = [*zeros[0], *zeros[1]]
        return planned(x, self.weight, self.bias, steps, around, spread, groups, self._number)


def _version(tensor: Tensor) -> int:
    """Counts changes in place; inference tensors do not count them."""
    return -1 if tensor.is_inference() else tensor._version


_PLANS: weakref.WeakValueDictionary[int, Plan] = weakref.WeakValueDictionary()


@torch.library.custom_op(
    "convscope::planned",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? bias, SymInt[] stride, SymInt[] around, SymInt[] dilation, "
    "SymInt groups, int plan) -> Tensor",
)
def planned(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    around: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    plan: int,
) -> Tensor:
    """`convscope::planned`: a plan's call in a traced graph; weight and bias are named for what they depend on."""
    found = _PLANS.get(plan)
    if found is None:
        raise RuntimeError("the plan this graph was compiled with is gone; keep it alive, or compile again.")
    with torch.no_grad():
        return in_format(found(x), last_format(x, weight))


@planned.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    around: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    plan: int,
) -> Tensor:
    top, bottom, left, right = around
    padded = torch.nn.functional.pad(x, (left, right, top, bottom))
    y = torch.ops.aten.convolution(padded, weight, bias, stride, (0, 0), dilation, False, (0, 0), groups)
    return in_format(torch.empty_like(y), last_format(x, weight))
