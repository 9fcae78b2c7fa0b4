"""Which code a run was made with: a run made by other code is another run.

The hash covers the sources that a result depends on (networks, layers, data, training), that of the user's own factory,
and, where a rule rewrites the network, those of the rules. What plans, keeps and evaluates runs, pages, commands and
measures may change without it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path

import torch

import convscope

_HERE = Path(__file__).parent
_AROUND = {
    *(
        "__init__.py",
        "design.py",
        "design_file.py",
        "data_check.py",
        "fit.py",
        "given.py",
        "plan.py",
        "version.py",
        "record.py",
        "study.py",
        "costs.py",
    ),
    *("results.py", "statistics.py", "choice.py", "tables.py", "sql.py", "shelf.py"),
}
_LAYERS = ("nn", "models.py", "_sources.py")
_REWRITTEN_BY = ("rewrites", "graph", "rules.py")


@functools.cache
def code_version(base: str, rewritten: bool) -> dict[str, str]:
    """Versions and the hash of the sources, as plain values.

    Args:
        base: of the design: where it names a factory of the user's, the file that it lies in counts too.
        rewritten: whether rules count.

    Example:
        >>> sorted(code_version("convscope.studies.networks:small_cnn", False))
        ['convscope', 'sources', 'torch']
    """
    own = [path for path in _HERE.rglob("*.py") if path.relative_to(_HERE).as_posix() not in _AROUND]
    files = [*own, *_matching(_HERE.parent, _LAYERS)]
    if rewritten:
        files += _matching(_HERE.parent, _REWRITTEN_BY)
    digest = hashlib.sha256()
    for path in sorted(set(files)):
        digest.update(path.relative_to(_HERE.parent).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    factory = _factory_file(base)
    if factory is not None:
        digest.update(b"factory\0" + factory.read_bytes())
    return {
        "convscope": convscope.__version__,
        "torch": str(torch.__version__),
        "sources": digest.hexdigest()[:16],
    }


def _matching(folder: Path, patterns: Iterable[str]) -> list[Path]:
    found: list[Path] = []
    for pattern in patterns:
        for path in folder.glob(pattern):
            found += path.rglob("*.py") if path.is_dir() else [path]
    return [path for path in found if path.suffix == ".py"]


def _factory_file(base: str) -> Path | None:
    """The source of a "package.module:factory" that is not convscope's own; None for all else."""
    module, colon, _ = base.partition(":")
    if not colon or "/" in module or module.split(".")[0] in ("convscope", "timm", "torchvision"):
        return None
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # no module of that name: a scheme, or a mistake found when it is built
        return None
    origin = None if spec is None else spec.origin
    return Path(origin) if origin and origin.endswith(".py") else None
