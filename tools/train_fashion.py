"""Makes src/convscope/data/fashion_mnist: two trained networks, their records, and the embedded images.

    apt-get install dataset-fashion-mnist      # or the four IDX files from anywhere, gzipped or not
    python tools/train_fashion.py --data /usr/share/datasets/fashion-mnist --out fashion

2,000 training images, 200 of each class, are held out; they are watched after every epoch, and embedded. The 10,000
test images are looked at once, in the end, with the weights as they are stored (rounded to half precision).

The state is saved after every epoch and the same command goes on from there. All random choices of an epoch come from
(seed, epoch), so that a run in pieces (--epochs-now) ends in the same bits as a run in one, on one machine with one
number of threads.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import math
import platform
import struct
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from convscope.data.fashion import LABELS, SIDE, noisy
from convscope.data.fashion_nets import SPEC, classifier, decoder
from convscope.errors import StoreMismatch
from convscope.studies import training as studies
from convscope.studies.data import Data as Labelled
from convscope.studies.data import Split

EACH = 200  # images of each class held out, and as many embedded of the test set
COLUMNS = 50  # of a sheet of images
FILES = {"train": "train-{}", "test": "t10k-{}"}


@dataclass(frozen=True)
class Config:
    """All that a training depends on, but for the data and the machine."""

    model: str
    epochs: int
    optimizer: str  # of torch.optim
    rate: float  # the highest learning rate
    decay: float  # of the weights of convolutions and linear layers
    batch: int = 256
    warmup: float = 0.2  # part of the steps in which the rate rises from 0, before it falls to 0 as a cosine
    flip: bool = True  # each image with probability 1/2
    shift: int = 2  # px, in every direction at most
    smoothing: float = 0.1  # of labels
    noise: float = 0.25  # standard deviation, for the decoder
    precision: str = "bfloat16"  # of forward and backward pass; weights and optimizer are float32
    seed: int = 0


CONFIGS = {
    "fashion": Config("fashion", epochs=20, optimizer="SGD", rate=0.15, decay=5e-4),
    "fashion-decoder": Config("fashion-decoder", epochs=8, optimizer="AdamW", rate=4e-3, decay=1e-2, shift=0),
}
BUILD = {"fashion": classifier, "fashion-decoder": decoder}


# ---------------------------------------------------------------- data


@dataclass(frozen=True)
class Data:
    """Images [n, 28, 28] of bytes with labels [n]: to train on, held out of the training set, and to test on."""

    images: Tensor
    labels: Tensor
    held_out: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    places: dict[str, list[int]]  # of the embedded images in the whole set, by split
    sha256: dict[str, str]  # of the uncompressed files


def read_data(folder: Path, seed: int = 0, each: int = EACH) -> Data:
    """The data set of a folder of IDX files, cut as the seed says."""
    hashes: dict[str, str] = {}
    sets, places = {}, {}
    for split, name in FILES.items():
        images = read_idx(folder / name.format("images-idx3-ubyte"), hashes)
        labels = read_idx(folder / name.format("labels-idx1-ubyte"), hashes).long()
        sets[split] = images, labels
        places[split] = balanced(labels, each, seed)
    images, labels = sets["train"]
    kept = torch.ones(len(labels), dtype=torch.bool)
    kept[places["train"]] = False
    held_out = images[places["train"]], labels[places["train"]]
    listed = {split: chosen.tolist() for split, chosen in places.items()}
    return Data(images[kept], labels[kept], held_out, sets["test"], listed, hashes)


def read_idx(path: Path, hashes: dict[str, str]) -> Tensor:
    """The bytes of an IDX file, plain or gzipped, in their shape; their hash is noted."""
    packed = path.with_name(path.name + ".gz")
    raw = gzip.decompress(packed.read_bytes()) if packed.exists() else path.read_bytes()
    hashes[path.name] = hashlib.sha256(raw).hexdigest()
    if raw[:3] != b"\0\0\x08":
        raise SystemExit(f"{path} is no IDX file of bytes")
    shape = struct.unpack(f">{raw[3]}I", raw[4 : 4 + 4 * raw[3]])
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape).copy())


def balanced(labels: Tensor, each: int, seed: int) -> Tensor:
    """Places of as many images of each class, chosen by the seed, the classes taking turns."""
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in range(len(LABELS)):
        places = (labels == label).nonzero()[:, 0]
        chosen.append(places[torch.randperm(len(places), generator=generator)[:each]])
    return torch.stack(chosen, 1).flatten()  # [each * class]


def write_samples(data: Data, out: Path) -> None:
    """One lossless sheet of images a split, and a file that says what they are."""
    test = data.test[0][data.places["test"]]
    for split, images in (("train", data.held_out[0]), ("test", test)):
        rows = len(images) // COLUMNS
        sheet = images.view(rows, COLUMNS, SIDE, SIDE).transpose(1, 2).reshape(rows * SIDE, COLUMNS * SIDE)
        picture = Image.fromarray(sheet.numpy()).convert("RGB")
        picture.save(out / f"{split}.webp", lossless=True, quality=100, method=6)
    about = {
        "title": "Fashion-MNIST, 200 images of each class of either split",
        "attribution": "Copyright 2017 Zalando SE; Han Xiao, Kashif Rasul, Roland Vollgraf",
        "license": "MIT",
        "url": "https://github.com/zalandoresearch/fashion-mnist",
        "labels": list(LABELS),
        "order": "row by row, the classes taking turns",
        "places": data.places,
    }
    write_json(out / "samples.json", about)


def as_images(pixels: Tensor) -> Tensor:
    """Bytes [n, 28, 28] as images [n, 1, 28, 28] in [0, 1]."""
    return pixels[:, None].float() / 255


# ---------------------------------------------------------------- training


class Enough(Exception):
    """As many epochs as were asked for now are done."""


def train(config: Config, data: Data, out: Path, epochs_now: int | None = None) -> bool:
    """Goes on from the saved state for so many epochs, or to the end; returns whether the end is reached."""
    saved = out / f"{config.model}.state.pt"
    torch.manual_seed(config.seed)
    module = BUILD[config.model]()
    began = 0

    def told(event: dict[str, Any]) -> None:
        nonlocal began
        if "validation_loss" not in event:
            return
        began = began or int(event["epoch"])
        say(config, event)
        done = int(event["epoch"]) - began + 1
        if epochs_now is not None and done >= epochs_now and event["step"] < event["steps"]:
            raise Enough

    try:
        trained = studies.train(
            module,
            labelled(config, data),
            settings(config),
            seed=config.seed,
            checkpoint=saved,
            every=0,
            progress=told,
            spec=SPEC,
            test=False,
        )
    except Enough:
        return False
    except StoreMismatch as error:
        raise SystemExit(f"{saved} is of another configuration; delete it to start anew") from error
    finish(config, data, trained.module, [dict(point) for point in trained.curves], out)
    saved.unlink(missing_ok=True)
    return True


def settings(config: Config) -> studies.Training:
    """The configuration as the one training loop takes it."""
    kinds = (("flip", config.flip), ("crop", config.shift > 0))
    return studies.Training(
        epochs=config.epochs,
        batch=config.batch,
        optimizer=config.optimizer.lower(),
        lr=config.rate,
        weight_decay=config.decay,
        schedule="cosine",
        warmup=config.warmup,
        augmentation=tuple(kind for kind, wanted in kinds if wanted),
        shift=config.shift,
        label_smoothing=config.smoothing if config.model == "fashion" else 0.0,
        precision=config.precision,
    )


def labelled(config: Config, data: Data) -> Labelled:
    """The images with what is to be told of them: classes, or themselves without the noise."""
    splits = []
    for pixels, labels in ((data.images, data.labels), data.held_out, data.test):
        targets = labels if config.model == "fashion" else as_images(pixels)
        splits.append(Split(pixels[:, None], targets))
    kind, classes, noise = (
        ("image", LABELS, 0.0) if config.model == "fashion" else ("dense", ("0",), config.noise)
    )
    train, held_out, test = splits
    return Labelled(
        "Fashion-MNIST",
        kind,
        classes,
        SPEC.shape,
        train,
        held_out,
        SPEC.mean,
        SPEC.std,
        noise=noise,
        _test=test,
    )


@torch.no_grad()
def score(config: Config, module: nn.Module, pixels: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, or the mean squared error of noisy images before and after, in float32."""
    module.eval()
    images = as_images(pixels)
    inputs = images if config.model == "fashion" else noisy(images, config.noise)
    outputs = torch.cat([module(part) for part in SPEC.normalize(inputs).split(500)])
    if config.model == "fashion":
        return {"accuracy": (outputs.argmax(1) == labels).double().mean().item()}
    errors = {"mse_noisy": inputs, "mse": outputs}
    return {name: (x.double() - images.double()).square().mean().item() for name, x in errors.items()}


