"""Weights by name: ``hub:OWNER/NAME`` is a file in a repository of the Hugging Face Hub, downloaded once and cached.

``huggingface_hub`` downloads and caches; its settings hold here too (``HF_HOME``, ``HF_ENDPOINT`` for a mirror,
``HF_HUB_OFFLINE=1``, ``HF_TOKEN``). A file is locked while it is downloaded, so of several processes one downloads and
the others wait. A download that is stopped is continued by the next command. Only what a name asks for is downloaded.
The SHA-256 of the first download of a name is recorded, and a later file that differs is refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from bitad.runtime.files import atomic_write
from bitad.runtime.log import log, log_once
from bitad.runtime.progress import Meter

PREFIX = "hub:"
# Of names that stand for a whole repository: a model of the library `transformers`.
FOLDER_PREFIX = "hf:"
# The files of weights in a repository; earlier ones are preferred.
_FILES = ("model.safetensors", "pytorch_model.bin")
_NAME = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?(:(?P<file>[\w./-]+))?", re.ASCII)
# The ETag of a large file is its SHA-256.
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MB = 10**6

# Repositories with VideoMAE's weights, and the sizes of the backbone that they fit. The names are those of their
# owners' pages; their files were not downloaded to check this list.
KNOWN = {
    "MCG-NJU/videomae-small-finetuned-kinetics": "s",
    "MCG-NJU/videomae-base-finetuned-kinetics": "b",
    "MCG-NJU/videomae-large-finetuned-kinetics": "l",
    "MCG-NJU/videomae-huge-finetuned-kinetics": "h",
    "OpenGVLab/VideoMAEv2-Base": "b",
    "OpenGVLab/VideoMAEv2-Large": "l",
    "OpenGVLab/VideoMAEv2-Huge": "h",
    "OpenGVLab/VideoMAEv2-giant": "g",
}


@dataclass(frozen=True)
class HubName:
    """A name ``hub:OWNER/NAME[@REVISION][:FILE]``.

    Args:
        repository: ``OWNER/NAME``.
        revision: a branch, tag or commit; None: the default branch.
        file: in the repository; None: :data:`_FILES`.
        prefix: with which messages write it.
    """

    repository: str
    revision: str | None = None
    file: str | None = None
    prefix: str = PREFIX

    @staticmethod
    def of(text: str | Path) -> HubName:
        """From its text, with or without ``hub:``.

        Raises:
            ValueError: it is no such name.
        """
        text = Path(text).as_posix()
        match = _NAME.fullmatch(text.removeprefix(PREFIX))
        if match is None:
            raise ValueError(
                f"{text!r} is not a name of weights; give hub:OWNER/NAME, hub:OWNER/NAME@REVISION or "
                f"hub:OWNER/NAME:FILE, such as {PREFIX}{next(iter(KNOWN))}"
            )
        return HubName(**match.groupdict())

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.prefix}{self.repository}{revision}" + (f":{self.file}" if self.file else "")


@dataclass(frozen=True)
class HubFile:
    """A downloaded file, in the cache of ``huggingface_hub``."""

    path: Path
    sha256: str


def is_hub_name(path: str | Path) -> bool:
    """Whether a path of weights is a name of the Hub."""
    return Path(path).as_posix().startswith(PREFIX)


def similar_name(path: Path) -> str:
    """A known name for a missing file: of the same size and version, as far as its name says them."""
    if (name := path.as_posix()) in KNOWN:
        return f"{PREFIX}{name}"
    words = re.findall(r"small|base|large|huge|giant|videomaev2", path.name.lower())
    return PREFIX + max(KNOWN, key=lambda one: sum(word in one.lower() for word in words))


def hub_file(name: HubName) -> HubFile:
    """The file of a name, downloaded if it is not in the cache.

    Raises:
        ValueError: no such repository, revision or file, no access, or a file that differs from the first download.
        ConnectionError: the file is not in the cache and cannot be downloaded.
        OSError: the cache cannot be written.
    """
    path = _cached_or_downloaded(name)
    if path is None:
        files = " or ".join(_files(name))
        raise ValueError(f"{name}: the repository has no {files}; name one of its files, see {_page(name)}")
    sha256 = _sha256(path)
    _compare_with_first(name, path, sha256)
    return HubFile(path, sha256)


def optional_hub_file(name: HubName) -> Path | None:
    """A file that its repository may lack, which is asked once; otherwise like :func:`hub_file`."""
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    assert name.file is not None
    if try_to_load_from_cache(name.repository, name.file, revision=name.revision) is _CACHED_NO_EXIST:
        return None
    return _cached_or_downloaded(name)


def _cached_or_downloaded(name: HubName) -> Path | None:
    try:
        return _cached(name) or _downloaded(name)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(
            f"{name}: the cache cannot be used ({error}); set HF_HOME to a folder that you can write and that has room"
        ) from None


def _compare_with_first(name: HubName, path: Path, sha256: str) -> None:
    """Records the SHA-256 of a name's first download; ValueError if it was another one."""
    from huggingface_hub import constants

    key = str(name).removeprefix(PREFIX) if name.file else f"{str(name).removeprefix(PREFIX)}:{path.name}"
    record = Path(constants.HF_HOME) / "bitad" / f"{re.sub('[/:@]', '--', key)}.sha256"
    try:
        first = record.read_text(encoding="utf-8").split()[0]
    except (FileNotFoundError, NotADirectoryError, IndexError):
        try:
            with atomic_write(record) as partial:
                partial.write_text(f"{sha256}  {path.name}\n", encoding="utf-8")  # as sha256sum writes it
        except OSError as error:  # a cache that others have filled
            log_once(
                f"{name}: its SHA-256 cannot be recorded ({error}); later changes of the file are not noticed"
            )
        return
    if first != sha256:
        raise ValueError(
            f"{name} has changed: {path} has the SHA-256 {sha256[:12]}..., the first download had "
            f"{first[:12]}...; if its owner has replaced the file and you want the new one, remove {record}; if it is "
            f"damaged, remove {_folder(name)} to download it again"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folder(name: HubName) -> Path:
    """The repository's folder in the cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{name.repository.replace('/', '--')}"


def _cached(name: HubName) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    for file in _files(name):
        with suppress(LocalEntryNotFoundError, ValueError):  # the latter: a name that the Hub does not allow
            return Path(hf_hub_download(name.repository, file, revision=name.revision, local_files_only=True))
    return None


def _downloaded(name: HubName) -> Path | None:
    """The downloaded file; None: the repository has none of that name."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    by_hand = _by_hand(name)
    if constants.HF_HUB_OFFLINE:
        raise ConnectionError(
            f"{name} is not in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to download it; unset "
            f"that, {by_hand}"
        )
    log.info("%s is not in %s: downloading it from %s", name, constants.HF_HUB_CACHE, constants.ENDPOINT)
    for file in _files(name):
        with suppress(EntryNotFoundError), _plain_errors(name, by_hand):
            bar = _bar(f"{name}, {file}")
            _fetch(name, file, bar)
            return Path(hf_hub_download(name.repository, file, revision=name.revision, tqdm_class=bar))
    return None


def _page(name: HubName) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{name.repository}/tree/{name.revision or 'main'}"


def _by_hand(name: HubName) -> str:
    if name.prefix == FOLDER_PREFIX:
        return f"or download the repository by hand from {_page(name)} and give the path of its folder"
    files = " or ".join(_files(name))
    return f"or download {files} by hand from {_page(name)} and give the path of the file"


@contextmanager
def _plain_errors(name: HubName, by_hand: str) -> Iterator[None]:
    """Errors of downloads in one line; that a repository lacks a file remains an EntryNotFoundError."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except LocalEntryNotFoundError as error:  # it also means that there is no connection
        reason = error.__cause__ or error
        raise ConnectionError(
            f"{name} is not in the cache and cannot be downloaded: {str(reason).rstrip('.')}; connect to the "
            f"network, {by_hand}"
        ) from None
    except EntryNotFoundError:
        raise
    except GatedRepoError:
        raise ValueError(
            f"{name}: its owner grants access by request; ask at {constants.ENDPOINT}/{name.repository} and set "
            f"HF_TOKEN, {by_hand}"
        ) from None
    except RepositoryNotFoundError:
        near = get_close_matches(name.repository, KNOWN, n=1, cutoff=0.5)
        hint = f"did you mean {PREFIX}{near[0]}?" if near else f"known ones are {', '.join(KNOWN)}"
        if name.prefix == FOLDER_PREFIX:
            hint = f"check the name at {constants.ENDPOINT}, or set HF_TOKEN"
        raise ValueError(f"{name}: no such repository, or a private one; {hint}") from None
    except RevisionNotFoundError:
        raise ValueError(f"{name}: the repository has no revision {name.revision}; leave it out") from None
    except _DamagedError as error:
        raise ConnectionError(f"{name} cannot be downloaded: {error}; try again later, {by_hand}") from None
    except ValueError as error:
        raise ValueError(f"{name} is not a name of weights: {error}") from None
    except Exception as error:  # versions of the library raise errors of different HTTP clients
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the cache, with its path
        raise ConnectionError(
            f"{name} cannot be downloaded: {str(error).rstrip('.')}; try again later, {by_hand}"
        ) from None


class _DamagedError(ConnectionError):
    """The server has sent another content than it stated."""


def _fetch(name: HubName, file: str, bar: type) -> None:
    """Brings the content of a file into the cache, where ``hf_hub_download`` then finds it.

    Other than that function of version 2, it continues a download that was stopped.
    """
    # The unfinished file and the lock have the library's names: `hf cache prune` removes what is left over. The names
    # contain the SHA-256 of the content, so a file that was replaced is not continued.
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    try:
        metadata = get_hf_file_metadata(hf_hub_url(name.repository, file, revision=name.revision))
    except Exception:  # hf_hub_download tries again, and says why it failed
        return
    sha256, commit, size = metadata.etag, metadata.commit_hash, metadata.size
    if sha256 is None or not _SHA256.fullmatch(sha256) or commit is None or size is None:
        return  # a small file, or a server that does not say which content it has: left to hf_hub_download
    url = hf_hub_url(name.repository, file, revision=commit)  # a branch may move while the file is downloaded
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}  # a range of the file as it is
    folder = _folder(name)
    blob, partial = (folder / "blobs" / one for one in (sha256, f"{sha256}.incomplete"))
    lock = folder.parent / ".locks" / folder.name / f"{sha256}.lock"
    for one in (blob.parent, folder / "snapshots", lock.parent):
        one.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        while not blob.exists():
            if partial.exists() and partial.stat().st_size > size:
                partial.unlink()
            try:
                with partial.open("ab") as content:
                    start = content.tell()
                    if start:
                        log.info(
                            "continuing a download that was stopped at %d of %d MB", start // _MB, size // _MB
                        )
                    http_get(url, content, resume_size=start, headers=headers, expected_size=size, tqdm_class=bar)
            finally:
                if partial.exists() and not partial.stat().st_size:
                    partial.unlink()
            if (received := _sha256(partial)) == sha256:
                partial.replace(blob)
            else:
                partial.unlink()
                if not start:
                    raise _DamagedError(
                        f"{url} has the SHA-256 {sha256[:12]}..., the file received has {received[:12]}..."
                    )
                log.warning("the part of %s that was downloaded earlier is damaged: downloading all of it", name)


def _files(name: HubName) -> tuple[str, ...]:
    return _FILES if name.file is None else (name.file,)


def _bar(what: str) -> type:
    """A class with the part of tqdm's interface that ``huggingface_hub`` uses, which shows a :class:`Meter`."""
    from huggingface_hub import constants

    class Bar:
        def __init__(self, *, total: int | None = None, initial: int = 0, **_: Any) -> None:
            self.n, self.total = initial, total
            show = not constants.HF_HUB_DISABLE_PROGRESS_BARS
            self._meter = Meter(f"downloading {what} (MB)", (total or 0) // _MB, show=show)

        def __enter__(self) -> Bar:
            self._meter.__enter__()
            return self

        def __exit__(self, *error: object) -> None:
            self._meter.__exit__(*error)

        close = __exit__

        def update(self, count: float = 1) -> None:
            self.n += int(count)
            self._meter.advance(self.n // _MB - self._meter.done)

        def ignored(self, *_: object, **__: object) -> None:
            pass

        refresh = set_postfix_str = set_description = ignored
        update_transfer = set_transfer_postfix_str = ignored  # one bar for bytes received and written

    return Bar
