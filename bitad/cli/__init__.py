"""The command line: one function for each command, a few lines over the code that does the work.

Nothing heavy is imported before the command is known: ``bitad evaluate`` never loads torch.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import NoReturn

import bitad
from bitad.cli import data, results, tools, train
from bitad.cli.commands import Commands, Parser, Run
from bitad.runtime.files import NO_ROOM
from bitad.runtime.log import command_logging, log_last, printable, tolerant_output
from bitad.runtime.signals import Stopped


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; the exit status: 0 done, 1 a failure with one line that says what, 2 wrong usage."""
    with tolerant_output():
        parsed = _parse(arguments)
        if threading.current_thread() is threading.main_thread():
            # Being terminated is being interrupted: what a verb has begun (processes, temporary files) it ends.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        with command_logging():
            status = _run(parsed)
        if status and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            _leave(status)
        return status


def _leave(status: int) -> NoReturn:
    """End one of several processes at once: threads of PyTorch's that have lost the others may abort the usual end."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):
            stream.flush()
    os._exit(status)


def _run(parsed: argparse.Namespace) -> int:
    run: Run = parsed.run
    try:
        status = run(parsed)
        if sys.stdout is not None:
            sys.stdout.flush()  # that it cannot be written is an error of this command
        return status
    except Stopped as stopped:
        log_last(f"bitad {parsed.verb}: stopped {stopped}")
        return stopped.status
    except KeyboardInterrupt:
        log_last(f"bitad {parsed.verb}: interrupted")
        return 130
    except Exception as error:
        message = " ".join(_said(error).split()) or type(error).__name__
        foreseen = isinstance(error, (ValueError, OSError))
        hint = "" if foreseen else f" ({type(error).__name__}; --debug shows the traceback)"
        log_last(f"bitad {parsed.verb}: error: {message}{hint}")
        if parsed.debug:
            sys.excepthook = _show_traceback
            raise
        return 1


def _show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    print(printable("".join(traceback.format_exception(kind, error, trace)), keep="\n"), file=sys.stderr, end="")


def _said(error: Exception) -> str:
    """An error's own words."""
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return f"{error}; make room and run the command again (bitad train goes on with --resume)"
    if isinstance(error, UnicodeEncodeError) and error.encoding == sys.getfilesystemencoding():
        return (
            f"{error.object!r} cannot be the name of a file in this locale, whose encoding is {error.encoding}; set "
            "PYTHONUTF8=1"
        )
    # PyTorch passes on what a process that reads windows has raised with the whole traceback in front.
    in_worker = re.fullmatch(r"Caught (\w+) in DataLoader worker .*\n[\w.]*\1: (.+)", str(error), re.DOTALL)
    return in_worker[2] if in_worker else str(error)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The parsed arguments; wrong usage ends the program with status 2."""
    parser = build_parser()
    parsed, rest = parser.parse_known_args(arguments)
    # argparse wants a list of positional arguments in one piece; changes to a configuration may follow options too.
    late = [argument for argument in rest if "overrides" in parsed and not argument.startswith("-")]
    if len(late) < len(rest):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if late:
        parsed.overrides = [*parsed.overrides, *late]
    return parsed


def build_parser() -> argparse.ArgumentParser:
    """All verbs and their options."""
    parser = Parser(prog="bitad", description="Bidirectional temporal action detection: what happens when in a video.")
    parser.add_argument("--version", action="version", version=f"bitad {bitad.__version__}")
    commands = Commands(parser)
    train.add_commands(commands)
    tools.add_plan(commands)
    data.add_reverse(commands)
    data.add_annotations(commands)
    data.add_features(commands)
    results.add_commands(commands)
    tools.add_weights(commands)
    return parser
