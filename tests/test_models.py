"""InputSpec, Net, every source of `load`, and what leaves no trace."""

from __future__ import annotations

import json
import pickle
import random
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor, nn

from convscope import _sources, _torchvision
from convscope.errors import (
    BadInput,
    ConvscopeWarning,
    ModelError,
    RequestError,
    UnknownName,
    UntrainedWeights,
)
from convscope.models import (
    Built,
    InputSpec,
    Net,
    Request,
    as_net,
    load,
    preserved,
    register_scheme,
    require_trained,
)


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))


@pytest.fixture
def factory(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("their_models")
    monkeypatch.setitem(sys.modules, "their_models", module)
    return module


# ---------------------------------------------------------------- InputSpec


def test_normalize_by_hand() -> None:
    spec = InputSpec((2, 1, 1), mean=(10, 20), std=(2, 4), value_range=(0, 100))
    x = torch.tensor([0.1, 0.5]).view(1, 2, 1, 1)  # 10 and 50 in the network's range
    assert spec.normalize(x).flatten().tolist() == pytest.approx([0.0, 7.5])


@given(
    st.integers(1, 6),
    st.floats(-5, 5),
    st.floats(0.01, 10),
    st.tuples(st.floats(-300, 0), st.floats(1, 300)),
    st.integers(0, 99),
)
def test_denormalize_undoes_normalize(
    channels: int, mean: float, std: float, value_range: tuple[float, float], seed: int
) -> None:
    spec = InputSpec((channels, 3, 4), (mean,) * channels, (std,) * channels, value_range)
    x = torch.rand(2, channels, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(spec.denormalize(spec.normalize(x)), x)


@given(
    st.tuples(st.integers(1, 9), st.integers(1, 999), st.integers(1, 999)),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
    st.booleans(),
)
def test_to_dict_and_back(shape: tuple[int, int, int], dtype: torch.dtype, normalized: bool) -> None:
    mean = (0.25,) * shape[0] if normalized else None
    spec = InputSpec(shape, mean, mean, dtype=dtype)
    assert InputSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_one_number_serves_every_channel() -> None:
    assert InputSpec(mean=(0.5,), std=(0.25,)).mean == (0.5, 0.5, 0.5)


def test_example_is_the_same_for_the_same_seed_and_leaves_the_global_state() -> None:
    spec = InputSpec((2, 4, 5), dtype=torch.float64)
    state = torch.get_rng_state()
    assert torch.equal(spec.example(2), spec.example(2))
    assert not torch.equal(spec.example(2), spec.example(2, seed=1))
    assert spec.example(3).shape == (3, 2, 4, 5)
    assert spec.example().dtype == torch.float64
    assert spec.example(device="meta").device.type == "meta"
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": (3, 224)}, r"input shape \(3, 224\) must be three positive integers"),
        ({"shape": (3, 0, 5)}, r"input shape \(3, 0, 5\) must be three positive integers"),
        ({"shape": (3, 1.5, 5)}, "must be three positive integers"),
        ({"mean": (1, 2)}, r"mean=\(1, 2\) must be 3 finite numbers, one for each channel"),
        ({"std": (1, 1, float("nan"))}, "must be 3 finite numbers"),
        ({"std": (1, 0, 1)}, "must be positive in every channel"),
        ({"value_range": (1, 1)}, r"value_range=\(1, 1\) must be two finite numbers"),
        ({"dtype": torch.int64}, "dtype=torch.int64 must be a floating type"),
    ],
)
def test_wrong_specifications(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        InputSpec(**arguments)


def test_wrong_images_and_texts() -> None:
    with pytest.raises(BadInput, match=r"images of shape \(1, 4, 8, 8\) must be \[..., 3, height, width\]"):
        InputSpec().normalize(torch.zeros(1, 4, 8, 8))
    with pytest.raises(BadInput, match=r"example input of shape \(5, 7\) must be \[batch, channel"):
        InputSpec.of(torch.zeros(5, 7))
    for text in ("", "3x", "3x4x5x6", "axb", "-3", "3.5", "٣x4"):
        with pytest.raises(BadInput, match="must be SIZE, HEIGHTxWIDTH or CHANNELSxHEIGHTxWIDTH"):
            InputSpec.parse(text)
    with pytest.raises(BadInput, match="dtype='int8' must be one of float32"):
        InputSpec.from_dict({"shape": [1, 2, 3], "dtype": "int8"})


# ---------------------------------------------------------------- Net


def test_hash_follows_weights_names_and_nothing_else() -> None:
    module = small()
    net = load(module, input="8")
    first = net.sha256
    assert len(first) == 64
    assert net.sha256 == first == load(module.train(), input="9").sha256
    with torch.no_grad():
        module[0].weight[0, 0, 0, 0] += 1
    assert net.sha256 != first
    renamed = nn.Sequential()
    for name, part in zip("abcd", module, strict=True):
        renamed.add_module(name, part)
    assert load(renamed, input="8").sha256 != net.sha256
    assert load(small().bfloat16(), input="8").input.dtype == torch.bfloat16


def test_shared_parameters_count_once_and_layers_are_named() -> None:
    module = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    module[1].weight = module[0].weight
    net = load(module, input="4")
    assert net.parameters_count == 9 + 3 + 3
    assert net.layers() == ("0", "1")


def test_copy_is_private_frozen_and_in_eval_mode() -> None:
    module = small().train()
    module(torch.rand(2, 3, 8, 8)).sum().backward()
    grad = module[0].weight.grad
    net = load(module, input="8")
    copied = net.copy()
    assert not any(part.training for part in copied.modules())
    assert not any(p.requires_grad or p.grad is not None for p in copied.parameters())
    assert all(part.training for part in module.modules())
    assert module[0].weight.grad is grad
    assert module[0].weight.requires_grad
    with torch.no_grad():
        next(copied.parameters()).zero_()
    assert module[0].weight.abs().sum() > 0


def test_copy_of_old_style_weight_norm_after_a_forward_pass() -> None:
    with pytest.warns(FutureWarning, match="weight_norm"):
        module = nn.Sequential(torch.nn.utils.weight_norm(nn.Conv2d(3, 4, 3)))
    x = torch.rand(1, 3, 8, 8)
    y = module(x)  # leaves a computed tensor on the module, which deepcopy refuses
    torch.testing.assert_close(load(module, input=x).copy()(x), y.detach())


def test_copy_names_the_part_that_cannot_be_copied() -> None:
    module = small()
    module[2].lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(ModelError, match=r"module '2' \(ReLU\) cannot be copied .* give it a __deepcopy__"):
        load(module, input="8").copy()


EVIL = "<img src=x onerror=alert(1)>"


def test_displays_escape_names_and_terminal_codes() -> None:
    net = load(small(), input="8", name=EVIL, labels=["[red]a[/]", "\x1b[31mb", "c"])
    html = net._repr_html_()
    assert "<img" not in html
    assert "&lt;img" in html
    console = Console(width=100, force_terminal=False)
    with console.capture() as captured:
        console.print(net)
    text = captured.get()
    assert "[red]a[/]" in text
    assert "\x1b" not in text
    assert EVIL in text
    assert repr(net) == f"Net({EVIL!r}, input=3x8x8, parameters=130, source='module')"


def test_to_dict_is_plain() -> None:
    values = load(small(), input="8", labels=["a", "b"]).to_dict()
    assert json.loads(json.dumps(values)) == values
    assert values["labels"] == ["a", "b"]
    assert values["params"] == 130


# ---------------------------------------------------------------- load: the embedded default


def test_the_embedded_network_knows_a_cat_and_a_coffee() -> None:
    from convscope.data import images

    net = load()
    assert net.trained
    assert net.normalization_known
    assert net.labels is not None
    assert len(net.labels) == len(set(net.labels)) == 1000
    assert (net.labels[134], net.labels[517]) == ("crane (bird)", "crane (machine)")
    assert net.input == InputSpec((3, 224, 224), (127 / 255,) * 3, (128 / 255,) * 3)
    assert net.parameters_count == 4_652_008
    assert net.warnings == ()
    names, found = [], images()
    with torch.no_grad():
        for batch in found.batches(net.input, 12):
            names = [net.labels[i] for i in net.copy()(net.input.normalize(batch.images)).argmax(1)]
    by_name = dict(zip(found.names, names, strict=True))
    assert by_name["chelsea"] in {"tabby", "Egyptian cat", "tiger cat", "lynx"}
    assert by_name["coffee"] in {"espresso", "cup", "coffee mug"}
    assert net.sha256 == load("efficientnet_lite0").sha256 == load("embedded:efficientnet_lite0").sha256
    with pytest.raises(UnknownName, match="embedded model 'vgg' does not exist"):
        load("embedded:vgg")


# ---------------------------------------------------------------- load: modules and inputs


def test_a_module_stays_itself() -> None:
    module = small().train()
    net = load(module, input=torch.zeros(2, 3, 10, 12, dtype=torch.float64))
    assert net.module is module
    assert module.training
    assert net.trained is None
    assert not net.normalization_known
    assert net.input == InputSpec((3, 10, 12), dtype=torch.float64)


def test_inputs_of_all_kinds() -> None:
    conv = nn.Conv2d(5, 1, 1)
    assert load(conv, input=(5, 6, 7)).input.shape == (5, 6, 7)
    assert load(conv, input=(1, 5, 6, 7)).input.shape == (5, 6, 7)
    assert load(conv, input="5x6x7").input.shape == (5, 6, 7)
    assert load(conv, input=torch.zeros(5, 6, 7)).input.shape == (5, 6, 7)
    spec = InputSpec((5, 6, 7), mean=(0.5,))
    assert load(conv, input=spec).input is spec
    assert load(conv, input=spec).normalization_known
    with pytest.raises(BadInput, match=r"input \(dict\) must be an InputSpec, an example tensor"):
        load(conv, input={})  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="Conv2d says nothing about its input; give input="):
        load(conv)


