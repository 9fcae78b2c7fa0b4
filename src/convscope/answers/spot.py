"""Spot checks: of each study on record that an answer reads, one run is trained again on this machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from convscope import timing
from convscope.answers import questions
from convscope.errors import ConvscopeError
from convscope.measures.figures import Sheet
from convscope.studies.results import StudyResult
from convscope.studies.shelf import again, made_here, records

if TYPE_CHECKING:
    from convscope.answers.asked import Asked

_HEADS = ("study", "variant", "seed>", "on record>", "trained again>", "")
_NOTE = (
    "Accuracy on the test data. Code, data and processor being the same, the two are equal to the last digit."
)


def checks(asked: Asked) -> tuple[Sheet, ...]:
    """A table of the runs that were trained again; nothing where the question reads no study."""
    wanted = asked.question.studies
    found = {name: result for name, result in records(asked.studies) if name in wanted} if wanted else {}
    rows = []
    for name, result in found.items():
        about = {"record": _hash(result), "here": made_here(result), "processor": timing.processor()}
        part = asked.part(questions.again(name), partial(_check, result, asked.seed), about=about)
        rows.append((name, *_row(part)))
    return (
        (Sheet("runs of the studies on record, trained again here", _HEADS, tuple(rows), (_NOTE,)),)
        if rows
        else ()
    )


def _check(result: StudyResult, pick: int) -> dict[str, Any]:
    try:
        found = again(result, pick)
    except ConvscopeError as error:
        return {"reason": str(error)}
    return found.to_dict() | {"agrees": found.agrees}


def _row(part: Mapping[str, Any]) -> tuple[str, ...]:
    if "reason" in part:
        return "", "", "", "", part["reason"]
    recorded, here, spread = (100 * part[name] for name in ("recorded", "here", "spread"))
    if part["here"] == part["recorded"]:
        verdict = "equal"
    else:
        apart = "closer" if part["agrees"] else "further apart"
        verdict = f"{apart} than its seeds on record, which spread over {spread:.1f} points"
    if not part["same"]:
        verdict += "; the record is of other code"
    return part["variant"], str(part["seed"]), f"{recorded:.2f} %", f"{here:.2f} %", verdict


def _hash(result: StudyResult) -> str:
    return hashlib.sha256(json.dumps(result.content(), sort_keys=True).encode()).hexdigest()
