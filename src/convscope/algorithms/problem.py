"""One convolution, resolved and validated: what every algorithm is asked to compute.

Two spatial axes always: a one-dimensional convolution is one of height 1. Strings and single numbers are resolved
as torch resolves them, and what torch refuses is refused with torch's class of error and, nearly, its words.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

Pair = tuple[int, int]
Padding = int | str | Sequence[int] | Sequence[Sequence[int]]


@dataclass(frozen=True)
class Problem:
    """One convolution of a batch, without its data.

    Attributes:
        batch: images.
        in_channels, out_channels: channels of input and output.
        size: height and width of the input.
        kernel, stride, dilation: along height and width.
        groups: independent convolutions over consecutive channels.
        padding: zeros around the input, ((top, bottom), (left, right)).
        dtype: of input, weight and output.
        device: its type, "cpu" or "cuda".

    Example:
        >>> problem = Problem.of(torch.zeros(2, 8, 32, 48), torch.zeros(16, 8, 3, 3), padding="same")
        >>> problem.output_shape, problem.macs
        ((2, 16, 32, 48), 3538944)
    """

    batch: int
    in_channels: int
    out_channels: int
    size: Pair
    kernel: Pair
    stride: Pair = (1, 1)
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    groups: int = 1
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    @classmethod
    def of(
        cls,
        x: Tensor,
        weight: Tensor,
        stride: int | Sequence[int] = 1,
        padding: Padding = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> Problem:
        """The convolution of a batch with a weight.

        Args:
            x: `[batch, in_channels, height, width]`.
            weight: `[out_channels, in_channels / groups, height, width]`.
            stride, dilation: one number, or one for each axis.
            padding: one number, one for each axis, ((top, bottom), (left, right)), "same" or "valid".
            groups: divides both numbers of channels.

        Raises:
            RuntimeError: torch refuses these shapes, types or numbers.
            TypeError: an argument is of the wrong type.
        """
        if x.dtype != weight.dtype:
            raise RuntimeError(f"expected scalar type {_name(x.dtype)} but found {_name(weight.dtype)}")
        if x.device.type != weight.device.type and "meta" not in (x.device.type, weight.device.type):
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found input on {x.device} and weight on "
                f"{weight.device}"
            )
        return _problem(
            tuple(x.shape),
            tuple(weight.shape),
            frozen(stride),
            frozen(padding),
            frozen(dilation),
            groups,
            x.dtype,
            x.device.type,
        )

    @functools.cached_property
    def padded(self) -> Pair:
        """Height and width of the input with its padding."""
        (top, bottom), (left, right) = self.padding
        return self.size[0] + top + bottom, self.size[1] + left + right

    @functools.cached_property
    def extent(self) -> Pair:
        """Height and width that a dilated kernel covers."""
        return _extent(self.kernel, self.dilation)

    @functools.cached_property
    def output_size(self) -> Pair:
        """Height and width of the output."""
        height, width = (
            (padded - extent) // stride + 1
            for padded, extent, stride in zip(self.padded, self.extent, self.stride, strict=True)
        )
        return height, width

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """`[batch, in_channels, height, width]`."""
        return self.batch, self.in_channels, *self.size

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """`[out_channels, in_channels / groups, height, width]`."""
        return self.out_channels, self.in_channels // self.groups, *self.kernel

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        """`[batch, out_channels, height, width]`."""
        return self.batch, self.out_channels, *self.output_size

    @property
    def terms(self) -> int:
        """Products that one output sums."""
        return math.prod(self.weight_shape[1:])

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the definition, zeros of the padding included."""
        return math.prod(self.output_shape) * self.terms

    @property
    def depthwise(self) -> bool:
        """Whether every output channel sees one input channel, and there are several."""
        return self.groups == self.in_channels > 1

    @property
    def plain(self) -> bool:
        """Whether neither stride nor dilation skips anything."""
        return self.stride == (1, 1) == self.dilation

    def transposed(self) -> Problem:
        """The convolution that takes a gradient of the output to that of the input, for stride 1.

        Its weight is this one's with both spatial axes flipped and the channels of each group swapped.

        Raises:
            ValueError: the stride is not 1, or the padding is wider than the kernel reaches, where the gradient is
                no convolution of this kind.

        Example:
            >>> Problem(1, 8, 16, (9, 9), (3, 3)).transposed().padding
            ((2, 2), (2, 2))
        """
        if self.stride != (1, 1):
            raise ValueError(f"the input gradient at stride {self.stride} is no plain convolution.")
        (top, bottom), (left, right) = self.padding
        reach = self.extent[0] - 1, self.extent[1] - 1
        if min(reach[0] - top, reach[0] - bottom, reach[1] - left, reach[1] - right) < 0:
            raise ValueError(f"the padding {self.padding} is wider than the kernel reaches, {reach}.")
        return replace(
            self,
            in_channels=self.out_channels,
            out_channels=self.in_channels,
            size=self.output_size,
            padding=(
                (reach[0] - top, reach[0] - bottom),
                (reach[1] - left, reach[1] - right),
            ),
        )


def _extent(kernel: Pair, dilation: Pair) -> Pair:
    return dilation[0] * (kernel[0] - 1) + 1, dilation[1] * (kernel[1] - 1) + 1


def frozen(value: Any) -> Any:
    """Lists as tuples, all the way down, to look the problem up."""
    return tuple(map(frozen, value)) if isinstance(value, (list, tuple)) else value


