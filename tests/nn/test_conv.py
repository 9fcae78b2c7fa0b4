"""Conv2d: every padding against numpy written from the definition, torch's own layer, and torch's state_dict."""

from __future__ import annotations

import copy
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from convscope.errors import RequestError, UnknownName
from convscope.nn import Conv2d

Array = np.ndarray


def correlate(x: Array, weight: Array, stride: int, dilation: int) -> Array:
    """One image, by the definition: [channels, h, w] and [outputs, channels, k, l] to [outputs, h', w']."""
    reach = [dilation * (n - 1) + 1 for n in weight.shape[2:]]
    rows, columns = ((n - r) // stride + 1 for n, r in zip(x.shape[1:], reach, strict=True))
    out = np.zeros((len(weight), rows, columns))
    for o, i, j in np.ndindex(*out.shape):
        window = x[
            :,
            i * stride : i * stride + reach[0] : dilation,
            j * stride : j * stride + reach[1] : dilation,
        ]
        out[o, i, j] = (window * weight[o]).sum()
    return out


def same(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """TensorFlow's words: as few pixels as give ceil(size / stride) outputs, the odd one at the end."""
    wanted = math.ceil(size / stride)
    added = 0
    while (size + added - dilation * (kernel - 1) - 1) // stride + 1 < wanted:
        added += 1
    return added // 2, math.ceil(added / 2)


@pytest.mark.parametrize("size", [(7, 7), (8, 8), (7, 8), (1, 2), (13, 10)])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [(1, 1), (2, 2), (3, 3), (5, 4)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_same_padding(size: tuple[int, int], stride: int, kernel: tuple[int, int], dilation: int) -> None:
    layer = Conv2d(2, 3, kernel, stride, "same", dilation, bias=False, dtype=torch.float64)
    x = torch.randn(1, 2, *size, dtype=torch.float64)
    sides = [same(n, k, stride, dilation) for n, k in zip(size, kernel, strict=True)]
    padded = np.pad(x[0].numpy(), [(0, 0), *sides])
    found = layer(x)[0].detach().numpy()
    np.testing.assert_allclose(
        found, correlate(padded, layer.weight.detach().numpy(), stride, dilation), atol=1e-12
    )
    assert found.shape[1:] == tuple(math.ceil(n / stride) for n in size) == layer.output_size(size)


def test_same_padding_by_hand() -> None:
    layer = Conv2d(1, 1, 3, 2, "same", bias=False)
    layer.weight.data.copy_(torch.tensor([[1.0, 2, 4], [0, 0, 0], [0, 0, 0]]))
    odd = torch.tensor([[1.0, 10, 100]]).expand(3, 3)[None]  # padded by one on both sides
    assert layer(odd)[0].tolist() == [[0, 0], [1 * 2 + 10 * 4, 10 + 100 * 2]]
    even = torch.tensor([[1.0, 10, 100, 1000]]).expand(4, 4)[None]  # padded by one at the end alone
    assert layer(even)[0].tolist() == [[421, 10 * 0 + 100 + 1000 * 2]] * 2


@pytest.mark.parametrize("padding", [0, 2, (1, 2), "valid", "same"])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_it_is_torchs_layer_where_torch_has_one(padding: int | tuple[int, int] | str, mode: str) -> None:
    theirs = nn.Conv2d(4, 6, (3, 4), 1, padding, 2, 2, padding_mode=mode)
    ours = Conv2d(4, 6, (3, 4), 1, padding, 2, 2, padding_mode=mode)
    ours.load_state_dict(theirs.state_dict())
    for shape in ((2, 4, 11, 12), (4, 11, 12), (0, 4, 11, 12)):
        x = torch.randn(shape)
        assert torch.equal(ours(x), theirs(x))
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_weights_are_drawn_as_torch_draws_them() -> None:
    torch.manual_seed(3)
    theirs = nn.Conv2d(4, 6, 3)
    torch.manual_seed(3)
    ours = Conv2d(4, 6, 3, padding="same", stride=2)
    assert torch.equal(ours.weight, theirs.weight)
    torch.manual_seed(3)
    ours.reset_parameters()
    assert torch.equal(ours.weight, theirs.weight)


@pytest.mark.parametrize("stride", [1, 2])
def test_full_padding_sees_every_touch(stride: int) -> None:
    layer = Conv2d(2, 3, (2, 3), stride, "full", 2, bias=False, dtype=torch.float64)
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64)
    padded = np.pad(x[0].numpy(), [(0, 0), (2, 2), (4, 4)])
    expected = correlate(padded, layer.weight.detach().numpy(), stride, 2)
    np.testing.assert_allclose(layer(x)[0].detach().numpy(), expected, atol=1e-12)
    if stride == 1:
        assert layer.output_size((4, 5)) == (6, 9)


def test_full_padding_is_scipys_full_convolution() -> None:
    layer = Conv2d(1, 1, (1, 3), padding="full", bias=False, dtype=torch.float64)
    signal, kernel = torch.randn(5, dtype=torch.float64), layer.weight.detach().flatten()
    expected = np.convolve(signal.numpy(), kernel.flip(0).numpy())
    np.testing.assert_allclose(layer(signal.view(1, 1, 5)).detach().flatten().numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_four_sides(mode: str) -> None:
    layer = Conv2d(2, 3, 3, 2, ((0, 1), (2, 3)), bias=False, padding_mode=mode, dtype=torch.float64)
    x = torch.randn(1, 2, 6, 5, dtype=torch.float64)
    names = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    padded = np.pad(x[0].numpy(), [(0, 0), (0, 1), (2, 3)], names[mode])  # type: ignore[call-overload]
    expected = correlate(padded, layer.weight.detach().numpy(), 2, 1)
    np.testing.assert_allclose(layer(x)[0].detach().numpy(), expected, atol=1e-12)
    assert layer.output_size((6, 5)) == expected.shape[1:]


@given(
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.integers(1, 3),
    st.integers(1, 2),
    st.one_of(st.just("same"), st.just("full"), st.tuples(*[st.tuples(*[st.integers(0, 3)] * 2)] * 2)),
    st.booleans(),
)
def test_partial_padding_reweights_by_the_covered_area(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: int,
    dilation: int,
    padding: str | tuple[tuple[int, int], tuple[int, int]],
    biased: bool,
) -> None:
    layer = Conv2d(2, 3, kernel, stride, padding, dilation, 1, biased, "partial", dtype=torch.float64)
    sides = layer.sides(size)
    if any(
        n + before + after <= dilation * (k - 1)
        for n, k, (before, after) in zip(size, kernel, sides, strict=True)
    ):
        with pytest.raises(RequestError, match="smaller than the kernel"):
            layer.output_size(size)
        return
    x = torch.randn(2, 2, *size, dtype=torch.float64)
    weight = layer.weight.detach().numpy()
    bias = layer.bias.detach().numpy() if layer.bias is not None else np.zeros(3)
    ones = np.pad(np.ones((1, *size)), [(0, 0), *sides])
    covered = correlate(ones, np.ones((1, 1, *kernel)), stride, dilation)[0]
    for image, found in zip(x.numpy(), layer(x).detach().numpy(), strict=True):
        raw = correlate(np.pad(image, [(0, 0), *sides]), weight, stride, dilation)
        for o, i, j in np.ndindex(*found.shape):
            area = covered[i, j]
            expected = raw[o, i, j] * math.prod(kernel) / area if area else 0.0
            assert found[o, i, j] == pytest.approx(expected + bias[o], abs=1e-12)


def test_partial_padding_does_not_darken_the_borders_of_a_box_filter() -> None:
    layer = Conv2d(3, 4, 5, padding="same", padding_mode="partial", dtype=torch.float64)
    layer.weight.data[:] = layer.weight.data[..., :1, :1]
    y = layer(torch.ones(1, 3, 6, 7, dtype=torch.float64))
    assert torch.allclose(y, y[..., 3:4, 3:4].expand_as(y), atol=1e-12)


@pytest.mark.parametrize("algorithm", ["direct", "im2col", "fft", "winograd", "auto"])
def test_every_algorithm_and_its_gradients(algorithm: str) -> None:
    plain = Conv2d(3, 4, 3, padding=((0, 1), (2, 1)), padding_mode="partial")
    other = Conv2d(3, 4, 3, padding=((0, 1), (2, 1)), padding_mode="partial", algorithm=algorithm)
    other.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 9, 8, requires_grad=True)
    y, z = plain(x), other(x)
    assert (y - z).abs().max() <= 8e-6 * y.abs().max()
    for a, b in zip(
        torch.autograd.grad(y.sum(), (x, *plain.parameters())),
        torch.autograd.grad(z.sum(), (x, *other.parameters())),
        strict=True,
    ):
        assert (a - b).abs().max() <= 1e-4 * a.abs().max()
    assert f"algorithm={algorithm!r}" in repr(other) or algorithm == "direct"


@pytest.mark.parametrize("algorithm", ["direct", "direct:packed", "im2col", "fft", "winograd"])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "partial"])
def test_activation_is_a_relu_behind_it(algorithm: str, mode: str) -> None:
    layer = Conv2d(2, 3, 3, padding=1, padding_mode=mode, algorithm=algorithm, activation="relu")
    plain = Conv2d(2, 3, 3, padding=1, padding_mode=mode)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, 2, 7, 8)
    wanted = plain(x).relu()
    assert (wanted == 0).any()
    torch.testing.assert_close(layer(x), wanted, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), wanted, atol=1e-4, rtol=1e-4)
    layer(x).square().sum().backward()
    wanted.square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad, atol=1e-3, rtol=1e-3)


