"""Lists of class names: read, written, and matched with the labels or class numbers of files."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from os import PathLike
from pathlib import Path

from bitad.data.formats.parsing import objects_in
from bitad.runtime.files import atomic_write, read_json, read_text
from bitad.runtime.log import did_you_mean

# THUMOS14's label of spans that its annotators could not decide on: no class to train.
UNDECIDED = ("Ambiguous",)

# The class of a class-agnostic detector.
ANY_CLASS = "action"

# The class names in order, or the path of a list of them.
Classes = Sequence[str] | PathLike[str]

# "1 Walk" in MultiTHUMOS' list, "c000 Holding some clothes" in Charades'.
_NUMBERED = re.compile(r"c?(\d{1,18})[\s,;:]+(\S.*)")


def read_classes(classes: str | Classes) -> tuple[str, ...]:
    """The class names in a file with a name a line, or of a sequence; there must be some, and none twice."""
    if isinstance(classes, (str, PathLike)):
        # Not splitlines(): a name may contain what Unicode calls a line end.
        lines = re.split(r"\r\n?|\n", read_text(Path(classes), "class names, a name a line"))
        names = tuple(line.strip() for line in lines if line.strip())
    else:
        names = tuple(classes)
    if not names:
        raise ValueError(f"{source_of(classes)}: no class names; write a name a line")
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(f"{source_of(classes)}: class {name!r} occurs {count} times; name each class once")
    return names


def alike(classes: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of class names that differ only in capitals, spaces or code points, as mistyped ones do."""
    groups = defaultdict(list)
    for name in classes:
        groups[" ".join(unicodedata.normalize("NFKC", name).casefold().split())].append(name)
    return [tuple(names) for names in groups.values() if len(names) > 1]


def read_numbered_classes(classes: str | Classes) -> tuple[tuple[str, ...], dict[int, str]]:
    """The lines of a list of classes, and the names by number if every line has a number."""
    lines = read_classes(classes)
    pairs = []
    for line in lines:
        if (match := _NUMBERED.fullmatch(line)) is None:
            return lines, {}
        pairs.append((int(match[1]), match[2]))
    return lines, _by_number(pairs, source_of(classes))


def read_class_numbers(path: str | Path) -> dict[int, str]:
    """The names of a data set's classes by number.

    A file has names, a line each, numbered from 0; or lines of a number and a name, as the THUMOS'14 kit's
    ``detclasslist.txt``; or is annotations, JSON whose ``label_id`` are the numbers.
    """
    path = Path(path)
    if not path.name.lower().endswith((".json", ".json.gz")):
        lines, numbered = read_numbered_classes(path)
        return dict(sorted(numbered.items())) or dict(enumerate(lines))
    content = read_json(path)
    videos = objects_in(content.get("database") if isinstance(content, dict) else None)
    rows = chain.from_iterable(objects_in(video.get("annotations")) for video in videos)
    pairs = {
        (row["label_id"], row["label"])
        for row in rows
        if type(row.get("label_id")) is int and isinstance(row.get("label"), str)
    }
    if not pairs:
        raise ValueError(f"{path}: it names no class with a number (label_id); give a list of the names")
    return _by_number(sorted(pairs), path)


def names_of_numbers(numbers: Collection[int], classes: Classes, where: object) -> dict[int, str]:
    """The names of a file's class numbers, as the list numbers them, or counted from 0 or 1.

    A file whose numbers include 0 counts from 0; one whose highest number is the number of names counts from 1.
    """
    names, numbered = read_numbered_classes(classes)
    if numbered:
        order = sorted(numbered)
        has_gaps = order != list(range(order[0], order[0] + len(order)))
        if set(numbers) <= numbered.keys() or has_gaps:  # with gaps, the other numbers are outside the classes
            return numbered
        names = tuple(numbered[number] for number in order)
    if numbers and 0 not in numbers and len(names) not in numbers:
        found = (
            f"its class numbers are {min(numbers)} to {max(numbers)}, and {source_of(classes)} names {len(names)}"
        )
        remedy = 'name the list of these classes, and number its names, "0 NAME" or "1 NAME" a line'
        raise ValueError(f"{where}: {found}; {remedy}")
    return dict(enumerate(names, start=0 if 0 in numbers or not numbers else 1))


def names_in_list(labels: Collection[str], classes: Classes) -> tuple[str, ...]:
    """The names of a list of classes, without their numbers if a file's labels have none."""
    lines, numbered = read_numbered_classes(classes)
    if not numbered or not set(lines).isdisjoint(labels):
        return lines
    return tuple(numbered[number] for number in sorted(numbered))


def index_labels(
    labels: Sequence[str | int], stated: Sequence[str] | None, path: str | Path | None
) -> tuple[tuple[str, ...], list[int]]:
    """The class names of detections, and the index of each label among them.

    Args:
        labels: names or class numbers.
        stated: the classes that their file lists.
        path: a list of classes to use instead (:func:`read_class_numbers`).
    """
    numbers = read_class_numbers(path) if path is not None else dict(enumerate(stated or ()))
    listed = tuple(numbers.values()) if path is not None or stated is not None else None
    source = "external_data" if path is None else str(path)
    known = {label: _name_of(label, numbers, listed, source) for label in dict.fromkeys(labels)}
    names = tuple(sorted(set(known.values()))) if listed is None else listed
    number = {name: i for i, name in enumerate(names)}
    index = {label: number[name] for label, name in known.items()}
    return names, list(map(index.__getitem__, labels))


def _name_of(
    label: str | int,
    numbers: Mapping[int, str],
    listed: Sequence[str] | None,
    source: str,
) -> str:
    if isinstance(label, str) and (listed is None or label in listed):
        return label
    if listed is None:
        remedy = "name the classes with --classes FILE: a list, or annotations"
        raise ValueError(f"label {label} is the number of a class; {remedy}")
    if isinstance(label, str) and not re.fullmatch(r"\d{1,18}", label):
        near = did_you_mean(label, listed)
        raise ValueError(f"label {label} is not among the classes that {source} names{near}")
    if int(label) not in numbers:
        listed_numbers = f"{len(numbers)} of {source}, {min(numbers, default=0)} to {max(numbers, default=0)}"
        raise ValueError(f"class number {label} is not one of the {listed_numbers}; write lines of NUMBER NAME")
    return numbers[int(label)]


def class_list(classes: Sequence[str]) -> str:
    """The text of a class list; raises a ValueError for a name that would not be read back."""
    for name in classes:
        if name != name.strip() or "\n" in name or "\r" in name or not name:
            raise ValueError(f"class {name!r} cannot stand in a list of a name a line; rename it")
    return "".join(f"{name}\n" for name in classes)


def write_classes(classes: Sequence[str], path: str | Path) -> None:
    """Write class names, a name a line; the file is replaced atomically."""
    text = class_list(classes)
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def source_of(classes: str | Classes) -> str:
    """What messages call a list of classes: its path, if it has one."""
    return str(classes) if isinstance(classes, (str, PathLike)) else "the classes"


def _by_number(pairs: Collection[tuple[int, str]], source: object) -> dict[int, str]:
    numbered = dict(pairs)
    if min(len(numbered), len(set(numbered.values()))) < len(pairs):
        raise ValueError(f"{source}: a number has two class names in it, or a class name two numbers; keep one")
    return numbered
