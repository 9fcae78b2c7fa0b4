"""The page of changes: what is written for it, and the page in a browser."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from convscope import site

Opener = Callable[..., Any]


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fake_changes", Path(__file__).with_name("fake_changes.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fake = _load()


def written(out: Path) -> Any:
    text = (out / "data" / "changes.js").read_text()
    return json.loads(text.partition('convscopeData["changes"]=')[2].rstrip(";\n"))


def until(page: Any, condition: str) -> None:
    """Waits for it; the page's own policy forbids what `wait_for_function` does."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(25)
    pytest.fail(f"never came: {condition}")


# ---------------------------------------------------------------- what is written


def test_the_data_of_the_page(tmp_path: Path) -> None:
    value = fake.changes(tmp_path)
    value["entries"][0]["comparison"]["features"][0]["before"] = "../../secret.png"
    value["entries"][0]["comparison"]["features"][1]["after"] = "https://example.org/x.png"
    site.write(tmp_path, changes=value)
    found = written(tmp_path)
    fold, padding = found["entries"][:2]
    assert [one["before"] for one in fold["found"]["features"]] == [None, "changes/0-1-before.png"]
    assert fold["found"]["features"][1]["after"] is None
    assert fold["found"]["layers"][2] == ["block2.conv", 0.0, 0.0, "Conv2d"]
    assert [one["layer"] for one in padding["made"]["edits"]] == list(fake.LAYERS[:3])
    assert padding["made"]["refused"] == [{"reason": "its kernel is 1x1", "layers": list(fake.LAYERS[3:])}]
    assert found["entries"][-1] == {**found["entries"][-1], "made": None, "found": None}
    first = found["version"]
    site.write_changes(tmp_path, value)
    assert written(tmp_path)["version"] == first
    site.write_changes(tmp_path, {**value, "state": "running"})
    assert written(tmp_path)["version"] != first


def test_it_joins_a_report_and_stays_there(fakes: ModuleType, tmp_path: Path) -> None:
    atlas = fakes.FakeAtlas(tmp_path, units=12)
    atlas.add(2)
    site.write(tmp_path, atlas=atlas.manifest(), changes=fake.changes(tmp_path))
    site.write(tmp_path, atlas=atlas.manifest())
    assert '<a href="changes.html">Changes</a>' in (tmp_path / "filters.html").read_text()
    text = (tmp_path / "changes.html").read_text()
    assert 'href="assets/changes.css"' in text
    assert 'href="assets/changes.css"' not in (tmp_path / "filters.html").read_text()


# ---------------------------------------------------------------- the page in a browser


