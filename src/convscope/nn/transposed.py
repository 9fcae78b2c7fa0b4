"""torch's transposed convolution that starts as bilinear interpolation and tells its checkerboard."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from convscope.errors import RequestError, nearest
from convscope.nn.checkerboard import Checkerboard, checkerboard
from convscope.nn.geometry import Size, check_channels, whole_numbers

STARTS = ("uniform", "bilinear")


class TransposedConv2d(nn.ConvTranspose2d):
    """A learned upsampling: `torch.nn.ConvTranspose2d`, whose state_dict it loads.

    Each input pixel lays down the kernel, `stride` pixels apart, and overlaps are added up. For an input
    `[batch, in_channels, height, width]`, or one without batch, each axis of the output has

        size' = (size - 1) stride - 2 padding + dilation (kernel - 1) + output_padding + 1

    positions.

    - Parameters: in_channels (out_channels / groups) kernel_h kernel_w, and out_channels with a bias.
    - MACs: batch height width in_channels (out_channels / groups) kernel_h kernel_w, of the *input's* height and
      width; what the padding then cuts off is counted too.

    Where the stride does not divide the kernel, outputs collect different numbers of taps: `checkerboard()`.

    `start="bilinear"` interpolates: as many input as output channels are upsampled each by itself; other numbers are
    first mixed at random, as a 1x1 convolution starts. With kernel 2 stride (even strides) or 2 stride - 1 (odd ones)
    and padding (kernel - stride) / 2, it equals `BilinearUpsample2d(stride)` away from the borders, where zeros
    come in; with kernel 2 stride - 1 and padding stride - 1, the interpolation with aligned corners, everywhere.
    Long, Shelhamer, Darrell, "Fully Convolutional Networks for Semantic Segmentation" (2015).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: one number, or (height, width).
        stride: one number, or one an axis: the upsampling.
        padding: pixels cut off on each side; one number, or one an axis.
        output_padding: pixels more at the end; less than the stride or the dilation.
        groups: independent convolutions over consecutive channels.
        bias: whether a number is added to each output channel.
        dilation: distance between taps of the kernel.
        padding_mode: "zeros", as in torch.
        device, dtype: of the parameters.
        start: "uniform", as torch's layer starts, or "bilinear".

    Raises:
        RequestError: an argument is wrong, or the kernel is too small or dilated to interpolate.

    Example:
        >>> layer = TransposedConv2d(1, 1, 4, stride=2, padding=1, start="bilinear")
        >>> layer(torch.tensor([[[0.0, 4.0, 8.0]]]).expand(1, 3, 3))[0, 2].tolist()
        [0.0, 1.0, 3.0, 5.0, 7.0, 6.0]
        >>> layer.checkerboard().even, TransposedConv2d(1, 1, 3, stride=2).checkerboard().taps
        (True, ((4, 2), (2, 1)))
    """

    kernel_size: Any  # pairs of whole numbers, as torch keeps them
    stride: Any
    padding: Any
    dilation: Any
    output_padding: Any

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Size = 1,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        start: str = "uniform",
    ) -> None:
        check_channels(in_channels, out_channels, groups)
        kernel = whole_numbers(kernel_size, 2, "kernel_size")
        strides = whole_numbers(stride, 2, "stride")
        pads = whole_numbers(padding, 2, "padding", least=0)
        extra = whole_numbers(output_padding, 2, "output_padding", least=0)
        dilations = whole_numbers(dilation, 2, "dilation")
        if any(e >= max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True)):
            raise RequestError(
                f"output_padding={output_padding!r} must be less than stride={stride!r} or dilation={dilation!r}."
            )
        if padding_mode != "zeros":
            raise RequestError(f"padding_mode={padding_mode!r} must be 'zeros' in a transposed convolution.")
        _check_start(start, kernel, strides, dilations)
        self.start = start  # reset_parameters, which torch's constructor calls, reads it
        super().__init__(
            in_channels,
            out_channels,
            cast(Any, kernel),
            cast(Any, strides),
            cast(Any, pads),
            cast(Any, extra),
            groups,
            bias,
            cast(Any, dilations),
            "zeros",
            device,
            dtype,
        )

    def reset_parameters(self) -> None:
        """Starts anew, from torch's random state."""
        if self.start == "uniform":
            super().reset_parameters()
            return
        rows, columns = (_tent(k, s) for k, s in zip(self.kernel_size, self.stride, strict=True))
        mixing = self._mixing()  # [in_channels, out_channels / groups]
        kernels = mixing[:, :, None, None] * (rows[:, None] * columns).to(mixing.device)
        with torch.no_grad():
            self.weight.copy_(kernels)
            if self.bias is not None:
                self.bias.zero_()

    def _mixing(self) -> Tensor:
        """How much of each input channel goes to each output channel of its group."""
        out = self.out_channels // self.groups
        device, dtype = self.weight.device, torch.float64
        if self.in_channels == self.out_channels:
            return torch.eye(out, device=device, dtype=dtype).repeat(self.groups, 1)
        bound = (3 * self.groups / self.in_channels) ** 0.5  # keeps the variance
        return torch.empty(self.in_channels, out, device=device, dtype=dtype).uniform_(-bound, bound)

    def checkerboard(self) -> Checkerboard:
        """The overlap pattern: taps, and sums of the weights, on each output position of a period.

        Odena, Dumoulin, Olah, "Deconvolution and Checkerboard Artifacts" (Distill, 2016).
        """
        return checkerboard(
            self.kernel_size, self.stride, self.padding, self.dilation, self.weight, self.groups
        )

    def output_size(self, input_size: Size) -> tuple[int, ...]:
        """Height and width of the output for an input of this height and width.

        Raises:
            RequestError: the padding leaves no output.
        """
        size = whole_numbers(input_size, 2, "input_size")
        found = tuple(
            (n - 1) * s - 2 * p + d * (k - 1) + e + 1
            for n, k, s, p, d, e in zip(
                size,
                self.kernel_size,
                self.stride,
                self.padding,
                self.dilation,
                self.output_padding,
                strict=True,
            )
        )
        if min(found) < 1:
            raise RequestError(
                f"input_size={size} with padding={self.padding} leaves an output of {found}; enlarge the input."
            )
        return found

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.start == "uniform" else f"{text}, start={self.start!r}"


def _check_start(
    start: str, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> None:
    if start not in STARTS:
        raise RequestError(f"start={start!r} must be 'uniform' or 'bilinear'{nearest(start, STARTS)}.")
    if start == "uniform":
        return
    if any(d > 1 for d in dilation):
        raise RequestError(f"start='bilinear' needs dilation=1, not {dilation}.")
    if any(k < 2 * s - 1 for k, s in zip(kernel, stride, strict=True)):
        least = tuple(2 * s - 1 for s in stride)
        raise RequestError(
            f"start='bilinear' needs kernel_size={kernel} to be at least 2 stride - 1 = {least}."
        )


def _tent(kernel: int, stride: int) -> Tensor:
    """Weights of linear interpolation, centred: 1 in the middle, 0 from `stride` away on. [kernel]"""
    at = torch.arange(kernel, dtype=torch.float64) - (kernel - 1) / 2
    return (1 - at.abs() / stride).clamp_min(0)
