"""Counters of parameters, multiply-accumulates and receptive fields side by side.

    python benchmarks/counting.py --out benchmarks/results/counting-cpu.json
    python benchmarks/counting.py --show benchmarks/results/counting-cpu.json --markdown docs/measure.md

Ten networks of torchvision, small modules with one difficulty each (counting_cases.py), eight counters
(counting_tools.py). A figure is compared with one worked out without any counter; a tool that fails is written down with its
error. The second line runs nothing: it prints the tables of a record and writes them into a page, between the two
comments that mark their place.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import counting_tables as tables
import machine
from convscope import load, measure, timing
from convscope._torchvision import torchvision
from counting_cases import BACKWARD, NETWORKS, PROBES, Backward, by_modules
from counting_tools import TOOLS, Tool, ours_full, quiet, torchlens_default

PACKAGES = ("convscope", "torch", "torchvision", "torchinfo", "fvcore", "ptflops", "torchlens", "numpy")
PARTS = ("networks", "probes", "backward", "tools", "speed")


# ---------------------------------------------------------------- parts


def networks(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Figures, receptive fields and seconds for the ten networks."""
    found = []
    for network in NETWORKS[: 1 if options.quick else None]:
        module, x = network.build(), torch.rand(network.shape, generator=torch.Generator().manual_seed(0))
        gmacs, params = network.published()
        reference = network.macs if network.macs is not None else by_modules(module, x)
        tools = {tool.name: counted(tool, module, x) for tool in TOOLS}
        for tool in TOOLS:
            if tool.field is not None:
                tools[tool.name]["field"] = attempt(partial(_field, tool, module, x, network.layer))
        seconds = timed(tools, module, x, options.rounds)
        row = {
            "name": network.name,
            "input": list(network.shape),
            "macs": reference,
            "params": params,
            "published": {"gmacs": gmacs, "params": params, "entry": network.entry},
            "field": {"layer": network.layer, "field": list(network.field), "source": network.source},
            "tools": tools,
            "seconds": seconds,
        }
        found.append(row)
        print(f"{network.name}: " + tables.line(row), flush=True)
    return found


def probes(_: argparse.Namespace) -> list[dict[str, Any]]:
    """Figures for the small modules."""
    found = []
    for probe in PROBES:
        x = probe.example()
        tools = {tool.name: counted(tool, probe.build(), x) for tool in TOOLS}
        for said in tools.values():
            said["says so"] = any(word in name.lower() for name in said.get("told", ()) for word in probe.ops)
        found.append(
            {
                "name": probe.name,
                "input": list(probe.shape),
                "macs": probe.macs,
                "params": probe.params,
                "tools": tools,
            }
        )
    return found


def backward(_: argparse.Namespace) -> list[dict[str, Any]]:
    """Multiply-accumulates of the gradients."""
    able = [tool for tool in TOOLS if tool.backward is not None]
    return [
        {
            "name": case.name,
            "macs": case.right,
            "tools": {tool.name: attempt(partial(_gradients, tool, case)) for tool in able},
        }
        for case in BACKWARD
    ]


def about(_: argparse.Namespace) -> list[dict[str, Any]]:
    """Of each tool: its unit, what it gives, whether it runs without weights, what is different after a call."""
    found = []
    for tool in TOOLS:
        row = {
            "name": tool.name,
            "version": importlib.metadata.version(tool.package),
            "unit": tool.unit,
            "params": counted(tool, PROBES[0].build(), PROBES[0].example()).get("params") is not None,
            "field": tool.field is not None,
            "meta": attempt(partial(_without_weights, tool)),
            "leaves": changes(torchlens_default if tool.name == "torchlens" else tool.count),
        }
        tool.settle()
        found.append(row)
    return found


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds that `measure` takes on resnet50, and on every classification network of torchvision without weights."""
    module, x = torchvision().models.resnet50(weights=None).eval(), torch.rand(1, 3, 224, 224)
    runs = {
        "load, measure and print": lambda: str(measure(load("torchvision:resnet50"))),
        "measure": lambda: measure(module, input=x),
        "counts alone": lambda: measure(module, input=x, fields=False, training=False),
        "a forward pass": lambda: _forward(module, x),
    }
    first = [
        float(subprocess.check_output([sys.executable, "-c", FIRST, str(options.threads)])) for _ in range(3)
    ]
    resnet = timing.measure(runs, rounds=options.rounds)
    began = time.perf_counter()
    each = {}
    names = torchvision().models.list_models(module=torchvision().models)
    for name in names[:3] if options.quick else names:
        start = time.perf_counter()
        each[name] = attempt(partial(_bare, name))
        each[name]["seconds"] = timing.significant(time.perf_counter() - start)
    seconds = timing.significant(time.perf_counter() - began)
    return {
        "resnet50": {
            "first call of a process": machine.spread(first),
            **{name: found.to_dict() for name, found in resnet.items()},
        },
        "meta": {"seconds": seconds, "models": each},
    }


FIRST = """
import sys, time, rich.table, torch, convscope
from convscope import _torchvision, load, measure
_torchvision.torchvision()
torch.set_num_threads(int(sys.argv[1]))
began = time.perf_counter()
str(measure(load("torchvision:resnet50")))
print(time.perf_counter() - began)
"""


# ---------------------------------------------------------------- one call


def attempt(run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a tool says, or its error: a peer's failure is a result, not the end of the run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return run()
    except Exception as error:  # theirs: anything may come
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def counted(tool: Tool, module: nn.Module, x: Tensor) -> dict[str, Any]:
    """A tool's figures, twice: some count on from the call before."""
    private = twin(module)
    first, second = (attempt(lambda: dict(vars(tool.count(private, x)))) for _ in range(2))
    if second != first:
        first["second call"] = second
    return first


