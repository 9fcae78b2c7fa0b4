"""How right a network is: the loss it is trained by, and one figure that is comparable between trainings."""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from convscope.data.fashion import noisy
from convscope.errors import BadInput
from convscope.models import InputSpec
from convscope.studies.data import Split

CHUNK: Final = 500  # samples at once, always the same, so that figures do not depend on a training's batch


class Score(NamedTuple):
    """Of one split.

    Attributes:
        loss: mean cross entropy in nats, or mean squared error.
        accuracy: part of samples (or pixels) whose class is right; of values R^2, the part of their variance explained.
    """

    loss: float
    accuracy: float


def loss_of(outputs: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross entropy of classes, mean squared error of values.

    Raises:
        BadInput: the network's outputs are not of the targets' shape.
    """
    check_outputs(outputs, targets)
    if targets.is_floating_point():
        return functional.mse_loss(outputs.float(), targets)
    return functional.cross_entropy(outputs.float(), targets, label_smoothing=smoothing)


def check_outputs(outputs: Tensor, targets: Tensor) -> None:
    """Refuses outputs of another shape than the targets ask for."""
    if targets.is_floating_point():
        wanted, fits = str(list(targets.shape)), outputs.shape == targets.shape
    else:
        wanted = str([len(targets), "classes", *targets.shape[1:]]).replace("'", "")
        fits = outputs.ndim == targets.ndim + 1 and outputs.shape[0:1] + outputs.shape[2:] == targets.shape
        if fits and int(targets.max()) >= outputs.shape[1]:
            wanted, fits = f"{wanted} of at least {int(targets.max()) + 1} classes", False
    if not fits:
        raise BadInput(
            f"the network gives outputs of shape {list(outputs.shape)} where the data needs {wanted}; "
            "build it for this data"
        )


def right(outputs: Tensor, targets: Tensor) -> float:
    """How many classes are right, in samples; of values nothing, R^2 is worked out over a whole split."""
    if targets.is_floating_point():
        return 0.0
    return (outputs.argmax(1) == targets).double().mean().item() * len(targets)


@torch.no_grad()
def score(
    module: nn.Module,
    split: Split,
    *,
    spec: InputSpec | None,
    noise: float = 0.0,
    device: torch.device | str = "cpu",
    most: int | None = None,
) -> Score:
    """Loss and accuracy of a network in eval mode, in float32.

    Args:
        module: the network; left in eval mode.
        split: the samples.
        spec: how images are normalized; None for text.
        noise: standard deviation of noise on the inputs, the same at every call.
        device: where the network is.
        most: at most so many samples, evenly spread.

    Raises:
        BadInput: the network's outputs are not of the targets' shape.
    """
    module.eval()
    count = len(split) if most is None else min(most, len(split))
    every = torch.arange(count) * len(split) // count
    loss = hits = 0.0
    total, squares, numbers = 0.0, 0.0, 0
    for chunk, places in enumerate(every.split(CHUNK)):
        inputs, targets = split.batch(places)
        if spec is not None:
            inputs = spec.normalize(noisy(inputs, noise, chunk) if noise else inputs)
        outputs, targets = module(inputs.to(device)), targets.to(device)
        loss += loss_of(outputs, targets).item() * len(places)
        hits += right(outputs, targets)
        if targets.is_floating_point():
            total += targets.double().sum().item()
            squares += targets.double().square().sum().item()
            numbers += targets.numel()
    if not numbers:
        return Score(loss / count, hits / count)
    variance = squares / numbers - (total / numbers) ** 2
    return Score(loss / count, 1 - loss / count / max(variance, 1e-12))
