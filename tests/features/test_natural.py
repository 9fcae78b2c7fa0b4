"""One streaming pass equals brute force; boxes fall on the right pixels."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from convscope import data
from convscope.features import natural
from convscope.features.natural import BINS, Natural, crop, from_record, scan, to_record
from convscope.features.network import prepare
from convscope.graph import record
from convscope.models import Net


def folder_of(path: Path, pictures: Tensor) -> Path:
    """Pictures [image, 3, height, width] in [0, 1] as PNG files."""
    path.mkdir(exist_ok=True)
    for number, picture in enumerate(pictures):
        array = (picture * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(array).save(path / f"{number:03d}.png")
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny import pictures

    images, _ = pictures(23, seed=5)
    images[7] = images[3]  # a tie
    return folder_of(tmp_path_factory.mktemp("world") / "images", images)


def scanned(
    net: Net, units: list[tuple[str, int]], source: Path, **more: int
) -> dict[tuple[str, int], Natural]:
    keys = list(dict.fromkeys(key for key, _ in units))
    return scan(net, prepare(net, record(net), keys), units, data.images(source), **more)


def brute(net: Net, layer: str, source: Path) -> Tensor:
    """All activations [image, channel, position] in one pass."""
    private = net.copy()
    kept: list[Tensor] = []
    handle = private.get_submodule(layer).register_forward_hook(lambda *a: kept.append(a[2].clone()))
    with torch.no_grad():
        for batch in data.images(source).batches(net.input, 64):
            private(net.input.normalize(batch.images))
    handle.remove()
    return torch.cat(kept).flatten(2) if kept[0].ndim > 2 else torch.cat(kept)[..., None]


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_the_scan_is_brute_force(tiny: Net, world: Path, batch: int) -> None:
    units = [("relu2", 3), ("fc", 2), ("relu2", 11), ("conv1", 0)]
    found = scanned(tiny, units, world, best=5, batch=batch)
    assert list(found) == [("relu2", 3), ("relu2", 11), ("fc", 2), ("conv1", 0)] or set(found) == set(units)
    for (layer, channel), seen in found.items():
        values = brute(tiny, layer, world)[:, channel]  # [image, position]
        peaks = values.amax(1)
        torch.testing.assert_close(seen.peaks, peaks.sort().values, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(seen.means, values.mean(1).sort().values, atol=1e-5, rtol=1e-4)
        assert seen.max == pytest.approx(float(peaks.max()), rel=1e-4)
        best = peaks.argsort(descending=True, stable=True)[:5]
        torch.testing.assert_close(
            torch.tensor([e.activation for e in seen.examples]), peaks[best], atol=1e-5, rtol=1e-4
        )
        ours = [e.index for e in seen.examples]
        assert [peaks[k] for k in ours] == pytest.approx(peaks[best].tolist(), rel=1e-4)
        if 3 in ours and 7 in ours:
            assert ours.index(3) < ours.index(7)  # of two equal images the earlier comes first
        assert sum(seen.counts) == values.numel()
        assert len(seen.edges) == len(seen.counts) + 1 <= BINS + 1
        assert seen.edges[0] <= values.min() + 1e-5
        assert seen.edges[-1] >= values.max() - 1e-5
        histogram = np.histogram(values.double().numpy(), bins=np.array(seen.edges))[0]
        assert (
            np.abs(histogram - np.array(seen.counts)).sum() <= 0.002 * values.numel() + 2
        )  # rounding at the edges
        for peak in (float(peaks.min()) - 1, float(peaks.median()), float(peaks.max()) + 1):
            assert seen.percentile(peak) == pytest.approx(100 * float((peaks < peak).float().mean()), abs=5)


def test_ties_and_order_do_not_depend_on_the_batch(tiny: Net, world: Path) -> None:
    one = scanned(tiny, [("relu1", 1)], world, batch=1)["relu1", 1]
    many = scanned(tiny, [("relu1", 1)], world, batch=64)["relu1", 1]
    assert [e.index for e in one.examples] == [e.index for e in many.examples]
    assert [e.box for e in one.examples] == [e.box for e in many.examples]


@given(st.lists(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=5), min_size=1, max_size=6))
def test_a_histogram_counts_everything_once(parts: list[list[float]]) -> None:
    found = natural._Histogram(1)
    for part in parts:
        found.add(torch.tensor([part]))
    edges, counts = found.row(0)
    every = np.array([value for part in parts for value in part])
    assert sum(counts) == len(every)
    width = edges[1] - edges[0]
    assert np.allclose(np.diff(edges), width)
    slack = 1e-6 * max(1.0, np.abs(every).max())
    assert edges[0] <= every.min() + slack
    assert edges[-1] >= every.max() - slack
    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
        inside = ((every > low + slack) & (every < high - slack)).sum()
        around = ((every >= low - slack) & (every <= high + slack)).sum()
        assert inside <= count <= around


def test_a_histogram_leaves_out_what_is_not_finite() -> None:
    found = natural._Histogram(2)
    found.add(torch.tensor([[1.0, math.nan, math.inf], [math.nan, math.nan, -math.inf]]))
    found.add(torch.tensor([[-3.0, 8.0, 0.5], [math.nan] * 3]))
    assert sum(found.row(0)[1]) == 4
    assert sum(found.row(1)[1]) == 0
    assert found.row(0)[0][0] <= -3
    assert found.row(0)[0][-1] >= 8


def spot(row: int, column: int) -> Tensor:
    picture = torch.zeros(3, 48, 48)
    picture[:, row : row + 3, column : column + 3] = 1.0
    return picture


@pytest.mark.parametrize(("row", "column"), [(12, 30), (0, 0), (45, 3), (21, 45)])
def test_boxes_fall_on_the_bright_patch(
    make_net: Callable[..., Net], tmp_path: Path, row: int, column: int
) -> None:
    conv = nn.Conv2d(3, 2, 3, stride=3)
    with torch.no_grad():
        conv.weight.fill_(1.0)
        conv.bias.zero_()  # type: ignore[union-attr]
    net = make_net(nn.Sequential(conv, nn.Conv2d(2, 2, 1)), (3, 48, 48))
    source = folder_of(tmp_path / "a", torch.stack([torch.zeros(3, 48, 48), spot(row, column)]))
    best = scanned(net, [("0", 1)], source, best=1)["0", 1].examples[0]
    assert best.index == 1
    assert best.image == "001.png"
    assert best.box == (column, row, column + 3, row + 3)
    assert best.activation == pytest.approx(27.0)
    part = crop(Image.open(source / "001.png"), best.box, 12)
    assert part.size == (12, 12)
    assert np.asarray(part).min() > 200


def test_boxes_are_in_pixels_of_the_file(make_net: Callable[..., Net], tmp_path: Path) -> None:
    """A 96x192 file under a 48x48 network: the middle 96x96 is shown, at half size."""
    conv = nn.Conv2d(3, 1, 3, stride=3, bias=False)
    nn.init.constant_(conv.weight, 1.0)
    net = make_net(nn.Sequential(conv, nn.Conv2d(1, 1, 1)), (3, 48, 48))
    picture = torch.zeros(1, 3, 96, 192)
    picture[..., 24:30, 48 + 60 : 48 + 66] = 1.0  # shown at rows 12:15, columns 30:33
    found = scanned(net, [("0", 0)], folder_of(tmp_path / "a", picture))["0", 0].examples[0]
    assert found.box == (108.0, 24.0, 114.0, 30.0)


def test_boxes_of_padded_and_global_layers_stay_inside(tiny: Net, world: Path) -> None:
    found = scanned(tiny, [("conv1", 0), ("relu3", 5), ("gap", 1), ("fc", 0)], world)
    for (layer, _), seen in found.items():
        for example in seen.examples:
            x0, y0, x1, y1 = example.box
            assert 0 <= x0 < x1 <= 32
            assert 0 <= y0 < y1 <= 32
            if layer in ("gap", "fc"):
                assert example.box == (0.0, 0.0, 32.0, 32.0)


class Half(nn.Module):
    """Channel 0 is NaN on dark images, channel 1 always, channel 2 never."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.mean(1, keepdim=True)
        return torch.cat([(y.amax((2, 3), keepdim=True) - 0.5).log() + y * 0, y * math.nan, y], 1)


