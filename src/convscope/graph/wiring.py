"""Which part of a network feeds which, as it ran: the recorded graph without its tensors, for drawing.

A part is a call of a module without submodules, or one operation that a module with submodules does itself. What
only looks at a tensor differently (views, copies) is no part: edges lead through it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from convscope.graph.structure import Call, Graph, Op, Shape

INPUT = -1  # in place of a part's number: the network's input
_COPIES = ("aten.clone", "aten._to_copy", "aten.detach", "aten.contiguous", "convscope.write")


@dataclass(frozen=True)
class Part:
    """A call of a module without submodules, or an operation of one with them.

    Attributes:
        name: address of the module call it is, or that the operation ran in; "" is the network itself.
        kind: class name of the module, or the operation's name ("add").
        is_op: whether it is an operation.
        inside: addresses of the module calls it lies in, outermost first, the network left out.
        shape: of its first result, batch included.
    """

    name: str
    kind: str
    is_op: bool
    inside: tuple[str, ...]
    shape: Shape

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.name,
            "kind": self.kind,
            "is_op": self.is_op,
            "inside": list(self.inside),
            "shape": list(self.shape),
        }


@dataclass(frozen=True)
class Wiring:
    """The parts of a network that depend on its input, and what feeds them.

    Attributes:
        parts: in order of running.
        edges: (from, to), sorted; `INPUT` as a source is the network's input.
        ends: parts (or `INPUT`) that give the network's output.
    """

    parts: tuple[Part, ...]
    edges: tuple[tuple[int, int], ...]
    ends: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "parts": [part.to_dict() for part in self.parts],
            "edges": [list(edge) for edge in self.edges],
            "ends": list(self.ends),
        }


def wiring(graph: Graph) -> Wiring:
    """What feeds what.

    Example:
        >>> from torch import nn
        >>> from convscope.graph import record
        >>> from convscope.models import InputSpec
        >>> class Residual(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.conv, self.act = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()
        ...     def forward(self, x):
        ...         return x + self.act(self.conv(x))
        >>> found = wiring(record(Residual(), spec=InputSpec((3, 8, 8))))
        >>> [part.kind for part in found.parts], found.edges, found.ends
        (['Conv2d', 'ReLU', 'add'], ((-1, 0), (-1, 2), (0, 1), (1, 2)), (2,))
    """
    return _Walk(graph).run()


def ancestors(graph: Graph, call: Call) -> tuple[str, ...]:
    """Addresses of the module calls that a call was made in, outermost first, the network left out."""
    found: list[str] = []
    parent = call.parent
    while parent is not None:
        call = graph.calls[parent]
        if call.name:
            found.append(graph.address(call))
        parent = call.parent
    return tuple(reversed(found))


class _Walk:
    """One use: through the operations in order, remembering for each value what made it."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.parts: list[Part] = []
        self.edges: set[tuple[int, int]] = set()
        self.source: dict[int, frozenset[int]] = {value: frozenset((INPUT,)) for value in graph.inputs}
        self.leaves: dict[int, int] = {}  # order of a call -> number of its part

    def run(self) -> Wiring:
        root = self.graph.calls[-1]
        for op in self.graph.ops:
            feeding = self._sources(op.inputs)
            if not feeding:
                continue  # made of parameters alone
            call = root if op.call is None else self.graph.calls[op.call]
            if not call.is_leaf and self._is_transparent(op):
                made = feeding
            else:
                number = self._leaf(call, op) if call.is_leaf else self._own(call, op)
                self.edges.update((one, number) for one in feeding if one != number)
                made = frozenset((number,))
            for value in op.outputs:
                self.source[value] = made
        return Wiring(
            tuple(self.parts), tuple(sorted(self.edges)), tuple(sorted(self._sources(root.outputs)))
        )

    def _sources(self, values: Iterable[int]) -> frozenset[int]:
        return frozenset().union(*(self.source.get(value, ()) for value in values))

    def _is_transparent(self, op: Op) -> bool:
        if op.name in _COPIES:
            return True
        if op.name.endswith("_") or not op.outputs:
            return False
        values = self.graph.values
        places = {values[index].memory for index in op.inputs} - {-1}
        return all(values[index].memory in places for index in op.outputs)

    def _leaf(self, call: Call, op: Op) -> int:
        if call.order not in self.leaves:
            shape = call.out_shapes[0] if call.out_shapes else self._shape(op)
            self.leaves[call.order] = self._add(call, call.kind, False, shape, ancestors(self.graph, call))
        return self.leaves[call.order]

    def _own(self, call: Call, op: Op) -> int:
        inside = ancestors(self.graph, call) + ((self.graph.address(call),) if call.name else ())
        name = op.name.rpartition(".")[2].strip("_")
        return self._add(call, name, True, self._shape(op), inside)

    def _add(self, call: Call, kind: str, is_op: bool, shape: Shape, inside: Sequence[str]) -> int:
        self.parts.append(Part(self.graph.address(call), kind, is_op, tuple(inside), shape))
        return len(self.parts) - 1

    def _shape(self, op: Op) -> Shape:
        return self.graph.values[op.outputs[0]].shape if op.outputs else ()
