"""The layers that torch lacks or leaves half-done, as drop-in modules.

Convolutions: `Conv2d` (more paddings, a choice of algorithm), `PointwiseConv2d`, `SeparableConv2d`, `Bottleneck2d`,
`LocallyConnected1d`, `LocallyConnected2d`. Pooling: `pool2d` and what it makes. Upsampling: `upsample2d` and what it makes,
`MaxUnpool2d` with the `SwitchedMaxPool2d` that feeds it. Text: `OneHot`, `EmbeddingChannels`, `TextConv1d`.

All work in float32, float64 and bfloat16, under autograd and `torch.compile`, can be copied and pickled, take an input
without batch where torch does, and tell the size of their output by `output_size(input_size)`.
"""

from convscope.nn.checkerboard import Checkerboard, checkerboard
from convscope.nn.conv import Conv2d
from convscope.nn.interpolation import BedOfNails2d, BilinearUpsample2d, NearestUpsample2d
from convscope.nn.local import LocallyConnected1d, LocallyConnected2d
from convscope.nn.pooling import (
    AvgPool2d,
    BlurPool2d,
    FractionalMaxPool2d,
    GlobalAvgPool2d,
    GlobalMaxPool2d,
    MaxBlurPool2d,
    MaxPool2d,
    NoPool2d,
    StridedConvPool2d,
    pool2d,
)
from convscope.nn.resize_conv import ResizeConv2d
from convscope.nn.separable import Bottleneck2d, PointwiseConv2d, SeparableConv2d
from convscope.nn.subpixel import PixelShuffleUpsample2d
from convscope.nn.text import EmbeddingChannels, OneHot, TextConv1d
from convscope.nn.transposed import TransposedConv2d
from convscope.nn.unpooling import MaxUnpool2d, SwitchedMaxPool2d, Switches, SwitchMemory
from convscope.nn.upsampling import upsample2d

__all__ = [
    "AvgPool2d",
    "BedOfNails2d",
    "BilinearUpsample2d",
    "BlurPool2d",
    "Bottleneck2d",
    "Checkerboard",
    "Conv2d",
    "EmbeddingChannels",
    "FractionalMaxPool2d",
    "GlobalAvgPool2d",
    "GlobalMaxPool2d",
    "LocallyConnected1d",
    "LocallyConnected2d",
    "MaxBlurPool2d",
    "MaxPool2d",
    "MaxUnpool2d",
    "NearestUpsample2d",
    "NoPool2d",
    "OneHot",
    "PixelShuffleUpsample2d",
    "PointwiseConv2d",
    "ResizeConv2d",
    "SeparableConv2d",
    "StridedConvPool2d",
    "SwitchMemory",
    "SwitchedMaxPool2d",
    "Switches",
    "TextConv1d",
    "TransposedConv2d",
    "checkerboard",
    "pool2d",
    "upsample2d",
]
