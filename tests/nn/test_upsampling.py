"""What all upsampling and text layers have in common, and the word that swaps them."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from convscope.errors import RequestError, UnknownName
from convscope.nn import (
    BedOfNails2d,
    BilinearUpsample2d,
    EmbeddingChannels,
    MaxUnpool2d,
    NearestUpsample2d,
    OneHot,
    PixelShuffleUpsample2d,
    ResizeConv2d,
    SwitchedMaxPool2d,
    TextConv1d,
    TransposedConv2d,
    upsample2d,
)
from convscope.nn.upsampling import UPSAMPLINGS


class Unpooled(nn.Module):
    """A pool and its unpooling, as one layer that can be tested like the others."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = SwitchedMaxPool2d((2, 3), padding=(0, 1))
        self.unpool = MaxUnpool2d(self.pool)

    def forward(self, x: Tensor) -> Tensor:
        return self.unpool(self.pool(x).square())

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size


@dataclass
class Case:
    """One layer, and what its docstring says about it, worked out for an input of 2 images or sentences."""

    make: Callable[..., nn.Module]
    shape: tuple[int, ...]
    macs: int = 0
    parameters: int = 0
    words: int = 0
    typed: bool = field(default=True)  # takes dtype=


IMAGE = (2, 4, 3, 5)
CASES = {
    "nearest": Case(lambda: NearestUpsample2d((2, 1.5)), IMAGE, typed=False),
    "bilinear": Case(lambda: BilinearUpsample2d((2, 3)), IMAGE, typed=False),
    "corners": Case(lambda: BilinearUpsample2d(size=(7, 8), align_corners=True), IMAGE, typed=False),
    "bed": Case(lambda: BedOfNails2d((2, 3), (1, 2)), IMAGE, typed=False),
    "unpool": Case(Unpooled, (2, 4, 4, 7), typed=False),
    "transposed": Case(
        lambda **o: TransposedConv2d(4, 6, (3, 2), 2, 1, groups=2, **o),
        IMAGE,
        macs=2 * 3 * 5 * 4 * 3 * 3 * 2,
        parameters=4 * 3 * 3 * 2 + 6,
    ),
    "bilinear start": Case(
        lambda **o: TransposedConv2d(4, 4, 4, 2, 1, bias=False, start="bilinear", **o),
        IMAGE,
        macs=2 * 3 * 5 * 4 * 4 * 16,
        parameters=4 * 4 * 16,
    ),
    "shuffle": Case(
        lambda **o: PixelShuffleUpsample2d(4, 3, (2, 3), **o),
        IMAGE,
        macs=2 * 3 * 5 * 4 * 3 * 2 * 3 * 9,
        parameters=(4 * 9 + 1) * 3 * 2 * 3,
    ),
    "resize": Case(
        lambda **o: ResizeConv2d(4, 3, (2, 3), (3, 5), **o),
        IMAGE,
        macs=2 * 6 * 15 * 4 * 3 * 15,
        parameters=4 * 3 * 15 + 3,
    ),
    "smooth": Case(
        lambda **o: ResizeConv2d(4, 3, 2, 3, "bilinear", align_corners=True, **o),
        IMAGE,
        macs=2 * 6 * 10 * 4 * 3 * 9,
        parameters=4 * 3 * 9 + 3,
    ),
    "one-hot": Case(lambda **o: OneHot(9, **o), (2, 6), words=9),
    "one-hot rows": Case(lambda **o: OneHot(9, "rows", padding_idx=0, **o), (2, 6), words=9),
    "embedding": Case(lambda **o: EmbeddingChannels(9, 3, tables=2, **o), (2, 6), parameters=54, words=9),
    "embedding rows": Case(lambda **o: EmbeddingChannels(9, 3, "rows", **o), (2, 6), parameters=27, words=9),
    "kim": Case(
        lambda **o: TextConv1d(3, 4, (2, 3), **o),
        (2, 3, 6),
        macs=2 * 4 * 3 * (2 * 5 + 3 * 4),
        parameters=4 * (3 * 5 + 2),
    ),
    "kim same": Case(
        lambda **o: TextConv1d(3, 4, (2, 3), padding="same", **o),
        (2, 3, 6),
        macs=2 * 4 * 3 * 6 * 5,
        parameters=4 * (3 * 5 + 2),
    ),
    "kim full": Case(
        lambda **o: TextConv1d(3, 4, (2, 3), padding="full", activation=None, **o),
        (2, 3, 6),
        macs=2 * 4 * 3 * (2 * 7 + 3 * 8),
        parameters=4 * (3 * 5 + 2),
    ),
}


