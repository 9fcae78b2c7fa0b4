"""The answer on convolution algorithms: counts against the formulas, errors against float64, verdicts from figures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import convscope
from convscope.answers import fft_winograd
from convscope.answers.base import Verdict
from convscope.answers.layers import convolutions, profile_of
from convscope.answers.verdicts import fft_winograd as told


def entry(name: str, seconds: float | None, error: float = 1e-6, held: int = 0) -> dict[str, Any]:
    taken = None if seconds is None else {"median": seconds, "low": seconds * 0.99, "high": seconds * 1.01}
    return {"algorithm": name, "seconds": taken, "error": error, "workspace": held, "prepared": 100}


def point(
    value: int, direct: float, fft: float | None, winograd: float | None, **known: Any
) -> dict[str, Any]:
    entries = [entry("direct", direct), entry("fft", fft, **known), entry("winograd", winograd, held=1000)]
    timed = {e["algorithm"]: e["seconds"]["median"] for e in entries if e["seconds"]}
    fastest = min(timed, key=lambda name: timed[name])
    return {"value": value, "entries": entries, "fastest": fastest, "over_direct": direct / timed[fastest]}


USUAL = {
    "points": [point(3, 1.0, 3.0, 0.5, error=1e-7, held=900), point(21, 9.0, 3.0, None, error=1e-7, held=900)]
}
ODD = {"points": [point(3, 1.0, 0.5, 2.0, error=1e-5), point(21, 9.0, 20.0, 5.0, error=1e-5)]}


def test_verdicts_follow_the_figures() -> None:
    grown = {"points": [point(14, 1.0, 2.0, None, error=1e-7), point(56, 4.0, 2.0, None, error=1e-7)]}
    assert told._large(USUAL, grown).verdict is Verdict.HOLDS
    assert told._large(USUAL, ODD).verdict_text == "holds when the kernel is at least 21x21"
    assert told._large(ODD, ODD).verdict is Verdict.NOT
    assert told._memory(USUAL).verdict is Verdict.HOLDS
    assert told._memory(ODD).verdict is Verdict.NOT  # as small as direct, and the fastest
    assert told._precise(USUAL, grown).verdict is Verdict.NOT
    assert told._precise(ODD, ODD).verdict is Verdict.HOLDS
    assert told._precise(USUAL, ODD).verdict is Verdict.WHEN
    assert told._small(USUAL).verdict is Verdict.HOLDS
    assert "was not worth running" in told._small(USUAL).sentence
    assert told._small(ODD).verdict is Verdict.NOT  # slower at 3x3, fastest at 21x21
    assert told._saves_memory(USUAL).verdict is Verdict.NOT
    lean = {
        "points": [
            {**USUAL["points"][0], "entries": [entry("direct", 1, held=500), entry("winograd", 1, held=0)]}
        ]
    }
    assert told._saves_memory(lean).verdict is Verdict.HOLDS


@pytest.mark.parametrize(
    ("threads", "fft", "verdict"),
    [(1, 1.0, Verdict.OPEN), (4, 0.25, Verdict.HOLDS), (4, 0.9, Verdict.NOT)],
)
def test_scaling(threads: int, fft: float, verdict: Verdict) -> None:
    rows = {"fft": {"1": 1.0, str(threads): fft}, "direct": {"1": 1.0, str(threads): 0.3}}
    assert told._scales({"threads": threads, "rows": rows}).verdict is verdict


def test_winners() -> None:
    rows = [{"fastest": "direct"}, {"fastest": "winograd"}, {"fastest": "direct"}]
    mixed = told._depends({"rows": rows, "distinct": 5}, USUAL)
    assert mixed.verdict is Verdict.WHEN
    assert mixed.sentence.startswith(
        "Fastest in the network: direct 2, winograd 1; while the kernel grows: winograd at 3x3"
    )
    alone = {"rows": rows[:1], "distinct": 1}
    assert told._depends(alone, USUAL).verdict_text.startswith("holds when other layers are meant")
    assert told._depends(alone, {"points": [point(3, 1.0, 2.0, 3.0)]}).verdict is Verdict.NOT


def test_tiles_are_counted_by_the_formula_and_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fft_winograd, "_CHANNELS", 8)
    monkeypatch.setattr(fft_winograd, "_SIZE", 24)
    tiles = fft_winograd._tiles(0)
    products = {row["name"]: row["multiplications"] for row in tiles["rows"]}
    # F(m, 3) makes (m + 2)^2 products a tile of m^2 outputs, and 24 is a multiple of 2, 4 and 6
    for m in (2, 4, 6):
        tile_products = (24 // m) ** 2 * (m + 2) ** 2 * 8 * 8
        assert products[f"winograd:F({m},3)"] >= tile_products
    assert products["winograd:F(2,3)"] == (24 // 2) ** 2 * 4**2 * 8 * 8  # its transforms only add
    assert told._tile_error(tiles).figures["six"] > told._tile_error(tiles).figures["two"]
    assert told._multiplies(tiles).verdict is Verdict.HOLDS
    flat = {"rows": [{**row, "error": 1e-7} for row in tiles["rows"]], "layer": "l"}
    assert told._tile_error(flat).verdict is Verdict.NOT


def test_the_problem_is_the_layers_own() -> None:
    module = nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1), nn.Conv2d(8, 8, 5, 1, 2, groups=8)).eval()
    net = convscope.load(module, input="4x15x17")
    for conv, part in zip(convolutions(profile_of(net)), module, strict=True):
        problem = fft_winograd._problem(conv)
        y = part(torch.zeros(1, conv.channels[0], *conv.before))
        assert tuple(problem.output_shape[2:]) == tuple(y.shape[2:])


def test_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fft_winograd, "_kernels", lambda quick: USUAL)
    monkeypatch.setattr(fft_winograd, "_sizes", lambda quick: USUAL)
    monkeypatch.setattr(fft_winograd, "_CHANNELS", 4)
    monkeypatch.setattr(fft_winograd, "_SIZE", 16)
    monkeypatch.setattr(fft_winograd, "_threads", lambda quick: {"threads": 1, "rows": {}})
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)).eval()
    answer = convscope.ask("fft", module, input="3x16x16", quick=True)
    assert answer.tables[0].rows[0][0] == "0"
    assert answer.statement.startswith("Of 1 convolutions of Sequential")
    assert "FFT pays from 21x21 kernels on" in answer.statement
