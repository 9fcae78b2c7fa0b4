"""How a rewritten network is made again: the base model's source and hash, the rules, what they decided."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import convscope
from convscope.rewrites.base import links

if TYPE_CHECKING:
    from convscope.rewrites.rewrite import Rewrite

FORMAT = 1


def recipe_of(made: Rewrite) -> dict[str, Any]:
    """Plain values."""
    return {
        "format": FORMAT,
        "convscope": convscope.__version__,
        "base": made.base.to_dict(),
        "rules": [str(rule) for rule in links(made.rule)],
        "edits": [{"layer": edit.layer, "rule": edit.rule, "resolved": edit.resolved} for edit in made.done],
        "data": made.data,
        "exactness": made.exactness,
        "sha256": made.net.sha256,
    }
