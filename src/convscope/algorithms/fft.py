"""FFT convolution: a product for each frequency in place of one for each tap.

    y = inverse transform of ( sum over channels of X conj(W) )

The transforms cost the same for every kernel size, and so does the product: the larger the kernel, the more is saved.
An image is transformed whole, or in overlapping tiles (overlap-save) where that is less work. Stride and dilation
are taken out first, exactly (`phases`). Two ways compute what is left:

- machine code (`kernels.fourier`): float32 on the CPU, where the machine serves;
- torch's operations (`spectra`): any device, float32 and float64, and what takes part in a transform such as `vmap`.

Half types are transformed and summed in float32. A NaN or an infinity in the input makes NaN of all outputs of its
tile, or of the whole image where it is transformed whole, in every output channel that sees its channel; machine code
may spread it to neighbouring groups too, where 16 output channels span several.

Mathieu, Henaff and LeCun, "Fast Training of Convolutional Networks through FFTs" (2014); Vasilache et al., "Fast
Convolutional Nets With fbfft" (2015).
"""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from convscope.algorithms import gradient, spectra
from convscope.algorithms.base import Kernel, in_format, last_format
from convscope.algorithms.cost import Cost
from convscope.algorithms.error import ROUNDING, ErrorBound, assemble
from convscope.algorithms.kernels import fourier
from convscope.algorithms.kernels.fourier import Layer
from convscope.algorithms.kernels.fourier_cut import Cut, tiled, whole
from convscope.algorithms.kernels.fourier_dft import good, operations
from convscope.algorithms.phases import Axis, Reduced
from convscope.algorithms.problem import Problem

LONGEST = 1 << 14  # of one transform
HEAVIEST = 4 << 30  # bytes of a transformed weight
HEAVY = 512 << 20  # what is offered of itself is below this, where anything is
TILES = (8, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 192, 256, 512, 1024, 2048, 4096)
OFFERED = 3  # variants


