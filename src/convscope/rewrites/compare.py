"""`compare`: two networks side by side, what they cost, what they answer, where they part, what their units look for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from convscope import timing
from convscope.errors import ConvscopeError, RequestError
from convscope.measures import consistency as shifts
from convscope.measures.border import border_effect
from convscope.measures.memory import peak_memory
from convscope.measures.profile import Profile
from convscope.measures.samples import Progress
from convscope.models import InputLike, Net, as_net
from convscope.rewrites import growth
from convscope.rewrites.compare_several import Comparisons, Point, marked
from convscope.rewrites.compare_table import Comparison, Figure, Origin
from convscope.rewrites.feed import Feed
from convscope.rewrites.rewrite import Rewrite
from convscope.rewrites.units import Subject, Units, asked, draw, draw_telling

ROUNDING = 1000  # times the type's precision: what a layer may differ by and count as the same
BUDGET = 1.0  # seconds of timing
GRAIN = 3e-3  # seconds a sample lasts at least
COSTS = ("macs", "params", "latency")


def compare(
    a: Net | nn.Module | Subject,
    b: Net | nn.Module | Rewrite,
    data: Any = None,
    *,
    input: InputLike | None = None,
    labels: Any = None,
    limit: int = 256,
    batch: int = 16,
    layers: bool = True,
    latency: bool = True,
    memory: bool = True,
    fields: bool = True,
    border: bool = False,
    consistency: bool = False,
    all: bool = False,
    features: Units | None = None,
    steps: int = 64,
    tolerance: float | None = None,
    random: bool = False,
    seed: int = 0,
    budget: float | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """What is different between two networks, such as one before and after a rewrite.

    Both run on the same images, each fitted to the input it takes. Layers of the same name are compared on them in the order
    in which they run, so that it shows where the networks part and how the difference grows. Neither network is changed.

    Args:
        a, b: the networks; a `Rewrite` as b brings the record of its edits. A network that is compared with several
            others may be a `Subject`, which is recorded and drawn once.
        data: a file, a folder (with folders of classes the accuracy is told), `Images`, None for the embedded
            photographs; or a Tensor [image, channel, height, width] of network input.
        input: what to feed plain modules.
        labels: the right class of each image: whole numbers in order of the images, or name -> number or class name.
        limit: at most so many images.
        batch: images a forward pass; fewer where the layers' maps are large.
        layers: compare layer by layer.
        latency: time both in turn, at a batch of one.
        memory: measure the peak of the memory of a pass.
        fields: derive the receptive field of the last map, and how much of it touches padding.
        border: also measure what padding changes there.
        consistency: measure how far predictions hold when the picture is shifted.
        all: all of these; one that cannot be taken is named in `notes`, where else it is an error.
        features: units to draw in both from the same seed: (layer, channel) pairs, or layer -> channels; "auto": the most
            active channels of the layers that changed most, and of the last one.
        steps: optimizer steps of such a picture.
        tolerance: relative rms difference up to which a layer counts as the same; a thousand roundings by default.
        random: draw units of untrained networks too.
        seed: every random choice follows from it.
        budget: seconds of timing; one by default.
        progress: called with {"done", "total", "rate", "seconds_left", "layer"}.

    Returns:
        The comparison: `.figures`, `.outputs`, `.accuracy`, `.first`, `.layers`, `.features`; `.to_markdown()`.

    Raises:
        BadInput, RequestError: networks, data and labels do not fit together.
        UnknownLayer: a unit to draw is in neither network.
        ModelError: a network fails.

    Example:
        >>> import convscope
        >>> net = convscope.load("fashion")
        >>> made = convscope.rewrite(net, "padding:replicate,where=block2.*")
        >>> found = compare(net, made, latency=False, memory=False)
        >>> found.first, found.figures["macs"].ratio
        ('block2.conv1', 1.0)
    """
    made = b if isinstance(b, Rewrite) else None
    first = a if isinstance(a, Subject) else Subject(as_net(a, input))
    second = Subject(b.net if isinstance(b, Rewrite) else as_net(b, input))
    nets = (first.net, second.net)
    feed = Feed(nets, data, labels, limit, seed)
    wanted = asked(features)
    found = growth.run(nets, (first.graph, second.graph), feed, layers, batch, progress)
    notes: list[str] = list(found.notes)
    if nets[0].input.size != nets[1].input.size:
        notes.append("the networks take images of different sizes, and each sees its own part of them")
    profiles = (first.profile(fields), second.profile(fields))
    figures = _counted(profiles, fields)
    takers: dict[str, tuple[bool, Callable[[], list[Figure]]]] = {
        "memory": (memory, lambda: [_memory(nets)]),
        "latency": (latency, lambda: [_latency(timed(nets, budget))]),
        "border": (border, lambda: _border(nets, profiles, data, seed)),
        "consistency": (consistency, lambda: [_shifted(nets, data, min(limit, 64), seed)]),
    }
    for name, (flag, take) in takers.items():
        if not (flag or all):
            continue
        try:
            figures += take()
        except ConvscopeError as error:
            if not all or (flag and name in ("border", "consistency")):
                raise
            notes.append(f"{name} is left out: {error}")
    if found.accuracy is not None:
        figures.append(Figure("accuracy", "top-1 accuracy", "share", found.accuracy.a, found.accuracy.b))
    precision = torch.finfo(nets[0].input.dtype).eps
    tolerance = ROUNDING * precision if tolerance is None else tolerance
    if features == "auto":
        pictures = draw_telling(first, second, found, tolerance, steps, seed, random, notes)
    else:
        pictures = draw(first, second, wanted, steps, seed, random)
    return Comparison(
        a=nets[0].to_dict(),
        b=nets[1].to_dict(),
        figures={figure.key: figure for figure in figures},
        profile=profiles[1] - profiles[0],
        images=found.images,
        source=feed.source,
        outputs=found.outputs,
        accuracy=found.accuracy,
        layers=found.layers,
        apart=found.apart,
        tolerance=tolerance,
        features=pictures,
        origin=Origin.of(made, nets[1]),
        notes=tuple(notes),
    )


# ---------------------------------------------------------------- figures


def _over(first: float, second: float) -> float | None:
    return second / first if first else None


def _counted(profiles: Sequence[Profile], fields: bool) -> list[Figure]:
    """What follows from the recorded passes."""
    names = (
        ("params", "parameters", "count"),
        ("macs", "MACs", "count"),
        ("element_ops", "element operations", "count"),
        ("activation_bytes", "activation memory", "bytes"),
    )
    found = []
    for key, name, unit in names:
        first, second = (getattr(profile.totals, key) for profile in profiles)
        found.append(Figure(key, name, unit, first, second, _over(first, second)))  # type: ignore[arg-type]
    if fields:
        seen = [_last_map(profile) for profile in profiles]
        sizes = [None if row is None else row.receptive_field.size for row in seen]
        found.append(Figure("receptive_field", "receptive field of the last map", "pixels", *sizes))
    return found


def _last_map(profile: Profile) -> Any:
    """The last row that gives a map of several positions of which the field is known."""
    rows = [
        row
        for row in profile.layers
        if row.receptive_field is not None
        and len(row.out_shape or ()) == 4
        and row.out_shape[2] * row.out_shape[3] > 1
    ]
    return rows[-1] if rows else None


def _memory(nets: Sequence[Net]) -> Figure:
    first, second = (peak_memory(net).total for net in nets)
    return Figure("peak_memory", "peak memory of a pass", "bytes", first, second, _over(first, second))


def timed(nets: Sequence[Net], budget: float | None = None) -> list[timing.Timing]:
    """Whole passes of all networks in turn, at a batch of one, as their users run them."""
    runs: dict[str, Callable[[], object]] = {}
    device: Any = "cpu"
    for place, net in enumerate(nets):
        module = net.copy()
        device = next((t.device for t in [*module.parameters(), *module.buffers()]), torch.device("cpu"))
        x = net.input.example(1, device=device)
        runs[str(place)] = lambda module=module, x=x: module(x)  # type: ignore[misc]
    with torch.inference_mode():
        times = timing.measure(
            runs,
            budget=BUDGET if budget is None else budget,
            warmup=2,
            least=5,
            grain=GRAIN,
            device=device,
            dtype=nets[0].input.dtype,
        )
    return [times[name] for name in runs]


def _latency(times: Sequence[timing.Timing]) -> Figure:
    first, second = times
    return Figure("latency", "latency", "seconds", first, second, second.over(first))


def _border(nets: Sequence[Net], profiles: Sequence[Profile], data: Any, seed: int) -> list[Figure]:
    rows = []
    for net, profile in zip(nets, profiles, strict=True):
        last = _last_map(profile)
        if last is None:
            raise RequestError(f"border=True: {net.name} gives no map of positions; leave border out")
        found = border_effect(net, data, layers=[last.name], samples=8, seed=seed)
        rows.append(next(iter(found.layers.values())))
    return [
        Figure("border_share", "last map that touches padding", "share", rows[0].share, rows[1].share),
        Figure(
            "border_change", "change there, by padding", "share", rows[0].border_change, rows[1].border_change
        ),
    ]


def _shifted(nets: Sequence[Net], data: Any, limit: int, seed: int) -> Figure:
    move = "circular" if isinstance(data, Tensor) else "crop"  # a crop needs more picture than the input
    points = [
        shifts.consistency(net, data, moves=move, layers=(), limit=limit, seed=seed).moves[move].pooled
        for net in nets
    ]
    scores = all(point.agreement is not None for point in points)
    name, key = ("consistency", "agreement") if scores else ("cosine", "cosine")
    first, second = (getattr(point, key) for point in points)
    return Figure("consistency", f"{name} under shifts ({move})", "share", first, second)


# ---------------------------------------------------------------- several


def compare_all(
    a: Net | nn.Module,
    others: Sequence[Net | nn.Module | Rewrite],
    data: Any = None,
    *,
    cost: str = "macs",
    input: InputLike | None = None,
    **settings: Any,
) -> Comparisons:
    """A network and several made from it: which of them are worth having.

    Args:
        a: the network that the others are compared with.
        others: the others, one at least; a `Rewrite` brings the record of its edits.
        data: as for `compare`.
        cost: what is to be low: "macs", "params" or "latency" (all networks timed in turn).
        input: what to feed plain modules.
        settings: as for `compare`; by default no latency and memory.

    Returns:
        The comparisons and the points: cost against accuracy where there are labels, else against agreement with `a`.

    Raises:
        RequestError: no other network, or an unknown cost.

    Example:
        >>> import convscope
        >>> net = convscope.load("fashion")
        >>> found = compare_all(net, [convscope.rewrite(net, "kernel_size:5").net])
        >>> [point.on_front for point in found.points], found.points[1].quality
        ([True, False], 1.0)
    """
    if cost not in COSTS:
        raise RequestError(f"cost={cost!r} must be one of {', '.join(COSTS)}")
    if not others:
        raise RequestError("others is empty; give at least one network to compare with")
    subject = Subject(as_net(a, input))
    first = subject.net
    nets = [net.net if isinstance(net, Rewrite) else as_net(net, input) for net in others]
    chosen = {"latency": False, "memory": False, **settings}
    made = tuple(
        compare(subject, other if isinstance(other, Rewrite) else net, data, **chosen)
        for other, net in zip(others, nets, strict=True)
    )
    if cost == "latency":
        costs = [each.median for each in timed([first, *nets], BUDGET * (len(nets) + 1) / 2)]
    else:
        costs = [float(made[0].figures[cost].a), *(float(each.figures[cost].b) for each in made)]
    labelled = all(each.accuracy is not None for each in made)
    qualities: list[float | None] = []
    for each in made:
        if labelled and each.accuracy is not None:
            qualities = qualities or [each.accuracy.a.value]
            qualities.append(each.accuracy.b.value)
        else:
            qualities = qualities or [1.0]
            qualities.append(None if each.agreement is None else each.agreement.value)
    names = [first.name, *(net.name for net in nets)]
    points = [Point(*row) for row in zip(names, costs, qualities, strict=True)]
    return Comparisons(cost, "accuracy" if labelled else "agreement", made, marked(points))
