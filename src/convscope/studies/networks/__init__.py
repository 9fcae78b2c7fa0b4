"""Reference networks to train variants of: factories whose arguments are the choices a study varies.

- `small_cnn`: kernel size, padding, pooling, kind of convolution, width, depth; with a decoder for dense output.
- `framed_cnn`: the same behind a frame in which the image is smaller, elsewhere or noisy.
- `all_cnn`: Model C of Springenberg et al. (2015) and the three derived from it.
- `mobilenet`: MobileNet-v1, with separable or full convolutions.
- `text_cnn`: Kim (2014), on one-hot words or embeddings, in both layouts.

A design names one as "convscope.studies.networks:small_cnn"; `build` makes it. Those of the user's own are named the
same way.
"""

from convscope.studies.networks.all_cnn import all_cnn
from convscope.studies.networks.build import build
from convscope.studies.networks.framed import framed_cnn
from convscope.studies.networks.mobilenet import mobilenet
from convscope.studies.networks.small import small_cnn
from convscope.studies.networks.text import text_cnn

__all__ = ["all_cnn", "build", "framed_cnn", "mobilenet", "small_cnn", "text_cnn"]
