"""Algorithm: the same outputs by other algorithms, what is taken when, and what stays; measured times are stood in for."""

from __future__ import annotations

import copy
import gc
import importlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from convscope import _heap, rules, timing
from convscope.algorithms.base import resolve
from convscope.algorithms.candidates import Tried
from convscope.algorithms.chooser import Choice
from convscope.algorithms.problem import Problem
from convscope.errors import RequestError, UnknownName
from convscope.rewrites import algorithm
from convscope.rewrites.base import VerificationError
from convscope.rewrites.contest import BEFORE, Entry, contest
from convscope.rewrites.forms import laid
from convscope.rewrites.prepared import PackedLinear
from convscope.rewrites.recipe import rebuild
from convscope.rewrites.rewrite import Rewrite, rewrite

OFFERED = ("direct:channels_last", "winograd:F(4,3)", "im2col")
LAST = torch.channels_last


class Clock:
    """Stands in for all that is timed: form by form as told, 2 seconds otherwise.

    Attributes:
        seconds: by an algorithm's name; "network" is the whole afterwards.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def took(self, name: str) -> timing.Timing:
        seconds = self.seconds.get(name, self.seconds.get(name.partition(":")[0], 2.0))
        return timing.Timing((seconds,) * 5)

    def choose(self, problem: Problem, **_: Any) -> Choice:
        serving = []
        for name in OFFERED:
            try:
                serving.append((name, *resolve(name, problem)))
            except RequestError:
                continue
        tried = tuple(
            Tried(
                each.name, variant, "slower", "", timing.Interval(1.0, 1.0, 1.0), expected_error=float(k), worst_error=1.0
            )
            for k, (_, each, variant) in enumerate(serving)
        )  # fmt: skip
        return Choice(tried[0].algorithm, tried[0].variant, 1.0, tried, "")

    def contest(
        self, network: nn.Module, entries: Sequence[Entry], x: Tensor, budget: float
    ) -> Mapping[Any, Any]:
        return {each.key: {form: self.took(form) for form in (BEFORE, *each.forms)} for each in entries}

    def whole(self, old: nn.Module, new: nn.Module, x: Tensor) -> dict[str, timing.Timing]:
        return {
            "before": self.took("before"),
            "after": timing.Timing((self.seconds.get("network", 1.0),) * 5),
        }


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("convscope.rewrites.algorithm.chooser.choose", found.choose)
    monkeypatch.setattr(algorithm, "contest", found.contest)
    monkeypatch.setattr(algorithm, "_timed", found.whole)
    return found


@pytest.fixture(autouse=True)
def _heap_as_before() -> Iterator[None]:
    yield
    gc.collect()
    assert _heap._users == 0, "a network is gone, but not its hold on freed memory"


class Tangle(nn.Module):
    """Convolutions whose ReLU may or may not become part of them."""

    def __init__(self) -> None:
        super().__init__()
        self.alone, self.read, self.first, self.second, self.six = (
            nn.Conv2d(4, 4, 3, padding=1) for _ in range(5)
        )
        self.own, self.seen, self.shared, self.clip = nn.ReLU(), nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        x = self.own(self.alone(x))
        y = self.read(x)
        x = self.seen(y) + y
        x = self.shared(self.second(self.shared(self.first(x))))
        return self.clip(self.six(x))


def classifier() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, 4),
    )  # fmt: skip


def forms(made: Rewrite) -> dict[str, Any]:
    return {edit.layer: edit.resolved.get("algorithm") for edit in made.done if edit.layer}


def reasons(made: Rewrite) -> dict[str, str]:
    return {edit.layer: edit.reason or "" for edit in made.edits if edit.refused}


# ---------------------------------------------------------------- one algorithm for all


@pytest.mark.parametrize("kind", ["im2col", "fft", "direct:channels_last", "direct:packed"])
@given(data=st.data())
@settings(max_examples=4)
def test_outputs_stay_the_same(kind: str, data: st.DataObject) -> None:
    """Beside what the verifier does in float64, in float32 against torch in float64, at another size and batch too."""
    draw: Any = data.draw
    groups = draw(st.sampled_from([1, 2]))
    conv = nn.Conv2d(
        4, 6, draw(st.sampled_from([1, 3, (2, 5)])), draw(st.integers(1, 2)), draw(st.integers(0, 2)),
        draw(st.integers(1, 2)), groups, draw(st.booleans()), draw(st.sampled_from(["zeros", "reflect", "circular"])),
    ).eval()  # fmt: skip
    made = rewrite(conv, rules.Algorithm(kind), input="4x17x14")
    assert made.exactness == "exact"
    for shape in ((1, 4, 17, 14), (3, 4, 20, 23)):
        x = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(
                made.net.module(x).double(), copy.deepcopy(conv).double()(x.double()), atol=1e-4, rtol=0
            )


def test_what_does_not_serve_stays() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, stride=2))
    made = rewrite(net.eval(), rules.Algorithm("winograd:F(2,3)"), input="3x16x16")
    assert forms(made) == {"0": "winograd:F(2,3)"}
    assert "1x1" in reasons(made)["1"] or "kernel" in reasons(made)["1"]
    assert set(reasons(made)) == {"1", "2"}
    assert type(made.net.module[1]) is nn.Conv2d  # type: ignore[index]
    exact = rewrite(net, rules.Algorithm("winograd:F(4,3)", max_error=1e-9), input="3x16x16")
    assert "expects an error of" in reasons(exact)["0"]
    assert "above max_error=1e-09" in reasons(exact)["0"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kind": "winogrd"}, UnknownName, "no algorithm 'winogrd'; did you mean 'winograd'"),
        ({"batch": 0}, RequestError, "batch=0 must be a whole number from 1: images a call"),
        ({"batch": True}, RequestError, "batch=True must be"),
        ({"max_error": 0.0}, RequestError, "max_error=0.0 must be above 0, relative to the largest output"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        rules.Algorithm(**arguments)


# ---------------------------------------------------------------- by measurement


def test_each_layer_takes_its_fastest_form(clock: Clock) -> None:
    clock.seconds = {"winograd:F(4,3)": 1.0, "packed": 1.0}
    net = classifier().eval()
    keys = list(net.state_dict())
    made = rewrite(net, rules.Algorithm(), input="3x16x16")
    assert forms(made) == {"0": "winograd:F(4,3)", "3": "winograd:F(4,3)", "7": "packed"}
    assert "too small for the choice to matter: 512 multiply-accumulates" in reasons(made)["9"]
    module: Any = made.net.module
    assert module[0].activation == "relu"
    assert type(module[1]) is nn.Identity
    assert module[0].weight.is_contiguous(memory_format=LAST)
    assert list(module.state_dict()) == keys
    whole = next(edit for edit in made.done if not edit.layer)
    assert whole.seconds == (2.0, 1.0)
    assert whole.notes[0].startswith("2.00x (2.00x to 2.00x) as fast as before, cpu, ")
    assert "outputs differ from float64 by" in whole.notes[1]
    told = next(edit for edit in made.done if edit.layer == "0")
    assert told.seconds == (2.0, 1.0)
    assert "its ReLU '1' is part of it" in told.notes
    assert "winograd:F(4,3) is 2.00x (2.00x to 2.00x) as fast as direct:channels_last" in told.notes
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(module(x), net(x), atol=1e-4, rtol=1e-4)


def test_a_relu_is_merged_only_where_nobody_else_sees_it(clock: Clock) -> None:
    clock.seconds = {"im2col": 1.0}
    made = rewrite(Tangle().eval(), rules.Algorithm(), input="4x12x12")
    merged = {edit.layer: edit.resolved["relu"] for edit in made.done if edit.layer}
    assert merged == {"alone": "own", "read": None, "first": None, "second": None, "six": None}


def test_a_watched_relu_stays(clock: Clock) -> None:
    clock.seconds = {"im2col": 1.0}
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    seen: list[Tensor] = []
    handle = net[1].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    made = rewrite(net, rules.Algorithm(), input="3x9x9")
    assert made.done[0].resolved["relu"] is None
    handle.remove()


def test_torchs_own_stays_where_it_wins(clock: Clock) -> None:
    clock.seconds = {"im2col": 2.5, "winograd:F(4,3)": 2.1, "direct:contiguous": 2.2}
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)).to(memory_format=LAST).eval()  # type: ignore[call-overload]
    made = rewrite(net, rules.Algorithm(), input="3x12x12")
    assert not made.done
    assert all(type(part) is nn.Conv2d for part in made.net.module.children())
    for layer in ("0", "1"):
        assert reasons(made)[layer].startswith("nothing beat torch's own beyond noise, ")
        assert "im2col:contiguous: 0.80x (0.80x to 0.80x) as fast" in reasons(made)[layer]


def test_a_layer_is_laid_out_for_those_behind_it(clock: Clock) -> None:
    clock.seconds = {"im2col": 3.0, "winograd:F(4,3)": 3.0}
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)).eval()
    made = rewrite(net, rules.Algorithm(), input="3x12x12")
    module: Any = made.net.module
    assert forms(made) == {"0": "direct:channels_last"}
    assert type(module[0]) is nn.Conv2d
    assert type(module[1]) is nn.ReLU
    assert module[0].weight.is_contiguous(memory_format=LAST)
    assert made.done[0].notes[1:] == ("only its weight is laid out anew",)
    clock.seconds["direct:channels_last"] = 2.5
    made = rewrite(net, rules.Algorithm(), input="3x12x12")
    assert made.done[0].notes[1] == "slower by itself, for the sake of the layers behind it"
    clock.seconds["network"] = 2.0  # which it was not worth
    assert not rewrite(net, rules.Algorithm(), input="3x12x12").done


def test_a_network_that_is_no_faster_stays_as_it_is(clock: Clock) -> None:
    clock.seconds = {"im2col": 1.0, "network": 2.0}
    net = classifier().eval()
    made = rewrite(net, rules.Algorithm(), input="3x16x16")
    assert not made.done
    assert "the network as a whole ran no faster: 1.00x (1.00x to 1.00x) as fast" in reasons(made)["0"]
    assert [type(a) for a in made.net.module.modules()] == [type(a) for a in net.modules()]


def test_an_algorithm_that_is_wrong_is_found(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the network's own type: in float64, where proofs are made, it may be another one that runs."""
    clock.seconds = {"packed": 1.0}
    right = PackedLinear.forward

    def wrong(self: PackedLinear, x: Tensor) -> Tensor:
        return right(self, x) + (0.01 if x.dtype == torch.float32 else 0)

    monkeypatch.setattr(PackedLinear, "forward", wrong)
    with pytest.raises(
        VerificationError, match="changed the outputs by .* of their maximum in float32, where rounding"
    ):
        rewrite(nn.Sequential(nn.Flatten(), nn.Linear(512, 256)).eval(), rules.Algorithm(), input="2x16x16")


