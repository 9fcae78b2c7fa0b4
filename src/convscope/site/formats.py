"""Numbers, shapes and addresses as people read them; the page scripts follow the same rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any


def count(value: int | float | None) -> str:
    """A count with a suffix.

    Example:
        >>> count(4652008), count(812), count(25600), count(None)
        ('4.65 M', '812', '25.6 k', '–')
    """
    if value is None:
        return "–"
    for limit, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:g}"


def number(value: float | None) -> str:
    """A measured value to three digits, or a dash where there is none.

    Example:
        >>> number(12.3456), number(0.00012345), number(1234.5), number(float("nan"))
        ('12.3', '0.000123', '1234', '–')
    """
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 8)}f}"


def percent(value: float | None) -> str:
    """A probability.

    Example:
        >>> percent(0.98765), percent(0.0004)
        ('98.8 %', '< 0.1 %')
    """
    if value is None or not math.isfinite(value):
        return "–"
    return "< 0.1 %" if 0 < value < 0.0005 else f"{100 * value:.1f} %"


def times(value: float | None) -> str:
    """A ratio.

    Example:
        >>> times(2.847), times(31.2), times(None)
        ('2.8×', '31×', '–')
    """
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.0f}×" if value >= 10 else f"{value:.1f}×"


def shape(values: Sequence[int] | None) -> str:
    """Sizes with a multiplication sign.

    Example:
        >>> shape([3, 224, 224])
        '3 × 224 × 224'
    """
    return "–" if not values else " × ".join(str(value) for value in values)


def plain(value: Any) -> str:
    """Any plain value on one line.

    Example:
        >>> plain([0.5, 0.25]), plain(None), plain(True)
        ('0.5, 0.25', '–', 'yes')
    """
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(item) for item in value) or "–"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {plain(item)}" for key, item in value.items()) or "–"
    return str(value)


def web_address(value: str | None) -> str | None:
    """The address if it is an ordinary web address, else None: it becomes a link only then.

    Example:
        >>> web_address("https://example.org"), web_address("javascript:alert(1)")
        ('https://example.org', None)
    """
    return value if value and value.startswith(("https://", "http://")) else None


FILTERS: dict[str, Callable[..., Any]] = {
    "count": count,
    "number": number,
    "percent": percent,
    "times": times,
    "shape": shape,
    "plain": plain,
    "web_address": web_address,
}
