"""Winograd in machine code against float64, over every shape that has an edge of its own."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from convscope.algorithms.cook_toom import matrices
from convscope.algorithms.kernels import host, threads, winograd, workspace
from convscope.algorithms.kernels.winograd_blocking import choose, rows_for
from convscope.algorithms.kernels.winograd_layout import Layout
from convscope.algorithms.kernels.winograd_transform import pairs
from convscope.algorithms.problem import Problem
from convscope.errors import RequestError

WIDTHS = [width for width in (16, 8) if width <= host.detect().width]
works = pytest.mark.skipif(
    host.current().refuses() is not None or threads.refuses() is not None, reason="no kernels on this machine"
)
TILES = [(2, 3, 2e-6), (4, 3, 8e-6), (6, 3, 8e-5), (2, 5, 8e-6), (4, 5, 8e-5)]  # and the error allowed


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVSCOPE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(params=WIDTHS, ids=lambda width: f"width{width}")
def machine(request: pytest.FixtureRequest) -> Iterator[host.Host]:
    with host.pretend(host.narrowed(request.param)) as narrowed:
        yield narrowed


def same(taps: int) -> tuple[tuple[int, int], tuple[int, int]]:
    return ((taps // 2, taps // 2),) * 2


def random(problem: Problem, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and bias; x has channels last."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (problem.input_shape, problem.weight_shape, (problem.out_channels,))
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in shapes)
    return x.contiguous(memory_format=torch.channels_last), weight, bias


def direct(problem: Problem, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    (top, bottom), (left, right) = problem.padding
    padded = F.pad(x.double(), (left, right, top, bottom))
    return F.conv2d(padded, weight.double(), None if bias is None else bias.double())


def error(result: Tensor, reference: Tensor) -> float:
    """Relative to the largest output."""
    return float((result - reference).abs().max() / reference.abs().max())


# ---------------------------------------------------------------- results


@works
@pytest.mark.parametrize(("tile", "taps", "allowed"), TILES)
@pytest.mark.parametrize("channels", [64, 512])
def test_accuracy(tile: int, taps: int, allowed: float, channels: int) -> None:
    problem = Problem(1, channels, 32, (28, 28), (taps, taps), padding=same(taps))
    x, weight, bias = random(problem)
    result = winograd.prepare(problem, weight, bias, tile=tile)(x)
    assert error(result, direct(problem, x, weight, bias)) <= allowed


@works
@pytest.mark.parametrize(("tile", "taps", "allowed"), [*TILES, (3, 2, 8e-6), (1, 3, 2e-6)])
def test_every_tile_on_every_width(machine: host.Host, tile: int, taps: int, allowed: float) -> None:
    problem = Problem(2, 19, 37, (11, 13), (taps, taps), padding=same(taps))
    x, weight, bias = random(problem)
    kernel = winograd.prepare(problem, weight, bias, tile=tile, relu=True)
    reference = direct(problem, x, weight, bias)[
        ..., : problem.output_size[0], : problem.output_size[1]
    ].relu()
    assert kernel.layout.width == machine.width
    assert error(kernel(x), reference) <= allowed


shapes = st.builds(
    Problem,
    batch=st.integers(0, 3),
    in_channels=st.sampled_from((1, 3, 16, 21)),
    out_channels=st.sampled_from((1, 5, 32, 33)),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    kernel=st.just((3, 3)),
    padding=st.tuples(*[st.tuples(st.integers(0, 4), st.integers(0, 4))] * 2),
).filter(lambda problem: min(problem.output_size) > 0)


@works
@settings(max_examples=60)
@given(shapes, st.booleans(), st.booleans())
@example(Problem(1, 1, 1, (1, 1), (3, 3), padding=((9, 0), (0, 9))), True, True)
@example(Problem(5, 16, 32, (4, 4), (3, 3), padding=((1, 1), (1, 1))), False, True)
def test_any_shape_and_padding(problem: Problem, biased: bool, relu: bool) -> None:
    x, weight, bias = random(problem)
    result = winograd.prepare(problem, weight, bias if biased else None, relu=relu)(x)
    reference = direct(problem, x, weight, bias if biased else None)
    reference = reference.relu() if relu else reference
    assert result.shape == problem.output_shape
    torch.testing.assert_close(result.double(), reference, rtol=0, atol=2e-4)


BLOCKS = {
    "alone": {"shared": False},
    "shared": {"shared": True},
    "small blocks": {"shared": True, "block": 24, "group": 12, "chunk": 32},
    "small blocks alone": {"shared": False, "block": 24, "group": 24, "chunk": 32},
    "other rows": {"rows": 4},
}


@works
@pytest.mark.parametrize("team", [1, 2, 3])
@pytest.mark.parametrize("blocks", BLOCKS.values(), ids=BLOCKS)
def test_blocks_and_teams_change_no_bit(blocks: dict[str, int], team: int) -> None:
    """Every output is one sum in one order, whoever computes it."""
    problem = Problem(3, 70, 100, (25, 30), (3, 3), padding=((1, 0), (2, 1)))
    x, weight, bias = random(problem)
    machine = host.current()
    plain = dataclasses.replace(
        choose(4, 3, 70, 100, 1, machine, 1), rows=6, block=48, group=48, chunk=64, shared=True
    )
    base = winograd.WinogradKernel(problem, weight, bias, plain, machine, relu=False, team=1)(x)
    layout = dataclasses.replace(plain, **blocks)
    kernel = winograd.WinogradKernel(problem, weight, bias, layout, machine, relu=False, team=team)
    assert torch.equal(kernel(x), base)
    assert error(base, direct(problem, x, weight, bias)) < 8e-6


@works
def test_large_outputs_stream_past_the_caches() -> None:
    machine = dataclasses.replace(host.current(), l3=1 << 20)
    problem = Problem(2, 16, 32, (70, 70), (3, 3), padding=same(3))
    x, weight, bias = random(problem)
    with host.pretend(machine):
        result = winograd.prepare(problem, weight, bias, relu=True)(x)
    assert error(result, direct(problem, x, weight, bias).relu()) < 8e-6


# ---------------------------------------------------------------- tensors


@works
@pytest.mark.parametrize("channels", [1, 20])
def test_the_layout_of_the_output_follows_torch(channels: int) -> None:
    problem = Problem(2, channels, 24, (9, 10), (3, 3), padding=same(3))
    last, weight, _ = random(problem)
    kernel = winograd.prepare(problem, weight)
    wide = torch.randn(2, channels, 9, 20)
    for x in (last, last.contiguous(), wide[..., ::2], last.flip(3), last.transpose(2, 3).contiguous().mT):
        expected = F.conv2d(x, weight, padding=1)
        result = kernel(x)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-3)
        if x.is_contiguous() != x.is_contiguous(memory_format=torch.channels_last):
            assert result.stride() == expected.stride()


@works
def test_the_weight_is_a_copy_and_no_gradient_is_kept() -> None:
    problem = Problem(1, 4, 4, (8, 8), (3, 3))
    x, weight, bias = random(problem)
    kernel = winograd.prepare(problem, weight.requires_grad_(), bias.requires_grad_())
    before = kernel(x.requires_grad_())
    with torch.no_grad():
        weight.zero_()
        bias.zero_()
    assert not before.requires_grad
    assert torch.equal(kernel(x), before)


@works
def test_another_shape_or_type_is_refused() -> None:
    problem = Problem(1, 4, 4, (8, 8), (3, 3))
    x, weight, _ = random(problem)
    kernel = winograd.prepare(problem, weight)
    for wrong in (x[:, :3], x.double(), torch.cat([x, x]), x.to("meta")):
        with pytest.raises(RequestError, match="prepared for float32"):
            kernel(wrong)
    with pytest.raises(RequestError, match="weight has shape"):
        winograd.prepare(problem, weight[:2])


@works
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_spreads_over_its_tiles_and_no_further(bad: float) -> None:
    problem = Problem(1, 3, 5, (16, 16), (3, 3), padding=same(3))
    x, weight, bias = random(problem)
    x[0, 1, 5, 6] = bad
    for relu in (False, True):
        result = winograd.prepare(problem, weight, bias, relu=relu)(x)
        wrong = ~result.isfinite()
        assert wrong[:, :, 4:7, 5:8].all()  # the pixels that see it
        assert wrong[:, :, 4:8, 4:8].all()  # the one tile whose patch holds it
        assert wrong[0, 0].sum() == 16


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "tile", "reason"),
    [
        ({"stride": (2, 1)}, 4, "stride 1, not (2, 1)"),
        ({"dilation": (1, 2)}, 4, "dilation 1, not (1, 2)"),
        ({"groups": 2}, 4, "one group, not 2"),
        ({"kernel": (3, 5)}, 4, "not 3x5"),
        ({"kernel": (1, 1)}, 4, "not 1x1"),
        ({"dtype": torch.float64}, 4, "not float64 on cpu"),
        ({"device": "cuda"}, 4, "not float32 on cuda"),
        ({}, 7, "F(7,3) needs 9 points"),
        ({"out_channels": 0}, 4, "no channel or no pixel"),
        ({"in_channels": 4096, "out_channels": 4096}, 4, "above the limit of 1024 MiB"),
    ],
)
def test_refusals(change: dict[str, object], tile: int, reason: str) -> None:
    problem = dataclasses.replace(Problem(1, 8, 8, (16, 16), (3, 3)), **change)  # type: ignore[arg-type]
    assert reason in (winograd.refuses(problem, tile) or "")
    with pytest.raises(RequestError, match="cannot serve this convolution"):
        winograd.prepare(problem, torch.zeros(1), tile=tile)


def test_a_machine_without_vectors_or_threads_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(1, 8, 8, (16, 16), (3, 3))
    with host.pretend(host.Host("x86-64", "", width=0, registers=0)):
        assert "neither AVX-512 nor AVX2" in (winograd.refuses(problem, 4) or "")
    monkeypatch.setattr(threads, "_find", lambda: "there is no OpenMP here")
    assert winograd.refuses(problem, 4) in ("there is no OpenMP here", host.current().refuses())


# ---------------------------------------------------------------- threads and memory


@works
def test_many_threads_call_one_kernel() -> None:
    problem = Problem(2, 24, 40, (30, 30), (3, 3), padding=same(3))
    _, weight, bias = random(problem)
    kernel = winograd.prepare(problem, weight, bias, threads=2)
    inputs = [random(problem, seed)[0] for seed in range(6)]
    alone = [kernel(x) for x in inputs]
    equal: list[bool] = []

    def work(number: int) -> None:
        equal.extend(torch.equal(kernel(inputs[number]), alone[number]) for _ in range(10))

    callers = [threading.Thread(target=work, args=(number,)) for number in range(len(inputs))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert equal == [True] * 60
    workspace.release()


@works
def test_the_team_follows_torch_after_preparation() -> None:
    problem = Problem(1, 160, 64, (20, 20), (3, 3), padding=same(3))
    x, weight, _ = random(problem)
    kernel = winograd.prepare(problem, weight)
    one, room = kernel(x), kernel.workspace
    try:
        torch.set_num_threads(3)
        assert torch.equal(kernel(x), one)
        assert kernel.workspace > room
    finally:
        torch.set_num_threads(1)


@works
def test_memory_is_reported() -> None:
    problem = Problem(1, 64, 64, (20, 20), (3, 3), padding=same(3))
    _, weight, bias = random(problem)
    kernel = winograd.prepare(problem, weight, bias, threads=1)
    assert 4 * 36 * 64 * 64 <= kernel.bytes <= 4 * 36 * 64 * 64 + 4096
    workspace.release()
    kernel(torch.zeros(problem.input_shape))
    assert workspace.held() == kernel.workspace
    workspace.release()


# ---------------------------------------------------------------- parts


@pytest.mark.parametrize(("m", "r"), [(2, 3), (4, 3), (6, 3), (4, 5)])
def test_paired_points_are_found(m: int, r: int) -> None:
    output, _, input = matrices(m, r).tensors()
    opposite = (m + r - 2) // 2
    assert len(pairs(input.tolist())[0]) == opposite
    assert len([pair for pair in pairs(output.T.tolist())[0] if pair[2] == 1]) == opposite


@given(st.integers(1, 400), st.integers(2, 30))
def test_rows_serve_all_tiles_with_few_left_empty(tiles: int, most: int) -> None:
    rows = rows_for(tiles, most)
    assert 1 <= rows <= most
    assert -(-tiles // rows) * rows - tiles < rows


@given(
    st.sampled_from([(2, 3), (4, 3), (6, 3)]),
    st.integers(1, 600),
    st.integers(1, 600),
    st.integers(0, 30_000),
    st.integers(1, 64),
    st.sampled_from([host.Host("a", "", 16, 32), host.Host("b", "", 8, 16, l2=256 << 10, l3=2 << 20)]),
)
def test_blocks_fit_together(
    size: tuple[int, int], inputs: int, outputs: int, tiles: int, team: int, machine: host.Host
) -> None:
    layout: Layout = choose(*size, inputs, outputs, tiles, machine, team)
    assert layout.block % layout.rows == layout.group % layout.rows == 0
    assert layout.chunk % layout.columns == layout.columns % layout.width == 0
    assert layout.group <= layout.block
    assert layout.rows * (layout.columns // layout.width) + layout.columns // layout.width < machine.registers
    assert layout.m_frequency % 16 == layout.v_frequency % 16 == 0
    assert layout.m_frequency // 16 % 2 == layout.v_frequency // 16 % 2 == 1
    if not layout.shared:
        assert layout.group == layout.block
