"""Units drawn in two networks, so that it shows what a change did to what they look for.

Which ones: as asked, or those where the change tells most. The pictures start from the same seed on the same canvas, so
that what differs between two of them comes from the networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeAlias

from torch import Tensor

from convscope.errors import RequestError, UnknownLayer, UntrainedWeights
from convscope.features.visualize import visualize
from convscope.graph import Graph, record
from convscope.measures.measure import measure
from convscope.measures.profile import Profile
from convscope.models import Net
from convscope.rewrites.compare_table import Feature
from convscope.rewrites.growth import Found

Units: TypeAlias = Mapping[str, int | Sequence[int]] | Sequence[tuple[str, int]] | Literal["auto"]

IDLE = ("Identity", "Dropout", "Dropout2d", "DropPath")  # kinds that give what they are given, at rest
EACH = 2  # channels of a layer that are drawn unasked
APART = 8  # layers drawn unasked lie at least this part of the network apart

_Side: TypeAlias = dict[int, tuple[Tensor, float, str]]  # channel -> picture, what it reaches, how it ended


@dataclass
class Subject:
    """A network that is compared with several others: it is recorded, counted and drawn once.

    Attributes:
        net: the network.
        drawn: its pictures so far.
    """

    net: Net
    drawn: dict[tuple[Any, ...], _Side] = field(default_factory=dict)
    _profiles: dict[bool, Profile] = field(default_factory=dict)

    @cached_property
    def graph(self) -> Graph:
        """Its recorded pass."""
        return record(self.net)

    def profile(self, fields: bool) -> Profile:
        """Its counts, with receptive fields or without."""
        if fields not in self._profiles:
            self._profiles[fields] = measure(self.net, graph=self.graph, fields=fields, training=False)
        return self._profiles[fields]


def asked(features: Units | None) -> dict[str, list[int]]:
    """Layer -> channels, as they were asked for.

    Raises:
        RequestError: they were asked for in another way than it is done.
    """
    pairs: list[tuple[Any, Any]] = []
    if isinstance(features, Mapping):
        for layer, channels in features.items():
            pairs += [(layer, each) for each in (channels if isinstance(channels, Sequence) else [channels])]
    elif features is not None and features != "auto":
        pairs = [(each[0], each[1]) if len(each) == 2 else (None, None) for each in features]
    found: dict[str, list[int]] = {}
    for layer, channel in pairs:
        if not isinstance(layer, str) or isinstance(channel, bool) or not isinstance(channel, int):
            raise RequestError(
                f"features={features!r} must be 'auto', (layer, channel) pairs or layer -> channels, such as "
                "{'conv1': [0, 3]}"
            )
        found.setdefault(layer, []).append(channel)
    return found


def telling(found: Found, tolerance: float) -> dict[str, list[int]]:
    """Layer -> channels where a change tells most: the most active ones of three layers.

    Two layers that changed most, some way apart, and the last one that gives a map. A layer counts as changed as far as the
    layer behind it is too: a batch norm that was folded away changes its convolution only. Where nothing changed beyond
    `tolerance`, three equal layers spread over the network, whose pictures then show that.

    Example:
        >>> import torch
        >>> from convscope.rewrites.growth import LayerDifference
        >>> rows = tuple(LayerDifference(f"conv{k}", ("Conv2d",) * 2, rms, 0.0) for k, rms in enumerate([0.0, 0.3, 0.2, 0.1]))
        >>> active = {row.layer: torch.tensor([1.0, 5.0, 2.0]) for row in rows}
        >>> telling(Found(1, None, None, rows, active, {}, ()), 1e-4)
        {'conv1': [1, 2], 'conv2': [1, 2], 'conv3': [1, 2]}
    """
    rows = [row for row in found.layers if row.layer in found.active and row.kinds[0] not in IDLE]
    if not rows:
        return {}
    behind = {row.layer: after.rms for row, after in zip(found.layers, found.layers[1:], strict=False)}
    score = [min(row.rms, behind.get(row.layer, row.rms)) for row in rows]
    last, gap = len(rows) - 1, max(1, len(rows) // APART)
    places: list[int] = []
    if max(score) > tolerance:
        for place in sorted(range(last), key=lambda place: -score[place]):
            if len(places) < 2 and score[place] > tolerance and all(abs(place - p) >= gap for p in places):
                places.append(place)
    else:
        calm = [place for place in range(last) if rows[place].rms <= tolerance] or [last]
        places = [calm[len(calm) // 4], calm[len(calm) // 2]]
    layers = [rows[place].layer for place in sorted({*places, last})]
    return {
        layer: found.active[layer].topk(min(EACH, len(found.active[layer]))).indices.tolist()
        for layer in layers
    }


def draw(
    a: Subject, b: Subject, wanted: Mapping[str, Sequence[int]], steps: int, seed: int, random: bool
) -> tuple[Feature, ...]:
    """The pictures of the units in both networks.

    Raises:
        UnknownLayer: a layer is in neither network.
        UntrainedWeights: a network is untrained, and `random` is not given.
    """
    found = []
    for layer, channels in wanted.items():
        canvas: Any = "auto"
        sides: list[_Side] = []
        missing: list[UnknownLayer] = []
        for subject in (a, b):
            try:
                side = _side(subject, layer, channels, canvas, steps, seed, random)
            except UnknownLayer as error:
                missing.append(error)
                side = {}
            if side:  # the same canvas for both, though their fields differ
                canvas = tuple(next(iter(side.values()))[0].shape[-2:])
            sides.append(side)
        if len(missing) == 2:
            raise missing[0]
        for channel in dict.fromkeys(channels):
            both = [side.get(channel, (None, None, "no such layer")) for side in sides]
            found.append(
                Feature(
                    layer, channel, both[0][0], both[1][0], (both[0][1], both[1][1]), (both[0][2], both[1][2])
                )
            )
    return tuple(found)


def draw_telling(
    a: Subject,
    b: Subject,
    found: Found,
    tolerance: float,
    steps: int,
    seed: int,
    random: bool,
    notes: list[str],
) -> tuple[Feature, ...]:
    """The pictures of the units where the change tells most; what keeps them from being drawn is noted."""
    wanted = telling(found, tolerance)
    if not wanted:
        notes.append("no pictures: no layer of the same name gives maps of the same shape in both")
        return ()
    try:
        return draw(a, b, wanted, steps, seed, random)
    except UntrainedWeights as error:
        notes.append(f"no pictures: {error}")
        return ()


def _side(
    subject: Subject, layer: str, channels: Sequence[int], canvas: Any, steps: int, seed: int, random: bool
) -> _Side:
    key = (layer, tuple(channels), canvas, steps, seed)
    if key not in subject.drawn:
        shown = visualize(
            subject.net,
            layer,
            channels,
            size=canvas,
            steps=steps,
            seed=seed,
            random=random,
            graph=subject.graph,
        )
        if shown.interrupted:
            raise KeyboardInterrupt
        subject.drawn[key] = {
            unit.channel: (image, unit.activation, unit.status)
            for unit, image in zip(shown.units, shown.images, strict=True)
        }
    return subject.drawn[key]
