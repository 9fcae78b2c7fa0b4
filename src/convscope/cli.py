"""The command line: parses, calls the API, prints. Nothing is computed here.

Data goes to stdout, progress and advice to stderr; `--json` prints exactly one JSON document. Exit codes:
0 done, 1 the work failed, 2 the request was wrong, 130 interrupted. torch is imported only once a verb runs, so that
`convscope --help` is quick.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cyclopts import App, CycloptsError, Parameter, UnusedCliTokensError

import convscope
from convscope.commands.ask import ask
from convscope.commands.bench import conv
from convscope.commands.measure import measure
from convscope.commands.options import WORK
from convscope.commands.pictures import atlas, look, report, visualize
from convscope.commands.rewrite import compare, rewrite
from convscope.commands.study import study
from convscope.commands.terminal import LINE, console_of, escape, print_result, say
from convscope.errors import ConvscopeError, nearest

VERBS = (report, atlas, visualize, look, measure, rewrite, compare, ask, study)

app = App(
    name="convscope",
    help="See what every filter of a convolutional network looks for, and what every layer costs and sees.",
    help_epilogue="MODEL: none for the embedded EfficientNet-Lite0 (to ask, for the one that suits the question), or fashion, "
    "fashion-decoder, timm:NAME, torchvision:NAME, recipe:FOLDER, package.module:factory.",
    version=convscope.__version__,
    help_flags=["--help", "-h"],
    version_flags=["--version"],
    group_parameters=WORK,
    default_parameter=Parameter(negative=()),
    suppress_keyboard_interrupt=False,
)


for verb in VERBS:
    app.command(verb)

bench = App(
    name="bench",
    help="Measure this machine.",
    help_epilogue="",
    help_flags=["--help", "-h"],
    version_flags=[],
    group_parameters=WORK,
    default_parameter=Parameter(negative=()),
)
bench.command(conv)
app.command(bench)


@app.default
def overview() -> int:
    """What there is to do, and three commands to begin with."""
    say = console_of(stderr=False).print
    say(f"[bold]convscope {convscope.__version__}[/]: see what every filter of a convolutional net looks for")
    say("  [cyan]report[/]      an atlas of the network as pages that open in any browser, offline")
    say(
        "  [cyan]atlas[/]       pictures and scores of many units; [cyan]visualize[/] of chosen channels of a layer"
    )
    say(
        "  [cyan]look[/]        what one photograph does in it; [cyan]measure[/] what every layer costs and sees"
    )
    say(
        "  [cyan]rewrite[/]     another kernel, padding, pool, ..., with proof; [cyan]compare[/] two networks side by side"
    )
    say(
        "  [cyan]ask[/]         what designers ask, by measuring; [cyan]study[/] trains variants; [cyan]bench conv[/] FFT or not"
    )
    say("Try next [dim](each takes --help; --list-layers names the layers of a model)[/]:")
    say("  [green]convscope report --open[/]                       the embedded ImageNet network")
    say("  [green]convscope visualize blocks.4.2 --channels 0:8[/] eight of its filters as PNG files")
    say("  [green]convscope look PHOTO.jpg --open[/]               a photograph of yours in that network")
    return 0


# ---------------------------------------------------------------- entry


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; the entry point of `convscope` and `python -m convscope`.

    Args:
        argv: the words after the program's name; those of this process by default.

    Returns:
        The exit code: 0 done, 1 the work failed, 2 the request was wrong, 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    LINE.set(tuple(words))
    try:
        with _restored():
            code = app(words, exit_on_error=False, print_error=False, result_action="return_value")
            sys.stdout.flush()
            return int(code or 0)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except KeyboardInterrupt as stop:
        say(f"Interrupted: {escape(str(stop) or 'nothing was finished yet')}.")
        return 130
    except BrokenPipeError:  # the reader of stdout left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except CycloptsError as error:
        return _fail(words, error, 2, _misread(words, error))
    except ConvscopeError as error:
        return _fail(words, error, error.exit_code, str(error))
    except Exception as error:  # a mistake of ours or of the model's own code: told, never hidden
        said = f"{type(error).__name__}: {error}"
        return _fail(words, error, 1, f"{said}; this was not expected: --debug shows where it happened.")


def _misread(words: Sequence[str], error: CycloptsError) -> str:
    """What was wrong with the command line, and where to look."""
    place, path = app, ["convscope"]
    for word in words:
        verbs = [] if word.startswith("-") else [name for name in place if not name.startswith("-")]
        if not verbs:
            break
        if word not in verbs:
            unknown = " ".join([*path[1:], word])
            hint = nearest(word, verbs) or f"; see them all with {' '.join(path)} --help."
            return f"{unknown!r} is no command{hint}"
        place, path = place[word], [*path, word]
    where = f"see {' '.join(path)} --help."
    if isinstance(error, UnusedCliTokensError):
        return f"{' '.join(map(repr, error.unused_tokens or ()))} is one argument too many; {where}"
    return f"{str(error).strip().rstrip('.?')}; {where}"


def _fail(words: Sequence[str], error: Exception, code: int, message: str) -> int:
    """One sentence on stderr, and with --json the same as the one document on stdout."""
    if "--debug" in words:
        traceback.print_exception(error)
    say(f"[bold red]error:[/] {escape(message)}")
    if "--json" in words:
        print_result({"error": message, "kind": type(error).__name__})
    return code


@contextmanager
def _restored() -> Iterator[None]:
    """For callers of `main` inside a larger program: thread count and import path are as before."""
    torch, path = sys.modules.get("torch"), list(sys.path)
    threads = torch.get_num_threads() if torch else None
    try:
        yield
    finally:
        sys.path[:] = path
        if torch and threads is not None:
            torch.set_num_threads(threads)
