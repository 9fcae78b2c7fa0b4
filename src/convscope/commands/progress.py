"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from convscope.commands.terminal import console_of, visible

if TYPE_CHECKING:
    from rich.console import Console

Report = Callable[[dict[str, Any]], None]
Said = Callable[[dict[str, Any]], str]  # what an event tells beside the counts


@contextmanager
def progress_of(
    kept: str = "nothing was finished yet", what: str = "units", said: Said | None = None
) -> Iterator[Report]:
    """A bar on a terminal, a line now and then elsewhere; Ctrl-C inside is told what is kept.

    Args:
        kept: what Ctrl-C leaves.
        what: is counted.
        said: what is told beside the counts, also of the first event and the last; by default the pace, and what is under way.
    """
    console = console_of(stderr=True)
    try:
        if console.is_terminal:
            with bar(console, what, said) as tell:
                yield tell
        else:
            yield Lines(what, said=said)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(kept) from stop


@contextmanager
def bar(console: Console, what: str = "units", said: Said | None = None) -> Iterator[Report]:
    """What `progress_of` gives on a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    told = said or _pace_and_layer
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(what + "  {task.fields[said]}", markup=False))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None, said="")

        def tell(event: dict[str, Any]) -> None:
            progress.update(task, completed=event["done"], total=event["total"], said=told(event))

        yield tell


class Lines:
    """What it gives elsewhere: at most a line every ten seconds."""

    def __init__(self, what: str = "units", every: float = 10.0, said: Said | None = None) -> None:
        self.what, self.every, self.said = what, every, said
        self.last = time.monotonic() if said is None else -every

    def __call__(self, event: dict[str, Any]) -> None:
        ended = self.said is not None and event["done"] == event["total"]
        if ended or time.monotonic() - self.last >= self.every:
            self.last = time.monotonic()
            told = (self.said or _pace_or_layer)(event)
            counted = f"{event['done']} of {event['total']} {self.what}"
            print(f"{counted}, {told}" if told else counted, file=sys.stderr, flush=True)


def _layer(event: dict[str, Any]) -> str:
    return visible(str(event.get("layer") or ""))


def _pace_and_layer(event: dict[str, Any]) -> str:
    return f"{pace(event)}  {_layer(event)}"


def _pace_or_layer(event: dict[str, Any]) -> str:
    return pace(event) or _layer(event)


def pace(event: dict[str, Any]) -> str:
    """How fast it goes and how long it takes; nothing once all units are there and other work goes on."""
    rate, left = event.get("rate") or 0.0, event.get("seconds_left")
    if not rate and event["done"] == event["total"]:
        return ""
    told = f"{rate:.2f} a second"
    return told if left is None else f"{told}, {int(left) // 60}:{int(left) % 60:02d} left"
