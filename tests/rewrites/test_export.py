"""Exports run after they were written, and give what the network gives; those that do not are not written."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import io
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from convscope.errors import ModelError, RequestError
from convscope.rewrites.rewrite import Rewrite, rewrite


def made(module: nn.Module | None = None) -> Rewrite:
    torch.manual_seed(0)
    module = module or nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    return rewrite(module.eval(), "kernel_size:5", input="3x8x8")


class Session:
    """What is used of onnxruntime's, by ONNX's own reference evaluator."""

    off = 0.0

    def __init__(self, data: bytes, providers: Any = None) -> None:
        from onnx.reference import ReferenceEvaluator

        self._evaluator: Any = ReferenceEvaluator(onnx.load_model_from_string(data))

    def get_inputs(self) -> list[Any]:
        return [types.SimpleNamespace(name=name) for name in self._evaluator.input_names]

    def run(self, names: Any, feeds: dict[str, np.ndarray[Any, Any]]) -> list[Any]:
        return [y + self.off for y in self._evaluator.run(names, feeds)]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime where it is not installed."""
    module = types.ModuleType("onnxruntime")
    module.__spec__ = importlib.machinery.ModuleSpec("onnxruntime", None)  # torch looks for it
    module.__version__ = "stand-in"  # type: ignore[attr-defined]
    module.InferenceSession = Session  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "onnxruntime", module)


@pytest.mark.usefixtures("stand_in")
def test_onnx_is_written_and_verified(tmp_path: Path) -> None:
    rewritten = made()
    folder = rewritten.save(tmp_path / "out", onnx=True)
    told = json.loads((folder / "recipe.json").read_text())["exports"]["model.onnx"]
    assert told["by"] == "onnxruntime stand-in"
    assert told["batch"] == "any"
    assert told["error"] < 1e-5
    x = rewritten.net.input.example(5)
    (found,) = Session((folder / "model.onnx").read_bytes()).run(None, {"input": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), rewritten.net.module(x), atol=1e-5, rtol=1e-4)


def test_onnx_runs_in_onnxruntime(tmp_path: Path) -> None:
    if importlib.util.find_spec("onnxruntime") is None:
        pytest.skip("onnxruntime is not installed")
    folder = made().save(tmp_path, onnx=True)
    assert json.loads((folder / "recipe.json").read_text())["exports"]["model.onnx"]["error"] < 1e-4


@pytest.mark.usefixtures("stand_in")
def test_an_export_that_gives_something_else_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "off", 0.1)
    with pytest.raises(
        ModelError, match="cannot be exported to ONNX .its outputs differ by .* nothing was written"
    ):
        made().save(tmp_path / "out", onnx=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
@pytest.mark.usefixtures("stand_in")
def test_a_missing_extra_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(RequestError, match=f"needs the package {missing}; .*convscope.onnx"):
        made().save(tmp_path, onnx=True)


def test_pt2_is_written_and_verified(tmp_path: Path) -> None:
    rewritten = made()
    folder = rewritten.save(tmp_path, pt2=True)
    told = json.loads((folder / "recipe.json").read_text())["exports"]["model.pt2"]
    assert (told["batch"], told["error"]) == ("any", 0.0)
    program = torch.export.load(io.BytesIO((folder / "model.pt2").read_bytes())).module()
    x = rewritten.net.input.example(4)
    assert torch.equal(program(x), rewritten.net.module(x))


class Choosy(nn.Module):
    """Goes one way or another by the values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv(x)
        return y if float(y.sum()) > 0 else -y


def test_what_cannot_be_exported_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot be exported to torch\.export"):
        made(Choosy()).save(tmp_path / "out", pt2=True)
    assert not (tmp_path / "out").exists()
