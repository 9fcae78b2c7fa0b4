"""The embedded photographs, and the reader of image files: what it takes, what it refuses, the way back."""

from __future__ import annotations

import json
import os
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from convscope.data import Geometry, images, photographs
from convscope.data import images as images_function
from convscope.data.images import MAX_PIXELS, _shown
from convscope.errors import BadInput, RequestError
from convscope.models import InputSpec

SPEC = InputSpec((3, 8, 8))


def _save(path: Path, colour: tuple[int, ...] | int = (255, 0, 0), size: tuple[int, int] = (16, 16)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB" if isinstance(colour, tuple) else "L", size, colour).save(path)
    return path


# ---------------------------------------------------------------- photographs


def test_a_dozen_photographs_with_their_credits() -> None:
    photos = photographs()
    assert len(photos) == len({photo.name for photo in photos}) == 12
    for photo in photos:
        assert photo.title
        assert photo.attribution
        assert photo.license in {"Public domain", "CC0 1.0", "CC BY 2.0", "No known copyright restrictions"}
        assert photo.url.startswith("http")
        assert json.loads(json.dumps(photo.to_dict()))["name"] == photo.name
        x = photo.image()
        assert x.shape[0] == 3
        assert 290 <= min(x.shape[1:]) <= 320
        assert 0 <= x.min() < x.max() <= 1
        assert x.std() > 0.1  # a picture, not a grey card
        spread = (x.amax(0) - x.amin(0)).mean()
        assert spread > 0.01  # in colour


def test_photographs_are_small_enough_and_no_file_is_unlisted() -> None:
    folder = photographs()[0].path.parent
    assert sum(path.stat().st_size for path in folder.iterdir()) < 600_000
    assert {path.stem for path in folder.glob("*.webp")} == {photo.name for photo in photographs()}


# ---------------------------------------------------------------- finding


def test_order_labels_and_what_is_left_out(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/10.png", "a/x.JPG", "a/deep/y.webp", "top.gif", ".hidden.png", "b/.git/z.png"):
        _save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    found = images(tmp_path)
    assert found.names == ("a/deep/y.webp", "a/x.JPG", "b/10.png", "b/2.png", "top.gif")
    assert found.labels == ("a", "b")
    assert found.ignored == ("notes.txt",)
    assert [sample.label for sample in found] == ["a", "a", "b", "b", None]


def test_symlinks_are_followed_and_loops_cut(tmp_path: Path) -> None:
    real = _save(tmp_path / "elsewhere" / "x.png").parent
    root = tmp_path / "data"
    root.mkdir()
    (root / "cats").symlink_to(real)
    (root / "loop").symlink_to(root)
    (root / "dead.png").symlink_to(tmp_path / "nothing")
    found = images(root)
    assert found.names == ("cats/x.png", "dead.png")
    (batch,) = found.batches(SPEC)
    assert batch.indices == (0,)
    assert found.broken == (("dead.png", "does not exist"),)


def test_limit_takes_evenly_spread_files(tmp_path: Path) -> None:
    for number in range(10):
        _save(tmp_path / f"{number}.png")
    assert images(tmp_path, limit=3).names == ("0.png", "3.png", "6.png")
    assert len(images(tmp_path, limit=99)) == 10
    with pytest.raises(RequestError, match="limit=0 must be at least 1"):
        images(tmp_path, limit=0)


def test_fingerprint_changes_with_the_data(tmp_path: Path) -> None:
    _save(tmp_path / "a.png")
    first = images(tmp_path).fingerprint
    assert images(tmp_path).fingerprint == first
    _save(tmp_path / "b.png")
    assert images(tmp_path).fingerprint != first


def test_sources_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"data='nowhere' does not exist; give an image file or a folder"):
        images("nowhere")
    with pytest.raises(RequestError, match="holds no image; give a folder of JPEG"):
        images(tmp_path)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(RequestError, match=r"holds no image \(it holds 1 other files\)"):
        images(tmp_path)


def test_an_images_and_a_single_file_are_sources(tmp_path: Path) -> None:
    one = images(_save(tmp_path / "photo.png"))
    assert images_function(one) is one
    assert one[0].name == "photo.png"
    assert repr(images()) == "Images('photographs', 12 files)"


# ---------------------------------------------------------------- broken and hostile files


def _png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def test_broken_files_are_listed_and_end_nothing(tmp_path: Path) -> None:
    good = _save(tmp_path / "good.png", size=(64, 64)).read_bytes()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "full.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "full.jpg").read_bytes()[:600])
    (tmp_path / "cut.png").write_bytes(good[:60])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "page.png").write_bytes(b"<html>not found</html>")
    (tmp_path / "bomb.png").write_bytes(_png_claiming(50_000, 50_000))
    (tmp_path / "bomb-2.png").write_bytes(_png_claiming(10_000, 9_000))
    (tmp_path / "script.eps.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    found = images(tmp_path)
    names = [found.names[index] for batch in found.batches(SPEC, 2) for index in batch.indices]
    assert names == ["full.jpg", "good.png"]
    reasons = dict(found.broken)
    assert set(reasons) == {
        "cut.jpg", "cut.png", "empty.png", "page.png", "bomb.png", "bomb-2.png", "script.eps.png",
    }  # fmt: skip
    assert "damaged" in reasons["cut.jpg"]
    assert "no image of a known format" in reasons["page.png"]
    assert f"over the limit of {MAX_PIXELS:,}" in reasons["bomb.png"]
    assert f"10000 x 9000 pixels, over the limit of {MAX_PIXELS:,}" in reasons["bomb-2.png"]
    assert "no image of a known format" in reasons["script.eps.png"]


def test_reading_a_broken_file_names_it(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"nothing")
    found = images(tmp_path)
    with pytest.raises(BadInput, match=r"image 'x.png' is no image of a known format; remove or replace it"):
        found[0]
    assert found.broken[0].name == "x.png"
    assert list(found) == []
    with pytest.raises(BadInput, match=r"none of the 1 images of .* could be read; the first, 'x.png'"):
        list(found.batches(SPEC))


def test_wrong_arguments_of_batches() -> None:
    with pytest.raises(RequestError, match="fit='stretch' must be 'crop' or 'resize'"):
        images().batches(SPEC, fit="stretch")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="batch=0 and threads=2 must be at least 1"):
        images().batches(SPEC, 0)