def _input(case: Case, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randint(case.words, case.shape) if case.words else torch.randn(case.shape, dtype=dtype)


def _layer(case: Case, dtype: torch.dtype = torch.float32) -> nn.Module:
    return case.make(dtype=dtype) if case.typed else case.make()


everyone = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@everyone
def test_output_size_parameters_and_macs(case: Case) -> None:
    layer: Any = _layer(case)
    x = _input(case)
    with FlopCounterMode(display=False) as counter:
        y = layer(x)
    assert counter.get_total_flops() == 2 * case.macs
    assert sum(parameter.numel() for parameter in layer.parameters()) == case.parameters
    if len(case.shape) == 4:
        assert layer.output_size(case.shape[2:]) == y.shape[2:]
    else:
        assert layer.output_size(case.shape[-1]) == y.shape[1:]


@everyone
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_type_and_no_batch(case: Case, dtype: torch.dtype) -> None:
    layer, x = _layer(case, dtype), _input(case, dtype)
    y = layer(x)
    if case.typed or not case.words:
        assert y.dtype == dtype
    torch.testing.assert_close(layer(x[0]), y[0], rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-2)
    precise = copy.deepcopy(layer).double()(x if case.words else x.double()).double()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    torch.testing.assert_close(y.double(), precise, rtol=tolerance, atol=tolerance)


@everyone
def test_gradients(case: Case) -> None:
    layer = _layer(case, torch.float64)
    x = _input(case, torch.float64)
    names = [name for name, _ in layer.named_parameters()]
    inputs = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    if not case.words:
        inputs.append(x.requires_grad_())
    if inputs:

        def run(*values: Tensor) -> Tensor:
            image = x if case.words else values[-1]
            return torch.func.functional_call(layer, dict(zip(names, values, strict=False)), image)

        assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


@everyone
def test_copies_pickles_and_states(case: Case) -> None:
    layer, x = _layer(case), _input(case)
    y = layer(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), y)
        assert repr(twin) == repr(layer)
    torch.manual_seed(1)
    other = _layer(case)
    assert list(other.state_dict()) == list(layer.state_dict())
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), y)
    if case.parameters and "start='bilinear'" not in repr(layer):  # that start is not drawn
        before = [parameter.clone() for parameter in other.parameters()]
        other.reset_parameters()  # type: ignore[operator]
        after = list(other.parameters())
        assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True) if a.ndim > 1)


@everyone
def test_non_contiguous_and_empty(case: Case) -> None:
    layer, x = _layer(case), _input(case)
    y = layer(x)
    twisted = x.transpose(0, -1).contiguous().transpose(0, -1)
    assert not twisted.is_contiguous()
    torch.testing.assert_close(layer(twisted), y)
    assert layer(x[:0]).shape == (0, *y.shape[1:])


