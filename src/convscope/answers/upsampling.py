"""Upsampling: what each way does to one map, what it brings back, what it costs, and how it does inside a trained decoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from convscope import timing
from convscope.answers.asked import Asked, needs_channels
from convscope.answers.base import Draft, fill
from convscope.answers.layers import profile_of
from convscope.answers.running import captured, changes, outputs
from convscope.answers.verdicts.upsampling import (
    UNTRAINED,
    WAYS,
    decoder_table,
    findings,
    pictures,
    statement,
    table,
)
from convscope.data import photographs
from convscope.data.fashion import fashion as clothes
from convscope.data.fashion import noisy
from convscope.errors import ConvscopeError
from convscope.measures.figures import mean
from convscope.models import Net
from convscope.nn import BilinearUpsample2d, MaxUnpool2d, SwitchedMaxPool2d, TransposedConv2d, upsample2d
from convscope.nn.checkerboard import checkerboard
from convscope.rewrites.convolutionalize import Convolutionalize
from convscope.rewrites.rewrite import rewrite
from convscope.rewrites.upsample import Upsample
from convscope.studies.data import dataset
from convscope.studies.finetune import finetune

PARTS = ("layers", "exact", "recovered", "times", "dense", "decoder", "speed")

_OTHER = "{net} has no upsampling layer; {other} was looked at instead"


def answer(asked: Asked) -> Draft:
    """See the module."""
    needs_channels(asked.net, asked.question.name)
    layers = asked.part("layers", lambda: _layers(asked.net))
    net = asked.net if layers["rows"] else asked.example("fashion-decoder")
    own = net is asked.net
    exact = asked.part("exact", _exact)
    recovered = asked.part("recovered", lambda: _recovered(_maps(asked)), data=True)
    times = asked.part("times", lambda: _times(asked.quick), timed=True)
    classifier = asked.example("fashion")
    dense = asked.part("dense", lambda: _dense(classifier), net=classifier)
    decoder = asked.part("decoder", lambda: _decoder(asked, net, own), net=net, data=own)
    speed = asked.part("speed", lambda: _speed(asked, net), net=net, timed=True)
    return Draft(
        statement=statement(recovered, times, decoder),
        findings=tuple(findings(asked, exact, recovered, times, dense, decoder)),
        tables=(table(recovered, times), decoder_table(decoder, speed)),
        pictures=pictures(recovered, decoder),
        notes=() if own else (fill(_OTHER, {"net": asked.net.name, "other": net.name}),),
        data=f"{recovered['source']}; {decoder['source']}",
    )


# ---------------------------------------------------------------- measured


def _layers(net: Net) -> dict[str, Any]:
    """Calls of the network that enlarge a map."""
    rows = [
        {"layer": row.name, "kind": row.kind, "before": row.in_shape[2:], "after": row.out_shape[2:]}
        for row in profile_of(net).layers
        if len(row.in_shape) == len(row.out_shape) == 4
        and row.out_shape[2] > row.in_shape[2] >= 1
        and not row.functional
        and ("psample" in row.kind or "Transpose" in row.kind or "Unpool" in row.kind or "Nails" in row.kind)
    ]
    return {"rows": rows}


def _exact() -> dict[str, Any]:
    """Each way against its definition, on random maps."""
    x = torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    nearest = upsample2d("nearest", 3)(x)
    nails = upsample2d("bed_of_nails", 3)(x)
    places = torch.zeros_like(nearest)
    places[:, :, ::2, ::2] = x
    pool = SwitchedMaxPool2d(2)
    pooled, switches = pool.pool(x)
    back = MaxUnpool2d(2)(pooled, switches)
    block = x.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)  # [batch, channel, row, column, 4]
    top = block.argmax(4)
    rows = 2 * torch.arange(3)[:, None] + top // 2
    columns = 2 * torch.arange(4) + top % 2
    expected = torch.zeros_like(x)
    expected.view(2, 3, -1).scatter_(2, (rows * 8 + columns).flatten(2), block.amax(4).flatten(2))
    grid = []
    for kernel in (2, 3, 4):
        for stride in (1, 2, 3):
            for padding in (0, 1):
                y = nn.ConvTranspose2d(1, 1, kernel, stride, padding)(torch.zeros(1, 1, 7, 7))
                grid.append((kernel, stride, padding, y.shape[-1], (7 - 1) * stride - 2 * padding + kernel))
    return {
        "nearest": bool(torch.equal(nearest, x.repeat_interleave(2, 2).repeat_interleave(2, 3))),
        "nails": bool(torch.equal(nails, places)),
        "filled": float((nails != 0).double().mean()),
        "unpooled": bool(torch.equal(back, expected)),
        "kept": int((back != 0).sum()),
        "pooled": pooled.numel(),
        "grid": grid,
        **_bilinear(),
    }


def _bilinear() -> dict[str, Any]:
    """How many pixels each output of bilinear upsampling reads, whether their weights sum to one and fall with distance."""
    side = 6
    x = torch.eye(side * side, dtype=torch.float64).reshape(side * side, 1, side, side)  # one pixel each
    weights = BilinearUpsample2d(2)(x)[:, 0, 2:-2, 2:-2]  # [pixel, row, column], away from the border
    read = (weights > 0).sum(0)
    at = torch.arange(2, 2 * side - 2)
    centre = (at + 0.5) / 2 - 0.5
    distance = (torch.arange(side)[:, None] - centre[None]).abs()  # [pixel, output]
    tent = (1 - distance).clamp(min=0)  # [pixel, output]
    expected = torch.einsum("ij,kl->ikjl", tent, tent).reshape(side * side, len(at), len(at)).double()
    return {
        "read": [int(read.min()), int(read.max())],
        "sum": float((weights.sum(0) - 1).abs().max()),
        "tent": float((weights - expected).abs().max()),
    }


def _maps(asked: Asked) -> tuple[Tensor, str]:
    """Pictures in [0, 1] with even sides."""
    if isinstance(asked.data, Tensor):
        x, source = asked.net.input.denormalize(asked.data[:12]), "images of a tensor"
    elif asked.data is None:
        x = torch.stack(
            [photo.image()[:, :192, :192] for photo in photographs() if min(photo.image().shape[1:]) >= 192]
        )
        source = f"{len(x)} embedded photographs"
    else:
        spec = asked.net.input.with_size(192, 192)
        x = torch.cat([batch.images for batch in asked.data.batches(spec, 16)])[:12]
        source = f"{len(x)} images"
    return x[..., : x.shape[-2] // 2 * 2, : x.shape[-1] // 2 * 2].float(), source


def _recovered(given: tuple[Tensor, str]) -> dict[str, Any]:
    """What is still missing after 2x2 max pooling and each way back, as a share of the pictures' spread."""
    x, source = given
    channels = x.shape[1]
    spread = (x - x.mean((2, 3), keepdim=True)).square().mean((1, 2, 3))
    pool = SwitchedMaxPool2d(2)
    pooled, switches = pool.pool(x)
    rows: list[dict[str, Any]] = []
    shown: dict[str, Any] = {}
    for way in UNTRAINED:
        with torch.no_grad():
            y = MaxUnpool2d(2)(pooled, switches) if way == "max_unpool" else _layer(way, channels)(pooled)
        missing = (y - x).square().mean((1, 2, 3)) / spread.clamp(min=1e-12)
        roughness = (y[..., 1:] - y[..., :-1]).square().mean() / (
            x[..., 1:] - x[..., :-1]
        ).square().mean().clamp(min=1e-12)
        exact = float((y == x).float().mean())
        rows.append(
            {
                "way": way,
                "missing": mean(missing[:, None]).to_dict(),
                "exact": exact,
                "rough": float(roughness),
            }
        )
        shown[way] = y[0].mean(0)[:64, :64].float()
    return {"rows": rows, "source": source, "original": x[0].mean(0)[:64, :64], **shown}


