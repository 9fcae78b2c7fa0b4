"""What measures feed a network: pictures of any size, made of a photograph's own content as far as it goes."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from convscope import data as pictures
from convscope.data import Images
from convscope.data.images import to_tensor
from convscope.errors import BadInput, RequestError
from convscope.graph import Call, Graph, Layout, layout
from convscope.measures.receptive_field import Example, recorded
from convscope.measures.windows import mirrored
from convscope.models import InputSpec, Net, as_net

Data: TypeAlias = str | os.PathLike[str] | Images | Tensor | None
Fill: TypeAlias = Literal["reflect", "circular", "replicate"]
FILLS = ("reflect", "circular", "replicate")


@dataclass(frozen=True, eq=False)
class Subject:
    """A network ready to be fed.

    Attributes:
        net: what the caller gave.
        graph: its recording on the example.
        spec: what it takes, for networks of images; None for those known by an example alone.
        example: the example's first tensor, for the latter.
        rest: the example's other arguments.
    """

    net: Net | nn.Module
    graph: Graph
    spec: InputSpec | None
    example: Tensor | None = None
    rest: tuple[Any, ...] = ()

    @property
    def size(self) -> tuple[int, ...]:
        """The input's positions along each axis: (height, width), or (length,)."""
        shape = self.graph.values[self.graph.inputs[0]].shape
        return shape[2:] if len(shape) > 2 else shape[1:]

    def module(self) -> nn.Module:
        """A private copy, in eval mode and frozen."""
        net = self.net if isinstance(self.net, Net) else Net(self.net, self.spec or InputSpec())
        module = net.copy()
        if any(tensor.is_meta for tensor in [*module.parameters(), *module.buffers()]):
            raise RequestError(
                "net is on the meta device, without values to compute with; give it weights, such as "
                "module.to_empty(device='cpu') and an initialization"
            )
        return module


def subject(net: Net | nn.Module, input: Example | None, graph: Graph | None) -> Subject:
    """The network with its recording, made where none is given."""
    if isinstance(input, InputSpec) or (input is None and isinstance(net, Net)):
        whole = as_net(net, input)
        return Subject(whole, recorded(whole) if graph is None else graph, whole.input)
    if input is None:
        as_net(net, None)  # raises: a plain module says nothing about its input
    graph = recorded(net, input) if graph is None else graph
    arguments = input if isinstance(input, tuple) else (input,)
    first = arguments[0]
    if not isinstance(first, Tensor):
        raise RequestError(f"input={input!r} must begin with the tensor to look at; put it first")
    if isinstance(net, Net) and len(arguments) == 1 and first.ndim == 4 and first.is_floating_point():
        spec = net.input.with_size(*first.shape[2:])
        return Subject(net, graph, spec)
    return Subject(net, graph, None, first, arguments[1:])


@dataclass(frozen=True, eq=False)
class Fed:
    """One input.

    Attributes:
        x: Tensor [1, channel, *size], as the network takes it; [1, length] for text.
        own: number of positions along each axis that are the picture's own content, in the middle; what is around
            them is filled in.
    """

    x: Tensor
    own: tuple[int, ...]

    def content(self, size: Sequence[int]) -> float:
        """Share of the middle part of this size that is the picture's own."""
        return math.prod(min(own, want) / want for own, want in zip(self.own, size, strict=True))


def feed(
    subject: Subject, data: Data, size: Sequence[int], samples: int, fill: Fill = "reflect", seed: int = 0
) -> tuple[str, Iterator[Fed]]:
    """Inputs of any size: what they are, and up to `samples` of them.

    Photographs keep their scale where they are smaller than asked, and what is missing around them is filled in; larger
    ones are scaled down to fit. Networks of other channels than pictures have are fed uniform noise, networks known by
    an example that example.

    Raises:
        RequestError: no sample is asked for, or the data is not what the network takes.
        BadInput: no image can be read.
    """
    if samples < 1:
        raise RequestError(f"samples={samples} must be at least 1")
    spec = subject.spec
    if isinstance(data, Tensor):
        shape = subject.graph.values[subject.graph.inputs[0]].shape
        if data.ndim != len(shape) or (len(shape) > 2 and data.shape[1] != shape[1]) or not len(data):
            wanted = ["count", *(map(str, shape[1:2]) if len(shape) > 2 else ()), *("any" for _ in size)]
            raise BadInput(
                f"data of shape {list(data.shape)} must be [{', '.join(wanted)}] for this network's input"
            )
        rows = (_shaped(row, size, fill, grow=None) for row in data[:samples])
        dtype = subject.graph.values[subject.graph.inputs[0]].dtype
        return "the given tensor", (Fed(x[None].to(dtype), tuple(own)) for x, own in rows)
    if spec is None:
        if data is not None:
            raise BadInput(
                "data must be a tensor for a network known by an example alone; give net= as a Net, or "
                "input= as an InputSpec, to feed it image files"
            )
        example = subject.example
        assert example is not None
        shaped = (_shaped(row, size, fill, grow=None) for row in example[:samples])
        return "the example", (_prepared(subject, x, own) for x, own in shaped)
    if data is None and spec.channels not in (1, 3):
        generator = torch.Generator().manual_seed(seed)
        noise = (torch.rand((spec.channels, *size), generator=generator) for _ in range(samples))
        return "noise", (_prepared(subject, x, size) for x in noise)
    found = pictures.images(data, limit=samples)
    if spec.channels not in (1, 3):
        at = spec.with_size(*size)
        return found.source, (
            _prepared(subject, x, size) for batch in found.batches(at, 1) for x in batch.images
        )
    return found.source, _photographs(subject, found, size, fill)


