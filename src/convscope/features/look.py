"""What one photograph does in a network: classes, first kernels, feature maps, the units that stand out, the evidence.

A channel's activation says little by itself, since channels differ in scale; where the network sees photographs, units
are ranked by how far they rise above what the embedded photographs usually give them.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from convscope import data as pictures
from convscope.data.images import to_tensor
from convscope.errors import BadInput, RequestError, UnknownName, nearest
from convscope.features.capture import Capture
from convscope.features.choose import choose, convolutions, logits
from convscope.features.ground import own_ground
from convscope.features.network import Network, prepare
from convscope.features.objectives import Channel
from convscope.features.picture import to_pil
from convscope.features.session import DrawInterrupted, Session, Settings, Wanted
from convscope.features.visualize import Meter, Progress
from convscope.graph import Graph, layout, record, resolve
from convscope.models import InputLike, Net, as_net, require_trained
from convscope.store import atomic_write

if TYPE_CHECKING:
    from PIL import Image
    from rich.table import Table

_LAYERS, _MAPS, _UNITS = 5, 4, 12
_STEPS = 48


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """One channel on the photograph.

    Attributes:
        layer, channel: which.
        map: Tensor [height, width], its activations.
        max, mean: over the map.
        where: (y, x) of the largest activation, as shares of the height and the width.
        standout: by how much the maximum rises above what photographs usually give, in units of their spread;
            None where there was nothing to compare with.
        picture: Tensor [channel, height, width], what excites the unit most, or None.
    """

    layer: str
    channel: int
    map: Tensor
    max: float
    mean: float
    where: tuple[float, float]
    standout: float | None
    picture: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Look:
    """What one photograph does in a network.

    Attributes:
        name: of the photograph.
        image: Tensor [channel, height, width] in [0, 1], as the network sees it.
        top: (class, label or None, probability), most likely first; empty where the output is no vector of scores.
        evidence: Tensor [height, width] in [0, 1]: how much each place speaks for the first class, or None.
        evidence_layer: the layer whose features were weighed.
        kernels: Tensor [filter, channel, height, width], the raw weights of the first convolution, or None.
        kernels_layer: its name.
        layers: layer -> its most active channels, first the ones that stand out most.
        units: the units that stand out most in any of the layers.
        attribution: whom to credit for an embedded photograph.
    """

    name: str
    image: Tensor
    top: tuple[tuple[int, str | None, float], ...]
    evidence: Tensor | None
    evidence_layer: str | None
    kernels: Tensor | None
    kernels_layer: str | None
    layers: Mapping[str, tuple[FeatureMap, ...]]
    units: tuple[FeatureMap, ...]
    attribution: Mapping[str, str] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without the pictures."""
        return {
            "image": {"name": self.name, "size": list(self.image.shape[-2:])},
            "top": [{"class": index, "label": label, "probability": p} for index, label, p in self.top],
            "layers": [
                {"name": name, "shape": list(maps[0].map.shape), "maps": [_plain(unit) for unit in maps]}
                for name, maps in self.layers.items()
            ],
            "units": [_plain(unit) for unit in self.units],
            "attribution": None if self.attribution is None else dict(self.attribution),
        }

    def save(self, out: str | os.PathLike[str], number: int = 0) -> dict[str, Any]:
        """Writes the pictures under OUT/look/NUMBER and returns what a page needs: plain values with file names.

        Raises:
            StoreError: no space or no permission.
        """
        folder, base = Path(out), f"look/{number}"

        def keep(name: str, image: Image.Image) -> str:
            buffer = io.BytesIO()
            image.save(buffer, "WEBP", quality=92, method=4)
            atomic_write(folder / base / name, buffer.getvalue())
            return f"{base}/{name}"

        content = self.to_dict()
        content["image"]["file"] = keep("image.webp", to_pil(self.image))
        content["evidence"] = content["kernels"] = None
        if self.evidence is not None and self.top:
            content["evidence"] = {
                "file": keep("evidence.webp", overlay(self.image, self.evidence)),
                "class": self.top[0][0],
                "label": self.top[0][1],
                "method": f"HiResCAM at {self.evidence_layer}",
            }
        if self.kernels is not None:
            content["kernels"] = {
                "layer": self.kernels_layer,
                "file": keep("kernels.webp", kernel_sheet(self.kernels)),
                "count": len(self.kernels),
                "note": f"weights {tuple(self.kernels.shape[1:])}, each scaled to its own largest value, grey is zero",
            }
        drawn: dict[tuple[str, int], str | None] = {}
        for index, (layer, maps) in enumerate(zip(content["layers"], self.layers.values(), strict=True)):
            for row, unit in zip(layer["maps"], maps, strict=True):
                row["file"] = keep(f"map-{index}-{unit.channel}.webp", heat(unit.map, self.image.shape[-2:]))
                picture = f"picture-{index}-{unit.channel}.webp"
                row["picture"] = None if unit.picture is None else keep(picture, to_pil(unit.picture))
                drawn[unit.layer, unit.channel] = row["picture"]
        for row in content["units"]:
            row["picture"] = drawn.get((row["layer"], row["channel"]))
        return content

    def __repr__(self) -> str:
        best = f", {self.top[0][1] or self.top[0][0]} {self.top[0][2]:.0%}" if self.top else ""
        return f"Look({self.name!r}{best}, {len(self.layers)} layers)"

    def __rich__(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(repr(self)), title_justify="left")
        for name in ("class", "probability"):
            table.add_column(name, justify="right" if name == "probability" else "left")
        for index, label, probability in self.top:
            table.add_row(Text(label or str(index)), f"{probability:.1%}")
        table.add_section()
        for unit in self.units[:6]:
            rise = "" if unit.standout is None else f"{unit.standout:+.1f} spreads"
            table.add_row(Text(f"{unit.layer}, channel {unit.channel}"), f"{unit.max:.3g} {rise}")
        return table

    def _repr_html_(self) -> str:
        from convscope.site import notebook

        return notebook.html(self)


