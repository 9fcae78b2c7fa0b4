"""The oracle of the sweep finds what was tampered with; the sweep itself (`make sweep`) writes docs/sweep-rewrites.md."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

import sweep_rewrites
import sweep_rewrites_table
from convscope import rules
from convscope.rewrites.rewrite import Rewrite, rewrite
from rewrite_oracle import audit, state_of


def subject() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip


def made(rule: rules.Rule) -> Rewrite:
    return rewrite(subject(), rule, input="3x24x24")


@pytest.mark.parametrize(
    ("rule", "looks"),
    [
        (rules.KernelSize(5), "layers recomposed network larger"),
        (rules.Padding("reflect"), "layers recomposed"),
        (rules.Padding("valid", where="0"), "layers recomposed"),
        (rules.Separable(2), "layers recomposed"),
        (rules.FoldBatchNorm(), "recomposed network larger"),
        (rules.Pool("moved", where="3"), "recomposed"),
        (rules.Pool("none", where="3"), "recomposed grids"),
        (rules.Untie() | rules.Tie(), "recomposed network"),
        (rules.Convolutionalize(), "network"),
        (rules.Convolutionalize(dense=True), "grids windows"),
        (rules.Pool("max"), "recomposed exchanged"),
        (rules.InputSize(30, 40, "tiles"), "fitted"),
        (rules.InputSize(30, 40, "pad"), "fitted"),
        (rules.Pool("strided", where="5"), "network"),
    ],
    ids=str,
)
def test_an_honest_rewrite_passes(rule: rules.Rule, looks: str) -> None:
    one = made(rule)
    found = audit(state_of(one.base.module), one)
    assert found.problems == []
    assert set(looks.split()) <= set(found.done)


def _swap(one: Rewrite, **changes: Any) -> Rewrite:
    return dataclasses.replace(one, edits=tuple(dataclasses.replace(edit, **changes) for edit in one.edits))


def test_what_was_tampered_with_is_found() -> None:
    def problems(one: Rewrite, before: dict[str, torch.Tensor] | None = None) -> str:
        return "; ".join(audit(state_of(one.base.module) if before is None else before, one).problems)

    one = made(rules.KernelSize(5))
    one.net.module[7].weight[0, 0] += 1e-3  # type: ignore[index, operator, union-attr]
    assert "changed without an edit: 7" in problems(one)
    one = made(rules.KernelSize(5))
    one.net.module[4].weight[0, 0, 0, 0] += 0.5  # type: ignore[index, operator, union-attr]
    assert "4 is exact, and off by" in problems(one)
    assert "every edit is exact, and the outputs differ" in problems(one)
    assert "4 tells an error of 1.00e-03, and has 0.00e+00" in problems(
        _swap(made(rules.KernelSize(5, where="4")), exactness="approximate", rms_error=1e-3)
    )
    one = made(rules.Padding("reflect", where="4"))
    assert "4 is exact-interior, and off by" in problems(_swap(one, margin=(0, 0)))
    one = made(rules.InputSize(30, 40, "tiles"))
    one.net.module.how = "crop"  # type: ignore[assignment]
    assert "tiles is off by" in problems(one)
    one = made(rules.Convolutionalize(dense=True))
    one.net.module[4].dilation = (1, 1)  # type: ignore[index, union-attr]
    assert "4 was dilated, and no grid of it is what it was" in problems(one)
    one = made(rules.Padding("zeros"))
    before = state_of(one.base.module)
    before["7.bias"][0] += 1
    assert "the caller's network was changed" in problems(one, before)
    one = made(rules.Padding("zeros"))
    one.net.module[0].bias[0] += 1  # type: ignore[index, operator, union-attr]
    assert "nothing was edited, and the outputs differ" in problems(one)
    assert "0 was refused, and changed" in problems(one)


def test_rows_and_their_page() -> None:
    net = dataclasses.replace(made(rules.KernelSize(5)).base, name="subject")
    cases = (
        "kernel_size:size=5,where=kernel == 3",
        "padding:kind=zeros",
        "upsample:kind=bilinear",
        "separable:rank=2",
    )
    rows = [sweep_rewrites.try_one("here:subject", net, case) for case in cases]
    assert [row.status for row in rows] == ["exact", "refused", "nothing", "approximate"]
    assert [row.done for row in rows] == [2, 0, 0, 2]
    page = sweep_rewrites_table.table(rows)
    assert (
        "1 models (0 of timm, 0 of torchvision), 4 rules, 4 rewrites, 4 edits, 2 layers refused, 0 rewrites stopped; "
        "**0 corrupt**" in page
    )
    assert "| here:subject | 24 | E 2 | r 2 | - | A 2 0." in page
    assert "its padding is '...' already | 2 | 1 |" in page


# rewrites that are refused as a whole, by an error and with nothing changed, where one layer would do: networks whose
# forward reads attributes of a convolution that is made into two, and attention over a finer map
RAISED = {
    ("timm:edgenext_xx_small", "bottleneck:rank=8"),
    ("timm:davit_tiny", "separable:rank=2"),
    ("timm:davit_tiny", "bottleneck:rank=8"),
    ("timm:nextvit_small", "pool:kind=none"),
}


@pytest.mark.sweep
@pytest.mark.timeout(14400)
@pytest.mark.filterwarnings("ignore")
def test_no_rule_corrupts_any_model() -> None:
    rows = list(sweep_rewrites.run(sweep_rewrites.sources(), list(sweep_rewrites.CASES), set()))
    sweep_rewrites_table.TABLE.write_text(sweep_rewrites_table.table(rows), "utf-8")
    assert len({row.source for row in rows if row.source.startswith("timm:")}) >= 60
    assert not [(row.source, row.case, row.problems) for row in rows if row.problems]
    assert {(row.source, row.case) for row in rows if row.status == "raised"} <= RAISED
    assert all(row.reasons for row in rows if row.status in ("refused", "nothing"))