def test_a_shape_keeps_the_metadata_an_input_spec_replaces_it() -> None:
    kept = load("timm:resnet18", input="64x96")
    assert kept.input.shape == (3, 64, 96)
    assert kept.input.mean == (0.485, 0.456, 0.406)
    replaced = load("timm:resnet18", input=InputSpec((3, 64, 96)))
    assert replaced.input.mean is None
    assert "no normalization, though the model's metadata has one" in replaced.warnings[0]


def test_a_timm_module_of_the_users_own_brings_its_metadata() -> None:
    timm = _sources._timm()
    net = load(timm.create_model("resnet18"))
    assert net.input.std == (0.229, 0.224, 0.225)
    assert net.labels is not None
    assert net.trained is None


def test_a_net_is_loaded_again_at_another_input() -> None:
    net = load("timm:resnet18")
    again = load(net, input="32x48", name="other")
    assert again.module is net.module
    assert again.input.shape == (3, 32, 48)
    assert again.input.mean == net.input.mean
    assert (again.name, again.source) == ("other", "timm:resnet18")
    assert as_net(net) is net
    assert as_net(net, "40").input.size == (40, 40)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (nn.ReLU, r"source \(class ReLU\) must be an nn.Module instance"),
        (3, r"source \(int\) must be an nn.Module instance"),
        (small, r"source \(function\) must be an nn.Module instance"),
    ],
)
def test_what_is_no_source(source: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        load(source)


def test_as_net_refuses_what_is_no_network() -> None:
    with pytest.raises(RequestError, match=r"load it first with convscope.load\('timm:resnet18'\)"):
        as_net("timm:resnet18")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"net \(int\) must be a Net or an nn.Module"):
        as_net(3)  # type: ignore[arg-type]


