"""What a recipe from somebody else may ask for: it is data, and stays data.

Its sources may only be networks whose code is installed already and whose options are plain numbers; anything that would run
code, read another file or fetch something needs `trust=True`. Paths it has none: the weights lie beside it under a
fixed name.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from torch import Tensor

from convscope._sources import EMBEDDED
from convscope.errors import RequestError, UntrustedFile
from convscope.rewrites.base import Rule

LARGEST = 16 * 2**20  # bytes of a recipe
ROOM = 2**27  # numbers that a layer may hold in any case
MOST = 65536  # of a number in a rule or a source: no kernel, rank or map is larger

_NAMED = re.compile(r"(?:timm|torchvision):[A-Za-z0-9_.]+")
_REACHING = re.compile(r"pretrained|weights|checkpoint|path|file|url|hub|cache", re.IGNORECASE)


def read_json(file: Path) -> dict[str, Any]:
    """The recipe's values.

    Raises:
        RequestError: it is missing, too large, or no JSON object.
    """
    try:
        with file.open("rb") as opened:
            content = opened.read(LARGEST + 1)
        found = json.loads(content.decode("utf-8")) if len(content) <= LARGEST else None
    except FileNotFoundError:
        raise RequestError(
            f"recipe {str(file)!r} does not exist; give the folder that Rewrite.save wrote, or the recipe.json in it."
        ) from None
    except OSError as error:
        raise RequestError(f"recipe {str(file)!r} cannot be read ({error.strerror or error}).") from None
    except (ValueError, RecursionError) as error:
        raise RequestError(
            f"recipe {str(file)!r} is damaged: it is no JSON ({str(error)[:100]}); save the network again."
        ) from None
    if len(content) > LARGEST:
        raise RequestError(f"recipe {str(file)!r} is larger than {LARGEST >> 20} MiB, which no recipe is.")
    if not isinstance(found, dict):
        raise RequestError(
            f"recipe {str(file)!r} is damaged: it must be a JSON object; save the network again."
        )
    return found


_WORDS: Mapping[type, str] = {str: "text", int: "a whole number", list: "a list", dict: "a set of values"}


def taken(values: Any, key: str, kind: type, place: str) -> Any:
    """The value under a key, which must be of that kind.

    Raises:
        RequestError: it is not.
    """
    found = values.get(key) if isinstance(values, Mapping) else None
    if not isinstance(found, kind) or isinstance(found, bool):
        raise RequestError(
            f"recipe {place!r} is damaged: {key!r} must be {_WORDS[kind]}; save the network again."
        )
    return found


def plain_source(source: str) -> str:
    """The source of the architecture alone, without trained weights.

    Example:
        >>> plain_source("torchvision:vgg16:DEFAULT"), plain_source("timm:resnet18?in_chans=1 with weights a.pt")
        ('torchvision:vgg16', 'timm:resnet18?in_chans=1')
    """
    source = source.partition(" with weights ")[0]
    name, mark, options = source.partition("?")
    if name.startswith("torchvision:"):
        name = ":".join(name.split(":")[:2])
    return name + mark + options


def checked_source(source: str, trust: bool, place: str) -> None:
    """Refuses a source that could run code or reach for files, without trust.

    Raises:
        UntrustedFile: it could.
        RequestError: an option is a number that is too large.
    """
    name, _, query = source.partition("?")
    if name.removeprefix("embedded:") in EMBEDDED and not query:
        return
    fine = _NAMED.fullmatch(name) is not None
    for part in query.split("&") if query else []:
        key, _, value = part.partition("=")
        fine = fine and _is_number(unquote(value), place) and not _REACHING.search(key)
    if not fine and not trust:
        raise UntrustedFile(
            f"recipe {place!r} builds its base network from {source!r}, which can run code or read other files; pass "
            "trust=True / --trust if you trust where it came from."
        )


def _is_number(text: str, place: str) -> bool:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
    for number in value if isinstance(value, tuple | list) else (value,):
        if not isinstance(number, int | float | None):
            return False
        _small(number, place)
    return True


def checked_rule(rule: Rule, state: Mapping[str, Tensor], place: str) -> None:
    """Refuses numbers that would only fill the memory: larger than what the weights beside the recipe can be for.

    Args:
        rule: the rule.
        state: the saved weights.
        place: the recipe, for the message.

    Raises:
        RequestError: there is one.
    """
    for value in rule.arguments().values():
        for number in value if isinstance(value, tuple | list) else (value,):
            _small(number, place)
    maps = [tensor.shape for tensor in state.values() if tensor.ndim == 4]
    room = max(ROOM, 16 * sum(tensor.numel() for tensor in state.values()))
    kernel = getattr(rule, "wanted", None) if rule.name == "kernel_size" else None
    if kernel is not None and tuple(kernel) not in {tuple(shape[2:]) for shape in maps}:
        widest = max((shape[0] * shape[1] for shape in maps), default=1)
        if kernel[0] * kernel[1] * widest > room:
            raise RequestError(
                f"recipe {place!r} asks for {rule}, far more weights than lie beside it; it is damaged, or made to fill "
                "the memory."
            )
    if rule.name == "untie" and getattr(rule, "memory", 0) * 2**17 > room:  # in MiB, of float64
        raise RequestError(
            f"recipe {place!r} asks for {rule}, far more memory than the weights beside it take."
        )


def _small(number: Any, place: str) -> None:
    if isinstance(number, int | float) and not abs(number) <= MOST:
        raise RequestError(
            f"recipe {place!r} asks for {number!r}, and no number in it may be larger than {MOST}."
        )
