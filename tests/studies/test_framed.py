"""Objects in a frame, against slices by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from convscope.errors import RequestError, UnknownName
from convscope.studies.networks import framed_cnn
from convscope.studies.networks.framed import Frame


@pytest.fixture
def images() -> torch.Tensor:
    x = torch.rand(6, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    return x * (torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1)) > 0.5) - 0.3


def test_the_object_lies_where_its_pixels_say(images: torch.Tensor) -> None:
    y = Frame(13, 8, "scattered")(images)
    places = set()
    for one, framed in zip(images, y, strict=True):
        bright = (one > one.amin()).any(0)
        top, left = int(bright[:, ::2].sum()) % 6, int(bright[:, 1::2].sum()) % 6
        assert torch.equal(framed[:, top : top + 8, left : left + 8], one)
        rest = torch.ones(13, 13, dtype=torch.bool)
        rest[top : top + 8, left : left + 8] = False
        assert (framed[:, rest] == one.amin()).all()
        places.add((top, left))
    assert len(places) > 3
    alone = torch.cat([Frame(13, 8, "scattered")(one[None]) for one in images])
    assert torch.equal(alone, y)  # whatever else is in the batch


def test_a_smaller_object_is_the_image_resized(images: torch.Tensor) -> None:
    y = Frame(8, 4)(images)
    small = functional.interpolate(images, (4, 4), mode="bilinear", antialias=True)
    assert torch.equal(y[:, :, 2:6, 2:6], small)
    assert torch.equal(Frame(8, 8)(images), images)


def test_noise_comes_when_the_network_is_used(images: torch.Tensor) -> None:
    frame = Frame(8, 8, noise=0.5)
    assert torch.equal(frame.train()(images), images)
    added = frame.eval()(images) - images
    assert 0.4 < float(added.std()) < 0.6
    assert torch.equal(frame(images), frame(images))
    assert torch.equal(frame(images[2:3]), frame(images)[2:3])
    assert not torch.equal(added[0], added[1])
    assert not frame.state_dict()


def test_what_cannot_be_framed() -> None:
    with pytest.raises(RequestError, match=r"object_size=9 must be at most frame=8"):
        framed_cnn(frame=8, object_size=9)
    with pytest.raises(UnknownName, match=r"place='center' must be one of centre, scattered; did you mean"):
        framed_cnn(place="center")
    with pytest.raises(RequestError, match=r"noise=-1 must be a standard deviation, 0 or more"):
        framed_cnn(noise=-1)
