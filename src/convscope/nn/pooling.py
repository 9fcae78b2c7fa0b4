"""Pooling layers with one interface, so that one word swaps them: `pool2d("max", 2)`, `pool2d("blur", 2)`, ...

Those of torch are here too, with `output_size`. Element operations are counted for pools without learned weights,
not MACs; only `StridedConvPool2d` and the blurs, which are convolutions, have MACs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from convscope.errors import RequestError, UnknownName, nearest
from convscope.nn.conv import Conv2d
from convscope.nn.geometry import (
    MODES,
    Padding,
    Sides,
    Size,
    check_mode,
    out_size,
    pad,
    whole_numbers,
)

# ---------------------------------------------------------------- windows


class _Window(nn.Module):
    """`output_size` for torch's own pools."""

    kernel_size: Any
    stride: Any
    padding: Any
    ceil_mode: bool

    def reset_parameters(self) -> None:
        """There are none."""

    def output_size(self, input_size: Size) -> tuple[int, ...]:
        """Height and width of the output for an input of this height and width.

        Raises:
            RequestError: the window is larger than the padded input.
        """
        size = whole_numbers(input_size, 2, "input_size")
        kernel, stride, amounts, dilation = (
            whole_numbers(value, 2, name, least)
            for value, name, least in (
                (self.kernel_size, "kernel_size", 1),
                (self.stride, "stride", 1),
                (self.padding, "padding", 0),
                (getattr(self, "dilation", 1), "dilation", 1),
            )
        )
        sides = tuple((amount, amount) for amount in amounts)
        if not self.ceil_mode:
            return out_size(size, kernel, stride, dilation, sides)
        reach = tuple(s - 1 for s in stride)  # the last window may hang over by so many
        wider = tuple((before, after + more) for (before, after), more in zip(sides, reach, strict=True))
        found = out_size(size, kernel, stride, dilation, wider)
        starts = ((n - 1) * s for n, s in zip(found, stride, strict=True))  # windows begin on the image
        inside = (at < n + p for at, n, p in zip(starts, size, amounts, strict=True))
        return tuple(n if fits else n - 1 for n, fits in zip(found, inside, strict=True))


class MaxPool2d(nn.MaxPool2d, _Window):
    """torch's max pooling, with `output_size`.

    For an input `[batch, channels, height, width]`, or one without batch, each axis of the output has

        size' = floor((size + 2 padding - dilation (kernel - 1) - 1) / stride) + 1

    positions; with `ceil_mode` the quotient is rounded up, without windows that begin beyond the image.

    - Parameters: none.
    - MACs: none; channels height' width' kernel_h kernel_w comparisons an image.

    Example:
        >>> layer = MaxPool2d(3, stride=2, padding=1)
        >>> layer.output_size((7, 8)), layer(torch.zeros(1, 4, 7, 8)).shape
        ((4, 4), torch.Size([1, 4, 4, 4]))
    """


class AvgPool2d(nn.AvgPool2d, _Window):
    """torch's average pooling, with `output_size`.

    For an input `[batch, channels, height, width]`, or one without batch, each axis of the output has

        size' = floor((size + 2 padding - kernel) / stride) + 1

    positions; with `ceil_mode` the quotient is rounded up, without windows that begin beyond the image.

    - Parameters: none.
    - MACs: none; channels height' width' kernel_h kernel_w additions an image.

    Example:
        >>> layer = AvgPool2d(2, ceil_mode=True)
        >>> layer.output_size((7, 8)), layer(torch.zeros(1, 4, 7, 8)).shape
        ((4, 4), torch.Size([1, 4, 4, 4]))
    """


