"""Matches the names of videos in different sources, and finds the file of a name.

Sources may spell a name with the prefix ``v_`` of ActivityNet, with an extension, in another case, or in the Unicode
form of macOS. Equal names match, others by these variations if only one fits.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

from bitad.runtime.log import log_once, quoted, shortlist
from bitad.video.files import VIDEO_SUFFIXES, find_video, video_folders

Content = TypeVar("Content")

_SUFFIXES = (*VIDEO_SUFFIXES, ".npy", ".npz")
_PREFIX = "v_"


def without_suffix(name: str) -> str:
    """The name of a video without the extensions of video and feature files."""
    stem, dot, suffix = name.rpartition(".")
    return without_suffix(stem) if stem and f"{dot}{suffix}".lower() in _SUFFIXES else name


def _without_prefix(name: str) -> str:
    head, rest = name[: len(_PREFIX)], name[len(_PREFIX) :]
    return rest if rest and head.lower() == _PREFIX else name


# Variation -> a function that removes it.
_VARIATIONS: dict[str, Callable[[str], str]] = {
    "Unicode form": partial(unicodedata.normalize, "NFC"),
    "an extension": without_suffix,
    f"the prefix {_PREFIX}": _without_prefix,
    "case": str.casefold,
}


def _key(name: str, *, case: bool) -> str:
    for variation, remove in _VARIATIONS.items():
        if not (case and variation == "case"):
            name = remove(name)
    return name


@dataclass(frozen=True)
class Matching:
    """The names of a source that match wanted names.

    Args:
        pairs: wanted name -> the source's matching name, where these differ.
        unclear: wanted name -> why no similar name of the source matches.
    """

    wanted: tuple[str, ...]
    available: tuple[str, ...]
    pairs: Mapping[str, str]
    unclear: Mapping[str, str]

    @staticmethod
    def of(wanted: Iterable[str], available: Iterable[str]) -> Matching:
        wanted = tuple(dict.fromkeys(wanted))
        available = tuple(dict.fromkeys(available))
        rest, free = _unmatched(wanted, available)
        pairs: dict[str, str] = {}
        unclear: dict[str, str] = {}
        if rest and free:
            for case in (True, False):
                _match(wanted, rest, free, pairs, unclear, case)
        return Matching(wanted, available, pairs, unclear)

    def line(self, source: object) -> str | None:
        """A log line about the matched variations; None if there are none."""
        if not self.pairs:
            return None
        names = [name for name in _VARIATIONS if any(_differ_by(name, *pair) for pair in self.pairs.items())]
        wanted, found = next(iter(self.pairs.items()))
        count = f"{len(self.pairs)} videos" if len(self.pairs) > 1 else "1 video"
        by = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
        return f"{source}: {count} matched although names differ by {by}: {quoted(found)} for {quoted(wanted)}"

    def sides(self) -> str:
        """Unmatched names of both sides, for a message that a video is missing."""
        rest, free = _unmatched(self.wanted, self.available)
        taken = set(self.pairs.values())
        missing = [name for name in rest if name not in self.pairs]
        others = [name for name in free if name not in taken] or list(self.available)
        there = shortlist(others, 2, quote=quoted) or "nothing"
        return f"missing: {shortlist(missing, 2, quote=quoted)}; there: {there}"


class Lookup:
    """Finds a source's names of wanted videos, both listed only if needed. Matched variations are logged."""

    def __init__(
        self, source: object, wanted: Callable[[], Iterable[str]], available: Callable[[], Iterable[str]]
    ) -> None:
        self.source = source
        self._wanted = wanted
        self._available = available

    @cached_property
    def matching(self) -> Matching:
        matching = Matching.of(self._wanted(), self._available())
        if line := matching.line(self.source):
            log_once(line)
        return matching

    def find(self, name: str) -> str | None:
        """The source's name of a video; None if it has none. ValueError if it is unclear."""
        if (found := self.matching.pairs.get(name)) is not None:
            return found
        matching = self._with(name)
        if name in matching.unclear:
            raise ValueError(f"{self.source}: {matching.unclear[name]}")
        return name if name in matching.available else matching.pairs.get(name)

    def sides(self, name: str) -> str:
        return self._with(name).sides()

    def _with(self, name: str) -> Matching:
        known = self.matching
        return known if name in known.wanted else Matching.of((*known.wanted, name), known.available)


