"""Fine-tuning: what is trained and what stays, classes matched by name, the caller's network untouched."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

import convscope
from convscope import load, rewrite
from convscope.errors import BadInput, ModelError, RequestError, UnknownLayer
from convscope.models import InputSpec, Net
from convscope.rules import KernelSize, Pool
from convscope.studies.data import Data, dataset
from convscope.studies.finetune import finetune, finetuned
from convscope.studies.scoring import score


@pytest.fixture(scope="module")
def few() -> Data:
    return dataset("fashion", limit=100, test_limit=50)


def _small(outputs: int = 10, labels: tuple[str, ...] | None = None) -> Net:
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, outputs)
    )
    return Net(module.eval(), InputSpec((1, 28, 28)), labels, "small")


def test_it_is_public() -> None:
    assert inspect.unwrap(convscope.finetune) is inspect.unwrap(finetune)


def test_what_a_rewrite_lost_is_learned_back(few: Data) -> None:
    lost = rewrite(load("fashion"), Pool("average"), where="block1.*").net
    before = score(lost.copy(), few.validation, spec=lost.input)
    tuned, trained = finetuned(lost, few, epochs=1, batch=15, lr=0.003, test=True)
    assert trained.validation_accuracy is not None
    assert trained.validation_loss is not None
    assert trained.validation_loss < before.loss
    assert trained.test_accuracy is not None
    assert (tuned.labels, tuned.trained) == (lost.labels, True)
    assert tuned.source.endswith("fine-tuned on fashion")
    assert tuned.sha256 != lost.sha256


def test_the_callers_network_stays_and_so_do_flags(few: Data) -> None:
    net = _small()
    net.module[0].weight.requires_grad_(False)
    sha = net.sha256
    tuned = finetune(net, few, epochs=1, batch=30)
    assert net.sha256 == sha
    assert not torch.equal(tuned.module[0].weight, net.module[0].weight)
    assert [p.requires_grad for p in tuned.module.parameters()] == [
        p.requires_grad for p in net.module.parameters()
    ]


@pytest.mark.parametrize(
    ("layers", "moved"), [("4", {"4"}), (["0", "4"], {"0", "4"}), ("*", {"0", "1", "4"})]
)
def test_only_the_named_layers_move(few: Data, layers: Any, moved: set[str]) -> None:
    net = _small()
    tuned = finetune(net, few, layers, epochs=1, batch=30)
    before, after = net.module.state_dict(), tuned.module.state_dict()
    assert {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])} == moved


def test_a_source_is_read_at_the_networks_size_and_classes_go_by_name(tmp_path: Path) -> None:
    for place in range(24):
        path = tmp_path / ("sneaker", "ankle_boot")[place % 2] / f"{place}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30), (10 * place,) * 3).save(path)
    net = load("fashion")
    tuned, trained = finetuned(net, tmp_path, "head.fc2", epochs=20, batch=8, lr=0.003)
    assert tuned.labels == net.labels
    outputs = tuned.module(net.input.normalize(torch.full((1, 1, 28, 28), 0.5)))
    assert net.labels is not None
    assert net.labels[outputs.argmax()] in ("Sneaker", "Ankle boot")
    assert trained.steps == 20 * 2


def test_as_many_classes_of_other_names_take_over(few: Data) -> None:
    tuned = finetune(_small(labels=tuple("abcdefghij")), few, "4", epochs=1, batch=30)
    assert tuned.labels == few.classes
    assert finetune(_small(), few, "4", epochs=1, batch=30).labels == few.classes


def test_a_decoder_learns_values() -> None:
    net = rewrite(load("fashion-decoder"), KernelSize(5), where="encoder1.conv1").net
    data = dataset("fashion-denoise", limit=64, test_limit=8)
    _, trained = finetuned(net, data, "output", epochs=1, batch=16, lr=1e-4)
    assert trained.validation_accuracy is not None
    assert trained.validation_accuracy > 0.8


@pytest.mark.parametrize(
    ("net", "data", "settings", "error", "message"),
    [
        (
            _small(7),
            "few",
            {},
            RequestError,
            "class 'T-shirt/top' .* its 7 outputs are not as many as the 10 classes",
        ),
        (_small(), "few", {"layers": "fc"}, UnknownLayer, "fc"),
        (_small(), "few", {"layers": "3"}, RequestError, "no parameter of the network is trained"),
        (
            _small(),
            "few",
            {"lr": 1e9, "warmup": 0.0, "schedule": "constant"},
            ModelError,
            "diverged at step .*; lower lr",
        ),
        (_small(), "few", {"speed": 3}, RequestError, "settings .*'speed': 3.* cannot be made"),
        (_small(), "few", {"epochs": 0}, RequestError, "epochs=0 must be a positive number"),
        (
            Net(nn.Conv2d(3, 2, 1), InputSpec((3, 28, 28))),
            "few",
            {},
            BadInput,
            "has 1 channels, network takes 3",
        ),
        (nn.Conv2d(3, 2, 1), "few", {}, BadInput, "give input="),
        (Net(nn.Linear(3, 2), InputSpec((1, 28, 28))), "few", {}, ModelError, "network fails on its input"),
    ],
)
def test_requests_are_checked(
    few: Data, net: Any, data: str, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        finetune(net, few, **{"epochs": 1, "batch": 30, **settings})


def test_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"{k % 2} word{k}\n" for k in range(30)))
    with pytest.raises(BadInput, match=r"is text; a Net takes images"):
        finetune(_small(), dataset(tmp_path / "a.txt"))
