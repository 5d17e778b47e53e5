"""How commands are added to the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NoReturn, get_args

from bitad.config.names import OnDecodeError
from bitad.runtime.log import printable

Run = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """A parser whose errors name arguments (of a shell's ``*``, say) without letting them steer the terminal."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


class Commands:
    """Adds verbs to the parser, each with what all verbs have."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def add(self, name: str, run: Run, says: str, *examples: str) -> argparse.ArgumentParser:
        parser = self.parsers.add_parser(
            name,
            help=says,
            description=says,
            epilog="\n".join(["examples:", *(f"  bitad {example}" for example in examples)]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        parser.set_defaults(run=run)
        return parser


def add_on_decode_error(parser: argparse.ArgumentParser) -> None:
    """The option that says what to do with frames that cannot be decoded."""
    parser.add_argument(
        "--on-decode-error",
        "--damaged-frames",  # its name in earlier versions
        choices=get_args(OnDecodeError),
        default="error",
        help="of damaged or cut-off videos: show the last good one in their place, and say how often (error)",
    )
