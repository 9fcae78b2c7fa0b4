"""Fourier convolution put together from torch's operations: any device, float32 and float64, any derivative.

Tiles of the image and the kernel become half spectra (`torch.fft.rfft2`); their product is, for each frequency,
a small complex matrix product over channels, done in real arithmetic as three products instead of four (Gauss):

    p = (a + b) c      real part  p - b (c + d)      imaginary part  p + a (d - c)      for (a + i b)(c + i d)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from convscope.algorithms.kernels import fourier
from convscope.algorithms.kernels.fourier import Layer
from convscope.algorithms.kernels.fourier_cut import Cut

Parts = tuple[Tensor, ...]


def cut_image(x: Tensor, down: Cut, across: Cut) -> Tensor:
    """Tiles, [batch, channel, tile row, tile column, down.inputs, across.inputs]."""
    ends: list[int] = []
    for cut, size in ((across, x.shape[-1]), (down, x.shape[-2])):
        ends += [-cut.first, (cut.tiles - 1) * cut.step + cut.first + cut.inputs - size]
    x = F.pad(x, ends) if any(ends) else x
    return x.unfold(2, down.inputs, down.step).unfold(3, across.inputs, across.step)


def transformed(tiles: Tensor, layer: Layer) -> Tensor:
    """Half spectra of tiles, [..., down.length, across.length // 2 + 1]."""
    return torch.fft.rfft2(tiles, s=(layer.down.length, layer.across.length))


def join(tiles: Tensor, down: Cut, across: Cut) -> Tensor:
    """The image that tiles of outputs make, [batch, channel, down.output, across.output]."""
    y = tiles.permute(0, 1, 2, 4, 3, 5).flatten(4, 5).flatten(2, 3)
    return y[..., : down.output, : across.output]


def weight_parts(layer: Layer, weight: Tensor) -> Parts:
    """The kernel's spectrum as `product` wants it.

    Args:
        layer: the layer.
        weight: [outputs, inputs / groups, height, width].

    Returns:
        c, c + d and d - c, [frequency x group, input, output]; for depthwise layers the complex spectrum,
        [group, output of the group, down.length, half].
    """
    found = fourier.spectrum(layer, weight).unflatten(0, (layer.groups, -1))  # [g, k, c, u, v]
    if layer.inputs == layer.groups:
        return (found[:, :, 0],)
    found = found.permute(3, 4, 0, 2, 1).flatten(0, 2)  # [u v g, c, k]
    real, imaginary = found.real, found.imag
    return real.contiguous(), real + imaginary, imaginary - real


def product(layer: Layer, x: Tensor, parts: Parts) -> Tensor:
    """Spectra of the output's tiles, [batch, channel, tile row, tile column, down.length, half]."""
    n, _, th, tw, u, v = x.shape
    x = x.unflatten(1, (layer.groups, -1))  # [n, g, c, th, tw, u, v]
    if layer.inputs == layer.groups:
        return (x * parts[0][:, :, None, None]).flatten(1, 2)
    x = x.permute(5, 6, 1, 0, 3, 4, 2)  # [u, v, g, n, th, tw, c]
    real, imaginary = (part.reshape(u * v * layer.groups, n * th * tw, -1) for part in (x.real, x.imag))
    common = torch.bmm(real + imaginary, parts[0])
    y = torch.complex(common - torch.bmm(imaginary, parts[1]), common + torch.bmm(real, parts[2]))
    return y.view(u, v, layer.groups, n, th, tw, -1).permute(3, 2, 6, 4, 5, 0, 1).flatten(1, 2)


def correlate(layer: Layer, x: Tensor, parts: Parts) -> Tensor:
    """The layer applied, without bias: [batch, outputs, down.output, across.output]."""
    down, across = layer.down, layer.across
    if not layer.batch:
        return x.new_zeros(0, layer.outputs, down.output, across.output)
    y = product(layer, transformed(cut_image(x, down, across), layer), parts)
    tiles = torch.fft.irfft2(y, s=(down.length, across.length))
    return join(tiles[..., : down.step, : across.step], down, across)


def weight_gradient(layer: Layer, x: Tensor, grad: Tensor) -> Tensor:
    """How the sum of grad times output changes with the weight: a correlation of images and gradients.

    Args:
        layer: the layer.
        x: its input.
        grad: of its output.

    Returns:
        [outputs, inputs / groups, height, width].
    """
    down, across, groups = layer.down, layer.across, layer.groups
    if not layer.batch:
        return x.new_zeros(layer.outputs, layer.inputs // groups, down.kernel, across.kernel)
    ends = [across.tiles * across.step - across.output, down.tiles * down.step - down.output]
    grad = F.pad(grad, (0, ends[0], 0, ends[1]))
    tiles = grad.unfold(2, down.step, down.step).unfold(3, across.step, across.step)
    a = transformed(cut_image(x, down, across), layer).unflatten(1, (groups, -1))
    b = transformed(tiles, layer).unflatten(1, (groups, -1))  # [n, g, k, th, tw, u, v]
    a, b = (
        s.permute(5, 6, 1, 0, 3, 4, 2).flatten(3, 5).flatten(0, 2) for s in (a, b)
    )  # [u v g, tile, c or k]
    (ar, ai), (br, bi) = (
        (a.real, a.imag),
        (b.real.mT, b.imag.mT),
    )  # conj(b) a summed over tiles: [u v g, k, c]
    common = torch.bmm(br - bi, ar)
    found = torch.complex(common + torch.bmm(bi, ar + ai), torch.bmm(br, ai - ar) + common)
    found = found.unflatten(0, (down.length, -1, groups)).permute(2, 3, 4, 0, 1).flatten(0, 1)
    taps = torch.fft.irfft2(found, s=(down.length, across.length))
    taps = taps.roll((down.shift, across.shift), (-2, -1))
    return taps[..., : down.kernel, : across.kernel]
