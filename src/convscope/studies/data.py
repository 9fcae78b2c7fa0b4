"""Data sets to train on: one function, `dataset`, from a source to three splits of samples that do not meet.

The splits are drawn by a seed, or taken as the source has them. Training and validation are open; the test split is
handed out once for each trained network (`Data.final_test`), so that nobody tunes on it by accident.
"""

from __future__ import annotations

import hashlib
import os
import weakref
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from convscope.errors import BadInput, RequestError
from convscope.models import InputSpec
from convscope.studies import words
from convscope.studies.pictures import Pictures
from convscope.studies.reading import read, with_test
from convscope.studies.sources import Part
from convscope.studies.splitting import at_most, cut, joined, spread, where

TEST_SHARE: Final = 0.2  # of a source that has no test split
NOISE: Final = 0.25  # standard deviation, what `load("fashion-decoder")` was trained to undo
LOOKED_AT: Final = 2000  # pictures that give mean and std


@dataclass(frozen=True, eq=False)
class Split:
    """Samples of one split.

    Attributes:
        inputs: bytes [sample, channel, height, width], as a Tensor or as `Pictures` that are decoded when needed; or
            words [sample, length], 0 behind the end of a sentence.
        targets: classes [sample]; for a dense prediction classes [sample, height, width], or values
            [sample, channel, height, width] in [0, 1].
    """

    inputs: Tensor | Pictures
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    @cached_property
    def lengths(self) -> Tensor:
        """Words of each sentence, [sample]."""
        return (cast(Tensor, self.inputs) != words.PADDING).sum(1)

    def batch(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the samples at these places.

        Images are float in [0, 1]; sentences are as long as the longest of the batch.
        """
        targets = self.targets[places]
        if isinstance(self.inputs, Pictures):
            return self.inputs.decode(places).float() / 255, targets
        if self.inputs.dtype == torch.uint8:
            return self.inputs[places].float() / 255, targets
        return self.inputs[places, : int(self.lengths[places].max())], targets

    def digest(self) -> bytes:
        """SHA-256 of all samples."""
        content = self.inputs.digest() if isinstance(self.inputs, Pictures) else _bytes(self.inputs)
        return hashlib.sha256(content + _bytes(self.targets)).digest()


@dataclass(frozen=True, eq=False)
class Data:
    """A data set, cut into splits; make one with `dataset`.

    Attributes:
        name: the source.
        kind: "image", "text" or "dense" (a prediction for every pixel).
        classes: their names, in order of the targets; of a dense prediction of values, of its channels.
        shape: of an image, (channels, height, width); of text (length,), the longest sentence.
        train, validation: to train on, and to choose by.
        mean, std: one number a channel, of the training images in [0, 1]; empty for text.
        words: of text, the vocabulary, from the training sentences alone; empty for images.
        noise: standard deviation of Gaussian noise on the inputs: drawn anew for every training batch, always the same
            for validation and test; 0 for none.
    """

    name: str
    kind: str
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    train: Split
    validation: Split
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    words: tuple[str, ...] = ()
    noise: float = 0.0
    _test: Split = field(kw_only=True, repr=False)
    _tested: weakref.WeakSet[nn.Module] = field(default_factory=weakref.WeakSet, init=False, repr=False)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the content: the samples of each split in order, their classes and words, the noise."""
        whole = hashlib.sha256(repr((self.kind, self.classes, self.words, self.noise)).encode())
        for split in (self.train, self.validation, self._test):
            whole.update(split.digest())
        return whole.hexdigest()

    @property
    def counts(self) -> dict[str, int]:
        """Samples of each split."""
        return {"train": len(self.train), "validation": len(self.validation), "test": len(self._test)}

    @property
    def input(self) -> InputSpec:
        """What a network trained on these images is fed.

        Raises:
            RequestError: the data is text.
        """
        if self.kind == "text":
            raise RequestError(f"data {self.name!r} is text; it has no image to specify")
        return InputSpec(self.shape, self.mean, self.std)

    @property
    def values(self) -> bool:
        """Whether the targets are values, not classes."""
        return self.train.targets.is_floating_point()

    @property
    def arguments(self) -> dict[str, Any]:
        """What a factory of networks may want to know: `build` hands it those that it takes."""
        if self.kind == "text":
            return {"vocabulary": len(self.words), "classes": len(self.classes), "vectors": self.word_vectors}
        channels, *size = self.shape
        return {"in_channels": channels, "classes": len(self.classes), "size": tuple(size)}

    def word_vectors(self, dim: int) -> Tensor:
        """Vectors of the words, made from the training sentences: [word, dim].

        Raises:
            RequestError: the data is not text.
        """
        if self.kind != "text":
            raise RequestError(f"data {self.name!r} is no text; it has no words")
        return words.vectors(cast(Tensor, self.train.inputs), len(self.words), dim)

    def final_test(self, module: nn.Module) -> Split:
        """The test split, to score this trained network, once.

        Raises:
            RequestError: it was handed out for this very module before.
        """
        if module in self._tested:
            raise RequestError(
                f"the test split of {self.name!r} was already used on this network; choose by the validation split, or the "
                "test figure means nothing"
            )
        self._tested.add(module)
        return self._test

    def to_dict(self) -> dict[str, Any]:
        """Plain values that say which data this is."""
        about: dict[str, Any] = {
            "name": self.name,
            "kind": self.kind,
            "classes": list(self.classes),
            "shape": list(self.shape),
        }
        about |= {"counts": self.counts, "mean": list(self.mean), "std": list(self.std)}
        return {**about, "words": len(self.words), "noise": self.noise, "sha256": self.hash}

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {split}" for split, count in self.counts.items())
        return f"Data({self.name!r}, {self.kind}, {len(self.classes)} classes, shape {self.shape}, {counts})"


def dataset(
    source: str | os.PathLike[str],
    *,
    test: str | os.PathLike[str] | None = None,
    seed: int = 0,
    validation: float = 0.1,
    fold: tuple[int, int] | None = None,
    limit: int | None = None,
    test_limit: int | None = None,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    most_words: int | None = None,
    length: int = 256,
    lower: bool = True,
) -> Data:
    """Labelled samples of a source, in three splits.

    Args:
        source: one of
            "fashion", 4,000 embedded images of clothes in 10 classes;
            "fashion-denoise", the same with noise, to predict the image without; "fashion-segmentation", to predict for
            each pixel the garment it belongs to, or none;
            "glosses", 20,000 dictionary definitions of 6 kinds of things;
            a folder or tar of class folders of pictures, or of such folders named train, val and test;
            a folder of IDX files (MNIST and its kin), or of CIFAR-10 or CIFAR-100, as torchvision keeps them;
            an NPZ file of x_train, y_train, x_test, y_test, or of x, y (or images, labels); labels [sample, height, width]
            make a dense prediction;
            a text file, a sample a line: `label sentence`, or `label TAB sentence`.
        test: another source, whose samples are the test split.
        seed: of the splits and of what `limit` takes.
        validation: part of the training samples set aside, where the source has no validation split.
        fold: (k, n): the k-th of n equal parts, from 0, is the test split, the others the training, whatever the source
            says. All n cover everything once.
        limit: at most so many samples to train and validate on together, the classes in proportion.
        test_limit: at most so many to test on.
        size: height and width to fit pictures to, cut to their proportions; needed where files differ.
        channels: 1 or 3, of pictures; 1 where all that were looked at are grey.
        most_words: of text, the size of the vocabulary, the frequent words first; the others count as one.
        length: of text, words a sentence, at most.
        lower: of text, whether capitals count as small letters.

    Returns:
        The data. A fifth is the test split where the source has none. Classes keep their proportions in all splits.

    Raises:
        RequestError: there is no such source, its classes cannot be told, or it is too small to split.
        BadInput: a file is damaged or hostile; no code of it runs.

    Example:
        >>> dataset("fashion", limit=500)
        Data('fashion', image, 10 classes, shape (1, 28, 28), 450 train, 50 validation, 2000 test)
    """
    _check(validation, fold, limit, test_limit, length, most_words)
    shape = channels, (size, size) if isinstance(size, int) else size
    found = read(source, shape)
    if test is not None:
        found = with_test(found, read(test, shape), str(test))
    parts = dict(found.parts)
    if fold is not None:
        everything = joined(list(parts.values()))
        order = spread(everything.targets, seed)
        chosen = torch.zeros(len(order), dtype=torch.bool)
        low, high = (k * len(order) // fold[1] for k in (fold[0], fold[0] + 1))
        chosen[order[low:high]] = True
        parts = {"train": everything.take(where(~chosen)), "test": everything.take(where(chosen))}
    elif "test" not in parts:
        parts["test"], parts["train"] = cut(parts["train"], TEST_SHARE, seed)
    if limit is not None:
        share = len(parts["train"]) / (len(parts["train"]) + len(parts.get("validation", ())))
        for split, most in (("train", round(limit * share)), ("validation", limit - round(limit * share))):
            if split in parts:
                parts[split] = at_most(parts[split], most, seed)
    if "validation" not in parts:
        parts["validation"], parts["train"] = cut(parts["train"], validation, seed)
    if test_limit is not None:
        parts["test"] = at_most(parts["test"], test_limit, seed)
    for split, part in parts.items():
        if not len(part):
            raise RequestError(
                f"data={str(source)!r} leaves no sample for {split}; give more samples or a higher limit"
            )
    return _data(str(source), found.classes, parts, most_words, length, lower)


def _data(
    name: str,
    classes: tuple[str, ...],
    parts: dict[str, Part],
    most_words: int | None,
    length: int,
    lower: bool,
) -> Data:
    """Sentences as numbers, mean and std of images, everything named."""
    first = parts["train"]
    if isinstance(first.inputs, list):
        told = {
            split: [words.tokens(text, lower) for text in cast(list[str], part.inputs)]
            for split, part in parts.items()
        }
        known = words.vocabulary(told["train"], most_words)
        longest = min(length, max(len(sentence) for sentences in told.values() for sentence in sentences))
        splits = {
            split: Split(words.numbers(sentences, known, longest), parts[split].targets)
            for split, sentences in told.items()
        }
        return Data(
            name,
            "text",
            classes,
            (longest,),
            splits["train"],
            splits["validation"],
            words=known,
            _test=splits["test"],
        )
    images = {
        split: Split(cast(Tensor | Pictures, part.inputs), part.targets) for split, part in parts.items()
    }
    shapes = {tuple(split.inputs.shape[1:]) for split in images.values()}
    if len(shapes) > 1:
        raise BadInput(
            f"images of data={name!r} differ in shape between its splits: {sorted(shapes)}; make them alike"
        )
    targets = first.targets
    if targets.ndim > 1 and {tuple(split.targets.shape[-2:]) for split in images.values()} != {
        next(iter(shapes))[1:]
    }:
        raise BadInput(
            f"data={name!r} has images and dense targets of different height and width; make them alike"
        )
    places = torch.arange(len(images["train"]))[:: max(1, len(images["train"]) // LOOKED_AT)]
    sample = images["train"].batch(places)[0]
    return Data(
        name,
        "dense" if targets.ndim > 1 else "image",
        classes if not targets.is_floating_point() else tuple(map(str, range(targets.shape[1]))),
        next(iter(shapes)),
        images["train"],
        images["validation"],
        tuple(round(value, 6) for value in sample.mean((0, 2, 3)).tolist()),
        tuple(round(max(value, 1e-3), 6) for value in sample.std((0, 2, 3)).tolist()),
        noise=NOISE if name == "fashion-denoise" else 0.0,
        _test=images["test"],
    )


def _check(
    validation: float,
    fold: tuple[int, int] | None,
    limit: int | None,
    test_limit: int | None,
    length: int,
    most_words: int | None,
) -> None:
    if not 0 < validation < 1:
        raise RequestError(f"validation={validation} must be a part of the samples, above 0 and below 1")
    if fold is not None and (len(fold) != 2 or fold[1] < 2 or fold[0] not in range(fold[1])):
        raise RequestError(f"fold={fold} must be (k, n) with n at least 2 and k from 0 to n - 1")
    counts = {
        "limit": (limit, 2),
        "test_limit": (test_limit, 1),
        "length": (length, 1),
        "most_words": (most_words, 3),
    }
    for name, (value, least) in counts.items():
        if value is not None and value < least:
            raise RequestError(f"{name}={value} must be at least {least}")


def _bytes(tensor: Tensor) -> bytes:
    plain = tensor.contiguous()
    head = repr((tuple(plain.shape), plain.dtype)).encode()
    return head + plain.reshape(-1).view(torch.uint8).numpy().tobytes()
