"""FFT or Winograd, when? Every algorithm on rows of convolutions, in which one thing grows at a time.

    for survey in measure_all(quick=True): ...
    print(survey)                                # who leads from where to where, on this machine

A *sweep* is such a row: the kernel size, the channels or the resolution grows, the rest stays. At each point every
algorithm is timed (`point.py`). A *lead* is a stretch over which one algorithm is the fastest,
a *crossover* the place where the curves of two leaders meet.
"""

from __future__ import annotations

import io
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

import convscope
from convscope import timing
from convscope.algorithms.explanation import describe
from convscope.algorithms.point import Entry, Point, measure_point
from convscope.algorithms.problem import Problem

__all__ = [
    "Crossover",
    "Entry",
    "Point",
    "Survey",
    "Sweep",
    "convolution",
    "crossovers",
    "describe",
    "leads",
    "machine",
    "measure_all",
    "measure_point",
    "sweeps",
]

if TYPE_CHECKING:
    from rich.table import Table

FULL, QUICK = 135.0, 24.0  # seconds of measuring aimed at; the page and the first compilation come on top

Progress = Callable[[dict[str, Any]], None]


# ---------------------------------------------------------------- what is measured


@dataclass(frozen=True)
class Sweep:
    """A row of convolutions in which one thing grows.

    Attributes:
        name: a word for files and links.
        title: what is held still, for people.
        axis: what grows: "kernel", "channels" or "resolution".
        values: how large it is at each point.
        problems: the convolution at each point.
    """

    name: str
    title: str
    axis: str
    values: tuple[int, ...]
    problems: tuple[Problem, ...]


