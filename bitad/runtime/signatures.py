"""What a file is: its type by its first bytes, limits on what an archive expands to, and its identity over time."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

_HEAD_BYTES = 4096
# An index of shards is small; more of a file is not read to look for one.
_INDEX_BYTES = 2**24


@dataclass(frozen=True)
class Signature:
    """What a file is.

    Args:
        kind: for code: ``"gzip"``, ``"safetensors"``, ...
        says: for people, after "is": "a gzip file".
        remedy: what to do, after a semicolon.
    """

    kind: str
    says: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.says}; {self.remedy}"


_DOWNLOAD = "download the file itself again"
_EXTRACT = "decompress it first"
_CONVERT = "convert it with the framework that wrote it"

# (pattern of the first bytes, what such a file is); the first that matches counts.
_BY_HEAD: tuple[tuple[bytes, Signature], ...] = (
    (
        rb"version https://git-lfs\.github\.com/spec/",
        Signature("git-lfs", "a Git LFS pointer, not the file itself", "run `git lfs pull` in its repository"),
    ),
    (
        rb"[^\n]{0,200}/annex/objects/",
        Signature("git-annex", "a git-annex pointer, not the file itself", "run `git annex get` in its repository"),
    ),
    (
        rb"(?is)(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.{0,1000}?-->\s*)?<(!doctype\s+html|html|head|body|meta|title|script)",
        Signature("html", "an HTML page, as a login or an error gives one", _DOWNLOAD),
    ),
    (
        rb"(\xef\xbb\xbf)?\s*<(\?xml|Error>)",
        Signature("xml", "an XML document, as a failed download gives one", _DOWNLOAD),
    ),
    (rb"\xff\xfe[^\x00]\x00|\xfe\xff\x00[^\x00]", Signature("utf-16", "a text in UTF-16", "save it as UTF-8")),
    (rb"\x1f\x8b", Signature("gzip", "a gzip file", _EXTRACT)),
    (rb"BZh[1-9]", Signature("bzip2", "a bzip2 file", _EXTRACT)),
    (rb"\xfd7zXZ\x00", Signature("xz", "an xz file", _EXTRACT)),
    (rb"\x28\xb5\x2f\xfd", Signature("zstd", "a Zstandard file", _EXTRACT)),
    (rb"7z\xbc\xaf\x27\x1c", Signature("7z", "a 7z archive", "extract it and name the file inside")),
    (rb"Rar!\x1a\x07", Signature("rar", "a RAR archive", "extract it and name the file inside")),
    (rb"(?s).{257}ustar", Signature("tar", "a tar archive", "extract it and name the file inside")),
    (rb"\x89HDF\r\n\x1a\n", Signature("hdf5", "an HDF5 file, as h5py and Keras write", _CONVERT)),
    (rb"\x93NUMPY", Signature("npy", "a NumPy array", "give it a name that ends in .npy where features are read")),
    (rb"MATLAB 5\.0", Signature("matlab", "a MATLAB file", _CONVERT)),
    (rb"GGUF", Signature("gguf", "a GGUF file", _CONVERT)),
    (rb"(?s)\x08\x01\x12", Signature("tensorflow", "a TensorFlow model", _CONVERT)),
    (rb"model_checkpoint_path:", Signature("tensorflow", "TensorFlow's list of checkpoints", _CONVERT)),
    (rb"\x08[\x02-\x1f][\x12\x1a\x22\x3a]", Signature("onnx", "an ONNX model", _CONVERT)),
    (
        rb"(?s)\x80.(\x95.{8})?\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19",
        Signature("pytorch", "a PyTorch file of the form before 1.6", "give it a name that ends in .pth"),
    ),
    (
        rb"\x80[\x02-\x05]",
        Signature(
            "pickle",
            "a Python pickle that torch.save has not written",
            "read it with the project that wrote it, and save its weights alone with torch.save",
        ),
    ),
    (rb"%PDF", Signature("pdf", "a PDF document", _DOWNLOAD)),
    (rb"\x89PNG\r\n|\xff\xd8\xff|GIF8", Signature("picture", "a picture", "name another file")),
    (rb"(?s).{4}ftyp|\x1aE\xdf\xa3|RIFF.{4}AVI ", Signature("video", "a video", "name another file")),
)
_EMPTY = Signature("empty", "empty: it has no bytes", "write or download it again")
_ZEROS = Signature("zeros", "nothing but zero bytes at its start", "its download or copy broke off: repeat it")
_SAFETENSORS = Signature("safetensors", "a safetensors file", "give it a name that ends in .safetensors")
_JSON = Signature("json", "a JSON text", "name another file")
_TEXT = Signature("text", "a text", "name another file")
_TENSORFLOW = Signature("tensorflow", "a TensorFlow checkpoint's index", _CONVERT)
_UNKNOWN = Signature("unknown", "of no known form, or damaged at its start", "check where it comes from")
# The last bytes of the index of a TensorFlow checkpoint, and of every other table of its kind.
_TABLE_END = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"

_PYTORCH_ZIP = Signature("pytorch", "a PyTorch file", "give it a name that ends in .pt")
_ZIPS: tuple[tuple[Callable[[str], bool], Signature], ...] = (
    (
        lambda name: name.endswith("/constants.pkl") or "/code/__torch__" in name,
        Signature(
            "torchscript",
            "a TorchScript model, which holds code",
            "load it in its project and save its state_dict() with torch.save",
        ),
    ),
    (lambda name: name.endswith("/data.pkl"), _PYTORCH_ZIP),
    (
        lambda name: name.endswith(".npy"),
        Signature("npz", "a NumPy .npz archive of arrays", "give it a name that ends in .npz where features are read"),
    ),
    (lambda name: name == "model.weights.h5", Signature("keras", "a Keras model", _CONVERT)),
)
_ZIP = Signature("zip", "a zip archive", "extract it and name the file inside")


def signature_of(path: str | Path) -> Signature:
    """What a file is by its bytes. Raises OSError where it cannot be read."""
    with Path(path).open("rb") as file:
        return signature_in(file)


def signature_in(file: BinaryIO) -> Signature:
    """What an opened file is by its bytes, wherever it stands; afterwards it stands anywhere."""
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    size = file.seek(0, 2)
    if not head:
        return _EMPTY
    if not head.strip(b"\x00"):
        return _ZEROS
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip(file)
    for pattern, signature in _BY_HEAD:
        if re.match(pattern, head):
            return signature
    header = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and 2 <= header <= size - 8:
        return _SAFETENSORS
    file.seek(max(size - len(_TABLE_END), 0))
    if file.read() == _TABLE_END:
        return _TENSORFLOW
    if not _is_text(head):
        return _UNKNOWN
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
        return _index_of_shards(file, size) or _JSON
    return _TEXT


def _zip(file: BinaryIO) -> Signature:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except Exception:  # zipfile raises whatever damaged bytes lead to
        return Signature(
            "cut zip", "a zip archive (a PyTorch or .npz file is one) that is damaged or cut off", _DOWNLOAD
        )
    return next((signature for fits, signature in _ZIPS if any(map(fits, names))), _ZIP)


def _is_text(head: bytes) -> bool:
    try:
        head[: len(head) - 3 if len(head) == _HEAD_BYTES else None].decode()  # a character may be cut in two
    except UnicodeDecodeError as error:
        return error.start > len(head) - 8 and b"\x00" not in head
    return b"\x00" not in head


def _index_of_shards(file: BinaryIO, size: int) -> Signature | None:
    """What names the files that hold the parts of a set of weights, as Hugging Face's ``*.index.json``."""
    file.seek(0)
    if size > _INDEX_BYTES or b'"weight_map"' not in (text := file.read()):
        return None
    try:
        shards = sorted(set(map(str, json.loads(text)["weight_map"].values())))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        shards = []
    count = f" ({len(shards)}: {', '.join(shards[:2])}{', ...' if len(shards) > 2 else ''})" if shards else ""
    return Signature(
        "shards",
        f"an index of shards, which names the files with the weights{count}",
        "put the shards into one file: load each, update one dict, save that with torch.save or safetensors",
    )


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
