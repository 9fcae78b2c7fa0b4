"""`convscope ask`: parses, calls `convscope.ask`, prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

import convscope
from convscope import cli
from convscope.cli import _OUTPUT, _WORK, Flag, ModelOptions, OutFlag, OutputOptions

_MODEL_DEFAULT, _OUTPUT_DEFAULT = ModelOptions(), OutputOptions()


def ask(
    question: str | None = None,
    model: str | None = None,
    /,
    *,
    data: Annotated[Path | None, Parameter(group=_WORK)] = None,
    quick: Annotated[Flag, Parameter(group=_WORK)] = False,
    studies: Annotated[Path | None, Parameter(group=_WORK)] = None,
    out: Annotated[Path, Parameter(group=_OUTPUT)] = Path("answers"),
    claims: Annotated[Path | None, Parameter(group=_OUTPUT)] = None,
    fresh: OutFlag = False,
    loading: ModelOptions = _MODEL_DEFAULT,
    output: OutputOptions = _OUTPUT_DEFAULT,
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
        out: The folder in which measurements, answers and pictures are kept.
        claims: Also write all claims with test, figure and verdict to this Markdown file.
        fresh: Throw away what the folder holds.
    """
    if question is None:
        listed = convscope.ask()
        cli._print(cli._plain(listed.to_dict())) if output.json else print(listed)
        if not output.json:
            cli._say("Next: convscope ask padding   (or all; MODEL and --data DIR make it about yours)")
        return 0
    net = None if model is None else cli._moved(cli._load(model, loading, output), loading)
    if net is None and loading.threads is not None:
        cli._set_threads(loading.threads)
    settings: dict[str, Any] = {
        "data": None if data is None else str(data),
        "quick": quick,
        "studies": studies,
        "out": out,
        "fresh": fresh,
        "seed": loading.seed,
    }
    with cli._progress(cli._kept(out), "measurements") as progress:
        told: Any = convscope.ask(question, net, progress=progress, **settings)
    if claims is not None:
        from convscope.answers.drawing import ledger
        from convscope.store import atomic_write

        atomic_write(claims, ledger(told if question == "all" else [told]))
    if output.json:
        cli._print(cli._plain(told.to_dict()))
    else:
        cli._console(stderr=False).print(told)
        cli._say(f"Written to {cli._escape(str(out))}: the answers as JSON, and their pictures")
    return 0
