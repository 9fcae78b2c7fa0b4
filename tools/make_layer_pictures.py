"""Draws the pictures of docs/layers.md: what goes into each layer of `convscope.nn` and what comes out, by running it.

python tools/make_layer_pictures.py docs/images/layers
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from drawing import (
    BLUE,
    COLOURS,
    GREEN,
    ORANGE,
    PAPER,
    PURPLE,
    Arrow,
    Box,
    Column,
    Frame,
    Grid,
    Row,
    Sheet,
    Stack,
    Text,
    grey,
    mix,
    number,
    numbers,
    shades,
    signed,
    table,
)
from torch import Tensor
from torch.nn import functional

from convscope import nn
from convscope.nn.geometry import pad

PICTURES: dict[str, tuple[str, Callable[[], Box]]] = {}  # file's name: what a reader hears, what draws it


def picture(name: str, says: str) -> Callable[[Callable[[], Box]], Callable[[], Box]]:
    """Registers a drawing."""

    def register(draw: Callable[[], Box]) -> Callable[[], Box]:
        PICTURES[name] = (says, draw)
        return draw

    return register


DIGIT = torch.tensor(
    [
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.9, 1.0, 1.0, 1.0, 1.0, 0.7, 0.0],
        [0.0, 1.0, 0.7, 0.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 1.0, 1.0, 1.0, 0.9, 0.3, 0.0, 0.0],
        [0.0, 0.2, 0.1, 0.1, 0.6, 1.0, 0.3, 0.0],
        [0.0, 0.3, 0.0, 0.0, 0.4, 1.0, 0.4, 0.0],
        [0.0, 0.9, 1.0, 1.0, 1.0, 0.7, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    ]
)


def light(colour: str, depth: float = 0.3) -> str:
    """A background to read black numbers on."""
    return mix(PAPER, colour, depth)


def image(x: Tensor, title: str = "", caption: str = "", side: float = 128) -> Grid:
    """A grey picture without numbers; stretched to its own black and white."""
    low, high = float(x.min()), float(x.max())
    flat = (x - low) / max(high - low, 1e-9) * 0.86 + 0.07
    return Grid(flat, title, caption, side / x.shape[-1], grey, numbers=False, lines=False)


def run(layer: torch.nn.Module, x: Tensor) -> Tensor:
    """One channel through a layer: [height, width] to [height', width']."""
    with torch.no_grad():
        return layer(x[None, None])[0, 0]


def size(x: Tensor) -> str:
    return " × ".join(map(str, x.shape))


def filled(layer: torch.nn.Module, value: Tensor | float) -> torch.nn.Module:
    """The layer with all its weights set."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.as_tensor(value).expand_as(parameter))
    return layer


# ---------------------------------------------------------------- convolutions


def padded(x: Tensor, sides: tuple[tuple[int, int], ...], mode: str = "zeros") -> tuple[Tensor, Tensor]:
    """The image with its padding, and which cells are padding."""
    inside = pad(torch.zeros(1, 1, *x.shape), sides, "zeros")[0, 0]
    (top, bottom), (left, right) = sides
    inside[top : inside.shape[0] - bottom, left : inside.shape[1] - right] = 1
    return pad(x[None, None], sides, mode)[0, 0], inside == 0


@picture(
    "conv2d_padding",
    "One 4 by 4 image under the paddings valid, same, full and 4-sided, and the sums a 3 by 3 kernel gives",
)
def conv2d_padding() -> Box:
    x = numbers(4, 4)

    def panel(padding: object, label: str) -> list[Box]:
        layer = filled(nn.Conv2d(1, 1, 3, padding=padding, bias=False), 1.0)
        before, blank = padded(x, layer.sides(x.shape))
        y = run(layer, x)
        seen, tint = [Frame(0, 0, 3, 3)], shades(high=24)
        return [
            Grid(
                before,
                f"padding={label}",
                f"padded to {size(before)}" if blank.any() else "no padding",
                26,
                tint,
                frames=seen,
                blank=blank,
            ),
            Arrow("3×3 of ones"),
            Grid(y, "", size(y), 26, shades(high=110), frames=[Frame(0, 0)]),
        ]

    gap = Text("")
    return table(
        [
            [*panel("valid", '"valid"'), gap, *panel("same", '"same"')],
            [*panel("full", '"full"'), gap, *panel(((0, 1), (0, 1)), "((0, 1), (0, 1))")],
        ],
        gap=20,
    )


