"""Words as images: two ways to lay a sentence out for a convolution, and Kim's classifier layer on top.

A sentence of `length` words, each one of V (or each a vector of D numbers), can be laid out

- as **channels**, `[batch, V, length]`: an image one pixel high, one channel a word of the vocabulary. The first
  convolution is a Conv1d with V (or D) input channels; or
- as **rows**, `[batch, 1, length, V]`: a picture in grey, one row a word. The first convolution is a Conv2d with
  1 input channel, whose kernel must be as wide as a row, (k, V): sliding it sideways would mean nothing.

Both compute the same with equally many weights: `Conv2d(1, filters, (k, V))` on rows is `Conv1d(V, filters, k)` on
channels, its weight [filters, 1, k, V] transposed to [filters, V, k].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from convscope.errors import BadInput, RequestError, nearest
from convscope.nn.geometry import check_channels, whole_numbers

LAYOUTS: Final = ("channels", "rows")
ACTIVATIONS: Final = {"relu": functional.relu, "tanh": torch.tanh, None: None}


def _check_layout(layout: str) -> str:
    if layout not in LAYOUTS:
        raise RequestError(f"layout={layout!r} must be 'channels' or 'rows'{nearest(layout, LAYOUTS)}.")
    return layout


def _check_words(words: Tensor, vocabulary: int, layer: nn.Module) -> None:
    """Words are whole numbers; that they lie in the vocabulary is left to torch's look-up."""
    if words.ndim not in (1, 2) or words.dtype not in (torch.int64, torch.int32):
        raise BadInput(
            f"{type(layer).__name__} was given words of shape {tuple(words.shape)} and type {words.dtype}; they must be "
            f"whole numbers below {vocabulary}, [batch, length] or [length]."
        )


def _check_index(index: int | None, vocabulary: int) -> int | None:
    if index is not None and not -vocabulary <= index < vocabulary:
        raise RequestError(f"padding_idx={index} must be a word, from 0 on and below {vocabulary}.")
    return None if index is None else index % vocabulary


