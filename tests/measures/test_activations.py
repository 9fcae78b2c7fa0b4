"""Memory of activations, byte by byte in small networks; and what training keeps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convscope import measure
from convscope.graph import record
from convscope.measures.activations import live_bytes
from convscope.measures.memory import peak_memory
from convscope.measures.profile import Profile
from convscope.measures.training import saved_bytes

UNIT = 4 * 100  # bytes of one channel of 100 positions


def profile(net: nn.Module, channels: int = 1) -> Profile:
    return measure(net, input=torch.rand(1, channels, 100), fields=False)


def test_a_chain_holds_the_input_and_two_neighbours() -> None:
    p = profile(nn.Sequential(nn.Conv1d(1, 2, 1), nn.Sigmoid(), nn.Conv1d(2, 4, 1), nn.Sigmoid()))
    # the caller holds the input all the time; each layer its own input and output
    assert [row.peak_bytes for row in p.layers] == [3 * UNIT, 5 * UNIT, 7 * UNIT, 9 * UNIT]
    assert [row.activation_bytes for row in p.layers] == [2 * UNIT, 2 * UNIT, 4 * UNIT, 4 * UNIT]
    assert (p.totals.activation_bytes, p.totals.peak_layer) == (9 * UNIT, "3")


def test_views_and_in_place_operations_make_no_memory() -> None:
    net = nn.Sequential(nn.Conv1d(1, 4, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Unflatten(1, (4, 100)))
    p = profile(net)
    assert [row.activation_bytes for row in p.layers] == [4 * UNIT, 0, 0, 0]
    assert {row.peak_bytes for row in p.layers} == {5 * UNIT}


def test_a_view_keeps_all_of_its_memory() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = (x * 2).repeat(1, 8, 1)[:, :1]  # one of eight channels is used, all eight stay
            return y + 1

    graph = record(Net(), example=torch.rand(1, 1, 100))
    assert live_bytes(graph)[-1] == (1 + 8 + 1) * UNIT


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(2, 2, 1), nn.Conv1d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.a(x))
        return self.b(y) + x


def test_a_residual_branch_holds_what_it_adds() -> None:
    p = profile(nn.Sequential(nn.Conv1d(1, 2, 1), Residual()))
    # input 1; x 2; a makes 2 (5), tanh 2 more (7), a's own are let go; b makes 2 (7); the sum 2 (9)
    graph = p.graph
    assert graph is not None
    assert [size // UNIT for size in live_bytes(graph)] == [3, 5, 7, 7, 9]
    assert p.totals.activation_bytes == 9 * UNIT
    assert p.totals.peak_layer == "1"


def test_what_python_holds_stays_alive() -> None:
    class Hoarder(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            kept = [x + 1, x + 2]
            y = x * 3
            del kept[0]
            return y * 4

    graph = record(Hoarder(), example=torch.rand(1, 1, 100))
    assert [size // UNIT for size in live_bytes(graph)] == [2, 3, 4, 4]


def test_an_expanded_tensor_is_as_small_as_it_is() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.expand(1, 64, 100)

    assert profile(Net()).totals.activation_bytes == UNIT


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64)),
        nn.Sequential(nn.Linear(64, 64), nn.ReLU(inplace=True), nn.Linear(64, 8), nn.Softmax(-1)),
        nn.TransformerEncoderLayer(64, 4, 128, batch_first=True),
        nn.Sequential(nn.Unflatten(1, (4, 4)), nn.AvgPool2d((1, 2)), nn.Sigmoid(), nn.AdaptiveAvgPool2d(1)),
    ],
)
def test_the_allocator_measures_the_same(net: nn.Module) -> None:
    """Where operations need no workspace: torch's profiler sees every allocation."""
    x = torch.rand(32, 16, 64)
    p = measure(net.eval(), input=x, fields=False, training=False)
    assert p.totals.activation_bytes - 4 * x.numel() == peak_memory(net, example=x).inference


def test_half_precision_takes_half() -> None:
    net = nn.Sequential(nn.Conv1d(1, 2, 1), nn.ReLU()).bfloat16()
    p = measure(net, input=torch.rand(1, 1, 100, dtype=torch.bfloat16), fields=False)
    assert p.totals.activation_bytes == 5 * UNIT // 2
    assert p.totals.weight_bytes == 2 * 4
    assert p.dtype == "bfloat16"


def test_the_meta_device_gives_the_same() -> None:
    net = nn.Sequential(nn.Conv1d(1, 2, 1), Residual(), nn.MaxPool1d(2), nn.Flatten())
    here = profile(net).to_dict()
    there = measure(net.to("meta"), input=torch.rand(1, 1, 100, device="meta"), fields=False).to_dict()
    assert here | {"device": "meta"} == there


# ---------------------------------------------------------------- training


def test_training_keeps_what_gradients_need() -> None:
    net = nn.Sequential(
        nn.Conv1d(1, 2, 1), nn.Sigmoid(), nn.Conv1d(2, 4, 1), nn.ReLU(inplace=True), nn.Flatten()
    )
    p = profile(net)
    # the input; the sigmoid's result, which the convolution shares; the in-place result of the second convolution
    assert [row.training_bytes for row in p.layers] == [UNIT, 2 * UNIT, 0, 4 * UNIT, 0]
    assert p.totals.training_bytes == 7 * UNIT


def test_training_counts_functional_rows() -> None:
    p = profile(Residual(), 2)
    assert [(row.name, row.training_bytes) for row in p.layers] == [("a", 2 * UNIT), ("b", 0), ("", 2 * UNIT)]


def test_training_does_not_depend_on_the_callers_flags() -> None:
    net = Residual()
    wanted = saved_bytes(net, (torch.rand(1, 2, 100),))
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    with torch.inference_mode():
        assert saved_bytes(net, (torch.rand(1, 2, 100),)) == wanted
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_pass_that_refuses_gradients_is_a_note() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                raise ValueError("inference only")
            return F.relu(x)

    p = profile(Net())
    assert p.totals.training_bytes is None
    assert p.layers[0].training_bytes is None
    (note,) = p.notes
    assert note == (
        "what training keeps is not known: the network cannot be run with gradients "
        "(ValueError: inference only); ask for the other measures only"
    )
    assert note in str(p)


def test_the_graph_tells_memories_apart() -> None:
    graph = record(nn.Sequential(nn.Conv1d(1, 2, 1), nn.ReLU(inplace=True)), example=torch.rand(1, 1, 100))
    made = [memory for memory in graph.memories if memory.source == "op"]
    assert [(memory.size, memory.born, memory.died) for memory in made] == [(2 * UNIT, 0, 2)]
    assert {graph.values[op.outputs[0]].memory for op in graph.ops} == {graph.memories.index(made[0])}


@pytest.mark.parametrize("access", ["data", "detach"])
def test_a_handle_made_out_of_sight_is_the_same_memory(access: str) -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            other = y.data if access == "data" else y.detach()
            return other + y

    graph = record(Net(), example=torch.rand(1, 1, 100))
    left, right = (graph.ops[-1].tensors[name] for name in ("self", "other"))
    assert isinstance(left, int)
    assert isinstance(right, int)
    assert graph.values[left].memory == graph.values[right].memory
    assert max(live_bytes(graph)) == 3 * UNIT
