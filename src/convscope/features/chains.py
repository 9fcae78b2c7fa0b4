"""Runs of convolutions and clips that nobody looks into, each computed as one operation.

A mobile network is a chain of small operations: on a CPU their overhead and their passes through memory cost as much
as their arithmetic. Where the executed graph shows that values go from one convolution or clip to the next and
nowhere else, the first module computes the whole run, and the others become identities. Within it a depthwise
convolution takes the clips before and after it along (machine code, forward and backward), and autograd sees one
operation. What is computed stays the same; where machine code does not serve, the modules run one by one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from convscope.algorithms.kernels import depthwise, depthwise_gradient, expanded, few_channels, threads
from convscope.algorithms.kernels.depthwise import Bounds
from convscope.algorithms.kernels.host import current
from convscope.algorithms.problem import Problem
from convscope.features.quicker import Clip, SameConv2d, ends_of_same, has_hooks, is_same
from convscope.graph import Graph, Op


def join(module: nn.Module, graph: Graph, protected: Iterable[str] = ()) -> int:
    """Joins runs around depthwise convolutions, in place; returns how many.

    Args:
        module: a private, frozen copy, its norms folded and its modules quickened.
        graph: as recorded from the original.
        protected: names of the layers whose output will be read.
    """
    parts = dict(module.named_modules(remove_duplicate=False))
    runs = _runs(module, graph, set(protected))
    for run in runs:
        chain = Chain([parts[name] for name in run])
        for place, name in enumerate(run):
            parent, _, child = name.rpartition(".")
            parts[parent]._modules[child] = (nn.Identity() if place else chain).train(parts[name].training)
    return len(runs)


def _runs(module: nn.Module, graph: Graph, protected: set[str]) -> list[list[str]]:
    """Names of convolutions and clips that follow one another, around at least one depthwise convolution."""
    if any(part._backward_hooks or part._backward_pre_hooks for part in module.modules()):
        return []
    links = _Links(module, graph, protected)
    runs, taken = [], set()
    for op in graph.ops:
        if op.module in taken or not links.is_convolution(op.module):
            continue
        run = links.follow(op.module)
        parts = [links.parts[name] for name in run]
        if len(run) > 1 and any(is_depthwise(part) for part in parts):
            runs.append(run)
            taken.update(run)
    return runs


class _Links:
    """Who hands its output to whom, and to nobody else."""

    def __init__(self, module: nn.Module, graph: Graph, protected: set[str]) -> None:
        self.parts = {name: part for name, part in module.named_modules(remove_duplicate=False) if name}
        self.protected = protected
        self.read = {value for call in graph.calls if call.name in protected for value in call.outputs}
        self.readers: dict[int, list[Op]] = {}
        for op in graph.ops:
            for value in op.inputs:
                self.readers.setdefault(value, []).append(op)
        self.outputs: dict[str, int] = {}
        runs: dict[str, int] = {}
        for call in graph.calls:
            runs[call.name] = runs.get(call.name, 0) + 1
            if len(call.outputs) == 1:
                self.outputs[call.name] = call.outputs[0]
        names: dict[int, int] = {}
        for part in self.parts.values():
            names[id(part)] = names.get(id(part), 0) + 1
        self.once = {
            name for name, part in self.parts.items() if runs.get(name) == 1 and names[id(part)] == 1
        }
        self.counts: dict[str, int] = {}
        for op in graph.ops:
            self.counts[op.module] = self.counts.get(op.module, 0) + 1

    def is_convolution(self, name: str) -> bool:
        """Whether the module is a convolution that a chain may run."""
        part = self.parts.get(name)
        return part is not None and self._is_free(name, part) and is_plain(part)

    def _is_free(self, name: str, part: nn.Module) -> bool:
        return name in self.once and name not in self.protected and not has_hooks(part)

    def follow(self, first: str) -> list[str]:
        """The longest run from a convolution on."""
        run, value = [first], self.outputs.get(first)
        while value is not None and value not in self.read and len(self.readers.get(value, ())) == 1:
            (op,) = self.readers[value]
            part = self.parts.get(op.module)
            if part is None or not self._is_free(op.module, part):
                break
            if _is_folded(op, part):
                value = op.outputs[0]
                continue
            if not (is_plain(part) or bounds_of(part) is not None):
                break
            run.append(op.module)
            value = self.outputs.get(op.module)
        # the clipped output is kept for the gradient
        if bounds_of(self.parts[run[-1]]) is not None and self.is_overwritten(self.outputs.get(run[-1])):
            run.pop()
        return run

    def is_overwritten(self, value: int | None) -> bool:
        """Whether an operation writes to a value's memory."""
        return any(
            op.name.endswith("_") or op.name == "convscope.write" for op in self.readers.get(value or -1, ())
        )


