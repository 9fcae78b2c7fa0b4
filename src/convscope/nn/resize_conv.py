"""Upsampling by interpolation and then a convolution: no checkerboard, by construction."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convscope.errors import RequestError, nearest
from convscope.nn.conv import Conv2d
from convscope.nn.geometry import Padding, Size, whole_numbers
from convscope.nn.interpolation import BilinearUpsample2d, NearestUpsample2d, image_batch
from convscope.nn.transposed import TransposedConv2d

MODES = ("nearest", "bilinear")


class ResizeConv2d(nn.Module):
    """Enlarges the image, then convolves it: every output is computed by the same kernel from a smooth image.

    For an input `[batch, in_channels, height, width]`, or one without batch, the output has scale_h height rows with
    padding "same" (otherwise what the convolution makes of so many); columns alike.

    - Parameters: in_channels out_channels kernel_h kernel_w, and out_channels with a bias.
    - MACs: batch (scale_h height) (scale_w width) in_channels out_channels kernel_h kernel_w (padding "same").
      `as_transposed()` needs fewer where it can.

    Odena, Dumoulin, Olah, "Deconvolution and Checkerboard Artifacts" (Distill, 2016).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        scale_factor: one whole number, or (height, width).
        kernel_size: of the convolution, one number, or (height, width).
        mode: "nearest" or "bilinear".
        align_corners: of the bilinear interpolation.
        padding, padding_mode, algorithm: of the convolution, as for `convscope.nn.Conv2d`. "reflect" or "replicate"
            keep the border as bright as the inside.
        bias: whether a number is added to each output channel.
        device, dtype: of the parameters.

    Raises:
        RequestError: an argument is wrong.

    Example:
        >>> layer = ResizeConv2d(16, 3, scale_factor=2)
        >>> layer(torch.zeros(1, 16, 8, 8)).shape, layer.output_size(8)
        (torch.Size([1, 3, 16, 16]), (16, 16))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        scale_factor: Size = 2,
        kernel_size: Size = 3,
        mode: str = "nearest",
        *,
        align_corners: bool = False,
        padding: Padding = "same",
        padding_mode: str = "zeros",
        bias: bool = True,
        algorithm: str = "direct",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        scale = whole_numbers(scale_factor, 2, "scale_factor")
        if mode not in MODES:
            raise RequestError(f"mode={mode!r} must be 'nearest' or 'bilinear'{nearest(mode, MODES)}.")
        if align_corners and mode != "bilinear":
            raise RequestError("align_corners=True is for mode='bilinear'.")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.scale_factor, self.mode = scale, mode
        self.resize: NearestUpsample2d | BilinearUpsample2d = (
            NearestUpsample2d(scale)
            if mode == "nearest"
            else BilinearUpsample2d(scale, align_corners=align_corners)
        )
        self.conv = Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            padding=padding,
            padding_mode=padding_mode,
            bias=bias,
            algorithm=algorithm,
            device=device,
            dtype=dtype,
        )

    def reset_parameters(self) -> None:
        """Starts anew, from torch's random state."""
        self.conv.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        image_batch(x, self)
        return self.conv(self.resize(x))

    def output_size(self, input_size: Size) -> tuple[int, ...]:
        """Height and width of the output for an input of this height and width."""
        return self.conv.output_size(self.resize.output_size(input_size))

    def as_transposed(self) -> TransposedConv2d:
        """The transposed convolution that gives the same outputs, for nearest upsampling and zeros around it.

        Its kernel has kernel + scale - 1 rows: where a kernel falls several times on one enlarged pixel, its taps are
        added up beforehand. That is fewer MACs by
        scale^2 kernel^2 / (kernel + scale - 1)^2, 2.25 times at a 3x3 kernel and scale 2. Exact up to rounding,
        borders included. Its weights are a copy; its `checkerboard()` shows equal sums.

        Raises:
            RequestError: the interpolation is bilinear, or the padding is not "same" with zeros.

        Example:
            >>> layer = ResizeConv2d(4, 2, scale_factor=2)
            >>> x = torch.randn(1, 4, 5, 5)
            >>> torch.allclose(layer.as_transposed()(x), layer(x), atol=1e-5)
            True
        """
        if self.mode != "nearest" or self.conv.padding != "same" or self.conv.padding_mode != "zeros":
            raise RequestError(
                f"as_transposed() needs mode='nearest', padding='same' and padding_mode='zeros', not {self.mode!r}, "
                f"{self.conv.padding!r} and {self.conv.padding_mode!r}."
            )
        kernel, scale = self.conv.kernel_size, self.scale_factor
        weight = self.conv.weight.detach()
        layer = TransposedConv2d(
            self.in_channels,
            self.out_channels,
            [k + s - 1 for k, s in zip(kernel, scale, strict=True)],
            stride=scale,
            padding=[k // 2 for k in kernel],
            output_padding=[1 - k % 2 for k in kernel],
            bias=self.conv.bias is not None,
            device=weight.device,
            dtype=weight.dtype,
        )
        padded = nn.functional.pad(
            weight.flip(2, 3).transpose(0, 1), (scale[1] - 1,) * 2 + (scale[0] - 1,) * 2
        )
        with torch.no_grad():
            layer.weight.copy_(padded.unfold(2, scale[0], 1).unfold(3, scale[1], 1).sum((-2, -1)))
            if layer.bias is not None and self.conv.bias is not None:
                layer.bias.copy_(self.conv.bias)
        return layer.train(self.training)

    def extra_repr(self) -> str:
        return f"scale_factor={self.scale_factor}, mode={self.mode!r}"