@pytest.fixture(scope="module")
def page_of(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of its own, with accuracies. Read only."""
    out = tmp_path_factory.mktemp("changes")
    site.write(out, changes=fake.changes(out, labelled=True))
    return out


def test_the_front_and_the_table(visit: Opener, page_of: Path) -> None:
    page = visit(page_of, "changes.html").page
    assert page.locator("#lead").inner_text().split("\n")[0].startswith("5 networks made from made-up")
    front = page.locator("#front svg")
    assert front.get_attribute("aria-label") == (
        "top-1 accuracy against MACs of 6 networks; on the front: bottleneck 1, as it is"
    )
    page.get_by_label("difference of the outputs", exact=True).check()
    best = "bottleneck 1, bottleneck 2, bottleneck 3, as it is"
    assert str(front.get_attribute("aria-label")).endswith(best)
    assert page.evaluate("document.activeElement.value") == "outputs"
    page.keyboard.press("ArrowRight")  # to the next measure
    assert "same top-1 class against MACs" in str(front.get_attribute("aria-label"))
    page.get_by_label("time of a pass", exact=True).check()
    assert "against time of a pass" in str(front.get_attribute("aria-label"))
    assert front.locator(".point").count() == 6
    rows = page.locator("#table tbody tr")
    assert rows.count() == 8
    assert "No layer was changed: it is an average" in rows.nth(6).inner_text()
    assert "untie would take 9 GiB" in rows.nth(7).inner_text()
    cells = rows.nth(2).locator("td").all_inner_texts()
    assert [cell.split() for cell in cells[:3]] == [
        ["9", "k", "same"],
        ["400", "k", "same"],
        ["10", "ms", "1.00×"],
    ]
    assert [cell.split()[0] for cell in cells[3:]] == ["30", "90", "80", "block2.conv"]
    rows.nth(3).locator("a").click()
    assert page.evaluate("location.hash") == "#c2"
    top = page.locator("#c2").bounding_box()
    assert top is not None
    assert 0 <= top["y"] < 200


def test_one_network(visit: Opener, page_of: Path) -> None:
    page = visit(page_of, "changes.html#c1").page
    padding = page.locator("#c1")
    assert padding.locator(".badge").first.inner_text() == "exact-interior"
    assert "3 layers changed, 5 left as they are" in padding.locator(".sub").inner_text()
    assert page.evaluate("getComputedStyle(document.querySelector('.bars i')).position") == "static"
    assert padding.locator(".pairs img").count() == 4
    assert padding.locator(".pairs img").first.get_attribute("alt") == "block3.conv channel 0, before"
    answers = padding.locator(".answers").inner_text()
    assert "McNemar p = 0.625" in answers
    assert "−10 %" in answers
    rows = padding.locator(".edits tbody tr")
    assert rows.count() == 3
    assert "margin 1 × 1" in rows.first.inner_text()
    assert "5 layers left: its kernel is 1x1" in padding.locator(".refusals").inner_text()
    growth = padding.locator(".growth")
    assert "it begins at block2.conv, and is 30 % at block7.conv" in str(growth.get_attribute("aria-label"))
    growth.scroll_into_view_if_needed()
    box = growth.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.97, box["y"] + 60)
    assert (
        padding.locator(".told").inner_text() == "block7.conv Conv2d: 30 %, at most 60 % of the largest value"
    )
    # of many edits none is drawn before it is asked for
    many = page.locator("#c2 .edits")
    assert many.locator("tbody tr").count() == 0
    many.locator("summary").click()
    until(page, "document.querySelectorAll('#c2 .edits tbody tr').length === 24")
    assert "Fitted to 6 embedded photographs, others than those" in page.locator("#c2 .sub").inner_text()


def test_it_fills_while_it_runs(visit: Opener, tmp_path: Path) -> None:
    value = fake.changes(tmp_path)
    site.write(tmp_path, changes={**value, "state": "running", "planned": None, "entries": []})
    hurry = "const wait = setTimeout; window.setTimeout = (run, ms) => wait(run, ms >= 3000 ? ms / 10 : ms);"
    seen = visit(tmp_path, "index.html", script=hurry)  # alone it is the first page
    page = seen.page
    assert "when the pictures are drawn" in page.locator("#state").inner_text()
    assert page.locator("#front-box").is_hidden()
    site.write_changes(tmp_path, {**value, "state": "running", "entries": value["entries"][:3]})
    until(page, "document.querySelectorAll('.change').length === 3")
    assert "4 rewrites still to be tried" in page.locator("#state").inner_text()
    page.locator("#c2 .edits summary").click()
    site.write_changes(tmp_path, value)
    until(page, "document.querySelectorAll('.change').length === 7")
    assert page.locator("#c2 .edits").get_attribute("open") is not None  # what was opened stays so
    assert page.locator("#state").is_hidden()
    asked = len(seen.requests)
    page.wait_for_timeout(500)
    assert len(seen.requests) == asked  # finished: it no longer asks


def test_hostile_names_of_changes(visit: Opener, fakes: ModuleType, tmp_path: Path) -> None:
    value = fake.changes(tmp_path, base={"name": fakes.HOSTILE, "source": "", "sha256": ""})
    one = value["entries"][1]
    one["title"] = one["comparison"]["notes"][0] = one["comparison"]["first"] = fakes.HOSTILE
    one["comparison"]["layers"][2]["layer"] = one["comparison"]["features"][0]["layer"] = fakes.HOSTILE
    one["rewrite"]["edits"][0]["layer"] = one["rewrite"]["edits"][-1]["reason"] = fakes.HOSTILE
    value["entries"][-1]["error"] = fakes.HOSTILE
    site.write(tmp_path, changes=value)
    assert "<img" not in (tmp_path / "data" / "changes.js").read_text()
    page = visit(tmp_path, "changes.html").page
    assert page.locator("#c1 h2 .mono").inner_text() == fakes.HOSTILE
    assert page.locator("img[onerror]").count() == 0
    assert page.evaluate("[...document.scripts].every((script) => script.src)")


def test_two_networks_on_a_phone(visit: Opener, tmp_path: Path) -> None:
    value = fake.changes(tmp_path, planned=None)
    value["entries"] = value["entries"][1:2]
    value["entries"][0]["rewrite"] = None
    site.write(tmp_path, changes=value)
    page = visit(tmp_path, "changes.html", width=390, height=844, color_scheme="dark").page
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator("#front-box").is_hidden()
    assert page.locator("#table-box").is_hidden()
    assert page.locator("#c0 .badge").count() == 0
    assert page.locator("#c0 .edits").count() == 0
    assert page.locator("#c0 .growth").get_attribute("viewBox") == "0 0 380 230"
    page.set_viewport_size({"width": 1280, "height": 800})
    until(page, "document.querySelector('#c0 .growth').getAttribute('viewBox') === '0 0 760 270'")
