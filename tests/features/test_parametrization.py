"""Parametrizations against independent computations in numpy and float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from convscope.errors import RequestError
from convscope.features.parametrization import (
    Fourier,
    Maco,
    Parametrization,
    Pixel,
    color_root,
    fit_color,
    frequencies,
    natural_magnitude,
)

CPU = torch.device("cpu")
SIZES = [(16, 16), (15, 17), (7, 12), (12, 7), (1, 9), (5, 1)]
EVERY: list[Parametrization] = [
    Pixel(),
    Pixel(color="none"),
    Fourier(),
    Fourier(decay=1.0),
    Fourier(contrast=0.5),
    Maco(),
]


def streams(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(k) for k in range(count)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", EVERY, ids=repr)
def test_every_picture_is_one(kind: Parametrization, channels: int, size: tuple[int, int]) -> None:
    bound = kind.bind(channels, size, CPU)
    parameters = bound.noise(streams(2))
    for scale in (1.0, 100.0):
        images = bound.decode(parameters * scale)
        assert images.shape == (2, channels, *size)
        assert images.dtype == torch.float32
        assert images.isfinite().all()
        assert images.min() >= 0
        assert images.max() <= 1


@given(st.integers(2, 19), st.integers(2, 19), st.sampled_from([1, 2, 3, 5]), st.integers(0, 5))
def test_a_picture_encodes_to_itself(height: int, width: int, channels: int, seed: int) -> None:
    images = torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(seed))
    images = images * 0.96 + 0.02
    for kind in (Pixel(), Fourier(), Fourier(decay=1.0)):
        bound = kind.bind(channels, (height, width), CPU)
        torch.testing.assert_close(bound.decode(bound.encode(images)), images, atol=2e-4, rtol=1e-3)


def test_black_and_white_encode_to_finite_numbers() -> None:
    images = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
    for kind in (Pixel(), Fourier(), Maco()):
        assert kind.bind(3, (8, 8), CPU).encode(images).isfinite().all()


def test_a_picture_of_the_right_magnitude_encodes_to_itself_under_maco() -> None:
    bound = Maco().bind(3, (16, 16), CPU)
    # Real transforms ignore the imaginary parts of the real coefficients: start from a picture, not from phases.
    images = bound.decode(bound.noise(streams(1)))
    again = bound.decode(bound.encode(images))
    assert (again - images).abs().mean() < 0.05


@pytest.mark.parametrize("size", [(64, 64), (33, 47), (20, 31)])
def test_fourier_has_the_variance_of_lucid(size: tuple[int, int]) -> None:
    """By numpy, from lucid's definition: sd / max(f, 1 / longest side) * sqrt(h w), back transform, / 4."""
    height, width = size
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    scale = 1.0 / np.maximum(np.hypot(rows, columns), 1.0 / max(size)) * math.sqrt(height * width)
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(400, 2, *scale.shape)) * 0.01
    pixels = np.fft.irfft2((drawn[:, 0] + 1j * drawn[:, 1]) * scale, s=size) / 4.0
    bound = Fourier(sd=0.01, decay=1.0, color="none").bind(1, size, CPU)
    ours = torch.logit(bound.decode(bound.noise(streams(400))).double())
    assert float(ours.var()) == pytest.approx(pixels.var(), rel=0.05)


@pytest.mark.parametrize("size", [(64, 64), (33, 47)])
def test_another_decay_has_about_the_same_variance(size: tuple[int, int]) -> None:
    spread = []
    for decay in (0.5, 1.0, 1.25, 2.0):
        bound = Fourier(decay=decay, color="none").bind(1, size, CPU)
        spread.append(float(torch.logit(bound.decode(bound.noise(streams(300))).double()).var()))
    assert max(spread) / min(spread) < 2  # unscaled it is thousands


def test_contrast_bounds_the_spread() -> None:
    bound = Fourier(color="none", contrast=0.7).bind(2, (16, 16), CPU)
    plain = torch.logit(bound.decode(bound.noise(streams(2)) * 1000).double())
    assert plain.flatten(1).std(1).max() == pytest.approx(0.7, rel=1e-3)
    weak = bound.noise(streams(2)) * 0.01
    free = Fourier(color="none").bind(2, (16, 16), CPU)
    torch.testing.assert_close(bound.decode(weak), free.decode(weak))


