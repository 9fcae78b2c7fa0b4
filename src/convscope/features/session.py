"""Draws batches of units of one network: plans the batch, runs the climb, rescues the blocked, scores the result.

`visualize` runs one session over one layer, `atlas` one session over many.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from convscope import data
from convscope.errors import BadInput, ModelError, OutOfMemory, RequestError
from convscope.features import transform
from convscope.features.capture import Capture, split_key
from convscope.features.network import Network, prepare
from convscope.features.objectives import Activations, Objective, positions, stack
from convscope.features.optimize import Climb, Interrupted, Recipe, Task, climb
from convscope.features.parametrization import Bound, Fourier, Parametrization
from convscope.features.transform import Mover, Robust
from convscope.features.unit import Status, Unit
from convscope.graph import Graph, layout, record
from convscope.measures.receptive_field import receptive_field
from convscope.models import Net

HELD_OUT = 8  # transforms a score is averaged over
_SMALLEST, _LARGEST = 48, 128  # automatic canvas, pixels
_NOTHING = 1e-6  # of the layer's liveliest channel: weights that decayed to dust are as dead as zeros
_MOST_ON_CPU, _MOST_ON_GPU = 8, 64  # units a batch


@dataclass(frozen=True)
class Settings:
    """What shapes every picture of a session; plain values and frozen dataclasses only."""

    parametrization: Parametrization
    robust: Robust
    recipe: Recipe
    seed: int = 0

    def __post_init__(self) -> None:
        if not callable(getattr(self.parametrization, "bind", None)) or inspect.isclass(self.parametrization):
            raise RequestError(
                f"parametrization={self.parametrization!r} must be Fourier(), Pixel() or Maco()"
            )
        if not isinstance(self.robust, Robust):
            raise RequestError(f"transforms={self.robust!r} must be a Robust()")
        if not isinstance(self.recipe, Recipe):
            raise RequestError(f"recipe={self.recipe!r} must be a Recipe()")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise RequestError(f"seed={self.seed!r} must be an integer")

    @classmethod
    def default(cls, steps: int = 128, seed: int = 0) -> Settings:
        """The recipe found best; see `Recipe`, `Fourier` and `Robust`."""
        return cls(Fourier(), Robust(), Recipe(steps=steps), seed)


@dataclass(frozen=True)
class Wanted:
    """One picture to draw.

    Attributes:
        layer: layer key of the channel whose activation is reported.
        channel: its index.
        seed: number of the start.
        objective: what to climb.
        score: what to report; the objective without its regularizers.
        label: class name or None.
        start: a picture [channel, height, width] to start from, or None for noise.
        whole: whether the objective is of the layer as a whole, so that `channel` only numbers the picture.
    """

    layer: str
    channel: int
    seed: int
    objective: Objective
    score: Objective
    label: str | None = None
    start: Tensor | None = None
    whole: bool = False

    @property
    def stream(self) -> str:
        """The name of its random stream."""
        return f"{self.layer}/{self.channel}/{self.seed}"

    def map(self, value: Tensor) -> Tensor:
        """What it looks at of its layer's [batch, channel, *position]: [batch, *position]."""
        return value.amax(1) if self.whole else value[:, self.channel]


@dataclass(frozen=True)
class Drawn:
    """A finished picture: Tensor [channel, height, width] on the CPU, its record, its profile over its layer."""

    image: Tensor
    unit: Unit
    profile: Tensor


