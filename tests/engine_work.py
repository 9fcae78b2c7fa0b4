"""Work for engines to do in tests: importable by name in a worker, and without torch, so that workers start quickly."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any


def act(payload: Any) -> Any:
    """Does what it is told: returns, raises, dies, counts its calls in a file, waits."""
    kind, value = payload
    match kind:
        case "return":
            return value
        case "raise":
            raise ValueError(value)
        case "refuse":
            from convscope.errors import RequestError

            raise RequestError(value)
        case "exit":
            print("last words")
            os._exit(value)
        case "kill":
            os.kill(os.getpid(), value)
        case "lambda":
            return lambda: None
        case "fail once":
            place = Path(value)
            place.write_text(place.read_text() + "x" if place.exists() else "x")
            if place.read_text() == "x":
                os._exit(1)
            return place.read_text()
        case "wait":
            Path(value, str(os.getpid())).touch()
            time.sleep(60)
    raise AssertionError(kind)


def toy_run(payload: dict[str, Any]) -> dict[str, Any]:
    """In place of a training: scores that follow from the configuration alone. Tells where it runs, and waits where asked to."""
    config = payload["config"]
    if (folder := os.environ.get("TOY_FOLDER")) is not None:
        place = Path(folder, "workers")
        place.mkdir(exist_ok=True)
        (place / str(os.getpid())).touch()
        with Path(folder, "calls").open("a") as calls:
            calls.write(f"{config['arguments']} {config['seed']}\n")
        time.sleep(float(os.environ.get("TOY_SECONDS", "0")))
    if config["arguments"].get("kernel_size") == 11:
        raise ValueError("no luck with 11")
    text = repr((sorted(config["arguments"].items()), config["seed"]))
    chance = int(hashlib.sha256(text.encode()).hexdigest()[:6], 16) / 2**24
    accuracy = 0.7 + 0.02 * config["arguments"].get("kernel_size", 3) + 0.01 * chance
    result = {
        "scores": {"train": accuracy + 0.05, "validation": accuracy, "test": accuracy - 0.01},
        "diverged": False,
        "epoch": 2,
        "steps": 8,
        "macs": 1000,
        "precision": "float32",
        "curves": {"train_loss": [1.0, 0.5], "validation_accuracy": [accuracy / 2, accuracy]},
    }
    return {"result": result, "times": {"training": chance}}