@pytest.mark.parametrize("size", [(16, 16), (15, 17)])
def test_maco_fixes_the_magnitude(size: tuple[int, int]) -> None:
    images = torch.rand(6, 3, *size, generator=torch.Generator().manual_seed(0))
    magnitude = natural_magnitude(images)
    bound = Maco(magnitude).bind(3, size, CPU)
    picture = bound.decode(bound.noise(streams(1))).double()
    root = color_root(3, "auto").double()
    plain = (torch.linalg.inv(root) @ torch.logit(picture).flatten(2)).view_as(picture)
    found = torch.fft.rfft2(plain, norm="ortho").abs()[0]
    columns = slice(1, (size[1] + 1) // 2)  # the first and the middle column are real transforms of their own
    torch.testing.assert_close(found[..., columns].float(), magnitude[..., columns], atol=2e-3, rtol=2e-2)


def test_maco_without_images_falls_off_and_has_its_contrast() -> None:
    bound = Maco(contrast=0.8).bind(1, (32, 32), CPU)
    pictures = torch.logit(bound.decode(bound.noise(streams(64))).double())
    assert float(pictures.std()) == pytest.approx(0.8, rel=0.05)


def test_maco_fits_another_canvas() -> None:
    magnitude = natural_magnitude(torch.rand(8, 1, 32, 32, generator=torch.Generator().manual_seed(0)))
    for size in ((32, 32), (64, 64), (20, 41)):
        bound = Maco(magnitude).bind(1, size, CPU)
        spread = torch.logit(bound.decode(bound.noise(streams(8)))).std()
        assert 0.5 < float(spread) / float(magnitude.square().mean().sqrt()) < 2


def test_binding_draws_nothing_from_the_global_stream() -> None:
    before = torch.get_rng_state()
    for kind in EVERY:
        kind.bind(3, (8, 8), CPU).noise(streams(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_is_its_own_stream() -> None:
    for kind in EVERY:
        bound = kind.bind(3, (8, 9), CPU)
        three, one = bound.noise(streams(3)), bound.noise([torch.Generator().manual_seed(2)])
        assert torch.equal(three[2:], one)
        assert not torch.equal(three[0], three[1])


@given(st.integers(2, 5), st.integers(0, 20))
def test_fitted_colour_reproduces_the_covariance(channels: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(channels, channels, generator=generator)
    images = (mix @ torch.randn(4, channels, 100, generator=generator)).view(4, channels, 10, 10)
    root = fit_color(images).double()
    covariance = torch.cov(images.double().movedim(1, 0).flatten(1))
    ours = root @ root.T
    torch.testing.assert_close(ours / ours.trace(), covariance / covariance.trace(), atol=1e-5, rtol=1e-4)
    assert float(root.norm(dim=0).max()) == pytest.approx(1.0, abs=1e-6)
    bound = Fourier(color=root.float()).bind(channels, (6, 6), CPU)
    shown = images.sigmoid()[..., :6, :6] * 0.9 + 0.05
    assert bound.encode(shown).isfinite().all()


def test_constant_images_fit_a_colour() -> None:
    assert fit_color(torch.full((2, 3, 4, 4), 0.5)).isfinite().all()


def test_natural_colours_are_those_of_lucid() -> None:
    root = color_root(3, "auto")
    assert float(root.norm(dim=0).max()) == pytest.approx(1.0)
    published = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
    torch.testing.assert_close(root, published / published.norm(dim=0).max())
    assert torch.equal(color_root(5, "auto"), torch.eye(5))


@pytest.mark.parametrize("kind", [Pixel(), Fourier(), Fourier(contrast=0.3), Maco()], ids=repr)
def test_decode_has_the_right_gradient(kind: Parametrization) -> None:
    bound = kind.bind(3, (5, 6), CPU)
    for name, value in vars(bound).items():  # the same computation in float64
        if isinstance(value, Tensor):
            setattr(bound, name, value.double())
    start = bound.noise(streams(2)).double()
    weights = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(5)).double()

    def total(parameters: Tensor) -> Tensor:
        return (bound.decode(parameters) * weights).sum()

    if isinstance(kind, Fourier) and kind.contrast is not None:
        assert (
            start.flatten(1).std(1) < kind.contrast
        ).all()  # below its limit; above, the scale is held fixed
    assert torch.autograd.gradcheck(total, (start.requires_grad_(),), eps=1e-6, atol=1e-5)


@pytest.mark.parametrize("kind", [Pixel(), Fourier()], ids=repr)
def test_smoothing_is_a_blur_of_the_picture(kind: Parametrization) -> None:
    bound = kind.bind(1, (32, 32), CPU)
    point = torch.full((1, 1, 32, 32), 0.5)
    point[0, 0, 16, 16] = 0.9
    before = torch.logit(point)
    after = torch.logit(bound.decode(bound.smooth(bound.encode(point), 1.5)))
    y, x = torch.meshgrid(torch.arange(32.0) - 16, torch.arange(32.0) - 16, indexing="ij")
    blob = torch.exp(-(x.square() + y.square()) / (2 * 1.5**2))
    torch.testing.assert_close(after[0, 0], before.max() * blob / blob.sum(), atol=2e-3, rtol=0.05)


def test_frequencies_are_numpys() -> None:
    for size in SIZES:
        wanted = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1])[None, :])
        np.testing.assert_allclose(frequencies(size).numpy(), wanted, atol=1e-7)


ERRORS: list[tuple[Any, str]] = [
    (lambda: color_root(3, "rgb"), "color='rgb' must be 'auto', 'natural', 'none' or a matrix"),
    (lambda: color_root(5, "natural"), "color='natural' needs 3 channels, the input has 5"),
    (lambda: color_root(3, torch.eye(2)), r"color of shape \(2, 2\) must be \(3, 3\)"),
    (lambda: fit_color(torch.rand(3, 8, 8)), r"images of shape \(3, 8, 8\) must be finite"),
    (lambda: fit_color(torch.full((1, 3, 8, 8), math.nan)), "must be finite"),
    (
        lambda: Maco(torch.rand(2, 8, 5)).bind(3, (8, 8), CPU),
        r"magnitude of shape \(2, 8, 5\) must be \[3, height",
    ),
    (lambda: Pixel(sd=0), "sd=0 must be a positive number"),
    (lambda: Fourier(sd=-1), "sd=-1 must be"),
    (lambda: Fourier(contrast=0.0), "contrast=0.0 must be"),
    (lambda: Fourier(decay=math.nan), "decay=nan must be a finite number"),
    (lambda: Maco(contrast=math.inf), "contrast=inf must be"),
    (lambda: Maco().bind(3, (8, 8), CPU).smooth(torch.zeros(1), 1.0), "blur cannot be combined with Maco"),
]


@pytest.mark.parametrize(("wrong", "message"), ERRORS)
def test_errors_name_what_is_wrong(wrong: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        wrong()
