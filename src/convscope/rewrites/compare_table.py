"""What a comparison of two networks holds, and how it prints: table, plain values, Markdown for a pull request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from convscope import timing
from convscope.measures.figures import Estimate, Sheet, printable, to_rich, to_text
from convscope.measures.profile_columns import count, size
from convscope.measures.profile_diff import ProfileDiff
from convscope.rewrites.growth import LayerDifference, OutputDifference
from convscope.rewrites.paired import Accuracy

if TYPE_CHECKING:
    from rich.console import Group

    from convscope.models import Net
    from convscope.rewrites.base import Edit
    from convscope.rewrites.rewrite import Rewrite

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
            from convscope.site import notebook

            found |= {
                name: None if picture is None else notebook.data_uri(picture)
                for name, picture in (("before", self.before), ("after", self.after))
            }
        return found


@dataclass(frozen=True)
class Origin:
    """How the second network was made from another one.

    Attributes:
        rule: what was applied, as text.
        exactness: the weakest class of all edits.
        edits: one a layer the rule was about, refusals included; None where only the recipe is known.
        data: what the images were that it was fitted to, or None.
    """

    rule: str
    exactness: str
    edits: tuple[Edit, ...] | None
    data: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, made: Rewrite | None, net: Net) -> Origin | None:
        """Of a rewrite, or of a network that remembers its recipe; None of any other."""
        if made is not None:
            return cls(str(made.rule), made.exactness, made.edits, made.data)
        if net.recipe is None:
            return None
        return cls(" | ".join(net.recipe["rules"]), net.recipe["exactness"], None, net.recipe["data"])

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "rule": self.rule,
            "exactness": self.exactness,
            "edits": None if self.edits is None else [edit.to_dict() for edit in self.edits],
            "data": None if self.data is None else dict(self.data),
        }

    def __str__(self) -> str:
        text = f"{self.rule}: {self.exactness}"
        if self.edits is None:
            return text
        done = sum(not edit.refused for edit in self.edits)
        return f"{text}; {done} layers changed, {len(self.edits) - done} left as they are"


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
        origin: how b was made, where it is known.
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
    origin: Origin | None = None
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
            "origin": None if self.origin is None else self.origin.to_dict(),
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

    def sheets(self) -> list[Sheet]:
        """As tables."""
        figures = Sheet(
            f"a = {self.a['name']}, b = {self.b['name']}",
            ("", "a>", "b>", "b to a>"),
            tuple(figure.cells() for figure in self.figures.values()),
            () if self.origin is None else (str(self.origin),),
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
        return to_rich(self.sheets())

    def __str__(self) -> str:
        return to_text(self.sheets())

    def _repr_html_(self) -> str:
        from convscope.site import comparison

        return comparison.comparison_html(self)

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
        for number, sheet in enumerate(self.sheets()):
            lines += [f"{_cell(sheet.title).capitalize()}:", ""] if number else []
            lines += [*table_lines(sheet), ""]
            lines += [f"- {_cell(note)}" for note in sheet.notes] + ([""] if sheet.notes else [])
        return "\n".join(lines)


def table_lines(sheet: Sheet) -> list[str]:
    """A table as lines of Markdown."""
    heads = [name.removesuffix(">") for name in sheet.columns]
    rule = ["---:" if name.endswith(">") else "---" for name in sheet.columns]
    return [_row(heads), _row(rule), *(_row(map(_cell, row)) for row in sheet.rows)]


def _cell(text: str) -> str:
    """Names are untrusted: nothing in them may end a cell or start markup."""
    text = printable(text)
    for sign in "\\|`*_<>[]":
        text = text.replace(sign, f"\\{sign}")
    return text


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
