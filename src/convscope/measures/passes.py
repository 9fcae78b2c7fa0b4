"""Runs a network again and again: whole passes and passes timed from the inside in turn, the machine's peaks around.

The rounds are those of `timing.measure`. A short network runs several times in a row in each sample, whole or timed
alike, so that both have the same caches.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from convscope import timing
from convscope.measures.clock import Price, Span, Timed, clock_of, price, same_calls
from convscope.measures.roofline import Meter, Peak
from convscope.measures.trial import Trial

ROUNDS = 60  # at most
LEAST = 5  # rounds, whatever the budget
GRAIN = 3e-3  # seconds a sample lasts at least: a shorter network runs several times in a row
MOST_PASSES = 200  # in one sample
WARMUP = 3  # passes: libraries choose algorithms and compilers compile in the first ones
PEAK_SHARE = 0.1  # of the budget, before and after the network each


@dataclass(frozen=True)
class Passes:
    """What a run gave.

    Attributes:
        spans: of one pass; all passes made the same calls.
        own: for each of them, what it took without the calls made from it: seconds in each round.
        whole: seconds of a pass that is not timed inside.
        peak: of the machine.
        price: of the clock, which `own` is without.
    """

    spans: Sequence[Span]
    own: Sequence[Sequence[float]]
    whole: timing.Timing
    peak: Peak
    price: Price


def run_passes(trial: Trial, budget: float) -> Passes:
    """Whole passes and timed ones in turn, the machine's peaks before and after."""
    module, arguments, device = trial.module, trial.arguments, trial.device
    timed, samples = Timed(module, clock_of(device)), list[list[list[Span]]]()

    def whole() -> None:
        for _ in range(passes):
            module(*arguments)

    def clocked() -> None:
        with timed:
            for _ in range(passes):
                module(*arguments)
                timed.cut()
        timing.synchronize(device)
        samples.append(timed.passes())

    passes = 1
    lasted = [timing.seconds(whole, device) for _ in range(WARMUP)]
    passes = max(1, min(MOST_PASSES, math.ceil(GRAIN / max(lasted[-1], 1e-9))))
    meter = Meter(device, _dtype(trial))
    meter.go(PEAK_SHARE * budget)
    share = (1 - 2 * PEAK_SHARE) * budget
    times = timing.measure(
        {"whole": whole, "clocked": clocked},
        rounds=ROUNDS, least=LEAST, budget=share, device=device, dtype=trial.dtype,
    )  # fmt: skip
    meter.go(PEAK_SHARE * budget)
    taken = samples[-len(times["clocked"].samples) :]  # without the warm-up
    same_calls([spans for sample in taken for spans in sample], trial.name)
    per_pass = timing.Timing(
        tuple(seconds / passes for seconds in times["whole"].samples), times["whole"].conditions
    )
    cost = price(timed.clock, device)
    own = _own(taken, per_pass.median, cost)
    return Passes(taken[0][0], own, per_pass, meter.peak, cost)


def _dtype(trial: Trial) -> torch.dtype:
    """What the peak is measured in: the input's type, or that of the first weights where the input is of indices."""
    floating = (tensor.dtype for tensor in trial.module.parameters() if tensor.is_floating_point())
    return trial.dtype or next(floating, torch.get_default_dtype())


def _own(
    samples: Sequence[Sequence[Sequence[Span]]], whole: float, cost: Price
) -> tuple[tuple[float, ...], ...]:
    """What each call of a pass took without the calls made from it and without the clock's price.

    Args:
        samples: of each round, the passes, each with its spans.
        whole: seconds of a pass that is not timed inside.
        cost: the clock's price for each call.

    Returns:
        For each span, seconds a pass in each round.
    """
    spans = samples[0][0]
    lasted = [
        [statistics.mean(each[position].seconds for each in passes) for passes in samples]
        for position in range(len(spans))
    ]  # [span][round]
    # Never more than the passes took longer for it: a device that is busy does not wait for its clock.
    seen = statistics.median(lasted[-1]) - whole
    full = (len(spans) - 1) * cost.whole + cost.inside  # of the root only what is between its two looks
    share = min(1.0, max(0.0, seen) / full) if full else 0.0
    found = []
    for position, span in enumerate(spans):
        looks = share * (cost.inside + len(span.children) * (cost.whole - cost.inside))
        found.append(
            tuple(
                max(
                    0.0,
                    lasted[position][number] - looks - sum(lasted[child][number] for child in span.children),
                )
                for number in range(len(samples))
            )
        )
    return tuple(found)
