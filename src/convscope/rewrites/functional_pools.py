"""Pools that a forward calls as functions become modules, so that a rule can exchange them: `F.max_pool2d(x, 2)` in the
forward of `stem` becomes a layer `stem.pool`.

Only the module whose forward does it is traced by torch.fx, every child as a whole, and only if what comes out is equal
bit by bit is it put in place. A module none of whose pools was exchanged gets its own forward back.
"""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from convscope import nn as layers
from convscope.graph.record import flatten
from convscope.rewrites.base import Refused
from convscope.rewrites.calibrate import watched
from convscope.rewrites.unflatten import Shallow
from convscope.rewrites.work import Work

_WINDOWS = ("max_pool2d", "max_pool2d_with_indices", "avg_pool2d")
_ADAPTIVE = ("adaptive_avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d")
_GLOBAL = ("mean", "amax")
_LAYERS = (
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
)  # and what others made of them


class FunctionalPools:
    """The functional pools of a network as modules, for as long as a rule is at work.

    Args:
        work: the copy that is edited; what can be traced is put in place at once.
        whole: whether those over the whole map too.

    Attributes:
        put: dotted name of each traced module -> (the module as it was, the names of its new pools).
        refused: dotted name of each module that pools by a function and cannot be traced -> the reason.
    """

    def __init__(self, work: Work, whole: bool) -> None:
        self.work = work
        self.put: dict[str, tuple[nn.Module, tuple[str, ...]]] = {}
        self.refused: dict[str, str] = {}
        found = _callers(work, whole)
        given = _given(work, found)
        for layer in found:
            part = work.module.get_submodule(layer)
            try:
                made, names = with_pools(part, given.get(layer, []), whole)
            except Refused as reason:
                self.refused[layer] = f"it pools by a function in its forward, which {reason}"
                continue
            made.train(part.training)
            work.put(layer, made)
            prefix = f"{layer}." if layer else ""
            self.put[layer] = part, tuple(prefix + name for name in names)
        if self.put:
            work.structure_changed()

    def settle(self, first: int) -> None:
        """Gives every module its own forward back, unless an edit from number `first` on changed one of its pools.

        What was refused is then told of the module itself.
        """
        edits = self.work.edits
        changed = {edit.layer for edit in edits[first:] if not edit.refused}
        back: dict[str, str] = {}  # names of pools that go -> the module they were in
        for layer, (part, names) in self.put.items():
            if changed.intersection(names):
                continue
            back |= dict.fromkeys(names, layer)
            traced = self.work.module.get_submodule(layer)
            for name in part._modules:
                part._modules[name] = traced._modules[name]  # other edits may have changed them
            self.work.put(layer, part)
        for place in range(first, len(edits)):
            edit = edits[place]
            if edit.layer in back:
                edits[place] = dataclasses.replace(
                    edit, layer=back[edit.layer], reason=f"{edit.before} in its forward: {edit.reason}"
                )
        if back:
            self.work.structure_changed()


def _callers(work: Work, whole: bool) -> list[str]:
    """Modules that pool by a function of torch's, other than pooling layers that torch or convscope define."""
    graph = work.graph
    modules = dict(work.module.named_modules())
    calls = {call.order: call for call in graph.calls}
    found: dict[str, None] = {}
    for op in graph.ops:
        if op.call is None or not op.inputs or not op.outputs:
            continue
        kind = op.name.rpartition(".")[2]
        before, after = graph.values[op.inputs[0]].shape, graph.values[op.outputs[0]].shape
        sums = kind in _GLOBAL and len(before) == 4 and after in (before[:2], (*before[:2], 1, 1))
        if kind in _WINDOWS or (whole and (kind in _ADAPTIVE or (sums and before[2:] != (1, 1)))):
            layer = calls[op.call].name
            part = modules.get(layer)
            home = "torch.nn." if part is None else type(part).__module__
            if not home.startswith(("torch.nn.", "convscope.nn")) and not isinstance(part, _LAYERS):
                found.setdefault(layer)
    return list(found)


def _given(work: Work, names: list[str]) -> dict[str, list[tuple[Tensor, ...]]]:
    """What each of these modules is given in a pass on random input."""
    kept: dict[str, list[tuple[Tensor, ...]]] = {name: [] for name in names}

    def keep(name: str) -> Callable[..., None]:
        return lambda *tensors: kept[name].append(tuple(each.clone() for each in tensors))

    x = work.calibration.network_inputs(work.input)[0]
    if "" in kept:
        kept[""].append((x,))
    watchers = {name: keep(name) for name in names if name}
    with watched(work.module, watchers), torch.no_grad():
        work.module(x)
    return kept


