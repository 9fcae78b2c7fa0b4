"""The parts of Fourier kernels that can be judged alone: small transforms, cuts, register blocks, phases of counting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from convscope.algorithms.kernels.fourier_cut import Cut, tiled, whole
from convscope.algorithms.kernels.fourier_dft import Count, Numbers, dft, good, operations, radices
from convscope.algorithms.kernels.fourier_product import Product, registers, seen_by, starts_of

LENGTHS = [1, 2, 3, 4, 5, 6, 8, 9, 10, 12, 15, 16, 18, 20, 24, 25, 27, 30, 32, 45, 60]


# ---------------------------------------------------------------- small transforms


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("part", [1.0, 0.6])
def test_dft_is_the_transform(n: int, part: float) -> None:
    generator = np.random.default_rng(n)
    x = generator.standard_normal(n) + 1j * generator.standard_normal(n)
    x[max(1, int(n * part)) :] = 0
    known = [(v.real, v.imag) if v != 0 else None for v in x]
    found = [complex(*v) if v is not None else 0 for v in dft(Numbers(), known)]
    np.testing.assert_allclose(found, np.fft.fft(x), atol=1e-13)


def test_dft_refuses_other_primes() -> None:
    with pytest.raises(ValueError, match="no transform of length 7: it has a prime factor above 5"):
        dft(Numbers(), [(1.0, 0.0)] * 7)
    with pytest.raises(ValueError, match="no transform of length 34 "):
        radices(34)


def test_operations_are_those_of_the_textbook() -> None:
    # complex additions are 2 real ones; radix 2 needs 1 pair, radix 4 needs 8 complex additions
    assert operations(2) == (0, 4)
    assert operations(4) == (0, 16)
    # 8 = 4 + 4 with 4 butterflies and two turns by an eighth (2 multiplications, 2 additions each)
    assert operations(8) == (4, 52)
    # 32 in passes of 4 and 8: eight of the former, whose 3 outputs beyond the first turn, four of the latter
    assert operations(32) == (8 * 0 + 8 * 3 * 4 + 4 * 4, 8 * 16 + 8 * 3 * 2 + 4 * 52)


@pytest.mark.parametrize(("n", "inputs"), [(8, 1), (8, 3), (30, 7), (72, 56), (100, 100)])
def test_known_zeros_save_operations(n: int, inputs: int) -> None:
    few, all_ = operations(n, inputs), operations(n)
    assert few <= all_
    assert (few == all_) == (inputs == n)


def test_counting_sees_what_numbers_see() -> None:
    """The counter follows the same code: one fused multiply-add is one of each."""
    count = Count()
    value = count.constant(1.0)
    count.fma(value, value, value + value * value)
    assert (count.multiplications, count.additions) == (2, 2)


@given(st.integers(1, 3000))
def test_good_lengths(n: int) -> None:
    found = good(n)
    assert found >= n
    assert np.prod(radices(found)) == found
    assert found <= max(n + 2, 1.2 * n)


# ---------------------------------------------------------------- cuts


def correlation(x: np.ndarray, w: np.ndarray, cut: Cut) -> np.ndarray:
    """Along one axis, by circular correlations as the kernels do them."""
    n, out = cut.length, []
    placed = np.zeros(n)
    for j, tap in enumerate(w):
        placed[(j - cut.shift) % n] += tap
    for t in range(cut.tiles):
        start = cut.first + t * cut.step
        pixels = [x[i] if 0 <= i < len(x) else 0.0 for i in range(start, start + cut.inputs)]
        spectrum = np.fft.fft(pixels, n) * np.fft.fft(placed).conj()
        out.extend(np.fft.ifft(spectrum).real[: cut.step])
    return np.array(out[: cut.output])


@given(
    size=st.integers(1, 40),
    kernel=st.integers(1, 20),
    low=st.integers(-3, 25),
    high=st.integers(-3, 25),
    length=st.one_of(st.none(), st.integers(8, 40)),
)
def test_a_cut_computes_the_correlation(
    size: int, kernel: int, low: int, high: int, length: int | None
) -> None:
    assume(size + low + high - kernel + 1 >= 1 and size + min(low, 0) + min(high, 0) >= 1)
    assume(length is None or kernel <= length)
    cut = whole(size, kernel, low, high) if length is None else tiled(size, kernel, low, high, length)
    generator = np.random.default_rng(size)
    x, w = generator.standard_normal(size), generator.standard_normal(kernel)
    padded = np.array([x[i] if 0 <= i < size else 0.0 for i in range(-low, size + high)])
    np.testing.assert_allclose(correlation(x, w, cut), np.correlate(padded, w, "valid"), atol=1e-12)
    assert cut.inputs <= cut.length
    assert cut.step <= cut.length


def test_a_kernel_longer_than_the_tile() -> None:
    with pytest.raises(ValueError, match="a kernel of 9 does not fit in transforms of 8"):
        tiled(30, 9, 4, 4, 8)


# ---------------------------------------------------------------- the product's blocks


@given(tiles=st.integers(1, 40), vectors=st.integers(1, 12), available=st.sampled_from([16, 32]))
def test_register_blocks_fit(tiles: int, vectors: int, available: int) -> None:
    rows, panel = registers(tiles, vectors, available)
    assert 1 <= rows <= tiles
    assert vectors % panel == 0
    assert 2 * rows * panel + 2 * panel + 2 <= available  # sums, weights, one pixel's parts


@given(
    groups=st.integers(1, 12), per_in=st.integers(1, 9), per_out=st.integers(1, 20), panel=st.integers(1, 2)
)
def test_a_panel_sees_the_channels_of_its_groups(groups: int, per_in: int, per_out: int, panel: int) -> None:
    channels, outputs, lanes = groups * per_in, groups * per_out, 8
    span = panel * lanes
    inputs = -(-channels // lanes) * lanes
    stored = -(-outputs // span) * span
    shape = Product(1, 1, inputs, stored, panel, seen_by(channels, outputs, groups, span), 1, lanes)
    for k in range(outputs):
        start = starts_of(shape, channels, outputs, groups)[k // span]
        first = k // per_out * per_in
        assert 0 <= start <= first
        assert first + per_in <= start + shape.seen <= inputs
