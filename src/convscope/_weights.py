"""Reading weights safely: what a file really is, its tensors, and whether they fit a network.

The type is told by content, never by extension; where the two disagree the file is refused. Pickles go
through torch's restricted reader, which runs no code; anything that needs more is refused unless the caller
trusts it.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from convscope.errors import RequestError, UntrustedFile, WeightsMismatch

_LEGACY_MAGIC = (
    b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # the first pickle of torch < 1.6 files
)
_PICKLE_SUFFIXES = (".pt", ".pth", ".pt2", ".ckpt", ".bin", ".tar")
_KINDS = {
    "safetensors": "a safetensors file",
    "checkpoint": "a PyTorch checkpoint",
    "pickle": "a plain Python pickle",
    "torchscript": "a TorchScript archive",
    "exported": "a torch.export archive (.pt2)",
    "zip": "a zip archive not written by PyTorch",
    "html": "a web page, probably a download that failed",
    "lfs": "a git-lfs pointer, not the file itself",
    "gzip": "a gzip file",
    "hdf5": "an HDF5 (Keras) file",
    "numpy": "a numpy array file",
    "empty": "empty",
    "unknown": "of no type convscope knows",
}
RUNS_CODE = {"pickle", "torchscript", "exported"}

# Keys that training scripts put around, or in front of, a state dict.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder.")


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a weights file.

    Attributes:
        path: where they were read.
        state: tensor by name.
        notes: what was unwrapped or left out.
        normalization: (mean, std) from a safetensors file's metadata, or None.
    """

    path: str
    state: dict[str, Any]
    notes: tuple[str, ...] = ()
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None = None


# ------------------------------------------------------------------------------------------------------------
# what a file is


def kind(path: str) -> str:
    """What the file at `path` really is: one of the keys of `_KINDS`; reads a few bytes and runs nothing.

    Raises:
        RequestError: there is no such file, it cannot be read, or it is a damaged zip archive.
    """
    if os.path.isdir(path):
        raise RequestError(f"{_quoted(path)} is a folder; give the weights file in it")
    try:
        with open(path, "rb") as file:
            head = file.read(512)
            if head.startswith(b"PK"):
                return _zip_kind(path)
            size = file.seek(0, os.SEEK_END)
    except FileNotFoundError as error:
        raise RequestError(f"file {_quoted(path)} does not exist") from error
    except OSError as error:
        raise RequestError(f"file {_quoted(path)} cannot be read ({error.strerror or error})") from error
    return _head_kind(head, size)


def _head_kind(head: bytes, size: int) -> str:
    starts = {
        b"\x89HDF\r\n": "hdf5",
        b"\x93NUMPY": "numpy",
        b"\x1f\x8b": "gzip",
        b"version https://git-lfs": "lfs",
        _LEGACY_MAGIC: "checkpoint",
    }
    if not head:
        return "empty"
    for start, name in starts.items():
        if head.startswith(start):
            return name
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        return "pickle"
    if re.match(rb"\s*<(!doctype|html|\?xml)", head, flags=re.IGNORECASE):
        return "html"
    if len(head) > 8 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < max(size * 2, 1 << 20):
        return "safetensors"
    return "unknown"


def _zip_kind(path: str) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise _damaged(path, "its zip directory is missing") from error
    if (
        "archive_format" in names
        or "models/model.json" in names
        or "serialized_exported_program.json" in names
    ):
        return "exported"
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        return "torchscript"
    return "checkpoint" if "data.pkl" in names else "zip"


def check_label(path: str, found: str) -> None:
    """Refuses a file whose extension claims another type than its content.

    Raises:
        RequestError: the two disagree, or the content is nothing that holds weights.
    """
    suffix = os.path.splitext(path)[1].lower()
    if found not in {"safetensors", "checkpoint", *RUNS_CODE}:
        raise RequestError(f"file {_quoted(path)} is {_KINDS[found]}; give a .safetensors, .pt or .pth file")
    if suffix == ".safetensors" and found != "safetensors":
        raise RequestError(
            f"file {_quoted(path)} is named .safetensors but is {_KINDS[found]}, which a loader may run "
            "code from; ask "
            "where it came from, and name it .pt if it is right"
        )
    if suffix in _PICKLE_SUFFIXES and found == "safetensors":
        raise RequestError(f"file {_quoted(path)} is {_KINDS[found]}; name it .safetensors")


