"""Locally connected layers: a convolution whose every position has a kernel of its own.

The whole layer is one batched matrix product, a small matrix a position: `[outputs, taps x channels]` times
`[taps x channels, batch]`. Two choices keep everything else cheap.

- Layout. The input is copied once to channels-last, with its padding; the patch of a position then is a few
  contiguous runs. The weight is kept as the product reads it, position first, taps and channels last.
- Blocks. On the CPU patches are gathered and multiplied a block of positions at a time, in a buffer that stays
  in the processor's cache. The unfolded input, kernel_h kernel_w times the size of the input, never exists, not
  in the backward pass either; writing it to fresh memory would cost as much time as the product.

On other devices, and while compiling, the same is written as one gather and one `torch.bmm`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from convscope.errors import BadInput, RequestError
from convscope.nn.conv import Conv2d
from convscope.nn.geometry import (
    Padding,
    Size,
    check_channels,
    check_mode,
    check_padding,
    out_size,
    pad,
    resolve,
    whole_numbers,
)

BLOCK = 2**21  # bytes of patches gathered at a time: what the caches of two cores hold beside the weights

Pair = tuple[int, int]
Block = tuple[slice, slice]  # rows and columns of output positions


# ---------------------------------------------------------------- the product


def locally_connected(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, dilation: Pair) -> Tensor:
    """A 2-d convolution with a kernel for each position, on a padded input.

    Args:
        x: `[batch, height, width, channels]`, padding included.
        weight: `[height', width', groups, outputs / groups, kernel_h, kernel_w, channels / groups]`.
        bias: `[outputs, height', width']`, expanded where it is shared, or None.
        stride, dilation: one number an axis.

    Returns:
        `[batch, outputs, height', width']`, contiguous.
    """
    if x.device.type != "cpu":
        return _at_once(x, weight, bias, stride, dilation)
    run = _in_blocks if torch.compiler.is_compiling() else _Differentiable.apply
    y: Tensor = run(x.contiguous(), weight.contiguous(), bias, stride, dilation)
    return y


def _at_once(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, dilation: Pair) -> Tensor:
    """The same from torch's differentiable operations: one copy of all patches and one product."""
    height, width, groups, outputs, tall, wide, channels = weight.shape
    grouped = x.unflatten(-1, (groups, channels)).permute(1, 2, 3, 0, 4)  # [h, w, groups, batch, channels]
    rows, columns = (
        [slice(at * d, at * d + (n - 1) * s + 1, s) for at in range(k)]
        for k, d, n, s in zip((tall, wide), dilation, (height, width), stride, strict=True)
    )
    taps = torch.stack([grouped[row, column] for row in rows for column in columns], -2)
    patches = taps.reshape(height * width * groups, x.shape[0], tall * wide * channels)
    matrices = weight.reshape(height * width * groups, outputs, tall * wide * channels)
    y = torch.bmm(patches, matrices.mT)  # [position and group, batch, outputs]
    y = y.view(height, width, groups, x.shape[0], outputs).permute(3, 2, 4, 0, 1).flatten(1, 2)
    return y.contiguous() if bias is None else y + bias


