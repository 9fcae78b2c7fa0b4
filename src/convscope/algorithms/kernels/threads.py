"""Run a kernel on the threads that torch already has: its own OpenMP pool, entered through `GOMP_parallel`.

A pool of our own would fight torch's for the cores, and waking threads costs more than a small layer takes.
The runtime is found by asking torch's library which `GOMP_parallel` it itself would call; GNU's, LLVM's and
Intel's runtimes on Linux all have one. Where there is none, `refuses` says so and no kernel is offered.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

SYMBOLS = ("GOMP_parallel", "GOMP_barrier", "omp_get_thread_num", "omp_get_num_threads")


@dataclass(frozen=True)
class Pool:
    """torch's OpenMP runtime: the address of each of `SYMBOLS`."""

    addresses: dict[str, int]
    parallel: Any  # GOMP_parallel(function, data, threads, flags), called without Python's lock


@functools.cache
def _find() -> Pool | str:
    """The runtime, or why there is none."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if not library.exists():
        return f"torch's library {library.name} is not there to ask for its OpenMP runtime"
    # a handle to what is loaded already; its symbols are those of the libraries it was linked with
    loaded = ctypes.CDLL(str(library), mode=os.RTLD_NOLOAD | os.RTLD_LAZY | os.RTLD_LOCAL)
    try:
        found = {name: getattr(loaded, name) for name in SYMBOLS}
    except AttributeError:
        return "this build of torch does not run on an OpenMP runtime with GOMP_parallel"
    addresses = {name: ctypes.cast(function, ctypes.c_void_p).value or 0 for name, function in found.items()}
    parallel = found["GOMP_parallel"]
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return Pool(addresses, parallel)


def refuses() -> str | None:
    """Why kernels cannot run on torch's threads here, or None."""
    found = _find()
    return found if isinstance(found, str) else None


def pool() -> Pool:
    """torch's OpenMP runtime.

    Raises:
        RuntimeError: there is none; `refuses` gives the reason beforehand.
    """
    found = _find()
    if isinstance(found, str):
        raise RuntimeError(f"no kernel can run: {found}")
    return found


def count() -> int:
    """How many threads a kernel called now may use: as many as torch would."""
    return max(1, torch.get_num_threads())


def run(address: int, arguments: Sequence[int], threads: int) -> None:
    """Call a kernel on a team of threads and wait for it.

    Each call has a table of arguments of its own, so that any number of Python threads may call one kernel.
    The team may turn out smaller than asked for (a limit of the system's): kernels ask for its size.

    Args:
        address: of a function `void f(int64 *arguments)`.
        arguments: integers and addresses.
        threads: how many to ask for.
    """
    table = (ctypes.c_int64 * len(arguments))(*arguments)
    pool().parallel(address, ctypes.addressof(table), threads, 0)


_lock = threading.Lock()
_known: set[str] = set()


def make_known() -> None:
    """Tell LLVM where the runtime's functions are; kernels name them."""
    import llvmlite.binding as llvm

    with _lock:
        for name, address in pool().addresses.items():
            if name not in _known:
                llvm.add_symbol(name, address)
                _known.add(name)
