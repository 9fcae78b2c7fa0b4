"""Studies whose runs are not trained: their scores follow from the configuration, at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from convscope.studies import study as studies
from convscope.studies.design import Design


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Trainings are replaced by `engine_work.toy_run`; the folder where it tells what it did."""
    folder = tmp_path / "toy"
    folder.mkdir()
    monkeypatch.setattr(studies, "RUN", "engine_work:toy_run")
    monkeypatch.setenv("TOY_FOLDER", str(folder))
    return folder


@pytest.fixture
def sizes() -> Design:
    """Three kernel sizes at four seeds."""
    return Design(
        "convscope.studies.networks:small_cnn",
        {"kernel_size": [1, 3, 5]},
        seeds=4,
        budget={"epochs": 1},
        arguments={"width": 2},
        data={"source": "fashion", "limit": 200, "test_limit": 50},
        name="sizes",
    )
