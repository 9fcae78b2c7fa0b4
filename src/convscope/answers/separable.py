"""Depthwise separable convolutions: what each half sees, what they save on paper and here, what they cost in accuracy."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from convscope import timing
from convscope.answers.asked import Asked, Seen, needs_channels
from convscope.answers.base import Draft, fill
from convscope.answers.layers import Conv, convolutions, profile_of
from convscope.answers.running import outputs
from convscope.answers.tuning import LEAST, Lesson, lesson, tuned
from convscope.answers.verdicts.separable import chart, findings, statement, tables
from convscope.measures.figures import share
from convscope.measures.measure import measure
from convscope.models import Net
from convscope.nn import SeparableConv2d
from convscope.rewrites.paired import difference
from convscope.rewrites.rewrite import rewrite

PARTS = ("where", "halves", "layers", "times", "converted")

_SMALL = "the embedded classifier stands in: {net} has fewer than two dense layers to convert, or no labelled images"


def answer(asked: Asked) -> Draft:
    """See the module."""
    needs_channels(asked.net, asked.question.name)
    where = asked.part("where", lambda: _where(asked.net))
    halves = asked.part("halves", lambda: _halves(asked.net))
    layers = asked.part("layers", lambda: _layers(asked.net))
    times = asked.part("times", lambda: _times(layers["rows"], asked.quick), timed=True)
    stands = asked.net
    dense = [conv for conv in convolutions(profile_of(stands)) if conv.groups == 1 and max(conv.kernel) > 1]
    if len(dense) < 2 or asked.images(stands, 2).labels is None:
        stands = asked.example("fashion")
    own = stands is asked.net
    converted = asked.part("converted", lambda: _converted(asked, stands, own), net=stands, data=own)
    return Draft(
        statement=statement(asked.net, where, layers, times, converted),
        findings=tuple(findings(asked, halves, layers, times, converted)),
        tables=tuple(tables(asked.net, where, layers, times, converted)),
        charts=(chart(),),
        notes=() if own else (fill(_SMALL, {"net": asked.net.name}),),
        data=converted["source"],
    )


# ---------------------------------------------------------------- measured


def _where(net: Net) -> dict[str, Any]:
    """Where parameters and MACs go, by kind of layer."""
    profile = profile_of(net)
    convs = {conv.name: conv for conv in convolutions(profile)}
    sums: dict[str, list[int]] = {}
    for row in profile.layers:
        if row.params or row.macs:
            one = sums.setdefault(_kind(convs.get(row.name), row.macs), [0, 0, 0])
            one[0] += 1
            one[1] += row.params
            one[2] += row.macs
    return {"kinds": sums, "params": profile.totals.params, "macs": profile.totals.macs}


def _kind(conv: Conv | None, macs: int) -> str:
    if conv is None:
        return "linear and other" if macs else "norms and other"
    if conv.is_depthwise:
        return "depthwise"
    if conv.is_pointwise:
        return "1x1"
    return "k x k" if conv.groups == 1 else "k x k, grouped"


def _halves(net: Net) -> dict[str, Any]:
    """How many channels and positions change when one number of the input does: in the network's own layers, or in a pair."""
    module = net.copy().float()
    parts = dict(module.named_modules())
    depthwise: list[dict[str, Any]] = []
    pointwise: list[dict[str, Any]] = []
    for conv in convolutions(profile_of(net)):
        part = parts.get(conv.name.partition("#")[0])
        if not isinstance(part, nn.Conv2d) or conv.is_depthwise == conv.is_pointwise:
            continue
        kept = depthwise if conv.is_depthwise else pointwise
        if len(kept) < 4:
            kept.append({"layer": conv.name, "kernel": conv.kernel, **_reach(part, conv.channels[0])})
    of_net = bool(depthwise and pointwise)
    if not of_net:
        generator = torch.Generator().manual_seed(0)
        made = SeparableConv2d(8, 16, 3, padding=1).eval()
        for parameter in made.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        first, *_, last = made.chain()
        assert isinstance(first, nn.Conv2d)
        assert isinstance(last, nn.Conv2d)
        depthwise = [{"layer": "depthwise", "kernel": [3, 3], **_reach(first, 8)}]
        pointwise = [{"layer": "pointwise", "kernel": [1, 1], **_reach(last, 8)}]
    return {"depthwise": depthwise, "pointwise": pointwise, "of_net": of_net}


