"""`auto` on algorithms of known speed: who wins, who is not tried, what is remembered, what is left untouched."""

from __future__ import annotations

import json
import random
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from convscope import timing
from convscope.algorithms import candidates, chooser, memory, race
from convscope.algorithms.base import ALGORITHMS
from convscope.algorithms.chooser import choose, recall
from convscope.algorithms.cost import Cost
from convscope.algorithms.error import ErrorBound
from convscope.algorithms.explanation import Explanation, describe, explain
from convscope.algorithms.problem import Problem
from convscope.errors import ConvscopeWarning, RequestError

PROBLEM = Problem(1, 8, 8, (32, 32), (3, 3), padding=((1, 1), (1, 1)))  # 590 k multiply-accumulates
MS = 1e-3


@dataclass
class Clock:
    """Time that passes only when a fake algorithm runs; noise moves it by so much, in factors of one round."""

    now: float = 0.0
    noise: Iterator[float] | None = None

    def spend(self, seconds: float) -> None:
        self.now += seconds * (next(self.noise) if self.noise else 1.0)


@dataclass
class Fake:
    """An algorithm that computes the convolution, and takes as long as it is told."""

    name: str
    clock: Clock
    takes: dict[str, float]  # variant -> seconds
    operations: int = 10**6
    expected: float = 1e-6
    workspace: int = 1024
    refusal: str | None = None
    error_: Exception | None = None
    offset: float = 0.0  # by how much its output is wrong
    log: list[str] = field(default_factory=list)

    bytes = 4096

    def variants(self, problem: Problem) -> tuple[str, ...]:
        return tuple(self.takes)

    def refuses(self, problem: Problem, variant: str | None = None) -> str | None:
        return "too picky" if variant == "picky" else self.refusal

    def prepare(self, problem: Problem, weight: Tensor, bias: Tensor | None, variant: str) -> Any:
        self.log.append(f"prepare {variant}")
        if self.error_ is not None:
            raise self.error_
        run = self._runner(problem, weight, bias, variant)
        return SimpleNamespace(bytes=4096, run=run).run

    def _runner(
        self, problem: Problem, weight: Tensor, bias: Tensor | None, variant: str
    ) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            self.log.append(f"run {variant}")
            self.clock.spend(self.takes[variant])
            return nn.functional.conv2d(x, weight, bias, padding=1) + self.offset

        return run

    def run(self, problem: Problem, x: Tensor, weight: Tensor, bias: Tensor | None, variant: str) -> Tensor:
        self.log.append(f"once {variant}{', grad' if torch.is_grad_enabled() else ''}")
        return self._runner(problem, weight, bias, variant)(x)

    def cost(self, problem: Problem, variant: str) -> Cost:
        return Cost(self.operations, 0, 0, 0, self.workspace)

    def error(self, problem: Problem, variant: str) -> ErrorBound:
        return ErrorBound(worst=100 * self.expected, expected=self.expected)

    @property
    def runs(self) -> int:
        return sum(not each.startswith("prepare") for each in self.log)


@pytest.fixture(autouse=True)
def own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("CONVSCOPE_CACHE", str(tmp_path / "cache"))
    chooser.forget()
    yield tmp_path / "cache" / "choices"
    chooser.forget()


Field = Callable[..., dict[str, Fake]]


@pytest.fixture
def field_of(monkeypatch: pytest.MonkeyPatch) -> Field:
    """field_of(direct={"contiguous": 2e-3}, fast={"a": 1e-3}) -> the fakes that are all algorithms there are."""

    def make(noise: Iterator[float] | None = None, **takes: dict[str, float]) -> dict[str, Fake]:
        clock = Clock(noise=noise)
        fakes = {name: Fake(name, clock, each) for name, each in takes.items()}
        monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock.now))
        monkeypatch.setattr(candidates, "ALGORITHMS", fakes)
        monkeypatch.setattr(race, "ALGORITHMS", fakes)
        return fakes

    return make


# ---------------------------------------------------------------- who wins


