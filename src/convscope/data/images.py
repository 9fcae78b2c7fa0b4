"""The reader of image files: one photograph, a folder of them, or a folder of class folders.

Files are opened when they are needed. A broken one never ends a run: it is left out and listed in
`Images.broken`. Only formats that Pillow decodes by itself are opened (its EPS reader, for one, would start
another program).
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from convscope.data.photographs import photographs
from convscope.errors import BadInput, RequestError

if TYPE_CHECKING:
    from convscope.models import InputSpec

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA")
_SUFFIXES = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif", ".tga",
}  # fmt: skip
_ARRAYS = {".npy", ".npz"}
MAX_PIXELS = 89_478_485  # Pillow's own threshold: a small file that claims more is likely an attack

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels; x1 and y1 are past the last


class Sample(NamedTuple):
    """One image: its name (path within the folder), the name of its class folder or None, and the picture."""

    name: str
    label: str | None
    image: Image.Image


class Broken(NamedTuple):
    """A file that could not be read, and why."""

    name: str
    reason: str


class Batch(NamedTuple):
    """Images fitted to a network's input size, not yet normalized.

    Attributes:
        indices: position of each in `Images`.
        images: Tensor [batch, channel, height, width] in [0, 1].
        geometry: how to map each one's pixels back to its file.
    """

    indices: tuple[int, ...]
    images: Tensor
    geometry: tuple[Geometry, ...]


@dataclass(frozen=True)
class Geometry:
    """Which part of an image file a network input shows.

    Attributes:
        full: (width, height) of the image, after its EXIF rotation.
        shown: the part shown, in pixels of the image.
        size: (width, height) of the network input it was scaled to.
    """

    full: tuple[int, int]
    shown: Box
    size: tuple[int, int]

    def to_image(self, box: Box, clip: bool = True) -> Box:
        """Maps a box in network input pixels to pixels of the image, by default cut at the image's borders.

        Example:
            >>> half = Geometry(full=(400, 200), shown=(100, 0, 300, 200), size=(100, 100))
            >>> half.to_image((0, 0, 50, 25))
            (100.0, 0.0, 200.0, 50.0)
        """
        left, top, right, bottom = self.shown
        kx, ky = (right - left) / self.size[0], (bottom - top) / self.size[1]
        x0, y0, x1, y1 = left + box[0] * kx, top + box[1] * ky, left + box[2] * kx, top + box[3] * ky
        if not clip:
            return x0, y0, x1, y1
        width, height = self.full
        return max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))


@dataclass(frozen=True)
class _File:
    name: str
    label: str | None
    path: Path


class Images:
    """A sequence of image files in a fixed order; make one with `images`.

    Attributes:
        source: the folder or file they come from, or "photographs" for the embedded ones.
        labels: the names of the class folders, sorted; empty where there are none.
        ignored: names of files that are no images, left out.
        broken: files that turned out unreadable so far, with the reason.
    """

    def __init__(self, source: str, files: Iterable[_File], ignored: Iterable[str] = ()) -> None:
        self.source = source
        self._files = tuple(files)
        self._broken: dict[str, Broken] = {}
        self.ignored = tuple(ignored)
        self.labels = tuple(sorted({file.label for file in self._files if file.label is not None}))

    def __len__(self) -> int:
        return len(self._files)

    def __repr__(self) -> str:
        classes = f", {len(self.labels)} classes" if self.labels else ""
        return f"Images({self.source!r}, {len(self)} files{classes})"

    def __getitem__(self, index: int) -> Sample:
        """The image at `index`, as RGB, rotated as its EXIF says.

        Raises:
            BadInput: the file cannot be read as a picture.
        """
        file = self._files[index]
        try:
            return Sample(file.name, file.label, read_image(file.path))
        except _Unreadable as error:
            self._broken[file.name] = Broken(file.name, str(error))
            raise BadInput(f"image {file.name!r} {error}; remove or replace it") from error

    def __iter__(self) -> Iterator[Sample]:
        """The readable images in order."""
        for index in range(len(self)):
            try:
                yield self[index]
            except BadInput:
                continue  # listed in `broken`

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each file: its path within the folder, with forward slashes."""
        return tuple(file.name for file in self._files)

    @property
    def broken(self) -> tuple[Broken, ...]:
        """Files found unreadable so far, in order of their names."""
        return tuple(self._broken[name] for name in sorted(self._broken))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all names and file sizes: whether this is the same data as before."""
        digest = hashlib.sha256()
        for file in self._files:
            size = file.path.stat().st_size if file.path.exists() else -1
            digest.update(f"{file.name}\0{size}\0".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def batches(
        self, spec: InputSpec, batch: int = 32, *, fit: Literal["crop", "resize"] = "crop", threads: int = 2
    ) -> Iterator[Batch]:
        """All readable images in order, fitted to the network's input and stacked.

        Args:
            spec: the input to fit: its channels and size.
            batch: images a batch; the last one may hold fewer.
            fit: "crop" shows the largest centred part of the right proportions; "resize" shows all of it,
                squeezed.
            threads: how many files are decoded at once.

        Raises:
            BadInput: no file could be read, or image files cannot serve an input of that many channels.
        """
        if fit not in ("crop", "resize"):
            raise RequestError(f"fit={fit!r} must be 'crop' or 'resize'")
        if batch < 1 or threads < 1:
            raise RequestError(f"batch={batch} and threads={threads} must be at least 1")
        self._check_channels(spec)
        return self._batches(spec, batch, fit == "crop", threads)

    def _batches(self, spec: InputSpec, batch: int, crop: bool, threads: int) -> Iterator[Batch]:
        def read(index: int) -> tuple[int, Tensor, Geometry] | Broken:
            file = self._files[index]
            try:
                return index, *_fitted(file.path, spec, crop)
            except _Unreadable as error:
                return Broken(file.name, str(error))

        seen = 0
        ready: list[tuple[int, Tensor, Geometry]] = []
        with ThreadPoolExecutor(threads) as pool:
            for start in range(0, len(self), batch):
                for item in pool.map(read, range(start, min(start + batch, len(self)))):
                    if isinstance(item, Broken):
                        self._broken[item.name] = item
                    else:
                        ready.append(item)
                if len(ready) >= batch:
                    yield _stack(ready[:batch])
                    seen, ready = seen + batch, ready[batch:]
        if ready:
            yield _stack(ready)
        elif not seen:
            first = self.broken[0]
            raise BadInput(
                f"none of the {len(self)} images of {self.source!r} could be read; the first, "
                f"{first.name!r}, "
                f"{first.reason}"
            )

    def _check_channels(self, spec: InputSpec) -> None:
        pictures = [file for file in self._files if file.path.suffix.lower() not in _ARRAYS]
        if pictures and spec.channels not in (1, 3):
            raise BadInput(
                f"image file {pictures[0].name!r} cannot serve an input of {spec.channels} channels; give "
                "a folder of "
                f".npy arrays of shape [{spec.channels}, height, width], uint8 or floats in [0, 1]"
            )


def images(source: str | os.PathLike[str] | Images | None = None, *, limit: int | None = None) -> Images:
    """The image files of a source.

    Args:
        source: an image file, a folder (searched with its subfolders; the first level names the classes), an
            `Images`, or None for the embedded photographs. `.npy`/`.npz` arrays [channel, height, width]
            serve networks with any number of channels.
        limit: at most this many, evenly spread over the sorted names.

    Raises:
        RequestError: the source does not exist or holds no image.

    Example:
        >>> images()
        Images('photographs', 12 files)
        >>> images()[1].name, images()[1].image.size
        ('chelsea', (451, 300))
    """
    if limit is not None and limit < 1:
        raise RequestError(f"limit={limit} must be at least 1")
    found = source if isinstance(source, Images) else _find(source)
    if limit is None or len(found) <= limit:
        return found
    chosen = [found._files[position * len(found) // limit] for position in range(limit)]
    return Images(found.source, chosen, found.ignored)


def halves(found: Images) -> tuple[Images, Images]:
    """The images in turn: one half to fit to, one to score on; of a single image both are that one.

    Example:
        >>> [len(half) for half in halves(images())]
        [6, 6]
    """
    if len(found) < 2:
        return found, found
    first, second = (Images(found.source, found._files[start::2], found.ignored) for start in (1, 0))
    return first, second


def _find(source: str | os.PathLike[str] | None) -> Images:
    if source is None:
        return Images("photographs", [_File(photo.name, None, photo.path) for photo in photographs()])
    path = Path(source)
    if path.is_file():
        return Images(str(source), [_File(path.name, None, path)])
    if not path.is_dir():
        raise RequestError(f"data={str(source)!r} does not exist; give an image file or a folder of images")
    files, ignored = _walk(path)
    if not files:
        other = f" (it holds {len(ignored)} other files)" if ignored else ""
        raise RequestError(
            f"data={str(source)!r} holds no image{other}; give a folder of JPEG, PNG or WebP files"
        )
    return Images(str(source), files, ignored)


def _walk(root: Path) -> tuple[list[_File], list[str]]:
    """Image files under `root` and names of the others, sorted; hidden ones left out, link loops cut."""
    files, ignored = [], []
    seen: set[str] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith((".", "__MACOSX")))
        for name in sorted(names):
            path = Path(folder, name)
            relative = path.relative_to(root)
            if name.startswith("."):
                continue
            if path.suffix.lower() not in _SUFFIXES | _ARRAYS:
                ignored.append(relative.as_posix())
                continue
            label = relative.parts[0] if len(relative.parts) > 1 else None
            files.append(_File(relative.as_posix(), label, path))
    return sorted(files, key=lambda file: file.name), sorted(ignored)


# ------------------------------------------------------------------------------------------------------------
# one file


class _Unreadable(Exception):
    """Why a file gives no picture: the rest of a sentence that begins with its name."""


def read_image(path: Path) -> Image.Image:
    """The picture in a file as 8-bit RGB, rotated as its EXIF says, transparency laid on white."""
    if path.suffix.lower() in _ARRAYS:
        return _array_picture(_read_array(path))
    image, _ = _open(path, None)
    return image


def to_tensor(image: Image.Image, channels: int) -> Tensor:
    """A picture as Tensor [channel, height, width] in [0, 1]; one channel is its luma."""
    array = np.array(image.convert("RGB" if channels == 3 else "L"))  # [height, width, 3] or [height, width]
    pixels = torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)
    return pixels.contiguous().float() / 255


def _open(path: Path | BinaryIO, at_least: tuple[int, int] | None) -> tuple[Image.Image, tuple[int, int]]:
    """The picture as RGB and its full (width, height); JPEGs may be decoded smaller, to `at_least`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata; bombs are checked below
            with Image.open(path, formats=_FORMATS) as file:
                full = file.size
                if full[0] * full[1] > MAX_PIXELS:
                    raise _Unreadable(f"has {full[0]} x {full[1]} pixels, over the limit of {MAX_PIXELS:,}")
                if at_least is not None:
                    file.draft(None, at_least)
                file.load()
                lying = file.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
                rgb = _to_rgb(ImageOps.exif_transpose(file))
    except FileNotFoundError as error:
        raise _Unreadable("does not exist") from error
    except Image.DecompressionBombError as error:
        raise _Unreadable(f"has too many pixels, over the limit of {MAX_PIXELS:,}") from error
    except UnidentifiedImageError as error:
        raise _Unreadable("is no image of a known format") from error
    except _Unreadable:
        raise
    except Exception as error:  # a damaged file makes a decoder raise almost anything
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise _Unreadable(f"is damaged ({reason})") from error
    return rgb, (full[1], full[0]) if lying else full


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB from any mode: 16-bit and float greys by their range, transparency laid on white."""
    if image.mode.startswith(("I", "F")):
        return _from_wide(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _from_wide(image: Image.Image) -> Image.Image:
    """A grey picture of 16- or 32-bit integers or floats, by the range that its values show."""
    values = np.asarray(image, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all() or low < 0 or high > 65535:
        raise _Unreadable(f"has values from {low:g} to {high:g}, whose black and white are unknown")
    if image.mode.startswith("I;16") or high > 255:
        top = 65535.0
    else:
        top = 1.0 if image.mode == "F" and high <= 1 else 255.0
    grey = np.rint(values * (255 / top)).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def _read_array(path: Path) -> np.ndarray:
    """The array [channel, height, width] in [0, 1] of a `.npy` file, or of an `.npz` that holds one."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            with loaded:
                if len(loaded.files) != 1:
                    raise _Unreadable(f"holds {len(loaded.files)} arrays where one is expected")
                loaded = loaded[loaded.files[0]]
    except FileNotFoundError as error:
        raise _Unreadable("does not exist") from error
    except (OSError, ValueError, EOFError, KeyError, SyntaxError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())[:120]
        raise _Unreadable(f"is damaged or no plain array ({reason})") from error
    array: np.ndarray = loaded[None] if loaded.ndim == 2 else loaded
    if array.ndim != 3:
        raise _Unreadable(f"has shape {array.shape}, not [channel, height, width]")
    if array.dtype == np.uint8 or array.dtype == np.uint16:
        return array.astype(np.float32) / np.iinfo(array.dtype).max
    if array.dtype.kind != "f":
        raise _Unreadable(f"has type {array.dtype}, not uint8, uint16 or float")
    if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
        raise _Unreadable("has float values outside [0, 1]")
    return array.astype(np.float32)


