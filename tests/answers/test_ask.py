"""The verb and the command: names, store, refusals, what remakes an answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import convscope
from convscope import cli, timing
from convscope.answers import ask as verb
from convscope.answers import asked as asking
from convscope.answers.base import Draft, found
from convscope.answers.claims import claims_of
from convscope.answers.questions import QUESTIONS, Question, find
from convscope.errors import ModelError, RequestError, UnknownName


class Fake:
    """A question "separable" of two parts, answered at once; counts what it measures."""

    PARTS: tuple[str, ...] = ("one", "two")

    def __init__(self) -> None:
        self.measured: list[str] = []
        self.level = 1

    def answer(self, asked: asking.Asked) -> Draft:
        def measure(name: str) -> dict[str, Any]:
            self.measured.append(name)
            return {"n": self.level, "nan": float("nan"), "map": torch.ones(2, 2)}

        one = asked.part("one", lambda: measure("one"), about={"level": self.level})
        two = asked.part("two", lambda: measure("two"), data=True, timed=True)
        assert one["nan"] is None
        assert two["map"].shape == (2, 2)
        findings = [found(claim.id, True, "a", "{n}", n=one["n"]) for claim in claims_of("separable")]
        return Draft(f"{one['n']} and {two['n']}.", tuple(findings))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = Fake()
    question = Question("separable", "What?", "fashion")
    monkeypatch.setattr(Question, "parts", property(lambda self: made.PARTS))
    monkeypatch.setattr(Question, "answer", property(lambda self: made.answer))
    monkeypatch.setitem(QUESTIONS, "separable", question)
    return made


def test_a_second_run_redoes_what_changed(fake: Fake, tmp_path: Path) -> None:
    first = convscope.ask("separable", out=tmp_path)
    assert (fake.measured, first.reused) == (["one", "two"], 0)
    again = convscope.ask("separable", out=tmp_path)
    assert (fake.measured, again.reused) == (["one", "two"], 2)
    assert again.to_dict() == first.to_dict()
    fake.level = 2  # a setting of the first part alone
    third = convscope.ask("separable", out=tmp_path)
    assert (fake.measured[2:], third.statement) == (["one"], "2 and 1.")
    convscope.ask("separable", out=tmp_path, seed=1)
    assert fake.measured[3:] == ["one", "two"]
    convscope.ask("separable", convscope.load("fashion-decoder"), out=tmp_path, seed=1)
    assert fake.measured[5:] == ["one", "two"]
    convscope.ask(
        "separable", convscope.load("fashion-decoder"), torch.zeros(1, 1, 28, 28), out=tmp_path, seed=1
    )
    assert fake.measured[7:] == ["two"]  # the images are the second part's
    convscope.ask("separable", out=tmp_path, fresh=True)
    assert fake.measured[8:] == ["one", "two"]


def test_times_are_kept_for_one_thread_count(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convscope.ask("separable", out=tmp_path)
    monkeypatch.setattr(timing, "processor", lambda: "another machine")
    convscope.ask("separable", out=tmp_path)
    assert fake.measured == ["one", "two", "two"]


def test_without_a_folder_nothing_is_kept(fake: Fake) -> None:
    convscope.ask("separable")
    convscope.ask("separable")
    assert fake.measured == ["one", "two"] * 2


def test_progress_counts_measurements(fake: Fake, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    convscope.ask("separable", out=tmp_path, progress=events.append)
    assert [event["done"] for event in events] == [0, 1, 1, 2]
    assert {event["total"] for event in events} == {2}


def test_a_measurement_must_be_announced(fake: Fake) -> None:
    fake.PARTS = ("one",)
    with pytest.raises(KeyError, match="not in PARTS"):
        convscope.ask("separable")


def test_every_claim_must_be_answered(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "claims_of", lambda name: claims_of("padding"))
    with pytest.raises(AssertionError, match="must have findings"):
        convscope.ask("separable")


@pytest.mark.parametrize(
    ("source", "data", "settings", "command", "python"),
    [
        (None, None, {}, "convscope ask separable", "convscope.ask('separable')"),
        (
            "fashion",
            None,
            {"quick": True},
            "convscope ask separable fashion --quick",
            "ask('separable', net, quick=True)",
        ),
        (
            "module",
            torch.zeros(2, 3, 8, 8),
            {"seed": 3},
            "MODEL --data DIR --seed 3",
            "'separable', net, data=data, seed=3)",
        ),
    ],
)
def test_what_remakes_an_answer(
    fake: Fake, source: str | None, data: Any, settings: dict[str, Any], command: str, python: str
) -> None:
    net: Any = (
        None if source is None else convscope.load(source) if source != "module" else nn.Conv2d(3, 4, 3)
    )
    answer = convscope.ask("separable", net, data, input="3x8x8" if source == "module" else None, **settings)
    assert answer.command.endswith(command)
    assert python in answer.python
    compile(answer.python, "answer", "exec")


def test_names_are_forgiving_and_errors_suggest() -> None:
    assert find(" PADDING ").name == find("pad").name == find("border").name == "padding"
    with pytest.raises(UnknownName, match="did you mean 'padding'"):
        find("paddding")
    with pytest.raises(UnknownName, match="none that can be asked; there are .*padding"):
        find("xyz")
    with pytest.raises(RequestError, match="must be a file, a folder"):
        convscope.ask("padding", data=3)


def test_questions_are_listed() -> None:
    listed = convscope.ask()
    assert list(listed) == list(QUESTIONS)
    assert listed.to_dict()["padding"]["claims"]["P1"] == "zero padding keeps the size"
    assert "padding" in str(listed)
    assert "<table>" in listed._repr_html_()


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str, str]:
        code = cli.main(words)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_command_line(fake: Fake, run: Callable[..., Any], tmp_path: Path) -> None:
    code, out, err = run("ask")
    assert code == 0
    assert "separable" in out
    code, out, err = run("ask", "--json")
    assert "padding" in json.loads(out)
    code, out, err = run("ask", "separable", "--json", "--out", "here", "--claims", "claims.md")
    assert code == 0, err
    assert json.loads(out)["statement"] == "1 and 1."
    assert json.loads((tmp_path / "here/answers/separable.json").read_text())["statement"] == "1 and 1."
    assert (tmp_path / "claims.md").read_text().count("\n| D") == 4
    code, out, err = run("ask", "separable", "fashion", "--out", "here")
    assert (code, "D1" in out, "As a page: here/answers.html" in err) == (0, True, True)
    assert '<p class="statement">1 and 1.</p>' in (tmp_path / "here/answers.html").read_text()
    code, out, err = run("ask", "separabel")
    assert (code, "did you mean 'separable'" in err) == (2, True)


def test_all_questions_of_a_network_without_convolutions(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {name: question for name, question in QUESTIONS.items() if name in ("padding", "pooling")}
    monkeypatch.setattr(verb, "QUESTIONS", few)
    (tmp_path / "flat.py").write_text(
        "import torch\nmake = lambda: torch.nn.Sequential(torch.nn.Flatten())\n"
    )
    words = ("ask", "all", "flat:make", "--input", "3x8x8", "--random", "--out", "none")
    code, out, err = run(*words)
    assert (code, "padding was not asked: net" in out) == (1, True), err
    assert not (tmp_path / "none/answers.html").exists()
    code, out, err = run(*words, "--json")
    assert sorted(json.loads(out)["refused"]) == ["padding", "pooling"]


@pytest.mark.parametrize("kind", [RequestError, ModelError])
def test_what_one_question_cannot_take_stops_no_other(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def refuse(asked: asking.Asked) -> Draft:
        raise kind("it gives a map.")

    few = {name: question for name, question in QUESTIONS.items() if name in ("padding", "pooling")}
    monkeypatch.setattr(verb, "QUESTIONS", few)
    monkeypatch.setattr(Question, "answer", property(lambda self: refuse))
    assert convscope.ask("all").refused == dict.fromkeys(few, "it gives a map.")
    with pytest.raises(kind, match="it gives a map"):
        convscope.ask("padding")


@pytest.mark.parametrize("question", ["all", "padding", "features"])
def test_weights_that_are_no_numbers_are_refused_by_name(question: str) -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).eval()
    with torch.no_grad():
        module[1].running_var[0] = float("inf")  # type: ignore[index]
    with pytest.raises(
        ModelError, match=r"1\.running_var of net 'Sequential' holds values that are not finite"
    ):
        convscope.ask(question, module, input="1x8x8", quick=True)
    with torch.no_grad():
        module[0].weight[0, 0, 0, 0] = float("nan")  # type: ignore[index]
    with pytest.raises(ModelError, match=r"0\.weight of net"):
        convscope.ask(question, module, input="1x8x8", quick=True)


@pytest.mark.parametrize("question", ["padding", "all"])
def test_a_wrong_folder_of_studies_is_said_first(question: str, tmp_path: Path) -> None:
    told: list[Any] = []
    with pytest.raises(RequestError, match=r"studies='.*nowhere' is no folder"):
        convscope.ask(question, out=tmp_path / "out", studies=tmp_path / "nowhere", progress=told.append)
    assert not told
    assert not (tmp_path / "out").exists()
