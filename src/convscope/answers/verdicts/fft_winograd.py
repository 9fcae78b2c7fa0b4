"""What the figures of `answers.fft_winograd` say."""

from __future__ import annotations

from typing import Any

from convscope import timing
from convscope.answers.base import Chart, Finding, Verdict, fill, found
from convscope.answers.layers import sizes
from convscope.measures.figures import Sheet
from convscope.models import Net

TILES = ("F(2,3)", "F(4,3)", "F(6,3)")
_SMALL = 3  # kernels up to here are small


def findings(
    kernels: dict[str, Any],
    wide: dict[str, Any],
    tiles: dict[str, Any],
    threads: dict[str, Any],
    layers: dict[str, Any],
) -> list[Finding]:
    """The verdicts, from the figures."""
    return [
        _large(kernels, wide),
        _memory(kernels),
        _scales(threads),
        _precise(kernels, wide),
        _small(kernels),
        _saves_memory(kernels),
        _multiplies(tiles),
        _tile_error(tiles),
        _depends(layers, kernels),
    ]


def _entry(point: dict[str, Any], name: str) -> dict[str, Any]:
    """An algorithm's figures at a point."""
    return next(entry for entry in point["entries"] if entry["algorithm"] == name)


def _gain(point: dict[str, Any], name: str) -> float | None:
    """How many times as fast as direct; None where it did not run."""
    one, direct = _entry(point, name)["seconds"], _entry(point, "direct")["seconds"]
    return None if one is None or direct is None else float(direct["median"] / one["median"])


def _wins(point: dict[str, Any], name: str) -> bool:
    """Whether it is faster than direct beyond noise."""
    one, direct = _entry(point, name)["seconds"], _entry(point, "direct")["seconds"]
    return bool(one and direct and one["high"] < direct["low"])


def _large(kernels: dict[str, Any], wide: dict[str, Any]) -> Finding:
    points, grown = kernels["points"], wide["points"]
    paying = [point["value"] for point in points if _wins(point, "fft")]
    told: dict[str, Any] = {
        "first": min(paying, default=None),
        "kernel": points[-1]["value"],
        "gain": _gain(points[-1], "fft"),
        "small": points[0]["value"],
        "least": _gain(points[0], "fft"),
        "size": grown[-1]["value"],
        "most": _gain(grown[-1], "fft"),
        "little": grown[0]["value"],
        "some": _gain(grown[0], "fft"),
    }
    test = "FFT against torch's direct convolution while the kernel grows at 56x56, and while the map grows at 9x9"
    say = (
        "{kernel}x{kernel} ran {gain:x} as fast as direct, {small}x{small} {least:x}; maps of {size} pixels {most:x}, of "
        "{little} {some:x}."
    )
    by_kernel, by_size = _wins(points[-1], "fft"), _wins(grown[-1], "fft")
    if by_kernel and by_size:
        return found("W1", True, test, say + " It pays from {first}x{first} on.", **told)
    if by_kernel or by_size:
        when = "the kernel is at least {first}x{first}" if by_kernel else "the map is large"
        return found("W1", Verdict.WHEN, test, say, when=when, **told)
    return found("W1", False, test, say, **told)


def _held(entry: dict[str, Any]) -> int:
    """Bytes it holds beside input and output: workspace and the prepared weight."""
    return int((entry["workspace"] or 0) + (entry["prepared"] or 0))


def _three(values: dict[str, Any]) -> dict[str, Any]:
    """The point of the 3x3 kernel."""
    return next(point for point in values["points"] if point["value"] == _SMALL)


def _memory(kernels: dict[str, Any]) -> Finding:
    point = _three(kernels)
    fft, direct = _held(_entry(point, "fft")), _held(_entry(point, "direct"))
    best = min(
        (e["seconds"]["median"] for e in point["entries"] if e["seconds"] and e["algorithm"] != "fft"),
        default=None,
    )
    seconds = _entry(point, "fft")["seconds"]
    told: dict[str, Any] = {
        "fft": fft,
        "direct": direct,
        "ratio": fft / max(direct, 1),
        "slower": seconds and best and seconds["median"] / best,
    }
    test = "memory beside input and output, and time, of a 3x3 layer of 64 channels at 56x56"
    say = "FFT holds {fft:bytes}, direct {direct:bytes} ({ratio:x}); it took {slower:x} the time of the best other algorithm."
    more, wasteful = fft > direct, bool(told["slower"] and told["slower"] > 1)
    if more and wasteful:
        return found("W2", True, test, say, **told)
    if more or wasteful:
        when = "memory is meant; small filters are no waste of time here" if more else "time is meant"
        return found("W2", Verdict.WHEN, test, say, when=when, **told)
    return found("W2", False, test, say, **told)


