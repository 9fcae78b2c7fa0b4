"""What the figures of `answers.input_size` say."""

from __future__ import annotations

from typing import Any

import torch

from convscope.answers.base import Finding, Picture, Verdict, fill, found
from convscope.answers.drawing import pixels, strip
from convscope.answers.layers import sizes
from convscope.measures.figures import Estimate, Sheet
from convscope.models import Net


def loses(detail: dict[str, Any], ways: dict[str, Any]) -> Finding:
    rows = {row["how"]: row for row in ways["rows"]}
    told: dict[str, Any] = {
        "size": sizes(detail["size"]),
        "own": sizes(detail["own"]),
        "lost": detail["lost"],
        "cut": detail["cut"],
        "images": detail["images"],
        "cropped": rows["crop"]["agreement"],
    }
    test = "{images} images of {size} brought to {own} and back, and their centre cut out"
    say = "Resizing lost {lost:.0%} of the power of their fine detail (below five pixels), cropping {cut:.0%} of their area"
    if told["cropped"] is not None:
        say += "; the two answers agree on {cropped:.0%} of images"
    say += "."
    if detail["any"] and detail["cut"] > 0:
        return found("I1", True, test, say, **told)
    if detail["any"] or detail["cut"] > 0:
        when = "there is detail to lose" if detail["cut"] > 0 else "the image is resized; nothing is cut off"
        return found("I1", Verdict.WHEN, test, say, when=when, **told)
    return found("I1", False, test, say, **told)


def tuned(refitted: dict[str, Any]) -> Finding:
    by = {row["how"]: row["accuracy"]["value"] for row in refitted["rows"] if row["accuracy"] is not None}
    told: dict[str, Any] = {
        "net": refitted["net"],
        "size": sizes(refitted["size"]),
        "best": refitted["best"],
        "other": by[refitted["best"]],
        "images": refitted["images"],
        "learned": refitted["learned"],
    }
    test = "{net} on images of {size}: its last layers fitted to {learned} images of that size, scored on {images} others"
    if refitted["gain"] is None:
        say = "It does not run at {size}; {best} to its own size reaches {other:.1%}."
        return found("I2", Verdict.OPEN, test, say, when="there is nothing to fine-tune at that size", **told)
    gain = Estimate(**refitted["gain"])
    told |= {
        "tuned": by[refitted["ours"]],
        "ours": refitted["ours"].removeprefix("native, "),
        "native": by["native"],
        "gain": 100 * gain.value,
        "low": 100 * (gain.low or 0.0),
        "high": 100 * (gain.high or 0.0),
    }
    say = (
        "Run at {size} as it is it reached {native:.1%}, {ours} {tuned:.1%}; {best} to its own size gives {other:.1%}: a "
        "difference of {gain:+.1f} points ({low:+.1f} to {high:+.1f})."
    )
    if told["low"] > 0 or told["high"] < 0:
        return found("I2", told["low"] > 0, test, say, **told)
    return found("I2", Verdict.OPEN, test, say, when="{images} images do not tell the two apart", **told)


def anywhere(runs: dict[str, Any]) -> Finding:
    rows = runs["rows"]
    ran = [row for row in rows if row.get("as_own")]
    other = [row for row in ran if row["scale"] != 1.0 and row["same"] is not None]
    told: dict[str, Any] = {"net": runs["net"], "tried": len(rows), "ran": len(ran), "images": runs["images"]}
    test = "{net} as it is on the same {images} images at {tried} sizes"
    say = "It ran at {ran} of {tried}"
    if other:
        worst = min(other, key=lambda row: row["same"]["value"])
        told |= {"worst": sizes(worst["size"]), "same": worst["same"]["value"]}
        say += ", and at {worst} its class was that at its own size for {same:.0%} of images"
    say += "."
    if len(ran) == len(rows):
        return found("I3", True, test, say, **told)
    if len(ran) > 1:
        least = min(row["size"][0] for row in ran)
        return found(
            "I3",
            Verdict.WHEN,
            test,
            say,
            when="the image is at least {least} pixels high",
            least=least,
            **told,
        )
    return found("I3", False, test, say, **told)


