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
    test_vit_relpos cait_xxs24_224 coat_tiny convit_tiny convmixer_768_32 cpubone_nano crossvit_tiny_240 csatv2
    cs3darknet_focus_s cspnext_tiny davit_tiny deit_tiny_patch16_224 densenet121 dla46_c dpn48b edgenext_xx_small
    efficientformer_l1 efficientformerv2_s0 efficientvim_m1 efficientvit_b0 efficientvit_m0
    vit_tiny_patch16_dinov3_qkvb fasternet_t0 fastvit_s12 focalnet_tiny_srf gcvit_xxtiny ghostnet_050 hardcorenas_b
    hgnetv2_b0 hiera_tiny_224 hrnet_w18_small iformer_s inception_next_atto inception_v3 lcnetv2_small levit_128s
    lowformer_b0 poolformer_s12 gmixer_12_224 mobilenetv3_small_050 mobilevit_xxs mvitv2_tiny nest_tiny
    nextvit_small pit_xs_224 pvt_v2_b0 rdnet_tiny regnetx_002 repghostnet_050 repvit_m1 res2net50_14w_8s resnest14d
    resnetv2_18 rexnet_100 selecsls42 legacy_seresnet18 sequencer2d_s shvit_s1 skresnet18 starnet_s050
    swiftformer_xs swin_tiny_patch4_window7_224 swinv2_cr_tiny_224 tiny_vit_5m_224 tresnet_m twins_svt_small
    visformer_tiny vit_tiny_r_s16_p8_224 volo_d1_224 ese_vovnet19b_slim_dw legacy_xception xception41p
    xcit_nano_12_p8_224 eca_botnext26ts_256
""".split()  # noqa: SIM905 - the smallest model of its timm module

CASES = (
    "kernel_size:size=5,where=kernel == 3",
    "kernel_size:size=2,where=kernel == 3",
    "padding:kind=reflect",
    "padding:kind=replicate",
    "padding:kind=circular",
    "padding:kind=partial",
    "padding:kind=same",
    "padding:kind=valid",
    "pool:kind=max",
    "pool:kind=average",
    "pool:kind=strided",
    "pool:kind=moved",
    "pool:kind=blur",
    "pool:kind=none",
    "upsample:kind=bilinear",
    "upsample:kind=transposed",
    "upsample:kind=pixel_shuffle",
    "separable:rank=2",
    "bottleneck:rank=8",
    "untie:memory=2",
    "untie:memory=2 | tie",
    "convolutionalize",
    "convolutionalize:stride=16",
    "fold_batch_norm",
    "input_size:HxW,how=resize",
    "input_size:HxW,how=crop",
    "input_size:HxW,how=pad",
    "input_size:HxW,how=tiles",
    "input_size:HxW,how=native",
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
                return
    rows = [row for row in read(given.rows) if row.case in CASES]
    if len(rows) == len(sources()) * len(CASES):
        TABLE.write_text(table(rows), "utf-8")


if __name__ == "__main__":
    main()
