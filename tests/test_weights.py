"""Weights files: honest ones load, hostile, cut and mislabelled ones end in one sentence and run nothing."""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from convscope import _weights
from convscope.errors import ConvscopeError, RequestError, UntrustedFile, WeightsMismatch
from convscope.models import load


class Network(nn.Module):
    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.fc = nn.Conv2d(8, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.bn(self.conv(x)))


class Payload:
    """A pickle that leaves a file behind when it is run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return dict(Network().state_dict())


def _loaded(path: Path, **options: Any) -> dict[str, torch.Tensor]:
    return load(Network(), input="8", weights=path, **options).module.state_dict()


# ---------------------------------------------------------------- honest files


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_state_dicts_load_into_a_copy(form: str, tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    module = Network()
    before = module.conv.weight.clone()
    net = load(module, input="8", weights=path)
    assert net.trained
    assert net.source == f"module with weights {path.name}"
    assert net.module is not module
    assert torch.equal(module.conv.weight, before)
    for name, value in net.module.state_dict().items():
        assert torch.equal(value, state[name])


@pytest.mark.parametrize("key", ["state_dict", "model", "whatever"])
def test_wrappers_and_prefixes_are_seen_through_and_said(
    key: str, tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    prefixed = {f"module._orig_mod.{name}": value for name, value in state.items()}
    torch.save({"epoch": 3, key: prefixed, "optimizer": {"state": {}, "lr": 0.1}}, tmp_path / "w.pt")
    net = load(Network(), input="8", weights=tmp_path / "w.pt")
    assert torch.equal(net.module.state_dict()["fc.bias"], state["fc.bias"])
    assert net.warnings == (
        f"weights taken from key {key!r} of the file",
        "prefix 'module.' was dropped from the names of the weights",
        "prefix '_orig_mod.' was dropped from the names of the weights",
    )


def test_extra_entries_are_left_out_and_said(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save({**state, "epoch": 3, "note": "x"}, tmp_path / "w.pt")
    net = load(Network(), input="8", weights=tmp_path / "w.pt")
    assert net.warnings == ("entries that are no tensors were left out: epoch, note",)


def test_two_state_dicts_are_ambiguous(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save({"model": state, "model_ema": state}, tmp_path / "w.pt")
    with pytest.raises(
        RequestError, match=r"several state dicts \('model', 'model_ema'\); save the one you want"
    ):
        _loaded(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([torch.ones(2)], "holds list, not a state dict"),
        ({"lr": 0.1, "epoch": 3}, "holds no state dict of named tensors; its keys are 'lr', 'epoch'"),
        ({}, "its keys are none"),
    ],
)
def test_files_without_a_state_dict(value: Any, message: str, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "w.pt")
    with pytest.raises(RequestError, match=message):
        _loaded(tmp_path / "w.pt")


def test_safetensors_metadata_gives_the_normalization(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    save_file(
        state, tmp_path / "w.safetensors", metadata={"mean": "[0.5, 0.4, 0.3]", "std": "[0.1, 0.1, 0.1]"}
    )
    net = load(Network(), input="8", weights=tmp_path / "w.safetensors")
    assert net.input.mean == (0.5, 0.4, 0.3)
    assert net.normalization_known
    save_file(state, tmp_path / "w.safetensors", metadata={"mean": "[0.5, 0.4]", "std": "hello"})
    assert load(Network(), input="8", weights=tmp_path / "w.safetensors").input.mean is None


# ---------------------------------------------------------------- files that do not fit


def test_a_mismatch_lists_the_first_keys_of_each_kind(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    del state["bn.bias"], state["conv.bias"]
    state["head.weight"] = torch.zeros(1)
    state["fc.weight"] = torch.zeros(10, 8, 1, 1)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(WeightsMismatch) as caught:
        _loaded(tmp_path / "w.pt")
    assert str(caught.value) == (
        f"weights {str(tmp_path / 'w.pt')!r} do not fit Network: 2 missing (conv.bias, bn.bias); "
        "1 unexpected (head.weight); "
        "1 of another shape (fc.weight (10x8x1x1 in the file, 4x8x1x1 in the network)); "
        "give the weights of this architecture"
    )


def test_another_number_of_classes_is_told_how_to_build(tmp_path: Path) -> None:
    torch.save(Network(10).state_dict(), tmp_path / "w.pt")
    with pytest.raises(WeightsMismatch, match=r"2 of another shape .* 'timm:NAME\?num_classes=10'"):
        _loaded(tmp_path / "w.pt")


# ---------------------------------------------------------------- hostile files


def _legacy(value: Any, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


WRITERS: dict[str, Callable[[Any, Path], None]] = {
    "zip": lambda value, path: torch.save(value, path),
    "legacy": _legacy,
    "plain pickle": lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2)) and None,
    "new pickle": lambda value, path: path.write_bytes(pickle.dumps(value, protocol=5)) and None,
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w.safetensors", "w"])
@pytest.mark.parametrize("inside", ["bare", "state dict"])
def test_a_pickled_payload_never_runs(writer: str, name: str, inside: str, tmp_path: Path) -> None:
    mark = tmp_path / "payload-ran"
    payload = Payload(mark)
    WRITERS[writer](payload if inside == "bare" else {"conv.weight": payload}, tmp_path / name)
    for attempt in (
        lambda: load(Network(), input="8", weights=tmp_path / name),
        lambda: (
            load(tmp_path / "w.pt", input="8") if name == "w.pt" else load(str(tmp_path / name), input="8")
        ),
        lambda: _weights.read(str(tmp_path / name)),
    ):
        with pytest.raises(RequestError) as caught:
            attempt()
        message = str(caught.value)
        assert "\n" not in message
        assert name in message
        assert "--trust" in message or "is named .safetensors but is" in message
    assert not mark.exists()


def test_trust_runs_what_it_says(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    torch.save({"x": Payload(mark)}, tmp_path / "w.pt")
    with pytest.raises(RequestError, match="holds no state dict"):
        _loaded(tmp_path / "w.pt", trust=True)
    assert mark.exists()


def test_a_mislabelled_pickle_is_refused_even_with_trust(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    torch.save(Payload(mark), tmp_path / "w.safetensors")
    with pytest.raises(RequestError, match=r"named .safetensors but is a PyTorch checkpoint"):
        _loaded(tmp_path / "w.safetensors", trust=True)
    assert not mark.exists()


def test_safetensors_named_pt_is_refused(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    save_file(state, tmp_path / "w.pt")
    with pytest.raises(RequestError, match=r"is a safetensors file; name it .safetensors"):
        _loaded(tmp_path / "w.pt")


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_a_file_cut_anywhere_ends_in_one_sentence(
    form: str, tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    whole = path.read_bytes()
    for cut in {0, 1, 5, 8, 9, 20, 64, 100, *range(200, len(whole), 97), len(whole) - 1}:
        path.write_bytes(whole[:cut])
        with pytest.raises(ConvscopeError) as caught:
            _loaded(path)
        assert "\n" not in str(caught.value)


def test_a_file_with_any_byte_changed_loads_or_ends_in_one_sentence(
    tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    path = tmp_path / "w.pt"
    torch.save(state, path)
    whole = path.read_bytes()
    for position in range(0, len(whole), max(1, len(whole) // 150)):
        changed = bytearray(whole)
        changed[position] ^= 0xFF
        path.write_bytes(bytes(changed))
        try:
            _weights.read(str(path))
        except RequestError as error:
            assert "\n" not in str(error)  # noqa: PT017  (success is fine too)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; give a .safetensors"),
        (b"<!DOCTYPE html><html>", "is a web page, probably a download that failed"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a git-lfs pointer"),
        (b"\x89HDF\r\n\x1a\n" + b"0" * 99, "is an HDF5"),
        (b"\x1f\x8b" + b"0" * 99, "is a gzip file"),
        (b"\x93NUMPY" + b"0" * 99, "is a numpy array file"),
        (b"hello there", "is of no type convscope knows"),
        (b"cos\nsystem\n(S'true'\ntR.", "is of no type convscope knows"),
        (struct.pack("<Q", 1 << 60) + b"{" + b" " * 99, "is of no type convscope knows"),
        (struct.pack("<Q", 90) + b"{" + b"x" * 99, "is truncated or damaged"),
        (b"PK\x03\x04" + b"0" * 99, r"is truncated or damaged \(its zip directory is missing\)"),
    ],
)
def test_other_files(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "w"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=message):
        _loaded(path)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"file 'nope.pt' does not exist"):
        _loaded(Path("nope.pt"))
    with pytest.raises(RequestError, match="is a folder; give the weights file in it"):
        _loaded(tmp_path)


# ---------------------------------------------------------------- whole saved modules


@pytest.fixture
def conv() -> nn.Conv2d:
    return nn.Conv2d(1, 2, 3)


def _save_whole(form: str, module: nn.Conv2d, folder: Path) -> Path:
    path = folder / ("m.pt2" if form == "exported" else "m.pt")
    if form == "pickled":
        torch.save(module, path)
    elif form == "wrapped":
        torch.save({"epoch": 1, "model": module}, path)
    elif form == "torchscript":
        with pytest.warns(DeprecationWarning, match="torch.jit"):
            torch.jit.save(torch.jit.trace(module, torch.zeros(1, 1, 8, 8)), path)
    else:
        torch.export.save(torch.export.export(module.eval(), (torch.zeros(1, 1, 8, 8),)), path)
    return path


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("form", ["pickled", "wrapped", "torchscript", "exported"])
def test_whole_modules_need_trust(form: str, conv: nn.Conv2d, tmp_path: Path) -> None:
    path = _save_whole(form, conv, tmp_path)
    with pytest.raises(UntrustedFile, match=r"runs code when loaded; .* pass trust=True / --trust"):
        load(path, input="1x8x8")
    net = load(path, input="1x8x8", trust=True)
    assert net.trained is None
    assert net.name == "m"
    x = torch.rand(1, 1, 8, 8)
    torch.testing.assert_close(net.copy()(x), conv(x).detach())


def test_the_weights_of_a_whole_module_with_trust(conv: nn.Conv2d, tmp_path: Path) -> None:
    torch.save(conv, tmp_path / "m.pt")
    net = load(nn.Conv2d(1, 2, 3), input="1x8x8", weights=tmp_path / "m.pt", trust=True)
    assert torch.equal(net.module.weight, conv.weight)  # type: ignore[arg-type]
    assert net.warnings == ("the state dict of a whole saved module was taken",)


def test_weights_given_as_source_say_how(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        with pytest.raises(
            RequestError, match=r"holds weights, not a network; .*load\('timm:resnet18', weights="
        ):
            load(tmp_path / name)
