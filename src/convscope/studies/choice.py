"""Which variant to take: the cheapest that is known to lose little against the best; or that this is not known yet."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Literal

from convscope.errors import RequestError
from convscope.studies.statistics import Difference, seeds_needed
from convscope.studies.tables import figure

if TYPE_CHECKING:
    from convscope.studies.results import StudyResult

Verdict = Literal["within", "beyond", "undecided"]
UNITS = {"macs": "MACs", "params": "parameters", "latency": "seconds"}


@dataclass(frozen=True)
class Loss:
    """What a variant loses against the best one.

    Attributes:
        variant: its place.
        cost: of the kind asked for.
        loss: the best minus this, or the runner-up minus the best, paired by seed; None where no seed has both, and of a
            variant alone.
        verdict: "within" the margin at the interval's end, "beyond" it at the other end, or "undecided".
    """

    variant: int
    cost: float
    loss: Difference | None
    verdict: Verdict


@dataclass(frozen=True)
class Choice:
    """The answer to "which should I choose"; prints as its text.

    Attributes:
        conclusive: whether it is known.
        variant: place of the cheapest variant known to be within the margin; where the choice is not conclusive, the
            one that is safe to take meanwhile.
        best: place of the variant with the highest mean.
        cost, margin, metric: what was asked.
        losses: of every variant, the cheapest first.
        seeds: about how many seeds would settle it; None where it is settled, or that many are too many or unknown.
        text: all this in words.
    """

    conclusive: bool
    variant: int
    best: int
    cost: str
    margin: float
    metric: str
    losses: tuple[Loss, ...]
    seeds: int | None
    text: str

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return f"<p>{escape(self.text)}</p>"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "losses"}
        plain["losses"] = [
            {
                "variant": loss.variant,
                "cost": loss.cost if math.isfinite(loss.cost) else None,
                "loss": None if loss.loss is None else loss.loss.to_dict(),
                "verdict": loss.verdict,
            }
            for loss in self.losses
        ]
        return plain


def choose(
    result: StudyResult, cost: str | None = None, margin: float = 0.01, metric: str | None = None
) -> Choice:
    """The cheapest variant whose loss against the best is below the margin at the end of its 95 % interval.

    Variants are gone through from the cheapest on. One whose whole interval is above the margin is passed over; one whose
    interval holds the margin leaves the choice inconclusive, because it might be the answer. The best is the one with the
    highest mean of the same runs, which makes losses look a little larger than they are; it may be so by luck, so that its
    own loss is that against the runner-up. A variant of which a run diverged
    is not chosen, unless that is true of all.

    Args:
        result: of the study.
        cost: "macs", "params" or "latency"; MACs unless given, or parameters where MACs are not counted, as of text.
        margin: accuracy that one is ready to lose; 0.01 is one percentage point.
        metric: "validation" where there is one, so that the test data has no part in the choice; else the first that
            there is.

    Raises:
        UnknownName: there is no such cost or metric.
        RequestError: the margin is not positive, no run has finished, or no variant has a cost of that kind.
    """
    if isinstance(margin, bool) or not 0 < margin < 1:
        raise RequestError(f"margin={margin!r} must be above 0 and below 1; 0.01 is one percentage point.")
    if metric is None and "validation" in result.metrics:
        metric = "validation"
    metric = result.checked(metric)
    cost = _known(result, cost)
    means = result.means(metric)
    sound = [place for place, variant in enumerate(result.variants) if not variant.diverged]
    places = [place for place in sound if means[place] is not None] or range(len(means))
    scored = [(mean.mean, -result.cost(place, cost), place) for place in places if (mean := means[place])]
    best, *others = (place for _, _, place in sorted(scored, reverse=True))
    order = sorted((-minus, place) for _, minus, place in scored)
    losses = tuple(
        _loss(result, place, price, others[0] if place == best and others else best, margin, metric)
        for price, place in order
    )
    within = [loss for loss in losses if loss.verdict == "within"]
    safe = within[0] if within else next(loss for loss in losses if loss.variant == best)
    before = losses.index(safe) + (not within)  # where none is safe, the best itself is open
    open_ = [loss for loss in losses[:before] if loss.verdict == "undecided"]
    seeds = None
    if open_:
        wanted = [None if loss.loss is None else seeds_needed(loss.loss, margin) for loss in open_]
        known = [count for count in wanted if count is not None]
        seeds = max(known) if len(known) == len(wanted) else None
    first = losses[0].variant == safe.variant
    text = _text(result, best, others[:1], safe, open_, seeds, cost, margin, metric, first)
    chosen_from = {loss.variant for loss in losses}
    text += _left_out(result, [place for place in range(len(means)) if place not in chosen_from], safe, cost)
    return Choice(not open_, safe.variant, best, cost, margin, metric, losses, seeds, text)


def _known(result: StudyResult, cost: str | None) -> str:
    """A cost that at least one variant has."""
    known = result.costs
    if cost is None:
        cost = next((kind for kind in ("macs", "params") if kind in known), "macs")
    result.cost(0, cost)  # a name that there is
    if cost not in known:
        instead = f"take {' or '.join(known)}" if known else "no other is known either"
        raise RequestError(
            f"cost={cost!r} is not known of any variant of this study, so that none is the cheapest; {instead}."
        )
    return cost


def _loss(result: StudyResult, place: int, price: float, best: int, margin: float, metric: str) -> Loss:
    if place == best:
        return Loss(place, price, None, "within")  # there is no other
    loss = result.against(best, place, metric)
    verdict: Verdict = "undecided"
    if loss is not None and loss.low is not None and loss.high is not None:
        verdict = "within" if loss.high < margin else "beyond" if loss.low > margin else "undecided"
    return Loss(place, price, loss, verdict)


def _text(
    result: StudyResult,
    best: int,
    runner_up: list[int],
    safe: Loss,
    undecided: list[Loss],
    seeds: int | None,
    cost: str,
    margin: float,
    metric: str,
    first: bool,
) -> str:
    score = f"{metric} {figure(result)}"
    label = [variant.label for variant in result.variants]
    points = f"{100 * margin:g} point{'' if margin == 0.01 else 's'}"
    if not undecided:
        if safe.variant == best and first:
            return f"Take {label[best]}: it has the best {score}, and none costs less (by {UNITS[cost]})."
        if safe.variant == best:
            return (
                f"Take {label[best]}: it has the best {score}, and every cheaper variant (by {UNITS[cost]}) loses "
                f"more than {points}."
            )
        return (
            f"Take {label[safe.variant]}: the cheapest (by {UNITS[cost]}) that is within {points} of the best, "
            f"{label[best]}; its {score} is {_gap(safe.loss)}."
        )
    one = undecided[0]
    more = f" and {len(undecided) - 1} more" if len(undecided) > 1 else ""
    ran = 0 if one.loss is None else one.loss.count
    told = f"its {score} is {_gap(one.loss)}" if one.loss else "no seed has both"
    if seeds is not None:
        remedy = f"about {seeds} seeds would tell (there are {ran})"
    elif ran < 2:
        remedy = f"more seeds are needed (there {'is' if ran == 1 else 'are'} {ran})"
    else:
        remedy = f"more than 1000 seeds would be needed (there are {ran}): the loss is about as large as the margin"
    if one.variant == best:
        return (
            f"Inconclusive: {label[runner_up[0]]} might be more than {points} better than the best so far, {label[best]}: its "
            f"{score} is {_gap(one.loss, other=True)}; {remedy}. Safe meanwhile: {label[safe.variant]}."
        )
    less = "less" if one.cost < result.cost(best, cost) else "the same"
    return (
        f"Inconclusive: {label[one.variant]}{more} might be within {points} of the best, {label[best]}, at {less} cost (by "
        f"{UNITS[cost]}): {told}; {remedy}. Safe meanwhile: {label[safe.variant]}."
    )


def _gap(loss: Difference | None, other: bool = False) -> str:
    """How far a variant is below the best, or above it where only some seeds are shared.

    Args:
        loss: one minus the variant.
        other: told of that one, and not of the variant.
    """
    if loss is None:
        return "not known on the same seeds"
    sign, word = (1, "lower") if (loss.mean >= 0) != other else (-1, "higher")
    sign = -sign if other else sign
    if loss.low is None or loss.high is None:
        return f"{100 * sign * loss.mean:.2f} points {word}"
    low, high = sorted((100 * sign * loss.low, 100 * sign * loss.high))
    return f"{100 * sign * loss.mean:.2f} points ({low:.2f} to {high:.2f}) {word}"


def _left_out(result: StudyResult, places: list[int], safe: Loss, cost: str) -> str:
    """The cheaper variants that nobody can take, because they diverged or did not finish."""
    cheaper = [place for place in places if result.cost(place, cost) < safe.cost]
    if not cheaper:
        return ""
    told = []
    for place in cheaper[:3]:
        variant = result.variants[place]
        why = (
            f"{variant.diverged} of {len(variant.runs)} runs diverged"
            if variant.diverged
            else "no run finished"
        )
        told.append(f"{variant.label} ({why})")
    more = f" and {len(cheaper) - 3} more" if len(cheaper) > 3 else ""
    return f" Left out, though cheaper: {', '.join(told)}{more}."
