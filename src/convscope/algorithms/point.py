"""One convolution by every algorithm, each in the variant and memory layout that suit it best here.

Weights are prepared, rounds interleaved; the output is compared with the exact result, in float64 by one transform of
the whole image, for a few output channels.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from convscope import timing
from convscope.algorithms.base import ALGORITHMS, Kernel
from convscope.algorithms.candidates import Candidate, allowed, free_bytes, least_seconds
from convscope.algorithms.explanation import describe
from convscope.algorithms.problem import Problem
from convscope.algorithms.race import clean_room, random_tensor

TRIED = 3  # variants of an algorithm that are probed at a point
HOPELESS = 20.0  # whose cost alone exceeds so many times the fastest's time is not run
LONG = 0.3  # seconds: what takes longer in its first call is not called again


# ---------------------------------------------------------------- what comes of it


@dataclass(frozen=True)
class Entry:
    """One algorithm at one point.

    Attributes:
        algorithm: its name.
        variant, layout: of those tried, the fastest variant and memory layout of the input.
        seconds: median time of a call and its 95 % interval; None where it was not timed.
        reason: why it was not timed, or "".
        error: largest difference from direct in float64, relative to the output's maximum.
        workspace: bytes needed while it runs.
        prepared: bytes of the prepared weight.
        operations: multiplications and additions.
    """

    algorithm: str
    variant: str = ""
    layout: str = ""
    seconds: timing.Interval | None = None
    reason: str = ""
    error: float | None = None
    workspace: int | None = None
    prepared: int | None = None
    operations: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**vars(self), "seconds": None if self.seconds is None else vars(self.seconds)}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Entry:
        """From what `to_dict` gave."""
        seconds = values["seconds"]
        return cls(**{**values, "seconds": None if seconds is None else timing.Interval(**seconds)})


@dataclass(frozen=True)
class Point:
    """All algorithms at one point of a sweep.

    Attributes:
        value: how large is what grows.
        problem: the convolution in one line.
        entries: one for each algorithm.
    """

    value: int
    problem: str
    entries: tuple[Entry, ...]

    @property
    def timed(self) -> tuple[Entry, ...]:
        """Those that were timed, fastest first."""
        ran = [(each.seconds.median, index) for index, each in enumerate(self.entries) if each.seconds]
        return tuple(self.entries[index] for _, index in sorted(ran))

    @property
    def equal(self) -> tuple[str, ...]:
        """The fastest, and those whose 95 % interval overlaps with its own."""
        if not self.timed:
            return ()
        limit = self.timed[0].seconds.high  # type: ignore[union-attr]
        return tuple(each.algorithm for each in self.timed if each.seconds and each.seconds.low <= limit)

    def over_direct(self, name: str) -> float | None:
        """How many times as fast as direct an algorithm is here."""
        times = {each.algorithm: each.seconds.median for each in self.timed if each.seconds}
        return times["direct"] / times[name] if {"direct", name} <= set(times) else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "value": self.value,
            "problem": self.problem,
            "entries": [each.to_dict() for each in self.entries],
        }

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Point:
        """From what `to_dict` gave."""
        return cls(values["value"], values["problem"], tuple(map(Entry.of, values["entries"])))


# ---------------------------------------------------------------- measuring


def measure_point(value: int, problem: Problem, allowance: float = 3.0) -> Point:
    """Times every algorithm on one convolution, each in its best variant and layout.

    Args:
        value: how large is what grows.
        problem: the convolution.
        allowance: seconds it may take, as far as the slowest call allows.

    Example:
        >>> point = measure_point(3, Problem(1, 8, 8, (16, 16), (3, 3)), 0.1)
        >>> sorted(entry.algorithm for entry in point.entries) == sorted(ALGORITHMS)
        True
    """
    end = time.monotonic() + allowance
    with clean_room(torch.get_num_threads(), problem.device, "prepared"):
        stage = _Stage.of(problem)
        candidates, out = allowed(problem, None)
        entries = {
            each.algorithm: Entry(each.algorithm, reason=each.reason) for each in out if not each.variant
        }
        lanes = _lanes(stage, candidates, entries)
        timed = {name: lane.run for name, lane in lanes.items() if len(lane.probe.samples) > 1}
        times = timing.measure(
            timed,
            rounds=40,
            budget=max(0.1, end - time.monotonic()),
            least=5,
            warmup=1,
            grain=200e-6,
            device=problem.device,
        )
        for name, lane in lanes.items():
            entries[name] = lane.entry(times.get(name, lane.probe), stage)
    unserved = "no variant serves this"
    return Point(
        value,
        describe(problem),
        tuple(entries.get(name, Entry(name, reason=unserved)) for name in ALGORITHMS),
    )


def _lanes(stage: _Stage, candidates: Sequence[Candidate], entries: dict[str, Entry]) -> dict[str, _Lane]:
    """The best lane of each algorithm; why there is none goes to `entries`."""
    own: dict[str, list[Candidate]] = {}
    for each in sorted(candidates, key=lambda each: least_seconds(each, stage.problem)):
        own.setdefault(each.algorithm, []).append(each)
    lanes: dict[str, _Lane] = {}
    for name in sorted(own, key=lambda name: name != "direct"):  # direct first, then the cheapest
        best = min((lane.seconds for lane in lanes.values()), default=math.inf)
        found = _best_lane(stage, own[name][:TRIED], best)
        if isinstance(found, str):
            entries[name] = Entry(name, reason=found)
        else:
            lanes[name] = found
    return lanes


@dataclass(frozen=True)
class _Stage:
    """The data of one point, and its exact result for a few output channels."""

    problem: Problem
    inputs: Mapping[str, Tensor]  # by layout: [batch, channel, height, width]
    weight: Tensor
    exact: Tensor  # float64 [batch, few, height, width]

    @classmethod
    def of(cls, problem: Problem) -> _Stage:
        device = torch.device(problem.device)
        x = random_tensor(problem.input_shape, problem.dtype, device)
        weight = random_tensor(problem.weight_shape, problem.dtype, device) / math.sqrt(problem.terms)
        inputs = {"contiguous": x, "channels_last": x.contiguous(memory_format=torch.channels_last)}
        return cls(problem, inputs, weight, _exact(problem, x, weight))


def _exact(problem: Problem, x: Tensor, weight: Tensor, few: int = 8) -> Tensor:
    """The first output channels in float64, by one transform of the whole image: off by 1e-15 of the maximum."""
    (top, bottom), (left, right) = problem.padding
    padded = nn.functional.pad(x.double(), (left, right, top, bottom))  # [batch, channel, height, width]
    size = padded.shape[-2:]
    filters = torch.fft.rfft2(
        weight[:few].double(), size
    ).conj()  # [few, channel / groups, height, frequency]
    if problem.groups > 1:
        spectrum = torch.fft.rfft2(padded[:, :few]) * filters[:, 0]
    else:
        spectrum = torch.einsum("bcyx,kcyx->bkyx", torch.fft.rfft2(padded), filters)
    height, width = problem.output_size
    return torch.fft.irfft2(spectrum, size)[..., :height, :width]  # [batch, few, height, width]


@dataclass(frozen=True)
class _Lane:
    """A variant on a layout, ready to be timed; `probe` is from the first calls, one alone where that was long."""

    candidate: Candidate
    layout: str
    kernel: Kernel
    run: Callable[[], Tensor]
    probe: timing.Timing

    @property
    def seconds(self) -> float:
        return min(self.probe.samples)

    def entry(self, times: timing.Timing, stage: _Stage) -> Entry:
        y = self.run()
        error = (y[:, : stage.exact.shape[1]].double() - stage.exact).abs().max() / stage.exact.abs().max()
        median = timing.Interval(*(timing.significant(t) for t in (times.median, times.low, times.high)))
        return Entry(
            self.candidate.algorithm,
            self.candidate.variant,
            self.layout,
            median,
            error=timing.significant(error.item(), 3),
            workspace=self.candidate.workspace,
            prepared=self.kernel.bytes,
            operations=self.candidate.operations,
        )


def _best_lane(stage: _Stage, candidates: Sequence[Candidate], best: float) -> _Lane | str:
    """The fastest variant and layout of an algorithm by two calls of each, or why there is none."""
    problem, reason = stage.problem, ""
    lanes: list[_Lane] = []
    for candidate in candidates:
        if least_seconds(candidate, problem) > HOPELESS * best:
            reason = reason or f"its cost alone is more than {HOPELESS:.0f} times the fastest"
            continue
        if candidate.workspace > free_bytes(problem.device) / 4:
            reason = f"it needs {candidate.workspace / 2**30:.1f} GiB of workspace"
            continue
        kernel = ALGORITHMS[candidate.algorithm].prepare(problem, stage.weight, None, candidate.variant)
        for layout, x in stage.inputs.items():
            if candidate.algorithm == "direct" and layout != candidate.variant:
                continue  # each of direct's layouts is timed on an input of that layout
            if lanes and lanes[-1].seconds > HOPELESS * best:
                break
            run = partial(kernel, x)
            lanes.append(_Lane(candidate, layout, kernel, run, _probe(run, problem.device)))
    return min(lanes, key=lambda lane: lane.seconds) if lanes else reason


def _probe(run: Callable[[], Tensor], device: str) -> timing.Timing:
    """The first call where that was long, else the next two."""
    first = timing.seconds(run, device)
    if first > LONG:
        return timing.Timing((first,))
    return timing.measure({"": run}, rounds=2, warmup=0, device=device)[""]
