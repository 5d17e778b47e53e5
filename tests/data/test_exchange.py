"""Formats of annotation tools: what is written is read back within half a frame, also at a variable frame rate."""

from __future__ import annotations

import json
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from builders import found, truth
from hypothesis import given, settings
from hypothesis import strategies as st

from bitad.cli import main
from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.detections import write_detections
from bitad.data.formats.annotations import (
    FORMATS,
    WRITTEN,
    read_annotation_files,
    recognise,
    write_annotation_files,
)
from bitad.data.formats.writing import WriteOptions
from bitad.data.frame_clocks import FrameClocks, FrameTimes
from bitad.timeline import FloatArray, IntArray
from bitad.video.index import FrameIndex

# At most one label a frame.
ONE_LABEL: tuple[str, ...] = ()
# Without a file's own list of videos: those without a segment are not in it.
ONLY_SEGMENTS: tuple[str, ...] = ()


def index_of(intervals_ms: list[int]) -> FrameIndex:
    """The index of a video whose frames are shown for so many milliseconds each."""
    shown = np.cumsum([100, *intervals_ms[:-1]])  # its clock does not start at 0
    rate = Fraction(1000 * len(intervals_ms), sum(intervals_ms))
    return FrameIndex(len(shown), rate, 64, 48, 0, 0, Fraction(1, 1000), shown, 0)


def clocks_of(folder: Path, intervals_ms: list[int], *names: str) -> FrameClocks:
    """Of a folder with files of these names, all with these frames."""
    for name in names:
        (folder / f"{name}.mkv").touch()
    return FrameClocks(folder, index=lambda _: index_of(intervals_ms)).among(names)


INTERVALS = st.lists(st.integers(5, 120), min_size=6, max_size=60)
# Names of classes with what formats must escape, leave alone or tell from their own marks.
LABELS = ("run", "high jump", "a & b", 'say "x"', "뛰기", "1", "x;y,z", "naïve's", "50%", "NOTE 1")


@pytest.mark.parametrize("format", WRITTEN)
@settings(max_examples=15, deadline=None)
@given(INTERVALS, st.data())
def test_every_format_keeps_edges_within_half_a_frame(
    format: str, intervals: list[int], data: st.DataObject
) -> None:
    frames = len(intervals)
    edges = np.append(0, np.cumsum(intervals)) / 1000
    duration_s = float(edges[-1])
    count = data.draw(st.integers(0, 4))
    rows = []
    after = 0
    for i in range(count):
        first = data.draw(st.integers(after if format in ONE_LABEL else 0, frames - 1), label="first")
        last = data.draw(st.integers(first, frames - 1), label="last")
        if after >= frames - 1:
            break
        after = last + 2  # a frame between, as equal neighbours are one segment in some formats
        inside = [data.draw(st.floats(-0.49, 0.49), label="off") for _ in range(2)]
        shortest = min(intervals[max(first - 1, 0) : last + 2])
        start, end = (
            float(edges[place] + 0.001 * shortest * off)
            for place, off in zip((first, last + 1), inside, strict=True)
        )
        label = data.draw(st.sampled_from(LABELS), label="label")
        rows.append((max(0.0, start), min(end, duration_s), f"{label} {i}"))
    one, other = (
        AnnotatedVideo(
            name=name,
            subset="training",
            duration_s=duration_s,
            segments=np.array([row[:2] for row in own]).reshape(-1, 2),
            labels=tuple(row[2] for row in own),
            frames=frames,
            fps=float(frames / edges[-1]),
        )
        for name, own in (("one", rows), ("the other", [(0.0, duration_s, "run 9")]))
    )
    annotations = Annotations({"one": one, "the other": other}, tuple(sorted({*one.labels, "run 9"})))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "videos").mkdir()
        clocks = clocks_of(folder / "videos", intervals, "one", "the other")
        suffix = FORMATS[format].suffix
        dst = folder / f"written{suffix}"
        files = write_annotation_files(annotations, dst, format, WriteOptions(clocks))
        assert all(path.is_file() for path in files)
        read = read_annotation_files(dst, format, frame_clocks=clocks).annotations
        assert format == "activitynet" or recognise(dst) == format
    assert set(read.videos) == ({"one", "the other"} if rows or format not in ONLY_SEGMENTS else {"the other"})
    for video in (one, other):
        if video.name not in read.videos:
            continue
        back = dict(zip(read.videos[video.name].labels, read.videos[video.name].segments.tolist(), strict=True))
        assert set(back) == set(video.labels)
        for segment, label in zip(video.segments.tolist(), video.labels, strict=True):
            for before, after_ in zip(segment, back[label], strict=True):
                assert abs(after_ - before) <= half_a_frame(edges, before) + 1e-6


