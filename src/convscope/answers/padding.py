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
from convscope.answers.base import Draft
from convscope.answers.layers import convolutions, profile_of
from convscope.answers.running import changes, outputs
from convscope.answers.verdicts.padding import KERNELS, findings, pictures, shrinking, statement, tables
from convscope.errors import ConvscopeError
from convscope.measures.border import border_effect
from convscope.measures.figures import mean, share
from convscope.measures.visits import visits
from convscope.models import Net
from convscope.rewrites.base import Refused
from convscope.rewrites.convolution import Convolution
from convscope.rewrites.rewrite import rewrite
from convscope.rewrites.work import place

PARTS = ("shapes", "valid", "visits", "border", "modes", "dense")

_MODES = ("reflect", "replicate", "circular", "partial")


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
        statement=statement(asked.net, shapes, valid, border, modes),
        findings=tuple(findings(shapes, valid, seen, dense)),
        tables=tuple(tables(shapes, valid, border, modes, dense)),
        pictures=pictures(seen, border),
        charts=(shrinking(asked.net, shapes),),
        data=modes["source"],
    )


# ---------------------------------------------------------------- measured


def _shapes(net: Net) -> dict[str, Any]:
    """Sizes that torch's own convolutions give for many geometries, and those of the network's layers."""
    size = min(net.input.size)
    tried = []
    for kernel in KERNELS:
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
    for name, padding in (("bare", (0, 0)), ("padded", (wide[0] // 2, wide[1] // 2))):
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
