"""`visualize`: pictures of what units look for, by gradient ascent on the input (activation maximization).

Erhan et al., "Visualizing Higher-Layer Features of a Deep Network" (2009); Olah, Mordvintsev and Schubert, "Feature
Visualization" (Distill, 2017).
"""

from __future__ import annotations

import hashlib
import inspect
import operator
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from convscope import _heap
from convscope.errors import RequestError
from convscope.features import natural, objectives
from convscope.features.capture import split_key
from convscope.features.choose import scores
from convscope.features.ground import own_ground
from convscope.features.objectives import Objective
from convscope.features.optimize import Recipe
from convscope.features.parametrization import Fourier, Parametrization
from convscope.features.session import (
    DrawInterrupted,
    Drawn,
    Session,
    Settings,
    Wanted,
    balanced,
    units_of,
    with_agreement,
)
from convscope.features.transform import Robust
from convscope.features.unit import Visualization
from convscope.graph import Graph, record, resolve
from convscope.models import InputLike, Net, as_net, require_trained

if TYPE_CHECKING:
    from convscope.data import Images

Progress = Callable[[dict[str, Any]], None]


@own_ground()
@_heap.kept()
def visualize(
    net: Net | nn.Module,
    layer: str | None = None,
    channels: int | Sequence[int] | None = None,
    objective: Objective | Sequence[Objective] | Callable[..., Any] | None = None,
    size: str | int | tuple[int, int] = "auto",
    steps: int = 128,
    seeds: int = 1,
    *,
    input: InputLike | None = None,
    seed: int = 0,
    parametrization: Parametrization | None = None,
    transforms: Robust | None = None,
    regularize: Objective | None = None,
    recipe: Recipe | None = None,
    start: Tensor | None = None,
    data: str | Images | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "auto",
    batch: str | int = "auto",
    random: bool = False,
    progress: Progress | None = None,
    graph: Graph | None = None,
) -> Visualization:
    """Draws the picture that most excites each chosen unit of a network.

    Args:
        net: a Net, or a module with `input=`.
        layer: layer key: a dotted module name; `name#k` is its k-th call, `name:pre` and `name:post` the value before
            or after its activation function.
        channels: which channels; None is the first 8.
        objective: what to excite instead of the mean of each channel: an objective class, called with (layer,
            channel); an objective or a list of them, one picture each; or a function of `Activations` that returns
            one number a sample.
        size: canvas: "auto" is the receptive field plus the room transforms need, 48 to 128 pixels; or pixels,
            or (height, width).
        steps: budget of optimizer steps.
        seeds: pictures a unit, each from its own start.
        input: what to feed a plain module: an example tensor or an `InputSpec`.
        seed: of every random choice.
        parametrization: `Fourier()` (default), `Pixel()` or `Maco()`.
        transforms: random moves; `transform.NONE` for none, `transform.LUCID` for lucid's.
        regularize: an objective to subtract, such as `3.0 * TotalVariation()`; not part of the score.
        recipe: optimizer settings; its `steps` wins over `steps`.
        start: a picture [channel, height, width] in [0, 1] to start from instead of noise.
        data: image folder, file or `Images` to compare with ("photographs" for the embedded ones); fills in natural
            maxima and percentiles.
        device: where to run; the network's own by default.
        dtype: "auto" or the type the network runs in; pictures are always optimized in float32.
        batch: units drawn together; "auto" fits memory.
        random: allow untrained weights.
        progress: called with {"done", "total", "rate", "seconds_left", "layer"} after every batch and segment.
        graph: of the network, if already recorded.

    Returns:
        Pictures and their records. After Ctrl-C it holds what was finished, with `interrupted=True`.

    Raises:
        UnknownLayer: no such layer.
        UntrainedWeights: the weights are known to be random and `random` is not given.
        RequestError: an argument is out of its constraint.
        OutOfMemory: not even one unit fits.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 5), nn.ReLU())
        >>> pictures = visualize(net, "0", [0, 2], input=torch.zeros(1, 3, 32, 32), steps=4)
        >>> pictures.images.shape, pictures.units[1].channel
        (torch.Size([2, 3, 48, 48]), 2)
    """
    net = as_net(net, input)
    require_trained(net, random)
    graph = record(net) if graph is None else graph
    wanted, keys = plan(net, layer, channels, objective, regularize, seeds, start, graph)
    settings = Settings(
        parametrization=parametrization or Fourier(),
        robust=transforms or Robust(),
        recipe=recipe or Recipe(steps=steps),
        seed=seed,
    )
    session = Session(net, keys, settings, device=device, dtype=dtype, graph=graph)
    canvas = session.canvas(keys, size)
    most = session.batch(keys, canvas, batch)
    drawn, interrupted = _run(session, _grouped(wanted, most, seeds), canvas, progress)
    drawn = with_agreement(drawn)
    if data is not None and drawn and not interrupted:
        drawn = natural.compare(session, drawn, data)
    channel_count = net.input.channels
    images = torch.stack([item.image for item in drawn]) if drawn else torch.zeros(0, channel_count, *canvas)
    described = describe(settings) | {
        "size": list(canvas),
        "dtype": str(session.network.dtype).removeprefix("torch."),
        "device": session.network.device.type,
        "batch": most,
        "halvings": session.halvings,
    }
    return Visualization(images, tuple(item.unit for item in drawn), described, interrupted)


