"""docs/studies.md: its code runs and gives what it says, its design is one; the designs beside it can be built."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path
from types import ModuleType

import pytest

from convscope.studies import design_file
from convscope.studies.data import dataset
from convscope.studies.network import network
from convscope.studies.plan import configure
from convscope.studies.run import training

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "studies.md").read_text(encoding="utf-8")


def test_the_code_runs_and_gives_what_it_says(pages: ModuleType) -> None:
    assert PAGE.count("```python") == 1
    _, told = pages.run(PAGE)
    for text, says, gives in told:
        assert gives == says, text
    assert len(told) == 5


def test_the_design_on_the_page_is_one(tmp_path: Path) -> None:
    (text,) = re.findall(r"(?s)```toml\n(.*?)```", PAGE)
    path = tmp_path / "page.toml"
    path.write_text(text)
    with pytest.raises(
        Exception, match="two factors set 'kernel_size'"
    ):  # the page shows both ways to vary it
        design_file.read(path)
    path.write_text(re.sub(r"(?m)^kernel_size = .*$|^baseline = .*$", "", text))
    assert len(design_file.read(path).variants()) == 8


@pytest.mark.parametrize("path", sorted((DOCS / "studies").glob("*.toml")), ids=lambda path: path.stem)
def test_the_designs_can_be_built(path: Path) -> None:
    design = design_file.read(path)
    assert f"convscope study docs/studies/{path.name}" in path.read_text()
    data = dataset("fashion", limit=200, test_limit=50)
    assert design.data == {"source": "fashion"}
    for variant in design.variants():
        config = configure(design, variant, 0, {"hash": data.hash})
        training(config)
        module, spec = network(config, data.input, data.arguments)
        assert module(spec.example(2)).shape == (2, 10)


def test_what_the_page_names_is_there() -> None:
    names = set(re.findall(r"convscope(?:\.\w+)+", PAGE))
    assert len(names) >= 4
    for name in names:
        pkgutil.resolve_name(name)
