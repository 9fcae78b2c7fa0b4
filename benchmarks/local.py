"""LocallyConnected2d against plain unfold + einsum, and against the batched matrix product alone.

    python benchmarks/local.py --out benchmarks/results/local-cpu.json

The product alone gets its patches ready-made, which no layer does: it is the limit, not a peer. It is timed in both
orders of its factors, and the faster one counts. Forward is without gradients; "both ways" is forward and the
gradients of input and weight (of patches and weight for the product). Peak memory is what a call
holds beyond what it was given; for the product, its patches are counted too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

import machine
from convscope import timing
from convscope.nn import LocallyConnected2d

PACKAGES = ("convscope", "torch", "numpy")


@dataclass(frozen=True)
class Case:
    """A square layer with "same" padding and as many channels out as in."""

    batch: int
    channels: int
    size: int
    kernel: int = 3

    def __str__(self) -> str:
        return f"batch {self.batch}, {self.channels} channels, {self.size}x{self.size}, {self.kernel}x{self.kernel}"


CASES = (
    *(Case(batch, 64, 28) for batch in (1, 2, 4, 8, 16, 32, 64)),
    Case(8, 32, 56),
    Case(32, 16, 56),
    Case(8, 128, 14),
    Case(32, 128, 14),
    Case(8, 32, 28, 5),
)
QUICK = (Case(2, 8, 14), Case(8, 8, 14))


class Unfolded(nn.Module):
    """The layer as one writes it by hand."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        positions, taps = case.size**2, case.channels * case.kernel**2
        self.case = case
        self.weight = nn.Parameter(torch.randn(positions, case.channels, taps) / math.sqrt(taps))
        self.bias = nn.Parameter(torch.zeros(case.channels, positions))

    def forward(self, x: Tensor) -> Tensor:
        columns = functional.unfold(x, self.case.kernel, padding=self.case.kernel // 2)
        y = torch.einsum("bkp,pok->bop", columns, self.weight) + self.bias
        return y.view(*y.shape[:2], self.case.size, self.case.size)


def contestants(
    case: Case,
) -> dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...], tuple[Tensor, ...]]]:
    """name -> (function, its arguments, what gradients are taken by)."""
    torch.manual_seed(0)
    positions, taps = case.size**2, case.channels * case.kernel**2
    x = torch.randn(case.batch, case.channels, case.size, case.size, requires_grad=True)
    ours = LocallyConnected2d(case.channels, case.channels, case.kernel, padding="same", input_size=case.size)
    plain = Unfolded(case)
    patches = torch.randn(positions, case.batch, taps, requires_grad=True)
    factor = torch.randn(positions, case.channels, taps, requires_grad=True)
    return {
        "convscope": (ours, (x,), (x, *ours.parameters())),
        "unfold + einsum": (plain, (x,), (x, *plain.parameters())),
        "bmm, patches first": (lambda a, w: torch.bmm(a, w.mT), (patches, factor), (patches, factor)),
        "bmm, weight first": (lambda a, w: torch.bmm(w, a.mT), (patches, factor), (patches, factor)),
    }


def runs(case: Case, backward: bool) -> dict[str, Callable[[], Any]]:
    """name -> what is timed."""
    found: dict[str, Callable[[], Any]] = {}
    for name, (function, arguments, by) in contestants(case).items():
        gradient = torch.ones_like(function(*arguments))
        found[name] = _run(function, arguments, by, gradient if backward else None)
    return found


def _run(
    function: Callable[..., Tensor],
    arguments: tuple[Tensor, ...],
    by: tuple[Tensor, ...],
    gradient: Tensor | None,
) -> Callable[[], Any]:
    def forward() -> Any:
        with torch.no_grad():
            return function(*arguments)

    def both_ways() -> Any:
        return torch.autograd.grad(function(*arguments), by, gradient)

    return forward if gradient is None else both_ways


def peak(run: Callable[[], Any]) -> float:
    """MiB of tensors that a call holds at its highest, its results included, by the allocations torch records."""
    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = run()
    found = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = itertools.accumulate(event.nbytes() for event in sorted(found, key=lambda event: event.start_ns()))
    del result
    return max(held, default=0) / 2**20


def compare(case: Case, backward: bool, budget: float) -> dict[str, Any]:
    """Times, ratios and peak memory of one case."""
    todo = runs(case, backward)
    memory = {name: peak(run) for name, run in todo.items()}
    patches = case.batch * case.channels * case.kernel**2 * case.size**2 * 4 / 2**20
    memory = {name: round(mib + patches * name.startswith("bmm"), 1) for name, mib in memory.items()}
    times = timing.measure(todo, budget=budget, least=5)
    limit = min(("bmm, patches first", "bmm, weight first"), key=lambda name: times[name].median)
    return {
        "times": {name: found.to_dict() for name, found in times.items()},
        "speed as a share of bmm's": times[limit].over(times["convscope"]).to_dict(),
        "times faster than unfold + einsum": times["unfold + einsum"].over(times["convscope"]).to_dict(),
        "bmm counted": limit,
        "peak MiB": memory,
    }


def main() -> None:
    """Runs the cases and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budget", type=float, default=2.0, help="seconds a case and direction")
    parser.add_argument("--quick", action="store_true", help="small cases: a smoke run, no figure to quote")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    record: dict[str, Any] = {
        "benchmark": "local",
        "quick": options.quick,
        "machine": machine.describe(torch.device("cpu"), PACKAGES),
        "cases": [],
    }
    for case in QUICK if options.quick else CASES:
        found = {way: compare(case, way != "forward", options.budget) for way in ("forward", "both ways")}
        record["cases"].append({"case": asdict(case), **found})
        for way, figures in found.items():
            share, faster = figures["speed as a share of bmm's"], figures["times faster than unfold + einsum"]
            ours = timing.duration(figures["times"]["convscope"]["median"])
            print(
                f"{case}, {way}: {ours}, {share['median']:.2f} of bmm, {faster['median']:.1f}x unfold + einsum, "
                f"peak {figures['peak MiB']}",
                flush=True,
            )
    if options.out:
        options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
