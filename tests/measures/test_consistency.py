"""Consistency against hand-worked cases: exact invariance, a net that reads one pixel, shifts decoded from ramps."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import conftest
from convscope.errors import BadInput, ModelError, RequestError, UnknownLayer, UnknownName
from convscope.measures import consistency as consistency_module
from convscope.measures.figures import Estimate, mean, share
from convscope.measures.moves import (
    Circular,
    Crop,
    Frame,
    Move,
    Noise,
    Rotation,
    Scale,
    View,
    beyond,
    read_moves,
    stream,
)
from convscope.models import InputSpec, Net
from convscope.nn import BlurPool2d

consistency = conftest._traceless(consistency_module.consistency)


class Lambda(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def view(samples: Tensor, extents: tuple[int, ...], **more: Any) -> View:
    frame = Frame(extents, tuple(samples.shape[-len(extents) :]))
    return View(frame, samples, tuple(map(str, range(len(samples)))), **more)


def ramp(count: int, *canvas: int) -> Tensor:
    """Pictures in which each pixel tells where it is: 1000 row + column."""
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in canvas), indexing="ij")
    place = sum(1000.0 ** (len(canvas) - 1 - k) * axis for k, axis in enumerate(axes))
    return place.expand(count, 1, *canvas).clone()


# -- answers that are known ----------------------------------------------------------------------------------


def test_circular_convolution_and_average_is_exactly_invariant() -> None:
    torch.manual_seed(1)
    conv = nn.Conv2d(2, 5, 3, padding=1, padding_mode="circular")
    net = nn.Sequential(conv, nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)).double()
    found = consistency(net, noise(6, 2, 12, 18), moves="circular")
    pooled = found.moves["circular"].pooled
    assert pooled.agreement is not None
    assert pooled.agreement.value == 1.0
    assert pooled.agreement.high == pytest.approx(1)
    assert pooled.probability_change is not None
    assert pooled.probability_change.value < 1e-12
    assert pooled.relative_change.value < 1e-12
    assert pooled.cosine.value == pytest.approx(1, abs=1e-12)
    assert [point.magnitude for point in found.moves["circular"].curve] == [1, 2, 4, 8]  # 16 is over half


def test_a_network_that_reads_one_pixel_is_worked_out_by_hand() -> None:
    """Two pictures are bright, two dark at the pixel alone: those lose their class by every shift."""
    pictures = torch.ones(4, 1, 9, 9, dtype=torch.float64)
    pictures[2:, 0, 4, 4] = -1
    net = Lambda(lambda x: torch.stack([x[:, 0, 4, 4], -x[:, 0, 4, 4]], 1))
    found = consistency(net, pictures, moves=[Circular(shifts=(1, 3))], layers=())
    bright = 1 / (1 + math.exp(-2))  # softmax of (1, -1)
    for point in (found.moves["circular"].pooled, *found.moves["circular"].curve):
        assert point.agreement is not None
        assert point.probability_change is not None
        assert point.agreement.value == 0.5
        assert point.probability_change.value == pytest.approx((bright - (1 - bright)) / 2)
        assert point.relative_change.value == pytest.approx(1.0)  # 0 and twice the length
        assert point.cosine.value == pytest.approx(0.0)  # 1 and -1
    assert found.moves["circular"].pooled.pairs == 8
    interval = found.moves["circular"].curve[0].agreement
    assert interval == share(torch.tensor([[True], [True], [False], [False]]))


def test_probabilities_are_taken_as_they_are_and_logits_through_a_softmax() -> None:
    logits = Lambda(lambda x: 3 * x.mean(3).flatten(1)[:, :4])
    data = noise(5, 1, 6, 8)
    plain, soft = (
        consistency(net, data, moves="circular", layers=()).moves["circular"].pooled
        for net in (logits, nn.Sequential(logits, nn.Softmax(1)))
    )
    log = consistency(nn.Sequential(logits, nn.LogSoftmax(1)), data, moves="circular", layers=())
    assert plain.probability_change is not None
    assert plain.probability_change.value > 0.01
    assert soft.probability_change == log.moves["circular"].pooled.probability_change
    for name in ("value", "low", "high"):
        wanted = getattr(plain.probability_change, name)
        assert getattr(soft.probability_change, name) == pytest.approx(wanted, abs=1e-12)
    assert plain.agreement == soft.agreement


def test_blur_pooling_is_more_consistent_than_bare_striding() -> None:
    """Stripes of period two: every second column is all of one colour, and one pixel turns it around."""
    stripes = (torch.arange(16) % 2).double().expand(8, 1, 16, 16).clone()
    stripes[::2] = 1 - stripes[::2]

    def net(pool: nn.Module) -> nn.Module:
        scores = Lambda(lambda x: torch.stack([x.mean((1, 2, 3)), torch.full((len(x),), 0.4).to(x)], 1))
        return nn.Sequential(pool, scores).double()

    bare, blurred = (
        consistency(net(pool), stripes, moves=[Circular(shifts=(1, 3))], layers=()).moves["circular"].pooled
        for pool in (BlurPool2d(1, padding_mode="circular"), BlurPool2d(3, padding_mode="circular"))
    )
    assert bare.agreement is not None
    assert blurred.agreement is not None
    assert blurred.agreement.value == 1.0
    assert bare.agreement.value < 0.6


def test_pairs_of_random_crops_are_compared_each_with_each() -> None:
    """The output is where the crop began, so that every figure can be worked out from the offsets drawn."""
    data = ramp(3, 12, 11)
    net = Lambda(lambda x: x[:, 0, :1, 0] + 1)
    found = consistency(net, data, input=(1, 8, 8), moves=[Crop(shifts=(1, 2), draws=3)], layers=())
    seen = view(data, (8, 8))
    crops = [Crop().random(seen, k, seed=0)[:, 0, 0, 0] + 1 for k in range(3)]
    pairs = [(0, 1), (0, 2), (1, 2)]
    changes = torch.stack([(crops[b] - crops[a]).abs() / crops[a] for a, b in pairs], 1)
    pooled = found.moves["crop"].pooled
    assert pooled.pairs == 9
    assert pooled.relative_change == mean(changes)
    assert pooled.agreement is None
    moved = Crop().apply(seen, 2, 0)[:, 0, 0, 0]
    still = seen.centre[:, 0, 0, 0]
    assert found.moves["crop"].curve[1].relative_change == mean(
        ((moved - still).abs() / (still + 1))[:, None]
    )


# -- moves ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 3])
def test_shifts_have_exactly_their_length(length: int) -> None:
    many = view(ramp(40, 15, 16), (8, 9))
    rows, columns = _places(Crop().apply(many, length, 7))
    shifts = torch.stack([rows - 3, columns - 3], 1)  # the centre crop begins at (3, 3)
    assert (shifts.abs().amax(1) == length).all()
    assert {(-1, 1), (1, -1), (1, 1), (-1, -1)} <= {tuple(s) for s in shifts.sign().tolist()}

    rolled = Circular().apply(view(ramp(40, 8, 9), (8, 9)), length, 7)
    rows, columns = _places(rolled)
    down, right = (-rows) % 8, (-columns) % 9
    assert (torch.minimum(down, 8 - down).maximum(torch.minimum(right, 9 - right)) == length).all()
    for picture, y, x in zip(rolled, down.int().tolist(), right.int().tolist(), strict=True):
        assert torch.equal(picture, torch.roll(ramp(1, 8, 9)[0], (y, x), (1, 2)))


def _places(pictures: Tensor) -> tuple[Tensor, Tensor]:
    corner = pictures[:, 0, 0, 0]
    return corner // 1000, corner % 1000


def test_random_crops_begin_anywhere_in_zhangs_window() -> None:
    assert beyond((224, 224)) == (256, 256)
    assert beyond((1, 30)) == (1, 34)
    many = view(ramp(1, 13, 12).expand(300, -1, -1, -1), (9, 9))
    rows, columns = _places(Crop().random(many, 0, seed=0))
    assert set(rows.tolist()) == {0, 1, 2, 3}  # of 32 pixels beyond, offsets 0 to 31
    assert set(columns.tolist()) == {0, 1, 2}
    other = Crop().random(many, 1, seed=0)
    assert not torch.equal(other, Crop().random(many, 0, seed=0))
    narrow = view(ramp(64, 1, 10), (1, 9))  # one pixel beyond still gives two crops
    assert set(Crop().random(narrow, 0, seed=0)[:, 0, 0, 0].tolist()) == {0, 1}


def test_rotation_by_right_angles_turns_the_picture() -> None:
    data = noise(6, 2, 12, 12)
    wide = view(data, (8, 8))
    turned = Rotation(degrees=(90,)).apply(wide, 90, 0)
    ways = set()
    for result, picture in zip(turned, wide.centre, strict=True):
        errors = [float((result - torch.rot90(picture, k, (1, 2))).abs().max()) for k in (1, 3)]
        assert min(errors) < 1e-9
        ways.add(errors.index(min(errors)))
    assert ways == {0, 1}
    upside = Rotation(degrees=(180,)).apply(wide, 180, 0)
    torch.testing.assert_close(upside, wide.centre.flip(2, 3), rtol=0, atol=1e-9)


@pytest.mark.parametrize("canvas", [(41, 43), (31,)])
def test_scale_stretches_about_the_centre_of_pictures_and_rows(canvas: tuple[int, ...]) -> None:
    """By a factor of three about a pixel: smaller, every pixel is one of the picture; larger, every third."""
    extents = (9, 9)[: len(canvas)]
    wide = view(ramp(16, *canvas), extents)
    far = [slice(c // 2 - 12, c // 2 + 13, 3) for c in canvas]  # 9 pixels, 3 apart
    near = [slice(c // 2 - 1, c // 2 + 2) for c in canvas]  # the middle 3
    third = [slice(1, None, 3)] * len(canvas)  # where they come to lie
    sizes = set()
    for result, picture in zip(Scale(factors=(3,)).apply(wide, 3, 0), wide.samples, strict=True):
        smaller = torch.allclose(result, picture[(..., *far)], atol=1e-6, rtol=0)
        larger = torch.allclose(result[(..., *third)], picture[(..., *near)], atol=1e-6, rtol=0)
        assert smaller != larger
        sizes.add(larger)
    assert sizes == {True, False}


def test_sampled_pictures_stay_within_their_values_and_types() -> None:
    data = (noise(3, 1, 12, 12) > 0.5).half()
    for move, size in ((Rotation(), 7.0), (Scale(), 1.3)):
        moved = move.apply(view(data, (9, 9)), size, 0)
        assert moved.dtype is torch.float16
        assert 0 <= float(moved.min()) < float(moved.max()) <= 1


def test_noise_has_its_deviation_and_keeps_to_what_values_there_can_be() -> None:
    grey = torch.full((4, 3, 40, 40), 0.5)
    noisy = Noise().apply(view(grey, (40, 40)), 0.1, 0)
    assert float((noisy - grey).std()) == pytest.approx(0.1, rel=0.02)
    assert float((noisy - grey).mean()) == pytest.approx(0.0, abs=0.003)
    assert not torch.equal(noisy[0], noisy[1])
    cut = Noise().apply(view(grey, (40, 40), bounds=(0.0, 1.0)), 1.0, 0)
    assert float(cut.min()) == 0
    assert float(cut.max()) == 1
    assert float(Noise().apply(view(grey, (40, 40)), 1.0, 0).max()) > 1


def test_streams_are_their_own() -> None:
    draws = {
        float(torch.rand((), generator=stream(*names)))
        for names in ((0, "a"), (1, "a"), (0, "b"), (0, "a", 1), (0, "a", 2))
    }
    assert len(draws) == 5
    assert torch.rand((), generator=stream(0, "a")) == torch.rand((), generator=stream(0, "a"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Crop(shifts=(0,)),
            "shifts=(0,) of the move 'crop' must be whole numbers of pixels from 1 on",
        ),
        (lambda: Circular(shifts=()), "shifts=() of the move 'circular' must be whole numbers"),
        (lambda: Crop(draws=1), "draws=1 of the move 'crop' must be at least 2"),
        (
            lambda: Rotation(degrees=(200,)),
            "degrees=(200,) of the move 'rotation' must be numbers above 0 up to 180",
        ),
        (
            lambda: Scale(factors=(0.9,)),
            "factors=(0.9,) of the move 'scale' must be numbers above 1 up to 16",
        ),
        (lambda: Noise(sigmas=(math.inf,)), "sigmas=(inf,) of the move 'noise' must be numbers above 0"),
        (lambda: read_moves("zoom"), "move 'zoom' must be one of crop, circular, rotation, scale, noise"),
        (lambda: read_moves([Crop(), "crop"]), "move 'crop' is given twice"),
        (lambda: read_moves([3]), "move 3 must be a name (crop, circular, rotation, scale, noise) or a move"),
    ],
)
def test_wrong_moves_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        make()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("move", "frame", "message"),
    [
        (Crop(), Frame((8, 8), (8, 8)), "needs content beyond the input of size [8, 8]"),
        (
            Crop(),
            Frame((8, 8), (9, 9)),
            "finds no room for a shift: half of what the data reaches beyond is 0",
        ),
        (
            Crop(shifts=(1, 9)),
            Frame((32, 32), (37, 37)),
            "shifts=(1, 9) of the move 'crop' must not be over 2 pixels",
        ),
        (Circular(), Frame((1,), (1,)), "finds no room for a shift: half the input is 0"),
        (Circular(shifts=(5,)), Frame((8, 9), (8, 9)), "must not be over 4 pixels, half the input"),
        (Rotation(), Frame((64,), (64,)), "the move 'rotation' needs a picture of two axes"),
        (Rotation(), Frame((1, 64), (1, 64)), "and the input's size is [1, 64]"),
        (Scale(), Frame((4, 4, 4), (4, 4, 4)), "the move 'scale' works on one or two axes"),
        (
            Noise(),
            Frame((9,), (9,), tokens=True),
            "the move 'noise' mixes values, and the input is whole numbers",
        ),
    ],
)
def test_moves_say_where_they_make_no_sense(move: Move, frame: Frame, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        move.magnitudes(frame)
    assert message in str(caught.value)


# -- inputs of every kind ------------------------------------------------------------------------------------


def test_rows_take_the_moves_that_make_sense() -> None:
    net = nn.Sequential(nn.Conv1d(2, 3, 5), nn.AdaptiveAvgPool1d(1), nn.Flatten()).double()
    found = consistency(net, noise(3, 2, 40), input=torch.zeros(1, 2, 36), limit=2)
    assert found.images == 2
    assert list(found.moves) == ["crop", "circular", "scale", "noise"]
    assert "needs a picture of two axes" in found.skipped["rotation"]
    assert found.layers["0"].grid == (32,)
    assert "rotation: left out" in str(found)
    with pytest.raises(RequestError, match="the move 'rotation' needs a picture"):
        consistency(net, noise(3, 2, 40), moves=["rotation"])


def test_tokens_can_be_shifted_and_not_mixed() -> None:
    torch.manual_seed(0)

    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(10, 6)
            self.conv = nn.Conv1d(6, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            features: Tensor = self.conv(self.embed(x).transpose(1, 2)).amax(2)
            return features

    data = torch.arange(60).view(3, 20) % 10
    found = consistency(Text(), data, input=torch.zeros(1, 16, dtype=torch.int64), layers="conv")
    assert list(found.moves) == ["crop", "circular"]
    assert set(found.skipped) == {"rotation", "scale", "noise"}
    assert found.layers["conv"].equivariance is not None
    assert found.layers["conv"].equivariance.error.value == pytest.approx(0, abs=1e-6)


def test_photographs_serve_one_channel_and_oblong_inputs(make_net: Callable[..., Net]) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = make_net(module, (1, 24, 36), labels=("a", "b", "c", "d"))
    found = consistency(net, limit=2)
    assert (found.images, found.source, found.scores, found.notes) == (2, "photographs", True, ())
    assert list(found.moves) == ["crop", "circular", "rotation", "scale", "noise"]
    assert [point.magnitude for point in found.moves["crop"].curve] == [1, 2]  # of 27 x 41


def test_views_of_files_show_more_than_the_input(tmp_path: Path, make_net: Callable[..., Net]) -> None:
    """A picture of the view's own size comes through unscaled: its centre is the input, a crop its neighbour."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"not a picture")
    seen: list[Tensor] = []
    net = make_net(Lambda(lambda x: (seen.append(x.clone()), x.mean((2, 3)))[1]), (3, 14, 14))
    found = consistency(net, tmp_path, moves=[Crop(shifts=(1,), draws=2)], layers=())
    seen = seen[1:]  # the recording's
    wide = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    assert torch.equal(seen[0][0], wide[:, 1:15, 1:15])
    shifts = [(y, x) for y in range(3) for x in range(3)]
    places = [
        [s for s in shifts if torch.equal(x[0], wide[:, s[0] : s[0] + 14, s[1] : s[1] + 14])] for x in seen
    ]
    assert all(len(place) == 1 for place in places)
    assert max(abs(n - 1) for n in places[1][0]) == 1
    assert found.images == 1
    assert "1 files could not be read; the first, 'b.png', is no image of a known format" in found.notes


