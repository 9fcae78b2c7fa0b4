"""What is counted: ten networks of torchvision, small modules with one difficulty each, and what is right for them.

The right figures come from no counter. Of a module they are worked out by hand, in the lines below. Of a network the
multiply-accumulates are output elements x weights of a filter, over the calls of its convolutions and linear layers
(one hook, `by_modules`), of the transformer a formula; receptive fields are summed up along the longest path, or
published (Araujo, Norris and Sim 2019). torchvision's own figures stand beside, to three digits after the point.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from convscope._torchvision import torchvision

Field: TypeAlias = tuple[int, int, int]  # size, stride, padding
Window: TypeAlias = tuple[int, ...]  # kernel, stride, padding, dilation (1)

# ---------------------------------------------------------------- networks


@dataclass(frozen=True)
class Network:
    """A network of torchvision with random weights.

    Attributes:
        entry: of torchvision's weights, whose published figures it must meet.
        shape: of its input, batch included.
        layer: of which the receptive field is asked.
        field: what is right along local paths, and how that is known.
        macs: by hand, where modules do not say it.
        options: for the builder.
    """

    name: str
    entry: str
    layer: str
    field: Field
    source: str
    shape: tuple[int, ...] = (1, 3, 224, 224)
    macs: int | None = None
    options: tuple[tuple[str, Any], ...] = ()

    def build(self) -> nn.Module:
        models = torchvision().models
        options = {"weights": None, **dict(self.options)}
        module: nn.Module = models.get_model(self.name, **options)
        return module.eval()

    def published(self) -> tuple[float, int]:
        """GMACs and parameters, as torchvision tells them."""
        meta = torchvision().models.get_weight(self.entry).meta
        return float(meta["_ops"]), int(meta["num_params"])


def along(*windows: Window) -> Field:
    """The receptive field after a chain of windows.

    >>> along((3, 1, 1), (2, 2, 0), (3, 1, 1))
    (8, 2, 3)
    """
    size, step, padding = 1, 1, 0
    for kernel, stride, pad, *dilation in windows:
        size += (kernel - 1) * (dilation or [1])[0] * step
        padding += pad * step
        step *= stride
    return size, step, padding


def stages(*parts: tuple[int, int], kernel: int = 3) -> list[Window]:
    """(blocks, stride) a stage: one window a block, the stride in the first."""
    return [
        (kernel, stride if block == 0 else 1, kernel // 2)
        for blocks, stride in parts
        for block in range(blocks)
    ]


def by_modules(module: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of the calls of convolutions and linear layers: output elements x weights of a filter."""
    found: list[int] = []

    def hook(part: nn.Module, _: Any, out: Tensor) -> None:
        weight = part.weight
        assert isinstance(weight, Tensor)
        found.append(out.numel() * weight[0].numel())

    parts = [part for part in module.modules() if type(part) in (nn.Conv2d, nn.Linear)]
    handles = [part.register_forward_hook(hook) for part in parts]
    try:
        with torch.no_grad():
            module(x)
    finally:
        for handle in handles:
            handle.remove()
    return sum(found)


def transformer(tokens: int, width: int, inner: int) -> int:
    """One block: projections to query, key and value, two products of attention, its output, two linear layers."""
    return (
        tokens * width * 3 * width
        + 2 * tokens * tokens * width
        + tokens * width * width
        + 2 * tokens * width * inner
    )


