"""Latency by layer: the arithmetic on a clock that tests wind by hand, the rows of real networks, refusals.

No test depends on how long anything really takes.
"""

from __future__ import annotations

import dataclasses
import io
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from convscope import timing
from convscope.errors import ModelError, OutOfMemory, RequestError
from convscope.graph import record
from convscope.measures import clock, passes, trial
from convscope.measures import latency as module_under_test
from convscope.measures.clock import Clock, EventClock, Price, Span, Timed
from convscope.measures.counts import counts
from convscope.measures.latency import Latency, LayerTime, latency
from convscope.measures.memory import peak_memory
from convscope.measures.roofline import Peak
from convscope.models import InputSpec, Net


def _seconds(*values: float) -> timing.Timing:
    return timing.Timing(values)


PEAK = Peak(_seconds(1.0), 10**9, _seconds(1.0), 10**8, _seconds(1e-3))


class FakeMeter:
    """Stands for the machine."""

    peak = PEAK

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.asked = (device, dtype)

    def go(self, budget: float) -> None:
        assert 0 <= budget <= 1


@pytest.fixture(autouse=True)
def _few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "Meter", FakeMeter)
    monkeypatch.setattr(passes, "ROUNDS", 3)
    monkeypatch.setattr(passes, "LEAST", 2)
    monkeypatch.setattr(passes, "MOST_PASSES", 2)


# ---------------------------------------------------------------- a clock wound by hand


class Wound:
    """The time; looks at the layers' clock may take some of it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.look = 0.0

    def clock(self) -> Clock:
        wound = self

        class Looked(Clock):
            def now(self) -> float:
                wound.now += wound.look / 2
                shown = wound.now
                wound.now += wound.look / 2
                return shown

        return Looked()


@pytest.fixture
def wound(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wound]:
    found = Wound()
    with monkeypatch.context() as patch:  # over before pytest looks at its own clock
        patch.setattr(passes, "clock_of", lambda _: found.clock())
        patch.setattr(
            timing, "time", type("time", (), {"perf_counter": lambda: found.now, "sleep": time.sleep})
        )
        yield found


class Takes(nn.Module):
    """Takes so many seconds of the hand-wound clock."""

    def __init__(self, wound: Wound, seconds: float) -> None:
        super().__init__()
        self.wound, self.seconds = wound, seconds

    def forward(self, x: Tensor) -> Tensor:
        self.wound.now += self.seconds
        return x.relu()

    def __deepcopy__(self, memo: dict[int, Any]) -> Takes:
        return Takes(self.wound, self.seconds)  # time is one


class Block(nn.Module):
    """A residual: its own addition takes a second."""

    def __init__(self, wound: Wound, *seconds: float) -> None:
        super().__init__()
        self.body = nn.Sequential(*(Takes(wound, each) for each in seconds))
        self.act = Takes(wound, 0.5)
        self.wait = Takes(wound, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.body(x))
        self.wait.wound.now += 1.0
        return self.act(x + y)


@pytest.mark.parametrize("look", [0.0, 0.125, 2.0])
def test_the_clocks_own_price_is_taken_off(wound: Wound, look: float) -> None:
    wound.look = look
    net = nn.Sequential(Takes(wound, 2.0), Block(wound, 4.0, 8.0))
    found = latency(net, input="3x4x4")
    assert {name: row.seconds for name, row in found.layers.items()} == {
        "0": 2.0, "1.body.0": 4.0, "1.body.1": 8.0, "1.act#0": 0.5, "1.act#1": 0.5, "1": 1.0,
    }  # fmt: skip
    assert found.total.median == 16.0
    assert (found.rest.seconds, found.unattributed) == (0.0, 0.0)
    assert found.clock == Price(look, 2 * look)
    assert [row.functional for row in found.layers.values()] == [False] * 5 + [True]
    assert found.layers["1"].kind == "Block"
    assert len(found.layers["0"].timing.samples) == 2


def test_no_more_is_taken_off_than_the_passes_show() -> None:
    """A busy device does not wait for its clock: the price of a look is then none."""
    spans = [Span("0", 0, 3.0), Span("1", 0, 4.0), Span("", 0, 8.0, (0, 1))]
    assert passes._own([[spans]], whole=8.0, cost=Price(0.5, 1.0)) == ((3.0,), (4.0,), (1.0,))
    half = passes._own([[spans]], whole=6.75, cost=Price(0.5, 1.0))
    assert half == ((2.75,), (3.75,), (0.25,))  # 1.25 s seen of 2.5
    assert passes._own([[spans]], whole=5.0, cost=Price(0.5, 1.0)) == (
        (2.5,),
        (3.5,),
        (0.0,),
    )  # never below 0
    assert passes._own([[spans]], whole=5.0, cost=Price(0.0, 0.0)) == ((3.0,), (4.0,), (1.0,))


def test_a_sample_is_the_mean_of_its_passes() -> None:
    fast, slow = ([Span("", 0, seconds)] for seconds in (1.0, 3.0))
    assert passes._own([[fast, slow], [slow, slow]], 9.0, Price(0.1, 0.1)) == ((2.0, 3.0),)


def test_what_does_not_add_up_is_a_line(wound: Wound) -> None:
    layer = _row("0", seconds=3.0)
    found = _latency({"0": layer}, rest=1.0, total=5.0)
    assert (found.attributed, found.unattributed) == (4.0, 1.0)
    assert _latency({"0": layer}, rest=1.0, total=3.5).unattributed == -0.5
    assert found.share(layer) == 0.6


def _row(address: str, seconds: float = 1.0, macs: int | None = 0, bytes: int | None = 0) -> LayerTime:
    return LayerTime(address, "Conv2d", False, _seconds(seconds), macs, bytes, 1, PEAK)


def _latency(layers: dict[str, LayerTime], rest: float, total: float, note: str = "") -> Latency:
    last = dataclasses.replace(_row("rest", rest), kind="", functional=True)
    return Latency("<b>", ((1, 3, 8, 8),), _seconds(total), layers, last, PEAK, Price(0.0, 0.0), note)


def test_rates_against_the_peak() -> None:
    row = _row("0", seconds=2.0, macs=10**9, bytes=10**8)
    assert (row.macs_per_second, row.macs_share) == (5e8, 0.5)
    assert (row.bytes_per_second, row.bytes_share) == (5e7, 0.5)
    assert row.bound == "memory"
    assert _row("0", macs=10**9, bytes=1).bound == "compute"
    assert _row("0", seconds=1e-3, macs=10, bytes=10).bound == "overhead"
    unknown = _row("0", macs=None, bytes=None)
    assert (unknown.bound, unknown.macs_per_second, unknown.bytes_share) == (None, None, None)
    assert _row("0", seconds=0.0, macs=1).macs_per_second == float("inf")
    assert _row("0", seconds=0.0).macs_per_second == 0.0


# ---------------------------------------------------------------- rows of real networks


class Shared(nn.Module):
    """A module called twice, one never called, a functional operation, dict outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.tail = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Conv2d(4, 2, 1)))
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.tail(x + self.conv(self.conv(x)))}


