"""Figures with their 95 % interval over images, and the tables in which results print.

Values of one image are not independent of one another, images are: every interval here is over images.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from rich.console import Group

Z = 1.959963984540054  # the normal distribution's 97.5 % quantile
RESAMPLES = 1000
_MANY = 1000  # from so many images on the bootstrap of a mean and its normal limit are one


@dataclass(frozen=True)
class Estimate:
    """A figure and the 95 % interval it lies in.

    Attributes:
        value: over all images.
        low, high: ends of the interval; None where one image alone tells nothing of the spread.
    """

    value: float
    low: float | None
    high: float | None

    def to_dict(self) -> dict[str, float | None]:
        """Plain values."""
        return {"value": self.value, "low": self.low, "high": self.high}

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.4g}"
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"

    def percent(self, digits: int = 1) -> str:
        """As a percentage.

        Example:
            >>> Estimate(0.875, 0.5291, 0.9776).percent()
            '87.5 % (52.9 to 97.8)'
        """
        value = f"{100 * self.value:.{digits}f} %"
        if self.low is None or self.high is None:
            return value
        return f"{value} ({100 * self.low:.{digits}f} to {100 * self.high:.{digits}f})"


def share(hits: Tensor) -> Estimate:
    """A share of yes among yes and no, with its Wilson interval (Wilson, 1927).

    Several answers of one image count as what they are worth: the number of answers in Wilson's formula is
    the one whose binomial variance equals the variance seen between images (Korn and Graubard, 1998), no
    less than the number of images and no more than that of answers.

    Args:
        hits: Tensor [image, answer] of booleans.

    Example:
        >>> import torch
        >>> share(torch.tensor([[True], [True], [True], [False]])).percent()
        '75.0 % (30.1 to 95.4)'
    """
    images, answers = hits.shape
    means = hits.double().mean(1)  # [image]
    p = float(means.mean())
    spread = float(means.var(unbiased=True)) / images if images > 1 else 0.0
    worth = p * (1 - p) / spread if spread > 0 else float(images)
    n = min(max(worth, float(images)), float(images * answers))
    centre = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    return Estimate(p, max(0.0, centre - half), min(1.0, centre + half))


def mean(values: Tensor) -> Estimate:
    """The mean of numbers with its bootstrap interval over images (Efron, 1979).

    Resampling has a seed of its own, so that the same values always give the same interval; from a thousand
    images on it is the mean and 1.96 standard errors, which is the same then.

    Args:
        values: Tensor [image, number].

    Example:
        >>> import torch
        >>> print(mean(torch.tensor([[1.0], [2.0], [3.0], [4.0]])))
        2.5 (1.5 to 3.5)
    """
    means = values.double().mean(1).cpu().numpy()  # [image]
    value = float(means.mean())
    if len(means) == 1:
        return Estimate(value, None, None)
    if len(means) >= _MANY:
        half = Z * float(means.std(ddof=1)) / math.sqrt(len(means))
        return Estimate(value, value - half, value + half)
    drawn = np.random.default_rng(0).integers(0, len(means), (RESAMPLES, len(means)))
    low, high = np.percentile(means[drawn].mean(1), (2.5, 97.5))
    return Estimate(value, float(low), float(high))


# ---------------------------------------------------------------- tables


@dataclass(frozen=True)
class Sheet:
    """A table of text: its title, column names, rows, and remarks below; a column of numbers ends in ">"."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def printable(text: str) -> str:
    """Names come from a model and are untrusted: control characters become a visible mark."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def to_rich(sheets: Iterable[Sheet]) -> Group:
    """The tables for a terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[Any] = []
    for sheet in sheets:
        table = Table(title=Text(printable(sheet.title)), title_justify="left")
        for name in sheet.columns:
            number = name.endswith(">")
            table.add_column(name.removesuffix(">"), justify="right" if number else "left", overflow="fold")
        for row in sheet.rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        parts += [table, *(Text(printable(note), style="dim") for note in sheet.notes)]
    return Group(*parts)


def to_text(sheets: Iterable[Sheet], width: int = 140) -> str:
    """The tables as plain text."""
    from rich.console import Console

    text = io.StringIO()
    Console(file=text, width=width, color_system=None).print(to_rich(sheets))
    return text.getvalue().rstrip()


def to_html(sheets: Sequence[Sheet]) -> str:
    """The tables for a notebook.

    Example:
        >>> to_html([Sheet("<t>", ("layer", "size>"), (("a&b", "3"),))])[:79]
        "<table><caption style='text-align:left;font-weight:bold'>&lt;t&gt;</caption><tr"
    """
    parts = []
    for sheet in sheets:
        aligned = ["right" if name.endswith(">") else "left" for name in sheet.columns]

        def cells(tag: str, row: Iterable[str], aligned: Sequence[str] = tuple(aligned)) -> str:
            return "".join(
                f"<{tag} style='text-align:{side}'>{escape(printable(cell))}</{tag}>"
                for cell, side in zip(row, aligned, strict=True)
            )

        head = cells("th", [name.removesuffix(">") for name in sheet.columns])
        rows = "".join(f"<tr>{cells('td', row)}</tr>" for row in sheet.rows)
        caption = escape(printable(sheet.title))
        notes = "".join(f"<p>{escape(printable(note))}</p>" for note in sheet.notes)
        parts.append(
            f"<table><caption style='text-align:left;font-weight:bold'>{caption}</caption>"
            f"<tr>{head}</tr>{rows}</table>{notes}"
        )
    return "".join(parts)
