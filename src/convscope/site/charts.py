"""Charts as SVG text, drawn by altair when a page is written: the page itself runs no chart code.

A chart is drawn twice, for wide screens and for phones, and the style sheet shows one of the two. Colours are those
of the light theme; `style.css` maps each of them to the theme's own by attribute (`[fill="#5f6268"]`), so that one
picture serves light and dark.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

TEXT, SOFT, LINE = "#1b1c1e", "#5f6268", "#e3e3df"
COLOURS = {"direct": "#6b7079", "im2col": "#b7791f", "fft": "#0f8a8a", "winograd": "#4453d6"}
OTHER = "#a8458f"  # an algorithm this page does not know
WIDE, NARROW = (760, 450), (344, 300)


def of_survey(survey: dict[str, Any]) -> dict[str, dict[str, list[Markup]]]:
    """All charts of the page about convolution: sweep -> quantity -> [for wide screens, for phones].

    A quantity that no algorithm has a value of is left out.
    """
    kinds = {
        "seconds": ("time of a call (ms)", 1e3, False),
        "error": ("relative error", 1.0, True),
        "workspace": ("workspace (MiB)", 2.0**-20, True),
    }
    return {
        row["name"]: {
            quantity: [
                curves(row, quantity, title, scale=scale, half=half, wide=wide) for wide in (True, False)
            ]
            for quantity, (title, scale, half) in kinds.items()
            if _points(row, quantity, 1.0)
        }
        for row in survey["sweeps"]
    }


def curves(
    row: dict[str, Any],
    quantity: str,
    title: str,
    *,
    wide: bool = True,
    scale: float = 1.0,
    half: bool = False,
) -> Markup:
    """One quantity of every algorithm along a sweep, both axes logarithmic.

    Args:
        row: a sweep, as `Survey.to_dict()` has it.
        quantity: "seconds", "error" or "workspace" of an entry.
        title: of the vertical axis.
        wide: for wide screens, or for phones.
        scale: multiplies the values: 1000 for milliseconds.
        half: drawn at half the width, beside another.

    Returns:
        An `<svg>` element. The leaders' crossovers are marked in a chart of seconds.
    """
    import altair as alt

    points = _points(row, quantity, scale)
    width, height = WIDE if wide else NARROW
    if half:
        width, height = (352, 220) if wide else (344, 200)
    x = alt.X("value:Q", title=_AXES.get(row["axis"], row["axis"])).scale(type="log", nice=False, padding=14)
    x = x.axis(values=row["values"], format="d", labelOverlap="greedy")
    y = alt.Y("y:Q", title=title).scale(type="log", nice=False, padding=10)
    y = y.axis(format=_FORMATS[quantity], values=_ticks([point["y"] for point in points]))
    names = [*COLOURS, *sorted({point["algorithm"] for point in points} - set(COLOURS))]
    names = [name for name in names if any(point["algorithm"] == name for point in points)]
    colour = alt.Color("algorithm:N", legend=None).scale(
        domain=names, range=[COLOURS.get(name, OTHER) for name in names]
    )
    base = alt.Chart(alt.Data(values=points)).encode(x=x, y=y, color=colour)
    layers: list[Any] = []
    if quantity == "seconds":
        layers += _crossings(row, scale, x, y)
        layers.append(base.mark_rule(strokeWidth=5, opacity=0.3).encode(y=alt.Y("low:Q"), y2="high:Q"))
    layers.append(base.mark_line(strokeWidth=2.2))
    layers.append(base.mark_point(size=46, filled=True, opacity=1))
    layers.append(_names(points, width, height, colour, x, y))
    chart = alt.layer(*layers).properties(width=width - 74, height=height - 52)
    return _svg(_styled(chart), f"{title} of every algorithm, {row['title']}")


_AXES = {
    "kernel": "kernel size (pixels along an edge)",
    "channels": "channels, in and out",
    "resolution": "image size (pixels along an edge)",
}


_FORMATS = {"seconds": "~r", "error": ".0e", "workspace": "~r"}


def _ticks(values: Sequence[float]) -> list[float]:
    """Few round numbers over the range of the values: decades, with 3 between them where there are few."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    steps = (1,) if high - low > 3 else (1, 3) if high - low > 1 else (1, 2, 5)
    return [step * 10.0**power for power in range(low, high + 1) for step in steps]