class Fft:
    """Convolution by Fourier transforms; the variants are "whole" and "tile N" with transforms of at most N.

    An axis on which the whole image fits in N is not cut.
    """

    name = "fft"

    def variants(self, problem: Problem) -> tuple[str, ...]:
        """The whole image and some tiles, least estimated time first."""
        return _variants(problem) if _refuses(problem) is None else ()

    def refuses(self, problem: Problem, variant: str | None = None) -> str | None:
        """Numbers that are not real, tiles shorter than the kernel, and weights that would fill the memory."""
        reason = _refuses(problem)
        if reason is not None:
            return reason
        if variant is not None:
            return _refuses_variant(problem, variant)
        return None if _variants(problem) else _refuses_variant(problem, "whole")

    def prepare(
        self, problem: Problem, weight: Tensor, bias: Tensor | None, variant: str, *, relu: bool = False
    ) -> Kernel:
        """Transforms the weight: in machine code where that will use it, else in the problem's own precision."""
        reduced, layer, wide = _reduced(problem), layer_of(problem, variant), _wide(problem.dtype)
        with torch.no_grad():
            found = reduced.weight(weight.detach()).to(wide)
            bias = None if bias is None else bias.detach().to(wide, copy=True)
            core: Kernel = (
                _Native(layer, found, bias, relu)
                if _native(problem) is None
                else _Composed(layer, spectra.weight_parts(layer, found), bias, relu)
            )
        return FftKernel(reduced, core, last_format(weight))

    def run(self, problem: Problem, x: Tensor, weight: Tensor, bias: Tensor | None, variant: str) -> Tensor:
        """The convolution, differentiable by input, weight and bias."""
        reduced, layer = _reduced(problem), layer_of(problem, variant)
        y = _correlate(
            layer, *(each.to(_wide(problem.dtype)) for each in (reduced.image(x), reduced.weight(weight)))
        )
        y = reduced.output(y)
        y = (y if bias is None else y + bias.to(y.dtype)[:, None, None]).to(problem.dtype)
        return in_format(y, last_format(x, weight))

    def cost(self, problem: Problem, variant: str) -> Cost:
        """Transforms of rows and columns, the product, and the numbers moved between them."""
        return _cost(problem, layer_of(problem, variant))

    def error(self, problem: Problem, variant: str) -> ErrorBound:
        """Of transforms: Higham 2002, theorem 24.2, for the bound; independent roundings for what is expected."""
        layer = layer_of(problem, variant)
        levels = 3 * math.log2(max(2, layer.down.length * layer.across.length))  # image, kernel and back
        sums = 2 * max(1, layer.inputs // layer.groups)
        deviation = ROUNDING * math.sqrt(1.5 * levels + sums / 2)
        pixels = layer.down.inputs * layer.across.inputs
        spread = math.pi / 2 * math.sqrt(pixels / (layer.down.kernel * layer.across.kernel))
        return assemble(problem, deviation, 7 * levels + sums, max(1.0, spread))


@dataclass(frozen=True, eq=False)
class FftKernel:
    """A convolution with its weight transformed, and what brings the input to it and the output back."""

    reduced: Reduced
    core: Kernel
    last: bool

    @property
    def bytes(self) -> int:
        """Memory of the transformed weight."""
        return self.core.bytes

    def __call__(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.core(self.reduced.image(x.detach()).to(_wide(x.dtype)))
            return in_format(self.reduced.output(y).to(x.dtype), self.last or last_format(x))


# ---------------------------------------------------------------- what serves


def _refuses(problem: Problem) -> str | None:
    if not problem.dtype.is_floating_point:
        return f"the transforms are of real numbers, not {str(problem.dtype).removeprefix('torch.')}"
    if problem.in_channels == 0 or problem.out_channels == 0:
        return "there are no channels to transform"
    return None


def _refuses_variant(problem: Problem, variant: str) -> str | None:
    size = _parsed(variant)
    if size is None:
        return f"{variant!r} is neither 'whole' nor of the form 'tile N'"
    reduced = _reduced(problem)
    longest = max(reduced.down.kernel, reduced.across.kernel)
    if 0 < size < longest:
        return f"a kernel of {longest} does not fit in transforms of {size}"
    if max(size, size and good(size)) > LONGEST:
        return f"transforms are of at most {LONGEST}"
    layer = layer_of(problem, variant)
    if max(layer.down.length, layer.across.length) > LONGEST:
        return f"the image needs a transform of {max(layer.down.length, layer.across.length)}, more than {LONGEST}"
    weight = _weight_bytes(problem, layer)
    if weight > HEAVIEST:
        return f"the transformed weight would take {weight / 2**30:.1f} GiB"
    return None


def _parsed(variant: str) -> int | None:
    """The longest transform that a variant names, 0 for the whole image."""
    if variant == "whole":
        return 0
    found = re.fullmatch(r"tile (\d{1,6})", variant)
    return int(found[1]) if found else None


@functools.lru_cache(maxsize=1024)
def _reduced(problem: Problem) -> Reduced:
    return Reduced.of(problem)


@functools.lru_cache(maxsize=4096)
def layer_of(problem: Problem, variant: str) -> Layer:
    """What a variant computes: a convolution without stride and dilation, cut.

    Raises:
        ValueError: there is no such variant, or the kernel does not fit.

    Example:
        >>> layer = layer_of(Problem(1, 64, 64, (56, 56), (31, 31), padding=((15, 15), (15, 15))), "whole")
        >>> layer.down.length, layer.down.tiles
        (72, 1)
    """
    size = _parsed(variant)
    if size is None:
        raise ValueError(f"{variant!r} is neither 'whole' nor of the form 'tile N'.")
    reduced = _reduced(problem)

    def cut(axis: Axis) -> Cut:
        sides = axis.size, axis.kernel, axis.low, axis.high
        return tiled(*sides, size) if size else whole(*sides)

    return Layer(
        reduced.batch,
        reduced.in_channels,
        problem.out_channels,
        problem.groups,
        cut(reduced.down),
        cut(reduced.across),
    )


def _native(problem: Problem) -> str | None:
    """Why machine code does not compute it here, or None."""
    return fourier.refuses(_wide(problem.dtype), problem.device)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


# ---------------------------------------------------------------- which variant


@functools.lru_cache(maxsize=1024)
def _variants(problem: Problem) -> tuple[str, ...]:
    """Those that serve, by estimated time; tiles that cut nothing, or as longer ones do, are left out."""
    found: dict[Layer, tuple[float, str]] = {}
    for variant in ("whole", *(f"tile {size}" for size in TILES)):
        if _refuses_variant(problem, variant) is None:
            layer = layer_of(problem, variant)
            found.setdefault(layer, (_estimate(problem, layer), variant))
    light = {k: v for k, v in found.items() if _weight_bytes(problem, k) <= HEAVY}
    return tuple(variant for _, variant in sorted((light or found).values())[:OFFERED])


def _estimate(problem: Problem, layer: Layer) -> float:
    """About how long a variant takes, in vector instructions: the product hides behind its weights, or they behind it."""
    transforms, product = _operations(layer)
    weight = _weight_bytes(problem, layer)
    per_byte = 0.25 if weight > 16 << 20 else 0.06  # what no cache holds comes slowly
    return sum(transforms) / 16 + max(sum(product) / 2 / 16, weight * per_byte)


def _weight_bytes(problem: Problem, layer: Layer) -> int:
    """Bytes of the transformed weight."""
    frequencies = layer.down.length * (layer.across.length // 2 + 1)
    return 2 * _wide(problem.dtype).itemsize * frequencies * layer.outputs * layer.inputs // layer.groups


def _operations(layer: Layer) -> tuple[tuple[int, int], tuple[int, int]]:
    """(multiplications, additions) of the transforms, and of the product.

    Counted as the machine code does it: rows in pairs, known zeros of the input left out.
    """
    down, across, each = layer.down, layer.across, layer.inputs // layer.groups
    tiles, half = layer.batch * down.tiles * across.tiles, across.length // 2 + 1
    apart = 0, 4 * half  # the two rows of a pair, taken apart and put together
    steps = [
        (layer.inputs * -(-down.inputs // 2), operations(across.length, across.inputs)),
        (layer.inputs * -(-down.inputs // 2), apart),
        (layer.inputs * half, operations(down.length, down.inputs)),
        (layer.outputs * half, operations(down.length)),
        (layer.outputs * -(-down.step // 2), apart),
        (layer.outputs * -(-down.step // 2), operations(across.length)),
    ]
    multiplications, additions = (tiles * sum(times * each[i] for times, each in steps) for i in (0, 1))
    products = tiles * layer.outputs * half * down.length
    return (multiplications, additions), (products * 4 * each, products * (4 * each - 2))


def _cost(problem: Problem, layer: Layer) -> Cost:
    """The steps are rows in, columns with the product, rows out."""
    down, across = layer.down, layer.across
    (m, a), (more_m, more_a) = _operations(layer)
    tiles, half = layer.batch * down.tiles * across.tiles, across.length // 2 + 1
    pixels = tiles * layer.inputs * down.inputs * across.inputs
    sheets = 2 * tiles * half * (layer.inputs * down.inputs + layer.outputs * down.step)
    outputs = layer.batch * layer.outputs * down.output * across.output
    size = _wide(problem.dtype).itemsize
    read = size * (pixels + sheets) + _weight_bytes(problem, layer)
    return Cost(m + more_m, a + more_a, read, size * (sheets + outputs), _workspace(problem, layer))


def _workspace(problem: Problem, layer: Layer) -> int:
    """Bytes held beside input, weight and output: the machine code's, or all spectra and their parts."""
    if _native(problem) is None:
        return fourier.workspace_of(_folded(layer))
    frequencies = layer.down.length * (layer.across.length // 2 + 1)
    tiles = layer.batch * layer.down.tiles * layer.across.tiles
    copies = 2 if layer.depthwise else 5  # complex; with real, imaginary and summed parts: two and a half
    return copies * _wide(problem.dtype).itemsize * tiles * frequencies * (layer.inputs + layer.outputs)


# ---------------------------------------------------------------- the layer


def _correlate(layer: Layer, x: Tensor, weight: Tensor) -> Tensor:
    """The layer without bias, differentiable."""
    if not gradient.plain(x, weight):
        return spectra.correlate(layer, x, spectra.weight_parts(layer, weight))
    return _Correlation.apply(x, weight, layer)


class _Correlation(torch.autograd.Function):
    """y = layer(x, weight): the gradients are correlations too, differentiable in turn."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, layer: Layer) -> Tensor:
        if fourier.refuses(x.dtype, x.device.type) is None:
            return _Native(layer, weight.detach(), None, False)(x)
        return spectra.correlate(layer, x, spectra.weight_parts(layer, weight))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, ctx.layer = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        layer: Layer = ctx.layer
        of_x, of_weight, _ = ctx.needs_input_grad
        dx = _correlate(backward_of(layer), grad, gradient.swapped(weight, layer.groups)) if of_x else None
        dw = spectra.weight_gradient(layer, x, grad) if of_weight else None
        return dx, dw, None


def backward_of(layer: Layer) -> Layer:
    """The layer that takes the output's gradient to the input's, with flipped filters, channels swapped.

    Example:
        >>> backward_of(Layer(1, 3, 8, 1, whole(9, 3, 0, 0), tiled(100, 5, 2, 2, 16))).down
        Cut(size=7, kernel=3, low=2, high=2, length=9, step=9, whole=True)
    """

    def back(cut: Cut) -> Cut:
        low = cut.kernel - 1 - cut.low
        sides = cut.output, cut.kernel, low, cut.size + cut.kernel - 1 - cut.output - low
        return whole(*sides) if cut.whole else tiled(*sides, cut.length)

    return replace(
        layer, inputs=layer.outputs, outputs=layer.inputs, down=back(layer.down), across=back(layer.across)
    )


def _folded(layer: Layer) -> Layer:
    """A depthwise layer with several outputs a channel, as one whose channels are repeated."""
    if layer.groups == layer.inputs > 1:
        return replace(layer, inputs=layer.outputs, groups=layer.outputs)
    return layer


class _Native:
    """The layer in machine code."""

    def __init__(self, layer: Layer, weight: Tensor, bias: Tensor | None, relu: bool) -> None:
        folded = _folded(layer)
        self._repeats = folded.inputs // layer.inputs
        self._kernel = fourier.prepare(folded, weight, bias, relu=relu)
        self.bytes = self._kernel.bytes

    def __call__(self, x: Tensor) -> Tensor:
        return self._kernel(x.repeat_interleave(self._repeats, 1) if self._repeats > 1 else x)


@dataclass(frozen=True, eq=False)
class _Composed:
    """The layer by torch's operations."""

    layer: Layer
    parts: tuple[Tensor, ...]
    bias: Tensor | None
    relu: bool

    @property
    def bytes(self) -> int:
        """Memory of the transformed weight and its sums."""
        return sum(part.numel() * part.element_size() for part in self.parts)

    def __call__(self, x: Tensor) -> Tensor:
        y = spectra.correlate(self.layer, x, self.parts)
        y = y if self.bias is None else y + self.bias[:, None, None]
        return F.relu(y) if self.relu else y
