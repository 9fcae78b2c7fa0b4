"""lucent (PyPI torch-lucent 0.1.8) as its own documentation uses it, and nothing else.

Its defaults: `param.image(128)`, Adam at rate 0.05, its standard transforms, a model in eval mode with its
parameters as they come, upsampling to 224 pixels. Only the normalization is the network's own in place of
ImageNet's, at the place in the pipeline where lucent puts it: `preprocess=False` and one more transform.

lucent leaves a hook on every module of the model it is given; they are taken off here, so that a later run
is not slowed by an earlier one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from convscope import _torchvision
from convscope.models import InputSpec

# lucent imports torchvision, whose compiled operators may not fit this torch; it uses none of them.
_torchvision.declare_missing_operators()

from lucent.optvis import objectives, param, render  # noqa: E402
from lucent.optvis import transform as lucent_transform  # noqa: E402

SIDE = 128  # pixels of a picture
FED = 224  # what lucent resizes smaller pictures to


def draw(
    module: nn.Module, spec: InputSpec, layer: str, channel: int, thresholds: Sequence[int], seed: int = 0
) -> dict[int, Tensor]:
    """One channel's picture after each number of steps: steps -> Tensor [3, 128, 128] in [0, 1]."""
    np.random.seed(seed)  # its transforms
    torch.manual_seed(seed)  # its starting noise
    try:
        pictures = render.render_vis(
            module,
            objectives.channel(layer.replace(".", "_"), channel),
            lambda: param.image(SIDE),
            transforms=[*lucent_transform.standard_transforms, spec.normalize],
            thresholds=tuple(thresholds),
            preprocess=False,
            show_image=False,
            progress=False,
        )
    finally:
        release(module)
    return {
        steps: torch.from_numpy(picture[0]).movedim(-1, 0).clone()
        for steps, picture in zip(sorted(thresholds), pictures, strict=True)
    }


def release(module: nn.Module) -> None:
    """Takes lucent's hooks and the weight gradients it gathers off the model."""
    for part in module.modules():
        part._forward_hooks.clear()
    module.zero_grad(set_to_none=True)


def enlarge(pictures: Tensor, side: int = FED) -> Tensor:
    """Pictures at the resolution lucent feeds them at, by its own interpolation."""
    return nn.functional.interpolate(pictures, (side, side), mode="bilinear", align_corners=True)
