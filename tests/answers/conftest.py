"""Answers in tests look at few images and take few times."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from convscope import timing
from convscope.answers.asked import Asked


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
        yield
