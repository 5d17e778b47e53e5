"""Detections: the columns, the two clocks, the files, and tIoU between many segments."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitad.data.detections import Detections, read_detections, write_detections

SHARED = Path(__file__).parents[2] / "../shared"


def some(seed: int = 0, n: int = 50, **changes) -> Detections:
    rng = np.random.default_rng(seed)
    fields = {
        "videos": ("door", "kite", "empty"),
        "classes": ("open", "close", "rise"),
        "video": rng.integers(0, 2, n),
        "segments": np.sort(rng.uniform(0, 30, (n, 2)), axis=1),
        "scores": rng.uniform(0, 1, n),
        "labels": rng.integers(0, 3, n),
        "durations_s": {"door": 30.0, "kite": 31.25},
        "details": {"run": "demo"},
    }
    return Detections(**(fields | changes))


def rows(detections: Detections) -> list[tuple]:
    """Every row by name, in order of video; order within a video kept."""
    found = zip(
        (detections.videos[i] for i in detections.video),
        map(tuple, detections.segments.tolist()),
        (detections.classes[i] for i in detections.labels),
        detections.scores.tolist(),
        strict=True,
    )
    return sorted(found, key=lambda row: row[0])


# The columns


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video": np.zeros(3, np.int64)}, "video has shape (3,); with 50 scores"),
        ({"segments": np.zeros((50, 3))}, "segments has shape (50, 3)"),
        ({"labels": np.full(50, 3)}, "labels runs from 3 to 3, but there are 3 names"),
        ({"video": np.full(50, -1)}, "video runs from -1"),
        ({"classes": ("open", "close", "open")}, "twice"),
        ({"scores": np.full(50, np.nan)}, "score nan"),
        ({"segments": np.full((50, 2), np.inf)}, "[inf, inf]"),
        ({"segments": np.tile([3.0, 2.0], (50, 1))}, "[3.0, 2.0]"),
        ({"basis": "backward"}, "'backward' is not one of forward, reverse"),
        ({"durations_s": {"kite": 0.0}}, "video kite: duration 0.0"),
    ],
)
def test_columns_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError) as caught:
        some(**changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_from_videos_and_of_video_are_inverse():
    whole = some()
    parts = {name: whole.of_video(name) for name in whole.videos}
    assert len(parts["empty"]) == 0
    assert all(part.videos == (name,) for name, part in parts.items())
    again = Detections.from_videos(
        {name: (part.segments, part.scores, part.labels) for name, part in parts.items()}, classes=whole.classes
    )
    assert again.videos == whole.videos
    assert rows(again) == rows(whole)


def test_from_videos_takes_no_video_and_no_detection():
    assert len(Detections.from_videos({}, classes=("open",))) == 0
    nothing = (np.empty((0, 2)), np.empty(0), np.empty(0, np.int64))
    assert Detections.from_videos({"door": nothing}, classes=()).videos == ("door",)


def test_of_an_unknown_video_names_the_known_ones():
    with pytest.raises(ValueError, match=r"no video 'gate'.*door, kite, empty"):
        some().of_video("gate")


def test_concatenation_has_the_classes_of_all_parts():
    a, b = some(0), some(1, classes=("fall", "open", "close"))
    both = Detections.concatenate([a, b])
    assert both.classes == ("open", "close", "rise", "fall")
    assert sorted(rows(both)) == sorted(rows(a) + rows(b))


def test_concatenation_keeps_every_row():
    a = some(0)
    b = replace(
        some(1), videos=("kite", "door", "boat"), classes=("rise", "open", "close"), durations_s={"boat": 9.0}
    )
    both = Detections.concatenate([a, b], details={"run": "both"})
    assert both.videos == ("door", "kite", "empty", "boat")
    assert both.classes == a.classes
    assert sorted(rows(both)) == sorted(rows(a) + rows(b))
    assert both.durations_s == {"door": 30.0, "kite": 31.25, "boat": 9.0}
    assert both.details == {"run": "both"}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (some(basis="reverse"), "basis forward and reverse"),
        (some(durations_s={"kite": 31.5}), "video kite lasts 31.25 s in part 1 and 31.5 s in part 2"),
    ],
)
def test_parts_that_disagree_cannot_be_concatenated(other, message):
    with pytest.raises(ValueError, match=message):
        Detections.concatenate([some(), other])


# The two clocks


@given(st.integers(0, 2**32 - 1), st.integers(0, 60))
@settings(deadline=None, max_examples=50)
def test_reversing_twice_changes_nothing(seed, n):
    once = some(seed, n).reversed()
    twice = once.reversed()
    assert (once.basis, twice.basis) == ("reverse", "forward")
    np.testing.assert_allclose(twice.segments, some(seed, n).segments, atol=1e-12)
    assert once.scores is twice.scores


def test_a_reversed_segment_is_measured_from_its_own_videos_end():
    reversed_ = some(segments=np.tile([2.0, 5.0], (50, 1))).reversed()
    duration = np.array([30.0, 31.25])[reversed_.video]
    np.testing.assert_array_equal(reversed_.segments, np.stack([duration - 5, duration - 2], axis=1))


def test_reversing_without_a_duration_names_the_video():
    with pytest.raises(ValueError, match="duration of kite is unknown"):
        some(durations_s={"door": 30.0}).reversed()


def test_a_video_without_detections_needs_no_duration():
    assert len(some(video=np.zeros(50, np.int64), durations_s={"door": 30.0}).reversed()) == 50


def test_forward_is_on_the_forward_clock_whatever_it_came_from():
    detections = some()
    assert detections.forward() is detections
    back = detections.reversed().forward()
    assert back.basis == "forward"
    np.testing.assert_allclose(back.segments, detections.segments, atol=1e-12)


# The files


@pytest.mark.parametrize("name", ["found.json", "found.json.gz"])
@pytest.mark.parametrize("basis", ["forward", "reverse"])
def test_written_detections_read_back_the_same(tmp_path, name, basis):
    detections = some(basis=basis)
    write_detections(detections, tmp_path / name)
    again = read_detections(tmp_path / name)
    assert rows(again) == rows(detections)
    for field in ("videos", "classes", "basis", "durations_s", "details"):
        assert getattr(again, field) == getattr(detections, field)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_same_detections_give_the_same_bytes(tmp_path):
    for name in ("a.json.gz", "b.json.gz"):
        write_detections(some(), tmp_path / name)
    assert (tmp_path / "a.json.gz").read_bytes() == (tmp_path / "b.json.gz").read_bytes()


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "found.json"
    write_detections(some(0), path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="basis"):
        write_detections(some(1, details={"basis": "mine"}), path)
    with pytest.raises(ValueError):
        write_detections(some(1, details={"loss": float("nan")}), path)
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["found.json"]


ROW = {"segment": [1.5, 2], "label": "open", "score": 0.5}


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_other_projects_files_are_read(tmp_path):
    rows_ = [ROW, {**ROW, "label": "close"}]
    external = {"used": True, "details": "pre-trained on Kinetics"}
    content = {"version": "VERSION 1.3", "results": {"door": rows_, "kite": []}, "external_data": external}
    found = read_detections(write(tmp_path / "theirs.json", content))
    assert found.videos == ("door", "kite")
    assert found.classes == ("close", "open")
    assert found.basis == "forward"
    assert found.details == external
    assert rows(found) == [("door", (1.5, 2.0), "open", 0.5), ("door", (1.5, 2.0), "close", 0.5)]
    assert len(read_detections(write(tmp_path / "none.json", {"results": {}}))) == 0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["open"], "detection ['open'] has no segment"),
        ({"segment": [1, 2], "label": "open"}, "has no score"),
        ({"segment": [1, 2], "score": 0.5}, "has no label"),
        ({"label": "open", "score": 0.5}, "has no segment"),
        ({**ROW, "segment": [1]}, "segment [1] is not two finite numbers"),
        ({**ROW, "segment": [1, 2, 3]}, "segment [1, 2, 3] is not"),
        ({**ROW, "segment": 7}, "segment 7 is not"),
        ({**ROW, "segment": [1, None]}, "end None is not a finite number"),
        ({**ROW, "segment": ["1", "b"]}, "end 'b' is not a finite"),
        ({**ROW, "segment": ["1", "nan"]}, "end 'nan' is not"),
        ({**ROW, "segment": "12"}, "segment '12' is not"),
        ({**ROW, "segment": [1, float("nan")]}, "end nan is not"),
        ({**ROW, "segment": [1, 10**30]}, "end 1000000000000000000000000000000 is not"),
        ({**ROW, "segment": [5, 3]}, "segment [5.0, 3.0] ends before it starts"),
        ({**ROW, "score": float("inf")}, "score inf is not a finite number"),
        ({**ROW, "score": "0,5"}, "score '0,5' is not"),
        ({**ROW, "score": "inf"}, "score 'inf' is not"),
        ({**ROW, "score": None}, "score None is not"),
        ({**ROW, "label": 3.5}, "label 3.5 is not a class name or number"),
        ({**ROW, "label": None}, "label None is not a class name or number"),
        ({**ROW, "label": ["open"]}, "label ['open'] is not"),
    ],
)
@pytest.mark.parametrize("company", [[], [ROW, ROW]], ids=["alone", "among sound ones"])
def test_a_defect_is_named_with_file_video_and_value(tmp_path, row, message, company):
    path = write(tmp_path / "bad.json", {"results": {"kite": [ROW], "door": [*company, row]}})
    with pytest.raises(ValueError) as caught:
        read_detections(path)
    assert f"{path}: video door: " in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], 'no "results" object'),
        ({"database": {}}, 'no "results" object'),
        ({"results": []}, 'no "results" object'),
        ({"results": {"door": ROW}}, "video door"),
        ({"results": {}, "external_data": [1]}, "external_data is [1]"),
        (
            {"results": {"door": [ROW]}, "external_data": {"classes": ["close"]}},
            "label open is not among the classes",
        ),
        ({"results": {"door": [ROW]}, "external_data": {"classes": "open"}}, "classes are 'open'"),
        ({"results": {"door": [ROW]}, "external_data": {"classes": ["open", "open"]}}, "twice"),
        ({"results": {"door": [ROW]}, "external_data": {"basis": "sideways"}}, "'sideways' is not one of"),
        ({"results": {"door": [ROW]}, "external_data": {"basis": ["forward"]}}, "['forward'] is not one of"),
        ({"results": {"door": [ROW]}, "external_data": {"durations_s": 3}}, "durations_s are 3"),
        ({"results": {"door": [ROW]}, "external_data": {"durations_s": {"door": "3"}}}, "duration '3'"),
    ],
)
def test_a_file_of_another_form_is_refused_by_name(tmp_path, content, message):
    path = write(tmp_path / "bad.json", content)
    with pytest.raises(ValueError) as caught:
        read_detections(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_json_or_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        read_detections(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("no JSON")
    (tmp_path / "plain.json.gz").write_text("{}")
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(b'{"results": {}}')[:-9])
    for name in ("text.json", "plain.json.gz", "cut.json.gz"):
        with pytest.raises(ValueError, match=name):
            read_detections(tmp_path / name)


def test_published_detections_are_read():
    path = SHARED / "data/thumos14/actionformer_detections.json.gz"
    if not path.exists():
        pytest.skip(f"the reference folder {SHARED} is missing")
    detections = read_detections(path)
    assert (len(detections), len(detections.videos), len(detections.classes)) == (42_400, 212, 20)