def statement(net: Net, ways: dict[str, Any], detail: dict[str, Any], refitted: dict[str, Any]) -> str:
    rows = {row["how"]: row for row in ways["rows"] if row["reason"] is None}
    told: dict[str, Any] = {
        "net": net.name,
        "own": sizes(ways["made_for"]),
        "size": sizes(ways["size"]),
        "lost": detail["lost"],
        "cut": detail["cut"],
    }
    say = (
        "{net}, made for {own}, takes images of {size} by resizing, which loses {lost:.0%} of the power of their fine detail, "
        "or by cropping, which loses {cut:.0%} of their area. "
    )
    native = rows.get("native")
    if native is None:
        return fill(say + "At the new size itself it does not run, and cannot be made to.", told)
    told |= {
        "more": native["macs"] / rows["resize"]["macs"],
        "agrees": native["agreement"],
        "accuracy": native["accuracy"],
    }
    say += "At the new size itself it costs {more:x} the MACs"
    if native["accuracy"] is not None:
        told |= {"resized": rows["resize"]["accuracy"]}
        say += " and reaches {accuracy:.1%} against {resized:.1%} resized, without any training."
    else:
        say += " and answers as on the resized images for {agrees:.0%} of the {images}."
    if refitted["gain"] is not None:
        by = {row["how"]: row["accuracy"]["value"] for row in refitted["rows"] if row["accuracy"] is not None}
        told |= {"learner": refitted["net"], "tuned": by[refitted["ours"]], "plain": by["native"]}
        told |= {"best": refitted["best"], "most": by[refitted["best"]]}
        say = (
            say.removesuffix(".")
            + "; fitted there, the last layers bring {learner} from {plain:.1%} to {tuned:.1%}, "
        )
        say += "where {best} gives {most:.1%}."
    return fill(say, told | {"images": ways["images"]})


def table(ways: dict[str, Any]) -> Sheet:
    rows = []
    for row in ways["rows"]:
        if row["reason"] is not None:
            rows.append((row["how"], "", "", "", "", f"refused: {row['reason']}"))
            continue
        time = fill("{median:time} ({low:time} to {high:time})", row["latency"])
        part = ["" if row[k] is None else f"{100 * row[k]:.1f} %" for k in ("agreement", "accuracy")]
        rows.append((row["how"], *part, f"{row['macs'] / 1e6:,.0f} M", time, "; ".join(row["notes"])))
    title = f"{ways['net']}, made for {sizes(ways['made_for'])}, on {ways['source']} at {sizes(ways['size'])}"
    return Sheet(title, ("way", "agrees with resize>", "accuracy>", "MACs>", "time>", "notes"), tuple(rows))


def runs_table(runs: dict[str, Any]) -> Sheet:
    rows = tuple(
        (
            sizes(row["size"]),
            sizes(row["shape"]) if "shape" in row else f"fails: {row['reason']}",
            Estimate(**row["same"]).percent() if row.get("same") else "",
        )
        for row in runs["rows"]
    )
    title = f"{runs['net']} as it is, on {runs['images']} images"
    return Sheet(title, ("size>", "output>", "class as at its own size>"), rows)


def refit_table(refitted: dict[str, Any]) -> Sheet:
    rows = tuple(
        (
            row["how"],
            "" if row["accuracy"] is None else Estimate(**row["accuracy"]).percent(),
            "" if row["macs"] is None else f"{row['macs'] / 1e6:,.1f} M",
            "" if row["time"] is None else fill("{median:time}", row["time"]),
            row["reason"] or "",
        )
        for row in refitted["rows"]
    )
    title = f"{refitted['net']} at {sizes(refitted['size'])}, on {refitted['source']}, its last layers also fitted to that size"
    return Sheet(title, ("way", "accuracy>", "MACs>", "time>", ""), rows)


def picture(detail: dict[str, Any]) -> Picture:
    images = [torch.from_numpy(detail[key]) for key in ("before", "after")]
    difference_ = (images[0] - images[1]).abs().mean(0, keepdim=True) * 4
    caption = f"An image of {sizes(detail['size'])}; after {sizes(detail['own'])} and back; what is gone, four times as bright."
    shown = [one if len(one) in (1, 3) else one[:1] for one in (*images, difference_)]
    titles = ("as it was", "resized and back", "what is gone")
    return strip("detail", caption, dict(zip(titles, map(pixels, shown), strict=True)), height=224)
