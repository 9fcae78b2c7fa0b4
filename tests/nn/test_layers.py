"""What every convolution and pooling layer of convscope.nn keeps, over all of them.

The formulas in the docstrings for parameters and multiply-accumulates stand here once more, beside the layers; they are
checked against the parameters there are and the multiply-accumulates that torch counts as it runs.
"""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn
from torch.hub import tqdm
from torch.utils.flop_counter import FlopCounterMode

import convscope.nn as layers


@dataclass(frozen=True)
class Case:
    """A layer, the shape of an input for it, and its formulas for one image."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    out: tuple[int, ...]  # channels and size by hand
    params: int = 0
    macs: int = 0
    random: bool = field(default=False)

    def layer(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        torch.manual_seed(0)
        return self.make().to(dtype)

    def input(self, batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
        generator = torch.Generator().manual_seed(batch)
        return torch.randn(batch, *self.shape, generator=generator, dtype=torch.float64).to(dtype)


CASES = {
    "Conv2d": Case(
        lambda: layers.Conv2d(4, 6, (3, 2), 2, "same", groups=2),
        (4, 7, 8),
        (6, 4, 4),
        params=6 * 2 * 3 * 2 + 6,
        macs=4 * 4 * 6 * 2 * 3 * 2,
    ),
    "Conv2d full": Case(
        lambda: layers.Conv2d(2, 3, 3, 1, "full", 2, bias=False),
        (2, 4, 5),
        (3, 8, 9),
        params=3 * 2 * 9,
        macs=8 * 9 * 3 * 2 * 9,
    ),
    "Conv2d partial": Case(
        lambda: layers.Conv2d(2, 3, 3, padding=((1, 0), (2, 1)), padding_mode="partial"),
        (2, 5, 4),
        (3, 4, 5),
        params=3 * 2 * 9 + 3,
        macs=4 * 5 * 3 * 2 * 9,
    ),
    "Conv2d reflect": Case(
        lambda: layers.Conv2d(2, 3, 3, padding="same", padding_mode="reflect"),
        (2, 4, 4),
        (3, 4, 4),
        params=3 * 2 * 9 + 3,
        macs=4 * 4 * 3 * 2 * 9,
    ),
    "PointwiseConv2d": Case(
        lambda: layers.PointwiseConv2d(4, 6, 2, groups=2),
        (4, 5, 4),
        (6, 3, 2),
        params=6 * 4 // 2 + 6,
        macs=3 * 2 * 6 * 4 // 2,
    ),
    "SeparableConv2d": Case(
        lambda: layers.SeparableConv2d(3, 4, 3, 2, 1, depth_multiplier=2),
        (3, 6, 5),
        (4, 3, 3),
        params=3 * 2 * 9 + 3 * 2 * 4 + 4,
        macs=3 * 3 * 3 * 2 * (9 + 4),
    ),
    "SeparableConv2d with activation": Case(
        lambda: layers.SeparableConv2d(3, 4, 3, padding="same", depthwise_bias=True, activation=nn.Tanh()),
        (3, 4, 4),
        (4, 4, 4),
        params=3 * 9 + 3 + 3 * 4 + 4,
        macs=4 * 4 * 3 * (9 + 4),
    ),
    "Bottleneck2d": Case(
        lambda: layers.Bottleneck2d(6, 8, 3, 4, 2, "same", groups=2, activation=nn.Tanh()),
        (6, 5, 4),
        (8, 3, 2),
        params=6 * 4 + 4 * 2 * 9 + 4 * 8 + 2 * 4 + 8,
        macs=5 * 4 * 6 * 4 + 3 * 2 * 4 * (2 * 9 + 8),
    ),
    "LocallyConnected2d": Case(
        lambda: layers.LocallyConnected2d(
            4, 6, (3, 2), (2, 1), ((1, 0), (0, 1)), (1, 2), 2, input_size=(5, 4)
        ),
        (4, 5, 4),
        (6, 2, 3),
        params=2 * 3 * 6 * 2 * 3 * 2 + 2 * 3 * 6,
        macs=2 * 3 * 6 * 2 * 3 * 2,
    ),
    "LocallyConnected2d shared bias": Case(
        lambda: layers.LocallyConnected2d(
            2, 3, 3, padding="same", padding_mode="circular", input_size=4, shared_bias=True
        ),
        (2, 4, 4),
        (3, 4, 4),
        params=4 * 4 * 3 * 2 * 9 + 3,
        macs=4 * 4 * 3 * 2 * 9,
    ),
    "LocallyConnected1d": Case(
        lambda: layers.LocallyConnected1d(4, 6, 3, 2, (1, 2), 2, 2, input_size=9),
        (4, 9),
        (6, 4),
        params=4 * 6 * 2 * 3 + 4 * 6,
        macs=4 * 6 * 2 * 3,
    ),
    "LocallyConnected1d no bias": Case(
        lambda: layers.LocallyConnected1d(2, 3, 3, padding="full", bias=False, input_size=5),
        (2, 5),
        (3, 7),
        params=7 * 3 * 2 * 3,
        macs=7 * 3 * 2 * 3,
    ),
    "MaxPool2d": Case(lambda: layers.MaxPool2d(3, 2, 1, ceil_mode=True), (3, 6, 5), (3, 4, 3)),
    "AvgPool2d": Case(lambda: layers.AvgPool2d((2, 3), (1, 2)), (3, 4, 6), (3, 3, 2)),
    "StridedConvPool2d": Case(
        lambda: layers.StridedConvPool2d(4, (2, 3), groups=2),
        (4, 5, 6),
        (4, 2, 2),
        params=4 * 2 * 6 + 4,
        macs=2 * 2 * 4 * 2 * 6,
    ),
    "BlurPool2d": Case(lambda: layers.BlurPool2d(4, (2, 1)), (3, 5, 4), (3, 3, 4), macs=3 * 3 * 4 * 4**2),
    "MaxBlurPool2d": Case(
        lambda: layers.MaxBlurPool2d(2, blur_size=3), (3, 6, 5), (3, 3, 2), macs=3 * 3 * 2 * 3**2
    ),
    "NoPool2d": Case(lambda: layers.NoPool2d(3, 2), (3, 4, 5), (3, 4, 5)),
    "GlobalAvgPool2d": Case(layers.GlobalAvgPool2d, (3, 4, 5), (3, 1, 1)),
    "GlobalMaxPool2d": Case(lambda: layers.GlobalMaxPool2d(keepdim=False), (3, 4, 5), (3,)),
    "FractionalMaxPool2d": Case(
        lambda: layers.FractionalMaxPool2d(0.6, overlapping=False, seed=5), (3, 7, 5), (3, 4, 3)
    ),
    "FractionalMaxPool2d random": Case(
        lambda: layers.FractionalMaxPool2d(output_size=(3, 4), sampling="random", seed=5),
        (3, 7, 6),
        (3, 3, 4),
    ),
}

everywhere = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def test_every_layer_is_here() -> None:
    kinds = {type(module) for case in CASES.values() for module in case.make().modules()}
    from convscope.nn import conv, local, pooling, separable

    for home in (conv, local, pooling, separable):
        public = {
            value
            for name, value in vars(home).items()
            if isinstance(value, type) and issubclass(value, nn.Module) and not name.startswith("_")
        }
        assert public <= kinds, public - kinds
        assert all(hasattr(layers, kind.__name__) for kind in public)


@everywhere
def test_shapes_parameters_and_macs_are_those_of_the_formulas(case: Case) -> None:
    layer, x = case.layer(), case.input(2)
    size = layer.output_size(case.shape[1:])  # type: ignore[operator]
    assert (case.shape[0], *size)[1:] == case.out[1:]
    with FlopCounterMode(display=False) as counter:
        y = layer(x)
    assert y.shape[1:] == case.out
    assert sum(p.numel() for p in layer.parameters()) == case.params
    assert counter.get_total_flops() == 2 * 2 * case.macs  # two a multiply-accumulate, two images


@everywhere
def test_batches(case: Case) -> None:
    layer, x = case.layer().eval(), case.input(3)
    y = layer(x)
    torch.testing.assert_close(layer(x[1]), y[1])
    torch.testing.assert_close(layer(x[:1]), y[:1])
    assert layer(x[:0]).shape == (0, *case.out)
    if x.dim() == 4:
        last = layer(x.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(last, y)
    torch.testing.assert_close(layer(x.flip(-1).flip(-1)), y)


@everywhere
def test_types(case: Case) -> None:
    expected = case.layer().eval()(case.input())
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 5e-2)):
        y = case.layer(dtype).eval()(case.input(dtype=dtype))
        assert y.dtype == dtype
        torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)


@everywhere
def test_gradients(case: Case) -> None:
    layer, x = case.layer().eval(), case.input().requires_grad_()
    names, parameters = zip(*layer.named_parameters(), strict=True) if case.params else ((), ())

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *parameters), fast_mode=True)
    if case.params:
        assert torch.autograd.gradgradcheck(run, (x, *parameters), fast_mode=True)
    assert torch.autograd.gradcheck(run, (x[:0].detach().requires_grad_(), *parameters), fast_mode=True)


@everywhere
def test_copies(case: Case) -> None:
    layer, x = case.layer(), case.input()
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    loaded = case.make().double()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded]
    y = layer(x)
    for copied in copies:
        assert torch.equal(copied(x), y)
        assert repr(copied) == repr(layer)
    assert torch.equal(copied(x), layer(x))  # and so on, where a layer draws


@everywhere
def test_reset_parameters(case: Case) -> None:
    layer, x = case.layer(), case.input()
    fresh = copy.deepcopy(layer)(x)
    layer(x)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(7)
    torch.manual_seed(0)
    layer.float()
    layer.reset_parameters()  # type: ignore[operator]
    torch.testing.assert_close(layer.double()(x), fresh)


COMPILED = {name: CASES[name] for name in CASES if "Pool" not in name or "Frac" in name or "Blur" in name}


@pytest.fixture
def _no_monitor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler shows progress by tqdm, which would leave a thread behind."""
    monkeypatch.setattr(tqdm, "monitor_interval", 0)


