"""What `tour` measures of the layers, for a made-up network of residual blocks of any length.

python tests/site/fake_layers.py OUT [--blocks 12]     writes the data of the page into a report's folder
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

from PIL import Image

from convscope import site

KINDS = ("Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "BatchNorm2d")
PARTS = ("conv1", "bn1", "act", "conv2", "bn2")


def field(size: int, stride: int = 2, whole: bool = False) -> dict[str, Any]:
    """A receptive field; a whole one has a local one within."""
    plain = {
        "size": [size, size],
        "stride": [stride, stride],
        "padding": [size // 2, size // 2],
        "is_global": False,
        "whole": [False, False],
        "aligned": True,
        "local": None,
        "reasons": [],
        "bounds": [],
    }
    if not whole:
        return plain
    return {**plain, "size": [64, 64], "is_global": True, "whole": [True, True], "local": plain}


def row(name: str, kind: str, number: int, **changes: Any) -> dict[str, Any]:
    """One row of a profile."""
    conv = kind == "Conv2d"
    out = [1, 16, 32, 32]
    return {
        "name": name,
        "kind": kind,
        "functional": False,
        "in": out,
        "out": out,
        "kernel": [3, 3] if conv else None,
        "stride": [1, 1] if conv else None,
        "padding": [1, 1] if conv else None,
        "dilation": [1, 1] if conv else None,
        "groups": 1 if conv else None,
        "params": 100 + number if conv else 0,
        "shared_params": 0,
        "macs": 1000 * (1 + number * 7919 % 997) if conv else 0,
        "element_ops": 0 if conv else 16384,
        "activation_bytes": 65536,
        "training_bytes": None,
        "moved_bytes": 131072,
        "receptive_field": field(3 + 2 * number, whole=number % 5 == 4),
        "no_field": "",
        "ops": {"aten.convolution" if conv else "aten.relu": 1},
        "uncounted": {},
        **changes,
    }


def layers(
    out: Path, blocks: int = 12, stages: int = 3, names: str = "stage", **changes: Any
) -> dict[str, Any]:
    """The value: a stem, stages of residual blocks, a linear layer. With maps of the first block of each stage."""
    rows = [row("stem", "Conv2d", 0)]
    parts: list[dict[str, Any]] = [part("stem", "Conv2d", ())]
    edges = [[-1, 0]]
    inside: dict[str, list[str]] = {"stem": []}
    groups: dict[str, Any] = {}
    for block in range(blocks):
        stage = f"{names}{block * stages // blocks}"
        home = f"{stage}.{block}"
        for name, around in ((stage, []), (home, [stage])):
            kind = "Sequential" if name == stage else "Block"
            groups[name] = {"kind": kind, "out": [1, 16, 32, 32], "field": field(9 + 2 * block)}
            inside[name] = around
        start = len(parts) - 1
        for kind, name in zip(KINDS, PARTS, strict=True):
            rows.append(row(f"{home}.{name}", kind, len(rows)))
            edges.append([len(parts) - 1, len(parts)])
            parts.append(part(f"{home}.{name}", kind, (stage, home)))
            inside[f"{home}.{name}"] = [stage, home]
        rows.append(row(home, "Block", len(rows), functional=True, ops={"aten.add": 1}, kernel=None))
        edges += [[len(parts) - 1, len(parts)], [start, len(parts)]]
        parts.append({**part(home, "add", (stage, home)), "is_op": True})
    rows.append(row("fc", "Linear", len(rows), out=[1, 10], receptive_field=field(64, whole=True)))
    edges.append([len(parts) - 1, len(parts)])
    parts.append(part("fc", "Linear", (), [1, 10]))
    inside["fc"] = []
    total = {key: sum(one[key] for one in rows) for key in ("params", "macs", "element_ops", "moved_bytes")}
    return {
        "state": "done",
        "profile": {
            "model": "made-up",
            "input": [1, 3, 64, 64],
            "layers": rows,
            "totals": {**total, "unused_params": 3, "activation_bytes": 1 << 20, "peak_layer": "stem", "training_bytes": None},
            "uncounted": [{"op": "aten.fft_c2c", "count": 2}],
            "notes": ["a note"],
        },
        "wiring": {"parts": parts, "edges": sorted(edges), "ends": [len(parts) - 1]},
        "inside": inside,
        "groups": groups,
        "grids": {name: [32, 32] for name in inside if name != "fc"},
        "image": [64, 64],
        "photo": photo(out),
        "sights": {f"{names}0.0": sight(out)},
        "left_out": [{"measure": "visits", "layer": "fc", "reason": "it has no positions"}],
        "latency": latency(rows),
        "border": {"layers": {"stem": border()}},
        "consistency": None,
        **changes,
    }  # fmt: skip


def part(name: str, kind: str, inside: tuple[str, ...], shape: list[int] | None = None) -> dict[str, Any]:
    """One part of the wiring."""
    return {
        "name": name,
        "kind": kind,
        "is_op": False,
        "inside": list(inside),
        "shape": shape or [1, 16, 32, 32],
    }


def picture(out: Path, name: str, colour: tuple[int, int, int]) -> str:
    """A small picture in the folder."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(buffer, "PNG")
    (out / "layers").mkdir(parents=True, exist_ok=True)
    (out / "layers" / name).write_bytes(buffer.getvalue())
    return f"layers/{name}"


