"""The answer on padding against torch's own shapes, and on networks where the folklore is false."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

import convscope
import convscope.errors
from convscope.answers.base import Answer, Verdict


@pytest.fixture(scope="module")
def fashion() -> Answer:
    return convscope.ask("padding", convscope.load("fashion"), quick=True)


def test_shapes_are_torchs(fashion: Answer) -> None:
    rows = {row[0]: row for row in fashion.tables[0].rows}
    net = convscope.load("fashion").module
    x = torch.zeros(1, 1, 28, 28)
    with torch.no_grad():
        for name, part in net.named_modules():
            if isinstance(part, nn.Conv2d):
                before = {"block1": 28, "block2": 14, "block3": 7}[name.split(".")[0]]
                y = functional.conv2d(torch.zeros(1, part.in_channels, before, before), part.weight)
                assert rows[name][5] == "x".join(map(str, y.shape[2:]))  # without padding
                assert rows[name][4] == f"{before}x{before}"
    assert net(x).shape == (1, 10)


def test_verdicts_and_numbers(fashion: Answer) -> None:
    verdicts = {finding.claim.id: finding.verdict for finding in fashion.findings}
    assert verdicts["P1"] is Verdict.WHEN
    assert verdicts["P2"] is Verdict.HOLDS
    assert verdicts["P3"] is Verdict.WHEN
    assert verdicts["P4"] is Verdict.WHEN
    figures = fashion.finding("P1").figures
    assert (figures["padded"], figures["keeping"], figures["kept"]) == (
        6,
        6,
        5,
    )  # one padding for each of 3, 5, ..., 11
    assert fashion.finding("P4").figures["before"] == pytest.approx(1 / 9)
    assert fashion.finding("P4").figures["after"] == pytest.approx(4 / 9)
    # 28 - 2 - 2 = 24, pooled 12, 10, 8, pooled 4, 2, and the next kernel does not fit
    assert "gets no further than block3.conv1, where 2 x 2 is left" in fashion.statement


def test_text_follows_the_network() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 4, 5, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(392, 3)
    )
    answer = convscope.ask("padding", module.eval(), torch.randn(8, 3, 18, 18), input="3x18x18", quick=True)
    assert answer.finding("P1").verdict is Verdict.NOT  # its one padded layer shrinks the map all the same
    assert answer.finding("P1").figures["keeping"] == 0
    assert answer.statement.startswith("1 of 2 convolutions of Sequential are padded and 0 of these keep")
    bare = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    answer = convscope.ask("padding", bare.eval(), torch.randn(4, 3, 8, 8), input="3x8x8", quick=True)
    assert "The network pads nothing" in answer.finding("P3").sentence
    assert answer.statement.endswith("No position depends on padding.")


def test_a_network_without_convolutions_is_refused() -> None:
    with pytest.raises(convscope.errors.BadInput, match=r"has no nn\.Conv2d"):
        convscope.ask("padding", nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), input="3x2x2")
