"""Small pictures of grids of numbers, as SVG: boxes that know their size, put in rows and columns.

    sheet(Row(Grid(before, "input"), Arrow("MaxPool2d(2)"), Grid(after, "output"))).save(path)

A picture has a light background of its own, so that it reads the same on a light and on a dark page.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

INK, GREY, LINE, PAPER = "#1f2328", "#59636e", "#afb8c1", "#ffffff"
ORANGE, BLUE, GREEN, PURPLE, RED = "#d4570a", "#0969da", "#1a7f37", "#8250df", "#cf222e"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE)
SANS = "'Segoe UI',Helvetica,Arial,'DejaVu Sans',sans-serif"
MONO = "ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace"


def number(value: float) -> str:
    """As short as it reads well: 3, 0.5, 1.25, and nothing after the sign of a zero."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    text = "0" if text == "-0" else text
    return text.replace("-", "−")


def mix(first: str, second: str, share: float) -> str:
    """A colour between two, `share` of the second."""
    share = min(max(share, 0.0), 1.0)
    pairs = ((int(first[i : i + 2], 16), int(second[i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


# ---------------------------------------------------------------- palettes: a number's colour


def shades(
    colour: str = BLUE, low: float = 0.0, high: float = 1.0, depth: float = 0.55
) -> Callable[[float], str]:
    """From white to (a share `depth` of) a colour, light enough to read black numbers on."""
    return lambda value: mix(PAPER, colour, depth * (value - low) / (high - low))


def grey(value: float) -> str:
    """A picture's own grey, 0 black to 1 white."""
    return mix("#000000", "#ffffff", round(value * 32) / 32)


def signed(high: float) -> Callable[[float], str]:
    """Blue above 0, orange below."""
    return lambda value: mix(PAPER, BLUE if value > 0 else ORANGE, 0.55 * abs(value) / high)


# ---------------------------------------------------------------- boxes


class Box:
    """Something with a size that can be drawn at a place."""

    width: float
    height: float

    def draw(self, x: float, y: float) -> str:
        """SVG elements, the upper left corner at (x, y)."""
        raise NotImplementedError

    @property
    def middle(self) -> float:
        """The height at which a row lines it up with its neighbours."""
        return self.height / 2


def _text(
    x: float, y: float, words: str, size: float, colour: str, anchor: str, mono: bool, bold: bool
) -> str:
    kind = "m" if mono else "s"
    weight = ' font-weight="600"' if bold else ""
    place = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return (
        f'<text class="{kind}" x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{colour}"{place}{weight}>'
        f"{html.escape(words, quote=False)}</text>"
    )


def _wide(words: str, size: float, mono: bool, bold: bool = False) -> float:
    return len(words) * size * (0.61 if mono else 0.58 if bold else 0.53)


@dataclass
class Text(Box):
    """Lines of text, centred or from the left."""

    words: str
    size: float = 13
    colour: str = INK
    mono: bool = False
    bold: bool = False
    anchor: str = "middle"

    def __post_init__(self) -> None:
        lines = self.words.split("\n")
        self.width = max(_wide(line, self.size, self.mono, self.bold) for line in lines)
        self.height = len(lines) * self.size * 1.35

    def draw(self, x: float, y: float) -> str:
        at = x + self.width / 2 if self.anchor == "middle" else x
        return "".join(
            _text(
                at,
                y + self.size * (1 + 1.35 * row),
                line,
                self.size,
                self.colour,
                self.anchor,
                self.mono,
                self.bold,
            )
            for row, line in enumerate(self.words.split("\n"))
        )


@dataclass
class Frame:
    """An outline around some cells of a grid."""

    row: float
    column: float
    rows: float = 1
    columns: float = 1
    colour: str = ORANGE
    width: float = 2.5


@dataclass
class Grid(Box):
    """Numbers in coloured cells, a title above and a caption below.

    Args:
        values: [rows, columns].
        title, caption: text; the caption is by default the shape.
        cell: side of a cell, in pixels.
        paint: a number's colour.
        numbers: whether numbers are written in the cells.
        frames: outlines around cells.
        blank: cells that are padding or holes: [rows, columns] of bool.
        words: text for the cells instead of the numbers, row by row.
        fills: colours for the cells instead of the palette's, row by row; None for the palette's.
    """

    values: Tensor
    title: str = ""
    caption: str | None = ""
    cell: float = 30
    paint: Callable[[float], str] = field(default_factory=shades)
    numbers: bool = True
    frames: Sequence[Frame] = ()
    blank: Tensor | None = None
    words: Sequence[Sequence[str]] | None = None
    fills: Sequence[Sequence[str | None]] | None = None
    lines: bool = True

    def __post_init__(self) -> None:
        self.values = self.values.detach().double()
        rows, columns = self.values.shape
        self._head = 20.0 * self.title.count("\n") + 22 if self.title else 0.0
        self._foot = 17.0 * (self.caption.count("\n") + 1) + 2 if self.caption else 0.0
        labels = [
            *(_wide(line, 13, False, True) for line in self.title.split("\n")),
            *(_wide(line, 12, False) for line in (self.caption or "").split("\n")),
        ]
        self._grid = columns * self.cell
        self.width = max(self._grid, *labels)
        self.height = self._head + rows * self.cell + self._foot

    @property
    def middle(self) -> float:
        return self._head + self.values.shape[0] * self.cell / 2

    def draw(self, x: float, y: float) -> str:
        centre = x + self.width / 2
        left, top = centre - self._grid / 2, y + self._head
        parts = [
            _text(centre, y + 13 + 19 * at, line, 13, INK, "middle", False, True)
            for at, line in enumerate(self.title.split("\n") if self.title else ())
        ]
        rows, columns = self.values.shape
        cells = [(r, c) for r in range(rows) for c in range(columns)]
        parts += [self._squares(cells, left, top), self._figures(cells, left, top)]
        parts += [self._frame(frame, left, top) for frame in self.frames]
        below = top + rows * self.cell + 15
        parts += [
            _text(centre, below + 16 * at, line, 12, GREY, "middle", False, False)
            for at, line in enumerate(self.caption.split("\n") if self.caption else ())
        ]
        return "".join(parts)

    def _is_blank(self, r: int, c: int) -> bool:
        return self.blank is not None and bool(self.blank[r, c])

    def _squares(self, cells: list[tuple[int, int]], left: float, top: float) -> str:
        """One path for all cells of a colour; neighbours in a row that have no line between them are one piece."""
        paths: dict[str, list[tuple[int, int, int]]] = {}
        for r, c in cells:
            own = self.fills[r][c] if self.fills is not None else None
            colour = own or ("#eaeef2" if self._is_blank(r, c) else self.paint(float(self.values[r, c])))
            runs = paths.setdefault(colour, [])
            if not self.lines and runs and runs[-1][0] == r and runs[-1][1] + runs[-1][2] == c:
                runs[-1] = (r, runs[-1][1], runs[-1][2] + 1)
            else:
                runs.append((r, c, 1))
        stroke = f' stroke="{LINE}"' if self.lines else ""
        side = self.cell
        drawn = "".join(
            f'<path fill="{colour}" d="'
            + "".join(
                f"M{left + c * side:g} {top + r * side:g}h{n * side:g}v{side:g}h{-n * side:g}z"
                for r, c, n in runs
            )
            + '"/>'
            for colour, runs in paths.items()
        )
        return f'<g{stroke} shape-rendering="crispEdges">{drawn}</g>'

    def _figures(self, cells: list[tuple[int, int]], left: float, top: float) -> str:
        """The numbers, those of a size and colour together."""
        if not (self.numbers or self.words):
            return ""
        groups: dict[tuple[float, str], list[str]] = {}
        for r, c in cells:
            words = self.words[r][c] if self.words is not None else number(float(self.values[r, c]))
            size = round(min(0.43 * self.cell, 1.5 * self.cell / max(len(words), 1)), 1)
            x, y = round(left + (c + 0.5) * self.cell, 1), round(top + (r + 0.5) * self.cell + 0.36 * size, 1)
            if words:
                group = groups.setdefault((size, "#6e7781" if self._is_blank(r, c) else INK), [])
                group.append(f'<text x="{x:g}" y="{y:g}">{html.escape(words, quote=False)}</text>')
        return "".join(
            f'<g class="s" font-size="{size:g}" fill="{colour}" text-anchor="middle">{"".join(texts)}</g>'
            for (size, colour), texts in groups.items()
        )

    def _frame(self, frame: Frame, left: float, top: float) -> str:
        side = self.cell
        return (
            f'<rect x="{left + frame.column * side:g}" y="{top + frame.row * side:g}" '
            f'width="{frame.columns * side:g}" height="{frame.rows * side:g}" rx="2" '
            f'fill="none" stroke="{frame.colour}" stroke-width="{frame.width:g}"/>'
        )


@dataclass
class Stack(Box):
    """Channels behind each other, the first in front, shifted so that an edge of each is seen."""

    grids: Sequence[Grid]
    title: str = ""
    caption: str = ""
    step: float = 12

    def __post_init__(self) -> None:
        shift = self.step * (len(self.grids) - 1)
        self._head = 22.0 if self.title else 0.0
        self._foot = 17.0 * (self.caption.count("\n") + 1) + 2 if self.caption else 0.0
        self._body = (self.grids[0].width + shift, self.grids[0].height + shift)
        labels = [_wide(self.title, 13, False, True)] + [
            _wide(t, 12, False) for t in self.caption.split("\n")
        ]
        self.width = max(self._body[0], *labels)
        self.height = self._head + self._body[1] + self._foot

    @property
    def middle(self) -> float:
        return self._head + self._body[1] / 2

    def draw(self, x: float, y: float) -> str:
        centre = x + self.width / 2
        left, top = centre - self._body[0] / 2, y + self._head
        parts = [_text(centre, y + 13, self.title, 13, INK, "middle", False, True)] if self.title else []
        last = len(self.grids) - 1
        parts += [
            self.grids[at].draw(left + at * self.step, top + (last - at) * self.step)
            for at in range(last, -1, -1)
        ]
        below = top + self._body[1] + 15
        parts += [
            _text(centre, below + 16 * at, line, 12, GREY, "middle", False, False)
            for at, line in enumerate(self.caption.split("\n") if self.caption else ())
        ]
        return "".join(parts)


@dataclass
class Arrow(Box):
    """From what is before to what comes after, with the layer's call above and a remark below."""

    label: str = ""
    remark: str = ""
    least: float = 44

    def __post_init__(self) -> None:
        above, below = (text.split("\n") if text else [] for text in (self.label, self.remark))
        widths = [_wide(line, 12, True) for line in above] + [_wide(line, 12, False) for line in below]
        self.width = max([self.least, *(w + 10 for w in widths)])
        self._above, self._below = 17.0 * len(above) + 8, 17.0 * len(below) + 8
        self.height = self._above + self._below

    @property
    def middle(self) -> float:
        return self._above

    def draw(self, x: float, y: float) -> str:
        centre, level = x + self.width / 2, y + self._above
        above, below = (text.split("\n") if text else [] for text in (self.label, self.remark))
        parts = [
            _text(centre, y + 13 + 17 * at, line, 12, INK, "middle", True, False)
            for at, line in enumerate(above)
        ]
        parts += [
            _text(centre, level + 20 + 17 * at, line, 12, GREY, "middle", False, False)
            for at, line in enumerate(below)
        ]
        end = x + self.width
        parts.append(
            f'<path d="M{x + 2:g} {level:g}H{end - 9:g}" stroke="{GREY}" stroke-width="2" fill="none"/>'
            f'<path d="M{end - 11:g} {level - 5:g}L{end - 2:g} {level:g}L{end - 11:g} {level + 5:g}Z" fill="{GREY}"/>'
        )
        return "".join(parts)


class Row(Box):
    """Boxes beside each other, their middles on one line."""

    def __init__(self, *boxes: Box, gap: float = 22, top: bool = False) -> None:
        self.boxes, self.gap, self.top = boxes, gap, top
        self._level = 0.0 if top else max(box.middle for box in boxes)
        self.width = sum(box.width for box in boxes) + gap * (len(boxes) - 1)
        self.height = max((0 if top else self._level - box.middle) + box.height for box in boxes)

    @property
    def middle(self) -> float:
        return self.height / 2 if self.top else self._level

    def draw(self, x: float, y: float) -> str:
        parts = []
        for box in self.boxes:
            parts.append(box.draw(x, y + (0 if self.top else self._level - box.middle)))
            x += box.width + self.gap
        return "".join(parts)


class Column(Box):
    """Boxes below each other, centred or from the left."""

    def __init__(self, *boxes: Box, gap: float = 16, left: bool = False) -> None:
        self.boxes, self.gap, self.left = boxes, gap, left
        self.width = max(box.width for box in boxes)
        self.height = sum(box.height for box in boxes) + gap * (len(boxes) - 1)

    def draw(self, x: float, y: float) -> str:
        parts = []
        for box in self.boxes:
            parts.append(box.draw(x if self.left else x + (self.width - box.width) / 2, y))
            y += box.height + self.gap
        return "".join(parts)


def table(rows: Sequence[Sequence[Box]], gap: float = 30, between: float = 20) -> Box:
    """Boxes in rows whose columns line up."""
    widths = [max(row[at].width for row in rows) for at in range(len(rows[0]))]
    return Column(
        *(Row(*(_Wide(box, width) for box, width in zip(row, widths, strict=True)), gap=gap) for row in rows),
        gap=between,
    )


class _Wide(Box):
    """A box in the middle of a wider one."""

    def __init__(self, box: Box, width: float) -> None:
        self.box, self.width, self.height = box, width, box.height

    @property
    def middle(self) -> float:
        return self.box.middle

    def draw(self, x: float, y: float) -> str:
        return self.box.draw(x + (self.width - self.box.width) / 2, y)


@dataclass
class Sheet:
    """A finished picture."""

    box: Box
    name: str
    margin: float = 18

    def svg(self) -> str:
        """The whole file; the name is what a screen reader says."""
        width, height = self.box.width + 2 * self.margin, self.box.height + 2 * self.margin
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
            f'height="{height:.0f}" role="img" aria-label="{html.escape(self.name)}">'
            f"<style>.s{{font-family:{SANS}}}.m{{font-family:{MONO}}}</style>"
            f'<rect x=".5" y=".5" width="{width - 1:.0f}" height="{height - 1:.0f}" rx="8" fill="{PAPER}" '
            f'stroke="#d0d7de"/>{self.box.draw(self.margin, self.margin)}</svg>\n'
        )

    def save(self, path: Path) -> None:
        """Writes the file."""
        path.write_text(self.svg(), encoding="utf-8")


def numbers(rows: int, columns: int) -> Tensor:
    """1, 2, 3, ... row by row."""
    return torch.arange(1.0, rows * columns + 1).view(rows, columns)
