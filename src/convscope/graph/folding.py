"""Batch norms that can become part of the layer beside them: the proof that they can, and the numbers.

In eval mode a batch norm is gain * x + shift for each channel, with gain = weight / sqrt(var + eps) and shift = bias -
mean * gain. Behind a convolution or a fully-connected layer it scales the filters,

    W' = gain W (output channel by output channel),    b' = gain b + shift,

and in front of one their slices, W' = W gain (input channel by input channel), b' = b + sum over taps of W shift: there only
where no zeros are laid around the input, which the norm would not have shifted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from convscope import nn as layers
from convscope.graph.handover import Links
from convscope.graph.structure import Op

NORMS = {
    "aten.batch_norm",
    "aten.native_batch_norm",
    "aten._native_batch_norm_legit_no_training",
    "aten.cudnn_batch_norm",
}
CONVOLUTIONS = {"aten.convolution", "aten.conv2d", "aten.mkldnn_convolution", "convscope.convolution"}
KINDS: tuple[type[nn.Module], ...] = (_ConvNd, nn.Linear)

_PLAIN_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_KNOWN = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.Linear, layers.Conv2d),
)

Order = Literal["after", "before"]


@dataclass(frozen=True)
class Pair:
    """A batch norm and the layer that it can become part of.

    Attributes:
        layer, norm: their names.
        order: whether the norm runs after the layer or before it.
        known: whether the layer's forward pass is known to use `weight` and `bias` alone; of another class only the pass
            that was recorded tells so.
    """

    layer: str
    norm: str
    order: Order
    known: bool


def pair(links: Links, norm: str) -> Pair | str:
    """The pair that a norm is part of, or why there is none, a clause."""
    part = links.parts[norm]
    reason = _not_plain(part)
    if reason is not None:
        return reason
    ops = [op for op in links.graph.ops if op.name in NORMS and op.module == norm]
    if links.runs[norm] != 1 or len(ops) != 1:
        return f"{norm!r} runs {links.runs[norm]} times in a pass"
    if ops[0].attributes.get("training"):
        return "it normalizes by the statistics of each batch"
    found = _after(links, norm, ops[0]) or _before(links, norm, ops[0])
    return found or f"it stands between {_maker(links, ops[0])} and no convolution or linear layer"


def _not_plain(norm: nn.Module) -> str | None:
    if not isinstance(norm, _BatchNorm):
        return f"it is a {type(norm).__name__}, and the rule is about batch norms"
    if norm.running_mean is None or norm.running_var is None:
        return "it has no running statistics, and normalizes by those of each batch"
    if rest(norm) is None:
        return f"it is a {type(norm).__name__}, whose forward pass may do more than normalize"
    return None


def _maker(links: Links, op: Op) -> str:
    value = op.tensors.get("input")
    maker = links.makers.get(value) if isinstance(value, int) else None
    return "the input" if maker is None else f"{maker.name.rpartition('.')[2].strip('_')!r}"


def _after(links: Links, norm: str, op: Op) -> Pair | str | None:
    """None where what is normalized comes from no layer."""
    value = op.tensors.get("input")
    maker = links.makers.get(value) if isinstance(value, int) else None
    if maker is None or not isinstance(value, int) or not isinstance(links.parts.get(maker.module), KINDS):
        return None
    return _proved(links, maker.module, norm, value, "after", maker)


def _before(links: Links, norm: str, op: Op) -> Pair | str | None:
    """None where no layer reads what the norm gives."""
    value = op.outputs[0]
    readers = links.readers.get(value, [])
    layer = next((r.module for r in readers if isinstance(links.parts.get(r.module), KINDS)), None)
    if layer is None:
        return None
    part: Any = links.parts[layer]
    if isinstance(part, _ConvTransposeNd):
        return f"{layer!r} behind it is transposed, whose positions see different taps"
    if isinstance(part, _ConvNd) and _lays_zeros(part):
        return f"{layer!r} behind it lays zeros around its input, which the norm does not shift"
    return _proved(links, layer, norm, value, "before", readers[0])


def _lays_zeros(conv: Any) -> bool:
    if type(conv).__name__ == "Conv2dSame" or conv.padding_mode == "partial":
        return True
    if conv.padding_mode != "zeros" or conv.padding == "valid":  # made from the image, which is shifted
        return False
    if isinstance(conv.padding, str):
        return any(n > 1 for n in conv.kernel_size)
    return any(max(side) if isinstance(side, tuple) else side for side in conv.padding)


def _proved(links: Links, layer: str, norm: str, value: int, order: Order, op: Op) -> Pair | str:
    part = links.parts[layer]
    if isinstance(part, nn.Linear) and len(links.graph.values[value].shape) != 2:
        return f"its channels are not the features of {layer!r}"
    first, second = (layer, norm) if order == "after" else (norm, layer)
    reason = links.refuses(first, second, value)
    if reason is not None:
        return reason
    same = type(part).__name__ == "Conv2dSame" and type(part).__module__.startswith("timm.")
    known = (type(part) in _KNOWN or same) and getattr(part, "activation", None) is None
    ends = links.call(layer).outputs if order == "after" else links.call(layer).inputs
    if known and tuple(ends) == (value,):
        return Pair(layer, norm, order, known=True)
    if op.name in CONVOLUTIONS and _computes_plainly(links, op, part) and len(links.readers[value]) == 1:
        return Pair(layer, norm, order, known=False)
    return f"{layer!r} is a {type(part).__name__}, whose forward pass does more than convolve"


def _computes_plainly(links: Links, op: Op, part: Any) -> bool:
    """Whether a convolution ran on its module's own parameters, all of them, and they are read nowhere else."""
    for name in ("weight", "bias"):
        read = op.tensors.get(name)
        if (read is None) != (getattr(part, name, None) is None):
            return False
        if isinstance(read, int):
            value = links.graph.values[read]
            if value.name != f"{op.module}.{name}" or len(links.readers[read]) != 1:
                return False
    return True


