"""What a batch of training images goes through: mirrored, moved, made noisy; the targets of a dense prediction with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from convscope.data.fashion import noisy

AUGMENTATIONS: Final = ("flip", "crop")


def augmented(
    images: Tensor,
    targets: Tensor,
    kinds: Sequence[str],
    *,
    shift: int | None,
    noise: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Images [batch, channel, height, width] in [0, 1] and their targets, changed as the generator draws.

    Args:
        images: the inputs.
        targets: of the images; those with a height and width are changed along with them.
        kinds: some of "flip" (half of the images mirrored left to right) and "crop" (moved by up to `shift` pixels along
            either axis; what comes in is black, or class 0).
        shift: in pixels; an eighth of the smaller side where it is None.
        noise: standard deviation of Gaussian noise on the inputs, 0 for none.
        generator: of all choices.

    Example:
        >>> one = torch.arange(4.0).view(1, 1, 2, 2) / 4
        >>> draws = torch.Generator().manual_seed(1)
        >>> augmented(one, torch.tensor([3]), ("crop",), shift=1, noise=0.0, generator=draws)
        (tensor([[[[0.2500, 0.0000],
                  [0.7500, 0.0000]]]]), tensor([3]))
    """
    dense = targets.ndim > 1
    if "flip" in kinds:
        turned = torch.rand(len(images), generator=generator) < 0.5
        images = torch.where(turned[:, None, None, None], images.flip(-1), images)
        if dense:
            targets = torch.where(turned[(...,) + (None,) * (targets.ndim - 1)], targets.flip(-1), targets)
    if "crop" in kinds:
        most = max(1, round(min(images.shape[-2:]) / 8)) if shift is None else shift
        offsets = torch.randint(2 * most + 1, (2, len(images), 1), generator=generator)
        images = _moved(images, most, offsets)
        if dense:
            planes = targets if targets.ndim == 4 else targets[:, None]
            targets = _moved(planes, most, offsets).reshape(targets.shape)
    seed = int(
        torch.randint(2**31, (), generator=generator)
    )  # drawn always, so that noise changes no other choice
    if noise:
        images = noisy(images, noise, seed)
    return images, targets


def _moved(images: Tensor, most: int, offsets: Tensor) -> Tensor:
    """Each image cut out of itself with a black edge of `most` pixels, at its own offsets [2, batch, 1]."""
    count, _, height, width = images.shape
    padded = functional.pad(images, (most,) * 4).movedim(
        1, -1
    )  # [batch, height + 2 most, width + 2 most, channel]
    rows, columns = offsets[0] + torch.arange(height), offsets[1] + torch.arange(width)
    cut = padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return cut.movedim(-1, 1)
