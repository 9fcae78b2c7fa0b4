"""Health: dead channels, moments, rank and saturation of layers made to have them; everything against numpy."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import conftest
from convscope.errors import RequestError, UnknownLayer
from convscope.measures import channels as channels_module
from convscope.measures import health as health_module
from convscope.measures.channels import effective_rank
from convscope.measures.health import Health
from convscope.models import Net

health = conftest._traceless(health_module.health)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def outputs(net: nn.Module, data: Tensor) -> np.ndarray:
    """[channel, image and position], in one piece."""
    with torch.no_grad():
        return net.eval()(data).transpose(0, 1).flatten(1).numpy()


def reference_rank(values: np.ndarray) -> float:
    """By the singular values of the whole matrix [position, channel]."""
    centred = (values - values.mean(1, keepdims=True)).T
    singular = np.linalg.svd(centred, compute_uv=False)
    p = singular / singular.sum()
    p = p[p > 1e-12]
    return float(np.exp(-(p * np.log(p)).sum()))


# -- against numpy -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_streamed_figures_equal_those_of_the_whole(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels_module, "_CHUNK", 200)
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 6, 3).double()
    net = nn.Sequential(conv, nn.ReLU())
    data = normal(7, 3, 9, 8) * 3 + 50  # a mean far from zero
    found = health(net, data, batch=batch)
    for name, part in (("0", conv), ("1", net)):
        whole, row = outputs(part, data), found.layers[name]
        assert row.values == 7 * 7 * 6
        np.testing.assert_allclose(row.channel_mean, whole.mean(1), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(row.channel_std, whole.std(1), rtol=1e-9, atol=1e-12)
        np.testing.assert_array_equal(row.channel_min, whole.min(1))
        np.testing.assert_array_equal(row.channel_max, whole.max(1))
        assert row.mean == pytest.approx(whole.mean(), rel=1e-12)
        assert row.std == pytest.approx(whole.std(), rel=1e-12)
        assert row.sparsity == pytest.approx((whole == 0).mean(), abs=1e-15)
        assert row.effective_rank == pytest.approx(reference_rank(whole), rel=1e-6)
        assert row.rank_limit == 6
    assert found.images == 7


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**31))
def test_the_stream_equals_numpy_for_any_cut(images: int, channels: int, seed: int) -> None:
    data = normal(images, channels, 3, 2, seed=seed).round(decimals=1)
    row = health_module.health(
        nn.Sequential(nn.Conv2d(channels, channels, 1)).double(), data, batch=2
    ).layers["0"]
    assert row.values == images * 6
    identity = Layer(lambda x: x * 1.0)
    row = health_module.health(nn.Sequential(identity), data, batch=2).layers["0"]
    whole = data.transpose(0, 1).flatten(1).numpy()
    np.testing.assert_allclose(row.channel_std, whole.std(1), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(row.mean, whole.mean(), rtol=1e-9, atol=1e-12)
    assert row.effective_rank is not None
    assert row.effective_rank <= min(channels, row.rank_limit) + 1e-9


class Layer(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


# -- rank ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 3, 8])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_matrix_of_rank_r_leaves_r_dimensions(rank: int, dtype: torch.dtype) -> None:
    layer = nn.Linear(8, 12).to(dtype)
    basis, _ = torch.linalg.qr(normal(12, 12, seed=1))
    mix, _ = torch.linalg.qr(normal(8, 8, seed=2))
    layer.weight.data = (basis[:, :rank] @ mix[:rank]).to(dtype)  # singular values 1, ..., 1, 0, ...
    white = torch.linalg.qr(normal(400, 9, seed=3) - normal(400, 9, seed=3).mean(0))[0][:, :8]
    white = white - white.mean(0)
    found = health(
        nn.Sequential(Layer(lambda x: x.flatten(1)), layer), white.to(dtype)[:, :, None, None]
    ).layers["1"]
    assert found.effective_rank == pytest.approx(rank, rel=0.02 if dtype is torch.float32 else 0.01)
    assert found.rank_limit == 12


def test_few_images_limit_the_rank() -> None:
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 30)).double()
    row = health(net, normal(5, 20, 2, 2), layers="2").layers["2"]
    assert row.rank_limit == 4
    assert row.effective_rank is not None
    assert 1 < row.effective_rank <= 4
    alone = health(net, normal(1, 20, 2, 2), layers="2").layers["2"]
    assert (alone.effective_rank, alone.rank_limit) == (0.0, 0)


@pytest.mark.parametrize("positions", [1, 5, 11, 12, 13, 60, 1500])
def test_rank_is_the_same_before_and_after_there_are_more_positions_than_channels(positions: int) -> None:
    values = normal(positions, 12, seed=positions) @ torch.diag(torch.linspace(1, 0.1, 12).double()) + 5
    covariance = channels_module.Covariance(12)
    for rows in values.split(4):
        covariance.add(rows)
    rank, limit = covariance.rank()
    assert limit == min(12, positions - 1)
    assert rank == pytest.approx(0 if positions == 1 else reference_rank(values.T.numpy()), rel=1e-6)
    assert (covariance.products is None) == (positions <= 12)
    assert covariance.waiting <= 12


def test_effective_rank_by_hand() -> None:
    assert effective_rank([1, 1, 1, 1]) == pytest.approx(4)
    assert effective_rank([5.0]) == pytest.approx(1)
    assert effective_rank(torch.tensor([3.0, 1.0])) == pytest.approx(
        np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    )
    assert effective_rank([]) == 0


def test_large_maps_are_sampled_and_wide_layers_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(3, 40, 1)).double()
    data = normal(2, 1, 30, 30)
    full = health(net, data)
    assert full.layers["0"].values == 1800
    assert full.layers["0"].effective_rank == pytest.approx(1, abs=1e-3)  # three copies of one picture
    monkeypatch.setattr(health_module, "_COVARIANCES", 1000)
    found = health(net, data)
    assert found.layers["1"].effective_rank is None
    assert found.layers["0"].effective_rank == full.layers["0"].effective_rank
    assert "1 wide layers have no effective rank" in found.notes[0]
    assert "1.0 of 3" in str(found)


# -- dead, sparse, saturated ---------------------------------------------------------------------------------


def test_dead_channels_are_named() -> None:
    conv = nn.Conv2d(2, 5, 3).double()
    with torch.no_grad():
        conv.weight[1] = 0  # constant, and positive
        conv.bias[1] = 2
        conv.bias[3] = -1000  # below zero for ever, and not constant
        conv.weight[4] *= 1e-12  # dust
        conv.bias[4] = -0.3
    found = health(nn.Sequential(conv, nn.ReLU()), normal(4, 2, 8, 8))
    assert found.layers["0"].dead == (1, 4)
    assert found.layers["0"].rule == "constant"
    assert found.layers["1"].dead == (1, 3, 4)
    assert found.layers["1"].rule == "constant or never above 0"
    assert found.dead == {"0": found.layers["0"].dead, "1": found.layers["1"].dead}
    with torch.no_grad():
        conv.weight[4] *= 1e8  # little, and yet it moves: 1e-4 of the layer's largest value of about 1000
        conv.bias[3] = 0
    assert health(nn.Sequential(conv, nn.ReLU()), normal(4, 2, 8, 8)).dead == {"0": (1,), "1": (1, 4)}


RECTIFIERS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "relu_": lambda x: functional.relu_(x * 1),
    "relu6": functional.relu6,
    "leaky": functional.leaky_relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "elu": functional.elu,
    "selu": functional.selu,
    "celu": functional.celu,
    "mish": functional.mish,
    "hardswish": functional.hardswish,
    "prelu": lambda x: functional.prelu(x, torch.tensor([0.25]).to(x)),
    "threshold": lambda x: functional.threshold(x, 0.0, 0.0),
    "clamp": lambda x: x.clamp(min=0),
    "clamp_min": lambda x: x.clamp_min(0),
}


@pytest.mark.parametrize("name", RECTIFIERS)
def test_every_rectifier_is_known(name: str) -> None:
    data = normal(3, 2, 4, 4)
    data[:, 1] = -data[:, 1].abs() - 0.1
    row = health(nn.Sequential(Layer(RECTIFIERS[name])), data).layers["0"]
    assert (row.rule, row.dead) == ("constant or never above 0", (1,))


@pytest.mark.parametrize(
    ("function", "share"),
    [
        (functional.relu6, lambda x: (x >= 6).mean()),
        (functional.hardtanh, lambda x: (abs(x) >= 1).mean()),
        (lambda x: x.clamp(-2, 3), lambda x: ((x <= -2) | (x >= 3)).mean()),
        (torch.sigmoid, lambda x: ((1 / (1 + np.exp(-x)) <= 0.01) | (1 / (1 + np.exp(-x)) >= 0.99)).mean()),
        (torch.tanh, lambda x: (abs(np.tanh(x)) >= 0.98).mean()),
        (functional.hardsigmoid, lambda x: (abs(x) / 6 >= 0.49).mean()),
        (functional.relu, None),
        (lambda x: x + 1, None),
    ],
)
def test_saturated_values_are_counted(
    function: Callable[[Tensor], Tensor], share: Callable[[np.ndarray], float] | None
) -> None:
    data = normal(4, 3, 6, 6) * 4
    row = health(nn.Sequential(Layer(function)), data).layers["0"]
    assert row.saturated == (None if share is None else pytest.approx(share(data.numpy()), abs=1e-12))
    if share is not None:
        assert row.saturated is not None
        assert row.saturated > 0


def test_values_that_are_not_finite_are_counted_and_left_out() -> None:
    data = normal(3, 2, 4, 4).abs() + 0.5
    data[0, 0, 0, 0], data[1, 1, 2, 2], data[2, 1, 3, 3] = -1, -2, -3
    net = nn.Sequential(Layer(lambda x: torch.where(x < 0, x / 0.0, x)), Layer(lambda x: x * float("nan")))
    found = health(net, data)
    row = found.layers["0"]
    kept = [data[:, c][data[:, c] > 0].numpy() for c in range(2)]
    assert row.nonfinite == 3
    np.testing.assert_allclose(row.channel_mean, [part.mean() for part in kept])
    np.testing.assert_allclose(row.channel_std, [part.std() for part in kept])
    assert row.channel_max.isfinite().all()
    together = data.transpose(1, 3)[(data > 0).all(1).unsqueeze(1).transpose(1, 3).expand(-1, -1, -1, 2)]
    assert row.effective_rank == pytest.approx(reference_rank(together.view(-1, 2).numpy().T), rel=1e-6)
    nothing = found.layers["1"]
    assert nothing.nonfinite == data.numel()
    assert nothing.dead == ()
    assert nothing.to_dict()["mean"] is None
    assert nothing.to_dict()["channel_mean"] == [None, None]
    assert "(3 values not finite)" in str(found)
    json.dumps(found.to_dict(), allow_nan=False)


# -- which layers --------------------------------------------------------------------------------------------


class Block(nn.Module):
    """One ReLU called twice, a functional one at the end, dropout, a table, and a part that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 4, 1)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout()
        self.flat = nn.Flatten()
        self.unused = nn.Conv2d(1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.relu(self.conv1(x)))
        x = functional.relu(self.conv2(self.relu(x - 0.1)))
        return self.flat(x)  # type: ignore[no-any-return]