def _reach(conv: nn.Conv2d, channels: int) -> dict[str, int]:
    """Output channels and positions that one number reaches, in the middle of the input channel with the largest weights."""
    size = 4 * max(conv.kernel_size) * max(conv.stride)
    power = conv.weight.square().sum((2, 3))  # [out, in / groups]
    each = conv.out_channels // conv.in_channels if conv.groups > 1 else conv.out_channels
    loudest = int(power[:, 0].argmax()) // each if conv.groups > 1 else int(power.sum(0).argmax())
    x = torch.zeros(1, channels, size, size)
    with torch.no_grad():
        base = conv(x)
        x[0, loudest, size // 2, size // 2] = 1.0
        changed = (conv(x) != base)[0]  # [out, height, width]
    return {
        "channels": int(changed.flatten(1).any(1).sum()),
        "of": len(changed),
        "positions": int(changed.any(0).sum()),
        "each": each,
    }


def _layers(net: Net) -> dict[str, Any]:
    """Counts of full and separable layers: for each k x k layer of the network, or each depthwise and 1x1 pair it has."""
    convs = convolutions(profile_of(net))
    cases = [conv for conv in convs if max(conv.kernel) > 1 and not conv.is_depthwise]
    rows = [_counted(c.name, c.channels, c.kernel, c.stride, c.before, c.groups) for c in cases]
    for first, second in pairwise(convs):
        if (
            first.is_depthwise
            and second.is_pointwise
            and max(first.kernel) > 1
            and second.before == first.after
        ):
            channels = (first.channels[0], second.channels[1])
            row = _counted(
                f"{first.name} + {second.name}", channels, first.kernel, first.stride, first.before, 1
            )
            rows.append(row | {"is_pair": True})
    return {"rows": rows}


def _counted(
    name: str,
    channels: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    size: tuple[int, int],
    groups: int,
) -> dict[str, Any]:
    """MACs and parameters of the layer and of its separable form, counted as they run on shapes."""
    full, apart = _forms(channels, kernel, stride, groups, "meta")
    x = torch.empty(1, channels[0], *size, device="meta")
    before, after = (measure(form, input=x, fields=False, training=False).totals for form in (full, apart))
    return {
        "layer": name,
        "channels": channels,
        "kernel": kernel,
        "stride": stride,
        "size": size,
        "groups": groups,
        "full_macs": before.macs,
        "macs": after.macs / before.macs,
        "params": after.params / before.params,
        "formula": 1 / channels[1] + 1 / (kernel[0] * kernel[1]),
        "is_pair": False,
    }


def _forms(
    channels: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], groups: int, device: str
) -> tuple[nn.Module, nn.Module]:
    padding = (kernel[0] // 2, kernel[1] // 2)
    full = nn.Conv2d(*channels, kernel, stride, padding, groups=groups, bias=False, device=device)
    apart = SeparableConv2d(*channels, kernel, stride, padding, bias=False, device=device)
    return full.eval(), apart.eval()


def _times(rows: list[dict[str, Any]], quick: bool) -> dict[str, Any]:
    """The dearest layers timed both ways, in turn."""
    ungrouped = [row for row in rows if row["groups"] == 1]
    dearest = sorted(ungrouped, key=lambda row: row["full_macs"], reverse=True)
    chosen = dearest[:: max(1, len(dearest) // 4)][:4] if len(dearest) > 4 else dearest
    found_ = []
    for row in chosen:
        channels, kernel, stride = (row[k] for k in ("channels", "kernel", "stride"))
        full, apart = _forms(channels, kernel, stride, 1, "cpu")
        x = torch.randn(1, channels[0], *row["size"], generator=torch.Generator().manual_seed(0))
        times = _timed(full, apart, x, 0.3 if quick else 1.5)
        ratio = times["apart"].over(times["full"])
        found_.append(
            {
                "layer": row["layer"],
                "time": ratio.to_dict(),
                "full": times["full"].median,
                "macs": row["macs"],
            }
        )
    return {"rows": found_}


def _timed(full: nn.Module, apart: nn.Module, x: Tensor, budget: float) -> dict[str, timing.Timing]:
    with torch.no_grad():
        return timing.measure(
            {"full": lambda: full(x), "apart": lambda: apart(x)}, budget=budget, grain=0.001
        )


def _converted(asked: Asked, net: Net, own: bool) -> dict[str, Any]:
    """Accuracy of a trained network whose k x k layers were made separable in closed form, before and after fine-tuning."""
    most = max(4 * asked.limit(net), 2 * LEAST)  # a dear network sees fewer
    images = asked.images(net, min(400 if asked.quick else 2000, most), own=own)
    taught = lesson(asked, net, images, own=own)
    seen, learn = taught.score, taught.learn[0]
    before = _right(net, seen)
    rows = [_row(asked, net, net, taught, before)]
    for rank in (1, 2) if asked.quick else (1, 2, 4):
        made = rewrite(
            net, f"separable:rank={rank}", data=learn[: 48 if asked.quick else 256], seed=asked.seed
        )
        layers = len([edit for edit in made.done if edit.exactness != "exact"])
        rows.append(_row(asked, net, made.net, taught, before) | {"rank": rank, "layers": layers})
    kept, *others = rows
    told = {"net": net.name, "images": len(before), "source": seen.source, "rows": others, "own": kept}
    return told | {"before": share(before[:, None]).to_dict(), "learned": len(learn)}


def _row(asked: Asked, net: Net, made: Net, taught: Lesson, before: Tensor) -> dict[str, Any]:
    """One conversion of a network: costs, and accuracy with and without fine-tuning."""
    after, totals, base = _right(made, taught.score), profile_of(made).totals, profile_of(net).totals
    row = {
        "accuracy": share(after[:, None]).to_dict(),
        "difference": _difference(before, after),
        "macs": totals.macs / base.macs,
        "params": totals.params / base.params,
        "tuned": None,
        "reason": "",
    }
    trained = tuned(asked, made, taught, epochs=4 if asked.quick else 10)
    if isinstance(trained, str):
        return row | {"reason": trained}
    learned = _right(trained, taught.score)
    return row | {
        "tuned": share(learned[:, None]).to_dict(),
        "tuned_difference": _difference(before, learned),
    }


def _right(net: Net, seen: Seen) -> Tensor:
    assert seen.labels is not None
    return outputs(net, seen.x).argmax(1) == seen.labels


def _difference(before: Tensor, after: Tensor) -> dict[str, Any]:
    return difference(int((before & ~after).sum()), int((after & ~before).sum()), len(before)).to_dict()