def _array_picture(array: np.ndarray) -> Image.Image:
    if array.shape[0] not in (1, 3):
        raise _Unreadable(f"has {array.shape[0]} channels and is no picture")
    pixels = np.rint(array * 255).astype(np.uint8).transpose(1, 2, 0)  # [height, width, channel]
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB")


# ------------------------------------------------------------------------------------------------------------
# fitting


def _fitted(path: Path, spec: InputSpec, crop: bool) -> tuple[Tensor, Geometry]:
    """One file as Tensor [channel, height, width] in [0, 1] of the spec's shape, and the way back."""
    if path.suffix.lower() in _ARRAYS:
        return _fitted_array(_read_array(path), spec, crop)
    return _fitted_picture(path, spec, crop)


def _fitted_picture(file: Path | BinaryIO, spec: InputSpec, crop: bool = True) -> tuple[Tensor, Geometry]:
    """The same of a picture, whose content may lie in memory."""
    height, width = spec.size
    image, full = _open(file, (2 * width, 2 * height))
    shown = _shown(full, (width, height)) if crop else (0.0, 0.0, float(full[0]), float(full[1]))
    kx, ky = image.width / full[0], image.height / full[1]  # below 1 where a JPEG was decoded smaller
    box = (shown[0] * kx, shown[1] * ky, min(shown[2] * kx, image.width), min(shown[3] * ky, image.height))
    scaled = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
    return to_tensor(scaled, spec.channels), Geometry(full, shown, (width, height))


