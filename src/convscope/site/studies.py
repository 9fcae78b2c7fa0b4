"""What the page of studies shows: for each study the choice in words, every variant's figures, effect beside cost, curves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from convscope.site import formats
from convscope.site.files import write_if_changed
from convscope.site.scripts import safe_json

FILE = "data/studies.json"
COLOURS = (
    "#4453d6",
    "#0f8a8a",
    "#b7791f",
    "#a8458f",
    "#6b7079",
    "#1d8a57",
)  # `style.css` gives each in both themes
MANY = 2 * len(COLOURS)  # variants that are told apart: the second half by hollow points and dashed lines
_WIDE, _NARROW = (520, 330), (344, 280)
_SHORT = {"macs": "MACs", "params": "parameters", "latency": "latency, ms"}


def write_studies(out: Path, studies: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes `data/studies.json`.

    Args:
        out: the report's folder.
        studies: name -> what `StudyResult.to_dict()` gives; under "made_with" words on its code, where there are some.
    """
    write_if_changed(out / FILE, safe_json(dict(studies)))


def shown(name: str, study: Mapping[str, Any]) -> dict[str, Any]:
    """A study as its template reads it; charts are drawn once, however often a growing report is written."""
    return _shown(name, json.dumps(study))


@cache
def _shown(name: str, text: str) -> dict[str, Any]:
    study = json.loads(text)
    summary, variants = study["summary"], study["variants"]
    told: dict[str, Any] = {
        "name": name,
        "anchor": f"study-{name}",
        "title": study["design"].get("title") or _title(name),
        "facts": _facts(study),
        "settings": _settings(study),
        "failed": _failed(study),
        "made_with": study.get("made_with", ""),
        "folds": len(variants) > MANY,
    }
    if summary is None:
        return told | {"rows": [], "choice": None, "charts": []}
    metric = next(iter(summary["metrics"]))
    found = summary["metrics"][metric]
    choice = summary["choice"]
    kinds = ("macs" if choice is None else choice["cost"], "macs", "params")
    kind = next((kind for kind in kinds if kind in found["pareto"]), "params")
    rows = _rows(study, metric, kind)
    front = found["pareto"].get(kind, [])
    score = _score(study)[0].upper() + _score(study)[1:]
    joined = "; the line joins those that none other beats in both" if len(front) > 1 else ""
    charts = [
        {
            "title": f"{score} on the {metric} data beside {_SHORT[kind].partition(',')[0]}, mean and 95 %\N{NO-BREAK SPACE}"
            f"interval over seeds{joined}".replace(" %", "\N{NO-BREAK SPACE}%"),
            "plots": [_beside_cost(rows, front, kind, _score(study), wide) for wide in (True, False)],
        },
        {
            "title": f"{score} on the validation data after each epoch, mean over seeds",
            "plots": [_curves(study, wide) for wide in (True, False)],
        },
    ]
    return told | {
        "rows": rows,
        "metric": metric,
        "score": _score(study),
        "conclusive": choice is None or choice["conclusive"],
        "margin": "" if choice is None else _points(choice["margin"]),
        "choice": None if choice is None else choice["text"].replace(" %", "\N{NO-BREAK SPACE}%"),
        "charts": [chart for chart in charts if chart["plots"][0]],
        "timed": any(row["latency"] for row in rows),
        "fields": any(row["field"] for row in rows),
        "counted": any(row["macs"] is not None for row in rows),
    }


# ---------------------------------------------------------------- words and rows


def key(studies: Sequence[Mapping[str, Any]]) -> str:
    """What a settled study is, of studies as `shown` gives them."""
    margins = list(dict.fromkeys(study["margin"] for study in studies if study.get("margin")))
    return f"settled at a margin of {' or '.join(margins)}" if margins else "settled"


def _points(margin: float) -> str:
    return "one point" if margin == 0.01 else f"{100 * margin:g} points"


def _failed(study: Mapping[str, Any]) -> list[str]:
    """What went wrong, once for all runs that it happened to."""
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for failure in study["failed"]:
        runs.setdefault(failure["reason"], []).append(failure)
    return [f"{_named(study, failures)}: {reason}" for reason, failures in runs.items()]


def _named(study: Mapping[str, Any], failures: Sequence[Mapping[str, Any]]) -> str:
    """Which runs failed: a variant and its seeds; of several variants, how many runs."""
    places = {failure["variant"] for failure in failures}
    if len(places) > 1:
        return f"{len(failures)} runs of {len(places)} variants failed"
    seeds = sorted(failure["seed"] for failure in failures)
    several = "s" if len(seeds) > 1 else ""
    label = study["variants"][places.pop()]["label"]
    return f"{label}, seed{several} {', '.join(map(str, seeds))} failed"


def _title(name: str) -> str:
    return name.replace("-", " ").replace("_", " ").capitalize()


def _score(study: Mapping[str, Any]) -> str:
    return "R²" if study["data"].get("values") else "accuracy"


