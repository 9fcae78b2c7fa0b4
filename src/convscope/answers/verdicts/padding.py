"""What the figures of `answers.padding` say."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from convscope.answers.base import Chart, Finding, Picture, Verdict, fill, found
from convscope.answers.drawing import beside, grey, strip
from convscope.answers.layers import Conv, sizes
from convscope.measures.figures import Estimate, Sheet
from convscope.models import Net

KERNELS = (1, 3, 5, 7, 9, 11)
_CLAIM = "the stride is 1 and the padding is (kernel - 1) / 2 a side"


def findings(
    shapes: dict[str, Any], valid: dict[str, Any], seen: dict[str, Any], dense: dict[str, Any]
) -> list[Finding]:
    """The verdicts, from the figures."""
    return [_keeps(shapes), _borders(shapes), _same_and_valid(shapes, valid), _evens(seen), _densest(dense)]


def _keeps(shapes: dict[str, Any]) -> Finding:
    """P1, on the layers of the network where any is padded, and on a grid of geometries."""
    size = shapes["size"]
    grid = [(k, s, p, out == size) for k, s, p, out in shapes["tried"] if p]
    kept = [(k, s, p) for k, s, p, same in grid if same]
    by_rule = all(same == (s == 1 and 2 * p == k - 1) for k, s, p, same in grid)
    padded = [one for one in shapes["layers"] if one["is_padded"]]
    keeping = [one for one in padded if list(one["before"]) == list(one["after"])]
    told: dict[str, Any] = {
        "tried": len(grid),
        "kept": len(kept),
        "padded": len(padded),
        "keeping": len(keeping),
        "size": size,
    }
    test = "{tried} zero-padded geometries on a map of {size}x{size}, and the network's own {padded} padded layers"
    say = "{kept} of {tried} geometries kept {size} pixels; {keeping} of the network's {padded} padded layers keep their map's."
    if by_rule and (keeping or not padded):
        return found("P1", Verdict.WHEN, test, say, when=_CLAIM, **told)
    return found("P1", False, test, say, **told)


def _borders(shapes: dict[str, Any]) -> Finding:
    """P2: pixels a side that keep the size at stride 1."""
    need = {k: p for k, s, p, out in shapes["tried"] if s == 1 and out == shapes["size"]}
    kernels = sorted({max(one["kernel"]) for one in shapes["layers"]})
    told: dict[str, Any] = {
        "three": need.get(3),
        "five": need.get(5),
        "seven": need.get(7),
        "eleven": need.get(11),
    }
    told |= {"kernels": ", ".join(map(str, kernels))}
    doubles = told["three"] and told["five"] == 2 * told["three"] and told["seven"] == 3 * told["three"]
    return found(
        "P2",
        bool(doubles),
        "the least zero padding that keeps the size at stride 1, by kernel size",
        "A 3x3 kernel needs a border of {three}, 5x5 of {five}, 7x7 of {seven}, 11x11 of {eleven} pixels; kernels in "
        "this network are {kernels} wide.",
        **told,
    )


def _same_and_valid(shapes: dict[str, Any], valid: dict[str, Any]) -> Finding:
    """P3, with torch's own words for it."""
    size = shapes["size"]
    tried = shrinks = keeps = wide = 0
    for kernel in KERNELS:
        x, weight = (
            torch.empty(1, 1, size, size, device="meta"),
            torch.empty(1, 1, kernel, kernel, device="meta"),
        )
        if kernel > size:
            continue
        tried += 1
        wide += kernel > 1
        shrinks += functional.conv2d(x, weight, padding="valid").shape[-1] < size
        keeps += functional.conv2d(x, weight, padding="same").shape[-1] == size
    strided = [out == size for _, stride, _, out in shapes["tried"] if stride > 1]
    last, left = valid["steps"][-1] if valid["steps"] else ("", [0, 0])
    told: dict[str, Any] = {
        "tried": tried,
        "shrinks": shrinks,
        "keeps": keeps,
        "last": last,
        "left": left,
        "changed": valid["changed"],
    }
    told |= {"strided": sum(strided)}
    test = "kernels of 1 to 11 on a map of {size}x{size}, and the network with all padding taken away"
    say = "At stride 1, 'valid' shrank the map for {shrinks} of {tried} kernels, 'same' kept it for {keeps}."
    if not valid["changed"]:
        say += " The network pads nothing."
    elif valid["runs"]:
        say += " With {changed} layers unpadded the network still runs, and its last map is {left}."
    else:
        say += " With {changed} layers unpadded the network stops behind {last}, whose map is {left}."
    if shrinks == wide and keeps == tried and not any(strided):
        when = "the kernel is larger than 1x1 and the stride is 1"
        return found("P3", Verdict.WHEN, test, say, when=when, size=size, **told)
    return found("P3", shrinks == tried == keeps, test, say, size=size, **told)


