"""Differences of differences over the seeds of a record, against sums by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from convscope.answers.base import Verdict
from convscope.answers.contrasts import depends, studied
from study_records import record

FACTORS = {"kernel_size": [3, 7], "noise": [0.0, 0.5]}


def asked(tmp_path: Path, noisy_small: list[float], noisy_large: list[float]) -> Any:
    scores = {
        (3, 0.0): {"test": [0.80, 0.82, 0.81]},
        (3, 0.5): {"test": noisy_small},
        (7, 0.0): {"test": [0.81, 0.82, 0.83]},
        (7, 0.5): {"test": noisy_large},
    }
    return SimpleNamespace(studies=record(tmp_path / "records", "noise", FACTORS, scores))


@pytest.mark.parametrize(
    ("noisy_small", "noisy_large", "verdict"),
    [
        ([0.70, 0.71, 0.72], [0.60, 0.61, 0.61], Verdict.HOLDS),
        ([0.60, 0.61, 0.61], [0.70, 0.71, 0.72], Verdict.NOT),
        ([0.60, 0.71, 0.65], [0.66, 0.63, 0.66], Verdict.OPEN),
    ],
)
def test_dependence(
    tmp_path: Path, noisy_small: list[float], noisy_large: list[float], verdict: Verdict
) -> None:
    made = depends(
        asked(tmp_path, noisy_small, noisy_large),
        "S5",
        "a study",
        first={"kernel_size": 3},
        second={"kernel_size": 7},
        here={"noise": 0.5},
        there={"noise": 0.0},
        places=("on noisy images", "on clean ones"),
    )
    assert made.verdict is verdict
    noisy = sum(noisy_small) / 3 - sum(noisy_large) / 3
    clean = 0.81 - 0.82
    assert made.figures["a"] == pytest.approx(100 * noisy)
    assert made.figures["b"] == pytest.approx(100 * clean)
    assert made.figures["points"] == pytest.approx(100 * (noisy - clean))
    assert "In the study noise, kernel_size=3 gained" in made.sentence
    if verdict is Verdict.OPEN:
        assert made.when == "3 seeds do not tell"


def test_nothing_on_record(tmp_path: Path) -> None:
    empty: Any = SimpleNamespace(studies=tmp_path)
    assert studied(empty, {"a": {"kernel_size": 3}}) is None
    levels = {"first": {"kernel_size": 3}, "second": {"kernel_size": 5}, "here": {"noise": 0.5}}
    made = depends(empty, "S5", "a study", **levels, there={"noise": 0.0}, places=("here", "there"))  # type: ignore[arg-type]
    assert made.verdict is Verdict.OPEN
    assert made.when == "no study recorded yet"


def test_other_factors_are_equal(tmp_path: Path) -> None:
    """Of variants that differ in a factor nobody asked about, those that share its level are compared."""
    scores = {(k, d): {"test": [k / 10 + d / 100] * 2} for k in (3, 5) for d in (1, 2)}
    folder = record(tmp_path / "records", "depths", {"kernel_size": [3, 5], "depth": [1, 2]}, scores)
    found = studied(
        SimpleNamespace(studies=folder),  # type: ignore[arg-type]
        {"small": {"kernel_size": 3}, "large": {"kernel_size": 5}},
    )
    assert found is not None
    assert {variant.values["depth"] for variant in found.variants.values()} == {1}
    difference = found.score({("large", "test"): 1.0, ("small", "test"): -1.0})
    assert difference is not None
    assert difference.mean == pytest.approx(0.2)
    assert found.mean("small") == pytest.approx(0.31)