@pytest.mark.usefixtures("_no_monitor")
@pytest.mark.parametrize("case", COMPILED.values(), ids=COMPILED)
def test_one_graph(case: Case) -> None:
    """Traced whole, forward and backward, without generating code, which takes seconds a layer."""
    layer, x = case.layer(), case.input().requires_grad_()
    compiled = torch.compile(copy.deepcopy(layer), backend="aot_eager", fullgraph=True)
    y, z = layer(x), compiled(x)
    torch.testing.assert_close(z, y)
    inputs = [x, *layer.parameters()], [x, *compiled.parameters()]
    for a, b in zip(
        *(torch.autograd.grad(out.square().sum(), by) for out, by in zip((y, z), inputs, strict=True)),
        strict=True,
    ):
        torch.testing.assert_close(b, a)


def test_devices_and_types_are_taken() -> None:
    for name, case in CASES.items():
        if not case.params:
            continue
        with torch.device("meta"):
            layer = case.make()
        assert all(p.is_meta for p in layer.parameters()), name
        assert layer(case.input(dtype=torch.float32).to("meta")).shape[1:] == case.out
    assert layers.SeparableConv2d(2, 3, 3, device="meta", dtype=torch.float64).depthwise.weight.is_meta
    assert layers.Bottleneck2d(4, 8, 3, dtype=torch.float64).expand.weight.dtype == torch.float64
    assert layers.StridedConvPool2d(4, dtype=torch.bfloat16).weight.dtype == torch.bfloat16
    assert math.prod(layers.LocallyConnected2d(1, 1, 3, input_size=3, device="meta").weight.shape) == 9
