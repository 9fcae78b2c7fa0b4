"""Reading activations: run a network only as far as needed and hand back what named layers gave.

A layer key is a dotted module name; `name#k` is its k-th call (from 0; the last by default); `:pre` is the value just
before the layer's own activation function, `:post` the value after the first activation function that runs next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from convscope.errors import ModelError, RequestError, UnknownLayer
from convscope.graph import Graph, Layout, layout

# Activation functions with the open interval in which a gradient passes; None: everywhere.
_Interval = tuple[float, float] | None
_INFINITY = float("inf")
_RELU: _Interval = (0.0, _INFINITY)
ACTIVATIONS: dict[Any, _Interval] = {
    functional.relu: _RELU,
    torch.relu: _RELU,
    torch.relu_: _RELU,
    Tensor.relu: _RELU,
    Tensor.relu_: _RELU,
    functional.relu6: (0.0, 6.0),
    functional.hardswish: (-3.0, _INFINITY),
    functional.hardsigmoid: (-3.0, 3.0),
    **dict.fromkeys((functional.leaky_relu, functional.elu, functional.selu, functional.celu)),
    **dict.fromkeys((functional.gelu, functional.silu, functional.mish, functional.softplus)),
    **dict.fromkeys((functional.prelu, functional.rrelu, functional.tanhshrink, functional.softsign)),
    **dict.fromkeys((functional.sigmoid, torch.sigmoid, Tensor.sigmoid)),
    **dict.fromkeys((functional.tanh, torch.tanh, Tensor.tanh)),
}
_BOUNDED = {
    functional.hardtanh,
    functional.threshold,
    torch.clamp,
    Tensor.clamp,
    torch.clamp_min,
    Tensor.clamp_min,
}


def open_interval(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bool, _Interval]:
    """Whether a call is of an activation function, and where its gradient passes."""
    if function in ACTIVATIONS:
        return True, ACTIVATIONS[function]
    if function not in _BOUNDED:
        return False, None
    low, high = _bounds(function, list(args[1:3]), kwargs)
    if not isinstance(low, int | float) or not isinstance(high, int | float | None):
        return False, None  # bounds that are tensors: a computation, not an activation function
    return True, (float(low), _INFINITY if high is None else float(high))


def _bounds(function: Any, rest: list[Any], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """(low, high) as they were given, by position or by name."""
    if function is functional.threshold:
        return kwargs.get("threshold", rest[0] if rest else None), None
    names = ("min_val", "max_val") if function is functional.hardtanh else ("min", "max")
    low = kwargs.get(names[0], rest[0] if rest else (-1.0 if function is functional.hardtanh else None))
    high = kwargs.get(
        names[1], rest[1] if len(rest) > 1 else (1.0 if function is functional.hardtanh else None)
    )
    return low, high


class _Bypass(torch.autograd.Function):
    """Adds nothing forward; backward it passes the gradient of rescued samples that the activation blocks whole."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, interval: tuple[float, float], rescue: Tensor, used: Tensor) -> Tensor:
        low, high = interval
        ctx.save_for_backward((x > low) & (x < high), x < high, rescue)
        ctx.used = used  # written to in backward, by every activation in turn
        return x.new_zeros(()).expand_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        passes, below, rescue = ctx.saved_tensors
        alive = ((gradient != 0) & passes).flatten(1).any(1)
        redirect = rescue & ~alive  # [batch]
        ctx.used |= redirect
        keep = redirect.view(-1, *[1] * (gradient.ndim - 1)) & below
        return (
            torch.where(keep, gradient, torch.zeros((), dtype=gradient.dtype, device=gradient.device)),
            None,
            None,
            None,
        )


class _Watch(TorchFunctionMode):
    """Sees every activation function, module or functional, called while a network runs."""

    def __init__(self, on_activation: Callable[[Tensor, Tensor | None], None], rescue: Tensor | None) -> None:
        super().__init__()
        self.on_activation = on_activation
        self.rescue = rescue
        self.used = torch.zeros_like(rescue) if rescue is not None else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not args or not isinstance(args[0], Tensor):
            return func(*args, **kwargs)
        is_activation, interval = open_interval(func, args, kwargs)
        if not is_activation:
            return func(*args, **kwargs)
        before = args[0]
        self.on_activation(before, None)
        bypass = None
        # Without a batch axis no sample has a row of its own to rescue.
        has_rows = self.rescue is not None and before.ndim > 0 and len(before) == len(self.rescue)
        if has_rows and interval is not None and before.requires_grad:
            bypass = _Bypass.apply(before, interval, self.rescue, self.used)
        result = func(*args, **kwargs)
        if bypass is not None:
            result = result.add_(bypass) if result is before else result + bypass
        self.on_activation(before, result)
        return result


class _Finished(BaseException):
    """Everything wanted has been seen: leave the forward pass. Not an Exception, so that no network swallows it."""


