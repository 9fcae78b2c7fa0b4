"""What `tour` compares of a made-up network: rewrites of every class, one that was refused, one that failed.

python tests/site/fake_changes.py OUT     writes the data of the page into a report's folder
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

from PIL import Image

from convscope import site

LAYERS = tuple(f"block{k}.conv" for k in range(8))


def estimate(value: float, half: float = 0.1) -> dict[str, float]:
    """A figure with its interval."""
    return {"value": value, "low": max(-1.0, value - half), "high": min(1.0, value + half)}


def edit(layer: str, exactness: str | None, **changes: Any) -> dict[str, Any]:
    """What became of one layer."""
    return {
        "layer": layer,
        "rule": "bottleneck:rank=4",
        "before": "Conv2d(3, 8)",
        "after": "Sequential()",
        "exactness": exactness,
        "error": 0.012 if exactness == "approximate" else 2e-16,
        "rms_error": 0.004 if exactness == "approximate" else 0.0,
        "params": [1000, 400],
        "macs": [90000, 36000],
        "margin": [1, 1] if exactness == "exact-interior" else [0, 0],
        "notes": ["rank 4 of 8"],
        "reason": None if exactness else "its kernel is 1x1",
        **changes,
    }


def figures(macs: int, seconds: float) -> dict[str, Any]:
    """Costs before and after."""

    def time(value: float) -> dict[str, float]:
        return {"median": value, "low": 0.9 * value, "high": 1.1 * value}

    ratio = time(seconds / 0.01)
    return {
        "params": {"name": "parameters", "unit": "count", "a": 9000, "b": 9000, "ratio": 1.0},
        "macs": {"name": "MACs", "unit": "count", "a": 400_000, "b": macs, "ratio": macs / 400_000},
        "receptive_field": {"name": "receptive field", "unit": "pixels", "a": [14, 14], "b": [None, 14], "ratio": None},
        "latency": {"name": "latency", "unit": "seconds", "a": time(0.01), "b": time(seconds), "ratio": ratio},
    }  # fmt: skip


def comparison(
    out: Path, rms: float, macs: int = 400_000, seconds: float = 0.01, labelled: bool = False, name: str = "0"
) -> dict[str, Any]:
    """Of two networks that part at the third layer, unless `rms` is 0."""
    layers = [
        {"layer": layer, "kinds": ["Conv2d", "Conv2d"], "rms": rms if k > 1 else 0.0, "max": 2 * rms}
        for k, layer in enumerate(LAYERS)
    ]
    right = {
        "images": 6, "a": estimate(0.9), "b": estimate(0.8), "difference": estimate(-0.1), "only_a": 3, "only_b": 1,
        "p_value": 0.625,
    }  # fmt: skip
    return {
        "a": {"name": "made-up"},
        "b": {"name": "made-up, rewritten"},
        "figures": figures(macs, seconds),
        "images": {"count": 6, "source": "photographs"},
        "outputs": {"max": rms, "relative": rms, "rms": rms, "cosine": estimate(1 - rms / 2), "agreement": estimate(1 - rms / 3)},
        "accuracy": right if labelled else None,
        "first": LAYERS[2] if rms else None,
        "tolerance": 1e-4,
        "layers": layers,
        "apart": {},
        "features": [
            {
                "layer": LAYERS[3],
                "channel": channel,
                "activations": [2.5, 1.5],
                "status": ["budget", "budget"],
                "before": picture(out, f"{name}-{channel}-before.png", (40, 90, 160)),
                "after": picture(out, f"{name}-{channel}-after.png", (160, 90, 40)),
            }
            for channel in range(2)
        ],
        "notes": ["a note"],
    }  # fmt: skip


def changes(out: Path, labelled: bool = False, **changed: Any) -> dict[str, Any]:
    """The value: five rewrites that were compared, one refused, one failed."""
    entries = [
        entry(
            "fold_batch_norm",
            [edit(layer, "exact") for layer in LAYERS],
            comparison(out, 0.0, labelled=labelled),
        ),
        entry(
            "padding:kind=replicate",
            [edit(layer, "exact-interior") for layer in LAYERS[:3]]
            + [edit(layer, None) for layer in LAYERS[3:]],
            comparison(out, 0.3, labelled=labelled, name="1"),
        ),
        *(
            entry(
                f"bottleneck:rank={rank},where=block*",
                [edit(layer, "approximate") for layer in LAYERS] * 3,
                comparison(out, 0.4 / rank, 100_000 * rank, 0.003 * rank, labelled, f"{rank}"),
                {"source": "photographs", "count": 6},
            )
            for rank in (1, 2, 3)
        ),
        entry("pool:kind=blur", [edit("gap", None, reason="it is an average")], None),
        {
            "title": "untie",
            "rewrite": None,
            "comparison": None,
            "error": "untie would take 9 GiB; raise the cap.",
        },
    ]
    return {
        "state": "done",
        "base": {"name": "made-up", "source": "made-up", "sha256": "0" * 64},
        "planned": [each["title"] for each in entries],
        "left_out": None,
        "entries": entries,
        **changed,
    }  # fmt: skip


def entry(title: str, edits: list[dict[str, Any]], found: Any, data: Any = None) -> dict[str, Any]:
    """One rewrite and its comparison."""
    classes = [one["exactness"] for one in edits if one["exactness"]]
    made = {"rule": title, "exactness": classes[0] if classes else "exact", "edits": edits, "data": data}
    return {"title": title, "rewrite": made, "comparison": found, "error": None}


def picture(out: Path, name: str, colour: tuple[int, int, int]) -> str:
    """A small picture in the folder."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(buffer, "PNG")
    (out / "changes").mkdir(parents=True, exist_ok=True)
    (out / "changes" / name).write_bytes(buffer.getvalue())
    return f"changes/{name}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    print(site.write(given.out, changes=changes(given.out)))
