"""Convolutions through a bottleneck: the same kernel to r channels, then a 1x1 back to all.

The weights W [out, in taps] become U (U' W) with r orthonormal columns U. Without images U holds the first left
singular vectors of W: the nearest weights of rank r. With images it holds the first eigenvectors of W S W', the
covariance of what the layer gives, which makes ||(W - U U' W) S^(1/2)|| least: no weights of rank r give outputs nearer
to the layer's. Their mean is kept by the bias:

    b' = U U' (b - mean) + mean,    mean: of the outputs.

Jaderberg, Vedaldi, Zisserman, "Speeding up Convolutional Neural Networks with Low Rank Expansions" (2014); Zhang, Zou, He, Sun,
"Accelerating Very Deep Convolutional Networks for Classification and Detection" (2015).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from convscope.rewrites.base import Refused, register
from convscope.rewrites.convolution import Convolution
from convscope.rewrites.lowrank import Factors, LowRank, pair, shares
from convscope.rewrites.moments import OutputMoments
from convscope.rewrites.work import Work


@register
@dataclass(frozen=True)
class Bottleneck(LowRank):
    """Sends convolutions, 1x1 ones too, through few channels; see the module for the mathematics.

    Of `rank`, `energy` and `budget` exactly one is given. At full rank, min(out channels, weights of a filter) of a group,
    the edit is "exact" (and costs more than the layer); below it is "approximate". Groups stay groups. With images the outputs on
    them are approximated, and the batch norms behind are matched; without, the weights are, and the edit says so.

    Args:
        rank: channels between the two, in each group; more than a layer's full rank means full rank.
        energy: the least rank that keeps this share of the power: of the outputs on the images, or of the weights. A
            layer that would become no cheaper stays.
        budget: "macs:0.5": the rewritten layers together at half of their MACs, least lost; "params:0.5" likewise;
            "error:0.1": fewest MACs at which the product of the shares of power kept is at least 0.9. A layer may stay
            as it is.
        method: "least_squares" (needs data), "svd" (nearest weights), "truncate" (the filters with the largest weights,
            the others zero, for comparison); "auto" is the first where there are images, else the second.
        norms: match the batch norms behind, where there are images.
        where: which layers.

    Raises:
        RequestError: not exactly one of the three, or a value out of range; a budget that no ranks can meet.

    Example:
        >>> import torch, convscope
        >>> net = convscope.load(torch.nn.Conv2d(8, 16, 3, padding=1), input="8x12x12")
        >>> edit = convscope.rewrite(net, Bottleneck(4)).edits[0]
        >>> edit.exactness, edit.params, edit.resolved["rank"]
        ('approximate', (1168, 368), 4)
    """

    name: ClassVar[str] = "bottleneck"

    def readable(self, module: nn.Module) -> Convolution:
        """A convolution with several outputs a group that see several numbers."""
        conv = Convolution.of(module)
        if min(conv.channels[1] // conv.groups, conv.weight[0].numel()) == 1:
            raise Refused("it has one filter, or one weight a filter, in a group: nothing is narrower")
        return conv

    def moments(self, work: Work, convs: Mapping[str, Convolution]) -> Mapping[str, OutputMoments]:
        """Of what each convolution gives."""
        found = {layer: OutputMoments(conv) for layer, conv in convs.items()}
        work.calibration.stream(work.module, {layer: each.see for layer, each in found.items()}, outputs=True)
        return found

    def factors(self, conv: Convolution, method: str, moments: OutputMoments | None) -> Factors:
        """All ranks: orthonormal directions of the outputs, ordered by the power they keep."""
        weight = conv.weight.flatten(1).unflatten(0, (conv.groups, -1))  # [group, out, in tap]
        full = min(weight.shape[1:])
        left, values, _ = torch.linalg.svd(weight, full_matrices=False)
        whole, mean, note = left, None, ""
        kept = shares(values.square().sum(0))
        if method == "truncate":
            power, order = weight.square().sum(2).sort(dim=1, descending=True, stable=True)  # [group, out]
            left = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)[order].mT
            kept = shares(power.sum(0))[:full].clone()
        elif method == "least_squares":
            assert moments is not None
            spread = moments.covariance
            if spread.diagonal(dim1=1, dim2=2).sum() > 0:
                powers, vectors = torch.linalg.eigh(spread)  # ascending
                left, mean = vectors.flip(2).to(weight.device), moments.mean.to(weight.device)
                kept = shares(powers.flip(1).clamp_min(0).sum(0))[:full].clone()
            else:
                method, note = "svd", "its outputs do not vary on the images"
        kept[-1] = 1.0

        def build(rank: int) -> tuple[Convolution, Convolution]:
            if rank == full:
                return _assembled(conv, weight, whole, conv.bias)
            directions = left[:, :, :rank]
            bias = conv.bias
            if mean is not None:
                grouped = torch.zeros_like(mean) if bias is None else bias.unflatten(0, (conv.groups, -1))
                centred = (grouped - mean)[:, :, None]
                bias = ((directions @ (directions.mT @ centred))[:, :, 0] + mean).flatten()
            return _assembled(conv, weight, directions, bias)

        return Factors(conv, kept, build, False, method, note)


def _assembled(
    conv: Convolution, weight: Tensor, directions: Tensor, bias: Tensor | None
) -> tuple[Convolution, Convolution]:
    """From the weights [group, out, in tap] and directions [group, out, rank]."""
    first = (directions.mT @ weight).flatten(0, 1).reshape(-1, *conv.weight.shape[1:])
    return pair(conv, first, directions.flatten(0, 1), bias, depthwise=False)