def test_every_operation_is_in_one_row() -> None:
    found = latency(Shared(), input="4x8x8")
    assert list(found.layers) == ["conv#0", "conv#1", "tail.0", "tail.1.0", ""]
    graph = record(Shared(), example=torch.zeros(1, 4, 8, 8))
    items = counts(graph)
    rows = [*found.layers.values(), found.rest]
    assert sum(row.macs or 0 for row in rows) == sum(item.cost.macs for item in items if item.cost) > 0
    assert sum(row.bytes or 0 for row in rows) == sum(item.moved_bytes for item in items)
    assert found.layers["conv#1"].macs == 4 * 4 * 9 * 64
    assert found.layers[""].bytes == 3 * 4 * 64 * 4  # the addition reads two and writes one
    assert (found.rest.macs, found.rest.bytes, found.rest.bound) == (0, 0, "overhead")
    assert sum(row.seconds for row in rows) + found.unattributed == pytest.approx(found.total.median)
    assert found.total.conditions == timing.Conditions("cpu", torch.get_num_threads(), "float32")
    assert found.note == ""


def test_batch_and_type_are_what_is_timed() -> None:
    one, many = (
        latency(nn.Conv2d(3, 4, 3), input="3x8x8", batch=batch, dtype=dtype)
        for batch, dtype in ((1, None), (3, torch.float64))
    )
    assert many.shapes == ((3, 3, 8, 8),)
    assert many.layers[""].macs == 3 * (one.layers[""].macs or 0) > 0
    assert many.total.conditions.dtype == "float64"
    assert many.layers[""].bytes == 8 * (3 * 3 * 64 + 4 * 27 + 4 + 3 * 4 * 36)


