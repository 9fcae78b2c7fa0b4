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
        loss: the best minus this, paired by seed; None for the best itself, and where no seed has both.
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
    result: StudyResult, cost: str = "macs", margin: float = 0.01, metric: str | None = None
) -> Choice:
    """The cheapest variant whose loss against the best is below the margin at the end of its 95 % interval.

    Variants are gone through from the cheapest on. One whose whole interval is above the margin is passed over; one whose
    interval holds the margin leaves the choice inconclusive, because it might be the answer. The best is the one with the
    highest mean of the same runs, which makes losses look a little larger than they are. A variant of which a run diverged
    is not chosen, unless that is true of all.

    Args:
        result: of the study.
        cost: "macs", "params" or "latency".
        margin: accuracy that one is ready to lose; 0.01 is one percentage point.
        metric: "validation" where there is one, so that the test data has no part in the choice; else the first that
            there is.

    Raises:
        UnknownName: there is no such cost or metric.
        RequestError: the margin is not positive, or no run has finished.
    """
    if isinstance(margin, bool) or not 0 < margin < 1:
        raise RequestError(f"margin={margin!r} must be above 0 and below 1; 0.01 is one percentage point.")
    if metric is None and "validation" in result.metrics:
        metric = "validation"
    metric = result.checked(metric)
    means = result.means(metric)
    sound = [place for place, variant in enumerate(result.variants) if not variant.diverged]
    places = [place for place in sound if means[place] is not None] or range(len(means))
    scored = [(mean.mean, -result.cost(place, cost), place) for place in places if (mean := means[place])]
    best = max(scored)[2]
    order = sorted((-minus, place) for _, minus, place in scored)
    losses = tuple(_loss(result, place, price, best, margin, metric) for price, place in order)
    safe = next(loss for loss in losses if loss.verdict == "within")
    open_ = [loss for loss in losses[: losses.index(safe)] if loss.verdict == "undecided"]
    seeds = None
    if open_:
        wanted = [None if loss.loss is None else seeds_needed(loss.loss, margin) for loss in open_]
        known = [count for count in wanted if count is not None]
        seeds = max(known) if len(known) == len(wanted) else None
    first = losses[0].variant == safe.variant
    text = _text(result, best, safe, open_, seeds, cost, margin, metric, first)
    chosen_from = {loss.variant for loss in losses}
    text += _left_out(result, [place for place in range(len(means)) if place not in chosen_from], safe, cost)
    return Choice(not open_, safe.variant, best, cost, margin, metric, losses, seeds, text)


def _loss(result: StudyResult, place: int, price: float, best: int, margin: float, metric: str) -> Loss:
    if place == best:
        return Loss(place, price, None, "within")
    loss = result.against(best, place, metric)
    verdict: Verdict = "undecided"
    if loss is not None and loss.low is not None and loss.high is not None:
        verdict = "within" if loss.high < margin else "beyond" if loss.low > margin else "undecided"
    return Loss(place, price, loss, verdict)


def _text(
    result: StudyResult,
    best: int,
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
    return (
        f"Inconclusive: {label[one.variant]}{more} might be within {points} of the best, {label[best]}, at less cost (by "
        f"{UNITS[cost]}): {told}; {remedy}. Safe meanwhile: {label[safe.variant]}."
    )


def _gap(loss: Difference | None) -> str:
    """How far a variant is below the best, or above it where only some seeds are shared."""
    assert loss is not None
    sign, word = (1, "lower") if loss.mean >= 0 else (-1, "higher")
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