@own_ground()
def look(
    net: Net | nn.Module,
    image: str | os.PathLike[str] | Image.Image | Tensor,
    *,
    input: InputLike | None = None,
    layers: str | Sequence[str] = "auto",
    maps: int = _MAPS,
    pictures_of: bool = True,
    steps: int = _STEPS,
    seed: int = 0,
    device: str | torch.device | None = None,
    random: bool = False,
    progress: Progress | None = None,
) -> Look:
    """Shows what one photograph does in a network.

    Args:
        net: a Net, or a module with `input=`.
        image: a file, the name of an embedded photograph, a PIL image, or Tensor [channel, height, width] in [0, 1].
        input: what to feed a plain module.
        layers: "auto" (five spread over the depth), or names and globs.
        maps: channels shown of each layer.
        pictures_of: also draw the picture that most excites each shown channel.
        steps: optimizer steps of such a picture.
        seed: of every random choice.
        device: where to run.
        random: allow untrained weights.
        progress: called with {"done", "total", "rate", "seconds_left", "layer"}.

    Raises:
        BadInput: the image does not fit the network's channels, or cannot be read.
        UnknownName: neither a file nor an embedded photograph.
        UnknownLayer: a name matches nothing.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> found = look(net, "chelsea", input=torch.zeros(1, 3, 64, 64), pictures_of=False)
        >>> len(found.top), found.kernels.shape
        (2, torch.Size([4, 3, 5, 5]))
    """
    net = as_net(net, input)
    require_trained(net, random)
    if maps < 1:
        raise RequestError(f"maps={maps} must be at least 1")
    graph = record(net)
    name, shown, attribution = _read(net, image)
    keys = _chosen(graph, layers)
    network = prepare(net, graph, keys, device, torch.float32)
    x = shown[None].to(network.device)
    with torch.no_grad(), network.capture(keys) as capture:
        values, _ = capture(network.feed(x))
        usual = _usual(net, network, capture)
    found = {key: _maps(key, values[key][0].float().cpu(), usual.get(key), maps) for key in keys}
    top, evidence, evidence_layer = _classify(net, network, graph, x)
    kernels, kernels_layer = _kernels(net, graph)
    if pictures_of:
        found = _with_pictures(net, graph, found, steps, seed, device, progress)
    units = _foremost(found)
    return Look(
        name, shown, top, evidence, evidence_layer, kernels, kernels_layer, found, tuple(units), attribution
    )


# -- the photograph --------------------------------------------------------------------------------------------------


def _read(net: Net, image: Any) -> tuple[str, Tensor, Mapping[str, str] | None]:
    """(name, Tensor [channel, height, width] in [0, 1] at the network's size, credits)."""
    from PIL import Image

    if isinstance(image, Tensor):
        return "tensor", _fitted(net, image), None
    if isinstance(image, Image.Image):
        return "image", _fitted(net, to_tensor(image, net.input.channels)), None
    text = os.fspath(image)
    photo = next((photo for photo in pictures.photographs() if photo.name == text), None)
    if photo is None and not os.path.exists(text):
        names = [photo.name for photo in pictures.photographs()]
        raise UnknownName(
            f"image={text!r} is neither a file nor an embedded photograph ({', '.join(names)}){nearest(text, names)}"
        )
    source = pictures.images(text if photo is None else str(photo.path))
    if len(source) != 1:
        raise RequestError(f"image={text!r} holds {len(source)} images; name one file")
    piece = next(iter(source.batches(net.input, 1)))
    return (os.path.basename(text), piece.images[0], None if photo is None else photo.to_dict())


