"""Takes a flattening, or a functional pool, out of a module's own forward: the one thing that needs torch.fx.

Only the module whose forward does it is traced, every child as a whole: names, weights and the children's own control
flow stay. Which nodes they are is told by running the trace on what the module is really given.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, fx, nn

from convscope.rewrites.base import Refused
from convscope.rewrites.head import Scores, Step, pool_for, pool_kind


class Shallow(fx.Tracer):
    """Children are leaves, all of them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def unflatten(
    module: nn.Module, arguments: tuple[Any, ...], steps: list[Step], ends: bool
) -> tuple[fx.GraphModule, str]:
    """The module without the flattening and pooling of its own forward.

    Args:
        module: whose forward does them.
        arguments: what it is given.
        steps: the flattenings and pools of the head that it does itself, in order.
        ends: whether the last of them gives the network's scores: a map of one position then still comes out flat.

    Returns:
        The traced module, and what was taken out, for the record.

    Raises:
        Refused: it cannot be traced, or the steps cannot be told in the trace.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated calls inside torch.fx
            graph = Shallow().trace(module)
            made = fx.GraphModule(module, graph)
    except Exception as error:  # control flow on values, and whatever else a forward does
        reason = " ".join(str(error).split())[:160]
        raise Refused(
            f"the forward of {type(module).__name__} flattens by itself and cannot be traced ({reason})"
        ) from None
    for name, child in module.named_children():  # what this pass does not call: auxiliary heads
        if name not in made._modules:
            made.add_module(name, child)
    watch = _Watch(made)
    with torch.no_grad():
        watch.go(arguments)
    found = [each for each in watch.found if any(_same(each, step) for step in steps)]
    if len(found) != len(steps):
        raise Refused(
            f"the forward of {type(module).__name__} has {len(found)} operations that may be {steps[0].name}"
        )
    told = []
    for position, (node, before, after, kind) in enumerate(found):
        put: nn.Module | None = None
        if kind != "flatten":
            put = pool_for(kind, before, after)
        last = ends and position == len(found) - 1
        source = node.args[0] if node.args else node.kwargs["input"]
        assert isinstance(source, fx.Node)
        if put is not None and not isinstance(put, nn.Identity):
            source = _insert(made, node, source, put, "pool")
        if last:
            source = _insert(made, node, source, Scores(), "scores")
        node.replace_all_uses_with(source)
        made.graph.erase_node(node)
        told.append(f"{kind} {list(before[1:])}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.graph.eliminate_dead_code()
        made.recompile()
    return made, ", ".join(told)


def _insert(made: fx.GraphModule, before: fx.Node, source: fx.Node, part: nn.Module, name: str) -> fx.Node:
    while name in made._modules or hasattr(made, name):
        name += "_"
    made.add_module(name, part)
    with made.graph.inserting_before(before):
        return made.graph.call_module(name, (source,))


Found = tuple[fx.Node, tuple[int, ...], tuple[int, ...], str]


def _same(found: Found, step: Step) -> bool:
    return found[1] == step.before and (found[3] == "flatten") == (step.kind == "flatten")


class _Watch(fx.Interpreter):
    """Remembers the nodes that flatten or pool a map."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.nodes = module.graph.nodes
        self.found: list[Found] = []

    def go(self, arguments: tuple[Any, ...]) -> None:
        """Runs it; torch's own `run` starts a thread for a progress bar."""
        self.args_iter = iter(arguments)
        for node in self.nodes:
            self.env[node] = self.run_node(node)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op in ("call_function", "call_method") and isinstance(result, Tensor):
            source = n.args[0] if n.args else n.kwargs.get("input")
            x = self.env.get(source) if isinstance(source, fx.Node) else None
            if isinstance(x, Tensor) and x.ndim == 4 and (kind := _behaviour(x, result)):
                self.found.append((n, tuple(x.shape), tuple(result.shape), kind))
        return result


def _behaviour(x: Tensor, y: Tensor) -> str | None:
    """What an operation did, told by its values: "flatten", "avg", "max" or None."""
    if y.ndim == 2 and y.shape == (x.shape[0], x[0].numel()) and torch.equal(x.flatten(1), y):
        return "flatten"
    if y.ndim in (2, 4) and y.shape[:2] == x.shape[:2] and y is not x and y.data_ptr() != x.data_ptr():
        return pool_kind(x, y)
    return None
