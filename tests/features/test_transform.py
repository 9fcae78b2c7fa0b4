"""The one fused resampling against an independent float64 one, and streams of their own."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from convscope.algorithms.kernels import host
from convscope.errors import RequestError
from convscope.features.transform import LUCID, NONE, Mover, Robust, draw

CPU = torch.device("cpu")


def reflected(index: int, size: int) -> int:
    """The pixel that lies at an index beyond the border, mirrored at the outer edge of the last pixel."""
    index %= 2 * size
    return index if index < size else 2 * size - 1 - index


def resample(
    image: np.ndarray, move: tuple[float, float, float, float], border: float | None, pad: int
) -> np.ndarray:
    """Bilinear, in float64, pixel by pixel: what `Mover` claims to do."""
    height, width = image.shape
    shift_x, shift_y, scale, angle = move
    result = np.zeros((height + 2 * pad, width + 2 * pad))
    for row in range(result.shape[0]):
        for column in range(result.shape[1]):
            x, y = column - (result.shape[1] - 1) / 2, row - (result.shape[0] - 1) / 2
            at_x = (math.cos(angle) * x - math.sin(angle) * y) / scale + shift_x + (width - 1) / 2
            at_y = (math.sin(angle) * x + math.cos(angle) * y) / scale + shift_y + (height - 1) / 2
            left, top = math.floor(at_x), math.floor(at_y)
            for i, wy in ((top, 1 - (at_y - top)), (top + 1, at_y - top)):
                for j, wx in ((left, 1 - (at_x - left)), (left + 1, at_x - left)):
                    if border is None:
                        value = image[reflected(i, height), reflected(j, width)]
                    else:
                        value = image[i, j] if 0 <= i < height and 0 <= j < width else border
                    result[row, column] += wy * wx * value
    return result


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(seed))


def moved(image: Tensor, move: tuple[float, float, float, float], robust: Robust | None = None) -> Tensor:
    mover = Mover(robust or Robust(), (image.shape[-2], image.shape[-1]), CPU)
    return mover(image, torch.tensor([move]))[0, 0]


def test_identity_is_identity() -> None:
    for size in ((8, 8), (7, 10)):
        torch.testing.assert_close(
            moved(picture(*size), (0, 0, 1, 0)), picture(*size)[0, 0], atol=1e-5, rtol=0
        )


def test_a_shift_of_whole_pixels_moves_pixels() -> None:
    image = picture(8, 9)
    result = moved(image, (2, -3, 1, 0))
    torch.testing.assert_close(result[3:, :7], image[0, 0, :5, 2:], atol=1e-5, rtol=0)
    torch.testing.assert_close(result[:, 7], result[:, 8] * 0 + result[:, 7])
    torch.testing.assert_close(result[2, :7], image[0, 0, 0, 2:], atol=1e-5, rtol=0)  # mirrored at the edge


def test_a_quarter_turn_turns() -> None:
    image = picture(8, 8)
    result = moved(image, (0, 0, 1, math.pi / 2))
    torch.testing.assert_close(result, image[0, 0].rot90(-1).rot90(2), atol=1e-5, rtol=0)


def test_twice_the_scale_shows_the_middle_half() -> None:
    image = picture(16, 16)
    result = moved(image, (0, 0, 2, 0))
    wanted = torch.from_numpy(resample(image[0, 0].double().numpy(), (0, 0, 2, 0), None, 0)).float()
    torch.testing.assert_close(result, wanted, atol=1e-5, rtol=0)
    # output pixels 7 and 8 look a quarter of a pixel to either side of the centre of the inner four
    inner = image[0, 0, 7:9, 7:9]
    assert float(result[7:9, 7:9].mean()) == pytest.approx(float(inner.mean()), abs=1e-5)


@given(
    st.tuples(st.integers(4, 9), st.integers(4, 9)),
    st.tuples(st.floats(-6, 6), st.floats(-6, 6), st.floats(0.6, 1.6), st.floats(-3.1, 3.1)),
    st.sampled_from([None, 0.5, 0.0]),
    st.sampled_from([0, 2]),
)
def test_any_move_is_that_of_float64(
    size: tuple[int, int], move: tuple[float, float, float, float], border: float | None, pad: int
) -> None:
    image = picture(*size)
    robust = Robust(border="reflect" if border is None else border, pad=pad)
    wanted = resample(image[0, 0].double().numpy(), move, border, pad)
    result = moved(image, move, robust)
    assert result.shape == (size[0] + 2 * pad, size[1] + 2 * pad)
    np.testing.assert_allclose(result.numpy(), wanted, atol=2e-4)


def test_each_picture_of_a_batch_gets_its_own_move() -> None:
    images = torch.cat([picture(8, 8, seed) for seed in range(3)])
    moves = torch.tensor([[0.0, 0, 1, 0], [2, 1, 1.1, 0.3], [-1, 0, 0.9, -0.2]])
    together = Mover(Robust(), (8, 8), CPU)(images, moves)
    for row in range(3):
        alone = Mover(Robust(), (8, 8), CPU)(images[row : row + 1], moves[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone)


def test_the_quick_way_is_the_same_move_normalized() -> None:
    images = torch.cat([torch.cat([picture(11, 14, 3 * k + c) for c in range(3)], 1) for k in range(2)])
    images.requires_grad_()
    moves = torch.tensor([[3.0, -2.0, 1.1, 0.3], [-1, 4, 0.8, -0.2]])
    gain, shift = torch.tensor([1.5, 2.0, 0.5]), torch.tensor([-0.5, 0.25, 0.0])
    mover = Mover(Robust(pad=2), (11, 14), CPU)
    if not mover.is_quick(images):
        pytest.skip("no kernels on this machine")
    quick = mover.look(images, moves, gain, shift)
    plain = mover(images, moves) * gain.view(-1, 1, 1) + shift.view(-1, 1, 1)
    torch.testing.assert_close(quick, plain, atol=2e-5, rtol=0)
    weight = torch.rand(quick.shape)
    (mine,) = torch.autograd.grad((quick * weight).sum(), images)
    (his,) = torch.autograd.grad((plain * weight).sum(), images)
    torch.testing.assert_close(mine, his, atol=1e-4, rtol=0)


def test_what_the_quick_way_leaves_to_torch() -> None:
    image = picture(8, 8)
    with host.pretend(host.narrowed(0)):
        assert not Mover(Robust(), (8, 8), CPU).is_quick(image)
    assert not Mover(Robust(border=0.5), (8, 8), CPU).is_quick(image)
    assert not Mover(Robust(), (8, 8), CPU).is_quick(image.double())
    assert not Mover(Robust(), (8, 8), CPU).is_quick(torch.zeros(1, 5, 8, 8))


def test_draws_do_not_depend_on_batch_mates() -> None:
    def streams(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    three = draw(Robust(), 5, streams(1, 2, 3))
    assert three.shape == (5, 3, 4)
    assert torch.equal(draw(Robust(), 5, streams(2))[:, 0], three[:, 1])
    assert torch.equal(draw(Robust(), 5, streams(3, 1))[:, 1], three[:, 0])
    assert not torch.equal(three[:, 0], three[:, 1])


@given(st.floats(0, 20), st.floats(0, 180), st.floats(0.5, 1), st.floats(1, 2))
def test_draws_stay_within_their_bounds(jitter: float, rotate: float, low: float, high: float) -> None:
    robust = Robust(jitter=jitter, rotate=rotate, scale=(low, high))
    moves = robust.draw(64, torch.Generator().manual_seed(0))
    assert moves[:, :2].abs().max() <= jitter + 1e-5
    assert moves[:, 2].min() >= low - 1e-5
    assert moves[:, 2].max() <= high + 1e-5
    assert moves[:, 3].abs().max() <= math.radians(rotate) + 1e-5
    assert robust.room() >= 2 * jitter


def test_identity_is_known() -> None:
    assert NONE.is_identity
    assert not LUCID.is_identity
    for change in ({"jitter": 1.0}, {"rotate": 1.0}, {"scale": (0.9, 1.0)}, {"pad": 1}, {"noise": 0.1}):
        still: dict[str, Any] = {"jitter": 0.0, "rotate": 0.0, "scale": (1.0, 1.0)} | change
        assert not Robust(**still).is_identity


def test_gradients_reach_the_picture() -> None:
    image = picture(8, 8).requires_grad_()
    moved(image, (1.5, 0.5, 1.2, 0.4)).sum().backward()
    assert image.grad is not None
    assert (image.grad[0, 0, 2:6, 2:6] > 0).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scale": (1.1, 0.9)}, r"scale=\(1.1, 0.9\) must be two positive numbers, the smaller first"),
        ({"scale": (0.0, 1.0)}, "two positive numbers"),
        ({"jitter": -1.0}, "jitter, pad and noise must be 0 or more"),
        ({"jitter": math.inf}, "jitter"),
        ({"rotate": 200.0}, "rotate 0 to 180 degrees"),
        ({"pad": -1}, "pad"),
        ({"noise": -0.1}, "noise"),
        ({"noise": math.nan}, "noise"),
        ({"border": "wrap"}, "border='wrap' must be 'reflect' or a number"),
        ({"scale": (0.9, 1.0, 1.1)}, "two positive numbers"),
        ({"border": 7.0}, r"border=7.0 must be 'reflect' or a number in \[0, 1\]"),
        ({"views": 0}, "views=0 must be 1 or more"),
    ],
)
def test_errors_name_what_is_wrong(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Robust(**wrong)
