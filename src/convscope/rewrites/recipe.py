"""How a rewritten network is kept and made again: a folder with its weights, and a recipe of its structure.

    FOLDER/model.safetensors    the weights, of the network as it is now
    FOLDER/recipe.json          the base network's source, the rules, what they decided for each layer; hashes

Nothing in it is code. The base architecture is built by its source, the rules are followed without images and without
verification (each layer gets what was decided for it then), and the saved weights are put in, whose hash is checked. An
output that was kept tells whether the structure is the same as it was.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

import convscope
from convscope import _weights, models
from convscope.errors import ConvscopeError, ConvscopeWarning, ModelError, RequestError
from convscope.graph.record import flatten
from convscope.models import Built, InputSpec, Net, Request
from convscope.rewrites.base import Rule, links
from convscope.rewrites.calibrate import Calibration
from convscope.rewrites.distrust import checked_rule, checked_source, plain_source, read_json, taken
from convscope.rewrites.text import parse
from convscope.rewrites.work import Work
from convscope.store import atomic_write

if TYPE_CHECKING:
    from convscope.rewrites.rewrite import Rewrite

FORMAT = 1
RECIPE, WEIGHTS = "recipe.json", "model.safetensors"
_SHOWN = 16  # values of an output that are kept to compare
_FACTS = ("name", "source", "input", "normalization_known", "trained")
_State: TypeAlias = Mapping[str, Tensor]
_STRUCTURE = ("base", "rules", "where", "edits", "data", "exactness")


# ---------------------------------------------------------------- what is kept


def structure_of(made: Rewrite) -> dict[str, Any]:
    """What the network's structure follows from, weights apart: plain values, which `Net.recipe` holds."""
    base = made.base
    facts = {name: value for name, value in _facts(base).items() if name in _FACTS}
    return {
        "base": {**facts, "recipe": None if base.recipe is None else dict(base.recipe)},
        "rules": [str(rule) for rule in links(made.rule)],
        "where": made.where,
        "edits": [
            {"layer": edit.layer, "rule": edit.rule, "step": edit.step, "resolved": edit.resolved}
            for edit in made.done
        ],
        "data": made.data,
        "exactness": made.exactness,
    }


def recipe_of(made: Rewrite) -> dict[str, Any]:
    """All that `recipe.json` holds but the hash of the file beside it: plain values."""
    structure = structure_of(made)
    structure["base"]["sha256"] = made.base.sha256
    labels = made.net.labels
    return {
        "format": FORMAT,
        "convscope": convscope.__version__,
        "torch": str(torch.__version__),
        **structure,
        "net": {**_facts(made.net), "labels": None if labels is None else list(labels)},
        "sha256": made.net.sha256,
    }


def _facts(net: Net) -> dict[str, Any]:
    """Of a network, without its hash, which takes a look at all its weights."""
    return {
        "name": net.name,
        "source": net.source,
        "input": net.input.to_dict(),
        "normalization_known": net.normalization_known,
        "trained": net.trained,
    }


def save(made: Rewrite, path: str | PathLike[str], *, onnx: bool = False, pt2: bool = False) -> Path:
    """See `Rewrite.save`. The recipe is written last: without it, or beside other weights, the folder is refused."""
    import safetensors.torch

    from convscope.rewrites import export

    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"path={str(path)!r} is a file; give a folder to save the network in.")
    state = {}
    for name, value in made.net.module.state_dict().items():
        if not isinstance(value, Tensor):
            raise RequestError(
                f"{made.net.name} keeps {name!r} ({type(value).__name__}) in its state dict, which safetensors cannot "
                "hold; save the module with torch.save."
            )
        state[name] = value.detach().cpu().contiguous().clone()  # shared tensors become two
    files: dict[str, bytes] = {WEIGHTS: safetensors.torch.save(state, metadata={"format": "pt"})}
    exports = {}
    for wanted, name, make in ((onnx, "model.onnx", export.onnx), (pt2, "model.pt2", export.pt2)):
        if wanted:
            files[name], checked = make(made.net)
            exports[name] = checked.to_dict()
    for name in exports:
        exports[name]["sha256"] = hashlib.sha256(files[name]).hexdigest()
    recipe = recipe_of(made) | {
        "weights_sha256": hashlib.sha256(files[WEIGHTS]).hexdigest(),
        "output": _output(made.net.module, made.net.input),
        "exports": exports,
    }
    text = json.dumps(recipe, indent=1, allow_nan=False)
    for name, data in files.items():
        atomic_write(folder / name, data)
    atomic_write(folder / RECIPE, text + "\n")
    return folder


def _output(module: nn.Module, spec: InputSpec) -> dict[str, Any] | None:
    """Some values of the first output on the example input; None where they are not finite, or change by chance."""
    first, second = (_run(module, spec) for _ in range(2))
    if first is None or second is None or not torch.equal(first, second) or not bool(first.isfinite().all()):
        return None
    places = torch.linspace(0, first.numel() - 1, min(_SHOWN, first.numel())).long()
    values = first.flatten()[places]
    return {"count": first.numel(), "scale": float(first.abs().max()), "values": [float(v) for v in values]}


