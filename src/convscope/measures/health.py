"""Health of feature maps: channels that are dead, how the others spread, how many dimensions they really use.

One streaming pass over the pictures: each layer's output is reduced, in float64, at the moment it is made, and
none is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convscope.errors import RequestError
from convscope.graph import Call, Graph, Layout, Op, layout
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

_RANGE = 1e-6  # of the layer's largest value: a channel that varies by less is constant
_NEAR = 0.01  # of an activation's range: so near to its bound is saturated
_CHUNK = 2**20  # values reduced at a time
_COVARIANCES = 2**30  # bytes of covariance matrices at most
_POSITIONS = 256  # of a map at most that its covariance is taken from
_ENOUGH = 16  # positions a channel, over all images
_FEW = 64  # positions of a map that are always taken

# Operators after which a value above zero means "on".
_RECTIFIERS = {
    *("relu", "leaky_relu", "prelu", "_prelu_kernel", "rrelu_with_noise", "threshold"),
    *("elu", "celu", "selu", "gelu", "silu", "mish", "hardswish"),
}
_BOUNDED = {"sigmoid": (0.0, 1.0), "hardsigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0)}


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
            address: _Gathered(
                layout(ready.graph, address),
                _maker(ready.graph, call),
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
    rows = {a: gathered[a].row(a, call.kind) for a, call in calls.items() if a not in unseen}
    notes = list(ready.notes)
    if len(ranked) < len(calls):
        notes.append(
            f"{len(calls) - len(ranked)} wide layers have no effective rank, since their covariances would take "
            "over 1 GiB; name them with layers= to have it"
        )
    return Health(ready.name, ready.source, images, rows, skipped | unseen, tuple(notes))


def effective_rank(singular_values: Sequence[float] | np.ndarray | Tensor) -> float:
    """exp of the entropy of singular values divided by their sum (Roy and Vetterli, "The effective rank", 2007).

    Example:
        >>> effective_rank([2.0, 2.0, 0.0]), effective_rank([0.0, 0.0])
        (2.0, 0.0)
    """
    values = np.abs(np.asarray(singular_values, dtype=np.float64))
    total = values.sum()
    if not total > 0:
        return 0.0
    p = values[values > 0] / total
    return float(np.exp(-(p * np.log(p)).sum()))


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


def _maker(graph: Graph, call: Call) -> Op | None:
    """The operation that made a call's output."""
    return next((op for op in reversed(graph.ops) if call.outputs[0] in op.outputs), None)


@dataclass(frozen=True)
class _Function:
    """What is known of the function that made an output: whether it rectifies, and where it saturates."""

    rectifies: bool = False
    below: float = -math.inf  # saturated where at most so much
    above: float = math.inf  # or at least so much

    @property
    def saturates(self) -> bool:
        return math.isfinite(self.below) or math.isfinite(self.above)

    @classmethod
    def of(cls, op: Op | None) -> _Function:
        if op is None:
            return cls()
        name = op.name.removeprefix("aten.").removesuffix("_")
        if name in _BOUNDED:
            bottom, top = _BOUNDED[name]
            slack = _NEAR * (top - bottom)
            return cls(False, bottom + slack, top - slack)
        if name in ("hardtanh", "clamp", "clamp_min", "relu6"):
            low, high = (_number(op, keys) for keys in (("min_val", "min"), ("max_val", "max")))
            below = low if low is not None and low != 0 else -math.inf
            return cls(low == 0, below, math.inf if high is None else high)
        return cls(name in _RECTIFIERS or op.name.removeprefix("aten.") in _RECTIFIERS)


def _number(op: Op, keys: Sequence[str]) -> float | None:
    found = next((op.attributes[key] for key in keys if key in op.attributes), None)
    return float(found) if isinstance(found, int | float) else None


# ---------------------------------------------------------------- gathering


