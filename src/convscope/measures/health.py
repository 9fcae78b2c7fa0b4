"""Health of feature maps: channels that are dead, how the others spread, how many dimensions they really use.

One streaming pass over the pictures: each layer's output is reduced, in float64, at the moment it is made, and
none is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from convscope.errors import RequestError
from convscope.graph import Call, Graph, layout
from convscope.measures.channels import Channels, Function
from convscope.measures.figures import Sheet, to_html, to_rich, to_text
from convscope.measures.samples import (
    LIMIT,
    Data,
    Meter,
    Progress,
    find_calls,
    has_channels,
    quiet,
    subject,
    tapped,
)
from convscope.models import InputLike, Net

_COVARIANCES = 2**30  # bytes of covariance matrices at most


@dataclass(frozen=True, eq=False, repr=False)
class LayerHealth:
    """What a layer's channels do over all positions of all images. What is not a finite number counts nowhere.

    Attributes:
        layer: address of the call.
        kind: class name of the module.
        channels: how many.
        values: how many numbers of each channel were seen.
        dead: the channels that say nothing on these images, by `rule`.
        rule: "constant": a channel's largest less its smallest value is at most a millionth of the layer's
            largest magnitude; after a rectifier (ReLU, ReLU6, GELU, SiLU, ...) "constant or never above 0".
        mean, std: over all values of the layer; the standard deviation is that of the population.
        channel_mean, channel_std, channel_min, channel_max: Tensor [channel], float64.
        sparsity: share of values that are exactly 0.
        saturated: share of values at a bound of the activation function: at the upper bound of ReLU6 and
            other clipping (and the lower one, where it is not 0), within 1 % of the range of a sigmoid's,
            hard sigmoid's or tanh's bounds; None where there is no such function.
        effective_rank: exp of the entropy of the singular values, divided by their sum, of the matrix
            [position of an image, channel] less its mean (Roy and Vetterli, 2007): how many dimensions the
            channels use, from 1 to `rank_limit`; 0 where nothing varies; None where it was left out. Of a
            large map 64 to 256 evenly spread positions are taken, the more the wider the layer.
        rank_limit: the most it could be: the number of channels, or of positions less one.
        nonfinite: number of values that are NaN or infinite.
    """

    layer: str
    kind: str
    channels: int
    values: int
    dead: tuple[int, ...]
    rule: str
    mean: float
    std: float
    channel_mean: Tensor
    channel_std: Tensor
    channel_min: Tensor
    channel_max: Tensor
    sparsity: float
    saturated: float | None
    effective_rank: float | None
    rank_limit: int
    nonfinite: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values; None in place of what is not a finite number."""
        plain = {
            name: _listed(value) if isinstance(value, Tensor) else value for name, value in vars(self).items()
        }
        figures = {name: _finite(getattr(self, name)) for name in ("mean", "std", "sparsity")}
        return plain | figures | {"dead": list(self.dead)}

    def __repr__(self) -> str:
        return f"LayerHealth({self.layer!r}, {self.channels} channels, {len(self.dead)} dead)"


def _listed(values: Tensor) -> list[float | None]:
    return [_finite(value) for value in values.tolist()]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


@dataclass(frozen=True, eq=False, repr=False)
class Health:
    """The health of a network's feature maps on some images; prints as a table.

    Attributes:
        name: the network's.
        source: where the images come from.
        images: how many were used. A channel that is dead on few images may well live on others.
        layers: by address, in the order they ran.
        skipped: address -> why nothing is said of it.
        notes: what the reader should know.
    """

    name: str
    source: str
    images: int
    layers: Mapping[str, LayerHealth]
    skipped: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def dead(self) -> dict[str, tuple[int, ...]]:
        """The layers that have dead channels, and which."""
        return {name: row.dead for name, row in self.layers.items() if row.dead}

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.name,
            "source": self.source,
            "images": self.images,
            "layers": {name: row.to_dict() for name, row in self.layers.items()},
            "skipped": dict(self.skipped),
            "notes": list(self.notes),
        }

    def _sheets(self) -> list[Sheet]:
        columns = (
            "layer",
            "kind",
            "channels>",
            "dead>",
            "mean>",
            "std>",
            "zero>",
            "saturated>",
            "effective rank>",
        )
        rows = tuple(_cells(row) for row in self.layers.values())
        title = f"Health of {self.name} on {self.images} images of {self.source}"
        notes = (
            "dead: constant, or after a rectifier never above 0, on these images",
            *self.notes,
            *(
                [f"{len(self.skipped)} layers have no channels: {', '.join(self.skipped)}"]
                if self.skipped
                else []
            ),
        )
        return [Sheet(title, columns, rows, notes)]

    def __rich__(self) -> Any:
        return to_rich(self._sheets())

    def __str__(self) -> str:
        return to_text(self._sheets())

    def _repr_html_(self) -> str:
        return to_html(self._sheets())


def _cells(row: LayerHealth) -> tuple[str, ...]:
    rank = "" if row.effective_rank is None else f"{row.effective_rank:.1f} of {row.rank_limit}"
    return (
        row.layer,
        row.kind,
        str(row.channels),
        str(len(row.dead)) if row.dead else "",
        f"{row.mean:.3g}",
        f"{row.std:.3g}",
        f"{100 * row.sparsity:.0f} %",
        "" if row.saturated is None else f"{100 * row.saturated:.1f} %",
        rank + (f" ({row.nonfinite} values not finite)" if row.nonfinite else ""),
    )


