"""Another input size: the image is brought to the network, or the network runs on the image as it is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from convscope.errors import RequestError, nearest
from convscope.models import InputSpec
from convscope.rewrites import verify
from convscope.rewrites.base import Edit, Exactness, Refused, Rule, VerificationError, register
from convscope.rewrites.convolutionalize import Convolutionalize
from convscope.rewrites.fit import Fitted, resized
from convscope.rewrites.head import HeadConv2d, Scores
from convscope.rewrites.work import Work

WAYS = ("resize", "crop", "pad", "tiles", "native")


@register
@dataclass(frozen=True)
class InputSize(Rule):
    """Runs a network made for one input size on images of another; the rewritten Net takes the new size.

    - "resize", "crop", "pad", "tiles": see `convscope.rewrites.fit.Fitted`, which is put in front.
    - "native": the network itself on all pixels. As it is, where it ends in adaptive or global pooling; with its
      positional tables resampled, where timm's `set_input_size` does that; else, where a fully-connected head
      holds it to one size, with that head as convolutions (`Convolutionalize`) and the scores of all positions averaged.
      Anything else is refused with the layer that fails.

    The yardstick is the ordinary way, to resize: "resize" is "exact", its outputs are the network's own on the resized
    image. The others are "approximate", and their error is the difference from it: on the images that are given, else
    on noise. Which of them is right more often, `convscope.rules.input_sizes` tells on images.

    Args:
        height, width: of the images, in pixels.
        how: one of these ways.
        where: must be left as it is: the rule is about the whole network.

    Raises:
        RequestError: a size below 1, or an unknown way.

    Example:
        >>> import torch, convscope
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 14 * 14, 10))
        >>> made = convscope.rewrite(net, InputSize(20, 22, "native"), input="3x16x16")
        >>> made.net.input.shape, made.net.module(torch.zeros(1, 3, 20, 22)).shape
        ((3, 20, 22), torch.Size([1, 10]))
    """

    name: ClassVar[str] = "input_size"
    one_size: ClassVar[bool] = True

    height: int
    width: int
    how: str = "resize"

    def __post_init__(self) -> None:
        for name, value in (("height", self.height), ("width", self.width)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise RequestError(f"{name}={value!r} must be a whole number of pixels from 1.")
        if self.how not in WAYS:
            raise RequestError(
                f"how={self.how!r} must be one of {', '.join(WAYS)}{nearest(str(self.how), WAYS)}."
            )

    def apply(self, work: Work) -> None:
        """The whole network at once."""
        before, mark, old = work.module, len(work.edits), work.input
        try:
            told = self._native(work) if self.how == "native" else self._fitted(work)
            work.resize(old.with_size(self.height, self.width))
            edit = self._proved(work, before, old)
        except Refused as reason:
            work.module = before
            work.resize(old)
            del work.edits[mark:]
            work.refuse(self, "", str(reason))
            return
        work.note(replace(edit, notes=(*told, *edit.notes)))

    def _fitted(self, work: Work) -> tuple[str, ...]:
        size, given = work.input.size, (self.height, self.width)
        if size == given:
            raise Refused(f"it takes {given[0]}x{given[1]} already")
        if self.how in ("crop", "tiles") and any(n < m for n, m in zip(given, size, strict=True)):
            raise Refused(
                f"images of {given[0]}x{given[1]} are smaller than the {size[0]}x{size[1]} it takes; resize or pad"
            )
        work.module = Fitted(work.module, size, self.how, _ground(work.input)).double().eval()
        return ()

    def _native(self, work: Work) -> tuple[str, ...]:
        """The network at the new size; what had to be done for it.

        Raises:
            Refused: it does not run there.
        """
        given, old = (self.height, self.width), work.input
        if old.size == given:
            raise Refused(f"it takes {given[0]}x{given[1]} already")
        own = _run(work.module, old.size, old)
        first = _run(work.module, given, old)
        if isinstance(own, Tensor) and isinstance(first, Tensor) and first.shape == own.shape:
            return ("runs at this size as it is",)
        if isinstance(first, Tensor):
            raise Refused(f"at this size it gives {list(first.shape)}, not the scores it gives at its own")
        work.module = verify.copied(work.module)  # what follows changes it in place
        resample = getattr(work.module, "set_input_size", None)
        if resample is not None and type(work.module).__module__.startswith("timm."):
            try:
                with torch.no_grad():
                    resample(img_size=given)
            except Exception as error:  # the network's own code: anything may come
                raise Refused(f"timm's set_input_size fails ({_brief(error)})") from None
            work.module.double()
            return ("positional tables resampled by timm's set_input_size",)
        edits = len(work.edits)
        Convolutionalize().apply(work)
        if work.edits[-1].refused:
            raise Refused(f"it fails at this size ({first}), and {work.edits[-1].reason}")
        del work.edits[edits:]
        for part in work.module.modules():
            if isinstance(part, Scores) or (isinstance(part, HeadConv2d) and part.flat):
                part.average = True
        return ("its fully-connected head as convolutions, the scores of all positions averaged",)

    def _proved(self, work: Work, before: nn.Module, old: InputSpec) -> Edit:
        """The edit, with the difference from resizing."""
        exactness: Exactness = "exact" if self.how == "resize" else "approximate"
        edit = Edit(
            "",
            str(self),
            f"takes {old.size[0]}x{old.size[1]}",
            f"takes {self.height}x{self.width}, {self.how}",
            exactness,
        )
        if work.settled is not None:
            return edit
        tried = _run(work.module, (self.height, self.width), old)
        if not isinstance(tried, Tensor):
            raise Refused(f"it fails at this size ({tried})")
        inputs = [(x,) for x in work.calibration.network_inputs(work.input)]
        found = verify.compare(_Resized(before, old.size), work.module, inputs)
        if exactness == "exact" and not found.error <= verify.ROUNDING:
            raise VerificationError(
                f"{self} differs by {found.error:.1e} from the network on resized images."
            )
        tried_on = "images" if len(inputs) > 1 else "noise"
        note = () if exactness == "exact" else (f"error: the difference from resizing, on {tried_on}",)
        return replace(edit, error=found.error, rms_error=found.rms_error, notes=note)


class _Resized(nn.Module):
    """The yardstick."""

    def __init__(self, net: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.net, self.size = net, size

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(resized(x, self.size))
        return y


def _run(module: nn.Module, size: tuple[int, int], spec: InputSpec) -> Tensor | str:
    """What it gives on noise of a size: a tensor, or why not."""
    x = torch.randn(1, spec.channels, *size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    try:
        with torch.no_grad():
            y = module(x)
    except Exception as error:  # the network's own code: anything may come
        return _brief(error)
    return y if isinstance(y, Tensor) else f"it gives a {type(y).__name__}, where one tensor is needed"


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def _ground(spec: InputSpec) -> tuple[float, ...]:
    """What "pad" puts around an image: the mean colour where it is known, else the middle of the range."""
    if spec.mean is not None:
        return (0.0,) * spec.channels
    middle = torch.full((spec.channels, 1, 1), 0.5, dtype=torch.float64)
    return tuple(spec.normalize(middle).flatten().tolist())
