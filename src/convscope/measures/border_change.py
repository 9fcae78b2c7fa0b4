"""How much padding changes: each layer on the input alone, against the same positions in a larger picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from convscope.errors import ModelError, RequestError
from convscope.graph import Graph, record
from convscope.graph.rules import follow
from convscope.measures.border_table import Border, BorderLayer
from convscope.measures.feeding import Data, Fed, Fill, Place, Subject, feed, place, reading
from convscope.measures.receptive_field import ReceptiveField, field_of
from convscope.models import preserved

_MOST_BYTES = 2**29  # of layer outputs held at a time
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}  # relative differences that are none


def field_at(graph: Graph, item: Place) -> ReceptiveField:
    return field_of(follow(graph)[item.call.outputs[0]])


def nearest_field(field: ReceptiveField) -> ReceptiveField | None:
    """The field through local paths; None where there are none."""
    return field.local if any(field.whole) else field


def total_stride(graph: Graph, axis: int) -> int:
    """The least number of pixels by which an image must move for every layer's positions to fall on each other."""
    total = 1
    for trace in follow(graph):
        for steps in trace.reach[axis].windows if trace.depends else ():
            for group, part in zip(steps, trace.axes, strict=True):
                for step, factor in zip(group, part.factors, strict=True):
                    if isinstance(step, int) and step and factor.label == axis and factor.size > 1:
                        total = math.lcm(total, abs(step))
    return total


