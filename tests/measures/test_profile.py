"""Profiles shown and handled: table, tree, HTML, CSV, Markdown, JSON; sorted, filtered, grouped, compared."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from syrupy.assertion import SnapshotAssertion
from torch import Tensor, nn
from torch.nn import functional as F

from convscope import measure
from convscope.errors import RequestError, UnknownLayer
from convscope.measures.profile import Profile
from convscope.measures.profile_columns import COLUMNS, count, size
from convscope.site import notebook


class Block(nn.Module):
    def __init__(self, channels: int, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)) + x)


def net(channels: int = 8, groups: int = 1, depth: int = 2) -> nn.Module:
    blocks = nn.Sequential(*(Block(channels, groups) for _ in range(depth)))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3))
    return nn.Sequential(OrderedDict(stem=nn.Conv2d(3, channels, 4, stride=4), blocks=blocks, head=head))


@pytest.fixture(scope="module")
def p() -> Profile:
    return measure(net(), input="3x32x32")


# ---------------------------------------------------------------- shown


def test_table(p: Profile, snapshot: SnapshotAssertion) -> None:
    assert str(p) == snapshot


def test_tree(p: Profile, snapshot: SnapshotAssertion) -> None:
    assert str(p.tree()) == snapshot
    assert repr(p.tree(1)) == snapshot
    whole = p.tree()
    assert (whole.params, whole.macs) == (p.totals.params, p.totals.macs)
    assert whole.macs == sum(part.macs for part in whole.parts)
    assert [part["name"] for part in whole.to_dict()["parts"]] == ["stem", "blocks", "head"]


def test_markdown(p: Profile, snapshot: SnapshotAssertion) -> None:
    assert p.to_markdown() == snapshot
    widths = {line.count("|") for line in p.to_markdown().splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_csv_holds_full_numbers(p: Profile) -> None:
    rows = list(csv.DictReader(io.StringIO(p.to_csv())))
    assert [row["name"] for row in rows] == [row.name or "(network)" for row in p.layers]
    for told, row in zip(rows, p.layers, strict=True):
        assert (int(told["params"]), int(told["macs"]), int(told["moved_bytes"])) == (
            row.params,
            row.macs,
            row.moved_bytes,
        )
    assert rows[0]["receptive_field"] == "4/4/0"
    assert rows[0]["window"] == "4x4 s4"


def test_json(p: Profile) -> None:
    told = json.loads(p.to_json())
    assert told == json.loads(json.dumps(p.to_dict()))
    assert {"model", "input", "totals", "layers", "uncounted"} <= set(told)
    assert told["input"] == [1, 3, 32, 32]
    assert {"params", "macs", "element_ops", "activation_bytes", "training_bytes"} <= set(told["totals"])
    first = told["layers"][0]
    assert {"name", "kind", "in", "out", "params", "macs", "receptive_field"} <= set(first)
    assert (first["in"], first["out"]) == ([1, 3, 32, 32], [1, 8, 8, 8])
    assert {"size": [4, 4], "stride": [4, 4], "padding": [0, 0]}.items() <= first["receptive_field"].items()
    assert json.loads(replace(p, memory=Broken()).to_json())["memory"] == {"value": None, "list": [1]}


class Broken:
    """A measure with a figure that JSON has no word for."""

    def to_dict(self) -> dict[str, object]:
        return {"value": float("nan"), "list": (1,)}


def test_notebook_view(p: Profile) -> None:
    html = p._repr_html_()
    assert html == notebook.html(p)
    rows = re.findall("<tr", html)
    assert len(rows) == 2 + len(p.layers)
    assert html.count("linear-gradient(to left,rgba(66,133,244,.25) 100.0%") >= 4  # the largest of each cost
    assert "Sequential, input 1x3x32x32 float32 on cpu" in html
    many = replace(p, layers=p.layers * 60)
    assert f"and {len(many.layers) - 400} more rows" in many._repr_html_()


def test_repr_is_one_line(p: Profile) -> None:
    assert (
        repr(p) == f"Profile('Sequential', 10 layers, {p.totals.params:,} parameters, {p.totals.macs:,} MACs)"
    )


def test_fields_in_words() -> None:
    class Gate(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.mean((2, 3), keepdim=True)

    branches = measure(nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), Gate()), input="1x9x9")
    assert branches.to_csv().splitlines()[1].endswith(",3/1/1")
    assert branches.to_csv().splitlines()[2].endswith("whole (3/1/1 locally)")
    uneven = measure(nn.Conv2d(1, 1, (3, 5), stride=(1, 2)), input="1x9x9")
    assert '"3,5/1,2/0"' in uneven.to_csv()


def test_numbers_in_words() -> None:
    assert [count(n) for n in (0, 999, 1000, 999_600, 1_234_567_890_000)] == [
        "",
        "999",
        "1 k",
        "1 M",
        "1.23 T",
    ]
    assert [size(n) for n in (0, 1023.6, 2**20, 3 * 2**30)] == ["", "1 KiB", "1 MiB", "3 GiB"]
    assert len({column.key for column in COLUMNS}) == len(COLUMNS)


# ---------------------------------------------------------------- rows


def test_sort(p: Profile) -> None:
    macs = [row.macs for row in p.sort("macs").layers]
    assert macs == sorted(macs, reverse=True)
    assert [row.name for row in p.sort("name", ascending=True).layers][:2] == ["blocks.0", "blocks.0.conv"]
    flat = p.sort("intensity").layers[-1]
    assert flat.intensity is None  # a view moves no bytes: last in either order
    assert p.sort("intensity", ascending=True).layers[-1] == flat
    assert p.sort("params").totals == p.totals
    with pytest.raises(RequestError, match=r"key='mac' is no column of the profile; did you mean 'macs'"):
        p.sort("mac")
    with pytest.raises(RequestError, match="key='zzz' is no column of the profile; it has name, kind, "):
        p.sort("zzz")
    with pytest.raises(RequestError, match="key='seconds' is no column"):
        p.sort("seconds")  # latency was not asked for


def test_filter(p: Profile) -> None:
    assert [row.name for row in p.filter("blocks.*.conv").layers] == ["blocks.0.conv", "blocks.1.conv"]
    assert [row.name for row in p.filter(["stem", "head.2"]).layers] == ["stem", "head.2"]
    assert [row.name for row in p.filter("blocks.1").layers] == ["blocks.1.conv", "blocks.1.norm", "blocks.1"]
    assert [row.name for row in p.filter(kind="Batch*").layers] == ["blocks.0.norm", "blocks.1.norm"]
    some = p.filter(where=lambda row: row.macs > 0)
    assert {row.kind for row in some.layers} == {"Conv2d", "Linear"}
    assert some.totals == p.totals
    assert "not all rows are shown; the totals are of the whole network" in str(some)
    with pytest.raises(
        UnknownLayer, match=r"layer 'stm' matches no row of the profile; did you mean 'stem'\?"
    ):
        p.filter("stm")


def test_filter_finds_every_call_by_the_bare_name() -> None:
    twice = nn.ReLU()
    p = measure(nn.Sequential(OrderedDict(a=twice, b=nn.Conv2d(1, 1, 1), c=twice)), input="1x4x4")
    assert [row.name for row in p.filter("a").layers] == ["a#0", "a#1"]
    assert [row.name for row in p.filter("a#1").layers] == ["a#1"]


def test_group(p: Profile) -> None:
    grouped = p.group(1)
    assert [(row.name, row.kind, row.calls) for row in grouped.layers] == [
        ("stem", "Conv2d", 1),
        ("blocks", "Sequential", 6),
        ("head", "Sequential", 3),
    ]
    for figure in ("params", "macs", "element_ops", "training_bytes", "moved_bytes"):
        assert sum(getattr(row, figure) for row in grouped.layers) == sum(
            getattr(row, figure) for row in p.layers
        )
    blocks = grouped.layer("blocks")
    assert (blocks.in_shape, blocks.out_shape) == ((1, 8, 8, 8), (1, 8, 8, 8))
    assert blocks.receptive_field == p.layer("blocks.1").receptive_field
    assert blocks.members == tuple(row.name for row in p.layers if row.name.startswith("blocks"))
    assert [row.name for row in p.group(0).layers] == [""]
    assert p.group(0).layers[0].macs == p.totals.macs
    assert p.group(9).layers == p.layers
    with pytest.raises(RequestError, match="depth=-1 must be a number of names from 0 on, such as 1"):
        p.group(-1)


def test_layer(p: Profile) -> None:
    assert p.layer("stem").kernel == (4, 4)
    with pytest.raises(UnknownLayer, match=r"layer 'steam' is no row of the profile; did you mean 'stem'\?"):
        p.layer("steam")


# ---------------------------------------------------------------- two networks


def test_difference_of_a_changed_network(p: Profile, snapshot: SnapshotAssertion) -> None:
    found = p - measure(net(groups=4), input="3x32x32")
    changed = [pair for pair in found.layers if pair.status != "same"]
    assert [pair.name for pair in changed] == ["blocks.0.conv", "blocks.1.conv"]
    assert found.delta("macs") == sum(pair.delta("macs") for pair in changed) == 2 * 64 * 8 * 9 * 6
    assert found.delta("params") == 2 * 8 * 9 * 6
    assert str(found) == snapshot
    told = found.to_dict()
    assert told["totals"]["macs"]["delta"] == found.delta("macs")
    assert json.loads(json.dumps(told))["layers"][0]["status"] == "same"
    assert "<table>" in found._repr_html_()
    assert repr(found) == "ProfileDiff('Sequential', 'Sequential', +55,296 MACs)"


def test_difference_of_a_longer_network(p: Profile) -> None:
    longer = measure(net(depth=3), input="3x32x32")
    left, right = longer - p, p - longer
    extra = [pair.name for pair in left.layers if pair.status == "left only"]
    assert extra == ["blocks.2.conv", "blocks.2.norm", "blocks.2"]
    assert [pair.name for pair in right.layers if pair.status == "right only"] == extra
    assert left.delta("macs") == -right.delta("macs") == 64 * 8 * 8 * 9
    for figure in ("params", "macs", "element_ops"):
        assert sum(pair.delta(figure) for pair in left.layers) == left.delta(figure)


def test_difference_aligns_other_names_by_kind_and_shape(p: Profile) -> None:
    renamed = OrderedDict(("x" + name, part) for name, part in net().named_children())
    found = p - measure(nn.Sequential(renamed), input="3x32x32")
    assert all(pair.left is not None and pair.right is not None for pair in found.layers)
    assert [pair.right.name for pair in found.layers if pair.right] == ["x" + row.name for row in p.layers]
    assert not found.delta("macs")
    same = p - p
    assert {pair.status for pair in same.layers} == {"same"}
    assert f"{len(p.layers)} layers are the same" in str(same)


def test_difference_with_something_else(p: Profile) -> None:
    with pytest.raises(TypeError):
        p - 3  # type: ignore[operator]


def test_nothing_in_common() -> None:
    left, right = (
        nn.Sequential(OrderedDict({name: part})) for name, part in (("a", nn.ReLU()), ("b", nn.Flatten()))
    )
    found = measure(left, input="1x2x2") - measure(right, input="1x2x2")
    assert [(pair.name, pair.status) for pair in found.layers] == [("a", "left only"), ("b", "right only")]
    assert "no layer is the same" in str(found)


def test_a_branch_shows_what_its_module_does_itself() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(x)
            return y @ y.transpose(1, 2)

    whole = measure(Product(), input=torch.rand(1, 3, 4)).tree()
    assert [(part.name, part.macs) for part in whole.parts] == [("inner", 48), ("(between)", 36)]
