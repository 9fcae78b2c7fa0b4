"""Layers by name: shell globs over dotted module names, with the nearest right names when nothing matches."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from torch import nn

from convscope.errors import UnknownLayer, nearest
from convscope.graph.structure import Graph, split_address

if TYPE_CHECKING:
    from convscope.models import Net


def resolve(where: Net | nn.Module | Graph, patterns: str | Iterable[str]) -> list[str]:
    """The layers that patterns name, each once.

    A pattern is a dotted module name or a shell glob in which `*` also matches dots (`blocks.*.conv_dw`); a
    `#k` at its end, the k-th call, is kept. An exact name wins over its reading as a glob. Layers come in
    the order of the patterns and, within a glob, in the order they ran (of a Graph) or were registered (of a
    network).

    Args:
        where: a recorded graph, whose layers are those that ran, or a network, whose layers are all its
            modules.
        patterns: one or several.

    Raises:
        UnknownLayer: a pattern matches nothing; the message suggests the nearest names.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU()))
        >>> resolve(net, ["2.*", "0"])
        ['2.0', '2.1', '0']
    """
    names, aliases = _names(where)
    found: dict[str, None] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if isinstance(where, Graph) and _is_exact(pattern, {*where.layers, *where.aliases, *names}):
            where.call(pattern)  # raises for a module that did not run, or a call number too high
            found[pattern] = None
            continue
        matches = _matches(pattern, names, aliases)
        if not matches:
            raise UnknownLayer(_nothing(pattern, names))
        for match in matches:
            if isinstance(where, Graph):
                where.call(match)
            found[match] = None
    return list(found)


def _names(where: Net | nn.Module | Graph) -> tuple[list[str], list[str]]:
    """Names that globs range over, and further names that only an exact pattern may use."""
    if isinstance(where, Graph):
        return list(where.executed), list(where.aliases)
    module = where if isinstance(where, nn.Module) else where.module
    names = [name for name, _ in module.named_modules() if name]
    every = [name for name, _ in module.named_modules(remove_duplicate=False) if name]
    return names, [name for name in every if name not in set(names)]


def _is_exact(pattern: str, names: Iterable[str]) -> bool:
    known = set(names)
    return pattern in known or (split_address(pattern)[1] is not None and split_address(pattern)[0] in known)


def _matches(pattern: str, names: list[str], aliases: list[str]) -> list[str]:
    if _is_exact(pattern, [*names, *aliases]):
        return [pattern]
    glob, number = split_address(pattern)
    suffix = "" if number is None else f"#{number}"
    return [name + suffix for name in names if fnmatchcase(name, glob)]


def _nothing(pattern: str, names: list[str]) -> str:
    if not names:
        return f"layer {pattern!r} does not exist: the network has no submodule; give it one to look at"
    hint = nearest(split_address(pattern)[0], names)
    if not hint:
        shown = ", ".join(repr(name) for name in names[:5])
        hint = f"; its layers are {shown}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    verb = "pattern" if any(mark in pattern for mark in "*?[") else "layer"
    return f"{verb} {pattern!r} matches no layer of the network{hint}"
