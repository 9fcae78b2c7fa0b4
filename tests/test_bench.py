"""`convscope bench conv`: the verb's contract on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from convscope import cli, tour
from convscope.algorithms import survey
from convscope.site import charts

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """run("--quick", ...) -> exit code, stdout, stderr; three small points stand for all."""
    rows = (
        survey.Sweep("kernel", "4 channels, 12 × 12", "kernel", (1, 3), tuple(survey.convolution(4, 12, k) for k in (1, 3))),
        survey.Sweep("channels-3", "3 × 3", "channels", (2,), (survey.convolution(2, 12, 3),)),
    )  # fmt: skip
    monkeypatch.setattr(survey, "sweeps", lambda **_: rows)
    monkeypatch.setattr(survey, "FULL", 0.3)
    monkeypatch.setattr(survey, "QUICK", 0.3)
    monkeypatch.setattr(
        charts, "of_survey", lambda told: {row["name"]: {"seconds": ["<svg/>"] * 2} for row in told["sweeps"]}
    )
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str, str]:
        code = cli.main(("bench", "conv", *words))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_a_page_and_a_table(run: Run, tmp_path: Path) -> None:
    code, out, err = run("--out", "here")
    assert (code, out) == (0, "here/convolution.html\n")
    assert "The fastest, on" in err
    assert "4 channels, 12 × 12" in err
    page = (tmp_path / "here" / "convolution.html").read_text()
    assert page.count("&lt;svg/&gt;") == 4
    found = json.loads((tmp_path / "here" / "convolution.json").read_text())
    assert (found["done"], found["planned"]) == (3, 3)
    assert [row["name"] for row in found["sweeps"]] == ["kernel", "channels-3"]


def test_json_is_one_document(run: Run) -> None:
    code, out, err = run("--quick", "--json", "--threads", "1")
    found = json.loads(out)
    assert code == 0
    assert found["page"] == "bench/convolution.html"
    assert found["machine"]["threads"] == 1
    assert {entry["algorithm"] for entry in found["sweeps"][0]["points"][0]["entries"]} == {
        "direct",
        "im2col",
        "fft",
        "winograd",
    }
    assert "The fastest" not in err


def test_ctrl_c_is_told_and_another_run_goes_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = survey.measure_point
    seen: list[int] = []

    def twice(value: int, *rest: Any) -> survey.Point:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(value)
        return measure(value, *rest)

    monkeypatch.setattr(survey, "measure_point", twice)
    code, out, err = run("--quick")
    assert (code, out) == (130, "")
    assert "what is finished is kept in bench; the same command goes on from there" in err
    assert json.loads(Path("bench/convolution.json").read_text())["done"] == 2
    seen.clear()
    assert run("--quick")[0] == 0
    assert seen == [2]


def test_wrong_requests(run: Run) -> None:
    for words, message in {
        ("--threads", "0"): "--threads 0 must be at least 1",
        ("--device", "abacus"): "device 'abacus' cannot be used",
        ("extra",): "'extra' is one argument too many; see convscope bench conv --help.",
    }.items():
        code, out, err = run(*words)
        assert (code, out) == (2, ""), words
        assert message in err
    assert cli.main(("bench", "cnv")) == 2
    assert run("--quick", "--out", "a")[0] == 0
    code, _, err = run("--out", "a")
    assert code == 2
    assert "--fresh" in err
    assert run("--out", "a", "--fresh")[0] == 0


def test_help_names_the_options(run: Run) -> None:
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    for option in ("--out", "--quick", "--fresh", "--threads", "--device", "--json", "--open"):
        assert option in out
    assert "MODEL" not in out


def test_the_page_opens_in_the_browser(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: bool(opened.append(address)) or True)
    assert run("--quick", "--open")[0] == 0
    assert opened == [Path("bench/convolution.html").resolve().as_uri()]


def test_threads_are_as_before(run: Run) -> None:
    before = torch.get_num_threads()
    run("--quick", "--threads", str(before + 1))
    assert torch.get_num_threads() == before
    assert tour.Bench.__doc__
