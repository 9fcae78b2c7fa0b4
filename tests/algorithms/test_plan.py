"""Plans: prepared once, right after every change, for any number of callers."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convscope.algorithms import ALGORITHMS, prepare
from convscope.errors import RequestError, UnknownName

NAMES = tuple(ALGORITHMS)


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _close(found: Tensor, wanted: Tensor) -> bool:
    return found.shape == wanted.shape and torch.allclose(found, wanted, atol=2e-4)


@pytest.mark.parametrize("name", [*NAMES, "auto"])
@pytest.mark.parametrize("shape", [(2, 4, 9, 10), (4, 9, 10), (0, 4, 9, 10)])
def test_a_plan_convolves(name: str, shape: tuple[int, ...]) -> None:
    x, weight, bias = _draw(*shape), _draw(6, 4, 3, 3), _draw(6)
    for activation in (None, "relu"):
        plan = prepare(weight, bias, padding=1, algorithm=name, activation=activation)
        wanted = F.conv2d(x, weight, bias, padding=1)
        assert _close(plan(x), wanted.relu() if activation else wanted)


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_of_one_dimension(name: str) -> None:
    x, weight = _draw(2, 4, 30), _draw(6, 2, 5)
    plan = prepare(weight, stride=1, padding=(2,), dilation=2, groups=2, algorithm=name)
    assert _close(plan(x), F.conv1d(x, weight, None, 1, 2, 2, 2))
    assert _close(plan(x[0]), F.conv1d(x[0], weight, None, 1, 2, 2, 2))
    assert _close(plan(x[:0]), F.conv1d(x[:0], weight, None, 1, 2, 2, 2))


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_prepares_once_for_each_shape_and_layout(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convscope.algorithms.plan.KEPT", 3)
    weight = _draw(6, 4, 3, 3)
    plan = prepare(weight, algorithm=name)
    x = _draw(2, 4, 9, 10)
    plan(x), plan(x.clone())
    assert len(plan._kernels) == 1
    assert plan.bytes >= 4 * weight.numel()
    kernel = next(iter(plan._kernels.values()))
    plan(x)
    assert next(iter(plan._kernels.values())) is kernel
    assert _close(plan(x.to(memory_format=torch.channels_last)), F.conv2d(x, weight))
    plan(x[:1])
    assert len(plan._kernels) == 3
    assert kernel in plan._kernels.values()
    plan(x[:, :, 1:])
    assert len(plan._kernels) == 3
    assert kernel not in plan._kernels.values()  # the oldest went
    plan.forget()
    assert plan.bytes == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_weight_is_noticed(name: str) -> None:
    conv = nn.Conv2d(4, 6, 3)
    plan, x = prepare(conv.weight, conv.bias, algorithm=name), _draw(2, 4, 9, 9)
    with torch.no_grad():
        plan(x)
        conv.weight.mul_(2)
        assert _close(plan(x), conv(x))
        assert len(plan._kernels) == 1
        conv.bias.add_(1)  # type: ignore[union-attr]
        assert _close(plan(x), conv(x))
        conv.weight.data = _draw(6, 4, 3, 3, seed=3)
        assert _close(plan(x), conv(x))
        conv.weight[0, 0, 0, 0] = 9.0
        assert _close(plan(x), conv(x))
        conv.double()
        assert torch.allclose(plan(x.double()), conv(x.double()))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_flow_where_they_are_wanted(name: str) -> None:
    weight, bias = _draw(6, 4, 3, 3).requires_grad_(), _draw(6)
    plan = prepare(weight, bias, padding=1, algorithm=name, activation="relu")
    x = _draw(2, 4, 9, 9).requires_grad_()
    wanted = torch.autograd.grad(F.conv2d(x, weight, bias, padding=1).relu().sum(), (x, weight))
    for one, two in zip(torch.autograd.grad(plan(x).sum(), (x, weight)), wanted, strict=True):
        assert torch.allclose(one, two, atol=1e-3)
    with torch.no_grad():
        assert not plan(x).requires_grad


def test_results_are_not_shared() -> None:
    plan = prepare(_draw(6, 4, 3, 3), algorithm="winograd")
    one = plan(_draw(2, 4, 9, 9))
    kept = one.clone()
    plan(_draw(2, 4, 9, 9, seed=1))
    assert torch.equal(one, kept)


def test_inference_tensors_serve() -> None:
    with torch.inference_mode():
        weight, x = _draw(6, 4, 3, 3), _draw(2, 4, 9, 9)
        plan = prepare(weight, algorithm="winograd")
        assert _close(plan(x), F.conv2d(x, weight))
    assert _close(plan(_draw(2, 4, 9, 9)), F.conv2d(x, weight))


@pytest.mark.parametrize("name", NAMES)
def test_any_number_of_threads_may_call(name: str) -> None:
    weight = _draw(8, 8, 3, 3)
    plan = prepare(weight, padding=1, algorithm=name)
    inputs = [_draw(1 + i % 3, 8, 12, 12, seed=i) for i in range(12)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(plan, inputs * 3))
    for x, y in zip(inputs * 3, found, strict=True):
        assert _close(y, F.conv2d(x, weight, padding=1))
    assert len(plan._kernels) == 3


def test_a_plan_is_copied_and_stored_without_what_it_prepared() -> None:
    plan, x = prepare(_draw(6, 4, 3, 3), algorithm="winograd"), _draw(1, 4, 9, 9)
    plan(x)
    for other in (copy.deepcopy(plan), pickle.loads(pickle.dumps(plan))):
        assert other.bytes == 0
        assert torch.equal(other(x), plan(x))
        assert other._number != plan._number


def test_a_plan_goes_when_nobody_holds_it() -> None:
    plan = prepare(_draw(6, 4, 3, 3), algorithm="winograd")
    plan(_draw(1, 4, 9, 9))
    gone = weakref.ref(plan)
    del plan
    gc.collect()
    assert gone() is None


def test_other_types_are_refused_and_autocast_is_followed() -> None:
    plan, x = prepare(_draw(6, 4, 3, 3), algorithm="winograd"), _draw(1, 4, 9, 9)
    with pytest.raises(RuntimeError, match="expected scalar type Double but found Float"):
        plan(x.double())
    with pytest.raises(RuntimeError, match=r"Given groups=1, weight of size \[6, 4, 3, 3\], expected input"):
        plan(_draw(1, 3, 9, 9))
    with pytest.raises(RuntimeError, match="Expected 3D"):
        plan(_draw(9, 9))
    with torch.autocast("cpu", torch.bfloat16):
        assert plan(x).dtype == torch.bfloat16


def test_wrong_requests_are_refused_at_once() -> None:
    weight = _draw(6, 4, 3, 3)
    with pytest.raises(RequestError, match="activation='gelu' is unknown; give 'relu' or None"):
        prepare(weight, activation="gelu")
    with pytest.raises(RequestError, match=r"weight has shape \[6, 4\]; a convolution's has 4 axes"):
        prepare(weight[..., 0, 0])
    with pytest.raises(UnknownName, match="there is no algorithm 'fourier'"):
        prepare(weight, algorithm="fourier")
    with pytest.raises(RequestError, match="expects an error of"):
        prepare(weight, algorithm="winograd:F(6,3)", max_error=1e-7)(_draw(1, 4, 9, 9))


def test_it_prints_what_it_holds() -> None:
    plan = prepare(_draw(6, 4, 3, 3), algorithm="im2col")
    plan(_draw(1, 4, 9, 9))
    assert repr(plan) == "Plan(6 x 4 x 3 x 3, algorithm='im2col', prepared=1, bytes=864)"
