"""What a study compares: a base network, the factors that vary, the seeds and the budget that every variant gets.

    Design("convscope.studies.networks:small_cnn", {"kernel_size": [1, 3, 5]}, seeds=5, budget=Budget(epochs=4))

A level of a factor is one of
- a value of the factory's argument of that name: `{"kernel_size": [3, 5]}`;
- a rule that rewrites the network, under the name `rule`: `{"rule": ["none", "pool:kind=average"]}`;
- a value of the training, under `training.NAME`: `{"training.lr": [0.1, 0.01]}`;
- several of these under a name of their own: `{"block": {"one 5x5": {"kernel_size": 5}, "two 3x3": {"depth": 2}}}`.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, get_args

from torch import nn

from convscope.errors import RequestError, UnknownName, nearest
from convscope.models import Net
from convscope.rewrites.text import parse
from convscope.studies import given
from convscope.studies.data_check import check_data

Mode: TypeAlias = Literal["full", "one-at-a-time"]
Level: TypeAlias = Any  # None, a bool, a number, a text, or a list of these
Levels: TypeAlias = Sequence[Level] | Mapping[str, Mapping[str, Level]]
BUDGETS = ("epochs", "macs", "seconds")
DEVICES = ("cpu", "cuda", "mps")
MOST_NAME = 100  # letters of a name: files are called after it
RULE, TRAINING = "rule", "training."
MOST_RUNS = 100_000


@dataclass(frozen=True)
class Budget:
    """What the training of every variant may take: one of these, the same for all.

    Attributes:
        epochs: passes over the training data, also a part of one.
        macs: multiply-accumulates of all forward and backward passes.
        seconds: wall time of the training. What fits into it depends on the machine: such a study cannot be repeated
            to the digit.
    """

    epochs: float | None = None
    macs: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        given = self.to_dict()
        if len(given) != 1:
            raise RequestError(
                f"budget={given or 'nothing'} must be exactly one of {', '.join(BUDGETS)}, such as epochs=4."
            )
        ((name, value),) = given.items()
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise RequestError(f"budget {name}={value!r} must be a positive number.")

    def quarter(self) -> Budget:
        """A fourth of it, for a first impression."""
        return Budget(**{name: value / 4 for name, value in self.to_dict().items()})

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the one that was given."""
        return {name: getattr(self, name) for name in BUDGETS if getattr(self, name) is not None}


@dataclass(frozen=True)
class Variant:
    """One combination of levels.

    Attributes:
        values: factor -> level, as the design names it.
        arguments: of the factory, for this variant alone.
        rules: that rewrite the network, one after the other, as text.
        training: what differs in the training.
    """

    values: Mapping[str, Level]
    arguments: Mapping[str, Any]
    rules: tuple[str, ...]
    training: Mapping[str, Any]

    @property
    def label(self) -> str:
        """Short text: "kernel_size=3, pooling=max"."""
        return ", ".join(f"{name}={shown(value)}" for name, value in self.values.items()) or "base"


def shown(level: Level) -> str:
    """A level as people read it."""
    return level if isinstance(level, str) else json.dumps(level)


