"""Upsampling: what each way does to one map, what it brings back, what it costs, and how it does inside a trained decoder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from convscope import timing
from convscope.answers.asked import Asked, needs_channels
from convscope.answers.base import Draft, Finding, Picture, Verdict, fill, found
from convscope.answers.drawing import beside, grey
from convscope.answers.evidence import trained
from convscope.answers.layers import profile_of, sizes
from convscope.answers.running import changes, outputs
from convscope.data import photographs
from convscope.data.fashion import fashion as clothes
from convscope.data.fashion import noisy
from convscope.errors import ConvscopeError
from convscope.measures.figures import Estimate, Sheet, mean
from convscope.models import Net
from convscope.nn import BilinearUpsample2d, MaxUnpool2d, SwitchedMaxPool2d, TransposedConv2d, upsample2d
from convscope.nn.checkerboard import checkerboard
from convscope.rewrites.convolutionalize import Convolutionalize
from convscope.rewrites.rewrite import rewrite
from convscope.rewrites.upsample import Upsample

PARTS = ("layers", "exact", "recovered", "times", "dense", "decoder")

_WAYS = ("nearest", "bilinear", "bed_of_nails", "max_unpool", "transposed", "pixel_shuffle")
_UNTRAINED = _WAYS[:-1]  # a pixel shuffle is nothing before it is trained
_RECOVERED = 1e-6  # share of the spread that counts as nothing left
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
    return Draft(
        statement=_statement(recovered, times, decoder),
        findings=tuple(findings(asked, exact, recovered, times, dense, decoder)),
        tables=(_table(recovered, times), _decoder_table(decoder)),
        pictures=_pictures(recovered),
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
    rows, shown = [], {}
    for way in _UNTRAINED:
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
    forms = {way: upsample2d(way, channels).eval() for way in _WAYS if way != "max_unpool"}
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
        for way in _WAYS
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
    """The network with every other way in place of its own, not retrained."""
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
    rows = [_row("as it is", before, before, target, net.parameters_count)]
    for way in _WAYS:
        try:
            made = rewrite(net, Upsample(way), seed=asked.seed)
        except ConvscopeError as error:
            rows.append({"way": way, "reason": str(error)})
            continue
        if made.done:
            rows.append(_row(way, before, outputs(made.net, x), target, made.net.parameters_count))
        else:
            rows.append({"way": way, "reason": made.refused[0].reason})
    return {"net": net.name, "rows": rows, "source": source}


def _row(way: str, before: Tensor, after: Tensor, target: Tensor | None, params: int) -> dict[str, Any]:
    row: dict[str, Any] = {
        "way": way,
        "params": params,
        "change": mean(changes(before, after)[:, None]).to_dict(),
    }
    if target is not None:
        row["error"] = mean((after - target).square().flatten(1)).to_dict()
    return row


# ---------------------------------------------------------------- told


def findings(
    asked: Asked,
    exact: dict[str, Any],
    recovered: dict[str, Any],
    times: dict[str, Any],
    dense: dict[str, Any],
    decoder: dict[str, Any],
) -> list[Finding]:
    """The verdicts, from the figures."""
    return [
        _recovers(recovered),
        _needed(dense),
        _by_parameters(asked, times, decoder),
        _cheapest(exact, times),
        _unpools(exact, recovered),
        _sized(exact, times),
        _smooth(exact, recovered),
        _nailed(exact),
        found(
            "U9",
            exact["unpooled"],
            "max-unpooling after 2x2 max pooling, against the places of the maxima found one by one",
            "All {kept} values it gave stand where the maximum of their window was.",
            kept=exact["kept"],
        ),
    ]


def _by_way(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["way"]: row for row in values["rows"]}


def _recovers(recovered: dict[str, Any]) -> Finding:
    best = min(recovered["rows"], key=lambda row: row["missing"]["value"])
    unpool = _by_way(recovered)["max_unpool"]
    told = {
        "best": best["way"],
        "missing": best["missing"]["value"],
        "exact": unpool["exact"],
        "source": recovered["source"],
    }
    test = "{source} through 2x2 max pooling and back, six ways, without training"
    say = "The best, {best}, leaves {missing:.1%} of the pictures' spread missing; max-unpooling has {exact:.0%} of pixels right."
    return found("U1", best["missing"]["value"] < _RECOVERED, test, say, **told)


def _needed(dense: dict[str, Any]) -> Finding:
    told = {**dense, "size": sizes(dense["size"]), "map": sizes(dense["map"])}
    test = "{net} evaluated at every pixel of an image of {size}, its strides moved into dilation"
    say = "It gave a map of {map} scores one pixel apart with {layers} upsampling layers, at {macs:x} the MACs of its own stride."
    full = dense["layers"] == 0 and min(dense["map"]) > 1
    if full:
        return found(
            "U2",
            Verdict.WHEN,
            test,
            say,
            when="the network keeps the strides that made its map small",
            **told,
        )
    return found("U2", True, test, say, **told)


def _by_parameters(asked: Asked, times: dict[str, Any], decoder: dict[str, Any]) -> Finding:
    """U3: how many parameters each way adds is counted, whether they help is for a study."""
    rows = _by_way(times)
    without = [way for way, row in rows.items() if not row["params"]]
    figures = {
        "without": len(without),
        "ways": len(rows),
        "channels": times["channels"],
        "transposed": rows["transposed"]["params"],
    }
    text = " {without} of {ways} ways add no parameters; a transposed convolution of {channels} channels adds {transposed}."
    test = "a study that trains a decoder with transposed convolutions and with nearest upsampling; parameters counted here"
    made = trained(asked, "U3", test, first={"upsampling": "transposed"}, second={"upsampling": "nearest"})
    return replace(made, sentence=made.sentence + fill(text, figures), figures={**made.figures, **figures})


def _cheapest(exact: dict[str, Any], times: dict[str, Any]) -> Finding:
    rows = _by_way(times)
    faster = [way for way, row in rows.items() if way != "nearest" and row["over"]["high"] < 1]
    quickest = min(rows, key=lambda way: rows[way]["time"]["median"])
    told = {
        "channels": times["channels"],
        "size": times["size"],
        "time": rows["nearest"]["time"]["median"],
        "quickest": quickest,
        "least": rows[quickest]["time"]["median"],
        "transposed": rows["transposed"]["over"]["median"],
    }
    test = "nearest against repeated rows and columns, and six ways timed here on {channels} channels of {size}x{size}"
    say = "Nearest took {time:time}, the quickest ({quickest}) {least:time}; a transposed convolution {transposed:x} as long."
    if not exact["nearest"]:
        return found("U4", False, test, say + " It does not repeat rows and columns.", **told)
    if faster:
        when = "it means repeating; the cheapest here is {quickest}"
        return found("U4", Verdict.WHEN, test, say, when=when, **told)
    return found("U4", True, test, say, **told)


def _unpools(exact: dict[str, Any], recovered: dict[str, Any]) -> Finding:
    told = {
        "kept": exact["kept"],
        "pooled": exact["pooled"],
        "exact": _by_way(recovered)["max_unpool"]["exact"],
    }
    say = "{kept} of {pooled} pooled values went back to their places; of all pixels of the pictures {exact:.0%} are right again."
    test = "2x2 max pooling undone, against the places of the maxima"
    return found("U5", exact["unpooled"] and exact["kept"] == exact["pooled"], test, say, **told)


def _sized(exact: dict[str, Any], times: dict[str, Any]) -> Finding:
    grid = [tuple(one) for one in exact["grid"]]
    by = {(k, s, p): out for k, s, p, out, _ in grid}
    larger = all(by[k, s, p] < by[k, s + 1, p] for k, s, p in by if (k, s + 1, p) in by)
    smaller = all(by[k, s, p] > by[k, s, p + 1] for k, s, p in by if (k, s, p + 1) in by)
    formula = all(out == expected for *_, out, expected in grid)
    told = {
        "tried": len(grid),
        "params": _by_way(times)["transposed"]["params"],
        "least": min(by.values()),
        "most": max(by.values()),
    }
    say = "Outputs of {least} to {most} pixels, all by the formula; the layer timed here has {params} weights to learn."
    if not formula:
        say = "Outputs of {least} to {most} pixels, not all by the formula."
    test = "{tried} transposed convolutions on 7x7, against (n - 1) stride - 2 padding + kernel"
    return found("U6", larger and smaller and formula and told["params"] > 0, test, say, **told)


def _smooth(exact: dict[str, Any], recovered: dict[str, Any]) -> Finding:
    rows = _by_way(recovered)
    told = {
        "read": " to ".join(map(str, sorted(set(exact["read"])))),
        "tent": exact["tent"],
        "bilinear": rows["bilinear"]["rough"],
        "nearest": rows["nearest"]["rough"],
    }
    test = "the weights of bilinear upsampling, by one pixel at a time, and squared steps between neighbours in the pictures"
    say = (
        "Each output reads {read} pixels, with weights that are products of 1 - distance (off by {tent:.0e}); its steps have "
        "{bilinear:.0%} of the original's power, nearest's {nearest:.0%}."
    )
    four = exact["read"] == [4, 4] and exact["tent"] < 1e-9
    smoother = rows["bilinear"]["rough"] < rows["nearest"]["rough"]
    return found("U7", four and smoother, test, say, **told)


def _nailed(exact: dict[str, Any]) -> Finding:
    say = "{filled:.0%} of the output is not zero, and these are the inputs, each in the first corner of its block."
    if not exact["nails"]:
        say = "{filled:.0%} of the output is not zero, and these are not the inputs in the first corner of their blocks."
    test = "bed of nails by two, against zeros with the input at every second place"
    return found("U8", exact["nails"], test, say, filled=exact["filled"])


def _statement(recovered: dict[str, Any], times: dict[str, Any], decoder: dict[str, Any]) -> str:
    best = min(recovered["rows"], key=lambda row: row["missing"]["value"])
    quickest = min(times["rows"], key=lambda row: row["time"]["median"])
    rows = [row for row in decoder["rows"][1:] if "change" in row]
    told: dict[str, Any] = {
        "best": best["way"].replace("_", " "),
        "missing": best["missing"]["value"],
        "quickest": quickest["way"].replace("_", " "),
        "least": quickest["time"]["median"],
        "net": decoder["net"],
    }
    say = (
        "No way to upsample brings back what pooling lost: the best, {best}, leaves {missing:.0%} of the pictures' spread missing"
        if best["missing"]["value"] >= _RECOVERED
        else "What pooling lost came back: {best} leaves {missing:.0%} of the pictures' spread missing"
    )
    say += ", and the quickest here is {quickest} ({least:time}). "
    if rows:
        near, far = (pick(rows, key=lambda row: row["change"]["value"]) for pick in (min, max))
        told |= {"near": near["way"].replace("_", " "), "far": far["way"].replace("_", " ")}
        told |= {"small": near["change"]["value"], "large": far["change"]["value"]}
        say += "In {net}, not retrained, {near} moves the output by {small:.0%} of its spread, {far} by {large:.0%}."
    else:
        say += "In {net} no other way could be put."
    return fill(say, told)


def _table(recovered: dict[str, Any], times: dict[str, Any]) -> Sheet:
    back = _by_way(recovered)
    rows = []
    for way, row in _by_way(times).items():
        seen = back.get(way)
        parts = ("", "", "")
        if seen is not None:
            parts = (Estimate(**seen["missing"]).percent(), _percent(seen["exact"]), _percent(seen["rough"]))
        time = fill("{median:time} ({low:time} to {high:time})", row["time"])
        rows.append((way.replace("_", " "), *parts, f"{row['params']:,}", time))
    heads = (
        "way",
        "missing after pooling and back>",
        "pixels right>",
        "power of steps>",
        "parameters>",
        "time>",
    )
    of = "{channels} channels of {size}x{size}"
    title = f"six ways, on {recovered['source']}; parameters and time for {fill(of, times)}"
    taps = "taps on the pixels of a period of a transposed convolution of kernel {kernel} and stride {stride}: {taps}"
    return Sheet(title, heads, tuple(rows), tuple(fill(taps, one) for one in times["taps"]))


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _decoder_table(decoder: dict[str, Any]) -> Sheet:
    rows = tuple(
        (
            row["way"].replace("_", " "),
            Estimate(**row["change"]).percent() if "change" in row else f"refused: {row['reason']}",
            str(Estimate(**row["error"])) if "error" in row else "",
            f"{row['params']:,}" if "params" in row else "",
        )
        for row in decoder["rows"]
    )
    title = f"{decoder['net']} with every way in place of its own, not retrained, on {decoder['source']}"
    return Sheet(title, ("way", "change of the output>", "mean squared error>", "parameters>"), rows)


def _pictures(recovered: dict[str, Any]) -> tuple[Picture, ...]:
    shown = [grey(recovered[key], 0.0, 1.0) for key in ("original", *_UNTRAINED)]
    names = ", ".join(way.replace("_", " ") for way in _UNTRAINED)
    caption = f"A detail of a picture, then after 2x2 max pooling and back: {names}."
    return (Picture("ways", caption, beside(shown, height=128)),)
