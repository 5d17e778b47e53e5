"""The videos of a page with the ground truth and results, each detection judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.detections import Detections
from bitad.evaluation.diagnosis import classify, matched_scores
from bitad.evaluation.mean_average_precision import evaluate
from bitad.reports.page import DEFAULT_TIOU, TIOU, PageVideo, Track, best_result
from bitad.timeline import IntArray


def page_videos(
    truth: Annotations,
    results: Mapping[str, Detections],
    media: Callable[[str], str | None] = lambda name: None,
) -> list[PageVideo]:
    """All videos of the ground truth, with a track of it and of each result, judged at the page's tIoU thresholds.

    Args:
        results: detections on the forward clock, by name.
        media: the file that the page plays, by the name of the video.
    """
    if not truth.videos:
        return []
    bounds = np.cumsum([0, *(len(video.labels) for video in truth.videos.values())])
    kinds = {name: classify(truth, found, tiou=TIOU) for name, found in results.items()}
    matched = {name: matched_scores(truth, found, tiou=TIOU) for name, found in results.items()}
    rows_of = {name: _rows_by_video(found) for name, found in results.items()}
    videos = []
    for k, (name, video) in enumerate(truth.videos.items()):
        own = slice(bounds[k], bounds[k + 1])
        segments = {result: scores[own] for result, scores in matched.items()}
        tracks = [Track("Ground truth", "ground-truth", video.segments, video.labels, matched=segments)]
        average_precision: dict[str, Sequence[float]] = {}
        for result, found in results.items():
            rows = rows_of[result].get(name, np.empty(0, np.int64))
            part = _of_video(found, name, rows)
            tracks.append(Track.of(result, part, kinds=kinds[result][rows]))
            if (measured := _map_of_video(video, truth.classes, part)) is not None:
                average_precision[result] = measured
        videos.append(PageVideo(name, media(name), video.duration_s, tracks, average_precision=average_precision))
    return videos


def worst_first(videos: Sequence[PageVideo]) -> list[PageVideo]:
    """The videos in the order in which a page lists them at first.

    By the mAP at the default tIoU of the result that is best on average; without mAP, at the end.
    """
    best = best_result(videos)
    if best is None:
        return list(videos)
    at = TIOU.index(DEFAULT_TIOU)

    def place(video: PageVideo) -> float:
        return video.average_precision[best][at] if best in video.average_precision else np.inf

    return sorted(videos, key=place)


def _of_video(detections: Detections, name: str, rows: IntArray) -> Detections:
    """Some rows as detections of one video."""
    columns = detections.segments[rows], detections.scores[rows], detections.labels[rows]
    return Detections.from_videos({name: columns}, classes=detections.classes, details=detections.details)


def _rows_by_video(detections: Detections) -> dict[str, IntArray]:
    order = np.argsort(detections.video, kind="stable")
    bounds = np.searchsorted(detections.video[order], np.arange(len(detections.videos) + 1))
    return {name: order[bounds[i] : bounds[i + 1]] for i, name in enumerate(detections.videos)}


def _map_of_video(video: AnnotatedVideo, classes: tuple[str, ...], detections: Detections) -> list[float] | None:
    """mAP at each tIoU over the classes that the video has segments of; None if it has none."""
    if not (video.segments[:, 1] > video.segments[:, 0]).any():
        return None
    return evaluate(Annotations({video.name: video}, classes), detections, tiou=TIOU).map_per_tiou.tolist()
