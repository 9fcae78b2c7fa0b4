"""What filters look for: how the pictures come about, what each regularizer does to them, and whether other evidence agrees.

Pictures are drawn by `visualize`: of a layer in the middle of the network with each regularizer alone, without any and with
all; and of its first layer, whose kernels can be read directly.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from convscope.answers.asked import Asked, needs_channels
from convscope.answers.base import Chart, Draft, Picture, fill
from convscope.answers.drawing import beside, pixels, strip
from convscope.answers.layers import Conv, convolutions, profile_of
from convscope.answers.running import captured
from convscope.answers.verdicts.features import findings
from convscope.features import transform
from convscope.features.objectives import TotalVariation
from convscope.features.optimize import Recipe
from convscope.features.parametrization import Pixel
from convscope.features.unit import Visualization
from convscope.features.visualize import visualize
from convscope.measures.figures import Sheet, mean
from convscope.models import Net

PARTS = ("climb", "regularizers", "kernels")

_SIZE = 64
_BUDGETS = (1, 8, 32, 128)  # steps, to show the picture come about
_HIGH = 0.25  # cycles a pixel; from here on it is called high-frequency
_VARIATION = 0.3  # total variation's weight, of what a picture without it reaches
_TURN, _SHIFT = math.radians(5), 4  # a small move, which what is meant should survive


def answer(asked: Asked) -> Draft:
    """See the module."""
    needs_channels(asked.net, asked.question.name)
    climb = asked.part("climb", lambda: _climb(asked), data=True)
    ways = asked.part("regularizers", lambda: _regularizers(asked), data=True)
    kernels = asked.part("kernels", lambda: _kernels(asked), data=True)
    return Draft(
        statement=_statement(asked.net, climb, ways),
        findings=tuple(findings(climb, ways, kernels)),
        tables=tuple(_tables(climb, ways, kernels)),
        pictures=tuple(_pictures(climb, ways, kernels)),
        charts=(_chart(climb),),
        data=kernels["source"],
    )


def _middle(net: Net) -> tuple[str, list[int]]:
    """A convolution in the middle, and channels spread over it."""
    every = convolutions(profile_of(net))
    conv = every[len(every) // 2]
    count = min(4, conv.channels[1])
    return conv.name, [k * conv.channels[1] // count for k in range(count)]


# ---------------------------------------------------------------- measured


def _climb(asked: Asked) -> dict[str, Any]:
    """Pictures from noise and from a photograph, at growing budgets of steps."""
    net = asked.net
    layer, channels = _middle(net)
    image = _fitted(_unit(net, asked.images(net, 1).x[:1]))[0]
    told: dict[str, Any] = {"net": net.name, "layer": layer, "channels": channels}
    pictures, rows = [], []
    for start in ("noise", "image"):
        first = image if start == "image" else None
        for steps in _BUDGETS:
            made = _drawn(asked, layer, channels, steps=steps, start=first)
            if start == "noise":
                pictures.append(made.images[0])
            if steps == _BUDGETS[-1]:
                rows += [_grown(start, unit.to_dict()) for unit in made.units]
    return {**told, "rows": rows, "steps": torch.stack(pictures), "budget": _BUDGETS[-1]}


def _drawn(asked: Asked, layer: str, channels: list[int], **how: Any) -> Visualization:
    return visualize(asked.net, layer, channels, size=_SIZE, seed=asked.seed, random=True, **how)


def _grown(start: str, unit: dict[str, Any]) -> dict[str, Any]:
    """How a unit's activation grew: over all, and over the last quarter of its steps."""
    curve = [value for _, value in unit["curve"]]
    whole = max(curve) - curve[0]
    late = sum(curve[-3:]) / len(curve[-3:]) - sum(curve[-len(curve) // 4 :][:3]) / 3
    kept = {name: unit[name] for name in ("channel", "status", "steps", "curve")}
    return {"start": start, **kept, "first": curve[0], "last": curve[-1], "whole": whole, "late": late}


def _unit(net: Net, x: Tensor) -> Tensor:
    """Network input as pictures in [0, 1]."""
    spec = net.input
    std, centre = (torch.tensor(v or d).view(-1, 1, 1) for v, d in ((spec.std, (1.0,)), (spec.mean, (0.0,))))
    return (x.float() * std + centre).clamp(0, 1)


def _fitted(images: Tensor) -> Tensor:
    return functional.interpolate(images, (_SIZE, _SIZE), mode="bilinear", antialias=True)


def _regularizers(asked: Asked) -> dict[str, Any]:
    """The same units without any regularizer, with each alone and with all: fine detail, and what a small move leaves."""
    net, steps = asked.net, 64 if asked.quick else 192
    layer, channels = _middle(net)
    bare: dict[str, Any] = {"parametrization": Pixel(), "transforms": transform.NONE}
    plain = _drawn(asked, layer, channels, steps=steps, **bare)
    reached = sum(abs(unit.activation) for unit in plain.units) / len(plain.units)
    ways: dict[str, dict[str, Any]] = {
        "blur": {**bare, "recipe": Recipe(blur=0.5)},
        "total variation": {**bare, "regularize": _VARIATION * reached * TotalVariation()},
        "moves": {"parametrization": Pixel()},
        "spectrum": {"transforms": transform.NONE},
        "all": {"recipe": Recipe(blur=0.5)},
    }
    made = {"none": plain} | {
        name: _drawn(asked, layer, channels, steps=steps, **way) for name, way in ways.items()
    }
    photographs = _fitted(_unit(net, asked.images(net, 12).x))
    rows = [
        {
            "way": name,
            "high": mean(_high(one.images)[:, None]).to_dict(),
            "activation": [unit.activation for unit in one.units],
            "kept": _survives(net, layer, channels, one),
        }
        for name, one in made.items()
    ]
    shown = torch.stack([one.images for one in made.values()])  # [way, unit, channel, height, width]
    return {
        "layer": layer,
        "channels": channels,
        "rows": rows,
        "natural": mean(_high(photographs)[:, None]).to_dict(),
        "shown": shown,
    }


def _high(images: Tensor) -> Tensor:
    """Share of the power of each picture, its mean left out, at high frequencies, Tensor [image]."""
    power = torch.fft.fft2(images.double() - images.double().mean((2, 3), keepdim=True)).abs().square()
    rows, columns = (torch.fft.fftfreq(n) for n in images.shape[2:])
    high = (rows[:, None].square() + columns.square()).sqrt() >= _HIGH
    return (power * high).sum((1, 2, 3)) / power.sum((1, 2, 3)).clamp(min=1e-30)


def _survives(net: Net, layer: str, channels: list[int], made: Visualization) -> float | None:
    """Part of the activation that a small turn and shift leaves, over the units that are excited."""
    images = made.images
    matrix = torch.tensor(
        [
            [math.cos(_TURN), -math.sin(_TURN), 2 * _SHIFT / _SIZE],
            [math.sin(_TURN), math.cos(_TURN), 2 * _SHIFT / _SIZE],
        ]
    )
    grid = functional.affine_grid(matrix.expand(len(images), -1, -1), list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    values = []
    for one in (images, moved):
        y = captured(net, net.input.normalize(one), [layer.partition("#")[0]], torch.float32)
        out = y[layer.partition("#")[0]][1]
        values.append([float(out[k, channel].mean()) for k, channel in enumerate(channels)])
    kept = [after / before for before, after in zip(*values, strict=True) if before > 0]
    return sum(kept) / len(kept) if kept else None


def _kernels(asked: Asked) -> dict[str, Any]:
    """Filters of the first layer: kernel, optimized picture and the most exciting patch of photographs, compared."""
    net = asked.net
    conv = convolutions(profile_of(net))[0]
    part = net.copy().float().get_submodule(conv.name.partition("#")[0])
    images = asked.images(net, 4 if asked.quick else 12)
    if not isinstance(part, nn.Conv2d) or max(conv.kernel) == 1:
        return {"layer": conv.name, "filters": 0, "source": images.source}
    count = min(conv.channels[1], 16 if asked.quick else 64)
    drawn = visualize(
        net,
        conv.name,
        list(range(count)),
        size=48,
        steps=64,
        seed=asked.seed,
        random=True,
        transforms=transform.NONE,
    )
    alive = [k for k, unit in enumerate(drawn.units) if unit.status not in ("dead", "nan")]
    with torch.no_grad():
        kernel = _whitened(part.weight[alive].flatten(1))  # [filter, tap]
        optimized = _patches(part, net.input.normalize(drawn.images[alive]), conv, alive, each=True)
        natural = _patches(part, images.x.float(), conv, alive, each=False)
    pairs = {
        "picture": _identified(kernel, _whitened(optimized)),
        "photograph": _identified(kernel, _whitened(natural)),
        "both": _identified(_whitened(natural), _whitened(optimized)),
    }
    shape = (len(alive), conv.channels[0] // conv.groups, *conv.kernel)
    return {
        "layer": conv.name,
        "filters": len(alive),
        "dead": count - len(alive),
        "pairs": pairs,
        "source": images.source,
        "kernel": part.weight[alive].detach()[:8],
        "optimized": drawn.images[alive][:8],
        "natural": natural.view(shape)[:8],
    }


def _patches(part: nn.Conv2d, x: Tensor, conv: Conv, filters: list[int], *, each: bool) -> Tensor:
    """The patch that excites each filter most, [filter, tap]: of its own picture, or of all images."""
    rows = functional.unfold(x, conv.kernel, conv.dilation, 0, conv.stride)  # [image, all taps, position]
    taps = part.weight[0].numel()
    per_group = part.out_channels // part.groups
    found = []
    for place, number in enumerate(filters):
        group = number // per_group
        own = rows[:, group * taps : (group + 1) * taps]
        if each:
            own = own[place : place + 1]
        every = own.permute(0, 2, 1).flatten(0, 1)  # [patch, tap]
        found.append(every[(every @ part.weight[number].flatten()).argmax()])
    return torch.stack(found)


def _whitened(rows: Tensor) -> Tensor:
    """Rows of mean 0 and length 1."""
    rows = rows - rows.mean(1, keepdim=True)
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)


def _identified(one: Tensor, other: Tensor) -> dict[str, Any]:
    """How often a filter's own row of the other kind is the most similar of all, and how similar it is."""
    alike = other @ one.T  # [other's filter, filter]
    right = alike.argmax(1) == torch.arange(len(alike))
    return {"right": int(right.sum()), "of": len(right), "similar": float(alike.diagonal().mean())}


# ---------------------------------------------------------------- shown


def _statement(net: Net, climb: dict[str, Any], ways: dict[str, Any]) -> str:
    noise = [row for row in climb["rows"] if row["start"] == "noise"]
    by = {row["way"]: row for row in ways["rows"]}
    told = {
        "units": len(noise),
        "layer": climb["layer"],
        "net": net.name,
        "first": sum(row["first"] for row in noise) / len(noise),
        "last": sum(row["last"] for row in noise) / len(noise),
        "budget": climb["budget"],
        "none": by["none"]["high"]["value"],
        "all": by["all"]["high"]["value"],
        "natural": ways["natural"]["value"],
    }
    say = (
        "Gradient ascent from noise took {units} channels of {layer} in {net} from {first} to {last} in at most {budget} steps. "
        "Without regularizers {none:.0%} of a picture's power is fine detail, with all {all:.0%}; images have {natural:.0%}."
    )
    return fill(say, told)


def _tables(climb: dict[str, Any], ways: dict[str, Any], kernels: dict[str, Any]) -> list[Sheet]:
    rows = tuple(
        (
            row["start"],
            str(row["channel"]),
            f"{row['first']:.3g}",
            f"{row['last']:.3g}",
            str(row["steps"]),
            row["status"],
        )
        for row in climb["rows"]
    )
    heads: tuple[str, ...] = ("start", "channel>", "activation before>", "after>", "steps>", "ended")
    made = [Sheet(f"gradient ascent on {climb['layer']}", heads, rows)]
    ways_rows = tuple(
        (
            row["way"],
            f"{100 * row['high']['value']:.1f} %",
            f"{sum(row['activation']) / len(row['activation']):.3g}",
            "" if row["kept"] is None else f"{100 * row['kept']:.0f} %",
        )
        for row in ways["rows"]
    )
    ways_rows = (*ways_rows, ("images", f"{100 * ways['natural']['value']:.1f} %", "", ""))
    heads = ("regularizer", "fine detail>", "activation>", "left after a small move>")
    made.append(Sheet(f"regularizers, {len(ways['channels'])} channels of {ways['layer']}", heads, ways_rows))
    if kernels["filters"]:
        names = {
            "picture": "kernel and optimized picture",
            "photograph": "kernel and best patch of the images",
            "both": "that patch and optimized picture",
        }
        alike = tuple(
            (names[name], f"{pair['right']} of {pair['of']}", f"{pair['similar']:.2f}")
            for name, pair in kernels["pairs"].items()
        )
        heads = ("compared", "own filter most alike>", "mean cosine>")
        made.append(Sheet(f"filters of {kernels['layer']}", heads, alike))
    return made


def _pictures(climb: dict[str, Any], ways: dict[str, Any], kernels: dict[str, Any]) -> list[Picture]:
    steps = ", ".join(map(str, _BUDGETS))
    caption = f"Channel {climb['channels'][0]} of {climb['layer']} from noise, with budgets of {steps} steps."
    titles = [f"{step} step{'s' if step > 1 else ''}" for step in _BUDGETS]
    drawn = dict(zip(titles, map(_shown, climb["steps"]), strict=True))
    made = [strip("steps", caption, drawn, height=128)]
    rows = [beside([_shown(one) for one in row], height=128) for row in ways["shown"]]
    columns = tuple(f"channel {channel}" for channel in ways["channels"])
    names = tuple(row["way"] for row in ways["rows"])
    caption = f"Channels of {ways['layer']}, with each regularizer: {', '.join(names)}."
    made.append(Picture("regularizers", caption, _below(rows), columns, names))
    if kernels["filters"]:
        rows = [
            beside([_shown(one, stretch=name != "optimized") for one in kernels[name]], height=48)
            for name in ("kernel", "optimized", "natural")
        ]
        caption = f"Filters of {kernels['layer']}; rows: kernel, optimized picture, the patch of the images they like best."
        made.append(Picture("kernels", caption, _below(rows), rows=("kernel", "optimized", "best patch")))
    return made


def _shown(image: np.ndarray, *, stretch: bool = False) -> np.ndarray:
    tensor = torch.from_numpy(np.asarray(image))
    if stretch:
        tensor = (tensor - tensor.amin()) / (tensor.amax() - tensor.amin()).clamp(min=1e-12)
    return pixels(tensor if len(tensor) in (1, 3) else tensor.mean(0, keepdim=True))


def _below(rows: list[np.ndarray], gap: int = 4) -> np.ndarray:
    """Pictures below each other, white between and at the right of narrow ones."""
    wide = max(row.shape[1] for row in rows)
    parts = [
        np.pad(row, [(0, gap), (0, wide - row.shape[1])] + [(0, 0)] * (row.ndim - 2), constant_values=255)
        for row in rows
    ]
    return np.concatenate(parts)[:-gap]


def _chart(climb: dict[str, Any]) -> Chart:
    series = {
        f"channel {row['channel']}, from {'noise' if row['start'] == 'noise' else 'an image'}": [
            (float(step), float(value)) for step, value in row["curve"]
        ]
        for row in climb["rows"]
    }
    return Chart(
        "climb", f"activation of {climb['layer']} as its picture is optimized", "step", "activation", series
    )
