"""What notebooks show: self-contained HTML with the pictures inside, so that a saved notebook stays whole.

_repr_html_ of a visualization -> visualization_html, of a net -> net_html, of an atlas -> atlas_html, of a profile ->
profile_html
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from convscope.errors import RequestError
from convscope.site import formats
from convscope.site.index import hero
from convscope.site.profile import profile_html
from convscope.site.sprites import is_inside

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

MOST = 100  # pictures a notebook cell holds; more would make the saved notebook heavy
_STYLE = (
    "<style>.convscope{font:14px/1.45 system-ui,sans-serif;max-width:1100px}"
    ".convscope .grid{display:flex;flex-wrap:wrap;gap:10px;padding:0;margin:8px 0}"
    ".convscope figure{margin:0;width:112px}"
    ".convscope figure img,.convscope figure .none{display:grid;place-items:center;width:112px;height:112px;"
    "object-fit:cover;border-radius:10px;background:rgba(128,128,128,.15);margin:0}"
    ".convscope figcaption{font-size:12px;overflow:hidden;text-overflow:ellipsis;white-space:nowrap;"
    "opacity:.8}"
    ".convscope table{border-collapse:collapse;margin:6px 0}"
    ".convscope td{text-align:left;padding:3px 16px 3px 0}"
    ".convscope td:first-child{opacity:.65}.convscope code{overflow-wrap:anywhere}</style>"
)


class UnitLike(Protocol):
    """The fields of a visualized unit that its caption reads."""

    @property
    def layer(self) -> str: ...
    @property
    def channel(self) -> Any: ...
    @property
    def label(self) -> str | None: ...
    @property
    def activation(self) -> float: ...
    @property
    def status(self) -> str: ...


class VisualizationLike(Protocol):
    """A visualization: `images` [unit, channel, height, width] in [0, 1], one entry of `units` for each."""

    @property
    def images(self) -> Tensor: ...
    @property
    def units(self) -> Sequence[UnitLike]: ...


def html(thing: Any) -> str:
    """The notebook view of a visualization, a net, a profile or an atlas.

    Raises:
        RequestError: There is no view for such a thing.

    Example:
        >>> html(3)
        Traceback (most recent call last):
        convscope.errors.RequestError: thing=3 has no notebook view; give a Visualization, a Net or an Atlas.
    """
    if hasattr(thing, "images") and hasattr(thing, "units"):
        return visualization_html(thing)
    if hasattr(thing, "totals"):
        return profile_html(thing)
    if hasattr(thing, "module") and hasattr(thing, "input"):
        return net_html(thing)
    if hasattr(thing, "manifest"):
        return atlas_html(thing.manifest)
    raise RequestError(f"thing={thing!r} has no notebook view; give a Visualization, a Net or an Atlas.")


def visualization_html(visualization: VisualizationLike) -> str:
    """A grid of the pictures, each with its layer, channel and activation."""
    total = len(visualization.units)
    figures = [
        _figure(
            None if unit.status in ("dead", "nan") else image_of(visualization.images[number]),
            unit.label or f"{unit.layer} · {unit.channel}",
            f"{unit.layer} · channel {unit.channel} · activation {formats.number(unit.activation)}"
            f" · {unit.status}",
            unit.status,
        )
        for number, unit in enumerate(visualization.units[:MOST])
    ]
    rest = f"<p>and {total - MOST} more</p>" if total > MOST else ""
    return f'{_STYLE}<div class="convscope">{_grid(figures)}{rest}</div>'


def net_html(net: Any) -> str:
    """A summary of a `Net`: where it comes from, what it takes, how large it is."""
    spec = net.input
    trained = "given by you" if net.trained is None else "trained" if net.trained else "random"
    rows = [
        ("Source", net.source),
        ("Input", formats.shape(spec.shape)),
        ("Mean, std", f"{formats.plain(spec.mean)}; {formats.plain(spec.std)}"),
        ("Parameters", formats.count(net.parameters_count)),
        ("Weights", f"{trained}, sha256 {net.sha256[:16]}…"),
        ("Labels", f"{len(net.labels)} class names" if net.labels else "none"),
        *(("Warning", warning) for warning in net.warnings),
    ]
    cells = "".join(
        f"<tr><td>{escape(name)}</td><td><code>{escape(str(value))}</code></td></tr>" for name, value in rows
    )
    return f'{_STYLE}<div class="convscope"><b>{escape(net.name)}</b><table>{cells}</table></div>'


def atlas_html(manifest: str | Path) -> str:
    """A link to the report beside an atlas manifest, and its best pictures.

    Args:
        manifest: Path of `atlas.json`.
    """
    path = Path(manifest).resolve()
    atlas = json.loads(path.read_text(encoding="utf-8"))
    units = {unit["id"]: _ranked(unit) for unit in atlas["units"]}
    names = {layer["index"]: layer["name"] for layer in atlas["layers"]}
    figures = []
    for identity in hero(list(units.values()), 18):
        unit = units[identity]
        place = f"{names[unit['layer']]} · {unit['channel']}"
        file = path.parent / unit["image"]
        figures.append(_figure(_read(file), unit["label"] or place, place, "file missing"))
    page = path.parent / "index.html"
    link = (
        f'<a href="{escape(page.as_uri())}">{escape(str(page))}</a>' if page.is_file() else escape(str(path))
    )
    name, state = escape(atlas["net"]["name"]), escape(atlas["state"])
    head = f"<b>{name}</b>: {len(units)} of {atlas['planned']} units, {state}"
    return f'{_STYLE}<div class="convscope">{head}<br>{link}{_grid(figures)}</div>'


def image_of(pixels: Tensor) -> bytes:
    """A picture [channel, height, width] in [0, 1] as PNG; the first channel alone unless there are three."""
    from PIL import Image

    values = (pixels.detach().float().cpu().clamp(0, 1) * 255).round().byte()  # [channel, height, width]
    if values.shape[0] == 3:
        return _png(Image.fromarray(values.permute(1, 2, 0).numpy()))
    return _png(Image.fromarray(values[0].numpy()))


def data_uri(pixels: Tensor) -> str:
    """A picture [channel, height, width] in [0, 1] as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(image_of(pixels)).decode()}"


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _read(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None


def _ranked(unit: dict[str, Any]) -> dict[str, Any]:
    natural = unit.get("natural") or {}
    image = unit["image"] if unit["image"] and is_inside(unit["image"]) else None
    return {
        **unit,
        "image": image,
        "ratio": natural.get("ratio"),
        "place": unit["channel"],
        "flags": unit.get("flags") or [],
    }


def _figure(image: bytes | None, caption: str, title: str, instead: str) -> str:
    if image is None:
        picture = f'<span class="none">{escape(instead)}</span>'
    else:
        kind = "webp" if image[8:12] == b"WEBP" else "png"
        picture = (
            f'<img alt="{escape(title)}" src="data:image/{kind};base64,{base64.b64encode(image).decode()}">'
        )
    return f'<figure title="{escape(title)}">{picture}<figcaption>{escape(caption)}</figcaption></figure>'


def _grid(figures: Iterable[str]) -> str:
    return f'<div class="grid">{"".join(figures)}</div>'
