"""The results of `convolution.py` as one picture: how many times as fast, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from convscope.store import atomic_write

COLOURS = ("#6b7079", "#4453d6", "#0f8a8a", "#b7791f", "#a8458f", "#1d8a57", "#c4342d")
TITLES = {
    "winograd": "Winograd on 3x3: times as fast as …",
    "peers": "Layers with bias and ReLU: times as fast as …",
    "vgg": "VGG-16's convolutions: times as fast as …",
    "fft": "FFT on wide kernels: times as fast as …",
    "auto": "auto on varied layers: times as fast as direct",
    "cuda": "auto on CUDA: times as fast as …",
}
OURS = {
    "winograd": ("winograd F(4,3)",), "peers": ("convscope",), "vgg": ("convscope",),
    "fft": ("fft channels_last", "fft contiguous"), "auto": ("auto",), "cuda": ("auto",),
}  # fmt: skip
SHOWN = {
    "auto": ("faster layout",),
    "winograd": ("faster layout", "oneDNN prepacked"),
    "fft": ("faster layout", "fft-conv-pytorch"),
}


def points(part: str, result: dict[str, Any]) -> list[dict[str, Any]]:
    """One for each layer and other contestant; of several of ours the faster one."""
    found = []
    for name, row in result["layers"].items():
        ours = min((each for each in OURS[part] if each in row), key=lambda each: row[each]["ms"]["median"])
        for other, ratio in row[ours]["times as fast as"].items():
            if part not in SHOWN or other in SHOWN[part]:
                found.append({"layer": name, "against": other, **ratio})
    return found


def panel(part: str, threads: str, result: dict[str, Any]) -> alt.LayerChart:
    """Points with their 95 % intervals, one line a layer, a rule at 1."""
    values = points(part, result)
    order = list(result["layers"])
    if part == "auto":
        order = [each["layer"] for each in sorted(values, key=lambda each: -each["median"])]
    base = alt.Chart(alt.Data(values=values)).encode(
        y=alt.Y("layer:N", sort=order, title=None),
        color=alt.Color("against:N", title=None).scale(range=COLOURS),
    )
    x = alt.X("median:Q", title=None).scale(type="log", nice=False, padding=12).axis(format="~g", tickCount=6)
    one = (
        alt.Chart(alt.Data(values=[{"median": 1}])).mark_rule(strokeDash=[4, 4], color="#5f6268").encode(x=x)
    )
    spread = base.mark_rule(strokeWidth=4, opacity=0.3).encode(x=alt.X("low:Q"), x2="high:Q")
    dots = base.mark_point(filled=True, size=55, opacity=1).encode(x=x)
    title = f"{TITLES[part]} ({threads} thread{'s' if threads != '1' else ''})"
    return alt.layer(one, spread, dots).properties(width=520, height=alt.Step(15), title=title)


def draw(found: dict[str, Any], path: Path) -> None:
    """Writes the chart of all parts that the JSON holds."""
    panels = [
        panel(part, threads, result)
        for part in TITLES if part in found["parts"]
        for threads, result in found["parts"][part].items() if result["layers"]
    ]  # fmt: skip
    chart = alt.vconcat(*panels).resolve_scale(color="independent", x="independent")
    chart = chart.configure(
        background="#ffffff", font="sans-serif", padding={"left": 40, "right": 40, "top": 12, "bottom": 12}
    ).configure_view(stroke="#e3e3df")
    chart = chart.configure_axis(gridColor="#efefec", labelLimit=320).configure_title(anchor="start")
    atomic_write(path, vl_convert.vegalite_to_svg(chart.to_json()))