def test_lazy_modules_and_wrong_labels_are_refused(factory: types.ModuleType) -> None:
    vars(factory)["lazy"] = lambda: nn.LazyConv2d(4, 3)
    with pytest.raises(ModelError, match="parameter 'weight' has no shape yet"):
        load("their_models:lazy", input="8")
    with pytest.raises(RequestError, match="labels must be a sequence of class names"):
        load(small(), input="8", labels="abc")


def test_not_finite_weights_are_reported_by_name() -> None:
    module = small()
    with torch.no_grad():
        module[0].weight[0] = float("nan")
        module[1].running_var[1] = float("inf")
    with pytest.warns(ConvscopeWarning, match=r"2 tensors: 0.weight \(NaN\), 1.running_var \(infinity\)"):
        net = load(module, input="8")
    assert net.warnings == ("weights are not finite in 2 tensors: 0.weight (NaN), 1.running_var (infinity)",)
    assert as_net(module, "8").warnings == net.warnings  # quietly


def test_untrained_networks_are_refused_unless_asked_for() -> None:
    net = load("timm:resnet18")
    assert net.trained is False
    with pytest.raises(UntrainedWeights, match=r"resnet18 has random weights .* weights=PATH .* --random"):
        require_trained(net, random=False)
    require_trained(net, random=True)
    require_trained(load(small(), input="8"))


# ---------------------------------------------------------------- load: names


def test_random_weights_are_reproducible_and_leave_the_global_state() -> None:
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]
    first, same, other = load("timm:resnet18"), load("timm:resnet18"), load("timm:resnet18", seed=1)
    assert first.sha256 == same.sha256 != other.sha256
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])


