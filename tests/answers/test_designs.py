"""The studies that answers read: every design can be built, every record that ships is of its design and whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from convscope.studies import design_file
from convscope.studies.data import Data, dataset
from convscope.studies.networks import build
from convscope.studies.plan import configure
from convscope.studies.results import StudyResult
from convscope.studies.run import training
from convscope.studies.shelf import SHIPPED

DESIGNS = sorted((Path(__file__).parents[2] / "docs" / "studies" / "answers").glob("*.toml"))


@pytest.fixture(scope="module")
def clothes() -> Data:
    return dataset("fashion", limit=100, test_limit=50)


@pytest.mark.parametrize("path", DESIGNS, ids=lambda path: path.stem)
def test_the_designs_can_be_built(path: Path, clothes: Data) -> None:
    design = design_file.read(path)
    assert f"convscope study docs/studies/answers/{path.name}" in path.read_text()
    for variant in design.variants():
        config = configure(design, variant, 0, {"hash": clothes.hash})
        training(config)
        if design.data["source"] == "fashion":  # type: ignore[index]
            build(design.base, config.arguments, offered=clothes.arguments)


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.json")), ids=lambda path: path.stem)
def test_records_are_of_their_designs(path: Path) -> None:
    found = StudyResult.from_record(path)
    assert found.done == found.planned
    assert {"sha256", "counts"} <= set(found.data)
    assert {"sources", "torch"} <= set(found.code)
    design = next((one for one in DESIGNS if one.stem == path.stem), None)
    if design is not None:
        assert design_file.read(design).to_dict() == found.design.to_dict()
