"""Pictures of any number of channels, and how units show themselves."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from rich.console import Console

from convscope.features.picture import to_pil
from convscope.features.unit import Unit, Visualization

HOSTILE = "<img src=x onerror=alert(1)>[bold]"


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_any_number_of_channels_is_a_picture(channels: int) -> None:
    image = torch.rand(channels, 6, 7, generator=torch.Generator().manual_seed(0))
    picture = to_pil(image)
    assert picture.mode == "RGB"
    assert picture.size == (7 if channels in (1, 3) else 7 * channels, 6)
    array = np.asarray(picture)
    if channels == 3:
        np.testing.assert_array_equal(array, (image * 255).round().byte().permute(1, 2, 0).numpy())
    else:
        grey = np.concatenate(list((image * 255).round().byte().numpy()), axis=1)
        np.testing.assert_array_equal(array[..., 0], grey)
        np.testing.assert_array_equal(array[..., 0], array[..., 2])


def test_what_is_outside_is_clipped() -> None:
    image = torch.tensor([-1.0, 0.5, 2.0]).view(1, 1, 3)
    assert np.asarray(to_pil(image))[0, :, 0].tolist() == [0, 128, 255]


def unit(**changes: object) -> Unit:
    known = {
        "layer": HOSTILE, "channel": 3, "seed": 0, "label": HOSTILE, "activation": 1.25, "robust": 1.0, "peak": 2.0,
        "status": "budget", "steps": 8, "curve": ((4, 0.5), (8, 1.0)), "flags": ("weak",),
    }  # fmt: skip
    return Unit(**(known | changes))  # type: ignore[arg-type]


def test_plain_values() -> None:
    content = unit().to_dict()
    assert json.loads(json.dumps(content)) == content
    assert content["curve"] == [[4, 0.5], [8, 1.0]]
    assert content["flags"] == ["weak"]
    assert set(content) == set(Unit.__dataclass_fields__)


def test_a_hostile_name_is_text_everywhere() -> None:
    shown = Visualization(torch.rand(1, 3, 8, 8), (unit(),))
    console = Console(width=300)
    with console.capture() as captured:
        console.print(shown)
    assert HOSTILE in captured.get()
    assert "<img src=x" not in shown._repr_html_()


def test_an_empty_one_shows_itself() -> None:
    nothing = Visualization(torch.zeros(0, 3, 8, 8), (), interrupted=True)
    assert len(nothing) == 0
    assert nothing.to_dict()["interrupted"]
    console = Console(width=80)
    with console.capture():
        console.print(nothing)
    assert isinstance(nothing._repr_html_(), str)