def test_the_fastest_wins(field_of: Field) -> None:
    field_of(
        direct={"contiguous": 5 * MS, "channels_last": 4 * MS},
        slow={"": 9 * MS},
        fast={"a": 3 * MS, "b": 1 * MS},
    )
    choice = choose(PROBLEM)
    assert (choice.name, choice.remembered) == ("fast:b", False)
    assert choice.seconds == pytest.approx(1 * MS)
    assert choice.reason == "4.00x (4.00x to 4.00x) as fast as direct:channels_last"
    assert {each.name: each.verdict for each in choice.tried} == {
        "fast:b": "won", "fast:a": "slower", "direct:channels_last": "slower", "direct:contiguous": "slower", "slow": "slower",
    }  # fmt: skip
    assert [each.name for each in choice.tried][:2] == ["fast:b", "fast:a"]


def test_a_layout_alone_can_win(field_of: Field) -> None:
    field_of(direct={"contiguous": 449 * MS, "channels_last": 12 * MS}, fft={"": 20 * MS})
    choice = choose(PROBLEM)
    assert choice.name == "direct:channels_last"
    assert choice.reason.startswith("nothing beat it beyond noise: fft")


def test_direct_is_left_only_for_what_clearly_beats_it(field_of: Field) -> None:
    field_of(direct={"contiguous": 1.04 * MS}, rival={"": 1.00 * MS})
    choice = choose(PROBLEM)
    assert choice.name == "direct:contiguous"
    assert [each.verdict for each in choice.tried] == [
        "won",
        "slower",
    ]  # the winner first, though not the fastest
    field_of(direct={"contiguous": 1.08 * MS}, rival={"": 1.00 * MS})
    assert choose(PROBLEM, fresh=True).name == "rival"


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    direct=st.floats(0.3, 20),
    rivals=st.lists(st.floats(0.3, 20), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
    spread=st.sampled_from([0.0, 0.02, 0.1, 0.3]),
)
def test_never_slower_than_direct(
    field_of: Field, direct: float, rivals: list[float], seed: int, spread: float
) -> None:
    noise = np.random.default_rng(seed)
    endless = iter(lambda: float(noise.lognormal(0, spread)), None)
    times = {f"r{i}": {"": time * MS} for i, time in enumerate(rivals)}
    field_of(endless, direct={"contiguous": direct * MS}, **times)
    choice = choose(PROBLEM, fresh=True)
    truth = direct if choice.algorithm == "direct" else rivals[int(choice.algorithm[1:])]
    assert truth <= direct * (1.0 if spread <= 0.02 else 1.1)
    if spread == 0.0:
        assert truth <= min([direct, *rivals]) * chooser.GAIN * chooser.ALIKE


def test_noise_alone_never_wins(field_of: Field) -> None:
    for seed in range(20):
        noise = np.random.default_rng(seed)
        endless = iter(lambda noise=noise: float(noise.lognormal(0, 0.1)), None)
        field_of(endless, direct={"contiguous": 2 * MS}, same={"": 2 * MS}, again={"": 2 * MS})
        choice = choose(PROBLEM, fresh=True)
        assert choice.algorithm == "direct", seed


def test_of_equally_fast_ones_the_most_accurate_is_taken(field_of: Field) -> None:
    fakes = field_of(
        direct={"contiguous": 4 * MS}, rough={"": 1.00 * MS}, fine={"": 1.01 * MS}, slow={"": 1.05 * MS}
    )
    fakes["rough"].expected, fakes["fine"].expected, fakes["slow"].expected = 1e-5, 1e-6, 1e-9
    choice = choose(PROBLEM)
    assert choice.name == "fine"
    assert (
        choice.reason
        == "3.96x (3.96x to 3.96x) as fast as direct:contiguous, hardly slower than rough and more accurate"
    )


