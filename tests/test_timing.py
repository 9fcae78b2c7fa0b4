"""Times: what is called when, and whether the intervals mean what they say."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import random
import statistics
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convscope import timing


class Clock:
    """Time that passes only when a fake is called."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def takes(self, name: str, *lasting: float) -> Callable[[], None]:
        """A thing to time; its calls last so long in turn, then as long as the last."""
        times = list(lasting)

        def run() -> None:
            self.calls.append(name)
            self.now += times.pop(0) if len(times) > 1 else times[0]

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: made.now))
    return made


# ---------------------------------------------------------------- what is called when


def test_things_are_timed_in_turn(clock: Clock) -> None:
    times = timing.measure({name: clock.takes(name, 1.0) for name in "abc"}, rounds=20)
    assert clock.calls[:3] == ["a", "b", "c"]  # the warm-up
    rounds = [tuple(clock.calls[3 + 3 * i : 6 + 3 * i]) for i in range(20)]
    assert {tuple(sorted(each)) for each in rounds} == {("a", "b", "c")}
    assert len(set(rounds)) > 3  # no one is always behind the same other
    assert list(times) == ["a", "b", "c"]
    assert times["b"].samples == (1.0,) * 20


def test_the_warm_up_is_not_counted(clock: Clock) -> None:
    times = timing.measure({"a": clock.takes("a", 9.0, 7.0, 2.0)}, rounds=3, warmup=2)
    assert times["a"].samples == (2.0, 2.0, 2.0)


def test_the_budget_ends_it_but_not_before_the_least(clock: Clock) -> None:
    runs = {"a": clock.takes("a", 1.0), "b": clock.takes("b", 3.0)}
    assert len(timing.measure(runs, budget=9.9)["a"].samples) == 3
    assert len(timing.measure(runs, budget=40.1)["a"].samples) == 11
    assert len(timing.measure(runs, budget=0.0, least=5)["b"].samples) == 5
    assert len(timing.measure(runs, rounds=4)["b"].samples) == 4


def test_short_things_are_called_often_enough(clock: Clock) -> None:
    times = timing.measure({"a": clock.takes("a", 0.25), "b": clock.takes("b", 3.0)}, rounds=2, grain=1.0)
    assert clock.calls.count("a") == 1 + 2 * 4
    assert clock.calls.count("b") == 1 + 2
    assert times["a"].samples == (0.25, 0.25)


def test_who_drops_out_is_timed_no_more(clock: Clock) -> None:
    seen: list[dict[str, int]] = []

    def drop(samples: Any) -> list[str]:
        seen.append({name: len(times) for name, times in samples.items()})
        return ["b"] if len(seen) == 2 else []

    runs = {"a": clock.takes("a", 1.0), "b": clock.takes("b", 2.0)}
    times = timing.measure(runs, rounds=4, drop=drop)
    assert seen == [{"a": 1, "b": 1}, {"a": 2, "b": 2}, {"a": 3}, {"a": 4}]
    assert (len(times["a"].samples), len(times["b"].samples)) == (4, 2)
    assert times["b"].over(times["a"]) == timing.Ratio(2.0, 2.0, 2.0)
    assert len(timing.measure(runs, drop=lambda samples: samples)["a"].samples) == 1


def test_no_rounds_are_an_error() -> None:
    with pytest.raises(ValueError, match="rounds=0 must be at least 1"):
        timing.measure({}, rounds=0)
    with pytest.raises(ValueError, match="no samples"):
        timing.interval([])


def test_a_device_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: log.append(f"wait {device}"))
    timing.seconds(lambda: log.append("run"), "cuda:1", calls=2)
    assert log == ["wait cuda:1", "run", "run", "wait cuda:1"]
    timing.seconds(lambda: log.append("run"), "cpu")
    assert log[4:] == ["run"]


def test_an_exception_passes_and_global_random_state_does_not_move() -> None:
    before = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].tobytes()  # type: ignore[index, union-attr]
    timing.measure({"a": lambda: None, "b": lambda: None}, rounds=5)["a"].median  # noqa: B018
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert np.random.get_state()[1].tobytes() == before[2]  # type: ignore[index, union-attr]
    with pytest.raises(ZeroDivisionError):
        timing.measure({"a": lambda: 1 / 0})


# ---------------------------------------------------------------- what the figures mean


