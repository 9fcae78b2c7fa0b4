"""What a convolution algorithm is, and the list of them.

An algorithm says which variants of itself there are for a problem, which of them it refuses and why, what they cost
and how exact they are; it runs one differentiably, or prepares a kernel that holds the transformed weight.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from convscope.errors import RequestError, UnknownName, nearest

if TYPE_CHECKING:
    from convscope.algorithms.cost import Cost
    from convscope.algorithms.error import ErrorBound
    from convscope.algorithms.problem import Problem


class Kernel(Protocol):
    """A prepared convolution: one problem, one variant, the weight already transformed."""

    @property
    def bytes(self) -> int:
        """Memory that the prepared weight holds."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """The output `[batch, out_channels, height, width]` for an x of the problem's shape; no autograd."""
        ...


class Algorithm(Protocol):
    """One way to compute convolutions.

    Attributes:
        name: as `conv2d(algorithm=...)` takes it; a variant follows after a colon.
    """

    name: str

    def variants(self, problem: Problem) -> tuple[str, ...]:
        """The variants worth considering for a problem, best guess first; empty where it refuses."""
        ...

    def refuses(self, problem: Problem, variant: str | None = None) -> str | None:
        """One clause why it cannot serve the problem (in this variant, or in any), or None."""
        ...

    def prepare(
        self, problem: Problem, weight: Tensor, bias: Tensor | None, variant: str, *, relu: bool = False
    ) -> Kernel:
        """Transforms the weight once; with `relu` negative outputs become 0."""
        ...

    def run(self, problem: Problem, x: Tensor, weight: Tensor, bias: Tensor | None, variant: str) -> Tensor:
        """The convolution, differentiable by x, weight and bias."""
        ...

    def cost(self, problem: Problem, variant: str) -> Cost:
        """Operations and memory of a call with the weight prepared."""
        ...

    def error(self, problem: Problem, variant: str) -> ErrorBound:
        """Rounding error to be expected, and its bound."""
        ...


class _Registry(Mapping[str, Algorithm]):
    """The algorithms by name, each imported when first asked for."""

    homes: Mapping[str, str] = {
        "direct": "convscope.algorithms.direct:Direct",
        "im2col": "convscope.algorithms.im2col:Im2col",
        "fft": "convscope.algorithms.fft:Fft",
        "winograd": "convscope.algorithms.winograd:Winograd",
    }

    def __init__(self) -> None:
        self._found: dict[str, Algorithm] = {}

    def __getitem__(self, name: str) -> Algorithm:
        found = self._found.get(name)
        if found is None:
            module, attribute = self.homes[name].split(":")
            found = self._found[name] = getattr(importlib.import_module(module), attribute)()
        return found

    def __contains__(self, name: object) -> bool:
        return name in self.homes

    def __iter__(self) -> Iterator[str]:
        return iter(self.homes)

    def __len__(self) -> int:
        return len(self.homes)


ALGORITHMS: Mapping[str, Algorithm] = _Registry()


def algorithm(name: str) -> tuple[Algorithm, str | None]:
    """The algorithm, and the variant if one is named, that a string such as "winograd:F(4,3)" means.

    Raises:
        UnknownName: there is no such algorithm.

    Example:
        >>> found, variant = algorithm("direct:channels_last")
        >>> found.name, variant
        ('direct', 'channels_last')
    """
    first, colon, variant = name.partition(":")
    if first not in ALGORITHMS:
        known = (*ALGORITHMS, "auto")
        raise UnknownName(
            f"there is no algorithm {first!r}{nearest(first, known)}; known are {', '.join(known)}."
        )
    return ALGORITHMS[first], variant.strip() if colon else None


def resolve(name: str, problem: Problem) -> tuple[Algorithm, str]:
    """The algorithm and the variant that a string means for a problem; the first where it names none.

    Raises:
        UnknownName: there is no such algorithm.
        RequestError: it cannot serve the problem, or not in this variant.
    """
    found, variant = algorithm(name)
    reason = found.refuses(problem, variant)
    if reason is not None:
        raise RequestError(
            f"algorithm={name!r} cannot serve this convolution: {reason}; choose another, or 'auto'."
        )
    return found, found.variants(problem)[0] if variant is None else variant


def last_format(*tensors: Tensor) -> bool:
    """Whether torch would lay out the output with channels last, as it does where input or weight is."""
    if (
        torch._C._functorch.peek_interpreter_stack() is not None
    ):  # under vmap a tensor has no layout to ask for
        return False
    last = torch.channels_last
    return any(each.is_contiguous(memory_format=last) and not each.is_contiguous() for each in tensors)


def in_format(y: Tensor, last: bool) -> Tensor:
    """y with channels last, or contiguous."""
    return y.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
