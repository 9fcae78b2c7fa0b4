"""Results: means, differences, fronts and the choice, on studies whose scores are given."""

from __future__ import annotations

import json
import math
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from convscope.errors import RequestError, UnknownName
from convscope.studies.design import Design
from convscope.studies.results import Cost, Run, StudyResult, VariantResult
from convscope.studies.sql import database
from convscope.studies.statistics import mean_of, paired, seeds_needed
from convscope.studies.tables import html, rows, summary


def made(
    scores: dict[int, list[float | None]], macs: dict[int, int] | None = None, *, validation: bool = False
) -> StudyResult:
    """A study of kernel sizes with these test scores, seed by seed; None is a run that diverged."""
    design = Design("convscope.studies.networks:small_cnn", {"kernel_size": list(scores)}, seeds=5)
    variants = []
    for place, (size, values) in enumerate(scores.items()):
        runs = []
        for seed, value in enumerate(values):
            known = {} if value is None else {"test": value}
            if validation and value is not None:
                known["validation"] = 1 - value
            curves = {"train_loss": [1.0, None]}
            runs.append(Run(place, seed, f"{size}-{seed}", known, value is None, 2, 8, 1e6, curves=curves))
        price = macs[size] if macs else 1000 * size * size
        latency = {"median": size / 1000, "low": 0.0, "high": 1.0}
        cost = Cost(f"k{size}", 10 * size, price, (size, size), latency=latency)
        variants.append(VariantResult({"kernel_size": size}, f"kernel_size={size}", cost, tuple(runs)))
    return StudyResult(design, {"name": "fashion"}, {"torch": "2"}, tuple(variants))


def test_means_and_differences_to_the_baseline() -> None:
    scores = {1: [0.70, 0.72, 0.71], 3: [0.80, 0.83, 0.81], 5: [0.80, 0.83, 0.82]}
    result = made(scores)
    assert result.means()[1] == mean_of(scores[3])
    assert result.baseline == 0
    none, third, fifth = result.differences()
    assert none is None
    expected = [paired(scores[3], scores[1]), paired(scores[5], scores[1])]
    assert [third.mean, fifth.mean] == [e.mean for e in expected]
    small, large = sorted(e.p for e in expected)
    assert {third.adjusted_p, fifth.adjusted_p} == {2 * small, max(2 * small, large)}


def test_pairs_are_of_the_same_seed() -> None:
    result = made({1: [0.5, None, 0.7], 3: [0.6, 0.9, 0.9]})
    difference = result.differences()[1]
    assert difference.count == 2
    assert difference.mean == pytest.approx(0.15)
    assert result.variants[0].diverged == 1
    assert result.means()[0].count == 2


def test_learning_curves() -> None:
    result = made({1: [0.7, 0.8]})
    first, second = result.curve(0, "train_loss")
    assert (first.mean, first.count, second) == (1.0, 2, None)
    assert made({1: []}).curve(0) == ()
    with pytest.raises(
        UnknownName, match="curve 'train_los' must be one of train_loss; did you mean 'train_loss'"
    ):
        result.curve(0, "train_los")


def test_the_front_holds_what_nothing_beats() -> None:
    result = made({1: [0.7, 0.7], 3: [0.8, 0.8], 5: [0.75, 0.75], 7: [0.9, 0.9]})
    assert result.pareto() == (0, 1, 3)
    assert result.pareto("latency") == (0, 1, 3)
    same_price = made({1: [0.7], 3: [0.8], 5: [0.8]}, {1: 5, 3: 5, 5: 5})
    assert same_price.pareto() == (1,)
    with pytest.raises(
        UnknownName, match="cost='mac' must be one of macs, params, latency; did you mean 'macs'"
    ):
        result.pareto("mac")


def test_the_cheapest_that_is_within_the_margin_is_chosen() -> None:
    choice = made({1: [0.70, 0.71, 0.70], 3: [0.895, 0.897, 0.899], 5: [0.900, 0.901, 0.902]}).choose()
    assert (choice.conclusive, choice.variant, choice.best, choice.seeds) == (True, 1, 2, None)
    assert [loss.verdict for loss in choice.losses] == ["beyond", "within", "within"]
    assert choice.text == (
        "Take kernel_size=3: the cheapest (by MACs) that is within 1 point of the best, kernel_size=5; its test accuracy "
        "is 0.40 points (0.15 to 0.65) lower."
    )


def test_the_best_is_chosen_where_all_cheaper_ones_lose_more() -> None:
    choice = made({1: [0.70, 0.71, 0.70], 3: [0.9, 0.901, 0.9]}).choose(margin=0.02)
    assert (choice.conclusive, choice.variant) == (True, 1)
    assert choice.text == (
        "Take kernel_size=3: it has the best test accuracy, and every cheaper variant (by MACs) loses more than 2 points."
    )


