"""Robustness: a fresh random jitter, scale and rotation for every picture at every step, in one resampling.

A picture that excites a unit only at one exact alignment is noise; one that survives small moves shows what the unit
responds to (Olah et al., 2017). Each unit draws from its own seeded stream, so that its moves do not depend on what
else is in the batch; all draws are made before the loop, so that the loop never waits for the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from convscope.algorithms.kernels import sampler
from convscope.errors import RequestError


@dataclass(frozen=True)
class Robust:
    """Random moves of the canvas.

    Args:
        jitter: largest shift, pixels, along each axis.
        scale: smallest and largest zoom; drawn evenly.
        rotate: largest angle, degrees, either way.
        border: "reflect" the picture at its edge, or a number that fills what lies beyond.
        pad: pixels of border added on each side before the moves.
        noise: standard deviation of Gaussian noise added to the moved picture.
        views: moved copies of each picture a step, averaged.

    Example:
        >>> Robust(jitter=4, rotate=0.0).is_identity
        False
    """

    jitter: float = 8.0
    scale: tuple[float, float] = (0.9, 1.1)
    rotate: float = 10.0
    border: str | float = "reflect"
    pad: int = 0
    noise: float = 0.0
    views: int = 1

    def __post_init__(self) -> None:
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] < math.inf:
            raise RequestError(f"scale={self.scale} must be two positive numbers, the smaller first")
        if not (
            0 <= self.jitter < math.inf and 0 <= self.rotate <= 180 and self.pad >= 0 and self.noise >= 0
        ):
            raise RequestError("jitter, pad and noise must be 0 or more, rotate 0 to 180 degrees")
        if self.border != "reflect" and (isinstance(self.border, str) or not 0 <= self.border <= 1):
            raise RequestError(f"border={self.border!r} must be 'reflect' or a number in [0, 1]")
        if self.views < 1:
            raise RequestError(f"views={self.views} must be 1 or more")

    @property
    def is_identity(self) -> bool:
        """Whether the picture is passed on as it is."""
        still = self.jitter == 0 and self.scale == (1.0, 1.0) and self.rotate == 0
        return still and self.pad == 0 and self.noise == 0

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Moves of one unit: Tensor [count, 4] of (x shift, y shift, scale, angle), pixels and radians."""
        uniform = torch.rand(count, 4, generator=generator)
        low, high = self.scale
        shift = (uniform[:, :2] * 2 - 1) * self.jitter
        scale = low + (high - low) * uniform[:, 2:3]
        angle = (uniform[:, 3:] * 2 - 1) * math.radians(self.rotate)
        return torch.cat([shift, scale, angle], 1)

    def room(self) -> int:
        """Pixels a canvas needs, along each axis, beyond what must stay in view."""
        return math.ceil(2 * self.jitter)


NONE = Robust(jitter=0.0, scale=(1.0, 1.0), rotate=0.0)
LUCID = Robust(jitter=12.0, scale=(0.9, 1.1), rotate=10.0, border=0.5, pad=12)


class Mover:
    """Applies moves to pictures of one size."""

    def __init__(self, robust: Robust, size: tuple[int, int], device: torch.device) -> None:
        self.robust = robust
        height, width = size
        self.size = size
        self.out = (height + 2 * robust.pad, width + 2 * robust.pad)
        out_height, out_width = self.out
        # Pixel centres of the output, measured in pixels from the middle of the canvas.
        self.y = (torch.arange(out_height, device=device) - (out_height - 1) / 2.0)[:, None]
        self.x = (torch.arange(out_width, device=device) - (out_width - 1) / 2.0)[None, :]

    def grid(self, moves: Tensor) -> Tensor:
        """Where each output pixel of each unit looks: [unit, height, width, 2] in grid_sample's coordinates."""
        shift_x, shift_y, scale, angle = moves.unbind(1)  # each [unit]
        cosine = (torch.cos(angle) / scale)[:, None, None]
        sine = (torch.sin(angle) / scale)[:, None, None]
        x = cosine * self.x - sine * self.y + shift_x[:, None, None]
        y = sine * self.x + cosine * self.y + shift_y[:, None, None]
        return torch.stack([x * (2.0 / self.size[1]), y * (2.0 / self.size[0])], -1)

    def is_quick(self, images: Tensor) -> bool:
        """Whether `look` serves such pictures: machine code for some cases, otherwise torch's own operations."""
        return self.robust.border == "reflect" and sampler.refuses(images) is None

    def look(self, images: Tensor, moves: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
        """`gain * moved + shift`, gain and shift [channel], in one pass: channels last, for `is_quick` pictures."""
        seen: Tensor = _Look.apply(images, self.maps(moves), gain, shift, self.out)
        return seen

    def maps(self, moves: Tensor) -> Tensor:
        """Where output pixel (row, column) looks, as `sampler.look` takes it: [unit, 6]."""
        shift_x, shift_y, scale, angle = moves.double().unbind(1)  # each [unit]
        cosine, sine = torch.cos(angle) / scale, torch.sin(angle) / scale
        (height, width), (right, bottom) = self.size, ((self.out[1] - 1) / 2, (self.out[0] - 1) / 2)
        x = shift_x - cosine * right + sine * bottom + width / 2
        y = shift_y - sine * right - cosine * bottom + height / 2
        return torch.stack([cosine, -sine, x, sine, cosine, y], 1).float()

    def __call__(self, images: Tensor, moves: Tensor) -> Tensor:
        """Moves pictures [unit, channel, height, width] by moves [unit, 4]."""
        grid = self.grid(moves)
        if self.robust.border == "reflect":
            return functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
        fill = float(self.robust.border)
        moved = functional.grid_sample(images - fill, grid, padding_mode="zeros", align_corners=False)
        return moved + fill


class _Look(torch.autograd.Function):
    """`sampler.look` with its gradient by the pictures."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, maps: Tensor, gain: Tensor, shift: Tensor, size: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(maps, gain, shift)
        ctx.shape = images.shape
        return sampler.look(images, maps, gain, shift, size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        maps, gain, shift = ctx.saved_tensors
        return sampler.gradient(gradients[0], maps, gain, shift, ctx.shape), None, None, None, None


def draw(robust: Robust, count: int, generators: Sequence[torch.Generator]) -> Tensor:
    """Moves for all steps of all units: Tensor [count, unit, 4]."""
    return torch.stack([robust.draw(count, generator) for generator in generators], 1)