def _layer(way: str, channels: int) -> nn.Module:
    """A layer that keeps channels apart; a transposed convolution starts as bilinear interpolation."""
    if way == "transposed":
        return TransposedConv2d(channels, channels, 4, 2, 1, groups=channels, bias=False, start="bilinear")
    return upsample2d(way, channels)


def _times(quick: bool) -> dict[str, Any]:
    """Every way on 32 channels of 56x56, timed in turn, with its parameters."""
    channels, size = 32, 56
    x = torch.randn(1, channels, size, size, generator=torch.Generator().manual_seed(0))
    pool = SwitchedMaxPool2d(2)
    small, switches = pool.pool(
        torch.randn(1, channels, 2 * size, 2 * size, generator=torch.Generator().manual_seed(1))
    )
    unpool = MaxUnpool2d(2)
    forms = {way: upsample2d(way, channels).eval() for way in WAYS if way != "max_unpool"}
    runs: dict[str, Any] = {way: _call(form, x) for way, form in forms.items()}
    runs["max_unpool"] = lambda: unpool(small, switches)
    with torch.no_grad():
        taken = timing.measure(runs, budget=0.6 if quick else 3.0, grain=0.001)
    rows = [
        {
            "way": way,
            "time": taken[way].to_dict(),
            "over": taken[way].over(taken["nearest"]).to_dict(),
            "params": sum(p.numel() for p in forms[way].parameters()) if way in forms else 0,
        }
        for way in WAYS
    ]
    taps = [
        {"kernel": k, "stride": s, "taps": ", ".join(str(n) for row in checkerboard(k, s).taps for n in row)}
        for k, s in ((3, 2), (4, 2))
    ]
    return {"rows": rows, "channels": channels, "size": size, "taps": taps}


def _call(form: nn.Module, x: Tensor) -> Any:
    return lambda: form(x)


