"""What a picture should excite: objectives as small values that compose with `+`, `-` and `*`.

An objective turns the activations of a batch into one number a sample; every sample is a picture of its own, and
no sample sees another one (except under `Diversity`, whose purpose is to compare the pictures of one unit).
Activations arrive as [batch, channel, *position], whatever the layout inside the network.

    Channel("blocks.3.2", 17) + 0.5 * Channel("blocks.4.1", 3) - 2.0 * TotalVariation()

After Olah, Mordvintsev and Schubert, "Feature Visualization" (Distill, 2017), and lucid's objectives.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from convscope.errors import RequestError

# One value for all samples or, after `stack`, one a sample.
PerSample: TypeAlias = int | float | tuple[Any, ...]


@dataclass(frozen=True)
class Activations:
    """What an objective may read: one batch of pictures and what they excite.

    Attributes:
        layers: layer key -> Tensor [batch, channel, *position].
        image: Tensor [batch, channel, height, width] in [0, 1], before transforms.
        groups: Tensor [batch] of integers; pictures with the same number are of the same unit.
    """

    layers: Mapping[str, Tensor]
    image: Tensor
    groups: Tensor

    def __getitem__(self, layer: str) -> Tensor:
        return self.layers[layer]

    def rows(self, rows: list[int]) -> Activations:
        """The same for a part of the batch."""
        layers = {name: value[rows] for name, value in self.layers.items()}
        return Activations(layers, self.image[rows], self.groups[rows])


@dataclass(frozen=True)
class Objective:
    """Base of all objectives. Subclasses give `layers` and `__call__`."""

    # Fields that may differ from sample to sample, so that one evaluation serves a whole batch.
    per_sample: ClassVar[tuple[str, ...]] = ()

    @property
    def layers(self) -> tuple[str, ...]:
        """The layer keys it reads."""
        own = getattr(self, "layer", None)
        return () if own is None else (own,)

    def __call__(self, activations: Activations) -> Tensor:
        """One number a sample, to be made large: Tensor [batch]."""
        raise NotImplementedError

    def __add__(self, other: Objective | float) -> Objective:
        return Sum((self, as_objective(other)))

    __radd__ = __add__

    def __sub__(self, other: Objective | float) -> Objective:
        return self + (-1.0) * as_objective(other)

    def __rsub__(self, other: Objective | float) -> Objective:
        return as_objective(other) + (-1.0) * self

    def __neg__(self) -> Objective:
        return -1.0 * self

    def __mul__(self, factor: Objective | float) -> Objective:
        if isinstance(factor, Objective):
            return Product((self, factor))
        return Scaled(self, _finite("factor", factor))

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Objective:
        if _finite("divisor", divisor) == 0:
            raise RequestError("divisor=0 must not be zero; give another number")
        return self * (1.0 / divisor)


@dataclass(frozen=True)
class Constant(Objective):
    """A number."""

    value: float

    def __call__(self, activations: Activations) -> Tensor:
        return activations.image.new_full((len(activations.image),), self.value)


@dataclass(frozen=True)
class _Several(Objective):
    """Base of objectives made of several; it reads what they read."""

    terms: tuple[Objective, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(layer for term in self.terms for layer in term.layers))


@dataclass(frozen=True)
class Sum(_Several):
    """The sum of objectives."""

    def __call__(self, activations: Activations) -> Tensor:
        return torch.stack([term(activations) for term in self.terms]).sum(0)


@dataclass(frozen=True)
class Product(_Several):
    """The product of objectives."""

    def __call__(self, activations: Activations) -> Tensor:
        return torch.stack([term(activations) for term in self.terms]).prod(0)


@dataclass(frozen=True)
class Scaled(Objective):
    """An objective times a number."""

    term: Objective
    factor: PerSample

    per_sample: ClassVar[tuple[str, ...]] = ("factor",)

    @property
    def layers(self) -> tuple[str, ...]:
        return self.term.layers

    def __call__(self, activations: Activations) -> Tensor:
        value = self.term(activations)
        return value * _numbers(self.factor, value)


@dataclass(frozen=True)
class Channel(Objective):
    """The mean of one channel over all positions: the default for feature maps.

    Args:
        layer: layer key: a dotted module name, with `#k` for its k-th call, `:pre` or `:post` for before or after
            its activation function.
        channel: index of the channel.
    """

    layer: str
    channel: PerSample

    per_sample: ClassVar[tuple[str, ...]] = ("channel",)

    def __call__(self, activations: Activations) -> Tensor:
        return positions(_pick(activations[self.layer], self.channel, self.layer)).mean(1)


@dataclass(frozen=True)
class Neuron(Objective):
    """One channel at one position: (row, column), or the centre when none is given."""

    layer: str
    channel: PerSample
    position: tuple[int, ...] | None = None

    per_sample: ClassVar[tuple[str, ...]] = ("channel",)

    def __call__(self, activations: Activations) -> Tensor:
        value = _pick(activations[self.layer], self.channel, self.layer)  # [batch, *position]
        place = self.position if self.position is not None else tuple(n // 2 for n in value.shape[1:])
        if len(place) != value.ndim - 1 or any(
            not 0 <= p < n for p, n in zip(place, value.shape[1:], strict=False)
        ):
            raise RequestError(
                f"position={place} is outside layer {self.layer!r}, whose map is {tuple(value.shape[1:])} at this canvas "
                "size; give a position inside it"
            )
        for index in place:  # drops one axis after the batch at a time
            value = value[:, index]
        return value.float()


@dataclass(frozen=True)
class Logit(Objective):
    """The score of a class in a layer of class scores, before softmax."""

    layer: str
    channel: PerSample

    per_sample: ClassVar[tuple[str, ...]] = ("channel",)

    def __call__(self, activations: Activations) -> Tensor:
        return positions(_pick(activations[self.layer], self.channel, self.layer)).mean(1)


@dataclass(frozen=True)
class Layer(Objective):
    """The whole layer at once, mean of squares: DeepDream (Mordvintsev, Olah and Tyka, 2015)."""

    layer: str

    def __call__(self, activations: Activations) -> Tensor:
        return activations[self.layer].float().square().flatten(1).mean(1)


@dataclass(frozen=True)
class Direction(Objective):
    """A direction in channel space: dot product x cosine similarity ^ power, mean over positions.

    With power 0 only length counts, larger powers ask for purity. The cosine is kept above 0.1, as in lucid, so that a
    start that points away still has a gradient.

    Args:
        layer: layer key.
        vector: one number a channel.
        power: exponent of the cosine.
    """

    layer: str
    vector: tuple[float, ...]
    power: float = 2.0

    def __post_init__(self) -> None:
        vector = tuple(float(v) for v in self.vector)
        if not vector or not all(math.isfinite(v) for v in vector) or not any(vector):
            raise RequestError("vector must be finite numbers, one a channel, not all zero; give a direction")
        object.__setattr__(self, "vector", vector)

    def __call__(self, activations: Activations) -> Tensor:
        value = activations[self.layer].float()  # [batch, channel, *position]
        if value.shape[1] != len(self.vector):
            raise RequestError(
                f"vector has {len(self.vector)} numbers, layer {self.layer!r} has {value.shape[1]} channels; give one "
                "number a channel"
            )
        vector = torch.tensor(self.vector, device=value.device)
        dot = torch.einsum("bc...,c->b...", value, vector)
        cosine = dot / (value.norm(dim=1) * vector.norm()).clamp_min(1e-6)
        return positions(dot * cosine.clamp_min(0.1) ** self.power).mean(1)


@dataclass(frozen=True)
class Diversity(Objective):
    """How different the pictures of one unit are: minus the mean cosine similarity of their Gram matrices.

    Use it with `seeds=` of two or more, as in `Channel(...) + 0.3 * Diversity(...)`; a picture alone scores 0.
    """

    layer: str

    def __call__(self, activations: Activations) -> Tensor:
        value = activations[self.layer].float().flatten(2)  # [batch, channel, position]
        gram = torch.einsum("bcp,bdp->bcd", value, value).flatten(1)
        gram = torch.nn.functional.normalize(gram, dim=1)
        similarity = gram @ gram.T  # [batch, batch]
        other = activations.groups[:, None] == activations.groups[None, :]
        other = other & ~torch.eye(len(other), dtype=torch.bool, device=other.device)
        count = other.sum(1).clamp_min(1)
        return -torch.where(other, similarity, 0.0).sum(1) / count


@dataclass(frozen=True)
class TotalVariation(Objective):
    """Mean absolute difference of neighbouring pixels; subtract it to smooth a picture."""

    def __call__(self, activations: Activations) -> Tensor:
        image = activations.image
        rows = (image[..., 1:, :] - image[..., :-1, :]).abs().flatten(1).mean(1)
        columns = (image[..., :, 1:] - image[..., :, :-1]).abs().flatten(1).mean(1)
        return rows + columns


@dataclass(frozen=True)
class L1(Objective):
    """Mean absolute distance of the pixels from a value (mid-grey by default)."""

    centre: float = 0.5

    def __call__(self, activations: Activations) -> Tensor:
        return (activations.image - self.centre).abs().flatten(1).mean(1)


@dataclass(frozen=True)
class L2(Objective):
    """Root mean square distance of the pixels from a value (mid-grey by default)."""

    centre: float = 0.5

    def __call__(self, activations: Activations) -> Tensor:
        square = (activations.image - self.centre).square().flatten(1).mean(1)
        return (square + 1e-12).sqrt()


@dataclass(frozen=True)
class Custom(Objective):
    """Any function of the activations.

    Args:
        function: takes `Activations`, returns Tensor [batch]; row i may depend on sample i only.
        reads: the layer keys it reads.
    """

    function: Callable[[Activations], Tensor]
    reads: tuple[str, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        return self.reads

    def __call__(self, activations: Activations) -> Tensor:
        value = self.function(activations)
        if not isinstance(value, Tensor) or value.shape != (len(activations.image),):
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise RequestError(
                f"the custom objective returned {got}; return a tensor of shape ({len(activations.image)},), one number "
                "a sample"
            )
        return value.float()


@dataclass(frozen=True)
class Rows(_Several):
    """Objectives of several structures, each for some samples of a batch: what `stack` falls back to.

    Attributes:
        terms: one objective a structure.
        members: the samples of each; together every sample once.
    """

    members: tuple[tuple[int, ...], ...]

    def __call__(self, activations: Activations) -> Tensor:
        values = [
            term(activations.rows(list(rows))) for term, rows in zip(self.terms, self.members, strict=True)
        ]
        order = torch.tensor([row for rows in self.members for row in rows], device=activations.image.device)
        return torch.cat(values)[order.argsort()]


def interpolate(a: Objective, b: Objective, t: float) -> Objective:
    """(1 - t) a + t b: a picture between two objectives."""
    return (1.0 - t) * a + t * b


def as_objective(value: Objective | float) -> Objective:
    """An objective as it is, a number as a constant."""
    return value if isinstance(value, Objective) else Constant(_finite("objective", value))


def stack(objectives: Sequence[Objective]) -> Objective:
    """One objective for a batch whose sample i has objective i.

    Objectives of one structure become one value whose per-sample fields hold a tuple, evaluated in one go.

    Example:
        >>> stack([Channel("a", 3), Channel("a", 5)])
        Channel(layer='a', channel=(3, 5))
    """
    if not objectives:
        raise RequestError("objectives is empty; give at least one")
    kinds: list[
        tuple[Objective, list[int]]
    ] = []  # a first objective of each structure, and the samples that share it
    for row, objective in enumerate(objectives):
        same = next((rows for first, rows in kinds if _merge([first, objective]) is not None), None)
        if same is None:
            kinds.append((objective, [row]))
        else:
            same.append(row)
    terms = [_merge([objectives[row] for row in rows]) for _, rows in kinds]
    if len(terms) == 1 and terms[0] is not None:
        return terms[0]
    return Rows(
        tuple(
            objectives[rows[0]] if term is None else term
            for term, (_, rows) in zip(terms, kinds, strict=True)
        ),
        tuple(tuple(rows) for _, rows in kinds),
    )


def _merge(objectives: list[Objective]) -> Objective | None:
    first = objectives[0]
    if any(type(objective) is not type(first) for objective in objectives) or isinstance(first, Rows):
        return None
    changes: dict[str, Any] = {}
    for spec in dataclasses.fields(first):
        values = [getattr(objective, spec.name) for objective in objectives]
        if spec.name in first.per_sample:
            changes[spec.name] = tuple(values)
        elif isinstance(values[0], Objective):
            merged = _merge(values)
            if merged is None:
                return None
            changes[spec.name] = merged
        elif spec.name == "terms":
            if any(len(terms) != len(values[0]) for terms in values):
                return None
            merged_terms = [_merge([terms[k] for terms in values]) for k in range(len(values[0]))]
            if any(term is None for term in merged_terms):
                return None
            changes[spec.name] = tuple(merged_terms)
        elif any(value != values[0] for value in values):
            return None
    return dataclasses.replace(first, **changes)


def positions(value: Tensor) -> Tensor:
    """[batch, *position] as float [batch, positions]; a vector has one position."""
    return value.float().reshape(len(value), -1)


def _pick(value: Tensor, channel: PerSample, layer: str) -> Tensor:
    """Channel `channel` (one, or one a sample) of [batch, channel, *position]: [batch, *position]."""
    count = value.shape[1]
    wanted = channel if isinstance(channel, tuple) else (channel,) * len(value)
    wrong = next((c for c in wanted if not (isinstance(c, int) and 0 <= c < count)), None)
    if wrong is not None:
        raise RequestError(
            f"channel={wrong} does not exist in layer {layer!r}, which has {count}; give 0 to {count - 1}"
        )
    if len(wanted) != len(value):
        raise RequestError(f"{len(wanted)} channels were given for {len(value)} pictures; give one a picture")
    picked: Tensor = _Pick.apply(value, wanted)
    return picked


class _Pick(torch.autograd.Function):
    """One channel of each sample. Autograd's own indexing adds up a full-size gradient for every sample."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, wanted: tuple[int, ...]) -> Tensor:
        ctx.wanted, ctx.like = wanted, value.new_empty(0)
        ctx.shape, ctx.strides = value.shape, value.stride()
        return value[_rows_and(wanted, value.device)]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        whole = torch.empty_strided(
            ctx.shape, ctx.strides, dtype=ctx.like.dtype, device=ctx.like.device
        ).zero_()
        whole[_rows_and(ctx.wanted, whole.device)] = gradients[0]  # no place twice, so in any order
        return whole, None


@functools.lru_cache(maxsize=16)
def _rows_and(wanted: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """An index of one channel of each sample."""
    return torch.arange(len(wanted), device=device), torch.tensor(wanted, device=device)


def _numbers(value: PerSample, like: Tensor) -> Tensor:
    return torch.tensor(value, dtype=like.dtype, device=like.device)


def _finite(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RequestError(f"{name}={value!r} must be a finite number")
    return float(value)
