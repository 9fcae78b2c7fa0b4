"""A picture of any number of channels as something to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image


def to_pil(image: Tensor) -> Image.Image:
    """A picture Tensor [channel, height, width] in [0, 1] as an RGB image.

    One channel is grey; two, or four and more, are laid side by side as grey planes, since no choice of three of them
    would be the picture.
    """
    from PIL import Image

    values = (image.float().clamp(0, 1) * 255).round().to(torch.uint8)
    if len(values) == 3:
        return Image.fromarray(values.permute(1, 2, 0).contiguous().numpy(), "RGB")
    planes = torch.cat(list(values), 1)  # [height, channel * width]
    return Image.fromarray(planes.contiguous().numpy(), "L").convert("RGB")
