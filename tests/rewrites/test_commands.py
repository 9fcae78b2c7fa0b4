"""`convscope rewrite` and `convscope compare`: what they print, write and answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion

import convscope
from convscope import cli
from convscope.errors import RequestError

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """run("rewrite", ...) -> exit code, stdout, stderr; in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def call(*words: str) -> tuple[int, str, str]:
        code = cli.main(words)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_rewrite_then_compare(run: Run, snapshot: SnapshotAssertion) -> None:
    code, out, err = run(
        "rewrite", "fashion", "--rule", "kernel_size:5,where=block1.conv1", "--rule", "padding:reflect",
        "--where", "block1.*, block2.conv1", "--out", "made", "--no-page",
    )  # fmt: skip
    assert code == 0, err
    assert out == snapshot
    assert sorted(path.name for path in Path("made").iterdir()) == ["model.safetensors", "recipe.json"]
    assert "3 edits" not in err
    assert "4 edits, 0 refused, exact-interior" in err
    assert "Next: convscope compare fashion recipe:made" in err
    code, out, err = run("compare", "fashion", "recipe:made", "--quick", "--limit", "4", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["first"] == "block1.conv1"
    assert found["images"] == {"count": 4, "source": "photographs"}
    assert set(found["figures"]) == {"params", "macs", "element_ops", "activation_bytes"}
    code, out, err = run("compare", "fashion", "recipe:made", "--quick", "--limit", "4")
    assert code == 0, err
    assert "they begin to differ" in out


def test_pages(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    true = convscope.compare

    def compare(*args: Any, **settings: Any) -> Any:
        seen.append(settings)
        quick = {"steps": 2, "latency": False, "memory": False}
        return true(*args, **settings | quick)

    monkeypatch.setattr(convscope, "compare", compare, raising=False)
    code, _, err = run(
        "rewrite",
        "fashion",
        "--rule",
        "padding:replicate,where=block1.conv1",
        "--limit",
        "2",
        "--out",
        "made",
    )
    assert code == 0, err
    assert "made/changes.html shows what changed" in err
    assert {"changes.html", "index.html", "model.safetensors", "recipe.json"} <= {
        path.name for path in Path("made").iterdir()
    }
    assert (seen[0]["features"], seen[0]["limit"]) == ("auto", 2)
    assert run("measure", "recipe:made")[0] == 0  # still a network
    code, out, err = run("compare", "fashion", "recipe:made", "--limit", "2", "--out", "page", "--json")
    assert code == 0, err
    assert len(json.loads(out)["features"]) == 6
    assert Path("page/changes.html").exists()
    assert (seen[1]["features"], seen[1]["latency"]) == ("auto", True)
    run(
        "compare",
        "fashion",
        "fashion",
        "--quick",
        "--limit",
        "2",
        "--out",
        "plain",
        "--features",
        "block1.conv1:0",
    )
    assert seen[2]["features"] == {"block1.conv1": [0]}
    assert seen[2]["latency"] is False


def test_rewrite_prints_one_json_document(run: Run) -> None:
    code, out, err = run(
        "rewrite", "fashion", "--rule", "padding:replicate", "--where", "kind:Conv2d", "--json", "--no-page"
    )
    assert code == 0, err
    found = json.loads(out)
    assert found["path"] == "rewritten"
    assert [edit["exactness"] for edit in found["edits"]] == ["exact-interior"] * 6


def test_nothing_but_refusals_is_exit_1(run: Run) -> None:
    code, out, _ = run("rewrite", "fashion", "--rule", "kernel_size:3", "--where", "block1.conv1")
    assert code == 1
    assert "refused: its kernel is 3x3 already" in out


def test_compare_several_as_markdown(run: Run, snapshot: SnapshotAssertion) -> None:
    run("rewrite", "fashion", "--rule", "kernel_size:5,where=block1.conv1", "--out", "made", "--no-page")
    code, out, err = run(
        "compare", "fashion", "recipe:made", "fashion", "--quick", "--limit", "2", "--markdown"
    )
    assert code == 0, err
    assert out == snapshot


def test_arguments_reach_the_api(run: Run, monkeypatch: pytest.MonkeyPatch, tiny: Any) -> None:
    seen: dict[str, Any] = {}

    def compare(a: Any, b: Any, **settings: Any) -> Any:
        seen.update(settings, a=a, b=b)
        raise RequestError("enough")

    loaded: list[dict[str, Any]] = []

    def load(source: Any, **settings: Any) -> Any:
        loaded.append({"source": source} | settings)
        return tiny

    monkeypatch.setattr(convscope, "load", load, raising=False)
    monkeypatch.setattr(convscope, "compare", compare, raising=False)
    words = (
        "compare x:a x:b --weights w.pt --input 32 --data photos --limit 9 --border --all --seed 3 --random"
    )
    code, _, _ = run(*words.split(), "--features", "conv1:0,3;conv2:0:2")
    assert code == 2
    assert (loaded[0]["weights"], loaded[1]["weights"]) == ("w.pt", None)
    assert [each["input"] for each in loaded] == ["32", "32"]
    del seen["progress"], seen["a"], seen["b"]
    assert seen == {
        "data": "photos", "limit": 9, "features": {"conv1": [0, 3], "conv2": [0, 1]}, "seed": 3, "random": True,
        "border": True, "all": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("rewrite fashion --rule kernelsize:5", "did you mean 'kernel_size'"),
        ("rewrite fashion --rule kernel_size:5 --where nowhere", "where='nowhere' matches no layer"),
        ("compare fashion recipe:nowhere", "does not exist; give the folder that Rewrite.save wrote"),
        ("compare fashion fashion --markdown --json", "ask for one"),
        ("compare fashion fashion --features conv1", "must be auto or LAYER:CHANNELS, such as conv1:0,3"),
    ],
)
def test_wrong_requests_are_one_sentence(run: Run, words: str, says: str) -> None:
    code, _, err = run(*words.split())
    assert code == 2
    assert says in " ".join(err.split())
    assert "Traceback" not in err
