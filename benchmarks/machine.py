"""Where and with what a benchmark ran, and how two things are timed on a machine that other work shares."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

_SHOWN = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_tile", "amx_int8")


def describe(device: torch.device, packages: Sequence[str]) -> dict[str, Any]:
    """Machine, versions and date, as plain values."""
    facts: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": load(),
        "device": device.type,
        "versions": {name: _version(name) for name in packages},
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["cuda"] = torch.version.cuda
    return facts


def load() -> float | None:
    """The system's load average over the last minute: more than this process's own threads means company."""
    with contextlib.suppress(OSError, AttributeError):
        return round(os.getloadavg()[0], 2)
    return None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    found = {key.strip(): value.strip() for key, value in fields.items()}
    flags = found.get("flags", "").split()
    codes = [found.get(name) for name in ("cpu family", "model", "stepping")]
    return {
        "model": found.get("model name", platform.processor()),
        "family/model/stepping": "/".join(code for code in codes if code),
        "features": [name for name in _SHOWN if name in flags],
        "torch": torch.backends.cpu.get_cpu_capability(),
    }


def seconds(run: Callable[[], Any], device: torch.device) -> float:
    """Wall time of one call."""
    _wait(device)
    began = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(
    runs: dict[str, Callable[[], Any]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Times several things in turn, A B C A B C: what disturbs the machine disturbs all of them."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds(run, device))
    return times


def spread(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Median and range."""
    return {
        "median": significant(statistics.median(values), digits),
        "low": significant(min(values), digits),
        "high": significant(max(values), digits),
    }


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Quotients round by round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def significant(value: float, digits: int = 4) -> float:
    """Rounded to so many digits."""
    return float(f"{value:.{digits}g}")
