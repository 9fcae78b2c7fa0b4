"""Every rule on networks where it acts: what it changes, what it costs, how far off it is; each row is written at once.

    python benchmarks/rules.py --data photographs --vgg vgg16_features.safetensors --out benchmarks/results/rules-cpu.json
    python benchmarks/rules_pages.py benchmarks/results/rules-cpu.json docs/rules

README.md beside this file says what each figure means.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import machine
import networks
from convscope import data as pictures
from convscope import load, measure, rewrite, rules, timing
from convscope.data.fashion import fashion, noisy
from convscope.errors import ConvscopeError
from convscope.models import Net
from convscope.nn import LocallyConnected2d
from convscope.rewrites.base import Rule

PACKAGES = ("convscope", "torch", "torchvision", "timm", "numpy")
BUDGET = 2.0  # seconds of timing a row
BATCH = 50


@dataclass(frozen=True)
class Subject:
    """A network with its images.

    Attributes:
        net: the network.
        calibration: what rules are fitted to, as network input.
        test: what it is scored on: other images.
        labels: the right classes, or None.
        wanted: what it should give, or None.
    """

    net: Net
    calibration: Tensor
    test: Tensor
    labels: Tensor | None = None
    wanted: Tensor | None = None


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    data: Path | None
    vgg: Path | None
    quick: bool


# ---------------------------------------------------------------- networks


def fashion_net(options: Options) -> Subject:
    """Fitted to held-out training images, scored on test images."""
    net, (images, labels) = load("fashion"), fashion("test")
    few = 64 if options.quick else 500
    count = 200 if options.quick else len(images)
    calibration = net.input.normalize(fashion("train")[0][:few])
    return Subject(net, calibration, net.input.normalize(images[:count]), labels[:count])


def decoder_net(options: Options) -> Subject:
    """Scored by how near it comes to the images before noise was added."""
    net = load("fashion-decoder")
    count = 100 if options.quick else 500
    clean = fashion("test")[0][:count]
    calibration = net.input.normalize(noisy(fashion("train")[0][:64], seed=1))
    return Subject(net, calibration, net.input.normalize(noisy(clean)), wanted=clean)


def lite0_net(options: Options) -> Subject:
    """One photograph a class, every tenth to fit to, the others to score on."""
    assert options.data is not None
    net = load()
    files = pictures.images(options.data, limit=40 if options.quick else 1000)
    x = torch.cat([net.input.normalize(batch.images) for batch in files.batches(net.input, batch=20)])
    labels = torch.arange(len(x)) * (1000 // len(x))
    fitted = torch.arange(len(x)) % 10 == 0
    return Subject(net, x[fitted][:64], x[~fitted], labels[~fitted])


def vgg_net(options: Options) -> Subject:
    """Scored by its last map alone: it has no classifier."""
    assert options.vgg is not None
    assert options.data is not None
    net = dataclasses.replace(networks.vgg(options.vgg), name="vgg16")
    files = pictures.images(options.data, limit=8 if options.quick else 64)
    x = torch.cat([net.input.normalize(batch.images) for batch in files.batches(net.input, batch=8)])
    fitted = torch.arange(len(x)) % 4 == 0
    return Subject(net, x[fitted], x[~fitted])


NETWORKS: dict[str, Callable[[Options], Subject]] = {
    "fashion": fashion_net,
    "fashion-decoder": decoder_net,
    "efficientnet_lite0": lite0_net,
    "vgg16": vgg_net,
}
TOLD = ("efficientnet_lite0", "vgg16", "fashion")


# ---------------------------------------------------------------- what is run


@dataclass(frozen=True)
class Case:
    """A rule on a network.

    Attributes:
        page: the name of the page it is for.
        rule: the rule.
        networks: which.
        fitted: whether it is given images.
        prepare: what is done to the network before, by name.
    """

    page: str
    rule: Rule
    networks: tuple[str, ...]
    fitted: bool = False
    prepare: str = ""


def cases() -> list[Case]:
    """In the order of the tables."""
    found: list[Case] = []

    def add(rule: Rule, *names: str, page: str = "", fitted: bool = False, prepare: str = "") -> None:
        found.append(Case(page or rule.name, rule, names or TOLD, fitted, prepare))

    add(rules.KernelSize(5, where="kernel == 3"))
    add(rules.KernelSize(7, where="kernel > 1"), "efficientnet_lite0")
    for fitted in (True, False):
        add(rules.KernelSize(3, where="kernel == 5"), "efficientnet_lite0", fitted=fitted)
        add(rules.KernelSize(2, where="features.5,features.7"), "vgg16", fitted=fitted)
        add(rules.KernelSize(2, where="block3.*"), "fashion", fitted=fitted)
    for kind in ("reflect", "replicate", "circular", "partial"):
        add(rules.Padding(kind))
    add(rules.Padding("valid"), "fashion", "vgg16")
    add(rules.Pool("max"), "efficientnet_lite0")
    for kind in ("average", "blur", "moved"):
        add(rules.Pool(kind), "fashion", "vgg16")
    for fitted in (True, False):
        add(rules.Pool("strided"), "fashion", "vgg16", fitted=fitted)
    add(rules.Pool("none", where="features.23"), "vgg16")
    add(rules.Pool("none", where="block3.pool"), "fashion")
    for kind in ("transposed", "pixel_shuffle", "bilinear", "bed_of_nails", "max_unpool"):
        add(rules.Upsample(kind), "fashion-decoder")
    add(rules.Upsample("transposed"), "efficientnet_lite0", "vgg16", "fashion")
    for kind in (rules.Separable, rules.Bottleneck):
        for fitted in (True, False):
            add(kind(budget="macs:0.7"), fitted=fitted)
    add(rules.Untie(where="blocks.5.*,blocks.6.*"), "efficientnet_lite0")
    add(rules.Untie(), "vgg16", "fashion")
    add(rules.Tie(), "fashion", prepare="untied")
    add(rules.Tie(where="blocks.6.*"), "efficientnet_lite0", prepare="untied, blocks.6.*")
    add(rules.Tie(), "vgg16")
    for fitted in (True, False):
        add(rules.Tie(), "fashion", prepare="untied, 10 % noise", fitted=fitted)
    add(rules.Convolutionalize())
    add(rules.FoldBatchNorm())
    add(rules.InputSize(320, 360, "native"), "vgg16")
    return found


def prepared(net: Net, how: str) -> Net:
    """The network that a rule is to undo."""
    if not how:
        return net
    layers = how.removeprefix("untied, ") if "*" in how else "kernel > 1"
    made = rewrite(net, rules.Untie(where=layers)).net
    if "noise" in how:
        generator = torch.Generator().manual_seed(0)
        for part in made.module.modules():
            if isinstance(part, LocallyConnected2d):
                noise = torch.randn(part.weight.shape, generator=generator)
                part.weight.data += 0.1 * part.weight.std() * noise
    return made


def outputs(module: nn.Module, x: Tensor) -> Tensor:
    """What a network gives, batch by batch."""
    with torch.no_grad():
        return torch.cat([module(part) for part in x.split(8 if x.shape[-1] > 100 else BATCH)])


def score(subject: Subject, found: Tensor) -> dict[str, Any]:
    """What outputs are worth."""
    if subject.labels is not None:
        return {"top-1": float((found.argmax(1) == subject.labels).double().mean())}
    if subject.wanted is not None:
        errors = (found - subject.wanted).square().flatten(1).mean(1)
        return {"PSNR": float(-10 * errors.log10().mean())}
    return {}


def row(case: Case, subject: Subject, before: Tensor) -> dict[str, Any]:
    """One line of the tables."""
    net = prepared(subject.net, case.prepare)
    if case.prepare:
        before = outputs(net.module, subject.test)
    facts: dict[str, Any] = {
        "page": case.page, "rule": str(case.rule), "prepare": case.prepare, "images fitted to": 0,
        "before": score(subject, before),
    }  # fmt: skip
    if case.fitted:
        facts["images fitted to"] = len(subject.calibration)
    began = time.perf_counter()
    try:
        made = rewrite(
            net, case.rule, data=subject.calibration if case.fitted else None, limit=len(subject.calibration)
        )
    except ConvscopeError as error:
        return {**facts, "refused all": f"{type(error).__name__}: {error}"}
    facts["seconds"] = timing.significant(time.perf_counter() - began, 3)
    facts["refused"] = dict(Counter(edit.reason for edit in made.refused).most_common())
    facts["changed"] = len(made.done)
    if not made.done:
        return facts
    totals = [measure(each, fields=False, training=False).totals for each in (net, made.net)]
    facts |= {
        "exactness": made.exactness,
        "margin": max(max(edit.margin) for edit in made.done),
        "one size": any(edit.fixed_size for edit in made.done),
        "params": [each.params for each in totals],
        "macs": [each.macs for each in totals],
        "largest error of a layer": max((edit.error or 0.0 for edit in made.done), default=0.0),
        "rms error of a layer": max((edit.rms_error or 0.0 for edit in made.done), default=0.0),
    }
    if made.net.input.shape != net.input.shape:
        return facts
    after = outputs(made.net.module, subject.test)
    facts |= {"images": len(subject.test), "after": score(subject, after)}
    if after.shape == before.shape:
        facts["error of the output"] = float((after - before).norm() / before.norm())
        if subject.labels is not None:
            pairs = [(each.argmax(1) == subject.labels) for each in (before, after)]
            facts["agreement"] = float((before.argmax(1) == after.argmax(1)).double().mean())
            facts["gained"], facts["lost"] = (
                int((pairs[1] & ~pairs[0]).sum()),
                int((pairs[0] & ~pairs[1]).sum()),
            )
    x = net.input.example(1)
    with torch.inference_mode():
        times = timing.measure(
            {"before": lambda: net.module(x), "after": lambda: made.net.module(x)},
            budget=BUDGET, warmup=2, least=5, grain=3e-3,
        )  # fmt: skip
    facts["times"] = {name: each.to_dict() for name, each in times.items()}
    facts["time"] = times["after"].over(times["before"]).to_dict()
    return facts


def main() -> None:
    """Runs what is asked for and adds it to what the file holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--pages", default="", help="names of rules: pool,padding; all without")
    parser.add_argument(
        "--data", type=Path, help="folder of photographs, one a class in the order of the classes"
    )
    parser.add_argument("--vgg", type=Path, help="weights of torchvision's vgg16().features, safetensors")
    parser.add_argument("--out", type=Path, help="JSON file to write; added to what it holds")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--missing", action="store_true", help="only rows that the file has not")
    parser.add_argument("--quick", action="store_true", help="a smoke run, no figure to quote")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    options = Options(given.data, given.vgg, given.quick)
    pages = set(filter(None, given.pages.split(",")))
    for name in given.networks.split(","):
        if (name in ("efficientnet_lite0", "vgg16") and options.data is None) or (
            name == "vgg16" and options.vgg is None
        ):
            print(f"{name}: left out, give --data and --vgg", file=sys.stderr)
            continue
        subject: Subject | None = None
        before = torch.empty(0)
        for case in cases():
            fitted = ", fitted" if case.fitted else ""
            key = f"{name}/{case.rule}{fitted}" + (f" after {case.prepare}" if case.prepare else "")
            if name not in case.networks or (pages and case.page not in pages):
                continue
            if given.missing and key in _held(given.out):
                continue
            if subject is None:
                subject = NETWORKS[name](options)
                before = outputs(subject.net.module, subject.test)
            facts = {"network": name, **row(case, subject, before), "quick": options.quick}
            facts["machine"] = machine.describe(torch.device("cpu"), PACKAGES)
            told = {
                k: facts.get(k)
                for k in ("exactness", "refused all", "error of the output", "after", "seconds")
            }
            print(key, {k: v for k, v in told.items() if v is not None}, file=sys.stderr, flush=True)
            if given.out is not None:
                held = _held(given.out)
                held[key] = facts
                given.out.write_text(json.dumps(held, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _held(path: Path | None) -> dict[str, Any]:
    """What the file has so far."""
    return json.loads(path.read_text(encoding="utf-8")) if path is not None and path.exists() else {}


if __name__ == "__main__":
    main()
