"""What an answer is made of: findings with verdicts, tables, pictures and charts, and how to make it again.

Numbers stand in figures, and text is filled from them: `found(...)` formats a sentence whose fields are its figures, so
that no number of a run is ever typed.
"""

from __future__ import annotations

import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from convscope import timing
from convscope.answers.claims import CLAIMS, Claim
from convscope.measures.figures import Estimate, Sheet

if TYPE_CHECKING:
    from rich.console import Group

NO_STUDY = "no study recorded yet"


class Verdict(StrEnum):
    """What a measurement says of a claim."""

    HOLDS = "holds"
    WHEN = "holds when"
    NOT = "does not hold here"
    OPEN = "inconclusive"


@dataclass(frozen=True)
class Finding:
    """What a test says of a claim.

    Attributes:
        claim: the claim.
        test: what was done, one clause.
        figures: what was measured: plain values.
        verdict: what follows, by code, from the figures.
        sentence: the same in words, with the figures in it.
        when: the condition, where the verdict is `Verdict.WHEN`; why it is open, where it is `Verdict.OPEN`.
    """

    claim: Claim
    test: str
    figures: Mapping[str, Any]
    verdict: Verdict
    sentence: str
    when: str = ""

    @property
    def verdict_text(self) -> str:
        """The verdict with its condition."""
        if self.verdict is Verdict.WHEN:
            return f"holds when {self.when}"
        return f"inconclusive: {self.when}" if self.verdict is Verdict.OPEN else str(self.verdict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "claim": self.claim.id,
            "text": self.claim.text,
            "test": self.test,
            "figures": dict(self.figures),
            "verdict": str(self.verdict),
            "when": self.when,
            "sentence": self.sentence,
        }


def found(
    claim: str, verdict: Verdict | bool, test: str, sentence: str, /, *, when: str = "", **figures: Any
) -> Finding:
    """A finding; its sentence and condition are filled from its figures.

    Args:
        claim: identifier of the claim.
        verdict: a verdict; True is "holds" and False "does not hold here".
        test: what was done, one clause; also filled.
        sentence: in words, with fields for figures as `str.format` takes them, and these formats besides: none is a
            count with thousands separators, or a number to three digits; `:time` seconds; `:bytes`; `:x` a ratio.
        when: the condition of "holds when", or why the verdict is open.
        **figures: plain values.

    Raises:
        ValueError: a condition is missing, or there is one where none belongs.

    Example:
        >>> print(found("P3", True, "one 3x3 layer", "{before} pixels became {after}.", before=1224, after=1222).sentence)
        1,224 pixels became 1,222.
    """
    if isinstance(verdict, bool):
        verdict = Verdict.HOLDS if verdict else Verdict.NOT
    if bool(when) != (verdict in (Verdict.WHEN, Verdict.OPEN)):
        raise ValueError(f"finding {claim}: verdict {verdict!r} and when={when!r} do not go together")
    told = [fill(text, figures) for text in (test, sentence, when)]
    return Finding(CLAIMS[claim], told[0], figures, verdict, told[1], told[2])


def unstudied(claim: str, test: str) -> Finding:
    """A claim that only trained networks can settle, of which no study is on record."""
    return found(
        claim,
        Verdict.OPEN,
        test,
        "Settling it takes training over several seeds: " + NO_STUDY + ".",
        when=NO_STUDY,
    )


class _Fill(string.Formatter):
    """`str.format` with the formats of `found`."""

    def format_field(self, value: Any, format_spec: str) -> str:
        if isinstance(value, Estimate):
            return value.percent() if format_spec.endswith("%") else str(value)
        if value is None:
            return "not measured"
        if isinstance(value, list | tuple) and not format_spec:
            return " x ".join(self.format_field(item, "") for item in value)
        if not isinstance(value, int | float) or isinstance(value, bool):
            return str(super().format_field(value, format_spec))
        if format_spec == "time":
            return timing.duration(value)
        if format_spec == "bytes":
            return f"{value / 2**20:.3g} MiB" if value >= 2**20 else f"{value / 2**10:.3g} KiB"
        if format_spec == "x":
            return f"{value:,.0f} times" if value >= 100 else f"{value:.3g} times"
        if format_spec.endswith("%"):
            return str(super().format_field(value, format_spec)).replace("%", " %")
        if not format_spec:
            return f"{value:,}" if isinstance(value, int) else _three_digits(value)
        return str(super().format_field(value, format_spec))


