"""What rewrites keep of what a network learned, part by part; each is written as soon as it is done.

    python benchmarks/rewrites.py --parts lowrank --out results.json
    python benchmarks/rewrites.py --parts lowrank --vgg vgg16_features.safetensors --data photographs --out results.json

README.md beside this file says what each figure means.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import machine
import rewrites_dense
import rewrites_imagenet
import rewrites_lowrank
import rewrites_sizes
import rewrites_speed

PACKAGES = ("convscope", "torch", "torchvision", "timm", "numpy")


@dataclass(frozen=True)
class Options:
    """What the command line says.

    Attributes:
        networks: which of "fashion" and "vgg".
        vgg: weights of torchvision's vgg16().features, safetensors.
        data: folder of photographs for VGG-16.
        images: how many of them, half to calibrate and half to score.
        quick: a smoke run, no figure to quote.
        cases: part of the names of the rows to run, such as "separable/0.3"; "" for all.
    """

    networks: tuple[str, ...]
    vgg: Path | None
    data: Path | None
    images: int
    quick: bool
    cases: str = ""


PARTS: dict[str, Callable[[Options, Callable[[str, Any], None]], None]] = {
    "lowrank": rewrites_lowrank.run,
    "dense": rewrites_dense.run,
    "finer": rewrites_dense.finer,
    "speed": rewrites_speed.run,
    "sizes": rewrites_sizes.run,
    "imagenet": rewrites_imagenet.run,
}


def main() -> None:
    """Runs the parts and adds what they find to what the file holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--networks", default="fashion,vgg", help="vgg runs where --vgg and --data are given")
    parser.add_argument("--vgg", type=Path, help="weights of torchvision's vgg16().features, safetensors")
    parser.add_argument("--data", type=Path, help="folder of photographs for VGG-16")
    parser.add_argument(
        "--images", type=int, default=256, help="photographs: half to calibrate, half to score"
    )
    parser.add_argument(
        "--cases", default="", help="part of the names of lowrank's rows: 'vgg16/separable/0.3'"
    )
    parser.add_argument("--out", type=Path, help="JSON file to write; added to what it holds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a smoke run, no figure to quote")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    networks = tuple(given.networks.split(","))
    options = Options(networks, given.vgg, given.data, given.images, given.quick, given.cases)
    found: dict[str, Any] = {}
    for part in filter(None, given.parts.split(",")):
        if part not in PARTS:
            parser.error(f"--parts: {part!r} is none of {', '.join(PARTS)}")

        def keep(key: str, value: Any, part: str = part) -> None:
            facts = machine.describe(torch.device("cpu"), PACKAGES)
            if given.out is not None and given.out.exists():
                found.update(json.loads(given.out.read_text()))  # another run may have added to it
            found.setdefault(part, {})[key] = {"machine": facts, "quick": options.quick, **value}
            if given.out is not None:
                given.out.write_text(json.dumps(found, indent=1) + "\n")

        PARTS[part](options, keep)
    if given.out is None:
        json.dump(found, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
