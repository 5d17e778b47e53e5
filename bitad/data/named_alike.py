"""Detections under the names that their videos have elsewhere: in annotations, or in other detections.

This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from bitad.data.detections import Detections
from bitad.video.names import Matching, new_names


def under_names(detections: Detections, wanted: Iterable[str], source: object) -> Detections:
    """The detections with the wanted names of their videos, where these differ by habits; other names stay.

    Args:
        detections: of these and maybe other videos.
        wanted: the names to have.
        source: of the detections, for messages; what was matched is said in the log.

    Raises:
        ValueError: several videos may be meant by a wanted name, or one by several.
    """
    wanted = tuple(wanted)
    if set(wanted).issuperset(detections.videos):
        return detections
    names = new_names(detections.videos, wanted, source)
    if not names:
        return detections
    return replace(
        detections,
        videos=tuple(names.get(name, name) for name in detections.videos),
        durations_s={names.get(name, name): seconds for name, seconds in detections.durations_s.items()},
    )


def alike(sets: Sequence[Detections], sources: Sequence[object], wanted: Iterable[str] = ()) -> list[Detections]:
    """Sets of detections in which a video has one name: the wanted one, or else that of the first set that has it.

    Args:
        sets: of any videos.
        sources: of each, for messages.
        wanted: as of :func:`under_names`. Raises likewise.
    """
    names = list(wanted)
    found = []
    for one, source in zip(sets, sources, strict=True):
        found.append(under_names(one, names, source))
        names.extend(found[-1].videos)
    return found


def require_any(detections: Detections, wanted: Collection[str], source: object, truth: object) -> None:
    """Refuses detections none of which is in a wanted video: they would be measured as if nothing had been found.

    Args:
        detections: under the wanted names.
        wanted: the videos of the ground truth.
        source: of the detections, for the message.
        truth: of the ground truth.

    Raises:
        ValueError: there are detections, and all are in other videos.
    """
    if len(detections) and set(wanted).isdisjoint(detections.videos):
        raise ValueError(
            f"{source}: no detection is in a video of {truth}: {Matching.of(wanted, detections.videos).sides()}; name "
            "the detections or the subset of these videos"
        )
