"""Import torchvision even where its compiled operators do not match the installed torch.

Such a torchvision ends its own import with "operator torchvision::nms does not exist", although its classification
models (and timm, which imports it) need none of those operators. Declaring the missing schemas first is enough: the
models then work, and only a call of a detection operator fails.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
import warnings
from pathlib import Path
from types import ModuleType

import torch

from convscope.errors import ConvscopeWarning, ModelError

# Only what torchvision registers unconditionally at import needs a schema; the rest it skips by itself.
_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_lock = threading.Lock()
_library: torch.library.Library | None = None  # kept: the schemas live as long as this object


def torchvision() -> ModuleType:
    """The torchvision package, imported with stand-in schemas for the compiled operators it lacks.

    Warns once a process (`ConvscopeWarning`) when detection operators are unavailable.

    Raises:
        ModelError: torchvision is not installed, or fails to import for another reason.

    Example:
        >>> torchvision().models.resnet18.__name__
        'resnet18'
    """
    with _lock:
        if "torchvision" not in sys.modules:
            _declare_missing()
        try:
            return importlib.import_module("torchvision")
        except (ImportError, RuntimeError, OSError) as error:
            raise ModelError(
                f"torchvision could not be imported ({error}); install the release that matches torch {torch.__version__}"
            ) from error


def has_detection_operators() -> bool:
    """Whether torchvision's compiled operators are there (False: this module declared stand-ins)."""
    return _library is None


def _declare_missing() -> None:
    """Declares the operators that torchvision expects and its compiled library does not give."""
    global _library
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
    _library = library
    _forget_failed_import()
    warnings.warn(
        f"torchvision's compiled operators do not work with torch {torch.__version__} ({reason}); classification "
        "models are unaffected, detection operators such as nms are unavailable",
        ConvscopeWarning,
        stacklevel=4,
    )


def _load_compiled(folder: Path) -> str:
    """Loads torchvision's compiled library as its own import would; returns why it failed, or an empty string."""
    found = sorted(path for path in folder.glob("_C*") if path.suffix in {".so", ".pyd", ".dylib"})
    if not found:
        return "no compiled library in this build"
    try:
        torch.ops.load_library(str(found[0]))
    except OSError as error:
        return str(error).splitlines()[0].rpartition("/")[2]
    return "operators missing"


def _exists(name: str) -> bool:
    return hasattr(torch.ops.torchvision, name)


def _forget_failed_import() -> None:
    """Drops the submodules that an earlier failed `import torchvision` left behind half made."""
    for name in [name for name in sys.modules if name.startswith("torchvision.")]:
        del sys.modules[name]
