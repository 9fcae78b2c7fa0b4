"""Where two networks begin to differ, and how the difference grows: layers of the same name on the same images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convscope.errors import ModelError
from convscope.graph import Call, Graph
from convscope.graph.record import flatten
from convscope.measures.figures import Estimate, mean, share
from convscope.measures.samples import Meter, Progress, quiet, tapped
from convscope.models import Net
from convscope.rewrites.feed import Feed
from convscope.rewrites.paired import Accuracy

_MAPS = 256 * 2**20  # bytes of one network's maps to hold at once


@dataclass(frozen=True)
class LayerDifference:
    """How far one layer gives something else in the second network.

    Attributes:
        layer: its name, with `#k` where it is called several times.
        kinds: its class in either network.
        rms: root mean square of the difference, relative to that of the first network's output; 0 where both are.
        largest: largest difference, relative to the first network's largest output.
    """

    layer: str
    kinds: tuple[str, str]
    rms: float
    largest: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"layer": self.layer, "kinds": list(self.kinds), "rms": self.rms, "max": self.largest}


@dataclass(frozen=True)
class OutputDifference:
    """How far the outputs of two networks differ on the same images.

    Attributes:
        max: largest difference.
        relative: the same, relative to the first network's largest output.
        rms: root mean square of the difference, relative to that of the first network's output.
        cosine: of the angle between the two outputs, averaged over images.
        agreement: share of images with the same top-1 class; None where the output is no class scores.
    """

    max: float
    relative: float
    rms: float
    cosine: Estimate
    agreement: Estimate | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "max": self.max,
            "relative": self.relative,
            "rms": self.rms,
            "cosine": self.cosine.to_dict(),
            "agreement": None if self.agreement is None else self.agreement.to_dict(),
        }


@dataclass(frozen=True)
class Found:
    """What a run over the images gave.

    Attributes:
        images: how many there were.
        outputs: how far the outputs differ; None where their shapes do.
        accuracy: of both; None without labels or class scores.
        layers: in the order in which they ran in the first network.
        active: of layers that give maps, how strongly each channel of the first network responds: its largest value on an
            image, averaged over images, Tensor [channel].
        apart: layers of the same name that give maps of different shapes: name -> the two shapes.
        notes: what the reader should know.
    """

    images: int
    outputs: OutputDifference | None
    accuracy: Accuracy | None
    layers: tuple[LayerDifference, ...]
    active: Mapping[str, Tensor]
    apart: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    notes: tuple[str, ...]


class _Sums:
    def __init__(self) -> None:
        self.difference = self.power = self.largest = self.scale = 0.0
        self.peaks: Tensor | None = None  # [channel], summed over images

    def add(self, first: Tensor, second: Tensor) -> None:
        """Adds the values of some images."""
        if not first.numel():
            return
        apart = (first.float() if first.dtype.itemsize < 4 else first) - second
        self.difference += float(apart.square().sum(dtype=torch.float64))
        self.power += float(first.square().sum(dtype=torch.float64))
        self.largest = max(self.largest, float(apart.abs().max()))
        self.scale = max(self.scale, float(first.abs().max()))
        if first.ndim == 4 and first.shape[2] * first.shape[3] > 1:
            peaks = first.amax((2, 3)).float().sum(0).cpu()
            self.peaks = peaks if self.peaks is None else self.peaks + peaks

    @property
    def rms(self) -> float:
        return math.sqrt(self.difference / max(self.power, 1e-60)) if self.difference else 0.0

    @property
    def relative(self) -> float:
        return self.largest / max(self.scale, 1e-30) if self.largest else 0.0


def run(
    nets: tuple[Net, Net],
    graphs: tuple[Graph, Graph],
    feed: Feed,
    layers: bool = True,
    batch: int = 16,
    progress: Progress | None = None,
) -> Found:
    """Runs both networks on all images, side by side.

    Raises:
        ModelError: one of them fails, or gives no tensor, or values that are not finite.
    """
    calls = _shared(graphs) if layers else {}
    a_picture = sum(graphs[0].values[first.outputs[0]].size for first, _ in calls.values())
    size = max(1, min(batch, _MAPS // max(a_picture, 1)))
    meter = Meter(len(feed), progress)
    modules = [net.copy() for net in nets]
    sums = {address: _Sums() for address in calls}
    apart: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    outputs: list[tuple[Tensor, Tensor]] = []
    places: list[int] = []
    with quiet():
        for indices, inputs in feed.batches(size):
            maps: dict[str, Tensor] = {}

            def keep(address: str, y: Tensor, maps: dict[str, Tensor] = maps) -> None:
                maps[address] = y.clone()  # the network may go on in place

            def match(address: str, z: Tensor, maps: dict[str, Tensor] = maps) -> None:
                y = maps.pop(address, None)
                if y is None or not y.is_floating_point():
                    return
                if y.shape != z.shape:
                    apart.setdefault(address, (tuple(y.shape[1:]), tuple(z.shape[1:])))
                else:
                    sums[address].add(y, z.to(y.device))

            with tapped(modules[0], {name: pair[0] for name, pair in calls.items()}, keep):
                first = _answer(nets[0], modules[0], inputs[0])
            with tapped(modules[1], {name: pair[1] for name, pair in calls.items()}, match):
                second = _answer(nets[1], modules[1], inputs[1])
            outputs.append((first, second))
            places += indices
            meter.finished(len(indices), "images")
    rows = tuple(
        LayerDifference(address, (calls[address][0].kind, calls[address][1].kind), each.rms, each.relative)
        for address, each in sums.items()
        if address not in apart
    )
    notes = list(feed.notes)
    told = _told(outputs, None if feed.labels is None else feed.labels[places], nets, notes)
    active = {
        address: each.peaks / len(places)
        for address, each in sums.items()
        if each.peaks is not None and address not in apart
    }
    return Found(len(places), *told, rows, active, apart, tuple(notes))


def _shared(graphs: tuple[Graph, Graph]) -> dict[str, tuple[Call, Call]]:
    """The calls of the same address in both that are layers in at least one, in the first one's order."""
    second = {graphs[1].address(call): call for call in graphs[1].calls if call.outputs}
    found = {}
    for call in graphs[0].calls:
        address = graphs[0].address(call)
        other = second.get(address)
        if call.name and call.outputs and other is not None and (call.is_leaf or other.is_leaf):
            found[address] = (call, other)
    return found