def test_other_outputs_have_no_top_1() -> None:
    maps = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1)).double()
    found = consistency(maps, noise(2, 3, 8, 8), moves="circular")
    point = found.moves["circular"].pooled
    assert (found.scores, point.agreement, point.probability_change) == (False, None, None)
    assert "the output (2 x 8 x 8) is not class scores: there is no top-1" in found.notes[0]
    assert point.relative_change.value > 0.1
    assert "top-1" not in str(found).split("\n")[2]

    vector = nn.Sequential(maps, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    guessed = consistency(vector, noise(2, 3, 8, 8), moves="circular", layers=())
    assert guessed.scores
    assert "the 2 numbers of the output are taken as class scores; give scores=False" in guessed.notes[0]
    told = consistency(vector, noise(2, 3, 8, 8), moves="circular", layers=(), scores=False)
    assert told.moves["circular"].pooled.agreement is None
    sure = consistency(vector, noise(2, 3, 8, 8), moves="circular", layers=(), scores=True)
    assert sure.notes == ()
    dicts = nn.Sequential(maps, Lambda(lambda x: {"mask": x > 0, "out": x}))
    assert not consistency(dicts, noise(2, 3, 8, 8), moves="circular", layers=()).scores


# -- the same again ------------------------------------------------------------------------------------------


def test_it_is_the_same_for_a_seed_and_any_batch_size() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    data = noise(5, 1, 12, 12)
    first, again, apart, other = (
        consistency(net, data, input=(1, 9, 9), seed=seed, batch=batch).to_dict()
        for seed, batch in ((3, 16), (3, 16), (3, 2), (4, 16))
    )
    assert first == again
    assert _near(first, apart)
    assert not _near(first, other)
    assert json.loads(json.dumps(first)) == first


def _near(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_near(a[key], b[key]) for key in a if key != "seed")
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_near, a, b))
    return bool(abs(a - b) < 1e-9) if isinstance(a, float) and isinstance(b, float) else bool(a == b)


