"""Converting ground truth: nothing is lost, what is changed is said, and every failure is one line."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import numbered_picture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitad.cli import main
from bitad.config.names import DefectPolicy
from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.check import check_annotations
from bitad.data.classes import write_classes
from bitad.data.clocks import Clock, read_clocks
from bitad.data.convert import convert_annotations, repair_segments, write_both_directions
from bitad.data.formats.database import read_annotations, write_annotations
from bitad.timeline import FloatArray
from bitad.video.reverse import reverse_folder
from bitad.video.writer import write_video

THUMOS = Path(__file__).resolve().parents[2] / "../shared/data/thumos14"
needs_thumos = pytest.mark.skipif(not THUMOS.is_dir(), reason="the reference data beside the checkout is missing")

OFFICIAL = {
    "annotations_val/Dive_val.txt": "video_validation_0000001  0.5 1.0\nvideo_validation_0000001  1.2 9.0\n",
    "annotations_val/Ambiguous_val.txt": "video_validation_0000001  0.1 0.2\n",
    "annotations_test/Cliff_test.txt": "video_test_0000002 1.5 2.0\nvideo_test_0000002 7 8\n",
    "annotations_test/Ambiguous_test.txt": "video_test_0000003 0.5 1.5\n",
}
NAMES = ("video_validation_0000001", "video_test_0000002", "video_test_0000003")
INFO = {NAMES[0]: {"duration": 2.4, "num_frame": 60, "fps": 25.0}, NAMES[1]: {"num_frame": 75, "fps": 25}}


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """A folder in the form of THUMOS14's official files."""
    for name, text in OFFICIAL.items():
        path = tmp_path / "official" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "official"


