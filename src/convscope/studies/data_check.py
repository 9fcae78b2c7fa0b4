"""What a design says about its data, checked before anything is read: names and kinds of the arguments of `dataset`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from convscope.errors import RequestError, UnknownName, nearest

_WHOLE, _PART, _PATH = "a whole number", "a part of the samples, above 0 and below 1", "text"
ARGUMENTS: Final = {  # argument of `dataset` -> what it must be
    "source": _PATH,
    "test": _PATH,
    "seed": _WHOLE,
    "validation": _PART,
    "fold": "two whole numbers, such as [0, 10]",
    "limit": _WHOLE,
    "test_limit": _WHOLE,
    "size": "a number of pixels, or [height, width]",
    "channels": "1 or 3",
    "most_words": _WHOLE,
    "length": _WHOLE,
    "lower": "true or false",
}


def check_data(given: Mapping[str, Any]) -> None:
    """Refuses what `dataset` could not take.

    Raises:
        UnknownName: an argument that there is not.
        RequestError: a value of another kind than the argument's.

    Example:
        >>> check_data({"source": "fashion", "limit": 1000})
    """
    for name, value in given.items():
        if name not in ARGUMENTS:
            raise UnknownName(
                f"data has no argument {name!r}{nearest(name, ARGUMENTS)}; it takes {', '.join(ARGUMENTS)}."
            )
        if value is None and name != "source":
            continue
        if not _fits(name, value):
            raise RequestError(f"data {name}={value!r} must be {ARGUMENTS[name]}.")


def _fits(name: str, value: Any) -> bool:
    if name in ("source", "test"):
        return isinstance(value, str)
    if name == "lower":
        return isinstance(value, bool)
    if name == "channels":
        return _whole(value) and value in (1, 3)
    if name == "validation":
        return isinstance(value, int | float) and 0 < value < 1
    if name == "fold":
        return _pair(value)
    if name == "size":
        return all(side > 0 for side in value) if _pair(value) else _whole(value) and value > 0
    return _whole(value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(_whole, value))
