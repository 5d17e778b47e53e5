"""Annotation files of other projects through the command line: what `check` and `convert` say of one is the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitad.cli import main
from bitad.data.annotations import Annotations
from bitad.data.check import check_annotations
from bitad.data.clocks import Clock, read_clocks, read_subsets
from bitad.data.formats.annotations import FORMATS, recognise
from bitad.data.formats.database import read_annotations

Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command; what it printed."""

    def succeed(*arguments: object, status: int = 0) -> str:
        assert main([str(argument) for argument in arguments]) == status
        return capsys.readouterr().out

    return succeed


@pytest.fixture
def failing(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command that must fail with one line; that line."""

    def fail(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 1
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        return err

    return fail


def save(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def rows(annotations: Annotations) -> dict[str, list[tuple[float, float, str]]]:
    return {
        name: [(a, b, label) for (a, b), label in zip(video.segments.tolist(), video.labels, strict=True)]
        for name, video in annotations.videos.items()
    }


def database(**video: Any) -> dict[str, Any]:
    return {"database": {"a": {"subset": "test", **video}}}


ROW = {"segment": [10, 20], "label": "run"}
INFO = {"a": {"duration": 100.0, "num_frame": 3000, "fps": 30.0}}
UNTIMED = {
    "without durations": database(annotations=[ROW]),
    "null": database(duration=None, annotations=[ROW]),
    "strings": database(annotations=[ROW | {"segment": ["10.0", "20.0"]}]),
    "segment(frames) null": database(annotations=[ROW | {"segment(frames)": None, "label_id": None}]),
    "multilabel": {"a": {"subset": "test", "actions": [["run", 10, 20]]}},
    "bsn": {"a": {"subset": "test", "duration_second": None, "annotations": [ROW]}},
}


@pytest.mark.parametrize("content", UNTIMED.values(), ids=UNTIMED)
def test_a_list_of_videos_gives_the_durations_that_any_form_lacks(
    content: dict[str, Any], tmp_path: Path, run: Run, failing: Run
) -> None:
    src, info = save(tmp_path / "src.json", content), save(tmp_path / "info.json", INFO)
    run("annotations", "convert", src, tmp_path / "out.json", "--video-info", info)
    converted = read_annotations(tmp_path / "out.json")
    assert rows(converted) == {"a": [(10, 20, "run")]}
    assert converted.videos["a"].clock == Clock(100.0, 3000, 30.0)
    assert run("annotations", "check", src, "--video-info", info).endswith("0 defects\n")
    assert "1 videos have an unknown duration" in run("annotations", "check", src)
    assert "a: left out (1 run)" in run("annotations", "convert", src, tmp_path / "none.json", "--missing", "drop")
    assert "its duration is not known: its file states none; give" in failing(
        "annotations", "convert", src, tmp_path / "no.json"
    )
    assert not (tmp_path / "no.json").exists()


def test_map_needs_no_durations(tmp_path: Path, run: Run) -> None:
    src = save(tmp_path / "src.json", UNTIMED["strings"])
    row = {"segment": [10, 20], "label": "run", "score": 0.9}
    found = save(tmp_path / "found.json", {"results": {"a": [row]}})
    assert "100.00" in run("evaluate", "--ground-truth", src, "--detections", found, "--subset", "test")


def test_what_reverses_needs_durations_and_says_so(tmp_path: Path, failing: Run) -> None:
    src = save(tmp_path / "src.json", UNTIMED["without durations"])
    found = save(tmp_path / "found.json", {"results": {"a": [ROW | {"score": 0.9}]}})
    merged = ("merge", found, found, "--out", tmp_path / "out.json", "--reverse-b", "--annotations", src)
    for command in (("reverse", src, tmp_path / "back.json"), merged):
        assert f"{src}: the duration of a is not stated; write a file with durations: " in failing(*command)
    assert not (tmp_path / "back.json").exists()
    assert not (tmp_path / "out.json").exists()


HACS = {
    "v": {"subset": "training", "duration": "92.166667", "url": "u", "annotations": [ROW | {"segment": [5, 95]}]},
    "x": {"subset": "validation", "duration": "30.5", "url": "u", "annotations": [ROW]},
}


def test_check_reads_the_durations_of_hacs_as_convert_does(tmp_path: Path, run: Run) -> None:
    src = save(tmp_path / "HACS_segments_v1.1.1.json", {"database": HACS})
    said = run("annotations", "check", src, "--from", "hacs", status=1)
    assert "v: segment outside the video: run [5, 95] s of a video of 92.1667 s" in said
    assert said.endswith("\n1 defects\n")
    assert "2 videos, 2 segments" in run("annotations", "convert", src, tmp_path / "out.json", "--from", "hacs")


MALFORMED = {
    "native": {
        "database": {"a": {"subset": "t", "duration": "soon", "annotations": [{"segment": [1], "label": "x"}]}}
    },
    "multilabel": {"a": {"subset": "t", "duration": "soon", "actions": [[1, 2]]}},
    "bsn": {"a": {"subset": "t", "duration_second": "soon", "annotations": [{"segment": [1], "label": "x"}]}},
    "Charades_v1_train.csv": "id,actions,length\na,c1 2,soon\n",
    "any_val.csv": "video,type,start,end\na,x,1,soon\na,,1,2\n",
    "the_test.csv": "video-name,t-init,t-end,video-duration,label-idx\na,1,2,soon,3\na,1,2,9,77\n",
    "train/A_val.txt": "video_validation_1 1 soon\nvideo_validation_1 1\n",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_check_names_every_defect_and_convert_the_first(name: str, tmp_path: Path, run: Run, failing: Run) -> None:
    path = save(tmp_path / (name if "." in name else f"{name}.json"), MALFORMED[name])
    src = path.parent if path.suffix == ".txt" else path
    report = check_annotations(src)
    (defects,) = report.defects.values()
    assert [defect.kind for defect in defects] == ["unreadable"] * 2
    said = failing("annotations", "convert", src, tmp_path / "out.json")
    first = defects[0]
    assert (
        f"{src}: video {first.video}: {first.detail}; correct it (`bitad annotations check` names every def"
        in said
    )
    assert run("annotations", "check", src, status=1).count(f"\n{first.video}: unreadable: ") == 2


MULTILABEL = {
    "a": {"subset": "training", "duration": 23.5, "actions": [[2, 16.0, 22.2], [1, 5, 6.5], [2, 1, 2]]},
    "b": {"subset": "testing", "duration": 8.0, "actions": []},
}


def test_multilabel_classes_are_numbers_without_a_list(tmp_path: Path, run: Run) -> None:
    src = save(tmp_path / "charades.json", MULTILABEL | {"c": {**MULTILABEL["a"], "actions": [[10, 1, 2]]}})
    assert recognise(src) == "multilabel"
    said = run("annotations", "convert", src, tmp_path / "out.json")
    assert "multilabel: 3 videos, 4 segments of 3 classes" in said
    assert "no list of classes: they are called by their numbers" in said
    read = read_annotations(tmp_path / "out.json")
    assert read.classes == ("1", "2", "10")
    assert rows(read)["a"] == [(1, 2, "2"), (5, 6.5, "1"), (16, 22.2, "2")]
    assert read.subsets() == {"training": 2, "testing": 1}
    assert [video.duration_s for video in read.videos.values()] == [23.5, 8.0, 23.5]


@pytest.mark.parametrize(
    ("numbers", "listed", "names"),
    [
        ((0, 2), "zero\none\ntwo\n", ("zero", "two")),
        ((1, 3), "one\ntwo\nthree\n", ("one", "three")),
        ((1, 3), "1 one\n2 two\n3 three\n", ("one", "three")),
        ((0, 2), "1 one\n2 two\n3 three\n", ("one", "three")),  # MultiTHUMOS' list with a copy that counts from 0
        (
            (1, 2),
            "c000 Holding some clothes\nc001 Putting it away\nc002 Taking it\n",
            ("Putting it away", "Taking it"),
        ),
        ((7, 12), "7 Pitch\n9 Dunk\n12 Billiards\n", ("Pitch", "Billiards")),
        ((0.0, 2.0), "zero\none\ntwo\n", ("zero", "two")),
        (("0", "2"), "zero\none\ntwo\n", ("zero", "two")),
    ],
)
def test_multilabel_numbers_are_named_by_a_list(
    numbers: tuple[Any, Any], listed: str, names: tuple[str, str], tmp_path: Path, run: Run
) -> None:
    actions = [[numbers[0], 1, 2], [numbers[1], 3, 4.5]]
    src = save(tmp_path / "src.json", {"a": {"subset": "t", "duration": 9.5, "actions": actions}})
    classes = save(tmp_path / "names.txt", listed)
    run("annotations", "convert", src, tmp_path / "out.json", "--classes", classes)
    assert rows(read_annotations(tmp_path / "out.json")) == {"a": [(1, 2, names[0]), (3, 4.5, names[1])]}
    assert run("annotations", "check", src, "--classes", classes).endswith("0 defects\n")


def test_multilabel_numbers_are_named_by_the_list_beside(tmp_path: Path, run: Run) -> None:
    src = save(tmp_path / "multithumos.json", MULTILABEL)
    save(tmp_path / "class_list.txt", "1 Walk\n2 Sit\n")
    said = run("annotations", "convert", src, tmp_path / "out.json", "--class-list", tmp_path / "out.txt")
    assert f"classes are named by {tmp_path / 'class_list.txt'}, from 1 on" in said
    assert (tmp_path / "out.txt").read_text() == "Walk\nSit\n"
    assert rows(read_annotations(tmp_path / "out.json"))["a"] == [
        (1, 2, "Sit"),
        (5, 6.5, "Walk"),
        (16, 22.2, "Sit"),
    ]


def test_multilabel_numbers_that_no_list_explains_are_refused(tmp_path: Path, failing: Run) -> None:
    src = save(tmp_path / "src.json", MULTILABEL)
    convert = ("annotations", "convert", src, tmp_path / "out.json", "--classes")
    said = failing(*convert, save(tmp_path / "four.txt", "a\nb\nc\nd\n"))
    assert "class numbers are 1 to 2" in said
    assert 'number its names, "0 NAME" or "1 NAME" a line' in said
    said = failing(*convert, save(tmp_path / "one.txt", "only\n"))
    assert "video a: class 2 is not one of the 1 of the list of classes, from 1 on" in said


def test_multilabel_frames_become_seconds_where_the_list_of_videos_tells(
    tmp_path: Path, run: Run, failing: Run
) -> None:
    stated = {"a": {"subset": "testing", "duration": 22760, "actions": [["Walk", 80, 1000]]}}
    src, convert = save(tmp_path / "smarthome.json", stated), ("annotations", "convert")
    assert "if they count frames" in run(*convert, src, tmp_path / "out.json")
    info = save(tmp_path / "info.json", {"a": {"duration": 1138.0, "num_frame": 22760}})
    assert "times are frames in the file" in run(*convert, src, tmp_path / "out.json", "--video-info", info)
    read = read_annotations(tmp_path / "out.json")
    assert (rows(read)["a"], read.videos["a"].clock) == ([(4, 50, "Walk")], Clock(1138.0, 22760, None))
    save(src, stated | {"b": stated["a"]})
    assert "list the frames and duration of b" in failing(*convert, src, tmp_path / "x", "--video-info", info)


BSN = {
    "v_a": {
        "duration_second": 20.0,
        "duration_frame": 600,
        "annotations": [{"segment": [6.19, 17.73], "label": "Ballet"}],
        "feature_frame": 592,
    },
    "v_b": {"duration_second": 10.0, "duration_frame": 250, "annotations": [], "feature_frame": 240},
}
BSN_VIDEOS = (
    "video,numFrame,seconds,fps,rfps,subset,featureFrame\n"
    "v_a,600,20.0,30.0,30.01,training,592\nv_b,250,10.0,25.0,25.0,testing,240\n"
)


@pytest.mark.parametrize("beside", [True, False])
def test_bsns_subsets_are_in_its_list_of_videos(beside: bool, tmp_path: Path, run: Run) -> None:
    src = save(tmp_path / "anet_anno_action.json", BSN)
    info = save(tmp_path / ("video_info_new.csv" if beside else "elsewhere/list.csv"), BSN_VIDEOS)
    named = () if beside else ("--video-info", info)
    assert recognise(tmp_path) == recognise(src) == "bsn"
    run("annotations", "convert", src, tmp_path / "out.json", *named)
    read = read_annotations(tmp_path / "out.json")
    assert read.subsets() == {"training": 1, "testing": 1}
    assert [video.clock for video in read.videos.values()] == [Clock(20.0, 600, 30.01), Clock(10.0, 250, 25.0)]
    assert rows(read) == {"v_a": [(6.19, 17.73, "Ballet")], "v_b": []}
    assert "subset testing: without ground truth" in run("annotations", "check", src, *named, status=1)


def test_bsn_without_subsets_says_where_they_are_looked_for(tmp_path: Path, failing: Run) -> None:
    src = save(tmp_path / "anet_anno_action.json", BSN)
    convert = ("annotations", "convert", src, tmp_path / "out.json")
    said = failing(*convert)
    assert "anet_anno_action.json: no subset of video v_a (and of 1 more)" in said
    assert "name the list of these videos, such as video_info_new.csv, with --video-info" in said
    save(tmp_path / "video_info_new.csv", BSN_VIDEOS.rpartition("v_b")[0])
    for action in (convert, ("annotations", "check", src)):
        said = failing(*action)
        assert "video_info_new.csv: no subset of video v_b; " in said
        assert "missing: 'v_b'; there: 'v_a'; name the list of these videos" in said
    save(tmp_path / "video_info_new.csv", "video,numFrame,seconds\nv_a,600,20\nv_b,250,10\n")
    assert "there: nothing; name the list of these videos, such as video_info_new.csv" in failing(*convert)


def test_lists_of_videos_are_read_under_the_names_that_projects_use(tmp_path: Path) -> None:
    bsn = save(tmp_path / "video_info_new.csv", BSN_VIDEOS)
    assert read_clocks(bsn) == {"v_a": Clock(20.0, 600, 30.01), "v_b": Clock(10.0, 250, 25.0)}
    assert read_subsets(bsn) == {"v_a": "training", "v_b": "testing"}
    afsd = save(tmp_path / "val_video_info.csv", "video,fps,sample_fps,count,sample_count\nv,30.0,10.0,900,300\n")
    assert read_clocks(afsd) == {"v": Clock(30.0, 900, 30.0)}
    charades = save(tmp_path / "Charades_v1_test.csv", "id,subject,actions,length\nYSE4H,X,,30.5\n")
    assert read_clocks(charades) == {"YSE4H": Clock(30.5)}
    assert read_clocks(save(tmp_path / "gt.csv", GROUNDTRUTH))["video_test_0000324"] == Clock(149.0, 4470, 30.0)
    twice = save(tmp_path / "twice.csv", "video,seconds\nv,3\nv,4\n")
    with pytest.raises(ValueError, match=r"twice.csv:3: video v is also in an earlier row, with other values"):
        read_clocks(twice)
    with pytest.raises(ValueError, match=r"duration True is not a positive number"):
        read_clocks(save(tmp_path / "bad.json", {"v": {"duration": True}}))


GTAD = (
    "video,type,type_idx,start,end,startFrame,endFrame\n"
    "video_test_0000324,BaseballPitch,7,49.2,53.5,1476,1605\nvideo_test_0000278,Ambiguous,0,0.0,1.4,0,42\n"
    "video_test_0000324,CliffDiving,22,1.0,2.0,30,60\n"
)
GROUNDTRUTH = (
    "video-name,t-init,t-end,f-init,f-end,video-duration,frame-rate,video-frames,label-idx\n"
    "video_test_0000324,49.2,53.5,1476,1605,149.0,30.0,4470,0\n"
    "video_test_0000278,0.0,1.4,0,42,215.166667,30.0,6455,-1\n"
    "video_test_0000324,1.0,2.0,30,60,149.0,30.0,4470,4\n"
)


@pytest.mark.parametrize("separator", [",", " ", "\t"])
def test_gtads_two_tables_hold_the_same(separator: str, tmp_path: Path, run: Run) -> None:
    table = save(tmp_path / "test_Annotation.csv", GTAD)
    timed = save(tmp_path / "thumos14_test_groundtruth.csv", GROUNDTRUTH.replace(",", separator))
    assert (recognise(table), recognise(timed)) == ("gtad", "thumos14-groundtruth")
    run("annotations", "convert", table, tmp_path / "a.json", "--video-info", timed)
    run("annotations", "convert", timed, tmp_path / "b.json")
    assert json.loads((tmp_path / "a.json").read_text())["database"]["video_test_0000324"]["duration"] == 149.0
    both = [read_annotations(tmp_path / name, ignore=()) for name in ("a.json", "b.json")]
    assert rows(both[0]) == rows(both[1])
    assert rows(both[0]) == {
        "video_test_0000324": [(1, 2, "CliffDiving"), (49.2, 53.5, "BaseballPitch")],
        "video_test_0000278": [(0, 1.4, "Ambiguous")],
    }
    assert both[1].subsets() == {"validation": 2}
    assert both[1].videos["video_test_0000278"].clock == Clock(215.166667, 6455, 30.0)


def test_gtads_table_of_other_videos_has_its_subset_in_its_name(tmp_path: Path, failing: Run) -> None:
    text = "video,type,start,end\nP01,wash,1,2\n"
    assert check_annotations(save(tmp_path / "val_Annotation_ours.csv", text)).subsets == {"validation": 1}
    assert check_annotations(tmp_path).subsets == {"validation": 1}
    save(tmp_path / "val_Annotation.csv", text)
    assert "hold the same videos; name one of them" in failing("annotations", "convert", tmp_path, tmp_path / "o")


@pytest.mark.parametrize(
    ("name", "content", "looks"),
    [
        ("a.json", {"results": {}, "version": "1"}, "a JSON object with keys results, version;"),
        (
            "a.json",
            {"videos": 3, "fps": 2},
            "a JSON object with keys videos, fps; the nearest format is ego4d-mq, without",
        ),
        (
            "a.json",
            {"x": {"subset": "t", "duration": 3}},
            "the first with keys subset, duration; the nearest format is mult",
        ),
        ("a.json", {"x": {"subset": "t", "duration": 3}}, "without actions"),
        ("a.json", {}, "a JSON object without keys;"),
        ("a.json", [{"video": "a", "start": 1}], "a JSON list of 1 objects, the first with keys video, start;"),
        ("a.json", "text", "a JSON string;"),
        ("a.json", 3, "JSON's 3;"),
        ("a.json", None, "JSON's null;"),
        (
            "a.csv",
            "id,start,end,label\n",
            "a CSV file with columns id, start, end, label; the nearest format is csv, without",
        ),
        ("a.csv", "id,start,end,label\n", "without video;"),
        ("a.csv", "\n", "a file of empty lines;"),
        ("a.csv", "", "empty: it has no bytes"),
        ("a.csv", "name,begin\n", "a CSV file with columns name, begin; the nearest format is csv, without"),
        ("a.txt", "hello\n", 'a text with lines such as "hello"; the nearest format is thumos14'),
        ("a.json", [["a", 1, 2]], "a JSON list of 1 values; the nearest format is native, without"),
        ("a.json", {"results": {"a": []}}, "these are detections, which `bitad evaluate` reads;"),
        ("a.jsonl", "{}\n{}\n", "a JSON text; write it, or name it, as .json, .csv or .txt;"),
        ("a.dat", "x", "a text; write it, or name it, as .json, .csv or .txt;"),
        (
            "a.txt",
            "vid 1.5 2.5\n",
            'a text with lines such as "vid 1.5 2.5"; the nearest format is thumos14, THUMOS14',
        ),
        ("a.txt", '{"database": {}}', "a JSON text; write it, or name it, as .json"),
        ("a.txt", "\x89HDF\r\n\x1a\n", "an HDF5 file"),
        ("a.mat", "MATLAB 5.0 MAT-file", "a MATLAB file"),
        ("a.pkl", "\x80\x04\x95", "write it, or name it, as .json, .csv or .txt;"),
        ("sub/a.bin", "x", "a folder with a.bin;"),
        (
            "sub/gt.json",
            {"database": {}},
            "a folder with gt.json; gt.json in it is of format native: name that file",
        ),
    ],
)
def test_what_no_reader_reads_is_described(
    name: str, content: Any, looks: str, tmp_path: Path, failing: Run
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    binary = isinstance(content, str) and path.suffix != ".json"
    path.write_bytes(content.encode("latin1") if binary else json.dumps(content).encode())
    src = path.parent if name.startswith("sub") else path
    for action in (("check", src), ("convert", src, tmp_path / "out.json")):
        said = failing("annotations", *action)
        assert f"{src}: unknown annotation format: it is " in said
        assert looks in said


def test_the_wrong_form_says_which_is_right(tmp_path: Path, failing: Run) -> None:
    native = save(tmp_path / "a.json", database(duration=3, annotations=[]))
    convert = ("annotations", "convert")
    said = failing(*convert, native, tmp_path / "out.json", "--from", "ego4d-mq")
    assert 'no list "videos" of objects in it: it is a JSON object with keys database' in said
    assert said.endswith("; it is of format native\n")
    table = save(tmp_path / "a.csv", GTAD)
    assert failing(*convert, table, tmp_path / "out.json", "--from", "hacs").endswith("; it is of format gtad\n")
    assert "it has video, type, type_idx" in failing(
        *convert, save(tmp_path / "train.csv", GTAD), tmp_path / "out.json", "--from", "charades"
    )
    other = save(tmp_path / "b.json", {"x": 3})
    assert "it is a JSON object with keys x" in failing(*convert, other, tmp_path / "out.json", "--from", "hacs")
    assert "`bitad annotations convert` makes one of other formats" in failing(
        "evaluate",
        "--ground-truth",
        save(tmp_path / "m.json", MULTILABEL),
        "--detections",
        native,
        "--subset",
        "t",
    )


def test_a_conversion_without_a_video_says_so(tmp_path: Path, run: Run, failing: Run) -> None:
    out = tmp_path / "out.json"
    src = save(tmp_path / "a.json", database(annotations=[{"segment": [1, 2], "label": "x"}]))
    said = run("annotations", "convert", src, out, "--missing", "drop")
    assert "subsets: none\nno video is left: the file written holds no ground truth\n" in said
    assert "no videos in it" in failing(
        "annotations", "convert", save(src, {"database": {}}), tmp_path / "no.json"
    )
    assert not (tmp_path / "no.json").exists()


def test_what_a_list_of_videos_lacks_is_told_by_the_names_of_both(
    tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    video = {"subset": "test", "annotations": [{"segment": [1, 2], "label": "x"}]}
    src = save(tmp_path / "a.json", {"database": {"a.mp4": video, "b": video}})
    info = save(tmp_path / "info.json", {"v_a": {"duration": 5}, "c": {"duration": 5}, "d": {"duration": 5}})
    sides = "info.json does not list its duration; missing: 'b'; there: 'c', 'd'"
    convert = ["annotations", "convert", str(src), str(tmp_path / "out.json"), "--video-info", str(info)]
    assert main(convert) == 1
    assert sides in capsys.readouterr().err
    assert sides in run("annotations", "check", src, "--video-info", info)
    save(info, {"v_a": {"duration": 5}})
    assert main(convert) == 1
    assert "missing: 'b'; there: 'v_a'" in capsys.readouterr().err


def test_a_form_is_recognised_though_its_first_video_lacks_something(tmp_path: Path, failing: Run) -> None:
    src = save(tmp_path / "m.json", {"v": {"subset": "t", "duration": 3, "actions": None}, **MULTILABEL})
    assert recognise(src) == "multilabel"
    assert "video v: annotations 'actions None' are not a list" in failing(
        "annotations", "convert", src, tmp_path / "out.json"
    )
    assert recognise(save(tmp_path / "anet_anno_action.json", {"v": {}, **BSN})) == "bsn"


def test_a_list_may_number_the_classes_that_a_file_names(tmp_path: Path, run: Run) -> None:
    video = {"subset": "t", "duration": 9, "actions": [["Walk", 1, 2], ["Run", 2, 3]]}
    src = save(tmp_path / "m.json", {"v": video})
    classes = save(tmp_path / "classes.txt", "1 Walk\n2 Run\n3 Sit\n")
    out = tmp_path / "out.txt"
    run("annotations", "convert", src, tmp_path / "out.json", "--classes", classes, "--class-list", out)
    assert out.read_text() == "Walk\nRun\nSit\n"
    assert "of 3 classes" in run("annotations", "check", src, "--classes", classes)


def test_a_video_without_a_duration_is_said_not_to_be_reversed(tmp_path: Path, run: Run, failing: Run) -> None:
    save(tmp_path / "t" / "Diving_test.txt", "video_test_1 1 2\n")
    src = save(tmp_path / "t" / "Ambiguous_test.txt", "video_test_2 1 2\n").parent
    info = save(tmp_path / "info.json", {"video_test_1": {"duration": 9, "fps": 30}})
    said = run("annotations", "convert", src, tmp_path / "out", "--both-directions", "--video-info", info)
    assert "forward annotations, as they have no duration: 'video_test_2'" in said
    out = tmp_path / "out.json"
    convert = ("annotations", "convert", src, out, "--to", "actionformer", "--video-info", info)
    assert "leave it out with --missing drop" in failing(*convert)
    run(*convert, "--missing", "drop")
    assert read_annotations(out).subsets() == {"validation": 1}


@pytest.mark.parametrize("empty", [None, [], "", ["", None], [None, None]])
def test_an_empty_segment_in_frames_is_not_stated(empty: Any, tmp_path: Path, run: Run) -> None:
    rows_stated = [{"segment": [1, 2], "segment(frames)": empty, "label": "x"}, {"segment": [5, 6], "label": "x"}]
    src = save(tmp_path / "a.json", database(duration=10, annotations=rows_stated))
    assert run("annotations", "check", src).endswith("0 defects\n")
    run("annotations", "convert", src, tmp_path / "out.json")
    run("reverse", src, tmp_path / "reversed.json")
    assert rows(read_annotations(tmp_path / "reversed.json")) == {"a": [(4, 5, "x"), (8, 9, "x")]}


@pytest.mark.parametrize("label", ["", " "])
def test_an_empty_label_is_no_class(label: str, tmp_path: Path, run: Run, failing: Run) -> None:
    src = save(tmp_path / "a.json", database(duration=10, annotations=[{"segment": [1, 2], "label": label}]))
    says = f"label {label!r} is not a name"
    assert says in run("annotations", "check", src, status=1)
    assert says in failing("annotations", "convert", src, tmp_path / "out.json")


def test_a_list_of_videos_without_names_says_which_columns_may_hold_them(tmp_path: Path, failing: Run) -> None:
    src = save(tmp_path / "a.json", database(annotations=[]))
    info = save(tmp_path / "info.csv", "file,duration\na,3\n")
    said = failing("annotations", "convert", src, tmp_path / "out.json", "--video-info", info)
    assert "no column 'video_id'; it needs video_id" in said
    assert "it has file, duration" in said


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        ("A\nB\n", "its class numbers are 1 to 3, and {} names 2; name the list"),
        ("1 A\n2 B\n", "its class numbers are 1 to 3, and {} names 2; name the list"),
        ("1 A\n1 B\n3 C\n", "{}: a number has two class names in it"),
        ("1 A\n2 A\n3 C\n", "{}: a number has two class names in it, or a class name two numbers"),
    ],
)
def test_a_list_that_cannot_name_the_numbers_says_why(
    classes: str, says: str, tmp_path: Path, failing: Run
) -> None:
    video = {"subset": "t", "duration": 9, "actions": [[1, 1, 2], [3, 2, 3]]}
    src, named = save(tmp_path / "m.json", {"v": video}), save(tmp_path / "classes.txt", classes)
    assert says.format(named) in failing("annotations", "convert", src, tmp_path / "out.json", "--classes", named)


@pytest.mark.parametrize("form", list(FORMATS))
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", None),
        ("a.json", {"v": {"subset": "training", "duration": 3, "actions": 3}}),
        ("a.json", {"v": {"subset": "training", "file": "v.mp4"}}),
        ("a.csv", "video-name,t-init,t-end\nvideo_test_1,1,2\n"),
        ("a.txt", "video_test_1 1\n"),
    ],
)
def test_a_file_named_as_of_a_form_that_it_has_not_is_refused_with_the_cause(
    form: str, name: str, content: Any, tmp_path: Path, failing: Run
) -> None:
    src = save(tmp_path / name, content)
    said = failing("annotations", "convert", src, tmp_path / "out.json", "--from", form)
    assert str(src) in said
    assert "--debug" not in said  # as of an error that nobody foresaw


def test_a_folder_in_the_place_of_the_output_is_named(tmp_path: Path, failing: Run) -> None:
    src = save(tmp_path / "a.json", database(duration=3, annotations=[{"segment": [1, 2], "label": "x"}]))
    folder, file = tmp_path / "folder", tmp_path / "out.json"
    folder.mkdir()
    says = f"{folder}: it is a folder; give the name of a file"
    assert says in failing("annotations", "convert", src, folder)
    assert says in failing("annotations", "convert", src, file, "--class-list", folder)
    assert says in failing("reverse", src, folder)
    assert f"{src} is not a folder" in failing("annotations", "convert", src, src, "--both-directions")
    assert "is also DST; name another file" in failing("annotations", "convert", src, file, "--class-list", file)
    assert not file.exists()


def test_annotations_that_are_not_json_are_not_reversed_as_a_video(tmp_path: Path, run: Run, failing: Run) -> None:
    table = save(tmp_path / "a.csv", GTAD)
    assert f"`bitad annotations convert {table} FILE.json`" in failing("reverse", table, tmp_path / "out.csv")
    src = save(tmp_path / "A.JSON", database(duration=3, annotations=[{"segment": [1, 2.5], "label": "x"}]))
    run("reverse", src, tmp_path / "out.json")
    assert rows(read_annotations(tmp_path / "out.json")) == {"a": [(0.5, 2, "x")]}


def test_a_list_may_lack_the_durations_of_videos_that_are_not_asked_for(
    tmp_path: Path, run: Run, failing: Run
) -> None:
    src = save(tmp_path / "a.json", database(annotations=[{"segment": [1, 2], "label": "x"}]))
    convert = ("annotations", "convert", src, tmp_path / "out.json", "--video-info")
    timed, untimed = {"subset": "t", "duration": 5}, {"subset": "t", "duration": None}
    run(*convert, save(tmp_path / "info.json", {"database": {"a": timed, "b": untimed, "c": {}}}))
    assert read_annotations(tmp_path / "out.json").videos["a"].duration_s == 5
    said = failing(*convert, save(tmp_path / "other.json", {"database": {"a": untimed, "b": timed}}))
    assert "other.json lists none of the videos: missing: 'a'; there: 'b'" in said
    said = failing(*convert, save(tmp_path / "none.json", {"database": {"a": untimed}}))
    assert "video a: neither its duration nor its frames and fps are stated" in said