def test_the_callers_network_trains_on() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    with torch.inference_mode(), torch.autocast("cpu"):
        found = consistency(net, noise(3, 3, 8, 8).float(), moves="noise")
    assert net.training
    assert found.moves["noise"].pooled.pairs == 12  # its own ground: no dropout, no autocast
    assert found.to_dict() == consistency(net, noise(3, 3, 8, 8).float(), moves="noise").to_dict()


def test_progress_counts_every_forward_pass() -> None:
    events: list[dict[str, Any]] = []
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())
    moves = [Circular(shifts=(1, 2)), Crop(shifts=(1,), draws=2)]
    data = noise(3, 1, 8, 8).float()
    consistency(net, data, input=(1, 6, 6), moves=moves, layers="0", batch=2, progress=events.append)
    assert [set(event) for event in events] == [{"done", "total", "rate", "seconds_left", "layer"}] * len(
        events
    )
    assert events[-1]["done"] == events[-1]["total"] == 3 * (1 + 2 + 1 + 2 + 1)
    assert {event["layer"] for event in events} == {"the pictures as they are", "circular", "crop", "layers"}


# -- figures and print ---------------------------------------------------------------------------------------


def test_answers_of_one_image_count_as_what_they_are_worth() -> None:
    hits = torch.tensor([[True], [True], [False], [True], [False]])
    alone = share(hits)
    assert share(hits.expand(5, 9)) == alone  # nine times the same tells nothing new
    mixed = torch.tensor([[True, True, False, True, False, True, True, False, False]] * 5)
    spread = share(mixed)  # images do not differ: every answer counts
    assert spread.value == pytest.approx(5 / 9)
    assert spread.low is not None
    assert spread.high is not None
    both = share(torch.tensor([[True, False], [False, True], [True, True]]))
    assert both.value == pytest.approx(2 / 3)
    sure = share(torch.ones(12, 6, dtype=torch.bool))
    assert sure.high == 1.0
    assert sure.low == pytest.approx(1 / (1 + 1.959964**2 / 12), abs=1e-6)  # Wilson's for 12 of 12
    one = share(torch.ones(1, 1, dtype=torch.bool))
    assert one.low == pytest.approx(0.2065, abs=1e-4)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """Twenty images with a rate of their own, four answers each, many times over."""
    generator = torch.Generator().manual_seed(0)
    rates = torch.rand(400, 20, 1, generator=generator) ** 0.5  # mean 2/3
    hits = torch.rand(400, 20, 4, generator=generator) < rates
    found = [share(part) for part in hits]
    covered = sum(e.low <= 2 / 3 <= e.high for e in found if e.low is not None and e.high is not None)
    assert 0.91 < covered / 400 <= 0.99
    means = [mean(part) for part in rates]
    covered = sum(e.low <= 2 / 3 <= e.high for e in means if e.low is not None and e.high is not None)
    assert 0.88 < covered / 400 <= 0.99


