"""Every rule on one model of each architecture; whatever comes out is looked at again by `rewrite_oracle`.

    python tests/sweep_rewrites.py --rows rows.jsonl                  # all, writes docs/sweep-rewrites.md
    python tests/sweep_rewrites.py --rows rows.jsonl --seconds 800    # goes on where the file ends, for so long
    python tests/sweep_rewrites.py --rows rows.jsonl --only resnet --cases pool

Weights are random, those that begin as zeros or ones too, so that every branch counts; inputs are as small as the model
takes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

import convscope
from convscope._torchvision import torchvision
from convscope.errors import ConvscopeError, RequestError
from convscope.models import InputSpec, Net
from convscope.rewrites.base import VerificationError
from convscope.rewrites.rewrite import Rewrite, rewrite
from rewrite_oracle import audit, state_of

TORCHVISION = """
    alexnet convnext_tiny densenet121 efficientnet_b0 googlenet inception_v3 maxvit_t mnasnet0_5 mobilenet_v2
    mobilenet_v3_small regnet_y_400mf resnet18 shufflenet_v2_x0_5 squeezenet1_1 swin_t vgg11 vit_b_32
""".split()  # noqa: SIM905 - one of each file of torchvision.models that holds classifiers

TIMM = """
    test_byobnet test_convnext test_efficientnet test_mambaout test_coatnet test_nfnet test_resnet test_vit
    test_vit_relpos cait_xxs24_224 starnet_s050 mobilevit_xxs dla46_c edgenext_xx_small mobilenetv3_small_050
    ese_vovnet19b_slim_dw repghostnet_050 efficientvit_m0 ghostnet_050 regnetx_002 cspnext_tiny cs3darknet_focus_s
    efficientvit_b0 swiftformer_xs efficientformerv2_s0 pvt_v2_b0 fasternet_t0 lcnetv2_small inception_next_atto
    rexnet_100 hardcorenas_b repvit_m1 coat_tiny convit_tiny deit_tiny_patch16_224 hgnetv2_b0 shvit_s1 cpubone_nano
    iformer_s efficientvim_m1 levit_128s densenet121 dpn48b fastvit_s12 visformer_tiny resnest14d resnetv2_18
    legacy_seresnet18 poolformer_s12 skresnet18 tiny_vit_5m_224 hrnet_w18_small csatv2 lowformer_b0 convmixer_768_32
    legacy_xception inception_v3 rdnet_tiny res2net50_14w_8s xception41p davit_tiny focalnet_tiny_srf selecsls42
    tresnet_m nextvit_small
""".split()  # noqa: SIM905 - the smallest model of its timm module, in order of size

CASES = (
    "kernel_size:size=5,where=kernel == 3",
    "kernel_size:size=2,where=kernel == 3",
    "padding:kind=reflect",
    "padding:kind=partial",
    "padding:kind=valid",
    "pool:kind=max",
    "pool:kind=average",
    "pool:kind=strided",
    "pool:kind=moved",
    "pool:kind=blur",
    "pool:kind=none",
    "upsample:kind=transposed",
    "separable:rank=2",
    "bottleneck:rank=8",
    "untie:memory=2 | tie",
    "convolutionalize",
    "convolutionalize:stride=16",
    "fold_batch_norm",
    "input_size:HxW,how=resize",
    "input_size:HxW,how=tiles",
    "input_size:HxW,how=native",
    "algorithm:winograd:F(2,3)",
)
EDGES = (64, 96, 128, 256)  # tried in turn, then the model's own


@dataclass(frozen=True)
class Row:
    """What one rule did to one model.

    Attributes:
        source, input, case: the model, height and width, the rule.
        status: the exactness; "refused" (every layer, or the network); "nothing" (no layer it is about); "raised".
        done, refused: layers.
        told: largest error of any edit, as the rewrite tells.
        found: the same as the oracle found it.
        looks: what the oracle looked at.
        problems: what it found wrong.
        reasons: why layers were refused, with how often; or what was raised.
        seconds: of the rewrite and the audit.
    """

    source: str
    input: int
    case: str
    status: str
    done: int = 0
    refused: int = 0
    told: float | None = None
    found: float | None = None
    looks: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    reasons: tuple[tuple[str, int], ...] = ()
    seconds: float = 0.0


def sources() -> list[str]:
    """All models of the sweep."""
    return [f"torchvision:{name}" for name in TORCHVISION] + [f"timm:{name}" for name in TIMM]


def build(source: str) -> Net:
    """The model, all of its weights random, with the smallest input it takes."""
    scheme, _, name = source.partition(":")
    torch.manual_seed(0)
    module: nn.Module
    models = torchvision().models  # before timm, which imports it
    if scheme == "timm":
        import timm

        module = timm.create_model(name)
        own = module.pretrained_cfg.get("input_size", (3, 224, 224))[1]
    else:
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        module = getattr(models, name)(**options)
        own = 224
    module.eval().requires_grad_(False)
    _shake(module)
    for edge in (*EDGES, own):
        try:
            module(torch.zeros(1, 3, edge, edge))
        except Exception:  # the model's own: too small for it
            continue
        return replace(convscope.load(module, input=InputSpec((3, edge, edge))), name=name)
    raise AssertionError(f"{source} runs at no size")


def _shake(module: nn.Module) -> None:
    """Gives weights that begin equal, and statistics of norms, values of their own."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if not tensor.is_floating_point() or "index" in name or "mask" in name:
            continue
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith("running_mean") or (
            tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all())
        ):
            tensor.add_(0.2 * torch.randn_like(tensor).clamp(-2, 2))


