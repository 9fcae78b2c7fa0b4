"""EfficientNet-Lite0 on photographs before and after each rule, nothing trained: right how often, and which predictions stay.

The folder holds one photograph a class; sorted names are in the order of the classes. Rules that fit to images are given
every tenth photograph, without its class, and are scored on the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from convscope import data, load, rewrite
from convscope.errors import ConvscopeError
from convscope.measures.figures import share
from convscope.models import Net
from convscope.rewrites.paired import Accuracy

BATCH = 8
EXACT = (
    "fold_batch_norm",
    "kernel_size:size=5,where=kernel == 3",
    "kernel_size:size=7,where=kernel == 3",
    "kernel_size:size=2x2,where=kernel == 1 & macs > 2 %",
    "separable:rank=9",
    "bottleneck:rank=32,where=conv_stem",
    "untie:memory=16",
    "untie:memory=16 | tie",
    "convolutionalize",
    "input_size:height=320,width=360,how=resize",
)
OTHER = (
    "padding:reflect",
    "padding:replicate",
    "padding:circular",
    "padding:partial",
    "padding:zeros",
    "padding:same",
    "padding:valid",
    "pool:max",
    "pool:average",
    "pool:strided",
    "pool:moved",
    "pool:blur",
    "pool:none",
    "upsample:bilinear",
    "kernel_size:size=3,where=kernel == 5",
    "separable:rank=1",
    "separable:rank=3",
    "bottleneck:energy=0.99",
    "bottleneck:energy=0.9",
)
FITTED = (
    "kernel_size:size=3,where=kernel == 5",
    "separable:rank=1",
    "separable:rank=3",
    "bottleneck:energy=0.99",
    "bottleneck:energy=0.9",
)


def run(options: Any, keep: Callable[[str, Any], None]) -> None:
    """Needs --data; --cases takes the rules whose text holds it."""
    if options.data is None:
        print("imagenet: left out, give --data")
        return
    net = load()
    images = data.images(options.data)
    total = len(images)
    chosen = data.images(images, limit=16) if options.quick else images
    x, labels = _read(net, chosen, total)
    before = _scores(net, x)
    for text, fitted in (*((text, False) for text in (*EXACT, *OTHER)), *((text, True) for text in FITTED)):
        key = f"{text}, fitted to images" if fitted else text
        if options.cases in key:
            told = _one(net, text, fitted, x, labels, before)
            print(key, told.get("right", told.get("refused")), flush=True)
            keep(key, told)


def _one(net: Net, text: str, fitted: bool, x: Tensor, labels: Tensor, before: Tensor) -> dict[str, Any]:
    """One rule: what it did, and both networks on the photographs that it was not fitted to."""
    scored = torch.arange(len(x)) % 10 != 0 if fitted else torch.ones(len(x), dtype=torch.bool)
    try:
        made = rewrite(net, text, data=x[~scored] if fitted else None)
    except ConvscopeError as error:
        return {"refused": " ".join(str(error).split())}
    if not made.done:
        return {"refused": "; ".join(dict.fromkeys(str(edit.reason) for edit in made.refused))}
    wide = tuple(made.net.input.size) != tuple(net.input.size)
    inputs = torch.nn.functional.interpolate(x, made.net.input.size, mode="bilinear") if wide else x
    yardstick = _resized_back(net, inputs) if wide else before  # another image is another question
    first, second = (y[scored] for y in (yardstick, _scores(made.net, inputs)))
    truth = labels[scored]
    right = [y.argmax(1) == truth for y in (first, second)]
    accuracy = Accuracy(
        len(truth), share(right[0][:, None]), share(right[1][:, None]),
        int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum()),
    )  # fmt: skip
    errors = [edit.error for edit in made.done if edit.error is not None]
    macs = [edit.macs for edit in made.done if edit.macs is not None]
    return {
        "exactness": made.exactness,
        "edits": len(made.done),
        "refused layers": len(made.refused),
        "largest error of a layer": max(errors, default=None),
        "macs of edited layers": [sum(pair[k] for pair in macs) for k in (0, 1)],
        "right": [int(each.sum()) for each in right],
        "same prediction": int((first.argmax(1) == second.argmax(1)).sum()),
        "largest difference of scores": float((first - second).abs().max() / first.abs().max()),
        **accuracy.to_dict(),
    }


def _read(net: Net, images: Any, total: int) -> tuple[Tensor, Tensor]:
    """Network input [image, channel, height, width], and the classes."""
    parts, labels = [], []
    for batch in images.batches(net.input, batch=16):
        parts.append(net.input.normalize(batch.images).float())
        labels += [index * total // len(images) for index in batch.indices]
    return torch.cat(parts), torch.tensor(labels)


def _scores(net: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([net.module(part) for part in x.split(BATCH)])


def _resized_back(net: Net, x: Tensor) -> Tensor:
    size = tuple(net.input.size)
    with torch.no_grad():
        parts = [
            torch.nn.functional.interpolate(p, size, mode="bilinear", antialias=True) for p in x.split(BATCH)
        ]
    return _scores(net, torch.cat(parts))