def with_pools(
    module: nn.Module, given: list[tuple[Tensor, ...]], whole: bool = True
) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """The module traced, each pool it calls as a function a child of its own.

    Args:
        module: whose forward pools.
        given: what it is given, call by call.
        whole: whether pools over the whole map too.

    Returns:
        The traced module, and the names of the new children.

    Raises:
        Refused: it cannot be traced, or gives something else then; the reason follows on "which".
    """
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(module, name, None) for name in hooks):
        raise Refused("carries hooks that a trace would lose")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated calls inside torch.fx
            made = fx.GraphModule(module, Shallow().trace(module), type(module).__name__)
    except Exception as error:  # control flow on values, and whatever else a forward does
        raise Refused(f"cannot be traced ({' '.join(str(error).split())[:160]})") from None
    for name, child in module._modules.items():  # also what this pass does not call; lists stay lists
        made._modules[name] = child
    names = []
    for node in list(made.graph.nodes):
        pool = _pool_of(node)
        if pool is not None and (whole or isinstance(pool, (nn.MaxPool2d, nn.AvgPool2d))):
            names.append(_exchange(made, node, pool))
    made.graph.eliminate_dead_code()
    made.recompile()
    if not names or not given:
        raise Refused("has no call of a pool, of a map as it comes, with plain numbers")
    for arguments in given:
        with torch.no_grad():
            try:
                pair = [list(flatten(each(*[t.clone() for t in arguments]))) for each in (module, made)]
            except Exception as error:  # arguments that are no tensors
                raise Refused(f"takes more than tensors ({' '.join(str(error).split())[:120]})") from None
        if len(pair[0]) != len(pair[1]) or not all(map(torch.equal, *pair)):
            raise Refused("does something else once it is traced")
    return made, tuple(names)


def _exchange(made: fx.GraphModule, node: fx.Node, pool: nn.Module) -> str:
    name, count = "pool", 1
    while name in made._modules or hasattr(made, name):
        count += 1
        name = f"pool{count}"
    made.add_module(name, pool)
    source = node.args[0] if node.args else node.kwargs["input"]
    with made.graph.inserting_before(node):
        put = made.graph.call_module(name, (source,))
    node.replace_all_uses_with(put)
    made.graph.erase_node(node)
    return name


# ---------------------------------------------------------------- a node of a trace as a module


def _max(input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
         ceil_mode: Any = False, return_indices: Any = False) -> nn.Module:  # fmt: skip
    return nn.MaxPool2d(kernel_size, stride or None, padding, dilation, return_indices, ceil_mode)


def _average(input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: Any = False,
             count_include_pad: Any = True, divisor_override: Any = None) -> nn.Module:  # fmt: skip
    return nn.AvgPool2d(kernel_size, stride or None, padding, ceil_mode, count_include_pad, divisor_override)


def _adaptive_average(input: Any, output_size: Any) -> nn.Module:
    return nn.AdaptiveAvgPool2d(output_size)


def _adaptive_max(input: Any, output_size: Any, return_indices: Any = False) -> nn.Module:
    return nn.AdaptiveMaxPool2d(output_size, return_indices)


def _mean(input: Any, dim: Any, keepdim: Any = False) -> nn.Module | None:
    return layers.GlobalAvgPool2d(keepdim) if _over_map(dim) else None


def _amax(input: Any, dim: Any, keepdim: Any = False) -> nn.Module | None:
    return layers.GlobalMaxPool2d(keepdim) if _over_map(dim) else None


def _over_map(dim: Any) -> bool:
    dims = tuple(dim) if isinstance(dim, (tuple, list)) else (dim,)
    return all(isinstance(n, int) for n in dims) and sorted(n % 4 for n in dims) == [2, 3]


_MADE: dict[Any, Callable[..., nn.Module | None]] = {
    functional.max_pool2d: _max, torch.max_pool2d: _max,
    functional.avg_pool2d: _average, torch._C._nn.avg_pool2d: _average,
    functional.adaptive_avg_pool2d: _adaptive_average, functional.adaptive_max_pool2d: _adaptive_max,
    torch.mean: _mean, torch.amax: _amax, "mean": _mean, "amax": _amax,
}  # fmt: skip


def _pool_of(node: fx.Node) -> nn.Module | None:
    """The layer that does what a node does, or None where it is no pool, or one whose window is worked out in passing."""
    make = _MADE.get(node.target) if node.op in ("call_function", "call_method") else None
    if make is None:
        return None
    try:
        given = inspect.signature(make).bind(*node.args, **node.kwargs).arguments
    except TypeError:  # an argument that no layer has
        return None
    source = given.pop("input")
    if isinstance(source, fx.Node) and getattr(source.target, "__name__", "") == "pad":
        return None  # by minus infinity perhaps, which suits no other pool
    plain = all(
        isinstance(leaf, (int, bool, type(None))) for value in given.values() for leaf in _leaves(value)
    )
    return make(source, **given) if plain and isinstance(source, fx.Node) else None


def _leaves(value: Any) -> list[Any]:
    return [leaf for each in value for leaf in _leaves(each)] if isinstance(value, (tuple, list)) else [value]
