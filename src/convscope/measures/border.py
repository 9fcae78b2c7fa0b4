"""What padding does: how far it reaches into each layer, and how much it changes there.

A position touches padding if any layer on its way read a padded value. What that changes is measured against the same
picture with more of its own content around it: where no padding was read both must agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from convscope.errors import ModelError, RequestError
from convscope.graph import Graph, record, resolve
from convscope.graph.rules import follow
from convscope.measures.feeding import FILLS, Data, Fed, Fill, Place, Subject, feed, place, reading, subject
from convscope.measures.receptive_field import Example, ReceptiveField, field_of
from convscope.measures.replay import Touching, replay
from convscope.measures.visits import border_distance
from convscope.models import Net, preserved

if TYPE_CHECKING:
    from rich.table import Table

_MOST_BYTES = 2**29  # of layer outputs held at a time
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}  # relative differences that are none


@dataclass(frozen=True, eq=False)
class BorderLayer:
    """What padding does to one layer.

    Attributes:
        layer: its name, with `#k` where the module is called several times.
        grid: number of positions along each axis.
        share: share of the positions that touch padding, over all paths.
        local_share: the same through local paths alone, where another path sees the whole image; None where none does.
        reach: positions from the border that all touch padding, (before, after) for each axis, through local paths.
        reach_pixels: the same in pixels of the input.
        touched: Tensor [*grid] of bool, through local paths where there are any.
        is_global: whether a path sees the whole image, so that inner positions may change as well.
        covered: whether the picture was extended by all that the layer's features see; None where not measured.
        content: mean share of what the features see in the extended pictures that is their own content rather than
            filled in; None where not measured.
        change_map: Tensor [*grid] of float64: the norm over channels (root mean square over images) of what changes
            when the picture goes on in place of padding, relative to that of the features themselves over all
            positions; None where it cannot be measured, and `note` says why.
        strength: norm of the features that touch padding relative to the same ones without it; None where not measured
            or nothing is touched.
        note: what the reader should know.
    """

    layer: str
    grid: tuple[int, ...]
    share: float
    local_share: float | None
    reach: tuple[tuple[int, int], ...]
    reach_pixels: tuple[tuple[float, float], ...]
    touched: Tensor
    is_global: bool
    covered: bool | None = None
    content: float | None = None
    change_map: Tensor | None = None
    strength: float | None = None
    note: str = ""

    @property
    def change(self) -> float | None:
        """Mean relative change over all positions."""
        return None if self.change_map is None else float(self.change_map.mean())

    @property
    def border_change(self) -> float | None:
        """Mean relative change where padding is touched."""
        if self.change_map is None or not bool(self.touched.any()):
            return None
        return float(self.change_map[self.touched].mean())

    @property
    def interior_change(self) -> float | None:
        """Largest relative change where no local path touches padding: 0 but for rounding in a local network."""
        if self.change_map is None or bool(self.touched.all()):
            return None
        return float(self.change_map[~self.touched].max())

    @property
    def profile(self) -> tuple[float, ...] | None:
        """Mean relative change of the positions at each distance from the border, from the outermost inwards."""
        if self.change_map is None:
            return None
        distance = border_distance(self.grid)
        depths = range(int(distance.max()) + 1)
        return tuple(float(self.change_map[distance == depth].mean()) for depth in depths)

    def to_dict(self, *, maps: bool = False) -> dict[str, Any]:
        """Plain values; `maps` adds the maps as nested lists."""
        found: dict[str, Any] = {
            "layer": self.layer,
            "grid": list(self.grid),
            "share": self.share,
            "local_share": self.local_share,
            "reach": [list(pair) for pair in self.reach],
            "reach_pixels": [list(pair) for pair in self.reach_pixels],
            "is_global": self.is_global,
            "covered": self.covered,
            "content": self.content,
            "change": self.change,
            "border_change": self.border_change,
            "interior_change": self.interior_change,
            "strength": self.strength,
            "profile": None if self.profile is None else list(self.profile),
            "note": self.note,
        }
        if maps:
            found["touched"] = self.touched.tolist()
            found["change_map"] = None if self.change_map is None else self.change_map.tolist()
        return found


@dataclass(frozen=True, eq=False)
class Border:
    """What padding does to each layer of a network.

    Attributes:
        layers: by name, in order of running.
        size: the input's size.
        margin: pixels by which the picture was extended on each side, one number an axis; () where not measured.
        data: what was fed.
        samples: how many pictures.
        fill: how pictures too small were gone on with: "reflect", "circular" or "replicate"; "none" where all of them
            were large enough.
        content: mean share of the extended pictures that is their own content rather than filled in.
        left_out: the layers that are not looked at although they compute something, with the reason.
    """

    layers: Mapping[str, BorderLayer]
    size: tuple[int, ...]
    margin: tuple[int, ...]
    data: str
    samples: int
    fill: str
    content: float
    left_out: Mapping[str, str]

    def to_dict(self, *, maps: bool = False) -> dict[str, Any]:
        """Plain values; `maps` adds the maps of all layers as nested lists."""
        return {
            "size": list(self.size),
            "margin": list(self.margin),
            "data": self.data,
            "samples": self.samples,
            "fill": self.fill,
            "content": self.content,
            "left_out": dict(self.left_out),
            "layers": {name: row.to_dict(maps=maps) for name, row in self.layers.items()},
        }

    def __rich__(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        size = " x ".join(map(str, self.size))
        told = f"what padding does at {size}"
        if self.margin:
            told += f": {self.samples} of {self.data}, extended by {' x '.join(map(str, self.margin))} pixels a side"
            told += "" if self.fill == "none" else f" ({self.content:.0%} own content, the rest {self.fill})"
        table = Table(title=Text(told), title_justify="left")
        table.add_column("layer", overflow="fold")
        for name in (
            "positions",
            "touching",
            "reach",
            "in pixels",
            "change there",
            "inside",
            "overall",
            "strength",
        ):
            table.add_column(name, justify="right")
        table.add_column("note", overflow="fold")
        for row in self.layers.values():
            share = (
                f"{row.share:.1%}"
                if row.local_share is None
                else f"{row.share:.1%} ({row.local_share:.1%} locally)"
            )
            table.add_row(
                Text(row.layer),
                " x ".join(map(str, row.grid)),
                share,
                " ".join(f"{before}/{after}" for before, after in row.reach),
                " ".join(f"{before:g}/{after:g}" for before, after in row.reach_pixels),
                _percent(row.border_change),
                _percent(row.interior_change),
                _percent(row.change),
                _percent(row.strength),
                Text(row.note),
            )
        return table


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def border_effect(
    net: Net | nn.Module,
    data: Data = None,
    *,
    layers: str | Sequence[str] | None = None,
    input: Example | None = None,
    change: bool = True,
    samples: int = 8,
    margin: int | None = None,
    fill: Fill = "reflect",
    seed: int = 0,
    graph: Graph | None = None,
) -> Border:
    """How far padding reaches into each layer, and how much it changes the features there.

    Which positions touch padding is derived from the executed graph, exactly: explicit padding of any kind, that of
    convolutions and poolings, and what interpolation and transposed convolution miss beyond the border. Circular padding
    reads the picture's other side and is none.

    The change is measured. Each picture is taken with a margin of its own content around the input; the features of the
    input alone are compared with those of the same positions in the larger picture. The margin is a multiple of the
    network's total stride, so that positions fall on each other and padding that depends on the size (TensorFlow's
    "same") is the same on both; where a layer does not line up its note says so.

    Args:
        net: the network.
        data: pictures: a file, a folder, an `Images`, a Tensor [count, channel, height, width] as the network
            takes it; best larger than the input. By default the embedded
            photographs; noise for other numbers of channels than 1 and 3; the example itself for other inputs.
        layers: names or globs; by default every module that computes something itself and gives a map.
        input: what to feed a plain module, or instead of the Net's own specification: an `InputSpec` or an example
            with its batch axis.
        change: False leaves the measuring out.
        samples: at most this many pictures.
        margin: pixels to extend the picture by on each side, a multiple of the total stride. By default all that the
            features see, but no more than the input's own size.
        fill: how to go on where a picture is too small: "reflect", "circular" or "replicate".
        seed: of the noise.
        graph: a recording of the same network, which saves running it again.

    Raises:
        UnknownLayer: a pattern names no layer that runs.
        RequestError: an argument is out of its range, or a named layer gives no map.
        BadInput: no picture can be read, or data does not fit the network.
        ModelError: the network failed.

    Example:
        >>> from convscope.models import InputSpec
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
        >>> found = border_effect(net, input=InputSpec((3, 12, 12)), samples=2)
        >>> [(row.layer, round(row.share, 3), row.reach[0]) for row in found.layers.values()]
        [('0', 0.306, (1, 1)), ('1', 0.306, (1, 1)), ('2', 0.556, (2, 2))]
    """
    if fill not in FILLS:
        raise RequestError(f"fill={fill!r} must be one of {', '.join(map(repr, FILLS))}")
    if samples < 1:
        raise RequestError(f"samples={samples} must be at least 1")
    if margin is not None and margin < 1:
        raise RequestError(f"margin={margin} must be at least 1")
    told = subject(net, input, graph)
    places, left_out = _places(told.graph, layers)
    rows = _derived(told, places)
    if not change:
        return Border(rows, told.size, (), "", 0, "none", 1.0, left_out)
    measured = _Measured(told, places, rows, _margin(told, places, margin))
    return measured.run(data, samples, fill, seed, left_out)


def _places(graph: Graph, layers: str | Sequence[str] | None) -> tuple[list[Place], dict[str, str]]:
    """The layers to look at, in order of running, and why others that compute something are not."""
    found: list[Place] = []
    if layers is not None:
        for name in resolve(graph, layers):
            found.append(place(graph, name))
            if not _depends(graph, found[-1]):
                raise RequestError(f"layer {name!r} does not depend on the input; choose another")
        return sorted(found, key=lambda item: item.call.order), {}
    works = {op.call for op in graph.ops}
    left_out: dict[str, str] = {}
    for call in graph.calls:
        if call.order not in works or not call.name or not call.outputs:
            continue
        key = graph.address(call)
        try:
            item = place(graph, key)
        except RequestError:
            left_out[key] = "its output is no map of positions"
            continue
        if item.layout.kind == "vector" or math.prod(item.layout.grid) == 1:
            left_out[key] = "its output has no positions left"
        elif not _depends(graph, item):
            left_out[key] = "it does not depend on the input"
        else:
            found.append(item)
    if not found:
        raise RequestError("no layer of the network gives a map of positions; name some with layers=")
    return found, left_out


def _depends(graph: Graph, item: Place) -> bool:
    return follow(graph)[item.call.outputs[0]].depends


# -- what is derived -----------------------------------------------------------------------------------------


def _derived(told: Subject, places: Sequence[Place]) -> dict[str, BorderLayer]:
    """All rows without their change."""
    every, unknown = _masks(told.graph, places, local=False)
    near, _ = _masks(told.graph, places, local=True)
    rows = {}
    for item in places:
        field = _field(told.graph, item)
        local = nearest_field(field)
        is_global = any(field.whole)
        touched = near[item.key] if local is not None else every[item.key]
        pixels = (0,) * len(item.layout.grid) if local is None else local.stride
        reach = _reach(touched)
        rows[item.key] = BorderLayer(
            layer=item.key,
            grid=item.layout.grid,
            share=float(every[item.key].double().mean()),
            local_share=float(touched.double().mean()) if is_global and local is not None else None,
            reach=reach,
            reach_pixels=tuple(
                (float(min(before * step, size)), float(min(after * step, size)))
                for (before, after), step, size in zip(reach, pixels, told.size, strict=True)
            ),
            touched=touched,
            is_global=is_global,
            note=f"assumed to touch all after {', '.join(unknown)}" if unknown and is_global else "",
        )
    return rows


def _masks(graph: Graph, places: Sequence[Place], local: bool) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Tensor [*grid] of bool for each layer: which positions touch padding."""
    algebra = Touching()
    at: dict[int, list[Place]] = {}
    for item in places:
        at.setdefault(item.call.outputs[0], []).append(item)
    found: dict[str, Tensor] = {}

    def keep(index: int, value: Tensor) -> None:
        for item in at[index]:
            found[item.key] = item.layout.as_map(value).amax((0, 1)) > 0

    start = torch.zeros([1] * len(graph.values[graph.inputs[0]].shape))
    replay(graph, algebra, start, at, local=local, on_value=keep)
    return found, tuple(algebra.unknowns)


