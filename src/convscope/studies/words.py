"""Labelled sentences: files of them, the embedded glosses of WordNet, words as numbers, vectors of words."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from convscope.errors import BadInput, RequestError
from convscope.models import _kept_rng
from convscope.studies.sources import Found, Part

PADDING, UNKNOWN = 0, 1  # words that fill up a sentence, and that training never saw
_FIRST: Final = ("<padding>", "<unknown>")
MOST_CLASSES: Final = 1000

# Synset numbers, first to last, of the kinds of things that WordNet's lexicographers kept in files of their own. Looked up
# in the list of ImageNet's synsets, of which these are the outermost: the neighbours are acts and colours, wholes and
# groups, figures of myths, phenomena, units.
GLOSSES: Final = {
    "animal": (1314388, 2665250),
    "artifact": (2665985, 4615644),
    "food": (7556406, 7938594),
    "place": (8492354, 9481120),  # regions, and features of the land
    "person": (9605110, 11346873),  # kinds of people, then people by name
    "plant or fungus": (11530008, 13240362),
}


def glosses() -> Found:
    """About 20,000 definitions of WordNet that timm ships, and what kind of thing each one defines.

    WordNet 3.0, copyright 2006 by Princeton University, under its own licence, which allows any use.
    Miller, "WordNet: A Lexical Database for English" (1995).

    Example:
        >>> found = glosses()
        >>> found.parts["train"].inputs[0], found.classes[found.parts["train"].targets[0]]
        ('any unwanted and destructive insect or other animal that attacks food or crops or livestock etc.', 'animal')
    """
    timm = importlib.util.find_spec("timm")  # found, not imported: a text is all that is wanted
    assert timm is not None
    assert timm.origin is not None
    file = Path(timm.origin).parent / "data" / "_info" / "imagenet_synset_to_definition.txt"
    sentences, labels, seen = [], [], set[str]()
    for line in file.read_text("utf-8").splitlines():
        synset, _, text = line.partition("\t")
        number = int(synset[1:])
        label = next((k for k, (low, high) in enumerate(GLOSSES.values()) if low <= number <= high), None)
        if label is None or text in seen:  # one that defines two things could be learned by heart
            continue
        seen.add(text)
        sentences.append(text)
        labels.append(label)
    return Found(tuple(GLOSSES), {"train": Part(sentences, torch.tensor(labels))})


def read_text(path: Path) -> Found:
    """A file with a sample a line: `label sentence`, or `label TAB sentence` where every line has a tab.

    Raises:
        BadInput: it is no text, or a line lacks its label or sentence.
        RequestError: there are fewer than two classes, or hardly a line has a label in common with another.
    """
    raw = path.read_bytes()
    if b"\0" in raw[:65536]:
        raise BadInput(f"data={str(path)!r} is no text; give lines of a label and a sentence, or images")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")  # the corpora of old are
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    mark = "\t" if lines and all("\t" in line for _, line in lines) else None
    labels, sentences = [], []
    for number, line in lines:
        pieces = line.split(mark, 1)
        if len(pieces) < 2 or not pieces[1].strip():
            raise BadInput(
                f"line {number} of data={str(path)!r} has no sentence behind its label {pieces[0][:40]!r}"
            )
        labels.append(pieces[0].strip())
        sentences.append(pieces[1].strip())
    classes = sorted(set(labels), key=_natural)
    if not 2 <= len(classes) <= min(MOST_CLASSES, max(2, len(labels) // 2)):
        raise RequestError(
            f"data={str(path)!r} has {len(classes)} different labels in {len(labels)} lines; each line must begin with one "
            "of a few labels"
        )
    places = {label: place for place, label in enumerate(classes)}
    targets = torch.tensor([places[label] for label in labels])
    return Found(tuple(classes), {"train": Part(sentences, targets)})


def _natural(label: str) -> tuple[int, int, str]:
    """Numbers by value, before names."""
    number = label.isascii() and label.isdigit()
    return (0, int(label), label) if number else (1, 0, label)


# ---------------------------------------------------------------- words as numbers


def tokens(sentence: str, lower: bool = True) -> list[str]:
    """The words of a sentence, in lower case unless told otherwise; brackets, commas and marks are words too, 's and n't
    of their own.

    As Kim's program cut them.

    Example:
        >>> tokens("It's a film, isn't it?")
        ['it', "'s", 'a', 'film', ',', 'is', "n't", 'it', '?']
    """
    text = re.sub(r"[^\w(),!?'`]", " ", sentence.lower() if lower else sentence)
    text = re.sub(r"('s|'ve|n't|'re|'d|'ll)", r" \1", text)
    return re.sub(r"([,!?()])", r" \1 ", text).split()


def vocabulary(sentences: Iterable[Sequence[str]], most: int | None) -> tuple[str, ...]:
    """The words of all sentences, the frequent ones first, behind the two that stand for padding and unknown words.

    Example:
        >>> vocabulary([["b", "a"], ["b"]], None)
        ('<padding>', '<unknown>', 'b', 'a')
    """
    counts = Counter(word for sentence in sentences for word in sentence)
    words = sorted(counts, key=lambda word: (-counts[word], word))
    return (*_FIRST, *words[: None if most is None else max(most - len(_FIRST), 0)])


def numbers(sentences: Sequence[Sequence[str]], words: Sequence[str], length: int) -> Tensor:
    """Tensor [sentence, length] of places in `words`, cut off and filled up at the end."""
    places = {word: place for place, word in enumerate(words)}
    rows = torch.zeros(len(sentences), length, dtype=torch.int64)
    for row, sentence in zip(rows, sentences, strict=True):
        found = [places.get(word, UNKNOWN) for word in sentence[:length]] or [UNKNOWN]
        row[: len(found)] = torch.tensor(found)
    return rows


def vectors(rows: Tensor, count: int, dim: int, window: int = 4) -> Tensor:
    """Vectors of words from the words around them, so that words used alike lie close: no file is needed.

    Positive pointwise mutual information of words at most `window` apart, and its best approximation of rank `dim`.
    Levy, Goldberg, "Neural Word Embedding as Implicit Matrix Factorization" (2014).

    Args:
        rows: sentences, [sentence, length] of words.
        count: number of different words.
        dim: numbers a vector.
        window: words to either side.

    Returns:
        Tensor [count, dim] of a standard deviation of 0.25; zeros for the padding.
    """
    pairs = []
    for step in range(1, min(window, rows.shape[1] - 1) + 1):
        left, right = rows[:, :-step], rows[:, step:]
        whole = (left > PADDING) & (right > PADDING)
        both = torch.stack([left[whole], right[whole]])  # [2, pair]
        pairs += [both, both.flip(0)]
    places = torch.cat(pairs, 1)
    seen = _table(places, torch.ones(places.shape[1]), count)
    row, column = seen.indices()
    often = torch.zeros(count).index_add_(0, row, seen.values())
    information = (seen.values() * often.sum() / (often[row] * often[column])).log()
    kept = information > 0
    table = _table(seen.indices()[:, kept], information[kept], count)
    rank = min(dim, count)
    with _kept_rng(0):
        left, values, _ = torch.svd_lowrank(table, q=rank, niter=3)
    found = torch.zeros(count, dim)
    found[:, :rank] = left * values.clamp_min(0).sqrt()
    return found * (0.25 / found.std().clamp_min(1e-12))


def _table(places: Tensor, values: Tensor, count: int) -> Tensor:
    """Sparse [count, count], what falls on one place summed."""
    return torch.sparse_coo_tensor(places, values, (count, count), check_invariants=False).coalesce()
