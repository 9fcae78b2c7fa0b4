"""What a comparison holds, and how it prints: table, notebook, plain values, Markdown for a pull request."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from convscope import timing
from convscope.measures.figures import Estimate, Sheet, printable, to_html, to_rich, to_text
from convscope.measures.profile_columns import count, size
from convscope.measures.profile_diff import ProfileDiff
from convscope.rewrites.growth import LayerDifference, OutputDifference
from convscope.rewrites.paired import Accuracy

if TYPE_CHECKING:
    from rich.console import Group

Unit = Literal["count", "bytes", "seconds", "share", "pixels"]
_ROWS = 12  # layers in a table at most; all are in `to_dict`


@dataclass(frozen=True)
class Figure:
    """One figure of two networks.

    Attributes:
        key: its name in `to_dict`.
        name: as it is shown.
        unit: what the values are.
        a, b: numbers, `timing.Timing`, `Estimate`, or pixels along each axis; None where it cannot be had.
        ratio: b over a where that makes sense: a number, or a `timing.Ratio` with its interval.
    """

    key: str
    name: str
    unit: Unit
    a: Any
    b: Any
    ratio: float | timing.Ratio | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        ratio = self.ratio.to_dict() if isinstance(self.ratio, timing.Ratio) else self.ratio
        return {
            "name": self.name,
            "unit": self.unit,
            "a": _plain(self.a),
            "b": _plain(self.b),
            "ratio": ratio,
        }

    def cells(self) -> tuple[str, str, str, str]:
        """As text: the name, both values, and what changed."""
        return self.name, _text(self.a, self.unit), _text(self.b, self.unit), self._change()

    def _change(self) -> str:
        if self.ratio is None:
            return "" if self.a != self.b else "same"
        if isinstance(self.ratio, timing.Ratio):
            return str(self.ratio)
        return "same" if self.a == self.b else f"{100 * (self.ratio - 1):+.1f} %"


def _plain(value: Any) -> Any:
    if hasattr(value, "to_dict"):
        return value.to_dict()
    return list(value) if isinstance(value, tuple) else value


def _text(value: Any, unit: Unit) -> str:
    if value is None:
        return "–"
    if isinstance(value, timing.Timing):
        return str(value)
    if isinstance(value, Estimate):
        return value.percent()
    if isinstance(value, tuple):
        return "x".join("all" if n is None else f"{n:g}" for n in value)
    if unit == "share":
        return f"{100 * value:.1f} %"
    return size(value) if unit == "bytes" else count(value)


@dataclass(frozen=True, eq=False)
class Feature:
    """What one unit looks for in either network.

    Attributes:
        layer, channel: the unit.
        before, after: pictures, Tensor [channel, height, width] in [0, 1]; None where the network has no such unit.
        activations: what each picture reaches in its own network; None likewise.
        status: how each search ended; see `convscope.visualize`.
    """

    layer: str
    channel: int
    before: Tensor | None
    after: Tensor | None
    activations: tuple[float | None, float | None]
    status: tuple[str, str]

    def to_dict(self, *, pictures: bool = False) -> dict[str, Any]:
        """Plain values; with `pictures` PNG as data URIs."""
        found: dict[str, Any] = {
            "layer": self.layer,
            "channel": self.channel,
            "activations": list(self.activations),
            "status": list(self.status),
        }
        if pictures:
            found |= {"before": _uri(self.before), "after": _uri(self.after)}
        return found


def _uri(picture: Tensor | None) -> str | None:
    if picture is None:
        return None
    from io import BytesIO

    from PIL import Image

    values = (picture.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    buffer = BytesIO()
    Image.fromarray(values if values.shape[2] == 3 else values[..., 0]).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Two networks side by side; prints as tables, shows in a notebook with pictures.

    Attributes:
        a, b: what they are: name, source, hash, input.
        figures: what either costs and sees, by key.
        profile: all layers' costs, b less a.
        images: how many were run, and of what.
        outputs: how far the outputs differ; None where their shapes do.
        accuracy: of both on the labelled images, or None.
        layers: how far each layer of the same name differs, in the order in which they ran in a.
        apart: layers of the same name whose maps have different shapes: name -> the two shapes.
        tolerance: relative root mean square difference of a layer up to which it counts as the same: rounding.
        features: pictures of the units asked for.
        notes: what was left out, and why.
    """

    a: Mapping[str, Any]
    b: Mapping[str, Any]
    figures: Mapping[str, Figure]
    profile: ProfileDiff
    images: int
    source: str
    outputs: OutputDifference | None
    accuracy: Accuracy | None
    layers: tuple[LayerDifference, ...]
    apart: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    tolerance: float
    features: tuple[Feature, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def first(self) -> str | None:
        """The layer where they begin to differ beyond rounding; None where none does.

        A batch norm that was folded away makes its convolution differ, and the layer behind agree again.
        """
        return next((row.layer for row in self.layers if row.rms > self.tolerance), None)

    @property
    def agreement(self) -> Estimate | None:
        """Share of images with the same top-1 class."""
        return None if self.outputs is None else self.outputs.agreement

    def to_dict(self, *, pictures: bool = False) -> dict[str, Any]:
        """Plain values; with `pictures` the features' as data URIs."""
        return {
            "a": dict(self.a),
            "b": dict(self.b),
            "figures": {key: figure.to_dict() for key, figure in self.figures.items()},
            "images": {"count": self.images, "source": self.source},
            "outputs": None if self.outputs is None else self.outputs.to_dict(),
            "accuracy": None if self.accuracy is None else self.accuracy.to_dict(),
            "first": self.first,
            "tolerance": self.tolerance,
            "layers": [row.to_dict() for row in self.layers],
            "apart": {name: [list(shape) for shape in shapes] for name, shapes in self.apart.items()},
            "changed": [pair.to_dict() for pair in self.profile.layers if pair.status != "same"],
            "features": [each.to_dict(pictures=pictures) for each in self.features],
            "notes": list(self.notes),
        }

    # -- shown ---------------------------------------------------------------------------------------------

    def _answers(self) -> list[tuple[str, str]]:
        """What both answer on the images, line by line."""
        lines = []
        if self.outputs is not None:
            o = self.outputs
            lines.append(
                (
                    "output difference",
                    f"max {o.max:.3g} ({o.relative:.1e} of the largest), rms {100 * o.rms:.2g} %",
                )
            )
            lines.append(("cosine of the outputs", f"{o.cosine.value:.6f}"))
            if o.agreement is not None:
                lines.append(("top-1 agreement", o.agreement.percent()))
        if self.accuracy is not None:
            c = self.accuracy
            lines.append(("top-1 accuracy", f"{c.a.percent()} → {c.b.percent()}"))
            lines.append(("difference, paired", f"{c.difference.percent(2)}, McNemar p = {c.p_value:.3g}"))
        if self.layers:
            first = self.first
            told = "in no layer, but for rounding" if first is None else f"at {first}"
            lines.append(("they begin to differ", told))
        return lines

    def _sheets(self) -> list[Sheet]:
        figures = Sheet(
            f"a = {self.a['name']}, b = {self.b['name']}",
            ("", "a>", "b>", "b to a>"),
            tuple(figure.cells() for figure in self.figures.values()),
        )
        answers = Sheet(
            f"on {self.images} images of {self.source}", ("", "value"), tuple(self._answers()), self.notes
        )
        sheets = [figures, answers]
        rows, left_out = self._shown()
        if rows:
            notes = (f"{left_out} layers more, which change less",) if left_out else ()
            sheets.append(Sheet("how the difference grows", ("layer", "kind", "rms>", "max>"), rows, notes))
        return sheets

    def _shown(self) -> tuple[tuple[tuple[str, ...], ...], int]:
        """The layers that differ; of many, those where the difference changes most."""
        rows = [row for row in self.layers if row.rms > self.tolerance]
        kept = rows
        if len(rows) > _ROWS:
            steps = {row.layer: abs(row.rms - before.rms) for before, row in pairwise(rows)}
            largest = set(sorted(steps, key=lambda name: -steps[name])[: _ROWS - 2])
            kept = [row for row in rows if row.layer in largest or row is rows[0] or row is rows[-1]]
        cells = tuple(
            (
                row.layer,
                " → ".join(dict.fromkeys(row.kinds)),
                f"{100 * row.rms:.3g} %",
                f"{100 * row.largest:.3g} %",
            )
            for row in kept
        )
        return cells, len(rows) - len(kept)

    def __repr__(self) -> str:
        return f"Comparison({self.a['name']!r}, {self.b['name']!r}, {self.images} images of {self.source})"

    def __rich__(self) -> Group:
        return to_rich(self._sheets())

    def __str__(self) -> str:
        return to_text(self._sheets())

    def _repr_html_(self) -> str:
        return to_html(self._sheets()) + "".join(map(_figure_html, self.features))

    def to_markdown(self) -> str:
        """For a pull request.

        Example:
            >>> from torch import nn
            >>> from convscope.rewrites.compare import compare
            >>> net = nn.Sequential(nn.Conv2d(3, 4, 3))
            >>> found = compare(net, net, input="3x8x8", latency=False, memory=False)
            >>> found.to_markdown().splitlines()[4]
            '| parameters | 112 | 112 | same |'
        """
        lines = [f"### {_cell(self.a['name'])} → {_cell(self.b['name'])}", ""]
        for sheet in self._sheets():
            heads = [name.removesuffix(">") for name in sheet.columns]
            rule = ["---:" if name.endswith(">") else "---" for name in sheet.columns]
            if sheet.title != self._sheets()[0].title:
                lines += [f"{_cell(sheet.title).capitalize()}:", ""]
            lines += [_row(heads), _row(rule), *(_row(map(_cell, row)) for row in sheet.rows), ""]
            lines += [f"- {_cell(note)}" for note in sheet.notes] + ([""] if sheet.notes else [])
        return "\n".join(lines)


def _cell(text: str) -> str:
    """Names are untrusted: nothing in them may end a cell or start markup."""
    text = printable(text)
    for sign in "\\|`*_<>[]":
        text = text.replace(sign, f"\\{sign}")
    return text


def _row(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


def _figure_html(feature: Feature) -> str:
    parts = []
    for picture, activation, status in zip(
        (_uri(feature.before), _uri(feature.after)), feature.activations, feature.status, strict=True
    ):
        shown = f'<img alt="" src="{picture}">' if picture else f"<span>{escape(status)}</span>"
        told = "" if activation is None else f"{activation:.3g}"
        parts.append(f"<td style='text-align:center'>{shown}<br>{told}</td>")
    name = escape(printable(f"{feature.layer} {feature.channel}"))
    return f"<table><caption>{name}: before, after</caption><tr>{''.join(parts)}</tr></table>"


# ---------------------------------------------------------------- several


@dataclass(frozen=True)
class Point:
    """One network among several.

    Attributes:
        name: its own.
        cost: MACs, parameters or seconds; see `Comparisons.cost`.
        quality: accuracy, or agreement with the first network; None where neither could be had.
        on_front: whether no other is at least as good at less cost, or better at the same.
    """

    name: str
    cost: float
    quality: float | None
    on_front: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"name": self.name, "cost": self.cost, "quality": self.quality, "on_front": self.on_front}


@dataclass(frozen=True, eq=False, repr=False)
class Comparisons:
    """A network and several made from it: what each costs, how good it is, and which of them are worth having.

    Attributes:
        cost: "macs", "params" or "latency".
        quality: "accuracy" or "agreement".
        comparisons: of each with the first, in order.
        points: all networks, the first one first.
    """

    cost: str
    quality: str
    comparisons: tuple[Comparison, ...]
    points: tuple[Point, ...]

    @property
    def front(self) -> tuple[Point, ...]:
        """The networks that no other beats, cheapest first (the Pareto front)."""
        return tuple(sorted((p for p in self.points if p.on_front), key=lambda p: p.cost))

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "cost": self.cost,
            "quality": self.quality,
            "points": [point.to_dict() for point in self.points],
            "comparisons": [each.to_dict() for each in self.comparisons],
        }

    def _sheet(self) -> Sheet:
        show = timing.duration if self.cost == "latency" else lambda n: count(int(n))
        rows = tuple(
            (
                point.name,
                show(point.cost),
                "–" if point.quality is None else f"{100 * point.quality:.1f} %",
                "yes" if point.on_front else "",
            )
            for point in self.points
        )
        return Sheet(
            f"{self.quality} against {self.cost}",
            ("network", f"{self.cost}>", f"{self.quality}>", "front"),
            rows,
        )

    def __repr__(self) -> str:
        return f"Comparisons({len(self.points)} networks, {self.quality} against {self.cost})"

    def __rich__(self) -> Group:
        return to_rich([self._sheet()])

    def __str__(self) -> str:
        return to_text([self._sheet()])

    def _repr_html_(self) -> str:
        return to_html([self._sheet()])

    def to_markdown(self) -> str:
        """For a pull request."""
        sheet = self._sheet()
        lines = [
            f"### {sheet.title.capitalize()}",
            "",
            _row(name.removesuffix(">") for name in sheet.columns),
        ]
        lines += [_row("---:" if name.endswith(">") else "---" for name in sheet.columns)]
        lines += [_row(map(_cell, row)) for row in sheet.rows]
        return "\n".join(lines) + "\n"


def marked(points: Sequence[Point]) -> tuple[Point, ...]:
    """The points, with those on the front marked.

    Example:
        >>> [p.on_front for p in marked([Point("a", 9, 0.9), Point("b", 5, 0.9), Point("c", 4, 0.5), Point("d", 6, 0.6)])]
        [False, True, True, False]
    """
    found = []
    for point in points:
        better = any(
            other.quality is not None
            and point.quality is not None
            and other.cost <= point.cost
            and other.quality >= point.quality
            and (other.cost, other.quality) != (point.cost, point.quality)
            for other in points
        )
        found.append(Point(point.name, point.cost, point.quality, point.quality is not None and not better))
    return tuple(found)
