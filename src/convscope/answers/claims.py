"""What common advice claims, by question: short statements from interview notes and blog posts.

Some are right, some hold only under conditions, some contradict each other, some are wrong. Nothing here is taken for
true: each has a test in the file of its question.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """A statement of common advice.

    Attributes:
        id: a letter for the question and a number; stable.
        text: the statement, in short.
        question: name of the question it belongs to.
    """

    id: str
    text: str
    question: str


_BY_QUESTION = {
    "features": {
        "F1": "the picture of a filter is made by gradient ascent on the input, from noise or an image, repeated until "
        "the activation no longer grows",
        "F2": "without regularization the result is high-frequency noise; regularizers make it smooth and meaningful",
        "F3": "first-layer kernels and the feature maps of a photograph show the same preferences as the optimized "
        "picture",
    },
    "filter-size": {
        "S1": "larger filters make computation faster and memory smaller",
        "S2": "larger filters lose detail and underfit; smaller ones keep detail and overfit",
        "S3": "small filters are better for fine-grained tasks, but miss large patterns",
        "S4": "smaller filters need fewer parameters and train and run faster",
        "S5": "larger filters capture global context, and noise with it",
        "S6": "an NxN filter on an NxN map leaves one value; a 1x1 filter keeps all",
        "S7": "small objects want small filters, large objects large ones",
        "S8": "high-resolution input wants small filters; large images want large filters",
        "S9": "deeper networks want smaller filters; a mix of sizes is common",
        "S10": "stacks of 3x3 replace one larger filter",
    },
    "locally-connected": {
        "L1": "a neuron of a convolution sees only a small region",
        "L2": "a convolution is a locally connected layer with shared weights; against fully connected and unshared "
        "layers it saves parameters",
        "L3": "convolution is invariant to translation",
        "L4": "sharing misses nuances of spatial arrangement: unshared weights win on aligned data, lose on shifted data",
    },
    "text-channels": {
        "T1": "one-hot text has one channel",
        "T2": "embedded text has as many channels as the embedding has dimensions",
        "T3": "filters respond to n-grams",
    },
    "padding": {
        "P1": "zero padding keeps the size",
        "P2": "larger filters need a double or triple border",
        "P3": "'valid' shrinks, 'same' keeps",
        "P4": "without padding a border pixel is visited once, so borders count less; padding evens this out",
        "P5": "padding matters most for dense prediction",
    },
    "upsampling": {
        "U1": "upsampling recovers lost spatial information",
        "U2": "it is needed for high-resolution output",
        "U3": "it improves performance by adding parameters",
        "U4": "nearest repeats rows and columns and is cheapest",
        "U5": "unpooling puts values back where pooling took them",
        "U6": "transposed convolution is the learned way: a larger stride enlarges the output, a larger padding shrinks it",
        "U7": "bilinear averages the four nearest by distance and is smoother",
        "U8": "bed of nails puts the value in one position and zeros elsewhere",
        "U9": "max-unpooling remembers the positions of the maxima",
    },
    "one-by-one": {
        "O1": "a 1x1 convolution reduces (or augments) the number of channels",
        "O2": "alone it is linear; with an activation it adds nonlinearity",
        "O3": "it mixes channels",
        "O4": "its number of filters sets capacity",
        "O5": "it saves computation in a bottleneck",
        "O6": "it allows a deeper or smaller network at equal or higher accuracy",
    },
    "pooling": {
        "K1": "pooling gives translation invariance",
        "K2": "it reduces size and cost downstream",
        "K3": "it selects features and reduces overfitting",
        "K4": "it reduces the number of parameters",
        "K5": "it makes features robust to object size, orientation and position",
        "K6": "max keeps the sharpest response, average a smoother picture",
        "K7": "max for presence of a feature, average for whole-image tasks and noise",
        "K8": "larger windows suit max, smaller ones average",
        "K9": "global average and fractional pooling can be better",
        "K10": "without pooling: more detail, more cost",
        "K11": "a stride-2 convolution in place of 2x2 max pooling adds parameters and keeps or improves accuracy",
    },
    "separable": {
        "D1": "depthwise: one k x k filter a channel; pointwise: 1x1 across channels",
        "D2": "parameters and operations fall by about 1/C_out + 1/k^2",
        "D3": "it is faster",
        "D4": "accuracy is similar, or better",
    },
    "input-size": {
        "I1": "resizing or cropping to the trained size loses detail",
        "I2": "fine-tuning the last layers at the new size does better",
        "I3": "a network with a global pool runs at any size as it is",
    },
    "fully-connected": {
        "C1": "a fully-connected layer is a 1x1 convolution with as many filters as neurons and the same number of "
        "parameters",
        "C2": "it keeps the spatial structure",
        "C3": "it reduces parameters and overfitting, and is faster",
    },
    "fft-winograd": {
        "W1": "FFT pays for large filters and large inputs",
        "W2": "FFT needs more memory, and is wasteful for small filters",
        "W3": "FFT parallelizes well",
        "W4": "FFT is less precise",
        "W5": "Winograd pays for small filters and loses for large ones",
        "W6": "Winograd saves memory",
        "W7": "Winograd saves multiplications but needs transforms",
        "W8": "Winograd is less precise, the more so the larger the tile",
        "W9": "the best choice depends on network and hardware",
    },
}

CLAIMS: dict[str, Claim] = {
    id: Claim(id, text, question) for question, texts in _BY_QUESTION.items() for id, text in texts.items()
}
"""Every claim by its identifier, in order of the questions."""


def claims_of(question: str) -> tuple[Claim, ...]:
    """The claims of a question, in order.

    Example:
        >>> [claim.id for claim in claims_of("separable")]
        ['D1', 'D2', 'D3', 'D4']
    """
    return tuple(claim for claim in CLAIMS.values() if claim.question == question)