def test_nan_counts_nowhere(make_net: Callable[..., Net], tmp_path: Path) -> None:
    net = make_net(nn.Sequential(Half(), nn.Conv2d(3, 2, 1)), (3, 8, 8))
    pictures = torch.stack([torch.full((3, 8, 8), value) for value in (0.2, 0.8, 1.0)])
    found = scanned(net, [("0", k) for k in range(3)], folder_of(tmp_path / "a", pictures))
    assert set(found) == {("0", 0), ("0", 2)}
    half = found["0", 0]
    assert [e.index for e in half.examples] == [2, 1]
    assert len(half.peaks) == len(half.means) == 2
    assert half.max == pytest.approx(math.log(0.5))
    assert sum(half.counts) == 2 * 64
    json.dumps(to_record(half), allow_nan=False)
    assert found["0", 2].max == pytest.approx(1.0)


def test_a_record_keeps_what_scores_need(tiny: Net, world: Path) -> None:
    seen = scanned(tiny, [("relu2", 3)], world)["relu2", 3]
    again = from_record(json.loads(json.dumps(to_record(seen), allow_nan=False)))
    assert torch.equal(again.peaks, seen.peaks)
    assert again.max == seen.max
    assert again.counts == seen.counts
    assert [e.activation for e in again.examples] == [e.activation for e in seen.examples]
    assert to_record(again) == to_record(seen)