def photo(out: Path) -> dict[str, Any]:
    """The photograph."""
    credit = {"title": "A grey card", "attribution": "nobody", "license": "CC0", "url": "", "name": "card"}
    return {"file": picture(out, "photo.png", (120, 120, 120)), "name": "card", "credit": credit}


def border(**changes: Any) -> dict[str, Any]:
    """A row of the border effect."""
    plain = {
        "grid": [32, 32],
        "share": 0.12,
        "local_share": None,
        "border_change": 0.3,
        "reach_pixels": [[1.0, 1.0]] * 2,
    }
    return {**plain, "note": "", **changes}


def sight(out: Path) -> dict[str, Any]:
    """Maps of a layer looked at closely."""
    effective = {
        "file": picture(out, "effective.png", (250, 120, 20)),
        "box": [[20, 41], [20, 41]],
        "full": [[20, 41], [20, 41]],
        "local": None,
        "position": [16, 16],
        "extent": 6.25,
        "ratio": 0.3,
        "sigma": [2.0, 2.0],
        "samples": 8,
        "data": "photographs",
        "local_share": None,
    }
    visits = {"corner": 4.0, "edge": 6.0, "centre": 9.0, "most": 9.0, "size": [64, 64]}
    return {
        "effective": effective,
        "border": border(file=picture(out, "border.png", (90, 20, 110)), most=0.5, measured=True),
        "visits": {**visits, "file": picture(out, "visits.png", (170, 50, 90))},
    }


def latency(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Times: convolutions bound by compute, the rest by memory."""

    def time(seconds: float) -> dict[str, Any]:
        return {
            "median": seconds,
            "low": 0.9 * seconds,
            "high": 1.1 * seconds,
            "threads": 2,
            "device": "cpu",
            "dtype": "float32",
        }

    timed = [
        {
            "address": one["name"],
            "time": time(1e-6 * (10 + number)),
            "bound": "compute" if one["macs"] else "memory",
            "macs_per_second": one["macs"] / (1e-6 * (10 + number)),
            "bytes": one["moved_bytes"],
            "macs_share": 0.5,
            "bytes_share": 0.2,
        }
        for number, one in enumerate(rows)
    ]
    peak = {"macs_per_second": 5e10, "bytes_per_second": 3e10}
    rest = {"time": time(2e-5)}
    return {
        "layers": timed,
        "total": time(0.01),
        "peak": peak,
        "rest": rest,
        "unattributed": -1e-5,
        "note": "",
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--blocks", type=int, default=12)
    given = parser.parse_args()
    print(site.write(given.out, layers=layers(given.out, given.blocks)))
