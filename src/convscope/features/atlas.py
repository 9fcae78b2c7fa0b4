"""`atlas`: many units of a network into one folder, resumable at any moment.

The folder is a `Store`: each batch of units is one piece, written whole or not at all, so that a killed run
continues and ends with the same files. `atlas.json` is rewritten after every batch and holds all that the pages read;
names of layers go into it as text and never into a path.
"""

from __future__ import annotations

import io
import json
import os
import platform
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import convscope
from convscope import _heap, engines
from convscope import data as pictures
from convscope.data import Images
from convscope.engines import Engine, Outcome, Task
from convscope.engines.threads import threads
from convscope.errors import ConvscopeError, ModelError, RequestError
from convscope.features import natural
from convscope.features.capture import split_key
from convscope.features.choose import Chosen, choose
from convscope.features.ground import own_ground
from convscope.features.objectives import Channel, Logit, Objective
from convscope.features.optimize import Recipe
from convscope.features.parametrization import Fourier, Parametrization
from convscope.features.session import (
    DrawInterrupted,
    Drawn,
    Session,
    Settings,
    Wanted,
    balanced,
)
from convscope.features.shards import DRAW, Batch, draw_batch, shipped
from convscope.features.transform import Robust
from convscope.features.visualize import Meter, Progress, check_seeds, describe
from convscope.graph import Graph, layout, record
from convscope.measures.receptive_field import receptive_field
from convscope.models import InputLike, Net, as_net, require_trained
from convscope.store import Store

if TYPE_CHECKING:
    from PIL import Image
    from rich.table import Table

CROP = 96  # pixels a side of a natural crop
BEST = 9  # natural crops a unit
Manifest = dict[str, Any]


@dataclass(frozen=True)
class Atlas:
    """What an atlas run ended with.

    Attributes:
        folder: where it is.
        units: units planned.
        done: units that have a record.
        dead: units that nothing excites.
        failed: units that could not be drawn; the manifest's "skipped" tells why.
        seconds: this run took; a resumed run counts only what was left.
        content: the manifest.
    """

    folder: Path
    units: int
    done: int
    dead: int
    failed: int
    seconds: float
    content: Manifest

    @property
    def manifest(self) -> Path:
        """Path of `atlas.json`."""
        return self.folder / "atlas.json"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "units": self.units,
            "done": self.done,
            "dead": self.dead,
            "failed": self.failed,
            "seconds": round(self.seconds, 3),
            "manifest": str(self.manifest),
        }

    def __repr__(self) -> str:
        return f"Atlas({self.done} of {self.units} units, {self.dead} dead, {self.failed} failed, in {str(self.folder)!r})"

    def __rich__(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(repr(self)), title_justify="left")
        for name in ("layer", "role", "channels", "drawn", "dead", "best activation"):
            table.add_column(name)
        for layer in self.content["layers"]:
            units = [unit for unit in self.content["units"] if unit["layer"] == layer["index"]]
            dead = sum(unit["status"] == "dead" for unit in units)
            best = max((unit["activation"] for unit in units if unit["activation"] is not None), default=0.0)
            cells = (
                layer["name"],
                layer["role"],
                str(layer["channels"]),
                str(len(units)),
                str(dead),
                f"{best:.3g}",
            )
            table.add_row(*(Text(cell) for cell in cells))
        return table

    def _repr_html_(self) -> str:
        from convscope.site import notebook

        return notebook.html(self)


