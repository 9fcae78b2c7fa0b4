"""What a convolution sees beyond the border of its map: zeros, or pixels made from the map itself, or nothing at all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import nn

from convscope.errors import RequestError
from convscope.rewrites import verify
from convscope.rewrites.base import Change, LayerRule, Refused, register
from convscope.rewrites.convolution import Convolution, Pair, Sides
from convscope.rewrites.work import Site, Work

MODES = ("zeros", "reflect", "replicate", "circular", "partial")
KINDS = (*MODES, "same", "valid")


@register
@dataclass(frozen=True)
class Padding(LayerRule):
    """Changes how convolutions are padded.

    A mode ("zeros", "reflect", "replicate", "circular", "partial") keeps every size and every weight; what differs are
    the output positions whose window reaches into the padding: ceil(padding / stride) from each border. So the edit is
    "exact-interior" with that margin. "partial" scales what a position saw by kernel area over covered area (Liu et
    al., 2018); of an average pooling it is the mean of the covered pixels.

    "same" adds zeros so that a convolution at stride 1 keeps the size of its map, "valid" takes all padding away: the
    map grows or shrinks, and equals the old one where both have positions ("exact-interior"). At a larger stride the
    padding decides which pixels are sampled, so that the old positions need not be among the new: refused. So are all
    layers where the network does not run on the new sizes; `where` may leave out those that must keep theirs.

    Args:
        kind: one of the modes, "same" or "valid".
        where: which layers.

    Raises:
        RequestError: there is no such kind.

    Example:
        >>> import torch, convscope
        >>> net = convscope.load(torch.nn.Conv2d(3, 4, 5, padding=2), input="3x16x16")
        >>> edit = convscope.rewrite(net, Padding("reflect")).edits[0]
        >>> edit.exactness, edit.margin
        ('exact-interior', (2, 2))
    """

    name: ClassVar[str] = "padding"
    kinds: ClassVar[tuple[type[nn.Module], ...]] = (nn.Conv2d, nn.AvgPool2d)

    kind: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise RequestError(f"kind={self.kind!r} must be one of {', '.join(KINDS)}.")

    def apply(self, work: Work) -> None:
        """Layer by layer; what changes the sizes of maps is taken back where the network then does not run."""
        if self.kind not in ("same", "valid") or work.settled is not None:
            super().apply(work)
            return
        before, mark = verify.copied(work.module), len(work.edits)
        super().apply(work)
        done = [edit for edit in work.edits[mark:] if not edit.refused]
        try:
            with torch.no_grad():
                work.module(work.calibration.network_inputs(work.input)[0])
        except Exception as error:  # the network's own code: anything may come
            work.module = before
            work.structure_changed()
            work.edits[mark:] = [edit for edit in work.edits[mark:] if edit.refused]
            for edit in done:
                work.refuse(
                    self, edit.layer, f"the network does not run on maps of other sizes ({_brief(error)})"
                )

    def replace(self, site: Site) -> Change:
        if isinstance(site.module, nn.AvgPool2d):
            return self._average(site.module)
        conv = Convolution.of(site.module)
        if self.kind in ("same", "valid"):
            return self._resized(conv, site)
        if conv.padding == ((0, 0), (0, 0)):
            raise Refused("it has no padding")
        if conv.mode == self.kind:
            raise Refused(f"its padding is {self.kind!r} already")
        sides = self._largest(conv)
        if self.kind == "reflect" and any(max(s) >= n for s, n in zip(sides, site.in_shape[2:], strict=True)):
            raise Refused("its map is no larger than its padding, which leaves nothing to reflect")
        if self.kind == "circular" and any(max(s) > n for s, n in zip(sides, site.in_shape[2:], strict=True)):
            raise Refused("its map is smaller than its padding, which leaves nothing to wrap around")
        margin = tuple(math.ceil(max(side) / stride) for side, stride in zip(sides, conv.stride, strict=True))
        return Change(conv.with_(mode=self.kind).module(), "exact-interior", margin=cast(Pair, margin))

    @staticmethod
    def _largest(conv: Convolution) -> Sides:
        """The padding; where it depends on the size of the input, the most it can be."""
        if not isinstance(conv.padding, str):
            return conv.padding
        totals = [max(k - 1, 0) for k in conv.extent]
        return (totals[0] // 2, -(-totals[0] // 2)), (totals[1] // 2, -(-totals[1] // 2))

    def _resized(self, conv: Convolution, site: Site) -> Change:
        if conv.mode != "zeros" and conv.padding != ((0, 0), (0, 0)):
            raise Refused(f"its padding is {conv.mode!r}, not zeros")
        if conv.stride != (1, 1):
            raise Refused(
                f"at stride {conv.stride[0]}x{conv.stride[1]} other padding samples other pixels, so that no output "
                "need stay what it is"
            )
        old = conv.sides(conv.extent)
        totals = [k - 1 if self.kind == "same" else 0 for k in conv.extent]
        new: Sides = ((totals[0] // 2, -(-totals[0] // 2)), (totals[1] // 2, -(-totals[1] // 2)))
        if old == new:
            raise Refused(f"its padding is {self.kind!r} already")
        if self.kind == "valid" and any(n < k for n, k in zip(site.in_shape[2:], conv.extent, strict=True)):
            raise Refused("its map is smaller than its kernel, of which no position is left without padding")
        more = [tuple(b - a for a, b in zip(o, n, strict=True)) for o, n in zip(old, new, strict=True)]
        made = conv.with_(padding=new, mode="zeros")
        return Change(made.module(), "exact-interior", grown=(cast(Pair, more[0]), cast(Pair, more[1])))

    def _average(self, pool: nn.AvgPool2d) -> Change:
        def pair(value: int | tuple[int, int]) -> Pair:
            return value if isinstance(value, tuple) else (value, value)

        padding, stride = pair(pool.padding), pair(pool.stride)
        if padding == (0, 0):
            raise Refused("it has no padding")
        if self.kind not in ("zeros", "partial"):
            raise Refused("an average pooling is padded by zeros or partially")
        if pool.divisor_override is not None:
            raise Refused("it divides by a number of its own")
        if pool.count_include_pad == (self.kind == "zeros"):
            raise Refused(f"its padding is {self.kind!r} already")
        made = nn.AvgPool2d(
            pool.kernel_size,
            pool.stride,
            pool.padding,
            pool.ceil_mode,
            count_include_pad=self.kind == "zeros",
        )
        margin = tuple(math.ceil(p / s) + pool.ceil_mode for p, s in zip(padding, stride, strict=True))
        return Change(made, "exact-interior", margin=cast(Pair, margin))


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
