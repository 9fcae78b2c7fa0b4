"""docs/measure.md: its code runs and says what comes out, its tables are those of the record, which hold here too."""

from __future__ import annotations

import ast
import doctest
import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from convscope import measure, receptive_field
from convscope.measures import count_rules

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "measure.md").read_text(encoding="utf-8")
RECORD = json.loads((ROOT / "benchmarks" / "results" / "counting-cpu.json").read_text(encoding="utf-8"))
BLOCKS = re.findall(r"(?s)```python\n(.*?)```", PAGE)


@pytest.fixture(scope="module")
def benchmarks() -> Iterator[tuple[ModuleType, ModuleType]]:
    """The cases and the tables of benchmarks/counting.py, which need no peer."""
    folder = str(ROOT / "benchmarks")
    sys.path.insert(0, folder)
    try:
        yield importlib.import_module("counting_cases"), importlib.import_module("counting_tables")
    finally:
        sys.path.remove(folder)


def test_the_code_runs_and_gives_what_it_says() -> None:
    names: dict[str, Any] = {}
    checked = 0
    for block in BLOCKS:
        lines = block.splitlines()
        for statement in ast.parse(block).body:
            text = ast.get_source_segment(block, statement)
            assert text is not None
            remark = lines[(statement.end_lineno or 1) - 1][statement.end_col_offset or 0 :].partition("# ")[
                2
            ]
            if isinstance(statement, ast.Expr):
                assert repr(eval(text, names)) == remark, text  # noqa: S307
                checked += 1
            else:
                exec(text, names)  # noqa: S102
    assert checked >= 12


def test_links_go_somewhere() -> None:
    targets = re.findall(r"\]\(([^)]+)\)", PAGE)
    assert targets
    assert all((ROOT / "docs" / target).is_file() for target in targets)


def test_element_operations_are_those_of_the_rules() -> None:
    """The page's table says what the docstring of the rules says, line by line."""
    told = re.search(r"(?s)column of its own:\n\n(.*?)\n\n", count_rules.__doc__ or "")
    assert told is not None
    rules = [re.split(r" {2,}", line.strip()) for line in told[1].splitlines()]
    table = PAGE.split("## Element operations")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    assert len(rules) == len(rows) - 3 > 8  # head, rule, and what is free
    for (operation, cost), (same, said) in zip(rules, rows[2:], strict=False):
        assert operation.split()[0] == same.split()[0]
        assert re.findall(r"\d+", cost.replace("log2", "")) == re.findall(r"\d+", said), operation


def test_the_tables_are_those_of_the_record(benchmarks: tuple[ModuleType, ModuleType]) -> None:
    _, tables = benchmarks
    assert not RECORD["quick"]
    assert tables.replaced(PAGE, RECORD) == PAGE, (
        "run python benchmarks/counting.py --show benchmarks/results/counting-cpu.json --markdown docs/measure.md"
    )
    with pytest.raises(ValueError, match="the page must hold <!-- made by"):
        tables.replaced("nothing", RECORD)


def test_what_the_record_says_of_convscope() -> None:
    """Exact wherever there is a right figure, and fast enough."""
    assert len(RECORD["networks"]) == 10
    for row in RECORD["networks"]:
        ours = row["tools"]["convscope"]
        assert (ours["macs"], ours["params"]) == (row["macs"], row["params"])
        assert ours["field"]["field"] == row["field"]["field"]
        assert round(row["macs"] / 1e9, 3) == pytest.approx(row["published"]["gmacs"], rel=5e-3)
    assert all(row["tools"]["convscope"]["macs"] == row["macs"] for row in RECORD["backward"])
    speed = RECORD["speed"]
    assert speed["resnet50"]["first call of a process"]["median"] < 3
    assert len(speed["meta"]["models"]) >= 80
    assert not any("error" in said for said in speed["meta"]["models"].values())
    assert speed["meta"]["seconds"] < 120


def test_the_difficulties_are_counted_right(benchmarks: tuple[ModuleType, ModuleType]) -> None:
    """What the record says of convscope holds for the code as it is: figures by hand, to the last unit."""
    cases, _ = benchmarks
    recorded = {row["name"]: row for row in RECORD["probes"]}
    assert list(recorded) == [probe.name for probe in cases.PROBES]
    for probe in cases.PROBES:
        found = measure(probe.build(), input=probe.example(), training=False)
        assert (found.totals.macs, found.totals.params) == (probe.macs, probe.params), probe.name
        assert not found.uncounted
        said = recorded[probe.name]["tools"]["convscope"]
        assert (said["macs"], said["params"]) == (probe.macs, probe.params), probe.name


def test_gradients_are_counted_right(benchmarks: tuple[ModuleType, ModuleType]) -> None:
    cases, _ = benchmarks
    for case in cases.BACKWARD:
        found = measure(case.build(), input=case.example(), fields=False, training=False, backward=True)
        assert found.totals.backward_macs == case.right, case.name


def test_a_network_without_weights(benchmarks: tuple[ModuleType, ModuleType]) -> None:
    """One of the ten, on the meta device: figures by one hook, and torchvision's own."""
    cases, _ = benchmarks
    network = next(network for network in cases.NETWORKS if network.name.startswith("deeplab"))
    with torch.device("meta"):
        module, x = network.build(), torch.zeros(network.shape)
    found = measure(module, input=x, training=False)
    gmacs, params = network.published()
    assert found.totals.params == params
    assert found.totals.macs == cases.by_modules(module, x)
    assert found.totals.macs / 1e9 == pytest.approx(gmacs, abs=5e-4)
    seen = receptive_field(module, network.layer, graph=found.graph)
    assert seen.local is not None  # squeeze-and-excitation sees the whole image
    assert (seen.local.size[0], seen.local.stride[0], seen.local.padding[0]) == network.field


def test_the_examples_of_the_benchmark(benchmarks: tuple[ModuleType, ModuleType]) -> None:
    for module in benchmarks:
        assert doctest.testmod(module).failed == 0
        assert doctest.testmod(module).attempted > 0
