"""The runs that follow from a design: each is plain values, and named by the hash of all that its result depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from convscope.studies.design import Design, Variant
from convscope.studies.version import code_version


def digest(value: Any) -> str:
    """SHA-256 of plain values, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class RunConfig:
    """One training of one variant.

    Attributes:
        base: what is trained: a factory, or what `convscope.load` takes.
        arguments: of the factory.
        rules: that rewrite the network before it is trained.
        training: settings of the training, its budget among them.
        seed: of initial weights, order and augmentation.
        data: arguments of `dataset`, and under "hash" that of what was found there.
        code: versions, and the hash of the sources; see `code_version`.
        threads: of the training, on the CPU.
        device: to train on.
    """

    base: str
    arguments: Mapping[str, Any]
    rules: tuple[str, ...]
    training: Mapping[str, Any]
    seed: int
    data: Mapping[str, Any]
    code: Mapping[str, str]
    threads: int = 1
    device: str = "cpu"

    @cached_property
    def key(self) -> str:
        """The run's name: a hash of everything its result depends on. Of the data, that is its content."""
        return digest({**self.to_dict(), "data": self.data["hash"]})[:24]

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `from_dict` reads them back."""
        return {**asdict(self), "rules": list(self.rules)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """Reads what `to_dict` wrote."""
        return cls(**{**values, "rules": tuple(values["rules"])})


@dataclass(frozen=True)
class Planned:
    """A run, and which variant of the design it belongs to.

    Attributes:
        variant: place in `Design.variants()`.
        config: the run.
    """

    variant: int
    config: RunConfig


def plan(design: Design, data: Mapping[str, Any]) -> tuple[Planned, ...]:
    """All runs of a design, the first seed of every variant first, so that an early look compares all of them.

    Args:
        design: what is compared.
        data: see `RunConfig.data`.

    Example:
        >>> design = Design("convscope.studies.networks:small_cnn", {"kernel_size": [3, 5]}, seeds=2)
        >>> [(run.variant, run.config.seed) for run in plan(design, {"source": "fashion", "hash": "0"})]
        [(0, 0), (1, 0), (0, 1), (1, 1)]
    """
    variants = design.variants()
    return tuple(
        Planned(place, configure(design, variant, seed, data))
        for seed in design.all_seeds
        for place, variant in enumerate(variants)
    )


def configure(design: Design, variant: Variant, seed: int, data: Mapping[str, Any]) -> RunConfig:
    """The run of one variant at one seed."""
    return RunConfig(
        base=design.base,
        arguments={**design.arguments, **variant.arguments},
        rules=variant.rules,
        training={**design.training, **variant.training, **design.each_budget.to_dict()},
        seed=seed,
        data=dict(data),
        code=code_version(design.base, bool(variant.rules)),
        threads=design.threads,
        device=design.device,
    )
