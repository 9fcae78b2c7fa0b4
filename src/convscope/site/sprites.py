"""Sprite sheets: the small pictures of up to 64 units in one WebP, so that thousands load smoothly."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image, ImageOps

from convscope.site.files import write_if_changed
from convscope.site.scripts import digest

TILE = 128  # pixels; the automatic canvas of the atlas is at most this
COLUMNS = 8
BLOCK = 64  # units a sheet; a running atlas rewrites only the sheet it is filling


@dataclass(frozen=True)
class Sheet:
    """One sprite sheet: where it is, its grid, and which of its units have a readable picture."""

    file: str
    version: str
    columns: int
    rows: int
    shown: tuple[bool, ...]


class Sheets:
    """The sprite sheets of one report; remembers in `sprites/sheets.json` what each was made of.

    Args:
        out: The report's folder; picture paths are relative to it.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self._index = out / "sprites" / "sheets.json"
        self._known: dict[str, dict[str, object]] = _read_known(self._index)
        self._used: dict[str, dict[str, object]] = {}

    def sheet(self, name: str, images: Sequence[str | None]) -> Sheet:
        """The sheet called `name` of these pictures (None: a unit has none), drawn only if they changed."""
        contents = [self._read(image) for image in images]
        version = digest(b"\0".join(digest(content).encode() if content else b"-" for content in contents))
        columns, rows = min(COLUMNS, len(images)), -(-len(images) // COLUMNS)
        file = f"sprites/{name}.webp"
        known = self._known.get(name)
        if known is None or known["version"] != version or not (self.out / file).is_file():
            tiles = _tiles(contents)
            write_if_changed(self.out / file, _draw(tiles, columns, rows))
            known = {"version": version, "shown": [tile is not None for tile in tiles]}
        self._used[name] = known
        shown = known["shown"]
        assert isinstance(shown, list)
        return Sheet(file, version, columns, rows, tuple(bool(flag) for flag in shown))

    def close(self) -> None:
        """Writes down what was drawn and removes the sheets that no longer belong to the report."""
        write_if_changed(self._index, json.dumps(self._used, separators=(",", ":")))
        for name in self._known.keys() - self._used.keys():
            (self.out / f"sprites/{name}.webp").unlink(missing_ok=True)

    def _read(self, image: str | None) -> bytes | None:
        if image is None or not is_inside(image):
            return None
        try:
            return (self.out / image).read_bytes()
        except OSError:  # a picture removed by hand: the page says so in its place
            return None


def is_inside(path: str) -> bool:
    """Whether a relative path of a manifest stays in the report's folder and is no address.

    Example:
        >>> [is_inside(path) for path in ("images/000/1.webp", "../x.webp", "/etc/passwd", "http://x/y.webp")]
        [True, False, False, False]
    """
    pure = PurePosixPath(path)
    return (
        bool(path)
        and not pure.is_absolute()
        and ".." not in pure.parts
        and ":" not in path
        and "\\" not in path
    )


def _read_known(path: Path) -> dict[str, dict[str, object]]:
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):  # a cache only: without it every sheet is drawn again
        return {}
    if not isinstance(known, dict):
        return {}
    return {n: k for n, k in known.items() if isinstance(k, dict) and isinstance(k.get("shown"), list)}


def _tiles(contents: Sequence[bytes | None]) -> list[Image.Image | None]:
    if len(contents) < 2:
        return [_tile(content) for content in contents]
    with ThreadPoolExecutor(2) as pool:  # Pillow releases the lock while it decodes and resizes
        return list(pool.map(_tile, contents))


def _tile(content: bytes | None) -> Image.Image | None:
    if content is None:
        return None
    try:
        with Image.open(io.BytesIO(content)) as image:
            return ImageOps.fit(image.convert("RGB"), (TILE, TILE), Image.Resampling.BICUBIC)
    except (
        OSError,
        ValueError,
        Image.DecompressionBombError,
    ):  # damaged: the page shows "no picture" for this unit
        return None


def _draw(tiles: Sequence[Image.Image | None], columns: int, rows: int) -> bytes:
    sheet = Image.new("RGB", (columns * TILE, rows * TILE), (128, 128, 128))
    for position, tile in enumerate(tiles):
        if tile is not None:
            sheet.paste(tile, (position % COLUMNS * TILE, position // COLUMNS * TILE))
    buffer = io.BytesIO()
    sheet.save(buffer, "WEBP", quality=82, method=1)
    return buffer.getvalue()