def _facts(study: Mapping[str, Any]) -> str:
    """What was trained on what, one line."""
    design, data = study["design"], study["data"]
    seeds, variants = len(design["seeds"]), len(study["variants"])
    done = sum(len(variant["runs"]) for variant in study["variants"])
    ((budget, amount),) = design["budget"].items()
    unit = {"epochs": "epochs", "macs": "training MACs", "seconds": "seconds"}[budget]
    each = f"{formats.count(amount) if budget == 'macs' else f'{amount:g}'} {unit.removesuffix('s') if amount == 1 else unit}"
    counts = ", ".join(f"{count:,} for {_FOR[split]}" for split, count in (data.get("counts") or {}).items())
    kind = {"text": "sentences", "dense": "images, labelled pixel by pixel"}.get(
        str(data.get("kind")), "images"
    )
    kind = "images with values to predict" if data.get("values") else kind
    runs = f"{variants} variant{'s' if variants > 1 else ''} × {seeds} seed{'s' if seeds > 1 else ''}"
    missing = "" if done == variants * seeds else f" ({done} of {variants * seeds} runs finished)"
    return (
        f"{runs}{missing}, {each} each; {data.get('name', 'data')}: {kind}{f', {counts}' if counts else ''}."
    )


_FOR = {"train": "training", "validation": "validation", "test": "the test"}


