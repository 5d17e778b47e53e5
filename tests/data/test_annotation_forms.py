"""Annotation files of other projects and data sets, from small samples written by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitad.cli import main
from bitad.data.annotations import AnnotatedVideo
from bitad.data.check import check_annotations
from bitad.data.formats.annotations import FORMATS, AnnotationFormat, read_annotation_files, recognise
from bitad.data.formats.parsing import (
    ParsedAnnotations,
    ParsedVideos,
    ReadOptions,
    Row,
    read_table,
    seconds,
)

SHARED = Path(__file__).resolve().parents[2] / "../shared"
THUMOS = SHARED / "data/thumos14"


def save(folder: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


def rows(video: AnnotatedVideo) -> list[tuple[float, float, str]]:
    return [(a, b, label) for (a, b), label in zip(video.segments.tolist(), video.labels, strict=True)]


def timed(video: AnnotatedVideo) -> tuple[str, float, int | None, float | None]:
    return video.subset, video.duration_s, video.frames, video.fps


def read_form(src: Path, form: str | None = None) -> tuple[str, ParsedAnnotations]:
    """Read a source in which everything can be read."""
    source = read_annotation_files(src, form)
    assert source.annotations is not None
    return source.format, source


def read(src: Path, form: str) -> ParsedAnnotations:
    """Read a source whose form must also be recognised."""
    assert recognise(src) == form
    name, source = read_form(src)
    assert name == form
    assert [video.name for video in source.annotations.videos.values()] == list(source.annotations.videos)
    return source


NATIVE = {
    "version": "VERSION 1.3",
    "database": {
        "a": {"subset": "training", "duration": 9.5, "annotations": [{"segment": [1, 2.5], "label": "run"}]},
        "b": {"subset": "testing", "duration": 4, "frame": 100, "annotations": []},
    },
}

THUMOS_FILES = {
    "annotations_val/Dive_val.txt": "video_validation_0000002  3.0 4.5\nvideo_validation_0000001  1.0 2.0\n\n",
    "annotations_val/Ambiguous_val.txt": "video_validation_0000001  0.5 0.9\n",
    "annotations_test/Cliff_test.txt": "video_test_0000009 1.5 2.5\r\n",
    "annotations_test/Ambiguous_test.txt": "video_test_0000010 1.5 2.5",
    "annotations_test/readme.txt": "THUMOS CHALLENGE 2014\n",
}
MULTITHUMOS_FILES = {
    "README": "about\n",
    "class_list.txt": "1 Walk\n2 Sit\n3 Unseen\n",
    "annotations/Sit.txt": "video_validation_0000001 2.0 3.0\nvideo_test_0000009 0.0 1.0\n",
    "annotations/Walk.txt": "video_validation_0000001 0.0 2.5\n",
}
CHARADES_HEADER = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length\n"
CHARADES_FILES = {
    "Charades_v1_train.csv": CHARADES_HEADER
    + '46GP8,HR43,Kitchen,6,7,Yes,"A person, cooking.",food,"d;e",c092 11.90 21.20;c147 0.00 12.60,24.83\n',
    "Charades_v1_test.csv": CHARADES_HEADER + "YSE4H,X,Bathroom,6,7,Yes,s,o,d,,30.5\n",
}
EPIC_HEADER = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,"
    "stop_frame,narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes\n"
)
EPIC_FILES = {
    "EPIC_100_train.csv": EPIC_HEADER
    + "P01_01_0,P01,P01_01,00:00:01.089,00:00:00.14,00:00:03.37,8,202,open door,open,3,door,3,['door'],[3]\n"
    + "P01_01_1,P01,P01_01,00:00:02.629,00:01:04.37,01:00:06.17,262,370,turn on light,turn-on,6,light,114,[],[]\n",
    "EPIC_100_validation.csv": EPIC_HEADER
    + "P01_11_0,P01,P01_11,00:00:00.560,00:00:00.00,00:00:01.89,1,113,take plate,take,0,plate,2,['plate'],[2]\n",
    "EPIC_100_test_timestamps.csv": (
        "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame\n"
        "P01_101_0,P01,P01_101,00:00:02.851,00:00:02.86,00:00:03.87,143,193\n"
    ),
    "EPIC_100_video_info.csv": "video_id,duration,fps,resolution\nP01_01,1652.15,59.94,1920x1080\n"
    "P01_11,600.5,59.94,1920x1080\nP01_101,62.5,50,1920x1080\n",
}
MMACTION2_FILES = {
    "anet_anno_train.json": {
        "v_a": {
            "duration_second": 20.02,
            "duration_frame": 600,
            "annotations": [{"segment": [3.5, 12.25], "label": "Mowing"}],
            "feature_frame": 592,
            "fps": 30.0,
            "rfps": 29.97002997,
        }
    },
    "anet_anno_val.json": {
        "v_b": {"duration_second": 10, "duration_frame": 300, "annotations": [], "feature_frame": 300, "fps": 30.0}
    },
}


def ego4d(split: str, clip: str, labels: list[dict[str, Any]] | None) -> dict[str, Any]:
    stated: dict[str, Any] = {
        "clip_uid": clip,
        "video_start_sec": 480.02,
        "video_end_sec": 960.02,
        "video_start_frame": 14400,
        "video_end_frame": 28800,
    }
    if labels is not None:
        stated["annotations"] = [{"annotator_uid": "x", "labels": labels}, {"annotator_uid": "y", "labels": []}]
    return {"version": "1", "date": "d", "videos": [{"video_uid": "u", "split": split, "clips": [stated]}]}


EGO4D_FILES = {
    "moments_train.json": ego4d(
        "train",
        "c1",
        [
            {"primary": True, "label": "wash", "video_start_time": 490.12, "video_end_time": 500.02},
            {"primary": False, "label": "stand", "video_start_time": 490.12, "video_end_time": 500.02},
        ],
    ),
    "moments_val.json": ego4d("val", "c2", []),
    "moments_test_unannotated.json": ego4d("test", "c3", None),
}


def test_native_form_is_recognised_and_what_is_left_out_is_said(tmp_path: Path) -> None:
    database = {**NATIVE["database"], "c": {"subset": "test", "duration": "92.166667", "url": "https://x"}}
    source = read(save(tmp_path, {"any.json": {"database": database, "taxonomy": []}}) / "any.json", "native")
    videos = source.annotations.videos
    assert [timed(video) for video in videos.values()] == [
        ("training", 9.5, None, None),
        ("testing", 4.0, 100, None),
        ("test", 92.166667, None, None),
    ]
    assert rows(videos["a"]) == [(1, 2.5, "run")]
    assert source.notes == (
        "1 videos of the file have no list of annotations",
        "left out, as the native format lacks them: url",
    )
    for form in ("activitynet", "hacs", "fineaction"):
        assert read_form(tmp_path / "any.json", form)[1].notes == source.notes


def test_actionformers_form_is_recognised(tmp_path: Path) -> None:
    row = {"label": "run", "segment": [1.0, 2.0], "segment(frames)": [30.0, 60.0], "label_id": 0}
    video = {"subset": "Test", "duration": 9.5, "fps": 30.0, "annotations": [row]}
    source = read(
        save(tmp_path, {"t.json": {"version": "x", "database": {"a": video}}}) / "t.json", "actionformer"
    )
    assert timed(source.annotations.videos["a"]) == ("Test", 9.5, None, 30.0)
    assert source.notes == ()


def test_thumos14_keeps_ambiguous_apart(tmp_path: Path) -> None:
    annotations = read(save(tmp_path, THUMOS_FILES), "thumos14").annotations
    assert annotations.classes == ("Cliff", "Dive")
    assert annotations.subsets() == {"training": 2, "validation": 2}
    assert list(annotations.videos) == [
        "video_validation_0000001",
        "video_validation_0000002",
        "video_test_0000009",
        "video_test_0000010",
    ]
    assert rows(annotations.videos["video_validation_0000001"]) == [(0.5, 0.9, "Ambiguous"), (1, 2, "Dive")]
    assert rows(annotations.only_classes().videos["video_test_0000010"]) == []
    assert annotations.videos["video_test_0000009"].duration_s == float("inf")


def test_multithumos_takes_subsets_from_names_and_classes_from_the_list(tmp_path: Path) -> None:
    annotations = read(save(tmp_path, MULTITHUMOS_FILES), "multithumos").annotations
    assert annotations.classes == ("Walk", "Sit", "Unseen")
    assert annotations.subsets() == {"training": 1, "validation": 1}
    assert rows(annotations.videos["video_validation_0000001"]) == [(0, 2.5, "Walk"), (2, 3, "Sit")]
    assert read(tmp_path / "annotations", "multithumos").annotations.classes == ("Sit", "Walk")


def test_charades_names_classes_where_it_can(tmp_path: Path) -> None:
    source = read(save(tmp_path, CHARADES_FILES), "charades")
    videos = source.annotations.videos
    assert rows(videos["46GP8"]) == [(0, 12.6, "c147"), (11.9, 21.2, "c092")]
    assert [timed(video)[:2] for video in videos.values()] == [("testing", 30.5), ("training", 24.83)]
    assert "called by their numbers" in source.notes[0]
    save(tmp_path, {"Charades_v1_classes.txt": "c000 Hold clothes\nc092 Watch a cat\nc147 Sit\n"})
    source = read(tmp_path / "Charades_v1_train.csv", "charades")
    assert source.annotations.classes == ("Hold clothes", "Watch a cat", "Sit")
    assert source.annotations.videos["46GP8"].labels == ("Sit", "Watch a cat")


@pytest.mark.parametrize(("part", "labels"), [("verb", ("id_003", "id_006")), ("noun", ("id_003", "id_114"))])
def test_epic_kitchens_has_two_forms(tmp_path: Path, part: str, labels: tuple[str, str]) -> None:
    save(tmp_path, EPIC_FILES)
    with pytest.raises(
        ValueError, match="its format may be epic-kitchens-verb or epic-kitchens-noun; name one with --from"
    ):
        recognise(tmp_path)
    _, source = read_form(tmp_path, f"epic-kitchens-{part}")
    videos = source.annotations.videos
    assert rows(videos["P01_01"]) == [(0.14, 3.37, labels[0]), (64.37, 3606.17, labels[1])]
    assert timed(videos["P01_01"]) == ("train", 1652.15, None, 59.94)
    assert (timed(videos["P01_101"])[:2], rows(videos["P01_101"])) == (("test", 62.5), [])
    assert f"1 segments of the test set have no {part} and are left out" in source.notes


def test_epic_kitchens_classes_are_named_by_their_list(tmp_path: Path) -> None:
    names = "id,key,instances,category\n" + "".join(f"{i},verb{i},\"['x', 'y']\",c\n" for i in range(7))
    save(tmp_path, {**EPIC_FILES, "EPIC_100_verb_classes.csv": names})
    annotations = read_form(tmp_path / "EPIC_100_train.csv", "epic-kitchens-verb")[1].annotations
    assert annotations.classes == tuple(f"verb{i}" for i in range(7))
    assert annotations.videos["P01_01"].labels == ("verb3", "verb6")


def test_mmaction2_takes_subsets_from_file_names(tmp_path: Path) -> None:
    videos = read(save(tmp_path, MMACTION2_FILES), "mmaction2").annotations.videos
    assert timed(videos["v_a"]) == ("training", 20.02, 600, 29.97002997)
    assert videos["v_a"].labels == ("Mowing",)
    assert timed(videos["v_b"]) == ("validation", 10.0, 300, 30.0)


def test_ego4d_takes_primary_labels_of_clips(tmp_path: Path) -> None:
    source = read(save(tmp_path, EGO4D_FILES), "ego4d-mq")
    videos = source.annotations.videos
    assert {name: (timed(video), rows(video)) for name, video in videos.items()} == {
        "c1": (("train", 480.0, 14400, None), [(10.1, 20.0, "wash")]),
        "c2": (("val", 480.0, 14400, None), []),
        "c3": (("test", 480.0, 14400, None), []),
    }
    assert source.notes == ("1 labels that are not primary are left out",)


@pytest.mark.parametrize(
    ("files", "form", "message"),
    [
        (
            {"A_val.txt": "video_validation_1 1.0 2.0\nvideo_validation_1 1.0\n"},
            "thumos14",
            r"A_val.txt:2: 'video_v",
        ),
        ({"A_val.txt": "video_validation_1 1.0 x\n"}, "thumos14", r"A_val.txt:1: 'x' is not a number of seconds"),
        (
            {"A_val.txt": "video_validation_1 1.0 nan\n"},
            "thumos14",
            r"A_val.txt:1: 'nan' is not a number of seconds",
        ),
        (
            {"A_val.txt": "v 1 2\n", "A_test.txt": "v 1 2\n"},
            "thumos14",
            "A_val.txt:1: video v is in subset 'valid",
        ),
        (
            {"x/A_val.txt": "v 1 2\n", "y/A_val.txt": "v 1 2\n"},
            "thumos14",
            "A_val.txt: its name should be CLASS_val.txt or",
        ),
        ({"A.txt": "v 1 2\n"}, "multithumos", "A.txt: video v: its name should begin with video_validation_ or"),
        ({"A.txt": "v 1 2\n"}, "thumos14", r"no \*_val.txt, \*_test.txt there"),
        ({"Charades_v1_train.csv": "id,length\nx,3\n"}, "charades", "Charades_v1_train.csv: no column 'actions'"),
        ({"Charades_v1_train.csv": "id,actions,length\nx,c1 2,3\n"}, "charades", r"csv:2: action 'c1 2' is not"),
        (
            {"Charades_v1_train.csv": "id,actions,length\nx,,0\n"},
            "charades",
            r"csv:2: video x: length '0' is not a positive",
        ),
        (
            {"Charades_v1_train.csv": "id,actions,length\nx,,3\nx,,3\n"},
            "charades",
            r"csv:3: video 'x' occurs twice",
        ),
        (
            {"EPIC_100_train.csv": EPIC_HEADER + "a,b,c,d,0:3,e,f,g,h,i,1,k,2,m,n\n"},
            "epic-kitchens-noun",
            "'0:3' is not",
        ),
        (
            {"EPIC_100_train.csv": EPIC_HEADER + "a,b,c,d,0:0:1,0:0:2,f\n"},
            "epic-kitchens-noun",
            "'' is not the number",
        ),
        (
            {"anet_anno_val.json": {"a": {"duration_second": "x", "annotations": []}}},
            "mmaction2",
            "video a: duration 'x' is not a positive",
        ),
        ({"anet_anno_val.json": {"a": 3}}, "mmaction2", "anet_anno_val.json: not videos by name"),
        (
            {"moments_val.json": {"videos": [{"clips": [{"clip_uid": "c"}]}]}},
            "ego4d-mq",
            '"video_start_sec" is missing',
        ),
        ({"moments_val.json": {"videos": [{"clips": 3}]}}, "ego4d-mq", 'no list "clips"'),
    ],
)
def test_what_is_malformed_is_told_with_its_place(
    tmp_path: Path, files: dict[str, Any], form: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_form(save(tmp_path, files), form)
    assert "\n" not in str(caught.value)


def test_unknown_forms_name_the_known_ones(tmp_path: Path) -> None:
    save(tmp_path, {"notes.txt": "nothing of the sort\n", "other.json": [1, 2]})
    for src in (tmp_path, tmp_path / "notes.txt", tmp_path / "other.json"):
        with pytest.raises(ValueError, match=r"unknown annotation format: .*native, actionformer, .*thumos14"):
            recognise(src)
    with pytest.raises(ValueError, match="there is no annotation format 'coco'; the formats are native"):
        read_form(tmp_path, "coco")
    with pytest.raises(ValueError, match="a folder; format native is one file"):
        read_form(tmp_path, "native")
    with pytest.raises(FileNotFoundError, match="no such file or folder of annotations"):
        read_form(tmp_path / "nowhere")


def test_help_lists_the_table_of_forms(capsys: pytest.CaptureFixture[str]) -> None:
    for action in ("check", "convert"):
        with pytest.raises(SystemExit):
            main(["annotations", action, "--help"])
        said = capsys.readouterr().out
        assert all(f"\n  {name} " in said and known.description in said for name, known in FORMATS.items())


def test_a_row_of_the_table_adds_a_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_daily(files: Sequence[Path], _: ReadOptions) -> ParsedAnnotations:
        videos = ParsedVideos()
        for path in files:
            for line, row in read_table(path, ("clip", "from", "to", "action")):
                where = f"{path.name}:{line}"
                video = videos.of(row["clip"], "training", where)
                with video.collecting():
                    video.rows.append(Row(seconds(row["from"], where), seconds(row["to"], where), row["action"]))
        return ParsedAnnotations(videos.ordered())

    daily = AnnotationFormat("daily.csv", read_daily, ("clip", "from", "to", "action"), patterns=("daily*.csv",))
    monkeypatch.setitem(FORMATS, "daily", daily)
    save(tmp_path, {"daily.csv": "clip,from,to,action\na,1.5,2.5,cook\na,0,1,wash\n"})
    for src in (tmp_path, tmp_path / "daily.csv"):
        assert rows(read(src, "daily").annotations.videos["a"]) == [(0, 1, "wash"), (1.5, 2.5, "cook")]
    save(tmp_path, {"daily2.csv": "clip,from,to,action\nb,0,x,cook\n"})
    with pytest.raises(ValueError, match=r"video b: daily2\.csv:2: 'x' is not a number of seconds"):
        read_form(tmp_path)


def test_the_table_of_forms_is_light() -> None:
    code = "import sys, bitad.data.formats.annotations; print('numpy' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def refused_in_a_line(path: Path, form: str | None) -> None:
    """Read and check a file that may be anything: only a ValueError that names the file may come of it.

    What can be read has no defect that says that it can't, and what can't has one.
    """
    reason = None
    try:
        read_form(path, form)
    except ValueError as error:
        reason = str(error)
    assert reason is None or str(path) in reason
    refused, defects = None, False
    try:
        defects = any(
            defect.kind == "unreadable"
            for found in check_annotations(path, format=form).defects.values()
            for defect in found
        )
    except ValueError as error:
        refused = str(error)
    assert str(path) in refused if refused is not None else (reason is not None) == defects


words = st.sampled_from(
    ["database", "videos", "clips", "annotations", "labels", "segment", "label", "duration", "subset", "a", "nan"]
) | st.sampled_from(
    [
        "duration_second",
        "duration_frame",
        "clip_uid",
        "video_start_sec",
        "video_end_sec",
        "primary",
        "fps",
        "actions",
    ]
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(words, children, max_size=5),
    max_leaves=25,
)
FIXED = [HealthCheck.function_scoped_fixture]


@settings(deadline=None, max_examples=60, suppress_health_check=FIXED)
@given(content=json_values, form=st.sampled_from(["native", "mmaction2", "bsn", "multilabel", "ego4d-mq", None]))
def test_any_json_is_read_or_refused_with_a_reason(tmp_path: Path, content: Any, form: str | None) -> None:
    (tmp_path / "train.json").write_text(json.dumps(content))
    refused_in_a_line(tmp_path / "train.json", form)


# Shapes that are nearly right: anything may stand where one value should.
video = st.fixed_dictionaries(
    {},
    optional={
        "subset": st.just("test") | json_values,
        "duration": st.floats() | json_values,
        "annotations": st.lists(
            st.fixed_dictionaries({"segment": st.lists(json_values, max_size=3), "label": json_values})
            | json_values,
            max_size=2,
        ),
        "actions": st.lists(st.lists(st.integers(-1, 3) | json_values, min_size=2, max_size=4), max_size=3),
        "duration_second": json_values,
        "clips": st.lists(st.dictionaries(words, json_values, max_size=4) | json_values, max_size=2),
    },
)
videos = st.dictionaries(st.sampled_from(["a", "b", ""]), video | json_values, max_size=2)


@settings(deadline=None, max_examples=80, suppress_health_check=FIXED)
@given(
    content=videos
    | st.fixed_dictionaries({"database": videos})
    | st.fixed_dictionaries({"videos": st.lists(video)}),
    form=st.sampled_from(["native", "mmaction2", "multilabel", "ego4d-mq", None]),
)
def test_what_is_nearly_a_form_is_read_or_refused_with_a_reason(
    tmp_path: Path, content: Any, form: str | None
) -> None:
    (tmp_path / "train.json").write_text(json.dumps(content))
    refused_in_a_line(tmp_path / "train.json", form)


HEADERS = {
    "charades": "id,actions,length",
    "epic-kitchens-verb": "video_id,start_timestamp,stop_timestamp,verb_class",
    "gtad": "video,type,start,end",
    "thumos14-groundtruth": "video-name,t-init,t-end,video-duration,label-idx",
    "thumos14": "",
}
cells = st.text(st.sampled_from("c0 1.:;,\"'\nx\t\0é"), max_size=12)


@settings(deadline=None, max_examples=60, suppress_health_check=FIXED)
@given(lines=st.lists(cells, max_size=4), form=st.sampled_from(list(HEADERS)))
def test_any_text_is_read_or_refused_with_a_reason(tmp_path: Path, lines: list[str], form: str) -> None:
    path = tmp_path / ("A_val.txt" if form == "thumos14" else "train.csv")
    path.write_text("\n".join([HEADERS[form], *lines]), encoding="utf-8")
    refused_in_a_line(path, form)


@pytest.mark.skipif(not THUMOS.is_dir(), reason="the reference data beside the checkout is missing")
def test_the_official_files_of_thumos14_hold_what_they_should() -> None:
    annotations = read(THUMOS / "official", "thumos14").annotations
    assert annotations.subsets() == {"training": 200, "validation": 213}
    lines = {
        subset: Counter(label for video in annotations.subset(subset).videos.values() for label in video.labels)
        for subset in annotations.subsets()
    }
    assert (lines["training"].total(), lines["training"]["Ambiguous"]) == (3096, 89)
    assert (lines["validation"].total(), lines["validation"]["Ambiguous"]) == (3457, 99)
    assert len(annotations.classes) == 20
    assert set(annotations.videos["video_test_0001292"].labels) == {"Ambiguous"}
