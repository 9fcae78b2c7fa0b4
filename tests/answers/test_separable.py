"""The answer on separable convolutions against the closed formula, and on layers where the folklore is false."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import convscope
import convscope.data
from convscope.answers import separable, tuning
from convscope.answers.asked import Seen
from convscope.answers.base import Answer, Verdict
from convscope.answers.verdicts import separable as told

CONVERTED = {
    "net": "fashion",
    "images": 400,
    "source": "clothes",
    "before": {"value": 0.93, "low": 0.9, "high": 0.95},
    "rows": [
        {
            "rank": 1,
            "accuracy": {"value": 0.1, "low": 0.05, "high": 0.15},
            "difference": {"value": -0.8, "low": -0.9, "high": -0.7},
            "macs": 0.13,
            "params": 0.5,
            "layers": 6,
            "tuned": {"value": 0.7, "low": 0.6, "high": 0.8},
            "tuned_difference": {"value": -0.2, "low": -0.3, "high": -0.1},
            "reason": "",
        }
    ],
    "own": {
        "accuracy": {"value": 0.93, "low": 0.9, "high": 0.95},
        "difference": {"value": 0.0, "low": 0.0, "high": 0.0},
        "macs": 1.0,
        "params": 1.0,
        "tuned": {"value": 0.91, "low": 0.9, "high": 0.95},
        "tuned_difference": {"value": -0.02, "low": -0.1, "high": 0.1},
        "reason": "",
    },
    "learned": 450,
}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is timed or converted."""
    times = {
        "rows": [
            {"layer": "0", "time": {"median": 0.5, "low": 0.4, "high": 0.6}, "macs": 0.12, "full": 0.001}
        ]
    }
    monkeypatch.setattr(separable, "_times", lambda rows, quick: times)
    monkeypatch.setattr(separable, "_converted", lambda asked, net, own: CONVERTED)


def ask(module: nn.Module, size: str) -> Answer:
    return convscope.ask("separable", module.eval(), input=size, quick=True)


def test_counts_are_the_formula(quick: None, tmp_path: Path) -> None:
    answer = convscope.ask("separable", convscope.load("fashion"), quick=True, studies=tmp_path)
    rows = {row[0]: row for row in answer.tables[1].rows}
    for name, part in convscope.load("fashion").module.named_modules():
        if isinstance(part, nn.Conv2d):
            expected = 1 / part.out_channels + 1 / 9
            assert float(rows[name][3]) == pytest.approx(expected, abs=6e-4)
            assert float(rows[name][5]) == pytest.approx(expected, abs=6e-4)  # without biases
    finding = answer.finding("D2")
    assert (finding.verdict, finding.figures["layers"]) == (Verdict.HOLDS, 6)
    assert finding.figures["off"] == pytest.approx(0, abs=1e-12)
    assert answer.finding("D4").verdict is Verdict.OPEN
    assert (
        "fashion went from 93.0 % to 10.0 % on 400 images, at 13 % of its MACs; fine-tuned it has 70.0 %, itself fine-tuned "
        "alike 91.0 %." in answer.finding("D4").sentence
    )
    table = answer.tables[2]
    assert [row[0] for row in table.rows] == ["as it is", "1"]
    assert table.rows[1][3].startswith("10.0 %")
    assert table.rows[1][5].startswith("70.0 %")


def test_without_fine_tuning_the_reason_is_told() -> None:
    row = CONVERTED["rows"][0] | {"tuned": None, "reason": "8 images are too few to train on"}
    net, where = convscope.load("fashion"), {"kinds": {}, "params": 1, "macs": 1}
    converted = CONVERTED | {
        "rows": [row],
        "own": CONVERTED["own"] | {"tuned": None, "reason": row["reason"]},
    }
    table = told.tables(net, where, {"rows": []}, {"rows": []}, converted)[2]
    assert table.rows[1][5] == "8 images are too few to train on"


def test_parts_of_a_mobile_network(quick: None) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.Conv2d(8, 8, 5, 1, 2, groups=8, bias=False),
        nn.Conv2d(8, 16, 1, bias=False),
    )
    answer = ask(module, "3x32x32")
    assert answer.finding("D1").verdict is Verdict.HOLDS
    assert answer.finding("D1").figures["positions"] == 25
    pair = answer.tables[1].rows[1]
    assert pair[0] == "1 + 2"
    assert float(pair[3]) == pytest.approx(1 / 16 + 1 / 25, abs=6e-4)
    assert "its 1 pairs save" in answer.statement
    assert answer.finding("D2").verdict is Verdict.HOLDS


