"""Ground-truth files: what is read, what is refused, what reversing keeps."""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitad.config.schema import DataConfig
from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.check import check_annotations
from bitad.data.classes import read_classes
from bitad.data.formats.database import read_annotations, reverse_annotation_file, write_annotations
from bitad.data.sources import read_ground_truth
from bitad.video.indexing import index_video
from bitad.video.writer import write_video

SHARED = Path(__file__).resolve().parents[2] / "../shared"
THUMOS = SHARED / "data/thumos14/thumos14.json.gz"
MAP_FIXTURES = SHARED / "fixtures/map"

needs_thumos = pytest.mark.skipif(not THUMOS.is_file(), reason="the reference data beside the checkout is missing")


def entry(*rows: tuple[float, float, str], **more: Any) -> dict[str, Any]:
    annotations = [{"segment": [start, end], "label": label} for start, end, label in rows]
    return {"subset": "training", "duration": 10.0, "frame": 300, "annotations": annotations} | more


def save(folder: Path, videos: dict[str, Any], name: str = "anno.json") -> Path:
    path = folder / name
    path.write_text(json.dumps({"version": "made here", "database": videos}))
    return path


def rows_of(video: AnnotatedVideo) -> Counter[tuple[float, float, str]]:
    return Counter(
        (round(start, 6), round(end, 6), label)
        for (start, end), label in zip(video.segments.tolist(), video.labels, strict=True)
    )


def test_native_form_is_read(tmp_path: Path) -> None:
    path = save(tmp_path, {"b": entry((1, 2.5, "run"), (0, 1, "jump")), "a": entry(subset="Test", fps=25)})
    read = read_annotations(path)
    assert list(read.videos) == ["b", "a"]
    assert read.classes == ("jump", "run")
    video = read.videos["b"]
    assert (video.name, video.subset, video.duration_s, video.frames, video.fps) == (
        "b",
        "training",
        10.0,
        300,
        None,
    )
    assert video.segments.dtype == np.float64
    assert video.segments.tolist() == [[1, 2.5], [0, 1]]
    assert video.labels == ("run", "jump")
    assert read.videos["a"].segments.shape == (0, 2)
    assert read.videos["a"].fps == 25.0


def test_label_ids_give_the_order_of_the_classes(tmp_path: Path) -> None:
    video = entry((0, 1, "zebra"), (1, 2, "ant"))
    for row, label_id in zip(video["annotations"], (0, 1), strict=True):
        row["label_id"] = label_id
    assert read_annotations(save(tmp_path, {"a": video})).classes == ("zebra", "ant")


@pytest.mark.parametrize(
    "ids", [(0, 1, 1, None), (0, 1, 2, None), (0, 0, 0, 1), (None, 0, 0, 1)], ids=["a", "b", "c", "d"]
)
def test_contradicting_label_ids_are_refused(tmp_path: Path, ids: tuple[int | None, ...]) -> None:
    video = entry((0, 1, "w"), (1, 2, "x"), (2, 3, "x"), (3, 4, "y"))
    for row, label_id in zip(video["annotations"], ids, strict=True):
        if label_id is not None:
            row["label_id"] = label_id
    with pytest.raises(ValueError, match=r"anno.json: video a: label '\w' has label_id .* contradicts"):
        read_annotations(save(tmp_path, {"a": video}))


def test_class_file_and_sequence_give_the_order(tmp_path: Path) -> None:
    path = save(tmp_path, {"a": entry((0, 1, "x"), (1, 2, "y"))})
    index = tmp_path / "category_idx.txt"
    index.write_text("y\nunseen\nx\n\n")
    for classes in (index, str(index), ["y", "unseen", "x"]):
        assert read_annotations(path, classes=classes).classes == ("y", "unseen", "x")


def test_label_outside_the_classes_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, {"a": entry((0, 1, "x")), "b": entry((1, 2, "wat"))})
    with pytest.raises(ValueError, match=r"anno.json: video b: label 'wat' is not one of the 1 classes"):
        read_annotations(path, classes=["x"])


