"""Effective receptive fields: uniform kernels, whose field is known exactly, and real networks."""

from __future__ import annotations

import math
from collections import OrderedDict

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from convscope.errors import BadInput, ModelError, RequestError
from convscope.measures.effective_field import effective_receptive_field, gaussian_fit
from convscope.measures.receptive_field import receptive_field
from convscope.models import InputSpec, Net
from nan_oracle import build


def uniform(count: int, kernel: int, channels: int = 1, stride: int = 1) -> nn.Sequential:
    """A stack of convolutions without padding whose kernels are all one number."""
    net = nn.Sequential(*(nn.Conv2d(channels, channels, kernel, stride, bias=False) for _ in range(count)))
    for layer in net:
        nn.init.constant_(layer.weight, 1 / (channels * kernel**2))  # type: ignore[arg-type]
    return net.double()


def spec(size: int, channels: int = 1) -> InputSpec:
    return InputSpec((channels, size, size), dtype=torch.double)


@pytest.mark.parametrize(("count", "kernel"), [(1, 3), (2, 3), (5, 3), (3, 5), (8, 2)])
def test_uniform_kernels_give_their_convolution_with_themselves(count: int, kernel: int) -> None:
    net = uniform(count, kernel)
    size = count * (kernel - 1) + 4
    found = effective_receptive_field(net, str(count - 1), input=spec(size), position=1, samples=2)
    line = torch.ones(1, 1, 1, dtype=torch.double)
    for _ in range(count):
        line = torch.nn.functional.conv1d(
            line, torch.ones(1, 1, kernel, dtype=torch.double), padding=kernel - 1
        )
    line = line.flatten() / line.sum()
    assert torch.allclose(found.map, line[:, None] * line, atol=1e-14)
    sigma = math.sqrt(count * (kernel**2 - 1) / 12)
    assert found.sigma == pytest.approx((sigma, sigma))
    assert found.box == receptive_field(net, str(count - 1), 1, input=spec(size))
    assert found.centre == pytest.approx(((size - 2) / 2,) * 2)
    assert found.image.sum() == pytest.approx(1)
    assert found.local_share is None


def test_many_uniform_kernels_are_near_a_gaussian() -> None:
    found = effective_receptive_field(uniform(20, 3), "19", input=spec(45), samples=1)
    assert found.fit == pytest.approx(found.sigma, rel=0.01)
    assert found.fit_quality > 0.9999
    # a Gaussian is above 4.55 % of its height within 2.486 sigma
    radius = math.sqrt(-2 * math.log(1 - 0.9545)) * found.sigma[0]
    assert found.extent == pytest.approx(math.sqrt(math.pi) * radius, rel=0.02)
    assert found.ratio == found.extent / 41


def test_squares_are_narrower() -> None:
    net = uniform(20, 3)
    absolute = effective_receptive_field(net, "19", input=spec(45), samples=1)
    squared = effective_receptive_field(net, "19", input=spec(45), samples=1, kind="squared")
    assert torch.allclose(squared.map, absolute.map**2 / (absolute.map**2).sum())
    assert squared.sigma[0] == pytest.approx(absolute.sigma[0] / math.sqrt(2), rel=0.01)


def test_signs_of_channels_are_random_and_repeat_with_the_seed() -> None:
    net = nn.Sequential(nn.Conv2d(2, 6, 5), nn.ReLU(), nn.Conv2d(6, 6, 3))
    seen = [
        effective_receptive_field(net, "2", input=InputSpec((2, 16, 16)), samples=3, seed=seed).map
        for seed in (0, 0, 1)
    ]
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_the_gradient_of_one_channel_is_that_of_autograd() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(inplace=True), nn.Conv2d(3, 3, 3, padding=1)).double()
    x = torch.rand(1, 2, 9, 9, dtype=torch.double)
    found = effective_receptive_field(net, "2", x, input=spec(9, 2), channels=1, position=(0, 6), samples=1)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(net(leaf)[0, 1, 0, 6], leaf)
    expected = gradient[0].abs().sum(0)
    assert torch.allclose(found.image, expected / expected.sum())
    assert found.box == ((0, 4), (5, 9))  # cut at the border


def test_local_share_of_a_network_with_gates() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.gate = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()

    net = nn.Sequential(OrderedDict(body=Gated()))
    found = effective_receptive_field(net, "body", input=InputSpec((3, 24, 24)), samples=2)
    assert found.field.is_global
    assert found.box == ((0, 24), (0, 24))
    assert found.local_share is not None
    assert 0.3 < found.local_share < 1


