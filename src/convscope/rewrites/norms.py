"""Batch norms behind layers that were changed: their running statistics matched, so that they give what they gave.

A fit by least squares gives less variance than the layer it stands for. With m0, v0 the mean and variance that reach the norm
before the change and m1, v1 after it, on the same images, a norm of running mean m and variance v becomes

    v' + eps = (v + eps) v1 / v0,    m' = m1 - (m0 - m) sqrt(v1 / v0),

whose output has, channel by channel, the mean and variance it had; nothing moves where nothing changed. (Li, Wang, Shi, Liu,
Hou, "Revisiting Batch Normalization for Practical Domain Adaptation" (2016), put m1, v1 themselves, which would also
move a norm whose running statistics come from other images.)
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from convscope.graph import Graph
from convscope.rewrites import verify
from convscope.rewrites.base import Change, Rule
from convscope.rewrites.calibrate import watched
from convscope.rewrites.work import Site, Work


def behind(graph: Graph, module: nn.Module, layers: Collection[str]) -> dict[str, str]:
    """The batch norms that take the output of one of these layers, and of which; by name."""
    made = {call.outputs[0]: call.name for call in graph.calls if call.name in layers and call.outputs}
    parts = dict(module.named_modules())
    found: dict[str, str] = {}
    for call in graph.calls:
        part = parts.get(call.name)
        if isinstance(part, _BatchNorm) and part.running_mean is not None and call.inputs[0] in made:
            found[call.name] = made[call.inputs[0]]
    return found


def match(rule: Rule, work: Work, before: nn.Module, norms: dict[str, str]) -> None:
    """Matches norms of the copy to what `before` gives them, and puts each on record.

    Both networks run side by side in one pass over the images: each norm is set for the batch before it normalizes, so that
    the ones further on are given what they will be given in the end.

    Args:
        rule: on whose behalf.
        work: the copy after the change, with its images.
        before: the network before it.
        norms: the norm's name, and the layer it is behind.
    """
    old, new = verify.copied(before).float(), verify.copied(work.module).float()
    parts = dict(new.named_modules())
    first = {name: _Channels() for name in norms}
    second = {name: _Channels() for name in norms}
    originals = {name: verify.copied(parts[name]) for name in norms}

    def see_old(name: str) -> object:
        return lambda x: first[name].see(x)

    def see_new(name: str) -> object:
        def see(x: Tensor) -> None:
            second[name].see(x)
            _set(parts[name], originals[name], first[name].last, second[name].last)

        return see

    count = 0
    with (
        watched(old, {name: see_old(name) for name in norms}),  # type: ignore[misc]
        watched(new, {name: see_new(name) for name in norms}),  # type: ignore[misc]
        torch.no_grad(),
    ):
        for x in work.calibration.batches():
            old(x)
            new(x)
            count += len(x)
    modules = dict(work.module.named_modules())
    for name, layer in norms.items():
        part = verify.copied(modules[name])
        _set(part, modules[name], first[name].all, second[name].all)
        note = f"running mean and variance matched behind {layer} on {count} images"
        site = Site(name, modules[name], work.calls(name), work)
        work.replace(rule, site, Change(part, "approximate", notes=(note,)))


def _set(part: nn.Module, original: nn.Module, old: _Sums, new: _Sums) -> None:
    """Gives a norm the running statistics with which its output keeps its mean and variance."""
    running_mean, running_var = original.running_mean, original.running_var
    eps = original.eps
    assert isinstance(running_mean, Tensor)
    assert isinstance(running_var, Tensor)
    assert isinstance(eps, float)
    varies = (old.variance > 0) & (new.variance > 0)
    ratio = torch.where(varies, new.variance / old.variance, 1.0)
    mean = new.mean - (old.mean - running_mean.double()) * ratio.sqrt()
    variance = ((running_var.double() + eps) * ratio - eps).clamp_min(0)
    part.running_mean.copy_(mean)  # type: ignore[operator]
    part.running_var.copy_(variance)  # type: ignore[operator]


@dataclass
class _Sums:
    """Of each channel: how many values, their sum, the sum of their squares."""

    count: int = 0
    sum: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    squares: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    @property
    def mean(self) -> Tensor:
        return self.sum / self.count

    @property
    def variance(self) -> Tensor:
        return (self.squares / self.count - self.mean.square()).clamp_min(0)


class _Channels:
    """Sums over a batch, and over all of them."""

    def __init__(self) -> None:
        self.last, self.all = _Sums(), _Sums()

    def see(self, x: Tensor) -> None:
        """Takes a batch [image, channel, *position]."""
        values = x.detach().double().transpose(0, 1).flatten(1)
        total, squares = values.sum(1), values.square().sum(1)
        self.last = _Sums(values.shape[1], total, squares)
        self.all = _Sums(self.all.count + values.shape[1], self.all.sum + total, self.all.squares + squares)
