"""Channels in a stream: their moments, extremes, zeros and covariance, batch by batch, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from convscope.graph import Call, Graph, Layout, Op

_RANGE = 1e-6  # of the layer's largest value: a channel that varies by less is constant
_NEAR = 0.01  # of an activation's range: so near to its bound is saturated
_CHUNK = 2**20  # values reduced at a time
_POSITIONS = 256  # of a map at most that its covariance is taken from
_ENOUGH = 16  # positions a channel, over all images
_FEW = 64  # positions of a map that are always taken
_WAITING = 512  # positions that may wait to be multiplied

# Operators after which a value above zero means "on".
_RECTIFIERS = {
    *("relu", "leaky_relu", "prelu", "_prelu_kernel", "rrelu_with_noise", "threshold"),
    *("elu", "celu", "selu", "gelu", "silu", "mish", "hardswish"),
}
_BOUNDED = {"sigmoid": (0.0, 1.0), "hardsigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0)}


@dataclass(frozen=True)
class Function:
    """What is known of the function that made an output: whether it rectifies, and where it saturates."""

    rectifies: bool = False
    below: float = -math.inf  # saturated where at most so much
    above: float = math.inf  # or at least so much

    @property
    def saturates(self) -> bool:
        """Whether it has a bound."""
        return math.isfinite(self.below) or math.isfinite(self.above)

    @classmethod
    def of_call(cls, graph: Graph, call: Call) -> Function:
        """Told from the operation that made the call's output."""
        return cls.of(next((op for op in reversed(graph.ops) if call.outputs[0] in op.outputs), None))

    @classmethod
    def of(cls, op: Op | None) -> Function:
        """Told from an operation."""
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


class Channels:
    """What has been seen of one layer's channels."""

    def __init__(self, found: Layout, function: Function, images: int) -> None:
        """`images` to come; 0 for no covariance."""
        self.found = found
        self.function = function
        self.covariance = Covariance(found.channels) if images else None
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
            mean = maps.mean(axes)
            m2 = (maps - mean[:, None]).square_().sum(axes).cpu()
            low, high = maps.amin(axes), maps.amax(axes)
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

    @property
    def channels(self) -> int:
        """How many."""
        return self.found.channels

    def dead(self) -> tuple[int, ...]:
        """The channels that are constant, or after a rectifier never above 0."""
        known = self.count > 0
        if not bool(known.any()):
            return ()
        largest = float(torch.maximum(self.low.abs(), self.high.abs())[known].max())
        still = self.high - self.low <= _RANGE * largest
        if self.function.rectifies:
            still |= self.high <= 0
        return tuple((still & known).nonzero()[:, 0].tolist())


class Covariance:
    """The covariance of a layer's channels, over positions as they come.

    As long as there are fewer positions than channels they are kept themselves: the matrix of their inner
    products is then the smaller one, with the same eigenvalues.
    """

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.count = 0
        self.rows: list[Tensor] = []  # not yet in `products`
        self.waiting = 0  # how many rows that is
        self.origin = self.sum = torch.empty(0)  # made on the device of the first rows
        self.products: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """rows: Tensor [position, channel] in float64."""
        if not len(rows):
            return
        if not self.count:
            self.origin = rows.mean(0)  # near the mean, so that little is lost by cancelling
            self.sum = rows.new_zeros(self.channels)
        rows = rows - self.origin
        self.sum += rows.sum(0)
        self.count += len(rows)
        self.waiting += len(rows)
        self.rows.append(rows)
        if self.waiting > (self.channels if self.products is None else min(self.channels, _WAITING)):
            self._multiply()

    def _multiply(self) -> None:
        if self.products is None:
            self.products = self.sum.new_zeros((self.channels,) * 2)
        rows = torch.cat(self.rows)
        self.products.addmm_(rows.T, rows)
        self.rows, self.waiting = [], 0

    def rank(self) -> tuple[float, int]:
        """The effective rank, and the most it could be."""
        if not self.count:
            return 0.0, 0
        mean = self.sum / self.count
        if self.products is None:
            rows = torch.cat(self.rows) - mean
            square = rows @ rows.T
        else:
            if self.rows:
                self._multiply()
            square = self.products - self.count * torch.outer(mean, mean)
        eigenvalues = torch.linalg.eigvalsh(square.cpu()).clamp_min(0)
        # What rounding leaves of a dimension that is not there is no dimension.
        noise = eigenvalues.max() * self.channels * torch.finfo(torch.float64).eps
        kept = torch.where(eigenvalues > noise, eigenvalues, 0.0)
        return effective_rank(kept.sqrt().numpy()), min(self.channels, self.count - 1)


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