@functools.lru_cache(maxsize=4096, typed=True)  # typed: True and 1.0 are no numbers here, though equal to 1
def _problem(
    x: tuple[int, ...],
    weight: tuple[int, ...],
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    dtype: torch.dtype,
    device: str,
) -> Problem:
    if len(x) != 4:
        raise RuntimeError(
            f"Expected 3D (unbatched) or 4D (batched) input to conv2d, but got input of size: {list(x)}"
        )
    if len(weight) != 4:
        raise RuntimeError(f"Expected 4D weight to conv2d, but got weight of size: {list(weight)}")
    strides, dilations = pair("stride", stride), pair("dilation", dilation)
    groups = _whole("groups", groups)
    if groups <= 0:
        raise RuntimeError("non-positive groups is not supported")
    if min(strides) <= 0:
        raise RuntimeError("non-positive stride is not supported")
    if min(dilations) <= 0:
        raise RuntimeError(f"dilation should be greater than zero, but got {list(dilations)}")
    _check_weight(x, weight, groups)
    kernel = weight[2], weight[3]
    zeros = sides(padding, kernel, strides, dilations)
    problem = Problem(
        x[0], x[1], weight[0], (x[2], x[3]), kernel, strides, zeros, dilations, groups, dtype, device
    )
    (high, wide), (tall, broad) = problem.padded, problem.extent
    if tall > high or broad > wide:
        raise RuntimeError(
            f"Calculated padded input size per channel: ({high} x {wide}). Kernel size: ({tall} x {broad}). "
            f"Kernel size can't be greater than actual input size"
        )
    if 0 in x[2:] and 0 not in x[:2]:
        raise RuntimeError(
            f"Only zero batch or zero channel inputs are supported, but got input shape: {list(x)}"
        )
    return problem


def pair(name: str, value: Any) -> Pair:
    """One number an axis, from one number or two.

    Raises:
        RuntimeError: there are more or fewer.
        TypeError: they are not whole numbers.
    """
    if not isinstance(value, tuple):
        value = (_whole(name, value),)
    if len(value) not in (1, 2):
        raise RuntimeError(
            f"expected {name} to be a single integer value or a list of 2 values to match the convolution "
            f"dimensions, but got {name}={list(value)}"
        )
    return _whole(name, value[0]), _whole(name, value[-1])


def flat(name: str, value: Any, still: int) -> Any:
    """The argument of a one-dimensional convolution as that of one of height 1.

    Args:
        name: of the argument.
        value: one number or a sequence of one; padding may be a string, or ((left, right),).
        still: the number that leaves the height alone.

    Raises:
        RuntimeError: there are more numbers.
    """
    if isinstance(value, str):
        return value
    value = frozen(value)
    if not isinstance(value, tuple):
        value = (value,)
    if len(value) != 1:
        raise RuntimeError(
            f"expected {name} to be a single integer value or a list of 1 values to match the convolution "
            f"dimensions, but got {name}={list(value)}"
        )
    return ((still, still), value[0]) if isinstance(value[0], tuple) else (still, value[0])


def _whole(name: str, value: Any) -> int:
    """A whole number; torch takes no bool for one."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a whole number or several, not {type(value).__name__} {value!r}")
    return operator.index(value)


def sides(padding: Any, kernel: Pair, stride: Pair, dilation: Pair) -> tuple[Pair, Pair]:
    """Zeros ((top, bottom), (left, right)) from one number, one for each axis, all four, "same" or "valid".

    Raises:
        RuntimeError: there are other strings or numbers, or "same" meets a stride.
        TypeError: they are not whole numbers.
    """
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding == "same":
        if stride != (1, 1):
            raise RuntimeError("padding='same' is not supported for strided convolutions")
        high, wide = (extent - 1 for extent in _extent(kernel, dilation))
        return (high // 2, high - high // 2), (wide // 2, wide - wide // 2)
    if isinstance(padding, str):
        raise RuntimeError(f"Invalid padding string: {padding!r}")
    if isinstance(padding, tuple) and any(isinstance(side, tuple) for side in padding):
        if len(padding) != 2 or not all(isinstance(side, tuple) and len(side) == 2 for side in padding):
            raise RuntimeError(f"expected padding to be ((top, bottom), (left, right)), but got {padding}")
        zeros = pair("padding", padding[0]), pair("padding", padding[1])
    else:
        high, wide = pair("padding", padding)
        zeros = (high, high), (wide, wide)
    if min(map(min, zeros)) < 0:
        raise RuntimeError("negative padding is not supported")
    return zeros


def _check_weight(x: tuple[int, ...], weight: tuple[int, ...], groups: int) -> None:
    if weight[0] < groups:
        raise RuntimeError(
            f"Given groups={groups}, expected weight to be at least {groups} at dimension 0, but got weight of size "
            f"{list(weight)} instead"
        )
    if weight[0] % groups:
        raise RuntimeError(
            f"Given groups={groups}, expected weight to be divisible by {groups} at dimension 0, but got weight of "
            f"size [{list(weight)}] instead"
        )
    if x[1] != weight[1] * groups:
        raise RuntimeError(
            f"Given groups={groups}, weight of size {list(weight)}, expected input{list(x)} to have "
            f"{weight[1] * groups} channels, but got {x[1]} channels instead"
        )
    if min(weight[2:]) <= 0:
        raise RuntimeError(
            f"kernel size should be greater than zero, but got kernel_height: {weight[2]} kernel_width: {weight[3]}"
        )


_NAMES = {"float32": "Float", "float64": "Double", "float16": "Half", "int64": "Long", "int32": "Int"}


def _name(dtype: torch.dtype) -> str:
    """As torch's own messages call it."""
    name = str(dtype).removeprefix("torch.")
    return _NAMES.get(name, name.capitalize())
