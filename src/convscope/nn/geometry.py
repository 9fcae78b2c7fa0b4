"""Kernel, stride, padding and size arguments of the layers: checked once, in torch's manner, then plain tuples.

A padding is one of

- a number, or one number an axis, as in torch;
- 4-sided: for each axis a pair (before, after), `((top, bottom), (left, right))`;
- "valid": none;
- "same": TensorFlow's rule at any stride: ceil(size / stride) outputs, the odd pixel of padding after. It
  depends on the size of the input;
- "full": everything that touches the input, dilation (kernel - 1) on each side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, cast

import torch
from torch import Tensor
from torch.nn import functional

from convscope.errors import RequestError, nearest

Sides = tuple[tuple[int, int], ...]  # (before, after) for each axis
Padding = int | str | Sequence[int | Sequence[int]]
Size = int | Sequence[int]

NAMED: Final = ("valid", "same", "full")
MODES: Final = ("zeros", "reflect", "replicate", "circular")


def whole_numbers(value: Size, axes: int, name: str, least: int = 1) -> tuple[int, ...]:
    """One whole number for each axis, from one number for all or a sequence of them.

    Raises:
        RequestError: it is anything else, or a number is below `least`.

    Example:
        >>> whole_numbers(3, 2, "kernel_size"), whole_numbers([1, 5], 2, "kernel_size")
        ((3, 3), (1, 5))
    """
    numbers = tuple(value) if isinstance(value, Sequence) else (value,) * axes
    if len(numbers) != axes or not all(_whole(number) and number >= least for number in numbers):
        kind = "positive" if least == 1 else f"at least {least}"
        needed = f"a whole number, {kind}" + (f", or {axes} of them" if axes > 1 else "")
        raise RequestError(f"{name}={value!r} must be {needed}.")
    return numbers


def _whole(value: object) -> bool:
    return isinstance(value, int | torch.SymInt) and not isinstance(value, bool)


def check_channels(in_channels: int, out_channels: int, groups: int) -> None:
    """Refuses counts of channels and groups that no convolution has."""
    for name, value in (("in_channels", in_channels), ("out_channels", out_channels), ("groups", groups)):
        if not _whole(value) or value < 1:
            raise RequestError(f"{name}={value!r} must be a positive whole number.")
    for name, value in (("in_channels", in_channels), ("out_channels", out_channels)):
        if value % groups:
            raise RequestError(f"{name}={value} must be divisible by groups={groups}.")


def check_padding(padding: Padding, axes: int) -> str | tuple[int, ...] | Sides:
    """The padding as it is kept: its name, one number an axis, or one pair an axis.

    Raises:
        RequestError: an unknown name, a negative number, or too many or few of them.

    Example:
        >>> check_padding(1, 2), check_padding(((0, 1), 2), 2)
        ((1, 1), ((0, 1), (2, 2)))
    """
    if isinstance(padding, str):
        if padding not in NAMED:
            known = ", ".join(map(repr, NAMED))
            raise RequestError(
                f"padding={padding!r} must be one of {known} or numbers{nearest(padding, NAMED)}."
            )
        return padding
    sides = (padding,) * axes if isinstance(padding, int) else tuple(padding)
    pairs = [(side, side) if isinstance(side, int) else tuple(side) for side in sides]
    wrong = any(len(pair) != 2 or not all(_whole(n) and n >= 0 for n in pair) for pair in pairs)
    if wrong or len(pairs) != axes:
        raise RequestError(
            f"padding={padding!r} must be a number that is not negative, one for each of the {axes} axes, "
            f"or a pair (before, after) for each."
        )
    if all(isinstance(side, int) for side in sides):
        return cast(tuple[int, ...], sides)
    return cast(Sides, tuple(pairs))


def check_mode(mode: str, modes: Sequence[str] = MODES) -> str:
    """Refuses a padding mode that there is not."""
    if mode not in modes:
        known = ", ".join(map(repr, modes))
        raise RequestError(f"padding_mode={mode!r} must be one of {known}{nearest(mode, modes)}.")
    return mode


def resolve(
    padding: str | tuple[int, ...] | Sides,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> Sides:
    """The pixels added before and after each axis of an input of this size.

    Example:
        >>> resolve("same", (5, 6), (3, 3), (2, 2), (1, 1))
        ((1, 1), (0, 1))
    """
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if padding == "full":
        return tuple((d * (k - 1),) * 2 for k, d in zip(kernel, dilation, strict=True))
    if padding == "same":
        return tuple(map(_same, size, kernel, stride, dilation))
    return tuple((side, side) if isinstance(side, int) else side for side in cast(Sides, padding))


def _same(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    last = (-(-size // stride) - 1) * stride + dilation * (kernel - 1)  # the last pixel the last output sees
    total = max(last + 1 - size, 0)
    return total // 2, total - total // 2


def out_size(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    sides: Sides,
) -> tuple[int, ...]:
    """Outputs along each axis: floor((size + padding - dilation (kernel - 1) - 1) / stride) + 1.

    Raises:
        RequestError: the kernel is larger than the padded input.
    """
    found = tuple(
        (n + before + after - d * (k - 1) - 1) // s + 1
        for n, k, s, d, (before, after) in zip(size, kernel, stride, dilation, sides, strict=True)
    )
    if any(n < 1 for n in found):
        padded = tuple(n + before + after for n, (before, after) in zip(size, sides, strict=True))
        reach = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
        raise RequestError(
            f"input_size={tuple(size)} is {padded} when padded, smaller than the kernel, which reaches over "
            f"{reach} pixels; enlarge the input or the padding."
        )
    return found


def pad(x: Tensor, sides: Sides, mode: str) -> Tensor:
    """The input with pixels added around its last axes: zeros, or made from its own."""
    if not any(map(any, sides)):
        return x
    flat = [amount for pair in reversed(sides) for amount in pair]  # the last axis first, as torch wants it
    return functional.pad(x, flat, "constant" if mode == "zeros" else mode)


def covered(
    size: int, kernel: int, stride: int, dilation: int, sides: tuple[int, int], like: Tensor
) -> Tensor:
    """How many taps of the kernel lie on the input, not on padding, for each output along one axis. [outputs]"""
    outputs = (size + sum(sides) - dilation * (kernel - 1) - 1) // stride + 1
    at = torch.arange(outputs, device=like.device) * stride - sides[0]  # [outputs]
    taps = at[:, None] + torch.arange(kernel, device=like.device) * dilation  # [outputs, kernel]
    return ((taps >= 0) & (taps < size)).sum(1)
