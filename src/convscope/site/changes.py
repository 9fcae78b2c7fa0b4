"""What the page of changes loads: a network, what was made from it, and how each compares with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convscope.site.files import write_if_changed
from convscope.site.scripts import assignment, digest
from convscope.site.sprites import is_inside

SCRIPT = "data/changes.js"
_EDIT = (
    "layer",
    "rule",
    "exactness",
    "error",
    "rms_error",
    "params",
    "macs",
    "margin",
    "notes",
    "before",
    "after",
)


def write_changes(out: Path, changes: Mapping[str, Any]) -> None:
    """Writes `data/changes.js`.

    Args:
        out: the report's folder.
        changes: what `tour` compared, as plain values: `state`, `base` (the network), `planned` (rules, or None),
            `left_out` (why nothing was compared, or None), `entries`: each with `title`, `rewrite`, `comparison` and
            `error`, of which the last three may be None.
    """
    content = {
        "state": changes["state"],
        "base": {key: changes["base"].get(key) for key in ("name", "source", "sha256")},
        "planned": changes["planned"],
        "left_out": changes["left_out"],
        "entries": [_entry(entry) for entry in changes["entries"]],
    }
    content["version"] = digest(repr(content))
    write_if_changed(out / SCRIPT, assignment("changes", content))


def _entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    made, found = entry["rewrite"], entry["comparison"]
    shown: dict[str, Any] = {"title": entry["title"], "error": entry["error"], "made": None, "found": None}
    if made is not None:
        edits = made["edits"]
        shown["made"] = {
            "exactness": made["exactness"],
            "data": made["data"],
            "edits": None if edits is None else [_edit(edit) for edit in edits if edit["exactness"]],
            "refused": None if edits is None else _refused([edit for edit in edits if not edit["exactness"]]),
        }
    if found is not None:
        shown["found"] = {
            "name": found["b"]["name"],
            "figures": [{"key": key, **figure} for key, figure in found["figures"].items()],
            "images": found["images"],
            "outputs": found["outputs"],
            "accuracy": found["accuracy"],
            "first": found["first"],
            "tolerance": found["tolerance"],
            "layers": [
                [row["layer"], row["rms"], row["max"], *dict.fromkeys(row["kinds"])]
                for row in found["layers"]
            ],
            "apart": len(found["apart"]),
            "features": [_feature(feature) for feature in found["features"]],
            "notes": found["notes"],
        }
    return shown


def _edit(edit: Mapping[str, Any]) -> dict[str, Any]:
    return {key: edit[key] for key in _EDIT}


def _refused(edits: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Layers left as they are, by the reason, which many share; the commonest first."""
    often = Counter(edit["reason"] for edit in edits)
    return [
        {"reason": reason, "layers": [edit["layer"] for edit in edits if edit["reason"] == reason]}
        for reason, _ in often.most_common()
    ]


def _feature(feature: Mapping[str, Any]) -> dict[str, Any]:
    """A picture outside the folder is left out."""
    sides = {side: feature[side] for side in ("before", "after")}
    inside = {side: file if file and is_inside(file) else None for side, file in sides.items()}
    return {key: feature[key] for key in ("layer", "channel", "activations", "status")} | inside
