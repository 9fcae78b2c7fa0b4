"""How the site writes its files: only what changed, and never half of a file."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from convscope.errors import StoreError


def write_if_changed(path: Path, content: str | bytes) -> bool:
    """Replaces `path` in one step, unless it already holds exactly `content`.

    An open page may read the file at any moment, so it must see the old or the new content, whole.

    Args:
        path: The target; missing folders above it are made.
        content: Bytes, or text to encode as UTF-8.

    Returns:
        True if the file was written.

    Raises:
        StoreError: The file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     target = Path(folder) / "a" / "b.txt"
        ...     write_if_changed(target, "one"), write_if_changed(target, "one")
        (True, False)
    """
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    try:
        if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, data)
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(
            f"the report file {str(path)!r} cannot be written ({reason}); "
            "choose a writable folder with enough space."
        ) from error
    return True


def _replace(path: Path, data: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)  # mkstemp makes private files; a report is meant to be shared
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