def test_means_of_one_image_and_of_many() -> None:
    assert mean(torch.tensor([[1.0, 3.0]])) == Estimate(2.0, None, None)
    assert str(mean(torch.tensor([[1.0, 3.0]]))) == "2"
    assert Estimate(0.5, None, None).percent() == "50.0 %"
    values = noise(1000, 1)
    many = mean(values)
    half = 1.959964 * float(values.std()) / math.sqrt(1000)
    assert many.low == pytest.approx(many.value - half, rel=1e-6)
    few = mean(values[:999])
    assert few.low == pytest.approx(many.low, abs=0.002)


def test_it_prints_and_shows_as_html() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("a<b>", nn.Conv2d(1, 2, 3, stride=2, padding=1))

        def forward(self, x: Tensor) -> Tensor:
            return next(self.children())(x).mean((2, 3))

    found = consistency(Odd().double(), noise(2, 1, 8, 8), moves=["circular", Noise(sigmas=(0.5,))])
    text = str(found)
    assert "Consistency of Odd, 2 images of tensor" in text
    assert "top-1 agrees" in text
    assert "0.5 σ" in text
    row = next(line for line in text.split("\n") if "a<b>" in line)
    assert "4 x 4" in row
    assert "2 x 2" in row
    html = found._repr_html_()
    assert "a&lt;b&gt;" in html
    assert "a<b>" not in html
    assert html.count("<table>") == 2
    assert found.__rich__() is not None