@picture(
    "conv2d_same",
    "Padding same at stride 2: an even image is padded after its end only, an odd one on both sides",
)
def conv2d_same() -> Box:
    panels = []
    for side in (6, 5):
        x = numbers(side, side)
        layer = filled(nn.Conv2d(1, 1, 3, stride=2, padding="same", bias=False), 1.0)
        before, blank = padded(x, layer.sides(x.shape))
        y = run(layer, x)
        windows = [Frame(0, 0, 3, 3, ORANGE), Frame(4, 4, 3, 3, BLUE)]
        corners = [Frame(0, 0, 1, 1, ORANGE), Frame(2, 2, 1, 1, BLUE)]
        kind = "even: one column and row after" if side == 6 else "odd: one on each side"
        panels.append(
            Row(
                Grid(
                    before,
                    f"{side} × {side}, {kind}",
                    f"padded to {size(before)}",
                    25,
                    shades(high=60),
                    frames=windows,
                    blank=blank,
                ),
                Arrow("3×3\nstride=2"),
                Grid(y, "", f"{size(y)} = ⌈{side} / 2⌉", 34, shades(high=450), frames=corners),
            )
        )
    return Row(*panels, gap=44)


@picture(
    "conv2d_modes",
    "What the padding is made of: zeros, reflected, replicated or wrapped pixels; partial padding keeps borders bright",
)
def conv2d_modes() -> Box:
    x = numbers(3, 3)
    rings = []
    for mode in ("zeros", "reflect", "replicate", "circular"):
        before, blank = padded(x, ((1, 1), (1, 1)), mode)
        rings.append(
            Grid(before, f'"{mode}"', None, 28, shades(high=18), frames=[Frame(1, 1, 3, 3)], blank=blank)
        )
    ones = torch.ones(4, 4)
    means = []
    for mode in ("zeros", "partial"):
        layer = filled(nn.Conv2d(1, 1, 3, padding=1, padding_mode=mode, bias=False), 1 / 9)
        y = run(layer, ones)
        words = [[number(float(v)) for v in row] for row in y]
        means.append(Grid(y, f'padding_mode="{mode}"', None, 32, shades(high=1.6), words=words))
    return Column(
        Row(*rings, gap=34),
        Row(
            Grid(ones, "a white image", None, 32, shades(high=1.6)),
            Arrow("mean of 3×3", "padding=1"),
            *means,
            gap=26,
        ),
        gap=26,
    )


HUES = ("#0969da", "#1a7f37", "#9a6700", "#8250df", "#cf222e", "#1b7c83", "#bf3989", "#57606a", "#d4570a")


