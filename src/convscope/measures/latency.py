"""How long a network takes, layer by layer, and what each layer's time is spent on.

Whole passes and passes timed from the inside are run in turn (`clock` says how the inside is timed, and why not by
hooks). A row is a module call in which no other module was called, as the pass really ran: what a fused path runs in
one piece (torch's transformer layer, attention, a compiled network) is one row. What a module with submodules
computes between them is a row too. All that is left is the line `rest`: Python on the way from layer to layer, and
giving memory back there. What rows and rest do not add up to is a line of its own, `unattributed`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from convscope import timing
from convscope.errors import RequestError
from convscope.graph import Graph, record
from convscope.graph.record import flatten
from convscope.measures.clock import Price, Span, opaque, visible
from convscope.measures.counts import Counted, counts
from convscope.measures.figures import Sheet, to_html, to_rich
from convscope.measures.passes import run_passes
from convscope.measures.roofline import Bound, Peak, rate
from convscope.measures.trial import Trial, ready
from convscope.models import InputLike, Net, preserved

if TYPE_CHECKING:
    from rich.console import Group


@dataclass(frozen=True)
class LayerTime:
    """The time of one call of one layer.

    Attributes:
        address: dotted module name, with `#k` where the module is called several times; "rest" for that line.
        kind: class name.
        functional: whether it is what a module with submodules does between them.
        timing: seconds of each round.
        macs, bytes: multiply-accumulates, and bytes that its operations read and write; None where not known.
        ops: operations that it runs, those that only look at a tensor differently left out.
        peak: what the machine can do.
    """

    address: str
    kind: str
    functional: bool
    timing: timing.Timing
    macs: int | None
    bytes: int | None
    ops: int
    peak: Peak = field(repr=False)

    @property
    def seconds(self) -> float:
        """The median."""
        return self.timing.median

    @property
    def macs_per_second(self) -> float | None:
        return _over(self.macs, self.seconds)

    @property
    def bytes_per_second(self) -> float | None:
        return _over(self.bytes, self.seconds)

    @property
    def macs_share(self) -> float | None:
        """Of the peak; above 1 where an algorithm (Winograd, FFT) does with fewer."""
        return _over(self.macs_per_second, self.peak.macs_per_second)

    @property
    def bytes_share(self) -> float | None:
        """Of the peak; above 1 where tensors stay in a cache."""
        return _over(self.bytes_per_second, self.peak.bytes_per_second)

    @property
    def bound(self) -> Bound | None:
        """What the time is spent on, by the rule of `Peak.bound`; None where the work is not known."""
        if self.macs is None or self.bytes is None:
            return None
        return self.peak.bound(self.seconds, self.macs, self.bytes, self.ops)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; seconds, MACs and bytes."""
        figures = {
            name: None if (value := getattr(self, name)) is None else timing.significant(value)
            for name in ("macs_per_second", "bytes_per_second", "macs_share", "bytes_share")
        }
        return {
            "address": self.address,
            "kind": self.kind,
            "functional": self.functional,
            "time": self.timing.to_dict(),
            "macs": self.macs,
            "bytes": self.bytes,
            "ops": self.ops,
            **figures,
            "bound": self.bound,
        }


def _over(value: float | None, by: float) -> float | None:
    return None if value is None else value / by if by > 0 else math.inf if value else 0.0