def convolution(
    channels: int, size: int, kernel: int, *, batch: int = 1, depthwise: bool = False, device: str = "cpu"
) -> Problem:
    """A square convolution with as many outputs as inputs, "same" padding, float32.

    Example:
        >>> print(describe(convolution(64, 56, 31)))
        1 x 64 x 56 x 56 -> 64, 31x31, padding 15, float32
    """
    x = torch.empty(batch, channels, size, size, device="meta")
    weight = torch.empty(channels, 1 if depthwise else channels, kernel, kernel, device="meta")
    problem = Problem.of(x, weight, 1, kernel // 2, 1, channels if depthwise else 1)
    return replace(problem, device=device)


def sweeps(*, quick: bool = False, device: str = "cpu") -> tuple[Sweep, ...]:
    """The rows of `measure_all`.

    Args:
        quick: fewer rows and points.
        device: "cpu" or "cuda".

    Example:
        >>> [sweep.name for sweep in sweeps(quick=True)]
        ['kernel', 'kernel-depthwise', 'channels-3', 'resolution-3']
    """
    make = partial(convolution, device=device)
    many = (1, 3, 5, 7, 9, 13, 21, 31)
    few = (3, 5, 9, 15, 31)
    kernels = few if quick else many
    depth = (16, 64, 256) if quick else (16, 32, 64, 128, 256, 512)
    sides = (14, 56, 112) if quick else (7, 14, 28, 56, 112, 224)

    def row(name: str, title: str, axis: str, values: tuple[int, ...], at: Callable[[int], Problem]) -> Sweep:
        return Sweep(name, title, axis, values, tuple(map(at, values)))

    all_rows = (
        row("kernel", "64 channels, 56 × 56", "kernel", kernels, lambda k: make(64, 56, k)),
        row(
            "kernel-depthwise", "depthwise, 192 channels, 56 × 56", "kernel",
            few if quick else tuple(k for k in many if k > 1), lambda k: make(192, 56, k, depthwise=True),
        ),
        row("channels-3", "3 × 3 kernel, 28 × 28", "channels", depth, lambda c: make(c, 28, 3)),
        row("channels-9", "9 × 9 kernel, 28 × 28", "channels", depth[:-1], lambda c: make(c, 28, 9)),
        row("resolution-3", "3 × 3 kernel, 64 channels", "resolution", sides, lambda s: make(64, s, 3)),
        row("resolution-9", "9 × 9 kernel, 64 channels", "resolution", sides[:-1], lambda s: make(64, s, 9)),
    )  # fmt: skip
    return tuple(each for each in all_rows if not (quick and each.name.endswith("-9")))


# ---------------------------------------------------------------- what comes of it


@dataclass(frozen=True)
class Crossover:
    """Where the fastest algorithm changes.

    Attributes:
        before, after: the names of the two.
        low, high: the last value at which the one leads and the first at which the other does.
        value, seconds: where their curves meet, by straight lines between measured points in logarithms; None where
            one of them ends before.
    """

    before: str
    after: str
    low: int
    high: int
    value: float | None
    seconds: float | None


def leads(points: Sequence[Point]) -> list[tuple[str, int, int]]:
    """The fastest algorithm over each stretch of a sweep: (name, first value, last value).

    Of those whose 95 % intervals overlap with the fastest's it is direct, else the leader so far.

    Example:
        >>> at = lambda value, **ms: Point(value, "", tuple(Entry(n, seconds=timing.Interval(t, t, t)) for n, t in ms.items()))
        >>> leads([at(3, direct=2.0, fft=9.0), at(5, direct=4.0, fft=9.1), at(9, direct=12.0, fft=9.2)])
        [('direct', 3, 5), ('fft', 9, 9)]
    """
    found: list[tuple[str, int, int]] = []
    for point in points:
        if not point.timed:
            continue
        so_far = found[-1][0] if found else ""
        name = next((each for each in ("direct", so_far) if each in point.equal), point.equal[0])
        if found and found[-1][0] == name:
            found[-1] = (name, found[-1][1], point.value)
        else:
            found.append((name, point.value, point.value))
    return found


def crossovers(points: Sequence[Point]) -> list[Crossover]:
    """Where one leader's curve meets the next one's.

    Example:
        >>> at = lambda value, **ms: Point(value, "", tuple(Entry(n, seconds=timing.Interval(t, t, t)) for n, t in ms.items()))
        >>> [meet] = crossovers([at(4, direct=1.0, fft=4.0), at(16, direct=16.0, fft=4.0)])
        >>> meet.before, meet.after, round(meet.value, 3), round(meet.seconds, 3)
        ('direct', 'fft', 8.0, 4.0)
    """
    stretches = leads(points)
    found = []
    for (before, _, last), (after, first, _) in itertools.pairwise(stretches):
        value, seconds = _meeting([point for point in points if point.value <= first], before, after)
        found.append(Crossover(before, after, last, first, value, seconds))
    return found


def _meeting(points: Sequence[Point], before: str, after: str) -> tuple[float | None, float | None]:
    """Value and seconds where the last two points lie on both sides of the curves' meeting, or the ones before."""
    both = []  # (log value, log seconds of the one, of the other)
    for point in points:
        times = {each.algorithm: math.log(each.seconds.median) for each in point.timed if each.seconds}
        if {before, after} <= set(times):
            both.append((math.log(point.value), times[before], times[after]))
    for (x, one, other), (x_then, one_then, other_then) in reversed(list(itertools.pairwise(both))):
        if one <= other and one_then > other_then:
            share = (other - one) / (other - one + one_then - other_then)
            return math.exp(x + share * (x_then - x)), math.exp(one + share * (one_then - one))
    return None, None


@dataclass(frozen=True)
class Survey:
    """All sweeps on one machine; prints as a table of who leads where.

    Attributes:
        machine: processor, threads, device, versions.
        rows: the sweeps, each with the points measured so far.
        planned: how many points there will be.
        seconds: how long it took.
        load: mean load of the machine meanwhile; more than the threads used means company. None if it does not tell.
    """

    machine: Mapping[str, Any]
    rows: tuple[tuple[Sweep, tuple[Point, ...]], ...]
    planned: int
    seconds: float = 0.0
    load: float | None = None

    @property
    def done(self) -> int:
        """Points measured."""
        return sum(len(points) for _, points in self.rows)

    @property
    def busy(self) -> bool:
        """Whether other work ran beside it, so that the times are too long."""
        return self.load is not None and self.load > self.machine["threads"] + 1

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "machine": dict(self.machine),
            "planned": self.planned,
            "done": self.done,
            "seconds": round(self.seconds, 1),
            "load": self.load,
            "busy": self.busy,
            "sweeps": [_row_dict(sweep, points) for sweep, points in self.rows],
        }

    def __rich__(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table(
            title=f"The fastest, on {self.machine['processor']}, {self.machine['threads']} threads",
            title_justify="left",
        )
        for name in ("what grows", "while", "fastest", "over direct"):
            table.add_column(name, justify="right" if name == "over direct" else "left")
        for sweep, points in self.rows:
            for name, first, last in leads(points):
                stretch = f"{sweep.axis} {first}" + (f" to {last}" if last != first else "")
                table.add_row(*map(Text, (stretch, sweep.title, name, _gain(points, name, first, last))))
        return table

    def __str__(self) -> str:
        from rich.console import Console

        text = io.StringIO()
        Console(file=text, width=120, color_system=None).print(self)
        return text.getvalue().rstrip()


def _row_dict(sweep: Sweep, points: Sequence[Point]) -> dict[str, Any]:
    stretches = leads(points)
    leader = {
        point.value: name
        for name, first, last in stretches
        for point in points
        if first <= point.value <= last
    }
    return {
        "name": sweep.name,
        "title": sweep.title,
        "axis": sweep.axis,
        "values": list(sweep.values),
        "answer": _answer(sweep, points),
        "points": [
            point.to_dict()
            | {"fastest": leader[point.value], "over_direct": point.over_direct(leader[point.value])}
            | {"equal": list(point.equal)}
            for point in points
            if point.timed
        ],
        "leads": [{"algorithm": name, "from": first, "to": last} for name, first, last in stretches],
        "crossovers": [vars(each) for each in crossovers(points)],
    }


def _answer(sweep: Sweep, points: Sequence[Point]) -> str:
    """Who leads where, as one sentence.

    Example:
        >>> at = lambda value, **ms: Point(value, "", tuple(Entry(n, seconds=timing.Interval(t, t, t)) for n, t in ms.items()))
        >>> row = Sweep("kernel", "64 channels", "kernel", (3, 5, 9), ())
        >>> _answer(row, [at(3, direct=2.0, fft=9.0), at(5, direct=4.0, fft=9.1), at(9, direct=12.0, fft=3.0)])
        'direct from 3 to 5; fft from 9 on (4.0×)'
    """
    told = []
    stretches = leads(points)
    for number, (name, first, last) in enumerate(stretches):
        where = f"at {first}" if first == last else f"from {first} to {last}"
        if number == len(stretches) - 1:
            where = "throughout" if number == 0 else f"from {first} on"
        gain = _gain(points, name, first, last)
        told.append(f"{name} {where}" + (f" ({gain})" if gain else ""))
    return "; ".join(told)


def _gain(points: Sequence[Point], name: str, first: int, last: int) -> str:
    """How many times as fast as direct over a stretch, from the least to the most."""
    within = [point.over_direct(name) for point in points if first <= point.value <= last]
    gains = [gain for gain in within if gain is not None]
    if name == "direct" or not gains:
        return ""
    low, high = f"{min(gains):.1f}", f"{max(gains):.1f}"
    return f"{low}×" if low == high else f"{low} to {high}×"


# ---------------------------------------------------------------- measuring


def machine(device: str = "cpu") -> dict[str, Any]:
    """What a survey depends on and is told with it."""
    return {
        "processor": timing.processor(),
        "accelerator": timing.accelerator(device),
        "device": device,
        "threads": torch.get_num_threads(),
        "dtype": "float32",
        "torch": torch.__version__,
        "convscope": convscope.__version__,
    }


def measure_all(
    *,
    quick: bool = False,
    device: str = "cpu",
    known: Mapping[str, Mapping[str, Any]] | None = None,
    keep: Callable[[str, dict[str, Any]], None] | None = None,
    progress: Progress | None = None,
) -> Iterator[Survey]:
    """Measures all sweeps, point by point, and yields what there is after each.

    Args:
        quick: fewer sweeps and points, in half a minute instead of two and a half.
        device: "cpu" or "cuda".
        known: points measured before, by name, as `keep` was given them: they are not measured again.
        keep: called with a name and plain values after each point.
        progress: called with {"done", "total", "rate", "seconds_left", "layer"}.
    """
    rows = sweeps(quick=quick, device=device)
    planned = sum(len(row.values) for row in rows)
    results: dict[str, list[Point]] = {row.name: [] for row in rows}
    began, spent, measured = time.monotonic(), 0.0, 0
    loads: list[float] = []

    def so_far() -> Survey:
        done = tuple((row, tuple(results[row.name])) for row in rows)
        load = round(statistics.mean(loads), 2) if loads else None
        return Survey(machine(device), done, planned, spent, load)

    places = [(row, *place) for row in rows for place in zip(row.values, row.problems, strict=True)]
    known = dict(known or {})
    ahead = sum(f"{row.name}/{value}" not in known for row, value, _ in places)  # points still to measure
    allowance = (QUICK if quick else FULL) * ahead / planned
    for done, (row, value, problem) in enumerate(places, 1):
        name = f"{row.name}/{value}"
        if name in known:
            results[row.name].append(Point.of(known[name]))
            continue
        point = measure_point(value, problem, (allowance - spent) / ahead)
        if keep is not None:
            keep(name, point.to_dict())
        results[row.name].append(point)
        loads += [load for load in [timing.load()] if load is not None]
        measured, ahead, spent = measured + 1, ahead - 1, time.monotonic() - began
        if progress is not None:
            pace = {"rate": measured / spent, "seconds_left": max(0.0, allowance - spent) if ahead else 0.0}
            told = f"{row.axis} {value}, {row.title}"
            progress({"done": done, "total": planned, "layer": told, **pace})
        yield so_far()
    if not places or all(f"{row.name}/{value}" in known for row, value, _ in places):
        yield so_far()