# ---------------------------------------------------------------- numbers


def folded(layer: nn.Module, norm: nn.Module, order: Order) -> tuple[Tensor, Tensor]:
    """Weight and bias that a layer needs to do what it and its norm do: float64.

    Args:
        layer: a convolution, transposed or not, or a linear layer.
        norm: a batch norm with running statistics.
        order: whether the norm runs "after" the layer or "before" it.

    Example:
        >>> conv, norm = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0.0)
        >>> _ = nn.init.constant_(conv.weight, 3), nn.init.constant_(conv.bias, 1), norm.running_var.fill_(4.0)
        >>> weight, bias = folded(conv, norm, "after")
        >>> weight.item(), bias.item()
        (1.5, 0.5)
    """
    part: Any = layer
    gain, shift = _line(norm)
    weight = part.weight.detach().double()
    bias = None if part.bias is None else part.bias.detach().double()
    groups = getattr(part, "groups", 1)
    taps = (1,) * (weight.ndim - 2)
    if order == "before":
        grouped = weight.unflatten(0, (groups, -1))  # [group, out, in of the group, *tap]
        shifted = grouped * shift.view(groups, 1, -1, *taps)
        extra = shifted.flatten(2).sum(2).flatten()  # [out]
        weight = (grouped * gain.view(groups, 1, -1, *taps)).flatten(0, 1)
        return weight, extra if bias is None else bias + extra
    if isinstance(
        part, _ConvTransposeNd
    ):  # [in, out of the group, *tap]: outputs are numbered group by group
        grouped = weight.unflatten(0, (groups, -1))  # [group, in of the group, out of the group, *tap]
        weight = (grouped * gain.view(groups, 1, -1, *taps)).flatten(0, 1)
    else:
        weight = weight * gain.view(-1, 1, *taps)
    return weight, shift if bias is None else gain * bias + shift


def _line(norm: Any) -> tuple[Tensor, Tensor]:
    """(gain, shift) of each channel, float64."""
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    gain = torch.rsqrt(variance + norm.eps)
    if norm.weight is not None:
        gain = gain * norm.weight.detach().double()
    shift = -mean * gain
    return gain, shift if norm.bias is None else shift + norm.bias.detach().double()


def put(layer: nn.Module, weight: Tensor, bias: Tensor) -> None:
    """Gives a layer these numbers, in the type it has."""
    part: Any = layer
    dtype = part.weight.dtype
    part.weight, part.bias = (nn.Parameter(t.to(dtype), requires_grad=False) for t in (weight, bias))


class Rest(nn.Module):
    """What is left of timm's batch norm with activation once the norm is folded; child names are kept."""

    def __init__(self, drop: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.drop = drop
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.act(self.drop(x))
        return result


def rest(norm: nn.Module) -> nn.Module | None:
    """What a norm does besides normalizing, or None where that is not known."""
    part: Any = norm
    if type(norm) in _PLAIN_NORMS:
        return nn.Identity()
    if type(norm).__name__ == "BatchNormAct2d" and type(norm).__module__.startswith("timm."):
        return Rest(part.drop, part.act)
    return None
