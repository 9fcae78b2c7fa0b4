"""The measures behind a report's page of layers, each kept in the folder: part of `tour`.

Counts, receptive fields and the flow come first and take a second; what needs many passes comes later, layer by layer,
so that the page stands from the start and fills. Pictures of maps are files beside the figures; the pages get plain
values.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from convscope import site
from convscope.algorithms.survey import machine
from convscope.data import Images, photographs
from convscope.data import images as read_images
from convscope.errors import ConvscopeError, ModelError
from convscope.features.capture import split_key
from convscope.features.picture import to_pil
from convscope.graph import Graph, layout, record
from convscope.graph.wiring import ancestors, wiring
from convscope.measures.border import border_effect
from convscope.measures.border_table import BorderLayer
from convscope.measures.consistency import consistency
from convscope.measures.effective_field import EffectiveField, effective_receptive_field
from convscope.measures.latency import latency
from convscope.measures.measure import measure
from convscope.measures.receptive_field import receptive_field
from convscope.measures.visits import visits
from convscope.models import Net
from convscope.site.scripts import finite
from convscope.store import Store

FOLDER = "layers"
FORMAT = 1  # of what is kept there; another is measured again
WORK = 4e9  # multiply-accumulates of a network for which a layer gets one gradient; smaller ones get more
SAMPLES = 8  # gradients a layer at most
PICTURES = 4  # for the border effect
PAUSE = 3.0  # seconds between two writings of the page
LOOKS = 6  # pictures whose shifts are looked at
# Control points of a dark-to-light scale, even to the eye.
_SCALE = ((26, 12, 60), (96, 22, 110), (172, 50, 96), (230, 92, 48), (252, 165, 10), (250, 250, 160))


class LayerMeasures:
    """What is known of a network's layers, in FOLDER/layers; its `store` is to be closed.

    Args:
        net: the network.
        out: the report's folder.
        data: images for what needs some; the embedded photographs by default.
        quick: only what a moment allows.
        fresh: measure again whatever the folder holds.
        seed: of every random choice.
        device: where latency is measured; that of the weights by default.
    """

    def __init__(
        self,
        net: Net,
        out: Path,
        *,
        data: str | Images | None = None,
        quick: bool = False,
        fresh: bool = False,
        seed: int = 0,
        device: str | torch.device | None = None,
    ) -> None:
        self.net, self.quick, self.seed, self.device = net, quick, seed, device
        blind = data is None and net.input.channels not in (1, 3)
        self.images = data if isinstance(data, Images) else None if blind else read_images(data)
        identity = {
            "measures": "layers",
            "format": FORMAT,
            "model": net.sha256,
            "input": net.input.to_dict(),
            "images": None if self.images is None else self.images.fingerprint,
            "settings": {"quick": quick, "seed": seed},
            "machine": machine(str(device or "cpu")),
        }
        self.store = Store.open_cache(out / FOLDER, identity, fresh=fresh)
        self.left_out: list[dict[str, str]] = []

    @cached_property
    def _graph(self) -> Graph:
        return record(self.net)

    # -- what the page shows ----------------------------------------------------------------------------------

    def value(self, state: str) -> dict[str, Any]:
        """All that is known so far, as plain values.

        Args:
            state: "running", "done" or "interrupted".

        Raises:
            ModelError: the network cannot be measured at all.
        """
        sights: dict[str, dict[str, Any]] = {}
        for piece in sorted(self.store.finished()):
            kind, _, _ = piece.partition("-")
            if kind in ("effective", "border", "visits") and piece != "border":
                kept = self.store.get(piece)
                sights.setdefault(kept["address"], {})[kind] = kept["found"]
        whole = {name: self._known(name) for name in ("latency", "border", "consistency")}
        return {
            **self._counted,
            **whole,
            "state": state,
            "sights": sights,
            "left_out": self.left_out or (self._known("complete") or {}).get("left_out", []),
        }

    def rest(self, layers: Sequence[str], tell: Callable[[str], None]) -> Iterator[None]:
        """Measures what is not there yet and yields after each piece.

        Args:
            layers: those to look at closely.
            tell: called with what is under way.
        """
        kept = self._known("complete")
        if kept is not None and kept["layers"] == list(layers):
            return
        graph = self._graph
        if self._known("latency") is None:
            tell("latency")
            yield from self._try("latency", "", self._latency)
        addresses = [graph.address(graph.call(split_key(name)[0])) for name in layers]
        if not self._has("border", addresses):
            tell("border effect")
            yield from self._try("border", "", partial(self._border, addresses))
        for number, address in enumerate(addresses):
            for kind, run in (("effective", self._effective), ("visits", self._visits)):
                piece = f"{kind}-{number:03d}"
                if piece not in self.store.finished() or self.store.get(piece)["address"] != address:
                    tell(f"{'effective field' if kind == 'effective' else 'visits'} of {address}")
                    yield from self._try(kind, address, partial(run, number, address))
        if not self.quick and not self._has("consistency", addresses):
            tell("consistency")
            yield from self._try("consistency", "", partial(self._consistency, addresses))
        self.store.put("complete", {"layers": list(layers), "left_out": self.left_out})

    @cached_property
    def _counted(self) -> dict[str, Any]:
        if "counts" not in self.store.finished():
            self.store.put("counts", finite(self._count()))
        return self.store.get("counts")

    def _has(self, measure: str, addresses: Sequence[str]) -> bool:
        """Whether a measure of several layers was of these."""
        kept = self._known(measure)
        return kept is not None and kept["looked_at"] == list(addresses)

    def _known(self, name: str) -> dict[str, Any] | None:
        return self.store.get(name) if name in self.store.finished() else None

    def _try(self, measure: str, layer: str, run: Callable[[], None]) -> Iterator[None]:
        """One piece; what cannot be measured is said on the page, and the rest goes on."""
        try:
            run()
        except ConvscopeError as error:
            self.left_out.append({"measure": measure, "layer": layer, "reason": str(error)})
        yield

    # -- the measures -----------------------------------------------------------------------------------------

    def _count(self) -> dict[str, Any]:
        graph = self._graph
        profile = measure(self.net, graph=graph)
        calls = [call for call in graph.calls if call.name and call.outputs]
        groups = {}
        for call in calls:
            if call.is_leaf:
                continue
            address = graph.address(call)
            groups[address] = {
                "kind": call.kind,
                "out": list(call.out_shapes[0]),
                "field": receptive_field(self.net, address, graph=graph).to_dict(),
            }
        return {
            "profile": profile.to_dict(),
            "wiring": wiring(graph).to_dict(),
            "inside": {
                graph.address(call): list(ancestors(graph, call)) for call in graph.calls if call.name
            },
            "groups": groups,
            "grids": {name: list(layout(graph, name).grid) for name in map(graph.address, calls)},
            "image": list(self.net.input.size),
            "photo": self._photo(),
        }

    def _photo(self) -> dict[str, Any] | None:
        """The photograph that fields are drawn over, as the network takes it."""
        if self.images is None:
            return None
        credit, chosen = None, self.images
        if self.images.source == "photographs":
            photo = next(photo for photo in photographs() if photo.name == "chelsea")
            credit, chosen = photo.to_dict(), read_images(photo.path)
        first = next(iter(chosen.batches(self.net.input, 1)))
        buffer = io.BytesIO()
        to_pil(first.images[0]).save(buffer, "WEBP", quality=90, method=4)
        self.store.write("photo.webp", buffer.getvalue())
        name = chosen.names[first.indices[0]]
        return {"file": f"{FOLDER}/photo.webp", "name": name, "credit": credit}

    def _latency(self) -> None:
        macs = self._counted["profile"]["totals"]["macs"]
        budget = min(0.5 if self.quick else 2.0, 0.1 + macs / WORK * 20)  # a small network needs no long look
        found = latency(self.net, graph=self._graph, device=self.device, budget=budget)
        self.store.put("latency", finite(found.to_dict()))

    def _border(self, addresses: Sequence[str]) -> None:
        samples = 1 if self.quick else PICTURES
        found = border_effect(self.net, self.images, samples=samples, seed=self.seed, graph=self._graph)
        rows = self._with_groups(found.layers)
        for number, address in enumerate(addresses):
            if address in rows:
                self._keep_border(number, address, rows[address])
        figures = {name: {**row.to_dict(), "profile": None} for name, row in rows.items()}
        kept = {**found.to_dict(), "layers": figures, "looked_at": list(addresses)}
        self.store.put("border", finite(kept))

    def _with_groups(self, rows: Mapping[str, BorderLayer]) -> dict[str, BorderLayer]:
        """A module that ends with one of its parts gives the same tensor as that part."""
        graph = self._graph
        by_value = {graph.call(name).outputs[0]: row for name, row in rows.items()}
        found = dict(rows)
        for call in graph.calls:
            if call.name and call.outputs and call.outputs[0] in by_value:
                found.setdefault(graph.address(call), by_value[call.outputs[0]])
        return found

    def _keep_border(self, number: int, address: str, row: BorderLayer) -> None:
        values = row.touched.double() if row.change_map is None else row.change_map
        if values.ndim != 2:
            return
        file = f"border-{number:03d}.png"
        shown = row.to_dict() | {
            "file": f"{FOLDER}/{file}",
            "most": float(values.max()),
            "measured": row.change_map is not None,
        }
        self._keep("border", number, address, shown, {file: _heat(values)})

    def _effective(self, number: int, address: str) -> None:
        macs = self._counted["profile"]["totals"]["macs"]
        most = SAMPLES // 4 if self.quick else SAMPLES
        samples = int(min(most, max(2, WORK / max(1, macs))))
        found = effective_receptive_field(
            self.net, address, self.images, samples=samples, seed=self.seed, graph=self._graph
        )
        self._keep_effective(number, address, found)

    def _keep_effective(self, number: int, address: str, found: EffectiveField) -> None:
        if found.map.ndim != 2:
            return
        file = f"effective-{number:03d}.webp"
        local = found.field.local
        shown = found.to_dict() | {
            "file": f"{FOLDER}/{file}",
            "full": [list(ends) for ends in found.field.box(found.position)],
            "local": None if local is None else [list(ends) for ends in local.box(found.position)],
        }
        self._keep("effective", number, address, shown, {file: _heat(found.map.sqrt(), veil=True, fine=True)})

    def _visits(self, number: int, address: str) -> None:
        found = visits(self.net, address, graph=self._graph)
        if found.counts.ndim != 2:
            return
        file = f"visits-{number:03d}.webp"
        shown = found.to_dict() | {"file": f"{FOLDER}/{file}"}
        self._keep("visits", number, address, shown, {file: _heat(found.relative, fine=True)})

    def _consistency(self, addresses: Sequence[str]) -> None:
        maps = [name for name in addresses if len(self._graph.call(name).out_shapes[0]) > 2]
        found = consistency(self.net, self.images, moves="circular", layers=maps, limit=LOOKS, seed=self.seed)
        self.store.put("consistency", finite({**found.to_dict(), "looked_at": list(addresses)}))

    def _keep(
        self, kind: str, number: int, address: str, found: dict[str, Any], files: dict[str, bytes]
    ) -> None:
        self.store.put(f"{kind}-{number:03d}", {"address": address, "found": finite(found)}, files)


class LayersPage:
    """The page of layers of a report under way; a context manager, at whose end the page says how it ended.

    Nothing is opened before the first `begin`: an atlas that is refused must leave the folder as it was.

    Args:
        net: the network.
        out: the report's folder.
        **settings: see `LayerMeasures`.
    """

    def __init__(self, net: Net, out: Path, **settings: Any) -> None:
        self.net, self.out, self.settings = net, out, settings
        self.measures: LayerMeasures | None = None
        self.error = ""
        self.state = "interrupted"

    def begin(self) -> None:
        """Counts the layers, the first time it is called; the page can then be shown."""
        if self.measures is None and not self.error:
            self.measures = LayerMeasures(self.net, self.out, **self.settings)
            self._write("running")

    def finish(self, layers: Sequence[str], tell: Callable[[str], None]) -> None:
        """Measures the rest; the page fills meanwhile."""
        self.begin()
        if self.measures is not None and not self.error:
            written = time.monotonic()
            for _ in self.measures.rest(layers, tell):
                if time.monotonic() - written > PAUSE:
                    self._write("running")
                    written = time.monotonic()
        self.state = "done"

    def _write(self, state: str) -> None:
        assert self.measures is not None
        try:
            value: Mapping[str, Any] = self.measures.value(state)
        except ModelError as error:  # the pictures may still be drawn
            self.error = str(error)
            value = {"error": self.error}
        site.write_layers(self.out, value)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.measures is not None:
            try:
                if not self.error:
                    self._write(self.state)
            finally:
                self.measures.store.close()


def _heat(values: Tensor, *, veil: bool = False, fine: bool = False) -> bytes:
    """A map [height, width] of values from 0 on as a picture, the largest brightest.

    Args:
        values: the map.
        veil: makes what is small transparent, to lie over a photograph.
        fine: a map of pixels as WebP; one of few positions, which is magnified, as PNG.
    """
    from PIL import Image

    share = (values / values.max().clamp_min(1e-30)).clamp(0, 1).float().cpu()  # [height, width]
    points = torch.tensor(_SCALE, dtype=torch.float32)
    place = share * (len(points) - 1)
    low = place.floor().long().clamp_max(len(points) - 2)
    part = (place - low)[..., None]
    colours = points[low] * (1 - part) + points[low + 1] * part  # [height, width, 3]
    if veil:
        colours = torch.cat([colours, (share * 255)[..., None]], -1)
    image = Image.fromarray(colours.round().to(torch.uint8).contiguous().numpy(), "RGBA" if veil else "RGB")
    buffer = io.BytesIO()
    if fine:
        image.save(buffer, "WEBP", quality=82, alpha_quality=60, method=4)
    else:
        image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
