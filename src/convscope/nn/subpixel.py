"""Upsampling by a convolution at low resolution whose channels become pixels."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from convscope.errors import RequestError, nearest
from convscope.nn.checkerboard import Checkerboard
from convscope.nn.conv import Conv2d
from convscope.nn.geometry import Padding, Size, whole_numbers
from convscope.nn.interpolation import image_batch

STARTS = ("icnr", "uniform")


class PixelShuffleUpsample2d(nn.Module):
    """A convolution to scale_h scale_w times the channels, each group of which fills a block of pixels.

    For an input `[batch, in_channels, height, width]`, or one without batch, the output has
    height' = scale_h (height of the convolution's output) rows, with padding "same" scale_h height; columns alike.
    Output channel c at row scale_h y + i, column scale_w x + j is channel (c scale_h + i) scale_w + j of the
    convolution at (y, x): `torch.nn.PixelShuffle`, for scales that may differ.

    - Parameters: in_channels out_channels scale_h scale_w kernel_h kernel_w, and out_channels scale_h scale_w with
      a bias.
    - MACs: batch height width in_channels out_channels scale_h scale_w kernel_h kernel_w (padding "same").

    It is a transposed convolution with a kernel of scale times the size, so that every output sums equally many taps;
    but pixels of a block have weights of their own, and a random start shows a checkerboard. `start="icnr"` gives all
    pixels of a block the same weights: the layer starts as the convolution, then nearest upsampling.
    Shi et al., "Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional Neural
    Network" (2016); Aitken et al., "Checkerboard artifact free sub-pixel convolution" (2017).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        scale_factor: one whole number, or (height, width).
        kernel_size: of the convolution, one number, or (height, width).
        padding, padding_mode, algorithm: of the convolution, as for `convscope.nn.Conv2d`.
        bias: whether the convolution adds a number to each of its output channels.
        start: "icnr", or "uniform" as torch's convolution starts.
        device, dtype: of the parameters.

    Raises:
        RequestError: an argument is wrong.

    Example:
        >>> layer = PixelShuffleUpsample2d(16, 3, scale_factor=2)
        >>> layer(torch.zeros(1, 16, 8, 8)).shape, layer.conv.weight.shape
        (torch.Size([1, 3, 16, 16]), torch.Size([12, 16, 3, 3]))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        scale_factor: Size = 2,
        kernel_size: Size = 3,
        *,
        padding: Padding = "same",
        padding_mode: str = "zeros",
        bias: bool = True,
        start: str = "icnr",
        algorithm: str = "direct",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        (out_channels,) = whole_numbers(out_channels, 1, "out_channels")
        self.scale_factor = cast(tuple[int, int], whole_numbers(scale_factor, 2, "scale_factor"))
        if start not in STARTS:
            raise RequestError(f"start={start!r} must be 'icnr' or 'uniform'{nearest(start, STARTS)}.")
        self.in_channels, self.out_channels, self.start = in_channels, out_channels, start
        self.conv = Conv2d(
            in_channels,
            out_channels * self.scale_factor[0] * self.scale_factor[1],
            kernel_size,
            padding=padding,
            padding_mode=padding_mode,
            bias=bias,
            algorithm=algorithm,
            device=device,
            dtype=dtype,
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Starts anew, from torch's random state."""
        self.conv.reset_parameters()
        if self.start == "icnr":
            with torch.no_grad():
                for parameter in self.conv.parameters():
                    blocks = parameter.unflatten(
                        0, (self.out_channels, -1)
                    )  # [out_channels, pixel of block, ...]
                    blocks.copy_(blocks[:, :1].clone().expand_as(blocks))

    def forward(self, x: Tensor) -> Tensor:
        image_batch(x, self)
        y = self.conv(x)
        scale_h, scale_w = self.scale_factor
        if scale_h == scale_w:
            return functional.pixel_shuffle(y, scale_h)
        blocks = y.unflatten(-3, (self.out_channels, scale_h, scale_w))  # [..., c, i, j, y, x]
        return blocks.movedim((-4, -3), (-3, -1)).flatten(-4, -3).flatten(-2)

    def checkerboard(self) -> Checkerboard:
        """The overlap pattern of the transposed convolution that this is: even taps, and the sums of the weights."""
        kernel, scale = self.conv.kernel_size, self.scale_factor
        taps = ((kernel[0] * kernel[1],) * scale[1],) * scale[0]
        sums = self.conv.weight.detach().sum((1, 2, 3)).view(self.out_channels, *scale)
        whole: Any = tuple(k * s for k, s in zip(kernel, scale, strict=True))
        return Checkerboard(whole, scale, (0, 0), (1, 1), taps, sums)

    def output_size(self, input_size: Size) -> tuple[int, ...]:
        """Height and width of the output for an input of this height and width."""
        low = self.conv.output_size(input_size)
        return tuple(n * scale for n, scale in zip(low, self.scale_factor, strict=True))

    def extra_repr(self) -> str:
        return f"scale_factor={self.scale_factor}, start={self.start!r}"
