"""Folding is exact or not done; types, devices and layouts are what was asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convscope._torchvision import torchvision
from convscope.errors import RequestError
from convscope.features.network import density, fold, prepare
from convscope.features.quicker import Clip
from convscope.graph import record
from convscope.models import InputSpec, Net, load

SPEC = InputSpec((3, 17, 19), dtype=torch.float64)


def alive(module: nn.Module) -> nn.Module:
    """In float64, with norms that do something."""
    generator = torch.Generator().manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            if part.running_mean is not None and part.running_var is not None:
                part.running_mean.normal_(generator=generator)
                part.running_var.uniform_(0.5, 2.0, generator=generator)
            if part.affine:
                nn.init.normal_(part.weight, 1.0, 0.3, generator=generator)
                nn.init.normal_(part.bias, 0.0, 0.3, generator=generator)
    return module.double().eval()


def folded(module: nn.Module, protected: Iterable[str] = ()) -> int:
    """Folds a network and checks that its output stays the same in float64; returns how many were folded."""
    alive(module)
    x = torch.randn(2, *SPEC.shape, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        before = module(x)
        count = fold(module, record(module, spec=SPEC), protected)
        torch.testing.assert_close(module(x), before, atol=1e-12, rtol=1e-12)
    return count


def pair(groups: int = 1, bias: bool = False, affine: bool = True, **more: Any) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, groups=groups, bias=bias, **more),
        nn.BatchNorm2d(6, affine=affine),
        nn.ReLU(inplace=True),
    )


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
def test_a_pair_folds_exactly(bias: bool, affine: bool, groups: int) -> None:
    module = pair(groups, bias, affine, stride=2, padding=1, padding_mode="reflect")
    assert folded(module) == 1
    assert isinstance(module[1], nn.Identity)


def test_timms_norm_with_activation_folds_and_keeps_its_parts() -> None:
    torchvision()  # timm imports it
    from timm.layers import BatchNormAct2d

    module = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), BatchNormAct2d(6), nn.Conv2d(6, 2, 1))
    assert folded(module) == 1
    assert {"drop", "act"} <= {name for name, _ in module[1].named_children()}


class Odd(nn.Module):
    """A convolution and a norm joined in some odd way."""

    def __init__(self, join: Callable[[Odd, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.bn, self.other = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self, x)


ODD: dict[str, Callable[[Odd, Tensor], Tensor]] = {
    "convolution used twice": lambda m, x: m.bn(m.conv(m.conv(x))),
    "norm used twice": lambda m, x: m.bn(m.bn(m.conv(x))),
    "both used twice": lambda m, x: m.bn(m.conv(m.bn(m.conv(x)))),
    "output read twice": lambda m, x: (lambda y: m.bn(y) + y)(m.conv(x)),
    "two norms": lambda m, x: (lambda y: m.bn(y) + m.other(y))(m.conv(x)),
    "activation between": lambda m, x: m.bn(m.conv(x).relu()),
    "norm first": lambda m, x: m.conv(m.bn(x)),
    "changed in place between": lambda m, x: m.bn(m.conv(x).mul_(2)),
    "weight computed": lambda m, x: m.bn(nn.functional.conv2d(x, m.conv.weight * 2, m.conv.bias, padding=1)),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_not_a_plain_pair_is_left(name: str) -> None:
    assert folded(Odd(ODD[name])) == 0


def test_a_norm_in_training_or_without_statistics_is_left() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    assert folded(module) == 0


def test_shared_parameters_are_left() -> None:
    module = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3))
    module[2].weight = module[0].weight
    assert folded(module) == 0
    module = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3))
    module[3].weight = module[1].weight
    assert folded(module) == 0


def test_a_protected_convolution_is_left() -> None:
    module = nn.Sequential(pair(), nn.Sequential(nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4)))
    assert folded(module, ["0.0"]) == 1
    assert isinstance(module[0][1], nn.BatchNorm2d)
    assert isinstance(module[1][1], nn.Identity)


def test_a_protected_block_that_ends_in_a_convolution_is_left() -> None:
    module = nn.Sequential(nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4))
    assert folded(module, ["0"]) == 0
    module = nn.Sequential(nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4))
    assert folded(module) == 1


@pytest.mark.parametrize("where", [0, 1])
def test_a_hooked_module_is_left(where: int) -> None:
    module = pair()
    handle = module[where].register_forward_hook(lambda _, __, output: output * 2)
    assert folded(module) == 0
    handle.remove()


def test_reparametrized_weights_are_left() -> None:
    module = pair()
    nn.utils.parametrizations.weight_norm(module[0])
    assert folded(module) == 0


def test_a_norm_with_two_names_is_folded_under_both() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.first = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.second = self.first

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.second(self.conv(x))
            return out

    assert folded(Named()) == 1


def test_transposed_convolutions_are_left() -> None:
    assert folded(nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.BatchNorm2d(4))) == 0


def test_every_layer_reads_the_same_when_folded(tiny: Net) -> None:
    graph = record(tiny)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for key in ("conv1", "bn1", "relu1", "conv2", "bn2:post", "conv3", "fc"):
        plain = tiny.copy().double()
        network = prepare(tiny, graph, [key], dtype=torch.float64)
        assert network.folded == (2 if key.startswith("conv") else 3)
        with network.capture([key]) as reader, torch.no_grad():
            value = reader(network.feed(x))[0][key]
            kept: list[Tensor] = []
            name = {"bn2:post": "relu2"}.get(key, key)
            handle = plain.get_submodule(name).register_forward_hook(
                lambda *a, kept=kept: kept.append(a[2].clone())
            )
            plain(tiny.input.normalize(x).double())
            handle.remove()
        torch.testing.assert_close(value.reshape(kept[0].shape), kept[0], atol=1e-10, rtol=1e-10)


def test_the_private_copy_is_frozen_and_the_original_untouched(tiny: Net) -> None:
    before = tiny.sha256
    network = prepare(tiny, record(tiny), ["fc"])
    assert not any(p.requires_grad for p in network.module.parameters())
    assert not any(part.training for part in network.module.modules())
    assert all(p.requires_grad for p in tiny.module.parameters())
    mine = {p.data_ptr() for p in tiny.module.parameters()}
    assert not mine & {p.data_ptr() for p in network.module.parameters()}
    assert tiny.sha256 == before


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16", "float64"])
def test_any_floating_type_runs(tiny: Net, name: str) -> None:
    for asked in (name, getattr(torch, name)):
        network = prepare(tiny, record(tiny), ["relu3"], dtype=asked)
        with network.capture(["relu3"]) as reader, torch.no_grad():
            x = network.feed(torch.rand(2, 3, 32, 32))
            value = reader(x)[0]["relu3"]
        assert x.dtype == value.dtype == network.dtype == getattr(torch, name)
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert value.isfinite().all()


def test_the_normalization_is_that_of_the_input(make_net: Callable[..., Net]) -> None:
    images = torch.rand(2, 3, 4, 4)
    for spec in (
        InputSpec((3, 8, 8)),
        InputSpec((3, 8, 8), mean=(1.0, 20.0, 3.0), std=(0.5, 2.0, 30.0), value_range=(-1.0, 255.0)),
    ):
        net = make_net(nn.Conv2d(3, 2, 3), spec.shape)
        network = prepare(Net(net.module, spec, name="n"), record(net), [])
        gain, shift = network.normalization
        torch.testing.assert_close(
            gain.view(-1, 1, 1) * images + shift.view(-1, 1, 1), network.spec.normalize(images)
        )


def test_automatic_types(tiny: Net, make_net: Callable[..., Net], monkeypatch: pytest.MonkeyPatch) -> None:
    dense = make_net(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 12)), (3, 32, 32))
    # 30x30x4 outputs of 27 and 19x19x8 of 576 multiplications
    assert density(record(dense)) == pytest.approx((3600 * 27 + 2888 * 576) / (3600 + 2888))
    monkeypatch.setattr("convscope.features.network.has_fast_bfloat16", lambda device: True)
    assert prepare(dense, record(dense), ["1"]).dtype == torch.bfloat16
    assert prepare(tiny, record(tiny), ["fc"]).dtype == torch.float32  # its convolutions are thin
    monkeypatch.setattr("convscope.features.network.has_fast_bfloat16", lambda device: False)
    assert prepare(dense, record(dense), ["1"]).dtype == torch.float32
    double = Net(alive(pair()), SPEC, name="double")
    assert prepare(double, record(double), ["2"]).dtype == torch.float64


@pytest.mark.parametrize("wrong", ["int8", "half", torch.int32])
def test_a_wrong_type_is_refused(tiny: Net, wrong: Any) -> None:
    with pytest.raises(
        RequestError, match=r"dtype=.*must be one of float32, bfloat16, float16, float64 or 'auto'"
    ):
        prepare(tiny, record(tiny), ["fc"], dtype=wrong)


def test_no_convolution_has_no_density(make_net: Callable[..., Net]) -> None:
    net = make_net(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), (3, 2, 2))
    assert density(record(net)) == 0.0


def test_activations_write_over_the_gradient_only_where_it_is_theirs() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True))
            self.second = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU6(inplace=True))
            self.third = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True))
            self.pool = nn.MaxPool2d(2)
            self.last = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)  # read twice: its gradient is a sum that others see
            return self.last(self.pool(self.third(self.second(x) + x)))

    torch.manual_seed(0)
    net = load(Mixed(), input=InputSpec((3, 16, 16)))
    graph = record(net)
    network = prepare(net, graph, ["last"])
    clips = {
        name: part.owns_gradient for name, part in network.module.named_modules() if isinstance(part, Clip)
    }
    assert clips == {"second.1": False, "third.1": True}
    x = torch.randn(2, 3, 16, 16, requires_grad=True)
    with network.capture(["last"]) as capture:
        (mine,) = torch.autograd.grad(capture(x)[0]["last"].square().sum(), x)
    (his,) = torch.autograd.grad(net.module(x).square().sum(), x)
    torch.testing.assert_close(mine, his, rtol=1e-5, atol=1e-7)
    # a layer that is read keeps its gradient to itself
    read = prepare(net, graph, ["third"]).module.third[1]
    assert not isinstance(read, Clip)
