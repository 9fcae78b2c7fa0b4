"""What the figures of `answers.one_by_one` say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from convscope.answers.asked import Asked
from convscope.answers.base import Chart, Finding, Picture, Verdict, fill, found
from convscope.answers.drawing import grey, strip
from convscope.answers.evidence import trained
from convscope.answers.layers import sizes
from convscope.measures.figures import Estimate, Sheet

_ROUNDING = 1e-9  # of float64: far above rounding, far below any activation


def findings(
    asked: Asked,
    layers: dict[str, Any],
    linear: dict[str, Any],
    mixing: dict[str, Any],
    bottleneck: dict[str, Any],
    widths: dict[str, Any],
) -> list[Finding]:
    """The verdicts, from the figures."""
    study = "a study that trains the same network with bottlenecks and with plain 3x3 layers"
    return [
        _channels(layers),
        _linearity(linear),
        _mixes(mixing),
        _capacity(widths),
        _saves(bottleneck),
        trained(
            asked,
            "O6",
            study,
            first={"convolution": "bottleneck"},
            second={"convolution": "standard"},
            margin=0.01,
        ),
    ]


def _turns(layers: dict[str, Any]) -> dict[str, int]:
    pairs = [row["channels"] for row in layers["rows"]]
    return {
        "all": len(pairs),
        "fewer": sum(after < before for before, after in pairs),
        "more": sum(after > before for before, after in pairs),
        "same": sum(after == before for before, after in pairs),
    }


def _channels(layers: dict[str, Any]) -> Finding:
    told: dict[str, Any] = {"net": layers["net"], **_turns(layers)}
    test = "channels before and behind each of the {all} 1x1 convolutions of {net}"
    say = "{fewer} have fewer channels behind, {more} more, {same} as many as before."
    if told["same"] == told["all"]:
        return found("O1", False, test, say, **told)
    if told["same"]:
        return found(
            "O1", Verdict.WHEN, test, say, when="it has more or fewer filters than there are channels", **told
        )
    return found("O1", True, test, say, **told)


def _linearity(linear: dict[str, Any]) -> Finding:
    told: dict[str, Any] = {
        k: linear[k] for k in ("alone", "layers", "active", "least", "activations", "source")
    }
    pairs = [pair for pair in linear["pairs"] if pair[2] < _ROUNDING]
    told |= {"pairs": len(pairs), "tried": len(linear["pairs"])}
    test = "the best affine map from a layer's input to its output, by least squares on {source}, in float64"
    if linear["alone"] is None:
        why = "no 1x1 layer has enough positions to tell"
        return found("O2", Verdict.OPEN, test, "No layer could be tried.", when=why, **told)
    say = "For {layers} 1x1 layers such a map leaves at most {alone:.1e} of the output's spread"
    if linear["active"] is not None:
        say += "; with the activation behind, {active:.0%} on average over {activations} layers ({least:.1%} at least)"
    say += "."
    if told["tried"]:
        worst = max(linear["pairs"], key=lambda pair: pair[2])
        told |= {"first": worst[0], "second": worst[1], "worst": worst[2]}
        say += " {pairs} of {tried} pairs with no activation between are one 1x1 layer: {first} and {second} up to {worst:.1e}."
    is_linear = linear["alone"] < _ROUNDING
    if is_linear and linear["active"] is None:
        return found("O2", Verdict.OPEN, test, say, when="no activation follows a 1x1 layer here", **told)
    if is_linear and linear["least"] < _ROUNDING:
        when = "the activation really bends: the least of these leaves {least:.1e}"
        return found("O2", Verdict.WHEN, test, say, when=when, **told)
    return found("O2", is_linear, test, say, **told)


def _mixes(mixing: dict[str, Any]) -> Finding:
    rows = mixing["rows"]
    effective = [row["effective"] for row in rows]
    told: dict[str, Any] = {
        "layers": len(rows),
        "least": min(effective),
        "most": max(effective),
        "layer": mixing["shown"],
        "moved": mixing.get("moved"),
    }
    test = "channels that a filter really takes from: the participation ratio of its squared weights, in {layers} layers"
    say = "A filter draws on {least} channels on average in the layer that mixes least, on {most} in the one that mixes most."
    if mixing["shown"] is not None:
        told |= {"channel": mixing["channel"], "top": ", ".join(map(str, mixing["top"]))}
        say += " In {layer}, channel {channel} is led by channels {top}; changing one position of the input changed {moved}."
    mixes = [value > 1.5 for value in effective]
    if all(mixes):
        return found("O3", True, test, say, **told)
    if any(mixes):
        when = "its filters have weights for more than one channel, as in {mixers} of {layers} layers"
        return found("O3", Verdict.WHEN, test, say, when=when, mixers=sum(mixes), **told)
    return found("O3", False, test, say, **told)


def _capacity(widths: dict[str, Any]) -> Finding:
    rows = widths["rows"]
    gain = Estimate(**widths["gain"])
    told: dict[str, Any] = {
        "net": widths["net"],
        "images": widths["images"],
        "narrow": rows[0]["width"],
        "wide": rows[-1]["width"],
        "low": rows[0]["accuracy"]["value"],
        "high": rows[-1]["accuracy"]["value"],
        "gain": 100 * gain.value,
        "from_": 100 * (gain.low or 0.0),
        "to": 100 * (gain.high or 0.0),
    }
    test = "the 3x3 layers of {net} sent through {narrow} to {wide} channels and a 1x1 back, in closed form, not retrained"
    say = (
        "Accuracy on {images} images went from {low:.1%} with {narrow} filters to {high:.1%} with {wide}: "
        "{gain:+.1f} points ({from_:+.1f} to {to:+.1f})."
    )
    return found("O4", bool(gain.low is not None and gain.low > 0), test, say, **told)


def _saves(bottleneck: dict[str, Any]) -> Finding:
    rows = bottleneck["rows"]
    fewer = [row["middle"] for row in rows if row["macs"] < 1]
    faster = [row["middle"] for row in rows if row["time"]["high"] < 1]
    quarter = min(rows, key=lambda row: abs(row["share"] - 0.25))
    told: dict[str, Any] = {
        "channels": bottleneck["channels"],
        "size": bottleneck["size"],
        "middle": quarter["middle"],
        "macs": 1 / quarter["macs"],
        "time": 1 / quarter["time"]["median"],
        "most": max(fewer, default=0),
        "fast": max(faster, default=0),
    }
    test = "a 3x3 layer of {channels} channels on {size}x{size} against 1x1, 3x3, 1x1, counted and timed here"
    say = (
        "With {middle} channels between it does {macs:x} fewer MACs and ran {time:x} as fast; MACs are saved up to {most} "
        "of {channels} channels between, time up to {fast}."
    )
    if len(fewer) == len(rows):
        return found("O5", True, test, say, **told)
    if fewer:
        return found(
            "O5", Verdict.WHEN, test, say, when="it has at most {most} of {channels} channels between", **told
        )
    return found("O5", False, test, say, **told)


def statement(layers: dict[str, Any], linear: dict[str, Any], bottleneck: dict[str, Any]) -> str:
    rows = layers["rows"]
    quarter = min(bottleneck["rows"], key=lambda row: abs(row["share"] - 0.25))
    told: dict[str, Any] = {
        "net": layers["net"],
        "convolutions": layers["convolutions"],
        "params": sum(row["params"] for row in rows) / max(layers["params"], 1),
        "macs": sum(row["macs"] for row in rows) / max(layers["macs"], 1),
        "alone": linear["alone"],
        "active": linear["active"],
        "saved": 1 / quarter["macs"],
        "time": 1 / quarter["time"]["median"],
        **_turns(layers),
    }
    say = (
        "{all} of {convolutions} convolutions of {net} are 1x1, with {params:.0%} of its parameters and {macs:.0%} of its MACs: "
        "{fewer} reduce the channels, {more} augment them. "
    )
    if linear["alone"] is not None:
        say += "Each is linear ({alone:.0e} is left by the best affine map"
        say += "; with its activation {active:.0%})" if linear["active"] is not None else ")"
        say += ", and around a 3x3 layer with a quarter of the channels two save {saved:x} the MACs and ran {time:x} as fast."
    return fill(say, told)


def tables(layers: dict[str, Any], bottleneck: dict[str, Any], widths: dict[str, Any]) -> list[Sheet]:
    rows = layers["rows"]
    chosen: Sequence[Any] = rows if len(rows) <= 12 else [rows[i * (len(rows) - 1) // 11] for i in range(12)]
    table = tuple(
        (
            row["name"],
            *map(str, row["channels"]),
            sizes(row["after"]),
            f"{row['params']:,}",
            f"{row['macs']:,}",
        )
        for row in chosen
    )
    heads = ("1x1 layer", "channels in>", "out>", "positions>", "parameters>", "MACs>")
    made = [Sheet(f"1x1 layers of {layers['net']}", heads, table)]
    table = tuple(
        (
            str(r["middle"]),
            f"{r['params']:.2f}",
            f"{r['macs']:.2f}",
            fill("{median:.2f} ({low:.2f} to {high:.2f})", r["time"]),
        )
        for r in bottleneck["rows"]
    )
    title = (
        f"1x1, 3x3, 1x1 in place of a 3x3 layer of {bottleneck['channels']} channels: multiples of its costs"
    )
    made.append(Sheet(title, ("channels between>", "parameters>", "MACs>", "time>"), table))
    table = tuple((str(row["width"]), Estimate(**row["accuracy"]).percent()) for row in widths["rows"])
    title = f"{widths['net']} with its 3x3 layers sent through few channels, not retrained"
    made.append(Sheet(title, ("filters>", "accuracy>"), table))
    return made


def pictures(mixing: dict[str, Any]) -> tuple[Picture, ...]:
    if mixing["shown"] is None:
        return ()
    maps = [grey(one) for one in mixing["inputs"]] + [grey(mixing["output"])]
    weights = ", ".join(f"{weight:+.2f}" for weight in mixing["weights"])
    caption = f"{mixing['shown']}: the three channels that lead channel {mixing['channel']} (weights {weights}), and the result."
    leading = zip(mixing["top"], mixing["weights"], strict=True)
    titles = [*(f"{weight:+.2f} of channel {one}" for one, weight in leading), "the result"]
    return (strip("mixing", caption, dict(zip(titles, maps, strict=True)), height=168),)


def chart(bottleneck: dict[str, Any]) -> Chart:
    points = {
        "MACs": [(float(row["middle"]), row["macs"]) for row in bottleneck["rows"]],
        "time": [(float(row["middle"]), row["time"]["median"]) for row in bottleneck["rows"]],
    }
    title = "what 1x1, 3x3, 1x1 costs against one 3x3 layer"
    return Chart("bottleneck", title, "channels between", "multiple of the 3x3 layer", points)
