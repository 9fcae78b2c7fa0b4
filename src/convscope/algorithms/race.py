"""The race: candidates computed on the actual shape, in turn, until the clearly slower have dropped out.

Random data is as good as real data here, and is drawn from a generator of its own; the caller's grad mode, autocast,
recorders and thread count neither see nor touch what runs here. An output that differs from that of `direct` by more
than its bound ends a candidate.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from convscope import timing
from convscope.algorithms.base import ALGORITHMS, Kernel
from convscope.algorithms.candidates import Candidate, Tried, least_seconds, worthwhile
from convscope.algorithms.direct import PACKED
from convscope.algorithms.problem import Problem
from convscope.errors import ConvscopeWarning

Use = Literal["prepared", "once", "training"]

TRIVIAL_SECONDS = 40e-6  # direct alone takes part where it takes less
GRAIN = 200e-6  # a sample lasts at least this
ROUNDS = 40  # at most
JUDGED = (5, 8, 12, 18, 27)  # rounds after which intervals are compared
FAR, GLITCH = 3.0, 0.06  # who takes so many times the best, and so many seconds more, does not race at all
BEHIND = 1.6  # whose best time is so many times the best of all drops out without a closer look


@contextlib.contextmanager
def clean_room(threads: int, device: str, use: Use) -> Iterator[None]:
    """The caller's grad mode, autocast, recorders and thread count neither see nor touch the measurement."""
    before = torch.get_num_threads()
    with (
        _disable_current_modes(),
        torch._C.DisableTorchFunction(),
        torch.autocast(device, enabled=False),
        torch.inference_mode(False),
        torch.set_grad_enabled(use == "training"),
    ):
        if threads != before:
            torch.set_num_threads(threads)
        try:
            yield
        finally:
            if threads != before:
                torch.set_num_threads(before)


@dataclass(frozen=True)
class Result:
    """What came of a race.

    Attributes:
        times: by the candidate's name, of those that entered.
        entered: who ran, and the largest difference of their output from direct's, relative to its maximum.
        out: who did not, and why.
    """

    times: dict[str, timing.Timing]
    entered: list[tuple[Candidate, float | None]]
    out: list[Tried]


def race(
    problem: Problem,
    candidates: Sequence[Candidate],
    *,
    layout: str = "contiguous",
    use: Use = "prepared",
    budget: float = 0.4,
) -> Result:
    """Times the candidates that are worth it; `clean_room` goes around it.

    Args:
        problem: the convolution.
        candidates: who takes part. Who could not undercut the fastest so far even by its cost is not run.
        layout: of the input, "contiguous" or "channels_last".
        use: see `chooser.choose`.
        budget: seconds for the rounds, preparation apart.

    Raises:
        RuntimeError: direct, or everything, failed; the message holds the reason.
    """
    field = _Field(_Data.of(problem, layout, use))
    direct = [each for each in candidates if each.algorithm == "direct"]
    others = [each for each in candidates if each.algorithm != "direct"]
    for candidate in direct:
        checked = candidate.variant == PACKED and field.entered  # another operator than torch's convolution
        field.enter(candidate, field.entered[0].run() if checked else None)
    if field.best < TRIVIAL_SECONDS:
        reason = "direct takes too little for the choice to matter"
        field.out += [each.tried("pruned", reason) for each in others]
    else:
        others, pruned = worthwhile(others, problem)
        field.out += pruned
        reference = field.entered[0].run() if field.entered else None
        for candidate in others:
            field.enter(candidate, reference)
    if not field.entered or (direct and field.entered[0].candidate.algorithm != "direct"):
        reasons = "; ".join(f"{each.name}: {each.reason}" for each in field.out)
        raise RuntimeError(f"no algorithm could run: {reasons}")
    field.drop_far_behind()
    times = _rounds(field, budget)
    return Result(times, [(each.candidate, each.difference) for each in field.entered], field.out)


@dataclass(frozen=True)
class _Data:
    """What the candidates are run on."""

    problem: Problem
    x: Tensor
    weight: Tensor
    use: Use

    @property
    def device(self) -> torch.device:
        return self.x.device

    @classmethod
    def of(cls, problem: Problem, layout: str, use: Use) -> _Data:
        device = torch.device(problem.device)
        x = random_tensor(problem.input_shape, problem.dtype, device)  # [batch, channel, height, width]
        if layout == "channels_last":
            x = x.to(memory_format=torch.channels_last)
        weight = random_tensor(problem.weight_shape, problem.dtype, device) / math.sqrt(problem.terms or 1)
        if use == "training":
            x, weight = x.requires_grad_(), weight.requires_grad_()
        return cls(problem, x, weight, use)

    def run(self, candidate: Candidate) -> Callable[[], Tensor]:
        """A call of the candidate, as `use` says, with what is prepared beforehand prepared."""
        algorithm = ALGORITHMS[candidate.algorithm]
        if self.use == "prepared":
            kernel: Kernel = algorithm.prepare(self.problem, self.weight, None, candidate.variant)
            return partial(kernel, self.x)
        once = partial(algorithm.run, self.problem, self.x, self.weight, None, candidate.variant)
        return once if self.use == "once" else partial(_forward_backward, once, (self.x, self.weight))


def _forward_backward(run: Callable[[], Tensor], wanted: Sequence[Tensor]) -> Tensor:
    y = run()
    torch.autograd.grad(y, wanted, torch.ones_like(y))
    return y.detach()


