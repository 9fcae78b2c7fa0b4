"""docs/layers.md: its code runs and says what comes out, its pictures are what the layers make, no layer is left out."""

from __future__ import annotations

import ast
import html
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from convscope import nn

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "layers.md").read_text(encoding="utf-8")
PICTURES = ROOT / "docs" / "images" / "layers"
BLOCKS = re.findall(r"(?s)```python\n(.*?)```", PAGE)
VALUES = ("Checkerboard", "SwitchMemory", "Switches")  # what layers give or take, no layers


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
    assert checked > 35


def test_every_entry_is_short() -> None:
    entries = re.split(r"(?m)^### ", PAGE)[1:]
    assert len(entries) >= 23
    for entry in entries:
        blocks = re.findall(r"(?s)```python\n(.*?)```", entry)
        assert [len(block.splitlines()) for block in blocks] == [3], entry.splitlines()[0]


def test_every_layer_is_on_the_page() -> None:
    headings = " ".join(re.findall(r"(?m)^### (.*)$", PAGE))
    missing = [name for name in nn.__all__ if not re.search(rf"\b{name}\b", headings) and name not in VALUES]
    assert not missing
    assert all(name in PAGE for name in VALUES[1:])


def test_links_go_somewhere() -> None:
    anchors = {
        re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"(?m)^#+ (.*)$", PAGE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        assert (
            target.removeprefix("#") in anchors
            if target.startswith("#")
            else (ROOT / "docs" / target).is_file()
        )


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    script = ROOT / "tools" / "make_layer_pictures.py"
    subprocess.run([sys.executable, str(script), str(folder)], check=True, cwd=folder)
    return folder


def test_the_pictures_are_what_the_layers_make(drawn: Path) -> None:
    names = {path.name for path in drawn.iterdir()}
    assert names == {path.name for path in PICTURES.iterdir()}
    shown = dict(re.findall(r"!\[([^\]]+)\]\(images/layers/([^)]+)\)", PAGE))
    assert set(shown.values()) == names
    for says, name in shown.items():  # what a screen reader hears is what the script says
        assert f'aria-label="{html.escape(says)}"' in (PICTURES / name).read_text()
    changed = [name for name in sorted(names) if (drawn / name).read_text() != (PICTURES / name).read_text()]
    assert not changed, f"run python tools/make_layer_pictures.py docs/images/layers: {changed} differ"


def test_the_pictures_are_small_and_light() -> None:
    assert sum(path.stat().st_size for path in PICTURES.iterdir()) < 400_000
    for path in PICTURES.iterdir():
        text = path.read_text(encoding="utf-8")
        assert 'fill="#ffffff"' in text[:900]  # a background of its own, for dark pages
        assert "aria-label" in text
        assert "<script" not in text
        assert not re.search(r'(href|src)="', text)
