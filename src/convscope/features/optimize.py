"""The loop: one batch of units, each climbing its own objective on its own picture.

Adam with low momentum, a long warm-up and a short cool-down reaches at 128 steps what the usual recipe (momentum
0.9, constant rate 0.05) reaches at 512; see `Recipe`. Nothing in a step waits for the device: what the host must know
(is a unit blocked, has it stopped growing, is it still finite) is read once a segment.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from convscope.errors import ModelError, RequestError
from convscope.features.capture import Capture
from convscope.features.network import Network
from convscope.features.objectives import Activations, Objective
from convscope.features.parametrization import Bound
from convscope.features.transform import Mover


@dataclass(frozen=True)
class Recipe:
    """How the climb is run.

    Args:
        steps: budget of optimizer steps.
        learning_rate: peak rate; None is 19 / steps, at most 0.5.
        betas, eps: of Adam (Kingma and Ba, 2015).
        warmup: share of the steps in which the rate grows linearly.
        cooldown: share of the steps in which it falls linearly, at the end.
        blur, blur_every: Gaussian blur of so many pixels every so many steps (Yosinski et al., 2015); 0 is none.
        tolerance: a unit whose activation on fresh transforms grows by less than this share over an eighth of the
            budget has converged; when all in a batch have, the cool-down starts at once. 0 never stops early.
    """

    steps: int = 128
    learning_rate: float | None = None
    betas: tuple[float, float] = (0.5, 0.9)
    eps: float = 1e-8
    warmup: float = 0.3
    cooldown: float = 0.2
    blur: float = 0.0
    blur_every: int = 4
    tolerance: float = 0.005

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise RequestError(f"steps={self.steps!r} must be a positive integer")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise RequestError(
                f"learning_rate={self.learning_rate} must be positive, or None for the recipe's own"
            )
        if not (self.warmup >= 0 and self.cooldown >= 0 and self.warmup + self.cooldown <= 1):
            raise RequestError(
                f"warmup={self.warmup} and cooldown={self.cooldown} must be shares that add up to 1 at most"
            )
        if self.blur < 0 or self.blur_every < 1 or self.tolerance < 0:
            raise RequestError("blur and tolerance must be 0 or more, blur_every 1 or more")

    @property
    def peak_rate(self) -> float:
        """The learning rate between warm-up and cool-down."""
        return min(0.5, 19.0 / self.steps) if self.learning_rate is None else self.learning_rate

    @property
    def segment(self) -> int:
        """Steps between two looks of the host."""
        return max(4, self.steps // 16)

    def rate(self, step: int, cool_from: int) -> float:
        """The learning rate of a step (from 0) when the cool-down starts at `cool_from`."""
        warm = max(1.0, self.warmup * self.steps)
        cool = max(1, round(self.cooldown * self.steps))
        rising = min(1.0, (step + 1) / warm)
        falling = min(1.0, max(0.0, (cool_from + cool - step) / cool))
        return self.peak_rate * rising * falling


@dataclass
class Climb:
    """What the loop ends with, one entry a unit.

    Attributes:
        parameters: Tensor [unit, ...]; of a unit that turned NaN, the last finite ones.
        curve: Tensor [step, unit]: the objective at each step, each on a fresh random transform.
        converged: whether the unit had stopped growing.
        finite: False from the moment its objective or picture was not a number.
        blocked: whether no gradient reached the picture at the last look.
        dead: whether it was given up, since nothing excites the unit.
        steps: steps run.
    """

    parameters: Tensor
    curve: Tensor
    converged: list[bool]
    finite: list[bool]
    blocked: list[bool]
    dead: list[bool]
    steps: int


@dataclass(frozen=True)
class Task:
    """One batch of units, ready to run: everything the loop reads."""

    network: Network
    capture: Capture
    bound: Bound
    mover: Mover
    objective: Objective
    moves: Tensor  # [step * views, unit, 4]
    groups: Tensor  # [unit]
    noises: tuple[torch.Generator, ...] = ()  # one a unit, when the transforms add noise

    def pictures_moved(self, images: Tensor, moves: Tensor) -> Tensor:
        """Pictures after one move each, as network input."""
        robust = self.mover.robust
        if not robust.is_identity and not robust.noise and self.mover.is_quick(images):
            return self.network.in_type(self.mover.look(images, moves, *self.network.normalization))
        moved = images if robust.is_identity else self.mover(images, moves)
        if robust.noise:
            shape = moved.shape[1:]
            drawn = torch.stack([torch.randn(shape, generator=generator) for generator in self.noises])
            moved = moved + drawn.to(moved.device) * robust.noise
        return self.network.feed(moved)

    def value(self, parameters: Tensor, step: int, rescue: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The objective of each unit at one step, Tensor [unit], and which were rescued (filled by backward)."""
        images = self.bound.decode(parameters)
        views = self.mover.robust.views
        total, used = None, None
        for view in range(views):
            x = self.pictures_moved(images, self.moves[step * views + view])
            layers, used = self.capture(x, rescue)
            value = self.objective(Activations(layers, images, self.groups))
            total = value if total is None else total + value
        assert total is not None
        return total / views, used


