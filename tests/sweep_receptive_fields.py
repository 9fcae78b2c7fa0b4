"""Receptive fields over the registries: derived for every model, checked by the NaN oracle where small.

    python tests/sweep_receptive_fields.py            # all, writes docs/sweep-receptive-fields.md
    python tests/sweep_receptive_fields.py resnet     # those whose name contains it, prints the table

One model stands for each timm module: its smallest. Torchvision's classification models are all there.
"""

from __future__ import annotations

import re
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from convscope._torchvision import torchvision
from convscope.errors import ConvscopeError
from convscope.graph import Graph, layout, record
from convscope.graph.rules import RULES, follow
from convscope.measures.receptive_field import ReceptiveField, field_of
from convscope.models import InputSpec
from nan_oracle import check

TABLE = Path(__file__).parents[1] / "docs" / "sweep-receptive-fields.md"
INTRODUCTION = """\
Made by `make sweep` (`tests/sweep_receptive_fields.py`). Size/stride/padding along the width, of the last layer
whose output is a map of positions; where a path opens the field to the whole image, that of the local paths is
given, and one such operation named. *Bound*: the field had to be widened to be said as size, stride and padding.
*Oracle*: NaN put into columns of the image, for the largest field below half the image: `agrees` is exact,
`contained` is no larger than derived, where a bound was derived.
"""
LARGEST = 120_000_000  # parameters of a model built for real


@dataclass(frozen=True)
class Outcome:
    """One model: the field of its last map, what opened it, and what the oracle said of an earlier layer."""

    source: str
    layer: str = ""
    field: ReceptiveField | None = None
    unknown: tuple[str, ...] = ()
    checked: str = ""
    oracle: str = ""
    error: str = ""
    seconds: float = 0.0


def sources() -> Iterator[str]:
    """Torchvision's classification models, and the smallest model of each timm module."""
    models = torchvision().models
    for name in models.list_models(module=models):
        yield f"torchvision:{name}"
    import timm

    for module in timm.list_modules():
        names = timm.list_models(module=module)
        if names:
            yield f"timm:{min(names, key=_smallness)}"


def _smallness(name: str) -> tuple[int, str]:
    """Orders names by the size that they speak of."""
    words = ("test_", "atto", "femto", "pico", "nano", "tiny", "mini", "xxs", "xs", "small", "_s", "b0", "18")
    return next((rank for rank, word in enumerate(words) if word in name), len(words)), name


def build(source: str) -> tuple[nn.Module, tuple[int, ...]]:
    """The model with random weights, and its input's shape."""
    scheme, _, name = source.partition(":")
    if scheme == "timm":
        import timm

        net = timm.create_model(name)
        return net, tuple(net.pretrained_cfg.get("input_size", (3, 224, 224)))
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    net = getattr(torchvision().models, name)(**options)
    return net, (3, 299, 299) if name == "inception_v3" else (3, 224, 224)


def run(wanted: Iterable[str]) -> Iterator[Outcome]:
    """All models in turn; of torchvision the oracle is asked once a family, for its first model."""
    seen: set[str] = set()
    for source in wanted:
        family = (
            re.sub(r"[\d_].*", "", source.replace("_v", "v")) if source.startswith("torchvision:") else source
        )
        yield try_one(source, oracle=family not in seen)
        seen.add(family)


def try_one(source: str, oracle: bool = True) -> Outcome:
    """Derives all fields of one model, and has the oracle check the largest that is cheap to check."""
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            net, shape = _built(source, real=oracle)
            graph = record(net, spec=InputSpec(shape))
            outcome = _derive(source, graph)
            on_meta = next(net.parameters()).device.type == "meta"
            checked, said = ("", "") if on_meta or not oracle else _ask_oracle(net, graph, shape)
        except (ConvscopeError, AssertionError, RuntimeError, NotImplementedError) as error:
            outcome, checked, said = Outcome(source, error=f"{type(error).__name__}: {error}"), "", ""
    return replace(outcome, checked=checked, oracle=said, seconds=time.perf_counter() - start)