def test_the_best_may_be_the_cheapest() -> None:
    choice = made({1: [0.9, 0.91, 0.9], 3: [0.7, 0.71, 0.7]}).choose()
    assert str(choice) == choice.text
    assert "none costs less" in choice._repr_html_()
    assert choice.text == "Take kernel_size=1: it has the best test accuracy, and none costs less (by MACs)."


def test_a_cost_that_nobody_counted_is_not_chosen_by() -> None:
    result = made({1: [0.9, 0.9], 3: [0.5, 0.5]})
    plain = [replace(v, cost=replace(v.cost, macs=None, latency=None)) for v in result.variants]
    result = replace(result, variants=tuple(plain))
    assert (result.costs, result.choose().cost) == (("params",), "params")
    with pytest.raises(RequestError, match="cost='latency' is not known of any variant .*; take params"):
        result.choose("latency")
    none = replace(result, variants=tuple(replace(v, cost=None) for v in result.variants))
    with pytest.raises(RequestError, match="cost='macs' is not known .*; no other is known either"):
        none.choose()
    assert summary(none)["choice"] is None


def test_cheaper_variants_that_cannot_be_taken_are_named() -> None:
    scores = {1: [0.9, None, 0.9], 3: [], 5: [0.8, 0.81, 0.8], 7: [None, 0.5, 0.5]}
    assert made(scores).choose().text == (
        "Take kernel_size=5: it has the best test accuracy, and none costs less (by MACs). Left out, though cheaper: "
        "kernel_size=1 (1 of 3 runs diverged), kernel_size=3 (no run finished)."
    )


def test_a_variant_above_the_best_on_the_seeds_they_share_is_called_higher() -> None:
    choice = made({1: [0.82, 0.80], 3: [0.81, 0.78, 0.99]}).choose()
    assert choice.best == 1
    assert "its test accuracy is 1.50 points (-4.85 to 7.85) higher" in choice.text


def test_of_values_r2_is_told() -> None:
    result = made({1: [0.5, 0.5], 3: [0.9, 0.9]})
    result = replace(result, data={"name": "fashion-denoise", "values": True})
    assert "the best test R²" in result.choose().text
    assert result.table()[0][2] == "R²>"
    assert "<th>R²</th>" in html(result)
    assert html(result).endswith(f"<p>{result.choose()}</p>")


def test_an_interval_that_holds_the_margin_is_inconclusive() -> None:
    first, best = [0.89, 0.90, 0.888], [0.900, 0.901, 0.902]
    result = made({1: first, 3: best})
    choice = result.choose()
    loss = paired(best, first)
    assert loss.low < 0.01 < loss.high
    assert (choice.conclusive, choice.variant, choice.best) == (False, 1, 1)
    assert choice.seeds == seeds_needed(loss, 0.01)
    assert choice.text.startswith(
        "Inconclusive: kernel_size=1 might be within 1 point of the best, kernel_size=3"
    )
    assert choice.text.endswith(
        f"about {choice.seeds} seeds would tell (there are 3). Safe meanwhile: kernel_size=3."
    )
    assert result.choose(margin=0.2).variant == 0


def test_the_best_may_be_so_by_luck() -> None:
    """Cheapest and best, but what the runner-up might gain on it is larger than the margin."""
    first, second = [0.90, 0.95, 0.85], [0.91, 0.88, 0.90]
    choice = made({1: first, 3: second, 5: [0.5, 0.5, 0.5]}).choose()
    gain = paired(second, first)
    assert gain.mean < 0 < 0.01 < gain.high
    assert (choice.conclusive, choice.variant, choice.best) == (False, 0, 0)
    assert choice.losses[0].loss == gain
    assert choice.seeds == seeds_needed(gain, 0.01)
    low, high = -100 * gain.high, -100 * gain.low
    assert choice.text == (
        "Inconclusive: kernel_size=3 might be more than 1 point better than the best so far, kernel_size=1: its test accuracy "
        f"is {-100 * gain.mean:.2f} points ({low:.2f} to {high:.2f}) lower; about {choice.seeds} seeds would tell (there are "
        "3). Safe meanwhile: kernel_size=1."
    )
    assert made({1: first}).choose().conclusive
    assert made({1: first, 3: [score - 0.001 for score in first]}).choose().conclusive


def test_one_seed_is_inconclusive() -> None:
    choice = made({1: [0.8], 3: [0.9]}).choose()
    assert (choice.conclusive, choice.seeds) == (False, None)
    assert "more seeds are needed (there is 1)" in choice.text


def test_more_seeds_than_anybody_runs() -> None:
    choice = made({1: [0.888, 0.892], 3: [0.90, 0.9000001]}).choose()
    assert (choice.conclusive, choice.seeds) == (False, None)
    assert "the loss is about as large as the margin" in choice.text


