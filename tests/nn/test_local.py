"""Locally connected layers against the definition, against convolutions, and block against whole."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from convscope.errors import BadInput, RequestError
from convscope.nn import Conv2d, LocallyConnected1d, LocallyConnected2d, local

PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))


def by_definition(layer: LocallyConnected2d, x: Tensor) -> Tensor:
    """Position by position, group by group, from the shape of the weight that the docstring tells."""
    (top, bottom), (left, right) = layer.sides
    padded = functional.pad(x, (left, right, top, bottom))
    height, width, groups, _, tall, wide, channels = layer.weight.shape
    out = x.new_zeros(len(x), layer.out_channels, height, width)
    for i, j, g in itertools.product(range(height), range(width), range(groups)):
        rows = [i * layer.stride[0] + at * layer.dilation[0] for at in range(tall)]
        columns = [j * layer.stride[1] + at * layer.dilation[1] for at in range(wide)]
        patch = padded[:, g * channels : (g + 1) * channels][:, :, rows][..., columns]
        outputs = layer.out_channels // groups
        y = torch.einsum("bckl,oklc->bo", patch, layer.weight[i, j, g])
        out[:, g * outputs : (g + 1) * outputs, i, j] = y
    if layer.bias is not None:
        out = out + (layer.bias[:, None, None] if layer.shared_bias else layer.bias)
    return out


@given(
    st.integers(0, 5),
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    PAIRS,
    PAIRS,
    PAIRS,
    st.tuples(*[st.tuples(*[st.integers(0, 2)] * 2)] * 2),
    st.integers(1, 2),
    st.sampled_from([2**21, 2048, 200, 1]),
    st.booleans(),
    st.booleans(),
)
def test_it_is_the_definition_in_blocks_of_any_size(
    batch: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]],
    groups: int,
    block: int,
    weight_first: bool,
    shared: bool,
) -> None:
    arguments: Any = (2, 4, kernel, stride, padding, dilation, groups)
    padded = [n + before + after for n, (before, after) in zip(size, padding, strict=True)]
    if any(n <= d * (k - 1) for n, d, k in zip(padded, dilation, kernel, strict=True)):
        with pytest.raises(RequestError, match="smaller than the kernel"):
            LocallyConnected2d(*arguments, input_size=size)
        return
    layer = LocallyConnected2d(*arguments, input_size=size, shared_bias=shared, dtype=torch.float64)
    x = torch.randn(batch, 2, *size, dtype=torch.float64, requires_grad=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "BLOCK", block)
        patch.setattr(local, "_weight_first", lambda *_: weight_first)
        y, expected = layer(x), by_definition(layer, x)
        torch.testing.assert_close(y, expected)
        gradient = torch.randn_like(y)
        by = (x, *layer.parameters())
        for a, b in zip(*(torch.autograd.grad(out, by, gradient) for out in (y, expected)), strict=True):
            torch.testing.assert_close(a, b)


def test_at_once_is_the_same_as_in_blocks() -> None:
    """What runs on other devices."""
    x, weight, bias = torch.randn(3, 9, 8, 4), torch.randn(4, 3, 2, 5, 3, 2, 2), torch.randn(10, 4, 3)
    for offset in (None, bias):
        y = local._at_once(x, weight, offset, (2, 3), (1, 1))
        assert y.is_contiguous()
        torch.testing.assert_close(y, local.locally_connected(x, weight, offset, (2, 3), (1, 1)))


CONVS = [
    nn.Conv2d(3, 4, 3, padding=1),
    nn.Conv2d(4, 6, (3, 2), (2, 1), (0, 2), (1, 2), 2, bias=False),
    nn.Conv2d(3, 4, 3, padding="same", padding_mode="reflect"),
    Conv2d(3, 4, 3, 2, "same", padding_mode="replicate"),
    Conv2d(3, 4, 3, 1, ((0, 2), (2, 1)), padding_mode="circular"),
    Conv2d(3, 4, (2, 3), 2, "full", padding_mode="partial"),
    Conv2d(4, 4, 3, padding="same", groups=4),
]


@pytest.mark.parametrize("conv", CONVS, ids=str)
def test_from_conv_is_exact(conv: nn.Conv2d) -> None:
    conv = conv.double().eval().requires_grad_(False)
    x = torch.randn(2, conv.in_channels, 7, 6, dtype=torch.float64)
    for shared in (True, False):
        layer = LocallyConnected2d.from_conv(conv, (7, 6), shared_bias=shared)
        torch.testing.assert_close(layer(x), conv(x), rtol=1e-12, atol=1e-12)
        assert not layer.training
        assert not any(p.requires_grad for p in layer.parameters())
        assert layer.weight.data_ptr() != conv.weight.data_ptr()
    conv.train().requires_grad_()


@pytest.mark.parametrize("padding", [2, "same"])
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_from_conv_1d_is_exact(padding: int | str, mode: str) -> None:
    conv = nn.Conv1d(4, 6, 3, 1, padding, 2, 2, padding_mode=mode, dtype=torch.float64)
    x = torch.randn(2, 4, 9, dtype=torch.float64)
    layer = LocallyConnected1d.from_conv(conv, 9)
    torch.testing.assert_close(layer(x), conv(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer(x[0]), conv(x[0]), rtol=1e-12, atol=1e-12)
    assert layer.bias is not None
    assert layer.bias.shape == (6,)


def test_one_position_has_its_own_kernel() -> None:
    layer = LocallyConnected2d.from_conv(nn.Conv2d(1, 1, 3, padding=1, bias=False), 5)
    x = torch.randn(1, 1, 5, 5)
    before = layer(x)
    layer.weight.data[2, 3].zero_()
    change = layer(x) - before
    assert change.flatten().nonzero().flatten().tolist() == [2 * 5 + 3]


def test_the_unfolded_input_never_exists() -> None:
    """Memory: no tensor that forward or backward makes is larger than the weight or the padded input, or a block."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(tensor, Tensor):
                    self.numbers = max(self.numbers, tensor.untyped_storage().nbytes() // 4)
            return out

    layer, batch = LocallyConnected2d(8, 2, 5, padding="same", input_size=16), 128
    x = torch.randn(batch, 8, 16, 16, requires_grad=True)
    unfolded = batch * 8 * 25 * 16 * 16
    allowed = max(layer.weight.numel(), batch * 8 * 20 * 20, local.BLOCK // 4)
    assert allowed < unfolded / 5
    with Largest() as largest:
        last = functional.pad(x.detach().permute(0, 2, 3, 1), (0, 0, 2, 2, 2, 2)).contiguous()
        y = local._in_blocks._init_fn(last, layer.weight.detach(), None, (1, 1), (1, 1))
        local._gradients._init_fn(last, layer.weight.detach(), y, (1, 1), (1, 1), (True, True))
    assert batch * 2 * 16 * 16 <= largest.numbers <= allowed


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch calls it itself
def test_transforms_of_functions() -> None:
    layer = LocallyConnected2d(2, 3, 2, input_size=(3, 4), groups=1, dtype=torch.float64)
    x = torch.randn(4, 2, 3, 4, dtype=torch.float64)
    parameters = dict(layer.named_parameters())

    def run(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(layer, parameters, (x,))

    each = torch.func.vmap(torch.func.grad(lambda p, x: run(p, x).sin().sum()), (None, 0))(parameters, x)
    total = torch.func.grad(lambda p: run(p, x).sin().sum())(parameters)
    for name, gradient in total.items():
        torch.testing.assert_close(each[name].sum(0), gradient)
    forward = torch.func.jacfwd(run, 1)(parameters, x[:1])
    torch.testing.assert_close(forward, torch.func.jacrev(run, 1)(parameters, x[:1]))
    inputs = (x[:1].requires_grad_(), *layer.parameters())
    assert torch.autograd.gradcheck(
        lambda x, w, b: run({"weight": w, "bias": b}, x),
        inputs,
        check_forward_ad=True,
        check_batched_grad=True,
    )


def test_autocast() -> None:
    layer = LocallyConnected2d(2, 3, 3, input_size=5)
    x = torch.randn(2, 2, 5, 5)
    with torch.autocast("cpu"):
        y = layer(x)
        assert y.dtype == torch.bfloat16 == layer(x.bfloat16()).dtype
        assert layer.double()(x.double()).dtype == torch.float64
    torch.testing.assert_close(y.double(), layer(x.double()), rtol=3e-2, atol=3e-2)


def test_initial_weights_spread_as_a_convolutions() -> None:
    layer = LocallyConnected2d(8, 8, 3, input_size=12, groups=2)
    bound = (4 * 9) ** -0.5
    assert layer.bias is not None
    for parameter in (layer.weight, layer.bias):
        assert bound * 0.97 < parameter.abs().max() <= bound
        assert parameter.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LocallyConnected2d(3, 4, 3, input_size=2), "input_size=.* smaller than the kernel"),
        (lambda: LocallyConnected2d(3, 4, 3, input_size=(8, 8, 8)), "input_size=.* must be a whole number"),
        (lambda: LocallyConnected2d(3, 4, 3, input_size=8, padding="sme"), "padding='sme' .* did you mean"),
        (lambda: LocallyConnected2d(3, 4, 3, input_size=8, groups=3), "out_channels=4 must be divisible"),
        (lambda: LocallyConnected2d(3, 4, 3, input_size=8, padding_mode="partial"), "padding_mode='partial'"),
        (lambda: LocallyConnected1d(3, 4, (3, 3), input_size=8), r"kernel_size=\(3, 3\) must be"),
        (lambda: LocallyConnected1d(3, 4, 3, padding=(1, 2, 3), input_size=8), "padding="),
        (lambda: LocallyConnected2d(3, 4, 3, input_size=8).output_size(9), r"\(9, 9\) is not the \(8, 8\)"),
        (
            lambda: LocallyConnected2d.from_conv(nn.Conv1d(1, 1, 1), 8),
            "conv=Conv1d must be a torch.nn.Conv2d",
        ),
    ],
)
def test_wrong_arguments(call: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        call()


@pytest.mark.parametrize("shape", [(2, 3, 8, 9), (2, 4, 8, 8), (8, 8), (1, 2, 3, 8, 8)])
def test_wrong_inputs(shape: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match=r"does not fit a layer for 3 channels of size \(8, 8\)"):
        LocallyConnected2d(3, 4, 3, input_size=8)(torch.zeros(shape))


def test_what_they_print() -> None:
    assert repr(LocallyConnected2d(2, 4, 3, input_size=8)) == (
        "LocallyConnected2d(2, 4, kernel_size=(3, 3), stride=(1, 1), input_size=(8, 8))"
    )
    assert repr(
        LocallyConnected1d(2, 4, 3, 2, (1, 2), 2, 2, padding_mode="reflect", input_size=8, shared_bias=True)
    ) == (
        "LocallyConnected1d(2, 4, kernel_size=(3,), stride=(2,), padding=((1, 2),), dilation=(2,), groups=2, "
        "padding_mode=reflect, input_size=(8,), shared_bias=True)"
    )