def test_only_what_is_accurate_enough(field_of: Field) -> None:
    fakes = field_of(direct={"contiguous": 4 * MS}, rough={"": 1 * MS}, fine={"": 2 * MS})
    fakes["rough"].expected, fakes["fine"].expected, fakes["direct"].expected = 1e-4, 1e-5, 1e-6
    assert choose(PROBLEM).name == "rough"
    choice = choose(PROBLEM, max_error=2e-5)
    assert choice.name == "fine"
    assert [(each.name, each.verdict) for each in choice.tried if each.seconds is None] == [
        ("rough", "inexact")
    ]
    assert choose(PROBLEM, max_error=3e-6).name == "direct:contiguous"
    with pytest.raises(
        RequestError, match="max_error=1e-07 is below what any algorithm expects here; give at least 1.0e-06"
    ):
        choose(PROBLEM, max_error=1e-7)


# ---------------------------------------------------------------- who is not tried


def test_hopeless_by_cost_is_not_run(field_of: Field) -> None:
    fakes = field_of(direct={"contiguous": 1 * MS}, huge={"": 0.1 * MS}, wide={"": 0.1 * MS})
    fakes["huge"].operations, fakes["wide"].workspace = 10**13, 2**50
    choice = choose(PROBLEM)
    assert choice.name == "direct:contiguous"
    assert fakes["huge"].log == fakes["wide"].log == []
    reasons = {each.name: each.reason for each in choice.tried if each.verdict == "pruned"}
    assert "by its cost, another took 1.00 ms" in reasons["huge"]
    assert reasons["wide"] == "needs 1048576.0 GiB of workspace"


def test_few_variants_of_one_algorithm(field_of: Field) -> None:
    fakes = field_of(direct={"contiguous": 9 * MS}, many={str(i): (9 - i) * MS for i in range(6)})
    choice = choose(PROBLEM)
    assert sum(each.startswith("prepare") for each in fakes["many"].log) == candidates.VARIANTS
    assert choice.name == "many:2"
    assert [each.verdict for each in choice.tried].count("pruned") == 3


def test_refusals_are_listed(field_of: Field) -> None:
    fakes = field_of(
        direct={"contiguous": 5 * MS}, never={"a": 1 * MS}, fussy={"picky": 1 * MS, "easy": 2 * MS}
    )
    fakes["never"].refusal = "stride 2"
    choice = choose(PROBLEM)
    assert choice.name == "fussy:easy"
    assert [(each.name, each.reason) for each in choice.tried if each.verdict == "refused"] == [
        ("never", "stride 2"),
        ("fussy:picky", "too picky"),
    ]


def test_what_is_trivial_is_left_to_direct(field_of: Field) -> None:
    fakes = field_of(direct={"contiguous": 9 * MS, "channels_last": 9 * MS}, fast={"": 1 * MS})
    tiny = replace(PROBLEM, size=(4, 4))
    choice = choose(tiny, layout="channels_last")
    assert choice.name == "direct:channels_last"
    assert choice.seconds is None
    assert choice.reason == "too small for the choice to matter: 9,216 multiply-accumulates"
    assert choose(replace(PROBLEM, batch=0)).name == "direct:contiguous"
    assert all(fake.log == [] for fake in fakes.values())
    fakes = field_of(direct={"contiguous": 0.02 * MS}, fast={"": 0.001 * MS})
    assert choose(PROBLEM).name == "direct:contiguous"
    assert fakes["fast"].log == []


def test_what_fails_is_told(field_of: Field) -> None:
    fakes = field_of(direct={"contiguous": 5 * MS}, broken={"": 1 * MS}, fine={"": 2 * MS})
    fakes["broken"].error_ = RuntimeError("no memory\nmore lines")
    choice = choose(PROBLEM)
    assert choice.name == "fine"
    assert [(t.verdict, t.reason) for t in choice.tried if t.name == "broken"] == [
        ("failed", "RuntimeError: no memory")
    ]
    fakes["direct"].error_ = RuntimeError("no luck")
    with pytest.raises(RuntimeError, match="direct:contiguous: RuntimeError: no luck"):
        choose(PROBLEM, fresh=True)


def test_a_wrong_result_never_wins(field_of: Field) -> None:
    fakes = field_of(direct={"contiguous": 5 * MS}, wrong={"": 1 * MS}, nan={"": 1 * MS})
    fakes["wrong"].offset, fakes["nan"].offset = 0.01, float("nan")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        choice = choose(PROBLEM)
    assert [str(each.message).split(" for ")[0] for each in told] == ["wrong is not used", "nan is not used"]
    assert "differs from direct by" in str(told[0].message)
    assert all(each.category is ConvscopeWarning for each in told)
    assert choice.name == "direct:contiguous"
    assert [each.verdict for each in choice.tried if each.name == "wrong"] == ["failed"]


