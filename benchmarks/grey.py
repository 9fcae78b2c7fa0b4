"""No grey pictures: random living channels of a layer, each drawn, none left grey or unexcited.

    python benchmarks/grey.py --vgg vgg16_features.safetensors --out grey.json

A picture is grey if its pixels' standard deviation is under 12 of 255, or if the channel is excited less than by the
median photograph. Exits with 1 if one is.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from PIL import Image
from torch.nn import functional

import machine
import networks
from convscope.features.visualize import visualize

LAYER = "features.22"  # relu4_3
PACKAGES = ("convscope", "torch", "torchvision", "numpy")


def main() -> None:
    """Draws, measures, reports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vgg", type=Path, required=True, help="weights of torchvision's vgg16().features")
    parser.add_argument("--layer", default=LAYER)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--sheet", type=Path, help="PNG of all pictures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    net = networks.vgg(options.vgg)
    alive = networks.living(net, options.layer)
    order = torch.randperm(len(alive), generator=torch.Generator().manual_seed(options.seed))
    channels = sorted(alive[k] for k in order[: options.channels].tolist())
    typical = networks.natural(net, options.layer)[:, channels].mean((2, 3)).median(0).values
    began = time.perf_counter()
    shown = visualize(net, options.layer, channels, seed=options.seed, random=True)
    seconds = time.perf_counter() - began
    # on the network as it is, in float32, not on the folded copy the pictures were drawn with
    values = networks.excited(net, options.layer, shown.images)
    rows = [
        {
            "channel": unit.channel,
            "status": unit.status,
            "standard deviation": round(255 * float(image.std()), 1),
            "activation": machine.significant(float(value[unit.channel].mean())),
            "median photograph": machine.significant(float(usual)),
        }
        for unit, image, value, usual in zip(shown.units, shown.images, values, typical, strict=True)
    ]
    grey = [
        row for row in rows
        if row["standard deviation"] < 12 or row["activation"] < row["median photograph"]
    ]  # fmt: skip
    report = {
        "benchmark": "grey",
        "machine": machine.describe(torch.device("cpu"), PACKAGES),
        "layer": options.layer,
        "living channels": len(alive),
        "drawn": len(rows),
        "size": list(shown.images.shape[-2:]),
        "seconds": round(seconds, 1),
        "least standard deviation": min(row["standard deviation"] for row in rows),
        "grey": grey,
        "pictures": rows,
    }
    if options.out is not None:
        options.out.write_text(json.dumps(report, indent=2) + "\n")
    if options.sheet is not None:
        tiles = functional.pad(shown.images, (2, 2, 2, 2), value=1.0)
        lines = [torch.cat(list(line), 2) for line in tiles.split(8) if len(line) == 8]
        Image.fromarray((torch.cat(lines, 1).clamp(0, 1) * 255).round().byte().movedim(0, -1).numpy()).save(
            options.sheet
        )
    print(json.dumps({key: value for key, value in report.items() if key != "pictures"}, indent=2))
    sys.exit(1 if grey else 0)


if __name__ == "__main__":
    main()
