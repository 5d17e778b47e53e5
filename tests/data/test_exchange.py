"""Formats of annotation tools: what is written is read back within half a frame, also at a variable frame rate."""

from __future__ import annotations

import json
import sys
import tempfile
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from bar_codes import Kind, uneven
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
from bitad.data.formats.database import read_annotations, write_annotations
from bitad.data.formats.writing import WriteOptions
from bitad.data.frame_clocks import FrameClocks, FrameTimes
from bitad.timeline import FloatArray, IntArray
from bitad.video.index import FrameIndex

# At most one label a frame.
ONE_LABEL = ("frame-wise",)


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


def needs_pyarrow(format: str) -> None:
    if format == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")


@pytest.mark.parametrize("format", WRITTEN)
@settings(max_examples=15, deadline=None)
@given(INTERVALS, st.data())
def test_every_format_keeps_edges_within_half_a_frame(
    format: str, intervals: list[int], data: st.DataObject
) -> None:
    needs_pyarrow(format)
    frames = len(intervals)
    edges = np.append(0, np.cumsum(intervals)) / 1000
    duration_s = float(edges[-1])
    count = data.draw(st.integers(0, 4))
    rows = []
    after = 0
    for i in range(count):
        if after >= frames:
            break
        first = data.draw(st.integers(after if format in ONE_LABEL else 0, frames - 1), label="first")
        last = data.draw(st.integers(first, frames - 1), label="last")
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
    assert set(read.videos) == {"one", "the other"}
    for video in (one, other):
        back = dict(zip(read.videos[video.name].labels, read.videos[video.name].segments.tolist(), strict=True))
        assert set(back) == set(video.labels)
        for segment, label in zip(video.segments.tolist(), video.labels, strict=True):
            for before, after_ in zip(segment, back[label], strict=True):
                jitter = 1.12 if format == "label-studio" else 1  # of its even clock
                # At least one step of that clock, which is one of the shortest frame.
                is_widened = format == "label-studio" and segment[1] - segment[0] < np.diff(edges).min()
                allowed = jitter * half_a_frame(edges, before) * (2 if is_widened else 1)
                assert abs(after_ - before) <= allowed + 1e-6


def half_a_frame(edges: FloatArray, seconds: float) -> float:
    """Half of the shorter of the frames at the edge that is nearest to a time, in seconds."""
    edge = int(np.abs(edges - seconds).argmin())
    return float(np.diff(edges)[max(edge - 1, 0) : edge + 1].min()) / 2


def test_an_even_clock_has_steps_as_short_as_the_shortest_frame() -> None:
    assert FrameTimes.of(index_of([33, 33, 34] * 20)).even_rate == pytest.approx(30)
    assert FrameTimes.of(index_of([40, 40, 20, 60])).even_rate == pytest.approx(50)
    assert FrameTimes.of(index_of([40, 40, 1, 40])).even_rate == 240


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