def rule_of(case: str, net: Net) -> str:
    """The rule's text, with an input size a little larger than the network's."""
    height, width = net.input.size
    return case.replace("HxW", f"height={height + 16},width={width + 32}")


def try_one(source: str, net: Net, case: str) -> Row:
    """One rule on one model."""
    start = time.perf_counter()
    before = state_of(net.module)
    row = Row(source, net.input.size[0], case, "raised")
    try:
        made = rewrite(net, rule_of(case, net))
        seen = audit(before, made)
        row = _row(row, made)
        row = replace(row, found=seen.error, looks=tuple(seen.done), problems=tuple(seen.problems))
    except VerificationError as error:
        row = replace(row, reasons=((_short(error), 1),))
    except RequestError as error:
        nothing = "found nothing to do" in str(error)
        reason = "no layer that it is about" if nothing else _short(error)
        row = replace(row, status="nothing" if nothing else "refused", reasons=((reason, 1),))
    except ConvscopeError as error:
        row = replace(row, status="refused", reasons=((_short(error), 1),))
    except Exception as error:  # an error of ours: on record, for somebody to look into
        row = replace(row, reasons=((f"{type(error).__name__}: {_short(error)}", 1),))
    return replace(row, seconds=round(time.perf_counter() - start, 2))


def _row(row: Row, made: Rewrite) -> Row:
    reasons = Counter(_general(edit.reason or "") for edit in made.refused)
    errors = [edit.error for edit in made.done if edit.error is not None]
    return replace(
        row,
        status=made.exactness if made.done else "refused",
        done=len(made.done),
        refused=len(made.refused),
        told=max(errors, default=None),
        reasons=tuple(reasons.most_common(8)),
    )


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:240]


def _general(reason: str) -> str:
    """A reason without the names of layers, so that equal ones are counted together."""
    parts = reason.split("'")
    return "'...'".join(parts[::2])[:160] if len(parts) % 2 else reason[:160]


def read(path: Path) -> list[Row]:
    """The rows of a file that was begun; the last of each model and rule counts."""
    found: dict[tuple[str, str], Row] = {}
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        values = json.loads(line)
        lists = {name: tuple(values[name]) for name in ("looks", "problems")}
        reasons = tuple((text, count) for text, count in values["reasons"])
        row = Row(**{**values, **lists, "reasons": reasons})
        found[row.source, row.case] = row
    return list(found.values())


def run(wanted: list[str], cases: list[str], known: set[tuple[str, str]]) -> Iterator[Row]:
    """All rows that are not known yet, model by model."""
    for source in wanted:
        left = [case for case in cases if (source, case) not in known]
        if not left:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net = build(source)
            for case in left:
                yield try_one(source, net, case)


def main() -> None:
    """Runs what the file lacks; writes the table once nothing is missing."""
    from sweep_rewrites_table import TABLE, table

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=Path, required=True, help="JSON lines; added to what it holds")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--only", default="", help="only models whose name holds this")
    parser.add_argument("--cases", default="", help="only rules whose text holds this")
    parser.add_argument("--write", action="store_true", help="write the page of the models done by now")
    parser.add_argument(
        "--again", action="store_true", help="also those that the file holds, if they went wrong"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = read(given.rows)
    wrong = {(row.source, row.case) for row in rows if row.status == "raised" or row.problems}
    known = {(row.source, row.case) for row in rows} - (wrong if given.again else set())
    stop = time.monotonic() + given.seconds
    wanted = [source for source in sources() if given.only in source]
    with given.rows.open("a", encoding="utf-8") as file:
        for row in run(wanted, [case for case in CASES if given.cases in case], known):
            file.write(json.dumps(asdict(row)) + "\n")
            file.flush()
            said = "; ".join(row.problems) or (
                "; ".join(r for r, _ in row.reasons) if row.status == "raised" else ""
            )
            print(
                f"{row.seconds:6.1f} s  {row.source}  {row.case}  {row.status}  {said}",
                file=sys.stderr,
                flush=True,
            )
            if time.monotonic() > stop:
                break
    rows = [row for row in read(given.rows) if row.case in CASES]
    whole = [source for source in sources() if sum(row.source == source for row in rows) == len(CASES)]
    if whole == sources() or given.write:
        by_key = {(row.source, row.case): row for row in rows}
        TABLE.write_text(table([by_key[source, case] for source in whole for case in CASES]), "utf-8")


if __name__ == "__main__":
    main()
