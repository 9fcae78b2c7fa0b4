"""What the page of answers shows: each answer as `convscope ask` kept it, its pictures, its charts as SVG."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from convscope.errors import StoreError

FOLDER = "answers"  # in the report's folder: NAME.json and NAME-PICTURE.png, as `ask` writes them

_COLOURS = ("#4453d6", "#0f8a8a", "#b7791f", "#a8458f", "#6b7079", "#1d8a57")
_WIDE, _NARROW = (560, 300), (344, 260)
_KINDS = {"holds": "good", "holds when": "fair", "does not hold here": "bad", "inconclusive": "open"}


def stored(out: Path, order: Iterable[str]) -> list[dict[str, Any]]:
    """The answers that a report's folder holds, in the order of the questions; others after them.

    Raises:
        StoreError: one of the files cannot be read.
    """
    found = {}
    for file in sorted((out / FOLDER).glob("*.json")):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StoreError(f"{str(file)!r} cannot be read; remove it and ask again") from error
        if isinstance(content, dict) and "findings" in content:
            found[file.stem] = content
    places = {name: place for place, name in enumerate(order)}
    return [found[name] for name in sorted(found, key=lambda name: (places.get(name, len(places)), name))]


def refused(out: Path) -> dict[str, str]:
    """Title of a question -> why it was not answered, as `convscope ask all` left it.

    Raises:
        StoreError: the file cannot be read.
    """
    file = out / FOLDER / "refused.json"
    try:
        return {str(k): str(v) for k, v in json.loads(file.read_text(encoding="utf-8")).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise StoreError(f"{str(file)!r} cannot be read; remove it and ask again") from error


def shown(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer as its template reads it: verdicts with a class, pictures with a path, charts drawn."""
    findings = [
        {
            **one,
            "kind": _KINDS.get(one["verdict"], "open"),
            **{key: _held(one[key]) for key in ("sentence", "test", "when")},
        }
        for one in answer["findings"]
    ]
    counts = {kind: sum(one["kind"] == kind for one in findings) for kind in _KINDS.values()}
    pictures = [
        {"columns": [], "rows": [], **one, "path": f"{FOLDER}/{one['file']}"}
        for one in answer["pictures"]
        if _is_plain(one.get("file"))
    ]
    charts = [_plots(json.dumps(chart)) for chart in answer["charts"] if any(chart["series"].values())]
    drawn = {"findings": findings, "counts": counts, "pictures": pictures, "charts": charts}
    return {**answer, **drawn, "statement": _held(answer["statement"])}


def _held(text: str) -> str:
    """Text in which no line breaks between a number and its per cent sign."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


@cache
def _plots(chart: str) -> dict[str, Any]:
    """A chart's title and drawings; drawn once, however often a growing report is written."""
    told = json.loads(chart)
    return {"title": told["title"], "plots": [draw(told, wide) for wide in (True, False)]}


def _is_plain(name: Any) -> bool:
    """Whether a file's name stays in its folder."""
    return isinstance(name, str) and name.endswith(".png") and "/" not in name and "\\" not in name


def draw(chart: dict[str, Any], wide: bool) -> Markup:
    """A chart of an answer as an `<svg>` element, for wide screens or for phones.

    Args:
        chart: as `Chart.to_dict()` has it.
        wide: which of the two.
    """
    import altair as alt

    from convscope.site import charts

    width, height = _WIDE if wide else _NARROW
    logs = {axis: axis in chart["logs"] for axis in "xy"}
    points = [
        {"x": x, "y": y, "series": name}
        for name, pairs in chart["series"].items()
        for x, y in pairs
        if x is not None and y is not None and (x > 0 or not logs["x"]) and (y > 0 or not logs["y"])
    ]
    names = list(chart["series"])
    axes = {
        axis: getattr(alt, axis.upper())(f"{axis}:Q", title=chart[axis]).scale(
            type="log" if logs[axis] else "linear", nice=False, padding=12, zero=False
        )
        for axis in "xy"
    }
    colour = alt.Color("series:N", legend=None).scale(
        domain=names, range=[_COLOURS[place % len(_COLOURS)] for place in range(len(names))]
    )
    base = alt.Chart(alt.Data(values=points)).encode(x=axes["x"], y=axes["y"], color=colour)
    last = {point["series"]: point for point in points}
    ends = alt.Chart(alt.Data(values=_ends(last, points, logs["y"], height - 52))).encode(
        x=axes["x"], y=axes["y"], text="series:N", color=colour
    )
    layers = [
        base.mark_line(strokeWidth=2.2),
        base.mark_point(size=36, filled=True, opacity=1),
        ends.mark_text(align="left", dx=8, fontSize=12, fontWeight=600),
    ]
    made = alt.layer(*layers).properties(width=width - 74, height=height - 52)
    return charts._svg(charts._styled(made), chart["title"])


def _ends(
    last: dict[str, dict[str, Any]], points: Sequence[dict[str, Any]], log: bool, height: int
) -> list[dict[str, Any]]:
    """Where the names of the curves stand: beside their last points, apart from one another."""
    from convscope.site import charts

    to, back = (math.log, math.exp) if log else (float, float)
    all_ = [to(point["y"]) for point in points]
    if not all_:
        return []
    gap = 14 / height * ((max(all_) - min(all_)) or 1.0)
    moved = charts.apart([to(point["y"]) for point in last.values()], gap)
    return [{**point, "y": back(y)} for point, y in zip(last.values(), moved, strict=True)]
