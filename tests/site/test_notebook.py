"""Notebook views."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from PIL import Image

from convscope import site
from convscope.errors import RequestError
from convscope.site import notebook


@dataclass(frozen=True)
class Unit:
    layer: str = "conv"
    channel: int = 3
    label: str | None = None
    activation: float = 1.5
    status: str = "converged"


def embedded(text: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/\w+;base64,([^"]+)"', text)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


@pytest.mark.parametrize(("channels", "mode"), [(3, "RGB"), (1, "L"), (5, "L")])
def test_a_visualization_is_a_labelled_grid(channels: int, mode: str) -> None:
    images = torch.zeros(2, channels, 4, 6)
    images[:, 0] = 0.5
    units = (Unit(), Unit(status="dead", label="<b>tench</b>"))
    text = notebook.html(SimpleNamespace(images=images, units=units))
    (picture,) = embedded(text)
    assert (picture.mode, picture.size) == (mode, (6, 4))
    assert picture.getpixel((0, 0)) == ((128, 0, 0) if channels == 3 else 128)
    assert "conv · 3" in text
    assert "activation 1.50 · converged" in text
    assert '<span class="none">dead</span>' in text
    assert "&lt;b&gt;tench" in text
    assert "<b>tench" not in text


def test_a_large_visualization_is_cut() -> None:
    text = notebook.html(SimpleNamespace(images=torch.zeros(103, 3, 2, 2), units=(Unit(),) * 103))
    assert len(embedded(text)) == 100
    assert "and 3 more" in text


def test_a_net_is_a_summary() -> None:
    spec = SimpleNamespace(shape=(3, 224, 224), mean=(0.5,), std=(0.25,))
    net = SimpleNamespace(
        module=None,
        input=spec,
        name="<img>",
        source="timm:resnet18",
        trained=True,
        parameters_count=11689512,
        sha256="ab" * 32,
        labels=None,
        warnings=("NaN in conv1.weight",),
    )
    text = notebook.html(net)
    for part in (
        "&lt;img&gt;",
        "timm:resnet18",
        "3 × 224 × 224",
        "0.5; 0.25",
        "11.7 M",
        "trained, sha256 abababab",
        "NaN in conv1",
    ):
        assert part in text, part


def test_an_atlas_is_a_link_and_a_preview(fakes: ModuleType, tmp_path: Path) -> None:
    fake = fakes.FakeAtlas(tmp_path, units=24, distinct=4)
    fake.add(24)
    site.write(tmp_path, atlas=fake.save())
    text = notebook.html(SimpleNamespace(manifest=str(tmp_path / "atlas.json")))
    assert len(embedded(text)) == 18
    assert (tmp_path / "index.html").as_uri() in text
    assert "24 of 24 units, done" in text


def test_anything_else_is_refused() -> None:
    with pytest.raises(
        RequestError, match="thing='x' has no notebook view; give a Visualization, a Net or an Atlas"
    ):
        notebook.html("x")
