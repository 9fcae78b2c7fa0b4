"""`ask`: the questions every designer of a CNN is asked, answered by measuring a network, its images and this machine."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, overload

import torch
from torch import Tensor, nn

import convscope
from convscope import timing
from convscope.answers import recorded
from convscope.answers.asked import Asked, Meter, Progress, check_data
from convscope.answers.base import Answer, Draft, fill
from convscope.answers.claims import claims_of
from convscope.answers.drawing import ledger, png
from convscope.answers.questions import QUESTIONS, Question, find
from convscope.answers.spot import checks
from convscope.errors import ModelError, RequestError
from convscope.measures.figures import Sheet, to_html, to_rich, to_text
from convscope.models import InputLike, Net, as_net, preserved
from convscope.store import Store
from convscope.studies.shelf import records

if TYPE_CHECKING:
    from rich.console import Group


FOLDER = "answers"
REFUSED = "refused.json"  # title of a question -> why it was not answered


@dataclass(frozen=True, repr=False)
class Questions:
    """The questions there are; prints as a table.

    Attributes:
        questions: by name.
    """

    questions: Mapping[str, Question] = field(default_factory=lambda: QUESTIONS)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {name: self._row(q) for name, q in self.questions.items()}

    @staticmethod
    def _row(question: Question) -> dict[str, Any]:
        claims = {claim.id: claim.text for claim in claims_of(question.name)}
        return {"title": question.title, "claims": claims}

    def _sheet(self) -> Sheet:
        rows = tuple((name, q.title, str(len(claims_of(name)))) for name, q in self.questions.items())
        return Sheet("what can be asked", ("question", "in full", "claims tested>"), rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self.questions)

    def __repr__(self) -> str:
        return f"Questions({', '.join(self.questions)})"

    def __rich__(self) -> Group:
        return to_rich([self._sheet()])

    def __str__(self) -> str:
        return to_text([self._sheet()])

    def _repr_html_(self) -> str:
        return to_html([self._sheet()])


@dataclass(frozen=True, repr=False)
class Answers:
    """Answers to several questions, by name.

    Attributes:
        answers: question -> its answer.
        refused: question -> why it could not be asked of this network.
    """

    answers: Mapping[str, Answer]
    refused: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, question: str) -> Answer:
        return self.answers[question]

    def __iter__(self) -> Iterator[Answer]:
        return iter(self.answers.values())

    def __len__(self) -> int:
        return len(self.answers)

    def ledger(self) -> str:
        """All claims as Markdown: claim, test, this run, verdict."""
        return ledger(self)

    def to_dict(self, *, pictures: bool = False) -> dict[str, Any]:
        """Plain values; `pictures` adds the pictures as data URIs."""
        told = {name: answer.to_dict(pictures=pictures) for name, answer in self.answers.items()}
        return {"answers": told, "refused": dict(self.refused)}

    def __repr__(self) -> str:
        return f"Answers({', '.join(self.answers)})"

    def __rich__(self) -> Group:
        from rich.console import Group
        from rich.text import Text

        refused = [Text(f"{name} was not asked: {why}") for name, why in self.refused.items()]
        return Group(*(part for answer in self for part in (answer, Text(""))), *refused)

    def __str__(self) -> str:
        return "\n\n".join(map(str, self))

    def _repr_html_(self) -> str:
        return "".join(answer._repr_html_() for answer in self)


class Settings(TypedDict, total=False):
    """The keywords of `ask`; see there."""

    input: InputLike | None
    quick: bool
    out: str | os.PathLike[str] | None
    fresh: bool
    studies: str | os.PathLike[str] | None
    seed: int
    progress: Progress | None


@overload
def ask(
    question: None = None, net: Net | nn.Module | None = None, data: Any = None, **settings: Unpack[Settings]
) -> Questions: ...
@overload
def ask(  # type: ignore[overload-overlap, unused-ignore]
    question: Literal["all"],
    net: Net | nn.Module | None = None,
    data: Any = None,
    **settings: Unpack[Settings],
) -> Answers: ...
@overload
def ask(
    question: str, net: Net | nn.Module | None = None, data: Any = None, **settings: Unpack[Settings]
) -> Answer: ...
def ask(
    question: str | None = None,
    net: Net | nn.Module | None = None,
    data: Any = None,
    *,
    input: InputLike | None = None,
    quick: bool = False,
    out: str | os.PathLike[str] | None = None,
    fresh: bool = False,
    studies: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Questions | Answer | Answers:
    """Answers a question about the design of CNNs by measurement, on a network, its images and this machine.

    Every claim of common advice that belongs to the question is tested and gets a verdict, computed from the figures of
    this run.

    Args:
        question: its name, such as "padding"; "all" for every question; None lists them.
        net: a Net, or a module with `input=`; by default an embedded one that suits the question.
        data: images: a file or a folder (of class folders for accuracy), or a Tensor [image, channel, height, width] of
            network input. By default embedded ones.
        input: what to feed a plain module.
        quick: measure less: fewer images, fewer points.
        out: a folder; in its `answers/` measurements are kept, so that a second run only redoes what changed, and the
            answers as JSON with their pictures.
        fresh: throw away what the folder holds.
        studies: a folder of study records, which stand in for those that ship.
        seed: every random choice follows from it.
        progress: called with {"done", "total", "rate", "seconds_left", "layer"}; its units are measurements.

    Returns:
        An `Answer`; of "all" `Answers`, of None the `Questions`.

    Raises:
        UnknownName: there is no such question; the nearest are suggested.
        BadInput, RequestError: network, data and question do not fit together, or there is no such folder of studies.
        ModelError: the network holds weights that are not finite, or fails.
        StoreError, StoreMismatch: the folder cannot be used.

    Example:
        >>> import convscope
        >>> answer = convscope.ask("padding", convscope.load("fashion"), quick=True)
        >>> answer.finding("P3").verdict_text
        'holds when the kernel is larger than 1x1 and the stride is 1'
    """
    if question is None:
        return Questions()
    wanted = list(QUESTIONS.values()) if question == "all" else [find(question)]
    given = None if net is None else as_net(net, input)
    if given is not None:
        _finite(given)
    images = check_data(data)
    shelf = None if studies is None else Path(studies)
    if shelf is not None:
        list(records(shelf))  # what is wrong with it is said before anything is measured
    meter = Meter(sum(len(one.parts) for one in wanted), progress)
    opened = (
        nullcontext(None)
        if out is None
        else Store.open(Path(out) / FOLDER, {"holds": "answers"}, fresh=fresh)
    )
    answers, refused = {}, {}
    with opened as store:
        for one in wanted:
            asked = Asked(
                one,
                given,
                images,
                quick=quick,
                seed=seed,
                store=store,
                meter=meter,
                studies=shelf,
            )
            try:
                answers[one.name] = _answered(asked, data, out, store, meter)
            except (RequestError, ModelError) as error:
                if question != "all":
                    raise
                refused[one.name] = str(error)
        if store is not None and question == "all":
            store.write(
                REFUSED, json.dumps({QUESTIONS[name].title: why for name, why in refused.items()}) + "\n"
            )
    return Answers(answers, refused) if question == "all" else answers[wanted[0].name]


def _finite(net: Net) -> None:
    """Refuses weights that are not numbers: all that is measured of them would be none either.

    Raises:
        ModelError: there are such.
    """
    told: list[tuple[str, Tensor]] = [*net.module.named_parameters()]
    told += [(name, value) for name, value in net.module.named_buffers() if "running_" in name]
    for name, value in told:
        if value.is_floating_point() and not bool(value.detach().isfinite().all()):
            raise ModelError(
                f"{name} of net {net.name!r} holds values that are not finite, so that nothing measured of it would mean "
                "anything; load other weights"
            )


def _answered(asked: Asked, data: Any, out: Any, store: Store | None, meter: Meter) -> Answer:
    """One question's answer, written where there is a folder."""
    began, reused = time.perf_counter(), meter.reused
    with preserved(asked.net.module):
        draft = asked.question.answer(asked)
        checked = (*recorded.tables(asked), *checks(asked))
    _check(asked.question, draft)
    command, python = _again(asked, data, out)
    made = Answer(
        question=asked.question.name,
        title=asked.question.title,
        statement=draft.statement,
        findings=draft.findings,
        tables=(*draft.tables, *checked),
        pictures=draft.pictures,
        charts=draft.charts,
        notes=(*draft.notes, *_busy(asked)),
        conditions=_conditions(asked, draft),
        command=command,
        python=python,
        reused=meter.reused - reused,
        seconds=time.perf_counter() - began,
    )
    if store is not None:
        _write(store, made)
    return made


