"""Loads every classification model of torchvision and every architecture of timm, and runs it forward once.

    python tests/sweep_models.py            # all, writes docs/sweep-models.md
    python tests/sweep_models.py --only resnet

Weights are random and only the structure matters, so networks are built on the meta device: shapes flow, no
number is computed. What cannot run there is built for real.
"""

from __future__ import annotations

import argparse
import collections
import gc
import re
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from convscope._torchvision import torchvision
from convscope.errors import ConvscopeError
from convscope.models import load

TABLE = Path(__file__).parents[1] / "docs" / "sweep-models.md"
TOO_LARGE = re.compile(
    r"giant|gigantic|enormous|huge|_xxl|_7b|_1b|1440|so150m|so400m|l2"
)  # not built for real


@dataclass(frozen=True)
class Outcome:
    """How one model fared: where it ran ("meta" or "cpu"), its facts, or why it failed."""

    source: str
    family: str
    input: tuple[int, ...] = ()
    params: int = 0
    output: tuple[int, ...] = ()
    device: str = ""
    error: str = ""
    seconds: float = 0.0


def sources() -> Iterator[tuple[str, str]]:
    """(source, family) of the whole registry; a timm family is one file of timm.models."""
    models = torchvision().models
    for name in models.list_models(module=models):
        yield f"torchvision:{name}", models.get_model_builder(name).__module__.rpartition(".")[2]
    import timm
    from timm.models import model_entrypoint

    for name in timm.list_models():
        yield f"timm:{name}", model_entrypoint(name).__module__.rpartition(".")[2]


def try_one(source: str, family: str) -> Outcome:
    """Loads one model and runs it forward, on meta first, then for real."""
    start = time.perf_counter()
    first = ""
    for device in ("meta", "cpu"):
        try:
            if device == "cpu" and TOO_LARGE.search(source):
                break
            with torch.device(device):
                net = load(source)
            module = net.module
            with torch.no_grad():
                output = module(net.input.example(device=device))
            shape = tuple(getattr(output, "shape", ()))
            seconds = time.perf_counter() - start
            return Outcome(
                source, family, net.input.shape, net.parameters_count, shape, device, seconds=seconds
            )
        except (
            ConvscopeError,
            RuntimeError,
            NotImplementedError,
            ValueError,
            TypeError,
            AssertionError,
        ) as error:
            first = first or f"{type(error).__name__}: {' '.join(str(error).split())[:110]}"
    return Outcome(source, family, error=first, seconds=time.perf_counter() - start)


def run(chosen: Iterable[tuple[str, str]]) -> list[Outcome]:
    """All outcomes, in order; progress on stderr."""
    outcomes = []
    for source, family in chosen:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome = try_one(source, family)
        outcomes.append(outcome)
        if len(outcomes) % 20 == 0:
            gc.collect()  # modules are cyclic; collecting after each would take most of the time
        print(
            f"{outcome.seconds:6.1f} s  {source}  {outcome.error or outcome.device}",
            file=sys.stderr,
            flush=True,
        )
    return outcomes


def table(outcomes: list[Outcome]) -> str:
    """The committed page: one line a family, then every failure and its reason."""
    import timm

    failed = [outcome for outcome in outcomes if outcome.error]
    lines = [
        "# Models that load and run forward",
        "",
        "Made by `make sweep` (`tests/sweep_models.py`): each model loaded by `convscope.load` and run "
        "forward",
        "on its example input, on the meta device where that suffices, else for real.",
        f"torch {torch.__version__}, torchvision {torchvision().__version__}, timm {timm.__version__}.",
        "",
        f"{len(outcomes) - len(failed)} of {len(outcomes)} models.",
        "",
        "| library | family | models | load and forward | on cpu | parameters, M | inputs |",
        "|---|---|--:|--:|--:|---|---|",
    ]
    groups: dict[tuple[str, str], list[Outcome]] = collections.defaultdict(list)
    for outcome in outcomes:
        groups[outcome.source.partition(":")[0], outcome.family].append(outcome)
    for (library, family), members in sorted(groups.items()):
        good = [member for member in members if not member.error]
        sizes = [member.params / 1e6 for member in good] or [0.0]
        inputs = sorted({"x".join(map(str, member.input)) for member in good})
        listed = ", ".join(inputs[:4]) + (" ..." if len(inputs) > 4 else "")
        real = sum(member.device == "cpu" for member in good)
        lines.append(
            f"| {library} | {family} | {len(members)} | {len(good)} | {real} | {min(sizes):.1f} to "
            f"{max(sizes):.1f} "
            f"| {listed} |"
        )
    if failed:
        lines += ["", "## Not loaded or not run", "", "| model | reason |", "|---|---|"]
        lines += [f"| {outcome.source} | {outcome.error.replace('|', '/')} |" for outcome in failed]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs the sweep and writes the table, or prints it where only a part ran."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="only sources that hold this text; prints, writes nothing")
    only = parser.parse_args().only
    torch.set_num_threads(1)
    outcomes = run((source, family) for source, family in sources() if only in source)
    if only:
        print(table(outcomes))
    else:
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(table(outcomes), "utf-8")


if __name__ == "__main__":
    main()