@pytest.mark.parametrize(("text", "message"), [("", "no class names"), ("a\nb\na\n", "class 'a' occurs 2 times")])
def test_bad_class_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "category_idx.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_classes(path)


def test_ambiguous_is_ignored_unless_asked_for(tmp_path: Path) -> None:
    path = save(tmp_path, {"a": entry((0, 1, "x"), (1, 2, "Ambiguous"), (2, 3, "x"))})
    assert read_annotations(path).classes == ("x",)
    assert read_annotations(path).videos["a"].segments.tolist() == [[0, 1], [2, 3]]
    assert read_annotations(path, ignore=()).classes == ("Ambiguous", "x")
    assert read_annotations(path, classes=["x", "Ambiguous"]).videos["a"].labels == ("x", "Ambiguous", "x")


@pytest.mark.parametrize(
    ("video", "message"),
    [
        ({"duration": 3.0, "annotations": []}, '"subset" is missing'),
        ({"subset": "t", "duration": 3.0}, '"annotations" is missing'),
        ([1, 2], "is not a video's"),
        (entry(duration="00:03"), "duration '00:03' is not a positive number"),
        (entry(duration="nan"), "duration 'nan' is not a positive number"),
        (entry(duration="1_0"), "duration '1_0' is not a positive number"),
        (entry(duration=False), "duration False is not a positive number"),
        (entry(duration=[3]), r"duration \[3\] is not a positive number"),
        (entry(duration=0), "duration 0 is not a positive number"),
        (entry(duration=math.inf), "duration inf is not a positive number"),
        (entry(frame=-1), "frame -1 is not a positive number"),
        (entry(fps=True), "fps True is not a positive number"),
        (entry(subset=3), "subset 3 is not a name"),
        (entry(annotations={}), "annotations {} are not a list"),
        (entry(annotations=["x"]), "'x' is not an annotation"),
        (entry(annotations=[{"label": "x"}]), "segment None is not"),
        (entry(annotations=[{"segment": [0, 1]}]), "label None is not a name"),
        (entry((math.nan, 1, "x")), r"segment \[nan, 1\] is not"),
        (entry((0, math.inf, "x")), r"segment \[0, inf\] is not"),
        (entry(annotations=[{"segment": ["0", "one"], "label": "x"}]), r"segment \['0', 'one'\] is not"),
        (entry(annotations=[{"segment": ["0", None], "label": "x"}]), r"segment \['0', None\] is not"),
        (
            entry(annotations=[{"segment": [0, 1], "label": "x", "label_id": True}]),
            "label_id True is not an integer",
        ),
        (entry(annotations=[{"segment": [0, 1, 2], "label": "x"}]), r"segment \[0, 1, 2\] is not"),
        (entry(annotations=[{"segment": [0, 1], "label": 7}]), "label 7 is not a name"),
        (
            entry(annotations=[{"segment": [0, 1], "label": "x", "label_id": "7"}]),
            "label_id '7' is not an integer",
        ),
        (
            entry(annotations=[{"segment": [0, 1], "label": "x", "segment(frames)": [3]}]),
            r"segment\(frames\) \[3\] is not",
        ),
    ],
)
def test_unreadable_videos_are_refused_in_one_line(tmp_path: Path, video: Any, message: str) -> None:
    path = save(tmp_path, {"good": entry((0, 1, "x")), "bad": video})
    for read in (read_annotations, lambda src: reverse_annotation_file(src, tmp_path / "reversed.json")):
        with pytest.raises(ValueError, match=message) as caught:
            read(path)
        assert "anno.json: video bad: " in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "reversed.json").exists()
    assert [defect.kind for defect in check_annotations(path).defects["bad"]].count("unreadable") >= 1


