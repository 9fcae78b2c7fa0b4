"""Which sample goes into which split: drawn by a seed, the classes in proportion."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from convscope.studies.pictures import Pictures
from convscope.studies.sources import Part


def spread(targets: Tensor, seed: int) -> Tensor:
    """All places in an order drawn by the seed in which every first part has the classes in proportion."""
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
    if targets.ndim > 1:
        return order
    turn = torch.empty(len(order), dtype=torch.float64)  # when it is the sample's turn, from 0 to 1
    shuffled = targets[order]
    for label in shuffled.unique():
        own = (shuffled == label).nonzero()[:, 0]
        turn[own] = (torch.arange(len(own), dtype=torch.float64) + 0.5) / len(own)
    return order[turn.argsort(stable=True)]


def cut(part: Part, share: float, seed: int) -> tuple[Part, Part]:
    """A share of at least one sample, and the rest."""
    count = max(1, round(len(part) * share))
    chosen = torch.zeros(len(part), dtype=torch.bool)
    chosen[spread(part.targets, seed)[:count]] = True
    return part.take(where(chosen)), part.take(where(~chosen))


def at_most(part: Part, count: int, seed: int) -> Part:
    """At most so many samples, in their order."""
    return part if len(part) <= count else part.take(spread(part.targets, seed)[:count].sort().values)


def where(chosen: Tensor) -> Tensor:
    """Places of what is chosen."""
    return chosen.nonzero()[:, 0]


def joined(parts: list[Part]) -> Part:
    """All samples, part after part."""
    if len(parts) == 1:
        return parts[0]
    inputs: list[Any] = [part.inputs for part in parts]
    targets = torch.cat([part.targets for part in parts])
    if isinstance(inputs[0], Tensor):
        return Part(torch.cat(inputs), targets)
    if isinstance(inputs[0], list):
        return Part([sentence for part in inputs for sentence in part], targets)
    return Part(Pictures([file for part in inputs for file in part.files], inputs[0].spec), targets)
