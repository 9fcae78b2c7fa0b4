"""Pooling exchanged: max, average, blurred max, a strided convolution in its place, its stride moved forward or gone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from convscope import nn as layers
from convscope.errors import RequestError
from convscope.rewrites import verify
from convscope.rewrites.base import Change, Edit, LayerRule, Refused, register
from convscope.rewrites.convolution import Convolution, Pair
from convscope.rewrites.functional_pools import FunctionalPools
from convscope.rewrites.pool_none import check_plain, densify
from convscope.rewrites.work import Site, Work

KINDS = ("max", "average", "strided", "moved", "blur", "none")
RIDGE = 1e-6  # of the mean variance of the taps

# Of the best linear predictor of the maximum of n independent rectified Gaussians: what each tap weighs, times n.
_MAXIMA = {2: 1.60, 4: 1.96, 9: 2.16}


@dataclass(frozen=True)
class Window:
    """The geometry of a pooling."""

    kernel: Pair
    stride: Pair
    padding: Pair
    ceil: bool
    kind: str  # "max" or "average"
    counts_zeros: bool = True

    @classmethod
    def of(cls, module: nn.Module) -> Window:
        """Reads a pooling module.

        Raises:
            Refused: it does more than pool.
        """
        pool: Any = module
        if isinstance(module, nn.MaxPool2d):
            if _pair(pool.dilation) != (1, 1):
                raise Refused("its window is dilated")
            if pool.return_indices:
                raise Refused("it hands its indices to an unpooling")
        if isinstance(module, nn.AvgPool2d) and pool.divisor_override is not None:
            raise Refused("it divides by a number of its own")
        kernel = _pair(pool.kernel_size)
        stride = kernel if pool.stride is None else _pair(pool.stride)
        is_max = isinstance(module, nn.MaxPool2d)
        counts = is_max or bool(pool.count_include_pad)
        return cls(
            kernel, stride, _pair(pool.padding), bool(pool.ceil_mode), "max" if is_max else "average", counts
        )


@register
@dataclass(frozen=True)
class Pool(LayerRule):
    """Exchanges poolings; the size of the output stays, but for "none".

    - "max", "average": one for the other ("approximate"; no linear map equals a maximum). Global poolings too.
    - "strided": a depthwise convolution with the pool's window and stride. Of an average pooling "exact". Of a maximum
      the least-squares best on images, tap by tap and with a bias: for rectified Gaussian inputs and 2x2 about 0.49 a
      tap, not 0.25, at R^2 about 0.76; these taps are taken without images. Springenberg et al. (2015) then train it.
    - "moved": the pool goes, its stride is taken by the convolution in front of it (Strided-CNN of Springenberg et al.):
      the maximum is replaced by the one value that the stride keeps. "approximate".
    - "blur": the maximum at every position, then a binomial filter at the stride (Zhang, 2019): less aliasing.

    - "none": the pool looks at every position, and all later layers are dilated by its stride (Yu and Koltun, 2016; "a
      trous"). Every s-th position of the maps is what it was: "exact" where the network gives a map, now finer;
      "approximate" where it sums up a map, since it sums up the finer one. Costs s^2 as much from there on.

    Pools that a forward calls as functions become layers for it, `stem.pool` in the forward of `stem`, which `where` may
    name; see `convscope.rewrites.functional_pools`. Where the forward cannot be traced they are refused.

    Args:
        kind: one of these.
        window: another window for the new pool, one number or (height, width); the padding then keeps the output's size.
        where: which layers.

    Raises:
        RequestError: there is no such kind, or the window is not positive.

    Example:
        >>> import torch, convscope
        >>> net = convscope.load(torch.nn.Sequential(torch.nn.AvgPool2d(2)), input="3x8x8")
        >>> convscope.rewrite(net, Pool("strided")).edits[0].exactness
        'exact'
    """

    name: ClassVar[str] = "pool"
    kinds: ClassVar[tuple[type[nn.Module], ...]] = (
        nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, layers.GlobalAvgPool2d,
        layers.GlobalMaxPool2d,
    )  # fmt: skip

    kind: str
    window: int | tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise RequestError(f"kind={self.kind!r} must be one of {', '.join(KINDS)}.")
        if self.window is not None and min(_pair(self.window)) < 1:
            raise RequestError(f"window={self.window!r} must be a whole number from 1, or (height, width).")
        if self.window is not None and self.kind not in ("max", "average"):
            raise RequestError(
                f"window={self.window!r} goes with kind='max' or 'average', not {self.kind!r}."
            )

    def apply(self, work: Work) -> None:
        pools = FunctionalPools(work, whole=self.kind in ("max", "average"))
        first = len(work.edits)
        if self.kind in ("moved", "none"):
            sites = work.again(work.sites(self.kinds, self.where))
            if self.kind == "none":
                sites.reverse()  # what comes later is dilated for every pool before it
            for site in sites:
                site = dataclasses.replace(site, calls=work.calls(site.layer))
                try:
                    work.check(site, self.kinds)
                    self._move(site) if self.kind == "moved" else densify(self, work, site)
                except Refused as reason:
                    work.refuse(self, site.layer, str(reason))
        else:
            super().apply(work)
        pools.settle(first)
        if self.where == "*" == work.where:
            for layer, told in pools.refused.items():
                work.refuse(self, layer, told)

    def gather(self, work: Work, sites: Sequence[Site]) -> Mapping[str, Taps]:
        """Moments of the windows of each max pooling, channel by channel."""
        if self.kind != "strided" or not work.calibration.given:
            return {}
        found = {}
        for site in sites:
            part = site.module
            if isinstance(part, nn.MaxPool2d) and _pair(part.dilation) == (1, 1) and not part.ceil_mode:
                found[site.layer] = Taps(Window.of(part))
        if found:
            work.calibration.stream(work.module, {layer: each.add for layer, each in found.items()})
        return found

    def replace(self, site: Site) -> Change:
        module: Any = site.module
        check_plain(module)
        if not isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)):
            return self._global(module)
        old = Window.of(module)
        if self.kind == "strided":
            return self._strided(site, old)
        if self.kind == "blur":
            if old.kind != "max":
                raise Refused("it is an average, which is a blur already")
            if old.ceil:
                raise Refused("it rounds sizes up, which a blur at a stride does not")
            made = layers.MaxBlurPool2d(old.kernel, old.stride, old.padding)
            return Change(_checked(made, site), "approximate")
        return self._exchanged(site, old)

    def _exchanged(self, site: Site, old: Window) -> Change:
        kernel = old.kernel if self.window is None else _pair(self.window)
        if self.kind == old.kind and kernel == old.kernel:
            raise Refused(f"it is a pooling by {old.kind} of {kernel[0]}x{kernel[1]} already")
        extra = [new - k for new, k in zip(kernel, old.kernel, strict=True)]
        padding = (old.padding[0] + extra[0] // 2, old.padding[1] + extra[1] // 2)
        if any(e % 2 for e in extra) or min(padding) < 0:
            raise Refused(
                f"a window of {kernel[0]}x{kernel[1]} cannot be centred where {old.kernel[0]}x{old.kernel[1]} was; take one "
                "that differs by an even number"
            )
        if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
            raise Refused("its padding would be more than half the window")
        made: nn.Module
        if self.kind == "max":
            made = nn.MaxPool2d(kernel, old.stride, padding, ceil_mode=old.ceil)
        else:
            made = nn.AvgPool2d(kernel, old.stride, padding, old.ceil, count_include_pad=False)
        same = kernel == (1, 1) == old.kernel
        return Change(_checked(made, site), "exact" if same else "approximate")

    def _strided(self, site: Site, old: Window) -> Change:
        if old.ceil:
            raise Refused("it rounds sizes up, which a convolution does not")
        if old.kind == "average" and old.padding != (0, 0) and not old.counts_zeros:
            raise Refused("it leaves its padding out of the mean, which a convolution cannot")
        channels, taps = site.in_shape[1], old.kernel[0] * old.kernel[1]
        made = nn.Conv2d(
            channels, channels, old.kernel, old.stride, old.padding, groups=channels, bias=old.kind == "max",
            dtype=torch.float64,
        )  # fmt: skip
        notes: tuple[str, ...] = ()
        with torch.no_grad():
            made.weight.fill_(1 / taps)
            if old.kind == "max":
                assert made.bias is not None
                made.bias.zero_()
                if site.gathered is not None:
                    weight, bias, share = site.gathered.fit()
                    made.weight.copy_(weight.view_as(made.weight))
                    made.bias.copy_(bias)
                    notes = (f"fitted by least squares, R^2 {share:.2f}",)
                else:
                    made.weight.fill_(_MAXIMA.get(taps, 1.0) / taps)
                    notes = ("without data: the taps that suit rectified Gaussian inputs",)
        return Change(made, "exact" if old.kind == "average" else "approximate", notes=notes)

    def _move(self, site: Site) -> None:
        """Takes the pool away and gives its stride to the convolution in front."""
        work, module = site.work, site.module
        if not isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)):
            raise Refused("it pools the whole map, and has no stride to move")
        check_plain(module)
        old = Window.of(module)
        if old.padding != (0, 0) or old.ceil:
            raise Refused("its padding or rounding would move the positions that are kept")
        if old.kernel != old.stride:
            raise Refused("its windows overlap, or leave gaps")
        front = _convolution_before(site)
        call = work.calls(front)[0]
        if any(n % s for n, s in zip(call.out_shapes[0][2:], old.stride, strict=True)):
            raise Refused("its map is no whole number of windows, so that other positions would be kept")
        before = dict(work.module.named_modules())[front]
        conv = Convolution.of(before)
        if conv.padding == "same" and conv.stride != (1, 1):
            raise Refused(f'the padding of {front!r} is "same", and would change with its stride')
        stride = (conv.stride[0] * old.stride[0], conv.stride[1] * old.stride[1])
        after = conv.with_(stride=stride, padding=conv.sides(conv.extent)).module()
        x = torch.randn(call.in_shapes[0], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        found = verify.compare(
            nn.Sequential(before, module), after, [(x,), *work.calibration.inputs(front, work)]
        )
        macs = work.rows[front].macs
        work.note(
            Edit(
                layer=site.layer, rule=str(self), before=str(module), after="Identity()", exactness="approximate",
                error=found.error, rms_error=found.rms_error, params=(0, 0),
                macs=(macs, macs // (old.stride[0] * old.stride[1])),
                notes=(f"its stride moved into {front}, whose multiply-accumulates are told",),
            )
        )  # fmt: skip
        work.put(front, after)
        work.put(site.layer, nn.Identity())

    def _global(self, module: Any) -> Change:
        adaptive = isinstance(module, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d))
        if adaptive and module.output_size not in (1, (1, 1)):
            raise Refused(f"it pools to {module.output_size}, whose windows depend on the size of the input")
        average = isinstance(module, (nn.AdaptiveAvgPool2d, layers.GlobalAvgPool2d))
        if self.kind not in ("max", "average") or self.window is not None:
            raise Refused(f"it pools the whole map, for which {self.kind!r} has no meaning")
        if average == (self.kind == "average"):
            raise Refused(f"it is a pooling by {self.kind} already")
        if adaptive:
            return Change(nn.AdaptiveMaxPool2d(1) if average else nn.AdaptiveAvgPool2d(1), "approximate")
        kind = layers.GlobalMaxPool2d if average else layers.GlobalAvgPool2d
        return Change(kind(keepdim=module.keepdim), "approximate")


class Taps:
    """Second moments of a max pooling's windows, channel by channel, and of its outputs with them."""

    def __init__(self, window: Window) -> None:
        self.window = window
        self.inputs: Tensor | None = None  # [channel, taps + 1, taps + 1]
        self.outputs: Tensor | None = None  # [channel, taps + 1]
        self.power: Tensor | None = None  # [channel]: sum of squares of the outputs

    def add(self, x: Tensor) -> None:
        """Adds those of a batch [image, channel, height, width]."""
        window, channels = self.window, x.shape[1]
        x = x.double()
        y = functional.max_pool2d(x, window.kernel, window.stride, window.padding)
        y = y.transpose(0, 1).flatten(1)  # [channel, sample]
        (down, right) = window.padding
        patches = functional.unfold(
            functional.pad(x, (right, right, down, down)), window.kernel, 1, 0, window.stride
        )
        patches = (
            patches.unflatten(1, (channels, -1)).permute(1, 2, 0, 3).flatten(2)
        )  # [channel, tap, sample]
        patches = torch.cat([patches, patches.new_ones(channels, 1, patches.shape[2])], 1)
        found = patches @ patches.mT, (patches @ y[..., None])[..., 0], y.square().sum(1)
        if self.inputs is None or self.outputs is None or self.power is None:
            self.inputs, self.outputs, self.power = found
        else:
            self.inputs, self.outputs = self.inputs + found[0], self.outputs + found[1]
            self.power = self.power + found[2]

    def fit(self) -> tuple[Tensor, Tensor, float]:
        """Taps [channel, tap], bias [channel], and the share of the outputs' variance that they explain."""
        assert self.inputs is not None
        assert self.outputs is not None
        assert self.power is not None
        edge = self.inputs.shape[1]
        ridge = RIDGE * self.inputs.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)[:, None, None]
        solved = torch.linalg.solve(self.inputs + ridge * torch.eye(edge, dtype=torch.float64), self.outputs)
        count = self.inputs[:, -1, -1]
        mean = self.outputs[:, -1] / count
        total = float((self.power - count * mean.square()).sum())
        left = float((self.power - (solved * self.outputs).sum(1)).sum())
        return solved[:, :-1], solved[:, -1], 1 - left / total if total > 0 else 1.0