@dataclass(frozen=True, eq=False, repr=False)
class Latency:
    """The time of a network and of its layers; prints as a table.

    Attributes:
        name: the network's.
        shapes: of its inputs, batch included.
        total: time of a whole pass, nothing timed inside.
        layers: address -> its time, in the order in which they finished.
        rest: what was in no layer: modules that only call others, which is Python and giving
            memory back.
        peak: what the machine can do, measured before and after.
        clock: what timing a call added, in seconds; taken off the rows and the rest already.
        note: why there is no rate and no bound, or "".
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    total: timing.Timing
    layers: Mapping[str, LayerTime]
    rest: LayerTime
    peak: Peak
    clock: Price
    note: str = ""

    @property
    def attributed(self) -> float:
        """Seconds of all layers and the rest, by their medians."""
        return sum(row.seconds for row in self.layers.values()) + self.rest.seconds

    @property
    def unattributed(self) -> float:
        """Seconds of the whole pass that layers and rest do not add up to; negative where they exceed it."""
        return self.total.median - self.attributed

    def share(self, row: LayerTime) -> float:
        """A row's part of the whole."""
        return row.seconds / self.total.median

    def to_dict(self) -> dict[str, Any]:
        """Plain values; seconds, MACs and bytes."""
        return {
            "model": self.name,
            "inputs": [list(shape) for shape in self.shapes],
            "total": self.total.to_dict(),
            "rest": self.rest.to_dict(),
            "unattributed": timing.significant(self.unattributed),
            "peak": self.peak.to_dict(),
            "clock": {
                "inside": timing.significant(self.clock.inside),
                "whole": timing.significant(self.clock.whole),
            },
            "note": self.note,
            "layers": [row.to_dict() for row in self.layers.values()],
        }

    def __repr__(self) -> str:
        return f"Latency({self.name!r}, {self.total}, {len(self.layers)} layers, {self.total.conditions})"

    def _sheet(self) -> Sheet:
        shapes = ", ".join("x".join(map(str, shape)) for shape in self.shapes)
        return Sheet(
            f"{self.name} on {shapes}: {self.total} a pass ({self.total.conditions})",
            ("layer", "kind", "time>", "share>", "MACs/s>", "of peak>", "bytes/s>", "of peak>", "bound"),
            (
                *(self._row(row) for row in self.layers.values()),
                self._row(self.rest),
                ("unattributed", "", _signed(self.unattributed), self._percent(self.unattributed), *[""] * 5),
            ),
            (f"peak: {self.peak}", *([self.note] if self.note else [])),
        )

    def _row(self, row: LayerTime) -> tuple[str, ...]:
        macs = row.macs_per_second if row.macs else None
        moved = row.bytes_per_second if row.bytes else None
        return (
            row.address or "(root)", row.kind, str(row.timing), self._percent(row.seconds),
            "" if macs is None else rate(macs, "MACs"), "" if macs is None else _percent(row.macs_share),
            "" if moved is None else rate(moved, "B"), "" if moved is None else _percent(row.bytes_share),
            row.bound or "",
        )  # fmt: skip

    def _percent(self, seconds: float) -> str:
        return _percent(seconds / self.total.median)

    def __rich__(self) -> Group:
        return to_rich([self._sheet()])

    def _repr_html_(self) -> str:
        return to_html([self._sheet()])


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _signed(seconds: float) -> str:
    return f"-{timing.duration(-seconds)}" if seconds < 0 else timing.duration(seconds)


