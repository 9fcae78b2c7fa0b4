"""Fully-connected heads become convolutions, so that a classifier of one window gives a map of scores for any image.

A fully-connected layer on a flattened map, [out, channels height width], is a convolution whose kernel is as large as
the map, [out, channels, height, width]; the layers after it are 1x1 convolutions; an adaptive pool in front is, at the
trained size, a pool with a fixed window (for VGG-16 at 224 nothing at all). Long, Shelhamer, Darrell, "Fully
Convolutional Networks for Semantic Segmentation" (2015); Sermanet et al., "OverFeat" (2014).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from convscope.errors import ModelError, RequestError
from convscope.graph import record
from convscope.rewrites import verify
from convscope.rewrites.base import Edit, Exactness, Refused, Rule, VerificationError, register
from convscope.rewrites.calibrate import watched
from convscope.rewrites.dense import Pair, Spread, crops_differ, layer_differs, meta_copy, put, spreads
from convscope.rewrites.head import (
    Head,
    HeadConv2d,
    Scores,
    Step,
    convolution_of,
    is_linear,
    pool_for,
    pool_kind,
    read_head,
)
from convscope.rewrites.unflatten import unflatten
from convscope.rewrites.work import Site, Work

TRIED = 5  # windows of an image that scores are compared on


@register
@dataclass(frozen=True)
class Convolutionalize(Rule):
    """Makes a fully-connected head convolutional: any image from the trained size up, one score a window.

    At the trained size the outputs are the same, [batch, classes]: a map of one position comes out flat. On a larger
    image they are a map [batch, classes, rows, columns], whose positions are the scores of windows of the trained size,
    as many pixels apart as the network's strides make; with `dense`, as many as asked for, down to 1, by moving strides
    into the dilation of all later layers (see `convscope.rewrites.dense`).

    Exactness is that of the scores against cutting the windows out one by one. "exact" where no layer pads: then a
    window knows nothing of what lies around it either way. Where layers pad, a window that is cut out has zeros where
    the image has pixels; the fully-connected layers look at the whole window, so that no score is free of it:
    "approximate" with `dense`, its difference measured. Without `dense` the claim is the trained size alone ("exact"),
    and the difference on larger images is a note.

    Args:
        dense: whether to evaluate between the network's own strides; stride 1 unless `stride` is given.
        stride: pixels between windows, one number or (height, width); must divide the network's own. Implies `dense`.
        where: names that must match the fully-connected layers.

    Raises:
        RequestError: a stride below 1.

    Example:
        >>> import torch, convscope
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 4, 3), torch.nn.MaxPool2d(2), torch.nn.Flatten(), torch.nn.Linear(4 * 7 * 7, 10)
        ... )
        >>> made = convscope.rewrite(net, Convolutionalize(dense=True), input="3x16x16")
        >>> made.exactness, made.net.module(torch.zeros(1, 3, 16, 16)).shape, made.net.module(torch.zeros(1, 3, 18, 20)).shape
        ('exact', torch.Size([1, 10]), torch.Size([1, 10, 3, 5]))
    """

    name: ClassVar[str] = "convolutionalize"
    one_size: ClassVar[bool] = True

    dense: bool = False
    stride: int | tuple[int, int] | None = None

    def __post_init__(self) -> None:
        sizes = self.stride if isinstance(self.stride, tuple) else (self.stride or 1, 1)
        if (
            self.stride == 0
            or len(sizes) != 2
            or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in sizes)
        ):
            raise RequestError(f"stride={self.stride!r} must be a whole number from 1, or (height, width).")

    @property
    def wanted(self) -> Pair | None:
        """Pixels between windows, (height, width); None for those of the network."""
        if self.stride is None:
            return (1, 1) if self.dense else None
        return self.stride if isinstance(self.stride, tuple) else (self.stride, self.stride)

    def apply(self, work: Work) -> None:
        """The head first, then the strides; refused as a whole, the copy as it was."""
        before, mark = verify.copied(work.module), len(work.edits)
        try:
            edits = [*self._head(work), *self._dense(work, before)]
        except (Refused, ModelError) as reason:  # the latter: maps that fitted together no longer do
            work.module = before
            work.structure_changed()
            del work.edits[mark:]
            work.refuse(self, "", str(reason).rstrip("."))
            return
        for edit in edits:
            work.note(edit)

    # -- the head ------------------------------------------------------------------------------------------

    def _head(self, work: Work) -> list[Edit]:
        head = read_head(work.graph, work.module)
        sites = {site.layer: site for site in work.sites((nn.Linear,), self.where)}
        left = [layer for layer in head.linears if layer not in sites]
        if left:
            raise Refused(
                f"where={self.where!r} leaves out {left[0]!r}, without which the head is no convolution"
            )
        for layer in head.linears:
            work.check(sites[layer], (nn.Linear,))
            if len(sites[layer].calls) != 1 or not is_linear(sites[layer].module):
                raise Refused(f"{layer!r} is called several times, or does more than multiply by its weights")
        operations = self._operations(work, head)  # told by running what comes after them, as it was
        return [*operations, *self._modules(work, head, sites)]

    def _modules(self, work: Work, head: Head, sites: dict[str, Site]) -> list[Edit]:
        """Steps that are modules of their own: pools, Flatten, Linear, BatchNorm1d."""
        found = []
        size: tuple[int, int] = (head.map_shape[2], head.map_shape[3])
        modules = dict(work.module.named_modules())
        for position, step in enumerate(head.steps):
            ends = not any(later.kind in ("linear", "norm") for later in head.steps[position + 1 :])
            made: nn.Module | None = None
            if step.kind == "linear":
                made = convolution_of(modules[step.layer], size, ends)
                size = (1, 1)
            elif step.kind == "norm":
                if ends:
                    raise Refused(f"{step.name} comes after the last fully-connected layer")
                made = _as_2d(modules[step.layer])
            elif step.kind == "pool":
                size = (step.after[2], step.after[3]) if len(step.after) == 4 else (1, 1)
                made = None if step.is_op else self._pool(work, step)
                if made is not None and ends and len(step.after) == 2:
                    made = nn.Sequential(made, Scores())
            elif step.kind == "flatten" and not step.is_op:
                made = Scores() if ends else nn.Identity()
            if made is not None:
                found.append(self._edit(step.layer, modules[step.layer], made))
        for edit, made in found:
            work.put(edit.layer, made)
        work.structure_changed()
        return [edit for edit, _ in found]

    def _pool(self, work: Work, step: Step) -> nn.Module:
        part = dict(work.module.named_modules())[step.layer]
        x = torch.randn(step.before, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        with torch.no_grad():
            kind = pool_kind(x, part(x))
        if kind is None:
            raise Refused(f"{step.name} is neither average nor maximum pooling")
        return pool_for(kind, step.before, step.after)

    def _operations(self, work: Work, head: Head) -> list[Edit]:
        """Steps that some module's own forward does."""
        found = []
        for layer in dict.fromkeys(step.layer for step in head.steps if step.is_op):
            own = [
                step
                for step in head.steps
                if step.is_op and step.layer == layer and step.kind in ("flatten", "pool")
            ]
            if not own:
                continue
            part = dict(work.module.named_modules())[layer]
            last = head.steps.index(own[-1])
            ends = not any(later.kind in ("linear", "norm") for later in head.steps[last:])
            made, told = unflatten(part, _arguments(work, layer), own, ends)
            found.append(
                Edit(layer, str(self), f"flattens by itself: {told}", "keeps the map", "exact", 0.0, 0.0)
            )
            work.put(layer, made)
        work.structure_changed()
        return found

    def _edit(self, layer: str, old: nn.Module, new: nn.Module) -> tuple[Edit, nn.Module]:
        count = [sum(p.numel() for p in each.parameters()) for each in (old, new)]
        macs = (old.weight.numel(),) * 2 if isinstance(old, nn.Linear) else None  # one position either way
        text = [" ".join(str(each).split()) for each in (old, new)]
        edit = Edit(
            layer, str(self), text[0], text[1], "exact", 0.0, 0.0, params=(count[0], count[1]), macs=macs
        )
        return edit, new

    # -- strides -------------------------------------------------------------------------------------------

    def _dense(self, work: Work, before: nn.Module) -> list[Edit]:
        """Spreads the layers, and compares the scores with those of windows cut out."""
        spec, window = work.as_net().input, work.input.size
        self._compare(work, before)
        _check_map(work)
        try:
            plan, total = spreads(work.module, spec, self.wanted)
        except Refused as reason:
            if self.wanted is not None:
                raise
            note = f"on larger images its scores are not those of windows: {reason}"
            edit = Edit("", str(self), "scores", "a map of scores for larger images", "exact", 0.0, 0.0)
            return [replace(edit, notes=(note,))]
        stride = self.wanted or total
        found, padded = [], any(one.padded for one in plan)
        if self.wanted is not None:
            natural = verify.copied(work.module)
            found = self._spread(work, plan)
            self._trim(work)
            work.structure_changed()
            self._compare(work, before)
            self._same_grid(work, natural, spreads(natural, spec, None)[0], total, stride)
        grid = record(meta_copy(work.module), spec=spec.with_size(window[0] + total[0], window[1] + total[1]))
        shape = grid.values[grid.calls[-1].outputs[0]].shape
        if shape[2:] != tuple(t // s + 1 for t, s in zip(total, stride, strict=True)):
            raise Refused(
                f"an image {total[0]}x{total[1]} pixels larger gives {list(shape)}, not a score a window"
            )
        error, rms, count = (0.0, 0.0, 0)
        if work.settled is None:
            error, rms, count = crops_differ(before, work.module, _images(work, total), window, stride, TRIED)
        exact = not padded
        if exact and not error <= verify.DEEP:
            raise VerificationError(
                f"{self} claims 'exact', but scores differ from those of windows by {error:.1e} in float64."
            )
        told = f"against {count} windows cut out of larger images the scores differ by {error:.1e} of their maximum"
        if padded:
            told += ": windows that are cut out see zeros where the image goes on"
        kind: Exactness = "approximate" if padded and self.wanted is not None else "exact"
        apart = f"{stride[0]}x{stride[1]}" if stride[0] != stride[1] else str(stride[0])
        edit = Edit(
            "",
            str(self),
            f"one score a class for {window[0]}x{window[1]} pixels",
            f"scores of windows {apart} pixels apart",
            kind,
            error if self.wanted is not None else 0.0,
            rms if self.wanted is not None else 0.0,
            resolved={} if self.wanted is None else {"stride": self.stride or 1},
            notes=(told,),
        )
        return [*found, edit]

    def _spread(self, work: Work, plan: list[Spread]) -> list[Edit]:
        """Each layer with the stride and dilation it needs, compared with itself on every grid it interleaves.

        Raises:
            VerificationError: a layer gives something else.
        """
        found = []
        for one in plan:
            if one.unchanged:
                continue
            made = one.made()
            error = layer_differs(one, made) if work.settled is None else 0.0
            if not error <= verify.ROUNDING:
                raise VerificationError(
                    f"{self} on layer {one.layer!r} gave a wrong replacement: off by {error:.1e}."
                )
            edit, _ = self._edit(one.layer, one.module, made)
            found.append(replace(edit, error=error))
            work.put(one.layer, made)
        return found

    def _same_grid(
        self, work: Work, natural: nn.Module, plan: list[Spread], total: Pair, stride: Pair
    ) -> None:
        """On the network's own grid the scores are its own, whatever it pads.

        Raises:
            VerificationError: they differ.
        """
        if work.settled is not None:
            return
        for one in plan:
            if not one.unchanged:  # TensorFlow's "same" becomes what it is for one window
                put(natural, one.layer, one.made())
        image = _images(work, total)
        with torch.no_grad():
            expected, got = natural(image), work.module(image)
        got = got[:, :, :: total[0] // stride[0], :: total[1] // stride[1]]
        error = float((got - expected).abs().max() / expected.abs().max())
        if got.shape != expected.shape or not error <= verify.DEEP:
            raise VerificationError(
                f"{self} is off by {error:.1e} on the network's own grid of {total[0]}x{total[1]} pixels; this is an "
                "error of the rule, and nothing was changed."
            )

    def _trim(self, work: Work) -> None:
        """Leaves out the scores of windows that begin in the image of one window, but for the first.

        Between its strides a network has room for more: they would hang over the image.
        """
        small = record(meta_copy(work.module), spec=work.as_net().input)
        shape = small.values[small.calls[-1].outputs[0]].shape
        for part in work.module.modules():
            if isinstance(part, Scores) or (isinstance(part, HeadConv2d) and part.flat):
                part.trim = (shape[2] - 1, shape[3] - 1) if len(shape) == 4 else (0, 0)

    def _compare(self, work: Work, before: nn.Module) -> None:
        """The scores of one window are what they were.

        Raises:
            Refused: the network does not run any more: maps do not fit that fitted before.
            VerificationError: they differ.
        """
        if work.settled is not None:
            return
        inputs = [(x,) for x in work.calibration.network_inputs(work.input)]
        try:
            with torch.no_grad():
                work.module(*inputs[0])
        except Exception as error:  # the network's own code: anything may come
            reason = " ".join(str(error).split())[:160]
            raise Refused(f"its forward does not take maps that keep their size ({reason})") from None
        found = verify.compare(before, work.module, inputs, (0, 0))
        if not found.error <= verify.DEEP:
            raise VerificationError(
                f"{self} changed the network's output by {found.error:.1e} of its maximum in float64; this is an error "
                "of the rule, and nothing was changed."
            )


def _check_map(work: Work) -> None:
    """Larger images give a map of scores.

    Raises:
        Refused: they do not.
    """
    size = (2 * work.input.size[0], 2 * work.input.size[1])
    try:
        large = record(meta_copy(work.module), spec=work.as_net().input.with_size(*size))
    except ModelError as error:
        raise Refused(f"it is held to its input size apart from its head: {error}") from None
    shape = large.values[large.calls[-1].outputs[0]].shape
    if len(shape) != 4:
        raise Refused(
            f"an image of {size[0]}x{size[1]} still gives {list(shape)}: some layer before the head pools it"
        )


def _as_2d(norm: nn.Module) -> nn.Module:
    made = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)  # type: ignore[arg-type]
    made.double().load_state_dict(norm.state_dict())
    return made.eval()


def _arguments(work: Work, layer: str) -> tuple[Any, ...]:
    """What a module is given in a pass on random input."""
    if not layer:
        return (work.calibration.network_inputs(work.input)[0],)
    kept: list[tuple[Tensor, ...]] = []
    with watched(work.module, {layer: lambda *tensors: kept.append(tensors)}), torch.no_grad():
        work.module(work.calibration.network_inputs(work.input)[0])
    if len(kept) != 1:
        raise Refused(f"{layer!r} flattens by itself and is called {len(kept)} times")
    return kept[0]


def _images(work: Work, more: Pair) -> Tensor:
    """One random image larger than the window by as much along each axis."""
    generator = torch.Generator().manual_seed(2)
    channels, (height, width) = work.input.channels, work.input.size
    return torch.randn(
        1, channels, height + more[0], width + more[1], generator=generator, dtype=torch.float64
    )