def test_where_the_folklore_is_false(quick: None) -> None:
    grouped = ask(nn.Sequential(nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 3)), "8x16x16")
    assert grouped.finding("D2").verdict is Verdict.WHEN  # the first was half as dear as the formula thinks
    only = ask(nn.Sequential(nn.Conv2d(8, 8, 3, groups=2)), "8x16x16")
    assert only.finding("D2").verdict is Verdict.NOT
    assert only.finding("D2").figures["off"] == pytest.approx(1.0)
    wide = ask(nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 8, 1)), "4x16x16")
    assert wide.finding("D1").verdict_text == "holds when its multiplier is one; here it is up to 2"


@pytest.mark.parametrize(
    ("high", "verdict"), [((0.5, 0.6), Verdict.HOLDS), ((0.5, 1.2), Verdict.WHEN), ((1.1, 1.2), Verdict.NOT)]
)
def test_faster_is_what_the_clock_says(high: tuple[float, float], verdict: Verdict) -> None:
    rows = [
        {"layer": str(k), "macs": 0.1, "full": 0.001, "time": {"median": h - 0.05, "low": h - 0.1, "high": h}}
        for k, h in enumerate(high)
    ]
    assert told._faster({"rows": rows}).verdict is verdict
    assert told._faster({"rows": []}).verdict is Verdict.OPEN


def test_times_and_conversion_run(monkeypatch: pytest.MonkeyPatch) -> None:
    few = tuple(part[:60] for part in convscope.data.fashion("train"))
    monkeypatch.setattr(tuning, "clothes", lambda split: few)
    row = {"layer": "a", "channels": [4, 4], "kernel": [3, 3], "stride": [1, 1], "size": [8, 8]}
    timed = separable._times([row | {"groups": 1, "full_macs": 1, "macs": 0.4}], True)
    assert timed["rows"][0]["time"]["median"] > 0
    net = convscope.load("fashion")
    images = convscope.data.fashion("test")
    seen: Any = SimpleNamespace(
        x=net.input.normalize(images[0][:20]), labels=images[1][:20], source="clothes"
    )
    asked: Any = SimpleNamespace(
        images=lambda *a, **k: seen, quick=True, seed=0, data=None, limit=lambda net: 24
    )
    converted = separable._converted(asked, net, False)
    assert [row["rank"] for row in converted["rows"]] == [1, 2]
    assert converted["rows"][0]["macs"] < 0.2
    assert all(0 <= row["tuned"]["value"] <= 1 for row in (*converted["rows"], converted["own"]))


def test_images_to_learn_from_and_to_score_on_never_meet() -> None:
    net = convscope.load("fashion")
    x, labels = convscope.data.fashion("test")
    order = labels[:90].argsort(stable=True)
    x, labels = x[:90][order], labels[:90][order]
    seen = Seen(net.input.normalize(x[:90]), labels[:90], "90 images")
    asked: Any = SimpleNamespace(data="folder", quick=True, seed=0)
    taught = tuning.lesson(asked, net, seen, own=True)
    assert len(taught.learn[0]) == len(taught.score.x) == 45
    assert not {bytes(one.numpy()) for one in taught.learn[0]} & {
        bytes(one.numpy()) for one in taught.score.x
    }
    made = tuning.tuned(asked, net, taught, layers="head.fc2", epochs=3)
    assert isinstance(made, convscope.Net)
    assert not torch.equal(made.module.head.fc2.weight, net.module.head.fc2.weight)  # type: ignore[union-attr]
    assert torch.equal(made.module.block1.conv1.weight, net.module.block1.conv1.weight)  # type: ignore[union-attr]
    assert len(set(taught.learn[1][:12].tolist())) > 3  # in a folder they lie class by class
    few = tuning.Lesson((seen.x[:9], seen.labels[:9]), seen)  # type: ignore[index]
    assert tuning.tuned(asked, net, few) == "9 images are too few to train on"
