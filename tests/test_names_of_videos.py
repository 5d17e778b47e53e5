"""Commands that are given two sources of one data set whose names of videos differ by a habit, or do not match."""

from __future__ import annotations

import json
import pickle
import shutil
import unicodedata
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import config_of, feature_data, numbered_picture, video_data

from bitad.cli import main
from bitad.data.detections import alike, read_detections
from bitad.data.feature_files import FeatureStore
from bitad.data.feature_folder import FeatureVideo
from bitad.data.formats.database import read_annotations
from bitad.data.sources import FeatureFiles, annotated_names, read_ground_truth
from bitad.runtime.files import read_json
from bitad.video.reverse import reverse_folder
from bitad.video.writer import write_video

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
QUICK = ("training.epochs=2", "training.evaluate_from=1")

Runs = Callable[..., tuple[str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Runs:
    """Runs a command; what it printed and what it logged, or the line with which it ended."""

    def run(*arguments: object, status: int = 0) -> tuple[str, str]:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == status
        out, err = capsys.readouterr()
        return out, err

    return run


def truth(path: Path, *names: str, timed: bool = True, duration_s: float = 10.0) -> Path:
    """Annotations of videos with an action from 1 to 3 s, in a form that may state no durations."""
    if timed:
        rows = [{"segment": [1.0, 3.0], "label": "run", "label_id": 0}]
        video = {"subset": "test", "duration": duration_s, "annotations": rows}
        path.write_text(json.dumps({"database": dict.fromkeys(names, video)}))
        return path
    path.mkdir()
    (path / "run_test.txt").write_text("".join(f"{name} 1.0 1.6\n" for name in names))
    return path


def found(path: Path, *names: str, **external: Any) -> Path:
    rows = [{"segment": [1.0, 3.0], "label": "run", "score": 0.9}]
    path.write_text(json.dumps({"results": dict.fromkeys(names, rows), "external_data": external}))
    return path


def line(habits: str, theirs: str, ours: str, *, count: int = 2) -> str:
    return f"{count} videos matched although names differ by {habits}: {theirs!r} for {ours!r}"


DIFFERENT = [
    (("abc", "def"), ("v_abc", "v_def"), "the prefix v_"),
    (("v_abc", "v_def"), ("abc", "def"), "the prefix v_"),
    (("abc.mp4", "def.avi"), ("abc", "def"), "an extension"),
    (("abc", "def"), ("ABC", "Def"), "case"),
    ((NFC, NFC + "2"), (NFD, NFD + "2"), "Unicode form"),
]


@pytest.mark.parametrize(("ours", "theirs", "habit"), DIFFERENT)
@pytest.mark.parametrize("command", ["check", "convert"])
def test_a_list_of_videos_is_used_under_the_annotations_names(
    tmp_path: Path, run: Runs, command: str, ours: tuple[str, ...], theirs: tuple[str, ...], habit: str
) -> None:
    video = {"duration": 4.0, "fps": 25.0, "num_frame": 100}
    (tmp_path / "info.json").write_text(json.dumps(dict.fromkeys(theirs, video)))
    src = truth(tmp_path / "gt.json", *ours, duration_s=4.0)
    out = [tmp_path / "out.json"] if command == "convert" else []
    _, err = run("annotations", command, src, *out, "--video-info", tmp_path / "info.json")
    assert err.count(f"videos matched although names differ by {habit}: ") == 1
    if command == "convert":
        videos = read_annotations(tmp_path / "out.json").videos
        assert {name: video.frames for name, video in videos.items()} == dict.fromkeys(ours, 100)


@pytest.mark.parametrize("command", ["check", "convert"])
def test_a_list_of_other_videos_is_refused_with_names_of_both_sides(
    tmp_path: Path, run: Runs, command: str
) -> None:
    (tmp_path / "info.json").write_text(json.dumps({name: {"duration": 4.0} for name in "xyz"}))
    src = truth(tmp_path / "gt.json", "a", "b", "c")
    out = [tmp_path / "out.json"] if command == "convert" else []
    _, err = run("annotations", command, src, *out, "--video-info", tmp_path / "info.json", status=1)
    assert "lists none of the videos: missing: 'a', 'b' and 1 more; there: 'x', 'y' and 1 more" in err


def test_the_frames_of_videos_are_counted_whatever_the_habits_of_their_files(tmp_path: Path, run: Runs) -> None:
    for name in ("v_video_test_1", "VIDEO_TEST_2"):
        write_video(tmp_path / "raw" / f"{name}.mp4", map(numbered_picture, range(40)), fps=16)
    src = truth(tmp_path / "official", "video_test_1", "video_test_2", timed=False)
    _, err = run("annotations", "convert", src, tmp_path / "gt.json", "--videos", tmp_path / "raw")
    assert line("the prefix v_ and case", "v_video_test_1", "video_test_1") in err
    videos = read_annotations(tmp_path / "gt.json").videos
    assert {name: video.frames for name, video in videos.items()} == {"video_test_1": 40, "video_test_2": 40}


def test_checking_finds_videos_and_reversed_videos_by_habits(tmp_path: Path, run: Runs) -> None:
    config = video_data(tmp_path, training=1, test=1, frames=40)
    reverse_folder(tmp_path / "videos", tmp_path / "back", workers=0)
    for folder in ("videos", "back"):
        for path in (tmp_path / folder).iterdir():
            path.rename(path.with_name(f"v_{path.name}"))
    check = ("annotations", "check", config.parent / "annotations.json", "--videos", tmp_path / "videos")
    out, err = run(*check, "--reversed-videos", tmp_path / "back")
    assert "0 defects" in out
    assert err.count("2 videos matched although names differ by the prefix v_") == 2  # of either folder


def test_checking_shows_names_of_both_sides_of_videos_that_are_missing(tmp_path: Path, run: Runs) -> None:
    write_video(tmp_path / "raw" / "quite.mp4", map(numbered_picture, range(8)), fps=16)
    write_video(tmp_path / "raw" / "other.mp4", map(numbered_picture, range(8)), fps=16)
    src = truth(tmp_path / "gt.json", "a", "b", "c")
    _, err = run("annotations", "check", src, "--videos", tmp_path / "raw", status=1)
    assert err.count(f"{tmp_path / 'raw'}: missing: 'a', 'b' and 1 more; there: 'other', 'quite'") == 1


@pytest.mark.parametrize(("ours", "theirs", "habit"), DIFFERENT)
@pytest.mark.parametrize("rule", ["activitynet", "thumos-kit"])
def test_detections_are_measured_under_the_annotations_names(
    tmp_path: Path, run: Runs, ours: tuple[str, ...], theirs: tuple[str, ...], habit: str, rule: str
) -> None:
    options = ("--ground-truth", truth(tmp_path / "gt.json", *ours), "--subset", "test", "--rule", rule)
    durations = dict.fromkeys(theirs, 10.0)
    detections = found(tmp_path / "found.json", *theirs, durations_s=durations)
    _, err = run("evaluate", *options, "--detections", detections, "--json", tmp_path / "figures.json")
    assert read_json(tmp_path / "figures.json")["average_map"] == pytest.approx(1)
    assert err.count(f"2 videos matched although names differ by {habit}: ") == 1
    assert "matched" not in run("evaluate", *options, "--detections", found(tmp_path / "same.json", *ours))[1]
    wrong = found(tmp_path / "wrong.json", *theirs, durations_s=dict.fromkeys(theirs, 20.0))
    assert "the clocks of 2 of 2 videos disagree" in run("evaluate", *options, "--detections", wrong, status=1)[1]


def test_ambiguous_intervals_count_under_the_annotations_names(tmp_path: Path, run: Runs) -> None:
    rows = [
        {"segment": [1.0, 3.0], "label": "run", "score": 0.5},
        {"segment": [6, 8], "label": "run", "score": 0.9},
    ]
    (tmp_path / "found.json").write_text(json.dumps({"results": {"a": rows}}))
    (tmp_path / "Ambiguous_test.txt").write_text("v_a 5.0 7.0\n")
    options = ("--ground-truth", truth(tmp_path / "gt.json", "a"), "--subset", "test", "--rule", "thumos-kit")
    figures = ("--detections", tmp_path / "found.json", "--json", tmp_path / "figures.json")
    run("evaluate", *options, *figures)
    assert read_json(tmp_path / "figures.json")["average_map"] == pytest.approx(0.5)
    run("evaluate", *options, *figures, "--ambiguous", tmp_path / "Ambiguous_test.txt")
    assert read_json(tmp_path / "figures.json")["average_map"] == pytest.approx(1)
    (tmp_path / "Ambiguous_test.txt").write_text("x 5.0 7.0\n")
    _, err = run("evaluate", *options, *figures, "--ambiguous", tmp_path / "Ambiguous_test.txt", status=1)
    assert "the ambiguous intervals are of x, but the ground truth has no such video; it has a;" in err


def test_detections_of_other_videos_are_refused_with_names_of_both_sides(tmp_path: Path, run: Runs) -> None:
    options = ("--ground-truth", truth(tmp_path / "gt.json", "a", "b", "c"), "--subset", "test")
    _, err = run("evaluate", *options, "--detections", found(tmp_path / "x.json", "x", "y", "z"), status=1)
    assert "no detection is in a video of " in err
    assert "missing: 'a', 'b' and 1 more; there: 'x', 'y' and 1 more" in err
    run("evaluate", *options, "--detections", found(tmp_path / "some.json", "x", "a"))  # some are


def test_detections_that_may_be_of_two_videos_are_refused(tmp_path: Path, run: Runs) -> None:
    options = ("--ground-truth", truth(tmp_path / "gt.json", "a", "b"), "--subset", "test")
    _, err = run("evaluate", *options, "--detections", found(tmp_path / "x.json", "v_a", "A", "b"), status=1)
    assert "x.json: 'v_a' or 'A' may be video 'a'; rename or remove one" in err


def test_a_video_of_another_subset_is_not_taken_for_one_of_this(tmp_path: Path, run: Runs) -> None:
    rows = [{"segment": [1.0, 3.0], "label": "run"}]
    videos = {
        name: {"subset": subset, "duration": 10.0, "annotations": rows}
        for name, subset in (("a", "training"), ("v_a", "test"), ("b", "test"))
    }
    (tmp_path / "gt.json").write_text(json.dumps({"database": videos}))
    options = ("--ground-truth", tmp_path / "gt.json", "--subset", "test", "--json", tmp_path / "figures.json")
    run("evaluate", *options, "--detections", found(tmp_path / "x.json", "a", "b"))
    assert read_json(tmp_path / "figures.json")["videos_without_prediction"] == ["v_a"]


@pytest.mark.parametrize(("ours", "theirs", "habit"), DIFFERENT)
def test_merging_makes_one_video_of_two_names(
    tmp_path: Path, run: Runs, ours: tuple[str, ...], theirs: tuple[str, ...], habit: str
) -> None:
    a, b = found(tmp_path / "a.json", *ours), found(tmp_path / "b.json", *theirs)
    _, err = run("merge", a, b, "--out", tmp_path / "m.json", "--method", "wsf")
    merged = read_detections(tmp_path / "m.json")
    assert (merged.videos, merged.scores.tolist()) == (ours, [0.9, 0.9])
    assert err.count(f"2 videos matched although names differ by {habit}: ") == 1


def test_reversed_detections_take_their_durations_from_annotations_of_other_names(
    tmp_path: Path, run: Runs
) -> None:
    a, b = found(tmp_path / "a.json", "v_x"), found(tmp_path / "b.json", "v_x")
    options = ("--reverse-b", "--annotations", truth(tmp_path / "gt.json", "x"), "--out", tmp_path / "m.json")
    run("merge", a, b, *options)
    merged = read_detections(tmp_path / "m.json")
    assert merged.videos == ("x",)
    assert sorted(merged.segments.tolist()) == [[1.0, 3.0], [7.0, 9.0]]


def test_more_sets_than_two_take_the_names_of_the_first_that_has_a_video(tmp_path: Path) -> None:
    sets = [
        found(tmp_path / f"{i}.json", *names) for i, names in enumerate((["a"], ["v_b", "A"], ["b.mp4", "v_a"]))
    ]
    merged = alike([read_detections(path) for path in sets], sets)
    assert [one.videos for one in merged] == [("a",), ("v_b", "a"), ("v_b", "a")]


def renamed(folder: Path, there: Path, rename: Callable[[str], str]) -> Path:
    """A copy of a folder's files under other names."""
    there.mkdir()
    for path in folder.iterdir():
        shutil.copy(path, there / (rename(path.stem) + path.suffix))
    return there


def packed(folder: Path, path: Path, rename: Callable[[str], str]) -> Path:
    """The features of a folder as one .npz."""
    np.savez(path, **{rename(file.stem): np.load(file) for file in folder.iterdir()})
    return path


@pytest.mark.parametrize("pack", [renamed, packed])
def test_features_under_other_names_are_trained_and_tested_on(
    tmp_path: Path, run: Runs, one_thread: None, pack: Callable[..., Path]
) -> None:
    config = feature_data(tmp_path / "data", training=2, test=2)
    features = tmp_path / "data/features"
    there = pack(features, tmp_path / "there.npz", "v_{}".format)
    back = pack(features, tmp_path / "back.npz", str.upper)
    options = (f"output={tmp_path / 'runs'}", "direction=reverse", f"data.reversed_features={back}", *QUICK)
    _, err = run("train", config, f"data.features={there}", *options, "--device", "cpu")
    assert err.count("4 videos matched although names differ by the prefix v_: 'v_") == 1
    assert err.count("4 videos matched although names differ by case: ") == 1
    (directory,) = (tmp_path / "runs").iterdir()
    assert set(read_detections(directory / "detections.json").videos) == {"test_0", "test_1"}
    # What was trained on is known, under these names too.
    array = np.load(features / "test_0.npy")
    if pack is renamed:
        np.save(there / "v_test_0.npy", array * 2)
        _, err = run("test", directory, "--out", tmp_path / "again", "--device", "cpu")
        assert "the test data have changed" in err


def test_features_of_other_videos_are_refused_with_names_of_both_sides(
    tmp_path: Path, run: Runs, one_thread: None
) -> None:
    config = feature_data(tmp_path / "data", training=2, test=2)
    features = tmp_path / "data/features"
    for pack in (renamed, packed):
        there = pack(features, tmp_path / f"{pack.__name__}.npz", "clip-{}".format)
        _, err = run("train", config, f"data.features={there}", *QUICK, "--device", "cpu", status=1)
        assert "missing: 'train_0', 'train_1' and 2 more; there: 'clip-test_0', 'clip-test_1' and 2 more" in err


def test_what_features_json_says_is_found_under_the_names_of_the_features(tmp_path: Path) -> None:
    config = config_of(feature_data(tmp_path / "data", training=1, test=1))
    there = renamed(tmp_path / "data/features", tmp_path / "there", "v_{}".format)
    store = FeatureStore(there, wanted=partial(annotated_names, config.data))
    made = {"v_test_0": FeatureVideo(frames=400, fps=16.0, steps=99)}
    source = FeatureFiles(store, config.data, config.window, described=made)
    video = read_ground_truth(config.data).videos["test_0"]
    assert "features.json says 99" in str(source.clock_fault(video, source.grid(video)))
    again = pickle.loads(pickle.dumps(source))  # as processes that read get it
    assert again.grid(video) == source.grid(video)


@pytest.mark.slow  # trains on videos
def test_videos_under_other_names_are_trained_on(tmp_path: Path, run: Runs, one_thread: None) -> None:
    config = video_data(tmp_path / "data", training=2, test=1)
    videos = tmp_path / "data/videos"
    back = tmp_path / "back"
    reverse_folder(videos, back, workers=0)
    there = renamed(videos, tmp_path / "there", "v_{}".format)
    their_back = renamed(back, tmp_path / "their_back", str.title)
    options = (f"data.videos={there}", "direction=reverse", f"data.reversed_videos={their_back}", *QUICK)
    _, err = run("train", config, *options, f"output={tmp_path / 'runs'}", "--device", "cpu")
    assert err.count("3 videos matched although names differ by the prefix v_: 'v_") == 1
    assert err.count("3 videos matched although names differ by case: ") == 1
    (directory,) = (tmp_path / "runs").iterdir()
    assert read_detections(directory / "detections.json").videos == ("test_0",)


def test_scores_of_videos_name_segments_under_other_names(tmp_path: Path, run: Runs, one_thread: None) -> None:
    config = feature_data(tmp_path / "data", training=2, test=2)
    scores = {
        "results": {"v_Test_0": [0.0, 1.0, 0.0], "TEST_1.mp4": [0.0, 0.0, 1.0]},
        "class": ["alpha", "beta", "gamma"],
    }
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    options = ("data.class_agnostic=true", f"test.video_scores={tmp_path / 'scores.json'}", *QUICK)
    _, err = run("train", config, *options, f"output={tmp_path / 'runs'}", "--device", "cpu")
    assert line("an extension, the prefix v_ and case", "v_Test_0", "test_0") in err
    (directory,) = (tmp_path / "runs").iterdir()
    detections = read_detections(directory / "detections.json")
    named = {
        name: {detections.classes[label] for label in detections.of_video(name).labels}
        for name in detections.videos
    }
    assert named == {"test_0": {"beta"}, "test_1": {"gamma"}}


def test_a_report_measures_runs_whose_detections_have_other_names(
    tmp_path: Path, run: Runs, one_thread: None
) -> None:
    config = feature_data(tmp_path / "data", training=2, test=2)
    run("train", config, f"output={tmp_path / 'runs'}", *QUICK, "--device", "cpu")
    (directory,) = (tmp_path / "runs").iterdir()
    run("report", directory, "--out", tmp_path / "before")
    content = read_json(directory / "detections.json")
    content["results"] = {f"v_{name}": rows for name, rows in content["results"].items()}
    (directory / "detections.json").write_text(json.dumps(content))
    _, err = run("report", directory, "--out", tmp_path / "after")
    assert err.count("2 videos matched although names differ by the prefix v_") == 1
    figures = [read_json(tmp_path / when / "results.json") for when in ("before", "after")]
    assert figures[0] == figures[1]
