"""Twelve real colour photographs, so that everything works on the first run without data of the user's own.

Each is in the public domain or under CC0 or CC BY, short side at most 320 px, with its attribution beside it.
`tools/make_photographs.py` made them from the wheels of scikit-image, scikit-learn, scipy, matplotlib and
cartopy.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_FOLDER = Path(__file__).parent / "photos"


@dataclass(frozen=True)
class Photo:
    """One embedded photograph and whom to credit for it.

    Attributes:
        name: a short name, also the file's.
        title: what it shows.
        attribution: its author.
        license: the terms, such as "CC0 1.0".
        url: where it comes from.
    """

    name: str
    title: str
    attribution: str
    license: str
    url: str

    @property
    def path(self) -> Path:
        """The WebP file."""
        return _FOLDER / f"{self.name}.webp"

    def image(self) -> Tensor:
        """The photograph as Tensor [3, height, width] in [0, 1]."""
        from convscope.data.images import read_image, to_tensor

        return to_tensor(read_image(self.path), channels=3)

    def to_dict(self) -> dict[str, Any]:
        """Name and credits as plain values."""
        return {
            "name": self.name,
            "title": self.title,
            "attribution": self.attribution,
            "license": self.license,
            "url": self.url,
        }


@functools.cache
def photographs() -> tuple[Photo, ...]:
    """The embedded photographs, in a fixed order.

    Example:
        >>> [photo.name for photo in photographs()][:3], photographs()[1].license
        (['astronaut', 'chelsea', 'coffee'], 'CC0 1.0')
    """
    records = json.loads((_FOLDER / "photographs.json").read_text("utf-8"))
    fields = ("name", "title", "attribution", "license", "url")
    return tuple(Photo(**{key: record[key] for key in fields}) for record in records)
