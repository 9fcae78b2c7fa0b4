"""How the site writes its files: only what changed, and never half of a file."""

from __future__ import annotations

from pathlib import Path

from convscope.store import atomic_write


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
    if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
        return False
    atomic_write(path, data, sync=False)
    return True