def test_an_interval_by_hand() -> None:
    assert timing.interval([5.0]) == timing.Interval(5.0, 5.0, 5.0)
    found = timing.interval([1.0, 2.0, 3.0, 4.0, 100.0])
    assert found.median == 3.0
    # a resampled median is the lowest of five with probability 5.8 %, the highest likewise
    assert (found.low, found.high) == (1.0, 100.0)
    many = timing.interval([float(i) for i in range(101)])
    assert many.median == 50.0
    assert 36 <= many.low <= 44
    assert 56 <= many.high <= 64


def test_intervals_hold_the_true_median_as_often_as_they_say() -> None:
    drawn = np.random.default_rng(5).lognormal(0.0, 0.3, size=(300, 25))  # its median is 1
    found = [timing.interval(row.tolist()) for row in drawn]
    held = statistics.mean(each.low <= 1.0 <= each.high for each in found)
    assert 0.91 <= held <= 0.985


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=30))
def test_an_interval_encloses_its_median(samples: list[float]) -> None:
    found = timing.interval(samples)
    assert min(samples) <= found.low <= found.median <= found.high <= max(samples)
    assert found == timing.interval(samples)


def test_a_paired_ratio_does_not_feel_what_disturbs_both() -> None:
    noise = np.random.default_rng(0).lognormal(0, 0.8, size=40)
    conditions = timing.Conditions("cpu", 1)
    a = timing.Timing(tuple(2.0 * noise), conditions)
    b = timing.Timing(tuple(1.0 * noise), conditions)
    assert a.high > 1.3 * a.low
    assert a.over(b).low == pytest.approx(2.0)
    assert a.over(b).high == pytest.approx(2.0)
    assert str(a.over(b)) == "2.00x (2.00x to 2.00x)"
    assert a.over(b).to_dict() == {"median": 2.0, "low": 2.0, "high": 2.0}


def test_a_timing_states_its_conditions() -> None:
    times = timing.measure({"a": lambda: None}, rounds=3, dtype=torch.bfloat16)["a"]
    assert times.conditions == timing.Conditions("cpu", torch.get_num_threads(), "bfloat16")
    assert str(timing.Conditions("cpu", 2, "float32")) == "cpu, 2 threads, float32"
    assert str(timing.Conditions("cuda", 1)) == "cuda, 1 thread"
    told = timing.Timing((0.001, 0.002, 0.0015), timing.Conditions("cpu", 2, "float32"))
    assert told.to_dict() == {
        "median": 0.0015, "low": 0.001, "high": 0.002, "samples": 3, "device": "cpu", "threads": 2, "dtype": "float32",
    }  # fmt: skip
    assert str(told) == "1.50 ms (1.00 ms to 2.00 ms)"


def test_durations_are_readable() -> None:
    told = [timing.duration(t) for t in (0.0, 3e-9, 9.994e-6, 12.34e-3, 0.5, 61.0, 1234.0, float("inf"))]
    assert told == ["0.00 ns", "3.00 ns", "9.99 µs", "12.3 ms", "500 ms", "61.0 s", "1234 s", "–"]


def test_the_machine_is_named() -> None:
    assert torch.backends.cpu.get_cpu_capability() in timing.processor()
    assert timing.accelerator("cpu") is None
    assert timing.load() is None or timing.load() >= 0  # type: ignore[operator]


# ---------------------------------------------------------------- what the benchmarks use of it


@pytest.fixture(scope="module")
def machine() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "machine.py"
    spec = importlib.util.spec_from_file_location("benchmark_machine", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_benchmarks_time_through_it(machine: ModuleType, clock: Clock) -> None:
    device = torch.device("cpu")
    found = machine.interleaved({"a": clock.takes("a", 1.0, 2.0), "b": clock.takes("b", 4.0)}, 3, device)
    assert found == {"a": [1.0, 2.0, 2.0], "b": [4.0, 4.0, 4.0]}
    assert machine.ratios(found["b"], found["a"]) == [4.0, 2.0, 2.0]
    assert machine.spread(found["a"]) == {"median": 2.0, "low": 1.0, "high": 2.0}
    facts = machine.describe(device, ("torch", "no-such-package"))
    assert facts["versions"] == {"torch": importlib.metadata.version("torch"), "no-such-package": None}
    assert facts["threads"] == torch.get_num_threads()
    assert machine.significant(0.123456) == 0.1235
