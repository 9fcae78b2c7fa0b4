"""The one way to time anything: warm-up, interleaved repeats, the median with its bootstrap 95 % interval.

    times = timing.measure({"a": run_a, "b": run_b}, budget=1.0)     # A B, B A, A B, ... until the second is spent
    print(times["a"])                                                # 1.23 ms (1.20 to 1.27)
    print(times["a"].over(times["b"]))                               # 1.52x (1.49x to 1.55x), paired round by round

Things that are compared are timed in turn, in an order that changes from round to round: what disturbs the
machine then disturbs all of them, and a ratio taken round by round hardly feels it. Work queued on a device is
waited for. Nothing here draws from a global random state: order and resampling have fixed seeds of their own.
"""

from __future__ import annotations

import itertools
import math
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

CONFIDENCE = 0.95
RESAMPLES = 2000

Run = Callable[[], object]


# ---------------------------------------------------------------- figures


@dataclass(frozen=True)
class Conditions:
    """Under what a time was taken.

    Attributes:
        device: kind of device, `cpu` or `cuda`.
        threads: threads of torch's pool on the CPU.
        dtype: element type of the data, without the `torch.`; None where there is no single one.
    """

    device: str
    threads: int
    dtype: str | None = None

    @classmethod
    def now(cls, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Conditions:
        """Those of this moment, in this thread."""
        name = None if dtype is None else str(dtype).removeprefix("torch.")
        return cls(torch.device(device).type, torch.get_num_threads(), name)

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return ", ".join(filter(None, (self.device, threads, self.dtype)))


@dataclass(frozen=True)
class Interval:
    """A median with the 95 % interval in which it lies, by the bootstrap.

    Example:
        >>> interval([3.0, 1.0, 2.0, 2.1, 2.2])
        Interval(median=2.1, low=1.0, high=3.0)
    """

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Timing:
    """Wall times of one thing, in seconds a call, in the order of the rounds.

    Attributes:
        samples: one for each round it took part in, from the first round on.
        conditions: under what they were taken.
    """

    samples: tuple[float, ...]
    conditions: Conditions = field(default_factory=Conditions.now)

    @cached_property
    def _interval(self) -> Interval:
        return interval(self.samples)

    @property
    def median(self) -> float:
        """Seconds a call."""
        return self._interval.median

    @property
    def low(self) -> float:
        """Lower end of the median's 95 % interval, in seconds."""
        return self._interval.low

    @property
    def high(self) -> float:
        """Upper end of the median's 95 % interval, in seconds."""
        return self._interval.high

    def over(self, other: Timing) -> Ratio:
        """This time as a multiple of another of the same `measure`: above 1 the other is the faster one."""
        return ratio(self.samples, other.samples)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; seconds."""
        keep = {name: significant(getattr(self, name)) for name in ("median", "low", "high")}
        return {**keep, "samples": len(self.samples), **vars(self.conditions)}

    def __str__(self) -> str:
        return f"{duration(self.median)} ({duration(self.low)} to {duration(self.high)})"


@dataclass(frozen=True)
class Ratio(Interval):
    """How many times one thing takes as long as another: the median over the rounds and its 95 % interval.

    Example:
        >>> print(ratio([2.0, 2.2, 4.0], [1.0, 1.0, 2.0]))
        2.00x (2.00x to 2.20x)
    """

    def to_dict(self) -> dict[str, float]:
        """Plain values."""
        return {name: significant(getattr(self, name)) for name in ("median", "low", "high")}

    def __str__(self) -> str:
        return f"{self.median:.2f}x ({self.low:.2f}x to {self.high:.2f}x)"


def interval(samples: Sequence[float]) -> Interval:
    """Median of the samples and its bootstrap 95 % interval (percentiles of resampled medians).

    Efron, "Bootstrap Methods: Another Look at the Jackknife" (1979). Resampling has a seed of its own, so that
    the same samples always give the same interval.

    Raises:
        ValueError: there are no samples.
    """
    if not samples:
        raise ValueError("there are no samples to take a median of.")
    values = np.asarray(samples, dtype=np.float64)  # [samples]
    draws = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    medians = np.median(values[draws], axis=1)  # [resamples]
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(medians, (tail, 100 - tail), method="nearest")
    return Interval(statistics.median(map(float, values)), float(low), float(high))


def ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """Median of the quotients, round by round, with its interval; rounds that only one saw are left out."""
    found = interval([a / b for a, b in zip(above, below, strict=False)])
    return Ratio(found.median, found.low, found.high)


def geometric_mean(values: Iterable[float]) -> float:
    """The mean that suits ratios.

    Example:
        >>> geometric_mean([0.5, 2.0, 8.0])
        2.0
    """
    return statistics.geometric_mean(values)


def significant(value: float, digits: int = 4) -> float:
    """Rounded to so many digits.

    Example:
        >>> significant(0.00123456), significant(98765.4, 2)
        (0.001235, 99000.0)
    """
    return float(f"{value:.{digits}g}")


def duration(seconds: float) -> str:
    """A time as people read it, to three digits.

    Example:
        >>> duration(0.0123456), duration(3.2e-5), duration(2.0), duration(0.9999)
        ('12.3 ms', '32.0 µs', '2.00 s', '1000 ms')
    """
    if not math.isfinite(seconds):
        return "–"
    scale, unit = next(
        (pair for pair in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")) if seconds >= pair[0]), (1e-9, "ns")
    )
    value = seconds / scale
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f} {unit}"


# ---------------------------------------------------------------- taking times


def synchronize(device: torch.device | str) -> None:
    """Waits until the device has done all it was given; on the CPU there is nothing to wait for."""
    device = torch.device(device)
    if device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)


def seconds(run: Run, device: torch.device | str = "cpu", calls: int = 1) -> float:
    """Wall time of one call, in seconds; with several calls in a row, their mean.

    A call's result is dropped before the next call, as in a loop over a data set.
    """
    synchronize(device)
    began = time.perf_counter()
    for _ in range(calls):
        run()
    synchronize(device)
    return (time.perf_counter() - began) / calls


def measure(
    runs: Mapping[str, Run],
    *,
    rounds: int = 1000,
    budget: float = math.inf,
    least: int = 3,
    warmup: int = 1,
    grain: float = 0.0,
    settle: float = 0.0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    drop: Callable[[Mapping[str, Sequence[float]]], Iterable[str]] | None = None,
) -> dict[str, Timing]:
    """Times several things in turn, in an order that changes from round to round.

    Args:
        runs: name -> what to time, called without arguments.
        rounds: at most so many rounds.
        budget: no new round once so many seconds are spent, warm-up apart.
        least: rounds that are run whatever the budget.
        warmup: untimed calls of each before the first round.
        grain: a sample lasts at least so many seconds: shorter things are called several times in a row.
        settle: before each sample so many seconds pass idle and one call is not timed: for things with thread
            pools of their own, which go on spinning for a while and would slow the next one.
        device: where the work is queued; waited for before and after each sample.
        dtype: what the times are labelled with.
        drop: called after each round with the samples so far; the names it returns are timed no further.

    Returns:
        name -> its times, the first sample of each from the same round, in the order given.

    Raises:
        ValueError: `rounds` is not positive.

    Example:
        >>> times = measure({"short": lambda: sum(range(10)), "long": lambda: sum(range(10000))}, rounds=9)
        >>> times["long"].over(times["short"]).low > 1
        True
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds} must be at least 1.")
    running = list(runs)
    calls = {name: _calls(runs[name], warmup, grain, device) for name in running}
    samples: dict[str, list[float]] = {name: [] for name in running}
    order = random.Random(0)
    began = time.perf_counter()
    for done in itertools.count():
        if done >= rounds or not running or (done >= least and time.perf_counter() - began > budget):
            break
        for name in order.sample(running, len(running)):
            if settle:
                time.sleep(settle)
                runs[name]()
            samples[name].append(seconds(runs[name], device, calls[name]))
        if drop is not None:
            hopeless = set(drop({name: samples[name] for name in running}))
            running = [name for name in running if name not in hopeless]
    conditions = Conditions.now(device, dtype)
    return {name: Timing(tuple(times), conditions) for name, times in samples.items()}


