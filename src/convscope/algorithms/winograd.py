"""Winograd convolution F(m, r): tiles of m x m outputs from (m + r - 1)^2 products in place of m^2 r^2.

    Y = A^T [ sum over channels of (G g G^T) * (B^T d B) ] A       for each tile d of the input and each filter g

The matrices come from `cook_toom`. What is not a stride-1 convolution with a kernel of r taps is rewritten as one,
where that is exact and saves multiplications (`reduction`), or else refused. Two ways compute the core:

- machine code (`kernels.winograd`): float32 on the CPU, where its family serves the shape and the machine;
- torch's operations, here: any dtype and device, and what takes part in a transform such as `vmap`.

Half types are transformed and summed in float32. A NaN or an infinity in the input makes NaN of all outputs of its
tiles, in every output channel that sees it.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015).
"""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from convscope.algorithms import gradient, winograd_figures
from convscope.algorithms.base import Kernel, in_format, last_format
from convscope.algorithms.cook_toom import POINTS, matrices
from convscope.algorithms.cost import Cost
from convscope.algorithms.error import ErrorBound
from convscope.algorithms.kernels import host, threads
from convscope.algorithms.kernels import winograd as native
from convscope.algorithms.kernels.winograd_blocking import choose
from convscope.algorithms.problem import Pair, Problem
from convscope.algorithms.reduction import Reduction, reduce
from convscope.algorithms.reduction import refuses as irreducible

# (m, r) whose error is low enough in float32; with float64 any others as well
SINGLE = ((4, 3), (6, 3), (2, 3), (4, 5), (2, 5))
LARGEST = 1 + max(POINTS)  # inputs of a tile along an axis in float64
WORTHWHILE = 1.5  # times fewer multiplications, for a rewritten problem
BLOCKS = 16  # copies of the input a rewrite may make


class Winograd:
    """Winograd's minimal filtering; the variants are "F(m,r)" with tiles of m x m outputs and filters of r x r.

    Along an axis on which the kernel has one tap nothing is transformed.
    """

    name = "winograd"

    def variants(self, problem: Problem) -> tuple[str, ...]:
        """Tiles that serve, the fewest multiplications and the lower error first."""
        if _hopeless(problem) is not None:
            return ()
        taps = max(reduce(problem, 3).taps)
        sizes = [(m, r) for m, r in SINGLE if r <= max(3, taps) or (r, taps) == (5, 4)]
        if _double(problem.dtype):
            sizes += [(m, taps) for m in (4, 2, 6) if (m, taps) not in sizes and m + taps - 1 <= LARGEST]
        serving = [(m, r) for m, r in sizes if _refuses(problem, m, r) is None]
        serving.sort(
            key=lambda size: reduce(problem, size[1]).blocks != (1, 1)
        )  # stable: uncut kernels first
        return tuple(f"F({m},{r})" for m, r in serving)

    def refuses(self, problem: Problem, variant: str | None = None) -> str | None:
        """What saves no multiplications, cannot be rewritten, or is too inexact in the dtype."""
        reason = _hopeless(problem)
        if reason is not None:
            return reason
        if variant is not None:
            size = _parsed(variant)
            return f"{variant!r} is not of the form F(m,r)" if size is None else _refuses(problem, *size)
        reasons = [_refuses(problem, m, r) for m, r in SINGLE]
        return None if self.variants(problem) else reasons[0]

    def prepare(
        self, problem: Problem, weight: Tensor, bias: Tensor | None, variant: str, *, relu: bool = False
    ) -> Kernel:
        """Transforms the filters: in float64, rounded once."""
        m, r = _size(variant)
        reduction = reduce(problem, r)
        bias = None if bias is None else bias.detach()
        with torch.no_grad():
            filters = reduction.weight(weight.detach())
            if _native(reduction.core, m):
                core: Kernel = native.prepare(reduction.core, filters, bias, tile=m, relu=relu)
            else:
                core = Composed.of(reduction.core, filters, bias, m, relu)
        return WinogradKernel(reduction, core, last_format(weight))

    def run(self, problem: Problem, x: Tensor, weight: Tensor, bias: Tensor | None, variant: str) -> Tensor:
        """The convolution, differentiable by input, weight and bias."""
        m, r = _size(variant)
        reduction = reduce(problem, r)
        y = _core(reduction.core, m, reduction.input(x), reduction.weight(weight), bias)
        return in_format(reduction.output(y), last_format(x, weight))

    def cost(self, problem: Problem, variant: str) -> Cost:
        """Transforms, products and moves, see `winograd_figures.cost`; the workspace is that of what runs here."""
        m, r = _size(variant)
        reduction = reduce(problem, r)
        core = reduction.core
        found = winograd_figures.cost(core, _tile(core, m))
        if _native(core, m):
            found = replace(found, workspace=_workspace(core, m))
        return reduction.cost + found

    def error(self, problem: Problem, variant: str) -> ErrorBound:
        """Carried through the transforms: see `winograd_figures.error`."""
        m, r = _size(variant)
        core = reduce(problem, r).core
        return winograd_figures.error(problem, core, _tile(core, m))