def _busy(asked: Asked) -> tuple[str, ...]:
    """A warning where other work ran beside the timings."""
    threads = torch.get_num_threads()
    if asked.load <= threads + 1:
        return ()
    said = (
        "The machine's load was {load} while times were taken with {threads} thread(s): they may be too long."
    )
    return (fill(said, {"load": asked.load, "threads": threads}),)


def _check(question: Question, draft: Draft) -> None:
    """Every claim of the question has one finding, in order."""
    wanted = [claim.id for claim in claims_of(question.name)]
    told = [finding.claim.id for finding in draft.findings]
    if told != wanted:
        raise AssertionError(f"{question.name} must have findings {wanted} and has {told}")


def _conditions(asked: Asked, draft: Draft) -> dict[str, Any]:
    net = asked.net
    return {
        "network": f"{net.name} ({net.source})",
        "weights": net.sha256[:12],
        "images": draft.data,
        "quick": asked.quick,
        "seed": asked.seed,
        "machine": timing.processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "convscope": convscope.__version__,
    }


def _again(asked: Asked, data: Any, out: Any) -> tuple[str, str]:
    """The command line and the Python that make the answer again."""
    name, source = asked.question.name, asked.net.source
    folder = None if data is None else data if isinstance(data, str | Path) else ...
    words = ["convscope", "ask", name]
    arguments = [repr(name)]
    lines = ["import convscope", ""]
    if asked.given:
        is_source = source != "module" and not source.startswith("rewrite of ")
        words += [source.removeprefix("embedded:") if is_source else "MODEL"]
        if is_source and " with weights " in source:
            words[-1] = source.split(" with weights ")[0]
            words += ["--weights", source.split(" with weights ")[1]]
        lines += [
            f"net = convscope.load({source!r})" if is_source else "net = ...  # the network that was asked"
        ]
        arguments += ["net"]
    if folder is ...:
        words += ["--data", "DIR"]
        arguments += ["data=data"]
        lines += ["data = ...  # the images that were given"]
    elif folder is not None:
        words += ["--data", str(folder)]
        arguments += [f"data={str(folder)!r}"]
    if asked.quick:
        words += ["--quick"]
        arguments += ["quick=True"]
    if asked.seed:
        words += ["--seed", str(asked.seed)]
        arguments += [f"seed={asked.seed}"]
    if out is not None:
        words += ["--out", str(out)]
        arguments += [f"out={str(out)!r}"]
    lines += [f"print(convscope.ask({', '.join(arguments)}))"]
    return shlex.join(words), "\n".join(lines)


def _write(store: Store, answer: Answer) -> None:
    """The answer as JSON, and its pictures beside it."""
    told = answer.to_dict()
    for picture, plain in zip(answer.pictures, told["pictures"], strict=True):
        plain["file"] = f"{answer.question}-{picture.name}.png"
        store.write(plain["file"], png(picture.image))
    store.write(f"{answer.question}.json", json.dumps(told, indent=1, allow_nan=False, default=_said) + "\n")
    store.log(event="answered", question=answer.question, seconds=answer.seconds, reused=answer.reused)


def _said(value: Any) -> Any:
    """Figures that JSON has no form for."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if isinstance(value, Tensor):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