def test_a_variant_that_diverged_is_not_chosen() -> None:
    choice = made({1: [0.95, None, 0.95], 3: [0.90, 0.901, 0.902]}).choose()
    assert (choice.conclusive, choice.variant, choice.best) == (True, 1, 1)
    assert made({1: [0.9, None, 0.9]}).choose().variant == 0


def test_the_choice_is_by_validation_where_there_is_one() -> None:
    result = made({1: [0.9, 0.901], 3: [0.5, 0.501]}, validation=True)  # validation is 1 - test
    assert result.metrics == ("test", "validation")
    assert (result.choose().metric, result.choose().best) == ("validation", 1)
    assert result.choose(metric="test").best == 0


def test_the_cost_that_counts() -> None:
    result = made({1: [0.9, 0.9001], 3: [0.9, 0.9001]}, {1: 500, 3: 100})
    assert result.choose("macs").variant == 1
    assert result.choose("params").variant == 0
    assert result.choose("latency").variant == 0


def test_what_makes_no_sense_is_said() -> None:
    result = made({1: [0.9], 3: [0.8]})
    with pytest.raises(
        RequestError, match="margin=1 must be above 0 and below 1; 0.01 is one percentage point"
    ):
        result.choose(margin=1)
    with pytest.raises(UnknownName, match="metric='tests' must be one of test; did you mean 'test'"):
        result.means("tests")
    with pytest.raises(RequestError, match="no run of the study has finished"):
        made({1: [], 3: []}).choose()


def test_tables() -> None:
    result = made({1: [0.70, 0.72], 3: [0.80, None]})
    assert rows(result)[0] == (
        "kernel_size=1", "2", "71.00", "58.29 to 83.71", "", "", "10", "1,000", "1.00 ms", "1", "baseline, Pareto"
    )  # fmt: skip
    assert rows(result)[1][:6] == ("kernel_size=3", "2", "80.00", "", "+10.00", "")
    assert rows(result)[1][-1] == "Pareto, 1 diverged"
    assert html(result).count("<tr>") == 3
    assert "no run has finished" in html(made({1: []}))
    assert summary(made({1: []})) is None


def test_labels_are_no_html() -> None:
    design = Design("a:b", {"x": ["<b>"]}, name="<i>")
    result = StudyResult(
        design, {}, {}, (VariantResult({"x": "<b>"}, "x=<b>", None, (Run(0, 0, "k", {"test": 0.5}),)),)
    )
    assert "<b>" not in html(result)
    assert "<i>" not in html(result)


def test_kept_and_read_again(tmp_path: Path) -> None:
    result = made({1: [0.7, 0.72], 3: [0.8, None]})
    path = tmp_path / "results.json"
    path.write_text(json.dumps(result.content()))
    again = StudyResult.from_record(path)
    assert again.content() == result.content()
    assert again.variants[0].cost.latency is None
    event = {"event": "latency", "key": "k3", "latency": {"median": 0.5}}
    (tmp_path / "timings.jsonl").write_text(json.dumps(event) + '\n{"torn')
    timed = StudyResult.from_record(tmp_path)
    assert [variant.cost.of("latency") for variant in timed.variants] == [math.inf, 0.5]
    assert json.loads(json.dumps(timed.to_dict(), allow_nan=False))["summary"]["choice"]["variant"] == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: No such file"),
        ("{", "is damaged or was not made by convscope"),
        ('{"kind": "study"}', "is damaged or was not made by convscope"),
        (
            '{"kind": "atlas", "format": 1}',
            "is a 'atlas' of format 1; this convscope reads studies of format 1",
        ),
        ('{"kind": "study", "format": 9}', "is a 'study' of format 9"),
    ],
)
def test_files_that_are_no_study(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "results.json").write_text(text)
    with pytest.raises(RequestError, match=message):
        StudyResult.from_record(tmp_path)


def test_the_database_has_every_number(tmp_path: Path) -> None:
    result = made({1: [0.7, 0.72], 3: [0.8, None]})
    assert database(result) == database(result)
    path = tmp_path / "results.sqlite"
    path.write_bytes(database(result))
    with sqlite3.connect(path) as connection:
        query = "select label, avg(accuracy), count(*) from scores join variants using (variant) group by 1"
        found = connection.execute(query).fetchall()
        curve = connection.execute(
            "select value from curves where variant = 1 and seed = 0 order by epoch"
        ).fetchall()
        diverged = connection.execute("select variant, seed from runs where diverged").fetchall()
    connection.close()
    assert found == [("kernel_size=1", pytest.approx(0.71), 2), ("kernel_size=3", 0.8, 1)]
    assert curve == [(1.0,), (None,)]
    assert diverged == [(1, 1)]
