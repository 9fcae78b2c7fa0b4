"""Pooling: what it does to moved pictures, to size, cost and parameters, and max against average on real feature maps."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from convscope.answers.asked import Asked, needs_channels
from convscope.answers.base import Draft, fill
from convscope.answers.layers import profile_of
from convscope.answers.running import captured, changes, outputs
from convscope.answers.verdicts.pooling import (
    MOVES,
    chart,
    findings,
    kinds_table,
    maps_table,
    moved_table,
    picture,
    statement,
    steady_table,
)
from convscope.data.fashion import fashion as clothes
from convscope.errors import ConvscopeError
from convscope.measures.figures import mean, share
from convscope.models import Net
from convscope.rewrites.pool import Pool
from convscope.rewrites.rewrite import rewrite

PARTS = ("moved", "cost", "maps", "noise", "kinds")

_POOLS = (nn.MaxPool2d, nn.AvgPool2d)
_OTHER = "{net} has no pooling layer but perhaps a global one; {other} was looked at instead"


def answer(asked: Asked) -> Draft:
    """See the module."""
    needs_channels(asked.net, asked.question.name)
    net = asked.net if _pools(asked.net) else asked.example("fashion")
    own = net is asked.net
    images = asked.images(net, 64 if asked.quick else 256, own=own)
    moved = asked.part("moved", lambda: _moved(asked, net, images.x[:64]), net=net, data=own)
    cost = asked.part("cost", lambda: _cost(net), net=net)
    maps = asked.part("maps", lambda: _maps(net, images.x[:16]), net=net, data=own)
    noise = asked.part("noise", lambda: _noise(asked, net, images.x[:64]), net=net, data=own)
    kinds = asked.part("kinds", lambda: _kinds(asked, net, own), net=net, data=own)
    return Draft(
        statement=statement(moved, cost, kinds),
        findings=tuple(findings(asked, moved, cost, maps, noise, kinds)),
        tables=(moved_table(moved), maps_table(maps), kinds_table(kinds), *steady_table(kinds)),
        pictures=(picture(maps),),
        charts=(chart(maps),),
        notes=() if own else (fill(_OTHER, {"net": asked.net.name, "other": net.name}),),
        data=images.source,
    )


def _pools(net: Net) -> list[str]:
    """Names of the poolings that run with a stride."""
    ran = {row.name.partition("#")[0] for row in profile_of(net).layers}
    return [
        name
        for name, part in net.module.named_modules()
        if isinstance(part, _POOLS) and name in ran and part.stride not in (1, (1, 1))
    ]


# ---------------------------------------------------------------- measured


def _moved(asked: Asked, net: Net, x: Tensor) -> dict[str, Any]:
    """How much a map changes under moves of the picture, before and behind each pooling: relative to the map itself."""
    pools = _pools(net)
    still = captured(net, x, pools, torch.float32)
    rows = []
    for move in MOVES:
        other = captured(net, _move(asked, net, x, move), pools, torch.float32)
        for name in pools:
            before, behind = (
                float(mean(_change(still[name][k], other[name][k])[:, None]).value) for k in (0, 1)
            )
            rows.append({"layer": name, "move": move, "before": before, "behind": behind})
    return {"net": net.name, "pools": pools, "rows": rows, "images": len(x)}


def _move(asked: Asked, net: Net, x: Tensor, move: str) -> Tensor:
    """Pictures moved; what comes in at a border is what was there."""
    if move.startswith("shift"):
        by = int(move.split()[2])
        return functional.pad(x, (by, 0, 0, 0), mode="replicate")[..., : x.shape[-1]]
    if move.startswith("noise"):
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(asked.seed))
        std = torch.tensor(net.input.std or (1.0,)).view(-1, 1, 1)
        return x + 0.1 / std * noise
    angle, factor = (math.radians(10), 1.0) if move.startswith("rotation") else (0.0, 1.1)
    matrix = (
        torch.tensor([[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0]])
        / factor
    )
    grid = functional.affine_grid(matrix.expand(len(x), -1, -1), list(x.shape), align_corners=False)
    return functional.grid_sample(
        x, grid.to(x.dtype), mode="bilinear", padding_mode="border", align_corners=False
    )


def _change(before: Tensor, after: Tensor) -> Tensor:
    """Relative change of the map of each image, Tensor [image]."""
    return (after - before).flatten(1).norm(dim=1) / before.flatten(1).norm(dim=1).clamp(min=1e-12)


def _cost(net: Net) -> dict[str, Any]:
    """MACs of the convolutions with the poolings, and with the positions kept that these drop; parameters of heads."""
    pools = _pools(net)
    counts = [_positions(net, pools, keep) for keep in (True, False)]
    heads = {}
    for head in ("flatten", "average"):
        both = [_small(pool, head) for pool in (True, False)]
        heads[head] = both
    module = dict(net.module.named_modules())
    own = sum(p.numel() for name in pools for p in module[name].parameters())
    return {
        "net": net.name,
        "pools": len(pools),
        "with": counts[0]["macs"],
        "without": counts[1]["macs"],
        "last": counts[0]["last"],
        "before": counts[0]["map"],
        "after": counts[1]["map"],
        "heads": heads,
        "own": own,
    }


def _positions(net: Net, pools: list[str], keep: bool) -> dict[str, Any]:
    """MACs of all convolutions and the last map, on shapes alone; without the poolings as far as the network runs."""
    module = net.copy().to("meta").float()
    if not keep:
        for name in pools:
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, nn.Identity())
    macs, seen = [0], [("", [0, 0])]

    def count(name: str) -> Any:
        def after(part: nn.Module, _: Any, output: Tensor) -> None:
            assert isinstance(part, nn.Conv2d)
            macs[0] += output.shape[2] * output.shape[3] * part.weight.numel()
            seen.append((name, list(output.shape[2:])))

        return after

    for name, part in module.named_modules():
        if isinstance(part, nn.Conv2d):
            part.register_forward_hook(count(name))
    try:
        with torch.no_grad():
            module(torch.empty(1, *net.input.shape, device="meta"))
    except Exception:  # a fully-connected head does not fit the larger map: it is no convolution
        assert not keep
    return {"macs": macs[0], "last": seen[-1][0], "map": seen[-1][1]}


def _small(pool: bool, head: str) -> int:
    """Parameters of a network of two 3x3 layers and a head, with 2x2 poolings or without."""
    side = 28 // 4 if pool else 28
    parts: list[nn.Module] = []
    for before, after in ((1, 16), (16, 32)):
        parts += [nn.Conv2d(before, after, 3, padding=1), nn.MaxPool2d(2) if pool else nn.Identity()]
    parts += [nn.AdaptiveAvgPool2d(1)] if head == "average" else []
    parts += [nn.Flatten(), nn.Linear(32 if head == "average" else 32 * side * side, 10)]
    module = nn.Sequential(*parts)
    with torch.no_grad():
        assert module(torch.zeros(1, 1, 28, 28)).shape == (1, 10)
    return sum(p.numel() for p in module.parameters())


def _maps(net: Net, x: Tensor) -> dict[str, Any]:
    """Max and average pooling at several windows on what the first pooling takes: peaks and smoothness."""
    name = _pools(net)[0]
    before = captured(net, x, [name], torch.float32)[name][0].relu()  # [image, channel, height, width]
    rows = []
    peak, steps = before.amax((2, 3)), _steps(before)
    for window in (2, 3, 4, 8):
        if window > min(before.shape[2:]):
            continue
        for kind, pool in (("max", functional.max_pool2d), ("average", functional.avg_pool2d)):
            after = pool(before, window)
            kept = float(after.amax((2, 3)).sum() / peak.sum().clamp(min=1e-12))
            rows.append(
                {"kind": kind, "window": window, "peak": kept, "steps": _steps(after) / max(steps, 1e-12)}
            )
    loud = int(before.flatten(2).std(2).mean(0).argmax())
    others = {
        "fractional": _fractional(before),
        "stride": before[..., ::2, ::2],
        "global max": before.amax((2, 3), keepdim=True),
        "global average": before.mean((2, 3), keepdim=True),
    }
    return {
        "layer": name,
        "rows": rows,
        "others": [
            {
                "kind": kind,
                "size": list(after.shape[2:]),
                "peak": float(after.amax((2, 3)).sum() / peak.sum().clamp(min=1e-12)),
                "steps": _steps(after) / max(steps, 1e-12) if min(after.shape[2:]) > 1 else None,
            }
            for kind, after in others.items()
        ],
        "channel": loud,
        "map": before[0, loud],
        "maximum": functional.max_pool2d(before, 2)[0, loud],
        "average": functional.avg_pool2d(before, 2)[0, loud],
        "fractional": others["fractional"][0, loud],
        "stride": others["stride"][0, loud],
    }


def _fractional(x: Tensor) -> Tensor:
    """Maxima of windows of two whose places advance by less: the map keeps 0.7 of its sides."""
    places = torch.full((*x.shape[:2], 2), 0.5, dtype=x.dtype)  # in place of chance
    shrunk = functional.fractional_max_pool2d(x, 2, output_ratio=(0.7, 0.7), _random_samples=places)
    assert isinstance(shrunk, Tensor)
    return shrunk


def _steps(x: Tensor) -> float:
    """Power of the steps between neighbours, relative to the map's spread."""
    power = (x[..., 1:] - x[..., :-1]).square().mean() / 2 + (
        x[..., 1:, :] - x[..., :-1, :]
    ).square().mean() / 2
    return float(power / x.var().clamp(min=1e-12))