STEM = ((7, 2, 3), (3, 2, 1))  # of a ResNet
POOL = (2, 2, 0)
DISTILL = "published, Distill 2019"
SUMMED = "summed up along the longest path"
RESNET50 = along(*STEM, *stages((3, 1), (4, 2), (6, 2), (3, 2)))
DENSE = along(*STEM, *stages((6, 1)), POOL, *stages((12, 1)), POOL, *stages((24, 1)), POOL, *stages((16, 1)))
MOBILE = along((3, 2, 1), *stages((1, 1), (2, 2), (3, 2), (4, 2), (3, 1), (3, 2), (1, 1)))
EFFICIENT = along(
    *((3, 2, 1), (3, 1, 1)),
    *(*stages((2, 2)), *stages((2, 2), kernel=5), *stages((3, 2)), *stages((3, 1), kernel=5)),
    *(*stages((4, 2), kernel=5), (3, 1, 1)),
)
ATROUS = along(  # MobileNet-V3 large at stride 16, the last three blocks dilated, and the widest branch of the pyramid
    *((3, 2, 1), *stages((1, 1), (2, 2)), *stages((3, 2), kernel=5), *stages((6, 2))),
    *[(5, 1, 4, 2)] * 3,
    (3, 1, 36, 36),
)

NETWORKS = (
    Network("alexnet", "AlexNet_Weights.IMAGENET1K_V1", "features", (195, 32, 66), SUMMED),
    Network("vgg16", "VGG16_Weights.IMAGENET1K_V1", "features", (212, 32, 90), DISTILL),
    Network("resnet50", "ResNet50_Weights.IMAGENET1K_V1", "layer4", RESNET50, SUMMED),
    Network("resnext50_32x4d", "ResNeXt50_32X4D_Weights.IMAGENET1K_V1", "layer4", RESNET50, SUMMED),
    Network("densenet121", "DenseNet121_Weights.IMAGENET1K_V1", "features", DENSE, SUMMED),
    Network("mobilenet_v2", "MobileNet_V2_Weights.IMAGENET1K_V1", "features", MOBILE, SUMMED),
    Network("efficientnet_b0", "EfficientNet_B0_Weights.IMAGENET1K_V1", "features", EFFICIENT, SUMMED),
    Network(
        "inception_v3",
        "Inception_V3_Weights.IMAGENET1K_V1",
        "Mixed_7c",
        (1311, 32, 618),
        DISTILL,
        shape=(1, 3, 299, 299),
        options=(("init_weights", False),),
    ),
    Network(
        "deeplabv3_mobilenet_v3_large",
        "DeepLabV3_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1",
        "classifier.0.convs.3",
        ATROUS,
        SUMMED,
        shape=(1, 3, 520, 520),
        options=(("weights_backbone", None), ("aux_loss", True)),
    ),
    Network(
        "vit_b_16",
        "ViT_B_16_Weights.IMAGENET1K_V1",
        "conv_proj",
        along((16, 16, 0)),
        SUMMED,
        macs=196 * 768 * (3 * 16 * 16) + 12 * transformer(197, 768, 3072) + 768 * 1000,
    ),
)


# ---------------------------------------------------------------- one difficulty each


@dataclass(frozen=True)
class Probe:
    """A small module on which counters have gone wrong.

    Attributes:
        macs, params: by hand.
        ops: words in the names of what must not be overlooked, by which a tool's own list of omissions is searched.
        whole: whether the input is made of whole numbers.
    """

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    macs: int
    params: int
    ops: tuple[str, ...] = ()
    whole: bool = False

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        return self.make().eval()

    def example(self) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        if self.whole:
            return torch.randint(10, self.shape, generator=generator)
        return torch.rand(self.shape, generator=generator)


class Functional(nn.Module):
    """Layers without modules."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(8, 3, 3, 3))
        self.matrix = nn.Parameter(torch.randn(10, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(functional.conv2d(x, self.kernel, padding=1))  # [batch, 8, height, width]
        return functional.linear(x.mean((2, 3)), self.matrix)


class Product(nn.Module):
    """A matrix product, written as an operator or in Einstein's notation."""

    def __init__(self, equation: str = "") -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(64, 32))
        self.equation = equation

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum(self.equation, x, self.matrix) if self.equation else x @ self.matrix


class Heads(nn.Module):
    """The function alone: four heads of sixteen channels, no projections."""

    def forward(self, x: Tensor) -> Tensor:
        heads = x.unflatten(-1, (4, -1)).transpose(1, 2)  # [batch, head, token, channel]
        return functional.scaled_dot_product_attention(heads, heads, heads)


