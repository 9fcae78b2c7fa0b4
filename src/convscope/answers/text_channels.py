"""Text: how many channels words have, and what n-gram each filter of a trained text network looks for.

A small network (Kim, 2014) is trained on the embedded definitions. Before its maximum over the sentence a filter gives each
window the sum of a score for every word in it, so that the n-gram it likes best is the best word at each position: found
exactly, found by gradient ascent on the vectors of the words, and found among the sentences.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from convscope.answers.asked import Asked
from convscope.answers.base import Draft, fill
from convscope.answers.verdicts.text_channels import findings
from convscope.measures.figures import Sheet
from convscope.nn import EmbeddingChannels
from convscope.studies.data import Data, dataset
from convscope.studies.networks import build, text_cnn
from convscope.studies.networks.text import EMBEDDINGS, PADDING
from convscope.studies.settings import Training
from convscope.studies.training import train

PARTS = ("layouts", "filters")

_WIDTHS = (2, 3, 4)
_VOCABULARY, _DIM = 50, 12  # of the networks whose channels are counted
_FACTORY = "convscope.studies.networks:text_cnn"
_STEPS = 100  # of the gradient ascent
_NOTE = "Networks of text are trained here, on the embedded definitions; the network in the conditions plays no part."


def answer(asked: Asked) -> Draft:
    """See the module."""
    same = asked.example("fashion")  # whatever network is asked, nothing depends on it
    layouts = asked.part("layouts", _layouts, net=same)
    filters = asked.part("filters", lambda: _filters(asked.quick, asked.seed), net=same)
    return Draft(
        statement=_statement(layouts, filters),
        findings=tuple(findings(layouts, filters)),
        tables=tuple(_tables(layouts, filters)),
        notes=(_NOTE,),
        data=filters["source"],
    )


# ---------------------------------------------------------------- measured


def _layouts() -> dict[str, Any]:
    """Channels of the first convolution for each way to give it words; that both layouts compute the same."""
    rows = []
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(_VOCABULARY, _DIM, generator=generator)
    words = torch.randint(2, _VOCABULARY, (3, 9), generator=generator)
    for embedding in EMBEDDINGS:
        nets = {
            layout: text_cnn(
                vocabulary=_VOCABULARY,
                embedding=embedding,
                dim=_DIM,
                filters=5,
                widths=_WIDTHS,
                layout=layout,
                vectors=vectors,
            )
            for layout in ("channels", "rows")
        }
        apart = _same(nets["channels"], nets["rows"], words)
        for layout, net in nets.items():
            first = _convolutions(net)[1]
            rows.append(
                {
                    "embedding": embedding,
                    "layout": layout,
                    "channels": first.in_channels,
                    "weight": list(first.weight.shape),
                    "apart": apart,
                }
            )
    return {"rows": rows, "vocabulary": _VOCABULARY, "dim": _DIM}


def _convolutions(net: nn.Module) -> list[Any]:
    return list(net.get_submodule("convs.convs").children())


@torch.no_grad()
def _same(channels: nn.Module, rows: nn.Module, words: Tensor) -> float:
    """How far apart what filters find is in the two layouts, given the same weights."""
    for one, other in zip(_convolutions(channels), _convolutions(rows), strict=True):
        one.weight.normal_(generator=torch.Generator().manual_seed(0))
        # [filter, tables x number, word] as [filter, table, word, number]
        tables = other.in_channels
        weight = one.weight.unflatten(1, (tables, -1)).transpose(2, 3)
        other.weight.copy_(weight)
        other.bias.copy_(one.bias)
    for table, like in zip(rows.words.parameters(), channels.words.parameters(), strict=True):  # type: ignore[union-attr]
        table.copy_(like)
    found = [net.convs(net.words(words)) for net in (channels, rows)]  # type: ignore[operator]
    return float((found[0] - found[1]).abs().max())


def _filters(quick: bool, seed: int) -> dict[str, Any]:
    """A small network trained on definitions, and each of its filters."""
    data = dataset("glosses", limit=4000 if quick else 16000, test_limit=1000, most_words=4000, length=24)
    arguments = {"dim": 24, "filters": 6 if quick else 16, "widths": _WIDTHS}
    net = build(_FACTORY, arguments, offered=data.arguments, seed=seed)
    made = train(
        net, data, Training(epochs=4, batch=50, optimizer="adadelta", schedule="constant"), seed=seed
    )
    rows = read(made.module, data)
    return {
        "rows": rows,
        "accuracy": made.test_accuracy,
        "chance": float(torch.bincount(data.train.targets).max()) / len(data.train),
        "sentences": len(data.train),
        "source": f"{len(data.train):,} definitions of WordNet",
    }


@torch.no_grad()
def read(net: nn.Module, data: Data) -> list[dict[str, Any]]:
    """What each filter of a text network looks for.

    Args:
        net: a `text_cnn` of one embedding, as channels.
        data: the sentences it was trained on.

    Returns:
        For each filter its width, the class its feature speaks for most, the n-grams of the data that excite it most, the
        best of all n-grams, what gradient ascent on vectors comes to, and how its response comes about.
    """
    words, classifier = net.get_submodule("words"), net.get_submodule("classifier")
    assert isinstance(words, EmbeddingChannels)
    assert isinstance(classifier, nn.Linear)
    table = next(words.tables.parameters()).detach()  # [word, number]
    sentences = data.train.inputs
    assert isinstance(sentences, Tensor)
    speaks = classifier.weight.argmax(0)  # class of each feature, [feature]
    rows: list[dict[str, Any]] = []
    for conv in _convolutions(net):
        scores = torch.einsum("vd,fdk->fkv", table, conv.weight)  # of a word at a place in the window
        windows = _windows(sentences, conv.kernel_size[0])  # [window, place]
        for number in range(conv.out_channels):
            score = scores[number]  # [place, word]
            parts = score.gather(1, windows.T)  # [place, window]
            told = _filter(score, parts, windows, float(conv.bias[number]), data.words)
            climbed = _climb(conv, number, table)
            rows.append(
                {
                    "width": conv.kernel_size[0],
                    "filter": number,
                    "class": data.classes[int(speaks[len(rows)])],
                    "climbed": " ".join(data.words[k] for k in climbed),
                    **told,
                }
            )
    return rows


def _windows(sentences: Tensor, width: int) -> Tensor:
    """All different n-grams that lie inside a sentence and have no unknown word, [window, place]."""
    every = sentences.unfold(1, width, 1).flatten(0, 1)
    return every[(every > PADDING + 1).all(1)].unique(dim=0)


def _filter(
    score: Tensor, parts: Tensor, windows: Tensor, bias: float, words: tuple[str, ...]
) -> dict[str, Any]:
    """One filter on all n-grams of the data.

    Args:
        score: of each word at each place, [place, word].
        parts: the scores of the n-grams' words, [place, window].
        windows: the n-grams, [window, place].
        bias: of the filter.
        words: the vocabulary.
    """
    response = parts.sum(0) + bias
    top = response.topk(min(3, len(response)))
    gain = parts - parts.mean(1, keepdim=True)  # over what a window has on average at that place
    leading = gain[:, top.indices]
    share = float((leading.amax(0) / leading.sum(0).clamp(min=1e-9)).mean())
    backwards = score.gather(1, windows[top.indices].flip(1).T).sum(0) + bias
    known = score[:, PADDING + 2 :]
    best = known.argmax(1) + PADDING + 2
    return {
        "top": [" ".join(words[k] for k in windows[place].tolist()) for place in top.indices],
        "response": float(top.values[0]),
        "typical": float(response.mean()),
        "spread": float(response.std()),
        "best": " ".join(words[k] for k in best.tolist()),
        "most": float(known.amax(1).sum() + bias),
        "share": share,
        "backwards": float((backwards - response.mean()).mean() / (top.values - response.mean()).mean()),
        "exact": [int(k) for k in best.tolist()],
    }


def _climb(conv: nn.Conv1d, number: int, table: Tensor) -> list[int]:
    """Gradient ascent on the vectors of a window, each kept as long as a word's on average; the nearest words, by angle."""
    size = float(table[PADDING + 2 :].norm(dim=1).mean())
    x = torch.randn(1, conv.in_channels, conv.kernel_size[0], generator=torch.Generator().manual_seed(number))
    x = x * (size / x.norm(dim=1, keepdim=True))
    weight, bias = conv.weight[number : number + 1].detach(), conv.bias[number : number + 1].detach()  # type: ignore[index]
    for _ in range(_STEPS):
        with torch.enable_grad():
            x.requires_grad_(True)
            (slope,) = torch.autograd.grad(nn.functional.conv1d(x, weight, bias).sum(), x)
        x = x.detach() + 0.1 * size * slope / slope.norm().clamp(min=1e-12)
        x = x * (size / x.norm(dim=1, keepdim=True))
    known = table[PADDING + 2 :]
    angle = (known / known.norm(dim=1, keepdim=True).clamp(min=1e-12)) @ x[0]  # [word, place]
    return [int(k) + PADDING + 2 for k in angle.argmax(0)]


