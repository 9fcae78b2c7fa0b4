"""What the figures of `answers.upsampling` say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from convscope.answers.asked import Asked
from convscope.answers.base import Finding, Picture, Verdict, fill, found
from convscope.answers.drawing import grey, strip
from convscope.answers.evidence import trained
from convscope.answers.layers import sizes
from convscope.measures.figures import Estimate, Sheet

WAYS = ("nearest", "bilinear", "bed_of_nails", "max_unpool", "transposed", "pixel_shuffle")
UNTRAINED = WAYS[:-1]  # a pixel shuffle is nothing before it is trained
_RECOVERED = 1e-6  # share of the spread that counts as nothing left


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
    told: dict[str, Any] = {
        "best": best["way"],
        "missing": best["missing"]["value"],
        "exact": unpool["exact"],
        "source": recovered["source"],
    }
    test = "{source} through 2x2 max pooling and back, six ways, without training"
    say = "The best, {best}, leaves {missing:.1%} of the pictures' spread missing; max-unpooling has {exact:.0%} of pixels right."
    return found("U1", best["missing"]["value"] < _RECOVERED, test, say, **told)


def _needed(dense: dict[str, Any]) -> Finding:
    told: dict[str, Any] = {**dense, "size": sizes(dense["size"]), "map": sizes(dense["map"])}
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
    told: dict[str, Any] = {
        "channels": times["channels"],
        "size": times["size"],
        "time": rows["nearest"]["time"]["median"],
        "quickest": quickest.replace("_", " "),
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
    told: dict[str, Any] = {
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
    told: dict[str, Any] = {
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
    told: dict[str, Any] = {
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


def statement(recovered: dict[str, Any], times: dict[str, Any], decoder: dict[str, Any]) -> str:
    best = min(recovered["rows"], key=lambda row: row["missing"]["value"])
    quickest = min(times["rows"], key=lambda row: row["time"]["median"])
    rows = [row for row in decoder["rows"][1:] if "change" in row]
    told: dict[str, Any] = {
        "best": best["way"].replace("_", " "),
        "missing": best["missing"]["value"],
        "quickest": quickest["way"].replace("_", " "),
        "took": quickest["time"]["median"],
        "net": decoder["net"],
    }
    say = (
        "No way to upsample brings back what pooling lost: the best, {best}, leaves {missing:.0%} of the pictures' spread missing"
        if best["missing"]["value"] >= _RECOVERED
        else "What pooling lost came back: {best} leaves {missing:.0%} of the pictures' spread missing"
    )
    say += ", and the quickest here is {quickest} ({took:time}). "
    if rows:
        near, far = (pick(rows, key=lambda row: row["change"]["value"]) for pick in (min, max))
        told |= {"near": near["way"].replace("_", " "), "far": far["way"].replace("_", " ")}
        told |= {"small": near["change"]["value"], "large": far["change"]["value"]}
        say += "In {net}, not retrained, {near} moves the output by {small:.0%} of its spread, {far} by {large:.0%}"
        learned = [row for row in decoder["rows"] if "tuned" in row]
        if learned:
            first, last = (pick(learned, key=lambda row: row["tuned"]["value"]) for pick in (min, max))
            told |= {"first": first["way"].replace("_", " "), "least": first["tuned"]["value"]}
            told |= {"last": last["way"].replace("_", " "), "most": last["tuned"]["value"]}
            say += "; fine-tuned alike, the squared error is {least:.2g} ({first}) to {most:.2g} ({last})"
        say += "."
    else:
        say += "In {net} no other way could be put."
    return fill(say, told)


def table(recovered: dict[str, Any], times: dict[str, Any]) -> Sheet:
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


def decoder_table(decoder: dict[str, Any], speed: dict[str, Any]) -> Sheet:
    """Error only where there are targets, and fine-tuning with it."""
    scored = any("error" in row for row in decoder["rows"])
    between = ("squared error>", "fine-tuned>", "checkerboard>", "fine-tuned>")
    heads = (
        "way",
        "change of the output>",
        *(between if scored else between[2:3]),
        "parameters>",
        "MACs>",
        "time>",
    )
    rows = []
    for row in decoder["rows"]:
        way = row["way"].replace("_", " ")
        if "change" not in row:
            rows.append((way, f"refused: {row['reason']}", *[""] * (len(heads) - 2)))
            continue
        time = speed["rows"].get(row["way"])
        errors = [f"{row[key]['value']:.3g}" if key in row else "" for key in ("error", "tuned")]
        ripples = ["" if row.get(key) is None else _percent(row[key]) for key in ("ripple", "tuned_ripple")]
        rows.append(
            (
                way,
                _percent(row["change"]["value"]),
                *((*errors, *ripples) if scored else ripples[:1]),
                f"{row['params']:,}",
                f"{row['macs']:,}",
                "" if time is None else fill("{median:time}", time),
            )
        )
    title = f"{decoder['net']} with every way in place of its own, on {decoder['source']}"
    notes = [
        "checkerboard: how far the means at the places of a period are apart behind {up}, of the map's spread"
    ]
    if "learned" in decoder:
        notes += ["fine-tuned: all of the network, each way alike, on {learned} other noisy images"]
    return Sheet(title, heads, tuple(rows), tuple(fill(one, decoder) for one in notes))


def pictures(recovered: dict[str, Any], decoder: dict[str, Any]) -> tuple[Picture, ...]:
    shown = {key.replace("_", " "): grey(recovered[key], 0.0, 1.0) for key in ("original", *UNTRAINED)}
    names = ", ".join(way.replace("_", " ") for way in UNTRAINED)
    caption = f"A detail of a picture, then after 2x2 max pooling and back: {names}."
    made = [strip("ways", caption, shown, height=128)]
    ways = [way for way in ("as it is", *WAYS) if f"map {way}" in decoder]
    told = {
        "ways": ", ".join("its own way" if way == "as it is" else way.replace("_", " ") for way in ways),
        "up": decoder["up"],
        "net": decoder["net"],
        "tuned": ", each fine-tuned alike" if "clean" in decoder else ", not retrained",
    }
    if ways:
        first = {"before": grey(decoder["map"])} if "map" in decoder else {}
        maps = first | {way.replace("_", " "): grey(decoder[f"map {way}"]) for way in ways}
        caption = "One map inside {net}" + (": what {up} takes, then" if first else ":")
        made.append(strip("map", fill(caption + " what it gives by {ways}{tuned}.", told), maps, height=112))
    if ways and "clean" in decoder:
        every = {"noisy": decoder["noisy"], "clean": decoder["clean"]}
        every |= {way.replace("_", " "): decoder[f"out {way}"] for way in ways}
        caption = fill("An image with noise, without, and what {net} makes of it by {ways}{tuned}.", told)
        drawn = {title: grey(one, 0.0, 1.0) for title, one in every.items()}
        made.append(strip("decoded", caption, drawn, height=112))
    return tuple(made)
