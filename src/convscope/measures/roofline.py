"""What the machine can do at most, measured: a matrix product, a copy, and what calling a layer costs at all.

A layer that does `macs` multiply-accumulates and moves `bytes` takes at least

    max(macs / peak MACs a second, bytes / peak bytes a second)

seconds: the roofline of Williams, Waterman and Patterson, "Roofline: An Insightful Visual Performance Model for
Multicore Architectures" (2009). The peaks are those of this machine, at the same threads, type and device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

from convscope import timing

Bound = Literal["compute", "memory", "overhead"]

# A layer is overhead-bound where the larger part of its time is the price of a call and the smaller part is work,
# by the peaks. Half is where "the larger part" begins; both conditions are needed, since a layer may take long for
# its work without the call being the reason (a slow kernel), and a short one may yet be at its peak.
OVERHEAD_SHARE = 0.5

COPIED = 128 * 2**20  # bytes of a copy's source: several times the last cache of most machines
SMALLEST = 256  # rows of a matrix product
LARGEST = {"cpu": 2048}
LARGEST_ELSEWHERE = 8192
LONG_ENOUGH = 5e-3  # seconds a product takes before its size stops growing
GRAIN = 1e-3  # seconds a sample of calls lasts at least


@dataclass(frozen=True)
class Peak:
    """The most that this machine was seen to do, at the conditions its timings state.

    Attributes:
        product: time of one matrix product.
        product_macs: multiply-accumulates of it.
        copy: time of one copy of a tensor.
        copy_bytes: bytes it moves: read and written.
        call: time of the smallest convolution layer there is: what calling a layer costs.

    Example:
        >>> second = timing.Timing((1.0,))
        >>> peak = Peak(second, 4 * 10**9, second, 10**9, timing.Timing((1e-5,)))
        >>> peak.floor(macs=8 * 10**9, bytes=10**9), peak.bound(2.5, macs=8 * 10**9, bytes=10**9)
        (2.0, 'compute')
    """

    product: timing.Timing
    product_macs: int
    copy: timing.Timing
    copy_bytes: int
    call: timing.Timing

    @property
    def macs_per_second(self) -> float:
        """By the matrix product."""
        return self.product_macs / self.product.median

    @property
    def bytes_per_second(self) -> float:
        """By the copy, from and to memory; what stays in a cache may go faster."""
        return self.copy_bytes / self.copy.median

    @property
    def intensity(self) -> float:
        """MACs a byte at which computing takes as long as moving: above it, layers are compute-bound."""
        return self.macs_per_second / self.bytes_per_second

    def floor(self, macs: int, bytes: int) -> float:
        """Seconds that so much work takes at least."""
        return max(macs / self.macs_per_second, bytes / self.bytes_per_second)

    def bound(self, seconds: float, macs: int, bytes: int, ops: int = 1) -> Bound:
        """What a layer's time is spent on.

        Overhead: the roofline explains less than half of the time, and the fixed price of a call, for each
        operation that runs, at least half; or there is no work at all. Else compute or memory, whichever alone
        takes longer at its peak.
        """
        part = OVERHEAD_SHARE * seconds
        if not (macs or bytes) or self.floor(macs, bytes) < part <= max(1, ops) * self.call.median:
            return "overhead"
        computing, moving = macs / self.macs_per_second, bytes / self.bytes_per_second
        return "compute" if computing > moving else "memory"

    def to_dict(self) -> dict[str, Any]:
        """Plain values; seconds, MACs and bytes."""
        return {
            "macs_per_second": timing.significant(self.macs_per_second),
            "bytes_per_second": timing.significant(self.bytes_per_second),
            "macs_per_byte": timing.significant(self.intensity),
            "product": {**self.product.to_dict(), "macs": self.product_macs},
            "copy": {**self.copy.to_dict(), "bytes": self.copy_bytes},
            "call": self.call.to_dict(),
        }

    def __str__(self) -> str:
        return (
            f"{rate(self.macs_per_second, 'MACs')} by a matrix product, "
            f"{rate(self.bytes_per_second, 'B')} by a copy, {timing.duration(self.call.median)} a call"
        )


class Meter:
    """Measures the peaks in as many goes as wanted, so that they can be taken before and after something else.

    The product grows until it takes long enough to be at its best. It is done as a matrix product and as a 1×1
    convolution, and the faster counts: the two may follow different precision settings (TF32) and use different
    libraries. The three are timed apart, since a copy leaves the caches to the next one empty.

    Args:
        device: where.
        dtype: of the data, a floating type.

    Example:
        >>> meter = Meter()
        >>> meter.go(budget=0.0)
        >>> meter.peak.intensity > 0
        True
    """

    def __init__(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.device = torch.device(device)
        self.dtype = dtype
        self._size = 0
        self._samples: dict[str, tuple[float, ...]] = {}
        self._conditions = timing.Conditions.now(device, dtype)

    def go(self, budget: float = 0.25) -> None:
        """Takes samples, at the present number of threads, for so many seconds, warm-up apart."""
        with torch.inference_mode():
            self._size = self._size or self._settled()
            self._time(self._products(self._size), budget / 2)
            self._time(self._copy(), budget / 4)
            self._time(self._call(), budget / 4)

    @property
    def peak(self) -> Peak:
        """By all samples so far."""
        times = {name: timing.Timing(found, self._conditions) for name, found in self._samples.items()}
        product = min((times["matmul"], times["convolution"]), key=lambda found: found.median)
        return Peak(product, self._size**3, times["copy"], 2 * COPIED, times["call"])

    def _time(self, runs: dict[str, timing.Run], budget: float) -> None:
        found = timing.measure(runs, budget=budget, rounds=40, grain=GRAIN, device=self.device)
        for name, times in found.items():
            self._samples[name] = (*self._samples.get(name, ()), *times.samples)

    def _settled(self) -> int:
        """The size from which on a product takes long enough, or the largest."""
        size, largest = SMALLEST, LARGEST.get(self.device.type, LARGEST_ELSEWHERE)
        while size < largest:
            fastest = min(
                timing.seconds(run, self.device)
                for run in self._products(size).values()
                for _ in range(2)  # the first prepares
            )
            if fastest >= LONG_ENOUGH:
                break
            size *= 2
        return size

    def _products(self, size: int) -> dict[str, timing.Run]:
        left = torch.full((size, size), 0.5, device=self.device, dtype=self.dtype)
        right = torch.full((size, size), 1 / size, device=self.device, dtype=self.dtype)
        image, kernel = left.reshape(1, size, size, 1), right.reshape(size, size, 1, 1)
        return {
            "matmul": lambda: left @ right,
            "convolution": lambda: functional.conv2d(image, kernel),
        }

    def _copy(self) -> dict[str, timing.Run]:
        source = torch.ones(COPIED // self.dtype.itemsize, device=self.device, dtype=self.dtype)
        target = torch.empty_like(source)
        return {"copy": lambda: target.copy_(source)}

    def _call(self) -> dict[str, timing.Run]:
        layer = nn.utils.skip_init(nn.Conv2d, 1, 1, 1, device=self.device, dtype=self.dtype).eval()
        for parameter in layer.parameters():
            parameter.zero_()
        least = torch.zeros(1, 1, 1, 1, device=self.device, dtype=self.dtype)
        return {"call": lambda: layer(least)}


def rate(value: float, unit: str) -> str:
    """A number a second as people read it.

    Example:
        >>> rate(53.4e9, "MACs"), rate(812.0, "B")
        ('53.4 GMACs/s', '812 B/s')
    """
    for scale, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:.3g} {prefix}{unit}/s"
    return f"{value:.3g} {unit}/s"
