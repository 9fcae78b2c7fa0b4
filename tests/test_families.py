"""One model of every torchvision family and of many timm families loads and runs; `make sweep` takes all."""

from __future__ import annotations

import pytest
import torch

import sweep_models
from convscope.models import load

TORCHVISION = """
    alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 maxvit_t
    mnasnet0_5 mobilenet_v2 mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18 resnext50_32x4d
    shufflenet_v2_x0_5 squeezenet1_1 swin_t swin_v2_t vgg11 vgg16_bn vit_b_32 wide_resnet50_2
""".split()  # noqa: SIM905

TIMM = """
    resnet18 resnetv2_50 seresnet50 legacy_seresnet18 res2net50_14w_8s resnest14d skresnet18 vgg11
    vgg19_bn densenet121 dla34 dpn48b cspresnet50 darknet53 vovnet39a ese_vovnet19b_dw hrnet_w18_small
    selecsls42 xception41 inception_v3 inception_v4 inception_resnet_v2 inception_next_tiny nasnetalarge
    pnasnet5large mobilenetv1_100 mobilenetv2_050 mobilenetv3_small_050 mobilenetv4_conv_small
    tf_efficientnet_lite0 efficientnetv2_rw_t ghostnet_050 mnasnet_small hardcorenas_a rexnet_100
    tinynet_e lcnet_035 convnext_atto convnextv2_atto convmixer_768_32 mixer_s32_224 regnetx_002
    regnety_002 repvgg_a0 repghostnet_050 mobileone_s0 fastvit_t8 nf_regnet_b0 dm_nfnet_f0 tresnet_m
    vit_tiny_patch16_224 deit_tiny_patch16_224 beit_base_patch16_224 swin_tiny_patch4_window7_224
    swinv2_tiny_window8_256 maxvit_tiny_tf_224 coatnet_nano_cc_224 poolformer_s12 pvt_v2_b0
    twins_pcpvt_small xcit_nano_12_p16_224 cait_xxs24_224 levit_128s efficientformer_l1
    edgenext_xx_small mobilevit_xxs focalnet_tiny_srf
""".split()  # noqa: SIM905


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str) -> None:
    outcome = sweep_models.try_one(f"torchvision:{name}", "")
    assert outcome.error == ""
    assert outcome.output == (1, 1000)


@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str) -> None:
    outcome = sweep_models.try_one(f"timm:{name}", "")
    assert outcome.error == ""
    assert outcome.output[-1] == 1000


def test_families_are_as_many_as_said() -> None:
    families = dict(sweep_models.sources())
    chosen = {families[f"timm:{name}"] for name in TIMM}
    assert len(chosen) >= 40
    every = {family for source, family in families.items() if source.startswith("torchvision:")}
    assert {families[f"torchvision:{name}"] for name in TORCHVISION} == every


@pytest.mark.parametrize(
    ("source", "size"),
    [
        ("torchvision:resnet18", "40x56"),
        ("timm:tf_efficientnet_lite0", "1x28x28"),
        ("timm:densenet121", "5x48x64"),
    ],
)
def test_other_inputs_run_for_real(source: str, size: str) -> None:
    net = load(source, input=size)
    with torch.no_grad():
        assert net.copy()(net.input.example()).shape == (1, 1000)


@pytest.mark.sweep
@pytest.mark.timeout(7200)
def test_the_whole_registry() -> None:
    outcomes = sweep_models.run(sweep_models.sources())
    sweep_models.TABLE.write_text(sweep_models.table(outcomes), "utf-8")
    failed = [outcome for outcome in outcomes if outcome.error]
    assert not [outcome for outcome in failed if outcome.source.startswith("torchvision:")]
    assert len(failed) < len(outcomes) / 50
