"""What the figures of `answers.locally_connected` and the record of a study say."""

from __future__ import annotations

from typing import Any

from convscope.answers.asked import Asked
from convscope.answers.base import Finding, Verdict, fill, found, unstudied
from convscope.answers.contrasts import UNSURE, interval, studied

_SMALL = 0.5  # a region of less than half the image
_ROUNDING = 1e-9  # in float64


def findings(
    asked: Asked, counts: dict[str, Any], shifted: dict[str, Any], learned: dict[str, Any]
) -> list[Finding]:
    """The verdicts, from the figures and the record."""
    return [_region(counts), _saves(counts), _moves(shifted), _nuances(asked, learned)]


def _region(counts: dict[str, Any]) -> Finding:
    """L1: of its own input, and of the image."""
    rows = counts["rows"]
    area = counts["input"][0] * counts["input"][1]

    def shares(key: str) -> list[float]:
        if key == "kernel":
            return [
                row["kernel"][0] * row["kernel"][1] / max(row["before"][0] * row["before"][1], 1)
                for row in rows
            ]
        return [
            min(row["field"][0], counts["input"][0]) * min(row["field"][1], counts["input"][1]) / area
            for row in rows
        ]

    own, image = shares("kernel"), shares("field")
    told = {
        "net": counts["net"],
        "layers": len(rows),
        "own": max(own),
        "first": image[0],
        "small": sum(one < _SMALL for one in image),
        "last": rows[-1]["name"],
        "deep": image[-1],
        "field": rows[-1]["field"],
        "input": counts["input"],
    }
    test = "the kernel of each of {layers} convolutions of {net} against its input, and its receptive field against the image"
    say = (
        "A neuron sees {own:.0%} of its own input at most. Of the image one in the first layer sees {first:.1%}, one in {last} "
        "{deep:.0%} (a field of {field} on {input}); in {small} of {layers} layers it is less than half."
    )
    if told["small"] == len(rows):
        return found("L1", True, test, say, **told)
    if told["small"] or told["own"] < _SMALL:
        when = "its own input is meant, or an early layer"
        return found("L1", Verdict.WHEN, test, say, when=when, **told)
    return found("L1", False, test, say, **told)


def _saves(counts: dict[str, Any]) -> Finding:
    """L2, on the layers and, to check the formula, on real ones."""
    rows = counts["rows"]
    total = {kind: sum(row[kind] for row in rows) for kind in ("shared", "local", "full")}
    fewer = [row for row in rows if row["shared"] < row["local"] < row["full"]]
    agree = [
        built
        for built in counts["built"]
        for row in rows
        if row["name"] == built["layer"] and all(row[kind] == built[kind] for kind in total)
    ]
    told = {
        "net": counts["net"],
        "layers": len(rows),
        "fewer": len(fewer),
        **total,
        "local_x": total["local"] / max(total["shared"], 1),
        "full_x": total["full"] / max(total["shared"], 1),
        "built": len(agree),
    }
    test = "weights of the {layers} convolutions of {net}: shared, one kernel a position, fully connected; {built} made to check"
    say = (
        "{shared} shared, {local} unshared ({local_x:x}), {full} fully connected ({full_x:x}); in {fewer} of {layers} layers "
        "each has fewer than the next."
    )
    if len(agree) < len(counts["built"]):
        return found("L2", False, test, say + " Layers really made have other numbers.", **told)
    if len(fewer) == len(rows):
        return found("L2", True, test, say, **told)
    if fewer:
        when = "the map has more than one position and the kernel does not cover it"
        return found("L2", Verdict.WHEN, test, say, when=when, **told)
    return found("L2", False, test, say, **told)


