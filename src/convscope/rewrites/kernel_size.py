"""Larger and smaller kernels.

Larger: the kernel is embedded in zeros, with matching zero padding: exact. Smaller: the best smaller kernel W' in the
least-squares sense, W' = W S(x, x') S(x', x')^-1, where S are the covariances of the patches that both kernels see
on real activations; without data the centre crop, corrected so that each filter keeps its sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from convscope.errors import RequestError
from convscope.nn.geometry import pad
from convscope.rewrites.base import Change, LayerRule, Refused, register
from convscope.rewrites.convolution import Convolution, Sides
from convscope.rewrites.work import Site, Work

METHODS = ("auto", "least_squares", "sum", "crop")
RIDGE = 1e-6  # of the mean variance: keeps directions that the data never takes from blowing up


@register
@dataclass(frozen=True)
class KernelSize(LayerRule):
    """Gives convolutions another kernel size; the output keeps its size.

    Growing puts zeros around the kernel and as many around the input: "exact" where the padding is zeros or there is
    none of another kind, since the added taps only ever meet weights of zero. Even sizes grow after the kernel first.
    Shrinking is "approximate": see the module's text. A dilated kernel keeps its dilation.

    Args:
        size: the new kernel size, one number or (height, width).
        method: for shrinking: "least_squares" (needs data), "sum" (the crop, rescaled tap by tap so that each filter
            keeps its sum), "crop"; "auto" is the first where there are images, else the second.
        where: which layers.

    Raises:
        RequestError: a size below 1, or an unknown method.

    Example:
        >>> import torch, convscope
        >>> net = convscope.load(torch.nn.Conv2d(3, 4, 3, padding=1), input="3x16x16")
        >>> edit = convscope.rewrite(net, KernelSize(5)).edits[0]
        >>> edit.exactness, edit.params
        ('exact', (112, 304))
    """

    name: ClassVar[str] = "kernel_size"
    kinds: ClassVar[tuple[type[nn.Module], ...]] = (nn.Conv2d,)

    size: int | tuple[int, int]
    method: str = "auto"

    def __post_init__(self) -> None:
        sizes = self.size if isinstance(self.size, tuple) else (self.size, self.size)
        if len(sizes) != 2 or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in sizes):
            raise RequestError(f"size={self.size!r} must be a whole number from 1, or (height, width).")
        if self.method not in METHODS:
            raise RequestError(f"method={self.method!r} must be one of {', '.join(METHODS)}.")

    @property
    def wanted(self) -> tuple[int, int]:
        """(height, width)."""
        return self.size if isinstance(self.size, tuple) else (self.size, self.size)

    def gather(self, work: Work, sites: Sequence[Site]) -> Mapping[str, Patches]:
        """Moments of the patches that each convolution to be shrunk sees."""
        if not work.calibration.given or self.method not in ("auto", "least_squares"):
            return {}
        found = {}
        for site in sites:
            try:
                conv = Convolution.of(site.module)
            except Refused:
                continue
            if all(new <= old for new, old in zip(self.wanted, conv.kernel, strict=True)):
                found[site.layer] = Patches(conv)
        if found:
            work.calibration.stream(work.module, {layer: each.add for layer, each in found.items()})
        return found

    def replace(self, site: Site) -> Change:
        conv = Convolution.of(site.module)
        if conv.kernel == self.wanted:
            raise Refused(f"its kernel is {conv.kernel[0]}x{conv.kernel[1]} already")
        if conv.kernel == (1, 1):
            conv = conv.with_(dilation=(1, 1))  # means nothing for one tap, and would spread the new ones
        grows = [new >= old for new, old in zip(self.wanted, conv.kernel, strict=True)]
        if all(grows):
            return self._larger(conv)
        if any(new > old for new, old in zip(self.wanted, conv.kernel, strict=True)):
            raise Refused("one axis would grow and the other shrink; do one after the other")
        return self._smaller(conv, site)

    def _larger(self, conv: Convolution) -> Change:
        if conv.mode != "zeros" and conv.padding != ((0, 0), (0, 0)):
            raise Refused(f"its padding is {conv.mode!r}, which more padding would change near the borders")
        extra = [_split(new - old) for new, old in zip(self.wanted, conv.kernel, strict=True)]
        weight = functional.pad(conv.weight, (*extra[1], *extra[0]))
        padding = _moved(conv, extra)
        return Change(conv.with_(weight=weight, padding=padding, mode="zeros").module(), "exact")

    def _smaller(self, conv: Convolution, site: Site) -> Change:
        cut = [_split(old - new) for old, new in zip(conv.kernel, self.wanted, strict=True)]
        (top, bottom), (left, right) = cut
        method = self.method
        if method == "auto":
            method = "least_squares" if site.work.calibration.given else "sum"
        if method == "least_squares" and not site.work.calibration.given:
            raise Refused('method="least_squares" needs images; give data=')
        rows, columns = slice(top, conv.kernel[0] - bottom), slice(left, conv.kernel[1] - right)
        inner = conv.weight[:, :, rows, columns]
        padding = _moved(conv, [(-before, -after) for before, after in cut])
        notes = (f"fitted by {method.replace('_', ' ')}",)
        bias = conv.bias
        if method == "sum":
            inner = (
                inner
                + ((conv.weight.sum((2, 3)) - inner.sum((2, 3))) / inner[0, 0].numel())[:, :, None, None]
            )
            notes = ("without data: the centre crop, each filter keeping its sum",)
        if method == "least_squares":
            inner, bias = site.gathered.fit(rows, columns)
        made = conv.with_(weight=inner.contiguous(), bias=bias, padding=padding)
        return Change(made.module(), "approximate", resolved={"method": method}, notes=notes)


def _split(extra: int) -> tuple[int, int]:
    """Before and after; the odd one after, so that an even kernel keeps its first tap."""
    return extra // 2, extra - extra // 2


def _moved(conv: Convolution, extra: list[tuple[int, int]]) -> Sides | str:
    """The padding that keeps every tap where it was, with so many more taps before and after along each axis."""
    if conv.padding == "same":
        extent = [k + sum(more) * d for k, more, d in zip(conv.extent, extra, conv.dilation, strict=True)]
        even = all(before == after for before, after in extra)
        smallest = [min(pair) for pair in zip(extent, conv.extent, strict=True)]
        if even and all(k >= s for k, s in zip(smallest, conv.stride, strict=True)):
            return "same"  # whatever the size of the input, it grows by as much on both sides
        if conv.stride != (1, 1):
            raise Refused('its padding is "same", whose place at this stride depends on the kernel\'s size')
    sides = conv.sides(conv.extent)  # at stride 1 "same" does not depend on the size of the input
    found = [(a + b[0] * d, c + b[1] * d) for (a, c), b, d in zip(sides, extra, conv.dilation, strict=True)]
    if min(min(side) for side in found) < 0:
        raise Refused("its padding is narrower than what the kernel loses, so that the output would grow")
    return found[0], found[1]


class Patches:
    """Second moments of the patches that a convolution sees, and of a constant beside them, summed over images."""

    def __init__(self, conv: Convolution) -> None:
        self.conv = conv
        self.width = conv.weight[0].numel()  # taps of one group
        edge = self.width + 1
        self.total = torch.zeros(conv.groups, edge, edge, dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        """Adds those of a batch [image, channel, height, width]."""
        conv = self.conv
        sides = conv.sides((x.shape[2], x.shape[3]))
        x = pad(x.double(), sides, "zeros" if conv.mode == "partial" else conv.mode)
        patches = functional.unfold(
            x, conv.kernel, conv.dilation, 0, conv.stride
        )  # [image, groups width, position]
        patches = patches.unflatten(1, (conv.groups, self.width)).permute(1, 2, 0, 3).flatten(2)
        patches = torch.cat([patches, patches.new_ones(conv.groups, 1, patches.shape[2])], 1)
        self.total += patches @ patches.mT  # [group, width + 1, width + 1]

    def fit(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor | None]:
        """The kernel of these taps alone, and the bias, whose outputs are nearest in the least-squares sense."""
        conv, width = self.conv, self.width
        kept = torch.zeros(conv.weight.shape[1:], dtype=torch.bool)
        kept[:, rows, columns] = True
        picked = kept.flatten().nonzero()[:, 0]
        chosen = torch.cat(
            [picked, picked.new_tensor([width])]
        )  # the constant too: the bias is fitted with them
        matrix = conv.weight.unflatten(0, (conv.groups, -1)).flatten(2)  # [group, out, width]
        cross = matrix @ self.total[:, :width][:, :, chosen]  # [group, out, kept + 1]
        gram = self.total[:, chosen][:, :, chosen]
        ridge = RIDGE * gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        gram = gram + ridge * torch.eye(len(chosen), dtype=torch.float64)
        solved = torch.linalg.solve(gram, cross.mT).mT  # [group, out, kept + 1]
        weight = solved[..., :-1].reshape_as(conv.weight[:, :, rows, columns])
        offset = solved[..., -1].reshape(-1)
        return weight, offset if conv.bias is None else conv.bias + offset
