"""What is optimized: how free numbers become a picture.

Each parametrization decodes parameters [unit, ...] into pictures [unit, channel, height, width] in [0, 1], starts
from noise (each unit from its own random stream) or from a given picture, and is a frozen value until it is bound to
a size.

- `Pixel`: the picture itself, before a sigmoid.
- `Fourier`: spectrum coefficients scaled by 1/f and decorrelated colours (Olah et al., 2017; lucid).
- `Maco`: phase alone; the magnitude is that of natural images (Fel et al., 2023).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from convscope.errors import RequestError

# Root of the colour covariance of ImageNet (lucid), scaled by its largest column norm.
_ROOT = ((0.26, 0.09, 0.02), (0.27, 0.0, -0.05), (0.27, -0.09, 0.03))


def color_root(channels: int, color: str | Tensor) -> Tensor:
    """The matrix that mixes decorrelated colours into channels, Tensor [channel, channel].

    Args:
        channels: of the network's input.
        color: "auto" (natural colours for 3 channels, none otherwise), "natural", "none", or a matrix as
            `fit_color` gives it.
    """
    if isinstance(color, Tensor):
        if color.shape != (channels, channels):
            raise RequestError(
                f"color of shape {tuple(color.shape)} must be ({channels}, {channels}) for this input"
            )
        return color.float()
    if color not in ("auto", "natural", "none"):
        raise RequestError(f"color={color!r} must be 'auto', 'natural', 'none' or a matrix")
    if color == "none" or (color == "auto" and channels != 3):
        return torch.eye(channels)
    if channels != 3:
        raise RequestError(
            f"color='natural' needs 3 channels, the input has {channels}; give color='none' or a matrix"
        )
    root = torch.tensor(_ROOT)
    return root / root.norm(dim=0).max()


def fit_color(images: Tensor) -> Tensor:
    """The root of the channel covariance of images [image, channel, height, width], for `color=`.

    Example:
        >>> images = torch.rand(4, 5, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> fit_color(images).shape
        torch.Size([5, 5])
    """
    if images.ndim != 4 or not images.isfinite().all():
        raise RequestError(
            f"images of shape {tuple(images.shape)} must be finite and [image, channel, height, width]"
        )
    pixels = images.double().movedim(1, 0).flatten(1)  # [channel, pixel]
    pixels = pixels - pixels.mean(1, keepdim=True)
    covariance = pixels @ pixels.T / max(pixels.shape[1] - 1, 1)
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp_min(1e-12).sqrt()  # most energetic colour last
    root = root.flip(1)
    return (root / root.norm(dim=0).max()).float()


class Bound(Protocol):
    """A parametrization bound to channels, size and device."""

    def noise(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Parameters of one random start a generator: [unit, ...]."""

    def encode(self, images: Tensor) -> Tensor:
        """Parameters whose pictures are (near) the given ones [unit, channel, height, width]."""

    def decode(self, parameters: Tensor) -> Tensor:
        """Pictures [unit, channel, height, width] in [0, 1]."""

    def smooth(self, parameters: Tensor, sigma: float) -> Tensor:
        """The parameters of the same pictures after a Gaussian blur of `sigma` pixels (before the sigmoid)."""


class Parametrization(Protocol):
    """What `visualize` takes as `parametrization=`."""

    def bind(self, channels: int, size: tuple[int, int], device: torch.device) -> Bound:
        """Fixes the channel count, the canvas (height, width) and the device."""


def _check(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise RequestError(f"{name}={value} must be a positive number")


@dataclass(frozen=True)
class Pixel:
    """One free number a pixel and channel, through a sigmoid.

    Args:
        sd: standard deviation of the starting noise, before the sigmoid.
        color: see `color_root`.
    """

    sd: float = 0.2
    color: str | Tensor = "none"

    def __post_init__(self) -> None:
        _check(sd=self.sd)

    def bind(self, channels: int, size: tuple[int, int], device: torch.device) -> Bound:
        return _Spatial(self.sd, color_root(channels, self.color).to(device), size)


@dataclass(frozen=True)
class Fourier:
    """A spectrum with 1/f^decay magnitudes, decorrelated colours and a sigmoid.

    Args:
        sd: standard deviation of the starting coefficients, in lucid's scale.
        decay: exponent of the fall-off with frequency; 1 is lucid's. Other exponents are rescaled to the same
            pixel variance. 1.25 gave the most activation with the least high-frequency energy.
        color: see `color_root`.
        contrast: the largest standard deviation of a picture before its sigmoid, None for no limit. Photographs have
            0.6 to 2.2; networks without batch norm, such as VGG-16, would go on to garish colours.
    """

    sd: float = 0.01
    decay: float = 1.25
    color: str | Tensor = "auto"
    contrast: float | None = 2.25

    def __post_init__(self) -> None:
        _check(sd=self.sd, contrast=1.0 if self.contrast is None else self.contrast)
        if not math.isfinite(self.decay):
            raise RequestError(f"decay={self.decay} must be a finite number")

    def bind(self, channels: int, size: tuple[int, int], device: torch.device) -> Bound:
        return _Spectrum(self, color_root(channels, self.color).to(device), size)


@dataclass(frozen=True)
class Maco:
    """Phase is free, magnitude is fixed: that of natural images, or 1/f.

    Fel et al., "Unlocking Feature Visualization for Deeper Networks with MAgnitude Constrained Optimization" (2023).

    Args:
        magnitude: Tensor [channel, height, width // 2 + 1] as `natural_magnitude` gives it (resized when the canvas
            differs), or None for 1/f.
        color: see `color_root`.
        contrast: standard deviation of the picture before its sigmoid when the magnitude is 1/f.
    """

    magnitude: Tensor | None = None
    color: str | Tensor = "auto"
    contrast: float = 1.0

    def __post_init__(self) -> None:
        _check(contrast=self.contrast)

    def bind(self, channels: int, size: tuple[int, int], device: torch.device) -> Bound:
        return _Phase(self, color_root(channels, self.color).to(device), size)


def natural_magnitude(images: Tensor, color: str | Tensor = "auto") -> Tensor:
    """Mean magnitude of the spectrum of images [image, channel, height, width] in [0, 1], in decorrelated colours.

    Returns:
        Tensor [channel, height, width // 2 + 1], orthonormal transform.
    """
    root = color_root(images.shape[1], color).to(images.device)
    plain = _uncolor(_logit(images), root)
    plain = plain - plain.mean((2, 3), keepdim=True)
    return torch.fft.rfft2(plain, norm="ortho").abs().mean(0)


def _logit(images: Tensor) -> Tensor:
    return torch.logit(images.float().clamp(0.01, 0.99))


def _deviation(values: Tensor) -> Tensor:
    """Standard deviation of each row, a twentieth of the time that torch's own takes on a CPU."""
    centred = values - values.mean(1, keepdim=True)
    return torch.linalg.vector_norm(centred, dim=1) / math.sqrt(max(values.shape[1] - 1, 1))


def _color(plain: Tensor, root: Tensor) -> Tensor:
    """Decorrelated [unit, channel, height, width] to channels; a matrix product is 80x a 1x1 convolution here."""
    return (root @ plain.flatten(2)).view_as(plain)


def _uncolor(values: Tensor, root: Tensor) -> Tensor:
    return (torch.linalg.inv(root.double()).to(values.dtype) @ values.flatten(2)).view_as(values)


def frequencies(size: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Radial frequency of each coefficient of a real transform, cycles a pixel: [height, width // 2 + 1]."""
    rows = torch.fft.fftfreq(size[0], device=device)[:, None]
    columns = torch.fft.rfftfreq(size[1], device=device)[None, :]
    return (rows.square() + columns.square()).sqrt()


def _gaussian(size: tuple[int, int], sigma: float, device: torch.device) -> Tensor:
    return torch.exp(-2.0 * (math.pi * sigma * frequencies(size, device)).square())


class _Spatial:
    def __init__(self, sd: float, root: Tensor, size: tuple[int, int]) -> None:
        self.sd, self.root, self.size = sd, root, size

    def noise(self, generators: Sequence[torch.Generator]) -> Tensor:
        shape = (len(self.root), *self.size)
        start = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        return start.to(self.root.device) * self.sd

    def encode(self, images: Tensor) -> Tensor:
        return _uncolor(_logit(images), self.root)

    def decode(self, parameters: Tensor) -> Tensor:
        return torch.sigmoid(_color(parameters, self.root))

    def smooth(self, parameters: Tensor, sigma: float) -> Tensor:
        spectrum = torch.fft.rfft2(parameters) * _gaussian(self.size, sigma, parameters.device)
        return torch.fft.irfft2(spectrum, s=self.size)


class _Spectrum:
    def __init__(self, spec: Fourier, root: Tensor, size: tuple[int, int]) -> None:
        self.sd, self.root, self.size, self.contrast = spec.sd, root, size, spec.contrast
        frequency = frequencies(size, root.device).clamp_min(1.0 / max(size))
        scale = frequency**-spec.decay
        lucid = frequency**-1.0
        scale = scale * (lucid.square().mean() / scale.square().mean()).sqrt()  # the same pixel variance
        self.scale = scale * (math.sqrt(size[0] * size[1]) / 4.0)  # [height, width // 2 + 1]

    def noise(self, generators: Sequence[torch.Generator]) -> Tensor:
        shape = (len(self.root), *self.scale.shape, 2)
        start = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        return start.to(self.root.device) * self.sd

    def encode(self, images: Tensor) -> Tensor:
        plain = _uncolor(_logit(images), self.root)
        return torch.view_as_real(torch.fft.rfft2(plain) / self.scale).contiguous()

    def decode(self, parameters: Tensor) -> Tensor:
        spectrum = torch.view_as_complex(parameters) * self.scale
        picture = _color(torch.fft.irfft2(spectrum, s=self.size), self.root)
        if self.contrast is not None:
            spread = _deviation(picture.detach().flatten(1)) / self.contrast
            picture = picture / spread.clamp_min(1.0).view(-1, 1, 1, 1)
        return torch.sigmoid(picture)

    def smooth(self, parameters: Tensor, sigma: float) -> Tensor:
        return parameters * _gaussian(self.size, sigma, parameters.device).unsqueeze(-1)


class _Phase:
    def __init__(self, spec: Maco, root: Tensor, size: tuple[int, int]) -> None:
        self.root, self.size = root, size
        channels = len(root)
        if spec.magnitude is None:
            falling = 1.0 / frequencies(size, root.device).clamp_min(1.0 / max(size))
            falling[0, 0] = 0.0
            unit = torch.fft.irfft2(torch.polar(falling, torch.zeros_like(falling)), s=size, norm="ortho")
            power = unit.square().mean().sqrt()
            self.magnitude = (falling * (spec.contrast / power)).expand(channels, -1, -1)
        else:
            if spec.magnitude.ndim != 3 or len(spec.magnitude) != channels:
                raise RequestError(
                    f"magnitude of shape {tuple(spec.magnitude.shape)} must be [{channels}, height, width // 2 + 1] for "
                    "this input"
                )
            self.magnitude = _resize_magnitude(spec.magnitude.to(root.device), size)

    def noise(self, generators: Sequence[torch.Generator]) -> Tensor:
        shape = self.magnitude.shape
        start = [torch.rand(shape, generator=generator) for generator in generators]
        return (torch.stack(start).to(self.root.device) * 2.0 - 1.0) * math.pi

    def encode(self, images: Tensor) -> Tensor:
        return torch.fft.rfft2(_uncolor(_logit(images), self.root), norm="ortho").angle()

    def decode(self, parameters: Tensor) -> Tensor:
        spectrum = torch.polar(self.magnitude.expand_as(parameters), parameters)
        plain = torch.fft.irfft2(spectrum, s=self.size, norm="ortho")
        return torch.sigmoid(_color(plain, self.root))

    def smooth(self, parameters: Tensor, sigma: float) -> Tensor:
        raise RequestError(
            "blur cannot be combined with Maco, whose magnitudes are fixed; use Fourier or Pixel"
        )


def _resize_magnitude(magnitude: Tensor, size: tuple[int, int]) -> Tensor:
    """The magnitude at another canvas: the same value at the same frequency, the same pixel variance."""
    wanted = (size[0], size[1] // 2 + 1)
    if magnitude.shape[1:] == wanted:
        return magnitude
    centred = torch.fft.fftshift(magnitude, dim=1)
    resized = torch.nn.functional.interpolate(centred[None], wanted, mode="bilinear", antialias=True)[0]
    return torch.fft.ifftshift(resized, dim=1)
