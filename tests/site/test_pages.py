"""The report in a real browser, opened from file://."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from convscope import site

PAGES = ("index.html", "filters.html", "look.html")
Opener = Callable[..., Any]


def until(page: Any, condition: str, seconds: float = 8) -> None:
    """Waits for a condition; Playwright's own `wait_for_function` needs the `eval` that the pages forbid."""
    end = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < end, f"still not so after {seconds} s: {condition}"
        page.wait_for_timeout(30)


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("width", [390, 1440])
def test_a_page_is_silent_and_fits(visit: Opener, report: Path, page: str, width: int) -> None:
    seen = visit(report, page, width=width)
    seen.page.mouse.wheel(0, 3000)
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    assert seen.page.evaluate("document.querySelectorAll('h1').length") == 1


def test_overview_shows_the_network(visit: Opener, report: Path) -> None:
    page = visit(report, "index.html").page
    assert page.locator("h1").inner_text() == "EfficientNet-Lite0"
    assert page.locator("#mosaic .tile").count() == 36
    assert page.locator("article.layer").count() == 12
    assert page.locator("article.layer h3").first.inner_text() == "conv_stem"
    assert "118 pictures from 12 layers" in page.locator("#lead").inner_text()
    assert page.locator("#progress").is_hidden()
    page.locator("details.between").first.locator("summary").click()
    page.locator("details.between tbody").first.wait_for()
    assert page.locator("details.between").first.locator("tbody tr").count() == 5
    page.locator("#mosaic .tile").nth(8).click()
    assert "filters.html#unit=" in page.url
    page.locator("#panel img.large").wait_for()


def test_search_by_layer_label_and_channel(visit: Opener, report: Path) -> None:
    page = visit(report, "filters.html").page
    search = page.locator("#query")
    expected = {
        "blocks.4.2": 10,
        "BLOCKS.5 7": 1,
        "great white": 1,
        "classifier #9": 1,
        "dead": 1,
        "3/7/": 1,
        "nan": 1,
    }
    for text, count in expected.items():
        search.fill(text)
        assert page.locator(".unit").count() == count, text
        assert page.locator("#count").inner_text() == f"{count} of 120 units"
    search.fill("no such thing")
    assert page.locator(".unit").count() == 0
    assert "No unit matches “no such thing”." in page.locator("#empty").inner_text()
    page.get_by_role("button", name="Show all units").click()
    assert page.locator("#count").inner_text() == "120 units"
    assert search.input_value() == ""


def test_filter_and_sort_by_score(visit: Opener, report: Path) -> None:
    page = visit(report, "filters.html").page
    page.locator("#show").select_option("weak")
    assert set(page.locator(".unit").evaluate_all("all => all.map(one => one.dataset.id.split('/')[1])")) == {
        "5"
    }
    page.locator("#show").select_option("all")
    page.locator("#query").fill("conv_stem")
    page.locator("#sort").select_option("activation")
    labels = page.locator(".unit").evaluate_all("all => all.map(one => one.getAttribute('aria-label'))")
    scores = [float(label.split("activation ")[1].split(",")[0]) for label in labels]
    assert scores == sorted(scores, reverse=True)
    page.locator("#least").fill(str(scores[3]))
    assert 3 <= page.locator(".unit").count() <= 4


def test_a_deep_link_opens_the_unit(visit: Opener, report: Path) -> None:
    page = visit(report, "filters.html#unit=7/3/0").page
    panel = page.locator("#panel")
    assert panel.locator("h2").inner_text() == "Channel 3"
    assert panel.locator(".where").inner_text() == "blocks.4.1.conv_dw"
    assert panel.locator("svg.chart").count() == 2
    assert panel.locator(".crops li").count() == 6
    assert panel.locator(".scores > div").count() == 4
    assert panel.locator("pre").first.inner_text() == (
        "convscope visualize efficientnet-lite0 'blocks.4.1.conv_dw' --channels 3 --out pictures"
    )
    assert page.locator(".unit[aria-current]").get_attribute("data-id") == "7/3/0"
    assert page.evaluate("document.querySelector('#panel img.large').naturalWidth") == 128
    page.evaluate("location.hash = 'unit=7/99/0'")
    until(page, "document.querySelector('#panel h2')?.textContent === 'Unit 7/99/0'")
    assert "no such unit" in panel.inner_text()