# ---------------------------------------------------------------- results


def finish(config: Config, data: Data, module: nn.Module, history: list[dict[str, float]], out: Path) -> None:
    """Rounds the weights to what is stored, tests them, and writes them with their record."""
    stored = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in module.state_dict().items()
    }
    module.load_state_dict(stored)
    path = out / f"{config.model}.safetensors"
    # one entry: safetensors writes several in an order that changes from run to run
    about = "trained on Fashion-MNIST, copyright 2017 Zalando SE, MIT, by tools/train_fashion.py"
    save_file(stored, path, metadata={"about": about})
    path.chmod(0o644)  # safetensors keeps it to the owner
    test = score(config, module, *data.test)
    if "mse" in test:
        test["psnr_noisy"], test["psnr"] = (-10 * math.log10(test[name]) for name in ("mse_noisy", "mse"))
    record = {
        "config": asdict(config),
        "data": {
            "name": "Fashion-MNIST",
            "sha256": data.sha256,
            "trained_on": len(data.labels),
            "held_out": len(data.held_out[1]),
            "tested_on": len(data.test[1]),
        },
        "versions": versions(),
        "epochs": history,
        "held_out": score(config, module, *data.held_out),
        "test": test,
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "weights": {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()},
    }
    write_json(out / f"{config.model}.json", record)
    print(json.dumps({"model": config.model, "test": test, "bytes": path.stat().st_size}))


