"""A report with answers: the page of answers stands beside the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

import convscope
from convscope import tour
from convscope.answers import ask as verb
from convscope.answers.questions import QUESTIONS


def test_a_report_asks_every_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "QUESTIONS", {"padding": QUESTIONS["padding"]})
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    told: list[str] = []
    settings: dict[str, Any] = {"channels": 1, "steps": 2, "photo": None, "measures": False, "changes": False}
    settings |= {"progress": lambda event: told.append(event["layer"])}
    made = convscope.report(module.eval(), tmp_path, input="3x24x24", **settings)
    assert made.page == tmp_path / "index.html"
    assert '<a href="answers.html">Answers</a>' in made.page.read_text()
    assert "1 of 1 convolutions of Sequential are padded" in (tmp_path / "answers.html").read_text()
    assert "measuring padding: shapes" in told


def test_whom_a_report_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded default stands for none: each question takes the network that suits it."""
    asked: list[tuple[Any, Any]] = []

    def ask(question: str, net: Any, data: Any, **settings: Any) -> None:
        asked.append((net, data))
        for layer in ("features: steps", "features: kernels", "padding: shapes"):
            settings["progress"]({"layer": layer})

    written: list[Path] = []
    true = tour.site.write
    monkeypatch.setattr(tour, "ask", ask)
    few: dict[str, Any] = {
        "channels": 1,
        "steps": 1,
        "size": 32,
        "photo": None,
        "measures": False,
        "changes": False,
    }
    default, other = convscope.load(), convscope.load("fashion")
    convscope.report(default, tmp_path / "a", layers=["conv_stem"], **few)
    monkeypatch.setattr(tour.site, "write", lambda out, **known: written.append(out) or true(out, **known))
    convscope.report(other, tmp_path / "b", layers=["block1.conv1"], **few)
    assert asked == [(None, None), (other, None)]
    assert len(written) == 3  # with the pictures, before the second question, and in the end
