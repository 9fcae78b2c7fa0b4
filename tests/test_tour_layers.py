"""The page of layers as part of a report: what is measured, kept, taken up again, and what an interruption leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from convscope import _layers, tour
from convscope.errors import ModelError, RequestError, StoreMismatch
from convscope.measures import roofline
from convscope.models import Net

SMALL: dict[str, Any] = {
    "layers": ["relu1", "fc"], "channels": 1, "steps": 2, "size": 32, "photo": None, "changes": False,
    "answers": "none",
}  # fmt: skip


def shown(out: Path) -> Any:
    text = (out / "data" / "layers.js").read_text()
    return json.loads(text.partition('convscopeData["layers"]=')[2].rstrip(";\n"))


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latency has tests of its own; here one pass, and peaks of small work, are enough."""
    monkeypatch.setattr(roofline, "COPIED", 2**20)
    monkeypatch.setattr(roofline, "LARGEST", {"cpu": 256})
    true = _layers.latency
    monkeypatch.setattr(_layers, "latency", lambda *args, **given: true(*args, **given | {"budget": 0.0}))


def test_a_report_measures_its_layers(tiny: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []
    tour.report(tiny, tmp_path, progress=told.append, **SMALL)
    found = shown(tmp_path)
    assert found["state"] == "done"
    assert found["left_out"] == []
    rows = {row["name"]: row for row in found["rows"]}
    conv = rows["conv1"]
    assert conv["macs"] == 12 * 3 * 5 * 5 * 32 * 32
    assert found["totals"]["macs"] == sum(row["macs"] for row in found["rows"])
    assert conv["seconds"] > 0
    assert conv["bound"] in ("compute", "memory", "overhead")
    assert 0 < conv["border"] < 1
    assert set(found["sights"]) == {"relu1", "fc"}
    assert set(found["sights"]["relu1"]) == {"effective", "border", "visits"}
    assert found["photo"]["credit"]["name"] == "chelsea"
    for file in [found["photo"]["file"], *(one["file"] for one in found["sights"]["relu1"].values())]:
        with Image.open(tmp_path / file) as picture:
            picture.load()
            assert max(picture.size) <= 32
    assert found["machine"]["threads"] == torch.get_num_threads()
    assert 0 <= found["shifts"]["agreement"]["value"] <= 1
    assert (tmp_path / "layers.html").exists()
    assert any(event["layer"].startswith("measuring effective field of relu1") for event in told)
    # a second run measures nothing
    before = (tmp_path / "data" / "layers.js").read_bytes()
    for name in ("measure", "latency", "border_effect", "effective_receptive_field", "visits", "consistency"):
        monkeypatch.setattr(_layers, name, None)
    tour.report(tiny, tmp_path, **SMALL)
    assert (tmp_path / "data" / "layers.js").read_bytes() == before


def test_an_interruption_is_told_and_taken_up_again(tiny: Net, tmp_path: Path) -> None:
    def stop(event: dict[str, Any]) -> None:
        if event["layer"].startswith("measuring visits of relu1"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tour.report(tiny, tmp_path, progress=stop, quick=True, **SMALL)
    found = shown(tmp_path)
    assert found["state"] == "interrupted"
    assert set(found["sights"]["relu1"]) == {"effective", "border"}
    told: list[str] = []
    tour.report(tiny, tmp_path, progress=lambda event: told.append(event["layer"]), quick=True, **SMALL)
    assert [what for what in told if what.startswith("measuring")] == [
        "measuring visits of relu1",
        "measuring effective field of fc",
        "measuring visits of fc",
    ]
    found = shown(tmp_path)
    assert found["state"] == "done"
    assert found["shifts"] is None  # quick


def test_what_cannot_be_measured_is_said(
    tiny: Net, make_net: Callable[..., Net], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RequestError("there is no gradient here")

    monkeypatch.setattr(_layers, "effective_receptive_field", refuse)
    tour.report(tiny, tmp_path, quick=True, **SMALL)
    wanted = [
        {"measure": "effective", "layer": layer, "reason": "there is no gradient here"}
        for layer in ("relu1", "fc")
    ]
    assert shown(tmp_path)["left_out"] == wanted
    tour.report(tiny, tmp_path, quick=True, **SMALL)
    assert shown(tmp_path)["left_out"] == wanted
    # an atlas that is refused leaves the folder as it was
    other = make_net(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    with pytest.raises(StoreMismatch):
        tour.report(other, tmp_path, channels=1, steps=2, photo=None, changes=False, answers="none")
    assert shown(tmp_path)["left_out"] == wanted


def test_a_network_that_cannot_be_counted(tiny: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ModelError("the network is compiled")

    monkeypatch.setattr(_layers, "measure", refuse)
    made = tour.report(tiny, tmp_path, **SMALL)
    assert made.atlas.done == 2
    found = shown(tmp_path)
    assert (found["error"], found["state"]) == ("the network is compiled", "done")


def test_a_network_without_pictures_of_its_own(make_net: Callable[..., Net], tmp_path: Path) -> None:
    class Five(nn.Module):  # five channels: no photograph fits
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool = nn.Conv2d(5, 6, 3, padding=1), nn.AdaptiveAvgPool2d(1)

        def forward(self, x: Tensor) -> Tensor:
            return self.pool(self.conv(x)).flatten(1)

    tour.report(
        make_net(Five(), (5, 16, 24)),
        tmp_path,
        channels=1,
        steps=2,
        quick=True,
        changes=False,
        answers="none",
    )
    found = shown(tmp_path)
    assert found["photo"] is None
    assert found["image"] == [16, 24]
    assert found["sights"]["conv"]["effective"]["data"] == "noise"