def _damaged(path: str, why: str) -> RequestError:
    return RequestError(f"file {_quoted(path)} is truncated or damaged ({why}); download or save it again")


def _quoted(path: str) -> str:
    """A path in quotes, control characters escaped."""
    return repr(str(path))


def untrusted(path: str, what: str) -> UntrustedFile:
    """The refusal of a file that runs code when loaded."""
    return UntrustedFile(
        f"file {_quoted(path)} {what} and runs code when loaded; save the weights alone with "
        "torch.save(model.state_dict(), path), or pass trust=True / --trust if you trust where it came from"
    )


# ------------------------------------------------------------------------------------------------------------
# reading


def read(path: str, *, trust: bool = False) -> Checkpoint:
    """The tensors of a `.safetensors`, `.pt` or `.pth` file, unwrapped from what training scripts put around
    them.

    Raises:
        RequestError: missing, truncated, mislabelled, or holding no state dict.
        UntrustedFile: it needs code to load, and `trust` is False.
    """
    found = kind(path)
    check_label(path, found)
    if found == "safetensors":
        return _read_safetensors(path)
    loaded = read_object(path, found, trust)
    if isinstance(loaded, nn.Module):
        return Checkpoint(
            path, dict(loaded.state_dict()), ("the state dict of a whole saved module was taken",)
        )
    return _unwrap(path, loaded)


def _read_safetensors(path: str) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, _first_line(error)) from error
    return Checkpoint(path, state, normalization=_read_normalization(metadata))


def _read_normalization(metadata: Mapping[str, str]) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """(mean, std) where the metadata holds both as JSON lists of sensible numbers."""
    lists = []
    for key in ("mean", "std"):
        try:
            values = json.loads(metadata.get(key, "null"))
        except ValueError:
            return None
        if not isinstance(values, list) or not all(
            isinstance(v, int | float) and isfinite(v) for v in values
        ):
            return None
        lists.append(tuple(float(v) for v in values))
    mean, std = lists
    return (mean, std) if len(mean) == len(std) and min(std, default=0) > 0 else None


