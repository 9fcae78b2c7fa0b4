"""The page of `convscope bench conv` in a real browser, opened from file://."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convscope import site
from convscope.site import charts

Opener = Callable[..., Any]


def entry(name: str, ms: float | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "algorithm": name,
        "variant": "",
        "layout": "",
        "seconds": None,
        "reason": "it refuses",
    }
    found |= {"error": None, "workspace": None, "prepared": None, "operations": None}
    if ms is not None:
        found |= {
            "variant": "F(4,3)",
            "layout": "channels_last",
            "reason": "",
            "error": 2.5e-6,
            "prepared": 2**19,
        }
        found |= {"workspace": 0 if name == "direct" else 3 * 2**20, "operations": 12_345_678}
        found["seconds"] = {"median": ms / 1e3, "low": 0.9 * ms / 1e3, "high": 1.2 * ms / 1e3}
    return found


def survey() -> dict[str, Any]:
    """Two sweeps with two changes of the leader, as `Survey.to_dict()` has them."""
    points = []
    for value, times in {
        1: (0.1, 0.5, None), 3: (2.0, 3.0, 0.5), 9: (20.0, 4.0, None), 31: (200.0, 5.0, None),
    }.items():  # fmt: skip
        names = dict(zip(("direct", "fft", "winograd"), times, strict=True))
        best = min((t, name) for name, t in names.items() if t)
        points.append(
            {
                "value": value,
                "problem": f"1 x 64 x 56 x 56 -> 64, {value}x{value}",
                "entries": [entry(name, ms) for name, ms in names.items()],
                "fastest": best[1],
                "over_direct": times[0] / best[0],  # type: ignore[operator]
                "equal": [best[1]],
            }
        )
    row = {
        "name": "kernel",
        "title": "64 channels, 56 × 56",
        "axis": "kernel",
        "values": [1, 3, 9, 31],
        "answer": "direct at 1; winograd at 3 (4.0×); fft from 9 on (5.0 to 40.0×)",
        "points": points,
        "leads": [],
        "crossovers": [
            {"before": "direct", "after": "winograd", "low": 1, "high": 3, "value": None, "seconds": None},
            {"before": "winograd", "after": "fft", "low": 3, "high": 9, "value": 5.2, "seconds": 0.0034},
        ],
    }
    other = copy.deepcopy(row) | {
        "name": "resolution-3",
        "axis": "resolution",
        "title": "3 × 3 kernel, 64 channels",
    }
    machine = {
        "processor": "A Chip AVX512",
        "accelerator": None,
        "device": "cpu",
        "threads": 2,
        "dtype": "float32",
    }
    machine |= {"torch": "2.13.0", "convscope": "0.1.0"}
    known = {"machine": machine, "planned": 8, "done": 8, "seconds": 30.0, "load": 2.1, "busy": False}
    return known | {"sweeps": [row, other]}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench")
    assert site.write(out, convolution=survey()) == out / "index.html"
    return out


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_it_is_silent_and_fits(visit: Opener, page: Path, width: int, scheme: str) -> None:
    seen = visit(page, "convolution.html", width=width, color_scheme=scheme).page
    assert seen.evaluate("document.documentElement.scrollWidth") <= width
    assert seen.locator("h1").inner_text() == "FFT or Winograd, when?"
    shown = seen.locator(".plot svg:visible")
    assert shown.count() == 6  # of each pair the one for this width
    for index in range(6):
        box = shown.nth(index).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["height"] > 120
    # text of the charts stays readable: the drawing for phones is not the wide one, shrunk
    size = seen.evaluate(
        "(() => { const t = [...document.querySelectorAll('.plot svg text')].filter(t => t.checkVisibility());"
        "return Math.min(...t.map(t => t.getBoundingClientRect().height)); })()"
    )
    assert size >= 9


def test_it_answers(visit: Opener, page: Path) -> None:
    seen = visit(page, "convolution.html").page
    lane = seen.locator(".lane").first
    assert lane.locator("li b").all_inner_texts() == ["direct", "winograd", "fft", "fft"]
    assert lane.locator("li span").all_inner_texts() == ["fastest as it is", "4.0×", "5.0×", "40×"]
    answer = seen.locator(".answer").first.inner_text()
    assert "winograd at 3 (4.0×)" in answer
    assert "Between 1 and 3 winograd takes over from direct." in answer
    assert "The curves of winograd and fft meet near 5.20." in answer
    lane.locator("a").click()
    assert seen.url.endswith("#kernel")
    details = seen.locator("details.figures").first
    details.locator("summary").click()
    assert details.locator("tbody tr").count() == 12
    assert "it refuses" in details.inner_text()
    assert seen.locator("nav a[aria-current]").inner_text() == "Convolution"
    assert json.loads((page / "convolution.json").read_text())["done"] == 8


def test_colours_follow_the_theme(visit: Opener, page: Path) -> None:
    def colours(scheme: str) -> list[str]:
        seen = visit(page, "convolution.html", color_scheme=scheme).page
        found: list[str] = seen.evaluate(
            "[...document.querySelectorAll('.plot .wide text')].map(t => getComputedStyle(t).fill)"
        )
        return found

    light, dark = colours("light"), colours("dark")
    assert len(light) > 20
    assert all(a != b for a, b in zip(light, dark, strict=True))


def test_every_colour_of_a_chart_is_known_to_the_style_sheet() -> None:
    drawn = charts.of_survey(survey() | {"sweeps": survey()["sweeps"][:1]})
    assert drawn == charts.of_survey(survey() | {"sweeps": survey()["sweeps"][:1]})
    style = (Path(charts.__file__).parent / "assets" / "style.css").read_text()
    used = {
        match
        for row in drawn.values()
        for pair in row.values()
        for svg in pair
        for match in re.findall(r'(?:fill|stroke)="#[0-9a-f]+"', svg)
    }
    assert len(used) >= 7
    assert [each for each in used if f"[{each}]" not in style] == []
    text = "".join(svg for row in drawn.values() for pair in row.values() for svg in pair)
    assert "style=" not in text  # the page's security policy would drop it
    assert "<script" not in text
    assert 'role="img"' in text


def test_names_are_text_and_never_markup(visit: Opener, tmp_path: Path) -> None:
    hostile = survey()
    bad = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
    hostile["machine"]["processor"] = bad
    for row in hostile["sweeps"]:
        row["title"] = row["answer"] = bad
        for point in row["points"]:
            point["problem"] = point["entries"][0]["variant"] = bad
            point["entries"][1]["algorithm"] = bad
    site.write(tmp_path, convolution=hostile)
    seen = visit(tmp_path, "convolution.html").page
    assert bad in seen.locator("h2 small").first.inner_text()
    assert seen.locator("img").count() == 0


def test_busy_and_unfinished_are_said(visit: Opener, tmp_path: Path) -> None:
    site.write(tmp_path, convolution=survey() | {"busy": True, "load": 4.2, "done": 5})
    text = visit(tmp_path, "convolution.html").page.locator("main").inner_text()
    assert "load 4.2 on 2 threads" in text
    assert "5 of 8 points are measured; the same command goes on from there." in text


def test_it_joins_a_report_and_stays_there(fakes: Any, visit: Opener, tmp_path: Path) -> None:
    fake = fakes.FakeAtlas(tmp_path, units=12, distinct=4)
    fake.add(12)
    site.write(fake.out, atlas=fake.save())
    site.write(fake.out, convolution=survey())
    site.write(fake.out, atlas=fake.manifest())  # as a later chunk would
    seen = visit(fake.out, "convolution.html").page
    assert seen.locator("nav a").all_inner_texts() == ["Overview", "Filters", "Convolution"]
    seen.locator("nav a").first.click()
    assert seen.locator("h1").inner_text() == "EfficientNet-Lite0"


def test_nothing_measured_draws_nothing(tmp_path: Path) -> None:
    empty = survey()
    empty["sweeps"] = [row | {"points": [], "crossovers": []} for row in empty["sweeps"]]
    site.write(tmp_path, convolution=empty)
    assert "<svg" not in (tmp_path / "convolution.html").read_text().split("<main")[1]
