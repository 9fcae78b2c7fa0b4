"""What a convolution costs on paper: operations, bytes moved and workspace, derived from the problem alone.

Counted is what the algorithm does, whoever carries it out:

- a multiplication is one of real numbers by anything but 0, 1 and -1; an addition is one of real numbers;
- bytes are those that the steps of the algorithm, each run over the whole batch, read and write: what a machine that
  fuses steps in its caches saves is not taken off;
- workspace is what lives beside input, weight and output while it runs, on this machine where it matters: machine
  code keeps blocks of what torch's operations keep whole;
- the weight is transformed beforehand, and a bias, where there is one, adds one addition an output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace

import torch
from torch import Tensor

from convscope.algorithms.base import resolve
from convscope.algorithms.problem import Padding, Problem, flat


@dataclass(frozen=True)
class Cost:
    """Operations and memory of one call, with the weight prepared.

    Attributes:
        multiplications, additions: of real numbers.
        bytes_read, bytes_written: by all steps together.
        workspace: bytes beside input, weight and output.
    """

    multiplications: int
    additions: int
    bytes_read: int
    bytes_written: int
    workspace: int

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return self.multiplications + self.additions

    @property
    def bytes(self) -> int:
        """Read and written."""
        return self.bytes_read + self.bytes_written

    def to_dict(self) -> dict[str, int]:
        """Plain values."""
        return asdict(self)

    def __add__(self, other: Cost) -> Cost:
        """One after the other, with the workspace of both alive."""
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def copied(read: int, written: int, size: int) -> Cost:
    """Elements read and written again elsewhere, in a workspace of as many."""
    return Cost(0, 0, read * size, written * size, written * size)


def of_products(problem: Problem) -> Cost:
    """The definition: every product of every output, summed; nothing between input and output.

    Example:
        >>> of_products(Problem(1, 1, 1, (4, 4), (3, 3))).to_dict()
        {'multiplications': 36, 'additions': 32, 'bytes_read': 100, 'bytes_written': 16, 'workspace': 0}
    """
    outputs = math.prod(problem.output_shape)
    size = problem.dtype.itemsize
    read = math.prod(problem.input_shape) + math.prod(problem.weight_shape)
    real = Cost(problem.macs, max(0, problem.macs - outputs), read * size, outputs * size, 0)
    return of_complex(real) if problem.dtype.is_complex else real


def of_complex(real: Cost) -> Cost:
    """The same with complex numbers: four multiplications and two additions a product, two an addition."""
    return replace(
        real,
        multiplications=4 * real.multiplications,
        additions=2 * real.multiplications + 2 * real.additions,
    )


def cost(
    input: Tensor | Sequence[int],
    weight: Tensor | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    algorithm: str = "direct",
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Cost:
    """What an algorithm does to compute a convolution, counted exactly.

    Args:
        input: `[batch, in_channels, height, width]`, or without the batch, or without the height for one dimension; a
            tensor or its shape.
        weight: `[out_channels, in_channels / groups, height, width]` likewise.
        stride, padding, dilation, groups: as `conv2d` takes them.
        algorithm: a name, with or without a variant: "winograd:F(4,3)". Without one its first is meant.
        dtype, device: of shapes; tensors have their own.

    Returns:
        The operations, bytes moved and workspace of a call with the weight prepared.

    Raises:
        UnknownName: there is no such algorithm.
        RequestError: it cannot serve this problem.
        RuntimeError: torch refuses such a convolution.

    Example:
        >>> shape = (1, 64, 56, 56), (64, 64, 3, 3)
        >>> direct, fast = cost(*shape, padding=1), cost(*shape, padding=1, algorithm="winograd:F(4,3)")
        >>> direct.multiplications, fast.multiplications, round(direct.operations / fast.operations, 2)
        (115605504, 30858240, 3.7)
    """
    problem = described(input, weight, stride, padding, dilation, groups, dtype, device)
    found, variant = resolve(algorithm, problem)
    return found.cost(problem, variant)


def described(
    input: Tensor | Sequence[int],
    weight: Tensor | Sequence[int],
    stride: int | Sequence[int],
    padding: Padding,
    dilation: int | Sequence[int],
    groups: int,
    dtype: torch.dtype,
    device: str,
) -> Problem:
    """The problem of tensors or of shapes."""
    x, w = (
        each.detach() if isinstance(each, Tensor) else torch.empty(tuple(each), dtype=dtype, device="meta")
        for each in (input, weight)
    )
    if w.dim() == 3:
        x, w = x.unsqueeze(-2), w.unsqueeze(-2)
        stride, padding = flat("stride", stride, 1), flat("padding", padding, 0)
        dilation = flat("dilation", dilation, 1)
    x = x.unsqueeze(0) if x.dim() == 3 else x
    problem = Problem.of(x, w, stride, padding, dilation, groups)
    return replace(problem, device=torch.device(device).type) if problem.device == "meta" else problem