def random_tensor(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Normal numbers, a block of them over and over: drawing them all would take longer than the race."""
    block = torch.randn(65537, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu")
    count = math.prod(shape)
    return block.repeat(-(-count // 65537))[:count].reshape(tuple(shape)).to(device, dtype)


@dataclass(frozen=True)
class _Runner:
    """A candidate that is ready: a call of it, its output's difference from direct's, the best of two calls."""

    candidate: Candidate
    run: Callable[[], Tensor]
    difference: float | None
    probe: float


class _Field:
    """Who is in the race, and who is out of it and why."""

    def __init__(self, data: _Data) -> None:
        self.data = data
        self.entered: list[_Runner] = []
        self.out: list[Tried] = []

    @property
    def best(self) -> float:
        """Seconds of the fastest call so far."""
        return min((each.probe for each in self.entered), default=math.inf)

    def enter(self, candidate: Candidate, reference: Tensor | None) -> None:
        """Prepares a candidate and runs it; with a reference its output must agree with it."""
        least = least_seconds(candidate, self.data.problem)
        if least > self.best:
            told = f"needs at least {timing.duration(least)} by its cost, another took {timing.duration(self.best)}"
            self.out.append(candidate.tried("pruned", told))
            return
        try:
            run = self.data.run(candidate)
            difference = None if reference is None else _difference(run(), reference)
            probe = min(
                timing.measure({"": run}, rounds=2, budget=0.1, least=1, device=self.data.device)[""].samples
            )
        except (
            RuntimeError,
            MemoryError,
            OSError,
        ) as error:  # too little memory, or an operator that is missing
            told = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            self.out.append(candidate.tried("failed", told))
            return
        if difference is None or difference <= _tolerance(candidate, self.data.problem.dtype):
            self.entered.append(_Runner(candidate, run, difference, probe))
            return
        told = f"differs from direct by {difference:.1e}, beyond its bound of {candidate.worst:.1e}"
        self.out.append(candidate.tried("failed", told, difference=difference))
        warnings.warn(
            f"{candidate.name} is not used for {self.data.problem}: it {told}; please report this.",
            ConvscopeWarning,
            stacklevel=2,
        )

    def drop_far_behind(self) -> None:
        """Who took several times as long as the fastest, beyond what a busy machine explains, needs no race; the best
        of direct stays as the measure."""
        direct = [each.probe for each in self.entered if each.candidate.algorithm == "direct"]
        kept = []
        for each in self.entered:
            is_measure = each.candidate.algorithm == "direct" and each.probe == min(direct)
            if each.probe <= FAR * self.best + GLITCH or is_measure:
                kept.append(each)
                continue
            took = timing.significant(each.probe)
            told = f"{each.probe / self.best:.1f}x as long as the fastest, in one call"
            seconds = timing.Interval(took, took, took)
            self.out.append(
                each.candidate.tried("slower", told, seconds=seconds, samples=1, difference=each.difference)
            )
        self.entered = kept


def _tolerance(candidate: Candidate, dtype: torch.dtype) -> float:
    """Twice the candidate's own bound, and what rounding both outputs to the dtype adds."""
    return 2 * candidate.worst + 4 * torch.finfo(dtype).eps


def _difference(output: Tensor, reference: Tensor) -> float:
    wide = torch.promote_types(reference.dtype, torch.float32)
    a, b = output.detach().to(wide), reference.detach().to(wide)
    scale = b.abs().max().item()
    return (a - b).abs().max().item() / (scale or 1.0)


def _far_behind(samples: Mapping[str, Sequence[float]], factor: float) -> list[str]:
    """Those whose best time is hopelessly above the best of all."""
    best = min(min(times) for times in samples.values())
    return [name for name, times in samples.items() if min(times) > factor * best]


def _behind(samples: Mapping[str, Sequence[float]]) -> list[str]:
    """Those that take at least a tenth longer than the fastest, beyond noise."""
    best = min(samples, key=lambda name: timing.interval(samples[name]).median)
    return [name for name in samples if timing.ratio(samples[name], samples[best]).low > 1.1]


def _rounds(field: _Field, budget: float) -> dict[str, timing.Timing]:
    """Rounds until the budget is spent or one is left; the best of direct runs in the first three."""
    runs = {each.candidate.name: each.run for each in field.entered}
    direct = {each.candidate.name for each in field.entered if each.candidate.algorithm == "direct"}

    def drop(samples: Mapping[str, Sequence[float]]) -> list[str]:
        done = max(map(len, samples.values()))
        lost = [] if done == 1 else _far_behind(samples, FAR if done == 2 else BEHIND)
        if done in JUDGED:
            lost = [*lost, *_behind(samples)]
        if done < 3 and (still := direct & set(samples)):
            measure = min(still, key=lambda name: min(samples[name]))
            lost = [name for name in lost if name != measure]
        alone = done >= 3 and len(runs) > 1 and len(set(samples) - set(lost)) == 1
        return list(samples) if alone else lost

    return timing.measure(
        runs,
        rounds=ROUNDS,
        budget=budget,
        least=5 if max(each.probe for each in field.entered) < 0.1 else 3,
        grain=GRAIN,
        device=field.data.device,
        dtype=field.data.problem.dtype,
        drop=drop,
    )
