"""Records on the shelf: which there are, which are refused, and a run trained again to the same number."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from convscope.errors import RequestError
from convscope.studies import shelf
from convscope.studies.design import Design
from convscope.studies.results import StudyResult
from convscope.studies.study import study


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    design = Design(
        "convscope.studies.networks:small_cnn", {"kernel_size": [1, 3]}, seeds=2, budget={"epochs": 1},
        arguments={"width": 2}, data={"source": "fashion", "limit": 200, "test_limit": 100}, name="tiny",
        baseline={"kernel_size": 3},
    )  # fmt: skip
    return study(design, engine="inline", out=tmp_path_factory.mktemp("tiny") / "tiny", latency=False)


def test_folders_and_files_of_studies(made: StudyResult, tmp_path: Path) -> None:
    assert made.folder is not None
    (tmp_path / "renamed.json").write_bytes((made.folder / "results.json").read_bytes())
    (tmp_path / "notes.txt").write_text("no study")
    (tmp_path / "empty").mkdir()
    assert [name for name, _ in shelf.records(tmp_path)] == ["renamed"]
    assert [name for name, _ in shelf.records(made.folder.parent)] == ["tiny"]
    ((name, found),) = shelf.records(made.folder)
    assert (name, found.content()) == ("tiny", made.content())
    assert {"filter-size", "pooling"} <= dict(shelf.records()).keys()


def test_what_is_no_folder_or_no_study(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"studies=.*nowhere' is no folder"):
        list(shelf.records(tmp_path / "nowhere"))
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(RequestError, match=r"other\.json' is damaged"):
        list(shelf.records(tmp_path))


def test_a_run_is_trained_again_to_the_bit(made: StudyResult) -> None:
    for pick, seed in ((0, 0), (1, 1), (2, 0)):
        found = shelf.again(made, pick)
        assert (found.variant, found.seed, found.metric) == ("kernel_size=3", seed, "test")
        assert found.here == found.recorded
        assert found.same
        assert found.agrees
    assert shelf.made_here(made)


def test_a_record_of_other_code_or_data_is_told_apart(made: StudyResult) -> None:
    other = replace(made, code={**made.code, "sources": "0" * 16})
    assert not shelf.made_here(other)
    keys = [replace(run, key="0" * 24) for run in made.variants[1].runs]
    variants = (made.variants[0], replace(made.variants[1], runs=tuple(keys)))
    found = shelf.again(replace(made, variants=variants))
    assert not found.same
    assert found.agrees


def test_a_record_that_lies_is_found_out(made: StudyResult) -> None:
    runs = [replace(run, scores={"test": 0.99}) for run in made.variants[1].runs]
    found = shelf.again(
        replace(made, variants=(made.variants[0], replace(made.variants[1], runs=tuple(runs))))
    )
    assert not found.agrees
    assert found.recorded == 0.99


def test_what_cannot_be_trained_again(made: StudyResult) -> None:
    nothing = replace(made, variants=(made.variants[0], replace(made.variants[1], runs=())))
    for record in (nothing, replace(made, design=replace(made.design, data=None))):
        with pytest.raises(RequestError, match="no run of the study 'tiny' can be trained again"):
            shelf.again(record)


def test_plain_values(made: StudyResult) -> None:
    told: dict[str, Any] = shelf.again(made).to_dict()
    assert json.loads(json.dumps(told)) == told
