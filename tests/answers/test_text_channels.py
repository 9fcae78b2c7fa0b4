"""The answer on text against brute force over all n-grams, and on filters for which common advice is false."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import convscope
from convscope.answers import text_channels
from convscope.answers.base import Verdict
from convscope.answers.text_channels import _layouts, read
from convscope.answers.verdicts import text_channels as told
from convscope.studies.data import Split
from convscope.studies.networks import text_cnn

WORDS = ("<padding>", "<unknown>", *"abcdefgh")


def network() -> nn.Module:
    """One filter of two words and one of three, with weights large enough to tell n-grams apart."""
    net = text_cnn(vocabulary=len(WORDS), classes=2, dim=4, filters=1, widths=(2, 3)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        net.words.tables[0].weight[0].zero_()  # type: ignore[union-attr, index]
    return net


def sentences(net: nn.Module) -> Any:
    inputs = torch.randint(2, len(WORDS), (12, 7), generator=torch.Generator().manual_seed(1))
    inputs[:6, 5:] = 0
    return SimpleNamespace(
        words=WORDS, classes=("this", "that"), train=Split(inputs, torch.zeros(12, dtype=torch.int64))
    )


@torch.no_grad()
def test_ngrams_are_the_best_by_brute_force() -> None:
    net = network()
    data = sentences(net)
    rows = read(net, data)
    assert [row["width"] for row in rows] == [2, 3]
    for row, conv in zip(rows, net.convs.convs, strict=True):  # type: ignore[union-attr, arg-type]
        width = row["width"]
        every = torch.tensor(list(itertools.product(range(2, len(WORDS)), repeat=width)))
        answers = nn.functional.conv1d(net.words(every), conv.weight, conv.bias)[:, 0, 0]  # type: ignore[operator]
        assert row["best"] == " ".join(WORDS[k] for k in every[answers.argmax()])
        assert row["most"] == pytest.approx(float(answers.max()), rel=1e-5)
        seen = {tuple(s[k : k + width].tolist()) for s in data.train.inputs for k in range(8 - width)}
        places = torch.tensor([tuple(one) in seen for one in every.tolist()])
        heard = answers.masked_fill(~places, -torch.inf)
        assert row["top"][0] == " ".join(WORDS[k] for k in every[heard.argmax()])
        assert row["response"] == pytest.approx(float(heard.max()), rel=1e-5)
        # vectors of one length: gradient ascent must end in the direction of the weights
        angles = nn.functional.cosine_similarity(net.words.tables[0].weight[2:, :, None], conv.weight, dim=1)  # type: ignore[union-attr, index]
        assert row["climbed"] == " ".join(WORDS[k + 2] for k in angles.argmax(0))


@torch.no_grad()
def test_a_filter_of_one_word_hears_no_ngrams() -> None:
    net = network()
    for conv in net.convs.convs:  # type: ignore[union-attr]
        conv.weight[:, :, 1:] = 0
    figures = {"sentences": 12, "accuracy": 0.5, "chance": 0.5}
    rows = read(net, sentences(net))
    assert all(row["share"] == pytest.approx(1) for row in rows)
    assert told._ngrams({"rows": rows, **figures}).verdict is Verdict.NOT
    several = [{**row, "share": 0.5, "backwards": 0.2} for row in rows]
    assert told._ngrams({"rows": several, **figures}).verdict is Verdict.HOLDS
    assert told._ngrams({"rows": [rows[0], several[1]], **figures}).verdict is Verdict.WHEN


def test_channels_of_both_layouts() -> None:
    layouts = _layouts()
    channels = {(row["embedding"], row["layout"]): row["channels"] for row in layouts["rows"]}
    assert channels["one-hot", "rows"] == channels["random", "rows"] == 1
    assert (channels["one-hot", "channels"], channels["two-channel", "channels"]) == (50, 24)
    assert (
        told._one_hot(layouts).when == "words are laid out as the rows of a picture; as channels there are 50"
    )
    assert told._embedded(layouts).figures["as_many"] == 3
    rows = [
        row for row in layouts["rows"] if row["layout"] == "channels" and row["embedding"] != "two-channel"
    ]
    assert told._embedded({**layouts, "rows": rows}).verdict is Verdict.HOLDS
    assert told._embedded({**layouts, "dim": 7}).verdict is Verdict.NOT


def test_the_whole_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is trained on few sentences, so that the test is quick."""
    from convscope.studies.data import dataset

    monkeypatch.setattr(
        text_channels, "dataset", lambda source, **given: dataset(source, **{**given, "limit": 300})
    )
    made = convscope.ask("text-channels", quick=True)
    assert "270 definitions" in made.statement
    assert len(made.tables[1].rows) == 18
    assert made.finding("T3").figures["filters"] == 18
