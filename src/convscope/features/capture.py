"""Reading activations: run a network only as far as needed and hand back what named layers gave.

A layer key is a dotted module name; `name#k` is its k-th call (from 0; the last by default); `:pre` is the value just
before the layer's own activation function, `:post` the value after the first activation function that runs next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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
_HARDSWISH: _Interval = (-1.5, _INFINITY)  # below, what little gradient there is leads down to nothing
_RELUS = (functional.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)
ACTIVATIONS: dict[Any, _Interval] = {
    **dict.fromkeys(_RELUS, _RELU),
    functional.relu6: (0.0, 6.0),
    functional.hardswish: _HARDSWISH,
    functional.hardsigmoid: (-3.0, 3.0),
    **dict.fromkeys((functional.leaky_relu, functional.elu, functional.selu, functional.celu)),
    **dict.fromkeys((functional.gelu, functional.silu, functional.mish, functional.softplus)),
    **dict.fromkeys((functional.prelu, functional.rrelu, functional.tanhshrink, functional.softsign)),
    **dict.fromkeys((functional.leaky_relu_, functional.elu_, functional.selu_, functional.celu_)),
    **dict.fromkeys((functional.sigmoid, torch.sigmoid, torch.sigmoid_, Tensor.sigmoid, Tensor.sigmoid_)),
    **dict.fromkeys((functional.tanh, torch.tanh, torch.tanh_, Tensor.tanh, Tensor.tanh_)),
    functional.logsigmoid: None,
}
_HARDTANH = {functional.hardtanh, functional.hardtanh_}
_THRESHOLD = {functional.threshold, functional.threshold_, torch.threshold}  # type: ignore[attr-defined]
_CLAMP = {
    torch.clamp,
    torch.clamp_,
    Tensor.clamp,
    Tensor.clamp_,
    torch.clip,
    torch.clip_,
    Tensor.clip,
    Tensor.clip_,
}
_CLAMP_MIN = {torch.clamp_min, torch.clamp_min_, Tensor.clamp_min, Tensor.clamp_min_}
_BOUNDED = _HARDTANH | _THRESHOLD | _CLAMP | _CLAMP_MIN
# Those whose slope can be read off the output: one between the bounds, zero at them.
_CLIPS = {*_RELUS, functional.relu6, functional.hardtanh}


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
    if function in _THRESHOLD:
        return kwargs.get("threshold", rest[0] if rest else None), None
    names, usual = (
        (("min_val", "max_val"), (-1.0, 1.0)) if function in _HARDTANH else (("min", "max"), (None, None))
    )
    low = kwargs.get(names[0], rest[0] if rest else usual[0])
    high = kwargs.get(names[1], rest[1] if len(rest) > 1 else usual[1])
    return low, high


class _Bypass(torch.autograd.Function):
    """Adds nothing forward; backward it passes the gradient of rescued samples that the activation blocks whole."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, interval: tuple[float, float], rescue: Tensor, used: Tensor) -> Tensor:
        low, high = interval
        # Where the rest of the positions is pushed the wrong way, one open position is not enough.
        ctx.share = 0.25 if interval == _HARDSWISH else 0.0
        ctx.save_for_backward((x > low) & (x < high), rescue)
        ctx.used = used  # written to in backward, by every activation in turn
        return x.new_zeros(()).expand_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        passes, rescue = ctx.saved_tensors
        wants = (gradient != 0).reshape(len(gradient), -1)  # a gate may be one number a sample
        through = (wants & passes.reshape(wants.shape)).sum(1)
        alive = through > ctx.share * wants.sum(1)
        redirect = rescue & ~alive  # [batch]
        ctx.used |= redirect
        # Of a unit at its ceiling too: a ReLU6 is at 6 long before its picture is more than a tint of grey.
        keep = redirect.view(-1, *[1] * (gradient.ndim - 1))
        return (
            torch.where(keep, gradient, torch.zeros((), dtype=gradient.dtype, device=gradient.device)),
            None,
            None,
            None,
        )


