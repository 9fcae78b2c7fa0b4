"""How unevenly the taps of a transposed convolution fall on its output: the checkerboard, exactly.

A transposed convolution lays its kernel down once for each input pixel, `stride` pixels apart, and adds up what
overlaps. Where the stride does not divide the kernel, some outputs collect more taps than others, in a pattern that
repeats every `stride` pixels: Odena, Dumoulin, Olah, "Deconvolution and Checkerboard Artifacts" (Distill, 2016).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convscope.errors import RequestError
from convscope.nn.geometry import Size, whole_numbers

Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Checkerboard:
    """The overlap pattern of one layer, over one period of the output (away from its borders).

    Position (y, x) of the output has row y % period[0] and column x % period[1] of the pattern.

    Attributes:
        kernel_size, stride, padding, dilation: of the layer, one number an axis.
        taps: how many taps of the kernel fall on each position, one row of numbers for each row of a period.
        sums: the sum of the weights that fall on each position, Tensor [out_channels, period_h, period_w]; it is the
            output for an input of ones, bias apart. None where no weight was given.
    """

    kernel_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    taps: tuple[tuple[int, ...], ...]
    sums: Tensor | None = None

    @property
    def period(self) -> Pair:
        """Rows and columns after which the pattern repeats."""
        return self.stride

    @property
    def even(self) -> bool:
        """Whether every position collects the same number of taps, so that no weights are needed to even it out."""
        return self.evenness == 1.0

    @property
    def evenness(self) -> float:
        """Fewest taps over most taps: 1 is even, 0 leaves positions that nothing reaches."""
        counts = [count for row in self.taps for count in row]
        return min(counts) / max(counts)

    @property
    def ripple(self) -> Tensor | None:
        """How much of each channel's answer to a constant image is pattern, Tensor [out_channels]; None without sums.

        The root mean square of the sums' deviation from their mean, over that of the sums: 0 is flat, 1 is nothing
        but pattern. A channel whose sums are all 0 has none.
        """
        if self.sums is None:
            return None
        flat = self.sums.double().flatten(1)  # [out_channels, position]
        pattern = (flat - flat.mean(1, keepdim=True)).square().sum(1)
        power = flat.square().sum(1)
        return (pattern / power.where(power > 0, 1.0)).sqrt()

    def overlap(self, input_size: Size, output_padding: Size = 0) -> Tensor:
        """How many taps fall on each position of the whole output, borders included, int64 [height, width].

        Args:
            input_size: height and width of the layer's input.
            output_padding: of the layer, one number or one an axis.
        """
        size = whole_numbers(input_size, 2, "input_size")
        extra = whole_numbers(output_padding, 2, "output_padding", least=0)
        rows, columns = (
            _counts(n, k, s, p, d, e)
            for n, k, s, p, d, e in zip(
                size, self.kernel_size, self.stride, self.padding, self.dilation, extra, strict=True
            )
        )
        return rows[:, None] * columns

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        ripple = self.ripple
        return {
            "kernel_size": list(self.kernel_size),
            "stride": list(self.stride),
            "padding": list(self.padding),
            "dilation": list(self.dilation),
            "taps": [list(row) for row in self.taps],
            "even": self.even,
            "evenness": self.evenness,
            "sums": None if self.sums is None else self.sums.tolist(),
            "ripple": None if ripple is None else ripple.tolist(),
        }

    def __str__(self) -> str:
        counts = [count for row in self.taps for count in row]
        found = f"{counts[0]} taps everywhere" if self.even else f"{min(counts)} to {max(counts)} taps"
        kernel, stride = ("x".join(map(str, pair)) for pair in (self.kernel_size, self.stride))
        lines = [f"kernel {kernel}, stride {stride}: {'even' if self.even else 'uneven'}, {found}"]
        if not self.even:
            width = len(str(max(counts)))
            lines += ["  " + " ".join(f"{count:{width}d}" for count in row) for row in self.taps]
        ripple = self.ripple
        if ripple is not None:
            lines.append(f"ripple on a constant image: {ripple.mean():.3f} mean, {ripple.max():.3f} at most")
        return "\n".join(lines)


def checkerboard(
    kernel_size: Size,
    stride: Size,
    padding: Size = 0,
    dilation: Size = 1,
    weight: Tensor | None = None,
    groups: int = 1,
) -> Checkerboard:
    """The overlap pattern of a transposed convolution with these arguments.

    Args:
        kernel_size, stride, padding, dilation: one number, or one an axis, as for `torch.nn.ConvTranspose2d`.
        weight: `[in_channels, out_channels / groups, kernel_h, kernel_w]`, for the sums; or None.
        groups: of the weight.

    Raises:
        RequestError: a number is not positive, or the weight has another kernel.

    Example:
        >>> print(checkerboard(3, 2))
        kernel 3x3, stride 2x2: uneven, 1 to 4 taps
          4 2
          2 1
        >>> print(checkerboard(4, 2))
        kernel 4x4, stride 2x2: even, 4 taps everywhere
    """
    kernel = whole_numbers(kernel_size, 2, "kernel_size")
    strides = whole_numbers(stride, 2, "stride")
    pads = whole_numbers(padding, 2, "padding", least=0)
    dilations = whole_numbers(dilation, 2, "dilation")
    rows, columns = (_phases(k, s, p, d) for k, s, p, d in zip(kernel, strides, pads, dilations, strict=True))
    taps = tuple(tuple(len(row) * len(column) for column in columns) for row in rows)
    sums = None if weight is None else _sums(weight, kernel, rows, columns, groups)
    return Checkerboard(_pair(kernel), _pair(strides), _pair(pads), _pair(dilations), taps, sums)


def _pair(numbers: tuple[int, ...]) -> Pair:
    height, width = numbers
    return height, width


def _phases(kernel: int, stride: int, padding: int, dilation: int) -> list[list[int]]:
    """The taps that fall on each position of a period along one axis."""
    return [
        [tap for tap in range(kernel) if (tap * dilation - position - padding) % stride == 0]
        for position in range(stride)
    ]


def _sums(
    weight: Tensor, kernel: tuple[int, ...], rows: list[list[int]], columns: list[list[int]], groups: int
) -> Tensor:
    if weight.ndim != 4 or tuple(weight.shape[2:]) != kernel or len(weight) % groups:
        raise RequestError(
            f"weight of shape {tuple(weight.shape)} must be [in_channels, out_channels / groups, {kernel[0]}, {kernel[1]}] "
            f"with in_channels divisible by groups={groups}."
        )
    total = (
        weight.detach().unflatten(0, (groups, -1)).sum(1).flatten(0, 1)
    )  # [out_channels, kernel_h, kernel_w]
    return torch.stack(
        [torch.stack([total[:, r][:, :, c].sum((1, 2)) for c in columns], 1) for r in rows], 1
    )  # [out_channels, stride_h, stride_w]


def _counts(size: int, kernel: int, stride: int, padding: int, dilation: int, extra: int) -> Tensor:
    """Taps on each output along one axis, for `size` inputs."""
    length = (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + extra + 1
    if length < 1:
        raise RequestError(f"input_size={size} with padding={padding} leaves no output; enlarge the input.")
    at = torch.arange(size)[:, None] * stride + torch.arange(kernel) * dilation - padding  # [input, tap]
    inside = at[(at >= 0) & (at < length)]
    return torch.bincount(inside, minlength=length)
