"""How exact a convolution is, before it is run: the rounding error to be expected, and a bound of it.

Both are relative to the largest output, for independent normal numbers of any one variance as input and weight:
without a word about the data, nothing can be said relative to the output, which may be zero.

`expected` takes each rounding as a random error of its own, whose variance is carried to the output (Barabasz et al.
2018 find this to be what happens; Higham and Mary 2019 give the probabilistic theory). `worst` lets all of them
conspire: after d roundings in a row a number is off by at most gamma_d = d u / (1 - d u) of the sum of the absolute
values that went into it (Higham 2002, chapter 3; for Winograd Barabasz et al. 2018, theorem 2).

u is half the distance from 1 to the next number: 2^-24 in float32. Half types compute in float32 and round the output
once.

Higham, "Accuracy and Stability of Numerical Algorithms" (2002); Higham and Mary, "A New Approach to Probabilistic
Rounding Error Analysis" (2019); Barabasz, Anderson, Soodhalter and Gregg, "Error Analysis and Improving the Accuracy
of Winograd Convolution for Deep Neural Networks" (2018).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from convscope.algorithms.base import resolve
from convscope.algorithms.cost import described
from convscope.algorithms.problem import Padding, Problem

# root mean square of one rounding's relative error, as a part of u: the error is uniform within half a unit in the
# last place, the leading digits are distributed as 1 / x
ROUNDING = math.sqrt((1 - 1 / 4) / (2 * math.log(2)) / 3)

# the errors of sums have partial sums for variances, which differ from output to output: the largest of many is
# larger than a normal variable's by about this (seen: 1.0 to 1.6)
TAIL = 1.25


@dataclass(frozen=True)
class ErrorBound:
    """Rounding error relative to the output's maximum, on independent normal data.

    Attributes:
        worst: what no such data should exceed.
        expected: the largest error over all outputs that is to be expected.
    """

    worst: float
    expected: float

    def to_dict(self) -> dict[str, float]:
        """Plain values."""
        return asdict(self)


def unit(dtype: torch.dtype) -> float:
    """u of the numbers that sums are formed in: half types compute in float32; whole numbers are exact.

    Example:
        >>> unit(torch.float32) == unit(torch.bfloat16) == 2.0**-24
        True
    """
    if not (dtype.is_floating_point or dtype.is_complex):
        return 0.0
    return torch.finfo(torch.promote_types(dtype, torch.float32)).eps / 2


def gamma(roundings: float, u: float) -> float:
    """Bound of the relative error after so many roundings in a row, infinite where nothing is left."""
    return roundings * u / (1 - roundings * u) if roundings * u < 1 else math.inf


def largest(count: int) -> float:
    """The median of the largest of so many normal numbers' absolute values, in standard deviations."""
    probability = 0.5 ** (1 / max(count, 1))  # that one of them is below
    return NormalDist().inv_cdf((1 + probability) / 2)


def assemble(problem: Problem, deviation: float, roundings: float, amplification: float) -> ErrorBound:
    """The bound from an error's deviation at an output and the number of roundings that lead to it.

    Args:
        problem: the convolution.
        deviation: standard deviation of the error, in u and in standard deviations of the output.
        roundings: in a row, on the longest way from input to output.
        amplification: sum of the absolute values on the way, relative to those of the products alone.
    """
    u, outputs = unit(problem.dtype), math.prod(problem.output_shape)
    peak = largest(outputs)
    # |x w| has mean 2 / pi and mean square 1; the sum over the terms is largest somewhere among the outputs
    mean, spread = 2 / math.pi, math.sqrt(1 - 4 / math.pi**2)
    terms = max(problem.terms, 1)
    absolute = mean * terms + spread * math.sqrt(terms) * 2 * peak
    worst = gamma(roundings, u) * amplification * absolute / (math.sqrt(terms) * peak)
    expected = deviation * u
    if problem.dtype in (torch.float16, torch.bfloat16):
        last = torch.finfo(problem.dtype).eps / 2
        worst, expected = worst + last * (1 + worst), math.hypot(expected, last / 2)
    return ErrorBound(worst, max(expected, 0.0))


def of_sums(problem: Problem) -> ErrorBound:
    """One sum an output, term after term: direct convolution and im2col.

    After k of L terms the sum has k times a product's variance, and each step rounds it: sum over k of k / L is
    about L / 2.
    """
    terms = max(problem.terms, 1)
    deviation = TAIL * ROUNDING * math.sqrt((terms + 1) / 2 + 1)  # and each product, where it is not fused
    return assemble(problem, deviation, terms + 1, 1.0)


def error_bound(
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
) -> ErrorBound:
    """How exact an algorithm is for a convolution, relative to the largest output, before it is run.

    Args:
        input, weight: tensors or their shapes; the contents of tensors do not matter.
        stride, padding, dilation, groups: as `conv2d` takes them.
        algorithm: a name, with or without a variant: "winograd:F(4,3)". Without one its first is meant.
        dtype, device: of shapes; tensors have their own.

    Returns:
        The error to be expected and a bound, both for independent normal data.

    Raises:
        UnknownName: there is no such algorithm.
        RequestError: it cannot serve this problem.
        RuntimeError: torch refuses such a convolution.

    Example:
        >>> shape = (1, 64, 56, 56), (64, 64, 3, 3)
        >>> small, large = (error_bound(*shape, algorithm=f"winograd:F({m},3)") for m in (2, 6))
        >>> small.expected < large.expected < large.worst
        True
    """
    problem = described(input, weight, stride, padding, dilation, groups, dtype, device)
    found, variant = resolve(algorithm, problem)
    return found.error(problem, variant)
