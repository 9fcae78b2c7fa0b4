"""A budget spread over layers: of the sizes each could have, those that together lose least within it.

Every layer offers options with a cost and a loss, its present form among them. A multiple-choice knapsack, solved by
dynamic programming over the spent share, picks one for each. Losses are logarithms of the share of its output's power that
a layer keeps, so that their sum stands for the share left after all layers, if every one passes on what it is given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from convscope.errors import RequestError

KINDS = ("macs", "params", "error")
STEPS = 4096  # parts a budget is counted in, where it is no small whole number
NOTHING = 1e-12  # the share that counts as kept where nothing is


@dataclass(frozen=True)
class Budget:
    """What all layers together may cost or lose.

    Attributes:
        kind: "macs" or "params": at most `share` of what the layers have now; "error": the product of the shares of
            power that the layers keep is at least 1 - `share`.
        share: above 0, below 1.
    """

    kind: str
    share: float

    @classmethod
    def of(cls, text: str) -> Budget:
        """Reads "macs:0.5".

        Raises:
            RequestError: it says anything else.

        Example:
            >>> Budget.of("params:0.25")
            Budget(kind='params', share=0.25)
        """
        kind, mark, number = text.partition(":") if isinstance(text, str) else ("", "", "")
        try:
            share = float(number)
        except ValueError:
            share = math.nan
        if kind not in KINDS or not mark or not 0 < share < 1:
            raise RequestError(
                f"budget={text!r} must be macs:SHARE, params:SHARE or error:SHARE with a share between 0 and 1, such "
                "as 'macs:0.5'."
            )
        return cls(kind, share)


@dataclass(frozen=True)
class Option:
    """One form a layer could take.

    Attributes:
        macs: multiply-accumulates of an image.
        params: how many.
        kept: share of its output's power, 0 to 1.
    """

    macs: int
    params: int
    kept: float

    @property
    def loss(self) -> float:
        """-log of the share kept: adds up where shares multiply."""
        return -math.log(min(max(self.kept, NOTHING), 1.0))


def allocate(layers: Sequence[Sequence[Option]], budget: Budget) -> list[int] | None:
    """The place of the option that each layer should take, or None where the budget cannot be met.

    For a budget of MACs or parameters the loss is least; for one of error the MACs are.

    Args:
        layers: options of each layer; the first is what it is now.
        budget: what holds for all of them together.

    Example:
        >>> now, small = Option(100, 100, 1.0), Option(20, 30, 0.9)
        >>> allocate([[now, small], [now, Option(20, 30, 0.5)]], Budget("macs", 0.6))
        [1, 0]
    """
    if budget.kind == "error":
        limit = -math.log1p(-budget.share)
        weights = [[option.loss for option in options] for options in layers]
        values = [[float(option.macs) for option in options] for options in layers]
    else:
        weights = [[float(getattr(option, budget.kind)) for option in options] for options in layers]
        limit = budget.share * sum(each[0] for each in weights)
        values = [[option.loss for option in options] for options in layers]
    return least(weights, values, limit)


def least(
    weights: Sequence[Sequence[float]], values: Sequence[Sequence[float]], limit: float
) -> list[int] | None:
    """One option a layer, of least total value among those of total weight within the limit; None where there is none.

    Whole weights within a limit of at most `STEPS` are counted exactly; others are rounded up to `STEPS` parts of the
    limit, so that the limit always holds and the value is that of a limit smaller by at most a part a layer.
    """
    whole = limit <= STEPS and all(float(weight).is_integer() for each in weights for weight in each)
    unit = 1.0 if whole else limit / STEPS
    steps = math.floor(limit / unit + 1e-9)
    best = np.zeros(steps + 1)  # least value with at most so many steps spent
    chosen: list[np.ndarray] = []
    for layer_weights, layer_values in zip(weights, values, strict=True):
        found, place = np.full(steps + 1, np.inf), np.zeros(steps + 1, dtype=np.int64)
        for option, (weight, value) in enumerate(zip(layer_weights, layer_values, strict=True)):
            spent = math.ceil(weight / unit - 1e-9)
            if spent > steps:
                continue
            tried = best[: steps + 1 - spent] + value
            better = tried < found[spent:]
            found[spent:][better] = tried[better]
            place[spent:][better] = option
        best = found
        chosen.append(place)
    if not np.isfinite(best[-1]):
        return None
    picked, left = [], steps
    for place, layer_weights in zip(reversed(chosen), reversed(weights), strict=True):
        option = int(place[left])
        picked.append(option)
        left -= math.ceil(layer_weights[option] / unit - 1e-9)
    return picked[::-1]