def stream(seed: int, name: str, purpose: str) -> torch.Generator:
    """The random stream of one unit for one purpose: it depends on nothing else."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


class Session:
    """One private network and the settings of a run.

    Args:
        net: the network.
        keys: every layer key that will be read.
        settings: of all pictures.
        device, dtype: see `prepare`.
        graph: of the network, if already recorded.
        keeps_unfinished: whether Ctrl-C scores and hands over a batch as far as it got, rather than leaving at once.
    """

    def __init__(
        self,
        net: Net,
        keys: Sequence[str],
        settings: Settings,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "auto",
        graph: Graph | None = None,
        keeps_unfinished: bool = True,
    ) -> None:
        self.net = net
        self.keeps_unfinished = keeps_unfinished
        self.graph = record(net) if graph is None else graph
        self.settings = settings
        for key in keys:
            self.graph.call(split_key(key)[0])
        self.network: Network = prepare(net, self.graph, keys, device, dtype)
        self.halvings: list[str] = []  # batches that did not fit in memory
        self._canvases: dict[tuple[str, Any], tuple[int, int]] = {}
        self._examples: dict[tuple[int, int], Tensor] = {}

    # -- planning ------------------------------------------------------------------------------------------------

    def canvas(self, keys: Sequence[str], size: str | int | tuple[int, int]) -> tuple[int, int]:
        """The canvas (height, width) for reading the given layers; see `visualize` for "auto".

        Raises:
            BadInput: the size is not positive, or the network does not run up to the layers at it.
        """
        size = tuple(size) if isinstance(size, list) else size
        cached = (" ".join(keys), size)
        if cached not in self._canvases:
            self._canvases[cached] = self._choose_canvas(keys, size)
        return self._canvases[cached]

    def _choose_canvas(self, keys: Sequence[str], size: str | int | tuple[int, int]) -> tuple[int, int]:
        if size != "auto":
            asked = (size, size) if isinstance(size, int) else size
            if (
                isinstance(asked, str)
                or len(asked) != 2
                or any(not isinstance(n, int) or n < 1 for n in asked)
            ):
                raise BadInput(f"size={size!r} must be 'auto', a number of pixels or (height, width)")
            error = self._fails(keys, asked)
            if error is not None:
                raise BadInput(
                    f"size={asked[0]}x{asked[1]}: the network does not run up to {keys[0]!r} at this size ({error}); give "
                    f"size='auto' or the network's own {self.net.input.size}"
                )
            return asked
        wanted = self._auto(keys)
        if self._fails(keys, wanted) is None:
            return wanted
        error = self._fails(keys, self.net.input.size)
        if error is not None:
            raise ModelError(
                f"the network fails on a blank picture of its own input size ({error}); check its input"
            )
        return self.net.input.size

    def _auto(self, keys: Sequence[str]) -> tuple[int, int]:
        """The receptive field and the room for transforms, within bounds."""
        room = self.settings.robust.room()
        sides = [_SMALLEST, _SMALLEST]
        for key in keys:
            field = receptive_field(self.net, split_key(key)[0], graph=self.graph)
            field = field.local if field.is_global and field.local is not None else field
            extent = field.size if len(field.size) == 2 and not field.is_global else (_LARGEST, _LARGEST)
            sides = [max(side, int(n) + room) for side, n in zip(sides, extent, strict=True)]
        return min(sides[0], _LARGEST), min(sides[1], _LARGEST)

    def _fails(self, keys: Sequence[str], size: tuple[int, int]) -> str | None:
        blank = torch.full((1, self.net.input.channels, *size), 0.5, device=self.network.device)
        try:
            with torch.no_grad(), self.network.capture(keys) as capture:
                values, _ = capture(self.network.feed(blank))
        except RequestError:  # the layer key itself is wrong, at any size
            raise
        except (
            ModelError,
            RuntimeError,
            ValueError,
            AssertionError,
            IndexError,
        ) as error:  # what layers raise on a wrong size
            return " ".join(str(error).split())[:200] or type(error).__name__
        empty = next((key for key, value in values.items() if value.numel() == 0), None)
        return None if empty is None else f"layer {empty!r} has no position left"

    def batch(self, keys: Sequence[str], size: tuple[int, int], asked: str | int = "auto") -> int:
        """Units drawn together: as many as a quarter of the free memory holds, within a cap that keeps caches warm."""
        if isinstance(asked, int) and not isinstance(asked, bool) and asked > 0:
            return asked
        if asked != "auto":
            raise BadInput(f"batch={asked!r} must be 'auto' or a positive integer")
        last = max(self.graph.call(split_key(key)[0]).order for key in keys)
        inside = [op for op in self.graph.ops if op.call is None or op.call <= last]
        values = sum(math.prod(self.graph.values[out].shape) for op in inside for out in op.outputs)
        own = self.net.input.size
        scale = size[0] * size[1] / (own[0] * own[1])
        need = values * scale * torch.empty((), dtype=self.network.dtype).element_size() * 2
        most = _MOST_ON_CPU if self.network.device.type == "cpu" else _MOST_ON_GPU
        return int(max(1, min(most, _free_memory(self.network.device) * 0.25 // max(need, 1))))

    # -- drawing -------------------------------------------------------------------------------------------------

    def draw(
        self, wanted: Sequence[Wanted], size: tuple[int, int], on_segment: Callable[[int], None] | None = None
    ) -> list[Drawn]:
        """Draws a batch; if memory does not hold it, its halves one after the other.

        Raises:
            OutOfMemory: not even one unit fits.
        """
        try:
            return self._draw(wanted, size, on_segment)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            reason = f"{len(wanted)} units of {wanted[0].layer} at {size[0]}x{size[1]}"
        if self.network.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(wanted) == 1:
            raise OutOfMemory(
                f"{reason} do not fit in memory; give a smaller size= or a lower layer"
            ) from None
        self.halvings.append(reason)
        half = (len(wanted) + 1) // 2
        first = self.draw(wanted[:half], size, on_segment)
        try:
            return first + self.draw(wanted[half:], size, on_segment)
        except DrawInterrupted as stop:
            raise DrawInterrupted(first + stop.drawn) from None

    def _draw(
        self, wanted: Sequence[Wanted], size: tuple[int, int], on_segment: Callable[[int], None] | None
    ) -> list[Drawn]:
        began = time.perf_counter()
        bound = self.settings.parametrization.bind(self.net.input.channels, size, self.network.device)
        with self._capture(wanted) as capture:
            task = self._task(wanted, size, bound, capture)
            start = self._start(wanted, size, bound, "noise")
            interrupted = False
            try:
                ended = climb(
                    task,
                    start,
                    self.settings.recipe,
                    on_segment,
                    lambda rows: [
                        not alive for _, alive in self._excite([wanted[row] for row in rows], size)
                    ],
                )
            except Interrupted as stop:
                if not self.keeps_unfinished:
                    raise DrawInterrupted([]) from None
                ended, interrupted = stop.climb, True
            drawn = self._score(wanted, task, ended, interrupted)
            if not interrupted:
                drawn, interrupted = self._revive(wanted, drawn, ended.dead, task, size, on_segment)
        seconds = (time.perf_counter() - began) / len(wanted)
        drawn = [replace(item, unit=replace(item.unit, seconds=seconds)) for item in drawn]
        if interrupted:
            raise DrawInterrupted(drawn)
        return drawn

    def _capture(self, wanted: Sequence[Wanted]) -> Capture:
        layers = [
            layer for item in wanted for layer in (*item.objective.layers, *item.score.layers, item.layer)
        ]
        return self.network.capture(dict.fromkeys(layers))

    def _task(self, wanted: Sequence[Wanted], size: tuple[int, int], bound: Bound, capture: Capture) -> Task:
        settings, device = self.settings, self.network.device
        count = settings.recipe.steps * settings.robust.views
        moves = transform.draw(
            settings.robust, count, [stream(settings.seed, w.stream, "moves") for w in wanted]
        )
        return Task(
            network=self.network,
            capture=capture,
            bound=bound,
            mover=Mover(settings.robust, size, device),
            objective=stack([w.objective for w in wanted]),
            moves=moves.to(device),
            groups=torch.tensor(_groups(wanted), device=device),
            noises=tuple(stream(settings.seed, w.stream, "noise on the picture") for w in wanted),
        )

    def _start(self, wanted: Sequence[Wanted], size: tuple[int, int], bound: Bound, purpose: str) -> Tensor:
        """Parameters of the starts: noise from each unit's own stream, or the given picture."""
        noise = bound.noise([stream(self.settings.seed, w.stream, purpose) for w in wanted])
        if all(w.start is None for w in wanted):
            return noise
        pictures = [
            w.start if w.start is not None else torch.full((self.net.input.channels, *size), 0.5)
            for w in wanted
        ]
        resized = torch.stack([fit(picture, size) for picture in pictures]).to(noise.device)
        encoded = bound.encode(resized)
        given = torch.tensor([w.start is not None for w in wanted], device=noise.device)
        return torch.where(given.view(-1, *[1] * (noise.ndim - 1)), encoded, noise)

    # -- scoring -------------------------------------------------------------------------------------------------

    def _score(self, wanted: Sequence[Wanted], task: Task, ended: Climb, interrupted: bool) -> list[Drawn]:
        """Clean and held-out activations of what the climb reached."""
        score = stack([w.score for w in wanted])
        settings = self.settings
        held_out = transform.draw(
            settings.robust, HELD_OUT, [stream(settings.seed, w.stream, "held out") for w in wanted]
        ).to(self.network.device)
        with torch.no_grad():
            images = task.bound.decode(ended.parameters)
            layers, _ = task.capture(self.network.feed(images))
            clean = score(Activations(layers, images, task.groups))
            picked = [positions(w.map(layers[w.layer][row : row + 1])) for row, w in enumerate(wanted)]
            peaks = [float(values.max()) for values in picked]
            profiles = [positions(layers[w.layer][row]).mean(1).cpu() for row, w in enumerate(wanted)]
            total = torch.zeros_like(clean)
            for moves in held_out:
                layers, _ = task.capture(task.pictures_moved(images, moves))
                total += score(Activations(layers, images, task.groups))
            robust = (total / HELD_OUT).tolist()
        drawn = []
        for row, item in enumerate(wanted):
            status: Status = "budget"
            if not ended.finite[row]:
                status = "nan"
            elif interrupted:
                status = "interrupted"
            elif ended.converged[row]:
                status = "converged"
            image = images[row].float().cpu()
            unit = Unit(
                layer=item.layer,
                channel=item.channel,
                seed=item.seed,
                label=item.label,
                activation=float(clean[row]),
                robust=robust[row],
                peak=peaks[row],
                status=status,
                steps=ended.steps,
                curve=_thin(ended.curve[:, row]),
                flags=("saturated",) if _saturated(image) else (),
            )
            drawn.append(Drawn(image, unit, profiles[row]))
        return drawn

    # -- dead or only blocked ------------------------------------------------------------------------------------

    def _revive(
        self,
        wanted: Sequence[Wanted],
        drawn: list[Drawn],
        known_dead: Sequence[bool],
        task: Task,
        size: tuple[int, int],
        on_segment: Callable[[int], None] | None,
    ) -> tuple[list[Drawn], bool]:
        """Of units left without any activation: names those dead that nothing excites, restarts the others.

        Returns:
            The pictures, and whether Ctrl-C cut a restart short.
        """
        flat = [row for row, item in enumerate(drawn) if item.unit.status != "nan" and self._is_flat(item)]
        if not flat:
            return drawn, False
        unsure = [row for row in flat if not known_dead[row]]
        best = self._excite([wanted[row] for row in unsure], size) if unsure else []
        starts = {row: picture for row, (picture, alive) in zip(unsure, best, strict=True) if alive}
        for row in flat:
            if row not in starts:
                unit = replace(drawn[row].unit, status="dead", flags=("dead",))
                drawn[row] = replace(drawn[row], unit=unit)
        again = list(starts)
        interrupted = False
        if again:
            chosen = [replace(wanted[row], start=starts[row]) for row in again]
            second = self._task(chosen, size, task.bound, task.capture)
            try:
                start = self._start(chosen, size, task.bound, "restart")
                ended = climb(second, start, self.settings.recipe, on_segment)
            except Interrupted as stop:
                ended, interrupted = stop.climb, True
            for row, item in zip(again, self._score(chosen, second, ended, interrupted), strict=True):
                drawn[row] = item
        return drawn, interrupted

    @staticmethod
    def _is_flat(item: Drawn) -> bool:
        """Whether the picture excites the unit nowhere, beside what the layer's other channels do."""
        nothing = _NOTHING * float(item.profile.abs().max()) if item.profile.isfinite().all() else 0.0
        return max(item.unit.peak, item.unit.activation, item.unit.robust) <= nothing

    def _excite(self, wanted: Sequence[Wanted], size: tuple[int, int]) -> list[tuple[Tensor, bool]]:
        """For each unit the natural or random picture it likes best, and whether anything changes it at all."""
        pictures = self._pictures(size)
        keys = list(dict.fromkeys(w.layer for w in wanted))
        highs: list[Tensor] = []
        lows: list[Tensor] = []
        spreads = dict.fromkeys(keys, 0.0)  # of the layer's liveliest channel
        with torch.no_grad(), self.network.capture(keys) as capture:
            for picture in pictures.split(8):
                layers, _ = capture(self.network.feed(picture.to(self.network.device)))
                values = [positions(w.map(layers[w.layer])) for w in wanted]
                for key, value in layers.items():
                    flat = value.float().movedim(1, 0).flatten(1)  # [channel, picture and position]
                    spreads[key] = max(spreads[key], float((flat.amax(1) - flat.amin(1)).max()))
                highs.append(torch.stack([v.amax(1) for v in values]).cpu())
                lows.append(torch.stack([v.amin(1) for v in values]).cpu())
        high, low = torch.cat(highs, 1), torch.cat(lows, 1)  # [unit, picture]
        least = torch.tensor([_NOTHING * spreads[w.layer] for w in wanted])
        alive = high.amax(1) - low.amin(1) > least
        return [(pictures[int(row.argmax())], bool(live)) for row, live in zip(high, alive, strict=True)]

    def _pictures(self, size: tuple[int, int]) -> Tensor:
        """Natural photographs (of networks that see colour or grey) and noise of several kinds, at one size."""
        if size not in self._examples:
            channels = self.net.input.channels
            generator = stream(self.settings.seed, "", "pictures to find the dead")
            coarse = torch.rand(8, channels, 8, 8, generator=generator)
            parts = [
                torch.rand(8, channels, *size, generator=generator),
                functional.interpolate(coarse, size, mode="bilinear"),
            ]
            if channels in (1, 3):
                photographs = [photo.image() for photo in data.photographs()]
                natural = torch.stack([fit(photo, size) for photo in photographs])
                parts.insert(0, natural if channels == 3 else natural.mean(1, keepdim=True))
            self._examples[size] = torch.cat(parts)
        return self._examples[size]


