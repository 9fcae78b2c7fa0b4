"""Ways to bring an image of any size to a network of one size, as a module in front of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

Pair = tuple[int, int]


class Fitted(nn.Module):
    """A network behind a way to bring images to the size it was made for.

    - "resize": squeezed to that size, bilinearly, with antialiasing.
    - "crop": the centre.
    - "pad": all of it, shrunk with its proportions kept where it is too large, in the centre of a plain ground.
    - "tiles": the fewest windows that cover it, spread evenly; their outputs are averaged.

    Args:
        net: the network; its weights keep their names, behind `net.`.
        size: (height, width) that it takes.
        how: one of these ways.
        ground: for "pad": the value of each channel around the image, in the network's own units.

    Example:
        >>> layer = Fitted(nn.AdaptiveAvgPool2d(1), (4, 4), "tiles")
        >>> layer(torch.arange(24.0).view(1, 1, 4, 6)).flatten()  # two windows, two pixels apart
        tensor([11.5000])
    """

    ground: Tensor

    def __init__(self, net: nn.Module, size: Pair, how: str, ground: tuple[float, ...] = (0.0,)) -> None:
        super().__init__()
        self.net, self.size, self.how = net, size, how
        self.register_buffer("ground", torch.tensor(ground).view(-1, 1, 1), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """`[batch, channels, height, width]` of any size to what the network gives."""
        if self.how == "resize":
            y: Tensor = self.net(resized(input, self.size))
        elif self.how == "crop":
            (top, left), (height, width) = centre(input.shape[2:], self.size), self.size
            y = self.net(input[:, :, top : top + height, left : left + width])
        elif self.how == "pad":
            y = self.net(self._padded(input))
        else:
            rows, columns = (tiles(n, m) for n, m in zip(input.shape[2:], self.size, strict=True))
            height, width = self.size
            parts = [input[:, :, i : i + height, j : j + width] for i in rows for j in columns]
            y = self.net(torch.cat(parts)).unflatten(0, (len(parts), -1)).mean(0)
        return y

    def _padded(self, x: Tensor) -> Tensor:
        scale = min(1.0, *(m / n for n, m in zip(x.shape[2:], self.size, strict=True)))
        inner = (max(1, round(x.shape[2] * scale)), max(1, round(x.shape[3] * scale)))
        if scale < 1:
            x = resized(x, inner)
        top, left = centre(self.size, inner)
        ground = self.ground.to(x.dtype)
        sides = (left, self.size[1] - inner[1] - left, top, self.size[0] - inner[0] - top)
        return functional.pad(x - ground, sides) + ground

    def extra_repr(self) -> str:
        """The size and the way."""
        return f"size={self.size}, how={self.how!r}"


def resized(x: Tensor, size: Pair) -> Tensor:
    """Squeezed to a size; itself where it has it."""
    if tuple(x.shape[2:]) == size:
        return x
    return functional.interpolate(x, size, mode="bilinear", antialias=True)


def centre(outer: Pair | torch.Size, inner: Pair) -> Pair:
    """Where the centred part begins."""
    return (outer[0] - inner[0]) // 2, (outer[1] - inner[1]) // 2


def tiles(size: int, window: int) -> list[int]:
    """Where the fewest windows begin that cover an axis, spread evenly.

    Example:
        >>> tiles(320, 224), tiles(224, 224), tiles(700, 224)
        ([0, 96], [0], [0, 159, 317, 476])
    """
    count = math.ceil(size / window)
    return [
        (k * (size - window) * 2 + count - 1) // (2 * (count - 1)) if count > 1 else 0 for k in range(count)
    ]
