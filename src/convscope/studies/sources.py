"""Readers of labelled arrays on disk: IDX and CIFAR files as torchvision keeps them, and NPZ.

None runs code from a file: CIFAR's pickles are read by an unpickler that knows plain arrays only.
"""

from __future__ import annotations

import gzip
import io
import math
import pickle
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from convscope.errors import BadInput
from convscope.studies.pictures import Pictures

MOST_BYTES: Final = 8 * 2**30  # of one uncompressed file: a small one that claims more is likely an attack
SPLITS: Final = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Part:
    """Samples with what is right for them.

    Attributes:
        inputs: Tensor [sample, channel, height, width] of bytes, or `Pictures`, or sentences.
        targets: classes [sample]; for a dense prediction classes [sample, height, width] or values
            [sample, channel, height, width].
    """

    inputs: Tensor | Pictures | list[str]
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, places: Tensor) -> Part:
        """The samples at these places."""
        if isinstance(self.inputs, list):
            return Part([self.inputs[place] for place in places.tolist()], self.targets[places])
        return Part(self.inputs[places], self.targets[places])


@dataclass(frozen=True, eq=False)
class Found:
    """What a source holds: names of its classes, and its splits as they lie there (some of `SPLITS`)."""

    classes: tuple[str, ...]
    parts: dict[str, Part]


def read_arrays(path: Path) -> Found | None:
    """The labelled arrays of a folder or an NPZ file, or None where there are none.

    Raises:
        BadInput: a file is damaged, or images and labels do not fit.
    """
    if path.is_file():
        return _npz(path) if path.suffix.lower() == ".npz" else None
    for folder in (path, path / "raw", *sorted(path.glob("*/raw"))):
        if _idx_file(folder, "train-images") is not None:
            return _idx(folder)
    for folder in (path, *(path / name for name in _CIFAR)):
        for names, label in _CIFAR.values():
            if (folder / names["train"][0]).is_file() and (folder / names["test"][0]).is_file():
                return _cifar(folder, names, label)
    return None


# ---------------------------------------------------------------- IDX


def _idx_file(folder: Path, start: str) -> Path | None:
    """The file "train-images-idx3-ubyte" or "train-images.idx3-ubyte", plain or gzipped."""
    found = sorted(folder.glob(f"{start}?idx*-ubyte*")) if folder.is_dir() else []
    return found[0] if found else None


def _idx(folder: Path) -> Found:
    parts = {}
    for split, start in (("train", "train"), ("test", "t10k")):
        files = [_idx_file(folder, f"{start}-{what}") for what in ("images", "labels")]
        missing = next(
            (what for what, file in zip(("images", "labels"), files, strict=True) if not file), None
        )
        if missing:
            raise BadInput(
                f"data={str(folder)!r} has no file {start}-{missing}-idx*-ubyte; all four are needed"
            )
        images, labels = (_read_idx(file) for file in files if file)
        parts[split] = _part(folder, images, labels)
    count = 1 + max(int(part.targets.max()) for part in parts.values())
    return Found(tuple(map(str, range(count))), parts)


