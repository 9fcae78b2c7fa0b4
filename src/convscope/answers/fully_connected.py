"""Fully-connected layers as convolutions: verified equal, then used on images larger than the network was made for.

Images of the network's own size are put into one corner of a canvas twice as high and wide: a map of scores keeps the
spatial structure if its largest value lies where the image is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from convscope import timing
from convscope.answers.asked import Asked, Seen, needs_channels
from convscope.answers.base import Draft, Finding, Picture, Verdict, fill, found
from convscope.answers.drawing import beside, grey, pixels
from convscope.answers.evidence import trained
from convscope.answers.layers import sizes
from convscope.data import images as pictures
from convscope.measures.figures import Estimate, Sheet, share
from convscope.models import Net
from convscope.rewrites.convolutionalize import Convolutionalize
from convscope.rewrites.rewrite import rewrite

PARTS = ("converted", "places", "speed", "map")

_EQUAL = 1e-4  # of the largest score, in the network's own precision
_OTHER = "{net} has no head that can be converted ({reason}); {other} was converted instead"


def answer(asked: Asked) -> Draft:
    """See the module."""
    needs_channels(asked.net, asked.question.name)
    net, own, notes = asked.net, True, ()
    converted = rewrite(net, Convolutionalize(), seed=asked.seed)
    if not converted.done:
        reason = converted.refused[0].reason
        net, own = asked.example("fashion"), False
        notes = (fill(_OTHER, {"net": asked.net.name, "other": net.name, "reason": reason}),)
        converted = rewrite(net, Convolutionalize(), seed=asked.seed)
    made = converted.net
    images = asked.images(net, 48 if asked.quick else 256, own=own)
    counts = asked.part("converted", lambda: _converted(net, made, images.x), net=net, data=own)
    places = asked.part("places", lambda: _places(net, made, images.x), net=net, data=own)
    speed = asked.part("speed", lambda: _speed(net, made, asked.quick), net=net, timed=True)
    shown = asked.part("map", lambda: _map(asked, net, made, images, own), net=net, data=own)
    return Draft(
        statement=_statement(net, counts, places, speed),
        findings=tuple(findings(asked, counts, places, speed)),
        tables=(_table(counts), _speed_table(speed)),
        pictures=(_picture(shown),),
        notes=notes,
        data=images.source,
    )


# ---------------------------------------------------------------- measured


def _converted(net: Net, made: Net, x: Tensor) -> dict[str, Any]:
    """What each fully-connected layer became, and how far the scores differ."""
    before, after = dict(net.copy().named_modules()), dict(made.module.named_modules())
    layers = []
    for name, part in before.items():
        became = after.get(name)
        if isinstance(part, nn.Linear) and isinstance(became, nn.Conv2d):
            layers.append(
                {
                    "layer": name,
                    "neurons": part.out_features,
                    "inputs": part.in_features,
                    "filters": became.out_channels,
                    "kernel": list(became.kernel_size),
                    "params": [sum(p.numel() for p in each.parameters()) for each in (part, became)],
                }
            )
    first, second = _run(net, x), _run(made, x)
    scale = first.abs().max().clamp(min=1e-12)
    return {
        "net": net.name,
        "layers": layers,
        "error": float((first - second.flatten(1)).abs().max() / scale),
        "images": len(x),
        "same": float((first.argmax(1) == second.flatten(1).argmax(1)).float().mean()),
        "whole": [net.parameters_count, made.parameters_count],
    }


def _run(net: Net, x: Tensor, batch: int = 16) -> Tensor:
    module = net.copy()
    with torch.no_grad():
        return torch.cat([module(part) for part in x.split(batch)])


def _canvas(net: Net, x: Tensor, corner: tuple[int, int]) -> Tensor:
    """Images in one corner of a canvas of the mean image's colour, twice as high and wide."""
    height, width = net.input.size
    canvas = x.mean((0, 2, 3), keepdim=True).expand(len(x), -1, 2 * height, 2 * width).clone()
    row, column = corner[0] * height, corner[1] * width
    canvas[:, :, row : row + height, column : column + width] = x
    return canvas


def _places(net: Net, made: Net, x: Tensor) -> dict[str, Any]:
    """Whether the map's largest value for an image's class lies where the image is, and whether the network itself can say."""
    few = x[:24]
    classes = _run(net, few).argmax(1)
    hits = []
    size = (0, 0)
    for corner in ((0, 0), (0, 1), (1, 0), (1, 1)):
        scores = _run(made, _canvas(net, few, corner), 8)
        if scores.ndim != 4:
            return {"map": [], "hits": None, "images": len(few)}
        size = (scores.shape[2], scores.shape[3])
        one = scores[torch.arange(len(few)), classes]  # [image, row, column]
        place = one.flatten(1).argmax(1)
        row, column = place // size[1], place % size[1]
        middle = ((size[0] - 1) / 2, (size[1] - 1) / 2)
        down, right = (row > middle[0]).long(), (column > middle[1]).long()
        hits.append((down == corner[0]) & (right == corner[1]))
    told = share(torch.stack(hits, 1)).to_dict()  # [image, corner]
    return {
        "map": list(size),
        "hits": told,
        "images": len(few),
        "alone": _fails(net, _canvas(net, few[:1], (0, 0))),
    }


