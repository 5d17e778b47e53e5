"""The command line: one function per command, a few lines over the code that does the work.

Each command imports what it needs when it runs, so ``bitad --help`` is fast.
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
from bitad.cli import configs, data, export, results, train
from bitad.cli.commands import Commands, Parser, Run
from bitad.cli.completion import SHELLS, PrintCompletion
from bitad.runtime.files import NO_ROOM
from bitad.runtime.log import command_logging, log_last, printable, tolerant_output
from bitad.runtime.workers import Stopped


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        the exit status: 0 success, 1 a failure (one line says what failed), 2 wrong usage.
    """
    with tolerant_output():
        parsed = _parse(arguments)
        if threading.current_thread() is threading.main_thread():
            # Like an interrupt: the command ends its processes and removes temporary files.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        with command_logging():
            status = _run(parsed)
        if status and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            _exit_now(status)
        return status


def _exit_now(status: int) -> NoReturn:
    """Ends one of several processes at once: PyTorch's threads may abort a normal exit."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):
            stream.flush()
    os._exit(status)


def _run(parsed: argparse.Namespace) -> int:
    run: Run = parsed.run
    try:
        status = run(parsed)
        if sys.stdout is not None:
            sys.stdout.flush()  # a failure to write it is an error of this command
        return status
    except Stopped as stopped:
        log_last(f"bitad {parsed.command}: stopped {stopped}")
        return stopped.status
    except KeyboardInterrupt:
        log_last(f"bitad {parsed.command}: interrupted")
        return 130
    except Exception as error:
        message = " ".join(_message_of(error).split()) or type(error).__name__
        is_expected = isinstance(error, (ValueError, OSError))
        hint = "" if is_expected else f" ({type(error).__name__}; --debug shows the traceback)"
        log_last(f"bitad {parsed.command}: error: {message}{hint}")
        if parsed.debug:
            sys.excepthook = _show_traceback
            raise
        return 1


def _show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    print(printable("".join(traceback.format_exception(kind, error, trace)), keep="\n"), file=sys.stderr, end="")


def _message_of(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return f"{error}; free some space and run the command again (bitad train resumes with --resume)"
    if isinstance(error, UnicodeEncodeError) and error.encoding == sys.getfilesystemencoding():
        return f"{error.object!r} cannot be the name of a file in {error.encoding}; set PYTHONUTF8=1"
    # PyTorch puts the traceback of a worker process in front of its error.
    in_worker = re.fullmatch(r"Caught (\w+) in DataLoader worker .*\n[\w.]*\1: (.+)", str(error), re.DOTALL)
    return in_worker[2] if in_worker else str(error)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = build_parser()
    if sys.platform == "win32":
        arguments = _expanded(sys.argv[1:] if arguments is None else arguments)
    parsed, rest = parser.parse_known_args(arguments)
    if parsed.command is None:
        if rest:
            parser.refuse_unknown(rest)
        parser.print_help(sys.stderr)
        parser.exit(2)
    # argparse wants positional arguments side by side; overrides may also follow options.
    late = [argument for argument in rest if "overrides" in parsed and not argument.startswith("-")]
    if len(late) < len(rest):
        parsed.parser.refuse_unknown(rest)
    if late:
        parsed.overrides = [*parsed.overrides, *late]
    return parsed


def _expanded(arguments: Sequence[str]) -> list[str]:
    """Replaces patterns by the files that match them, as the shells of other systems do before a program starts."""
    import glob

    def matches(word: str) -> list[str]:
        is_pattern = glob.has_magic(word) and not word.startswith("-") and not os.path.lexists(word)
        return (sorted(glob.glob(word, recursive=True)) if is_pattern else []) or [word]

    return [match for word in arguments for match in matches(word)]


def build_parser() -> Parser:
    parser = Parser(
        prog="bitad",
        description="Bidirectional temporal action detection: finds when which action happens in a video.",
        epilog="bitad COMMAND --help shows options and examples; start with: bitad demo",
    )
    parser.add_argument("--version", action="version", version=f"bitad {bitad.__version__}")
    parser.add_argument(
        "--print-completion",
        action=PrintCompletion,
        choices=SHELLS,
        metavar="SHELL",
        help=f"print a script for completion with the Tab key, in {' or '.join(SHELLS)} (docs/configuration.md)",
    )
    commands = Commands(parser)
    configs.add_init(commands)
    configs.add_config(commands)
    train.add_commands(commands)
    train.add_plan(commands)
    data.add_reverse(commands)
    data.add_annotations(commands)
    data.add_features(commands)
    results.add_commands(commands)
    export.add_export(commands)
    train.add_weights(commands)
    return parser
