"""One training, as an engine calls it: from the plain values of a run to the plain values of its result.

The same function runs in the driver, in a worker process and on a machine of a cluster. It trusts nothing it was not told:
code and data are hashed here again and compared with those the run is named by.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from convscope.engines.threads import threads
from convscope.errors import ConvscopeError, RequestError, StoreError, StoreMismatch
from convscope.models import InputSpec, _kept_rng
from convscope.studies.data import Data, dataset
from convscope.studies.network import network
from convscope.studies.plan import RunConfig
from convscope.studies.training import Trained, Training, train
from convscope.studies.version import code_version

MOST_KEPT = 2
_loaded: dict[str, Data] = {}  # hash -> data, for the next run in this process


def remember(data: Data) -> None:
    """Data that runs in this process need not load again."""
    _loaded.pop(data.hash, None)
    while len(_loaded) >= MOST_KEPT:
        _loaded.pop(next(iter(_loaded)))
    _loaded[data.hash] = data


def run(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Trains one network.

    Args:
        payload: {"config": see `RunConfig.to_dict`, "checkpoint": a path or None}.

    Returns:
        {"result": what the record keeps, "times": seconds of its parts}.

    Raises:
        RequestError: code or data are others here than where the run was planned, or the design makes no sense.
    """
    config = RunConfig.from_dict(payload["config"])
    _check_code(config)
    data = _data(config)
    checkpoint = None if payload.get("checkpoint") is None else Path(payload["checkpoint"])
    with threads(config.threads), _kept_rng(config.seed):
        spec = None if data.kind == "text" else data.input
        module, spec = network(config, spec, data.arguments)
        trained = _trained(module, data, config, checkpoint, spec)
    return {"result": _result(trained), "times": {"training": trained.seconds}}


def training(config: RunConfig) -> Training:
    """The settings of a run's training.

    Raises:
        RequestError: a name or value that a training does not take.
    """
    try:
        return Training(**config.training)
    except TypeError as error:
        known = ", ".join(Training.__dataclass_fields__)
        raise RequestError(
            f"training={dict(config.training)} cannot be made ({error}); it has {known}."
        ) from error


def _check_code(config: RunConfig) -> None:
    here = code_version(config.base, bool(config.rules))
    for name, value in config.code.items():
        if here.get(name) != value:
            raise RequestError(
                f"this worker has other code than the driver: {name} is {here.get(name)!r} here and {value!r} there; "
                "install the same versions on every machine."
            )


def _data(config: RunConfig) -> Data:
    wanted = str(config.data["hash"])
    if wanted not in _loaded:
        arguments = {name: value for name, value in config.data.items() if name != "hash"}
        if "source" not in arguments:
            raise ConvscopeError(
                "this worker cannot load data that was given as an object; give its source, or take engine 'inline'."
            )
        found = dataset(**arguments)
        if found.hash != wanted:
            raise RequestError(
                f"data={arguments['source']!r} holds something else on this worker (sha256 {found.hash[:12]}) than where "
                f"the study was started ({wanted[:12]}); give every machine the same files."
            )
        remember(found)
    return _loaded[wanted]


def _trained(
    module: nn.Module, data: Data, config: RunConfig, checkpoint: Path | None, spec: InputSpec | None
) -> Trained:
    def once() -> Trained:
        return train(
            module,
            data,
            training(config),
            seed=config.seed,
            checkpoint=checkpoint,
            device=config.device,
            spec=spec,
        )

    try:
        return once()
    except (StoreError, StoreMismatch):
        if checkpoint is None or not checkpoint.exists():
            raise
        checkpoint.unlink()  # damaged, and only ever a way to lose less: from the start
        return once()


def _result(trained: Trained) -> dict[str, Any]:
    """What the record keeps: nothing that two runs of one configuration would not share."""
    scores = {
        "train": trained.train_accuracy,
        "validation": trained.validation_accuracy,
        "test": trained.test_accuracy,
    }
    names = list(dict.fromkeys(name for point in trained.curves for name in point if name != "epoch"))
    return {
        "scores": {name: value for name, value in scores.items() if value is not None},
        "diverged": trained.diverged,
        "epoch": trained.epoch,
        "steps": trained.steps,
        "macs": trained.macs,
        "precision": trained.precision,
        "curves": {name: [_finite(point.get(name)) for point in trained.curves] for name in names},
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
