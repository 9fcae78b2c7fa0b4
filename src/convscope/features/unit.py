"""What one visualized unit is, and the collection `visualize` returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

if TYPE_CHECKING:
    from rich.table import Table

Status = Literal["converged", "budget", "dead", "nan", "interrupted"]


@dataclass(frozen=True)
class Unit:
    """One unit's picture in numbers.

    Attributes:
        layer: layer key.
        channel: index of the channel; of a composed objective, its place in the list given.
        seed: number of the start, from 0.
        label: class name of a logit, or None.
        activation: objective reached on the clean picture.
        robust: the same averaged over held-out random transforms.
        peak: largest activation of the channel at any position of the clean picture.
        status: what ended it: "converged" (stopped growing), "budget" (steps used up), "dead" (nothing excites it),
            "nan" (the network gave something that is not a number), "interrupted".
        steps: optimizer steps run.
        curve: (step, objective on fresh transforms) pairs.
        flags: "dead"; "weak" (under half of the natural maximum); "saturated" (over a quarter of the values at 0 or 1).
        natural_max: largest activation on the images given, or None.
        ratio: peak / natural_max, None where there is none.
        percentile: share of images, in percent, whose own maximum is below `peak`.
        agreement: mean cosine similarity between what this unit's pictures from different seeds excite in its layer.
        seconds: its share of its batch's time.
    """

    layer: str
    channel: int
    seed: int
    label: str | None
    activation: float
    robust: float
    peak: float
    status: Status
    steps: int
    curve: tuple[tuple[int, float], ...]
    flags: tuple[str, ...] = ()
    natural_max: float | None = None
    ratio: float | None = None
    percentile: float | None = None
    agreement: float | None = None
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return values | {"curve": [list(point) for point in self.curve], "flags": list(self.flags)}


@dataclass(frozen=True, eq=False)
class Visualization:
    """Pictures and what is known of them; prints as a table, shows as a grid in a notebook.

    Attributes:
        images: Tensor [unit, channel, height, width] in [0, 1].
        units: one record a picture, in the same order.
        settings: plain values that, with the network, remake the pictures.
        interrupted: whether Ctrl-C cut the run short; what was finished is here.
    """

    images: Tensor
    units: tuple[Unit, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    interrupted: bool = False

    def __len__(self) -> int:
        return len(self.units)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without the pictures."""
        return {
            "units": [unit.to_dict() for unit in self.units],
            "settings": dict(self.settings),
            "size": list(self.images.shape[-2:]),
            "interrupted": self.interrupted,
        }

    def __repr__(self) -> str:
        layers = ", ".join(dict.fromkeys(unit.layer for unit in self.units))
        height, width = self.images.shape[-2:]
        return f"Visualization({len(self.units)} units of {layers}, {height}x{width} pixels)"

    def __rich__(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(repr(self)), title_justify="left")
        for name in ("layer", "channel", "seed", "activation", "robust", "natural max", "status", "flags"):
            numeric = name in ("channel", "seed", "activation", "robust", "natural max")
            table.add_column(name, justify="right" if numeric else "left")
        for unit in self.units:
            natural = "" if unit.natural_max is None else f"{unit.natural_max:.3g}"
            channel = str(unit.channel) if unit.label is None else f"{unit.channel} {unit.label}"
            cells = (
                unit.layer, channel, str(unit.seed), f"{unit.activation:.3g}", f"{unit.robust:.3g}",
                natural, unit.status, " ".join(unit.flags),
            )  # fmt: skip
            table.add_row(*(Text(cell) for cell in cells))
        return table

    def _repr_html_(self) -> str:
        from convscope.site import notebook

        return notebook.html(self)