def _is_folded(op: Op, part: nn.Module) -> bool:
    """Whether the operation is of a norm whose module no longer computes it."""
    return "batch_norm" in op.name and not isinstance(part, nn.modules.batchnorm._BatchNorm)


def is_plain(part: nn.Module) -> bool:
    """Whether it is a convolution of zeros' padding, with a weight of its own."""
    if isinstance(part, SameConv2d):
        return True
    if type(part) is not nn.Conv2d and not is_same(part):
        return False
    assert isinstance(part, nn.Conv2d)
    return (
        part.padding_mode == "zeros"
        and not isinstance(part.padding, str)
        and not getattr(part, "parametrizations", None)
    )


def is_depthwise(part: nn.Module) -> bool:
    """Whether each channel of a convolution has a kernel of its own."""
    weight = getattr(part, "weight", None)
    if not is_plain(part) or not isinstance(weight, Tensor) or weight.shape[1] != 1:
        return False
    return bool(part.groups == len(weight) > 1) and tuple(getattr(part, "dilation", (1, 1))) == (1, 1)


def is_expansion(part: nn.Module) -> bool:
    """Whether it is a pointwise convolution of few channels, cheap enough to be done twice."""
    return (
        type(part) is nn.Conv2d
        and part.kernel_size == part.stride == (1, 1)
        and part.padding == (0, 0)
        and part.groups == 1
        and part.in_channels <= expanded.MOST_VECTORS * current().width
    )


def is_few(part: nn.Module) -> bool:
    """Whether it is a convolution of a picture's few channels that machine code serves."""
    weight = getattr(part, "weight", None)
    if not is_plain(part) or not isinstance(weight, Tensor) or part.groups != 1:
        return False
    numbers = weight.shape[1] * weight.shape[2] * weight.shape[3]
    small = weight.shape[1] <= few_channels.LANES and numbers <= few_channels.MOST_VECTORS * current().width
    return small and tuple(getattr(part, "dilation", (1, 1))) == (1, 1)


def bounds_of(part: nn.Module) -> Bounds | None:
    """What a clipping activation clips to, or None."""
    if isinstance(part, Clip):
        return part.low, part.high
    if type(part) is nn.ReLU:
        return depthwise.RELU
    return None


class Chain(nn.Module):
    """A run of convolutions and clips as one operation."""

    def __init__(self, steps: list[nn.Module]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)
        self._stages: list[_Stage] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without machine code, which a copy makes for itself."""
        return {**vars(self), "_stages": None}

    def forward(self, x: Tensor) -> Tensor:
        """The modules one after the other."""
        watched = torch._C._len_torch_function_stack() > 0  # someone looks for activation functions
        if watched or not _serves(x):
            for step in self.steps:
                x = step(x)
            return x
        return self._run(x)

    def _run(self, x: Tensor) -> Tensor:
        """All of them at once."""
        if self._stages is None:
            self._stages = _stages(list(self.steps))
        result: Tensor = _Run.apply(x, self._stages)
        return result


def _serves(x: Tensor) -> bool:
    plain = x.ndim == 4 and x.dtype == torch.float32 and x.device.type == "cpu" and x.numel() > 0
    return plain and current().refuses() is None and threads.refuses() is None


class _Run(torch.autograd.Function):
    """All stages of a chain, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stages: list[_Stage]) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        kept: list[tuple[Tensor, ...]] = []
        for stage in stages:
            x, own = stage.run(x)
            kept.append(own)
        ctx.stages, ctx.counts = stages, [len(own) for own in kept]
        ctx.save_for_backward(*(tensor for own in kept for tensor in own))
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient, saved = gradients[0], list(ctx.saved_tensors)
        for stage, count in zip(reversed(ctx.stages), reversed(ctx.counts), strict=True):
            own = saved[len(saved) - count :]
            del saved[len(saved) - count :]
            gradient = stage.back(gradient, *own)
        return gradient, None


