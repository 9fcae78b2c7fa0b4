"""The answer on input sizes: what runs, what is lost, against torch itself; verdicts where the folklore is false."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import convscope
import convscope.data
from convscope.answers import input_size
from convscope.answers.base import Answer, Verdict
from convscope.answers.verdicts import input_size as told

REFITTED: dict[str, Any] = {
    "net": "fashion",
    "size": [35, 39],
    "rows": [
        {
            "how": how,
            "accuracy": {"value": value, "low": value, "high": value},
            "macs": 1e6,
            "time": None,
            "reason": None,
        }
        for how, value in (
            ("resize", 0.9),
            ("native", 0.7),
            ("native, last layer refitted", 0.75),
            ("native, last layers fine-tuned", 0.8),
        )
    ],
    "best": "resize",
    "ours": "native, last layers fine-tuned",
    "gain": {"value": -0.1, "low": -0.2, "high": -0.05},
    "images": 100,
    "learned": 100,
    "source": "clothes",
}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_size, "_refitted", lambda asked, net, own: REFITTED)


def pooled(least: int = 0) -> nn.Module:
    head = nn.MaxPool2d(least) if least else nn.Identity()
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), head, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    ).eval()


def ask(module: nn.Module, data: Any) -> Answer:
    return convscope.ask("input-size", module, data, input="3x16x16", quick=True)


def test_a_pooled_network_runs_at_every_size(quick: None) -> None:
    torch.manual_seed(0)
    module, data = pooled(), torch.randn(6, 3, 16, 16)
    answer = ask(module, data)
    finding = answer.finding("I3")
    assert (finding.verdict, finding.figures["ran"], finding.figures["tried"]) == (Verdict.HOLDS, 6, 6)
    rows = {row[0]: row for row in answer.tables[1].rows}
    for side in (8, 12, 16, 20, 24, 32):
        assert module(torch.zeros(1, 3, side, side)).shape == (1, 5)
        assert rows[f"{side}x{side}"][1] == "5"
    assert rows["16x16"][2].startswith("100.0 %")
    ways = {row[0]: row for row in answer.tables[0].rows}
    assert list(ways) == ["resize", "crop", "pad", "tiles", "native"]
    macs = {n: 3 * 9 * 8 * (n[0] - 2) * (n[1] - 2) for n in ((16, 16), (20, 22))}
    assert (
        answer.statement.count("costs 1.84 times the MACs") == 1
    )  # (20 - 2)(22 - 2) / 14^2, but for the last layer
    assert macs[20, 22] / macs[16, 16] == pytest.approx(1.84, abs=0.01)


def test_a_least_size_is_found(quick: None) -> None:
    finding = ask(pooled(12), torch.randn(3, 3, 16, 16)).finding("I3")
    assert finding.verdict_text == "holds when the image is at least 16 pixels high"


def test_images_without_detail_lose_none(quick: None) -> None:
    finding = ask(pooled(), torch.zeros(3, 3, 16, 16)).finding("I1")
    assert finding.figures["cut"] == pytest.approx(1 - 16 * 16 / (20 * 22))
    assert finding.verdict_text == "holds when there is detail to lose"  # what is cut off was flat as well
    sharp = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert ask(pooled(), sharp).finding("I1").verdict is Verdict.HOLDS


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.1, 0.2, Verdict.HOLDS), (-0.2, -0.1, Verdict.NOT), (-0.1, 0.1, Verdict.OPEN)],
)
def test_refitting_is_judged_by_its_interval(low: float, high: float, verdict: Verdict) -> None:
    refitted = REFITTED | {"gain": {"value": (low + high) / 2, "low": low, "high": high}}
    assert told.tuned(refitted).verdict is verdict


def test_refitting_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    net = convscope.Net(pooled(), convscope.InputSpec((3, 16, 16)))
    x = torch.randn(60, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = (x.mean((1, 2, 3)) > 0).long()
    classes = input_size._refit(
        net, x + labels[:, None, None, None], labels, x[:20] + labels[:20, None, None, None]
    )
    assert (classes == labels[:20]).float().mean() > 0.9


def test_every_way_has_accuracy_and_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {split: tuple(part[:60] for part in convscope.data.fashion(split)) for split in ("train", "test")}
    monkeypatch.setattr(input_size, "clothes", lambda split: few[split])
    asked: Any = SimpleNamespace(quick=True, seed=0, data=None)
    net = convscope.load("fashion")
    refitted = input_size._refitted(asked, net, True)
    ways = {row["how"]: row for row in refitted["rows"]}
    assert list(ways) == [
        "resize", "crop", "pad", "tiles", "native", "native, last layer refitted", "native, last layers fine-tuned",
    ]  # fmt: skip
    assert all(row["macs"] > 0 and row["time"]["median"] > 0 for row in ways.values())
    assert ways["tiles"]["macs"] > 3 * ways["resize"]["macs"]
    x, labels = few["test"]
    grown = torch.nn.functional.interpolate(x, (35, 39), mode="bicubic", antialias=True).clamp(0, 1)
    cut = net.input.normalize(grown[:, :, 3:31, 5:33])
    expected = float((net.module(cut).argmax(1) == labels).float().mean())
    assert ways["crop"]["accuracy"]["value"] == pytest.approx(expected, abs=0.02)
    assert refitted["ours"].startswith("native, last layer")


def test_a_network_that_runs_at_its_own_size_alone() -> None:
    rows = [row for row in REFITTED["rows"] if row["how"] == "resize"]
    finding = told.tuned(REFITTED | {"rows": rows, "gain": None, "ours": None})
    assert finding.verdict_text == "inconclusive: there is nothing to fine-tune at that size"