def test_units_without_a_picture_say_why(visit: Opener, report: Path) -> None:
    page = visit(report, "filters.html#unit=3/7/0").page
    assert page.locator("#panel div.large").inner_text() == "dead"
    assert "Zero on natural and random input alike" in page.locator("#panel").inner_text()
    page.evaluate("location.hash = 'unit=6/8/0'")
    until(page, "document.querySelector('#panel div.large')?.textContent === 'not finite'")


def test_keyboard(visit: Opener, report: Path) -> None:
    page = visit(report, "filters.html#unit=0/1/0").page
    heading = page.locator("#panel h2")
    page.keyboard.press("ArrowRight")
    assert heading.inner_text() == "Channel 2"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")  # the first unit: stays
    assert heading.inner_text() == "Channel 0"
    until(page, "location.hash === '#unit=0/0/0'")
    assert page.title().startswith("conv_stem · channel 0 · Filters")
    page.keyboard.press("Escape")
    assert page.locator("#panel").is_hidden()
    until(page, "location.hash === ''")
    focused = "document.activeElement.dataset.id || document.activeElement.id"
    assert page.evaluate(focused) == "0/0/0"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    below = page.evaluate(focused)
    assert below.split("/")[0] in ("0", "1")
    page.keyboard.press("Enter")
    until(page, f"location.hash === '#unit={below}'")
    assert page.evaluate(focused) == "panel"
    page.keyboard.press("/")
    assert page.evaluate(focused) == "query"
    page.keyboard.type("tench")
    assert page.locator("#count").inner_text() == "1 of 120 units"
    page.keyboard.press("Escape")
    assert page.locator("#query").input_value() == ""
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.get_by_role("dialog", name="Keyboard").is_visible()
    page.keyboard.press("Escape")
    assert page.get_by_role("dialog").count() == 0


def test_back_closes_the_unit(visit: Opener, report: Path) -> None:
    page = visit(report, "filters.html").page
    page.locator(".unit").nth(2).click()
    page.locator("#panel").wait_for()
    page.go_back()
    assert page.locator("#panel").is_hidden()


def test_on_a_phone_the_unit_covers_the_page(visit: Opener, report: Path) -> None:
    page = visit(report, "filters.html", width=390).page
    page.locator(".unit").nth(4).click()
    assert page.locator("#panel").bounding_box()["width"] == 390
    assert page.evaluate("document.getElementById('main').inert")
    page.get_by_role("button", name="Close (Esc)").click()
    assert not page.evaluate("document.getElementById('main').inert")
    page.locator("#jump").select_option("6")
    until(page, "document.getElementById('jump').value === '6' && scrollY > 500")


def test_copy_buttons(visit: Opener, report: Path) -> None:
    page = visit(report, "filters.html#unit=0/1/0", permissions=["clipboard-read", "clipboard-write"]).page
    page.get_by_role("button", name="Copy: Python").click()
    page.get_by_text("Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()").startswith("import convscope")


@pytest.mark.parametrize("stored", [True, False])
def test_light_and_dark(visit: Opener, report: Path, stored: bool) -> None:
    denied = "{get() { throw new DOMException('no', 'SecurityError'); }}"
    denied = f"Object.defineProperty(window, 'localStorage', {denied});"
    seen = visit(report, "index.html", color_scheme="dark", script="" if stored else denied)
    colour = "getComputedStyle(document.body).backgroundColor"
    dark = seen.page.evaluate(colour)
    seen.page.locator("#theme").click()
    light = seen.page.evaluate(colour)
    assert light != dark
    seen.go("filters.html")
    assert seen.page.evaluate(colour) == (light if stored else dark)