def _run(module: nn.Module, spec: InputSpec) -> Tensor | None:
    private = Net(module, spec).copy()
    where = next((t.device for t in [*module.parameters(), *module.buffers()]), torch.device("cpu"))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = [y for y in flatten(private(spec.example(device=where))) if y.is_floating_point()]
    return found[0].double().cpu() if found and found[0].numel() else None


# ---------------------------------------------------------------- making it again


def build(request: Request) -> Built:
    """`recipe:FOLDER`: what `Rewrite.save` wrote there."""
    recipe, folder = _read(request.rest)
    state = _weights.read(str(folder / WEIGHTS)).state
    base = _base(recipe, state, request.trust, str(folder / RECIPE))
    return _finished(recipe, folder, state, base)


def rebuild(path: str | PathLike[str], module: nn.Module) -> Net:
    """A saved network whose base was a module of the caller's own, which no source leads to.

    Args:
        path: the folder, or the recipe in it.
        module: the base module as it was built then; its weights do not matter. It stays as it is.

    Raises:
        RequestError: the folder is not what `Rewrite.save` writes, or is damaged.
        ModelError: the module is another one than the recipe was made from.

    Example:
        >>> import tempfile, torch, convscope
        >>> made = convscope.rewrite(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)), "kernel_size:5", input="3x8x8")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     net = rebuild(made.save(folder), torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)))
        >>> net.module[0].kernel_size
        (5, 5)
    """
    recipe, folder = _read(str(path))
    place = str(folder / RECIPE)
    first = _innermost(recipe, place)
    base = Net(module, _spec(taken(first, "base", dict, place), place))
    state = _weights.read(str(folder / WEIGHTS)).state
    with models.preserved(module):
        built = _finished(recipe, folder, state, _followed_base(recipe, base, state, place))
    assert built.input is not None
    return Net(
        built.module,
        built.input,
        built.labels,
        built.name,
        f"recipe:{path}",
        built.trained,
        built.warnings,
        bool(recipe["net"].get("normalization_known")),
        built.recipe,
    )


def _read(path: str) -> tuple[dict[str, Any], Path]:
    """The recipe, checked as far as its form goes, and the folder it lies in."""
    place = Path(path)
    folder = place if place.is_dir() else place.parent
    file = folder / RECIPE if place.is_dir() else place
    recipe = read_json(file)
    if recipe.get("format") != FORMAT:
        raise RequestError(
            f"recipe {str(file)!r} has format {recipe.get('format')!r}, and this convscope {convscope.__version__} reads "
            f"format {FORMAT}; read it with convscope {recipe.get('convscope')!s:.20}."
        )
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise RequestError(f"recipe {str(file)!r} has no {WEIGHTS} beside it; copy the whole folder.")
    with weights.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != taken(recipe, "weights_sha256", str, str(file)):
        raise RequestError(
            f"weights {str(weights)!r} are not the ones that recipe {str(file)!r} was saved with (sha256 {found[:12]}); they "
            "are damaged, or saving was interrupted: save again, or copy the folder again."
        )
    return recipe, folder


def _innermost(structure: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    """The first of the rewrites that led here."""
    while (inner := taken(structure, "base", dict, place).get("recipe")) is not None:
        if not isinstance(inner, dict):
            raise RequestError(f"recipe {place!r} is damaged: 'recipe' must be a set of values.")
        structure = inner
    return structure


def _base(recipe: Mapping[str, Any], state: _State, trust: bool, place: str) -> Net:
    """The network that the last rewrite began with, built from its source and all rewrites before."""
    facts = taken(_innermost(recipe, place), "base", dict, place)
    source = plain_source(taken(facts, "source", str, place))
    if source == "module":
        raise RequestError(
            f"recipe {place!r} was made from a module of your own, which no name leads to; build that module and give it "
            f"to convscope.rewrites.recipe.rebuild({place!r}, module)."
        )
    checked_source(source, trust, place)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvscopeWarning)  # of weights that are about to be replaced
        base = models.load(source, input=_spec(facts, place), trust=trust)
    return _followed_base(recipe, base, state, place)


def _followed_base(structure: Mapping[str, Any], base: Net, state: _State, place: str) -> Net:
    inner = structure["base"].get("recipe")
    return base if inner is None else _follow(_followed_base(inner, base, state, place), inner, state, place)


