"""Images of the user's own: a labelled folder, and a tensor, reach every answer that looks at images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import convscope
from convscope.answers.asked import Asked, Meter
from convscope.answers.drawing import pixels, png
from convscope.answers.questions import QUESTIONS
from convscope.data import fashion, images
from convscope.data.fashion import LABELS


def asked(net: Any, data: Any, *, quick: bool = True) -> Asked:
    settings: dict[str, Any] = {"quick": quick, "seed": 0, "store": None, "meter": Meter(1, None)}
    return Asked(QUESTIONS["padding"], net, data, **settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images of each class, as PNG files in class folders."""
    out = tmp_path_factory.mktemp("clothes")
    clothes, labels = fashion("test")
    for place in range(30):
        name = LABELS[int(labels[place])].lower().replace("/", "_").replace(" ", "_")
        (out / name).mkdir(exist_ok=True)
        (out / name / f"{place}.png").write_bytes(png(pixels(clothes[place])))
    return out


def test_a_folder_of_classes_is_labelled(folder: Path) -> None:
    net = convscope.load("fashion")
    seen = asked(net, images(folder)).images(net)
    assert seen.source.startswith("30 images of clothes")
    assert seen.labels is not None
    assert sorted(seen.labels.tolist()) == sorted(list(range(10)) * 3)
    right = (net.module(seen.x).argmax(1) == seen.labels).float().mean()
    assert right > 0.7
    assert len(asked(net, images(folder)).images(net, 7).x) == 7


def test_embedded_images_are_what_fits() -> None:
    net = convscope.load("fashion")
    own = asked(net, None).images(net, 20)
    assert own.labels is not None
    assert own.labels.tolist() == [place % 10 for place in range(20)]
    decoder = convscope.load("fashion-decoder")
    assert asked(decoder, None).images(decoder, 5).labels is None
    tensor = torch.zeros(4, 1, 28, 28)
    assert torch.equal(asked(net, tensor).images(net).x, tensor)
    assert (
        len(asked(net, tensor).images(net, own=False).x) > 4
    )  # for an embedded helper the user's images need not fit


def test_how_many_follows_from_the_cost() -> None:
    small, large = convscope.load("fashion"), convscope.load()
    assert asked(small, None).limit(small) == int(5e9 / 37_478_784)
    assert asked(large, None).limit(large) == 16
    assert asked(small, None, quick=False).limit(small) == 2000


def test_an_answer_about_a_folder(folder: Path, tmp_path: Path) -> None:
    answer = convscope.ask(
        "upsampling", convscope.load("fashion-decoder"), str(folder), quick=True, out=tmp_path
    )
    assert answer.conditions["images"] == "12 images; 30 images of " + folder.name
    assert f"--data {folder}" in answer.command
    again = convscope.ask(
        "upsampling", convscope.load("fashion-decoder"), str(folder), quick=True, out=tmp_path
    )
    assert again.reused == len(QUESTIONS["upsampling"].parts)
    (folder / "bag" / "more.png").write_bytes(png(pixels(torch.zeros(1, 28, 28))))
    other = convscope.ask(
        "upsampling", convscope.load("fashion-decoder"), str(folder), quick=True, out=tmp_path
    )
    assert 0 < other.reused < again.reused  # what does not depend on the images is kept
