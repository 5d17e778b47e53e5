"""The type of a file, limits on what compressed files expand to, and the identity of a file."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from bitad.runtime.log import printable, shortlist

_HEAD_BYTES = 4096
# Larger files are not searched for an index of shards.
_INDEX_BYTES = 2**24
# The last bytes of the index of a TensorFlow checkpoint.
_TABLE_END = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"


@dataclass(frozen=True)
class Signature:
    """The type of a file: ``kind`` for code, a description and a remedy for messages."""

    kind: str
    description: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.description}; {self.remedy}"


_DOWNLOAD = "download the file itself again"
_EXTRACT = "decompress it first"
_CONVERT = "convert it with the framework that wrote it"
_MEMBER = "extract it and name the file inside"
_SAVE = "load it in its project and save its state_dict() with torch.save"
_OTHER = "name another file"

# (pattern of the first bytes, the fields of the type); the first match counts.
_BY_HEAD: tuple[tuple[bytes, str, str, str], ...] = (
    (
        rb"version https://git-lfs\.github\.com/spec/",
        "git-lfs",
        "a Git LFS pointer, not the file itself",
        "run `git lfs pull` in its repository",
    ),
    (
        rb"[^\n]{0,200}/annex/objects/",
        "git-annex",
        "a git-annex pointer, not the file itself",
        "run `git annex get` in its repository",
    ),
    (
        rb"(?is)(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.{0,1000}?-->\s*)?<(!doctype\s+html|html|head|body|meta|title|script)",
        "html",
        "an HTML page, as a login or an error gives one",
        _DOWNLOAD,
    ),
    (rb"(\xef\xbb\xbf)?\s*<(\?xml|Error>)", "xml", "an XML document, as a failed download gives one", _DOWNLOAD),
    (rb"\xff\xfe[^\x00]\x00|\xfe\xff\x00[^\x00]", "utf-16", "a text in UTF-16", "save it as UTF-8"),
    (rb"\x1f\x8b", "gzip", "a gzip file", _EXTRACT),
    (rb"BZh[1-9]", "bzip2", "a bzip2 file", _EXTRACT),
    (rb"\xfd7zXZ\x00", "xz", "an xz file", _EXTRACT),
    (rb"\x28\xb5\x2f\xfd", "zstd", "a Zstandard file", _EXTRACT),
    (rb"7z\xbc\xaf\x27\x1c", "7z", "a 7z archive", _MEMBER),
    (rb"Rar!\x1a\x07", "rar", "a RAR archive", _MEMBER),
    (rb"(?s).{257}ustar", "tar", "a tar archive", _MEMBER),
    (rb"\x89HDF\r\n\x1a\n", "hdf5", "an HDF5 file, as h5py and Keras write", _CONVERT),
    (rb"\x93NUMPY", "npy", "a NumPy array", "give it a name that ends in .npy where features are read"),
    (rb"MATLAB 5\.0", "matlab", "a MATLAB file", _CONVERT),
    (rb"GGUF", "gguf", "a GGUF file", _CONVERT),
    (rb"(?s)\x08\x01\x12", "tensorflow", "a TensorFlow model", _CONVERT),
    (rb"model_checkpoint_path:", "tensorflow", "TensorFlow's list of checkpoints", _CONVERT),
    (rb"\x08[\x02-\x1f][\x12\x1a\x22\x3a]", "onnx", "an ONNX model", _CONVERT),
    (
        rb"(?s)\x80.(\x95.{8})?\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19",
        "pytorch",
        "a PyTorch file in the format before 1.6",
        "give it a name that ends in .pth",
    ),
    (rb"\x80[\x02-\x05]", "pickle", "a Python pickle not written by torch.save", _SAVE),
    (rb"%PDF", "pdf", "a PDF document", _DOWNLOAD),
    (rb"\x89PNG\r\n|\xff\xd8\xff|GIF8", "picture", "a picture", _OTHER),
    (rb"(?s).{4}ftyp|\x1aE\xdf\xa3|RIFF.{4}AVI ", "video", "a video", _OTHER),
)

# (pattern in a member's name, the fields of the type of the zip archive); the first match counts.
_BY_MEMBER: tuple[tuple[str, str, str, str], ...] = (
    (r"/constants\.pkl$|/code/__torch__", "torchscript", "a TorchScript model, which contains code", _SAVE),
    (r"/data\.pkl$", "pytorch", "a PyTorch file", "give it a name that ends in .pt"),
    (r"\.npy$", "npz", "a NumPy .npz archive", "give it a name that ends in .npz where features are read"),
    (r"^model\.weights\.h5$", "keras", "a Keras model", _CONVERT),
    ("", "zip", "a zip archive", _MEMBER),
)


def signature_of(path: str | Path) -> Signature:
    """The type of a file. Raises OSError if it cannot be read."""
    with Path(path).open("rb") as file:
        return signature_in(file)


def signature_in(file: BinaryIO) -> Signature:
    """The type of an open file, whatever its position, which changes."""
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    size = file.seek(0, 2)
    if not head:
        return Signature("empty", "empty: it has no bytes", "write or download it again")
    if not head.strip(b"\x00"):
        return Signature("zeros", "zero bytes only at its start", "its download or copy stopped early: repeat it")
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip(file)
    for pattern, *fields in _BY_HEAD:
        if re.match(pattern, head):
            return Signature(*fields)
    header = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and 2 <= header <= size - 8:
        return Signature("safetensors", "a safetensors file", "give it a name that ends in .safetensors")
    file.seek(max(size - len(_TABLE_END), 0))
    if file.read() == _TABLE_END:
        return Signature("tensorflow", "a TensorFlow checkpoint's index", _CONVERT)
    if not _is_text(head):
        return Signature("unknown", "of an unknown type, or damaged at its start", "check where it comes from")
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
        return _index_of_shards(file, size) or Signature("json", "a JSON text", _OTHER)
    return Signature("text", "a text", _OTHER)


def _zip(file: BinaryIO) -> Signature:
    try:
        with zipfile.ZipFile(file) as archive:
            names = ["", *archive.namelist()]
    except Exception:  # damaged bytes can raise anything
        return Signature(
            "cut zip", "a zip archive (such as a PyTorch or .npz file), damaged or cut off", _DOWNLOAD
        )
    return next(Signature(*fields) for pattern, *fields in _BY_MEMBER if any(re.search(pattern, n) for n in names))


def _is_text(head: bytes) -> bool:
    try:
        head[: len(head) - 3 if len(head) == _HEAD_BYTES else None].decode()  # a character may be cut in two
    except UnicodeDecodeError as error:
        return error.start > len(head) - 8 and b"\x00" not in head
    return b"\x00" not in head


def _index_of_shards(file: BinaryIO, size: int) -> Signature | None:
    """The type of a list of sharded weights, like Hugging Face's ``*.index.json``."""
    file.seek(0)
    if size > _INDEX_BYTES or b'"weight_map"' not in (text := file.read()):
        return None
    try:
        shards = sorted(set(map(str, json.loads(text)["weight_map"].values())))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        shards = []
    names = f" ({len(shards)}: {shortlist(shards, 2)})" if shards else ""
    return Signature(
        "shards",
        f"an index of shards, which names the files with the weights{names}",
        "merge the shards into one dict and save it with torch.save or safetensors",
    )