def _points(row: dict[str, Any], quantity: str, scale: float) -> list[dict[str, Any]]:
    found = []
    for point in row["points"]:
        for entry in point["entries"]:
            value = entry[quantity]
            if entry["seconds"] is None or not value:
                continue  # not timed; and nothing has no place on a logarithmic axis
            shown = {"value": point["value"], "algorithm": entry["algorithm"]}
            if quantity == "seconds":
                low, high = value["low"] * scale, value["high"] * scale
                found.append({**shown, "y": value["median"] * scale, "low": low, "high": high})
            else:
                found.append({**shown, "y": value * scale})
    return found


def _crossings(row: dict[str, Any], scale: float, x: Any, y: Any) -> list[Any]:
    """A dashed line where the leader changes, with a ring where the two curves meet."""
    import altair as alt

    places = [
        {"value": each["value"] or math.sqrt(each["low"] * each["high"]), "y": (each["seconds"] or 0) * scale}
        for each in row["crossovers"]
    ]
    if not places:
        return []
    line = alt.Chart(alt.Data(values=places)).mark_rule(strokeDash=[3, 4], strokeWidth=1.4, color=SOFT)
    rings = alt.Chart(alt.Data(values=[place for place in places if place["y"]]))
    rings = rings.mark_point(size=190, strokeWidth=1.6, opacity=1, color=TEXT)
    return [line.encode(x=x), rings.encode(x=x, y=y)] if rings.data.values else [line.encode(x=x)]


def _names(points: Sequence[dict[str, Any]], width: int, height: int, colour: Any, x: Any, y: Any) -> Any:
    """Each curve's name beside its last point, moved apart where two ends are close."""
    import altair as alt

    last: dict[str, dict[str, Any]] = {}
    for point in points:
        last[point["algorithm"]] = point
    if not last:
        return alt.Chart(alt.Data(values=[])).mark_text()
    logs = [math.log(point["y"]) for point in points]
    gap = 15 / (height - 72) * ((max(logs) - min(logs)) or 1.0)
    moved = apart([math.log(point["y"]) for point in last.values()], gap)
    labels = [
        {**point, "y": math.exp(y), "algorithm": name}
        for (name, point), y in zip(last.items(), moved, strict=True)
    ]
    base = alt.Chart(alt.Data(values=labels)).encode(x=x, y=y, text="algorithm:N", color=colour)
    return base.mark_text(align="left", dx=9, fontSize=13, fontWeight=600, clip=False)


def apart(places: Sequence[float], gap: float) -> list[float]:
    """Places moved so that none is nearer to another than a gap, in their order, about their middle.

    Example:
        >>> apart([2.0, 9.0, 2.5], 1.0)
        [1.75, 9.0, 2.75]
    """
    order = sorted(range(len(places)), key=lambda place: places[place])
    groups: list[tuple[float, list[int]]] = []  # (sum of what each wishes the first to be at, members)
    for place in order:
        total, members = places[place], [place]
        while groups:
            before, others = groups[-1]
            if before / len(others) + gap * len(others) <= total / len(members):
                break
            groups.pop()
            total, members = before + total - gap * len(others) * len(members), others + members
        groups.append((total, members))
    moved = [0.0] * len(places)
    for total, members in groups:
        for step, place in enumerate(members):
            moved[place] = total / len(members) + gap * step
    return moved


def _styled(chart: Any, right: int = 66) -> Any:
    plain = {"labelColor": SOFT, "titleColor": SOFT, "domainColor": LINE, "tickColor": LINE}
    return (
        chart.configure(
            font="sans-serif",
            background="transparent",
            padding={"left": 2, "right": right, "top": 6, "bottom": 2},
        )
        .configure_view(stroke=None)
        .configure_axis(
            gridColor=LINE,
            labelFontSize=12,
            titleFontSize=12.5,
            titleFontWeight="normal",
            titlePadding=8,
            **plain,
        )
        .configure_axisX(grid=False)
    )


def _svg(chart: Any, label: str) -> Markup:
    """The drawing alone: no prologue, no fixed size, nothing that the page's security policy would refuse."""
    import vl_convert

    text = vl_convert.vegalite_to_svg(chart.to_json())
    text = text[text.index("<svg") :]
    head, body = text.split(">", 1)
    box = re.search(r'viewBox="[\d. -]+"', head)
    assert box is not None
    label = str(Markup.escape(label))
    return Markup(f'<svg xmlns="http://www.w3.org/2000/svg" {box[0]} role="img" aria-label="{label}">{body}')