def _moves(shifted: dict[str, Any]) -> Finding:
    """L3: both words."""
    rows = shifted["rows"]
    test = "each convolution of stride 1 on its input and on the same moved by one pixel, {images} images, in float64"
    if not rows:
        why = "no convolution of stride 1 has a map to move"
        return found("L3", Verdict.OPEN, test, "No layer could be tried.", when=why, images=shifted["images"])
    told = {
        "images": shifted["images"],
        "layers": len(rows),
        "apart": max(row["equivariance"] for row in rows),
        "least": min(row["invariance"] for row in rows),
        "most": max(row["invariance"] for row in rows),
    }
    say = (
        "In {layers} layers the output at the same place changed by {least:.0%} to {most:.0%}: not invariant. Moved along with "
        "the input it changed by {apart:.0e} at most: equivariant."
    )
    if told["most"] < _ROUNDING:
        say = "In {layers} layers the output at the same place changed by {most:.0e} at most: invariant."
        return found("L3", True, test, say, **told)
    if told["apart"] >= _ROUNDING:
        say = say.replace(": equivariant", ": not equivariant either")
    return found("L3", False, test, say, **told)


def _nuances(asked: Asked, learned: dict[str, Any]) -> Finding:
    """L4: by the study, on both halves; beside it one training here, and what the kernels became."""
    test = (
        "a study of unshared against shared weights on clothes in the centre of a frame and on scattered ones"
    )
    levels = {
        f"{kind} {place}": {"convolution": kind, "place": place}
        for kind in ("standard", "local")
        for place in ("centre", "scattered")
    }
    known = studied(asked, levels)
    by = {(row["kind"], row["place"]): row["test"] for row in learned["rows"]}
    untied = learned["untied"]
    here = {
        "samples": learned["samples"],
        "shared_centre": by["standard", "centre"],
        "local_centre": by["local", "centre"],
        "shared_scattered": by["standard", "scattered"],
        "local_scattered": by["local", "scattered"],
        "away": untied["away"],
    }
    beside = fill(
        " Trained once here on {samples}, unshared weights reached {local_centre:.1%} on centred and {local_scattered:.1%} on "
        "scattered clothes, shared ones {shared_centre:.1%} and {shared_scattered:.1%}; kernels that were untied and "
        "trained on went {away:.1%} away from their mean.",
        here,
    )
    made = None if known is None else [_gain(known, place) for place in ("centre", "scattered")]
    if known is None or made is None or None in made:
        none = unstudied("L4", test)
        return Finding(none.claim, none.test, here, none.verdict, none.sentence + beside, none.when)
    aligned, moved = made
    assert aligned is not None
    assert moved is not None
    told = {"study": known.study, **here, **aligned}
    told |= {f"moved_{name}": value for name, value in moved.items()}
    say = (
        "In the study {study}, unshared weights differed from shared ones by {points:+.2f} points ({low:+.2f} to {high:+.2f}) "
        "on centred clothes and by {moved_points:+.2f} ({moved_low:+.2f} to {moved_high:+.2f}) on scattered ones, over {seeds} "
        "seeds."
    )
    made_ = _both(test, say, told)
    return Finding(made_.claim, made_.test, made_.figures, made_.verdict, made_.sentence + beside, made_.when)


def _gain(known: Any, place: str) -> dict[str, Any] | None:
    difference = known.score({(f"local {place}", "test"): 1.0, (f"standard {place}", "test"): -1.0})
    if difference is None or difference.low is None:
        return None
    return interval(difference)


def _both(test: str, say: str, told: dict[str, Any]) -> Finding:
    """Wins where aligned, loses where not: both, one, neither, or not told."""
    wins = told["low"] > 0
    loses = told["moved_high"] < 0
    against = told["high"] < 0 or told["moved_low"] > 0
    if wins and loses:
        return found("L4", True, test, say, **told)
    if against and not (wins or loses):
        return found("L4", False, test, say, **told)
    if wins or loses:
        when = "aligned data is meant" if wins else "scattered data is meant: there sharing wins"
        return found("L4", Verdict.WHEN, test, say, when=when, **told)
    return found("L4", Verdict.OPEN, test, say, when=UNSURE, **told)