@torch.library.custom_op(
    "convscope::locally_connected",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? bias, int[] stride, int[] dilation) -> Tensor",
)
def _in_blocks(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """The same, a block of positions at a time; contiguous input and weight."""
    height, width, groups, outputs, *_ = weight.shape
    out = x.new_empty(x.shape[0], groups * outputs, height, width)
    places = _by_position(out, groups)  # [h', w', groups, batch, outputs]
    offsets = None if bias is None else _by_position(bias[None], groups)
    weight_first = _weight_first(x.shape[0], outputs, math.prod(weight.shape[4:]))
    patches = _patches(x, weight, stride, dilation)  # [h', w', groups, batch, kernel_h, kernel_w, channels]
    for block, gathered in _gather(patches):
        matrices = weight[block].flatten(0, 2).flatten(2)  # [position and group, outputs, taps]
        flat = gathered.flatten(0, 2).flatten(2)  # [position and group, batch, taps]
        if weight_first:
            product = torch.bmm(matrices, flat.mT).mT
        else:
            product = torch.bmm(flat, matrices.mT)  # [position and group, batch, outputs]
        part = product.unflatten(0, gathered.shape[:3])
        if offsets is None:
            places[block] = part
        else:
            torch.add(part, offsets[block], out=places[block])
    return out


def _weight_first(batch: int, outputs: int, taps: int) -> bool:
    """Which order of the factors is faster: up to twice for small products, as measured with MKL."""
    return batch * outputs <= 256 and (batch <= 2 or batch * outputs * taps <= 150_000)


@_in_blocks.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    height, width, groups, outputs, *_ = weight.shape
    return x.new_empty(x.shape[0], groups * outputs, height, width)


@torch.library.custom_op(
    "convscope::locally_connected_gradients",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor gradient, int[] stride, int[] dilation, bool[] wanted) -> (Tensor, Tensor)",
)
def _gradients(
    x: Tensor,
    weight: Tensor,
    gradient: Tensor,
    stride: Sequence[int],
    dilation: Sequence[int],
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    """Gradients of `_in_blocks` by the input and by the weight; empty where not wanted."""
    by_x = x.new_zeros(x.shape if wanted[0] else 0)
    by_weight = weight.new_empty(weight.shape if wanted[1] else 0)
    places = _by_position(gradient, weight.shape[2])  # [h', w', groups, batch, outputs]
    patches = _patches(x, weight, stride, dilation)
    taps = _patches(by_x, weight, stride, dilation) if wanted[0] else None
    for block, gathered in _gather(patches, fill=wanted[1]):
        part = places[block].contiguous().flatten(0, 2)  # [position and group, batch, outputs]
        flat = gathered.flatten(0, 2).flatten(2)  # [position and group, batch, taps]
        if wanted[1]:
            torch.bmm(part.mT, flat, out=by_weight[block].flatten(0, 2).flatten(2))
        if taps is not None:
            torch.bmm(part, weight[block].flatten(0, 2).flatten(2), out=flat)  # the patches are done with
            for row in range(weight.shape[4]):  # patches of one tap do not overlap, those of several do
                for column in range(weight.shape[5]):
                    taps[block][..., row, column, :] += gathered[..., row, column, :]
    return by_x, by_weight


@_gradients.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    gradient: Tensor,
    stride: Sequence[int],
    dilation: Sequence[int],
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if wanted[0] else 0), weight.new_empty(weight.shape if wanted[1] else 0)


@register_flop_formula(
    [torch.ops.convscope.locally_connected, torch.ops.convscope.locally_connected_gradients]
)
def _flops(x: Sequence[int], weight: Sequence[int], *arguments: Any, **_: Any) -> int:
    """For torch's counter, from shapes: two for each multiply-accumulate, in each product."""
    wanted = arguments[3] if len(arguments) == 4 else (True,)  # those of the gradients
    return 2 * x[0] * math.prod(weight) * sum(wanted)


