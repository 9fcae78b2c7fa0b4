"""The end of a classifier: how features become scores, read from the executed graph, backwards from the output.

    map -> [pool] -> flatten -> Linear -> ReLU -> ... -> Linear -> scores

A step is a module without submodules, or an operation that a module with submodules does itself (`torch.flatten` in
`forward`). What cannot be moved from vectors to maps is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from convscope.graph import Call, Graph, Op
from convscope.rewrites.base import Refused

Kind = Literal["linear", "norm", "flatten", "pool", "keep"]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One step of the head.

    Attributes:
        kind: "linear", "norm" (BatchNorm1d), "flatten", "pool" (also where it flattens), "keep" (element by element).
        layer: dotted name of the module; of the one whose forward does it, where it is an operation.
        is_op: whether it is an operation.
        name: for messages.
        before, after: shapes, batch included.
    """

    kind: Kind
    layer: str
    is_op: bool
    name: str
    before: Shape
    after: Shape


@dataclass(frozen=True)
class Head:
    """The steps from the last map to the scores, in order.

    Attributes:
        steps: the first is the pool where there is one.
        map_shape: of the map that enters, batch included.
        map_value: its number in the graph.
    """

    steps: tuple[Step, ...]
    map_shape: Shape
    map_value: int

    @property
    def linears(self) -> tuple[str, ...]:
        """Names of the fully-connected layers."""
        return tuple(step.layer for step in self.steps if step.kind == "linear")


def read_head(graph: Graph, module: nn.Module) -> Head:
    """The head of a classifier.

    Raises:
        Refused: the network does not end in one, or some step of it cannot be done on maps.
    """
    outputs = graph.calls[-1].outputs
    if len(outputs) != 1 or len(graph.values[outputs[0]].shape) != 2:
        shapes = ", ".join(str(list(graph.values[value].shape)) for value in outputs)
        raise Refused(f"the network gives {shapes or 'no tensor'}, where one score a class is needed")
    walk = _Walk(graph, module)
    value, flat = outputs[0], False
    steps: list[Step] = []
    while True:
        shape = graph.values[value].shape
        if flat and tuple(shape[2:]) != (1, 1):
            found, value = walk.pool_behind(value) or ([], value)
            return Head(tuple(reversed([*steps, *found])), graph.values[value].shape, value)
        try:
            step, source = walk.step(value)
        except Refused:
            if not flat:
                raise
            return Head(tuple(reversed(steps)), shape, value)  # the map has one position, made by the body
        steps.append(step)
        flat = flat or len(step.before) == 4
        value = source
        if step.kind == "pool":
            return Head(tuple(reversed(steps)), step.before, source)


class _Walk:
    """One use: from a value to what made it."""

    def __init__(self, graph: Graph, module: nn.Module) -> None:
        self.graph = graph
        self.modules = dict(module.named_modules())
        self.maker: dict[int, Op] = {value: op for op in graph.ops for value in op.outputs}
        self.live = set(graph.inputs)  # values that depend on the input
        for op in graph.ops:
            if any(value in self.live for value in op.inputs):
                self.live.update(op.outputs)

    def step(self, value: int) -> tuple[Step, int]:
        """The step that made a value, and the value it read.

        Raises:
            Refused: it cannot be done on maps.
        """
        op = self.maker.get(value)
        if op is None:
            raise Refused("the network flattens its input itself, so that there is no map to keep")
        call = self._leaf(op)
        sources = [v for v in (op.inputs if call is None else call.inputs) if v in self.live]
        name = call.name if call is not None else op.module
        label = f"{op.name.rpartition('.')[2]} in {name or 'forward'!r}" if call is None else repr(name)
        if len(sources) != 1 or (call is not None and value not in call.outputs):
            raise Refused(f"{label} between the map and the scores takes several tensors")
        before, after = self.graph.values[sources[0]].shape, self.graph.values[value].shape
        kind = self._kind(op, call, before, after)
        if kind is None:
            raise Refused(f"{label} between the map and the scores cannot be done on a map")
        return Step(kind, name, call is None, label, before, after), sources[0]

    def pool_behind(self, value: int) -> tuple[list[Step], int] | None:
        """Steps from a map back to an adaptive pool, that included, with the value it reads; None where there is none."""
        found: list[Step] = []
        while True:
            try:
                step, source = self.step(value)
            except Refused:
                return None
            if step.kind not in ("keep", "pool") or len(step.before) != 4:
                return None
            found.append(step)
            value = source
            if step.kind == "pool":
                return found, value
            if isinstance(self.modules.get(step.layer), nn.Conv2d):
                return None

    def _leaf(self, op: Op) -> Call | None:
        """The call of a module without submodules (or whose weight is computed) that an operation ran in."""
        at = op.call
        found = None
        while at is not None:
            call = self.graph.calls[at]
            part = self.modules.get(call.name)
            if part is not None and (call.is_leaf or set(part._modules) == {"parametrizations"}):
                found = call
            at = call.parent
        return found

    def _kind(self, op: Op, call: Call | None, before: Shape, after: Shape) -> Kind | None:
        part = None if call is None else self.modules[call.name]
        if part is not None and len(before) == 2:
            if is_linear(part):
                return "linear"
            if type(part) is nn.BatchNorm1d:
                return "norm"
        if before[:2] == after[:2] and before == after and self._is_pointwise(op, call):
            return "keep"
        if len(before) != 4:
            if _softmax_over_classes(op, before, after):
                return "keep"
            return None
        if len(after) == 2 and after[1] == before[1] * before[2] * before[3]:
            return "flatten"
        if part is not None and tuple(before[2:]) == (1, 1) == tuple(after[2:]) and _is_pointwise_layer(part):
            return "keep"
        adaptive = isinstance(part, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)) or "adaptive" in op.name
        if tuple(before[2:]) != (1, 1) and before[1] == after[1] and (adaptive or after[2:] in ((), (1, 1))):
            return "pool"
        return None

    def _is_pointwise(self, op: Op, call: Call | None) -> bool:
        ops = [op]
        if call is not None:
            ops = [each for each in self.graph.ops if each.call == call.order]
        for each in ops:
            known = each.pointwise or each.name.rpartition(".")[2].rstrip("_") in _ELEMENTWISE
            ones = all(self.graph.values[v].shape in ((), (1,)) for v in each.inputs if v not in self.live)
            if not (known and ones):  # a vector of weights would lie along another axis of a map
                return False
        return True