def natural_of(peaks: list[float]) -> Natural:
    return Natural(torch.tensor(peaks), torch.tensor(peaks), (), (0.0, 1.0), (len(peaks),))


def test_ratios_and_percentiles_by_hand() -> None:
    seen = natural_of([1.0, 2.0, 3.0, 4.0])
    assert seen.ratio(6.0) == 1.5
    assert [seen.percentile(p) for p in (0.5, 1.0, 2.5, 9.0)] == [0.0, 0.0, 50.0, 100.0]
    assert seen.ratio(math.nan) is None
    assert natural_of([-2.0, -1.0]).ratio(1.0) is None
    assert natural_of([0.0, 0.0]).ratio(1.0) is None
    assert natural_of([2.0, 2.0]).is_constant
    assert not seen.is_constant


def test_crops_are_square_whatever_the_box() -> None:
    image = Image.fromarray((np.random.default_rng(0).random((40, 100, 3)) * 255).astype("uint8"))
    for box in (
        (0, 0, 100, 40),
        (90, 30, 100, 40),
        (5.5, 3.2, 5.9, 3.9),
        (0, 0, 0.4, 0.4),
        (99.7, 39.7, 100, 40),
        (20, 0, 30, 40),
    ):
        assert crop(image, box, 32).size == (32, 32)
    tall = crop(Image.new("RGB", (100, 40), "red"), (0.0, 0.0, 100.0, 40.0), 50)
    assert tall.getpixel((25, 2)) == (128, 128, 128)  # what the image does not have is grey
    assert tall.getpixel((25, 25)) == (255, 0, 0)


def test_a_grey_network_sees_grey(make_net: Callable[..., Net], world: Path) -> None:
    net = make_net(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), (1, 20, 28))
    assert len(scanned(net, [("1", 0)], world)["1", 0].peaks) == 23


def test_progress_counts_images(tiny: Net, world: Path) -> None:
    told: list[tuple[int, int]] = []
    network = prepare(tiny, record(tiny), ["relu1"])
    scan(tiny, network, [("relu1", 0)], data.images(world), batch=10, on_batch=lambda *a: told.append(a))
    assert told == [(10, 23), (20, 23), (23, 23)]
