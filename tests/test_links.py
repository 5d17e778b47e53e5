"""The links of the documents lead somewhere, and the files that they name exist."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from documents import NOTEBOOKS, ROOT, Document

DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "README.ko.md", "CHANGELOG.md")),
    *(ROOT / "docs").glob("*.md"),
    *NOTEBOOKS,
]
MESSAGES = [*(ROOT / "bitad").rglob("*.py"), *(ROOT / "bitad").rglob("*.yaml"), *(ROOT / "bitad").rglob("*.js")]
# A path of this repository in any text; not the end of a longer path, nor a pattern with a placeholder.
PATH = re.compile(r"(?<![\w/.~-])(?:docs|tests|bitad|benchmarks)/[\w./-]*\w(?![\w*{<])", re.ASCII)
PLACEHOLDER = re.compile(r"/NAME\b")
TO_WRITE = {
    "docs/extending.md": ["bitad/data/formats/daily.py", "bitad/models/gated.py"]
}  # its reader writes them


@cache
def anchors(path: Path) -> set[str]:
    return Document(path).anchors


def dead(links: list[str], folder: Path, own: set[str]) -> list[str]:
    """Those that lead to no file, to no heading, or are no https address."""
    found = []
    for link in links:
        parts = urlsplit(link)
        target = folder / unquote(parts.path)
        if parts.scheme or parts.netloc:
            is_dead = parts.scheme != "https" or "." not in parts.netloc
        elif parts.path and not target.exists():
            is_dead = True
        elif parts.fragment:
            is_dead = unquote(parts.fragment) not in (anchors(target.resolve()) if parts.path else own)
        else:
            is_dead = not parts.path
        if is_dead:
            found.append(link)
    return found


def missing(text: str) -> list[str]:
    """The paths of this repository in a text that do not exist."""
    paths = {path for path in PATH.findall(text) if not PLACEHOLDER.search(path)}
    return sorted(path for path in paths if not (ROOT / path).exists())


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_and_paths_of_a_document_lead_somewhere(path: Path) -> None:
    document = Document(path)
    assert dead(document.links, path.parent, document.anchors) == []
    assert missing(document.text) == TO_WRITE.get(path.relative_to(ROOT).as_posix(), [])


def test_paths_in_messages_and_comments_of_the_package_exist() -> None:
    assert {path.name: gone for path in MESSAGES if (gone := missing(path.read_text(encoding="utf-8")))} == {}


def test_what_a_dead_link_is(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# Über `--see`: it, again_\n## 내 비디오\n## x\n## x\n", encoding="utf-8")
    (tmp_path / "one.md").write_text(
        "# Own\n[a](other.md) ![b](no.png) [c][c] `[d](d.md)`\n\n| [e](#own) |\n| - |\n| [f](#none) |\n\n[c]: c.md\n"
    )
    one = Document(tmp_path / "one.md")
    assert dead(one.links, tmp_path, one.anchors) == ["no.png", "c.md", "#none"]
    fine = [
        "other.md#über---see-it-again_",
        "other.md#내-비디오",
        "other.md#%EB%82%B4-비디오",
        "other.md#x-1",
    ]
    bad = ["other.md#x-2", "other.md#X", "http://a.org/b", "https://", "mailto:me", "#"]
    assert dead(fine + bad + ["https://a.org/b#c"], tmp_path, set()) == bad
    text = "`docs/no.md`, see tests/test_links.py::x, `bitad/models/NAME.py`, https://a.org/docs/no, a/docs/no, docs/*."
    assert missing(text) == ["docs/no.md"]
