"""EfficientNet-Lite0, made for 224x224, on photographs of 320x360: every way of `InputSize`, right how often and how fast.

The folder holds one photograph a class; sorted names are in the order of the classes. Each shows the largest centred part
with the proportions of 320x360. The network at its own size, on the part that it shows there, stands beside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from convscope import data, load, rules

SIZE = (320, 360)


def run(options: Any, keep: Callable[[str, Any], None]) -> None:
    """Needs --data."""
    if options.data is None:
        print("sizes: left out, give --data")
        return
    net = load()
    images = data.images(options.data)
    limit = 8 if options.quick else options.images
    found = rules.input_sizes(net, *SIZE, images, range(len(images)), limit=limit, budget=10)
    chosen = data.images(images, limit=limit)
    right = 0
    with torch.no_grad():
        for batch in chosen.batches(net.input, batch=16):
            classes = net.module(net.input.normalize(batch.images)).argmax(1).tolist()
            truth = (index * len(images) // len(chosen) for index in batch.indices)
            right += sum(a == b for a, b in zip(classes, truth, strict=True))
    keep("lite0", {**found.to_dict(), "correct at its own size": right})
