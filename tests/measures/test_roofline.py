"""The machine's peaks and the rule that marks a layer, on constructed numbers; no absolute time is asserted."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convscope import timing
from convscope.measures import roofline
from convscope.measures.roofline import Meter, Peak, rate


def _seconds(value: float) -> timing.Timing:
    return timing.Timing((value,))


# 100 MACs and 10 bytes a second, 0.5 s a call
PEAK = Peak(_seconds(10.0), 1000, _seconds(2.0), 20, _seconds(0.5))


def test_the_roofline_of_constructed_peaks() -> None:
    assert (PEAK.macs_per_second, PEAK.bytes_per_second, PEAK.intensity) == (100.0, 10.0, 10.0)
    assert PEAK.floor(macs=500, bytes=10) == 5.0
    assert PEAK.floor(macs=100, bytes=50) == 5.0


@pytest.mark.parametrize(
    ("seconds", "macs", "bytes", "ops", "bound"),
    [
        (6.0, 500, 10, 1, "compute"),
        (6.0, 100, 50, 1, "memory"),
        (5.0, 500, 50, 1, "memory"),  # at the ridge neither waits for the other; moving is named
        (1.0, 49, 0, 1, "overhead"),  # work explains 0.49 s of it, a call 0.5 s
        (1.0, 50, 0, 1, "compute"),  # work explains half
        (1.01, 1, 1, 1, "memory"),  # a call explains less than half: the kernel is slow
        (1.01, 1, 1, 2, "overhead"),  # two operations are two calls
        (4.0, 0, 0, 1, "overhead"),  # no work at all: a view, an identity, Python
        (0.1, 500, 10, 1, "compute"),  # faster than the peak: an algorithm with fewer multiplications
    ],
)
def test_the_rule_at_its_thresholds(seconds: float, macs: int, bytes: int, ops: int, bound: str) -> None:
    assert PEAK.bound(seconds, macs, bytes, ops) == bound


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.floats(1e-3, 1e6), st.integers(1, 50))
def test_overhead_only_where_both_conditions_hold(macs: int, bytes: int, seconds: float, ops: int) -> None:
    bound = PEAK.bound(seconds, macs, bytes, ops)
    explained = max(macs / 100, bytes / 10) >= seconds / 2
    assert (bound == "overhead") == (not explained and 0.5 * ops >= seconds / 2)
    if bound != "overhead":
        assert bound == ("compute" if macs / 100 > bytes / 10 else "memory")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "COPIED", 4096)
    monkeypatch.setattr(roofline, "SMALLEST", 8)
    monkeypatch.setattr(roofline, "LARGEST", {"cpu": 16})


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_goes_add_up(dtype: torch.dtype) -> None:
    before = torch.get_rng_state()
    meter = Meter("cpu", dtype)
    meter.go(budget=0.0)
    first = meter.peak
    meter.go(budget=0.0)
    peak = meter.peak
    assert len(peak.copy.samples) == 2 * len(first.copy.samples) > 0
    assert peak.copy.samples[: len(first.copy.samples)] == first.copy.samples
    assert len(peak.call.samples) == 2 * len(first.call.samples)
    assert peak.product_macs == 16**3
    assert peak.copy_bytes == 2 * 4096
    assert peak.copy.conditions == timing.Conditions("cpu", torch.get_num_threads(), str(dtype)[6:])
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.is_inference_mode_enabled()
    assert json.loads(json.dumps(peak.to_dict()))["product"]["macs"] == 16**3
    assert "by a matrix product" in str(peak)


@pytest.mark.usefixtures("small")
def test_a_product_stops_growing_once_it_takes_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "LARGEST", {"cpu": 64})
    monkeypatch.setattr(timing, "seconds", lambda *_: roofline.LONG_ENOUGH)
    assert Meter()._settled() == 8
    monkeypatch.setattr(timing, "seconds", lambda *_: roofline.LONG_ENOUGH / 2)
    assert Meter()._settled() == 64


@pytest.mark.usefixtures("small")
def test_both_ways_are_the_product_and_the_faster_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        kept = {}
        patch.setattr(
            timing, "measure", lambda runs, **_: kept.update(runs) or {name: _seconds(1.0) for name in runs}
        )
        meter = Meter()
        meter.go()
    assert torch.allclose(kept["matmul"](), torch.full((16, 16), 0.5))
    assert torch.allclose(kept["convolution"](), torch.full((1, 16, 16, 1), 0.5))
    assert kept["call"]().item() == 0
    meter._samples["convolution"] = (0.25,)
    assert meter.peak.macs_per_second == 16**3 / 0.25
    meter._samples["matmul"] = (0.125,)
    assert meter.peak.macs_per_second == 16**3 / 0.125


def test_rates_of_every_size() -> None:
    shown = [rate(value, "B") for value in (0.0, 999.0, 1e3, 2.5e6, 1e9, 3e12)]
    assert shown == ["0 B/s", "999 B/s", "1 kB/s", "2.5 MB/s", "1 GB/s", "3 TB/s"]
