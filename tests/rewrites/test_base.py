"""The machine behind rewrites: rules as values and text, selection, refusals, and a verifier that rejects a false claim."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import convscope
from convscope import rules
from convscope.errors import BadInput, ModelError, RequestError, UnknownLayer, UnknownName
from convscope.rewrites.base import REGISTRY, Change, LayerRule, VerificationError, register
from convscope.rewrites.convolution import Convolution
from convscope.rewrites.rewrite import rewrite
from convscope.rewrites.select import select
from convscope.rewrites.text import parse, written
from convscope.rewrites.work import Facts

SIZE = "3x20x24"


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 5, padding=2, groups=2), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip


@dataclass(frozen=True)
class Wrong(LayerRule):
    """Claims what is not so."""

    name: ClassVar[str] = "wrong"
    kinds: ClassVar[tuple[type[nn.Module], ...]] = (nn.Conv2d,)

    claim: Any = "exact"
    how: str = "nan"

    def replace(self, site: Any) -> Change:
        conv = Convolution.of(site.module)
        if self.how == "smaller":
            return Change(conv.with_(padding=((0, 0), (0, 0))).module(), self.claim)
        return Change(conv.with_(weight=conv.weight * float("nan")).module(), self.claim)


class _Almost(nn.Module):
    """A convolution that is off by a little more than rounding."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv(x)
        return y * (1 + 1e-7)


@dataclass(frozen=True)
class Off(LayerRule):
    """Off by 1e-7 and called exact."""

    name: ClassVar[str] = "off"
    kinds: ClassVar[tuple[type[nn.Module], ...]] = (nn.Conv2d,)

    def replace(self, site: Any) -> Change:
        return Change(_Almost(site.module), "exact")


@dataclass(frozen=True)
class Bordered(LayerRule):
    """Reflects at the border, and calls it exact."""

    name: ClassVar[str] = "bordered"
    kinds: ClassVar[tuple[type[nn.Module], ...]] = (nn.Conv2d,)
    margin: int = 0
    claim: Any = "exact"

    def replace(self, site: Any) -> Change:
        conv = Convolution.of(site.module)
        return Change(conv.with_(mode="reflect").module(), self.claim, margin=(self.margin, self.margin))


@dataclass(frozen=True)
class Misplaced(rules.Rule):
    """Puts a right replacement in a wrong place, which no layer shows by itself."""

    name: ClassVar[str] = "misplaced"

    def apply(self, work: Any) -> None:
        first, second = work.sites((nn.Conv2d,), self.where)[:2]
        change = Change(Convolution.of(first.module).module(), "exact")
        work.replace(self, first, change)
        work.put(second.layer, nn.Conv2d(8, 8, 1))


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (Off(), "claims 'exact', but outputs differ by 1.0e-07"),
        (Bordered(), "claims 'exact', but outputs differ"),
        (Wrong(how="smaller"), "shapes"),
        (Wrong(how="nan"), "not finite"),
        (Misplaced(), "the network's outputs differ|changed the network's output"),
    ],
)
def test_a_false_claim_is_an_error(rule: rules.Rule, says: str) -> None:
    module = network()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(VerificationError, match=says):
        rewrite(module, rule, input=SIZE)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_an_interior_is_verified_inside_its_margin() -> None:
    made = rewrite(network(), Bordered(margin=2, claim="exact-interior"), input=SIZE)
    assert [edit.exactness for edit in made.done] == ["exact-interior"] * 2
    assert made.exactness == "exact-interior"
    assert all(edit.error is not None and edit.error < 1e-9 for edit in made.done)
    with pytest.raises(VerificationError, match="claims 'exact-interior'"):
        rewrite(network(), Bordered(margin=1, claim="exact-interior"), input=SIZE)  # the 5x5 reaches 2


# ---------------------------------------------------------------- refusals


def test_what_cannot_be_replaced_is_refused_with_the_reason() -> None:
    module = network()
    module[0].register_forward_hook(lambda *_: None)
    hooked = rewrite(module, rules.KernelSize(7), input=SIZE)
    assert hooked.edits[0].reason == "it carries hooks, which a replacement would lose; remove them first"
    assert [edit.layer for edit in hooked.done] == ["2"]
    module[0]._forward_hooks.clear()

    module = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1))
    module[2].weight = module[0].weight
    shared = rewrite(module, rules.KernelSize(5), input=SIZE)
    assert not shared.done
    assert shared.edits[0].reason == "its weights are shared with '2', and would no longer be"

    wrong = rewrite(network(), rules.KernelSize(5), where="1", input=SIZE)
    assert wrong.edits[0].reason == "it is a ReLU, and the rule is about Conv2d"


def test_a_module_called_from_several_places_is_replaced_everywhere() -> None:
    conv = nn.Conv2d(3, 3, 3, padding=1)
    module = nn.Sequential(conv, nn.ReLU(), conv, nn.Sequential(conv))
    made = rewrite(module, rules.KernelSize(5), input=SIZE)
    assert len(made.done) == 1
    new = made.net.module
    assert new[0] is new[2]  # type: ignore[index]
    assert new[0] is new[3][0]  # type: ignore[index]
    assert new[0].kernel_size == (5, 5)  # type: ignore[index]