def _built(source: str, real: bool) -> tuple[nn.Module, tuple[int, ...]]:
    """For real where that is wanted, unless the meta device tells that it is too large."""
    try:
        with torch.device("meta"):
            net, shape = build(source)
    except Exception:  # some models compute with numbers while they are built
        return build(source)
    large = sum(parameter.numel() for parameter in net.parameters()) > LARGEST
    return build(source) if real and not large else (net, shape)


def _fields(graph: Graph) -> list[tuple[str, ReceptiveField]]:
    """The layers whose output is a map of positions, with their fields, in order of completion."""
    found = []
    for call in graph.calls:
        if call.name and call.index == 0 and call.outputs and follow(graph)[call.outputs[0]].depends:
            plan = layout(graph, call.name)
            if (
                plan.kind in ("map", "map_last", "tokens")
                and max(plan.grid) > 1
                and graph.call(call.name) is call
            ):
                found.append((call.name, field_of(follow(graph)[call.outputs[0]])))
    return found


def _derive(source: str, graph: Graph) -> Outcome:
    reasons = {reason for trace in follow(graph) for reach in trace.reach for reason in reach.whole}
    unknown = {reason.partition(" in ")[0] for reason in reasons}
    unknown = {name for name in unknown if name.rpartition(".")[2].removesuffix("_") not in RULES}
    fields = _fields(graph)
    if not fields:
        return Outcome(source, error="no layer is a map of positions", unknown=tuple(sorted(unknown)))
    layer, field = fields[-1]
    return Outcome(source, layer, field, tuple(sorted(unknown)))


def _ask_oracle(net: nn.Module, graph: Graph, shape: tuple[int, ...]) -> tuple[str, str]:
    small = [(layer, f) for layer, f in _fields(graph) if not any(f.whole) and f.size[1] <= shape[2] // 2]
    if not small:
        return "", "no local layer"
    layer, field = max(small, key=lambda item: item[1].size[1])
    try:
        check(net, layer, shape, most=8)
    except AssertionError as error:
        return layer, f"DISAGREES: {error}"
    return layer, "contained" if field.bounds else "agrees"


def table(outcomes: Iterable[Outcome]) -> str:
    """The outcomes as Markdown."""
    outcomes = list(outcomes)
    agree = sum(outcome.oracle == "agrees" for outcome in outcomes)
    contained = sum(outcome.oracle == "contained" for outcome in outcomes)
    against = sum(outcome.oracle.startswith("DISAGREES") for outcome in outcomes)
    lines = [
        "# Receptive fields over the registries",
        "",
        INTRODUCTION,
        f"{len(outcomes)} models, {sum(o.field is not None for o in outcomes)} with an answer, "
        f"{agree} confirmed by the oracle exactly, {contained} as a bound, {against} contradicted.",
        "",
        "| model | layer | field | whole image through | notes | oracle |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for outcome in outcomes:
        if outcome.field is None:
            lines.append(f"| {outcome.source} | | | | {_cell(outcome.error)} | |")
            continue
        local = outcome.field.local if any(outcome.field.whole) else outcome.field
        numbers = (
            "none local" if local is None else f"{local.size[-1]}/{local.stride[-1]}/{local.padding[-1]}"
        )
        notes = [
            "bound" if outcome.field.bounds else "",
            "" if outcome.field.aligned else "misaligned",
            f"no rule for {', '.join(outcome.unknown)}" if outcome.unknown else "",
        ]
        reason = outcome.field.reasons[0].partition(" in ")[0] if outcome.field.reasons else ""
        oracle = f"{outcome.oracle} ({outcome.checked})" if outcome.checked else outcome.oracle
        cells = (outcome.source, outcome.layer, numbers, reason, "; ".join(n for n in notes if n), oracle)
        lines.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")[:200]


def main(wanted: list[str]) -> None:
    chosen = [source for source in sources() if not wanted or any(word in source for word in wanted)]
    outcomes = []
    for outcome in run(chosen):
        outcomes.append(outcome)
        said = outcome.oracle or outcome.error
        print(f"{outcome.seconds:6.1f} s  {outcome.source}  {said}", file=sys.stderr, flush=True)
    if wanted:
        print(table(outcomes))
    else:
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(table(outcomes), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