def test_wrong_requests(field_of: Field) -> None:
    fakes = field_of(direct={"contiguous": 5 * MS})
    with pytest.raises(
        RequestError, match="layout='nhwc' is unknown; give one of 'contiguous', 'channels_last'"
    ):
        choose(PROBLEM, layout="nhwc")
    with pytest.raises(RequestError, match="use='twice' is unknown"):
        choose(PROBLEM, use="twice")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="max_error=0.0 must be above 0"):
        choose(PROBLEM, max_error=0.0)
    fakes["direct"].refusal = "it is Sunday"
    with pytest.raises(RequestError, match="no algorithm serves this: direct: it is Sunday"):
        choose(PROBLEM)


# ---------------------------------------------------------------- what a call is


def test_uses_are_measured_apart(field_of: Field) -> None:
    fakes = field_of(direct={"contiguous": 5 * MS}, other={"": 1 * MS})
    choose(PROBLEM)
    assert {each.split()[0] for each in fakes["other"].log} == {"prepare", "run"}
    fakes["other"].log.clear()
    choose(PROBLEM, use="once")
    assert set(fakes["other"].log) == {"once ", "run "}
    fakes["other"].log.clear()
    choice = choose(PROBLEM, use="training")
    assert set(fakes["other"].log) == {"once , grad", "run "}
    assert choice.name == "other"


# ---------------------------------------------------------------- memory


def test_it_is_measured_once(field_of: Field, own_memory: Path) -> None:
    fakes = field_of(direct={"contiguous": 5 * MS}, fast={"": 1 * MS})
    assert recall(PROBLEM) is None
    first = choose(PROBLEM)
    ran = fakes["fast"].runs
    again = choose(PROBLEM)
    chooser.forget()  # as another process would
    read = choose(PROBLEM)
    assert fakes["fast"].runs == ran
    assert again == first
    assert read == replace(first, remembered=True)
    assert recall(PROBLEM) == read
    assert len(list(own_memory.iterdir())) == 1
    choose(PROBLEM, fresh=True)
    assert fakes["fast"].runs > ran


@pytest.mark.parametrize(
    "change",
    [
        lambda fakes, patch: {"problem": replace(PROBLEM, batch=2)},
        lambda fakes, patch: {"problem": replace(PROBLEM, dtype=torch.float64)},
        lambda fakes, patch: {"layout": "channels_last"},
        lambda fakes, patch: {"threads": 3},
        lambda fakes, patch: {"use": "once"},
        lambda fakes, patch: patch.setattr(timing, "processor", lambda: "another") or {},
        lambda fakes, patch: patch.setattr(chooser.convscope, "__version__", "9.9") or {},
        lambda fakes, patch: patch.setattr(torch, "__version__", "9.9") or {},
        lambda fakes, patch: patch.setattr(chooser, "_source", lambda: "new code") or {},
        lambda fakes, patch: fakes["fast"].takes.update(more=2 * MS) or {},
    ],
    ids=["shape", "dtype", "layout", "threads", "use", "processor", "version", "torch", "code", "candidates"],
)
def test_everything_it_depends_on_is_in_the_key(
    field_of: Field, change: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, own_memory: Path
) -> None:
    fakes = field_of(direct={"contiguous": 5 * MS}, fast={"a": 1 * MS})
    choose(PROBLEM)
    ran = fakes["fast"].runs
    chooser.forget()
    choose(**({"problem": PROBLEM} | change(fakes, monkeypatch)))
    assert fakes["fast"].runs > ran
    assert len(list(own_memory.iterdir())) == 2


