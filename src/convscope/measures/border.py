"""What padding does: how far it reaches into each layer, and how much it changes there.

A position touches padding if any layer on its way read a padded value. What that changes is measured against the same
picture with more of its own content around it: where no padding was read both must agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from convscope.errors import RequestError
from convscope.graph import Graph, resolve
from convscope.graph.rules import follow
from convscope.measures.border_change import Measured, field_at, margins, nearest_field
from convscope.measures.border_table import Border, BorderLayer
from convscope.measures.feeding import FILLS, Data, Fill, Place, Subject, place, subject
from convscope.measures.readings import Touching
from convscope.measures.receptive_field import Example
from convscope.measures.replay import replay
from convscope.models import Net


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
    measured = Measured(told, places, rows, margins(told, places, margin))
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
        field = field_at(told.graph, item)
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


def _reach(touched: Tensor) -> tuple[tuple[int, int], ...]:
    """(before, after) for each axis: how many lines from each end touch padding all along."""
    found = []
    for axis in range(touched.ndim):
        lines = touched.movedim(axis, 0).reshape(touched.shape[axis], -1).all(1).tolist()
        clear = [position for position, full in enumerate(lines) if not full]
        found.append((clear[0], len(lines) - 1 - clear[-1]) if clear else (len(lines), len(lines)))
    return tuple(found)
