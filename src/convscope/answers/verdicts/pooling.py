"""What the figures of `answers.pooling` say."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from convscope.answers.asked import Asked
from convscope.answers.base import Chart, Finding, Picture, Verdict, fill, found, unstudied
from convscope.answers.contrasts import by_interval, interval, studied
from convscope.answers.drawing import grey, strip
from convscope.answers.evidence import trained
from convscope.answers.layers import sizes
from convscope.measures.figures import Estimate, Sheet

MOVES = ("shift by 1 px", "shift by 2 px", "scale by 1.1", "rotation by 10°", "noise of 0.1")
_INVARIANT = 0.01  # a relative change below this would be called none


def findings(
    asked: Asked,
    moved: dict[str, Any],
    cost: dict[str, Any],
    maps: dict[str, Any],
    noise: dict[str, Any],
    kinds: dict[str, Any],
) -> list[Finding]:
    """The verdicts, from the figures."""
    return [
        _invariant(moved),
        _reduces(cost),
        _overfitting(asked),
        _parameters(cost),
        _robust(moved, kinds),
        _sharpest(maps),
        _presence(noise),
        _windows(asked),
        _better(asked),
        _without(cost),
        _strided(asked, kinds),
    ]


def _of(moved: dict[str, Any], move: str) -> tuple[float, float]:
    """Mean change before and behind the poolings under a move."""
    rows = [row for row in moved["rows"] if row["move"] == move]
    before, behind = (sum(row[key] for row in rows) / len(rows) for key in ("before", "behind"))
    return before, behind


def _invariant(moved: dict[str, Any]) -> Finding:
    before, behind = _of(moved, MOVES[0])
    told: dict[str, Any] = {
        "images": moved["images"],
        "pools": len(moved["pools"]),
        "before": before,
        "behind": behind,
        "net": moved["net"],
    }
    test = "{images} pictures shifted by one pixel: relative change of the maps before and behind the {pools} poolings of {net}"
    say = "The maps changed by {before:.0%} before the poolings and by {behind:.0%} behind them."
    if behind < _INVARIANT:
        return found("K1", True, test, say, **told)
    if behind < before:
        when = "invariance means less change: {behind:.0%} in place of {before:.0%} for one pixel"
        return found("K1", Verdict.WHEN, test, say, when=when, **told)
    return found("K1", False, test, say, **told)


def _reduces(cost: dict[str, Any]) -> Finding:
    told: dict[str, Any] = {
        "net": cost["net"],
        "with": cost["with"],
        "ratio": cost["without"] / max(cost["with"], 1),
        "last": cost["last"],
    }
    told |= {"before": sizes(cost["before"]), "after": sizes(cost["after"]), "pools": cost["pools"]}
    test = "multiply-accumulates of the convolutions of {net} with its {pools} poolings and without them, counted on shapes"
    say = "Without them {last} has a map of {after} in place of {before}, and the convolutions do {ratio:x} the {with} MACs."
    return found("K2", told["ratio"] > 1, test, say, **told)


def _overfitting(asked: Asked) -> Finding:
    """K3: how much is lost from training to test, with max pooling and without any."""
    test = "a study of max pooling against none: accuracy lost from the training images to the test images"
    known = studied(asked, {"max": {"pooling": "max"}, "none": {"pooling": "none"}})
    weights = {("none", "train"): 1.0, ("none", "test"): -1.0, ("max", "train"): -1.0, ("max", "test"): 1.0}
    less = None if known is None else known.score(weights)
    if known is None or less is None:
        return unstudied("K3", test)
    gaps = {
        name: 100 * ((known.mean(name, "train") or 0) - (known.mean(name) or 0)) for name in ("max", "none")
    }
    told: dict[str, Any] = {"study": known.study, "max": gaps["max"], "none": gaps["none"], **interval(less)}
    say = (
        "In the study {study}, {none:.2f} points were lost without pooling and {max:.2f} with it: {points:+.2f} points less "
        "({low:+.2f} to {high:+.2f}) over {seeds} seeds."
    )
    return by_interval("K3", test, say, less, told)


def _parameters(cost: dict[str, Any]) -> Finding:
    flat, pooled = cost["heads"]["flatten"], cost["heads"]["average"]
    told: dict[str, Any] = {
        "flat": flat[0],
        "flat_without": flat[1],
        "pooled": pooled[0],
        "pooled_without": pooled[1],
        "own": cost["own"],
    }
    test = "parameters of a network of two 3x3 layers with 2x2 poolings and without, with both kinds of head"
    say = (
        "With a flattened map before the last layer {flat} parameters in place of {flat_without}; with a global pool {pooled} in "
        "place of {pooled_without}. The poolings themselves have {own}."
    )
    fewer = [flat[0] < flat[1], pooled[0] < pooled[1]]
    if all(fewer):
        return found("K4", True, test, say, **told)
    if any(fewer):
        return found(
            "K4", Verdict.WHEN, test, say, when="a fully-connected layer follows on the flattened map", **told
        )
    return found("K4", False, test, say, **told)


def _robust(moved: dict[str, Any], kinds: dict[str, Any]) -> Finding:
    pairs = {move: _of(moved, move) for move in MOVES}
    better = [move for move, (before, behind) in pairs.items() if behind < before]
    told: dict[str, Any] = {
        "images": moved["images"],
        "moves": len(pairs),
        "better": len(better),
        "told": "; ".join(
            f"{move}: {a:.0%} before, {b:.0%} behind" for move, (a, b) in pairs.items()
        ).replace("%", " %"),
    }
    test = "{images} pictures shifted, scaled, turned and with noise: change of the maps before and behind the poolings"
    say = "Behind the poolings the maps changed less under {better} of {moves} moves ({told})."
    steady = kinds["rows"][0].get("steady")
    if steady:
        told["steady"] = ", ".join(f"{100 * steady[move]['value']:.0f} % ({move})" for move in MOVES)
        say += " The class stayed for {steady}."
    if len(better) == len(pairs):
        return found("K5", True, test, say, **told)
    if better:
        return found(
            "K5", Verdict.WHEN, test, say, when="the move is one of: {which}", which=", ".join(better), **told
        )
    return found("K5", False, test, say, **told)


def _sharpest(maps: dict[str, Any]) -> Finding:
    at = {(row["kind"], row["window"]): row for row in maps["rows"]}
    windows = sorted({row["window"] for row in maps["rows"]})
    top = windows[-1]
    told: dict[str, Any] = {
        "layer": maps["layer"],
        "windows": ", ".join(map(str, windows)),
        "top": top,
        "max": at["max", top]["peak"],
        "average": at["average", top]["peak"],
        "max_steps": at["max", 2]["steps"],
        "average_steps": at["average", 2]["steps"],
    }
    test = "both on the maps that {layer} takes, windows of {windows}: what is left of each peak, and steps between neighbours"
    say = (
        "At a window of {top} max keeps {max:.0%} of the peaks and average {average:.0%}; at two, steps have {max_steps:.2f} and "
        "{average_steps:.2f} of their former share of the spread."
    )
    peaks = all(at["max", w]["peak"] > at["average", w]["peak"] for w in windows)
    smoother = all(at["average", w]["steps"] < at["max", w]["steps"] for w in windows)
    if peaks and smoother:
        return found("K6", True, test, say, **told)
    if peaks or smoother:
        return found(
            "K6", Verdict.WHEN, test, say, when="peaks are meant" if peaks else "smoothness is meant", **told
        )
    return found("K6", False, test, say, **told)


def _presence(noise: dict[str, Any]) -> Finding:
    told: dict[str, Any] = {
        "layer": noise["layer"],
        "images": noise["images"],
        "max_one": noise["max"]["one"],
        "average_one": noise["average"]["one"],
        "max_all": noise["max"]["all"],
        "average_all": noise["average"]["all"],
    }
    test = (
        "a global maximum and a global average of the maps that {layer} takes on {images} images, after something was added at "
        "one position, or at all: the difference in units of the spread between images"
    )
    say = "At one position max shows {max_one:.2f} and average {average_one:.2f}, at all {max_all:.2f} and {average_all:.2f}."
    one, every = told["max_one"] > told["average_one"], told["average_all"] > told["max_all"]
    if one and every:
        return found("K7", True, test, say, **told)
    if one or every:
        when = "the presence of a feature is meant" if one else "the whole image is meant"
        return found("K7", Verdict.WHEN, test, say, when=when, **told)
    return found("K7", False, test, say, **told)


def _windows(asked: Asked) -> Finding:
    """K8, both halves: max in large windows, and average in small ones."""
    test = "a study of max against average pooling with windows of four, and of average against max with windows of two"
    made = [
        trained(
            asked,
            "K8",
            test,
            first={"pooling": one, "pool_size": window},
            second={"pooling": other, "pool_size": window},
        )
        for one, other, window in (("max", "average", 4), ("average", "max", 2))
    ]
    large, small = made
    if not (large.figures and small.figures):
        half = next((one for one in made if one.figures), large)
        if half.verdict is not Verdict.HOLDS:
            return half
        when = (
            f"{'large' if half is large else 'small'} windows are meant; of the others no study is recorded"
        )
        return replace(half, verdict=Verdict.WHEN, when=when)
    figures = {**large.figures, **{f"small_{name}": value for name, value in small.figures.items()}}
    both = replace(large, sentence=f"{large.sentence} {small.sentence}", figures=figures)
    verdicts = {large.verdict, small.verdict}
    if len(verdicts) == 1 and Verdict.OPEN not in verdicts:
        return both
    if Verdict.HOLDS in verdicts:
        held, other = ("large", "small") if large.verdict is Verdict.HOLDS else ("small", "large")
        rest = "it is the other way round" if Verdict.NOT in verdicts else "the seeds do not tell"
        return replace(both, verdict=Verdict.WHEN, when=f"{held} windows are meant; in {other} ones {rest}")
    return replace(
        both, verdict=Verdict.OPEN, when="the seeds tell at most one of the two halves, against it"
    )


def _better(asked: Asked) -> Finding:
    """K9: either kind may do; both are told."""
    pairs = (
        (
            "a study of a global average head against a flattened one",
            {"head": "average"},
            {"head": "flatten"},
        ),
        ("a study of fractional against max pooling", {"pooling": "fractional"}, {"pooling": "max"}),
    )
    made = [trained(asked, "K9", test, first=first, second=second) for test, first, second in pairs]
    if not all(one.figures for one in made):
        return next((one for one in made if one.figures), made[0])
    kinds = dict(zip(("global average", "fractional"), made, strict=True))
    better, unsure = (
        [kind for kind, one in kinds.items() if one.verdict is verdict]
        for verdict in (Verdict.HOLDS, Verdict.OPEN)
    )
    verdict, when = Verdict.NOT, ""
    if better:
        verdict = Verdict.HOLDS if len(better) == len(kinds) else Verdict.WHEN
        when = "" if verdict is Verdict.HOLDS else f"{better[0]} pooling is meant"
    elif unsure:
        verdict, when = Verdict.OPEN, f"the seeds do not tell {' and '.join(unsure)} pooling from the other"
    return Finding(
        made[0].claim,
        " and ".join(one.test for one in made),
        {f"{kind} {name}": value for kind, one in kinds.items() for name, value in one.figures.items()},
        verdict,
        " ".join(one.sentence for one in made),
        when,
    )


def _without(cost: dict[str, Any]) -> Finding:
    more = math.prod(cost["after"]) / max(math.prod(cost["before"]), 1)
    told: dict[str, Any] = {
        "net": cost["net"],
        "more": more,
        "ratio": cost["without"] / max(cost["with"], 1),
        "last": cost["last"],
    }
    test = "positions of the last map of {net} and multiply-accumulates of its convolutions, without its poolings"
    say = "{last} has {more:x} the positions, and the convolutions do {ratio:x} the multiply-accumulates."
    return found("K10", told["more"] > 1 and told["ratio"] > 1, test, say, **told)


def _strided(asked: Asked, kinds: dict[str, Any]) -> Finding:
    """K11: by training; parameters, and what the exchange alone does, are told beside."""
    rows = {row["kind"]: row for row in kinds["rows"]}
    test = "a study of strided convolutions against max pooling; beside it a trained network exchanged in closed form"
    made = trained(asked, "K11", test, first={"pooling": "strided"}, second={"pooling": "max"}, margin=0.01)
    one, base = rows.get("strided"), rows["as it is"]
    if one is None or "same" not in one:
        return made
    figures = {
        "net": kinds["net"],
        "added": one["params"] - base["params"],
        "same": one["same"]["value"],
        "images": kinds["images"],
        "accuracy": one["accuracy"]["value"] if "accuracy" in one else None,
        "before": base["accuracy"]["value"] if "accuracy" in base else None,
    }
    text = " In {net} depthwise ones add {added} parameters; not retrained they agree on {same:.0%} of {images} images"
    text += (
        ", and accuracy goes from {before:.1%} to {accuracy:.1%}." if figures["accuracy"] is not None else "."
    )
    return replace(made, sentence=made.sentence + fill(text, figures), figures={**made.figures, **figures})


def statement(moved: dict[str, Any], cost: dict[str, Any], kinds: dict[str, Any]) -> str:
    before, behind = _of(moved, MOVES[0])
    told: dict[str, Any] = {
        "net": cost["net"],
        "pools": cost["pools"],
        "ratio": cost["without"] / max(cost["with"], 1),
        "before": before,
        "behind": behind,
    }
    say = (
        "Without its {pools} poolings the convolutions of {net} would do {ratio:x} the multiply-accumulates; under a shift by "
        "one pixel its maps change by {behind:.0%} behind them and by {before:.0%} before: "
    )
    say += (
        "invariance it is."
        if behind < _INVARIANT
        else "less, not invariance."
        if behind < before
        else "no less."
    )
    rows = [row for row in kinds["rows"][1:] if "change" in row and row["change"]["value"] > 1e-6]
    if rows:
        near, far = (pick(rows, key=lambda row: row["change"]["value"]) for pick in (min, max))
        told |= {
            "near": near["kind"],
            "small": near["change"]["value"],
            "far": far["kind"],
            "large": far["change"]["value"],
        }
        say += " Exchanged without retraining, {near} moves the output by {small:.0%} of its spread, {far} by {large:.0%}."
    return fill(say, told)


def moved_table(moved: dict[str, Any]) -> Sheet:
    rows = tuple(
        (row["layer"], row["move"], f"{100 * row['before']:.1f} %", f"{100 * row['behind']:.1f} %")
        for row in moved["rows"]
    )
    return Sheet("change of the maps", ("pooling", "move", "before it>", "behind it>"), rows)


def maps_table(maps: dict[str, Any]) -> Sheet:
    rows = [
        (row["kind"], str(row["window"]), f"{100 * row['peak']:.0f} %", f"{row['steps']:.2f}")
        for row in maps["rows"]
    ]
    named = {
        "fractional": ("fractional max", "2, to {size}"),
        "stride": ("none, every second value", "1, to {size}"),
        "global max": ("global max", "all"),
        "global average": ("global average", "all"),
    }
    for row in maps["others"]:
        kind, window = named[row["kind"]]
        step = "" if row["steps"] is None else f"{row['steps']:.2f}"
        rows.append((kind, window.format(size=sizes(row["size"])), f"{100 * row['peak']:.0f} %", step))
    title = f"kinds of pooling on the maps that {maps['layer']} takes"
    return Sheet(title, ("kind", "window>", "of the peaks left>", "steps, of before>"), tuple(rows))


def kinds_table(kinds: dict[str, Any]) -> Sheet:
    rows = tuple(
        (
            row["kind"],
            f"{row['params']:,}" if "params" in row else f"refused: {row['reason']}",
            f"{row['macs']:,}" if "macs" in row else "",
            *(Estimate(**row[key]).percent() if key in row else "" for key in ("change", "same", "accuracy")),
        )
        for row in kinds["rows"]
    )
    title = f"{kinds['net']} with other poolings, not retrained, on {kinds['source']}"
    heads = ("pooling", "parameters>", "MACs>", "change of the output>", "same class>", "accuracy>")
    return Sheet(title, heads, rows)


def steady_table(kinds: dict[str, Any]) -> tuple[Sheet, ...]:
    """How often the class stays under each move, for each kind of pooling; nothing of networks that give no class."""
    rows = tuple(
        (row["kind"], *(f"{100 * row['steady'][move]['value']:.0f} %" for move in MOVES))
        for row in kinds["rows"]
        if "steady" in row
    )
    title = (
        f"how often {kinds['net']} gives the same class as before a move, of {kinds.get('moved')} pictures"
    )
    return (Sheet(title, ("pooling", *(f"{move}>" for move in MOVES)), rows),) if rows else ()


def picture(maps: dict[str, Any]) -> Picture:
    high = float(maps["map"].max())
    titles = {
        "map": "before",
        "maximum": "max",
        "average": "average",
        "fractional": "fractional",
        "stride": "stride 2",
    }
    shown = {title: grey(maps[key], 0.0, high) for key, title in titles.items()}
    caption = (
        f"Channel {maps['channel']} of what {maps['layer']} takes; after 2x2 max pooling, sharp; after average, smooth; after "
        "fractional max; every second value alone."
    )
    return strip("sharp", caption, shown, height=140)


def chart(maps: dict[str, Any]) -> Chart:
    series = {
        kind: [(float(row["window"]), row["peak"]) for row in maps["rows"] if row["kind"] == kind]
        for kind in ("max", "average")
    }
    return Chart("peaks", "how much of a map's peak is left", "window", "share of the peak", series)
