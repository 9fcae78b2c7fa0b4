"""What every operation of a recorded pass costs: multiply-accumulates, element operations, bytes, gradients."""

from __future__ import annotations

from dataclasses import dataclass

from convscope.graph.structure import Graph, Op
from convscope.measures.count_rules import VIEWS, Cost, count, short_name


@dataclass(frozen=True, slots=True)
class Counted:
    """One operation counted.

    Attributes:
        op: the operation.
        cost: what it computes; None where its operator has no rule.
        backward_macs: of the gradients of its products.
        moved_bytes: what it reads and writes, each tensor once; 0 for a view.
    """

    op: Op
    cost: Cost | None
    backward_macs: int
    moved_bytes: int

    @property
    def is_view(self) -> bool:
        """Whether it makes another view of memory that is there."""
        return short_name(self.op) in VIEWS


def counts(graph: Graph) -> tuple[Counted, ...]:
    """Every operation of the graph, counted, in order; worked out once a graph."""
    known = graph._cache.get("counts")
    if known is None:
        known = graph._cache["counts"] = _counts(graph)
    counted: tuple[Counted, ...] = known
    return counted


def _counts(graph: Graph) -> tuple[Counted, ...]:
    trained = _with_gradient(graph)
    found = []
    for op in graph.ops:
        cost = count(op, graph.values)
        products = () if cost is None else cost.products
        backward = sum(
            product.macs * (_any(product.left, trained) + _any(product.right, trained))
            for product in products
        )
        found.append(Counted(op, cost, backward, _moved(op, graph)))
    return tuple(found)


def _any(values: tuple[int, ...], trained: list[bool]) -> bool:
    return any(trained[value] for value in values)


def _with_gradient(graph: Graph) -> list[bool]:
    """For every value, whether training all parameters needs its gradient: it is one, or is made from one."""
    trained = [value.source == "parameter" and _is_continuous(value.dtype) for value in graph.values]
    for op in graph.ops:
        needs = short_name(op) != "detach" and any(trained[value] for value in op.inputs)
        for value in op.outputs:
            trained[value] = needs and _is_continuous(graph.values[value].dtype)
    return trained


def _is_continuous(dtype: object) -> bool:
    return bool(getattr(dtype, "is_floating_point", False) or getattr(dtype, "is_complex", False))


_PICKS = {"embedding": "weight", "index": "self", "index_select": "self", "gather": "self", "take": "self"}


def _moved(op: Op, graph: Graph) -> int:
    name = short_name(op)
    if name in VIEWS:
        return 0
    written = sum(_extent(graph, value) for value in op.outputs)
    source = _PICKS.get(name)  # of these only what is picked is read
    read = {value for value in op.inputs if source is None or value != op.tensors.get(source)}
    return written + (written if source else 0) + sum(_extent(graph, value) for value in read)


def _extent(graph: Graph, index: int) -> int:
    """Bytes of a value; of one that was expanded, those that are there."""
    value = graph.values[index]
    return min(value.size, graph.memories[value.memory].size) if graph.memories else value.size