def half_a_frame(edges: FloatArray, seconds: float) -> float:
    """Half of the frame that is shown at a time, in seconds."""
    place = int(np.clip(np.searchsorted(edges, seconds, side="right") - 1, 0, len(edges) - 2))
    around = np.diff(edges)[max(place - 1, 0) : place + 2]
    return float(around.max()) / 2


@settings(deadline=None)
@given(INTERVALS, st.lists(st.tuples(st.floats(-0.5, 8), st.floats(0, 1)), min_size=1, max_size=5))
def test_frames_of_seconds_are_those_of_an_obvious_search(
    intervals: list[int], segments: list[tuple[float, float]]
) -> None:
    times = FrameTimes.of(index_of(intervals))
    assert times.edges is not None
    rows = np.array([(start, start + length) for start, length in segments])
    for (start, end), (first, after) in zip(rows.tolist(), times.to_frames(rows).tolist(), strict=True):
        assert 0 <= first < after <= len(intervals)
        nearest = [int(np.abs(times.edges - edge).argmin()) for edge in (start, end)]
        if nearest[0] < nearest[1]:
            assert np.abs(times.edges[[first, after]] - times.edges[nearest]).max() < 1e-9
        else:
            assert after == first + 1
            middle = np.clip((start + end) / 2, 0, times.edges[-1] - 1e-9)
            assert times.edges[first] <= middle < times.edges[after]


@settings(deadline=None)
@given(st.integers(1, 120), st.lists(st.tuples(st.integers(0, 999), st.integers(1, 50)), max_size=4))
def test_an_even_clock_counts_frames_as_the_uneven_one_does(rate: int, rows: list[tuple[int, int]]) -> None:
    frames: IntArray = np.array([(first, first + length) for first, length in rows], np.int64).reshape(-1, 2)
    even = FrameTimes(Fraction(rate))
    uneven = FrameTimes(Fraction(rate), 1200, np.arange(1201) / rate)
    assert even.even_rate == uneven.even_rate == rate
    np.testing.assert_allclose(even.to_seconds(frames), uneven.to_seconds(frames))
    for times in (even, uneven):
        np.testing.assert_array_equal(times.to_frames(times.to_seconds(frames)), frames)


def test_label_studio_counts_from_one_and_contains_the_end(tmp_path: Path) -> None:
    result = {
        "type": "timelinelabels",
        "from_name": "action",
        "to_name": "video",
        "value": {"ranges": [{"start": 3, "end": 5}], "timelinelabels": ["run"]},
    }
    task = {
        "id": 1,
        "data": {"video": "/data/local-files/?d=videos%2Fa.mp4", "fps": 10},
        "annotations": [
            {"result": [], "updated_at": "2026-01-01"},
            {"result": [result], "updated_at": "2026-01-02"},
            {"result": [], "updated_at": "2026-01-03", "was_cancelled": True},
        ],
    }
    waiting = {"id": 2, "data": {"video": "b.mp4"}, "predictions": [{"result": [result]}]}
    path = tmp_path / "project-1.json"
    path.write_text(json.dumps([task, waiting]))
    parsed = read_annotation_files(path)
    (video,) = parsed.annotations.videos.values()
    assert video.name == "a"
    np.testing.assert_allclose(video.segments, [[0.2, 0.5]])
    assert any("several annotations" in note for note in parsed.notes)
    assert any("without an annotation are left out" in note for note in parsed.notes)


def test_label_studio_without_a_rate_has_its_default_which_is_said(tmp_path: Path) -> None:
    region = {"ranges": [{"start": 25, "end": 48}], "timelinelabels": ["run", "jump"]}
    path = tmp_path / "project-1-min.json"
    path.write_text(json.dumps([{"id": 1, "video": "https://host/x/a.mp4?token=1", "action": [region]}]))
    parsed = read_annotation_files(path)
    video = parsed.annotations.videos["a"]
    assert parsed.format == "label-studio"
    assert video.labels == ("jump", "run")
    np.testing.assert_allclose(video.segments, [[1, 2], [1, 2]])
    assert any("24 is assumed" in note for note in parsed.notes)
    assert main(["annotations", "convert", str(path), str(tmp_path / "a.json"), "--frame-rate", "0"]) == 1
    given_rate = ["--frame-rate", "12", "--video-info", str(tmp_path / "info.csv"), "--from", "label-studio"]
    (tmp_path / "info.csv").write_text("video,duration\na,9\n")
    assert main(["annotations", "convert", str(path), str(tmp_path / "a.json"), *given_rate]) == 0
    written = json.loads((tmp_path / "a.json").read_text())["database"]["a"]
    assert written["annotations"][0]["segment"] == [2, 4]