@pytest.fixture
def info(tmp_path: Path) -> Path:
    path = tmp_path / "info.json"
    path.write_text(json.dumps(INFO))
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must succeed; what it printed."""

    def succeed(*arguments: object, status: int = 0) -> str:
        assert main([str(argument) for argument in arguments]) == status
        return capsys.readouterr().out

    return succeed


@pytest.fixture
def failing(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must fail with status 1 and one line; that line."""

    def fail(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 1
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert err.startswith("bitad annotations: error: ")
        return err

    return fail


def rows(annotations: Annotations) -> Counter[tuple[str, float, float, str]]:
    return Counter(
        (name, start, end, label)
        for name, video in annotations.videos.items()
        for (start, end), label in zip(video.segments.tolist(), video.labels, strict=True)
    )


def same(got: AnnotatedVideo, expected: AnnotatedVideo) -> bool:
    np.testing.assert_array_equal(got.segments, expected.segments)
    parts = [(v.name, v.subset, v.duration_s, v.labels, v.frames, v.fps) for v in (got, expected)]
    return parts[0] == parts[1]


def test_official_files_become_native_with_ambiguous_beside_the_classes(
    official: Path, info: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    options = ("--video-info", info, "--missing", "drop")
    said = run("annotations", "convert", official, tmp_path / "new" / "gt.json", *options)
    assert said.splitlines()[:2] == [
        "thumos14: 2 videos, 4 segments of 2 classes, and 1 Ambiguous",
        "subsets: training 1, validation 1",
    ]
    assert f"{NAMES[2]}: left out (1 Ambiguous): its duration is not known: {info} does not list it" in said
    assert f"{NAMES[0]}: segment outside the video: 1 kept" in said
    read = read_annotations(tmp_path / "new" / "gt.json")
    assert read.classes == ("Cliff", "Dive")
    assert rows(read) == Counter(
        {
            (NAMES[0], 0.5, 1, "Dive"),
            (NAMES[0], 1.2, 9, "Dive"),
            (NAMES[1], 1.5, 2, "Cliff"),
            (NAMES[1], 7, 8, "Cliff"),
        }
    )
    video = read.videos[NAMES[1]]
    assert (video.duration_s, video.frames, video.fps) == (3.0, 75, 25.0)
    everything = read_annotations(tmp_path / "new" / "gt.json", ignore=())
    assert everything.classes == ("Cliff", "Dive", "Ambiguous")
    assert everything.videos[NAMES[0]].labels == ("Ambiguous", "Dive", "Dive")


@pytest.mark.parametrize(
    ("policy", "kept", "said"),
    [
        ("keep", [(1.2, 9.0), (7.0, 8.0)], ["1 kept", "1 kept"]),
        ("clip", [(1.2, 2.4)], ["1 clipped", "1 dropped"]),
        ("drop", [], ["1 dropped", "1 dropped"]),
    ],
)
def test_segments_outside_are_treated_by_policy_and_reported(
    official: Path,
    info: Path,
    tmp_path: Path,
    run: Callable[..., str],
    policy: str,
    kept: list[tuple[float, float]],
    said: list[str],
) -> None:
    options = ("--video-info", info, "--missing", "drop", "--defects", policy)
    out = run("annotations", "convert", official, tmp_path / "gt.json", *options)
    reported = [line.split(": ", 2)[2] for line in out.splitlines() if "segment outside the video" in line]
    assert reported == said
    spans = {(start, end) for _, start, end, _ in rows(read_annotations(tmp_path / "gt.json"))}
    assert spans == {(0.5, 1.0), (1.5, 2.0), *kept}


def test_a_policy_of_error_refuses_and_writes_nothing(
    official: Path, info: Path, tmp_path: Path, failing: Callable[..., str]
) -> None:
    options = ("--video-info", info, "--missing", "drop", "--defects", "error")
    said = failing("annotations", "convert", official, tmp_path / "gt.json", *options)
    assert f"video {NAMES[0]}: segment outside the video: Dive [1.2, 9] s of a video of 2.4 s" in said
    assert not (tmp_path / "gt.json").exists()


def test_a_policy_treats_every_kind_of_defect() -> None:
    segments = np.array([[1.0, 2.0], [1.0, 2.0], [3.0, 3.0], [-1.0, 1.0], [4.0, 8.0], [7.0, 6.0]])
    labels = tuple("aabaab")
    duplicate, empty, early, late = (segments[: last + 1] for last in (1, 2, 3, 4))

    def left(policy: DefectPolicy, segments: FloatArray = segments) -> list[list[float]]:
        video = AnnotatedVideo("v", "train", 5.0, segments, labels[: len(segments)])
        whole = Annotations({"v": video}, ("a", "b"))
        return repair_segments(whole, policy, defaultdict(list)).videos["v"].segments.tolist()

    assert left("keep") == segments.tolist()
    assert left("drop") == [[1, 2]]
    assert left("clip") == [[1, 2], [0, 1], [4, 5]]
    for wrong in (duplicate, empty[2:], early[3:], late[4:], segments[5:]):
        with pytest.raises(ValueError, match="choose another --defects"):
            left("error", wrong)
    assert left("error", segments[:1]) == [[1, 2]]


def test_the_former_option_still_works(
    official: Path, info: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    options = ("--video-info", info, "--missing", "drop")
    for option in ("--outside", "--defects"):
        run("annotations", "convert", official, tmp_path / f"{option}.json", *options, option, "drop")
    assert (tmp_path / "--outside.json").read_bytes() == (tmp_path / "--defects.json").read_bytes()


def test_clipped_ground_truth_has_no_segment_outside(official: Path, info: Path, tmp_path: Path) -> None:
    converted = convert_annotations(official, video_info=info, defects="clip", missing="drop")
    write_annotations(converted.annotations, tmp_path / "gt.json")
    assert check_annotations(tmp_path / "gt.json").defects == {}


def test_both_directions_are_written_as_the_group_has_them(
    official: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    data = tmp_path / "data"
    forward, back = data / "for_thumos-14", data / "back_thumos-14"
    for name in NAMES:
        write_video(forward / "raw_data" / f"{name}.mp4", map(numbered_picture, range(50)), fps=25)
    reverse_folder(forward / "raw_data", back / "raw_data", workers=0)
    said = run("annotations", "convert", official, data, "--both-directions")
    assert f"videos are from {forward / 'raw_data'}" in said
    for folder in (forward, back):
        assert sorted(path.name for path in (folder / "annotations").iterdir()) == [
            "category_idx.txt",
            "thumos_14_anno.json",
        ]
        assert (folder / "annotations" / "category_idx.txt").read_text() == "Cliff\nDive\n"
    read = {
        folder: read_annotations(
            folder / "annotations/thumos_14_anno.json", classes=folder / "annotations/category_idx.txt"
        )
        for folder in (forward, back)
    }
    assert rows(read[back].reversed()).keys() == rows(read[forward]).keys()
    assert read[forward].subsets() == {"training": 1, "validation": 2}
    video = read[forward].videos[NAMES[2]]
    assert (video.duration_s, video.frames, video.fps, video.labels) == (2.0, 50, 25.0, ())
    report = check_annotations(
        forward / "annotations/thumos_14_anno.json", forward / "raw_data", reversed_dir=back / "raw_data"
    )
    found = list(chain.from_iterable(report.defects.values()))
    assert {defect.kind for defect in found} == {"segment outside the video", "only ignored labels"}
    assert {defect.video for defect in found if defect.kind == "only ignored labels"} == {NAMES[2]}


def test_check_says_which_video_has_no_true_reverse(tmp_path: Path, run: Callable[..., str]) -> None:
    names = ("true", "copied", "missing", "broken")
    videos = {name: AnnotatedVideo(name, "t", 2.0, np.array([[0.0, 1.0]]), ("x",)) for name in names}
    write_annotations(Annotations(videos, ("x",)), tmp_path / "gt.json")
    for name in names:
        write_video(tmp_path / "there" / f"{name}.mp4", map(numbered_picture, range(50)), fps=25)
    write_video(tmp_path / "back" / "copied.mp4", map(numbered_picture, range(50)), fps=25)
    write_video(tmp_path / "back" / "true.mp4", map(numbered_picture, reversed(range(50))), fps=25)
    (tmp_path / "back" / "broken.mp4").write_bytes(b"no video")
    folders = ("--videos", tmp_path / "there", "--reversed-videos", tmp_path / "back")
    said = run("annotations", "check", tmp_path / "gt.json", *folders, status=1).splitlines()
    assert said[-1] == "3 defects"
    assert said[2].startswith("copied: not the reverse of its video: ")
    assert said[2].endswith("copied.mp4 plays forwards, as the video does")
    assert said[3].startswith("missing: no reversed video file: none in ")
    assert said[4].startswith("broken: not the reverse of its video: ")
    assert "not a video that FFmpeg can read" in said[4]


def test_reversed_videos_need_their_videos(tmp_path: Path, failing: Callable[..., str]) -> None:
    (tmp_path / "gt.json").write_text('{"database": {}}')
    assert "name that folder too" in failing(
        "annotations", "check", tmp_path / "gt.json", "--reversed-videos", tmp_path
    )


def test_other_forms_are_checked_too(official: Path, info: Path, run: Callable[..., str]) -> None:
    said = run("annotations", "check", official, "--video-info", info, status=1)
    assert f"{official}: 3 videos, 4 segments of 2 classes" in said
    assert f"{NAMES[2]}: only ignored labels: all its segments are Ambiguous" in said
    assert f"{NAMES[1]}: segment outside the video: Cliff [7, 8] s of a video of 3 s" in said
    assert "1 videos have an unknown duration" in said
    assert said.endswith("3 defects\n")


def test_missing_durations_name_the_video(official: Path, tmp_path: Path, failing: Callable[..., str]) -> None:
    convert = ("annotations", "convert", official, tmp_path / "gt.json")
    said = failing(*convert)
    assert (
        f"video {NAMES[0]}: its duration (and of 1 more) is not known: its file states none; give --videos" in said
    )
    (tmp_path / "info.json").write_text(json.dumps({NAMES[0]: INFO[NAMES[0]]}))
    said = failing(*convert, "--video-info", tmp_path / "info.json")
    assert f"video {NAMES[1]}: its duration is not known: {tmp_path / 'info.json'} does not list it" in said
    (tmp_path / "videos").mkdir()
    said = failing(*convert, "--videos", tmp_path / "videos")
    assert f"{tmp_path / 'videos'}: no video '{NAMES[0]}' there" in said
    assert "no such folder of videos" in failing(*convert, "--videos", tmp_path / "nowhere")
    assert not (tmp_path / "gt.json").exists()


def test_videos_of_unknown_duration_can_be_left_out(
    official: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    (tmp_path / "info.json").write_text(json.dumps({NAMES[0]: INFO[NAMES[0]]}))
    options = ("--video-info", tmp_path / "info.json", "--missing", "drop")
    said = run("annotations", "convert", official, tmp_path / "gt.json", *options)
    assert f"{NAMES[1]}: left out (2 Cliff): its duration is not known" in said
    assert list(read_annotations(tmp_path / "gt.json").videos) == [NAMES[0]]


def test_subsets_are_renamed_and_ambiguous_left_out(
    official: Path, info: Path, tmp_path: Path, run: Callable[..., str], failing: Callable[..., str]
) -> None:
    convert = ("annotations", "convert", official, tmp_path / "gt.json", "--video-info", info)
    said = run(*convert, "--subsets", "training=Validation,validation=Test", "--ambiguous", "drop")
    assert "2 segments are of no class (Ambiguous) and left out" in said
    assert read_annotations(tmp_path / "gt.json", ignore=()).subsets() == {"Validation": 1, "Test": 1}
    assert read_annotations(tmp_path / "gt.json", ignore=()).classes == ("Cliff", "Dive")
    assert "no subset 'x' to rename; the subsets are training, validation" in failing(
        *convert, "--subsets", "x=y", "--missing", "drop"
    )
    assert "--subsets training: give OLD=NEW,..." in failing(*convert, "--subsets", "training")


def test_classes_can_be_given_and_are_written(
    official: Path, info: Path, tmp_path: Path, run: Callable[..., str], failing: Callable[..., str]
) -> None:
    write_classes(["Dive", "Unseen", "Cliff"], tmp_path / "classes.txt")
    convert = ("annotations", "convert", official, tmp_path / "gt.json", "--video-info", info, "--missing", "drop")
    run(*convert, "--classes", tmp_path / "classes.txt", "--class-list", tmp_path / "out.txt")
    assert (tmp_path / "out.txt").read_text() == "Dive\nUnseen\nCliff\n"
    assert read_annotations(tmp_path / "gt.json").classes == ("Dive", "Cliff")
    write_classes(["Dive"], tmp_path / "classes.txt")
    said = failing(*convert, "--classes", tmp_path / "classes.txt")
    assert f"video {NAMES[1]}: label 'Cliff' is not one of the 1 classes" in said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "not videos by name"),
        ({"v": 3}, "not videos by name"),
        ({"v": {"num_frame": 3}}, "video v: neither its duration nor its frames and fps are stated"),
        ({"v": {"duration": -1}}, "video v: duration -1 is not a positive number"),
        ({"v": {"duration": 1, "num_frame": "many"}}, "video v: num_frame 'many' is not a positive number"),
    ],
)
def test_bad_lists_of_videos_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    (tmp_path / "info.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_clocks(tmp_path / "info.json")


def test_lists_of_videos_are_read_in_other_projects_forms(tmp_path: Path) -> None:
    (tmp_path / "opentad.json").write_text('{"database": {"v": {"duration": 10, "frame": 250, "subset": "t"}}}')
    assert read_clocks(tmp_path / "opentad.json") == {"v": Clock(10.0, 250, None)}
    (tmp_path / "epic.csv").write_text("video_id,duration,fps,resolution\nP01_01,1652.15,59.94,1920x1080\n")
    assert read_clocks(tmp_path / "epic.csv") == {"P01_01": Clock(1652.15, None, 59.94)}
    (tmp_path / "bad.csv").write_text("name,duration\n")
    with pytest.raises(ValueError, match="no column 'video_id'"):
        read_clocks(tmp_path / "bad.csv")


def test_actionformers_form_needs_a_frame_rate(tmp_path: Path) -> None:
    video = AnnotatedVideo("v", "t", 3.0, np.array([[1.0, 2.0]]), ("x",))
    with pytest.raises(ValueError, match="video v: ActionFormer's format needs its frame rate; give --video-info"):
        write_annotations(Annotations({"v": video}, ("x",)), tmp_path / "gt.json", format="actionformer")
    assert list(tmp_path.iterdir()) == []


finite = st.floats(-1e4, 1e4)
labels = st.sampled_from(["run", 'a,"b" <c>', "뛰기", "Ambiguous"])


@st.composite
def videos(draw: st.DrawFn, name: str) -> AnnotatedVideo:
    rows = draw(st.lists(st.tuples(finite, finite, labels), max_size=5))
    frames = draw(st.none() | st.integers(1, 10**6))
    return AnnotatedVideo(
        name,
        draw(st.sampled_from(["training", "Test", ""])),
        draw(st.floats(1e-3, 1e5)),
        np.array([row[:2] for row in rows], np.float64).reshape(-1, 2),
        tuple(row[2] for row in rows),
        frames,
        draw(st.floats(1e-2, 1e3)),
    )


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=st.tuples(videos("b"), videos("a,é"), videos("c")), suffix=st.sampled_from(["json", "json.gz"]))
def test_native_to_actionformer_to_native_changes_nothing(
    tmp_path: Path, drawn: tuple[AnnotatedVideo, ...], suffix: str
) -> None:
    found = {label for video in drawn for label in video.labels} - {"Ambiguous"}
    first = Annotations({video.name: video for video in drawn}, tuple(sorted(found, reverse=True)))
    files = [tmp_path / f"{step}.{suffix}" for step in ("native", "actionformer", "again")]
    write_annotations(first, files[0])
    for source, target, form in ((files[0], files[1], "actionformer"), (files[1], files[2], "native")):
        command = ["annotations", "convert", str(source), str(target), "--to", form, "--allow-clock-mismatch"]
        assert main(command) == 0
    # Byte for byte, so also the numbers of labels; and the frames between are seconds times fps.
    assert files[0].read_bytes() == files[2].read_bytes()
    again = read_annotations(files[2])
    assert again.classes == first.classes
    assert all(same(got, first.only_classes().videos[name]) for name, got in again.videos.items())
    if suffix == "json":
        for name, stated in json.loads(files[1].read_text())["database"].items():
            for row in stated["annotations"]:
                assert row["segment(frames)"] == [second * first.videos[name].fps for second in row["segment"]]


def test_a_frame_rate_that_no_file_states_is_frames_over_duration(tmp_path: Path) -> None:
    video = AnnotatedVideo("v", "t", 4.0, np.array([[1.0, 2.0]]), ("x",), 100)
    write_annotations(Annotations({"v": video}, ("x",)), tmp_path / "gt.json", format="actionformer")
    assert same(read_annotations(tmp_path / "gt.json").videos["v"], AnnotatedVideo(**{**vars(video), "fps": 25.0}))


@needs_thumos
def test_thumos14_from_the_official_files_equals_the_reference(tmp_path: Path, run: Callable[..., str]) -> None:
    options = ("--video-info", THUMOS / "video_info.json", "--missing", "drop")
    said = run("annotations", "convert", THUMOS / "official", tmp_path / "gt.json", *options)
    converted, reference = read_annotations(tmp_path / "gt.json"), read_annotations(THUMOS / "thumos14.json.gz")
    assert rows(converted) == rows(reference)
    assert rows(converted).total() == 6365
    assert converted.classes == reference.classes
    assert converted.subsets() == {"training": 200, "validation": 212}
    assert said.count("segment outside the video") == 5
    assert "video_test_0000270: segment outside the video: 22 kept" in said
    assert "video_test_0001292: left out (3 Ambiguous)" in said
    info = json.loads((THUMOS / "video_info.json").read_text())
    assert all(video.frames == info[name]["num_frame"] for name, video in converted.videos.items())
    assert all(math.isclose(video.frames / video.fps, video.duration_s) for video in converted.videos.values())


@needs_thumos
def test_the_video_with_only_ambiguous_segments_is_kept_where_its_duration_is_known(tmp_path: Path) -> None:
    info = json.loads((THUMOS / "video_info.json").read_text())
    info["video_test_0001292"] = {"duration": 1000.0, "num_frame": 30000, "fps": 30.0}
    (tmp_path / "info.json").write_text(json.dumps(info))
    converted = convert_annotations(THUMOS / "official", video_info=tmp_path / "info.json").annotations
    assert len(converted.videos) == 413
    assert rows(converted).total() == 3096 + 3457
    written = write_both_directions(converted, tmp_path / "data", "thumos-14")
    assert len(written[1].read_text().splitlines()) == 20
    report = check_annotations(written[0], classes=written[1])
    assert Counter(defect.kind for defect in chain.from_iterable(report.defects.values())) == {
        "segment outside the video": 30,
        "only ignored labels": 1,
    }
    assert report.ignored == {"Ambiguous": 188}


@needs_thumos
def test_clipping_thumos14_drops_its_thirty_segments(tmp_path: Path, run: Callable[..., str]) -> None:
    options = ("--video-info", THUMOS / "video_info.json", "--missing", "drop", "--defects", "clip")
    said = run("annotations", "convert", THUMOS / "official", tmp_path / "gt.json", *options)
    reported = [line.split(": ")[2].split() for line in said.splitlines() if "segment outside the video" in line]
    assert sum(int(count) for count, outcome in reported if outcome == "dropped") == 30
    assert rows(read_annotations(tmp_path / "gt.json")).total() == 6335


def many(tmp_path: Path, count: int) -> Path:
    """Videos with a segment beyond their end each, one of them with two kinds of defects."""
    rows_ = [{"segment": [1.0, 9.0], "label": "x"}]
    database = {f"v{i:02}": {"subset": "test", "duration": 4.0, "annotations": rows_} for i in range(count)}
    database["v00"]["annotations"] = [*rows_, {"segment": [2.0, 2.0], "label": "x"}]
    (tmp_path / "gt.json").write_text(json.dumps({"database": database}))
    return tmp_path / "gt.json"


def test_totals_come_first_and_then_ten_remarks_of_a_kind(tmp_path: Path, run: Callable[..., str]) -> None:
    convert = ("annotations", "convert", many(tmp_path, 23), tmp_path / "out.json")
    lines = run(*convert).splitlines()
    assert lines[0] == "native: 23 videos, 24 segments of 1 classes"
    assert lines[1] == "subsets: test 23"
    assert lines[2:12] == [f"v{i:02}: segment outside the video: 1 kept" for i in range(10)]
    assert lines[12].startswith("and 13 more (segment outside the video, kept): --all lists every one")
    assert "`bitad annotations check`" in lines[12]
    assert lines[13:] == ["v00: start not before end: 1 kept", f"written: {tmp_path / 'out.json'}"]
    everything = run(*convert, "--all").splitlines()
    assert sum("segment outside the video: 1 kept" in line for line in everything) == 23
    assert not any(line.startswith("and ") for line in everything)
    exactly = run("annotations", "convert", many(tmp_path, 10), tmp_path / "out.json")
    assert exactly.count("segment outside the video") == 10
    assert "more" not in exactly


def test_videos_left_out_are_named_ten_at_most(tmp_path: Path, run: Callable[..., str]) -> None:
    (tmp_path / "official").mkdir()
    lines = "".join(f"video_test_{i:07} 1 2\n" for i in range(15))
    (tmp_path / "official/Dive_test.txt").write_text(lines)
    (tmp_path / "info.json").write_text(json.dumps({"video_test_0000003": {"duration": 9.0}}))
    options = ("--video-info", tmp_path / "info.json", "--missing", "drop")
    said = run("annotations", "convert", tmp_path / "official", tmp_path / "gt.json", *options)
    assert said.count(": left out (1 Dive)") == 10
    assert "and 4 more (videos left out): --all lists every one" in said


def test_a_video_with_only_ambiguous_segments_is_kept(
    official: Path, info: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    convert = ("annotations", "convert", official, tmp_path / "gt.json", "--video-info", info)
    said = run(*convert)
    assert f"{NAMES[2]}: written without a duration (1 Ambiguous): {info} does not list it" in said
    assert "--ambiguous drop" in said
    assert "duration" not in json.loads((tmp_path / "gt.json").read_text())["database"][NAMES[2]]
    kept = read_annotations(tmp_path / "gt.json", ignore=()).videos
    assert (list(kept), kept[NAMES[2]].labels) == ([*NAMES], ("Ambiguous",))
    learnt = read_annotations(tmp_path / "gt.json").require_durations("gt.json")  # as a training reads it
    assert list(learnt.videos) == [name for name in NAMES if name != NAMES[2]]
    run("annotations", "convert", official, tmp_path / "data", "--both-directions", "--video-info", info)
    back = tmp_path / "data" / "back_thumos-14" / "annotations" / "thumos_14_anno.json"
    assert NAMES[2] not in read_annotations(back).videos
    said = run(*convert, "--missing", "drop")
    assert f"{NAMES[2]}: left out (1 Ambiguous)" in said
    assert "figures by the rule of THUMOS14's kit change: 1 of these videos have Ambiguous segments" in said
    said = run(*convert, "--ambiguous", "drop")  # now nothing needs it
    assert f"{NAMES[2]}: left out (no segments)" in said
    assert "kit" not in said
    info.write_text(json.dumps({**INFO, NAMES[2]: {"duration": 5.0}}))
    said = run(*convert)
    assert "left out" not in said
    kept = read_annotations(tmp_path / "gt.json", ignore=()).videos
    assert (list(kept), kept[NAMES[2]].labels) == ([*NAMES], ("Ambiguous",))


def test_the_kits_figures_depend_on_a_video_with_only_ambiguous_segments(
    official: Path, info: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    found = {
        NAMES[1]: [
            {"segment": [1.5, 2.0], "label": "Cliff", "score": 0.5},
            {"segment": [7, 8], "label": "Cliff", "score": 0.4},
        ],
        NAMES[2]: [{"segment": [0.5, 1.5], "label": "Cliff", "score": 0.9}],
    }
    (tmp_path / "found.json").write_text(json.dumps({"results": found}))
    figures = {}
    for name, options in (("kept", ()), ("dropped", ("--ambiguous", "drop"))):
        run("annotations", "convert", official, tmp_path / f"{name}.json", "--video-info", info, *options)
        evaluate = ("--ground-truth", tmp_path / f"{name}.json", "--detections", tmp_path / "found.json")
        run(
            "evaluate",
            *evaluate,
            "--subset",
            "validation",
            "--rule",
            "thumos-kit",
            "--json",
            tmp_path / "figures.json",
        )
        figures[name] = json.loads((tmp_path / "figures.json").read_text())["average_map"]
    assert figures == {"kept": pytest.approx(1), "dropped": pytest.approx((1 / 2 + 2 / 3) / 2)}


@needs_thumos
def test_thumos14_keeps_the_video_that_has_only_ambiguous_segments(
    tmp_path: Path, run: Callable[..., str]
) -> None:
    convert = ("annotations", "convert", THUMOS / "official", tmp_path / "gt.json")
    said = run(*convert, "--video-info", THUMOS / "video_info.json")
    assert said.startswith("thumos14: 413 videos, 6365 segments of 20 classes, and 188 Ambiguous\n")
    assert "video_test_0001292: written without a duration (3 Ambiguous)" in said
