"""Weight sharing taken away and given back: a convolution as a locally connected layer, and the reverse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from convscope.errors import RequestError
from convscope.nn import LocallyConnected2d
from convscope.nn.geometry import pad
from convscope.rewrites.base import Change, LayerRule, Refused, register
from convscope.rewrites.convolution import Convolution
from convscope.rewrites.work import Site, Work

RIDGE = 1e-6  # of the mean variance of the inputs


@register
@dataclass(frozen=True)
class Untie(LayerRule):
    """Gives every output position of a convolution a kernel of its own, all equal to the shared one.

    "exact" at the input size the network has now, and the layer takes no other. Each position holds a kernel, so the
    parameters grow by the number of positions: they equal the multiply-accumulates (without bias).
    LeCun, "Generalization and Network Design Strategies" (1989); Taigman et al., "DeepFace" (2014).

    Args:
        memory: MiB that the kernels of one layer may take in the network's own type; larger layers are refused.
        where: which layers.

    Raises:
        RequestError: the memory is not positive.

    Example:
        >>> import torch, convscope
        >>> net = convscope.load(torch.nn.Conv2d(1, 2, 3, bias=False), input="1x8x8")
        >>> edit = convscope.rewrite(net, Untie()).edits[0]
        >>> edit.exactness, edit.params, edit.macs
        ('exact', (18, 648), (648, 648))
    """

    name: ClassVar[str] = "untie"
    kinds: ClassVar[tuple[type[nn.Module], ...]] = (nn.Conv2d,)

    memory: float = 512.0

    def __post_init__(self) -> None:
        if not self.memory > 0:
            raise RequestError(f"memory={self.memory} must be a positive number of MiB.")

    def replace(self, site: Site) -> Change:
        conv = Convolution.of(site.module)
        if len(site.sizes) > 1:
            raise Refused("it is called on maps of several sizes")
        size, out = site.in_shape[2:], site.out_shape[2:]
        needed = conv.weight.numel() * out[0] * out[1] * site.work.dtype.itemsize / 2**20
        if needed > self.memory:
            raise Refused(f"its kernels would take {needed:,.0f} MiB, more than memory={self.memory:g}")
        made = LocallyConnected2d.from_conv(conv.module(), size)
        return Change(made, "exact", fixed_size=True, notes=(f"takes maps of {size[0]}x{size[1]} only",))


@register
@dataclass(frozen=True)
class Tie(LayerRule):
    """Replaces a locally connected layer by the convolution nearest to it.

    With images the shared kernel is the least-squares best on what the layer is given: W = (sum y x') (sum x x')^-1
    over all positions and images. Without, it is the mean of the kernels, which is the same for inputs that look alike
    everywhere. "exact" where all kernels are equal, else "approximate".

    Args:
        where: which layers.

    Example:
        >>> import torch, convscope
        >>> layer = convscope.nn.LocallyConnected2d.from_conv(torch.nn.Conv2d(1, 2, 3), 8)
        >>> convscope.rewrite(torch.nn.Sequential(layer), Tie(), input="1x8x8").edits[0].exactness
        'exact'
    """

    name: ClassVar[str] = "tie"
    kinds: ClassVar[tuple[type[nn.Module], ...]] = (LocallyConnected2d,)

    def gather(self, work: Work, sites: Sequence[Site]) -> Mapping[str, Shared]:
        """Second moments of each layer's patches, and of its outputs with them."""
        if not work.calibration.given:
            return {}
        found = {site.layer: Shared(site.module) for site in sites if isinstance(site.module, self.kinds)}
        if found:
            work.calibration.stream(work.module, {layer: each.add for layer, each in found.items()})
        return found

    def replace(self, site: Site) -> Change:
        layer: Any = site.module
        kernels = layer.weight.detach().flatten(
            0, 1
        )  # [position, group, out a group, height, width, in a group]
        mean = kernels.mean(0)
        same = float((kernels - mean).abs().max()) <= 1e-12 * float(mean.abs().max())
        bias = None if layer.bias is None else layer.bias.detach()
        if bias is not None and bias.ndim > 1:
            same = same and float((bias - bias.mean((1, 2), keepdim=True)).abs().max()) <= 1e-12
            bias = bias.mean((1, 2))
        weight = mean.movedim(-1, 2).flatten(0, 1)  # [out, in a group, height, width]
        notes: tuple[str, ...] = () if same else ("without data: the mean of the kernels",)
        if site.gathered is not None and not same:
            weight, bias = site.gathered.fit()
            notes = ("fitted by least squares",)
        sides = layer.sides
        conv = Convolution(
            weight.contiguous(), bias, tuple(layer.stride), sides, tuple(layer.dilation), layer.groups,
            layer.padding_mode, layer.weight.device,
        )  # fmt: skip
        return Change(conv.module(), "exact" if same else "approximate", fixed_size=True, notes=notes)


class Shared:
    """Second moments of a locally connected layer's patches, all positions together, and of its outputs with them."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        group, outs, height, width, channels = layer.weight.shape[2:]
        self.shape = (outs, channels, height, width)
        taps = height * width * channels + 1
        self.inputs = torch.zeros(group, taps, taps, dtype=torch.float64)
        self.outputs = torch.zeros(group, outs, taps, dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        """Adds those of a batch [image, channel, height, width]."""
        layer = self.layer
        x = x.double()
        y = layer(x).flatten(2).unflatten(1, (layer.groups, -1)).permute(1, 2, 0, 3).flatten(2)
        x = pad(x, layer.sides, layer.padding_mode)
        patches = functional.unfold(x, self.shape[2:], layer.dilation, 0, layer.stride)
        patches = (
            patches.unflatten(1, (layer.groups, -1)).permute(1, 2, 0, 3).flatten(2)
        )  # [group, taps, sample]
        patches = torch.cat([patches, patches.new_ones(layer.groups, 1, patches.shape[2])], 1)
        self.inputs += patches @ patches.mT
        self.outputs += y @ patches.mT

    def fit(self) -> tuple[Tensor, Tensor | None]:
        """The shared kernel [out, in a group, height, width] and bias; without a bias in the layer the fit has none."""
        count = self.inputs.shape[1] - (self.layer.bias is None)
        inputs, outputs = self.inputs[:, :count, :count], self.outputs[..., :count]
        ridge = RIDGE * inputs.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        inputs = inputs + ridge * torch.eye(count, dtype=torch.float64)
        solved = torch.linalg.solve(inputs, outputs.mT).mT  # [group, out, count]
        weight = solved[..., : self.inputs.shape[1] - 1].unflatten(2, self.shape[1:]).flatten(0, 1)
        return weight, None if self.layer.bias is None else solved[..., -1].reshape(-1)
