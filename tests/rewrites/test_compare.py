"""Comparing: no difference where there is none, a known one found where it is, statistics by hand, every way to show it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from syrupy.assertion import SnapshotAssertion
from torch import nn

import convscope
from convscope.errors import BadInput, ModelError, RequestError, UnknownLayer
from convscope.models import Net
from convscope.rewrites import compare as compare_module
from convscope.rewrites import units
from convscope.rewrites.compare import compare, compare_all
from convscope.rewrites.compare_several import Point, marked
from convscope.rewrites.paired import _lower_tail, clopper_pearson, difference, mcnemar
from convscope.rewrites.rewrite import rewrite

QUICK: dict[str, Any] = {"latency": False, "memory": False, "fields": False}


def twin(net: Net, change: Callable[[Any], None] = lambda module: None) -> Net:
    module = net.copy()
    with torch.no_grad():
        change(module)
    return Net(module, net.input, net.labels, "twin", trained=True)


def pictures(count: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    from tiny import SPEC
    from tiny import pictures as drawn

    images, labels = drawn(count, 7)
    return SPEC.normalize(images), labels


# ---------------------------------------------------------------- what differs


def test_identical_networks_differ_by_nothing(tiny: Net) -> None:
    x, labels = pictures()
    found = compare(tiny, twin(tiny), x, labels=labels, **QUICK)
    assert found.outputs is not None
    assert (found.outputs.max, found.outputs.relative, found.outputs.rms) == (0, 0, 0)
    assert found.agreement is not None
    assert found.agreement.value == 1
    assert found.outputs.cosine.value == pytest.approx(1)
    assert found.first is None
    assert [row.layer for row in found.layers] == [
        "conv1", "bn1", "relu1", "pool", "conv2", "bn2", "relu2", "conv3", "bn3", "relu3", "gap", "fc",
    ]  # fmt: skip
    assert all(row.rms == row.largest == 0 for row in found.layers)
    assert found.accuracy is not None
    assert (found.accuracy.only_a, found.accuracy.only_b, found.accuracy.p_value) == (0, 0, 1)
    assert {figure.ratio for figure in found.figures.values() if figure.key != "accuracy"} == {1.0}


def test_a_known_change_is_found_where_it_is(tiny: Net) -> None:
    def change(module: Any) -> None:
        module.bn2.weight.mul_(1.25)
        module.bn2.bias.mul_(1.25)

    other = twin(tiny, change)
    x, labels = pictures()
    found = compare(tiny, other, x, labels=labels, **QUICK)
    assert found.first == "bn2"
    rows = {row.layer: row for row in found.layers}
    assert all(rows[name].rms == 0 for name in ("conv1", "bn1", "relu1", "pool", "conv2"))
    assert rows["bn2"].rms == pytest.approx(0.25, rel=1e-5)
    assert rows["relu2"].rms == pytest.approx(0.25, rel=1e-5)
    assert rows["relu2"].largest == pytest.approx(0.25, rel=1e-5)
    with torch.no_grad():
        y, z = tiny.module(x), other.module(x)
    assert found.outputs is not None
    assert found.agreement is not None
    assert found.accuracy is not None
    assert found.outputs.max == pytest.approx(float((y - z).abs().max()))
    assert found.outputs.relative == pytest.approx(float((y - z).abs().max() / y.abs().max()))
    assert found.outputs.rms == pytest.approx(float((y - z).norm() / y.norm()))
    assert found.outputs.cosine.value == pytest.approx(float(torch.cosine_similarity(y, z).mean()))
    assert found.agreement.value == float((y.argmax(1) == z.argmax(1)).double().mean())
    assert found.accuracy.b.value == float((z.argmax(1) == labels).double().mean())
    assert rows["fc"].rms == pytest.approx(found.outputs.rms, rel=1e-5)


def test_rounding_is_no_difference(tiny: Net) -> None:
    nearly = twin(tiny, lambda module: module.conv1.weight.mul_(1 + 1e-6))
    found = compare(tiny, nearly, pictures()[0], **QUICK)
    assert found.first is None
    assert found.layers[0].rms > 0
    assert compare(tiny, nearly, pictures()[0], tolerance=0, **QUICK).first == "conv1"


def test_batches_make_no_difference(tiny: Net) -> None:
    other = twin(tiny, lambda module: module.conv2.weight.mul_(1.1))
    x = pictures(11)[0]
    found = [compare(tiny, other, x, batch=batch, **QUICK).to_dict() for batch in (11, 4)]
    for first, second in zip(*(each["layers"] for each in found), strict=True):
        assert first["rms"] == pytest.approx(second["rms"], rel=1e-5)


def test_maps_of_other_shapes_and_layers_of_one_network_only() -> None:
    torch.manual_seed(0)
    a = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    b = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    x = torch.randn(3, 3, 8, 8)
    found = compare(a, b, x, input="3x8x8", **QUICK)
    assert found.apart == {"0": ((4, 8, 8), (4, 6, 6)), "1": ((4, 8, 8), (4, 6, 6))}
    assert [row.layer for row in found.layers] == ["2"]
    assert found.outputs is None
    assert found.agreement is None
    assert found.notes == ("the outputs have the shapes [4] and [4, 1, 1], and are not compared",)
    json.dumps(found.to_dict(), allow_nan=False)


def test_networks_of_different_inputs_see_the_same_images() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    a = Net(module.eval(), convscope.InputSpec((3, 16, 16)))
    b = Net(module, convscope.InputSpec((3, 16, 16), mean=0.5, std=0.5))  # type: ignore[arg-type]
    found = compare(a, b, limit=3, **QUICK)
    assert found.source == "photographs"
    assert found.outputs is not None
    assert found.outputs.max > 0.01
    assert compare(a, a, limit=3, **QUICK).outputs.max == 0  # type: ignore[union-attr]


# ---------------------------------------------------------------- labels


def classes(folder: Path, names: list[str]) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
        for k in range(2):
            Image.new("RGB", (40, 36), (60 * k, 90, 200)).save(folder / name / f"{k}.png")
    return folder


def test_class_folders_are_matched_to_the_networks_labels(tiny: Net, tmp_path: Path) -> None:
    folder = classes(tmp_path, ["Red_disc", "square"])
    found = compare(tiny, twin(tiny), folder, **QUICK)
    assert found.accuracy is not None
    assert found.accuracy.images == 4
    by_name = {
        f"{name}/{k}.png": label for name, label in (("Red_disc", "red disc"), ("square", 6)) for k in (0, 1)
    }
    again = compare(tiny, tiny, folder, labels=by_name, **QUICK)
    assert again.accuracy is not None
    assert again.accuracy.a == found.accuracy.a
    in_order = compare(tiny, tiny, folder, labels=[4, 4, 6, 6], limit=2, **QUICK)
    assert in_order.accuracy is not None
    assert in_order.accuracy.images == 2
    (folder / "left.png").write_bytes((folder / "square" / "0.png").read_bytes())
    stray = compare(tiny, tiny, folder, **QUICK)
    assert stray.notes == ("no accuracy: image 'left.png' lies in no class folder",)


def test_folders_that_are_no_classes_are_told(tiny: Net, tmp_path: Path) -> None:
    folder = classes(tmp_path, ["square", "hexagon"])
    (folder / "square" / "broken.png").write_bytes(b"no picture")
    found = compare(tiny, tiny, folder, **QUICK)
    assert found.accuracy is None
    assert found.images == 4
    assert [note.partition(";")[0] for note in found.notes] == [
        "no accuracy: folder 'hexagon' is no class of tiny (1 of 2 are none)",
        "1 files could not be read",
    ]
    unnamed = Net(tiny.module, tiny.input)
    assert "has no class names" in compare(unnamed, unnamed, folder, **QUICK).notes[0]


def test_labels_are_checked(tiny: Net, tmp_path: Path) -> None:
    x, labels = pictures(8)
    with pytest.raises(RequestError, match=r"labels must be 8 whole numbers.* got list of shape \[3\]"):
        compare(tiny, tiny, x, labels=[1, 2, 3], **QUICK)
    with pytest.raises(RequestError, match="labels must be 8 whole numbers"):
        compare(tiny, tiny, x, labels=labels.float(), **QUICK)
    with pytest.raises(RequestError, match="labels must be 8 whole numbers"):
        compare(tiny, tiny, x, labels=["a"] * 8, **QUICK)
    found = compare(tiny, tiny, x, labels=labels * 0 + 8, **QUICK)
    assert found.notes == ("no accuracy: labels go from 8 to 8, of 8 classes",)
    folder = classes(tmp_path, ["square"])
    with pytest.raises(RequestError, match=r"labels has no entry for image 'square/1.png'"):
        compare(tiny, tiny, folder, labels={"square/0.png": 0}, **QUICK)
    with pytest.raises(RequestError, match="label 'hexagon' must be a class number"):
        compare(
            tiny, tiny, folder, labels=dict.fromkeys(["square/0.png", "square/1.png"], "hexagon"), **QUICK
        )
    dense = nn.Sequential(nn.Conv2d(3, 4, 3))
    unscored = compare(dense, dense, x, labels=labels, input="3x32x32", **QUICK)
    assert unscored.notes == ("no accuracy: the output of Sequential is no class scores",)


def test_a_part_of_a_tensor_is_drawn_by_chance(tiny: Net) -> None:
    """Even steps through labels that take turns would only see some of the classes."""
    from convscope.rewrites.feed import Feed

    x = torch.zeros(2000, 3, 32, 32)
    feed = Feed([tiny, tiny], x, torch.arange(2000) % 8, limit=500)
    assert feed.labels is not None
    assert len(feed) == 500
    assert int(torch.bincount(feed.labels, minlength=8).min()) > 30


# ---------------------------------------------------------------- statistics


def test_mcnemar_by_hand() -> None:
    assert mcnemar(0, 5) == 2 / 32
    assert mcnemar(5, 0) == 2 / 32
    assert mcnemar(2, 8) == 2 * (1 + 10 + 45) / 1024
    assert mcnemar(4, 4) == mcnemar(0, 0) == 1
    assert difference(0, 0, 10).to_dict() == {"value": 0, "low": 0, "high": 0}
    assert difference(2, 8, 100).value == 0.06


@given(st.integers(0, 40), st.integers(1, 40))
def test_intervals_are_where_their_tails_are(hits: int, more: int) -> None:
    tries = hits + more
    low, high = clopper_pearson(hits, tries)
    exact = lambda k, p: sum(math.comb(tries, i) * p**i * (1 - p) ** (tries - i) for i in range(k + 1))  # noqa: E731
    assert _lower_tail(hits, tries, 0.3) == pytest.approx(exact(hits, 0.3), rel=1e-9)
    assert exact(hits, high) == pytest.approx(0.025, rel=1e-6)
    assert low == 0 if hits == 0 else exact(hits - 1, low) == pytest.approx(0.975, rel=1e-9)


@given(st.integers(0, 60), st.integers(0, 60))
def test_interval_and_test_agree(first: int, second: int) -> None:
    found = difference(first, second, 200)
    assert found.low is not None
    assert found.high is not None
    if first + second:
        assert (found.low > 0 or found.high < 0) == (mcnemar(first, second) < 0.05)
    assert found.low <= found.value <= found.high


# ---------------------------------------------------------------- figures


def test_all_figures(tiny: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_module, "BUDGET", 0.05)
    thin = rewrite(tiny, "bottleneck:4,where=conv2").net
    found = compare(tiny, thin, pictures(6)[0], all=True, limit=4)
    assert list(found.figures) == [
        "params", "macs", "element_ops", "activation_bytes", "receptive_field", "peak_memory", "latency",
        "border_share", "border_change", "consistency",
    ]  # fmt: skip
    assert found.figures["params"].a - found.figures["params"].b == 24 * 12 * 9 - 4 * 12 * 9 - 24 * 4
    assert found.figures["receptive_field"].a == (14, 14)
    ratio: Any = found.figures["latency"].ratio
    assert ratio.low <= ratio.median <= ratio.high
    assert "circular" in found.figures["consistency"].name
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["figures"]["latency"]["ratio"] == ratio.to_dict()
    assert [pair["left"]["name"] for pair in plain["changed"] if pair["left"]][:1] != []


def test_what_cannot_be_measured_is_noted_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_module, "BUDGET", 0.05)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    x = torch.randn(2, 3, 2, 2)
    found = compare(flat, flat, x, input="3x2x2", latency=False, memory=False, all=True)
    assert found.figures["receptive_field"].a is None
    assert any(
        note.startswith("border is left out: border=True: Sequential gives no map") for note in found.notes
    )
    with pytest.raises(RequestError, match="gives no map of positions; leave border out"):
        compare(flat, flat, x, input="3x2x2", border=True, **QUICK)


def test_wrong_requests(tiny: Net) -> None:
    with pytest.raises(RequestError, match="limit=0 must be a whole number from 1"):
        compare(tiny, tiny, limit=0)
    with pytest.raises(BadInput, match=r"must be \[image, 3, height, width\] of network input for tiny"):
        compare(tiny, tiny, torch.zeros(2, 1, 32, 32))
    odd = Net(nn.Conv2d(5, 2, 3), convscope.InputSpec((5, 8, 8)))
    assert compare(odd, odd, **QUICK).source == "random noise"
    with pytest.raises(BadInput, match="the networks take different inputs, and no photograph fits them"):
        compare(odd, tiny)
    with pytest.raises(RequestError, match=r"features=\{'conv1': 'a'\} must be"):
        compare(tiny, tiny, features={"conv1": "a"})  # type: ignore[dict-item]
    with pytest.raises(RequestError, match="cost='time' must be one of"):
        compare_all(tiny, [tiny], cost="time")
    with pytest.raises(RequestError, match="others is empty"):
        compare_all(tiny, [])


class Fails(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: torch.Tensor) -> Any:
        if len(x) == 1:
            return x.mean((2, 3))  # well behaved while it is recorded
        if self.how == "raise":
            raise ValueError("too many")
        return x.mean((2, 3)) * float("nan") if self.how == "nan" else x.long()


@pytest.mark.parametrize(
    ("how", "says"),
    [("raise", "failed on a batch of shape"), ("nan", "not finite"), ("long", "gives no tensor")],
)
def test_networks_that_fail(how: str, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        compare(Fails(how), Fails(how), torch.rand(3, 3, 8, 8), input="3x8x8", **QUICK)


# ---------------------------------------------------------------- pictures


def test_the_same_units_before_and_after(tiny: Net) -> None:
    same = compare(tiny, twin(tiny), pictures(2)[0], features={"conv1": [0], "conv2": 3}, steps=4, **QUICK)
    assert [(each.layer, each.channel) for each in same.features] == [("conv1", 0), ("conv2", 3)]
    for each in same.features:
        assert each.before is not None
        assert each.after is not None
        assert torch.equal(each.before, each.after)
    wide = rewrite(
        tiny, "kernel_size:9,where=conv1"
    ).net  # sees more: the canvas stays that of the first network
    other = compare(tiny, wide, pictures(2)[0], features=[("conv1", 1)], steps=4, **QUICK).features[0]
    assert other.before is not None
    assert other.after is not None
    assert other.before.shape == other.after.shape
    plain = same.to_dict(pictures=True)["features"][0]
    assert plain["before"].startswith("data:image/png;base64,")
    assert same._repr_html_().count("<img") == 4
    assert "before" not in same.to_dict()["features"][0]


def test_a_unit_of_one_network_only(tiny: Net) -> None:
    low = rewrite(tiny, "bottleneck:4,where=conv2").net
    found = compare(tiny, low, pictures(2)[0], features=[("conv2.reduce", 0)], steps=4, **QUICK)
    assert found.features[0].before is None
    assert found.features[0].status[0] == "no such layer"
    assert "no such layer" in found._repr_html_()
    with pytest.raises(UnknownLayer, match="conv9"):
        compare(tiny, low, pictures(2)[0], features=[("conv9", 0)], **QUICK)


def test_units_are_chosen_where_the_change_tells(tiny: Net) -> None:
    def change(module: Any) -> None:
        module.bn2.weight.mul_(3)

    x = pictures(8)[0]
    found = compare(tiny, twin(tiny, change), x, features="auto", steps=2, **QUICK)
    layers = list(dict.fromkeys(each.layer for each in found.features))
    rms = {row.layer: row.rms for row in found.layers}
    assert layers == [
        "relu2",
        "bn3",
        "relu3",
    ]  # two where the change is largest and goes on, and the last map
    assert min(rms["relu2"], rms["bn3"]) > 2 > rms["conv2"] == 0
    with torch.no_grad():
        module: Any = tiny.module
        maps = module.relu2(module.bn2(module.conv2(module.pool(module.relu1(module.bn1(module.conv1(x)))))))
    strongest = maps.amax((2, 3)).mean(0).topk(2).indices.tolist()
    assert [each.channel for each in found.features if each.layer == "relu2"] == strongest
    # equal networks: pictures spread over the depth, and equal too
    same = compare(tiny, twin(tiny), x, features="auto", steps=2, **QUICK)
    assert [each.layer for each in same.features][::2] == ["relu1", "conv2", "relu3"]
    for each in same.features:
        assert each.before is not None
        assert each.after is not None
        assert torch.equal(each.before, each.after)


def test_why_there_are_no_pictures(tiny: Net) -> None:
    untrained = Net(tiny.module, tiny.input, name="raw", trained=False)
    found = compare(untrained, untrained, pictures(2)[0], features="auto", **QUICK)
    assert found.features == ()
    assert found.notes[0].startswith("no pictures: raw has random weights")
    flat = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    found = compare(flat, flat, torch.randn(2, 3, 2, 2), input="3x2x2", features="auto", **QUICK)
    assert found.notes == ("no pictures: no layer of the same name gives maps of the same shape in both",)
    with pytest.raises(RequestError, match="features='conv1' must be 'auto'"):
        compare(tiny, tiny, features="conv1", **QUICK)  # type: ignore[arg-type]


def test_a_subject_is_drawn_once(tiny: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Net] = []
    true = units.visualize
    monkeypatch.setattr(
        units, "visualize", lambda net, *args, **given: (drawn.append(net), true(net, *args, **given))[1]
    )
    subject = units.Subject(tiny)
    others = [rewrite(tiny, f"padding:{kind},where=conv1") for kind in ("reflect", "replicate")]
    found = [
        compare(subject, made, pictures(2)[0], features=[("conv2", 1)], steps=2, **QUICK) for made in others
    ]
    assert [net is tiny for net in drawn] == [True, False, False]
    assert found[0].features[0].before is found[1].features[0].before


def test_a_rewrite_brings_its_record(tiny: Net) -> None:
    made = rewrite(tiny, "padding:reflect,where=conv*")
    found = compare(tiny, made, pictures(2)[0], **QUICK)
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))["origin"]
    assert (plain["rule"], plain["exactness"]) == ("padding:kind=reflect,where=conv*", "exact-interior")
    assert [edit["layer"] for edit in plain["edits"]] == ["conv1", "conv2", "conv3"]
    told = "padding:kind=reflect,where=conv\\*: exact-interior; 3 layers changed, 0 left as they are"
    assert f"- {told}" in found.to_markdown()
    by_recipe = compare(tiny, made.net, pictures(2)[0], **QUICK).origin
    assert by_recipe is not None
    assert (by_recipe.exactness, by_recipe.edits) == ("exact-interior", None)
    assert compare(tiny, twin(tiny), pictures(2)[0], **QUICK).to_dict()["origin"] is None
    with_several = compare_all(tiny, [made, twin(tiny)], pictures(2)[0])
    assert [each.origin is None for each in with_several.comparisons] == [False, True]


# ---------------------------------------------------------------- shown


def test_shown(tiny: Net, snapshot: SnapshotAssertion) -> None:
    other = Net(
        twin(tiny, lambda m: m.conv2.weight.mul_(2)).module,
        tiny.input,
        tiny.labels,
        "a|<b>\x1b",
        trained=True,
    )
    x, labels = pictures(4)
    found = compare(tiny, other, x, labels=labels, latency=False, memory=False)
    text = found.to_markdown()
    assert "### tiny → a\\|\\<b\\>\N{REPLACEMENT CHARACTER}" in text
    assert "| they begin to differ | at conv2 |" in text
    assert [
        line for line in text.splitlines() if line.startswith(("#", "| param", "| MAC", "| recept"))
    ] == snapshot
    assert "they begin to differ" in str(found)
    assert "&lt;b&gt;" in found._repr_html_()
    assert repr(found) == "Comparison('tiny', 'a|<b>\\x1b', 4 images of tensor)"


def test_of_many_layers_the_steps_are_shown() -> None:
    torch.manual_seed(0)
    parts = [part for _ in range(15) for part in (nn.Conv2d(3, 3, 3, padding=1), nn.Tanh())]
    a = nn.Sequential(*parts)
    b = nn.Sequential(*[nn.Conv2d(3, 3, 3, padding=1) if k == 4 else part for k, part in enumerate(parts)])
    found = compare(a, b, torch.randn(2, 3, 8, 8), input="3x8x8", **QUICK)
    rows, left_out = found._shown()
    assert len(rows) <= 12
    assert rows[0][0] == "4" == found.first
    assert rows[-1][0] == "29"
    assert left_out == 26 - len(rows)
    assert "layers more, which change less" in str(found)


# ---------------------------------------------------------------- several


def test_several_networks_and_their_front(tiny: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_module, "BUDGET", 0.05)
    nets = [rewrite(tiny, f"bottleneck:{rank},where=conv2").net for rank in (1, 12)]
    x, labels = pictures(64)
    found = compare_all(tiny, nets, x, labels=labels)
    assert (found.cost, found.quality) == ("macs", "accuracy")
    assert [point.name for point in found.points] == ["tiny", *(net.name for net in nets)]
    assert found.front[0].name == nets[0].name
    assert found.points[1].cost == found.comparisons[0].figures["macs"].b
    without = compare_all(tiny, nets, x, cost="latency")
    assert without.quality == "agreement"
    assert without.points[0].quality == 1
    assert "| network | macs | accuracy | front |" in found.to_markdown()
    json.dumps(found.to_dict(), allow_nan=False)
    assert "yes" in str(found)
    assert "<table>" in found._repr_html_()
    assert repr(found) == "Comparisons(3 networks, accuracy against macs)"


@given(st.lists(st.tuples(st.integers(1, 6), st.none() | st.integers(0, 6)), min_size=1, max_size=8))
def test_the_front_is_what_nothing_beats(pairs: list[tuple[int, int | None]]) -> None:
    found = marked([Point(str(k), cost, quality) for k, (cost, quality) in enumerate(pairs)])
    for point, (cost, quality) in zip(found, pairs, strict=True):
        beaten = quality is None or any(
            q is not None and ((c < cost and q >= quality) or (c <= cost and q > quality)) for c, q in pairs
        )
        assert point.on_front is not beaten


def test_public_name() -> None:
    assert convscope.compare is compare
