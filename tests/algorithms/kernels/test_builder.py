"""The kernel builder: every operation against numpy, on each vector width this machine can run."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from convscope.algorithms.kernels import compile, host, threads
from convscope.algorithms.kernels.builder import FLOATS, INT, INTS, Function, Int, Module, Pointer

WIDTHS = [width for width in (16, 8) if width <= host.detect().width]
pytestmark = pytest.mark.skipif(
    host.current().refuses() is not None or threads.refuses() is not None, reason="no kernels on this machine"
)


@pytest.fixture(autouse=True, params=WIDTHS, ids=lambda width: f"width{width}")
def module(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Module]:
    with pytest.MonkeyPatch.context() as patch, host.pretend(host.narrowed(request.param)) as machine:
        patch.setenv("CONVSCOPE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield Module(machine)


def call(module: Module, *arrays: np.ndarray, name: str = "work", team: int = 1) -> None:
    code = compile.build(module.text())
    threads.run(code.address(name), [array.ctypes.data for array in arrays], team)


def entry(module: Module, count: int) -> tuple[Function, list[Pointer]]:
    """A function whose table holds pointers to float arrays."""
    f = module.function("work", table=INTS)
    return f, [(f.arguments[0] + index).load_pointer() for index in range(count)]


def lanewise(module: Module, operation: Callable[..., object], *inputs: np.ndarray) -> np.ndarray:
    f, (*sources, target) = entry(module, len(inputs) + 1)
    target.store(operation(f, *(source.load() for source in sources)))
    result = np.full(module.width, 77, np.float32)
    call(module, *inputs, result)
    return result


def some(module: Module, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=module.width).astype(np.float32)


def test_arithmetic_of_vectors(module: Module) -> None:
    a, b, c = (some(module, seed) for seed in range(3))
    made = lanewise(module, lambda f, a, b, c: f.fma(-a, b - c, a + f.constant(0.1) * b), a, b, c)
    wanted = -a.astype(np.float64) * (b - c) + a + np.float64(np.float32(0.1)) * b
    np.testing.assert_allclose(made, wanted, rtol=0, atol=1e-6)


def test_linear_spends_nothing_on_zero_and_one(module: Module) -> None:
    a, b = some(module), some(module, 1)
    made = lanewise(module, lambda f, a, b: f.linear([(0.0, a), (-1.0, b), (1.0, a), (2.5, b)]), a, b)
    np.testing.assert_allclose(made, a + 1.5 * b, atol=1e-6)
    assert np.all(lanewise(Module(module.host), lambda f, a: f.linear([(0.0, a)]), a) == 0)
    assert module.text().count("llvm.fma") == 2  # its declaration, and 2.5 b


def test_positive_keeps_nan(module: Module) -> None:
    a = some(module)
    a[:4] = [np.nan, np.inf, -np.inf, -0.5]
    made = lanewise(module, lambda f, a: f.positive(a), a)
    assert np.isnan(made[0])
    np.testing.assert_array_equal(made[1:], np.maximum(a[1:], 0))


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("count", [-2, 0, 1, 5, 7, 8, 16, 40])
def test_masked_load_and_store_touch_nothing_else(module: Module, count: int, known: bool) -> None:
    f, (source, target, number) = entry(module, 3)
    mask = f.lanes(count if known else number.as_("i64").load_int())
    target.store(source.load(mask=mask) + f.constant(1), mask=mask)
    a, result = some(module), np.full(module.width, 77, np.float32)
    call(module, a, result, np.array([count]))
    kept = max(0, min(count, module.width))
    np.testing.assert_allclose(result[:kept], a[:kept] + 1)
    assert np.all(result[kept:] == 77)


def test_shuffle_and_splat(module: Module) -> None:
    a, b = some(module), some(module, 1)
    reversed_ends = [module.width, *range(module.width - 1, 0, -1)]
    made = lanewise(module, lambda f, a, b: f.shuffle(a, b, reversed_ends), a, b)
    np.testing.assert_array_equal(made, [b[0], *a[:0:-1]])

    other = Module(module.host)
    _, (source, target) = entry(other, 2)
    target.store((source + 1).splat())
    result = np.zeros(module.width, np.float32)
    call(other, a, result)
    assert np.all(result == a[1])


def integers(module: Module, formula: Callable[[Function, Int, Int], object], a: int, b: int) -> int:
    f = module.function("work", table=INTS)
    x, y = f.arguments[0].load_int(), (f.arguments[0] + 1).load_int()
    (f.arguments[0] + 2).load_pointer("i64").store_value(formula(f, x, y))
    result = ctypes.c_int64()
    code = compile.build(module.text())
    threads.run(code.address("work"), [a, b, ctypes.addressof(result)], 1)
    return result.value


@pytest.mark.parametrize(
    ("formula", "wanted"),
    [
        (lambda f, x, y: 3 + x * 5 - y, 3 + 35 - 4),
        (lambda f, x, y: 100 - x // y * 10 + x % y, 100 - 10 + 3),
        (lambda f, x, y: f.minimum(x, y) + f.minimum(x, 1000) + f.minimum(2, 9), 4 + 7 + 2),
        (lambda f, x, y: f.select((x > y) & ~(x <= y), 1, 2), 1),
        (lambda f, x, y: f.select((x < y) | x.equals(y) | (y >= x), 1, 2), 2),
        (lambda f, x, y: f.select((x - 8).inside(100), 1, 2), 2),  # -1 is outside
        (lambda f, x, y: f.select(x.inside(8), x, y), 7),
        (lambda f, x, y: x + 0 + y * 1 - 0, 11),
    ],
)
def test_integers(module: Module, formula: Callable[[Function, Int, Int], object], wanted: int) -> None:
    assert integers(module, formula, 7, 4) == wanted


@pytest.mark.parametrize(("start", "stop", "step"), [(0, 5, 1), (3, 3, 1), (4, 2, 1), (0, 10, 3), (-2, 1, 2)])
@pytest.mark.parametrize("known", [True, False])
def test_loops_run_as_range_does(module: Module, start: int, stop: int, step: int, known: bool) -> None:
    def formula(f: Function, x: Int, y: Int) -> object:
        total = f.variable(f.integer(0))
        with f.loop(start if known else x, stop if known else y, step) as i:
            total.set(total.get() * 10 + i)
        return total.get()

    wanted = 0
    for i in range(start, stop, step):
        wanted = wanted * 10 + i
    assert integers(module, formula, start, stop) == wanted


def test_branches_and_repetition(module: Module) -> None:
    def collatz(f: Function, x: Int, _: Int) -> object:
        number, steps = f.variable(x), f.variable(f.integer(0))
        with f.repeat(lambda: number.get() > 1):
            value = number.get()
            with f.either((value % 2).equals(0)) as (even, odd):
                with even:
                    number.set(value // 2)
                with odd:
                    number.set(value * 3 + 1)
            steps.set(steps.get() + 1)
        with f.when(steps.get() > 1000):
            steps.set(-1)
        return steps.get()

    assert integers(module, collatz, 27, 0) == 111


def test_functions_call_each_other_and_keep_their_own_tables(module: Module) -> None:
    helper = module.function("helper", public=False, x=FLOATS, times=INT)
    x, times = helper.arguments
    table = helper.array(3, "ptr")
    with helper.loop(0, 3) as i:
        (table + i).store_value(x)
    with helper.loop(0, times) as i:
        place = (table + i % 3).load_pointer()
        place.store(place.load() + helper.constant(1))
    f, (source,) = entry(module, 1)
    f.call(helper, source, 5)
    a = some(module)
    wanted = a + 5
    call(module, a)
    np.testing.assert_allclose(a, wanted, atol=1e-5)


@pytest.mark.parametrize("team", [1, 2, 5])
def test_threads_share_claims_and_meet_at_barriers(module: Module, team: int) -> None:
    """Each claim goes to one thread; behind the barrier every thread sees all of them."""
    f = module.function("work", table=INTS)
    counter, done, sums = ((f.arguments[0] + index).load_pointer("i64") for index in range(3))
    task = f.variable(counter.claim())
    with f.repeat(lambda: task.get() < 100):
        place = done + task.get()
        place.store_value(place.load_int() + task.get())
        task.set(counter.claim())
    f.barrier()
    total = f.variable(f.integer(0))
    with f.loop(0, 100) as i:
        total.set(total.get() + (done + i).load_int())
    (sums + f.thread()).store_value(total.get() + f.threads() - f.threads())
    arrays = [np.zeros(100, np.int64) for _ in range(3)]
    call(module, *arrays, team=team)
    np.testing.assert_array_equal(arrays[1], np.arange(100))
    assert arrays[0][0] == 100 + team
    assert arrays[2][:team].tolist() == [4950] * team


def test_streaming_prefetch_and_fence_are_only_hints(module: Module) -> None:
    f, (source, target) = entry(module, 2)
    source.prefetch()
    target.prefetch(level=2, write=True)
    target.store(f.keep_order(source.load()), align=4 * module.width, streaming=True)
    f.fence()
    a = some(module)
    room = np.zeros(2 * module.width, np.float32)
    start = -(room.ctypes.data // 4) % module.width
    call(module, a, room[start:])
    np.testing.assert_array_equal(room[start : start + module.width], a)
    assert "!nontemporal" in module.text()


def test_a_value_has_no_truth_yet(module: Module) -> None:
    f, _ = entry(module, 1)
    with pytest.raises(TypeError, match="not known while it is being built"):
        bool(f.thread() < 3)


def test_a_wrong_text_is_refused(module: Module) -> None:
    with pytest.raises(RuntimeError, match="expected"):
        compile.build("define void @broken( {")


def test_the_larger_and_the_smaller(module: Module) -> None:
    a, b = some(module), some(module, 1)
    a[0] = np.nan
    made = lanewise(module, lambda f, a, b: f.larger(a, b) + f.constant(10.0) * f.smaller(a, b), a, b)
    np.testing.assert_allclose(made, np.fmax(a, b) + 10 * np.fmin(a, b), rtol=1e-5)


def test_lanes_between_bounds(module: Module) -> None:
    a, b = some(module), some(module, 1)
    made = lanewise(module, lambda f, a, b: f.where(f.between(a, f.constant(-0.5), b), a, f.zero()), a, b)
    np.testing.assert_array_equal(made, np.where((a > -0.5) & (a < b), a, 0))


def test_rounding_and_numbers(module: Module) -> None:
    a = some(module) * 10
    made = lanewise(
        module,
        lambda f, a: f.floor(a) + f.magnitude(a) * f.ramp() + f.inverse(a) * f.number(f.integer(-3)),
        a,
    )
    np.testing.assert_allclose(
        made, np.floor(a) + np.abs(a) * np.arange(module.width) - 3 / a, rtol=1e-5, atol=1e-5
    )


def test_whole_parts_as_integers_and_narrow_vectors(module: Module) -> None:
    f, (source, room, target) = entry(module, 3)
    room.store_floor(source.load())
    narrow = module.function("narrow", public=False, width=4, x=FLOATS, y=FLOATS, at=INT)
    x, y, at = narrow.arguments
    y.store((x + at).load() + narrow.ramp(), mask=narrow.lanes(3))
    f.call(narrow, source, target, (room + 1).as_("i32").load_short())
    values = np.abs(some(module) * 10) + 2
    values[1] = 3.9
    whole, result = np.zeros(module.width, np.int32), np.full(module.width, 77, np.float32)
    call(module, values, whole, result)
    np.testing.assert_array_equal(whole, np.floor(values))
    np.testing.assert_allclose(result[:3], values[3:6] + np.arange(3))
    assert (result[3:] == 77).all()
