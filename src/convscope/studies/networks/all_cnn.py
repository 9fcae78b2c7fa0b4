"""The networks with which Springenberg et al. asked what pooling is for."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from torch import nn

from convscope.errors import UnknownName, nearest
from convscope.nn import Conv2d, GlobalAvgPool2d, MaxPool2d

# of each stage before the head: the strides of its 3x3 convolutions, and whether a 3x3 max pool of stride 2 ends it
_STAGES: Final[dict[str, tuple[tuple[int, ...], bool]]] = {
    "C": ((1, 1), True),
    "strided-C": ((1, 2), False),
    "convpool-C": ((1, 1, 1), True),
    "all-C": ((1, 1, 2), False),
}
VARIANTS: Final = tuple(_STAGES)


def all_cnn(
    variant: str = "C", *, in_channels: int = 3, classes: int = 10, width: int = 96, dropout: bool = True
) -> nn.Sequential:
    """Model C of the All-CNN paper, or one of the three derived from it.

    Two stages of 3x3 convolutions, to 96 and 192 channels, each of which halves the map; then 3x3 without padding, 1x1,
    1x1 to the classes, and the mean over all positions. (The paper's table has a ReLU on the classes too; a class that it
    once silences never learns again, so it is left out.) They halve by

    - "C": a 3x3 max pool of stride 2, after two convolutions;
    - "strided-C": the second of two convolutions has stride 2, and there is no pool;
    - "convpool-C": a pool after three convolutions, so that it has as many layers as
    - "all-C" (All-CNN-C): a third convolution, of stride 2, in the pool's place.

    Springenberg, Dosovitskiy, Brox, Riedmiller, "Striving for Simplicity: The All Convolutional Net" (ICLR 2015 workshop),
    tables 1 and 2.

    Args:
        variant: one of these.
        in_channels: of the images.
        classes: numbers for each image.
        width: channels of the first stage; 96 in the paper.
        dropout: as in the paper: a fifth of the input, half of what each stage gives.

    Returns:
        A module from `[batch, in_channels, height, width]` to `[batch, classes]`, for images of 13 pixels or more.

    Raises:
        UnknownName: there is no such variant.

    Example:
        >>> {name: sum(p.numel() for p in all_cnn(name).parameters()) for name in ("C", "all-C")}
        {'C': 954730, 'all-C': 1369738}
    """
    if variant not in _STAGES:
        raise UnknownName(
            f"variant={variant!r} must be one of {', '.join(VARIANTS)}{nearest(str(variant), VARIANTS)}"
        )
    strides, pooled = _STAGES[variant]
    parts: dict[str, nn.Module] = {}
    if dropout:
        parts["dropout"] = nn.Dropout(0.2)
    channels = in_channels
    for stage, out in ((1, width), (2, 2 * width)):
        layers: dict[str, nn.Module] = {}
        for number, stride in enumerate(strides, start=1):
            layers[f"conv{number}"] = Conv2d(channels, out, 3, stride, padding=1)
            layers[f"relu{number}"] = nn.ReLU()
            channels = out
        if pooled:
            layers["pool"] = MaxPool2d(3, 2, padding=1)
        if dropout:
            layers["dropout"] = nn.Dropout(0.5)
        parts[f"stage{stage}"] = nn.Sequential(OrderedDict(layers))
    head = OrderedDict[str, nn.Module](
        conv1=Conv2d(channels, channels, 3),
        relu1=nn.ReLU(),
        conv2=Conv2d(channels, channels, 1),
        relu2=nn.ReLU(),
        conv3=Conv2d(channels, classes, 1),
        pool=GlobalAvgPool2d(keepdim=False),
    )
    parts["head"] = nn.Sequential(head)
    net = nn.Sequential(OrderedDict(parts))
    for module in net.modules():
        if isinstance(module, nn.Conv2d):  # without batch norm, torch's own start is too small to train from
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return net
