"""Which layers a rule is about: names and globs, kinds of module, measured properties.

layer3.*                     names; several by commas, `!name` takes away
kind:Conv2d                  the class of the module
macs > 5 %                   its share of the network's, or without % the number itself; also params, out_channels,
                             in_channels, kernel, stride, groups
layer3.* & macs > 5 %        all of them
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

from convscope.errors import RequestError, UnknownLayer, nearest
from convscope.rewrites.work import Facts

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip
_SHARES = ("macs", "params")
_NUMBERS = (*_SHARES, "in_channels", "out_channels", "kernel", "stride", "groups")


def select(text: str, layers: Mapping[str, Facts]) -> list[str]:
    """The layers that a selector names, in their order.

    Args:
        text: the selector.
        layers: every layer there is to choose from, by name.

    Raises:
        UnknownLayer: a name matches nothing; the nearest are suggested.
        RequestError: a condition cannot be read.
    """
    kept = list(layers)
    for part in text.split("&"):
        part = part.strip()
        if not part:
            raise RequestError(f"where={text!r}: an empty condition; write names, kind:CLASS or macs > 5 %.")
        test = _condition(part, layers)
        kept = [name for name in kept if test(name)]
    return kept


def _condition(part: str, layers: Mapping[str, Facts]) -> Callable[[str], bool]:
    measured = re.fullmatch(r"([a-z_]+)\s*(>=|<=|==|!=|>|<)\s*([\d.eE+-]+)\s*(%?)", part)
    if measured is not None:
        quantity, sign, number, percent = measured.groups()
        return _measured(part, quantity, sign, number, percent, layers)
    if part.startswith("kind:"):
        patterns = [each.strip() for each in part[5:].split(",")]
        return lambda name: any(fnmatchcase(layers[name].kind, pattern) for pattern in patterns)
    return _named(part, layers)


def _measured(
    part: str, quantity: str, sign: str, number: str, percent: str, layers: Mapping[str, Facts]
) -> Callable[[str], bool]:
    if quantity not in _NUMBERS:
        raise RequestError(
            f"where={part!r}: {quantity!r} cannot be compared{nearest(quantity, _NUMBERS)}; there are "
            f"{', '.join(_NUMBERS)}."
        )
    if percent and quantity not in _SHARES:
        raise RequestError(f"where={part!r}: a share makes sense of {' and '.join(_SHARES)} only.")
    try:
        limit = float(number)
    except ValueError:
        raise RequestError(f"where={part!r}: {number!r} is no number.") from None
    if percent:
        limit *= sum(getattr(each, quantity) or 0 for each in layers.values()) / 100
    compare = _COMPARE[sign]

    def test(name: str) -> bool:
        value = getattr(layers[name], quantity)
        return value is not None and compare(float(value), limit)

    return test


def _named(part: str, layers: Mapping[str, Facts]) -> Callable[[str], bool]:
    wanted: set[str] = set()
    unwanted: set[str] = set()
    for item in (each.strip() for each in part.split(",")):
        pattern = item.removeprefix("!")
        found = {name for name in layers if name == pattern or fnmatchcase(name, pattern)}
        if not found and pattern != "*":
            raise UnknownLayer(f"where={item!r} matches no layer{nearest(pattern, layers)}.")
        (unwanted if item.startswith("!") else wanted).update(found)
    if not wanted:
        wanted = set(layers)
    return lambda name: name in wanted and name not in unwanted
