"""Sizes and names that only look harmless, through the command line: nothing breaks, and nothing is lost on the way."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from builders import CHANNELS, FEATURE_OFFSET, FEATURE_STRIDE, FPS, feature_data, numbered_picture, video_data

from bitad.cli import main
from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.classes import read_classes
from bitad.data.detections import read_detections
from bitad.data.formats.database import read_annotations, write_annotations
from bitad.video.writer import write_video

HARMFUL = "<script>alert(1)</script>"
NAMES = (
    "cut, slice",
    'say "hello"',
    "it's",
    "물을 마신다",
    HARMFUL,
    "</script><img src=x onerror=alert(1)>",
    "salt & pepper; a|b",
    "`x` *y* _z_ [red]w[/red]",
    "$5 \\frac{ $",
)


@pytest.fixture(autouse=True)
def threads_restored() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def done(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def data_set(
    folder: Path,
    spans: Sequence[np.ndarray],
    names: Sequence[str],
    *,
    steps: int = 50,
    window: int = 32,
) -> Path:
    """Features of two training and two test videos with these segments ``[n, 2]``, as shares of the video; labels in
    turn. The path of its configuration."""
    path = feature_data(folder, training=2, test=2)
    duration_s = (steps * FEATURE_STRIDE + 2 * FEATURE_OFFSET) / FPS
    rng, videos = np.random.default_rng(0), {}
    for number, (name, video) in enumerate(read_annotations(folder / "annotations.json").videos.items()):
        np.save(folder / "features" / f"{name}.npy", rng.standard_normal((steps, CHANNELS), dtype=np.float32))
        segments = spans[number] * duration_s
        labels = tuple(names[i % len(names)] for i in range(len(segments)))
        videos[name] = AnnotatedVideo(name, video.subset, duration_s, segments, labels, fps=FPS)
    write_annotations(Annotations(videos, tuple(names)), folder / "annotations.json")
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    document = yaml.safe_load(path.read_text())
    document["window"]["steps"] = window
    document["training"] |= {"epochs": 1, "batch": 1}
    path.write_text(yaml.safe_dump(document))
    return path


def spans(count: int, length: float = 0.2) -> np.ndarray:
    """So many segments, overlapping where there is no room for all."""
    starts = np.linspace(0.01, 0.98 - length, count)
    return np.stack([starts, starts + length], axis=1)


def assert_same_truth(got: Annotations, expected: Annotations) -> None:
    assert list(got.videos) == list(expected.videos)
    for name, video in expected.videos.items():
        assert got.videos[name].labels == video.labels
        np.testing.assert_allclose(got.videos[name].segments, video.segments, atol=1e-6)


def assert_converted_and_back(folder: Path, out: Path) -> None:
    """Every form that is written holds the same videos, segments and labels; so does twice reversed ground truth."""
    truth, classes = folder / "annotations.json", folder / "classes.txt"
    expected = read_annotations(truth, classes=classes)
    for form, suffix in (("native", "json"), ("actionformer", "json.gz")):
        there, back = out / f"{form}.{suffix}", out / f"{form}-back.json"
        done(
            "annotations",
            "convert",
            truth,
            there,
            "--to",
            form,
            "--classes",
            classes,
            "--class-list",
            out / "c.txt",
        )
        done("annotations", "convert", there, back, "--classes", out / "c.txt")
        assert read_classes(out / "c.txt") == expected.classes
        for path in (there, back):
            read = read_annotations(path, classes=classes)
            assert_same_truth(read, expected)
    done("reverse", truth, out / "reversed.json")
    done("reverse", out / "reversed.json", out / "forward.json")
    assert_same_truth(read_annotations(out / "forward.json", classes=classes), expected)


def assert_learnt_tested_and_reported(path: Path, out: Path) -> Path:
    """Trains, tests, evaluates, merges and reports; the run."""
    truth, run = path.parent / "annotations.json", path.parent / "runs" / "tiny-forward-seed0"
    done("train", path, "--device", "cpu")
    done("test", run, "--out", out / "test", "--device", "cpu")
    found = out / "test" / "detections.json"
    done("merge", found, out / "test" / "detections.reverse.json", "--out", out / "merged.json")
    figures = json.loads((out / "test" / "metrics.json").read_text())["forward"]
    for rule in ("activitynet", "thumos-kit"):
        command = ("evaluate", "--ground-truth", truth, "--detections", found, "--subset", "validation")
        done(*command, "--rule", rule, "--per-class", "--json", out / f"{rule}.json")
    assert json.loads((out / "activitynet.json").read_text())["ap"] == figures["ap"]
    done("report", run, "--out", out / "report")
    assert (out / "report" / "index.html").is_file()
    return run


@pytest.mark.parametrize(
    ("counts", "names", "sizes"),
    [
        ((3, 0, 3, 0), ("one", "two"), {}),
        ((2500, 1, 2500, 0), ("one", "two"), {}),
        ((9, 9, 9, 9), ("only",), {}),
        ((2, 2, 2, 2), ("one", "two"), {"steps": 1}),
        ((2, 2, 2, 2), ("one", "two"), {"steps": 5, "window": 64}),
    ],
    ids=["none", "2500", "overlapping-of-one-class", "one-row", "window-longer-than-the-video"],
)
def test_any_number_of_segments_classes_and_rows_goes_all_the_way(
    tmp_path: Path, counts: tuple[int, ...], names: tuple[str, ...], sizes: dict[str, int]
) -> None:
    path = data_set(tmp_path / "data", [spans(count) for count in counts], names, **sizes)
    assert main(["annotations", "check", str(tmp_path / "data" / "annotations.json")]) == 0
    run = assert_learnt_tested_and_reported(path, tmp_path)
    found = read_detections(run / "detections.json")
    assert set(found.videos) == {"test_0", "test_1"}
    assert found.classes == names
    assert_converted_and_back(tmp_path / "data", tmp_path)


def assert_shown_but_not_run(page: str) -> None:
    """Every name can be read on the page, and none of them does anything."""
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    (data,) = re.findall(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert HARMFUL in json.loads(data)["classes"]


def test_names_with_commas_quotes_korean_and_html_go_all_the_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = data_set(tmp_path / "data", [spans(2 * len(NAMES), 0.1)] * 4, NAMES)
    run = assert_learnt_tested_and_reported(path, tmp_path)
    assert read_detections(run / "detections.json").classes == NAMES
    assert_converted_and_back(tmp_path / "data", tmp_path)
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES)  # a row for each, of --per-class

    done("train", path, "direction=reverse", "--device", "cpu")
    backward = run.with_name("tiny-reverse-seed0")
    done("report", run, backward, "--sensitivity", "--out", tmp_path / "both", "--device", "cpu")
    page = (tmp_path / "both" / "index.html").read_text(encoding="utf-8")
    assert_shown_but_not_run(page)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page  # in the table of classes
    markdown = (tmp_path / "both" / "results.md").read_text(encoding="utf-8")
    assert "<script>" not in markdown.replace("\\<script>", "")
    for table in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_names_of_all_kinds_are_shown_beside_videos(tmp_path: Path) -> None:
    path = video_data(tmp_path / "data", training=1, test=1)
    content = json.loads((tmp_path / "data" / "annotations.json").read_text())
    for video in content["database"].values():
        video["annotations"] = [
            {"segment": [0.2 * i, 0.2 * i + 1], "label": name, "label_id": i} for i, name in enumerate(NAMES)
        ]
    (tmp_path / "data" / "annotations.json").write_text(json.dumps(content))
    (tmp_path / "data" / "classes.txt").write_text("".join(f"{name}\n" for name in NAMES), encoding="utf-8")
    done("train", path, "training.epochs=1", "training.batch=1", "--device", "cpu")
    run, out = tmp_path / "data" / "runs" / "tiny-forward-seed0", tmp_path / "out"
    video = tmp_path / "data" / "videos" / "test_0.mp4"
    done("detect", video, "--checkpoint", run, "--out", out, "--min-score", "0.001", "--device", "cpu")
    page = (out / "index.html").read_text(encoding="utf-8")
    assert_shown_but_not_run(page)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page  # among the names that were looked for
    assert "<" not in (out / "test_0.srt").read_text(encoding="utf-8").replace("-->", "")


def test_a_name_that_no_class_list_can_hold_is_refused_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("two\nlines", " indented"):
        content = {"v": {"subset": "a", "duration": 3, "annotations": [{"segment": [0, 1], "label": name}]}}
        (tmp_path / "truth.json").write_text(json.dumps({"database": content}))
        command = ("annotations", "convert", tmp_path / "truth.json", tmp_path / "out.json")
        assert main([str(part) for part in (*command, "--class-list", tmp_path / "names.txt")]) == 1
        assert f"class {name!r} cannot stand in a list of a name a line; rename it" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["truth.json"]


@pytest.mark.parametrize("frames", [1, 5])
def test_a_video_of_one_frame_or_shorter_than_a_window_goes_all_the_way(tmp_path: Path, frames: int) -> None:
    path = video_data(tmp_path / "data", training=2, test=1)
    truth = tmp_path / "data" / "annotations.json"
    content = json.loads(truth.read_text())
    short = ("train_0", "test_0")
    for name in short:
        video = tmp_path / "data" / "videos" / f"{name}.mp4"
        write_video(video, map(numbered_picture, range(frames)), fps=FPS)
        row = content["database"][name]["annotations"][0] | {"segment": [0.0, frames / FPS]}
        content["database"][name] |= {"duration": frames / FPS, "frame": frames, "annotations": [row]}
    truth.write_text(json.dumps(content))
    done("annotations", "check", truth, "--videos", tmp_path / "data" / "videos")
    done("train", path, "training.epochs=1", "--device", "cpu")
    run = tmp_path / "data" / "runs" / "tiny-forward-seed0"
    done("test", run, "--out", tmp_path / "test", "--device", "cpu")
    video = tmp_path / "data" / "videos" / "test_0.mp4"
    done("detect", video, "--checkpoint", run, "--out", tmp_path / "out", "--min-score", "0", "--device", "cpu")
    for found in (
        read_detections(tmp_path / "test" / "detections.json"),
        read_detections(tmp_path / "out" / "detections.json"),
    ):
        assert found.videos == ("test_0",)
        assert found.segments.max(initial=0) <= frames / FPS + 0.005  # rounded to hundredths
    done("features", video, "--checkpoint", run, "--out", tmp_path / "features", "--device", "cpu")
    assert len(np.load(tmp_path / "features" / "test_0.npy")) == -(-frames // 2)