def _noise(asked: Asked, net: Net, x: Tensor) -> dict[str, Any]:
    """How well a global maximum and a global average tell that something was added: at one position, or at all.

    The maps are what the first pooling takes. What is added is once a channel's standard deviation at all positions, or
    ten times at one; told is the mean difference in units of the spread between images (d').
    """
    name = _pools(net)[0]
    before = captured(net, x, [name], torch.float32)[name][0].relu().flatten(2)  # [image, channel, position]
    alive = before.std((0, 2)) > 1e-6
    maps = before[:, alive]
    scale = maps.std((0, 2))[:, None]
    generator = torch.Generator().manual_seed(asked.seed)
    at = torch.randint(maps.shape[2], (len(maps), 1, 1), generator=generator).expand(-1, maps.shape[1], 1)
    one = maps.scatter_add(2, at, 10 * scale.expand(len(maps), -1, 1))
    every = maps + scale
    told = {}
    for kind, reduce in (("max", lambda m: m.amax(2)), ("average", lambda m: m.mean(2))):
        base = reduce(maps)  # [image, channel]
        spread = base.std(0).clamp(min=1e-6)
        told[kind] = {
            "one": float(((reduce(one) - base).mean(0) / spread).median()),
            "all": float(((reduce(every) - base).mean(0) / spread).median()),
        }
    return {"layer": name, "channels": int(alive.sum()), "images": len(x), **told}