def health(
    net: Net | nn.Module,
    data: Data = None,
    *,
    input: InputLike | None = None,
    layers: str | Sequence[str] | None = None,
    limit: int | None = LIMIT,
    batch: int = 8,
    progress: Progress | None = None,
) -> Health:
    """Looks at every layer's channels on given images: which are dead, how they spread, how many they really are.

    The images are fitted to the input as for an evaluation (the centre 224 of 256 pixels).

    Args:
        net: the network.
        data: an image file, a folder, `Images`, or None for the embedded photographs; or a tensor
            [sample, channel, *positions] of what the network takes, already normalized ([sample, length] of
            whole numbers for tokens).
        input: what to feed a plain module.
        layers: names and globs; None for every module without submodules whose output has channels, each output
            once: dropout, which hands on what it was given, is no layer then.
        limit: at most this many images, evenly spread.
        batch: images a forward pass.
        progress: called with {"done", "total", "rate", "seconds_left", "layer"}.

    Raises:
        UnknownLayer: no such layer.
        RequestError: a named layer has no channels.
        BadInput: network and data do not fit.
        ModelError: the network fails.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
        >>> with torch.no_grad():
        ...     _ = net[0].weight[2].zero_(), net[0].bias.fill_(-9.0)
        >>> found = health(net, input="3x32x32", limit=2)
        >>> found.layers["0"].dead, found.layers["1"].dead, found.layers["1"].sparsity
        ((2,), (0, 1, 2, 3), 1.0)
    """
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise RequestError(f"batch={batch!r} must be a whole number from 1 on")
    with quiet():
        ready = subject(net, data, input=input, limit=limit)
        calls, skipped = _chosen(ready.graph, layers)
        ranked = _affordable(ready.graph, calls)
        gathered = {
            address: Channels(
                layout(ready.graph, address),
                Function.of_call(ready.graph, call),
                ready.count if address in ranked else 0,
            )
            for address, call in calls.items()
        }
        meter, images = Meter(ready.count, progress), 0
        with tapped(ready.module, calls, lambda address, output: gathered[address].add(output)):
            for view in ready.views(batch):
                ready.run(view.centre)
                images += len(view.names)
                meter.finished(len(view.names), "")
    unseen = {address: "it did not run on the data" for address, part in gathered.items() if not part.started}
    rows = {a: _row(a, call.kind, gathered[a]) for a, call in calls.items() if a not in unseen}
    notes = list(ready.notes)
    if len(ranked) < len(calls):
        notes.append(
            f"{len(calls) - len(ranked)} wide layers have no effective rank, since their covariances would take "
            "over 1 GiB; name them with layers= to have it"
        )
    return Health(ready.name, ready.source, images, rows, skipped | unseen, tuple(notes))


# ---------------------------------------------------------------- which layers


def _chosen(graph: Graph, layers: str | Sequence[str] | None) -> tuple[dict[str, Call], dict[str, str]]:
    if layers is not None:
        calls = find_calls(graph, layers)
        for address, call in calls.items():
            if not has_channels(graph, call):
                raise RequestError(f"layer {address!r} has no axis of channels; name another")
        if not calls:
            raise RequestError(f"layers={layers!r} names no layer; leave it out for all")
        return dict(sorted(calls.items(), key=lambda item: item[1].order)), {}
    chosen: dict[str, Call] = {}
    skipped: dict[str, str] = {}
    seen: set[int] = set(graph.inputs)
    for call in graph.calls:
        if not call.is_leaf or not call.name or not call.outputs or call.outputs[0] in seen:
            continue
        seen.add(call.outputs[0])
        address = graph.address(call)
        if has_channels(graph, call):
            chosen[address] = call
        else:
            skipped[address] = f"its output of shape {list(call.out_shapes[0])} has no axis of channels"
    if not chosen:
        raise RequestError("no module of the network gives channels; name the layers to look at")
    return chosen, skipped


def _affordable(graph: Graph, calls: Mapping[str, Call]) -> set[str]:
    """The layers whose covariance is kept: narrow ones first."""
    kept, total = set(), 0
    width = {address: layout(graph, address).channels for address in calls}
    for address in sorted(calls, key=lambda a: (width[a], calls[a].order)):
        total += 8 * width[address] ** 2
        if total > _COVARIANCES:
            break
        kept.add(address)
    return kept


def _row(address: str, kind: str, seen: Channels) -> LayerHealth:
    known = seen.count > 0
    total = float(seen.count.sum())
    mean = float((seen.count * seen.mean).sum() / total) if total else math.nan
    m2 = float((seen.m2 + seen.count * (seen.mean - mean) ** 2)[known].sum())
    rectifies, saturates = seen.function.rectifies, seen.function.saturates
    rank, limit = (None, seen.channels) if seen.covariance is None else seen.covariance.rank()
    unknown = torch.where(known, 0.0, math.nan)
    return LayerHealth(
        layer=address,
        kind=kind,
        channels=seen.channels,
        values=int(seen.count.max()),
        dead=seen.dead(),
        rule="constant or never above 0" if rectifies else "constant",
        mean=mean,
        std=math.sqrt(m2 / total) if total else math.nan,
        channel_mean=seen.mean + unknown,
        channel_std=(seen.m2 / seen.count.clamp_min(1)).sqrt() + unknown,
        channel_min=seen.low + unknown,
        channel_max=seen.high + unknown,
        sparsity=float(seen.zeros.sum()) / total if total else math.nan,
        saturated=float(seen.saturated.sum()) / total if saturates and total else None,
        effective_rank=rank,
        rank_limit=limit,
        nonfinite=seen.nonfinite,
    )
