"""Joined runs of convolutions and clips compute what the modules alone compute, wherever they are looked at."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from convscope.algorithms.kernels import host, threads
from convscope.features.chains import Chain, join
from convscope.features.network import fold, prepare
from convscope.features.quicker import quicken
from convscope.graph import record
from convscope.models import InputSpec, Net, load

needs_kernels = pytest.mark.skipif(
    host.current().refuses() is not None or threads.refuses() is not None, reason="no kernels on this machine"
)


class Block(nn.Module):
    """An inverted residual."""

    def __init__(self, channels: int, wide: int, act: Callable[[], nn.Module], kernel: int = 3) -> None:
        super().__init__()
        self.pw, self.bn1, self.act1 = nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), act()
        self.dw = nn.Conv2d(wide, wide, kernel, padding=kernel // 2, groups=wide)
        self.bn2, self.act2 = nn.BatchNorm2d(wide), act()
        self.pwl, self.bn3 = nn.Conv2d(wide, channels, 1), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.bn1(self.pw(x)))
        y = self.act2(self.bn2(self.dw(y)))
        out: Tensor = self.bn3(self.pwl(y)) + x
        return out


class Mobile(nn.Module):
    """A small mobile network with what such networks have: a stem, strides, residuals, clips of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        relu6, relu = (lambda: nn.ReLU6(inplace=True)), (lambda: nn.ReLU())
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), relu6())
        self.first = nn.Sequential(
            nn.Conv2d(8, 8, 3, 2, 1, groups=8, bias=False), nn.BatchNorm2d(8), relu6(), nn.Conv2d(8, 6, 1)
        )
        self.second, self.third = Block(6, 20, relu6, 5), Block(6, 24, relu)
        self.dense = nn.Sequential(nn.Conv2d(6, 10, 3, padding=1), relu(), nn.Conv2d(10, 5, 1))
        self.last = nn.Sequential(nn.Conv2d(5, 5, 3, groups=5), nn.Hardtanh(-1.0, 1.0, inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        x = self.third(self.second(self.first(self.stem(x))))
        out: Tensor = self.last(self.dense(x))
        return out


@pytest.fixture(scope="module")
def mobile() -> Net:
    generator = torch.Generator().manual_seed(0)
    module = Mobile()
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight, 0.0, 1.5 / part.weight[0].numel() ** 0.5, generator=generator)
            if part.bias is not None:
                nn.init.normal_(part.bias, 0.0, 0.3, generator=generator)
        elif isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            part.running_mean.normal_(0.0, 0.3, generator=generator)
    return load(module.eval(), input=InputSpec((3, 33, 30)))


KEYS = [
    "stem", "stem.0", "stem.2", "first", "first.2", "first.3", "second", "second.bn1", "second.act1", "second.dw",
    "second.act2", "second.dw:post", "second.bn2:post", "third.act2:pre", "third.act1", "third.pwl", "third", "dense.1",
    "dense", "last.0", "last", "last:pre",
]  # fmt: skip


def read(net: Net, key: str, x: Tensor, rescue: Tensor | None = None, **how: object) -> tuple[Tensor, Tensor]:
    """The value of a layer and the gradient of a fixed sum of it, in float64."""
    network = prepare(net, record(net), [key], **how)  # type: ignore[arg-type]
    images = x.clone().requires_grad_()
    with network.capture([key]) as capture:
        value = capture(network.feed(images), rescue)[0][key]
        weight = torch.rand(value.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        (slope,) = torch.autograd.grad((value.double() * weight).sum(), images)
    return value.detach().double(), slope.double()


@pytest.mark.parametrize("key", KEYS)
def test_every_layer_and_its_gradient_are_those_of_float64(mobile: Net, key: str) -> None:
    x = torch.rand(2, 3, 33, 30, generator=torch.Generator().manual_seed(1))
    value, slope = read(mobile, key, x)
    right, right_slope = read(mobile, key, x, dtype="float64")
    torch.testing.assert_close(value, right, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(slope, right_slope, atol=2e-4, rtol=1e-4)


def chains(net: Net, key: str) -> dict[str, int]:
    module = prepare(net, record(net), [key]).module
    return {name: len(part.steps) for name, part in module.named_modules() if isinstance(part, Chain)}


def test_runs_end_where_a_value_is_read_or_shared(mobile: Net) -> None:
    assert chains(mobile, "last") == {
        "stem.0": 5,  # to the first residual, which reads its value twice
        "second.pw": 5,
        "third.pw": 5,
        "dense.0": 5,
    }
    assert chains(mobile, "first.2") == {"stem.0": 3, "second.pw": 5, "third.pw": 5, "dense.0": 5}
    # a convolution that is read is not part of a run, nor are the activations on its account
    assert chains(mobile, "second.dw") == {"stem.0": 5, "third.pw": 5, "dense.0": 5}
    assert chains(mobile, "second.act1") == {"stem.0": 5, "second.dw": 3, "third.pw": 5, "dense.0": 5}


def test_hooked_shared_and_repeated_modules_are_left(mobile: Net) -> None:
    graph = record(mobile)
    for name, listen, runs in (
        ("second.act1", "register_forward_hook", {"stem.0": 5, "second.dw": 3, "third.pw": 5, "dense.0": 5}),
        ("last", "register_full_backward_hook", {}),
    ):
        module = mobile.copy()
        handle = getattr(module.get_submodule(name), listen)(lambda *_: None)
        fold(module, graph)
        quicken(module, graph)
        assert join(module, graph) == len(runs)
        found = {name: len(part.steps) for name, part in module.named_modules() if isinstance(part, Chain)}
        assert found == runs
        handle.remove()

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 3, 3, padding=1, groups=3)
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.act(self.a(self.act(self.a(x))))
            return out

    twice = load(Twice(), input=InputSpec((3, 9, 9)))
    assert join(twice.copy(), record(twice)) == 0


class Overwriting(nn.Module):
    """Writes to what an activation gave."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.act, self.last = nn.ReLU6(), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.end = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.b(self.a(x)))
        out: Tensor = self.end(self.last(y.mul_(2.0)))
        return out


def test_what_is_overwritten_later_is_not_kept() -> None:
    torch.manual_seed(0)
    net = load(Overwriting().eval(), input=InputSpec((3, 9, 9)))
    assert chains(net, "end") == {"a": 2}
    x = torch.rand(1, 3, 9, 9)
    images = x.clone().requires_grad_()
    network = prepare(net, record(net), [])
    out = network.module(network.feed(images))
    (mine,) = torch.autograd.grad(out.square().sum(), images)
    images = x.clone().requires_grad_()
    (his,) = torch.autograd.grad(net.module(net.input.normalize(images)).square().sum(), images)
    torch.testing.assert_close(mine, his, atol=1e-5, rtol=1e-4)


@needs_kernels
def test_machine_code_is_left_alone_where_it_does_not_serve(
    mobile: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.rand(2, 3, 33, 30, generator=torch.Generator().manual_seed(1))
    runs: list[int] = []
    original = Chain._run
    monkeypatch.setattr(Chain, "_run", lambda self, x: (runs.append(1), original(self, x))[1])
    quick = read(mobile, "last", x)
    assert len(runs) == 4
    with host.pretend(host.narrowed(0)):
        plain = read(mobile, "last", x)
    read(mobile, "last", x, dtype="bfloat16")
    watched = read(mobile, "last", x, rescue=torch.tensor([False, False]))
    assert len(runs) == 4
    for other in (plain, watched):
        torch.testing.assert_close(quick[0], other[0], atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(quick[1], other[1], atol=2e-4, rtol=1e-4)


@needs_kernels
def test_runs_repeat_bit_for_bit_at_any_size(mobile: Net) -> None:
    for size in ((33, 30), (16, 47)):
        x = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(1))
        first, second = read(mobile, "third", x), read(mobile, "third", x)
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])


def test_a_copy_computes_the_same(mobile: Net) -> None:
    network = prepare(mobile, record(mobile), ["last"])
    x = torch.rand(2, 3, 33, 30).contiguous(memory_format=torch.channels_last)
    wanted = network.module(x)
    assert torch.equal(copy.deepcopy(network.module)(x), wanted)


@needs_kernels
def test_a_second_derivative_is_refused(mobile: Net) -> None:
    network = prepare(mobile, record(mobile), ["last"])
    x = torch.rand(1, 3, 33, 30, requires_grad=True)
    with network.capture(["last"]) as capture:
        value = capture(network.feed(x))[0]["last"]
        (slope,) = torch.autograd.grad(value.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()
