"""`visualize` as a user calls it: rescue, determinism, endings, and every error."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from convscope.errors import (
    BadInput,
    ConvscopeError,
    ModelError,
    OutOfMemory,
    RequestError,
    UnknownLayer,
    UntrainedWeights,
)
from convscope.features import natural, transform
from convscope.features.objectives import Channel, Custom, Direction, Diversity, Layer, Neuron, TotalVariation
from convscope.features.optimize import Recipe
from convscope.features.parametrization import Fourier, Maco, Pixel
from convscope.features.session import Session, Settings, balanced, fit, stream
from convscope.features.transform import Robust
from convscope.features.unit import Visualization
from convscope.features.visualize import describe, visualize
from convscope.graph import record
from convscope.models import InputSpec, Net, load

SMALL: dict[str, Any] = {"steps": 8, "size": 32}


def same(a: Visualization, b: Visualization) -> bool:
    plain = [[dataclasses.replace(unit, seconds=0.0) for unit in v.units] for v in (a, b)]
    return torch.equal(a.images, b.images) and plain[0] == plain[1]


# ---------------------------------------------------------------- never grey


class Blocked(nn.Module):
    """Starts without any activation: a bias far below zero before the activation function."""

    def __init__(self, act: Callable[[Tensor], Tensor], bias: float = -2.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 5, padding=2)
        self.act = act if isinstance(act, nn.Module) else None
        self.function = act
        self.last = nn.Conv2d(4, 3, 1, bias=False)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            self.conv.weight.copy_(torch.randn(4, 3, 1, 1, generator=generator).expand(4, 3, 5, 5) * 0.2)
            assert self.conv.bias is not None
            self.conv.bias.fill_(bias)
            self.conv.bias[3] = -1e3  # nothing can excite this one
            self.last.weight.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.body(x))
        return out

    def body(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x - 0.5) * 1.0)


class Named(nn.Module):
    """Makes the value after a functional activation a layer."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner = Blocked(act)
        self.inner.forward = self.inner.body  # type: ignore[method-assign]
        self.last = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.inner(x))
        return out


FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "ReLU": nn.ReLU(),
    "ReLU inplace": nn.ReLU(inplace=True),
    "ReLU6": nn.ReLU6(inplace=True),
    "F.relu": functional.relu,
    "clamp": lambda x: x.clamp(min=0),
    "clamp_": lambda x: x.clamp_(0, 6),
    "hardswish": lambda x: functional.hardswish(x - 1.5),
    "threshold": lambda x: functional.threshold(x, 0.0, 0.0),
    "hardtanh": lambda x: functional.hardtanh(x, 0.0, 4.0),
    "maximum": lambda x: torch.maximum(x, torch.zeros_like(x)),  # not known as an activation: a restart
    "product": lambda x: x * (x > 0),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_blocked_unit_is_rescued_and_a_dead_one_labelled(form: str, make_net: Callable[..., Net]) -> None:
    net = make_net(Named(FORMS[form]), (3, 32, 32))
    steps = 128 if form == "hardswish" else 24  # it must cross a valley
    found = visualize(net, "inner", [0, 1, 2, 3], steps=steps, size=32)
    alive = 2 if form == "hardswish" else 3  # at its best the third is hardly above zero
    for unit, image in zip(found.units[:alive], found.images, strict=False):
        assert unit.status in ("budget", "converged"), unit
        assert unit.activation > 0.1
        assert unit.peak > 0.1
        assert image.std() > 12 / 255
        assert not unit.flags or "dead" not in unit.flags
    assert found.units[3].status == "dead"
    assert found.units[3].flags == ("dead",)


def test_behind_two_blocked_activations(make_net: Callable[..., Net]) -> None:
    module = nn.Sequential(
        Blocked(nn.ReLU(inplace=True)), nn.Conv2d(3, 2, 3, bias=True), nn.ReLU(inplace=True)
    )
    nn.init.constant_(module[1].weight, 0.3)
    nn.init.constant_(module[1].bias, -0.5)
    unit = visualize(make_net(module, (3, 32, 32)), "2", [0], steps=24, size=32).units[0]
    assert unit.activation > 0