@pytest.mark.parametrize(
    "cls",
    [
        NearestUpsample2d,
        BilinearUpsample2d,
        BedOfNails2d,
        SwitchedMaxPool2d,
        MaxUnpool2d,
        TransposedConv2d,
        PixelShuffleUpsample2d,
        ResizeConv2d,
        OneHot,
        EmbeddingChannels,
        TextConv1d,
    ],
)
def test_docstrings_say_what_it_costs(cls: type[nn.Module]) -> None:
    text = cls.__doc__ or ""
    assert re.search(r"(?m)^    - Parameters: ", text)
    assert re.search(r"(?m)^    - MACs: ", text)
    assert ">>>" in text


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_they_compile_in_one_graph() -> None:
    torch._dynamo.reset()
    try:
        for case in CASES.values():
            layer, x = _layer(case), _input(case)
            run = torch.compile(layer, backend="eager", fullgraph=True)
            torch.testing.assert_close(run(x), layer(x))
    finally:
        torch._dynamo.reset()


# ---------------------------------------------------------------- one word swaps them


@pytest.mark.parametrize("scale", [1, 2, 3, (2, 3)])
@pytest.mark.parametrize("kind", UPSAMPLINGS)
def test_one_word_swaps_them(kind: str, scale: int | tuple[int, int]) -> None:
    pool = SwitchedMaxPool2d(scale)
    layer: Any = upsample2d(kind, 4, scale_factor=scale, pool=pool)
    x = torch.randn(2, 4, 6, 6)
    y = layer(pool(x))
    assert y.shape == x.shape
    if kind != "max_unpool":
        assert layer.output_size((6 // pool.stride[0], 6 // pool.stride[1])) == (6, 6)


def test_which_layer_a_word_makes() -> None:
    pool = SwitchedMaxPool2d(2)
    made = [type(upsample2d(kind, 4, pool=pool)) for kind in UPSAMPLINGS]
    assert made == [
        NearestUpsample2d,
        BilinearUpsample2d,
        BedOfNails2d,
        MaxUnpool2d,
        TransposedConv2d,
        PixelShuffleUpsample2d,
        ResizeConv2d,
    ]


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 5])
def test_the_transposed_default_has_no_checkerboard(scale: int) -> None:
    layer: Any = upsample2d("transposed", 2, 3, scale)
    assert layer.checkerboard().even
    smooth = upsample2d("transposed", 2, scale_factor=scale, start="bilinear")
    x = torch.randn(1, 2, 6, 6)
    inside = (..., slice(scale, -scale), slice(scale, -scale))
    torch.testing.assert_close(smooth(x)[inside], BilinearUpsample2d(scale)(x)[inside])


def test_options_reach_the_layer() -> None:
    layer: Any = upsample2d("transposed", 4, 2, 3, kernel_size=4, bias=False)
    assert (layer.kernel_size, layer.bias, layer(torch.zeros(1, 4, 5, 5)).shape) == (
        (4, 4),
        None,
        (1, 2, 15, 15),
    )
    layer = upsample2d("resize_conv", 4, 2, kernel_size=5, mode="bilinear")
    assert (layer.conv.kernel_size, layer.mode) == ((5, 5), "bilinear")
    layer = upsample2d("bilinear", 4, align_corners=True)
    assert layer.align_corners


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: upsample2d("nerest", 4),
            UnknownName,
            "there is no upsampling 'nerest'; did you mean 'nearest'?",
        ),
        (
            lambda: upsample2d("nearest", 4, 2),
            RequestError,
            "upsample2d('nearest') keeps the number of channels",
        ),
        (lambda: upsample2d("max_unpool", 4), RequestError, "needs pool=, the SwitchedMaxPool2d"),
        (
            lambda: upsample2d("max_unpool", 4, pool=SwitchedMaxPool2d(3)),
            RequestError,
            "scale_factor=(2, 2) must be the stride of the pool, (3, 3)",
        ),
        (lambda: upsample2d("bilinear", 4, scale_factor=1.5), RequestError, "scale_factor=1.5"),  # type: ignore[arg-type]
        (lambda: upsample2d("transposed", 0), RequestError, "in_channels=0 must be"),
        (
            lambda: upsample2d("transposed", 1, kernel_size=1),
            RequestError,
            "must be at least scale_factor=(2, 2)",
        ),
    ],
)
def test_wrong_words(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        make()
    assert message in str(caught.value)
