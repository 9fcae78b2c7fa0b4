"""The proof: every claim of a rewrite is tried in float64 on random and on given inputs, at two sizes, before it counts.

A layer and its replacement are compared by themselves on inputs of their own; the network as a whole is compared
before and after each rule, which catches what no single layer shows (a wrong place, a lost call, a size assumed).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from convscope.models import InputSpec
from convscope.rewrites.base import Change, Edit, Rule, VerificationError

if TYPE_CHECKING:
    from convscope.rewrites.calibrate import Calibration
    from convscope.rewrites.work import Site

ROUNDING = 1e-9  # of a layer's largest output, float64: what "exact" may differ by
DEEP = 1e-7  # the same for a whole network, whose layers amplify rounding
Grown = Sequence[tuple[int, int]]

SMALL = 24  # edge of the random maps that layers are tried on, where any size will do


@dataclass(frozen=True)
class Found:
    """Differences between two functions of the same inputs.

    Attributes:
        error: the largest, relative to the largest output.
        rms_error: root mean square, relative to that of the output.
        tried: how many inputs.
    """

    error: float
    rms_error: float
    tried: int


def copied(module: nn.Module) -> nn.Module:
    """A deep copy."""
    return copy.deepcopy(module)


def compare(
    before: nn.Module,
    after: nn.Module,
    inputs: Sequence[tuple[Tensor, ...]],
    margin: tuple[int, int] = (0, 0),
    grown: Grown = ((0, 0), (0, 0)),
    grid: tuple[int, int] = (1, 1),
) -> Found:
    """Runs two modules on the same inputs and compares what they give.

    Args:
        before, after: the modules, in float64.
        inputs: arguments of each call.
        margin: positions from each border to leave out, where the output is a map.
        grown: positions that the second has more of, before and after along height and width; less where negative.
        grid: the positions of the second's maps lie so many times as close, along height and width.

    Raises:
        VerificationError: the outputs differ in number or shape, or hold NaN where the other does not.
    """
    worst, squares, power, count = 0.0, 0.0, 0.0, 0
    for arguments in inputs:
        with torch.no_grad():
            first, second = _outputs(before(*arguments)), _outputs(after(*arguments))
        if grid != (1, 1):
            second = [z[..., :: grid[0], :: grid[1]] for z in second]
        if grown != ((0, 0), (0, 0)):
            second = [_cut(y, grown) for y in second]
            first = [_cut(y, tuple((-a, -b) for a, b in grown)) for y in first]
        if [tuple(y.shape) for y in first] != [tuple(y.shape) for y in second]:
            shapes = [[list(y.shape) for y in side] for side in (first, second)]
            raise VerificationError(f"outputs have the shapes {shapes[1]} where {shapes[0]} were before.")
        for y, z in zip(first, second, strict=True):
            y, z = inside(y, margin).double(), inside(z, margin).double()
            if not y.numel():
                continue
            if not torch.equal(y.isfinite(), z.isfinite()):
                raise VerificationError("outputs are not finite at other places than before.")
            y, z = y.nan_to_num(0, 0, 0), z.nan_to_num(0, 0, 0)
            difference = (y - z).abs()
            worst = max(worst, float(difference.max() / y.abs().max().clamp_min(1e-30)))
            squares += float(difference.square().sum())
            power += float(y.square().sum())
            count += 1
    if not count:
        raise VerificationError("no output was left to compare inside the margin.")
    return Found(worst, math.sqrt(squares / max(power, 1e-60)), count)


def inside(y: Tensor, margin: tuple[int, int]) -> Tensor:
    """What lies further than the margin from the borders of a map [..., height, width]."""
    if margin == (0, 0) or y.ndim < 3:
        return y
    rows, columns = y.shape[-2:]
    return y[..., margin[0] : rows - margin[0], margin[1] : columns - margin[1]]


def _cut(y: Tensor, more: Sequence[tuple[int, int]]) -> Tensor:
    """A map without the positions it has more of."""
    (top, bottom), (left, right) = [(max(a, 0), max(b, 0)) for a, b in more]
    return y[..., top : y.shape[-2] - bottom, left : y.shape[-1] - right]


def _outputs(value: Any) -> list[Tensor]:
    from convscope.graph.record import flatten

    return list(flatten(value))


def layer(rule: Rule, site: Site, change: Change, calibration: Calibration) -> Found:
    """Tries a replacement beside the layer it is for.

    Random inputs at two sizes (the recorded ones where the replacement is bound to them), and, where there are
    images, what the layer is really given on them.

    Raises:
        VerificationError: the change claims more than is true.
    """
    inputs = _layer_inputs(site, change) + calibration.inputs(site.layer, site.work)
    try:
        found = compare(site.module, change.module, inputs, change.margin, change.grown)
    except VerificationError as error:
        raise VerificationError(f"{rule} on layer {site.layer!r} gave a wrong replacement: {error}") from None
    if change.exactness in ("exact", "exact-interior") and not found.error <= ROUNDING:
        raise VerificationError(
            f"{rule} on layer {site.layer!r} claims {change.exactness!r}, but outputs differ by {found.error:.1e} of "
            f"their maximum in float64 over {found.tried} inputs; this is an error of the rule, and nothing was changed."
        )
    return found


def _layer_inputs(site: Site, change: Change) -> list[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    shape = site.in_shape
    shapes = [shape]
    if len(shape) == 4 and not change.fixed_size:
        reach = [2 * edge + 8 for edge in change.margin]  # some interior must be left
        small = [min(n, max(SMALL, r * 2)) for n, r in zip(shape[2:], reach, strict=True)]
        needed = _least(site)
        first = tuple(max(n, least) for n, least in zip(small, needed, strict=True))
        second = (first[0] + 3, first[1] + 2)
        shapes = [(2, shape[1], *first), (1, shape[1], *second)]
    others = site.calls[0].in_shapes[1:]
    if others:  # several inputs: only as they really came
        shapes = [shape]
    return [
        tuple(torch.randn(each, generator=generator, dtype=torch.float64) for each in (one, *others))
        for one in shapes
    ]


def _least(site: Site) -> tuple[int, int]:
    """The smallest map the layer can take; of a run of layers, the first of them that has a kernel."""
    part = next((part for part in site.module.modules() if hasattr(part, "kernel_size")), site.module)
    kernel = _pair(getattr(part, "kernel_size", 1))
    dilation = _pair(getattr(part, "dilation", 1))
    return (kernel[0] - 1) * dilation[0] + 1, (kernel[1] - 1) * dilation[1] + 1


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, (tuple, list)):
        return (int(value[0]), int(value[-1]))
    return (int(value), int(value)) if isinstance(value, int) else (1, 1)


def network(
    rule: Rule,
    before: nn.Module,
    after: nn.Module,
    edits: Sequence[Edit],
    old_input: InputSpec,
    new_input: InputSpec,
    calibration: Calibration,
) -> Found | None:
    """Compares the network before and after a rule all of whose edits are exact.

    At the network's own input size and, where both take it and the rule claims it, at a larger one.

    Raises:
        VerificationError: they differ by more than rounding, or the new one fails where the old one runs.
    """
    exact = all(edit.exactness == "exact" for edit in edits)
    old, new = before, after
    inputs = [(x,) for x in calibration.network_inputs(new_input)]
    grid = (math.prod(edit.grid[0] for edit in edits), math.prod(edit.grid[1] for edit in edits))
    try:
        if not exact or old_input.shape != new_input.shape:
            with torch.no_grad():
                new(*inputs[0])
            return None
        found = compare(old, new, inputs, grid=grid)
    except VerificationError as error:
        raise VerificationError(f"{rule} changed the network's output: {error}") from None
    except Exception as error:  # the network's own code: anything may come
        raise VerificationError(
            f"{rule} made a network that fails on its input ({type(error).__name__}: {' '.join(str(error).split())[:200]})."
        ) from error
    if not found.error <= DEEP:
        names = ", ".join(edit.layer for edit in edits[:3])
        raise VerificationError(
            f"{rule} claims to be exact in every layer ({names}, ...), but the network's outputs differ by "
            f"{found.error:.1e} of their maximum in float64; this is an error of the rule, and nothing was changed."
        )
    bound = rule.one_size or any(edit.fixed_size for edit in edits)
    larger = None if bound else _larger(old, new, new_input, grid)
    if larger is not None and not larger.error <= DEEP:
        raise VerificationError(
            f"{rule} is exact at {new_input.size}, but at a larger input the outputs differ by {larger.error:.1e}; it "
            "claims an exactness that holds at one size only."
        )
    return found


def _larger(old: nn.Module, new: nn.Module, spec: InputSpec, grid: tuple[int, int]) -> Found | None:
    """The same at a larger input, or None where the old network takes none."""
    generator = torch.Generator().manual_seed(1)
    size = tuple(n + 32 for n in spec.size)
    x = torch.randn(1, spec.channels, *size, generator=generator, dtype=torch.float64)
    try:
        with torch.no_grad():
            old(x)
    except Exception:  # a network of one size: nothing to compare
        return None
    return compare(old, new, [(x,)], grid=grid)
