"""Saving and making again: the same weights and outputs for every rule; damaged, foreign and hostile folders are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import convscope
from convscope import rules
from convscope.data import fashion
from convscope.errors import ConvscopeError, ModelError, RequestError, UnknownName, UntrustedFile
from convscope.models import Net
from convscope.rewrites.base import REGISTRY
from convscope.rewrites.recipe import rebuild
from convscope.rewrites.rewrite import Rewrite, rewrite

# ---------------------------------------------------------------- small networks that each rule acts on


def classifier() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(12, 4),
    )  # fmt: skip


def windowed() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 7 * 7, 5))


def decoder() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.Upsample(scale_factor=2), nn.Conv2d(4, 3, 3, padding=1)
    )


def local() -> nn.Sequential:
    convscope_local: Any = convscope.nn.LocallyConnected2d
    return nn.Sequential(convscope_local.from_conv(nn.Conv2d(3, 4, 3, padding=1), 16), nn.ReLU())


class Case(NamedTuple):
    rule: str
    make: Callable[[], nn.Module]
    data: bool = False


CASES: dict[str, list[Case]] = {
    "algorithm": [Case("algorithm:im2col", classifier), Case("algorithm:winograd:F(4,3)", classifier)],
    "bottleneck": [
        Case("bottleneck:3", classifier, True),
        Case("bottleneck:energy=0.8", classifier),
        Case("bottleneck:budget=macs:0.6", classifier, True),
    ],
    "convolutionalize": [Case("convolutionalize", windowed), Case("convolutionalize:dense=true", windowed)],
    "fold_batch_norm": [Case("fold_batch_norm", classifier)],
    "input_size": [Case(f"input_size:height=20,width=24,how={how}", classifier) for how in ("native", "tiles")],
    "kernel_size": [
        Case("kernel_size:5", classifier),
        Case("kernel_size:2", classifier, True),  # the fit gives each layer a bias
        Case("kernel_size:2,method=least_squares", classifier, True),
    ],
    "padding": [Case("padding:reflect", classifier), Case("padding:partial", classifier)],
    "pool": [Case("pool:average", classifier), Case("pool:strided", classifier, True), Case("pool:blur", classifier)],
    "separable": [
        Case("separable:2", classifier, True),
        Case("separable:budget=error:0.3", classifier, True),
        Case("separable:energy=0.7,method=svd,norms=false", classifier),
    ],
    "tie": [Case("tie", local, True)],
    "untie": [Case("untie:where=0", classifier)],
    "upsample": [Case("upsample:bilinear", decoder), Case("upsample:transposed", decoder)],
}  # fmt: skip


def data(case: Case) -> torch.Tensor | None:
    if not case.data:
        return None
    x = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return x + x.roll(1, 2) + x.roll(1, 3) + 0.5


def saved(case: Case, folder: Path) -> Rewrite:
    torch.manual_seed(0)
    made = rewrite(case.make().eval(), case.rule, data=data(case), input="3x16x16")
    assert made.done, case
    made.save(folder)
    return made


def test_every_rule_has_a_case() -> None:
    import convscope.rules  # noqa: F401 - registers them

    missing = set(REGISTRY) - set(CASES)
    assert not missing, f"no round trip of {', '.join(sorted(missing))}: add a line to CASES"


@pytest.mark.parametrize(
    "case", [c for name, many in CASES.items() if name in REGISTRY for c in many], ids=lambda case: case.rule
)
def test_round_trip(case: Case, tmp_path: Path) -> None:
    """The base is built with other weights, so that nothing of it can be left in the result."""
    made = saved(case, tmp_path)
    torch.manual_seed(99)
    again = rebuild(tmp_path, case.make())
    assert again.sha256 == made.net.sha256
    x = again.input.example(2)
    with torch.no_grad():
        expected = made.net.module(x)
        assert torch.equal(again.module(x), expected)
    assert not again.module.training
    assert again.input == made.net.input
    assert [name for name, _ in again.module.named_modules()] == [
        n for n, _ in made.net.module.named_modules()
    ]


# ---------------------------------------------------------------- by source


def fashion_net() -> Net:
    return convscope.load("fashion")


def test_load_by_recipe_and_rewrites_of_rewrites(tmp_path: Path) -> None:
    net = fashion_net()
    images = net.input.normalize(fashion("train")[0][:16])
    first = rewrite(net, "kernel_size:2,where=block1.conv1", data=images)
    second = rewrite(first.net, "padding:reflect,where=block2.*")
    second.save(tmp_path / "two")
    again = convscope.load(f"recipe:{tmp_path / 'two'}")
    assert (again.sha256, again.labels, again.name) == (second.net.sha256, net.labels, second.net.name)
    assert again.trained
    assert again.input == net.input
    assert again.normalization_known
    (tmp_path / "two").rename(tmp_path / "moved")  # what is made of it does not need the folder any more
    again = convscope.load(f"recipe:{tmp_path / 'moved' / 'recipe.json'}")
    third = rewrite(again, "padding:zeros,where=block2.*")
    third.save(tmp_path / "three")
    shutil.rmtree(tmp_path / "moved")
    assert convscope.load(f"recipe:{tmp_path / 'three'}").sha256 == third.net.sha256
    recipe = json.loads((tmp_path / "three" / "recipe.json").read_text())
    assert recipe["base"]["recipe"]["base"]["recipe"]["base"]["source"] == "fashion"
    assert recipe["base"]["sha256"] == second.net.sha256


def test_a_named_architecture_is_built_without_its_weights(tmp_path: Path) -> None:
    net = convscope.load("timm:resnet10t?num_classes=7", input="3x32x32", seed=5)
    made = rewrite(net, rules.Padding("replicate"), where="layer1.*")
    made.save(tmp_path)
    again = convscope.load(f"recipe:{tmp_path}")
    assert again.sha256 == made.net.sha256
    assert again.trained is False


def test_half_precision_is_kept(tmp_path: Path) -> None:
    module = classifier().eval().to(torch.bfloat16)
    spec = convscope.InputSpec((3, 16, 16), dtype=torch.bfloat16)
    made = rewrite(module, "kernel_size:5", input=spec)
    made.save(tmp_path)
    again = rebuild(tmp_path, classifier())
    assert again.sha256 == made.net.sha256
    assert again.module[0].weight.dtype == torch.bfloat16  # type: ignore[index]


def test_saving_over_an_older_folder_and_over_a_file(tmp_path: Path) -> None:
    old = saved(CASES["padding"][0], tmp_path / "out")
    new = saved(CASES["kernel_size"][0], tmp_path / "out")
    assert rebuild(tmp_path / "out", classifier()).sha256 == new.net.sha256 != old.net.sha256
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model.safetensors", "recipe.json"]
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="is a file; give a folder"):
        new.save(tmp_path / "file")


class Chatty(nn.Module):
    """Keeps text in its state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv(x)
        return y

    def get_extra_state(self) -> str:
        return "hello"

    def set_extra_state(self, state: Any) -> None: ...