def _follow(base: Net, structure: Mapping[str, Any], state: _State, place: str) -> Net:
    """Applies the rules as they were applied, for the sake of the structure."""
    rules = [_rule(text, state, place) for text in taken(structure, "rules", list, place)]
    where = taken(structure, "where", str, place)
    settled: list[dict[str, dict[str, Any]]] = [{} for _ in rules]
    for edit in taken(structure, "edits", list, place):
        step = taken(edit, "step", int, place)
        if not 0 <= step < len(settled):
            raise RequestError(
                f"recipe {place!r} is damaged: an edit belongs to rule {step} of {len(rules)}."
            )
        layer = settled[step].setdefault(taken(edit, "layer", str, place), {})
        layer.update(taken(edit, "resolved", dict, place))
    stand_in = None if structure.get("data") is None else base.input.example(2)
    try:
        work = Work(base, where, Calibration(base, stand_in), settled=settled)
        for rule in rules:
            work.run(rule)
        module = work.result()
    except ConvscopeError:
        raise
    except Exception as error:  # sizes that fit nothing, memory that is not there
        raise ModelError(
            f"recipe {place!r} cannot be followed ({type(error).__name__}: {' '.join(str(error).split())[:200]}); it is "
            "damaged, or was made by another version."
        ) from error
    for edit in work.edits:
        if edit.refused and edit.layer in settled[edit.step]:
            raise ModelError(
                f"recipe {place!r} cannot be followed: {edit.rule} refuses layer {edit.layer!r} now, because "
                f"{edit.reason}; the base network is another one than it was."
            )
    return replace(base, module=module, input=work.input)


def _rule(text: Any, state: _State, place: str) -> Rule:
    if not isinstance(text, str):
        raise RequestError(f"recipe {place!r} is damaged: 'rules' must be texts.")
    rule = parse(text)
    for one in links(rule):
        checked_rule(one, state, place)
    return rule


def _finished(recipe: Mapping[str, Any], folder: Path, state: _State, base: Net) -> Built:
    """The network with the structure that the recipe makes and the weights beside it."""
    place = str(folder / RECIPE)
    facts = taken(recipe, "net", dict, place)
    made = _follow(base, recipe, state, place)
    module = made.module
    _put(module, state, place)
    models.set_eval(module)
    if Net(module, made.input).sha256 != recipe.get("sha256"):
        raise ModelError(
            f"recipe {place!r} made a network whose weights have another hash than the one saved; it was "
            "made by another version of convscope, torch or the base model's library."
        )
    spec = _spec(facts, place)
    _compare(module, spec, recipe.get("output"), place)
    labels = facts.get("labels")
    return Built(
        module,
        name=taken(facts, "name", str, place),
        input=spec,
        labels=tuple(map(str, labels)) if isinstance(labels, list) else None,
        trained=facts.get("trained") if isinstance(facts.get("trained"), bool) else None,
        recipe={name: recipe.get(name) for name in _STRUCTURE},
    )


def _put(module: nn.Module, state: _State, place: str) -> None:
    """The saved tensors into the module, whose names and shapes must be theirs."""
    parts = dict(module.named_modules())
    for name, value in state.items():  # a fit to images may have given a layer a bias
        owner, _, leaf = name.rpartition(".")
        if owner in parts and leaf in parts[owner]._parameters and parts[owner]._parameters[leaf] is None:
            parts[owner]._parameters[leaf] = nn.Parameter(torch.empty_like(value), requires_grad=False)
    floating = next((value.dtype for value in state.values() if value.is_floating_point()), None)
    module.to(floating)
    own = module.state_dict()
    odd = [name for name in {**own, **state} if name not in own or name not in state]
    odd += [name for name in own if name in state and own[name].shape != state[name].shape]
    if odd:
        there, here = (list(s[odd[0]].shape) if odd[0] in s else "absent" for s in (state, own))
        raise ModelError(
            f"recipe {place!r} made another structure than the one saved: {odd[0]!r} is {here}, and {there} in the file "
            f"({len(odd)} tensors differ); the base network is another one than it was, or another version."
        )
    module.load_state_dict(dict(state), strict=True)


def _compare(module: nn.Module, spec: InputSpec, kept: Any, place: str) -> None:
    """Whether the network gives what it gave when it was saved."""
    if kept is None:
        return
    found = _output(module, spec)
    loose = 1e-3 if spec.dtype in (torch.float32, torch.float64) else 0.05
    values = taken({"output": kept}, "output", dict, place).get("values")
    same = found is not None and isinstance(values, list) and len(values) == len(found["values"])
    if same:
        assert found is not None
        scale = max(found["scale"], 1e-30)
        same = all(abs(a - b) <= loose * scale for a, b in zip(found["values"], values, strict=True))
    if not same:
        raise ModelError(
            f"recipe {place!r} made a network with the saved weights but other outputs than the saved ones; the base "
            "network's code is another one than it was, or another version."
        )


def _spec(facts: Mapping[str, Any], place: str) -> InputSpec:
    values = taken(facts, "input", dict, place)
    try:
        spec = InputSpec.from_dict(values)
    except ConvscopeError:
        raise
    except Exception as error:  # a missing key, a number where a list is needed
        raise RequestError(
            f"recipe {place!r} is damaged: its input cannot be read ({type(error).__name__}: {error})."
        ) from None
    if spec.channels * spec.size[0] * spec.size[1] > 1 << 26:
        raise RequestError(f"recipe {place!r} asks for an input of {list(spec.shape)}, which is too large.")
    return spec