# ---------------------------------------------------------------- modes and channels


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (4, 4), 128), (128, 128, 128)),
        (Image.new("1", (4, 4), 1), (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 255)), (255, 0, 0)),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 0)), (255, 255, 255)),  # transparent shows the white page
        (Image.new("LA", (4, 4), (0, 0)), (255, 255, 255)),
        (Image.new("P", (4, 4), 0), (0, 0, 0)),
        (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), (255, 0, 0)),
        (Image.new("I;16", (4, 4), 65535), (255, 255, 255)),
        (Image.new("I;16", (4, 4), 32896), (128, 128, 128)),
        (Image.new("I", (4, 4), 65535), (255, 255, 255)),
        (Image.new("F", (4, 4), 0.5), (128, 128, 128)),
        (Image.new("F", (4, 4), 200.0), (200, 200, 200)),
    ],
)
def test_modes(image: Image.Image, expected: tuple[int, ...], tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    image.save(path)
    assert images(path)[0].image.getpixel((0, 0)) == expected


def test_float_image_without_a_known_range_is_broken(tmp_path: Path) -> None:
    Image.new("F", (4, 4), -3.0).save(tmp_path / "x.tif")
    with pytest.raises(BadInput, match="has values from -3 to -3, whose black and white are unknown"):
        images(tmp_path)[0]


def test_one_channel_is_luma(tmp_path: Path) -> None:
    (batch,) = images(_save(tmp_path / "red.png")).batches(InputSpec((1, 4, 4)))
    torch.testing.assert_close(batch.images, torch.full((1, 1, 4, 4), 76 / 255))


def test_images_cannot_serve_five_channels_but_arrays_can(tmp_path: Path) -> None:
    _save(tmp_path / "x.png")
    five = InputSpec((5, 4, 4))
    with pytest.raises(BadInput, match=r"'x.png' cannot serve an input of 5 channels; give a folder of .npy"):
        images(tmp_path).batches(five)
    os.remove(tmp_path / "x.png")
    ramp = np.broadcast_to(np.linspace(0, 1, 5, dtype=np.float32)[:, None, None], (5, 8, 12))
    np.save(tmp_path / "a.npy", ramp)
    np.savez(tmp_path / "b.npz", (ramp * 255).astype(np.uint8))
    np.save(tmp_path / "c.npy", ramp * 2)
    np.save(tmp_path / "d.npy", np.zeros((3, 8, 8), np.uint8))
    np.save(tmp_path / "e.npy", np.array([print], dtype=object), allow_pickle=True)
    found = images(tmp_path)
    (batch,) = found.batches(five)
    assert batch.indices == (0, 1)
    torch.testing.assert_close(batch.images[0, :, 0, 0], torch.linspace(0, 1, 5))
    assert batch.geometry[0] == Geometry((12, 8), (2.0, 0.0, 10.0, 8.0), (4, 4))
    reasons = dict(found.broken)
    assert reasons["c.npy"] == "has float values outside [0, 1]"
    assert reasons["d.npy"] == "has 3 channels where the network takes 5"
    assert "no plain array" in reasons["e.npy"]
    with pytest.raises(BadInput, match="has 5 channels and is no picture"):
        found[0]


# ---------------------------------------------------------------- the way back


def _marked(tmp_path: Path, orientation: int | None, size: tuple[int, int], suffix: str) -> Path:
    """A black picture with a white block of an eighth of each side, its corner at a quarter."""
    image = Image.new("RGB", size)
    block = Image.new("RGB", (size[0] // 8, size[1] // 8), "white")
    image.paste(block, (size[0] // 4, size[1] // 4))
    exif = Image.Exif()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / f"x{suffix}"
    image.save(path, exif=exif)
    return path


@pytest.mark.parametrize("fit", ["crop", "resize"])
@pytest.mark.parametrize("size", [(64, 64), (1600, 1200), (640, 1280)])
@pytest.mark.parametrize("orientation", [None, 3, 6, 8])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_box_maps_back_to_the_pixels_of_the_file(
    tmp_path: Path, suffix: str, orientation: int | None, size: tuple[int, int], fit: str
) -> None:
    found = images(_marked(tmp_path, orientation, size, suffix))
    (batch,) = found.batches(InputSpec((3, 96, 64)), fit=fit)  # type: ignore[arg-type]
    upright = found[0].image
    geometry = batch.geometry[0]
    assert geometry.full == upright.size
    bright = batch.images[0].mean(0) > 0.5  # [96, 64]
    if not bright.any():  # the crop may leave the block out
        assert fit == "crop"
        return
    rows, columns = torch.where(bright)
    box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
    x0, y0, x1, y1 = geometry.to_image(box)
    there = np.asarray(upright).mean(2) > 127
    ys, xs = np.where(there)
    left, top, right, bottom = geometry.shown
    per_pixel = max((right - left) / 64, (bottom - top) / 96)
    assert abs(max(xs.min(), left) - x0) <= per_pixel
    assert abs(max(ys.min(), top) - y0) <= per_pixel
    assert abs(min(xs.max() + 1, right) - x1) <= per_pixel
    assert abs(min(ys.max() + 1, bottom) - y1) <= per_pixel


def test_boxes_by_hand() -> None:
    # 300 x 200 shown in 100 x 100: the middle 200 x 200, two file pixels each
    assert _shown((300, 200), (100, 100)) == (50.0, 0.0, 250.0, 200.0)
    geometry = Geometry((300, 200), (50.0, 0.0, 250.0, 200.0), (100, 100))
    assert geometry.to_image((10, 20, 30, 40)) == (70.0, 40.0, 110.0, 80.0)
    assert geometry.to_image((-50, -10, 10, 10)) == (0.0, 0.0, 70.0, 20.0)
    assert geometry.to_image((-50, -10, 10, 10), clip=False) == (-50.0, -20.0, 70.0, 20.0)


@given(*[st.integers(1, 5000)] * 2, *[st.integers(1, 700)] * 2)
def test_the_part_shown_is_inside_centred_and_in_proportion(w: int, h: int, nw: int, nh: int) -> None:
    x0, y0, x1, y1 = _shown((w, h), (nw, nh))
    assert 0 <= x0 <= x1 <= w
    assert 0 <= y0 <= y1 <= h
    assert x0 + x1 == pytest.approx(w)
    assert y0 + y1 == pytest.approx(h)
    assert (x1 - x0) / nw == pytest.approx((y1 - y0) / nh)
    assert min(w - (x1 - x0), h - (y1 - y0)) == pytest.approx(0, abs=1e-6)  # as much as fits


def test_batches_come_in_order_full_and_in_range() -> None:
    found = images()
    batches = list(found.batches(InputSpec((3, 32, 40)), 5))
    assert [len(batch.indices) for batch in batches] == [5, 5, 2]
    assert [index for batch in batches for index in batch.indices] == list(range(12))
    stacked = torch.cat([batch.images for batch in batches])
    assert stacked.shape == (12, 3, 32, 40)
    assert stacked.dtype == torch.float32
    assert stacked.min() >= 0
    assert stacked.max() <= 1
    again = torch.cat([batch.images for batch in found.batches(InputSpec((3, 32, 40)), 12, threads=1)])
    assert torch.equal(stacked, again)


@given(*[st.integers(1, 300)] * 2, *[st.integers(1, 40)] * 2, st.booleans())
def test_any_size_fits_any_input(w: int, h: int, nw: int, nh: int, squeezed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.jpg"
        Image.new("RGB", (w, h), (0, 255, 0)).save(path)
        found = images(path)
        (batch,) = found.batches(InputSpec((3, nh, nw)), fit="resize" if squeezed else "crop")
        assert found.broken == ()
    assert batch.images[0, 1].min() > 0.95  # all of it is the picture
    assert batch.geometry[0].to_image((0, 0, nw, nh)) == pytest.approx(batch.geometry[0].shown)


def test_an_abandoned_iteration_leaves_no_thread() -> None:
    batches = images().batches(SPEC, 2)
    next(iter(batches))
    batches.close()  # type: ignore[attr-defined]
