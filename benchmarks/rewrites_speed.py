"""`Algorithm("auto") | FoldBatchNorm()` on whole networks, against torch as a user has it and against its peers.

Everything that is compared is timed in one process, in turn, on the same images and number of threads, with its
weights prepared beforehand. The rewritten network lets the process keep freed memory, which helps whoever runs beside it
too: torch is also timed before the rewrite, alone.
"""

from __future__ import annotations

import copy
import io
import sys
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import contestants
import machine
from contestants import LAST, Run
from convscope import load, rewrite, rules, timing
from convscope._torchvision import torchvision
from convscope.models import InputSpec

if TYPE_CHECKING:
    from rewrites import Options

NETWORKS = {"vgg16": 224, "resnet50": 224, "inception_v3": 299, "efficientnet_lite0": 224}
BATCHES = (1, 8)
WANTED = {
    "vgg16": 1.9,
    "resnet50": 1.3,
    "inception_v3": 1.0,
    "efficientnet_lite0": 1.0,
}  # times as fast as eager torch
OURS = "convscope"
SECONDS = 20.0  # spent on the timed rounds of a row
PEERS = ("onnx", "onnxruntime", "openvino")


def run(options: Options, keep: Callable[[str, Any], None]) -> None:
    """One row a network and batch, named "resnet50, batch 8"."""
    for name in NETWORKS:
        for batch in BATCHES:
            key = f"{name}, batch {batch}"
            if options.cases in key:
                with torch.no_grad(), warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of peers: the exporter's and inductor's
                    found = row(name, batch, options.quick)
                keep(key, found)
                say(key, found)


def network(name: str) -> nn.Module:
    """Of torchvision, random weights, norms that do something; or the embedded one."""
    if name == "efficientnet_lite0":
        return load().copy()
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        more: dict[str, Any] = {"init_weights": False} if name == "inception_v3" else {}
        module: nn.Module = getattr(torchvision().models, name)(weights=None, **more)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for buffer, low, high in ((part.running_mean, -0.1, 0.1), (part.running_var, 0.5, 1.5)):
                assert buffer is not None
                buffer.uniform_(low, high, generator=generator)
    return module.eval().requires_grad_(False)


def row(name: str, batch: int, quick: bool) -> dict[str, Any]:
    """Times, errors against float64, and how many times as fast as each other contestant ours is."""
    module, size = network(name), NETWORKS[name]
    x = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))
    alone = timing.measure({"": lambda: module(x)}, budget=1 if quick else SECONDS / 4, least=3)[""]
    began = time.perf_counter()
    norms = any(isinstance(part, nn.BatchNorm2d) for part in module.modules())
    fast = rules.Algorithm(batch=batch)
    made = rewrite(module, rules.FoldBatchNorm() | fast if norms else fast, input=InputSpec((3, size, size)))
    spent = time.perf_counter() - began
    new = made.net.module
    runs: dict[str, Run] = {OURS: lambda: new(x), "torch": lambda: module(x), **channels_last(module, x)}
    if not quick:
        runs |= peers(name, x)
    exact = network(name).double()(x.double())
    errors = {each: difference(run(), exact) for each, run in runs.items()}
    assert max(errors.values()) < 1e-3, f"someone computes something else: {errors}"
    times = timing.measure(
        runs, rounds=60, budget=1 if quick else SECONDS, least=3, warmup=2, settle=0.01, dtype=torch.float32
    )
    ratios = {each: times[each].over(times[OURS]).to_dict() for each in times if each != OURS}
    versions = {package: machine._version(package) for package in PEERS}
    return {
        "times": {each: milliseconds(took) for each, took in times.items()},
        "torch, before the rewrite": milliseconds(alone),
        "errors": {each: machine.significant(error, 3) for each, error in errors.items()},
        "times as fast as": ratios,
        "wanted over torch": WANTED[name],
        "reached": ratios["torch"]["median"] >= WANTED[name] and ratios["torch"]["low"] > 1,
        "seconds of the rewrite": round(spent, 1),
        "layers": {edit.layer: edit.resolved for edit in made.done if edit.rule.startswith("algorithm")},
        "peers": versions,
    }


def channels_last(module: nn.Module, x: Tensor) -> dict[str, Run]:
    """torch with weights and input laid out for it."""
    laid = copy.deepcopy(module).to(memory_format=LAST)  # type: ignore[call-overload]
    last = x.contiguous(memory_format=LAST)
    return {"torch, channels last": lambda: laid(last)}


def peers(name: str, x: Tensor) -> dict[str, Run]:
    """torch.compile with frozen weights, onnxruntime and OpenVINO on the same network exported to ONNX."""
    buffer = io.BytesIO()
    torch.onnx.export(network(name), (x,), buffer, dynamo=False, opset_version=17, input_names=["x"])
    return {
        "torch.compile": contestants.compiled(network(name), x),
        "onnxruntime": contestants.onnxruntime(buffer.getvalue(), x),
        "OpenVINO": contestants.openvino(buffer.getvalue(), x),
    }


def difference(output: object, exact: Tensor) -> float:
    """Largest difference from the exact result, relative to its maximum."""
    y = output if isinstance(output, Tensor) else torch.from_numpy(output[0])  # type: ignore[index]
    return float((y.double() - exact).abs().max() / exact.abs().max())


def milliseconds(times: timing.Timing) -> dict[str, float]:
    return {key: timing.significant(1e3 * getattr(times, key)) for key in ("median", "low", "high")}


def say(key: str, found: dict[str, Any]) -> None:
    """A line on stderr for each row."""
    ratios = ", ".join(f"{each['median']:.2f}x {name}" for name, each in found["times as fast as"].items())
    took = found["times"][OURS]["median"]
    print(f"  {key:24} {took:8.2f} ms  {ratios}  reached: {found['reached']}", file=sys.stderr, flush=True)
