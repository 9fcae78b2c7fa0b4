"""Effective receptive fields: which pixels a feature really depends on, within those that it can see.

Luo, Li, Urtasun and Zemel, "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks" (2016):
the gradient of one position's features in the input is near a Gaussian, much narrower than the theoretical field.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from convscope.errors import ModelError, RequestError
from convscope.graph import Graph
from convscope.graph.rules import follow
from convscope.measures.border_change import nearest_field
from convscope.measures.feeding import Data, Place, Subject, feed, place, reading, subject
from convscope.measures.receptive_field import Box, Example, ReceptiveField, field_of
from convscope.models import Net, preserved

if TYPE_CHECKING:
    from rich.table import Table

_THRESHOLD = 1 - 0.9545  # of the largest value: Luo's bound, 2 sigma of a Gaussian
_OUTSIDE = 1e-5  # share of the gradient that rounding may put outside the theoretical field


@dataclass(frozen=True, eq=False)
class EffectiveField:
    """The pixels that a position's features depend on, measured by gradients.

    Attributes:
        layer: the layer.
        position: of the features, one index an axis.
        field: the theoretical receptive field.
        map: Tensor [height, width] of float64 (one axis for signals), summing to 1: the share of the gradient on each
            pixel of `box`.
        box: (start, stop) of each axis: the theoretical field, cut at the image's borders.
        centre: mean position of the gradient in the image, one number an axis.
        sigma: its standard deviation along each axis, in pixels.
        fit: sigma of the Gaussian fitted by least squares to the sums along each axis, which far tails do not widen;
            NaN where none fits.
        fit_quality: share of the variance of those sums that the Gaussian explains (R^2), the lowest of the axes.
        extent: side of the square (the line, the cube) of as many pixels as have more than 4.55 % of the largest
            gradient: the effective field's size by Luo et al.
        ratio: extent over the side of the theoretical field.
        local_share: share of the gradient within the field through local paths, where another path sees the whole
            image; else None.
        kind: "absolute" or "squared": what of the gradient was averaged.
        data: what was fed.
        samples: number of gradients averaged.
    """

    layer: str
    position: tuple[int, ...]
    field: ReceptiveField
    map: Tensor
    box: Box
    centre: tuple[float, ...]
    sigma: tuple[float, ...]
    fit: tuple[float, ...]
    fit_quality: float
    extent: float
    ratio: float
    local_share: float | None
    kind: str
    data: str
    samples: int

    @property
    def image(self) -> Tensor:
        """The map laid into the whole image, 0 outside the theoretical field: Tensor [height, width]."""
        whole = torch.zeros(self.field.image, dtype=self.map.dtype)
        whole[tuple(slice(start, stop) for start, stop in self.box)] = self.map
        return whole

    def to_dict(self, *, maps: bool = False) -> dict[str, Any]:
        """Plain values; `maps` adds the map as nested lists."""
        found: dict[str, Any] = {
            "layer": self.layer,
            "position": list(self.position),
            "field": self.field.to_dict(),
            "box": [list(pair) for pair in self.box],
            "centre": list(self.centre),
            "sigma": list(self.sigma),
            "fit": [None if math.isnan(value) else value for value in self.fit],
            "fit_quality": None if math.isnan(self.fit_quality) else self.fit_quality,
            "extent": self.extent,
            "ratio": self.ratio,
            "local_share": self.local_share,
            "kind": self.kind,
            "data": self.data,
            "samples": self.samples,
        }
        if maps:
            found["map"] = self.map.tolist()
        return found

    def __rich__(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        where = ", ".join(map(str, self.position))
        table = Table(
            title=Text(
                f"effective receptive field of {self.layer} at ({where}), {self.samples} gradients on {self.data}"
            ),
            title_justify="left",
            show_header=False,
        )
        table.add_column(style="bold")
        table.add_column()
        theory = " x ".join(map(str, self.field.size)) + (
            " (the whole image)" if self.field.is_global else ""
        )
        table.add_row("theoretical", f"{theory} pixels")
        table.add_row("effective", f"{self.extent:.1f} pixels a side, {self.ratio:.1%} of it")
        table.add_row("sigma", " x ".join(f"{value:.2f}" for value in self.sigma))
        table.add_row(
            "Gaussian fitted",
            " x ".join(f"{value:.2f}" for value in self.fit) + f", R² {self.fit_quality:.3f}",
        )
        if self.local_share is not None:
            table.add_row("through local paths' field", f"{self.local_share:.1%} of the gradient")
        return table


def effective_receptive_field(
    net: Net | nn.Module,
    layer: str,
    data: Data = None,
    *,
    channels: int | Sequence[int] | None = None,
    position: int | Sequence[int] | None = None,
    samples: int = 16,
    kind: Literal["absolute", "squared"] = "absolute",
    input: Example | None = None,
    seed: int = 0,
    graph: Graph | None = None,
) -> EffectiveField:
    """The measured receptive field of one position of a layer: where in the picture its gradient lies.

    A random gradient of +1 and -1 is given to the channels of that position, and led back to the input; its magnitude is
    averaged over pictures.

    Args:
        net: the network.
        layer: a dotted module name; `name#k` is its k-th call, the last by default.
        data: pictures, as `border_effect` takes them: the embedded photographs by default. Where there are fewer than
            `samples`, they come again with other random gradients.
        channels: of the layer; all by default.
        position: one index an axis, or one for all axes; the middle by default.
        samples: number of gradients to average.
        kind: "absolute" averages magnitudes, "squared" their squares (for a Gaussian, narrower by the root of 2).
        input: what to feed a plain module, or instead of the Net's own specification: an `InputSpec` or an example
            with its batch axis. Text has its gradient in what it is embedded in.
        seed: of the random gradients.
        graph: a recording of the same network, which saves running it again.

    Raises:
        UnknownLayer: there is no such layer, or it did not run.
        RequestError: an argument is out of its range, the layer gives no map of positions, or no gradient reaches the
            input.
        BadInput: no picture can be read, or data does not fit the network.
        ModelError: there is a gradient outside the theoretical field, which must not be.

    Example:
        >>> from convscope.models import InputSpec
        >>> net = nn.Sequential(*(nn.Conv2d(1, 1, 3, padding=1, bias=False) for _ in range(4)))
        >>> for conv in net:
        ...     _ = nn.init.constant_(conv.weight, 1 / 9)
        >>> found = effective_receptive_field(net, "3", input=InputSpec((1, 21, 21)), samples=1)
        >>> found.field.size, [round(value, 4) for value in found.sigma]  # 4 uniform kernels: root of 4 (9 - 1) / 12
        ((9, 9), [1.633, 1.633])
    """
    if kind not in ("absolute", "squared"):
        raise RequestError(f"kind={kind!r} must be 'absolute' or 'squared'")
    told = subject(net, input, graph)
    item = place(told.graph, layer)
    trace = follow(told.graph)[item.call.outputs[0]]
    if not trace.depends:
        raise RequestError(f"layer {layer!r} does not depend on the input; choose another")
    field = field_of(trace)
    where = _position(item, position)
    chosen = _channels(item, channels)
    source, total, count = _gradients(told, item, where, chosen, data, samples, kind, seed)
    mass = float(total.sum())
    if not mass > 0 or not math.isfinite(mass):
        what = "no gradient" if mass == 0 else "no finite gradient"
        raise RequestError(
            f"{what} of layer {layer!r} at {where} reaches the input; choose another position or layer, or other data"
        )
    share = total / mass
    box = _box(field, where, field.image)
    inside = share[tuple(slice(start, stop) for start, stop in box)]
    if float(inside.sum()) < 1 - _OUTSIDE:
        raise ModelError(
            f"layer {layer!r} has {1 - float(inside.sum()):.1e} of its gradient at {where} outside its receptive field "
            f"{box}, which must not be: please report this network"
        )
    local = nearest_field(field)
    local_share = None
    if any(field.whole) and local is not None:
        near = _box(local, where, field.image)
        local_share = float(share[tuple(slice(start, stop) for start, stop in near)].sum())
    inside = inside / inside.sum()
    centre, sigma, fit, quality = _widths(inside, box)
    over = int((inside > _THRESHOLD * inside.max()).sum())
    extent = over ** (1 / inside.ndim)
    theory = math.prod(field.size) ** (1 / len(field.size))
    return EffectiveField(
        layer, where, field, inside, box, centre, sigma, fit, quality, extent, extent / theory, local_share, kind,
        source, count,
    )  # fmt: skip


def _position(item: Place, position: int | Sequence[int] | None) -> tuple[int, ...]:
    grid = item.layout.grid
    if position is None:
        return tuple(size // 2 for size in grid)
    where = (position,) * len(grid) if isinstance(position, int) else tuple(position)
    if len(where) != len(grid) or any(not 0 <= at < size for at, size in zip(where, grid, strict=False)):
        raise RequestError(
            f"position={position} is none of layer {item.key!r}, which has {' x '.join(map(str, grid))}; "
            f"count from 0"
        )
    return where


def _channels(item: Place, channels: int | Sequence[int] | None) -> list[int]:
    count = item.layout.channels
    if channels is None:
        return list(range(count))
    chosen = [channels] if isinstance(channels, int) else list(channels)
    wrong = [channel for channel in chosen if not 0 <= channel < count]
    if wrong or not chosen:
        raise RequestError(
            f"channels={channels} must be of the {count} channels of layer {item.key!r}, counted from 0"
        )
    return chosen


def _box(field: ReceptiveField, where: Sequence[int], image: Sequence[int]) -> Box:
    """The field of a position, cut at the image's borders."""
    full = field.box(where if len(where) == len(image) else (0,) * len(image))
    return tuple(
        (min(max(low, 0), size), max(min(high, size), 0))
        for (low, high), size in zip(full, image, strict=True)
    )


