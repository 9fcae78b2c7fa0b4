"""Fully-connected, locally connected and convolutional layers of one geometry: what is shared, what each sees and learns.

Parameters are counted for every convolution of the network; what sharing does to learning is read from a study record, and
tried once on small networks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convscope.answers.asked import Asked, needs_channels
from convscope.answers.base import Draft, Picture, fill
from convscope.answers.drawing import beside, grey
from convscope.answers.layers import Conv, convolutions, profile_of, sizes
from convscope.answers.running import captured
from convscope.answers.verdicts.locally_connected import findings
from convscope.measures.figures import Sheet
from convscope.measures.receptive_field import receptive_field
from convscope.models import Net, load
from convscope.nn import LocallyConnected2d
from convscope.rewrites.rewrite import rewrite
from convscope.rewrites.untie import Untie
from convscope.studies.data import dataset
from convscope.studies.networks import build
from convscope.studies.settings import Training
from convscope.studies.training import train

PARTS = ("counts", "shifted", "learned")

_FACTORY = "convscope.studies.networks:framed_cnn"
_GEOMETRY = {"width": 4, "stages": 2, "object_size": 20, "head": "flatten"}
_KINDS = ("standard", "local", "full")
_PLACES = ("centre", "scattered")


def answer(asked: Asked) -> Draft:
    """See the module."""
    needs_channels(asked.net, asked.question.name)
    counts = asked.part("counts", lambda: _counts(asked.net))
    shifted = asked.part("shifted", lambda: _shifted(asked), data=True)
    small = asked.example("fashion")  # whatever network is asked, the small ones learn the same
    learned = asked.part("learned", lambda: _learned(asked.quick, asked.seed), net=small)
    return Draft(
        statement=_statement(counts, learned),
        findings=tuple(findings(asked, counts, shifted, learned)),
        tables=tuple(_tables(counts, learned)),
        pictures=_pictures(learned),
        data=shifted["source"],
    )


# ---------------------------------------------------------------- measured


def _counts(net: Net) -> dict[str, Any]:
    """Weights of each convolution, of the same without sharing, and of a fully-connected layer between the same maps.

    Those of the first spatial layer are counted on real layers too, which take no memory.
    """
    every = convolutions(profile_of(net))
    rows = [{**conv.to_dict(), **_weights(conv)} for conv in every]
    for row, conv in zip(rows, every, strict=True):
        field = receptive_field(net, conv.name).size
        row["field"] = list(field)
    counted = [_built(conv) for conv in every if max(conv.kernel) > 1][:1]
    return {"net": net.name, "input": list(net.input.size), "rows": rows, "built": counted}


def _weights(conv: Conv) -> dict[str, int]:
    """Weights by the closed formula, biases left out."""
    kernel = conv.kernel[0] * conv.kernel[1] * conv.channels[0] // conv.groups * conv.channels[1]
    before, after = (size[0] * size[1] for size in (conv.before, conv.after))
    return {
        "shared": kernel,
        "local": kernel * after,
        "full": before * conv.channels[0] * after * conv.channels[1],
    }


def _built(conv: Conv) -> dict[str, Any]:
    """The three layers really made: their weights."""
    geometry: dict[str, Any] = {
        "stride": conv.stride,
        "dilation": conv.dilation,
        "groups": conv.groups,
        "bias": False,
    }
    before = tuple(a + max(0, (b - 1) * s + e - a) for a, b, s, e in _room(conv))
    with torch.device("meta"):
        local = LocallyConnected2d(*conv.channels, conv.kernel, input_size=before, **geometry)
        shared = nn.Conv2d(*conv.channels, conv.kernel, **geometry)
        full = nn.Linear(
            conv.before[0] * conv.before[1] * conv.channels[0],
            conv.after[0] * conv.after[1] * conv.channels[1],
            bias=False,
        )
    made = {"shared": shared, "local": local, "full": full}
    return {"layer": conv.name} | {
        name: sum(parameter.numel() for parameter in module.parameters()) for name, module in made.items()
    }


def _room(conv: Conv) -> list[tuple[int, int, int, int]]:
    """Input, output, stride and extent of each axis: an input padded beforehand has so many pixels more."""
    return list(zip(conv.before, conv.after, conv.stride, conv.extent, strict=True))


def _shifted(asked: Asked) -> dict[str, Any]:
    """Each convolution of stride 1 on its own input and on the same moved by one pixel, in float64."""
    net = asked.net
    every = [
        conv
        for conv in convolutions(profile_of(net))
        if conv.stride == (1, 1) and min(conv.before) > max(conv.extent) + 1 and "#" not in conv.name
    ]
    images = asked.images(net, 4 if asked.quick else 16)
    maps = captured(net, images.x, [conv.name for conv in every])
    module, rows = net.copy().double(), []
    with torch.no_grad():
        for conv in every:
            x = maps[conv.name][0]
            part = module.get_submodule(conv.name)
            still, moved = part(x[..., :-1]), part(x[..., 1:])
            margin = conv.extent[1] // 2
            inner = slice(margin, still.shape[-1] - margin - 1)
            one, other = still[..., 1:][..., inner], moved[..., :-1][..., inner]
            size = float(still.norm())
            rows.append(
                {
                    "layer": conv.name,
                    "equivariance": float((one - other).norm()) / max(float(one.norm()), 1e-300),
                    "invariance": float((moved - still).norm()) / max(size, 1e-300),
                }
            )
    return {"rows": rows, "images": len(images.x), "source": images.source}


def _learned(quick: bool, seed: int) -> dict[str, Any]:
    """The three kinds trained once on centred and on scattered clothes; and what kernels become that are no longer shared."""
    data = dataset("fashion", limit=600 if quick else None, test_limit=500 if quick else None)
    settings = Training(epochs=5 if quick else 12, batch=64)
    rows, nets = [], {}
    for kind in _KINDS:
        for place in _PLACES:
            net = build(
                _FACTORY,
                {**_GEOMETRY, "convolution": kind, "place": place},
                offered=data.arguments,
                seed=seed,
            )
            made = train(net, data, settings, seed=seed)
            nets[kind, place] = made.module
            weights = sum(p.numel() for p in net.parameters())
            rows.append(
                {
                    "kind": kind,
                    "place": place,
                    "test": made.test_accuracy,
                    "train": made.train_accuracy,
                    "params": weights,
                }
            )
    start = load(nets["standard", "centre"], input=data.input)
    untied = rewrite(start, Untie(where="1.stage1.conv1")).net.copy()
    for parameter in untied.parameters():
        parameter.requires_grad_(True)
    tuned = train(untied, data, Training(epochs=settings.epochs, batch=64, lr=0.1), seed=seed)
    before = _kernels(untied)
    after = _kernels(tuned.module)  # [row, column, filter, tap, tap]
    mean = after.mean((0, 1), keepdim=True)
    away = (after - mean).flatten(2).norm(dim=2) / mean.norm()
    loudest = int(mean[0, 0].flatten(1).norm(dim=1).argmax())
    return {
        "rows": rows,
        "samples": data.counts["train"],
        "epochs": settings.epochs,
        "untied": {
            "before": float((before - before.mean((0, 1), keepdim=True)).abs().max()),
            "away": float(away.mean()),
            "corner": float(away[:4, :4].mean()),
            "centre": float(away[12:16, 12:16].mean()),
            "accuracy": tuned.test_accuracy,
            "start": next(r["test"] for r in rows if (r["kind"], r["place"]) == ("standard", "centre")),
        },
        "away": away,
        "kernels": (after - mean)[2::6, 2::6, loudest].float(),
        "shared": mean[0, 0, loudest].float(),
    }


def _kernels(module: nn.Module) -> Tensor:
    """Kernels of the first layer, [row, column, filter, tap, tap]."""
    local = module.get_submodule("1.stage1.conv1")
    assert isinstance(local, LocallyConnected2d)
    return local.weight.detach()[:, :, 0, :, :, :, 0]


# ---------------------------------------------------------------- shown


def _statement(counts: dict[str, Any], learned: dict[str, Any]) -> str:
    rows = counts["rows"]
    total = {kind: sum(row[kind] for row in rows) for kind in ("shared", "local", "full")}
    by = {(row["kind"], row["place"]): row["test"] for row in learned["rows"]}
    told = {
        "net": counts["net"],
        "layers": len(rows),
        **total,
        "local_x": total["local"] / max(total["shared"], 1),
        "full_x": total["full"] / max(total["shared"], 1),
        "a": by["standard", "centre"],
        "b": by["local", "centre"],
        "c": by["standard", "scattered"],
        "d": by["local", "scattered"],
        "samples": learned["samples"],
    }
    say = (
        "The {layers} convolutions of {net} have {shared} weights; without sharing they would have {local_x:x} as many, fully "
        "connected {full_x:x}. Trained once on {samples} clothes, shared and unshared kernels reached {a:.1%} and {b:.1%} on "
        "centred ones, and {c:.1%} and {d:.1%} on scattered ones."
    )
    return fill(say, told)


def _tables(counts: dict[str, Any], learned: dict[str, Any]) -> list[Sheet]:
    every = counts["rows"]
    chosen = every if len(every) <= 12 else [every[i * (len(every) - 1) // 11] for i in range(12)]
    rows = tuple(
        (
            row["name"],
            sizes(row["kernel"]),
            sizes(row["after"]),
            *(f"{row[kind]:,}" for kind in ("shared", "local", "full")),
            sizes(row["field"]),
        )
        for row in chosen
    )
    heads = (
        "layer",
        "kernel>",
        "positions>",
        "shared>",
        "unshared>",
        "fully connected>",
        "sees of the image>",
    )
    tables = [Sheet(f"weights of the convolutions of {counts['net']}, three ways", heads, rows)]
    rows = tuple(
        (
            {"standard": "convolution", "local": "locally connected", "full": "fully connected"}[row["kind"]],
            row["place"],
            f"{row['params']:,}",
            *("" if row[split] is None else f"{100 * row[split]:.1f} %" for split in ("train", "test")),
        )
        for row in learned["rows"]
    )
    title = f"trained once on {learned['samples']} clothes, {learned['epochs']} epochs"
    tables.append(Sheet(title, ("layers", "clothes", "parameters>", "training>", "test>"), rows))
    return tables


def _pictures(learned: dict[str, Any]) -> tuple[Picture, ...]:
    untied, kernels = learned["untied"], learned["kernels"]
    told = {"away": untied["away"], "corner": untied["corner"], "centre": untied["centre"]}
    caption = fill(
        "How far each position's kernel went from the mean when a trained convolution was no longer shared and trained on: "
        "{away:.1%} on average, {corner:.1%} in a corner, {centre:.1%} in the middle; white is most.",
        told,
    )
    away = Picture("away", caption, beside([grey(learned["away"], 0.0)], height=168))
    reach = float(abs(kernels).max())
    whole = _stacked([beside([grey(one, -reach, reach) for one in row], height=24) for row in kernels])
    shared = grey(learned["shared"])
    caption = fill(
        "One filter: the mean of its kernels, and how far those at 25 positions went from it, {times:x} enlarged.",
        {"times": float(abs(learned["shared"]).max()) / max(reach, 1e-12)},
    )
    return away, Picture("kernels", caption, beside([shared, whole], height=whole.shape[0]))


def _stacked(rows: list[np.ndarray], gap: int = 4) -> np.ndarray:
    """Pictures of one width below each other, white between."""
    parts = [np.pad(row, [(0, gap), (0, 0)], constant_values=255) for row in rows]
    return np.concatenate(parts)[:-gap]