def _scales(threads: dict[str, Any]) -> Finding:
    count = threads["threads"]
    test = "a 9x9 layer of 64 channels at 112x112 with one thread and with {threads}"
    if count == 1:
        say = "This run has one thread."
        return found("W3", Verdict.OPEN, test, say, when="there is one thread to run on", threads=1)
    gains = {name: row["1"] / row[str(count)] for name, row in threads["rows"].items()}
    told: dict[str, Any] = {"threads": count, "fft": gains["fft"], "direct": gains["direct"]}
    say = "With {threads} threads FFT ran {fft:x} as fast as with one, direct {direct:x}."
    return found("W3", gains["fft"] > 0.7 * count or gains["fft"] >= gains["direct"], test, say, **told)


def _precise(kernels: dict[str, Any], wide: dict[str, Any]) -> Finding:
    pairs = [
        (_entry(point, "fft")["error"], _entry(point, "direct")["error"], point["value"])
        for point in (*kernels["points"], *wide["points"])
    ]
    known = [pair for pair in pairs if None not in pair[:2]]
    test = "largest error against float64, relative to the largest output, in {tried} layers"
    if not known:
        return found(
            "W4", Verdict.OPEN, test, "FFT did not run.", when="there is nothing to compare", tried=0
        )
    worse = [pair for pair in known if pair[0] > pair[1]]
    told: dict[str, Any] = {
        "tried": len(known),
        "worse": len(worse),
        "fft": max(pair[0] for pair in known),
        "direct": max(pair[1] for pair in known),
    }
    say = (
        "FFT was less precise in {worse} of {tried}; its largest error was {fft:.1e}, direct's {direct:.1e}."
    )
    if len(worse) == len(known):
        return found("W4", True, test, say, **told)
    if worse:
        when = "the layer is like {worse} of the {tried} tried"
        return found("W4", Verdict.WHEN, test, say, when=when, **told)
    return found("W4", False, test, say, **told)


def _small(kernels: dict[str, Any]) -> Finding:
    small, large = _three(kernels), kernels["points"][-1]
    told: dict[str, Any] = {
        "small": _gain(small, "winograd"),
        "kernel": large["value"],
        "large": _gain(large, "winograd"),
        "fastest": large["fastest"],
    }
    test = "Winograd against torch's direct convolution at 3x3 and at {kernel}x{kernel}, 64 channels at 56x56"
    say = "3x3 ran {small:x} as fast as direct; "
    say += (
        "{kernel}x{kernel} {large:x}"
        if told["large"] is not None
        else "{kernel}x{kernel} was not worth running"
    )
    say += ", where {fastest} is fastest."
    pays, loses = _wins(small, "winograd"), large["fastest"] != "winograd"
    if pays and loses:
        return found("W5", True, test, say, **told)
    if pays or loses:
        when = (
            "small filters are meant; it led at {kernel}x{kernel} too" if pays else "large filters are meant"
        )
        return found("W5", Verdict.WHEN, test, say, when=when, **told)
    return found("W5", False, test, say, **told)


def _saves_memory(kernels: dict[str, Any]) -> Finding:
    point = _three(kernels)
    winograd, direct = _held(_entry(point, "winograd")), _held(_entry(point, "direct"))
    told: dict[str, Any] = {"winograd": winograd, "direct": direct, "ratio": winograd / max(direct, 1)}
    test = (
        "memory beside input and output of a 3x3 layer of 64 channels at 56x56: workspace and prepared weight"
    )
    say = "Winograd holds {winograd:bytes}, direct {direct:bytes}: {ratio:x} as much."
    return found("W6", winograd < direct, test, say, **told)


def _row(tiles: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in tiles["rows"] if row["name"] == name)


def _multiplies(tiles: dict[str, Any]) -> Finding:
    direct, winograd = _row(tiles, "direct"), _row(tiles, "winograd:F(4,3)")
    fewer = direct["multiplications"] / winograd["multiplications"]
    total = winograd["additions"] + winograd["multiplications"]
    beside = (winograd["additions"] - winograd["multiplications"]) / total
    told: dict[str, Any] = {"layer": tiles["layer"], "fewer": fewer, "beside": beside}
    test = "operations of F(4,3) and of direct, counted for a layer ({layer})"
    say = "It multiplies {fewer:x} less; of all its operations {beside:.0%} are additions of the transforms."
    if fewer > 1 and beside <= 0:
        return found(
            "W7", Verdict.WHEN, test, say, when="multiplications are meant; transforms cost nothing", **told
        )
    return found("W7", fewer > 1, test, say, **told)


def _tile_error(tiles: dict[str, Any]) -> Finding:
    errors = [_row(tiles, f"winograd:{tile}")["error"] for tile in TILES]
    direct = _row(tiles, "direct")["error"]
    told: dict[str, Any] = {
        "layer": tiles["layer"],
        "direct": direct,
        "two": errors[0],
        "four": errors[1],
        "six": errors[2],
    }
    test = "largest error against float64, relative to the largest output, of three tiles on normal noise ({layer})"
    say = "F(2,3) {two:.1e}, F(4,3) {four:.1e}, F(6,3) {six:.1e}; direct {direct:.1e}."
    rising, less = errors == sorted(errors), errors[-1] > direct
    if rising and less and errors[0] > direct:
        return found("W8", True, test, say, **told)
    if rising and less:
        return found("W8", Verdict.WHEN, test, say, when="the tile is larger than F(2,3)", **told)
    return found("W8", False, test, say, **told)