def _gradients(
    told: Subject,
    item: Place,
    where: tuple[int, ...],
    channels: list[int],
    data: Data,
    samples: int,
    kind: str,
    seed: int,
) -> tuple[str, Tensor, int]:
    """What was fed, the sum of gradient magnitudes Tensor [*size] of float64, and how many they are."""
    source, inputs = feed(told, data, told.size, samples, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    module = told.module()
    total = torch.zeros(tuple(told.size), dtype=torch.float64)
    count = 0
    kept: list[Tensor] = []

    def keep(_: Place, output: Tensor) -> None:
        features = item.layout.as_map(output)[0, channels]  # [channel, *place]
        for at in where:
            features = features[:, at]
        kept.append(features)

    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        preserved(module),
        reading(module, [item], keep) as run,
        _Leaf(told, module) as leaf,
    ):
        for fed in islice(cycle(inputs), samples):
            run(leaf.feed(fed.x), *told.rest)
            features = kept.pop()
            signs = torch.randint(0, 2, (len(channels),), generator=generator) * 2 - 1
            if not features.requires_grad:
                raise RequestError(
                    f"no gradient of layer {item.key!r} reaches the input: an operation on the way has none; choose an "
                    f"earlier layer"
                )
            (gradient,) = torch.autograd.grad(
                (features * signs.to(features.dtype)).sum(), leaf.tensor, allow_unused=True
            )
            if gradient is not None:
                gradient = gradient.double().movedim(leaf.channel_axis, 1)
                power = gradient.abs() if kind == "absolute" else gradient.square()
                total += power.sum((0, 1))
            count += 1
    return source, total, count


