"""Tables of studies on record: the record's own numbers, and times taken here."""

from __future__ import annotations

from typing import Any

import pytest

import convscope
from convscope.answers import recorded, spot
from convscope.answers.ask import Meter
from convscope.answers.asked import Asked
from convscope.answers.questions import QUESTIONS
from convscope.studies.shelf import records


def asked(question: str, **settings: Any) -> Asked:
    return Asked(
        QUESTIONS[question], None, None, quick=True, seed=0, store=None, meter=Meter(1, None), **settings
    )


def test_accuracies_are_the_records_and_times_are_taken_here(monkeypatch: pytest.MonkeyPatch) -> None:
    (sheet,) = recorded.tables(asked("upsampling"))
    result = dict(records())["upsampling"]
    assert [row[0].partition("=")[2] for row in sheet.rows] == [
        "nearest", "bilinear", "bed_of_nails", "max_unpool", "transposed", "pixel_shuffle",
    ]  # fmt: skip
    for row, mean, variant in zip(sheet.rows, result.means(), result.variants, strict=True):
        assert mean is not None
        assert row[2].startswith(f"{100 * mean.mean:.1f} % (")
        assert variant.cost is not None
        assert row[4] == f"{variant.cost.params:,}"
        assert row[6].endswith((" µs", " ms"))
    assert [row[3] for row in sheet.rows].count("baseline") == 1
    epochs = result.design.each_budget.epochs
    assert sheet.notes[0].startswith(f"5 seeds, {epochs:g} epochs on 1,800 images")


def test_networks_of_text_are_told_without_a_time() -> None:
    (sheet,) = recorded.tables(asked("text-channels"))
    assert len(sheet.rows) == 5
    assert all(row[6] == "" and row[2] for row in sheet.rows)


def test_a_question_without_studies_has_no_table(tmp_path: Any) -> None:
    assert recorded.tables(asked("padding")) == ()
    assert recorded.tables(asked("pooling", studies=tmp_path)) == ()


def test_an_answer_holds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spot, "checks", lambda asked: ())
    answer = convscope.ask("fully-connected", convscope.load("fashion"), quick=True)
    assert "the study pooling-head on record: How all positions become one" in [
        t.title for t in answer.tables
    ]