def test_what_a_busy_machine_says_is_not_kept_on_disk(field_of: Field, own_memory: Path) -> None:
    noise = np.random.default_rng(1)
    endless = iter(lambda: float(noise.lognormal(0, 0.8)), None)
    fakes = field_of(endless, direct={"contiguous": 50 * MS}, fast={"": 1 * MS})
    choice = choose(PROBLEM)
    assert (choice.name, choice.steady) == ("fast", False)
    ran = fakes["fast"].runs
    assert choose(PROBLEM) == choice
    assert fakes["fast"].runs == ran
    assert not own_memory.exists()
    assert "on a busy machine" in str(explain((1, 8, 32, 32), (8, 8, 3, 3), padding=1))


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"fast"', '"slow"'),
        lambda text: text.replace('"format": 1', '"format": 2'),
        lambda text: "\x00\xff" * 99,
        lambda text: "[" * 100_000,
    ],
    ids=["empty", "torn", "foreign", "changed", "format", "binary", "deep"],
)
def test_a_damaged_entry_is_measured_again_and_replaced(
    field_of: Field, damage: Callable[[str], str], own_memory: Path
) -> None:
    fakes = field_of(direct={"contiguous": 5 * MS}, fast={"": 1 * MS})
    choose(PROBLEM)
    [path] = own_memory.iterdir()
    whole = path.read_text()
    path.write_text(damage(whole))
    chooser.forget()
    ran = fakes["fast"].runs
    choose(PROBLEM)
    assert fakes["fast"].runs > ran
    assert json.loads(path.read_text())["value"]["algorithm"] == "fast"
    chooser.forget()
    assert choose(PROBLEM).remembered


def test_an_entry_of_another_shape_of_values_is_not_trusted(field_of: Field, own_memory: Path) -> None:
    field_of(direct={"contiguous": 5 * MS}, fast={"": 1 * MS})
    choose(PROBLEM)
    [path] = own_memory.iterdir()
    key = json.loads(path.read_text())["key"]
    chooser.forget()
    memory.Memory("choices").put(key, {"algorithm": "fast"})
    assert recall(PROBLEM) is None
    assert choose(PROBLEM).name == "fast"


