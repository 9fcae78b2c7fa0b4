"""How verbs talk: results to stdout, advice and news to stderr, nothing that could steer a terminal."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

LINE: ContextVar[tuple[str, ...]] = ContextVar("LINE", default=())  # the words of the running command


def console_of(*, stderr: bool) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=True)


def say(*lines: str) -> None:
    """Advice and news, to stderr; rich markup, so text that is not ours goes through `escape`."""
    console = console_of(stderr=True)
    for line in lines:
        console.print(line)


def escape(text: str) -> str:
    from rich.markup import escape

    return escape(visible(text))


def visible(text: str) -> str:
    """Names come from the model: what would steer the terminal is replaced by a mark."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def print_result(data: Any) -> None:
    """The result, to stdout: text, or one JSON document, a list with one line for each item."""
    if isinstance(data, str):
        print(data)
    elif isinstance(data, list) and data:
        print("[\n" + ",\n".join(json.dumps(item, allow_nan=False) for item in data) + "\n]")
    else:
        print(json.dumps(data, indent=2, allow_nan=False))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns by spaces, never cut short, so that grep and awk work on them; numbers, whose title ends in ">", to
    the right.
    """
    right = [title.endswith(">") for title in header]
    titles = [title.removesuffix(">") for title in header]
    lines = [[visible(cell) for cell in cells] for cells in (titles, *rows)]
    widths = [max(len(cells[column]) for cells in lines) for column in range(len(header))]
    for cells in lines:
        columns = zip(cells, widths, right, strict=True)
        placed = [cell.rjust(width) if number else cell.ljust(width) for cell, width, number in columns]
        print("  ".join(placed).rstrip())


def plain(value: Any) -> Any:
    """Values as JSON can carry them: what is not a finite number becomes null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def kept(out: Path) -> str:
    return f"what is finished is kept in {out}; the same command goes on from there"


def open_page(page: Path) -> None:
    import webbrowser

    if not webbrowser.open(page.resolve().as_uri()):
        say(f"no browser could be started; open {page} yourself")


def words_of(model: str | None) -> str:
    return "" if model is None else f"{shlex.quote(model)} "
