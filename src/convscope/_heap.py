"""Keeps the memory that a loop frees and asks for again a moment later.

glibc's malloc gives large blocks back to the system at once, and the next step pays for clean pages again: one
page fault for every 4 KiB of every activation, half the time of a step on a mobile network. Other allocators are
left alone.
"""

from __future__ import annotations

import ctypes
import functools
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of malloc.h
_KEPT = 1 << 30  # bytes: blocks up to this size, and so much free memory, stay with the process
_USUAL = 32 << 20  # what malloc's own adjustment ends at; it trims at twice that

_lock = threading.RLock()  # a hold may end, collected, while another is entered
_users = 0


@functools.cache
def _glibc() -> Any:
    """The C library, or None where it is not glibc."""
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - an attribute only glibc has
        return library if library.mallopt and library.malloc_trim else None
    except (AttributeError, OSError, TypeError):  # TypeError: Windows has no name for "this program"
        return None


@contextmanager
def kept() -> Iterator[None]:
    """While it lasts, freed memory stays with the process; afterwards it goes back to the system.

    Also a decorator. May be nested and entered from several threads; the last one out gives the memory back. Changes
    no result, only when the system is asked for memory.

    Example:
        >>> with kept():
        ...     x = [bytearray(1 << 20) for _ in range(4)]
    """
    _enter()
    try:
        yield
    finally:
        _leave()


class Hold:
    """As `kept`, for as long as the object lives; a copy holds by itself."""

    def __init__(self) -> None:
        self._end = weakref.finalize(self, _leave)
        self._end.atexit = False
        _enter()

    def __deepcopy__(self, memo: Any) -> Hold:
        return Hold()

    def __reduce__(self) -> tuple[type[Hold], tuple[()]]:
        return Hold, ()


def _enter() -> None:
    global _users
    library = _glibc()
    if library is None:
        return
    with _lock:
        _users += 1
        if _users == 1:
            _set(library, _KEPT, 2 * _KEPT - 1)  # the call takes an int


def _leave() -> None:
    global _users
    library = _glibc()
    if library is None:
        return
    with _lock:
        _users -= 1
        if _users == 0:
            _set(library, _USUAL, 2 * _USUAL)
            library.malloc_trim(0)


def _set(library: Any, mapped: int, trimmed: int) -> None:
    library.mallopt(_MMAP_THRESHOLD, mapped)
    library.mallopt(_TRIM_THRESHOLD, trimmed)
