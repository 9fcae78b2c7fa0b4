"""Labelled picture files of a folder or a tar, decoded when they are first needed."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

import torch
from torch import Tensor

from convscope.data import images
from convscope.data.images import _SUFFIXES, _fitted, _fitted_picture, _open, _Unreadable
from convscope.errors import BadInput, RequestError
from convscope.models import InputSpec

MOST_KEPT: Final = 2 * 2**30  # bytes of decoded pictures that are kept, and of a tar's files
LOOKED_AT: Final = 32  # files that tell the size of all
_SPLIT_NAMES: Final = {
    "train": "train",
    "test": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
}


@dataclass(frozen=True)
class File:
    """A picture: its name, and where its content is."""

    name: str
    content: Path | bytes

    def digest(self) -> bytes:
        """SHA-256 of the content."""
        if isinstance(self.content, bytes):
            return hashlib.sha256(self.content).digest()
        with self.content.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()

    def fit(self, spec: InputSpec) -> Tensor:
        """Decoded: the largest centred part of the right proportions, [channel, height, width] of bytes.

        Raises:
            BadInput: it is no picture.
        """
        try:
            if isinstance(self.content, bytes):
                image, _ = _fitted_picture(io.BytesIO(self.content), spec)
            else:
                image, _ = _fitted(self.content, spec, crop=True)
        except _Unreadable as error:
            raise BadInput(f"image {self.name!r} {error}; remove or replace it") from error
        return (image * 255).round().to(torch.uint8)

    def about(self) -> tuple[tuple[int, int], bool]:
        """(height, width) and whether it is grey."""
        try:
            image, full = _open(
                self.content if isinstance(self.content, Path) else io.BytesIO(self.content), None
            )
        except _Unreadable as error:
            raise BadInput(f"image {self.name!r} {error}; remove or replace it") from error
        red, green, blue = (band.tobytes() for band in image.split())
        return (full[1], full[0]), red == green == blue


@dataclass(eq=False)
class Pictures:
    """A sequence of picture files of one shape, which stand for a Tensor [sample, channel, height, width] of bytes.

    What was decoded is kept where all of it takes less than 2 GiB.
    """

    files: Sequence[File]
    spec: InputSpec
    _kept: dict[int, Tensor] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """[sample, channel, height, width]"""
        return (len(self.files), *self.spec.shape)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, places: Tensor) -> Pictures:
        """Those at these places, still to be decoded."""
        return Pictures([self.files[place] for place in places.tolist()], self.spec)

    def decode(self, places: Tensor) -> Tensor:
        """Tensor [sample, channel, height, width] of bytes.

        Raises:
            BadInput: a file is no picture.
        """
        keep = torch.Size(self.shape).numel() <= MOST_KEPT
        found = []
        for place in places.tolist():
            image = self._kept.get(place)
            if image is None:
                image = self.files[place].fit(self.spec)
                if keep:
                    self._kept[place] = image
            found.append(image)
        return torch.stack(found)

    def digest(self) -> bytes:
        """SHA-256 of names, contents and shape."""
        whole = hashlib.sha256(repr(self.shape).encode())
        for file in self.files:
            whole.update(file.name.encode("utf-8", "surrogateescape") + b"\0" + file.digest())
        return whole.digest()


Labelled = dict[str, tuple[Pictures, list[str]]]  # split -> pictures, and the class name of each


def read_pictures(path: Path, shape: tuple[int | None, tuple[int, int] | None]) -> Labelled:
    """The class folders of a folder or a tar, by split where folders train, val and test hold them.

    Args:
        path: of the folder or tar.
        shape: channels and (height, width) to fit pictures to; None for those that the files have.

    Raises:
        BadInput, RequestError: there are no class folders, files differ in size, or one is no picture.
    """
    files = _tar(path) if path.is_file() else _folder(path)
    names = [PurePosixPath(file.name).parts for file in files]
    while (
        len(min(names, key=len)) > 2
        and len({parts[0] for parts in names}) == 1
        and names[0][0] not in _SPLIT_NAMES
    ):
        names = [parts[1:] for parts in names]  # a folder around everything
    by_split = {parts[0].lower() for parts in names} <= _SPLIT_NAMES.keys()
    depth = 1 if by_split else 0
    stray = next(
        (file.name for file, parts in zip(files, names, strict=True) if len(parts) < depth + 2), None
    )
    if stray is not None:
        raise RequestError(
            f"image {stray!r} of data={str(path)!r} lies in no class folder; put it into one of its class"
        )
    spec = _spec(path, files, shape)
    grouped: dict[str, tuple[list[File], list[str]]] = {}
    for file, parts in zip(files, names, strict=True):
        split = _SPLIT_NAMES[parts[0].lower()] if by_split else "train"
        found, labels = grouped.setdefault(split, ([], []))
        found.append(file)
        labels.append(parts[depth])
    return {split: (Pictures(found, spec), labels) for split, (found, labels) in grouped.items()}


def _folder(path: Path) -> list[File]:
    return [File(file.name, file.path) for file in images(path)._files]


def _tar(path: Path) -> list[File]:
    """All picture files of a tar, compressed or not, in memory; nothing is unpacked to the disk."""
    found, total = [], 0
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                hidden = any(part.startswith((".", "__MACOSX")) and part != "." for part in name.parts)
                if not member.isreg() or name.suffix.lower() not in _SUFFIXES or hidden:
                    continue
                total += member.size
                if total > MOST_KEPT:
                    raise RequestError(
                        f"data={str(path)!r} holds over {MOST_KEPT:,} bytes of images; unpack it and give the folder"
                    )
                content: Any = archive.extractfile(member)
                found.append(File(str(name), content.read()))
    except (tarfile.TarError, OSError, EOFError) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise BadInput(f"data={str(path)!r} is a damaged tar ({reason}); fetch it again") from error
    if not found:
        raise RequestError(
            f"data={str(path)!r} holds no image; give a tar of class folders of JPEG, PNG or WebP files"
        )
    return sorted(found, key=lambda file: file.name)


def _spec(path: Path, files: Sequence[File], shape: tuple[int | None, tuple[int, int] | None]) -> InputSpec:
    channels, size = shape
    if channels is None or size is None:
        some = [
            files[place * len(files) // min(LOOKED_AT, len(files))]
            for place in range(min(LOOKED_AT, len(files)))
        ]
        about = [file.about() for file in some]
        sizes = sorted({found for found, _ in about})
        if size is None and len(sizes) > 1:
            first, last = (f"{height}x{width}" for height, width in (sizes[0], sizes[-1]))
            raise RequestError(f"images of data={str(path)!r} differ in size, {first} to {last}; give size=")
        size = size or sizes[0]
        channels = channels or (1 if all(grey for _, grey in about) else 3)
    return InputSpec((channels, *size))
