"""The one training loop of this project: studies, fine-tuning and the embedded networks all go through `train`.

All random choices of an epoch come from (seed, epoch), so that a training that was killed and resumed ends in the same
bits as one that was not, on one machine with one number of threads.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from convscope.errors import ConvscopeError, ModelError
from convscope.models import InputSpec, _deepcopy, _hash, _kept_rng
from convscope.studies import checkpoint as checkpoints
from convscope.studies.augmentation import augmented
from convscope.studies.data import Data, Split
from convscope.studies.passes import batches, macs_of_sample, one_result, precision_of, train_mode
from convscope.studies.scoring import Score, loss_of, right, score
from convscope.studies.settings import Training

__all__ = ["Trained", "Training", "train"]

TRAIN_SCORED: Final = 10_000  # training samples scored in the end, at most
DIVERGED: Final = 1000.0  # times the first loss (at least 1): nothing comes back from there
REPORT_SECONDS: Final = 0.5

Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, eq=False)
class Trained:
    """What a training gave.

    Attributes:
        module: the trained network, in eval mode; the one given to `train` stays as it was.
        curves: for each epoch: "epoch", "step", "train_loss", "train_accuracy" (while training: augmented, in train mode),
            "validation_loss", "validation_accuracy". Of values there is no accuracy while training; where a training
            diverges, the last point stops at the step before.
        train_accuracy, validation_accuracy, test_accuracy: in the end, in eval mode; of at most 10,000 training samples;
            None where the training diverged, or the test was not asked for. Of values R^2; see `Score`.
        train_loss, validation_loss, test_loss: likewise.
        diverged: whether the loss left all bounds; the training then stopped.
        epoch: whose weights the network has.
        steps: of the optimizer.
        macs: multiply-accumulates of all its forward and backward passes, as if nothing were frozen.
        seconds: of all its parts, also those before it was resumed.
        precision: of the passes.
    """

    module: nn.Module
    curves: tuple[Mapping[str, float], ...]
    train_accuracy: float | None
    validation_accuracy: float | None
    test_accuracy: float | None
    train_loss: float | None
    validation_loss: float | None
    test_loss: float | None
    diverged: bool
    epoch: int
    steps: int
    macs: int
    seconds: float
    precision: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values: all but the network and the time, which no two runs share."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        del plain["module"], plain["seconds"]
        return {**plain, "curves": [dict(point) for point in self.curves]}


def train(
    module: nn.Module,
    data: Data,
    training: Training | None = None,
    *,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    every: float = 5.0,
    progress: Progress | None = None,
    device: torch.device | str = "cpu",
    spec: InputSpec | None = None,
    test: bool = True,
) -> Trained:
    """Trains a copy of a network.

    Parameters that are frozen stay, and a norm whose parameters all are keeps its statistics. After each step `constrain`
    is called of every part of the network that has it.

    Args:
        module: the network; the global random state and it are left as they are.
        data: to train, choose and test on.
        training: the settings; `Training()` where it is None.
        seed: of the order of samples, augmentation and dropout.
        checkpoint: a file to save the state to, at the ends of epochs, and to go on from where it is there. It stays when
            the training is done, which then takes no time to "resume"; the caller removes it.
        every: seconds between checkpoints, at least; there is always one in the end.
        progress: called after each epoch, and every half second, with "epoch", "epochs", "step", "steps", "loss" and
            "seconds"; after an epoch with what `Trained.curves` has of it too.
        device: to train on.
        spec: how images are normalized, where not as `data.input` says.
        test: whether to score the test split in the end. Leave it for the one training that counts.

    Returns:
        The trained network, its curves and scores.

    Raises:
        BadInput: the network's outputs do not fit the data.
        RequestError: nothing of the network is trained.
        ModelError: the network fails.
        StoreMismatch, StoreError: the checkpoint is of another training, or damaged.

    Example:
        >>> from convscope.studies.data import dataset
        >>> from convscope.studies.networks import build
        >>> data = dataset("fashion", limit=100, test_limit=50)
        >>> net = build("convscope.studies.networks:small_cnn", {"width": 4}, offered=data.arguments)
        >>> trained = train(net, data, Training(epochs=2, batch=30))
        >>> trained.steps, len(trained.curves), trained.diverged
        (6, 2, False)
    """
    with _kept_rng(seed), one_result(), torch.enable_grad():
        run = _Run(_deepcopy(module).to(device), data, training or Training(), seed, device, spec)
        path = None if checkpoint is None else Path(checkpoint)
        if path is not None and (state := checkpoints.read(path, run.identity)) is not None:
            run.load(state)
        run.train(path, every, progress)
        return run.result(test)


class _Run:
    """A training under way."""

    def __init__(
        self,
        module: nn.Module,
        data: Data,
        training: Training,
        seed: int,
        device: torch.device | str,
        spec: InputSpec | None,
    ) -> None:
        self.module, self.data, self.training, self.seed, self.device = module, data, training, seed, device
        self.spec = None if data.kind == "text" else spec or data.input
        self.precision = precision_of(training.precision, torch.device(device))
        self.identity = {
            "training": training.to_dict(),
            "data": data.hash,
            "weights": _hash(module),
            "seed": seed,
            "precision": self.precision,
            "frozen": [name for name, p in module.named_parameters() if not p.requires_grad],
        }
        self.per_epoch = max(1, len(data.train) // training.batch)
        self.batch = min(training.batch, len(data.train))
        self.sample_macs = macs_of_sample(module, data, device)
        self.total = self._steps()  # math.inf where time is the limit
        if self.spec is not None:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a third faster, on a CPU too
        self.optimizer = training.optimizer_of(module)
        self.constraints: list[Any] = [
            part.constrain for part in module.modules() if callable(getattr(part, "constrain", None))
        ]
        self.step = 0
        self.curves: list[dict[str, float]] = []
        self.best: tuple[float, int, dict[str, Any]] | None = None  # accuracy, epoch, state
        self.first_loss: float | None = None
        self.diverged = self.done = False
        self.before = 0.0  # seconds of earlier parts
        self.began = time.perf_counter()

    def _steps(self) -> float:
        limits = self.training
        if limits.seconds is not None:
            return math.inf
        if limits.macs is not None:
            return max(1, round(limits.macs / max(self.sample_macs * self.batch, 1)))
        return max(1, round((limits.epochs or 0) * self.per_epoch))

    @property
    def seconds(self) -> float:
        """So far, in all parts."""
        return self.before + time.perf_counter() - self.began

    # -- state on disk

    def save(self, path: Path) -> None:
        """All that the rest of the training depends on."""
        state = {
            name: getattr(self, name) for name in ("step", "curves", "best", "first_loss", "diverged", "done")
        }
        state |= {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}
        checkpoints.save(path, self.identity, {**state, "seconds": self.seconds})

    def load(self, state: dict[str, Any]) -> None:
        """Goes on from what `save` wrote."""
        self.module.load_state_dict(state.pop("module"))
        self.optimizer.load_state_dict(state.pop("optimizer"))
        self.before = state.pop("seconds")
        vars(self).update(state)

    # -- the loop

    def train(self, path: Path | None, every: float, progress: Progress | None) -> None:
        """To the end."""
        saved = time.perf_counter()
        while not self.done:
            point = self._epoch(progress)
            if not self.diverged:
                point = {**point, **_named("validation", self._score(self.data.validation))}
                self._keep_best(point["validation_accuracy"])
            self.curves.append(point)
            self.done = self.diverged or self._part() >= 1
            if path is not None and (self.done or time.perf_counter() - saved >= every):
                self.save(path)
                saved = time.perf_counter()
            if progress is not None:
                progress({**self._report(point.get("train_loss")), **point})

    def _epoch(self, progress: Progress | None) -> dict[str, float]:
        """One pass over the training samples, or what is left of the last; its mean loss and accuracy."""
        epoch = len(self.curves)
        generator = torch.Generator().manual_seed(self.seed * 1000 + epoch)
        torch.manual_seed(self.seed * 1000 + epoch + 2**32)  # of dropout
        train_mode(self.module)
        loss_sum = hits = samples = 0.0
        reported = time.perf_counter()
        for places in batches(self.data.train, self.batch, generator):
            loss, outputs, targets = self._step(places, generator)
            self.first_loss = loss if self.first_loss is None else self.first_loss
            self.diverged = not loss < DIVERGED * max(self.first_loss, 1.0)  # also where it is no number
            if self.diverged:
                break
            loss_sum, samples = loss_sum + loss * len(places), samples + len(places)
            hits += right(outputs, targets)
            if progress is not None and time.perf_counter() - reported >= REPORT_SECONDS:
                progress(self._report(loss))
                reported = time.perf_counter()
            if self._part() >= 1:
                break
        point = {"epoch": float(epoch + 1), "step": float(self.step)}
        if samples:
            point["train_loss"] = loss_sum / samples
        if samples and not self.data.values:
            point["train_accuracy"] = hits / samples
        return point

    def _step(self, places: Tensor, generator: torch.Generator) -> tuple[float, Tensor, Tensor]:
        """One step of the optimizer; the loss before it."""
        inputs, targets = self.data.train.batch(places)
        if self.spec is not None:
            inputs, targets = augmented(
                inputs,
                targets,
                self.training.augmentation,
                shift=self.training.shift,
                noise=self.data.noise,
                generator=generator,
            )
            inputs = self.spec.normalize(inputs).contiguous(memory_format=torch.channels_last)
        inputs, targets = inputs.to(self.device), targets.to(self.device)
        rate = self.training.rate(min(self._part(1), 1.0))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        half = self.precision == "bfloat16"
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=half):
            outputs = self._outputs(inputs)
        loss = loss_of(outputs, targets, self.training.label_smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        for constrain in self.constraints:
            constrain()
        self.step += 1
        return loss.item(), outputs.detach(), targets

    def _outputs(self, inputs: Tensor) -> Tensor:
        try:
            outputs = self.module(inputs)
        except ConvscopeError:
            raise
        except Exception as error:  # the network's own code: anything may come
            reason = " ".join(str(error).split())[:200]
            raise ModelError(
                f"the network fails while training on a batch of shape {list(inputs.shape)} "
                f"({type(error).__name__}: {reason}); give data that it can take"
            ) from error
        if not isinstance(outputs, Tensor):
            raise ModelError(
                f"the network returns {type(outputs).__name__}; wrap it in a module that returns a tensor"
            )
        return outputs

    def _part(self, ahead: int = 0) -> float:
        """How much of the training is done, from 0 to 1, when so many more steps are."""
        if self.training.seconds is not None:
            return self.seconds / self.training.seconds
        return (self.step + ahead) / self.total

    def _keep_best(self, accuracy: float) -> None:
        if self.training.keep == "best" and (self.best is None or accuracy > self.best[0]):
            self.best = accuracy, len(self.curves) + 1, copy.deepcopy(self.module.state_dict())

    def _report(self, loss: float | None) -> dict[str, Any]:
        known = self.training.seconds is None
        return {
            "epoch": self.step / self.per_epoch,
            "epochs": self.total / self.per_epoch if known else None,
            "step": self.step,
            "steps": self.total if known else None,
            "loss": loss,
            "seconds": self.seconds,
        }

    # -- the end

    def _score(self, split: Split, most: int | None = None) -> Score:
        return score(self.module, split, spec=self.spec, noise=self.data.noise, device=self.device, most=most)

    def result(self, test: bool) -> Trained:
        """The network with the weights to keep, scored."""
        epoch = len(self.curves)
        if self.best is not None and not self.diverged:
            _, epoch, state = self.best
            self.module.load_state_dict(state)
        self.module.eval()
        self.module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        none = (None, None)
        scores: dict[str, tuple[float | None, float | None]] = dict.fromkeys(
            ("train", "validation", "test"), none
        )
        if not self.diverged:
            scores["train"] = self._score(self.data.train, TRAIN_SCORED)
            scores["validation"] = self._score(self.data.validation)
            if test:
                scores["test"] = self._score(self.data.final_test(self.module))
        losses, accuracies = zip(*(scores[split] for split in ("train", "validation", "test")), strict=True)
        return Trained(
            self.module,
            tuple(self.curves),
            accuracies[0],
            accuracies[1],
            accuracies[2],
            losses[0],
            losses[1],
            losses[2],
            self.diverged,
            epoch,
            self.step,
            self.step * self.batch * self.sample_macs,
            self.seconds,
            self.precision,
        )


def _named(split: str, scored: Score) -> dict[str, float]:
    return {f"{split}_loss": scored.loss, f"{split}_accuracy": scored.accuracy}