class _Differentiable(torch.autograd.Function):
    """Blocks forward and backward; gradients of gradients, `torch.func.jvp` and `vmap` at once."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, dilation: Pair) -> Tensor:
        return _in_blocks(x, weight, bias, stride, dilation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, ctx.stride, ctx.dilation = inputs
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)
        ctx.biased = bias is not None

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (x, weight) = gradients, ctx.saved_tensors
        wanted = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():  # gradients of gradients may be asked for
            back = torch.func.vjp(lambda x, w: _at_once(x, w, None, ctx.stride, ctx.dilation), x, weight)[1]
            both = back(gradient)
        else:
            both = _gradients(x, weight, gradient, ctx.stride, ctx.dilation, wanted)
        by_x, by_weight = (t if needed else None for t, needed in zip(both, wanted, strict=True))
        return by_x, by_weight, gradient.sum(0) if ctx.needs_input_grad[2] else None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        x, weight = ctx.saved_tensors
        along_x, along_weight, along_bias, _, _ = tangents
        at = ctx.stride, ctx.dilation
        y = _at_once(along_x, weight, None, *at) + _at_once(x, along_weight, None, *at)
        return y + along_bias if ctx.biased else y

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
        return torch.vmap(_at_once, in_dims)(*inputs), 0


_in_blocks.register_autograd(
    _Differentiable.backward, setup_context=_Differentiable.setup_context
)  # for compilers


def _patches(x: Tensor, weight: Tensor, stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """What each position sees, as a view: `[h', w', groups, batch, kernel_h, kernel_w, channels / groups]`."""
    height, width, groups, _, tall, wide, channels = weight.shape
    image, row, column, channel = x.stride()  # of a contiguous [batch, height, width, channels]
    return x.as_strided(
        (height, width, groups, x.shape[0], tall, wide, channels),
        (
            stride[0] * row,
            stride[1] * column,
            channels * channel,
            image,
            dilation[0] * row,
            dilation[1] * column,
            channel,
        ),
    )


def _by_position(y: Tensor, groups: int) -> Tensor:
    """`[batch, groups x outputs, h', w']` as a view `[h', w', groups, batch, outputs]`."""
    return y.unflatten(1, (groups, -1)).permute(3, 4, 1, 0, 2)


def _gather(patches: Tensor, fill: bool = True) -> Iterator[tuple[Block, Tensor]]:
    """Blocks of positions, each with its patches in a buffer that the next block reuses."""
    height, width = patches.shape[:2]
    each = max(math.prod(patches.shape[2:]), 1)  # numbers a position
    most = max(BLOCK // (each * patches.element_size()), 1)  # positions a block
    rows, columns = max(most // width, 1), min(most, width)
    buffer = patches.new_empty(min(rows, height) * columns * math.prod(patches.shape[2:]))
    for row in range(0, height, rows):
        for column in range(0, width, columns):
            block = slice(row, min(row + rows, height)), slice(column, min(column + columns, width))
            part = patches[block]
            gathered = buffer[: part.numel()].view(part.shape)
            yield block, gathered.copy_(part) if fill else gathered


# ---------------------------------------------------------------- the layers


class _LocallyConnected(nn.Module):
    """What the layers for one and two axes have in common."""

    axes: int
    weight: nn.Parameter
    bias: nn.Parameter | None

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
        input_size: Size,
        shared_bias: bool = False,
    ) -> None:
        super().__init__()
        check_channels(in_channels, out_channels, groups)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = whole_numbers(kernel_size, self.axes, "kernel_size")
        self.stride = whole_numbers(stride, self.axes, "stride")
        self.dilation = whole_numbers(dilation, self.axes, "dilation")
        self.input_size = whole_numbers(input_size, self.axes, "input_size")
        self.padding = check_padding((padding,) if self._is_pair(padding) else padding, self.axes)  # type: ignore[arg-type]
        self.padding_mode = check_mode(padding_mode)
        self.shared_bias = shared_bias
        geometry = self.kernel_size, self.stride, self.dilation
        self.sides = resolve(self.padding, self.input_size, *geometry)
        self.size = out_size(self.input_size, *geometry, self.sides)
        counts = groups, out_channels // groups, *self.kernel_size, in_channels // groups
        self.weight = nn.Parameter(torch.empty(*self.size, *counts, device=device, dtype=dtype))
        if bias:
            positions = () if shared_bias else self.size
            self.bias = nn.Parameter(torch.empty(out_channels, *positions, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def _is_pair(self, padding: Padding) -> bool:
        """Along one axis (before, after) needs no second pair of brackets."""
        return self.axes == 1 and not isinstance(padding, int | str) and len(padding) == 2

    def reset_parameters(self) -> None:
        """Draws weights and bias as torch does for a convolution: uniform within 1 / sqrt(inputs of an output)."""
        bound = 1 / math.sqrt(self.in_channels // self.groups * math.prod(self.kernel_size))
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def output_size(self, input_size: Size | None = None) -> tuple[int, ...]:
        """Size of the output; the layer takes inputs of one size only, and says so of any other.

        Raises:
            RequestError: it is not the size that the layer was made for.
        """
        if input_size is not None:
            size = whole_numbers(input_size, self.axes, "input_size")
            if size != self.input_size:
                raise RequestError(
                    f"input_size={size} is not the {self.input_size} that this layer has weights for; make "
                    f"another, or resize the input."
                )
        return self.size

    def forward(self, input: Tensor) -> Tensor:
        """`[batch, in_channels, *input_size]` to `[batch, out_channels, *size]`; the batch may be missing.

        Raises:
            BadInput: the input has other channels, another size or another number of axes.
        """
        shape = tuple(input.shape)
        if len(shape) not in (self.axes + 1, self.axes + 2) or shape[-1 - self.axes :] != (
            self.in_channels,
            *self.input_size,
        ):
            raise BadInput(
                f"an input of shape {shape} does not fit a layer for {self.in_channels} channels of size "
                f"{self.input_size}, with or without a batch."
            )
        batch = input if input.dim() == self.axes + 2 else input[None]
        y = self._flat(*_autocast(batch, self.weight, self.bias))
        return y if input.dim() == self.axes + 2 else y[0]

    def _flat(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """One axis becomes two, the first of size 1."""
        extra, sides = 2 - self.axes, self.sides
        if self.padding_mode != "zeros":
            x, sides = pad(x, sides, self.padding_mode), ((0, 0),) * self.axes
        for _ in range(extra):
            x, weight = x.unsqueeze(2), weight.unsqueeze(0).unsqueeze(4)
        if bias is not None:
            positions = (1, 1) if self.shared_bias else weight.shape[:2]
            bias = bias.view(-1, *positions).expand(-1, *weight.shape[:2])
        last = pad(
            x.permute(0, 2, 3, 1), (*((0, 0),) * extra, *sides, (0, 0)), "zeros"
        ).contiguous()  # [batch, h, w, channels]
        ones = (1,) * extra
        stride, dilation = (*ones, *self.stride), (*ones, *self.dilation)
        y = locally_connected(last, weight, bias, stride, dilation)  # type: ignore[arg-type]
        return y.squeeze(2) if extra else y

    def extra_repr(self) -> str:
        """The arguments that differ from their defaults, as torch's convolutions show them."""
        text = (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        )
        if isinstance(self.padding, str) or any(map(any, self.sides)):
            text += f", padding={self.padding}"
        if self.dilation != (1,) * self.axes:
            text += f", dilation={self.dilation}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        if self.bias is None:
            text += ", bias=False"
        if self.padding_mode != "zeros":
            text += f", padding_mode={self.padding_mode}"
        text += f", input_size={self.input_size}"
        return text + (", shared_bias=True" if self.shared_bias and self.bias is not None else "")

    @classmethod
    def from_conv(cls, conv: Any, input_size: Size, *, shared_bias: bool = True) -> Self:
        """The layer that computes what a convolution does on inputs of this size: its kernel at every position.

        Args:
            conv: a convolution of torch's or convscope's, any padding. Partial padding is folded into the weight.
            input_size: of the inputs that the layer will take.
            shared_bias: whether the bias stays one number a channel, or is copied to every position too.

        Raises:
            RequestError: it is no such convolution, or it cannot take inputs of this size.
        """
        kind = {1: nn.Conv1d, 2: nn.Conv2d}[cls.axes]
        if not isinstance(conv, kind):
            raise RequestError(f"conv={type(conv).__name__} must be a torch.nn.{kind.__name__}.")
        partial = conv if isinstance(conv, Conv2d) and conv.padding_mode == "partial" else None
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            conv.bias is not None,
            conv.padding_mode if partial is None else "zeros",
            conv.weight.device,
            conv.weight.dtype,
            input_size=input_size,
            shared_bias=shared_bias,
        ).train(conv.training)
        with torch.no_grad():
            layer.weight.copy_(_untied(conv.weight, conv.groups))
            if partial is not None:
                seen = partial.coverage(conv.weight.new_empty(1, 1, *layer.input_size)).to(conv.weight.dtype)
                layer.weight.mul_(seen.view(*layer.size, *(1,) * (layer.axes + 3)))
            if conv.bias is not None:
                bias = conv.bias if shared_bias else conv.bias.view(-1, *(1,) * layer.axes)
                cast(Tensor, layer.bias).copy_(bias)
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(getattr(conv, name).requires_grad)
        return layer