def _kinds(asked: Asked, net: Net, own: bool) -> dict[str, Any]:
    """The trained network with other poolings in place of its own, not retrained."""
    some = asked.limit(net)  # a dear network sees fewer
    images = asked.images(net, min(300 if asked.quick else 2000, 3 * some), own=own)
    fitted = None
    if asked.data is None or not own:
        fitted = net.input.normalize(clothes("train")[0][:64]) if net.input.shape == (1, 28, 28) else None
    before = outputs(net, images.x)
    few = images.x[: min(48 if asked.quick else 256, some)]
    moves = {move: _move(asked, net, few, move) for move in MOVES} if before.ndim == 2 else {}
    rows = [_row("as it is", before, before, images.labels, net) | _steady(net, few, moves)]
    for kind in ("max", "average", "strided", "blur", "moved", "none"):
        try:
            made = rewrite(net, Pool(kind), data=fitted if kind == "strided" else None, seed=asked.seed)
        except ConvscopeError as error:
            rows.append({"kind": kind, "reason": str(error)})
            continue
        if made.done:
            row = _row(kind, before, outputs(made.net, images.x), images.labels, made.net)
            rows.append(row | _steady(made.net, few, moves))
    return {
        "net": net.name,
        "rows": rows,
        "source": images.source,
        "images": len(images.x),
        "moved": len(few),
    }


def _steady(net: Net, x: Tensor, moves: dict[str, Tensor]) -> dict[str, Any]:
    """How often a network's class stays under each move of the pictures."""
    if not moves:
        return {}
    still = outputs(net, x).argmax(1)
    return {
        "steady": {
            move: share((outputs(net, other).argmax(1) == still)[:, None]).to_dict()
            for move, other in moves.items()
        }
    }


def _row(kind: str, before: Tensor, after: Tensor, labels: Tensor | None, net: Net) -> dict[str, Any]:
    row: dict[str, Any] = {
        "kind": kind,
        "params": net.parameters_count,
        "macs": profile_of(net).totals.macs,
        "change": mean(changes(before, after)[:, None]).to_dict(),
    }
    if before.ndim == 2:
        row["same"] = share((before.argmax(1) == after.argmax(1))[:, None]).to_dict()
        if labels is not None:
            row["accuracy"] = share((after.argmax(1) == labels)[:, None]).to_dict()
    return row
