"""How much memory a pass takes at its highest, measured: what the allocator was asked for, not what is in use.

On the CPU torch's profiler records every allocation of a tensor, workspaces of torch's own included; what a library
(oneDNN, MKL) takes from the system by itself is out of its sight. On CUDA the caching allocator keeps the figure.
"""

from __future__ import annotations

import gc
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from convscope import timing
from convscope.errors import RequestError
from convscope.graph.record import flatten
from convscope.measures.figures import Sheet, to_html, to_rich
from convscope.measures.trial import Trial, ready
from convscope.models import InputLike, Net, preserved

if TYPE_CHECKING:
    from rich.console import Group


@dataclass(frozen=True)
class PeakMemory:
    """The most memory that a network takes, in bytes; prints as a table.

    Attributes:
        name: the network's.
        shapes: of its inputs, batch included.
        device: where it ran.
        weights: parameters and buffers, each piece of memory once.
        input: the input tensors.
        inference: the most that one pass adds to weights and input at any moment, its result included.
        training: the same of a forward and backward pass in train mode, the gradients of the parameters
            included, what an optimizer keeps not; None where not asked for.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    device: str
    weights: int
    input: int
    inference: int
    training: int | None = None

    @property
    def total(self) -> int:
        """Weights, input and what an inference adds."""
        return self.weights + self.input + self.inference

    @property
    def training_total(self) -> int | None:
        """Weights, input and what a training step adds."""
        return None if self.training is None else self.weights + self.input + self.training

    def to_dict(self) -> dict[str, Any]:
        """Plain values; bytes."""
        return {
            "model": self.name,
            "inputs": [list(shape) for shape in self.shapes],
            "device": self.device,
            "weights": self.weights,
            "input": self.input,
            "inference": self.inference,
            "training": self.training,
            "total": self.total,
            "training_total": self.training_total,
        }

    def _sheet(self) -> Sheet:
        shapes = ", ".join("x".join(map(str, shape)) for shape in self.shapes)
        figures = {
            "weights": self.weights,
            "input": self.input,
            "inference adds": self.inference,
            "inference in all": self.total,
            "training step adds": self.training,
            "training step in all": self.training_total,
        }
        rows = tuple((name, _mib(value)) for name, value in figures.items() if value is not None)
        return Sheet(f"{self.name} on {shapes}: peak memory ({self.device})", ("", "MiB>"), rows)

    def __rich__(self) -> Group:
        return to_rich([self._sheet()])

    def _repr_html_(self) -> str:
        return to_html([self._sheet()])


def _mib(size: int) -> str:
    return f"{size / 2**20:.2f}"


def peak_memory(
    net: Net | nn.Module,
    *,
    input: InputLike | None = None,
    example: Any = None,
    batch: int = 1,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    training: bool = False,
) -> PeakMemory:
    """Measures the most memory that a pass takes, and on request a training step.

    A private copy runs, once before it is measured: what libraries allocate for good is not counted. The training
    step takes the gradients of the parameters that require them, for a gradient of ones at each output.

    Args:
        net: a Net, or a module with `input` or `example`.
        input: what to feed it, instead of the Net's own specification.
        example: the input itself: a tensor, or a tuple of arguments.
        batch: examples at once, where they are drawn.
        device: "cpu" or a CUDA device; that of the network's parameters by default. Its statistics of peak memory
            (`torch.cuda.max_memory_allocated`) begin anew.
        dtype: what weights and input are converted to; by default both stay as they are.
        training: whether to measure a training step too.

    Raises:
        RequestError: the batch, device or type makes no sense, or there is nothing to train.
        ModelError: the network has no values, or fails.
        OutOfMemory: it does not fit.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU())  # 4 x 100 numbers, and 4 x 100 more
        >>> peak_memory(net, input="1x10x10").inference
        3200
    """
    trial = ready(net, input=input, example=example, batch=batch, device=device, dtype=dtype)
    if trial.device.type not in ("cpu", "cuda"):
        raise RequestError(
            f"device={str(trial.device)!r} keeps no record of its memory; give 'cpu' or 'cuda'"
        )
    weights = _size([*trial.module.parameters(), *trial.module.buffers()])
    with preserved(trial.module), trial.worded():
        with torch.no_grad():
            inference = _peak(lambda: trial.module(*trial.arguments), trial.device)
        step = _peak(_step(trial, _trained(net)), trial.device) if training else None
    return PeakMemory(
        trial.name, trial.shapes, str(trial.device), weights, _size(flatten(trial.arguments)), inference, step
    )


def _trained(net: Net | nn.Module) -> list[bool]:
    module = net.module if isinstance(net, Net) else net
    return [parameter.requires_grad for parameter in module.parameters()]


def _step(trial: Trial, trained: list[bool]) -> Callable[[], Any]:
    """A training step of the copy, whose parameters learn where the caller's do."""
    parameters = list(itertools.compress(trial.module.parameters(), trained))
    if not parameters:
        raise RequestError(
            f"training=True, but no parameter of {trial.name} requires a gradient; set requires_grad_() on "
            "those to train"
        )
    for parameter in parameters:
        parameter.requires_grad_(True)
    trial.module.train()

    def step() -> Any:
        with torch.inference_mode(False), torch.enable_grad():
            outputs = trial.module(*trial.arguments)
            ends = [tensor for tensor in flatten(outputs) if tensor.requires_grad]
            if not ends:
                raise RequestError(
                    f"training=True, but no output of {trial.name} depends on a parameter that requires a "
                    "gradient; ask for inference only"
                )
            ones = [torch.ones_like(tensor) for tensor in ends]  # what a loss would send back
            return torch.autograd.grad(ends, parameters, ones, allow_unused=True)

    return step


def _peak(run: Callable[[], Any], device: torch.device) -> int:
    """Bytes that a call holds at its highest beyond what was held before, its result included."""
    run()
    gc.collect()  # what goes while it runs must be its own
    return _peak_cuda(run, device) if device.type == "cuda" else _peak_cpu(run)


def _peak_cpu(run: Callable[[], Any]) -> int:
    if torch._C._autograd._profiler_enabled():
        raise RequestError(
            "peak memory on the CPU takes a profiler of its own; call it outside torch.profiler"
        )
    with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = run()
    del result
    found = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(found, key=lambda event: event.start_ns())]
    return max(itertools.accumulate(sizes), default=0)


@contextmanager
def _quiet() -> Iterator[None]:
    """The profiler's library reads its log level when it first runs, and would else report each run on stderr."""
    name = "KINETO_LOG_LEVEL"
    before = os.environ.get(name)
    os.environ.setdefault(name, "6")
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


def _peak_cuda(run: Callable[[], Any], device: torch.device) -> int:
    timing.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    result = run()
    timing.synchronize(device)
    del result
    return torch.cuda.max_memory_allocated(device) - before


def _size(tensors: Iterable[Tensor]) -> int:
    """Bytes of their memory, each piece once."""
    pieces = {}
    for tensor in tensors:
        if tensor.layout is torch.strided:
            storage = tensor.untyped_storage()
            pieces[storage.data_ptr() or id(tensor)] = storage.nbytes()
        else:
            pieces[id(tensor)] = tensor.numel() * tensor.element_size()
    return sum(pieces.values())
