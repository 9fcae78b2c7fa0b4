"""Depthwise separable at full rank is the layer; below it the nearest, in weights or, with images, in outputs."""

from __future__ import annotations

import itertools
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import convscope
from convscope import rules
from convscope.errors import RequestError
from convscope.rewrites import lowrank, moments
from convscope.rewrites import separable as rule_file
from convscope.rewrites.budget import Budget, Option, allocate, least
from convscope.rewrites.rewrite import rewrite
from convscope.rewrites.text import parse, written


def correlated(images: int, channels: int, size: int = 14) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(images, channels, size, size, generator=generator)
    return x + x.roll(1, 2) + x.roll(1, 3)  # neighbours go together, as in pictures


@settings(max_examples=20)
@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(2, 3)),
    stride=st.integers(1, 2),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    mode=st.sampled_from(["zeros", "reflect", "circular"]),
    bias=st.booleans(),
    out=st.sampled_from([2, 6, 24]),
)
def test_full_rank_is_exact(
    kernel: tuple[int, int],
    stride: int,
    padding: tuple[int, int],
    dilation: int,
    groups: int,
    mode: Literal["zeros", "reflect", "circular"],
    bias: bool,
    out: int,
) -> None:
    conv = nn.Conv2d(4, out, kernel, stride, padding, dilation, groups, bias, mode)
    edit = (made := rewrite(nn.Sequential(conv), rules.Separable(99), input="4x13x15")).done[0]
    full = min(kernel[0] * kernel[1], out // groups)
    assert (edit.exactness, edit.resolved["rank"], edit.resolved["kept"]) == ("exact", full, 1.0)
    new = made.net.module[0]  # type: ignore[index]
    assert (new.depthwise.groups, new.depthwise.out_channels) == (4, 4 * full)
    assert (new.pointwise.groups, new.pointwise.kernel_size) == (groups, (1, 1))
    x = torch.randn(2, 4, 13, 15)
    torch.testing.assert_close(new(x), conv(x), atol=1e-5, rtol=1e-4)


def test_without_images_each_channels_weights_are_nearest() -> None:
    """Eckart and Young, channel by channel: the error is what the dropped singular values hold."""
    conv = nn.Conv2d(4, 12, 3, padding=1, groups=2)
    made = rewrite(nn.Sequential(conv), rules.Separable(2), input="4x12x12")
    new = made.net.module[0]  # type: ignore[index]
    impulse = torch.zeros(4, 4, 5, 5)
    impulse[range(4), range(4), 2, 2] = 1
    with torch.no_grad():
        error = (new(impulse) - conv(impulse))[:, :, 1:4, 1:4].square().sum((1, 2, 3))
        spectra = [
            torch.linalg.svdvals(conv.weight[6 * (i // 2) : 6 * (i // 2) + 6, i % 2].flatten(1))
            for i in range(4)
        ]
    for found, values in zip(error, spectra, strict=True):
        torch.testing.assert_close(found, values[2:].square().sum(), rtol=1e-3, atol=1e-5)
    kept = 1 - float(error.sum() / conv.weight.detach().square().sum())
    edit = made.done[0]
    assert edit.resolved == {"rank": 2, "method": "svd", "kept": pytest.approx(kept, abs=1e-5)}
    assert edit.notes == (
        f"rank 2 of 6 keeps {kept:.4g} of the weights' power",
        "without data: the nearest weights",
    )
    torch.testing.assert_close(new.pointwise.bias, conv.bias)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("rank", [1, 3])
def test_with_images_the_pointwise_is_torchs_least_squares(
    groups: int, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rule_file, "SHRINK", 0.0)
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 10, 3, padding=1, stride=2, groups=groups)
    data = correlated(24, 4)
    made = rewrite(nn.Sequential(conv), rules.Separable(rank), data=data, input="4x14x14")
    new = made.net.module[0].double()  # type: ignore[index]
    with torch.no_grad():
        y = conv.double()(data.double())
        z = new.depthwise(data.double())
        inside, outside = 4 * rank // groups, 10 // groups
        for group in range(groups):
            part = z[:, inside * group : inside * (group + 1)].flatten(2).mT.flatten(0, 1)
            part = torch.cat([part, torch.ones(len(part), 1)], 1)
            target = y[:, outside * group : outside * (group + 1)].flatten(2).mT.flatten(0, 1)
            solved = torch.linalg.lstsq(part, target).solution
            rows = slice(outside * group, outside * (group + 1))
            torch.testing.assert_close(
                new.pointwise.weight[rows, :, 0, 0], solved[:-1].T, atol=2e-4, rtol=1e-3
            )
            torch.testing.assert_close(new.pointwise.bias[rows], solved[-1], atol=2e-4, rtol=1e-3)
        lost = (new(data.double()) - y).square().sum() / (y - y.mean((0, 2, 3), keepdim=True)).square().sum()
    assert made.done[0].resolved["kept"] == pytest.approx(1 - float(lost), abs=1e-4)
    plain = rewrite(
        nn.Sequential(conv.float()), rules.Separable(rank, method="svd"), data=data, input="4x14x14"
    )
    crude = rewrite(nn.Sequential(conv), rules.Separable(rank, method="truncate"), data=data, input="4x14x14")
    errors = [(made.net.module.float()(data) - conv(data)).square().mean() for made in (made, plain, crude)]
    assert errors[0] < errors[1] < errors[2]


def test_one_channel_with_images_is_the_best_of_its_rank() -> None:
    """With one input channel the least-squares optimum is known: the principal components of the output."""
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 8, 3, bias=False)
    data = correlated(40, 1)
    edit = rewrite(nn.Sequential(conv), rules.Separable(2), data=data, input="1x14x14").done[0]
    with torch.no_grad():
        y = conv(data).double().transpose(0, 1).flatten(1)
    powers = torch.linalg.eigvalsh(y.cov()).flip(0)
    assert edit.resolved["kept"] == pytest.approx(float(powers[:2].sum() / powers.sum()), abs=1e-3)


def test_truncation_keeps_the_taps_with_the_largest_weights() -> None:
    conv = nn.Conv2d(2, 16, 3, padding=1)
    made = rewrite(nn.Sequential(conv), rules.Separable(2, method="truncate"), input="2x9x9")
    new = made.net.module[0]  # type: ignore[index]
    taps = new.depthwise.weight.reshape(2, 2, 9)
    assert taps.sum(2).eq(1).all()
    assert taps.eq(1).sum() == 4
    with torch.no_grad():
        for i, power in enumerate(conv.weight.square().sum(0).flatten(1)):
            assert set(taps[i].argmax(1).tolist()) == set(power.topk(2).indices.tolist())
        kept = sum(float(p.topk(2).values.sum()) for p in conv.weight.square().sum(0).flatten(1))
    assert made.done[0].resolved["kept"] == pytest.approx(
        kept / float(conv.weight.detach().square().sum()), abs=1e-5
    )
    whole = rewrite(nn.Sequential(conv), rules.Separable(9, method="truncate"), input="2x9x9")
    assert whole.exactness == "exact"


def test_positions_are_sampled_evenly_and_padding_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """All positions taken, the moments are those of torch's unfold; fewer are close."""
    from convscope.rewrites.convolution import Convolution

    x = correlated(6, 4, 20)
    conv = Convolution.of(nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 2), (1, 2), 2, padding_mode="reflect"))
    padded = functional.pad(x, (2, 2, 1, 1), mode="reflect")
    patches = (
        functional.unfold(padded, (3, 2), (1, 2), 0, (2, 1))
        .unflatten(1, (2, 12))
        .permute(1, 2, 0, 3)
        .flatten(2)
    )
    monkeypatch.setattr(moments, "POSITIONS", 10_000)
    seen = moments.PatchMoments(conv)
    seen.see(x[:3])
    seen.see(x[3:])
    for group in range(2):
        torch.testing.assert_close(seen.covariance[group], patches[group].double().cov(correction=0))
        torch.testing.assert_close(seen.mean[group], patches[group].double().mean(1))
    monkeypatch.setattr(moments, "POSITIONS", 50)
    part = moments.PatchMoments(conv)
    part.see(x)
    assert part.count == 300
    monkeypatch.setattr(moments, "WIDE", 1)  # multiplied in float32
    rough = moments.PatchMoments(conv)
    rough.see(x)
    torch.testing.assert_close(rough.covariance, part.covariance, atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------- energy and budgets


def vgg() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3, padding=1),
        nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 24, 3, padding=1, groups=2), nn.ReLU(), nn.Conv2d(24, 24, 1),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("rule", [rules.Separable, rules.Bottleneck])
