"""Receptive fields: published figures, hand-worked nets, and the oracle of `nan_oracle`."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from fractions import Fraction

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch.nn import functional as F

from convscope._torchvision import torchvision
from convscope.errors import BadInput, RequestError, UnknownLayer
from convscope.graph import layout, record
from convscope.graph.rules import follow
from convscope.measures.receptive_field import ReceptiveField, field_of, receptive_field
from convscope.models import InputSpec
from convscope.nn import LocallyConnected2d
from nan_oracle import build, check

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::convscope.errors.ConvscopeWarning")

# Thin images, wide enough to hold the field along the width; widths that no stride cuts short.
FAMILIES: dict[str, tuple[dict[str, object], str, tuple[int, ...]]] = {
    "torchvision:alexnet": ({}, "features", (3, 63, 255)),
    "torchvision:vgg16": ({}, "features.23", (3, 32, 160)),
    "torchvision:vgg19": ({}, "features.18", (3, 32, 112)),
    "torchvision:resnet18": ({}, "layer3", (3, 32, 288)),
    "torchvision:googlenet": ({"init_weights": False}, "inception4a", (3, 32, 192)),
    "torchvision:inception_v3": ({"init_weights": False}, "Mixed_5d", (3, 75, 195)),
    "torchvision:densenet121": ({}, "features.transition1", (3, 32, 128)),
    "torchvision:mobilenet_v2": ({}, "features.10", (3, 32, 224)),
    "torchvision:convnext_tiny": ({}, "features.3", (3, 32, 192)),
    "timm:tf_efficientnet_lite0": ({}, "blocks.3.1", (3, 32, 222)),
    "timm:vit_tiny_patch16_224": ({"img_size": (32, 96), "depth": 2}, "patch_embed", (3, 32, 96)),
    "timm:swin_tiny_patch4_window7_224": (
        {"img_size": (56, 168), "depths": (1, 1, 1, 1)},
        "layers.1",
        (3, 56, 168),
    ),
    "timm:resnet26d": ({}, "layer3", (3, 32, 256)),
}


@pytest.mark.parametrize("source", FAMILIES)
def test_oracle_agrees_on_real_networks(source: str) -> None:
    options, layer, shape = FAMILIES[source]
    check(build(source, **options), layer, shape, most=24)


# -- published figures ---------------------------------------------------------------------------------------


VGG16 = {  # Araujo, Norris and Sim 2019, table of the appendix
    "features.0": (3, 1, 1),
    "features.4": (6, 2, 2),
    "features.5": (10, 2, 4),
    "features.9": (16, 4, 6),
    "features.10": (24, 4, 10),
    "features.16": (44, 8, 18),
    "features.17": (60, 8, 26),
    "features.23": (100, 16, 42),
    "features.24": (132, 16, 58),
    "features.30": (212, 32, 90),
}
ENDS = {
    "alexnet": ("features", 195, 32, None),
    "resnet18": ("layer4", 435, 32, 217),
    "resnet34": ("layer4", 899, 32, 449),
    "resnet50": ("layer4", 427, 32, 213),
    "resnet101": ("layer4", 971, 32, 485),
    "mobilenet_v2": ("features", 491, 32, 245),
}


def on_meta(name: str, **options: object) -> nn.Module:
    models = torchvision().models
    with torch.device("meta"):
        return getattr(models, name)(**options)  # type: ignore[no-any-return]


def test_vgg16_equals_the_published_table() -> None:
    net = on_meta("vgg16")
    graph = record(net, spec=InputSpec())
    for layer, (size, stride, padding) in VGG16.items():
        found = receptive_field(net, layer, graph=graph)
        assert (found.size, found.stride, found.padding) == ((size,) * 2, (stride,) * 2, (padding,) * 2), (
            layer
        )
        assert found.aligned
        assert not found.is_global
        assert found.bounds == ()


@pytest.mark.parametrize("name", ENDS)
def test_last_maps_equal_derived_figures(name: str) -> None:
    layer, size, stride, padding = ENDS[name]
    found = receptive_field(on_meta(name), layer, input=InputSpec())
    assert (found.size, found.stride) == ((size,) * 2, (stride,) * 2)
    assert padding is None or found.padding == (padding,) * 2
    assert found.aligned


def test_inception_v3_equals_the_published_figures() -> None:
    found = receptive_field(
        on_meta("inception_v3", init_weights=False), "Mixed_7c", input=InputSpec((3, 299, 299))
    )
    assert (found.size, found.stride, found.padding) == ((1311,) * 2, (32,) * 2, (618,) * 2)


# -- small nets worked out by hand ---------------------------------------------------------------------------


class Lambda(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Sum(nn.Module):
    """Parallel branches added up."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([branch(x) for branch in self.branches]).sum(0)