def test_no_grey_picture_of_the_tiny_net(tiny: Net) -> None:
    """The promise for VGG-16 in the small: every unit that photographs of its world excite has a picture."""
    from tiny import SPEC, pictures

    seen, _ = pictures(256, seed=3)
    for layer in ("relu1", "relu2", "relu3"):
        found = visualize(tiny, layer, range(12), steps=32)
        private = tiny.copy()
        kept: list[Tensor] = []
        handle = private.get_submodule(layer).register_forward_hook(
            lambda *a, kept=kept: kept.append(a[2].clone())
        )
        with torch.no_grad():
            private(SPEC.normalize(seen))
        handle.remove()
        means = kept[0].flatten(2).mean(2)  # [image, channel]
        for unit, image in zip(found.units, found.images, strict=True):
            if kept[0][:, unit.channel].max() <= 0:
                continue
            assert unit.status != "dead"
            assert float(image.std()) > 12 / 255
            assert unit.activation > float(means[:, unit.channel].median())


class Logarithm(nn.Module):
    """Channel 0 is NaN where its input is over a limit, the others are fine."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)
        self.limit = limit
        nn.init.constant_(self.conv.weight[:1].detach(), 0.5)  # 6.75 on grey

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return torch.cat([y[:, :1] + 0 * (self.limit - y[:, :1]).log(), y[:, 1:]], 1)


def test_a_unit_that_turns_nan_ends_alone(make_net: Callable[..., Net]) -> None:
    net = make_net(nn.Sequential(Logarithm(-50.0), nn.Conv2d(3, 3, 1)), (3, 32, 32))
    found = visualize(net, "0", range(3), size=32, steps=24)
    assert [unit.status for unit in found.units] == ["nan", "budget", "budget"]
    assert found.images.isfinite().all()
    alone = visualize(net, "0", [1, 2], size=32, steps=24)
    for unit, other in zip(found.units[1:], alone.units, strict=True):
        assert unit.activation == pytest.approx(other.activation, rel=1e-3)
    compared = visualize(net, "0", [0, 1], data="photographs", **SMALL)
    assert compared.units[0].ratio is None
    assert compared.units[1].natural_max is not None
    json.dumps(compared.units[1].to_dict(), allow_nan=False)


def test_a_unit_that_turns_nan_on_the_way_keeps_its_last_good_picture(make_net: Callable[..., Net]) -> None:
    net = make_net(nn.Sequential(Logarithm(9.0), nn.Conv2d(3, 3, 1)), (3, 32, 32))
    found = visualize(net, "0", [0], size=32, steps=48)
    assert found.units[0].status == "nan"
    assert found.units[0].activation == found.units[0].activation  # of the picture it still could make
    assert found.images.isfinite().all()
    assert found.images.std() > 0


# ---------------------------------------------------------------- determinism


def test_the_same_call_gives_the_same_bits(tiny: Net) -> None:
    first, again = (visualize(tiny, "relu2", [0, 3, 5], seeds=2, **SMALL) for _ in range(2))
    assert same(first, again)
    torch.manual_seed(123)
    assert same(first, visualize(tiny, "relu2", [0, 3, 5], seeds=2, **SMALL))
    assert not torch.equal(first.images, visualize(tiny, "relu2", [0, 3, 5], seeds=2, seed=1, **SMALL).images)


@pytest.mark.parametrize("kind", [Pixel(), Fourier(), Maco()], ids=lambda k: type(k).__name__)
def test_starts_and_moves_do_not_depend_on_batch_mates(tiny: Net, kind: Any) -> None:
    """At a rate of nothing the picture is its start, and the curve is what its moves made of it."""
    settings: dict[str, Any] = {
        "recipe": Recipe(steps=4, learning_rate=1e-30),
        "size": 32,
        "parametrization": kind,
    }
    many = visualize(tiny, "relu2", [7, 2, 5], seeds=2, **settings)
    one = visualize(tiny, "relu2", [5], seeds=1, **settings)
    row = next(k for k, unit in enumerate(many.units) if (unit.channel, unit.seed) == (5, 0))
    assert torch.equal(many.images[row], one.images[0])
    for (step, value), (other, alone) in zip(many.units[row].curve, one.units[0].curve, strict=True):
        assert step == other
        assert value == pytest.approx(alone, rel=1e-4, abs=1e-6)
    starts = many.images.flatten(1)
    assert len({tuple(start[:8].tolist()) for start in starts}) == 6


def test_streams_are_named() -> None:
    def first(*args: Any) -> float:
        return float(torch.rand((), generator=stream(*args)))

    every = [
        first(0, "a/1/0", "noise"),
        first(1, "a/1/0", "noise"),
        first(0, "a/1/1", "noise"),
        first(0, "a/1/0", "moves"),
    ]
    assert len(set(every)) == 4
    assert every[0] == first(0, "a/1/0", "noise")


# ---------------------------------------------------------------- endings


def test_a_unit_that_stops_growing_ends_early(make_net: Callable[..., Net]) -> None:
    class Peaked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 1 - (x - 0.7).square()

    net = make_net(nn.Sequential(Peaked(), nn.Conv2d(3, 2, 1)), (3, 32, 32))
    found = visualize(net, "0", [0, 1], steps=200, size=24)
    for unit in found.units:
        assert unit.status == "converged"
        assert unit.steps < 200
        assert unit.curve[-1][0] == unit.steps
    whole = visualize(net, "0", [0], size=24, recipe=Recipe(steps=40, tolerance=0.0)).units[0]
    assert (whole.status, whole.steps) == ("budget", 40)


def test_the_curve_grows_and_ends_at_the_last_step(tiny: Net) -> None:
    unit = visualize(tiny, "relu2", [1], steps=48).units[0]
    assert unit.curve[-1][0] == unit.steps
    assert len(unit.curve) <= 32
    assert unit.curve[-1][1] > unit.curve[0][1]
    assert [step for step, _ in unit.curve] == sorted({step for step, _ in unit.curve})


def stop_at(number: int) -> Callable[[dict[str, Any]], None]:
    calls = 0

    def progress(_: dict[str, Any]) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("call", range(1, 8))
def test_ctrl_c_keeps_what_is_finished(tiny: Net, call: int) -> None:
    """8 steps are 3 looks, and one event at the end of each of two batches."""
    whole = visualize(tiny, "relu2", [0, 1], batch=1, **SMALL)
    found = visualize(tiny, "relu2", [0, 1], batch=1, progress=stop_at(call), **SMALL)
    assert found.interrupted
    assert found.units
    for unit, image, image_whole in zip(found.units, found.images, whole.images, strict=False):
        if unit.status == "interrupted":
            assert unit.steps < 8 or call in (3, 7)
            assert unit.activation == unit.activation
        else:
            assert torch.equal(image, image_whole)
    if call <= 3:
        assert [unit.status for unit in found.units] == ["interrupted"]
    elif call == 4:
        assert [unit.status for unit in found.units] == ["budget"]
    else:
        assert found.units[0].status == "budget"


def test_ctrl_c_during_a_restart_keeps_the_batch(make_net: Callable[..., Net]) -> None:
    net = make_net(Named(FORMS["product"]), (3, 32, 32))  # only a restart helps here
    count = 0

    def counting(_: dict[str, Any]) -> None:
        nonlocal count
        count += 1

    visualize(net, "inner", [0, 1], progress=counting, **SMALL)
    assert count > 4  # 3 looks, 3 of the restart, the end
    found = visualize(net, "inner", [0, 1], progress=stop_at(5), **SMALL)
    assert found.interrupted
    assert len(found.units) == 2
    assert "interrupted" in {unit.status for unit in found.units}


def test_progress_tells_how_far(tiny: Net) -> None:
    events: list[dict[str, Any]] = []
    visualize(tiny, "relu2", [0, 1, 2], batch=2, progress=events.append, **SMALL)
    assert {event["total"] for event in events} == {3}
    assert [event["done"] for event in events] == sorted(event["done"] for event in events)
    assert events[-1]["done"] == 3
    assert events[-1]["seconds_left"] == 0
    assert {event["layer"] for event in events} == {"relu2"}


# ---------------------------------------------------------------- memory


def test_a_batch_that_does_not_fit_is_halved(tiny: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = visualize(tiny, "relu2", [0, 1, 2, 3, 4], batch=2, **SMALL)
    original = Session._draw

    def narrow(self: Session, wanted: Any, *rest: Any) -> Any:
        if len(wanted) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, wanted, *rest)

    monkeypatch.setattr(Session, "_draw", narrow)
    found = visualize(tiny, "relu2", [0, 1, 2, 3, 4], batch=8, **SMALL)
    assert [unit.channel for unit in found.units] == [0, 1, 2, 3, 4]
    assert found.settings["halvings"] == ["5 units of relu2 at 32x32", "3 units of relu2 at 32x32"]
    torch.testing.assert_close(found.images, whole.images, atol=0.02, rtol=0)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_one_unit_that_does_not_fit_is_an_error(
    tiny: Net, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(Session, "_draw", refuse)
    with pytest.raises(
        OutOfMemory, match=r"1 units of relu2 at 32x32 do not fit in memory; give a smaller size="
    ):
        visualize(tiny, "relu2", [0, 1], **SMALL)


def test_another_runtime_error_passes(tiny: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise RuntimeError("something else")

    monkeypatch.setattr(Session, "_draw", refuse)
    with pytest.raises(RuntimeError, match="something else"):
        visualize(tiny, "relu2", [0, 1], **SMALL)


# ---------------------------------------------------------------- canvas, types, what is returned


def test_the_canvas(tiny: Net) -> None:
    session = Session(tiny, ["relu1", "fc"], Settings.default())
    assert session.canvas(["relu1"], "auto") == (48, 48)  # a field of 5 pixels and 16 of room
    assert session.canvas(["fc"], "auto") == (128, 128)  # sees the whole image
    assert session.canvas(["relu1"], 20) == (20, 20)
    assert session.canvas(["relu1"], (20, 31)) == (20, 31)
    assert session.canvas(["relu1"], [20, 31]) == (20, 31)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=r"size=1x1: the network does not run up to 'fc' at this size"):
        session.canvas(["fc"], 1)
    for wrong in (0, -3, (3,), "large", (8.0, 8.0)):
        with pytest.raises(BadInput, match="must be 'auto', a number of pixels or"):
            session.canvas(["fc"], wrong)  # type: ignore[arg-type]


def test_a_network_of_one_size_is_drawn_at_it(make_net: Callable[..., Net]) -> None:
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 26 * 26, 5))
    net = make_net(module, (1, 28, 28))
    assert visualize(net, "2", [1], steps=2).images.shape == (1, 1, 28, 28)
    assert visualize(net, "0", [1], steps=2).images.shape == (1, 1, 48, 48)


def test_what_a_batch_may_hold(tiny: Net) -> None:
    session = Session(tiny, ["fc"], Settings.default())
    assert session.batch(["fc"], (64, 64), 5) == 5
    assert 1 <= session.batch(["fc"], (64, 64)) <= 8
    for wrong in (0, -1, "many", True):
        with pytest.raises(BadInput, match="must be 'auto' or a positive integer"):
            session.batch(["fc"], (64, 64), wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_types_agree(tiny: Net, dtype: str) -> None:
    found = visualize(tiny, "relu3", [0, 1], steps=32, size=48, dtype=dtype)
    usual = visualize(tiny, "relu3", [0, 1], steps=32, size=48, dtype="float32")
    assert found.settings["dtype"] == dtype
    assert found.images.dtype == torch.float32
    for unit, other in zip(found.units, usual.units, strict=True):
        assert unit.activation == pytest.approx(other.activation, rel=0.15)


def test_scores_are_what_they_say(tiny: Net) -> None:
    found = visualize(tiny, "relu2", [1, 4], regularize=2.0 * TotalVariation(), steps=16, size=32)
    private = tiny.copy()
    kept: list[Tensor] = []
    handle = private.get_submodule("relu2").register_forward_hook(lambda *a: kept.append(a[2].clone()))
    with torch.no_grad():
        private(tiny.input.normalize(found.images))
    handle.remove()
    for row, unit in enumerate(found.units):
        values = kept[0][row, unit.channel]
        assert unit.activation == pytest.approx(float(values.mean()), rel=1e-4)  # without the regularizer
        assert unit.peak == pytest.approx(float(values.max()), rel=1e-4)
        assert 0 < unit.robust < 2 * unit.activation


def test_regularizing_smooths(tiny: Net) -> None:
    def variation(**more: Any) -> float:
        images = visualize(tiny, "relu1", [0, 1], steps=32, size=32, **more).images
        return float((images[..., 1:] - images[..., :-1]).abs().mean())

    assert variation(regularize=50.0 * TotalVariation()) < 0.5 * variation()


def test_a_start_is_where_it_starts(tiny: Net) -> None:
    start = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05
    still = Recipe(steps=1, learning_rate=1e-30)
    found = visualize(tiny, "relu1", [0, 1], start=start, recipe=still, size=32)
    torch.testing.assert_close(found.images, start.expand(2, -1, -1, -1), atol=1e-3, rtol=0)
    larger = visualize(tiny, "relu1", [0], start=start, recipe=still, size=48).images
    torch.testing.assert_close(larger[0], fit(start, (48, 48)).clamp(0.01, 0.99), atol=2e-3, rtol=0)


def test_seeds_agree_with_themselves(tiny: Net) -> None:
    found = visualize(tiny, "relu3", [0, 1], seeds=3, steps=24)
    assert [(u.channel, u.seed) for u in found.units] == [(c, s) for c in (0, 1) for s in range(3)]
    assert all(u.agreement is not None and -1 <= u.agreement <= 1.001 for u in found.units)
    assert len({u.agreement for u in found.units if u.channel == 0}) == 1
    assert visualize(tiny, "relu3", [0], steps=2).units[0].agreement is None


def test_more_objectives_of_a_whole_layer_than_it_has_channels() -> None:
    net = load(nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()), input=InputSpec((3, 24, 24)))
    found = visualize(net, objective=[Layer("0")] * 3, random=True, **SMALL)
    assert [unit.channel for unit in found.units] == [0, 1, 2]
    assert [unit.label for unit in found.units] == [None] * 3
    # the channel of another layer names no channel of this one
    other = visualize(net, "1", objective=[Channel("0", 1)], random=True, **SMALL)
    assert other.units[0].layer == "1"


def test_two_objectives_on_one_channel_are_two_units(tiny: Net) -> None:
    found = visualize(tiny, objective=[Channel("relu2", 3), Channel("relu2", 3) - TotalVariation()], **SMALL)
    assert [unit.agreement for unit in found.units] == [None, None]


def test_diversity_drives_seeds_apart(tiny: Net) -> None:
    plain = visualize(tiny, objective=Channel("relu3", 2), seeds=2, steps=48)
    apart = visualize(tiny, objective=Channel("relu3", 2) + 5.0 * Diversity("relu3"), seeds=2, steps=48)
    assert plain.units[0].agreement is not None
    assert apart.units[0].agreement is not None
    assert apart.units[0].agreement < plain.units[0].agreement


def test_labels_stand_at_the_output_only(tiny: Net) -> None:
    assert [u.label for u in visualize(tiny, "fc", [4, 6], steps=2).units] == ["red disc", "square"]
    assert visualize(tiny, "relu3", [4], steps=2).units[0].label is None


OBJECTIVES: dict[str, Any] = {
    "class": {"layer": "relu2", "channels": [3], "objective": Neuron},
    "value": {"objective": Neuron("relu2", 3, (1, 2))},
    "list": {"objective": [Channel("relu1", 1), Layer("relu3"), Direction("relu2", tuple(range(24)))]},
    "algebra": {"objective": Channel("relu1", 1) * 0.5 - 0.1 * Channel("relu3", 2)},
    "function": {"layer": "relu2", "objective": lambda seen: seen["relu2"].flatten(1).mean(1)},
    "custom": {
        "objective": Custom(
            lambda seen: seen["relu2"].amax((1, 2, 3)) + seen["fc"][:, 0, 0, 0], ("relu2", "fc")
        )
    },
    "stages": {"objective": Channel("relu2:pre", 0) + Channel("conv1:post", 1)},
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_of_every_form(tiny: Net, name: str) -> None:
    found = visualize(tiny, **OBJECTIVES[name], **SMALL)
    assert len(found) == (3 if name == "list" else 1)
    assert found.images.isfinite().all()
    assert all(unit.status != "dead" for unit in found.units)


@pytest.mark.parametrize(
    "robust", [transform.NONE, transform.LUCID, Robust(views=2, noise=0.05), Robust(pad=3, border=0.5)]
)
def test_transforms_of_every_form(tiny: Net, robust: Robust) -> None:
    found = visualize(tiny, "relu2", [0, 1], transforms=robust, **SMALL)
    assert found.images.shape == (2, 3, 32, 32)
    assert same(found, visualize(tiny, "relu2", [0, 1], transforms=robust, **SMALL))


def test_blur(tiny: Net) -> None:
    found = visualize(tiny, "relu2", [0], recipe=Recipe(steps=12, blur=1.0, blur_every=2), size=32)
    assert found.units[0].activation > 0
    with pytest.raises(RequestError, match="blur cannot be combined with Maco"):
        visualize(tiny, "relu2", [0], recipe=Recipe(steps=12, blur=1.0), parametrization=Maco(), size=32)


def test_natural_images_fill_in_scores(tiny: Net) -> None:
    found = visualize(tiny, "relu3", [0, 1], data="photographs", steps=32)
    for unit in found.units:
        assert unit.natural_max is not None
        assert unit.percentile is not None
        if unit.natural_max > 0:
            assert unit.ratio == pytest.approx(unit.peak / unit.natural_max)
            assert ("weak" in unit.flags) == (unit.ratio < 0.5)


def test_a_visualization_shows_itself(tiny: Net) -> None:
    from rich.console import Console

    found = visualize(tiny, "fc", [0, 1], **SMALL)
    assert repr(found) == "Visualization(2 units of fc, 32x32 pixels)"
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(found)
    console.file.close()
    assert "horizontal" in console.export_text()
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert content["size"] == [32, 32]
    assert content["units"][1]["label"] == "vertical"
    assert "<img" in found._repr_html_()


def test_settings_tell_matrices_apart() -> None:
    plain = Settings.default()
    a, b = (
        dataclasses.replace(plain, parametrization=Fourier(color=m))
        for m in (torch.eye(3), torch.eye(3).flip(0))
    )
    assert describe(a) != describe(b)
    assert describe(a) == describe(dataclasses.replace(plain, parametrization=Fourier(color=torch.eye(3))))
    assert json.dumps(describe(a))


# ---------------------------------------------------------------- the user's network


@pytest.mark.parametrize("ending", ["success", "error", "ctrl-c"])
def test_the_network_is_left_as_it_was(make_net: Callable[..., Net], ending: str) -> None:
    """conftest's guard compares hooks, grads, modes and the random state around every verb; here in train mode too."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    module.train()
    module[1].eval()
    module[0].weight.grad = torch.ones_like(module[0].weight)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    spec = InputSpec(shape=(3, 32, 32))
    if ending == "success":
        visualize(module, "2", [0], input=spec, **SMALL)
    elif ending == "error":
        with pytest.raises(RequestError):
            visualize(module, "2", [9], input=spec, **SMALL)
    else:
        assert visualize(module, "2", [0], input=spec, progress=stop_at(1), **SMALL).interrupted
    assert [part.training for part in module.modules()] == [True, True, False, True]
    assert module[0].weight.requires_grad
    assert module[0].weight.grad is not None
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])


