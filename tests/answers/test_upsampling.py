"""The answer on upsampling against torch's own functions, and on pictures and figures where the folklore is false."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import convscope
from convscope.answers import upsampling
from convscope.answers.base import Answer, Verdict
from convscope.answers.verdicts import upsampling as told


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> Answer:
    return convscope.ask("upsampling", quick=True, studies=tmp_path_factory.mktemp("none"))


def test_verdicts_of_the_embedded_decoder(answer: Answer) -> None:
    verdicts = {finding.claim.id: finding.verdict for finding in answer.findings}
    assert verdicts["U1"] is Verdict.NOT
    assert verdicts["U2"] is Verdict.WHEN
    assert verdicts["U3"] is Verdict.OPEN
    assert [verdicts[f"U{k}"] for k in (5, 6, 7, 8, 9)] == [Verdict.HOLDS] * 5
    assert answer.finding("U2").figures["map"] == "9x9"
    assert "4, 2, 2, 1" in answer.tables[0].notes[0]
    assert "4, 4, 4, 4" in answer.tables[0].notes[1]
    rows = {row[0]: row for row in answer.tables[1].rows}
    assert rows["nearest"][1] == "refused: it is nearest already"
    assert rows["transposed"][2] == rows["as it is"][2]  # the same function


def test_what_is_missing_is_torchs(answer: Answer) -> None:
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    rows = {row["way"]: row for row in upsampling._recovered((x, "noise"))["rows"]}
    pooled, places = functional.max_pool2d(x, 2, return_indices=True)
    backs = {
        "nearest": functional.interpolate(pooled, scale_factor=2),
        "bilinear": functional.interpolate(pooled, scale_factor=2, mode="bilinear"),
        "max_unpool": functional.max_unpool2d(pooled, places, 2),
    }
    spread = (x - x.mean((2, 3), keepdim=True)).square().mean((1, 2, 3))
    for way, back in backs.items():
        expected = ((back - x).square().mean((1, 2, 3)) / spread).mean()
        assert rows[way]["missing"]["value"] == pytest.approx(float(expected), rel=1e-5)
    assert rows["max_unpool"]["exact"] == 0.25


def test_pictures_without_detail_come_back() -> None:
    blocks = torch.rand(2, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    finding = told._recovers(upsampling._recovered((blocks, "blocks")))
    assert finding.verdict is Verdict.HOLDS
    assert finding.figures["best"] == "nearest"


def test_verdicts_follow_the_figures(answer: Answer) -> None:
    exact = upsampling._exact()
    broken = exact | {"nearest": False, "nails": False, "unpooled": False, "read": [1, 4]}
    rows = [
        {"way": way, "params": 5, "time": {"median": t}, "over": {"median": t, "low": t, "high": t}}
        for way, t in (("nearest", 1.0), ("transposed", 6.0), ("bed_of_nails", 1.5))
    ]
    times: dict[str, Any] = {"rows": rows, "channels": 3, "size": 8}
    assert told._cheapest(exact, times).verdict is Verdict.HOLDS
    assert told._cheapest(broken, times).verdict is Verdict.NOT
    rows[2]["over"] = {"median": 0.5, "low": 0.4, "high": 0.6}
    assert told._cheapest(exact, times).verdict is Verdict.WHEN
    recovered = {
        "rows": [
            {"way": w, "exact": 0.2, "rough": r}
            for w, r in (("bilinear", 0.2), ("nearest", 0.8), ("max_unpool", 1))
        ]
    }
    assert told._smooth(exact, recovered).verdict is Verdict.HOLDS
    assert told._smooth(broken, recovered).verdict is Verdict.NOT
    assert told._nailed(broken).verdict is Verdict.NOT
    assert told._unpools(broken, recovered).verdict is Verdict.NOT
    off = exact | {"grid": [(2, 1, 0, 9, 8)]}
    assert told._sized(off, times).verdict is Verdict.NOT
    layers = {"net": "n", "size": [8, 8], "map": [8, 8], "layers": 1, "macs": 2.0}
    assert told._needed(layers).verdict is Verdict.HOLDS


def test_a_network_of_the_users_own() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Upsample(scale_factor=2, mode="bilinear")).eval()
    net = convscope.load(module, input="3x16x16")
    assert [row["layer"] for row in upsampling._layers(net)["rows"]] == ["1"]
    seen: Any = SimpleNamespace(x=torch.randn(4, 3, 16, 16), source="noise")
    asked: Any = SimpleNamespace(images=lambda *a, **k: seen, quick=True, seed=0, data=None)
    decoder = upsampling._decoder(asked, net, True)
    changed = {row["way"]: row["change"]["value"] for row in decoder["rows"] if "change" in row}
    assert changed["as it is"] == 0.0
    assert changed["transposed"] < changed["bed_of_nails"]  # bilinear, but for the border
    assert changed["bed_of_nails"] > changed["nearest"] > 0.01
    assert upsampling._layers(convscope.load("fashion"))["rows"] == []


def test_a_checkerboard_is_seen_and_a_smooth_map_has_none() -> None:
    x = torch.rand(3, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    nearest = functional.interpolate(x, scale_factor=2)
    assert upsampling._ripple(x, nearest) == pytest.approx(0, abs=1e-6)
    nails = torch.zeros(3, 2, 10, 10)
    nails[..., ::2, ::2] = x
    apart = torch.stack([x.mean((2, 3)), *[torch.zeros(3, 2)] * 3]).std(0, correction=0)
    assert upsampling._ripple(x, nails) == pytest.approx(float((apart / nails.std((2, 3))).mean()), rel=1e-5)


def test_every_way_is_fine_tuned_alike(answer: Answer) -> None:
    table = answer.tables[1]
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    ways = ["as it is", "bilinear", "bed of nails", "max unpool", "transposed", "pixel shuffle"]
    assert list(rows) == [ways[0], "nearest", *ways[1:]]
    error = {way: float(rows[way]["squared error>"].split()[0]) for way in ways}
    tuned = {way: float(table.rows[list(rows).index(way)][3].split()[0]) for way in ways}
    assert tuned["bed of nails"] < error["bed of nails"]
    assert tuned["max unpool"] < error["max unpool"]
    assert all(rows[way]["time>"].endswith("s") for way in ways)
    assert rows["transposed"]["MACs>"] != rows["as it is"]["MACs>"]
    assert [picture.name for picture in answer.pictures] == ["ways", "map", "decoded"]
    assert "fine-tuned alike" in answer.statement
