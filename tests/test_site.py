"""The documentation's site: it is built without a warning, and shows each document as a repository's page does."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
from documents import ROOT, Document

import bitad

pytestmark = pytest.mark.slow

PAGES = {
    **{path: f"{path.stem}/" for path in sorted((ROOT / "docs").glob("*.md"))},
    ROOT / "README.md": "",
    ROOT / "README.ko.md": "ko/",
    ROOT / "CHANGELOG.md": "changelog/",
}
# Of a page's text, by the tag and by the token of the document's reader.
BLOCKS = {
    "li": "list_item_open",
    "table": "table_open",
    "tr": "tr_open",
    "pre": ("fence", "code_block"),
    "img": "image",
}


class Article(HTMLParser):
    """A page of the site: its links, its anchors, and how often each tag is in its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.tags: Counter[str] = Counter()
        self._is_text = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self._is_text |= tag == "article"
        self.tags[tag] += self._is_text
        self.anchors |= {value for key in ("id", "name") if (value := given.get(key))}
        self.links += [value for key in ("href", "src") if (value := given.get(key)) is not None]

    def handle_endtag(self, tag: str) -> None:
        self._is_text &= tag != "article"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    missing = [name for name in ("material", "mkdocstrings") if importlib.util.find_spec(name) is None]
    if missing:
        reason = "no mkdocs-material or mkdocstrings, which build the site; pip install -e '.[docs]'"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def articles(site: Path) -> dict[str, Article]:
    """The pages by address, relative to the start."""
    return {path.parent.relative_to(site).as_posix(): Article(path) for path in site.rglob("index.html")}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_has_the_lists_tables_pictures_and_code_of_its_document(
    path: Path, articles: dict[str, Article]
) -> None:
    tokens = Counter(token.type for token in Document(path).tokens)
    written = {
        tag: sum(tokens[kind] for kind in ([kinds] if isinstance(kinds, str) else kinds))
        for tag, kinds in BLOCKS.items()
    }
    shown = articles[PAGES[path].rstrip("/") or "."].tags
    assert {tag: shown[tag] for tag in BLOCKS} == written


def test_every_link_of_the_site_leads_to_a_page_and_an_anchor_of_it(
    site: Path, articles: dict[str, Article]
) -> None:
    dead = []
    for address, article in articles.items():
        for link in article.links:
            path, anchor = urldefrag(link)
            if urlsplit(link).scheme in ("https", "data") or link.startswith("mailto:"):
                continue
            target = (site / address / unquote(path)).resolve() if path else site / address
            file = target / "index.html" if target.is_dir() else target
            if not file.is_file():
                dead.append((address, link))
            elif anchor and not anchor.startswith("__") and file.name == "index.html":
                place = file.parent.relative_to(site).as_posix()
                if unquote(anchor) not in articles[place].anchors:
                    dead.append((address, link))
    assert dead == []


def test_the_reference_has_every_public_name(articles: dict[str, Article]) -> None:
    public = {name for name in bitad.__all__ if not name.startswith("_")}
    shown = {anchor.rpartition(".")[2] for anchor in articles["api"].anchors if anchor.count(".") >= 2}
    assert public <= shown
    assert {"shown", "to_rows", "predict", "min_scores"} <= shown  # methods


def test_search_finds_both_languages_and_the_reference(site: Path) -> None:
    index = json.loads((site / "search/search_index.json").read_text(encoding="utf-8"))
    assert index["config"]["lang"] == ["en", "ko"]
    texts = {entry["location"]: entry["text"] for entry in index["docs"]}
    assert any("양방향" in text for text in texts.values())
    assert any(location.startswith("api/#bitad.library.load") for location in texts)
    assert not any(location.startswith("source/") for location in texts)


def test_the_site_asks_no_other_server(articles: dict[str, Article], site: Path) -> None:
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert "fonts.googleapis" not in text
        assert "unpkg.com" not in text
