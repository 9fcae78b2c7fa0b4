"""docs/rules: a page for every rule, its code runs and says what comes out, its tables are those of the records."""

from __future__ import annotations

import doctest
import html
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from convscope.rewrites.base import REGISTRY

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "rules").glob("*.md"))
PICTURES = ROOT / "docs" / "images" / "rules"
RULES = {name: f"{name}.md" for name, rule in REGISTRY.items() if rule.__module__.startswith("convscope.")}


@pytest.fixture(scope="module")
def tools() -> Iterator[dict[str, ModuleType]]:
    """What runs the pages and what fills them."""
    folders = [str(ROOT / "tools"), str(ROOT / "benchmarks")]
    sys.path[:0] = folders
    try:
        yield {name: importlib.import_module(name) for name in ("pages", "rules_pages", "plates")}
    finally:
        for folder in folders:
            sys.path.remove(folder)


def test_every_rule_has_its_page_and_its_picture() -> None:
    index = (ROOT / "docs" / "rules" / "README.md").read_text(encoding="utf-8")
    assert {path.name for path in PAGES} - {"README.md"} >= set(RULES.values())
    for page in RULES.values():
        assert f"]({page})" in index


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_code_runs_and_gives_what_it_says(path: Path, tools: dict[str, ModuleType]) -> None:
    with torch.random.fork_rng(devices=[]):
        _, told = tools["pages"].run(path.read_text(encoding="utf-8"))
    assert told
    for text, says, gives in told:
        assert gives == says, text


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_links_and_pictures_are_there(path: Path) -> None:
    page = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", page):
        assert target.startswith("https://") or (path.parent / target).is_file(), target
    pictures = re.findall(r"!\[([^\]]+)\]\(\.\./images/rules/([^)]+)\)", page)
    assert len(pictures) == (path.stem != "README")
    for says, name in pictures:
        text = (PICTURES / name).read_text(encoding="utf-8")
        assert f'aria-label="{html.escape(says)}"' in text
        assert len(text) < 60_000
        assert "<script" not in text
        assert set(re.findall(r'(?:href|src)="([^,]{,22})', text)) <= {
            "data:image/png;base64",
            "data:image/jpeg;base64",
        }


def test_the_tables_are_those_of_the_records(tools: dict[str, ModuleType]) -> None:
    fill = tools["rules_pages"]
    given = fill.records()
    filled = [path for path in PAGES if fill.BEGIN in path.read_text(encoding="utf-8")]
    assert len(filled) >= 11
    assert not any(row["quick"] for row in given["rules-cpu"].values())
    for path in filled:
        page = path.read_text(encoding="utf-8")
        assert fill.replaced(page, path.stem, given) == page, (
            "run python benchmarks/rules_pages.py docs/rules"
        )
        assert "| " in fill.section(path.stem, given), f"{path.stem} has no figures"
    with pytest.raises(ValueError, match="nowhere: the page must hold <!-- made by"):
        fill.replaced("nothing", "nowhere", given)


def test_what_the_record_says_of_exact_rules(tools: dict[str, ModuleType]) -> None:
    """They keep every prediction."""
    rows = tools["rules_pages"].records()["rules-cpu"].values()
    exact = [row for row in rows if row.get("exactness") == "exact" and "agreement" in row]
    assert len(exact) >= 8
    assert all(row["agreement"] == 1 and row["largest error of a layer"] < 1e-9 for row in exact)


def test_the_examples_of_the_scripts(tools: dict[str, ModuleType]) -> None:
    for module in tools.values():
        assert doctest.testmod(module).failed == 0
        assert doctest.testmod(module).attempted > 0
