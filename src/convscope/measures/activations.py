"""Activation memory of a recorded pass: what is alive while each operation runs.

A piece of memory lives from the operation that makes it until Python lets go of the last tensor on it, as the
recorder saw it: views and in-place results share memory, and a tensor that a caller still holds stays alive. The
network's input counts; parameters, buffers and the workspace inside an operation do not.
"""

from __future__ import annotations

from itertools import accumulate

from convscope.graph.structure import Graph

_ACTIVATIONS = ("op", "input")


def live_bytes(graph: Graph) -> list[int]:
    """Bytes of activations that are alive while each operation runs, by its number.

    Example:
        >>> import torch
        >>> from convscope.graph import record
        >>> net = torch.nn.Sequential(torch.nn.Conv1d(1, 2, 1), torch.nn.ReLU(inplace=True), torch.nn.Flatten())
        >>> live_bytes(record(net, example=torch.zeros(1, 1, 10)))  # 40 bytes in, 80 out, nothing new after
        [120, 120, 120]
    """
    change = [0] * (len(graph.ops) + 1)
    for memory in graph.memories:
        if memory.source in _ACTIVATIONS and memory.died > memory.born:
            change[max(memory.born, 0)] += memory.size
            change[memory.died] -= memory.size
    return list(accumulate(change))[: len(graph.ops)]


def made_bytes(graph: Graph) -> list[int]:
    """Bytes of new memory that each operation made, by its number."""
    made = [0] * len(graph.ops)
    for memory in graph.memories:
        if memory.source == "op" and memory.born < len(made):
            made[memory.born] += memory.size
    return made


def input_bytes(graph: Graph) -> int:
    """Bytes of the network's input."""
    return sum(memory.size for memory in graph.memories if memory.source == "input")
