"""What `Separable` and `Bottleneck` share: a convolution as two, of a rank that is given, follows from a share or a budget.

A convolution's factors are made once, ordered by what they add; a rank takes the first of them. So all ranks of all layers
can be weighed against each other before one is built.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from convscope.errors import RequestError
from convscope.rewrites import verify
from convscope.rewrites.base import Change, LayerRule, Refused
from convscope.rewrites.budget import Budget, Option, allocate
from convscope.rewrites.convolution import Convolution
from convscope.rewrites.norms import behind, match
from convscope.rewrites.work import Site, Work

METHODS = ("auto", "least_squares", "svd", "truncate")


@dataclass(frozen=True)
class Factors:
    """A convolution in two factors, of every rank.

    Attributes:
        conv: what is factored.
        kept: share of the power kept at rank 1, 2, ... [rank]; of its outputs on the images, or of its weights.
        build: the two convolutions of a rank.
        depthwise: whether the first keeps channels apart, so that a rank is that of each channel; else of each group.
        method: how they were found.
        note: what the reader should know, or "".
    """

    conv: Convolution
    kept: Tensor
    build: Callable[[int], tuple[Convolution, Convolution]]
    depthwise: bool
    method: str
    note: str = ""

    @property
    def full(self) -> int:
        """The rank at which nothing is lost."""
        return len(self.kept)

    def taps(self, rank: int) -> int:
        """Weights of both convolutions, biases apart: what a position of the output costs in multiply-accumulates."""
        inside, outside = self.conv.channels
        if self.depthwise:
            return inside * rank * (self.conv.weight[0, 0].numel() + outside // self.conv.groups)
        return rank * (self.conv.groups * self.conv.weight[0].numel() + outside)

    @property
    def cheaper(self) -> list[int]:
        """The ranks at which the two cost less than the one."""
        return [rank for rank in range(1, self.full + 1) if self.taps(rank) < self.conv.weight.numel()]

    def module(self, rank: int) -> nn.Sequential:
        """The two convolutions of a rank, in float64."""
        parts = (part.module() for part in self.build(rank))
        names = ("depthwise", "pointwise") if self.depthwise else ("reduce", "expand")
        return nn.Sequential(OrderedDict(zip(names, parts, strict=True)))


@dataclass(frozen=True)
class Decision:
    """What a layer gets: factors of a rank, or the reason why it stays."""

    factors: Factors
    rank: int
    reason: str | None = None


@dataclass(frozen=True)
class LowRank(LayerRule):
    """Base of the two rules; see there."""

    kinds: ClassVar[tuple[type[nn.Module], ...]] = (nn.Conv2d,)

    rank: int | None = None
    energy: float | None = None
    budget: str | None = None
    method: str = "auto"
    norms: bool = True

    def __post_init__(self) -> None:
        given = [name for name in ("rank", "energy", "budget") if getattr(self, name) is not None]
        if len(given) != 1:
            which = "none" if not given else " and ".join(given)
            raise RequestError(f"exactly one of rank, energy and budget must be given, not {which}.")
        rank, energy = self.rank, self.energy
        if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
            raise RequestError(f"rank={rank!r} must be a whole number from 1.")
        if energy is not None and (
            isinstance(energy, bool) or not isinstance(energy, (int, float)) or not 0 < energy <= 1
        ):
            raise RequestError(f"energy={energy!r} must be a share above 0 and at most 1.")
        if self.budget is not None:
            Budget.of(self.budget)
        if self.method not in METHODS:
            raise RequestError(f"method={self.method!r} must be one of {', '.join(METHODS)}.")
        if not isinstance(self.norms, bool):
            raise RequestError(f"norms={self.norms!r} must be true or false.")

    # -- what each of the two rules knows ------------------------------------------------------------------

    def readable(self, module: nn.Module) -> Convolution:
        """The convolution, if it is one for this rule.

        Raises:
            Refused: it is not.
        """
        raise NotImplementedError

    def moments(self, work: Work, convs: Mapping[str, Convolution]) -> Mapping[str, Any]:
        """Second moments that the data-aware fit of each layer needs, from one pass over the images."""
        raise NotImplementedError

    def factors(self, conv: Convolution, method: str, moments: Any) -> Factors:
        """All ranks of a convolution."""
        raise NotImplementedError

    # -- what they have in common --------------------------------------------------------------------------

    def apply(self, work: Work) -> None:
        """Replaces the layers, then matches the batch norms behind those that give something else now."""
        before, graph, first = verify.copied(work.module), work.graph, len(work.edits)
        super().apply(work)
        changed = {edit.layer for edit in work.edits[first:] if edit.exactness == "approximate"}
        followers = behind(graph, work.module, changed)
        if self.norms and work.calibration.given and followers and work.settled is None:
            match(self, work, before, followers)

    def chosen(self, work: Work) -> str:
        """How factors are found."""
        if self.method != "auto":
            return self.method
        return "least_squares" if work.calibration.given else "svd"

    def gather(self, work: Work, sites: Sequence[Site]) -> Mapping[str, Decision]:
        """The factors of every layer and, from these, what each gets."""
        method = self.chosen(work)
        if work.settled is not None or (method == "least_squares" and not work.calibration.given):
            return {}  # a recipe says what each gets; without images each is refused
        fit: dict[str, tuple[Site, Convolution]] = {}
        for site in sites:
            try:
                work.check(site, self.kinds)
                fit[site.layer] = site, self.readable(site.module)
            except Refused:
                continue  # and will be again, on record
        convs = {layer: conv for layer, (_, conv) in fit.items()}
        moments = self.moments(work, convs) if method == "least_squares" and convs else {}
        found = {layer: self.factors(conv, method, moments.get(layer)) for layer, conv in convs.items()}
        if self.budget is not None:
            return self._spread([site for site, _ in fit.values()], found)
        return {layer: self._alone(factors) for layer, factors in found.items()}

    def _alone(self, factors: Factors) -> Decision:
        """By rank or energy."""
        if self.rank is not None:
            return Decision(factors, min(self.rank, factors.full))
        assert self.energy is not None
        rank = 1 + int((factors.kept < self.energy - 1e-12).sum())
        if rank not in factors.cheaper:
            return Decision(
                factors, rank, f"to keep {self.energy:g} of its power takes rank {rank}, which costs no less"
            )
        return Decision(factors, rank)

    def _spread(self, sites: Sequence[Site], found: Mapping[str, Factors]) -> Mapping[str, Decision]:
        """By a budget over all of them; staying as it is costs a layer nothing but its cost."""
        assert self.budget is not None
        budget = Budget.of(self.budget)
        ranks = {layer: [0, *factors.cheaper] for layer, factors in found.items()}
        options = [[_option(site, found[site.layer], rank) for rank in ranks[site.layer]] for site in sites]
        picked = allocate(options, budget)
        if picked is None:
            lowest = sum(min(getattr(option, budget.kind) for option in each) for each in options)
            now = sum(getattr(each[0], budget.kind) for each in options)
            raise RequestError(
                f"budget={self.budget!r} cannot be met: at the lowest rank everywhere {lowest / now:.3f} of the "
                f"{budget.kind} are left; ask for more."
            )
        return {
            site.layer: Decision(
                found[site.layer],
                ranks[site.layer][place],
                None if place else f"the budget {self.budget} leaves it as it is",
            )
            for site, place in zip(sites, picked, strict=True)
        }

    def replace(self, site: Site) -> Change:
        conv = self.readable(site.module)
        if site.settled is not None:
            return self._again(conv, site.settled)
        decision = site.gathered
        if decision is None:
            raise Refused('method="least_squares" needs images; give data=')
        if decision.reason is not None:
            raise Refused(decision.reason)
        factors, rank = decision.factors, decision.rank
        exact = rank == factors.full
        kept = 1.0 if exact else float(factors.kept[rank - 1])
        of = "output power on the images" if factors.method == "least_squares" else "the weights' power"
        notes = [f"rank {rank} of {factors.full} keeps {kept:.4g} of {of}", _HOW[factors.method]]
        if exact:
            notes = [f"rank {rank} of {factors.full}: nothing is lost"]
        notes += [factors.note] if factors.note else []
        if rank not in factors.cheaper:
            notes.append("costs no less than the layer did")
        resolved = {"rank": rank, "method": factors.method, "kept": round(kept, 6)}
        return Change(
            factors.module(rank),
            "exact" if exact else "approximate",
            resolved=resolved,
            notes=tuple(notes),
        )

    def _again(self, conv: Convolution, settled: Mapping[str, Any]) -> Change:
        """The structure of before, for weights that come from a file."""
        factors = self.factors(conv, "svd", None)
        rank = min(int(settled["rank"]), factors.full)
        if settled["method"] == "least_squares" and rank < factors.full and conv.bias is None:
            factors = self.factors(conv.with_(bias=conv.weight.new_zeros(len(conv.weight))), "svd", None)
        return Change(factors.module(rank), "exact" if rank == factors.full else "approximate")


_HOW = {
    "least_squares": "fitted to the images",
    "svd": "without data: the nearest weights",
    "truncate": "without data: the largest weights, the others dropped",
}


def _option(site: Site, factors: Factors, rank: int) -> Option:
    """What a layer costs and keeps at a rank; at 0, as it is."""
    conv = factors.conv
    positions = sum(call.out_shapes[0][-1] * call.out_shapes[0][-2] for call in site.calls)
    has_bias = conv.bias is not None or (rank > 0 and factors.method == "least_squares")
    taps = factors.taps(rank) if rank else conv.weight.numel()
    kept = float(factors.kept[rank - 1]) if rank else 1.0
    return Option(taps * positions, taps + has_bias * conv.channels[1], kept)


def pair(
    conv: Convolution, first: Tensor, second: Tensor, bias: Tensor | None, depthwise: bool
) -> tuple[Convolution, Convolution]:
    """The convolution that looks around, and the 1x1 behind it.

    Args:
        conv: what they stand for.
        first: weight of the one, [channel between, in channel / groups, height, width].
        second: weight of the other, [out channel, channel between / groups].
        bias: of the other.
        depthwise: whether the first keeps channels apart.
    """
    around = conv.with_(
        weight=first.contiguous(), bias=None, groups=conv.channels[0] if depthwise else conv.groups
    )
    point = conv.with_(
        weight=second[:, :, None, None].contiguous(), bias=bias, stride=(1, 1), padding=((0, 0), (0, 0)),
        dilation=(1, 1), mode="zeros",
    )  # fmt: skip
    return around, point


def shares(power: Tensor) -> Tensor:
    """What the first 1, 2, ... of these keep of their sum; all where there is nothing. [rank]"""
    total = power.sum()
    if not total > 0:
        return torch.ones_like(power)
    kept = (power.cumsum(0) / total).clamp(0, 1)
    kept[-1] = 1.0
    return kept