def kernels_in_place(weights: Tensor, colours: list[str], title: str, caption: str) -> Grid:
    """Kernels [rows, columns, k, k] drawn where their outputs are."""
    rows, columns, k, _ = weights.shape
    flat = weights.movedim(2, 1).reshape(rows * k, columns * k)
    fills = [[colours[(r // k) * columns + c // k] for c in range(columns * k)] for r in range(rows * k)]
    frames = [Frame(r * k, c * k, k, k, "#59636e", 2) for r in range(rows) for c in range(columns)]
    return Grid(flat, title, caption, 24, fills=fills, frames=frames)


@picture(
    "locally_connected",
    "A convolution has one kernel everywhere, a locally connected layer one at each output position",
)
def locally_connected() -> Box:
    x = numbers(4, 4)
    conv = nn.Conv2d(1, 1, 2, bias=False)
    filled(conv, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    local = nn.LocallyConnected2d(1, 1, 2, bias=False, input_size=4)
    with torch.no_grad():
        local.weight.copy_(((torch.arange(9)[:, None] * 5 + torch.arange(4) * 3) % 4).view_as(local.weight))
    shared = conv.weight[0, 0].expand(3, 3, 2, 2)
    own = local.weight.view(3, 3, 2, 2)
    first = Row(
        kernels_in_place(shared, [light(BLUE)] * 9, "Conv2d: one kernel, everywhere", "4 weights"),
        Arrow("", "multiply, add"),
        Grid(run(conv, x), "", size(run(conv, x)), 32, fills=[[light(BLUE)] * 3] * 3),
    )
    colours = [light(hue) for hue in HUES]
    second = Row(
        kernels_in_place(own, colours, "LocallyConnected2d: each its own", "3 · 3 · 4 = 36 weights"),
        Arrow("", "multiply, add"),
        Grid(
            run(local, x), "", size(run(local, x)), 32, fills=[colours[3 * r : 3 * r + 3] for r in range(3)]
        ),
    )
    seen = [Frame(0, 0, 2, 2, HUES[0]), Frame(2, 2, 2, 2, HUES[8])]
    return Row(
        Grid(x, "input", size(x), 32, shades(high=40), frames=seen), Column(first, second, gap=22), gap=44
    )


@picture(
    "separable",
    "A depthwise convolution filters each channel by itself, a 1 by 1 convolution then mixes the channels",
)
def separable() -> Box:
    torch.manual_seed(0)
    layer = nn.SeparableConv2d(3, 2, 3, bias=False)
    x = torch.randint(0, 4, (3, 4, 4)).float()
    with torch.no_grad():
        layer.depthwise.weight.copy_(torch.randint(-1, 2, (3, 1, 3, 3)))
        layer.pointwise.weight.copy_(torch.tensor([[1.0, 1.0, -1.0], [0.0, 2.0, 1.0]])[..., None, None])
        middle, y = layer.depthwise(x[None])[0], layer(x[None])[0]
    rows = [
        Row(
            Grid(x[c], "input" if c == 0 else "", None, 22, shades(COLOURS[c], high=5)),
            Text("∗", 20),
            Grid(layer.depthwise.weight[c, 0], "kernel" if c == 0 else "", None, 22, paint=lambda v: PAPER),
            Arrow("", least=30),
            Grid(middle[c], "", None, 28, shades(COLOURS[c], high=16, low=-10)),
            gap=12,
        )
        for c in range(3)
    ]
    matrix = layer.pointwise.weight[:, :, 0, 0]
    fills = [[light(COLOURS[c], 0.35) for c in range(3)]] * 2
    outs = [
        Grid(y[o], "output" if o == 0 else "", None, 30, shades(PURPLE, low=-14, high=30)) for o in range(2)
    ]
    return Column(
        Row(
            Column(*rows, gap=12),
            Arrow("1×1", "mixes", least=54),
            Grid(matrix, "weights 2 × 3", None, 30, fills=fills),
            Arrow("", least=30),
            Column(*outs, gap=20),
            gap=14,
        ),
        Text(
            "depthwise 3 · 9 + pointwise 3 · 2 = 33 weights; a full 3×3 convolution has 3 · 2 · 9 = 54",
            13,
            "#59636e",
        ),
        gap=18,
    )


@picture("pointwise", "A 1 by 1 convolution is the same matrix product at every position")
def pointwise() -> Box:
    layer = nn.PointwiseConv2d(3, 2, bias=False)
    x = torch.tensor([[[1.0, 2, 0], [0, 1, 3]], [[2.0, 1, 1], [1, 0, 2]], [[0.0, 3, 1], [2, 2, 1]]])
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0, 2.0], [-1.0, 1.0, 1.0]])[..., None, None])
        y = layer(x[None])[0]
    spot = [Frame(0, 1)]
    ins = [Grid(x[c], "", f"channel {c}", 32, shades(COLOURS[c], high=6), frames=spot) for c in range(3)]
    outs = [
        Grid(y[o], "", f"channel {o}", 32, shades(PURPLE, low=-3, high=12), frames=spot) for o in range(2)
    ]
    pixel, result = x[:, 0, 1, None], y[:, 0, 1, None]
    product = Row(
        Grid(
            layer.weight[:, :, 0, 0],
            "weights",
            None,
            32,
            fills=[[light(COLOURS[c], 0.35) for c in range(3)]] * 2,
        ),
        Text("·", 20),
        Grid(
            pixel,
            "pixel",
            None,
            32,
            fills=[[light(COLOURS[c], 0.35)] for c in range(3)],
            frames=[Frame(0, 0, 3, 1)],
        ),
        Text("=", 20),
        Grid(result, "", None, 32, shades(PURPLE, low=-3, high=12), frames=[Frame(0, 0, 2, 1)]),
        gap=10,
    )
    return Row(
        Column(*ins, gap=8), Arrow("", least=30), product, Arrow("", least=30), Column(*outs, gap=14), gap=18
    )


@picture("bottleneck", "A 1 by 1 convolution to few channels, a 3 by 3 there, a 1 by 1 back to many")
def bottleneck() -> Box:
    torch.manual_seed(2)
    layer = nn.Bottleneck2d(8, 8, 3, mid_channels=2, padding=1, bias=False)
    x = functional.interpolate(torch.rand(1, 8, 3, 3), size=6, mode="bilinear", align_corners=True)
    maps = [x[0]]
    with torch.no_grad():
        for part in (layer.reduce, layer.conv, layer.expand):
            maps.append(part(maps[-1][None])[0])

    def stack(at: int, title: str) -> Box:
        z = maps[at]
        span = float(z.abs().max())
        grids = [Grid(m, "", None, 13, signed(span), numbers=False) for m in z]
        return Stack(grids, title, f"{len(z)} channels", 9)

    return Column(
        Row(
            stack(0, "input"),
            Arrow("reduce\n1×1", "8 · 2\nweights"),
            stack(1, ""),
            Arrow("conv\n3×3", "2 · 2 · 9\nweights"),
            stack(2, ""),
            Arrow("expand\n1×1", "2 · 8\nweights"),
            stack(3, "output"),
            gap=16,
        ),
        Text("16 + 36 + 16 = 68 weights; a 3×3 convolution from 8 to 8 channels has 576", 13, "#59636e"),
        gap=12,
    )


# ---------------------------------------------------------------- pooling


POOLED = torch.tensor([[1.0, 3, 2, 0], [5, 3, 4, 2], [0, 2, 8, 6], [6, 4, 1, 1]])
QUARTERS = (BLUE, ORANGE, GREEN, PURPLE)


def quarters(rows: int, columns: int) -> list[list[str]]:
    """Colours of the four quarters of a grid."""
    return [
        [light(QUARTERS[2 * (2 * r // rows) + 2 * c // columns]) for c in range(columns)] for r in range(rows)
    ]


@picture("pool_max_avg", "Each 2 by 2 block becomes its maximum, or its mean")
def pool_max_avg() -> Box:
    best, mean = nn.MaxPool2d(2), nn.AvgPool2d(2)
    frames = [Frame(1, 0), Frame(1, 2), Frame(3, 0), Frame(2, 2)]
    return Row(
        Grid(run(best, POOLED), "maximum", "2 × 2", 40, fills=quarters(2, 2)),
        Text("←", 22, "#59636e"),
        Column(Text("MaxPool2d(2)", 12, mono=True)),
        Grid(POOLED, "input", "4 × 4, maxima framed", 34, fills=quarters(4, 4), frames=frames),
        Column(Text("AvgPool2d(2)", 12, mono=True)),
        Text("→", 22, "#59636e"),
        Grid(run(mean, POOLED), "mean", "2 × 2", 40, fills=quarters(2, 2)),
        gap=14,
    )


@picture("pool_strided_conv", "A convolution with stride 2 starts as the mean and learns other weights")
def pool_strided_conv() -> Box:
    layer = nn.StridedConvPool2d(1, 2, bias=False)
    start, first = layer.weight[0, 0].detach().clone(), run(layer, POOLED)
    filled(layer, torch.tensor([[0.6, 0.2], [0.4, -0.2]]))
    learned, later = layer.weight[0, 0].detach().clone(), run(layer, POOLED)
    paint = signed(1.0)
    return Row(
        Grid(POOLED, "input", "4 × 4", 32, fills=quarters(4, 4)),
        Column(
            Row(
                Text("at first", 13, bold=True),
                Grid(start, "weights", None, 36, paint),
                Arrow("", least=34),
                Grid(first, "the mean", None, 36, fills=quarters(2, 2)),
                gap=14,
            ),
            Row(
                Text("trained", 13, bold=True),
                Grid(learned, "weights", None, 36, paint),
                Arrow("", least=34),
                Grid(later, "what served", None, 36, fills=quarters(2, 2)),
                gap=14,
            ),
            gap=14,
        ),
        gap=34,
    )


@picture(
    "pool_blur",
    "Shifted by one pixel, max pooling turns stripes into nothing; a blur before subsampling keeps them alike",
)
def pool_blur() -> Box:
    stripes = torch.tensor([0.0, 0, 1, 1] * 5).expand(6, 20)  # the middle of a longer row is shown
    paint = shades(high=1.4)
    layers = {"MaxPool2d(2)": nn.MaxPool2d(2), "MaxBlurPool2d(2)": nn.MaxBlurPool2d(2)}
    rows: list[list[Box]] = []
    found = []
    for x, name in ((stripes, "a row of stripes"), (stripes.roll(-1, 1), "shifted by one pixel")):
        outputs = [run(layer, x)[1:2, 2:8] for layer in layers.values()]
        found.append(outputs)
        grids = [
            Grid(y, title, None, 30, paint)
            for title, y in zip(layers if name.startswith("a") else ("", ""), outputs, strict=True)
        ]
        rows.append([Grid(x[:1, 4:16], name, None, 24, paint), Arrow("", least=28), *grids])
    changes = [float((a - b).abs().max()) for a, b in zip(*found, strict=True)]
    notes = [Text(f"changed by up to {number(change)}", 12, "#59636e") for change in changes]
    rows.append([Text("", 12), Text("", 12), *notes])
    filters = Column(
        Grid(
            nn.BlurPool2d(3).filter * 16,
            "BlurPool2d(3)",
            "sixteenths, then\nevery second pixel",
            28,
            shades(high=6),
        ),
    )
    return Row(filters, table(rows, 16, 12), gap=40)


def regions(layer: torch.nn.Module, side: int) -> list[list[list[tuple[int, int]]]]:
    """For each pixel the outputs that look at it, found by lighting one pixel at a time."""
    found = []
    for r in range(side):
        row = []
        for c in range(side):
            spot = torch.full((side, side), -1.0)
            spot[r, c] = 1.0
            row.append([tuple(at) for at in (run(layer, spot) > 0).nonzero().tolist()])
        found.append(row)
    return found


@picture(
    "pool_fractional",
    "Seven pixels become five: regions of one and two pixels, or overlapping ones, drawn at random",
)
def pool_fractional() -> Box:
    panels = []
    for sampling, overlapping, title in (
        ("pseudorandom", False, "pseudorandom,\ndisjoint"),
        ("random", False, "random,\ndisjoint"),
        ("pseudorandom", True, "pseudorandom,\noverlapping"),
    ):
        layer = nn.FractionalMaxPool2d(
            output_size=5, sampling=sampling, overlapping=overlapping, seed=3
        ).eval()
        seen = regions(layer, 7)
        fills, frames = [], []
        for r in range(7):
            line = []
            for c in range(7):
                owners = seen[r][c]
                shade = light(BLUE if sum(owners[0]) % 2 else GREEN, 0.3)
                line.append(shade if len(owners) == 1 else mix("#ffffff", PURPLE, 0.18 + 0.14 * len(owners)))
            fills.append(line)
        for i in range(5):
            for j in range(5):
                cells = [(r, c) for r in range(7) for c in range(7) if (i, j) in seen[r][c]]
                (r0, c0), (r1, c1) = cells[0], cells[-1]
                if not overlapping:
                    frames.append(Frame(r0, c0, r1 - r0 + 1, c1 - c0 + 1, "#59636e", 1.6))
                elif (i, j) in ((0, 0), (1, 1)):
                    frames.append(Frame(r0, c0, r1 - r0 + 1, c1 - c0 + 1, ORANGE, 2.5))
        x = numbers(7, 7)
        words = [[""] * 7] * 7
        panels.append(
            Grid(
                x,
                title,
                "shared pixels in purple" if overlapping else "7 × 7 → 5 × 5",
                23,
                words=words,
                fills=fills,
                frames=frames,
            )
        )
    return Row(*panels, gap=40)


@picture("pool_none", "A pool halves the grid; without it the next kernel spreads its taps instead")
def pool_none() -> Box:
    x = numbers(6, 6)
    kept, half = run(nn.NoPool2d(2), x), run(nn.AvgPool2d(2), x)
    paint = shades(high=80)
    taps = [Frame(r, c) for r in (0, 2, 4) for c in (0, 2, 4)]
    near = [Frame(r, c) for r in range(3) for c in range(3)]
    return Row(
        Grid(half, "AvgPool2d(2)", "the next 3×3 kernel\ntakes neighbours", 36, paint, frames=near),
        Text("←", 22, "#59636e"),
        Grid(x, "input", size(x), 28, paint),
        Text("→", 22, "#59636e"),
        Grid(
            kept, "NoPool2d(2)", "the next 3×3 kernel takes\nevery second: dilation=2", 28, paint, frames=taps
        ),
        gap=24,
    )


@picture("pool_global", "All positions of a channel become one number: their mean, or their maximum")
def pool_global() -> Box:
    x = torch.stack([POOLED[:3, :3], torch.tensor([[6.0, 5, 7], [7, 1, 3], [5, 4, 7]])])
    with torch.no_grad():
        mean, best = (layer(x[None])[0, :, 0] for layer in (nn.GlobalAvgPool2d(), nn.GlobalMaxPool2d()))
    ins = Row(*(Grid(x[c], f"channel {c}", "3 × 3", 32, shades(COLOURS[c], high=14)) for c in range(2)))
    fills = [[light(COLOURS[c])] for c in range(2)]
    outs = Row(
        Grid(mean, "GlobalAvgPool2d", "one mean a channel", 42, fills=fills),
        Grid(best, "GlobalMaxPool2d", "one maximum a channel", 42, fills=fills),
        gap=30,
    )
    return Row(ins, Arrow(""), outs, gap=26)


# ---------------------------------------------------------------- upsampling


SMALL = torch.tensor([[1.0, 2.0], [3.0, 4.0]])


@picture("upsampling", "A small digit enlarged twice by each kind of upsampling, as each layer starts")
def upsampling() -> Box:
    pool = nn.SwitchedMaxPool2d(2)
    big = run(nn.BilinearUpsample2d(2), DIGIT)
    shown = [("input", DIGIT)]
    seeds = {
        "transposed": 67,
        "pixel_shuffle": 62,
        "resize_conv": 71,
    }  # starts that keep the digit recognizable
    for kind in (
        "nearest",
        "bilinear",
        "bed_of_nails",
        "max_unpool",
        "transposed",
        "pixel_shuffle",
        "resize_conv",
    ):
        torch.manual_seed(seeds.get(kind, 0))
        layer = nn.upsample2d(kind, 1, pool=pool)
        x = run(pool, big) if kind == "max_unpool" else DIGIT
        shown.append((kind, run(layer, x)))
    grids = [image(y, title, f"{y.shape[0]} × {y.shape[1]}", 112) for title, y in shown]
    return Column(Row(*grids[:4], gap=22), Row(*grids[4:], gap=22), gap=18)


@picture("nearest", "Each pixel becomes a block of 2 by 2 equal pixels")
def nearest() -> Box:
    return Row(
        Grid(SMALL, "input", "2 × 2", 44, fills=quarters(2, 2)),
        Arrow("NearestUpsample2d(2)"),
        Grid(run(nn.NearestUpsample2d(2), SMALL), "output", "4 × 4", 34, fills=quarters(4, 4)),
    )


@picture(
    "bilinear", "Interpolation with pixels as squares, and with the corners' centres kept in the corners"
)
def bilinear() -> Box:
    x = torch.tensor([[0.0, 6.0], [12.0, 18.0]])
    paint = shades(high=24)
    half, corners = run(nn.BilinearUpsample2d(2), x), run(nn.BilinearUpsample2d(2, align_corners=True), x)
    framed = [Frame(r, c) for r in (0, 3) for c in (0, 3)]
    return Row(
        Grid(x, "input", "2 × 2", 46, paint, frames=[Frame(r, c) for r in (0, 1) for c in (0, 1)]),
        Arrow(""),
        Grid(
            half,
            "align_corners=False",
            "4 × 4; steps of 1/4, 1/2, 1/4:\nborders repeat",
            40,
            paint,
            frames=framed,
        ),
        Grid(
            corners,
            "align_corners=True",
            "4 × 4; equal steps of 1/3\nfrom corner to corner",
            40,
            paint,
            frames=framed,
        ),
        gap=30,
    )


@picture("bed_of_nails", "Each pixel becomes one corner of a block of zeros")
def bed_of_nails() -> Box:
    y, other = run(nn.BedOfNails2d(2), SMALL), run(nn.BedOfNails2d(2, offset=(1, 1)), SMALL)

    def nails(z: Tensor, title: str) -> Grid:
        fills = [
            [c if v else None for c, v in zip(row, line, strict=True)]
            for row, line in zip(quarters(4, 4), z.tolist(), strict=True)
        ]
        return Grid(z, title, "4 × 4", 34, fills=fills, blank=z == 0)

    return Row(
        Grid(SMALL, "input", "2 × 2", 44, fills=quarters(2, 2)),
        Arrow("BedOfNails2d(2)"),
        nails(y, "output"),
        nails(other, "offset=(1, 1)"),
        gap=26,
    )


@picture(
    "max_unpool",
    "The pool remembers where its maxima were; the unpooling puts what became of them back there",
)
def max_unpool() -> Box:
    pool = nn.SwitchedMaxPool2d(2)
    unpool = nn.MaxUnpool2d(pool)
    pooled = run(pool, POOLED)
    changed = pooled * 10
    y = run(unpool, changed)
    spots = [(1, 0), (1, 2), (3, 0), (2, 2)]
    frames = [Frame(r, c, 1, 1, QUARTERS[at], 3) for at, (r, c) in enumerate(spots)]
    fills = [
        [c if v else None for c, v in zip(row, line, strict=True)]
        for row, line in zip(quarters(4, 4), y.tolist(), strict=True)
    ]
    return Column(
        Row(
            Grid(POOLED, "input", "4 × 4, maxima framed", 34, fills=quarters(4, 4), frames=frames),
            Arrow("pool"),
            Grid(pooled, "pooled", "2 × 2", 40, fills=quarters(2, 2)),
            Arrow("× 10", "any layers"),
            Grid(changed, "", "2 × 2", 40, fills=quarters(2, 2)),
            Arrow("unpool"),
            Grid(y, "output", "4 × 4, zeros between", 34, fills=fills, frames=frames, blank=y == 0),
            gap=16,
        ),
        Text(
            "pool = SwitchedMaxPool2d(2) hands its switches to unpool = MaxUnpool2d(pool): the frames stay where they are",
            12.5,
            "#59636e",
        ),
        gap=12,
    )


@picture("transposed", "Each input pixel lays down the kernel, two pixels apart; overlaps are added up")
def transposed() -> Box:
    layer = filled(nn.TransposedConv2d(1, 1, (1, 3), (1, 2), bias=False), torch.tensor([[[[1.0, 2.0, 1.0]]]]))
    x = torch.tensor([[3.0, 1.0, 2.0]])
    colours = (BLUE, ORANGE, GREEN)
    stamps = torch.cat([run(layer, x * torch.eye(3)[at]) for at in range(3)])
    reach = torch.cat([run(layer, torch.eye(3)[at][None]) for at in range(3)]) > 0
    fills = [[light(colours[r]) if reach[r, c] else PAPER for c in range(7)] for r in range(3)]
    words = [[number(float(stamps[r, c])) if reach[r, c] else "" for c in range(7)] for r in range(3)]
    total = run(layer, x)
    both = [c for c in range(7) if reach[:, c].sum() > 1]
    paint = [[mix(PAPER, PURPLE, 0.35) if c in both else PAPER for c in range(7)]]
    return Row(
        Column(
            Grid(x, "input", "1 × 3", 38, fills=[[light(colour) for colour in colours]]),
            Grid(layer.weight[0, 0], "kernel", "1 × 3, stride 2", 38, paint=lambda v: PAPER),
            gap=12,
        ),
        Arrow("", "each pixel times\nthe kernel"),
        Column(
            Grid(stamps, "what each pixel lays down", None, 34, words=words, fills=fills),
            Grid(total, "output: the sum", "1 × 7; where two overlap in purple", 34, fills=paint),
            gap=12,
        ),
        gap=24,
    )


@picture(
    "checkerboard",
    "Taps on each output of a transposed convolution: uneven where the stride does not divide the kernel",
)
def checkerboard() -> Box:
    panels, digits = [], []
    for kernel, stride in ((3, 2), (4, 2), (5, 2), (5, 3), (6, 3)):
        layer = filled(nn.TransposedConv2d(1, 1, kernel, stride, bias=False), 1.0)
        found = layer.checkerboard()
        edge = max(kernel - stride, 0)
        inside = found.overlap(8)[edge : edge + 6, edge : edge + 6].double()
        counts = sorted({count for row in found.taps for count in row})
        caption = (
            f"even: {counts[0]} everywhere" if found.even else f"uneven: {counts[0]} to {counts[-1]} taps"
        )
        tint = shades(GREEN if found.even else ORANGE, high=9.0, depth=0.75)
        panels.append(Grid(inside, f"kernel {kernel}, stride {stride}", caption, 21, tint))
        lit = run(layer, DIGIT)
        low = (lit.shape[-1] - 8 * stride) // 2
        digits.append(image(lit[low : low + 8 * stride, low : low + 8 * stride], "", None, 126))
    return Column(
        Row(*(Column(panel, digit, gap=6) for panel, digit in zip(panels, digits, strict=True)), gap=18),
        Text(
            "above: taps on each output, well inside; below: a digit through kernels of ones", 12.5, "#59636e"
        ),
        gap=12,
    )


@picture("pixel_shuffle", "Four channels at low resolution become the four pixels of each block")
def pixel_shuffle() -> Box:
    layer = nn.PixelShuffleUpsample2d(4, 1, 2, 1, bias=False)
    with torch.no_grad():
        layer.conv.weight.copy_(
            torch.eye(4)[..., None, None]
        )  # the convolution left out, to see where pixels go
    x = torch.arange(1.0, 17).view(4, 2, 2)
    with torch.no_grad():
        y = layer(x[None])[0, 0]
    owner = torch.arange(4).view(2, 2).repeat(2, 2)
    fills = [[light(COLOURS[int(o)], 0.35) for o in row] for row in owner]
    channels = [
        Grid(x[c], f"channel {c}", None, 30, fills=[[light(COLOURS[c], 0.35)] * 2] * 2) for c in range(4)
    ]
    starts = []
    for start in ("icnr", "uniform"):
        torch.manual_seed(222)
        grown = nn.PixelShuffleUpsample2d(1, 1, 2, bias=False, start=start)
        starts.append(image(run(grown, DIGIT), f'start="{start}"', None, 112))
    return Row(
        Column(Row(*channels[:2], gap=14), Row(*channels[2:], gap=14), gap=10),
        Arrow("pixel shuffle"),
        Grid(y, "output", "1 channel, 4 × 4", 34, fills=fills),
        Column(Text("with its convolution,\nas it starts", 12, "#59636e"), Row(*starts, gap=14), gap=4),
        gap=24,
    )


@picture(
    "resize_conv",
    "Enlarge, then convolve; one transposed convolution computes the same with fewer multiplications",
)
def resize_conv() -> Box:
    layer = nn.ResizeConv2d(1, 1, 2, bias=False)
    filled(layer, torch.tensor([[0.0, 1.0, 0.0], [1.0, 2.0, 1.0], [0.0, 1.0, 0.0]]))
    big, y = run(layer.resize, SMALL), run(layer, SMALL)
    twin = layer.as_transposed()
    same = run(twin, SMALL)
    paint, plain = shades(high=40), (lambda v: PAPER)
    first = Row(
        Grid(SMALL, "input", "2 × 2", 40, fills=quarters(2, 2)),
        Arrow("resize"),
        Grid(big, "", "4 × 4", 30, fills=quarters(4, 4)),
        Text("∗", 20),
        Grid(layer.conv.weight[0, 0], "kernel 3 × 3", "9 MACs an output", 30, plain),
        Arrow("", least=34),
        Grid(y, "output", "4 × 4", 30, paint),
        gap=16,
    )
    second = Row(
        Grid(SMALL, "", "2 × 2", 40, fills=quarters(2, 2)),
        Arrow("as_transposed()"),
        Grid(twin.weight[0, 0], "kernel 4 × 4, stride 2", "4 MACs an output", 30, plain),
        Arrow("", least=34),
        Grid(same, "the same output", "4 × 4", 30, paint),
        gap=16,
    )
    return Column(first, second, gap=18)


# ---------------------------------------------------------------- text


VOCABULARY = ("cat", "mat", "on", "sat", "the")
SENTENCE = ("the", "cat", "sat", "on", "the", "mat")
WORDS = torch.tensor([[VOCABULARY.index(word) for word in SENTENCE]])


def labels(words: tuple[str, ...], across: bool, cell: float) -> Grid:
    """Words beside the rows, or above the columns, of a grid."""
    names = [list(words)] if across else [[word] for word in words]
    values = torch.zeros(len(names), len(names[0]))
    return Grid(values, "", None, cell, lambda v: PAPER, words=names, lines=False)


def labelled(grid: Grid, down: tuple[str, ...], across: tuple[str, ...]) -> Box:
    """A grid with words beside its rows and above its columns."""
    corner = Grid(torch.zeros(1, 1), "", None, grid.cell, lambda v: PAPER, words=[[""]], lines=False)
    return Column(
        Row(corner, labels(across, True, grid.cell), gap=0, top=True),
        Row(labels(down, False, grid.cell), grid, gap=0, top=True),
        gap=0,
        left=True,
    )


def layout(
    channels: Tensor,
    down: tuple[str, ...],
    paint: Callable[[float], str],
    titles: tuple[str, str],
    notes: tuple[str, str],
    figures: bool = True,
) -> Box:
    """The same sentence as channels (words go across) and as rows (words go down), a window of two words framed."""
    k = 2
    across = Grid(channels, "", None, 30, paint, frames=[Frame(0, 1, channels.shape[0], k)], numbers=figures)
    rows = Grid(channels.T, "", None, 30, paint, frames=[Frame(1, 0, k, channels.shape[0])], numbers=figures)
    sides = ((titles[0], across, down, SENTENCE, notes[0]), (titles[1], rows, SENTENCE, down, notes[1]))
    return Row(
        *(
            Column(
                Text(title, 13.5, bold=True), labelled(grid, beside, above), Text(note, 12, "#59636e"), gap=8
            )
            for title, grid, beside, above, note in sides
        ),
        gap=60,
        top=True,
    )


@picture(
    "one_hot",
    "A sentence of six words over a vocabulary of five: as five channels of one row, or as one channel of rows five wide",
)
def one_hot() -> Box:
    channels = nn.OneHot(5)(WORDS)[0]
    assert torch.equal(nn.OneHot(5, "rows")(WORDS)[0, 0], channels.T)
    return layout(
        channels,
        VOCABULARY,
        shades(high=1.2),
        ("OneHot(5): V = 5 channels", 'OneHot(5, "rows"): 1 channel'),
        (
            "[batch, 5, 6] → Conv1d(5, filters, 2):\nthe window is all channels, 2 words",
            "[batch, 1, 6, 5] → Conv2d(1, filters, (2, 5)):\nthe window is as wide as a row, 2 words",
        ),
    )


@picture(
    "embedding", "The same sentence as learned vectors of three numbers: three channels, or rows three wide"
)
def embedding() -> Box:
    torch.manual_seed(0)
    vectors = torch.randint(-9, 10, (5, 3)) / 10.0
    channels = nn.EmbeddingChannels.from_pretrained(vectors)(WORDS)[0].detach()
    dims = ("d0", "d1", "d2")
    return layout(
        channels,
        dims,
        signed(1.0),
        ("EmbeddingChannels(5, 3): 3 channels", 'EmbeddingChannels(5, 3, "rows"): 1 channel'),
        (
            "[batch, 3, 6] → Conv1d(3, filters, 2)\ntables=2: 6 channels",
            "[batch, 1, 6, 3] → Conv2d(1, filters, (2, 3))\ntables=2: 2 channels",
        ),
    )


@picture("text_conv", "Filters of two widths slide over the words; the largest answer of each is kept")
def text_conv() -> Box:
    torch.manual_seed(0)
    vectors = torch.randint(-9, 10, (5, 3)) / 10.0
    x = nn.EmbeddingChannels.from_pretrained(vectors)(WORDS).detach()
    torch.manual_seed(20)
    layer = nn.TextConv1d(3, 1, (2, 3), activation="relu")
    with torch.no_grad():
        for conv in layer.convs:
            conv.weight.copy_(torch.randint(-2, 3, conv.weight.shape))
            conv.bias.zero_()
        answers = [torch.relu(conv(x))[0] for conv in layer.convs]
        y = layer(x)[0]
    tops = [int(a.argmax()) for a in answers]
    frames = [Frame(0, tops[at], 3, (2, 3)[at], (ORANGE, PURPLE)[at]) for at in range(2)]
    sentence = labelled(Grid(x[0], "", None, 32, signed(1.0), frames=frames), ("d0", "d1", "d2"), SENTENCE)
    rows = [
        Grid(
            answers[at],
            f"width {(2, 3)[at]}: {answers[at].shape[1]} windows",
            None,
            34,
            shades(high=6),
            frames=[Frame(0, tops[at], 1, 1, (ORANGE, PURPLE)[at])],
        )
        for at in range(2)
    ]
    fills = [[light(ORANGE)], [light(PURPLE)]]
    return Row(
        Column(sentence, Text("3 channels, 6 words", 12, "#59636e"), gap=6),
        Arrow("", "one filter\nof each width"),
        Column(*rows, gap=16),
        Arrow("", "largest"),
        Grid(y[:, None], "output", "2 numbers,\nat any length", 40, fills=fills),
        gap=18,
    )


def main(folder: Path) -> None:
    """Draws all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (says, draw) in PICTURES.items():
        Sheet(draw(), says).save(folder / f"{name}.svg")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
