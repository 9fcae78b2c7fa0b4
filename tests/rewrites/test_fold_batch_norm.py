"""Norms are folded into every kind of layer exactly, or refused with the reason; float64 tells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from convscope import load, rules
from convscope import nn as layers
from convscope._torchvision import torchvision
from convscope.errors import UnknownLayer
from convscope.models import InputSpec, as_net
from convscope.rewrites.calibrate import Calibration
from convscope.rewrites.rewrite import Rewrite, rewrite
from convscope.rewrites.work import Work


def lively(module: nn.Module) -> nn.Module:
    """Norms that do something, in eval mode."""
    generator = torch.Generator().manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is not None:
            part.running_mean.normal_(generator=generator)
            assert part.running_var is not None
            part.running_var.uniform_(0.5, 2.0, generator=generator)
            if part.affine:
                nn.init.normal_(part.weight, 1.0, 0.3, generator=generator)
                nn.init.normal_(part.bias, 0.0, 0.3, generator=generator)
    return module.eval()


def folded(module: nn.Module, shape: tuple[int, int, int] = (4, 11, 13)) -> Rewrite:
    """Folds in float64, and compares with the module itself beside what the verifier did."""
    lively(module).double()
    made = rewrite(module, rules.FoldBatchNorm(), input=InputSpec(shape))
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(made.net.module(x), module(x), atol=1e-11, rtol=1e-11)
    return made


def shaped(axes: int) -> nn.Module:
    """Brings pictures [4, 6, 30] to that many axes: none, 180, 6 x 30 or 6 x 5 x 6."""
    return (nn.Flatten(1), nn.Flatten(2), nn.Identity(), nn.Unflatten(3, (5, 6)))[axes]


def norms(made: Rewrite) -> int:
    return sum(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in made.net.module.modules())


@settings(max_examples=25, deadline=None)
@given(
    axes=st.integers(1, 3),
    transposed=st.booleans(),
    groups=st.sampled_from([1, 2, 4]),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    bias=st.booleans(),
    affine=st.booleans(),
)
def test_behind_every_kind_of_convolution(
    axes: int, transposed: bool, groups: int, kernel: int, stride: int, padding: int, bias: bool, affine: bool
) -> None:
    kind = getattr(nn, f"Conv{'Transpose' if transposed else ''}{axes}d")
    conv = kind(4, 12, kernel, stride, min(padding, kernel - 1), groups=groups, bias=bias)
    norm = getattr(nn, f"BatchNorm{axes}d")(12, affine=affine)
    made = folded(nn.Sequential(shaped(axes), conv, norm, nn.ReLU()), (4, 6, 30))
    assert [edit.layer for edit in made.done] == ["1"]
    assert made.done[0].exactness == "exact"
    assert norms(made) == 0


@settings(max_examples=15, deadline=None)
@given(
    axes=st.integers(1, 3),
    groups=st.sampled_from([1, 2]),
    kernel=st.integers(1, 3),
    mode=st.sampled_from(["valid", "reflect", "replicate", "circular"]),
    bias=st.booleans(),
)
def test_in_front_of_a_convolution_without_zeros(
    axes: int, groups: int, kernel: int, mode: str, bias: bool
) -> None:
    if mode == "reflect" and axes == 3:
        mode = "circular"
    more: dict[str, Any] = {} if mode == "valid" else {"padding": kernel // 2, "padding_mode": mode}
    conv = getattr(nn, f"Conv{axes}d")(4, 6, kernel, stride=2, groups=groups, bias=bias, **more)
    norm = getattr(nn, f"BatchNorm{axes}d")(4)
    made = folded(nn.Sequential(shaped(axes), norm, conv), (4, 6, 30))
    assert norms(made) == 0
    assert made.done[0].notes == ("'1', in front of it, is part of it",)


def test_a_hand_worked_case() -> None:
    """Grouped and transposed: output channel 2 g + j takes gain 2 g + j, whatever input channel it comes from."""
    conv = nn.ConvTranspose2d(2, 4, 1, groups=2, bias=False)
    conv.weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[:, :, None, None]  # [in, out of the group]
    norm = nn.BatchNorm2d(4, eps=0.0)
    norm.weight.data, norm.bias.data = torch.tensor([1.0, 10.0, 100.0, 1000.0]), torch.arange(4.0)
    made = rewrite(nn.Sequential(conv, norm).eval(), rules.FoldBatchNorm(), input="2x3x3")
    new: Any = made.net.module[0]  # type: ignore[index]
    assert new.weight.flatten().tolist() == [1, 20, 300, 4000]
    assert new.bias.tolist() == [0, 1, 2, 3]


def test_linear_layers_on_both_sides() -> None:
    shape = (4, 1, 2)
    stack = [nn.Linear(8, 6, bias=False), nn.BatchNorm1d(6), nn.BatchNorm1d(6), nn.Linear(6, 3)]
    made = folded(nn.Sequential(nn.Flatten(), *stack), shape)
    assert norms(made) == 0
    assert [edit.layer for edit in made.done] == ["1", "4"]
    alone = nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 3))
    assert folded(alone, shape).done[0].layer == "4"


def test_norms_one_after_the_other_fold_in_rounds() -> None:
    made = folded(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.BatchNorm2d(6), nn.BatchNorm2d(6)))
    assert norms(made) == 0
    assert [edit.resolved["norm"] for edit in made.done] == ["1", "2", "3"]


def test_timms_layers() -> None:
    torchvision()  # timm imports it
    from timm.layers.conv2d_same import Conv2dSame
    from timm.layers.norm_act import BatchNormAct2d

    module = nn.Sequential(Conv2dSame(4, 6, 3, 2, bias=False), BatchNormAct2d(6), nn.Conv2d(6, 2, 1))
    made = folded(module)
    assert norms(made) == 0
    assert {"drop", "act"} <= {name for name, _ in made.net.module[1].named_children()}  # type: ignore[index]
    front = folded(nn.Sequential(nn.BatchNorm2d(4), Conv2dSame(4, 6, 3)))
    assert front.edits[0].reason == "'1' behind it lays zeros around its input, which the norm does not shift"


@pytest.mark.parametrize("padding", [1, ((0, 1), (2, 0)), "same", "full"])
@pytest.mark.parametrize("mode", ["zeros", "partial"])
def test_our_own_convolution(padding: Any, mode: str) -> None:
    conv = layers.Conv2d(4, 6, 3, padding=padding, padding_mode=mode, algorithm="im2col")
    assert norms(folded(nn.Sequential(conv, nn.BatchNorm2d(6)))) == 0
    made = folded(nn.Sequential(nn.BatchNorm2d(4), conv))
    assert made.edits[0].reason == "'1' behind it lays zeros around its input, which the norm does not shift"


def test_the_fashion_network() -> None:
    net = load("fashion")
    made = rewrite(net, rules.FoldBatchNorm())
    assert not made.refused
    assert norms(made) == 0
    x = net.input.example(8)
    with torch.no_grad():
        torch.testing.assert_close(made.net.module(x), net.module(x), atol=1e-4, rtol=1e-4)
    assert made.exactness == "exact"


class Odd(nn.Module):
    """A convolution and a norm joined in some odd way."""

    def __init__(self, join: Callable[[Odd, Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.bn, self.other = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.join = join

    def forward(self, x: Tensor) -> Any:
        return self.join(self, x)


ODD: dict[str, tuple[Callable[[Odd, Tensor], Any], str]] = {
    "convolution used twice": (lambda m, x: m.bn(m.conv(m.conv(x))), "'conv' runs 2 times in a pass"),
    "norm used twice": (lambda m, x: m.bn(m.bn(m.conv(x))), "'bn' runs 2 times in a pass"),
    "both used twice": (lambda m, x: m.bn(m.conv(m.bn(m.conv(x)))), "'bn' runs 2 times in a pass"),
    "output read twice": (
        lambda m, x: (lambda y: m.bn(y) + y)(m.conv(x)), "what 'conv' gives goes to 'add' too, not to 'bn' alone",
    ),
    "output given too": (
        lambda m, x: (lambda y: (m.bn(y), y))(m.conv(x)), "what 'conv' gives is an output of the network too",
    ),
    "activation between": (
        lambda m, x: m.bn(m.conv(x).relu()), "it stands between 'relu' and no convolution or linear layer",
    ),
    "norm first": (
        lambda m, x: m.conv(m.bn(x)), "'conv' behind it lays zeros around its input, which the norm does not shift",
    ),
    "changed in place between": (
        lambda m, x: m.bn(m.conv(x).mul_(2)), "it stands between 'mul' and no convolution or linear layer",
    ),
    "weight computed": (
        lambda m, x: m.bn(nn.functional.conv2d(x, m.conv.weight * 2, m.conv.bias, padding=1)),
        "it stands between 'convolution' and no convolution or linear layer",
    ),
    "weight used elsewhere": (
        lambda m, x: m.bn(m.conv(x)) + m.conv.weight.sum(), "'weight' of 'conv' is also used outside of it",
    ),
    "statistics used elsewhere": (
        lambda m, x: m.bn(m.conv(x)) + cast(Tensor, m.bn.running_mean).sum(), "'running_mean' of 'bn' is also used outside of it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_what_is_not_a_plain_pair_is_refused(name: str) -> None:
    join, reason = ODD[name]
    made = rewrite(Odd(join), rules.FoldBatchNorm(where="bn"), input="4x9x9")
    assert [edit.reason for edit in made.edits] == [reason]


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "own statistics": (
        lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
        "it has no running statistics, and normalizes by those of each batch",
    ),
    "another class": (
        lambda: nn.Sequential(nn.Conv2d(4, 4, 1), type("Odder", (nn.BatchNorm2d,), {})(4)),
        "it is a Odder, whose forward pass may do more than normalize",
    ),
    "transposed behind": (
        lambda: nn.Sequential(nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 4, 3)),
        "'1' behind it is transposed, whose positions see different taps",
    ),
    "other channels": (
        lambda: nn.Sequential(nn.Flatten(2), nn.Linear(81, 5), nn.BatchNorm1d(4)),
        "its channels are not the features of '1'",
    ),
    "computed weights": (
        lambda: nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), nn.BatchNorm2d(4)
        ),
        "the weights of '0' are computed by a parametrization",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_layers_that_cannot_be_folded(name: str) -> None:
    build, reason = REFUSED[name]
    made = rewrite(build(), rules.FoldBatchNorm(), input="4x9x9")
    assert [edit.reason for edit in made.edits] == [reason]


def test_hooks_and_shared_weights_are_refused() -> None:
    module = nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 3)), nn.BatchNorm2d(4))
    for place, named in ((module[0][0], "0.0"), (module[0], "0"), (module[1], "1")):  # type: ignore[index]
        handle = place.register_forward_hook(lambda _, __, output: output)
        reason = rewrite(module, rules.FoldBatchNorm(), input="4x9x9").edits[0].reason
        handle.remove()
        assert reason is not None
        assert reason.startswith(f"'{named}' carries hooks")
    two = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    two[2].weight = two[0].weight
    made = rewrite(two, rules.FoldBatchNorm(), input="4x9x9")
    assert {edit.reason for edit in made.edits} == {
        "the weights of '0' are shared with '2'", "the weights of '2' are shared with '0'",
    }  # fmt: skip


class Doubling(nn.Conv2d):
    """A convolution that does more, after its own operation."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class Same(nn.Conv2d):
    """A class of its own that convolves."""


