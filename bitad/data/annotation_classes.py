"""The classes of ground truth: lists of their names, and the numbers that some files give instead of names.

This module does not import torch.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from os import PathLike
from pathlib import Path

from bitad.data.annotated import Defect, VideoEntry
from bitad.files import read_text

# The class names in order, or the path of a list of them.
Classes = Sequence[str] | PathLike[str]

# "1 Walk" in MultiTHUMOS' list, "c000 Holding some clothes" in Charades', "7 BaseballPitch" in the THUMOS'14 kit's.
_NUMBERED = re.compile(r"c?(\d{1,18})[\s,;:]+(\S.*)")


def read_classes(path: str | PathLike[str]) -> tuple[str, ...]:
    """The class names in a file with a name a line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it names no class, or one twice.
    """
    # Not splitlines(): a name may hold what Unicode calls a line end.
    names = [line.strip() for line in re.split(r"\r\n?|\n", read_text(Path(path), "class names, a name a line"))]
    return _distinct([name for name in names if name], path)


def class_names(
    entries: Sequence[VideoEntry], classes: Classes | None, ignore: Sequence[str]
) -> tuple[tuple[str, ...], list[Defect]]:
    """The class names in order, and where the file's labels contradict them or its ``label_id`` each other."""
    rows = [
        (entry.video.name, label, label_id)
        for entry in entries
        for label, label_id in zip(entry.video.labels, entry.label_ids, strict=True)
    ]
    if classes is not None:
        names = read_classes(classes) if isinstance(classes, (str, PathLike)) else _distinct(classes, "classes")
        known = {*names, *ignore}
        outside = [
            Defect(video, "label outside the classes", f"label {label!r} is not one of the {len(names)} classes")
            for video, label, _ in rows
            if label not in known
        ]
        return names, outside
    # Each pair of a label and its number, with a video that has it: all labels have one number of their own, or none.
    pairs = {(label, label_id): video for video, label, label_id in rows if label not in ignore}
    numbers = {label: -1 if label_id is None else label_id for label, label_id in pairs}
    numbers_of = Counter(label for label, _ in pairs)
    labels_of: Counter[int | None] = Counter(label_id for _, label_id in pairs if label_id is not None)
    clashes = [
        Defect(video, "unreadable", f"label {label!r} has label_id {label_id}, which the file contradicts elsewhere")
        for (label, label_id), video in pairs.items()
        if numbers_of[label] > 1 or (labels_of and labels_of.get(label_id) != 1)
    ]
    return tuple(sorted(numbers, key=lambda label: (numbers[label], label))), clashes


def names_of_numbers(numbers: Collection[int], classes: Classes, where: object) -> dict[int, str]:
    """The names of a file's class numbers, in the order of a list of classes.

    The list may number its names, as "1 Walk" a line. A file of whole numbers from 0 counts from there, one whose
    highest is the number of names counts from 1: MultiTHUMOS' JSON is at hand either way, its list numbered from 1.

    Args:
        numbers: those that occur in the file.
        classes: the names in order, or the path of the list.
        where: the file of the numbers, for the error.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_classes`; or it is not told from where the numbers count.
    """
    source = f"{classes}" if isinstance(classes, (str, PathLike)) else "the classes"
    lines, numbered = lines_and_numbers(classes)
    if numbered:
        names = tuple(numbered.values())
        if set(numbers) <= numbered.keys():
            return numbered
        if sorted(numbered) != list(range(min(numbered), min(numbered) + len(numbered))):
            return numbered  # what it does not name is outside the classes
        names = tuple(numbered[number] for number in sorted(numbered))
    else:
        names = lines
    if numbers and 0 not in numbers and len(names) not in numbers:
        says = f"{where}: its class numbers are {min(numbers)} to {max(numbers)}, and {source} names"
        if max(numbers) > len(names):
            raise ValueError(f"{says} only {len(names)}; name the list of these classes")
        raise ValueError(
            f"{says} {len(names)}: it is not told whether they count from 0 or 1; number the names in the list, "
            '"0 NAME" or "1 NAME" a line'
        )
    return dict(enumerate(names, start=0 if 0 in numbers or not numbers else 1))


def names_in_list(labels: Collection[str], classes: Classes) -> tuple[str, ...]:
    """The names of a list of classes, without their numbers where the list numbers them and the labels have none.

    Args:
        labels: those that occur in the file.
        classes: the names in order, or the path of the list.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_classes`.
    """
    lines, numbered = lines_and_numbers(classes)
    if not numbered or not set(lines).isdisjoint(labels):
        return lines
    return tuple(numbered[number] for number in sorted(numbered))


def lines_and_numbers(classes: Classes) -> tuple[tuple[str, ...], dict[int, str]]:
    """The lines of a list of classes, and the names by number if every line has a number.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_classes`; a number or a name occurs twice.
    """
    lines = read_classes(classes) if isinstance(classes, (str, PathLike)) else _distinct(classes, "the classes")
    found = [match for match in map(_NUMBERED.fullmatch, lines) if match is not None]
    if len(found) < len(lines):
        return lines, {}
    source = classes if isinstance(classes, (str, PathLike)) else "the classes"
    return lines, names_by_number([(int(match[1]), match[2]) for match in found], source)


def names_by_number(pairs: Collection[tuple[int, str]], source: object) -> dict[int, str]:
    """Class names by number.

    Raises:
        ValueError: a number has two names, or a name two numbers; ``source`` says where in the message.
    """
    numbered = dict(pairs)
    if min(len(numbered), len(set(numbered.values()))) < len(pairs):
        raise ValueError(f"{source}: a number has two class names in it, or a class name two numbers; keep one")
    return numbered


def _distinct(names: Sequence[str], source: object) -> tuple[str, ...]:
    if not names:
        raise ValueError(f"{source}: no class names; there should be a name a line")
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(f"{source}: class {name!r} occurs {count} times; name each class once")
    return tuple(names)
