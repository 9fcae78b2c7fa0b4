"""What a source of labelled samples is, and which reader it needs."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch

from convscope.data.fashion import LABELS, fashion
from convscope.errors import RequestError, nearest
from convscope.studies import words
from convscope.studies.pictures import Pictures, read_pictures
from convscope.studies.sources import Found, Part, read_arrays
from convscope.studies.splitting import joined

EMBEDDED: Final = ("fashion", "fashion-denoise", "fashion-segmentation", "glosses")
INK: Final = 25 / 255  # a pixel of a garment is at least as bright


def read(source: str | os.PathLike[str], shape: tuple[int | None, tuple[int, int] | None]) -> Found:
    """What a source holds; `shape` is the channels and size to fit pictures to, None for their own."""
    if isinstance(source, str) and source in EMBEDDED:
        return words.glosses() if source == "glosses" else _fashion(source)
    path = Path(source)
    if not path.exists():
        raise RequestError(
            f"data={str(source)!r} does not exist{nearest(str(source), EMBEDDED)}; give a path, or one of {', '.join(EMBEDDED)}"
        )
    arrays = read_arrays(path)
    if arrays is not None:
        return arrays
    if path.is_file() and path.suffix.lower() in (".zip", ".rar", ".7z", ".parquet"):
        raise RequestError(
            f"data={str(source)!r} is of a kind that is not read; unpack it to class folders, or make an NPZ"
        )
    if (
        path.is_dir()
        or path.suffix.lower() in (".tar", ".tgz")
        or ".tar." in path.name
        or tarfile.is_tarfile(path)
    ):
        return _labelled(read_pictures(path, shape), str(source))
    return words.read_text(path)


def _labelled(pictures: Mapping[str, tuple[Pictures, list[str]]], source: str) -> Found:
    """Class names as numbers, those of the training split (of a part that is only a test split: its own)."""
    first = "train" if "train" in pictures else next(iter(pictures))
    classes = sorted(set(pictures[first][1]))
    places = {name: place for place, name in enumerate(classes)}
    parts = {}
    for split, (files, labels) in pictures.items():
        odd = next((label for label in labels if label not in places), None)
        if odd is not None:
            raise RequestError(
                f"class {odd!r} of the {split} split of data={source!r} has no training images; add some"
            )
        parts[split] = Part(files, torch.tensor([places[label] for label in labels]))
    if "train" not in parts:
        parts = {"train": joined(list(parts.values()))}
    return Found(tuple(classes), parts)


def _fashion(name: str) -> Found:
    """The embedded images of clothes, for one of three tasks."""
    parts = {}
    for split in ("train", "test"):
        images, labels = fashion(split)
        targets = {
            "fashion": labels,
            "fashion-denoise": images,
            "fashion-segmentation": torch.where(images[:, 0] >= INK, labels[:, None, None] + 1, 0),
        }[name]
        parts[split] = Part((images * 255).round().to(torch.uint8), targets)
    classes = {"fashion": LABELS, "fashion-denoise": (), "fashion-segmentation": ("background", *LABELS)}[
        name
    ]
    return Found(classes, parts)


def with_test(found: Found, other: Found, source: str) -> Found:
    """The samples of another source as the test split; class names are matched."""
    if "test" in other.parts and len(other.parts) > 1:
        extra = other.parts["test"]
    else:
        extra = joined(list(other.parts.values()))
    if not extra.targets.is_floating_point() and other.classes != found.classes:
        odd = next((name for name in other.classes if name not in found.classes), None)
        if odd is not None:
            raise RequestError(
                f"class {odd!r} of test={source!r} is not among those to train on, {', '.join(found.classes)}"
            )
        places = torch.tensor([found.classes.index(name) for name in other.classes])
        extra = Part(extra.inputs, places[extra.targets])
    if type(extra.inputs) is not type(found.parts["train"].inputs):
        raise RequestError(f"test={source!r} is of another kind than the data to train on")
    return replace(found, parts={**found.parts, "test": extra})
