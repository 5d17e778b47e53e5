"""Detection files of other projects: each form reads the same detections, and what cannot be read says what it is."""

from __future__ import annotations

import csv
import json
import pickle
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitad.cli import main
from bitad.data.classes import read_class_numbers
from bitad.data.detections import read_detections
from bitad.data.formats.detections import FORMATS

CLASSES = ("jump", "run", "throw")
# video, start, end, class number, score
ROWS = [("v_a", 1.5, 4.0, 1, 0.9), ("v_b", 0.0, 2.25, 2, 0.5), ("v_a", 6.0, 7.0, 0, 0.25)]


def by_video(make: Callable[[tuple[Any, ...]], dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in ROWS:
        found.setdefault(row[0], []).append(make(row))
    return found


def named(row: tuple[Any, ...]) -> dict[str, Any]:
    return {"segment": [row[1], row[2]], "label": CLASSES[row[3]], "score": row[4]}


def numbered(row: tuple[Any, ...]) -> dict[str, Any]:
    return {"segment": [row[1], row[2]], "label": row[3], "score": row[4]}


def texts(row: tuple[Any, ...]) -> dict[str, Any]:
    return {"segment": [str(row[1]), str(row[2])], "label": CLASSES[row[3]], "score": str(row[4])}


COLUMNS = {
    name: [row[place] for row in ROWS]
    for place, name in enumerate(("video-id", "t-start", "t-end", "label", "score"))
}
RECORDS = [dict(zip(COLUMNS, row, strict=True)) for row in ROWS]


def table(names: str, label: Callable[[int], object] = lambda number: number) -> str:
    lines = [f"{video},{start},{end},{label(number)},{score}" for video, start, end, number, score in ROWS]
    return "\n".join([names, *lines]) + "\n"


# The form, and a file of it.
FILES: dict[str, list[Any]] = {
    "results": [
        {"results": by_video(named)},  # OpenTAD
        {"results": by_video(numbered)},
        {"results": by_video(texts), "version": "VERSION 1.3", "external_data": {"used": "true"}},
        {"results": by_video(named), "external_data": None, "challenge": "x", "time": 3.5},
        {"results": by_video(numbered), "external_data": {"classes": list(CLASSES)}},
        {"results": by_video(lambda row: {**named(row), "id": 7})},
    ],
    "ego4d-mq": [{"version": "1.0", "detect_results": by_video(named), "retrieve_results": {}}],
    "actionformer": [
        {"database": by_video(lambda row: {"segment": [row[1], row[2]], "label_id": row[3], "scores": row[4]})}
    ],
    "by-video": [by_video(named), by_video(numbered)],
    "columns": [COLUMNS, {name: dict(enumerate(column)) for name, column in COLUMNS.items()}],
    "records": [RECORDS],
    "csv": [
        table("video-id,t-start,t-end,label,score"),
        table("video_id,t_start,t_end,label,score", CLASSES.__getitem__),
        table("Video,Start,End,Class,Confidence", lambda number: f"{number}.0"),
        "\ufeff" + table("video-name,t-init,t-end,label-idx,score"),
    ],
    "thumos-kit": ["".join(f"{v} {s} {e} {c} {p}\n" for v, s, e, c, p in ROWS)],
}


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    return write(tmp_path / "classes.txt", "".join(f"{name}\n" for name in CLASSES))


def test_every_form_has_a_test() -> None:
    assert FILES.keys() == FORMATS.keys()


@pytest.mark.parametrize(
    ("form", "content"), [pytest.param(form, one, id=form) for form, files in FILES.items() for one in files]
)
def test_every_form_reads_the_same_detections(tmp_path: Path, classes: Path, form: str, content: Any) -> None:
    suffix = "json" if not isinstance(content, str) else "csv" if form == "csv" else "txt"
    found = read_detections(write(tmp_path / f"found.{suffix}", content), classes)
    assert found.classes == CLASSES
    read = zip(
        (found.videos[i] for i in found.video), *found.segments.T.tolist(), found.labels, found.scores, strict=True
    )
    assert sorted(read) == sorted(ROWS)
    assert found.scores.dtype == found.segments.dtype == np.float64


@pytest.mark.parametrize("content", [FILES["results"][0], FILES["csv"][1], FILES["by-video"][0]])
def test_a_file_with_names_needs_no_list_of_classes(tmp_path: Path, content: Any) -> None:
    assert read_detections(write(tmp_path / "found", content)).classes == CLASSES


# Classes by number


@pytest.mark.parametrize(
    "content",
    [
        "jump\nrun\nthrow\n",
        "0 jump\n1 run\n2 throw\n",
        "0,jump\n2,throw\n1,run\n",
        json.dumps(
            {
                "database": {
                    "x": {"annotations": [{"label": "run", "label_id": 1}, {"label": "throw", "label_id": 2}]},
                    "y": {"annotations": [{"label": "jump", "label_id": 0}, {"label": "run", "label_id": 1}]},
                }
            }
        ),
    ],
)
def test_lists_of_classes_number_them(tmp_path: Path, content: str) -> None:
    path = write(tmp_path / ("list.json" if content.startswith("{") else "list.txt"), content)
    assert read_class_numbers(path) == dict(enumerate(CLASSES))
    found = read_detections(write(tmp_path / "found.json", FILES["results"][1]), path)
    assert found.classes == CLASSES


def test_class_numbers_may_have_gaps(tmp_path: Path) -> None:
    names = write(tmp_path / "detclasslist.txt", "7 BaseballPitch\n9 BasketballDunk\n12 Billiards\n")
    found = read_detections(write(tmp_path / "res.txt", "video_test_0000004 0.2 1.1 9 0.5\n"), names)
    assert found.classes == ("BaseballPitch", "BasketballDunk", "Billiards")
    assert found.labels.tolist() == [1]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (FILES["results"][1], [], "label 1 is the number of a class; name the classes with --classes FILE"),
        (FILES["csv"][0], [], "label 1 is the number of a class; name the classes with --classes FILE"),
        ({"results": {"a": [{**named(ROWS[0]), "label": 3}]}}, ["list"], "class number 3 is not one of the 3 of"),
        (
            {"results": {"a": [{**named(ROWS[0]), "label": "walk"}]}},
            ["list"],
            "label walk is not among the classes",
        ),
        (
            {"results": {"a": [named(ROWS[0])]}},
            ["twice"],
            "a number has two class names in it, or a class name two numbers",
        ),
        ({"results": {"a": [named(ROWS[0])]}}, ["none.json"], "it names no class with a number"),
    ],
)
def test_a_class_that_no_list_names_is_an_error(
    tmp_path: Path, content: Any, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "list", "jump\nrun\nthrow\n")
    write(tmp_path / "twice", "1 jump\n2 run\n1 throw\n")
    write(tmp_path / "none.json", {"database": {"x": {"annotations": [{"label": "run"}]}}})
    found = write(tmp_path / "found", content)
    more = [f"--classes={tmp_path / option}" for option in options]
    assert main(["merge", str(found), str(found), "--out", str(tmp_path / "m.json"), *more]) == 1
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "m.json").exists()


