"""Peak memory against tensors counted by hand and against the lifetimes of the recorded pass."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from convscope.errors import ModelError, RequestError
from convscope.graph import record
from convscope.measures import memory
from convscope.measures.activations import input_bytes, live_bytes
from convscope.measures.memory import PeakMemory, peak_memory

KB = torch.zeros(1, 250)  # 1000 bytes


class Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Any:
        return self.function(*args)


def _chain(x: Tensor) -> Tensor:
    a = x.exp()  # 1
    b = torch.cat([a, a, a])  # 1 + 3
    del a  # 3
    return b.exp()  # 3 + 3


def _dropped(x: Tensor) -> Tensor:
    a = torch.cat([x] * 8)  # 8
    b = a.sum()
    del a
    return b.exp() + x.exp()


@pytest.mark.parametrize(
    ("function", "kilobytes"),
    [
        (lambda x: x.exp(), 1),
        (lambda x: x.exp_(), 0),
        (lambda x: x.view(50, 5).t(), 0),
        (lambda x: x.exp().exp().exp(), 2),
        (lambda x: [x.exp(), x.exp(), x.exp()], 3),
        (lambda x: {"a": x.exp().exp_()}, 1),
        (_chain, 6),
    ],
)
def test_a_chain_of_known_tensors(function: Callable[..., Any], kilobytes: int) -> None:
    found = peak_memory(Function(function), example=KB)
    assert found.inference == 1000 * kilobytes
    assert (found.weights, found.input, found.total) == (0, 1000, 1000 * (1 + kilobytes))
    assert found.training is found.training_total is None


def test_what_goes_before_the_end_still_counts() -> None:
    assert 8000 <= peak_memory(Function(_dropped), example=KB).inference < 8100


def test_weights_count_once_and_batch_and_type_scale() -> None:
    layer = nn.Conv2d(4, 4, 1, bias=False)
    net = nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU())
    one = peak_memory(net, input="4x8x8")
    assert one.weights == 64
    assert one.inference == 2 * 4 * 64 * 4
    many = peak_memory(net, input="4x8x8", batch=5)
    assert (many.inference, many.input, many.weights) == (5 * one.inference, 5 * one.input, 64)
    assert many.shapes == ((5, 4, 8, 8),)
    wide = peak_memory(net, input="4x8x8", dtype=torch.float64)
    assert (wide.inference, wide.input, wide.weights) == (2 * one.inference, 2 * one.input, 128)


class Branches(nn.Module):
    """Residuals, a concatenation, an early exit that keeps a tensor alive."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.pool = nn.ReLU(), nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        early = self.act(x)
        y = torch.cat([early, self.act(x + early)], 1)
        for _ in range(3):
            y = self.act(y) + y
        return early, self.pool(y)


@pytest.mark.parametrize("module", [Branches(), nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.ReLU())])
def test_measured_is_what_the_recorded_lifetimes_say(module: nn.Module) -> None:
    example = torch.rand(2, 3, 16, 16)
    graph = record(module, example=example)
    found = peak_memory(module, example=example)
    assert found.inference + found.input == max(input_bytes(graph), *live_bytes(graph))


# ---------------------------------------------------------------- training


def test_a_training_step_by_hand() -> None:
    layer = nn.Linear(25, 250, bias=False)  # 25 kB of weights
    found = peak_memory(layer, example=torch.zeros(1, 25), training=True)
    assert found.inference == 1000
    assert found.training == 1000 + 1000 + 25_000  # output, gradient of the output, gradient of the weights
    assert found.training_total == 25_000 + 100 + found.training


def test_activations_are_kept_for_the_backward_pass() -> None:
    deep = nn.Sequential(nn.Linear(1, 250, bias=False), *(nn.Sigmoid() for _ in range(6)))
    found = peak_memory(deep, example=torch.zeros(1, 1), training=True)
    assert found.inference == 2000
    # Seven outputs of a layer at the end of the forward pass; the first is not kept: sigmoid saves its result.
    assert 7000 <= found.training <= 9000 + 1000