class Tokens(nn.Module):
    """The module, on one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return result


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(32, 64, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.lstm(x)[0]
        return result


class Twice(nn.Module):
    """One convolution, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(functional.relu(self.conv(x)))
        return result


def tied() -> nn.Module:
    """Two layers with one matrix."""
    layers = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    layers[1].weight = layers[0].weight
    return layers


def frozen() -> nn.Module:
    """Its first layer is not trained."""
    layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1))
    layers[0].requires_grad_(False)
    return layers


def decoder() -> nn.Module:
    """As of a DCGAN, from one position to 32 x 32 pixels, with groups; all kernels are 4 x 4."""
    layers: list[nn.Module] = []
    for given, made, groups in ((100, 256, 1), (256, 128, 4), (128, 64, 64)):
        first = not layers
        conv = nn.ConvTranspose2d(
            given, made, 4, 1 if first else 2, 0 if first else 1, groups=groups, bias=False
        )
        layers += [conv, nn.BatchNorm2d(made), nn.ReLU()]
    return nn.Sequential(*layers, nn.ConvTranspose2d(64, 3, 4, 2, 1), nn.Tanh())


_DECODER = (100 * 256, 256 * 128 // 4, 128 * 64 // 64, 64 * 3)  # pairs of channels that meet, layer by layer
_BLOCK = 64 * 3 * 64 + 64 * 64 + 2 * 64 * 256 + 3 * 64 + 64 + 256 + 64 + 2 * 2 * 64  # weights and biases

PROBES = (
    Probe(
        "transposed convolution",
        lambda: nn.ConvTranspose2d(8, 16, 4, stride=2, padding=1),
        (1, 8, 10, 10),
        macs=10 * 10 * 8 * 16 * 4 * 4,
        params=8 * 16 * 4 * 4 + 16,
        ops=("conv",),
    ),
    Probe(
        "depthwise transposed convolution",
        lambda: nn.ConvTranspose2d(16, 16, 4, stride=2, padding=1, groups=16),
        (1, 16, 10, 10),
        macs=10 * 10 * 16 * 4 * 4,
        params=16 * 4 * 4 + 16,
        ops=("conv",),
    ),
    Probe(
        "decoder, transposed and grouped",
        decoder,
        (1, 100, 1, 1),
        macs=16 * sum(pairs * side**2 for pairs, side in zip(_DECODER, (1, 4, 8, 16), strict=True)),
        params=16 * sum(_DECODER) + 3 + 2 * (256 + 128 + 64),
        ops=("conv",),
    ),
    Probe(
        "convolution of one image without batch",
        lambda: nn.Conv2d(3, 8, 3),
        (3, 16, 16),
        macs=14 * 14 * 8 * 3 * 3 * 3,
        params=8 * 3 * 3 * 3 + 8,
        ops=("conv",),
    ),
    Probe(
        "linear layer along a sequence",
        lambda: nn.Linear(64, 128),
        (1, 50, 64),
        macs=50 * 64 * 128,
        params=64 * 128 + 128,
        ops=("linear", "mm"),
    ),
    Probe(
        "module called twice",
        Twice,
        (1, 8, 10, 10),
        macs=2 * 10 * 10 * 8 * 8 * 3 * 3,
        params=8 * 8 * 3 * 3 + 8,
        ops=("conv",),
    ),
    Probe(
        "two layers with one weight",
        tied,
        (1, 64),
        macs=2 * 64 * 64,
        params=64 * 64 + 2 * 64,
        ops=("linear", "mm"),
    ),
    Probe(
        "frozen weights",
        frozen,
        (1, 3, 16, 16),
        macs=16 * 16 * (8 * 3 * 3 * 3 + 4 * 8),
        params=8 * 3 * 3 * 3 + 8 + 4 * 8 + 4,
        ops=("conv",),
    ),
    Probe(
        "functional convolution and linear",
        Functional,
        (1, 3, 16, 16),
        macs=16 * 16 * 8 * 3 * 3 * 3 + 8 * 10,
        params=8 * 3 * 3 * 3 + 8 * 10,
        ops=("conv", "linear", "mm"),
    ),
    Probe(
        "matrix product, `@`",
        Product,
        (1, 50, 64),
        macs=50 * 64 * 32,
        params=64 * 32,
        ops=("mm", "matmul"),
    ),
    Probe(
        "matrix product, `einsum`",
        lambda: Product("bnc,cd->bnd"),
        (1, 50, 64),
        macs=50 * 64 * 32,
        params=64 * 32,
        ops=("mm", "einsum"),
    ),
    Probe(
        "`scaled_dot_product_attention`",
        Heads,
        (1, 50, 64),
        macs=2 * 50 * 50 * 64,
        params=0,
        ops=("attention",),
    ),
    Probe(
        "`MultiheadAttention`",
        Tokens,
        (1, 50, 64),
        macs=50 * 64 * 3 * 64 + 2 * 50 * 50 * 64 + 50 * 64 * 64,
        params=3 * 64 * 64 + 3 * 64 + 64 * 64 + 64,
        ops=("attention",),
    ),
    Probe(
        "`TransformerEncoderLayer`",
        lambda: nn.TransformerEncoderLayer(64, 4, 256, batch_first=True),
        (1, 50, 64),
        macs=transformer(50, 64, 256),
        params=_BLOCK,
        ops=("attention",),
    ),
    Probe(
        "`LSTM`",
        Recurrent,
        (1, 20, 32),
        macs=20 * 4 * 64 * (32 + 64),
        params=4 * 64 * (32 + 64) + 2 * 4 * 64,
        ops=("lstm", "rnn"),
    ),
    Probe("embedding", lambda: nn.Embedding(1000, 64), (1, 50), macs=0, params=64000, whole=True),
    Probe(
        "normalization and activation",
        lambda: nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.GroupNorm(2, 8)),
        (1, 8, 16, 16),
        macs=0,
        params=4 * 8,
    ),
    Probe(
        "maximum and adaptive pooling",
        lambda: nn.Sequential(nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)),
        (1, 8, 16, 16),
        macs=0,
        params=0,
    ),
)


