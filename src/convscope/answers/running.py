"""A network run on images, and how far two outputs are apart."""

from __future__ import annotations

import torch
from torch import Tensor

from convscope.models import Net


def outputs(net: Net, x: Tensor, batch: int = 64) -> Tensor:
    """What a network gives for images, on a private copy: its first tensor, float32, on the CPU."""
    module = net.copy()
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    with torch.no_grad():
        pieces = [module(part.to(device)) for part in x.split(batch)]
    first = [piece if isinstance(piece, Tensor) else next(iter(piece)) for piece in pieces]
    return torch.cat(first).float().cpu()


def changes(before: Tensor, after: Tensor) -> Tensor:
    """Relative rms change of the output of each image, Tensor [image]: of its spread over the images."""
    spread = (
        (before - before.mean(0, keepdim=True)).flatten(1).norm(dim=1).mean() if len(before) > 1 else None
    )
    size = before.flatten(1).norm(dim=1).mean() if spread is None or float(spread) == 0 else spread
    return (after - before).flatten(1).norm(dim=1) / size.clamp(min=1e-30)
