"""Published results trained again by convscope's own networks, data and loop, beside the published figures.

    python benchmarks/reproductions.py --part kim --data DIR --work DIR --out benchmarks/results/reproductions-kim-cpu.json

Runs that are finished are kept in --work, and so is the state of one that was stopped: the same command goes on, and
writes the record once all are there. `--seconds` stops before a run that would not end in time, going by the last ones.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import machine
from convscope.store import atomic_write
from convscope.studies.data import Data, dataset
from convscope.studies.networks import build
from convscope.studies.statistics import mean_of, paired
from convscope.studies.training import Training, train

NETWORKS = "convscope.studies.networks:"


@dataclass(frozen=True)
class Run:
    """One training: where it belongs, what is trained on what."""

    group: str
    seed: int
    factory: str
    arguments: dict[str, Any]
    data: dict[str, Any]  # of `dataset`, the source below --data
    training: Training

    @property
    def name(self) -> str:
        return f"{self.group}-{self.seed}"


@dataclass(frozen=True)
class Group:
    """Runs that are one figure of the paper.

    Attributes:
        published: the paper's figure, accuracy in percent.
        setting: how ours is trained where that is not as published.
        reason: why ours may lie elsewhere.
    """

    published: float | None
    setting: str
    reason: str


# ---------------------------------------------------------------- Kim 2014

KIM = Training(epochs=25, batch=50, optimizer="adadelta", schedule="constant", keep="best")
REVIEWS = replace(KIM, epochs=15)
CHOSEN = "the epoch is chosen by a tenth of the training sentences, as Kim does"
UNSEEN = "one vector for all words that training never saw, where Kim draws one each"
KIM_GROUPS = {
    "MR": Group(
        76.1,
        f"CNN-rand, ten folds, one run each, 15 epochs where Kim has 25; {CHOSEN}",
        f"other folds and seeds, and the paper gives no spread; {UNSEEN}",
    ),
    "TREC": Group(
        91.2,
        f"CNN-rand, the given split, 25 epochs, capitals kept as in Kim's program; {CHOSEN}",
        f"500 test questions tell 91.2 to 1.3 points (one standard error), and the paper has one run; {UNSEEN}",
    ),
}


def kim() -> list[Run]:
    """CNN-rand on movie reviews and on questions."""
    words = {"embedding": "random", "dim": 300}
    reviews = [
        Run("MR", fold, "text_cnn", words, {"source": "text/rt-polarity.all", "fold": (fold, 10)}, REVIEWS)
        for fold in range(10)
    ]
    given = {"source": "text/TREC.train.all", "test": "text/TREC.test.all", "lower": False}
    questions = [Run("TREC", seed, "text_cnn", words, given, KIM) for seed in range(5)]
    return questions + reviews


# ---------------------------------------------------------------- images, at a small budget

SMALL = Group(
    None,
    "a small declared budget: 9,000 training images of CIFAR-10, 12 epochs, a quarter of the width; AdamW, flips and crops",
    "no figure of this network on CIFAR-10 is published",
)
SEEDS = 3
CIFAR = {
    "source": "cifar10-train.tar",
    "test": "cifar10-test.tar",
    "limit": 10_000,
    "test_limit": 2000,
    "validation": 0.1,
}
SHORT = Training(epochs=12, batch=64, optimizer="adamw", lr=2e-3, augmentation=("flip", "crop"))
ALL_CNN = {"C": 90.26, "strided-C": 89.81, "convpool-C": 90.69, "all-C": 90.92}
ALL_CNN_GROUPS = {
    variant: replace(
        SMALL,
        published=published,
        reason="the budget: the paper has all 50,000 images, 350 epochs, full width",
    )
    for variant, published in ALL_CNN.items()
}
IMAGENET = (
    "published are {} % of ImageNet, at full width and after full training; 12 epochs of 9,000 images teach a network with an "
    "eighth of the parameters less"
)
MOBILENET_GROUPS = {
    "full": replace(SMALL, reason=IMAGENET.format("71.7")),
    "separable": replace(SMALL, reason=IMAGENET.format("70.6")),
}


def all_cnn() -> list[Run]:
    """The four variants; of each seed all, so that a stop leaves them even."""
    return [
        Run(
            variant,
            seed,
            "all_cnn",
            {"variant": variant, "width": 24, "dropout": False},
            {**CIFAR, "seed": seed},
            SHORT,
        )
        for seed in range(SEEDS)
        for variant in ALL_CNN
    ]


def mobilenet() -> list[Run]:
    """Separable against full convolutions at equal width."""
    return [
        Run(
            "separable" if separable else "full",
            seed,
            "mobilenet",
            {"separable": separable, "width": 0.25, "strides": 4},
            {**CIFAR, "seed": seed},
            SHORT,
        )
        for seed in range(SEEDS)
        for separable in (False, True)
    ]


PARTS: dict[str, tuple[Callable[[], list[Run]], dict[str, Group], str]] = {
    "kim": (
        kim,
        KIM_GROUPS,
        "Kim, Convolutional Neural Networks for Sentence Classification (EMNLP 2014), table 2",
    ),
    "all-cnn": (
        all_cnn,
        ALL_CNN_GROUPS,
        "Springenberg et al., Striving for Simplicity: The All Convolutional Net (2015), table 3, without augmentation",
    ),
    "mobilenet": (
        mobilenet,
        MOBILENET_GROUPS,
        "Howard et al., MobileNets (2017), table 4: ImageNet, 70.6 and 71.7",
    ),
}


# ---------------------------------------------------------------- running


def execute(run: Run, folder: Path, work: Path) -> dict[str, Any]:
    """Trains, or goes on; the record of the run."""
    data = _data(run, folder)
    module = build(NETWORKS + run.factory, run.arguments, offered=data.arguments, seed=run.seed)

    def told(event: dict[str, Any]) -> None:
        if "validation_accuracy" in event:
            figures = f"loss {event['loss']:.3f}  validation {event['validation_accuracy']:.4f}"
            print(
                f"{run.name}  epoch {event['epoch']:.3g}  {figures}  {event['seconds']:.0f} s",
                file=sys.stderr,
            )

    state = work / f"{run.name}.state"
    trained = train(module, data, run.training, seed=run.seed, checkpoint=state, progress=told)
    return {
        "group": run.group,
        "seed": run.seed,
        "arguments": run.arguments,
        "data": {**run.data, "sha256": data.hash, "counts": data.counts},
        "training": run.training.to_dict(),
        "parameters": sum(p.numel() for p in module.parameters()),
        **trained.to_dict(),
        "seconds": round(trained.seconds, 1),
    }


def _data(run: Run, folder: Path) -> Data:
    paths = {name: str(folder / run.data[name]) for name in ("source", "test") if name in run.data}
    return dataset(**{**run.data, **paths})


def summary(name: str, runs: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """Means and intervals over folds or seeds, beside the published figures."""
    _, groups, source = PARTS[name]
    found: dict[str, Any] = {}
    for group, about in groups.items():
        scores = [100 * run["test_accuracy"] for run in runs if run["group"] == group]
        mean = mean_of(scores)
        found[group] = {
            "published": about.published,
            "ours": round(mean.mean, 2),
            "95 % interval": [round(mean.low, 2), round(mean.high, 2)] if mean.low is not None else None,
            "runs": [round(value, 2) for value in scores],
            "setting": about.setting,
            "reason for the distance": about.reason,
        }
        if about.published is not None:
            found[group]["distance"] = round(mean.mean - about.published, 2)
    return {
        "part": name,
        "published in": source,
        "unit": "test accuracy in percent; t interval of the mean over the runs",
        "groups": found,
        "differences": _differences(groups, runs),
        "machine": machine.describe(torch.device("cpu"), ("convscope", "torch", "numpy")),
        "runs": runs,
    }


def _differences(groups: dict[str, Group], runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each group to the first, seed by seed, where they share data and seeds."""
    first, *others = groups
    if len({json.dumps(run["data"]["sha256"]) for run in runs if run["seed"] == 0}) > 1:
        return {}
    scores = {g: [100 * run["test_accuracy"] for run in runs if run["group"] == g] for g in groups}
    found = {}
    for other in others:
        difference = paired(scores[other], scores[first])
        low, high = difference.low, difference.high
        known = low is not None and high is not None and (low > 0 or high < 0)
        found[f"{other} - {first}"] = {
            "mean": round(difference.mean, 2),
            "95 % interval": None if low is None or high is None else [round(low, 2), round(high, 2)],
            "order": "as the mean says" if known else "not told by these runs",
        }
    return found


def main() -> None:
    """Reads the command line and does what is not done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder of text/ and the CIFAR-10 tars")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for finished runs and the state of the others"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", help="train this group alone; the record is written by a call without it")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    began, last = time.perf_counter(), 0.0
    runs = []
    for run in PARTS[options.part][0]():
        if options.only not in (None, run.group):
            continue
        path = options.work / f"{run.name}.json"
        if not path.exists():
            before = time.perf_counter()
            if before - began + last > options.seconds:
                print(f"stopped before {run.name}; the same command goes on", file=sys.stderr)
                return
            atomic_write(path, json.dumps(execute(run, options.data, options.work)))
            path.with_suffix(".state").unlink(missing_ok=True)
            last = time.perf_counter() - before
        runs.append(json.loads(path.read_text()))
    if options.only:
        return
    found = summary(options.part, runs, options)
    atomic_write(options.out, json.dumps(found, indent=1) + "\n")
    print(json.dumps(found["groups"], indent=1))


if __name__ == "__main__":
    main()
