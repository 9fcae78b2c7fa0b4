"""Receptive fields: which pixels of the input a feature can see, over all paths of the executed graph.

Size, stride and padding as in Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural
Networks" (Distill, 2019): the feature at position p sees the pixels from `stride * p - padding` on, `size`
of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, TypeAlias, overload

from torch import Tensor, nn

from convscope.errors import RequestError
from convscope.graph import Graph, record
from convscope.graph.rules import follow
from convscope.graph.trace import Label, Number, Reach, Trace, ratio
from convscope.models import InputLike, InputSpec, Net, as_net


@dataclass(frozen=True)
class ReceptiveField:
    """The pixels that a layer's features see, one number for each axis of the image (height, width).

    At the borders a feature sees fewer of them: what lies in any layer's padding, or is cut off because a
    stride does not divide the size, is counted in.

    Attributes:
        size: number of pixels the widest feature sees, zero padding included; the whole image where it is
            whole.
        stride: pixels between the fields of neighbouring features; a Fraction after upsampling; 0 where the
            field
            does not move: the whole image, or a layer without positions.
        padding: how far the field of position 0 begins before the image. Where padding is asymmetric
            (TensorFlow's "same") this is the left or top side; the other side follows from `box` of the last
            position.
        whole: for each axis, whether features see all of it, whatever the image's size.
        local: the field through local paths alone, where another path (a squeeze-and-excitation gate,
            attention, normalization over space) opens it to the whole image; None where there is no local
            path beside.
        aligned: whether all local paths have the same stride and centre.
        image: the image's size.
        reasons: the operations that opened the field to the whole image.
        bounds: operations at which the field had to be widened to be said in these terms: where there are
            any, the true field may be smaller, never larger.
    """

    size: tuple[int, ...]
    stride: tuple[Number, ...]
    padding: tuple[int, ...]
    whole: tuple[bool, ...]
    local: ReceptiveField | None
    aligned: bool
    image: tuple[int, ...]
    reasons: tuple[str, ...] = ()
    bounds: tuple[str, ...] = ()
    _rows: tuple[_Row, ...] = field(default=(), repr=False)

    @property
    def is_global(self) -> bool:
        """Whether features see the whole image along every axis."""
        return bool(self.whole) and all(self.whole)

    def box(self, position: int | Sequence[int]) -> tuple[tuple[int, int], ...]:
        """The pixels that the feature at a position sees.

        Args:
            position: one index an axis; one number alone stands for all axes.

        Returns:
            (start, stop) for each axis, stop excluded. It may reach outside the image: that part is padding.

        Raises:
            RequestError: the position has another number of indices than the image has axes.

        Example:
            >>> net = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.MaxPool2d(2))
            >>> receptive_field(net, "1", input=InputSpec((1, 32, 48))).box((0, 3))
            ((-1, 4), (11, 16))
        """
        where = (position,) * len(self.size) if isinstance(position, int) else tuple(position)
        if len(where) != len(self.size):
            raise RequestError(
                f"position={where} has {len(where)} indices; give one for each of the {len(self.size)} "
                f"image axes"
            )
        return tuple(
            (0, extent) if whole else row.span(index)
            for extent, whole, row, index in zip(self.image, self.whole, self._rows, where, strict=True)
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values; a fractional stride as a float."""
        return {
            "size": list(self.size),
            "stride": [step if isinstance(step, int) else float(step) for step in self.stride],
            "padding": list(self.padding),
            "is_global": self.is_global,
            "whole": list(self.whole),
            "aligned": self.aligned,
            "local": None if self.local is None else self.local.to_dict(),
            "reasons": list(self.reasons),
            "bounds": list(self.bounds),
        }


Example: TypeAlias = InputLike | tuple[Any, ...]  # a specification, a shape, or the arguments themselves
Box: TypeAlias = tuple[tuple[int, int], ...]


@overload
def receptive_field(
    net: Net | nn.Module,
    layer: str,
    position: None = None,
    *,
    input: Example | None = None,
    graph: Graph | None = None,
) -> ReceptiveField: ...


