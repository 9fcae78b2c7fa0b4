"""What an atlas shows when nobody says, on tiny networks and on published ones."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convscope._torchvision import torchvision
from convscope.errors import RequestError, UnknownLayer
from convscope.features.choose import choose, convolutions, logits, trunk
from convscope.features.look import look
from convscope.features.visualize import visualize
from convscope.graph import Graph, layout, record
from convscope.models import InputSpec, Net


def graph_of(source: str, size: int = 224) -> Graph:
    """On the meta device: structure only."""
    torchvision()
    scheme, _, name = source.partition(":")
    with torch.device("meta"):
        if scheme == "timm":
            module = importlib.import_module("timm").create_model(name)
        else:
            options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
            module = getattr(torchvision().models, name)(**options)
    return record(module.eval(), spec=InputSpec((3, size, size)))


def test_the_tiny_net(tiny: Net) -> None:
    graph = record(tiny)
    chosen, skipped = choose(graph)
    assert skipped == []
    roles = {item.layer: item.role for item in chosen}
    assert roles["fc"] == "logits"
    assert roles["relu3"] == "stage"
    assert set(roles.values()) == {"stage", "convolution", "logits"}
    orders = [graph.call(item.layer).order for item in chosen]
    assert orders == sorted(orders)
    assert [call.name for call in convolutions(graph)] == ["conv1", "conv2", "conv3"]
    assert logits(graph) == "fc"
    assert all("pool" not in call.name and "gap" not in call.name for call in trunk(graph))
    counts = {item.layer: len(item.channels) for item in chosen}
    assert counts["fc"] == 8  # as many classes as there are, at most 16
    assert all(len(set(item.channels)) == len(item.channels) for item in chosen)


def test_all_is_every_channel_of_every_convolution(tiny: Net) -> None:
    chosen, _ = choose(record(tiny), "all")
    assert [(item.layer, len(item.channels)) for item in chosen] == [
        ("conv1", 12),
        ("conv2", 24),
        ("conv3", 32),
    ]
    assert [len(item.channels) for item in choose(record(tiny), "all", 3)[0]] == [3, 3, 3]


def test_channels_by_number_list_and_all(tiny: Net) -> None:
    graph = record(tiny)
    assert choose(graph, ["conv1"], 4)[0][0].channels == (0, 3, 6, 9)
    assert choose(graph, ["conv1"], 99)[0][0].channels == tuple(range(12))
    assert choose(graph, ["conv1"], "all")[0][0].channels == tuple(range(12))
    assert choose(graph, ["conv1"], [5, 2, 5])[0][0].channels == (5, 2)
    assert choose(graph, ["conv1"])[0][0].channels == (0, 1, 3, 4, 6, 7, 9, 10)


def test_channels_a_layer_lacks_are_said(tiny: Net) -> None:
    chosen, skipped = choose(record(tiny), ["conv1", "conv2"], [3, 20])
    assert [(item.layer, item.channels) for item in chosen] == [("conv1", (3,)), ("conv2", (3, 20))]
    assert skipped == [{"layer": "conv1", "reason": "it has 12 channels, 0 to 11: none of [20]"}]


def test_names_globs_and_roles(tiny: Net) -> None:
    chosen, _ = choose(record(tiny), ["fc", "relu*"], 1)
    assert [(item.layer, item.role) for item in chosen] == [
        ("relu1", "chosen"), ("relu2", "chosen"), ("relu3", "chosen"), ("fc", "logits"),
    ]  # fmt: skip


ERRORS: list[tuple[tuple[Any, ...], type[Exception], str]] = [
    (("relu9",), UnknownLayer, "did you mean"),
    ((["conv1"], 0), RequestError, "channels=0 must be at least 1"),
    ((["conv1"], "many"), RequestError, "channels='many' must be None, 'all', a number, or a list"),
    ((["conv1"], True), RequestError, "channels=True must be"),
    ((["conv1"], []), RequestError, r"channels=\[\] must hold at least one channel"),
    ((["conv1"], [-1]), RequestError, r"channels=\[-1\] must hold"),
    ((["conv1"], ["a"]), RequestError, r"channels=\['a'\] must hold"),
    (
        (["conv1"], [12]),
        RequestError,
        r"leaves nothing to show \(conv1: it has 12 channels, 0 to 11: none of \[12\]\)",
    ),
    (([],), RequestError, "leaves nothing to show"),
]


@pytest.mark.parametrize(("arguments", "kind", "message"), ERRORS)
def test_errors_name_what_is_wrong(tiny: Net, arguments: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        choose(record(tiny), *arguments)


def test_layers_without_channels_are_listed(make_net: Callable[..., Net]) -> None:
    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> None:
            return None

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.flat, self.none = nn.Conv2d(3, 4, 3), nn.Flatten(), Nothing()
            self.fc = nn.Linear(4 * 36, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            self.none(x)
            out: Tensor = self.fc(self.flat(x))
            return out

    graph = record(make_net(Model(), (3, 8, 8)))
    chosen, skipped = choose(graph, "*")
    assert [item.layer for item in chosen] == ["conv", "fc"]
    assert {item["layer"]: item["reason"] for item in skipped} == {
        "flat": "its output of shape [1, 144] has no axis of channels"
        if layout(graph, "flat").channel_axis is None
        else "",
        "none": "it returns no tensor",
    }


@pytest.mark.parametrize("end", [nn.Softmax(1), nn.LogSoftmax(1), lambda x: x.softmax(1), lambda x: x])
def test_logits_are_before_a_softmax(make_net: Callable[..., Net], end: Callable[[Tensor], Tensor]) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
            self.end = end

        def forward(self, x: Tensor) -> Tensor:
            return self.end(self.fc(self.conv(x).mean((2, 3))))

    net = make_net(Model(), (3, 8, 8), labels=("cat", "dog"))
    assert logits(record(net)) == "fc"
    found = look(net, torch.rand(3, 8, 8), pictures_of=False)
    with torch.no_grad():
        scores = net.module.get_submodule("fc")(
            net.module.get_submodule("conv")(found.image[None]).mean((2, 3))
        )[0]
    assert [p for _, _, p in found.top] == pytest.approx(
        sorted(scores.softmax(0).tolist(), reverse=True), abs=1e-5
    )
    assert [unit.label for unit in visualize(net, "fc", [0, 1], steps=1).units] == ["cat", "dog"]


def test_a_network_without_convolutions(make_net: Callable[..., Net]) -> None:
    graph = record(make_net(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), (3, 8, 8)))
    assert [(item.layer, item.role) for item in choose(graph)[0]] == [("1", "logits")]
    with pytest.raises(RequestError, match="it has no convolution"):
        choose(graph, "all")


PUBLISHED = {
    "torchvision:resnet18": ["layer1.1", "layer2.1", "layer3.1", "layer4.1", "fc"],
    "torchvision:vgg16": [
        "features.3",
        "features.8",
        "features.15",
        "features.22",
        "features.29",
        "classifier.6",
    ],
    "torchvision:densenet121": ["features.denseblock1", "classifier"],
    "torchvision:googlenet": ["inception3b", "inception4e", "inception5b", "fc"],
    "torchvision:mobilenet_v2": ["features.1", "classifier.1"],
    "timm:tf_efficientnet_lite0": ["blocks.0.0", "blocks.2.1", "blocks.6.0", "classifier"],
    "timm:convnext_tiny": ["stages.0", "stages.1", "stages.3", "head.fc"],
    "timm:vit_tiny_patch16_224": ["blocks.1", "blocks.11", "head"],
}


@pytest.mark.parametrize("source", PUBLISHED)
def test_published_networks(source: str) -> None:
    graph = graph_of(source)
    chosen, skipped = choose(graph)
    names = [item.layer for item in chosen]
    missing = [name for name in PUBLISHED[source] if name not in names]
    assert not missing, f"{missing} not in {names}"
    assert skipped == []
    assert chosen[-1].role == "logits"
    assert len([item for item in chosen if item.role == "stage"]) <= 9
    assert len(chosen) <= 14
    assert sum(len(item.channels) for item in chosen) >= 60
    assert len(names) == len(set(names))
