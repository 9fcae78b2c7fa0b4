"""Four thousand images of clothes, a balanced part of Fashion-MNIST, so that measuring on labelled data needs no file.

Fashion-MNIST, copyright 2017 Zalando SE, under the MIT licence that lies beside the images in `fashion_mnist/LICENSE`.
Xiao, Rasul, Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms" (2017).
`tools/train_fashion.py` chose the images; `fashion_mnist/samples.json` holds their places in the whole set.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from convscope.data.images import read_image, to_tensor
from convscope.errors import UnknownName, nearest

FOLDER = Path(__file__).parent / "fashion_mnist"
LABELS = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
SPLITS = ("train", "test")
SIDE = 28  # px


def fashion(split: str = "test") -> tuple[Tensor, Tensor]:
    """Embedded images of Fashion-MNIST with their labels: 200 of each class, the classes taking turns.

    Any first part is therefore balanced too. Those of "train" come from the training set, but the embedded networks
    were not trained on them (they were watched on them while they trained): take them to calibrate, to choose and to
    train on. Those of "test" come from the test set: take them to score.

    Args:
        split: "train" or "test".

    Returns:
        Images, Tensor [2000, 1, 28, 28] in [0, 1], and labels, Tensor [2000] of places in `LABELS`.

    Raises:
        UnknownName: there is no such split.

    Example:
        >>> images, labels = fashion("test")
        >>> images.shape, [LABELS[label] for label in labels[:2]]
        (torch.Size([2000, 1, 28, 28]), ['T-shirt/top', 'Trouser'])
    """
    if split not in SPLITS:
        raise UnknownName(f"split={split!r} must be 'train' or 'test'{nearest(split, SPLITS)}")
    sheet = to_tensor(read_image(FOLDER / f"{split}.webp"), channels=1)  # [1, row * 28, column * 28]
    tiles = sheet[0].unfold(0, SIDE, SIDE).unfold(1, SIDE, SIDE)  # [row, column, 28, 28]
    images = tiles.reshape(-1, 1, SIDE, SIDE)
    return images, torch.arange(len(images)) % len(LABELS)


def credit() -> dict[str, str]:
    """Whom the images are due to, and the networks that were trained on them: title, attribution, license, url.

    Example:
        >>> credit()["license"]
        'MIT'
    """
    about = json.loads((FOLDER / "samples.json").read_text(encoding="utf-8"))
    return {"name": "fashion", **{key: about[key] for key in ("title", "attribution", "license", "url")}}


def noisy(images: Tensor, std: float = 0.25, seed: int = 0) -> Tensor:
    """The images with Gaussian noise, cut to [0, 1]: what `load("fashion-decoder")` was trained to undo.

    Args:
        images: in [0, 1], of any shape.
        std: of the noise.
        seed: of the noise; the same for the same seed on every device.

    Returns:
        Tensor of the shape of `images`.

    Example:
        >>> noisy(torch.zeros(1, 1, 2, 2), std=0.0)
        tensor([[[[0., 0.],
                  [0., 0.]]]])
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(images.shape, generator=generator, dtype=torch.float32).to(images)
    return (images + std * noise).clamp(0, 1)