def plan(
    net: Net,
    layer: str | None,
    channels: int | Sequence[int] | None,
    objective: Objective | Sequence[Objective] | Callable[..., Any] | None,
    regularize: Objective | None,
    seeds: int,
    start: Tensor | None,
    graph: Graph,
) -> tuple[list[Wanted], list[str]]:
    """The pictures to draw, and the layer keys they read."""
    check_seeds(seeds)
    if start is not None and (
        start.ndim != 3 or start.shape[0] != net.input.channels or not start.isfinite().all()
    ):
        raise RequestError(
            f"start of shape {tuple(start.shape)} must be a finite picture [{net.input.channels}, height, width] in [0, 1]"
        )
    targets = _targets(net, layer, channels, objective, graph)
    wanted = []
    for key, channel, score, whole in targets:
        aim = score if regularize is None else score - regularize
        label = None if whole else _label(net, key, channel, graph)
        wanted += [Wanted(key, channel, number, aim, score, label, start, whole) for number in range(seeds)]
    keys = dict.fromkeys(key for item in wanted for key in (item.layer, *item.objective.layers))
    return wanted, list(keys)


def _targets(
    net: Net, layer: str | None, channels: int | Sequence[int] | None, objective: Any, graph: Graph
) -> list[tuple[str, int, Objective, bool]]:
    """(layer key, channel or number, objective, whether it is of the whole layer) of each picture."""
    if isinstance(objective, Objective) or (
        isinstance(objective, Sequence) and not isinstance(objective, str)
    ):
        return _given(objective, layer, channels)
    if layer is None:
        raise RequestError("layer is missing; name a layer, or give an objective that names one")
    key = _exact(net, layer)
    if objective is None or (inspect.isclass(objective) and issubclass(objective, Objective)):
        make: Any = objectives.Channel if objective is None else objective
        return [(key, channel, make(key, channel), False) for channel in _channels(key, channels, graph)]
    if not callable(objective):
        raise RequestError(
            f"objective={objective!r} must be an objective, a list of them, or a function of activations"
        )
    function = objectives.Custom(objective, (key,))
    if channels is None:
        return [(key, 0, function, True)]
    return [(key, _channels(key, channels, graph)[0], function, False)]


def _given(
    objective: Any, layer: str | None, channels: int | Sequence[int] | None
) -> list[tuple[str, int, Objective, bool]]:
    if channels is not None:
        raise RequestError(
            "channels and a finished objective were both given; the objective names its channels"
        )
    many = [objective] if isinstance(objective, Objective) else list(objective)
    if not many or not all(isinstance(one, Objective) for one in many):
        raise RequestError("objective must be one objective or a list of them, at least one")
    targets = []
    for number, one in enumerate(many):
        if not one.layers:
            raise RequestError(
                f"objective {one!r} reads no layer; add one that does, such as Channel(layer, 0)"
            )
        leaf = _first_leaf(one)
        channel = getattr(leaf, "channel", None)
        key: str = layer or one.layers[0]
        # Without a channel of its own, a picture's number names its random stream.
        if isinstance(channel, int) and getattr(leaf, "layer", key) == key:
            targets.append((key, channel, one, False))
        else:
            targets.append((key, number, one, True))
    return targets


def _first_leaf(objective: Objective) -> Objective:
    terms = getattr(objective, "terms", None) or ((objective.term,) if hasattr(objective, "term") else ())
    inner = next((term for term in terms if term.layers), None)
    return objective if inner is None else _first_leaf(inner)


def _exact(net: Net, layer: str) -> str:
    """The one layer key a name or pattern stands for."""
    address, stage = split_key(layer)
    names = resolve(net, address)
    if len(names) > 1:
        raise RequestError(
            f"layer={layer!r} matches {len(names)} layers, {names[0]!r} and {names[1]!r} among them; name one"
        )
    return f"{names[0]}:{stage}" if stage else names[0]