def test_where_nothing_can_be_written_it_still_chooses(
    field_of: Field, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CONVSCOPE_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(chooser, "_MEMORY", memory.Memory("choices"))
    fakes = field_of(direct={"contiguous": 5 * MS}, fast={"": 1 * MS})
    with pytest.warns(
        ConvscopeWarning, match="forgotten when the process ends: cannot write .* CONVSCOPE_CACHE"
    ):
        assert choose(PROBLEM).name == "fast"
    ran = fakes["fast"].runs
    assert choose(PROBLEM).name == "fast"
    assert fakes["fast"].runs == ran
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        choose(replace(PROBLEM, batch=2))


def test_the_folder_stays_bounded(monkeypatch: pytest.MonkeyPatch, own_memory: Path) -> None:
    monkeypatch.setattr(memory, "KEPT", 8)
    place = memory.Memory("choices")
    for index in range(20):
        place.put({"n": index}, {"is": index})
    assert len(list(own_memory.iterdir())) <= 8
    assert place.get({"n": 19}) == {"is": 19}
    place.forget()
    assert place.get({"n": 19}) == {"is": 19}
    assert place.get({"n": 0}) is None


def test_many_threads_and_processes_share_a_folder(own_memory: Path) -> None:
    """Each stands for a process: it has a memory of its own, the files are shared."""
    wrong: list[Any] = []

    def work(seed: int) -> None:
        order = random.Random(seed)
        place = memory.Memory("choices")
        for _ in range(60):
            place.forget()
            index = order.randrange(4)
            found = place.get({"n": index})
            if found not in (None, {"is": [index] * 500}):
                wrong.append(found)
            place.put({"n": index}, {"is": [index] * 500})

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert sorted(path.suffix for path in own_memory.iterdir()) == [".json"] * 4


def test_threads_that_ask_at_once_measure_once(field_of: Field) -> None:
    fakes = field_of(direct={"contiguous": 5 * MS}, fast={"": 1 * MS})
    answers: list[str] = []
    threads = [threading.Thread(target=lambda: answers.append(choose(PROBLEM).name)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == ["fast"] * 8
    assert fakes["fast"].log.count("prepare ") == 1


def test_where_the_folder_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONVSCOPE_CACHE")
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    monkeypatch.setattr(memory.sys, "platform", "linux")
    assert memory.folder() == Path("/elsewhere/convscope")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert memory.folder() == Path("/home/me/.cache/convscope")
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert memory.folder() == Path("/home/me/Library/Caches/convscope")


# ---------------------------------------------------------------- what is left untouched


def test_the_callers_modes_neither_see_nor_feel_it(field_of: Field) -> None:
    seen: list[str] = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    class Functions(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    field_of(direct={"contiguous": 5 * MS}, fast={"": 1 * MS})
    torch.manual_seed(3)
    before = torch.get_rng_state(), random.getstate(), torch.get_num_threads()
    for batch, mode in enumerate((Recorder(), Functions(), FakeTensorMode()), 1):
        for use in ("prepared", "once", "training"):
            with mode:
                assert choose(replace(PROBLEM, batch=batch), use=use).name == "fast"  # type: ignore[arg-type]
    assert seen == []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert choose(replace(PROBLEM, batch=5), use="training", threads=2).name == "fast"
        assert torch.is_inference_mode_enabled()
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(before[0], torch.get_rng_state())
    assert (random.getstate(), torch.get_num_threads()) == before[1:]
    assert torch.is_grad_enabled()


def test_threads_are_put_back_after_a_failure(field_of: Field) -> None:
    fakes = field_of(direct={"contiguous": 5 * MS}, fast={"": 1 * MS})
    fakes["direct"].error_ = RuntimeError("no")
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError):
        choose(PROBLEM, threads=before + 1)
    assert torch.get_num_threads() == before


# ---------------------------------------------------------------- explain


def test_an_explanation_tells_all(field_of: Field) -> None:
    fakes = field_of(direct={"contiguous": 4 * MS}, fast={"a": 1 * MS}, never={"": 1 * MS})
    fakes["never"].refusal = "stride 2"
    why = explain((1, 8, 32, 32), (8, 8, 3, 3), padding=1)
    assert isinstance(why, Explanation)
    text = str(why)
    assert text.splitlines()[0].strip() == "1 x 8 x 32 x 32 -> 8, 3x3, padding 1, float32, contiguous"
    rows = {line.split("│")[1].strip(): line for line in text.splitlines() if "│" in line}
    assert "won" in rows["fast:a"]
    assert "1.00 ms (1.00 ms to 1.00 ms)" in rows["fast:a"]
    assert "4.00x" in rows["direct:contiguous"]
    assert "1.0e-06" in rows["direct:contiguous"]
    assert "refused" in rows["never"]
    assert "stride 2" in rows["never"]
    assert "4.00x (4.00x to 4.00x) as fast as direct:contiguous" in text
    told = json.loads(json.dumps(why.to_dict()))
    assert told["algorithm"] == "fast"
    assert told["tried"][0]["seconds"] == {"median": 0.001, "low": 0.001, "high": 0.001}
    assert not told["remembered"]
    assert explain((1, 8, 32, 32), (8, 8, 3, 3), padding=1).choice.name == "fast:a"


def test_an_explanation_takes_tensors_in_their_layout(field_of: Field) -> None:
    field_of(direct={"contiguous": 4 * MS}, fast={"a": 1 * MS})
    x = torch.zeros(1, 8, 32, 32).to(memory_format=torch.channels_last)
    weight = torch.zeros(8, 8, 3, 3)
    assert explain(x, weight, padding=1).layout == "channels_last"
    assert explain(x.contiguous(), weight, padding=1).layout == "contiguous"
    assert describe(explain(x, weight, 1, 1).problem) == describe(PROBLEM)


def test_the_real_ones_agree_and_are_chosen_among() -> None:
    why = explain((1, 16, 24, 24), (16, 16, 3, 3), padding=1, fresh=True)
    assert {each.algorithm for each in why.tried} == set(ALGORITHMS)
    assert not [each for each in why.tried if each.verdict == "failed"]
    ran = [each for each in why.tried if each.difference is not None]
    assert all(each.difference <= 3e-5 for each in ran if each.difference is not None)
