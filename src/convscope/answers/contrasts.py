"""What a study's record says beyond one pair of variants: whether a difference depends on something, and other sums of scores.

As in `evidence`, the unit is the seed, a verdict follows from an interval, and where nothing is on record nothing is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convscope.answers.base import Finding, Verdict, found, unstudied
from convscope.answers.evidence import _has
from convscope.studies.results import VariantResult
from convscope.studies.shelf import records
from convscope.studies.statistics import Difference, paired

if TYPE_CHECKING:
    from convscope.answers.asked import Asked

Levels = Mapping[str, Any]
UNSURE = "{seeds} seeds do not tell"


@dataclass(frozen=True)
class Studied:
    """Variants of one study.

    Attributes:
        study: its name.
        variants: by the name they were looked for under.
    """

    study: str
    variants: Mapping[str, VariantResult]

    def score(self, weights: Mapping[tuple[str, str], float]) -> Difference | None:
        """A sum of scores with its interval over the seeds that have all of them; None where no seed has.

        Args:
            weights: (name of a variant, split) -> what its accuracy counts.
        """
        scores = {key: self.variants[key[0]].scores(key[1]) for key in weights}
        seeds = [seed for seed in next(iter(scores.values())) if all(seed in one for one in scores.values())]
        if not seeds:
            return None
        sums = [sum(weight * scores[key][seed] for key, weight in weights.items()) for seed in seeds]
        return paired(sums, [0.0] * len(sums))

    def mean(self, name: str, split: str = "test") -> float | None:
        """Mean accuracy of a variant."""
        found_ = self.score({(name, split): 1.0})
        return None if found_ is None else found_.mean


def studied(asked: Asked, wanted: Mapping[str, Levels]) -> Studied | None:
    """The first study on record that has all these variants, equal in every factor that none of them names.

    Args:
        asked: says where records are.
        wanted: a name -> factor -> level.
    """
    named = {factor for levels in wanted.values() for factor in levels}
    first, *others = wanted
    for study, result in records(asked.studies):
        for one in result.variants:
            if not _has(one.values, wanted[first]):
                continue
            rest = {factor: level for factor, level in one.values.items() if factor not in named}
            found_ = {first: one}
            for name in others:
                match = next((v for v in result.variants if _has(v.values, {**wanted[name], **rest})), None)
                if match is not None:
                    found_[name] = match
            if len(found_) == len(wanted) and all(variant.runs for variant in found_.values()):
                return Studied(study, found_)
    return None


def depends(
    asked: Asked,
    claim: str,
    test: str,
    *,
    first: Levels,
    second: Levels,
    here: Levels,
    there: Levels,
    places: tuple[str, str],
) -> Finding:
    """A finding on whether the first kind gains more on the second `here` than `there`: a difference of differences.

    Args:
        asked: says where records are.
        claim: identifier of the claim.
        test: what the study compares, one clause.
        first, second: factor -> level of the two kinds.
        here, there: factor -> level of the two conditions.
        places: the conditions in words, as behind "gained".
    """
    kinds, conditions = {"first": first, "second": second}, {"here": here, "there": there}
    known = studied(
        asked,
        {f"{kind} {place}": {**kinds[kind], **conditions[place]} for kind in kinds for place in conditions},
    )
    if known is None:
        return unstudied(claim, test)
    gains = {
        place: known.score({(f"first {place}", "test"): 1.0, (f"second {place}", "test"): -1.0})
        for place in conditions
    }
    both = known.score(
        {
            ("first here", "test"): 1.0,
            ("second here", "test"): -1.0,
            ("first there", "test"): -1.0,
            ("second there", "test"): 1.0,
        }
    )
    if both is None or gains["here"] is None or gains["there"] is None:
        return unstudied(claim, test)
    told = {
        "study": known.study,
        "one": _told(first),
        "other": _told(second),
        "a": 100 * gains["here"].mean,
        "b": 100 * gains["there"].mean,
        "here": places[0],
        "there": places[1],
        **interval(both),
    }
    say = (
        "In the study {study}, {one} gained {a:+.2f} points of test accuracy on {other} {here} and {b:+.2f} {there}: a "
        "difference of {points:+.2f} points ({low:+.2f} to {high:+.2f}) over {seeds} seeds."
    )
    return by_interval(claim, test, say, both, told)


def interval(difference: Difference) -> dict[str, Any]:
    """A difference in points, as figures."""
    points = [None if end is None else 100 * end for end in (difference.low, difference.high)]
    return {"points": 100 * difference.mean, "low": points[0], "high": points[1], "seeds": difference.count}


def by_interval(claim: str, test: str, say: str, difference: Difference, told: Mapping[str, Any]) -> Finding:
    """Holds where the interval lies above 0, does not where it lies below, else open."""
    if difference.low is None or difference.high is None:
        say = say.replace(" ({low:+.2f} to {high:+.2f})", "")
        return found(claim, Verdict.OPEN, test, say, when="one seed has no interval", **told)
    if difference.low > 0 or difference.high < 0:
        return found(claim, difference.low > 0, test, say, **told)
    return found(claim, Verdict.OPEN, test, say, when=UNSURE, **told)


def _told(levels: Levels) -> str:
    return ", ".join(f"{name}={level}" for name, level in levels.items())