def _evens(seen: dict[str, Any]) -> Finding:
    """P4: both halves of the claim."""
    bare, padded = seen["bare"], seen["padded"]
    told: dict[str, Any] = {
        "kernel": sizes(seen["kernel"]),
        "corner": round(bare["corner"]),
        "edge": bare["edge"],
        "centre": round(bare["centre"]),
        "padded": round(padded["corner"]),
        "before": bare["corner"] / bare["centre"],
        "after": padded["corner"] / padded["centre"],
    }
    test = "windows that read each pixel, counted for one {kernel} layer with and without padding"
    say = (
        "Windows that read a pixel without padding: {corner} at a corner, {edge} on average along the border, {centre} "
        "inside; with padding {padded} at a corner, where {before:.0%} of the inner count became {after:.0%}."
    )
    if seen["last"] is not None:
        told |= {"last": seen["last"], "deep": seen["whole"]["corner"]}
        test += ", and for all paths up to {last}"
        say += " Up to {last} of this network a corner of the image counts {deep:.2%} of its centre."
    once, evened = bare["edge"] <= 1.0, told["after"] > 0.95
    if once and evened:
        return found("P4", True, test, say, **told)
    if told["corner"] == 1 and told["after"] > told["before"]:
        when = "the pixel is a corner, and evening out means from {before:.0%} to {after:.0%}"
        return found("P4", Verdict.WHEN, test, say, when=when, **told)
    return found("P4", False, test, say, **told)


def _densest(dense: dict[str, Any]) -> Finding:
    """P5: the same change of padding in both kinds of network."""
    a, b = (Estimate(**dense[role]["change"]) for role in ("classifier", "dense"))
    told: dict[str, Any] = {
        "classifier": dense["classifier"]["net"],
        "network": dense["dense"]["net"],
        "a": a.value,
        "b": b.value,
        "edge": dense["edge"],
        "inside": dense["inside"],
    }
    test = "zero padding exchanged for replication in a trained classifier and in a trained network that gives a picture"
    say = (
        "The scores of {classifier} moved by {a:.1%} of their spread over images, the pictures of {network} by {b:.1%}: "
        "{edge:.1%} in the outermost row of pixels, {inside:.1%} inside."
    )
    ends = (a.low, a.high, b.low, b.high)
    apart = None not in ends and (ends[1] < ends[2] or ends[3] < ends[0])  # type: ignore[operator]
    if not apart:
        when = "the intervals of the two changes overlap"
        return found("P5", Verdict.OPEN, test, say, when=when, **told)
    return found("P5", b.value > a.value, test, say, **told)


def statement(
    net: Net, shapes: dict[str, Any], valid: dict[str, Any], border: dict[str, Any], modes: dict[str, Any]
) -> str:
    padded = [one for one in shapes["layers"] if one["is_padded"]]
    keeping = [one for one in padded if list(one["before"]) == list(one["after"])]
    told: dict[str, Any] = {
        "net": net.name,
        "padded": len(padded),
        "all": len(shapes["layers"]),
        "keeping": len(keeping),
    }
    say = (
        "{padded} of {all} convolutions of {net} are padded and {keeping} of these keep the size of their map"
    )
    if valid["changed"] and valid["steps"]:
        told |= {"last": valid["steps"][-1][0], "left": valid["steps"][-1][1], "size": net.input.size}
        say += "; without padding an image of {size} " + (
            "is {left} at the last map"
            if valid["runs"]
            else "gets no further than {last}, where {left} is left"
        )
    say += ". "
    rows = [row for row in border["rows"] if row["change"] is not None]
    changed = [row for row in modes["rows"][1:] if "same" in row]
    if rows and not any(row["share"] for row in rows):
        say += "No position depends on padding"
    elif rows:
        told |= {"layer": rows[-1]["layer"], "share": rows[-1]["share"], "change": rows[-1]["change"]}
        say += "At {layer}, {share:.0%} of the positions depend on padding, which changes them by {change:.0%} on average"
    else:
        say += "How much padding changes could not be measured here"
    if changed:
        worst = min(changed, key=lambda row: row["same"]["value"])
        told |= {"mode": worst["mode"], "other": 1 - worst["same"]["value"], "images": modes["images"]}
        say += ", and {mode} padding in place of its own changes the class of {other:.0%} of {images} images"
    return fill(say + ".", told)