def _field(graph: Graph, item: Place) -> ReceptiveField:
    return field_of(follow(graph)[item.call.outputs[0]])


def nearest_field(field: ReceptiveField) -> ReceptiveField | None:
    """The field through local paths; None where there are none."""
    return field.local if any(field.whole) else field


def _reach(touched: Tensor) -> tuple[tuple[int, int], ...]:
    """(before, after) for each axis: how many lines from each end touch padding all along."""
    found = []
    for axis in range(touched.ndim):
        lines = touched.movedim(axis, 0).reshape(touched.shape[axis], -1).all(1).tolist()
        clear = [position for position, full in enumerate(lines) if not full]
        found.append((clear[0], len(lines) - 1 - clear[-1]) if clear else (len(lines), len(lines)))
    return tuple(found)


# -- what is measured ----------------------------------------------------------------------------------------


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


def _margin(told: Subject, places: Sequence[Place], wanted: int | None) -> tuple[int, ...]:
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
    local = nearest_field(_field(told.graph, item))
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


class _Measured:
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
            local = nearest_field(_field(self.told.graph, item))
            if local is None:
                self.notes[item.key] = "sees the whole image: nothing to compare with"
                continue
            name = f"inner.{item.call.name}#{item.call.index}"
            if not graph.has(name):
                self.notes[item.key] = f"does not run at {' x '.join(map(str, self.large))}"
                continue
            twin = place(graph, name)
            beyond = nearest_field(_field(graph, twin))
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
