"""What the oracle of rewrites tells of whole networks: recomposed, exchanged, at other sizes, on windows, fitted."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from convscope.rewrites.base import Edit
from convscope.rewrites.rewrite import Rewrite

ROUNDED = 1e-5  # of a layer's largest output: its new weights are float32
DEEP = 1e-3  # of a network's
SAME = 1e-9  # of anything, where both sides compute with the same numbers in float64
FACTOR = 2.0  # between a root mean square on one noise and on another


@dataclass
class Audit:
    """What the oracle found.

    Attributes:
        done: which of its looks there was something for.
        error: largest difference of the outputs, relative to their maximum: of the network where all edits are exact,
            else of the worst layer (outside the margin, where there is one).
        problems: what is not as it should be; empty for an honest rewrite.
    """

    done: list[str] = field(default_factory=list)
    error: float | None = None
    problems: list[str] = field(default_factory=list)

    def expect(self, right: bool, problem: str) -> None:
        """Puts a problem on record."""
        if not right:
            self.problems.append(problem)

    def seen(self, error: float) -> None:
        """Keeps the largest."""
        self.error = max(error, self.error or 0.0)


# ---------------------------------------------------------------- the network


def recomposed(found: Audit, made: Rewrite, old: nn.Module, new: nn.Module, x: Tensor) -> None:
    """The old network's own forward, with the new layers in it."""
    if type(old) is not type(new):
        return
    try:
        after = flat(new(x))
    except Exception:
        found.problems.append("the new network does not run")
        return
    by_hand = copy.deepcopy(old)
    parts = dict(by_hand.named_modules(remove_duplicate=False))
    for name in {edit.layer for edit in made.done} | set(changes(old, new)):
        while name not in parts:  # a layer that the forward of the one around it had no module for
            name = name.rpartition(".")[0]
        if not name:
            return
        for parent in list(by_hand.modules()):  # a layer may hang under several names
            for key, child in list(parent._modules.items()):
                if child is parts[name]:
                    parent._modules[key] = new.get_submodule(name)
    error = apart(flat(by_hand(x)), after)
    found.expect(
        error <= SAME, f"the old network with the new layers in it differs from the new one by {error:.1e}"
    )
    found.done.append("recomposed")


class _Exchanged(TorchFunctionMode):
    """While it lasts torch's maximum pools give averages, or the other way round, whoever calls them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, given = getattr(func, "__name__", ""), kwargs or {}
        if self.kind == "average" and name == "max_pool2d":
            x, kernel, stride, padding, _, ceil = _bound(
                args, given, "kernel_size stride padding dilation ceil_mode"
            )
            return functional.avg_pool2d(x, kernel, stride or None, padding or 0, bool(ceil), False)
        if self.kind == "max" and name == "avg_pool2d":
            x, kernel, stride, padding, ceil = _bound(args, given, "kernel_size stride padding ceil_mode")
            return functional.max_pool2d(x, kernel, stride or None, padding or 0, 1, bool(ceil))
        whole = {"max": ("adaptive_avg_pool2d", "mean"), "average": ("adaptive_max_pool2d", "amax")}[
            self.kind
        ]
        if name == whole[0]:
            x, size = _bound(args, given, "output_size")
            if size in (1, (1, 1), [1, 1]):
                return x.amax((2, 3), keepdim=True) if self.kind == "max" else x.mean((2, 3), keepdim=True)
        if name == whole[1] and args[0].ndim == 4:
            x, dim, keep = _bound(args, given, "dim keepdim")
            if isinstance(dim, (tuple, list)) and sorted(n % 4 for n in dim) == [2, 3]:
                return (x.amax if self.kind == "max" else x.mean)(tuple(dim), keepdim=bool(keep))
        return func(*args, **given)


def _bound(args: Any, given: dict[str, Any], names: str) -> list[Any]:
    """The input and these arguments, by place or name; None where not given."""
    values = [*args[1:]]
    return [
        args[0],
        *(values[k] if k < len(values) else given.get(name) for k, name in enumerate(names.split())),
    ]


def exchanged(found: Audit, made: Rewrite, old: nn.Module, new: nn.Module, x: Tensor) -> None:
    """The old network while torch's own functions pool the other way."""
    name, given = rule_of(made.done[0])
    kind = given.get("kind", "")
    if name != "pool" or kind not in ("max", "average"):
        return
    if any(not str(edit.reason).endswith(("already", "size of the input")) for edit in made.refused):
        return
    y = flat(new(x))
    with _Exchanged(kind):
        error = apart(flat(old(x)), y)
    found.expect(
        error <= SAME, f"with torch's pools exchanged the old network is {error:.1e} from the new one"
    )
    found.done.append("exchanged")


