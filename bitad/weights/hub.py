"""Weights by name: ``hub:OWNER/NAME`` is a file in a repository of the Hugging Face Hub, downloaded once and cached.

``huggingface_hub`` downloads, resumes and caches; its settings hold here too (``HF_HOME``, ``HF_ENDPOINT`` for a
mirror, ``HF_HUB_OFFLINE=1``, ``HF_TOKEN``). Only what a name asks for is downloaded. The SHA-256 of the first download
of a name is recorded, and a later file that differs is refused.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from bitad.runtime.files import read_json, write_json
from bitad.runtime.locking import locked
from bitad.runtime.log import log_once

PREFIX = "hub:"
# The files of weights in a repository; earlier ones are preferred.
_FILES = ("model.safetensors", "pytorch_model.bin")
_NAME = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?(:(?P<file>[\w./-]+))?")
_RECORD = "bitad-sha256.json"

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
    """

    repository: str
    revision: str | None = None
    file: str | None = None

    @staticmethod
    def of(text: str) -> HubName:
        """From its text.

        Raises:
            ValueError: it is no such name.
        """
        match = _NAME.fullmatch(text.removeprefix(PREFIX))
        if not text.startswith(PREFIX) or match is None:
            raise ValueError(
                f"{text!r} is not a name of weights; give hub:OWNER/NAME, hub:OWNER/NAME@REVISION or "
                f"hub:OWNER/NAME:FILE, such as {PREFIX}{next(iter(KNOWN))}"
            )
        return HubName(**match.groupdict())

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{PREFIX}{self.repository}{revision}" + (f":{self.file}" if self.file else "")


def is_hub_name(path: str | Path) -> bool:
    """Whether a path of weights is a name of the Hub."""
    return Path(path).as_posix().startswith(PREFIX)


def hub_file(text: str | Path) -> Path:
    """The file of a name, downloaded if it is not in the cache.

    Raises:
        ValueError: not a name, no such repository or file, or a file that differs from the first download.
        ConnectionError: the file is not in the cache and cannot be downloaded.
    """
    from huggingface_hub import constants

    name = HubName.of(Path(text).as_posix())
    path = _fetch(name)
    record = Path(constants.HF_HUB_CACHE) / _RECORD
    sha256 = _sha256(path)
    with locked(record.parent, remedy="wait for the other download"):
        known = read_json(record) if record.is_file() else {}
        key = f"{name}:{path.name}" if name.file is None else str(name)
        if known.setdefault(key, sha256) != sha256:
            raise ValueError(
                f"{key}: {path} has the SHA-256 {sha256[:12]}..., its first download had {known[key][:12]}...; if its "
                f"owner has replaced it and you want the new one, remove the line from {record}"
            )
        write_json(known, record)
    return path


def _fetch(name: HubName) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    files = _FILES if name.file is None else (name.file,)
    for file in files:
        with suppress(LocalEntryNotFoundError):
            return Path(hf_hub_download(name.repository, file, revision=name.revision, local_files_only=True))
    by_hand = f"or download {' or '.join(files)} by hand from {_page(name)} and give the path of the file"
    for file in files:
        try:
            path = Path(hf_hub_download(name.repository, file, revision=name.revision))
            log_once(f"downloaded {name}: {path}")
            return path
        except LocalEntryNotFoundError as error:
            raise ConnectionError(
                f"{name} is not in the cache, and cannot be downloaded: {error.__cause__ or error}; "
                f"connect to the network, {by_hand}"
            ) from None
        except EntryNotFoundError:
            continue
        except GatedRepoError:
            raise ValueError(f"{name}: its owner grants access by request; set HF_TOKEN, {by_hand}") from None
        except RepositoryNotFoundError:
            near = get_close_matches(name.repository, KNOWN, n=1, cutoff=0.5)
            hint = f"did you mean {PREFIX}{near[0]}?" if near else f"known ones: {', '.join(KNOWN)}"
            raise ValueError(f"{name}: no such repository, or a private one; {hint}") from None
        except RevisionNotFoundError:
            raise ValueError(f"{name}: the repository has no revision {name.revision!r}; leave it out") from None
        except OSError as error:
            raise ConnectionError(f"{name} cannot be downloaded: {error}; try again later, {by_hand}") from None
    raise ValueError(f"{name}: the repository has no {' or '.join(files)}; name one of its files: {name}:FILE")


def _page(name: HubName) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{name.repository}/tree/{name.revision or 'main'}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