def test_two_thousand_units_scroll(visit: Opener, large_report: Path) -> None:
    page = visit(large_report, "filters.html").page
    assert page.locator("#count").inner_text() == "2,000 units"
    measured = page.evaluate("""async () => {
        const frame = () => new Promise(requestAnimationFrame), times = [];
        let most = 0, bare = 0;
        for (let y = 0; y < document.body.scrollHeight - innerHeight; y += 400) {
            const begun = performance.now();
            scrollTo(0, y);
            await frame(); await frame();
            times.push(performance.now() - begun);
            most = Math.max(most, document.querySelectorAll('.unit').length);
            const rows = [...document.querySelectorAll('.row')].map((row) => row.getBoundingClientRect());
            const top = Math.min(...rows.map((r) => r.top)), bottom = Math.max(...rows.map((r) => r.bottom));
            if (top > innerHeight / 2 || bottom < innerHeight - 300) bare++;
        }
        times.sort((a, b) => a - b);
        return {steps: times.length, median: times[times.length >> 1], worst: times.at(-1), most, bare};
    }""")
    print(measured)
    assert measured["steps"] > 30
    assert measured["most"] < 400
    assert measured["bare"] == 0
    assert measured["median"] < 100
    page.evaluate("location.hash = 'unit=11/160/0'")
    until(page, "document.querySelector('.unit[aria-current]')?.dataset.id === '11/160/0'")
    box = page.locator(".unit[aria-current]").bounding_box()
    assert 0 < box["y"] < 800


def test_hostile_names_are_inert(visit: Opener, fakes: ModuleType, tmp_path: Path) -> None:
    names = (
        fakes.HOSTILE,
        "../../x",
        "</script><script>alert(2)</script>",
        "long." + "module_" * 60,
        "\u2028",
        "",
    )
    fake = fakes.FakeAtlas(tmp_path, names=names, units=36, distinct=4)
    fake.add(36)
    looked = fakes.look(tmp_path, ["0/0/0"])
    looked["image"]["name"] = looked["top"][0]["label"] = looked["units"][0]["layer"] = fakes.HOSTILE
    looked["evidence"]["file"] = "https://example.org/x.png"
    manifest = fake.manifest()
    manifest["net"]["name"] = manifest["net"]["source"] = fakes.HOSTILE
    manifest["settings"][fakes.HOSTILE] = fakes.HOSTILE
    manifest["skipped"] = [{"layer": fakes.HOSTILE, "reason": fakes.HOSTILE}]
    manifest["attributions"][0]["title"] = fakes.HOSTILE
    unit = manifest["units"][1]
    unit["label"] = unit["command"] = unit["python"] = unit["natural"]["examples"][0]["image"] = fakes.HOSTILE
    site.write(tmp_path, atlas=manifest, looks=[looked])
    for address in ("index.html", "look.html", "filters.html#unit=0/1/0"):
        page = visit(tmp_path, address).page
        assert page.locator("img[onerror]").count() == 0
        assert page.evaluate("[...document.scripts].every((script) => script.src)")
        assert fakes.HOSTILE in page.locator("body").inner_text()
        assert page.locator("a[href^=javascript]").count() == 0
    assert page.locator("#panel pre").first.inner_text() == fakes.HOSTILE


def test_missing_and_damaged_pictures(visit: Opener, fakes: ModuleType, tmp_path: Path) -> None:
    fake = fakes.FakeAtlas(tmp_path, units=24, distinct=4)
    fake.add(24)
    (tmp_path / fake.units[0]["image"]).unlink()
    (tmp_path / fake.units[1]["image"]).write_bytes(b"RIFF")
    fake.units[2]["image"] = "../secret.webp"
    site.write(tmp_path, atlas=fake.manifest())
    page = visit(tmp_path, "filters.html#unit=0/0/0").page
    assert page.locator(".unit .none", has_text="file missing").count() == 3
    assert page.locator("#panel div.large").inner_text() == "file missing"


