"""What was found in videos, for people: subtitles and a page with the videos and their timelines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bitad.data.detections import Detections, write_detections
from bitad.reports.page import PageVideo, Track, write_page
from bitad.reports.subtitles import write_srt
from bitad.video.preview import write_preview


def write_detection_report(out: Path, detections: Detections, videos: Sequence[Path], *, min_score: float) -> Path:
    """Writes ``out``/detections.json, a ``.srt`` and an H.264 preview a video, and the page ``out``/index.html.

    Browsers do not play every file that FFmpeg reads (no MPEG-4 AVI, say): the page shows previews.

    Args:
        detections: on the forward clock; of videos named as the files.
        videos: the files.
        min_score: least score of the subtitles, and of the page at first.

    Returns:
        the page.
    """
    write_detections(detections, out / "detections.json")
    shown = []
    for path in videos:
        found = detections.of_video(path.stem)
        labels = [detections.classes[label] for label in found.labels]
        write_srt(out / f"{path.stem}.srt", found.segments, labels, found.scores, min_score=min_score)
        preview = out / "media" / f"{path.stem}.mp4"
        write_preview(path, preview)
        track = Track("Detections", "detection", found.segments, labels, found.scores)
        shown.append(PageVideo(path.stem, f"media/{preview.name}", detections.durations_s[path.stem], [track]))
    page = out / "index.html"
    best = float(np.max(detections.scores, initial=0.0))
    write_page(
        page,
        title="Detected actions",
        introduction=f"Looked for: {', '.join(detections.classes)}. The best score of a detection is {best:.2f}.",
        videos=shown,
        min_score=min_score,
    )
    return page
