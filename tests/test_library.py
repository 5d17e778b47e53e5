"""The Python API: its page in docs, the same results as the command line, and what it leaves alone in a program."""

from __future__ import annotations

import ast
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import yaml
from builders import CLASSES, FEATURE_STRIDE, FPS, feature_data, numbered_picture, video_data
from numpy.typing import NDArray
from processes import Running
from runs import assert_same_run

import bitad
from bitad.cli import main
from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.formats.database import write_annotations
from bitad.runtime.workers import time_limit
from bitad.training.trainer import Trainer
from bitad.video.writer import write_video

pytestmark = pytest.mark.usefixtures("one_thread")

PAGE = Path(__file__).parents[1] / "docs" / "library.md"
FORWARD, REVERSE = "runs/my-forward-seed0", "runs/my-reverse-seed0"
FRAMES = 150


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the page assumes it: a configuration, its data, two runs of it, a video and its ground truth."""
    folder = tmp_path_factory.mktemp("project")
    document = yaml.safe_load(video_data(folder / "data").read_text(encoding="utf-8"))
    document |= {"name": "my", "output": str(folder / "runs")}
    document["training"] |= {"epochs": 2, "evaluate_every": 20}
    (folder / "my.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    for direction in ("forward", "reverse"):
        run = bitad.train(bitad.load_config(folder / "my.yaml", [f"direction={direction}"]))
        assert run.directory == folder / "runs" / f"my-{direction}-seed0"
        assert run.average_map is not None
        assert 0 <= run.average_map <= 1
    write_video(folder / "holiday.mp4", map(numbered_picture, range(FRAMES)), fps=FPS, crf=12, gop=12)
    (folder / "my_videos").mkdir()
    shutil.copy(folder / "data" / "videos" / "test_0.mp4", folder / "my_videos")
    segments = np.array([[1.0, 3.0], [4.0, 6.5]])
    holiday = AnnotatedVideo("holiday", "validation", FRAMES / FPS, segments, CLASSES[:2], FRAMES, FPS)
    write_annotations(Annotations({"holiday": holiday}, CLASSES), folder / "gt.json")
    return folder


@pytest.fixture
def here(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project)
    return project


def python(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def forked(program: str, folder: Path) -> tuple[str, str]:
    """What a program writes, as of :func:`python`, in a process that has imported PyTorch."""
    process = Running(
        program=f"import os, warnings; os.chdir({str(folder)!r}); warnings.simplefilter('error')\n{program}"
    )
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    return out, err


def results(path: Path) -> dict[str, Any]:
    """The content of a detection file, without what says that the command line wrote it."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for key in ("made_by", "version", "checkpoint", "videos"):
        content["external_data"].pop(key, None)
    return content


# The page.


def test_every_block_of_the_page_runs(here: Path) -> None:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) > 8
    program = "\n".join(block for language, block in blocks if language == "python")
    assert all(language == "python" for language, _ in blocks)
    printed, _ = forked(program, here)
    assert re.match(r"holiday: \d+\.\d\d to \d+\.\d\d s, (alpha|beta|gamma) \(0\.\d\d\)\n", printed)
    assert json.loads((here / "scores.json").read_text())["subsets"] == ["validation"]
    assert (here / "found.csv").read_text().startswith("video,start_s,end_s,label,score\n")


def test_the_page_names_every_public_name() -> None:
    page = PAGE.read_text(encoding="utf-8")
    missing = {name for name in bitad.__all__ if not name.startswith("__") and f"`{name}" not in page}
    assert missing == set()


def test_the_lazy_names_are_those_that_type_checkers_see() -> None:
    source = Path(bitad.__file__).read_text(encoding="utf-8")
    checked = source[source.index("if TYPE_CHECKING:") : source.index("__version__ =")]
    nodes = [node for node in ast.walk(ast.parse(checked)) if isinstance(node, ast.ImportFrom)]
    seen = {name.name: node.module for node in nodes for name in node.names}
    assert set(bitad.__all__) == {*seen, "__version__"}
    for name, module in seen.items():
        assert getattr(bitad, name) is getattr(sys.modules[module], name)
    assert set(bitad.__all__) <= set(dir(bitad))
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        bitad.other  # noqa: B018


