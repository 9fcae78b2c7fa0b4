"""The networks trained on Fashion-MNIST, the embedded images, and the script that makes both."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import struct
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from convscope import load, measure
from convscope.data import fashion
from convscope.data.fashion import FOLDER, LABELS, noisy
from convscope.data.fashion_nets import SPEC, classifier, decoder
from convscope.errors import RequestError, UnknownName
from convscope.models import Net

ROOT = Path(__file__).parents[1]


def _record(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def samples() -> tuple[Tensor, Tensor]:
    return fashion("test")


# ---------------------------------------------------------------- images


@pytest.mark.parametrize(
    ("split", "pixels"),
    [
        ("train", "f51c2e613f291f61"),
        ("test", "1ede3de81460b998"),
    ],
)
def test_images_are_balanced_and_the_ones_that_were_chosen(split: str, pixels: str) -> None:
    images, labels = fashion(split)
    assert images.shape == (2000, 1, 28, 28)
    assert images.dtype == torch.float32
    assert labels.tolist() == list(range(10)) * 200
    sheet = (images * 255).round().to(torch.uint8)
    assert torch.equal(sheet.float() / 255, images)
    assert hashlib.sha256(sheet.contiguous().numpy().tobytes()).hexdigest()[:16] == pixels


def test_a_tile_is_where_the_sheet_has_it() -> None:
    sheet = np.array(Image.open(FOLDER / "test.webp"))  # [40 * 28, 50 * 28, 3]
    images, _ = fashion()
    row, column = 3, 17
    tile = sheet[row * 28 : (row + 1) * 28, column * 28 : (column + 1) * 28, 0]
    assert np.array_equal(images[row * 50 + column, 0].numpy(), tile.astype(np.float32) / 255)


def test_images_of_a_call_are_the_callers_own() -> None:
    first, labels = fashion()
    first.zero_()
    labels.zero_()
    again, counted = fashion()
    assert again.max() == 1
    assert counted.max() == 9


def test_the_source_of_the_images_is_credited() -> None:
    about = json.loads((FOLDER / "samples.json").read_text("utf-8"))
    assert about["license"] == "MIT"
    assert about["url"] == "https://github.com/zalandoresearch/fashion-mnist"
    assert "Zalando" in about["attribution"]
    assert about["labels"] == list(LABELS)
    for split, total in (("train", 60_000), ("test", 10_000)):
        assert len(set(about["places"][split])) == 2000
        assert 0 <= min(about["places"][split]) <= max(about["places"][split]) < total
    text = (FOLDER / "LICENSE").read_text("utf-8")
    assert "Copyright © 2017 Zalando SE" in text
    assert "The above copyright notice and this permission notice shall be included" in text


def test_a_split_that_does_not_exist() -> None:
    with pytest.raises(UnknownName, match="split='tests' must be 'train' or 'test'; did you mean 'test'?"):
        fashion("tests")


def test_noise_is_the_same_for_the_same_seed_and_of_the_size_asked_for() -> None:
    grey = torch.full((50, 1, 28, 28), 0.5)
    assert torch.equal(noisy(grey, 0.1, seed=3), noisy(grey, 0.1, seed=3))
    assert not torch.equal(noisy(grey, 0.1, seed=3), noisy(grey, 0.1, seed=4))
    assert noisy(grey, 0.1).std().item() == pytest.approx(0.1, rel=0.02)
    assert noisy(grey.double(), 0.1).dtype == torch.float64
    loud = noisy(grey, 5.0)
    assert (loud.min(), loud.max()) == (0, 1)


# ---------------------------------------------------------------- networks


@torch.no_grad()
def _run(net: Net, images: Tensor) -> Tensor:
    module = net.copy().to(memory_format=torch.channels_last)  # more than twice as fast here
    return torch.cat([module(part) for part in net.input.normalize(images).split(100)])


def test_the_classifier_is_right_as_often_as_its_record_says(samples: tuple[Tensor, Tensor]) -> None:
    net, record = load("fashion"), _record("fashion")
    assert net.trained
    assert net.normalization_known
    assert net.warnings == ()
    assert (net.name, net.source, net.labels, net.input) == ("fashion", "fashion", LABELS, SPEC)
    assert net.parameters_count == record["parameters"] == 482_538
    assert measure(net).totals.macs == 37_478_784  # 37.5 million, says the docstring
    images, labels = samples
    right = _run(net, images).argmax(1) == labels  # [2000]
    assert right.double().mean().item() >= 0.93
    assert record["test"]["accuracy"] >= 0.935
    by_class = right.view(-1, 10).double().mean(0)  # [10]
    assert by_class.min() > 0.7  # shirts are hard to tell


def test_the_decoder_takes_the_noise_out_as_its_record_says(samples: tuple[Tensor, Tensor]) -> None:
    net, record = load("fashion-decoder"), _record("fashion-decoder")
    assert net.trained
    assert net.labels is None
    assert net.parameters_count == record["parameters"] == 69_921
    assert measure(net).totals.macs == 11_063_808
    clean = samples[0][:500]
    blurred = noisy(clean, seed=1)
    before, after = ((x - clean).square().mean().item() for x in (blurred, _run(net, blurred)))
    assert after < before / 4
    assert after == pytest.approx(record["test"]["mse"], rel=0.1)
    assert before == pytest.approx(record["test"]["mse_noisy"], rel=0.05)


def test_held_out_images_were_held_out_and_scored_alike() -> None:
    record = _record("fashion")
    assert record["data"]["trained_on"] + record["data"]["held_out"] == 60_000
    assert record["data"]["tested_on"] == 10_000
    assert abs(record["held_out"]["accuracy"] - record["test"]["accuracy"]) < 0.02  # 3 standard errors


@pytest.mark.parametrize(
    ("name", "most", "sha256"),
    [
        ("fashion", 1_000_000, "bca2c5ad86172b91"),
        ("fashion-decoder", 200_000, "05bc57d6393d8a93"),
    ],
)
def test_weights_are_small_and_the_ones_of_the_record(name: str, most: int, sha256: str) -> None:
    path = FOLDER / f"{name}.safetensors"
    assert path.stat().st_size < most
    assert hashlib.sha256(path.read_bytes()).hexdigest() == _record(name)["weights"]["sha256"]
    net = load(name)
    assert net.sha256.startswith(sha256)
    assert net.sha256 == load(f"embedded:{name}").sha256
    for key, value in net.module.state_dict().items():  # stored in half precision, run in single
        assert value.dtype == (torch.int64 if key.endswith("tracked") else torch.float32), key
        assert torch.equal(value.half().float(), value.float()) or key.endswith("tracked"), key
    assert {value.dtype for value in load_file(path).values()} == {torch.float16, torch.int64}


def test_upsampling_can_be_replaced_by_any_other() -> None:
    """Each upsampling takes as many channels and gives as many pixels as the max pool it mirrors, a convolution after."""
    net = load("fashion-decoder")
    shapes: dict[str, tuple[torch.Size, torch.Size]] = {}
    module = net.copy()
    for name, layer in module.named_modules():
        layer.register_forward_hook(
            lambda _, x, y, name=name: shapes.__setitem__(name, (x[0].shape, y.shape))
        )
    module(net.input.example())
    for number in (1, 2):
        pool, up = shapes[f"encoder{number}.pool"], shapes[f"decoder{number}.up"]
        assert pool == up[::-1]
        assert list(dict(module.named_children())[f"decoder{number}"].named_children())[1][0] == "conv1"
    assert module(net.input.with_size(36, 44).example()).shape == (1, 1, 36, 44)


def test_new_networks_are_new() -> None:
    for build in (classifier, decoder):
        first, second = (next(build().parameters()) for _ in range(2))
        assert not torch.equal(first, second)


def test_names_that_are_nearly_right(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=r"did you mean .*'fashion'"):
        load("fashoin")
    with pytest.raises(UnknownName, match=r"did you mean .*'fashion-decoder'"):
        load("fashion_decoder")
    with pytest.raises(UnknownName, match=r"embedded model 'fashon' does not exist .*did you mean 'fashion'"):
        load("embedded:fashon")
    with pytest.raises(RequestError, match=r"embedded model 'fashion' takes no options, and width was given"):
        load("fashion?width=3")


def test_a_folder_of_the_same_name_does_not_hide_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fashion").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load("fashion").name == "fashion"
    with pytest.raises(RequestError, match="is a folder"):
        load("./fashion")


# ---------------------------------------------------------------- the script


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_fashion", ROOT / "tools" / "train_fashion.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_fashion"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def idx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like that of the data set, of noise, with 60 training and 40 test images."""
    folder = tmp_path_factory.mktemp("idx")
    random = np.random.default_rng(0)
    for name, count in (("train", 60), ("t10k", 40)):
        images = random.integers(256, size=(count, 28, 28), dtype=np.uint8)
        raw = b"\0\0\x08\x03" + struct.pack(">3I", *images.shape) + images.tobytes()
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(raw))
        labels = np.arange(count, dtype=np.uint8) % 10
        raw = b"\0\0\x08\x01" + struct.pack(">I", count) + labels.tobytes()
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(raw)
    return folder


