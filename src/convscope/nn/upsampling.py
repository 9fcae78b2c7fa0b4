"""One word for each way to upsample, so that one word swaps them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from convscope.errors import RequestError, UnknownName, nearest
from convscope.nn.geometry import Size, check_channels, whole_numbers
from convscope.nn.interpolation import BedOfNails2d, BilinearUpsample2d, NearestUpsample2d
from convscope.nn.resize_conv import ResizeConv2d
from convscope.nn.subpixel import PixelShuffleUpsample2d
from convscope.nn.transposed import TransposedConv2d
from convscope.nn.unpooling import MaxUnpool2d, SwitchedMaxPool2d

Scale = tuple[int, ...]


def _transposed(in_channels: int, out_channels: int, scale: Scale, **options: Any) -> nn.Module:
    """A kernel that the stride divides, centred: twice the stride, or three times where it is odd."""
    if "kernel_size" not in options:
        options["kernel_size"] = tuple(s * (2 + s % 2) for s in scale)
    kernel = whole_numbers(options["kernel_size"], 2, "kernel_size")
    if any(k < s for k, s in zip(kernel, scale, strict=True)):
        raise RequestError(
            f"kernel_size={kernel} must be at least scale_factor={scale}, or outputs stay empty."
        )
    options.setdefault("padding", tuple((k - s + 1) // 2 for k, s in zip(kernel, scale, strict=True)))
    options.setdefault("output_padding", tuple((k - s) % 2 for k, s in zip(kernel, scale, strict=True)))
    return TransposedConv2d(in_channels, out_channels, stride=scale, **options)


_WEIGHTLESS: Mapping[str, Callable[..., nn.Module]] = {
    "nearest": NearestUpsample2d,
    "bilinear": BilinearUpsample2d,
    "bed_of_nails": BedOfNails2d,
}
_LEARNED: Mapping[str, Callable[..., nn.Module]] = {
    "transposed": _transposed,
    "pixel_shuffle": PixelShuffleUpsample2d,
    "resize_conv": ResizeConv2d,
}
UPSAMPLINGS = (*_WEIGHTLESS, "max_unpool", *_LEARNED)


def upsample2d(
    kind: str,
    in_channels: int,
    out_channels: int | None = None,
    scale_factor: Size = 2,
    *,
    pool: SwitchedMaxPool2d | None = None,
    **options: Any,
) -> nn.Module:
    """An upsampling layer by its name; all take images of `in_channels` and enlarge them `scale_factor` times.

    Args:
        kind: "nearest", "bilinear", "bed_of_nails" or "max_unpool", without weights; "transposed",
            "pixel_shuffle" or "resize_conv", learned.
        in_channels: channels of the input.
        out_channels: channels of the output; as many where it is None. Those without weights keep the number.
        scale_factor: one whole number, or (height, width).
        pool: the pool whose switches "max_unpool" takes; other kinds need none and leave it alone, so that the
            word alone can be changed.
        options: further arguments of the layer. "transposed" has a kernel of twice the scale (three times where it is
            odd), which the stride divides, and the padding that keeps it centred, unless told otherwise.

    Returns:
        The layer.

    Raises:
        UnknownName: there is no such kind.
        RequestError: the kind cannot change the number of channels, "max_unpool" has no pool or one of another
            stride, or the layer refuses an argument.

    Example:
        >>> import torch
        >>> x = torch.zeros(1, 8, 5, 7)
        >>> for kind in ("nearest", "bilinear", "bed_of_nails", "transposed", "pixel_shuffle", "resize_conv"):
        ...     assert upsample2d(kind, 8)(x).shape == (1, 8, 10, 14)
    """
    if kind not in UPSAMPLINGS:
        known = ", ".join(map(repr, UPSAMPLINGS))
        raise UnknownName(f"there is no upsampling {kind!r}{nearest(kind, UPSAMPLINGS)}; known are {known}.")
    out_channels = in_channels if out_channels is None else out_channels
    check_channels(in_channels, out_channels, 1)
    scale = whole_numbers(scale_factor, 2, "scale_factor")
    if kind in _LEARNED:
        return _LEARNED[kind](in_channels, out_channels, scale, **options)
    if out_channels != in_channels:
        raise RequestError(
            f"upsample2d({kind!r}) keeps the number of channels: out_channels={out_channels} must be "
            f"in_channels={in_channels}; use 'resize_conv', or put a 1x1 convolution before."
        )
    if kind in _WEIGHTLESS:
        return _WEIGHTLESS[kind](scale, **options)
    if pool is None:
        raise RequestError(
            "upsample2d('max_unpool') needs pool=, the SwitchedMaxPool2d whose switches it takes."
        )
    if pool.stride != scale:
        raise RequestError(f"scale_factor={scale} must be the stride of the pool, {pool.stride}.")
    return MaxUnpool2d(pool, **options)
