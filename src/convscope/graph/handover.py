"""Whether a layer hands what it computes to one other layer and to nobody else: what the recorded pass proves.

Two layers may be merged, or one may take over what the other does, only if nobody can tell from outside: the value
between them is read once, is no output of the network, no hook sees it, both layers run once, and what they compute
with is theirs alone.
"""

from __future__ import annotations

from collections import Counter
from functools import cached_property

from torch import nn

from convscope.graph.structure import Call, Graph, Op

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def has_hooks(part: nn.Module) -> bool:
    """Whether someone listens to the module, so that it must stay what it is."""
    return any(getattr(part, name, None) for name in HOOKS)


class Links:
    """What made each value of a pass, and who read it.

    Args:
        module: the network that was recorded, or a copy of it.
        graph: the pass.
    """

    def __init__(self, module: nn.Module, graph: Graph) -> None:
        self.module, self.graph = module, graph
        self.parts = dict(module.named_modules())  # get_submodule knows no name with a dot in it
        self.makers: dict[int, Op] = {value: op for op in graph.ops for value in op.outputs}
        self.readers: dict[int, list[Op]] = {}
        for op in graph.ops:
            for value in op.inputs:
                self.readers.setdefault(value, []).append(op)
        self.runs = Counter(call.name for call in graph.calls)

    def call(self, layer: str) -> Call:
        """The only call of a layer that runs once."""
        return next(call for call in self.graph.calls if call.name == layer)

    def refuses(self, first: str, second: str, value: int) -> str | None:
        """Why two layers cannot be treated as one, a clause, or None where they can.

        Args:
            first: the layer that makes the value.
            second: the layer that reads it.
            value: its number.
        """
        return (
            self._run_once(first, second)
            or self._between(first, second, value)
            or self._owns(first)
            or self._owns(second)
        )

    def _run_once(self, *layers: str) -> str | None:
        for layer in layers:
            if self.runs[layer] != 1:
                return f"{layer!r} runs {self.runs[layer]} times in a pass"
            if has_hooks(self.parts[layer]):
                return f"{layer!r} carries hooks, which would see something else; remove them first"
        return None

    def _between(self, first: str, second: str, value: int) -> str | None:
        for op in self.readers.get(value, ()):
            if op.module != second:
                where = f" in {op.module!r}" if op.module else ""
                told = op.name.rpartition(".")[2].strip("_")
                return f"what {first!r} gives goes to {told!r}{where} too, not to {second!r} alone"
        if value in self.graph.calls[-1].outputs:
            return f"what {first!r} gives is an output of the network too"
        for call in self.graph.calls:
            if value in (*call.inputs, *call.outputs) and has_hooks(self.parts[call.name]):
                return f"{call.name or '(root)'!r} carries hooks that see what {first!r} gives; remove them first"
        return None

    def _owns(self, layer: str) -> str | None:
        """That nobody else reads or holds what a layer computes with."""
        part = self.parts[layer]
        if getattr(part, "parametrizations", None):
            return f"the weights of {layer!r} are computed by a parametrization"
        for parameter in part._parameters.values():
            other = None if parameter is None else self._holders.get(id(parameter), [layer])
            if other is not None and other != [layer]:
                return f"the weights of {layer!r} are shared with {next(o for o in other if o != layer)!r}"
        for name in (*part._parameters, *part._buffers):
            for value in self._named.get(f"{layer}.{name}", ()):
                if any(op.module != layer for op in self.readers.get(value, ())):
                    return f"{name!r} of {layer!r} is also used outside of it"
        return None

    @cached_property
    def _holders(self) -> dict[int, list[str]]:
        """By a parameter's identity, the modules that hold it."""
        found: dict[int, list[str]] = {}
        for name, part in self.parts.items():
            for parameter in part._parameters.values():
                if parameter is not None:
                    found.setdefault(id(parameter), []).append(name or "(root)")
        return found

    @cached_property
    def _named(self) -> dict[str, list[int]]:
        """By a parameter's or buffer's name, the values that it had."""
        found: dict[str, list[int]] = {}
        for value in self.graph.values:
            if value.name:
                found.setdefault(value.name, []).append(value.index)
        return found