# -- wrong requests ------------------------------------------------------------------------------------------


def test_wrong_requests_are_named(make_net: Callable[..., Net]) -> None:
    net = nn.Conv2d(1, 2, 3)
    data = noise(2, 1, 8, 8).float()
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"seed": 0.5}, RequestError, "seed=0.5 must be a whole number"),
        ({"batch": 0}, RequestError, "batch=0 must be a whole number from 1 on"),
        ({"limit": 0}, RequestError, "limit=0 must be at least 1"),
        ({"moves": (), "layers": ()}, RequestError, "moves=() and layers=() leave nothing to measure"),
        ({"moves": "shear"}, UnknownName, "move 'shear' must be one of"),
        ({"layers": "conv9"}, UnknownLayer, "layer 'conv9'"),
        ({"scores": True}, RequestError, "scores=True needs an output of shape [batch, classes]"),
        ({"data": data[0, 0]}, BadInput, "data of shape [8, 8] must be [sample, channel, *positions]"),
        ({"data": data[:0]}, BadInput, "none of them empty"),
        ({"data": data > 0}, BadInput, "data of type torch.bool must be floating numbers"),
        ({"data": data.long()}, BadInput, "data of shape [2, 1, 8, 8] must be [sample, length] of tokens"),
        ({"data": data / 0}, BadInput, "data holds values that are not finite"),
        (
            {"input": (1, 9, 8)},
            BadInput,
            "data of shape [2, 1, 8, 8] does not serve an input of shape [1, 9, 8]",
        ),
        ({"input": "3x8x8"}, BadInput, "it must have the same channels and be nowhere smaller"),
        ({"input": InputSpec((1, 8, 10))}, BadInput, "does not serve an input of shape [1, 8, 10]"),
        ({"data": None}, BadInput, "says nothing about its input"),
        ({"data": None, "input": "5x8x8"}, BadInput, "cannot serve an input of 5 channels"),
    ]
    for wrong, kind, message in cases:
        arguments = {"data": data, "input": (1, 8, 8), **wrong}
        if "data" in wrong and wrong["data"] is None:
            arguments["input"] = wrong.get("input")
        with pytest.raises(kind) as caught:
            consistency(net, **arguments)
        assert message in str(caught.value), wrong
    with pytest.raises(RequestError, match="must be a Net or an nn.Module"):
        consistency("resnet18", data)
    with pytest.raises(BadInput, match="does not serve an input of shape"):
        consistency(make_net(net, (1, 9, 9)), data)