def _untied(weight: Tensor, groups: int) -> Tensor:
    """`[outputs, channels / groups, *kernel]` as `[groups, outputs / groups, *kernel, channels / groups]`."""
    return weight.unflatten(0, (groups, -1)).movedim(2, -1)


def _autocast(x: Tensor, *parameters: Tensor | None) -> list[Any]:
    """As torch casts the arguments of its own products where automatic mixed precision is on."""
    kind = x.device.type
    available = torch.amp.is_autocast_available(kind)
    if not available or not torch.is_autocast_enabled(kind) or x.dtype == torch.float64:
        return [x, *parameters]
    lower = torch.get_autocast_dtype(kind)
    return [None if t is None else t.to(lower) for t in (x, *parameters)]


class LocallyConnected2d(_LocallyConnected):
    """A convolution without weight sharing: every output position has a kernel of its own.

    Geometry as for a convolution; the size of the input is part of the layer. For an input
    `[batch, in_channels, height, width]`, or one without batch, each axis of the output has

        size' = floor((size + before + after - dilation (kernel - 1) - 1) / stride) + 1

    positions.

    - Parameters: height' width' out_channels (in_channels / groups) kernel_h kernel_w, and with a bias
      height' width' out_channels, or out_channels if it is shared.
    - MACs: batch height' width' out_channels (in_channels / groups) kernel_h kernel_w, those of the convolution.
    - Memory beside input, output and weight: the padded input and 2 MiB; the same for the backward pass.

    The weight is `[height', width', groups, out_channels / groups, kernel_h, kernel_w, in_channels / groups]`, the
    bias `[out_channels, height', width']`, or `[out_channels]` if it is shared.

    LeCun, "Generalization and Network Design Strategies" (1989); Taigman, Yang, Ranzato, Wolf, "DeepFace" (2014).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: one number, or (height, width).
        stride: one number, or one an axis.
        padding: one number; one an axis; ((top, bottom), (left, right)); "valid", "same" or "full".
        dilation: distance between taps of the kernel; one number, or one an axis.
        groups: independent layers over consecutive channels.
        bias: whether numbers are added to the output.
        padding_mode: "zeros", or "reflect", "replicate", "circular": made from the image.
        device, dtype: of the parameters.
        input_size: of the inputs it will take: one number, or (height, width).
        shared_bias: one number a channel, not one a channel and position.

    Raises:
        RequestError: an argument is wrong; it is a ValueError, as torch raises.

    Example:
        >>> conv = nn.Conv2d(3, 8, 3, padding=1)
        >>> layer = LocallyConnected2d.from_conv(conv, 6)
        >>> layer.weight.shape
        torch.Size([6, 6, 1, 8, 3, 3, 3])
        >>> x = torch.randn(2, 3, 6, 6)
        >>> torch.allclose(layer(x), conv(x), atol=1e-5)
        True
    """

    axes = 2