# JSON of detections compresses 3 to 10 times, and the largest published ones have some 100 MB.
MOST_BYTES = 2**30
MOST_TIMES = 50
# Files that expand to this size or less are always read.
SMALL_BYTES = 2**26

_FOLDER = 0x10  # of a member's attributes in a zip file, as in MS-DOS


class UnsoundFileError(ValueError):
    """A file that states sizes it cannot have, or expands too much."""


def check_expansion(expanded: int, stored: int, where: str) -> None:
    """Refuse data that expand beyond :data:`MOST_BYTES`, or beyond 64 MiB and :data:`MOST_TIMES` their size."""
    if expanded > MOST_BYTES or (expanded > SMALL_BYTES and expanded > MOST_TIMES * stored):
        raise UnsoundFileError(
            f"{where}: {stored:,} compressed bytes expand to {expanded:,} or more; at most {MOST_BYTES // 2**20} MiB "
            f"and {MOST_TIMES} times their size are read; if you trust the file, decompress it"
        )


def check_archive(archive: zipfile.ZipFile, size: int, where: str, *, compressed: bool) -> None:
    """Refuse an archive that NumPy (``compressed``) or PyTorch cannot have written, by its directory."""
    members = archive.infolist()
    for name, count in Counter(member.filename for member in members).items():
        if count > 1:
            raise UnsoundFileError(
                f"{where}: {printable(name)} occurs {count} times, only the last is read; write it again"
            )
    allowed = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) if compressed else (zipfile.ZIP_STORED,)
    for member in members:
        name, method = f"{where}: {printable(member.filename)}", member.compress_type
        if (
            member.external_attr & _FOLDER or member.is_dir()
        ):  # PyTorch reads nothing of it, and leaves memory as it is
            raise UnsoundFileError(f"{name} is marked as a folder; the file is damaged, get it again")
        if member.flag_bits & 1:
            raise UnsoundFileError(f"{name} is encrypted; write it without a password")
        if method not in allowed:
            how = (
                f"compressed by zip's method {method}, which NumPy does not write; write it again with numpy.savez"
            )
            never = "compressed, which PyTorch never does; write it again with torch.save"
            raise UnsoundFileError(f"{name} is {how if compressed else never}")
        if method != zipfile.ZIP_STORED:
            check_expansion(member.file_size, member.compress_size, name)
        elif member.file_size != member.compress_size:
            raise UnsoundFileError(f"{name} claims {member.file_size:,} bytes, but has {member.compress_size:,}")
    if (held := sum(member.compress_size for member in members)) > size:
        raise UnsoundFileError(
            f"{where}: its members claim {held:,} bytes, but the file has {size:,}; it is damaged"
        )


@dataclass(frozen=True)
class FileIdentity:
    """A file's SHA-256, and size and time, by which an unchanged file need not be read again."""

    size: int
    mtime_ns: int = field(compare=False)
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileIdentity:
        before = path.stat()
        identity = cls(before.st_size, before.st_mtime_ns, sha256_of(path))
        identity.require_unchanged(path)
        return identity

    def now(self, path: Path) -> FileIdentity | None:
        """This identity with the file's present time; None if the content has changed."""
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
        """Raise ValueError if the file has changed since."""
        stat = path.stat()
        if (stat.st_size, stat.st_mtime_ns) != (self.size, self.mtime_ns):
            raise ValueError(f"{path}: was changed while it was read; run this again when it is complete")


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# A file up to this size is digested as a whole, a larger one by its size and samples.
_COMPLETE_BYTES = 1 << 20
_SAMPLE_BYTES = 1 << 16
_SAMPLES = 8


def file_digest(path: Path) -> str:
    """A digest of a file's content, of a large one by samples; raises OSError if it cannot be read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _COMPLETE_BYTES:
            return content_digest(file.read())
        samples = [str(size).encode()]
        for i in range(_SAMPLES):
            file.seek((size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
            samples.append(file.read(_SAMPLE_BYTES))
    return content_digest(b"".join(samples))


def content_digest(content: bytes) -> str:
    """A short digest: for changes, not against forgery."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()