def test_one_unit_and_none_yet(visit: Opener, fakes: ModuleType, tmp_path: Path) -> None:
    fake = fakes.FakeAtlas(tmp_path, names=("conv",), units=1, photos=False)
    site.write(tmp_path, atlas=fake.manifest("interrupted"))
    page = visit(tmp_path, "filters.html").page
    assert "There are no units in this report." in page.locator("#empty").inner_text()
    assert visit(tmp_path, "index.html").page.locator(".hero").is_hidden()
    fake.add(1)
    site.write(tmp_path, atlas=fake.manifest())
    page = visit(tmp_path, "filters.html#unit=0/0/0").page
    assert page.locator(".unit").count() == 1
    assert page.locator("#panel .crops").count() == 0


def test_a_running_atlas_fills_in_place(visit: Opener, fakes: ModuleType, tmp_path: Path) -> None:
    fake = fakes.FakeAtlas(tmp_path, units=120, distinct=12)
    fake.add(70)
    site.write(tmp_path, atlas=fake.manifest("running"))
    hurry = "const wait = setTimeout; window.setTimeout = (run, ms) => wait(run, ms >= 3000 ? ms / 10 : ms);"
    seen = visit(tmp_path, "filters.html#unit=4/2/0", height=500, script=hurry)
    page = seen.page
    assert "70 of 120" in page.locator("#progress").inner_text()
    before, where = page.evaluate("scrollY"), page.locator("#panel h2").inner_text()
    assert before > 300
    page.evaluate("document.querySelector('#panel img.large').dataset.same = 'yes'")
    fake.add(30)
    site.write(tmp_path, atlas=fake.manifest("running"))
    until(page, "document.getElementById('count').textContent === '100 units'")
    assert page.evaluate("scrollY") == before
    assert page.locator("#panel h2").inner_text() == where
    fake.add(20)
    site.write(tmp_path, atlas=fake.manifest("done"))
    until(page, "document.getElementById('progress').hidden")
    assert page.locator("#count").inner_text() == "120 units"
    assert page.locator("#panel img.large").get_attribute("data-same") == "yes"  # untouched by the updates
    asked = len(seen.requests)
    page.wait_for_timeout(700)
    assert len(seen.requests) == asked  # finished: it no longer asks


def test_look_shows_the_optimized_pictures(visit: Opener, report: Path) -> None:
    page = visit(report, "look.html").page
    assert page.locator("h1").inner_text() == "astronaut"
    assert page.locator(".top li").first.inner_text().split() == ["tench", "62.0", "%"]
    assert page.locator(".maps li").count() == 18
    assert page.locator(".responders .tile:not([hidden]) .pic").count() == 8


def test_a_look_alone(visit: Opener, fakes: ModuleType, tmp_path: Path) -> None:
    site.write(tmp_path, looks=[fakes.look(tmp_path, [])])
    page = visit(tmp_path, "index.html").page
    assert page.locator("h1").inner_text() == "astronaut"
    assert page.locator(".bar nav a").all_inner_texts() == ["Look"]


def test_controls_have_names(visit: Opener, report: Path) -> None:
    page = visit(report, "filters.html#unit=0/1/0", width=1000).page
    for role, name in (
        ("searchbox", "Search"),
        ("combobox", "Layer"),
        ("combobox", "Show"),
        ("combobox", "Sort"),
    ):
        assert page.get_by_role(role, name=name, exact=True).count() == 1, name
    for name in ("Switch between light and dark", "Next unit (right arrow)", "Copy: Command"):
        assert page.get_by_role("button", name=name).count() == 1, name
    nameless = "(one) => !one.textContent.trim() && !one.ariaLabel"
    assert page.evaluate(f"[...document.querySelectorAll('a, button')].filter({nameless}).length") == 0
