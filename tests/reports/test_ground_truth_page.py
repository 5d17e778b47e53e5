"""`bitad annotations check --page`: the ground truth over the videos, with its defects and figures."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import numbered_picture
from chromium import Page, chromium
from matplotlib.image import imread

from bitad.cli import main
from bitad.data.annotations import AnnotatedVideo
from bitad.reports import plots
from bitad.reports.ground_truth import Spacing, length_table, summary_table
from bitad.video.writer import write_video

FPS, FRAMES = 10.0, 40
SOUND: dict[str, list[tuple[float, float, str]]] = {
    "walk 1": [(0.5, 1.5, "walk"), (2, 3, "wave"), (2.5, 3.5, "walk")],
    "walk 2": [(1, 2, "wave")],
}
DEFECTS = {**SOUND, "odd": [(3.0, 6.0, "wave"), (2.0, 1.0, "walk"), (0.0, 1.0, "walk"), (0.0, 1.0, "walk")]}


def write_truth(folder: Path, videos: dict[str, list[tuple[float, float, str]]]) -> Path:
    database = {
        name: {
            "subset": "training" if name.startswith("walk") else "test",
            "duration": FRAMES / FPS,
            "annotations": [{"segment": [start, end], "label": label} for start, end, label in rows],
        }
        for name, rows in videos.items()
    }
    path = folder / f"truth{len(videos)}.json"
    path.write_text(json.dumps({"database": database}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos, one of which no browser is sure to play, and a page of annotations with defects."""
    folder = tmp_path_factory.mktemp("first look")
    for name in ("walk 1.mp4", "walk 2.mkv"):
        write_video(folder / "videos" / name, map(numbered_picture, range(FRAMES)), fps=FPS)
    write_truth(folder, SOUND)
    command = ["annotations", "check", str(write_truth(folder, DEFECTS)), "--videos", str(folder / "videos")]
    assert main([*command, "--page", str(folder / "page")]) == 1
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium() as page:
        yield page


def embedded(page: Path) -> dict[str, Any]:
    text = page.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="page-data">(.*?)</script>', text)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_the_page_is_written_also_where_there_are_defects(folder: Path) -> None:
    videos = embedded(folder / "page" / "index.html")["videos"]
    assert [(video["name"], video["media"]) for video in videos] == [
        ("odd", None),  # those with defects first
        ("walk 1", "../videos/walk%201.mp4"),
        ("walk 2", "media/walk%202.mp4"),
    ]
    assert [video["absent"] for video in videos] == ["This page was written without this video.", "", ""]
    assert [track["name"] for track in videos[0]["tracks"]] == ["Ground truth", "Defects"]
    text = (folder / "page" / "index.html").read_text(encoding="utf-8")
    assert "Segments that do not start before they end are not counted here: 1." in text
    assert videos[0]["defects"] == [
        "segment outside the video: wave [3, 6] s of a video of 4 s",
        "start not before end: walk [2, 1] s",
        "duplicate: walk [0, 1] s",
        f"no video file: none in {folder / 'videos'}",
    ]
    assert [len(video["defects"]) for video in videos[1:]] == [0, 0]
    for name in ("lengths.png", "gaps.png"):
        assert imread(folder / "page" / name).std() > 0.01