class _Leaf:
    """The tensor that gradients are led back to: the input, or what whole numbers are first embedded in."""

    def __init__(self, told: Subject, module: nn.Module) -> None:
        self.tensor = torch.zeros(0)
        self.channel_axis = 1
        self._handle: Any = None
        self._embedding: nn.Module | None = None
        graph = told.graph
        if graph.values[graph.inputs[0]].dtype.is_floating_point:
            return
        names = [
            op.module
            for op in graph.ops
            if op.name == "aten.embedding" and op.tensors.get("indices") == graph.inputs[0]
        ]
        if len(names) != 1:
            raise RequestError(
                "input holds whole numbers, which have no gradient, and they are not embedded by one layer; ask "
                "receptive_field for what the layer can see"
            )
        self._embedding = dict(module.named_modules())[names[0]]
        self.channel_axis = -1

    def __enter__(self) -> _Leaf:
        def hook(_: nn.Module, args: Any, output: Tensor) -> Tensor:
            self.tensor = output.detach().requires_grad_()
            return self.tensor.clone()

        if self._embedding is not None:
            self._handle = self._embedding.register_forward_hook(hook)
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            self._handle.remove()

    def feed(self, x: Tensor) -> Tensor:
        if self._embedding is not None:
            return x
        self.tensor = x.detach().clone().requires_grad_()
        return self.tensor.clone()  # the network may write to its input


