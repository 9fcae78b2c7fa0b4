"""Scratch memory for kernels: aligned, on huge pages, shared by all of them, never by two calls at once.

A call borrows a block and gives it back. Blocks wait for the next call, of whatever kernel: layers run one
after the other, so a network needs the scratch of its hungriest layer, not the sum. What waits is bounded by
`LIMIT`; `held()` and `release()` let a caller see it and free it.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

HUGE = 2 << 20  # bytes of a huge page; smaller blocks do not ask for one
LINE = 64
LIMIT = 256 << 20  # bytes that may wait for a next call

_ADVISE_HUGE = 14  # MADV_HUGEPAGE of Linux
_lock = threading.Lock()
_waiting: list[torch.Tensor] = []


def aligned(size: int, *, zero: bool = False) -> torch.Tensor:
    """Bytes that begin at a cache line, or at a huge page where they fill one.

    Args:
        size: how many.
        zero: whether to clear them.

    Returns:
        A tensor of uint8, [size].
    """
    step = HUGE if size >= HUGE else LINE
    whole = torch.empty(size + step, dtype=torch.uint8)
    advise_huge(whole)
    start = -whole.data_ptr() % step
    block = whole[start : start + size]
    return block.zero_() if zero else block


@functools.cache
def _madvise() -> Any:
    """The system's madvise, or None where there is none."""
    try:
        function = ctypes.CDLL(None).madvise
    except (AttributeError, OSError, TypeError):  # TypeError: Windows has no name for "this program"
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    function.restype = ctypes.c_int
    return function


def advise_huge(tensor: torch.Tensor) -> None:
    """Ask for huge pages under a large fresh tensor: 512 times fewer page faults. Only advice: may do nothing."""
    size = tensor.numel() * tensor.element_size()
    function = _madvise()
    if function is not None and size >= HUGE:
        start = -(-tensor.data_ptr() // HUGE) * HUGE
        stop = (tensor.data_ptr() + size) // HUGE * HUGE
        if stop > start:
            function(start, stop - start, _ADVISE_HUGE)


@contextmanager
def borrow(size: int) -> Iterator[int]:
    """The address of a block of at least `size` bytes, nobody else's until the end of the `with`.

    Its content is arbitrary. The smallest waiting block that is large enough serves; otherwise a new one.

    Example:
        >>> with borrow(1 << 20) as first, borrow(1 << 20) as second:
        ...     print(first % 64, first == second)
        0 False
    """
    block = _take(size)
    try:
        yield block.data_ptr()
    finally:
        _give(block)


def _take(size: int) -> torch.Tensor:
    with _lock:
        fitting = [block for block in _waiting if block.numel() >= size]
        if fitting:
            best = min(fitting, key=torch.Tensor.numel)
            _remove(best)
            return best
        if _waiting:  # it would be outgrown: a larger block takes its place
            _remove(min(_waiting, key=torch.Tensor.numel))
    return aligned(max(size, LINE))


def _give(block: torch.Tensor) -> None:
    with _lock:
        _waiting.append(block)
        while sum(map(torch.Tensor.numel, _waiting)) > LIMIT:
            _remove(min(_waiting, key=torch.Tensor.numel))


def _remove(block: torch.Tensor) -> None:
    index = next(i for i, other in enumerate(_waiting) if other is block)
    del _waiting[index]


def held() -> int:
    """Bytes of scratch that wait for the next call."""
    with _lock:
        return sum(map(torch.Tensor.numel, _waiting))


def release() -> None:
    """Give all waiting scratch back to the system."""
    with _lock:
        _waiting.clear()