def test_prepared_weights_follow_the_weight() -> None:
    layer = Conv2d(2, 3, 3, padding="same", algorithm="winograd").eval()
    x = torch.randn(1, 2, 8, 8)

    def check(layer: Conv2d) -> None:
        expected = nn.functional.conv2d(x, layer.weight, layer.bias, padding=1)
        with torch.no_grad():
            for _ in range(2):
                torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)

    check(layer)
    with torch.no_grad():
        layer.weight.add_(1)
    check(layer)
    layer.weight = nn.Parameter(torch.randn_like(layer.weight))
    check(layer)
    layer.weight.data.mul_(2)  # behind autograd's back
    layer.eval()
    check(layer)
    layer.load_state_dict(nn.Conv2d(2, 3, 3).state_dict())
    check(layer)
    check(copy.deepcopy(layer))
    check(pickle.loads(pickle.dumps(layer)))
    check(layer.requires_grad_(False))


def test_prepared_weights_are_kept_between_calls() -> None:
    layer = Conv2d(2, 3, 3, 2, "same", algorithm="im2col").eval()
    with torch.no_grad():
        for size in (8, 9, 8, 9):
            layer(torch.randn(1, 2, size, size))
    assert len(layer._plans) == 2  # one a padding
    plans = [plan for *_, plan in layer._plans.values()]
    with torch.no_grad():
        layer(torch.randn(1, 2, 8, 8))
    assert [plan for *_, plan in layer._plans.values()] == plans
    layer(torch.randn(1, 2, 8, 8)).sum().backward()  # with gradients another path runs
    assert layer.weight.grad is not None
    assert not copy.deepcopy(layer)._plans