def test_a_recording_serves_if_it_is_of_the_same_input(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net(nn.Conv2d(3, 4, 3), InputSpec((3, 8, 8)))
    graph = record(net)
    with monkeypatch.context() as patch:
        patch.setattr(module_under_test, "record", lambda *_, **__: pytest.fail("recorded again"))
        assert latency(net, graph=graph).layers[""].macs == 4 * 27 * 36
    assert latency(net, graph=graph, batch=2).layers[""].macs == 2 * 4 * 27 * 36


def test_an_operation_without_a_rule_leaves_the_work_unknown() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.svdvals(x)

    found = latency(nn.Sequential(Odd(), nn.Flatten()), example=torch.rand(1, 3, 3))
    assert found.layers["0"].macs is found.layers["0"].bound is None
    assert found.layers["1"].bound == "overhead"


def test_fused_paths_stay_whole() -> None:
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    found = latency(nn.Sequential(nn.Flatten(2), encoder, nn.ReLU()), example=torch.rand(1, 5, 8, 1))
    assert list(found.layers) == ["0", "1", "2"]
    layer = found.layers["1"]
    assert (layer.kind, layer.functional) == ("TransformerEncoderLayer", False)
    assert (
        layer.macs == 5 * (4 * 8 * 8 + 2 * 8 * 16) + 2 * 2 * 5 * 5 * 4
    )  # projections, feed forward, attention


def test_attention_is_one_row() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend, self.act = nn.MultiheadAttention(8, 2, batch_first=True), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.attend(x, x, x)[0])

    found = latency(Attends(), example=torch.rand(1, 5, 8))
    assert list(found.layers) == ["attend", "act"]
    assert found.layers["attend"].kind == "MultiheadAttention"


def test_a_compiled_network_is_one_row_with_the_work_of_its_original() -> None:
    inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    whole = latency(torch.compile(inner, backend="eager"), input="3x8x8")
    assert list(whole.layers) == [""]
    assert whole.layers[""].macs == 4 * 27 * 36
    part = latency(nn.Sequential(torch.compile(inner, backend="eager"), nn.Flatten()), input="3x8x8")
    assert list(part.layers) == ["0", "1"]
    assert part.layers["1"].bound is part.rest.bound is None
    assert part.note == "layer '0' runs out of sight of Python: MACs and bytes are not known"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_network_is_one_row() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    found = latency(scripted, input="3x8x8")
    assert list(found.layers) == [""]
    assert found.note == "the network runs out of sight of Python: MACs and bytes are not known"


def test_indices_are_timed_in_the_type_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Seen(FakeMeter):
        def go(self, budget: float) -> None:
            seen.append(self.asked)

    monkeypatch.setattr(passes, "Meter", Seen)
    text = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2)).double()
    found = latency(text, example=torch.arange(6)[None])
    assert seen == [(torch.device("cpu"), torch.float64)] * 2
    assert list(found.layers) == ["0", "1"]


# ---------------------------------------------------------------- the clock


def test_calls_are_told_apart() -> None:
    class Recursive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.leaf = nn.ReLU()

        def forward(self, x: Tensor, depth: int = 2) -> Tensor:
            return self.leaf(self(x, depth - 1) if depth else x)

    net = nn.Sequential(Recursive())
    with Timed(net) as timed:
        for _ in range(2):
            net(torch.zeros(1))
            timed.cut()
    first, second = timed.passes()
    assert [(span.name, span.index, span.children) for span in first] == [
        ("0.leaf", 0, ()), ("0", 2, (0,)), ("0.leaf", 1, ()), ("0", 1, (1, 2)), ("0.leaf", 2, ()),
        ("0", 0, (3, 4)), ("", 0, (5,)),
    ]  # fmt: skip
    assert [dataclasses.replace(span, seconds=0.0) for span in second] == [
        dataclasses.replace(span, seconds=0.0) for span in first
    ]
    assert timed.passes() == []


def test_a_call_that_ends_in_an_exception_is_no_span() -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("no")

    class Copes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bad, self.good = Fails(), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.bad(x)
            except ValueError:
                return self.good(x)

    assert list(latency(Copes(), input="3x4x4").layers) == ["good"]


def test_a_device_with_a_queue_is_timed_by_events(monkeypatch: pytest.MonkeyPatch) -> None:
    queue: list[str] = []

    class Event:
        def __init__(self, device: torch.device, enable_timing: bool) -> None:
            assert (device, enable_timing) == (torch.device("cuda", 1), True)

        def record(self) -> None:
            self.at = len(queue)
            queue.append("event")

        def elapsed_time(self, other: Event) -> float:
            return 1000.0 * (other.at - self.at)  # milliseconds

    monkeypatch.setattr(torch, "Event", Event)
    found = clock.clock_of(torch.device("cuda", 1))
    assert isinstance(found, EventClock)
    with Timed(net := nn.Sequential(nn.ReLU()), found) as timed:
        net(torch.zeros(1))
        timed.cut()
    assert [span.seconds for span in timed.passes()[0]] == [1.0, 3.0]
    assert type(clock.clock_of(torch.device("cpu"))) is Clock


def test_another_control_flow_is_refused() -> None:
    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.count = nn.ReLU(), nn.ReLU(), 0

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            return self.one(x) if self.count % 2 else self.two(x)

    with pytest.raises(
        ModelError, match="Moody calls other layers from one pass to the next .*first at '(one|two)'"
    ):
        latency(Moody(), input="3x4x4")
    passes_seen = [[Span("", 0, 1.0)], [Span("a", 0, 1.0), Span("", 0, 1.0)]]
    with pytest.raises(ModelError, match=r"first at '\(root\)'; make its choices fixed"):
        clock.same_calls(passes_seen, "net")