def _fitted(net: Net, image: Tensor) -> Tensor:
    if image.ndim != 3 or image.shape[0] != net.input.channels or not image.isfinite().all():
        raise BadInput(
            f"image of shape {tuple(image.shape)} must be finite and [{net.input.channels}, height, width] in [0, 1]"
        )
    from convscope.features.session import fit

    return fit(image, net.input.size)


# -- feature maps ----------------------------------------------------------------------------------------------------


def _chosen(graph: Graph, layers: str | Sequence[str]) -> list[str]:
    if layers != "auto":
        return resolve(graph, layers)
    chosen, _ = choose(graph)
    stages = [item.layer for item in chosen if item.role == "stage"] or [item.layer for item in chosen]
    count = min(_LAYERS, len(stages))
    return [stages[round(k * (len(stages) - 1) / max(count - 1, 1))] for k in range(count)]


def _usual(net: Net, network: Network, capture: Capture) -> dict[str, tuple[Tensor, Tensor]]:
    """For each layer the median and spread of every channel's maximum over the embedded photographs."""
    if net.input.channels not in (1, 3):
        return {}
    peaks: dict[str, list[Tensor]] = {}
    for piece in pictures.images().batches(net.input, 4):
        values, _ = capture(network.feed(piece.images.to(network.device)))
        for key, value in values.items():
            peaks.setdefault(key, []).append(value.float().flatten(2).amax(2).cpu())
    seen = {key: torch.cat(parts) for key, parts in peaks.items()}  # each [photograph, channel]
    return {key: (value.median(0).values, value.std(0)) for key, value in seen.items()}


def _maps(key: str, value: Tensor, usual: tuple[Tensor, Tensor] | None, count: int) -> tuple[FeatureMap, ...]:
    """The `count` channels of value [channel, height, width] that stand out most."""
    flat = value.flatten(1)
    peak, place = flat.max(1)
    standout = None if usual is None else (peak - usual[0]) / (usual[1] + 0.05 * usual[1].mean() + 1e-6)
    order = (peak if standout is None else standout).argsort(descending=True)[:count]
    grid = value.shape[1:] if value.ndim == 3 else (1, flat.shape[1])
    found = []
    for channel in order.tolist():
        row, column = divmod(int(place[channel]), int(grid[1]))
        found.append(
            FeatureMap(
                layer=key,
                channel=channel,
                map=value[channel].reshape(*grid).clone(),
                max=float(peak[channel]),
                mean=float(flat[channel].mean()),
                where=((row + 0.5) / int(grid[0]), (column + 0.5) / int(grid[1])),
                standout=None if standout is None else float(standout[channel]),
            )
        )
    return tuple(found)


