"""One photograph in a network: evidence by hand, kernels, maps, and any kind of network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from convscope.errors import BadInput, RequestError, UnknownLayer, UnknownName, UntrainedWeights
from convscope.features.look import Look, heat, kernel_sheet, look, overlay
from convscope.models import Net


def forward(net: Net, image: Tensor, layer: str) -> Tensor:
    private = net.copy()
    kept: list[Tensor] = []
    handle = private.get_submodule(layer).register_forward_hook(lambda *a: kept.append(a[2].clone()))
    with torch.no_grad():
        private(net.input.normalize(image[None]))
    handle.remove()
    return kept[0][0]


def picture_of(number: int) -> Tensor:
    from tiny import pictures

    return pictures(8, seed=11)[0][number]


@pytest.fixture(scope="module")
def seen(tiny: Net) -> Look:
    return look(tiny, picture_of(0), pictures_of=False)


def test_classes_are_those_of_the_network(tiny: Net, seen: Look) -> None:
    probabilities = forward(tiny, picture_of(0), "fc").softmax(0)
    order = probabilities.argsort(descending=True)[:5].tolist()
    assert [index for index, _, _ in seen.top] == order
    assert tiny.labels is not None
    assert [label for _, label, _ in seen.top] == [tiny.labels[k] for k in order]
    assert [p for _, _, p in seen.top] == pytest.approx(probabilities[order].tolist(), abs=1e-5)


def test_evidence_is_complete(tiny: Net, seen: Look) -> None:
    """Behind an average and a linear layer the evidence, unclipped, adds up to the logit less the bias."""
    features = forward(tiny, picture_of(0), "relu3")  # [32, 8, 8]
    head = tiny.module.get_submodule("fc")
    best = seen.top[0][0]
    share = (head.weight[best].detach().view(-1, 1, 1) * features).sum(0) / 64  # type: ignore[index,operator,union-attr]
    logit = forward(tiny, picture_of(0), "fc")[best] - head.bias[best].detach()  # type: ignore[index,union-attr,operator]
    assert float(share.sum()) == pytest.approx(float(logit), abs=1e-4)
    assert seen.evidence_layer == "relu3"
    assert seen.evidence is not None
    torch.testing.assert_close(seen.evidence, share.clamp_min(0) / share.max(), atol=1e-4, rtol=1e-3)


def test_evidence_is_where_the_patch_is(make_net: Callable[..., Net]) -> None:
    conv = nn.Conv2d(3, 2, 3, padding=1, bias=False)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[0, 0, 1, 1] = 1.0  # channel 0 is red, channel 1 is blue
        conv.weight[1, 2, 1, 1] = 1.0
    head = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.eye(2) * 50)
    module = nn.Sequential(conv, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    image = torch.zeros(3, 16, 16)
    image[0, 2:6, 9:12] = 1.0
    image[2, 12, 12] = 0.5
    found = look(make_net(module, (3, 16, 16)), image, pictures_of=False)
    assert found.top[0][0] == 0
    assert found.evidence is not None
    torch.testing.assert_close(found.evidence, image[0])


def test_maps_are_the_activations(tiny: Net, seen: Look) -> None:
    for layer, maps in seen.layers.items():
        values = forward(tiny, picture_of(0), layer)
        assert 1 <= len(maps) <= 4
        for shown in maps:
            wanted = values[shown.channel]
            torch.testing.assert_close(shown.map, wanted.reshape(shown.map.shape), atol=1e-5, rtol=1e-4)
            assert shown.max == pytest.approx(float(wanted.max()), abs=1e-5)
            assert shown.mean == pytest.approx(float(wanted.mean()), abs=1e-5)
            row, column = (int(share * n) for share, n in zip(shown.where, shown.map.shape, strict=True))
            assert float(shown.map[row, column]) == pytest.approx(shown.max)
    assert [u.standout for u in seen.units] == sorted((u.standout for u in seen.units), reverse=True)  # type: ignore[type-var]


def test_kernels_are_the_raw_weights(tiny: Net, seen: Look) -> None:
    assert seen.kernels_layer == "conv1"
    assert seen.kernels is not None
    assert torch.equal(seen.kernels, tiny.module.get_submodule("conv1").weight.detach())  # type: ignore[union-attr,operator]


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_kernel_sheets(channels: int) -> None:
    kernels = torch.randn(10, channels, 5, 3, generator=torch.Generator().manual_seed(0))
    kernels[0] = 0.0
    sheet = np.asarray(kernel_sheet(kernels, scale=2))
    assert sheet.shape == (2 * (10 + 4) + 4, 8 * (6 + 4) + 4, 3)
    assert (sheet[4:14, 4:10] == 128).all()  # zero is grey
    second = sheet[4:14:2, 14:20:2].astype(float)
    shown = kernels[1] if channels in (1, 3) else kernels[1].mean(0, keepdim=True)
    wanted = ((shown / shown.abs().max() + 1) / 2 * 255).round().permute(1, 2, 0).numpy()
    np.testing.assert_allclose(second, np.broadcast_to(wanted, second.shape), atol=1)
    assert kernel_sheet(torch.randn(100, 3, 7, 7)).width < 1000


def test_a_look_is_saved_with_relative_names(seen: Look, tmp_path: Path) -> None:
    content = seen.save(tmp_path, 2)
    json.dumps(content, allow_nan=False)
    named = [content["image"]["file"], content["evidence"]["file"], content["kernels"]["file"]]
    named += [row["file"] for layer in content["layers"] for row in layer["maps"]]
    for name in named:
        assert name.startswith("look/2/")
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 1
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.*")) == sorted(named)
    assert content["evidence"]["method"] == "HiResCAM at relu3"
    assert "tensor" in repr(seen)


def test_pictures_stand_beside_the_maps(tiny: Net) -> None:
    events: list[dict[str, Any]] = []
    found = look(tiny, picture_of(1), layers=["relu2"], maps=2, steps=4, progress=events.append)
    pictures = [shown.picture for shown in found.layers["relu2"]]
    assert all(picture is not None and picture.shape[0] == 3 for picture in pictures)
    assert events[-1]["done"] == events[-1]["total"] == 2


def test_any_kind_of_image_is_read(tiny: Net, tmp_path: Path) -> None:
    picture = Image.new("RGB", (50, 40), (200, 30, 30))
    picture.save(tmp_path / "a.png")
    shown = [
        look(tiny, image, pictures_of=False, layers=["relu1"])
        for image in (
            picture,
            tmp_path / "a.png",
            str(tmp_path / "a.png"),
            torch.full((3, 10, 20), 0.5),
            "chelsea",
        )
    ]
    assert [item.name for item in shown] == ["image", "a.png", "a.png", "tensor", "chelsea"]
    assert all(item.image.shape == (3, 32, 32) for item in shown)
    torch.testing.assert_close(shown[0].image, shown[1].image, atol=0.01, rtol=0)
    assert shown[4].attribution is not None
    assert shown[0].attribution is None


@pytest.mark.parametrize("shape", [(1, 28, 28), (5, 24, 24), (3, 20, 36)])
def test_other_inputs(make_net: Callable[..., Net], shape: tuple[int, int, int], tmp_path: Path) -> None:
    module = nn.Sequential(
        nn.Conv2d(shape[0], 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )  # fmt: skip
    found = look(make_net(module, shape), torch.rand(shape), steps=2)
    assert len(found.top) == 3
    assert found.evidence is not None
    assert found.evidence.shape == (shape[1] - 2, shape[2] - 2)
    found.save(tmp_path)
    if shape[0] == 5:
        assert all(u.standout is None for u in found.units)


def test_a_network_without_classes(make_net: Callable[..., Net], tmp_path: Path) -> None:
    net = make_net(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)), (3, 16, 16))
    found = look(net, torch.rand(3, 16, 16), pictures_of=False)
    assert found.top == ()
    assert found.evidence is None
    content = found.save(tmp_path)
    assert content["evidence"] is None
    assert "Look('tensor'" in repr(found)


def test_a_network_of_tokens(make_net: Callable[..., Net]) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mix, self.fc = nn.Conv2d(3, 6, 4, stride=4), nn.Linear(6, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.mix(self.embed(x).flatten(2).transpose(1, 2)).relu()
            out: Tensor = self.fc(x.mean(1))
            return out

    found = look(make_net(Tokens(), (3, 16, 24)), torch.rand(3, 16, 24), pictures_of=False)
    assert found.evidence is not None
    assert found.evidence.shape == (4, 6)


def test_heat_and_overlay() -> None:
    shown = np.asarray(heat(torch.tensor([[0.0, 1.0], [2.0, 4.0]]), (8, 8)))
    assert shown.shape == (8, 8, 3)
    assert shown[0, 0].tolist() == [0, 0, 4]
    assert shown[7, 7].tolist() == [252, 253, 191]
    assert np.asarray(heat(torch.zeros(2, 2), (8, 8))).max() == 4  # flat is dark
    image = torch.full((3, 16, 16), 0.5)
    assert overlay(image, torch.rand(4, 4)).size == (16, 16)


ERRORS: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (
        "chelsae",
        {},
        UnknownName,
        r"image='chelsae' is neither a file nor an embedded .*did you mean 'chelsea'",
    ),
    (
        torch.rand(1, 8, 8),
        {},
        BadInput,
        r"image of shape \(1, 8, 8\) must be finite and \[3, height, width\]",
    ),
    (torch.full((3, 8, 8), torch.nan), {}, BadInput, "must be finite"),
    (torch.rand(3, 8, 8), {"maps": 0}, RequestError, "maps=0 must be at least 1"),
    (torch.rand(3, 8, 8), {"layers": "relu9"}, UnknownLayer, "did you mean"),
]


@pytest.mark.parametrize(("image", "arguments", "kind", "message"), ERRORS)
def test_errors_name_what_is_wrong(
    tiny: Net, image: Any, arguments: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        look(tiny, image, **arguments)


def test_a_folder_is_no_photograph(tiny: Net, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    with pytest.raises(RequestError, match="holds 2 images; name one file"):
        look(tiny, tmp_path)


def test_untrained_weights_are_refused(make_net: Callable[..., Net]) -> None:
    net = make_net(nn.Sequential(nn.Conv2d(3, 2, 3)), trained=False)
    with pytest.raises(UntrainedWeights):
        look(net, torch.rand(3, 32, 32))


def test_the_embedded_network_knows_the_cat() -> None:
    from convscope import load

    found = look(load(), "chelsea", pictures_of=False)
    assert found.top[0][1] is not None
    assert any(word in found.top[0][1] for word in ("cat", "tabby", "lynx"))
    assert found.evidence is not None
    assert found.kernels is not None
    assert len(found.layers) == 5