# ---------------------------------------------------------------- the caller's module


@pytest.mark.parametrize("error", [None, ValueError("too late"), KeyboardInterrupt()])
def test_the_callers_module_stays_untouched(error: BaseException | None) -> None:
    calls = []

    class Late(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            calls.append("_call_impl" in vars(self))
            if error is not None and calls[-1]:
                raise error
            return x + torch.rand(())

    late, drop = Late(), nn.Dropout()
    net = nn.Sequential(late, drop).train()
    seen: list[nn.Module] = []
    drop.register_forward_hook(lambda part, *_: seen.append(part))
    before, state = [dict(vars(part)) for part in net.modules()], torch.get_rng_state()
    expected = {None: None, ValueError: ModelError, KeyboardInterrupt: KeyboardInterrupt}
    try:
        latency(net, input="3x4x4")
        raised = None
    except BaseException as caught:
        raised = type(caught)
    assert raised is expected[None if error is None else type(error)]
    assert any(calls)
    assert drop not in seen  # only its copy ran
    assert [dict(vars(part)) for part in net.modules()] == before
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.is_inference_mode_enabled()


# ---------------------------------------------------------------- refusals, of both measures


VERBS = pytest.mark.parametrize("verb", [latency, peak_memory])


@VERBS
@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"batch": 0}, "batch=0 must be a positive whole number"),
        ({"batch": True}, "batch=True must be a positive whole number"),
        ({"batch": 1.5}, "batch=1.5 must be a positive whole number"),
        ({"batch": 2, "example": torch.zeros(1)}, "batch=2 and example= exclude each other"),
        ({"dtype": torch.int32}, r"dtype=torch\.int32 must be a floating type"),
        ({"dtype": "half"}, "dtype='half' must be a floating type"),
        ({"device": "nowhere"}, "device='nowhere' cannot be used here"),
        ({"device": "meta"}, "device='meta' computes nothing"),
    ],
)
def test_bad_arguments(verb: Callable[..., Any], known: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        verb(nn.ReLU(), **({"input": "3x4x4"} | known))


@VERBS
def test_networks_that_cannot_run(verb: Callable[..., Any]) -> None:
    with pytest.raises(
        ModelError, match="tensor '0.weight' of the network is on the meta device, where nothing"
    ):
        verb(nn.Sequential(nn.Conv2d(3, 4, 3, device="meta")), input="3x4x4")
    inside = nn.Sequential(nn.ReLU())
    inside[0].compile(backend="eager")
    with pytest.raises(ModelError, match=r"module '0' was compiled in place \(module.compile\(\)\)"):
        verb(inside, input="3x4x4")
    with pytest.raises(ModelError, match=r"failed .*on an(?: example)? input of shape \[1, 3, 4, 4\]"):
        verb(nn.Conv2d(5, 4, 3), input="3x4x4")


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory."), MemoryError(), RuntimeError("can't allocate memory")],
)
def test_out_of_memory_says_what_to_do(error: Exception) -> None:
    ready = trial.ready(nn.ReLU(), input="3x4x4", batch=2)
    with (
        pytest.raises(
            OutOfMemory, match=r"ReLU does not fit in the memory of cpu .*\[2, 3, 4, 4\]; give a smaller"
        ),
        ready.worded(),
    ):
        raise error


@pytest.mark.parametrize("budget", [-1.0, float("nan"), float("inf"), "2", True])
def test_bad_budgets(budget: Any) -> None:
    with pytest.raises(RequestError, match="budget=.* must be a number of seconds, 0 or more"):
        latency(nn.ReLU(), input="3x4x4", budget=budget)


# ---------------------------------------------------------------- output


def test_prints_and_serializes() -> None:
    layers = {"a\x1b": _row("a\x1b", 2.0, 10**9, 10**8), "": _row("", 0.5, None, None)}
    found = _latency(layers, rest=0.25, total=2.5, note="some layer is out of sight")
    values = json.loads(json.dumps(found.to_dict()))
    assert values["unattributed"] == -0.25
    assert values["layers"][0]["bound"] == "memory"
    assert values["layers"][1]["macs_share"] is None
    assert values["rest"]["address"] == "rest"
    text = io.StringIO()
    Console(file=text, width=200).print(found)
    shown = text.getvalue()
    for part in ("500 MMACs/s", "50.0 %", "(root)", "rest", "unattributed", "-250 ms", "-10.0 %", "peak: 1 GMACs/s",
                 "some layer is out of sight"):  # fmt: skip
        assert part in shown
    assert "\x1b" not in shown
    assert "&lt;b&gt; on 1x3x8x8" in found._repr_html_()
    assert repr(found) == f"Latency('<b>', {found.total}, 2 layers, {found.total.conditions})"