_ELEMENTWISE = {"hardswish", "clone", "detach", "_to_copy", "alias", "hardtanh", "dropout", "native_dropout"}


def _softmax_over_classes(op: Op, before: Shape, after: Shape) -> bool:
    return (
        op.name in ("aten._softmax", "aten._log_softmax")
        and before == after
        and op.attributes.get("dim") == 1
    )


def _is_pointwise_layer(part: nn.Module) -> bool:
    """What is done on every position of a map alike."""
    if isinstance(part, nn.Conv2d):
        return tuple(part.kernel_size) == (1, 1) and tuple(part.stride) == (1, 1)
    return isinstance(part, (nn.BatchNorm2d, nn.PReLU)) or type(part).__name__ == "LayerNorm2d"


def is_linear(part: nn.Module) -> bool:
    """Whether a module computes just `x W' + b`: torch's Linear, timm's, or one whose weight is computed."""
    kind = type(part)
    if kind is nn.Linear or kind.__module__ == "torch.nn.utils.parametrize":
        return isinstance(part, nn.Linear)
    return isinstance(part, nn.Linear) and (
        kind.forward is nn.Linear.forward
        or (kind.__name__ == "Linear" and kind.__module__.startswith("timm."))
    )


# ---------------------------------------------------------------- what takes their place