class _Gathered:
    """What has been seen of one layer."""

    def __init__(self, found: Layout, maker: Op | None, images: int) -> None:
        """`images` to come; 0 for no covariance."""
        self.found = found
        self.function = _Function.of(maker)
        self.covariance = _Covariance(found.channels) if images else None
        wanted = max(_FEW, math.ceil(_ENOUGH * found.channels / max(images, 1)))
        self.positions = min(wanted, _POSITIONS)  # of a map, for the covariance
        channels = found.channels
        self.count, self.mean, self.m2, self.zeros, self.saturated = (
            torch.zeros(channels, dtype=torch.float64) for _ in range(5)
        )
        self.low = torch.full((channels,), math.inf, dtype=torch.float64)
        self.high = torch.full((channels,), -math.inf, dtype=torch.float64)
        self.nonfinite = 0
        self.started = False

    def add(self, output: Tensor) -> None:
        """A batch of the layer's output."""
        self.started = True
        maps = self.found.as_map(output).flatten(2)  # [image, channel, position]
        step = max(1, _CHUNK // max(maps[0].numel(), 1))
        for start in range(0, len(maps), step):
            self._add(maps[start : start + step].double())

    def _add(self, maps: Tensor) -> None:
        """maps: Tensor [image, channel, position] in float64."""
        axes = (0, 2)
        whole = bool(maps.sum().isfinite())
        if whole:
            count = torch.full((maps.shape[1],), float(maps[:, 0].numel()), dtype=torch.float64)
            variance, mean = torch.var_mean(maps, axes, correction=0)
            m2, low, high = variance.cpu() * count, maps.amin(axes), maps.amax(axes)
        else:
            finite = maps.isfinite()
            self.nonfinite += int((~finite).sum())
            count = finite.sum(axes).double().cpu()
            seen = torch.where(finite, maps, torch.nan)
            mean = seen.nanmean(axes).nan_to_num(0.0)
            m2 = (seen - mean[:, None]).square().nansum(axes).cpu()
            low = torch.where(finite, maps, math.inf).amin(axes)
            high = torch.where(finite, maps, -math.inf).amax(axes)
        self._merge(count, mean.cpu(), m2)
        self.low, self.high = self.low.minimum(low.cpu()), self.high.maximum(high.cpu())
        self.zeros += (maps == 0).sum(axes).cpu()
        if self.function.saturates:
            bound = (maps <= self.function.below) | (maps >= self.function.above)
            self.saturated += (bound & maps.isfinite()).sum(axes).cpu()
        if self.covariance is not None:
            places = maps.shape[2]
            if places > self.positions:
                maps = maps[:, :, torch.arange(self.positions, device=maps.device) * places // self.positions]
            rows = maps.transpose(1, 2).flatten(0, 1)  # [position, channel]
            self.covariance.add(rows if whole else rows[rows.isfinite().all(1)])

    def _merge(self, count: Tensor, mean: Tensor, m2: Tensor) -> None:
        """Means and squared deviations of two parts become those of both (Chan, Golub and LeVeque, 1983)."""
        total = self.count + count
        safe = total.clamp_min(1)
        gap = mean - self.mean
        self.m2 += m2 + gap * gap * self.count * count / safe
        self.mean += gap * count / safe
        self.count = total

    def row(self, address: str, kind: str) -> LayerHealth:
        """The figures."""
        known = self.count > 0
        total = float(self.count.sum())
        mean = float((self.count * self.mean).sum() / total) if total else math.nan
        m2 = float((self.m2 + self.count * (self.mean - mean) ** 2)[known].sum())
        largest = float(torch.maximum(self.low.abs(), self.high.abs())[known].max()) if total else 0.0
        still = self.high - self.low <= _RANGE * largest
        if self.function.rectifies:
            still |= self.high <= 0
        rank, limit = (None, self.found.channels) if self.covariance is None else self.covariance.rank()
        unknown = torch.where(known, 0.0, math.nan)
        return LayerHealth(
            layer=address,
            kind=kind,
            channels=self.found.channels,
            values=int(self.count.max()),
            dead=tuple((still & known).nonzero()[:, 0].tolist()),
            rule="constant or never above 0" if self.function.rectifies else "constant",
            mean=mean,
            std=math.sqrt(m2 / total) if total else math.nan,
            channel_mean=self.mean + unknown,
            channel_std=(self.m2 / self.count.clamp_min(1)).sqrt() + unknown,
            channel_min=self.low + unknown,
            channel_max=self.high + unknown,
            sparsity=float(self.zeros.sum()) / total if total else math.nan,
            saturated=float(self.saturated.sum()) / total if self.function.saturates and total else None,
            effective_rank=rank,
            rank_limit=limit,
            nonfinite=self.nonfinite,
        )


class _Covariance:
    """The covariance of a layer's channels, over positions as they come."""

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.count = 0
        self.origin = self.sum = self.products = torch.empty(0)  # made on the device of the first rows

    def add(self, rows: Tensor) -> None:
        """rows: Tensor [position, channel] in float64."""
        if not len(rows):
            return
        if not self.count:
            self.origin = rows.mean(0)  # near the mean, so that little is lost by cancelling
            self.sum, self.products = rows.new_zeros(self.channels), rows.new_zeros((self.channels,) * 2)
        rows = rows - self.origin
        self.count += len(rows)
        self.sum += rows.sum(0)
        self.products.addmm_(rows.T, rows)

    def rank(self) -> tuple[float, int]:
        """The effective rank, and the most it could be."""
        if not self.count:
            return 0.0, 0
        mean = self.sum / self.count
        covariance = self.products / self.count - torch.outer(mean, mean)
        eigenvalues = torch.linalg.eigvalsh(covariance.cpu()).clamp_min(0)
        # What rounding leaves of a dimension that is not there is no dimension.
        noise = eigenvalues.max() * self.channels * torch.finfo(torch.float64).eps
        kept = torch.where(eigenvalues > noise, eigenvalues, 0.0)
        return effective_rank(kept.sqrt().numpy()), min(self.channels, self.count - 1)
