"""Objectives by hand, their algebra, and that no sample sees another."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from convscope.errors import RequestError
from convscope.features.objectives import (
    L1,
    L2,
    Activations,
    Channel,
    Constant,
    Custom,
    Direction,
    Diversity,
    Layer,
    Logit,
    Neuron,
    Objective,
    Rows,
    TotalVariation,
    as_objective,
    interpolate,
    stack,
)

# [batch 2, channel 2, 2, 2]
MAP = torch.tensor([[[[1.0, 2], [3, 6]], [[0, 0], [0, 4]]], [[[-1, -1], [-1, -1]], [[2, 0], [0, 0]]]])
IMAGE = torch.tensor([[[[0.5, 0.5], [0.5, 0.5]]], [[[0.0, 1.0], [0.5, 0.5]]]])  # [batch 2, channel 1, 2, 2]


def acts(layers: dict[str, Tensor] | None = None, groups: list[int] | None = None) -> Activations:
    layers = {"a": MAP} if layers is None else layers
    return Activations(layers, IMAGE, torch.tensor([0, 1] if groups is None else groups))


def close(value: Tensor, wanted: list[float]) -> None:
    torch.testing.assert_close(value, torch.tensor(wanted), atol=1e-6, rtol=1e-6)


def test_values_by_hand() -> None:
    close(Channel("a", 0)(acts()), [3.0, -1.0])
    close(Channel("a", 1)(acts()), [1.0, 0.5])
    close(Neuron("a", 0, (0, 1))(acts()), [2.0, -1.0])
    close(Neuron("a", 0)(acts()), [6.0, -1.0])  # the centre of 2x2 is (1, 1)
    close(Layer("a")(acts()), [(1 + 4 + 9 + 36 + 16) / 8, (4 + 4) / 8])
    close(L1()(acts()), [0.0, 0.25])
    close(L2()(acts()), [1e-6, math.sqrt(0.125)])
    close(L1(centre=0.0)(acts()), [0.5, 0.5])
    close(Constant(2.5)(acts()), [2.5, 2.5])
    # rows differ by (0.5, 0.5), columns by (1, 0)
    close(TotalVariation()(acts()), [0.0, 0.5 + 0.5])
    vector = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    close(Logit("fc", 1)(acts({"fc": vector})), [-2.0, 4.0])
    close(Channel("fc", 0)(acts({"fc": vector})), [1.0, 3.0])
    close(Neuron("fc", 0)(acts({"fc": vector})), [1.0, 3.0])


def test_direction_by_hand() -> None:
    # one position each: v = (3, 4) and (-3, 4) along d = (1, 0): dot 3 and -3, cosine 0.6 and -0.6
    value = torch.tensor([[[3.0], [4.0]], [[-3.0], [4.0]]])
    close(Direction("a", (1, 0), power=0.0)(acts({"a": value})), [3.0, -3.0])
    # a negative cosine is held at 0.1, so the value keeps its sign and a gradient
    close(Direction("a", (1, 0), power=2.0)(acts({"a": value})), [3 * 0.36, -3 * 0.01])
    close(Direction("a", (2, 0), power=1.0)(acts({"a": value})), [6 * 0.6, -6 * 0.1])


def test_a_direction_that_points_away_has_a_gradient() -> None:
    value = torch.tensor([[[-3.0], [4.0]], [[0.0], [0.0]]], requires_grad=True)
    Direction("a", (1.0, 0.0))(acts({"a": value})).sum().backward()
    assert value.grad is not None
    assert value.grad.isfinite().all()
    assert value.grad[0, 0] > 0
    assert value.grad[1, 0] > 0  # from nothing, too


def test_diversity_compares_within_a_group_only() -> None:
    # Gram matrices of one position: v v^T; cosine of two of them is cos(v, w)^2
    value = torch.tensor([[[1.0], [0.0]], [[1.0], [1.0]], [[0.0], [1.0]], [[5.0], [5.0]]])
    picture = torch.zeros(4, 1, 2, 2)
    together = Activations({"a": value}, picture, torch.tensor([7, 7, 7, 3]))
    # cos^2: (0,1) 0.5, (0,2) 0, (1,2) 0.5; the fourth is alone
    close(Diversity("a")(together), [-0.25, -0.5, -0.25, 0.0])
    alone = Activations({"a": value}, picture, torch.arange(4))
    close(Diversity("a")(alone), [0.0, 0.0, 0.0, 0.0])


def test_algebra_by_hand() -> None:
    a, b = Channel("a", 0), Channel("a", 1)  # 3, -1 and 1, 0.5
    close((a + b)(acts()), [4.0, -0.5])
    close((a - b)(acts()), [2.0, -1.5])
    close((b - a)(acts()), [-2.0, 1.5])
    close((a - b - b)(acts()), [1.0, -2.0])
    close((a - (b - a))(acts()), [5.0, -2.5])
    close((-a)(acts()), [-3.0, 1.0])
    close((a * b)(acts()), [3.0, -0.5])
    close((2 * a)(acts()), [6.0, -2.0])
    close((a * 2)(acts()), [6.0, -2.0])
    close((a / 2)(acts()), [1.5, -0.5])
    close((a + 1)(acts()), [4.0, 0.0])
    close((1 + a)(acts()), [4.0, 0.0])
    close((1 - a)(acts()), [-2.0, 2.0])
    close((a - 1)(acts()), [2.0, -2.0])
    close(sum([a, b])(acts()), [4.0, -0.5])  # type: ignore[union-attr]
    assert (a + 0.5 * b - TotalVariation()).layers == ("a",)
    assert (Channel("a", 0) * Channel("b", 1) + Channel("a", 2)).layers == ("a", "b")


@given(st.floats(-3, 3), st.floats(-3, 3))
def test_algebra_is_that_of_numbers(s: float, t: float) -> None:
    a, b = Channel("a", 0), Channel("a", 1)
    x, y = a(acts()), b(acts())
    torch.testing.assert_close((s * a - t * b)(acts()), s * x - t * y)
    torch.testing.assert_close((s - (a - t))(acts()), s - (x - t))
    torch.testing.assert_close(((a + s) * (b - t))(acts()), (x + s) * (y - t))


def test_interpolation_has_its_ends() -> None:
    a, b = Channel("a", 0), Channel("a", 1)
    close(interpolate(a, b, 0.0)(acts()), [3.0, -1.0])
    close(interpolate(a, b, 1.0)(acts()), [1.0, 0.5])
    close(interpolate(a, b, 0.25)(acts()), [2.5, -0.625])


def random_acts(batch: int = 4, seed: int = 0) -> Activations:
    generator = torch.Generator().manual_seed(seed)
    layers = {name: torch.randn(batch, 3, 4, 5, generator=generator) for name in ("a", "b")}
    image = torch.rand(batch, 3, 6, 6, generator=generator)
    return Activations(layers, image, torch.arange(batch))


EVERY: list[Objective] = [
    Channel("a", 1),
    Neuron("a", 2, (3, 4)),
    Logit("b", 0),
    Layer("b"),
    Direction("a", (1.0, -2.0, 0.5)),
    Diversity("a"),
    TotalVariation(),
    L1(),
    L2(),
    Custom(lambda seen: seen["a"].flatten(1).max(1).values, ("a",)),
    Channel("a", 0) - 0.5 * Channel("b", 1) * Layer("a") + 2,
]


@pytest.mark.parametrize("objective", EVERY, ids=lambda o: type(o).__name__)
def test_no_sample_sees_another(objective: Objective) -> None:
    seen = random_acts()
    layers = {name: value.clone() for name, value in seen.layers.items()}
    image = seen.image.clone()
    for value in (*layers.values(), image):
        value[2] = 0.25
    changed = objective(Activations(layers, image, seen.groups))
    before = objective(seen)
    assert before.shape == (4,)
    for row in (0, 1, 3):
        assert changed[row] == before[row]


@pytest.mark.parametrize("objective", EVERY, ids=lambda o: type(o).__name__)
def test_gradients_stay_in_their_row(objective: Objective) -> None:
    seen = random_acts()
    leaves = [value.requires_grad_() for value in (*seen.layers.values(), seen.image)]
    value = objective(seen)[1]
    if not value.requires_grad:
        return
    for gradient in torch.autograd.grad(value, leaves, allow_unused=True):
        if gradient is not None:
            assert gradient[[0, 2, 3]].abs().max() == 0


@given(st.lists(st.sampled_from(range(len(EVERY))), min_size=1, max_size=6))
def test_a_stack_is_each_by_itself(kinds: list[int]) -> None:
    seen = random_acts(len(kinds), seed=1)
    chosen = [EVERY[k] for k in kinds]
    together = stack(chosen)(seen)
    alone = torch.cat([one(seen.rows([row])) for row, one in enumerate(chosen)])
    torch.testing.assert_close(together, alone)
    assert set(stack(chosen).layers) == {layer for one in chosen for layer in one.layers}


def test_equal_structures_are_one_value() -> None:
    merged = stack([Channel("a", k) - 0.1 * k * TotalVariation() for k in range(3)])
    assert not isinstance(merged, Rows)
    assert isinstance(stack([Channel("a", 0), Channel("b", 0)]), Rows)
    seen = random_acts(3)
    by_hand = torch.stack([seen["a"][row, channel].mean() for row, channel in enumerate((1, 2, 0))])
    torch.testing.assert_close(stack([Channel("a", k) for k in (1, 2, 0)])(seen), by_hand)


def test_diversity_survives_a_mixed_batch() -> None:
    seen = random_acts(4)
    seen = Activations(seen.layers, seen.image, torch.tensor([0, 0, 1, 1]))
    first, second = Channel("a", 0) + Diversity("a"), Direction("b", (1, 0, 0)) + Diversity("b")
    mixed = stack([first, first, second, second])(seen)
    torch.testing.assert_close(mixed[:2], first(seen.rows([0, 1])))
    torch.testing.assert_close(mixed[2:], second(seen.rows([2, 3])))
    assert (Diversity("a")(seen) < 0).all()


ERRORS: list[tuple[Any, str]] = [
    (lambda: Channel("a", 2)(acts()), r"channel=2 does not exist in layer 'a', which has 2; give 0 to 1"),
    (lambda: Channel("a", -1)(acts()), "channel=-1 does not exist"),
    (lambda: Channel("a", (0, 1, 1))(acts()), "3 channels were given for 2 pictures"),
    (
        lambda: Neuron("a", 0, (2, 0))(acts()),
        r"position=\(2, 0\) is outside layer 'a', whose map is \(2, 2\)",
    ),
    (lambda: Neuron("a", 0, (0,))(acts()), r"position=\(0,\) is outside"),
    (lambda: Neuron("a", 0, (-1, 0))(acts()), "is outside"),
    (lambda: Direction("a", ()), "vector must be finite numbers"),
    (lambda: Direction("a", (0.0, 0.0)), "not all zero"),
    (lambda: Direction("a", (math.nan, 1.0)), "finite"),
    (lambda: Direction("a", (1, 2, 3))(acts()), "vector has 3 numbers, layer 'a' has 2 channels"),
    (lambda: Channel("a", 0) * math.inf, "factor=inf must be a finite number"),
    (lambda: Channel("a", 0) * "2", "factor='2' must be a finite number"),
    (lambda: Channel("a", 0) + True, "objective=True must be a finite number"),
    (lambda: Channel("a", 0) / 0, "divisor=0 must not be zero"),
    (lambda: as_objective(math.nan), "objective=nan must be a finite number"),
    (
        lambda: Custom(lambda _: torch.zeros(3), ("a",))(acts()),
        r"returned \(3,\); return a tensor of shape \(2,\)",
    ),
    (lambda: Custom(lambda _: 1.0, ("a",))(acts()), "returned float"),  # type: ignore[arg-type,return-value]
    (lambda: stack([]), "objectives is empty"),
]


@pytest.mark.parametrize(("wrong", "message"), ERRORS)
def test_errors_name_what_is_wrong(wrong: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        wrong()
