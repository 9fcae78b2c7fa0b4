"""The project as a stranger finds it: imports, dependencies, the README's commands, the order of the house."""

from __future__ import annotations

import ast
import importlib.metadata
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import convscope
from convscope import cli
from convscope.models import Net

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "convscope"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# from top to bottom; a module imports only what stands below it, or beside it under the same name
HOUSE = (
    *("cli", "tour", "site", "answers", "studies", "rewrites", "features", "measures", "engines", "graph"),
    *("nn", "algorithms", "data", "models", "store", "timing", "errors"),
)
SAME_ROOM = {
    "__main__": "cli",
    "rules": "rewrites",
    **dict.fromkeys(("_sources", "_weights", "_torchvision"), "models"),
    "_heap": "timing",
    **dict.fromkeys(("_layers", "_changes"), "tour"),
    "commands": "cli",
}


# ---------------------------------------------------------------- imports


def _python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_is_quick_and_light() -> None:
    code = """
import json, sys, time
began = time.perf_counter(); import convscope; alone = time.perf_counter() - began
early = sorted({'torch', 'numpy', 'PIL', 'rich'} & set(sys.modules))
import torch
began = time.perf_counter(); convscope.load; convscope.InputSpec; beyond = time.perf_counter() - began
heavy = sorted({'torchvision', 'timm', 'jinja2', 'rich', 'PIL', 'cyclopts'} & set(sys.modules))
print(json.dumps([alone + beyond, early, heavy]))
"""
    runs = [json.loads(_python(code)) for _ in range(3)]
    assert runs[0][1:] == [[], []]
    assert min(run[0] for run in runs) < 0.3


def test_public_names_exist_and_are_documented() -> None:
    assert set(convscope.__all__) <= set(dir(convscope))
    assert set(convscope._HOME) == set(convscope.__all__) - {"__version__"}
    for name in convscope.__all__:
        value = getattr(convscope, name)
        assert name == "__version__" or len(value.__doc__ or "") > 80, name
    with pytest.raises(AttributeError, match="module 'convscope' has no attribute 'atlass'"):
        _ = convscope.atlass  # type: ignore[attr-defined]


def test_every_public_verb_and_type_has_an_executed_example() -> None:
    for name in ("load", "visualize", "atlas", "look", "report", "receptive_field", "InputSpec"):
        assert ">>>" in (getattr(convscope, name).__doc__ or ""), name


def _room(module: str) -> str:
    name = module.removeprefix("convscope").strip(".").split(".")[0]
    return SAME_ROOM.get(name, name)


def _imports(path: Path) -> list[tuple[str, bool]]:
    """(convscope module, whether imported when the file is), types apart."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {id(node) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for node in ast.walk(f)}
    typing = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in typing:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "convscope":
            names = (
                [f"convscope.{alias.name}" for alias in node.names]
                if node.module == "convscope"
                else [node.module]
            )
            found += [(name, id(node) not in inner) for name in names if name]
        elif isinstance(node, ast.Import):
            found += [(a.name, id(node) not in inner) for a in node.names if a.name.startswith("convscope.")]
    return found


def test_imports_go_down_the_house_only() -> None:
    upward = []
    for path in SOURCE.rglob("*.py"):
        room = _room(".".join(path.relative_to(SOURCE).with_suffix("").parts))
        if room == "__init__":
            continue
        assert room in HOUSE, f"{path.name} belongs to no room; add it to HOUSE"
        for module, at_once in _imports(path):
            other = _room(module)
            shows_itself = module == "convscope.site" and not at_once  # _repr_html_ asks the site to draw
            if other in HOUSE and HOUSE.index(other) < HOUSE.index(room) and not shows_itself:
                upward.append(f"{path.relative_to(SOURCE)} imports {module}")
    assert not upward


# ---------------------------------------------------------------- what is installed


def _needed() -> set[str]:
    """Every distribution that convscope with all its extras needs, as far as it is installed here."""
    extras = PROJECT["optional-dependencies"]
    wanted = [Requirement(text) for text in [*PROJECT["dependencies"], *itertools.chain(*extras.values())]]
    seen: set[str] = set()
    while wanted:
        need = wanted.pop()
        name = _normal(need.name)
        if name in seen or (
            need.marker and not any(need.marker.evaluate({"extra": e}) for e in ("", *need.extras))
        ):
            continue
        seen.add(name)
        try:
            wanted += [Requirement(text) for text in importlib.metadata.requires(need.name) or []]
        except importlib.metadata.PackageNotFoundError:
            continue  # an extra that is not installed here
    return {
        name for name in seen if name != "convscope" and not name.startswith(("nvidia-", "cuda-", "triton"))
    }


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_constraints_pin_everything() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert all(re.fullmatch(r"[0-9][0-9A-Za-z.]*", version) for version in pins.values())
    assert (pins["torch"], pins["torchvision"]) == ("2.13.0", "0.28.0")
    missing = _needed() - {_normal(name) for name in pins}
    assert not missing
    assert list(pins) == sorted(pins, key=str.lower)


def test_version_is_one() -> None:
    assert importlib.metadata.version("convscope") == convscope.__version__
    assert f"## {convscope.__version__} " in (ROOT / "CHANGELOG.md").read_text()


def test_what_a_package_needs_is_there() -> None:
    assert (SOURCE / "py.typed").is_file()
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert os.access(ROOT / ".ci/run", os.X_OK)
    subprocess.run(["bash", "-n", str(ROOT / ".ci/run")], check=True)


# ---------------------------------------------------------------- the README


def _commands() -> list[str]:
    blocks = re.findall(r"(?m)(?:^    .+\n?)+", README)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith(("convscope", "make "))]


def test_the_commands_of_the_readme_exist() -> None:
    commands = _commands()
    assert {"make run", "make test", "convscope report --open"} <= set(commands)
    targets = re.findall(r"(?m)^(\w+):", (ROOT / "Makefile").read_text())
    for command in commands:
        words = shlex.split(command.replace("[MODEL]", "timm:resnet18"))
        if words[0] == "make":
            assert words[1] in targets
        else:
            cli.app.parse_args(words[1:], exit_on_error=False, print_error=False)


def test_ci_runs_the_tests_as_the_readme_does() -> None:
    assert "make test" in (ROOT / ".ci/run").read_text()


def test_the_python_of_the_readme_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    blocks = re.findall(r"(?s)```python\n(.*?)```", README)
    assert len(blocks[0].strip().splitlines()) <= 7
    monkeypatch.chdir(tmp_path)
    visualize: Any = convscope.visualize
    monkeypatch.setattr(
        convscope, "visualize", lambda *a, **k: visualize(*a, **k, steps=2, size=48), raising=False
    )
    monkeypatch.setattr(convscope, "report", lambda net, out: (net, out), raising=False)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)  # noqa: S102
    assert isinstance(names["net"], Net)
    assert names["shown"].images.shape[:2] == (8, 3)
    assert names["both"].units[0].activation == names["both"].units[0].activation
    assert names["report"] == (names["net"], "report")


def test_the_pictures_and_links_of_the_readme_exist() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).is_file(), target