@dataclass
class _Key:
    """One wanted value."""

    key: str
    module: str
    call: int
    stage: str  # "", "pre" or "post"
    layout: Layout


class Capture:
    """The truncated forward pass of one private network.

    Args:
        module: a private copy, hooked until `close`.
        graph: of the same network, as recorded.
        keys: layer keys to read.

    Raises:
        UnknownLayer: a key names no layer that runs.
        RequestError: a key asks for `:pre` or `:post` where there is no activation function.
    """

    def __init__(self, module: nn.Module, graph: Graph, keys: Iterable[str]) -> None:
        self.module = module
        self.keys = [_parse(key, graph) for key in dict.fromkeys(keys)]
        self._found: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._before: list[tuple[Tensor, Tensor]] = []  # the last activation calls, for :pre
        self._waiting: list[_Key] = []  # for :post
        self._watches = any(key.stage for key in self.keys)
        names = dict.fromkeys(key.module for key in self.keys)
        self._handles = [
            module.get_submodule(name).register_forward_hook(self._hook(name), always_call=False)
            for name in names
        ]

    def __enter__(self) -> Capture:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Takes the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __call__(self, x: Tensor, rescue: Tensor | None = None) -> tuple[dict[str, Tensor], Tensor | None]:
        """Runs the network on x [batch, channel, height, width] until all keys are seen.

        Args:
            x: normalized input.
            rescue: Tensor [batch] of bool: samples whose gradient may pass a blocking activation.

        Returns:
            layer key -> Tensor [batch, channel, *position], and, after a backward pass, which samples were rescued.
        """
        self._found, self._counts, self._before, self._waiting = {}, {}, [], []
        watch = None
        try:
            if rescue is not None or self._watches:
                watch = _Watch(self._activation, rescue)
                with watch:
                    self.module(x)
            else:
                self.module(x)
        except _Finished:
            pass
        missing = [key.key for key in self.keys if key.key not in self._found]
        found, self._found, self._before = self._found, {}, []
        if missing:
            raise ModelError(
                f"layer {missing[0]!r} gave no value on an input of shape {tuple(x.shape)}, though it did on the example "
                "input; give a canvas size= nearer to the network's own input"
            )
        return found, None if watch is None else watch.used

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        wanted = [key for key in self.keys if key.module == name]

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            count = self._counts.get(name, 0)
            self._counts[name] = count + 1
            for key in wanted:
                if key.call != count:
                    continue
                if key.stage == "post":
                    self._waiting.append(key)
                else:
                    value = first_tensor(output, key.key)
                    self._store(key, self._input_of_activation(value, key) if key.stage == "pre" else value)

        return hook

    def _input_of_activation(self, value: Tensor, key: _Key) -> Tensor:
        for before, after in reversed(self._before):
            if after is value:
                return before
        raise RequestError(
            f"layer {key.key!r} asks for the value before an activation function, but {key.module!r} does not end in one; "
            f"use {key.module!r}"
        )

    def _activation(self, before: Tensor, after: Tensor | None) -> None:
        if not self._watches:
            return
        if after is None:  # about to run; an in-place one would overwrite its input
            self._kept = before.clone() if any(key.stage == "pre" for key in self.keys) else before
            return
        self._before = [*self._before[-3:], (self._kept, after)]
        waiting, self._waiting = self._waiting, []
        for key in waiting:
            self._store(key, after)

    def _store(self, key: _Key, value: Tensor) -> None:
        last = len(self._found) + 1 == len(self.keys)
        # What runs after this layer may overwrite its output in place; nothing runs after the last one.
        self._found[key.key] = key.layout.as_map(value if last else value.clone())
        if last:
            raise _Finished


def first_tensor(output: Any, key: str) -> Tensor:
    """The layer's output tensor; of a tuple, list or mapping the first one."""
    if isinstance(output, Tensor):
        return output
    items = (
        output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else ()
    )
    for item in items:
        if isinstance(item, Tensor):
            return item
    raise ModelError(f"layer {key!r} returns {type(output).__name__} without a tensor; choose another layer")


def split_key(key: str) -> tuple[str, str]:
    """`"name#1:pre"` -> ("name#1", "pre"); the stage is "" where none is given."""
    for stage in ("pre", "post"):
        if key.endswith(":" + stage):
            return key[: -len(stage) - 1], stage
    return key, ""


def _parse(key: str, graph: Graph) -> _Key:
    address, stage = split_key(key)
    if not address:
        raise UnknownLayer("layer '' is the whole network; name one of its layers")
    call = graph.call(address)
    where = layout(graph, address)
    if where.channel_axis is None:
        raise RequestError(
            f"layer {key!r} gives an output of shape {list(where.shape)}, in which no axis is a channel; choose another layer"
        )
    return _Key(key, call.name, call.index, stage, where)