@overload
def receptive_field(
    net: Net | nn.Module,
    layer: str,
    position: int | Sequence[int],
    *,
    input: Example | None = None,
    graph: Graph | None = None,
) -> Box: ...


def receptive_field(
    net: Net | nn.Module,
    layer: str,
    position: int | Sequence[int] | None = None,
    *,
    input: Example | None = None,
    graph: Graph | None = None,
) -> ReceptiveField | Box:
    """The receptive field of a layer's features in the network's input.

    It is derived from the operations that one forward pass ran, along the union of all paths: branches,
    dilation, transposed convolution, resampling, slicing, explicit padding and attention included. An
    operation without a rule counts as seeing the whole image and is named in `reasons`.

    Args:
        net: the network.
        layer: a dotted module name; `name#k` is its k-th call, the last by default.
        position: one index an axis, or one for all axes, of the feature to give the box of.
        input: what to feed a plain module, or instead of the Net's own specification: an `InputSpec`, a shape such as
            "3x224x224", or an example with its batch axis: images [batch, channel, height, width], signals [batch, channel,
            length], text as whole numbers [batch, length], or a tuple of arguments of which the first is
            looked at.
        graph: a recording of the same network, which saves running it again.

    Returns:
        The field of the first tensor that the layer returns; with `position`, the (start, stop) of each axis
        that this feature sees, stop excluded.

    Raises:
        UnknownLayer: there is no such layer, or it did not run.
        RequestError: the layer's result does not depend on the input, or the position is none of its own.
        ModelError: the network failed on its example input.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1))
        >>> found = receptive_field(net, "2", input=InputSpec((1, 32, 48)))
        >>> found.size, found.stride, found.padding
        ((8, 8), (2, 2), (3, 3))
        >>> receptive_field(net, "2", (0, 23), input=InputSpec((1, 32, 48)))
        ((-3, 5), (43, 51))
    """
    if graph is None:
        graph = recorded(net, input)
    call = graph.call(layer)
    trace = follow(graph)[call.outputs[0]] if call.outputs else None
    if trace is None or not trace.depends:
        raise RequestError(
            f"layer {layer!r} gives no tensor that depends on the input, so it has no receptive field; "
            f"choose another"
        )
    found = field_of(trace)
    if position is None:
        return found
    box = found.box(position)
    places = (position,) * len(box) if isinstance(position, int) else tuple(position)
    grid = tuple(math.prod(row.sizes) for row in found._rows)
    if any(not 0 <= place < size for place, size in zip(places, grid, strict=True)):
        raise RequestError(
            f"position={places} is none of layer {layer!r}, which has {' x '.join(map(str, grid))}; "
            f"count from 0"
        )
    return box


def recorded(net: Net | nn.Module, input: Example | None = None) -> Graph:
    """A recording of the network on what a specification draws, or on an example itself.

    Example:
        >>> import torch
        >>> text = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 2))
        >>> recorded(text, torch.zeros(1, 7, dtype=torch.long)).outputs("1")
        ((1, 7, 2),)
    """
    if isinstance(input, Tensor) or (
        isinstance(input, tuple) and any(isinstance(item, Tensor) for item in input)
    ):
        return record(net, example=input)
    if isinstance(input, InputSpec | None):
        return record(net, spec=input)
    return record(net, spec=as_net(net, input).input)


def field_of(trace: Trace) -> ReceptiveField:
    """The receptive field that a trace spells out."""
    rows = [_row(trace, number) for number in range(len(trace.reach))]
    local = _field(trace.reach, rows, [False] * len(rows)) if all(row.windows for row in rows) else None
    whole = [
        bool(reach.whole) or row.covers(reach.extent) for reach, row in zip(trace.reach, rows, strict=True)
    ]
    if local is not None and not any(whole):
        return local
    reasons = tuple(sorted(frozenset().union(*(reach.whole for reach in trace.reach))))
    return _field(trace.reach, rows, whole, local, reasons)