class DrawInterrupted(BaseException):
    """Ctrl-C during a batch; carries its pictures as far as they got."""

    def __init__(self, drawn: list[Drawn]) -> None:
        super().__init__()
        self.drawn = drawn


def _groups(wanted: Sequence[Wanted]) -> list[int]:
    """A number a picture, the same for the seeds of one unit; one channel may have several objectives."""
    units: list[Wanted] = []
    numbers = []
    for item in wanted:
        mine = (item.layer, item.channel, item.objective)
        same = (k for k, unit in enumerate(units) if (unit.layer, unit.channel, unit.objective) == mine)
        number = next(same, len(units))
        if number == len(units):
            units.append(item)
        numbers.append(number)
    return numbers


def with_agreement(drawn: Sequence[Drawn]) -> list[Drawn]:
    """Fills in how well the seeds of each unit agree; they follow one another."""
    together: list[list[int]] = []
    for row, item in enumerate(drawn):
        if item.unit.seed == 0 or not together:
            together.append([])
        together[-1].append(row)
    result = list(drawn)
    for rows in together:
        if len(rows) < 2:
            continue
        profiles = functional.normalize(torch.stack([drawn[row].profile for row in rows]), dim=1)
        similarity = profiles @ profiles.T
        mean = (similarity.sum() - similarity.diagonal().sum()) / (len(rows) * (len(rows) - 1))
        for row in rows:
            result[row] = replace(drawn[row], unit=replace(drawn[row].unit, agreement=float(mean)))
    return result