def renamed(known: Mapping[str, Content], wanted: Iterable[str], source: object) -> dict[str, Content]:
    """Replace a source's names by the wanted ones that they match; ValueError if that is unclear."""
    names = new_names(known, wanted, source)
    return {names.get(name, name): content for name, content in known.items()}


def new_names(available: Iterable[str], wanted: Iterable[str], source: object) -> dict[str, str]:
    """Available name -> wanted name, where these differ. Raises like :func:`renamed`."""
    matching = Matching.of(wanted, available)
    for reason in matching.unclear.values():
        raise ValueError(f"{source}: {reason}")
    if line := matching.line(source):
        log_once(line)
    return {found: name for name, found in matching.pairs.items()}


def _unmatched(wanted: tuple[str, ...], available: tuple[str, ...]) -> tuple[list[str], list[str]]:
    has = set(available)
    wants = set(wanted)
    return [name for name in wanted if name not in has], [name for name in available if name not in wants]


def _match(
    wanted: Iterable[str],
    rest: list[str],
    free: list[str],
    pairs: dict[str, str],
    unclear: dict[str, str],
    case: bool,
) -> None:
    """Add names that are equal except for variations, with or without case."""
    key = partial(_key, case=case)
    loose = partial(_key, case=False)
    taken = set(pairs.values())
    fitting = _group([name for name in free if name not in taken], key)
    competing = _group(wanted, key)
    fitting_loosely = _group(free, loose)
    competing_loosely = _group(rest, loose)
    for name in rest:
        if name in pairs or name in unclear or not (candidates := fitting.get(key(name))):
            continue
        if (
            len(competing_loosely[loose(name)]) == 1
        ):  # without a competitor, names in another case are candidates too
            candidates = fitting_loosely[loose(name)]
        others = competing[key(name)]
        if len(others) == len(candidates) == 1:
            pairs[name] = candidates[0]
        else:
            ours, theirs = (" or ".join(map(quoted, both)) for both in (others, candidates))
            unclear[name] = f"{theirs} may be video {ours}; rename or remove one"


def _group(names: Iterable[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(key(name), []).append(name)
    return groups


def _differ_by(variation: str, one: str, other: str) -> bool:
    """Whether two names still differ when all other variations are removed."""
    for remove in (remove for name, remove in _VARIATIONS.items() if name != variation):
        one, other = remove(one), remove(other)
    return one != other


class VideoFinder:
    """Finds the files of videos in a folder and its sub-folders, by exact names first."""

    def __init__(self, folder: str | Path, wanted: Callable[[], Iterable[str]]) -> None:
        self.folder = Path(folder)
        self._lookup = Lookup(self.folder, wanted, self._names)
        self._missing: str | None = None

    def __call__(self, name: str) -> Path:
        try:
            return find_video(self.folder, name)
        except FileNotFoundError as error:
            if (found := self._lookup.find(name)) is None:
                self._missing = name
                raise FileNotFoundError(f"{error}; {self._lookup.sides(name)}") from None
        try:
            return find_video(self.folder, found)
        except FileNotFoundError:  # its suffix is in mixed case, such as .Mp4
            return find_video(self.folder, self._names()[found])

    def line(self) -> str | None:
        """Unmatched names, if a requested video had no file."""
        return f"{self.folder}: {self._lookup.sides(self._missing)}" if self._missing is not None else None

    def _names(self) -> dict[str, str]:  # a method, as other processes receive this object pickled
        names: dict[str, str] = {}
        for file in video_folders(self.folder):
            names.setdefault(Path(file).stem, file)
        return names
