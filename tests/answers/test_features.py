"""The answer on features against frequencies and patches that are known, and on figures for which common advice is false."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import convscope
from convscope.answers import features
from convscope.answers.base import Verdict
from convscope.answers.features import _high, _identified, _patches, _whitened
from convscope.answers.layers import convolutions, profile_of
from convscope.answers.verdicts import features as told


def stripes() -> nn.Conv2d:
    """Four filters that like edges of four directions."""
    conv = nn.Conv2d(1, 4, 3, bias=False)
    across = torch.tensor([[1.0, 0.0, -1.0]] * 3)
    slant = torch.tensor([[0.0, 1.0, 1.0], [-1.0, 0.0, 1.0], [-1.0, -1.0, 0.0]])
    with torch.no_grad():
        conv.weight.copy_(torch.stack([across, across.T, slant, slant.flip(1)])[:, None])
    return conv


def test_fine_detail_is_what_lies_above_a_quarter_cycle() -> None:
    columns = torch.arange(64.0).expand(1, 1, 64, 64)
    for cycles, high in ((4, 0.0), (12, 0.0), (20, 1.0), (28, 1.0)):
        wave = torch.cos(2 * math.pi * cycles * columns / 64)
        assert float(_high(wave)) == pytest.approx(high, abs=1e-6)
    mixed = torch.cos(2 * math.pi * 4 * columns / 64) + torch.cos(2 * math.pi * 20 * columns / 64)
    assert float(_high(mixed + 7)) == pytest.approx(0.5)


def test_filters_know_their_own_patches() -> None:
    conv = stripes()
    net = convscope.load(conv.eval(), input="1x24x24")
    patterns = torch.zeros(4, 1, 24, 24)
    with torch.no_grad():
        for place in range(4):
            patterns[place, 0, 10:13, 5:8] = conv.weight[place, 0]
        row = convolutions(profile_of(net))[0]
        kernel = _whitened(conv.weight.flatten(1))
        own = _whitened(_patches(conv, patterns, row, [0, 1, 2, 3], each=True))
        best = _whitened(_patches(conv, patterns, row, [0, 1, 2, 3], each=False))
    assert _identified(kernel, own) == {"right": 4, "of": 4, "similar": pytest.approx(1)}
    assert _identified(kernel, best)["right"] == 4
    assert _identified(kernel, own.roll(1, 0))["right"] == 0


def test_the_whole_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_BUDGETS", (1, 48))
    monkeypatch.setattr(features, "_SIZE", 32)
    module = nn.Sequential(stripes(), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    images = torch.rand(6, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    made = convscope.ask("features", module, images, input="1x24x24", quick=True)
    assert made.finding("F3").figures["filters"] == 4
    assert made.finding("F3").figures["picture"] == 4  # edges are told apart
    assert made.finding("F1").figures["grew"] == made.finding("F1").figures["runs"]
    assert {row[0] for row in made.tables[1].rows} == {
        *("none", "blur", "total variation", "moves", "spectrum", "all", "images"),
    }
    assert [picture.name for picture in made.pictures] == ["steps", "regularizers", "kernels"]


def climbed(**rows: float) -> dict[str, Any]:
    run = {"start": "noise", "status": "budget", "first": 0.0, "last": 1.0, "whole": 1.0, "late": 0.01}
    return {"layer": "conv", "budget": 128, "rows": [run, {**run, **rows}]}


def test_ascent_by_the_figures() -> None:
    assert told._ascent(climbed()).verdict is Verdict.HOLDS
    assert (
        told._ascent(climbed(late=0.4)).when
        == "the budget of steps lasts: of 2 runs 1 no longer grew after 128"
    )
    assert told._ascent(climbed(last=-1.0)).verdict is Verdict.NOT


def regularized(none: float, each: float, every: float, after: float) -> dict[str, Any]:
    rows = [
        {"way": way, "high": {"value": high}, "kept": kept}
        for way, high, kept in (
            ("none", none, 0.3),
            ("blur", each, 0.3),
            ("moves", 0.2, 0.8),
            ("all", every, after),
        )
    ]
    return {"layer": "conv", "channels": [0, 1], "rows": rows, "natural": {"value": 0.1}}


def test_regularizers_by_the_figures() -> None:
    assert told._regularized(regularized(0.6, 0.3, 0.1, 0.9)).verdict is Verdict.HOLDS
    assert (
        told._regularized(regularized(0.6, 0.7, 0.1, 0.9)).when
        == "smooth is meant, and not of every regularizer alone"
    )
    assert (
        told._regularized(regularized(0.15, 0.3, 0.1, 0.9)).verdict is Verdict.NOT
    )  # no noise to begin with
    assert told._regularized(regularized(0.6, 0.3, 0.7, 0.9)).verdict is Verdict.NOT


def test_agreement_by_the_figures() -> None:
    def compared(picture: int, photograph: int, both: int) -> Verdict:
        pairs = {"picture": picture, "photograph": photograph, "both": both}
        told_ = {name: {"right": right, "of": 8, "similar": 0.5} for name, right in pairs.items()}
        return told._alike({"layer": "conv", "source": "images", "filters": 8, "pairs": told_}).verdict

    assert compared(8, 8, 8) is Verdict.HOLDS
    assert compared(8, 1, 1) is Verdict.WHEN
    assert compared(1, 1, 8) is Verdict.NOT
    assert told._alike({"layer": "conv", "source": "images", "filters": 0}).verdict is Verdict.OPEN