# -- widths --------------------------------------------------------------------------------------------------


def _widths(share: Tensor, box: Box) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...], float]:
    """Centre, standard deviation and fitted sigma along each axis, and the fit's lowest R^2."""
    centres, sigmas, fits, qualities = [], [], [], []
    for axis, (start, _) in enumerate(box):
        others = [other for other in range(share.ndim) if other != axis]
        line = share.sum(others) if others else share  # [pixel]
        at = torch.arange(len(line), dtype=torch.float64) + start
        centre = float((line * at).sum())
        sigma = math.sqrt(float((line * (at - centre).square()).sum()))
        fit, quality = gaussian_fit(at, line, centre, sigma)
        centres.append(centre)
        sigmas.append(sigma)
        fits.append(fit)
        qualities.append(quality)
    return tuple(centres), tuple(sigmas), tuple(fits), min(qualities)


def gaussian_fit(at: Tensor, line: Tensor, centre: float, sigma: float) -> tuple[float, float]:
    """Sigma and R^2 of the Gaussian nearest to a line of values, by least squares; NaN where none can be fitted.

    Example:
        >>> at = torch.arange(41, dtype=torch.float64)
        >>> line = 3 * torch.exp(-((at - 19) ** 2) / (2 * 2.5**2))
        >>> [round(value, 6) for value in gaussian_fit(at, line, 21.0, 4.0)]
        [2.5, 1.0]
    """
    if len(line) < 4 or sigma == 0:
        return math.nan, math.nan
    y = line / line.max()
    guess = torch.tensor([1.0, centre, math.log(sigma)], dtype=torch.float64)
    damping = 1e-3
    left = float((y - _bell(at, guess)).square().sum())
    for _ in range(100):  # Levenberg and Marquardt; sigma as its logarithm stays positive
        bell = _bell(at, guess)
        z = (at - guess[1]) / guess[2].exp()
        slopes = torch.stack([bell / guess[0], bell * z / guess[2].exp(), bell * z.square()], 1)  # [pixel, 3]
        normal = slopes.T @ slopes
        normal += damping * torch.diag(normal.diagonal() + 1e-12)
        step = torch.linalg.solve(normal, slopes.T @ (y - bell))
        trial = guess + step.clamp(-len(line), len(line))
        then = float((y - _bell(at, trial)).square().sum())
        if then < left:
            guess, left, damping = trial, then, damping / 4
        else:
            damping *= 4
        if float(step.abs().max()) < 1e-9 or damping > 1e12:
            break
    spread = float((y - y.mean()).square().sum())
    if spread == 0:
        return math.nan, math.nan
    return float(guess[2].exp()), 1 - left / spread


def _bell(at: Tensor, values: Tensor) -> Tensor:
    """A Gaussian of (height, centre, log sigma) at these places."""
    return values[0] * torch.exp(-((at - values[1]) / values[2].exp()).square() / 2)
