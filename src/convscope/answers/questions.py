"""The questions there are, by name; each is answered by the file of that name."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from convscope.errors import UnknownName, nearest

if TYPE_CHECKING:
    from convscope.answers.asked import Asked
    from convscope.answers.base import Draft


@dataclass(frozen=True)
class Question:
    """A question, and where its answer comes from.

    Its file `answers/NAME.py` has `PARTS`, the names of the measurements it is made of, and `answer(asked)`.

    Attributes:
        name: the name to ask by.
        title: the question in full.
        source: the network to ask where none is given, as `load` takes it; None is the embedded EfficientNet-Lite0.
        words: other words people ask by.
        studies: those on record that its answer reads; of each one run is trained again.
    """

    name: str
    title: str
    source: str | None = None
    words: tuple[str, ...] = ()
    studies: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """Name of the module that answers it."""
        return f"{__package__}.{self.name.replace('-', '_')}"

    @property
    def parts(self) -> Sequence[str]:
        """Names of the measurements it is made of."""
        parts: Sequence[str] = importlib.import_module(self.module).PARTS
        return [*parts, *map(cost, self.studies), *map(again, self.studies)]

    @property
    def answer(self) -> Callable[[Asked], Draft]:
        """What answers it."""
        answer: Callable[[Asked], Draft] = importlib.import_module(self.module).answer
        return answer


def again(study: str) -> str:
    """Name of the measurement that trains a run of a study on record again."""
    return f"again-{study}"


def cost(study: str) -> str:
    """Name of the measurement that times the variants of a study on record here."""
    return f"cost-{study}"


_SIZES = tuple(f"filter-{of}" for of in ("size", "stacks", "object", "resolution", "noise", "depth"))
QUESTIONS = {
    question.name: question
    for question in (
        Question("features", "What does each filter look for?", words=("visualization", "filters")),
        Question("filter-size", "Which filter size?", "fashion", ("kernel", "kernel-size", "3x3"), _SIZES),
        Question(
            "locally-connected",
            "What does sharing weights do?",
            "fashion",
            ("local", "sharing", "unshared"),
            ("locally-connected",),
        ),
        Question(
            "text-channels",
            "How many channels does text have, and what do its filters look for?",
            "fashion",
            ("text", "n-gram", "embedding"),
            ("text-channels",),
        ),
        Question("padding", "What does padding do, and which one?", words=("border", "same", "valid")),
        Question(
            "upsampling",
            "Which way to upsample?",
            "fashion-decoder",
            ("unpooling", "deconvolution", "decoder"),
            ("upsampling",),
        ),
        Question(
            "one-by-one",
            "What does a 1x1 convolution do?",
            words=("1x1", "pointwise", "bottleneck"),
            studies=("convolution",),
        ),
        Question(
            "pooling",
            "What is pooling for, and which one?",
            "fashion",
            ("pool", "maxpool", "stride"),
            ("pooling", "pooling-window", "pooling-head"),
        ),
        Question(
            "separable",
            "What does a depthwise separable convolution save?",
            words=("depthwise", "mobilenet"),
            studies=("convolution",),
        ),
        Question(
            "input-size",
            "What if images have another size than the network?",
            words=("size", "resize", "resolution"),
        ),
        Question(
            "fully-connected",
            "Is a fully-connected layer a convolution?",
            "fashion",
            ("dense", "linear", "fc"),
            ("pooling-head",),
        ),
        Question("fft-winograd", "FFT or Winograd, when?", words=("fft", "winograd", "algorithm")),
    )
}


def find(name: str) -> Question:
    """The question of a name, or of a word that means just one.

    Raises:
        UnknownName: there is none; the nearest are suggested.

    Example:
        >>> find("Padding").name
        'padding'
    """
    plain = re.sub(r"[\s_/]+", "-", name.strip().lower())
    if plain in QUESTIONS:
        return QUESTIONS[plain]
    meant = [
        q for q in QUESTIONS.values() if plain in q.words or (len(plain) > 2 and q.name.startswith(plain))
    ]
    if len(meant) == 1:
        return meant[0]
    known = {word: q.name for q in QUESTIONS.values() for word in (q.name, *q.words)}
    hint = nearest(plain, known) or f"; there are {', '.join(QUESTIONS)}, and all"
    raise UnknownName(f"question {name!r} is none that can be asked{hint}")
