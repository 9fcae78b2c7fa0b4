"""What the figures of `answers.fully_connected` say."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from convscope.answers.asked import Asked
from convscope.answers.base import Finding, Picture, Verdict, fill, found
from convscope.answers.drawing import beside, grey, pixels
from convscope.answers.evidence import trained
from convscope.answers.layers import sizes
from convscope.measures.figures import Estimate, Sheet
from convscope.models import Net

_EQUAL = 1e-4  # of the largest score, in the network's own precision


def findings(
    asked: Asked, counts: dict[str, Any], places: dict[str, Any], speed: dict[str, Any]
) -> list[Finding]:
    """The verdicts, from the figures."""
    return [_is_convolution(counts), _keeps(places), _reduces(asked, counts, speed)]


def _is_convolution(counts: dict[str, Any]) -> Finding:
    layers = counts["layers"]
    ones = [one for one in layers if one["kernel"] == [1, 1]]
    wide = [one for one in layers if one["kernel"] != [1, 1]]
    told: dict[str, Any] = {
        "net": counts["net"],
        "layers": len(layers),
        "ones": len(ones),
        "error": counts["error"],
        "images": counts["images"],
        "before": sum(one["params"][0] for one in layers),
        "after": sum(one["params"][1] for one in layers),
    }
    test = "the head of {net} as convolutions, against itself on {images} images"
    say = (
        "{layers} fully-connected layers of {before} parameters became convolutions of {after}; {ones} of them are 1x1. Scores "
        "differ by {error:.1e} of the largest."
    )
    same = all(one["params"][0] == one["params"][1] and one["filters"] == one["neurons"] for one in layers)
    if not layers or not same or counts["error"] > _EQUAL:
        return found("C1", False, test, say, **told)
    if wide:
        told |= {"wide": wide[0]["layer"], "kernel": sizes(wide[0]["kernel"])}
        when = "its input is a map of one position; {wide} is a {kernel} convolution"
        return found("C1", Verdict.WHEN, test, say, when=when, **told)
    return found("C1", True, test, say, **told)


def _keeps(places: dict[str, Any]) -> Finding:
    test = "{images} images in each corner of a canvas twice as high and wide: where the map of their class is largest"
    if places["hits"] is None:
        why = "the converted network gives one score a class for any image"
        say = "The converted network gives no map."
        return found("C2", Verdict.OPEN, test, say, when=why, images=places["images"])
    hits = Estimate(**places["hits"])
    told: dict[str, Any] = {
        "images": places["images"],
        "map": places["map"],
        "share": hits.value,
        "low": hits.low,
        "high": hits.high,
    }
    say = "The largest of {map} positions lay in the right corner in {share:.0%} of cases ({low:.0%} to {high:.0%}), "
    say += "and the network itself " + (
        "takes no such image." if places["alone"] else "gives one score for the whole."
    )
    chance = 0.25
    if hits.low is not None and hits.low > 2 * chance:
        return found("C2", True, test, say, **told)
    if hits.low is not None and hits.low > chance:
        when = "a share of {share:.0%}, above the {chance:.0%} of chance, is enough"
        return found("C2", Verdict.WHEN, test, say, when=when, chance=chance, **told)
    return found("C2", False, test, say, **told)


def _reduces(asked: Asked, counts: dict[str, Any], speed: dict[str, Any]) -> Finding:
    """C3 has three parts: parameters and speed are measured here, overfitting by a study."""
    before, after = counts["whole"]
    study = trained(asked, "C3", "a study", first={"head": "average"}, second={"head": "flatten"}, margin=0.0)
    told: dict[str, Any] = {"before": before, "after": after, "windows": speed["windows"]}
    test = "parameters before and after, and one pass over a larger image against one for each window, timed here"
    say = "Parameters went from {before} to {after}. "
    if not speed["windows"]:
        return found("C3", after < before, test, say + "There is no map to time.", **told)
    told |= {"size": sizes(speed["size"]), "times": speed["times"]["median"]}
    told |= {"low": speed["times"]["low"], "high": speed["times"]["high"]}
    say += "On an image of {size} one pass gave {windows} scores; windows took {times:x} as long ({low:.2g} to {high:.2g}). "
    say += study.sentence.removesuffix(".").replace("{", "(").replace("}", ")") + "."
    faster, fewer = speed["times"]["low"] > 1, after < before
    if faster and fewer:
        return found("C3", True, test, say, **told)
    if faster:
        when = "many windows of an image are scored, and it means speed: parameters stay as many"
        return found("C3", Verdict.WHEN, test, say, when=when, **told)
    return found("C3", False, test, say, **told)


def statement(net: Net, counts: dict[str, Any], places: dict[str, Any], speed: dict[str, Any]) -> str:
    layers = counts["layers"]
    told: dict[str, Any] = {
        "net": net.name,
        "layers": len(layers),
        "kernels": ", ".join(f"{one['layer']} {sizes(one['kernel'])}" for one in layers[:4]),
        "error": counts["error"],
        "params": counts["whole"][1],
    }
    say = "As convolutions ({kernels}) the {layers} fully-connected layers of {net} give "
    say += "scores within {error:.0e} of the largest" if counts["error"] else "exactly the same scores"
    say += ", with the same {params} parameters. "
    if places["hits"] is None or not speed["windows"]:
        return fill(say + "On a larger image it still gives one score a class.", told)
    told |= {
        "map": places["map"],
        "share": places["hits"]["value"],
        "times": speed["times"]["median"],
        "windows": speed["windows"],
    }
    say += (
        "On an image twice as high and wide it gives a map of {map} scores, whose largest value lay where the object was in "
        "{share:.0%} of cases, and {windows} windows one by one took {times:x} as long."
    )
    return fill(say, told)


def table(counts: dict[str, Any]) -> Sheet:
    rows = tuple(
        (
            one["layer"],
            f"{one['inputs']:,} to {one['neurons']:,}",
            f"{one['filters']:,} of {sizes(one['kernel'])}",
            *(f"{n:,}" for n in one["params"]),
        )
        for one in counts["layers"]
    )
    heads = ("layer", "neurons>", "filters>", "parameters before>", "after>")
    return Sheet(f"fully-connected layers of {counts['net']} as convolutions", heads, rows)


def speed_table(speed: dict[str, Any]) -> Sheet:
    if not speed["windows"]:
        return Sheet("speed", ("",), ())
    once, each = (fill("{median:time} ({low:time} to {high:time})", speed[key]) for key in ("once", "each"))
    rows = (
        ("one pass of the converted network", "1", once),
        ("windows one by one", f"{speed['windows']:,}", each),
    )
    return Sheet(f"scores all over an image of {sizes(speed['size'])}", ("way", "windows>", "time>"), rows)


def picture(shown: dict[str, Any]) -> Picture:
    photo, heat = torch.from_numpy(shown["photo"]), torch.from_numpy(shown["heat"])
    size = (photo.shape[1], photo.shape[2])
    large = functional.interpolate(heat[None, None].float(), size, mode="bilinear")[0, 0]
    lit = photo * (0.25 + 0.75 * large / large.max().clamp(min=1e-12))
    map_ = f"the map of {sizes(shown['map'])} scores for {shown['label']}, white is certain"
    caption = f"{shown['name']}; {map_}; the one lit by the other."
    return Picture("map", caption, beside([pixels(photo), grey(large, 0.0, 1.0), pixels(lit)], height=168))
