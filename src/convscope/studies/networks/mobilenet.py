"""MobileNet-v1, and the same network with full convolutions."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from torch import nn

from convscope.errors import RequestError
from convscope.nn import Conv2d, GlobalAvgPool2d, PointwiseConv2d

# channels and stride of each block behind the first convolution (table 1 of the paper)
BLOCKS: Final = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1),) * 5,
    *((1024, 2), (1024, 1)),
)


def mobilenet(
    *,
    in_channels: int = 3,
    classes: int = 1000,
    width: float = 1.0,
    separable: bool = True,
    strides: int = 5,
) -> nn.Sequential:
    """MobileNet-v1: a 3x3 convolution, 13 blocks, the mean over all positions, a linear layer.

    A block is a depthwise 3x3 and a 1x1 convolution, each with batch norm and ReLU; or, with `separable=False`, one
    full 3x3 convolution with batch norm and ReLU, of the same channels and stride.

    Howard, Zhu, Chen, Kalenichenko, Wang, Weyand, Andreetto, Adam, "MobileNets: Efficient Convolutional Neural Networks
    for Mobile Vision Applications" (2017), tables 1 and 4.

    Args:
        in_channels: of the images.
        classes: numbers for each image.
        width: multiplies all channels (rounded to whole multiples of 8, at least 8).
        separable: or full convolutions.
        strides: how many of the five strides of 2 are kept, the last ones: 5 as in the paper, for 224 pixels; 3 for
            images of 32, which then end in a 4x4 map.

    Returns:
        A module from `[batch, in_channels, height, width]` to `[batch, classes]`.

    Raises:
        RequestError: an argument is out of its range.

    Example:
        >>> sum(p.numel() for p in mobilenet().parameters())
        4231976
    """
    if not 0 < width <= 4:
        raise RequestError(f"width={width} must be above 0 and at most 4")
    if strides not in range(6):
        raise RequestError(f"strides={strides} must be a whole number from 0 to 5")
    dropped = 5 - strides  # the first ones go

    def stride(wanted: int) -> int:
        nonlocal dropped
        if wanted == 2 and dropped:
            dropped -= 1
            return 1
        return wanted

    channels = _scaled(32, width)
    parts = {"stem": _block(in_channels, channels, stride(2), separable=False)}
    for number, (out, wanted) in enumerate(BLOCKS, start=1):
        out = _scaled(out, width)
        parts[f"block{number}"] = _block(channels, out, stride(wanted), separable)
        channels = out
    parts["pool"] = GlobalAvgPool2d(keepdim=False)
    parts["classifier"] = nn.Linear(channels, classes)
    return nn.Sequential(OrderedDict(parts))


def _scaled(channels: int, width: float) -> int:
    return max(8, round(channels * width / 8) * 8)


def _block(channels: int, out: int, stride: int, separable: bool) -> nn.Module:
    layers = OrderedDict[str, nn.Module]()
    if separable:
        layers["depthwise"] = Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
        layers["norm1"], layers["relu1"] = nn.BatchNorm2d(channels), nn.ReLU()
        layers["pointwise"] = PointwiseConv2d(channels, out, bias=False)
        layers["norm2"], layers["relu2"] = nn.BatchNorm2d(out), nn.ReLU()
    else:
        layers["conv"] = Conv2d(channels, out, 3, stride, padding=1, bias=False)
        layers["norm"], layers["relu"] = nn.BatchNorm2d(out), nn.ReLU()
    return nn.Sequential(layers)
