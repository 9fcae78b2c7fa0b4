"""Fourier convolution in machine code: how a problem is laid out, its weight packed, and the kernel called.

Float32, stride 1, dilation 1, on processors with AVX-512 or AVX2; images channels-last, converted where they are
not. The other parts: `fourier_dft` (small transforms), `fourier_passes` (long ones), `fourier_cut` (tiles),
`fourier_rows` and `fourier_columns` (the two axes), `fourier_product`, and the two kernels `fourier_dense` and
`fourier_depthwise`.

A NaN or an infinity in the image makes NaN of every output of its tile (of the whole image where one transform
holds it), in every output channel that sees its channel, and in those of neighbouring groups that share a vector.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from convscope.algorithms.kernels import (
    fourier_dense,
    fourier_depthwise,
    fourier_weight,
    threads,
    transpose,
    workspace,
)
from convscope.algorithms.kernels.compile import Code, build
from convscope.algorithms.kernels.fourier_cut import Cut
from convscope.algorithms.kernels.fourier_dense import Dense
from convscope.algorithms.kernels.fourier_depthwise import Depthwise
from convscope.algorithms.kernels.fourier_passes import twiddles
from convscope.algorithms.kernels.fourier_product import Product, registers, seen_by, starts_of
from convscope.algorithms.kernels.fourier_tiles import Tiles
from convscope.algorithms.kernels.fourier_weight import Spectrum, factors
from convscope.algorithms.kernels.host import Host, current
from convscope.errors import RequestError


@dataclass(frozen=True)
class Layer:
    """A stride-1, dilation-1 convolution, cut.

    Attributes:
        batch: images.
        inputs, outputs: channels.
        groups: of channels.
        down, across: the cut of the height and of the width.
    """

    batch: int
    inputs: int
    outputs: int
    groups: int
    down: Cut
    across: Cut

    @property
    def depthwise(self) -> bool:
        """Whether each channel is by itself."""
        return self.groups == self.inputs == self.outputs and self.groups > 1


def refuses(dtype: torch.dtype, device: str) -> str | None:
    """Why no kernel serves such tensors here, or None."""
    if dtype != torch.float32:
        return f"machine code is for float32, not {str(dtype).removeprefix('torch.')}"
    if not device.startswith("cpu"):
        return f"machine code is for the CPU, not {device}"
    return current().refuses() or threads.refuses()


def prepare(layer: Layer, weight: Tensor, bias: Tensor | None = None, *, relu: bool = False) -> FourierKernel:
    """A kernel for one layer, its weight transformed.

    Args:
        layer: the layer.
        weight: [outputs, inputs / groups, height, width], float32.
        bias: [outputs], or None.
        relu: whether negative outputs become 0.

    Raises:
        RuntimeError: the host cannot (`refuses` gives the reason beforehand).
        RequestError: the weight is not of the layer's shape.

    Example:
        >>> from convscope.algorithms.kernels.fourier_cut import whole
        >>> layer = Layer(1, 3, 2, 1, whole(8, 5, 2, 2), whole(9, 3, 1, 1))
        >>> x, w = torch.rand(1, 3, 8, 9), torch.rand(2, 3, 5, 3)
        >>> y = prepare(layer, w)(x) if refuses(torch.float32, "cpu") is None else None
        >>> y is None or torch.allclose(y, torch.conv2d(x, w, padding=(2, 1)), atol=1e-4)
        True
    """
    reason = refuses(weight.dtype, weight.device.type)
    if reason:
        raise RuntimeError(f"no Fourier kernel can be built: {reason}")
    wanted = (layer.outputs, layer.inputs // layer.groups, layer.down.kernel, layer.across.kernel)
    if weight.shape != wanted:
        raise RequestError(f"the weight is {list(weight.shape)}; this layer's is {list(wanted)}.")
    return FourierKernel(layer, weight.detach(), None if bias is None else bias.detach(), relu)


def workspace_of(layer: Layer) -> int:
    """Bytes of scratch that a kernel for the layer borrows, on the current host with the current threads."""
    team = threads.count()
    return _shape(layer, current(), False, False).workspace(team)


class FourierKernel:
    """A convolution ready to run: y = kernel(x)."""

    def __init__(self, layer: Layer, weight: Tensor, bias: Tensor | None, relu: bool) -> None:
        host = current()
        self.layer = layer
        self._shape = _shape(layer, host, bias is not None, relu)
        self._code, self._address = _built(self._shape, host)
        self._weight = _packed(layer, self._shape, weight, host)
        lanes = host.width
        self._bias = torch.zeros(-(-layer.outputs // lanes) * lanes)
        if bias is not None:
            self._bias[: layer.outputs] = bias
        self._starts = torch.zeros(1, dtype=torch.int64)
        if isinstance(self._shape, Dense):
            starts = starts_of(self._shape.product, layer.inputs, layer.outputs, layer.groups)
            self._starts = torch.tensor(starts)
        self._tables = [twiddles(cut.length) for cut in (layer.down, layer.across)]

    @property
    def bytes(self) -> int:
        """Memory that the transformed weight holds."""
        return self._weight.numel() * 4

    @property
    def workspace(self) -> int:
        """Bytes of scratch that a call borrows, beside copies of an image that has not its channels last."""
        return self._shape.workspace(threads.count())

    def __call__(self, x: Tensor) -> Tensor:
        """The convolution of a batch: channels last where x is so, otherwise contiguous.

        Raises:
            RequestError: x is not of the layer's shape, float32 and on the CPU.
        """
        layer = self.layer
        wanted = (layer.batch, layer.inputs, layer.down.size, layer.across.size)
        if x.shape != wanted or x.dtype != torch.float32 or x.device.type != "cpu":
            raise RequestError(
                f"x is {str(x.dtype)[6:]} {list(x.shape)} on {x.device}; this kernel was prepared for float32 "
                f"{list(wanted)} on cpu."
            )
        size = (layer.batch, layer.outputs, layer.down.output, layer.across.output)
        team = threads.count()  # of this call: the scratch is sized for it
        return transpose.with_channels_last(
            x.detach(),
            size,
            self._shape.workspace(team),
            lambda *places: threads.run(self._address, self._arguments(*places), team),
        )

    def _arguments(self, x: int, y: int, scratch: int) -> list[int]:
        shape = self._shape
        place = {
            "x": x,
            "y": y,
            "weight": self._weight.data_ptr(),
            "bias": self._bias.data_ptr(),
            "starts": self._starts.data_ptr(),
            "down": self._tables[0].data_ptr(),
            "across": self._tables[1].data_ptr(),
            "scratch": scratch,
        }
        if isinstance(shape, Depthwise):
            return [place[name] for name in fourier_depthwise.ARGUMENTS]
        place["sheets"] = scratch
        place["scratch"] = scratch + 4 * shape.batch * (shape.sheet_in + shape.sheet_out)
        return [place[name] for name in fourier_dense.ARGUMENTS]


# ---------------------------------------------------------------- shape and code


def _shape(layer: Layer, host: Host, bias: bool, relu: bool) -> Dense | Depthwise:
    """What to build: blocks of tiles whose spectra fit the core's cache, batches whose sheets fit the shared one."""
    lanes = host.width
    tiles = Tiles(layer.batch, layer.inputs, layer.outputs, layer.down, layer.across, lanes, bias, relu)
    if layer.depthwise:
        return Depthwise(tiles)
    inputs, outputs = (-(-channels // lanes) * lanes for channels in (layer.inputs, layer.outputs))
    count = max(1, tiles.count)
    per_tile = layer.down.length * 8 * (inputs + outputs)
    block = min(count, max(12, host.l2 // 2 // per_tile))
    per_sheet = 4 * tiles.half * (inputs // lanes * tiles.column_in + outputs // lanes * tiles.column_out)
    held = min(count, max(block, host.l3 // 2 // per_sheet))
    held = -(-count // -(-count // held))  # batches alike
    block = -(-held // -(-held // block))
    rows, panel = registers(block, outputs // lanes, host.registers)
    if layer.groups > 1 and layer.outputs // layer.groups % (panel * lanes):
        rows, panel = registers(block, 1, host.registers)
    seen = min(inputs, seen_by(layer.inputs, layer.outputs, layer.groups, panel * lanes))
    shape = Product(layer.down.length, block, inputs, outputs, panel, seen, rows, lanes)
    return Dense(tiles, shape, held)


@functools.lru_cache(maxsize=256)
def _built(shape: Dense | Depthwise, host: Host) -> tuple[Code, int]:
    """The code of a shape and the address of its function."""
    emit: Callable[[], str] = (
        functools.partial(fourier_dense.text, shape, host)
        if isinstance(shape, Dense)
        else functools.partial(fourier_depthwise.text, shape, host)
    )
    code = build(emit(), host)
    return code, code.address("work")


@functools.lru_cache(maxsize=64)
def _weight_code(shape: Spectrum, host: Host) -> Code:
    return build(fourier_weight.text(shape, host), host)


# ---------------------------------------------------------------- weight


def spectrum(layer: Layer, weight: Tensor) -> Tensor:
    """The kernel's half spectrum, conjugate, for a correlation; by torch.

    Args:
        layer: the layer.
        weight: [..., height, width].

    Returns:
        Complex, [..., down.length, across.length // 2 + 1].
    """
    down, across = layer.down, layer.across
    placed = F.pad(weight, (0, across.length - across.kernel, 0, down.length - down.kernel))
    placed = placed.roll((-down.shift, -across.shift), (-2, -1))
    return torch.fft.rfft2(placed).conj()


def _packed(layer: Layer, shape: Dense | Depthwise, weight: Tensor, host: Host) -> Tensor:
    """The spectrum in the order in which the kernel reads it, as aligned bytes."""
    lanes, half, length = shape.tiles.lanes, shape.tiles.half, layer.down.length
    if isinstance(shape, Depthwise):
        size: tuple[int, ...] = (shape.tiles.vectors(layer.outputs), half, length, 2, lanes)
        strides = (half * length * 2 * lanes, 0, length * 2 * lanes, 2 * lanes)
        panel = 1
    else:
        p = shape.product
        panel = p.panel
        size = (half, length, p.panels, p.seen, 2, panel * lanes)
        frequency = p.panels * p.panel_floats
        strides = (p.panel_floats, 2 * panel * lanes, length * frequency, frequency)
    aligned = layer.depthwise or layer.groups == 1 or layer.outputs // layer.groups % (panel * lanes) == 0
    packed = workspace.aligned(4 * math.prod(size), zero=not aligned).view(torch.float32)
    if isinstance(shape, Dense) and not aligned:
        _pack_groups(layer, shape.product, weight, packed.view(size))
    else:
        inputs = layer.inputs // layer.groups
        _transform(
            Spectrum(inputs, layer.outputs, layer.down, layer.across, lanes, panel, *strides),
            weight,
            packed,
            host,
        )
    return packed


def _transform(shape: Spectrum, weight: Tensor, packed: Tensor, host: Host) -> None:
    """All filters transformed in machine code."""
    code = _weight_code(shape, host)
    filters = weight.permute(1, 2, 3, 0).contiguous()
    team = threads.count()
    tables = [
        factors(shape.down, shape.across),
        *(twiddles(cut.length) for cut in (shape.down, shape.across)),
    ]
    with workspace.borrow(4 * team * shape.private) as scratch:
        places = [filters, packed, *tables]
        threads.run(code.address("work"), [*(place.data_ptr() for place in places), scratch], team)


def _pack_groups(layer: Layer, p: Product, weight: Tensor, packed: Tensor) -> None:
    """Panels that span several groups: each group's part goes to its own channels and lanes, zeros between."""
    per_in, per_out, span = layer.inputs // layer.groups, layer.outputs // layer.groups, p.panel * p.lanes
    weight = weight * (0.5 / (layer.down.length * layer.across.length))
    for number, start in enumerate(starts_of(p, layer.inputs, layer.outputs, layer.groups)):
        k, stop = number * span, min((number + 1) * span, layer.outputs)
        while k < stop:
            group = k // per_out
            end = min(stop, (group + 1) * per_out)
            channels = slice(group * per_in - start, (group + 1) * per_in - start)
            found = spectrum(layer, weight[k:end])  # [k, c, u, v]
            lane = slice(k - number * span, end - number * span)
            for part, values in enumerate((found.real, found.imag)):
                packed[:, :, number, channels, part, lane] = values.permute(3, 2, 1, 0)
            k = end