@dataclass(frozen=True)
class _Row:
    """The fields along one image axis, over the layer's positions along it counted in one row.

    Attributes:
        sizes: the factors that make up a position, major first, such as (windows, places in a window).
        windows: (step of each factor, low, high) of each path.
    """

    sizes: tuple[int, ...]
    windows: tuple[tuple[tuple[Number, ...], Number, Number], ...]

    def span(self, position: int) -> tuple[int, int]:
        """Whole pixels in any of the windows: (start, stop)."""
        digits: list[int] = []
        for size in reversed(self.sizes[1:]):
            position, digit = divmod(position, size)
            digits.insert(0, digit)
        digits = [position, *digits][: len(self.sizes)]  # a position beyond the last goes on evenly
        starts, stops = [], []
        for steps, low, high in self.windows:
            shift = sum(step * digit for step, digit in zip(steps, digits, strict=True))
            starts.append(math.ceil(low + shift))
            stops.append(math.floor(high + shift) + 1)
        return min(starts), max(stops)

    def covers(self, extent: int) -> bool:
        """Whether no position is left and what is seen is all of the image, or no local path at all."""
        if not self.windows:
            return True
        start, stop = self.span(0)
        return not any(any(steps) for steps, _, _ in self.windows) and start <= 0 and stop >= extent

    @property
    def step(self) -> Number:
        """Pixels from one position to the next, on average where the positions are uneven."""
        if not self.sizes:
            return 0
        steps = max((steps for steps, _, _ in self.windows), key=lambda steps: abs(float(steps[0])))
        return ratio(steps[0], math.prod(self.sizes[1:])) or steps[-1]

    @property
    def widest(self) -> int:
        """The largest number of pixels any position sees."""
        count = math.prod(self.sizes)
        if (
            len(self.windows) == 1 and len(self.sizes) == 1
        ):  # moved by fractions of a pixel, it repeats itself
            count = min(count, Fraction(self.step).denominator)
        spans = [self.span(position) for position in range(count)]
        return max(stop - start for start, stop in spans)


def _row(trace: Trace, number: int) -> _Row:
    """Lines up the positions of a trace along one image axis."""
    reach = trace.reach[number]
    places, others = _places(trace, number)
    # Windows come before places in a window, wherever the tensor keeps them.
    largest = {
        (a, i): max((abs(float(steps[a][i])) for steps in reach.windows), default=0.0) for a, i, _ in places
    }
    places.sort(key=lambda place: -largest[place[:2]])
    windows = []
    for steps, (low, high) in reach.windows.items():
        hidden = [steps[a][i] * (size - 1) for a, i, size in others]  # all channels together
        low, high = low + sum(min(0, part) for part in hidden), high + sum(max(0, part) for part in hidden)
        windows.append((tuple(steps[a][i] for a, i, _ in places), low, high))
    return _Row(tuple(size for _, _, size in places), tuple(windows))


def _places(trace: Trace, number: int) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]]:
    """(axis, factor, size) of the factors that are positions along an image axis, and of all others."""
    places: list[tuple[int, int, int]] = []
    others: list[tuple[int, int, int]] = []
    for a, axis in enumerate(trace.axes):
        current: Label = ""  # what a pixel shuffle puts behind a row belongs to that row
        for i, factor in enumerate(axis.factors):
            current = factor.label if isinstance(factor.label, int) or i == 0 else current
            (places if current == number else others).append((a, i, factor.size))
    return places, others


def _field(
    reach: tuple[Reach, ...],
    rows: list[_Row],
    whole: list[bool],
    local: ReceptiveField | None = None,
    reasons: tuple[str, ...] = (),
) -> ReceptiveField:
    seen = list(zip(reach, rows, whole, strict=True))
    bounds = frozenset().union(*(part.bounds for part in reach))
    return ReceptiveField(
        size=tuple(part.extent if is_whole else row.widest for part, row, is_whole in seen),
        stride=tuple(0 if is_whole else row.step for _, row, is_whole in seen),
        padding=tuple(0 if is_whole else -row.span(0)[0] for _, row, is_whole in seen),
        whole=tuple(whole),
        local=local,
        aligned=all(part.aligned and len(part.windows) <= 1 for part in reach),
        image=tuple(part.extent for part in reach),
        reasons=reasons,
        bounds=tuple(sorted(bounds)),
        _rows=tuple(rows),
    )
