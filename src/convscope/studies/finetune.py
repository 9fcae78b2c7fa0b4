"""Training on from the weights a network has: what a rewrite could only approximate is learned back."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convscope.errors import BadInput, ConvscopeWarning, ModelError, RequestError
from convscope.graph import resolve
from convscope.graph.record import flatten
from convscope.models import InputLike, InputSpec, Net, as_net
from convscope.rewrites.feed import _plain, _plain_names
from convscope.studies.data import Data, Split, dataset
from convscope.studies.training import Progress, Trained, Training, train

LR = 0.01  # a tenth of what a training from new weights takes


def finetune(
    net: Net | nn.Module,
    data: Data | str | os.PathLike[str],
    layers: str | Iterable[str] = "*",
    epochs: float = 3,
    *,
    lr: float = LR,
    input: InputLike | None = None,
    limit: int | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
    device: torch.device | str = "cpu",
    **settings: Any,
) -> Net:
    """Trains a network further, all of it or some layers; the one given stays as it is.

    Args:
        net: a Net, such as `rewrite(...).net`; or a module with `input=`.
        data: labelled images: a source for `convscope.studies.data.dataset`, or a `Data`. Class folders named as the
            network's classes train those; other names need as many classes as the network has outputs, and become its
            labels.
        layers: names or globs of the layers to train, with all that is inside them; the others stay, the statistics of
            their batch norms too.
        epochs: passes over the training samples.
        lr: the highest learning rate.
        input: what to feed a plain module.
        limit: at most so many samples to train and validate on.
        seed: of the splits, the order of samples, and augmentation.
        checkpoint, progress, device: as for `train`.
        settings: others of `Training`, such as `augmentation=["flip"]` or `keep="best"`.

    Returns:
        The trained network. Its test split is untouched; `finetuned` also gives the curves and scores.

    Raises:
        UnknownLayer: `layers` names nothing.
        RequestError: nothing is left to train, or classes do not fit the network's outputs.
        BadInput: the images do not fit the network.
        ModelError: the training diverged, or the network fails.

    Example:
        >>> import convscope
        >>> made = convscope.rewrite(convscope.load("fashion"), "kernel_size:5", where="block1.conv1")
        >>> tuned = finetune(made.net, "fashion", layers="head", epochs=1, limit=100, batch=30)
        >>> tuned.name
        'fashion, kernel_size:size=5, fine-tuned'
    """
    return finetuned(
        net,
        data,
        layers,
        epochs,
        lr=lr,
        input=input,
        limit=limit,
        seed=seed,
        checkpoint=checkpoint,
        progress=progress,
        device=device,
        **settings,
    )[0]


def finetuned(
    net: Net | nn.Module,
    data: Data | str | os.PathLike[str],
    layers: str | Iterable[str] = "*",
    epochs: float = 3,
    *,
    lr: float = LR,
    input: InputLike | None = None,
    limit: int | None = None,
    seed: int = 0,
    test: bool = False,
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
    device: torch.device | str = "cpu",
    **settings: Any,
) -> tuple[Net, Trained]:
    """As `finetune`; also gives what the training was. With `test` the test split is scored, in the end."""
    try:
        training = Training(epochs=epochs, lr=lr, **settings)
    except TypeError as error:
        known = ", ".join(Training.__dataclass_fields__)
        raise RequestError(f"settings {settings} cannot be made ({error}); there are {known}") from error
    subject = as_net(net, input)
    found = data if isinstance(data, Data) else _dataset(data, subject.input, seed, limit)
    found, labels = _in_order(subject, found)
    module = subject.copy()
    names = {""} if layers == "*" else set(resolve(subject, layers))
    chosen = [part for name, part in module.named_modules() if name in names]
    for parameter in (p for part in chosen for p in part.parameters()):
        parameter.requires_grad_(parameter.is_floating_point())
    trained = train(
        module,
        found,
        training,
        seed=seed,
        checkpoint=checkpoint,
        progress=progress,
        device=device,
        spec=subject.input,
        test=test,
    )
    if trained.diverged:
        raise ModelError(
            f"fine-tuning {subject.name} diverged at step {trained.steps}: the loss left all bounds; lower lr={lr}"
        )
    flags = dict(subject.module.named_parameters())
    for name, parameter in trained.module.named_parameters():
        parameter.requires_grad_(flags[name].requires_grad)
    made = replace(
        subject,
        module=trained.module,
        labels=labels,
        name=f"{subject.name}, fine-tuned",
        source=f"{subject.source}, fine-tuned on {found.name}",
        trained=True,
    )
    return made, trained


def _dataset(source: str | os.PathLike[str], spec: InputSpec, seed: int, limit: int | None) -> Data:
    channels = spec.channels if spec.channels in (1, 3) else None
    return dataset(source, size=spec.size, channels=channels, seed=seed, limit=limit)


def _in_order(net: Net, data: Data) -> tuple[Data, tuple[str, ...] | None]:
    """The data with its classes numbered as the network's outputs, and the names of those."""
    if data.kind == "text":
        raise BadInput(
            f"data {data.name!r} is text; a Net takes images. Train a text network by studies.training.train"
        )
    if data.shape[0] != net.input.channels:
        raise BadInput(
            f"data {data.name!r} has {data.shape[0]} channels, {net.name} takes {net.input.channels}"
        )
    if data.values:
        return data, net.labels
    known = _plain_names(net.labels or ())
    places = [known.get(_plain(name)) for name in data.classes]
    if None not in places:
        order = torch.tensor(places)
        mapped = {
            split: Split(part.inputs, order[part.targets])
            for split, part in (("train", data.train), ("validation", data.validation), ("_test", data._test))
        }
        return replace(data, **mapped), net.labels  # type: ignore[arg-type]
    outputs = _outputs(net)
    if outputs != len(data.classes):
        odd = next(name for name, place in zip(data.classes, places, strict=True) if place is None)
        raise RequestError(
            f"class {odd!r} of data {data.name!r} is none that {net.name} knows, and its {outputs} outputs are not as many "
            f"as the {len(data.classes)} classes; name the classes as the network's, or give it a last layer of "
            f"{len(data.classes)}"
        )
    return data, data.classes


def _outputs(net: Net) -> int:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvscopeWarning)
        example = net.input.example(device=next(net.module.parameters()).device)
        try:
            output: Tensor = next(flatten(net.copy()(example)))
        except Exception as error:  # the network's own code: anything may come
            reason = " ".join(str(error).split())[:200]
            raise ModelError(f"{net.name} fails on its input ({type(error).__name__}: {reason})") from error
    return output.shape[1] if output.ndim > 1 else 0
