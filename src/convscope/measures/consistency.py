"""Consistency: does a network's answer hold when the picture is shifted, turned, scaled or noisy?

    found = consistency(net)                  # on the embedded photographs
    print(found)                              # a row a move: agreement of top-1, with its interval, by magnitude
    found.moves["crop"].pooled.agreement      # Zhang's shift consistency
    found.layers["layer3"].equivariance       # whether its feature maps move along with the input

Two crops of one picture differ in their content at the borders; a rolled input has the same content everywhere.
The crop and the circular protocol therefore give different figures and are never mixed.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from convscope.errors import ModelError, RequestError
from convscope.measures.equivariance import Gathered, LayerShift, Match, Plan, distances, plan, shifts_of
from convscope.measures.figures import Estimate, Sheet, mean, share, to_html, to_rich, to_text
from convscope.measures.moves import MOVES, Crop, Frame, Move, View, read_moves
from convscope.measures.samples import LIMIT, Data, Meter, Progress, Subject, quiet, subject, tapped
from convscope.models import InputLike, Net

_MAPS = 256 * 2**20  # bytes of feature maps to hold at once


@dataclass(frozen=True)
class Point:
    """How far a network's answers agree over some pairs of pictures, averaged over the pictures.

    Attributes:
        magnitude: of the move, in its unit; None where several are pooled.
        pairs: how many were compared.
        agreement: share of pairs with the same top-1 class; None where the output is not class scores.
        probability_change: mean absolute change of the probability of the class first predicted; likewise.
        relative_change: ||f(moved) - f(x)|| / ||f(x)|| of the output itself (of logits, for class scores).
        cosine: of the angle between the two outputs.
    """

    magnitude: float | None
    pairs: int
    agreement: Estimate | None
    probability_change: Estimate | None
    relative_change: Estimate
    cosine: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        figures = ("agreement", "probability_change", "relative_change", "cosine")
        named = {name: getattr(self, name) for name in figures}
        plain = {name: None if value is None else value.to_dict() for name, value in named.items()}
        return {"magnitude": self.magnitude, "pairs": self.pairs, **plain}


@dataclass(frozen=True)
class Moved:
    """What one kind of move does.

    Attributes:
        move: the move itself, with its magnitudes.
        pooled: of the move "crop", pairs of random crops; of others, all magnitudes together.
        curve: by magnitude, ascending.
    """

    move: Move
    pooled: Point
    curve: tuple[Point, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "unit": self.move.unit,
            "protocol": self.move.told,
            "pooled": self.pooled.to_dict(),
            "curve": [point.to_dict() for point in self.curve],
        }


@dataclass(frozen=True, eq=False, repr=False)
class Consistency:
    """How far a network's answers and feature maps hold under moves; prints as tables.

    Attributes:
        name: the network's.
        source: where the pictures come from.
        images: how many were used.
        seed: that of all random choices.
        scores: whether the output was read as class scores.
        moves: by name.
        layers: by address; what a shift does to single layers.
        skipped: move -> why it makes no sense here.
        notes: what the reader should know.
    """

    name: str
    source: str
    images: int
    seed: int
    scores: bool
    moves: Mapping[str, Moved]
    layers: Mapping[str, LayerShift] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.name,
            "source": self.source,
            "images": self.images,
            "seed": self.seed,
            "scores": self.scores,
            "moves": {name: moved.to_dict() for name, moved in self.moves.items()},
            "layers": {name: row.to_dict() for name, row in self.layers.items()},
            "skipped": dict(self.skipped),
            "notes": list(self.notes),
        }

    def _sheets(self) -> list[Sheet]:
        about = f"{self.name}, {self.images} images of {self.source}"
        notes = (*(f"{name}: left out, {why}" for name, why in self.skipped.items()), *self.notes)
        sheets = [_sheet_of_moves(f"Consistency of {about}", self, notes)] if self.moves or notes else []
        if self.layers:
            sheets.append(_sheet_of_layers(f"Circular shifts, layer by layer: {about}", self.layers))
        return sheets

    def __rich__(self) -> Any:
        return to_rich(self._sheets())

    def __str__(self) -> str:
        return to_text(self._sheets())

    def _repr_html_(self) -> str:
        return to_html(self._sheets())


def consistency(
    net: Net | nn.Module,
    data: Data = None,
    *,
    input: InputLike | None = None,
    moves: Sequence[str | Move] | str | Move | None = None,
    layers: str | Sequence[str] | None = None,
    seed: int = 0,
    limit: int | None = LIMIT,
    batch: int = 16,
    scores: bool | None = None,
    progress: Progress | None = None,
) -> Consistency:
    """How far a network's answer holds when its picture is moved, and whether feature maps move along.

    Every picture is scaled to be a seventh wider than the input (256 pixels for 224, the usual evaluation);
    its centre crop is what the moves start from, and the rest is real content for crops and rotations.

    Args:
        net: the network.
        data: an image file, a folder, `Images`, or None for the embedded photographs; or a tensor
            [sample, channel, *positions] of what the network takes, already normalized, which may be larger
            than the input ([sample, length] of whole numbers for tokens).
        input: what to feed a plain module.
        moves: names ("crop", "circular", "rotation", "scale", "noise") or moves with magnitudes of their
            own, such as `Rotation(degrees=(3, 6))`; None for all that make sense here.
        layers: names and globs of layers to look at; None for a spread of resolutions, () for none.
        seed: of all random choices; each picture and magnitude has a stream of its own.
        limit: at most this many pictures, evenly spread.
        batch: pictures a forward pass; fewer where the layers' maps are large.
        scores: whether the output is class scores; None judges by its shape, [batch, at least 2].
        progress: called with {"done", "total", "rate", "seconds_left", "layer"}.

    Returns:
        The figures, each with a 95 % interval over the pictures.

    Raises:
        UnknownName, UnknownLayer: no such move or layer.
        RequestError: a named move makes no sense for this input.
        BadInput: network and data do not fit.
        ModelError: the network fails, or gives values that are not finite.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"),
        ...                     nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> found = consistency(net, input="3x32x32", moves="circular", limit=4)
        >>> found.moves["circular"].pooled.agreement.value, found.layers["0"].stride
        (1.0, (Fraction(1, 1), Fraction(1, 1)))
        >>> round(found.layers["0"].equivariance.cosine.value, 4)
        1.0
    """
    _check(seed, batch, moves, layers)
    with quiet():
        ready = subject(net, data, input=input, limit=limit)
        chosen, skipped = _chosen(moves, ready.frame)
        plans = plan(ready.graph, ready.frame, layers)
        return _Run(ready, chosen, plans, seed, scores, batch, progress).result(skipped)


def _check(seed: int, batch: int, moves: Any, layers: Any) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise RequestError(f"seed={seed!r} must be a whole number")
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise RequestError(f"batch={batch!r} must be a whole number from 1 on")
    if all(each is not None and not isinstance(each, Move) and not len(each) for each in (moves, layers)):
        raise RequestError("moves=() and layers=() leave nothing to measure; name some of either")


def _chosen(
    moves: Sequence[str | Move] | str | Move | None, frame: Frame
) -> tuple[dict[Move, tuple[float, ...]], dict[str, str]]:
    """The moves with their magnitudes here, and by name why others were left out."""
    chosen, skipped = {}, {}
    for move in read_moves(tuple(MOVES) if moves is None else moves):
        try:
            chosen[move] = tuple(sorted(move.magnitudes(frame)))
        except RequestError as error:
            if moves is not None:
                raise
            skipped[move.name] = str(error)
    return chosen, skipped


# ---------------------------------------------------------------- running


class _Run:
    """One pass over the pictures."""

    def __init__(
        self,
        ready: Subject,
        chosen: Mapping[Move, tuple[float, ...]],
        plans: Sequence[Plan],
        seed: int,
        scores: bool | None,
        batch: int,
        progress: Progress | None,
    ) -> None:
        self.ready, self.chosen, self.plans, self.seed, self.scores = ready, chosen, plans, seed, scores
        self.shifts = shifts_of(plans, ready.frame, seed) if plans else []
        self.gathered = Gathered(plans, self.shifts)
        self.pairs: dict[tuple[Move, float | None], list[Tensor]] = {}
        self.remarks: tuple[str, ...] | None = None  # None until the first output told what it is
        self.probabilities = False  # whether scores are probabilities already
        a_picture = sum(ready.graph.values[each.call.outputs[0]].size for each in plans)
        self.batch = max(1, min(batch, _MAPS // max(2 * a_picture, 1)))
        forwards = 1 + sum(len(m) for m in chosen.values()) + len(self.shifts)
        forwards += sum(move.draws for move in chosen if isinstance(move, Crop))
        self.meter = Meter(ready.count * forwards, progress)

    def result(self, skipped: Mapping[str, str]) -> Consistency:
        """Runs everything."""
        images = 0
        for view in self.ready.views(self.batch):
            self._add(view)
            images += len(view.names)
        moves = {move.name: self._moved(move, magnitudes) for move, magnitudes in self.chosen.items()}
        return Consistency(
            name=self.ready.name,
            source=self.ready.source,
            images=images,
            seed=self.seed,
            scores=bool(self.scores),
            moves=moves,
            layers=self.gathered.rows(),
            skipped=dict(skipped),
            notes=(*(self.remarks or ()), *self.ready.notes),
        )

    def _add(self, view: View) -> None:
        still, maps = self._answer(view, view.centre, "the pictures as they are")
        if self.remarks is None:
            self._settle(still)
        for move, magnitudes in self.chosen.items():
            for magnitude in magnitudes:
                moved, _ = self._answer(view, move.apply(view, magnitude, self.seed), move.name)
                self._keep(move, magnitude, [self._compare(moved, still)])
            if isinstance(move, Crop):
                crops = [
                    self._answer(view, move.random(view, k, self.seed), move.name)[0]
                    for k in range(move.draws)
                ]
                pairs = itertools.combinations(crops, 2)
                self._keep(move, None, [self._compare(moved, first) for first, moved in pairs])
        axes = tuple(range(-len(view.frame.extents), 0))
        for shift in self.shifts:
            _, moved_maps = self._answer(view, torch.roll(view.centre, shift, axes), "layers")
            self.gathered.add(shift, moved_maps, maps)

    def _answer(self, view: View, samples: Tensor, layer: str) -> tuple[Tensor, dict[str, Tensor]]:
        """The output [sample, ...], and the maps of the layers looked at where these are wanted."""
        maps: dict[str, Tensor] = {}
        wanted = {each.address: each.call for each in self.plans if layer not in MOVES}
        with tapped(self.ready.module, wanted, lambda key, value: maps.update({key: value.clone()})):
            output = self.ready.run(samples)
        if not bool(output.isfinite().all()):
            worst = next(
                name for name, row in zip(view.names, output, strict=True) if not bool(row.isfinite().all())
            )
            raise ModelError(
                f"{self.ready.name} gives values that are not finite for image {worst!r} ({layer}); look for "
                "the layer with convscope's health, or leave that image out"
            )
        missing = [key for key in wanted if key not in maps]
        if missing:
            raise ModelError(
                f"layer {missing[0]!r} ran on the example input and not on the data; name other layers"
            )
        self.meter.finished(len(samples), layer)
        return output, maps

    # -- outputs ---------------------------------------------------------------------------------------------

    def _settle(self, output: Tensor) -> None:
        """Whether the output is class scores, and whether these are probabilities already."""
        vector = output.flatten(1).shape == output.shape[:2] and output.shape[1] >= 2
        if self.scores and not vector:
            raise RequestError(
                f"scores=True needs an output of shape [batch, classes], and {self.ready.name} gives "
                f"{[None, *output.shape[1:]]}; leave scores out"
            )
        told = self.scores is not None
        self.scores = vector if self.scores is None else self.scores
        self.remarks = ()
        if self.scores:
            flat = output.flatten(1).double()
            self.probabilities = bool((flat >= 0).all() and ((flat.sum(1) - 1).abs() < 1e-3).all())
            if not told and self.ready.labels != output.shape[1]:
                self.remarks = (
                    f"the {output.shape[1]} numbers of the output are taken as class scores; "
                    "give scores=False where they are not",
                )
        else:
            shape = " x ".join(map(str, output.shape[1:]))
            self.remarks = (
                f"the output ({shape}) is not class scores: there is no top-1, its relative change and cosine "
                "say how far it holds"
                + ("; whether it moves along with the input is told of layers" if output.ndim > 2 else ""),
            )

    def _compare(self, moved: Tensor, still: Tensor) -> Tensor:
        """Tensor [sample, (agreement, probability change, relative change, cosine)]."""
        change, cosine = distances(moved, still)
        if not self.scores:
            nothing = torch.full_like(change, torch.nan)
            return torch.stack([nothing, nothing, change, cosine], 1).cpu()
        a, b = (self._probabilities(part) for part in (moved, still))
        best = b.argmax(1)
        agree = (a.argmax(1) == best).double()
        gap = (a - b).gather(1, best[:, None])[:, 0].abs()
        return torch.stack([agree, gap, change, cosine], 1).cpu()

    def _probabilities(self, output: Tensor) -> Tensor:
        flat = output.flatten(1).double()
        return flat if self.probabilities else flat.softmax(1)

    def _keep(self, move: Move, magnitude: float | None, compared: Sequence[Tensor]) -> None:
        self.pairs.setdefault((move, magnitude), []).append(torch.stack(list(compared), 1))

    # -- figures ---------------------------------------------------------------------------------------------

    def _moved(self, move: Move, magnitudes: Sequence[float]) -> Moved:
        by = {magnitude: torch.cat(self.pairs[move, magnitude]) for magnitude in magnitudes}
        if isinstance(move, Crop):
            pooled = torch.cat(self.pairs[move, None])
        else:
            pooled = torch.cat(list(by.values()), 1)
        curve = tuple(self._point(magnitude, values) for magnitude, values in by.items())
        return Moved(move, self._point(None, pooled), curve)

    def _point(self, magnitude: float | None, values: Tensor) -> Point:
        """values: Tensor [image, pair, (agreement, probability change, relative change, cosine)]."""
        agree, gap, change, cosine = values.unbind(2)
        return Point(
            magnitude=magnitude,
            pairs=agree.numel(),
            agreement=share(agree > 0.5) if self.scores else None,
            probability_change=mean(gap) if self.scores else None,
            relative_change=mean(change),
            cosine=mean(cosine),
        )


# ---------------------------------------------------------------- printing


def _sheet_of_moves(title: str, found: Consistency, notes: tuple[str, ...]) -> Sheet:
    names = ("top-1 agrees>", "probability change>") if found.scores else ()
    rows = []
    for name, moved in found.moves.items():
        for point in (moved.pooled, *moved.curve):
            label = name if point is moved.pooled else f"  {point.magnitude:g} {moved.move.unit}"
            cells = [label, str(point.pairs)]
            if point.agreement is not None and point.probability_change is not None:
                cells += [point.agreement.percent(), point.probability_change.percent()]
            cells += [point.relative_change.percent(), f"{point.cosine.value:.4f}"]
            rows.append(tuple(cells))
    told = tuple(f"{name}: {moved.move.told}" for name, moved in found.moves.items())
    columns = ("move", "pairs>", *names, "output changes>", "cosine>")
    return Sheet(title, columns, tuple(rows), (*told, *notes))


def _sheet_of_layers(title: str, layers: Mapping[str, LayerShift]) -> Sheet:
    def cells(match: Match | None) -> tuple[str, str]:
        if match is None:
            return "", ""
        return f"{100 * match.error.value:.3g} %", f"{match.cosine.value:.4f}"

    rows = []
    for name, row in layers.items():
        where = (" x ".join(map(str, row.grid)), " x ".join(str(step) for step in row.stride))
        figures = (*cells(row.equivariance), *cells(row.one_pixel), *cells(row.invariance))
        rows.append((name or "(output)", *where, *figures))
    heads = ("moves along: error>", "cosine>", "by one pixel: error>", "cosine>", "stays: error>", "cosine>")
    columns = ("layer", "grid>", "stride>", *heads)
    notes = (
        "moves along (equivariance): f(shift(x)) against shift(f(x)), shifts that are multiples of the stride: "
        "what is lost is lost at borders",
        "by one pixel: the same, the map interpolated between its positions: aliasing counts as well",
        "stays (invariance): f(shift(x)) against f(x)",
    )
    return Sheet(title, columns, tuple(rows), notes)
