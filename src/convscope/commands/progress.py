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


@contextmanager
def progress_of(kept: str = "nothing was finished yet", what: str = "units") -> Iterator[Report]:
    """A bar on a terminal, a line now and then elsewhere; Ctrl-C inside is told what is kept."""
    console = console_of(stderr=True)
    try:
        if console.is_terminal:
            with bar(console, what) as tell:
                yield tell
        else:
            yield Lines(what)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(kept) from stop


@contextmanager
def bar(console: Console, what: str = "units") -> Iterator[Report]:
    """What `progress_of` gives on a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(what + "  {task.fields[pace]}  {task.fields[layer]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None, layer="", pace="")

        def tell(event: dict[str, Any]) -> None:
            layer = visible(str(event.get("layer") or ""))
            progress.update(
                task, completed=event["done"], total=event["total"], layer=layer, pace=pace(event)
            )

        yield tell


class Lines:
    """What it gives elsewhere: at most a line every ten seconds."""

    def __init__(self, what: str = "units", every: float = 10.0) -> None:
        self.what, self.every, self.last = what, every, time.monotonic()

    def __call__(self, event: dict[str, Any]) -> None:
        if time.monotonic() - self.last >= self.every:
            self.last = time.monotonic()
            said = pace(event) or visible(str(event.get("layer") or ""))
            counted = f"{event['done']} of {event['total']} {self.what}"
            print(f"{counted}, {said}" if said else counted, file=sys.stderr, flush=True)


def pace(event: dict[str, Any]) -> str:
    """How fast it goes and how long it takes; nothing once all units are there and other work goes on."""
    rate, left = event.get("rate") or 0.0, event.get("seconds_left")
    if not rate and event["done"] == event["total"]:
        return ""
    told = f"{rate:.2f} a second"
    return told if left is None else f"{told}, {int(left) // 60}:{int(left) % 60:02d} left"
