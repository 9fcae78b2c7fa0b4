"""Rows of a profile, from one recorded pass: every operation in the row of the module call it ran in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from convscope.graph.rules import follow
from convscope.graph.structure import Call, Graph, Value
from convscope.measures.activations import input_bytes, live_bytes, made_bytes
from convscope.measures.count_rules import each, short_name
from convscope.measures.counts import Counted, counts
from convscope.measures.profile import LayerRow, Totals
from convscope.measures.receptive_field import ReceptiveField, field_of

Saved = Mapping[tuple[str, int], int]  # (module name, number of the call) -> bytes


@dataclass(frozen=True)
class _Ledger:
    """What is worked out for all operations at once, and which parameters have had their row."""

    graph: Graph
    counted: Sequence[Counted]
    live: Sequence[int]
    made: Sequence[int]
    saved: Saved | None
    backward: bool
    fields: bool
    seen: set[str] = field(default_factory=set)


def rows(graph: Graph, *, saved: Saved | None, backward: bool, fields: bool) -> tuple[LayerRow, ...]:
    """One row for each call of a module without submodules, and for each other call that computes by itself, in
    the order in which they finished.
    """
    ledger = _Ledger(graph, counts(graph), live_bytes(graph), made_bytes(graph), saved, backward, fields)
    root = graph.calls[-1].order
    own: dict[int, list[int]] = {}
    for number, op in enumerate(graph.ops):
        own.setdefault(root if op.call is None else op.call, []).append(number)
    first = _by_first_operation(graph, own)
    found = {
        call.order: _row(ledger, call, own.get(call.order, []))
        for call in sorted(graph.calls, key=lambda call: first[call.order])
        if call.is_leaf or _works(ledger, call, own.get(call.order, []))
    }
    return tuple(found[order] for order in sorted(found))


def _by_first_operation(graph: Graph, own: Mapping[int, list[int]]) -> dict[int, tuple[int, int]]:
    """What sorts calls by when they first compute: parameters belong to the first that reads them."""
    last = len(graph.ops)
    return {call.order: (min(own.get(call.order, [last])), call.order) for call in graph.calls}


def _works(ledger: _Ledger, call: Call, numbers: Iterable[int]) -> bool:
    """Whether a module with submodules does anything between them but make views."""
    if ledger.saved is not None and (call.name, call.index) in ledger.saved:
        return True
    values = ledger.graph.values
    return any(
        not ledger.counted[number].is_view
        or any(values[value].source == "parameter" for value in ledger.graph.ops[number].inputs)
        for number in numbers
    )


def _row(ledger: _Ledger, call: Call, numbers: list[int]) -> LayerRow:
    graph, counted = ledger.graph, [ledger.counted[number] for number in numbers]
    ops = [item.op for item in counted]
    fresh, again = _weights(ledger, numbers)
    seen, reason = _field(graph, call) if ledger.fields else (None, "not asked for")
    window = _window(counted, graph.values)
    saved = None if ledger.saved is None else ledger.saved.get((call.name, call.index), 0)
    return LayerRow(
        name=graph.address(call),
        kind=call.kind,
        functional=not call.is_leaf,
        in_shapes=call.in_shapes,
        out_shapes=call.out_shapes,
        kernel=window.kernel,
        stride=window.stride,
        padding=window.padding,
        dilation=window.dilation,
        groups=window.groups,
        params=sum(_elements(value) for value in fresh if value.source == "parameter"),
        shared_params=sum(_elements(value) for value in again if value.source == "parameter"),
        weight_bytes=sum(value.size for value in fresh),
        macs=sum(item.cost.macs for item in counted if item.cost is not None),
        backward_macs=sum(item.backward_macs for item in counted) if ledger.backward else None,
        element_ops=sum(item.cost.element_ops for item in counted if item.cost is not None),
        activation_bytes=sum(ledger.made[number] for number in numbers),
        peak_bytes=max((ledger.live[number] for number in numbers), default=0),
        training_bytes=saved,
        moved_bytes=sum(item.moved_bytes for item in counted),
        receptive_field=seen,
        no_field=reason,
        ops=_tally(op.name for op in ops if op.name != "convscope.write"),
        uncounted=_tally(item.op.name for item in counted if item.cost is None),
    )


def _weights(ledger: _Ledger, numbers: Iterable[int]) -> tuple[list[Value], list[Value]]:
    """The parameters and buffers that operations read: those not seen before, and those of earlier rows."""
    values = ledger.graph.values
    fresh: dict[str, Value] = {}
    again: dict[str, Value] = {}
    for number in numbers:
        for index in ledger.graph.ops[number].inputs:
            value = values[index]
            if value.source in ("parameter", "buffer") and value.name not in fresh:
                (again if value.name in ledger.seen else fresh)[value.name] = value
    ledger.seen.update(fresh)
    return list(fresh.values()), list(again.values())


def _elements(value: Value) -> int:
    return value.size // value.dtype.itemsize


def _tally(names: Iterable[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in names:
        found[name] = found.get(name, 0) + 1
    return found


def _field(graph: Graph, call: Call) -> tuple[ReceptiveField | None, str]:
    if not call.outputs:
        return None, "it returns no tensor"
    trace = follow(graph)[call.outputs[0]]
    if not trace.depends:
        return None, "it does not depend on the input"
    return field_of(trace), ""


@dataclass(frozen=True)
class _Window:
    """The geometry of a convolution or pooling, one number an axis."""

    kernel: tuple[int, ...] | None = None
    stride: tuple[int, ...] | None = None
    padding: tuple[int, ...] | None = None
    dilation: tuple[int, ...] | None = None
    groups: int | None = None


def _window(counted: Iterable[Counted], values: Sequence[Value]) -> _Window:
    """That of the row's convolution or pooling; nothing where it has several that differ."""
    found: set[_Window] = set()
    for item in counted:
        name, given = short_name(item.op), item.op.attributes
        weight = item.op.tensors.get("weight")
        if isinstance(weight, int) and "conv" in name and "stride" in given:
            kernel, groups = values[weight].shape[2:], given.get("groups", 1)
        elif "pool" in name and "kernel_size" in given:
            kernel, groups = each(given["kernel_size"], int(name.partition("pool")[2][0])), None
        else:
            continue
        rank = len(kernel)
        stride, padding = each(given["stride"] or kernel, rank), each(given["padding"], rank)
        found.add(_Window(kernel, stride, padding, each(given.get("dilation") or 1, rank), groups))
    return found.pop() if len(found) == 1 else _Window()


def totals(graph: Graph, layers: Sequence[LayerRow], saved: Saved | None, weights: tuple[int, int]) -> Totals:
    """Sums over the rows, and what only the whole has.

    Args:
        weights: (parameters, bytes of parameters and buffers) of the network, used or not.
    """
    peak = max(layers, key=lambda row: row.peak_bytes, default=None)
    backward = [row.backward_macs for row in layers if row.backward_macs is not None]
    return Totals(
        params=weights[0],
        unused_params=weights[0] - sum(row.params for row in layers),
        macs=sum(row.macs for row in layers),
        backward_macs=sum(backward) if backward else None,
        element_ops=sum(row.element_ops for row in layers),
        moved_bytes=sum(row.moved_bytes for row in layers),
        weight_bytes=weights[1],
        activation_bytes=max([input_bytes(graph), *live_bytes(graph)]),
        peak_layer="" if peak is None else peak.name,
        training_bytes=None if saved is None else sum(saved.values()),
    )
