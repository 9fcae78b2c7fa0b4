"""A small CNN that looks at its images in a frame: the object larger or smaller, off the centre, at another resolution, noisy.

What a study changes of the data stands here as a layer in front of the network, so that one data set serves all levels.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from convscope.errors import RequestError, UnknownName, nearest
from convscope.nn.geometry import Size, whole_numbers
from convscope.studies.networks.small import small_cnn

PLACES: Final = ("centre", "scattered")
_PATTERNS: Final = 64  # of noise


def framed_cnn(
    *,
    in_channels: int = 1,
    classes: int = 10,
    size: Size = 28,
    frame: int = 28,
    object_size: int = 28,
    place: str = "centre",
    noise: float = 0.0,
    **arguments: Any,
) -> nn.Sequential:
    """`small_cnn` behind a `Frame`.

    Args:
        in_channels: of the images.
        classes: numbers for each image.
        size: of the images that are given; they are resized whatever it is.
        frame: pixels of the picture that the network sees, a side.
        object_size: pixels that the image is resized to, a side; the rest of the frame is its darkest value.
        place: "centre", or "scattered": somewhere else in the frame for each image.
        noise: standard deviation, in standard deviations of the data, of noise that images have when the network is
            used, not while it is trained.
        **arguments: of `small_cnn`.

    Returns:
        A module from `[batch, in_channels, height, width]` to `[batch, classes]`.

    Raises:
        UnknownName, RequestError: as for `Frame` and `small_cnn`.

    Example:
        >>> framed_cnn(frame=20, object_size=10, place="scattered")(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    net = small_cnn(in_channels=in_channels, classes=classes, size=frame, **arguments)
    return nn.Sequential(Frame(frame, object_size, place, noise), net)


class Frame(nn.Module):
    """Resizes images, puts each into a frame, and adds noise in eval mode.

    The place of a scattered image, and its noise, follow from the image itself (how many of its pixels are brighter than
    its darkest one, of the even and of the odd columns, modulo the number of places): the same image always lies at the
    same place, in training and in testing.

    Args:
        frame: pixels of what comes out, a side.
        object_size: pixels of the image within.
        place: "centre" or "scattered".
        noise: standard deviation.

    Raises:
        UnknownName: there is no such place.
        RequestError: the object does not fit into the frame, or the noise is negative.

    Example:
        >>> y = Frame(4, 2)(torch.ones(1, 1, 2, 2) + torch.eye(2))
        >>> y[0, 0].tolist()
        [[1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 1.0, 1.0], [1.0, 1.0, 2.0, 1.0], [1.0, 1.0, 1.0, 1.0]]
    """

    def __init__(self, frame: int, object_size: int, place: str = "centre", noise: float = 0.0) -> None:
        super().__init__()
        (self.frame,), (self.object_size,) = (
            whole_numbers(frame, 1, "frame"),
            whole_numbers(object_size, 1, "object_size"),
        )
        if object_size > frame:
            raise RequestError(f"object_size={object_size} must be at most frame={frame}")
        if place not in PLACES:
            raise UnknownName(
                f"place={place!r} must be one of {', '.join(PLACES)}{nearest(str(place), PLACES)}"
            )
        if not noise >= 0:
            raise RequestError(f"noise={noise} must be a standard deviation, 0 or more")
        self.place, self.noise = place, noise
        drawn = torch.randn(_PATTERNS, 1, frame, frame, generator=torch.Generator().manual_seed(0))
        self.register_buffer("patterns", drawn if noise else None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, channel, height, width]` to `[batch, channel, frame, frame]`."""
        dark = x.amin((1, 2, 3), keepdim=True)
        bright = (x > dark).any(1)  # [batch, height, width]
        even, odd = bright[..., ::2].sum((1, 2)), bright[..., 1::2].sum((1, 2))  # [batch]
        if x.shape[2:] != (self.object_size, self.object_size):
            size = (self.object_size, self.object_size)
            x = functional.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
        room = self.frame - self.object_size
        if room:
            top, left = (
                (even % (room + 1), odd % (room + 1)) if self.place == "scattered" else (room // 2, room // 2)
            )
            x = self._placed(x, dark, top, left)
        if self.noise and not self.training:
            patterns = self.patterns
            assert isinstance(patterns, Tensor)
            x = x + self.noise * patterns[(even + 7 * odd) % _PATTERNS]
        return x

    def _placed(self, x: Tensor, dark: Tensor, top: Tensor | int, left: Tensor | int) -> Tensor:
        """Images with their upper left corners there, in a frame of the darkest value."""
        batch, channels = x.shape[:2]
        inside = []
        for axis, start in ((2, top), (3, left)):
            starts = torch.as_tensor(start, device=x.device).expand(batch)
            wanted = torch.arange(self.frame, device=x.device) - starts[:, None]  # [batch, frame]
            inside.append((wanted >= 0) & (wanted < self.object_size))
            shape = (batch, 1, self.frame, 1) if axis == 2 else (batch, 1, 1, self.frame)
            index = wanted.clamp(0, self.object_size - 1).view(shape)
            index = index.expand(
                batch, channels, *(self.frame if k <= axis else self.object_size for k in (2, 3))
            )
            x = x.gather(axis, index)
        whole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        return torch.where(whole, x, dark)

    def extra_repr(self) -> str:
        return f"frame={self.frame}, object_size={self.object_size}, place={self.place!r}, noise={self.noise}"
