"""A whole report of a real, small network in a real browser: every page there, silent, and no wider than the screen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convscope import _changes, _layers, load, tour
from convscope._changes import Trial
from convscope.answers import ask as verb
from convscope.answers.questions import QUESTIONS
from convscope.measures import roofline
from convscope.studies import shelf

Opener = Callable[..., Any]
PAGES = ["Overview", "Filters", "Layers", "Changes", "Studies", "Answers"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `convscope report fashion --quick` makes it, with two questions, one study and little measuring."""
    out = tmp_path_factory.mktemp("whole")
    true = _layers.latency
    few = {name: QUESTIONS[name] for name in ("padding", "one-by-one")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verb, "QUESTIONS", few)
        patch.setattr(roofline, "COPIED", 2**20)
        patch.setattr(roofline, "LARGEST", {"cpu": 256})
        patch.setattr(_layers, "latency", lambda *args, **given: true(*args, **given | {"budget": 0.0}))
        patch.setattr(_changes, "TIMING", 0.0)
        patch.setattr(_changes, "FEW", (Trial("fold_batch_norm"),))
        patch.setattr("convscope.answers.spot.again", lambda result, pick: _again())
        (out / "mine").mkdir()
        (out / "mine" / "convolution.json").write_bytes((shelf.SHIPPED / "convolution.json").read_bytes())
        settings: dict[str, Any] = {"channels": 2, "steps": 2, "quick": True, "studies": out / "mine"}
        made = tour.report(load("fashion"), out / "report", **settings)
    assert made.page == out / "report" / "index.html"
    return out / "report"


def _again() -> shelf.Again:
    return shelf.Again("convolution=standard", 0, "test", 0.72, 0.72, 0.01, True, 1.0)


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_silent_and_fits(visit: Opener, whole: Path, width: int, scheme: str) -> None:
    seen = visit(whole, "index.html", width=width, color_scheme=scheme)
    links = seen.page.locator("nav[aria-label='Pages'] a")
    assert links.all_inner_texts() == PAGES
    for address in links.evaluate_all("links => links.map(link => link.getAttribute('href'))"):
        page = seen.go(address).page
        page.wait_for_load_state("load")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, address
        assert page.locator("h1").count() == 1, address
        here = page.locator(".bar nav [aria-current]").bounding_box()
        assert 0 <= here["x"] <= width - 60 - here["width"], address  # in sight, beside the button at the end
        broken = "[...document.images].filter(image => image.complete && !image.naturalWidth).length"
        assert page.evaluate(broken) == 0, address


def test_pages_show_what_was_measured(visit: Opener, whole: Path) -> None:
    seen = visit(whole, "studies.html")
    assert seen.page.locator("h2").all_inner_texts() == ["What cheaper convolutions lose"]
    page = seen.go("answers.html").page
    assert page.locator(".asked b").all_inner_texts() == [
        QUESTIONS[name].title for name in ("padding", "one-by-one")
    ]
    page.locator("#one-by-one summary", has_text="trained again here").click()
    assert "72.00 %\t72.00 %\tequal" in page.locator("#one-by-one .figures").last.inner_text()
    page = seen.go("changes.html").page
    page.get_by_text("fold_batch_norm").first.wait_for()
    page = seen.go("layers.html").page
    page.get_by_text("Conv2d").first.wait_for()
