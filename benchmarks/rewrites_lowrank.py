"""Separable and Bottleneck at the same budgets: fitted to images, the nearest weights, the largest weights.

Calibrated on one half of the data, scored on the other; what separates two ways is judged on the same images, in pairs.
"""

from __future__ import annotations

import itertools
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import networks
from convscope import data as pictures
from convscope import load, measure, rules
from convscope.data.fashion import fashion
from convscope.models import Net
from convscope.rewrites.rewrite import rewrite

if TYPE_CHECKING:
    from rewrites import Options

RULES = {"separable": rules.Separable, "bottleneck": rules.Bottleneck}
WAYS = {  # arguments of the rule, and whether it is given the images
    "data-aware": ({}, True),
    "data-free": ({}, False),
    "truncation": ({"method": "truncate"}, False),
    "data-free, batch norms matched": ({"method": "svd"}, True),
}
BUDGETS = {"fashion": (0.2, 0.3, 0.5), "vgg16": (0.3, 0.5)}  # of the MACs of the layers that are rewritten
RESAMPLES = 2000
Say = Callable[[str, Any], None]


def run(options: Options, keep: Say) -> None:
    """Both networks, where they can run; a row for each rule and budget."""
    if "fashion" in options.networks:
        _rows(_fashion(options), options, keep)
    if "vgg" in options.networks and options.vgg is not None and options.data is not None:
        _rows(_vgg(options), options, keep)


@dataclass(frozen=True)
class Case:
    """A network with the halves of its data.

    Attributes:
        name: in the record.
        net: the network.
        calibration: what it is fitted to, as network input.
        score: what a rewritten module is worth, for each image of the other half.
        ways: which are compared.
        facts: for the record.
    """

    name: str
    net: Net
    calibration: Tensor
    score: Callable[[nn.Module], Tensor]
    ways: tuple[str, ...]
    facts: dict[str, Any]


def _fashion(options: Options) -> Case:
    """Accuracy: calibrated on held-out training images, scored on test images."""
    net = load("fashion")
    calibration = net.input.normalize(fashion("train")[0])[: 64 if options.quick else 1000]
    images, labels = fashion("test")
    test = net.input.normalize(images)

    def right(module: nn.Module) -> Tensor:
        with torch.no_grad():
            return torch.cat([module(x).argmax(1) for x in test.split(250)]).eq(labels).double()

    facts = {
        "score": "accuracy",
        "calibrated on": f"{len(calibration)} of the embedded training images",
        "scored on": f"{len(test)} embedded test images",
        "base": float(right(net.module).mean()),
    }
    return Case("fashion", net, calibration, right, tuple(WAYS), facts)


def _vgg(options: Options) -> Case:
    """Error of the last map: each photograph's distance between the two maps, over the length of the right one."""
    assert options.vgg is not None
    net = networks.vgg(options.vgg)
    files = pictures.images(options.data, limit=16 if options.quick else options.images)
    x = torch.cat([net.input.normalize(batch.images) for batch in files.batches(net.input, batch=8)])
    calibration, test = x[0::2], x[1::2]
    with torch.no_grad():
        wanted = torch.cat([net.module(part) for part in test.split(8)])

    def distance(module: nn.Module) -> Tensor:
        with torch.no_grad():
            found = torch.cat([module(part) for part in test.split(8)])
        return (found - wanted).flatten(1).norm(dim=1).double() / wanted.flatten(1).norm(dim=1).double()

    facts = {
        "score": "error",
        "calibrated on": f"{len(calibration)} photographs, every second of the folder",
        "scored on": f"{len(test)} photographs, the others",
        "base": 0.0,
    }
    return Case("vgg16", net, calibration, distance, tuple(WAYS)[:3], facts)


def _rows(case: Case, options: Options, keep: Say) -> None:
    """Every rule and budget in every way, and the data-aware one against each other, in pairs."""
    before = measure(case.net, fields=False, training=False).totals
    for rule, share in itertools.product(RULES, BUDGETS[case.name]):
        key = f"{case.name}/{rule}/{share}"
        if options.cases not in key:
            continue
        ways = {way: _way(case, RULES[rule], share, way, before.macs) for way in case.ways}
        best = ways["data-aware"][0]
        keep(
            key,
            {
                **case.facts,
                "base macs": before.macs,
                "ways": {way: facts for way, (_, facts) in ways.items()},
                "data-aware minus": {way: paired(best, ways[way][0]) for way in case.ways[1:]},
            },
        )


def _way(case: Case, kind: Any, share: float, way: str, macs: int) -> tuple[Tensor, dict[str, Any]]:
    """One rewrite: its score for each image, and what it is."""
    arguments, with_data = WAYS[way]
    rule = kind(budget=f"macs:{share}", **arguments)
    data = case.calibration if with_data else None
    started = time.perf_counter()
    made = rewrite(case.net, rule, data=data, limit=len(case.calibration))
    seconds = time.perf_counter() - started
    scores = case.score(made.net.module)
    totals = measure(made.net, fields=False, training=False).totals
    facts = {
        "score": _digits(float(scores.mean())),
        "macs": totals.macs,
        "macs share": _digits(totals.macs / macs),
        "params": totals.params,
        "ranks": {edit.layer: edit.resolved["rank"] for edit in made.done if edit.resolved},
        "seconds": _digits(seconds, 3),
    }
    print(f"{case.name} {rule}, {way}: {facts['score']}", file=sys.stderr, flush=True)
    return scores, facts


def paired(first: Tensor, second: Tensor) -> dict[str, Any]:
    """Difference of two scores of the same images with its bootstrap 95 % interval; of right and wrong, McNemar too."""
    difference = first - second
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(difference), (RESAMPLES, len(difference)), generator=generator)
    low, high = torch.quantile(
        difference[drawn].mean(1), torch.tensor([0.025, 0.975], dtype=torch.float64)
    ).tolist()
    found: dict[str, Any] = {
        "difference": _digits(float(difference.mean())),
        "interval": [_digits(low), _digits(high)],
    }
    if set(torch.cat([first, second]).tolist()) <= {0.0, 1.0}:
        gained, lost = int((difference > 0).sum()), int((difference < 0).sum())
        found |= {"gained": gained, "lost": lost, "mcnemar p": mcnemar(gained, lost)}
    return found


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p that images which only one of two gets right fall so unevenly by chance."""
    many, few = gained + lost, min(gained, lost)
    tail = sum(math.comb(many, k) for k in range(few + 1))
    return _digits(min(1.0, float(2 * tail / 2**many)))


def _digits(value: float, digits: int = 4) -> float:
    return float(f"{value:.{digits}g}")
