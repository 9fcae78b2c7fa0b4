"""The page of the rewrite sweep: what each rule did to each model, how far the outputs are apart, why layers were refused."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from convscope._torchvision import torchvision

if TYPE_CHECKING:
    from sweep_rewrites import Row

TABLE = Path(__file__).parents[1] / "docs" / "sweep-rewrites.md"
MARKS = {"exact": "E", "exact-interior": "I", "approximate": "A"}
INTRODUCTION = """\
Made by `make sweep` (`tests/sweep_rewrites.py`): every rule on models that are each the smallest of their timm module, and on
one of each torchvision family. Weights are random, inputs as small as the model takes.

Every rewrite is verified by convscope itself, and then looked at by an oracle (`tests/rewrite_oracle.py`) that trusts none
of it: nothing differs but what an edit names; each layer and its replacement differ, on other noise, by what the edit says;
the old network with the new layers put in by hand gives what the new one gives; where all edits are exact the outputs
agree, at a larger size too; scores are those of windows cut out; images are brought to size as said. *Corrupt* counts
rewrites that failed any of this.
"""
LEGEND = """\
`E` exact, `I` exact but near borders, `A` approximate, each with the number of layers edited (of those it was asked
about), and for `A` the largest error of a layer (InputSize: of the outputs), relative to the largest output of that layer;
`r` all refused, with their number; `-` no layer that the rule is about; *stopped*: convscope's own verification ended the
rewrite with an error, and nothing was changed.
"""


def table(rows: Sequence[Row]) -> str:
    """The page."""
    vision = torchvision().__version__  # before timm, which imports it
    import timm

    cases = list(dict.fromkeys(row.case for row in rows))
    sources = list(dict.fromkeys(row.source for row in rows))
    bad = [row for row in rows if row.problems]
    stopped = [row for row in rows if row.status == "raised"]
    libraries = Counter(source.partition(":")[0] for source in sources)
    lines = [
        "# Rewrites over the registries",
        "",
        INTRODUCTION,
        f"torch {torch.__version__}, torchvision {vision}, timm {timm.__version__}.",
        "",
        f"{len(sources)} models ({libraries['timm']} of timm, {libraries['torchvision']} of torchvision), {len(cases)} "
        f"rules, {len(rows)} rewrites, {sum(row.done for row in rows):,} edits, "
        f"{sum(row.refused for row in rows):,} layers refused, {len(stopped)} rewrites stopped; "
        f"**{len(bad)} corrupt**.",
        "",
        *_totals(rows, cases),
        "",
        "## Model by model",
        "",
        LEGEND,
    ]
    for group in range(0, len(cases), 10):
        lines += [*_matrix(rows, sources, cases[group : group + 10]), ""]
    lines += [*_reasons(rows, cases), *_told("Stopped", stopped), *_told("Corrupt", bad)]
    return "\n".join(lines).rstrip() + "\n"


def _totals(rows: Sequence[Row], cases: Sequence[str]) -> list[str]:
    found = [
        "| rule | exact | exact inside | approximate | refused | nothing to do | stopped | corrupt | edited | not edited "
        "| outputs of exact ones differ by at most | error of approximate ones, median |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for case in cases:
        own = [row for row in rows if row.case == case]
        count = Counter(row.status for row in own)
        sure = [
            row.found for row in own if row.status in ("exact", "exact-interior") and row.found is not None
        ]
        about = [row.told for row in own if row.status == "approximate" and row.told is not None]
        cells = [
            f"`{case}`".replace("|", "\\|"),
            *(
                str(count[name])
                for name in ("exact", "exact-interior", "approximate", "refused", "nothing", "raised")
            ),
            str(sum(bool(row.problems) for row in own)),
            f"{sum(row.done for row in own):,}",
            f"{sum(row.refused for row in own):,}",
            f"{max(sure):.0e}" if sure else "",
            f"{statistics.median(about):.2g}" if about else "",
        ]
        found.append(f"| {' | '.join(cells)} |")
    return found


def _matrix(rows: Sequence[Row], sources: Sequence[str], cases: Sequence[str]) -> list[str]:
    known = {(row.source, row.case): row for row in rows}
    found = [
        f"| model | input | {' | '.join('`' + case.replace('|', chr(92) + '|') + '`' for case in cases)} |",
        f"|---|--:|{'---|' * len(cases)}",
    ]
    for source in sources:
        own = [known[source, case] for case in cases if (source, case) in known]
        cells = [_cell(known[source, case]) if (source, case) in known else "" for case in cases]
        found.append(f"| {source} | {own[0].input if own else ''} | {' | '.join(cells)} |")
    return found


def _cell(row: Row) -> str:
    if row.problems:
        return "**corrupt**"
    if row.status == "raised":
        return "stopped"
    if row.status == "nothing":
        return "-"
    if row.status == "refused":
        return f"r {row.refused or ''}".strip()
    asked = row.done + row.refused
    text = f"{MARKS[row.status]} {row.done}" + (f"/{asked}" if row.refused else "")
    return text + (f" {row.told:.1g}" if row.status == "approximate" and row.told is not None else "")


def _reasons(rows: Sequence[Row], cases: Sequence[str]) -> list[str]:
    """Why layers, or whole networks, were refused: the ten most frequent reasons of each rule."""
    lines = ["## Refused", "", "| rule | reason | layers | models |", "|---|---|--:|--:|"]
    for case in cases:
        layers: Counter[str] = Counter()
        models: dict[str, set[str]] = defaultdict(set)
        for row in rows:
            if row.case == case and row.status not in ("nothing", "raised"):
                for reason, count in row.reasons:
                    layers[reason] += count
                    models[reason].add(row.source)
        lines += [
            f"| {_plain(f'`{case}`')} | {_plain(reason)} | {count} | {len(models[reason])} |"
            for reason, count in layers.most_common(10)
        ]
    return [*lines, ""]


def _told(title: str, rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    lines = [f"## {title}", "", "| model | rule | what |", "|---|---|---|"]
    for row in rows:
        what = "; ".join(row.problems) or "; ".join(reason for reason, _ in row.reasons)
        lines.append(f"| {row.source} | {_plain(f'`{row.case}`')} | {_plain(what)} |")
    return [*lines, ""]


def _plain(text: str) -> str:
    return text.replace("|", "\\|")[:200]