class LocallyConnected1d(_LocallyConnected):
    """A 1-d convolution without weight sharing: every output position has a kernel of its own.

    As `LocallyConnected2d` with one axis: for an input `[batch, in_channels, length]`, or one without batch, the output has

        length' = floor((length + before + after - dilation (kernel - 1) - 1) / stride) + 1

    positions.

    - Parameters: length' out_channels (in_channels / groups) kernel, and with a bias length' out_channels, or
      out_channels if it is shared.
    - MACs: batch length' out_channels (in_channels / groups) kernel.

    The weight is `[length', groups, out_channels / groups, kernel, in_channels / groups]`, the bias
    `[out_channels, length']`, or `[out_channels]` if it is shared.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: taps.
        stride: positions of the input from one output to the next.
        padding: a number; (before, after); "valid", "same" or "full".
        dilation: distance between taps of the kernel.
        groups: independent layers over consecutive channels.
        bias: whether numbers are added to the output.
        padding_mode: "zeros", or "reflect", "replicate", "circular": made from the input.
        device, dtype: of the parameters.
        input_size: length of the inputs it will take.
        shared_bias: one number a channel, not one a channel and position.

    Raises:
        RequestError: an argument is wrong; it is a ValueError, as torch raises.

    Example:
        >>> layer = LocallyConnected1d(4, 8, 5, stride=2, padding="same", input_size=11)
        >>> layer.output_size(), layer(torch.zeros(4, 11)).shape
        ((6,), torch.Size([8, 6]))
    """

    axes = 1