def test_energy_takes_the_least_rank_that_keeps_it(rule: type[lowrank.LowRank]) -> None:
    kept = [
        rewrite(vgg(), rule(rank), where="3", input="3x14x14").done[0].resolved["kept"]
        for rank in range(1, 6)
    ]
    assert kept == sorted(kept)
    wanted = (kept[2] + kept[3]) / 2
    assert rewrite(vgg(), rule(energy=wanted), where="3", input="3x14x14").done[0].resolved["rank"] == 4
    dear = rewrite(vgg(), rule(energy=1.0), where="3", input="3x14x14").edits[0]
    assert dear.reason is not None
    assert dear.reason.startswith("to keep 1 of its power takes rank ")
    assert dear.reason.endswith(", which costs no less")


@pytest.mark.parametrize("rule", [rules.Separable, rules.Bottleneck])
@pytest.mark.parametrize("with_data", [False, True])
@pytest.mark.parametrize("kind", ["macs", "params"])
def test_a_budget_of_cost_holds_and_loses_least(
    rule: type[lowrank.LowRank], with_data: bool, kind: str
) -> None:
    """Against every combination of ranks, costs as the profile counts them."""
    data = correlated(6, 3) if with_data else None
    net = convscope.load(vgg(), input="3x14x14")
    made = rewrite(net, rule(budget=f"{kind}:0.5"), where="0,3,6", data=data)
    chosen = {edit.layer: edit.resolved["rank"] for edit in made.done if "rank" in edit.resolved}
    layers = {row.name: getattr(row, kind) for row in convscope.measure(net).layers if row.name in "036"}
    options: dict[str, list[tuple[int, int, float]]] = {
        name: [(0, cost, 1.0)] for name, cost in layers.items()
    }
    for rank in range(1, 17):
        for edit in rewrite(net, rule(rank, norms=False), where="0,3,6", data=data).done:
            before, after = getattr(edit, kind) or (0, 0)
            if after < before and edit.resolved["rank"] == rank:
                options[edit.layer].append((rank, after, edit.resolved["kept"]))
    limit = 0.5 * sum(layers.values())
    best = max(
        (combination[0][2] * combination[1][2] * combination[2][2], tuple(each[0] for each in combination))
        for combination in itertools.product(*options.values())
        if sum(each[1] for each in combination) <= limit
    )
    assert tuple(chosen.get(name, 0) for name in options) == best[1]


