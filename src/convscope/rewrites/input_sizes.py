"""All ways of `InputSize` compared on images: how often they agree, how often they are right, what they cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from convscope import data as pictures
from convscope import timing
from convscope.errors import BadInput, RequestError
from convscope.measures.measure import measure
from convscope.models import InputLike, Net, as_net
from convscope.rewrites.input_size import WAYS, InputSize
from convscope.rewrites.rewrite import rewrite

if TYPE_CHECKING:
    from rich.table import Table

BATCH = 8


@dataclass(frozen=True)
class WayRow:
    """One way to take images of the new size.

    Attributes:
        how: the way.
        agreement: share of images whose largest score is that of the same class as when they are resized.
        correct: how many have the largest score at their label; None without labels.
        accuracy: the same as a share.
        macs: multiply-accumulates of one image.
        latency: of one image, timed in turn with the other ways.
        notes: what was done.
        reason: why the way was refused, or None.
    """

    how: str
    agreement: float | None = None
    correct: int | None = None
    accuracy: float | None = None
    macs: int | None = None
    latency: timing.Timing | None = None
    notes: tuple[str, ...] = ()
    reason: str | None = None


@dataclass(frozen=True)
class InputSizes:
    """All ways, side by side.

    Attributes:
        name: the network's.
        made_for: (height, width) it was made for.
        size: (height, width) of the images.
        images: how many of them.
        rows: one a way.
        nets: how -> the rewritten network.
        predictions: how -> class of the largest score of each image.
    """

    name: str
    made_for: tuple[int, int]
    size: tuple[int, int]
    images: int
    rows: tuple[WayRow, ...]
    nets: dict[str, Net] = field(repr=False)
    predictions: dict[str, Tensor] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        rows = []
        for row in self.rows:
            latency = None if row.latency is None else row.latency.to_dict()
            rows.append({**asdict(row), "latency": latency, "notes": list(row.notes)})
        return {
            "name": self.name,
            "made_for": list(self.made_for),
            "size": list(self.size),
            "images": self.images,
            "rows": rows,
        }

    @property
    def _title(self) -> str:
        (a, b), (c, d) = self.made_for, self.size
        return f"{self.name}, made for {a}x{b}, on {self.images} images of {c}x{d}"

    def __rich__(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(self._title), title_justify="left")
        for head in HEADS:
            table.add_column(head, justify="left" if head in ("how", "notes") else "right")
        for row in self.rows:
            table.add_row(*map(Text, _cells(row)))
        return table

    def _repr_html_(self) -> str:
        heads = "".join(f"<th>{head}</th>" for head in HEADS)
        rows = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in _cells(row)) + "</tr>"
            for row in self.rows
        )
        return f"<table><caption>{escape(self._title)}</caption><tr>{heads}</tr>{rows}</table>"


HEADS = ("how", "agrees with resize", "top-1", "MACs", "latency", "notes")


def _cells(row: WayRow) -> tuple[str, ...]:
    if row.reason is not None:
        return row.how, "", "", "", "", f"refused: {row.reason}"
    share = lambda value: "" if value is None else f"{100 * value:.1f} %"  # noqa: E731
    macs = "" if row.macs is None else f"{row.macs / 1e6:,.0f} M"
    latency = "" if row.latency is None else str(row.latency)
    return row.how, share(row.agreement), share(row.accuracy), macs, latency, "; ".join(row.notes)


def input_sizes(
    net: Net | nn.Module,
    height: int,
    width: int,
    data: Any,
    labels: Sequence[int] | None = None,
    *,
    input: InputLike | None = None,
    limit: int | None = None,
    budget: float = 5.0,
) -> InputSizes:
    """Runs a network on images of another size in every way there is, and compares what comes of it.

    Args:
        net: a Net that gives one score a class, or a module with `input=`.
        height, width: of the images, in pixels.
        data: a file, a folder, `Images`, or a Tensor [image, channel, height, width] of network input. Of image files
            the largest centred part with these proportions is shown.
        labels: class of each image of `data`, in the order of its names. Without, the class folders of `data` are
            taken, where they are as many as the network has classes, or named as its labels.
        input: what to feed a plain module.
        limit: at most so many images, evenly spread.
        budget: seconds of timing.

    Raises:
        BadInput: a tensor of another size.
        RequestError: labels that do not match the images, or a network that takes this size already.

    Example:
        >>> module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
        >>> found = input_sizes(module, 20, 22, torch.randn(4, 3, 20, 22), [0, 1, 2, 3], input="3x16x16", budget=0)
        >>> [(row.how, row.macs) for row in found.rows]
        [('resize', 21188), ('crop', 21188), ('pad', 21188), ('tiles', 84752), ('native', 38900)]
    """
    subject = as_net(net, input)
    if subject.input.size == (height, width):
        raise RequestError(f"{subject.name} takes {height}x{width} already; give another size.")
    batches, truth, count = _images(subject, (height, width), data, labels, limit)
    made = {how: rewrite(subject, InputSize(height, width, how)) for how in WAYS}
    nets = {how: one.net for how, one in made.items() if one.done}
    predictions: dict[str, list[Tensor]] = {how: [] for how in nets}
    with torch.no_grad():
        for x in batches():
            for how, one in nets.items():
                predictions[how].append(_scores(one, x).argmax(1))
        classes = {how: torch.cat(parts) for how, parts in predictions.items()}
        example = subject.input.with_size(height, width).example()
        runs = {how: partial(one.module, example) for how, one in nets.items()}
        times = timing.measure(runs, budget=budget, least=3)
    rows = []
    for how, rewritten in made.items():
        (edit,) = rewritten.edits
        if edit.refused:
            rows.append(WayRow(how, reason=edit.reason))
            continue
        right = None if truth is None else int((classes[how] == truth).sum())
        rows.append(
            WayRow(
                how,
                agreement=float((classes[how] == classes["resize"]).float().mean()),
                correct=right,
                accuracy=None if right is None else right / count,
                macs=measure(rewritten.net, fields=False, training=False).totals.macs,
                latency=times[how],
                notes=edit.notes[:-1] if how == "native" else (),
            )
        )
    return InputSizes(subject.name, subject.input.size, (height, width), count, tuple(rows), nets, classes)


def _scores(net: Net, x: Tensor) -> Tensor:
    y = net.module(x)
    if not isinstance(y, Tensor) or y.ndim != 2:
        shape = list(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise RequestError(f"{net.name} gives {shape}, where one score a class is needed.")
    return y


def _images(
    net: Net, size: tuple[int, int], data: Any, labels: Sequence[int] | None, limit: int | None
) -> tuple[Callable[[], Any], Tensor | None, int]:
    """Batches of network input, the class of each image or None, and their number."""
    spec = net.input.with_size(*size)
    if isinstance(data, Tensor):
        if data.ndim != 4 or tuple(data.shape[1:]) != spec.shape or not len(data):
            raise BadInput(
                f"data of shape {tuple(data.shape)} must be [image, {', '.join(map(str, spec.shape))}]."
            )
        picked = _picked(len(data), limit)
        x = data.detach()[picked].to(spec.dtype)
        return lambda: x.split(BATCH), _truth(labels, len(data), picked), len(x)
    every = pictures.images(data)
    picked = _picked(len(every), limit)
    chosen = pictures.images(every, limit=limit)
    if labels is None:
        labels = _folders(net, every)
    found = list(
        chosen.batches(spec, batch=BATCH)
    )  # decoded once: fitting pictures costs more than keeping them
    read = [index for batch in found for index in batch.indices]
    truth = _truth(labels, len(every), [picked[index] for index in read])
    return lambda: (spec.normalize(batch.images).to(spec.dtype) for batch in found), truth, len(read)


def _picked(count: int, limit: int | None) -> list[int]:
    if limit is None or count <= limit:
        return list(range(count))
    return [position * count // limit for position in range(limit)]


def _truth(labels: Sequence[int] | None, count: int, picked: list[int]) -> Tensor | None:
    if labels is None:
        return None
    if len(labels) != count:
        raise RequestError(f"labels are {len(labels)}, and data holds {count} images; give one for each.")
    return torch.tensor([int(labels[index]) for index in picked])


def _folders(net: Net, images: pictures.Images) -> Sequence[int] | None:
    """The class of each image by its folder, where that can be told."""
    names = [name.partition("/")[0] for name in images.names]
    known = list(net.labels or ())
    if images.labels and all(name in known for name in images.labels):
        return [known.index(name) for name in names]
    if images.labels and len(images.labels) == len(known):
        order = {name: index for index, name in enumerate(images.labels)}
        return [order[name] for name in names]
    return None