def test_layers_are_those_that_give_channels_each_output_once() -> None:
    found = health(nn.Sequential(Block()).double(), normal(3, 2, 4, 4))
    assert list(found.layers) == ["0.conv1", "0.relu#0", "0.relu#1", "0.conv2"]
    assert found.layers["0.conv1"].channel_min.min() < 0  # seen before the ReLU changed it in place
    assert found.layers["0.relu#1"].channel_min.min() == 0
    assert found.layers["0.conv2"].rule == "constant"
    assert found.skipped == {"0.flat": "its output of shape [1, 64] has no axis of channels"}
    assert "1 layers have no channels: 0.flat" in str(found)
    named = health(nn.Sequential(Block()).double(), normal(3, 2, 4, 4), layers=["*.relu", "0.drop"])
    assert list(named.layers) == ["0.drop", "0.relu#1"]


def test_a_container_by_name_is_judged_by_what_it_does_last() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return functional.relu(self.conv(x) - 100)

    row = health(nn.Sequential(Inner()), normal(2, 1, 4, 4).float(), layers="0").layers["0"]
    assert (row.rule, row.dead, row.sparsity) == ("constant or never above 0", (0, 1), 1.0)


def test_rows_tokens_and_text() -> None:
    row = health(nn.Sequential(nn.Conv1d(2, 3, 3)).double(), normal(4, 2, 9)).layers["0"]
    assert (row.channels, row.values) == (3, 28)

    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(7, 5)
            self.norm = nn.LayerNorm(5)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.embed(x)).mean(1)  # type: ignore[no-any-return]

    net = Text().double()
    tokens = torch.arange(24).view(4, 6) % 7
    found = health(net, tokens)
    assert {name: (r.channels, r.values) for name, r in found.layers.items()} == {
        "embed": (5, 24),
        "norm": (5, 24),
    }
    whole = net.embed.weight.detach()[tokens].flatten(0, 1)
    torch.testing.assert_close(found.layers["embed"].channel_mean, whole.mean(0))


