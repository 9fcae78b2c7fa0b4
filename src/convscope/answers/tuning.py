"""Networks trained on for a little on labelled images: what a change of the network costs before, and what is learned back.

The images to learn from and those to score on never meet: of the embedded clothes the training and the test part, of images
that were given every other one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from convscope.answers.asked import Asked, Seen
from convscope.answers.layers import profile_of
from convscope.data import fashion as clothes
from convscope.errors import ConvscopeError
from convscope.models import Net
from convscope.studies.data import Data, Split
from convscope.studies.finetune import LR, finetuned

_BATCH, _STEPS = 32, 56
LEAST = 40  # images: from fewer there is little to learn
_QUICK, _FULL = 4e11, 2e13  # multiply-accumulates of a training at most


@dataclass(frozen=True, eq=False)
class Lesson:
    """Labelled images, apart.

    Attributes:
        learn: network input to learn from [image, channel, height, width], and its classes.
        score: images to score on, with labels.
    """

    learn: tuple[Tensor, Tensor]
    score: Seen


def lesson(asked: Asked, net: Net, images: Seen, *, own: bool) -> Lesson:
    """What to learn from and what to score on.

    Args:
        asked: the question.
        net: the network that `images` are for.
        images: labelled.
        own: whether they may be those asked for, as of `Asked.images`.
    """
    assert images.labels is not None
    if asked.data is None or not own:
        x, labels = clothes("train")
        return Lesson((net.input.normalize(x), labels), images)
    scored = Seen(images.x[1::2], images.labels[1::2], f"every other of {images.source}")
    return Lesson(mixed(images.x[::2], images.labels[::2], asked.seed), scored)


def mixed(x: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Images and classes in an order of chance: a folder has them class by class, and a first part is to have all classes."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    return x[order], labels[order]


def tuned(
    asked: Asked,
    net: Net,
    taught: Lesson,
    *,
    layers: str | Iterable[str] = "*",
    epochs: int = 4,
    lr: float = LR,
    most: int = 500,
) -> Net | str:
    """The network trained on; or why it was not.

    Args:
        asked: sets the seed, and with `quick` how much is trained.
        net: it stays as it is.
        taught: the images.
        layers: names or globs of those to train.
        epochs, lr: of the training; of few images more epochs are made, so that there are steps enough to learn from.
        most: images a quick answer learns from.
    """
    macs = max(profile_of(net).totals.macs, 1)
    most = min(most if asked.quick else 2000, int((_QUICK if asked.quick else _FULL) / (3 * macs * epochs)))
    x, labels = taught.learn[0][:most], taught.learn[1][:most]
    if len(x) < LEAST:
        return f"{len(x)} images are too few to train on" if most >= LEAST else "not trained for its cost"
    epochs = max(epochs, math.ceil(_STEPS * _BATCH / len(x)))
    try:
        return finetuned(
            net, _data(net, x, labels), layers, epochs, lr=lr, seed=asked.seed, batch=min(_BATCH, len(x) // 2)
        )[0]
    except ConvscopeError as error:
        return str(error)


def _data(net: Net, x: Tensor, labels: Tensor) -> Data:
    """Network input as a data set; a tenth is for validation."""
    held = torch.zeros(len(x), dtype=torch.bool)
    held[::10] = True
    pixels = (net.input.denormalize(x.float()).clamp(0, 1) * 255).round().to(torch.uint8)
    train, held_out = (Split(pixels[which], labels[which].long()) for which in (~held, held))
    classes = net.labels or tuple(map(str, range(_outputs(net, x))))
    return Data("images", "image", tuple(classes), tuple(x.shape[1:]), train, held_out, _test=held_out)


@torch.no_grad()
def _outputs(net: Net, x: Tensor) -> int:
    return int(net.copy()(x[:1]).shape[1])
