"""What a compressed file or an archive may hold before it is read: a small one must not fill the memory.

This module does not import torch.
"""

from __future__ import annotations

import zipfile
from collections import Counter

# JSON of detections compresses to a third or a tenth, features of numbers to little less than they are, and the
# detections of the largest published test sets are some 100 MB. Beyond these limits a file is refused, unread.
MOST_BYTES = 2**30
MOST_TIMES = 50
# So much is read in any case: what is small may be as regular as it likes.
SMALL_BYTES = 2**26


class UnsoundFileError(ValueError):
    """A file that claims what it cannot hold, or expands to what nobody wants to have in memory."""


def check_expansion(expanded: int, stored: int, where: str) -> None:
    """Refuse compressed data that expand beyond :data:`MOST_BYTES`, or beyond 64 MiB and :data:`MOST_TIMES` their size.

    Args:
        expanded: bytes so far, or as stated.
        stored: bytes as they lie on disk.
        where: what to call it in an error.

    Raises:
        UnsoundFileError: they do.
    """
    if expanded > MOST_BYTES or (expanded > SMALL_BYTES and expanded > MOST_TIMES * stored):
        raise UnsoundFileError(
            f"{where}: {stored:,} compressed bytes expand to {expanded:,} or more; at most {MOST_BYTES // 2**20} MiB "
            f"and {MOST_TIMES} times the compressed size are read; if you trust the file, decompress it"
        )


def check_archive(archive: zipfile.ZipFile, size: int, where: str, *, compressed: bool) -> None:
    """Refuse a zip archive, of an ``.npz`` or a PyTorch file, that is not what NumPy or PyTorch writes.

    Args:
        archive: the archive; only its directory is read.
        size: bytes of the file.
        where: what to call it in an error.
        compressed: whether members may be compressed; PyTorch never compresses.

    Raises:
        UnsoundFileError: a name occurs twice, a member is compressed or encrypted in a way that is not allowed, or
            states a size that its bytes in the file cannot have.
    """
    members = archive.infolist()
    for name, count in Counter(member.filename for member in members).items():
        if count > 1:
            raise UnsoundFileError(
                f"{where}: {name} is in it {count} times; only the last would be read: write it again"
            )
    allowed = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) if compressed else (zipfile.ZIP_STORED,)
    for member in members:
        if member.flag_bits & 1:
            raise UnsoundFileError(f"{where}: {member.filename} in it is encrypted; write it without a password")
        if member.compress_type not in allowed:
            how, remedy = (
                (f"compressed in a way that NumPy does not write (zip's method {member.compress_type})", "numpy.savez")
                if compressed
                else ("compressed, which PyTorch never does", "torch.save")
            )
            raise UnsoundFileError(f"{where}: {member.filename} in it is {how}; write it again with {remedy}")
        if member.compress_type == zipfile.ZIP_STORED and member.file_size != member.compress_size:
            raise UnsoundFileError(
                f"{where}: {member.filename} in it claims {member.file_size:,} bytes, but has {member.compress_size:,}"
            )
        if member.compress_type != zipfile.ZIP_STORED:
            check_expansion(member.file_size, member.compress_size, f"{where}: {member.filename}")
    if (held := sum(member.compress_size for member in members)) > size:
        raise UnsoundFileError(f"{where}: its members claim {held:,} bytes, but the file has {size:,}; it is damaged")
