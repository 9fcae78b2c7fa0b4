"""The answer on shared weights against layers really made, and on figures for which common advice is false."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import convscope
from convscope.answers import locally_connected
from convscope.answers.base import Verdict
from convscope.answers.verdicts import locally_connected as told
from study_records import record

LEARNED: dict[str, Any] = {
    "rows": [
        {"kind": kind, "place": place, "test": 0.5, "train": 0.6, "params": 10}
        for kind in ("standard", "local", "full")
        for place in ("centre", "scattered")
    ],
    "samples": 540,
    "epochs": 5,
    "untied": {"before": 0.0, "away": 0.1, "corner": 0.0, "centre": 0.2},
    "away": torch.rand(28, 28).numpy(),
    "kernels": torch.randn(5, 5, 3, 3).numpy(),
    "shared": torch.randn(3, 3).numpy(),
}


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locally_connected, "_learned", lambda *_: LEARNED)


@pytest.mark.usefixtures("untrained")
def test_three_counts(tmp_path: Path) -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 4, (3, 5), padding=(0, 1)), nn.ReLU(), nn.Conv2d(4, 2, 3, 2, groups=2)
    ).eval()
    made = convscope.ask(
        "locally-connected", module, torch.rand(2, 3, 12, 12), input="3x12x12", quick=True, studies=tmp_path
    )
    first, second = made.tables[0].rows
    assert [value.replace(",", "") for value in first[3:6]] == ["180", str(180 * 100), str(3 * 144 * 4 * 100)]
    assert [value.replace(",", "") for value in second[3:6]] == ["36", str(36 * 16), str(4 * 100 * 2 * 16)]
    assert made.finding("L1").verdict is Verdict.HOLDS  # it never sees half of the image
    assert made.finding("L2").verdict is Verdict.HOLDS
    shift = made.finding("L3")
    assert shift.verdict is Verdict.NOT
    assert shift.figures["layers"] == 1  # that of stride 2 is not tried
    assert shift.figures["apart"] < 1e-12 < 0.1 < shift.figures["least"]
    assert "no study recorded yet" in made.finding("L4").sentence


@pytest.mark.usefixtures("untrained")
def test_where_it_saves_nothing_and_is_invariant(tmp_path: Path) -> None:
    whole = nn.Sequential(nn.Conv2d(1, 2, 6), nn.Flatten()).eval()
    made = convscope.ask(
        "locally-connected", whole, torch.rand(2, 1, 6, 6), input="1x6x6", quick=True, studies=tmp_path
    )
    assert made.finding("L2").verdict is Verdict.NOT  # one position: the three are one
    assert made.finding("L1").verdict is Verdict.NOT
    assert made.finding("L3").when == "no convolution of stride 1 has a map to move"
    conv = nn.Conv2d(1, 2, 3)
    nn.init.zeros_(conv.weight)
    still = nn.Sequential(conv, nn.Flatten()).eval()
    made = convscope.ask(
        "locally-connected", still, torch.rand(2, 1, 6, 6), input="1x6x6", quick=True, studies=tmp_path
    )
    assert made.finding("L3").verdict is Verdict.HOLDS


@pytest.mark.parametrize(
    ("centre", "scattered", "verdict"),
    [
        (0.1, -0.1, Verdict.HOLDS),
        (-0.1, 0.1, Verdict.NOT),
        (-0.1, -0.1, Verdict.WHEN),
        (0.0, 0.0, Verdict.OPEN),
    ],
)
def test_nuances_by_record(tmp_path: Path, centre: float, scattered: float, verdict: Verdict) -> None:
    base = [0.80, 0.82, 0.81]
    gains = {"centre": centre, "scattered": scattered}
    scores = {("standard", place): {"test": base} for place in gains}
    wobble = [0.001, -0.001, 0.0]
    scores |= {
        ("local", place): {"test": [a + gain + w for a, w in zip(base, wobble, strict=True)]}
        for place, gain in gains.items()
    }
    factors = {"convolution": ["standard", "local"], "place": ["centre", "scattered"]}
    folder = record(tmp_path / "records", "sharing", factors, scores)
    made = told._nuances(SimpleNamespace(studies=folder), LEARNED)  # type: ignore[arg-type]
    assert made.verdict is verdict
    assert made.figures["points"] == pytest.approx(100 * centre, abs=0.01)
    assert made.figures["moved_points"] == pytest.approx(100 * scattered, abs=0.01)
    assert "10.0 % away from their mean" in made.sentence


def test_kernels_part_when_they_are_untied(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real trainings, a few steps long."""
    monkeypatch.setattr(locally_connected, "_KINDS", ("standard",))
    monkeypatch.setattr(locally_connected, "Training", lambda **given: Training(**{**given, "epochs": 0.3}))
    from convscope.studies.settings import Training

    made = locally_connected._learned(True, 0)
    assert made["untied"]["before"] < 1e-6  # all equal to begin with
    assert 0 < made["untied"]["away"] < 1
    assert made["kernels"].shape == (5, 5, 3, 3)
    assert {row["params"] for row in made["rows"]} == {4278}