# ---------------------------------------------------------------- gradients


@dataclass(frozen=True)
class Backward:
    """A 1 x 1 convolution of the image, which needs no gradient, and a layer behind it, which gives two."""

    name: str
    layer: Callable[[], nn.Module]
    macs: int  # of the layer, forward
    channels: int = 32
    side: int = 16

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, self.channels, 1), self.layer()).eval()

    def example(self) -> Tensor:
        return torch.rand((1, 3, self.side, self.side), generator=torch.Generator().manual_seed(0))

    @property
    def right(self) -> int:
        """Of the gradients: one product of the first layer, two of the second."""
        return self.side**2 * 3 * self.channels + 2 * self.macs


BACKWARD = (
    Backward("convolution", lambda: nn.Conv2d(32, 32, 3, padding=1), 16 * 16 * 32 * 32 * 3 * 3),
    Backward(
        "convolution, 4 groups", lambda: nn.Conv2d(32, 32, 3, padding=1, groups=4), 16 * 16 * 32 * 8 * 3 * 3
    ),
    Backward(
        "depthwise convolution", lambda: nn.Conv2d(32, 32, 3, padding=1, groups=32), 16 * 16 * 32 * 3 * 3
    ),
    Backward(
        "transposed convolution", lambda: nn.ConvTranspose2d(32, 16, 4, 2, 1), 16 * 16 * 32 * 16 * 4 * 4
    ),
    Backward(
        "transposed convolution, 4 groups",
        lambda: nn.ConvTranspose2d(32, 16, 4, 2, 1, groups=4),
        16 * 16 * 32 * 4 * 4 * 4,
    ),
)


def weights(module: nn.Module) -> int:
    """Number of parameters, each once."""
    return sum(prod(tensor.shape) for tensor in {id(p): p for p in module.parameters()}.values())