def _photographs(subject: Subject, found: Images, size: Sequence[int], fill: Fill) -> Iterator[Fed]:
    spec = subject.spec
    assert spec is not None
    count = 0
    for sample in found:
        x, own = _shaped(to_tensor(sample.image, spec.channels), size, fill, grow=spec.size)
        yield _prepared(subject, x, own)
        count += 1
    if not count:
        first = found.broken[0]
        raise BadInput(
            f"none of the {len(found)} images of {found.source!r} could be read; the first, {first.name!r}, "
            f"{first.reason}"
        )


def _prepared(subject: Subject, x: Tensor, own: Sequence[int]) -> Fed:
    if subject.spec is not None:
        return Fed(subject.spec.normalize(x[None]).to(subject.spec.dtype), tuple(own))
    assert subject.example is not None
    return Fed(x[None].to(subject.example.dtype), tuple(own))


def _shaped(
    x: Tensor, size: Sequence[int], fill: Fill, grow: tuple[int, int] | None
) -> tuple[Tensor, list[int]]:
    """x [..., *place] at this size, and how much of it is its own; `grow` scales pictures: down to the size, up
    at least to `grow`.
    """
    if grow is not None:
        have = x.shape[-2:]
        scale = max(want / had for want, had in zip(size, have, strict=True))
        least = max(want / had for want, had in zip(grow, have, strict=True))
        scale = scale if scale < 1 else max(1.0, least)
        if scale != 1:
            goal = [max(1, math.ceil(had * scale - 1e-9)) for had in have]
            x = functional.interpolate(x[None], goal, mode="bicubic", antialias=True)[0].clamp(0, 1)
    own = []
    for i, want in enumerate(size):
        axis = x.ndim - len(size) + i
        had = x.shape[axis]
        start = (had - want) // 2  # negative where places are missing
        at = torch.arange(want) + start
        own.append(min(had, want))
        x = x.index_select(axis, filled(at, had, fill))
    return x, own


def filled(at: Tensor, size: int, fill: Fill) -> Tensor:
    """Positions with those beyond the ends replaced.

    Example:
        >>> [filled(torch.arange(-2, 5), 3, fill).tolist() for fill in ("reflect", "circular", "replicate")]
        [[2, 1, 0, 1, 2, 1, 0], [1, 2, 0, 1, 2, 0, 1], [0, 0, 0, 1, 2, 2, 2]]
    """
    if fill == "reflect":
        return mirrored(at, size)
    return at % size if fill == "circular" else at.clamp(0, size - 1)


# -- reading layers ------------------------------------------------------------------------------------------


class _Finished(BaseException):
    """All wanted layers have run. Not an Exception, so that no network swallows it."""


@dataclass(frozen=True)
class Place:
    """A call of a layer whose output is a map of positions."""

    key: str
    call: Call
    layout: Layout


def place(graph: Graph, key: str) -> Place:
    """The call that a key names, with its layout.

    Raises:
        UnknownLayer: there is no such layer, or it did not run.
        RequestError: its output is no map of positions.
    """
    found = layout(graph, key)
    if found.kind == "other":
        raise RequestError(
            f"layer {key!r} gives an output of shape {list(found.shape)}, no map of positions; choose another"
        )
    return Place(key, graph.call(key), found)


@contextmanager
def reading(
    module: nn.Module, places: Sequence[Place], on_layer: Callable[[Place, Tensor], None]
) -> Iterator[Callable[..., None]]:
    """Within it, a call of the module that hands each layer's output [batch, channel, *place] over as it runs.

    The pass ends with the last of them.
    """
    parts = dict(module.named_modules())
    calls: dict[str, int] = {}
    left: set[str] = set()
    by_name: dict[str, list[Place]] = {}
    for item in places:
        by_name.setdefault(item.call.name, []).append(item)

    def hook_of(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            count = calls[name] = calls.get(name, -1) + 1
            for item in by_name[name]:
                value = _first(output)
                if item.call.index == count and value is not None:
                    on_layer(item, value)
                    left.discard(item.key)
                    if not left:
                        raise _Finished

        return hook

    def run(*arguments: Any) -> None:
        calls.clear()
        left.update(item.key for item in places)
        with suppress(_Finished):
            module(*arguments)

    handles = [parts[name].register_forward_hook(hook_of(name)) for name in by_name]
    try:
        yield run
    finally:
        for handle in handles:
            handle.remove()


def _first(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    items = (
        output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else ()
    )
    return next((found for item in items if (found := _first(item)) is not None), None)
