"""Where and with what a benchmark ran. What is timed goes through `convscope.timing`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from convscope import timing
from convscope.timing import load, seconds, significant

__all__ = ["describe", "interleaved", "load", "ratios", "seconds", "significant", "spread"]

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


def interleaved(
    runs: dict[str, Callable[[], Any]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of several things, timed in turn, without warm-up: the caller warms what it must."""
    times = timing.measure(runs, rounds=rounds, warmup=0, device=device)
    return {name: list(each.samples) for name, each in times.items()}


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