def test_only_what_requires_a_gradient_is_trained() -> None:
    net = nn.Sequential(nn.Linear(50, 50, bias=False), nn.Linear(50, 50, bias=False))
    whole = peak_memory(net, example=torch.zeros(1, 50), training=True).training
    net[0].weight.requires_grad_(False)
    part = peak_memory(net, example=torch.zeros(1, 50), training=True).training
    assert whole is not None
    assert part is not None
    assert whole - part >= 10_000  # the gradient of the first
    assert not net[0].weight.requires_grad
    assert net[1].weight.grad is None
    net.requires_grad_(False)
    with pytest.raises(
        RequestError, match="no parameter of Sequential requires a gradient; set requires_grad_"
    ):
        peak_memory(net, example=torch.zeros(1, 50), training=True)


def test_training_runs_in_train_mode_and_leaves_no_trace() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()).eval()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    three = torch.rand(3, 4)
    rng = torch.get_rng_state()
    assert peak_memory(net, example=three, training=True).training
    assert torch.equal(torch.get_rng_state(), rng)
    assert not any(part.training for part in net.modules())
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    with pytest.raises(
        ModelError, match=r"failed on an input of shape \[1, 4\] .*more than 1 value per channel"
    ):
        peak_memory(net, example=three[:1], training=True)


def test_an_output_without_gradient_is_refused() -> None:
    class Index(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).argmax(1)

    with pytest.raises(
        RequestError, match="no output of Index depends on a parameter that requires a gradient"
    ):
        peak_memory(Index(4, 4), example=torch.rand(1, 4), training=True)


# ---------------------------------------------------------------- devices, refusals, output


def test_cuda_takes_the_allocators_own_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    device = torch.device("cuda", 1)
    monkeypatch.setattr(memory.timing, "synchronize", lambda at: seen.append(f"wait {at}"))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda at: seen.append(f"held {at}") or 100)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda at: seen.append(f"reset {at}"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda at: seen.append(f"most {at}") or 350)
    assert memory._peak(lambda: seen.append("run"), device) == 250
    at = "cuda:1"
    assert seen == ["run", f"wait {at}", f"held {at}", f"reset {at}", "run", f"wait {at}", f"most {at}"]


def test_a_device_without_records_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def ready(*args: Any, **known: Any) -> Any:
        return dataclasses.replace(original(*args, **known), device=torch.device("mps"))

    original = memory.ready
    monkeypatch.setattr(memory, "ready", ready)
    with pytest.raises(
        RequestError, match="device='mps' keeps no record of its memory; give 'cpu' or 'cuda'"
    ):
        peak_memory(nn.ReLU(), example=KB)


def test_inside_another_profiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C._autograd, "_profiler_enabled", lambda: True)
    with pytest.raises(RequestError, match=r"a profiler of its own; call it outside torch\.profiler"):
        peak_memory(nn.ReLU(), example=KB)


@pytest.mark.parametrize("level", [None, "3"])
def test_the_environment_stays(level: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KINETO_LOG_LEVEL", raising=False)
    if level is not None:
        monkeypatch.setenv("KINETO_LOG_LEVEL", level)
    peak_memory(nn.ReLU(), example=KB)
    assert os.environ.get("KINETO_LOG_LEVEL") == level


def test_prints_and_serializes() -> None:
    found = PeakMemory("<net>\x1b", ((1, 3, 8, 8),), "cpu", 2**20, 2**19, 2**18, 2**22)
    assert json.loads(json.dumps(found.to_dict())) == {
        "model": "<net>\x1b", "inputs": [[1, 3, 8, 8]], "device": "cpu", "weights": 2**20, "input": 2**19,
        "inference": 2**18, "training": 2**22, "total": 7 * 2**18, "training_total": 2**22 + 6 * 2**18,
    }  # fmt: skip
    text = io.StringIO()
    Console(file=text, width=80).print(found)
    assert "1x3x8x8: peak memory" in text.getvalue()
    assert "1.75" in text.getvalue()
    assert "\x1b" not in text.getvalue()
    assert "&lt;net&gt;" in found._repr_html_()
