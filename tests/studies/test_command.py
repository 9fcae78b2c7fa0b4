"""`convscope study`: what it prints, what it returns, how it is interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convscope.cli import main
from convscope.commands.study import said
from convscope.studies import study as studies
from convscope.studies.results import StudyResult

FILE = """
base = "convscope.studies.networks:small_cnn"
data = { source = "fashion", limit = 100, test_limit = 20 }
seeds = 3
arguments = { width = 2 }
[factors]
kernel_size = SIZES
"""


@pytest.fixture
def design(tmp_path: Path, toy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "sizes.toml"
    path.write_text(FILE.replace("SIZES", "[3, 5]"))
    return path


def test_a_study_is_trained_shown_and_shown_again(design: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", str(design), "--engine", "inline", "--out", "made"]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()[:3]] == ["variant", "kernel_size=3", "kernel_size=5"]
    assert "StudyResult('sizes', 2 variants, 6 of 6 runs, 0 failed)" in err
    assert "Take kernel_size=5: it has the best validation accuracy" in out
    assert "6 of 6 runs, " in err
    assert "best so far kernel_size=5 (validation 8" in err
    assert main(["study", str(design), "--show", "--out", "made"]) == 0
    assert capsys.readouterr().out == out


def test_figures_are_shown_where_the_page_cannot_be_written(
    design: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", str(design), "--engine", "inline", "--out", "made"]) == 0
    told = capsys.readouterr().out
    Path("made", "studies.html").unlink()
    Path("made", "studies.html").mkdir()  # as good as a folder that may only be read
    assert main(["study", str(design), "--show", "--out", "made"]) == 0
    out, err = capsys.readouterr()
    assert out == told
    assert "No page: cannot write 'made/studies.html'" in err


def test_json_is_one_document(design: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "study",
        str(design),
        "--engine",
        "inline",
        "--json",
        "--quick",
        "--margin",
        "5",
        "--cost",
        "params",
    ]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert [variant["label"] for variant in told["variants"]] == ["kernel_size=3", "kernel_size=5"]
    assert told["design"]["seeds"] == [0, 1]
    assert told["design"]["budget"] == {"epochs": 1.25}
    assert (told["choice"]["margin"], told["choice"]["cost"]) == (0.05, "params")
    assert told["folder"] == "study-sizes"
    shown = json.loads(Path("study-sizes", "data", "studies.json").read_text())["sizes"]["summary"]["choice"]
    assert shown == told["choice"]  # the page tells what was asked for
    assert all(variant["latency"]["median"] > 0 for variant in told["variants"])


def test_a_factory_and_data_of_the_current_folder(
    design: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studies, "RUN", "convscope.studies.run:run")
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\n\n\n"
        "def flat(classes, width=4):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, classes))\n"
    )
    chance = np.random.default_rng(0)
    images = chance.integers(0, 255, (80, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "mine.npz", x=images, y=np.arange(80) % 2)
    design.write_text(
        'base = "my_networks:flat"\ndata = "mine.npz"\nseeds = 1\nbudget = { epochs = 1 }\n'
        "training = { batch = 8 }\n[factors]\nwidth = [2, 4]\n"
    )
    assert main(["study", str(design), "--workers", "1", "--out", "made"]) == 0
    found = StudyResult.from_record("made")
    assert [variant.cost.params for variant in found.variants] == [
        64 * 2 + 2 + 2 * 2 + 2,
        64 * 4 + 4 + 4 * 2 + 2,
    ]
    assert found.data["name"] == "mine.npz"


def test_failed_runs_are_told_and_counted(design: Path, capsys: pytest.CaptureFixture[str]) -> None:
    design.write_text(FILE.replace("SIZES", "[3, 11]"))
    assert main(["study", str(design), "--engine", "inline"]) == 1
    out, err = capsys.readouterr()
    assert "failed: kernel_size=11, seeds 0, 1, 2 (tried 3 times each): ValueError: no luck with 11" in err
    assert "3 failed" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["nowhere.toml"],
            "the design 'nowhere.toml' cannot be read: No such file or directory; give a TOML file.",
        ),
        (
            ["sizes.toml", "--engine", "rays"],
            "engine='rays' must be one of inline, process, ray; did you mean 'ray'?",
        ),
        (["sizes.toml", "--margin", "0"], "margin=0.0 must be percentage points above 0 and below 100."),
        (
            ["sizes.toml", "--cost", "prams"],
            "cost='prams' must be one of macs, params, latency; did you mean",
        ),
        (["sizes.toml", "--show"], "the study 'study-sizes' cannot be read: No such file or directory"),
        (["sizes.toml", "--data", "fashon"], "data='fashon' does not exist; did you mean 'fashion'?"),
    ],
)
def test_mistakes(design: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert main(["study", *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_ctrl_c_says_what_is_kept(
    design: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(studies, "study", stop)
    assert main(["study", str(design), "--out", "made"]) == 130
    assert "Interrupted: " in capsys.readouterr().err


def test_what_progress_says() -> None:
    event = {"done": 3, "total": 9, "rate": 2.5, "seconds_left": 62.0, "best": None, "failed": 0}
    assert said(event) == "2.5 a second, 1:02 left"
    assert said({**event, "rate": 0.0, "seconds_left": None}) == ""
    best = {"label": "a=\x1b[31m", "metric": "test", "mean": 0.5, "runs": 1}
    assert said({**event, "best": best}).endswith(
        "best so far a=\N{REPLACEMENT CHARACTER}[31m (test 50.00 %, 1 run)"
    )
