"""Pages of the documentation's site that are not files of docs/, and links that lead out of it (see mkdocs.yml).

The documents are written for a repository, where links lead to any file. On the site, a link to a README or the
changelog leads to its page, one to another text file to a page with its content, and one to a notebook or a picture
to a copy.
"""

from __future__ import annotations

import ast
import posixpath
import re
from pathlib import Path
from urllib.parse import unquote

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent
PAGES = {"README.md": "index.md", "README.ko.md": "ko.md", "CHANGELOG.md": "changelog.md"}
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".txt": "text", "": "text"}
# Of a link or an image with a path: not an address, nor an anchor of the page itself. Code holds no links.
LINK = re.compile(r"(`+).+?\1|(\]\()(?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?\)", re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages, and those that links lead to."""
    pages = {name: (ROOT / name).read_text(encoding="utf-8") for name in PAGES}
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=pages[name]))
    files.append(File.generated(config, "api.md", content=_reference()))
    documents = {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for path in (ROOT / "docs").glob("*.md")
    }
    for name, text in (pages | documents).items():
        for found in LINK.finditer(text):
            if found[3] is not None and (target := _outside(name, found[3])) is not None:
                page = _page_of(target)
                if files.get_file_from_path(page) is None and (ROOT / target).is_file():
                    files.append(_copy(config, target, page))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replaces the targets of links by those of the site."""
    source = next((name for name, own in PAGES.items() if own == page.file.src_uri), f"docs/{page.file.src_uri}")

    def link(found: re.Match[str]) -> str:
        if found[3] is None:
            return found[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), unquote(found[3])))
        place = _page_of(target) if (ROOT / target).is_file() else found[3]
        return f"]({posixpath.relpath(place, posixpath.dirname(page.file.src_uri) or '.')}{found[4] or ''})"

    return markdown if page.file.src_uri.startswith("source/") else _for_python_markdown(LINK.sub(link, markdown))


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leaves only the name of what docstrings refer to by a role of Sphinx."""
    return re.sub(r":(?:meth|class|func|mod|attr):(?=<code>)", "", html) if page.file.src_uri == "api.md" else html


def _for_python_markdown(text: str) -> str:
    """A text of CommonMark for Python-Markdown, which shows the site's pages.

    There the content of a list's item is indented by four spaces, whatever its marker. A list follows an empty line,
    and so does an item after one of several paragraphs. A block of code names its language only.
    """
    result: list[str] = []
    offset, is_code, has_paragraphs = 0, False, False
    for line in text.split("\n"):
        if line.lstrip().startswith("```"):
            is_code = not is_code
            line = re.sub(r"(```\w+) .*", r"\1", line)
        if not is_code and (marker := re.match(r"([*-]|\d+\.) +(?=\S)", line)):
            if (has_paragraphs or not offset) and result and result[-1].strip():
                result.append("")
            offset, has_paragraphs = marker.end(), False
        elif offset and line.startswith(" " * offset):
            has_paragraphs |= not result[-1].strip()
            line = " " * (4 - offset) + line
        elif line.strip() and result and not result[-1].strip():
            offset = 0
        result.append(line)
    return "\n".join(result)


def _outside(document: str, link: str) -> str | None:
    """The path in the repository that a document's link leads to; None in docs/."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(document), unquote(link)))
    return None if target.startswith("docs/") else target


def _page_of(target: str) -> str:
    """Of a path in the repository, the source file of the site."""
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    if Path(target).suffix in LANGUAGES:
        return f"source/{target}.md"
    return PAGES.get(target, f"source/{target}")


def _copy(config: MkDocsConfig, target: str, page: str) -> File:
    if not page.endswith(".md"):
        return File.generated(config, page, abs_src_path=str(ROOT / target))
    content = (ROOT / target).read_text(encoding="utf-8")
    fence = "`" * 4
    code = f"{fence}{LANGUAGES[Path(target).suffix]}\n{content}{fence}\n"
    text = f"---\nsearch: {{exclude: true}}\n---\n\n# {target}\n\n{code}"
    return File.generated(config, page, content=text, inclusion=InclusionLevel.NOT_IN_NAV)


def _reference() -> str:
    """The page of the Python API: the public names of bitad/__init__.py, each from its module."""
    tree = ast.parse((ROOT / "bitad/__init__.py").read_text(encoding="utf-8"))
    modules = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bitad.")
        for alias in node.names
    }
    (names,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    public = [name for name in names if not name.startswith("_")]
    functions = [name for name in public if name.islower()]
    parts = ["# API reference\n\n[Python API](library.md) shows how these are used. All are names of `bitad`.\n"]
    parts += [f"::: {modules[name]}.{name}\n" for name in (*functions, *sorted(set(public) - set(functions)))]
    return "\n".join(parts)
