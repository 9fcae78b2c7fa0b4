"""Realistic atlases without a network: procedural pictures, crops, histograms, a few units that went wrong.

python tests/site/fake_atlas.py OUT [--units 120] [--state running] [--look]     writes a report to look at
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HOSTILE = "<img src=x onerror=alert(1)>"
CLASSES = (
    "tench",
    "goldfish",
    "great white shark",
    "hammerhead",
    "cock",
    "ostrich",
    "junco",
    "bulbul",
    "jay",
    "kite",
)
NAMES = (
    "conv_stem",
    "blocks.0.0",
    "blocks.1.0.conv_dw",
    "blocks.1.1",
    "blocks.2.0.conv_pwl",
    "blocks.2.1",
    "blocks.3.2",
    "blocks.4.1.conv_dw",
    "blocks.4.2",
    "blocks.5.3",
    "blocks.6.0",
    "classifier",
)


def picture(rng: np.random.Generator, depth: float, side: int) -> NDArray[np.uint8]:
    """A picture in the manner of feature visualization: gratings early, warped textures and eyes late."""
    v, u = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    warp = 0.06 + 1.1 * depth
    for _ in range(3):
        a, b, c, d = rng.uniform(1, 4, 4)
        p, q = rng.uniform(0, 6.28, 2)
        u, v = u + warp * np.sin(a * v + b * u + p) / 3, v + warp * np.sin(c * u + d * v + q) / 3
    angle = rng.uniform(0, np.pi)
    frequency = rng.uniform(9, 20) * (1 - 0.45 * depth)
    radius = np.hypot(u - rng.uniform(-0.4, 0.4), v - rng.uniform(-0.4, 0.4))
    grating = np.sin(frequency * (np.cos(angle) * u + np.sin(angle) * v) + rng.uniform(0, 6))
    rings = np.sin(frequency * 1.3 * radius + rng.uniform(0, 6))
    folds = np.sin(7 * u * v + rng.uniform(0, 6)) + 0.6 * np.sin(frequency * u) * np.sin(frequency * v)
    mix = rng.dirichlet([2 - 1.6 * depth, 0.2 + depth, 0.2 + 1.4 * depth])
    value = mix[0] * grating + mix[1] * rings + mix[2] * folds
    second = np.roll(np.sin(3 * value + 2.5 * u + rng.uniform(0, 6)), side // 5, axis=int(rng.integers(2)))
    axes = rng.normal(size=(2, 3)) * np.array([[1.0, 0.85, 0.7], [0.5, 0.25, 0.9]])
    image = 0.5 + 0.3 * (value[..., None] * axes[0] + second[..., None] * axes[1] * 0.8)
    image += rng.normal(scale=0.012, size=image.shape)
    return (255 * np.clip(image, 0, 1)).astype(np.uint8)


def webp(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=88, method=0)
    return buffer.getvalue()


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


class FakeAtlas:
    """Builds an atlas unit by unit, as a run would.

    Args:
        out: The folder the pictures go to.
        names: Layer names, in the order they ran.
        units: How many units are planned, spread evenly.
        distinct: Draw only this many different pictures and repeat them (fast for thousands of units).
        photos: Whether natural crops and histograms come with the units.
    """

    def __init__(
        self,
        out: Path,
        names: tuple[str, ...] = NAMES,
        units: int = 120,
        distinct: int = 400,
        photos: bool = True,
    ) -> None:
        self.out, self.planned, self.distinct, self.photos = out, units, distinct, photos
        self.names = names
        self.layers = [self._layer(index) for index in range(len(names))]
        self.units: list[dict[str, Any]] = []
        self._bytes: dict[tuple[int, int], bytes] = {}
        self._strips: dict[int, bytes] = {}

    def _layer(self, index: int) -> dict[str, Any]:
        last = index == len(self.names) - 1 and len(self.names) > 1
        size = max(7, 112 >> (5 * index // max(1, len(self.names) - 1)))
        channels = 1000 if last else 16 + 24 * index
        field = {"size": [3 + 20 * index] * 2, "stride": [2, 2], "padding": [1, 1], "is_global": last}
        return {
            "index": index,
            "name": self.names[index],
            "kind": "Linear" if last else "InvertedResidual" if index % 3 else "Conv2d",
            "channels": channels,
            "shape": [channels] if last else [channels, size, size],
            "role": "logits" if last else "convolution" if "conv" in self.names[index] else "stage",
            "receptive_field": field,
        }

    def add(self, count: int) -> None:
        """Draws the next `count` units."""
        share = -(-self.planned // len(self.layers))
        for number in range(len(self.units), min(self.planned, len(self.units) + count)):
            self.units.append(self._unit(number // share, number % share))

    def _unit(self, layer: int, channel: int) -> dict[str, Any]:
        rng = np.random.default_rng([layer, channel])
        identity = f"{layer}/{channel}/0"
        logits = self.layers[layer]["role"] == "logits"
        fate = channel % 9
        status = (
            "dead"
            if (layer, fate) == (3, 7)
            else "nan"
            if (layer, fate) == (6, 8)
            else "budget"
            if fate == 4
            else "converged"
        )
        drawn = status not in ("dead", "nan")
        image = f"images/{layer:03d}/{channel:05d}-0.webp" if drawn else None
        side = 48 if layer < 2 else 64 if layer < 4 else 128
        if image:
            put(self.out / image, self._picture(layer, channel, side))
        steps = 128 if status == "budget" else int(rng.integers(56, 120))
        activation = float(rng.lognormal(1.6, 0.5)) if drawn else 0.0
        curve = [[s, activation * (1 - np.exp(-s / 22)) * rng.uniform(0.96, 1.0)] for s in range(0, steps, 4)]
        flags = (
            ["dead"]
            if status == "dead"
            else ["weak"]
            if fate == 5 and layer % 4 == 1
            else ["saturated"]
            if fate == 6 and layer == 5
            else []
        )
        name = self.layers[layer]["name"]
        return {
            "id": identity,
            "layer": layer,
            "channel": channel,
            "seed": 0,
            "label": (CLASSES[channel % 10] if channel < 10 else f"class {channel}") if logits else None,
            "image": image,
            "size": [side, side],
            "activation": activation if status != "nan" else None,
            "robust": activation * 0.83 if status != "nan" else None,
            "status": status,
            "steps": steps,
            "curve": [*curve, [steps, activation]] if drawn else [],
            "flags": flags,
            "agreement": None,
            "natural": self._natural(rng, layer, channel, activation)
            if self.photos and status != "nan"
            else None,
            "command": f"convscope visualize efficientnet-lite0 '{name}' --channels {channel} --out pictures",
            "python": "import convscope\n\nnet = convscope.load()\n"
            f"v = convscope.visualize(net, {name!r}, {channel})\nv.images[0]",
        }

    def _picture(self, layer: int, channel: int, side: int) -> bytes:
        key = (side, (layer * 997 + channel) % self.distinct)
        if key not in self._bytes:
            depth = layer / max(1, len(self.layers) - 1)
            self._bytes[key] = webp(picture(np.random.default_rng([7, *key]), depth, side))
        return self._bytes[key]

    def _natural(
        self, rng: np.random.Generator, layer: int, channel: int, activation: float
    ) -> dict[str, Any]:
        most = max(0.3, activation / rng.uniform(0.8, 5.0))
        crops = f"crops/{layer:03d}/{channel:05d}.webp"
        key = (layer * 31 + channel) % 12
        if key not in self._strips:
            self._strips[key] = webp(strip(key, 6))
        put(self.out / crops, self._strips[key])
        counts, edges = np.histogram(np.clip(rng.gamma(0.7, most / 5, 4000), 0, most), bins=40)
        photos = ("astronaut", "chelsea", "coffee", "china", "flower", "rocket")
        return {
            "max": most,
            "ratio": activation / most,
            "percentile": 99.9,
            "crops": crops,
            "count": 6,
            "examples": [
                {"image": photo, "box": [0, 0, 64, 64], "activation": most * (1 - 0.06 * k)}
                for k, photo in enumerate(photos)
            ],
            "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        }

    def manifest(self, state: str = "done") -> dict[str, Any]:
        network: list[dict[str, Any]] = []
        for layer in self.layers:
            for kind in ("BatchNorm2d", "ReLU6", "Conv2d", "BatchNorm2d", "ReLU6") if layer["index"] else ():
                name = f"{layer['name']}.{kind.lower()}{len(network)}"
                network.append(
                    {
                        "name": name,
                        "kind": kind,
                        "depth": 2,
                        "leaf": True,
                        "out_shape": layer["shape"],
                        "params": 2 * layer["channels"],
                        "layer": None,
                    }
                )
            network.append(
                {
                    "name": layer["name"],
                    "kind": layer["kind"],
                    "depth": 1,
                    "leaf": False,
                    "out_shape": layer["shape"],
                    "params": 1152 * layer["channels"],
                    "layer": layer["index"],
                }
            )
        return {
            "format": 1,
            "state": state,
            "planned": self.planned,
            "net": {
                "name": "EfficientNet-Lite0",
                "source": "convscope:efficientnet-lite0",
                "sha256": "3f9a1c0e5b7d" * 5 + "a1b2",
                "trained": True,
                "params": 4652008,
                "input": {
                    "shape": [3, 224, 224],
                    "mean": [0.498, 0.498, 0.498],
                    "std": [0.502, 0.502, 0.502],
                    "value_range": [0, 1],
                    "dtype": "float32",
                },
                "labels": list(CLASSES),
            },
            "settings": {
                "steps": 128,
                "size": "auto",
                "seeds": 1,
                "seed": 0,
                "dtype": "bfloat16",
                "data": None,
            },
            "versions": {"convscope": "0.1.0", "torch": "2.13.0", "python": "3.11.2"},
            "machine": "2 CPU cores",
            "network": network,
            "layers": self.layers,
            "units": list(self.units),
            "attributions": [
                {
                    "name": "astronaut",
                    "title": "Eileen Collins",
                    "license": "public domain",
                    "attribution": "NASA",
                    "url": "https://flic.kr/p/r9qvLn",
                },
                {
                    "name": "chelsea",
                    "title": "Chelsea the cat",
                    "license": "CC0",
                    "attribution": "Stéfan van der Walt",
                    "url": "javascript:alert(1)",
                },
            ],
            "skipped": [{"layer": "global_pool", "reason": "has no channels of its own"}],
        }

    def save(self, state: str = "done") -> dict[str, Any]:
        manifest = self.manifest(state)
        put(self.out / "atlas.json", json.dumps(manifest).encode())
        return manifest


def strip(seed: int, count: int) -> NDArray[np.uint8]:
    """Stand-ins for natural crops: clouds with a horizon, in a row."""
    rng = np.random.default_rng([3, seed])
    return np.concatenate([picture(rng, 0.9, 64) // 2 + 50 for _ in range(count)], axis=1)


def look(out: Path, units: list[str]) -> dict[str, Any]:
    """What one photograph does, with its files under `look/0/`."""
    rng = np.random.default_rng(11)
    put(out / "look/0/image.webp", webp(picture(rng, 1.0, 240)[:200]))
    put(out / "look/0/evidence.webp", webp(picture(rng, 0.2, 240)[:200]))
    put(out / "look/0/kernels.webp", webp(picture(rng, 0.0, 160)))
    maps = []
    for k in range(18):
        grey = picture(rng, 0.8, 28).mean(axis=2, keepdims=True).astype(np.uint8)
        put(out / f"look/0/map-{k}.webp", webp(np.repeat(grey, 3, axis=2)))
        maps.append(
            {
                "channel": 3 * k,
                "file": f"look/0/map-{k}.webp",
                "max": 4.2 - k / 10,
                "mean": 0.4,
                "where": [0.3 + k / 40, 0.6],
                "unit": units[k % len(units)] if units else None,
            }
        )
    return {
        "image": {"name": "astronaut", "file": "look/0/image.webp", "size": [200, 240]},
        "top": [{"class": k, "label": CLASSES[k], "probability": 0.62 / 2.2**k} for k in range(5)],
        "evidence": {
            "file": "look/0/evidence.webp",
            "class": 0,
            "label": "tench",
            "method": "gradient × activation of blocks.6.0",
        },
        "kernels": {
            "layer": "conv_stem",
            "file": "look/0/kernels.webp",
            "count": 32,
            "note": "each scaled to its own range",
        },
        "layers": [
            {"name": name, "shape": [24, 56, 56], "maps": maps[6 * k : 6 * k + 6]}
            for k, name in enumerate(NAMES[1:4])
        ],
        "units": [
            {
                "layer": NAMES[k],
                "channel": 5 * k,
                "activation": 7.1 - k / 3,
                "where": [0.4, 0.2 + k / 12],
                "unit": units[k] if k < len(units) else None,
            }
            for k in range(8)
        ],
        "attribution": {
            "title": "Eileen Collins",
            "attribution": "NASA",
            "license": "public domain",
            "url": "https://flic.kr/p/r9qvLn",
        },
    }


if __name__ == "__main__":
    from convscope import site

    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--units", type=int, default=120)
    parser.add_argument("--drawn", type=int)
    parser.add_argument("--state", default="done")
    parser.add_argument("--look", action="store_true")
    asked = parser.parse_args()
    fake = FakeAtlas(asked.out, units=asked.units)
    fake.add(asked.units if asked.drawn is None else asked.drawn)
    identities = [unit["id"] for unit in fake.units[::7]]
    print(
        site.write(
            asked.out, atlas=fake.save(asked.state), looks=[look(asked.out, identities)] if asked.look else []
        )
    )
