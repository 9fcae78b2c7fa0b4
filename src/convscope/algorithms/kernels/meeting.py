"""Which outputs of a convolution a pixel of its input belongs to, along one axis: what its gradient adds up."""

from __future__ import annotations


def first(kernel: int, stride: int, corner: int) -> int:
    """The output that the first tap of input 0 belongs to: none or negative.

    Args:
        kernel, stride: along the axis, no dilation.
        corner: zeros in front of input 0.

    Example:
        >>> first(3, 1, 1), first(5, 2, 1)
        (-1, -2)
    """
    return min(0, (corner - kernel + 1) // stride)


def outputs(inputs: int, kernel: int, stride: int, corner: int) -> int:
    """How many outputs so many neighbouring inputs, the first of them input 0, belong to; `first` is the first.

    Example:
        >>> outputs(4, 3, 1, 1)  # -1 to 4
        6
    """
    return (inputs - 1 + corner) // stride - first(kernel, stride, corner) + 1
