"""What the recorder sees: module calls, functional operations, aliases, containers; and what it leaves
behind.
"""

from __future__ import annotations

import gc
import weakref
from collections import OrderedDict
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convscope.errors import ModelError, UnknownLayer
from convscope.graph import Graph, record
from convscope.graph.rules import follow
from convscope.models import InputSpec

SPEC = InputSpec((2, 8, 10))


class Block(nn.Module):
    """A residual block that calls one convolution twice and an activation by function."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(F.relu(self.conv(x)))


def names(graph: Graph) -> list[str]:
    return [op.name for op in graph.ops]


def test_calls_in_order_of_completion() -> None:
    graph = record(nn.Sequential(OrderedDict(block=Block(), pool=nn.MaxPool2d(2))), spec=SPEC)
    assert [call.address for call in graph.calls] == ["block.conv", "block.conv#1", "block", "pool", ""]
    assert [call.order for call in graph.calls] == [0, 1, 2, 3, 4]
    assert [call.parent for call in graph.calls] == [2, 2, 4, 4, None]
    assert [call.depth for call in graph.calls] == [2, 2, 1, 1, 0]
    assert [call.is_leaf for call in graph.calls] == [True, True, False, True, False]
    assert graph.executed == ("block.conv", "block", "pool")
    assert graph.layers == ("block", "block.conv", "block.unused", "pool")
    assert graph.outputs("pool") == ((1, 2, 4, 5),)
    assert names(graph) == [
        "aten.convolution",
        "aten.relu",
        "aten.convolution",
        "aten.add",
        "aten.max_pool2d_with_indices",
    ]


def test_values_flow_from_op_to_op() -> None:
    graph = record(Block(), spec=SPEC)
    first, relu, second, add = graph.ops
    assert first.tensors["input"] == graph.inputs[0] == add.tensors["self"]
    assert relu.inputs == first.outputs
    assert second.tensors["input"] == relu.outputs[0]
    assert add.tensors["other"] == second.outputs[0]
    weight = graph.values[first.inputs[1]]
    assert (weight.source, weight.name, weight.shape) == ("parameter", "conv.weight", (2, 2, 3, 3))
    assert first.attributes["stride"] == (1, 1)
    assert first.attributes["transposed"] is False
    assert [op.call for op in graph.ops] == [0, 2, 1, 2]
    assert [op.module for op in graph.ops] == ["conv", "", "conv", ""]
    assert relu.pointwise
    assert not first.pointwise


def test_calls_by_number() -> None:
    graph = record(Block(), spec=SPEC)
    assert graph.call("conv").index == 1
    assert graph.call("conv#0").index == 0
    assert graph.has("conv#1")
    assert not graph.has("conv#2")
    assert not graph.has("unused")
    with pytest.raises(
        UnknownLayer, match="layer 'conv#2' asks for call 2 but 'conv' was called 2 times; use #0 to #1"
    ):
        graph.call("conv#2")
    with pytest.raises(
        UnknownLayer, match="layer 'unused' is a module of the network but its forward was not called"
    ):
        graph.call("unused")
    with pytest.raises(
        UnknownLayer, match=r"layer 'conw' is not a module of the network; did you mean 'conv'\?"
    ):
        graph.call("conw")


def test_second_name_of_a_shared_module() -> None:
    shared = nn.Conv2d(2, 2, 1)
    graph = record(nn.Sequential(OrderedDict(first=shared, second=shared)), spec=SPEC)
    assert graph.aliases == {"second": "first"}
    assert graph.call("second") is graph.call("first#1")


class InPlace(nn.Module):
    """An in-place operation on a view changes its base, and a later reader of the base sees it."""

    def forward(self, x: Tensor) -> Tensor:
        base = torch.zeros_like(x)
        base[:, :, 2:5] = x[:, :, 2:5]
        flat = base.view(-1)
        base.mul_(2)
        return flat + 1


def test_in_place_and_view_aliasing() -> None:
    graph = record(InPlace(), spec=SPEC)
    assert names(graph).count("convscope.write") >= 2
    result = graph.call("").outputs[0]
    assert follow(graph)[result].depends  # the image reached `flat` only through memory shared with `base`
    used = set(graph.ops[-1].inputs)
    written = {value for op in graph.ops if op.name == "convscope.write" for value in op.outputs}
    assert used & written


@dataclass
class Named:
    logits: Tensor


class Containers(nn.Module):
    def forward(self, x: Tensor) -> dict[str, object]:
        return {"a": x * 2, "b": [x + 1, (x - 1,)], "c": Named(x.mean((2, 3))), "d": "text"}


def test_nested_outputs_are_flattened() -> None:
    graph = record(Containers(), spec=SPEC)
    assert graph.outputs("") == ((1, 2, 8, 10),) * 3 + ((1, 2),)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1).reshape(-1, 20, 8))  # type: ignore[no-any-return]


def test_fused_fast_paths_are_off_and_restored() -> None:
    before = torch.backends.mha.get_fastpath_enabled()
    graph = record(Attention(), spec=SPEC)
    assert torch.backends.mha.get_fastpath_enabled() == before
    assert not any(
        "transformer_encoder_layer_fwd" in name or "native_multi_head" in name for name in names(graph)
    )
    assert "layer.layers.0.linear1" in graph.executed


def test_inference_mode_inside_is_seen_through() -> None:
    class Inference(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(10, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.inference_mode():
                return self.head(x)  # type: ignore[no-any-return]

    assert "aten.linear" not in names(record(Inference(), spec=SPEC))


def test_meta_device() -> None:
    with torch.device("meta"):
        net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(192, 10**9, bias=False))
    graph = record(net, spec=SPEC)
    assert graph.outputs("2") == ((1, 10**9),)


def test_nothing_is_left_on_the_network() -> None:
    class Caches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(2)
            self.last: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            self.last = self.norm(x) + torch.rand(1)
            return self.last

    net = Caches().train()
    net.norm.eval()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    random = torch.get_rng_state()
    record(net, spec=SPEC)
    assert net.last is None
    assert (net.training, net.norm.training) == (True, False)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in net.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_network_that_writes_its_parameters_is_copied_whole() -> None:
    class Clips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((2, 2, 1, 1), 5.0))

        def forward(self, x: Tensor) -> Tensor:
            self.weight.data.clamp_(-1, 1)
            return F.conv2d(x, self.weight)

    net = Clips()
    graph = record(net, spec=SPEC)
    assert names(graph)[-1] == "aten.convolution"
    assert (net.weight == 5).all()


def test_activations_are_freed() -> None:
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    class Watch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            nonlocal most
            y = x + 1
            alive.append(weakref.ref(y))
            most = max(most, sum(ref() is not None for ref in alive))
            return y

    graph = record(nn.Sequential(*(Watch() for _ in range(20))), spec=SPEC)
    gc.collect()
    assert most <= 2
    assert all(ref() is None for ref in alive)
    assert len(graph.ops) == 20


def test_a_caught_exception_leaves_the_order_right() -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("no")

    class Falls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Fails(), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.first(x)  # type: ignore[no-any-return]
            except ValueError:
                return self.second(x)  # type: ignore[no-any-return]

    graph = record(nn.Sequential(OrderedDict(falls=Falls())), spec=SPEC)
    assert [call.name for call in graph.calls] == ["falls.second", "falls", ""]
    assert graph.calls[0].parent == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own imports
def test_refusals() -> None:
    with pytest.raises(
        ModelError,
        match=r"the network failed in layer '1' on an example input of shape \[1, 2, 8, 10\] \(Runtime",
    ):
        record(nn.Sequential(nn.ReLU(), nn.Linear(7, 3)), spec=SPEC)
    compiled = torch.compile(nn.ReLU())
    with pytest.raises(ModelError, match=r"module '\(root\)' is compiled by torch.compile"):
        record(compiled, spec=SPEC)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused() -> None:
    scripted = torch.jit.trace(nn.ReLU(), torch.zeros(1))
    with pytest.raises(ModelError, match="module '0' is TorchScript, .*; give the original nn.Module"):
        record(nn.Sequential(scripted), spec=SPEC)
