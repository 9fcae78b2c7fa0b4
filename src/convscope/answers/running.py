"""A network run on images: what it gives, what its layers take and give, how far two outputs are apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from convscope.errors import ConvscopeError, ModelError
from convscope.models import Net


def outputs(net: Net, x: Tensor, batch: int = 64) -> Tensor:
    """What a network gives for images, on a private copy: its first tensor, float32, on the CPU."""
    module = net.copy()
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad():
            pieces = [module(part.to(device)) for part in x.split(batch)]
    except ConvscopeError:
        raise
    except Exception as error:  # the network's own code: anything may come
        raise _failure(net, x, error) from error
    first = [piece if isinstance(piece, Tensor) else next(iter(piece)) for piece in pieces]
    return torch.cat(first).float().cpu()


def changes(before: Tensor, after: Tensor) -> Tensor:
    """Relative rms change of the output of each image, Tensor [image]: of its spread over the images."""
    spread = (
        (before - before.mean(0, keepdim=True)).flatten(1).norm(dim=1).mean() if len(before) > 1 else None
    )
    size = before.flatten(1).norm(dim=1).mean() if spread is None or float(spread) == 0 else spread
    return (after - before).flatten(1).norm(dim=1) / size.clamp(min=1e-30)


def captured(
    net: Net, x: Tensor, layers: Sequence[str], dtype: torch.dtype = torch.float64
) -> dict[str, tuple[Tensor, Tensor]]:
    """What layers take and give on images: name -> first input and output of their last call, on a private copy.

    Args:
        net: the network.
        x: network input, [image, channel, height, width].
        layers: dotted names of modules.
        dtype: to compute in.

    Raises:
        ModelError: the network fails before all of them have run; what fails behind them does not matter.
    """
    module = net.copy().to(dtype)
    kept: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str) -> Any:
        def after(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            kept[name] = (inputs[0].clone(), output.clone())

        return after

    for name in layers:
        module.get_submodule(name).register_forward_hook(keep(name))
    try:
        with torch.no_grad():
            module(x.to(next((p.device for p in module.parameters()), torch.device("cpu")), dtype))
    except Exception as error:  # as a dense layer behind them does on a larger image
        if len(kept) < len(set(layers)):
            if isinstance(error, ConvscopeError):
                raise
            raise _failure(net, x, error) from error
    return kept


def _failure(net: Net, x: Tensor, error: Exception) -> ModelError:
    reason = " ".join(str(error).split())[:200]
    return ModelError(
        f"{net.name} fails on input of shape {list(x.shape)} ({type(error).__name__}: {reason}); give images that it can take"
    )