@dataclass(frozen=True)
class Design:
    """A controlled comparison.

    Args:
        base: the network that varies: a factory, "package.module:factory", or whatever `convscope.load` takes as text
            (a trained network is then trained further, "recipe:FOLDER" among them); or a `Net`, such as
            `rewrite(...).net`, which stands in the design under a name with its hash.
        factors: name -> its levels; see the top of this file.
        seeds: how many (0, 1, ...), or which. A seed fixes initial weights, order and augmentation; all variants share
            the seeds, so that they are compared pair by pair.
        budget: of each training: a `Budget`, or its values, such as {"epochs": 4}.
        mode: "full", every combination of levels; or "one-at-a-time", the baseline and what differs from it in one
            factor.
        baseline: factor -> the level that others are compared with; the first level where nothing is said.
        arguments: of the factory, the same in all variants.
        training: settings of the training, the same in all variants; see `convscope.studies.training.Training`.
        data: what to train on: a source of `convscope.studies.data.dataset`, or a mapping of its arguments, such as
            {"source": "fashion", "limit": 1000}; None where `study` is told.
        threads: of each run; results are the same for the same number on the same kind of processor.
        device: to train on, "cpu" or "cuda".
        name: of its files.
        title: what it asks, for pages: a few words.

    Raises:
        RequestError, UnknownName: something does not make sense; the sentence names it.

    Example:
        >>> design = Design("convscope.studies.networks:small_cnn", {"kernel_size": [3, 5], "rule": ["none", "padding:valid"]})
        >>> [variant.label for variant in design.variants()]
        ['kernel_size=3, rule=none', 'kernel_size=3, rule=padding:valid', 'kernel_size=5, rule=none',
         'kernel_size=5, rule=padding:valid']
    """

    base: str
    factors: Mapping[str, Levels]
    seeds: int | Sequence[int] = 5
    budget: Budget | Mapping[str, Any] = field(default_factory=lambda: Budget(epochs=5))
    mode: Mode = "full"
    baseline: Mapping[str, Level] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    data: str | Mapping[str, Any] | None = None
    threads: int = 1
    device: str = "cpu"
    name: str = "study"
    title: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.base, Net):
            self._set("base", given.text_of(self.base))
        if not isinstance(self.base, str) or not self.base.strip():
            shown_base = type(self.base).__name__ if isinstance(self.base, nn.Module) else repr(self.base)
            raise RequestError(
                f"base={shown_base} must be text, a factory or what convscope.load takes; or a Net: "
                "convscope.load(module, input=...) makes one."
            )
        if self.mode not in get_args(Mode):
            raise UnknownName(
                f"mode={self.mode!r} must be one of {', '.join(get_args(Mode))}{nearest(str(self.mode), get_args(Mode))}"
            )
        if isinstance(self.threads, bool) or not isinstance(self.threads, int) or self.threads < 1:
            raise RequestError(f"threads={self.threads!r} must be a whole number, 1 or more.")
        if not isinstance(self.device, str) or self.device.partition(":")[0] not in DEVICES:
            raise RequestError(f"device={self.device!r} must be one of {', '.join(DEVICES)}.")
        if not isinstance(self.title, str):
            raise RequestError(f"title={self.title!r} must be text.")
        _check_name(self.name)
        self._set("data", data_arguments(self.data))
        self._set("seeds", _seeds(self.seeds))
        self._set("budget", self.budget if isinstance(self.budget, Budget) else _budget(self.budget))
        for name in ("arguments", "training", "baseline"):
            self._set(name, _plain_mapping(name, getattr(self, name)))
        for limit in BUDGETS:
            if limit in self.training:
                raise RequestError(
                    f"training {limit}={self.training[limit]!r} is the length of the training, which budget says; write "
                    f"budget = {{ {limit} = {self.training[limit]!r} }}."
                )
        self._set("factors", _factors(self.factors))
        self._check_baseline()
        runs = len(self.variants()) * len(self.all_seeds)
        if runs > MOST_RUNS:
            raise RequestError(
                f"the design has {runs:,} runs, more than {MOST_RUNS:,}; take fewer levels, or mode='one-at-a-time'."
            )

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_baseline(self) -> None:
        for name, value in self.baseline.items():
            if name not in self.factors:
                raise UnknownName(
                    f"baseline names {name!r}, which is no factor{nearest(name, self.factors)}; there are "
                    f"{', '.join(self.factors)}."
                )
            levels = list(self.factors[name])
            if value not in levels:
                raise RequestError(
                    f"baseline {name}={value!r} must be one of its levels: {', '.join(map(shown, levels))}."
                )

    @property
    def reference(self) -> dict[str, Level]:
        """Factor -> the level that others are compared with, all of them."""
        return {name: self.baseline.get(name, next(iter(levels))) for name, levels in self.factors.items()}

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """The seeds, one by one."""
        assert isinstance(self.seeds, tuple)
        return self.seeds

    @property
    def each_budget(self) -> Budget:
        """The budget of each training."""
        assert isinstance(self.budget, Budget)
        return self.budget

    def variants(self) -> tuple[Variant, ...]:
        """Every combination that is trained, in order; the baseline is among them."""
        names = list(self.factors)
        if self.mode == "full":
            chosen = [
                dict(zip(names, levels, strict=True)) for levels in itertools.product(*self.factors.values())
            ]
        else:
            reference = self.reference
            chosen = [reference]
            for name in names:
                others = [level for level in self.factors[name] if level != reference[name]]
                chosen += [{**reference, name: level} for level in others]
        return tuple(self._variant(values) for values in chosen)

    def _variant(self, values: Mapping[str, Level]) -> Variant:
        settings: dict[str, Any] = {}
        rules: list[str] = []
        for name, level in values.items():
            levels = self.factors[name]
            bundle = levels[level] if isinstance(levels, Mapping) else {name: level}
            for key, value in bundle.items():
                if key == RULE:
                    rules += [] if value == "none" else [value]
                elif settings.setdefault(key, value) != value:
                    raise RequestError(
                        f"two factors set {key!r} in the variant {values}; leave it to one of them."
                    )
        training = {k.removeprefix(TRAINING): v for k, v in settings.items() if k.startswith(TRAINING)}
        arguments = {k: v for k, v in settings.items() if not k.startswith(TRAINING)}
        return Variant(dict(values), arguments, tuple(rules), training)

    def quick(self) -> Design:
        """The same question at two seeds and a fourth of the budget."""
        return replace(self, seeds=self.all_seeds[:2], budget=self.each_budget.quarter())

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `from_dict` reads them back."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        factors = {
            name: dict(levels) if isinstance(levels, Mapping) else list(levels)
            for name, levels in self.factors.items()
        }
        return {
            **plain,
            "seeds": list(self.all_seeds),
            "budget": self.each_budget.to_dict(),
            "factors": factors,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Design:
        """Reads what `to_dict` wrote.

        Raises:
            UnknownName: a key that a design does not have.
            RequestError: `base` or `factors` is missing, or as for the constructor.

        Example:
            >>> design = Design("timm:resnet18", {"rule": ["none", "pool:average"]}, seeds=[1, 2])
            >>> Design.from_dict(design.to_dict()) == design
            True
        """
        for key in values:
            if key not in cls.__dataclass_fields__:
                raise UnknownName(
                    f"a design has no {key!r}{nearest(key, cls.__dataclass_fields__)}; it has "
                    f"{', '.join(cls.__dataclass_fields__)}."
                )
        for key in ("base", "factors"):
            if key not in values:
                raise RequestError(f"a design needs {key!r}, and there is none.")
        return cls(**values)


# ---------------------------------------------------------------- what the constructor checks


def data_arguments(data: Any) -> dict[str, Any] | None:
    """The arguments of `dataset` that a text or mapping stands for.

    Raises:
        RequestError: it is neither, a mapping without a source, or a value is of another kind than its argument.
        UnknownName: an argument that there is not.
    """
    if data is None:
        return None
    if isinstance(data, str):
        return {"source": data}
    found = _plain_mapping("data", data)
    if not isinstance(found.get("source"), str):
        raise RequestError(f"data={found} must have a source, such as 'fashion' or the path of a folder.")
    check_data(found)
    return found


def _seeds(seeds: Any) -> tuple[int, ...]:
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        if seeds < 1:
            raise RequestError(f"seeds={seeds} must be 1 or more.")
        return tuple(range(seeds))
    whole = isinstance(seeds, Sequence) and not isinstance(seeds, str) and len(seeds) > 0
    if not whole or any(isinstance(s, bool) or not isinstance(s, int) or s < 0 for s in seeds):
        raise RequestError(f"seeds={seeds!r} must be how many, or a list of whole numbers, 0 or more.")
    if len(set(seeds)) < len(seeds):
        raise RequestError(f"seeds={list(seeds)} must all differ: a seed run twice says nothing new.")
    return tuple(seeds)


def _budget(values: Any) -> Budget:
    if not isinstance(values, Mapping):
        raise RequestError(f"budget={values!r} must be a Budget or its values, such as {{'epochs': 4}}.")
    for key in values:
        if key not in BUDGETS:
            raise UnknownName(
                f"a budget has no {key!r}{nearest(str(key), BUDGETS)}; it is one of {', '.join(BUDGETS)}."
            )
    return Budget(**values)


def _factors(factors: Any) -> dict[str, Levels]:
    if not isinstance(factors, Mapping) or not factors:
        raise RequestError(f"factors={factors!r} must name at least one factor with its levels.")
    return {name: _levels(name, levels) for name, levels in factors.items()}


def _levels(name: Any, levels: Any) -> Levels:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z0-9_]+)?", name):
        raise RequestError(f"factor name {name!r} must be a word, such as kernel_size, rule or training.lr.")
    if isinstance(levels, Mapping):
        for label, bundle in levels.items():
            _plain_mapping(f"level {label!r} of factor {name!r}", bundle)
            for key, value in bundle.items():
                _check_level(f"level {label!r} of factor {name!r}", key, value)
        found: Levels = {label: dict(bundle) for label, bundle in levels.items()}
    elif isinstance(levels, Sequence) and not isinstance(levels, str):
        found = [str(level) if name == RULE else _plain(f"factor {name!r}", level) for level in levels]
        for level in found:
            _check_level(f"factor {name!r}", name, level)
    else:
        raise RequestError(f"factor {name!r} is {levels!r}; give a list of its levels, such as [1, 3, 5].")
    if not found:
        raise RequestError(f"factor {name!r} has no levels; give at least one.")
    labels = [json.dumps(level) for level in found]
    if len(set(labels)) < len(labels):
        raise RequestError(f"factor {name!r} has a level twice: {', '.join(labels)}.")
    return found


