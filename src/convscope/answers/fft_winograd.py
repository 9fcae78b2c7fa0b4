"""FFT or Winograd, when: all algorithms on the layers of a network and on rows of convolutions, timed on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from convscope import timing
from convscope.algorithms.cost import cost
from convscope.algorithms.function import conv2d
from convscope.algorithms.plan import prepare
from convscope.algorithms.point import Point, measure_point
from convscope.algorithms.problem import Problem
from convscope.algorithms.survey import convolution
from convscope.answers.asked import Asked, needs_channels
from convscope.answers.base import Draft
from convscope.answers.layers import Conv, convolutions, profile_of
from convscope.answers.verdicts.fft_winograd import TILES, chart, findings, statement, tables
from convscope.models import Net

PARTS = ("kernels", "sizes", "tiles", "threads", "layers")

_CHANNELS = 64
_SIZE = 56
_LARGE = 9  # and from here on large


def answer(asked: Asked) -> Draft:
    """See the module."""
    needs_channels(asked.net, asked.question.name)
    quick = asked.quick
    kernels = asked.part("kernels", lambda: _kernels(quick), timed=True)
    wide = asked.part("sizes", lambda: _sizes(quick), timed=True)
    tiles = asked.part("tiles", lambda: _tiles(asked.seed))
    threads = asked.part("threads", lambda: _threads(quick), timed=True)
    layers = asked.part("layers", lambda: _layers(asked.net, quick), timed=True)
    return Draft(
        statement=statement(asked.net, kernels, tiles, layers),
        findings=tuple(findings(kernels, wide, tiles, threads, layers)),
        tables=tuple(tables(asked.net, kernels, wide, tiles, layers)),
        charts=(chart("kernels", "kernel size, 64 channels at 56x56", "kernel size", kernels),),
    )


# ---------------------------------------------------------------- measured


def _kernels(quick: bool) -> dict[str, Any]:
    """All algorithms, while the kernel grows."""
    values = (3, 5, 9, 21) if quick else (1, 3, 5, 7, 9, 13, 21, 31)
    allowance = 0.5 if quick else 3.0
    return _points({k: convolution(_CHANNELS, _SIZE, k) for k in values}, allowance)


def _sizes(quick: bool) -> dict[str, Any]:
    """All algorithms with a 9x9 kernel, while the map grows."""
    values = (14, 56) if quick else (7, 14, 28, 56, 112)
    return _points({s: convolution(_CHANNELS, s, _LARGE) for s in values}, 0.5 if quick else 3.0)


def _points(problems: Mapping[int, Problem], allowance: float) -> dict[str, Any]:
    return {"points": [_told(measure_point(value, one, allowance)) for value, one in problems.items()]}


def _told(point: Point) -> dict[str, Any]:
    """A point with its fastest: direct, unless another is faster beyond noise."""
    fastest = "direct" if "direct" in point.equal else point.equal[0]
    return {**point.to_dict(), "fastest": fastest, "over_direct": point.over_direct(fastest)}


def _tiles(seed: int) -> dict[str, Any]:
    """Multiplications, additions, workspace and measured error of the Winograd tiles, of FFT and of direct, for one 3x3 layer."""
    shape, weight_shape = (1, _CHANNELS, _SIZE, _SIZE), (_CHANNELS, _CHANNELS, 3, 3)
    generator = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(shape, generator=generator), torch.randn(weight_shape, generator=generator)
    exact = functional.conv2d(x.double(), weight.double(), padding=1)
    rows = []
    for name in ("direct", "fft", *(f"winograd:{tile}" for tile in TILES)):
        plain = cost(shape, weight_shape, padding=1, algorithm=name)
        y = conv2d(x, weight, padding=1, algorithm=name)
        rows.append({"name": name, "error": _error(y, exact), **plain.to_dict()})
    return {"rows": rows, "layer": f"3x3, {_CHANNELS} channels, {_SIZE}x{_SIZE}"}


def _error(y: Tensor, exact: Tensor) -> float:
    return float((y.double() - exact).abs().max() / exact.abs().max())


def _threads(quick: bool) -> dict[str, Any]:
    """Direct and FFT with one thread and with all, on a 9x9 layer."""
    every = torch.get_num_threads()
    x = torch.randn(1, _CHANNELS, 112, 112, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(_CHANNELS, _CHANNELS, _LARGE, _LARGE, generator=torch.Generator().manual_seed(1))
    rows: dict[str, dict[str, float]] = {}
    try:
        for count in sorted({1, every}):
            torch.set_num_threads(count)
            plans = {name: prepare(weight, padding=_LARGE // 2, algorithm=name) for name in ("direct", "fft")}
            with torch.no_grad():
                times = timing.measure(
                    {name: _call(plan, x) for name, plan in plans.items()}, budget=0.5 if quick else 2.0
                )
            for name, taken in times.items():
                rows.setdefault(name, {})[str(count)] = taken.median
    finally:
        torch.set_num_threads(every)
    return {"threads": every, "rows": rows}


def _call(plan: Any, x: Tensor) -> Any:
    return lambda: plan(x)


def _layers(net: Net, quick: bool) -> dict[str, Any]:
    """The fastest algorithm for the distinct convolutions of a network, the dearest first."""
    distinct: dict[Problem, list[Conv]] = {}
    for conv in convolutions(profile_of(net)):
        distinct.setdefault(_problem(conv), []).append(conv)
    dearest = sorted(distinct.items(), key=lambda pair: -sum(conv.macs for conv in pair[1]))
    chosen = dearest[:5] if quick else dearest
    rows = []
    for number, (problem, convs) in enumerate(chosen):
        point = _told(measure_point(number, problem, 0.3 if quick else 1.0))
        rows.append(
            {
                "layers": [conv.name for conv in convs],
                "kernel": convs[0].kernel,
                "channels": convs[0].channels,
                "groups": convs[0].groups,
                "size": convs[0].before,
                "macs": sum(conv.macs for conv in convs),
                **point,
            }
        )
    return {"rows": rows, "distinct": len(dearest), "macs": sum(c.macs for _, each in dearest for c in each)}


def _problem(conv: Conv) -> Problem:
    x = torch.empty(1, conv.channels[0], *conv.before, device="meta")
    weight = torch.empty(conv.channels[1], conv.channels[0] // conv.groups, *conv.kernel, device="meta")
    around = zip(conv.after, conv.stride, conv.extent, conv.before, strict=True)
    padding = [max(0, ((after - 1) * s + extent - n + 1) // 2) for after, s, extent, n in around]
    return replace(Problem.of(x, weight, conv.stride, padding, conv.dilation, conv.groups), device="cpu")
