"""The optional measures of a profile: each a file of its own, imported and run only when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from convscope.errors import ConvscopeError
from convscope.graph import Graph
from convscope.models import Net

Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Asked:
    """What an optional measure is given.

    Attributes:
        net: the Net, or the plain module where it is fed an example.
        arguments: what it is called with.
        example: whether the caller gave them, rather than a specification.
        graph: the recorded pass.
        data: images; None for the measure's own default.
        seed: every random choice follows from it.
        progress: told how far the work is; None for nobody.
    """

    net: Net | nn.Module
    arguments: tuple[Any, ...]
    example: bool
    graph: Graph
    data: Any
    seed: int
    progress: Progress | None

    @property
    def images(self) -> Any:
        """The data, or what the network was fed where it takes no images that could stand in."""
        return self.arguments[0] if self.data is None and self.example else self.data


def _latency(asked: Asked) -> Any:
    from convscope.measures.latency import latency

    return latency(asked.net, example=asked.arguments, graph=asked.graph)


def _memory(asked: Asked) -> Any:
    from convscope.measures.memory import peak_memory

    return peak_memory(asked.net, example=asked.arguments)


def _consistency(asked: Asked) -> Any:
    from convscope.measures.consistency import consistency

    return consistency(asked.net, asked.images, seed=asked.seed, progress=asked.progress)


def _border(asked: Asked) -> Any:
    from convscope.measures.border import border_effect

    example = asked.arguments if asked.example else None
    return border_effect(asked.net, asked.data, input=example, seed=asked.seed, graph=asked.graph)


def _health(asked: Asked) -> Any:
    from convscope.measures.health import health

    return health(asked.net, asked.images, progress=asked.progress)


OPTIONAL: Mapping[str, Callable[[Asked], Any]] = {
    "latency": _latency,
    "memory": _memory,
    "consistency": _consistency,
    "border": _border,
    "health": _health,
}


def take(asked: Asked, wanted: Mapping[str, bool], *, may_fail: bool, notes: list[str]) -> dict[str, Any]:
    """The results of the measures that are wanted, by name; those that fail are noted, where they may.

    Raises:
        ConvscopeError: whatever a measure raises that may not fail.
    """
    found = {}
    for name, run in OPTIONAL.items():
        if not wanted[name]:
            continue
        try:
            found[name] = run(asked)
        except ConvscopeError as error:
            if not may_fail:
                raise
            notes.append(f"{name} is left out: {error}")
    return found
