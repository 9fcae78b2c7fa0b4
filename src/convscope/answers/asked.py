"""What a question's file is given: the network, images, and a place where finished measurements are kept.

A measurement is a part of an answer: `asked.part("shapes", measure)` runs `measure` once and keeps what it gives, plain
values and arrays, under a key made of all it depends on: network, data, settings, the code of its file, versions, and for
times the machine. A second run takes from the store what has the same key.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import convscope
from convscope import timing
from convscope.answers.layers import profile_of
from convscope.answers.questions import Question
from convscope.data import fashion, images
from convscope.data.fashion import LABELS
from convscope.data.images import Images
from convscope.errors import BadInput, RequestError
from convscope.models import Net, load
from convscope.rewrites.feed import Feed
from convscope.store import Store

Progress = Callable[[dict[str, Any]], None]
_SHARED = ("asked", "layers", "running", "tuning")  # what the measurements of all questions are made with
NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True, eq=False)
class Seen:
    """Images as a network takes them.

    Attributes:
        x: Tensor [image, channel, height, width] of network input.
        labels: the right class of each, Tensor [image], or None.
        source: what they are, such as "12 images of photographs".
    """

    x: Tensor
    labels: Tensor | None
    source: str


class Meter:
    """Counts finished measurements for the progress bar."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total, self.progress, self.done, self.reused = total, progress, 0, 0
        self._began = time.perf_counter()

    def tell(self, what: str, *, done: int = 0, reused: bool = False) -> None:
        """So many more are done; `what` is under way."""
        self.done += done
        self.reused += reused
        if self.progress is None:
            return
        made = self.done - self.reused
        rate = made / max(time.perf_counter() - self._began, 1e-9)
        left = (self.total - self.done) / rate if made else None
        self.progress(
            {"done": self.done, "total": self.total, "rate": rate, "seconds_left": left, "layer": what}
        )


