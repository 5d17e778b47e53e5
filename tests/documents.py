"""What the repository's documents hold: headings, links, commands."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
PROGRAMS = {
    *("bitad", "pytest", "python", "python3", "torchrun", "srun", "sbatch"),
    *(
        "pip",
        "uv",
        "conda",
        "git",
        "docker",
        "mkdocs",
        ".ci/platforms",
        "cd",
        "curl",
        "wget",
        ".",
        "source",
        "venv\\Scripts\\activate",
    ),
}
SHELLS = (["sh"], ["bash"], ["console"], ["shell"])


class Document:
    """A Markdown file, or a notebook: its texts, and its code as blocks."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def text(self) -> str:
        text = self.path.read_text(encoding="utf-8")
        return _text_of(json.loads(text)) if self.path.suffix == ".ipynb" else text

    @cached_property
    def blocks(self) -> list[Token]:
        return MarkdownIt("commonmark").enable("table").parse(self.text)

    @property
    def tokens(self) -> Iterator[Token]:
        """Blocks and what is in them, in order."""
        for block in self.blocks:
            yield block
            yield from block.children or ()

    @property
    def links(self) -> list[str]:
        """The targets of links and images."""
        found = [token.attrGet("href") or token.attrGet("src") for token in self.tokens]
        return [str(target) for target in found if target is not None]

    @property
    def anchors(self) -> set[str]:
        """The anchors that GitHub gives to the headings.

        Letters, digits, underscores, hyphens and spaces stay, in lower case; spaces become hyphens; a heading that
        comes again gets a number. Source: https://docs.github.com, "Section links".
        """
        seen: Counter[str] = Counter()
        result = set()
        for opening, inline in zip(self.blocks, self.blocks[1:], strict=False):
            if opening.type == "heading_open":
                text = "".join(child.content for child in inline.children or ())
                anchor = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
                result.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
                seen[anchor] += 1
        return result

    @property
    def block_commands(self) -> list[str]:
        """The command lines of the blocks, without comments."""
        lines = (
            line
            for token in self.blocks
            if token.type in ("fence", "code_block")
            for line in token.content.replace("\\\n", " ").splitlines()
            if token.info.split()[:1] in SHELLS or is_command(line)
        )
        commands = (part for line in lines for part in re.sub(r"(^|\s)#.*", "", line).split("&&"))
        return [" ".join(command.split()) for command in commands if command.strip()]

    @property
    def inline_code(self) -> list[str]:
        return [token.content for token in self.tokens if token.type == "code_inline"]

    @property
    def inline_commands(self) -> list[str]:
        """The command lines in the text, and calls of Python.

        Code of several words is a command line if it begins with no option and is no name of a command of BiTAD.
        """
        codes = (code for code in self.inline_code if not is_name(code))
        return [c for c in codes if is_call(c) or is_command(c) or (" " in c and not c.startswith("-"))]

    @property
    def names(self) -> list[str]:
        """The commands of BiTAD that are named in the text, such as `bitad init`."""
        return [code for code in self.inline_code if is_command(code) and is_name(code)]


def _text_of(notebook: dict[str, Any]) -> str:
    """A notebook's cells as Markdown; its command lines, which begin with !, as they are in a shell."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        is_code = cell["cell_type"] == "code"
        parts.append(f"```python\n{re.sub('^!', '', source, flags=re.MULTILINE)}\n```" if is_code else source)
    return "\n\n".join(parts)


def is_command(code: str) -> bool:
    """Whether it begins with a known program, after settings of the environment."""
    words = [word for word in code.split() if not re.match(r"[A-Z_]+=", word)]
    return bool(words) and words[0] in PROGRAMS


def is_name(code: str) -> bool:
    """Whether it only names a program, or a command of BiTAD."""
    return re.fullmatch(r"\w+|bitad [a-z]+( [a-z]+)?", code) is not None


def is_call(code: str) -> bool:
    return re.match(r"bitad\.\w+\(", code) is not None
