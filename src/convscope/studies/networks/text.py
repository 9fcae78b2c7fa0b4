"""Kim's convolutional network for sentences, with each way to turn words into the input of a convolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from convscope.errors import RequestError, UnknownName, nearest
from convscope.nn import EmbeddingChannels, OneHot, TextConv1d
from convscope.nn.text import LAYOUTS

EMBEDDINGS: Final = ("one-hot", "random", "static", "non-static", "two-channel")
PADDING: Final = 0  # the word that fills up short sentences

Vectors = Tensor | Callable[[int], Tensor]


def text_cnn(
    *,
    vocabulary: int,
    classes: int = 2,
    embedding: str = "random",
    dim: int = 300,
    filters: int = 100,
    widths: Sequence[int] = (3, 4, 5),
    layout: str = "channels",
    dropout: float = 0.5,
    max_norm: float | None = 3.0,
    vectors: Vectors | None = None,
) -> nn.Module:
    """Words, filters over windows of several widths, the maximum of each over the sentence, a linear layer.

    Kim, "Convolutional Neural Networks for Sentence Classification" (EMNLP 2014). All windows that touch the sentence
    count, as in Kim's program, and the weights begin as there.

    Args:
        vocabulary: number of different words; word 0 fills up short sentences, and only their end.
        classes: numbers for each sentence.
        embedding: "one-hot" (no vectors; the convolution sees words); "random" (vectors that start by chance and are
            trained, CNN-rand); "static" (given vectors, kept); "non-static" (given vectors, trained on); "two-channel"
            (both).
        dim: numbers a vector; without meaning for "one-hot".
        filters: for each width.
        widths: words that a window covers.
        layout: "channels", a Conv1d over vectors; or "rows", a Conv2d as wide as a row over an image of rows. They compute
            the same.
        dropout: of the input of the last layer.
        max_norm: the largest length of each class's weights in the last layer; None for any. As Kim counts, whose dropout
            scales down at test and not up in training: the limit is `max_norm` (1 - `dropout`) here. A training keeps to it
            by calling `constrain` after each step.
        vectors: for "static", "non-static" and "two-channel": Tensor [vocabulary, dim], or a function that gives it for
            a dim, as `Data.arguments` has it.

    Returns:
        A module from words `[batch, length]` to `[batch, classes]`.

    Raises:
        UnknownName: there is no such embedding.
        RequestError: the vectors are missing or of another shape, or an argument is wrong.

    Example:
        >>> net = text_cnn(vocabulary=1000, classes=6)
        >>> net(torch.tensor([[5, 8, 13, 0, 0]])).shape
        torch.Size([1, 6])
    """
    if embedding not in EMBEDDINGS:
        raise UnknownName(
            f"embedding={embedding!r} must be one of {', '.join(EMBEDDINGS)}{nearest(str(embedding), EMBEDDINGS)}"
        )
    if layout not in LAYOUTS:
        raise UnknownName(
            f"layout={layout!r} must be one of {', '.join(LAYOUTS)}{nearest(str(layout), LAYOUTS)}"
        )
    words: OneHot | EmbeddingChannels
    if embedding == "one-hot":
        words, row = OneHot(vocabulary, layout, padding_idx=PADDING), vocabulary
    else:
        words, row = _embedding(vocabulary, embedding, dim, layout, vectors), dim
    convs: TextConv1d | RowConvs
    if layout == "channels":
        convs = TextConv1d(words.in_channels, filters, widths, padding="full")
    else:
        convs = RowConvs(words.in_channels, row, filters, widths)
    limit = None if max_norm is None else max_norm * (1 - dropout)
    return _TextNet(words, convs, dropout, MaxNormLinear(convs.out_channels, classes, limit))


class RowConvs(nn.Module):
    """`TextConv1d` with padding "full" for words as rows: Conv2d as wide as a row, each reduced to its maximum.

    - Parameters: filters (in_channels row (sum of widths) + number of widths).

    Args:
        in_channels: channels of the input: 1 for one-hot words, else the number of tables.
        row: numbers a word.
        filters: for each width.
        widths: words that a window covers.

    Example:
        >>> RowConvs(1, 8, filters=10, widths=(2, 3))(torch.zeros(4, 1, 7, 8)).shape
        torch.Size([4, 20])
    """

    def __init__(self, in_channels: int, row: int, filters: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.out_channels = filters * len(widths)
        self.convs = nn.ModuleList(
            nn.Conv2d(in_channels, filters, (width, row), padding=(width - 1, 0)) for width in widths
        )

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """`[batch, in_channels, length, row]`, of which `lengths` words count, to `[batch, filters widths]`."""
        if lengths is not None:
            past = torch.arange(x.shape[-2], device=x.device) >= lengths[:, None]  # [batch, length]
            x = x.masked_fill(past[:, None, :, None], 0.0)
        found = []
        for conv in self.convs:
            y = conv(x).squeeze(-1)  # [batch, filters, window]
            if lengths is not None:
                windows = (lengths + (y.shape[-1] - x.shape[-2])).clamp_min(1)[:, None, None]
                y = y.masked_fill(torch.arange(y.shape[-1], device=y.device) >= windows, float("-inf"))
            found.append(y.amax(-1).relu())
        return torch.cat(found, -1)


class MaxNormLinear(nn.Linear):
    """A linear layer each of whose outputs has weights of a length of at most `max_norm`, once `constrain` has run.

    Example:
        >>> layer = MaxNormLinear(4, 2, max_norm=3.0)
        >>> layer.weight.data.fill_(10.0).shape
        torch.Size([2, 4])
        >>> layer.constrain()
        >>> layer.weight.norm(dim=1)
        tensor([3., 3.], grad_fn=<LinalgVectorNormBackward0>)
    """

    def __init__(self, in_features: int, out_features: int, max_norm: float | None) -> None:
        super().__init__(in_features, out_features)
        if max_norm is not None and not max_norm > 0:
            raise RequestError(f"max_norm={max_norm} must be positive, or None for no limit")
        self.max_norm = max_norm

    @torch.no_grad()
    def constrain(self) -> None:
        """Shortens what is too long."""
        if self.max_norm is not None:
            lengths = self.weight.norm(dim=1, keepdim=True).clamp_min(self.max_norm)
            self.weight.mul_(self.max_norm / lengths)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, max_norm={self.max_norm}"


class _TextNet(nn.Module):
    """Words, convolutions, dropout, classifier; the length of a sentence ends at its first padding."""

    def __init__(
        self, words: nn.Module, convs: TextConv1d | RowConvs, dropout: float, classifier: nn.Module
    ) -> None:
        super().__init__()
        self.words, self.convs = words, convs
        self.dropout, self.classifier = nn.Dropout(dropout), classifier
        for conv in convs.convs:
            nn.init.uniform_(conv.weight, -0.01, 0.01)  # type: ignore[arg-type]
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        nn.init.zeros_(classifier.weight)  # type: ignore[arg-type]
        nn.init.zeros_(classifier.bias)  # type: ignore[arg-type]

    def forward(self, words: Tensor) -> Tensor:
        """Words `[batch, length]` to `[batch, classes]`."""
        if words.shape[-1] == 0:
            words = functional.pad(words, (0, 1))
        lengths = (words != PADDING).sum(-1)  # [batch]
        pooled = self.convs(self.words(words), lengths)  # [batch, filters x widths]
        y: Tensor = self.classifier(self.dropout(pooled))
        return y


def _embedding(
    vocabulary: int, kind: str, dim: int, layout: str, vectors: Vectors | None
) -> EmbeddingChannels:
    if kind == "random":
        layer = EmbeddingChannels(vocabulary, dim, layout, padding_idx=PADDING)
        with torch.no_grad():
            for table in layer._tables():
                table.weight.uniform_(-0.25, 0.25)
                table.weight[PADDING].zero_()
        return layer
    if vectors is None:
        raise RequestError(
            f"embedding={kind!r} needs vectors=, a tensor [{vocabulary}, {dim}]; Data.word_vectors makes them from text"
        )
    given = vectors(dim) if callable(vectors) else vectors
    if given.shape != (vocabulary, dim):
        raise RequestError(
            f"vectors of shape {list(given.shape)} must be [vocabulary, dim], [{vocabulary}, {dim}]"
        )
    tables, frozen = {"static": (1, 1), "non-static": (1, 0), "two-channel": (2, 1)}[kind]
    return EmbeddingChannels.from_pretrained(
        given.float(), layout, tables=tables, frozen=frozen, padding_idx=PADDING
    )
