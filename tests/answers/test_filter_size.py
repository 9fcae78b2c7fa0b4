"""The answer on filter sizes against counts by hand, and on figures and records for which common advice is false."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import convscope
import convscope.errors
from convscope.answers.base import Verdict
from convscope.answers.filter_size import _shapes, _valid
from convscope.answers.verdicts import filter_size as told
from study_records import record


def interval(median: float) -> dict[str, float]:
    return {"median": median, "low": 0.95 * median, "high": 1.05 * median}


def costs(*ratios: float, shrinking: bool = False) -> dict[str, Any]:
    """Figures of a network whose kernels of 3, 5, 7 took these multiples of a time."""
    rows = [
        {
            "size": size,
            "params": size**2,
            "macs": size**2,
            "bytes": 1000 - size if shrinking else 1000 + size,
            "time": interval(ratio),
            "ratio": interval(ratio),
            "step": interval(ratio),
            "field": [10 * size, 10 * size],
        }
        for size, ratio in zip((3, 5, 7), ratios, strict=True)
    ]
    return {"net": "net", "own": [3], "rows": rows, "base": 3, "last": "conv", "input": [28, 28]}


VALID = {
    "side": 28,
    "rows": [
        {"size": 3, "macs": 6084, "ratio": interval(1.0)},
        {"size": 15, "macs": 44100, "ratio": interval(5.0)},
        {"size": 27, "macs": 2916, "ratio": interval(0.5)},
    ],
}


def test_costs_are_those_of_the_network(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(192, 2)).eval()
    made = convscope.ask("filter-size", module, input="2x8x8", quick=True, studies=tmp_path)
    rows = {row[0]: row for row in made.tables[0].rows}
    for k in (1, 3, 5, 7, 9, 11):
        assert rows[f"{k}x{k}"][1] == f"{2 * 3 * k * k + 3 + 386:,}"
        assert rows[f"{k}x{k}"][2] == f"{64 * 2 * 3 * k * k + 384:,}"
        assert rows[f"{k}x{k}"][6] == f"{k} x {k}"
    assert made.finding("S6").verdict is Verdict.WHEN
    assert made.finding("S2").when == "no study recorded yet"
    assert "no study on record tells" in made.statement
    assert made.finding("S10").figures["five_macs"] == pytest.approx(18 / 25)


def test_valid_layers_are_torchs() -> None:
    for row in _valid(quick=True)["rows"]:
        positions = (28 - row["size"] + 1) ** 2
        assert (row["positions"], row["macs"]) == (positions, positions * 256 * row["size"] ** 2)
    assert all(
        row["whole"] == 1 and row["point"] == row["padded"] == row["side"] ** 2 for row in _shapes()["rows"]
    )


def test_faster_by_the_figures() -> None:
    slow = {"side": 28, "rows": [VALID["rows"][0], VALID["rows"][1]]}  # type: ignore[index]
    assert told._faster(costs(1, 2, 4), slow).verdict is Verdict.NOT
    assert (
        told._faster(costs(1, 2, 4), VALID).when
        == "the map is not padded and the kernel nearly covers it (27 of 28 pixels)"
    )
    assert told._faster(costs(4, 2, 1, shrinking=True), slow).verdict is Verdict.HOLDS
    assert told._fewer(costs(1, 2, 4)).verdict is Verdict.HOLDS
    assert told._fewer(costs(4, 2, 1)).verdict is Verdict.NOT
    assert told._fewer(costs(1.5, 1, 4)).when == "the smaller size is not 3x3, which ran slower than the next"


@pytest.mark.parametrize(
    ("small", "large", "verdict"),
    [
        (([0.98, 0.97, 0.98], [0.80, 0.81, 0.82]), ([0.85, 0.86, 0.85], [0.80, 0.82, 0.81]), Verdict.HOLDS),
        (([0.85, 0.86, 0.85], [0.80, 0.82, 0.81]), ([0.98, 0.97, 0.98], [0.80, 0.81, 0.82]), Verdict.NOT),
        (([0.85, 0.86, 0.85], [0.80, 0.82, 0.81]), ([0.85, 0.84, 0.87], [0.80, 0.81, 0.82]), Verdict.OPEN),
    ],
)
def test_over_and_underfitting(tmp_path: Path, small: Any, large: Any, verdict: Verdict) -> None:
    middle = {"train": [0.9] * 3, "test": [0.8] * 3}
    scores = {(k,): middle for k in (1, 5, 7)}
    scores |= {(k,): dict(zip(("train", "test"), pair, strict=True)) for k, pair in ((3, small), (11, large))}
    folder = record(tmp_path / "records", "sizes", {"kernel_size": [1, 3, 5, 7, 11]}, scores)
    asked: Any = SimpleNamespace(studies=folder)
    learned = told.learned_sizes(asked)
    assert told._fits(learned).verdict is verdict
    assert told.accuracies(learned)["5"] == pytest.approx((0.8, 0.9))


def test_context_and_resolution_by_record(tmp_path: Path) -> None:
    def scores(gain: float) -> dict[tuple[Any, ...], dict[str, list[float]]]:
        levels = {(3, 0.0): 0.8, (7, 0.0): 0.8, (3, 0.5): 0.7 + gain, (7, 0.5): 0.7}
        return {key: {"test": [value, value + 0.001, value - 0.001]} for key, value in levels.items()}

    for gain, verdict in ((0.1, Verdict.HOLDS), (-0.1, Verdict.WHEN)):
        folder = record(
            tmp_path / f"{gain}", "noise", {"kernel_size": [3, 7], "noise": [0.0, 0.5]}, scores(gain)
        )
        made = told._context(SimpleNamespace(studies=folder), costs(1, 2, 4))  # type: ignore[arg-type]
        assert made.verdict is verdict
        flat = costs(1, 2, 4)
        flat["rows"][2]["field"] = [1, 1]
        assert told._context(SimpleNamespace(studies=folder), flat).verdict is Verdict.NOT  # type: ignore[arg-type]


def test_a_network_of_1x1_is_refused() -> None:
    with pytest.raises(convscope.errors.BadInput, match="has no convolution larger than 1x1"):
        convscope.ask("filter-size", nn.Conv2d(3, 4, 1), input="3x8x8")
    assert torch.is_grad_enabled()