def _answer(net: Net, module: nn.Module, x: Tensor) -> Tensor:
    device = next((t.device for t in [*module.parameters(), *module.buffers()]), torch.device("cpu"))
    try:
        result = module(x.to(device))
    except Exception as error:  # the network's own code: anything may come
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{net.name} failed on a batch of shape {list(x.shape)} ({type(error).__name__}: {reason}); give data that it "
            "takes"
        ) from error
    for tensor in flatten(result):
        if tensor.is_floating_point() and tensor.ndim and len(tensor) == len(x):
            if not bool(tensor.isfinite().all()):
                raise ModelError(
                    f"{net.name} gives values that are not finite; find the layer with convscope measure --health"
                )
            return tensor.detach().cpu().clone()
    raise ModelError(
        f"{net.name} gives no tensor with a row for each image; wrap it in a module that returns one"
    )


def _told(
    outputs: Sequence[tuple[Tensor, Tensor]], labels: Tensor | None, nets: tuple[Net, Net], notes: list[str]
) -> tuple[OutputDifference | None, Accuracy | None]:
    firsts, seconds = [y for y, _ in outputs], [z for _, z in outputs]
    if firsts[0].shape[1:] != seconds[0].shape[1:]:
        shapes = [list(each[0].shape[1:]) for each in (firsts, seconds)]
        notes.append(f"the outputs have the shapes {shapes[0]} and {shapes[1]}, and are not compared")
        return None, None
    sums = _Sums()
    cosines = []
    for y, z in outputs:
        sums.add(y, z)
        flat = [each.flatten(1).double() for each in (y, z)]
        norms = flat[0].norm(dim=1) * flat[1].norm(dim=1)
        cosines.append(torch.where(norms > 0, (flat[0] * flat[1]).sum(1) / norms.clamp_min(1e-300), 1.0))
    y, z = torch.cat(firsts), torch.cat(seconds)
    scores = y.ndim == 2 and y.shape[1] >= 2
    top = [each.argmax(1) for each in (y, z)] if scores else []
    agreement = share((top[0] == top[1])[:, None]) if scores else None
    cosine = mean(torch.cat(cosines)[:, None].clamp(-1, 1))
    difference = OutputDifference(sums.largest, sums.relative, sums.rms, cosine, agreement)
    return difference, _accuracy(top, y.shape[-1], labels, nets, notes)


def _accuracy(
    top: Sequence[Tensor], classes: int, labels: Tensor | None, nets: tuple[Net, Net], notes: list[str]
) -> Accuracy | None:
    if labels is None:
        return None
    if not top:
        notes.append(f"no accuracy: the output of {nets[0].name} is no class scores")
        return None
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        notes.append(
            f"no accuracy: labels go from {int(labels.min())} to {int(labels.max())}, of {classes} classes"
        )
        return None
    right = [each == labels for each in top]
    return Accuracy(
        len(labels),
        share(right[0][:, None]),
        share(right[1][:, None]),
        int((right[0] & ~right[1]).sum()),
        int((right[1] & ~right[0]).sum()),
    )
