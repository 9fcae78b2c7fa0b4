"""A two-dimensional convolution as numbers, whatever module computes it, and the module that computes given numbers.

torch's Conv2d, timm's Conv2dSame (TensorFlow's "same" padding) and convscope's own are read; what comes out is torch's
where torch can express it, else convscope's.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from convscope import nn as layers
from convscope.rewrites.base import Refused

Pair = tuple[int, int]
Sides = tuple[Pair, Pair]


@dataclass(frozen=True)
class Convolution:
    """What a convolution computes with.

    Attributes:
        weight: [out channel, in channel / groups, height, width], float64.
        bias: [out channel] float64, or None.
        stride, dilation: (height, width).
        padding: ((top, bottom), (left, right)), or "same" (TensorFlow's rule, from the size of the input).
        groups: channels are convolved in so many groups apart.
        mode: "zeros", "reflect", "replicate", "circular" or "partial".
        device: of the module it was read from.
    """

    weight: Tensor
    bias: Tensor | None
    stride: Pair
    padding: Sides | str
    dilation: Pair
    groups: int
    mode: str
    device: torch.device

    @classmethod
    def of(cls, module: nn.Module) -> Convolution:
        """Reads a module.

        Raises:
            Refused: it is no two-dimensional convolution that is known to compute just that.
        """
        if not isinstance(module, nn.Conv2d):
            raise Refused(f"it is a {type(module).__name__}, no two-dimensional convolution")
        is_same = type(module).__name__ == "Conv2dSame" and type(module).__module__.startswith("timm.")
        plain = (
            type(module) in (nn.Conv2d, layers.Conv2d)
            or type(module).__module__ == "torch.nn.utils.parametrize"
        )
        if not (plain or is_same):
            raise Refused(f"it is a {type(module).__name__}, whose forward pass may do more than convolve")
        if getattr(module, "activation", None) is not None:
            raise Refused("an activation is part of it")
        kernel, stride = _pair(module.kernel_size), _pair(module.stride)
        dilation = _pair(module.dilation)
        padding: Any = "same" if is_same else module.padding
        if (
            not is_same and not (isinstance(padding, str) and isinstance(module, layers.Conv2d))
        ) or padding in ("valid", "full"):
            padding = _sides(padding, kernel, dilation)
        exact = copy.deepcopy(
            module
        ).double()  # before reading: a parametrized weight is computed when it is read
        return cls(
            weight=exact.weight.detach(),
            bias=None if exact.bias is None else exact.bias.detach(),
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=module.groups,
            mode=str(module.padding_mode),
            device=module.weight.device,
        )

    @property
    def kernel(self) -> Pair:
        """Height and width of the kernel."""
        return self.weight.shape[2], self.weight.shape[3]

    @property
    def channels(self) -> Pair:
        """(in, out)."""
        return self.weight.shape[1] * self.groups, self.weight.shape[0]

    @property
    def extent(self) -> Pair:
        """Pixels from the first tap of the kernel to the last, both counted."""
        (height, width), (down, right) = self.kernel, self.dilation
        return (height - 1) * down + 1, (width - 1) * right + 1

    def sides(self, size: Pair) -> Sides:
        """Pixels of padding around an input of this height and width."""
        if not isinstance(self.padding, str):
            return self.padding
        found = []
        for n, k, s in zip(size, self.extent, self.stride, strict=True):
            total = max((-(-n // s) - 1) * s + k - n, 0)
            found.append((total // 2, total - total // 2))
        return found[0], found[1]

    def with_(self, **changes: Any) -> Convolution:
        """The same with other numbers."""
        return replace(self, **changes)

    def module(self, algorithm: str = "direct", activation: str | None = None) -> nn.Conv2d:
        """The module that computes it, in float64 on the device it was read from.

        Args:
            algorithm, activation: as `convscope.nn.Conv2d` takes them.
        """
        symmetric = not isinstance(self.padding, str) and all(a == b for a, b in self.padding)
        torch_knows = symmetric and self.mode != "partial"
        more: dict[str, Any] = {"algorithm": algorithm, "activation": activation}
        plain = torch_knows and more == {"algorithm": "direct", "activation": None}
        kind: Any = nn.Conv2d if plain else layers.Conv2d
        padding: Any = self.padding
        if torch_knows:
            assert not isinstance(self.padding, str)
            padding = tuple(side[0] for side in self.padding)
        made: nn.Conv2d = kind(
            *self.channels,
            self.kernel,
            stride=self.stride,
            padding=padding,
            dilation=self.dilation,
            groups=self.groups,
            bias=self.bias is not None,
            padding_mode=self.mode,
            device=self.device,
            dtype=torch.float64,
            **({} if plain else more),
        )
        with torch.no_grad():
            made.weight.copy_(self.weight)
            if made.bias is not None and self.bias is not None:
                made.bias.copy_(self.bias)
        for parameter in made.parameters():
            parameter.requires_grad_(False)
        return made


def _pair(value: Any) -> Pair:
    return (int(value[0]), int(value[1])) if isinstance(value, (tuple, list)) else (int(value), int(value))


def _sides(padding: Any, kernel: Pair, dilation: Pair) -> Sides:
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding in ("same", "full"):
        totals = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
        if padding == "full":
            return (totals[0], totals[0]), (totals[1], totals[1])
        return (totals[0] // 2, totals[0] - totals[0] // 2), (totals[1] // 2, totals[1] - totals[1] // 2)
    if isinstance(padding, (tuple, list)) and isinstance(padding[0], (tuple, list)):
        return (int(padding[0][0]), int(padding[0][1])), (int(padding[1][0]), int(padding[1][1]))
    down, right = _pair(padding)
    return (down, down), (right, right)