def test_options_and_channels() -> None:
    net = load("timm:resnet18?num_classes=10&drop_rate=0.1", input="5x32x40")
    assert net.copy()(net.input.example()).shape == (1, 10)
    assert net.labels is None
    assert net.input.mean is None
    assert load("torchvision:resnet18?num_classes=7").labels is None
    assert load("timm:vit_tiny_patch16_224", input="32x64").copy()(torch.zeros(1, 3, 32, 64)).shape == (
        1,
        1000,
    )


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("timm:resnet19", UnknownName, "timm has no model 'resnet19'; did you mean 'resnet18'"),
        (
            "timm:hf-hub:a/b",
            RequestError,
            "is fetched from the Hugging Face hub; pass weights='hub' to allow that",
        ),
        ("torchvision:resnet81", UnknownName, "torchvision has no model 'resnet81'; did you mean 'resnet18'"),
        ("torchvision:resnet18:IMAGENET1K_V9", UnknownName, "did you mean 'IMAGENET1K_V1'"),
        ("torchvision:raft_small", BadInput, "belongs to the optical flow models"),
        ("resnet18", UnknownName, "did you mean 'timm:resnet18' or 'torchvision:resnet18'"),
        ("efficientnet_light0", UnknownName, "did you mean .*'efficientnet_lite0'"),
        ("tmm:resnet18", UnknownName, "module 'tmm' cannot be imported .* did you mean 'timm'"),
        ("timm:resnet18?num_classes", RequestError, "option 'num_classes' in source .* must be key=value"),
        ("timm:resnet18?nope=1", ModelError, "timm:resnet18 could not be built .*nope.*; check its options"),
        ("a b:c", UnknownName, r"starts with no known scheme \(.*timm, torchvision\)"),
        ("json:nope", UnknownName, "json has no 'nope'"),
        ("json:dumps?obj=1", ModelError, "json:dumps returned str, which is no nn.Module"),
        ("nowhere.pt", RequestError, "file 'nowhere.pt' does not exist"),
    ],
)
def test_wrong_names(source: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load(source)


def test_torchvision_takes_three_channels() -> None:
    with pytest.raises(BadInput, match="torchvision:resnet18 takes 3 channels, not 5; timm builds"):
        load("torchvision:resnet18", input="5x64x64")


def test_factories(factory: types.ModuleType) -> None:
    vars(factory)["make"] = lambda width=4: nn.Conv2d(1, width, 3)
    net = load("their_models:make?width=6", input="1x8x8")
    assert net.parameters_count == 60
    assert net.trained is None
    assert not net.module.training
    vars(factory)["broken"] = lambda: [][0]
    with pytest.raises(ModelError, match=r"their_models:broken could not be built \(IndexError: list index"):
        load("their_models:broken", input="8")


def test_schemes_can_be_registered() -> None:
    def build(request: Request) -> Built:
        return Built(
            nn.Conv2d(1, request.options["width"], 1), request.rest, InputSpec((1, 4, 4)), trained=True
        )

    try:
        register_scheme("test_scheme", build)
        register_scheme("test_scheme", build)  # again is fine
        net = load("test_scheme:thing?width=3")
        assert (net.name, net.trained, net.parameters_count) == ("thing", True, 6)
        with pytest.raises(RequestError, match="scheme 'test_scheme' is already registered"):
            register_scheme("test_scheme", lambda request: build(request))
    finally:
        from convscope import models

        models._SCHEMES.pop("test_scheme")
    with pytest.raises(RequestError, match="scheme name 'No:' must be a lower-case word"):
        register_scheme("No:", build)


# ---------------------------------------------------------------- load: published weights


def test_torchvision_weights_come_from_the_cache_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(RequestError, match=r"not in the torch hub cache .* pass weights='hub' to download"):
        load("torchvision:squeezenet1_1:IMAGENET1K_V1")
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "squeezenet1_1-b8a52dc0.pth").write_bytes(b"something else")
    with pytest.raises(RequestError, match="is not what torchvision published as IMAGENET1K_V1"):
        load("torchvision:squeezenet1_1:IMAGENET1K_V1")
    state = load("torchvision:squeezenet1_1", seed=5).module.state_dict()
    torch.save(state, folder / "squeezenet1_1-b8a52dc0.pth")
    monkeypatch.setattr(_sources, "_sha256", lambda path: "b8a52dc0")
    net = load("torchvision:squeezenet1_1:IMAGENET1K_V1")
    assert net.trained
    assert torch.equal(net.module.state_dict()["features.0.weight"], state["features.0.weight"])


