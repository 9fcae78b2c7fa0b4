"""How a network is trained: the settings, the optimizer they name, and its rate at every step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from torch import nn

from convscope.errors import RequestError, UnknownName, nearest
from convscope.studies.augmentation import AUGMENTATIONS

# optimizer -> learning rate and weight decay where nobody says
OPTIMIZERS: Final = {"sgd": (0.1, 5e-4), "adamw": (2e-3, 1e-2), "adadelta": (1.0, 0.0)}
SCHEDULES: Final = ("one-cycle", "cosine", "step", "constant")
PRECISIONS: Final = ("auto", "float32", "bfloat16")
KEPT: Final = ("last", "best")
DROPS: Final = (0.5, 0.75)  # parts of a "step" schedule after which the rate falls to a tenth


@dataclass(frozen=True)
class Training:
    """The settings of a training, of which one limits its length.

    Args:
        epochs: passes over the training samples, also a part of one; 10 where no limit is given.
        macs: or multiply-accumulates of all forward and backward passes together, so that costly networks see less.
        seconds: or time; such a training cannot be repeated exactly.
        batch: samples a step. What is left of an epoch is dropped, another part each time.
        optimizer: "sgd" (with Nesterov's momentum), "adamw" or "adadelta".
        lr: the highest learning rate; 0.1, 0.002 and 1 unless given.
        momentum: of "sgd".
        weight_decay: of convolutions and linear layers, not of norms and biases; 5e-4, 0.01 and 0 unless given.
        schedule: "one-cycle" (up and down in straight lines), "cosine" (up in a line, down as a cosine), "step" (a tenth after
            half, a hundredth after three quarters) or "constant".
        warmup: part of the training in which the rate rises from 0; 0.2 for "one-cycle", else 0, unless given.
        augmentation: of images, some of "flip" and "crop"; see `augmented`.
        shift: pixels by which "crop" moves at most; an eighth of the image's smaller side unless given.
        label_smoothing: part of each class label that is spread over all classes.
        precision: of the passes: "float32"; "bfloat16", with weights and optimizer in float32; or "auto", which is bfloat16
            on a GPU that has it and float32 elsewhere: on a CPU it may halve the time of full convolutions and double that
            of depthwise ones, and variants that are compared must be trained alike.
        keep: "last", the weights at the end; or "best", those of the epoch with the best validation accuracy.

    Raises:
        RequestError: a number is out of its range, or more than one limit is given.
        UnknownName: a name that there is not.

    Example:
        >>> Training(epochs=3, optimizer="adamw").lr
        0.002
    """

    epochs: float | None = None
    macs: float | None = None
    seconds: float | None = None
    batch: int = 128
    optimizer: str = "sgd"
    lr: float | None = None
    momentum: float = 0.9
    weight_decay: float | None = None
    schedule: str = "one-cycle"
    warmup: float | None = None
    augmentation: Sequence[str] = ()
    shift: int | None = None
    label_smoothing: float = 0.0
    precision: str = "auto"
    keep: str = "last"

    def __post_init__(self) -> None:
        if isinstance(self.augmentation, str):
            raise RequestError(f"augmentation={self.augmentation!r} must be a list, such as ['flip', 'crop']")
        object.__setattr__(self, "augmentation", tuple(self.augmentation))
        for name, value, known in (
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("schedule", self.schedule, SCHEDULES),
            ("precision", self.precision, PRECISIONS),
            ("keep", self.keep, KEPT),
            *(("augmentation", kind, AUGMENTATIONS) for kind in self.augmentation),
        ):
            if value not in known:
                raise UnknownName(
                    f"{name}={value!r} must be one of {', '.join(known)}{nearest(str(value), known)}"
                )
        limits = {name: getattr(self, name) for name in ("epochs", "macs", "seconds")}
        given = [f"{name}={value}" for name, value in limits.items() if value is not None]
        if len(given) > 1:
            raise RequestError(f"{' and '.join(given)} both limit the training; give one of them")
        if not given:
            object.__setattr__(self, "epochs", 10.0)
        for name, place in (("lr", 0), ("weight_decay", 1)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, OPTIMIZERS[self.optimizer][place])
        if self.warmup is None:
            object.__setattr__(self, "warmup", 0.2 if self.schedule == "one-cycle" else 0.0)
        self._check_numbers()

    def _check_numbers(self) -> None:
        for name in ("epochs", "macs", "seconds", "batch", "lr"):
            value = getattr(self, name)
            if value is not None and not (_number(value) and 0 < value < math.inf):
                raise RequestError(f"{name}={value!r} must be a positive number")
        if not isinstance(self.batch, int):
            raise RequestError(f"batch={self.batch!r} must be a whole number")
        if self.shift is not None and (not isinstance(self.shift, int) or self.shift < 0):
            raise RequestError(f"shift={self.shift!r} must be a whole number of pixels from 0")
        for name in ("momentum", "label_smoothing", "warmup"):
            value = getattr(self, name)
            if not (_number(value) and 0 <= value < 1):
                raise RequestError(f"{name}={value!r} must be from 0 and below 1")
        if not (_number(self.weight_decay) and 0 <= self.weight_decay < math.inf):  # type: ignore[operator]
            raise RequestError(f"weight_decay={self.weight_decay!r} must be from 0")

    def rate(self, progress: float) -> float:
        """The learning rate when this part of the training, from 0 to 1, is done.

        Example:
            >>> training = Training(epochs=1, lr=1.0)
            >>> [training.rate(part) for part in (0.1, 0.2, 0.6, 1.0)]
            [0.5, 1.0, 0.5, 0.0]
        """
        lr, warmup = self.lr or 0.0, self.warmup or 0.0
        if progress < warmup:
            return lr * progress / warmup
        left = (1 - progress) / (1 - warmup)
        if self.schedule == "one-cycle":
            return lr * left
        if self.schedule == "cosine":
            return lr * (1 - math.cos(math.pi * left)) / 2
        if self.schedule == "step":
            return lr * 10.0 ** -sum(progress > drop for drop in DROPS)
        return lr

    def optimizer_of(self, module: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of what is trained in the module; norms and biases do not decay.

        Raises:
            RequestError: no parameter of it is trained.
        """
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if not parameters:
            raise RequestError("no parameter of the network is trained: all are frozen, or it has none")
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        lr = self.lr or 0.0
        if self.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=lr, momentum=self.momentum, nesterov=self.momentum > 0)
        if self.optimizer == "adamw":
            return torch.optim.AdamW(groups, lr=lr)
        return torch.optim.Adadelta(groups, lr=lr, rho=0.95)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `Training(**values)` makes the same."""
        return {**asdict(self), "augmentation": list(self.augmentation)}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