def _calls(run: Run, warmup: int, grain: float, device: torch.device | str) -> int:
    """Calls a sample, after the warm-up: as many as last the grain, judged by the last warm-up call."""
    lasted = math.inf
    for _ in range(warmup):
        lasted = seconds(run, device)
    if grain <= 0 or lasted >= grain:
        return 1
    return min(1000, math.ceil(grain / max(lasted, 1e-9)))


# ---------------------------------------------------------------- where it was


@cache
def processor() -> str:
    """The processor's name, and the vector instructions that torch uses of it.

    Example:
        >>> processor() == processor() and len(processor()) > 3
        True
    """
    name = platform.processor() or platform.machine()
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        fields = dict(line.split(":", 1) for line in listing.read_text().splitlines() if ":" in line)
        found = {key.strip(): value.strip() for key, value in fields.items()}
        codes = "/".join(found[key] for key in ("cpu family", "model", "stepping") if key in found)
        name = " ".join(filter(None, (found.get("model name", name), codes)))
    return f"{name} {torch.backends.cpu.get_cpu_capability()}"


def load() -> float | None:
    """The system's load average over the last minute: more than this process's own threads means company."""
    try:
        return round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):  # the system does not tell
        return None


def accelerator(device: torch.device | str) -> str | None:
    """Name of a CUDA device, or None where the work runs elsewhere."""
    return torch.cuda.get_device_name(device) if str(device).startswith("cuda") else None
