"""By what a file is known later, to notice that another one has taken its place.

This module does not import torch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path


@dataclass(frozen=True)
class FileIdentity:
    """A file's content and, so that it need not be read again each time, when it was written.

    Two are equal if the content is.

    Args:
        size: in bytes.
        mtime_ns: when the file was changed last, in nanoseconds since 1970.
        sha256: of the content, as hexadecimal digits.
    """

    size: int
    mtime_ns: int = field(compare=False)
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileIdentity:
        """The identity of a file, which is read.

        Raises:
            OSError: it cannot be read.
            ValueError: it is written to meanwhile.
        """
        before = path.stat()
        identity = cls(before.st_size, before.st_mtime_ns, sha256_of(path))
        identity.require_unchanged(path)
        return identity

    def now(self, path: Path) -> FileIdentity | None:
        """This identity with the time that the file has now; None: the file has another content, or there is none.

        The file is read only where its time alone has changed, as that of a copy has.
        """
        try:
            stat = path.stat()
            if stat.st_size != self.size:
                return None
            if stat.st_mtime_ns == self.mtime_ns:
                return self
            return replace(self, mtime_ns=stat.st_mtime_ns) if sha256_of(path) == self.sha256 else None
        except OSError:
            return None

    def require_unchanged(self, path: Path) -> None:
        """Refuse a file that was written to since.

        Raises:
            ValueError: it was.
        """
        stat = path.stat()
        if (stat.st_size, stat.st_mtime_ns) != (self.size, self.mtime_ns):
            raise ValueError(f"{path}: was changed while it was read; run this again when it is complete")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, as hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