def _pair(value: Any) -> Pair:
    return (int(value[0]), int(value[1])) if isinstance(value, (tuple, list)) else (int(value), int(value))


def _checked(made: nn.Module, site: Site) -> nn.Module:
    """The module, if its output has the size that the layer's had."""
    try:
        meta: Tensor = verify.copied(made).to("meta")(
            torch.empty(site.in_shape, device="meta", dtype=torch.float64)
        )
    except RuntimeError as error:  # torch's own: no room for the padding, say
        told = " ".join(str(error).split())[:100]
        raise Refused(f"its map of {list(site.in_shape[2:])} is too small for the new one ({told})") from None
    if tuple(meta.shape) != site.out_shape:
        raise Refused(f"its output would be {list(meta.shape)}, not {list(site.out_shape)}")
    return made


def _convolution_before(site: Site) -> str:
    """The convolution whose output, through rectifiers and batch norms alone, is what the pool reads.

    Raises:
        Refused: there is none, or something else reads the maps between.
    """
    work = site.work
    graph = work.graph
    readers: dict[int, int] = {}
    for op in graph.ops:
        for value in op.inputs:
            readers[value] = readers.get(value, 0) + 1
    modules = dict(work.module.named_modules())
    makers = {  # identities hand on what they are given, and make nothing
        value: call
        for call in graph.calls
        if call.is_leaf
        for value in call.outputs
        if value not in call.inputs
    }
    between = (
        nn.ReLU,
        nn.ReLU6,
        nn.BatchNorm2d,
        nn.Identity,
        nn.Dropout,
        nn.LeakyReLU,
        nn.SiLU,
        nn.GELU,
        nn.Hardtanh,
    )
    if len(site.calls) != 1:
        raise Refused("it is called from several places")
    value = site.calls[0].inputs[0]
    while True:
        call = makers.get(value)
        if call is None or readers.get(value, 0) > 1 or len(work.calls(call.name)) != 1:
            raise Refused("no convolution gives its map to it alone")
        if isinstance(modules[call.name], nn.Conv2d):
            return call.name
        if not isinstance(modules[call.name], between):
            raise Refused(
                f"between it and a convolution stands a {call.kind}, which looks at more than one position"
            )
        value = call.inputs[0]
