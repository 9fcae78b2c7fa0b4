"""Factored convolutions: their parts, what lies between them, and their refusals."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from convscope.errors import RequestError
from convscope.nn import Bottleneck2d, Conv2d, PointwiseConv2d, SeparableConv2d


def test_separable_is_depthwise_then_activation_then_pointwise() -> None:
    layer = SeparableConv2d(
        3, 5, 3, 2, "same", 2, 2, depthwise_bias=True, padding_mode="reflect", activation=nn.Tanh()
    )
    assert layer.depthwise.weight.shape == (6, 1, 3, 3)  # channel c has the outputs 2 c and 2 c + 1
    assert layer.pointwise.weight.shape == (5, 6, 1, 1)
    x = torch.randn(2, 3, 9, 10)
    each = [
        Conv2d(1, 2, 3, 2, "same", 2, padding_mode="reflect")._conv_forward(
            x[:, c : c + 1],
            layer.depthwise.weight[2 * c : 2 * c + 2],
            layer.depthwise.bias[2 * c : 2 * c + 2],  # type: ignore[index]
        )
        for c in range(3)
    ]
    middle = torch.cat(each, 1).tanh()
    expected = functional.conv2d(middle, layer.pointwise.weight, layer.pointwise.bias)
    torch.testing.assert_close(layer(x), expected)
    assert layer.output_size((9, 10)) == (5, 5)


def test_bottleneck_is_reduce_convolve_expand() -> None:
    layer = Bottleneck2d(6, 8, 3, stride=2, padding=1, groups=2, activation=nn.ReLU())
    x = torch.randn(2, 6, 7, 8)
    y = functional.conv2d(x, layer.reduce.weight, layer.reduce.bias).relu()
    y = functional.conv2d(y, layer.conv.weight, layer.conv.bias, 2, 1, 1, 2).relu()
    y = functional.conv2d(y, layer.expand.weight, layer.expand.bias)
    torch.testing.assert_close(layer(x), y)
    assert layer.mid_channels == 2
    assert Bottleneck2d(6, 3).mid_channels == 1
    assert Bottleneck2d(6, 8, mid_channels=5).conv.weight.shape == (5, 5, 3, 3)


def test_activations_are_private_copies() -> None:
    shared = nn.PReLU()
    separable, bottleneck = SeparableConv2d(2, 2, 3, activation=shared), Bottleneck2d(4, 4, activation=shared)
    found = [
        module
        for layer in (separable, bottleneck)
        for module in layer.modules()
        if isinstance(module, nn.PReLU)
    ]
    assert len({id(module) for module in (shared, *found)}) == 4


def test_names_of_the_weights() -> None:
    assert list(SeparableConv2d(2, 3, 3).state_dict()) == [
        "depthwise.weight",
        "pointwise.weight",
        "pointwise.bias",
    ]
    assert list(Bottleneck2d(4, 8, bias=False).state_dict()) == [
        "reduce.weight",
        "conv.weight",
        "expand.weight",
    ]


def test_the_algorithm_is_that_of_the_spatial_part() -> None:
    assert SeparableConv2d(2, 3, 3, algorithm="fft").depthwise.algorithm == "fft"
    layer = Bottleneck2d(4, 8, padding=1, algorithm="winograd")
    assert [part.algorithm for part in (layer.reduce, layer.conv, layer.expand)] == [
        "direct",
        "winograd",
        "direct",
    ]
    x = torch.randn(1, 4, 9, 9)
    twin = Bottleneck2d(4, 8, padding=1)
    twin.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(x), twin(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SeparableConv2d(2, 3, 3, depth_multiplier=0), "depth_multiplier=0 must be a whole number"),
        (lambda: SeparableConv2d(2, 0, 3), "out_channels=0 must be a positive"),
        (
            lambda: SeparableConv2d(2, 3, 3, activation=nn.ReLU),
            "activation=.*ReLU.* must be a module, such as",
        ),
        (lambda: Bottleneck2d(4, 8, mid_channels=0), "mid_channels=0 must be"),
        (lambda: Bottleneck2d(4, 8, mid_channels=3, groups=2), "in_channels=3 must be divisible by groups=2"),
        (lambda: Bottleneck2d(4, 8, activation=torch.relu), "must be a module"),
        (lambda: PointwiseConv2d(3, 4, groups=2), "in_channels=3 must be divisible by groups=2"),
    ],
)
def test_wrong_arguments(call: Callable[[], object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        call()


def test_what_they_print() -> None:
    assert repr(SeparableConv2d(2, 4, 3, bias=False, depth_multiplier=2, activation=nn.ReLU())) == (
        "SeparableConv2d(\n"
        "  2, 4, depth_multiplier=2\n"
        "  (depthwise): Conv2d(2, 4, kernel_size=(3, 3), stride=(1, 1), groups=2, bias=False)\n"
        "  (activation): ReLU()\n"
        "  (pointwise): PointwiseConv2d(4, 4, kernel_size=(1, 1), stride=(1, 1), bias=False)\n"
        ")"
    )
