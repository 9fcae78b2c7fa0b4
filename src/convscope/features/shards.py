"""Batches of an atlas, drawn here or by a worker of an engine: the same function, so that the pictures are the same.

The network travels as a pickle that the driver made of its own module: to workers that share its disk as a file, else with
each batch. A worker keeps the network it was last asked about.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from convscope import _heap
from convscope.engines import Engine
from convscope.errors import ModelError, OutOfMemory, RequestError
from convscope.features.ground import own_ground
from convscope.features.session import Drawn, Session, Wanted, with_agreement

DRAW = "convscope.features.shards:draw"
_sessions: dict[str, Session] = {}  # of this process, by what they were made from: the last one


@dataclass(frozen=True)
class Batch:
    """What a batch came to.

    Attributes:
        drawn: its pictures; empty where it failed.
        failed: why it cannot be drawn, or None.
        halvings: parts of it that did not fit in memory at once.
    """

    drawn: list[Drawn]
    failed: str | None
    halvings: list[str]


def draw_batch(
    session: Session,
    wanted: Sequence[Wanted],
    size: tuple[int, int],
    on_segment: Callable[[int], None] | None = None,
) -> Batch:
    """The pictures of a batch, or why the network cannot be drawn there."""
    before = len(session.halvings)
    try:
        drawn = with_agreement(session.draw(wanted, size, on_segment))
    except (ModelError, OutOfMemory) as error:
        return Batch([], str(error), session.halvings[before:])
    return Batch(drawn, None, session.halvings[before:])


@own_ground()
@_heap.kept()
def draw(payload: Mapping[str, Any]) -> Batch:
    """The same in a worker; see `Shipped.payload`."""
    key = payload["key"]
    if key not in _sessions:
        _sessions.clear()
        _sessions[key] = _session(payload)
    return draw_batch(_sessions[key], payload["wanted"], payload["size"])


def _session(payload: Mapping[str, Any]) -> Session:
    content = payload["network"]
    data = Path(content).read_bytes() if isinstance(content, str) else content
    try:
        net = pickle.loads(data)  # made by our own driver a moment ago
    except (AttributeError, ImportError) as error:
        raise RequestError(
            f"the network cannot be rebuilt in a worker ({type(error).__name__}: {error}); its classes must be importable "
            "there: put them in a module, or take engine 'inline'."
        ) from error
    return Session(net, payload["keys"], payload["settings"], **payload["options"], keeps_unfinished=False)


class Shipped:
    """A session as workers get it.

    Args:
        session: whose pictures they draw.
        keys: the layers that will be read.
        network: the network as bytes, or the path of a file that holds them.
    """

    def __init__(self, session: Session, keys: Sequence[str], network: bytes | str) -> None:
        content = Path(network).read_bytes() if isinstance(network, str) else network
        options = {"device": str(session.network.device), "dtype": session.network.dtype}
        self._shared = {
            "key": hashlib.sha256(content + repr((session.settings, keys, options)).encode()).hexdigest(),
            "network": network,
            "keys": list(keys),
            "settings": session.settings,
            "options": options,
        }

    def payload(self, wanted: Sequence[Wanted], size: tuple[int, int]) -> dict[str, Any]:
        """What `draw` is called with for a batch."""
        return {**self._shared, "wanted": list(wanted), "size": size}


@contextmanager
def shipped(session: Session, keys: Sequence[str], engine: Engine) -> Iterator[Shipped]:
    """The session for an engine's workers, as long as they need it.

    Raises:
        RequestError: the network cannot be pickled.
    """
    buffer = io.BytesIO()
    net = session.net
    try:
        pickle.dump(replace(net, module=net.copy()), buffer)
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError) as error:
        raise RequestError(
            f"{net.name} cannot be sent to workers ({type(error).__name__}: {error}); take engine 'inline'."
        ) from error
    if not engine.shares_disk:
        yield Shipped(session, keys, buffer.getvalue())
        return
    with tempfile.TemporaryDirectory(prefix="convscope-") as folder:
        path = Path(folder, "network.pickle")
        path.write_bytes(buffer.getvalue())
        yield Shipped(session, keys, str(path))
