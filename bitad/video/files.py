"""Video files in a folder, by name."""

from __future__ import annotations

import errno
import os
import stat
import time
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from bitad.runtime.files import is_file_named, walk

# In the order of preference where a folder holds several files of one name.
VIDEO_SUFFIXES = (
    ".mp4",
    ".mkv",
    ".webm",
    ".mov",
    ".m4v",
    ".avi",
    ".mpg",
    ".mpeg",
    ".ts",
    ".m2ts",
    ".flv",
    ".wmv",
    ".3gp",
    ".h264",
    ".264",
    ".hevc",
    ".265",
)

# Results of a video are files of its name with another suffix, of four bytes; file systems take names of 255.
_MOST_BYTES = 251


def videos_by_name(paths: Sequence[Path]) -> dict[str, Path]:
    """Video files by the names under which results are written: those of the files, without the suffix.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a folder; two files of one name; a name under which nothing can be written.
    """
    videos: dict[str, Path] = {}
    for path in paths:
        if path.is_dir():
            raise ValueError(f"{path} is a folder; give the video files in it")
        if not path.is_file():
            raise FileNotFoundError(f"{str(path)!r}: no such video file; check its name")
        if defect := _name_defect(path.stem):
            raise ValueError(f"{str(path)!r}: its results cannot be written under its name, {defect}; rename the file")
        if path.stem in videos:
            raise ValueError(
                f"{videos[path.stem]} and {path} have the same name, {path.stem!r}, under which results are written; "
                "rename one, or give them one at a time, each with an --out of its own"
            )
        videos[path.stem] = path
    return videos


def _name_defect(name: str) -> str | None:
    """Why a name cannot be that of results: these are files, JSON, lines in a terminal and addresses in a page."""
    if not _is_text(name):
        return "which is not UTF-8"
    if "\\" in name:
        return "which has a backslash in it"
    if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in name):
        return "which has a control character in it"
    if len(os.fsencode(name)) > _MOST_BYTES:
        return "which is too long"
    return None


# Two changes of a folder within this time may leave it with one time.
_TICK_NS = 2 * 10**9


def find_video(folder: str | Path, name: str) -> Path:
    """The video file of an annotation's video: ``name`` with any of ``VIDEO_SUFFIXES``, or ``name`` itself.

    A file in the folder is preferred to those in sub-folders.

    Raises:
        FileNotFoundError: neither the folder nor a sub-folder has one.
        ValueError: several sub-folders have one.
    """
    folder = Path(folder)
    itself = [""] if Path(name).suffix.lower() in VIDEO_SUFFIXES else []
    names = [f"{name}{ending}" for ending in (*itself, *chain(*((end, end.upper()) for end in VIDEO_SUFFIXES)))]
    for file in names:
        if is_file_named(path := folder / file):  # False, too, where the name is too long
            return path
    places = _Tree.of(folder).places
    found = [place / file for file in names for place in places.get(file, ()) if os.path.isfile(place / file)]
    if others := [path for path in found[1:] if path.parent != found[0].parent and not is_same_file(path, found[0])]:
        raise ValueError(f"{found[0]} and {others[0]} are both called {name!r}; rename or remove one")
    if found:
        return found[0]
    raise FileNotFoundError(f"{folder}: no video {name!r} there or in a sub-folder ({', '.join(VIDEO_SUFFIXES)})")


def list_videos(folder: Path, *, but: Path | None = None) -> list[Path]:
    """The video files of a folder and of its sub-folders, by name, without hidden ones and those of file managers.

    What has a video's name without being a file that can be read (a link to nothing, a folder) is listed too, and so
    is a sub-folder that cannot be listed: :func:`require_video_file` says what is wrong with it.

    Args:
        folder: the folder.
        but: a folder in it that is left out.

    Raises:
        FileNotFoundError: there is no such folder, or it has no videos.
        ValueError: two videos in different folders have the same name.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of videos")
    videos: list[Path] = []
    by_name: dict[str, Path] = {}
    unlisted: list[Path] = []
    for here, folders, files in walk(folder, but=but, on_error=lambda error: unlisted.append(Path(error.filename))):
        # A folder that is called like a video is taken for one, and refused.
        named_so = [name for name in folders if is_video_name(name)]
        folders[:] = [name for name in folders if name not in named_so]
        for path in (here / name for name in (*named_so, *files) if is_video_name(name)):
            other = by_name.setdefault(path.stem, path)
            if other.parent == here:
                videos.append(path)
            elif not is_same_file(other, path):
                raise ValueError(f"{other} and {path} have the same name, {path.stem!r}; rename or remove one")
    videos += unlisted
    if not videos:
        raise FileNotFoundError(f"{folder}: no videos there ({', '.join(VIDEO_SUFFIXES)})")
    return videos


def require_video_file(path: Path) -> None:
    """Refuse what has a video's name but cannot be one, without opening it: a named pipe would never end.

    Raises:
        FileNotFoundError: there is no such file, or it is a link to none.
        ValueError: it is no file, it is empty, or its name is not UTF-8, so that no annotation can name it.
    """
    if not _is_text(path.name):
        raise ValueError(f"{path}: its name is not UTF-8, as annotations and results need it; rename the file")
    try:
        status = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise FileNotFoundError(f"{path}: a link to {os.readlink(path)}, which is not there") from None
        raise FileNotFoundError(f"{path}: no such video file") from None
    except OSError as error:  # a circle of links, a folder that must not be entered
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    if stat.S_ISDIR(status.st_mode) and not os.access(path, os.R_OK | os.X_OK):
        raise ValueError(f"{path}: a folder that cannot be listed: {os.strerror(errno.EACCES)}; change its permissions")
    if not stat.S_ISREG(status.st_mode):
        kind = next(says for is_kind, says in _KINDS if is_kind(status.st_mode))
        raise ValueError(f"{path}: {kind}, not a video file")
    if status.st_size == 0:
        raise ValueError(f"{path}: an empty file; fetch it again, or leave it out")
    if not os.access(path, os.R_OK):
        raise ValueError(f"{path}: cannot be read: {os.strerror(errno.EACCES)}; change its permissions")


_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (lambda _: True, "a device"),
)


def is_video_name(name: str) -> bool:
    """Whether a file's name ends as a video's does."""
    return Path(name).suffix.lower() in VIDEO_SUFFIXES


def is_same_file(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file; a link to nothing is the same as no other."""
    try:
        return one.samefile(other)
    except OSError:  # a link to nothing
        return False


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True)
class _Tree:
    """The video files in the sub-folders of a folder, as they were when the folders had certain times.

    Args:
        places: the folders that have a file, by its name.
        times: of the folder and its sub-folders.
        since: when they were listed.
    """

    places: dict[str, list[Path]]
    times: dict[Path, int]
    since: int

    @staticmethod
    def of(folder: Path) -> _Tree:
        """The tree below a folder; it is listed again only where it has changed, as a data set asks for each video."""
        tree = _trees.get(folder)
        if tree is None or not tree.holds():
            tree = _trees[folder] = _Tree({}, {}, time.time_ns())
            for here, _, files in walk(folder):
                tree.times[here] = here.stat().st_mtime_ns
                for name in filter(is_video_name, files if here != folder else ()):
                    tree.places.setdefault(name, []).append(here)
        return tree

    def holds(self) -> bool:
        """Whether the folders are as they were; those changed just before may have been changed since unnoticed."""
        try:
            return all(
                changed == path.stat().st_mtime_ns < self.since - _TICK_NS for path, changed in self.times.items()
            )
        except OSError:
            return False


_trees: dict[Path, _Tree] = {}
