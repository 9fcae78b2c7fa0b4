"""Moves: the small changes of a picture under which a network's answer should hold.

A move is a frozen value with a list of magnitudes. It is applied to a `View`: pictures that reach beyond the
network's input wherever there is more to see, so that a crop shifts real content and a rotated picture has
real corners. Where even that ends, the picture goes on as its mirror image.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from convscope.errors import RequestError, UnknownName, nearest

_SHIFTS = (1, 2, 4, 8, 16)  # pixels, where nobody says and they fit
_BEYOND = 7  # a view is a seventh wider than the input: 256 pixels for 224, the usual crop of an evaluation


def stream(seed: int, *names: object) -> torch.Generator:
    """A random stream of its own for every seed and names, on every machine the same."""
    digest = hashlib.sha256("/".join(map(str, (seed, *names))).encode("utf-8", "surrogateescape")).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def beyond(extents: Sequence[int]) -> tuple[int, ...]:
    """The size of a view for an input of the given extents.

    Example:
        >>> beyond((224, 224)), beyond((1, 96))
        ((256, 256), (1, 110))
    """
    return tuple(n if n == 1 else n + max(1, round(n / _BEYOND)) for n in extents)


@dataclass(frozen=True)
class Frame:
    """What is known of all views before one is read.

    Attributes:
        extents: the input's size along each of its axes of positions: (height, width), or (length,).
        canvas: the same of a view; nowhere smaller.
        tokens: whether the values are numbers of tokens, which can be moved but not mixed.
    """

    extents: tuple[int, ...]
    canvas: tuple[int, ...]
    tokens: bool = False

    @property
    def margins(self) -> tuple[int, ...]:
        """How much wider the view is."""
        return tuple(c - e for c, e in zip(self.canvas, self.extents, strict=True))

    @property
    def centre(self) -> tuple[int, ...]:
        """Where the centre crop begins."""
        return tuple(margin // 2 for margin in self.margins)


@dataclass(frozen=True)
class View:
    """Some pictures, not yet normalized.

    Attributes:
        frame: their sizes.
        samples: Tensor [batch, channel, *canvas], or [batch, length] of tokens.
        names: one a picture, from which its random streams are drawn.
        bounds: the least and the largest value there can be, where that is known.
    """

    frame: Frame
    samples: Tensor
    names: tuple[str, ...]
    bounds: tuple[float, float] | None = None

    @property
    def centre(self) -> Tensor:
        """The centre crops: what a move is compared with."""
        return self.crops([self.frame.centre] * len(self.samples))

    def crops(self, offsets: Sequence[Sequence[int]]) -> Tensor:
        """A crop of the input's size out of each picture, at the offset given for it."""
        cut = [self._crop(sample, offset) for sample, offset in zip(self.samples, offsets, strict=True)]
        return torch.stack(cut)

    def _crop(self, sample: Tensor, offset: Sequence[int]) -> Tensor:
        for axis, (start, extent) in enumerate(zip(offset, self.frame.extents, strict=True)):
            sample = sample.narrow(axis - len(offset), start, extent)
        return sample


# ---------------------------------------------------------------- the moves


