"""The same network, faster: each convolution by the algorithm that is fastest for its shape here, found by measuring."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from convscope import _heap, timing
from convscope.algorithms import chooser
from convscope.algorithms.base import algorithm as known_algorithm
from convscope.algorithms.base import resolve
from convscope.algorithms.candidates import full_name
from convscope.algorithms.problem import Problem
from convscope.errors import RequestError
from convscope.graph.handover import Links
from convscope.graph.record import flatten
from convscope.rewrites import verify
from convscope.rewrites.base import Change, Edit, Refused, Rule, VerificationError, register
from convscope.rewrites.contest import contest
from convscope.rewrites.convolution import Convolution
from convscope.rewrites.forms import FORMATS, PACKED, PLAIN, Chosen, Form, Options, laid, made, plain
from convscope.rewrites.prepared import PackedLinear, packs
from convscope.rewrites.work import Site, Work, place

KINDS: tuple[type[nn.Module], ...] = (nn.Conv2d, nn.Linear)
NEAR, RIVALS = 2.0, 3  # of the fastest time by itself: so many forms are tried in the network
SMALL = 100_000  # multiply-accumulates of a call below which a linear layer is left
BUDGET = 5.0  # seconds for the contest in the network, and again for the network as a whole
WRONG = (
    1e-3  # of the largest output, own type: an error above it, and a thousand times that before, is a mistake
)


@register
@dataclass(frozen=True)
class Algorithm(Rule):
    """Runs each convolution by the algorithm that is fastest for its shape on this machine.

    "auto" measures, for the network's own shapes, type and number of threads: torch's convolution, in either memory layout
    and with its weight packed beforehand, im2col, FFT (Mathieu et al., 2014), Winograd (Lavin and Gray, 2015); see
    `convscope.algorithms`. A ReLU behind a convolution and nowhere else becomes part of it. Linear layers are packed where
    that is faster. All layers then pass on maps with channels last, where the network runs faster so; and the memory that it
    frees stays with the process as long as it lives, instead of being cleared by the system anew at every call.

    The outputs are the same up to rounding: "exact". In float64 the algorithms themselves are verified so, layer by layer
    and as a network; in the network's own type each was compared with torch's convolution when it was measured, and the
    network as a whole is compared with itself in float64. A network that did not become faster stays as it is.

    The edit of each layer tells the algorithm and the times before and after; the edit without a layer name those of the network.
    A convolution keeps its transformed weight beside its own: Winograd's takes four times the memory at F(4,3).

    Args:
        kind: "auto", or one algorithm for every convolution it can serve: "winograd", "winograd:F(4,3)", "fft", "im2col",
            "direct:channels_last", "direct:packed"; nothing is measured then, and linear layers stay.
        batch: images a call that it is measured for.
        max_error: expected error, relative to the largest output, that no convolution may exceed; the algorithms that
            round most are left out.
        keep: whether freed memory stays with the process while the network lives (only glibc gives it back at all).
        where: which layers.

    Raises:
        UnknownName: there is no such algorithm.
        RequestError: the batch is not a whole number from 1, or the error not above 0.

    Example:
        >>> import torch, convscope
        >>> net = convscope.load(torch.nn.Conv2d(8, 8, 3, padding=1), input="8x32x32")
        >>> made = convscope.rewrite(net, Algorithm("winograd:F(4,3)"))
        >>> made.exactness, made.done[0].error < 1e-12
        ('exact', True)
    """

    name: ClassVar[str] = "algorithm"

    kind: str = "auto"
    batch: int = 1
    max_error: float | None = None
    keep: bool = True

    def __post_init__(self) -> None:
        if self.kind != "auto":
            known_algorithm(self.kind)
        if isinstance(self.batch, bool) or not isinstance(self.batch, int) or self.batch < 1:
            raise RequestError(f"batch={self.batch!r} must be a whole number from 1: images a call.")
        if self.max_error is not None and not self.max_error > 0:
            raise RequestError(
                f"max_error={self.max_error!r} must be above 0, relative to the largest output."
            )

    def apply(self, work: Work) -> None:
        if work.decided is not None:
            self._repeat(work, work.decided)
            return
        sites = []
        for site in work.sites(KINDS, self.where):
            try:
                work.check(site, KINDS)
                sites.append(site)
            except Refused as reason:
                work.refuse(self, site.layer, str(reason))
        if self.kind == "auto":
            self._measured(work, sites)
        else:
            self._named(work, sites)

    # -- one algorithm for all -----------------------------------------------------------------------------

    def _named(self, work: Work, sites: Sequence[Site]) -> None:
        for site in sites:
            try:
                conv = Convolution.of(site.module)
                problem = _problem(conv, site, work.dtype, self.batch)
                chosen, variant = resolve(self.kind, problem)
                error = chosen.error(problem, variant).expected
                if self.max_error is not None and error > self.max_error:
                    raise Refused(
                        f"{self.kind} expects an error of {error:.1e}, above max_error={self.max_error:g}"
                    )
                name = full_name(chosen.name, variant)
            except (Refused, RequestError) as reason:
                work.refuse(self, site.layer, str(reason))
                continue
            work.replace(
                self, site, Change(conv.module(name), "exact", resolved={"algorithm": name, "relu": None})
            )

    # -- by measurement ------------------------------------------------------------------------------------

    def _measured(self, work: Work, sites: Sequence[Site]) -> None:
        refused: dict[str, str] = {}
        for layout in FORMATS:
            refused = {}
            found = self._options(work, sites, layout, refused)
            trial = self._try(work, found, layout, refused) if found else "no layer can be made faster"
            if not isinstance(trial, str):
                self._commit(work, trial, layout)
                break
            refused = dict.fromkeys((each.site.layer for each in found), trial) | refused
        for layer, reason in refused.items():
            work.refuse(self, layer, reason)

    def _options(
        self, work: Work, sites: Sequence[Site], layout: str, refused: dict[str, str]
    ) -> list[Options]:
        links = Links(work.module, work.graph)
        found = []
        for site in sites:
            try:
                if isinstance(site.module, nn.Linear):
                    found.append(self._linear(work, site, layout))
                else:
                    found.append(self._convolution(work, site, links, layout))
            except Refused as reason:
                refused[site.layer] = str(reason)
        return found

    def _convolution(self, work: Work, site: Site, links: Links, layout: str) -> Options:
        conv = Convolution.of(site.module)
        problem = _problem(conv, site, work.dtype, self.batch)
        choice = chooser.choose(problem, layout=layout, max_error=self.max_error)
        if choice.seconds is None:
            raise Refused(choice.reason)
        timed = sorted((each for each in choice.tried if each.seconds), key=lambda e: e.seconds.median)  # type: ignore[union-attr]
        usual = next((each for each in timed if each.algorithm == "direct"), timed[0])
        near = [each for each in timed if each.seconds and each.seconds.median < NEAR * choice.seconds]
        taken = [usual, *[each for each in near if each.algorithm != "direct"][:RIVALS]]
        relu = None if conv.mode == "partial" else _relu_behind(links, site)
        forms: dict[str, Form] = {}
        errors: dict[str, float] = {}
        for each in taken:
            own = each.name in map(plain, FORMATS)  # either layout, where it is measured by itself
            name = plain(layout) if own else each.name
            module = made(conv, name, relu is not None and not own)
            rest = () if relu is None else (nn.ReLU(inplace=True) if own else nn.Identity(),)
            forms[name], errors[name] = (module, *rest), each.expected_error or 0.0
        layers = (site.layer,) if relu is None else (site.layer, relu)
        return Options(site, layers, forms, next(iter(forms)), errors, layout, problem)

    def _linear(self, work: Work, site: Site, layout: str) -> Options:
        part: Any = site.module
        if type(part) is not nn.Linear:
            raise Refused(f"it is a {type(part).__name__}, whose forward pass may do more than multiply")
        rows = math.prod(max((call.in_shapes[0][:-1] for call in site.calls), key=math.prod)) * self.batch
        if not packs(work.dtype, part.weight.device):
            raise Refused("only float32 weights on the CPU can be packed, where torch has oneDNN")
        if rows * part.weight.numel() < SMALL:
            macs = rows * part.weight.numel()
            raise Refused(f"too small for the choice to matter: {macs:,} multiply-accumulates")
        forms: dict[str, Form] = {PLAIN: (verify.copied(part),), PACKED: (PackedLinear.of(part, rows),)}
        key = (rows, part.in_features, part.out_features, part.bias is None)
        return Options(site, (site.layer,), forms, PLAIN, dict.fromkeys(forms, 0.0), layout, key)

    def _try(self, work: Work, found: Sequence[Options], layout: str, refused: dict[str, str]) -> Trial | str:
        """The network with the fastest form of each layer, in its own type: times and errors, or why it is none."""
        dtype = work.dtype
        device = next((p.device for p in work.module.parameters()), torch.device("cpu"))
        x = work.input.example(self.batch, device).to(dtype)
        old = verify.copied(work.module).to(dtype)
        entries = {each.site.layer: each.entry(dtype) for each in found}
        with torch.no_grad(), _heap.kept() if self.keep else nullcontext():
            try:
                times = contest(old, list(entries.values()), x, BUDGET)
            except Exception as error:  # the network's own code: a view that is impossible in this layout
                return f"the network fails with {layout} maps: {' '.join(str(error).split())[:120]}"
            chosen = {each.site.layer: each.chosen(times[each.key], self.batch) for each in found}
            refused |= {layer: reason for layer, reason in chosen.items() if isinstance(reason, str)}
            taken = [each for each in chosen.values() if isinstance(each, Chosen)]
            if not taken:
                return "no layer can be made faster"
            new = copy.deepcopy(old, {id(p): p for p in old.parameters()})  # parameters are shared
            for each in taken:
                parts = entries[each.site.layer].forms[each.form]
                for layer, module in zip(each.layers, parts, strict=False):  # the ReLU stays, or goes too
                    place(new, layer, module)
            errors = self._errors(work, old, new, x)
            whole = _timed(old, new, x)
        gain = whole["before"].over(whole["after"])
        if gain.low <= 1:
            return f"the network as a whole ran no faster: {gain} as fast, with {layout.replace('_', ' ')}"
        return Trial(taken, whole["before"], whole["after"], errors)

    def _errors(self, work: Work, old: nn.Module, new: nn.Module, x: Tensor) -> tuple[float, float]:
        """Of the network in its own type against float64, before and after."""
        exact = list(flatten(work.module(x.double())))
        before, after = (_error(list(flatten(each(x))), exact) for each in (old, new))
        if math.isfinite(before) and not after <= max(WRONG, 1000 * before):
            raise VerificationError(
                f"{self} changed the outputs by {after:.1e} of their maximum in {str(work.dtype)[6:]}, where rounding "
                f"changed them by {before:.1e} before; this is an error of an algorithm, and nothing was changed."
            )
        return before, after

    def _commit(self, work: Work, trial: Trial, layout: str) -> None:
        for each in trial.taken:
            modules = [laid(module, layout) for module in each.modules]
            if len(modules) == 1:
                change = Change(
                    modules[0], "exact", resolved=each.resolved, seconds=each.seconds, notes=each.notes
                )
                work.replace(self, each.site, change)
            else:
                work.replace_run(
                    self, each.layers, modules, named=each.site.layer,
                    resolved=each.resolved, seconds=each.seconds, notes=each.notes,
                )  # fmt: skip
        before, after = trial.errors
        notes = (
            f"{trial.before.over(trial.after)} as fast as before, {trial.after.conditions}, batch {self.batch}",
            f"outputs differ from float64 by {after:.1e} of their maximum, by {before:.1e} before",
            *(("freed memory stays with the process while the network lives",) if self.keep else ()),
        )
        seconds = (trial.before.median, trial.after.median)
        resolved = {"layout": layout, "keep": self.keep}
        told = f"the network, {layout.replace('_', ' ')}"
        work.note(
            Edit("", str(self), "the network", told, "exact", seconds=seconds, resolved=resolved, notes=notes)
        )
        self._hold(work, self.keep)

    def _hold(self, work: Work, keep: bool) -> None:
        if keep:
            work.module._kept_memory = _heap.Hold()  # type: ignore[assignment]

    # -- following a recipe --------------------------------------------------------------------------------

    def _repeat(self, work: Work, decided: Mapping[str, Mapping[str, Any]]) -> None:
        whole = decided.get("", {})
        layout = str(whole.get("layout", "contiguous"))
        for site in work.again(work.sites(KINDS, "*")):
            settled = site.settled or {}
            if settled.get("algorithm") == PACKED and isinstance(site.module, nn.Linear):
                work.put(site.layer, PackedLinear.of(site.module, int(settled.get("rows", 1))))
                continue
            relu = settled.get("relu")
            conv = Convolution.of(site.module)
            module = made(conv, str(settled.get("algorithm", "direct")), relu is not None)
            work.put(site.layer, laid(module, layout))
            if relu is not None:
                work.put(str(relu), nn.Identity())
        self._hold(work, bool(whole.get("keep")))


@dataclass(frozen=True)
class Trial:
    """The network before and after: what changes, times, and errors against float64, relative to the largest output."""

    taken: Sequence[Chosen]
    before: timing.Timing
    after: timing.Timing
    errors: tuple[float, float]


def _timed(old: nn.Module, new: nn.Module, x: Tensor) -> dict[str, timing.Timing]:
    """Both networks in turn, until it is clear which is the faster; at most three times the usual."""
    both = {"before": lambda: old(x), "after": lambda: new(x)}
    for patience in (1, 2, 3):
        whole = timing.measure(
            both, rounds=patience * 30, budget=patience * BUDGET / 2, least=5, device=x.device, dtype=x.dtype
        )
        gain = whole["before"].over(whole["after"])
        if gain.low > 1 or gain.high < 1:
            break
    return whole


def _problem(conv: Convolution, site: Site, dtype: torch.dtype, batch: int) -> Problem:
    """What a convolution computes in the largest of its calls, with so many images."""
    shape = max((call.in_shapes[0] for call in site.calls), key=math.prod)
    if len(shape) != 4:
        raise Refused("it is given a map without a batch")
    size, sides = (shape[2], shape[3]), conv.sides((shape[2], shape[3]))
    if conv.mode not in ("zeros", "partial"):  # laid around before it convolves
        size = (size[0] + sum(sides[0]), size[1] + sum(sides[1]))
        sides = ((0, 0), (0, 0))
    return Problem(
        shape[0] * batch, conv.channels[0], conv.channels[1], size, conv.kernel, conv.stride, sides, conv.dilation,
        conv.groups, dtype, conv.device.type,
    )  # fmt: skip


def _relu_behind(links: Links, site: Site) -> str | None:
    """The ReLU that takes what a layer gives, and nothing else does."""
    value = site.calls[0].outputs[0]
    name = next(
        (op.module for op in links.readers.get(value, ()) if op.name in ("aten.relu", "aten.relu_")), None
    )
    if name is None or type(links.parts.get(name)) is not nn.ReLU:
        return None
    return name if links.refuses(site.layer, name, value) is None else None


def _error(outputs: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """Largest difference, relative to the largest exact output; infinite where the shapes differ."""
    if [y.shape for y in outputs] != [z.shape for z in exact]:
        return math.inf
    worst = 0.0
    for y, z in zip(outputs, exact, strict=True):
        if z.numel() and z.is_floating_point():
            worst = max(worst, float((y.double() - z).abs().max() / z.abs().max().clamp_min(1e-30)))
    return worst