class Asked:
    """A question, asked of a network.

    Attributes:
        question: which.
        net: the network asked for, or the question's own.
        given: whether it was asked for.
        data: the images asked for, as given; None where none were.
        quick: whether to measure less.
        seed: every random choice follows from it.
        studies: a folder of study records, in place of those that ship.
        load: the machine's highest load while times were taken so far.
    """

    def __init__(
        self,
        question: Question,
        net: Net | None,
        data: Any,
        *,
        quick: bool,
        seed: int,
        store: Store | None,
        meter: Meter,
        studies: Path | None = None,
    ) -> None:
        self.question, self.given, self.data = question, net is not None, data
        self.net = load(question.source) if net is None else net
        self.quick, self.seed, self.studies = quick, seed, studies
        self.load = 0.0
        self._store, self._meter = store, meter

    def example(self, source: str) -> Net:
        """An embedded network, for what the network asked for has no layer to show."""
        return load(source)

    # -- images ----------------------------------------------------------------------------------------------

    def limit(self, net: Net) -> int:
        """How many images to run a network on several times: some seconds' worth, at most 2,000."""
        macs = profile_of(net).totals.macs
        return max(16, min(2000, int((5e9 if self.quick else 2e11) / max(macs, 1))))

    def images(self, net: Net, limit: int | None = None, *, own: bool = True) -> Seen:
        """Images for a network: those asked for; else, where it takes 1x28x28, the clothes of Fashion-MNIST, which are
        labelled for the embedded classifier; else the embedded photographs.

        Args:
            net: the network.
            limit: at most so many; by default what takes some seconds.
            own: whether it is about the images asked for; False for an embedded network that they need not fit.
        """
        spec = net.input
        data = self.data if own else None
        limit = self.limit(net) if limit is None else limit
        if data is None and spec.shape == (1, 28, 28):
            pictures, labels = fashion("test")
            x = spec.normalize(pictures[:limit]).to(spec.dtype)
            right = labels[:limit] if net.labels == LABELS else None
            return Seen(x, right, f"{len(x):,} test images of Fashion-MNIST")
        feed = Feed([net], data, limit=limit, seed=self.seed)
        places, pieces = [], []
        for place, inputs in feed.batches(32):
            places += place
            pieces.append(inputs[0])
        labels_ = None if feed.labels is None else feed.labels[places]
        return Seen(torch.cat(pieces), labels_, f"{len(places):,} images of {_source(feed.source)}")

    # -- measurements ----------------------------------------------------------------------------------------

    def part(
        self,
        name: str,
        measure: Callable[[], Mapping[str, Any]],
        *,
        about: Mapping[str, Any] = NOTHING,
        net: Net | None = None,
        data: bool = False,
        timed: bool = False,
    ) -> dict[str, Any]:
        """What a measurement gives, run now or kept from before: plain values, arrays as numpy's.

        Args:
            name: one of the file's `PARTS`.
            measure: gives plain values, tensors and arrays by name.
            about: settings it depends on, beyond network, seed and `quick`.
            net: the network it is about, where that is not the one asked for.
            data: whether it depends on the images.
            timed: whether it holds times, which are this machine's.
        """
        if name not in self.question.parts:
            raise KeyError(f"{name!r} is not in PARTS of {self.question.module}")
        key = self._key(measure, about, self.net if net is None else net, data, timed)
        piece = f"{self.question.name}/{name}"
        self._meter.tell(f"{self.question.name}: {name}")
        kept = None if self._store is None else _kept(self._store, piece, key)
        if kept is None:
            values = measure()
            if timed:
                values = {**values, "load": timing.load()}
            plain = {k: _plain(v) for k, v in values.items() if not isinstance(v, Tensor | np.ndarray)}
            arrays = {k: _array(v) for k, v in values.items() if isinstance(v, Tensor | np.ndarray)}
            kept = json.loads(json.dumps(plain)) | arrays  # the same whether it comes from the store or not
            if self._store is not None:
                files = {f"{piece}.npz": _packed(arrays)} if arrays else {}
                self._store.put(piece, {"key": key, "values": plain}, files)
            self._meter.tell(f"{self.question.name}: {name}", done=1)
        else:
            self._meter.tell(f"{self.question.name}: {name}", done=1, reused=True)
        if timed and kept["load"] is not None:
            self.load = max(self.load, kept["load"])
        return kept

    def _key(
        self, measure: Callable[..., Any], about: Mapping[str, Any], net: Net, data: bool, timed: bool
    ) -> str:
        function = measure.func if isinstance(measure, partial) else measure
        files = (function.__code__.co_filename, *(Path(__file__).with_name(f"{name}.py") for name in _SHARED))
        code = b"".join(Path(str(file)).read_bytes() for file in files)
        told: dict[str, Any] = {
            "code": hashlib.sha256(code).hexdigest(),
            "convscope": convscope.__version__,
            "torch": torch.__version__,
            "net": net.sha256,
            "structure": hashlib.sha256(repr(net.module).encode()).hexdigest(),
            "input": net.input.to_dict(),
            "labels": None if net.labels is None else list(net.labels),
            "quick": self.quick,
            "seed": self.seed,
            "about": dict(about),
            "data": _fingerprint(self.data) if data else None,
            "machine": [timing.processor(), torch.get_num_threads()] if timed else None,
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _kept(store: Store, piece: str, key: str) -> dict[str, Any] | None:
    """A finished measurement of this key, or None."""
    if piece not in store.finished():
        return None
    record = store.get(piece)
    if record["key"] != key:
        return None
    values: dict[str, Any] = record["values"]
    file = store.folder / f"{piece}.npz"
    if file.exists():
        with np.load(file, allow_pickle=False) as arrays:
            values |= {name: arrays[name] for name in arrays.files}
    return values


def _packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    written = io.BytesIO()
    np.savez_compressed(written, **dict(arrays))  # type: ignore[arg-type]
    return written.getvalue()


def _array(value: Tensor | np.ndarray) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else value


def _plain(value: Any) -> Any:
    """Plain values; what is not a finite number becomes None."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def _fingerprint(data: Any) -> str | None:
    """What tells these images from others."""
    if data is None:
        return None
    if isinstance(data, Tensor):
        return hashlib.sha256(data.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
    return images(data).fingerprint


def _source(source: str) -> str:
    """A folder by its last name: where it lies is the user's affair."""
    return Path(source).name or source


def check_data(data: Any) -> Any:
    """The images asked for, found before anything is measured.

    Raises:
        RequestError: they do not exist, or are of a type that is no images.
    """
    if data is None or isinstance(data, Tensor | Images):
        return data
    if not isinstance(data, str | Path):
        raise RequestError(
            f"data ({type(data).__name__}) must be a file, a folder, Images or a tensor of network input"
        )
    return images(data)


def needs_channels(net: Net, question: str) -> None:
    """Refuses a network without two-dimensional convolutions, of which there is nothing to ask.

    Raises:
        BadInput: the network has none.
    """
    if not any(isinstance(part, nn.Conv2d) for part in net.module.modules()):
        raise BadInput(
            f"net {net.name!r} has no nn.Conv2d, and {question} is about convolutions; ask another network"
        )