def test_photographs_come_again_where_more_samples_are_asked(tiny: Net) -> None:
    found = effective_receptive_field(tiny, "relu2", samples=14)
    assert (found.data, found.samples) == ("photographs", 14)
    assert found.field.size == (10, 10)
    assert 1 < found.sigma[0] < 10 / math.sqrt(12) + 0.1  # narrower than an even spread
    logits = effective_receptive_field(tiny, "fc", samples=2)
    assert (logits.position, logits.field.is_global, logits.map.shape) == ((0, 0), True, (32, 32))


def test_a_real_network_sees_less_than_it_could() -> None:
    net = build("timm:tf_efficientnet_lite0")
    found = effective_receptive_field(net, "blocks.2.1", input=InputSpec((3, 96, 96)), samples=2)
    assert found.field.size == (67, 67)
    assert found.ratio < 0.9
    assert found.sigma[0] < 67 / math.sqrt(12)


def test_text_has_its_gradient_in_its_embedding() -> None:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.conv = nn.Embedding(9, 4), nn.Conv1d(4, 3, 5)

        def forward(self, words: Tensor) -> Tensor:
            return self.conv(self.embed(words).transpose(1, 2)).amax(2)  # type: ignore[no-any-return]

    words = torch.arange(24).view(2, 12) % 9
    found = effective_receptive_field(Text(), "conv", input=words, position=2)
    assert (found.box, found.data, found.samples) == (((2, 7),), "the example", 16)
    assert found.map.shape == (5,)
    assert found.sigma[0] > 0.5


def test_a_gaussian_is_not_fitted_to_what_has_no_width() -> None:
    at = torch.arange(9.0, dtype=torch.double)
    line = torch.zeros(9, dtype=torch.double)
    line[4] = 1
    assert all(map(math.isnan, gaussian_fit(at, line, 4, 0)))
    assert all(map(math.isnan, gaussian_fit(at, torch.ones_like(line) / 9, 4, 2.6)))
    found = effective_receptive_field(
        nn.Sequential(nn.Conv2d(1, 1, 1)), "0", input=InputSpec((1, 5, 5)), samples=1
    )
    assert (found.sigma, found.extent, found.to_dict()["fit"]) == ((0, 0), 1, [None, None])


def test_the_result_prints_and_serializes() -> None:
    found = effective_receptive_field(uniform(3, 3), "2", input=spec(11), samples=1)
    console = Console(width=120)
    with console.capture() as text:
        console.print(found)
    assert "effective receptive field of 2 at (2, 2), 1 gradients on photographs" in " ".join(
        text.get().split()
    )
    assert "7 x 7 pixels" in text.get()
    assert "1.41 x 1.41" in text.get()
    assert "map" not in found.to_dict()
    assert len(found.to_dict(maps=True)["map"]) == 7


def test_requests_are_refused_with_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    net, at = uniform(2, 3), spec(11)
    with pytest.raises(RequestError, match="kind='mean' must be 'absolute' or 'squared'"):
        effective_receptive_field(net, "1", input=at, kind="mean")  # type: ignore[arg-type]
    with pytest.raises(
        RequestError, match=r"position=\(0, 7\) is none of layer '1', which has 7 x 7; count from 0"
    ):
        effective_receptive_field(net, "1", input=at, position=(0, 7))
    with pytest.raises(RequestError, match="position=-1 is none of layer '1'"):
        effective_receptive_field(net, "1", input=at, position=-1)
    with pytest.raises(RequestError, match=r"channels=\[0, 1\] must be of the 1 channels of layer '1'"):
        effective_receptive_field(net, "1", input=at, channels=[0, 1])
    with pytest.raises(RequestError, match="samples=0 must be at least 1"):
        effective_receptive_field(net, "1", input=at, samples=0)
    with pytest.raises(BadInput, match="says nothing about its input"):
        effective_receptive_field(net, "1")
    dead = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Threshold(1e9, 0.0))
    with pytest.raises(
        RequestError, match=r"no gradient of layer '1' at \(4, 4\) reaches the input; choose another"
    ):
        effective_receptive_field(dead, "1", input=InputSpec((1, 11, 11)))
    rounded = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Flatten(), Detached(), nn.Unflatten(1, (1, 9, 9)))
    with pytest.raises(RequestError, match="an operation on the way has none; choose an earlier layer"):
        effective_receptive_field(rounded, "3", input=InputSpec((1, 11, 11)))
    words = nn.Sequential(OrderedDict(cast=Float(), line=nn.Conv1d(1, 1, 3)))
    with pytest.raises(RequestError, match="input holds whole numbers, which have no gradient"):
        effective_receptive_field(words, "line", input=torch.zeros(1, 1, 9, dtype=torch.long))
    monkeypatch.setattr("convscope.measures.effective_field._box", lambda *_: ((0, 2), (0, 2)))
    with pytest.raises(ModelError, match=r"of its gradient at \(3, 3\) outside its receptive field"):
        effective_receptive_field(net, "1", input=at)


class Detached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


class Float(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float()
