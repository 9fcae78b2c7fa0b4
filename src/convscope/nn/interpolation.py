"""Upsampling without weights: repeat, interpolate, or leave holes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn import functional

from convscope.errors import BadInput, RequestError
from convscope.nn.geometry import Size, whole_numbers

Scale = float | Sequence[float]


def image_batch(x: Tensor, layer: nn.Module) -> Tensor:
    """The input as [batch, channels, height, width], whether it came with a batch or not.

    Raises:
        BadInput: it has neither three nor four axes.
    """
    if x.ndim not in (3, 4):
        raise BadInput(
            f"{type(layer).__name__} was given an input of shape {tuple(x.shape)}; it must be "
            f"[batch, channels, height, width] or [channels, height, width]."
        )
    return x if x.ndim == 4 else x.unsqueeze(0)


class _Interpolation(nn.Module):
    """What both interpolations share: their size and their call of torch."""

    scale_factor: tuple[float, float] | None
    size: tuple[int, int] | None

    def __init__(self, scale_factor: Scale | None, size: Size | None) -> None:
        super().__init__()
        if (scale_factor is None) == (size is None):
            raise RequestError(
                f"scale_factor={scale_factor!r} and size={size!r}: exactly one of them must be given."
            )
        self.scale_factor = None if scale_factor is None else _scales(scale_factor)
        self.size = None if size is None else cast(tuple[int, int], whole_numbers(size, 2, "size"))

    def output_size(self, input_size: Size) -> tuple[int, ...]:
        """Height and width of the output for an input of this height and width."""
        size = whole_numbers(input_size, 2, "input_size")
        if self.size is not None:
            return self.size
        assert self.scale_factor is not None
        return tuple(math.floor(n * scale) for n, scale in zip(size, self.scale_factor, strict=True))

    def reset_parameters(self) -> None:
        """There are none."""

    def extra_repr(self) -> str:
        return f"scale_factor={self.scale_factor}" if self.size is None else f"size={self.size}"

    def _resize(self, x: Tensor, mode: str, align_corners: bool | None, antialias: bool) -> Tensor:
        y = functional.interpolate(
            image_batch(x, self), self.size, self.scale_factor, mode, align_corners, antialias=antialias
        )
        return y if x.ndim == 4 else y.squeeze(0)


def _scales(value: Scale) -> tuple[float, float]:
    scales = tuple(value) if isinstance(value, Sequence) else (value, value)
    right = all(
        isinstance(s, int | float) and not isinstance(s, bool) and math.isfinite(s) and s > 0 for s in scales
    )
    if len(scales) != 2 or not right:
        raise RequestError(f"scale_factor={value!r} must be a positive number, or 2 of them.")
    return float(scales[0]), float(scales[1])


class NearestUpsample2d(_Interpolation):
    """Repeats pixels: each becomes a block of scale_h x scale_w.

    For an input `[batch, channels, height, width]`, or one without batch, the output has
    height' = floor(height scale_h) rows (or `size`), and output y shows input floor(y / scale_h), as
    `torch.nn.Upsample(mode="nearest")` does; columns alike.

    - Parameters: none.
    - MACs: none; one copy an output.

    Args:
        scale_factor: one positive number, or (height, width); need not be whole.
        size: height and width of the output instead.
        exact: output y shows input floor((y + 0.5) / scale_h), torch's "nearest-exact": pixel centres, as Pillow and
            scikit-image. No different where the scale is whole.

    Raises:
        RequestError: none or both of scale and size are given, or one is not positive.

    Example:
        >>> import torch
        >>> NearestUpsample2d(2)(torch.tensor([[[1.0, 2.0]]]))
        tensor([[[1., 1., 2., 2.],
                 [1., 1., 2., 2.]]])
    """

    def __init__(
        self, scale_factor: Scale | None = None, size: Size | None = None, *, exact: bool = False
    ) -> None:
        super().__init__(scale_factor, size)
        self.exact = exact

    def forward(self, x: Tensor) -> Tensor:
        return self._resize(x, "nearest-exact" if self.exact else "nearest", None, False)

    def extra_repr(self) -> str:
        return super().extra_repr() + (", exact=True" if self.exact else "")


class BilinearUpsample2d(_Interpolation):
    """Interpolates linearly between the four nearest pixels.

    For an input `[batch, channels, height, width]`, or one without batch, the output has
    height' = floor(height scale_h) rows (or `size`). Output y reads input at

    - (y + 0.5) / scale_h - 0.5, not below 0: pixels are squares, borders repeat (`align_corners=False`), or
    - y (height - 1) / (height' - 1): the corner pixels' centres stay in the corners (`align_corners=True`);

    columns alike. A scale of 2 without aligned corners weighs by 1/4 and 3/4.

    - Parameters: none.
    - MACs: none by convscope's count; interpolation is 4 multiplications an output, listed as element operations.

    Args:
        scale_factor: one positive number, or (height, width); need not be whole.
        size: height and width of the output instead.
        align_corners: see above.
        antialias: when the size shrinks, average over all pixels that an output covers, as Pillow does.

    Raises:
        RequestError: none or both of scale and size are given, or one is not positive.

    Example:
        >>> import torch
        >>> BilinearUpsample2d(2)(torch.tensor([[[0.0, 4.0]]]))[0, 0]
        tensor([0., 1., 3., 4.])
        >>> BilinearUpsample2d(size=(1, 5), align_corners=True)(torch.tensor([[[0.0, 4.0]]]))[0, 0]
        tensor([0., 1., 2., 3., 4.])
    """

    def __init__(
        self,
        scale_factor: Scale | None = None,
        size: Size | None = None,
        *,
        align_corners: bool = False,
        antialias: bool = False,
    ) -> None:
        super().__init__(scale_factor, size)
        self.align_corners = align_corners
        self.antialias = antialias

    def forward(self, x: Tensor) -> Tensor:
        return self._resize(x, "bilinear", self.align_corners, self.antialias)

    def extra_repr(self) -> str:
        antialias = ", antialias=True" if self.antialias else ""
        return f"{super().extra_repr()}, align_corners={self.align_corners}{antialias}"


class BedOfNails2d(nn.Module):
    """Spreads pixels apart, with zeros between: each becomes one corner of a block of scale_h x scale_w zeros.

    For an input `[batch, channels, height, width]`, or one without batch, the output is height scale_h by
    width scale_w. Followed by a convolution it is a transposed convolution.

    - Parameters: none.
    - MACs: none; one copy an input.

    Args:
        scale_factor: one whole number, or (height, width).
        offset: row and column of the block that the pixel takes; (0, 0) is top left.

    Raises:
        RequestError: a scale is not positive and whole, or the offset lies outside the block.

    Example:
        >>> import torch
        >>> BedOfNails2d(2)(torch.tensor([[[1.0, 2.0]]]))
        tensor([[[1., 0., 2., 0.],
                 [0., 0., 0., 0.]]])
    """

    def __init__(self, scale_factor: Size, offset: Size = 0) -> None:
        super().__init__()
        self.scale_factor = whole_numbers(scale_factor, 2, "scale_factor")
        self.offset = whole_numbers(offset, 2, "offset", least=0)
        if any(at >= scale for at, scale in zip(self.offset, self.scale_factor, strict=True)):
            raise RequestError(
                f"offset={offset!r} must lie in the block of scale_factor={scale_factor!r}: from 0 on, below it."
            )

    def forward(self, x: Tensor) -> Tensor:
        image_batch(x, self)
        (scale_h, scale_w), (top, left) = self.scale_factor, self.offset
        y = x.new_zeros(*x.shape[:-2], *self._outputs(x.shape[-2:]))
        y[..., top::scale_h, left::scale_w] = x
        return y

    def output_size(self, input_size: Size) -> tuple[int, ...]:
        """Height and width of the output for an input of this height and width."""
        return self._outputs(whole_numbers(input_size, 2, "input_size"))

    def _outputs(self, size: Sequence[int]) -> tuple[int, ...]:
        return tuple(n * scale for n, scale in zip(size, self.scale_factor, strict=True))

    def reset_parameters(self) -> None:
        """There are none."""

    def extra_repr(self) -> str:
        offset = f", offset={self.offset}" if any(self.offset) else ""
        return f"scale_factor={self.scale_factor}{offset}"
