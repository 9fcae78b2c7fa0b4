"""A small CNN of which every classic design choice is an argument."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

from torch import Tensor, nn

from convscope import nn as layers
from convscope.errors import RequestError, UnknownName, nearest
from convscope.nn.geometry import Size, whole_numbers

CONVOLUTIONS: Final = ("standard", "separable", "bottleneck", "local", "full")
POOLINGS: Final = ("max", "average", "strided", "moved", "blur", "fractional", "none")
HEADS: Final = ("average", "max", "flatten")
_POOLS: Final = {
    "max": "max",
    "average": "avg",
    "strided": "strided_conv",
    "blur": "max_blur",
    "fractional": "fractional_max",
}


def small_cnn(
    *,
    in_channels: int = 1,
    classes: int = 10,
    size: Size = 28,
    kernel_size: int = 3,
    padding: str = "same",
    padding_mode: str = "zeros",
    pooling: str = "max",
    pool_size: int = 2,
    convolution: str = "standard",
    width: int = 16,
    depth: int = 1,
    stages: int = 2,
    norm: bool = True,
    activation: bool = True,
    head: str = "average",
    upsampling: str | None = None,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Stages of convolutions, each ended by a pool, then a classifier; or, with `upsampling`, a decoder.

    Stage i of `stages` has `depth` convolutions to width 2^i channels, each followed by batch norm and ReLU, and a pool.

    Args:
        in_channels: of the images.
        classes: numbers for each image; with `upsampling` for each pixel.
        size: height and width of the images: one number, or (height, width).
        kernel_size: of all convolutions. One 7x7 sees what three 3x3 see: `kernel_size=3, depth=3`.
        padding: "same", "valid" or "full".
        padding_mode: "zeros", "reflect", "replicate", "circular" or "partial"; the last not for "local" and "full"
            convolutions.
        pooling: "max", "average", "blur" (max, then a blur at the stride), "fractional", "strided" (a convolution with a
            stride in the pool's place), "moved" (no pool; the stage's last convolution has its stride) or "none".
        pool_size: window and stride.
        convolution: "standard", "separable" (depthwise, then 1x1), "bottleneck" (1x1 to a quarter of the channels, k x k,
            1x1), "local" (a kernel of its own for each position) or "full" (fully-connected, to an output of the same
            geometry).
        width: channels of the first stage.
        depth: convolutions a stage.
        stages: how many.
        norm: whether batch norms follow the convolutions.
        activation: whether ReLUs do. Without them the network is linear but for its pools.
        head: how positions become one before the last linear layer: "average", "max", or "flatten", which keeps them all.
        upsampling: None for a classifier; or a kind of `convscope.nn.upsample2d`: a decoder mirrors the stages, and the
            output is `[batch, classes, height, width]`. Nothing leads around the bottleneck.
        dropout: of the input of the last layer.

    Returns:
        A module from `[batch, in_channels, height, width]` to `[batch, classes]`, or with `upsampling` as above.

    Raises:
        UnknownName: a kind that there is not.
        RequestError: the choices do not go together: a map smaller than its kernel, or a size that cannot be halved.

    Example:
        >>> net = small_cnn(kernel_size=5, depth=2)
        >>> [name for name, _ in net.stage2.named_children()], net.stage2.conv1.kernel_size
        (['conv1', 'norm1', 'relu1', 'conv2', 'norm2', 'relu2', 'pool'], (5, 5))
    """
    for name, value, known in (
        ("convolution", convolution, CONVOLUTIONS),
        ("pooling", pooling, POOLINGS),
        ("head", head, HEADS),
    ):
        if value not in known:
            raise UnknownName(
                f"{name}={value!r} must be one of {', '.join(known)}{nearest(str(value), known)}"
            )
    for name, number in (("width", width), ("depth", depth), ("stages", stages), ("pool_size", pool_size)):
        whole_numbers(number, 1, name)
    plan = _Plan(
        in_channels,
        whole_numbers(size, 2, "size"),
        {"kernel_size": kernel_size, "padding": padding, "padding_mode": padding_mode},
        convolution,
        norm,
        activation,
    )
    if upsampling is not None:
        return _with_decoder(plan, classes, pooling, pool_size, width, depth, stages, upsampling)
    parts: dict[str, nn.Module] = {}
    for stage in range(stages):
        parts[f"stage{stage + 1}"] = plan.stage(width * 2**stage, depth, pooling, pool_size)
    if head == "flatten":
        parts["flatten"] = nn.Flatten()
        plan.channels *= plan.size[0] * plan.size[1]
    else:
        parts["pool"] = layers.pool2d("global_avg" if head == "average" else "global_max", keepdim=False)
    if dropout:
        parts["dropout"] = nn.Dropout(dropout)
    parts["classifier"] = nn.Linear(plan.channels, classes)
    return _named(parts)


