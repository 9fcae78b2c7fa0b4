"""From the atlas manifest to what the pages load: a slim index of all units, and details on demand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from convscope.site.files import write_if_changed
from convscope.site.scripts import assignment, digest, finite
from convscope.site.sprites import BLOCK, Sheet, Sheets, is_inside

HERO = 36  # pictures of the mosaic on the first page


def write_index(out: Path, atlas: dict[str, Any]) -> dict[str, Any]:
    """Writes `data/*.js` and `sprites/*.webp` for an atlas and returns the index the pages read.

    The index comes last: whatever it names is already there when an open page loads it.

    Args:
        out: The report's folder, which holds the atlas.
        atlas: The manifest as in `atlas.json`.
    """
    sheets = Sheets(out)
    by_layer: dict[int, list[dict[str, Any]]] = {}
    for unit in atlas["units"]:
        by_layer.setdefault(unit["layer"], []).append(unit)
    layers, units = [], []
    for layer in atlas["layers"]:
        members = by_layer.get(layer["index"], [])
        blocks = []
        for number, start in enumerate(range(0, len(members), BLOCK)):
            members_of_block = members[start : start + BLOCK]
            name = f"{int(layer['index']):03d}-{number}"
            sheet = sheets.sheet(name, [unit["image"] for unit in members_of_block])
            units += [_slim(unit, start + k, sheet.shown[k]) for k, unit in enumerate(members_of_block)]
            blocks.append(_block(out, name, sheet, members_of_block))
        layers.append({**layer, "blocks": blocks})
    sheets.close()
    index = _index(atlas, layers, units)
    write_if_changed(out / "data" / "atlas.js", assignment("atlas", index))
    return index


def _block(out: Path, name: str, sheet: Sheet, units: list[dict[str, Any]]) -> dict[str, Any]:
    script = assignment(f"block {name}", [_details(unit) for unit in units])
    write_if_changed(out / "data" / f"{name}.js", script)
    return {
        "key": f"block {name}",
        "sheet": f"{sheet.file}?v={sheet.version}",
        "columns": sheet.columns,
        "rows": sheet.rows,
        "details": f"data/{name}.js?v={digest(script)}",
    }


def _slim(unit: dict[str, Any], place: int, shown: bool) -> dict[str, Any]:
    natural = unit.get("natural") or {}
    return {
        "id": unit["id"],
        "layer": unit["layer"],
        "channel": unit["channel"],
        "seed": unit["seed"],
        "label": unit.get("label"),
        "place": place,
        "image": unit["image"] if shown else None,
        "missing": unit["image"] is not None and not shown,
        "size": unit.get("size"),
        "status": unit["status"],
        "flags": unit.get("flags") or [],
        "activation": unit.get("activation"),
        "robust": unit.get("robust"),
        "ratio": natural.get("ratio"),
        "percentile": natural.get("percentile"),
        "agreement": unit.get("agreement"),
    }


def _details(unit: dict[str, Any]) -> dict[str, Any]:
    natural = unit.get("natural")
    if natural and not is_inside(natural.get("crops") or ""):
        natural = {**natural, "crops": None}
    keys = ("id", "steps", "curve", "command", "python", "seconds")
    return {**{key: unit.get(key) for key in keys}, "natural": natural}


def _index(
    atlas: dict[str, Any], layers: list[dict[str, Any]], units: list[dict[str, Any]]
) -> dict[str, Any]:
    net = {key: value for key, value in atlas["net"].items() if key != "labels"}
    return {
        "state": atlas["state"],
        "planned": atlas["planned"],
        "net": net,
        "settings": atlas.get("settings") or {},
        "network": atlas.get("network") or [],
        "layers": layers,
        "units": units,
        "hero": hero(units, HERO),
        "skipped": atlas.get("skipped") or [],
    }


def hero(units: list[dict[str, Any]], count: int) -> list[str]:
    """The ids of the best pictures, an even share of each layer, in the order of the layers.

    Within a layer the picture that most exceeds nature comes first; without natural images, the one that
    keeps most of its activation under held-out transforms.
    """
    ranked: dict[int, list[dict[str, Any]]] = {}
    seen: set[tuple[int, int]] = set()
    for unit in sorted(units, key=_merit, reverse=True):
        channel = (unit["layer"], unit["channel"])
        if unit["image"] and channel not in seen and unit["status"] in ("converged", "budget", "interrupted"):
            seen.add(channel)
            ranked.setdefault(unit["layer"], []).append(unit)
    chosen: list[dict[str, Any]] = []
    rank = 0
    while len(chosen) < count and any(len(members) > rank for members in ranked.values()):
        row = [ranked[layer][rank] for layer in sorted(ranked, reverse=True) if len(ranked[layer]) > rank]
        chosen += row[
            : count - len(chosen)
        ]  # deep layers first: where the last row is cut, they are the richer ones
        rank += 1
    return [unit["id"] for unit in sorted(chosen, key=lambda unit: (unit["layer"], unit["place"]))]


def _merit(unit: dict[str, Any]) -> tuple[bool, float]:
    weak = bool({"weak", "saturated", "dead"} & set(unit["flags"]))
    score = finite(unit["ratio"])
    if score is None:
        activation, robust = finite(unit["activation"]), finite(unit["robust"])
        score = robust / activation if activation and robust is not None else 0.0
    return not weak, float(score)