class Cat(Sum):
    """Parallel branches side by side."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.squeeze(F.adaptive_avg_pool2d(x, 1)).sigmoid()


def conv(k: int, stride: int = 1, padding: int = 0, channels: int = 2, **options: object) -> nn.Conv2d:
    return nn.Conv2d(2, channels, k, stride, padding, **options)  # type: ignore[arg-type]


def seq(*layers: nn.Module) -> nn.Module:
    """The layers in a row; the result is layer "body"."""
    return nn.Sequential(OrderedDict(body=nn.Sequential(*layers)))


def inplace_write(x: Tensor) -> Tensor:
    out = x.new_zeros(x.shape[0], x.shape[1], x.shape[2], x.shape[3] + 4)
    out[:, :, :, 3:-1] = x
    return out


def shared_memory(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :, :, 2:].add_(x[:, :, :, :-2])  # position p now also sees p - 2
    return y


# layer, size, stride, padding along the width; the height of every image is 12
CASES: dict[str, tuple[nn.Module, int, int | Fraction, int]] = {
    "dilation": (seq(conv(3, 1, 2, dilation=2)), 5, 1, 2),
    "stride then dilation": (seq(conv(3, 2, 1), conv(3, 1, 2, dilation=2)), 11, 2, 5),
    "grouped": (seq(conv(5, 1, 2, groups=2)), 5, 1, 2),
    "even kernel": (seq(conv(2), conv(2)), 3, 1, 0),
    "max pool": (seq(conv(3), nn.MaxPool2d(2)), 4, 2, 0),
    "average pool with padding": (seq(nn.AvgPool2d(3, 2, 1), conv(1)), 3, 2, 1),
    "same padding": (seq(conv(4, padding="same")), 4, 1, 1),  # type: ignore[arg-type]
    "asymmetric padding": (seq(nn.ZeroPad2d((0, 1, 0, 1)), conv(3, 2)), 3, 2, 0),
    "cropping": (seq(nn.ZeroPad2d(-2), conv(3)), 3, 1, -2),
    "slice": (seq(Lambda(lambda x: x[:, :, :, 3:-1]), conv(3)), 3, 1, -3),
    "every other": (seq(Lambda(lambda x: x[:, :, 1::2, 1::2]), conv(3)), 5, 2, -1),
    "flip twice": (seq(Lambda(lambda x: x.flip(3).flip(3)), conv(3)), 3, 1, 0),
    "nearest upsampling": (seq(nn.Upsample(scale_factor=2)), 1, Fraction(1, 2), 0),
    "nearest upsampling and 3x3": (seq(nn.Upsample(scale_factor=2), conv(3, 1, 1)), 2, Fraction(1, 2), 1),
    "upsampling undone": (seq(nn.Upsample(scale_factor=2), conv(1, 2)), 1, 1, 0),
    "transposed 2x2": (seq(nn.ConvTranspose2d(2, 2, 2, 2)), 1, Fraction(1, 2), 0),
    "transposed 4x4": (seq(nn.ConvTranspose2d(2, 2, 4, 2, 1)), 2, Fraction(1, 2), 1),
    "transposed undone": (seq(conv(2, 2), nn.ConvTranspose2d(2, 2, 2, 2)), 3, 1, 1),
    "branches": (seq(Sum(conv(3, 1, 1), conv(7, 1, 3))), 7, 1, 3),
    "branches side by side": (seq(Cat(conv(1), conv(5, 1, 2)), nn.Conv2d(4, 2, 3)), 7, 1, 2),
    "patches": (seq(conv(4, 4), Lambda(lambda x: x.flatten(2).transpose(1, 2)), nn.Linear(2, 5)), 4, 4, 0),
    "pixel unshuffle": (seq(nn.PixelUnshuffle(2), nn.Conv2d(8, 2, 3)), 6, 2, 0),
    "pixel shuffle": (seq(conv(3, 1, 1, channels=8), nn.PixelShuffle(2)), 3, Fraction(1, 2), 1),
    "shuffle undone": (seq(nn.PixelUnshuffle(2), nn.PixelShuffle(2), conv(3)), 3, 1, 0),
    "batch norm": (seq(conv(3), nn.BatchNorm2d(2), nn.Hardswish(inplace=True)), 3, 1, 0),
    "in-place write": (seq(Lambda(inplace_write), conv(3)), 3, 1, 3),
    "memory shared with a slice": (seq(Lambda(shared_memory)), 3, 1, 2),
    "unfold": (seq(nn.Unfold(3, padding=1)), 3, 1, 1),
    "channels last norm": (
        seq(conv(3), Lambda(lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (2,)).permute(0, 3, 1, 2))),
        3,
        1,
        0,
    ),
    "adaptive pooling to a divisor": (seq(nn.AdaptiveAvgPool2d((4, 6))), 4, 4, 0),
}


# A position sees 2 pixels; in whole steps of 1 that cannot be said, and a wider field is named as such.
BOUNDS = {"transposed undone"}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_worked_by_hand(name: str) -> None:
    net, size, stride, padding = CASES[name]
    found = receptive_field(net, "body", input=InputSpec((2, 12, 24)))
    assert (found.size[1], found.stride[1], found.padding[1]) == (size, stride, padding)
    assert not any(found.whole)
    assert bool(found.bounds) == (name in BOUNDS)


NO_ORACLE = {"unfold": "its output is no map"}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", sorted(set(CASES) - set(NO_ORACLE)))
def test_oracle_agrees_on_small_nets(name: str) -> None:
    check(CASES[name][0], "body", (2, 12, 24), axes=(0, 1))


# -- the whole image -----------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Patches, a class token, one block of self-attention with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(2, 8, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        tokens = self.block(torch.cat([self.token.expand(len(x), -1, -1), tokens], dim=1))
        return self.head(tokens[:, 0])  # type: ignore[no-any-return]


# net, reason, size and padding of the local path
GLOBAL: dict[str, tuple[nn.Module, str, tuple[int, int] | None]] = {
    "squeeze and excitation": (seq(conv(3, 1, 1), Gate(2), conv(3, 1, 1)), "aten.mean", (5, 2)),
    "global pooling": (seq(conv(3, 1, 1), nn.AdaptiveAvgPool2d(1)), "aten.mean", None),
    "global max pooling": (seq(conv(3, 1, 1), nn.AdaptiveMaxPool2d(1)), "aten.adaptive_max_pool2d", None),
    "classifier": (seq(conv(3, 1, 1), nn.Flatten(), nn.Linear(576, 3)), "aten.addmm", None),
    "group norm": (seq(conv(3, 1, 1), nn.GroupNorm(1, 2)), "aten.native_group_norm", (3, 1)),
    "instance norm": (seq(conv(3, 1, 1), nn.InstanceNorm2d(2)), "aten.native_batch_norm", (3, 1)),
    "softmax over space": (
        seq(conv(3), nn.Softmax(3), Lambda(lambda x: x.softmax(2))),
        "aten._softmax",
        (3, 0),
    ),
    "circular shift": (seq(Lambda(lambda x: x.roll((1, 2), (2, 3))), conv(3)), "aten.roll", (3, 2)),
    "unknown operation": (seq(Lambda(lambda x: torch.fft.fft2(x).real)), "aten._fft_c2c", None),
}


@pytest.mark.parametrize("name", GLOBAL)
def test_whole_image(name: str) -> None:
    net, reason, local = GLOBAL[name]
    found = receptive_field(net, "body", input=InputSpec((2, 12, 24)))
    assert found.is_global
    assert (found.size, found.stride, found.padding) == ((12, 24), (0, 0), (0, 0))
    assert found.box((3, 5)) == ((0, 12), (0, 24))
    assert any(text.startswith(reason) for text in found.reasons), found.reasons
    assert (found.local is None) == (local is None)
    if found.local is not None and local is not None:
        assert (found.local.size[1], found.local.padding[1]) == local
        assert found.local.stride == (1, 1)


def test_attention_keeps_the_local_path_of_each_patch() -> None:
    net, spec = Attention(), InputSpec((2, 12, 24))
    graph = record(net, spec=spec)
    patch = receptive_field(net, "patch", graph=graph)
    assert (patch.size, patch.stride, patch.is_global) == ((4, 4), (4, 4), False)
    block = receptive_field(net, "block", graph=graph)
    assert block.is_global
    assert block.local is not None
    assert (block.local.size, block.local.stride, block.local.padding) == ((4, 4), (4, 4), (0, 0))
    assert block.local.aligned
    plan = layout(graph, "block")
    assert (plan.kind, plan.grid, plan.before, plan.channels) == ("tokens", (3, 6), 1, 8)
    assert receptive_field(net, "head", graph=graph).is_global
    assert layout(graph, "head").kind == "vector"


def test_a_locally_connected_layer_sees_what_its_convolution_does() -> None:
    first, second = nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3, dilation=2, groups=2)
    x = torch.rand(1, 1, 24, 20)
    local = nn.Sequential(
        LocallyConnected2d.from_conv(first, (24, 20)), LocallyConnected2d.from_conv(second, (12, 10))
    )
    seen = receptive_field(local, "1", input=x)
    assert seen == receptive_field(nn.Sequential(first, second), "1", input=x)
    assert (seen.size, seen.stride, seen.padding) == ((11, 11), (2, 2), (1, 1))


def test_efficientnet_lite0_has_one_sided_padding() -> None:
    net = build("timm:tf_efficientnet_lite0")
    graph = record(net, spec=InputSpec())
    stem, last = (receptive_field(net, layer, graph=graph) for layer in ("conv_stem", "blocks.6"))
    assert (stem.size, stem.stride, stem.padding) == ((3, 3), (2, 2), (0, 0))
    assert stem.box(111) == ((222, 225), (222, 225))  # one pixel past the right and lower border
    assert (last.size, last.stride, last.padding) == ((851, 851), (32, 32), (394, 394))
    small = receptive_field(net, "conv_stem", input=InputSpec((3, 223, 223)))
    assert small.padding == (1, 1)  # "same" at an odd size pads both sides


def test_misaligned_paths_are_flagged() -> None:
    shifted = seq(Sum(conv(3, 1, 1), nn.Sequential(nn.ZeroPad2d((0, 2, 0, 2)), conv(3))))
    found = receptive_field(shifted, "body", input=InputSpec((2, 12, 24)))
    assert (found.size, found.padding, found.aligned) == ((4, 4), (1, 1), False)
    strides = seq(Sum(conv(1), nn.Sequential(conv(4, 4), nn.Upsample(scale_factor=4))))
    found = receptive_field(strides, "body", input=InputSpec((2, 12, 24)))
    assert not found.aligned


def test_one_axis_alone_may_be_whole() -> None:
    rows = seq(conv(3, 1, 1), Lambda(lambda x: x - x.mean(3, keepdim=True)))
    found = receptive_field(rows, "body", input=InputSpec((2, 12, 24)))
    assert (found.whole, found.is_global) == ((False, True), False)
    assert (found.size, found.stride, found.padding) == ((3, 24), (1, 0), (1, 0))
    assert found.local is not None
    assert found.local.size == (3, 3)


def test_signals_and_volumes() -> None:
    line = nn.Sequential(nn.Conv1d(2, 4, 5, padding=2), nn.MaxPool1d(2), nn.ConvTranspose1d(4, 4, 2, 2))
    graph = record(line, example=torch.zeros(1, 2, 40))
    assert receptive_field(line, "1", graph=graph).size == (6,)
    volume = nn.Sequential(nn.Conv3d(1, 2, 3), nn.AvgPool3d(2))
    graph = record(volume, example=torch.zeros(1, 1, 8, 10, 12))
    found = receptive_field(volume, "1", graph=graph)
    assert (found.size, found.stride) == ((4, 4, 4), (2, 2, 2))


def test_text_is_read_from_an_example() -> None:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(9, 4)
            self.wide, self.pool = nn.Conv1d(4, 4, 5, padding=2), nn.MaxPool1d(2)
            self.head = nn.Linear(4, 2)

        def forward(self, words: Tensor, scale: Tensor) -> Tensor:
            x = self.pool(self.wide(self.embed(words).transpose(1, 2))) * scale
            return self.head(x.amax(2))  # type: ignore[no-any-return]

    example = (torch.zeros(2, 20, dtype=torch.long), torch.ones(1))
    found = receptive_field(Text(), "pool", input=example)
    assert (found.size, found.stride, found.padding, found.image) == ((6,), (2,), (2,), (20,))
    assert receptive_field(Text(), "pool", 9, input=example) == ((16, 22),)
    assert receptive_field(Text(), "head", input=example).is_global


def test_the_box_of_a_position() -> None:
    net, spec = seq(conv(3, 2, 1), nn.MaxPool2d(2)), InputSpec((2, 12, 24))
    assert receptive_field(net, "body", (0, 5), input=spec) == ((-1, 4), (19, 24))
    assert receptive_field(net, "body", 1, input=spec) == ((3, 8), (3, 8))
    with pytest.raises(
        RequestError, match=r"position=\(3, 0\) is none of layer 'body', which has 3 x 6; count from 0"
    ):
        receptive_field(net, "body", (3, 0), input=spec)
    with pytest.raises(RequestError, match="has 1 indices"):
        receptive_field(net, "body", (0,), input=spec)
    vector = nn.Sequential(nn.Flatten(), nn.Linear(576, 3))
    assert receptive_field(vector, "1", 0, input=spec) == ((0, 12), (0, 24))


def test_reused_layers_are_told_apart() -> None:
    shared = conv(3)
    net = nn.Sequential(OrderedDict(first=shared, second=shared))
    graph = record(net, spec=InputSpec((2, 12, 24)))
    assert receptive_field(net, "first#0", graph=graph).size == (3, 3)
    assert receptive_field(net, "second", graph=graph).size == (5, 5)  # the same module: its last call


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["conv", "pool", "up", "deconv"]),
            st.integers(1, 4),
            st.integers(1, 3),
            st.integers(1, 2),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_random_chains_agree_with_the_oracle(plan: list[tuple[str, int, int, int]]) -> None:
    layers: list[nn.Module] = []
    for kind, k, stride, dilation in plan:
        layers.append(
            {
                "conv": lambda k=k, s=stride, d=dilation: nn.Conv2d(
                    1, 1, (1, k), (1, s), (0, k // 2), (1, d)
                ),
                "pool": lambda k=k, s=stride: nn.MaxPool2d((1, k), (1, s), (0, k // 2)),
                "up": lambda s=stride: nn.Upsample(scale_factor=(1, s)),
                "deconv": lambda k=k, s=stride: nn.ConvTranspose2d(1, 1, (1, k), (1, s)),
            }[kind]()
        )
    check(seq(*layers), "body", (1, 2, 36), most=40)


# -- requests ------------------------------------------------------------------------------------------------


def test_requests_are_refused_with_reasons() -> None:
    net, spec = nn.Sequential(OrderedDict(conv1=conv(3), conv2=conv(3))), InputSpec((2, 12, 24))
    with pytest.raises(
        UnknownLayer, match="layer 'conv3' is not a module of the network; did you mean 'conv"
    ):
        receptive_field(net, "conv3", input=spec)
    with pytest.raises(BadInput, match="input='big' must be SIZE, HEIGHTxWIDTH or CHANNELSxHEIGHTxWIDTH"):
        receptive_field(net, "conv2", input="big")
    field = receptive_field(net, "conv2", input=spec)
    for shape in ("2x12x24", (2, 12, 24), [2, 12, 24]):
        assert receptive_field(net, "conv2", input=shape) == field
    with pytest.raises(
        RequestError, match=r"position=\(1, 2, 3\) has 3 indices; give one for each of the 2 image axes"
    ):
        field.box((1, 2, 3))
    constant = seq(Lambda(torch.zeros_like))
    with pytest.raises(RequestError, match="layer 'body' gives no tensor that depends on the input"):
        receptive_field(constant, "body", input=spec)


def test_plain_values() -> None:
    found = receptive_field(seq(nn.Upsample(scale_factor=2)), "body", input=InputSpec((2, 12, 24)))
    assert isinstance(found, ReceptiveField)
    assert found.to_dict()["stride"] == [0.5, 0.5]


def test_all_layers_of_a_network_take_no_time() -> None:
    net = build("timm:tf_efficientnet_lite0")
    graph = record(net, spec=InputSpec())
    start = time.perf_counter()
    for layer in graph.executed:  # receptive_field itself is watched by conftest, which takes its time
        field_of(follow(graph)[graph.call(layer).outputs[0]])
    assert time.perf_counter() - start < 1
