"""A study's result as rows: for the terminal, a notebook, text and JSON."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from convscope.timing import duration

if TYPE_CHECKING:
    from rich.table import Table

    from convscope.studies.results import StudyResult, VariantResult
    from convscope.studies.statistics import Difference, Mean

HEADS = (
    "variant",
    "seeds>",
    "accuracy>",
    "95 %>",
    "difference>",
    "p>",
    "params>",
    "MACs>",
    "latency>",
    "field>",
    "",
)


def columns(result: StudyResult) -> tuple[str, ...]:
    """Names of the columns; see `HEADS`."""
    return tuple(f"{figure(result)}>" if head == "accuracy>" else head for head in HEADS)


def rows(result: StudyResult, metric: str | None = None) -> list[tuple[str, ...]]:
    """A row a variant, in the order of the design; see `HEADS`. Accuracies in percent, differences in points.

    The last column says what else there is to know: the baseline, on the Pareto front by MACs, diverged, failed.
    """
    means, differences = result.means(metric), result.differences(metric)
    front = result.pareto(metric=metric)
    found: list[tuple[str, ...]] = []
    for place, variant in enumerate(result.variants):
        notes = ["baseline"] if place == result.baseline else []
        notes += ["Pareto"] if place in front else []
        notes += [f"{variant.diverged} diverged"] if variant.diverged else []
        failed = sum(failure["variant"] == place for failure in result.failed)
        notes += [f"{failed} failed"] if failed else []
        found.append(
            (
                variant.label,
                str(len(variant.runs)),
                *_mean(means[place]),
                *_difference(differences[place]),
                *_cost(variant),
                ", ".join(notes),
            )
        )
    return found


def _mean(mean: Mean | None) -> tuple[str, str]:
    if mean is None:
        return "–", ""
    ends = "" if mean.low is None or mean.high is None else f"{100 * mean.low:.2f} to {100 * mean.high:.2f}"
    return f"{100 * mean.mean:.2f}", ends


def _difference(difference: Difference | None) -> tuple[str, str]:
    if difference is None:
        return "", ""
    p = difference.adjusted_p
    ends = ""
    if difference.low is not None and difference.high is not None:
        ends = f" ({100 * difference.low:+.2f} to {100 * difference.high:+.2f})"
    return f"{100 * difference.mean:+.2f}{ends}", "" if p is None else "<0.001" if p < 1e-3 else f"{p:.3f}"


def _cost(variant: VariantResult) -> tuple[str, str, str, str]:
    cost = variant.cost
    if cost is None:
        return "–", "–", "–", "–"
    field = cost.receptive_field
    square = field is not None and len(set(field)) == 1
    return (
        f"{cost.params:,}",
        "–" if cost.macs is None else f"{cost.macs:,}",
        "–" if cost.latency is None else duration(cost.of("latency")),
        "–" if field is None else str(field[0]) if square else "x".join(map(str, field)),
    )


def failures(result: StudyResult) -> list[str]:
    """A line for each reason that runs of a variant failed for."""
    grouped: dict[tuple[int, str, int], list[int]] = {}
    for failure in result.failed:
        key = failure["variant"], failure["reason"], failure["attempts"]
        grouped.setdefault(key, []).append(failure["seed"])
    found = []
    for (place, reason, attempts), seeds in grouped.items():
        several = "s" if len(seeds) > 1 else ""
        tries = f"tried {attempts} time{'s' if attempts > 1 else ''}{' each' if several else ''}"
        label = result.variants[place].label
        found.append(f"{label}, seed{several} {', '.join(map(str, sorted(seeds)))} ({tries}): {reason}")
    return found


def figure(result: StudyResult) -> str:
    """What the scores are."""
    return "R\N{SUPERSCRIPT TWO}" if result.data.get("values") else "accuracy"


def title(result: StudyResult) -> str:
    """One line above the table."""
    return f"{result.design.name}: {result.done} of {result.planned} runs, {result.checked(None)} {figure(result)} in percent"


def rich_table(result: StudyResult) -> Table:
    """For the terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title_justify="left")
    if not result.metrics:
        table.title = Text(f"{result.design.name}: no run has finished")
        return table
    table.title = Text(title(result))
    for head in columns(result):
        table.add_column(head.removesuffix(">"), justify="right" if head.endswith(">") else "left")
    for row in rows(result):
        table.add_row(*map(Text, row))  # Text, not markup: levels are the user's
    return table


def html(result: StudyResult) -> str:
    """For a notebook: the table, and the choice in words."""
    if not result.metrics:
        return f"<p>{escape(result.design.name)}: no run has finished</p>"
    heads = "".join(f"<th>{head.removesuffix('>')}</th>" for head in columns(result))
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows(result)
    )
    choice = result.choose()._repr_html_() if {"macs", "params"} & set(result.costs) else ""
    return f"<table><caption>{escape(title(result))}</caption><tr>{heads}</tr>{body}</table>{choice}"


def summary(result: StudyResult) -> dict[str, Any] | None:
    """What follows from the runs, as plain values: means, differences and fronts for each metric, and the choice by MACs, or by
    parameters where MACs are not counted.

    None where no run has finished.
    """
    if not result.metrics:
        return None
    found: dict[str, Any] = {}
    for metric in result.metrics:
        found[metric] = {
            "means": [None if mean is None else mean.to_dict() for mean in result.means(metric)],
            "differences": [None if d is None else d.to_dict() for d in result.differences(metric)],
            "pareto": {kind: list(result.pareto(kind, metric)) for kind in result.costs},
        }
    countable = any(kind in result.costs for kind in ("macs", "params"))
    choice = result.choose().to_dict() if countable else None
    return {"baseline": result.baseline, "metrics": found, "choice": choice}