def _fitted_array(array: np.ndarray, spec: InputSpec, crop: bool) -> tuple[Tensor, Geometry]:
    if array.shape[0] != spec.channels:
        raise _Unreadable(f"has {array.shape[0]} channels where the network takes {spec.channels}")
    height, width = spec.size
    full = (array.shape[2], array.shape[1])
    left, top, right, bottom = _shown(full, (width, height)) if crop else (0.0, 0.0, *map(float, full))
    x0, y0 = round(left), round(top)
    x1, y1 = max(round(right), x0 + 1), max(round(bottom), y0 + 1)
    part = torch.from_numpy(array[:, y0:y1, x0:x1].copy())[None]  # [1, channel, height, width]
    scaled = torch.nn.functional.interpolate(part, (height, width), mode="bicubic", antialias=True)[0]
    shown = (float(x0), float(y0), float(x1), float(y1))
    return scaled.clamp(0, 1), Geometry(full, shown, (width, height))


def _shown(full: tuple[int, int], size: tuple[int, int]) -> Box:
    """The largest centred part of an image of `full` size with the proportions of `size` (width, height)."""
    scale = min(full[0] / size[0], full[1] / size[1])
    width, height = size[0] * scale, size[1] * scale
    left, top = max(0.0, (full[0] - width) / 2), max(0.0, (full[1] - height) / 2)  # rounding may go below 0
    return left, top, min(left + width, float(full[0])), min(top + height, float(full[1]))


def _stack(items: list[tuple[int, Tensor, Geometry]]) -> Batch:
    return Batch(
        tuple(index for index, _, _ in items),
        torch.stack([image for _, image, _ in items]),
        tuple(geometry for _, _, geometry in items),
    )