def test_the_data_set_is_read_and_cut(script: ModuleType, idx: Path, tmp_path: Path) -> None:
    data = script.read_data(idx, each=2)
    assert data.images.shape == (40, 28, 28)
    assert data.test[0].shape == (40, 28, 28)
    assert data.held_out[1].tolist() == list(range(10)) * 2
    assert set(data.places) == {"train", "test"}
    rows = [image.numpy().tobytes() for image in data.images]
    assert not set(rows) & {image.numpy().tobytes() for image in data.held_out[0]}
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"no idx")
    with pytest.raises(SystemExit, match="is no IDX file of bytes"):
        script.read_data(tmp_path)


@pytest.mark.parametrize("model", ["fashion", "fashion-decoder"])
def test_the_record_is_of_the_script_as_it_stands(script: ModuleType, model: str) -> None:
    record = _record(model)
    assert record["config"] == asdict(script.CONFIGS[model])
    assert [entry["epoch"] for entry in record["epochs"]] == list(range(1, record["config"]["epochs"] + 1))


@pytest.mark.parametrize("model", ["fashion", "fashion-decoder"])
def test_training_in_pieces_ends_in_the_same_bits(
    script: ModuleType, idx: Path, tmp_path: Path, model: str
) -> None:
    data = script.read_data(idx, each=2)
    config = replace(script.CONFIGS[model], epochs=2, batch=20, precision="float32")
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    whole.mkdir()
    pieces.mkdir()
    assert script.train(config, data, whole)
    assert not script.train(config, data, pieces, epochs_now=1)
    with pytest.raises(SystemExit, match="is of another configuration"):
        script.train(replace(config, rate=1.0), data, pieces)
    assert script.train(config, data, pieces, epochs_now=1)
    for name in (f"{model}.safetensors", f"{model}.json"):
        assert (whole / name).read_bytes() == (pieces / name).read_bytes()
    assert {path.name for path in pieces.iterdir()} == {f"{model}.safetensors", f"{model}.json"}
