"""Second moments of what layers are given and give, summed over images in one pass.

Those of a convolution's patches are taken from a sample of positions: neighbours tell nearly the same, and a large map has
far more than a covariance needs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from convscope.nn.geometry import pad
from convscope.rewrites.convolution import Convolution

POSITIONS = 256  # of a map at most, an image
WIDE = 1024  # from this width on, a batch is multiplied in float32; sums are float64 always
SHRINK = 1e-3  # of the mean variance, added to each: what the images never show is kept as in the weights


class Moments:
    """Mean and covariance of vectors in a stream, for several groups of variables apart.

    Attributes:
        count: how many vectors there were.
    """

    def __init__(self, groups: int, width: int) -> None:
        self.count = 0
        self._sum = torch.zeros(groups, width, dtype=torch.float64)
        self._squares = torch.zeros(groups, width, width, dtype=torch.float64)

    def add(self, vectors: Tensor) -> None:
        """Adds vectors [group, width, vector]."""
        wide = vectors.shape[1] >= WIDE
        vectors = vectors.float() if wide else vectors.double()
        self.count += vectors.shape[2]
        self._sum += vectors.sum(2, dtype=torch.float64)
        self._squares += vectors @ vectors.mT

    @property
    def mean(self) -> Tensor:
        """[group, width]."""
        return self._sum / max(self.count, 1)

    @property
    def covariance(self) -> Tensor:
        """[group, width, width]."""
        mean = self.mean
        return self._squares / max(self.count, 1) - mean[:, :, None] * mean[:, None, :]


class PatchMoments(Moments):
    """Of the patches that a convolution multiplies its weights with; the order is that of a filter's weights."""

    def __init__(self, conv: Convolution) -> None:
        super().__init__(conv.groups, conv.weight[0].numel())
        self._conv = conv
        self._generator = torch.Generator().manual_seed(0)  # of the positions that are looked at

    def see(self, x: Tensor) -> None:
        """Adds those of a batch [image, channel, height, width], at random positions."""
        conv = self._conv
        x = x[None] if x.ndim == 3 else x
        mode = "zeros" if conv.mode == "partial" else conv.mode
        x = pad(x, conv.sides((x.shape[2], x.shape[3])), mode)
        rows, columns = (
            (n - extent) // stride + 1
            for n, extent, stride in zip(x.shape[2:], conv.extent, conv.stride, strict=True)
        )
        picked = torch.randperm(rows * columns, generator=self._generator)[:POSITIONS]
        down = (picked // columns * conv.stride[0])[:, None] + torch.arange(conv.kernel[0]) * conv.dilation[0]
        right = (picked % columns * conv.stride[1])[:, None] + torch.arange(conv.kernel[1]) * conv.dilation[1]
        patches = x[:, :, down[:, :, None].to(x.device), right[:, None, :].to(x.device)]
        patches = patches.permute(1, 3, 4, 0, 2).flatten(3).flatten(0, 2)  # [channel kernel, image position]
        self.add(patches.unflatten(0, (conv.groups, -1)).cpu())


class OutputMoments(Moments):
    """Of the channels a layer gives, at all positions."""

    def __init__(self, conv: Convolution) -> None:
        super().__init__(conv.groups, conv.channels[1] // conv.groups)
        self._groups = conv.groups

    def see(self, y: Tensor) -> None:
        """Adds those of a batch [image, channel, height, width]."""
        y = y[None] if y.ndim == 3 else y
        self.add(y.transpose(0, 1).flatten(1).unflatten(0, (self._groups, -1)).cpu())