class FullyConnected2d(nn.Module):
    """A fully-connected layer between maps: every output value sees every input value.

    - Parameters: in_channels height width out_channels height' width', and a bias for each output value.
    - MACs: as many an image, the biases apart.

    Args:
        in_channels, out_channels: of input and output.
        input_size, size: (height, width) of input and output.
        bias: whether numbers are added.

    Example:
        >>> import torch
        >>> FullyConnected2d(1, 2, (3, 3), (2, 2))(torch.zeros(5, 1, 3, 3)).shape
        torch.Size([5, 2, 2, 2])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        input_size: tuple[int, ...],
        size: tuple[int, ...],
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.shape = (out_channels, *size)
        self.linear = nn.Linear(
            in_channels * input_size[0] * input_size[1], out_channels * size[0] * size[1], bias=bias
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, in_channels, height, width]` to `[batch, out_channels, height', width']`."""
        y: Tensor = self.linear(x.flatten(1)).unflatten(1, self.shape)
        return y


class _Plan:
    """Puts one layer behind the other and keeps the channels and the size of the map."""

    def __init__(
        self,
        channels: int,
        size: tuple[int, ...],
        geometry: dict[str, Any],
        convolution: str,
        norm: bool,
        activation: bool,
    ) -> None:
        self.channels, self.size, self.geometry = channels, size, geometry
        self.convolution, self.norm, self.activation = convolution, norm, activation

    def stage(self, width: int, depth: int, pooling: str, pool_size: int) -> nn.Sequential:
        """`depth` convolutions to `width` channels, and the pool."""
        parts: dict[str, nn.Module] = {}
        for number in range(1, depth + 1):
            stride = pool_size if pooling == "moved" and number == depth else 1
            parts |= self.block(width, str(number), stride)
        if pooling in _POOLS:
            parts["pool"] = self.pool(pooling, pool_size)
        return _named(parts)

    def block(self, width: int, number: str, stride: int = 1) -> dict[str, nn.Module]:
        """A convolution, its norm and its activation."""
        parts: dict[str, nn.Module] = {f"conv{number}": self.conv(width, stride)}
        if self.norm:
            parts[f"norm{number}"] = nn.BatchNorm2d(width)
        if self.activation:
            parts[f"relu{number}"] = nn.ReLU()
        return parts

    def conv(self, width: int, stride: int) -> nn.Module:
        kind: dict[str, Callable[..., nn.Module]] = {
            "standard": layers.Conv2d,
            "separable": layers.SeparableConv2d,
            "bottleneck": layers.Bottleneck2d,
            "local": layers.LocallyConnected2d,
        }
        given = self.channels, width
        options = {**self.geometry, "stride": stride, "bias": not self.norm}
        # the geometry is Conv2d's for all kinds; it refuses a kernel that the map does not hold
        before, self.size = self.size, layers.Conv2d(1, 1, **options).output_size(self.size)
        self.channels = width
        if self.convolution == "full":
            return FullyConnected2d(*given, before, self.size, bias=not self.norm)
        if self.convolution == "local":
            options["input_size"] = before
        return kind[self.convolution](*given, **options)

    def pool(self, pooling: str, pool_size: int) -> nn.Module:
        kind: Any = layers.pool2d(_POOLS[pooling], pool_size, channels=self.channels)
        self.size = kind.output_size(self.size)
        if min(self.size) < 1:
            raise RequestError(f"pooling by {pool_size} leaves nothing of the map; have fewer stages")
        return kind


def _with_decoder(
    plan: _Plan,
    classes: int,
    pooling: str,
    pool_size: int,
    width: int,
    depth: int,
    stages: int,
    upsampling: str,
) -> nn.Sequential:
    """The stages, one block, then for each stage an upsampling and the same convolutions."""
    if plan.geometry["padding"] != "same":
        raise RequestError(
            f"padding={plan.geometry['padding']!r} changes the size of the map; a decoder (upsampling="
            f"{upsampling!r}) needs 'same'"
        )
    whole, odd = plan.size, pool_size**stages
    if pooling == "none" or (upsampling == "max_unpool" and pooling != "max"):
        raise RequestError(
            f"pooling={pooling!r} leaves nothing for upsampling={upsampling!r} to undo; use 'max'"
        )
    if any(extent % odd for extent in whole):
        raise RequestError(f"size={whole} must be divisible by pool_size to the stages, {odd}, for a decoder")
    parts: dict[str, nn.Module] = {}
    pools: list[layers.SwitchedMaxPool2d | None] = []
    for stage in range(stages):
        part = plan.stage(width * 2**stage, depth, pooling, pool_size)
        switched = layers.SwitchedMaxPool2d(pool_size) if upsampling == "max_unpool" else None
        if switched is not None:
            part.pool = switched  # the same maxima, remembered
        pools.append(switched)
        parts[f"stage{stage + 1}"] = part
    parts["middle"] = _named(plan.block(plan.channels, "1"))
    for stage in reversed(range(stages)):
        up = layers.upsample2d(upsampling, plan.channels, scale_factor=pool_size, pool=pools[stage])
        plan.size = tuple(extent * pool_size for extent in plan.size)
        blocks: dict[str, nn.Module] = {"up": up}
        for number in range(1, depth + 1):
            # down to the channels of the stage before, whose pool comes next
            narrow = width * 2 ** max(stage - 1, 0) if number == depth else plan.channels
            blocks |= plan.block(narrow, str(number))
        parts[f"decoder{stage + 1}"] = _named(blocks)
    parts["output"] = layers.PointwiseConv2d(plan.channels, classes)
    return _named(parts)


def _named(parts: dict[str, nn.Module]) -> nn.Sequential:
    return nn.Sequential(OrderedDict(parts))