def test_what_is_switched_on_around_changes_nothing(tiny: Net) -> None:
    wanted = visualize(tiny, "relu2", [0], **SMALL)
    for around in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        with around:
            assert same(visualize(tiny, "relu2", [0], **SMALL), wanted)
    torch.set_default_dtype(torch.float64)
    try:
        assert same(visualize(tiny, "relu2", [0], **SMALL), wanted)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_channels_may_be_integers_of_any_library(tiny: Net) -> None:
    for asked in (range(2), np.arange(2), torch.arange(2), (np.int64(0), 1)):
        assert [unit.channel for unit in visualize(tiny, "relu2", asked, steps=1).units] == [0, 1]  # type: ignore[arg-type]
    assert type(visualize(tiny, "relu2", np.int64(3), steps=1).units[0].channel) is int  # type: ignore[arg-type]


# ---------------------------------------------------------------- errors


ERRORS: dict[str, tuple[dict[str, Any], type[ConvscopeError], str]] = {
    "no layer": ({}, RequestError, "layer is missing; name a layer"),
    "unknown": ({"layer": "relu7"}, UnknownLayer, "did you mean"),
    "several": (
        {"layer": "relu*"},
        RequestError,
        r"layer='relu\*' matches 3 layers, 'relu1' and 'relu2' among them",
    ),
    "channel": (
        {"layer": "fc", "channels": [8]},
        RequestError,
        "channel=8 does not exist in layer 'fc'; give 0 to 7",
    ),
    "negative": ({"layer": "fc", "channels": -1}, RequestError, "channel=-1 does not exist"),
    "no channel": ({"layer": "fc", "channels": []}, RequestError, "channels is empty"),
    "steps": ({"layer": "fc", "steps": 0}, RequestError, "steps=0 must be a positive integer"),
    "seeds": ({"layer": "fc", "seeds": 0}, RequestError, "seeds=0 must be a positive integer"),
    "size": ({"layer": "fc", "size": "big"}, BadInput, "size='big' must be 'auto'"),
    "batch": ({"layer": "fc", "batch": 0}, BadInput, "batch=0 must be"),
    "device": ({"layer": "fc", "device": "gpu"}, RequestError, "device='gpu' cannot be used here"),
    "seed": ({"layer": "fc", "seed": "a"}, RequestError, "seed='a' must be an integer"),
    "parametrization": (
        {"layer": "fc", "parametrization": Fourier},
        RequestError,
        r"must be Fourier\(\), Pixel\(\)",
    ),
    "transforms": ({"layer": "fc", "transforms": 3}, RequestError, r"transforms=3 must be a Robust\(\)"),
    "recipe": ({"layer": "fc", "recipe": 3}, RequestError, r"recipe=3 must be a Recipe\(\)"),
    "dtype": ({"layer": "fc", "dtype": "int8"}, RequestError, "dtype='int8' must be one of"),
    "start": (
        {"layer": "fc", "start": torch.zeros(1, 8, 8)},
        RequestError,
        r"start of shape \(1, 8, 8\) must be",
    ),
    "start nan": ({"layer": "fc", "start": torch.full((3, 8, 8), torch.nan)}, RequestError, "finite picture"),
    "both": ({"channels": [0], "objective": Channel("fc", 0)}, RequestError, "were both given"),
    "no objective": ({"objective": []}, RequestError, "at least one"),
    "reads nothing": ({"objective": TotalVariation()}, RequestError, "reads no layer"),
    "number": ({"layer": "fc", "objective": 3}, RequestError, "objective=3 must be an objective"),
    "wrong channel": (
        {"objective": Channel("fc", 99)},
        RequestError,
        "channel=99 does not exist in layer 'fc'",
    ),
    "data": (
        {"layer": "fc", "data": "no/such/folder", "steps": 1},
        RequestError,
        "'no/such/folder' does not exist",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_what_is_wrong(tiny: Net, name: str) -> None:
    arguments, kind, message = ERRORS[name]
    with pytest.raises(kind, match=message):
        visualize(tiny, **arguments)


RECIPES: list[tuple[dict[str, Any], str]] = [
    ({"steps": 2.5}, "steps=2.5 must be a positive integer"),
    ({"steps": True}, "steps=True must be"),
    ({"learning_rate": 0}, "learning_rate=0 must be positive"),
    ({"warmup": 0.7, "cooldown": 0.5}, "shares that add up to 1"),
    ({"warmup": -0.1}, "shares"),
    ({"blur": -1}, "blur and tolerance must be 0 or more"),
    ({"blur_every": 0}, "blur_every 1 or more"),
]


@pytest.mark.parametrize(("wrong", "message"), RECIPES)
def test_a_wrong_recipe_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Recipe(**wrong)


def test_the_rate_rises_holds_and_falls() -> None:
    recipe = Recipe(steps=100, learning_rate=1.0, warmup=0.3, cooldown=0.2)
    rates = [recipe.rate(step, cool_from=80) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 30)
    assert rates[29:80] == [1.0] * 51
    assert rates[80] == 1.0
    assert rates[90] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.05)


def test_untrained_weights_are_refused(make_net: Callable[..., Net]) -> None:
    net = make_net(nn.Sequential(nn.Conv2d(3, 4, 3)), trained=False)
    with pytest.raises(UntrainedWeights):
        visualize(net, "0", [0], **SMALL)
    assert len(visualize(net, "0", [0], random=True, **SMALL)) == 1


def test_a_layer_without_a_gradient_is_named(make_net: Callable[..., Net]) -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).detach()

    with pytest.raises(ModelError, match="layer '0' passes no gradient to the picture"):
        visualize(make_net(nn.Sequential(Detached(), nn.ReLU())), "0", [0], **SMALL)


def test_small_helpers() -> None:
    assert [len(piece) for piece in balanced(range(9), 4)] == [3, 3, 3]
    assert balanced([], 4) == [[]]
    picture = torch.rand(3, 20, 40)
    assert fit(picture, (10, 10)).shape == (3, 10, 10)
    torch.testing.assert_close(fit(picture, (20, 40)), picture)
    assert record is not None
    assert natural.BINS % 2 == 0