def ground_truth(folder: Path) -> Path:
    videos = {
        video: {
            "subset": "test",
            "duration": 9,
            "annotations": [{"segment": r[1:3], "label": CLASSES[r[3]]} for r in ROWS if r[0] == video],
        }
        for video in ("v_a", "v_b")
    }
    return write(folder / "truth.json", {"database": videos})


def test_evaluate_reads_classes_by_number(
    tmp_path: Path, classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = write(tmp_path / "eval_results.csv", FILES["csv"][0])
    command = ["evaluate", "--ground-truth", str(ground_truth(tmp_path)), "--detections", str(found)]
    assert main([*command, "--subset", "test", "--classes", str(classes)]) == 0
    assert "eval_results.csv  100.00" in capsys.readouterr().out


# Proposals


def proposals() -> dict[str, list[dict[str, Any]]]:
    return by_video(lambda row: {"segment": [row[1], row[2]], "score": row[4]})


def test_proposals_are_of_one_class_and_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content in (
        {"version": "VERSION 1.3", "results": proposals(), "external_data": {}},
        "video-id,t-start,t-end,score\n" + "".join(f"{v},{s},{e},{p}\n" for v, s, e, _, p in ROWS),
    ):
        found = write(tmp_path / "proposals", content)
        out = tmp_path / "m.json"
        assert main(["merge", str(found), str(found), "--out", str(out), "--method", "mean"]) == 0
        assert "proposals without labels are read as detections of the class 'action'" in capsys.readouterr().err
        assert read_detections(out).classes == ("action",)
        assert sorted(read_detections(out).scores) == sorted(row[4] for row in ROWS)


def test_proposals_are_measured_whatever_the_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = write(tmp_path / "proposals.json", {"results": proposals()})
    command = ["evaluate", "--ground-truth", str(ground_truth(tmp_path)), "--detections", str(found)]
    assert main([*command, "--subset", "test", "--class-agnostic"]) == 0
    assert "proposals.json  100.00" in capsys.readouterr().out


@pytest.mark.parametrize("other", ["class", "action", "verb"])
def test_a_class_under_an_unknown_name_makes_no_proposal(tmp_path: Path, other: str) -> None:
    rows = by_video(lambda row: {"segment": [row[1], row[2]], "score": row[4], other: CLASSES[row[3]], "noun": 1})
    with pytest.raises(ValueError, match="has no label") as caught:
        read_detections(write(tmp_path / "found.json", {"results": rows}))
    assert ("EPIC-KITCHENS" in str(caught.value)) == (other == "verb")


# Pickles


def test_the_export_that_is_said_of_a_pickle_makes_a_file_that_is_read(
    tmp_path: Path, classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "of an ex'periment" / "eval_results.pkl"
    path.parent.mkdir()
    arrays: dict[str, Any] = {name: np.array(column) for name, column in COLUMNS.items()}
    arrays["video-id"] = COLUMNS["video-id"]
    arrays["score"] = arrays["score"].astype(np.float32)
    path.write_bytes(pickle.dumps(arrays))
    assert main(["merge", str(path), str(path), "--out", str(tmp_path / "m.json")]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "a Python pickle" in err
    command = shlex.split(err[err.index("python -c") :])
    subprocess.run([sys.executable, *command[1:]], cwd=tmp_path, check=True, timeout=60)
    found = read_detections(tmp_path / "eval_results.json", classes)
    assert found.classes == CLASSES
    np.testing.assert_allclose(found.scores, COLUMNS["score"])
    np.testing.assert_array_equal(found.segments[:, 0], COLUMNS["t-start"])


class _Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("harm.txt", "w"))


def test_a_pickle_is_never_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.pkl", "b.json", "c.csv"):
        Path(name).write_bytes(pickle.dumps(_Harm()))
        with pytest.raises(ValueError, match="pickle"):
            read_detections(name)
    assert not Path("harm.txt").exists()


# What cannot be read


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "x.csv",
            "tmin,tmax,tmin_score,tmax_score,score,match_iou,match_ioa\n0,1,1,1,1,1,1\n",
            "no column of the video, start, end in this file: it is a CSV file with columns tmin, tmax, tmin_score",
        ),
        ("x.csv", "xmin,xmax,xmin_score,xmax_score,score\n0,1,1,1,1\n", "no column of the video, start, end in"),
        ("x.csv", "action,start,end,tmin,tmax\n0,1,1,1,1\n", "no column of the video, score in this file"),
        ("x.csv", "f-end,f-init,score,video-frames,video-name\n9,1,1,99,a\n", "no column of the start, end in"),
        (
            "x.csv",
            "video,start_frame,end_frame,label,score\na,1,2,x,1\n",
            "no column of the start, end in this file",
        ),
        ("x.txt", "hello world\n", 'a text with lines such as "hello world"'),
        ("x.json", {"database": {"a": {"annotations": []}}}, 'no "results" object in this file'),
        ("x.json", {"results": [1, 2]}, "a JSON object with keys results"),
        ("x.json", {"a": {"b": 1}}, "a JSON object with keys a, the first with keys b"),
        ("x.json", [[1, 2]], "a JSON list of 1 values"),
        ("x.json", {}, "a JSON object without keys"),
        ("x.json", [], "a JSON list of 0 values"),
    ],
)
def test_what_cannot_be_read_says_what_it_is_and_the_nearest_form(
    tmp_path: Path, name: str, content: Any, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = write(tmp_path / name, content)
    assert main(["merge", str(found), str(found), "--out", str(tmp_path / "m.json")]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert says in err
    assert "the nearest format is" in err
    assert FORMATS["csv" if not name.endswith("json") else "results"].description in err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (table("video-id,t-start,t-end,label,score").replace("4.0", "x"), ":2: end 'x' is not a finite number"),
        (
            table("video-id,t-start,t-end,label,score").replace("2.25", "nan"),
            ":3: end 'nan' is not a finite number",
        ),
        (table("video-id,t-start,t-end,label,score").replace("6.0", "8.0"), ":4: segment [8.0, 7.0] ends before"),
        (table("video-id,t-start,t-end,label,score").replace("v_b", ""), ":3: video '' is not a name"),
        ("a 1 2 3 0.5\n\nb 1 2 3\n", ":3: 4 fields"),
        ("a 1 2 3 0.5\nb 5 2 3 0.5\n", ":2: segment [5.0, 2.0] ends before"),
        ({**COLUMNS, "score": [1.0]}, "its columns are of different lengths: video-id 3, t-start 3"),
        ({**COLUMNS, "score": "high"}, "column score is 'high'; it must be a list"),
        ({**COLUMNS, "label": [[1], 2, 3]}, "row 0: label [1] is not a class name or number"),
        ({**COLUMNS, "video-id": [1, 2, 3]}, "row 0: video 1 is not a name"),
        ([RECORDS[0], {"video-id": "a"}], "row 1: detection {'video-id': 'a'} has no t-start"),
        ([RECORDS[0], 7], "row 1: detection 7 has no video-id"),
        (
            {"results": {"a": [{"segment": [-1e308, 2], "label": "x", "score": 0.5}]}},
            "start -1e+308 is not a finite number",
        ),
        ({**COLUMNS, "score": [1.0, 2.0, 1e300]}, "row 2: score 1e+300 is not a finite number"),
        ("a 1 2 3 0.5\na 5 6 run 0.5\n", ":2: class 'run' is not a class number of the kit"),
        ("a 1 2 3 0.5\na 5 6 -3 0.5\n", ":2: class '-3' is not a class number of the kit"),
        (f"a 1 2 {'9' * 5000} 0.5\n", "9' is not a class number of the kit"),
        (
            table("video-id,t-start,t-end,label,score", lambda number: number - 1),
            "class number -1 is not one of the 3",
        ),
        (table("video-id,t-start,t-end,label,score", lambda _: "9" * 5000), "9 is not among the classes that"),
        ({**COLUMNS, "label": {"0": 1, "1": 2, "2": 0}}, "columns video-id and label have different rows"),
        ({"results": {"a": [{"segment": [1, 2], "label": "", "score": 0.5}]}}, "label '' is not a class name"),
    ],
)
def test_a_defect_of_a_table_is_named_with_its_place(
    tmp_path: Path, classes: Path, content: Any, says: str
) -> None:
    path = write(tmp_path / "found", content)
    with pytest.raises(ValueError) as caught:
        read_detections(path, classes)
    assert str(caught.value).startswith(str(path))
    assert says in str(caught.value)


