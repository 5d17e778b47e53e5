"""What happens in a video as a whole, by an external classifier, and how it names what a detector found.

On data sets whose videos hold one kind of action, ActivityNet above all, detectors say when something happens and a
classifier of whole videos says what: each segment is taken once for each of the video's likeliest classes, with the
square root of the product of both scores, as ActionFormer and OpenTAD's ``StandardClassifier`` have it. (OpenTAD's
classifiers for CUHK's ActivityNet and TCANet's HACS results take the product, which ranks alike.)
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitad.inference.postprocess import Candidates
from bitad.runtime.files import read_json
from bitad.runtime.log import shortlist
from bitad.video.names import Matching, renamed


@dataclass(frozen=True, eq=False)
class VideoScores:
    """How likely each class is in each video.

    Args:
        source: the file, for messages.
        classes: the K class names.
        scores: float64 ``[K]``, by video; none negative.
    """

    source: str
    classes: tuple[str, ...]
    scores: Mapping[str, NDArray[np.float64]]

    def under_names(self, wanted: Iterable[str]) -> VideoScores:
        """The scores under these names of videos, where their own differ by habits (:mod:`bitad.video.names`).

        Raises:
            ValueError: several videos may be meant by a wanted name, or one by several.
        """
        return replace(self, scores=renamed(self.scores, wanted, self.source))

    def of_video(self, name: str) -> NDArray[np.float64]:
        """A video's scores ``[K]``; its name may differ from theirs by habits (:mod:`bitad.video.names`).

        Raises:
            ValueError: there are none, or several may be meant.
        """
        if name not in self.scores:
            matching = Matching.of([name], self.scores)
            if name in matching.unclear:
                raise ValueError(f"{self.source}: {matching.unclear[name]}")
            if name not in matching.pairs:
                raise ValueError(
                    f"{self.source}: no scores of video {name} among those of {len(self.scores)} videos; score every "
                    f"video of the test subset; {matching.sides()}"
                )
            name = matching.pairs[name]
        return self.scores[name]

    def with_classes(self, classes: Sequence[str]) -> VideoScores:
        """The scores of these classes in this order, without the others.

        Raises:
            ValueError: there are no scores of one of them.
        """
        number = {name: i for i, name in enumerate(self.classes)}
        if missing := [name for name in classes if name not in number]:
            raise ValueError(
                f"{self.source}: no scores of class {shortlist(missing)}; its classes are {shortlist(self.classes)}; "
                "give it the data set's own names"
            )
        columns = np.array([number[name] for name in classes], np.int64)
        return replace(
            self, classes=tuple(classes), scores={name: scores[columns] for name, scores in self.scores.items()}
        )

    def label(self, candidates: Candidates, video: str, *, top_k: int = 2) -> Candidates:
        """A video's candidates, each once for every one of its likeliest classes, best first.

        Labels become indices into ``classes``, scores sqrt(candidate's * video's). What the candidates' own labels
        were does not matter; of a detector with several classes, suppress across classes before, lest a segment found
        in two of them come twice. A class that scores 0 in the video names nothing. Equal scores: the likelier class
        first, then the candidates' order.

        Args:
            candidates: of the video, after suppression.
            video: its name.
            top_k: how many classes.

        Raises:
            ValueError: there are no scores of the video, or ``top_k`` is below 1.
        """
        if top_k < 1:
            raise ValueError(f"{top_k} classes a video name nothing; give at least 1")
        of_video = self.of_video(video)
        likeliest = np.argsort(-of_video, kind="stable")[:top_k]
        likeliest = likeliest[of_video[likeliest] > 0]
        scores = np.sqrt(of_video[likeliest, None] * candidates.scores).ravel()  # [k * n]
        order = np.argsort(-scores, kind="stable")
        return Candidates(
            np.tile(candidates.segments, (len(likeliest), 1))[order],
            scores[order],
            np.repeat(likeliest, len(candidates))[order],
        )


def read_video_scores(path: str | Path, *, softmax: bool = False) -> VideoScores:
    """Read a file of video-level scores, ``.json`` or ``.json.gz``.

    Its ``results`` hold of each video either a list of numbers in the order of the file's ``class`` (or ``classes``)
    names, as ``cuhk_val_simp_share.json`` and OpenTAD's others do; or an object of numbers by class name; or
    ActivityNet's classification results, a list of ``{"label": name, "score": number}``. In the last two a class that
    is not mentioned scores 0, and the file may leave out the names of the classes. A list of numbers may be the only
    element of another, as in TCANet's HACS results.

    Args:
        path: the file.
        softmax: its numbers are logits; scores are their softmax.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the first defect, with file, video and value; scores that are negative.
    """
    content = read_json(path)
    results = content.get("results") if isinstance(content, dict) else None
    if not (isinstance(results, dict) and results):
        raise ValueError(
            f'{path}: no "results" object with videos in this file; video scores are {{"results": {{video: [...]}}, '
            '"class": [...]}'
        )
    declared = content.get("class", content.get("classes"))
    if declared is not None and not (isinstance(declared, list) and all(isinstance(name, str) for name in declared)):
        raise ValueError(f"{path}: class {reprlib.repr(declared)} is not a list of names")
    if declared is not None and len(set(declared)) < len(declared):
        raise ValueError(f"{path}: a name occurs twice in its list of classes, {reprlib.repr(declared)}")
    try:
        stated = {video: _stated(video, scores, declared) for video, scores in results.items()}
        classes = tuple(
            sorted({name for scores in stated.values() for name in scores}) if declared is None else declared
        )
        scores = {video: _as_scores(video, by_name, classes, softmax) for video, by_name in stated.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return VideoScores(str(path), classes, scores)


def _stated(video: str, scores: Any, declared: list[str] | None) -> dict[str, float]:
    """A video's scores by class name, as its file states them in any of the forms."""
    if isinstance(scores, list) and len(scores) == 1 and isinstance(scores[0], list):
        scores = scores[0]
    if isinstance(scores, dict):
        pairs = list(scores.items())
    elif isinstance(scores, list) and (scores or declared is None) and all(isinstance(row, dict) for row in scores):
        pairs = [(row.get("label"), row.get("score")) for row in scores]
    elif isinstance(scores, list):
        if declared is None:
            raise ValueError(f'video {video} has scores without names, and the file has no list of names, "class"')
        if len(scores) != len(declared):
            raise ValueError(f"video {video} has {len(scores)} scores for the {len(declared)} classes of the file")
        pairs = list(zip(declared, scores, strict=True))
    else:
        raise ValueError(f"video {video}: {reprlib.repr(scores)} are not scores; they must be a list or an object")
    for label, score in pairs:
        if not (isinstance(label, str) and _is_number(score)):
            raise ValueError(
                f"video {video}: class {reprlib.repr(label)} has the score {reprlib.repr(score)}, no number"
            )
    by_name = dict(pairs)
    if len(by_name) < len(pairs):
        raise ValueError(f"video {video} scores a class twice")
    if declared is not None and (unknown := sorted(by_name.keys() - set(declared))):
        raise ValueError(f"video {video} scores {shortlist(unknown)}, which the file's list of classes does not have")
    return by_name


def _as_scores(video: str, by_name: Mapping[str, float], classes: Sequence[str], softmax: bool) -> NDArray[np.float64]:
    """The scores ``[K]`` of a video, which states those of some classes."""
    if not by_name:
        return np.zeros(len(classes))
    values = np.array([by_name.get(name, -math.inf if softmax else 0.0) for name in classes], np.float64)
    if softmax:
        values = np.exp(values - values.max())
        return values / values.sum()
    if (values < 0).any():
        worst = int(values.argmin())
        raise ValueError(
            f"video {video}: class {classes[worst]} scores {values[worst]}, which is negative and no probability; if "
            "these are logits, read them with softmax"
        )
    return values


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