def _check_name(name: Any) -> None:
    """Files are called after it."""
    plain = isinstance(name, str) and 0 < len(name) <= MOST_NAME and name.isprintable()
    if not plain or name.strip(" .") != name or any(mark in name for mark in "/\\"):
        raise RequestError(f"name={name!r} must be a short text without / and \\: files are called after it.")


def _check_level(where: str, key: str, value: Level) -> None:
    if key == RULE and value != "none":
        if not isinstance(value, str):
            raise RequestError(f"{where}: rule {value!r} must be text, such as 'pool:kind=average'.")
        parse(value)
    elif key.removeprefix(TRAINING) in BUDGETS and key.startswith(TRAINING):
        raise RequestError(
            f"{where}: {key!r} is the length of the training, which budget says and all variants share; make a study for "
            "each budget."
        )
    elif "." in key and not key.startswith(TRAINING):
        raise RequestError(f"{where}: {key!r} must be an argument of the factory, rule, or training.NAME.")


def _plain_mapping(where: str, values: Any) -> dict[str, Any]:
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        raise RequestError(f"{where} is {values!r}; give names with their values.")
    return {key: _plain(f"{where}, {key!r}", value) for key, value in values.items()}


def _plain(where: str, value: Any) -> Any:
    """The value as JSON carries it, so that a design read back is the same design."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, list | tuple):
        return [_plain(where, item) for item in value]
    raise RequestError(
        f"{where} has the value {value!r} ({type(value).__name__}); give a number, text, true, false, or a list of these."
    )
