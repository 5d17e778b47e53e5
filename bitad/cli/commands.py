"""Helpers that add commands and shared options to the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn, get_args

from bitad.config.names import OnDecodeError
from bitad.runtime.log import echo, printable

Run = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """A parser that escapes control characters of arguments in its errors."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


class Commands:
    """Adds commands to the parser, each with the options that all commands have."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(self, name: str, run: Run, summary: str, *examples: str) -> argparse.ArgumentParser:
        parser = add_parser(self.parsers, name, summary, examples)
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        parser.set_defaults(run=run)
        return parser


def add_parser(
    parsers: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    examples: Sequence[str],
    notes: str = "",
) -> argparse.ArgumentParser:
    """Adds the parser of a command, with notes and examples below its options."""
    return parsers.add_parser(
        name,
        help=summary,
        description=summary,
        epilog="\n".join([f"{notes}examples:", *(f"  bitad {example}" for example in examples)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_configuration(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="a YAML file, or the name of a preset")
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="changes to the configuration")


def add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", metavar="CONFIG", help="a YAML file or a preset, for a detector of another project"
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (default: a GPU if there is one)")


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")


def add_on_decode_error(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--on-decode-error",
        "--damaged-frames",  # its name in earlier versions
        choices=get_args(OnDecodeError),
        default="error",
        help="for frames that cannot be decoded; repeat: show the last good one, and count (default: error)",
    )


def add_allow_clock_mismatch(parser: argparse.ArgumentParser, help_text: str) -> None:
    parser.add_argument("--allow-clock-mismatch", action="store_true", help=help_text)


def print_failures(command: str, failed: Mapping[str, str]) -> None:
    for name, reason in failed.items():
        echo(f"bitad {command}: error: {name}: {reason}", file=sys.stderr)
    sys.stdout.flush()  # torchrun ends all processes once one exits with status 1
