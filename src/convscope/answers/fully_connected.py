"""Fully-connected layers as convolutions: verified equal, then used on images larger than the network was made for.

Images of the network's own size are put into one corner of a canvas twice as high and wide: a map of scores keeps the
spatial structure if its largest value lies where the image is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from convscope import timing
from convscope.answers.asked import Asked, Seen, needs_channels
from convscope.answers.base import Draft, fill
from convscope.answers.verdicts.fully_connected import findings, picture, speed_table, statement, table
from convscope.data import images as pictures
from convscope.measures.figures import share
from convscope.models import Net
from convscope.rewrites.convolutionalize import Convolutionalize
from convscope.rewrites.rewrite import rewrite

PARTS = ("converted", "places", "speed", "map")

_OTHER = "{net} has no head that can be converted ({reason}); {other} was converted instead"


def answer(asked: Asked) -> Draft:
    """See the module."""
    needs_channels(asked.net, asked.question.name)
    net, own = asked.net, True
    notes: tuple[str, ...] = ()
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
        statement=statement(net, counts, places, speed),
        findings=tuple(findings(asked, counts, places, speed)),
        tables=(table(counts), speed_table(speed)),
        pictures=(picture(shown),),
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
    given = own and asked.data is not None and not isinstance(asked.data, Tensor)
    if (net.input.channels == 3 and not isinstance(asked.data, Tensor)) or (
        net.input.channels == 1 and given
    ):
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
