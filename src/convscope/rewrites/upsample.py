"""Upsampling exchanged: nearest, bilinear, bed of nails, transposed convolution, pixel shuffle, max-unpooling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from convscope import nn as layers
from convscope.errors import RequestError
from convscope.rewrites import verify
from convscope.rewrites.base import Change, Edit, LayerRule, Refused, VerificationError, register
from convscope.rewrites.calibrate import watched
from convscope.rewrites.convolution import Pair
from convscope.rewrites.work import Site, Work

KINDS = ("nearest", "bilinear", "bed_of_nails", "transposed", "pixel_shuffle", "max_unpool")
WHOLE = 1e-12  # of a kernel: a residual that is none


@register
@dataclass(frozen=True)
class Upsample(LayerRule):
    """Exchanges ways to upsample by a whole factor s; the size of the output stays.

    "exact" where one way expresses the other: nearest is a transposed convolution with an s x s kernel of ones, bed of
    nails one with a single 1; both, and bilinear, are a convolution to s^2 channels and a pixel shuffle (bilinear with
    replicated borders); a transposed convolution is bed of nails followed by a convolution, and a convolution followed
    by a pixel shuffle (Shi et al., 2016). Bilinear as a transposed convolution is "exact-interior": it repeats the
    border, which zeros cannot.

    A transposed convolution becomes nearest or bilinear resizing and a convolution (Odena et al., 2016: no
    checkerboard) whose kernel, spread by the resizing, is nearest to the old one: "approximate", exact where the old one
    is of that form. Weightless ways exchanged for each other are "approximate".

    "max_unpool" puts values where a pool of the same maps found its maxima: the last pool before it whose input has the
    output's shape; "approximate".

    Args:
        kind: one of nearest, bilinear, bed_of_nails, transposed, pixel_shuffle, max_unpool.
        where: which layers.

    Raises:
        RequestError: there is no such kind.

    Example:
        >>> import torch, convscope
        >>> net = convscope.load(torch.nn.Sequential(torch.nn.Upsample(scale_factor=2)), input="3x8x8")
        >>> convscope.rewrite(net, Upsample("transposed")).edits[0].exactness
        'exact'
    """

    name: ClassVar[str] = "upsample"
    kinds: ClassVar[tuple[type[nn.Module], ...]] = (
        nn.Upsample, layers.NearestUpsample2d, layers.BilinearUpsample2d, layers.BedOfNails2d, nn.ConvTranspose2d,
    )  # fmt: skip

    kind: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise RequestError(f"kind={self.kind!r} must be one of {', '.join(KINDS)}.")

    def apply(self, work: Work) -> None:
        if self.kind != "max_unpool":
            super().apply(work)
            return
        for site in work.sites(self.kinds, self.where):
            try:
                work.check(site, self.kinds)
                self._unpool(site)
            except Refused as reason:
                work.refuse(self, site.layer, str(reason))

    def replace(self, site: Site) -> Change:
        if isinstance(site.module, nn.ConvTranspose2d):
            return self._of_transposed(site.module, site)
        old = _way(site.module)
        scale = _scale(site)
        if self.kind == old:
            raise Refused(f"it is {old.replace('_', ' ')} already")
        if self.kind in ("nearest", "bilinear", "bed_of_nails"):
            kinds: dict[str, Any] = {
                "nearest": layers.NearestUpsample2d, "bilinear": layers.BilinearUpsample2d,
                "bed_of_nails": layers.BedOfNails2d,
            }  # fmt: skip
            return Change(kinds[self.kind](scale), "exact" if scale == (1, 1) else "approximate")
        offset = getattr(site.module, "offset", (0, 0))
        channels = site.in_shape[1]
        if self.kind == "transposed":
            return _as_transposed(old, scale, channels, offset)
        return _as_shuffle(old, scale, channels, offset)

    # -- from a transposed convolution ---------------------------------------------------------------------

    def _of_transposed(self, module: nn.ConvTranspose2d, site: Site) -> Change:
        if type(module) not in (nn.ConvTranspose2d, layers.TransposedConv2d):
            raise Refused(f"it is a {type(module).__name__}, whose forward pass may do more")
        old = Transposed.of(module)
        if self.kind == "transposed":
            raise Refused("it is a transposed convolution already")
        size, out = (site.in_shape[2:], site.out_shape[2:])
        if self.kind == "bed_of_nails":
            return old.as_nails()
        if self.kind == "pixel_shuffle":
            return old.as_shuffle()
        return old.as_resize(self.kind, (size[0], size[1]), (out[0], out[1]))

    # -- max-unpooling -------------------------------------------------------------------------------------

    def _unpool(self, site: Site) -> None:
        work = site.work
        if isinstance(site.module, nn.ConvTranspose2d):
            raise Refused("it is a transposed convolution, which an unpooling cannot stand for")
        if len(site.calls) != 1:
            raise Refused("it is called from several places")
        first = _pool_for(site)
        pool = dict(work.module.named_modules())[first]
        assert isinstance(pool, nn.MaxPool2d)
        switched = layers.SwitchedMaxPool2d(pool.kernel_size, pool.stride, pool.padding)
        unpool = layers.MaxUnpool2d(switched)
        seen: dict[str, list[Tensor]] = {}
        inputs = work.calibration.network_inputs(work.input)
        watchers = {name: seen.setdefault(name, []).append for name in (first, site.layer)}
        with watched(work.module, watchers), torch.no_grad():
            for x in inputs:
                work.module(x)
        pairs = list(zip(seen[first], seen[site.layer], strict=True))
        with torch.no_grad():
            for wide, _ in pairs:
                if not torch.equal(switched.pool(wide)[0], pool(wide)):
                    raise VerificationError(
                        f"{self} on {first!r}: the pool with switches is not the pool it was."
                    )
        found = verify.compare(_Alone(site.module), _Pooled(switched, unpool), pairs)
        work.put(first, switched)
        work.put(site.layer, unpool)
        work.note(
            Edit(
                layer=site.layer, rule=str(self), before=str(site.module), after=str(unpool),
                exactness="approximate", error=found.error, rms_error=found.rms_error, params=(0, 0), macs=(0, 0),
                notes=(f"values go where {first} found its maxima",),
            )
        )  # fmt: skip


class _Alone(nn.Module):
    """The old upsampling, on the second of two tensors."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, wide: Tensor, narrow: Tensor) -> Tensor:
        y: Tensor = self.layer(narrow)
        return y