def _depends(layers: dict[str, Any], kernels: dict[str, Any]) -> Finding:
    rows = layers["rows"]
    winners: dict[str, int] = {}
    for row in rows:
        winners[row["fastest"]] = winners.get(row["fastest"], 0) + 1
    swept = [(point["fastest"], point["value"]) for point in kernels["points"]]
    told: dict[str, Any] = {
        "tried": len(rows),
        "distinct": layers["distinct"],
        "winners": ", ".join(
            f"{name} {count}" for name, count in sorted(winners.items(), key=lambda pair: -pair[1])
        ),
        "swept": ", ".join(f"{name} at {kernel}x{kernel}" for name, kernel in swept),
    }
    test = "all algorithms on {tried} of the {distinct} distinct convolutions of the network and on kernels of 64 channels, here"
    say = "Fastest in the network: {winners}; while the kernel grows: {swept}."
    if len(winners) > 1:
        when = "the layer is meant; other hardware was not measured"
        return found("W9", Verdict.WHEN, test, say, when=when, **told)
    if {name for name, _ in swept} - set(winners):
        when = "other layers are meant than this network's; other hardware was not measured"
        return found("W9", Verdict.WHEN, test, say, when=when, **told)
    return found("W9", False, test, say, **told)


def statement(net: Net, kernels: dict[str, Any], tiles: dict[str, Any], layers: dict[str, Any]) -> str:
    rows = layers["rows"]
    winners = [row["fastest"] for row in rows]
    paying = [point["value"] for point in kernels["points"] if _wins(point, "fft")]
    told: dict[str, Any] = {
        "tried": len(rows),
        "net": net.name,
        "direct": winners.count("direct"),
        "winograd": winners.count("winograd"),
        "fft": winners.count("fft"),
        "first": min(paying, default=None),
        "gain": _gain(_three(kernels), "winograd"),
        "error": _row(tiles, "winograd:F(4,3)")["error"] / _row(tiles, "direct")["error"],
        "most": max((row["over_direct"] or 1.0 for row in rows), default=1.0),
    }
    say = "Of {tried} convolutions of {net}, direct is fastest here for {direct}, Winograd for {winograd} and FFT for {fft}"
    say += ", at most {most:x} as fast as direct. " if told["most"] > 1 else ". "
    say += (
        "FFT pays from {first}x{first} kernels on at 64 channels"
        if paying
        else "FFT paid at no kernel size tried"
    )
    say += "; Winograd runs 3x3 {gain:x} as fast, with {error:x} the error."
    return fill(say, told)


def tables(
    net: Net, kernels: dict[str, Any], wide: dict[str, Any], tiles: dict[str, Any], layers: dict[str, Any]
) -> list[Sheet]:
    names = ("direct", "im2col", "fft", "winograd")
    rows = tuple(
        (
            row["layers"][0] + (f" and {len(row['layers']) - 1} more" if len(row["layers"]) > 1 else ""),
            "{} to {}".format(*row["channels"]),
            sizes(row["kernel"]),
            sizes(row["size"]),
            f"{100 * row['macs'] / max(layers['macs'], 1):.0f} %",
            *(_time(row, name) for name in names),
            row["fastest"],
        )
        for row in layers["rows"]
    )
    heads = (
        "layer",
        "channels>",
        "kernel>",
        "map>",
        "of all MACs>",
        *(f"{name}>" for name in names),
        "fastest",
    )
    made = [Sheet(f"{net.name}, layer by layer", heads, rows)]
    for title, values in (
        ("while the kernel grows, 64 channels at 56x56", kernels),
        ("while the map grows, 9x9 kernel", wide),
    ):
        rows = tuple(
            (str(p["value"]), *(_time(p, name) for name in names), p["fastest"]) for p in values["points"]
        )
        made.append(Sheet(title, ("at>", *(f"{name}>" for name in names), "fastest"), rows))
    rows = tuple(
        (
            row["name"],
            f"{row['multiplications'] / 1e6:,.1f} M",
            f"{row['additions'] / 1e6:,.1f} M",
            fill("{workspace:bytes}", row),
            f"{row['error']:.1e}",
        )
        for row in tiles["rows"]
    )
    heads = ("algorithm", "multiplications>", "additions>", "workspace>", "error>")
    return [*made, Sheet(f"one layer: {tiles['layer']}", heads, rows)]


def _time(point: dict[str, Any], name: str) -> str:
    seconds = (
        _entry(point, name)["seconds"] if any(e["algorithm"] == name for e in point["entries"]) else None
    )
    return "" if seconds is None else timing.duration(seconds["median"])


def chart(name: str, title: str, x: str, values: dict[str, Any]) -> Chart:
    series: dict[str, list[tuple[float, float]]] = {}
    for point in values["points"]:
        for entry in point["entries"]:
            if entry["seconds"] is not None:
                series.setdefault(entry["algorithm"], []).append(
                    (float(point["value"]), 1e3 * entry["seconds"]["median"])
                )
    return Chart(name, title, x, "ms", series, logs="xy")
