"""`bitad report` as typed: what names runs, and whose videos its page plays."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from builders import config_of, feature_data, numbered_picture, video_data
from chromium import Page, chromium
from runs import write_run

from bitad.cli import main
from bitad.config.schema import Config
from bitad.data.detections import read_detections, write_detections
from bitad.data.formats.database import read_annotations
from bitad.evaluation.operating_points import OperatingPoints
from bitad.reports import media
from bitad.video.reader import probe
from bitad.video.writer import write_video

Report = Callable[..., str]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return video_data(tmp_path_factory.mktemp("my data"), training=1, test=2)


@pytest.fixture
def here(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a folder of runs: F and B of seed 0, and F of seed 1."""
    monkeypatch.chdir(tmp_path)
    for overrides in ([], ["direction=reverse"], ["seed=1"]):
        write_run(config_of(data, "output=runs", "name=my", *overrides))
    return tmp_path


@pytest.fixture
def report(here: Path, capsys: pytest.CaptureFixture[str]) -> Report:
    """Runs a command that must succeed; what it printed."""

    def run(*arguments: object) -> str:
        assert main(["report", "--device", "cpu", *map(str, arguments)]) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(here: Path, capsys: pytest.CaptureFixture[str]) -> Report:
    """Runs a command that must fail with one line; that line."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        assert main(["report", "--device", "cpu", *map(str, arguments)]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        (line,) = [line for line in err.splitlines() if ": error: " in line]
        assert "--debug" not in line, "an error that nobody foresaw"
        return line

    return run


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium() as page:
        yield page


def runs_in(out: Path) -> list[str]:
    return [Path(run["directory"]).name for run in json.loads((out / "results.json").read_text())["runs"]]


def page_data(out: Path) -> dict[str, Any]:
    text = (out / "index.html").read_text(encoding="utf-8")
    (found,) = re.findall(r'<script type="application/json" id="page-data">(.*?)</script>', text)
    data: dict[str, Any] = json.loads(found)
    return data


def videos_in(out: Path) -> list[dict[str, Any]]:
    videos: list[dict[str, Any]] = page_data(out)["videos"]
    return videos


ALL = ["my-forward-seed0", "my-forward-seed1", "my-reverse-seed0"]


# What names runs.


@pytest.mark.parametrize(
    ("places", "found"),
    [
        (["runs"], ALL),
        (["."], ALL),
        (["runs/my-*"], ALL),
        (["r*"], ALL),
        (["**/my-*-seed0"], ["my-forward-seed0", "my-reverse-seed0"]),
        (["runs/my-forward-seed[1]"], ["my-forward-seed1"]),
        (["runs/my-forward-seed0", "runs/*"], ALL),
        (["runs/my-forward-seed0"], ["my-forward-seed0"]),
    ],
)
def test_runs_are_named_one_by_one_by_folders_and_by_patterns(
    report: Report, here: Path, places: list[str], found: list[str]
) -> None:
    (here / "runs" / "notes.txt").write_text("mine")
    (here / "runs" / "my-empty").mkdir()
    report(*places)
    assert runs_in(here / "report") == found


def test_what_matches_nothing_is_named_before_anything_is_written(refused: Report, here: Path) -> None:
    (here / "clips").mkdir()
    line = refused("runs/their-*", "runs", "clips", "nowhere", "runs/my-forward-seed0/config.yaml")
    assert "'runs/their-*' matches no run directory (runs has my-forward-seed0, my-forward-seed1" in line
    assert "clips is not a run directory: neither it nor a sub-folder has a config.yaml" in line
    assert "nowhere is not a run directory: no such folder" in line
    assert "config.yaml is not a run directory: no such folder" in line
    assert "runs is not" not in line
    assert "'none/*' matches no run directory; give a folder that `bitad train` wrote" in refused("none/*")
    assert not (here / "report").exists()


def test_a_folder_whose_name_looks_like_a_pattern_is_taken_as_it_is(report: Report, here: Path) -> None:
    (here / "runs").rename(here / "runs[old]*")
    report("runs[old]*")
    assert runs_in(here / "report") == ALL


def test_late_fusion_comes_by_itself_and_only_of_both_directions(report: Report, here: Path) -> None:
    assert "late fusion F + B, wsf" in report("runs")
    names = [track["name"] for track in videos_in(here / "report")[0]["tracks"]]
    assert names[:3] == ["Ground truth", "F", "B"]
    assert names[3].startswith("late fusion F + B, ")
    assert "late fusion" not in report("runs/my-forward*")
    assert [track["name"] for track in videos_in(here / "report")[0]["tracks"]] == ["Ground truth", "F"]


def test_late_fusion_is_shown_from_its_own_scores_of_best_f1(report: Report, here: Path, data: Path) -> None:
    files = [here / f"runs/my-{direction}-seed0/detections.json" for direction in ("forward", "reverse")]
    stated = read_detections(files[0])
    write_detections(stated.with_min_scores(dict.fromkeys(stated.classes, 0.77)), files[0])
    report("runs")
    _, f, b, late = videos_in(here / "report")[0]["tracks"]
    method = late["name"].removeprefix("late fusion F + B, ")
    assert main(["merge", *map(str, files), "--method", method, "--out", str(here / "m.json")]) == 0
    truth = read_annotations(data.parent / "annotations.json").subset("validation")
    merged, reverse = read_detections(here / "m.json"), read_detections(files[1])
    least = page_data(here / "report")["min_scores"]
    assert set(least[f["least"]]) == {0.77}
    for track, found in ((b, reverse), (late, merged)):
        best = OperatingPoints.of(truth, found).scores(found.classes)
        assert least[track["least"]] == [best[name] for name in sorted(best)]


# Its videos.


def play(browser: Page, page: Path) -> None:
    """Opens a page, and plays each of its videos."""
    browser.open(page)
    for number in range(2):
        browser.click(f"[data-video='{number}']")
        browser.wait_for("player.readyState >= 2 && player.duration > 4")
    assert browser.console == []


@pytest.mark.parametrize("out", ["report", "deep/er/report #1", "data link/report"])
def test_videos_play_wherever_the_report_lies(
    report: Report, here: Path, data: Path, browser: Page, out: str
) -> None:
    (here / "elsewhere" / "deep").mkdir(parents=True)
    (here / "data link").symlink_to(here / "elsewhere" / "deep")
    report("runs", "--out", out)
    videos = videos_in(here / out)
    assert [video["absent"] for video in videos] == ["", ""]
    assert all(video["media"].startswith("../") for video in videos)
    play(browser, here / out / "index.html")  # by its path without links
    assert all(Path(os.path.normpath(here / out / unquote(video["media"]))).is_file() for video in videos)


def test_copied_videos_play_where_the_report_is_moved_to(
    report: Report, here: Path, data: Path, browser: Page
) -> None:
    clips = shutil.copytree(data.parent / "videos", here / "clips")
    (clips / "test_0.mp4").unlink()
    pictures = map(numbered_picture, range(75))
    write_video(clips / "test_0.mkv", pictures, fps=16, crf=12, gop=12)  # not for every browser
    report("runs", "--videos", "clips", "--copy-videos")
    copies = {path.name for path in (here / "report" / "media").iterdir()}
    assert copies == {"test_0.mp4", "test_1.mp4"}
    assert (here / "report" / "media" / "test_1.mp4").read_bytes() == (clips / "test_1.mp4").read_bytes()
    assert "mp4" in probe(here / "report" / "media" / "test_0.mp4").container
    report("runs", "--videos", "clips", "--copy-videos")  # the copies are kept
    shutil.rmtree(clips)
    (here / "report").rename(here / "moved")
    play(browser, here / "moved" / "index.html")


def test_videos_that_are_not_copied_have_timelines_and_say_so(
    report: Report, here: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("bitad.reports.comparison_page.COPIED_VIDEOS", 1)
    report("runs", "--copy-videos")
    found = {video["name"]: video for video in videos_in(here / "report")}
    figures = {name: video["ap"]["F"][2] for name, video in found.items()}
    worst, other = sorted(found, key=figures.__getitem__)
    assert figures[worst] < figures[other]
    assert [path.stem for path in (here / "report" / "media").iterdir()] == [worst]
    assert (found[worst]["media"], found[worst]["absent"]) == (f"media/{worst}.mp4", "")
    assert (found[other]["media"], found[other]["absent"]) == (
        None,
        "Not copied: it is not among the 1 with the lowest mAP.",
    )
    assert found[other]["tracks"][0]["start"]
    assert "videos copied: 1, those with the lowest mAP; not copied: 1, with timelines only" in caplog.text


def test_videos_are_copied_all_or_none(
    refused: Report, here: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, copied = media.write_playable, []

    def fails(src: Path, dst: Path) -> None:
        copied.append(dst)
        copy(src, dst)
        if len(copied) == 2:
            raise OSError(28, "No space left on device", str(dst))

    monkeypatch.setattr(media, "write_playable", fails)
    assert "free some space" in refused("runs", "--copy-videos")
    assert len(copied) == 2
    assert not (here / "report").exists()


def test_a_file_that_is_no_copy_is_never_replaced(refused: Report, here: Path) -> None:
    mine = here / "report" / "media" / "test_1.mp4"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    assert f"{mine.relative_to(here)} is not a copy of " in refused("runs", "--copy-videos")
    assert [path.name for path in mine.parent.iterdir()] == ["test_1.mp4"]
    assert mine.read_text() == "mine"


def test_a_video_that_a_page_cannot_name_is_said(
    report: Report, here: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clips = shutil.copytree(data.parent / "videos", here / "back\\slash")
    report("runs", "--videos", clips)
    assert "a page in report cannot name " in caplog.text
    assert [video["media"] for video in videos_in(here / "report")] == [None, None]
    report("runs", "--videos", clips, "--copy-videos")
    assert [video["absent"] for video in videos_in(here / "report")] == ["", ""]


def test_missing_videos_are_said(
    report: Report, refused: Report, here: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert "--videos nowhere: no such folder" in refused("runs", "--videos", "nowhere")
    (here / "clips").mkdir()
    shutil.copy(data.parent / "videos" / "test_1.mp4", here / "clips")
    report("runs", "--videos", "clips")
    assert "the page lacks 1 of its 2 videos: test_0" in caplog.text
    assert [video["media"] for video in videos_in(here / "report")] == [None, "../clips/test_1.mp4"]


def test_runs_on_features_are_told_how_to_name_videos(
    here: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    features: Config = config_of(feature_data(tmp_path_factory.mktemp("data")), "output=others")
    write_run(features)
    assert main(["report", "others"]) == 0
    assert "the page has no videos: the runs take features; name the folder of the videos with --videos" in (
        capsys.readouterr().err
    )
    (here / "clips").mkdir()
    write_video(here / "clips" / "test_2.avi.mp4", [numbered_picture(0)] * 9, fps=16)
    (here / "clips" / "test_2.avi.mp4").rename(here / "clips" / "test_2.avi")
    assert main(["report", "others", "--videos", "clips"]) == 0
    assert "browsers may not play clips/test_2.avi; --copy-videos" in capsys.readouterr().err


def test_a_video_beside_the_page_may_have_a_colon_in_its_name(tmp_path: Path) -> None:
    file = tmp_path / "a:b.mp4"
    file.touch()
    assert media.link_videos({"a:b": file}, tmp_path) == {"a:b": "./a:b.mp4"}
