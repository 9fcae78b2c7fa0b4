"""Pictures through an affine map against torch's grid_sample in float64, values and gradients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from convscope.algorithms.kernels import host, sampler, threads

WIDTHS = [width for width in (16, 8) if width <= host.detect().width]
pytestmark = pytest.mark.skipif(
    host.detect().refuses() is not None or threads.refuses() is not None, reason="no kernels on this machine"
)


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVSCOPE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def reference(pictures: Tensor, maps: Tensor, gain: Tensor, shift: Tensor, size: tuple[int, int]) -> Tensor:
    """In float64, by torch; differentiable."""
    high, wide = pictures.shape[2:]
    row, column = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in size), indexing="ij")
    m = maps.double()[:, :, None, None]
    x, y = m[:, 0] * column + m[:, 1] * row + m[:, 2], m[:, 3] * column + m[:, 4] * row + m[:, 5]
    grid = torch.stack([2 * x / wide - 1, 2 * y / high - 1], -1)
    seen = F.grid_sample(pictures.double(), grid, padding_mode="reflection", align_corners=False)
    return seen * gain.double().view(-1, 1, 1) + shift.double().view(-1, 1, 1)


def some(count: int, channels: int, size: tuple[int, int], seed: int = 0) -> tuple[Tensor, ...]:
    """Pictures, maps that reach well beyond them, gain and shift."""
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.rand(count, channels, *size, generator=generator)
    slopes = torch.randn(count, 2, 3, generator=generator) * 0.7 + torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])
    slopes[..., 2] = slopes[..., 2] * 2 * max(size)
    gain, shift = torch.randn(2, channels, generator=generator)
    return pictures, slopes.flatten(1), gain, shift


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@given(
    size=st.tuples(st.integers(2, 40), st.integers(2, 40)),
    out=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    count=st.integers(0, 3),
    seed=st.integers(0, 99),
)
@settings(max_examples=15)
def test_it_is_torchs_resampling(
    width: int, channels: int, size: tuple[int, int], out: tuple[int, int], count: int, seed: int
) -> None:
    pictures, maps, gain, shift = some(count, channels, size, seed)
    exact = pictures.double().requires_grad_()
    wanted = reference(exact, maps, gain, shift, out)
    of_seen = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(seed))
    (slope,) = torch.autograd.grad(wanted, exact, of_seen.double())
    with host.pretend(host.narrowed(width)):
        seen = sampler.look(pictures, maps, gain, shift, out)
        back = sampler.gradient(of_seen, maps, gain, shift, (count, channels, *size))
    assert seen.is_contiguous(memory_format=torch.channels_last)
    # places hundreds of pixels away are rounded to a few 1e-5 of a pixel
    torch.testing.assert_close(seen.double(), wanted, atol=1e-3, rtol=0)
    torch.testing.assert_close(back.double(), slope, atol=2e-3 * (1 + float(out[0] * out[1]) ** 0.5), rtol=0)
    assert torch.allclose(back.double().sum((2, 3)), slope.sum((2, 3)), atol=1e-2)


@pytest.mark.parametrize("width", WIDTHS)
def test_near_places_are_right_to_rounding(width: int) -> None:
    pictures, _, gain, shift = some(3, 3, (33, 20))
    maps = torch.tensor([1.05, -0.1, 1.3, 0.1, 0.95, -2.2]).repeat(3, 1)
    exact = pictures.double().requires_grad_()
    wanted = reference(exact, maps, gain, shift, (33, 20))
    of_seen = torch.rand(wanted.shape)
    (slope,) = torch.autograd.grad(wanted, exact, of_seen.double())
    with host.pretend(host.narrowed(width)):
        seen = sampler.look(pictures, maps, gain, shift, (33, 20))
        back = sampler.gradient(of_seen, maps, gain, shift, (3, 3, 33, 20))
    torch.testing.assert_close(seen.double(), wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(back.double(), slope, atol=2e-5, rtol=0)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_it_writes_its_output_and_nothing_else(channels: int) -> None:
    pictures, maps, gain, shift = some(2, channels, (9, 11))
    room = torch.full((2 * channels * 35 + 64,), -7.0)
    seen = room[32 : 32 + 2 * channels * 35].view(2, 5, 7, channels).movedim(-1, 1)
    sampler._run("look", pictures, seen, maps, gain, shift)
    assert torch.equal(seen, sampler.look(pictures, maps, gain, shift, (5, 7)))
    assert (room[:32] == -7).all()
    assert (room[-32:] == -7).all()


def test_any_number_of_threads_gives_the_same_bits() -> None:
    pictures, maps, gain, shift = some(5, 3, (20, 24))
    of_seen = torch.rand(5, 3, 20, 24)
    found, before = [], torch.get_num_threads()
    try:
        for count in (1, 2, 7):
            torch.set_num_threads(count)
            seen = sampler.look(pictures, maps, gain, shift, (20, 24))
            found.append((seen, sampler.gradient(of_seen, maps, gain, shift, pictures.shape)))  # type: ignore[arg-type]
    finally:
        torch.set_num_threads(before)
    for seen, back in found[1:]:
        assert torch.equal(seen, found[0][0])
        assert torch.equal(back, found[0][1])


def test_a_nan_stays_in_its_picture() -> None:
    pictures, maps, gain, shift = some(3, 3, (12, 12))
    pictures[1] = float("nan")
    seen = sampler.look(pictures, maps, gain, shift, (12, 12))
    assert seen[[0, 2]].isfinite().all()
    assert seen[1].isnan().all()
    back = sampler.gradient(seen, maps, gain, shift, (3, 3, 12, 12))
    assert back[[0, 2]].isfinite().all()


def test_what_it_refuses() -> None:
    assert sampler.refuses(torch.zeros(1, 3, 8, 8)) is None
    for wrong in (torch.zeros(1, 5, 8, 8), torch.zeros(1, 3, 1, 8)):
        assert "pictures of 1 to 4 channels and at least 2 x 2" in (sampler.refuses(wrong) or "")
    assert "for float32 on the CPU, not float64 on cpu" in (
        sampler.refuses(torch.zeros(1, 3, 8, 8).double()) or ""
    )
    assert "too large" in (sampler.refuses(torch.zeros(1, 1, 1, 1).expand(1, 1, 4096, 4096)) or "")
    with host.pretend(host.narrowed(0)):
        assert "neither AVX-512 nor AVX2" in (sampler.refuses(torch.zeros(1, 3, 8, 8)) or "")
