"""What a recorded forward pass is made of: values (tensors at one moment), operations, module calls.

Values are numbered in order of appearance and never change: an in-place operation makes a new value. A graph
holds shapes and names, no tensor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch

from convscope.errors import UnknownLayer, nearest

Shape = tuple[int, ...]
Source = Literal["input", "parameter", "buffer", "constant", "op"]


@dataclass(frozen=True)
class Value:
    """A tensor's content at one moment of the forward pass.

    Attributes:
        index: its number; `graph.values[index]` is the value itself.
        shape: sizes, batch included.
        dtype: element type.
        source: "op" when an operation made it, else where it came from.
        name: the parameter's or buffer's dotted name, or "".
        memory: number of the memory it lies in, which views and in-place results share.
    """

    index: int
    shape: Shape
    dtype: torch.dtype
    source: Source
    name: str = ""
    memory: int = -1

    @property
    def size(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Memory:
    """One piece of memory, and how long it was needed.

    Attributes:
        size: bytes.
        source: where it came from.
        born: number of the operation that made it; -1 where it was there before the pass.
        died: number of the first operation that ran without it: Python had let go of its last tensor.
    """

    size: int
    source: Source
    born: int
    died: int


@dataclass(frozen=True)
class Op:
    """One tensor operation as it ran.

    Attributes:
        name: `aten.convolution`, `aten.add_`, ...; `convscope.write` stands for what an in-place operation
            on one tensor does to another that shares its memory.
        overload: the operator's overload, such as "default" or "Tensor".
        module: dotted name of the module it ran in ("" is the network itself).
        call: `order` of the module call it ran in, None outside any.
        tensors: argument name -> value number, a tuple of them for a list of tensors, or None.
        attributes: argument name -> plain value (stride, padding, ...), defaults filled in.
        outputs: value numbers it made; an in-place operation's result is a new value.
        pointwise: whether the operator declares that it works element by element.
    """

    name: str
    overload: str
    module: str
    call: int | None
    tensors: Mapping[str, int | tuple[int | None, ...] | None]
    attributes: Mapping[str, Any]
    outputs: tuple[int, ...]
    pointwise: bool = False

    @property
    def inputs(self) -> tuple[int, ...]:
        """The value numbers it read, in order of arguments."""
        found: list[int] = []
        for value in self.tensors.values():
            if isinstance(value, int):
                found.append(value)
            elif value is not None:
                found.extend(item for item in value if item is not None)
        return tuple(found)


@dataclass(frozen=True)
class Call:
    """One call of one module.

    Attributes:
        name: dotted module name, "" for the network itself.
        kind: class name.
        index: 0 for the module's first call, 1 for the second, ...
        depth: number of names in the dotted name; 0 for the network itself.
        is_leaf: whether the module has no submodules.
        in_shapes, out_shapes: of the tensors in its arguments and its result, nested containers flattened.
        inputs, outputs: the value numbers of those tensors.
        order: position among all calls in order of completion.
        parent: `order` of the call it was made from, None for the network itself.
    """

    name: str
    kind: str
    index: int
    depth: int
    is_leaf: bool
    in_shapes: tuple[Shape, ...]
    out_shapes: tuple[Shape, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    order: int
    parent: int | None

    @property
    def address(self) -> str:
        """The name that finds exactly this call: `name`, with `#index` where it is not the first."""
        return f"{self.name}#{self.index}" if self.index else self.name


@dataclass(frozen=True, eq=False)
class Graph:
    """One forward pass as it ran, in order; made by `record`.

    Attributes:
        calls: module calls in order of completion; the network's own call is the last.
        ops: tensor operations in order.
        values: every tensor that an operation or module call read or made.
        inputs: value numbers of the network's input tensors.
        layers: dotted names of all modules but the root, in order of registration, called or not.
        aliases: second name of a shared module -> the name it is recorded under.
        memories: the memory that values lie in, by `Value.memory`.
    """

    calls: tuple[Call, ...]
    ops: tuple[Op, ...]
    values: tuple[Value, ...]
    inputs: tuple[int, ...]
    layers: tuple[str, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)
    memories: tuple[Memory, ...] = ()
    _cache: dict[str, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def _calls_of(self) -> dict[str, list[Call]]:
        found: dict[str, list[Call]] = {}
        for call in self.calls:
            found.setdefault(call.name, []).append(call)
        for calls in found.values():
            calls.sort(
                key=lambda call: call.index
            )  # a module may call itself: completion is then not call order
        return found

    @property
    def executed(self) -> tuple[str, ...]:
        """Names of the modules that ran, the root left out, in order of first completion."""
        return tuple(name for name in self._by_completion if name)

    @cached_property
    def _by_completion(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(call.name for call in self.calls))

    def has(self, layer: str) -> bool:
        """Whether `layer` (`name` or `name#k`) ran."""
        name, number = split_address(layer)
        calls = self._calls_of.get(self.aliases.get(name, name), [])
        return bool(calls) if number is None else number < len(calls)

    def call(self, layer: str) -> Call:
        """The call that `layer` names: `name#k` is the k-th (from 0), `name` alone the last.

        Raises:
            UnknownLayer: no module has that name, it did not run, or it ran fewer times.
        """
        name, number = split_address(layer)
        name = self.aliases.get(name, name)
        calls = self._calls_of.get(name)
        if calls is None:
            if name in self.layers:
                raise UnknownLayer(
                    f"layer {name!r} is a module of the network but its forward was not called on the "
                    f"example input; "
                    "choose a layer that runs"
                )
            raise UnknownLayer(
                f"layer {layer!r} is not a module of the network{nearest(name, self.executed)}"
            )
        if number is not None and number >= len(calls):
            raise UnknownLayer(
                f"layer {layer!r} asks for call {number} but {name!r} was called {len(calls)} times; "
                f"use #0 to #{len(calls) - 1}"
            )
        return calls[-1 if number is None else number]

    def address(self, call: Call) -> str:
        """The shortest text that `call` finds exactly this call by: its name, with `#k` where it ran often."""
        return call.name if len(self._calls_of[call.name]) == 1 else f"{call.name}#{call.index}"

    def outputs(self, layer: str) -> tuple[Shape, ...]:
        """Shapes of the tensors that the layer's last (or `#k`-th) call returned.

        Raises:
            UnknownLayer: the layer does not exist or did not run.
        """
        return self.call(layer).out_shapes

    def __repr__(self) -> str:
        return (
            f"Graph({len(self.calls)} module calls, {len(self.ops)} operations, {len(self.values)} tensors)"
        )


def split_address(layer: str) -> tuple[str, int | None]:
    """`"name#2"` -> ("name", 2); `"name"` -> ("name", None). A `#` without a number belongs to the name."""
    name, mark, number = layer.rpartition("#")
    if mark and number.isdecimal():
        return name, int(number)
    return layer, None
