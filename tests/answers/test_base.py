"""Findings, their text, and how answers show."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from convscope.answers.base import Answer, Finding, Picture, Verdict, fill, found, unstudied
from convscope.answers.claims import CLAIMS, claims_of
from convscope.answers.drawing import beside, grey, ledger, pixels, png
from convscope.measures.figures import Sheet


def made(*findings: Finding, **known: object) -> Answer:
    known = {"tables": (), "pictures": (), "charts": (), "notes": (), "conditions": {"seed": 0}} | known
    told = {
        "question": "padding",
        "title": "What?",
        "statement": "So.",
        "command": "convscope ask",
        "python": "ask()",
    }
    return Answer(**told, findings=findings, **known)  # type: ignore[arg-type]


def test_every_claim_has_an_identifier_of_its_question() -> None:
    assert len(CLAIMS) == 70
    for id, claim in CLAIMS.items():
        assert claim.id == id
        assert claim in claims_of(claim.question)
    letters = {
        question: {c.id[0] for c in claims_of(question)} for question in {c.question for c in CLAIMS.values()}
    }
    assert len(letters) == 12
    assert sorted("".join(map("".join, letters.values()))) == sorted("FSLTPUOKDICW")


@pytest.mark.parametrize(
    ("text", "figures", "expected"),
    [
        ("{n}", {"n": 1234567}, "1,234,567"),
        ("{n}", {"n": 0.123456}, "0.123"),
        ("{n}", {"n": 12345.6}, "12,346"),
        ("{n:.1%}", {"n": 0.1234}, "12.3 %"),
        ("{n:time}", {"n": 0.0021}, "2.10 ms"),
        ("{n:bytes}", {"n": 3 * 2**20}, "3 MiB"),
        ("{n:bytes}", {"n": 512}, "0.5 KiB"),
        ("{n:x}", {"n": 2.345}, "2.35 times"),
        ("{n:x}", {"n": 1234.5}, "1,234 times"),
        ("{n}", {"n": None}, "not measured"),
        ("{n:.1%}", {"n": None}, "not measured"),
        ("{n}", {"n": [3, 224]}, "3 x 224"),
        ("{n}", {"n": float("inf")}, "inf"),
        ("{n}", {"n": True}, "True"),
    ],
)
def test_figures_as_people_read_them(text: str, figures: dict[str, object], expected: str) -> None:
    assert fill(text, figures) == expected


def test_text_is_filled_from_figures_alone() -> None:
    one = found("P1", Verdict.WHEN, "{n} tried", "{n} kept.", when="k is {k}", n=5, k=3)
    assert (one.test, one.sentence, one.verdict_text) == ("5 tried", "5 kept.", "holds when k is 3")
    with pytest.raises(KeyError):
        found("P1", True, "a", "{missing}")


@pytest.mark.parametrize(
    ("verdict", "when"), [(Verdict.WHEN, ""), (Verdict.OPEN, ""), (True, "x"), (False, "x")]
)
def test_a_condition_belongs_to_two_verdicts(verdict: Verdict | bool, when: str) -> None:
    with pytest.raises(ValueError, match="do not go together"):
        found("P1", verdict, "a", "b", when=when)


def test_what_no_study_settled_is_inconclusive() -> None:
    one = unstudied("O6", "training")
    assert one.verdict is Verdict.OPEN
    assert one.verdict_text == "inconclusive: no study recorded yet"


def test_an_answer_shows_in_text_notebook_and_ledger() -> None:
    picture = Picture("map", "A <map>", np.zeros((2, 3), np.uint8))
    sheet = Sheet("sizes", ("layer", "out>"), (("a|b", "3"),))
    one = found("P1", False, "a | b", "{n} < 2.", n=1)
    answer = made(one, pictures=(picture,), tables=(sheet,))
    text = str(answer)
    assert "P1" in text
    assert "does not hold here" in text
    assert "1 < 2." in text
    assert "sizes" in text
    html = answer._repr_html_()
    assert "A &lt;map&gt;" in html
    assert "data:image/png;base64," in html
    rows = [line for line in ledger([answer]).splitlines() if line.startswith("| P1")]
    assert rows == ["| P1 zero padding keeps the size | a \\| b | 1 &lt; 2. | does not hold here |"]
    plain = answer.to_dict(pictures=True)
    assert plain["findings"][0]["verdict"] == "does not hold here"
    assert plain["pictures"][0]["image"].startswith("data:image/png")
    assert "image" not in answer.to_dict()["pictures"][0]
    assert answer.finding("P1") is one


def test_pictures() -> None:
    assert grey(torch.zeros(2, 2)).tolist() == [[0, 0], [0, 0]]
    assert grey(torch.tensor([[1.0, 2.0]]), 0.0, 4.0).tolist() == [[64, 128]]
    assert pixels(torch.ones(3, 2, 4)).shape == (2, 4, 3)
    assert pixels(torch.ones(1, 2, 4)).shape == (2, 4)
    row = beside([np.zeros((2, 2), np.uint8), np.zeros((4, 4, 3), np.uint8)], gap=1)
    assert row.shape == (4, 9, 3)
    assert png(row)[:4] == b"\x89PNG"