def test_names_with_commas_and_quotes_are_read_from_tables(tmp_path: Path) -> None:
    path = tmp_path / "found.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("", *COLUMNS), (0, 'a, "b"', 1, 2, "run, jump", 0.5)])
    found = read_detections(path)
    assert (found.videos, found.classes) == (('a, "b"',), ("run, jump",))


def test_a_folder_is_no_detection_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name one file"):
        read_detections(tmp_path)


@pytest.mark.parametrize("delimiter", [";", "\t", " "])
def test_values_of_a_table_are_separated_as_its_names_are(tmp_path: Path, classes: Path, delimiter: str) -> None:
    content = table("video-id,t-start,t-end,label,score").replace(",", delimiter)
    found = read_detections(write(tmp_path / "found.csv", content), classes)
    assert sorted(found.scores.tolist()) == sorted(row[-1] for row in ROWS)
    assert set(found.videos) == {"v_a", "v_b"}


def test_columns_by_row_number_are_put_in_one_order(tmp_path: Path, classes: Path) -> None:
    content = {name: dict(zip("012", column, strict=True)) for name, column in COLUMNS.items()}
    content["t-start"] = dict(reversed(content["t-start"].items()))
    found = read_detections(write(tmp_path / "found.json", content), classes)
    assert found.segments.tolist() == [[row[1], row[2]] for row in ROWS]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_of_any_protocol_is_refused_with_how_to_export_it(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "eval_results.pkl"
    path.write_bytes(pickle.dumps(COLUMNS, protocol=protocol))
    with pytest.raises(ValueError, match=r"a Python pickle.*python -c"):
        read_detections(path)


@pytest.mark.parametrize("rows", [5, {"a": 1}, "text", None])
def test_annotations_that_list_nothing_name_no_class_number(tmp_path: Path, rows: object) -> None:
    path = tmp_path / "gt.json"
    path.write_text(json.dumps({"database": {"a": {"annotations": rows}}}), encoding="utf-8")
    with pytest.raises(ValueError, match="it names no class with a number"):
        read_class_numbers(path)
