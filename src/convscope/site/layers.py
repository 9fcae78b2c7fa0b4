"""What the page of layers loads: a row for each layer, the flow as bands, maps and fields of the layers looked at."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convscope.site.files import write_if_changed
from convscope.site.flow import flow
from convscope.site.scripts import assignment, digest
from convscope.site.sprites import is_inside

SCRIPT = "data/layers.js"


def write_layers(out: Path, layers: Mapping[str, Any]) -> None:
    """Writes `data/layers.js`.

    Args:
        out: the report's folder.
        layers: what `tour` measured, as plain values: `profile`, `wiring`, `inside`, `groups`, `grids`, `image`, `photo`,
            `state`, `sights`, `left_out`, and `latency`, `border` and `consistency` or None; or only `error`, a
            sentence that says why there is nothing.
    """
    content = {"error": layers["error"], "state": "done"} if "error" in layers else _content(layers)
    content["version"] = digest(repr(sorted(content.items())))
    write_if_changed(out / SCRIPT, assignment("layers", content))


def _content(layers: Mapping[str, Any]) -> dict[str, Any]:
    profile = layers["profile"]
    times = {row["address"]: row for row in (layers["latency"] or {}).get("layers", ())}
    borders = (layers["border"] or {}).get("layers", {})
    shifts = (layers["consistency"] or {}).get("layers", {})
    rows = [
        _row(row, layers, times.get(row["name"]), borders.get(row["name"]), shifts.get(row["name"]))
        for row in profile["layers"]
    ]
    groups = {
        name: {
            **group,
            "field": _field(group["field"]),
            "inside": layers["inside"][name],
            "grid": layers["grids"].get(name, []),
            **_measured(borders.get(name), shifts.get(name)),
        }
        for name, group in layers["groups"].items()
    }
    kinds = {name: group["kind"] for name, group in groups.items()}
    return {
        "state": layers["state"],
        "model": profile["model"],
        "input": profile["input"],
        "image": layers["image"],
        "photo": _photo(layers["photo"]),
        "totals": profile["totals"],
        "uncounted": profile["uncounted"],
        "notes": profile["notes"],
        "left_out": layers["left_out"],
        "rows": rows,
        "groups": groups,
        "flow": flow(layers["wiring"], kinds, _costs(rows)),
        "sights": {name: _sight(found) for name, found in layers["sights"].items()},
        "machine": _machine(layers["latency"]),
        "shifts": _shifts(layers["consistency"]),
    }


def _row(
    row: Mapping[str, Any],
    layers: Mapping[str, Any],
    time: Mapping[str, Any] | None,
    border: Mapping[str, Any] | None,
    shift: Mapping[str, Any] | None,
) -> dict[str, Any]:
    kept = ("name", "kind", "functional", "in", "out", "kernel", "stride", "padding", "dilation", "groups")
    costs = (
        "params",
        "shared_params",
        "macs",
        "element_ops",
        "activation_bytes",
        "training_bytes",
        "moved_bytes",
    )
    own = [row["name"]] if row["functional"] and row["name"] else []
    found = {
        **{key: row[key] for key in (*kept, *costs)},
        "inside": [*layers["inside"].get(row["name"], ()), *own],
        "grid": layers["grids"].get(row["name"], []),
        "field": None if row["receptive_field"] is None else _field(row["receptive_field"]),
        "no_field": row["no_field"],
        "uncounted": row["uncounted"],
        "ops": row["ops"],
    }
    if time is not None:
        found["seconds"] = time["time"]["median"]
        found["spread"] = [time["time"]["low"], time["time"]["high"]]
        found["bound"] = time["bound"]
        found["rate"], found["bytes"] = time["macs_per_second"], time["bytes"]
        found["of_peak"] = [time["macs_share"], time["bytes_share"]]
    return found | _measured(None if row["functional"] else border, None if row["functional"] else shift)


def _measured(border: Mapping[str, Any] | None, shift: Mapping[str, Any] | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if border is not None:
        found["border"] = border["share"] if border["local_share"] is None else border["local_share"]
        found["change"] = border["border_change"]
    if shift is not None and shift["equivariance"] is not None:
        found["shift"] = shift["equivariance"]["error"]["value"]
    return found


def _field(field: Mapping[str, Any]) -> dict[str, Any]:
    """Of a receptive field what is shown: a local one where a gate opens it to the whole image."""
    local = field["local"]
    kept = ("size", "stride", "padding", "whole", "aligned", "bounds", "reasons")
    return {key: field[key] for key in kept} | {"local": None if local is None else _field(local)}


def _costs(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Multiply-accumulates of every layer and of every module around it."""
    total: dict[str, float] = {}
    for row in rows:
        for name in {row["name"], *row["inside"]}:
            total[name] = total.get(name, 0) + row["macs"]
    return total


def _sight(found: Mapping[str, Any]) -> dict[str, Any]:
    kept = {
        "effective": (
            "file",
            "box",
            "full",
            "local",
            "position",
            "extent",
            "ratio",
            "sigma",
            "samples",
            "data",
            "local_share",
        ),
        "border": (
            "file",
            "most",
            "measured",
            "grid",
            "share",
            "local_share",
            "border_change",
            "reach_pixels",
            "note",
        ),
        "visits": ("file", "corner", "edge", "centre", "most", "size"),
    }
    return {
        kind: {key: values[key] for key in kept[kind]}
        for kind, values in found.items()
        if is_inside(values["file"])
    }


def _photo(photo: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    return photo if photo is not None and is_inside(photo["file"]) else None


def _machine(latency: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if latency is None:
        return None
    total, peak = latency["total"], latency["peak"]
    return {
        "seconds": total["median"],
        "spread": [total["low"], total["high"]],
        "threads": total["threads"],
        "device": total["device"],
        "dtype": total["dtype"],
        "rest": latency["rest"]["time"]["median"],
        "unattributed": latency["unattributed"],
        "macs": peak["macs_per_second"],
        "bytes": peak["bytes_per_second"],
        "note": latency["note"],
    }


def _shifts(consistency: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """How predictions hold when the picture rolls around."""
    if consistency is None or "circular" not in consistency["moves"]:
        return None
    pooled = consistency["moves"]["circular"]["pooled"]
    return {"agreement": pooled["agreement"], "images": consistency["images"]}
