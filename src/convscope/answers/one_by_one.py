"""1x1 convolutions: what they do to channels, whether they are linear, and what a bottleneck of them saves.

Linearity is tried on real feature maps: the best linear map from what goes in to what comes out, by least squares in
float64. Its residual is rounding where there is nothing but linear layers between, however many.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from convscope import timing
from convscope.answers.asked import Asked, needs_channels
from convscope.answers.base import Draft, fill
from convscope.answers.layers import Conv, convolutions, profile_of
from convscope.answers.running import captured, outputs
from convscope.answers.verdicts.one_by_one import chart, findings, pictures, statement, tables
from convscope.graph import record
from convscope.graph.wiring import Wiring, wiring
from convscope.measures.figures import share
from convscope.measures.measure import measure
from convscope.models import Net
from convscope.nn import Bottleneck2d
from convscope.rewrites.paired import difference
from convscope.rewrites.rewrite import rewrite

PARTS = ("layers", "linear", "mixing", "bottleneck", "widths")

_LINEAR = (
    "BatchNorm2d",
    "Identity",
    "Dropout",
    "batch_norm",
    "native_batch_norm",
    "_native_batch_norm_legit_no_training",
)
_NONE = "the network asked has no 1x1 convolution on a map; {net} was looked at instead"
_POSITIONS = 4096
_RANKS = (2, 4, 8, 16, 32)


def answer(asked: Asked) -> Draft:
    """See the module."""
    needs_channels(asked.net, asked.question.name)
    net = asked.net
    notes: tuple[str, ...] = ()
    if not _pointwise(net):
        net = asked.example("embedded")
        notes = (fill(_NONE, {"net": net.name}),)
    own = net is asked.net
    layers = asked.part("layers", lambda: _layers(net), net=net)
    linear = asked.part("linear", lambda: _linear(asked, net, own), net=net, data=own)
    mixing = asked.part("mixing", lambda: _mixing(asked, net, own), net=net, data=own)
    bottleneck = asked.part("bottleneck", lambda: _bottleneck(asked.quick), timed=True)
    fashion = asked.example("fashion")
    widths = asked.part("widths", lambda: _widths(asked, fashion), net=fashion)
    return Draft(
        statement=statement(layers, linear, bottleneck),
        findings=tuple(findings(asked, layers, linear, mixing, bottleneck, widths)),
        tables=tuple(tables(layers, bottleneck, widths)),
        pictures=pictures(mixing),
        charts=(chart(bottleneck),),
        notes=notes,
        data=linear["source"],
    )


def _pointwise(net: Net) -> list[Conv]:
    return [conv for conv in convolutions(profile_of(net)) if conv.is_pointwise]


# ---------------------------------------------------------------- measured


def _layers(net: Net) -> dict[str, Any]:
    """The 1x1 layers, and their part of the whole."""
    profile = profile_of(net)
    every = convolutions(profile)
    rows = [conv.to_dict() for conv in every if conv.is_pointwise]
    totals = {"params": profile.totals.params, "macs": profile.totals.macs}
    return {"net": net.name, "convolutions": len(every), "rows": rows, **totals}


def _linear(asked: Asked, net: Net, own: bool) -> dict[str, Any]:
    """How much of what comes out no linear map of what goes in explains: alone, with activation, in pairs."""
    names = [conv.name for conv in _pointwise(net) if "#" not in conv.name]
    wired = wiring(record(net))
    behind = {name: _behind(wired, name) for name in names}
    images = asked.images(net, 2 if asked.quick else 8, own=own)
    wanted = {*names, *(name for pair in behind.values() for name in pair if name is not None)}
    maps = captured(net, images.x, sorted(wanted))
    generator = torch.Generator().manual_seed(asked.seed)
    alone, active, pairs = [], [], []
    for name in names:
        x, y = maps[name]
        alone.append(_residual(x, y, generator))
        following, activation = behind[name]
        if activation is not None:
            active.append(_residual(x, maps[activation][1], generator))
        if following in names:
            pairs.append((name, following, _residual(x, maps[following][1], generator)))
    told = [value for value in active if value is not None]
    return {
        "alone": max((value for value in alone if value is not None), default=None),
        "layers": sum(value is not None for value in alone),
        "active": sum(told) / len(told) if told else None,
        "least": min(told, default=None),
        "activations": len(told),
        "pairs": [pair for pair in pairs if pair[2] is not None],
        "source": images.source,
    }


def _behind(wired: Wiring, name: str) -> tuple[str | None, str | None]:
    """The convolution that takes a layer's output through linear parts alone, and the activation it goes through first."""
    feeds: dict[int, list[int]] = {}
    for start, end in wired.edges:
        feeds.setdefault(start, []).append(end)
    place = next((k for k, part in enumerate(wired.parts) if part.name == name and not part.is_op), None)
    while place is not None and len(feeds.get(place, ())) == 1:
        place = feeds[place][0]
        part = wired.parts[place]
        if part.kind in _LINEAR:
            continue
        if part.is_op or "#" in part.name:
            return None, None
        is_convolution = "Conv" in part.kind
        return (part.name, None) if is_convolution else (None, part.name)
    return None, None


