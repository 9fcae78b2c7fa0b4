"""`measure`: the profile of a network, from one recorded pass, and the optional measures beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from convscope.errors import ModelError, RequestError
from convscope.graph import Graph, record
from convscope.measures.optional import Asked, Progress, take
from convscope.measures.profile import Profile
from convscope.measures.rows import rows, totals
from convscope.measures.training import saved_bytes
from convscope.models import InputSpec, Net, as_net, check_initialized


def measure(
    net: Net | nn.Module,
    *,
    input: InputSpec | Tensor | tuple[Any, ...] | str | Sequence[int] | None = None,
    graph: Graph | None = None,
    batch: int | None = None,
    fields: bool = True,
    training: bool = True,
    backward: bool = False,
    latency: bool = False,
    memory: bool = False,
    consistency: bool = False,
    border: bool = False,
    health: bool = False,
    all: bool = False,
    data: Any = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Profile:
    """What every layer of a network costs and sees.

    One forward pass on the example input is recorded, in eval mode and on a copy, and everything is counted from
    the operations that really ran: functional ones, attention, reused modules. What is not counted is listed.
    Weights may be random, or missing: a network on the meta device is measured there.

    Args:
        net: the network.
        input: what to feed a plain module, or instead of the Net's own specification: an InputSpec or a shape
            without batch for images; for anything else the tensor itself, or a tuple of arguments, as they are.
        graph: a recording of the same network, which saves running it again.
        batch: how many images at once; all numbers are for the whole batch. One by default, or two where the
            network fails on one.
        fields: whether to derive receptive fields.
        training: whether to measure what a pass with gradients keeps, which runs the network a second time.
        backward: whether to count the multiply-accumulates of the gradients, as if all parameters were trained.
        latency: whether to time every layer and the whole.
        memory: whether to measure the peak of the memory.
        consistency: whether to measure how predictions hold under shifts, turns, scalings and noise.
        border: whether to measure how far padding reaches, and how strongly.
        health: whether to look for dead channels, and for the spread and rank of the features.
        all: all of these; one that cannot be taken is named in `notes`, where else it is an error.
        data: images for the last three; embedded photographs by default.
        seed: every random choice of the optional measures follows from it.
        progress: called with {"done", "total", "rate", "seconds_left", "layer"} by those that take long.

    Returns:
        The profile: `layers`, `totals`, `uncounted`, and the optional measures under their names.

    Raises:
        BadInput: a plain module without `input`, or an input that makes no sense.
        ModelError: the network is scripted, compiled or quantized, or fails on its example input.
        RequestError: an argument is out of its constraint.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16 * 16, 10))
        >>> p = measure(net, input="3x16x16")
        >>> p.totals.params, p.totals.macs
        (20714, 75776)
        >>> [(row.name, row.kind, row.macs, row.element_ops) for row in p.layers]
        [('0', 'Conv2d', 55296, 0), ('1', 'ReLU', 0, 2048), ('2', 'Flatten', 0, 0), ('3', 'Linear', 20480, 0)]
        >>> p.layers[1].receptive_field.size
        (3, 3)
    """
    subject = _subject(net, input, batch)
    notes: list[str] = []
    if graph is None:
        graph, subject = _record(subject, may_retry=batch is None, notes=notes)
    saved = _saved(subject, notes) if training else None
    layers = rows(graph, saved=saved, backward=backward, fields=fields)
    asked = Asked(
        subject.net or subject.module, subject.arguments, subject.is_example, graph, data, seed, progress
    )
    flags = {
        "latency": latency,
        "memory": memory,
        "consistency": consistency,
        "border": border,
        "health": health,
    }
    wanted = {name: flag or all for name, flag in flags.items()}
    beside = take(asked, wanted, may_fail=all, notes=notes)
    first = graph.values[graph.inputs[0]] if graph.inputs else None
    return Profile(
        name=subject.name,
        source=subject.source,
        inputs=tuple(graph.values[index].shape for index in graph.inputs),
        dtype="" if first is None else str(first.dtype).removeprefix("torch."),
        device=_device(subject.module).type,
        layers=layers,
        totals=totals(graph, layers, saved, _weights(subject.module)),
        uncounted=_merged([row.uncounted for row in layers]),
        notes=tuple(notes),
        graph=graph,
        **beside,
    )


@dataclass(frozen=True)
class _Subject:
    """What is measured: the module, the arguments it is called with, and where they came from."""

    module: nn.Module
    arguments: tuple[Any, ...]
    name: str
    source: str
    net: Net | None  # None where a plain module was given its arguments
    is_example: bool  # whether the caller gave the arguments, rather than a specification


def _subject(net: Net | nn.Module, input: Any, batch: int | None) -> _Subject:
    if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
        raise RequestError(f"batch={batch!r} must be a positive number of images; leave it out for one")
    given = input if isinstance(input, tuple) else (input,)
    if not any(isinstance(item, Tensor) for item in given):
        named = as_net(net, input)
        arguments = (named.input.example(batch or 1, _device(named.module)),)
        return _Subject(named.module, arguments, named.name, named.source, named, False)
    if batch is not None:
        raise RequestError(f"batch={batch} has no meaning beside an example tensor; give one of that batch")
    if isinstance(net, nn.Module):
        check_initialized(net)
        return _Subject(net, given, type(net).__name__, "module", None, True)
    named = as_net(net)
    return _Subject(named.module, given, named.name, named.source, named, True)


def _record(subject: _Subject, *, may_retry: bool, notes: list[str]) -> tuple[Graph, _Subject]:
    """The recorded pass; on two images where the network fails on one."""
    try:
        return record(subject.module, example=subject.arguments), subject
    except ModelError as error:
        if not may_retry or subject.is_example or subject.net is None:
            raise
        pair = (subject.net.input.example(2, _device(subject.module)),)
        try:
            graph = record(subject.module, example=pair)
        except ModelError:
            raise error from None  # the batch was not it
    notes.append("the network fails on a batch of 1, so that all numbers are for a batch of 2")
    return graph, replace(subject, arguments=pair)


def _saved(subject: _Subject, notes: list[str]) -> dict[tuple[str, int], int] | None:
    try:
        return saved_bytes(subject.module, subject.arguments)
    except ModelError as error:
        notes.append(f"what training keeps is not known: {error}")
        return None


def _device(module: nn.Module) -> torch.device:
    tensors = [*module.parameters(), *module.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")


def _weights(module: nn.Module) -> tuple[int, int]:
    """Number of parameters, and bytes of parameters and buffers, each once."""
    parameters = list(module.parameters())
    every = [*parameters, *module.buffers()]
    return sum(p.numel() for p in parameters), sum(t.numel() * t.element_size() for t in every)


def _merged(tallies: list[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for tally in tallies:
        total.update(tally)
    return dict(sorted(total.items()))
