"""The notebook view of comparisons: tables, how the difference grows, the pictures of units side by side, the front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from convscope.measures.figures import printable, to_html
from convscope.site.notebook import data_uri

if TYPE_CHECKING:
    from torch import Tensor

    from convscope.rewrites.compare_several import Comparisons
    from convscope.rewrites.compare_table import Comparison, Feature

FLOOR = 1e-8  # relative difference at the bottom of the chart
_STYLE = (
    "<style>.convscope-pairs{display:flex;flex-wrap:wrap;gap:14px 22px;margin:10px 0;font:12px/1.4 system-ui,sans-serif}"
    ".convscope-pairs figure{margin:0}.convscope-pairs div{display:flex;gap:4px}"
    ".convscope-pairs img,.convscope-pairs i{display:grid;place-items:center;width:104px;height:104px;object-fit:cover;"
    "border-radius:8px;background:rgba(128,128,128,.15);margin:0}</style>"
)


def comparison_html(found: Comparison) -> str:
    """One comparison."""
    pairs = "".join(map(_pair, found.features))
    shown = f'{_STYLE}<div class="convscope-pairs">{pairs}</div>' if pairs else ""
    return to_html(found.sheets()) + growth([row.rms for row in found.layers], found.tolerance) + shown


def comparisons_html(found: Comparisons) -> str:
    """Several: the table and the picture of the front."""
    points = [(point.cost, point.quality, point.on_front) for point in found.points]
    return to_html([found.sheet()]) + front(points, found.cost, found.quality)


def growth(rms: Sequence[float], tolerance: float) -> str:
    """How the difference grows, layer by layer, as SVG; nothing where there are fewer than two layers.

    Example:
        >>> growth([0.0], 1e-4), growth([0.0, 0.1], 1e-4)[:4]
        ('', '<svg')
    """
    if len(rms) < 2:
        return ""
    width, height = 520, 120
    span = math.log(10 / FLOOR)

    def y(value: float) -> float:
        return height * (1 - math.log(min(max(value, FLOOR), 10) / FLOOR) / span)

    places = [(width * k / (len(rms) - 1), y(value)) for k, value in enumerate(rms)]
    line = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
    parts = [
        f'<rect width="{width}" height="{height - y(tolerance):.1f}" y="{y(tolerance):.1f}" opacity=".12" fill="currentColor"/>',
        f'<path d="{line}" fill="none" stroke="#4453d6" stroke-width="2"/>',
    ]
    for power in (-6, -4, -2, 0):
        at, told = y(10.0**power), f"{100 * 10.0**power:g} %"
        parts.append(f'<path d="M0 {at:.1f}H{width}" stroke="currentColor" opacity=".15"/>')
        parts.append(
            f'<text x="{width + 8}" y="{at + 4:.1f}" font-size="11" fill="currentColor">{told}</text>'
        )
    return _svg(width + 70, height, "How the difference grows from layer to layer; shaded: rounding", parts)


def front(points: Sequence[tuple[float, float | None, bool]], cost: str, quality: str) -> str:
    """Quality against cost as SVG, the front filled; nothing where no quality is known.

    Example:
        >>> front([(1.0, None, False)], "macs", "accuracy")
        ''
    """
    known = [(cost, quality, best) for cost, quality, best in points if quality is not None]
    if not known:
        return ""
    width, height, edge = 420, 240, 18
    xs, ys = [point[0] for point in known], [point[1] for point in known]
    (left, right), (low, high) = (min(xs), max(xs)), (min(ys), max(ys))
    parts = []
    for x, y, best in known:
        a = edge + (width - 2 * edge) * ((x - left) / (right - left) if right > left else 0.5)
        b = height - edge - (height - 2 * edge) * ((y - low) / (high - low) if high > low else 0.5)
        fill = "#4453d6" if best else "none"
        parts.append(
            f'<circle cx="{a:.1f}" cy="{b:.1f}" r="6" fill="{fill}" stroke="#4453d6" stroke-width="2"/>'
        )
    parts.append(f'<path d="M2 2V{height - 2}H{width - 2}" fill="none" stroke="currentColor" opacity=".4"/>')
    label = f"{quality} (up) against {cost} (right)"
    parts.append(f'<text x="10" y="14" font-size="11" fill="currentColor">{escape(label)}</text>')
    return _svg(width, height, label, parts)


def _svg(width: int, height: int, label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(label)}" style="max-width:100%;margin:10px 0">{"".join(parts)}</svg>'
    )


def _pair(feature: Feature) -> str:
    pictures = zip((feature.before, feature.after), feature.status, strict=True)
    shown = "".join(_picture(picture, status) for picture, status in pictures)
    told = ["–" if value is None else f"{value:.3g}" for value in feature.activations]
    name = escape(printable(f"{feature.layer} · {feature.channel}"))
    return f"<figure><div>{shown}</div><figcaption>{name}<br>{' → '.join(told)}</figcaption></figure>"


def _picture(picture: Tensor | None, status: str) -> str:
    return f"<i>{escape(status)}</i>" if picture is None else f'<img alt="" src="{data_uri(picture)}">'
