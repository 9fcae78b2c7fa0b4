"""`convscope ask`: parses, calls `convscope.ask`, prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

import convscope
from convscope.commands.arguments import load_net, moved, set_threads
from convscope.commands.options import (
    MODEL_DEFAULT,
    OUTPUT,
    OUTPUT_DEFAULT,
    WORK,
    Flag,
    ModelOptions,
    OutFlag,
    OutputOptions,
)
from convscope.commands.progress import progress_of
from convscope.commands.terminal import console_of, escape, kept, open_page, plain, print_result, say


def ask(
    question: str | None = None,
    model: str | None = None,
    /,
    *,
    data: Annotated[Path | None, Parameter(group=WORK)] = None,
    quick: Annotated[Flag, Parameter(group=WORK)] = False,
    studies: Annotated[Path | None, Parameter(group=WORK)] = None,
    out: Annotated[Path, Parameter(group=OUTPUT)] = Path("answers"),
    claims: Annotated[Path | None, Parameter(group=OUTPUT)] = None,
    open: OutFlag = False,
    fresh: OutFlag = False,
    loading: ModelOptions = MODEL_DEFAULT,
    output: OutputOptions = OUTPUT_DEFAULT,
) -> int:
    """Answer a question about CNN design by measuring MODEL, your images and this machine.

    Without QUESTION it lists them; `all` asks every one. What was measured is kept: a second run only redoes what
    changed.

    Args:
        question: Its name, such as padding, or all.
        model: The network; an embedded one that suits the question by default.
        data: Images: a file, or a folder (of class folders for accuracy); embedded ones by default.
        quick: Measure less.
        studies: A folder of study records, in place of those that ship.
        out: The folder to write: a page, and in its answers/ what was measured; that of a report gets the page added.
        claims: Also write all claims with test, figure and verdict to this Markdown file.
        open: Open the page in the browser.
        fresh: Throw away the answers that the folder holds.
    """
    if question is None:
        listed = convscope.ask()
        print_result(plain(listed.to_dict())) if output.json else print(listed)
        if not output.json:
            say("Next: convscope ask padding   (or all; MODEL and --data DIR make it about yours)")
        return 0
    net = None if model is None else moved(load_net(model, loading, output), loading)
    if net is None and loading.threads is not None:
        set_threads(loading.threads)
    settings: dict[str, Any] = {
        "data": None if data is None else str(data),
        "quick": quick,
        "studies": studies,
        "out": out,
        "fresh": fresh,
        "seed": loading.seed,
    }
    with progress_of(kept(out), "measurements") as progress:
        told: Any = convscope.ask(question, net, progress=progress, **settings)
    answered = list(told) if question == "all" else [told]
    page = _write(out, answered, claims)
    if output.json:
        print_result(plain(told.to_dict() | {"page": None if page is None else str(page)}))
    else:
        console_of(stderr=False).print(told)
    if page is None:
        return 1
    say(f"As a page: {escape(str(page))}")
    if open:
        open_page(page)
    return 0


def _write(out: Path, answered: list[Any], claims: Path | None) -> Path | None:
    """The page and the list of claims; None where no question could be asked."""
    from convscope import site
    from convscope.answers.drawing import ledger
    from convscope.store import atomic_write

    if not answered:
        return None
    if claims is not None:
        atomic_write(claims, ledger(answered))
    site.write(out)
    return out / "answers.html"
