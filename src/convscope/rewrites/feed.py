"""The same images for several networks, each fitted to the input it takes, and their labels where there are any."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from convscope import data as pictures
from convscope.errors import BadInput, RequestError
from convscope.models import Net

NOISE = 16  # random inputs, for networks that no photograph fits


class Feed:
    """Images for networks that are compared.

    Args:
        nets: the networks; the first one's class names give class folders their meaning.
        data: None for the embedded photographs (noise where the networks take no pictures); a file, folder or `Images`;
            or a Tensor [image, channel, height, width] of network input, which all of them take as it is.
        labels: the right class of each image: whole numbers in order of the images, or name -> number or class name.
            By default class folders, where their names are the network's.
        limit: at most so many images: evenly spread over the sorted names of files, drawn by chance from a tensor.
        seed: of the noise, and of the choice from a tensor.

    Attributes:
        source: what the images are.
        labels: the right class of each image, or None.
        notes: what the reader should know.

    Raises:
        BadInput: images that do not fit a network.
        RequestError: labels that do not fit the images.
    """

    def __init__(
        self, nets: Sequence[Net], data: Any = None, labels: Any = None, limit: int = 256, seed: int = 0
    ) -> None:
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise RequestError(f"limit={limit!r} must be a whole number from 1")
        self.nets, self.notes = nets, list[str]()
        self._tensor: Tensor | None = None
        channels = {net.input.channels for net in nets}
        if data is None and not channels <= {1, 3}:
            same = {net.input.shape for net in nets}
            if len(same) > 1:
                raise BadInput(
                    "data= is missing: the networks take different inputs, and no photograph fits them"
                )
            data = nets[0].input.example(NOISE, seed=seed)
            self.source = "random noise"
        if isinstance(data, Tensor):
            for net in nets:
                if data.ndim != 4 or data.shape[1] != net.input.channels or not len(data):
                    raise BadInput(
                        f"data of shape {list(data.shape)} must be [image, {net.input.channels}, height, width] of network "
                        f"input for {net.name}"
                    )
            # by chance: even steps would miss classes that take turns, and the first ones classes that come in blocks
            order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
            picked = order[:limit].sort().values
            self._tensor = data.detach()[picked]
            self.source = getattr(self, "source", "tensor")
            self._count = len(picked)
            known = None if labels is None else _listed(labels, len(data))
            self.labels = None if known is None else known[picked]
            return
        every = pictures.images(data)
        self._images = pictures.images(every, limit=limit)
        self.source, self._count = str(every.source), len(self._images)
        self.labels = self._named(every.names, labels)

    def __len__(self) -> int:
        return self._count

    def batches(self, size: int) -> Iterator[tuple[list[int], list[Tensor]]]:
        """Places of the images, and the input of each network, [batch, channel, height, width]."""
        if self._tensor is not None:
            for start in range(0, len(self._tensor), size):
                part = self._tensor[start : start + size]
                yield list(range(start, start + len(part))), [part.to(net.input.dtype) for net in self.nets]
            return
        specs = [net.input for net in self.nets]
        alike = [specs.index(spec) for spec in specs]  # those that take the same input are fed it once
        streams = {place: self._images.batches(specs[place], size) for place in dict.fromkeys(alike)}
        for pieces in zip(*streams.values(), strict=True):
            found = dict(zip(streams, pieces, strict=True))
            inputs = {
                place: specs[place].normalize(piece.images).to(specs[place].dtype)
                for place, piece in found.items()
            }
            yield list(pieces[0].indices), [inputs[place] for place in alike]
        if self._images.broken:
            first = self._images.broken[0]
            self.notes.append(
                f"{len(self._images.broken)} files could not be read; the first, {first.name!r}, {first.reason}"
            )

    # -- labels --------------------------------------------------------------------------------------------

    def _named(self, every: Sequence[str], labels: Any) -> Tensor | None:
        """Of image files: as given, or by their folders."""
        names = self._images.names
        if isinstance(labels, Mapping):
            missing = next((name for name in names if name not in labels), None)
            if missing is not None:
                raise RequestError(f"labels has no entry for image {missing!r}; give one for each image")
            return torch.tensor([self._number(labels[name]) for name in names])
        if labels is not None:
            by_name = dict(zip(every, _listed(labels, len(every)).tolist(), strict=True))
            return torch.tensor([by_name[name] for name in names])
        folders = [name.partition("/")[0] if "/" in name else None for name in names]
        if not any(folders):
            return None
        classes = self._classes(sorted({folder for folder in folders if folder is not None}))
        if classes is None:
            return None
        stray = next((name for name, folder in zip(names, folders, strict=True) if folder is None), None)
        if stray is not None:
            self.notes.append(f"no accuracy: image {stray!r} lies in no class folder")
            return None
        return torch.tensor([classes[folder] for folder in folders if folder is not None])

    def _number(self, value: Any) -> int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        known = _plain_names(self.nets[0].labels or ())
        if not isinstance(value, str) or _plain(value) not in known:
            raise RequestError(
                f"label {value!r} must be a class number, or one of the class names of {self.nets[0].name}"
            )
        return known[_plain(value)]

    def _classes(self, folders: Sequence[str]) -> dict[str, int] | None:
        """Folder -> class; None, with a note, where the folders are no classes of the network."""
        labels = self.nets[0].labels
        if labels is None:
            self.notes.append(
                f"no accuracy: {self.nets[0].name} has no class names to tell the folders' classes by; give labels="
            )
            return None
        known = _plain_names(labels)
        odd = [folder for folder in folders if _plain(folder) not in known]
        if odd:
            self.notes.append(
                f"no accuracy: folder {odd[0]!r} is no class of {self.nets[0].name} ({len(odd)} of {len(folders)} are "
                "none); name folders by classes, or give labels="
            )
            return None
        return {folder: known[_plain(folder)] for folder in folders}


def _listed(labels: Any, count: int) -> Tensor:
    try:
        found = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        found = torch.empty(0)
    if found.shape != (count,) or found.is_floating_point() or found.dtype == torch.bool:
        raise RequestError(
            f"labels must be {count} whole numbers, one for each image in order; got {type(labels).__name__} of shape "
            f"{list(found.shape)}"
        )
    return found.long().cpu()


def _plain(name: str) -> str:
    """A class name as folders are named after it: `T-shirt/top` is in a folder `t_shirt_top`."""
    return re.sub(r"[^a-z0-9]+", " ", name.lower()).strip()


def _plain_names(labels: Sequence[str]) -> dict[str, int]:
    return {_plain(label): place for place, label in enumerate(labels)}