@pytest.mark.slow
def test_a_strictly_typed_program_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import bitad\n"
        "import numpy as np\n"
        "from numpy.typing import NDArray\n"
        "def main(frames: NDArray[np.uint8]) -> list[tuple[str, float, float, str, float]]:\n"
        "    detector: bitad.Detector = bitad.load('runs/a', config='thumos14/videomae-s', device='cpu')\n"
        "    detections: bitad.Detections = detector.detect(['a.mp4'], progress=True)\n"
        "    for video in detections:\n"
        "        segments: NDArray[np.float64] = video.segments\n"
        "        print(video.name.upper(), segments.shape, video.labels[0], video.scores.max())\n"
        "    merged = bitad.merge(detections, detector.predict(frames, fps=25.0), method='wsf')\n"
        "    scores = bitad.evaluate(bitad.read_annotations('gt.json'), merged, subset='validation', tiou=[0.5])\n"
        "    figure: float = scores.average_map\n"
        "    run: bitad.Run = bitad.train(bitad.load_config('my.yaml', ['training.epochs=20']), resume=True)\n"
        "    print(figure, scores.per_class['a'], run.directory.name, run.load().classes)\n"
        "    return bitad.read_detections('found.json').to_rows()\n"
    )
    (tmp_path / "wrong.py").write_text("import bitad\nbitad.load(3)\nbitad.evaluate('gt.json', subset='a')\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--ignore-missing-imports"]
    done = subprocess.run([*command, "program.py", "wrong.py"], cwd=tmp_path, capture_output=True, text=True)
    assert [line.split(":")[0] for line in done.stdout.splitlines()[:-1]] == ["wrong.py"] * 3, done.stdout


# The same results as the command line's.


