"""Verdicts from study records: by the interval, and open where there is none."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from convscope.answers.base import Verdict
from convscope.answers.evidence import trained
from convscope.studies.design import Design
from convscope.studies.results import Run, StudyResult, VariantResult


def record(folder: Path, scores: dict[str, list[float]]) -> Path:
    """A study of poolings with these accuracies, seed by seed."""
    design = Design(
        "convscope.studies.networks:small_cnn",
        factors={"pooling": list(scores)},
        seeds=len(next(iter(scores.values()))),
    )
    variants = tuple(
        VariantResult({"pooling": kind}, f"pooling={kind}", None, tuple(
            Run(place, seed, f"{place}-{seed}", {"test": score}) for seed, score in enumerate(values)
        ))
        for place, (kind, values) in enumerate(scores.items())
    )  # fmt: skip
    folder.mkdir()
    told = StudyResult(design, {}, {}, variants).content()
    (folder / "pools.json").write_text(json.dumps(told))
    return folder


@pytest.mark.parametrize(
    ("strided", "margin", "verdict"),
    [
        ([0.92, 0.93, 0.95], None, Verdict.HOLDS),
        ([0.81, 0.80, 0.83], None, Verdict.NOT),
        ([0.93, 0.86, 0.91], None, Verdict.OPEN),
        ([0.899, 0.909, 0.920], 0.01, Verdict.HOLDS),
        ([0.899, 0.909, 0.920], None, Verdict.OPEN),
        ([0.85, 0.86, 0.87], 0.01, Verdict.NOT),
    ],
)
def test_verdicts(tmp_path: Path, strided: list[float], margin: float | None, verdict: Verdict) -> None:
    folder = record(tmp_path / "studies", {"max": [0.90, 0.91, 0.92], "strided": strided})
    asked: Any = SimpleNamespace(studies=folder)
    told = trained(
        asked, "K11", "a study", first={"pooling": "strided"}, second={"pooling": "max"}, margin=margin
    )
    assert told.verdict is verdict
    assert told.figures["seeds"] == 3
    assert told.figures["points"] == pytest.approx(100 * (sum(strided) / 3 - 0.91))
    assert "In the study pools, pooling=strided reached" in told.sentence


def test_one_seed_settles_nothing(tmp_path: Path) -> None:
    folder = record(tmp_path / "studies", {"max": [0.9], "strided": [0.99]})
    asked: Any = SimpleNamespace(studies=folder)
    told = trained(asked, "K11", "a study", first={"pooling": "strided"}, second={"pooling": "max"})
    assert told.verdict_text == "inconclusive: one seed has no interval"


@pytest.mark.parametrize("level", ["average", "none"])
def test_without_such_variants_it_is_open(tmp_path: Path, level: str) -> None:
    folder = record(tmp_path / "studies", {"max": [0.9, 0.9], "strided": [0.9, 0.9]})
    (tmp_path / "empty").mkdir()
    for place in (folder, tmp_path / "empty"):
        asked: Any = SimpleNamespace(studies=place)
        told = trained(asked, "K11", "a study", first={"pooling": level}, second={"pooling": "max"})
        assert told.verdict_text == "inconclusive: no study recorded yet"
