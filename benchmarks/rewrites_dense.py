"""VGG-16 evaluated densely, against cutting every window out: the same scores, and how much sooner.

Exact case: no padding, windows of 404 pixels (a last map of 7x7), all 16 windows of a 512x512 image 32 pixels apart; finer
strides by dilation on smaller images. Zero-padded case: windows of 224 pixels, 32 and 8 pixels apart. Weights are
random (He), biases too. Windows are cut out in batches, as one would; a batch is timed and multiplied by their number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from convscope import rewrite, rules, timing
from convscope._torchvision import torchvision
from convscope.measures.measure import measure
from convscope.models import Net, load

BATCH = 8
Keep = Callable[[str, Any], None]


def run(options: Any, keep: Keep) -> None:
    """The head at 224, then both cases, timed."""
    quick = bool(options.quick)
    keep("head", head(quick))
    for case, padding, window, strides in (("valid", 0, 404, (32,)), ("padded", 1, 224, (32, 8))):
        net = vgg(padding, window, quick)
        for stride in strides:
            made = rewrite(net, rules.Convolutionalize(stride=stride))
            keep(
                f"{case}, stride {stride}", compare(net, made, window, stride, window + 96 if quick else 512)
            )
            del made


def finer(options: Any, keep: Keep) -> None:
    """The exact case between the network's own strides; nothing is timed."""
    net = vgg(0, 404, bool(options.quick))
    for stride in (16, 8):
        made = rewrite(net, rules.Convolutionalize(stride=stride))
        keep(f"valid, stride {stride}", equal(net, made, 404, stride))
        del made


def vgg(padding: int, window: int, quick: bool) -> Net:
    """VGG-16 with its fully-connected head; a sixteenth of its channels in a smoke run."""
    torch.manual_seed(0)
    module = torchvision().models.vgg16(init_weights=False)
    if quick:
        module = _thin(module)
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            part.padding = (padding, padding)
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
            nn.init.normal_(part.bias, std=0.1)
    return load(module.eval(), input=(3, window, window), name="vgg16")


def _thin(module: nn.Module) -> nn.Module:
    for parts in (module.features, module.classifier):
        for name, part in list(parts.named_children()):
            if isinstance(part, nn.Conv2d):
                wide = (max(part.in_channels // 16, 3), part.out_channels // 16)
                setattr(parts, name, nn.Conv2d(*wide, 3, padding=1))
            if isinstance(part, nn.Linear):
                setattr(parts, name, nn.Linear(part.in_features // 16, part.out_features // 16))
    return module


def head(quick: bool) -> dict[str, Any]:
    """VGG-16 at 224: the claim alone, and its time at that size before and after."""
    net = vgg(1, 224, quick)
    made = rewrite(net, rules.Convolutionalize())
    x = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before, after = net.module(x), made.net.module(x)
        times = timing.measure(
            {"before": lambda: net.module(x[:1]), "after": lambda: made.net.module(x[:1])}, budget=5, least=5
        )
    return {
        "exactness": made.exactness,
        "largest difference, of the maximum": float((before - after).abs().max() / before.abs().max()),
        "shapes": [list(before.shape), list(after.shape)],
        "times": {name: each.to_dict() for name, each in times.items()},
        "notes": made.edits[-1].notes,
    }


def cut(image: Tensor, window: int, stride: int) -> tuple[Tensor, int, int]:
    """All windows of an image [1, 3, height, width], as a view [rows, columns, 3, window, window]."""
    parts = image.unfold(2, window, stride).unfold(3, window, stride)[0].permute(1, 2, 0, 3, 4)
    return parts, parts.shape[0], parts.shape[1]


def equal(net: Net, made: Any, window: int, stride: int) -> dict[str, Any]:
    """Scores against those of all windows, on an image with some windows between the network's own strides."""
    x = torch.randn(1, 3, window + 32, window + 32, generator=torch.Generator().manual_seed(1))
    parts, rows, columns = cut(x, window, stride)
    with torch.no_grad():
        scores = made.net.module(x)
        expected = torch.cat([net.module(part) for part in parts.flatten(0, 1).split(BATCH)])
    return {"windows": rows * columns, "exactness": made.exactness, **_difference(scores, expected)}


def _difference(scores: Tensor, expected: Tensor) -> dict[str, Any]:
    flat = scores[0].flatten(1).mT  # [window, class]
    difference = (flat - expected).abs()
    return {
        "largest difference, of the maximum": float(difference.max() / expected.abs().max()),
        "r.m.s. difference, of that of the scores": float(difference.square().mean().sqrt() / expected.square().mean().sqrt()),
        "same class": float((flat.argmax(1) == expected.argmax(1)).float().mean()),
    }  # fmt: skip


def compare(net: Net, made: Any, window: int, stride: int, size: int) -> dict[str, Any]:
    """Scores, multiply-accumulates and time of one image, at once and window by window."""
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    parts, rows, columns = cut(x, window, stride)
    count = rows * columns
    every = parts.flatten(0, 1) if count <= 4 * BATCH else None
    sample = torch.arange(0, count, max(1, count // 32))[:32]  # what is compared where there are many
    with torch.no_grad():
        scores = made.net.module(x)
        assert scores.shape[2:] == (rows, columns)
        chosen = (
            parts.flatten(0, 1)
            if every is not None
            else torch.stack([parts[k // columns, k % columns] for k in sample])
        )
        expected = torch.cat([net.module(part) for part in chosen.split(BATCH)])
        picked = scores if every is not None else scores.flatten(2)[:, :, sample][..., None]
        batch = parts[0, 0][None].expand(BATCH, -1, -1, -1).contiguous()
        times = timing.measure(
            {"at once": lambda: made.net.module(x), "a batch of windows": lambda: net.module(batch)},
            budget=40,
            least=5,
        )
    macs = [
        measure(made.net, input=made.net.input.with_size(size, size), fields=False, training=False).totals.macs,
        measure(net, fields=False, training=False).totals.macs * count,
    ]  # fmt: skip
    ratio = times["a batch of windows"].over(times["at once"])
    faster = {name: timing.significant(value * count / BATCH) for name, value in ratio.to_dict().items()}
    return {
        "window": window,
        "image": size,
        "stride": stride,
        "windows": count,
        "exactness": made.exactness,
        "edit error": made.edits[-1].error,
        **_difference(picked, expected),
        "windows compared": len(chosen),
        "macs": macs,
        "ratio of macs": timing.significant(macs[1] / macs[0]),
        "times": {name: each.to_dict() for name, each in times.items()},
        "times faster than windows": faster,
        "share of the ratio of macs": timing.significant(faster["median"] / (macs[1] / macs[0])),
    }
