"""The page of changes as part of a report: what is tried, kept, taken up again, and what an interruption leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from convscope import _changes, tour
from convscope._changes import ChangesPage, Trial, trials
from convscope.models import Net
from convscope.rewrites import compare as compare_module
from convscope.rewrites.base import VerificationError
from convscope.rewrites.compare import compare

SMALL: dict[str, Any] = {
    "layers": ["fc"],
    "channels": 1,
    "steps": 2,
    "size": 32,
    "photo": None,
    "measures": False,
    "answers": "none",
}


def shown(out: Path) -> Any:
    text = (out / "data" / "changes.js").read_text()
    return json.loads(text.partition('convscopeData["changes"]=')[2].rstrip(";\n"))


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures and times have tests of their own."""
    monkeypatch.setattr(_changes, "STEPS", 2)
    monkeypatch.setattr(_changes, "TIMING", 0.0)
    monkeypatch.setattr(_changes, "FEW", (Trial("fold_batch_norm"), Trial("padding:replicate,where=conv1")))
    monkeypatch.setattr(
        _changes, "MORE", (Trial("pool:blur"), Trial("untie"), Trial("bottleneck:4,where=conv2", fitted=True))
    )
    monkeypatch.setattr(_changes, "WAYS", ("crop", "native"))


def test_a_report_tries_rewrites(tiny: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    tour.report(tiny, tmp_path, progress=lambda event: told.append(event["layer"]), **SMALL)
    found = shown(tmp_path)
    assert found["state"] == "done"
    assert found["planned"] == [entry["title"] for entry in found["entries"]]
    assert found["planned"][-1] == "input_size:height=45,width=51,how=native"
    entries = {entry["title"]: entry for entry in found["entries"]}
    fold = entries["fold_batch_norm"]
    assert fold["made"]["exactness"] == "exact"
    assert len(fold["made"]["edits"]) == 3
    assert fold["found"]["outputs"]["rms"] <= fold["found"]["tolerance"]
    assert fold["found"]["images"] == {"count": 6, "source": "photographs"}
    padding = entries["padding:replicate,where=conv1"]
    assert padding["found"]["first"] == "conv1"
    assert len(padding["found"]["features"]) == 6
    for feature in padding["found"]["features"]:
        with Image.open(tmp_path / feature["after"]) as picture:
            picture.load()
    assert padding["found"]["figures"][-1]["key"] == "latency"
    low = entries["bottleneck:4,where=conv2"]
    assert low["made"]["data"] == {"source": "photographs", "count": 6}  # the other half
    crop = entries["input_size:height=45,width=51,how=crop"]
    assert crop["found"]["features"] == []
    assert (tmp_path / "changes.html").exists()
    assert "measuring what pool:blur changes" in told
    # a second run tries nothing
    before = (tmp_path / "data" / "changes.js").read_bytes()
    monkeypatch.setattr(_changes, "rewrite", None)
    tour.report(tiny, tmp_path, **SMALL)
    assert (tmp_path / "data" / "changes.js").read_bytes() == before


def test_an_interruption_is_told_and_taken_up_again(tiny: Net, tmp_path: Path) -> None:
    def stop(what: str) -> None:
        if what == "what pool:blur changes":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), ChangesPage(tiny, tmp_path) as page:
        page.finish(stop)
    found = shown(tmp_path)
    assert found["state"] == "interrupted"
    assert [entry["title"] for entry in found["entries"]] == found["planned"][:2]
    told: list[str] = []
    with ChangesPage(tiny, tmp_path) as page:
        page.finish(told.append)
    assert told == [f"what {rule} changes" for rule in found["planned"][2:]]
    assert shown(tmp_path)["state"] == "done"


def test_what_cannot_be_done_is_said(
    tiny: Net, make_net: Callable[..., Net], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = _changes.rewrite

    def fails(net: Net, rule: str, **given: Any) -> Any:
        if rule == "untie":
            raise VerificationError("untie claims too much")
        return true(net, rule, **given)

    monkeypatch.setattr(_changes, "rewrite", fails)
    plain = make_net(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    )
    with ChangesPage(plain, tmp_path) as page:
        page.finish(lambda what: None)
    entries = {entry["title"]: entry for entry in shown(tmp_path)["entries"]}
    assert "found nothing to do" in entries["fold_batch_norm"]["error"]
    assert entries["untie"]["error"] == "untie claims too much"
    blur = entries["pool:blur"]
    assert (blur["found"], blur["made"]["edits"]) == (None, [])
    assert len(blur["made"]["refused"]) == 1
    # what a folder holds of another network is made again
    with ChangesPage(tiny, tmp_path, quick=True) as page:
        page.finish(lambda what: None)
    again = shown(tmp_path)
    assert again["base"]["name"] == "tiny"
    assert [len(entry["found"]["features"]) for entry in again["entries"]] == [0, 0]


def test_a_network_that_cannot_be_recorded(make_net: Callable[..., Net], tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("not today")

    with ChangesPage(make_net(Odd()), tmp_path) as page:
        page.finish(lambda what: None)
    found = shown(tmp_path)
    assert "not today" in found["left_out"]
    assert (found["state"], found["entries"]) == ("done", [])


def test_large_networks_are_tried_less() -> None:
    assert len(trials((224, 224), 1e9, quick=False)) == 7
    assert [trial.rule for trial in trials((224, 224), 2e10, quick=False)] == [
        one.rule for one in _changes.FEW
    ]
    assert trials((64,), 1e6, quick=False) == _changes.FEW
    assert not any(trial.pictures for trial in trials((224, 224), 1e9, quick=True))


def test_a_comparison_as_a_page(tiny: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_module, "BUDGET", 0.0)
    found = compare(tiny, tiny, limit=2, memory=False, features={"conv1": [0]}, steps=2)
    page = tour.changes(found, tmp_path)
    assert page == tmp_path / "changes.html"
    (entry,) = shown(tmp_path)["entries"]
    assert entry["title"] == "tiny"
    assert (tmp_path / entry["found"]["features"][0]["before"]).exists()
