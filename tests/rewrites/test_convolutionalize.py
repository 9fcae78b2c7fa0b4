"""Fully-connected heads as convolutions: the same scores at the trained size, those of windows cut out on larger images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from convscope import rules
from convscope.errors import RequestError
from convscope.nn import Conv2d
from convscope.rewrites.head import HeadConv2d, windows
from convscope.rewrites.rewrite import rewrite


class Vgg(nn.Module):
    """VGG's shape: features, adaptive pool, a functional flatten, a classifier."""

    def __init__(self, padding: int, pool: int, channels: int = 4) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=padding), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(channels, 6, 3, padding=padding), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        )  # fmt: skip
        self.avgpool = nn.AdaptiveAvgPool2d(pool)
        self.classifier = nn.Sequential(
            nn.Linear(6 * pool * pool, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, 5)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        y: Tensor = self.classifier(torch.flatten(x, 1))
        return y


def cropped(module: nn.Module, image: Tensor, window: int, stride: int) -> Tensor:
    """The oracle: every window cut out, in one batch. [1, classes, rows, columns]"""
    parts = image.unfold(2, window, stride).unfold(3, window, stride)  # [1, 3, rows, columns, window, window]
    rows, columns = parts.shape[2:4]
    y = module(parts[0].permute(1, 2, 0, 3, 4).flatten(0, 1))
    return y.mT.unflatten(1, (rows, columns))[None]  # type: ignore[no-any-return]


# ---------------------------------------------------------------- exact


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_valid_padding_equals_cutting_windows_out(stride: int) -> None:
    module = Vgg(padding=0, pool=7).eval()  # 34 -> 32 -> 16 -> 14 -> 7
    made = rewrite(module, rules.Convolutionalize(stride=stride), input="3x34x34")
    assert made.exactness == "exact"
    assert made.edits[-1].notes[0].startswith("against 5 windows" if stride < 4 else "against 4 windows")
    x = torch.randn(1, 3, 34 + 8, 34 + 12)
    scores = made.net.module(x)
    assert scores.shape == (1, 5, 8 // stride + 1, 12 // stride + 1)
    torch.testing.assert_close(scores, cropped(module, x, 34, stride), rtol=1e-5, atol=1e-5)
    one = torch.randn(3, 3, 34, 34)
    torch.testing.assert_close(made.net.module(one), module(one))
    assert list(made.net.module.state_dict()) == list(module.state_dict())
    assert made.net.module.classifier[0].weight.shape == (16, 6, 7, 7)  # type: ignore[index, union-attr]


def test_the_weights_are_the_fully_connected_ones() -> None:
    linear = nn.Linear(2 * 3 * 4, 1)
    made = rewrite(nn.Sequential(nn.ReLU(), nn.Flatten(), linear), rules.Convolutionalize(), input="2x3x4")
    conv = made.net.module[2]  # type: ignore[index]
    assert torch.equal(conv.weight[0, 1, 2, 3], linear.weight[0, 1 * 12 + 2 * 4 + 3])
    assert [(edit.layer, edit.exactness) for edit in made.edits] == [
        ("1", "exact"),
        ("2", "exact"),
        ("", "exact"),
    ]


@settings(max_examples=12)
@given(
    layers=st.lists(
        st.tuples(st.sampled_from(["conv", "max", "avg"]), st.integers(1, 3), st.integers(1, 3)),
        min_size=1,
        max_size=3,
    ),
    head=st.sampled_from(["flatten", "avg", "max"]),
    divide=st.integers(1, 4),
    extra=st.integers(0, 2),
)
def test_any_stack_without_padding_is_exact(
    layers: list[tuple[str, int, int]], head: str, divide: int, extra: int
) -> None:
    torch.manual_seed(1)
    parts: list[nn.Module] = []
    total, size = 1, 3  # from the last map back to the image
    for kind, kernel, stride in layers:
        total *= stride
        parts.append(
            nn.Conv2d(2, 2, kernel, stride) if kind == "conv"
            else nn.MaxPool2d(kernel, stride) if kind == "max" else nn.AvgPool2d(kernel, stride)
        )  # fmt: skip
    for _, kernel, stride in reversed(layers):
        size = (size - 1) * stride + kernel
    size += extra if total > extra else 0  # pixels that the network leaves over
    assume(total % divide == 0)
    pool = {"flatten": [], "avg": [nn.AdaptiveAvgPool2d(1)], "max": [nn.AdaptiveMaxPool2d(1)]}[head]
    width = 2 * 9 if head == "flatten" else 2
    module = nn.Sequential(*parts, *pool, nn.Flatten(), nn.Linear(width, 3)).eval()
    shape = module[: len(parts)](torch.zeros(1, 2, size, size)).shape[2:]
    assume(shape == (3, 3))
    made = rewrite(module, rules.Convolutionalize(stride=divide), input=(2, size, size))
    assert made.exactness == "exact"
    x = torch.randn(1, 2, size + total, size + 2 * total)
    torch.testing.assert_close(made.net.module(x), cropped(module, x, size, divide), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- approximate


@pytest.mark.parametrize("stride", [1, 2])
def test_zero_padding_is_approximate_and_its_difference_is_measured(stride: int) -> None:
    module = Vgg(padding=1, pool=7).eval()  # 28 -> 14 -> 7
    made = rewrite(module, rules.Convolutionalize(stride=stride), input="3x28x28")
    edit = made.edits[-1]
    assert (made.exactness, edit.layer, edit.resolved) == ("approximate", "", {"stride": stride})
    assert edit.error is not None
    assert 1e-3 < edit.error < 1
    assert "windows that are cut out see zeros where the image goes on" in edit.notes[0]
    one = torch.randn(2, 3, 28, 28)
    torch.testing.assert_close(made.net.module(one), module(one))
    natural = rewrite(module, rules.Convolutionalize(), input="3x28x28")
    assert natural.exactness == "exact"  # at the trained size, which is all it claims
    x = torch.randn(1, 3, 28 + 8, 28 + 4)
    own_grid = made.net.module(x)[:, :, :: 4 // stride, :: 4 // stride]
    torch.testing.assert_close(own_grid, natural.net.module(x))
    assert natural.net.module(x).shape == (1, 5, 3, 2)


def test_strides_of_padded_residual_networks_become_dilation() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 3, 2, 1), nn.BatchNorm2d(4)
            self.short = nn.AvgPool2d(3, 2, 1, count_include_pad=False)

        def forward(self, x: Tensor) -> Tensor:
            return functional.relu(self.norm(self.conv(x)) + self.short(x))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = Conv2d(3, 4, 3, 2, padding="same"), Block(), Block()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc(self.b(self.a(self.stem(x))).mean((2, 3)))
            return y

    module = Net().eval()
    made = rewrite(module, rules.Convolutionalize(stride=2), input="3x32x32")
    by_layer = {edit.layer: edit for edit in made.edits}
    assert "dilation=(2, 2)" in str(by_layer["b.conv"].after)
    assert "padding_mode=partial" in str(by_layer["b.short"].after)
    assert all(edit.error is not None and edit.error < 1e-9 for edit in made.edits[:-1])
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(made.net.module(x), module(x))
    assert made.net.module(torch.zeros(1, 3, 48, 50)).shape == (1, 3, 9, 10)
    assert list(made.net.module.state_dict())[:2] == ["stem.weight", "stem.bias"]


# ---------------------------------------------------------------- shapes of heads


@pytest.mark.parametrize("size", [28, 32, 56])  # maps of 7, 8 and 14 pooled to 7
def test_adaptive_pools_become_windows(size: int) -> None:
    module = Vgg(padding=1, pool=7).eval()
    made = rewrite(module, rules.Convolutionalize(), input=(3, size, size))
    assert made.exactness == "exact"
    pool = made.net.module.avgpool
    kernel = {28: None, 32: (2, 2), 56: (2, 2)}[size]
    assert isinstance(pool, nn.Identity) if kernel is None else pool.kernel_size == kernel
    x = torch.randn(1, 3, size, size)
    torch.testing.assert_close(made.net.module(x), module(x))


def test_windows_of_adaptive_pools_by_torch() -> None:
    for size in range(1, 16):
        for out in range(1, size + 1):
            found = windows(size, out)
            x = torch.randn(1, 1, size, 1)
            expected = functional.adaptive_avg_pool2d(x, (out, 1))
            if found is not None:
                y = functional.avg_pool2d(x, (found[0], 1), (found[1], 1))[:, :, :out]
                torch.testing.assert_close(y, expected)
            else:
                assert size % out


class Own(nn.Module):
    """A head that is written in forward, in one of many ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        ways: dict[str, Any] = {
            "mean": lambda: x.mean([2, 3]),
            "view": lambda: functional.adaptive_avg_pool2d(x, 1).view(x.size(0), -1),
            "reshape": lambda: functional.avg_pool2d(x, 4).reshape(-1, 4),
            "amax": lambda: x.amax((2, 3)),
            "layer": lambda: functional.layer_norm(x.mean((2, 3)), (4,)),
            "two": lambda: x.mean((2, 3)) + x.amax((2, 3)),
            "branch": lambda: x.mean((2, 3)) if x.sum() > -1e9 else x.amax((2, 3)),
        }
        y: Tensor = self.fc(functional.dropout(functional.relu(ways[self.way]()), 0.5, self.training))
        return functional.softmax(y, 1)


@pytest.mark.parametrize("way", ["mean", "view", "reshape", "amax"])
def test_functional_heads(way: str) -> None:
    module = Own(way).eval()
    made = rewrite(module, rules.Convolutionalize(stride=1), input="3x6x6")
    assert (made.exactness, made.refused) == ("exact", ())
    x = torch.randn(1, 3, 8, 9)
    torch.testing.assert_close(made.net.module(x), cropped(module, x, 6, 1), rtol=1e-5, atol=1e-6)
    again = rewrite(made.net, rules.KernelSize(5), where="conv")  # a traced network goes on as any other
    assert again.edits[0].exactness == "exact"


def test_the_batch_norm_of_vectors_becomes_one_of_maps() -> None:
    norm = nn.BatchNorm1d(6)
    norm.running_mean = torch.randn(6)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 6), norm, nn.ReLU(), nn.Linear(6, 2)
    ).eval()
    made = rewrite(module, rules.Convolutionalize(), input="3x6x6")
    x = torch.randn(1, 3, 7, 6)
    torch.testing.assert_close(made.net.module(x), cropped(module, x, 6, 1), rtol=1e-5, atol=1e-6)
    late = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6)).eval()
    assert "after the last fully-connected layer" in reason(late)


def test_the_head_takes_few_and_many_positions() -> None:
    layer = HeadConv2d(3, 4, (2, 3), dilation=(2, 1))
    for size in ((3, 3), (4, 5), (40, 40)):  # one position, few, more than a matrix product is good for
        x = torch.randn(1, 3, *size)
        expected = functional.conv2d(x, layer.weight, layer.bias, dilation=(2, 1))
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- refusals


def reason(module: nn.Module, rule: rules.Rule | None = None, size: int = 6) -> str:
    made = rewrite(module.eval(), rule or rules.Convolutionalize(), input=(3, size, size))
    assert not made.done
    (edit,) = made.edits
    assert made.net.sha256 == made.base.sha256
    return str(edit.reason)


def test_refusals_name_the_reason() -> None:
    conv, flat = nn.Conv2d(3, 4, 3), nn.Flatten()
    assert "gives [1, 4, 4, 4], where one score a class is needed" in reason(nn.Sequential(conv))
    assert "between the map and the scores cannot be done on a map" in reason(Own("layer"))
    assert "takes several tensors" in reason(Own("two"))
    assert "cannot be traced" in reason(Own("branch"))
    shared = nn.Linear(64, 64)
    assert "called several times" in reason(nn.Sequential(conv, flat, shared, nn.ReLU(), shared))
    left = rules.Convolutionalize(where="4")
    assert "leaves out '2'" in reason(
        nn.Sequential(conv, flat, nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 2)), left
    )
    uneven = nn.Sequential(conv, nn.AdaptiveAvgPool2d(7), flat, nn.Linear(196, 2))
    assert "windows of several sizes" in reason(uneven, size=12)


def test_what_holds_a_network_to_its_size_is_named() -> None:
    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place, self.net = nn.Parameter(torch.randn(3, 6, 6)), Own("mean")

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.net(x + self.place)
            return y

    assert "held to its input size apart from its head" in reason(Placed())
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    assert "an image of 12x12 still gives [1, 2]" in reason(pooled)

    class Gate(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.mean((2, 3), keepdim=True)

    gated = nn.Sequential(Gate(), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 2)).eval()
    made = rewrite(gated, rules.Convolutionalize(), input="3x6x6")
    assert made.exactness == "exact"
    assert "not those of windows: mean in '0' sees the whole map" in made.edits[-1].notes[0]


def test_a_dilated_max_pool_pads_as_much_as_it_takes() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1, 2), nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(4 * 4, 2))
    made = rewrite(net, rules.Convolutionalize(dense=True), input="3x8x8")  # padding 2 for a kernel of 3
    x = torch.randn(1, 3, 12, 12)
    scores = made.net.module(x)
    assert scores.shape == (1, 2, 5, 5)
    own_grid = rewrite(net, rules.Convolutionalize(), input="3x8x8").net.module(x)
    torch.testing.assert_close(scores[..., ::4, ::4], own_grid)


def test_refusals_of_strides() -> None:
    head = (nn.Flatten(), nn.Linear(4 * 4, 2))
    dense = rules.Convolutionalize(dense=True)
    strided = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1, padding_mode="reflect"), nn.Conv2d(4, 4, 1), *head)
    assert reason(strided, rules.Convolutionalize(stride=3), 4) == (
        "its scores lie 2 pixels apart, of which stride=3 is no divisor"
    )
    assert "pads by 'reflect'" in reason(strided, dense, 4)
    hanging = nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(2, 2, ceil_mode=True), *head)
    assert "hang over the border" in reason(hanging, dense, 3)

    class Shortcut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool = nn.Conv2d(4, 4, 3, 2, 1), nn.AvgPool2d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) + self.pool(x)

    odd = nn.Sequential(nn.Conv2d(3, 4, 1, 2), Shortcut(), nn.Flatten(), nn.Linear(4 * 4, 2))
    assert "the network failed in layer '1'" in reason(odd, rules.Convolutionalize(stride=2), 8)

    class Gate(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.mean((2, 3), keepdim=True)

    assert "sees the whole map" in reason(nn.Sequential(nn.Conv2d(3, 4, 3), Gate(), *head), dense, 4)
    softened = nn.Sequential(nn.Conv2d(3, 4, 1), nn.LPPool2d(2, 2), *head)
    assert "mixes positions" in reason(softened, dense, 4) or "LPPool2d" in reason(softened, dense, 4)


def test_arguments_are_checked() -> None:
    for wrong in (0, -1, (1, 0), 1.5, True):
        with pytest.raises(RequestError, match="must be a whole number from 1"):
            rules.Convolutionalize(stride=wrong)  # type: ignore[arg-type]