def test_numbers_may_be_strings_and_what_is_not_stated_null(tmp_path: Path) -> None:
    row = {"segment": ["1.5", "2"], "label": "x", "label_id": None, "segment(frames)": None}
    stated = {
        "strings": {"subset": "t", "duration": "9.5", "frame": "95", "fps": "10", "annotations": [row]},
        "nothing": {"subset": "t", "annotations": [row | {"segment(frames)": [None, None]}]},
        "null": {"subset": "t", "duration": None, "frame": None, "fps": None, "annotations": [row]},
        "counted": {"subset": "t", "frame": 95, "fps": 10, "annotations": [row]},
    }
    videos = read_annotations(save(tmp_path, stated)).videos
    assert [(v.duration_s, v.frames, v.fps) for v in videos.values()] == [
        (9.5, 95, 10.0),
        (math.inf, None, None),
        (math.inf, None, None),
        (9.5, 95, 10.0),
    ]
    assert all(rows_of(video) == Counter([(1.5, 2.0, "x")]) for video in videos.values())
    report = check_annotations(tmp_path / "anno.json")
    assert (report.defects, sum(report.classes.values())) == ({}, 4)
    assert report.unmeasured.startswith("2 videos have an unknown duration")


def test_a_test_set_needs_no_annotations_and_other_videos_do(tmp_path: Path) -> None:
    unlisted = {"duration": 3.0}
    path = save(tmp_path, {"a": entry((0, 1, "x")), "b": unlisted | {"subset": "testing"}})
    assert read_annotations(path).videos["b"].labels == ()
    path = save(tmp_path, {"a": entry((0, 1, "x"), subset="testing"), "b": unlisted | {"subset": "testing"}})
    with pytest.raises(ValueError, match='video b: "annotations" is missing'):
        read_annotations(path)


def test_coin_calls_its_list_annotation(tmp_path: Path) -> None:
    stated = entry((1, 2, "x"))
    stated["annotation"] = stated.pop("annotations")
    path = save(tmp_path, {"a": stated})
    assert rows_of(read_annotations(path).videos["a"]) == Counter([(1, 2, "x")])
    reverse_annotation_file(path, tmp_path / "back.json")
    assert rows_of(read_annotations(tmp_path / "back.json").videos["a"]) == Counter([(8, 9, "x")])


def test_strings_are_reversed_as_numbers(tmp_path: Path) -> None:
    row = {"segment": ["1", "2"], "segment(frames)": ["25", "50"], "label": "x"}
    video = {"subset": "t", "duration": "10", "fps": "25", "annotations": [row, row | {"segment(frames)": None}]}
    reverse_annotation_file(save(tmp_path, {"v": video}), tmp_path / "back.json")
    back = json.loads((tmp_path / "back.json").read_text())["database"]["v"]["annotations"]
    assert [(row["segment"], row["segment(frames)"]) for row in back] == [
        ([8.0, 9.0], [200.0, 225.0]),
        ([8.0, 9.0], None),
    ]


