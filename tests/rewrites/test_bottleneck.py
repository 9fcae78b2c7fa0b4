"""A bottleneck at full rank is the layer; below it no weights of that rank are nearer, in weights or in outputs."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from convscope import rules
from convscope.rewrites.rewrite import rewrite


def correlated(images: int, channels: int, size: int = 14) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(images, channels, size, size, generator=generator)
    return x + x.roll(1, 2) + x.roll(1, 3) + 1


@settings(max_examples=20)
@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    bias=st.booleans(),
    out=st.sampled_from([4, 10, 40]),
)
def test_full_rank_is_exact(
    kernel: tuple[int, int], stride: int, padding: int, dilation: int, groups: int, bias: bool, out: int
) -> None:
    conv = nn.Conv2d(4, out, kernel, stride, padding, dilation, groups, bias)
    edit = (made := rewrite(nn.Sequential(conv), rules.Bottleneck(999), input="4x13x15")).done[0]
    full = min(out // groups, 4 // groups * kernel[0] * kernel[1])
    assert (edit.exactness, edit.resolved["rank"]) == ("exact", full)
    new = made.net.module[0]  # type: ignore[index]
    assert (new.reduce.out_channels, new.reduce.kernel_size) == (full * groups, kernel)
    assert (new.expand.in_channels, new.expand.kernel_size, new.expand.groups) == (
        full * groups,
        (1, 1),
        groups,
    )
    x = torch.randn(2, 4, 13, 15)
    torch.testing.assert_close(new(x), conv(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("groups", [1, 2])
def test_without_images_the_weights_are_nearest(groups: int) -> None:
    conv = nn.Conv2d(4, 12, 3, groups=groups)
    made = rewrite(nn.Sequential(conv), rules.Bottleneck(3), input="4x9x9")
    new = made.net.module[0]  # type: ignore[index]
    lost, dropped = 0.0, 0.0
    with torch.no_grad():
        for group in range(groups):
            out, between = (
                slice(12 // groups * group, 12 // groups * (group + 1)),
                slice(3 * group, 3 * group + 3),
            )
            weight = conv.weight[out].flatten(1)
            product = new.expand.weight[out, :, 0, 0] @ new.reduce.weight[between].flatten(1)
            lost += float((weight - product).square().sum())
            dropped += float(torch.linalg.svdvals(weight)[3:].square().sum())
    assert lost == pytest.approx(dropped, rel=1e-4)
    kept = 1 - dropped / float(conv.weight.detach().square().sum())
    assert made.done[0].resolved == {"rank": 3, "method": "svd", "kept": pytest.approx(kept, abs=1e-5)}


@pytest.mark.parametrize(("kernel", "groups", "bias"), [(3, 1, True), (1, 1, False), (3, 2, False)])
def test_with_images_the_outputs_are_nearest(kernel: int, groups: int, bias: bool) -> None:
    """The best affine map of rank r is the principal components of the output, by torch's own SVD of all of it."""
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 10, kernel, groups=groups, bias=bias)
    data = correlated(16, 4)
    made = rewrite(nn.Sequential(conv), rules.Bottleneck(2), data=data, input="4x14x14")
    with torch.no_grad():
        y = conv(data).double().transpose(0, 1).flatten(1)  # [channel, position]
        new = made.net.module(data).double().transpose(0, 1).flatten(1)
        best, total = 0.0, 0.0
        for part in y.chunk(groups):
            spectrum = torch.linalg.svdvals(part - part.mean(1, keepdim=True)).square()
            best, total = best + float(spectrum[2:].sum()), total + float(spectrum.sum())
    assert float((new - y).square().sum()) == pytest.approx(best, rel=1e-4)
    assert made.done[0].resolved["kept"] == pytest.approx(1 - best / total, abs=1e-5)
    assert made.done[0].notes[1] == "fitted to the images"
    torch.testing.assert_close(new.mean(1), y.mean(1), atol=1e-5, rtol=1e-5)
    for method in ("svd", "truncate"):
        other = rewrite(nn.Sequential(conv), rules.Bottleneck(2, method=method), data=data, input="4x14x14")
        with torch.no_grad():
            worse = (other.net.module(data).double().transpose(0, 1).flatten(1) - y).square().sum()
        assert float(worse) > best


def test_truncation_keeps_the_largest_filters() -> None:
    conv = nn.Conv2d(3, 8, 3)
    made = rewrite(nn.Sequential(conv), rules.Bottleneck(2, method="truncate"), input="3x9x9")
    largest = conv.weight.detach().square().sum((1, 2, 3)).topk(2).indices
    x = torch.randn(1, 3, 9, 9)
    assert conv.bias is not None
    with torch.no_grad():
        y, new = conv(x), made.net.module(x)
    torch.testing.assert_close(new[:, largest], y[:, largest])
    dropped = [i for i in range(8) if i not in largest.tolist()]
    conv.requires_grad_(False)
    torch.testing.assert_close(
        new[:, dropped], conv.bias[dropped][None, :, None, None].expand_as(new[:, dropped])
    )
    assert made.done[0].resolved["method"] == "truncate"
    thin = nn.Conv2d(1, 8, (1, 2))  # two weights a filter: two filters are not all of it
    assert (
        rewrite(nn.Sequential(thin), rules.Bottleneck(2, method="truncate"), input="1x9x9").exactness
        == "exact"
    )


def test_a_dead_layer_takes_the_nearest_weights_and_says_so() -> None:
    made = rewrite(
        nn.Sequential(nn.Conv2d(3, 8, 3)), rules.Bottleneck(2), data=torch.zeros(4, 3, 9, 9), input="3x9x9"
    )
    assert made.done[0].notes[-1] == "its outputs do not vary on the images"
    assert made.done[0].resolved["method"] == "svd"


def test_ranks_that_save_nothing_say_so() -> None:
    made = rewrite(nn.Sequential(nn.Conv2d(3, 8, 3)), rules.Bottleneck(8), input="3x9x9")
    assert made.done[0].notes == ("rank 8 of 8: nothing is lost", "costs no less than the layer did")
    assert made.done[0].params == (224, 288)


@pytest.mark.parametrize("page", ["separable", "bottleneck"])
def test_the_page_runs_and_gives_what_it_says(page: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / "rules" / f"{page}.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"(?s)```python\n(.*?)```", text)
    names: dict[str, Any] = {}
    said = 0
    for statement in ast.parse(block).body:
        source = ast.get_source_segment(block, statement)
        assert source is not None
        if isinstance(statement, ast.Expr):
            remark = block.splitlines()[(statement.end_lineno or 1) - 1].partition("  # ")[2]
            assert repr(eval(source, names)) == remark  # noqa: S307
            said += 1
        else:
            exec(source, names)  # noqa: S102
    assert said


def test_the_record_says_that_images_help() -> None:
    """What the pages claim, in the committed record: fitted to images beats both others, by more than chance."""
    record = json.loads((Path(__file__).parents[2] / "benchmarks/results/rewrites-cpu.json").read_text())[
        "lowrank"
    ]
    assert {key.partition("/")[0] for key in record} == {"fashion", "vgg16"}
    for row in record.values():
        assert not row["quick"]
        sign = {"accuracy": 1, "error": -1}[row["score"]]
        for other in ("data-free", "truncation"):
            low, high = row["data-aware minus"][other]["interval"]
            assert min(sign * low, sign * high) > 0
