"""Two small networks trained on Fashion-MNIST, embedded with their weights: `load("fashion")`, `load("fashion-decoder")`.

The embedded default has hardly a dense spatial convolution, no max pool, no fully-connected stack and no decoder.
These have little else, so that every design choice finds a trained layer to act on, in milliseconds on a CPU.
`tools/train_fashion.py` trained them; `fashion_mnist/fashion.json` and `fashion_mnist/fashion-decoder.json` say how,
and what they reach on the 10,000 test images.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from itertools import pairwise

from safetensors.torch import load_file
from torch import nn

from convscope.data.fashion import FOLDER, LABELS
from convscope.models import Built, InputSpec, Request

SPEC = InputSpec((1, 28, 28), mean=(0.286,), std=(0.353,))  # of the pixels of the training images


def classifier() -> nn.Sequential:
    """A VGG in small, with new weights: three blocks of two dense 3x3 convolutions, then two fully-connected layers.

    Input `[batch, 1, 28, 28]`, output `[batch, 10]`, the logits of `LABELS`. 482,538 parameters, 37.5 million MACs an
    image.

    Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition" (ICLR 2015);
    batch norm after each convolution: Ioffe, Szegedy (ICML 2015).

    Example:
        >>> [name for name, _ in classifier().block1.named_children()]
        ['conv1', 'bn1', 'relu1', 'conv2', 'bn2', 'relu2', 'pool']
    """
    head = {
        "flatten": nn.Flatten(),  # [batch, 128, 3, 3] to [batch, 1152]
        "fc1": nn.Linear(1152, 192),
        "relu": nn.ReLU(),
        "fc2": nn.Linear(192, len(LABELS)),
    }
    return _named(
        block1=_named(**_convolutions(1, 32, 64), pool=nn.MaxPool2d(2)),  # 28 to 14 pixels
        block2=_named(**_convolutions(64, 64, 64), pool=nn.MaxPool2d(2)),  # 14 to 7
        block3=_named(**_convolutions(64, 96, 128), pool=nn.MaxPool2d(2)),  # 7 to 3
        head=_named(**head),
    )


def decoder() -> nn.Sequential:
    """An encoder-decoder that takes noise out of an image, with new weights.

    Input `[batch, 1, height, width]`, normalized; output the clean image, of the same shape, in [0, 1] but for
    overshoot. Height and width are any multiples of 4. 69,921 parameters, 11.1 million MACs at 28x28.

    Made so that ways to upsample can be compared: nothing leads around the 7x7 bottleneck, so that all detail comes
    through the two upsamplings; each has as many channels as the max pool it mirrors (as max unpooling needs), and a
    convolution right behind it (with which nearest is also a transposed convolution or a pixel shuffle, exactly).

    Example:
        >>> decoder().decoder2.up
        Upsample(scale_factor=2.0, mode='nearest')
    """
    return _named(
        encoder1=_named(**_convolutions(1, 16, 16), pool=nn.MaxPool2d(2)),  # 28 to 14 pixels
        encoder2=_named(**_convolutions(16, 32, 32), pool=nn.MaxPool2d(2)),  # 14 to 7
        middle=_named(**_convolutions(32, 64, 32)),
        decoder2=_named(up=nn.Upsample(scale_factor=2, mode="nearest"), **_convolutions(32, 32, 16)),
        decoder1=_named(up=nn.Upsample(scale_factor=2, mode="nearest"), **_convolutions(16, 16)),
        output=nn.Conv2d(16, 1, 3, padding=1),
    )


def _convolutions(*channels: int) -> Mapping[str, nn.Module]:
    """conv1, bn1, relu1, conv2, ... through these channels; the bias is the batch norm's."""
    layers: dict[str, nn.Module] = {}
    for number, (before, after) in enumerate(pairwise(channels), start=1):
        layers[f"conv{number}"] = nn.Conv2d(before, after, 3, padding=1, bias=False)
        layers[f"bn{number}"] = nn.BatchNorm2d(after)
        layers[f"relu{number}"] = nn.ReLU()
    return layers


def _named(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


# ---------------------------------------------------------------- for `load`


def fashion(request: Request) -> Built:
    """What `load("fashion")` gives: the classifier with its trained weights, stored in half precision."""
    module = classifier()
    module.load_state_dict(load_file(FOLDER / "fashion.safetensors"))
    return Built(module, name=request.rest, input=SPEC, labels=LABELS, trained=True)


def fashion_decoder(request: Request) -> Built:
    """What `load("fashion-decoder")` gives: the encoder-decoder with its trained weights, stored in half precision."""
    module = decoder()
    module.load_state_dict(load_file(FOLDER / "fashion-decoder.safetensors"))
    return Built(module, name=request.rest, input=SPEC, trained=True)