def read_object(path: str, found: str, trust: bool) -> Any:
    """What a PyTorch file holds; without `trust` only tensors and plain containers, and no code is run."""
    if found in RUNS_CODE and not trust:
        raise untrusted(path, f"is {_KINDS[found]}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if found == "checkpoint":
            return _torch_load(path, trust)
        try:
            if found == "torchscript":
                return torch.jit.load(path, map_location="cpu")
            if found == "exported":
                return torch.export.load(path).module()
            with open(path, "rb") as file:
                return pickle.load(file)  # trusted by the caller in so many words
        except Exception as error:  # trusted code may raise anything
            raise RequestError(f"file {_quoted(path)} could not be loaded ({_first_line(error)})") from error


def _torch_load(path: str, trust: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"(?:GLOBAL|global) ([\w.]+)", str(error).replace("GLOBAL was", ""))
        if refused is None and "Unsupported" not in str(error):
            raise _damaged(path, _first_line(error)) from error
        if not trust:
            named = f" ({refused[1]})" if refused else ""
            raise untrusted(path, f"holds pickled objects{named}") from error
    except Exception as error:  # a damaged file makes the reader raise almost anything
        raise _damaged(path, _first_line(error)) from error
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # trusted code may raise anything
        raise RequestError(
            f"file {_quoted(path)} could not be loaded ({type(error).__name__}: {_first_line(error)}); a "
            "pickled module "
            "needs the code of its classes importable here"
        ) from error


def _first_line(error: BaseException) -> str:
    """The first sentence of a foreign error, short enough to stand in brackets."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = re.sub(r"\x1b\[\d*m", "", lines[0]) if lines else type(error).__name__
    return text.split(". ")[0].rstrip(".")[:160]


# ------------------------------------------------------------------------------------------------------------
# unwrapping


def _unwrap(path: str, loaded: Any) -> Checkpoint:
    """The one state dict in what was read, at the top or under one key."""
    if not isinstance(loaded, Mapping):
        raise RequestError(
            f"file {_quoted(path)} holds {type(loaded).__name__}, not a state dict of named tensors"
        )
    inner = [key for key, value in loaded.items() if _is_state(value)]
    if _is_state(loaded):
        return _only_tensors(path, loaded, ())
    if len(inner) == 1:
        return _only_tensors(path, loaded[inner[0]], (f"weights taken from key {inner[0]!r} of the file",))
    modules = [key for key, value in loaded.items() if isinstance(value, nn.Module)]
    if not inner and len(modules) == 1:
        state = loaded[modules[0]].state_dict()
        return Checkpoint(path, dict(state), (f"weights taken from the module under key {modules[0]!r}",))
    if inner:
        raise RequestError(
            f"file {_quoted(path)} holds several state dicts ({', '.join(map(repr, inner))}); save the one "
            "you want "
            f"alone, for instance torch.save(torch.load(path)[{inner[0]!r}], 'weights.pt')"
        )
    keys = ", ".join(repr(key) for key in list(loaded)[:5]) or "none"
    raise RequestError(f"file {_quoted(path)} holds no state dict of named tensors; its keys are {keys}")


def _is_state(value: Any) -> bool:
    """Whether most of a mapping's values are tensors under string names, at least one being a weight."""
    if not isinstance(value, Mapping) or not value or not all(isinstance(key, str) for key in value):
        return False
    tensors = sum(isinstance(item, Tensor) for item in value.values())
    return tensors > len(value) / 2 and any(
        isinstance(item, Tensor) and item.ndim > 0 for item in value.values()
    )


def _only_tensors(path: str, state: Mapping[str, Any], notes: tuple[str, ...]) -> Checkpoint:
    kept = {k: v for k, v in state.items() if isinstance(v, Tensor) or k.endswith("_extra_state")}
    left = [key for key in state if key not in kept]
    if left:
        notes += (f"entries that are no tensors were left out: {_listed(left)}",)
    return Checkpoint(path, kept, notes)


def _listed(names: Iterable[str], shown: int = 3) -> str:
    names = list(names)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


# ------------------------------------------------------------------------------------------------------------
# fitting


def fit(module: nn.Module, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Loads the weights into the module; every tensor must have its place.

    Returns:
        Notes on what was unwrapped or renamed on the way.

    Raises:
        WeightsMismatch: with the first missing, unexpected and mis-shaped keys.
    """
    checkpoint = _without_prefix(checkpoint, set(module.state_dict()))
    on_meta = any(p.device.type == "meta" for p in module.parameters())
    try:
        module.load_state_dict(checkpoint.state, strict=True, assign=on_meta)
    except (RuntimeError, KeyError, TypeError) as error:
        raise WeightsMismatch(_mismatch(module, checkpoint, error)) from error
    return checkpoint.notes


def _without_prefix(checkpoint: Checkpoint, wanted: set[str]) -> Checkpoint:
    """Drops a wrapper's prefix ("module." and the like) that every key has and none of the network's has."""
    changed = True
    while changed:
        changed = False
        for prefix in _PREFIXES:
            if all(key.startswith(prefix) for key in checkpoint.state) and not any(
                key.startswith(prefix) for key in wanted
            ):
                state = {key[len(prefix) :]: value for key, value in checkpoint.state.items()}
                note = f"prefix {prefix!r} was dropped from the names of the weights"
                checkpoint = replace(checkpoint, state=state, notes=(*checkpoint.notes, note))
                changed = bool(state)
    return checkpoint


def _mismatch(module: nn.Module, checkpoint: Checkpoint, error: Exception) -> str:
    here = {k: v for k, v in module.state_dict().items() if isinstance(v, Tensor)}
    there = checkpoint.state
    missing = [key for key in here if key not in there and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in there if key not in here]
    shaped = [
        f"{key} ({_shape(there[key])} in the file, {_shape(here[key])} in the network)"
        for key in here
        if key in there and getattr(there[key], "shape", None) != here[key].shape
    ]
    parts = [
        f"{len(keys)} {what} ({_listed(keys)})"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shaped))
        if keys
    ]
    if not parts:
        parts = [_first_line(error)]
    advice = "give the weights of this architecture"
    if shaped and not missing and not unexpected:
        advice = "build the network as it was trained, for instance 'timm:NAME?num_classes=10'"
    return (
        f"weights {_quoted(checkpoint.path)} do not fit {type(module).__name__}: {'; '.join(parts)}; {advice}"
    )


def _shape(tensor: Any) -> str:
    return (
        "x".join(map(str, tensor.shape)) or "scalar" if isinstance(tensor, Tensor) else type(tensor).__name__
    )