def _foremost(found: Mapping[str, tuple[FeatureMap, ...]]) -> list[FeatureMap]:
    """The units that stand out most, each layer's best few only: deep layers are sparse and would take all places."""
    share = -(-_UNITS // max(len(found), 1))
    best = [unit for maps in found.values() for unit in maps[:share]]
    return sorted(best, key=lambda unit: -(unit.max if unit.standout is None else unit.standout))[:_UNITS]


def _with_pictures(
    net: Net,
    graph: Graph,
    found: Mapping[str, tuple[FeatureMap, ...]],
    steps: int,
    seed: int,
    device: str | torch.device | None,
    progress: Progress | None,
) -> dict[str, tuple[FeatureMap, ...]]:
    """The maps with what excites each channel most beside them; after Ctrl-C those that were finished."""
    session = Session(net, list(found), Settings.default(steps, seed), device=device, graph=graph)
    meter = Meter(sum(len(maps) for maps in found.values()), progress)
    result = dict(found)
    for key, maps in found.items():
        aims = [Channel(key, unit.channel) for unit in maps]
        wanted = [Wanted(key, unit.channel, 0, aim, aim) for unit, aim in zip(maps, aims, strict=True)]
        try:
            drawn = session.draw(wanted, session.canvas([key], "auto"))
        except DrawInterrupted:
            raise KeyboardInterrupt from None
        result[key] = tuple(
            replace(unit, picture=item.image if item.unit.status != "dead" else None)
            for unit, item in zip(maps, drawn, strict=True)
        )
        meter.finished(len(maps), key)
    return result


# -- classes and evidence --------------------------------------------------------------------------------------------


def _classify(
    net: Net, network: Network, graph: Graph, x: Tensor
) -> tuple[tuple[tuple[int, str | None, float], ...], Tensor | None, str | None]:
    """The top classes, and where the evidence for the first of them lies.

    HiResCAM (Draelos and Carin, 2020): features times their gradient, summed over channels. Where only an average and a
    linear layer follow, its sum is the class score up to the bias.
    """
    head = logits(graph)
    if head is None:
        return (), None, None
    chosen, _ = choose(graph)
    maps = [item.layer for item in chosen if item.role == "stage" and min(layout(graph, item.layer).grid) > 1]
    key = maps[-1] if maps else None
    with network.capture([head] if key is None else [key, head]) as capture, torch.enable_grad():
        values, _ = capture(network.feed(x.detach().clone().requires_grad_(True)))
        scores = values[head].float().flatten(1)[0]  # [class]
        probabilities = scores.detach().softmax(0).cpu()
        best = probabilities.argsort(descending=True)[:5].tolist()
        evidence = None
        if key is not None:
            features = capture.raw[key]
            (gradient,) = torch.autograd.grad(scores[best[0]], features, allow_unused=True)
            if gradient is not None:
                product = layout(graph, key).as_map((features * gradient).detach())
                evidence = product[0].float().sum(0).clamp_min(0).cpu()  # [height, width]
                evidence = evidence / evidence.max().clamp_min(1e-12)
    labels = net.labels
    label = lambda c: labels[c] if labels is not None and c < len(labels) else None  # noqa: E731
    top = tuple((c, label(c), float(probabilities[c])) for c in best)
    return top, evidence, key


def _kernels(net: Net, graph: Graph) -> tuple[Tensor | None, str | None]:
    """Raw weights of the first two-dimensional convolution."""
    modules = dict(net.module.named_modules())
    for call in convolutions(graph):
        weight = getattr(modules[call.name], "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 4:
            return weight.detach().float().cpu().clone(), call.name
    return None, None


# -- drawing ---------------------------------------------------------------------------------------------------------


def kernel_sheet(kernels: Tensor, scale: int = 0, columns: int = 8) -> Image.Image:
    """Kernels [filter, channel, height, width] as a sheet of tiles; grey is zero, each scaled to its own largest value."""
    from PIL import Image

    shown = kernels[:64]
    tiles = [to_pil((kernel / kernel.abs().max().clamp_min(1e-12) + 1) / 2) for kernel in shown[:, :3]]
    if kernels.shape[1] not in (1, 3):  # no colour: the mean over the input channels
        tiles = [
            to_pil((k.mean(0, keepdim=True) / k.mean(0).abs().max().clamp_min(1e-12) + 1) / 2) for k in shown
        ]
    height, width = tiles[0].height, tiles[0].width
    zoom = scale or max(1, 64 // max(height, width))
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * (width * zoom + 4) + 4, rows * (height * zoom + 4) + 4), (24, 24, 27))
    for k, tile in enumerate(tiles):
        place = (4 + (k % columns) * (width * zoom + 4), 4 + (k // columns) * (height * zoom + 4))
        sheet.paste(tile.resize((width * zoom, height * zoom), Image.Resampling.NEAREST), place)
    return sheet


# Control points of a perceptually even dark-to-light scale.
_HEAT = ((0, 0, 4), (60, 15, 110), (140, 41, 129), (222, 73, 104), (254, 159, 109), (252, 253, 191))


def _colours(values: Tensor) -> Tensor:
    """Values [height, width] in [0, 1] as Tensor [3, height, width]."""
    points = torch.tensor(_HEAT, dtype=torch.float32) / 255
    place = values.clamp(0, 1) * (len(points) - 1)
    low = place.floor().long().clamp_max(len(points) - 2)
    share = (place - low)[..., None]
    return (points[low] * (1 - share) + points[low + 1] * share).movedim(-1, 0)


def heat(values: Tensor, size: Sequence[int]) -> Image.Image:
    """A feature map [height, width] as a picture of at least the given size, every position a square."""
    from PIL import Image

    low, high = float(values.min()), float(values.max())
    shown = to_pil(_colours((values - min(low, 0.0)) / max(high - min(low, 0.0), 1e-12)))
    zoom = max(1, round(min(size[0], 224) / shown.height))
    return shown.resize((shown.width * zoom, shown.height * zoom), Image.Resampling.NEAREST)


def overlay(image: Tensor, evidence: Tensor) -> Image.Image:
    """The photograph, grey and dim, with the evidence in colour."""
    size = (image.shape[-2], image.shape[-1])
    smooth = torch.nn.functional.interpolate(evidence[None, None], size, mode="bicubic", align_corners=False)[
        0, 0
    ]
    smooth = smooth.clamp(0, 1)
    grey = image.mean(0, keepdim=True).expand(3, -1, -1)
    return to_pil(grey * 0.75 * (1 - 0.65 * smooth) + 0.65 * smooth * _colours(smooth))


def _plain(unit: FeatureMap) -> dict[str, Any]:
    return {
        "layer": unit.layer,
        "channel": unit.channel,
        "max": unit.max,
        "mean": unit.mean,
        "activation": unit.max,
        "standout": unit.standout,
        "where": list(unit.where),
        "unit": None,
    }