def units_of(layer: str, graph: Graph) -> int:
    """Number of channels of a layer."""
    return layout(graph, split_key(layer)[0]).channels


def balanced(items: Sequence[Any], most: int) -> list[list[Any]]:
    """Cuts a sequence into the fewest pieces of at most `most`, as equal as can be.

    Example:
        >>> balanced(range(10), 4)
        [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]
    """
    count = max(1, -(-len(items) // most))
    size, extra = divmod(len(items), count)
    pieces, start = [], 0
    for k in range(count):
        stop = start + size + (k < extra)
        pieces.append(list(items[start:stop]))
        start = stop
    return pieces


def fit(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """The centre of a picture [channel, height, width] at another size, its aspect kept."""
    height, width = picture.shape[-2:]
    scale = max(size[0] / height, size[1] / width)
    inner = (max(size[0], round(height * scale)), max(size[1], round(width * scale)))
    resized = functional.interpolate(
        picture[None].float(), inner, mode="bilinear", antialias=True, align_corners=False
    )[0]
    top, left = (inner[0] - size[0]) // 2, (inner[1] - size[1]) // 2
    return resized[:, top : top + size[0], left : left + size[1]].clamp(0, 1)


def _thin(curve: Tensor, points: int = 32) -> tuple[tuple[int, float], ...]:
    """A curve as (step, mean since the point before), at most `points` long."""
    window = max(1, -(-len(curve) // points))
    return tuple(
        (min(k + window, len(curve)), float(curve[k : k + window].mean()))
        for k in range(0, len(curve), window)
    )


def _saturated(image: Tensor) -> bool:
    return float(((image < 0.01) | (image > 0.99)).float().mean()) > 0.25


def _free_memory(device: torch.device) -> float:
    """Bytes free on the device; 4 GiB where the system does not tell."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):
        return 4.0 * 2**30


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text
