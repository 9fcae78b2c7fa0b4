"""Convolutions in factors: depthwise then pointwise, pointwise alone, and the 1x1, k x k, 1x1 bottleneck."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from convscope.errors import RequestError
from convscope.nn.conv import Conv2d
from convscope.nn.geometry import Padding, Size, check_channels, whole_numbers


class PointwiseConv2d(Conv2d):
    """A 1x1 convolution: one linear map of the channels, the same at every position.

    For an input `[batch, in_channels, height, width]`, or one without batch, each axis of the output has
    size' = ceil(size / stride) positions.

    - Parameters: out_channels in_channels / groups, and out_channels with a bias.
    - MACs: batch height' width' out_channels in_channels / groups.

    Lin, Chen, Yan, "Network In Network" (2014).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: one number, or one an axis.
        groups: independent maps of consecutive channels.
        bias: whether a number is added to each output channel.
        device, dtype: of the parameters.
        algorithm: as for `Conv2d`.

    Raises:
        RequestError: an argument is wrong; it is a ValueError, as torch raises.

    Example:
        >>> layer, linear = PointwiseConv2d(3, 8), nn.Linear(3, 8)
        >>> _ = linear.load_state_dict({"weight": layer.weight[..., 0, 0], "bias": layer.bias})
        >>> x = torch.randn(1, 3, 4, 5)
        >>> torch.allclose(layer(x), linear(x.movedim(1, -1)).movedim(-1, 1), atol=1e-6)
        True
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: Size = 1,
        groups: int = 1,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        algorithm: str = "direct",
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            1,
            stride,
            groups=groups,
            bias=bias,
            device=device,
            dtype=dtype,
            algorithm=algorithm,
        )


class _Chain(nn.Module):
    """Convolutions one after the other; each has its place in `chain`, activations between them."""

    def chain(self) -> tuple[nn.Module, ...]:
        """The parts in the order in which they run."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Draws the weights of all parts anew."""
        for part in self.chain():
            for layer in part.modules():
                if callable(reset := getattr(layer, "reset_parameters", None)):
                    reset()

    def output_size(self, input_size: Size) -> tuple[int, ...]:
        """Height and width of the output for an input of this height and width.

        Raises:
            RequestError: the kernel is larger than the padded input.
        """
        size = whole_numbers(input_size, 2, "input_size")
        for part in self.chain():
            if isinstance(part, Conv2d):
                size = part.output_size(size)
        return size

    def forward(self, input: Tensor) -> Tensor:
        """`[batch, in_channels, height, width]` to `[batch, out_channels, height', width']`; the batch may be missing."""
        for part in self.chain():
            input = part(input)
        return input


