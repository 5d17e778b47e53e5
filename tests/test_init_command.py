"""`bitad init`: a configuration that fits annotations and videos or features, as the command line writes it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bitad.cli import main
from bitad.config.loading import load_config
from bitad.config.schema import Config
from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.feature_folder import SIDECAR
from bitad.data.formats.database import read_annotations, write_annotations
from bitad.data.sources import build_source, read_ground_truth
from bitad.models.heads import Points
from bitad.reports import estimate
from bitad.reports.tables import Table
from bitad.training.losses import assign
from bitad.video import indexing
from bitad.video.writer import write_video

pytestmark = pytest.mark.usefixtures("one_thread")

Init = Callable[..., int]
Segment = tuple[float, float, str]
WIDTH, HEIGHT = 32, 24


def clip(seconds: float, fps: float, segments: list[Segment]) -> Iterator[NDArray[np.uint8]]:
    """A bar that moves left, moves right, or stays, while the segment of that name lasts."""
    for frame in range(round(seconds * fps)):
        picture = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
        for start, end, label in segments:
            if start <= frame / fps < end:
                share = (frame / fps - start) / (end - start)
                place = {"left": 1 - share, "right": share, "stays": 0.5}[label]
                left = int(place * (WIDTH - 4))
                picture[4:-4, left : left + 4] = (220, 200, 60)
        yield picture


def plan(number: int) -> list[Segment]:
    """Four segments in six seconds."""
    labels = ("left", "right", "stays", "left")
    return [(0.4 + 1.4 * i, 1.3 + 1.4 * i + 0.1 * (number % 3), labels[(i + number) % 4]) for i in range(4)]


def make_clips(folder: Path, rates: tuple[float, ...]) -> Path:
    folder.mkdir(parents=True)
    for number, fps in enumerate(rates):
        write_video(folder / f"clip{number:02d}.mp4", clip(6.0, fps, plan(number)), fps=fps, crf=28)
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clips(tmp_path_factory.mktemp("clips") / "videos", (15, 15, 15, 15))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory; without the estimates, which need seconds."""

    def no_estimate(configs: dict[str, Config], *_: object) -> Table:
        return Table("costs", ("name",), [(name,) for name in configs])

    monkeypatch.setattr(estimate, "cost_table", no_estimate)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def csv(clips: int = 4, seconds: Callable[[float], str] = "{:.2f}".format) -> Path:
    rows = [f"clip{n:02d}.mp4,{seconds(s)},{seconds(e)},{label}" for n in range(clips) for s, e, label in plan(n)]
    Path("my.csv").write_text("\n".join(["video,start,end,label", *rows]) + "\n", encoding="utf-8")
    return Path("my.csv")


def native(
    name: str = "my.json", subsets: tuple[str, ...] = ("training", "training", "training", "validation")
) -> Path:
    videos = {}
    for number, subset in enumerate(subsets):
        spans = np.array([(start, end) for start, end, _ in plan(number)])
        labels = tuple(label for _, _, label in plan(number))
        videos[f"clip{number:02d}"] = AnnotatedVideo(
            f"clip{number:02d}", subset, 6.0, spans, labels, frames=90, fps=15.0
        )
    write_annotations(Annotations(videos, ("left", "right", "stays")), Path(name))
    return Path(name)


def init(*arguments: object) -> int:
    return main(["init", *map(str, arguments)])


def minutes(seconds: float) -> str:
    return f"0:{seconds:05.2f}"