def test_subtitles_of_other_programs_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.vtt").write_text(
        "\ufeffWEBVTT - a title\nKind: captions\n\nSTYLE\n::cue { color: red }\n\nNOTE\na comment\n\n"
        "the first\n00:01.500 --> 01:02.250 align:start position:0%\n<v Ann>high <b>jump</b>\na &amp; b\n\n"
        "100:00:01.000 --> 100:00:02.000\nrun\n"
    )
    (tmp_path / "a.srt").write_text(
        "1\n00:00:01,500 --> 00:01:02,250 X1:100\n<i>high jump</i>\n\n\n2\n1:00:00,5 --> 1:00:01,0\n\n"
    )
    video = read_annotation_files(tmp_path / "a.vtt").annotations.videos["a"]
    assert video.segments.tolist() == [[1.5, 62.25], [1.5, 62.25], [360001, 360002]]
    assert video.labels == ("a & b", "high jump", "run")
    video = read_annotation_files(tmp_path / "a.srt").annotations.videos["a"]
    assert video.segments.tolist() == [[1.5, 62.25]]
    assert video.labels == ("high jump",)
    (tmp_path / "b.srt").write_text("1\n00:00:01 -> 00:00:02\nrun\n")
    with pytest.raises(ValueError, match=r"b\.srt:1: .*is not the times of a cue"):
        _ = read_annotation_files(tmp_path / "b.srt").annotations


def test_export_writes_detections_that_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    detections = found(
        {"a": [(1, 2, "run", 0.9), (1, 3, "jump", 0.5), (5, 6, "run", 0.2)], "b": []}, ("run", "jump")
    )
    write_detections(detections.with_min_scores({"run": 0.1, "jump": 0.6}), tmp_path / "found.json")
    assert (
        main(["export", "found.json", "--to", "label-studio", "--frame-rate", "10", "--media", "http://x/"]) == 0
    )
    out = capsys.readouterr().out
    assert "2 of 3 detections in 2 videos" in out
    assert "found-label-studio.xml" in out
    tasks = json.loads((tmp_path / "found-label-studio.json").read_text())
    assert [task["data"]["video"] for task in tasks] == ["http://x/a", "http://x/b"]
    (prediction,) = tasks[0]["predictions"]
    assert [one["score"] for one in prediction["result"]] == [0.9, 0.2]
    assert [one["value"]["ranges"] for one in prediction["result"]] == [
        [{"start": 11, "end": 20}],
        [{"start": 51, "end": 60}],
    ]
    config = (tmp_path / "found-label-studio.xml").read_text()
    assert '<Label value="jump"/>' in config
    assert main(["export", "found.json", "--to", "webvtt", "--min-score", "0.4", "--no-overlap"]) == 0
    assert (tmp_path / "found-webvtt" / "a.vtt").read_text().count("-->") == 2
    assert (tmp_path / "found-webvtt" / "b.vtt").read_text() == "WEBVTT\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "label-studio"], "frame rate is not known; give --videos DIR"),
        (["--to", "label-studio", "--videos", "nowhere"], "no such folder of videos"),
        (["--to", "label-studio", "--frame-rate", "-1"], "give a positive number"),
        (["--to", "srt", "--min-score", "2"], "give auto, or a score from 0 to 1"),
        (["--to", "srt", "--out", "found.json"], "is not a folder"),
        (["--to", "native", "--out", "found.json"], "would replace the input"),
        (["--to", "webvtt", "--out", "."], "has other .vtt files (old.vtt)"),
    ],
)
def test_a_wrong_export_is_one_line_and_writes_nothing(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_detections(found({"a": [(1, 2, "run", 0.9)]}, ("run",)), tmp_path / "found.json")
    (tmp_path / "old.vtt").write_text("WEBVTT\n")
    before = sorted(tmp_path.rglob("*"))
    assert main(["export", "found.json", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("format", "label", "message"),
    [
        ("webvtt", "a --> b", "which this format cannot have"),
        ("srt", "<b>run</b>", "contains a tag"),
        ("srt", "two\nlines", "cannot be written as one line"),
    ],
)
def test_a_label_that_a_format_cannot_have_is_named(format: str, label: str, message: str, tmp_path: Path) -> None:
    annotations = truth({"a": [(1, 2, label)]})
    with pytest.raises(ValueError, match=message):
        write_annotation_files(annotations, tmp_path / "out", format, WriteOptions(FrameClocks(frame_rate=10)))
    assert not (tmp_path / "out").exists()


def test_names_that_are_no_files_are_refused(tmp_path: Path) -> None:
    for name in ("../a", "a/b", ".hidden", ""):
        with pytest.raises(ValueError, match="cannot be that of a file"):
            write_annotation_files(
                truth({name: [(1, 2, "run")]}), tmp_path / "out", "srt", WriteOptions(FrameClocks())
            )
