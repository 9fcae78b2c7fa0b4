"""docs/examples: the code of each page runs and says what comes out; its picture is there, and light."""

from __future__ import annotations

import html
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "examples"
EXAMPLES = sorted(path for path in FOLDER.glob("*.md") if path.stem != "README")


def test_there_are_five_and_the_index_names_them() -> None:
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert len(EXAMPLES) == 5
    assert all(f"]({path.name})" in index for path in EXAMPLES)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_code_runs_and_gives_what_it_says(path: Path, pages: ModuleType) -> None:
    with torch.random.fork_rng(devices=[]):
        _, told = pages.run(path.read_text(encoding="utf-8"))
    assert told
    for text, says, gives in told:
        assert gives == says, text


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_picture_stands_at_the_top(path: Path) -> None:
    page = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", page):
        assert (path.parent / target).is_file(), target
    ((says, name),) = re.findall(r"(?s)^# [^\n]+\n\n!\[([^\]]+)\]\(\.\./images/examples/([^)]+)\)", page)
    text = (ROOT / "docs" / "images" / "examples" / name).read_text(encoding="utf-8")
    assert f'aria-label="{html.escape(says)}"' in text
    assert len(text) < 60_000
    assert "<script" not in text
    assert set(re.findall(r'(?:href|src)="([^,]{,22})', text)) <= {
        "data:image/png;base64",
        "data:image/jpeg;base64",
    }