def test_photographs_and_the_command_of_a_real_network(tiny: Net) -> None:
    found = health(tiny, limit=3, batch=2)
    assert list(found.layers) == [
        *("conv1", "bn1", "relu1", "pool", "conv2", "bn2", "relu2", "conv3", "bn3", "relu3", "gap", "fc")
    ]
    assert (found.images, found.source) == (3, "photographs")
    assert found.layers["fc"].rank_limit == 2
    assert all(found.layers[f"relu{k}"].channel_min.min() == 0 for k in (1, 2, 3))
    plain = found.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


def test_it_prints_and_tells_progress() -> None:
    events: list[dict[str, Any]] = []
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU6())
    with torch.no_grad():
        net[0].bias[:] = torch.tensor([-50.0, 50.0])
    with torch.inference_mode():
        found: Health = health(net, normal(5, 1, 3, 3).float(), batch=2, progress=events.append)
    assert [event["done"] for event in events] == [2, 4, 5]
    assert all(
        event["total"] == 5 and set(event) == {"done", "total", "rate", "seconds_left", "layer"}
        for event in events
    )
    line = next(line for line in str(found).split("\n") if "ReLU6" in line)
    assert [cell.strip() for cell in line.strip("│").split("│")] == [
        *("1", "ReLU6", "2", "2", "3", "3", "50 %", "50.0 %", "0.0 of 2")
    ]
    assert "Health of Sequential on 5 images of tensor" in str(found)
    assert "<td style='text-align:left'>ReLU6</td>" in found._repr_html_()
    assert repr(found.layers["1"]) == "LayerHealth('1', 2 channels, 2 dead)"
    assert found.__rich__() is not None


def test_wrong_requests_are_named() -> None:
    data = normal(2, 1, 4, 4).float()
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten())
    cases: list[tuple[nn.Module, dict[str, Any], type[Exception], str]] = [
        (net, {"batch": 0}, RequestError, "batch=0 must be a whole number from 1 on"),
        (net, {"layers": "1"}, RequestError, "layer '1' has no axis of channels"),
        (net, {"layers": []}, RequestError, "layers=[] names no layer"),
        (net, {"layers": "conv"}, UnknownLayer, "layer 'conv' matches no layer"),
        (nn.Sequential(nn.Flatten()), {}, RequestError, "no module of the network gives channels"),
    ]
    for module, wrong, kind, message in cases:
        with pytest.raises(kind) as caught:
            health(module, data, **wrong)
        assert message in str(caught.value)


def test_a_layer_that_does_not_run_on_the_data_is_listed() -> None:
    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.b(x) if len(x) == 1 else self.a(x)

    found = health(Moody(), normal(2, 1, 4, 4).float())
    assert list(found.layers) == ["a"]
    assert found.skipped == {"b": "it did not run on the data"}
