"""`auto`: which algorithm and variant computes a convolution fastest here, found by measuring, once.

    choice = choose(problem, layout="contiguous")      # Choice(winograd:F(4,3), 2.9 ms), from memory the next time
    print(explain((8, 64, 56, 56), (64, 64, 3, 3), padding=1))

Candidates are all variants of all algorithms that do not refuse. In order:

1. A convolution of a few multiplications, or one that `direct` does in a few microseconds, is left to `direct`.
2. A cost model sorts out more than a few variants of one algorithm, and what no machine could do in the time that
   the fastest took so far.
3. The rest is prepared, its output compared with that of `direct`, and raced: interleaved rounds on data of the
   actual shape, dtype, layout, threads and device, from which the clearly slower drop out early.
4. `direct` is left only for what beats it beyond noise: the 95 % interval of the ratio, taken round by round, must
   lie above `GAIN`. Of those within two percent of the fastest the most accurate is taken.

The answer is remembered on disk (`memory.py`), under everything it depends on.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

import torch

import convscope
from convscope import timing
from convscope.algorithms.candidates import Candidate, Tried, Verdict, allowed, full_name
from convscope.algorithms.kernels import host
from convscope.algorithms.memory import Memory
from convscope.algorithms.problem import Problem
from convscope.algorithms.race import Result, Use, clean_room, race
from convscope.errors import RequestError

BUDGET = 0.4  # seconds the race may take, warm-up and preparation apart
GAIN = 1.05  # what beats direct is faster by more than this, beyond noise
ALIKE = 1.02  # of times closer than this the more accurate is taken, if its error is less than half
STEADY = 1.5  # ends of the winner's interval further apart than this are not remembered on disk
TRIVIAL_MACS = 100_000  # below it a call costs more than its arithmetic: nothing is tried

_MEMORY = Memory("choices")
_CHOSEN: dict[tuple[Any, ...], Choice] = {}  # what is asked again in this process
_MEASURING = threading.RLock()  # two measurements at once would disturb each other


@dataclass(frozen=True)
class Choice:
    """The algorithm that computes a problem.

    Attributes:
        algorithm: its name.
        variant: which form of it.
        seconds: median time of a call, or None where nothing had to be measured.
        tried: every candidate and what became of it.
        reason: why it won, one clause.
        spent: seconds the choice took when it was made.
        steady: whether its times agreed well enough to be remembered on disk: on a busy machine the next process
            measures again.
        remembered: whether it was taken from memory.
    """

    algorithm: str
    variant: str
    seconds: float | None
    tried: tuple[Tried, ...]
    reason: str
    spent: float = 0.0
    steady: bool = True
    remembered: bool = False

    @property
    def name(self) -> str:
        """As `conv2d(algorithm=...)` takes it."""
        return full_name(self.algorithm, self.variant)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        values = {
            key: getattr(self, key)
            for key in ("algorithm", "variant", "seconds", "reason", "spent", "steady")
        }
        return {**values, "tried": [each.to_dict() for each in self.tried]}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Choice:
        """From what `to_dict` gave, as remembered."""
        tried = tuple(Tried.of(each) for each in values["tried"])
        return cls(**{**values, "tried": tried}, remembered=True)


# ---------------------------------------------------------------- choosing


def choose(
    problem: Problem,
    *,
    layout: str = "contiguous",
    threads: int | None = None,
    use: Use = "prepared",
    max_error: float | None = None,
    budget: float = BUDGET,
    fresh: bool = False,
) -> Choice:
    """The fastest algorithm for a problem on this machine: remembered, or else measured now.

    Args:
        problem: the convolution.
        layout: memory layout of the input, "contiguous" or "channels_last".
        threads: threads of torch's pool; as many as are set now by default.
        use: what a call is: "prepared" runs with the weight transformed beforehand, "once" transforms it in the
            call, "training" does so and computes the gradients of input and weight as well.
        max_error: candidates whose expected error, relative to the output's maximum, is above it are left out.
        budget: seconds the race may take.
        fresh: measure again, whatever is remembered.

    Returns:
        The choice, with all that was tried.

    Raises:
        RequestError: `layout`, `use` or `max_error` is none of those above, or no algorithm is that accurate.

    Example:
        >>> tiny = Problem.of(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 3, 3), 1, 0, 1, 1)
        >>> print(choose(tiny).reason)
        too small for the choice to matter: 36 multiply-accumulates
    """
    _check(layout, use, max_error)
    asked = (problem, layout, threads or torch.get_num_threads(), use, max_error)
    known = None if fresh else _recall(*asked)
    if known is not None:
        return known
    with _MEASURING:
        known = None if fresh else _recall(*asked)  # another thread may have measured it meanwhile
        if known is not None:
            return known
        candidates, out = allowed(problem, max_error, use)
        began = time.perf_counter()
        with clean_room(asked[2], problem.device, use):
            result = race(problem, candidates, layout=layout, use=use, budget=budget)
        choice = _decide(result, out, time.perf_counter() - began)
    if choice.steady:
        _MEMORY.put(_key(problem, layout, asked[2], use, candidates), choice.to_dict())
    return _keep(asked, choice)


def recall(
    problem: Problem,
    *,
    layout: str = "contiguous",
    threads: int | None = None,
    use: Use = "prepared",
    max_error: float | None = None,
) -> Choice | None:
    """What is known without measuring: for places where nothing may be run, such as while a graph is traced.

    Args:
        problem, layout, threads, use, max_error: see `choose`.

    Returns:
        The choice for a trivial problem or one that was measured before, in any process; else None.

    Raises:
        RequestError: see `choose`.
    """
    _check(layout, use, max_error)
    return _recall(problem, layout, threads or torch.get_num_threads(), use, max_error)


def forget() -> None:
    """Forgets what this process remembers, not what is on disk."""
    _CHOSEN.clear()
    _MEMORY.forget()


def _recall(problem: Problem, layout: str, threads: int, use: Use, max_error: float | None) -> Choice | None:
    asked = (problem, layout, threads, use, max_error)
    if asked in _CHOSEN:
        return _CHOSEN[asked]
    candidates, out = allowed(problem, max_error, use)
    if not candidates:
        raise _nobody(out, max_error)
    choice = _trivial(problem, layout, candidates, out)
    if choice is None:
        value = _MEMORY.get(_key(problem, layout, threads, use, candidates))
        try:
            choice = None if value is None else Choice.of(value)
        except (KeyError, TypeError):  # whole, but of another shape: not written by this code
            choice = None
    return None if choice is None else _keep(asked, choice)


def _keep(asked: tuple[Any, ...], choice: Choice) -> Choice:
    if len(_CHOSEN) >= 4096:
        _CHOSEN.clear()
    _CHOSEN[asked] = choice
    return choice


def _nobody(out: Sequence[Tried], max_error: float | None) -> RequestError:
    errors = [each.expected_error for each in out if each.expected_error is not None]
    if max_error is not None and errors:
        return RequestError(
            f"max_error={max_error:g} is below what any algorithm expects here; give at least {min(errors):.1e}."
        )
    return RequestError(f"no algorithm serves this: {'; '.join(f'{e.name}: {e.reason}' for e in out)}.")


def _check(layout: str, use: str, max_error: float | None) -> None:
    for name, value, known in (
        ("layout", layout, ("contiguous", "channels_last")),
        ("use", use, get_args(Use)),
    ):
        if value not in known:
            raise RequestError(f"{name}={value!r} is unknown; give one of {', '.join(map(repr, known))}.")
    if max_error is not None and not max_error > 0:
        raise RequestError(f"max_error={max_error!r} must be above 0, relative to the output's maximum.")


def _trivial(
    problem: Problem, layout: str, candidates: Sequence[Candidate], out: Sequence[Tried]
) -> Choice | None:
    """Direct for what is too small, and what is without a rival."""
    direct = [each for each in candidates if each.algorithm == "direct"]
    if len(candidates) == 1:
        only, reason = candidates[0], "nothing else serves this problem"
    elif direct and problem.macs <= TRIVIAL_MACS:
        only = next((each for each in direct if each.variant == layout), direct[0])
        reason = f"too small for the choice to matter: {problem.macs:,} multiply-accumulates"
    else:
        return None
    rest = [each.tried("pruned", "not tried") for each in candidates if each is not only]
    return Choice(only.algorithm, only.variant, None, (only.tried("won", reason), *rest, *out), reason)


# ---------------------------------------------------------------- deciding


def _decide(result: Result, out: Sequence[Tried], spent: float) -> Choice:
    entered = [each for each, _ in result.entered]
    winner, reason = _winner(entered, result.times)
    took = result.times[winner.name]
    return Choice(
        winner.algorithm,
        winner.variant,
        took.median,
        (*_verdicts(result, winner, reason), *result.out, *out),
        reason,
        timing.significant(spent),
        steady=took.high < STEADY * took.low,
    )


def _winner(entered: Sequence[Candidate], times: Mapping[str, timing.Timing]) -> tuple[Candidate, str]:
    """Direct, unless something beats it beyond noise; the most accurate of the fastest."""
    direct = [each for each in entered if each.algorithm == "direct"]
    others = [each for each in entered if each.algorithm != "direct"]
    if not direct:
        return min(others, key=lambda each: times[each.name].median), "the fastest of those allowed"
    base = min(direct, key=lambda each: times[each.name].median)
    gains = {each.name: times[base.name].over(times[each.name]) for each in others}
    rivals = [each for each in others if gains[each.name].low > GAIN]
    if not rivals:
        if not gains:
            return base, "nothing else was worth a try"
        nearest = max(gains, key=lambda name: gains[name].median)
        return base, f"nothing beat it beyond noise: {nearest} reached {gains[nearest]} of its speed"
    first = min(rivals, key=lambda each: times[each.name].median)
    alike = [each for each in rivals if times[each.name].over(times[first.name]).median < ALIKE]
    better = [each for each in alike if each.expected < first.expected / 2]
    winner = min(better, key=lambda each: each.expected, default=first)
    reason = f"{gains[winner.name]} as fast as {base.name}"
    if winner is not first:
        reason += f", hardly slower than {first.name} and more accurate"
    return winner, reason


def _verdicts(result: Result, winner: Candidate, reason: str) -> list[Tried]:
    """All that ran: the winner, then the others, fastest first."""
    times = result.times

    def place(ran: tuple[Candidate, float | None]) -> tuple[bool, float]:
        return ran[0] is not winner, times[ran[0].name].median

    found = []
    for candidate, difference in sorted(result.entered, key=place):
        took = times[candidate.name]
        verdict: Verdict = "won" if candidate is winner else "slower"
        told = reason if verdict == "won" else f"{took.over(times[winner.name])} as long"
        median = timing.Interval(*(timing.significant(value) for value in (took.median, took.low, took.high)))
        found.append(
            candidate.tried(verdict, told, seconds=median, samples=len(took.samples), difference=difference)
        )
    return found


# ---------------------------------------------------------------- the key of the memory


def _key(
    problem: Problem, layout: str, threads: int, use: Use, candidates: Sequence[Candidate]
) -> dict[str, Any]:
    """All that an answer depends on. The candidates stand for the error asked."""
    facts = asdict(problem) | {"dtype": str(problem.dtype).removeprefix("torch.")}
    return {
        "problem": facts,
        "layout": layout,
        "threads": threads,
        "use": use,
        "candidates": [each.name for each in candidates],
        "processor": timing.processor(),
        "vector": host.current().width,
        "accelerator": timing.accelerator(problem.device),
        "torch": torch.__version__,
        "convscope": convscope.__version__,
        "source": _source(),
    }


def _after_fork() -> None:
    """Another thread of the parent may have held the lock: nobody is left to free it."""
    global _MEASURING
    _MEASURING = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@cache
def _source() -> str:
    """Changes with the code of the algorithms, which versions alone do not tell while it is worked on."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