def test_state_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="'_extra_state' \\(str\\)"):
        rewrite(Chatty(), "kernel_size:5", input="3x8x8").save(tmp_path)


# ---------------------------------------------------------------- what goes wrong


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    rewrite(fashion_net(), "kernel_size:5,where=block1.conv1").save(folder)
    return folder


def changed(kept: Path, folder: Path, change: Callable[[dict[str, Any]], Any]) -> str:
    shutil.copytree(kept, folder, dirs_exist_ok=True)
    recipe = json.loads((folder / "recipe.json").read_text())
    change(recipe)
    (folder / "recipe.json").write_text(json.dumps(recipe))
    return f"recipe:{folder}"


def test_missing_and_damaged_files(kept: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="does not exist; give the folder"):
        convscope.load(f"recipe:{tmp_path}")
    source = changed(kept, tmp_path, lambda recipe: None)
    convscope.load(source)
    weights = tmp_path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(
        content
    )  # as after an interrupted save: the recipe of one network, the weights of another
    with pytest.raises(RequestError, match="are not the ones that recipe"):
        convscope.load(source)
    weights.unlink()
    with pytest.raises(RequestError, match=r"has no model\.safetensors beside it"):
        convscope.load(source)
    for text, says in (
        ("{", "it is no JSON"),
        ("[" * 200000, "it is no JSON"),
        ("[1]", "must be a JSON object"),
    ):
        (tmp_path / "recipe.json").write_text(text)
        with pytest.raises(RequestError, match=says):
            convscope.load(source)
    with (tmp_path / "recipe.json").open("wb") as file:
        file.truncate(17 * 2**20)
    with pytest.raises(RequestError, match="larger than 16 MiB"):
        convscope.load(source)


