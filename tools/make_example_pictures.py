"""Draws the pictures of docs/examples from what the code of each page made: it is run first.

python tools/make_example_pictures.py docs/examples docs/images/examples [NAME ...]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from drawing import ORANGE, Box, Column, Row, Sheet, Text, table
from make_rule_pictures import behind, seen_as, shown_to, small
from pages import run
from plates import Curves, Plate, joined, painted
from torch.nn import functional

from convscope import measure

Names = dict[str, Any]
PICTURES: dict[str, tuple[str, Callable[[Names], Box]]] = {}  # page: what a reader hears, what draws it


def picture(name: str, says: str) -> Callable[[Callable[[Names], Box]], Callable[[Names], Box]]:
    """Registers a drawing."""

    def register(draw: Callable[[Names], Box]) -> Callable[[Names], Box]:
        PICTURES[name] = (says, draw)
        return draw

    return register


@picture("camera", "Two photographs as each way shows them to the network, and what the network answers")
def camera(names: Names) -> Box:
    net, found = names["net"], names["found"]
    x = net.input.normalize(names["frames"][1:])
    rows = []
    for frame in x:
        row: list[Box] = []
        for how, made in found.nets.items():
            with torch.no_grad():
                scores = made.module(frame[None]).softmax(1)[0]
            best = int(scores.argmax())
            whole = joined([small(seen_as(net, image)) for image in shown_to(made.module, frame[None])])
            label = str(net.labels[best]).partition(",")[0]
            scale = 1.0 if how == "tiles" else 1.4
            said = f"{label}, {100 * float(scores[best]):.0f} %"
            row.append(Plate(whole, how, said, scale * whole.shape[2], photo=True))
        rows.append(row)
    return table(rows, gap=14, between=12)


@picture("pooling", "A map behind each way to pool, and how many clothes the network then tells right")
def pooling(names: Names) -> Box:
    image = names["x"][9:10]
    maps = {way: behind(net.module, "block2.conv1", image)[0] for way, net in names["ways"].items()}
    channel = int(maps["max"].std((1, 2)).argmax())
    low, high = float(maps["max"][channel].min()), float(maps["max"][channel].max())
    boxes: list[Box] = [Plate(names["images"][9, 0], "one of them", "", 98)]
    for way, each in maps.items():
        shade = (each[channel] - low) / (high - low)
        boxes.append(Plate(shade, way, f"{names['right'][way]} of 500 right", 98))
    return Row(*boxes, gap=18)


@picture(
    "separable_resnet",
    "Right answers against multiply-accumulates: fitted to images, and the nearest weights",
)
def separable_resnet(names: Names) -> Box:
    whole = measure(names["net"], fields=False, training=False).totals.macs
    lines: dict[str, list[tuple[float, float]]] = {"fitted to 100 images": [], "nearest weights": []}
    for share, pair in names["points"].items():
        for line, made, right in zip(lines.values(), (names["fitted"], names["nearest"]), pair, strict=True):
            macs = measure(made[share].net, fields=False, training=False).totals.macs
            line.append((macs / whole, right / 500))
    before = names["right"](names["net"]) / 500
    return Curves(
        lines, "share of the network's MACs left", "right of 500 test images", level=("as trained", before)
    )


@picture("heat_map", "A canvas of clothes, and where the classifier sees boots, bags and trousers on it")
def heat_map(names: Names) -> Box:
    canvas, scores = names["canvas"][0, 0], names["scores"][0]
    boxes: list[Box] = [Plate(canvas, "84×140 pixels", "trained on 28×28", 196)]
    for label in ("Ankle boot", "Bag", "Trouser"):
        heat = functional.interpolate(
            scores[None, None, names["LABELS"].index(label)].detach(), scale_factor=4
        )[0, 0]
        edge = 12  # a window's score is drawn at its middle
        heat = functional.pad(heat, (edge, edge, edge, edge))
        shade = painted(heat * 0.85, "#000000", ORANGE)
        boxes.append(Plate((0.75 * canvas * (1 - 0.85 * heat) + shade), label, "", 196))
    return Column(Row(*boxes[:2], gap=20), Row(*boxes[2:], gap=20), gap=14)


@picture(
    "decoder",
    "The decoder's output with each way to upsample, and the pattern that the way itself lays over a map",
)
def decoder(names: Names) -> Box:
    at = 5
    noisy = names["x"][at, 0] * names["net"].input.std[0] + names["net"].input.mean[0]
    top: list[Box] = [Plate(noisy, "what it is given", "", 112)]
    for kind, y in names["outputs"].items():
        top.append(Plate(y[at, 0], kind, f"error {names['errors'][kind]:.3f}", 112))
    ups = {**names["ups"], "transposed, random": names["random"]}
    below: list[Box] = []
    for kind, up in ups.items():
        with torch.no_grad():
            flat = up(torch.ones(1, 16, 8, 8, dtype=next(iter(up.parameters()), torch.ones(1)).dtype))[0, 0]
        below.append(Plate(flat / (2 * flat.abs().mean()), kind, f"ripple {names['ripple'](up)}", 112))
    return Column(
        Row(*top[:4], gap=16),
        Row(*top[4:], gap=16),
        Text("a map that is the same everywhere, behind each way:", 13),
        Row(*below, gap=16),
        gap=18,
    )


def main() -> None:
    """Draws all, or those named."""
    pages, folder, chosen = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name, (says, draw) in PICTURES.items():
        if not chosen or name in chosen:
            names, _ = run((pages / f"{name}.md").read_text(encoding="utf-8"))
            with torch.no_grad():
                Sheet(draw(names), says).save(folder / f"{name}.svg")


if __name__ == "__main__":
    main()
