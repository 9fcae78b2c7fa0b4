"""The networks that the benchmarks share, and what a layer of one gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional

from convscope import load
from convscope._torchvision import torchvision
from convscope.data import photographs
from convscope.models import InputSpec, Net


def vgg(path: Path) -> Net:
    """VGG-16 without its classifier, which neither tool needs; lucent would run it all the same."""
    with safe_open(path, "pt") as file:
        notes = file.metadata() or {}
        state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
    features = torchvision().models.vgg16().features[:-1]
    features.load_state_dict(state)
    mean, std = (tuple(json.loads(notes[key])) for key in ("mean", "std"))
    return load(_Trunk(features).eval(), input=InputSpec((3, 224, 224), mean, std))


class _Trunk(nn.Module):
    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.features(x)
        return result


class Reached(BaseException):
    """A forward pass has come as far as it was wanted."""


def natural(net: Net, layer: str) -> Tensor:
    """What a layer gives on the embedded photographs, [photograph, channel, *position]."""
    pictures = torch.stack(
        [functional.interpolate(photo.image()[None], net.input.size)[0] for photo in photographs()]
    )
    return excited(net, layer, pictures)


def excited(net: Net, layer: str, pictures: Tensor) -> Tensor:
    """What a layer gives on pictures [picture, channel, height, width] in [0, 1]: [picture, channel, *position]."""
    with torch.no_grad():
        return truncated(net.module, layer, net.input.normalize(pictures))


def living(net: Net, layer: str) -> list[int]:
    """Channels that some sample photograph excites: of a dead one there is no picture to compare."""
    return torch.nonzero(natural(net, layer).amax((0, 2, 3)) > 0)[:, 0].tolist()


def truncated(module: nn.Module, layer: str, x: Tensor) -> Tensor:
    """What a layer gives, by a forward pass that ends there."""
    found: list[Tensor] = []

    def leave(_: nn.Module, args: Any, output: Tensor) -> None:
        found.append(output)
        raise Reached

    handle = module.get_submodule(layer).register_forward_hook(leave)
    try:
        module(x)
    except Reached:
        pass
    finally:
        handle.remove()
    return found[0]
