"""`convscope study`: trains what a design file says, and prints the comparison."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from convscope.commands.options import OUTPUT, OUTPUT_DEFAULT, Flag, OutFlag, OutputOptions
from convscope.commands.progress import progress_of
from convscope.commands.terminal import escape, kept, print_result, print_table, say, visible
from convscope.errors import RequestError, StoreError, UnknownName, nearest


def study(
    design: Path,
    /,
    *,
    out: Annotated[Path | None, Parameter(group=OUTPUT)] = None,
    engine: str = "process",
    workers: int | None = None,
    address: str | None = None,
    data: str | None = None,
    quick: Flag = False,
    fresh: Flag = False,
    margin: float = 1.0,
    cost: str | None = None,
    show: OutFlag = False,
    output: OutputOptions = OUTPUT_DEFAULT,
) -> int:
    """Train every variant of DESIGN at every seed, compare them, and say which one to take.

    Each run is kept as it ends: a study that was interrupted goes on where it stopped, and one whose design has more seeds
    or levels than before trains only what is new.

    Args:
        design: A TOML file; see docs/studies.md.
        out: The folder of the record; study-NAME by default.
        engine: process (worker processes of this machine), ray (a cluster) or inline (this process).
        workers: Runs at a time; as many as there are processors by default.
        address: Of the Ray cluster, such as auto; one of this machine by default.
        data: What to train on, in place of the design's.
        quick: Two seeds and a fourth of the budget.
        fresh: Throw away what the folder holds.
        margin: Percentage points that the cheapest variant may lose against the best.
        cost: What is cheap: macs, params or latency; by default macs, or params where those are not counted, as of text.
        show: Only show what the folder holds of an earlier run.
    """
    from convscope import tour
    from convscope.studies import design_file
    from convscope.studies.results import COSTS, StudyResult
    from convscope.studies.study import study as train
    from convscope.studies.tables import failures

    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for package.module:factory; last, so that nothing is shadowed
    if not 0 < margin < 100:
        raise RequestError(f"margin={margin} must be percentage points above 0 and below 100.")
    if cost is not None and cost not in COSTS:
        raise UnknownName(f"cost={cost!r} must be one of {', '.join(COSTS)}{nearest(cost, COSTS)}")
    wanted = design_file.read(design)
    folder = out or Path(f"study-{wanted.name}")
    if show:
        found = StudyResult.from_record(folder)
    else:
        with progress_of(kept(folder), "runs", said) as progress:
            found = train(
                wanted,
                data,
                out=folder,
                engine=engine,
                workers=workers,
                address=address,
                quick=quick,
                fresh=fresh,
                progress=progress,
            )
    choice, unchosen = None, ""
    try:
        choice = found.choose(cost, margin / 100) if found.metrics else None
    except RequestError as error:  # a cost that nobody counted; the figures are there
        unchosen = str(error)
    page: Path | None = None
    unwritten = ""
    try:
        page = tour.studied(found, folder, choice)
    except StoreError as error:  # the figures are there, and worth more
        unwritten = str(error)
    if output.json:
        print_result(
            {
                **found.to_dict(),
                "choice": None if choice is None else choice.to_dict(),
                "folder": str(folder),
                "page": None if page is None else str(page),
            }
        )
    else:
        say(escape(repr(found)))
        if found.metrics:
            print_table(*found.table())
            print(f"\n{visible(unchosen if choice is None else choice.text)}")
    for line in failures(found):
        say(escape(f"failed: {line}"))
    say(f"As a page: {escape(str(page))}" if page else f"No page: {escape(unwritten)}")
    return 1 if found.failed else 0


# ---------------------------------------------------------------- progress


def said(event: dict[str, Any]) -> str:
    """What an event of a study tells beside the counts.

    Example:
        >>> best = {"label": "kernel_size=5", "metric": "validation", "mean": 0.8125, "runs": 2}
        >>> said({"done": 2, "total": 8, "rate": 0.05, "seconds_left": 120.0, "best": best, "failed": 1})
        '3.0 a minute, 2:00 left, 1 failed, best so far kernel_size=5 (validation 81.25 %, 2 runs)'
    """
    rate, left, best = event["rate"], event["seconds_left"], event["best"]
    parts = []
    if rate:
        parts.append(f"{rate:.1f} a second" if rate >= 1 else f"{60 * rate:.1f} a minute")
    if left:
        parts.append(f"{int(left) // 60}:{int(left) % 60:02d} left")
    if event["failed"]:
        parts.append(f"{event['failed']} failed")
    if event.get("damaged"):
        parts.append(f"{event['damaged']} damaged and made again")
    if best:
        runs = f"{best['runs']} run{'s' if best['runs'] > 1 else ''}"
        parts.append(f"best so far {best['label']} ({best['metric']} {100 * best['mean']:.2f} %, {runs})")
    return visible(", ".join(parts))