class _Pooled(nn.Module):
    """Pools the first of two tensors, then unpools the second where its maxima were."""

    def __init__(self, pool: layers.SwitchedMaxPool2d, unpool: layers.MaxUnpool2d) -> None:
        super().__init__()
        self.pool, self.unpool = pool, unpool

    def forward(self, wide: Tensor, narrow: Tensor) -> Tensor:
        _, switches = self.pool.pool(wide)
        y: Tensor = self.unpool(narrow, switches)
        return y


def _pool_for(site: Site) -> str:
    """The last max pool before a layer whose input has the shape of its output, and whose output that of its input.

    Raises:
        Refused: there is none.
    """
    modules = dict(site.work.module.named_modules())
    found = ""
    for call in sorted(site.work.graph.calls, key=lambda call: call.order):
        if call.order >= site.calls[0].order:
            break
        part = modules.get(call.name)
        if isinstance(part, layers.SwitchedMaxPool2d) or type(part) not in (nn.MaxPool2d, layers.MaxPool2d):
            continue
        plain: Any = part
        simple = (
            not plain.ceil_mode and _pair(plain.dilation) == (1, 1) and len(site.work.calls(call.name)) == 1
        )
        if simple and (call.in_shapes[0], call.out_shapes[0]) == (site.out_shape, site.in_shape):
            found = call.name
    if not found:
        raise Refused(
            f"no max pool before it goes from {list(site.out_shape[1:])} to {list(site.in_shape[1:])}"
        )
    return found


