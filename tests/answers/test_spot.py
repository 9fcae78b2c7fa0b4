"""Spot checks: an answer that reads a study says what one of its runs gives when it is trained again here."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import convscope
from convscope.answers import questions, spot
from convscope.answers.questions import QUESTIONS
from convscope.errors import RequestError
from convscope.studies.shelf import SHIPPED, Again, again, records

FOUND = Again("pooling=max", 0, "test", 0.75, 0.75, 0.02, True, 1.0)


def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: Again | Exception, **settings: Any) -> Any:
    told: list[tuple[str, int]] = []

    def retrain(result: Any, pick: int) -> Again:
        told.append((result.design.name, pick))
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(spot, "again", retrain)
    answer = convscope.ask(
        "fully-connected", convscope.load("fashion"), quick=True, out=tmp_path / "out", **settings
    )
    (sheet,) = (table for table in answer.tables if "trained again" in table.title)
    return sheet.rows, told


def test_equal_numbers_and_kept_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, told = asked(tmp_path, monkeypatch, FOUND, seed=3)
    assert rows == (("pooling-head", "pooling=max", "0", "75.00 %", "75.00 %", "equal"),)
    assert told == [("pooling-head", 3)]
    assert asked(tmp_path, monkeypatch, FOUND, seed=3) == (rows, [])


def test_other_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    near = Again("a", 0, "test", 0.75, 0.76, 0.02, False, 1.0)
    rows, _ = asked(tmp_path, monkeypatch, near)
    wanted = "closer than its seeds on record, which spread over 2.0 points; the record is of other code"
    assert rows[0][-1] == wanted
    far = Again("a", 0, "test", 0.75, 0.70, 0.02, True, 1.0)
    rows, _ = asked(tmp_path / "far", monkeypatch, far)
    assert rows[0][-1] == "further apart than its seeds on record, which spread over 2.0 points"


def test_what_cannot_be_trained_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, _ = asked(tmp_path, monkeypatch, RequestError("its data had no source."))
    assert rows == (("pooling-head", "", "", "", "", "its data had no source."),)


def test_a_folder_of_other_studies_is_not_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "own.json").write_bytes((SHIPPED / "pooling.json").read_bytes())
    monkeypatch.setattr(spot, "again", None)
    answer = convscope.ask(
        "fully-connected", convscope.load("fashion"), quick=True, studies=tmp_path / "mine"
    )
    assert not [table for table in answer.tables if "trained again" in table.title]


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=lambda one: one.name)
def test_every_study_that_a_question_names_ships(question: questions.Question) -> None:
    assert all((SHIPPED / f"{name}.json").is_file() for name in question.studies)
    assert set(question.parts) >= {f"again-{name}" for name in question.studies}


def test_every_record_belongs_to_a_question() -> None:
    named = {name for question in QUESTIONS.values() for name in question.studies}
    assert named == {path.stem for path in SHIPPED.glob("*.json")}


def test_questions_name_the_studies_that_their_claims_cite() -> None:
    """What the ledger cites is what is checked."""
    text = (Path(__file__).parents[2] / "docs" / "claims.md").read_text()
    for question in QUESTIONS.values():
        section = text.partition(f"## {question.title}")[2].partition("\n## ")[0]
        cited = set(re.findall(r"In the study (?!on record)([\w-]+)", section))
        assert cited <= set(question.studies), question.name


def test_a_retrained_run_of_a_shipped_record() -> None:
    """The smallest of them: on any processor the accuracy is that of the record, or as near as its seeds are."""
    found = again(dict(records())["pooling-window"])
    assert found.agrees
    assert json.dumps(found.to_dict())