# ---------------------------------------------------------------- shown


def _statement(layouts: dict[str, Any], filters: dict[str, Any]) -> str:
    by = {(row["embedding"], row["layout"]): row["channels"] for row in layouts["rows"]}
    row = max(filters["rows"], key=lambda row: (row["response"] - row["typical"]) / max(row["spread"], 1e-9))
    told = {
        "rows": by["one-hot", "rows"],
        "channels": by["one-hot", "channels"],
        "vocabulary": layouts["vocabulary"],
        "dim": layouts["dim"],
        "embedded": by["random", "channels"],
        "accuracy": filters["accuracy"],
        "sentences": filters["sentences"],
        "width": row["width"],
        "class": row["class"],
        "top": row["top"][0],
        "best": row["best"],
    }
    say = (
        "Of {vocabulary} words one-hot text has {rows} channel as rows and {channels} as channels; embedded in {dim} numbers it "
        "has {embedded} as channels. In a network trained on {sentences} definitions ({accuracy:.1%} right) the most selective "
        "filter, of {width} words and for “{class}”, answers most to “{top}” in the data, and would to “{best}” of all."
    )
    return fill(say, told)


def _tables(layouts: dict[str, Any], filters: dict[str, Any]) -> list[Sheet]:
    rows: tuple[tuple[str, ...], ...] = tuple(
        (row["embedding"], row["layout"], str(row["channels"]), " x ".join(map(str, row["weight"])))
        for row in layouts["rows"]
    )
    title = f"first convolution on {layouts['vocabulary']} words, vectors of {layouts['dim']}"
    made = [Sheet(title, ("words", "laid out as", "input channels>", "weight>"), rows)]
    rows = tuple(
        (
            f"{row['width']} words, {row['filter']}",
            row["class"],
            "; ".join(row["top"]),
            row["best"],
            row["climbed"],
            f"{row['response']:.2f}",
        )
        for row in filters["rows"]
    )
    heads = ("filter", "for", "most exciting in the data", "best possible", "by gradient ascent", "response>")
    made.append(Sheet("what each filter looks for", heads, rows))
    return made
