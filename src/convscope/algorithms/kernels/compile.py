"""From LLVM's text to an address, with the object code kept on disk.

An entry's key is a hash of the text, the processor and LLVM's version; its content is the object code behind
a checksum of key and code. An entry that is damaged, belongs to another key or to another user is built
again, never run. Entries are written whole or not at all, and the oldest go when there are too many.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import threading
import warnings
import weakref
from pathlib import Path
from typing import Any

from convscope.algorithms import memory
from convscope.algorithms.kernels import threads
from convscope.algorithms.kernels.host import Host, current
from convscope.errors import ConvscopeWarning, StoreError
from convscope.store import atomic_write

MAGIC = b"convscope object code 1\n"
KEPT = 1024  # entries on disk, about 40 MB

_lock = threading.RLock()  # LLVM is entered by one thread at a time
_live: weakref.WeakValueDictionary[str, Code] = weakref.WeakValueDictionary()


class Code:
    """Machine code in memory, for as long as this object lives."""

    def __init__(self, engine: Any, size: int) -> None:
        self._engine = engine
        self.bytes = size

    def address(self, name: str) -> int:
        """Where a public function begins."""
        with _lock:
            return int(self._engine.get_function_address(name))


def build(text: str, host: Host | None = None) -> Code:
    """Compile a module, or take its code from memory or disk.

    Args:
        text: the module, as `Module.text` gives it.
        host: the processor to compile for; by default the current one.

    Returns:
        The code; hold on to it while any of its addresses is in use.

    Raises:
        RuntimeError: LLVM refuses the text, or torch's threads were not found (`threads.refuses`).

    Example:
        >>> from convscope.algorithms.kernels.builder import INTS, Module
        >>> module = Module(current())
        >>> f = module.function("three", place=INTS)
        >>> f.arguments[0].store_value(3)
        >>> build(module.text()).address("three") > 0
        True
    """
    host = host or current()
    key = _key(text, host)
    with _lock:
        code = _live.get(key)
        if code is None:
            threads.make_known()
            binary = _read(key)
            if binary is None:
                binary = _compile(text, host)
                _write(key, binary)
            code = _live[key] = _load(binary, host)
    return code


# ---------------------------------------------------------------- LLVM


@functools.cache
def _llvm() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm


def _machine(host: Host) -> Any:
    """LLVM's picture of the processor; an engine takes it over and frees it, so each has its own."""
    llvm = _llvm()
    target = llvm.Target.from_triple(llvm.get_process_triple())
    return target.create_target_machine(
        cpu=host.cpu, features=host.features, opt=3, codemodel="jitdefault", jit=True
    )


def _compile(text: str, host: Host) -> bytes:
    """Object code. Kernels are written as they should run: registers are assigned, little else is changed."""
    llvm = _llvm()
    module = llvm.parse_assembly(f'target triple = "{llvm.get_process_triple()}"\n{text}')
    module.verify()
    machine = _machine(host)
    tuning = llvm.create_pipeline_tuning_options(speed_level=2)
    builder = llvm.create_pass_builder(machine, tuning)
    passes = llvm.create_new_module_pass_manager()
    passes.add_sroa_pass()
    passes.add_instruction_combine_pass()
    passes.add_simplify_cfg_pass()
    passes.add_new_gvn_pass()
    passes.run(module, builder)
    return bytes(machine.emit_object(module))


def _load(binary: bytes, host: Host) -> Code:
    llvm = _llvm()
    empty = llvm.parse_assembly(f'target triple = "{llvm.get_process_triple()}"')
    engine = llvm.create_mcjit_compiler(empty, _machine(host))
    engine.add_object_file(llvm.ObjectFileRef.from_data(binary))
    engine.finalize_object()
    return Code(engine, len(binary))


# ---------------------------------------------------------------- disk


def folder() -> Path:
    """Where object code is kept: in convscope's folder for what it can make again."""
    return memory.folder() / "kernels"


def _key(text: str, host: Host) -> str:
    llvm = _llvm()
    version = ".".join(map(str, llvm.llvm_version_info))
    parts = (version, llvm.get_process_triple(), host.cpu, host.features, text)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _read(key: str) -> bytes | None:
    """The code of an entry, or None where there is none to trust."""
    try:
        with open(folder() / f"{key}.o", "rb") as file:
            owner = os.fstat(file.fileno()).st_uid
            content = file.read()
    except OSError:
        return None
    if hasattr(os, "geteuid") and owner not in (os.geteuid(), 0):
        return None
    head, digest, binary = content[: len(MAGIC)], content[len(MAGIC) :][:32], content[len(MAGIC) + 32 :]
    if head != MAGIC or digest != _checksum(key, binary):
        return None
    return binary


def _checksum(key: str, binary: bytes) -> bytes:
    return hashlib.sha256(key.encode() + binary).digest()


def _write(key: str, binary: bytes) -> None:
    """Keep an entry. A folder that cannot be written costs time in the next process, not the result."""
    place = folder()
    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        atomic_write(place / f"{key}.o", MAGIC + _checksum(key, binary) + binary, sync=False)
        _prune(place)
    except (OSError, StoreError) as error:
        _warn(str(error))


@functools.cache
def _warn(reason: str) -> None:
    warnings.warn(
        f"compiled kernels cannot be kept and are built again in each process: {reason}; set CONVSCOPE_CACHE "
        f"to a folder that you may write to.",
        ConvscopeWarning,
        stacklevel=2,
    )


def _prune(place: Path) -> None:
    with os.scandir(place) as entries:
        files = [entry for entry in entries if entry.name.endswith(".o")]
    if len(files) > KEPT:
        aged = sorted(files, key=lambda entry: entry.stat().st_mtime)
        for entry in aged[: len(files) - KEPT]:
            with contextlib.suppress(OSError):  # another process may have pruned it
                os.unlink(entry.path)