def margins(told: Subject, places: Sequence[Place], wanted: int | None) -> tuple[int, ...]:
    """Pixels to extend the picture by along each axis."""
    needs = [_needed(told, item) for item in places]
    margins = []
    for axis, size in enumerate(told.size):
        step = total_stride(told.graph, axis)
        if wanted is not None and wanted % step:
            raise RequestError(
                f"margin={wanted} must be a multiple of the network's total stride, {step}; give for instance "
                f"{-(-wanted // step) * step}"
            )
        need = max((need[axis] for need in needs if need is not None), default=0)
        most = max(size // step, 1) * step
        margins.append(wanted if wanted is not None else min(max(-(-need // step), 1) * step, most))
    return tuple(margins)


def _needed(told: Subject, item: Place) -> tuple[int, ...] | None:
    """Pixels that the layer's features see beyond the border, the farther side of each axis."""
    local = nearest_field(field_at(told.graph, item))
    if local is None:
        return None
    first, last = local.box([0] * len(item.layout.grid)), local.box([n - 1 for n in item.layout.grid])
    return tuple(
        max(-low, high - size, 0) for (low, _), (_, high), size in zip(first, last, told.size, strict=True)
    )


class _Survivor(nn.Module):
    """Runs a network as far as it goes: one made for a fixed size may fail on a larger picture in its last layers."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *arguments: Any) -> None:
        try:
            self.inner(*arguments)
        except Exception:  # the network's own code: anything may come; the layers that ran are recorded
            return


class _Sums:
    """Squared norms over channels, summed over pictures, each [*grid] of float64."""

    def __init__(self, grid: Sequence[int]) -> None:
        self.change, self.plain, self.extended = (
            torch.zeros(tuple(grid), dtype=torch.float64) for _ in range(3)
        )

    def add(self, plain: Tensor, extended: Tensor) -> None:
        """[1, channel, *grid] each."""
        plain, extended = plain.double(), extended.double()
        self.change += (plain - extended).square().sum((0, 1))
        self.plain += plain.square().sum((0, 1))
        self.extended += extended.square().sum((0, 1))


class Measured:
    """One use: `run` gives the result."""

    def __init__(
        self, told: Subject, places: Sequence[Place], rows: dict[str, BorderLayer], margin: tuple[int, ...]
    ) -> None:
        self.told = told
        self.places = places
        self.rows = rows
        self.margin = margin
        self.large = tuple(size + 2 * more for size, more in zip(told.size, margin, strict=True))
        self.twins: dict[
            str, tuple[Place, tuple[int, ...]]
        ] = {}  # key -> its place at the larger size, shift
        self.sums: dict[str, _Sums] = {}
        self.notes: dict[str, str] = {}
        self.fed: list[Fed] = []

    def _content(self, size: Sequence[int]) -> float:
        return sum(fed.content(size) for fed in self.fed) / len(self.fed)

    def run(self, data: Data, samples: int, fill: Fill, seed: int, left_out: Mapping[str, str]) -> Border:
        source, inputs = feed(self.told, data, self.large, samples, fill, seed)
        module = self.told.module()
        count = 0
        with preserved(module), torch.no_grad():
            for fed in inputs:
                if count == 0:
                    self._line_up(module, fed.x)
                for group in self._groups():
                    self._compare(module, group, fed.x)
                count += 1
                self.fed.append(replace(fed, x=torch.empty(0)))  # its picture is needed no more
        rows = {item.key: self._row(item, module) for item in self.places}
        own = self._content(self.large)
        filled = "none" if own == 1 else fill
        return Border(rows, self.told.size, self.margin, source, count, filled, own, left_out)

    def _line_up(self, module: nn.Module, x: Tensor) -> None:
        """Finds each layer's positions in the larger picture."""
        graph = record(_Survivor(module), example=(x, *self.told.rest))
        for item in self.places:
            local = nearest_field(field_at(self.told.graph, item))
            if local is None:
                self.notes[item.key] = "sees the whole image: nothing to compare with"
                continue
            name = f"inner.{item.call.name}#{item.call.index}"
            if not graph.has(name):
                self.notes[item.key] = f"does not run at {' x '.join(map(str, self.large))}"
                continue
            twin = place(graph, name)
            beyond = nearest_field(field_at(graph, twin))
            shift = None if beyond is None else _shift(local, beyond, item, twin, self.margin)
            if shift is None:
                self.notes[item.key] = "its positions do not line up in a larger picture"
                continue
            self.twins[item.key] = (twin, shift)
            self.sums[item.key] = _Sums(item.layout.grid)

    def _groups(self) -> list[list[Place]]:
        """The layers that line up, as many at a time as memory is to hold."""
        groups: list[list[Place]] = []
        room = 0
        for item in self.places:
            if item.key not in self.twins:
                continue
            need = 8 * math.prod(item.layout.shape)
            if not groups or need > room:
                groups.append([])
                room = _MOST_BYTES
            groups[-1].append(item)
            room -= need
        return groups

    def _compare(self, module: nn.Module, group: Sequence[Place], x: Tensor) -> None:
        first = x.ndim - len(self.margin)
        window = [slice(None)] * first + [
            slice(more, more + size) for more, size in zip(self.margin, self.told.size, strict=True)
        ]
        kept: dict[str, Tensor] = {}

        def keep(item: Place, output: Tensor) -> None:
            kept[item.key] = item.layout.as_map(output).clone()  # what runs next may overwrite it

        def compare(item: Place, output: Tensor) -> None:
            twin, shift = self.twins[item.key]
            features = twin.layout.as_map(output)
            cut = [slice(None)] * 2 + [
                slice(at, at + size) for at, size in zip(shift, item.layout.grid, strict=True)
            ]
            self.sums[item.key].add(kept.pop(item.key), features[tuple(cut)])

        for arguments, act in ((x[tuple(window)].contiguous(), keep), (x, compare)):
            with reading(module, group, act) as run:
                run(arguments, *self.told.rest)
        if kept:
            raise ModelError(
                f"layer {next(iter(kept))!r} ran on the input but not on a larger picture, though it did when "
                f"recorded; leave it out with layers="
            )

    def _row(self, item: Place, module: nn.Module) -> BorderLayer:
        row = self.rows[item.key]
        notes = [note for note in (row.note, self.notes.get(item.key)) if note]
        sums = self.sums.get(item.key)
        if sums is None:
            return replace(row, note="; ".join(notes))
        level = float(sums.extended.mean())
        if level == 0 or not math.isfinite(level + float(sums.plain.sum())):
            notes.append("all features are 0" if level == 0 else "its features are not finite")
            return replace(row, note="; ".join(notes))
        need = _needed(self.told, item)
        assert need is not None
        touched = row.touched
        there = float(sums.extended[touched].sum())
        row = replace(
            row,
            content=self._content(
                [
                    size + 2 * min(wanted, more)
                    for size, wanted, more in zip(self.told.size, need, self.margin, strict=True)
                ]
            ),
            covered=all(more >= wanted for more, wanted in zip(self.margin, need, strict=True)),
            change_map=(sums.change / level).sqrt(),
            strength=math.sqrt(float(sums.plain[touched].sum()) / there) if there > 0 else None,
        )
        if not row.covered:
            notes.append(f"sees {max(need)} pixels past the border, beyond the extension")
        inside = row.interior_change
        dtype = next((p.dtype for p in module.parameters()), torch.float32)
        if row.is_global:
            notes.append("a path sees the whole image, so everything may change")
        elif inside is not None and inside > _ROUNDING.get(dtype, 5e-2):
            notes.append("changes where no padding is read: what it does depends on the place or the size")
        return replace(row, note="; ".join(notes))


def _shift(
    small: ReceptiveField, large: ReceptiveField, item: Place, twin: Place, margin: Sequence[int]
) -> tuple[int, ...] | None:
    """How many positions further on each axis the layer sees the same pixels in the larger picture; None if nowhere."""
    shift = []
    for step, more in zip(small.stride, margin, strict=True):
        if step == 0 or more % step:
            return None
        shift.append(int(more // step))
    if any(
        at + size > room for at, size, room in zip(shift, item.layout.grid, twin.layout.grid, strict=True)
    ):
        return None
    for where in ([0] * len(shift), [n // 2 for n in item.layout.grid], [n - 1 for n in item.layout.grid]):
        here = small.box(where)
        there = large.box([at + more for at, more in zip(where, shift, strict=True)])
        if [(low + more, high + more) for (low, high), more in zip(here, margin, strict=True)] != list(there):
            return None
    return tuple(shift)
