"""The page of studies in a real browser, opened from file://, made of studies as their records tell them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convscope import site
from convscope.errors import StoreError
from convscope.site import studies
from convscope.studies.design import Design
from convscope.studies.results import Cost, Run, StudyResult, VariantResult

Opener = Callable[..., Any]
HOSTILE = "</script><img src=x onerror=alert(1)>"
DATA = {"name": "clothes", "kind": "image", "counts": {"train": 80, "test": 20}, "sha256": "d" * 64}


def trained(
    levels: dict[str, list[float]], name: str = "sizes", costs: bool = True, title: str = ""
) -> dict[str, Any]:
    """A study whose variants reached these accuracies, seed by seed; the first is the baseline."""
    design = Design(
        "convscope.studies.networks:small_cnn", {"block": {each: {} for each in levels}},
        seeds=len(next(iter(levels.values()))), name=name, title=title,
    )  # fmt: skip
    variants = []
    for place, (variant, scores) in enumerate(zip(design.variants(), levels.values(), strict=True)):
        runs = tuple(
            Run(place, seed, f"{place}-{seed}", {"test": score, "validation": score}, curves={
                "validation_accuracy": [score / 2, None, score]
            })
            for seed, score in enumerate(scores)
        )  # fmt: skip
        cost = Cost(f"k{place}", 100 * 10**place, 1000 * 10**place, (3, 3)) if costs else None
        variants.append(VariantResult(variant.values, variant.label, cost, runs))
    return StudyResult(design, DATA, {"sources": "c" * 16, "torch": "2"}, tuple(variants)).to_dict()


SIZES = {"small": [0.60, 0.62, 0.61], "middle": [0.80, 0.82, 0.80], HOSTILE: [0.805, 0.823, 0.802]}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("studies")
    told = {
        "sizes": trained(SIZES, title="Which size?") | {"made_with": "Made elsewhere."},
        "words-only": trained({"a": [0.5, 0.6], "b": [0.7, 0.7]}, costs=False),
        "empty": trained({"a": [0.5]}) | {"summary": None},
    }
    told["empty"]["failed"] = [
        {"variant": 0, "seed": seed, "reason": f"no memory {HOSTILE} {'x' * 200}"} for seed in (1, 0)
    ]
    assert site.write(out, studies=told) == out / "index.html"
    return out


@pytest.mark.parametrize("width", [390, 1440])
def test_it_is_silent_and_fits(visit: Opener, page: Path, width: int) -> None:
    seen = visit(page, "studies.html", width=width).page
    assert seen.evaluate("document.documentElement.scrollWidth") <= width
    assert seen.locator(".asked b").all_inner_texts() == ["Which size?", "Words only", "Empty"]
    shown = seen.locator(".plot svg:visible")
    assert shown.count() == 3  # without costs there are curves alone; without runs nothing
    box = shown.first.bounding_box()
    assert box["x"] + box["width"] <= width


def test_what_it_says(visit: Opener, page: Path) -> None:
    seen = visit(page, "studies.html").page
    study = seen.locator("#study-sizes")
    assert study.locator(".statement").inner_text().startswith("Take block=middle: the cheapest (by MACs)")
    facts = study.locator(".statement + .hint").inner_text()
    assert facts.startswith(
        "3 variants × 3 seeds, 5 epochs each; clothes: images, 80 for training, 20 for the test."
    )
    assert facts.endswith("Made elsewhere.")
    heads = study.locator("thead th").all_inner_texts()
    rows = [
        dict(zip(heads, row.locator("th, td").all_inner_texts(), strict=True))
        for row in study.locator("tbody tr").all()
    ]
    assert [row["test accuracy, %"] for row in rows] == ["61.0", "80.7", "81.0"]
    assert [row["difference, points"] for row in rows] == ["baseline", "+19.7", "+20.0"]
    assert [row["MACs"] for row in rows] == ["1 k", "10 k", "100 k"]
    assert [row["sees"] for row in rows] == ["3", "3", "3"]
    assert [row[""] for row in rows] == ["front", "take this front", "front"]
    assert study.locator("tr.chosen th").inner_text() == "block=middle"
    study.locator("summary").click()
    assert "block=middle: seed 0: 80.0; seed 1: 82.0; seed 2: 80.0" in study.inner_text()
    assert "cccccccccccc" in study.locator(".settings").inner_text()
    assert seen.locator("nav a[aria-current]").inner_text() == "Studies"


def test_text_of_a_design_is_text(visit: Opener, page: Path) -> None:
    seen = visit(page, "studies.html").page
    assert seen.locator("#study-sizes tbody th").nth(2).inner_text() == f"block={HOSTILE}"
    told = seen.locator("#study-empty .part").inner_text()
    assert told == f"block=a, seeds 0, 1 failed: no memory {HOSTILE} {'x' * 200}"
    assert seen.locator("img").count() == 0


def test_a_study_without_costs_or_runs(visit: Opener, page: Path) -> None:
    seen = visit(page, "studies.html").page
    assert "could not be counted" in seen.locator("#study-words-only .statement").inner_text()
    assert "MACs" not in seen.locator("#study-words-only thead").inner_text()
    assert seen.locator("#study-empty .statement").inner_text() == "No run has finished."


def test_intervals_lie_where_their_numbers_are() -> None:
    study = studies.shown("sizes", trained(SIZES))
    small, middle, _ = study["rows"]
    assert small["forest"] is None
    assert f'cx="{_place(study, 1)}"' in middle["forest"]
    assert 66 < _place(study, 1) < 125


def _place(study: dict[str, Any], row: int) -> float:
    found = [each["difference"] for each in study["rows"] if each["difference"]]
    reach = max(abs(end) for each in found for end in (each["mean"], each["low"], each["high"]))
    return round(66 + study["rows"][row]["difference"]["mean"] / reach * 59, 1)


def test_a_mean_leaves_out_what_is_missing() -> None:
    assert studies._curve([[0.5, None], [0.7, None, 1.0]]) == [{"x": 1.0, "y": 60.0}, {"x": 3.0, "y": 100.0}]


def test_more_variants_than_colours() -> None:
    many = {f"v{n}": [0.5 + n / 100, 0.51 + n / 100] for n in range(13)}
    study = studies.shown("many", trained(many))
    assert study["folds"]
    assert len({str(row["mark"]) for row in study["rows"]}) == studies.MANY
    assert 'fill="none"' in study["rows"][6]["mark"]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    site.write(tmp_path, studies={"sizes": trained(SIZES)})
    (tmp_path / studies.FILE).write_text("{")
    with pytest.raises(StoreError, match=r"studies\.json"):
        site.write(tmp_path)


def test_values_say_so() -> None:
    told = trained(SIZES)
    told["data"] = {**json.loads(json.dumps(told["data"])), "values": True}
    assert studies.shown("values", told)["score"] == "R²"


def test_a_choice_by_another_cost_and_margin_is_drawn_by_it() -> None:
    told = trained(SIZES)
    told["summary"]["choice"] |= {"cost": "params", "margin": 0.05}
    study = studies.shown("sizes", told)
    assert [row["cost"] for row in study["rows"]] == [100, 1000, 10000]
    assert study["charts"][0]["title"].startswith("Accuracy on the test data beside parameters")
    assert studies.key([study]) == "settled at a margin of 5 points"
    assert studies.key([study, studies.shown("sizes", trained(SIZES))]).endswith("5 points or one point")


def test_failures_of_several_variants_are_told_once() -> None:
    told = trained(SIZES)
    told["failed"] = [{"variant": place, "seed": 0, "reason": "no memory"} for place in range(3)]
    assert studies.shown("sizes", told)["failed"] == ["3 runs of 3 variants failed: no memory"]


def test_one_study_needs_no_list(visit: Opener, tmp_path: Path) -> None:
    site.write(tmp_path, studies={"sizes": trained({"a" * 90: [0.5, 0.6], "b": [0.4, 0.4]})})
    seen = visit(tmp_path, "studies.html", width=390).page
    assert seen.locator(".asked").count() == 0
    assert seen.locator("td.number").nth(1).inner_text() == "baseline"
    assert seen.locator("td.number", has_text="\N{MINUS SIGN}15.0").count() == 1
    assert seen.locator("tbody th").first.bounding_box()["width"] < 200  # a long label is broken
