"""Export of a network to ONNX and to torch.export's `.pt2`, believed only after the file has run.

What was written is read back and run beside the network, in onnxruntime or as an exported program, at a batch of one and of
three; a difference beyond rounding is an error, and nothing is written.
"""

from __future__ import annotations

import importlib
import io
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convscope.errors import ModelError, RequestError
from convscope.graph.record import flatten
from convscope.models import Net

BATCHES = (1, 3)
LOOSE = {torch.float64: 1e-9, torch.float32: 1e-4}  # of the largest output; other types 0.05
OPSET = 17


@dataclass(frozen=True)
class Checked:
    """How an export was verified.

    Attributes:
        by: what ran it, with its version.
        error: largest difference of the outputs, relative to the largest output.
        batch: "any", or 1 where the export takes one image at a time only.
    """

    by: str
    error: float
    batch: str | int

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"by": self.by, "error": self.error, "batch": self.batch}


def onnx(net: Net) -> tuple[bytes, Checked]:
    """The network as an ONNX model, and how it was verified.

    Raises:
        RequestError: onnx or onnxruntime is not installed.
        ModelError: it cannot be exported, or onnxruntime gives other outputs.
    """
    try:
        with _without_telemetry():
            checker, runtime = importlib.import_module("onnx"), importlib.import_module("onnxruntime")
    except ImportError as error:
        raise RequestError(
            f"onnx=True needs the package {error.name}; install both with pip install 'convscope[onnx]'."
        ) from None
    module, example = _ready(net)

    def write(dynamic: bool) -> bytes:
        buffer = io.BytesIO()
        axes = {"input": {0: "batch"}} if dynamic else None
        torch.onnx.export(
            module,
            (example,),
            buffer,  # type: ignore[arg-type]  # the exporter that is asked for takes it
            dynamo=False,  # the other exporter needs onnxscript and takes many times as long
            opset_version=OPSET,
            input_names=["input"],
            dynamic_axes=axes,
        )
        checker.checker.check_model(checker.load_model_from_string(buffer.getvalue()))
        return buffer.getvalue()

    def runner(data: bytes) -> Callable[[Tensor], list[Tensor]]:
        session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda x: [torch.from_numpy(np.asarray(y)) for y in session.run(None, {name: x.numpy()})]

    return _verified(net, module, write, runner, "ONNX", f"onnxruntime {runtime.__version__}")


def pt2(net: Net) -> tuple[bytes, Checked]:
    """The network as a program of torch.export, and how it was verified.

    Raises:
        ModelError: it cannot be exported, or the program gives other outputs.
    """
    module, _ = _ready(net)
    pair = net.input.example(2)

    def write(dynamic: bool) -> bytes:
        shapes = ({0: torch.export.Dim.DYNAMIC},) if dynamic else None
        program = torch.export.export(module, (pair if dynamic else pair[:1],), dynamic_shapes=shapes)
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        return buffer.getvalue()

    def runner(data: bytes) -> Callable[[Tensor], list[Tensor]]:
        program = torch.export.load(io.BytesIO(data)).module()
        return lambda x: list(flatten(program(x)))

    return _verified(net, module, write, runner, "torch.export", f"torch {torch.__version__}")


def _ready(net: Net) -> tuple[nn.Module, Tensor]:
    return net.copy().cpu(), net.input.example()


Runner = Callable[[Tensor], list[Tensor]]


def _verified(
    net: Net,
    module: nn.Module,
    write: Callable[[bool], bytes],
    runner: Callable[[bytes], Runner],
    what: str,
    by: str,
) -> tuple[bytes, Checked]:
    """The export for batches of any size; where the network does not allow that, for one image."""
    reason = ""
    for dynamic in (True, False):
        try:
            with _quietly():
                data = write(dynamic)
                error = max(
                    _difference(net, module, runner(data), batch) for batch in (BATCHES if dynamic else (1,))
                )
        except Exception as problem:  # exporters and runtimes raise all kinds
            reason = f"{type(problem).__name__}: {' '.join(str(problem).split())[:300]}"
            continue
        if not error <= LOOSE.get(net.input.dtype, 0.05):
            reason = f"its outputs differ by {error:.1e} of the largest"
            continue
        return data, Checked(by, error, "any" if dynamic else 1)
    raise ModelError(
        f"{net.name} cannot be exported to {what} ({reason}); nothing was written: leave this format out."
    )


def _difference(net: Net, module: nn.Module, run: Runner, batch: int) -> float:
    x = net.input.example(batch, seed=batch)
    expected, given = list(flatten(module(x))), run(x)
    if [tuple(y.shape) for y in expected] != [tuple(y.shape) for y in given]:
        shapes = [[list(y.shape) for y in side] for side in (given, expected)]
        raise ValueError(f"outputs have the shapes {shapes[0]} and should have {shapes[1]}")
    worst = 0.0
    for y, z in zip(expected, given, strict=True):
        if y.numel():
            worst = max(
                worst, float((y.double() - z.double()).abs().max() / y.double().abs().max().clamp_min(1e-30))
            )
    return worst


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """onnxruntime starts to collect when it is imported, unless this is set; convscope calls nobody."""
    before = os.environ.get("ORT_DISABLE_TELEMETRY")
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["ORT_DISABLE_TELEMETRY"]
        else:
            os.environ["ORT_DISABLE_TELEMETRY"] = before


@contextmanager
def _quietly() -> Iterator[None]:
    with warnings.catch_warnings(), torch.no_grad(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # exporters warn of their own future
        yield