class Late(nn.Conv2d):
    """Adds a bias only where it began with one."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.bias = None

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight, None)


def test_other_classes_of_convolution_go_by_what_they_did() -> None:
    assert norms(folded(nn.Sequential(Same(4, 5, 3), nn.BatchNorm2d(5)))) == 0
    doubled = rewrite(
        nn.Sequential(Doubling(4, 5, 3), nn.BatchNorm2d(5)), rules.FoldBatchNorm(), input="4x9x9"
    )
    told = "'0' is a Doubling, whose forward pass does more than convolve"
    assert [edit.reason for edit in doubled.edits] == [told]
    late = rewrite(
        lively(nn.Sequential(Late(4, 5, 3), nn.BatchNorm2d(5))), rules.FoldBatchNorm(), input="4x9x9"
    )
    assert [edit.reason for edit in late.edits] == [told.replace("Doubling", "Late")]


def test_where_names_norms_or_their_layers() -> None:
    def build() -> nn.Module:
        return nn.Sequential(*[nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)])

    for where, expected in (("0", ["0"]), ("1", ["0"]), ("2,3", ["2"]), ("kind:Conv2d", ["0", "2"])):
        made = rewrite(build(), rules.FoldBatchNorm(where=where), input="4x9x9")
        assert [edit.layer for edit in made.done] == expected
    with pytest.raises(UnknownLayer, match="matches no layer"):
        rewrite(build(), rules.FoldBatchNorm(where="9"), input="4x9x9")
    other = rewrite(nn.Sequential(nn.ReLU(), build()), rules.FoldBatchNorm(where="0"), input="4x9x9")
    assert [edit.reason for edit in other.edits] == ["it is a ReLU, and the rule is about batch norms"]


def test_a_recipe_repeats_what_was_merged() -> None:
    stack = [nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)]
    net = as_net(nn.Sequential(*stack), InputSpec((4, 9, 9)))
    first = rewrite(net, rules.FoldBatchNorm(where="1"))
    work = Work(net, "*", Calibration(net), settled=[{edit.layer: edit.resolved for edit in first.done}])
    work.run(rules.FoldBatchNorm(where="1"))
    again, made = work.result().state_dict(), first.net.module.state_dict()
    assert again.keys() == made.keys()
    assert all(torch.equal(again[name], made[name]) for name in made)


def test_half_precision_that_would_overflow_is_refused() -> None:
    module = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)).half()
    norm = cast(nn.BatchNorm2d, module[1])
    cast(Tensor, norm.running_var).fill_(0)
    norm.weight.data.fill_(60000)
    made = rewrite(module, rules.FoldBatchNorm(), input="4x9x9")
    assert made.edits[0].reason == (
        "the merged weights would exceed what float16 can hold; bring the network into float32"
    )
