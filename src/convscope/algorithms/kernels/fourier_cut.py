"""How one axis of a stride-1 correlation is cut into circular ones, which Fourier transforms compute.

    y[o] = sum over j of w[j] x[o + j - low]        x is 0 outside its `size` pixels

*Whole*: one transform holds all of x, pixel i at place i, and tap j of the kernel lies at place j - low (mod
length). What wraps around is zero if length >= size + max(low, high): shorter than size + kernel - 1, because
padding is shared by both ends. *Tiled* (overlap-save): tile t reads the `length` pixels from t step - low on, and
the step = length - kernel + 1 outputs that see no wrapped pixel are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

from convscope.algorithms.kernels.fourier_dft import good


@dataclass(frozen=True)
class Cut:
    """One axis, cut.

    Attributes:
        size: pixels of the image.
        kernel: taps.
        low, high: zeros before and after the image; negative where pixels are left out.
        length: of the transforms.
        step: outputs that one tile gives; the last tile may give fewer.
        whole: whether one transform holds the image.
    """

    size: int
    kernel: int
    low: int
    high: int
    length: int
    step: int
    whole: bool

    @property
    def output(self) -> int:
        """Outputs along the axis."""
        return self.size + self.low + self.high - self.kernel + 1

    @property
    def tiles(self) -> int:
        """How many tiles there are."""
        return -(-self.output // self.step)

    @property
    def inputs(self) -> int:
        """Pixels that a tile reads; its transform's further inputs are zero."""
        return self.size if self.whole else self.step + self.kernel - 1

    @property
    def first(self) -> int:
        """The pixel at which tile 0 begins; tile t begins t * step later."""
        return 0 if self.whole else -self.low

    @property
    def shift(self) -> int:
        """Tap j of the kernel lies at place j - shift (mod length)."""
        return self.low if self.whole else 0


def whole(size: int, kernel: int, low: int, high: int) -> Cut:
    """The cut with one transform.

    Example:
        >>> cut = whole(56, 31, 15, 15)
        >>> cut.length, cut.output, cut.tiles
        (72, 56, 1)
    """
    output = size + low + high - kernel + 1
    length = good(max(size + max(low, high, 0), kernel, output))
    return Cut(size, kernel, low, high, length, output, True)


def tiled(size: int, kernel: int, low: int, high: int, length: int) -> Cut:
    """The cut with transforms of at most `length`; as even tiles as can be; whole where that is no longer.

    Raises:
        ValueError: the kernel does not fit.

    Example:
        >>> cut = tiled(224, 5, 2, 2, 32)
        >>> cut.tiles, cut.step, cut.inputs
        (8, 28, 32)
        >>> tiled(14, 5, 2, 2, 32).whole
        True
    """
    if kernel > length:
        raise ValueError(f"a kernel of {kernel} does not fit in transforms of {length}")
    one = whole(size, kernel, low, high)
    if one.length <= length:
        return one
    tiles = -(-one.output // (length - kernel + 1))
    step = -(-one.output // tiles)
    return Cut(size, kernel, low, high, good(step + kernel - 1), step, False)