def test_parametrized_weights_are_followed() -> None:
    layer = Conv2d(2, 2, 3, algorithm="winograd", bias=False).eval()

    class Double(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    before = layer.weight.detach().clone()
    nn.utils.parametrize.register_parametrization(layer, "weight", Double())
    x = torch.randn(1, 2, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), nn.functional.conv2d(x, 2 * before), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1, 3), "in_channels=0 must be a positive whole number"),
        ((3, 4, 3, 1, 0, 1, 2), "in_channels=3 must be divisible by groups=2"),
        ((4, 3, 3, 1, 0, 1, 2), "out_channels=3 must be divisible by groups=2"),
        ((4, 4, 3, 1, 0, 1, 0), "groups=0 must be a positive whole number"),
        ((4, 4, 0), "kernel_size=0 must be a whole number, positive, or 2 of them"),
        ((4, 4, (3, 3, 3)), r"kernel_size=\(3, 3, 3\) must be"),
        ((4, 4, 3, 0), "stride=0 must be"),
        ((4, 4, 3, 1.5), "stride=1.5 must be"),
        ((4, 4, 3, True), "stride=True must be"),
        ((4, 4, 3, 1, -1), "padding=-1 must be a number that is not negative"),
        ((4, 4, 3, 1, (1, 2, 3)), r"padding=\(1, 2, 3\) must be"),
        ((4, 4, 3, 1, ((1, 2), (3, -4))), "must be a number that is not negative"),
        ((4, 4, 3, 1, ((1, 2), (3,))), "must be a number that is not negative"),
        ((4, 4, 3, 1, "sane"), "padding='sane' must be one of .*; did you mean 'same'"),
        ((4, 4, 3, 1, 0, 0), "dilation=0 must be"),
        ((4, 4, 3, 1, 0, 1, 1, True, "reflct"), "padding_mode='reflct' must be .* did you mean 'reflect'"),
    ],
)
def test_wrong_arguments(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Conv2d(*arguments)  # type: ignore[arg-type]


def test_wrong_algorithm_and_size() -> None:
    with pytest.raises(RequestError, match="activation='gelu' is unknown; give 'relu' or None"):
        Conv2d(1, 1, 3, activation="gelu")
    with pytest.raises(UnknownName, match="there is no algorithm 'winogrd'; did you mean 'winograd'"):
        Conv2d(1, 1, 3, algorithm="winogrd")
    with pytest.raises(RequestError, match=r"input_size=\(4, 2\) is \(4, 2\) when padded, smaller than"):
        Conv2d(1, 1, 3).output_size((4, 2))
    with pytest.raises(RequestError, match="input_size=0 must be"):
        Conv2d(1, 1, 3).output_size(0)


def test_what_it_prints() -> None:
    assert repr(Conv2d(1, 2, 3, 2, "same", padding_mode="partial", algorithm="winograd:F(2,3)")) == (
        "Conv2d(1, 2, kernel_size=(3, 3), stride=(2, 2), padding=same, padding_mode=partial, "
        "algorithm='winograd:F(2,3)')"
    )
    assert repr(Conv2d(1, 2, 3, activation="relu")).endswith("stride=(1, 1), activation='relu')")
    assert "padding=((0, 1), (2, 2))" in repr(Conv2d(1, 2, 3, padding=((0, 1), 2)))


def test_output_sizes() -> None:
    paddings = [0, 1, (0, 2), "valid", "same", "full", ((1, 0), (2, 1))]
    for padding, stride, dilation, kernel in itertools.product(paddings, (1, 2), (1, 2), (2, 3)):
        layer = Conv2d(1, 1, kernel, stride, padding, dilation)  # type: ignore[arg-type]
        for size in ((7, 8), (9, 6)):
            assert layer(torch.zeros(1, *size)).shape[1:] == layer.output_size(size)
