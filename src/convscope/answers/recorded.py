"""What the studies on record found, and what their variants cost on this machine: a table for each that an answer reads."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from convscope import timing
from convscope.answers import questions
from convscope.answers.base import fill
from convscope.errors import ConvscopeError
from convscope.measures.figures import Sheet
from convscope.studies.networks import build
from convscope.studies.results import StudyResult
from convscope.studies.shelf import records
from convscope.studies.statistics import Difference, Mean

if TYPE_CHECKING:
    from convscope.answers.asked import Asked

_HEADS = ("variant", "training>", "test>", "difference, points>", "parameters>", "MACs>", "time here>")
_NOTE = (
    "{seeds} seeds, {epochs} on {samples} {kind}; means with their 95 % intervals, differences paired by seed"
)


def tables(asked: Asked) -> tuple[Sheet, ...]:
    """A table for each study on record that the question reads; their costs are measured again here."""
    wanted = asked.question.studies
    found = [(name, result) for name, result in records(asked.studies) if name in wanted] if wanted else []
    return tuple(
        _table(
            name,
            result,
            asked.part(
                questions.cost(name),
                partial(_times, result, asked.quick),
                about={"design": result.design.to_dict()},
                timed=True,
            ),
        )
        for name, result in found
        if result.metrics
    )


def _times(result: StudyResult, quick: bool) -> dict[str, Any]:
    """The latency of each variant, timed in turn, one input at a time; None where it cannot be built or takes no images."""
    made = [_built(result, place) for place in range(len(result.variants))]
    shape = result.data["shape"]
    if not any(made) or len(shape) != 3:
        return {"times": [None] * len(made)}
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    runs = {str(k): _call(module, x) for k, module in enumerate(made) if module is not None}
    with torch.no_grad():
        taken = timing.measure(runs, budget=(0.03 if quick else 0.3) * len(runs), grain=0.001)
    return {"times": [taken[str(k)].to_dict() if str(k) in taken else None for k in range(len(made))]}


def _built(result: StudyResult, place: int) -> nn.Module | None:
    """A variant with new weights; None where it needs more than its own arguments to be built, as a text network does."""
    variant = result.design.variants()[place]
    if variant.rules or len(result.data["shape"]) != 3 or not isinstance(result.design.base, str):
        return None
    channels, *size = result.data["shape"]
    offered = {"in_channels": channels, "classes": len(result.data["classes"]), "size": tuple(size)}
    try:
        return build(
            result.design.base, {**result.design.arguments, **variant.arguments}, offered=offered
        ).eval()
    except ConvscopeError:
        return None


def _call(module: nn.Module, x: Tensor) -> Any:
    return lambda: module(x)


def _table(name: str, result: StudyResult, part: dict[str, Any]) -> Sheet:
    test = result.metrics[0]
    training = result.means("train") if "train" in result.metrics else (None,) * len(result.variants)
    rows = []
    for place, (variant, mean, difference) in enumerate(
        zip(result.variants, result.means(test), result.differences(test), strict=True)
    ):
        cost, time = variant.cost, part["times"][place] if place < len(part["times"]) else None
        rows.append(
            (
                variant.label + (f" ({variant.diverged} diverged)" if variant.diverged else ""),
                "" if training[place] is None else f"{100 * training[place].mean:.1f} %",  # type: ignore[union-attr]
                _mean(mean),
                "baseline" if place == result.baseline else _difference(difference),
                "" if cost is None else f"{cost.params:,}",
                "" if cost is None or cost.macs is None else f"{cost.macs:,}",
                "" if time is None else fill("{median:time}", time),
            )
        )
    limits = ", ".join(f"{value:g} {limit}" for limit, value in result.design.to_dict()["budget"].items())
    about = {
        "seeds": len(result.design.all_seeds),
        "epochs": limits,
        "samples": result.data.get("counts", {}).get("train"),
        "kind": "sentences" if result.data.get("kind") == "text" else "images",
    }
    title = f"the study {name} on record: {result.design.title or name}"
    return Sheet(title, _HEADS, tuple(rows), (fill(_NOTE, about) + ".",))


def _mean(mean: Mean | None) -> str:
    if mean is None:
        return ""
    ends = (
        "" if mean.low is None or mean.high is None else f" ({100 * mean.low:.1f} to {100 * mean.high:.1f})"
    )
    return f"{100 * mean.mean:.1f} %{ends}"


def _difference(difference: Difference | None) -> str:
    if difference is None:
        return ""
    if difference.low is None or difference.high is None:
        return f"{100 * difference.mean:+.1f}"
    return f"{100 * difference.mean:+.1f} ({100 * difference.low:+.1f} to {100 * difference.high:+.1f})"