def test_a_budget_of_error_spends_least() -> None:
    net = convscope.load(vgg(), input="3x14x14")
    made = rewrite(net, rules.Bottleneck(budget="error:0.2"))
    kept = 1.0
    for edit in made.done:
        kept *= edit.resolved["kept"]
    assert 0.8 <= kept < 0.86
    assert convscope.measure(made.net).totals.macs < convscope.measure(net).totals.macs
    left = [edit.reason for edit in made.refused]
    assert set(left) <= {"the budget error:0.2 leaves it as it is"}


@settings(max_examples=40)
@given(
    layers=st.lists(
        st.lists(st.tuples(st.integers(0, 30), st.floats(0, 1)), min_size=1, max_size=4),
        min_size=1,
        max_size=4,
    ),
    limit=st.integers(1, 60),
)
def test_the_knapsack_is_optimal(layers: list[list[tuple[int, float]]], limit: int) -> None:
    weights = [[float(weight) for weight, _ in layer] for layer in layers]
    values = [[value for _, value in layer] for layer in layers]
    picked = least(weights, values, limit)
    sums = [
        (
            sum(weights[i][j] for i, j in enumerate(combination)),
            sum(values[i][j] for i, j in enumerate(combination)),
        )
        for combination in itertools.product(*(range(len(layer)) for layer in layers))
    ]
    within = [value for weight, value in sums if weight <= limit]
    if not within:
        assert picked is None
        return
    assert picked is not None
    assert sum(weights[i][j] for i, j in enumerate(picked)) <= limit
    assert sum(values[i][j] for i, j in enumerate(picked)) == pytest.approx(min(within))
    fine = [[weight * 1e6 + 0.5 for weight in layer] for layer in weights]  # too many to count one by one
    rounded = least(fine, values, limit * 1e6 + 0.5 * len(fine))
    if rounded is not None:
        assert sum(fine[i][j] for i, j in enumerate(rounded)) <= limit * 1e6 + 0.5 * len(fine)


