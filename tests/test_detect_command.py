"""Detecting in any videos: what is refused before the network is loaded, what a bad video costs, what is replaced."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from builders import CLASSES, FPS, config_of, numbered_picture, video_data

from bitad.cli import main
from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.detections import read_detections
from bitad.evaluation.operating_points import OperatingPoints
from bitad.inference import detect as detecting
from bitad.models.build import build_network
from bitad.reports import detections as report
from bitad.video.reader import probe
from bitad.video.writer import write_video
from bitad.weights import checkpoint as checkpoints
from bitad.weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

Detect = Callable[..., int]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    config = config_of(video_data(folder / "data", training=1, test=0))
    torch.manual_seed(0)
    weights = build_network(config, len(CLASSES)).state_dict()
    save_checkpoint(Checkpoint(config, CLASSES, weights, 1, rate_hz=FPS / 2), folder / "best.pt")
    return folder / "best.pt"


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_video(path, map(numbered_picture, range(150)), fps=FPS, crf=12, gop=12)
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def detect(checkpoint: Path) -> Detect:
    def run(*arguments: object) -> int:
        return main(["detect", "--device", "cpu", "--checkpoint", str(checkpoint), *map(str, arguments)])

    return run


@pytest.fixture
def refused(
    detect: Detect, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], here: Path
) -> Detect:
    """Runs a command that must fail with one line, before the network is loaded, and change nothing; that line."""

    def run(*arguments: object) -> str:
        before, _ = contents(here), capsys.readouterr()
        with monkeypatch.context() as patched:
            patched.setattr(checkpoints, "load_checkpoint", lambda *_: pytest.fail("the network was loaded"))
            assert detect(*arguments) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert contents(here) == before
        assert err.startswith("bitad detect: error: ")
        assert len(err.splitlines()) == 1
        assert err.rstrip("\n").isprintable()
        assert "--debug" not in err, "an error that nobody foresaw"
        return err

    return run


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def damage(path: Path) -> Path:
    """Zeros in the place of the pictures of the second half; the file is as long as it states."""
    content = bytearray(path.read_bytes())
    start, end = content.index(b"mdat") + 4, content.index(b"moov") - 4
    content[(start + end) // 2 : end] = bytes(end - (start + end) // 2)
    path.write_bytes(content)
    return path


# Before the network is loaded.


@pytest.mark.parametrize("score", ["5", "-0.1", "nan", "inf"])
def test_a_least_score_that_is_none_is_refused(film: Path, refused: Detect, score: str) -> None:
    assert f"--min-score {float(score)}" in refused(film, "--min-score", score)


NAMES = {
    "backslash": "a\\b.mp4",
    "newline": "a\nb.mp4",
    "escape": "\x1b[31mred.mp4",
    "line separator": "a\u2028b.mp4",
    "not UTF-8": os.fsdecode(b"b\xff.mp4"),
    "too long": "x" * 252 + ".ts",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_name_that_results_cannot_have_is_refused(film: Path, here: Path, refused: Detect, name: str) -> None:
    shutil.copy(film, here / name)
    assert "rename the file" in refused(name)


@pytest.mark.parametrize(
    "name", ["a#b", "50%25", "what?", 'it\'s "x" <b> & y', "문 열기 🚪", "12:30", ".hidden", "a;b$c"]
)
def test_any_other_name_is_that_of_results_and_is_found_by_the_page(
    film: Path, here: Path, detect: Detect, name: str
) -> None:
    shutil.copy(film, here / f"{name}.mp4")
    assert detect(here / f"{name}.mp4") == 0
    page = (here / "detections" / "index.html").read_text(encoding="utf-8")
    (data,) = re.findall(r'<script type="application/json" id="page-data">(.*?)</script>', page)
    (video,) = json.loads(data)["videos"]
    assert (video["name"], video["absent"]) == (name, "")
    assert not set(video["media"]) & set("#?\"'<>\\")
    assert (here / "detections" / unquote(video["media"])).is_file()
    assert (here / "detections" / f"{name}.srt").is_file()


def test_videos_that_are_none_and_names_that_occur_twice_are_refused(
    film: Path, here: Path, refused: Detect
) -> None:
    assert "'none.mp4': no such video file" in refused(film, "none.mp4")
    (here / "clips").mkdir()
    assert "clips: no videos there" in refused(film, "clips")
    for place in (film, film.parent):
        assert refused(film, place).endswith(f"{film} is given twice, by itself or in a folder; name it once\n")
    (here / "dangling.mp4").symlink_to("nowhere.mp4")
    assert "dangling.mp4" in refused(film, "dangling.mp4")
    shutil.copy(film, here / "film.mkv")
    assert "have the same name, 'film'" in refused(film, "film.mkv")


def test_a_folder_that_cannot_be_written_to_is_refused(film: Path, here: Path, refused: Detect) -> None:
    (here / "file").write_text("mine")
    assert "is not a folder" in refused(film, "--out", "file")
    assert "is not a folder" in refused(film, "--out", "file/below/it")
    (here / "out").mkdir()
    (here / "out" / "media").write_text("mine")
    assert "is not a folder" in refused(film, "--out", "out")
    assert "cannot write to /proc" in refused(film, "--out", "/proc/out")
    assert "not UTF-8" in refused(film, "--out", os.fsdecode(b"out\xff"))


@pytest.mark.parametrize("device", ["gpu", "meta", "xpu", "cuda:99"])
def test_a_device_that_there_is_none_of_is_refused(film: Path, refused: Detect, device: str) -> None:
    assert device in refused(film, "--device", device)


@pytest.mark.parametrize("options", [(), ("--force",)])
def test_a_video_is_never_replaced_by_its_preview(
    film: Path, here: Path, refused: Detect, options: tuple[str]
) -> None:
    (here / "media").mkdir()
    shutil.copy(film, here / "media" / "film.mp4")
    assert "would replace the input" in refused("media/film.mp4", "--out", ".", *options)
    (here / "elsewhere").mkdir()
    (here / "elsewhere" / "media").symlink_to(here / "media")
    assert "would replace the input" in refused("media/film.mp4", "--out", "elsewhere", *options)


# What is shown.


@pytest.fixture
def knowing(checkpoint: Path, film: Path, here: Path, detect: Detect) -> tuple[Path, OperatingPoints]:
    """A checkpoint with operating points: of its best-scored detections in the film, as ground truth of two classes."""
    assert detect(film, "--out", "first") == 0
    found = read_detections(here / "first" / "detections.json")
    best = [np.flatnonzero(found.labels == label)[:3] for label in (0, 1)]
    rows = np.concatenate(best)
    labels = tuple(found.classes[label] for label in found.labels[rows])
    video = AnnotatedVideo("film", "mine", found.durations_s["film"], found.segments[rows], labels)
    points = OperatingPoints.of(Annotations({"film": video}, CLASSES), found)
    path = here / "knowing.pt"
    save_checkpoint(replace(load_checkpoint(checkpoint), operating_points=points.to_json()), path)
    return path, OperatingPoints.from_json(points.to_json())


def page_data(out: Path) -> dict[str, Any]:
    page = (out / "index.html").read_text(encoding="utf-8")
    (data,) = re.findall(r'<script type="application/json" id="page-data">(.*?)</script>', page)
    content: dict[str, Any] = json.loads(data)
    return content


@pytest.mark.parametrize("options", [(), ("--min-score", "auto"), ("--precision", "0.5")])
def test_the_scores_of_a_checkpoint_are_those_of_file_subtitles_page_and_line(
    film: Path,
    here: Path,
    detect: Detect,
    knowing: tuple[Path, OperatingPoints],
    options: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, points = knowing
    capsys.readouterr()
    assert detect(film, "--checkpoint", path, *options) == 0
    precision = 0.5 if "--precision" in options else None
    scores = points.scores(CLASSES, precision)
    found = read_detections(here / "detections" / "detections.json")
    assert found.min_scores == scores
    assert 0 < len(found.shown()) < len(found)
    said = capsys.readouterr().out
    kind = "best F1" if precision is None else "precision 0.5"
    assert said.startswith(f"{len(found.shown())} detections with at least the score of {kind} of their class (0.")
    assert " on subset mine); see " in said
    data = page_data(here / "detections")
    assert data["min_scores"][data["videos"][0]["tracks"][0]["least"]] == [
        scores[name] for name in data["classes"]
    ]
    text = (here / "detections" / "film.srt").read_text(encoding="utf-8")
    assert {name for name in CLASSES if f"{name} 0." in text} == {
        found.classes[label] for label in found.shown().labels
    }


def test_without_operating_points_the_least_score_is_0_3_and_that_is_said(
    film: Path, here: Path, detect: Detect, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, what in (((), "scores of best F1"), (("--precision", "0.9"), "score of precision 0.9")):
        assert detect(film, "--overwrite", *options) == 0
        out, err = capsys.readouterr()
        assert " detections with a score of at least 0.3; see " in out
        assert f"the detector has no {what} (its checkpoint has none)" in err
        assert "detections from 0.3 are shown" in err
        assert page_data(here / "detections")["threshold"] == 0.3
    assert detect(film, "--overwrite", "--min-score", "0.01") == 0
    out, err = capsys.readouterr()
    assert " detections with a score of at least 0.01; see " in out
    assert "detections from" not in err
    assert page_data(here / "detections")["threshold"] == 0.01


def test_a_timeline_without_overlap_is_that_of_file_subtitles_and_page(
    film: Path, here: Path, detect: Detect, knowing: tuple[Path, OperatingPoints]
) -> None:
    path, _ = knowing
    contents = []
    for out in ("all", "one", "again"):
        options = () if out == "all" else ("--no-overlap",)
        assert detect(film, "--checkpoint", path, "--out", out, *options) == 0
        contents.append(read_detections(here / out / "detections.json"))
    every, one, again = contents
    assert one.to_rows() == again.to_rows() == every.shown().without_overlap().to_rows()
    assert 0 < len(one) < len(every.shown())
    starts, ends = one.segments[np.argsort(one.segments[:, 0])].T
    assert (starts[1:] >= ends[:-1]).all()
    assert page_data(here / "one")["videos"][0]["tracks"][0]["total"] == len(one)
    cues = (here / "one" / "film.srt").read_text(encoding="utf-8").split("\n\n")
    assert [len(cue.strip().splitlines()) for cue in cues] == [3] * len(cues)


def test_scores_that_exclude_each_other_or_are_none_are_refused(film: Path, refused: Detect) -> None:
    assert "leave out one" in refused(film, "--min-score", "0.2", "--precision", "0.9")
    for precision in ("0", "1.5", "nan"):
        assert "--precision" in refused(film, "--precision", precision)
    with pytest.raises(SystemExit, match="2"):
        refused(film, "--min-score", "high")


def test_damaged_operating_points_are_named(
    film: Path, here: Path, detect: Detect, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(replace(load_checkpoint(checkpoint), operating_points={"classes": 3}), here / "odd.pt")
    assert detect(film, "--checkpoint", here / "odd.pt") == 1
    assert "odd.pt: damaged operating points" in capsys.readouterr().err
    assert not (here / "detections").exists()


# Results that are there already.


def test_the_same_results_are_made_again_and_those_of_more_videos_replace_them(
    film: Path, here: Path, detect: Detect
) -> None:
    assert detect(film) == 0
    first = (here / "detections" / "detections.json").read_bytes()
    assert detect(film) == 0
    assert (here / "detections" / "detections.json").read_bytes() == first
    shutil.copy(film, here / "other.mp4")
    assert detect(film, "other.mp4", "--min-score", "0.1") == 0
    assert read_detections(here / "detections" / "detections.json").videos == ("film", "other")


@pytest.mark.parametrize("force", ["--force", "--overwrite"])
def test_results_of_other_videos_are_replaced_only_where_asked(
    film: Path, here: Path, detect: Detect, refused: Detect, force: str
) -> None:
    assert detect(film) == 0
    shutil.copy(film, here / "other.mp4")
    line = refused("other.mp4")
    assert "detections has results of other videos (film); choose another --out, or replace them with --f" in line
    write_video(here / "film.mp4", map(numbered_picture, range(90)), fps=FPS, crf=12, gop=12)
    assert "results of other videos (film)" in refused("film.mp4", "other.mp4")
    (here / "detections" / "notes.txt").write_text("mine")
    assert detect("other.mp4", force) == 0
    # Nothing of the film is left that the page does not show; what is not ours is left alone.
    files = {path.name for path in (here / "detections").rglob("*") if path.is_file()}
    assert files == {"detections.json", "index.html", "other.srt", "other.mp4", "notes.txt"}
    assert read_detections(here / "detections" / "detections.json").videos == ("other",)


def test_results_of_another_checkpoint_are_replaced_only_where_asked(
    film: Path,
    here: Path,
    detect: Detect,
    refused: Detect,
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert detect(film) == 0
    assert detect(film, "--checkpoint", "none.pt") == 1
    assert "no weights at none.pt" in capsys.readouterr().err
    stored = read_detections(here / "detections" / "detections.json").details["checkpoint"]
    sha256 = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert stored == {"file": checkpoint.name, "sha256": sha256}
    other = load_checkpoint(checkpoint)
    for weights in other.model.values():
        weights += 1e-6
    save_checkpoint(other, here / "other.pt")
    line = refused(film, "--checkpoint", "other.pt")
    made_by = f"{checkpoint.name}, SHA-256 {sha256[:12]}..."
    assert f"detections has results of another checkpoint ({made_by}); choose another --out" in line
    assert detect(film, "--checkpoint", "other.pt", "--force") == 0
    shutil.copy(checkpoint, here / "other.pt")
    assert "results of another checkpoint (other.pt, SHA-256 " in refused(film, "--checkpoint", "other.pt")
    # A copy of a checkpoint is that checkpoint.
    assert detect(film, "--force") == 0
    assert detect(film, "--checkpoint", "other.pt") == 0


def test_results_that_do_not_record_their_checkpoint_are_replaced_only_where_asked(
    film: Path, here: Path, detect: Detect, refused: Detect
) -> None:
    assert detect(film) == 0
    place = here / "detections" / "detections.json"
    content = json.loads(place.read_text())
    del content["external_data"]["checkpoint"]
    place.write_text(json.dumps(content))
    assert "results of an earlier version, which does not record the checkpoint" in refused(film)
    assert detect(film, "--force") == 0


@pytest.mark.parametrize("name", ["notes.txt", "media/mine.mp4", "deep/er/notes.txt"])
def test_a_folder_with_other_files_is_used_only_where_asked(
    film: Path, here: Path, detect: Detect, refused: Detect, name: str
) -> None:
    mine = here / "detections" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    (here / "detections" / ".DS_Store").touch()
    assert f"{name} was not written by `bitad detect`; choose another --out, or write beside it" in refused(film)
    assert detect(film, "--force") == 0
    assert mine.read_text() == "mine"
    assert f"{name} was not written by `bitad detect`" in refused(film)


@pytest.mark.parametrize("name", ["index.html", "detections.json", "film.srt", "media/film.mp4"])
def test_a_file_that_is_not_ours_is_never_replaced(
    film: Path, here: Path, detect: Detect, refused: Detect, name: str
) -> None:
    place = here / "detections" / name
    place.parent.mkdir(parents=True)
    place.write_text("{}")
    assert "--out" in refused(film)
    assert "was not written by `bitad detect` and is not overwritten" in refused(film, "--force")
    place.unlink()
    shutil.copy(film, here / "other.mp4")
    assert detect("other.mp4") == 0
    place.write_text("mine")
    assert "was not written by `bitad detect` and is not overwritten" in refused(film, "--force")


def test_a_forged_list_of_earlier_results_removes_nothing_elsewhere(
    film: Path, here: Path, detect: Detect
) -> None:
    assert detect(film) == 0
    place = here / "detections" / "detections.json"
    content = json.loads(place.read_text())
    content["results"]["../precious"] = content["results"].pop("film")
    content["external_data"]["durations_s"] = {"../precious": 1.0}
    place.write_text(json.dumps(content))
    (here / "precious.srt").write_text("mine")
    shutil.copy(film, here / "other.mp4")
    assert detect("other.mp4", "--force") == 0
    assert (here / "precious.srt").read_text() == "mine"


def test_of_two_at_once_into_one_folder_the_second_is_refused(
    film: Path, here: Path, detect: Detect, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    alone, seconds = detecting.detect_videos, []

    def detect_beside_another(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(detecting, "detect_videos", alone)
        seconds.extend([detect(film), detect(film, "--force")])
        return alone(*arguments, **options)

    monkeypatch.setattr(detecting, "detect_videos", detect_beside_another)
    assert detect(film) == 0
    assert seconds == [1, 1]
    errors = [line for line in capsys.readouterr().err.splitlines() if ": error: " in line]
    assert len(errors) == 2
    for error in errors:
        assert f"detections is in use by process {os.getpid()} on " in error
    assert read_detections(here / "detections" / "detections.json").videos == ("film",)


# Folders.


def test_folders_stand_for_the_videos_in_them_and_in_their_sub_folders(
    film: Path, here: Path, detect: Detect, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("clips/a.mp4", "clips/deep/b.mp4"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(film, here / name)
    (here / "clips" / "notes.txt").write_text("mine")
    for _ in range(2):  # the second time, the results lie in the folder
        assert detect("clips", film, "--out", "clips/found") == 0
        found = read_detections(here / "clips" / "found" / "detections.json")
        assert found.videos == ("a", "b", "film")
    (here / "clips" / "deep" / "a.mkv").touch()
    assert detect("clips", "--out", "found") == 1
    assert "clips/a.mp4 and clips/deep/a.mkv have the same name, 'a'" in capsys.readouterr().err


# Bad videos.


def test_bad_videos_are_named_and_the_good_ones_are_done(
    film: Path, here: Path, detect: Detect, capsys: pytest.CaptureFixture[str]
) -> None:
    assert detect(film, "--out", "alone") == 0
    (here / "text.mp4").write_text("404 Not Found")
    (here / "empty.mp4").touch()
    damage(shutil.copy(film, here / "damaged.mp4"))
    capsys.readouterr()
    assert detect("text.mp4", film, "damaged.mp4", "empty.mp4") == 1
    _, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if "error" in line]
    assert [line.split(": ")[2] for line in errors] == ["text", "empty", "damaged"]
    assert "--on-decode-error repeat" in errors[2]
    found, alone = (read_detections(here / out / "detections.json") for out in ("detections", "alone"))
    assert found.videos == ("film",)
    assert len(found) == len(alone) > 0
    assert (found.segments == alone.segments).all()
    assert list(found.details["unread"]) == ["text", "empty", "damaged"]
    files = {path.name for path in (here / "detections").rglob("*") if path.is_file()}
    assert files == {"detections.json", "index.html", "film.srt", "film.mp4"}


def test_where_all_videos_are_bad_nothing_is_written(
    film: Path, here: Path, detect: Detect, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "text.mp4").write_text("404 Not Found")
    damage(shutil.copy(film, here / "damaged.mp4"))
    for videos in (("text.mp4",), ("damaged.mp4",), ("text.mp4", "damaged.mp4")):
        assert detect(*videos) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("bitad detect: error: ") == len(videos)
        assert not (here / "detections").exists()


def test_damaged_frames_are_repeated_in_the_preview_too(film: Path, here: Path, detect: Detect) -> None:
    damage(shutil.copy(film, here / "damaged.mp4"))
    cut = here / "cut.mkv"
    write_video(cut, map(numbered_picture, range(150)), fps=FPS, gop=12)
    cut.write_bytes(cut.read_bytes()[: 2 * cut.stat().st_size // 3])
    assert detect("damaged.mp4", "cut.mkv", "--on-decode-error", "repeat") == 0
    for name, duration in read_detections(here / "detections" / "detections.json").durations_s.items():
        preview = probe(here / "detections" / "media" / f"{name}.mp4")
        assert preview.duration_s == pytest.approx(duration, abs=2 / 15)


def test_a_preview_that_cannot_be_made_costs_no_detections(
    film: Path, here: Path, detect: Detect, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(src: Path, dst: Path, **how: object) -> None:
        raise ValueError(f"{src}: frame 7 cannot be decoded")

    monkeypatch.setattr(report, "write_preview", fails)
    assert detect(film) == 1
    assert "error: film: the page has no preview of it: " in capsys.readouterr().err
    assert len(read_detections(here / "detections" / "detections.json")) > 0
    assert (here / "detections" / "film.srt").is_file()
    assert "was written without this video" in (here / "detections" / "index.html").read_text(encoding="utf-8")
