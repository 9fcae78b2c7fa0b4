"""Equivariance, layer by layer: do feature maps move along when the input is shifted?

A layer is *equivariant* where f(shift(x)) = shift(f(x)), and *invariant* where f(shift(x)) = f(x). Convolutions
give the first, global pooling makes the second of it. Both are measured on inputs rolled around, so that
nothing new comes in; what they cost is aliasing in strides and the padding at borders.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from convscope.errors import RequestError
from convscope.graph import Call, Graph, Layout, layout
from convscope.graph.rules import follow
from convscope.measures.figures import Estimate, mean
from convscope.measures.moves import Frame, stream
from convscope.measures.receptive_field import field_of
from convscope.measures.samples import find_calls, has_channels

_SPREAD = 6  # layers, where nobody names some


@dataclass(frozen=True)
class Match:
    """How well two answers of a layer agree, averaged over images.

    Attributes:
        error: ||a - b|| / ||b||; 0 is perfect.
        cosine: of the angle between them; 1 is perfect.
    """

    error: Estimate
    cosine: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"error": self.error.to_dict(), "cosine": self.cosine.to_dict()}


@dataclass(frozen=True)
class LayerShift:
    """What a shift of the input does to a layer's output.

    Attributes:
        layer: address of the call; "" is the network itself.
        kind: class name of the module.
        grid: positions along each axis of the input; all 1 where there are none left.
        stride: pixels of the input from one position to the next; 0 where there is one position.
        cyclic: for each axis, whether positions roll around with the input (the stride divides the input
            into exactly as many); where not, only positions that come from the same content are compared.
        shifts: the shifts in pixels, all multiples of the stride, that `equivariance` averages over.
        equivariance: f(shift(x)) against shift(f(x)) for these; None where no position is left, or no such
            shift is within half the input.
        one_pixel: the same for a shift of one pixel, for which shift(f(x)) is interpolated linearly between
            positions: that alone costs something on maps with fine detail. Exact where the stride is 1.
        invariance: f(shift(x)) against f(x) itself, over `shifts`, or over all shifts that ran where there
            are none.
        reason: why there is no `equivariance`, or "".
    """

    layer: str
    kind: str
    grid: tuple[int, ...]
    stride: tuple[Fraction, ...]
    cyclic: tuple[bool, ...]
    shifts: tuple[int, ...]
    equivariance: Match | None
    one_pixel: Match | None
    invariance: Match
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values; a fractional stride as a float."""
        return {
            "layer": self.layer,
            "kind": self.kind,
            "grid": list(self.grid),
            "stride": [int(s) if s.denominator == 1 else float(s) for s in self.stride],
            "cyclic": list(self.cyclic),
            "shifts": list(self.shifts),
            "equivariance": None if self.equivariance is None else self.equivariance.to_dict(),
            "one_pixel": None if self.one_pixel is None else self.one_pixel.to_dict(),
            "invariance": self.invariance.to_dict(),
            "reason": self.reason,
        }


# ---------------------------------------------------------------- which layers, which shifts


@dataclass(frozen=True)
class Plan:
    """A layer and how its positions lie over the input."""

    address: str
    call: Call
    found: Layout
    stride: tuple[Fraction, ...]
    cyclic: tuple[bool, ...]

    def places(self, shift: Sequence[int]) -> tuple[Fraction, ...] | None:
        """By how many positions the map moves along each axis; None where there are no positions."""
        if not any(self.stride):
            return None
        return tuple(
            Fraction(pixels) / step if step else Fraction(0)
            for pixels, step in zip(shift, self.stride, strict=True)
        )


def plan(graph: Graph, frame: Frame, layers: str | Sequence[str] | None) -> list[Plan]:
    """The layers to look at, in the order they ran.

    Args:
        graph: of the network.
        frame: the sizes of the input.
        layers: names and globs; None for the last layer of each resolution, spread over the network.

    Raises:
        UnknownLayer: a name matches nothing.
        RequestError: a named layer has no channels.
    """
    calls = _spread(graph) if layers is None else find_calls(graph, layers)
    plans = []
    for address, call in sorted(calls.items(), key=lambda item: item[1].order):
        if not has_channels(graph, call):
            shape = list(call.out_shapes[0]) if call.out_shapes else None
            raise RequestError(
                f"layer {address!r} has no map of positions or channels to shift (its output has shape {shape}); "
                "name another"
            )
        found = layout(graph, address)
        stride = _stride(graph, call, found, frame)
        cyclic = tuple(
            step * places == extent
            for step, places, extent in zip(stride, found.grid, frame.extents, strict=True)
        )
        plans.append(Plan(address, call, found, stride, cyclic))
    return plans