def network(
    found: Audit, made: Rewrite, old: nn.Module, new: nn.Module, x: Tensor, generator: torch.Generator
) -> None:
    y, z = flat(old(x)), flat(new(x))
    found.expect(bool(z.isfinite().all()) or not bool(y.isfinite().all()), "the new outputs are not finite")
    if made.exactness != "exact":
        return
    steps = [math.prod(edit.grid[axis] for edit in made.done) for axis in (0, 1)]

    def apart_on(x: Tensor) -> float:
        y, z = old(x), new(x)
        return apart(flat(y), flat(z if steps == [1, 1] else z[..., :: steps[0], :: steps[1]]))

    found.error = apart_on(x)
    found.expect(found.error <= DEEP, f"every edit is exact, and the outputs differ by {found.error:.1e}")
    found.done.append("network")
    if any(edit.fixed_size or rule_of(edit)[0] == "convolutionalize" for edit in made.done):
        return
    size = [n + 32 for n in made.base.input.size]
    wide = torch.randn(1, made.base.input.channels, *size, generator=generator, dtype=torch.float64)
    try:
        old(wide)
    except Exception:  # a network of one size
        return
    larger = apart_on(wide)
    found.expect(
        larger <= DEEP, f"every edit is exact, and at a larger size the outputs differ by {larger:.1e}"
    )
    found.done.append("larger")


