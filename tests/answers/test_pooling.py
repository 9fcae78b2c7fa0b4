"""The answer on pooling against torch and counts worked out by hand; verdicts where the folklore is false."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import convscope
from convscope.answers import pooling
from convscope.answers.base import Answer, Verdict
from convscope.answers.verdicts import pooling as told


@pytest.fixture(scope="module")
def fashion() -> Answer:
    with pytest.MonkeyPatch.context() as patch:
        rows = [
            {"kind": kind, "params": params, "change": {"value": change, "low": change, "high": change}}
            for kind, params, change in (("as it is", 10, 0.0), ("strided", 12, 0.2), ("average", 10, 0.8))
        ]
        kinds = {"net": "fashion", "rows": rows, "source": "clothes", "images": 4}
        patch.setattr(pooling, "_kinds", lambda asked, net, own: kinds)
        return convscope.ask("pooling", quick=True)


def test_counts_are_worked_out_by_hand(fashion: Answer) -> None:
    channels = ((1, 32), (32, 64), (64, 64), (64, 64), (64, 96), (96, 128))
    weights = [9 * a * b for a, b in channels]
    with_pools = sum(w * n**2 for w, n in zip(weights, (28, 28, 14, 14, 7, 7), strict=True))
    without = sum(w * 28**2 for w in weights)
    figures = fashion.finding("K2").figures
    assert figures["with"] == with_pools
    assert figures["ratio"] == pytest.approx(without / with_pools)
    assert fashion.finding("K10").figures["more"] == 16
    head = fashion.finding("K4").figures
    convolutions = 9 * 16 + 16 + 9 * 16 * 32 + 32
    assert head["flat"] == convolutions + 32 * 7 * 7 * 10 + 10
    assert head["flat_without"] == convolutions + 32 * 28 * 28 * 10 + 10
    assert head["pooled"] == head["pooled_without"] == convolutions + 330
    assert fashion.finding("K4").verdict is Verdict.WHEN
    assert "strided by 20 % of its spread" in " ".join(fashion.statement.split()).replace(
        "moves the output ", ""
    )


def test_maxima_and_averages_are_torchs(fashion: Answer) -> None:
    rows = {(row[0], row[1]): row for row in fashion.tables[1].rows}
    assert rows["max", "2"][2] == "100 %"
    assert fashion.finding("K6").verdict is Verdict.HOLDS
    x = torch.tensor([[[[4.0, 0.0], [0.0, 0.0]]]])
    assert functional.max_pool2d(x, 2).item() / functional.avg_pool2d(x, 2).item() == 4.0


def test_invariance_is_what_is_measured() -> None:
    def moved(before: float, behind: float) -> dict[str, Any]:
        rows = [{"layer": "p", "move": move, "before": before, "behind": behind} for move in told.MOVES]
        return {"net": "n", "pools": ["p"], "rows": rows, "images": 4}

    assert told._invariant(moved(0.5, 0.3)).verdict is Verdict.WHEN
    assert told._invariant(moved(0.5, 0.6)).verdict is Verdict.NOT
    assert told._invariant(moved(0.5, 0.001)).verdict is Verdict.HOLDS
    assert told._robust(moved(0.5, 0.3), {"rows": [{}]}).verdict is Verdict.HOLDS
    assert told._robust(moved(0.5, 0.6), {"rows": [{}]}).verdict is Verdict.NOT


def test_a_pool_over_a_smooth_map_changes_it_less() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(4 * 36, 2)
    )
    net = convscope.load(module.eval(), input="1x24x24")
    asked: Any = SimpleNamespace(seed=0)
    rows = pooling._moved(asked, net, torch.rand(3, 1, 24, 24))["rows"]
    assert all(row["behind"] < row["before"] for row in rows)
    kinds = pooling._cost(net)
    assert (kinds["pools"], kinds["with"], kinds["without"]) == (1, 36 * 24 * 24, 36 * 24 * 24)
    assert told._reduces(kinds).verdict is Verdict.NOT  # nothing is computed behind it
    asked = SimpleNamespace(seed=0, quick=True, data=None, limit=lambda net: 24)
    asked.images = lambda net, limit, own: SimpleNamespace(
        x=torch.rand(6, 1, 24, 24), labels=None, source="noise"
    )
    exchanged = {row["kind"]: row for row in pooling._kinds(asked, net, True)["rows"]}
    assert exchanged["strided"]["change"]["value"] < 1e-5  # of an average pool the same function
    assert exchanged["max"]["change"]["value"] > 0.01
    assert set(exchanged["as it is"]["steady"]) == set(told.MOVES)
    assert exchanged["strided"]["steady"] == exchanged["as it is"]["steady"]


def test_the_class_of_a_global_average_stays_and_that_of_one_pixel_does_not() -> None:
    x = torch.zeros(4, 1, 8, 8)
    x[:, :, 4, 4] = 1.0
    moves = {"shift by 1 px": functional.pad(x, (1, 0, 0, 0))[..., :8]}
    whole = convscope.load(
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2)).eval(), input="1x8x8"
    )
    assert pooling._steady(whole, x, moves)["steady"]["shift by 1 px"]["value"] == 1.0
    pixel = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).eval()
    with torch.no_grad():
        pixel[1].weight.zero_()
        pixel[1].bias.copy_(torch.tensor([0.0, 0.5]))
        pixel[1].weight[0, 4 * 8 + 4] = 1.0  # the first class is that this pixel is lit
    steady = pooling._steady(convscope.load(pixel, input="1x8x8"), x, moves)["steady"]
    assert steady["shift by 1 px"]["value"] == 0.0


def test_other_kinds_are_on_the_same_map(fashion: Answer) -> None:
    rows = {row[0]: row for row in fashion.tables[1].rows}
    assert rows["global max"][2] == "100 %"
    assert rows["fractional max"][1].endswith("19x19")
    assert float(rows["global average"][2].split()[0]) < float(rows["average"][2].split()[0])


def test_presence_and_whole() -> None:
    noise = {"layer": "p", "images": 4, "max": {"one": 3.0, "all": 1.0}, "average": {"one": 0.1, "all": 5.0}}
    assert told._presence(noise).verdict is Verdict.HOLDS
    assert told._presence(noise | {"average": {"one": 0.1, "all": 0.5}}).verdict is Verdict.WHEN
    assert told._presence(noise | {"average": {"one": 4.0, "all": 0.5}}).verdict is Verdict.NOT


def test_a_study_settles_what_training_can(tmp_path: Path) -> None:
    from convscope.studies.design import Design
    from convscope.studies.results import Run, StudyResult, VariantResult

    scores = {"max": (0.80, 0.81, 0.82), "strided": (0.85, 0.86, 0.88), "fractional": (0.70, 0.71, 0.73)}
    design = Design("convscope.studies.networks:small_cnn", {"pooling": list(scores)}, seeds=3)
    variants = tuple(
        VariantResult(
            {"pooling": kind},
            kind,
            None,
            tuple(Run(v, k, f"{v}{k}", {"test": a}) for k, a in enumerate(each)),
        )
        for v, (kind, each) in enumerate(scores.items())
    )
    (tmp_path / "pool.json").write_text(json.dumps(StudyResult(design, {}, {}, variants).content()))
    asked: Any = SimpleNamespace(studies=tmp_path)
    assert told._better(asked).verdict is Verdict.NOT
    assert (
        told._overfitting(asked).verdict_text == "inconclusive: no study recorded yet"
    )  # none without pooling
    kinds = {"net": "n", "images": 4, "rows": [{"kind": "as it is", "params": 1}]}
    assert told._strided(asked, kinds).verdict is Verdict.HOLDS


@pytest.mark.parametrize(("train", "verdict"), [(0.99, Verdict.HOLDS), (0.70, Verdict.NOT)])
def test_overfitting_is_the_gap_from_training_to_test(tmp_path: Path, train: float, verdict: Verdict) -> None:
    from convscope.studies.design import Design
    from convscope.studies.results import Run, StudyResult, VariantResult

    scores = {
        "max": (0.90, 0.80),
        "none": (train, 0.70),
    }  # without pooling: worse in both, more or less of a gap
    design = Design("convscope.studies.networks:small_cnn", {"pooling": list(scores)}, seeds=3)
    variants = tuple(
        VariantResult({"pooling": kind}, kind, None, tuple(
            Run(v, k, f"{v}{k}", {"train": a + 0.001 * k * v, "test": b}) for k in range(3)
        ))
        for v, (kind, (a, b)) in enumerate(scores.items())
    )  # fmt: skip
    (tmp_path / "pool.json").write_text(json.dumps(StudyResult(design, {}, {}, variants).content()))
    asked: Any = SimpleNamespace(studies=tmp_path)
    assert told._overfitting(asked).verdict is verdict


def recorded(folder: Path, factors: dict[str, list[Any]], scores: list[float]) -> Any:
    """A shelf with one study of these factors, whose variants score as said over three seeds."""
    from convscope.studies.design import Design
    from convscope.studies.results import Run, StudyResult, VariantResult

    design = Design("convscope.studies.networks:small_cnn", factors, seeds=3)
    variants = tuple(
        VariantResult(
            dict(variant.values),
            variant.label,
            None,
            tuple(Run(v, k, f"{v}{k}", {"test": mean + 0.001 * k * (v + 1)}) for k in range(3)),
        )
        for v, (variant, mean) in enumerate(zip(design.variants(), scores, strict=True))
    )
    folder.mkdir(exist_ok=True)
    name = "-".join(factors)
    (folder / f"{name}.json").write_text(json.dumps(StudyResult(design, {}, {}, variants).content()))
    return SimpleNamespace(studies=folder)


@pytest.mark.parametrize(
    ("scores", "verdict"),
    [
        ([0.70, 0.80, 0.80, 0.70], "holds"),  # max with 2 and 4, average with 2 and 4
        (
            [0.80, 0.80, 0.70, 0.70],
            "holds when large windows are meant; in small ones it is the other way round",
        ),
        (
            [0.70, 0.70, 0.80, 0.80],
            "holds when small windows are meant; in large ones it is the other way round",
        ),
        ([0.80, 0.70, 0.70, 0.80], "does not hold here"),
    ],
)
def test_windows_are_judged_in_both_halves(tmp_path: Path, scores: list[float], verdict: str) -> None:
    asked = recorded(tmp_path, {"pooling": ["max", "average"], "pool_size": [2, 4]}, scores)
    assert told._windows(asked).verdict_text == verdict


def test_one_half_is_not_both(tmp_path: Path) -> None:
    asked = recorded(tmp_path, {"pooling": ["max", "average"], "pool_size": [4]}, [0.8, 0.7])
    assert told._windows(asked).verdict is Verdict.WHEN
    assert "of the others no study is recorded" in told._windows(asked).when


def test_either_kind_may_be_better(tmp_path: Path) -> None:
    recorded(tmp_path, {"head": ["average", "flatten"]}, [0.6, 0.8])
    asked = recorded(tmp_path, {"pooling": ["max", "fractional"]}, [0.7, 0.8])
    assert told._better(asked).verdict_text == "holds when fractional pooling is meant"
    recorded(tmp_path, {"pooling": ["max", "fractional"]}, [0.7, 0.6])
    assert told._better(asked).verdict is Verdict.NOT
    assert told._better(asked).sentence.count("In the study") == 2