class OneHot(nn.Module):
    """One word of V as a vector of V numbers, a single one of them 1.

    Words `[batch, length]`, or `[length]`, become, by layout,

    - "channels": `[batch, V, length]`. The first convolution has **V input channels**: `nn.Conv1d(V, filters, k)`;
    - "rows": `[batch, 1, length, V]`. The first convolution has **1 input channel** and a kernel as wide as a row:
      `nn.Conv2d(1, filters, (k, V))`.

    Either way each filter has V k weights, and picks one of them for each of the k words it sees. A 1x1 convolution
    (k = 1) on "channels" is an embedding: `EmbeddingChannels` computes it without the multiplications by 0.

    - Parameters: none.
    - MACs: none; the first convolution has batch (length - k + 1) filters V k.

    Johnson, Zhang, "Effective Use of Word Order for Text Categorization with Convolutional Neural Networks" (2015).

    Args:
        vocabulary: V, the number of different words.
        layout: "channels" or "rows".
        padding_idx: the word that fills up short sentences: it becomes zeros alone.
        dtype: of the output.

    Attributes:
        in_channels: input channels of the first convolution: V or 1.

    Raises:
        RequestError: an argument is wrong.

    Example:
        >>> OneHot(3)(torch.tensor([0, 2]))
        tensor([[1., 0.],
                [0., 0.],
                [0., 1.]])
        >>> OneHot(3, "rows")(torch.tensor([[0, 2]])).shape, OneHot(3, "rows").in_channels
        (torch.Size([1, 1, 2, 3]), 1)
    """

    def __init__(
        self,
        vocabulary: int,
        layout: str = "channels",
        *,
        padding_idx: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        (self.vocabulary,) = whole_numbers(vocabulary, 1, "vocabulary")
        self.layout = _check_layout(layout)
        self.padding_idx = _check_index(padding_idx, vocabulary)
        self.dtype = torch.get_default_dtype() if dtype is None else dtype
        self.in_channels = vocabulary if layout == "channels" else 1

    def forward(self, words: Tensor) -> Tensor:
        """Lays words out.

        Raises:
            BadInput: they are no whole numbers, or not [batch, length] or [length].
            RuntimeError: a word is not in the vocabulary.
        """
        _check_words(words, self.vocabulary, self)
        words = words.long()
        ones = torch.ones_like(words) if self.padding_idx is None else words != self.padding_idx
        if self.layout == "channels":
            blank = torch.zeros(
                (*words.shape[:-1], self.vocabulary, words.shape[-1]), dtype=self.dtype, device=words.device
            )
            return blank.scatter(-2, words.unsqueeze(-2), ones.unsqueeze(-2).to(self.dtype))
        blank = torch.zeros((*words.shape, self.vocabulary), dtype=self.dtype, device=words.device)
        return blank.scatter(-1, words.unsqueeze(-1), ones.unsqueeze(-1).to(self.dtype)).unsqueeze(-3)

    def output_size(self, input_size: int) -> tuple[int, ...]:
        """Shape of the output, batch apart, for a sentence of this length."""
        (length,) = whole_numbers(input_size, 1, "input_size")
        return (1, length, self.vocabulary) if self.layout == "rows" else (self.vocabulary, length)

    def reset_parameters(self) -> None:
        """There are none."""

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"vocabulary={self.vocabulary}, layout={self.layout!r}{padding}"


class EmbeddingChannels(nn.Module):
    """A learned vector for each word, laid out for a convolution; or several, from tables of their own.

    Words `[batch, length]`, or `[length]`, become, by layout,

    - "channels": `[batch, tables dim, length]`. The first convolution has **tables dim input channels**:
      `nn.Conv1d(tables * dim, filters, k)`;
    - "rows": `[batch, tables, length, dim]`. The first convolution has **tables input channels** and a kernel as wide
      as a row: `nn.Conv2d(tables, filters, (k, dim))`.

    Kim's two-channel model is `tables=2, frozen=1`: both tables start with the same vectors (`from_pretrained`), one
    stays, the other is trained.

    - Parameters: tables vocabulary dim, of which frozen vocabulary dim are not trained.
    - MACs: none; one row is copied for each word and table.

    Kim, "Convolutional Neural Networks for Sentence Classification" (2014).

    Args:
        vocabulary: number of different words.
        dim: numbers for each word.
        layout: "channels" or "rows".
        tables: how many vectors each word has.
        frozen: how many of the tables, from the first on, are not trained.
        padding_idx: the word that fills up short sentences: it starts as zeros and is not trained.
        device, dtype: of the parameters.

    Attributes:
        in_channels: input channels of the first convolution: tables dim or tables.

    Raises:
        RequestError: an argument is wrong.

    Example:
        >>> layer = EmbeddingChannels(1000, 64)
        >>> layer(torch.tensor([[3, 1, 4, 1, 5]])).shape, layer.in_channels
        (torch.Size([1, 64, 5]), 64)
        >>> EmbeddingChannels(1000, 64, "rows", tables=2)(torch.tensor([[3, 1, 4]])).shape
        torch.Size([1, 2, 3, 64])
    """

    def __init__(
        self,
        vocabulary: int,
        dim: int,
        layout: str = "channels",
        *,
        tables: int = 1,
        frozen: int = 0,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        (self.vocabulary,) = whole_numbers(vocabulary, 1, "vocabulary")
        (self.dim,) = whole_numbers(dim, 1, "dim")
        (tables,) = whole_numbers(tables, 1, "tables")
        (self.frozen,) = whole_numbers(frozen, 1, "frozen", least=0)
        if frozen > tables:
            raise RequestError(f"frozen={frozen} must be at most tables={tables}.")
        self.layout = _check_layout(layout)
        self.in_channels = tables * dim if layout == "channels" else tables
        padding = _check_index(padding_idx, vocabulary)
        self.tables = nn.ModuleList(
            nn.Embedding(vocabulary, dim, padding, device=device, dtype=dtype) for _ in range(tables)
        )
        for table in self._tables()[:frozen]:
            table.weight.requires_grad_(False)

    @classmethod
    def from_pretrained(
        cls,
        vectors: Tensor,
        layout: str = "channels",
        *,
        tables: int = 1,
        frozen: int = 0,
        padding_idx: int | None = None,
    ) -> EmbeddingChannels:
        """A layer whose tables all start with these vectors, `[vocabulary, dim]` (copied).

        Raises:
            RequestError: the vectors are not a matrix, or an argument is wrong.

        Example:
            >>> kim = EmbeddingChannels.from_pretrained(torch.randn(100, 8), "rows", tables=2, frozen=1)
            >>> [table.weight.requires_grad for table in kim.tables]
            [False, True]
        """
        if vectors.ndim != 2 or not vectors.is_floating_point():
            raise RequestError(
                f"vectors of shape {tuple(vectors.shape)} must be real numbers, [vocabulary, dim]."
            )
        layer = cls(
            vectors.shape[0],
            vectors.shape[1],
            layout,
            tables=tables,
            frozen=frozen,
            padding_idx=padding_idx,
            device=vectors.device,
            dtype=vectors.dtype,
        )
        with torch.no_grad():
            for table in layer._tables():
                table.weight.copy_(vectors)
        return layer

    def _tables(self) -> list[nn.Embedding]:
        return cast(list[nn.Embedding], list(self.tables))

    def forward(self, words: Tensor) -> Tensor:
        """Lays words out.

        Raises:
            BadInput: they are no whole numbers, or not [batch, length] or [length].
            IndexError: a word is not in the vocabulary.
        """
        _check_words(words, self.vocabulary, self)
        rows = [table(words) for table in self.tables]  # each [batch, length, dim]
        if self.layout == "rows":
            return torch.stack(rows, -3)
        return torch.cat(rows, -1).mT.contiguous()

    def output_size(self, input_size: int) -> tuple[int, ...]:
        """Shape of the output, batch apart, for a sentence of this length."""
        (length,) = whole_numbers(input_size, 1, "input_size")
        return (self.in_channels, length, self.dim) if self.layout == "rows" else (self.in_channels, length)

    def reset_parameters(self) -> None:
        """Starts all tables anew, the frozen ones too, from torch's random state."""
        for table in self._tables():
            table.reset_parameters()

    def extra_repr(self) -> str:
        frozen = f", frozen={self.frozen}" if self.frozen else ""
        return f"layout={self.layout!r}, in_channels={self.in_channels}{frozen}"


class TextConv1d(nn.Module):
    """Filters over windows of several widths, each reduced to its maximum over the sentence.

    For words as channels, `[batch, in_channels, length]` or without batch, the output is
    `[batch, filters (number of widths)]`: for each filter its largest answer to any window, the widths one after the
    other. The length is gone, so that sentences of any length fill the same classifier.

    Its convolutions have `in_channels` input channels: V on `OneHot(V)`, dim on `EmbeddingChannels(V, dim)`,
    tables dim on several tables: that is what their `in_channels` says in the layout "channels".

    - Parameters: filters (in_channels (sum of widths) + number of widths).
    - MACs: batch filters in_channels (sum over widths w of w (length - w + 1)); with padding "same"
      batch filters in_channels length (sum of widths); with "full" w (length + w - 1).

    Kim, "Convolutional Neural Networks for Sentence Classification" (2014).

    Args:
        in_channels: channels of the input.
        filters: for each width; Kim has 100.
        widths: words that a window covers.
        padding: "valid", windows inside the sentence; "same", one around each word; "full", all that touch it.
        activation: "relu", "tanh" or None, before the maximum.
        device, dtype: of the parameters.

    Raises:
        RequestError: an argument is wrong.

    Example:
        >>> net = nn.Sequential(EmbeddingChannels(1000, 64), TextConv1d(64, 100), nn.Linear(300, 2))
        >>> net(torch.randint(1000, (8, 20))).shape
        torch.Size([8, 2])
    """

    def __init__(
        self,
        in_channels: int,
        filters: int = 100,
        widths: Sequence[int] = (3, 4, 5),
        *,
        padding: str = "valid",
        activation: str | None = "relu",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_channels(in_channels, filters, 1)
        self.widths = whole_numbers(widths, len(widths), "widths")
        if not self.widths:
            raise RequestError("widths=() must have at least one number of words.")
        if padding not in ("valid", "same", "full"):
            raise RequestError(f"padding={padding!r} must be 'valid', 'same' or 'full'.")
        if activation not in ACTIVATIONS:
            raise RequestError(f"activation={activation!r} must be 'relu', 'tanh' or None.")
        self.in_channels, self.filters = in_channels, filters
        self.padding, self.activation = padding, activation
        self.convs = nn.ModuleList(
            nn.Conv1d(in_channels, filters, width, device=device, dtype=dtype) for width in self.widths
        )

    @property
    def out_channels(self) -> int:
        """Numbers for each sentence: filters times the number of widths."""
        return self.filters * len(self.widths)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The largest answer of each filter.

        Args:
            x: `[batch, in_channels, length]` or `[in_channels, length]`.
            lengths: number of words of each sentence, `[batch]` (or a single number without batch); the rest of it is
                padding, taken as zeros, and no window lies there alone. With "valid", a sentence shorter than a width
                has the one window it begins.

        Raises:
            BadInput: the shapes do not fit, or with "valid" a width is larger than x.
        """
        if x.ndim not in (2, 3) or x.shape[-2] != self.in_channels:
            raise BadInput(
                f"TextConv1d was given an input of shape {tuple(x.shape)}; it must be "
                f"[batch, {self.in_channels}, length] or [{self.in_channels}, length]."
            )
        self._check_length(x.shape[-1])
        if lengths is not None:
            lengths = self._checked(lengths, x)
            x = x.masked_fill(torch.arange(x.shape[-1], device=x.device) >= lengths[..., None, None], 0)
        found = [
            self._largest(x, conv, width, lengths)
            for conv, width in zip(self.convs, self.widths, strict=True)
        ]
        return torch.cat(found, -1)  # [batch, filters x widths]

    def _largest(self, x: Tensor, conv: nn.Module, width: int, lengths: Tensor | None) -> Tensor:
        before, after = self._sides(width)
        y = conv(functional.pad(x, (before, after)))  # [batch, filters, window]
        if lengths is not None:
            windows = (lengths + (before + after + 1 - width)).clamp_min(1)[..., None, None]
            y = y.masked_fill(torch.arange(y.shape[-1], device=y.device) >= windows, float("-inf"))
        activation = ACTIVATIONS[self.activation]
        largest = y.amax(-1)  # an activation that rises commutes with the maximum, and is cheaper after it
        return largest if activation is None else activation(largest)

    def _sides(self, width: int) -> tuple[int, int]:
        if self.padding == "valid":
            return 0, 0
        return ((width - 1) // 2, width // 2) if self.padding == "same" else (width - 1, width - 1)

    def _check_length(self, length: int) -> None:
        if length < 1 or (self.padding == "valid" and length < max(self.widths)):
            raise BadInput(
                f"a sentence of {length} words is shorter than the widest window, {max(self.widths)}; fill it up, or use "
                f"padding='same' or 'full'."
            )

    def _checked(self, lengths: Tensor, x: Tensor) -> Tensor:
        if lengths.shape != x.shape[:-2]:
            raise BadInput(
                f"lengths of shape {tuple(lengths.shape)} must be {tuple(x.shape[:-2])}: one number a sentence."
            )
        return lengths.to(x.device)

    def output_size(self, input_size: int) -> tuple[int, ...]:
        """Shape of the output, batch apart, for a sentence of this length.

        Raises:
            BadInput: the sentence is shorter than the widest window.
        """
        (length,) = whole_numbers(input_size, 1, "input_size")
        self._check_length(length)
        return (self.out_channels,)

    def reset_parameters(self) -> None:
        """Starts anew, from torch's random state."""
        for conv in self.convs:
            cast(nn.Conv1d, conv).reset_parameters()

    def extra_repr(self) -> str:
        return f"padding={self.padding!r}, activation={self.activation!r}"
