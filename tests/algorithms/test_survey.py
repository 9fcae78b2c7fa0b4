"""The survey behind `convscope bench conv`: who leads where, what is kept, and that the figures are of this world."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convscope import timing, tour
from convscope.algorithms import ALGORITHMS, survey
from convscope.algorithms import point as measuring
from convscope.algorithms.problem import Problem
from convscope.algorithms.survey import Entry, Point, Survey, Sweep
from convscope.errors import StoreMismatch
from convscope.site import charts

NAMES = ("direct", "im2col", "fft", "winograd")


def at(value: int, spread: float = 0.0, **ms: float) -> Point:
    """A point at which the named algorithms take so many milliseconds, and the others were not timed."""
    entries = []
    for name in NAMES:
        if name not in ms:
            entries.append(Entry(name, reason="it is Sunday"))
            continue
        t = ms[name] / 1e3
        seconds = timing.Interval(t, t * (1 - spread), t * (1 + spread))
        entries.append(
            Entry(
                name, "v", "contiguous", seconds, error=1e-6, workspace=2**20, prepared=100, operations=1000
            )
        )
    return Point(value, f"problem {value}", tuple(entries))


# ---------------------------------------------------------------- who leads where


def test_leads_by_hand() -> None:
    row = [at(1, direct=1, fft=9), at(3, direct=9, winograd=2, fft=8), at(5, direct=20, winograd=9, fft=8)]
    assert survey.leads(row) == [("direct", 1, 1), ("winograd", 3, 3), ("fft", 5, 5)]
    assert survey.leads([]) == []
    assert survey.leads([at(1)]) == []  # nothing was timed


def test_what_noise_cannot_tell_apart_is_directs_or_the_former_leaders() -> None:
    row = [
        at(1, 0.1, direct=10, fft=9.5),
        at(2, 0.1, winograd=10, fft=11, direct=30),
        at(3, 0.1, winograd=10.5, fft=10, direct=30),
        at(4, 0.1, winograd=20, fft=10, direct=10.1),
    ]
    assert survey.leads(row) == [("direct", 1, 1), ("winograd", 2, 3), ("direct", 4, 4)]
    assert row[2].equal == ("fft", "winograd")


def test_crossovers_by_hand() -> None:
    first, second = survey.crossovers(
        [
            at(1, direct=1, fft=8),
            at(4, direct=16, fft=8),
            at(16, fft=8, winograd=2),
            at(64, winograd=2, fft=8),
        ]
    )
    assert (first.before, first.after, first.low, first.high) == ("direct", "fft", 1, 4)
    assert first.value == pytest.approx(4**0.75)  # direct grows as the square
    assert first.seconds == pytest.approx(8e-3)
    assert (second.before, second.after, second.low, second.high) == ("fft", "winograd", 4, 16)
    assert (second.value, second.seconds) == (None, None)  # winograd's curve begins behind it


def test_a_tie_before_the_change_moves_the_crossover_back_to_where_the_curves_met() -> None:
    row = [
        at(2, direct=1, fft=4),
        at(4, direct=4, fft=2),
        at(8, 0.5, direct=9, fft=8),
        at(16, direct=30, fft=9),
    ]
    row[1] = at(4, 0.6, direct=4, fft=2)
    [meet] = survey.crossovers(row)
    assert (meet.low, meet.high) == (8, 16)
    assert meet.value is not None
    assert 2 < meet.value < 4


@given(
    st.lists(st.fixed_dictionaries({name: st.floats(0.01, 1000) for name in NAMES}), min_size=1, max_size=8)
)
def test_leads_cover_the_sweep_and_crossovers_lie_within(times: list[dict[str, float]]) -> None:
    row = [at(2**i, 0.02, **each) for i, each in enumerate(times)]
    stretches = survey.leads(row)
    assert [stretches[0][1], stretches[-1][2]] == [1, 2 ** (len(row) - 1)]
    assert all(a[2] * 2 == b[1] and a[0] != b[0] for a, b in itertools.pairwise(stretches))
    for point in row:
        [name] = [name for name, low, high in stretches if low <= point.value <= high]
        assert name in point.equal
        fastest = point.timed[0].seconds
        assert fastest is not None
        assert times[int(math.log2(point.value))][name] / 1e3 <= fastest.median * 1.05
    for meet in survey.crossovers(row):
        assert meet.before != meet.after
        assert meet.value is None or row[0].value <= meet.value <= meet.high


def made(points: list[Point], load: float | None = None, planned: int = 3) -> Survey:
    values = tuple(point.value for point in points)
    row = Sweep("kernel", "64 channels, 56 × 56", "kernel", values, ())
    return Survey(survey.machine(), ((row, tuple(points)),), planned, 12.3, load)


def test_a_survey_prints_and_serializes() -> None:
    found = made([at(3, direct=4, fft=9, winograd=2), at(9, direct=40, fft=10), at(31, direct=300, fft=10)])
    told = json.loads(json.dumps(found.to_dict()))
    [row] = told["sweeps"]
    assert row["answer"] == "winograd at 3 (2.0×); fft from 9 on (4.0 to 30.0×)"
    assert [point["fastest"] for point in row["points"]] == ["winograd", "fft", "fft"]
    assert row["points"][0]["over_direct"] == pytest.approx(2)
    assert [
        Point.of({k: each[k] for k in ("value", "problem", "entries")}) for each in row["points"]
    ] == list(found.rows[0][1])
    text = str(found)
    assert "kernel 9 to 31" in text
    assert "4.0 to 30.0×" in text
    assert (found.done, told["done"], told["planned"], told["busy"]) == (3, 3, 3, False)
    assert made([], load=torch.get_num_threads() + 2.0).busy


# ---------------------------------------------------------------- measuring


def test_a_point_is_measured_and_right() -> None:
    found = survey.measure_point(3, survey.convolution(8, 20, 3), 0.1)
    assert [each.algorithm for each in found.entries] == list(ALGORITHMS)
    assert found.problem == "1 x 8 x 20 x 20 -> 8, 3x3, padding 1, float32"
    for each in found.timed:
        assert each.error is not None
        assert each.error < 1e-4, each
        assert each.layout in ("contiguous", "channels_last")
        assert each.seconds is not None
        assert 0 < each.seconds.low <= each.seconds.median <= each.seconds.high
    assert {"direct", "winograd", "fft"} <= {each.algorithm for each in found.timed}


@pytest.mark.parametrize("groups", [1, 6])
def test_the_exact_result_is_exact(groups: int) -> None:
    problem = Problem(2, 6, 6, (9, 7), (3, 5), padding=((1, 0), (2, 3)), groups=groups)
    x, weight = torch.rand(problem.input_shape), torch.rand(problem.weight_shape)
    padded = torch.nn.functional.pad(x.double(), (2, 3, 1, 0))
    expected = torch.nn.functional.conv2d(padded, weight.double(), groups=groups)
    assert torch.allclose(measuring._exact(problem, x, weight), expected, rtol=1e-13, atol=1e-13)
    assert torch.allclose(
        measuring._exact(problem, x, weight, few=2), expected[:, :2], rtol=1e-13, atol=1e-13
    )


def test_a_point_where_little_serves_says_why() -> None:
    found = survey.measure_point(1, replace(survey.convolution(4, 12, 1), dtype=torch.float32), 0.05)
    reasons = {each.algorithm: each.reason for each in found.entries if each.seconds is None}
    assert "winograd" in reasons
    assert all(reasons.values())


def test_the_sweeps_are_what_the_page_says() -> None:
    full, quick = survey.sweeps(), survey.sweeps(quick=True)
    assert {row.axis for row in full} == {"kernel", "channels", "resolution"}
    assert sum(len(row.values) for row in quick) < sum(len(row.values) for row in full)
    for row in full:
        assert len(row.values) == len(row.problems)
        for value, problem in zip(row.values, row.problems, strict=True):
            grows = {
                "kernel": problem.kernel[0],
                "channels": problem.in_channels,
                "resolution": problem.size[0],
            }
            assert grows[row.axis] == value
            assert problem.output_size == problem.size
            assert problem.depthwise == ("depthwise" in row.name)


# ---------------------------------------------------------------- all of it, in small


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Six points whose measurement is made up; the list takes their values as they are measured."""
    measured: list[int] = []
    rows = tuple(
        Sweep(name, "small", axis, (3, 5, 9), tuple(survey.convolution(4, 12, 3) for _ in range(3)))
        for name, axis in (("kernel", "kernel"), ("resolution-3", "resolution"))
    )

    def measure(value: int, problem: Problem, allowance: float) -> Point:
        assert allowance > 0
        measured.append(value)
        return at(value, direct=value, fft=6)

    monkeypatch.setattr(survey, "sweeps", lambda **_: rows)
    monkeypatch.setattr(survey, "measure_point", measure)
    monkeypatch.setattr(
        charts, "of_survey", lambda told: {row["name"]: {"seconds": ["", ""]} for row in told["sweeps"]}
    )
    return measured


