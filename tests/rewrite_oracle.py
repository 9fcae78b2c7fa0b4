"""An oracle for rewrites that trusts nothing they say of themselves.

It looks at two networks, the one that went in and the one that came out, and asks on inputs of its own:

- *untouched*: the caller's network holds the tensors it held;
- *elsewhere*: nothing differs but what an edit names, and what was refused is as it was, bit by bit;
- *layers*: each layer and its replacement differ by what the edit says: rounding where it is exact, rounding inside the
  margin where it is exact there, and else the same root mean square, on other noise, within a factor;
- *grids*: a layer that was dilated gives, on the grid it had, what it gave;
- *recomposed*: the old network with the new layers put into it by hand gives what the new network gives;
- *exchanged*: a maximum for an average or back: the old network gives the new outputs while torch's own functions do that;
- *network*: where every edit is exact, the networks agree, at a larger size too unless the edits exclude it;
- *windows*, *fitted*: scores against windows cut out, and images brought to size, by code of its own.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from convscope.rewrites.base import Edit
from convscope.rewrites.rewrite import Rewrite
from rewrite_oracle_networks import (
    FACTOR,
    ROUNDED,
    Audit,
    apart,
    both,
    changes,
    equal,
    exchanged,
    fitted,
    flat,
    network,
    recomposed,
    rule_of,
    state_of,
    windows,
)


def audit(before: dict[str, Tensor], made: Rewrite, seed: int = 7) -> Audit:
    """Looks at a rewrite.

    Args:
        before: `state_of` the caller's network, taken before.
        made: the rewrite.
        seed: of the oracle's own noise.
    """
    found = Audit()
    found.expect(equal(before, state_of(made.base.module)), "the caller's network was changed")
    found.done.append("untouched")
    found.expect(not made.net.module.training, "the new network is in training mode")
    generator = torch.Generator().manual_seed(seed)
    old = copy.deepcopy(made.base.module).double().eval()
    new = copy.deepcopy(made.net.module).double().eval()
    with torch.no_grad():
        if "input_size" in {rule for rule, _ in map(rule_of, made.done)}:
            fitted(found, made, old, new, generator)
            return found
        x = 0.2 + 0.9 * torch.randn(2, *made.base.input.shape, generator=generator, dtype=torch.float64)
        _elsewhere(found, made, old, new)
        if not made.done:
            found.expect(
                apart(flat(made.base.module(x.float())), flat(made.net.module(x.float()))) == 0,
                "nothing was edited, and the outputs differ",
            )
            found.done.append("network")
            return found
        _layers(found, made, old, new, x, generator)
        _grids(found, made, old, new, x)
        recomposed(found, made, old, new, x)
        exchanged(found, made, old, new, x)
        network(found, made, old, new, x, generator)
        if any(rule_of(edit)[0] == "convolutionalize" and not edit.layer for edit in made.done):
            windows(found, made, old, new, generator)
    return found


# ---------------------------------------------------------------- what changed at all


def _elsewhere(found: Audit, made: Rewrite, old: nn.Module, new: nn.Module) -> None:
    """Every difference between the two belongs to an edit."""
    changed = changes(old, new)
    named = [edit.layer for edit in made.done]
    runs = sum(edit.before.count(" → ") for edit in made.done) + sum(
        "moved into" in " ".join(e.notes) for e in made.done
    )
    aliases: dict[
        int, list[str]
    ] = {}  # a module may stand in several places; an edit calls it by one of its names
    for name, part in old.named_modules(remove_duplicate=False):
        aliases.setdefault(id(part), []).append(name)
    called = {name: names for names in aliases.values() for name in names}
    parts = dict(old.named_modules(remove_duplicate=False))
    # a pool in the forward of a layer without weights becomes a layer in it
    empty = {layer for layer in changed if not [*parts[layer].parameters(), *parts[layer].buffers()]}
    strangers = [
        layer
        for layer in changed
        if not any(_within(alias, name) for alias in called[layer] for name in named)
        and not (layer in empty and any(_within(name, layer) for name in named))
    ]
    found.expect(len(strangers) <= runs, f"changed without an edit: {', '.join(strangers[:3])}")
    born = set(_leaves(new)) - set(_leaves(old))
    for layer in born:
        if not any(_within(layer, name) for name in (*named, *strangers)):
            found.problems.append(f"{layer} is new, and no edit names it")
    for edit in made.refused:
        if edit.layer and edit.layer in changed and edit.layer not in (*named, *strangers[:runs]):
            found.problems.append(f"{edit.layer} was refused, and changed")
    if not made.done:
        found.expect(not changed, "nothing was edited, and something changed")
    found.done.append("elsewhere")


def _leaves(module: nn.Module) -> list[str]:
    parts = module.named_modules(remove_duplicate=False)
    return [name for name, part in parts if next(part.children(), None) is None]


def _within(layer: str, name: str) -> bool:
    return layer == name or not name or layer.startswith(f"{name}.")


# ---------------------------------------------------------------- layer by layer


def _layers(
    found: Audit, made: Rewrite, old: nn.Module, new: nn.Module, x: Tensor, generator: torch.Generator
) -> None:
    edits = {edit.layer: edit for edit in made.done if _alone(edit, old)}
    if len({edit.step for edit in made.done}) > 1:
        edits = {}  # a chain may edit a layer twice; the network tells
    given: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            if len(args) == 1 and isinstance(args[0], Tensor):
                given[name] = args[0].clone()  # the network may go on in place

        return hook

    handles = [old.get_submodule(name).register_forward_pre_hook(keep(name)) for name in edits]
    old(x)
    for handle in handles:
        handle.remove()
    for name, edit in edits.items():
        if name in given:
            _layer(found, edit, old.get_submodule(name), new.get_submodule(name), given[name], generator)
            found.done += ["layers"] if "layers" not in found.done else []


def _grids(found: Audit, made: Rewrite, old: nn.Module, new: nn.Module, x: Tensor) -> None:
    """Layers that were dilated give, at every so manieth position, what they gave."""
    windows = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
    notes = " ".join(note for edit in made.done for note in edit.notes)
    if "for the layers between" in notes or not {rule_of(e)[0] for e in made.done} & {
        "pool",
        "convolutionalize",
    }:
        return
    parts = [dict(module.named_modules()) for module in (old, new)]
    names = {edit.layer for edit in made.done if not _alone(edit, old)}
    names = {name for name in names if all(isinstance(each.get(name), windows) for each in parts)}
    given: list[dict[str, Tensor]] = [{}, {}]
    for kept, module in zip(given, (old, new), strict=True):

        def keep(name: str, kept: dict[str, Tensor] = kept) -> Any:
            def hook(_: nn.Module, __: Any, output: Tensor) -> None:
                kept.setdefault(name, output.clone())

            return hook

        handles = [module.get_submodule(name).register_forward_hook(keep(name)) for name in names]
        module(x)
        for handle in handles:
            handle.remove()
    for name in names & given[0].keys() & given[1].keys():
        y, z = given[0][name], given[1][name]
        steps = [
            [r for r in range(1, n + 1) if -(-n // r) == m]
            for m, n in zip(y.shape[2:], z.shape[2:], strict=True)
        ]
        grids = [z[..., ::down, ::right] for down in steps[0] for right in steps[1]]
        least = min((apart(y, grid) for grid in grids), default=math.inf)
        found.expect(least <= ROUNDED, f"{name} was dilated, and no grid of it is what it was")
        found.done += ["grids"] if "grids" not in found.done else []


def _alone(edit: Edit, old: nn.Module) -> bool:
    """Whether the edit is about one layer and its replacement, which take the same input."""
    notes = " ".join(edit.notes)
    told = ("moved into", "found its maxima", "finer map", "are dilated by")
    several = " → " in edit.before or any(words in notes for words in told)
    alone = edit.layer and not several and rule_of(edit)[0] != "convolutionalize"
    return bool(alone) and edit.layer in dict(old.named_modules())


def _layer(
    found: Audit, edit: Edit, old: nn.Module, new: nn.Module, given: Tensor, generator: torch.Generator
) -> None:
    shape = list(given.shape)
    if given.ndim == 4 and not edit.fixed_size:
        kernel = both(getattr(old, "kernel_size", 1))
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, both(getattr(old, "dilation", 1)), strict=True)]
        stride = [s or 1 for s in both(getattr(old, "stride", 1) or 1)]
        inner = [(2 * m + 4) * s + r if m else 1 for r, m, s in zip(reach, edit.margin, stride, strict=True)]
        shape[2:] = [max(min(n, 26), r, i) for n, r, i in zip(given.shape[2:], reach, inner, strict=True)]
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    pairs = [(old(noise), new(noise)), (old(given), new(given))]
    worst, rms = 0.0, 0.0
    for k, (y, z) in enumerate(pairs):
        if not isinstance(y, Tensor) or not isinstance(z, Tensor):
            return
        y, z = _aligned(y, z, old, new)
        if edit.exactness == "exact-interior":
            y, z = (_inside(each, edit.margin) for each in (y, z))
            if not y.numel():
                continue
        worst = max(worst, apart(y, z))
        if not k:
            rms = math.sqrt(float((y - z).square().sum()) / max(float(y.square().sum()), 1e-60))
    found.seen(worst)
    if edit.exactness in ("exact", "exact-interior"):
        found.expect(worst <= ROUNDED, f"{edit.layer} is {edit.exactness}, and off by {worst:.1e}")
    elif given.ndim == 4 and given[0, 0].numel() == 1 and not hasattr(old, "kernel_size"):
        # the edit tells of larger maps; of a single position all ways to pool make the same
        found.expect(worst <= ROUNDED, f"{edit.layer} pools one position, and is off by {worst:.1e}")
    elif edit.rms_error is None:
        found.problems.append(f"{edit.layer} tells no error")
    else:
        factor = FACTOR if pairs[0][0].numel() > 100 else 2 * FACTOR  # few values vary more
        near = edit.rms_error / factor <= rms + 1e-6 and rms <= factor * edit.rms_error + 1e-6
        found.expect(near, f"{edit.layer} tells an error of {edit.rms_error:.2e}, and has {rms:.2e}")


def _aligned(y: Tensor, z: Tensor, old: nn.Module, new: nn.Module) -> tuple[Tensor, Tensor]:
    """The part that two maps share, where padding made one of them larger."""
    if y.shape == z.shape or y.ndim != 4:
        return y, z
    shift = [
        b - a for a, b in zip(_front(old), _front(new), strict=True)
    ]  # positions that the new one has before
    for axis, n in zip((2, 3), shift, strict=True):
        if n > 0:
            z = z.narrow(axis, n, z.shape[axis] - n)
        elif n < 0:
            y = y.narrow(axis, -n, y.shape[axis] + n)
        least = min(y.shape[axis], z.shape[axis])
        y, z = y.narrow(axis, 0, least), z.narrow(axis, 0, least)
    return y, z


def _front(conv: Any) -> tuple[int, int]:
    """Padding above and to the left."""
    padding = conv.padding
    if padding == "valid":
        return 0, 0
    if padding == "same":
        reach = [(k - 1) * d for k, d in zip(both(conv.kernel_size), both(conv.dilation), strict=True)]
        return reach[0] // 2, reach[1] // 2
    if isinstance(padding, (tuple, list)) and isinstance(padding[0], (tuple, list)):
        return padding[0][0], padding[1][0]
    return both(padding)


def _inside(y: Tensor, margin: tuple[int, int]) -> Tensor:
    return y[..., margin[0] : y.shape[-2] - margin[0], margin[1] : y.shape[-1] - margin[1]]
