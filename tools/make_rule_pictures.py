"""Draws the pictures of docs/rules: what each rule does to a trained network, by applying it.

python tools/make_rule_pictures.py docs/images/rules [NAME ...]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PAPER,
    Arrow,
    Box,
    Column,
    Frame,
    Grid,
    Row,
    Sheet,
    Text,
    mix,
    number,
    table,
)
from drawing import signed as palette
from plates import Curves, Plate, joined, painted, signed, tiny
from torch import Tensor, nn
from torch.nn import functional

from convscope import load, rewrite, rules
from convscope.data import photographs
from convscope.data.fashion import LABELS, fashion
from convscope.models import InputSpec, Net
from convscope.rewrites.base import Edit, Rule

RECORD = Path(__file__).parents[1] / "benchmarks" / "results" / "rewrites-cpu.json"
PICTURES: dict[str, tuple[str, Callable[[], Box]]] = {}  # file's name: what a reader hears, what draws it


def picture(name: str, says: str) -> Callable[[Callable[[], Box]], Callable[[], Box]]:
    """Registers a drawing."""

    def register(draw: Callable[[], Box]) -> Callable[[], Box]:
        PICTURES[name] = (says, draw)
        return draw

    return register


def figures(values: Tensor, title: str, caption: str = "", cell: float = 34) -> Grid:
    """Signed numbers, blue above 0."""
    return Grid(values, title, caption, cell, palette(float(values.abs().max())))


def said(edit: Edit) -> str:
    """Class and error of an edit, on random values."""
    return f"{edit.exactness}, error {tiny(edit.error or 0.0)}"


def apart(before: Tensor, after: Tensor) -> str:
    """How far two maps of the same images are apart, over the length of the first."""
    return f"error {tiny(float((after - before).norm() / before.norm()))}"


def shown(name: str) -> Tensor:
    """An embedded photograph [3, height, width]."""
    return next(photo for photo in photographs() if photo.name == name).image()


def behind(module: nn.Module, layer: str, x: Tensor) -> Tensor:
    """What a layer gives."""
    found: list[Tensor] = []
    handle = module.get_submodule(layer).register_forward_hook(lambda _m, _i, y: found.append(y))
    with torch.no_grad():
        module(x)
    handle.remove()
    return found[0]


# ---------------------------------------------------------------- kernels and padding


@picture(
    "kernel_size.svg", "A trained 3 by 3 kernel with zeros around it, cut to 2 by 2, and fitted to images"
)
def kernel_size() -> Box:
    net, layer = load("fashion"), "block2.conv1"
    seen = net.input.normalize(fashion("train")[0][:100])
    made = [
        rewrite(net, rules.KernelSize(size), where=layer, data=data)
        for size, data in ((5, None), (2, None), (2, seen))
    ]
    old = net.module.get_submodule(layer).weight.detach()
    place = divmod(int(old.square().sum((2, 3)).argmax()), old.shape[1])
    new = [one.net.module.get_submodule(layer).weight[place] for one in made]
    tests = net.input.normalize(fashion("test")[0][:100])
    maps = [behind(each.module, layer, tests) for each in (net, *(one.net for one in made))]
    larger = Row(
        figures(old[place], "3×3, as trained"),
        Arrow("KernelSize(5)"),
        figures(new[0], "zeros around", said(made[0].edits[0])),
    )
    smaller = Row(
        Arrow("KernelSize(2)", "without images"),
        figures(new[1], "the centre, same sum", apart(maps[0], maps[2])),
        Arrow("KernelSize(2)", "fitted to 100 images"),
        figures(new[2], "least squares", apart(maps[0], maps[3])),
    )
    return Column(larger, smaller, gap=26)


@picture(
    "padding.svg",
    "A blur near the border of a photograph under five paddings, and where each differs from zeros",
)
def padding() -> Box:
    image = functional.interpolate(shown("coffee")[None, :, 60:300, 100:340], (60, 60), mode="area")
    blur = nn.Conv2d(3, 3, 9, padding=4, groups=3, bias=False)
    blur.weight.data.fill_(1 / 81)
    net = load(nn.Sequential(blur), input="3x60x60")
    before = net.module(image)[0].detach()
    columns: list[Box] = [Column(Plate(before, "zeros", "as it was"), gap=10)]
    for kind in ("reflect", "replicate", "circular", "partial"):
        made = rewrite(net, rules.Padding(kind))
        after = made.net.module(image)[0].detach()
        edit = made.edits[0]
        inner = 60 - 2 * edit.margin[0]
        frame = Frame(edit.margin[0], edit.margin[1], inner, inner, GREEN, 1.5)
        where = painted((after - before).abs().mean(0) / 0.4, high=ORANGE)
        columns.append(
            Column(
                Plate(after, kind),
                Plate(
                    where,
                    "",
                    f"differs outside the\nframe; inside by {tiny(edit.error or 0.0)}",
                    frames=(frame,),
                ),
                gap=10,
            )
        )
    return Row(*columns, top=True, gap=16)


# ---------------------------------------------------------------- pooling and upsampling


@picture(
    "pool.svg",
    "Six by six values of a trained map, and the three by three that each way to pool makes of them",
)
def pool() -> Box:
    net = load("fashion")
    images, _ = fashion("test")
    seen = net.input.normalize(fashion("train")[0][:200])
    x = net.input.normalize(images[9:10])
    wide = behind(net.module, "block1.relu2", x)[0]
    channel = int(wide.sum((1, 2)).argsort(descending=True)[2])
    part = wide[channel, 8:14, 10:16]
    high = float(part.max())

    def grid(values: Tensor, title: str, caption: str = "") -> Grid:
        return Grid(values, title, caption, 34, lambda value: mix(PAPER, BLUE, 0.55 * value / high))

    tests = net.input.normalize(images[:100])
    wanted = behind(net.module, "block1.pool", tests)
    boxes = [grid(wanted[9, channel, 4:7, 5:8], "max", "as it was")]
    for kind, data, title in (
        ("average", None, "average"), ("blur", None, "blur"), ("strided", None, "strided, no images"),
        ("strided", seen, "strided, fitted"), ("moved", None, "moved"),
    ):  # fmt: skip
        made = rewrite(net, rules.Pool(kind), where="block1.pool", data=data)
        values = behind(made.net.module, "block1.pool", tests)
        boxes.append(grid(values[9, channel, 4:7, 5:8], title, apart(wanted, values)))
    return Row(grid(part, "in front of the pool"), table([boxes[:3], boxes[3:]], gap=22, between=14), gap=34)


@picture("upsample.svg", "A trained map of 14 by 14 positions enlarged by each kind of upsampling")
def upsample() -> Box:
    net = load("fashion-decoder")
    x = net.input.normalize(fashion("test")[0][5:6])
    layer = "decoder1.up"
    small = behind(net.module, "decoder2.relu2", x)[0]
    channel = int(small.std((1, 2)).argmax())
    top = float(small[channel].max())
    boxes: list[Box] = [
        Plate(small[channel] / top, "14×14", "", 65),
        Plate(behind(net.module, layer, x)[0, channel] / top, "nearest", "as it was", 128),
    ]
    for kind in ("transposed", "pixel_shuffle", "bilinear", "bed_of_nails", "max_unpool"):
        made = rewrite(net, rules.Upsample(kind), where=layer)
        edit = made.edits[0]
        values = behind(made.net.module, layer, x)[0, channel]
        boxes.append(Plate(values / top, kind, f"{edit.exactness}\nerror {tiny(edit.rms_error or 0.0)}", 128))
    return Column(Row(*boxes[:4], gap=18), Row(*boxes[4:], gap=18), gap=18)


# ---------------------------------------------------------------- fewer multiplications


def effective(module: nn.Module, layer: str, channels: int) -> Tensor:
    """The kernel [out, in, 3, 3] of whatever stands at a place, by its answers to single pixels."""
    part = module.get_submodule(layer)
    pulses = torch.zeros(channels, channels, 5, 5)
    pulses[range(channels), range(channels), 2, 2] = 1
    with torch.no_grad():
        answers = part(pulses) - part(torch.zeros(1, channels, 5, 5))
    return answers[:, :, 1:4, 1:4].flip(2, 3).transpose(0, 1)


def by_rank(kind: Callable[..., Rule], ranks: tuple[int, ...], name: str) -> Box:
    """Kernels of a filter as rank falls, and the curve of the record."""
    net, layer = load("fashion"), "block1.conv2"
    seen = net.input.normalize(fashion("train")[0][:200])
    old = net.module.get_submodule(layer).weight.detach()
    chosen = int(old.square().sum((1, 2, 3)).argmax())
    inputs = old[chosen].square().sum((1, 2)).argsort(descending=True)[:8]
    scale = float(old[chosen, inputs].abs().max())

    def strip(weight: Tensor, title: str, remark: str) -> list[Box]:
        kernels = [Plate(signed(weight[chosen, i], scale), side=40) for i in inputs]
        return [Text(title, 13, anchor="start"), Row(*kernels, gap=6), Text(remark, 12, GREY, anchor="start")]

    tests = net.input.normalize(fashion("test")[0][:100])
    wanted = behind(net.module, layer, tests)
    rows = [strip(old, "as trained", "")]
    for rank in ranks:
        made = rewrite(net, kind(rank=rank), where=layer, data=seen)
        weight = effective(made.net.module, layer, old.shape[1])
        rows.append(strip(weight, f"rank {rank}", apart(wanted, behind(made.net.module, layer, tests))))
    record = json.loads(RECORD.read_text())["lowrank"]
    lines: dict[str, list[tuple[float, float]]] = {}
    base = 0.0
    for share in (0.2, 0.3, 0.5):
        row: dict[str, Any] = record[f"fashion/{name}/{share}"]
        base = row["base"]
        for way, label in (
            ("data-aware", "fitted to images"), ("data-free, batch norms matched", "batch norms matched"),
            ("data-free", "nearest weights"), ("truncation", "largest weights"),
        ):  # fmt: skip
            told = row["ways"][way]
            lines.setdefault(label, []).append((told["macs share"], told["score"]))
    return Row(
        table(rows, gap=12, between=8),
        Curves(
            lines, "share of the network's MACs left", "right of 2,000 test images", level=("before", base)
        ),
        gap=34,
    )


@picture(
    "separable.svg",
    "Kernels of a filter at falling rank, and accuracy against MACs for four ways to choose weights",
)
def separable() -> Box:
    return by_rank(rules.Separable, (4, 2, 1), "separable")


@picture(
    "bottleneck.svg",
    "Kernels of a filter sent through fewer channels, and accuracy against MACs for four ways to choose weights",
)
def bottleneck() -> Box:
    return by_rank(rules.Bottleneck, (32, 16, 4), "bottleneck")


# ---------------------------------------------------------------- sharing


@picture(
    "untie.svg",
    "The shared kernel of a convolution, and its copies at nine positions of a locally connected layer",
)
def untie() -> Box:
    net, layer = load("fashion"), "block1.conv1"
    made = rewrite(net, rules.Untie(), where=layer)
    edit = made.edits[0]
    shared = net.module.get_submodule(layer).weight[2, 0].detach()
    kernels = _kernels(made.net.module, layer)
    cells = [[figures(kernels[r, c], "", "", 24) for c in range(3)] for r in range(3)]
    params = edit.params or (0, 0)
    return Row(
        figures(shared, "one of 32 kernels", f"{params[0]:,} parameters"),
        Arrow("Untie()", said(edit)),
        Column(
            table(cells, gap=8, between=8),
            Text(f"one at each of 28×28 positions: {params[1]:,} parameters", 12, GREY),
            gap=8,
        ),
    )


@picture(
    "tie.svg",
    "Nine kernels of a locally connected layer that differ, and the shared kernel nearest to what all of them do",
)
def tie() -> Box:
    net, layer = load("fashion"), "block1.conv1"
    loose = rewrite(net, rules.Untie(), where=layer).net
    part: Any = loose.module.get_submodule(layer)
    noise = torch.randn(part.weight.shape, generator=torch.Generator().manual_seed(0))
    part.weight.data += 0.5 * part.weight.std() * noise
    seen = net.input.normalize(fashion("train")[0][:100])
    made = rewrite(loose, rules.Tie(), where=layer, data=seen)
    kernels = _kernels(loose.module, layer)
    cells = [[figures(kernels[r, c], "", "", 24) for c in range(3)] for r in range(3)]
    tests = net.input.normalize(fashion("test")[0][:100])
    off = apart(behind(loose.module, layer, tests), behind(made.net.module, layer, tests))
    params = made.edits[0].params or (0, 0)
    return Row(
        Column(
            table(cells, gap=8, between=8),
            Text(f"28×28 different kernels: {params[0]:,} parameters", 12, GREY),
            gap=8,
        ),
        Arrow("Tie()", f"approximate, {off}"),
        figures(
            made.net.module.get_submodule(layer).weight[2, 0].detach(),
            "one of 32 kernels",
            f"{params[1]:,} parameters",
        ),
    )


def _kernels(module: nn.Module, layer: str) -> Tensor:
    """Those of channel 2 of a locally connected layer with one input channel, [row, column, 3, 3]."""
    weight: Any = module.get_submodule(layer).weight
    return weight.detach()[:, :, 0, 2, :, :, 0]


# ---------------------------------------------------------------- the network as a whole


@picture(
    "convolutionalize.svg",
    "A row of clothes, and the scores of one class on it from windows 8, 4 and 1 pixels apart",
)
def convolutionalize() -> Box:
    net = load("fashion")
    images, labels = fashion("test")
    canvas = torch.zeros(1, 1, 44, 124)
    for at, label in enumerate((5, 9, 8, 1)):
        canvas[0, 0, 8:36, 4 + 30 * at : 32 + 30 * at] = images[labels == label][2, 0]
    boxes: list[Box] = [Plate(canvas[0, 0], "44×124 pixels", "trained on 28×28", 248)]
    for name, rule in (
        ("stride=8", rules.Convolutionalize()), ("stride=4", rules.Convolutionalize(stride=4)),
        ("dense=True", rules.Convolutionalize(dense=True)),
    ):  # fmt: skip
        made = rewrite(net, rule)
        with torch.no_grad():
            scores = made.net.module(net.input.normalize(canvas)).softmax(1)[0, LABELS.index("Ankle boot")]
        rows, columns = scores.shape
        caption = f"{rows}×{columns} windows, “Ankle boot”"
        boxes.append(Plate(painted(scores), f"Convolutionalize({name})", caption, 200))
    return Column(Row(*boxes[:2], gap=26), Row(*boxes[2:], gap=26), gap=18)


@picture("input_size.svg", "One photograph as resize, crop, pad, tiles and native show it to the network")
def input_size() -> Box:
    frame = functional.interpolate(shown("coffee")[None, :, :, 60:420], (320, 360), mode="bilinear")
    layers = (nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))  # any network
    net = load(nn.Sequential(*layers), input=InputSpec((3, 224, 224), mean=(0.5,) * 3, std=(0.5,) * 3))
    seen: dict[str, list[Tensor]] = {}
    for how in ("resize", "crop", "pad", "tiles", "native"):
        made = rewrite(net, rules.InputSize(320, 360, how))
        seen[how] = shown_to(made.net.module, net.input.normalize(frame))
    plates = [Plate(small(frame[0]), "the camera's 320×360", "", 120, photo=True)]
    for how, images in seen.items():
        pictures = [small(seen_as(net, image)) for image in images]
        size = "×".join(str(n) for n in images[0].shape[1:])
        note = f"{len(images)} × {size}" if len(images) > 1 else size
        whole = joined(pictures)
        plates.append(Plate(whole, how, note, whole.shape[2] * 1.333, photo=True))
    return Column(Row(*plates[:4], gap=18), Row(*plates[4:], gap=18), gap=16)


def small(picture: Tensor) -> Tensor:
    """A quarter of its size."""
    return functional.interpolate(picture[None], scale_factor=0.25, mode="area")[0]


def seen_as(net: Net, x: Tensor) -> Tensor:
    """Network input [3, height, width] as a picture."""
    std, mean = (torch.tensor(each)[:, None, None] for each in (net.input.std, net.input.mean))
    return (x * std + mean).clamp(0, 1)


def shown_to(module: nn.Module, x: Tensor) -> list[Tensor]:
    """The pictures that reach the first convolution."""
    found: list[Tensor] = []
    first = next(part for part in module.modules() if isinstance(part, nn.Conv2d))
    handle = first.register_forward_pre_hook(lambda _m, inputs: found.extend(inputs[0]))
    with torch.no_grad():
        module(x)
    handle.remove()
    return found


@picture(
    "fold_batch_norm.svg",
    "A kernel, the gain and shift of the batch norm behind it, and the kernel and bias that do both",
)
def fold_batch_norm() -> Box:
    net = load("fashion")
    made = rewrite(net, rules.FoldBatchNorm())
    block: Any = net.module.block1
    new: Any = made.net.module.block1.conv1
    channel = 2
    norm = block.bn1
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()
    shift = norm.bias - norm.running_mean * gain
    edit = made.edits[0]
    return Row(
        figures(block.conv1.weight[channel, 0].detach(), "kernel W"),
        Column(
            Text(f"γ / √(σ² + ε) = {number(float(gain[channel]))}", 13),
            Text(f"β − μ γ / √(σ² + ε) = {number(float(shift[channel]))}", 13),
        ),
        Arrow("FoldBatchNorm()", said(edit)),
        figures(
            new.weight[channel, 0].detach(), "kernel W′", f"bias b′ = {number(float(new.bias[channel]))}"
        ),
    )


def main() -> None:
    """Draws all, or those named."""
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name, (says, draw) in PICTURES.items():
        if not names or name.removesuffix(".svg") in names:
            with torch.no_grad():
                Sheet(draw(), says).save(folder / name)


if __name__ == "__main__":
    main()