def tables(
    shapes: dict[str, Any],
    valid: dict[str, Any],
    border: dict[str, Any],
    modes: dict[str, Any],
    dense: dict[str, Any],
) -> list[Sheet]:
    left = dict(valid["steps"])
    convs = [Conv.of(one) for one in shapes["layers"]]
    layers = tuple(
        (
            conv.name,
            sizes(conv.kernel),
            sizes(conv.stride),
            sizes(conv.before),
            sizes(conv.after),
            sizes(conv.valid),
            sizes(left[conv.name]) if conv.name in left else "",
        )
        for conv in convs
        if max(conv.kernel) > 1
    )
    titles = ("layer", "kernel>", "stride>", "in>", "out>", "out unpadded>", "in a network without padding>")
    tables = [Sheet("sizes, layer by layer", titles, layers)]
    if border["rows"]:
        rows = tuple(
            (row["layer"], sizes(row["grid"]), *(_percent(row[k]) for k in ("share", "at_border", "change")))
            for row in _spread(border["rows"], 12)
        )
        heads = ("layer", "positions>", "depend on padding>", "change there>", "change overall>")
        tables.append(Sheet("what padding changes", heads, rows))
    rows = tuple(
        (
            row["mode"],
            str(row.get("layers", "")),
            _estimate(row.get("change")),
            _estimate(row.get("same")),
            _estimate(row.get("accuracy")) or row.get("reason", ""),
        )
        for row in modes["rows"]
    )
    heads = ("padding", "layers changed>", "change of the output>", "same class>", "accuracy>")
    tables.append(Sheet(f"other paddings in the trained network, on {modes['source']}", heads, rows))
    return tables


def _spread(rows: list[Any], most: int) -> list[Any]:
    return rows if len(rows) <= most else [rows[i * (len(rows) - 1) // (most - 1)] for i in range(most)]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _estimate(value: dict[str, Any] | None) -> str:
    return "" if value is None else Estimate(**value).percent()


def pictures(seen: dict[str, Any], border: dict[str, Any]) -> tuple[Picture, ...]:
    maps = [grey(seen[key], 0.0, float(seen["bare_map"].max())) for key in ("bare_map", "padded_map")]
    caption = f"How often a {sizes(seen['kernel'])} layer reads each pixel: without padding, and with; white is most."
    made = [strip("visits", caption, dict(zip(("without", "with padding"), maps, strict=True)), height=192)]
    if "whole_map" in seen:
        caption = f"Paths from each pixel of the image to {seen['last']}; white is most."
        made.append(Picture("paths", caption, grey(seen["whole_map"], 0.0, 1.0)))
    if "map" in border:
        caption = f"Where the last map changes ({border['rows'][-1]['layer']}) when the image goes on in place of padding."
        made.append(Picture("border", caption, beside([grey(border["map"], 0.0)], height=192)))
    return tuple(made)


def shrinking(net: Net, shapes: dict[str, Any]) -> Chart:
    """Size of a map after so many unpadded layers."""
    size = shapes["size"]
    series = {
        f"{k}x{k}": [(float(n), float(size - n * (k - 1))) for n in range(40) if size - n * (k - 1) > 0]
        for k in KERNELS
        if k > 1
    }
    title = f"how fast 'valid' convolutions shrink a map of {size} pixels"
    return Chart("shrinking", title, "layers", "pixels left", series)
