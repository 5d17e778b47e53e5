"""Video-level class scores of an external classifier, which label what a class-agnostic detector finds.

Each segment gets each of the video's top classes, with the square root of the product of both scores, as in
ActionFormer and OpenTAD.
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
    source: str  # the file, for errors
    classes: tuple[str, ...]  # K names
    scores: Mapping[str, NDArray[np.float64]]  # [K] by video, not negative

    def under_names(self, wanted: Iterable[str]) -> VideoScores:
        return replace(self, scores=renamed(self.scores, wanted, self.source))

    def of_video(self, name: str) -> NDArray[np.float64]:
        if name not in self.scores:
            found = f"no scores of video {name} among those of {len(self.scores)} videos"
            sides = Matching.of([name], self.scores).sides()
            raise ValueError(f"{self.source}: {found}; score every video of the test subset; {sides}")
        return self.scores[name]

    def with_classes(self, classes: Sequence[str]) -> VideoScores:
        number = {name: i for i, name in enumerate(self.classes)}
        if missing := [name for name in classes if name not in number]:
            found = f"no scores of class {shortlist(missing)}; its classes are {shortlist(self.classes)}"
            raise ValueError(f"{self.source}: {found}; use the data set's names")
        columns = np.array([number[name] for name in classes], np.int64)
        chosen = {name: scores[columns] for name, scores in self.scores.items()}
        return replace(self, classes=tuple(classes), scores=chosen)

    def label(self, candidates: Candidates, video: str, *, top_k: int = 2) -> Candidates:
        """A video's candidates, once for each of the video's ``top_k`` classes, best first.

        Labels become indices into ``classes``, scores sqrt(candidate's * video's). Apply NMS across classes first. A
        class with a score of 0 is not used. Of equal scores the better class comes first, then the first candidate.
        """
        if top_k < 1:
            raise ValueError(f"the top {top_k} classes of a video label nothing; use at least 1")
        of_video = self.of_video(video)
        top = np.argsort(-of_video, kind="stable")[:top_k]
        top = top[of_video[top] > 0]
        scores = np.sqrt(of_video[top, None] * candidates.scores).ravel()  # [k * n]
        segments = np.tile(candidates.segments, (len(top), 1))
        labels = np.repeat(top, len(candidates))
        return Candidates(segments, scores, labels).take(np.argsort(-scores, kind="stable"))


def read_video_scores(path: str | Path) -> VideoScores:
    """Read a file of video-level scores, ``.json`` or ``.json.gz``.

    For each video, its ``results`` hold a list of numbers in the order of the file's ``class`` (or ``classes``) names
    (OpenTAD's files; TCANet's HACS results nest it in another list); an object of numbers by class name; or a list of
    ``{"label": name, "score": number}`` (ActivityNet's). In the last two, missing classes score 0.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the first defect, with file, video and value.
    """
    content = read_json(path)
    results = content.get("results") if isinstance(content, dict) else None
    if not (isinstance(results, dict) and results):
        example = '{"results": {video: [...]}, "class": [...]}'
        raise ValueError(f'{path}: no "results" object with videos in this file; video scores are {example}')
    declared = content.get("class", content.get("classes"))
    if declared is not None:
        is_names = isinstance(declared, list) and all(isinstance(name, str) for name in declared)
        if not is_names or len(set(declared)) < len(declared):
            raise ValueError(f"{path}: class {reprlib.repr(declared)} is not a list of names that occur once")
    parsed = {video: _parse(scores, declared, f"{path}: video {video}") for video, scores in results.items()}
    classes = tuple(sorted(set().union(*parsed.values())) if declared is None else declared)
    scores = {
        video: np.array([by_name.get(name, 0.0) for name in classes], np.float64)  # [K]
        for video, by_name in parsed.items()
    }
    return VideoScores(str(path), classes, scores)


def _parse(scores: Any, declared: list[str] | None, where: str) -> dict[str, float]:
    if isinstance(scores, list) and len(scores) == 1 and isinstance(scores[0], list):
        scores = scores[0]
    if isinstance(scores, dict):
        pairs = list(scores.items())
    elif not isinstance(scores, list):
        raise ValueError(f"{where}: {reprlib.repr(scores)} are not scores; they must be a list or an object")
    elif (scores or declared is None) and all(isinstance(row, dict) for row in scores):
        pairs = [(row.get("label"), row.get("score")) for row in scores]
    elif declared is None:
        raise ValueError(f'{where} has scores without names, and the file has no "class" list of names')
    elif len(scores) != len(declared):
        raise ValueError(f"{where} has {len(scores)} scores for the {len(declared)} classes of the file")
    else:
        pairs = list(zip(declared, scores, strict=True))
    for label, score in pairs:
        is_number = isinstance(score, (int, float)) and not isinstance(score, bool) and math.isfinite(score)
        if not (isinstance(label, str) and is_number and score >= 0):
            found = f"class {reprlib.repr(label)} has the score {reprlib.repr(score)}"
            raise ValueError(f"{where}: {found}, no number from 0 up; apply a softmax to logits")
    by_name = dict(pairs)
    if len(by_name) < len(pairs):
        raise ValueError(f"{where} scores a class twice")
    if declared is not None and (unknown := sorted(by_name.keys() - set(declared))):
        raise ValueError(f"{where} scores {shortlist(unknown)}, which the file's list of classes lacks")
    return by_name
