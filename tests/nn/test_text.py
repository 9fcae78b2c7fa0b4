"""Sentences as channels and as rows: what the first convolution sees in each, and Kim's layer by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from convscope.errors import BadInput, RequestError
from convscope.nn.text import EmbeddingChannels, OneHot, TextConv1d

WORDS = torch.tensor([[3, 1, 4, 1, 5, 0], [2, 6, 5, 3, 0, 0]])


# ---------------------------------------------------------------- layouts


def test_one_hot_by_hand() -> None:
    channels, rows = OneHot(7)(WORDS), OneHot(7, "rows")(WORDS)
    wanted = torch.zeros(2, 6, 7)
    for sentence in range(2):
        for at in range(6):
            wanted[sentence, at, WORDS[sentence, at]] = 1
    assert torch.equal(rows, wanted[:, None])  # [batch, 1, length, V]
    assert torch.equal(channels, wanted.mT)  # [batch, V, length]
    assert channels.is_contiguous()
    assert torch.equal(OneHot(7)(WORDS[0]), channels[0])
    assert torch.equal(OneHot(7, "rows")(WORDS[0].int()), rows[0])
    blank = OneHot(7, padding_idx=0)(WORDS)
    assert torch.equal(blank.sum(1), (WORDS != 0).float())
    assert OneHot(7, padding_idx=-1).padding_idx == 6
    assert torch.equal(OneHot(7, "rows", padding_idx=0)(WORDS)[:, 0].mT, blank)
    for layout, layer in (("channels", OneHot(7)), ("rows", OneHot(7, "rows"))):
        assert layer.output_size(6) == tuple(layer(WORDS).shape[1:])
        assert layer.layout == layout
    assert OneHot(7, dtype=torch.bfloat16)(WORDS).dtype == torch.bfloat16


def test_the_first_convolution_has_v_or_1_input_channels() -> None:
    channels, rows = OneHot(7, dtype=torch.float64), OneHot(7, "rows", dtype=torch.float64)
    assert (channels.in_channels, rows.in_channels) == (7, 1)
    on_channels = nn.Conv1d(channels.in_channels, 5, 3, dtype=torch.float64)
    on_rows = nn.Conv2d(rows.in_channels, 5, (3, 7), dtype=torch.float64)
    assert on_channels.weight.numel() == on_rows.weight.numel() == 5 * 7 * 3
    with torch.no_grad():
        on_rows.weight.copy_(on_channels.weight.mT[:, None])  # [filter, 1, k, V]
        on_rows.bias.copy_(on_channels.bias)  # type: ignore[union-attr, arg-type]
    torch.testing.assert_close(on_rows(rows(WORDS)).squeeze(-1), on_channels(channels(WORDS)))
    with pytest.raises(RuntimeError, match="channels"):
        nn.Conv1d(1, 5, 3, dtype=torch.float64)(channels(WORDS))
    with pytest.raises(RuntimeError, match="channels"):
        nn.Conv2d(7, 5, (3, 7), dtype=torch.float64)(rows(WORDS))


def test_a_1x1_convolution_on_one_hot_is_an_embedding() -> None:
    conv = nn.Conv1d(7, 4, 1, bias=False)
    layer = EmbeddingChannels.from_pretrained(conv.weight[:, :, 0].mT)
    torch.testing.assert_close(layer(WORDS), conv(OneHot(7)(WORDS)))


@pytest.mark.parametrize("tables", [1, 2, 3])
def test_the_first_convolution_on_embeddings(tables: int) -> None:
    torch.manual_seed(1)
    channels = EmbeddingChannels(7, 4, tables=tables, dtype=torch.float64)
    rows = EmbeddingChannels(7, 4, "rows", tables=tables, dtype=torch.float64)
    rows.load_state_dict(channels.state_dict())
    assert (channels.in_channels, rows.in_channels) == (4 * tables, tables)
    assert channels.output_size(6) == channels(WORDS).shape[1:] == (4 * tables, 6)
    assert rows.output_size(6) == rows(WORDS).shape[1:] == (tables, 6, 4)
    on_channels = nn.Conv1d(channels.in_channels, 5, 3, dtype=torch.float64)
    on_rows = nn.Conv2d(rows.in_channels, 5, (3, 4), dtype=torch.float64)
    with torch.no_grad():
        on_rows.weight.copy_(on_channels.weight.unflatten(1, (tables, 4)).mT)  # [filter, table, k, dim]
        on_rows.bias.copy_(on_channels.bias)  # type: ignore[union-attr, arg-type]
    torch.testing.assert_close(on_rows(rows(WORDS)).squeeze(-1), on_channels(channels(WORDS)))
    for at, table in enumerate(channels.tables):
        torch.testing.assert_close(channels(WORDS)[:, 4 * at : 4 * at + 4], table(WORDS).mT)
    assert torch.equal(channels(WORDS[0]), channels(WORDS)[0])
    assert torch.equal(rows(WORDS[0].int()), rows(WORDS)[0])


def test_kims_two_channels() -> None:
    vectors = torch.randn(7, 4)
    layer = EmbeddingChannels.from_pretrained(vectors, "rows", tables=2, frozen=1, padding_idx=0)
    assert layer.in_channels == 2
    static, tuned = layer.tables
    assert torch.equal(static.weight, vectors)
    assert torch.equal(tuned.weight, vectors)
    assert static.weight.data_ptr() != tuned.weight.data_ptr() != vectors.data_ptr()
    nn.Conv2d(2, 3, (2, 4))(layer(WORDS)).sum().backward()
    assert static.weight.grad is None
    assert tuned.weight.grad is not None
    assert not tuned.weight.grad[0].any()  # the padding word does not learn
    assert tuned.weight.grad[1].any()
    assert [p.numel() for p in layer.parameters() if p.requires_grad] == [28]
    layer.reset_parameters()
    assert not torch.equal(static.weight, vectors)
    assert not static.weight[0].any()


# ---------------------------------------------------------------- Kim's layer


def _by_hand(layer: TextConv1d, x: Tensor, length: int) -> Tensor:
    """One sentence [in_channels, length], loops over windows."""
    before = {"valid": lambda w: 0, "same": lambda w: (w - 1) // 2, "full": lambda w: w - 1}[layer.padding]
    after = {"valid": lambda w: 0, "same": lambda w: w // 2, "full": lambda w: w - 1}[layer.padding]
    found = []
    for conv, width in zip(layer.convs, layer.widths, strict=True):
        padded = functional.pad(x[:, :length], (before(width), max(after(width), width - length)))
        starts = range(max(length + before(width) + after(width) - width + 1, 1))
        windows = [padded[:, at : at + width] for at in starts]
        assert isinstance(conv, nn.Conv1d)
        assert conv.bias is not None
        answers = torch.stack([(conv.weight * window).sum((1, 2)) + conv.bias for window in windows])
        found.append(
            {"relu": torch.relu, "tanh": torch.tanh, None: lambda y: y}[layer.activation](answers).amax(0)
        )
    return torch.cat(found)


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=3),
    st.sampled_from(["valid", "same", "full"]),
    st.sampled_from(["relu", "tanh", None]),
    st.lists(st.integers(1, 8), min_size=1, max_size=3),
)
def test_max_over_time(widths: list[int], padding: str, activation: str | None, lengths: list[int]) -> None:
    layer = TextConv1d(3, 4, widths, padding=padding, activation=activation, dtype=torch.float64)
    x = torch.randn(len(lengths), 3, 8, dtype=torch.float64)
    wanted = torch.stack([_by_hand(layer, sentence, 8) for sentence in x])
    torch.testing.assert_close(layer(x), wanted)
    torch.testing.assert_close(layer(x[0]), wanted[0])
    for at, length in enumerate(lengths):
        for n in range(length, 9):
            x[at, :, n:] = torch.nan  # nothing of the rest may be seen
    wanted = torch.stack([_by_hand(layer, sentence, n) for sentence, n in zip(x, lengths, strict=True)])
    torch.testing.assert_close(layer(x, torch.tensor(lengths)), wanted)
    torch.testing.assert_close(layer(x[0], torch.tensor(lengths[0])), wanted[0])
    assert layer.output_size(8) == (layer.out_channels,) == (4 * len(widths),)


def test_every_layout_fits_kims_layer() -> None:
    for words in (OneHot(7), EmbeddingChannels(7, 4), EmbeddingChannels(7, 4, tables=2)):
        layer = TextConv1d(words.in_channels, 5, (1, 2))
        assert layer(words(WORDS)).shape == (2, 10)
        assert [conv.in_channels for conv in layer.convs] == [words.in_channels] * 2


def test_reprs_and_starting_anew() -> None:
    assert repr(OneHot(7, padding_idx=0)) == "OneHot(vocabulary=7, layout='channels', padding_idx=0)"
    assert "layout='rows', in_channels=2, frozen=1" in repr(
        EmbeddingChannels(7, 4, "rows", tables=2, frozen=1)
    )
    layer = TextConv1d(3, 4)
    assert "padding='valid', activation='relu'" in repr(layer)
    for parameter in layer.parameters():
        nn.init.constant_(parameter, 9.0)
    layer.reset_parameters()
    assert all(parameter.abs().max() < 1 for parameter in layer.parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OneHot(0), "vocabulary=0 must be"),
        (lambda: OneHot(7, "row"), "layout='row' must be 'channels' or 'rows'; did you mean 'rows'?"),
        (lambda: OneHot(7, padding_idx=7), "padding_idx=7 must be a word, from 0 on and below 7"),
        (lambda: OneHot(7)(WORDS.float()), "was given words of shape (2, 6) and type torch.float32"),
        (lambda: EmbeddingChannels(7, 4)(WORDS[None]), "was given words of shape (1, 2, 6)"),
        (lambda: EmbeddingChannels(7, 0), "dim=0 must be"),
        (lambda: EmbeddingChannels(7, 4, tables=2, frozen=3), "frozen=3 must be at most tables=2"),
        (lambda: EmbeddingChannels.from_pretrained(WORDS), "vectors of shape (2, 6) must be real numbers"),
        (lambda: TextConv1d(0), "in_channels=0 must be"),
        (lambda: TextConv1d(3, 4, ()), "widths=() must have at least one"),
        (lambda: TextConv1d(3, 4, (0,)), "widths=(0,) must be"),
        (lambda: TextConv1d(3, padding="reflect"), "padding='reflect' must be 'valid', 'same' or 'full'"),
        (lambda: TextConv1d(3, activation="gelu"), "activation='gelu' must be 'relu', 'tanh' or None"),
        (lambda: TextConv1d(3)(torch.zeros(1, 3, 4)), "4 words is shorter than the widest window, 5"),
        (lambda: TextConv1d(3).output_size(4), "4 words is shorter than the widest window, 5"),
        (lambda: TextConv1d(3)(torch.zeros(1, 2, 9)), "it must be [batch, 3, length] or [3, length]"),
        (lambda: TextConv1d(3)(torch.zeros(2, 3, 9), torch.tensor(4)), "lengths of shape () must be (2,)"),
    ],
)
def test_wrong_arguments(make: Callable[[], object], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        make()
    assert message in str(caught.value)
    assert isinstance(caught.value, BadInput) or "given" not in message


def test_words_outside_the_vocabulary() -> None:
    with pytest.raises(RuntimeError, match="out of bounds"):
        OneHot(6)(WORDS)
    with pytest.raises(IndexError):
        EmbeddingChannels(6, 4)(WORDS)
