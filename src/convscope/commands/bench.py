"""`convscope bench conv`: when FFT and Winograd pay on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from convscope.commands.arguments import device_of, set_threads
from convscope.commands.options import OUTPUT, OUTPUT_DEFAULT, Flag, OutFlag, OutputOptions
from convscope.commands.progress import progress_of
from convscope.commands.terminal import console_of, kept, open_page, plain, print_result


def conv(
    *,
    out: Annotated[Path, Parameter(group=OUTPUT)] = Path("bench"),
    open: OutFlag = False,
    quick: Flag = False,
    fresh: Flag = False,
    threads: int | None = None,
    device: str = "cpu",
    output: OutputOptions = OUTPUT_DEFAULT,
) -> int:
    """FFT or Winograd, when? Time every convolution algorithm here, as a page with charts and JSON.

    Takes three minutes on two cores. A run that was interrupted goes on where it stopped.

    Args:
        out: The folder to write.
        open: Open the page in the browser.
        quick: Fewer points, in 40 seconds.
        fresh: Throw away what the folder holds of an earlier run.
        threads: CPU threads; all by default.
        device: cpu or cuda.
    """
    if threads is not None:
        set_threads(threads)
    from convscope import tour

    with progress_of(kept(out), "points") as progress:
        made = tour.bench_convolution(
            out, quick=quick, device=device_of(device) or "cpu", fresh=fresh, progress=progress
        )
    if not output.json:
        console_of(stderr=True).print(made.survey)
    print_result(plain(made.to_dict()) if output.json else str(made.page))
    if open:
        open_page(made.page)
    return 0
