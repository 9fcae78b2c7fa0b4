"""A pool that no longer steps: it looks at every position, and all later layers read every s-th of them.

The later layers are dilated by the pool's stride (see `convscope.rewrites.dense`), so that every s-th position of every
later map is what it was, and between them lie the maps of the image moved by less than a step. What sums up a whole map,
such as a global pool, sums up all of them from then on.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from convscope.graph import Call, Graph, Op
from convscope.graph.record import flatten
from convscope.graph.rules import follow
from convscope.measures.receptive_field import ReceptiveField, field_of
from convscope.rewrites import verify
from convscope.rewrites.base import Edit, Exactness, Refused, Rule, VerificationError
from convscope.rewrites.calibrate import watched
from convscope.rewrites.dense import HANDLED, PLAIN, Pair, Spread, check_local, layer_differs, owner
from convscope.rewrites.work import Site, Work

_LINEAR = ("aten.addmm", "aten.mm", "aten.linear")
_SUMS = ("mean", "amax", "sum", "adaptive_avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d")


def densify(rule: Rule, work: Work, site: Site) -> None:
    """Takes the stride of one pool away, dilates what comes after it, and puts the edits on record.

    Raises:
        Refused: the pool has no stride, or something after it cannot be dilated.
        VerificationError: the positions that stay are not what they were.
    """
    pool = site.module
    check_plain(pool)
    if type(pool) not in PLAIN:
        raise Refused("it pools the whole map, and has no stride to take away")
    step = _pair(pool.stride if pool.stride is not None else pool.kernel_size)
    if step == (1, 1):
        raise Refused("it has no stride to take away")
    plan, last, mixed = _plan(work, site.layer, step)
    before = verify.copied(work.module)
    rows = {one.layer: work.rows[one.layer].macs for one in plan if one.layer in work.rows}
    pairs = [(one, one.made()) for one in plan if not one.unchanged]
    for one, made in pairs:
        error = layer_differs(one, made) if work.settled is None else 0.0
        if not error <= verify.ROUNDING:
            raise VerificationError(
                f"{rule} on layer {one.layer!r} gave a wrong replacement: off by {error:.1e}."
            )
    for one, made in pairs:
        work.put(one.layer, made)
    work.structure_changed()
    try:
        edits = _edits(rule, work, before, pairs, rows, step, last, mixed)
    except Refused:
        work.module = before
        work.structure_changed()
        raise
    for edit in edits:
        work.note(edit)


def check_plain(module: nn.Module) -> None:
    """Only what torch and convscope define: a pool of somebody else's may pad by itself, say."""
    kind = type(module)
    if not kind.__module__.startswith(("torch.nn.", "convscope.")):
        raise Refused(f"it is a {kind.__name__}, whose forward pass may do more than pool")


def _edits(
    rule: Rule,
    work: Work,
    before: nn.Module,
    pairs: list[tuple[Spread, nn.Module]],
    rows: dict[str, int],
    step: Pair,
    last: str,
    mixed: str,
) -> list[Edit]:
    """The record: the pool first, then what was dilated."""
    pool, *others = pairs
    every = f"one position in {step[0]}x{step[1]}"
    notes = [f"{len(others)} layers after it are dilated by {step[0]}x{step[1]}"]
    if work.settled is not None:
        found, exact, grid = verify.Found(0.0, 0.0, 0), True, (1, 1)
    else:
        found, grid = _outputs(work, before, step)
        exact = grid != (1, 1)
        if mixed:
            notes.append(f"{mixed} sums up all positions of the finer map, also for the layers between")
            exact = False
        elif last:
            worst = _grid_differs(work, before, last, step)
            if not worst <= verify.DEEP:
                raise VerificationError(
                    f"{rule} changed {every} of {last!r} by {worst:.1e}; this is an error of the rule, and nothing was changed."
                )
            notes.append(f"{every} of {last!r} is what it was")
    kind: Exactness = "exact" if exact else "approximate"
    edits = [
        Edit(
            pool[0].layer, str(rule), _brief(pool[0].module), _brief(pool[1]), kind, found.error, found.rms_error,
            params=(0, 0), notes=tuple(notes), grid=grid if exact else (1, 1),
        )
    ]  # fmt: skip
    for one, made in others:
        count = [sum(p.numel() for p in each.parameters()) for each in (one.module, made)]
        macs = None
        if one.layer in rows and work.settled is None and one.layer in work.rows:
            macs = rows[one.layer], work.rows[one.layer].macs
        edits.append(
            Edit(
                one.layer, str(rule), _brief(one.module), _brief(made), "exact", 0.0, 0.0,
                params=(count[0], count[1]), macs=macs, notes=(f"reads {every} of a finer map",),
            )
        )  # fmt: skip
    return edits


# ---------------------------------------------------------------- what has to be dilated


