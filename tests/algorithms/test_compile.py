"""What traces or records sees one operator, with its shape and gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import convscope
from convscope.algorithms import ALGORITHMS, conv1d, conv2d, prepare
from convscope.algorithms.function import operator
from convscope.algorithms.plan import planned
from convscope.graph import record

NAMES = tuple(ALGORITHMS)


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(
        "tqdm.tqdm.monitor_interval", 0
    )  # torch's compiler shows progress by it: no thread of its own
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _compiled(function: Any, **options: Any) -> Any:
    return torch.compile(function, backend="aot_eager", fullgraph=True, **options)


@pytest.mark.parametrize("name", [*NAMES, "auto"])
def test_compiled_as_one_graph(name: str) -> None:
    x, weight, bias = (_draw(*s).requires_grad_() for s in ((2, 4, 9, 10), (6, 4, 3, 3), (6,)))

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return conv2d(x, weight, bias, padding="same", algorithm=name).relu()

    y, wanted = _compiled(run)(x, weight, bias), F.conv2d(x, weight, bias, padding="same").relu()
    assert torch.allclose(y, wanted, atol=1e-4)
    found = torch.autograd.grad(y.square().sum(), (x, weight, bias))
    for one, two in zip(found, torch.autograd.grad(wanted.square().sum(), (x, weight, bias)), strict=True):
        assert torch.allclose(one, two, rtol=1e-3, atol=1e-2)


def test_compiled_for_any_size() -> None:
    weight = _draw(6, 4, 3, 3)
    run = _compiled(lambda x: conv2d(x, weight, padding=1, algorithm="winograd"), dynamic=True)
    for shape in ((2, 4, 9, 10), (3, 4, 12, 11), (1, 4, 7, 30)):
        x = _draw(*shape)
        assert torch.allclose(run(x), F.conv2d(x, weight, padding=1), atol=1e-4)


@pytest.mark.parametrize(
    "geometry",
    [{"stride": 2, "padding": 2}, {"padding": ((0, 2), (1, 0))}, {"dilation": 2, "groups": 2}],
    ids=str,
)
def test_compiled_geometries(geometry: dict[str, Any]) -> None:
    x = _draw(2, 4, 13, 12).requires_grad_()
    weight = _draw(6, 4 // geometry.get("groups", 1), 5, 5).requires_grad_()

    def run(x: Tensor, weight: Tensor) -> Tensor:
        return conv2d(x, weight, **geometry, algorithm="winograd")

    found, wanted = _compiled(run)(x, weight), run(x, weight)
    assert torch.allclose(found, wanted, atol=1e-4)
    one = torch.autograd.grad(found.square().sum(), (x, weight))
    two = torch.autograd.grad(wanted.square().sum(), (x, weight))
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-1) for a, b in zip(one, two, strict=True))


def test_one_dimension_and_channels_last_compile() -> None:
    x, weight = _draw(2, 4, 20), _draw(6, 4, 3)
    run = _compiled(lambda x: conv1d(x, weight, padding=1, algorithm="fft"))
    assert torch.allclose(run(x), F.conv1d(x, weight, padding=1), atol=1e-5)
    image, filters = _draw(2, 4, 9, 9).to(memory_format=torch.channels_last), _draw(6, 4, 3, 3)
    y = _compiled(lambda x: conv2d(x, filters, algorithm="winograd"))(image)
    assert y.stride() == F.conv2d(image, filters).stride()


@pytest.mark.parametrize("dimensions", [1, 2])
def test_a_plan_compiles(dimensions: int) -> None:
    shape = (20,) if dimensions == 1 else (9, 10)
    weight = _draw(6, 4, *[3] * dimensions)
    plan = prepare(weight, padding=1, algorithm="winograd", activation="relu")
    run = _compiled(lambda x: plan(x) + 1)
    for seed in range(2):
        x = _draw(2, 4, *shape, seed=seed)
        wanted = (F.conv1d if dimensions == 1 else F.conv2d)(x, weight, padding=1).relu() + 1
        assert torch.allclose(run(x), wanted, atol=1e-4)
    leaf = _draw(2, 4, *shape).requires_grad_()
    run(leaf).sum().backward()
    assert leaf.grad is not None


def test_a_compiled_plan_that_is_gone_says_so() -> None:
    with pytest.raises(RuntimeError, match="the plan this graph was compiled with is gone"):
        planned(_draw(1, 1, 4, 4), _draw(1, 1, 3, 3), None, [1, 1], [0] * 4, [1, 1], 1, 1)


def test_the_operators_are_registered_right() -> None:
    x, weight, bias = (_draw(*s).requires_grad_() for s in ((2, 4, 7, 8), (6, 4, 3, 3), (6,)))
    for name, stride in (("winograd", 1), ("im2col", 2)):
        opcheck(operator, (x, weight, bias, [stride] * 2, [1, 1], [1, 1], 1, name, None))
    plan = prepare(weight.detach(), padding=1, algorithm="im2col")
    opcheck(planned, (x.detach(), weight.detach(), None, [1, 1], [1] * 4, [1, 1], 1, plan._number))


def test_shapes_without_data() -> None:
    for name in NAMES:
        x, weight = torch.empty(2, 4, 9, 9, device="meta"), torch.empty(6, 4, 3, 3, device="meta")
        assert conv2d(x, weight, algorithm=name).shape == (2, 6, 7, 7)
        with FakeTensorMode():
            x, weight = torch.empty(2, 4, 9, 9), torch.empty(6, 4, 3, 3)
            assert conv2d(x, weight, algorithm=name).shape == (2, 6, 7, 7)


class _Names(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_recorder_sees_one_operator() -> None:
    x, weight = _draw(1, 4, 9, 9), _draw(6, 4, 3, 3)
    with _Names() as names:
        y = conv2d(x, weight, algorithm="winograd")
    assert names.seen == ["convscope.convolution.default"]
    assert torch.allclose(y, F.conv2d(x, weight), atol=1e-4)
    with _Names() as names:
        conv2d(x, weight, algorithm="direct")
    assert names.seen == ["aten.convolution.default"]


def test_a_recorded_network_has_its_receptive_field() -> None:
    class Fast(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return conv2d(x, self.weight, self.bias, self.stride, self.padding, algorithm="winograd")

    net, spec = nn.Sequential(Fast(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3)), convscope.InputSpec((3, 20, 20))
    assert [op.name for op in record(net, spec=spec).ops] == ["convscope.convolution", "aten.convolution"]
    field = convscope.receptive_field(net, "1", input=spec)
    assert (field.size, field.padding) == ((5, 5), (1, 1))
