"""Boxes beyond grids of numbers: pictures as they are, and curves; for the pictures of the rules and of the examples."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from drawing import COLOURS, GREY, INK, LINE, Box, Frame, _text, _wide
from PIL import Image
from torch import Tensor
from torch.nn import functional


@dataclass
class Plate(Box):
    """A picture, each of its pixels sharp, a title above and a caption below.

    Args:
        values: [height, width] or [3, height, width] in 0 to 1.
        title, caption: text.
        side: its width, in pixels of the page.
        frames: outlines, in pixels of the picture.
        photo: a photograph, which need not be kept to the last bit.
    """

    values: Tensor
    title: str = ""
    caption: str = ""
    side: float = 120
    frames: Sequence[Frame] = ()
    photo: bool = False

    def __post_init__(self) -> None:
        height, width = self.values.shape[-2:]
        self.scale = self.side / width
        self._body = height * self.scale
        self._head = 22.0 if self.title else 0.0
        lines = self.caption.split("\n") if self.caption else []
        self.width = max(
            [self.side, _wide(self.title, 13, False, True), *(_wide(line, 12, False) for line in lines)]
        )
        self.height = self._head + self._body + (17.0 * len(lines) + 2 if lines else 0)

    @property
    def middle(self) -> float:
        return self._head + self._body / 2

    def draw(self, x: float, y: float) -> str:
        centre, top = x + self.width / 2, y + self._head
        left = centre - self.side / 2
        parts = [_text(centre, y + 13, self.title, 13, INK, "middle", False, True)] if self.title else []
        parts.append(
            f'<image x="{left:g}" y="{top:g}" width="{self.side:g}" height="{self._body:g}" '
            f'style="image-rendering:pixelated" href="{uri(self.values, self.photo)}"/>'
            f'<rect x="{left:g}" y="{top:g}" width="{self.side:g}" height="{self._body:g}" fill="none" stroke="{LINE}"/>'
        )
        parts += [
            f'<rect x="{left + frame.column * self.scale:g}" y="{top + frame.row * self.scale:g}" '
            f'width="{frame.columns * self.scale:g}" height="{frame.rows * self.scale:g}" fill="none" '
            f'stroke="{frame.colour}" stroke-width="{frame.width:g}"/>'
            for frame in self.frames
        ]
        below = top + self._body + 15
        parts += [
            _note(centre, below + 17 * at, line)
            for at, line in enumerate(self.caption.split("\n") if self.caption else ())
        ]
        return "".join(parts)


def _note(
    x: float, y: float, words: str, size: float = 12, colour: str = GREY, anchor: str = "middle"
) -> str:
    return _text(x, y, words, size, colour, anchor, False, False)


def uri(values: Tensor, photo: bool = False) -> str:
    """A picture as a file inside the SVG: a PNG of 64 levels a channel; of a photograph a JPEG."""
    levels = (values.detach().double().clamp(0, 1) * 63).round() / 63 * 255
    pixels = levels.round().to(torch.uint8)
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy() if pixels.ndim == 3 else pixels.numpy())
    buffer = io.BytesIO()
    if photo:
        image.save(buffer, "JPEG", quality=80, optimize=True)
    else:
        image.save(buffer, "PNG", optimize=True)
    kind = "jpeg" if photo else "png"
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode()


def joined(pictures: Sequence[Tensor]) -> Tensor:
    """One picture as it is; four, two by two with a white line between."""
    if len(pictures) == 1:
        return pictures[0]
    framed = [functional.pad(each, (0, 2, 0, 2), value=1.0) for each in pictures]
    return torch.cat([torch.cat(framed[at : at + 2], 2) for at in range(0, len(framed), 2)], 1)


def painted(values: Tensor, low: str = "#ffffff", high: str = "#0969da") -> Tensor:
    """0 to 1 as a colour between two, [3, height, width]."""
    ends = [
        torch.tensor([int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)])[:, None, None] for c in (low, high)
    ]
    share = values.detach().float().clamp(0, 1)[None]
    return ends[0] + (ends[1] - ends[0]) * share


def signed(values: Tensor, high: float) -> Tensor:
    """Blue above 0, orange below, white at 0, [3, height, width]; full colour at `high`."""
    scaled = values.detach() / high
    return torch.where(scaled > 0, painted(scaled), painted(-scaled, high="#d4570a"))


@dataclass
class Curves(Box):
    """Lines through points, with their names at the right.

    Args:
        lines: name -> points (x, y).
        across, up: what the axes are.
        percent: (x, y): whether ticks are percentages.
        side: width and height of the field, in pixels.
        level: a name and the height of a line across.
    """

    lines: Mapping[str, Sequence[tuple[float, float]]]
    across: str
    up: str
    percent: tuple[bool, bool] = (True, True)
    side: tuple[float, float] = (300, 190)
    level: tuple[str, float] | None = None

    def __post_init__(self) -> None:
        self._left, self._foot, self._head = 52.0, 42.0, 24.0
        self._right = 12 + max(_wide(name, 12, False) for name in self.lines)
        self.width = self._left + self.side[0] + self._right
        self.height = self._head + self.side[1] + self._foot

    def draw(self, x: float, y: float) -> str:
        points = [point for line in self.lines.values() for point in line]
        ys = [p[1] for p in points] + ([self.level[1]] if self.level else [])
        (x0, x1), (y0, y1) = _range([p[0] for p in points]), _range(ys)
        left, top = x + self._left, y + self._head

        def at(px: float, py: float) -> tuple[float, float]:
            return (
                round(left + (px - x0) / (x1 - x0) * self.side[0], 1),
                round(top + (1 - (py - y0) / (y1 - y0)) * self.side[1], 1),
            )

        parts = [
            _note(left - 44, y + 12, self.up, anchor="start"),
            _note(left + self.side[0] / 2, top + self.side[1] + 36, self.across),
        ]
        for value in _ticks(y0, y1):
            h = at(x0, value)[1]
            parts.append(f'<path d="M{left:g} {h:g}h{self.side[0]:g}" stroke="#eaeef2"/>')
            parts.append(_note(left - 6, h + 4, _tick(value, self.percent[1]), 11, anchor="end"))
        parts += [
            _note(at(value, y0)[0], top + self.side[1] + 16, _tick(value, self.percent[0]), 11)
            for value in _ticks(x0, x1)
        ]
        parts.append(
            f'<path d="M{left:g} {top:g}v{self.side[1]:g}h{self.side[0]:g}" stroke="{LINE}" fill="none"/>'
        )
        if self.level is not None:
            h = at(x0, self.level[1])[1]
            parts.append(
                f'<path d="M{left:g} {h:g}h{self.side[0]:g}" stroke="{GREY}" stroke-dasharray="4 3"/>'
            )
            parts.append(_note(left + 4, h - 5, self.level[0], 11, anchor="start"))
        labels: list[float] = []
        order = sorted(self.lines.items(), key=lambda item: -max(item[1])[1])
        colours = dict(zip(self.lines, COLOURS, strict=False))
        for name, line in order:
            places = [at(*point) for point in sorted(line)]
            path = "L".join(f"{a:g} {b:g}" for a, b in places)
            parts.append(f'<path d="M{path}" stroke="{colours[name]}" stroke-width="2" fill="none"/>')
            parts += [f'<circle cx="{a:g}" cy="{b:g}" r="3.2" fill="{colours[name]}"/>' for a, b in places]
            height = max(places[-1][1] + 4, (labels[-1] + 15) if labels else 0)
            labels.append(height)
            parts.append(_note(left + self.side[0] + 8, height, name, 12, colours[name], "start"))
        return "".join(parts)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 1.0
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers."""
    step = 10 ** math.floor(math.log10((high - low) / 3))
    step = next(step * k for k in (1, 2, 5, 10) if (high - low) / (step * k) <= 6)
    return [round(k * step, 10) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _tick(value: float, percent: bool) -> str:
    return f"{100 * value:.0f} %" if percent else f"{value:g}"


def tiny(value: float) -> str:
    """How an error reads.

    >>> tiny(2.2e-16), tiny(0.1312), tiny(0)
    ('2e-16', '0.13', '0')
    """
    if value == 0:
        return "0"
    return f"{value:.0e}".replace("e-0", "e-") if abs(value) < 1e-3 else f"{value:.2g}"