def _settings(study: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What it takes to train it again."""
    design, code = study["design"], study["code"]
    found = [("network", design["base"])]
    found += [
        (key, formats.plain(design[key])) for key in ("arguments", "training", "factors") if design[key]
    ]
    found += [("data", formats.plain(design["data"]))] if design["data"] else []
    hashes = [str(study["data"].get("sha256", ""))[:12], str(code.get("sources", ""))]
    found += [
        (what, value)
        for what, value in zip(("hash of the data", "hash of the code"), hashes, strict=True)
        if value
    ]
    found += [(key, str(code[key])) for key in ("convscope", "torch") if key in code]
    return [(key, str(value)) for key, value in found]


def _rows(study: Mapping[str, Any], metric: str, kind: str) -> list[dict[str, Any]]:
    """A row a variant, with what it is drawn with."""
    summary = study["summary"]
    found = summary["metrics"][metric]
    reach = max(
        (
            abs(end)
            for difference in found["differences"]
            if difference is not None
            for end in (difference["mean"], difference["low"], difference["high"])
            if end is not None
        ),
        default=0.0,
    )
    rows = []
    for place, variant in enumerate(study["variants"]):
        cost = variant["cost"] or {}
        field = cost.get("receptive_field")
        latency = variant.get("latency")
        mean, difference = found["means"][place], found["differences"][place]
        rows.append(
            {
                "label": variant["label"],
                "name": Markup(str(escape(variant["label"])).replace("=", "=<wbr>")),  # where it may break
                "mark": _mark(place),
                "place": place,
                "mean": mean,
                "said": "–" if mean is None else f"{100 * mean['mean']:.1f}",
                "ends": _ends(mean),
                "difference": difference,
                "gap": "baseline" if place == summary["baseline"] else _gap(difference),
                "p": _p(difference),
                "forest": None if difference is None or not reach else _forest(difference, reach, place),
                "params": cost.get("params"),
                "macs": cost.get("macs"),
                "cost": (1e3 * latency["median"] if latency else None)
                if kind == "latency"
                else cost.get(kind),
                "field": None
                if not field
                else str(field[0])
                if len(set(field)) == 1
                else "×".join(map(str, field)),
                "latency": None if not latency else f"{1e3 * latency['median']:.3g}",
                "front": place in found["pareto"].get(kind, []),
                "chosen": summary["choice"] is not None and summary["choice"]["variant"] == place,
                "diverged": sum(run["diverged"] for run in variant["runs"]),
                "runs": [_run(run, metric) for run in variant["runs"]],
            }
        )
    return rows


def _ends(mean: Mapping[str, Any] | None) -> str:
    if mean is None or mean["low"] is None:
        return ""
    return f"{100 * mean['low']:.1f} to {100 * mean['high']:.1f}"


def _gap(difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return "–"
    return f"{100 * difference['mean']:+.1f}".replace("-", "\N{MINUS SIGN}")


def _p(difference: Mapping[str, Any] | None) -> str:
    if difference is None or difference["adjusted_p"] is None:
        return ""
    p = difference["adjusted_p"]
    return "< 0.001" if p < 1e-3 else f"{p:.3f}"


def _run(run: Mapping[str, Any], metric: str) -> str:
    score = run["scores"].get(metric)
    return f"seed {run['seed']}: " + (
        "diverged" if run["diverged"] else "–" if score is None else f"{100 * score:.1f}"
    )


# ---------------------------------------------------------------- drawings


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def _hollow(place: int) -> bool:
    return place // len(COLOURS) % 2 == 1


def _dot(place: int, x: float, y: float) -> str:
    """The variant's sign, as the charts have it."""
    colour = _colour(place)
    fill = "none" if _hollow(place) else colour
    return f'<circle cx="{x}" cy="{y}" r="4" fill="{fill}" stroke="{colour}" stroke-width="1.8"/>'


def _mark(place: int) -> Markup:
    return Markup(f'<svg class="sign" viewBox="0 0 12 12" aria-hidden="true">{_dot(place, 6, 6)}</svg>')


def _forest(difference: Mapping[str, Any], reach: float, place: int) -> Markup:
    """The difference to the baseline with its interval, on one scale for the whole study; the line in the middle is none."""
    width, height, middle = 132, 18, 66

    def x(value: float) -> float:
        return round(middle + value / reach * (middle - 7), 1)

    parts = [f'<path d="M{middle} 0V{height}" stroke="#e3e3df"/>']
    if difference["low"] is not None:
        ends = f"M{x(difference['low'])} 9H{x(difference['high'])}"
        parts.append(f'<path d="{ends}" stroke="{_colour(place)}" stroke-width="2"/>')
    parts.append(_dot(place, x(difference["mean"]), 9))
    body = "".join(parts)
    return Markup(f'<svg class="forest" viewBox="0 0 {width} {height}" aria-hidden="true">{body}</svg>')


def _beside_cost(
    rows: Sequence[Mapping[str, Any]], front: Sequence[int], kind: str, score: str, wide: bool
) -> Markup | None:
    """Means with intervals over cost, the Pareto front dashed."""
    import altair as alt

    from convscope.site import charts

    points = [
        {
            "x": row["cost"],
            "y": 100 * row["mean"]["mean"],
            "low": 100 * row["mean"]["low"] if row["mean"]["low"] is not None else None,
            "high": 100 * row["mean"]["high"] if row["mean"]["high"] is not None else None,
            "place": row["place"],
            "label": row["label"],
        }
        for row in rows
        if row["cost"] and row["mean"] is not None
    ]
    if not points:
        return None
    width, height = _WIDE if wide else _NARROW
    low, high = min(point["x"] for point in points), max(point["x"] for point in points)
    scale: dict[str, Any] = (
        {"type": "log", "nice": False, "padding": 18} if high > 3 * low else {"type": "linear", "zero": False}
    )
    ticks: Any = {"values": charts._ticks([point["x"] for point in points])} if scale["type"] == "log" else {}
    x = alt.X("x:Q", title=_SHORT[kind]).scale(**scale)
    x = x.axis(format="~s", labelOverlap="greedy", tickCount=5, **ticks)
    y = alt.Y("y:Q", title=f"{score}, %").scale(zero=False, nice=True)
    base = alt.Chart(alt.Data(values=points)).encode(x=x, y=y)
    line = [point for place in front for point in points if point["place"] == place]
    layers: list[Any] = []
    if len(line) > 1:
        joined = alt.Chart(alt.Data(values=line)).encode(x=x, y=y)
        layers.append(joined.mark_line(strokeDash=[3, 4], strokeWidth=1.4, color=charts.SOFT))
    for place in sorted({point["place"] for point in points}):
        one = base.transform_filter(f"datum.place === {place}")
        colour = _colour(place)
        layers.append(
            one.mark_rule(strokeWidth=2, opacity=0.55, color=colour).encode(y=alt.Y("low:Q"), y2="high:Q")
        )
        layers.append(
            one.mark_point(size=64, filled=not _hollow(place), opacity=1, color=colour, strokeWidth=1.8)
        )
    chart = alt.layer(*layers).properties(width=width - 74, height=height - 52)
    return charts._svg(charts._styled(chart, right=8), f"{score} beside {_SHORT[kind]}")


def _curves(study: Mapping[str, Any], wide: bool) -> Markup | None:
    """Validation scores epoch by epoch, a line a variant."""
    import altair as alt

    from convscope.site import charts

    width, height = _WIDE if wide else _NARROW
    layers: list[Any] = []
    for place, variant in enumerate(study["variants"]):
        points = _curve([run["curves"].get("validation_accuracy", []) for run in variant["runs"]])
        if len(points) < 2:
            continue
        epochs: Any = [point["x"] for point in points]
        x = alt.X("x:Q", title="epoch").axis(format="d", tickMinStep=1, values=epochs, labelOverlap="greedy")
        x = x.scale(nice=False, padding=10)
        y = alt.Y("y:Q", title=f"{_score(study)}, %").scale(zero=False, nice=True)
        base = alt.Chart(alt.Data(values=points)).encode(x=x, y=y)
        colour = _colour(place)
        dash = [5, 4] if _hollow(place) else [1, 0]
        layers.append(base.mark_line(strokeWidth=2, color=colour, strokeDash=dash))
        layers.append(base.mark_point(size=22, filled=True, opacity=1, color=colour))
    if not layers:
        return None
    chart = alt.layer(*layers).properties(width=width - 74, height=height - 52)
    return charts._svg(charts._styled(chart, right=8), f"{_score(study)} after each epoch")


def _curve(curves: Sequence[Sequence[float | None]]) -> list[dict[str, float]]:
    """The mean at each epoch of the runs that have one."""
    points = []
    for epoch in range(max(map(len, curves), default=0)):
        values = [curve[epoch] for curve in curves if epoch < len(curve)]
        known = [value for value in values if value is not None]
        if known:
            points.append({"x": float(epoch + 1), "y": 100 * sum(known) / len(known)})
    return points