def _spread(graph: Graph) -> dict[str, Call]:
    """Of each resolution the layer in which most happens, the later of equals; more between where these are few."""
    usable = [call for call in graph.calls if call.name and has_channels(graph, call)]
    root = graph.calls[-1]
    if (
        root.outputs
        and root.outputs[0] not in {call.outputs[0] for call in usable}
        and has_channels(graph, root)
    ):
        usable.append(root)  # a network may resize its maps outside of any layer
    inside = _calls_inside(graph)
    most: dict[tuple[int, ...], Call] = {}
    for call in usable:
        grid = layout(graph, graph.address(call)).grid
        if grid not in most or inside[call.order] >= inside[most[grid].order]:
            most[grid] = call
    chosen = list(most.values())
    rest = [call for call in usable if call not in chosen]
    rest = [call for call in rest if not call.is_leaf] or rest
    missing = min(_SPREAD - len(chosen), len(rest))
    if missing > 0:
        chosen += [rest[round((k + 0.5) * len(rest) / missing - 0.5)] for k in range(missing)]
    return {graph.address(call): call for call in chosen}


def _calls_inside(graph: Graph) -> dict[int, int]:
    """How many modules were called inside each call, by its order."""
    counts = {call.order: 0 for call in graph.calls}
    for call in graph.calls:  # children complete before their parents
        if call.parent is not None:
            counts[call.parent] += counts[call.order] + 1
    return counts


def _stride(graph: Graph, call: Call, found: Layout, frame: Frame) -> tuple[Fraction, ...]:
    """Pixels between neighbouring positions, along each axis; 0 where there is one position."""
    field = field_of(follow(graph)[call.outputs[0]])
    if field.local is not None:
        field = field.local
    steps = []
    for axis, (places, extent) in enumerate(zip(found.grid, frame.extents, strict=True)):
        known = Fraction(field.stride[axis]) if axis < len(field.stride) else Fraction(0)
        # attention and the like see everything: their positions divide the input evenly
        steps.append(Fraction(0) if places == 1 else known or Fraction(extent, places))
    return tuple(steps)