def _fails(net: Net, x: Tensor) -> str:
    """Why the network itself takes no such image; empty where it does."""
    try:
        _run(net, x)
    except Exception as error:  # the network's own code, given a size it was not made for
        return " ".join(str(error).split())[:120]
    return ""


def _speed(net: Net, made: Net, quick: bool) -> dict[str, Any]:
    """One pass over a larger image against a pass for each window that its scores stand for."""
    height, width = net.input.size
    x = net.input.with_size(2 * height, 2 * width).example()
    before, after = net.copy(), made.copy()
    with torch.no_grad():
        scores = after(x)
        if scores.ndim != 4:
            return {"windows": 0}
        rows, columns = scores.shape[2:]
        steps = (height / max(rows - 1, 1), width / max(columns - 1, 1))
        boxes = [(round(i * steps[0]), round(j * steps[1])) for i in range(rows) for j in range(columns)]
        windows = torch.cat([x[:, :, a : a + height, b : b + width] for a, b in boxes])
        runs = {"once": lambda: after(x), "windows": lambda: [before(part) for part in windows.split(16)]}
        times = timing.measure(runs, budget=1.0 if quick else 4.0, least=2)
    ratio = times["windows"].over(times["once"])
    return {
        "windows": len(boxes),
        "size": [2 * height, 2 * width],
        "times": ratio.to_dict(),
        "once": times["once"].to_dict(),
        "each": times["windows"].to_dict(),
    }


def _map(asked: Asked, net: Net, made: Net, images: Seen, own: bool) -> dict[str, Any]:
    """Scores of one class over a photograph larger than the network's input, or over four images side by side."""
    height, width = net.input.size
    if net.input.channels == 3 and not isinstance(asked.data, Tensor):
        source = pictures(asked.data if own else None)
        spec = net.input.with_size(2 * height, 2 * width)
        photo = next(iter(source.batches(spec, 1))).images  # [1, 3, height, width]
        x, name = spec.normalize(photo), source.names[0]
    else:
        four = images.x[:4] if len(images.x) >= 4 else images.x[:1].repeat(4, 1, 1, 1)
        x = torch.cat([torch.cat([four[0], four[1]], 2), torch.cat([four[2], four[3]], 2)], 1)[None]
        photo, name = net.input.denormalize(x), "four images side by side"
    scores = _run(made, x)
    if scores.ndim != 4:
        return {"name": name, "photo": photo[0], "heat": torch.zeros(1, 1), "label": "", "map": [1, 1]}
    best = int(scores[0].flatten(1).max(1).values.argmax())
    label = net.labels[best] if net.labels is not None else f"class {best}"
    probability = scores[0].softmax(0)[best]  # [row, column]
    return {
        "name": name,
        "photo": photo[0],
        "heat": probability,
        "label": label,
        "map": list(probability.shape),
    }


# ---------------------------------------------------------------- told


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
    told = {
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


def _statement(net: Net, counts: dict[str, Any], places: dict[str, Any], speed: dict[str, Any]) -> str:
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


def _table(counts: dict[str, Any]) -> Sheet:
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


def _speed_table(speed: dict[str, Any]) -> Sheet:
    if not speed["windows"]:
        return Sheet("speed", ("",), ())
    once, each = (fill("{median:time} ({low:time} to {high:time})", speed[key]) for key in ("once", "each"))
    rows = (
        ("one pass of the converted network", "1", once),
        ("windows one by one", f"{speed['windows']:,}", each),
    )
    return Sheet(f"scores all over an image of {sizes(speed['size'])}", ("way", "windows>", "time>"), rows)


def _picture(shown: dict[str, Any]) -> Picture:
    photo, heat = torch.from_numpy(shown["photo"]), torch.from_numpy(shown["heat"])
    size = (photo.shape[1], photo.shape[2])
    large = functional.interpolate(heat[None, None].float(), size, mode="bilinear")[0, 0]
    lit = photo * (0.25 + 0.75 * large / large.max().clamp(min=1e-12))
    map_ = f"the map of {sizes(shown['map'])} scores for {shown['label']}, white is certain"
    caption = f"{shown['name']}; {map_}; the one lit by the other."
    return Picture("map", caption, beside([pixels(photo), grey(large, 0.0, 1.0), pixels(lit)]))