def test_points_are_told_and_kept_one_by_one(small: list[int]) -> None:
    events: list[dict[str, Any]] = []
    kept: dict[str, dict[str, Any]] = {}
    states = list(survey.measure_all(quick=True, keep=kept.__setitem__, progress=events.append))
    assert [state.done for state in states] == [1, 2, 3, 4, 5, 6]
    assert [event["done"] for event in events] == [1, 2, 3, 4, 5, 6]
    assert events[0]["layer"] == "kernel 3, small"
    assert events[-1]["seconds_left"] == 0.0
    assert list(kept) == [f"{row}/{value}" for row in ("kernel", "resolution-3") for value in (3, 5, 9)]
    assert small == [3, 5, 9, 3, 5, 9]
    known = dict(itertools.islice(kept.items(), 4))
    states = list(survey.measure_all(quick=True, known=known))
    assert [state.done for state in states] == [5, 6]
    assert small[6:] == [5, 9]
    [again] = survey.measure_all(quick=True, known=kept)
    assert again.rows == states[-1].rows


def test_an_interrupted_run_has_a_page_and_goes_on(small: list[int], tmp_path: Path) -> None:
    def stop(event: dict[str, Any]) -> None:
        if event["done"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tour.bench_convolution(tmp_path, quick=True, progress=stop)
    assert "2 of 6 points are measured" in (tmp_path / "convolution.html").read_text()
    assert json.loads((tmp_path / "convolution.json").read_text())["done"] == 2
    assert small == [3, 5, 9]
    bench = tour.bench_convolution(tmp_path, quick=True)
    assert small == [3, 5, 9, 3, 5, 9]  # what was committed is not measured again
    assert bench.survey.done == 6
    assert bench.page == tmp_path / "convolution.html"
    assert "points are measured;" not in bench.page.read_text()
    assert bench.to_dict()["page"] == str(bench.page)
    tour.bench_convolution(tmp_path, quick=True, fresh=True)
    assert len(small) == 12


def test_figures_of_another_setting_are_not_mixed(small: list[int], tmp_path: Path) -> None:
    tour.bench_convolution(tmp_path, quick=True)
    with pytest.raises(StoreMismatch, match="quick"):
        tour.bench_convolution(tmp_path, quick=False)


def test_it_stands_beside_what_the_folder_holds(small: list[int], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    page = tour.bench_convolution(tmp_path, quick=True).page
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "index.html").read_text() == page.read_text()  # the only page is the first one as well
