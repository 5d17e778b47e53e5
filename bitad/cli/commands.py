"""Helpers that add commands and shared options to the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args

from bitad.config.names import OnDecodeError
from bitad.runtime.log import did_you_mean, echo, printable

if TYPE_CHECKING:
    from bitad.config.schema import Config

Run = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """A parser that suggests similar names, and escapes control characters of arguments in its errors."""

    _given: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        if "required" in message:  # perhaps because its name is misspelt
            names = [one.partition("=")[0] for one in self._given if one.startswith("--")]
            known = tuple(self._option_string_actions)
            for name in dict.fromkeys(name for name in names if not any(one.startswith(name) for one in known)):
                message += f"; there is no option {name}{did_you_mean(name, known)}"
        super().error(printable(message))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += did_you_mean(str(value), map(str, action.choices or ()))
            raise

    def refuse_unknown(self, arguments: Sequence[str]) -> NoReturn:
        """Refuses arguments that no option takes, with the most similar options."""
        unknown = [argument.partition("=")[0] for argument in arguments if argument.startswith("-")]
        near = "".join(dict.fromkeys(did_you_mean(name, self._option_string_actions) for name in unknown))
        self.error(f"unrecognized arguments: {' '.join(arguments)}{near}")


class Commands:
    """Adds commands to the parser, each with the options that all commands have."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parsers = parser.add_subparsers(dest="command", metavar="COMMAND")

    def add(self, name: str, run: Run, summary: str, *examples: str) -> argparse.ArgumentParser:
        parser = add_parser(self.parsers, name, summary, examples)
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        parser.set_defaults(run=run)
        return parser


def check_seed(seed: int) -> None:
    """Raises ValueError for a number that is no seed."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"--seed {seed} is out of range; use 0 to 2^63 - 1")


def add_parser(
    parsers: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    examples: Sequence[str],
    notes: str = "",
) -> argparse.ArgumentParser:
    """Adds the parser of a command, with notes and examples below its options."""
    parser = parsers.add_parser(
        name,
        help=summary,
        description=summary,
        epilog="\n".join([f"{notes}examples:", *(f"  bitad {example}" for example in examples)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(parser=parser)
    return parser


def add_configuration(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="a YAML file, or the name of a preset (bitad config --presets)")
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    # Without a default, argparse would name it among the arguments that are required.
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key.sub=value", help="changes to the configuration"
    )


def config_of(arguments: argparse.Namespace) -> Config | None:
    """The configuration that ``--config`` names. Commands read it before they load PyTorch, which takes seconds."""
    from bitad.config.loading import load_config

    return None if arguments.config is None else load_config(arguments.config)


def add_config(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--config", metavar="CONFIG", help="a YAML file or a preset, for a detector of another project"
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (default: a GPU if there is one)")


def add_frame_rate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--frame-rate",
        type=float,
        metavar="FPS",
        help="frames a second, for formats that count frames; instead of the videos' own frames",
    )


def add_media(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--media",
        metavar="PREFIX",
        help="is put before the names of video files where the format names them, such as https://host/videos/ "
        "(default: the path of the file)",
    )


def print_written(files: Sequence[Path], folder: Path) -> None:
    """Print the files, or where there are many the folder."""
    named = ", ".join(map(str, files))
    echo(f"written: {named}" if len(files) <= 4 else f"written: {len(files)} files in {folder}")


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")


def parse_min_score(text: str) -> float | None:
    """The value of --min-score; None for auto."""
    try:
        return None if text == "auto" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a number") from None


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
