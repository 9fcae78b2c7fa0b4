"""The page of answers in a real browser, opened from file://, made of answers as `convscope ask` keeps them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convscope import site
from convscope.answers.base import Answer, Chart, Picture, Verdict, found
from convscope.answers.drawing import png, strip
from convscope.errors import StoreError
from convscope.measures.figures import Sheet
from convscope.site import answers

Opener = Callable[..., Any]
CURVES = {"a": [(1.0, 8.0), (2.0, 4.0)], "b": [(1.0, 0.0), (2.0, 2.0)]}
HOSTILE = "</script><img src=x onerror=alert(1)>"


def answer(question: str, layer: str = "conv1") -> Answer:
    return Answer(
        question=question,
        title=f"What about {question}?",
        statement=f"{layer} keeps 12 % of it. The rest is gone.",
        findings=(
            found("P1", True, "a test of {layer}", "{n} of 4 kept.", n=3, layer=layer),
            found("P2", False, "a test", "None."),
            found("P3", Verdict.WHEN, "a test", "Some.", when="n is {n}", n=2),
            found("P4", Verdict.OPEN, "a test", "Unknown.", when="no study recorded yet"),
        ),
        tables=(Sheet("sizes", ("layer", "out>"), ((layer, "28"),), ("a remark",)),),
        pictures=(Picture("map", "A map.", np.tile(np.arange(0, 250, 5, dtype=np.uint8), (40, 1))),),
        charts=(
            Chart("line", "how it falls", "layers", "pixels", CURVES, "y"),
            Chart("none", "nothing", "x", "y", {"a": []}),
        ),
        notes=("The machine was busy.",),
        conditions={"network": layer, "images": None, "seed": 0},
        command=f"convscope ask {question}",
        python="import convscope\n\nprint(convscope.ask('x'))",
    )  # fmt: skip


def keep(out: Path, one: Answer) -> None:
    """As `ask` writes it."""
    folder = out / answers.FOLDER
    folder.mkdir(exist_ok=True)
    told = one.to_dict()
    for picture, plain in zip(one.pictures, told["pictures"], strict=True):
        plain["file"] = f"{one.question}-{picture.name}.png"
        (folder / plain["file"]).write_bytes(png(picture.image))
    (folder / f"{one.question}.json").write_text(json.dumps(told))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("answers")
    for question in ("pooling", "padding"):
        keep(out, answer(question, HOSTILE if question == "pooling" else "conv1"))
    (out / answers.FOLDER / "store.json").write_text("{}")
    assert site.write(out) == out / "index.html"
    return out


@pytest.mark.parametrize("width", [390, 1440])
def test_it_is_silent_and_fits(visit: Opener, page: Path, width: int) -> None:
    seen = visit(page, "answers.html", width=width).page
    assert seen.evaluate("document.documentElement.scrollWidth") <= width
    assert seen.locator(".asked b").all_inner_texts() == ["What about padding?", "What about pooling?"]
    shown = seen.locator(".plot svg:visible")
    assert shown.count() == 2  # one of each pair, and the chart without points is left out
    box = shown.first.bounding_box()
    assert box["x"] + box["width"] <= width
    assert seen.locator(".shot img").first.evaluate("image => image.naturalWidth") == 50


def test_what_it_says(visit: Opener, page: Path) -> None:
    seen = visit(page, "answers.html").page
    question = seen.locator("#padding")
    assert (
        question.locator(".statement").inner_text()
        == "conv1 keeps 12\N{NO-BREAK SPACE}% of it. The rest is gone."
    )
    verdicts = question.locator(".verdict").all_inner_texts()
    assert verdicts == [
        "holds",
        "does not hold here",
        "holds when n is 2",
        "inconclusive: no study recorded yet",
    ]
    assert question.locator(".found").first.inner_text() == "3 of 4 kept."
    question.locator("summary", has_text="sizes").click()
    assert question.locator("td.number").inner_text() == "28"
    assert seen.locator(".asked a").first.locator(".mark").all_inner_texts() == ["1", "1", "1", "1"]
    question.locator("summary", has_text="How to make it again").click()
    assert "convscope ask padding" in question.locator(".again").inner_text()
    assert "images" not in question.locator(".again .hint").inner_text()
    assert seen.locator("nav a[aria-current]").inner_text() == "Answers"


def test_text_of_a_network_is_text(visit: Opener, page: Path) -> None:
    seen = visit(page, "answers.html").page
    assert seen.locator("#pooling .statement").inner_text().startswith(HOSTILE)
    assert seen.locator("#pooling img").count() == 1


def test_a_picture_outside_its_folder_is_not_shown() -> None:
    told = answer("padding").to_dict()
    told["pictures"][0]["file"] = "../../secret.png"
    assert answers.shown(told)["pictures"] == []


def test_a_damaged_answer_is_named(tmp_path: Path) -> None:
    (tmp_path / answers.FOLDER).mkdir()
    (tmp_path / answers.FOLDER / "padding.json").write_text("{")
    with pytest.raises(StoreError, match=r"padding\.json' cannot be read; remove it and ask again"):
        answers.stored(tmp_path, ["padding"])


def test_charts_leave_out_what_a_logarithm_cannot_show() -> None:
    chart = answer("padding").charts[0].to_dict()
    assert answers.draw(chart, True).count('aria-roledescription="point"') == 3
    assert answers.draw(chart | {"logs": ""}, True).count('aria-roledescription="point"') == 4


def test_pictures_have_their_titles(visit: Opener, tmp_path: Path) -> None:
    one = answer("padding")
    image = np.tile(np.arange(0, 250, 5, dtype=np.uint8), (40, 1))
    named = Picture("named", "Two by two.", image, ("left", HOSTILE), ("above", "below"))
    keep(tmp_path, replace(one, pictures=(named, strip("row", "A row.", {"a": image, "b": image}, 40))))
    site.write(tmp_path)
    seen = visit(tmp_path, "answers.html").page
    assert seen.locator(".columns li").all_inner_texts() == ["left", HOSTILE, "a", "b"]
    assert seen.locator(".rows li").all_inner_texts() == ["above", "below"]
    box, label = seen.locator(".shot img").first.bounding_box(), seen.locator(".rows li").last.bounding_box()
    assert box["y"] + box["height"] / 2 <= label["y"] + label["height"] / 2 <= box["y"] + box["height"]
    assert strip("row", "", {"a": image, "b": image[:, :10]}, 40).columns == ()


def test_names_of_curves_do_not_cover_one_another() -> None:
    series = {name: [(1.0, 0.0), (2.0, 5.0 + n / 100)] for n, name in enumerate("abcd")}
    drawn = str(answers.draw({"title": "t", "x": "x", "y": "y", "logs": "", "series": series}, True))
    heights = [float(y) for y in re.findall(r'translate\([\d.]+,([\d.]+)\)"[^>]*font-weight="600"', drawn)]
    assert len(heights) == 4
    assert min(b - a for a, b in pairwise(sorted(heights))) > 10


def test_what_was_not_answered_is_told(visit: Opener, tmp_path: Path) -> None:
    keep(tmp_path, answer("padding"))
    (tmp_path / answers.FOLDER / "refused.json").write_text(
        json.dumps({"Which one?": f"it has no {HOSTILE}."})
    )
    site.write(tmp_path)
    seen = visit(tmp_path, "answers.html").page
    assert seen.locator(".part li").all_inner_texts() == [f"Not answered: Which one? it has no {HOSTILE}."]
    (tmp_path / answers.FOLDER / "refused.json").write_text("[]")
    with pytest.raises(StoreError, match=r"refused\.json' cannot be read; remove it and ask again"):
        site.write(tmp_path)
