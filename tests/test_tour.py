"""The report and the look as one call each."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from convscope import tour
from convscope.models import InputSpec, Net

SMALL: dict[str, Any] = {
    "layers": ["relu1", "relu3", "fc"],
    "channels": 2,
    "steps": 4,
    "size": 32,
    "measures": False,
    "changes": False,
    "answers": "none",
}


def test_a_report_is_pages_and_an_atlas(tiny: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(tour.webbrowser, "open", lambda url: opened.append(url))
    events: list[dict[str, Any]] = []
    out = tmp_path / "report"
    made = tour.report(tiny, out, open=True, progress=events.append, **SMALL)
    assert made.page == out / "index.html"
    assert made.page.exists()
    assert made.atlas.done == 6
    assert opened == [made.page.resolve().as_uri()]
    assert events[-1]["done"] == 6
    assert json.loads(json.dumps(made.to_dict()))["units"] == 6
    assert "6 units" in repr(made)
    pages = {path.name for path in out.glob("*.html")}
    assert {"index.html"} <= pages
    text = made.page.read_text()
    assert "tiny" in text
    assert not re.search(
        r"""<(script|link|img|iframe)[^>]*(src|href)=["']?https?:""", text
    )  # credits may link
    assert (out / "look/0/image.webp").exists()  # the photograph
    again = tour.report(tiny, out, **SMALL)
    assert again.atlas.content == made.atlas.content


def test_the_page_stands_from_the_first_batch_on(tiny: Net, tmp_path: Path) -> None:
    out = tmp_path / "report"

    def progress(event: dict[str, Any]) -> None:
        if event["done"] >= 4:
            assert (out / "index.html").exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tour.report(tiny, out, photo=None, batch=1, progress=progress, **SMALL)
    assert "index.html" in {path.name for path in out.iterdir()}
    assert tour.report(tiny, out, photo=None, batch=1, **SMALL).atlas.done == 6


@pytest.mark.parametrize("shape", [(1, 28, 28), (5, 24, 24)])
def test_a_report_of_any_input(
    make_net: Callable[..., Net], tmp_path: Path, shape: tuple[int, int, int]
) -> None:
    module = nn.Sequential(
        nn.Conv2d(shape[0], 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )  # fmt: skip
    made = tour.report(
        make_net(module, shape),
        tmp_path / "r",
        channels=2,
        steps=3,
        measures=False,
        changes=False,
        answers="none",
    )
    assert made.page.exists()
    assert made.atlas.failed == 0


def test_a_module_and_its_input(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    spec = InputSpec((3, 32, 32))
    few: dict[str, Any] = {
        "channels": 1,
        "steps": 2,
        "photo": None,
        "measures": False,
        "changes": False,
        "answers": "none",
    }
    made = tour.report(module, tmp_path / "r", input=spec, **few)
    assert made.atlas.done >= 1


def test_a_look_as_a_page(tiny: Net, tmp_path: Path) -> None:
    seen = tour.look(tiny, torch.rand(3, 32, 32), out=tmp_path / "page", steps=2, layers=["relu2"])
    assert list(seen.layers) == ["relu2"]
    assert (tmp_path / "page/index.html").exists()
    assert (tmp_path / "page/look/0/image.webp").exists()
    alone = tour.look(tiny, torch.rand(3, 32, 32), pictures_of=False)
    assert alone.top


def test_links_from_a_look_to_the_atlas(tiny: Net, tmp_path: Path) -> None:
    made = tour.report(
        tiny,
        tmp_path / "r",
        layers=["relu1"],
        channels="all",
        steps=2,
        size=32,
        measures=False,
        changes=False,
        answers="none",
    )
    seen = tour.look(tiny, "chelsea", layers=["relu1"], pictures_of=False)
    content = tour._linked(seen.save(tmp_path / "r"), made.atlas.content)
    for row in content["layers"][0]["maps"]:
        assert row["unit"] == f"0/{row['channel']}/0"
