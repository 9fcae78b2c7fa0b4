"""Convolutions made depthwise separable: a depthwise convolution with K kernels a channel, then a 1x1.

The slice of the weights that belongs to input channel i, W_i [out, taps], is a matrix; its K largest singular terms,
W_i = P_i D_i, are K depthwise kernels and K columns of the 1x1. That is the nearest separable layer in the weights, and equal
to the layer at K = min(taps, out). Guo, Li, Lin, Chen, Li, "Network Decoupling: From Regular to Depthwise Separable
Convolutions" (2018).

With images nearness is measured in the outputs. S is the covariance of the patches the layer sees:

    D_i from the singular terms of W_i S_ii^(1/2)         the kernels, channel by channel
    P = W S D' (D S D')^-1,  b' = b + (W - P D) mean      the 1x1 refitted by least squares, all channels together
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
from convscope.rewrites.moments import SHRINK, PatchMoments
from convscope.rewrites.work import Work

WIDEST = (
    9216  # weights of a filter, above which the covariance of its patches would not fit in memory (680 MB)
)


@register
@dataclass(frozen=True)
class Separable(LowRank):
    """Makes convolutions depthwise separable, with the best kernels for their number; see the module for the mathematics.

    Of `rank`, `energy` and `budget` exactly one is given. At full rank, min(kernel_h kernel_w, out channels / groups), the
    edit is "exact" (and costs more than the layer); below it is "approximate". Groups stay groups. With images the
    kernels are fitted to what the layers see on them, the 1x1 and the bias by least squares, and the batch norms behind
    are matched; without, the nearest weights are taken, and the edit says so. A covariance of (kernel_h kernel_w in / groups)^2
    numbers is held for each layer and group meanwhile.

    Args:
        rank: depthwise kernels for each input channel; more than a layer's full rank means full rank.
        energy: the least rank that keeps this share of the power: of the outputs on the images, or of the weights. A
            layer that would become no cheaper stays.
        budget: "macs:0.5": the rewritten layers together at half of their MACs, least lost; "params:0.5" likewise;
            "error:0.1": fewest MACs at which the product of the shares of power kept is at least 0.9. A layer may stay
            as it is.
        method: "least_squares" (needs data), "svd" (nearest weights), "truncate" (in each channel the taps with the
            largest weights, for comparison); "auto" is the first where there are images, else the second.
        norms: match the batch norms behind, where there are images.
        where: which layers.

    Raises:
        RequestError: not exactly one of the three, or a value out of range; a budget that no ranks can meet.

    Example:
        >>> import torch, convscope
        >>> net = convscope.load(torch.nn.Conv2d(8, 16, 3, padding=1), input="8x12x12")
        >>> edit = convscope.rewrite(net, Separable(2)).edits[0]
        >>> edit.exactness, edit.params, edit.resolved["rank"]
        ('approximate', (1168, 416), 2)
    """

    name: ClassVar[str] = "separable"

    def readable(self, module: nn.Module) -> Convolution:
        """A dense or grouped convolution with a kernel of several taps."""
        conv = Convolution.of(module)
        if conv.weight.shape[1] == 1 and conv.groups > 1:
            raise Refused("it is depthwise already")
        if conv.kernel == (1, 1):
            raise Refused("its kernel is 1x1, which nothing can be taken out of")
        return conv

    def moments(self, work: Work, convs: Mapping[str, Convolution]) -> Mapping[str, PatchMoments]:
        """Of the patches that each convolution sees."""
        found = {
            layer: PatchMoments(conv) for layer, conv in convs.items() if conv.weight[0].numel() <= WIDEST
        }
        if found:
            work.calibration.stream(work.module, {layer: each.see for layer, each in found.items()})
        return found

    def factors(self, conv: Convolution, method: str, moments: PatchMoments | None) -> Factors:
        """All ranks: ordered terms of each channel, and the 1x1 that goes with the first of them."""
        if method == "truncate":
            return _truncated(conv)
        if method == "svd":
            return _nearest(conv)
        if moments is None:
            return _nearest(conv, f"its filters have more than {WIDEST} weights, too many to fit to images")
        return _fitted(conv, moments)


def _slices(conv: Convolution) -> Tensor:
    """Of each input channel, what its taps give to each output: [in channel, out channel / groups, tap]."""
    grouped = conv.weight.flatten(2).unflatten(0, (conv.groups, -1))  # [group, out, in, tap]
    return grouped.transpose(1, 2).flatten(0, 1)


def _assembled(
    conv: Convolution, kernels: Tensor, points: Tensor, bias: Tensor | None
) -> tuple[Convolution, Convolution]:
    """From kernels [in channel, term, tap] and points [in channel, out channel / groups, term]."""
    first = kernels.reshape(
        -1, 1, *conv.kernel
    )  # the terms of a channel side by side, as depthwise channels are
    grouped = points.unflatten(0, (conv.groups, -1))  # [group, in, out, term]
    return pair(conv, first, grouped.transpose(1, 2).flatten(2).flatten(0, 1), bias, depthwise=True)


def _nearest(conv: Convolution, note: str = "") -> Factors:
    u, s, v = torch.linalg.svd(_slices(conv), full_matrices=False)  # [in, out, r], [in, r], [in, r, tap]
    root = s.sqrt()
    points, kernels = u * root[:, None, :], root[:, :, None] * v

    def build(rank: int) -> tuple[Convolution, Convolution]:
        return _assembled(conv, kernels[:, :rank], points[:, :, :rank], conv.bias)

    return Factors(conv, shares(s.square().sum(0)), build, True, "svd", note)


def _truncated(conv: Convolution) -> Factors:
    slices = _slices(conv)
    full = min(slices.shape[1:])
    power = slices.square().sum(1)  # [in, tap]
    ordered, taps = power.sort(dim=1, descending=True, stable=True)
    kernels = torch.eye(slices.shape[2], dtype=slices.dtype, device=slices.device)[taps]  # [in, term, tap]
    points = slices.gather(2, taps[:, None, :].expand_as(slices))
    exact = _nearest(conv)

    def build(rank: int) -> tuple[Convolution, Convolution]:
        if rank == full:
            return exact.build(rank)
        return _assembled(conv, kernels[:, :rank], points[:, :, :rank], conv.bias)

    kept = shares(ordered.sum(0))[:full].clone()
    kept[-1] = 1.0
    return Factors(conv, kept, build, True, "truncate")


def _fitted(conv: Convolution, moments: PatchMoments) -> Factors:
    """The least-squares fit, for every rank from one Cholesky factor: terms are ordered rank by rank, so that the factor of
    the first ranks is a corner of the whole one.
    """
    device, groups = conv.weight.device, conv.groups
    covariance, mean = moments.covariance, moments.mean
    scale = covariance.diagonal(dim1=1, dim2=2).mean()
    weight = conv.weight.flatten(1).unflatten(0, (groups, -1)).cpu()  # [group, out, in tap]
    if not (weight @ covariance * weight).sum() > 0:
        return _nearest(conv, "its outputs do not vary on the images")
    covariance.diagonal(dim1=1, dim2=2).add_(SHRINK * scale)
    slices = _slices(conv).cpu()
    channels, out, taps = slices.shape
    inside, full = channels // groups, min(out, taps)
    blocks = covariance.reshape(groups, inside, taps, inside, taps).diagonal(dim1=1, dim2=3)
    values, vectors = torch.linalg.eigh(blocks.permute(0, 3, 1, 2).flatten(0, 1))  # [in, tap, tap]
    root = (
        vectors * values.clamp_min(0).sqrt()[:, None, :]
    )  # up to a rotation the square root, which is all it takes
    basis = torch.linalg.svd(slices @ root, full_matrices=False)[0]  # [in, out, r]
    kernels = basis.mT @ slices  # [in, r, tap]

    terms = kernels.unflatten(0, (groups, inside))  # [group, in, r, tap]
    rows = covariance.unflatten(1, (inside, taps))  # [group, in, tap, in tap]
    half = torch.einsum("girt,gitx->grix", terms, rows)  # [group, r, in, in tap]
    gram = torch.einsum("gjqt,grijt->griqj", terms, half.unflatten(3, (inside, taps)))
    gram = gram.flatten(3).flatten(1, 2)  # [group, r in, r in], rank by rank
    cross = torch.einsum("gox,grix->gori", weight, half).flatten(2)  # [group, out, r in]
    gram.diagonal(dim1=1, dim2=2).add_(1e-9 * gram.diagonal(dim1=1, dim2=2).amax(1, keepdim=True))
    lower = torch.linalg.cholesky(gram)
    solved = torch.linalg.solve_triangular(lower, cross.mT, upper=False)  # [group, r in, out]
    power = solved.square().sum((0, 2)).unflatten(0, (full, inside)).sum(1)  # [r]
    total = (weight @ covariance * weight).sum()
    kept = (power.cumsum(0) / total).clamp(0, 1)
    kept[-1] = 1.0
    exact = _nearest(conv)

    def build(rank: int) -> tuple[Convolution, Convolution]:
        if rank == full:
            return exact.build(rank)
        many = rank * inside
        points = torch.linalg.solve_triangular(lower[:, :many, :many].mT, solved[:, :many], upper=True)
        points = points.unflatten(1, (rank, inside)).permute(0, 2, 3, 1).flatten(0, 1)  # [in, out, r]
        lost = (slices - points @ kernels[:, :rank]).unflatten(0, (groups, inside))  # [group, in, out, tap]
        offset = torch.einsum("giot,git->go", lost, mean.unflatten(1, (inside, taps))).flatten()
        bias = offset.to(device) if conv.bias is None else conv.bias + offset.to(device)
        return _assembled(conv, kernels[:, :rank].to(device), points.to(device), bias)

    return Factors(conv, kept, build, True, "least_squares")
