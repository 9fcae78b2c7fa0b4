"""The other side of `Processes`: a process that answers tasks until its input ends.

Tasks come in as pickles on the standard input, replies go out on what was the standard output; whatever the work itself
prints is sent to the standard error stream, which the driver keeps. When the driver is gone, killed or not, the input
ends and this process with it, in the middle of a task too: no work goes on that nobody waits for.
"""

from __future__ import annotations

import os
import pickle
import queue
import sys
import threading
from typing import Any, BinaryIO

from convscope.engines.base import Reply, call


def main() -> None:
    """Entry point of the worker process."""
    tasks_from = os.fdopen(os.dup(0), "rb")
    replies_to = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(tasks_from, inbox), daemon=True).start()
    _send(replies_to, "ready")
    while True:
        function, payload = inbox.get()
        reply = call(function, payload)
        try:
            _send(replies_to, reply)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            reason = f"the result cannot be sent to the driver ({type(error).__name__}: {error})"
            _send(replies_to, Reply("refused", None, reason, reply.seconds))
        except OSError:  # the driver left while the result was on its way
            os._exit(0)


def _listen(stream: BinaryIO, inbox: queue.SimpleQueue[tuple[str, Any]]) -> None:
    while True:
        try:
            inbox.put(pickle.load(stream))
        except (EOFError, OSError, pickle.UnpicklingError):  # at the end, or cut off within a task
            sys.stderr.flush()
            os._exit(0)


def _send(stream: BinaryIO, message: Any) -> None:
    data = pickle.dumps(message)  # whole before the first byte is written
    stream.write(data)
    stream.flush()


if __name__ == "__main__":
    main()