@dataclass(frozen=True)
class Crop:
    """The camera moves: crops of one picture, shifted against each other, so that new content comes in.

    Attributes:
        shifts: lengths in pixels (the larger of the two axes' shifts), each in a random direction from the
            centre crop; by default those of 1, 2, 4, 8, 16 for which the picture reaches far enough.
        draws: how many random crops of a picture are compared, each with each, for the pooled figure: the
            protocol of Zhang, "Making Convolutional Networks Shift-Invariant Again" (2019), whose two crops
            of 224 begin anywhere in the first 32 pixels of 256.
    """

    name: ClassVar[str] = "crop"
    unit: ClassVar[str] = "px"
    told: ClassVar[str] = (
        "random crops of one picture, compared in pairs; by magnitude: moved by so many pixels"
    )
    shifts: tuple[int, ...] | None = None
    draws: int = 4

    def __post_init__(self) -> None:
        _check_whole(self.name, self.shifts)
        if isinstance(self.draws, bool) or not isinstance(self.draws, int) or self.draws < 2:
            raise RequestError(
                f"draws={self.draws!r} of the move 'crop' must be at least 2: crops are compared"
            )

    def magnitudes(self, frame: Frame) -> tuple[float, ...]:
        """The shifts that fit; a RequestError tells why there is none."""
        if not any(frame.margins):
            raise RequestError(
                f"the move 'crop' needs content beyond the input of size {list(frame.extents)}, and the data "
                "has none; give larger data, or name other moves"
            )
        return _fitting(self.name, self.shifts, max(frame.centre), "half of what the data reaches beyond")

    def apply(self, view: View, magnitude: float, seed: int) -> Tensor:
        """Crops shifted from the centre by exactly so many pixels."""
        reach = view.frame.centre
        shifts = _shifts(view, int(magnitude), reach, seed, self.name)
        return view.crops([tuple(map(sum, zip(reach, shift, strict=True))) for shift in shifts])

    def random(self, view: View, number: int, seed: int) -> Tensor:
        """The `number`-th random crop of each picture."""
        windows = [max(margin, 2) if margin else 1 for margin in view.frame.margins]  # places to begin at
        offsets = []
        for name in view.names:
            draw = stream(seed, self.name, "random", number, name)
            offsets.append([int(torch.randint(n, (), generator=draw, device="cpu")) for n in windows])
        return view.crops(offsets)