def _residual(x: Tensor, y: Tensor, generator: torch.Generator) -> float | None:
    """Share of y's spread that the best affine map of x at the same position leaves; None where that cannot be told."""
    if x.ndim != 4 or y.ndim != 4 or x.shape[2:] != y.shape[2:]:
        return None
    rows, columns = (t.permute(0, 2, 3, 1).flatten(0, 2) for t in (x, y))  # [position, channel]
    chosen = torch.randperm(len(rows), generator=generator)[:_POSITIONS]
    rows, columns = rows[chosen], columns[chosen]
    if len(rows) < 2 * rows.shape[1] + 2:
        return None
    rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
    fit = torch.linalg.lstsq(rows, columns, driver="gelsd").solution
    spread = float((columns - columns.mean(0)).square().sum())
    return (float((columns - rows @ fit).square().sum()) / spread) ** 0.5 if spread > 0 else None


def _mixing(asked: Asked, net: Net, own: bool) -> dict[str, Any]:
    """From how many channels each filter takes, and one filter with its largest inputs."""
    module = net.copy().double()
    rows: list[dict[str, Any]] = []
    for conv in _pointwise(net):
        part = dict(module.named_modules()).get(conv.name.partition("#")[0])
        if isinstance(part, nn.Conv2d):
            w = part.weight.flatten(1).square()  # [out, in / groups]
            effective = w.sum(1).square() / w.square().sum(1).clamp(min=1e-300)
            rows.append({"layer": conv.name, "inputs": w.shape[1], "effective": float(effective.mean())})
    shown = next((row["layer"] for row in rows if row["inputs"] >= 3 and "#" not in row["layer"]), None)
    if shown is None:
        return {"rows": rows, "shown": None}
    x, y = captured(net, asked.images(net, 1, own=own).x, [shown])[shown]
    part = module.get_submodule(shown)
    assert isinstance(part, nn.Conv2d)
    power = y[0].flatten(1).std(1)
    channel = int(power.argmax())
    first = channel // (part.out_channels // part.groups) * (part.in_channels // part.groups)
    weight = part.weight[channel].flatten()  # [in / groups]
    parts = x[0, first : first + len(weight)] * weight[:, None, None]
    top = parts.flatten(1).std(1).topk(3).indices.tolist()
    changed = _moved(part, x)
    kept = {"inputs": x[0, [first + k for k in top]].float(), "output": y[0, channel].float()}
    return {
        "rows": rows,
        "shown": shown,
        "channel": channel,
        "top": [first + k for k in top],
        "weights": [float(weight[k]) for k in top],
        "moved": changed,
        **kept,
    }


def _moved(conv: nn.Conv2d, x: Tensor) -> int:
    """Output positions that change when one input position does."""
    with torch.no_grad():
        other = x.clone()
        row, column = (
            x.shape[2] // 2 // conv.stride[0] * conv.stride[0],
            x.shape[3] // 2 // conv.stride[1] * conv.stride[1],
        )
        other[:, :, row, column] += 1
        return int((conv(other) != conv(x))[0].any(0).sum())


def _bottleneck(quick: bool) -> dict[str, Any]:
    """A 3x3 layer against 1x1, 3x3, 1x1 with fewer channels between: counts and times on this machine."""
    channels, size = 128, 28
    x = torch.randn(1, channels, size, size, generator=torch.Generator().manual_seed(0))
    plain = nn.Conv2d(channels, channels, 3, padding=1).eval()
    forms: dict[int, nn.Module] = {
        r: Bottleneck2d(channels, channels, 3, r, padding=1).eval()
        for r in (8, 16, 32, 64, 96, 112, 120, 128)
    }
    runs = {"plain": lambda: plain(x)} | {str(r): _call(form, x) for r, form in forms.items()}
    with torch.no_grad():
        times = timing.measure(runs, budget=0.6 if quick else 3.0, grain=0.002)
    cost = {"": measure(plain, input=x, fields=False, training=False).totals}
    cost |= {str(r): measure(form, input=x, fields=False, training=False).totals for r, form in forms.items()}
    rows = [
        {
            "middle": r,
            "share": r / channels,
            "macs": cost[str(r)].macs / cost[""].macs,
            "params": cost[str(r)].params / cost[""].params,
            "time": times[str(r)].over(times["plain"]).to_dict(),
        }
        for r in forms
    ]
    return {
        "channels": channels,
        "size": size,
        "rows": rows,
        "plain": times["plain"].to_dict(),
        "macs": cost[""].macs,
    }


def _call(form: nn.Module, x: Tensor) -> Any:
    return lambda: form(x)


def _widths(asked: Asked, net: Net) -> dict[str, Any]:
    """Accuracy of the embedded classifier whose 3x3 layers go through so many channels, in closed form, not retrained."""
    images = asked.images(net, 400 if asked.quick else 2000, own=False)
    assert images.labels is not None
    right = {}
    for rank in _RANKS:
        made = rewrite(net, f"bottleneck:rank={rank},where=block[23].*", seed=asked.seed)
        right[rank] = outputs(made.net, images.x).argmax(1) == images.labels
    rows = [{"width": r, "accuracy": share(hits[:, None]).to_dict()} for r, hits in right.items()]
    low, high = right[_RANKS[0]], right[_RANKS[-1]]
    gain = difference(int((low & ~high).sum()), int((high & ~low).sum()), len(low))
    return {"rows": rows, "gain": gain.to_dict(), "net": net.name, "images": len(low)}