def timed(tools: dict[str, Any], module: nn.Module, x: Tensor, rounds: int) -> dict[str, Any]:
    """Seconds of every tool that gave a figure, each on a copy of its own, in turn."""
    runs: dict[str, Callable[[], Any]] = {
        tool.name: partial(tool.count, twin(module), x) for tool in TOOLS if "error" not in tools[tool.name]
    }
    runs["convscope, all it measures by default"] = partial(ours_full, twin(module), x)
    runs["a forward pass"] = partial(_forward, twin(module), x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        times = timing.measure(runs, rounds=rounds, budget=8.0)
    return {name: found.to_dict() for name, found in times.items()}


def _forward(module: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        module(x)


def _field(tool: Tool, module: nn.Module, x: Tensor, layer: str) -> dict[str, Any]:
    assert tool.field is not None
    seen = tool.field(twin(module), x, layer)
    return {
        "field": None if seen.field is None else list(seen.field),
        "whole": seen.whole,
        "remark": seen.remark,
    }


def _gradients(tool: Tool, case: Backward) -> dict[str, Any]:
    assert tool.backward is not None
    return {"macs": tool.backward(case.build(), case.example())}


def _without_weights(tool: Tool) -> dict[str, Any]:
    with torch.device("meta"):
        module, x = _small().eval(), torch.rand(1, 3, 8, 8)
    return {"macs": tool.count(module, x).macs}


def _small() -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(288, 4)]
    return nn.Sequential(*layers)


def twin(module: nn.Module) -> nn.Module:
    """A copy that shares the memory of the weights, ties among them kept."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in module.parameters()
    }
    return copy.deepcopy(module, memo)


def changes(run: Callable[[nn.Module, Tensor], Any]) -> list[str]:
    """What is different after a call on a network in train mode, with batch norm and dropout."""
    torch.manual_seed(0)
    module = _small()
    before = _state(module)
    attempt(lambda: run(module, torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))) or {})
    after = _state(module)
    return [what for what, value in before.items() if after[what] != value]


def _state(module: nn.Module) -> dict[str, Any]:
    parts = list(module.modules())
    mine = [torch.relu, torch.conv2d, torch.Tensor.add, functional.relu, functional.linear, torch.matmul]
    return {
        "train mode": [part.training for part in parts],
        "running statistics": [buffer.tolist() for buffer in module.buffers()],
        "hooks": [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in parts],
        "attributes of the network": [sorted(vars(part)) for part in parts],
        "gradients": [parameter.grad is None for parameter in module.parameters()],
        "random state": torch.get_rng_state().tolist(),
        "torch's own functions": [id(function) for function in mine],
    }


def _bare(name: str) -> dict[str, Any]:
    """One network on the meta device, at the size of its first published figures."""
    models = torchvision().models
    entry = next(iter(models.get_model_weights(name)))
    side = entry.transforms().crop_size[0]
    options: dict[str, Any] = {"image_size": side} if name.startswith("vit_") else {}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    if name == "googlenet":
        options["aux_logits"] = False  # published without
    with torch.device("meta"), _widths_on_cpu():
        module = models.get_model(name, weights=None, **options)
    found = measure(module.eval(), input=(3, side, side))
    return {
        "side": side,
        "params": found.totals.params,
        "macs": found.totals.macs,
        "uncounted": dict(found.uncounted),
        "notes": list(found.notes),
        "published": {"params": entry.meta["num_params"], "gmacs": entry.meta["_ops"]},
    }


@contextmanager
def _widths_on_cpu() -> Iterator[None]:
    """RegNet works out its widths with tensors, which must have values."""
    params = torchvision().models.regnet.BlockParams
    original = params.from_init_params

    def with_values(*arguments: Any, **keywords: Any) -> Any:
        with torch.device("cpu"):
            return original(*arguments, **keywords)

    params.from_init_params = with_values
    try:
        yield
    finally:
        params.from_init_params = original


# ---------------------------------------------------------------- command line


def main() -> None:
    """Runs the parts asked for, prints the tables and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file to write; parts not run now are kept")
    parser.add_argument("--parts", default=",".join(PARTS), help="of " + ", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each tool")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--show", type=Path, help="a record to print instead of running anything")
    parser.add_argument("--markdown", type=Path, help="a page to write the tables into")
    parser.add_argument("--quick", action="store_true", help="one network: a smoke run, no figure to quote")
    options = parser.parse_args()
    record = json.loads(options.show.read_text()) if options.show else run(options)
    tables.show(record)
    if options.markdown:
        page = options.markdown.read_text(encoding="utf-8")
        options.markdown.write_text(tables.replaced(page, record), encoding="utf-8")


def run(options: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(options.threads)
    quiet()
    record: dict[str, Any] = {"benchmark": "counting", "quick": options.quick, "machine": {}}
    if options.out and options.out.exists():
        record = json.loads(options.out.read_text())
    wanted = options.parts.split(",")
    for name, part in zip(PARTS, (networks, probes, backward, about, speed), strict=True):
        if name in wanted:
            record["machine"][name] = machine.describe(torch.device("cpu"), PACKAGES)
            record[name] = part(options)
            if options.out:
                options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


if __name__ == "__main__":
    main()