@own_ground()
@_heap.kept()
def atlas(
    net: Net | nn.Module,
    out: str | os.PathLike[str],
    layers: str | Sequence[str] = "auto",
    channels: str | int | Sequence[int] | None = None,
    data: str | Images | None = None,
    *,
    input: InputLike | None = None,
    steps: int | None = None,
    size: str | int | tuple[int, int] = "auto",
    seeds: int = 1,
    seed: int = 0,
    parametrization: Parametrization | None = None,
    transforms: Robust | None = None,
    recipe: Recipe | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "auto",
    batch: str | int = "auto",
    quick: bool = False,
    random: bool = False,
    fresh: bool = False,
    engine: str | Engine = "inline",
    workers: int | None = None,
    address: str | None = None,
    progress: Progress | None = None,
    on_chunk: Callable[[Manifest], None] | None = None,
) -> Atlas:
    """Draws every chosen unit of a network into a folder.

    Interrupted at any point and called again with the same arguments, it continues, redoes at most the batch in
    flight, and ends with the files of an uninterrupted run.

    Args:
        net: a Net, or a module with `input=`.
        out: the folder.
        layers: "auto" (stage outputs, convolutions between them, class logits), "all" (every convolution), or
            names and globs.
        channels: None (8 spread over each layer, 16 logits; every one when layers="all"), "all", how many, or which.
        data: images whose best crops stand beside each picture; the embedded photographs by default.
        input: what to feed a plain module.
        steps: optimizer steps a picture; 128, or 32 when `quick`.
        size, seeds, seed, parametrization, transforms, recipe, device, dtype, batch, random: see `visualize`.
        quick: a quarter of the units and steps.
        fresh: start over, whatever the folder holds.
        engine: "inline" (in this process, with its threads); "process" (worker processes of this machine, one thread each)
            or "ray": batches are spread over the workers, and the files are those that one thread gives.
        workers: how many batches are drawn at a time; by default as many as there are processors.
        address: of the Ray cluster.
        progress: called with {"done", "total", "rate", "seconds_left", "layer"}.
        on_chunk: called with the manifest after every batch.

    Returns:
        Counts, and the manifest's path.

    Raises:
        StoreMismatch: the folder was made with another model or other settings, and not `fresh`.
        UntrainedWeights: the weights are known to be random and `random` is not given.
        RequestError: an argument is out of its constraint.

    Example:
        >>> import tempfile
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     atlas(net, folder, ["0", "3"], 2, input=torch.zeros(1, 3, 32, 32), steps=4).done
        4
    """
    began = time.perf_counter()
    net = as_net(net, input)
    require_trained(net, random)
    check_seeds(seeds)
    if steps is None:
        steps = 32 if quick else 128
    if quick and channels is None and layers != "all":
        channels = 3
    settings = Settings(
        parametrization or Fourier(), transforms or Robust(), recipe or Recipe(steps=steps), seed
    )
    hired = engines.get(engine, workers, address)
    with threads(None if hired.name == "inline" else 1):
        graph = record(net)
        chosen, skipped = choose(graph, layers, channels)
        images = data if isinstance(data, Images) else None if _blind(net, data) else pictures.images(data)
        session = Session(
            net,
            [item.layer for item in chosen],
            settings,
            device=device,
            dtype=dtype,
            graph=graph,
            keeps_unfinished=False,  # a batch is stored whole or not at all
        )
        request = {
            "size": list(size) if isinstance(size, tuple) else size,
            "seeds": seeds,
            "batch": batch,
            "chosen": [[item.layer, list(item.channels)] for item in chosen],
        }
        identity = _identity(net, session, settings, request, images)
        with Store.open(Path(out), identity, fresh=fresh, log="timings.jsonl") as store:
            run = _Run(store, net, session, settings, chosen, skipped, images, request, on_chunk, hired)
            run.go(progress)
            return run.result(time.perf_counter() - began)


def _blind(net: Net, data: str | Images | None) -> bool:
    """Whether there is no image to compare with: nothing given, and photographs do not fit the input."""
    return data is None and net.input.channels not in (1, 3)


def _identity(
    net: Net, session: Session, settings: Settings, request: Mapping[str, Any], images: Images | None
) -> dict[str, Any]:
    """Everything the files depend on: a folder made under another identity is refused."""
    return {
        "kind": "atlas",
        "model": net.sha256,
        "input": net.input.to_dict(),
        "settings": describe(settings),
        "request": dict(request),
        "images": None if images is None else images.fingerprint,
        "dtype": str(session.network.dtype).removeprefix("torch."),
        "device": session.network.device.type,
        "threads": torch.get_num_threads() if session.network.device.type == "cpu" else None,
        "versions": {"convscope": convscope.__version__, "torch": torch.__version__},
    }


@dataclass(frozen=True)
class _Chunk:
    """One batch of the plan."""

    piece: str
    layer: int
    size: tuple[int, int]
    units: tuple[tuple[int, int], ...]  # (channel, seed)