def _three_digits(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def fill(text: str, figures: Mapping[str, Any]) -> str:
    """Text with its fields filled; see `found` for the formats.

    Example:
        >>> fill("{share:.1%} in {seconds:time}, {shape}", {"share": 0.125, "seconds": 0.002, "shape": (3, 224)})
        '12.5 % in 2.00 ms, 3 x 224'
    """
    return _Fill().vformat(text, (), figures)


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture of an answer.

    Attributes:
        name: a short name, unique in the answer.
        caption: what it shows.
        image: array [height, width] or [height, width, 3] of uint8.
        columns, rows: what stands above each column and beside each row of it, where it is made of pictures of one size.
    """

    name: str
    caption: str
    image: np.ndarray
    columns: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()

    def to_dict(self, *, pictures: bool = False) -> dict[str, Any]:
        """Plain values; `pictures` adds the image as a data URI of PNG."""
        told: dict[str, Any] = {
            "name": self.name,
            "caption": self.caption,
            "size": list(self.image.shape[:2]),
            "columns": list(self.columns),
            "rows": list(self.rows),
        }
        if pictures:
            from convscope.answers.drawing import data_uri

            told["image"] = data_uri(self.image)
        return told


@dataclass(frozen=True)
class Chart:
    """Curves to draw: plain values, no drawing.

    Attributes:
        name: a short name, unique in the answer.
        title: what it shows.
        x, y: titles of the axes, with units.
        series: name of a curve -> its points (x, y).
        logs: the axes that are logarithmic: "", "x", "y" or "xy".
    """

    name: str
    title: str
    x: str
    y: str
    series: Mapping[str, Sequence[tuple[float, float]]]
    logs: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        series = {name: [list(point) for point in points] for name, points in self.series.items()}
        return {**vars(self), "series": series}


@dataclass(frozen=True)
class Draft:
    """What a question's own file says; `ask` makes an `Answer` of it.

    Attributes:
        statement: two sentences with this run's numbers.
        findings: one for each claim of the question.
        tables: what was measured.
        pictures, charts: the same to look at.
        notes: what the reader should know, such as which layers were looked at in place of missing ones.
        data: what images were looked at; None where none were.
    """

    statement: str
    findings: tuple[Finding, ...]
    tables: tuple[Sheet, ...] = ()
    pictures: tuple[Picture, ...] = ()
    charts: tuple[Chart, ...] = ()
    notes: tuple[str, ...] = ()
    data: str | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Answer:
    """The answer to a question, with its evidence; prints as text and tables, shows in a notebook with pictures.

    Attributes:
        question: the question's name, such as "padding".
        title: the question in full.
        statement: two sentences with this run's numbers.
        findings: what common advice claims, each with its test and verdict.
        tables: what was measured.
        pictures, charts: the same to look at.
        notes: what the reader should know.
        conditions: network, data, machine, threads, versions, seed.
        command: the command line that makes the answer again.
        python: the same in Python.
        reused: how many of its measurements came out of the store.
        seconds: what this run took.
    """

    question: str
    title: str
    statement: str
    findings: tuple[Finding, ...]
    tables: tuple[Sheet, ...]
    pictures: tuple[Picture, ...]
    charts: tuple[Chart, ...]
    notes: tuple[str, ...]
    conditions: Mapping[str, Any]
    command: str
    python: str
    reused: int = field(default=0)
    seconds: float = field(default=0.0)

    def finding(self, claim: str) -> Finding:
        """The finding on a claim, by its identifier.

        Raises:
            KeyError: the claim is not one of this question.
        """
        return {finding.claim.id: finding for finding in self.findings}[claim]

    def to_dict(self, *, pictures: bool = False) -> dict[str, Any]:
        """Plain values; `pictures` adds the pictures as data URIs."""
        return {
            "question": self.question,
            "title": self.title,
            "statement": self.statement,
            "findings": [finding.to_dict() for finding in self.findings],
            "tables": [
                {
                    "title": t.title,
                    "columns": list(t.columns),
                    "rows": [list(r) for r in t.rows],
                    "notes": list(t.notes),
                }
                for t in self.tables
            ],
            "pictures": [picture.to_dict(pictures=pictures) for picture in self.pictures],
            "charts": [chart.to_dict() for chart in self.charts],
            "notes": list(self.notes),
            "conditions": dict(self.conditions),
            "command": self.command,
            "python": self.python,
        }

    def __repr__(self) -> str:
        return f"Answer({self.question!r}, {len(self.findings)} claims)"

    def __rich__(self) -> Group:
        from convscope.answers.drawing import to_rich

        return to_rich(self)

    def __str__(self) -> str:
        from convscope.answers.drawing import to_text

        return to_text(self)

    def _repr_html_(self) -> str:
        from convscope.answers.drawing import to_html

        return to_html(self)