def test_a_share_of_nothing_is_finite() -> None:
    assert Option(1, 1, 0.0).loss == pytest.approx(27.6, abs=0.1)
    assert allocate([[Option(10, 1, 1.0), Option(4, 1, 0.0)]], Budget("macs", 0.3)) is None


# ---------------------------------------------------------------- batch norms


def test_norms_keep_the_mean_and_variance_of_what_they_give() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False),
        nn.BatchNorm2d(8, affine=False),
    )  # fmt: skip
    data = correlated(8, 3)
    net(2 * data)  # running statistics half way to those of other images
    net.eval()
    made = rewrite(net, rules.Separable(1), data=data, input="3x14x14")
    assert [edit.layer for edit in made.done] == ["0", "3", "1", "4"]
    assert made.done[2].notes == ("running mean and variance matched behind 0 on 8 images",)
    assert made.done[2].exactness == "approximate"
    with torch.no_grad():
        for last in (2, 5):
            old, new = (module[:last](data).transpose(0, 1).flatten(1) for module in (net, made.net.module))  # type: ignore[index]
            torch.testing.assert_close(new.mean(1), old.mean(1), atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(new.std(1), old.std(1), atol=1e-4, rtol=1e-4)
    plain = rewrite(net, rules.Separable(1, norms=False), data=data, input="3x14x14")
    assert [edit.layer for edit in plain.done] == ["0", "3"]
    exact = rewrite(net, rules.Separable(9), data=data, input="3x14x14")
    assert [edit.layer for edit in exact.done] == ["0", "3"]  # nothing moved, so no norm need


# ---------------------------------------------------------------- what it does not do


@pytest.mark.parametrize(
    ("layer", "rule", "reason"),
    [
        (nn.Conv2d(4, 8, 3, groups=4), rules.Separable(1), "it is depthwise already"),
        (nn.Conv2d(4, 8, 1), rules.Separable(1), "its kernel is 1x1, which nothing can be taken out of"),
        (nn.Conv2d(4, 8, 3), rules.Separable(1, method="least_squares"), 'method="least_squares" needs images; give data='),
        (nn.Conv2d(4, 4, 3, groups=4), rules.Bottleneck(1),
         "it has one filter, or one weight a filter, in a group: nothing is narrower"),
        (nn.Conv2d(4, 8, 3), rules.Bottleneck(1, method="least_squares"), 'method="least_squares" needs images; give data='),
    ],
)  # fmt: skip
def test_refusals(layer: nn.Module, rule: rules.Rule, reason: str) -> None:
    assert rewrite(nn.Sequential(layer), rule, input="4x9x9").edits[0].reason == reason


@pytest.mark.parametrize("rule", [rules.Separable, rules.Bottleneck])
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "exactly one of rank, energy and budget must be given, not none"),
        (
            {"rank": 1, "energy": 0.5},
            "exactly one of rank, energy and budget must be given, not rank and energy",
        ),
        ({"rank": 0}, "rank=0 must be a whole number from 1"),
        ({"rank": True}, "rank=True must be a whole number from 1"),
        ({"energy": 1.5}, "energy=1.5 must be a share above 0 and at most 1"),
        ({"budget": "macs:1.5"}, "budget='macs:1.5' must be macs:SHARE, params:SHARE or error:SHARE"),
        ({"budget": "time:0.5"}, "budget='time:0.5' must be"),
        ({"budget": "macs"}, "budget='macs' must be"),
        ({"budget": 0.5}, "budget=0.5 must be"),
        ({"rank": 1, "method": "best"}, "method='best' must be one of auto, least_squares, svd, truncate"),
        ({"rank": 1, "norms": 2}, "norms=2 must be true or false"),
    ],
)
def test_arguments_are_checked(rule: type[lowrank.LowRank], arguments: dict[str, object], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        rule(**arguments)  # type: ignore[arg-type]


def test_a_budget_that_cannot_be_met_says_how_far_it_goes() -> None:
    with pytest.raises(
        RequestError,
        match=r"budget='macs:0.01' cannot be met: at the lowest rank everywhere 0.\d+ of the macs",
    ):
        rewrite(vgg(), rules.Separable(budget="macs:0.01"), input="3x14x14")


def test_dead_layers_and_wide_ones_take_the_nearest_weights_and_say_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    black = torch.zeros(4, 3, 14, 14)
    made = rewrite(vgg(), rules.Separable(1), where="0", data=black, input="3x14x14")
    assert made.done[0].notes[-1] == "its outputs do not vary on the images"
    assert made.done[0].resolved["method"] == "svd"
    monkeypatch.setattr(rule_file, "WIDEST", 8)
    wide = rewrite(vgg(), rules.Separable(1), where="0", data=correlated(4, 3), input="3x14x14")
    assert wide.done[0].notes[-1] == "its filters have more than 8 weights, too many to fit to images"


def test_rules_as_text() -> None:
    rule = parse("separable:budget=macs:0.5,method=svd,where=layer3.*")
    assert rule == rules.Separable(budget="macs:0.5", method="svd", where="layer3.*")
    assert parse(written(rule)) == rule
    assert parse("bottleneck:16") == rules.Bottleneck(16)


def test_padding_of_all_kinds() -> None:
    from convscope._torchvision import declare_missing_operators

    declare_missing_operators()
    from timm.layers.conv2d_same import Conv2dSame

    for conv in (
        Conv2dSame(4, 6, 3, stride=2),
        convscope.nn.Conv2d(4, 6, 3, padding=((1, 0), (2, 1)), padding_mode="partial"),
        convscope.nn.Conv2d(4, 6, 4, padding="same", padding_mode="replicate"),
    ):
        for rule in (rules.Separable(99), rules.Bottleneck(99)):
            made = rewrite(nn.Sequential(conv), rule, input="4x15x15")
            assert made.exactness == "exact"
            x = torch.randn(1, 4, 16, 15)
            torch.testing.assert_close(made.net.module(x), conv(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rule", [rules.Separable(2), rules.Bottleneck(3), rules.Separable(9)])
@pytest.mark.parametrize("with_data", [False, True])
def test_what_was_decided_is_enough_to_build_the_structure_again(
    rule: lowrank.LowRank, with_data: bool
) -> None:
    """As a recipe does, without images: the weights then come from the file."""
    from convscope.rewrites.calibrate import Calibration
    from convscope.rewrites.work import Work

    net = convscope.load(vgg(), input="3x14x14")
    made = rewrite(net, rule, data=correlated(6, 3) if with_data else None)
    decided = {edit.layer: edit.resolved for edit in made.done}
    work = Work(net, "*", Calibration(net), settled=[decided])
    work.run(rule)
    assert str(work.module) == str(made.net.module)
    work.result().load_state_dict(made.net.module.state_dict())