class _Rectified(torch.autograd.Function):
    """A clipping activation (slope one between its bounds) whose gradient is redirected in single rows.

    The same as the activation with a `_Bypass`, at the price of the activation alone: what is not rescued takes torch's
    own backward pass, and only the rescued rows are looked at.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        call: Callable[[Tensor], Tensor],
        interval: tuple[float, float],
        rows: list[int],
        used: Tensor,
    ) -> Tensor:
        result = call(x)
        if result is x:
            ctx.mark_dirty(x)
        ctx.save_for_backward(result)  # at a bound exactly where the input is at it or beyond
        ctx.interval, ctx.rows, ctx.used = interval, rows, used
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (result,) = gradients, ctx.saved_tensors
        low, high = ctx.interval
        if high == _INFINITY:
            passed = torch.ops.aten.threshold_backward(gradient, result, low)
        else:
            passed = torch.ops.aten.hardtanh_backward(gradient, result, low, high)
        for row in ctx.rows:
            if not bool(passed[row].any()):
                passed[row] = gradient[row]
                ctx.used[row] = True
        return passed, None, None, None, None


class _Watch(TorchFunctionMode):
    """Sees every activation function, module or functional, called while a network runs."""

    def __init__(self, on_activation: Callable[[Tensor, Tensor | None], None], rescue: Tensor | None) -> None:
        super().__init__()
        self.on_activation = on_activation
        self.rescue = rescue
        self.used = torch.zeros_like(rescue) if rescue is not None else None
        # Row by row only where reading a number does not wait for a device.
        on_host = rescue is not None and rescue.device.type == "cpu"
        self.rows = rescue.nonzero().flatten().tolist() if rescue is not None and on_host else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not args or not isinstance(args[0], Tensor):
            return func(*args, **kwargs)
        is_activation, interval = open_interval(func, args, kwargs)
        if not is_activation:
            return func(*args, **kwargs)
        before = args[0]
        self.on_activation(before, None)
        # Without a batch axis no sample has a row of its own to rescue.
        has_rows = self.rescue is not None and before.ndim > 0 and len(before) == len(self.rescue)
        if has_rows and interval is not None and before.requires_grad:
            result = self._rescued(func, before, args[1:], kwargs, interval)
        else:
            result = func(*args, **kwargs)
        self.on_activation(before, result)
        return result

    def _rescued(
        self,
        func: Any,
        before: Tensor,
        rest: tuple[Any, ...],
        kwargs: dict[str, Any],
        interval: tuple[float, float],
    ) -> Tensor:
        """The activation with its bypass; an in-place one still writes to its input, as its caller may rely on."""
        if self.rows is not None and func in _CLIPS and not before.is_leaf and not before._is_view():
            clipped: Tensor = _Rectified.apply(
                before, lambda x: func(x, *rest, **kwargs), interval, self.rows, self.used
            )
            return clipped
        bypass = _Bypass.apply(before, interval, self.rescue, self.used)
        working = before.clone()  # what the activation keeps for its backward pass must not be written to
        result = func(working, *rest, **kwargs)
        total: Tensor = result + bypass
        return before.copy_(total) if result is working else total


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
        self.raw: dict[
            str, Tensor
        ] = {}  # the same values as the layers gave them, on the way to later layers
        self._counts: dict[str, int] = {}
        self._before: list[tuple[Tensor, Tensor]] = []  # the last activation calls, for :pre
        self._waiting: list[_Key] = []  # for :post
        self._watches = any(key.stage for key in self.keys)
        names = dict.fromkeys(key.module for key in self.keys)
        parts = dict(module.named_modules())  # get_submodule knows no name with a dot in it
        self._handles = [
            parts[name].register_forward_hook(self._hook(name), always_call=False) for name in names
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
        self.raw = {}
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
        if missing and any(key.key == missing[0] and key.stage == "post" for key in self.keys):
            name = split_key(missing[0])[0]
            raise RequestError(
                f"layer {missing[0]!r} asks for the value after an activation function, but none runs after {name!r}; "
                f"use {name!r}"
            )
        if missing:
            raise ModelError(
                f"layer {missing[0]!r} gave no value on an input of shape {tuple(x.shape)}, though it did on the example "
                "input; give a canvas size= nearer to the network's own input"
            )
        return found, None if watch is None else watch.used

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], Any]:
        wanted = [key for key in self.keys if key.module == name]

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            count = self._counts.get(name, 0)
            self._counts[name] = count + 1
            handed = None
            for key in wanted:
                if key.call != count:
                    continue
                if key.stage == "post":
                    self._waiting.append(key)
                    continue
                value = first_tensor(output, key.key)
                if key.stage == "pre":
                    self._store(key, self._input_of_activation(value, key))
                    continue
                kept = self._store(key, value)
                if value.requires_grad:  # the kept value stays on the way: later layers have a gradient in it
                    copy = kept.clone()
                    handed = _replaced(output, value, copy)
                    self._before = [(b, copy if after is value else after) for b, after in self._before]
            return handed

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

    def _store(self, key: _Key, value: Tensor) -> Tensor:
        """Keeps a value, and leaves the network if it is the last."""
        last = len(self._found) + 1 == len(self.keys)
        # What runs after this layer may overwrite its output in place; nothing runs after the last one.
        kept = value if last else value.clone()
        self.raw[key.key] = kept
        self._found[key.key] = key.layout.as_map(kept)
        if last:
            raise _Finished
        return kept


def first_tensor(output: Any, key: str) -> Tensor:
    """The layer's output tensor; of a tuple, list or mapping the first one."""
    found = _first(output)
    if found is None:
        raise ModelError(
            f"layer {key!r} returns {type(output).__name__} without a tensor; choose another layer"
        )
    return found


def _first(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    items = (
        output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    )
    return next((found for item in items if (found := _first(item)) is not None), None)


def _replaced(output: Any, old: Tensor, new: Tensor) -> Any:
    """The output with one tensor exchanged; None, which leaves it as it is, where its container is not a plain one."""
    if output is old:
        return new
    if type(output) is dict:
        return {name: new if item is old else item for name, item in output.items()}
    if type(output) in (tuple, list):
        return type(output)(new if item is old else item for item in output)
    return None


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