def test_networks_that_fail_are_named() -> None:
    data = noise(3, 1, 8, 8).float()
    picky = Lambda(lambda x: x.view(1, -1))
    with pytest.raises(
        ModelError, match=r"Lambda failed on a batch of shape \[3, 1, 8, 8\]|gives no tensor of numbers"
    ):
        consistency(picky, data, moves="noise", layers=())

    def only_one(x: Tensor) -> Tensor:
        if len(x) > 1:
            raise ValueError("one at a time")
        return x.mean((2, 3))

    with pytest.raises(ModelError, match="Lambda failed on a batch of shape .*ValueError: one at a time"):
        consistency(Lambda(only_one), data, moves="noise", layers=())
    assert consistency(Lambda(only_one), data, moves="noise", layers=(), batch=1).images == 3
    with pytest.raises(ModelError, match="values that are not finite for image '0'"):
        consistency(Lambda(lambda x: x.mean((2, 3)) / 0), data, moves="noise", layers=())
    with pytest.raises(ModelError, match="tensor 'weight' of the network is on the meta device"):
        consistency(nn.Conv2d(1, 2, 3, device="meta"), data)

    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) if len(x) == 1 else x

    with pytest.raises(ModelError, match="layer 'conv' ran on the example input and not on the data"):
        consistency(Moody(), data, moves="noise", layers="conv")
