"""Padding: what it does to sizes, to how often a pixel is read, and to what a network answers.

Shapes are those of convolutions that really ran; visit counts follow the executed graph; modes are exchanged in the
trained network by `rules.Padding`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from convscope.answers.asked import Asked, Seen, needs_channels
from convscope.answers.base import Chart, Draft, Finding, Picture, Verdict, fill, found
from convscope.answers.drawing import beside, grey
from convscope.answers.layers import Conv, convolutions, profile_of, sizes
from convscope.answers.running import changes, outputs
from convscope.errors import ConvscopeError
from convscope.measures.border import border_effect
from convscope.measures.figures import Estimate, Sheet, mean, share
from convscope.measures.visits import visits
from convscope.models import Net
from convscope.rewrites.base import Refused
from convscope.rewrites.convolution import Convolution
from convscope.rewrites.rewrite import rewrite
from convscope.rewrites.work import place

PARTS = ("shapes", "valid", "visits", "border", "modes", "dense")

_KERNELS = (1, 3, 5, 7, 9, 11)
_MODES = ("reflect", "replicate", "circular", "partial")
_CLAIM = "the stride is 1 and the padding is (kernel - 1) / 2 a side"


def answer(asked: Asked) -> Draft:
    """See the module."""
    needs_channels(asked.net, asked.question.name)
    shapes = asked.part("shapes", lambda: _shapes(asked.net))
    valid = asked.part("valid", lambda: _without(asked.net))
    seen = asked.part("visits", lambda: _visits(asked.net, shapes["layers"]))
    border = asked.part("border", lambda: _border(asked), data=True)
    modes = asked.part("modes", lambda: _modes(asked), data=True)
    dense = asked.part("dense", lambda: _dense(asked), data=True)
    return Draft(
        statement=_statement(asked.net, shapes, valid, border, modes),
        findings=tuple(findings(shapes, valid, seen, dense)),
        tables=tuple(_tables(shapes, valid, border, modes, dense)),
        pictures=_pictures(seen, border),
        charts=(_shrinking(asked.net, shapes),),
        data=modes["source"],
    )


# ---------------------------------------------------------------- measured


def _shapes(net: Net) -> dict[str, Any]:
    """Sizes that torch's own convolutions give for many geometries, and those of the network's layers."""
    size = min(net.input.size)
    tried = []
    for kernel in _KERNELS:
        for stride in (1, 2):
            for padding in range(6):
                x = torch.empty(1, 1, size, size, device="meta")
                if size + 2 * padding >= kernel:
                    weight = torch.empty(1, 1, kernel, kernel, device="meta")
                    y = functional.conv2d(x, weight, stride=stride, padding=padding)
                    tried.append((kernel, stride, padding, y.shape[-1]))
    layers = [conv.to_dict() for conv in convolutions(profile_of(net))]
    return {"size": size, "tried": tried, "layers": layers}


def _without(net: Net) -> dict[str, Any]:
    """How far a copy of the network runs when no convolution is padded: shapes alone."""
    module = net.copy().to("meta").float()
    changed = 0
    for name, part in list(module.named_modules()):
        if isinstance(part, nn.Conv2d):
            try:
                conv = Convolution.of(part)
            except Refused:
                continue
            if conv.padding != ((0, 0), (0, 0)):
                place(module, name, conv.with_(padding=((0, 0), (0, 0)), mode="zeros").module().float())
                changed += 1
    steps: list[tuple[str, list[int]]] = []

    def keep(name: str) -> Any:
        def after(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 4:
                steps.append((name, list(output.shape[2:])))

        return after

    for name, part in module.named_modules():
        if isinstance(part, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            part.register_forward_hook(keep(name))
    reason = ""
    try:
        with torch.no_grad():
            module(torch.empty(1, *net.input.shape, device="meta"))
    except Exception as error:  # the network's own code, given maps of sizes it was not made for
        reason = " ".join(str(error).split())[:160]
    return {"changed": changed, "steps": steps, "runs": not reason, "reason": reason}


def _visits(net: Net, layers: list[dict[str, Any]]) -> dict[str, Any]:
    """How often the corner, the edge and the centre of a map are read: by one layer, and by all of the network."""
    size = min(max(min(net.input.size), 8), 32)
    wide = next((one["kernel"] for one in layers if max(one["kernel"]) > 1), [3, 3])
    found_: dict[str, Any] = {"kernel": wide}
    for name, padding in (("bare", 0), ("padded", [k // 2 for k in wide])):
        conv = nn.Conv2d(1, 1, tuple(wide), padding=padding)
        counted = visits(nn.Sequential(conv), "0", input=torch.zeros(1, 1, size, size))
        found_[name] = {k: getattr(counted, k) for k in ("corner", "edge", "centre")}
        found_[f"{name}_map"] = counted.counts
    last = next((one["name"] for one in reversed(layers) if min(one["after"]) > 1), None)
    found_["last"] = last
    if last is not None:
        try:
            whole = visits(net, last)
        except ConvscopeError:
            found_["last"] = None  # too many paths, or none that can be counted
        else:
            found_["whole"] = {"corner": whole.corner / whole.centre, "edge": whole.edge / whole.centre}
            found_["whole_map"] = (whole.counts / whole.counts.max()).float()
    return found_


def _border(asked: Asked) -> dict[str, Any]:
    """How much of each layer touches padding, and how much it changes there."""
    data = asked.data if asked.data is not None else _own_images(asked)
    try:
        measured = border_effect(asked.net, data, samples=2 if asked.quick else 8, seed=asked.seed)
    except ConvscopeError as error:
        return {"rows": [], "reason": str(error)}
    rows = []
    deepest = None
    for name, row in measured.layers.items():
        if len(row.grid) == 2 and min(row.grid) > 1:
            rows.append(
                {
                    "layer": name,
                    "grid": row.grid,
                    "share": row.share if row.local_share is None else row.local_share,
                    "change": row.change,
                    "at_border": row.border_change,
                }
            )
            deepest = row.change_map if row.change_map is not None else deepest
    kept: dict[str, Any] = {"rows": rows, "reason": ""}
    return kept if deepest is None else kept | {"map": deepest.float()}


def _own_images(asked: Asked) -> Any:
    """What `border_effect` is fed where no images were given: clothes cannot be extended, so photographs."""
    return None if asked.net.input.channels in (1, 3) else asked.net.input.example(8, seed=asked.seed)


def _modes(asked: Asked) -> dict[str, Any]:
    """The trained network with other paddings: how often it answers the same, and how often right."""
    images = asked.images(asked.net)
    before = outputs(asked.net, images.x)
    rows = [_row("as it is", before, before, images)]
    for mode in _MODES:
        try:
            made = rewrite(asked.net, f"padding:{mode}", seed=asked.seed)
        except ConvscopeError as error:
            rows.append({"mode": mode, "layers": 0, "reason": str(error)})
            continue
        if made.done:
            after = outputs(made.net, images.x)
            rows.append(_row(mode, before, after, images) | {"layers": len(made.done)})
    return {
        "rows": rows,
        "source": images.source,
        "images": len(images.x),
        "right": images.labels is not None,
    }


def _row(mode: str, before: Tensor, after: Tensor, images: Seen) -> dict[str, Any]:
    row: dict[str, Any] = {"mode": mode, "change": mean(changes(before, after)[:, None]).to_dict()}
    if before.ndim == 2 and before.shape[1] > 1:
        first, second = before.argmax(1), after.argmax(1)
        row["same"] = share((first == second)[:, None]).to_dict()
        if images.labels is not None:
            row["accuracy"] = share((second == images.labels)[:, None]).to_dict()
    return row


def _dense(asked: Asked) -> dict[str, Any]:
    """The same change of padding in a classifier and in a network that gives a picture."""
    told: dict[str, Any] = {}
    is_dense = outputs(asked.net, asked.images(asked.net, 1).x).ndim == 4
    pairs = {
        "classifier": asked.example("fashion") if is_dense else asked.net,
        "dense": asked.net if is_dense else asked.example("fashion-decoder"),
    }
    for role, net in pairs.items():
        own = net is asked.net
        x = asked.images(net, own=own).x
        before = outputs(net, x)
        after = outputs(rewrite(net, "padding:replicate", seed=asked.seed).net, x)
        told[role] = {"net": net.name, "change": mean(changes(before, after)[:, None]).to_dict()}
        if role == "dense":
            difference = (after - before).square().sum(1).mean(0).sqrt()  # [height, width]
            edge = torch.ones_like(difference, dtype=torch.bool)
            edge[1:-1, 1:-1] = False
            scale = before.square().sum(1).mean().sqrt()
            told["edge"] = float(difference[edge].square().mean().sqrt() / scale)
            told["inside"] = float(difference[~edge].square().mean().sqrt() / scale)
    return told


# ---------------------------------------------------------------- told


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
    told = {
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
    told = {"three": need.get(3), "five": need.get(5), "seven": need.get(7), "eleven": need.get(11)}
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
    for kernel in _KERNELS:
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
    told = {
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
    told = {
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
    told = {
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
    apart = None not in (a.low, b.low) and (a.high < b.low or b.high < a.low)  # type: ignore[operator]
    if not apart:
        when = "the intervals of the two changes overlap"
        return found("P5", Verdict.OPEN, test, say, when=when, **told)
    return found("P5", b.value > a.value, test, say, **told)


def _statement(
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
        say += "; without padding an image of {size} is " + (
            "{left} at the last map" if valid["runs"] else "used up at {last}, where {left} is left"
        )
    say += ". "
    rows = [row for row in border["rows"] if row["change"] is not None]
    changed = [row for row in modes["rows"][1:] if "same" in row]
    if rows:
        told |= {"layer": rows[-1]["layer"], "share": rows[-1]["share"], "change": rows[-1]["change"]}
        say += "At {layer}, {share:.0%} of the positions depend on padding, which changes them by {change:.0%} on average"
    else:
        say += "How much padding changes could not be measured here"
    if changed:
        worst = min(changed, key=lambda row: row["same"]["value"])
        told |= {"mode": worst["mode"], "other": 1 - worst["same"]["value"], "images": modes["images"]}
        say += ", and {mode} padding in place of its own changes the class of {other:.0%} of {images} images"
    return fill(say + ".", told)


def _tables(
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


def _pictures(seen: dict[str, Any], border: dict[str, Any]) -> tuple[Picture, ...]:
    maps = [grey(seen[key], 0.0, float(seen["bare_map"].max())) for key in ("bare_map", "padded_map")]
    caption = f"How often a {sizes(seen['kernel'])} layer reads each pixel: without padding, and with; white is most."
    made = [Picture("visits", caption, beside(maps, height=192))]
    if "whole_map" in seen:
        caption = f"Paths from each pixel of the image to {seen['last']}; white is most."
        made.append(Picture("paths", caption, grey(seen["whole_map"], 0.0, 1.0)))
    if "map" in border:
        caption = f"Where the last map changes ({border['rows'][-1]['layer']}) when the image goes on in place of padding."
        made.append(Picture("border", caption, beside([grey(border["map"], 0.0)], height=192)))
    return tuple(made)


def _shrinking(net: Net, shapes: dict[str, Any]) -> Chart:
    """Size of a map after so many unpadded layers."""
    size = shapes["size"]
    series = {
        f"{k}x{k}": [(float(n), float(size - n * (k - 1))) for n in range(40) if size - n * (k - 1) > 0]
        for k in _KERNELS
        if k > 1
    }
    title = f"how fast 'valid' convolutions shrink a map of {size} pixels"
    return Chart("shrinking", title, "layers", "pixels left", series)