def windows(found: Audit, made: Rewrite, old: nn.Module, new: nn.Module, generator: torch.Generator) -> None:
    """Scores of a larger image against those of its corners, cut out."""
    edit = [edit for edit in made.done if not edit.layer][-1]  # the scores, after what flattened by itself
    if "not those of windows" in " ".join(edit.notes):
        return
    height, width = made.base.input.size
    y = None
    for more in (32, 64, 128):
        image = torch.randn(
            1, made.base.input.channels, height + more, width + more, generator=generator, dtype=torch.float64
        )
        y = new(image)
        if y.ndim == 4 and min(y.shape[2:]) > 1:
            break
    if y is None or y.ndim != 4 or min(y.shape[2:]) < 2:
        found.problems.append("a larger image gives no map of scores")
        return
    step = int(edit.resolved["stride"]) if "stride" in edit.resolved else round(more / (y.shape[2] - 1))
    squares = power = worst = 0.0
    rows, columns = y.shape[2:]
    for i, j in {(0, 0), (rows - 1, columns - 1), (0, columns - 1), (rows // 2, columns // 2)}:
        window = image[:, :, i * step : i * step + height, j * step : j * step + width]
        expected = old(window)
        squares += float((y[:, :, i, j] - expected).square().sum())
        power += float(expected.square().sum())
        worst = max(worst, apart(expected, y[:, :, i, j]))
    rms = math.sqrt(squares / max(power, 1e-60))
    found.done.append("windows")
    if "cut out see zeros" in " ".join(edit.notes):
        if edit.exactness == "approximate":
            found.seen(worst)
            assert edit.rms_error is not None
            near = edit.rms_error / FACTOR <= rms <= FACTOR * edit.rms_error
            found.expect(near, f"scores tell an error of {edit.rms_error:.2e}, and have {rms:.2e}")
    else:
        found.expect(worst <= DEEP, f"scores of windows are exact, and off by {worst:.1e}")


def fitted(found: Audit, made: Rewrite, old: nn.Module, new: nn.Module, generator: torch.Generator) -> None:
    """Another input size: the image brought to the network by code of the oracle's own."""
    edit = made.done[0]
    how, (height, width), size = (
        rule_of(edit)[1].get("how", "resize"),
        made.net.input.size,
        made.base.input.size,
    )
    x = torch.randn(1, *made.net.input.shape, generator=generator, dtype=torch.float64)
    wanted = functional.interpolate(x, size, mode="bilinear", antialias=True)
    got = flat(new(x))
    own: Tensor | None = None
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    if how == "resize":
        own = old(wanted)
    elif how == "crop":
        own = old(x[:, :, top : top + size[0], left : left + size[1]])
    elif how == "pad":
        scale = min(size[0] / height, size[1] / width)
        inner = round(height * scale), round(width * scale)
        small = functional.interpolate(x, inner, mode="bilinear", antialias=True)
        mean = made.base.input.mean
        ground = (
            made.base.input.normalize(torch.full((3, 1, 1), 0.5, dtype=torch.float64))
            if mean is None
            else 0.0
        )
        canvas = torch.zeros(1, 3, *size, dtype=torch.float64) + ground
        a, b = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
        canvas[:, :, a : a + inner[0], b : b + inner[1]] = small
        own = old(canvas)
    elif how == "tiles":
        starts = [
            [round(k * (n - m) / (math.ceil(n / m) - 1) + 1e-9) for k in range(math.ceil(n / m))]
            if n > m
            else [0]
            for n, m in ((height, size[0]), (width, size[1]))
        ]
        parts = [old(x[:, :, i : i + size[0], j : j + size[1]]) for i in starts[0] for j in starts[1]]
        own = torch.stack(parts).mean(0)
    elif "as it is" in " ".join(edit.notes):
        own = old(x)
    if own is not None:
        error = apart(flat(own), got)
        found.expect(error <= DEEP, f"{how} is off by {error:.1e} from what it says it does")
        found.seen(error)
        held = (
            state_of(getattr(made.net.module, "net", made.net.module))
            if how != "native"
            else state_of(made.net.module)
        )
        found.expect(equal(state_of(made.base.module), held), f"{how} changed weights")
    else:  # positional tables resampled, or a head made convolutional: only its own yardstick is left
        y = flat(old(wanted))
        rms = math.sqrt(float((y - got).square().sum()) / max(float(y.square().sum()), 1e-60))
        assert edit.rms_error is not None
        found.seen(apart(y, got))
        near = edit.rms_error / FACTOR <= rms + 1e-9 and rms <= FACTOR * edit.rms_error + 1e-9
        found.expect(near, f"{how} tells an error of {edit.rms_error:.2e}, and has {rms:.2e}")
    found.done.append("fitted")


# ---------------------------------------------------------------- small things


def rule_of(edit: Edit) -> tuple[str, dict[str, str]]:
    """Name and arguments of the rule behind an edit."""
    name, _, rest = edit.rule.partition(":")
    return name, dict(item.split("=", 1) for item in rest.split(",") if "=" in item)


def flat(value: Any) -> Tensor:
    """All tensors of an output in one row."""
    if isinstance(value, Tensor):
        return value.flatten()
    if isinstance(value, dict):
        value = list(value.values())
    return torch.cat([flat(each) for each in value if each is not None])


def apart(y: Tensor, z: Tensor) -> float:
    if y.shape != z.shape or not torch.equal(y.isfinite(), z.isfinite()):
        return math.inf
    y, z = y.double().nan_to_num(0, 0, 0), z.double().nan_to_num(0, 0, 0)
    return float((y - z).abs().max() / y.abs().max().clamp_min(1e-30))


def both(value: Any) -> tuple[int, int]:
    return (int(value[0]), int(value[-1])) if isinstance(value, (tuple, list)) else (int(value), int(value))


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all tensors, buffers that are not saved included, under every name they have."""
    tensors = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    return {name: tensor.detach().clone() for name, tensor in tensors}


def changes(old: nn.Module, new: nn.Module) -> list[str]:
    """Layers of the old network without children that the new one lacks, or holds otherwise."""
    parts = dict(new.named_modules(remove_duplicate=False))
    found = []
    for name, part in old.named_modules(remove_duplicate=False):
        other = parts.get(name)
        own = {
            key: value
            for key, value in [*part._parameters.items(), *part._buffers.items()]
            if value is not None
        }
        if next(part.children(), None) is not None and not own:
            continue
        if next(part.children(), None) is None:
            same = type(other) is type(part) and str(other) == str(part)
        else:
            same = other is not None
        theirs = {} if other is None else {**other._parameters, **other._buffers}
        if not same or not equal(own, {key: value for key, value in theirs.items() if value is not None}):
            found.append(name)
    return found


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        value.shape == second[key].shape
        and value.dtype == second[key].dtype
        and torch.equal(value, second[key])
        for key, value in first.items()
    )