# ---------------------------------------------------------------- ways without weights


def _way(module: nn.Module) -> str:
    """nearest, bilinear or bed_of_nails.

    Raises:
        Refused: it is none of them.
    """
    if isinstance(module, layers.BedOfNails2d):
        return "bed_of_nails"
    if isinstance(module, layers.NearestUpsample2d):
        return "nearest"
    part: Any = module
    bilinear = isinstance(module, layers.BilinearUpsample2d) or part.mode == "bilinear"
    if bilinear and part.align_corners:
        raise Refused("it keeps the corners where they are, so that its steps depend on the size of the map")
    if bilinear:
        return "bilinear"
    if part.mode in ("nearest", "nearest-exact"):  # the same at whole factors
        return "nearest"
    raise Refused(f"it interpolates by {part.mode!r}")


def _scale(site: Site) -> Pair:
    """The whole factors by which a layer enlarges.

    Raises:
        Refused: they are no whole numbers, or not the same at every call.
    """
    found = set()
    for call in site.calls:
        (small, large) = call.in_shapes[0][2:], call.out_shapes[0][2:]
        if any(b % a for a, b in zip(small, large, strict=True)):
            raise Refused(f"it enlarges {small[0]}x{small[1]} to {large[0]}x{large[1]}, by no whole factor")
        found.add((large[0] // small[0], large[1] // small[1]))
    if len(found) > 1:
        raise Refused("it enlarges by several factors")
    return found.pop()


def _taps(way: str, scale: int, offset: int) -> tuple[Tensor, int]:
    """One axis of a way's kernel as a transposed convolution, and its padding."""
    if way == "nearest":
        return torch.ones(scale, dtype=torch.float64), 0
    if way == "bed_of_nails":
        taps = torch.zeros(scale, dtype=torch.float64)
        taps[offset] = 1
        return taps, 0
    size = 2 * scale - scale % 2
    centre = (size - 1) / 2
    taps = 1 - (torch.arange(size, dtype=torch.float64) - centre).abs() / scale
    return taps, (size - scale) // 2 + (size - scale) % 2


def _as_transposed(way: str, scale: Pair, channels: int, offset: Pair) -> Change:
    rows, columns = (_taps(way, s, o) for s, o in zip(scale, offset, strict=True))
    made = nn.ConvTranspose2d(
        channels, channels, (len(rows[0]), len(columns[0])), scale, (rows[1], columns[1]), groups=channels, bias=False,
        dtype=torch.float64,
    )  # fmt: skip
    with torch.no_grad():
        made.weight.copy_(rows[0][:, None] * columns[0])
    if way == "bilinear" and scale != (1, 1):
        return Change(made, "exact-interior", margin=scale)
    return Change(made, "exact")


def _as_shuffle(way: str, scale: Pair, channels: int, offset: Pair) -> Change:
    if scale[0] != scale[1]:
        raise Refused("a pixel shuffle enlarges both axes alike")
    s = scale[0]
    edge = 3 if way == "bilinear" else 1
    weight = torch.zeros(channels, s, s, edge, edge, dtype=torch.float64)  # for each place in the block
    if way == "bilinear":
        lines = torch.zeros(s, 3, dtype=torch.float64)
        for place in range(s):
            at = (place + 0.5) / s + 0.5  # measured from the pixel before
            lines[place, math.floor(at)] = 1 - (at - math.floor(at))
            if math.floor(at) < 2:
                lines[place, math.floor(at) + 1] += at - math.floor(at)
        weight[:] = lines[:, None, :, None] * lines[None, :, None, :]
    elif way == "nearest":
        weight.fill_(1)
    else:
        weight[:, offset[0], offset[1]] = 1
    conv = nn.Conv2d(
        channels, channels * s * s, edge, padding=edge // 2, groups=channels, bias=False, dtype=torch.float64,
        padding_mode="replicate" if way == "bilinear" else "zeros",
    )  # fmt: skip
    with torch.no_grad():
        conv.weight.copy_(weight.reshape(channels * s * s, 1, edge, edge))
    return Change(nn.Sequential(conv, nn.PixelShuffle(s)), "exact")


# ---------------------------------------------------------------- transposed convolutions


@dataclass(frozen=True)
class Transposed:
    """A transposed convolution as numbers; weight [in, out / groups, height, width], float64."""

    weight: Tensor
    bias: Tensor | None
    stride: Pair
    padding: Pair
    extra: Pair
    groups: int

    @classmethod
    def of(cls, module: nn.ConvTranspose2d) -> Transposed:
        """Reads a module.

        Raises:
            Refused: its kernel is dilated.
        """
        if _pair(module.dilation) != (1, 1):
            raise Refused("its kernel is dilated")
        bias = None if module.bias is None else module.bias.detach().double()
        return cls(
            module.weight.detach().double(), bias, _pair(module.stride), _pair(module.padding),
            _pair(module.output_padding), module.groups,
        )  # fmt: skip

    @property
    def kernel(self) -> Pair:
        """Height and width."""
        return self.weight.shape[2], self.weight.shape[3]

    @property
    def channels(self) -> Pair:
        """(in, out)."""
        return self.weight.shape[0], self.weight.shape[1] * self.groups

    def turned(self) -> Tensor:
        """As a convolution's weight [out, in / groups, height, width], flipped."""
        weight = self.weight.unflatten(0, (self.groups, -1)).transpose(
            1, 2
        )  # [group, out, in, height, width]
        return weight.flatten(0, 1).flip(2, 3)

    def _conv(self, weight: Tensor, sides: tuple[Pair, Pair], outs: int, bias: Tensor | None) -> nn.Module:
        made = layers.Conv2d(
            self.channels[0], outs, (weight.shape[2], weight.shape[3]), padding=sides, groups=self.groups,
            bias=bias is not None, dtype=torch.float64,
        )  # fmt: skip
        with torch.no_grad():
            made.weight.copy_(weight)
            if bias is not None and made.bias is not None:
                made.bias.copy_(bias)
        return made

    def as_nails(self) -> Change:
        """Bed of nails, then a convolution with the kernel turned around."""
        sides = [
            (k - 1 - p, k - 1 - p + e - (s - 1))
            for k, p, e, s in zip(self.kernel, self.padding, self.extra, self.stride, strict=True)
        ]
        if min(map(min, sides)) < 0:
            raise Refused("its kernel is shorter than its stride, or its padding longer than its kernel")
        conv = self._conv(self.turned(), (sides[0], sides[1]), self.channels[1], self.bias)
        return Change(nn.Sequential(layers.BedOfNails2d(self.stride), conv), "exact")

    def as_shuffle(self) -> Change:
        """A convolution that gives each place of a block its own channel, then a pixel shuffle."""
        s = self.stride[0]
        if self.stride[0] != self.stride[1]:
            raise Refused("a pixel shuffle enlarges both axes alike")
        if any(k - 2 * p + e != s for k, p, e in zip(self.kernel, self.padding, self.extra, strict=True)):
            raise Refused("its output is not the input's size times the stride")
        axes = [_phases(k, p, s) for k, p in zip(self.kernel, self.padding, strict=True)]
        (rows, up), (columns, left) = axes
        if min(min(up), min(left)) < 0:
            raise Refused("its padding is longer than its kernel")
        taps = (
            self.weight.unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(0, 1)
        )  # [out, in, height, width]
        taps = torch.nn.functional.pad(
            taps, (0, 1, 0, 1)
        )  # a tap of zero, for places that a phase does not reach
        weight = taps[:, :, rows][..., columns]  # [out, in, place, offset, place, offset]
        weight = weight.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
        bias = None if self.bias is None else self.bias.repeat_interleave(s * s)
        conv = self._conv(weight, (up, left), self.channels[1] * s * s, bias)
        return Change(nn.Sequential(conv, nn.PixelShuffle(s)), "exact")

    def as_resize(self, way: str, size: Pair, out: Pair) -> Change:
        """Resizing, then the convolution whose kernel, spread by the resizing, is nearest to this one."""
        axes = [_Spread.of(way, *each) for each in zip(self.kernel, self.padding, self.stride, strict=True)]
        sides = []
        for axis, n, s, wanted in zip(axes, size, self.stride, out, strict=True):
            after = wanted - n * s - axis.before + axis.taps - 1
            if after < 0:
                raise Refused("its output is smaller than the resized map")
            sides.append((axis.before, after))
        rows, columns = axes
        old = self.turned().flip(2, 3)
        old = torch.nn.functional.pad(old, (*columns.outside, *rows.outside))
        inverses = torch.linalg.pinv(rows.matrix), torch.linalg.pinv(columns.matrix)
        fitted = torch.einsum("jt,oitu,lu->oijl", inverses[0], old, inverses[1])
        residual = old - torch.einsum("tj,oijl,ul->oitu", rows.matrix, fitted, columns.matrix)
        is_whole = float(residual.abs().max()) <= WHOLE * float(self.weight.abs().max())
        conv = self._conv(fitted, (sides[0], sides[1]), self.channels[1], self.bias)
        resize = (layers.NearestUpsample2d if way == "nearest" else layers.BilinearUpsample2d)(self.stride)
        made = nn.Sequential(resize, conv)
        if is_whole and way == "nearest":
            return Change(made, "exact")
        return Change(
            made, "approximate", notes=("the kernel nearest to the old one, spread by the resizing",)
        )


def _phases(kernel: int, padding: int, stride: int) -> tuple[Tensor, Pair]:
    """Which tap each place of a block takes at each offset, [place, offset] (`kernel`: none), and the padding."""
    count = -(-kernel // stride)
    moves = [(place + padding) // stride for place in range(stride)]
    low, high = min(moves) - count + 1, max(moves)
    table = torch.full((stride, high - low + 1), kernel)
    for place, move in enumerate(moves):
        rest = (place + padding) % stride
        for turn in range(count):
            if rest + stride * turn < kernel:
                table[place, move - turn - low] = rest + stride * turn
    return table, (-low, high)


@dataclass(frozen=True)
class _Spread:
    """How a resizing spreads a convolution's kernel along one axis.

    Attributes:
        matrix: from its taps to those of one transposed convolution, [tap of both, tap].
        outside: taps of both beyond the old kernel, (before, after).
        before: padding before.
    """

    matrix: Tensor
    outside: Pair
    before: int

    @property
    def taps(self) -> int:
        """Of the convolution."""
        return self.matrix.shape[1]

    @classmethod
    def of(cls, way: str, kernel: int, padding: int, stride: int) -> _Spread:
        """The shortest convolution that with the resizing covers a transposed kernel of this padding."""
        own, cut = _taps(way, stride, 0)
        before = max(0, kernel - padding - (len(own) - cut))
        count = max(1, before - cut + padding + 1)
        low = before - cut + padding - (count - 1)  # the first tap of both, counted along the old kernel
        both = len(own) + count - 1
        matrix = torch.zeros(both, count, dtype=torch.float64)
        for j in range(count):  # tap j of the convolution and t of the resizing meet at t + count - 1 - j
            matrix[count - 1 - j : count - 1 - j + len(own), j] = own
        outside = -low, low + both - kernel
        if min(outside) < 0:
            matrix = torch.nn.functional.pad(matrix, (0, 0, max(0, low), max(0, -outside[1])))
            outside = max(0, -low), max(0, outside[1])
        return cls(matrix, outside, before)


def _pair(value: Any) -> Pair:
    return (int(value[0]), int(value[1])) if isinstance(value, (tuple, list)) else (int(value), int(value))