def test_torchvision_cache_with_a_payload_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(_sources, "_sha256", lambda path: "b8a52dc0")
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    path.write_bytes(pickle.dumps(small))
    with pytest.raises(RequestError, match="runs code when loaded"):
        load("torchvision:squeezenet1_1:IMAGENET1K_V1")


def test_a_download_that_fails_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(ModelError, match=r"could not be downloaded from https.* \(no network\)"):
        load("torchvision:squeezenet1_1", weights="hub")
    timm = _sources._timm()
    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(
        ModelError, match=r"published weights of timm:resnet18 .* no network.*pass weights=PATH"
    ):
        load("timm:resnet18", weights="hub")
    with pytest.raises(
        RequestError, match="weights='hub' works with 'timm:NAME' and 'torchvision:NAME' only"
    ):
        load(small(), input="8", weights="hub")


def test_googlenet_weights_of_unknown_origin_are_remarked(tmp_path: Path) -> None:
    module = load("torchvision:googlenet").module
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    net = load("torchvision:googlenet", weights=tmp_path / "w.safetensors")
    assert "transform_input=True" in net.warnings[0]
    net = load("torchvision:googlenet?transform_input=True", weights=tmp_path / "w.safetensors")
    assert net.warnings == ()


# ---------------------------------------------------------------- torchvision whose operators do not match


def test_importing_convscope_models_is_light() -> None:
    heavy = ("torchvision", "timm", "PIL", "rich")
    code = f"import convscope.models, sys; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


FAKE = """
import torch, sys, logging
logging.basicConfig(level=logging.WARNING, format="LOG %(name)s %(message)s")
def missing(path): raise OSError("undefined symbol: _ZN2at4_ops9abc")
torch.ops.load_library = missing
if {broken_before}:
    try:
        import torchvision
    except RuntimeError as error:
        assert "torchvision::nms does not exist" in str(error), error
    else:
        raise SystemExit("torchvision did not fail")
from convscope.models import load
for source in ("torchvision:squeezenet1_1", "timm:resnet18", "torchvision:squeezenet1_1"):
    net = load(source, input="64")
    print(tuple(net.copy()(net.input.example()).shape))
import torchvision
try:
    torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
except (RuntimeError, NotImplementedError):
    print("nms unavailable")
"""


@pytest.mark.parametrize("broken_before", [False, True])
def test_torchvision_works_without_its_operators(broken_before: bool) -> None:
    run = subprocess.run(
        [sys.executable, "-c", FAKE.format(broken_before=broken_before)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n")[:4] == ["(1, 1000)"] * 3 + ["nms unavailable"]
    assert run.stderr.count("detection operators such as nms are unavailable") == 1
    assert "undefined symbol" in run.stderr


def test_torchvision_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ImportError("No module named 'torchvision'")

    monkeypatch.setattr(_torchvision.importlib, "import_module", refuse)
    with pytest.raises(
        ModelError, match=r"torchvision could not be imported .* install the release that matches"
    ):
        _torchvision.torchvision()


# ---------------------------------------------------------------- preserved


def _disturb(module: nn.Module) -> None:
    module.eval()
    module[0].weight.requires_grad_(False)
    module[3].weight.grad = torch.ones_like(module[3].weight)
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_preserved_restores_everything(error: type[BaseException] | None) -> None:
    module = small().train()
    module[1].eval()
    grad = torch.zeros_like(module[0].weight)
    module[0].weight.grad = grad
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]
    try:
        with preserved(module) as inside:
            assert inside is module
            _disturb(module)
            if error is not None:
                module.register_forward_hook(lambda *_: None)
                raise error
    except (ValueError, KeyboardInterrupt):
        pass
    assert [part.training for part in module.modules()] == [True, True, False, True, True]
    assert module[0].weight.requires_grad
    assert module[0].weight.grad is grad
    assert module[3].weight.grad is None
    assert not module._forward_hooks
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])


def test_preserved_tells_of_hooks_left_and_keeps_the_users_own() -> None:
    module = small()
    own = module.register_forward_hook(lambda *_: None)
    with (
        pytest.raises(ModelError, match="1 hooks were left on Sequential and have been removed"),
        preserved(module),
    ):
        module[0].register_forward_pre_hook(lambda *_: None)
    assert list(module._forward_hooks) == [own.id]
    assert not module[0]._forward_pre_hooks


def test_net_is_frozen() -> None:
    net = load(small(), input="8")
    with pytest.raises(AttributeError):
        net.name = "x"  # type: ignore[misc]
    assert isinstance(net, Net)
    assert isinstance(net.input.example(), Tensor)
