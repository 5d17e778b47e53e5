"""``bitad --print-completion SHELL``: a script with which a shell completes commands, options and files."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SHELLS = ("bash", "zsh")


class PrintCompletion(argparse.Action):
    """An option that prints the script and ends. It needs the package shtab, which is an extra."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, shell: Any, option: str | None = None
    ) -> None:
        try:
            import shtab
        except ImportError:
            parser.error(f"{option} needs the package shtab; run: pip install 'bitad[completion]'")
        from bitad.config.loading import presets

        for action in _actions(parser):
            if action.dest == "config":
                vars(action)["complete"] = {**shtab.FILE, "bash": "_bitad_config_file"}
            elif action.type is Path:
                vars(action)["complete"] = shtab.FILE
        words = shlex.quote(" ".join(presets()))
        files = f'_bitad_config_file() {{\n  compgen -W {words} -- "$1"\n  compgen -f -- "$1"\n}}'
        print(shtab.complete(parser, shell, preamble=files if shell == "bash" else ""))
        parser.exit()


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The arguments of a parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