def test_what_it_becomes_is_an_ordinary_network(clock: Clock) -> None:
    clock.seconds = {"winograd:F(4,3)": 1.0, "packed": 1.0}
    net = classifier().eval()
    made = rewrite(net, rules.Algorithm(batch=2), input="3x16x16")
    assert made.done[-1].notes[0].endswith("batch 2")
    module: Any = made.net.module
    users = _heap._users
    again = copy.deepcopy(module)
    assert _heap._users == users + 1
    other = torch.load(_stored(module), weights_only=False)
    classifier().load_state_dict(module.state_dict())
    for x in (torch.randn(2, 3, 16, 16), torch.randn(1, 3, 16, 16), torch.randn(3, 3, 22, 20)):
        with torch.no_grad():
            wanted = net(x)
            for each in (module, again, other):
                torch.testing.assert_close(each(x), wanted, atol=1e-4, rtol=1e-4)
    gradients = []
    for each in (net, again):
        each.train().requires_grad_(True)
        each(torch.ones(2, 3, 16, 16)).square().sum().backward()
        gradients.append([p.grad for p in each.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def _stored(module: nn.Module) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return file


def test_a_recipe_makes_it_again(clock: Clock, tmp_path: Path) -> None:
    clock.seconds = {"winograd:F(4,3)": 1.0, "packed": 1.0}
    made = rewrite(classifier().eval(), rules.Algorithm(), input="3x16x16")
    made.save(tmp_path)
    users = _heap._users
    again: Any = rebuild(tmp_path, classifier()).module
    assert _heap._users > users
    assert again[0].algorithm == "winograd:F(4,3)"
    assert again[0].weight.is_contiguous(memory_format=LAST)
    assert type(again[7]) is PackedLinear
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(again(x), made.net.module(x))


def test_memory_is_kept_only_if_asked(clock: Clock) -> None:
    clock.seconds = {"im2col": 1.0}
    made = rewrite(nn.Conv2d(3, 4, 3).eval(), rules.Algorithm(keep=False), input="3x12x12")
    assert made.done
    gc.collect()
    assert _heap._users == 0


def test_measured_for_real() -> None:
    """Whatever wins here: the outputs stay, and every layer is accounted for."""
    net = nn.Sequential(
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 144, 40)
    ).eval()
    made = rewrite(net, rules.Algorithm(), input="16x12x12")
    assert {edit.layer for edit in made.edits} - {""} == {"0", "3"}
    assert all(edit.seconds is not None for edit in made.done)
    x = torch.randn(1, 16, 12, 12)
    with torch.no_grad():
        torch.testing.assert_close(made.net.module(x), net(x), atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------- the contest


def test_the_contest_times_every_form_and_changes_nothing() -> None:
    class Slow(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            y = x
            for _ in range(40):
                y = super().forward(x)
            return y

    net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
    before = [id(part) for part in net.modules()]
    slow, fast = Slow(4, 4, 3), nn.Conv2d(4, 4, 3)
    entries = [
        Entry(("0", "1"), {"slow": [slow, nn.ReLU()], "fast": [fast, nn.Identity()]}, "a"),
        Entry(("2",), {"fast": [laid(nn.Conv2d(4, 4, 3), "channels_last")]}, "b"),
    ]
    with torch.no_grad():
        times = contest(net, entries, torch.randn(1, 4, 20, 20), 0.1)
    assert set(times["a"]) == {BEFORE, "slow", "fast"}
    assert set(times["b"]) == {BEFORE, "fast"}
    assert times["a"]["slow"].over(times["a"]["fast"]).low > 2
    assert [id(part) for part in net.modules()] == before


# ---------------------------------------------------------------- packed linear layers


@pytest.mark.parametrize("bias", [True, False])
def test_packed_linear_is_linear(bias: bool) -> None:
    linear = nn.Linear(48, 20, bias)
    packed = PackedLinear.of(linear, 2)
    assert repr(packed).endswith("rows=2)")
    shapes = [(2, 48), (3, 48), (48,), (2, 1, 48)]
    for x in (torch.randn(shape) for shape in shapes):
        with torch.no_grad():
            torch.testing.assert_close(packed(x), linear(x))
    x = torch.randn(2, 48, requires_grad=True)
    torch.testing.assert_close(packed(x), linear(x))
    packed(x).sum().backward()
    torch.testing.assert_close(x.grad, linear.weight.sum(0).expand(2, -1))
    torch.testing.assert_close(packed.double()(x.double()), linear.double()(x.double()))


def test_packed_linear_follows_its_weight() -> None:
    packed = PackedLinear.of(nn.Linear(8, 4), 1)
    x = torch.randn(1, 8)

    def same() -> bool:
        return torch.allclose(packed(x), nn.functional.linear(x, packed.weight, packed.bias), atol=1e-6)

    with torch.no_grad():
        steps: list[Callable[[], Any]] = [
            lambda: None,
            lambda: packed.weight.mul_(3),
            lambda: packed.load_state_dict(nn.Linear(8, 4).state_dict()),
            lambda: setattr(packed, "weight", nn.Parameter(torch.ones(4, 8))),
            lambda: (packed.weight.data.add_(1), packed.eval()),
        ]
        for step in steps:
            step()
            assert same()
        kept = packed._packed
        packed(x)
        assert packed._packed is kept is not None  # not packed again at every call
        assert copy.deepcopy(packed)._packed is None


# ---------------------------------------------------------------- the record


def test_the_page_holds_the_record_and_the_record_what_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[2]
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    fill = importlib.import_module("rewrites_speed_page")
    rows = fill.records()
    assert len(rows) == 8
    assert all(row["reached"] and not row["quick"] for row in rows.values())
    page = (root / "docs" / "rules" / "algorithm.md").read_text(encoding="utf-8")
    picture = (root / "docs" / "images" / "rules" / "algorithm.svg").read_text(encoding="utf-8")
    assert (fill.replaced(page, rows), fill.picture(rows)) == (page, picture), (
        "run python benchmarks/rewrites_speed_page.py docs"
    )
    assert f"![{fill.SAYS}]" in page
    with pytest.raises(ValueError, match="no place for the table"):
        fill.replaced("", rows)
