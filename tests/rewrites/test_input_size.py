"""Every way to run a network at another input size does what it says, against the same written out by hand."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from convscope import rules
from convscope.errors import BadInput, RequestError
from convscope.models import InputSpec, load
from convscope.rewrites.fit import tiles
from convscope.rewrites.rewrite import rewrite


def network(head: str = "linear") -> nn.Sequential:
    torch.manual_seed(0)
    ends: dict[str, list[nn.Module]] = {
        "linear": [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 7 * 8, 5)],
        "global": [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)],
    }
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), *ends[head]).eval()


SIZE = "3x16x18"


def made(how: str, height: int = 20, width: int = 27, head: str = "linear", **more: Any) -> Any:
    return rewrite(network(head), rules.InputSize(height, width, how), input=SIZE, **more)


def test_each_way_by_hand() -> None:
    module, x = network(), torch.randn(2, 3, 20, 27)
    whole = functional.interpolate(x, (16, 18), mode="bilinear", antialias=True)
    small = functional.interpolate(x, (13, 18), mode="bilinear", antialias=True)  # 18 / 27 of 20 rows
    expected = {
        "resize": module(whole),
        "crop": module(x[:, :, 2:18, 4:22]),
        "pad": module(functional.pad(small - 0.5, (0, 0, 1, 2)) + 0.5),  # no mean is known: grey
        "tiles": sum(module(x[:, :, i : i + 16, j : j + 18]) for i in (0, 4) for j in (0, 9)) / 4,
    }
    for how, y in expected.items():
        found = made(how)
        assert found.net.input.shape == (3, 20, 27)
        torch.testing.assert_close(found.net.module(x), y)
        assert found.exactness == ("exact" if how == "resize" else "approximate")
        assert found.edits[0].error == (
            pytest.approx(0, abs=1e-12) if how == "resize" else found.edits[0].error
        )
    assert next(iter(made("crop").net.module.state_dict())) == "net.0.weight"


def test_padding_keeps_small_images_and_takes_the_mean_colour() -> None:
    spec = InputSpec((3, 16, 18), mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.2))
    found = rewrite(load(network(), input=spec), rules.InputSize(10, 12, "pad"))
    x = torch.randn(1, 3, 10, 12)
    torch.testing.assert_close(found.net.module(x), network()(functional.pad(x, (3, 3, 3, 3))))
    wide = rewrite(
        load(network(), input=InputSpec((3, 16, 18), value_range=(0, 255))), rules.InputSize(10, 12, "pad")
    )
    assert wide.net.module.ground.unique().tolist() == [127.5]  # type: ignore[operator, union-attr]


@given(size=st.integers(1, 400), window=st.integers(1, 100))
def test_tiles_cover_evenly(size: int, window: int) -> None:
    if size < window:
        return
    starts = tiles(size, window)
    assert (starts[0], starts[-1] + window) == (0, size)
    gaps = [b - a for a, b in pairwise(starts)]
    assert all(0 < gap <= window for gap in gaps)
    assert not gaps or max(gaps) - min(gaps) <= 1
    assert len(starts) == -(-size // window)


def test_native_runs_what_runs() -> None:
    found = made("native", head="global")
    x = torch.randn(1, 3, 20, 27)
    torch.testing.assert_close(found.net.module(x), network("global")(x))
    assert found.edits[0].notes[0] == "runs at this size as it is"
    assert list(found.net.module.state_dict()) == list(network("global").state_dict())


def test_native_averages_the_scores_of_a_convolutional_head() -> None:
    found = made("native", 22, 24)
    x = torch.randn(2, 3, 22, 24)
    module = network()
    windows = [module(x[:, :, i : i + 16, j : j + 18]) for i in (0, 2, 4, 6) for j in (0, 2, 4, 6)]
    torch.testing.assert_close(found.net.module(x), sum(windows) / 16)
    assert "the scores of all positions averaged" in found.edits[0].notes[0]


def test_positional_tables_are_resampled_by_timm_or_refused() -> None:
    from convscope._torchvision import declare_missing_operators

    declare_missing_operators()
    from timm.models.vision_transformer import VisionTransformer

    small: dict[str, Any] = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 5}
    vit = VisionTransformer(img_size=16, **small).eval()
    found = rewrite(vit, rules.InputSize(24, 32, "native"), input="3x16x16")
    assert found.edits[0].notes[0] == "positional tables resampled by timm's set_input_size"
    assert found.net.module.pos_embed.shape == (1, 1 + 3 * 4, 16)  # type: ignore[union-attr]
    assert found.net.module(torch.zeros(1, 3, 24, 32)).shape == (1, 5)
    assert vit.pos_embed is not None
    assert vit.pos_embed.shape == (1, 5, 16)

    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place, self.net = nn.Parameter(torch.randn(1, 3, 16, 18)), network("global")

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.net(x + self.place)
            return y

    refused = rewrite(Placed(), rules.InputSize(20, 20, "native"), input=SIZE)
    assert not refused.done
    assert "it fails at this size (RuntimeError: The size of tensor" in str(refused.edits[0].reason)


def test_refusals_and_arguments() -> None:
    assert made("crop", 12, 27).edits[0].reason == (
        "images of 12x27 are smaller than the 16x18 it takes; resize or pad"
    )
    assert (
        made("native", 16, 18).edits[0].reason
        == made("pad", 16, 18).edits[0].reason
        == "it takes 16x18 already"
    )
    flat = nn.Sequential(nn.Conv2d(3, 4, 3))
    assert "not the scores it gives at its own" in str(
        rewrite(flat, rules.InputSize(9, 9, "native"), input="3x8x8").edits[0].reason
    )
    with pytest.raises(RequestError, match="height=0 must be a whole number of pixels"):
        rules.InputSize(0, 4)
    with pytest.raises(RequestError, match="did you mean 'resize'"):
        rules.InputSize(4, 4, "resise")


def test_a_rule_after_it_sees_the_new_size(tmp_path: Path) -> None:
    for number in range(3):
        np.save(
            tmp_path / f"{number}.npy", np.random.default_rng(number).random((3, 30, 30), dtype=np.float32)
        )
    found = rewrite(network(), "input_size:20,width=27,how=crop | kernel_size:5", input=SIZE, data=tmp_path)
    assert [edit.layer for edit in found.done] == ["", "net.0"]
    assert found.edits[0].notes == ("error: the difference from resizing, on images",)
    assert found.net.module(torch.zeros(1, 3, 20, 27)).shape == (1, 5)


# ---------------------------------------------------------------- all ways at once


def test_all_ways_compared() -> None:
    x = torch.randn(9, 3, 20, 27)
    module = network("global")
    labels = [int(n) for n in module(x).argmax(1)]
    found = rules.input_sizes(module, 20, 27, x, labels, input=SIZE, budget=0)
    rows = {row.how: row for row in found.rows}
    assert rows["native"].correct == 9
    assert rows["resize"].agreement == 1.0
    resized = functional.interpolate(x, (16, 18), mode="bilinear", antialias=True)
    right = int((module(resized).argmax(1) == torch.tensor(labels)).sum())
    assert (rows["resize"].correct, rows["resize"].accuracy) == (right, right / 9)
    assert rows["tiles"].macs == 4 * (rows["crop"].macs or 0)
    assert all(row.latency is not None for row in found.rows)
    assert "tiles" in found._repr_html_()
    assert found.to_dict()["rows"][4]["notes"] == ["runs at this size as it is"]


def test_what_is_refused_is_told_beside_the_rest() -> None:
    found = rules.input_sizes(network(), 12, 14, torch.randn(2, 3, 12, 14), input=SIZE, budget=0)
    reasons = {row.how: row.reason for row in found.rows}
    assert reasons["resize"] is None
    assert "smaller than" in str(reasons["crop"])
    assert "refused: " in found._repr_html_()
    assert all(row.accuracy is None for row in found.rows)


def test_class_folders_are_the_labels(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for number, name in enumerate(["ant", "bee", "cat", "dog", "elk"]):
        (tmp_path / name).mkdir()
        for copy in range(2):
            picture = generator.random((3, 20, 27), dtype=np.float32) * (number + 1) / 5
            np.save(tmp_path / name / f"{copy}.npy", picture)
    module = network("global")
    names = ["elk", "ant", "bee", "cat", "dog"]
    net = load(module, input=SIZE, labels=names)
    found = rules.input_sizes(net, 20, 27, tmp_path, budget=0, limit=5)
    assert found.images == 5
    files = [(name, copy) for name in sorted(names) for copy in range(2)][::2]
    x = torch.stack([torch.from_numpy(np.load(tmp_path / name / f"{copy}.npy")) for name, copy in files])
    truth = torch.tensor([names.index(name) for name, _ in files])
    with torch.no_grad():
        expected = int((module(x).argmax(1) == truth).sum())
    assert {row.how: row.correct for row in found.rows}["native"] == expected


@pytest.mark.parametrize("page", ["convolutionalize", "input_size"])
def test_the_pages_code_gives_what_it_says(page: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / "rules" / f"{page}.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"(?s)```python\n(.*?)```", text)
    names: dict[str, Any] = {}
    checked = 0
    for line in block.splitlines():
        code, _, remark = line.partition("  # ")
        if remark:
            assert repr(eval(code, names)) == remark, line  # noqa: S307
            checked += 1
        else:
            exec(code, names)  # noqa: S102
    assert checked


def test_wrong_images_are_told() -> None:
    x = torch.randn(2, 3, 20, 27)
    with pytest.raises(BadInput, match=r"must be \[image, 3, 20, 28\]"):
        rules.input_sizes(network(), 20, 28, x, input=SIZE)
    with pytest.raises(RequestError, match="labels are 1, and data holds 2 images"):
        rules.input_sizes(network(), 20, 27, x, [0], input=SIZE)
    with pytest.raises(RequestError, match="takes 16x18 already"):
        rules.input_sizes(network(), 16, 18, x, input=SIZE)
    with pytest.raises(RequestError, match="where one score a class is needed"):
        rules.input_sizes(nn.Sequential(nn.Conv2d(3, 4, 3)), 20, 27, x, input=SIZE)
