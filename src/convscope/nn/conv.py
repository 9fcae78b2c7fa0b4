"""torch's Conv2d with the paddings it lacks and a choice of algorithm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from convscope import algorithms
from convscope.algorithms.base import algorithm as known_algorithm
from convscope.errors import RequestError
from convscope.nn.geometry import (
    MODES,
    Padding,
    Sides,
    Size,
    check_channels,
    check_mode,
    check_padding,
    covered,
    out_size,
    pad,
    resolve,
    whole_numbers,
)

NO_SIDES: Sides = ((0, 0), (0, 0))


class Conv2d(nn.Conv2d):
    """A 2-d convolution: `torch.nn.Conv2d`, whose state_dict it loads, with more paddings and algorithms.

    For an input `[batch, in_channels, height, width]`, or one without batch, each axis of the output has

        size' = floor((size + before + after - dilation (kernel - 1) - 1) / stride) + 1

    positions, where `before` and `after` follow from the padding: "valid" none; "same" what gives
    ceil(size / stride) positions, by TensorFlow's rule at any stride, hence from the size of the input; "full"
    dilation (kernel - 1) on both sides, all positions at which the kernel touches the input.

    - Parameters: out_channels (in_channels / groups) kernel_h kernel_w, and out_channels with a bias.
    - MACs: batch height' width' out_channels (in_channels / groups) kernel_h kernel_w.

    Partial padding adds zeros and then scales what each position saw by
    kernel_h kernel_w / (taps of the kernel that lie on the image), the bias apart, so that borders are not
    darker than the inside. A position that sees no image at all gives the bias.
    Liu, Shih, Wang, Reda, Sapra, Yu, Tao, Catanzaro, "Partial Convolution based Padding" (2018).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: one number, or (height, width).
        stride: one number, or one an axis.
        padding: one number; one an axis; ((top, bottom), (left, right)); "valid", "same" or "full".
        dilation: distance between taps of the kernel; one number, or one an axis.
        groups: independent convolutions over consecutive channels.
        bias: whether a number is added to each output channel.
        padding_mode: "zeros"; "reflect", "replicate", "circular": made from the image; "partial".
        device, dtype: of the parameters.
        algorithm: as for `convscope.algorithms.conv2d`: "direct" is torch's own function, called as torch calls
            it; "auto" what is fastest for the shape on this machine; or a name. Other than with "direct",
            calls that want no gradient keep the transformed weight until it changes; after writing to
            `weight.data`, which nothing can see, `eval()` or `train()` drops it.
        activation: "relu" sets negative outputs to 0, as part of the convolution where the algorithm can.

    Raises:
        RequestError: an argument is wrong; it is a ValueError, as torch raises.

    Example:
        >>> layer = Conv2d(3, 16, 3, stride=2, padding="same")
        >>> layer.output_size((5, 6)), layer(torch.zeros(1, 3, 5, 6)).shape
        ((3, 3), torch.Size([1, 16, 3, 3]))
        >>> layer.load_state_dict(nn.Conv2d(3, 16, 3).state_dict())
        <All keys matched successfully>
    """

    padding: Any  # a name, numbers or pairs; torch's annotation knows names and numbers
    padding_mode: Any  # torch's annotation does not know "partial"
    kernel_size: Any  # pairs of whole numbers, as torch keeps them
    stride: Any
    dilation: Any

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Padding = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        algorithm: str = "direct",
        activation: str | None = None,
    ) -> None:
        check_channels(in_channels, out_channels, groups)
        kernel = whole_numbers(kernel_size, 2, "kernel_size")
        strides = whole_numbers(stride, 2, "stride")
        dilations = whole_numbers(dilation, 2, "dilation")
        checked = check_padding(padding, 2)
        check_mode(padding_mode, (*MODES, "partial"))
        if algorithm != "auto":
            known_algorithm(algorithm)
        if activation not in (None, "relu"):
            raise RequestError(f"activation={activation!r} is unknown; give 'relu' or None.")
        super().__init__(
            in_channels,
            out_channels,
            cast(Any, kernel),
            cast(Any, strides),
            0,
            cast(Any, dilations),
            groups,
            bias,
            "zeros",
            device,
            dtype,
        )
        self.padding = checked
        self.padding_mode = padding_mode
        self.algorithm = algorithm
        self.activation = activation
        self._plans: dict[Sides, tuple[Tensor, Tensor | None, algorithms.Plan]] = {}

    def output_size(self, input_size: Size) -> tuple[int, ...]:
        """Height and width of the output for an input of this height and width.

        Raises:
            RequestError: the kernel is larger than the padded input.
        """
        size = whole_numbers(input_size, 2, "input_size")
        return out_size(size, self.kernel_size, self.stride, self.dilation, self.sides(size))

    def sides(self, input_size: Sequence[int]) -> Sides:
        """Pixels added around an input of this height and width: ((top, bottom), (left, right))."""
        return resolve(self.padding, input_size, self.kernel_size, self.stride, self.dilation)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        sides = self.sides(input.shape[-2:])
        if self.padding_mode == "partial":
            y = self._convolve(input, weight, None, sides, None)  # [batch, out_channels, height', width']
            ratio = self.coverage(input).to(y.dtype)
            y = y * ratio if bias is None else torch.addcmul(bias[:, None, None], y, ratio)
            return y.relu_() if self.activation == "relu" else y
        if self.padding_mode != "zeros":
            input, sides = pad(input, sides, self.padding_mode), NO_SIDES
        return self._convolve(input, weight, bias, sides, self.activation)

    def coverage(self, input: Tensor) -> Tensor:
        """What partial padding multiplies each position by: all taps over those on the image. [height', width']

        It depends on the size of the input alone; 0 where no tap lies on the image.
        """
        size = input.shape[-2:]
        rows, columns = (
            covered(n, k, s, d, side, input)
            for n, k, s, d, side in zip(
                size, self.kernel_size, self.stride, self.dilation, self.sides(size), strict=True
            )
        )
        seen = (rows[:, None] * columns).to(torch.float64)  # [height', width']
        taps = self.kernel_size[0] * self.kernel_size[1]
        return torch.where(seen > 0, taps / seen, 0.0)

    def _convolve(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, sides: Sides, activation: str | None
    ) -> Tensor:
        """With zeros added, by the algorithm asked for; then the activation."""
        if self.algorithm == "direct":
            if any(before != after for before, after in sides):
                x, sides = pad(x, sides, "zeros"), NO_SIDES
            amounts = [before for before, _ in sides]
            y = functional.conv2d(x, weight, bias, self.stride, amounts, self.dilation, self.groups)
        elif self._keeps_plans(x, weight, bias):
            return self._plan(weight, bias, sides, activation)(x)
        else:
            y = algorithms.conv2d(
                x, weight, bias, self.stride, sides, self.dilation, self.groups, algorithm=self.algorithm
            )
        return y.relu_() if activation == "relu" else y

    def _keeps_plans(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
        """Not while compiling, not for weights that something else computes anew for each call."""
        if torch.compiler.is_compiling() or weight is not self._parameters.get("weight"):
            return False
        if not torch.is_grad_enabled():
            return True
        return not any(t is not None and t.requires_grad for t in (x, weight, bias))

    def _plan(
        self, weight: Tensor, bias: Tensor | None, sides: Sides, activation: str | None
    ) -> algorithms.Plan:
        """The prepared convolution; a plan sees by itself when its weight changes in place."""
        kept = self._plans.get(sides)
        if kept is not None and kept[0] is weight and kept[1] is bias:
            return kept[2]
        plan = algorithms.prepare(
            weight,
            bias,
            stride=self.stride,
            padding=sides,
            dilation=self.dilation,
            groups=self.groups,
            algorithm=self.algorithm,
            activation=activation,
        )
        self._plans[sides] = (weight, bias, plan)
        return plan

    def train(self, mode: bool = True) -> Self:
        """As every module; transformed weights are dropped."""
        self._plans.clear()
        return super().train(mode)

    def extra_repr(self) -> str:
        """As torch's, with the algorithm where it is not torch's own, and the activation."""
        algorithm = "" if self.algorithm == "direct" else f", algorithm={self.algorithm!r}"
        activation = "" if self.activation is None else f", activation={self.activation!r}"
        return super().extra_repr() + algorithm + activation

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plans": {}}  # a copy prepares its own
