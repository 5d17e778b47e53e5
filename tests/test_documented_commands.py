"""The command lines of all documents have commands, options, keys and presets that exist."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from documents import NOTEBOOKS, ROOT, Document

from bitad.cli import build_parser
from bitad.config.loading import _PATHS, presets

# Not the changelog, which tells of options that are gone.
DOCUMENTS = [ROOT / "README.md", ROOT / "README.ko.md", *sorted((ROOT / "docs").glob("*.md")), *NOTEBOOKS]
FOLDERS = {folder for folder, slash, _ in (name.partition("/") for name in presets()) if slash}
KEY = re.compile(r"([a-z_]+(?:\.[a-z_]+)*)=")


@cache
def options() -> dict[str, set[str]]:
    """The options of each command, `annotations check`; of a group, `annotations`, those of all its commands."""
    found: dict[str, set[str]] = {}

    def walk(parser: argparse.ArgumentParser, name: str) -> set[str]:
        own = set(parser._option_string_actions)
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for inner, one in action.choices.items():
                    below = walk(one, f"{name} {inner}".strip())
                    own |= below if name else set()
        found[name] = own
        return own

    walk(build_parser(), "")
    return found


def unknown(command: str) -> list[str]:
    """The words of a command line that are no command, no option, no key or no preset."""
    words = shlex.split(command)
    words = words[words.index("bitad") + 1 :]
    count = max(n for n in range(min(len(words), 2) + 1) if " ".join(words[:n]) in options())
    rest, found = words[count:], []
    if not count and rest and not rest[0].startswith("-"):
        return rest[:1]
    for word in rest:
        key = KEY.match(word)
        if word.startswith("--"):
            is_known = word.partition("=")[0] in options()[" ".join(words[:count])]
        elif key:
            is_known = key[1] in _PATHS or word == "key=value"
        elif "/" in word and word.partition("/")[0] in FOLDERS:
            is_known = word in presets()
        else:
            is_known = True
        found += [] if is_known else [word]
    return found


def commands(document: Document) -> Iterator[str]:
    blocks = (command for command in document.block_commands if not command.startswith("docker build"))
    yield from (command for command in blocks if "bitad" in command.split())
    yield from (code for code in document.inline_code if re.match(r"bitad |torchrun .* -m bitad ", code))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_command_lines_of_a_document_have_no_unknown_word(path: Path) -> None:
    wrong = {command: words for command in commands(Document(path)) if (words := unknown(command))}
    assert wrong == {}


def test_what_an_unknown_word_is() -> None:
    assert unknown("bitad trane my.yaml") == ["trane"]
    assert unknown("bitad train my.yaml --resume training.epoch=3 training.epochs=3 --resum") == [
        "training.epoch=3",
        "--resum",
    ]
    assert unknown("torchrun --nproc_per_node=4 -m bitad train thumos14/videomae-xs seed=1") == [
        "thumos14/videomae-xs"
    ]
    assert unknown("bitad annotations check a.json --page DIR --pages=DIR") == ["--pages=DIR"]
    assert unknown("bitad annotations --videos") == []
    assert unknown("bitad --version") == []