def _read_idx(path: Path) -> np.ndarray:
    """The bytes of an IDX file in their shape."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4)
            if head[:3] != b"\0\0\x08" or head[3] not in range(1, 5):
                raise BadInput(f"file {path.name!r} is no IDX file of bytes; give the data set's own files")
            shape = struct.unpack(f">{head[3]}I", file.read(4 * head[3]))
            size = math.prod(shape)
            if size > MOST_BYTES:
                raise BadInput(f"file {path.name!r} claims {size:,} bytes, over the limit of {MOST_BYTES:,}")
            raw = file.read(size + 1)
    except (OSError, EOFError, struct.error) as error:
        raise BadInput(f"file {path.name!r} is damaged ({_short(error)}); fetch it again") from error
    if len(raw) != size:
        raise BadInput(
            f"file {path.name!r} holds {len(raw)} values where {shape} are announced; fetch it again"
        )
    return np.frombuffer(raw, np.uint8).reshape(shape)


# ---------------------------------------------------------------- CIFAR

_BATCHES = [f"data_batch_{number}" for number in range(1, 6)]
_CIFAR: Final[dict[str, tuple[dict[str, list[str]], str]]] = {
    "cifar-10-batches-py": ({"train": _BATCHES, "test": ["test_batch"], "names": ["batches.meta"]}, "labels"),
    "cifar-100-python": ({"train": ["train"], "test": ["test"], "names": ["meta"]}, "fine_labels"),
    "cifar-10-batches-bin": (
        {
            "train": [f"{name}.bin" for name in _BATCHES],
            "test": ["test_batch.bin"],
            "names": ["batches.meta.txt"],
        },
        "",
    ),
}


def _cifar(folder: Path, names: dict[str, list[str]], label: str) -> Found:
    """The Python version of CIFAR-10 or -100, or the binary one of CIFAR-10 where there is no label key."""
    parts = {}
    for split in ("train", "test"):
        images, labels = zip(*(_cifar_file(folder / name, label) for name in names[split]), strict=True)
        parts[split] = _part(folder, np.concatenate(images), np.concatenate(labels))
    count = 1 + max(int(part.targets.max()) for part in parts.values())
    classes = _cifar_names(folder / names["names"][0], label)
    return Found(classes if len(classes) >= count else tuple(map(str, range(count))), parts)


def _cifar_file(path: Path, label: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BadInput(f"file {path.name!r} cannot be read ({error.strerror}); fetch it again") from error
    if not label:
        if not raw or len(raw) % 3073:
            raise BadInput(f"file {path.name!r} is no whole number of CIFAR-10 records; fetch it again")
        table = np.frombuffer(raw, np.uint8).reshape(-1, 3073)  # a label, then 3 x 32 x 32 bytes
        return table[:, 1:].reshape(-1, 3, 32, 32), table[:, 0]
    content = _plain_pickle(path, raw)
    try:
        images = np.asarray(content["data"], np.uint8).reshape(-1, 3, 32, 32)
        return images, np.asarray(content[label], np.int64)
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"file {path.name!r} is no CIFAR file ({_short(error)}); fetch it again") from error


def _cifar_names(path: Path, label: str) -> tuple[str, ...]:
    if not path.is_file():
        return ()
    if not label:
        return tuple(path.read_text("ascii", "replace").split())
    content = _plain_pickle(path, path.read_bytes())
    names = content.get("label_names" if label == "labels" else "fine_label_names", ())
    return tuple(map(str, names))


class _PlainUnpickler(pickle.Unpickler):
    """Knows arrays, and nothing that could run."""

    def find_class(self, module: str, name: str) -> Any:
        known = {"_reconstruct": np._core.multiarray._reconstruct, "ndarray": np.ndarray, "dtype": np.dtype}  # type: ignore[attr-defined]
        if module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray") and name in known:
            return known[name]
        if (module, name) == ("_codecs", "encode"):  # how bytes are written by Python 2
            return lambda text, _: text.encode("latin1")
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _plain_pickle(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        content = _PlainUnpickler(io.BytesIO(raw), encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises almost anything
        raise BadInput(
            f"file {path.name!r} is no plain CIFAR file ({_short(error)}); fetch it again"
        ) from error
    if not isinstance(content, dict):
        raise BadInput(f"file {path.name!r} is no CIFAR file (it holds no dict); fetch it again")
    return content


# ---------------------------------------------------------------- NPZ

_NAMES: Final = {  # how images and labels of a split may be called
    "train": (("x_train", "y_train"), ("train_images", "train_labels"), ("images", "labels"), ("x", "y")),
    "validation": (("x_val", "y_val"), ("val_images", "val_labels"), ("x_validation", "y_validation")),
    "test": (("x_test", "y_test"), ("test_images", "test_labels")),
}


def _npz(path: Path) -> Found:
    """An NPZ file with arrays x_train, y_train, x_test, y_test (or train_images, ..., or images, labels, or x, y)."""
    try:
        with zipfile.ZipFile(path) as archive:
            if (size := sum(entry.file_size for entry in archive.infolist())) > MOST_BYTES:
                raise BadInput(f"data={str(path)!r} claims {size:,} bytes, over the limit of {MOST_BYTES:,}")
        with np.load(path, allow_pickle=False) as loaded:
            arrays = {name: loaded[name] for name in loaded.files}
    except BadInput:  # which is a ValueError
        raise
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, SyntaxError) as error:
        raise BadInput(f"data={str(path)!r} is damaged or no plain NPZ file ({_short(error)})") from error
    parts = {}
    for split, pairs in _NAMES.items():
        for images, labels in pairs:
            if images in arrays and labels in arrays:
                parts[split] = _part(path, arrays[images], arrays[labels])
                break
    if "train" not in parts:
        raise BadInput(
            f"data={str(path)!r} holds arrays {', '.join(arrays) or 'none'}; it must hold x_train and y_train, or x and y"
        )
    whole = [part.targets for part in parts.values() if not part.targets.is_floating_point()]
    return Found(tuple(map(str, range(1 + max((int(t.max()) for t in whole), default=-1)))), parts)


# ---------------------------------------------------------------- arrays


def _part(path: Path, images: np.ndarray, labels: np.ndarray) -> Part:
    """Checked, as tensors."""
    if labels.ndim == 2 and labels.shape[1] == 1 and images.ndim != labels.ndim:
        labels = labels[:, 0]
    if len(images) != len(labels) or not len(images):
        raise BadInput(
            f"data={str(path)!r} has {len(images)} images and {len(labels)} labels; it must have a label each"
        )
    return Part(_images(path, images), _targets(path, labels))


def _images(path: Path, array: np.ndarray) -> Tensor:
    """Bytes [sample, channel, height, width] from arrays with or without channels, the channels first or last."""
    if array.ndim == 3:
        array = array[:, None]
    if array.ndim != 4 or 0 in array.shape:
        raise BadInput(
            f"images of shape {_shape(array)} in {str(path)!r} must be [sample, height, width] or have channels"
        )
    if array.shape[1] not in (1, 3) and array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    if array.dtype.kind == "f":
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise BadInput(f"images in {str(path)!r} have values outside [0, 1]; scale them, or give bytes")
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise BadInput(
            f"images in {str(path)!r} are of type {array.dtype}; they must be bytes, or floats in [0, 1]"
        )
    return torch.from_numpy(np.array(array))  # a copy that is contiguous and can be written


def _targets(path: Path, array: np.ndarray) -> Tensor:
    if array.ndim == 4 and array.dtype.kind == "f" and np.isfinite(array).all():
        return torch.from_numpy(np.array(array, np.float32))
    if array.ndim not in (1, 3) or array.dtype.kind not in "ui" or (array < 0).any():
        raise BadInput(
            f"labels of type {array.dtype} and shape {_shape(array)} in {str(path)!r} must be whole numbers from 0, [sample] "
            "or [sample, height, width], or floats [sample, channel, height, width]"
        )
    return torch.from_numpy(np.array(array, np.int64))


def _shape(array: np.ndarray) -> Sequence[int]:
    return list(array.shape)


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
