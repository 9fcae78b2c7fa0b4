"""Networks of every make: a middle layer of each is drawn. The heavy ones run under `make sweep`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convscope._torchvision import torchvision
from convscope.errors import ModelError
from convscope.features.network import prepare
from convscope.features.visualize import visualize
from convscope.graph import record
from convscope.models import InputSpec, Net


def build(source: str) -> nn.Module:
    scheme, _, name = source.partition(":")
    models = torchvision().models
    torch.manual_seed(0)
    if scheme == "timm":
        return importlib.import_module("timm").create_model(name)  # type: ignore[no-any-return]
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if name.startswith("vgg"):  # without the time to fill its huge head
        with torch.device("meta"):
            module = getattr(models, name)()
        module.classifier = nn.Sequential(nn.Linear(512 * 49, 10))
        module.to_empty(device="cpu")
        for part in module.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(part.weight)
                nn.init.zeros_(part.bias)  # type: ignore[arg-type]
        return module  # type: ignore[no-any-return]
    return getattr(models, name)(**options)  # type: ignore[no-any-return]


# source, size, layers, batch norms folded when those layers are read
LIGHT: list[tuple[str, int, list[str], int]] = [
    ("torchvision:resnet18", 224, ["layer2.1", "layer2.1:pre", "layer3.0.relu#0"], 20),
    ("timm:tf_efficientnet_lite0", 224, ["blocks.2.1", "classifier"], 49),
    ("timm:vit_tiny_patch16_224", 224, ["patch_embed", "blocks.3", "blocks.3.mlp.fc1"], 0),
]
HEAVY: list[tuple[str, int, list[str], int]] = [
    ("torchvision:googlenet", 224, ["inception4a", "inception4a.branch2", "fc"], 57),
    ("torchvision:inception_v3", 299, ["Mixed_5d", "Mixed_6b.branch7x7_2", "fc"], 94),
    ("torchvision:vgg16", 224, ["features.15", "features.14:post", "classifier.0"], 0),
    ("torchvision:vgg19", 224, ["features.20"], 0),
    (
        "torchvision:densenet121",
        224,
        ["features.denseblock2", "features.denseblock2.denselayer3.conv1", "classifier"],
        59,
    ),
    ("torchvision:convnext_tiny", 224, ["features.3.2", "features.5", "classifier.2"], 0),
    ("timm:convnext_atto", 224, ["stages.1", "stages.2.blocks.3", "head.fc"], 0),
    ("timm:vit_tiny_patch16_224", 224, ["blocks.11", "head"], 0),
    ("timm:resnest14d", 224, ["layer2", "layer3.0"], 0),
    ("timm:mobilenetv3_small_100", 224, ["blocks.2.1", "blocks.4"], 0),
    ("torchvision:mobilenet_v3_small", 224, ["features.4", "features.12"], 0),
    ("torchvision:swin_t", 224, ["features.1.0", "features.3"], 0),
    ("timm:efficientnet_b0", 224, ["blocks.2.1", "classifier"], 0),
    ("timm:tresnet_m", 224, ["body.layer1"], 0),
    ("timm:nfnet_l0", 224, ["stages.1"], 0),
]


def draws(source: str, size: int, layers: list[str], folded: int) -> None:
    module = build(source).eval()
    net = Net(
        module,
        InputSpec((3, size, size), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        name=source,
        trained=False,
    )
    graph = record(net)
    network = prepare(net, graph, layers[:1], dtype="float32")
    if folded:
        assert network.folded >= folded - 2  # a norm behind what is read stays
    for layer in layers:
        found = visualize(net, layer, [0, 3], steps=2, random=True, graph=graph)
        assert found.images.shape[:2] == (2, 3)
        assert found.images.isfinite().all()
        assert {unit.status for unit in found.units} <= {"budget", "converged", "dead"}
    # Folding and truncation change no activation.
    x = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    kept: list[Tensor] = []
    private = net.copy()
    name = layers[0].partition(":")[0]
    handle = private.get_submodule(name).register_forward_hook(lambda *a: kept.append(a[2].detach().clone()))
    with torch.no_grad(), network.capture(layers[:1]) as reader:
        private(net.input.normalize(x))
        ours = reader(network.feed(x))[0][layers[0]]
    handle.remove()
    wanted = kept[-1]
    if wanted.ndim == 3:  # tokens
        wanted = wanted[:, -ours[0, 0].numel() :].transpose(1, 2).reshape(ours.shape)
    elif wanted.shape != ours.shape:
        wanted = wanted.movedim(-1, 1)
    torch.testing.assert_close(ours, wanted, atol=1e-3 * float(wanted.abs().max()), rtol=1e-3)


@pytest.mark.parametrize(("source", "size", "layers", "folded"), LIGHT, ids=[row[0] for row in LIGHT])
def test_a_published_network(source: str, size: int, layers: list[str], folded: int) -> None:
    draws(source, size, layers, folded)


@pytest.mark.sweep
@pytest.mark.parametrize(("source", "size", "layers", "folded"), HEAVY, ids=[row[0] for row in HEAVY])
def test_a_heavy_published_network(source: str, size: int, layers: list[str], folded: int) -> None:
    draws(source, size, layers, folded)


def digits(channels: int = 1) -> nn.Module:
    """The usual first network: 28x28, one channel, a head of one size."""
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25),
        nn.Flatten(), nn.Linear(16 * 12 * 12, 32), nn.ReLU(), nn.Linear(32, 10), nn.LogSoftmax(1),
    )  # fmt: skip


OWN: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int], list[str]]] = {
    "digits": (digits, (1, 28, 28), ["1", "3", "9", "10"]),
    "five channels": (
        lambda: nn.Sequential(nn.Conv2d(5, 6, 5, stride=2), nn.BatchNorm2d(6), nn.SiLU(), nn.Conv2d(6, 4, 3)),
        (5, 40, 40), ["2", "3"],
    ),
    "two channels": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.GELU()), (2, 30, 31), ["1"]),
    "not square": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 18 * 38, 5)),
        (3, 20, 40), ["1", "3"],
    ),
    "one pixel kernels": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), (3, 8, 8), ["1"]),
}  # fmt: skip


@pytest.mark.parametrize("name", OWN)
def test_a_network_of_ones_own(name: str, make_net: Callable[..., Net]) -> None:
    make, shape, layers = OWN[name]
    torch.manual_seed(0)
    net = make_net(make(), shape, trained=False)
    for layer in layers:
        found = visualize(net, layer, [0, 1], steps=3, random=True)
        assert found.images.shape[:2] == (2, shape[0])
        assert found.images.isfinite().all()
        if name == "not square" and layer == "3":
            assert found.images.shape[2:] == (20, 40)


def test_a_network_on_the_meta_device_is_refused() -> None:
    with torch.device("meta"):
        module: Any = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    with pytest.raises(ModelError, match=r"tensor '0.weight' of the network is on the meta device"):
        visualize(module, "1", [0], steps=1, input=InputSpec((3, 16, 16)))