def shifts_of(plans: Sequence[Plan], frame: Frame, seed: int) -> list[tuple[int, ...]]:
    """The shifts to run: one pixel, and for each stride among the layers the least multiple of it.

    Each goes one way along every axis, chosen by the seed.
    """
    lengths: dict[tuple[int, ...], None] = {}
    half = [extent // 2 for extent in frame.extents]
    for steps in [(Fraction(1),) * len(half), *(each.stride for each in plans)]:
        pixels = tuple(
            abs(step.numerator) if abs(step.numerator) <= most else 0
            for step, most in zip(steps, half, strict=True)
        )
        if any(pixels):
            lengths[pixels] = None
    shifts = []
    for pixels in lengths:
        draw = stream(seed, "equivariance", *pixels)
        ways = torch.randint(2, (len(pixels),), generator=draw, device="cpu").tolist()
        shifts.append(tuple(n if way else -n for n, way in zip(pixels, ways, strict=True)))
    return shifts


# ---------------------------------------------------------------- comparing


def distances(moved: Tensor, still: Tensor) -> tuple[Tensor, Tensor]:
    """Relative change and cosine, each Tensor [sample], of two answers [sample, ...] in float64.

    Two answers that are both zero are equal; where only `still` is zero, the change counts as 1.

    Example:
        >>> distances(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 0.0]]))
        (tensor([1.3333], dtype=torch.float64), tensor([0.6000], dtype=torch.float64))
    """
    a, b = moved.double().flatten(1), still.double().flatten(1)
    gap, one, other = (a - b).norm(dim=1), a.norm(dim=1), b.norm(dim=1)
    zero, both = other == 0, (other == 0) & (one == 0)
    change = torch.where(zero, torch.where(both, 0.0, 1.0), gap / other.clamp_min(1e-300))
    cosine = (a * b).sum(1) / (one * other).clamp_min(1e-300)
    return change, torch.where(both, torch.ones_like(cosine), cosine).clamp(-1, 1)


def shift_map(x: Tensor, places: Sequence[Fraction]) -> Tensor:
    """A map [sample, channel, *grid] rolled by so many positions, between positions by linear interpolation.

    Example:
        >>> shift_map(torch.tensor([[[0.0, 4.0, 0.0, 0.0]]]), [Fraction(3, 2)])
        tensor([[[0., 0., 2., 2.]]])
    """
    for axis, by in enumerate(places, 2):
        whole = math.floor(by)
        rest = float(by - whole)
        near = torch.roll(x, whole, axis)
        x = near if rest == 0 else (1 - rest) * near + rest * torch.roll(x, whole + 1, axis)
    return x


def same_content(x: Tensor, places: Sequence[Fraction], cyclic: Sequence[bool]) -> Tensor:
    """The part of a shifted map whose positions did not come around from the other side, on axes that do not roll."""
    for axis, (by, rolls) in enumerate(zip(places, cyclic, strict=True), 2):
        cut = min(math.ceil(abs(by)), x.shape[axis] - 1)
        if not rolls and cut:
            x = x.narrow(axis, cut if by > 0 else 0, x.shape[axis] - cut)
    return x


class Gathered:
    """Collects, batch by batch, how the layers answer to shifts."""

    def __init__(self, plans: Sequence[Plan], shifts: Sequence[tuple[int, ...]]) -> None:
        self.plans = plans
        self.shifts = shifts
        # by (layer, shift, what is compared): one Tensor [sample, (change, cosine)] a batch
        self._seen: dict[tuple[str, tuple[int, ...], str], list[Tensor]] = {}

    def add(self, shift: tuple[int, ...], moved: Mapping[str, Tensor], still: Mapping[str, Tensor]) -> None:
        """The layers' outputs on one batch, rolled by `shift` and as it is."""
        for each in self.plans:
            b, a = (each.found.as_map(part[each.address]).double() for part in (moved, still))
            self._keep(each, shift, "invariance", b, a)
            places = each.places(shift)
            if places is None:
                continue
            wanted = shift_map(a, places)
            pair = [same_content(part, places, each.cyclic) for part in (b, wanted)]
            if all(by.denominator == 1 for by in places):
                self._keep(each, shift, "equivariance", *pair)
            if max(map(abs, shift)) == 1:
                self._keep(each, shift, "one pixel", *pair)

    def _keep(self, each: Plan, shift: tuple[int, ...], what: str, moved: Tensor, still: Tensor) -> None:
        figures = torch.stack(distances(moved, still), 1).cpu()
        self._seen.setdefault((each.address, shift, what), []).append(figures)

    def rows(self) -> dict[str, LayerShift]:
        """A row a layer."""
        return {each.address: self._row(each) for each in self.plans}

    def _row(self, each: Plan) -> LayerShift:
        exact = [shift for shift in self.shifts if (each.address, shift, "equivariance") in self._seen]
        invariance = self._match(each, exact or self.shifts, "invariance")
        assert invariance is not None
        reason = ""
        if not exact:
            step = "x".join(str(s) for s in each.stride)
            reason = (
                f"no shift within half the input is a multiple of its stride {step}"
                if any(each.stride)
                else "it has no positions left"
            )
        return LayerShift(
            layer=each.address,
            kind=each.call.kind,
            grid=each.found.grid,
            stride=each.stride,
            cyclic=each.cyclic,
            shifts=tuple(max(map(abs, shift)) for shift in exact),
            equivariance=self._match(each, exact, "equivariance"),
            one_pixel=self._match(each, self.shifts, "one pixel"),
            invariance=invariance,
            reason=reason,
        )

    def _match(self, each: Plan, shifts: Sequence[tuple[int, ...]], what: str) -> Match | None:
        keys = [(each.address, shift, what) for shift in shifts]
        seen = [torch.cat(self._seen[key]) for key in keys if key in self._seen]
        if not seen:
            return None
        figures = torch.stack(seen, 1)  # [image, shift, (change, cosine)]
        return Match(mean(figures[..., 0]), mean(figures[..., 1]))
