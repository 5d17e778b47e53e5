"""The videos of a page: links to files wherever they are, or copies beside the page."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from bitad.reports.page import is_relative
from bitad.runtime.log import log, shortlist
from bitad.video.writer import write_playable

MEDIA = "media"  # the folder of copies and previews, beside a page

# Of the formats that browsers play. The codec may still be one that they do not.
_PLAYED_SUFFIXES = (".mp4", ".m4v", ".webm")


def link_videos(files: Mapping[str, Path], out: Path) -> dict[str, str]:
    """The paths of video files relative to the page's folder, by name; those that a page cannot name are left out."""
    links = {name: link for name, file in files.items() if (link := relative_link(file, out)) is not None}
    if lost := [str(file) for name, file in files.items() if name not in links]:
        log.warning("a page in %s cannot name %s; choose another --out, or rename the file", out, shortlist(lost))
    if others := [str(files[name]) for name in links if files[name].suffix.lower() not in _PLAYED_SUFFIXES]:
        log.info("browsers may not play %s; --copy-videos writes copies that they play", shortlist(others))
    return links


def relative_link(file: Path, out: Path) -> str | None:
    """The path of a file relative to a page's folder; None if a page cannot name it."""
    try:
        link = _relative(file, out)
    except ValueError:  # on Windows, on another drive
        return None
    if ":" in link.partition("/")[0]:  # which would be the scheme of an address
        link = f"./{link}"
    return link if is_relative(link) else None


def _relative(file: Path, out: Path) -> str:
    folder, real = Path(os.path.abspath(out)), out.resolve()
    if file.resolve().is_relative_to(real):
        return file.resolve().relative_to(real).as_posix()
    link = Path(os.path.relpath(file, folder))
    if folder != real and link != Path(os.path.relpath(file.resolve(), real)):
        # Some browsers resolve a linked folder before they go up from it, others do not: go up to the root.
        up = max(len(folder.parts), len(real.parts)) - 1
        link = Path(*[".."] * up, *file.resolve().parts[1:])
    return link.as_posix()


def copy_videos(
    files: Mapping[str, Path], out: Path, *, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, str]:
    """Copies video files into ``out``/media, all of them or none.

    A video that browsers do not play becomes a small preview that they play. A copy has the time of its video: one
    with that time is kept.

    Returns:
        the paths of the copies relative to ``out``, by name.

    Raises:
        ValueError, OSError: a video cannot be read or copied, two have one file name, or another file is in the way.
    """
    copies: dict[str, Path] = {}
    for name, file in files.items():
        copy = out / MEDIA / f"{file.stem}.mp4"
        if not is_relative(f"{MEDIA}/{copy.name}"):
            raise ValueError(f"{file}: a page cannot name it, because of the backslash; rename the file")
        if copy in copies.values():
            raise ValueError(f"{file}: another video has this file name too; leave out --copy-videos")
        if os.path.lexists(copy) and not _is_copy(copy, file):
            raise ValueError(
                f"{copy} is not a copy of {file} and is not overwritten; remove it, or choose another --out"
            )
        copies[name] = copy
    written: list[Path] = []
    try:
        for done, (name, copy) in enumerate(copies.items(), start=1):
            if not os.path.lexists(copy):
                written.append(copy)
                write_playable(files[name], copy)
                status = files[name].stat()
                os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
            on_progress(done, len(copies))
    except BaseException:
        for copy in written:
            copy.unlink(missing_ok=True)
        with suppress(OSError):  # there is none, or it has other files
            (out / MEDIA).rmdir()
        raise
    return {name: copy.relative_to(out).as_posix() for name, copy in copies.items()}


def _is_copy(copy: Path, file: Path) -> bool:
    if not copy.is_file():
        return False
    # A video that lies there already is its own copy. File systems round times.
    return copy.samefile(file) or abs(copy.stat().st_mtime - file.stat().st_mtime) < 0.01
