"""Import torchvision even where its compiled operators do not match the installed torch.

Such a torchvision ends its own import with "operator torchvision::nms does not exist", although its
classification models (and timm, which imports it) need none of those operators. Declaring the missing schemas
first is enough: the models then work, and only a call of a detection operator fails.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
import threading
from pathlib import Path
from types import ModuleType

import torch

from convscope.errors import ModelError

# Only what torchvision registers unconditionally at import needs a schema; the rest it skips by itself.
_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_log = logging.getLogger("convscope")
_lock = threading.Lock()
_reason = ""  # why operators are missing; emptied once said
_library: torch.library.Library | None = None  # kept: the schemas live as long as this object


def torchvision() -> ModuleType:
    """The torchvision package, imported with stand-in schemas for the compiled operators it lacks.

    Logs one warning a process (logger `convscope`) when detection operators are unavailable.

    Raises:
        ModelError: torchvision is not installed, or fails to import for another reason.

    Example:
        >>> torchvision().models.resnet18.__name__
        'resnet18'
    """
    declare_missing_operators()
    with _lock:
        _warn_once()
        try:
            return importlib.import_module("torchvision")
        except (ImportError, RuntimeError, OSError) as error:
            raise ModelError(
                f"torchvision could not be imported ({error}); install the release that matches "
                f"torch {torch.__version__}"
            ) from error


def has_detection_operators() -> bool:
    """Whether torchvision's compiled operators are there (False: this module declared stand-ins)."""
    return _library is None


def declare_missing_operators() -> None:
    """Declares the operators that torchvision expects and its compiled library lacks; imports nothing.

    Called before code that may import torchvision by itself: a factory of the caller's, a pickled module.
    """
    with _lock:
        if "torchvision" not in sys.modules:
            _declare()


def _declare() -> None:
    global _library, _reason
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return  # the import that follows says so
    reason = _load_compiled(Path(spec.submodule_search_locations[0]))
    missing = [name for name in _SCHEMAS if not _exists(name)]
    if not missing:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in missing:
        library.define(_SCHEMAS[name])
    _library, _reason = library, reason
    _forget_failed_import()


def _warn_once() -> None:
    global _reason
    if _reason:
        _log.warning(
            "torchvision's compiled operators do not work with torch %s (%s): classification models are "
            "unaffected, detection operators such as nms are unavailable",
            torch.__version__,
            _reason,
        )
    _reason = ""


def _load_compiled(folder: Path) -> str:
    """Loads torchvision's compiled library as its own import would; returns what is wrong with it."""
    found = sorted(path for path in folder.glob("_C*") if path.suffix in {".so", ".pyd", ".dylib"})
    if not found:
        return "no compiled library in this build"
    try:
        torch.ops.load_library(str(found[0]))
    except OSError as error:
        return " ".join(str(error).split())[:120] or type(error).__name__
    return "operators missing"


def _exists(name: str) -> bool:
    return hasattr(torch.ops.torchvision, name)


def _forget_failed_import() -> None:
    """Drops the submodules that an earlier failed `import torchvision` left behind half made."""
    for name in [name for name in sys.modules if name.startswith("torchvision.")]:
        del sys.modules[name]
