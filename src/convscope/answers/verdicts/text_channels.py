"""What the figures of `answers.text_channels` say."""

from __future__ import annotations

from typing import Any

from convscope.answers.base import Finding, Verdict, found

_ALONE = 0.8  # of what sets an n-gram apart: a filter that takes more from one word looks for a word
_ROUNDING = 1e-4  # in float32, of sums of a few tens


def findings(layouts: dict[str, Any], filters: dict[str, Any]) -> list[Finding]:
    """The verdicts, from the figures."""
    return [_one_hot(layouts), _embedded(layouts), _ngrams(filters)]


def _one_hot(layouts: dict[str, Any]) -> Finding:
    """T1: in both layouts, which compute the same."""
    by = {row["layout"]: row for row in layouts["rows"] if row["embedding"] == "one-hot"}
    told = {
        "vocabulary": layouts["vocabulary"],
        "rows": by["rows"]["channels"],
        "channels": by["channels"]["channels"],
        "apart": by["rows"]["apart"],
    }
    test = "channels of the first convolution on one-hot text of {vocabulary} words, as rows of a picture and as channels"
    say = "As rows it has {rows}, as channels {channels}; with the same weights the two found the same to {apart:.0e}."
    one = [told[layout] == 1 for layout in ("rows", "channels")]
    if told["apart"] >= _ROUNDING:
        say = say.replace("found the same to", "differed by")
    if all(one):
        return found("T1", True, test, say, **told)
    if any(one):
        when = "words are laid out as the rows of a picture; as channels there are {channels}"
        return found("T1", Verdict.WHEN, test, say, when=when, **told)
    return found("T1", False, test, say, **told)


def _embedded(layouts: dict[str, Any]) -> Finding:
    """T2: in both layouts, with one table and with two."""
    rows = [row for row in layouts["rows"] if row["embedding"] != "one-hot"]
    as_many = [row for row in rows if row["channels"] == layouts["dim"]]
    told = {
        "dim": layouts["dim"],
        "ways": len(rows),
        "as_many": len(as_many),
        "other": ", ".join(
            f"{row['channels']} ({row['embedding']}, as {row['layout']})"
            for row in rows
            if row not in as_many
        ),
    }
    test = "channels of the first convolution on text embedded in {dim} numbers a word, in {ways} ways"
    say = "{as_many} of {ways} ways have {dim} channels"
    say += "; the others have {other}." if told["other"] else "."
    if len(as_many) == len(rows):
        return found("T2", True, test, say, **told)
    if as_many:
        when = "words are laid out as channels, with one vector each"
        return found("T2", Verdict.WHEN, test, say, when=when, **told)
    return found("T2", False, test, say, **told)


def _ngrams(filters: dict[str, Any]) -> Finding:
    """T3: whether what sets the top n-grams apart comes from several words, at their places."""
    rows = filters["rows"]
    several = [row for row in rows if row["share"] < _ALONE and row["backwards"] < 1]
    told = {
        "filters": len(rows),
        "sentences": filters["sentences"],
        "accuracy": filters["accuracy"],
        "chance": filters["chance"],
        "several": len(several),
        "alone": _ALONE,
        "share": sum(row["share"] for row in rows) / len(rows),
        "backwards": sum(row["backwards"] for row in rows) / len(rows),
        "apart": sum((row["response"] - row["typical"]) / max(row["spread"], 1e-9) for row in rows)
        / len(rows),
        "hits": sum(row["best"] in row["top"] for row in rows),
    }
    test = (
        "{filters} filters trained on {sentences} definitions ({accuracy:.1%} right; the largest class is {chance:.1%}), "
        "on all n-grams of the data, the best of all, and their words one by one"
    )
    say = (
        "The top n-gram lies {apart:.1f} standard deviations above the mean; {share:.0%} of its lead comes from its leading "
        "word, and read backwards it keeps {backwards:.0%} of it. The best n-gram of all is among the top three of the data for "
        "{hits} filters; {several} of {filters} take less than {alone:.0%} from one word."
    )
    if len(several) == len(rows):
        return found("T3", True, test, say, **told)
    if several:
        when = "more than a word is meant: {several} of {filters} filters need several in their order, the others hang on one"
        return found("T3", Verdict.WHEN, test, say, when=when, **told)
    return found("T3", False, test, say, **told)