def latency(
    net: Net | nn.Module,
    *,
    input: InputLike | None = None,
    example: Any = None,
    batch: int = 1,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    graph: Graph | None = None,
    budget: float = 2.0,
) -> Latency:
    """Times a network and its layers, and what the machine can do at most, in the same run.

    The network runs as its user runs it: a private copy in eval mode, inside `torch.inference_mode`, with fused
    paths on, at the present number of threads. It must do the same in each pass.

    Args:
        net: a Net, or a module with `input` or `example`. Compiled and scripted ones are timed as one layer.
        input: what to feed it, instead of the Net's own specification.
        example: the input itself: a tensor, or a tuple of arguments.
        batch: examples at once, where they are drawn.
        device: where to run; that of the network's parameters by default.
        dtype: what weights and input are converted to; by default both stay as they are.
        graph: a recording of the network, which saves running it again where it is of the same input.
        budget: seconds for the rounds, warm-up apart.

    Raises:
        RequestError: the budget, batch, device or type makes no sense.
        ModelError: the network has no values, fails, or calls other layers from one pass to the next.
        OutOfMemory: it does not fit.

    Example:
        >>> found = latency(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), input="3x32x32", budget=0.0)
        >>> list(found.layers), found.layers["0"].macs
        (['0', '1'], 194400)
    """
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not 0 <= budget < math.inf:
        raise RequestError(f"budget={budget!r} must be a number of seconds, 0 or more")
    trial = ready(net, input=input, example=example, batch=batch, device=device, dtype=dtype)
    graph, note = _matching(trial, graph)
    with preserved(trial.module), trial.worded(), torch.inference_mode():
        found = run_passes(trial, budget)
    costs, outside = _costs(graph, found.spans)
    kinds = {name: type(part).__name__ for name, part in trial.module.named_modules()}

    def row(name: str, kind: str, functional: bool, samples: Sequence[float], cost: _Cost) -> LayerTime:
        times = timing.Timing(tuple(samples), found.whole.conditions)
        return LayerTime(name, kind, functional, times, cost.macs, cost.bytes, cost.ops, found.peak)

    layers, left = {}, []
    for span, name, own, cost in zip(found.spans, _addresses(found.spans), found.own, costs, strict=True):
        if span.children and not cost.ops:
            left.append(own)
        else:
            layers[name] = row(name, kinds[span.name], bool(span.children), own, cost)
    rest = row("rest", "", True, _summed(left, len(found.own[-1])), outside)
    return Latency(trial.name, trial.shapes, found.whole, layers, rest, found.peak, found.price, note)


def _addresses(spans: Iterable[Span]) -> list[str]:
    """The name of each call, with `#k` where the module is called several times."""
    calls = Counter(span.name for span in spans)
    return [f"{span.name}#{span.index}" if calls[span.name] > 1 else span.name for span in spans]


def _summed(parts: Iterable[Sequence[float]], rounds: int) -> list[float]:
    return [sum(numbers) for numbers in zip([0.0] * rounds, *parts, strict=True)]


# ---------------------------------------------------------------- the work


@dataclass
class _Cost:
    """The work of one row; None where some of it is not known."""

    macs: int | None = 0
    bytes: int | None = 0
    ops: int = 0

    def add(self, item: Counted) -> None:
        if item.is_view:
            return
        self.ops += 1
        self.bytes = None if self.bytes is None else self.bytes + item.moved_bytes
        self.macs = None if item.cost is None or self.macs is None else self.macs + item.cost.macs


def _matching(trial: Trial, graph: Graph | None) -> tuple[Graph | None, str]:
    """A recording of what was timed; none, and why, where the network cannot be recorded."""
    module = getattr(trial.module, "_orig_mod", trial.module)  # compiled, it does the work of its original
    hidden = next((name for name, part in visible(module) if opaque(part)), None)
    if hidden is not None:
        where = f"layer {hidden!r}" if hidden else "the network"
        return None, f"{where} runs out of sight of Python: MACs and bytes are not known"
    if graph is not None:
        taken = [(graph.values[index].shape, graph.values[index].dtype) for index in graph.inputs]
        if taken == [(tuple(tensor.shape), tensor.dtype) for tensor in flatten(trial.arguments)]:
            return graph, ""
    return record(module, example=trial.arguments), ""


def _costs(graph: Graph | None, spans: Sequence[Span]) -> tuple[list[_Cost], _Cost]:
    """The work of each call without that of calls made from it, and the work outside any call.

    An operation belongs to the innermost timed call that it was recorded in: what ran as one piece may have been
    recorded in several.
    """
    if graph is None:
        return [_Cost(None, None, 0) for _ in spans], _Cost(None, None, 0)
    costs = {(span.name, span.index): _Cost() for span in spans}
    outside = _Cost()
    for item in counts(graph):
        order, cost = item.op.call, None
        while order is not None and cost is None:
            call = graph.calls[order]
            cost, order = costs.get((call.name, call.index)), call.parent
        (outside if cost is None else cost).add(item)
    return list(costs.values()), outside