class HeadConv2d(nn.Conv2d):
    """A fully-connected layer that slides over a map: a convolution without padding.

    Where it has few positions it runs as one matrix product, which spares torch from laying out its many weights
    anew at each call.

    Args:
        flat: whether it gives the scores: a map of one position then comes out flat, [batch, channels], as from the
            layer it was; `trim` and `average` are as for `Scores`.
        (all others): of torch's Conv2d.

    Example:
        >>> layer = HeadConv2d(8, 3, 7, flat=True)
        >>> layer(torch.zeros(2, 8, 7, 7)).shape, layer(torch.zeros(2, 8, 9, 10)).shape
        (torch.Size([2, 3]), torch.Size([2, 3, 3, 4]))
    """

    def __init__(self, *args: object, flat: bool = False, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.flat = flat
        self.trim = (0, 0)
        self.average = False

    def forward(self, input: Tensor) -> Tensor:
        """`[batch, in, height, width]` to `[batch, out, height', width']`, or `[batch, out]`."""
        reach = [(k - 1) * d for k, d in zip(self.kernel_size, self.dilation, strict=True)]
        rows, columns = (
            (n - r - 1) // s + 1 for n, r, s in zip(input.shape[2:], reach, self.stride, strict=True)
        )
        if rows < 1 or columns < 1 or input.shape[0] * rows * columns > _MANY:
            y = super().forward(input)
        else:
            patches = nn.functional.unfold(input, self.kernel_size, self.dilation, 0, self.stride)
            y = nn.functional.linear(patches.mT, self.weight.flatten(1), self.bias)  # [batch, position, out]
            y = y.mT.unflatten(2, (rows, columns))
        return flat_scores(y, self.trim, self.average) if self.flat else y

    def extra_repr(self) -> str:
        """As torch's, and what becomes of scores."""
        text = super().extra_repr() + (", flat=True" if self.flat else "")
        return text if self.trim == (0, 0) else f"{text}, trim={self.trim}"


_MANY = 128  # positions up to which a matrix product of VGG-16's first such layer beat the convolution, on the CPU


class Scores(nn.Module):
    """A map of one position comes out flat, as from the flattening it stands for; a larger map stays one.

    Attributes:
        trim: (rows, columns) at the end that are left out: windows that hang over the image.
        average: whether the scores of all positions are averaged.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trim = (0, 0)
        self.average = False

    def forward(self, input: Tensor) -> Tensor:
        """`[batch, channels, 1, 1]` to `[batch, channels]`; else the input itself."""
        return flat_scores(input, self.trim, self.average)

    def extra_repr(self) -> str:
        """What is left out."""
        return "" if self.trim == (0, 0) else f"trim={self.trim}"


def flat_scores(y: Tensor, trim: tuple[int, int], average: bool) -> Tensor:
    """`[batch, channels, 1, 1]` to `[batch, channels]`; larger maps stay, or are averaged."""
    if trim != (0, 0):
        y = y[:, :, : y.shape[2] - trim[0], : y.shape[3] - trim[1]]
    if average:
        return y.mean((2, 3))
    return y.flatten(1) if y.shape[2:] == (1, 1) else y


def convolution_of(linear: nn.Linear, size: tuple[int, int], flat: bool) -> HeadConv2d:
    """The convolution that a fully-connected layer is on a flattened map of this height and width.

    [out, channels height width] -> [out, channels, height, width].
    """
    channels = linear.in_features // (size[0] * size[1])
    weight = linear.weight.detach().double()
    made = HeadConv2d(
        channels, linear.out_features, size, bias=linear.bias is not None, device="meta", flat=flat
    )
    made.weight = nn.Parameter(weight.reshape(-1, channels, *size), requires_grad=False)
    if linear.bias is not None:
        made.bias = nn.Parameter(linear.bias.detach().double(), requires_grad=False)
    return made


def windows(size: int, out: int) -> tuple[int, int] | None:
    """(kernel, stride) of an adaptive pool along one axis, or None where its windows are not all alike.

    Example:
        >>> windows(7, 7), windows(8, 7), windows(14, 7), windows(7, 1), windows(10, 7)
        ((1, 1), (2, 1), (2, 2), (7, 1), None)
    """
    if out > size:
        return None  # windows that repeat
    starts = [i * size // out for i in range(out)]
    kernels = {-(-(i + 1) * size // out) - start for i, start in enumerate(starts)}
    steps = {b - a for a, b in pairwise(starts)} or {1}
    return (kernels.pop(), steps.pop()) if len(kernels) == 1 == len(steps) else None


def pool_for(kind: str, before: Shape, after: Shape) -> nn.Module:
    """The pool with a fixed window that an adaptive or global one is at this size.

    Args:
        kind: "avg" or "max".
        before, after: shapes of the map, [batch, channels, height, width]; `after` may lack height and width.

    Raises:
        Refused: its windows are not all alike.
    """
    out = tuple(after[2:]) or (1, 1)
    found = [windows(n, m) for n, m in zip(before[2:], out, strict=True)]
    if any(each is None for each in found):
        raise Refused(
            f"its adaptive pool makes {out[0]}x{out[1]} positions of {before[2]}x{before[3]}, with windows of several sizes"
        )
    kernel, stride = (tuple(each[k] for each in found if each is not None) for k in (0, 1))
    if kernel == (1, 1) == stride:
        return nn.Identity()
    made = nn.AvgPool2d if kind == "avg" else nn.MaxPool2d
    return made(kernel, stride)  # type: ignore[arg-type]


def pool_kind(x: Tensor, y: Tensor) -> str | None:
    """Which pool gave y for x: "avg", "max", or None, told by the values."""
    out = (y.shape[2], y.shape[3]) if y.ndim == 4 else (1, 1)
    y = y.reshape(*y.shape[:2], *out)
    for kind, pool in (
        ("avg", nn.functional.adaptive_avg_pool2d),
        ("max", nn.functional.adaptive_max_pool2d),
    ):
        if torch.allclose(pool(x, out), y, rtol=1e-9, atol=1e-12):
            return kind
    return None
