"""Networks run for an answer: what lies behind the layers asked for may fail, what lies before may not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import convscope
from convscope.answers import ask as verb
from convscope.answers.questions import QUESTIONS
from convscope.answers.running import captured, outputs
from convscope.errors import ModelError
from convscope.models import Net


@pytest.fixture
def net() -> Net:
    """Takes images of 8x8, because of its last layer."""
    module = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(128, 3)).eval()
    return convscope.load(module, input="1x8x8")


def test_layers_before_a_failure_are_captured(net: Net) -> None:
    x = torch.rand(2, 1, 12, 12)
    taken, given = captured(net, x, ["0"], torch.float32)["0"]
    assert torch.equal(taken, x)
    assert torch.allclose(given, net.module[0](x))  # type: ignore[index]
    with pytest.raises(
        ModelError, match=r"Sequential fails on input of shape \[2, 1, 12, 12\] \(RuntimeError: .*\); give"
    ):
        captured(net, x, ["0", "2"], torch.float32)
    with pytest.raises(ModelError, match=r"fails on input of shape \[2, 1, 12, 12\]"):
        outputs(net, x)


def test_what_cannot_be_asked_is_written_down(
    net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(asked: object) -> None:
        raise ModelError("it has no such layer")

    monkeypatch.setattr(verb, "QUESTIONS", {name: QUESTIONS[name] for name in ("padding", "pooling")})
    monkeypatch.setattr("convscope.answers.pooling.answer", refuse)
    told = convscope.ask("all", net, quick=True, out=tmp_path)
    assert [one.question for one in told] == ["padding"]
    kept = json.loads((tmp_path / "answers" / "refused.json").read_text())
    assert kept == {QUESTIONS["pooling"].title: "it has no such layer"}