def _plan(work: Work, pool: str, step: Pair) -> tuple[list[Spread], str, str]:
    """The pool and the layers after it, the last layer whose map is finer, and what sums up a finer map on the way to it.

    Raises:
        Refused: something after the pool does not leave every position alone, or meets a map that was not refined.
    """
    graph = work.graph
    modules = dict(work.module.named_modules())
    fields = _fields(graph)
    leaves = {call.order: call for call in graph.calls if isinstance(modules.get(call.name), HANDLED)}
    plan: dict[str, Spread] = {}
    finer: set[int] = set()  # values that have the positions between
    vague: set[int] = set()  # what came of summing them up
    mixed, summed = "", ""
    for op in graph.ops:
        leaf = owner(op, graph, leaves)
        if leaf is not None and leaf.name == pool:
            if finer.intersection(leaf.inputs):
                raise Refused("it is called on its own output")
            plan[pool] = Spread(pool, modules[pool], (1, 1), (1, 1), leaf.in_shapes[0])
            finer.update(leaf.outputs, op.outputs)
        elif leaf is not None and finer.intersection(leaf.inputs):
            _add(plan, leaf, modules, step)
            finer.update(leaf.outputs, op.outputs)
        elif leaf is None and finer.intersection(op.inputs):
            if _sums_up(op, graph):
                vague.update(op.outputs)
                summed = summed or _told(op)
                continue
            _check(op, graph, finer, fields)
            finer.update(op.outputs)
            if vague.intersection(op.inputs):
                mixed = mixed or summed
        elif vague.intersection(op.inputs if leaf is None else leaf.inputs):
            vague.update(op.outputs)
    if pool not in plan:
        raise Refused("it does not run")
    ends = [
        call.name
        for call in graph.calls
        if call.is_leaf and len(work.calls(call.name)) == 1 and finer.intersection(call.outputs)
    ]
    return list(plan.values()), ends[-1] if ends else "", mixed


def _add(plan: dict[str, Spread], leaf: Call, modules: dict[str, nn.Module], step: Pair) -> None:
    part: Any = modules[leaf.name]
    if not isinstance(part, nn.Conv2d) and type(part) not in PLAIN:
        raise Refused(f"layer {leaf.name!r} after it is a {type(part).__name__}, which cannot be dilated")
    apart = step
    if not isinstance(part.padding, str) and not any(_pair(part.padding)):  # one tap has no distance
        kernel = _pair(part.kernel_size)
        apart = (apart[0] if kernel[0] > 1 else 1, apart[1] if kernel[1] > 1 else 1)
    one = Spread(leaf.name, part, apart, _pair(part.stride), leaf.in_shapes[0])
    if plan.setdefault(leaf.name, one) != one:
        raise Refused(f"layer {leaf.name!r} after it is called on maps of several sizes")


def _sums_up(op: Op, graph: Graph) -> bool:
    """Whether an operation makes something of a fixed size of a map of any."""
    kind = op.name.rpartition(".")[2]
    before, after = graph.values[op.inputs[0]].shape, graph.values[op.outputs[0]].shape
    if kind.endswith(("pool2d",)):
        return kind in _SUMS
    return kind in _SUMS and len(before) == 4 and after in (before[:2], (*before[:2], 1, 1))


def _check(op: Op, graph: Graph, finer: set[int], fields: dict[int, ReceptiveField]) -> None:
    """An operation outside of the layers that are dilated must treat every position alike, and only finer maps."""
    if not any(value in fields for value in op.outputs):
        raise Refused(
            f"{_told(op)} needs a map of this size"
            + ("; make the head convolutional first (Convolutionalize)" if op.name in _LINEAR else "")
        )
    check_local(op, fields)
    shape = graph.values[next(value for value in op.inputs if value in finer)].shape
    for value in op.inputs:
        if value in fields and value not in finer and graph.values[value].shape[2:] == shape[2:] != ():
            raise Refused(f"{_told(op)} joins its map with one that keeps its positions")


def _fields(graph: Graph) -> dict[int, ReceptiveField]:
    """Fields of the values that are maps, along the paths that stay local: gates from sums over the map set aside."""
    found = {}
    for k, trace in enumerate(follow(graph)):
        if trace.depends:
            field = field_of(trace)
            local = field.local if any(field.whole) else field
            if local is not None:
                found[k] = local
    return found


# ---------------------------------------------------------------- the proof


def _outputs(work: Work, before: nn.Module, step: Pair) -> tuple[verify.Found, Pair]:
    """The difference of the network's outputs, and the step between the old ones where the new are a finer map.

    Raises:
        Refused: the network takes no finer map.
    """
    inputs = [(x,) for x in work.calibration.network_inputs(work.input)]
    try:
        with torch.no_grad():
            y, z = (list(flatten(each(*inputs[0]))) for each in (before, work.module))
    except Exception as error:  # the network's own code: anything may come
        reason = " ".join(str(error).split())[:160]
        raise Refused(f"the network takes no finer map after it ({reason})") from None
    grid = (1, 1)
    if [t.shape for t in y] != [t.shape for t in z]:
        if any(t.ndim != 4 or t.shape[2:] == u.shape[2:] for t, u in zip(y, z, strict=True)):
            shapes = ", ".join(str(list(t.shape)) for t in z)
            raise Refused(f"the network would give {shapes} without its stride")
        grid = step
    return verify.compare(before, work.module, inputs, grid=grid), grid


def _grid_differs(work: Work, before: nn.Module, layer: str, step: Pair) -> float:
    """How far the positions of a map that stay are from what they were, relative to its maximum."""
    kept: list[Tensor] = []
    x = work.calibration.network_inputs(work.input)[0]
    for module in (before, work.module):
        keep = {layer: lambda *tensors: kept.append(tensors[0].clone())}
        with watched(module, keep, outputs=True), torch.no_grad():
            module(x)
    y, z = kept[0], kept[1][..., :: step[0], :: step[1]]
    if y.ndim != 4 or y.shape != z.shape:
        return 0.0 if y.ndim != 4 else math.inf
    return float((y - z).abs().max() / y.abs().max().clamp_min(1e-30))


def _told(op: Op) -> str:
    return f"{op.name.rpartition('.')[2]} in {op.module or 'forward'!r}"


def _brief(module: nn.Module) -> str:
    return " ".join(str(module).split())


def _pair(value: Any) -> Pair:
    return (int(value[0]), int(value[1])) if isinstance(value, (tuple, list)) else (int(value), int(value))