@pytest.mark.parametrize("run", [FORWARD, REVERSE])
def test_detections_are_those_of_the_command(here: Path, tmp_path: Path, run: str) -> None:
    videos = ["holiday.mp4", "my_videos/test_0.mp4"]
    assert main(["detect", *videos, "--checkpoint", run, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    detections = bitad.load(run, device="cpu").detect(videos)
    detections.to_json(tmp_path / "found.json")
    assert len(detections) > 0
    assert results(tmp_path / "found.json") == results(tmp_path / "out" / "detections.json")
    bitad.detect(map(Path, videos), run, device="cpu").to_json(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "found.json").read_bytes()


def test_scores_are_those_of_the_command(here: Path, tmp_path: Path) -> None:
    bitad.detect("holiday.mp4", FORWARD).to_json(tmp_path / "found.json")
    arguments = [
        "--ground-truth",
        "gt.json",
        "--detections",
        str(tmp_path / "found.json"),
        "--subset",
        "validation",
    ]
    for rule in ("activitynet", "thumos-kit"):
        assert main(["evaluate", *arguments, "--rule", rule, "--json", str(tmp_path / "command.json")]) == 0
        found = bitad.read_detections(tmp_path / "found.json")
        scores = bitad.evaluate(bitad.read_annotations("gt.json"), found, subset="validation", rule=rule)
        scores.to_json(tmp_path / "library.json")
        assert (tmp_path / "library.json").read_bytes() == (tmp_path / "command.json").read_bytes()
    assert scores.per_class.keys() == set(CLASSES[:2])
    assert np.mean(list(scores.per_class.values())) == pytest.approx(scores.average_map)
    assert f"average_map={scores.average_map:.4f}" in repr(scores)
    assert len(repr(scores)) < 200


def test_merged_detections_are_those_of_the_command(here: Path, tmp_path: Path) -> None:
    files = []
    for name, run in (("forward", FORWARD), ("reverse", REVERSE)):
        files.append(str(tmp_path / f"{name}.json"))
        found = bitad.detect("holiday.mp4", run)
        (found if name == "forward" else found.reversed()).to_json(files[-1])
    assert main(["merge", *files, "--out", str(tmp_path / "command.json"), "--method", "wsf"]) == 0
    merged = bitad.merge(*map(bitad.read_detections, files), method="wsf")
    merged.to_json(tmp_path / "library.json")
    assert (tmp_path / "library.json").read_bytes() == (tmp_path / "command.json").read_bytes()


def test_a_training_is_that_of_the_command(here: Path, tmp_path: Path) -> None:
    for name in ("command", "library"):
        overrides = [f"output={tmp_path / name}", "training.evaluate_every=1"]
        if name == "command":
            assert main(["train", "my.yaml", *overrides, "--device", "cpu"]) == 0
        else:
            assert bitad.train(bitad.load_config("my.yaml", overrides), device="cpu").directory.is_dir()
    one, other = (tmp_path / name / "my-forward-seed0" for name in ("command", "library"))
    assert_same_run(one, other)
    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}
    lines = [(run / "log.txt").read_text().splitlines() for run in (one, other)]
    assert len(lines[0]) == len(lines[1]) > 5


# Detections.


def test_detections_are_videos_rows_and_columns(here: Path) -> None:
    detections = bitad.load(FORWARD).detect(["my_videos", "holiday.mp4"])
    assert [video.name for video in detections] == ["test_0", "holiday"] == list(detections.videos)
    assert sum(map(len, detections)) == len(detections) == len(detections.to_rows())
    rows = [
        (video.name, *segment, label, score)
        for video in detections
        for segment, label, score in zip(
            video.segments.tolist(), video.labels.tolist(), video.scores.tolist(), strict=True
        )
    ]
    assert rows == detections.to_rows()
    assert [type(value) for value in rows[0]] == [str, float, float, str, float]
    assert len(detections.COLUMNS) == len(rows[0])
    assert detections["holiday"].duration_s == FRAMES / FPS
    assert "holiday" in detections
    assert "other" not in detections
    with pytest.raises(KeyError, match="other"):
        detections["other"]
    assert repr(detections) == f"Detections(2 videos, {len(detections)} detections, 3 classes)"
    nothing = bitad.Detections.from_videos({}, classes=())
    assert (list(nothing), nothing.to_rows(), len(nothing)) == ([], [], 0)


def test_videos_that_cannot_be_read_raise_or_are_skipped(here: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    detector = bitad.load(FORWARD)
    with pytest.raises(ValueError, match=r"broken\.mp4"):
        detector.detect(["holiday.mp4", tmp_path])
    detections = detector.detect(["holiday.mp4", tmp_path], on_read_error="skip")
    assert detections.videos == ("holiday",)
    assert "broken.mp4" in detections.unread["broken"]
    assert "1 videos unread" in repr(detections)
    nothing = detector.detect(tmp_path, on_read_error="skip")
    assert (nothing.videos, list(nothing.unread)) == ((), ["broken"])


# Frames and features in memory.


def write_lossless(path: Path, frames: NDArray[np.uint8], fps: Fraction) -> None:
    """FFV1 in RGB."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=fps)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="bgr0")))
        container.mux(stream.encode())


@pytest.mark.parametrize("run", [FORWARD, REVERSE])
@pytest.mark.parametrize(
    ("height", "width", "fps"),
    [(32, 32, Fraction(16)), (48, 86, Fraction(2997, 100)), (33, 61, Fraction(25)), (20, 24, Fraction(8))],
)
def test_frames_give_what_a_lossless_file_of_them_gives(
    here: Path, tmp_path: Path, run: str, height: int, width: int, fps: Fraction
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (97, height, width, 3), np.uint8)
    drawn = np.stack([np.resize(numbered_picture(number), (height, width, 3)) for number in range(97)])
    frames = drawn // 2 + noise // 2
    write_lossless(tmp_path / "video.avi", frames, fps)
    detector = bitad.load(run)
    detector.detect(tmp_path / "video.avi").to_json(tmp_path / "file.json")
    detector.predict(frames, float(fps)).to_json(tmp_path / "memory.json")
    assert (tmp_path / "memory.json").read_bytes() == (tmp_path / "file.json").read_bytes()
    assert len(bitad.read_detections(tmp_path / "file.json")) > 0


@pytest.mark.parametrize("layout", ["sliding", "resized"])
def test_features_give_what_their_file_gives(tmp_path: Path, layout: str) -> None:
    config = bitad.load_config(feature_data(tmp_path), [f"window.layout={layout}", "training.epochs=1"])
    run = bitad.train(config)
    detector = run.load(device="cpu")
    tested = bitad.read_detections(run.directory / "detections.json")
    for name in tested.videos:
        features = np.load(tmp_path / "features" / f"{name}.npy")
        duration_s = tested.durations_s[name]
        predicted = detector.predict(features, FPS, name=name, duration_s=duration_s)
        assert predicted.to_rows() == tested.of_video(name).to_rows()
        longest = detector.predict(features, FPS, name=name).durations_s[name]
        assert longest >= len(features) * FEATURE_STRIDE / FPS
    with pytest.raises(ValueError, match="takes pre-computed features, not videos"):
        detector.detect(__file__)
    for wrong in (features[0], features[:, 1:], features[:0], features.astype(np.int64), features * np.nan):
        with pytest.raises(ValueError, match="features are"):
            detector.predict(wrong, FPS)


def test_inputs_that_do_not_fit_are_refused_in_one_line(here: Path) -> None:
    detector = bitad.load(FORWARD)
    frames = np.zeros((40, 32, 32, 3), np.uint8)
    for wrong in (frames[0], frames[..., :1], frames[:0], frames / 255, frames[:, 0]):
        with pytest.raises(ValueError, match=r"frames are .* takes uint8 \[T, H, W, 3\]"):
            detector.predict(wrong, 25.0)
    for fps in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"fps {fps}; give a number above 0"):
            detector.predict(frames, fps)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: bitad.load("runs/none"), FileNotFoundError, "runs/none"),
        (lambda: bitad.load("gt.json"), ValueError, "gt.json"),
        (lambda: bitad.load(FORWARD, config="my.yaml"), ValueError, "contains its configuration"),
        (lambda: bitad.load(FORWARD, device="gpu"), ValueError, "unknown device 'gpu'"),
        (lambda: bitad.load(FORWARD, overrides=["test.nms.sgma=1"]), ValueError, "test.nms.sgma"),
        (lambda: bitad.load(FORWARD).detect("none.mp4"), FileNotFoundError, "none.mp4"),
        (lambda: bitad.load(FORWARD).detect([]), ValueError, "no videos; give at least one"),
        (lambda: bitad.load(FORWARD).detect("runs"), FileNotFoundError, "runs: no videos"),
        (lambda: bitad.load(FORWARD).detect(["holiday.mp4", "holiday.mp4"]), ValueError, "is given twice"),
        (lambda: bitad.read_annotations("none.json"), FileNotFoundError, "none.json"),
        (lambda: bitad.read_detections("my.yaml"), ValueError, "my.yaml"),
        (lambda: bitad.load_config("none.yaml"), FileNotFoundError, "none.yaml"),
        (lambda: bitad.merge(bitad.Detections.from_videos({}, classes=())), ValueError, "at least two"),
        (lambda: bitad.train(bitad.load_config("my.yaml")), ValueError, "my-forward-seed0 exists"),
        (
            lambda: bitad.train(bitad.load_config("my.yaml", ["seed=9"]), resume=True),
            FileNotFoundError,
            "no run to resume",
        ),
        (lambda: bitad.train(bitad.load_config("my.yaml"), until=0), ValueError, "until=0"),
        (lambda: bitad.train(bitad.load_config("my.yaml"), allow_changed_data=True), ValueError, "resume=True"),
    ],
)
def test_what_is_wrong_is_one_line(
    here: Path, call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as raised:
        call()
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_evaluation_that_means_nothing_is_refused(here: Path) -> None:
    annotations, detections = bitad.read_annotations("gt.json"), bitad.detect("holiday.mp4", FORWARD)
    other = bitad.detect("my_videos", FORWARD)
    for found, options, message in (
        (detections, {"subset": "test"}, "no video is in subset 'test'"),
        (other, {"subset": "validation"}, "the detections: no detection is in a video of the annotations, subset"),
        (detections, {"subset": "validation", "tiou": [0.0]}, "above 0 and at most 1"),
        (detections, {"subset": "validation", "ambiguous": "file"}, "only for the kit's rule"),
        (detections, {"subset": "validation", "class_agnostic": True, "rule": "thumos-kit"}, "leave out rule"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            bitad.evaluate(annotations, found, **options)


# What the library leaves alone.

STATE = """
import logging, os, random, signal, sys, threading, warnings

def state():
    known = {
        "root": (logging.root.handlers[:], logging.root.level, logging.root.filters[:], logging.getLoggerClass()),
        "logger": (logging.getLogger("bitad").level, logging.getLogger("bitad").propagate),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "timers": signal.getitimer(signal.ITIMER_REAL),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "environment": dict(os.environ),
        "random": random.getstate(),
        "hooks": (sys.excepthook, threading.excepthook, warnings.showwarning, sys.stdout, sys.stderr),
    }
    if "torch" in sys.modules:
        import numpy as np, torch
        known["torch"] = (torch.get_rng_state().tolist(), torch.get_num_threads(), torch.is_inference_mode_enabled())
        known["torch too"] = (torch.is_grad_enabled(), torch.get_default_dtype(), torch.is_autocast_enabled("cpu"))
        known["numpy"] = str(np.random.get_state())
        known["filters"] = warnings.filters[:]
    return known

def assert_same(before):
    after = state()
    for key in before:
        assert before[key] == after[key], (key, before[key], after[key])
"""


def test_importing_and_loading_change_nothing_in_a_program(here: Path) -> None:
    program = f"""{STATE}
before = state()
import bitad
assert_same(before)
assert "torch" not in sys.modules and "numpy" not in sys.modules
import torch, numpy
torch.manual_seed(3)
before = state()
detector = bitad.load({FORWARD!r}, device="cpu")
assert_same(before)
frames = numpy.zeros((40, 32, 32, 3), numpy.uint8)
found = [detector.predict(frames, 16.0), detector.detect("holiday.mp4"), bitad.read_detections("found.json")]
assert_same(before)
"""
    bitad.detect("holiday.mp4", FORWARD).to_json("found.json")
    done = python(program, here)
    assert (done.stdout, done.stderr) == ("", "")


def test_warnings_reach_a_program_that_configures_no_logging(tmp_path: Path) -> None:
    path = feature_data(tmp_path / "data")
    done = python(f"import bitad; bitad.load_config({str(path)!r}, ['training.keep=3'])", tmp_path)
    assert "training.keep is now called training.keep_last" in done.stderr


def test_training_prints_nothing_and_restores_what_it_changes(here: Path, tmp_path: Path) -> None:
    program = f"""{STATE}
import bitad, torch, numpy
import torch.distributed.fsdp  # PyTorch's optimisers import it, and it sets a filter of warnings
logging.basicConfig(level=logging.WARNING)
config = bitad.load_config("my.yaml", ["output={tmp_path}", "threads=2"])
torch.set_num_threads(1)
torch.manual_seed(3)
before = state()
run = bitad.train(config, device="cpu")
assert_same(before)
assert torch.get_num_threads() == 1
try:
    bitad.train(config)
except ValueError:
    assert_same(before)
"""
    assert forked(program, here) == ("", "")
    log = (tmp_path / "my-forward-seed0" / "log.txt").read_text()
    assert "experiment baseline" in log
    assert "average mAP" in log


def test_progress_is_shown_where_asked_and_the_log_where_configured(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bitad.runtime.progress.SECONDS_BETWEEN_LINES", 0.0)
    detector = bitad.load(FORWARD)
    capsys.readouterr()
    detector.detect("holiday.mp4")
    assert capsys.readouterr() == ("", "")
    detector.detect("holiday.mp4", progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "detecting: " in err
    detector.predict(np.zeros((80, 32, 32, 3), np.uint8), 16.0, progress=True)
    assert "detecting: " in capsys.readouterr().err
    program = """
import logging, bitad
logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s")
bitad.train(bitad.load_config("my.yaml"), resume=True)
"""
    assert "bitad run " in forked(program, here)[1]


def test_a_time_limit_leaves_the_timer_of_the_program() -> None:
    before = signal.setitimer(signal.ITIMER_REAL, 1000.0)
    try:
        with time_limit(5.0, "nothing"):
            assert signal.getitimer(signal.ITIMER_REAL)[0] <= 5
        assert 900 < signal.getitimer(signal.ITIMER_REAL)[0] <= 1000
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)


# Threads.


def test_detectors_in_threads_give_what_each_gives_alone(here: Path) -> None:
    detectors = [bitad.load(run, device="cpu") for run in (FORWARD, REVERSE)]
    videos = ["holiday.mp4", "my_videos"]
    alone = [detector.detect(videos).to_rows() for detector in detectors]
    assert alone[0] != alone[1]
    barrier = threading.Barrier(4)

    def work(number: int) -> list[list[tuple[str, float, float, str, float]]]:
        barrier.wait()
        # Two threads share each detector; half of the time it is loaded in the thread.
        return [
            (detectors[number % 2] if turn % 2 else bitad.load((FORWARD, REVERSE)[number % 2], device="cpu"))
            .detect(videos)
            .to_rows()
            for turn in range(4)
        ]

    with ThreadPoolExecutor(4) as pool:
        for number, found in enumerate(pool.map(work, range(4))):
            assert found == [alone[number % 2]] * 4


def test_a_detector_loaded_meanwhile_does_not_change_a_training(here: Path, tmp_path: Path) -> None:
    configs = [bitad.load_config("my.yaml", [f"output={tmp_path / name}"]) for name in ("alone", "beside")]
    alone = bitad.train(configs[0], device="cpu")
    over = threading.Event()

    def keep_loading() -> int:
        count = 0
        while not over.is_set():
            bitad.load(FORWARD, device="cpu").detect("my_videos")
            count += 1
        return count

    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(keep_loading)
        try:
            beside = bitad.train(configs[1], device="cpu")
        finally:
            over.set()
        assert loading.result() > 0
    assert_same_run(alone.directory, beside.directory)


def test_a_second_training_in_a_process_is_refused_while_one_runs(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = bitad.load_config("my.yaml", [f"output={tmp_path}", "training.epochs=1"])
    step, errors = Trainer._take_step, []

    def during_a_step(trainer: Trainer, batches: Any) -> Any:
        with ThreadPoolExecutor(1) as pool:
            errors.append(pool.submit(bitad.train, bitad.load_config("my.yaml", ["seed=8"])).exception())
        return step(trainer, batches)

    monkeypatch.setattr(Trainer, "_take_step", during_a_step)
    bitad.train(config)
    assert "another thread of this process is training" in str(errors[0])


# Interrupted, as in a notebook.


def test_an_interrupted_training_is_resumed_in_the_same_process(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("whole", "interrupted")
    configs = [bitad.load_config("my.yaml", [f"output={tmp_path / name}", "training.epochs=3"]) for name in names]
    whole = bitad.train(configs[0], device="cpu")
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    state = torch.get_rng_state()
    step = Trainer._take_step

    def interrupted(trainer: Trainer, batches: Any) -> Any:
        if trainer.step == 1:
            signal.raise_signal(signal.SIGINT)
        return step(trainer, batches)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_take_step", interrupted)
        with pytest.raises(KeyboardInterrupt, match=r"last\.pt"):
            bitad.train(configs[1], device="cpu")
    directory = configs[1].run_directory
    assert (directory / "last.pt").is_file()
    assert "stopped after step " in (directory / "log.txt").read_text().splitlines()[-1]
    assert not (directory / "bitad.lock").exists()
    assert not (directory / "best.pt").exists()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert torch.equal(torch.get_rng_state(), state)
    assert not logging.getLogger("bitad").filters
    run = bitad.train(configs[1], resume=True, device="cpu")
    assert run.average_map == whole.average_map
    assert_same_run(whole.directory, run.directory)


def test_a_training_outside_the_main_thread_leaves_signals_alone(here: Path, tmp_path: Path) -> None:
    config = bitad.load_config("my.yaml", [f"output={tmp_path}", "training.epochs=1"])
    handler = signal.getsignal(signal.SIGINT)
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(bitad.train, config).result()
    assert run.directory == config.run_directory
    assert signal.getsignal(signal.SIGINT) is handler
    assert os.listdir(tmp_path) == ["my-forward-seed0"]