class _Run:
    """One call of `atlas` under way."""

    def __init__(
        self,
        store: Store,
        net: Net,
        session: Session,
        settings: Settings,
        chosen: list[Chosen],
        skipped: list[dict[str, str]],
        images: Images | None,
        request: Mapping[str, Any],
        on_chunk: Callable[[Manifest], None] | None,
        engine: Engine,
    ) -> None:
        self.engine = engine
        self.store, self.net, self.session, self.settings = store, net, session, settings
        self.chosen, self.skipped, self.images, self.request = chosen, skipped, images, request
        self.on_chunk = on_chunk
        self.graph: Graph = session.graph
        self.chunks, refused = self._plan()
        self.skipped = [*skipped, *refused]
        self.layers = self._layers()
        self.network = _network(self.graph, net, {item.layer: k for k, item in enumerate(chosen)})
        self.natural: dict[int, dict[str, Any]] = {}
        self.broken: list[dict[str, str]] = []  # images that could not be read
        self.published = self.publishing = 0.0  # when the manifest was last written, and how long that took

    # -- the plan ------------------------------------------------------------------------------------------------

    def _plan(self) -> tuple[list[_Chunk], list[dict[str, str]]]:
        """The batches; those of the first run when this one continues it, since a batch's size changes rounding."""
        if "plan" in self.store.finished():
            kept = self.store.get("plan")
            chunks = [
                _Chunk(c["piece"], c["layer"], tuple(c["size"]), tuple((u[0], u[1]) for u in c["units"]))
                for c in kept["chunks"]
            ]
            return chunks, kept["refused"]
        chunks = []
        refused: list[dict[str, str]] = []
        asked, seeds = self.request["size"], self.request["seeds"]
        size = tuple(asked) if isinstance(asked, list) else asked
        for index, item in enumerate(self.chosen):
            try:
                canvas = self.session.canvas([item.layer], size)
            except ConvscopeError as error:
                if len(self.chosen) == 1 or isinstance(error, RequestError):
                    raise
                refused.append({"layer": item.layer, "reason": str(error)})
                continue
            most = max(1, self.session.batch([item.layer], canvas, self.request["batch"]) // seeds)
            for piece in balanced(item.channels, most):
                units = tuple((channel, number) for channel in piece for number in range(seeds))
                chunks.append(_Chunk(f"units-{len(chunks):05d}", index, canvas, units))
        plain = [
            {"piece": c.piece, "layer": c.layer, "size": list(c.size), "units": [list(u) for u in c.units]}
            for c in chunks
        ]
        self.store.put("plan", {"chunks": plain, "refused": refused})
        return chunks, refused

    def _layers(self) -> list[dict[str, Any]]:
        described = []
        for index, item in enumerate(self.chosen):
            found = layout(self.graph, item.layer)
            field = receptive_field(self.net, item.layer, graph=self.graph)
            described.append(
                {
                    "index": index,
                    "name": item.layer,
                    "kind": self.graph.call(item.layer).kind,
                    "role": item.role,
                    "channels": found.channels,
                    "shape": [found.channels, *found.grid],
                    "receptive_field": field.to_dict(),
                }
            )
        return described

    # -- the work ------------------------------------------------------------------------------------------------

    def go(self, progress: Progress | None) -> None:
        """Everything that is not there yet."""
        finished = self.store.finished()
        left = [chunk for chunk in self.chunks if chunk.piece not in finished]
        total = sum(len(chunk.units) for chunk in self.chunks)
        meter = Meter(total, progress, total - sum(len(chunk.units) for chunk in left))
        self.records: dict[str, dict[str, Any]] = {
            chunk.piece: self.store.get(chunk.piece) for chunk in self.chunks if chunk.piece in finished
        }
        try:
            self._see_nature(finished)
            if self.engine.name == "inline":
                for chunk in left:
                    self._draw(chunk, meter)
            else:
                self._draw_elsewhere(left, meter)
        except BaseException as error:
            stop = isinstance(error, KeyboardInterrupt | DrawInterrupted)
            self._publish("interrupted")
            if stop:
                raise KeyboardInterrupt from None
            raise
        self._publish("done")

    def _draw(self, chunk: _Chunk, meter: Meter) -> None:
        began = time.perf_counter()
        on_segment = meter.of_batch(
            len(chunk.units), self.settings.recipe.steps, self.chosen[chunk.layer].layer
        )
        batch = draw_batch(self.session, self._all_wanted(chunk), chunk.size, on_segment)
        self._keep(chunk, batch, time.perf_counter() - began, meter)

    def _draw_elsewhere(self, left: Sequence[_Chunk], meter: Meter) -> None:
        """The batches by the engine's workers; this process alone writes."""
        chunks = {chunk.piece: chunk for chunk in left}
        lost: list[str] = []

        def keep(outcome: Outcome) -> None:
            if outcome.failure is None:
                self._keep(chunks[outcome.key], outcome.value, outcome.seconds, meter)
            else:
                lost.append(f"{self.chosen[chunks[outcome.key].layer].layer}: {outcome.failure}")

        with shipped(self.session, [item.layer for item in self.chosen], self.engine) as ship:
            tasks = [Task(chunk.piece, ship.payload(self._all_wanted(chunk), chunk.size)) for chunk in left]
            self.engine.run(DRAW, tasks, keep)
        if lost:
            raise ModelError(
                f"{len(lost)} of {len(left)} batches could not be drawn by the workers, the first of layer {lost[0]}"
            )

    def _keep(self, chunk: _Chunk, batch: Batch, seconds: float, meter: Meter) -> None:
        """A finished batch, on disk and in the manifest."""
        name = self.chosen[chunk.layer].layer
        files: dict[str, bytes] = {}
        units = [self._unit(chunk, item, files) for item in batch.drawn]
        failed = None if batch.failed is None else {"layer": name, "reason": batch.failed}
        self.records[chunk.piece] = {"units": units, "failed": failed}
        self.store.put(chunk.piece, self.records[chunk.piece], files)
        if failed is None:
            self.store.log(
                event="batch",
                piece=chunk.piece,
                layer=name,
                units=len(units),
                seconds=round(seconds, 4),
                halvings=batch.halvings,
            )
        meter.finished(len(chunk.units), name)
        self._publish("running")

    def _all_wanted(self, chunk: _Chunk) -> list[Wanted]:
        return [self._wanted(chunk, channel, number) for channel, number in chunk.units]

    def _wanted(self, chunk: _Chunk, channel: int, number: int) -> Wanted:
        item = self.chosen[chunk.layer]
        aim: Objective = (Logit if item.role == "logits" else Channel)(item.layer, channel)
        return Wanted(item.layer, channel, number, aim, aim, self._label(item, channel))

    def _label(self, item: Chosen, channel: int) -> str | None:
        labels = self.net.labels
        return (
            labels[channel]
            if item.role == "logits" and labels is not None and channel < len(labels)
            else None
        )

    def _unit(self, chunk: _Chunk, item: Drawn, files: dict[str, bytes]) -> dict[str, Any]:
        """The unit's record; its picture goes into `files`."""
        kept = self.natural.get(chunk.layer, {}).get(str(item.unit.channel))
        unit = item.unit
        if kept is not None:
            judged = natural.judge(item, natural.from_record(kept)).unit
            unit = replace(judged, seconds=0.0)
        image = None
        if unit.status != "dead":
            image = f"images/{chunk.layer:03d}/{unit.channel:05d}-{unit.seed}.webp"
            files[image] = _webp(item.image)
        record = unit.to_dict()
        for name in ("seconds", "natural_max", "ratio", "percentile"):
            record.pop(name)  # a time is no result; the rest stands under "natural"
        for name in ("activation", "robust", "peak"):
            record[name] = _finite(record[name])
        record["curve"] = [[step, _finite(value)] for step, value in record["curve"]]
        shown = None
        if kept is not None:
            extra = {name: kept[name] for name in kept if name not in ("peaks", "means")}
            shown = extra | {"ratio": unit.ratio, "percentile": unit.percentile}
        return record | {
            "id": f"{chunk.layer}/{unit.channel}/{unit.seed}",
            "layer": chunk.layer,
            "image": image,
            "size": list(chunk.size),
            "natural": shown,
            "command": self._command(chunk, unit.channel),
            "python": self._python(chunk, unit.channel),
        }

    def _command(self, chunk: _Chunk, channel: int) -> str | None:
        """The line that remakes the picture, where the model and the settings can be said on a command line."""
        source, weights = self._origin()
        if source == "module" or self._unusual():
            return None
        words = ["convscope", "visualize", source, self.chosen[chunk.layer].layer, "--channels", str(channel)]
        words += ["--size", f"{chunk.size[0]}x{chunk.size[1]}", "--steps", str(self.settings.recipe.steps)]
        words += ["--seed", str(self.settings.seed), "--seeds", str(self.request["seeds"])]
        if not source.startswith("embedded"):
            words += ["--input", "x".join(str(n) for n in self.net.input.shape)]
        words += ["--weights", weights] if weights else []
        words += ["--random"] if self.net.trained is False else []
        return shlex.join(words)

    def _python(self, chunk: _Chunk, channel: int) -> str:
        source, weights = self._origin()
        given = "" if weights is None else f", weights={weights!r}"
        loaded = "net" if source == "module" else f"convscope.load({source!r}{given})"
        arguments = [loaded, repr(self.chosen[chunk.layer].layer), str(channel), f"size={chunk.size}"]
        arguments += [f"steps={self.settings.recipe.steps}", f"seeds={self.request['seeds']}"]
        arguments += [f"seed={self.settings.seed}", *self._unusual()]
        arguments += ["random=True"] if self.net.trained is False else []
        return f"import convscope\n\nconvscope.visualize({', '.join(arguments)})"

    def _origin(self) -> tuple[str, str | None]:
        """What to load, and the name of the weights file given with it."""
        source, _, weights = self.net.source.partition(" with weights ")
        return source, weights or None

    def _unusual(self) -> list[str]:
        """Arguments for the settings that are not the default ones."""
        usual = Settings.default(self.settings.recipe.steps, self.settings.seed)
        pairs = {"parametrization": "parametrization", "transforms": "robust", "recipe": "recipe"}
        changed = {name: getattr(self.settings, own) for name, own in pairs.items()}
        return [
            f"{name}={value!r}" for name, value in changed.items() if value != getattr(usual, pairs[name])
        ]

    # -- natural images ------------------------------------------------------------------------------------------

    def _see_nature(self, finished: set[str]) -> None:
        """One pass over the images for all units; one piece a layer."""
        if self.images is None:
            return
        names = [f"natural-{index:03d}" for index in range(len(self.chosen))]
        if any(name not in finished for name in names):
            began = time.perf_counter()
            units = [(item.layer, channel) for item in self.chosen for channel in item.channels]
            found = natural.scan(self.net, self.session.network, units, self.images, best=BEST)
            opened: dict[int, Image.Image] = {}
            for index, item in enumerate(self.chosen):
                if names[index] not in finished:
                    record, files = self._natural_piece(index, item, found, opened)
                    self.store.put(names[index], record, files)
            self.store.log(
                event="images", images=len(self.images), seconds=round(time.perf_counter() - began, 4)
            )
        kept = [self.store.get(name) for name in names]
        self.natural = {index: piece["units"] for index, piece in enumerate(kept)}
        self.broken = kept[0]["broken"]

    def _natural_piece(
        self,
        index: int,
        item: Chosen,
        found: Mapping[tuple[str, int], natural.Natural],
        opened: dict[int, Image.Image],
    ) -> tuple[dict[str, Any], dict[str, bytes]]:
        from PIL import Image

        assert self.images is not None
        units: dict[str, Any] = {}
        files: dict[str, bytes] = {}
        for channel in item.channels:
            seen = found.get((item.layer, channel))
            if seen is None:  # nothing but NaN
                continue
            strip = Image.new("RGB", (CROP * len(seen.examples), CROP))
            for k, example in enumerate(seen.examples):
                if example.index not in opened:
                    if len(opened) >= 64:  # photographs are large; keep the last ones only
                        opened.pop(next(iter(opened)))
                    opened[example.index] = self.images[example.index].image
                strip.paste(natural.crop(opened[example.index], example.box, CROP), (CROP * k, 0))
            path = f"crops/{index:03d}/{channel:05d}.webp"
            files[path] = _encode(strip)
            units[str(channel)] = natural.to_record(seen) | {"crops": path, "count": len(seen.examples)}
        broken = [{"image": image.name, "reason": image.reason} for image in self.images.broken]
        return {"units": units, "broken": broken}, files

    # -- the manifest --------------------------------------------------------------------------------------------

    def _publish(self, state: str) -> None:
        """Writes the manifest; while running in at most a twentieth of the time, since it grows with the atlas."""
        self.content = self._manifest(state)
        began = time.perf_counter()
        if state != "running" or began - self.published >= 20 * self.publishing:
            self._write_manifest()
            self.published = time.perf_counter()
            self.publishing = self.published - began
        if self.on_chunk is not None:
            self.on_chunk(self.content)

    def _write_manifest(self) -> None:
        self.store.write(
            "atlas.json", json.dumps(self.content, indent=1, ensure_ascii=False, allow_nan=False)
        )

    def _manifest(self, state: str) -> Manifest:
        units = [
            unit for chunk in self.chunks for unit in self.records.get(chunk.piece, {"units": []})["units"]
        ]
        failed = [
            record["failed"]
            for chunk in self.chunks
            if (record := self.records.get(chunk.piece)) and record["failed"]
        ]
        net = self.net.to_dict()
        attributions = []
        if self.images is not None and self.images.source == "photographs":
            attributions = [photo.to_dict() for photo in pictures.photographs()]
        return {
            "format": 1,
            "state": state,
            "planned": sum(len(chunk.units) for chunk in self.chunks),
            "net": net,
            "settings": describe(self.settings)
            | {
                "dtype": str(self.session.network.dtype).removeprefix("torch."),
                "device": self.session.network.device.type,
                "seeds": self.request["seeds"],
                "folded_batch_norms": self.session.network.folded,
                "images": None if self.images is None else self.images.source,
            },
            "chunks": [
                {"piece": c.piece, "layer": c.layer, "size": list(c.size), "units": len(c.units)}
                for c in self.chunks
            ],
            "versions": {
                "convscope": convscope.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
            "network": self.network,
            "layers": self.layers,
            "units": units,
            "attributions": attributions,
            "skipped": [*self.skipped, *failed],
            "broken_images": self.broken,
        }

    def result(self, seconds: float) -> Atlas:
        units = self.content["units"]
        failed = self.content["planned"] - len(units)
        dead = sum(unit["status"] == "dead" for unit in units)
        return Atlas(
            self.store.folder, self.content["planned"], len(units), dead, failed, seconds, self.content
        )


def _network(graph: Graph, net: Net, shown: Mapping[str, int]) -> list[dict[str, Any]]:
    """The module calls in the order they were entered: a module before its parts."""
    modules = dict(net.module.named_modules())
    first: dict[int, int] = {}
    for call in graph.calls:  # children complete first: a module enters just before its first part
        place = first.setdefault(call.order, call.order)
        if call.parent is not None:
            first[call.parent] = min(first.get(call.parent, place), place)
    ordered = sorted(
        (call for call in graph.calls if call.name), key=lambda call: (first[call.order], call.depth)
    )
    addresses = {split_key(name)[0]: index for name, index in shown.items()}
    by_call = {graph.call(name).order: index for name, index in addresses.items()}
    return [
        {
            "name": call.address,
            "kind": call.kind,
            "depth": call.depth,
            "leaf": call.is_leaf,
            "out_shape": list(call.out_shapes[0]) if call.out_shapes else [],
            "params": sum(p.numel() for p in modules[call.name].parameters()),
            "layer": by_call.get(call.order),
        }
        for call in ordered
    ]


def _finite(value: float | None) -> float | None:
    """JSON has no NaN."""
    return value if value is not None and abs(value) != float("inf") and value == value else None


def _webp(image: Tensor) -> bytes:
    """A picture [channel, height, width] as WebP; one channel as grey, more than three as their first three."""
    from convscope.features.picture import to_pil

    return _encode(to_pil(image))


def _encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=90, method=4)
    return buffer.getvalue()