def versions() -> dict[str, Any]:
    """What ran the training."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def write_json(path: Path, values: dict[str, Any]) -> None:
    """A line a value, and a line an epoch."""
    lines = []
    for key, value in values.items():
        text = json.dumps(value)
        if key == "epochs":
            text = "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]"
        lines.append(f" {json.dumps(key)}: {text}")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def say(config: Config, event: dict[str, Any]) -> None:
    """One line of progress."""
    names = ("epoch", "train_loss", "validation_loss", "validation_accuracy")
    figures = "  ".join(f"{name} {event[name]:.5g}" for name in names)
    print(f"{config.model}  {figures}  {event['seconds']:.0f} s", file=sys.stderr, flush=True)


def main() -> None:
    """Reads the command line, writes the samples and trains what is not finished."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the four IDX files")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--model", choices=CONFIGS, action="append", help="train this one only")
    parser.add_argument("--epochs-now", type=int, help="stop after so many epochs; the same command goes on")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    data = read_data(options.data)
    if not (options.out / "samples.json").exists():
        write_samples(data, options.out)
    for model in options.model or CONFIGS:
        if (options.out / f"{model}.json").exists():
            print(f"{model} is finished; delete its record to train it anew", file=sys.stderr)
        elif not train(CONFIGS[model], data, options.out, options.epochs_now):
            return


if __name__ == "__main__":
    main()
