"""The answer on fully-connected layers against torch's own linear algebra, and where the folklore is false."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import convscope
from convscope.answers import fully_connected
from convscope.answers.asked import Seen
from convscope.answers.base import Answer, Verdict
from convscope.answers.drawing import png
from convscope.answers.verdicts import fully_connected as told
from convscope.data import images


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Answer:
    return convscope.ask("fully-connected", quick=True, studies=tmp_path_factory.mktemp("none"))


def test_the_equality_is_algebra(fashion: Answer) -> None:
    net = convscope.load("fashion")
    linear = net.module.get_submodule("head.fc1")
    assert isinstance(linear, nn.Linear)
    x = torch.randn(2, 128, 3, 3)
    y = functional.conv2d(x, linear.weight.view(192, 128, 3, 3), linear.bias)
    torch.testing.assert_close(y.flatten(1), linear(x.flatten(1)), atol=1e-5, rtol=1e-5)
    finding = fashion.finding("C1")
    assert (
        finding.verdict_text == "holds when its input is a map of one position; head.fc1 is a 3x3 convolution"
    )
    assert finding.figures["before"] == finding.figures["after"] == 192 * 1152 + 192 + 10 * 192 + 10
    assert finding.figures["error"] < 1e-5


def test_the_map_follows_the_object_and_parameters_stay(fashion: Answer) -> None:
    assert fashion.finding("C2").verdict is Verdict.HOLDS
    assert fashion.finding("C2").figures["map"] == [
        5,
        5,
    ]  # (56 - 28) / 8 + 1 would be 4.5: pooling rounds down thrice
    speed = fashion.finding("C3")
    assert speed.figures["before"] == speed.figures["after"] == 482_538
    assert speed.figures["windows"] == 25
    assert "no study recorded yet" in speed.sentence
    assert "map of 5 x 5 scores" in fashion.statement
    assert fashion.pictures[0].image.shape[0] == 168


def test_a_pooled_head_is_all_1x1() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    ).eval()
    answer = convscope.ask("fully-connected", module, torch.randn(4, 3, 16, 16), input="3x16x16", quick=True)
    assert answer.finding("C1").verdict is Verdict.HOLDS
    assert "(3 1x1)" in answer.statement


def test_a_network_without_such_a_head_is_replaced_and_said() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1))
    answer = convscope.ask("fully-connected", module, input="1x28x28", quick=True)
    assert "fashion was converted instead" in answer.notes[0]


def test_verdicts_follow_the_figures() -> None:
    layer = {"layer": "fc", "neurons": 4, "filters": 4, "inputs": 3, "kernel": [1, 1], "params": [16, 16]}
    counts: dict[str, Any] = {"net": "n", "layers": [layer], "error": 0.0, "images": 4, "whole": [100, 100]}
    assert told._is_convolution(counts).verdict is Verdict.HOLDS
    assert told._is_convolution(counts | {"error": 0.1}).verdict is Verdict.NOT
    places: dict[str, Any] = {
        "images": 4,
        "map": [5, 5],
        "alone": "",
        "hits": {"value": 0.3, "low": 0.2, "high": 0.4},
    }
    assert told._keeps(places).verdict is Verdict.NOT
    assert told._keeps(places | {"hits": {"value": 0.4, "low": 0.3, "high": 0.5}}).verdict is Verdict.WHEN
    assert told._keeps(places | {"hits": None}).verdict is Verdict.OPEN
    asked: Any = SimpleNamespace(studies=None)
    slow = {"windows": 4, "size": [8, 8], "times": {"median": 0.9, "low": 0.8, "high": 1.0}}
    assert told._reduces(asked, counts, slow).verdict is Verdict.NOT
    assert told._reduces(asked, counts | {"whole": [100, 50]}, {"windows": 0}).verdict is Verdict.HOLDS


def test_a_photograph_is_shown_in_grey_where_the_network_sees_grey(tmp_path: Path) -> None:
    picture = np.zeros((90, 120, 3), np.uint8)
    picture[:, :60] = (255, 0, 0)
    (tmp_path / "photo.png").write_bytes(png(picture))
    net = convscope.load("fashion")
    given: Any = images(tmp_path / "photo.png")
    asked: Any = SimpleNamespace(data=given)
    made = convscope.rewrite(net, "convolutionalize").net
    shown = fully_connected._map(asked, net, made, Seen(torch.zeros(1, 1, 28, 28), None, ""), True)
    assert shown["name"] == "photo.png"
    assert shown["photo"].shape == (1, 56, 56)
    assert float(shown["photo"][0, 28, 5]) > 0.2 > float(shown["photo"][0, 28, 50])
    assert shown["map"] == [5, 5]
