"""Batch norms merged into the layers beside them: fewer operations, the same outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from convscope.graph import folding
from convscope.graph.folding import Pair, pair
from convscope.graph.handover import Links
from convscope.rewrites import verify
from convscope.rewrites.base import Refused, Rule, VerificationError, register
from convscope.rewrites.work import Work


@register
@dataclass(frozen=True)
class FoldBatchNorm(Rule):
    """Merges each batch norm into the convolution or linear layer beside it.

    In eval mode a norm is gain * x + shift for each channel, with gain = weight / sqrt(var + eps) and shift = bias - mean *
    gain (Ioffe and Szegedy, "Batch Normalization", 2015). Behind a layer, W' = gain W and b' = gain b + shift; in front of
    one, W' = W gain and b' = b + sum over taps of W shift. "exact", computed in float64 and rounded once. Convolutions of
    one, two and three dimensions, grouped, transposed or both, and linear layers; timm's norm with activation keeps its
    activation. A layer without a bias gets one.

    The pass as it ran must prove it: the value between the two goes nowhere else, both run once, nobody shares or listens.
    In front of a convolution only where that lays no zeros around its input, which the norm would not have shifted.

    The network can no longer be trained with batch statistics: fold what is to be run.

    Args:
        where: the batch norms, by their own names or those of the layers they become part of.

    Example:
        >>> import torch, convscope
        >>> module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, bias=False), torch.nn.BatchNorm2d(8))
        >>> made = convscope.rewrite(module, FoldBatchNorm(), input="3x16x16")
        >>> made.net.module
        Sequential(
          (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
          (1): Identity()
        )
    """

    name: ClassVar[str] = "fold_batch_norm"

    def apply(self, work: Work) -> None:
        """Merges round by round: a norm may come to stand beside a layer once another one is gone."""
        kinds: tuple[type[nn.Module], ...] = (_BatchNorm, *folding.KINDS)
        asked = set(work.decided or ())  # where a recipe is followed, just what was merged then
        for site in work.sites(kinds, self.where) if work.decided is None else ():
            layer, part = site.layer, site.module
            asked.add(layer)
            if not isinstance(part, kinds):
                work.refuse(self, layer, f"it is a {type(part).__name__}, and the rule is about batch norms")
        reasons: dict[str, str] = {}
        while True:
            links, taken = Links(work.module, work.graph), set[str]()
            for norm, part in links.parts.items():
                if not isinstance(part, _BatchNorm) or not links.runs[norm]:
                    continue
                found = pair(links, norm)
                if isinstance(found, str):
                    reasons |= {norm: found} if norm in asked else {}
                elif {found.norm, found.layer} & asked and found.layer not in taken:
                    taken.add(found.layer)
                    try:
                        self._merge(work, found)
                        reasons.pop(norm, None)
                    except Refused as reason:
                        reasons[norm] = str(reason)
                        taken.discard(found.layer)
            if not taken:
                break
            work.structure_changed()
        for norm, told in reasons.items():
            work.refuse(self, norm, told)

    def _merge(self, work: Work, found: Pair) -> None:
        parts = dict(work.module.named_modules())
        layer, norm = parts[found.layer], parts[found.norm]
        weight, bias = folding.folded(layer, norm, found.order)
        _check_range(work.dtype, weight, bias)
        new, left = verify.copied(layer), folding.rest(norm)
        assert left is not None  # `pair` asked
        folding.put(new, weight, bias)
        names = [found.layer, found.norm]
        modules = [new, left]
        if found.order == "before":
            names, modules = names[::-1], modules[::-1]
        side = "behind" if found.order == "after" else "in front of"
        try:
            work.replace_run(
                self, names, modules, resolved={"norm": found.norm}, notes=(f"{found.norm!r}, {side} it, is part of it",),
                named=found.layer,
            )  # fmt: skip
        except VerificationError:
            if found.known:
                raise
            told = f"{found.layer!r} is a {type(layer).__name__}, whose forward pass does more than convolve"
            raise Refused(told) from None


def _check_range(dtype: torch.dtype, *tensors: Tensor) -> None:
    limit = torch.finfo(dtype).max
    if any(bool((tensor.abs() > limit).any()) for tensor in tensors):
        name = str(dtype).removeprefix("torch.")
        raise Refused(f"the merged weights would exceed what {name} can hold; bring the network into float32")