def test_sound_annotations_have_status_0_and_no_table_of_defects(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page"
    assert main(["annotations", "check", str(folder / "truth2.json"), "--page", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == ["0 defects", f"see {out / 'index.html'}"]
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "No defects." in page
    assert "<caption>Defects" not in page
    assert [video["media"] for video in embedded(out / "index.html")["videos"]] == [None, None]
    # A second look replaces the page of the first one.
    assert main(["annotations", "check", str(folder / "truth2.json"), "--page", str(out)]) == 0


def test_chromium_plays_the_videos_and_marks_the_defects(folder: Path, browser: Page) -> None:
    browser.open(folder / "page" / "index.html")
    assert browser.texts("#choice .name") == ["odd", "walk 1", "walk 2"]
    assert browser.texts("#choice .wrong") == ["4 defects"]
    assert len(browser.texts("#defects:not([hidden]) li")) == 4
    assert browser.texts("[data-track='0'] [data-segment]") == ["walk", "walk", "wave"]
    marked = "[data-kind='defect'] [data-segment]"
    assert browser.texts(marked) == ["duplicate", "start not before end", "segment outside the video"]
    assert browser.texts("[data-kind='defect'] .about") == ["3 defects"]
    labels = browser.evaluate(
        f"[...document.querySelectorAll({json.dumps(marked)})].map((each) => each.ariaLabel)"
    )
    assert labels[1] == "start not before end, 1.00 – 2.00 s (1.00 s): walk [2, 1] s"
    assert browser.texts("#tables caption") == ["Ground truth", "Lengths per class", "Defects"]
    for number in (1, 2):
        browser.click(f"[data-video='{number}']")
        browser.wait_for("player.readyState >= 2")
        assert browser.evaluate("player.duration") == pytest.approx(FRAMES / FPS, abs=0.15)
        assert browser.texts("#defects:not([hidden]) li") == []
    pictures = "[...document.querySelectorAll('#pictures img')]"
    browser.wait_for(f"{pictures}.every((each) => each.complete)")
    assert browser.evaluate(f"{pictures}.map((each) => each.naturalWidth > 300)") == [True, True]
    assert browser.console == []


def test_more_videos_than_previews_have_timelines(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("bitad.reports.ground_truth.MOST_PREVIEWS", 0)
    command = ["annotations", "check", str(folder / "truth2.json"), "--videos", str(folder / "videos")]
    assert main([*command, "--page", str(tmp_path / "page")]) == 0
    first, second = embedded(tmp_path / "page" / "index.html")["videos"]
    assert (first["absent"], second["absent"]) == ("", "This page was written without this video.")
    assert second["tracks"][0]["start"] == [1]


def test_files_of_someone_else_are_not_overwritten(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in (("index.html", "mine"), ("media", None)):
        out = tmp_path / name.partition(".")[0]
        out.mkdir()
        if content is None:
            (out / name).mkdir()
        else:
            (out / name).write_text(content, encoding="utf-8")
        assert main(["annotations", "check", str(folder / "truth2.json"), "--page", str(out)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert str(out / name) in line
        assert "choose another folder" in line
        assert [path.name for path in out.iterdir()] == [name]
    truth = str(folder / "truth2.json")
    assert main(["annotations", "check", truth, "--page", truth]) == 1
    assert f"--page {truth}: {truth} is not a folder" in capsys.readouterr().err


def test_annotations_without_durations_or_segments_have_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "my.csv"
    table.write_text("video,start,end,label\na,0.5,2,walk\n", encoding="utf-8")
    assert main(["annotations", "check", str(table), "--page", str(tmp_path / "one")]) == 0
    (video,) = embedded(tmp_path / "one" / "index.html")["videos"]
    assert video["duration"] == 2
    empty = write_truth(tmp_path, {"a": []})
    assert main(["annotations", "check", str(empty), "--page", str(tmp_path / "none")]) == 1
    assert "without ground truth" in (tmp_path / "none" / "index.html").read_text(encoding="utf-8")
    assert not (tmp_path / "none" / "gaps.png").exists()


def test_names_in_any_script_have_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "_EAST_ASIAN", ("no such font",))
    table = tmp_path / "my.csv"
    rows = "a,1,2,걷기 <b>\na,3,4,Wave\na,5,6,wave\n"
    table.write_text(f"video,start,end,label\n{rows}", encoding="utf-8")
    assert main(["annotations", "check", str(table), "--page", str(tmp_path / "page")]) == 0
    out, error = capsys.readouterr()
    assert "classes 'Wave', 'wave' have nearly the same name" in out
    assert error.count("figures show some letters as boxes, as no installed font has them; install") == 1
    assert "Glyph" not in error
    content = embedded(tmp_path / "page" / "index.html")
    assert "걷기 <b>" in json.dumps(content, ensure_ascii=False)


def test_a_damaged_video_leaves_its_timeline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "videos").mkdir()
    for name in SOUND:
        (tmp_path / "videos" / f"{name}.mp4").write_bytes(b"no video")
    command = ["annotations", "check", str(write_truth(tmp_path, SOUND)), "--videos", str(tmp_path / "videos")]
    assert main([*command, "--page", str(tmp_path / "page")]) == 1
    first, second = embedded(tmp_path / "page" / "index.html")["videos"]
    assert (first["media"], second["media"]) == (None, None)
    assert first["defects"][0].startswith("unreadable video file: ")
    assert first["tracks"][0]["start"] == [0.5, 2, 2.5]
    assert "walk 2: the page does not play it: " in capsys.readouterr().err


# The figures in the tables.


def video(
    name: str, *rows: tuple[float, float, str], subset: str = "a", duration_s: float = 10.0
) -> AnnotatedVideo:
    segments = np.array([row[:2] for row in rows]).reshape(-1, 2)
    return AnnotatedVideo(name, subset, duration_s, segments, tuple(row[2] for row in rows))


def test_gaps_and_overlaps_are_those_within_a_video() -> None:
    one = video("one", (4, 6, "x"), (0, 1, "x"), (1, 3, "y"), (5, 9, "x"), (5.5, 5.75, "y"))
    spacing = Spacing.of([one, video("two", (8, 9.5, "x")), video("none")])
    assert spacing.gaps.tolist() == [1]
    assert spacing.touching == 1
    assert sorted(zip(spacing.overlaps.tolist(), spacing.same_class.tolist(), strict=True)) == [
        (0.25, False),
        (0.25, False),
        (1, True),
    ]
    assert spacing.overlapping == 3


def test_the_tables_count_by_subset_and_class() -> None:
    videos = [
        video("one", (0, 2, "x"), (1, 4, "y"), (8, 12, "x")),
        video("two", (5, 6, "x"), subset="b"),
        video("three", (0, 1, "x"), subset="b", duration_s=float("inf")),
    ]
    summary = summary_table(videos)
    assert summary.rows == [
        ("a", 1, 10 / 60, 3, 2, 3.0, 60.0, 2),
        ("b", 2, 10 / 60, 2, 1, 1.0, 10.0, 0),
        ("all", 3, 20 / 60, 5, 2, 2.0, 35.0, 2),
    ]
    assert "1 videos of unknown duration" in summary.notes[1]
    assert "not counted here: 3." in summary_table(videos, 3).notes[2]
    assert length_table(videos, ["x", "y", "z"]).rows == [
        ("x", 4, 3, 1.0, 1.5, 4.0),
        ("y", 1, 1, 3.0, 3.0, 3.0),
        ("z", 0, 0, None, None, None),
    ]