class _Stage:
    """One step: `run` gives its output and what its `back` needs beside the gradient."""

    def run(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        raise NotImplementedError

    def back(self, gradient: Tensor, *kept: Tensor) -> Tensor:
        raise NotImplementedError


def _stages(steps: list[nn.Module]) -> list[_Stage]:
    """Depthwise convolutions with the clips around them and the expansion before; what is left by itself."""
    stages: list[_Stage] = []
    k = 0
    while k < len(steps):
        expansion = steps[k] if is_expansion(steps[k]) else None
        middle = k + (expansion is not None)
        before = bounds_of(steps[middle]) if middle < len(steps) else None
        middle += before is not None
        if middle < len(steps) and is_depthwise(steps[middle]):
            after = bounds_of(steps[middle + 1]) if middle + 1 < len(steps) else None
            if expansion is None:
                stages.append(_Depthwise(steps[middle], before, after))
            else:
                stages.append(_Expanded(expansion, steps[middle], before, after))
            k = middle + 1 + (after is not None)
        elif expansion is None and before is not None:
            stages.append(_Clip(*before))
            k += 1
        else:
            stages.append(_Few(steps[k]) if is_few(steps[k]) else _Dense(steps[k]))
            k += 1
    return stages


@dataclass
class _Clip(_Stage):
    """Clamps the output of the convolution before, in place."""

    low: float
    high: float

    def run(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        x.clamp_(self.low, self.high)
        return x, (x,)

    def back(self, gradient: Tensor, *kept: Tensor) -> Tensor:
        if self.high == math.inf:
            result: Tensor = torch.ops.aten.threshold_backward(gradient, kept[0], self.low)
        else:
            result = torch.ops.aten.hardtanh_backward(gradient, kept[0], self.low, self.high)
        return result


class _Few(_Stage):
    """A convolution of few channels in machine code; one kernel a shape of input."""

    def __init__(self, part: nn.Module) -> None:
        self.part = part
        self._kernels: dict[tuple[int, ...], few_channels.FewKernel] = {}

    def _kernel(self, x: Tensor) -> few_channels.FewKernel:
        found = self._kernels.get(tuple(x.shape))
        if found is None:
            part: Any = self.part
            found = few_channels.prepare(_problem(part, x), part.weight, part.bias)
            self._kernels[tuple(x.shape)] = found
        return found

    def run(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self._kernel(x)(x), (x,)

    def back(self, gradient: Tensor, *kept: Tensor) -> Tensor:
        return self._kernel(kept[0]).gradient(gradient)


class _Dense(_Stage):
    """A convolution by torch's own kernels; "same" padding that is uneven is a padded copy or a grown kernel."""

    def __init__(self, part: nn.Module) -> None:
        self.part = part

    def run(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        part: Any = self.part
        if not is_same(part):
            return part(x), (x,)
        (top, bottom), (left, right) = _same_padding(part, x)
        padded = functional.pad(x, (left, right, top, bottom))
        return functional.conv2d(padded, part.weight, part.bias, part.stride, 0, 1, part.groups), (padded, x)

    def back(self, gradient: Tensor, *kept: Tensor) -> Tensor:
        part: Any = self.part
        if isinstance(part, SameConv2d):
            (top, bottom), (left, right) = _same_padding(part, kept[0])
            weight, padding = part.kernel((bottom - top, right - left)), (bottom, right)
        else:
            weight = part.weight
            padding = (0, 0) if is_same(part) else part.padding
        dilation = getattr(part, "dilation", (1, 1))
        result: Tensor = torch.ops.aten.convolution_backward(
            gradient, kept[0], weight, None, part.stride, padding, dilation, False, (0, 0), part.groups,
            (True, False, False),
        )[0]  # fmt: skip
        if is_same(part):
            (top, _), (left, _) = _same_padding(part, kept[1])
            high, wide = kept[1].shape[2:]
            result = result[..., top : top + high, left : left + wide]
        return result


def _same_padding(part: Any, x: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
    down, across = (
        ends_of_same(x.shape[2 + axis], part.weight.shape[2 + axis], part.stride[axis]) for axis in (0, 1)
    )
    return down, across


def _problem(part: Any, x: Tensor) -> Problem:
    """The convolution of x by a module."""
    same = isinstance(part, SameConv2d) or is_same(part)
    padding = _same_padding(part, x) if same else part.padding
    return Problem.of(x, part.weight, part.stride, padding, 1, part.groups)


def _kept(x: Tensor, y: Tensor, after: Bounds | None) -> tuple[Tensor, ...]:
    """What a gradient needs: the output only where it was clipped, so that a later module may overwrite it."""
    return (x,) if after is None else (x, y)


class _Expanded(_Stage):
    """A pointwise convolution, a depthwise one and the clips around it; what is between is never stored."""

    def __init__(
        self, expansion: nn.Module, part: nn.Module, before: Bounds | None, after: Bounds | None
    ) -> None:
        self.expansion, self.part, self.before, self.after = expansion, part, before, after
        self._kernels: dict[tuple[int, ...], expanded.ExpandedKernel] = {}

    def _kernel(self, x: Tensor) -> expanded.ExpandedKernel:
        found = self._kernels.get(tuple(x.shape))
        if found is None:
            wide: Any = self.expansion
            part: Any = self.part
            between = x.new_empty(1).expand(len(x), wide.out_channels, *x.shape[2:])
            found = self._kernels[tuple(x.shape)] = expanded.prepare(
                _problem(part, between),
                (wide.weight, wide.bias),
                part.weight,
                part.bias,
                self.before,
                self.after,
            )
        return found

    def run(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        y = self._kernel(x)(x)
        return y, _kept(x, y, self.after)

    def back(self, gradient: Tensor, *kept: Tensor) -> Tensor:
        return self._kernel(kept[0]).gradient(gradient, kept[-1], kept[0])


class _Depthwise(_Stage):
    """A depthwise convolution with the clips before and after it, in machine code; one kernel a shape of input."""

    def __init__(self, part: nn.Module, before: Bounds | None, after: Bounds | None) -> None:
        self.part, self.before, self.after = part, before, after
        self._kernels: dict[
            tuple[int, ...], tuple[depthwise.DepthwiseKernel, depthwise_gradient.GradientKernel]
        ] = {}

    def _kernel(self, x: Tensor) -> tuple[depthwise.DepthwiseKernel, depthwise_gradient.GradientKernel]:
        found = self._kernels.get(tuple(x.shape))
        if found is None:
            part: Any = self.part
            problem = _problem(part, x)
            found = (
                depthwise.prepare(problem, part.weight, part.bias, before=self.before, after=self.after),
                depthwise_gradient.prepare(problem, part.weight, before=self.before, after=self.after),
            )
            self._kernels[tuple(x.shape)] = found
        return found

    def run(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        y = self._kernel(x)[0](x)
        return y, _kept(x, y, self.after)

    def back(self, gradient: Tensor, *kept: Tensor) -> Tensor:
        return self._kernel(kept[0])[1](gradient, kept[-1], kept[0])