def climb(
    task: Task,
    start: Tensor,
    recipe: Recipe,
    on_segment: Callable[[int], None] | None = None,
    are_dead: Callable[[list[int]], list[bool]] | None = None,
) -> Climb:
    """Runs the loop from the given parameters [unit, ...]; `on_segment(steps done)` may raise to stop it.

    Units that the rescue has not woken by the end of the warm-up are shown to `are_dead`; the dead ones are rescued no
    longer, which would cost every later step, and a batch of nothing else ends.

    An exception from `on_segment` (a KeyboardInterrupt, say) ends the loop where it is, with what there is.
    """
    parameters = start.detach().clone().requires_grad_(True)
    optimizer = torch.optim.Adam(
        [parameters], lr=recipe.peak_rate, betas=recipe.betas, eps=recipe.eps, fused=_can_fuse(start)
    )
    state = _Progress(recipe, parameters)
    step = 0
    try:
        while step < state.end:
            with torch.enable_grad():
                value, used = task.value(parameters, step, state.rescue)
                if not value.requires_grad:
                    raise ModelError(
                        f"layer {task.capture.keys[0].key!r} passes no gradient to the picture: the network detaches it, "
                        "rounds it or runs under no_grad; choose an earlier layer"
                    )
                (parameters.grad,) = torch.autograd.grad(-value.sum(), parameters)
            state.curve.append(value.detach())
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(step, state.cool_from)
            optimizer.step()
            step += 1
            if recipe.blur and step % recipe.blur_every == 0 and step < state.cool_from:
                with torch.no_grad():
                    parameters.copy_(task.bound.smooth(parameters, recipe.blur))
            if step == 1 or step % recipe.segment == 0 or step == state.end:
                state.look(step, used)
                if are_dead is not None and any(state.blocked) and step > recipe.warmup * recipe.steps:
                    state.bury(are_dead, step)
                    are_dead = None
                if on_segment is not None:
                    on_segment(step)
    except KeyboardInterrupt:
        state.look(step, None)
        raise Interrupted(state.result(step)) from None
    return state.result(step)


class Interrupted(BaseException):
    """Ctrl-C during the loop; carries what there is."""

    def __init__(self, climb: Climb) -> None:
        super().__init__()
        self.climb = climb


def _can_fuse(parameters: Tensor) -> bool:
    return parameters.device.type in ("cpu", "cuda", "mps")


class _Progress:
    """What the host learns between segments."""

    def __init__(self, recipe: Recipe, parameters: Tensor) -> None:
        self.recipe = recipe
        self.parameters = parameters
        count = len(parameters)
        self.curve: list[Tensor] = []
        self.end = recipe.steps
        self.cool_from = recipe.steps - round(recipe.cooldown * recipe.steps)
        self.rescue: Tensor | None = None
        self.blocked = [False] * count
        self.finite = [True] * count
        self.converged = [False] * count
        self.good = parameters.detach().clone()
        self.dead = [False] * count

    def bury(self, are_dead: Callable[[list[int]], list[bool]], step: int) -> None:
        """Gives up the blocked units that nothing excites."""
        rows = [row for row, blocked in enumerate(self.blocked) if blocked]
        for row, dead in zip(rows, are_dead(rows), strict=True):
            self.dead[row] = dead
        self._mark_rescue()
        if all(self.dead):
            self.end = step

    def _mark_rescue(self) -> None:
        wanted = [blocked and not dead for blocked, dead in zip(self.blocked, self.dead, strict=True)]
        self.rescue = torch.tensor(wanted, device=self.parameters.device) if any(wanted) else None

    def look(self, step: int, used: Tensor | None) -> None:
        if self.parameters.grad is None or not self.curve:
            return
        gradient = self.parameters.grad.flatten(1)
        still = gradient.abs().amax(1) == 0
        latest = torch.stack(self.curve[-self.recipe.segment :]).isfinite().all(0)
        sane = latest & gradient.isfinite().all(1) & self.parameters.detach().flatten(1).isfinite().all(1)
        rescued = used if used is not None else torch.zeros_like(still)
        still_list, sane_list, rescued_list = torch.stack([still, sane, rescued]).tolist()  # the one wait
        self.finite = [a and b for a, b in zip(self.finite, sane_list, strict=True)]
        self.blocked = [s or r for s, r in zip(still_list, rescued_list, strict=True)]
        self._mark_rescue()
        keep = torch.tensor(self.finite, device=still.device).view(-1, *[1] * (self.parameters.ndim - 1))
        self.good = torch.where(keep, self.parameters.detach(), self.good)
        self._check_growth(step)

    def _check_growth(self, step: int) -> None:
        """Marks the units that have stopped growing; starts the cool-down when all have."""
        recipe = self.recipe
        window = max(4, recipe.steps // 8)
        # Only at full rate: a rising or falling rate makes growth of its own.
        if (
            recipe.tolerance == 0
            or step >= self.cool_from
            or step < recipe.warmup * recipe.steps + 2 * window
        ):
            return
        recent = torch.stack(self.curve[-window:]).double().mean(0)
        before = torch.stack(self.curve[-2 * window : -window]).double().mean(0)
        growth = (recent - before) / recent.abs().clamp_min(1e-12)
        settled = growth < recipe.tolerance
        self.converged = [bool(s) and not b for s, b in zip(settled.tolist(), self.blocked, strict=True)]
        over = [
            any(reasons)
            for reasons in zip(self.converged, self.dead, [not f for f in self.finite], strict=True)
        ]
        if all(over):
            self.cool_from = step
            self.end = min(self.end, step + max(1, round(recipe.cooldown * recipe.steps)))

    def result(self, step: int) -> Climb:
        curve = torch.stack(self.curve).float().cpu() if self.curve else torch.zeros(0, len(self.good))
        return Climb(self.good, curve, self.converged, self.finite, self.blocked, self.dead, step)
