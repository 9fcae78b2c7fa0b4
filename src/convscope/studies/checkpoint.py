"""A training's state on disk, so that one that was killed goes on where it was."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from convscope.errors import StoreError, StoreMismatch
from convscope.store import atomic_write


def save(path: Path, identity: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Writes the state whole or not at all.

    Raises:
        StoreError: the system refuses.
    """
    content = io.BytesIO()
    torch.save({"identity": json.dumps(identity, sort_keys=True), "state": dict(state)}, content)
    atomic_write(path, content.getvalue())


def read(path: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state saved for this very training, or None where there is no file.

    Raises:
        StoreMismatch: it is of another training.
        StoreError: it cannot be read.
    """
    if not path.exists():
        return None
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
        there, state = content["identity"], content["state"]
    except Exception as error:  # a damaged file makes torch raise almost anything
        raise StoreError(f"checkpoint {str(path)!r} is damaged; delete it to train anew.") from error
    if there != json.dumps(identity, sort_keys=True):
        raise StoreMismatch(
            f"checkpoint {str(path)!r} is of another training (other settings, data, weights or seed); "
            "choose another path, or delete it."
        )
    found: dict[str, Any] = state
    return found
