"""Answers in tests look at few images, take few times, and train no run of a study again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from convscope import timing
from convscope.answers import spot
from convscope.answers.asked import Asked
from convscope.studies.results import StudyResult
from convscope.studies.shelf import Again


@pytest.fixture(scope="module", autouse=True)
def few(request: pytest.FixtureRequest) -> Iterator[None]:
    """Some images in place of some seconds' worth, and hardly a round of timing; not where the number itself is tested."""
    measure: Any = timing.measure

    def brief(runs: Any, **settings: Any) -> Any:
        return measure(runs, **{**settings, "budget": min(settings.get("budget", 0.02), 0.02)})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "measure", brief)
        if not request.module.__name__.endswith("test_images"):
            patch.setattr(Asked, "limit", lambda asked, net: 24)
        patch.setattr(spot, "again", _again)
        yield


def _again(result: StudyResult, pick: int = 0) -> Again:
    """As if it had been trained; `test_spot` and the tests of the shelf are about the real one."""
    variant = result.variants[result.baseline]
    run = variant.runs[pick % len(variant.runs)]
    metric, score = next(iter(run.scores.items()))
    return Again(variant.label, run.seed, metric, score, score, 0.0, True, 0.0)
