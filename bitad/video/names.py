"""Names of videos in different sources: which name of one is which name of the other, and the file of a name.

Annotations, video files, features, lists of videos, detections and scores of one data set often differ by a habit: the
prefix ``v_`` of ActivityNet's files, an extension within the name, the case, or the Unicode form of accented letters,
which macOS decomposes. Equal names match. Others are matched by these habits where only one name of each side fits.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

from bitad.runtime.files import walk
from bitad.runtime.log import log_once, quoted, shortlist
from bitad.video.files import VIDEO_SUFFIXES, find_video, is_video_name

Content = TypeVar("Content")

_SUFFIXES = (*VIDEO_SUFFIXES, ".npy", ".npz")
_PREFIX = "v_"


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _without_suffix(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return _without_suffix(stem) if stem and f"{dot}{suffix}".lower() in _SUFFIXES else name


def _without_prefix(name: str) -> str:
    return name[len(_PREFIX) :] if name[: len(_PREFIX)].lower() == _PREFIX and len(name) > len(_PREFIX) else name


# A table row a habit: what it is called, and a name without it.
HABITS: dict[str, Callable[[str], str]] = {
    "Unicode form": _composed,
    "an extension": _without_suffix,
    f"the prefix {_PREFIX}": _without_prefix,
    "case": str.casefold,
}


def _key(name: str, *, case: bool) -> str:
    """What names that differ only by habits have in common; upper and lower case are the same without ``case``."""
    for habit in HABITS.values():
        if not (case and habit is str.casefold):
            name = habit(name)
    return name


@dataclass(frozen=True)
class Matching:
    """Which names of one source stand for which wanted ones.

    Args:
        wanted: the names of the videos that are looked for.
        available: the names that the source has.
        pairs: the source's name of each wanted video whose name it does not have, where there is one.
        unclear: why a wanted video has none, though names like its own are there.
    """

    wanted: tuple[str, ...]
    available: tuple[str, ...]
    pairs: Mapping[str, str]
    unclear: Mapping[str, str]

    @staticmethod
    def of(wanted: Iterable[str], available: Iterable[str]) -> Matching:
        """Match names; equal ones first, then those that differ by habits, if one alone can be meant on either side."""
        wanted, available = tuple(dict.fromkeys(wanted)), tuple(dict.fromkeys(available))
        rest, free = _apart(wanted, available)
        pairs: dict[str, str] = {}
        unclear: dict[str, str] = {}
        if rest and free:
            for case in (True, False):
                _match(wanted, rest, free, pairs, unclear, case=case)
        return Matching(wanted, available, pairs, unclear)

    def line(self, source: object) -> str | None:
        """What is to be said once of a source, if anything was matched by habits."""
        if not self.pairs:
            return None
        habits = [says for says in HABITS if any(_differ_by(says, *pair) for pair in self.pairs.items())]
        wanted, found = next(iter(self.pairs.items()))
        several = len(self.pairs) > 1
        count, whose = (
            (f"{len(self.pairs)} videos", "their names differ") if several else ("1 video", "its name differs")
        )
        by = ", ".join(habits[:-1]) + (" and " if len(habits) > 1 else "") + habits[-1]
        return f"{source}: {count} matched although {whose} by {by}: {_bare(found)} for {_bare(wanted)}"

    def sides(self) -> str:
        """Two names of either side that match none of the other, and how many more there are."""
        rest, free = _apart(self.wanted, self.available)
        taken = set(self.pairs.values())
        missing = [name for name in rest if name not in self.pairs]
        others = [name for name in free if name not in taken] or list(self.available)
        there = shortlist(others, 2, quote=quoted) or "nothing"
        return f"missing: {shortlist(missing, 2, quote=quoted)}; there: {there}"


class Lookup:
    """The names that a source has for those that are wanted of it.

    Names are compared at the first one that the source does not have as it is; what was matched is said in the log.

    Args:
        source: for messages.
        wanted: the names of all videos that the source may be asked for.
        available: the source's own names.
    """

    def __init__(
        self, source: object, wanted: Callable[[], Iterable[str]], available: Callable[[], Iterable[str]]
    ) -> None:
        self.source, self._wanted, self._available = source, wanted, available

    @cached_property
    def matching(self) -> Matching:
        """Of all wanted names."""
        matching = Matching.of(self._wanted(), self._available())
        if line := matching.line(self.source):
            log_once(line)
        return matching

    def find(self, name: str) -> str | None:
        """The source's name of a video; None: it has none.

        Raises:
            ValueError: several names may be meant, or the name found may be another video's.
        """
        if (found := self.matching.pairs.get(name)) is not None:
            return found
        matching = self._with(name)
        if name in matching.unclear:
            raise ValueError(f"{self.source}: {matching.unclear[name]}")
        return name if name in matching.available else matching.pairs.get(name)

    def sides(self, name: str) -> str:
        """Two names of either side, for the message that a video is missing."""
        return self._with(name).sides()

    def _with(self, name: str) -> Matching:
        """The matching with a name that is wanted too."""
        known = self.matching
        return known if name in known.wanted else Matching.of((*known.wanted, name), known.available)


def renamed(known: Mapping[str, Content], wanted: Iterable[str], source: object) -> dict[str, Content]:
    """What is known by a source's names, under the names wanted; what matches none keeps its name.

    Args:
        known: by the source's names.
        wanted: the names to have.
        source: for messages; what was matched is said in the log.

    Raises:
        ValueError: several names may be meant by a wanted one, or one by several.
    """
    names = new_names(known, wanted, source)
    return {names.get(name, name): content for name, content in known.items()}


def new_names(available: Iterable[str], wanted: Iterable[str], source: object) -> dict[str, str]:
    """The wanted name of each available one that has another. Args and Raises as :func:`renamed`."""
    matching = Matching.of(wanted, available)
    for reason in matching.unclear.values():
        raise ValueError(f"{source}: {reason}")
    if line := matching.line(source):
        log_once(line)
    return {found: name for name, found in matching.pairs.items()}


def _bare(name: str) -> str:
    """A name, in quotes where it would not be seen whole without."""
    return name if name and name.isprintable() and " " not in name and _composed(name) == name else quoted(name)


def _apart(wanted: tuple[str, ...], available: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """The names of either side that the other does not have."""
    mine, its = set(wanted), set(available)
    return [name for name in wanted if name not in its], [name for name in available if name not in mine]


def _match(
    wanted: tuple[str, ...],
    rest: list[str],
    free: list[str],
    pairs: dict[str, str],
    unclear: dict[str, str],
    *,
    case: bool,
) -> None:
    """Add the pairs, and what is unclear, of names that are the same with or without regard to case."""
    key, loose = partial(_key, case=case), partial(_key, case=False)
    taken = set(pairs.values())
    fitting, asking = _by_key([name for name in free if name not in taken], key), _by_key(wanted, key)
    fitting_loosely, asking_loosely = _by_key(free, loose), _by_key(rest, loose)
    for name in rest:
        if name in pairs or name in unclear or not (candidates := fitting.get(key(name))):
            continue
        if len(asking_loosely[loose(name)]) == 1:  # names of another case are candidates, unless another asks for them
            candidates = fitting_loosely[loose(name)]
        if len(others := asking[key(name)]) > 1:
            unclear[name] = f"{quoted(candidates[0])} may be video {_any_of(others)}; rename it"
        elif len(candidates) > 1:
            unclear[name] = f"video {quoted(name)} may be {_any_of(candidates)}; rename or remove one"
        else:
            pairs[name] = candidates[0]


def _any_of(names: Iterable[str]) -> str:
    return " or ".join(map(quoted, names))


def _by_key(names: Iterable[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(key(name), []).append(name)
    return groups


def _differ_by(says: str, one: str, other: str) -> bool:
    """Whether two names differ without one habit, the others being taken away."""
    for habit in (habit for known, habit in HABITS.items() if known != says):
        one, other = habit(one), habit(other)
    return one != other


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
