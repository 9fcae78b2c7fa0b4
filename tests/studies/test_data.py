"""Data sets: every source read, splits that do not meet, hashes, and hostile files refused."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from convscope.data.fashion import LABELS, fashion
from convscope.errors import BadInput, RequestError
from convscope.studies import sources, words
from convscope.studies.data import Data, dataset
from convscope.studies.pictures import Pictures
from convscope.studies.splitting import spread


def pixels(data: Data, split: str = "train") -> Tensor:
    part = getattr(data, split)
    return part.inputs.decode(torch.arange(len(part))) if isinstance(part.inputs, Pictures) else part.inputs


def rows(data: Data) -> dict[str, set[bytes]]:
    """The samples of each split, as bytes."""
    splits = {"train": data.train, "validation": data.validation, "test": data._test}
    return {name: {row.numpy().tobytes() for row in part.inputs} for name, part in splits.items()}


# ---------------------------------------------------------------- embedded


def test_fashion_trains_and_tests_on_the_embedded_splits() -> None:
    data = dataset("fashion")
    assert data.counts == {"train": 1800, "validation": 200, "test": 2000}
    assert (data.kind, data.classes, data.shape) == ("image", LABELS, (1, 28, 28))
    test, labels = fashion("test")
    assert torch.equal(data._test.batch(torch.arange(2000))[0], test)
    assert torch.equal(data._test.targets, labels)
    assert data.train.targets.bincount().tolist() == [180] * 10
    images = data.train.batch(torch.arange(1800))[0]
    assert data.input.normalize(images).mean().item() == pytest.approx(0, abs=1e-4)
    assert data.arguments == {"in_channels": 1, "classes": 10, "size": (28, 28)}


def test_dense_tasks_of_the_clothes() -> None:
    noise, parts = dataset("fashion-denoise", limit=20), dataset("fashion-segmentation", limit=20)
    inputs, targets = noise.train.batch(torch.arange(18))
    assert torch.equal(inputs, targets)  # the noise comes when it trains
    assert (noise.kind, noise.noise, len(noise.classes), noise.values) == ("dense", 0.25, 1, True)
    inputs, targets = parts.train.batch(torch.arange(18))
    assert targets.shape == (18, 28, 28)
    assert torch.equal(targets > 0, inputs[:, 0] >= 25 / 255)
    assert parts.classes == ("background", *LABELS)
    assert all(len(label.unique()) == 2 for label in targets)


def test_glosses_are_sorted_by_what_they_define() -> None:
    found = words.glosses()
    sentences, labels = found.parts["train"].inputs, found.parts["train"].targets
    assert 20_000 < len(sentences) == len(set(sentences))
    assert labels.bincount().min() > 300
    kinds = {text: found.classes[label] for text, label in zip(sentences, labels.tolist(), strict=True)}
    for start, kind in {  # the outermost of each kind
        "any unwanted and destructive insect or other animal that": "animal",
        "useless as food; in coastal streams from Maine": "animal",
        "a fabric woven from goat hair": "artifact",
        "a flashy suit of extreme cut": "artifact",
        "food that is simply prepared and gives a sense of": "food",
        "any habitation at a high altitude": "place",
        "a reference to yourself or myself": "person",
        "United States physicist who developed the laser": "person",
        "microscopic plants; bacteria are often considered": "plant or fungus",
        "the biblical tree in the Garden of Eden": "plant or fungus",
    }.items():
        assert [kind_ for text, kind_ in kinds.items() if text.startswith(start)] == [kind]
    outside = (
        "the act of encamping",
        "graded markings that indicate light",
        "(Greek mythology) a sorceress",
        "a windstorm",
    )
    assert not [text for text in sentences if text.startswith(outside)]


# ---------------------------------------------------------------- splits


@given(st.lists(st.integers(0, 3), min_size=8, max_size=120), st.integers(0, 5))
def test_every_first_part_has_the_classes_in_proportion(labels: list[int], seed: int) -> None:
    targets = torch.tensor(labels)
    order = spread(targets, seed)
    assert sorted(order.tolist()) == list(range(len(labels)))
    for count in range(1, len(labels) + 1):
        for label in set(labels):
            share = labels.count(label) * count / len(labels)
            assert abs((targets[order[:count]] == label).sum().item() - share) < 2.01


def test_splits_do_not_meet_and_a_seed_decides(tmp_path: Path) -> None:
    path = _npz(tmp_path, count=90)
    first, again, other = dataset(path, seed=1), dataset(path, seed=1), dataset(path, seed=2)
    assert first.hash == again.hash != other.hash
    assert first.counts == {"train": 65, "validation": 7, "test": 18}
    split = rows(first)
    assert len(set.union(*split.values())) == 90 == sum(map(len, split.values()))


def test_folds_cover_everything_once(tmp_path: Path) -> None:
    path = _npz(tmp_path, count=52)
    folds = [dataset(path, fold=(k, 4)) for k in range(4)]
    tested = [row for data in folds for row in rows(data)["test"]]
    assert len(tested) == len(set(tested)) == 52
    for data in folds:
        assert len(set.union(*rows(data).values())) == 52
        assert max(data._test.targets.bincount()) - min(data._test.targets.bincount()) <= 2


def test_limits_keep_proportions(tmp_path: Path) -> None:
    data = dataset(_npz(tmp_path, count=90), limit=30, test_limit=6, validation=0.2)
    assert data.counts == {"train": 24, "validation": 6, "test": 6}
    assert data.train.targets.bincount().tolist() == [8, 8, 8]


def test_the_hash_is_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, same = _npz(tmp_path / "a"), _npz(tmp_path / "b")
    assert dataset(first).hash == dataset(same).hash
    with np.load(same) as arrays:
        changed = dict(arrays)
    changed["x"][0, 0, 0] ^= 1
    np.savez(same, **changed)
    assert dataset(first).hash != dataset(same).hash


def test_a_data_set_says_what_it_is() -> None:
    data = dataset("fashion", limit=100, test_limit=10)
    about = data.to_dict()
    assert about["counts"] == {"train": 90, "validation": 10, "test": 10}
    assert about["sha256"] == data.hash
    with pytest.raises(RequestError, match="is no text; it has no words"):
        data.word_vectors(3)


# ---------------------------------------------------------------- arrays


def _npz(folder: Path, count: int = 30) -> Path:
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (count, 4, 5), dtype=np.uint8)
    np.savez(folder / "data.npz", x=x, y=np.arange(count) % 3)
    return folder / "data.npz"


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test", "y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
    ],
)
@pytest.mark.parametrize("layout", ["bytes", "last", "first", "floats"])
def test_npz_of_every_layout(tmp_path: Path, names: tuple[str, ...], layout: str) -> None:
    x = np.random.default_rng(0).integers(0, 256, (20, 3, 6, 7), dtype=np.uint8)
    given = {"bytes": x[:, 0], "last": x.transpose(0, 2, 3, 1), "first": x, "floats": x / 255.0}[layout]
    labels = np.arange(20) % 2
    np.savez(
        tmp_path / "d.npz", **dict(zip(names, (given, labels, given[:4], labels[:4, None]), strict=True))
    )
    data = dataset(tmp_path / "d.npz")
    assert data.counts == {"train": 18, "validation": 2, "test": 4}
    expected = x[:4, :1] if layout == "bytes" else x[:4]
    assert torch.equal(data._test.inputs, torch.from_numpy(expected))


def test_npz_of_dense_labels(tmp_path: Path) -> None:
    x = np.zeros((10, 4, 4), np.uint8)
    np.savez(tmp_path / "d.npz", x=x, y=np.full((10, 4, 4), 2))
    data = dataset(tmp_path / "d.npz")
    assert (data.kind, data.classes) == ("dense", ("0", "1", "2"))
    np.savez(tmp_path / "v.npz", x=x, y=np.zeros((10, 2, 4, 4), np.float32))
    data = dataset(tmp_path / "v.npz")
    assert (data.kind, data.classes, data.values) == ("dense", ("0", "1"), True)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.zeros(3)}, "holds arrays a; it must hold x_train and y_train, or x and y"),
        ({"x": np.zeros((4, 2, 2), np.uint8), "y": np.zeros(3, int)}, "has 4 images and 3 labels"),
        ({"x": np.zeros((0, 2, 2), np.uint8), "y": np.zeros(0, int)}, "has 0 images and 0 labels"),
        ({"x": np.zeros((4, 2), np.uint8), "y": np.zeros(4, int)}, r"images of shape \[4, 2\]"),
        ({"x": np.full((4, 2, 2), 2.0), "y": np.zeros(4, int)}, r"have values outside \[0, 1\]"),
        (
            {"x": np.zeros((4, 2, 2), np.int32), "y": np.zeros(4, int)},
            "are of type int32; they must be bytes",
        ),
        ({"x": np.zeros((4, 2, 2), np.uint8), "y": np.array([0, 1, -1, 0])}, "must be whole numbers from 0"),
        (
            {"x": np.zeros((4, 2, 2), np.uint8), "y": np.zeros((4, 3, 3), int)},
            "of different height and width",
        ),
        ({"x": np.array([None] * 4), "y": np.zeros(4, int)}, "is damaged or no plain NPZ file"),
    ],
)
def test_npz_is_checked(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(BadInput, match=message):
        dataset(tmp_path / "d.npz")


def test_an_npz_that_is_none_or_claims_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d.npz").write_bytes(b"PK\3\4 not really")
    with pytest.raises(BadInput, match="is damaged or no plain NPZ file"):
        dataset(tmp_path / "d.npz")
    path = _npz(tmp_path)
    monkeypatch.setattr(sources, "MOST_BYTES", 100)
    with pytest.raises(BadInput, match="claims .* bytes, over the limit of 100"):
        dataset(path)


def _idx(folder: Path, packed: bool) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    x = np.random.default_rng(0).integers(0, 256, (20, 4, 5), dtype=np.uint8)
    for split, count in (("train", 20), ("t10k", 6)):
        for what, array in (
            ("images-idx3", x[:count]),
            ("labels-idx1", (np.arange(count) % 2).astype(np.uint8)),
        ):
            raw = struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()
            path = folder / f"{split}-{what}-ubyte"
            if packed:
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(raw))
            else:
                path.write_bytes(raw)
    return x


@pytest.mark.parametrize(("below", "packed"), [(".", True), ("raw", False), ("FashionMNIST/raw", False)])
def test_idx_files_where_torchvision_puts_them(tmp_path: Path, below: str, packed: bool) -> None:
    x = _idx(tmp_path / below, packed)
    data = dataset(tmp_path)
    assert data.counts == {"train": 18, "validation": 2, "test": 6}
    assert torch.equal(data._test.inputs[:, 0], torch.from_numpy(x[:6]))


def test_idx_files_are_checked(tmp_path: Path) -> None:
    _idx(tmp_path, False)
    images = tmp_path / "train-images-idx3-ubyte"
    good = images.read_bytes()
    for raw, message in (
        (good[:-1], r"holds 399 values where \(20, 4, 5\) are announced"),
        (good + b"x", "holds 401 values"),
        (b"\0\0\x0d\3" + good[4:], "is no IDX file of bytes"),
        (good[:6], "is damaged"),
        (struct.pack(">I3I", 0x803, 2**31, 2**10, 2**10), "claims .* bytes, over the limit"),
    ):
        images.write_bytes(raw)
        with pytest.raises(BadInput, match=message):
            dataset(tmp_path)
    images.write_bytes(good)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(BadInput, match="has no file t10k-labels-idx"):
        dataset(tmp_path)


def _cifar(folder: Path, content: Any = None) -> np.ndarray:
    place = folder / "cifar-10-batches-py"
    place.mkdir()
    x = np.random.default_rng(0).integers(0, 256, (10, 3072), dtype=np.uint8)
    for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"):
        batch = {"data": x, "labels": [k % 3 for k in range(10)]} if content is None else content
        (place / name).write_bytes(pickle.dumps(batch, protocol=2))
    (place / "batches.meta").write_bytes(pickle.dumps({"label_names": ["cat", "dog", "ship"]}))
    return x


@pytest.mark.parametrize("inside", [True, False])
def test_cifar_as_torchvision_keeps_it(tmp_path: Path, inside: bool) -> None:
    x = _cifar(tmp_path)
    data = dataset(tmp_path / "cifar-10-batches-py" if inside else tmp_path)
    assert (data.classes, data.shape) == (("cat", "dog", "ship"), (3, 32, 32))
    assert data.counts == {"train": 45, "validation": 5, "test": 10}
    assert torch.equal(data._test.inputs, torch.from_numpy(x).view(10, 3, 32, 32))


def test_cifar_in_binary(tmp_path: Path) -> None:
    table = np.random.default_rng(0).integers(0, 256, (10, 3073), dtype=np.uint8)
    table[:, 0] = np.arange(10) % 2
    for name in (*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"):
        (tmp_path / name).write_bytes(table.tobytes())
    (tmp_path / "batches.meta.txt").write_text("cat\ndog\n")
    data = dataset(tmp_path)
    assert (data.classes, len(data.train)) == (("cat", "dog"), 45)
    assert torch.equal(data._test.inputs.flatten(1), torch.from_numpy(table[:, 1:]))
    (tmp_path / "test_batch.bin").write_bytes(b"12345")
    with pytest.raises(BadInput, match="'test_batch.bin' is no whole number of CIFAR-10 records"):
        dataset(tmp_path)


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def test_a_pickle_that_would_run_code_does_not(tmp_path: Path) -> None:
    _cifar(tmp_path, {"data": Hostile(tmp_path / "ran"), "labels": []})
    with pytest.raises(BadInput, match=r"'data_batch_1' is no plain CIFAR file \(it asks for posix.system\)"):
        dataset(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [{"data": [1, 2]}, [1], {"labels": [1]}])
def test_a_pickle_of_something_else_is_refused(tmp_path: Path, content: Any) -> None:
    _cifar(tmp_path, content)
    with pytest.raises(BadInput, match="'data_batch_1' is no CIFAR file"):
        dataset(tmp_path)


# ---------------------------------------------------------------- pictures


def _png(value: int, size: tuple[int, int] = (6, 5), mode: str = "RGB") -> bytes:
    content = io.BytesIO()
    image = Image.new("RGB", size, (value, 255 - value, 7)) if mode == "RGB" else Image.new("L", size, value)
    image.save(content, "PNG")
    return content.getvalue()


def _classes(folder: Path, count: int = 10, **how: Any) -> Path:
    for place in range(count):
        path = folder / ("cat", "dog")[place % 2] / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_png(10 * place, **how))
    return folder


def _packed(folder: Path, target: Path, top: str) -> Path:
    with tarfile.open(target, "w:gz" if target.suffix == ".tgz" else "w") as archive:
        archive.add(folder, top)
    return target


@pytest.mark.parametrize("packed", [None, "data.tar", "data.tgz"])
def test_class_folders_and_tars_of_them(tmp_path: Path, packed: str | None) -> None:
    folder = _classes(tmp_path / "set", 20)
    (folder / "cat" / "notes.txt").write_text("no image")
    data = dataset(_packed(folder, tmp_path / packed, "some/set") if packed else folder)
    assert (data.classes, data.shape) == (("cat", "dog"), (3, 5, 6))
    assert data.counts == {"train": 14, "validation": 2, "test": 4}
    images, labels = data.train.batch(torch.arange(14))
    value = (images[:, 0, 0, 0] * 255).round().long()  # tells which file it was
    assert torch.equal(value // 10 % 2, labels)
    assert torch.equal(images[:, 1, 2, 2], (255 - value) / 255)


def test_split_folders_in_two_tars_or_one_folder(tmp_path: Path) -> None:
    for split, count in (("train", 10), ("val", 4), ("test", 6)):
        _classes(tmp_path / "set" / split, count, mode="L")
    data = dataset(tmp_path / "set")
    assert data.counts == {"train": 10, "validation": 4, "test": 6}
    assert data.shape == (1, 5, 6)
    train, test = (
        _packed(tmp_path / "set" / split, tmp_path / f"{split}.tar", split) for split in ("train", "test")
    )
    data = dataset(train, test=test)
    assert data.counts == {"train": 9, "validation": 1, "test": 6}
    assert data.hash == dataset(train, test=test).hash != dataset(train, test=test, size=4).hash


def test_pictures_are_decoded_once_and_only_when_needed(tmp_path: Path) -> None:
    data = dataset(_classes(tmp_path / "set", 20))
    files = data.train.inputs
    assert isinstance(files, Pictures)
    first = files.decode(torch.tensor([3, 4]))
    for file in (*files.files, *data.validation.inputs.files):  # type: ignore[union-attr]
        file.content.unlink()  # type: ignore[union-attr]
    assert torch.equal(files.decode(torch.tensor([3, 4])), first)
    with pytest.raises(BadInput, match="does not exist; remove or replace it"):
        data.validation.batch(torch.tensor([0]))


def test_pictures_of_many_sizes_need_one(tmp_path: Path) -> None:
    folder = _classes(tmp_path / "set", 10)
    (folder / "cat" / "wide.png").write_bytes(_png(3, (9, 4)))
    with pytest.raises(RequestError, match="differ in size, 4x9 to 5x6; give size="):
        dataset(folder)
    data = dataset(folder, size=(4, 8), channels=1)
    assert data.shape == (1, 4, 8)
    assert pixels(data).shape[1:] == (1, 4, 8)


def test_picture_sources_are_checked(tmp_path: Path) -> None:
    folder = _classes(tmp_path / "set", 10)
    for path, raw, error, message in (
        (
            folder / "cat" / "bad.png",
            b"no picture",
            BadInput,
            r"image 'cat/bad.png' is no image of a known format",
        ),
        (folder / "loose.png", _png(1), RequestError, "image 'loose.png' .* lies in no class folder"),
    ):
        path.write_bytes(raw)
        with pytest.raises(error, match=message):
            dataset(folder)
        path.unlink()
    archive = _packed(folder, tmp_path / "set.tar", "set")
    archive.write_bytes(archive.read_bytes()[:700])
    with pytest.raises(BadInput, match=r"is a damaged tar|holds no image"):
        dataset(archive)
    _classes(tmp_path / "two" / "train", 4)
    _classes(tmp_path / "two" / "test", 4)
    (tmp_path / "two" / "test" / "bird").mkdir()
    (tmp_path / "two" / "test" / "bird" / "1.png").write_bytes(_png(1))
    with pytest.raises(RequestError, match="class 'bird' of the test split .* has no training images"):
        dataset(tmp_path / "two")


def test_a_tar_cannot_reach_outside_or_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from convscope.studies import pictures

    path = tmp_path / "bad.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("../../cat/1.png", "/etc/dog/2.png"):
            entry = tarfile.TarInfo(name)
            entry.size = len(_png(5))
            archive.addfile(entry, io.BytesIO(_png(5)))
        link = tarfile.TarInfo("cat/3.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RequestError):  # too few to split, and nothing written
        dataset(path)
    assert sorted(tmp_path.rglob("*")) == before
    monkeypatch.setattr(pictures, "MOST_KEPT", 10)
    with pytest.raises(RequestError, match="holds over 10 bytes of images; unpack it"):
        dataset(path)


# ---------------------------------------------------------------- text


def test_lines_of_label_and_sentence(tmp_path: Path) -> None:
    lines = [f"{k % 2 * 10} word{k} the end" for k in range(20)]
    (tmp_path / "a.txt").write_text("\n".join(lines) + "\n\n")
    (tmp_path / "b.tsv").write_bytes(
        "".join(f"{'ham' if k % 2 else 'spam'}\tcafé {k}\u0085 x\n" for k in range(20)).encode("latin-1")
    )
    data = dataset(tmp_path / "a.txt")
    assert (data.kind, data.classes, data.shape) == ("text", ("0", "10"), (3,))
    assert data.counts == {"train": 14, "validation": 2, "test": 4}
    assert set(data.words[:4]) == {"<padding>", "<unknown>", "the", "end"}
    assert dataset(tmp_path / "b.tsv").classes == ("ham", "spam")
    (tmp_path / "c.txt").write_text("\n".join(lines).replace("the", "The"))
    assert dataset(tmp_path / "c.txt").hash == data.hash != dataset(tmp_path / "c.txt", lower=False).hash


def test_the_vocabulary_is_of_the_training_sentences(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("".join(f"{k % 2} common train{k}\n" for k in range(20)))
    (tmp_path / "test.txt").write_text("1 common secret\n0 secret\n")
    data = dataset(tmp_path / "train.txt", test=tmp_path / "test.txt")
    assert "secret" not in data.words
    assert data._test.inputs.tolist() == [[2, 1], [1, 0]]
    assert data._test.targets.tolist() == [1, 0]
    few = dataset(tmp_path / "train.txt", most_words=3)
    assert few.words == ("<padding>", "<unknown>", "common")
    assert dataset(tmp_path / "train.txt", length=1).shape == (1,)
    assert data.arguments["vocabulary"] == len(data.words)
    assert data.arguments["vectors"](4).shape == (len(data.words), 4)
    with pytest.raises(RequestError, match="is text; it has no image"):
        _ = data.input


@pytest.mark.parametrize(
    ("raw", "error", "message"),
    [
        (b"\0\1\2", BadInput, "is no text; give lines of a label and a sentence"),
        (b"1 good\n0\n", BadInput, "line 2 .* has no sentence behind its label '0'"),
        (b"1 a\n1 b\n1 c\n", RequestError, "has 1 different labels in 3 lines"),
        (b"the cat\na dog\nno cow\nmy hen\n", RequestError, "has 4 different labels in 4 lines"),
        (b"", RequestError, "has 0 different labels in 0 lines"),
    ],
)
def test_text_is_checked(tmp_path: Path, raw: bytes, error: type[Exception], message: str) -> None:
    (tmp_path / "a.txt").write_bytes(raw)
    with pytest.raises(error, match=message):
        dataset(tmp_path / "a.txt")


def test_words_used_alike_lie_close() -> None:
    # two kinds of words, each with its own company; within a kind they are alike
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randint(2, (400, 1), generator=generator)
    sentences = 2 + 10 * kinds + torch.randint(10, (400, 8), generator=generator)
    found = words.vectors(sentences, 22, 4)
    unit = found[2:] / found[2:].norm(dim=1, keepdim=True)
    alike = unit @ unit.T
    assert found[0].abs().max() < 1e-6
    assert alike[:10, :10].mean() > 0.5 > 0.1 > alike[:10, 10:].abs().mean()
    assert found.std().item() == pytest.approx(0.25, rel=1e-4)


# ---------------------------------------------------------------- the request


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        ("fashon", {}, "data='fashon' does not exist; did you mean 'fashion'"),
        ("fashion", {"validation": 1.0}, "validation=1.0 must be a part"),
        ("fashion", {"fold": (3, 3)}, r"fold=\(3, 3\) must be \(k, n\)"),
        ("fashion", {"limit": 1}, "limit=1 must be at least 2"),
        ("fashion", {"test_limit": 0}, "test_limit=0 must be at least 1"),
        ("fashion", {"test": "glosses"}, "class 'animal' of test='glosses' is not among those to train on"),
    ],
)
def test_requests_are_checked(source: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        dataset(source, **arguments)


def test_other_files_are_refused_by_kind(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(RequestError, match="is of a kind that is not read; unpack it"):
        dataset(tmp_path / "a.zip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match="holds no image"):
        dataset(tmp_path / "empty")