def test_what_needs_durations_names_the_video_that_has_none(tmp_path: Path) -> None:
    bad = {"subset": "t", "annotations": [{"segment": [0, 1], "label": "x"}]}
    path = save(tmp_path, {"good": entry(), "bad": bad})
    with pytest.raises(ValueError, match=r"anno.json: the duration of bad is not stated; write .*--video-info"):
        reverse_annotation_file(path, tmp_path / "back.json")
    with pytest.raises(ValueError, match=r"anno.json: the duration of bad is not stated"):
        read_ground_truth(DataConfig(annotations=path))
    save(tmp_path, {"good": entry(), "bad": bad | {"annotations": []}})  # nothing is learnt or missed there
    reverse_annotation_file(path, tmp_path / "back.json")
    assert list(read_ground_truth(DataConfig(annotations=path)).videos) == ["good"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a JSON file"),
        ("[]", 'no "database"'),
        ("{}", 'no "database"'),
        ('{"database": []}', 'no "database"'),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "anno.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_annotations(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_annotations(tmp_path / "nothing.json")


def test_a_damaged_gz_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "anno.json.gz"
    path.write_bytes(gzip.compress(b'{"database": {}}')[:-9])
    with pytest.raises(ValueError, match="cannot be read"):
        read_annotations(path)


def test_subsets_are_told_apart_by_case(tmp_path: Path) -> None:
    read = read_annotations(save(tmp_path, {"a": entry((0, 1, "x")), "b": entry(), "c": entry(subset="Test")}))
    assert read.subsets() == {"training": 2, "Test": 1}
    assert list(read.subset("training").videos) == ["a", "b"]
    assert read.subset("Test").classes == ("x",)
    with pytest.raises(
        ValueError, match=r"subset 'test'; the subsets are training \(2 videos\), Test \(1 videos\)"
    ):
        read.subset("test")


@pytest.mark.parametrize("file_name", ["anno.json", "anno.json.gz"])
def test_writing_and_reading_changes_nothing(tmp_path: Path, file_name: str) -> None:
    videos = {
        "b": AnnotatedVideo("b", "train", 9.7, np.array([[0.1, 0.30000000000000004]]), ("walk",), 97, 10.0),
        "a": AnnotatedVideo("a", "Test", 3.0, np.empty((0, 2)), ()),
        "ü": AnnotatedVideo("ü", "Test", 3.0, np.array([[2.0, 1.0], [0.0, 9.0]]), ("run", "walk")),
    }
    written = Annotations(videos, ("walk", "run"))
    write_annotations(written, tmp_path / "new" / file_name)
    read = read_annotations(tmp_path / "new" / file_name)
    assert read.classes == written.classes
    assert list(read.videos) == list(videos)
    for name, video in videos.items():
        got = read.videos[name]
        np.testing.assert_array_equal(got.segments, video.segments)
        assert (got.labels, got.subset, got.duration_s) == (video.labels, video.subset, video.duration_s)
        assert (got.frames, got.fps) == (video.frames, video.fps)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [file_name]


# On a grid, so that equal and different times stay so after rounding.
times = st.integers(0, 100_000).map(lambda hundredths: hundredths / 100)


@settings(deadline=None, max_examples=50)
@given(
    duration_s=st.floats(0.1, 1000),
    segments=st.lists(st.tuples(times, times, st.sampled_from("xyz")), max_size=8),
)
def test_reversing_twice_changes_nothing(duration_s: float, segments: list[tuple[float, float, str]]) -> None:
    video = AnnotatedVideo(
        "v",
        "train",
        duration_s,
        np.array([row[:2] for row in segments], np.float64).reshape(-1, 2),
        tuple(row[2] for row in segments),
    )
    annotations = Annotations({"v": video}, ("x", "y", "z"))
    once = annotations.reversed().videos["v"]
    # The slow way, one segment at a time.
    slow = sorted((duration_s - end, duration_s - start) for start, end, _ in segments)
    assert [tuple(row) for row in once.segments.tolist()] == slow
    twice = annotations.reversed().reversed().videos["v"]
    same = sorted((round(start, 6), round(end, 6), label) for start, end, label in segments)
    assert sorted(rows_of(twice).elements()) == same


def test_a_reversed_segment_keeps_its_label() -> None:
    video = AnnotatedVideo("v", "train", 10.0, np.array([[1.0, 2.0], [3.0, 7.0], [0.0, 9.0]]), ("x", "y", "z"))
    reversed_video = video.reversed()
    assert reversed_video.segments.tolist() == [[1.0, 10.0], [3.0, 7.0], [8.0, 9.0]]
    assert reversed_video.labels == ("z", "y", "x")


def test_reversing_a_file_touches_only_times(tmp_path: Path) -> None:
    video = entry((1, 2, "x"), (4, 9, "y"), note=[1, {"kept": None}])
    video["annotations"][0] |= {"label_id": 4, "segment(frames)": [30, 60], "crowd": True}
    path = save(tmp_path, {"v": video, "empty": entry()})
    reverse_annotation_file(path, tmp_path / "back.json")
    content = json.loads((tmp_path / "back.json").read_text())
    assert content["version"] == "made here"
    assert content["database"]["empty"] == entry()
    assert content["database"]["v"] == video | {
        "annotations": [
            {"segment": [1.0, 6.0], "label": "y"},
            {"segment": [8.0, 9.0], "label": "x", "label_id": 4, "segment(frames)": [240, 270], "crowd": True},
        ]
    }


def test_frame_segments_need_a_frame_count_or_a_rate(tmp_path: Path) -> None:
    video = {"subset": "t", "duration": 10.0, "annotations": entry((1, 2, "x"))["annotations"]}
    video["annotations"][0]["segment(frames)"] = [25, 50]
    path = save(tmp_path, {"v": video})
    with pytest.raises(ValueError, match=r'video v: .* state "frame" or "fps"'):
        reverse_annotation_file(path, tmp_path / "back.json")
    reverse_annotation_file(save(tmp_path, {"v": video | {"fps": 25.0}}), tmp_path / "back.json")
    row = json.loads((tmp_path / "back.json").read_text())["database"]["v"]["annotations"][0]
    assert (row["segment"], row["segment(frames)"]) == ([8.0, 9.0], [200.0, 225.0])


def test_a_file_is_not_reversed_onto_itself(tmp_path: Path) -> None:
    path = save(tmp_path, {"v": entry((1, 2, "x"))})
    before = path.read_text()
    with pytest.raises(ValueError, match="would replace their source"):
        reverse_annotation_file(path, tmp_path / "." / "anno.json")
    assert path.read_text() == before


def test_check_finds_every_defect_by_video(tmp_path: Path) -> None:
    videos = {
        "good": entry((0, 1, "x"), (3, 10.0000001, "y"), (4, 5, "Ambiguous"), frame=40),
        "late": entry((9, 11, "x"), (-1, 2, "y"), frame=40),
        "empty": entry((2, 2, "x"), (4, 3, "y"), frame=40),
        "twice": entry((0, 1, "x"), (0, 1, "x"), (0, 1, "y"), frame=40),
        "odd": entry((0, 1, "wat"), (math.nan, 1, "x"), frame=40),
        "short": entry((0, 1, "x"), frame=40),
    }
    folder = tmp_path / "videos"
    folder.mkdir()
    black = [np.zeros((16, 16, 3), np.uint8)]
    for name, frames in (("good.mp4", 40), ("late.mkv", 37), ("twice.MOV", 40), ("short.mkv", 30)):
        write_video(folder / name, frames * black, fps=4)
    (folder / "short.mkv").write_bytes((folder / "short.mkv").read_bytes()[:-300])
    there = index_video(folder / "short.mkv").frames
    assert 0 < there < 29
    for name in ("empty.avi", "odd.txt"):
        (folder / name).touch()
    report = check_annotations(save(tmp_path, videos), folder, classes=["x", "y"])
    no_video = "empty.avi: not a video that FFmpeg can read: Invalid data found when processing input"
    assert {
        video: [(defect.kind, defect.detail.removeprefix(f"{folder}/")) for defect in defects]
        for video, defects in report.defects.items()
    } == {
        "late": [
            ("segment outside the video", "x [9, 11] s of a video of 10 s"),
            ("segment outside the video", "y [-1, 2] s of a video of 10 s"),
        ],
        "empty": [
            ("start not before end", "x [2, 2] s"),
            ("start not before end", "y [4, 3] s"),
            ("unreadable video file", no_video),
        ],
        "twice": [("duplicate", "x [0, 1] s")],
        "odd": [
            ("label outside the classes", "label 'wat' is not one of the 2 classes"),
            ("unreadable", "segment [nan, 1] is not [start, end]"),
            ("no video file", f"none in {folder}"),
        ],
        "short": [
            ("cut-off video file", f"short.mkv: about {30 - there} frames after frame {there - 1} lost"),
            ("another duration", f"short.mkv lasts {there / 4:.2f} s, the annotations state 10.00 s"),
        ],
    }
    assert (sum(report.subsets.values()), sum(report.classes.values())) == (6, 10)
    assert report.classes == {"x": 6, "y": 4}
    assert report.ignored == {"Ambiguous": 1}
    with pytest.raises(FileNotFoundError, match="no such folder"):
        check_annotations(tmp_path / "anno.json", tmp_path / "nowhere")


@needs_thumos
def test_thumos14_reads_as_its_facts_say() -> None:
    read = read_annotations(THUMOS)
    assert read.subsets() == {"Test": 212, "Validation": 200}
    assert len(read.classes) == 20
    assert read.classes[0] == "BaseballPitch"
    count = {name: sum(len(v.labels) for v in read.subset(name).videos.values()) for name in read.subsets()}
    assert count == {"Test": 3358, "Validation": 3007}


@needs_thumos
def test_check_finds_thumos14_segments_after_their_videos() -> None:
    report = check_annotations(THUMOS)
    assert {defect.kind for defects in report.defects.values() for defect in defects} == {
        "segment outside the video"
    }
    assert {video: len(defects) for video, defects in report.defects.items()} == {
        "video_test_0000270": 22,
        "video_test_0000814": 3,
        "video_test_0001081": 1,
        "video_validation_0000364": 2,
        "video_validation_0000856": 2,
    }
    assert (sum(report.subsets.values()), sum(report.classes.values())) == (412, 6365)


@needs_thumos
def test_reversing_thumos14_twice_gives_the_same_set(tmp_path: Path) -> None:
    reverse_annotation_file(THUMOS, tmp_path / "back.json.gz")
    reverse_annotation_file(tmp_path / "back.json.gz", tmp_path / "forth.json")
    there, back = read_annotations(THUMOS), read_annotations(tmp_path / "back.json.gz")
    forth = read_annotations(tmp_path / "forth.json")
    assert forth.classes == there.classes
    for name, video in there.videos.items():
        assert rows_of(forth.videos[name]) == rows_of(video)
        np.testing.assert_array_equal(back.videos[name].segments, video.reversed().segments)
        assert back.videos[name].labels == video.reversed().labels
        assert (np.diff(back.videos[name].segments[:, 0]) >= 0).all()
    stated = json.loads(gzip.decompress((tmp_path / "back.json.gz").read_bytes()))["database"]
    for video in stated.values():
        for row in video["annotations"]:
            np.testing.assert_allclose(np.array(row["segment"]) * video["fps"], row["segment(frames)"], atol=1e-6)


@pytest.mark.skipif(not MAP_FIXTURES.is_dir(), reason="the reference fixtures beside the checkout are missing")
def test_evaluation_fixtures_are_read_with_ambiguous_counted() -> None:
    for path in sorted(MAP_FIXTURES.glob("*_gt.json")):
        expected = json.loads((path.parent / path.name.replace("_gt.json", "_expected.json")).read_text())
        read = read_annotations(path, ignore=()).subset(expected["subset"])
        labels = {label for video in read.videos.values() for label in video.labels}
        assert labels == set(expected["activity_index"])


# Numbers that annotators gave a segment, which error diagnosis uses.


def test_details_of_segments_are_read_written_and_kept_with_their_segments(tmp_path: Path) -> None:
    stated: list[dict[str, Any]] = [
        {"segment": [0, 1], "label": "a", "agreement": 0.25, "context-size": 3},
        {"segment": [2, 4], "label": "b", "agreement": None, "context-distance": -1},
        {"segment": [5, 8], "label": "a", "agreement": "high", "context-size": "4", "coverage": 0.1},
    ]
    path = save(tmp_path, {"v": entry(annotations=stated), "w": entry((0, 1, "a"))})
    video = read_annotations(path).videos["v"]
    assert {name: values.tolist() for name, values in video.details.items()} == {
        "context-size": pytest.approx([3, math.nan, 4], nan_ok=True),
        "context-distance": pytest.approx([math.nan, -1, math.nan], nan_ok=True),
        "agreement": pytest.approx([0.25, math.nan, math.nan], nan_ok=True),
    }
    assert read_annotations(path).videos["w"].details == {}
    only = read_annotations(path).videos["v"].take(np.array([True, False, True]))
    assert only.details["context-size"].tolist() == [3, 4]
    assert only.reversed().details["context-size"].tolist() == [4, 3]

    write_annotations(read_annotations(path), tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text())["database"]["v"]["annotations"] == [
        {"segment": [0, 1], "label": "a", "label_id": 0, "agreement": 0.25, "context-size": 3},
        {"segment": [2, 4], "label": "b", "label_id": 1, "context-distance": -1},
        {"segment": [5, 8], "label": "a", "label_id": 0, "context-size": 4},
    ]
