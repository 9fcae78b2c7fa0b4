"""What only training can settle: read from the record of a study, or left open.

A study trains variants of a network over several seeds (`convscope.study`). Its record is searched for two variants that
differ in just what a claim is about; the verdict follows from the paired difference over seeds and its interval. Where no
record has such variants the claim is inconclusive: nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convscope.answers.base import Finding, Verdict, found, unstudied
from convscope.studies.shelf import records

if TYPE_CHECKING:
    from convscope.answers.asked import Asked
    from convscope.studies.results import StudyResult


def trained(
    asked: Asked,
    claim: str,
    test: str,
    *,
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    margin: float | None = None,
    metric: str | None = None,
) -> Finding:
    """A finding from the record of a study: does the first kind of network do better than the second?

    Args:
        asked: says where else than among the shipped ones records are.
        claim: identifier of the claim.
        test: what the study compares, one clause.
        first, second: factor -> level of the variants; all other factors must be equal.
        margin: where the claim is "as good or better": the loss in accuracy, 0.01 for a percentage point, that is
            taken for equal. By default the first must be better.
        metric: "test", "validation" or "train"; the first of these that there is by default.
    """
    for name, result in records(asked.studies):
        pair = _variants(result, first, second)
        if pair is None or not result.metrics or (metric is not None and metric not in result.metrics):
            continue
        difference = result.against(*pair, metric)
        if difference is None:
            continue
        means = result.means(metric)
        a, b = (means[place] for place in pair)
        assert a is not None
        assert b is not None
        told: dict[str, Any] = {
            "study": name,
            "first": result.variants[pair[0]].label,
            "second": result.variants[pair[1]].label,
            "a": a.mean,
            "b": b.mean,
            "points": 100 * difference.mean,
            "low": None if difference.low is None else 100 * difference.low,
            "high": None if difference.high is None else 100 * difference.high,
            "seeds": difference.count,
            "metric": metric or result.metrics[0],
        }
        say = (
            "In the study {study}, {first} reached {a:.1%} ({metric} accuracy) and {second} {b:.1%}: a difference of "
            "{points:+.2f} points ({low:+.2f} to {high:+.2f}) over {seeds} seeds."
        )
        least = 0.0 if margin is None else -margin
        if difference.low is None or difference.high is None:
            say = say.replace(" ({low:+.2f} to {high:+.2f})", "")
            return found(claim, Verdict.OPEN, test, say, when="one seed has no interval", **told)
        if difference.low > least:
            return found(claim, True, test, say, **told)
        if difference.high < least:
            return found(claim, False, test, say, **told)
        why = "{seeds} seeds do not tell the two apart"
        return found(claim, Verdict.OPEN, test, say, when=why, **told)
    return unstudied(claim, test)


def _variants(
    result: StudyResult, first: Mapping[str, Any], second: Mapping[str, Any]
) -> tuple[int, int] | None:
    """Places of two variants with these levels that are equal in all else."""
    for place, one in enumerate(result.variants):
        if not _has(one.values, first):
            continue
        for other, two in enumerate(result.variants):
            rest = {k: v for k, v in one.values.items() if k not in first and k not in second}
            if other != place and _has(two.values, second) and _has(two.values, rest):
                return place, other
    return None


def _has(values: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(name in values and values[name] == level for name, level in wanted.items())