def _channels(key: str, channels: int | Sequence[int] | None, graph: Graph) -> list[int]:
    count = units_of(key, graph)
    if channels is None:
        return list(range(min(8, count)))
    asked = list(channels) if isinstance(channels, Iterable) else [channels]
    if not asked:
        raise RequestError("channels is empty; give at least one, or None for the first 8")
    wanted = []
    for channel in asked:  # integers of numpy and torch are welcome
        number = (
            operator.index(channel) if hasattr(channel, "__index__") and not isinstance(channel, bool) else -1
        )
        if not 0 <= number < count:
            raise RequestError(f"channel={channel!r} does not exist in layer {key!r}; give 0 to {count - 1}")
        wanted.append(number)
    return list(dict.fromkeys(wanted))


def _label(net: Net, key: str, channel: int, graph: Graph) -> str | None:
    """The class name, where the layer is the network's output."""
    if net.labels is None or not 0 <= channel < len(net.labels):
        return None
    call = graph.call(split_key(key)[0])
    return net.labels[channel] if set(call.outputs) & set().union(*scores(graph)) else None


def _grouped(wanted: list[Wanted], most: int, seeds: int) -> list[list[Wanted]]:
    """Batches of at most `most`; the seeds of a unit stay together, since Diversity compares them."""
    by_layer: dict[str, list[list[Wanted]]] = {}
    for item in wanted:
        groups = by_layer.setdefault(item.layer, [])
        if groups and (groups[-1][0].channel, groups[-1][0].objective) == (item.channel, item.objective):
            groups[-1].append(item)
        else:
            groups.append([item])
    most_groups = max(1, most // seeds)
    pieces = [piece for groups in by_layer.values() for piece in balanced(groups, most_groups)]
    return [[item for group in piece for item in group] for piece in pieces]


def _run(
    session: Session, batches: list[list[Wanted]], canvas: tuple[int, int], progress: Progress | None
) -> tuple[list[Drawn], bool]:
    drawn: list[Drawn] = []
    meter = Meter(sum(len(batch) for batch in batches), progress)
    steps = session.settings.recipe.steps
    for batch in batches:
        try:
            drawn += session.draw(batch, canvas, meter.of_batch(len(batch), steps, batch[0].layer))
            meter.finished(len(batch), batch[0].layer)
        except DrawInterrupted as stop:
            return drawn + stop.drawn, True
        except KeyboardInterrupt:
            return drawn, True
    return drawn, False


def check_seeds(seeds: int) -> None:
    """Raises RequestError unless it is a positive integer."""
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise RequestError(f"seeds={seeds!r} must be a positive integer")


class Meter:
    """Turns finished units into progress events: done, total, rate, seconds left."""

    def __init__(self, total: int, progress: Progress | None, done: int = 0) -> None:
        self.total, self.progress, self.done = total, progress, done
        self.already, self.began, self.shown = done, time.perf_counter(), float(done)

    def of_batch(self, count: int, steps: int, layer: str) -> Callable[[int], None]:
        """What to call with the steps done of a running batch of `count` units."""
        return lambda step: self._tell(self.done + count * step / steps, layer)

    def finished(self, count: int, layer: str) -> None:
        """A batch of `count` units is finished."""
        self.done += count
        self._tell(self.done, layer)

    def _tell(self, done: float, layer: str) -> None:
        if self.progress is None:
            return
        done = self.shown = max(done, self.shown)  # a batch begun again does not take back what was told
        rate = (done - self.already) / max(time.perf_counter() - self.began, 1e-9)
        left = (self.total - done) / rate if rate > 0 else None
        event = {"done": int(done), "total": self.total, "rate": rate, "seconds_left": left, "layer": layer}
        self.progress(event)


def describe(settings: Settings) -> dict[str, Any]:
    """Settings as plain values, enough to remake the pictures."""

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            content = value.detach().cpu().double().contiguous().numpy().tobytes()
            return {"shape": list(value.shape), "sha256": hashlib.sha256(content).hexdigest()}
        if is_dataclass(value) and not isinstance(value, type):
            named = {name: plain(inner) for name, inner in _fields(value).items()}
            return {"kind": type(value).__name__} | named
        if isinstance(value, tuple | list):
            return [plain(item) for item in value]
        return value

    described: dict[str, Any] = {name: plain(value) for name, value in _fields(settings).items()}
    return described


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}
