"""Who could compute a convolution, what that would cost by the books, and who is not worth a try.

Every variant of every algorithm is listed with its expected error, workspace and operations. What refuses, what
is not accurate enough, and what no machine could do in the time that `direct` took, is sorted out with a reason.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from convscope import timing
from convscope.algorithms.base import ALGORITHMS, Algorithm
from convscope.algorithms.direct import PACKED
from convscope.algorithms.problem import Problem

Verdict = Literal["won", "slower", "pruned", "refused", "inexact", "failed"]

VARIANTS = 3  # raced of one algorithm, best by the cost model


def full_name(algorithm: str, variant: str) -> str:
    """As `conv2d(algorithm=...)` takes it.

    Example:
        >>> full_name("winograd", "F(4,3)"), full_name("im2col", "")
        ('winograd:F(4,3)', 'im2col')
    """
    return f"{algorithm}:{variant}" if variant else algorithm


@dataclass(frozen=True)
class Tried:
    """What became of one candidate.

    Attributes:
        algorithm: its name.
        variant: which form of it; "" where the algorithm as a whole refuses.
        verdict: "won"; "slower" than the winner; "pruned" by the cost model;
            "refused" by the algorithm; "inexact" for the error asked; "failed" when it was run.
        reason: one clause.
        seconds: median and 95 % interval of a call, or None where it was not timed.
        samples: how many samples that is from.
        difference: largest difference from direct's output on the data measured, relative to its maximum.
        expected_error: a priori, relative to the output's maximum, in the problem's dtype.
        worst_error: bound of the same.
        workspace: bytes needed while it runs.
        operations: multiplications and additions.
    """

    algorithm: str
    variant: str
    verdict: Verdict
    reason: str
    seconds: timing.Interval | None = None
    samples: int = 0
    difference: float | None = None
    expected_error: float | None = None
    worst_error: float | None = None
    workspace: int | None = None
    operations: int | None = None

    @property
    def name(self) -> str:
        """As `conv2d(algorithm=...)` takes it."""
        return full_name(self.algorithm, self.variant)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Tried:
        """From what `to_dict` gave."""
        seconds = values["seconds"]
        return cls(**{**values, "seconds": None if seconds is None else timing.Interval(**seconds)})


@dataclass(frozen=True)
class Candidate:
    """A variant that could serve."""

    algorithm: str
    variant: str
    operations: int
    workspace: int
    expected: float
    worst: float

    @property
    def name(self) -> str:
        return full_name(self.algorithm, self.variant)

    def tried(self, verdict: Verdict, reason: str, **measured: Any) -> Tried:
        return Tried(
            self.algorithm,
            self.variant,
            verdict,
            reason,
            expected_error=self.expected,
            worst_error=self.worst,
            workspace=self.workspace,
            operations=self.operations,
            **measured,
        )


def allowed(
    problem: Problem, max_error: float | None, use: str = "prepared"
) -> tuple[list[Candidate], list[Tried]]:
    """Who could serve, in the order of the algorithms, and who is out from the start and why."""
    found, out = _ask(problem)
    if use != "prepared":  # packing for one call takes longer than the call
        packed = [each for each in found if each.name == full_name("direct", PACKED)]
        found = [each for each in found if each not in packed]
        out = [*(each.tried("pruned", "its weight would be packed for one call") for each in packed), *out]
    if max_error is None:
        return found, out
    exact = [each for each in found if each.expected <= max_error]
    reason = f"expected error above max_error={max_error:g}"
    inexact = [each.tried("inexact", reason) for each in found if each.expected > max_error]
    return exact, [*inexact, *out]


def _ask(problem: Problem) -> tuple[list[Candidate], list[Tried]]:
    found: list[Candidate] = []
    out: list[Tried] = []
    for name, algorithm in ALGORITHMS.items():
        reason = algorithm.refuses(problem)
        if reason is not None:
            out.append(Tried(name, "", "refused", reason))
            continue
        for variant in algorithm.variants(problem):
            reason = algorithm.refuses(problem, variant)
            if reason is not None:
                out.append(Tried(name, variant, "refused", reason))
            else:
                found.append(_candidate(problem, name, algorithm, variant))
    return found, out


def _candidate(problem: Problem, name: str, algorithm: Algorithm, variant: str) -> Candidate:
    cost, error = algorithm.cost(problem, variant), algorithm.error(problem, variant)
    return Candidate(
        name,
        variant,
        operations=cost.operations,
        workspace=cost.workspace,
        expected=error.expected,
        worst=error.worst,
    )


def least_seconds(candidate: Candidate, problem: Problem) -> float:
    """What no machine of this kind could undercut: all its units busy in every cycle, memory at full speed.

    Of the bytes only those of input, weight and output count, and a workspace that no cache holds: what else lies
    between may stay in the caches.
    """
    shapes = (problem.input_shape, problem.weight_shape, problem.output_shape)
    size = sum(map(math.prod, shapes)) * problem.dtype.itemsize
    if problem.device != "cpu":
        return max(candidate.operations / 1e15, size / 1e13)
    lanes = {"AVX512": 64, "AVX2": 32}.get(torch.backends.cpu.get_cpu_capability(), 32)  # operations a cycle
    units = torch.get_num_threads() * lanes / (2 if problem.dtype == torch.float64 else 1)
    beyond = candidate.workspace if candidate.workspace > 2**28 else 0
    return max(candidate.operations / (units * 5e9), size / 1e12, beyond / 2e10)


def free_bytes(device: str) -> float:
    """Memory that may be used at all."""
    if device == "cuda":
        return float(torch.cuda.mem_get_info()[0])
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError, AttributeError):  # the system does not tell
        return math.inf


def worthwhile(candidates: Sequence[Candidate], problem: Problem) -> tuple[list[Candidate], list[Tried]]:
    """Those worth a try, the cheapest first, and those that are not."""
    kept: list[Candidate] = []
    out: list[Tried] = []
    for candidate in sorted(candidates, key=lambda each: least_seconds(each, problem)):
        brothers = sum(each.algorithm == candidate.algorithm for each in kept)
        if candidate.workspace > free_bytes(problem.device) / 4:
            reason = f"needs {candidate.workspace / 2**30:.1f} GiB of workspace"
        elif brothers >= VARIANTS:
            reason = f"{VARIANTS} variants of {candidate.algorithm} cost less"
        else:
            kept.append(candidate)
            continue
        out.append(candidate.tried("pruned", reason))
    return kept, out