def test_audacity_without_frequencies_and_with_a_fault_for_a_point_without_a_label(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("1.000000\t2.500000\thigh jump\n\\\t-1.000000\t6334.588867\n3.4\t6.1\trun\n")
    assert recognise(path) == "audacity"
    video = read_annotation_files(path).annotations.videos["a"]
    assert video.segments.tolist() == [[1, 2.5], [3.4, 6.1]]
    assert video.labels == ("high jump", "run")
    path.write_text("1.0\t2.5\trun\n3.0\t3.0\n")
    with pytest.raises(ValueError, match=r"a\.txt:2: .* is not 'start, tab, end, tab, label'"):
        _ = read_annotation_files(path).annotations


ELAN = """<?xml version="1.0" encoding="UTF-8"?>
<ANNOTATION_DOCUMENT AUTHOR="" DATE="2017-09-05T14:53:24+06:00" FORMAT="3.0" VERSION="3.0">
<HEADER MEDIA_FILE="" TIME_UNITS="milliseconds">
<MEDIA_DESCRIPTOR MEDIA_URL="file:///a.mp4" MIME_TYPE="video/mp4"/></HEADER>
<TIME_ORDER><TIME_SLOT TIME_SLOT_ID="ts1" TIME_VALUE="0"/><TIME_SLOT TIME_SLOT_ID="ts2" TIME_VALUE="1250"/></TIME_ORDER>
<TIER LINGUISTIC_TYPE_REF="t" TIER_ID="hands"><ANNOTATION>
<ALIGNABLE_ANNOTATION ANNOTATION_ID="a1" TIME_SLOT_REF1="ts1" TIME_SLOT_REF2="ts2">
<ANNOTATION_VALUE>run</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION></TIER>
<TIER LINGUISTIC_TYPE_REF="t" TIER_ID="words" PARENT_REF="hands"><ANNOTATION>
<REF_ANNOTATION ANNOTATION_ID="a2" ANNOTATION_REF="a1"><ANNOTATION_VALUE>go</ANNOTATION_VALUE></REF_ANNOTATION>
</ANNOTATION></TIER></ANNOTATION_DOCUMENT>
"""


def test_independent_tiers_of_elan_are_read_and_others_named(tmp_path: Path) -> None:
    path = tmp_path / "a.eaf"
    path.write_text(ELAN)
    parsed = read_annotation_files(path)
    video = parsed.annotations.videos["a"]
    assert (parsed.format, video.labels, video.segments.tolist()) == ("elan", ("run",), [[0, 1.25]])
    assert parsed.notes == ("tiers left out: words",)
    path.write_text(ELAN.replace('TIER_ID="words" PARENT_REF="hands"', 'TIER_ID="actions 2"'))
    parsed = read_annotation_files(path)  # which has no annotation with times
    assert parsed.annotations.videos["a"].labels == ()
    assert parsed.notes == ("tiers left out: hands",)
    for old, new, message in (
        ('TIME_UNITS="milliseconds"', 'TIME_UNITS="PAL-frames"', "its times are PAL-frames"),
        ('MIME_TYPE="video/mp4"', 'MIME_TYPE="video/mp4" TIME_ORIGIN="500"', "has an offset"),
        (' TIME_VALUE="1250"', "", "has no value or no times"),
        ("</TIER></ANNOTATION_DOCUMENT>", "", "not XML"),
        ("ANNOTATION_DOCUMENT", "Project", "XML of <Project>; it should be <ANNOTATION_DOCUMENT>"),
    ):
        path.write_text(ELAN.replace(old, new))
        with pytest.raises(ValueError, match=message):
            _ = read_annotation_files(path).annotations


def test_overlapping_segments_are_on_tiers_of_their_own(tmp_path: Path) -> None:
    annotations = truth({"a": [(1, 5, "run"), (2, 3, "jump"), (3, 4, "sit")]}, ("run", "jump", "sit"))
    (path,) = write_annotation_files(annotations, tmp_path / "out", "elan", WriteOptions(FrameClocks()))
    text = path.read_text()
    assert [text.count(f'TIER_ID="{name}"') for name in ("actions", "actions 2", "actions 3")] == [1, 1, 0]


@pytest.mark.parametrize(("format", "name"), [("elan", "a.eaf"), ("cvat", "a.xml")])
def test_xml_that_expands_or_reads_other_files_is_refused(format: str, name: str, tmp_path: Path) -> None:
    entities = '<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;"><!ENTITY c SYSTEM "file:///etc/hostname">'
    for encoding in ("utf-8", "utf-16"):
        text = f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE x [{entities}]><annotations>&b;&c;</annotations>'
        (tmp_path / name).write_bytes(text.encode(encoding))
        with pytest.raises(ValueError, match="document type"):
            _ = read_annotation_files(tmp_path / name, format).annotations


CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
<meta><job><id>7</id><size>20</size><start_frame>0</start_frame><stop_frame>19</stop_frame></job>
<source>clips/a.mp4</source></meta>
<track id="0" label="run" source="manual">
<box frame="2" keyframe="1" outside="0" occluded="0" xtl="1" ytl="1" xbr="2" ybr="2" z_order="0"></box>
<box frame="3" keyframe="0" outside="0" occluded="0" xtl="1" ytl="1" xbr="2" ybr="2" z_order="0"></box>
<box frame="5" keyframe="1" outside="1" occluded="0" xtl="1" ytl="1" xbr="2" ybr="2" z_order="0"></box>
<box frame="9" keyframe="1" outside="0" occluded="0" xtl="1" ytl="1" xbr="2" ybr="2" z_order="0"></box>
</track>
<track id="1" label="jump" source="manual">
<points frame="4" keyframe="1" outside="0" occluded="0" points="1,1" z_order="0"></points>
<points frame="5" keyframe="1" outside="1" occluded="0" points="1,1" z_order="0"></points>
</track></annotations>
"""


def test_a_track_of_cvat_ends_where_it_is_hidden_or_with_the_task(tmp_path: Path) -> None:
    path = tmp_path / "annotations.xml"
    path.write_text(CVAT)
    parsed = read_annotation_files(path, frame_clocks=FrameClocks(frame_rate=10))
    video = parsed.annotations.videos["a"]
    assert parsed.format == "cvat"
    np.testing.assert_allclose(video.segments, [[0.2, 0.5], [0.4, 0.5], [0.9, 2.0]])
    assert video.labels == ("run", "jump", "run")
    for old, new, message in (
        ("<track id", '<image id="0"></image><track id', "it is CVAT for images"),
        ('frame="9"', 'frame="x"', "frame 'x' is not a number"),
        ('label="jump"', "", "it has no label"),
    ):
        path.write_text(CVAT.replace(old, new))
        with pytest.raises(ValueError, match=message):
            _ = read_annotation_files(path, frame_clocks=FrameClocks(frame_rate=10)).annotations


def test_a_project_of_cvat_has_a_video_for_each_task(tmp_path: Path) -> None:
    tasks = "".join(
        f"<task><id>{number}</id><name>t</name><size>9</size><source>{name}.mp4</source></task>"
        for number, name in ((3, "a"), (4, "b"))
    )
    track = '<track id="0" label="run" task_id="4"><box frame="2" outside="0"/></track>'
    text = f"<annotations><meta><project><tasks>{tasks}</tasks></project></meta>{track}</annotations>"
    (tmp_path / "annotations.xml").write_text(text)
    read = read_annotation_files(tmp_path, "cvat", frame_clocks=FrameClocks(frame_rate=1)).annotations
    assert {name: video.segments.tolist() for name, video in read.videos.items()} == {"a": [], "b": [[2, 9]]}


def test_boxes_of_cvat_fill_the_picture(tmp_path: Path) -> None:
    clocks = clocks_of(tmp_path, [40] * 10, "a")
    annotations = truth({"a": [(0.1, 0.4, "run")]}, ("run",), duration_s=0.4)
    (path,) = write_annotation_files(annotations, tmp_path / "out", "cvat", WriteOptions(clocks))
    assert 'xbr="64" ybr="48"' in path.read_text()
    assert path.read_text().count("<box") == 1  # the segment lasts to the end of the task
    assert "<source>a.mkv</source>" in path.read_text()


def test_via_reads_texts_options_and_leaves_out_regions(tmp_path: Path) -> None:
    project = {
        "project": {"pid": "x", "vid_list": ["1", "2"]},
        "config": {},
        "attribute": {
            "1": {"aname": "what", "anchor_id": "FILE1_Z2_XY0", "type": 1, "options": {}},
            "2": {"aname": "how", "anchor_id": "FILE1_Z2_XY0", "type": 2, "options": {"a": "fast", "b": "high"}},
            "3": {"aname": "where", "anchor_id": "FILE1_Z0_XY1", "type": 1, "options": {}},
        },
        "file": {
            "7": {"fid": "7", "fname": "clips/a.mp4", "type": 4, "loc": 1, "src": ""},
            "8": {"fid": "8", "fname": "https://host/b.webm?x=1", "type": 4, "loc": 2, "src": ""},
        },
        "metadata": {
            "1_a": {"vid": "1", "flg": 0, "z": [1.5, 2.25], "xy": [], "av": {"1": "run", "2": "a,b"}},
            "1_b": {"vid": "1", "flg": 0, "z": [1.5], "xy": [2, 0, 0, 9, 9], "av": {"3": "left"}},
        },
        "view": {"1": {"fid_list": ["7"]}, "2": {"fid_list": ["8"]}},
    }
    path = tmp_path / "project.json"
    path.write_text(json.dumps(project))
    parsed = read_annotation_files(path)
    assert parsed.format == "via"
    videos = parsed.annotations.videos
    assert list(videos) == ["a", "b"]
    assert videos["a"].labels == ("fast", "high", "run")
    assert videos["a"].segments.tolist() == [[1.5, 2.25]] * 3
    assert parsed.notes == ("left out, as they are no segments of time: 1 regions and times",)
    project["metadata"]["1_a"]["av"] = {"2": "c"}  # type: ignore[index]
    path.write_text(json.dumps(project))
    with pytest.raises(ValueError, match="'c' is no option of attribute 'how'"):
        _ = read_annotation_files(path).annotations


def test_fiftyone_counts_from_one_and_contains_the_last_frame(tmp_path: Path) -> None:
    labels = {
        "videos/a": [{"label": 1, "support": [1, 1]}, {"label": "sit", "support": [11, 20], "confidence": 0.5}],
        "b": [{"label": 0, "timestamps": [0.25, 1]}],
        "c": None,
    }
    (tmp_path / "labels.json").write_text(json.dumps({"classes": ["run", "jump"], "labels": labels}))
    (tmp_path / "data.json").write_text("{}")
    read = read_annotation_files(tmp_path, frame_clocks=FrameClocks(frame_rate=10)).annotations
    assert {name: video.labels for name, video in read.videos.items()} == {
        "a": ("jump", "sit"),
        "b": ("run",),
        "c": (),
    }
    np.testing.assert_allclose(read.videos["a"].segments, [[0, 0.1], [1, 2]])
    assert read.videos["b"].segments.tolist() == [[0.25, 1]]
    labels["b"] = [{"label": 2, "timestamps": [0.25, 1]}]
    (tmp_path / "labels.json").write_text(json.dumps({"classes": ["run", "jump"], "labels": labels}))
    with pytest.raises(ValueError, match="has no label of the 2 classes"):
        _ = read_annotation_files(tmp_path, frame_clocks=FrameClocks(frame_rate=10)).annotations


def test_frame_wise_text_of_gtea(tmp_path: Path) -> None:
    folder = tmp_path / "gtea" / "groundTruth"
    folder.mkdir(parents=True)
    (folder / "S1_Tea_C1.txt").write_text("background\n" * 3 + "take\n" * 6 + "open\n" * 3 + "background\n" * 3)
    (tmp_path / "gtea" / "mapping.txt").write_text("0 take\n1 open\n2 close\n3 background\n")
    for src in (tmp_path / "gtea", folder, folder / "S1_Tea_C1.txt"):
        parsed = read_annotation_files(src, frame_clocks=FrameClocks(frame_rate=15))
        video = parsed.annotations.videos["S1_Tea_C1"]
        np.testing.assert_allclose(video.segments, [[0.2, 0.6], [0.6, 0.8]])
        assert video.labels == ("take", "open")
        assert (video.duration_s, video.frames) == (1.0, 15)
        assert (parsed.format, parsed.annotations.classes) == ("frame-wise", ("take", "open", "close"))
    with pytest.raises(ValueError, match="frame rate is not known; give --videos DIR"):
        _ = read_annotation_files(folder).annotations
    (folder / "S1_Tea_C1.txt").write_text("take\n\ntake\n")
    with pytest.raises(ValueError, match=r"S1_Tea_C1\.txt:2: the line is empty"):
        _ = read_annotation_files(folder, frame_clocks=FrameClocks(frame_rate=15)).annotations


def test_two_labels_in_a_frame_are_refused_where_it_has_one(tmp_path: Path) -> None:
    annotations = truth({"a": [(1, 2, "run"), (1.5, 3, "jump")]}, ("run", "jump"), duration_s=5)
    options = WriteOptions(FrameClocks(frame_rate=10))
    with pytest.raises(ValueError, match=r"run and jump overlap at 1\.5 s"):
        write_annotation_files(annotations, tmp_path / "out", "frame-wise", options)
    assert not (tmp_path / "out").exists()


def test_a_table_of_tabs_is_read_back_exactly(tmp_path: Path) -> None:
    annotations = truth({"a": [(1 / 3, 2, 'run; fast, "x"')], "b": []}, duration_s=9.25)
    write_annotation_files(annotations, tmp_path / "a.tsv", "csv", WriteOptions(FrameClocks()))
    assert (tmp_path / "a.tsv").read_text().startswith("video\tstart\tend\tlabel\tsubset\tduration\n")
    read = read_annotation_files(tmp_path / "a.tsv").annotations.videos
    assert read["a"].segments.tolist() == [[1 / 3, 2]]
    assert read["a"].labels == annotations.videos["a"].labels
    assert [video.duration_s for video in read.values()] == [9.25, 9.25]


def test_a_table_of_pandas_is_read(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    columns = {
        "video": ["a", "a", "b"],
        "start": [1.5, 3, float("nan")],
        "end": [2, 4, None],
        "label": ["run", "jump", None],
    }
    parquet.write_table(pyarrow.table({**columns, "by": ["me"] * 3}), tmp_path / "a.parquet")
    parsed = read_annotation_files(tmp_path / "a.parquet")
    assert {name: video.labels for name, video in parsed.annotations.videos.items()} == {
        "a": ("run", "jump"),
        "b": (),
    }
    assert parsed.notes == ("columns left out: by",)
    parquet.write_table(pyarrow.table({"video": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="no column 'start'; it has video"):
        read_annotation_files(tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_text("no table")
    with pytest.raises(ValueError, match="no table of annotations in Parquet"):
        read_annotation_files(tmp_path / "a.parquet")


def test_parquet_without_pyarrow_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    write_detections(found({"a": [(1, 2, "run", 0.9)]}, ("run",)), tmp_path / "found.json")
    out = tmp_path / "out.parquet"
    assert main(["export", str(tmp_path / "found.json"), "--to", "parquet", "--out", str(out)]) == 1
    assert "pip install 'bitad[parquet]'" in capsys.readouterr().err
    assert not out.exists()


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


def test_subsets_that_a_format_does_not_know_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    both = truth({"a": [(1, 2, "run")], "b": [(1, 2, "run")]}, ("run",))
    both.videos["a"] = replace(both.videos["a"], subset="training")
    options = WriteOptions(FrameClocks(frame_rate=10))
    caplog.set_level("INFO", logger="bitad")
    for format in WRITTEN:
        needs_pyarrow(format)
        caplog.clear()
        dst = tmp_path / f"{format}{FORMATS[format].suffix}"
        write_annotation_files(both, dst, format, options)
        subsets = set(read_annotation_files(dst, format, frame_clocks=options.frames).annotations.subsets())
        is_named = f"format {format} knows no subsets (training, test)" in caplog.text
        assert subsets == ({"training"} if is_named else {"training", "test"}), format


def test_the_page_on_annotating_names_every_format() -> None:
    page = (Path(__file__).parents[2] / "docs/annotating.md").read_text(encoding="utf-8")
    assert [name for name in WRITTEN if f"`{name}`" not in page] == []


def test_frame_rates_of_a_list_of_videos_count_frames(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.xml").write_text(CVAT)
    (tmp_path / "info.csv").write_text("video,fps,duration\na,25,0.8\n")
    info = ["--video-info", str(tmp_path / "info.csv")]
    assert main(["annotations", "convert", str(tmp_path / "a.xml"), str(tmp_path / "a.json"), *info]) == 0
    segments = read_annotations(tmp_path / "a.json").videos["a"].segments
    np.testing.assert_allclose(segments, [[0.08, 0.2], [0.16, 0.2], [0.36, 0.8]])
    assert "frames are counted at a constant rate" in caplog.text


def test_a_video_without_a_file_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "b.mkv").touch()
    write_detections(found({"a": [(1, 2, "run", 0.9)]}, ("run",)), tmp_path / "found.json")
    command = ["export", str(tmp_path / "found.json"), "--videos", str(tmp_path / "videos")]
    assert main([*command, "--to", "via", "--out", str(tmp_path / "via.json")]) == 0
    assert "the video's name is used alone" in caplog.text
    assert main([*command, "--to", "cvat", "--out", str(tmp_path / "cvat")]) == 1
    assert "missing: 'a'; there: 'b'" in capsys.readouterr().err


JUNK = st.sampled_from(
    [
        "",
        "0",
        "-1",
        "1e999",
        "1e300",
        "9" * 40,
        "null",
        "[]",
        "{}",
        '"',
        "<",
        ">",
        "&",
        "\t",
        "\n",
        "nan",
        "x",
        "\x00",
        "é",
    ]
)


@pytest.mark.parametrize("format", [name for name in WRITTEN if name != "parquet"])
@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 6), JUNK), min_size=1, max_size=3))
def test_a_damaged_file_is_read_or_refused(format: str, damages: list[tuple[float, int, str]]) -> None:
    options = WriteOptions(FrameClocks(frame_rate=10))
    annotations = truth({"a": [(1, 2, "run"), (3, 4.5, "jump")], "b": []}, ("run", "jump"), duration_s=9.0)
    with tempfile.TemporaryDirectory() as name:
        dst = Path(name) / f"written{FORMATS[format].suffix}"
        path = write_annotation_files(annotations, dst, format, options)[0]
        text = path.read_text()
        for place, length, junk in damages:
            start = round(place * len(text))
            text = text[:start] + junk + text[start + length :]
        path.write_text(text)
        with suppress(ValueError):  # any other error would be a fault of the reader
            _ = read_annotation_files(dst, format, frame_clocks=options.frames).annotations


def test_names_that_are_no_files_are_refused(tmp_path: Path) -> None:
    for name in ("../a", "a/b", ".hidden", ""):
        with pytest.raises(ValueError, match="cannot be that of a file"):
            write_annotation_files(
                truth({name: [(1, 2, "run")]}), tmp_path / "out", "srt", WriteOptions(FrameClocks())
            )


@pytest.fixture(scope="module")
def uneven_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a video whose frames last between 20 and 60 ms."""
    folder = tmp_path_factory.mktemp("uneven")
    Kind("mkv", "libx264", b_frames=2, times=uneven, tick=Fraction(1, 1000)).write(folder / "a.mkv", 50)
    return folder


def test_edges_are_when_the_decoder_shows_frames(uneven_video: Path) -> None:
    times = FrameClocks(uneven_video).among(["a"]).times("a")
    with av.open(str(uneven_video / "a.mkv")) as container:
        shown = [picture.time for picture in container.decode(video=0)]
    assert times.edges is not None
    np.testing.assert_allclose(times.edges[:-1], np.array(shown) - shown[0], atol=1e-9)
    assert times.size == (64, 48)
    assert np.diff(times.edges[:-1]).max() > 2 * np.diff(times.edges[:-1]).min()


@pytest.mark.parametrize("format", WRITTEN)
def test_commands_convert_there_and_back_on_the_frames_of_an_uneven_video(
    format: str, uneven_video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needs_pyarrow(format)
    times = FrameClocks(uneven_video).among(["a"]).times("a")
    spans = [(0, 1), (3, 10), (17, 18), (40, 50)]
    rows = times.spans(spans)
    annotations = truth({"a": [(*row, "run") for row in rows]}, ("run",), duration_s=times.clock.duration_s)
    write_annotations(annotations, tmp_path / "a.json")
    there = tmp_path / f"there{FORMATS[format].suffix}"
    back = tmp_path / "back.json"
    videos = ["--videos", str(uneven_video)]
    assert main(["annotations", "convert", str(tmp_path / "a.json"), str(there), "--to", format, *videos]) == 0
    assert "written: " in capsys.readouterr().out
    assert main(["annotations", "check", str(there), "--from", format, *videos]) == 0
    assert main(["annotations", "convert", str(there), str(back), "--from", format, *videos]) == 0
    video = read_annotations(back).videos["a"]
    # Frames that are counted are exact; milliseconds and steps of a clock are nearer to their edge than to any other.
    np.testing.assert_array_equal(times.to_frames(video.segments), spans)
    if format in ("cvat", "fiftyone", "frame-wise"):
        np.testing.assert_allclose(video.segments, rows, atol=1e-9)
