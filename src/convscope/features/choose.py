"""Which layers and channels an atlas shows when nobody says: stage outputs, convolutions between them, the logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from convscope.errors import RequestError
from convscope.graph import Call, Graph, layout, resolve

Role = Literal["stage", "convolution", "logits", "chosen"]

_STAGES, _CONVOLUTIONS = 9, 4  # at most, in the default atlas
_CHANNELS, _LOGITS = 8, 16  # units a layer
_CONVOLUTION = "aten.convolution"
_SOFTMAX = {"aten._softmax", "aten._log_softmax", "aten.softmax", "aten.log_softmax"}


@dataclass(frozen=True)
class Chosen:
    """A layer to show: its address, why, and which channels."""

    layer: str
    role: Role
    channels: tuple[int, ...]


def choose(
    graph: Graph, layers: str | Sequence[str] = "auto", channels: str | int | Sequence[int] | None = None
) -> tuple[list[Chosen], list[dict[str, str]]]:
    """The layers and channels of an atlas, in the order they ran, and what was left out with the reason.

    Args:
        graph: of the network.
        layers: "auto", "all" (every convolution), or names and globs.
        channels: None (8 spread over each layer, 16 of the logits; all for "all"), "all", a number to spread, or which.

    Raises:
        UnknownLayer: a name or glob matches nothing.
        RequestError: nothing is left to show, or a channel does not exist.
    """
    skipped: list[dict[str, str]] = []
    if layers == "auto":
        named = _automatic(graph)
    elif layers == "all":
        named = {call.address: "convolution" for call in convolutions(graph)}
        channels = "all" if channels is None else channels
    else:
        last = logits(graph)
        named = {name: "logits" if name == last else "chosen" for name in resolve(graph, layers)}
    _check(channels)
    chosen = []
    for name, role in sorted(named.items(), key=lambda item: graph.call(item[0]).order):
        if not graph.call(name).outputs:
            skipped.append({"layer": name, "reason": "it returns no tensor"})
            continue
        found = layout(graph, name)
        if found.channel_axis is None:
            reason = f"its output of shape {list(found.shape)} has no axis of channels"
            skipped.append({"layer": name, "reason": reason})
            continue
        inside = _spread(found.channels, channels, role)
        if isinstance(channels, Sequence) and not isinstance(channels, str):
            outside = [c for c in dict.fromkeys(channels) if c not in inside]
            if outside:
                reason = f"it has {found.channels} channels, 0 to {found.channels - 1}: none of {outside}"
                skipped.append({"layer": name, "reason": reason})
        if inside:
            chosen.append(Chosen(name, role, inside))
    if not chosen:
        reasons = (
            "; ".join(f"{item['layer']}: {item['reason']}" for item in skipped) or "it has no convolution"
        )
        raise RequestError(f"layers={layers!r} leaves nothing to show ({reasons}); name layers with channels")
    return chosen, skipped


def _check(channels: str | int | Sequence[int] | None) -> None:
    if channels is None or channels == "all":
        return
    if isinstance(channels, bool | str) or not isinstance(channels, int | Sequence):
        raise RequestError(f"channels={channels!r} must be None, 'all', a number, or a list of channels")
    if isinstance(channels, int):
        if channels < 1:
            raise RequestError(f"channels={channels} must be at least 1")
        return
    wrong = [c for c in channels if isinstance(c, bool) or not isinstance(c, int) or c < 0]
    if wrong or not channels:
        raise RequestError(f"channels={list(channels)!r} must hold at least one channel, numbered from 0")


def _spread(count: int, asked: str | int | Sequence[int] | None, role: Role) -> tuple[int, ...]:
    """Which of `count` channels are asked for."""
    if asked == "all":
        return tuple(range(count))
    if asked is None or isinstance(asked, int):
        number = asked if asked is not None else _LOGITS if role == "logits" else _CHANNELS
        number = min(number, count)
        return tuple(k * count // number for k in range(number))
    return tuple(dict.fromkeys(int(c) for c in asked if int(c) < count))


def logits(graph: Graph) -> str | None:
    """The layer that makes the network's output, before a softmax, where that is a vector of scores."""
    wanted = scores(graph)[-1]
    for call in graph.calls:
        if call.name and set(call.outputs) & wanted:
            return call.address if layout(graph, call.address).kind == "vector" else None
    return None