@pytest.mark.parametrize("times", ["{:.2f}".format, minutes], ids=["seconds", "mm:ss"])
def test_a_table_of_segments_becomes_annotations_and_a_configuration(
    here: Path, clips: Path, times: Callable[[float], str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert init(csv(seconds=times), "--videos", clips) == 0
    written = read_annotations(here / "my.json")
    assert written.subsets() == {"training": 3, "validation": 1}
    for number in range(4):
        found = written.videos[f"clip{number:02d}"]
        assert found.duration_s == pytest.approx(6.0)
        np.testing.assert_allclose(found.segments, [one[:2] for one in plan(number)], atol=0.006)
        assert list(found.labels) == [one[2] for one in plan(number)]
    config = load_config("my.yaml")
    assert config.window.steps_per_second is None
    assert config.window.stride_frames == 2  # 7.5 steps a second
    assert config.training.augmentation.flip == 0  # mirrored, left is right
    assert (config.data.training_subset, config.data.test_subset) == ("training", "validation")
    said = capsys.readouterr().out
    assert "validation subset: 1 of 4 videos" in said
    assert re.search(r"^training.epochs +\d+ +at least 360 training steps", said, re.M)
    assert "mirrored frames would swap left, right" in (here / "my.yaml").read_text(encoding="utf-8")
    assert said.rstrip().endswith("written: my.yaml, my.json, bitad.schema.json\nnext: bitad train my.yaml")


def write_table(text: str) -> Path:
    Path("my.csv").write_bytes(text.encode())
    return Path("my.csv")


ROWS = "clip00.mp4,0:00:01,0:00:02.5,left\nclip01.mp4,0:58.5,0:60.00,right\n"


@pytest.mark.parametrize(
    "text",
    [
        f"Video,Start,End,Label\n{ROWS}",
        f"\n\r\nVIDEO , START, END, LABEL\n{ROWS}",
        f"\ufeffvideo,start,end,label\n{ROWS}".replace("\n", "\r\n"),
        f"video,start,end,label\n{ROWS}".replace(",", ";"),
        "video,start,end,label\n" + "".join(f'"{row}"\n'.replace(",", '","') for row in ROWS.split()),
    ],
    ids=["capitals", "empty-lines", "mark-and-crlf", "semicolons", "quotes"],
)
def test_tables_of_spreadsheets_are_read(here: Path, text: str) -> None:
    times = {"clip00": {"duration": 70.0, "fps": 30.0}, "clip01": {"duration": 65.0, "fps": 30.0}}
    Path("times.json").write_text(json.dumps(times), encoding="utf-8")
    assert main(["annotations", "convert", str(write_table(text)), "out.json", "--video-info", "times.json"]) == 0
    videos = read_annotations(Path("out.json")).videos
    assert {name: video.segments.tolist() for name, video in videos.items()} == {
        "clip00": [[1.0, 2.5]],
        "clip01": [[58.5, 60.0]],
    }


def test_a_value_without_a_column_is_refused(here: Path, clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_table(f"\nvideo,start,end,label\n{ROWS}clip02.mp4,1,2,open, then close\n")
    assert init(table, "--videos", clips) == 1
    error = capsys.readouterr().err
    assert "my.csv:5: more values than columns: then close; quote a value that contains ','" in error
    table.write_text(table.read_text().replace("open, then close", '"open, then close"'), encoding="utf-8")
    assert init(table, "--videos", clips) == 0
    assert "open, then close" in read_annotations(Path("my.json")).classes


def test_annotations_without_segments_are_refused(
    here: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("my.csv").write_text("video,start,end,label\nclip00.mp4,,,\nclip01.mp4,,,\n", encoding="utf-8")
    assert init("my.csv", "--videos", clips) == 1
    assert "no video has a segment of a class" in capsys.readouterr().err
    assert len(list(here.iterdir())) == 1


def test_classes_without_sides_may_be_mirrored(here: Path, clips: Path) -> None:
    table = csv()
    table.write_text(table.read_text().replace("left", "rise").replace("right", "fall"), encoding="utf-8")
    assert init(table, "--videos", clips) == 0
    assert load_config("my.yaml").training.augmentation.flip == 0.5


def test_complete_annotations_are_used_as_they_are(
    here: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = native().read_bytes()
    assert init("my.json", "--videos", clips) == 0
    assert (here / "my.json").read_bytes() == before
    assert load_config("my.yaml").data.annotations.resolve() == (here / "my.json").resolve()
    assert "written: my.yaml, bitad.schema.json\n" in capsys.readouterr().out


def test_of_three_subsets_one_is_only_tested(here: Path, clips: Path) -> None:
    native(subsets=("training", "training", "test", "val"))
    assert init("my.json", "--videos", clips) == 0
    data = load_config("my.yaml").data
    assert (data.training_subset, data.validation_subset, data.test_subset) == ("training", "val", "test")


def test_annotations_that_are_completed_are_not_overwritten(here: Path, clips: Path) -> None:
    before = native(subsets=("training",) * 4).read_bytes()
    for option in ((), ("--overwrite",)):
        assert init("my.json", "--videos", clips, *option) == 0
        assert (here / "my.json").read_bytes() == before
    annotations = load_config("my.yaml").data.annotations
    assert annotations.name == "my-annotations.json"
    assert read_annotations(annotations).subsets() == {"training": 3, "validation": 1}


def test_a_video_without_a_file_is_an_error_or_left_out(
    here: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for src in (csv(5), native("five.json", ("training",) * 4 + ("validation",))):
        out = f"{src.stem}-fitted.yaml"
        command = (src, "--videos", clips, "--out", out)
        assert init(*command) == 1
        error = capsys.readouterr().err
        assert "clip04" in error
        assert "--missing drop" in error
        assert not Path(out).exists()
        assert init(*command, "--missing", "drop") == 0
        assert "clip04: left out" in capsys.readouterr().out
        assert set(read_annotations(Path(out).with_suffix(".json")).videos) == {f"clip{n:02d}" for n in range(4)}
        assert len(read_annotations(load_config(out).data.annotations).subsets()) == 2


def test_files_that_exist_are_kept(here: Path, clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = csv()
    for existing in ("my.yaml", "my.json"):
        Path(existing).write_text("mine", encoding="utf-8")
        assert init(table, "--videos", clips) == 1
        assert (
            f"{existing} exists; choose another --out, or replace it with --overwrite" in capsys.readouterr().err
        )
        assert Path(existing).read_text(encoding="utf-8") == "mine"
        assert len(list(here.iterdir())) == 2
        Path(existing).unlink()
    assert init(table, "--videos", clips) == 0
    assert init(table, "--videos", clips, "--overwrite") == 0


def test_editors_find_the_schema_beside_the_configuration(
    here: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("configs").mkdir()
    Path("configs/bitad.schema.json").write_text("of another version", encoding="utf-8")
    assert init(csv(), "--videos", clips, "--out", "configs/my.yaml") == 0
    first = Path("configs/my.yaml").read_text(encoding="utf-8").partition("\n")[0]
    capsys.readouterr()
    assert main(["config", "--schema"]) == 0
    schema = (Path("configs") / first.removeprefix("# yaml-language-server: $schema=")).read_text(encoding="utf-8")
    assert schema == capsys.readouterr().out
    parts = json.loads(schema)
    assert {"name", "data", "window", "model", "training", "base"} <= parts["properties"].keys()


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("my.csv", "--out my.csv: a configuration is a .yaml file; name one, such as my.yaml"),
        ("x.json", "--out x.json: a configuration is a .yaml file"),
        ("noext", "such as noext.yaml"),
        ("folder.yaml", "--out folder.yaml: it is a folder; give the name of a file"),
        ("my.csv/x.yaml", "my.csv is not a folder"),
        ("clash/x.yaml", "bitad.schema.json will be written but is a folder"),
    ],
)
def test_an_unusable_output_is_refused_before_the_videos_are_read(
    here: Path, out: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("folder.yaml").mkdir()
    Path("clash/bitad.schema.json").mkdir(parents=True)
    before = csv().read_bytes()
    assert init("my.csv", "--videos", "nowhere", "--out", out, "--overwrite") == 1
    assert said in capsys.readouterr().err
    assert Path("my.csv").read_bytes() == before


def test_defective_segments_are_warned_of(here: Path, clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = csv()
    with table.open("a", encoding="utf-8") as file:
        file.write(
            "clip00.mp4,5,4,left\nclip01.mp4,1,99,left\n" + table.read_text(encoding="utf-8").splitlines()[1]
        )
    assert init(table, "--videos", clips) == 0
    said = capsys.readouterr().out
    assert "warning: defective segments, kept: 3; `bitad annotations check my.csv` names them" in said
    assert "clip00: left [5, 4] s: it does not start before it ends" in said
    # The defects do not change what is chosen.
    assert (load_config("my.yaml").window.steps, load_config("my.yaml").window.stride_frames) == (64, 2)


def test_classes_that_a_subset_lacks_or_that_are_alike_are_named(
    here: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_table(
        "video,start,end,label,subset\n"
        "clip00.mp4,1,2,tête à tête,train\nclip00.mp4,3,4,Tête  à tête,train\nclip01.mp4,1,2,#1: a/b,train\n"
        "clip02.mp4,1,2,여자,val\nclip03.mp4,3,4,#1: a/b,test\n"
    )
    assert init(table, "--videos", clips) == 0
    said = capsys.readouterr().out
    assert "warning: classes 'Tête  à tête', 'tête à tête' have nearly the same name" in said
    assert "warning: no segment in subset 'train', so not learned: '여자'" in said
    assert "warning: no segment in subset 'test', so not measured there: 'Tête  à tête', 'tête à tête'" in said
    assert set(read_annotations(Path("my.json")).classes) == {"tête à tête", "Tête  à tête", "#1: a/b", "여자"}


def test_videos_without_annotations_are_named(here: Path, clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = csv(2)
    assert init(table, "--videos", clips) == 0
    assert "files that are not used: clip02.mp4, clip03.mp4; a row with" in capsys.readouterr().out
    with table.open("a", encoding="utf-8") as file:
        file.write("clip02.mp4,,,\nclip03,,,\n")
    assert init(table, "--videos", clips, "--overwrite") == 0
    assert "not used" not in capsys.readouterr().out
    assert read_annotations(Path("my.json")).videos["clip03"].labels == ()


def test_one_video_is_not_enough(here: Path, clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert init(csv(1), "--videos", clips) == 1
    assert "annotate another video, or cut one into two files" in capsys.readouterr().err


def test_each_video_is_read_once(here: Path, clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    once = indexing._by_times

    def counted(path: Path, stored: Any) -> Any:
        read.append(path.name)
        return once(path, stored)

    monkeypatch.setattr(indexing, "_by_times", counted)
    assert init(csv(), "--videos", clips) == 0
    assert sorted(read) == [f"clip{n:02d}.mp4" for n in range(4)]


def test_the_configuration_trains(here: Path, clips: Path) -> None:
    assert init(csv(), "--videos", clips) == 0
    short = ("training.epochs=1", "training.windows_per_video=1", "window.steps=64")
    assert main(["train", "my.yaml", *short, "--device", "cpu"]) == 0
    assert (here / "runs" / "my-forward-seed0" / "best.pt").is_file()


def test_videos_of_several_rates_share_a_rate_of_grid_steps(
    here: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = make_clips(tmp_path_factory.mktemp("mixed") / "videos", (15, 15, 30, 24))
    assert init(csv(), "--videos", mixed) == 0
    config = load_config("my.yaml")
    assert config.window.steps_per_second == 7.5
    assert config.window.stride_frames == 4  # the default, which is not written
    assert "each video takes the nearest stride: 7.5 to 8 steps per second" in Path("my.yaml").read_text()
    assert re.search("^window.steps_per_second +7.5 ", capsys.readouterr().out, re.M)
    source = build_source(config)
    strides = {
        name: source.grid(video).stride_frames for name, video in read_ground_truth(config.data).videos.items()
    }
    assert strides == {"clip00": 2, "clip01": 2, "clip02": 4, "clip03": 3}


def test_every_backbone_is_shown_with_its_cost_on_this_machine(
    here: Path, clips: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()  # with the estimates
    monkeypatch.chdir(here)
    monkeypatch.setattr(estimate, "matrix_rate", lambda device: 100e9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert init(csv(), "--videos", clips, "--backbone", "s") == 0
    said = capsys.readouterr().out
    rows = {
        row[0]: row for row in re.findall(r"^(tiny|s|b)  +([\d.]+) GiB  .*?([\d.]+ (?:s|min|h|days)) ", said, re.M)
    }
    assert set(rows) == {"tiny", "s", "b"}
    assert 0 < float(rows["tiny"][1]) < float(rows["s"][1]) < float(rows["b"][1])
    assert "at 50% of the 100 GFLOP/s" in said
    backbone = load_config("my.yaml").model.backbone
    assert backbone is not None
    assert str(backbone.weights) == "hub:MCG-NJU/videomae-small-finetuned-kinetics"


def test_the_rate_of_this_machine_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "_MEASURED_S", 0.01)
    assert estimate.matrix_rate(torch.device("cpu")) > 1e8


# Features.


def features_of(durations_s: dict[str, float], *, per_second: float = 7.5, width: int = 3) -> Path:
    Path("features").mkdir()
    for name, duration_s in durations_s.items():
        np.save(
            Path("features") / f"{name}.npy", np.zeros((max(1, int(duration_s * per_second)), width), np.float32)
        )
    return Path("features")


def describe(folder: Path, durations_s: dict[str, float], *, fps: float = 30.0, **settings: Any) -> None:
    stated = {
        "feature_stride_frames": 4,
        "feature_offset_frames": 7.5,
        "feature_channels": 3,
        "direction": "forward",
        "model": "tiny",
        "clip_frames": 16,
        "window_steps": None,
        "window_overlap": None,
        "pixels": 64,
        "precision": "float32",
        "stored": "float32",
        "checkpoint": "x.pth",
        "checkpoint_sha256": "0" * 64,
    }
    videos = {
        name: {"frames": round(s * fps), "fps": fps, "steps": len(np.load(folder / f"{name}.npy"))}
        for name, s in durations_s.items()
    }
    content = {"format": "bitad features 1", "settings": stated | settings, "videos": videos}
    (folder / SIDECAR).write_text(json.dumps(content), encoding="utf-8")


DURATIONS = {f"clip{n:02d}": 6.0 + n for n in range(4)}


def test_features_are_placed_as_their_description_says(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = features_of(DURATIONS)
    describe(folder, DURATIONS, direction="reverse")
    assert init(csv(), "--features", folder) == 0  # the durations are from features.json too
    config = load_config("my.yaml")
    data = config.data
    assert (data.feature_channels, data.feature_stride_frames, data.feature_offset_frames) == (3, 4, 7.5)
    assert data.feature_fps is None
    assert config.direction == "reverse"
    assert config.model.backbone is None
    assert {
        name: video.duration_s for name, video in read_annotations(data.annotations).videos.items()
    } == DURATIONS
    said = capsys.readouterr().out
    assert "assumed" not in said
    assert re.search("^data.feature_stride_frames +4 ", said, re.M)
    assert main(["train", "my.yaml", "training.epochs=1", "training.warmup_epochs=0", "model.channels=16"]) == 0


def test_without_a_description_rows_and_durations_tell_the_stride(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = {
        name: AnnotatedVideo(name, "training", s, np.array([[1.0, 2.0]]), ("jump",))
        for name, s in DURATIONS.items()
    }
    write_annotations(Annotations(videos, ("jump",)), Path("my.json"))
    assert init("my.json", "--features", features_of(DURATIONS), "--out", "fitted.yaml") == 0
    data = load_config("fitted.yaml").data
    assert (data.feature_stride_frames, data.feature_offset_frames, data.feature_fps) == (4, 2.5, 30)
    said = capsys.readouterr().out
    assert "assumed: 30 frames per second, as the annotations state no frame rate" in said
    assert "assumed: a row of features every 4 frames, the first at frame 2.5" in said


@pytest.mark.parametrize(("clip_frames", "stride"), [(16, 4), (16, 8), (4, 4), (1, 1), (32, 16)])
def test_the_stride_is_that_of_clips_at_any_length(here: Path, clip_frames: int, stride: int) -> None:
    frames = {f"v{n}": 200 + 97 * n for n in range(5)}
    Path("features").mkdir()
    for name, count in frames.items():
        np.save(f"features/{name}.npy", np.zeros(((count - clip_frames) // stride + 1, 3), np.float32))
    videos = {
        name: AnnotatedVideo(name, "training", count / 25, np.array([[1.0, 3.0]]), ("jump",), count, 25.0)
        for name, count in frames.items()
    }
    write_annotations(Annotations(videos, ("jump",)), Path("my.json"))
    assert init("my.json", "--features", "features", "--out", "fitted.yaml") == 0
    data = load_config("fitted.yaml").data
    assert data.feature_stride_frames == stride
    assert data.feature_offset_frames == pytest.approx(clip_frames / 2, abs=stride / 2)


def test_features_of_another_width_are_refused_or_left_out(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = features_of(DURATIONS)
    np.save(folder / "clip00.npy", np.zeros((45, 4), np.float32))
    listed = {name: {"duration": s, "fps": 30.0} for name, s in DURATIONS.items()}
    Path("my.json").write_text(json.dumps(listed), encoding="utf-8")
    command = (csv(), "--features", folder, "--video-info", "my.json")
    assert init(*command) == 1
    assert "clip00.npy: shape [45, 4] read as [T, C]; 3 channels are expected" in capsys.readouterr().err
    assert init(*command, "--missing", "drop") == 0
    assert load_config("my.yaml").data.feature_channels == 3
    # The list of durations is kept.
    assert json.loads(Path("my.json").read_text(encoding="utf-8")) == listed
    assert set(read_annotations(Path("my-annotations.json")).videos) == {"clip01", "clip02", "clip03"}


def test_the_description_of_another_program_is_not_read(here: Path) -> None:
    folder = features_of(DURATIONS)
    (folder / SIDECAR).write_text('{"model": "i3d"}', encoding="utf-8")
    listed = {name: {"duration": s, "fps": 30.0} for name, s in DURATIONS.items()}
    Path("times.json").write_text(json.dumps(listed), encoding="utf-8")
    assert init(csv(), "--features", folder, "--video-info", "times.json") == 0
    assert load_config("my.yaml").data.feature_stride_frames == 4


def test_a_longer_window_for_longer_actions_is_an_alternative(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("a", "b")
    spans = np.array([[2.0 + 10 * i, 5.0 + 10 * i] for i in range(60)] + [[1500.0, 1600.0]])
    videos = {
        name: AnnotatedVideo(
            name, "training", 1800.0, spans if name == "a" else spans[:60], ("jump",) * n, fps=30.0
        )
        for name, n in zip(names, (61, 60), strict=True)
    }
    write_annotations(Annotations(videos, ("jump",)), Path("all.json"))
    durations = dict.fromkeys(names, 1800.0)
    folder = features_of(durations)
    describe(folder, durations)
    assert init("all.json", "--features", folder, "--out", "fitted.yaml") == 0
    said = capsys.readouterr().out
    assert "a: jump [1500, 1600] s: longer than a window of 192 steps" in said
    assert re.search(r"^window.steps=768 model.levels=3  +768 +102 s +0% +0 ", said, re.M)
    assert "the alternatives above state how many they leave" in said


def test_features_whose_rows_do_not_fit_their_videos_are_named(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    durations = {f"clip{n:02d}": 20.0 + 7 * n for n in range(8)}
    folder = features_of(durations)
    np.save(folder / "clip03.npy", np.zeros((20, 3), np.float32))
    listed = {name: {"duration": s, "fps": 30.0} for name, s in durations.items()}
    Path("times.json").write_text(json.dumps(listed), encoding="utf-8")
    assert init(csv(8), "--features", folder, "--video-info", "times.json") == 0
    assert load_config("my.yaml").data.feature_stride_frames == 4  # as of the others
    said = capsys.readouterr().out
    assert re.search(
        "warning: rows and durations do not fit, .*: clip03: features cover .*: 20 rows x 4 frames", said
    )
    assert main(["train", "my.yaml", "training.epochs=1", "training.warmup_epochs=0"]) == 1
    assert "clip03" in capsys.readouterr().err


def test_durations_of_featured_videos_may_be_listed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = features_of(DURATIONS)
    assert init(csv(), "--features", folder) == 1
    assert "--video-info" in capsys.readouterr().err
    listed = {name: {"duration": s, "fps": 25.0} for name, s in DURATIONS.items()}
    Path("videos.json").write_text(json.dumps(listed), encoding="utf-8")
    assert init(csv(), "--features", folder, "--video-info", "videos.json") == 0
    data = load_config("my.yaml").data
    assert data.feature_stride_frames == pytest.approx(25 / 7.5, rel=0.03)
    assert data.feature_fps is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--features", "features", "--backbone", "s"), "--backbone is for videos"),
        (("--videos", "features", "--video-info", "x.json"), "--video-info is for features"),
        (("--features", "resized"), "all videos have 100 rows, so they were resized to one length"),
        (("--features", "both"), "holds two folders of features; name one: both"),
        (("--features", "nowhere"), "nowhere: no such folder"),
        (("--features", "features", "--validation", "1"), "is not a share of the videos"),
        (("--features", "features", "--seed", "-1"), "--seed -1 is out of range; use 0 to 2^63 - 1"),
    ],
)
def test_what_cannot_be_read_is_refused(
    here: Path, options: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    features_of(DURATIONS)
    for name in DURATIONS:
        for folder in ("resized", "both/forward"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            np.save(Path(folder) / f"{name}.npy", np.zeros((100, 3), np.float32))
    describe(Path("both/forward"), DURATIONS)
    listed = {name: {"duration": 6.0 * (n + 1), "fps": 25.0} for n, name in enumerate(DURATIONS)}
    if "resized" in options:
        Path("videos.json").write_text(json.dumps(listed), encoding="utf-8")
        options = (*options, "--video-info", "videos.json")
    assert init(csv(), *options) == 1
    assert said in capsys.readouterr().err
    assert not Path("my.yaml").exists()


def test_short_clips_with_short_actions_get_a_small_window_and_few_levels(here: Path) -> None:
    durations = {f"v{n}": 15.0 for n in range(4)}
    spans = np.array([(1 + 2 * i, 1.5 + 0.1 * i + 2 * i) for i in range(6)])
    videos = {name: AnnotatedVideo(name, "training", 15.0, spans, ("jump",) * 6, fps=30.0) for name in durations}
    write_annotations(Annotations(videos, ("jump",)), Path("all.json"))
    folder = features_of(durations)
    describe(folder, durations)
    assert init("all.json", "--features", folder, "--out", "fitted.yaml") == 0
    config = load_config("fitted.yaml")
    assert (config.window.steps, config.model.levels) == (128, 3)


def learned(config: Config) -> dict[tuple[str, float, float], bool]:
    """Whether each segment has a positive point, by the targets of training, in the whole video."""
    levels, source, found = config.model.levels, build_source(config), {}
    for video in read_ground_truth(config.data).videos.values():
        grid = source.grid(video)
        sizes, strides = (
            [-(-grid.steps // 2**level) for level in range(levels)],
            [2**level for level in range(levels)],
        )
        points = Points.of_levels(sizes, strides, config.model.ranges)
        points = Points(
            *(part.double() for part in (points.position, points.stride, points.low, points.high)), sizes
        )
        for start, end in video.segments.tolist():
            segment = torch.from_numpy(grid.to_steps(np.array([[start, end]])).clip(0, grid.steps))

            target = assign(points, [segment], [torch.zeros(1)], 1)
            found[video.name, start, end] = bool(target.positive.any())
    return found


@pytest.mark.parametrize("seed", range(6))
def test_every_segment_has_a_point_or_is_named(here: Path, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(seed)
    videos = {}
    for number in range(int(rng.integers(2, 6))):
        duration_s = round(float(10 ** rng.uniform(0.3, 2.6)), 2)
        lengths = 10 ** rng.uniform(-2, 2.5, int(rng.integers(1, 6)))
        starts = np.round(rng.uniform(0, duration_s - 0.05, len(lengths)), 2)
        spans = np.stack([starts, np.round(np.minimum(starts + np.maximum(lengths, 0.02), duration_s), 2)], axis=1)
        name = f"v{number}"
        videos[name] = AnnotatedVideo(name, "training", duration_s, spans, ("jump",) * len(spans), fps=30.0)
    write_annotations(Annotations(videos, ("jump",)), Path("all.json"))
    durations = {name: video.duration_s for name, video in videos.items()}
    folder = features_of(durations)
    describe(folder, durations, feature_offset_frames=2.0)
    assert init("all.json", "--features", folder, "--out", "fitted.yaml", "--all") == 0
    said = capsys.readouterr().out
    for (name, start, end), is_learned in learned(load_config("fitted.yaml")).items():
        assert is_learned or f"{name}: jump [{start:g}, {end:g}] s" in said


def test_segments_without_a_point_are_counted_and_the_first_named(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    durations = {"a": 60.0, "b": 60.0}
    spans = np.array([[2.0, 5.0], *((10 + 1.2 * i + 0.03, 10 + 1.2 * i + 0.05) for i in range(14))])
    videos = {
        name: AnnotatedVideo(name, subset, 60.0, spans, ("jump",) * 15, fps=30.0)
        for name, subset in (("a", "training"), ("b", "validation"))
    }
    write_annotations(Annotations(videos, ("jump",)), Path("all.json"))
    folder = features_of(durations, per_second=0.5)
    describe(folder, durations, feature_stride_frames=60, feature_offset_frames=30.0)
    assert init("all.json", "--features", folder, "--out", "fitted.yaml") == 0
    said = capsys.readouterr().out
    found = re.search(r"(\d+) of 30 segments have no point of the pyramid", said)
    assert found is not None
    assert "features of a finer stride may leave fewer:" in said
    assert said.count("with no grid step inside") == 10
    assert f"and {int(found[1]) - 10} more: --all lists every one" in said


def test_windows_that_are_mostly_padding_are_said_with_alternatives(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    durations = {f"v{n}": 3.0 for n in range(8)}
    videos = {
        name: AnnotatedVideo(name, "training", 3.0, np.array([[1.0, 2.0]]), ("jump",), fps=30.0)
        for name in durations
    }
    write_annotations(Annotations(videos, ("jump",)), Path("all.json"))
    folder = features_of(durations)
    describe(folder, durations)
    assert init("all.json", "--features", folder, "--out", "fitted.yaml") == 0
    said = capsys.readouterr().out
    assert load_config("fitted.yaml").window.steps == 64
    assert "warning: 66% of the windows is padding: they are 8.53 s long" in said
    assert "window.steps=32 model.levels=3 (31% padding, 0.5 times the cost, 0 segments without a point)" in said
    # The alternative is a configuration.
    assert load_config("fitted.yaml", ["window.steps=32", "model.levels=3"]).window.steps == 32


def test_the_commands_of_the_page_run_as_written(here: Path, clips: Path) -> None:
    page = Path(__file__).parent.parent / "docs" / "own-videos.md"
    commands = [
        line.split() for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("    bitad ")
    ]
    assert [command[1] for command in commands] == ["init", "train", "detect", "init", "init", "train"]
    csv()
    Path("my_videos").symlink_to(clips)
    describe(features_of(DURATIONS), DURATIONS)
    Path("features").rename("my_features")
    for _, name, *arguments in commands:
        short = {
            "init": ("--overwrite",),
            "train": (
                "training.epochs=1",
                "training.windows_per_video=1",
                "training.warmup_epochs=0",
                "threads=1",
            ),
        }
        assert main([name, *arguments, *short.get(name, ())]) == 0
    assert (here / "found" / "index.html").is_file()