def test_an_interrupted_save_leaves_the_old_or_an_error(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = changed(kept, tmp_path, lambda recipe: None)
    from convscope.rewrites import recipe as module

    write, calls = module.atomic_write, [0]

    def killed(*arguments: Any, **settings: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        return write(*arguments, **settings)

    monkeypatch.setattr(module, "atomic_write", killed)
    made = rewrite(fashion_net(), "kernel_size:7,where=block1.conv1")
    with pytest.raises(KeyboardInterrupt):
        made.save(tmp_path)
    with pytest.raises(RequestError, match="saving was interrupted: save again"):
        convscope.load(source)


def put(*keys: Any) -> Callable[[dict[str, Any]], None]:
    """put("base", "source", "x"): a change of the recipe's values."""
    *path, last, value = keys

    def change(recipe: dict[str, Any]) -> None:
        for key in path:
            recipe = recipe[key]
        recipe[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (put("format", 2), RequestError, "has format 2, and this convscope"),
        (put("rules", ["rm:5"]), UnknownName, "rule 'rm' does not exist"),
        (put("rules", [5]), RequestError, "'rules' must be texts"),
        (put("rules", ["kernel_size:99999999"]), RequestError, "no number in it may be larger than 65536"),
        (put("rules", ["kernel_size:9001"]), RequestError, "asks for kernel_size:size=9001, far more weights than lie"),
        (put("rules", ["untie:memory=60000"]), RequestError, "far more memory than the weights beside it take"),
        (put("rules", ["kernel_size:7"]), ModelError, "made another structure than the one saved: 'block1.conv1.weight'"),
        (put("rules", ["kernel_size:3"]), ModelError, "refuses layer 'block1.conv1' now, because its kernel is 3x3"),
        (put("edits", 0, "step", 4), RequestError, "an edit belongs to rule 4 of 1"),
        (put("edits", 0, "layer", None), RequestError, "'layer' must be text"),
        (put("edits", []), ModelError, "made another structure"),
        (put("where", None), RequestError, "'where' must be text"),
        (put("sha256", "0"), ModelError, "another hash than the one saved"),
        (put("output", "values", [0.0] * 10), ModelError, "other outputs than the saved ones"),
        (put("base", None), RequestError, "'base' must be a set of values"),
        (put("base", "recipe", 3), RequestError, "'recipe' must be a set of values"),
        (put("base", "input", {"shape": 3}), RequestError, "its input cannot be read"),
        (put("net", "input", "shape", [1, 99999, 99999]), RequestError, "which is too large"),
        (put("base", "source", "fashion-decoder"), ConvscopeError, "."),
        (put("base", "source", "timm:resnet10t?num_classes=1000000"), RequestError, "larger than 65536"),
        (put("base", "source", "module"), RequestError, "rebuild\\("),
    ],
)  # fmt: skip
def test_a_foreign_recipe_is_refused(
    kept: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        convscope.load(changed(kept, tmp_path, change))


@pytest.mark.parametrize(
    "source",
    [
        "os:system?command=touch%20owned",
        "subprocess:run?args='touch owned'",
        "evil.pt",
        "timm:resnet10t?checkpoint_path=evil.pth",
        "timm:resnet10t?pretrained=1",
        "timm:local-dir:evil",
        "torchvision:resnet18?weights_backbone=1",
        "recipe:elsewhere",
        "fashion?x=1",
    ],
)
def test_a_recipe_runs_no_code_without_trust(kept: Path, tmp_path: Path, source: str) -> None:
    with pytest.raises(UntrustedFile, match="can run code or read other files; pass trust=True"):
        convscope.load(changed(kept, tmp_path, put("base", "source", source)))
    assert not Path("owned").exists()


def test_a_factory_is_built_with_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = tmp_path / "recipenet.py"
    code.write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    made = rewrite(convscope.load("recipenet:make", input="3x8x8"), "kernel_size:5")
    folder = made.save(tmp_path / "out")
    with pytest.raises(UntrustedFile):
        convscope.load(f"recipe:{folder}")
    assert convscope.load(f"recipe:{folder}", trust=True).sha256 == made.net.sha256


def test_rebuild_tells_another_module(tmp_path: Path) -> None:
    saved(CASES["kernel_size"][0], tmp_path)
    other = nn.Sequential(*classifier()[:3], nn.Identity(), *classifier()[4:])  # the same weights, no pool
    with pytest.raises(ModelError, match="saved weights but other outputs"):
        rebuild(tmp_path, other)
    with pytest.raises(ConvscopeError, match="recipe"):
        rebuild(tmp_path, nn.Sequential(nn.Conv2d(3, 8, 3, padding=1)))
