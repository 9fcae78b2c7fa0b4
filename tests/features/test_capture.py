"""Reading activations: stops early, reads the right call and stage, and leaves the network as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from convscope.errors import ModelError, RequestError, UnknownLayer
from convscope.features.capture import Capture, open_interval, split_key
from convscope.graph import record
from convscope.models import Net

SHAPE = (3, 16, 16)


def capture(net: Net, *keys: str) -> Capture:
    return Capture(net.copy(), record(net), keys)


def read(net: Net, *keys: str, x: Tensor | None = None) -> dict[str, Tensor]:
    with capture(net, *keys) as reader, torch.no_grad():
        return reader(example() if x is None else x)[0]


def example(batch: int = 2) -> Tensor:
    return torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(0))


def hooks(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


class Steps(nn.Module):
    """Runs parts in order; each may be a module or a function."""

    def __init__(self, **parts: Any) -> None:
        super().__init__()
        self.order = list(parts)
        self.functions = {name: part for name, part in parts.items() if not isinstance(part, nn.Module)}
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        for name in self.order:
            x = self.functions[name](x) if name in self.functions else getattr(self, name)(x)
        return x


class Counting(nn.Module):
    """Counts its calls; fails when told so."""

    calls = 0
    failing = False

    def forward(self, x: Tensor) -> Tensor:
        type(self).calls += 1
        if type(self).failing:
            raise RuntimeError("ran too far")
        return x


@pytest.fixture
def counting() -> type[Counting]:
    return type("OwnCounting", (Counting,), {})


def test_what_comes_after_the_last_layer_does_not_run(
    make_net: Callable[..., Net], counting: type[Counting]
) -> None:
    net = make_net(Steps(a=nn.Conv2d(3, 4, 3), b=nn.ReLU(), late=counting()), SHAPE)
    with capture(net, "b", "a") as reader:
        counting.failing = True
        calls = counting.calls
        values, used = reader(example())
        assert counting.calls == calls
        assert used is None
        assert list(values) == ["a", "b"] or set(values) == {"a", "b"}
        with pytest.raises(RuntimeError, match="ran too far"):
            reader.module(example())


def test_values_are_those_of_the_network(tiny: Net) -> None:
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    values = read(tiny, "conv1", "bn1", "relu2", "gap", "fc", x=x)
    module = copy.deepcopy(tiny.module)
    with torch.no_grad():
        conv1 = module.get_submodule("conv1")(x)
        bn1 = module.get_submodule("bn1")(conv1)
        logits = module(x)
    torch.testing.assert_close(values["conv1"], conv1)
    torch.testing.assert_close(values["bn1"], bn1)
    torch.testing.assert_close(values["fc"][:, :, 0, 0], logits)
    assert values["gap"].shape == (2, 32, 1, 1)
    assert values["relu2"].min() == 0


def test_an_inplace_operation_behind_a_layer_does_not_alter_it(make_net: Callable[..., Net]) -> None:
    module = Steps(a=nn.Conv2d(3, 4, 3), b=nn.ReLU(inplace=True), c=lambda x: x.mul_(0), d=nn.Conv2d(4, 2, 3))
    net = make_net(module, SHAPE)
    values = read(net, "a", "b", "d")
    with torch.no_grad():
        a = module.get_submodule("a")(example())
    torch.testing.assert_close(values["a"], a)
    torch.testing.assert_close(values["b"], a.clamp_min(0))
    assert (values["a"] < 0).any()


def test_a_kept_value_survives_writes_through_its_input(make_net: Callable[..., Net]) -> None:
    class Alias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.same, self.b = nn.Conv2d(3, 3, 1), nn.Identity(), nn.Conv2d(3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            kept = self.a(x)
            same = self.same(kept)
            kept += 100.0
            out: Tensor = self.b(same)
            return out

    net = make_net(Alias(), SHAPE)
    for grad in (False, True):
        with capture(net, "same", "b") as reader, torch.set_grad_enabled(grad):
            values, _ = reader(example().requires_grad_(grad))
        torch.testing.assert_close(values["same"].detach(), net.module.get_submodule("a")(example()).detach())


def test_later_layers_have_a_gradient_in_earlier_ones(tiny: Net) -> None:
    with capture(tiny, "relu3", "fc") as reader, torch.enable_grad():
        x = torch.rand(1, 3, 32, 32).requires_grad_()
        values, _ = reader(x)
        (gradient,) = torch.autograd.grad(values["fc"][0, 2].sum(), reader.raw["relu3"])
    weight = tiny.module.get_submodule("fc").weight[2]  # the gradient of an average and a linear layer
    torch.testing.assert_close(gradient[0], (weight / 64).view(-1, 1, 1).expand(32, 8, 8))


@pytest.mark.parametrize("inplace", [False, True])
def test_pre_and_post_of_a_module(make_net: Callable[..., Net], inplace: bool) -> None:
    module = Steps(a=nn.Conv2d(3, 4, 3), act=nn.ReLU(inplace=inplace), b=nn.Conv2d(4, 2, 3))
    net = make_net(module, SHAPE)
    values = read(net, "act:pre", "act", "a:post", "b")
    with torch.no_grad():
        a = module.get_submodule("a")(example())
    torch.testing.assert_close(values["act:pre"], a)
    torch.testing.assert_close(values["act"], a.clamp_min(0))
    torch.testing.assert_close(values["a:post"], a.clamp_min(0))


FUNCTIONAL: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "relu_": lambda x: functional.relu(x, inplace=True),
    "method_": lambda x: x.relu_(),
    "clamp": lambda x: x.clamp(min=0),
    "clamp_": lambda x: x.clamp_(min=0),
    "clamp_min": lambda x: torch.clamp_min(x, 0),
    "threshold": lambda x: functional.threshold(x, 0.0, 0.0),
}


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_pre_and_post_of_a_function(make_net: Callable[..., Net], name: str) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return FUNCTIONAL[name](self.conv(x) * 2)

    module = Steps(block=Block(), after=nn.Conv2d(4, 2, 1))
    net = make_net(module, SHAPE)
    values = read(net, "block:pre", "block", "block.conv", "block.conv:post", "after")
    with torch.no_grad():
        plain = module.get_submodule("block.conv")(example())
    torch.testing.assert_close(values["block.conv"], plain)
    torch.testing.assert_close(values["block:pre"], plain * 2)
    torch.testing.assert_close(values["block"], plain.clamp_min(0) * 2)
    torch.testing.assert_close(values["block.conv:post"], plain.clamp_min(0) * 2)


def test_each_call_of_a_reused_module(make_net: Callable[..., Net]) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.act = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.act(self.a(x))
            x = self.act(self.b(x))
            return x + 1

    module = Twice()
    net = make_net(module, SHAPE)
    values = read(net, "act#0", "act#1", "act", "act#0:pre", "act:pre")
    with torch.no_grad():
        a = module.a(example())
        b = module.b(a.relu())
    torch.testing.assert_close(values["act#0:pre"], a)
    torch.testing.assert_close(values["act#0"], a.relu())
    torch.testing.assert_close(values["act:pre"], b)
    for key in ("act", "act#1"):
        torch.testing.assert_close(values[key], b.relu())
    assert read(net, "act#0")["act#0"].equal(values["act#0"])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: (x, x * 0),
        lambda x: [x],
        lambda x: {"out": x, "aux": None},
        lambda x: (None, {"out": [x]}, 3),
    ],
    ids=["tuple", "list", "dict", "nested"],
)
def test_the_first_tensor_of_a_container_is_the_layer(make_net: Callable[..., Net], wrap: Any) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Any:
            return wrap(self.conv(x))

    def unwrap(found: Any) -> Tensor:
        while not isinstance(found, Tensor):
            found = found["out"] if isinstance(found, dict) else found[1 if found[0] is None else 0]
        return found.relu_()

    module = Steps(box=Wrapped(), open=unwrap, last=nn.Conv2d(4, 2, 3))
    net = make_net(module, SHAPE)
    with torch.no_grad():
        wanted = module.get_submodule("box.conv")(example())
    for keys in (("box",), ("box", "last")):
        torch.testing.assert_close(read(net, *keys)["box"], wanted)
        with capture(net, *keys) as reader:
            torch.testing.assert_close(reader(example().requires_grad_())[0]["box"].detach(), wanted)


def test_a_layer_of_tokens_comes_as_a_map(make_net: Callable[..., Net]) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mix = nn.Conv2d(3, 6, 4, stride=4), nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.mix(self.embed(x).flatten(2).transpose(1, 2))

    module = Tokens()
    values = read(make_net(module, SHAPE), "mix", "embed")
    assert values["mix"].shape == (2, 5, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(values["mix"][:, :, 1, 2], module.mix(module.embed(example())[:, :, 1, 2]))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_hooks_are_gone_after_any_end(make_net: Callable[..., Net], error: type[BaseException]) -> None:
    net = make_net(Steps(a=nn.Conv2d(3, 4, 3), b=nn.ReLU()), SHAPE)
    private = net.copy()
    with Capture(private, record(net), ["b"]) as reader:
        assert hooks(private) == 1
        reader(example())
    assert hooks(private) == 0
    with pytest.raises(error), Capture(private, record(net), ["a", "b"]):
        raise error("stop")
    assert hooks(private) == 0
    assert hooks(net.module) == 0


def test_a_failing_layer_leaves_no_mode_behind(
    make_net: Callable[..., Net], counting: type[Counting]
) -> None:
    net = make_net(Steps(a=nn.Conv2d(3, 4, 3), wall=counting(), b=nn.ReLU()), SHAPE)
    with capture(net, "b:pre") as reader:
        counting.failing = True
        with pytest.raises(RuntimeError, match="ran too far"):
            reader(example(), torch.tensor([True, True]))
        counting.failing = False
        assert reader(example())[0]["b:pre"].shape == (2, 4, 14, 14)
    assert torch.overrides._get_current_function_mode_stack() == []


RESCUED: dict[str, Callable[[Tensor], Tensor]] = FUNCTIONAL | {
    "relu6": functional.relu6,
    "relu6_": lambda x: functional.relu6(x, inplace=True),
    "hardswish": functional.hardswish,
    "hardsigmoid": functional.hardsigmoid,
    "threshold_": lambda x: functional.threshold_(x, 0.0, 0.0),  # type: ignore[attr-defined]
    "hardtanh": lambda x: functional.hardtanh(x, 0.0, 1.0),
    "hardtanh_": lambda x: functional.hardtanh_(x, 0.0, 1.0),
    "clip": lambda x: torch.clip(x, 0, 6),
    "module": nn.ReLU(inplace=True),
    "gate": lambda x: x * x.mean((1, 2, 3)).relu().view(-1, 1, 1, 1),
}


@pytest.mark.parametrize("name", RESCUED)
def test_a_blocked_gradient_passes_for_rescued_samples_only(make_net: Callable[..., Net], name: str) -> None:
    conv = nn.Conv2d(3, 4, 3)
    assert conv.bias is not None
    nn.init.constant_(conv.bias, -20.0)
    net = make_net(Steps(a=conv, act=lambda x: RESCUED[name](x * 1), b=nn.Conv2d(4, 2, 1)), SHAPE)
    with capture(net, "b") as reader:
        x = example(3).requires_grad_()
        plain = reader(x)[0]["b"]
        (gradient,) = torch.autograd.grad(plain.sum(), x)
        assert gradient.abs().max() == 0
        values, used = reader(x, torch.tensor([True, False, True]))
        torch.testing.assert_close(values["b"], plain)  # the forward pass is as it was
        (gradient,) = torch.autograd.grad(values["b"].sum(), x)
    assert used is not None
    assert used.tolist() == [True, False, True]
    assert gradient[0].abs().max() > 0
    assert gradient[1].abs().max() == 0


def test_an_open_activation_is_not_redirected(make_net: Callable[..., Net]) -> None:
    net = make_net(Steps(a=nn.Conv2d(3, 4, 3), act=nn.ReLU(inplace=True), b=nn.Conv2d(4, 2, 1)), SHAPE)
    with capture(net, "b") as reader:
        x = example().requires_grad_()
        wanted = torch.autograd.grad(reader(x)[0]["b"].sum(), x)[0]
        values, used = reader(x, torch.tensor([True, True]))
        torch.testing.assert_close(torch.autograd.grad(values["b"].sum(), x)[0], wanted)
    assert used is not None
    assert not used.any()


def test_what_counts_as_an_activation_function() -> None:
    x = torch.zeros(2)
    inf = float("inf")
    assert open_interval(functional.relu, (x,), {}) == (True, (0.0, inf))
    assert open_interval(torch.clamp, (x, 0, 6), {}) == (True, (0.0, 6.0))
    assert open_interval(torch.clamp, (x,), {"min": -1.0}) == (True, (-1.0, inf))
    assert open_interval(torch.clamp, (x,), {"max": 1.0}) == (False, None)  # no lower bound: it kills nothing
    assert open_interval(torch.clamp, (x, x), {}) == (False, None)
    assert open_interval(functional.hardtanh, (x,), {}) == (True, (-1.0, 1.0))
    assert open_interval(functional.gelu, (x,), {}) == (True, None)
    assert open_interval(torch.add, (x, x), {}) == (False, None)
    assert split_key("a.b#2:pre") == ("a.b#2", "pre")
    assert split_key("a:b") == ("a:b", "")


def test_errors_name_what_is_wrong(tiny: Net) -> None:
    x = torch.rand(1, 3, 32, 32)
    with pytest.raises(UnknownLayer, match="did you mean 'relu3', 'relu2' or 'relu1'"):
        capture(tiny, "relu9")
    with pytest.raises(UnknownLayer, match="layer '' is the whole network"):
        capture(tiny, "")
    with pytest.raises(UnknownLayer, match="asks for call 1 but 'fc' was called 1 times"):
        capture(tiny, "fc#1")
    with (
        capture(tiny, "conv1:pre") as reader,
        pytest.raises(RequestError, match="'conv1' does not end in one"),
    ):
        reader(x)
    with (
        capture(tiny, "fc:post") as reader,
        pytest.raises(RequestError, match="none runs after 'fc'; use 'fc'"),
    ):
        reader(x)


def test_a_layer_that_a_size_does_not_reach(make_net: Callable[..., Net]) -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.b(x) if x.shape[-1] < 20 else x

    net = make_net(Deep(), SHAPE)
    with (
        capture(net, "b") as reader,
        pytest.raises(ModelError, match=r"'b' gave no value .*give a canvas size="),
    ):
        reader(torch.zeros(1, 3, 32, 32))


def test_an_attention_map_has_no_channel(make_net: Callable[..., Net]) -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flat = nn.Flatten()
            self.fc = nn.Linear(768, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(self.flat(x))
            return out

    with pytest.raises(RequestError, match="no axis is a channel"):
        capture(make_net(Flat(), SHAPE), "flat")
