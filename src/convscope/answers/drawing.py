"""How an answer shows: in a terminal, in a notebook, in Markdown, and arrays as pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convscope.answers.base import Picture
from convscope.measures.figures import printable
from convscope.measures.figures import to_html as sheets_to_html
from convscope.measures.figures import to_rich as sheets_to_rich

if TYPE_CHECKING:
    from rich.console import Group

    from convscope.answers.base import Answer

_STYLES = {"holds": "green", "holds when": "yellow", "does not hold here": "red", "inconclusive": "dim"}


# ---------------------------------------------------------------- pictures


def grey(values: Tensor | np.ndarray, low: float | None = None, high: float | None = None) -> np.ndarray:
    """A map [height, width] of numbers as grey levels: uint8, black at `low` (the least) and white at `high`.

    Example:
        >>> grey(torch.tensor([[0.0, 0.5], [1.0, 1.0]])).tolist()
        [[0, 128], [255, 255]]
    """
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)
    low = float(array.min()) if low is None else low
    high = float(array.max()) if high is None else high
    scaled = (array - low) / (high - low) if high > low else np.zeros_like(array)
    return np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)


def pixels(image: Tensor) -> np.ndarray:
    """A picture Tensor [channel, height, width] in [0, 1] as uint8 [height, width, 3], or [height, width] of one channel."""
    array = (image.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    return array[0].numpy() if len(array) != 3 else array.permute(1, 2, 0).contiguous().numpy()


def strip(name: str, caption: str, images: Mapping[str, np.ndarray], height: int) -> Picture:
    """Pictures in a row, each below its title where all are as wide.

    Args:
        name, caption: of the picture.
        images: title -> array, as `grey` and `pixels` give them.
        height: see `beside`.
    """
    wide = {beside([image], height=height).shape[1] for image in images.values()}
    columns = tuple(images) if len(wide) == 1 else ()
    return Picture(name, caption, beside(images.values(), height=height), columns)


def beside(images: Iterable[np.ndarray], gap: int = 4, height: int | None = None) -> np.ndarray:
    """Pictures in a row, white between, each enlarged by whole pixels towards `height` (that of the tallest)."""
    arrays = list(images)
    tall = height or max(array.shape[0] for array in arrays)
    grown = [
        np.kron(a, np.ones((f, f) + (1,) * (a.ndim - 2), np.uint8))
        for a in arrays
        for f in [max(1, tall // a.shape[0])]
    ]
    colour = any(array.ndim == 3 for array in grown)
    rows = max(array.shape[0] for array in grown)
    parts: list[np.ndarray] = []
    for array in grown:
        full = np.stack([array] * 3, -1) if colour and array.ndim == 2 else array
        pad = [(0, rows - full.shape[0]), (0, gap)] + [(0, 0)] * (full.ndim - 2)
        parts.append(np.pad(full, pad, constant_values=255))
    return np.concatenate(parts, axis=1)[:, : -gap or None]


def png(image: np.ndarray) -> bytes:
    """A picture of uint8, [height, width] or [height, width, 3], as PNG."""
    written = io.BytesIO()
    Image.fromarray(image).save(written, format="PNG", optimize=True)
    return written.getvalue()


def data_uri(image: np.ndarray) -> str:
    """The same as a data URI, which a page can hold."""
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


# ---------------------------------------------------------------- text


def to_rich(answer: Answer) -> Group:
    """For a terminal: statement, verdicts, tables, conditions."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = [
        Text(printable(answer.title), style="bold"),
        Text(printable(answer.statement)),
        Text(""),
    ]
    for finding in answer.findings:
        head = Text(f"{finding.claim.id}  ", style="bold")
        head.append(f"“{finding.claim.text}”: ", style="")
        head.append(printable(finding.verdict_text), style=_STYLES[finding.verdict])
        parts += [head, Text("    " + printable(finding.sentence), style="dim")]
    parts += [Text(""), sheets_to_rich(answer.tables)]
    parts += [Text(printable(note), style="dim") for note in answer.notes]
    parts += [
        Text(printable(_conditions(answer)), style="dim"),
        Text(f"Made by: {printable(answer.command)}", style="dim"),
    ]
    return Group(*parts)


def to_text(answer: Answer, width: int = 120) -> str:
    """The same as plain text."""
    from rich.console import Console

    text = io.StringIO()
    Console(file=text, width=width, color_system=None).print(to_rich(answer))
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).rstrip()


def to_html(answer: Answer) -> str:
    """For a notebook, pictures inside."""
    say = lambda text: escape(printable(text))  # noqa: E731
    rows = "".join(
        f"<tr><th>{say(f.claim.id)}</th><td style='text-align:left'>{say(f.claim.text)}</td>"
        f"<td style='text-align:left'><b>{say(f.verdict_text)}</b>: {say(f.sentence)}</td></tr>"
        for f in answer.findings
    )
    pictures = "".join(
        f"<figure style='display:inline-block;margin:8px'><img src='{data_uri(p.image)}' alt='{say(p.caption)}'>"
        f"<figcaption>{say(p.caption)}</figcaption></figure>"
        for p in answer.pictures
    )
    notes = "".join(f"<p>{say(note)}</p>" for note in (*answer.notes, _conditions(answer)))
    return (
        f"<h3>{say(answer.title)}</h3><p>{say(answer.statement)}</p><table>{rows}</table>{pictures}"
        f"{sheets_to_html(answer.tables)}{notes}<pre>{say(answer.command)}\n\n{say_lines(answer.python)}</pre>"
    )


def say_lines(text: str) -> str:
    """Several lines as HTML text."""
    return "\n".join(escape(printable(line)) for line in text.splitlines())


def _conditions(answer: Answer) -> str:
    return "; ".join(f"{name} {value}" for name, value in answer.conditions.items() if value is not None)


def ledger(answers: Iterable[Answer]) -> str:
    """All claims as Markdown: claim, test, figure, verdict."""
    every = list(answers)
    lines = [
        "# What common advice claims, and what the measurements say",
        "",
        "Made by `convscope ask all --claims FILE`; numbers and verdicts are those of the run under each question.",
    ]
    for answer in every:
        lines += ["", f"## {answer.title} (`{answer.question}`)", "", _cell(answer.statement), ""]
        lines += ["| claim | test | this run | verdict |", "| --- | --- | --- | --- |"]
        lines += [
            f"| {f.claim.id} {_cell(f.claim.text)} | {_cell(f.test)} | {_cell(f.sentence)} | {_cell(f.verdict_text)} |"
            for f in answer.findings
        ]
        lines += ["", f"{_cell(_conditions(answer))}. Made by `{_cell(answer.command)}`."]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return printable(text).replace("|", "\\|").replace("<", "&lt;")