class Standardized(nn.Conv2d):
    """A convolution with a forward pass of its own."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(input, self.weight - self.weight.mean(), self.bias, padding=1)


def test_a_subclass_with_a_forward_of_its_own_is_refused() -> None:
    made = rewrite(nn.Sequential(Standardized(3, 4, 3)), rules.KernelSize(5), input=SIZE)
    assert made.edits[0].reason == "it is a Standardized, whose forward pass may do more than convolve"


def test_a_parametrized_weight_is_taken_as_it_is_computed() -> None:
    module = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3, padding=1)))
    made = rewrite(module, rules.KernelSize(5), input=SIZE)
    assert made.done[0].exactness == "exact"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_opaque_networks_are_refused_clearly() -> None:
    with pytest.raises(ModelError, match="TorchScript"):
        rewrite(nn.Sequential(torch.jit.trace(nn.ReLU(), torch.zeros(1))), rules.KernelSize(5), input=SIZE)
    with pytest.raises(ModelError, match="compiled by torch.compile"):
        rewrite(nn.Sequential(torch.compile(network())), rules.KernelSize(5), input=SIZE)  # type: ignore[arg-type]


def test_a_rule_with_nothing_to_do_says_what_there_is() -> None:
    with pytest.raises(
        RequestError, match="found nothing to do in Sequential, which runs 1 Flatten, 1 Linear"
    ):
        rewrite(nn.Sequential(nn.Flatten(), nn.Linear(3 * 20 * 24, 2)), rules.KernelSize(3), input=SIZE)


def test_arguments_are_checked() -> None:
    with pytest.raises(RequestError, match="must be a rule of convscope.rules, or its text"):
        rewrite(network(), 5, input=SIZE)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=r"must be \[image, 3, height, width\]"):
        rewrite(network(), rules.KernelSize(5), data=torch.zeros(2, 1, 20, 24), input=SIZE)
    with pytest.raises(RequestError, match="taken"):
        register(type("Other", (LayerRule,), {"name": "kernel_size"}))
    with pytest.raises(RequestError, match="at least one rule"):
        rules.Chain(())


# ---------------------------------------------------------------- the result


def test_the_caller_keeps_the_network_and_the_result_runs() -> None:
    module = network().train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    made = rewrite(module, rules.KernelSize(5) | rules.KernelSize(7, where="0"), input=SIZE)
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert [(edit.layer, edit.refused) for edit in made.edits] == [("0", False), ("2", True), ("0", False)]
    x = torch.randn(2, 3, 20, 24)
    torch.testing.assert_close(made.net.module(x), module.eval()(x))
    assert str(made.rule) == "kernel_size:size=5 | kernel_size:size=7,where=0"
    assert made.to_dict()["edits"][0]["params"] == (224, 608)
    assert made.done[0].macs == (3 * 8 * 9 * 20 * 24, 3 * 8 * 25 * 20 * 24)
    assert "refused: its kernel is 5x5 already" in made._repr_html_()
    assert made.recipe["rules"] == ["kernel_size:size=5", "kernel_size:size=7,where=0"]
    assert repr(made).startswith("Rewrite(")


# ---------------------------------------------------------------- text and selection


@given(
    st.lists(
        st.builds(
            rules.KernelSize,
            st.integers(1, 99) | st.tuples(st.integers(1, 9), st.integers(1, 9)),
            st.sampled_from(["auto", "sum", "crop", "least_squares"]),
            where=st.sampled_from(["*", "layer3.*", "a,b.c", "macs > 5 % & kind:Conv2d", "!x, y*"]),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_text_is_read_back(links: list[rules.Rule]) -> None:
    rule = links[0] if len(links) == 1 else rules.Chain(tuple(links))
    assert parse(str(rule)) == rule


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("kernelsize:3", UnknownName, "did you mean 'kernel_size'"),
        ("kernel_size:3,methd=sum", UnknownName, "did you mean 'method'"),
        ("kernel_size:3,sum", RequestError, "must be written as name=value"),
        ("kernel_size", RequestError, "cannot be made"),
        ("kernel_size:0", RequestError, "whole number from 1"),
        ("kernel_size:3,method=best", RequestError, "must be one of"),
    ],
)
def test_wrong_text_is_told(text: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        parse(text)


def test_every_rule_is_registered_and_written() -> None:
    for name, rule in REGISTRY.items():
        assert rule.name == name
        assert rule.__doc__
        assert getattr(rules, rule.__name__) is rule
    assert written(rules.KernelSize((3, 5), where="x")) == "kernel_size:size=3x5,where=x"


LAYERS = {
    "stem": Facts("Conv2d", 900, 100, 3, 16, 3, 2, 1),
    "body.0": Facts("Conv2d", 90, 300, 16, 16, 5, 1, 16),
    "body.1": Facts("ReLU", 0, 0),
    "head": Facts("Linear", 10, 600),
}


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ("*", ["stem", "body.0", "body.1", "head"]),
        ("body.*", ["body.0", "body.1"]),
        ("head, stem", ["stem", "head"]),
        ("!body.*", ["stem", "head"]),
        ("kind:Conv*", ["stem", "body.0"]),
        ("macs > 5 %", ["stem", "body.0"]),
        ("macs >= 10 & params < 50%", ["stem", "body.0"]),
        ("kernel == 5", ["body.0"]),
        ("groups > 1 & body.*", ["body.0"]),
    ],
)
def test_selection(where: str, found: list[str]) -> None:
    assert select(where, LAYERS) == found


@pytest.mark.parametrize(
    ("where", "error", "says"),
    [
        ("boddy.0", UnknownLayer, "did you mean 'body.0'"),
        ("mac > 5", RequestError, "cannot be compared"),
        ("kernel > 5 %", RequestError, "a share makes sense of"),
        ("stem & ", RequestError, "an empty condition"),
        ("macs > 1e", RequestError, "is no number"),
    ],
)
def test_wrong_selection_is_told(where: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        select(where, LAYERS)


def test_public_names() -> None:
    assert convscope.rewrite is rewrite
    assert convscope.rules is rules