def scores(graph: Graph) -> list[set[int]]:
    """Value numbers of the network's output and, where a softmax makes it, of what goes into that."""
    outputs = set(graph.calls[-1].outputs) if graph.calls else set()
    before = {op.inputs[0] for op in graph.ops if op.name in _SOFTMAX and set(op.outputs) & outputs}
    return [outputs, before] if before else [outputs]


def convolutions(graph: Graph) -> list[Call]:
    """Calls of leaf modules that ran a convolution, in order."""
    ran = {op.call for op in graph.ops if op.name == _CONVOLUTION and not op.attributes.get("transposed")}
    return [call for call in graph.calls if call.is_leaf and call.order in ran]


def trunk(graph: Graph) -> list[Call]:
    """The blocks the network is made of, in order: what is left when containers are opened.

    A container is a plain sequence, or a module in which more than two fifths of all operations run.
    """
    inside = _operations_inside(graph)
    total = max(len(graph.ops), 1)
    children: dict[int | None, list[Call]] = {}
    for call in graph.calls:
        children.setdefault(call.parent, []).append(call)

    def blocks(call: Call) -> list[Call]:
        below = children.get(call.order, [])
        is_container = call.kind in ("Sequential", "ModuleList") or inside[call.order] > 0.4 * total
        if below and is_container:
            return [block for child in below for block in blocks(child)]
        return [call]

    root = graph.calls[-1]
    found = [block for child in children.get(root.order, []) for block in blocks(child)]
    only_moves = _without_features(graph)
    return [block for block in found if block.order not in only_moves and _is_spatial(graph, block)]


def _without_features(graph: Graph) -> set[int]:
    """Leaf calls that make no new feature: pooling, dropout, identity."""
    ran: dict[int, set[str]] = {call.order: set() for call in graph.calls if call.is_leaf}
    for op in graph.ops:
        if op.call in ran:
            ran[op.call].add(op.name)
    return {order for order, names in ran.items() if all("pool" in name for name in names)}


def _operations_inside(graph: Graph) -> dict[int, int]:
    counts = {call.order: 0 for call in graph.calls}
    for op in graph.ops:
        if op.call is not None:
            counts[op.call] += 1
    for call in graph.calls:  # children complete before their parents
        if call.parent is not None:
            counts[call.parent] += counts[call.order]
    return counts


def _is_spatial(graph: Graph, call: Call) -> bool:
    if not call.outputs or not call.name:
        return False
    found = layout(graph, call.address)
    return (
        found.channel_axis is not None and len(found.grid) > 0 and max(found.grid) > 1 and found.channels > 1
    )


def _automatic(graph: Graph) -> dict[str, Role]:
    named: dict[str, Role] = {}
    blocks = trunk(graph)
    runs = [_last(run) for run in _runs(graph, blocks)]
    if len(runs) > _STAGES:
        runs = _evenly(runs, _STAGES)
    if len(runs) < _STAGES:  # a transformer has one run: take blocks in between as well
        plain = {call.order for call in convolutions(graph)}
        rest = [block for block in blocks if block not in runs and block.order not in plain]
        rest = [
            block for block in rest if not block.is_leaf
        ] or rest  # a norm between blocks shows little new
        runs += _evenly(rest, min(len(rest), _STAGES - len(runs)))
    for call in runs:
        named[call.address] = "stage"
    taken = {value for call in runs for value in call.outputs}
    every = [
        call for call in convolutions(graph) if _is_spatial(graph, call) and not taken & set(call.outputs)
    ]
    for call in _evenly(every, min(len(every), _CONVOLUTIONS)):
        named[call.address] = "convolution"
    last = logits(graph)
    if last is not None:
        named[last] = "logits"
    return named


def _runs(graph: Graph, blocks: list[Call]) -> list[list[Call]]:
    """The blocks, cut where the resolution or the width changes."""
    runs: list[list[Call]] = []
    shape: tuple[tuple[int, ...], int] | None = None
    for block in blocks:
        found = layout(graph, block.address)
        if (found.grid, found.channels) != shape:
            runs.append([])
        shape = (found.grid, found.channels)
        runs[-1].append(block)
    return runs


def _last(run: list[Call]) -> Call:
    """The last block of a run; of blocks and single layers (a norm before the next stage) the last block."""
    return ([block for block in run if not block.is_leaf] or run)[-1]


def _evenly(calls: list[Call], count: int) -> list[Call]:
    """`count` of them, the first and the last among them, evenly spread."""
    if count <= 1:
        return calls[-1:] if count == 1 else []
    return [calls[round(k * (len(calls) - 1) / (count - 1))] for k in range(count)]
