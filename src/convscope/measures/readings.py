"""What is done with readings where paths meet: `Counting` adds them up, `Touching` asks whether there is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from convscope.errors import RequestError
from convscope.graph.rules import Step
from convscope.measures.windows import Along


class Algebra(Protocol):
    """What is done with readings where paths meet."""

    def sum(self, parts: Sequence[Tensor]) -> Tensor:
        """Of terms that are added; they broadcast."""

    def product(self, parts: Sequence[Tensor]) -> Tensor:
        """Of arguments of one element-by-element operation; they broadcast."""

    def gather(self, x: Tensor, axes: Sequence[int], alike: int) -> Tensor:
        """All readings along axes, kept with size 1; `alike` of them are channels of one position."""

    def slide(self, x: Tensor, along: Sequence[Along]) -> Tensor:
        """Through windows."""

    def blank(self, x: Tensor, uncovered: Tensor) -> Tensor:
        """x, where `uncovered` marks what a constant filled along the axes of the image."""

    def unknown(self, parts: Sequence[Tensor], step: Step) -> Tensor:
        """Of an operation nothing is known of, or an error."""


class Counting:
    """How often: exact in float64 up to 2^53."""

    def sum(self, parts: Sequence[Tensor]) -> Tensor:
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    def product(self, parts: Sequence[Tensor]) -> Tensor:
        # x * sigmoid(x) reads as often as silu(x)
        return self.sum(parts) / len(parts) if len(parts) > 1 else parts[0]

    def gather(self, x: Tensor, axes: Sequence[int], alike: int) -> Tensor:
        return x.sum(tuple(axes), keepdim=True) / alike

    def slide(self, x: Tensor, along: Sequence[Along]) -> Tensor:
        for part in along:
            x = (x.movedim(part.axis, -1) @ part.taps.T).movedim(-1, part.axis)
        return x

    def blank(self, x: Tensor, uncovered: Tensor) -> Tensor:
        return x

    def unknown(self, parts: Sequence[Tensor], step: Step) -> Tensor:
        raise RequestError(
            f"what {step.reason} reads cannot be counted; choose a layer before it, or ask receptive_field"
        )


@dataclass
class Touching:
    """Whether: 0 or 1 in float32. `unknowns` names operations of which the worst was assumed."""

    unknowns: dict[str, None] = field(default_factory=dict)

    def sum(self, parts: Sequence[Tensor]) -> Tensor:
        total = parts[0]
        for part in parts[1:]:
            total = torch.maximum(total, part)
        return total

    product = sum

    def gather(self, x: Tensor, axes: Sequence[int], alike: int) -> Tensor:
        return x.amax(tuple(axes), keepdim=True)

    def slide(self, x: Tensor, along: Sequence[Along]) -> Tensor:
        for part in along:
            x = (x.movedim(part.axis, -1) @ part.taps.T.float()).movedim(-1, part.axis)
        x = (x > 0).float()
        for part in along:
            shape = [1] * x.ndim
            shape[part.axis] = -1
            x = torch.maximum(x, part.outside.float().view(shape))
        return x

    def blank(self, x: Tensor, uncovered: Tensor) -> Tensor:
        return torch.maximum(x, uncovered.float())

    def unknown(self, parts: Sequence[Tensor], step: Step) -> Tensor:
        self.unknowns[step.reason] = None
        return torch.stack([part.max() for part in parts]).max()
