"""What the figures of `answers.features` say."""

from __future__ import annotations

from typing import Any

from convscope.answers.base import Finding, Verdict, found

_STILL = 0.05  # of all growth: a unit that grew less over the last quarter of its steps no longer grows
_NOISE = 2.0  # times the fine detail of images: more is called noise
_CLEAR = 0.5  # of the filters known again: the same preferences


def findings(climb: dict[str, Any], ways: dict[str, Any], kernels: dict[str, Any]) -> list[Finding]:
    """The verdicts, from the figures."""
    return [_ascent(climb), _regularized(ways), _alike(kernels)]


def _ascent(climb: dict[str, Any]) -> Finding:
    rows = [row for row in climb["rows"] if row["status"] not in ("dead", "nan")]
    grew = [row for row in rows if row["whole"] > 0 and row["last"] > row["first"]]
    ended = [row for row in grew if row["status"] == "converged" or row["late"] < _STILL * row["whole"]]
    told = {
        "layer": climb["layer"],
        "runs": len(climb["rows"]),
        "grew": len(grew),
        "noise": sum(row["start"] == "noise" for row in grew),
        "image": sum(row["start"] == "image" for row in grew),
        "ended": len(ended),
        "dead": len(climb["rows"]) - len(rows),
        "budget": climb["budget"],
    }
    test = "channels of {layer} drawn from noise and from an image, {budget} steps at most, {runs} runs"
    say = (
        "The activation grew in {grew} of {runs} runs ({noise} from noise, {image} from an image), and in {ended} it had stopped "
        "growing by the end; {dead} channels nothing excites."
    )
    if not grew or len(grew) < len(rows):
        return found("F1", False, test, say, **told)
    if len(ended) == len(grew):
        return found("F1", True, test, say, **told)
    when = "the budget of steps lasts: of {grew} runs {ended} no longer grew after {budget}"
    return found("F1", Verdict.WHEN, test, say, when=when, **told)


def _regularized(ways: dict[str, Any]) -> Finding:
    by = {row["way"]: row for row in ways["rows"]}
    high = {name: row["high"]["value"] for name, row in by.items()}
    alone = [name for name in high if name not in ("none", "all")]
    smoother = [name for name in alone if high[name] < high["none"]]
    told = {
        "layer": ways["layer"],
        "channels": len(ways["channels"]),
        "none": high["none"],
        "all": high["all"],
        "natural": ways["natural"]["value"],
        "alone": len(alone),
        "smoother": len(smoother),
        "best": min(alone, key=lambda name: high[name]),
        "least": min(high[name] for name in alone),
        "before": by["none"]["kept"],
        "after": by["all"]["kept"],
    }
    test = "{channels} channels of {layer} without regularizers, with each alone, with all: power from a quarter cycle a pixel on"
    say = (
        "Without regularizers {none:.0%} of the power is fine detail, {natural:.0%} in images; {smoother} of {alone} "
        "regularizers alone lower it, {best} the most (to {least:.0%}), all together to {all:.0%}. After a small move "
        "{before:.0%} of the activation is left without, {after:.0%} with all."
    )
    noisy = told["none"] > _NOISE * told["natural"]
    smooth = told["all"] < told["none"]
    lasting = None not in (told["before"], told["after"]) and told["after"] > told["before"]
    if noisy and smooth and lasting and len(smoother) == len(alone):
        return found("F2", True, test, say, **told)
    if noisy and smooth:
        when = "smooth is meant"
        when += ": what is left after a small move grew no more" if not lasting else ""
        if len(smoother) < len(alone):
            when += ", and not of every regularizer alone"
        return found("F2", Verdict.WHEN, test, say, when=when, **told)
    return found("F2", False, test, say, **told)


def _alike(kernels: dict[str, Any]) -> Finding:
    test = "filters of {layer}: its kernel, the patch its optimized picture excites it most at, and the best patch of {source}"
    told: dict[str, Any] = {
        "layer": kernels["layer"],
        "source": kernels["source"],
        "filters": kernels["filters"],
    }
    if kernels["filters"] < 2:
        why = "the first layer has no kernels to compare"
        return found("F3", Verdict.OPEN, test, "Nothing could be compared.", when=why, **told)
    pairs = kernels["pairs"]
    share = {name: pair["right"] / pair["of"] for name, pair in pairs.items()}
    told |= {"chance": 1 / kernels["filters"]}
    told |= {name: pair["right"] for name, pair in pairs.items()}
    told |= {f"{name}_alike": pair["similar"] for name, pair in pairs.items()}
    say = (
        "The kernel most like a picture's patch is the filter's own for {picture} of {filters} filters (mean cosine "
        "{picture_alike:.2f}), the one most like the best patch of the images for {photograph} ({photograph_alike:.2f}); of "
        "these patches and pictures {both} find each other; chance is {chance:.0%}."
    )
    if all(value > _CLEAR for value in share.values()):
        return found("F3", True, test, say, **told)
    clear = [name for name in ("picture", "photograph") if share[name] > _CLEAR]
    if clear:
        which = {
            "picture": "kernels and pictures are compared",
            "photograph": "kernels and images are compared",
        }
        when = which[clear[0]] if len(clear) == 1 else "each is compared with the kernel"
        return found("F3", Verdict.WHEN, test, say, when=when, **told)
    return found("F3", False, test, say, **told)