class SeparableConv2d(_Chain):
    """A depthwise convolution, then a 1x1: space and channels apart.

    `depthwise` filters each input channel with `depth_multiplier` kernels, `pointwise` mixes the results. For an
    input `[batch, in_channels, height, width]`, or one without batch, each axis of the output has

        size' = floor((size + before + after - dilation (kernel - 1) - 1) / stride) + 1

    positions. With m = depth_multiplier:

    - Parameters: in_channels m kernel_h kernel_w + in_channels m out_channels, and with biases out_channels
      (bias) and in_channels m (depthwise_bias).
    - MACs: batch height' width' in_channels m (kernel_h kernel_w + out_channels).

    With m = min(kernel_h kernel_w, out_channels) and nothing between, every convolution has this form. Sifre, "Rigid-motion
    scattering for image classification" (2014); Chollet, "Xception" (2017); Guo, Li, Lin, Chen, Li, "Network
    Decoupling" (2018).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: of the depthwise part: one number, or (height, width).
        stride, padding, dilation, padding_mode, algorithm: of the depthwise part, as for `Conv2d`.
        depth_multiplier: kernels for each input channel.
        bias: whether the pointwise part adds a number to each output channel.
        depthwise_bias: whether the depthwise part does to each of its own; of use only with an activation.
        activation: a module between the two, or None.
        device, dtype: of the parameters.

    Raises:
        RequestError: an argument is wrong; it is a ValueError, as torch raises.

    Example:
        >>> layer = SeparableConv2d(8, 16, 3, padding="same", depth_multiplier=2, activation=nn.ReLU())
        >>> layer(torch.zeros(1, 8, 9, 9)).shape, sum(p.numel() for p in layer.parameters())
        (torch.Size([1, 16, 9, 9]), 416)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Padding = 0,
        dilation: Size = 1,
        depth_multiplier: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        depthwise_bias: bool = False,
        activation: nn.Module | None = None,
        algorithm: str = "direct",
    ) -> None:
        super().__init__()
        check_channels(in_channels, out_channels, 1)
        (multiplier,) = whole_numbers(depth_multiplier, 1, "depth_multiplier")
        self.in_channels, self.out_channels, self.depth_multiplier = in_channels, out_channels, multiplier
        middle = in_channels * multiplier
        self.depthwise = Conv2d(
            in_channels,
            middle,
            kernel_size,
            stride,
            padding,
            dilation,
            in_channels,
            depthwise_bias,
            padding_mode,
            device,
            dtype,
            algorithm=algorithm,
        )
        self.activation = _own(activation)
        self.pointwise = PointwiseConv2d(middle, out_channels, bias=bias, device=device, dtype=dtype)

    def chain(self) -> tuple[nn.Module, ...]:
        """Depthwise, activation, pointwise."""
        between = () if self.activation is None else (self.activation,)
        return self.depthwise, *between, self.pointwise

    def extra_repr(self) -> str:
        """Channels and multiplier; the parts tell the rest."""
        return f"{self.in_channels}, {self.out_channels}, depth_multiplier={self.depth_multiplier}"


class Bottleneck2d(_Chain):
    """A 1x1 convolution to few channels, a k x k there, a 1x1 to the output's channels.

    For an input `[batch, in_channels, height, width]`, or one without batch, each axis of the output has

        size' = floor((size + before + after - dilation (kernel - 1) - 1) / stride) + 1

    positions. With r = mid_channels:

    - Parameters: in_channels r + r (r / groups) kernel_h kernel_w + r out_channels, and 2 r + out_channels with
      biases.
    - MACs: batch (height width in_channels r + height' width' r ((r / groups) kernel_h kernel_w + out_channels)).

    There is no shortcut around it: `x + layer(x)` is one. Zero padding lies around the reduced image. He, Zhang, Ren,
    Sun, "Deep Residual Learning for Image Recognition" (2016).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: of the middle part: one number, or (height, width).
        mid_channels: between the 1x1; a quarter of the output's, at least one, unless given.
        stride, padding, dilation, groups, padding_mode, algorithm: of the middle part, as for `Conv2d`.
        bias: whether each part adds a number to each of its channels.
        activation: a module, of which a copy follows the first and the second part; None for none.
        device, dtype: of the parameters.

    Raises:
        RequestError: an argument is wrong; it is a ValueError, as torch raises.

    Example:
        >>> layer = Bottleneck2d(64, 64, 3, padding=1, activation=nn.ReLU())
        >>> layer(torch.zeros(1, 64, 7, 7)).shape, sum(p.numel() for p in layer.parameters())
        (torch.Size([1, 64, 7, 7]), 4448)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size = 3,
        mid_channels: int | None = None,
        stride: Size = 1,
        padding: Padding = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: nn.Module | None = None,
        algorithm: str = "direct",
    ) -> None:
        super().__init__()
        check_channels(in_channels, out_channels, 1)
        middle = max(out_channels // 4, 1) if mid_channels is None else mid_channels
        (middle,) = whole_numbers(middle, 1, "mid_channels")
        self.in_channels, self.out_channels, self.mid_channels = in_channels, out_channels, middle
        self.reduce = PointwiseConv2d(in_channels, middle, bias=bias, device=device, dtype=dtype)
        self.activation1 = _own(activation)
        self.conv = Conv2d(
            middle,
            middle,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
            algorithm=algorithm,
        )
        self.activation2 = copy.deepcopy(self.activation1)
        self.expand = PointwiseConv2d(middle, out_channels, bias=bias, device=device, dtype=dtype)

    def chain(self) -> tuple[nn.Module, ...]:
        """Reduce, activation, convolution, activation, expand."""
        parts = self.reduce, self.activation1, self.conv, self.activation2, self.expand
        return tuple(part for part in parts if part is not None)

    def extra_repr(self) -> str:
        """Channels; the parts tell the rest."""
        return f"{self.in_channels}, {self.out_channels}, mid_channels={self.mid_channels}"


def _own(activation: nn.Module | None) -> nn.Module | None:
    """A private copy of an activation, so that no two layers share one.

    Raises:
        RequestError: it is a class or a function.
    """
    if activation is None:
        return None
    if not isinstance(activation, nn.Module):
        raise RequestError(f"activation={activation!r} must be a module, such as nn.ReLU(), or None.")
    return copy.deepcopy(activation)
