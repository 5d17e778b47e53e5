"""Finds, lists and checks video files in folders."""

from __future__ import annotations

import errno
import os
import stat
import time
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bitad.runtime.files import is_file_named, walk

# In order of preference, if a folder has several files of one name.
VIDEO_SUFFIXES = (
    *(".mp4", ".mkv", ".webm", ".mov", ".m4v", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts"),
    *(".flv", ".wmv", ".3gp", ".h264", ".264", ".hevc", ".265"),
)

# Result files have the video's name with a suffix of four bytes; file systems allow 255.
_MOST_BYTES = 251

# Two changes of a folder within this time may leave it with the same time stamp.
_TICK_NS = 2 * 10**9


@dataclass(frozen=True)
class VideosReport:
    """The outcome for several videos, by name.

    Args:
        done: those with a new file.
        kept: those with a complete and current file from before.
        failed: why a video has no new file.
        again: those done whose earlier file was incomplete or out of date.
        unrecorded: those kept whose file, by an earlier version, does not record its source.
        repeated: how many frames of those done repeat others in place of damaged ones.
    """

    done: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)
    again: tuple[str, ...] = ()
    unrecorded: tuple[str, ...] = ()
    repeated: dict[str, int] = field(default_factory=dict)

    @classmethod
    def together(cls, parts: Sequence[VideosReport]) -> VideosReport:
        """Merge reports; the names are sorted."""
        return cls(
            tuple(sorted(name for part in parts for name in part.done)),
            tuple(sorted(name for part in parts for name in part.kept)),
            dict(sorted(pair for part in parts for pair in part.failed.items())),
            tuple(sorted(name for part in parts for name in part.again)),
            tuple(sorted(name for part in parts for name in part.unrecorded)),
            dict(sorted(pair for part in parts for pair in part.repeated.items())),
        )


def videos_by_name(places: Sequence[Path], *, but: Path | None = None) -> dict[str, Path]:
    """Video files by the names of their results: the file names without suffix.

    Args:
        places: files, and folders, which stand for the videos in them and in their sub-folders.
        but: a folder that is left out.

    Raises:
        FileNotFoundError: no such file, or a folder without videos.
        ValueError: two videos have the same name, or results cannot have a name.
    """
    videos: dict[str, Path] = {}
    for path in [
        file for place in places for file in (list_videos(place, but=but) if place.is_dir() else [place])
    ]:
        if path.is_dir():
            raise ValueError(f"{path} is a folder with the name of a video; rename it, or give the videos in it")
        if not path.is_file():
            raise FileNotFoundError(f"{str(path)!r}: no such video file; check its name")
        if not _can_name_results(path.stem):
            why = "not UTF-8, a backslash or control character, or too long"
            raise ValueError(f"{str(path)!r}: results cannot have its name ({why}); rename the file")
        if path.stem in videos:
            if is_same_file(videos[path.stem], path):
                raise ValueError(f"{path} is given twice, by itself or in a folder; name it once")
            same = f"{videos[path.stem]} and {path} have the same name, {path.stem!r}"
            raise ValueError(f"{same}; rename one, or give each another --out")
        videos[path.stem] = path
    return videos


def _can_name_results(name: str) -> bool:
    has_controls = any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in name)
    return _is_text(name) and "\\" not in name and not has_controls and len(os.fsencode(name)) <= _MOST_BYTES


def find_video(folder: str | Path, name: str) -> Path:
    """Find the file of a video: ``name`` with one of ``VIDEO_SUFFIXES``, or ``name`` itself.

    A file in the folder is preferred. ValueError if several sub-folders have one.
    """
    folder = Path(folder)
    names = [name] if is_video_name(name) else []
    for suffix in VIDEO_SUFFIXES:
        names += [f"{name}{suffix}", f"{name}{suffix.upper()}"]
    for file in names:
        if is_file_named(path := folder / file):  # also False if the name is too long
            return path
    places = video_folders(folder)
    found = [place / file for file in names for place in places.get(file, ()) if os.path.isfile(place / file)]
    for other in found[1:]:
        if other.parent != found[0].parent and not is_same_file(other, found[0]):
            raise ValueError(f"{found[0]} and {other} are both called {name!r}; rename or remove one")
    if found:
        return found[0]
    raise FileNotFoundError(f"{folder}: no video {name!r} there or in a sub-folder ({', '.join(VIDEO_SUFFIXES)})")


def list_videos(folder: Path, *, but: Path | None = None) -> list[Path]:
    """The video files of a folder and its sub-folders except ``but``; ValueError if two have the same name.

    The list includes what :func:`require_video_file` refuses, such as broken links.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of videos")
    videos: list[Path] = []
    by_name: dict[str, Path] = {}
    unlisted: list[Path] = []
    for here, folders, files in walk(
        folder, but=but, on_error=lambda error: unlisted.append(Path(error.filename))
    ):
        # A folder with a video's name is listed, not entered.
        like_videos = [name for name in folders if is_video_name(name)]
        folders[:] = [name for name in folders if name not in like_videos]
        for path in (here / name for name in (*like_videos, *files) if is_video_name(name)):
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
    """Raise FileNotFoundError or ValueError unless a path is a readable file, which a named pipe is not."""
    if not _is_text(path.name):
        raise ValueError(f"{path}: its name is not UTF-8; rename the file")
    try:
        status = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise FileNotFoundError(f"{path}: a link to {os.readlink(path)}, which does not exist") from None
        raise FileNotFoundError(f"{path}: no such video file") from None
    except OSError as error:  # circular links, a folder without permission
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    if stat.S_ISDIR(status.st_mode) and not os.access(path, os.R_OK | os.X_OK):
        raise ValueError(
            f"{path}: a folder that cannot be listed: {os.strerror(errno.EACCES)}; change its permissions"
        )
    if not stat.S_ISREG(status.st_mode):
        kind = next((kind for is_kind, kind in _KINDS if is_kind(status.st_mode)), "a device")
        raise ValueError(f"{path}: {kind}, not a video file")
    if status.st_size == 0:
        raise ValueError(f"{path}: an empty file; download it again, or remove it")
    if not os.access(path, os.R_OK):
        raise ValueError(f"{path}: cannot be read: {os.strerror(errno.EACCES)}; change its permissions")


_KINDS = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"))


def is_video_name(name: str) -> bool:
    return Path(name).suffix.lower() in VIDEO_SUFFIXES


def is_same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # a broken link
        return False


def _is_text(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)


@dataclass
class _Listing:
    """The folders of each file name, and when these folders were changed and listed."""

    folders: dict[str, list[Path]] = field(default_factory=dict)
    changed_ns: dict[Path, int] = field(default_factory=dict)
    listed_ns: int = field(default_factory=time.time_ns)

    def is_current(self) -> bool:
        """Whether the folders are unchanged, and so old that a change would show."""
        latest = self.listed_ns - _TICK_NS
        try:
            return all(before == path.stat().st_mtime_ns < latest for path, before in self.changed_ns.items())
        except OSError:
            return False


_listings: dict[Path, _Listing] = {}


def video_folders(folder: Path) -> Mapping[str, Sequence[Path]]:
    """The folders of each video file name, in a folder and below; listed again only after changes."""
    listing = _listings.get(folder)
    if listing is None or not listing.is_current():
        listing = _listings[folder] = _Listing()
        for here, _, files in walk(folder):
            listing.changed_ns[here] = here.stat().st_mtime_ns
            for name in filter(is_video_name, files):
                listing.folders.setdefault(name, []).append(here)
    return listing.folders