@dataclass(frozen=True)
class Circular:
    """The input rolls around: what leaves at one side comes in at the other, so that nothing is new.

    Attributes:
        shifts: lengths in pixels, in a random direction; by default those of 1, 2, 4, 8, 16 up to half the
            input.
    """

    name: ClassVar[str] = "circular"
    unit: ClassVar[str] = "px"
    told: ClassVar[str] = "the input rolled around by so many pixels"
    shifts: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _check_whole(self.name, self.shifts)

    def magnitudes(self, frame: Frame) -> tuple[float, ...]:
        """The shifts that fit; a RequestError tells why there is none."""
        return _fitting(self.name, self.shifts, max(frame.extents) // 2, "half the input")

    def apply(self, view: View, magnitude: float, seed: int) -> Tensor:
        """The centre crops, rolled."""
        reach = [extent // 2 for extent in view.frame.extents]
        shifts = _shifts(view, int(magnitude), reach, seed, self.name)
        axes = tuple(range(-len(reach), 0))
        return torch.stack([torch.roll(x, s, axes) for x, s in zip(view.centre, shifts, strict=True)])


@dataclass(frozen=True)
class Rotation:
    """The camera tilts about the picture's centre, by bicubic sampling.

    Attributes:
        degrees: angles, each clockwise or against at random.
    """

    name: ClassVar[str] = "rotation"
    unit: ClassVar[str] = "°"
    told: ClassVar[str] = "turned about the centre, either way"
    degrees: tuple[float, ...] = (2.0, 5.0, 10.0, 20.0)

    def __post_init__(self) -> None:
        _check_numbers(self.name, "degrees", self.degrees, 0.0, 180.0)

    def magnitudes(self, frame: Frame) -> tuple[float, ...]:
        """The angles; a RequestError tells why there is none."""
        _refuse_tokens(self.name, frame)
        if len(frame.extents) != 2 or min(frame.extents) < 2:
            raise RequestError(
                f"the move 'rotation' needs a picture of two axes, and the input's size is "
                f"{list(frame.extents)}; name other moves"
            )
        return tuple(map(float, self.degrees))

    def apply(self, view: View, magnitude: float, seed: int) -> Tensor:
        """The pictures, rotated."""
        angles = [math.radians(sign * magnitude) for sign in _signs(view, seed, self.name, magnitude)]
        return _resample(view, [((math.cos(a), -math.sin(a)), (math.sin(a), math.cos(a))) for a in angles])


@dataclass(frozen=True)
class Scale:
    """The object comes nearer or goes away, by bicubic sampling.

    Attributes:
        factors: above 1, each larger or smaller by that much at random.
    """

    name: ClassVar[str] = "scale"
    unit: ClassVar[str] = "×"
    told: ClassVar[str] = "larger or smaller by that factor, about the centre"
    factors: tuple[float, ...] = (1.05, 1.1, 1.2, 1.4)

    def __post_init__(self) -> None:
        _check_numbers(self.name, "factors", self.factors, 1.0, 16.0)

    def magnitudes(self, frame: Frame) -> tuple[float, ...]:
        """The factors; a RequestError tells why there is none."""
        _refuse_tokens(self.name, frame)
        if len(frame.extents) > 2:
            raise RequestError(
                f"the move 'scale' works on one or two axes, and the input's size is {list(frame.extents)}; "
                "name other moves"
            )
        return tuple(map(float, self.factors))

    def apply(self, view: View, magnitude: float, seed: int) -> Tensor:
        """The pictures, scaled."""
        factors = [magnitude**sign for sign in _signs(view, seed, self.name, magnitude)]
        return _resample(view, [((1 / f, 0.0), (0.0, 1 / f)) for f in factors])


@dataclass(frozen=True)
class Noise:
    """The sensor is noisy: Gaussian noise, independent for every value, cut off where a picture's values end.

    Attributes:
        sigmas: standard deviations in the units of the data: pictures lie in [0, 1].
    """

    name: ClassVar[str] = "noise"
    unit: ClassVar[str] = "σ"
    told: ClassVar[str] = "Gaussian noise of that standard deviation, in the units of the data"
    sigmas: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2)

    def __post_init__(self) -> None:
        _check_numbers(self.name, "sigmas", self.sigmas, 0.0, math.inf)

    def magnitudes(self, frame: Frame) -> tuple[float, ...]:
        """The standard deviations; a RequestError tells why there is none."""
        _refuse_tokens(self.name, frame)
        return tuple(map(float, self.sigmas))

    def apply(self, view: View, magnitude: float, seed: int) -> Tensor:
        """The centre crops with noise."""
        noisy = []
        for sample, name in zip(view.centre, view.names, strict=True):
            draw = stream(seed, self.name, magnitude, name)
            noise = torch.randn(sample.shape, generator=draw, dtype=torch.float32, device="cpu")
            noisy.append(sample + magnitude * noise.to(sample))
        result = torch.stack(noisy)
        return result if view.bounds is None else result.clamp(*view.bounds)


Move: TypeAlias = Crop | Circular | Rotation | Scale | Noise
MOVES: dict[str, type[Move]] = {kind.name: kind for kind in (Crop, Circular, Rotation, Scale, Noise)}


def read_moves(moves: Sequence[str | Move] | str | Move) -> tuple[Move, ...]:
    """Moves from their names, or as they are.

    Raises:
        UnknownName: no move has that name.
        RequestError: there is none, one comes twice, or it is no move.

    Example:
        >>> read_moves(["circular", Rotation(degrees=(3,))])
        (Circular(shifts=None), Rotation(degrees=(3,)))
    """
    listed = [moves] if isinstance(moves, str | Move) else list(moves)
    read: list[Move] = []
    for move in listed:
        if isinstance(move, str) and move not in MOVES:
            raise UnknownName(f"move {move!r} must be one of {', '.join(MOVES)}{nearest(move, MOVES)}")
        if not isinstance(move, str | Move):
            raise RequestError(
                f"move {move!r} must be a name ({', '.join(MOVES)}) or a move such as Rotation(degrees=(5,))"
            )
        read.append(MOVES[move]() if isinstance(move, str) else move)
    names = [move.name for move in read]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RequestError(f"move {twice!r} is given twice; give its magnitudes in one")
    return tuple(read)


# ---------------------------------------------------------------- what they share


def _check_whole(name: str, values: Sequence[int] | None) -> None:
    if values is None:
        return
    if not values or any(isinstance(v, bool) or not isinstance(v, int) or v < 1 for v in values):
        raise RequestError(
            f"shifts={values!r} of the move {name!r} must be whole numbers of pixels from 1 on"
        )


def _check_numbers(name: str, what: str, values: Sequence[float], low: float, high: float) -> None:
    if not values or any(isinstance(v, bool) or not low < v <= high or not math.isfinite(v) for v in values):
        upto = f" up to {high:g}" if math.isfinite(high) else ""
        raise RequestError(f"{what}={values!r} of the move {name!r} must be numbers above {low:g}{upto}")


def _refuse_tokens(name: str, frame: Frame) -> None:
    if frame.tokens:
        raise RequestError(
            f"the move {name!r} mixes values, and the input is whole numbers (tokens); name 'crop' or 'circular'"
        )


def _fitting(name: str, asked: tuple[int, ...] | None, most: int, what: str) -> tuple[float, ...]:
    """The shifts that are asked for, all of which must fit, or of the usual ones those that do."""
    if asked is not None and max(asked) > most:
        raise RequestError(
            f"shifts={asked} of the move {name!r} must not be over {most} pixels, {what}; give smaller ones"
        )
    fitting = tuple(float(shift) for shift in asked or _SHIFTS if shift <= most)
    if not fitting:
        raise RequestError(f"the move {name!r} finds no room for a shift: {what} is {most}; name other moves")
    return fitting


def _shifts(view: View, length: int, reach: Sequence[int], seed: int, name: str) -> list[tuple[int, ...]]:
    """For each picture a random shift whose longest part is `length`, along axes that reach that far."""
    axes = [axis for axis, most in enumerate(reach) if most >= length]
    shifts = []
    for picture in view.names:
        draw = stream(seed, name, length, picture)
        parts = torch.randint(-length, length + 1, (len(axes),), generator=draw, device="cpu").tolist()
        longest = int(torch.randint(2 * len(axes), (), generator=draw, device="cpu"))  # which axis, which way
        parts[longest // 2] = length if longest % 2 else -length
        shift = dict(zip(axes, parts, strict=True))
        shifts.append(tuple(shift.get(axis, 0) for axis in range(len(reach))))
    return shifts


def _signs(view: View, seed: int, name: str, magnitude: float) -> list[int]:
    """1 or -1 for each picture."""
    draws = [stream(seed, name, magnitude, picture) for picture in view.names]
    return [1 if bool(torch.randint(2, (), generator=draw, device="cpu")) else -1 for draw in draws]


Matrix: TypeAlias = tuple[tuple[float, float], tuple[float, float]]


def _resample(view: View, matrices: Sequence[Matrix]) -> Tensor:
    """Pictures in which pixel p, counted from the centre, shows what was at matrix · p, by bicubic sampling."""
    samples, frame = view.samples, view.frame
    flat = len(frame.extents) == 1  # a row is a picture of height 1
    if flat:
        samples = samples[..., None, :]
    extents = (1, *frame.extents) if flat else frame.extents
    canvas = (1, *frame.canvas) if flat else frame.canvas
    offset = (0, *frame.centre) if flat else frame.centre
    middle = [(extent - 1) / 2 for extent in extents]
    axes = [torch.arange(n, dtype=torch.float64) - m for n, m in zip(extents, middle, strict=True)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)  # [height, width, (y, x)]
    turn = torch.tensor(matrices, dtype=torch.float64)  # [batch, (y, x), (y, x)]
    source = torch.einsum("bij,hwj->bhwi", turn, grid)
    source = source + torch.tensor([o + m for o, m in zip(offset, middle, strict=True)], dtype=torch.float64)
    size = torch.tensor(canvas, dtype=torch.float64)
    where = ((2 * source + 1) / size - 1).flip(-1)  # grid_sample wants (x, y) in [-1, 1]
    wide = samples if samples.dtype is torch.float64 else samples.float()
    moved = functional.grid_sample(
        wide, where.to(wide), mode="bicubic", padding_mode="reflection", align_corners=False
    )
    axis = tuple(range(1, wide.ndim))
    moved = moved.clamp(wide.amin(axis, keepdim=True), wide.amax(axis, keepdim=True))  # cubics overshoot
    moved = moved.to(samples.dtype)
    return moved[..., 0, :] if flat else moved
