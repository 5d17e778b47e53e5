"""Video files of annotated videos: by their names, or by names that differ by a habit.

This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path

from bitad.folders import walk
from bitad.video.files import find_video, is_video_name
from bitad.video.names import Lookup


class VideoFinder:
    """The video files of a folder, by the names of annotated videos.

    The folder is listed only where it has no file of just that name.

    Args:
        folder: of the files and sub-folders.
        wanted: the names of all videos that may be asked for, and of others that have files of their own.
    """

    def __init__(self, folder: str | Path, wanted: Callable[[], Iterable[str]]) -> None:
        self.folder = Path(folder)
        self._lookup = Lookup(self.folder, wanted, self._names)
        self._matched: dict[str, Path] = {}
        self._missing: str | None = None

    def __call__(self, name: str) -> Path:
        """The file of a video, as :func:`~bitad.video.files.find_video` finds it, or of a name that can mean no other.

        Raises:
            FileNotFoundError: there is none; the message shows two names of either side.
            ValueError: several may be meant.
        """
        if name not in self._matched:
            try:
                return find_video(self.folder, name)
            except FileNotFoundError as error:
                if (found := self._lookup.find(name)) is None:
                    self._missing = name
                    raise FileNotFoundError(f"{error}; {self._lookup.sides(name)}") from None
            self._matched[name] = self._file(found)
        return self._matched[name]

    def line(self) -> str | None:
        """Two names of either side, if there was no file of a wanted video."""
        return f"{self.folder}: {self._lookup.sides(self._missing)}" if self._missing is not None else None

    def _file(self, found: str) -> Path:
        try:
            return find_video(self.folder, found)
        except FileNotFoundError:  # its ending is written otherwise, .Mp4 say
            return find_video(self.folder, self._files[found].name)

    def _names(self) -> Iterable[str]:
        return self._files

    @cached_property
    def _files(self) -> dict[str, Path]:
        """The video files there by name; of several with one name the first."""
        files: dict[str, Path] = {}
        for here, _, names in walk(self.folder):
            for path in (here / name for name in names if is_video_name(name)):
                files.setdefault(path.stem, path)
        return files
