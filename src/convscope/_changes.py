"""The rewrites behind a report's page of changes, each kept in the folder: part of `tour`.

A few rewrites that make sense for most networks are made, proved and compared with the network, one after the other, so
that the page fills meanwhile. Images are split into halves: what needs images is fitted to the one, everything is compared
on the other.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from convscope import site
from convscope.algorithms.survey import machine
from convscope.data import Images, halves
from convscope.data import images as read_images
from convscope.errors import ConvscopeError
from convscope.features.picture import to_pil
from convscope.models import Net
from convscope.rewrites.compare import compare
from convscope.rewrites.compare_several import Comparisons
from convscope.rewrites.compare_table import Comparison
from convscope.rewrites.input_size import WAYS
from convscope.rewrites.rewrite import rewrite
from convscope.rewrites.units import Subject
from convscope.site.scripts import finite
from convscope.store import Store

FOLDER = "changes"
FORMAT = 1  # of what is kept there; another is made again
LARGE = 2e9  # multiply-accumulates from which on only what is quick to prove is tried
IMAGES = 64  # at most, of the user's own
STEPS = 20  # of a picture
TIMING = 0.3  # seconds for a pair of networks
PAUSE = 3.0  # seconds between two writings of the page


@dataclass(frozen=True)
class Trial:
    """A rewrite to try.

    Attributes:
        rule: as text.
        fitted: whether it is fitted to images.
        pictures: whether units are drawn before and after.
    """

    rule: str
    fitted: bool = False
    pictures: bool = True


FEW = (Trial("fold_batch_norm"), Trial("padding:replicate"))
MORE = (
    Trial("padding:reflect", pictures=False),
    Trial("pool:blur"),
    Trial("separable:budget=macs:0.5", fitted=True, pictures=False),
    Trial("bottleneck:budget=macs:0.9,where=macs > 1 %", fitted=True),
    Trial("bottleneck:budget=macs:0.7,where=macs > 1 %", fitted=True, pictures=False),
)


def trials(size: Sequence[int], macs: float, quick: bool) -> tuple[Trial, ...]:
    """What is tried on a network: at another input size too, ten parts of seven as high, and wider than that.

    Args:
        size: of its input.
        macs: of a pass.
        quick: only what a moment allows.

    Example:
        >>> [trial.rule for trial in trials((224, 224), 1e8, False)][-1]
        'input_size:height=320,width=360,how=native'
        >>> [trial.rule for trial in trials((224, 224), 1e8, True)]
        ['fold_batch_norm', 'padding:replicate']
    """
    if quick:
        return tuple(Trial(trial.rule, trial.fitted, pictures=False) for trial in FEW)
    if macs > LARGE or len(size) != 2:
        return FEW
    height, width = size[0] * 10 // 7, size[1] * 45 // 28
    sizes = (Trial(f"input_size:height={height},width={width},how={how}", pictures=False) for how in WAYS)
    return (*FEW, *MORE, *sizes)


class ChangesPage:
    """The page of changes of a report under way; a context manager, at whose end the page says how it ended.

    Nothing is opened before the first `begin`.

    Args:
        net: the network.
        out: the report's folder.
        data: images to compare on; the embedded photographs by default.
        quick: only what a moment allows.
        fresh: make again whatever the folder holds.
        seed: of every random choice.
        random: draw units of untrained networks too.
        device: where the network is; part of what the results belong to.
    """

    def __init__(
        self,
        net: Net,
        out: Path,
        *,
        data: str | Images | None = None,
        quick: bool = False,
        fresh: bool = False,
        seed: int = 0,
        random: bool = False,
        device: Any = None,
    ) -> None:
        self.net, self.out, self.data, self.quick, self.fresh = net, out, data, quick, fresh
        self.seed, self.random, self.device = seed, random, device
        self.subject = Subject(net)
        self.images: Images | None = None
        self.store: Store | None = None
        self.state = "interrupted"

    def begin(self) -> None:
        """Opens the folder, the first time it is called; the page can then be shown."""
        if self.store is not None:
            return
        if self.data is not None or self.net.input.channels in (1, 3):  # else no photograph fits
            self.images = read_images(self.data, limit=IMAGES)
        identity = {
            "measures": "changes",
            "format": FORMAT,
            "model": self.net.sha256,
            "input": self.net.input.to_dict(),
            "images": None if self.images is None else self.images.fingerprint,
            "settings": {"quick": self.quick, "seed": self.seed, "steps": STEPS},
            "machine": machine(str(self.device or "cpu")),
        }
        self.store = Store.open_cache(self.out / FOLDER, identity, fresh=self.fresh)
        self._write("running")

    def finish(self, tell: Callable[[str], None]) -> None:
        """Tries what was not tried yet; the page fills meanwhile.

        Args:
            tell: called with what is under way.
        """
        self.begin()
        written = time.monotonic()
        for _ in self._rest(tell):
            if time.monotonic() - written > PAUSE:
                self._write("running")
                written = time.monotonic()
        self.state = "done"

    def _rest(self, tell: Callable[[str], None]) -> Iterator[None]:
        assert self.store is not None
        for number, trial in enumerate(self._trials()):
            piece = f"{number:02d}"
            if piece not in self.store.finished():
                tell(f"what {trial.rule} changes")
                value, files = self._try(trial, piece)
                self.store.put(piece, finite(value), files)
            yield

    def _trials(self) -> tuple[Trial, ...]:
        assert self.store is not None
        if "trials" not in self.store.finished():
            try:
                macs = float(self.subject.profile(True).totals.macs)
            except ConvscopeError as error:  # the pictures may still be drawn
                self.store.put("trials", {"rules": [], "left_out": str(error)})
            else:
                rules = [trial.rule for trial in trials(self.net.input.size, macs, self.quick)]
                self.store.put("trials", {"rules": rules, "left_out": None})
        known = {trial.rule: trial for trial in trials(self.net.input.size, 0.0, self.quick)}
        return tuple(known[rule] for rule in self.store.get("trials")["rules"])

    def _try(self, trial: Trial, piece: str) -> tuple[dict[str, Any], dict[str, bytes]]:
        """One rewrite, compared; what cannot be done is said on the page, and the rest goes on."""
        fit, shown = (None, None) if self.images is None else halves(self.images)
        try:
            made = rewrite(self.net, trial.rule, data=fit if trial.fitted else None, seed=self.seed)
            if not made.done:
                return {"title": trial.rule, "rewrite": made.to_dict(), "error": None, "comparison": None}, {}
            found = compare(
                self.subject,
                made,
                shown,
                latency=not self.quick,
                memory=False,
                features="auto" if trial.pictures else None,
                steps=STEPS,
                random=self.random,
                seed=self.seed,
                budget=TIMING,
            )
        except ConvscopeError as error:
            return {"title": trial.rule, "rewrite": None, "error": str(error), "comparison": None}, {}
        return entry(found, trial.rule, piece, FOLDER)

    def _write(self, state: str) -> None:
        assert self.store is not None
        finished = self.store.finished()
        kept = self.store.get("trials") if "trials" in finished else {"rules": None, "left_out": None}
        site.write_changes(
            self.out,
            {
                "state": state,
                "base": self.net.to_dict(),
                "planned": kept["rules"],
                "left_out": kept["left_out"],
                "entries": [self.store.get(piece) for piece in sorted(finished) if piece != "trials"],
            },
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.store is not None:
            try:
                self._write(self.state)
            finally:
                self.store.close()


# ---------------------------------------------------------------- comparisons as plain values


def value_of(found: Comparison | Comparisons, folder: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What the page draws of finished comparisons, and the pictures in it: path -> content.

    Args:
        found: one comparison or several.
        folder: where the pictures go, relative to the report.
    """
    many = found.comparisons if isinstance(found, Comparisons) else (found,)
    entries: list[Any] = []
    files: dict[str, bytes] = {}
    for number, each in enumerate(many):
        title = str(each.b["name"]) if each.origin is None else each.origin.rule
        value, pictures = entry(each, title, f"{number:02d}", folder)
        entries.append(finite(value))
        files |= {f"{folder}/{name}": content for name, content in pictures.items()}
    base = dict(many[0].a)
    return {"state": "done", "base": base, "planned": None, "left_out": None, "entries": entries}, files


def entry(found: Comparison, title: str, piece: str, folder: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """One comparison as plain values, and its pictures: file name -> content."""
    value = found.to_dict()
    origin = value.pop("origin")
    del value["changed"]  # a row for each layer, which the page does not show
    files: dict[str, bytes] = {}
    for number, (feature, shown) in enumerate(zip(found.features, value["features"], strict=True)):
        for side, picture in (("before", feature.before), ("after", feature.after)):
            name = f"{piece}-{number}-{side}.webp"
            shown[side] = None if picture is None else f"{folder}/{name}"
            if picture is not None:
                files[name] = _webp(picture)
    return {"title": title, "rewrite": origin, "error": None, "comparison": value}, files


def _webp(picture: Tensor) -> bytes:
    buffer = io.BytesIO()
    to_pil(picture).save(buffer, "WEBP", quality=90, method=4)
    return buffer.getvalue()


def written(out: Path, found: Comparison | Comparisons) -> Mapping[str, Any]:
    """Writes the pictures of comparisons beside a page, and returns what the page draws."""
    from convscope.store import atomic_write

    value, files = value_of(found, "compared")
    for name, content in files.items():
        atomic_write(out / name, content)
    return value