@dataclass(frozen=True, eq=False)
class WinogradKernel:
    """A core with its filters transformed, and what brings the input to it and the output back."""

    reduction: Reduction
    core: Kernel
    last: bool

    @property
    def bytes(self) -> int:
        """Memory of the transformed filters."""
        return self.core.bytes

    def __call__(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.reduction.output(self.core(self.reduction.input(x)))
            return in_format(y, self.last or last_format(x))


# ---------------------------------------------------------------- what serves


def _parsed(variant: str) -> Pair | None:
    found = re.fullmatch(r"F\((\d{1,3}), ?(\d{1,3})\)", variant)
    return (int(found[1]), int(found[2])) if found else None


def _size(variant: str) -> Pair:
    """m and r of a variant that was not refused."""
    size = _parsed(variant)
    if size is None:
        raise ValueError(f"{variant!r} is not of the form F(m,r).")
    return size


def _double(dtype: torch.dtype) -> bool:
    return dtype in (torch.float64, torch.complex128)


def _hopeless(problem: Problem) -> str | None:
    if not (problem.dtype.is_floating_point or problem.dtype.is_complex):
        return f"the transforms need fractions, which {str(problem.dtype).removeprefix('torch.')} has not"
    reason = irreducible(problem)
    if reason is None and max(reduce(problem, 3).taps) == 1:
        reason = (
            f"a kernel of {problem.kernel} at stride {problem.stride} has no sums to save multiplications in"
        )
    return reason


def _refuses(problem: Problem, m: int, r: int) -> str | None:
    """Why tiles of m outputs and r taps cannot serve a problem that is not hopeless."""
    reason = _hopeless(problem)
    if reason is not None:
        return reason
    if m < 1 or r < 2:
        return f"F({m},{r}) needs at least one output and two taps"
    if (m, r) not in SINGLE and not _double(problem.dtype):
        known = ", ".join(f"F({a},{b})" for a, b in sorted(SINGLE))
        return f"F({m},{r}) is too inexact for {str(problem.dtype).removeprefix('torch.')}: it has {known}"
    if m + r - 1 > LARGEST:
        return f"F({m},{r}) has tiles above {LARGEST} inputs, too inexact in float64"
    reduction = reduce(problem, r)
    return None if reduction.trivial else _not_worth(reduction, m, r)


def _not_worth(reduction: Reduction, m: int, r: int) -> str | None:
    """Why a rewrite does not pay."""
    core, problem = reduction.core, reduction.problem
    down, across = _tile(core, m)
    products = (down + core.kernel[0] - 1) * (across + core.kernel[1] - 1) / (down * across)
    saved = math.prod(problem.kernel) / (products * math.prod(problem.stride) * math.prod(reduction.blocks))
    if math.prod(reduction.blocks) > BLOCKS:
        return f"a kernel of {problem.kernel} would be cut in {math.prod(reduction.blocks)} pieces"
    if saved < WORTHWHILE:
        return (
            f"kernel {problem.kernel} with stride {problem.stride}, rewritten for F({m},{r}), would take "
            f"1/{saved:.2f} of the multiplications"
        )
    return None


def _tile(core: Problem, m: int) -> Pair:
    """Outputs of a tile: one along an axis whose kernel has one tap."""
    return m if core.kernel[0] > 1 else 1, m if core.kernel[1] > 1 else 1


def _native(core: Problem, m: int) -> bool:
    """Whether machine code computes the core here."""
    return native.refuses(core, m) is None


def _workspace(core: Problem, m: int) -> int:
    """Bytes of scratch that the machine code borrows: blocks of the spectra and products, not all of them."""
    team, (high, wide) = threads.count(), core.output_size
    tiles = core.batch * -(-high // m) * -(-wide // m)
    layout = choose(m, core.kernel[0], core.in_channels, core.out_channels, tiles, host.current(), team)
    return 4 * layout.workspace(team)


# ---------------------------------------------------------------- the core


def _core(core: Problem, m: int, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Stride 1, dilation 1, r taps; differentiable."""
    if gradient.plain(x, weight, bias) and _native(core, m):
        return gradient.through(
            functools.partial(_run_native, m), functools.partial(_again, m), core, x, weight, bias
        )
    tile = _tile(core, m)
    dtype = torch.promote_types(core.dtype, torch.float32)
    y = _compose(core, tile, x, _transformed(weight.to(dtype), core, tile), bias)
    return y.to(core.dtype)


def _run_native(m: int, core: Problem, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return native.prepare(core, weight, bias, tile=m)(x)


def _again(m: int, core: Problem, x: Tensor, weight: Tensor) -> Tensor:
    """The same for the gradient's problem."""
    return _core(core, m, x, weight, None)


def _transformed(weight: Tensor, core: Problem, tile: Pair) -> Tensor:
    """G g G^T of every filter: `[tile y, tile x, group, out, channel]`."""
    (_, down, _), (_, across, _) = _matrices(core, tile, weight)
    per_group = weight.unflatten(0, (core.groups, -1))  # [group, out, channel, y, x]
    return torch.einsum("ai,bj,gkcij->abgkc", down, across, per_group)


def _matrices(core: Problem, tile: Pair, like: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """A^T, G and B^T along height and width."""
    return [matrices(m, r).tensors(like.dtype, like.device) for m, r in zip(tile, core.kernel, strict=True)]


def _compose(core: Problem, tile: Pair, x: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution by torch's operations, in the dtype of the transformed filters."""
    (high, wide), (down, across) = core.output_size, tile
    rows, columns = -(-high // down), -(-wide // across)  # of tiles
    (a_down, _, b_down), (a_across, _, b_across) = _matrices(core, tile, filters)
    (top, _), (left, _) = core.padding
    bottom = rows * down + core.kernel[0] - 1 - top - core.size[0]
    right = columns * across + core.kernel[1] - 1 - left - core.size[1]
    x = F.pad(x.to(filters.dtype), (left, right, top, bottom)).unflatten(1, (core.groups, -1))
    tiles = x.unfold(3, down + core.kernel[0] - 1, down).unfold(4, across + core.kernel[1] - 1, across)
    # [batch, group, channel, row, column, tile y, tile x]
    spectra = torch.einsum("ai,bj,ngctuij->abgcntu", b_down, b_across, tiles).flatten(4)
    products = (filters @ spectra).unflatten(4, (core.batch, rows, columns))
    y = torch.einsum("pa,qb,abgkntu->ngktpuq", a_down, a_across, products)
    y = y.reshape(core.batch, core.out_channels, rows * down, columns * across)[..., :high, :wide]
    return y if bias is None else y + bias.to(y.dtype)[:, None, None]


@dataclass(frozen=True, eq=False)
class Composed:
    """The core by torch's operations, with the filters transformed."""

    core: Problem
    tile: Pair
    filters: Tensor
    bias: Tensor | None
    relu: bool

    @classmethod
    def of(cls, core: Problem, weight: Tensor, bias: Tensor | None, m: int, relu: bool) -> Composed:
        tile = _tile(core, m)
        wide = torch.promote_types(core.dtype, torch.float32)
        filters = _transformed(weight.to(torch.promote_types(core.dtype, torch.float64)), core, tile)
        return cls(core, tile, filters.to(wide), bias, relu)

    @property
    def bytes(self) -> int:
        """Memory of the transformed filters."""
        return self.filters.numel() * self.filters.element_size()

    def __call__(self, x: Tensor) -> Tensor:
        y = _compose(self.core, self.tile, x, self.filters, self.bias)
        y = y.relu_() if self.relu else y
        return y.to(self.core.dtype)
