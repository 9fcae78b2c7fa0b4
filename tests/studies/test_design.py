"""Designs: the variants and runs that follow from them, and what is refused."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from convscope import rules
from convscope.errors import RequestError, UnknownName
from convscope.studies import design_file
from convscope.studies.data import dataset
from convscope.studies.data_check import ARGUMENTS
from convscope.studies.design import Budget, Design
from convscope.studies.plan import RunConfig, plan

BASE = "convscope.studies.networks:small_cnn"
DATA = {"source": "fashion", "hash": "0" * 64}


def test_full_factorial() -> None:
    design = Design(BASE, {"kernel_size": [1, 3], "pooling": ["max", "none"], "norm": [True, False]})
    labels = [variant.label for variant in design.variants()]
    assert len(labels) == 8 == len(set(labels))
    assert labels[0] == "kernel_size=1, pooling=max, norm=true"
    assert design.variants()[-1].arguments == {"kernel_size": 3, "pooling": "none", "norm": False}


def test_one_factor_at_a_time_keeps_the_rest_at_the_baseline() -> None:
    design = Design(
        BASE, {"kernel_size": [1, 3, 5], "depth": [1, 2]}, mode="one-at-a-time", baseline={"kernel_size": 3}
    )
    assert [dict(variant.values) for variant in design.variants()] == [
        {"kernel_size": 3, "depth": 1},
        {"kernel_size": 1, "depth": 1},
        {"kernel_size": 5, "depth": 1},
        {"kernel_size": 3, "depth": 2},
    ]


def test_levels_of_every_kind() -> None:
    design = Design(
        BASE,
        {
            "rule": ["none", rules.KernelSize(5), "padding:valid | kernel_size:3"],
            "training.lr": [0.1, 0.01],
            "block": {"one 5x5": {"kernel_size": 5}, "two 3x3": {"depth": 2, "training.batch": 64}},
        },
    )
    last = design.variants()[-1]
    assert last.rules == ("padding:valid | kernel_size:3",)
    assert (last.arguments, last.training) == ({"depth": 2}, {"lr": 0.01, "batch": 64})
    assert last.label == "rule=padding:valid | kernel_size:3, training.lr=0.01, block=two 3x3"
    assert design.variants()[0].rules == ()
    assert design.variants()[4].rules == ("kernel_size:size=5",)


def test_the_plan_pairs_variants_by_seed() -> None:
    design = Design(BASE, {"kernel_size": [1, 3]}, seeds=[7, 2], arguments={"width": 4}, training={"lr": 0.2})
    runs = plan(design, DATA)
    assert [(run.variant, run.config.seed) for run in runs] == [(0, 7), (1, 7), (0, 2), (1, 2)]
    assert runs[1].config.arguments == {"width": 4, "kernel_size": 3}
    assert runs[1].config.training == {"lr": 0.2, "epochs": 5}
    assert len({run.config.key for run in runs}) == 4


def test_a_run_is_named_by_what_it_depends_on() -> None:
    config = plan(Design(BASE, {"kernel_size": [3]}), DATA)[0].config
    again = RunConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.key == config.key

    def key(**changed: Any) -> str:
        return RunConfig.from_dict({**config.to_dict(), **changed}).key

    assert key(data={**DATA, "source": "elsewhere"}) == config.key
    changes: dict[str, Any] = {
        "data": {**DATA, "hash": "1" * 64},
        "code": {**config.code, "sources": "other"},
        "seed": 1,
        "arguments": {"kernel_size": 4},
        "rules": ["padding:valid"],
        "training": {"epochs": 1},
        "threads": 2,
        "device": "cuda",
        "base": "timm:resnet18",
    }
    assert set(changes) == set(config.to_dict())
    keys = {key(**{name: value}) for name, value in changes.items()}
    assert len(keys) == len(changes)
    assert config.key not in keys


def test_quick_is_two_seeds_and_a_fourth() -> None:
    design = Design(BASE, {"kernel_size": [3]}, seeds=[4, 5, 6], budget={"macs": 8e9}).quick()
    assert (design.all_seeds, design.each_budget) == ((4, 5), Budget(macs=2e9))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"base": ""}, "base='' must be text"),
        ({"mode": "all"}, "mode='all' must be one of full, one-at-a-time"),
        ({"factors": {}}, r"factors=\{\} must name at least one factor"),
        ({"factors": {"kernel_size": []}}, "factor 'kernel_size' has no levels"),
        ({"factors": {"kernel_size": 3}}, r"factor 'kernel_size' is 3; give a list of its levels"),
        ({"factors": {"kernel_size": [3, 3]}}, "factor 'kernel_size' has a level twice: 3, 3"),
        ({"factors": {"kernel_size": [object]}}, "factor 'kernel_size' has the value <class 'object'>"),
        ({"factors": {"a b": [1]}}, "factor name 'a b' must be a word"),
        (
            {"factors": {"train.lr": [1]}},
            "'train.lr' must be an argument of the factory, rule, or training.NAME",
        ),
        (
            {"factors": {"rule": ["kernel_sise:5"]}},
            "rule 'kernel_sise' does not exist; did you mean 'kernel_size'",
        ),
        ({"factors": {"x": {"a": {"rule": 5}}}}, "level 'a' of factor 'x': rule 5 must be text"),
        ({"factors": {"x": {"a": 5}}}, "level 'a' of factor 'x' is 5; give names with their values"),
        (
            {"baseline": {"kernel": 3}},
            "baseline names 'kernel', which is no factor; did you mean 'kernel_size'",
        ),
        ({"baseline": {"kernel_size": 9}}, "baseline kernel_size=9 must be one of its levels: 1, 3"),
        ({"seeds": 0}, "seeds=0 must be 1 or more"),
        ({"seeds": [1, 1]}, r"seeds=\[1, 1\] must all differ"),
        ({"seeds": "12"}, "seeds='12' must be how many, or a list of whole numbers"),
        ({"seeds": [-1]}, r"seeds=\[-1\] must be how many, or a list"),
        ({"budget": {}}, "budget=nothing must be exactly one of epochs, macs, seconds"),
        ({"budget": {"epochs": 1, "macs": 2}}, "must be exactly one of epochs, macs, seconds"),
        ({"budget": {"epoch": 1}}, "a budget has no 'epoch'; did you mean 'epochs'"),
        ({"budget": {"seconds": -1}}, "budget seconds=-1 must be a positive number"),
        ({"budget": 5}, "budget=5 must be a Budget or its values"),
        ({"threads": 0}, "threads=0 must be a whole number, 1 or more"),
        ({"device": "gpu"}, "device='gpu' must be one of cpu, cuda, mps"),
        ({"device": 3}, "device=3 must be one of cpu, cuda, mps"),
        ({"title": 3}, "title=3 must be text"),
        ({"name": "../a"}, "name='../a' must be a short text without /"),
        ({"name": 3}, "name=3 must be a short text"),
        ({"training": {"epochs": 3}}, "training epochs=3 is the length of the training, which budget says"),
        (
            {"factors": {"training.epochs": [1, 3]}},
            "'training.epochs' is the length .* a study for each budget",
        ),
        ({"factors": {"x": {"a": {"training.macs": 3}}}}, "'training.macs' is the length of the training"),
        ({"data": {"source": "fashion", "limit": "many"}}, "data limit='many' must be a whole number"),
        ({"data": {"source": "fashion", "fold": 3}}, "data fold=3 must be two whole numbers"),
        ({"data": {"source": "fashion", "size": [0, 3]}}, r"data size=\[0, 3\] must be a number of pixels"),
        ({"data": {"source": "fashion", "channels": 2}}, "data channels=2 must be 1 or 3"),
        ({"data": {"source": "fashion", "validation": 1}}, "data validation=1 must be a part of the samples"),
        ({"data": {"source": "fashion", "lower": 1}}, "data lower=1 must be true or false"),
        ({"data": {"source": "fashion", "test": 1}}, "data test=1 must be text"),
        ({"data": {"limit": 5}}, r"data=\{'limit': 5\} must have a source"),
        ({"data": 5}, "data is 5; give names with their values"),
        ({"training": {"lr": float("nan")}}, "training, 'lr' has the value nan"),
        ({"seeds": 60_000}, "the design has 120,000 runs, more than 100,000"),
        (
            {"factors": {"depth": [1, 2], "x": {"a": {"depth": 3}}}},
            "two factors set 'depth' in the variant",
        ),
    ],
)
def test_what_makes_no_sense_is_said(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Design(**{"base": BASE, "factors": {"kernel_size": [1, 3]}, **changed})


FILE = """
base = "convscope.studies.networks:small_cnn"
data = { source = "fashion", limit = 500 }
seeds = [0, 1, 2]
mode = "one-at-a-time"
baseline = { kernel_size = 3 }

