"""The machine that kernels are built for: its vector width, registers and caches."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

_CACHES = {
    "l1": 32 << 10,
    "l2": 512 << 10,
    "l3": 8 << 20,
}  # where the system does not tell: sizes of small machines


@dataclass(frozen=True)
class Host:
    """A processor as the kernels see it.

    Attributes:
        cpu: LLVM's name of it.
        features: LLVM's list of what it can do, as "+avx2,-avx512f,...".
        width: float32 numbers in a vector register; 0 where the kernels have no instructions to use.
        registers: how many vector registers there are.
        l1, l2, l3: bytes of the data caches; l1 and l2 of one core, l3 shared.
    """

    cpu: str
    features: str
    width: int
    registers: int
    l1: int = _CACHES["l1"]
    l2: int = _CACHES["l2"]
    l3: int = _CACHES["l3"]

    def refuses(self) -> str | None:
        """Why no kernel can be built for this machine, or None."""
        if self.width == 0:
            return f"the processor ({self.cpu}, {platform.machine()}) has neither AVX-512 nor AVX2 with FMA"
        return None


@functools.cache
def detect() -> Host:
    """The machine this runs on; looked at once."""
    import llvmlite.binding as llvm

    can = {name for name, present in llvm.get_host_cpu_features().items() if present}
    width, registers = 0, 0
    if {"avx512f", "avx512vl", "avx512dq", "avx512bw"} <= can:
        width, registers = 16, 32
    elif {"avx2", "fma"} <= can:
        width, registers = 8, 16
    features = llvm.get_host_cpu_features().flatten()
    return Host(llvm.get_host_cpu_name(), features, width, registers, **_caches())


def _caches() -> dict[str, int]:
    """Bytes of the data caches as Linux tells them; guesses elsewhere."""
    found = dict(_CACHES)
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            kind, level = (index / "type").read_text().strip(), (index / "level").read_text().strip()
            size = (index / "size").read_text().strip()
        except OSError:  # a container may hide them: the guesses serve
            continue
        if kind in ("Data", "Unified") and f"l{level}" in found and size[:-1].isdigit():
            found[f"l{level}"] = int(size[:-1]) << {"K": 10, "M": 20, "G": 30}.get(size[-1], 0)
    return found


_pretended: ContextVar[Host | None] = ContextVar("convscope_host", default=None)


def current() -> Host:
    """The machine to build for: the one detected, unless `pretend` says otherwise.

    `CONVSCOPE_VECTOR` in the environment narrows it: "avx2" on a machine with AVX-512, or "none".
    """
    pretended = _pretended.get()
    if pretended is not None:
        return pretended
    wish = os.environ.get("CONVSCOPE_VECTOR", "")
    if wish == "none":
        return narrowed(0)
    return narrowed(8) if wish == "avx2" else detect()


def narrowed(width: int) -> Host:
    """The machine this runs on, as if it had only vectors of 8 numbers (AVX2), or none (0)."""
    host = detect()
    if width >= host.width:
        return host
    cpu, features, registers = ("x86-64-v3", "+avx2,+fma", 16) if width else ("x86-64", "", 0)
    return Host(cpu, features, width, registers, host.l1, host.l2, host.l3)


@contextmanager
def pretend(host: Host) -> Iterator[Host]:
    """Build for another machine inside the block; what is built runs only where this one can run it.

    Example:
        >>> with pretend(Host("x86-64", "", width=0, registers=0)):
        ...     print(current().refuses() is None)
        False
    """
    token = _pretended.set(host)
    try:
        yield host
    finally:
        _pretended.reset(token)
