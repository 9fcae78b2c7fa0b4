"""Rules as text, as the command line and recipes write them.

    separable:rank=2,where=layer3.*          one rule
    kernel_size:5 | fold_batch_norm          two, one after the other

The first argument may be given without its name. Values are numbers, true, false, none, HxW pairs of numbers, or text;
`where` comes last and takes the rest of the line up to the next `|`, so that it may hold commas.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from convscope.errors import RequestError, UnknownName, nearest
from convscope.rewrites.base import REGISTRY, Chain, Rule

_COMMA = re.compile(r",(?![^(]*\))")  # not one within parentheses, as in F(4,3)
_WORDS = {"true": True, "false": False, "none": None}


def parse(text: str) -> Rule:
    """The rule or chain of rules that a text stands for.

    Raises:
        UnknownName: there is no such rule, or it has no such argument; the nearest names are suggested.
        RequestError: the text cannot be read, or the rule refuses a value.

    Example:
        >>> from convscope import rules
        >>> parse("kernel_size:5,where=features.*")
        KernelSize(where='features.*', size=5, method='auto')
    """
    from convscope import rules as _  # noqa: F401 - registers every rule

    parts = [_one(part.strip()) for part in text.split("|")]
    return parts[0] if len(parts) == 1 else Chain(tuple(parts))


def _one(text: str) -> Rule:
    name, _, rest = text.partition(":")
    key = name.strip().lower().replace("-", "_")
    if key not in REGISTRY:
        raise UnknownName(
            f"rule {name.strip()!r} does not exist{nearest(key, REGISTRY)}; there are {', '.join(sorted(REGISTRY))}."
        )
    rule = REGISTRY[key]
    types = {each.name: str(each.type) for each in dataclasses.fields(rule)}
    names = [name for name in types if name != "where"]
    given: dict[str, Any] = {}
    rest, where = _split_where(rest)
    if where is not None:
        given["where"] = where
    for position, item in enumerate(filter(None, (each.strip() for each in _COMMA.split(rest)))):
        argument, mark, value = item.partition("=")
        if not mark:
            if position or not names:
                raise RequestError(f"rule {text!r}: {item!r} must be written as name=value.")
            argument, value = names[0], item
        argument = argument.strip()
        if argument not in names:
            raise UnknownName(
                f"rule {key!r} has no argument {argument!r}{nearest(argument, names)}; it takes "
                f"{', '.join([*names, 'where'])}."
            )
        given[argument] = value.strip() if types[argument] == "str" else _value(value.strip())
    try:
        return rule(**given)
    except TypeError as error:
        raise RequestError(f"rule {text!r} cannot be made: {error}.") from None


def _split_where(rest: str) -> tuple[str, str | None]:
    found = re.search(r"(?:^|,)\s*where\s*=", rest)
    if found is None:
        return rest, None
    return rest[: found.start()], rest[found.end() :].strip()


def _value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if re.fullmatch(r"\d+x\d+", text):
        first, second = text.split("x")
        return int(first), int(second)
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def written(rule: Rule) -> str:
    """The text that `parse` reads back.

    Example:
        >>> from convscope import rules
        >>> written(rules.KernelSize(5, where="a,b"))
        'kernel_size:size=5,where=a,b'
    """
    arguments = ",".join(f"{name}={_plain(value)}" for name, value in rule.arguments().items())
    return f"{rule.name}:{arguments}" if arguments else rule.name


def _plain(value: Any) -> str:
    if isinstance(value, tuple) and len(value) == 2 and all(isinstance(n, int) for n in value):
        return f"{value[0]}x{value[1]}"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
