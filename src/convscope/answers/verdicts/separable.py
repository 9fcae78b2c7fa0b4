"""What the figures of `answers.separable` say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from convscope.answers.asked import Asked
from convscope.answers.base import Chart, Finding, Verdict, fill, found
from convscope.answers.evidence import trained
from convscope.answers.layers import sizes
from convscope.measures.figures import Estimate, Sheet
from convscope.models import Net

_EXACT = 0.02  # a count that is off by less agrees with the formula: biases are not in it


def findings(
    asked: Asked,
    halves: dict[str, Any],
    layers: dict[str, Any],
    times: dict[str, Any],
    converted: dict[str, Any],
) -> list[Finding]:
    """The verdicts, from the figures."""
    return [_parts(halves), _formula(layers), _faster(times), _accuracy(asked, converted)]


def _parts(halves: dict[str, Any]) -> Finding:
    depthwise, pointwise = halves["depthwise"], halves["pointwise"]
    told: dict[str, Any] = {
        "depthwise": len(depthwise),
        "pointwise": len(pointwise),
        "layer": depthwise[0]["layer"],
        "kernel": sizes(depthwise[0]["kernel"]),
        "channels": depthwise[0]["channels"],
        "of": depthwise[0]["of"],
        "positions": depthwise[0]["positions"],
        "other": pointwise[0]["layer"],
        "all": pointwise[0]["channels"],
        "out": pointwise[0]["of"],
        "place": pointwise[0]["positions"],
        "multiplier": max(row["each"] for row in depthwise),
    }
    test = "one number of the input changed, in {depthwise} depthwise and {pointwise} 1x1 layers"
    test += " of the network" if halves["of_net"] else " made for it, since the network has none"
    say = (
        "In {layer} ({kernel}) it reached {channels} of {of} channels at up to {positions} positions, in {other} {all} of "
        "{out} channels at {place} position."
    )
    apart = all(row["channels"] == row["each"] for row in depthwise)
    across = all(row["channels"] > 1 and row["positions"] == 1 for row in pointwise)
    if not (apart and across):
        return found("D1", False, test, say, **told)
    if told["multiplier"] > 1:
        return found(
            "D1", Verdict.WHEN, test, say, when="its multiplier is one; here it is up to {multiplier}", **told
        )
    return found("D1", True, test, say, **told)


def _formula(layers: dict[str, Any]) -> Finding:
    rows = layers["rows"]
    plain = [row for row in rows if row["groups"] == 1]
    off = {row["layer"]: abs(row["macs"] / row["formula"] - 1) for row in rows}
    test = "multiply-accumulates of {layers} layers of the network counted in full and separable, against 1/C_out + 1/k^2"
    if not rows:
        say = "The network has no k x k layer and no separable pair."
        return found("D2", Verdict.OPEN, test, say, when="there is no such layer", layers=0)
    dearest = max(rows, key=lambda row: row["full_macs"])
    told: dict[str, Any] = {
        "layers": len(rows),
        "layer": dearest["layer"],
        "macs": dearest["macs"],
        "formula": dearest["formula"],
        "params": dearest["params"],
        "least": min(row["macs"] for row in rows),
        "most": max(row["macs"] for row in rows),
        "off": max(off.values()),
    }
    say = (
        "{layer} falls to {macs:.1%} of its MACs and {params:.1%} of its parameters (formula {formula:.1%}); over the layers to "
        "{least:.1%} to {most:.1%}, at most {off:.1%} away from the formula."
    )
    if told["off"] < _EXACT:
        return found("D2", True, test, say, **told)
    if plain and max(off[row["layer"]] for row in plain) < _EXACT:
        return found("D2", Verdict.WHEN, test, say, when="the layer was not grouped before", **told)
    return found("D2", False, test, say, **told)


def _faster(times: dict[str, Any]) -> Finding:
    rows = times["rows"]
    test = "{layers} layers of the network timed here in full and separable, in turn, one image at a time"
    if not rows:
        return found(
            "D3", Verdict.OPEN, test, "No layer could be timed.", when="there is no such layer", layers=0
        )
    faster = [row for row in rows if row["time"]["high"] < 1]
    best, worst = (pick(rows, key=lambda row: row["time"]["median"]) for pick in (min, max))
    told: dict[str, Any] = {
        "layers": len(rows),
        "faster": len(faster),
        "best": best["layer"],
        "fast": 1 / best["time"]["median"],
        "fast_macs": 1 / best["macs"],
        "worst": worst["layer"],
        "slow": 1 / worst["time"]["median"],
        "slow_macs": 1 / worst["macs"],
    }
    say = (
        "{faster} of {layers} ran faster: {best} {fast:x} as fast with {fast_macs:x} fewer MACs, {worst} {slow:x} with "
        "{slow_macs:x} fewer."
    )
    if len(faster) == len(rows):
        return found("D3", True, test, say, **told)
    if faster:
        when = "the layer is one of {faster} of {layers} tried, such as {best}"
        return found("D3", Verdict.WHEN, test, say, when=when, **told)
    return found("D3", False, test, say, **told)


def _accuracy(asked: Asked, converted: dict[str, Any]) -> Finding:
    """D4: by training; what a conversion alone does is told beside."""
    one = converted["rows"][0]
    figures = {
        "converted": converted["net"],
        "before": converted["before"]["value"],
        "after": one["accuracy"]["value"],
        "part": one["macs"],
        "images": converted["images"],
    }
    say = (
        " Converted in closed form and not retrained, {converted} went from {before:.1%} to {after:.1%} on {images} images, at "
        "{part:.0%} of its MACs"
    )
    if one["tuned"] is not None:
        figures |= {"tuned": one["tuned"]["value"], "own": (converted["own"]["tuned"] or {}).get("value")}
        say += "; fine-tuned it has {tuned:.1%}, itself fine-tuned alike {own:.1%}"
    beside = fill(say + ".", figures)
    test = "a study that trains the same network with separable and with full layers; beside it a trained one converted"
    made = trained(
        asked, "D4", test, first={"convolution": "separable"}, second={"convolution": "standard"}, margin=0.01
    )
    return replace(made, sentence=made.sentence + beside, figures={**made.figures, **figures})


def statement(
    net: Net, where: dict[str, Any], layers: dict[str, Any], times: dict[str, Any], converted: dict[str, Any]
) -> str:
    kinds, rows = where["kinds"], layers["rows"]
    told: dict[str, Any] = {"net": net.name}
    for name, key in (("depthwise", "d"), ("1x1", "p"), ("k x k", "k")):
        count, params, macs = kinds.get(name, (0, 0, 0))
        told |= {
            key: count,
            f"{key}_params": params / max(where["params"], 1),
            f"{key}_macs": macs / max(where["macs"], 1),
        }
    say = (
        "MACs of {net}: {k_macs:.0%} in full k x k layers ({k}), {d_macs:.0%} in depthwise ones ({d}), {p_macs:.0%} in 1x1 ones "
        "({p}). "
    )
    if rows:
        pairs = [row for row in rows if row["is_pair"]] or rows
        saved = sum(row["full_macs"] for row in pairs) / sum(row["full_macs"] * row["macs"] for row in pairs)
        told |= {"saved": saved, "pairs": len(pairs)}
        say += "Separable instead of full, " + (
            "its {pairs} pairs save {saved:x} the MACs"
            if pairs[0]["is_pair"]
            else "its {pairs} layers would save {saved:x} the MACs"
        )
        if times["rows"]:
            told |= {"fast": [1 / row["time"]["median"] for row in times["rows"]]}
            told |= {"low": min(told["fast"]), "high": max(told["fast"])}
            say += ", and those timed here ran {low:.2g} to {high:.2g} times as fast"
        one = converted["rows"][0]
        told |= {"converted": converted["net"], "first": converted["before"]["value"]}
        told |= {"after": one["accuracy"]["value"], "tuned": (one["tuned"] or {}).get("value")}
        say += "; {converted} converted goes from {first:.1%} to {after:.1%} right"
        say += "." if one["tuned"] is None else ", and fine-tuned to {tuned:.1%}."
    return fill(say, told)


def tables(
    net: Net, where: dict[str, Any], layers: dict[str, Any], times: dict[str, Any], converted: dict[str, Any]
) -> list[Sheet]:
    table: tuple[tuple[str, ...], ...] = tuple(
        (
            kind,
            str(count),
            f"{params:,}",
            _part(params, where["params"]),
            f"{macs:,}",
            _part(macs, where["macs"]),
        )
        for kind, (count, params, macs) in where["kinds"].items()
    )
    heads: tuple[str, ...] = ("kind", "layers>", "parameters>", "share>", "MACs>", "share>")
    made = [Sheet(f"where the parameters of {net.name} go", heads, table)]
    timed = {
        row["layer"]: fill("{median:.2f} ({low:.2f} to {high:.2f})", row["time"]) for row in times["rows"]
    }
    table = tuple(
        (
            row["layer"],
            "{} to {}".format(*row["channels"]),
            sizes(row["kernel"]),
            f"{row['macs']:.3f}",
            f"{row['formula']:.3f}",
            f"{row['params']:.3f}",
            timed.get(row["layer"], ""),
        )
        for row in layers["rows"]
    )
    heads = ("layer", "channels>", "kernel>", "MACs>", "1/C_out + 1/k^2>", "parameters>", "time>")
    made.append(Sheet("separable, as multiples of the full layer", heads, table))
    rows = (("as it is", converted["own"]), *((str(row["rank"]), row) for row in converted["rows"]))
    table = tuple(
        (
            name,
            f"{row['macs']:.2f}",
            f"{row['params']:.2f}",
            Estimate(**row["accuracy"]).percent(),
            "" if row is converted["own"] else Estimate(**row["difference"]).percent(),
            row["reason"] if row["tuned"] is None else Estimate(**row["tuned"]).percent(),
            "" if row["tuned"] is None else Estimate(**row["tuned_difference"]).percent(),
        )
        for name, row in rows
    )
    title = f"{converted['net']} converted in closed form, then fine-tuned, on {converted['source']}"
    heads = (
        "kernels a channel",
        "MACs>",
        "parameters>",
        "not fine-tuned>",
        "difference>",
        "fine-tuned>",
        "difference>",
    )
    made.append(Sheet(title, heads, table))
    return made


def _part(value: int, whole: int) -> str:
    return f"{100 * value / max(whole, 1):.1f} %"


def chart() -> Chart:
    """The formula itself."""
    widths = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
    series = {f"{k}x{k}": [(float(c), 1 / c + 1 / k**2) for c in widths] for k in (3, 5, 7)}
    return Chart(
        "formula", "1/C_out + 1/k^2", "output channels", "multiple of the full layer", series, logs="xy"
    )
