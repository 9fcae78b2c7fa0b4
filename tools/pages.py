"""The code of a documentation page: its blocks run one after the other, what stands behind `#` is what comes out."""

from __future__ import annotations

import ast
import re
from typing import Any


def run(page: str) -> tuple[dict[str, Any], list[tuple[str, str, str]]]:
    """Runs a page's blocks.

    Args:
        page: Markdown.

    Returns:
        The names that its code made, and for each expression its text, what the page says it gives, and what it gives.

    Example:
        >>> run("```python\\nx = 2\\nx + 1  # 3\\n```")[1]
        [('x + 1', '3', '3')]
    """
    names: dict[str, Any] = {}
    told: list[tuple[str, str, str]] = []
    for block in re.findall(r"(?s)```python\n(.*?)```", page):
        lines = block.splitlines()
        for statement in ast.parse(block).body:
            if isinstance(statement, ast.Expr):
                text = ast.get_source_segment(block, statement) or ""
                behind = lines[(statement.end_lineno or 1) - 1][statement.end_col_offset or 0 :]
                told.append((text, behind.partition("# ")[2], repr(eval(text, names))))  # noqa: S307
            else:
                exec(compile(ast.Module([statement], []), "page", "exec"), names)  # noqa: S102
    return names, told