class StridedConvPool2d(Conv2d):
    """A convolution in the place of a pool: as many channels out as in, a stride, weights that learn.

    It begins as average pooling: 1 / (kernel_h kernel_w) from each channel to itself, nothing across. For an
    input `[batch, channels, height, width]`, or one without batch, each axis of the output has

        size' = floor((size + before + after - kernel) / stride) + 1

    positions.

    - Parameters: channels (channels / groups) kernel_h kernel_w, and channels with a bias.
    - MACs: batch height' width' channels (channels / groups) kernel_h kernel_w.

    Springenberg, Dosovitskiy, Brox, Riedmiller, "Striving for Simplicity: The All Convolutional Net" (2015).

    Args:
        channels: of input and output.
        kernel_size: of the window: one number, or (height, width).
        stride: one number, or one an axis; the kernel's size unless given.
        padding, padding_mode, algorithm: as for `Conv2d`.
        groups: `channels` of them keep every channel to itself for good; 1 lets all mix.
        bias: whether a number, at first 0, is added to each channel.
        device, dtype: of the parameters.

    Raises:
        RequestError: an argument is wrong; it is a ValueError, as torch raises.

    Example:
        >>> x = torch.randn(1, 4, 6, 6)
        >>> torch.allclose(StridedConvPool2d(4, 2)(x), nn.AvgPool2d(2)(x), atol=1e-6)
        True
    """

    def __init__(
        self,
        channels: int,
        kernel_size: Size = 2,
        stride: Size | None = None,
        padding: Padding = 0,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        algorithm: str = "direct",
    ) -> None:
        super().__init__(
            channels,
            channels,
            kernel_size,
            kernel_size if stride is None else stride,
            padding,
            1,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
            algorithm=algorithm,
        )

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Makes it average pooling again."""
        self.weight.zero_()
        outputs = torch.arange(self.out_channels, device=self.weight.device)
        own = outputs % (self.in_channels // self.groups)  # each channel's place within its group
        self.weight[outputs, own] = 1 / math.prod(self.kernel_size)
        if self.bias is not None:
            self.bias.zero_()


class BlurPool2d(nn.Module):
    """Blurs before it subsamples, so that a shift of the input by a pixel changes the output little.

    The blur is the row of Pascal's triangle with `kernel_size` entries, along both axes, over an image padded to keep
    its size; every `stride`-th position is computed. For an input `[batch, channels, height, width]`, or one without
    batch, each axis of the output has size' = ceil(size / stride) positions.

    - Parameters: none.
    - MACs: batch channels height' width' kernel_size², those of the depthwise convolution that it runs as.

    Zhang, "Making Convolutional Networks Shift-Invariant Again" (2019).

    Args:
        kernel_size: entries of the row: 1 none (bare subsampling), 2 a box, 3 1-2-1, 4 1-3-3-1, ...
        stride: one number, or one an axis.
        padding_mode: "reflect", "replicate", "circular", or "zeros", which darkens borders.

    Raises:
        RequestError: an argument is wrong; it is a ValueError, as torch raises.

    Example:
        >>> layer = BlurPool2d(3)
        >>> layer(torch.ones(1, 1, 5, 6)).shape, (layer.filter * 16).int().tolist()
        (torch.Size([1, 1, 3, 3]), [[1, 2, 1], [2, 4, 2], [1, 2, 1]])
    """

    filter: Tensor

    def __init__(self, kernel_size: int = 3, stride: Size = 2, padding_mode: str = "reflect") -> None:
        super().__init__()
        (self.kernel_size,) = whole_numbers(kernel_size, 1, "kernel_size")
        self.stride = whole_numbers(stride, 2, "stride")
        self.padding_mode = check_mode(padding_mode, MODES)
        side = ((self.kernel_size - 1) // 2, self.kernel_size // 2)
        self.sides: Sides = (side, side)
        self.register_buffer("filter", torch.empty(self.kernel_size, self.kernel_size), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets the filter, which is a buffer that does not learn."""
        row = [math.comb(self.kernel_size - 1, at) for at in range(self.kernel_size)]
        weights = torch.tensor(row, dtype=torch.float64) / sum(row)
        self.filter.copy_(torch.outer(weights, weights))

    def output_size(self, input_size: Size) -> tuple[int, ...]:
        """Height and width of the output for an input of this height and width."""
        size = whole_numbers(input_size, 2, "input_size")
        return tuple(-(-n // s) for n, s in zip(size, self.stride, strict=True))

    def forward(self, input: Tensor) -> Tensor:
        """`[batch, channels, height, width]` to `[batch, channels, height', width']`; the batch may be missing."""
        channels = input.shape[-3]
        weight = self.filter.to(input.dtype).expand(channels, 1, -1, -1)
        return functional.conv2d(
            pad(input, self.sides, self.padding_mode), weight, None, self.stride, groups=channels
        )

    def extra_repr(self) -> str:
        """All arguments."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding_mode={self.padding_mode}"


class MaxBlurPool2d(nn.Module):
    """Max pooling as Zhang (2019) makes it shift-consistent: the maximum at every position, then `BlurPool2d`.

    For an input `[batch, channels, height, width]`, or one without batch, each axis of the output has

        size' = ceil((size + 2 padding - kernel + 1) / stride)

    positions.

    - Parameters: none.
    - MACs: batch channels height' width' blur_size².

    Args:
        kernel_size: of the maximum's window: one number, or (height, width).
        stride: of the blur: one number, or one an axis; the window's size unless given.
        padding: around the input of the maximum: one number, or one an axis.
        blur_size, padding_mode: of the blur, as for `BlurPool2d`.

    Raises:
        RequestError: an argument is wrong; it is a ValueError, as torch raises.

    Example:
        >>> layer = MaxBlurPool2d(2)
        >>> layer.output_size((7, 8)), layer(torch.zeros(1, 4, 7, 8)).shape
        ((3, 4), torch.Size([1, 4, 3, 4]))
    """

    def __init__(
        self,
        kernel_size: Size = 2,
        stride: Size | None = None,
        padding: Size = 0,
        blur_size: int = 3,
        padding_mode: str = "reflect",
    ) -> None:
        super().__init__()
        kernel = whole_numbers(kernel_size, 2, "kernel_size")
        amounts = whole_numbers(padding, 2, "padding", 0)
        self.max = MaxPool2d(kernel, 1, amounts)
        self.blur = BlurPool2d(blur_size, kernel if stride is None else stride, padding_mode)

    def reset_parameters(self) -> None:
        """Sets the blur's filter."""
        self.blur.reset_parameters()

    def output_size(self, input_size: Size) -> tuple[int, ...]:
        """Height and width of the output for an input of this height and width."""
        return self.blur.output_size(self.max.output_size(input_size))

    def forward(self, input: Tensor) -> Tensor:
        """`[batch, channels, height, width]` to `[batch, channels, height', width']`; the batch may be missing."""
        return self.blur(self.max(input))


class NoPool2d(nn.Module):
    """The identity, in the place of a pool: a dense network keeps all positions.

    `kernel_size`, `stride` and `padding` are those of the pool it stands for. To keep what later layers see, its
    stride has to become their dilation: this layer says by how much, it does not change them.

    The output is the input.

    - Parameters: none.
    - MACs: none.

    Example:
        >>> layer, x = NoPool2d(2), torch.randn(1, 3, 4, 5)
        >>> layer(x) is x, layer.output_size((4, 5)), layer.stride
        (True, (4, 5), (2, 2))
    """

    def __init__(self, kernel_size: Size = 2, stride: Size | None = None, padding: Size = 0) -> None:
        super().__init__()
        self.kernel_size = whole_numbers(kernel_size, 2, "kernel_size")
        self.stride = whole_numbers(self.kernel_size if stride is None else stride, 2, "stride")
        self.padding = whole_numbers(padding, 2, "padding", 0)

    def reset_parameters(self) -> None:
        """There are none."""

    def output_size(self, input_size: Size) -> tuple[int, ...]:
        """The size itself."""
        return whole_numbers(input_size, 2, "input_size")

    def forward(self, input: Tensor) -> Tensor:
        """The input itself."""
        return input

    def extra_repr(self) -> str:
        """Arguments of the pool it stands for."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


# ---------------------------------------------------------------- the whole image


class _Global(nn.Module):
    """One number a channel."""

    def __init__(self, keepdim: bool = True) -> None:
        super().__init__()
        self.keepdim = keepdim

    def reset_parameters(self) -> None:
        """There are none."""

    def output_size(self, input_size: Size) -> tuple[int, ...]:
        """(1, 1) whatever the input's height and width; () without `keepdim`."""
        whole_numbers(input_size, 2, "input_size")
        return (1, 1) if self.keepdim else ()

    def extra_repr(self) -> str:
        """Nothing where the axes are kept."""
        return "" if self.keepdim else "keepdim=False"


class GlobalAvgPool2d(_Global):
    """The mean over all positions.

    `[batch, channels, height, width]`, or without batch, becomes `[batch, channels, 1, 1]`, without `keepdim`
    `[batch, channels]`.

    - Parameters: none.
    - MACs: none; channels height width additions an image.

    Lin, Chen, Yan, "Network In Network" (2014).

    Args:
        keepdim: whether height and width stay, as axes of size 1.

    Example:
        >>> GlobalAvgPool2d()(torch.ones(2, 3, 4, 5)).shape, GlobalAvgPool2d(keepdim=False)(torch.ones(3, 4, 5))
        (torch.Size([2, 3, 1, 1]), tensor([1., 1., 1.]))
    """

    def forward(self, input: Tensor) -> Tensor:
        """`[..., height, width]` to `[..., 1, 1]` or `[...]`."""
        return input.mean((-2, -1), keepdim=self.keepdim)


class GlobalMaxPool2d(_Global):
    """The maximum over all positions; where several are equal they share the gradient.

    `[batch, channels, height, width]`, or without batch, becomes `[batch, channels, 1, 1]`, without `keepdim`
    `[batch, channels]`.

    - Parameters: none.
    - MACs: none; channels height width comparisons an image.

    Args:
        keepdim: whether height and width stay, as axes of size 1.

    Example:
        >>> GlobalMaxPool2d(keepdim=False)(torch.arange(12.0).view(2, 2, 3))
        tensor([ 5., 11.])
    """

    def forward(self, input: Tensor) -> Tensor:
        """`[..., height, width]` to `[..., 1, 1]` or `[...]`."""
        return input.amax((-2, -1), keepdim=self.keepdim)


# ---------------------------------------------------------------- fractional

SAMPLINGS: Final = ("random", "pseudorandom")
_BITS = 24  # of a random number: products with sizes up to half a million stay exact


class FractionalMaxPool2d(nn.Module):
    """Max pooling by a factor that need not be whole, over regions drawn at random.

    Along each axis of n pixels and n' outputs a sequence a_0 < a_1 < ... < a_n' is drawn; output i is the maximum of the
    pixels a_i to a_(i+1) - 1 (disjoint) or a_i to a_(i+1) (overlapping). With alpha the mean step,

    - "pseudorandom": a_i = ceil(alpha (i + u)) with one u in (0, 1), counted from a_0: steps are regular;
    - "random": steps of floor(alpha) and floor(alpha) + 1 in random order.

    Regions begin with the first pixel and end with the last: alpha = n / n' for disjoint ones, (n - 1) / n' for
    overlapping ones, which share a pixel. (In the paper's text disjoint regions leave the last pixel out; here, as in
    other implementations, they do not.) All images and channels of a batch have the same regions.

    In training each call draws new regions: from torch's global random state, or, if a seed is given, from a
    stream of its own, whose place is in the state_dict (`draws`): a resumed training goes on where it was. A
    recomputed forward pass (activation checkpointing) repeats the regions only without a seed. In eval mode the regions are
    always the first ones of the seed, or of seed 0.

    For an input `[batch, channels, height, width]`, or one without batch, each axis of the output has `output_size`
    positions, or size' = floor(size output_ratio).

    - Parameters: none.
    - MACs: none; a region has about alpha_h alpha_w pixels to compare.

    Graham, "Fractional Max-Pooling" (2014).

    Args:
        output_ratio: size of the output over that of the input, up to 1: one number, or one an axis.
        output_size: size of the output, instead: one number, or (height, width).
        sampling: "pseudorandom" or "random".
        overlapping: whether neighbouring regions share a pixel.
        seed: of the stream the regions come from.

    Raises:
        RequestError: an argument is wrong; it is a ValueError, as torch raises.

    Example:
        >>> layer = FractionalMaxPool2d(output_size=(2, 3), overlapping=False, seed=1).eval()
        >>> layer(torch.arange(20.0).view(1, 4, 5))[0, 1]
        tensor([...19.])
    """

    draws: Tensor

    def __init__(
        self,
        output_ratio: float | Sequence[float] | None = None,
        output_size: Size | None = None,
        sampling: str = "pseudorandom",
        overlapping: bool = True,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if output_ratio is not None and output_size is not None:
            raise RequestError(
                f"output_ratio={output_ratio!r} and output_size={output_size!r} say the same; give one of them."
            )
        if sampling not in SAMPLINGS:
            known = " or ".join(map(repr, SAMPLINGS))
            raise RequestError(f"sampling={sampling!r} must be {known}{nearest(sampling, SAMPLINGS)}.")
        if seed is not None and not 0 <= seed < 2**63:
            raise RequestError(f"seed={seed!r} must be a whole number from 0 to 2**63 - 1, or None.")
        self.target = None if output_size is None else whole_numbers(output_size, 2, "output_size")
        ratio = math.sqrt(0.5) if output_ratio is None else output_ratio
        self.output_ratio = None if self.target is not None else _ratios(ratio)
        self.sampling, self.overlapping, self.seed = sampling, overlapping, seed
        if seed is not None:
            self.register_buffer("draws", torch.zeros((), dtype=torch.int64))

    def reset_parameters(self) -> None:
        """Goes back to the beginning of the stream."""
        if self.seed is not None:
            self.draws.zero_()

    def output_size(self, input_size: Size) -> tuple[int, ...]:
        """Height and width of the output for an input of this height and width.

        Raises:
            RequestError: the input has too few pixels for so many regions, or none is left.
        """
        return self._outputs(whole_numbers(input_size, 2, "input_size"))

    def _outputs(self, size: Sequence[int]) -> tuple[int, ...]:
        if self.output_ratio is None:
            found = self.target or ()
        else:  # in fractions: a third of 3 is 1
            ratios = (Fraction(ratio).limit_denominator(10**6) for ratio in self.output_ratio)
            found = tuple(n * r.numerator // r.denominator for n, r in zip(size, ratios, strict=True))
        for n, outputs in zip(size, found, strict=True):
            if not 1 <= outputs <= n - self.overlapping:
                kind = "overlapping" if self.overlapping else "disjoint"
                raise RequestError(
                    f"input_size={tuple(size)} cannot be cut into {tuple(found)} {kind} regions; change the "
                    f"input, output_size or output_ratio."
                )
        return tuple(found)

    def regions(self, input_size: Sequence[int], device: torch.device | str = "cpu") -> list[Tensor]:
        """Draws regions, as a call does: the first pixel of each and the pixel after its last. [2, outputs] an axis"""
        outputs = self._outputs(input_size)
        draw = self._draw(device)
        found = []
        for axis, (n, count) in enumerate(zip(input_size, outputs, strict=True)):
            if self.seed is None and self.training:
                numbers = torch.randint(2**_BITS, (count,), device=device)
            else:
                numbers = _stream(draw, self.seed or 0, axis, count)
            starts = _sequence(numbers, n - self.overlapping, count, self.sampling)  # [count + 1]
            found.append(torch.stack((starts[:-1], starts[1:] + int(self.overlapping))))
        return found

    def _draw(self, device: torch.device | str) -> Tensor:
        """Which regions of the stream are next; those after them come next time. []"""
        if self.seed is None or not self.training:
            return torch.zeros((), dtype=torch.int64, device=device)
        now = self.draws.to(device, copy=True)
        self.draws.add_(1)
        return now

    def forward(self, input: Tensor) -> Tensor:
        """`[batch, channels, height, width]` to `[batch, channels, height', width']`; the batch may be missing."""
        size = input.shape[-2:]
        windows = []
        for axis, (first, stop), n in zip((-2, -1), self.regions(size, input.device), size, strict=True):
            count = len(first)
            widest = -(-(n - self.overlapping) // count) + self.overlapping
            pixels = first[:, None] + torch.arange(widest, device=input.device)  # [count, widest]
            pixels = torch.minimum(pixels, stop[:, None] - 1)  # a smaller region repeats its last pixel
            input = input.index_select(axis, pixels.flatten())
            windows.append(widest)
        return functional.max_pool2d(input, windows)

    def extra_repr(self) -> str:
        """Size or ratio, and what differs from the defaults."""
        wanted = f"output_size={self.target}" if self.target else f"output_ratio={self.output_ratio}"
        seed = "" if self.seed is None else f", seed={self.seed}"
        return f"{wanted}, sampling={self.sampling}, overlapping={self.overlapping}{seed}"


def _ratios(ratio: float | Sequence[float]) -> tuple[float, ...]:
    found = (ratio, ratio) if isinstance(ratio, int | float) else tuple(ratio)
    if len(found) != 2 or not all(0 < r <= 1 for r in found):
        raise RequestError(f"output_ratio={ratio!r} must be a number above 0, at most 1, or two of them.")
    return tuple(map(float, found))


# Operators of their own, because compilers would spread this arithmetic over every pixel of the pooling.


@torch.library.custom_op(
    "convscope::stream", mutates_args=(), schema="(Tensor draw, int seed, int axis, SymInt count) -> Tensor"
)
def _stream(draw: Tensor, seed: int, axis: int, count: int) -> Tensor:
    """Numbers of a stream, uniform below 2**24: those of one draw and axis. [count]"""
    places = torch.arange(count, device=draw.device) * 2 + axis
    return _scramble(_scramble(_scramble(places) + draw) + seed) & (2**_BITS - 1)


@_stream.register_fake
def _(draw: Tensor, seed: int, axis: int, count: int) -> Tensor:
    return draw.new_empty(count)


def _scramble(numbers: Tensor) -> Tensor:
    """Random bits from whole numbers, the same on every device: the finalizer of splitmix64."""
    numbers = numbers + -0x61C8864680B583EB
    numbers = (numbers ^ ((numbers >> 30) & (2**34 - 1))) * -0x40A7B892E31B1A47
    numbers = (numbers ^ ((numbers >> 27) & (2**37 - 1))) * -0x6B2FB644ECCEEE15
    return numbers ^ ((numbers >> 31) & (2**33 - 1))


@torch.library.custom_op(
    "convscope::fractional_sequence",
    mutates_args=(),
    schema="(Tensor numbers, SymInt total, SymInt count, str sampling) -> Tensor",
)
def _sequence(numbers: Tensor, total: int, count: int, sampling: str) -> Tensor:
    """Where regions begin, and where the last one ends: from 0 to `total` in `count` steps. [count + 1]"""
    if sampling == "random":
        steps = total // count + (numbers.argsort(stable=True) < total % count)
        return torch.cat((steps.new_zeros(1), steps.cumsum(0)))
    # ceil(alpha (i + u)), alpha = total / count, u = (numbers[0] + 1/2) / 2**24, in whole numbers
    at = torch.arange(count + 1, device=numbers.device) * 2 ** (_BITS + 1) + 2 * numbers[0] + 1
    reached = -(-(total * at) // (count * 2 ** (_BITS + 1)))
    return reached - reached[0]


@_sequence.register_fake
def _(numbers: Tensor, total: int, count: int, sampling: str) -> Tensor:
    return numbers.new_empty(count + 1)


# ---------------------------------------------------------------- one word


def _strided_conv(
    kernel: Size, stride: Size, padding: Size, channels: int | None, **options: Any
) -> nn.Module:
    if channels is None:
        raise RequestError('pool2d("strided_conv") has weights for each channel; give channels=.')
    return StridedConvPool2d(channels, kernel, stride, padding, **options)


def _blur(kernel: Size, stride: Size, padding: Size, channels: int | None, **options: Any) -> nn.Module:
    _unpadded("blur", padding)
    height, width = whole_numbers(kernel, 2, "kernel_size")
    if height != width:
        raise RequestError(
            f'kernel_size={kernel!r} must be one number for pool2d("blur"): its blur is square.'
        )
    return BlurPool2d(height, stride, **options)


def _fractional(kernel: Size, stride: Size, padding: Size, channels: int | None, **options: Any) -> nn.Module:
    _unpadded("fractional_max", padding)
    windows, steps = whole_numbers(kernel, 2, "kernel_size"), whole_numbers(stride, 2, "stride")
    options.setdefault("overlapping", any(w > s for w, s in zip(windows, steps, strict=True)))
    if "output_size" not in options:
        options.setdefault("output_ratio", [1 / step for step in steps])
    return FractionalMaxPool2d(**options)


def _unpadded(kind: str, padding: Size) -> None:
    if any(whole_numbers(padding, 2, "padding", 0)):
        raise RequestError(
            f"padding={padding!r} must be 0 for pool2d({kind!r}), which pads by itself or not."
        )


_KINDS: Final[dict[str, Callable[..., nn.Module]]] = {
    "max": lambda kernel, stride, padding, channels, **options: MaxPool2d(kernel, stride, padding, **options),
    "avg": lambda kernel, stride, padding, channels, **options: AvgPool2d(kernel, stride, padding, **options),
    "strided_conv": _strided_conv,
    "blur": _blur,
    "max_blur": lambda kernel, stride, padding, channels, **options: MaxBlurPool2d(
        kernel, stride, padding, **options
    ),
    "fractional_max": _fractional,
    "none": lambda kernel, stride, padding, channels, **options: NoPool2d(kernel, stride, padding, **options),
    "global_avg": lambda kernel, stride, padding, channels, **options: GlobalAvgPool2d(**options),
    "global_max": lambda kernel, stride, padding, channels, **options: GlobalMaxPool2d(**options),
}


def pool2d(
    kind: str,
    kernel_size: Size = 2,
    stride: Size | None = None,
    padding: Size = 0,
    *,
    channels: int | None = None,
    **options: Any,
) -> nn.Module:
    """A pooling layer by name, so that one word swaps them.

    Args:
        kind: "max", "avg", "strided_conv", "blur", "max_blur", "fractional_max", "none", "global_avg" or "global_max".
        kernel_size: of the window; of the blur for "blur"; overlapping regions for "fractional_max" where it
            is larger than the stride; without meaning for global pools.
        stride: the kernel's size unless given. "fractional_max" divides the size by it.
        padding: around the input; 0 for "blur" and "fractional_max"; without meaning for global pools.
        channels: of the input; "strided_conv" needs it, the others take any number.
        options: further arguments of the layer, such as `blur_size`, `groups`, `sampling` or `seed`.

    Returns:
        A module with `output_size`.

    Raises:
        UnknownName: there is no such kind.
        RequestError: an argument does not fit the kind.

    Example:
        >>> for kind in ("max", "avg", "strided_conv", "blur", "max_blur", "fractional_max", "none"):
        ...     print(kind, pool2d(kind, 2, channels=8).output_size((6, 9)))
        max (3, 4)
        avg (3, 4)
        strided_conv (3, 4)
        blur (3, 5)
        max_blur (3, 4)
        fractional_max (3, 4)
        none (6, 9)
    """
    if kind not in _KINDS:
        raise UnknownName(f"there is no pool {kind!r}{nearest(kind, _KINDS)}; known are {', '.join(_KINDS)}.")
    return _KINDS[kind](
        kernel_size, kernel_size if stride is None else stride, padding, channels=channels, **options
    )