[budget]
macs = 1e9

[factors]
kernel_size = [1, 3]

[factors.block]
"one 5x5" = { width = 5 }
"two 3x3" = { depth = 2 }
"""


def test_a_file_is_a_design(tmp_path: Path) -> None:
    path = tmp_path / "sizes.toml"
    path.write_text(FILE)
    design = design_file.read(path)
    assert design.name == "sizes"
    assert design.data == {"source": "fashion", "limit": 500}
    assert design.reference == {"kernel_size": 3, "block": "one 5x5"}
    assert design.factors["block"] == {"one 5x5": {"width": 5}, "two 3x3": {"depth": 2}}
    assert Design.from_dict(json.loads(json.dumps(design.to_dict()))) == design


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        (None, RequestError, "the design '.*x.toml' cannot be read: No such file"),
        ("base = ", RequestError, "the design '.*x.toml' is no TOML: Invalid value"),
        ("[factors]\na = [1]", RequestError, "in '.*x.toml': a design needs 'base', and there is none"),
        (
            "base = 'a:b'\nfactor = 1",
            UnknownName,
            "in '.*x.toml': a design has no 'factor'; did you mean 'factors'",
        ),
    ],
)
def test_files_that_are_none(tmp_path: Path, text: str | None, kind: type[Exception], message: str) -> None:
    path = tmp_path / "x.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(kind, match=message):
        design_file.read(path)


def test_arguments_of_data_are_those_of_dataset() -> None:
    assert list(ARGUMENTS) == list(inspect.signature(dataset).parameters)
