"""The answer on 1x1 convolutions against counts worked out by hand and merged weights, and where the folklore is false."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import convscope
import convscope.data
from convscope.answers import one_by_one
from convscope.answers.base import Answer, Verdict
from convscope.answers.verdicts import one_by_one as told


class Chain(nn.Module):
    """1x1, 1x1, ReLU, a 1x1 that mixes nothing, ReLU with a bias so large that it never bends."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.relu = nn.Conv2d(4, 6, 1), nn.Conv2d(6, 4, 1), nn.ReLU()
        self.c, self.straight = nn.Conv2d(4, 4, 1, groups=4), nn.ReLU()
        nn.init.constant_(self.c.bias, 100.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.straight(self.c(self.relu(self.b(self.a(x)))))
        return y


WIDTHS = {
    "rows": [{"width": w, "accuracy": {"value": v, "low": v, "high": v}} for w, v in ((1, 0.1), (32, 0.9))],
    "gain": {"value": 0.8, "low": 0.7, "high": 0.9},
    "net": "fashion",
    "images": 100,
}


@pytest.fixture(scope="module")
def chain() -> Answer:
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one_by_one, "_widths", lambda asked, net: WIDTHS)
        return convscope.ask(
            "one-by-one", Chain().eval(), torch.randn(2, 4, 12, 12), input="4x12x12", quick=True
        )


def test_linearity_pairs_and_what_does_not_bend(chain: Answer) -> None:
    finding = chain.finding("O2")
    assert finding.verdict is Verdict.WHEN  # one of its activations does not bend
    assert finding.figures["alone"] < 1e-12
    assert finding.figures["active"] > 0.05
    assert finding.figures["least"] < 1e-12
    assert (finding.figures["pairs"], finding.figures["first"], finding.figures["second"]) == (1, "a", "b")
    assert chain.statement.startswith("3 of 3 convolutions of Chain are 1x1")


def test_pairs_collapse_into_the_product_of_their_weights() -> None:
    module = Chain().double()
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64)
    merged = nn.Conv2d(4, 4, 1).double()
    with torch.no_grad():
        merged.weight.copy_((module.b.weight.flatten(1) @ module.a.weight.flatten(1))[:, :, None, None])
        merged.bias.copy_(module.b.weight.flatten(1) @ module.a.bias + module.b.bias)  # type: ignore[operator, union-attr]
    torch.testing.assert_close(merged(x), module.b(module.a(x)))


def test_mixing_counts_the_channels_a_filter_takes_from(chain: Answer) -> None:
    finding = chain.finding("O3")
    assert finding.verdict is Verdict.WHEN  # c has one weight a filter
    assert finding.figures["least"] == 1.0
    assert finding.figures["mixers"] == 2
    assert finding.figures["moved"] == 1


def test_channels_reduced_kept_augmented(chain: Answer) -> None:
    figures = chain.finding("O1").figures
    assert (figures["fewer"], figures["more"], figures["same"]) == (1, 1, 1)
    assert chain.finding("O1").verdict is Verdict.WHEN
    kept: dict[str, Any] = {"net": "n", "rows": [{"channels": [3, 3]}]}
    assert told._channels(kept).verdict is Verdict.NOT


def test_bottleneck_counts_are_the_formula(chain: Answer) -> None:
    finding = chain.finding("O5")
    c, r = 128, 32
    assert finding.figures["macs"] == pytest.approx(9 * c * c / (2 * c * r + 9 * r * r))
    assert finding.figures["most"] == 112  # 2 c r + 9 r^2 < 9 c^2 up to r = 0.895 c
    assert finding.verdict is Verdict.WHEN


def test_widths_are_tried_on_the_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    net = convscope.load("fashion")
    images, labels = convscope.data.fashion("test")
    seen: Any = SimpleNamespace(x=net.input.normalize(images[:20]), labels=labels[:20])
    asked: Any = SimpleNamespace(images=lambda *a, **k: seen, quick=True, seed=0)
    monkeypatch.setattr(one_by_one, "_RANKS", (1, 64))
    rows = one_by_one._widths(asked, net)["rows"]
    assert [row["width"] for row in rows] == [1, 64]
    assert rows[1]["accuracy"]["value"] > rows[0]["accuracy"]["value"]


def test_capacity_is_not_claimed_where_accuracy_does_not_follow() -> None:
    rows = [{"width": w, "accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}} for w in (1, 32)]
    widths = {"rows": rows, "gain": {"value": 0.0, "low": -0.1, "high": 0.1}, "net": "n", "images": 100}
    assert told._capacity(widths).verdict is Verdict.NOT


def test_a_network_without_any_is_said_so() -> None:
    found = told._linearity(
        {
            "alone": None,
            "layers": 0,
            "active": None,
            "least": None,
            "activations": 0,
            "pairs": [],
            "source": "noise",
        }
    )
    assert found.verdict_text == "inconclusive: no 1x1 layer has enough positions to tell"