def _dense(net: Net) -> dict[str, Any]:
    """A classifier evaluated at every pixel, without any upsampling: its strides moved into dilation."""
    made = rewrite(net, Convolutionalize(stride=1)).net
    height, width = net.input.size
    x = net.input.with_size(height + 8, width + 8)
    with torch.no_grad():
        shape = made.module(x.example()).shape
    coarse = rewrite(net, Convolutionalize()).net
    costs = [profile_of(Net(one.module, x)).totals.macs for one in (made, coarse)]
    layers = len(_layers(Net(made.module, x))["rows"])
    return {"net": net.name, "size": x.size, "map": shape[2:], "layers": layers, "macs": costs[0] / costs[1]}


def _decoder(asked: Asked, net: Net, own: bool) -> dict[str, Any]:
    """The network with every other way in place of its own; where targets are at hand also fine-tuned, all alike."""
    embedded = net.source in ("fashion-decoder", "embedded:fashion-decoder") and (
        asked.data is None or not own
    )
    target = None
    if embedded:
        clean = clothes("test")[0][: 100 if asked.quick else 500]
        x, target = net.input.normalize(noisy(clean, seed=asked.seed)), clean
        source = f"{len(x)} noisy test images of Fashion-MNIST"
    else:
        images = asked.images(net, 32 if asked.quick else 200, own=own)
        x, source = images.x, images.source
    before = outputs(net, x)
    data = dataset("fashion-denoise", limit=300 if asked.quick else None) if target is not None else None
    up = _layers(net)["rows"][-1]["layer"].partition("#")[0]
    rows: list[dict[str, Any]] = []
    shown: dict[str, Tensor] = {}
    for way, made in _exchanged(asked, net).items():
        if isinstance(made, str):
            rows.append({"way": way, "reason": made})
            continue
        after = outputs(made, x)
        row, maps = _row(way, before, after, target, made), _maps_of(made, up, x)
        row["ripple"] = _ripple(*maps)
        if data is not None:
            tuned = finetune(made, data, epochs=3 if asked.quick else 10, batch=32, seed=asked.seed)
            after, maps = outputs(tuned, x), _maps_of(tuned, up, x)
            assert target is not None
            row["tuned"] = mean((after - target).square().flatten(1)).to_dict()
            row["tuned_ripple"] = _ripple(*maps)
        rows.append(row)
        shown |= _shown(way, after, *maps)
    told = {"net": net.name, "rows": rows, "source": source, "up": up, **shown}
    if target is not None:
        told |= {"noisy": net.input.denormalize(x[0])[0], "clean": target[0, 0], "learned": len(data.train)}  # type: ignore[union-attr]
    return told


def _exchanged(asked: Asked, net: Net) -> dict[str, Net | str]:
    """The network as it is, and with each way in place of its own; or why not."""
    found: dict[str, Net | str] = {"as it is": net}
    for way in WAYS:
        try:
            made = rewrite(net, Upsample(way), seed=asked.seed)
        except ConvscopeError as error:
            found[way] = str(error)
        else:
            found[way] = made.net if made.done else str(made.refused[0].reason)
    return found


def _row(way: str, before: Tensor, after: Tensor, target: Tensor | None, made: Net) -> dict[str, Any]:
    row: dict[str, Any] = {
        "way": way,
        "params": made.parameters_count,
        "macs": profile_of(made).totals.macs,
        "change": mean(changes(before, after)[:, None]).to_dict(),
    }
    if target is not None:
        row["error"] = mean((after - target).square().flatten(1)).to_dict()
    return row


def _maps_of(made: Net, layer: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """The map that an upsampling layer takes, and the one it gives."""
    return captured(made, x[:16], [layer], torch.float32)[layer]


def _ripple(before: Tensor, after: Tensor) -> float:
    """Checkerboard of a map: how far the means of the pixels at each place of a period are apart, of the map's spread."""
    down, right = (max(1, after.shape[k] // before.shape[k]) for k in (2, 3))
    means = torch.stack(
        [after[..., i::down, j::right].mean((2, 3)) for i in range(down) for j in range(right)]
    )
    return float((means.std(0, correction=0) / after.std((2, 3)).clamp(min=1e-12)).mean())


def _shown(way: str, output: Tensor, before: Tensor, after: Tensor) -> dict[str, Tensor]:
    """The livelier channel of the first image's map before and behind the upsampling, and the output."""
    channel = int(after[0].flatten(1).std(1).argmax())
    same = before.shape[1] == after.shape[1]
    told = {f"map {way}": after[0, channel], f"out {way}": output[0].mean(0)}
    return told | {"map": before[0, channel]} if way == "as it is" and same else told


def _speed(asked: Asked, net: Net) -> dict[str, Any]:
    """Time of the whole network with each way, in turn."""
    made = {way: one for way, one in _exchanged(asked, net).items() if isinstance(one, Net)}
    x = net.input.example(1, seed=asked.seed)
    with torch.no_grad():
        taken = timing.measure(
            {way: _call(one.copy(), x) for way, one in made.items()},
            budget=0.4 if asked.quick else 3.0,
            grain=0.001,
        )
    return {"rows": {way: one.to_dict() for way, one in taken.items()}}
