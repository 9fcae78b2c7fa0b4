"""What the figures of `answers.filter_size` and the records of studies say."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from convscope.answers.asked import Asked
from convscope.answers.base import Finding, Verdict, fill, found, unstudied
from convscope.answers.contrasts import Studied, depends, interval, studied
from convscope.answers.evidence import trained

SMALL, LARGE = 3, 7  # sizes that studies compare
SIZES = (1, 3, 5, 7, 11)  # sizes that one study has


def learned_sizes(asked: Asked) -> Studied | None:
    """The study on record of these sizes."""
    return studied(asked, {str(size): {"kernel_size": size} for size in SIZES})


def findings(
    asked: Asked,
    network: dict[str, Any],
    valid: dict[str, Any],
    stacks: dict[str, Any],
    shapes: dict[str, Any],
    learned: Studied | None,
) -> list[Finding]:
    """The verdicts, from the figures and the records."""
    small, large = {"kernel_size": SMALL}, {"kernel_size": LARGE}
    return [
        _faster(network, valid),
        _fits(learned),
        _fine(asked, network),
        _fewer(network),
        _context(asked, network),
        _one_value(shapes),
        depends(
            asked,
            "S7",
            "a study of 3x3 against 7x7 filters on objects of 14 and of 28 pixels in a frame of 28",
            first=small,
            second=large,
            here={"object_size": 14},
            there={"object_size": 28},
            places=("on small objects", "on large ones"),
        ),
        _resolution(
            depends(
                asked,
                "S8",
                "a study of 3x3 against 7x7 filters on the same images at 14 and at 28 pixels",
                first=small,
                second=large,
                here={"resolution": "28"},
                there={"resolution": "14"},
                places=("at 28 pixels", "at 14"),
            )
        ),
        _deep(
            network,
            depends(
                asked,
                "S9",
                "a study of 3x3 against 7x7 filters with one and with three layers a stage; and the kernels of the network",
                first=small,
                second=large,
                here={"depth": 3},
                there={"depth": 1},
                places=("with three layers a stage", "with one"),
            ),
        ),
        _stacked(asked, stacks),
    ]


def measured(network: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in network["rows"] if "params" in row]


def spread(network: dict[str, Any]) -> dict[str, Any]:
    """The smallest and the largest size, as figures."""
    rows = measured(network)
    first, last = rows[0], rows[-1]
    return {
        "net": network["net"],
        "small": first["size"],
        "large": last["size"],
        "time": last["ratio"]["median"] / first["ratio"]["median"],
        "memory": last["bytes"] / first["bytes"],
        "params": last["params"] / first["params"],
        "macs": last["macs"] / max(first["macs"], 1),
        "step": last["step"]["median"] / first["step"]["median"],
    }


def _faster(network: dict[str, Any], valid: dict[str, Any]) -> Finding:
    """S1, with padding in the network and without in a layer."""
    rows, told = measured(network), spread(network)
    faster = rows[-1]["ratio"]["high"] < rows[0]["ratio"]["low"] and told["memory"] < 1
    cheap = [
        row
        for row in valid["rows"][1:]
        if row["macs"] < valid["rows"][0]["macs"] and row["ratio"]["high"] < 1
    ]
    dear = max(valid["rows"], key=lambda row: row["macs"])
    told |= {"side": valid["side"], "dear": dear["size"], "from_": cheap[0]["size"] if cheap else None}
    test = (
        "{net} with all its kernels of {small} to {large}, sizes of maps kept, timed here, weights and activations counted; "
        "and one unpadded layer on a map of {side}"
    )
    say = (
        "From {small}x{small} to {large}x{large} the network took {time:x} the time and {memory:x} the memory. Unpadded, the "
        "layer costs most at {dear}x{dear}"
    )
    if faster:
        return found("S1", True, test, say + ".", **told)
    if cheap:
        say += " and less than with 3x3 from {from_}x{from_} on, where few positions are left."
        when = "the map is not padded and the kernel nearly covers it ({from_} of {side} pixels)"
        return found("S1", Verdict.WHEN, test, say, when=when, **told)
    return found("S1", False, test, say + ", and no larger kernel ran faster than 3x3.", **told)


def _fits(learned: Studied | None) -> Finding:
    """S2: the training accuracy, and the gap to the test, of small and large filters."""
    test = "a study of filter sizes: training accuracy of 3x3 less that of 11x11, and the gap to the test of both"
    if learned is None:
        return unstudied("S2", test)
    under = learned.score({("3", "train"): 1.0, ("11", "train"): -1.0})
    over = learned.score(
        {("3", "train"): 1.0, ("3", "test"): -1.0, ("11", "train"): -1.0, ("11", "test"): 1.0}
    )
    if under is None or over is None:
        return unstudied("S2", test)
    told = {
        "study": learned.study,
        "small": learned.mean("3", "train"),
        "large": learned.mean("11", "train"),
        **interval(under),
        "gap": 100 * ((learned.mean("3", "train") or 0) - (learned.mean("3", "test") or 0)),
        "gap_large": 100 * ((learned.mean("11", "train") or 0) - (learned.mean("11", "test") or 0)),
        "more": interval(over)["points"],
        "more_low": interval(over)["low"],
        "more_high": interval(over)["high"],
    }
    say = (
        "In the study {study}, 3x3 reached {small:.1%} in training and 11x11 {large:.1%} ({points:+.2f} points, {low:+.2f} to "
        "{high:+.2f}); from training to test 3x3 lost {gap:.2f} points and 11x11 {gap_large:.2f} ({more:+.2f} points, "
        "{more_low:+.2f} to {more_high:+.2f}), over {seeds} seeds."
    )
    signs = [_sign(under.low, under.high), _sign(over.low, over.high)]
    if signs == [1, 1]:
        return found("S2", True, test, say, **told)
    if -1 in signs:
        return found("S2", False, test, say, **told)
    when = "{seeds} seeds tell at most one of the two halves"
    return found("S2", Verdict.OPEN, test, say, when=when, **told)


def _sign(low: float | None, high: float | None) -> int:
    if low is None or high is None:
        return 0
    return 1 if low > 0 else -1 if high < 0 else 0


def _fine(asked: Asked, network: dict[str, Any]) -> Finding:
    """S3: small things by a study, large patterns by what a position sees."""
    test = "a study of 3x3 against 7x7 filters on objects of 14 pixels; and what the last layer of {net} sees with 3x3"
    test = fill(test, {"net": network["net"]})
    made = trained(
        asked,
        "S3",
        test,
        first={"kernel_size": SMALL, "object_size": 14},
        second={"kernel_size": LARGE, "object_size": 14},
    )
    fields = {row["size"]: row["field"] for row in measured(network)}
    if SMALL not in fields or not made.figures:
        return made
    figures = {"field": fields[SMALL], "input": network["input"], "last": network["last"]}
    misses = min(a / b for a, b in zip(figures["field"], figures["input"], strict=True)) < 1
    text = " With 3x3 a position of {last} sees {field} of {input} pixels, so that large patterns "
    text += "are missed." if misses else "are not missed at that depth."
    verdict, when = made.verdict, made.when
    if verdict is Verdict.HOLDS and not misses:
        verdict, when = Verdict.WHEN, "the layers are too few to see all of the image"
    return Finding(
        made.claim, made.test, {**made.figures, **figures}, verdict, made.sentence + fill(text, figures), when
    )


def _fewer(network: dict[str, Any]) -> Finding:
    """S4: parameters, and times forward and in training."""
    rows, told = measured(network), spread(network)
    sizes = [row["params"] for row in rows]
    told["slower"] = ", ".join(
        f"{small['size']}x{small['size']}"
        for small, large in pairwise(rows)
        if small["ratio"]["low"] > large["ratio"]["high"]
    )
    test = "{net} with all its kernels of {small} to {large}: parameters, and times of a pass and of a pass with gradients, here"
    say = (
        "From {large}x{large} down to {small}x{small} there are {params:x} fewer parameters and {macs:x} fewer MACs; it ran "
        "{time:x} as fast and took {step:x} less time with gradients."
    )
    fewer = all(a < b for a, b in pairwise(sizes))
    faster = (
        rows[0]["ratio"]["high"] < rows[-1]["ratio"]["low"]
        and rows[0]["step"]["high"] < rows[-1]["step"]["low"]
    )
    if fewer and faster and told["slower"]:
        when = "the smaller size is not {slower}, which ran slower than the next"
        return found("S4", Verdict.WHEN, test, say, when=when, **told)
    return found("S4", fewer and faster, test, say, **told)


def _context(asked: Asked, network: dict[str, Any]) -> Finding:
    """S5: what a position sees, and by a study how much noise costs."""
    test = "what a position of the last layer sees, by kernel size; and a study of 3x3 against 7x7 filters on noisy images"
    made = depends(
        asked,
        "S5",
        test,
        first={"kernel_size": SMALL},
        second={"kernel_size": LARGE},
        here={"noise": 0.5},
        there={"noise": 0.0},
        places=("on noisy images", "on clean ones"),
    )
    rows = measured(network)
    figures = {
        "first": rows[0]["size"],
        "last": rows[-1]["size"],
        "near": rows[0]["field"],
        "far": rows[-1]["field"],
        "grows": all(a["field"][0] < b["field"][0] for a, b in pairwise(rows)),
    }
    text = "With {first}x{first} a position sees {near} pixels, with {last}x{last} {far}. "
    verdict, when = made.verdict, made.when
    if not figures["grows"]:
        verdict, when = Verdict.NOT, ""
    elif verdict is Verdict.NOT:
        verdict, when = (
            Verdict.WHEN,
            "context is meant: noise cost the larger filters no more than the smaller ones",
        )
    return Finding(
        made.claim, made.test, {**made.figures, **figures}, verdict, fill(text, figures) + made.sentence, when
    )


def _one_value(shapes: dict[str, Any]) -> Finding:
    """S6."""
    rows = shapes["rows"]
    told = {
        "tried": len(rows),
        "one": sum(row["whole"] == 1 for row in rows),
        "kept": sum(row["point"] == row["side"] ** 2 for row in rows),
        "padded": sum(row["padded"] == row["side"] ** 2 for row in rows),
    }
    test = "kernels as large as their map, and 1x1, on maps of {tried} sizes, by torch's own convolution"
    say = (
        "Unpadded, {one} of {tried} kernels of the map's size left one value; padded to the same size, {padded} of {tried} left "
        "as many as there were; 1x1 kept all of {kept}."
    )
    if told["one"] == told["kept"] == told["tried"]:
        return found(
            "S6",
            Verdict.WHEN,
            test,
            say,
            when="the map is not padded, and one value a filter is meant",
            **told,
        )
    return found("S6", False, test, say, **told)


def _resolution(made: Finding) -> Finding:
    """S8 says two things: that small filters gain with the resolution, and that large ones do."""
    if made.verdict is Verdict.HOLDS:
        when = "it is the half that says: high-resolution input wants small filters"
    elif made.verdict is Verdict.NOT:
        when = "it is the half that says: large images want large filters"
    else:
        return made
    return Finding(made.claim, made.test, made.figures, Verdict.WHEN, made.sentence, when)


def _deep(network: dict[str, Any], made: Finding) -> Finding:
    """S9: beside the study, the kernels that the network has."""
    figures = {"net": network["net"], "kernels": ", ".join(map(str, network["own"]))}
    text = " Kernels larger than 1x1 in {net} are {kernels} wide."
    return Finding(
        made.claim,
        made.test,
        {**made.figures, **figures},
        made.verdict,
        made.sentence + fill(text, figures),
        made.when,
    )


def _stacked(asked: Asked, stacks: dict[str, Any]) -> Finding:
    """S10: accuracy by a study; costs and reach beside."""
    test = "a study of one 5x5 against two 3x3 layers, each with its activation; counted and timed on {channels} channels"
    made = trained(
        asked,
        "S10",
        fill(test, stacks),
        first={"block": "two 3x3"},
        second={"block": "one 5x5"},
        margin=0.01,
    )
    rows = {row["name"]: row for row in stacks["rows"]}
    figures: dict[str, Any] = {}
    for one, many, word in (("one 5x5", "two 3x3", "five"), ("one 7x7", "three 3x3", "seven")):
        figures |= {
            f"{word}_macs": rows[many]["macs"] / rows[one]["macs"],
            f"{word}_time": stacks["ratios"][one]["median"],
            f"{word}_same": rows[many]["field"] == rows[one]["field"],
        }
    text = (
        " Two 3x3 do {five_macs:.2f} of the MACs of one 5x5 and took {five_time:.2f} of its time; three {seven_macs:.2f} and "
        "{seven_time:.2f} of one 7x7"
    )
    text += "; they see as many pixels." if figures["five_same"] and figures["seven_same"] else "."
    return Finding(
        made.claim,
        made.test,
        {**made.figures, **figures},
        made.verdict,
        made.sentence + fill(text, figures),
        made.when,
    )


def accuracies(learned: Studied | None) -> Mapping[str, tuple[float, float]]:
    """Size -> mean accuracy on test and training."""
    if learned is None:
        return {}
    pairs = {name: (learned.mean(name), learned.mean(name, "train")) for name in learned.variants}
    return {name: (a, b) for name, (a, b) in pairs.items() if a is not None and b is not None}
