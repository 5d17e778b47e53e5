"""Features of published encoders equal those of the library run by hand, frame by frame and in either direction."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from builders import FPS, feature_data, numbered_picture, numbers_shown
from hub_server import Hub, serving
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from processes import of_two_processes
from published_models import CROPPED, HALF, IMAGENET, PROCESSORS, SIDE, model_of, save_model
from torch import Tensor

from bitad.cli import main
from bitad.config.names import RowsOf
from bitad.data.feature_folder import read_sidecar
from bitad.inference import published_encoders
from bitad.inference.preprocessing import Preprocessing, read_preprocessing
from bitad.inference.published_encoders import Family, PublishedEncoder, load_published_encoder
from bitad.timeline import Direction
from bitad.video.reader import VideoReader
from bitad.video.writer import write_video

transformers = pytest.importorskip("transformers", reason="the extra 'encoders' is not installed")

pytestmark = pytest.mark.usefixtures("one_thread")

DIRECTIONS: tuple[Direction, ...] = ("forward", "reverse")
VIDEO_MODELS = ("videomae", "vjepa2", "vivit", "timesformer", "xclip")
IMAGE_MODELS = ("dinov2", "dinov3_vit", "vit", "clip", "siglip")
CLIPS = {"videomae": 4, "vjepa2": 8, "vivit": 8, "timesformer": 4, "xclip": 4}
TUBELETS = {"videomae": 2, "vjepa2": 2, "vivit": 4, "timesformer": 1, "xclip": 1}
NAMES = ("v3", "v21")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of 3 and 21 frames, wider than high, whose middle squares show the frames' numbers."""
    folder = tmp_path_factory.mktemp("videos")
    for frames in (3, 21):
        pictures = (np.pad(numbered_picture(number), ((0, 0), (8, 8), (0, 0))) for number in range(frames))
        write_video(folder / f"v{frames}.mp4", pictures, fps=FPS, crf=12, gop=12)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a model of one type, made when it is first asked for."""
    made: dict[str, Path] = {}

    def of(kind: str) -> Path:
        if kind not in made:
            made[kind] = save_model(kind, tmp_path_factory.mktemp("models") / kind)
        return made[kind]

    return of


def frames_of(video: Path) -> NDArray[np.uint8]:
    with VideoReader(video) as reader:
        return reader.read(np.arange(reader.info.frames))


def pictures_by_hand(kind: str, frames: NDArray[np.uint8]) -> Tensor:
    """Normalised middle squares ``[n, 3, 32, 32]``."""
    content = PROCESSORS[kind][1]
    content = content.get("image_processor", content)
    pixels = torch.from_numpy(frames[:, :, 8:40]).permute(0, 3, 1, 2).double()
    pixels = pixels / 127.5 - 1 if kind == "vivit" else pixels / 255
    mean, std = (torch.tensor(content[key]).double().view(3, 1, 1) for key in ("image_mean", "image_std"))
    return ((pixels - mean) / std).float()


@torch.no_grad()
def tubelets_by_hand(kind: str, model: Any, clip: Tensor) -> list[NDArray[np.float32]]:
    """The vector of each tubelet of one clip ``[T, 3, 32, 32]``."""
    count = len(clip) // TUBELETS[kind]
    if kind == "xclip":
        frames = model.vision_model(clip).pooler_output @ model.visual_projection.weight.T
        found = model.mit(frames[None])[0][0]
        torch.testing.assert_close(found.mean(0), model.get_video_features(clip[None]).pooler_output[0])
        return list(found.numpy())
    if kind == "vjepa2":
        tokens = model(pixel_values_videos=clip[None], skip_predictor=True).last_hidden_state[0]
    else:
        tokens = model(pixel_values=clip[None])[0][0]
    if kind in ("vivit", "timesformer"):
        tokens = tokens[1:]
    places = len(tokens) // count
    if kind == "timesformer":  # all frames of the first place come first
        tokens = torch.stack([tokens[place * count + frame] for frame in range(count) for place in range(places)])
    return [tokens[i * places : (i + 1) * places].mean(0).numpy() for i in range(count)]


@torch.no_grad()
def picture_by_hand(kind: str, model: Any, picture: Tensor) -> NDArray[np.float32]:
    if kind == "clip":
        return (model.vision_model(picture[None]).pooler_output @ model.visual_projection.weight.T)[0].numpy()
    if kind == "siglip":
        return model.vision_model(picture[None]).pooler_output[0].numpy()
    return model(picture[None]).last_hidden_state[0, 0].numpy()


def rows_by_hand(
    kind: str, model: Any, pictures: Tensor, rows: RowsOf, direction: Direction, *, stride: int = 4, step: int = 1
) -> NDArray[np.float32]:
    """Clip after clip, each alone."""
    length, tubelet = CLIPS[kind], TUBELETS[kind]

    def of_clip(numbers: list[int]) -> list[NDArray[np.float32]]:
        played = numbers if direction == "forward" else numbers[::-1]
        played = played + [played[-1]] * (length - len(played))
        return tubelets_by_hand(kind, model, pictures[played])

    total = len(pictures)
    if rows == "clip":
        starts = range(0, max(1, total - step * (length - 1)), stride)
        clips = [[n for n in range(start, start + step * length, step) if n < total] for start in starts]
        return np.stack([np.mean(of_clip(clip), axis=0) for clip in clips])
    found: dict[int, NDArray[np.float32]] = {}
    count = max(1, (total - step * (tubelet - 1) - 1) // (tubelet * step) + 1)
    per_clip = length // tubelet
    firsts = [*range(0, count - per_clip, per_clip), max(0, count - per_clip)]
    for first in firsts:
        numbers = [step * (first * tubelet + i) for i in range(length)]
        numbers = [n for n in numbers[: count * tubelet] if n < total]
        vectors = of_clip(numbers)[: max(1, len(numbers) // tubelet)]
        for i, vector in enumerate(vectors if direction == "forward" else vectors[::-1]):
            found.setdefault(first + i, vector)
    return np.stack([found[i] for i in range(count)])


def features(*arguments: object) -> int:
    return main(["features", *map(str, arguments), "--device", "cpu"])


# What features are.


@pytest.mark.parametrize("kind", VIDEO_MODELS)
def test_features_of_clips_are_those_of_the_library_by_hand(
    kind: str, folder: Callable[[str], Path], videos: Path, tmp_path: Path
) -> None:
    model = folder(kind)
    theirs = transformers.AutoModel.from_pretrained(model).eval()
    for rows in ("clip", "tubelet"):
        out = tmp_path / rows
        command = (videos, "--encoder", model, "--direction", "both", "--batch", 3, "--out", out, "--rows", rows)
        assert features(*command) == 0
        for name in NAMES:
            pictures = pictures_by_hand(kind, frames_of(videos / f"{name}.mp4"))
            for view in DIRECTIONS:
                found = np.load(out / view / f"{name}.npy")
                expected = rows_by_hand(kind, theirs, pictures, rows, view)
                np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
                assert len(found) < 4 or expected.std(axis=0).mean() > 1e-3
    forward, reverse = (np.load(out / view / "v21.npy") for view in DIRECTIONS)
    assert np.abs(forward - reverse).max() > 1e-3


@pytest.mark.parametrize("kind", IMAGE_MODELS)
def test_features_of_frames_are_those_of_the_library_by_hand(
    kind: str,
    folder: Callable[[str], Path],
    videos: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    model = folder(kind)
    theirs = transformers.AutoModel.from_pretrained(model).eval()
    assert features(videos, "--encoder", model, "--direction", "both", "--stride", 3, "--out", tmp_path) == 0
    assert "sees single frames: its features of both playing directions are the same" in caplog.text
    for name in NAMES:
        pictures = pictures_by_hand(kind, frames_of(videos / f"{name}.mp4"))[::3]
        expected = np.stack([picture_by_hand(kind, theirs, picture) for picture in pictures])
        for view in DIRECTIONS:
            found = np.load(tmp_path / view / f"{name}.npy")
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        assert expected.std(axis=0).mean() > 1e-3 or len(expected) == 1
    said = read_sidecar(tmp_path / "reverse").settings
    assert (said.feature_stride_frames, said.feature_offset_frames, said.clip_frames) == (3, 0, 1)


def test_clips_may_be_longer_and_sparser(folder: Callable[[str], Path], videos: Path, tmp_path: Path) -> None:
    theirs = transformers.AutoModel.from_pretrained(folder("vjepa2")).eval()
    pictures = pictures_by_hand("vjepa2", frames_of(videos / "v21.mp4"))
    for rows in ("clip", "tubelet"):
        out = tmp_path / rows
        options = ("--frame-step", 2, "--direction", "both", "--rows", rows, "--batch", 1, "--out", out)
        assert features(videos / "v21.mp4", "--encoder", folder("vjepa2"), *options) == 0
        for view in DIRECTIONS:
            expected = rows_by_hand("vjepa2", theirs, pictures, rows, view, step=2)
            np.testing.assert_allclose(np.load(out / view / "v21.npy"), expected, rtol=1e-5, atol=1e-5)
    assert features(videos, "--encoder", folder("vjepa2"), "--clip-frames", 16, "--out", tmp_path / "long") == 0
    with torch.no_grad():
        tokens = theirs(pixel_values_videos=pictures[None, 4:20], skip_predictor=True).last_hidden_state[0]
    found = np.load(tmp_path / "long" / "v21.npy")
    np.testing.assert_allclose(found[1], tokens.mean(0).numpy(), rtol=1e-5, atol=1e-5)
    assert read_sidecar(tmp_path / "long").settings.feature_offset_frames == 7.5


def test_the_sidecar_states_what_rows_are_and_their_times(
    folder: Callable[[str], Path], videos: Path, tmp_path: Path
) -> None:
    options = ("--rows", "tubelet", "--frame-step", 3, "--direction", "reverse", "--half", "--out", tmp_path)
    assert features(videos, "--encoder", folder("vivit"), *options, "--precision", "bfloat16") == 0
    said = read_sidecar(tmp_path)
    expected = {
        "feature_stride_frames": 12,
        "feature_offset_frames": 4.5,
        "feature_channels": 24,
        "direction": "reverse",
        "model": "vivit",
        "clip_frames": 8,
        "window_steps": None,
        "window_overlap": None,
        "pixels": 32,
        "precision": "bfloat16",
        "stored": "float16",
        "checkpoint": "vivit",
        "rows": "tubelet",
        "tubelet_frames": 4,
        "frame_step": 3,
        "vector": "mean of patch tokens",
        "preprocessing": "shorter side 32, bilinear; middle 32 x 32; pixels * 0.00784314 -1; mean 0.5 0.5 0.5; "
        "std 0.5 0.5 0.5",
    }
    assert expected == {key: value for key, value in asdict(said.settings).items() if key != "checkpoint_sha256"}
    assert {name: (video.fps, video.steps) for name, video in said.videos.items()} == {
        "v21": (16, 1),
        "v3": (16, 1),
    }
    half = np.load(tmp_path / "v21.npy")
    assert half.dtype == np.float16
    assert features(videos, "--encoder", folder("vivit"), *options[:-1], tmp_path / "whole") == 0
    error = np.abs(np.load(tmp_path / "whole" / "v21.npy") - half).max() / np.abs(half).max()
    assert 1e-4 < error < 0.1


# The times of rows.


def clock(length: int, tubelet: int, rows: Callable[[Any, Tensor], Tensor]) -> tuple[Any, Family]:
    """A model that is a function of the pictures of clips."""
    model = SimpleNamespace(config=SimpleNamespace(model_type="clock"))
    model.eval = lambda: model
    return model, Family(
        rows, "time", lambda config: 2, frames=lambda config: length, tubelet=lambda config: tubelet
    )


# Pixels as they are, of one picture's size.
PLAIN = Preprocessing(None, (1, 1), "bilinear", 1.0, 0.0, (0.0,) * 3, (1.0,) * 3)


@given(
    total=st.integers(1, 90),
    tubelet=st.integers(1, 3),
    tubelets=st.integers(1, 4),
    step=st.integers(1, 3),
    stride=st.integers(1, 9),
    batch=st.integers(1, 4),
    rows=st.sampled_from(["clip", "tubelet"]),
    direction=st.sampled_from(DIRECTIONS),
)
@settings(deadline=None, max_examples=80)
def test_every_row_is_of_the_time_that_stride_and_offset_give_it(
    total: int,
    tubelet: int,
    tubelets: int,
    step: int,
    stride: int,
    batch: int,
    rows: RowsOf,
    direction: Direction,
) -> None:
    length = tubelet * tubelets

    def read(model: Any, pictures: Tensor) -> Tensor:
        """The mean of a tubelet's pixels, and those of the clip's last frame less the first's."""
        values = pictures.mean((2, 3, 4))  # [N, T]
        order = (values[:, -1:] - values[:, :1]).expand(-1, tubelets)
        return torch.stack([values.unflatten(1, (-1, tubelet)).mean(2), order], 2)

    encoder = PublishedEncoder(
        *clock(length, tubelet, read),
        PLAIN,
        source="clock",
        sha256="",
        stride_frames=stride if rows == "clip" else None,
        frame_step=step,
        rows=rows,
        clips=batch,
    )
    found, expected_next = [], 0
    for chunk in encoder.chunks(total):
        assert chunk.first == expected_next
        assert (np.diff(chunk.frames) > 0).all()
        assert chunk.frames[0] >= 0
        assert chunk.frames[-1] < total
        pictures = torch.from_numpy(chunk.frames).float().view(-1, 1, 1, 1).expand(-1, 3, 1, 1)
        found.append(encoder.encode(pictures, chunk, direction))
        assert len(found[-1]) == chunk.stop - chunk.first
        expected_next = chunk.stop
    times, order = torch.cat(found).unbind(1)
    assert len(times) == encoder.steps(total) == expected_next
    reach = step * ((length if rows == "clip" else tubelet) - 1) + 1
    if total >= reach:
        stated = encoder.offset_frames + encoder.stride_frames * np.arange(len(times))
        np.testing.assert_allclose(times.numpy(), stated, atol=1e-3)
        assert stated[-1] + encoder.stride_frames + (reach - 1) / 2 > total - 1  # another row has no room
    assert (order <= 0).all() if direction == "reverse" else (order >= 0).all()


@pytest.mark.parametrize("rows", ["clip", "tubelet"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_rows_of_bar_codes_show_the_frames_that_they_are_of(
    rows: RowsOf, direction: Direction, videos: Path
) -> None:
    seen: list[list[int]] = []

    def read(model: Any, pictures: Tensor) -> Tensor:
        shown = [numbers_shown(clip.permute(0, 2, 3, 1).byte().numpy()) for clip in pictures]
        seen.extend(shown)
        return torch.tensor(shown).float().unflatten(1, (-1, 2)).mean(2, keepdim=True)

    preprocessing = replace(PLAIN, size=SIDE, crop=(SIDE, SIDE))
    encoder = PublishedEncoder(*clock(8, 2, read), preprocessing, source="clock", sha256="", rows=rows, clips=2)
    with VideoReader(videos / "v21.mp4") as reader:
        chunks = list(encoder.chunks(reader.info.frames))
        parts = [
            encoder.encode(pictures, chunk, direction)
            for pictures, chunk in zip(encoder.pictures(reader, chunks), chunks, strict=True)
        ]
    times = torch.cat(parts)[:, 0].tolist()
    assert times == [encoder.offset_frames + encoder.stride_frames * i for i in range(len(times))]
    assert len(times) == {"clip": 4, "tubelet": 10}[rows]
    starts = {"clip": [0, 4, 8, 12], "tubelet": [0, 8, 12]}[rows]
    forward = [list(range(start, start + 8)) for start in starts]
    assert seen == (forward if direction == "forward" else [clip[::-1] for clip in forward])


# Pictures.


def picture() -> NDArray[np.uint8]:
    """One frame ``[1, 50, 70, 3]`` of stripes and waves."""
    y, x = np.arange(50), np.arange(70)
    planes = (np.add.outer(3 * y, 2 * x), np.multiply.outer(y, x), np.add.outer(y**2, 5 * x))
    return (np.stack(planes, -1) % 256).astype(np.uint8)[None]


SCALED = {key: value for key, value in CROPPED.items() if key not in ("do_center_crop", "crop_size")}
SQUARE = {**SCALED, "size": {"height": SIDE, "width": SIDE}}
CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
}
# What the library's processors of version 5.23 with torchvision 0.28 make of `picture`: the means of the channels, and
# the pixels at (3, 5) and (20, 30).
RECORDED: dict[str, tuple[dict[str, Any], list[float]]] = {
    "VJEPA2VideoProcessor": (
        {**CROPPED, **IMAGENET, "size": {"shortest_edge": 36}},
        [0.32237, 0.19003, 0.44021, -1.07329, 0.43277, 0.80993, 1.3413, 0.53782, 1.28052],
    ),
    "VideoMAEVideoProcessor": (
        {**CROPPED, **HALF},
        [0.10683, -0.04413, 0.00113, -0.6, -0.30196, -0.10588, 0.64706, -0.35686, -0.01961],
    ),
    "VivitVideoProcessor": (
        {**CROPPED, **HALF, "size": {"shortest_edge": 40}, "rescale_factor": 1 / 127.5},
        [-0.76471, -0.99246, -0.98704, -1.90196, -0.01961, -0.08235, 0.05882, -2.0902, -0.66274],
    ),
    "TimesformerVideoProcessor": (  # smaller than the crop: black around it
        {**CROPPED, **IMAGENET, "size": {"shortest_edge": 20}},
        [-0.84129, -0.92352, -0.61089, -2.1179, -2.03571, -1.80444, -2.1179, -2.03571, -1.80444],
    ),
    "CLIPImageProcessor": (
        {**CROPPED, **CLIP, "size": {"shortest_edge": 40}},
        [0.28801, 0.17102, 0.34045, -0.77037, 1.08437, 1.16471, 1.05443, -1.19681, 0.79499],
    ),
    "SiglipImageProcessor": (
        {**SQUARE, **HALF, "resample": 3},
        [0.06899, -0.09028, -0.01824, -0.70196, -0.55294, -0.34902, 0.78824, -0.12157, -0.72549],
    ),
    "DINOv3ViTImageProcessor": (
        {**SQUARE, **IMAGENET},
        [0.21601, -0.00571, 0.37612, -1.46747, -1.03151, -0.36096, 1.77272, 0.04915, -0.91586],
    ),
    "ViTImageProcessor": (
        {**SQUARE, **HALF},
        [0.06895, -0.09053, -0.01906, -0.70196, -0.5451, -0.34902, 0.78824, -0.06667, -0.6],
    ),
}


def processor(folder: Path, content: dict[str, Any], *, of_videos: bool) -> Preprocessing:
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    return read_preprocessing(folder, of_videos=of_videos)


@pytest.mark.parametrize("name", RECORDED)
def test_pictures_are_those_of_the_librarys_processor(name: str, tmp_path: Path) -> None:
    content, expected = RECORDED[name]
    of_videos = "Video" in name
    kind = "video_processor_type" if of_videos else "image_processor_type"
    made = processor(tmp_path, {**content, kind: name}, of_videos=of_videos)
    pixels = made.scale_and_crop(picture())
    assert (pixels.dtype == torch.uint8) == (name != "DINOv3ViTImageProcessor")
    found = made.normalise(pixels)[0]
    assert found.shape == (3, SIDE, SIDE) == (3, *made.picture_size)
    figures = [*found.mean((1, 2)).tolist(), *found[:, 3, 5].tolist(), *found[:, 20, 30].tolist()]
    np.testing.assert_allclose(figures, expected, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "content", "of_videos"),
    [
        ("VideoMAEImageProcessorPil", RECORDED["VideoMAEVideoProcessor"][0], True),
        ("CLIPImageProcessorPil", RECORDED["CLIPImageProcessor"][0], False),
        ("SiglipImageProcessorPil", RECORDED["SiglipImageProcessor"][0], False),
    ],
)
def test_processors_on_pillow_differ_by_a_grey_level_at_most(
    name: str, content: dict[str, Any], of_videos: bool, tmp_path: Path
) -> None:
    if (theirs := getattr(transformers, name, None)) is None:
        pytest.skip(f"this version of transformers has no {name}")
    made = processor(tmp_path, content, of_videos=of_videos)
    ours = made.normalise(made.scale_and_crop(picture()))
    output = theirs(**content)([list(picture())] if of_videos else list(picture()), return_tensors="np")
    expected = np.asarray(output["pixel_values"]).reshape(1, 3, SIDE, SIDE)
    level = 1 / 255 / min(content["image_std"])
    assert np.abs(ours.numpy() - expected).max() < 1.01 * level
    assert np.abs(ours.numpy() - expected).mean() < 0.02 * level


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"resample": 1}, "resample=1 is not supported, only 2, 3"),
        ({"do_pad": True}, "do_pad is not supported"),
        (
            {"size": {"longest_edge": 5, "shortest_edge": 3}},
            "a size of longest_edge, shortest_edge is not supported",
        ),
        ({"do_center_crop": False}, "it states no size of the pictures"),
        ({"crop_size": None}, "is damaged: its sizes or numbers are of no known form"),
        ({"image_mean": [0.5]}, "1 channels, where pictures have 3"),
        ({"image_std": "x"}, "could not convert"),
    ],
)
def test_processors_that_ask_for_more_are_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        processor(tmp_path, {**CROPPED, **HALF, **change}, of_videos=True)
    assert "preprocessor_config.json" in str(caught.value)


# The command.


def test_the_same_command_goes_on_and_other_weights_are_refused(
    folder: Callable[[str], Path], videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = (videos, "--encoder", f"hf:{folder('videomae')}", "--out", tmp_path / "out")
    assert features(*command) == 0
    (tmp_path / "out" / "v3.npy").unlink()
    capsys.readouterr()
    assert features(*command) == 0
    placed = "data.feature_channels=24 data.feature_stride_frames=4 data.feature_offset_frames=1.5"
    assert capsys.readouterr().out.splitlines() == [
        "1 done, 1 kept from before, 0 failed",
        f"data.features={tmp_path / 'out'} {placed}",
    ]
    other = save_model("videomae", tmp_path / "videomae")
    name, content = PROCESSORS["videomae"]
    (other / name).write_text(json.dumps({**content, "resample": 3}))
    assert features(videos, "--encoder", other, "--out", tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert "holds other features: checkpoint was" in said
    assert "preprocessing was shorter side 32, bilinear" in said


def test_folders_of_earlier_versions_are_continued(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = ("--checkpoint", "package:playroom_backbone.safetensors", "--pixels", 32, "--out", tmp_path)
    assert features(videos / "v3.mp4", *tiny) == 0
    content = json.loads((tmp_path / "features.json").read_text())
    for key in ("rows", "tubelet_frames", "frame_step", "vector", "preprocessing"):
        del content["settings"][key]
    (tmp_path / "features.json").write_text(json.dumps(content))
    capsys.readouterr()
    assert features(videos / "v3.mp4", *tiny) == 0
    assert capsys.readouterr().out.startswith("0 done, 1 kept from before, 0 failed\n")


def test_two_processes_write_what_one_writes(folder: Callable[[str], Path], videos: Path, tmp_path: Path) -> None:
    command = (videos, "--encoder", folder("vjepa2"), "--rows", "tubelet", "--direction", "both", "--out")
    assert features(*command, tmp_path / "one") == 0
    first, second = of_two_processes("features", *command, tmp_path / "two", "--device", "cpu")
    assert (first[0], second[0]) == (0, 0), (first, second)
    for view in DIRECTIONS:
        assert read_sidecar(tmp_path / "two" / view) == read_sidecar(tmp_path / "one" / view)
        for name in NAMES:
            one, two = (np.load(tmp_path / place / view / f"{name}.npy") for place in ("one", "two"))
            np.testing.assert_array_equal(one, two)


def test_a_pair_trains_on_what_it_wrote(folder: Callable[[str], Path], tmp_path: Path) -> None:
    like = feature_data(tmp_path / "data", training=2, test=1)
    names = [path.stem for path in (like.parent / "features").glob("*.npy")]
    truth = json.loads((like.parent / "annotations.json").read_text())["database"]
    for name in names:
        frames = round(truth[name]["duration"] * FPS)
        write_video(tmp_path / "videos" / f"{name}.mp4", map(numbered_picture, range(frames)), fps=FPS, crf=12)
    options = ("--rows", "tubelet", "--direction", "both", "--out", tmp_path / "out")
    assert features(tmp_path / "videos", "--encoder", folder("timesformer"), *options) == 0
    changes = [
        f"data.features={tmp_path / 'out' / 'forward'}",
        f"data.reversed_features={tmp_path / 'out' / 'reverse'}",
        *read_sidecar(tmp_path / "out" / "forward").settings.overrides().split(),
        "experiment=1",
        f"output={tmp_path / 'runs'}",
        "window.steps=64",
        "training.epochs=1",
    ]
    assert main(["train", str(like), *changes, "--device", "cpu"]) == 0
    assert (tmp_path / "runs" / "tiny-1-seed0" / "best.pt").is_file()


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, videos: Path) -> Callable[..., str]:
    """The one line with which ``bitad features`` refuses its arguments, and writes nothing."""

    def line(*arguments: object) -> str:
        capsys.readouterr()
        assert features(videos, *arguments, "--out", tmp_path / "refused") == 1
        out, err = capsys.readouterr()
        assert out == ""
        *logged, said = err.splitlines()
        assert said.startswith("bitad features: error: ")
        assert all("downloading it from" in one for one in logged)
        assert not (tmp_path / "refused").exists()
        return said

    return line


def test_a_missing_package_is_one_line_that_names_the_extra(
    refused: Callable[..., str], folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = folder("videomae")
    monkeypatch.setattr(published_encoders, "find_spec", lambda name: None)
    said = refused("--encoder", model)
    assert said.endswith("--encoder needs the package transformers: pip install 'bitad[encoders]'")


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("videomae", ["--stride", 0], "a stride of 0 frames; it must be at least 1"),
        ("videomae", ["--batch", 0], "a batch of 0 clips"),
        ("videomae", ["--frame-step", 0], "--frame-step 0: it must be at least 1"),
        ("videomae", ["--clip-frames", 8], "videomae (videomae) takes clips of 4 frames, not 8"),
        ("vjepa2", ["--clip-frames", 7], "clips of 7 frames; vjepa2 (vjepa2) takes a multiple of 2"),
        (
            "vjepa2",
            ["--rows", "tubelet", "--stride", 3],
            "rows of tubelets are 2 frames apart: leave out --stride",
        ),
        (
            "dinov2",
            ["--rows", "tubelet"],
            "dinov2 (dinov2) takes single frames; leave out --rows, --clip-frames and",
        ),
        ("dinov2", ["--clip-frames", 2], "takes single frames; leave out"),
        ("videomae", ["--pixels", 32], "--pixels is not for --encoder, whose files state"),
        ("videomae", ["--config", "thumos14"], "--config is not for --encoder"),
    ],
)
def test_settings_that_do_not_fit_a_model_are_refused(
    kind: str, options: list[object], said: str, refused: Callable[..., str], folder: Callable[[str], Path]
) -> None:
    assert said in refused("--encoder", folder(kind), *options)


@pytest.mark.parametrize("option", [("--rows", "clip"), ("--frame-step", 1)])
def test_options_of_published_encoders_are_not_for_others(
    option: tuple[object, ...], refused: Callable[..., str]
) -> None:
    said = refused("--checkpoint", "package:playroom_backbone.safetensors", *option)
    assert f"{option[0]} is for --encoder; leave it out with --checkpoint" in said


def test_folders_that_are_no_encoder_are_refused(
    refused: Callable[..., str], folder: Callable[[str], Path], tmp_path: Path
) -> None:
    assert "no such folder of a model; a model of the Hugging Face Hub is hf:" in refused(
        "--encoder", "facebook/x"
    )
    broken = save_model("vit", tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())

    def with_config(**changes: object) -> str:
        (broken / "config.json").write_text(json.dumps({**config, **changes}))
        return refused("--encoder", broken)

    assert "is a model of type bert, which is not supported; known: videomae, vjepa2, vivit" in with_config(
        model_type="bert"
    )
    assert "processor makes pictures of 32x32 pixels, and the network takes 48x48" in with_config(
        image_size=48
    ) or ("cannot be loaded" in with_config(image_size=48))
    assert "broken lacks weights of a vit: " in with_config(num_hidden_layers=3)
    (broken / "config.json").write_text(json.dumps(config))
    (broken / "model.safetensors").write_bytes(b"no weights")
    assert "broken cannot be loaded: " in refused("--encoder", broken)
    (broken / "model.safetensors").unlink()
    assert "broken has no weights (model.safetensors, " in refused("--encoder", broken)
    (broken / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    assert "broken lacks files of its weights: model-1.safetensors" in refused("--encoder", broken)
    (broken / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    assert "is damaged: ../x.safetensors is not a file beside it" in refused("--encoder", broken)
    (broken / "config.json").unlink()
    assert "broken has no config.json" in refused("--encoder", broken)
    lacking = tmp_path / "lacking"
    model_of("vit").save_pretrained(lacking)
    assert "has no processor's file (processor_config.json, " in refused("--encoder", lacking)
    (lacking / "preprocessor_config.json").write_text(json.dumps({**SQUARE, **HALF, "size": 48}))
    said = "lacking: its processor makes pictures of 48x48 pixels, and the network takes 32x32; correct the"
    assert said in refused("--encoder", lacking)


# Models by name.


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as hub:
        hub.use(monkeypatch, tmp_path / "huggingface")
        yield hub


def serve(hub: Hub, repository: str, folder: Path) -> None:
    for path in folder.iterdir():
        hub.files[repository, path.name] = path.read_bytes()


def test_a_model_is_downloaded_once(
    hub: Hub, folder: Callable[[str], Path], videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sharded = tmp_path / "sharded"
    model_of("dinov2").save_pretrained(sharded, max_shard_size="20KB")
    name, content = PROCESSORS["dinov2"]
    (sharded / name).write_text(json.dumps(content))
    assert len(list(sharded.glob("*.safetensors"))) > 1
    serve(hub, "owner/whole", folder("dinov2"))
    serve(hub, "owner/shards", sharded)
    for repository in ("owner/whole", "owner/shards@v1"):
        out = tmp_path / repository.replace("/", "-")
        assert features(videos, "--encoder", f"hf:{repository}", "--out", out) == 0
        assert read_sidecar(out).settings.checkpoint == f"hf:{repository}"
    one, two = (np.load(tmp_path / f"owner-{kind}" / "v21.npy") for kind in ("whole", "shards@v1"))
    np.testing.assert_array_equal(one, two)
    hub.requests.clear()
    load_published_encoder("hf:owner/whole")
    hub.use(monkeypatch, tmp_path / "huggingface", offline=True)
    load_published_encoder("hf:owner/shards@v1")
    assert hub.requests == []


def test_models_that_the_hub_does_not_have_are_one_line(
    hub: Hub,
    folder: Callable[[str], Path],
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    serve(hub, "owner/gated", folder("dinov2"))
    serve(hub, "owner/open", folder("dinov2"))
    hub.gated.add("owner/gated")
    said = refused("--encoder", "hf:x/y")
    assert f"hf:x/y:config.json: no such repository, or a private one; check the name at {hub.url}, or set" in said
    said = refused("--encoder", "hf:owner/gated")
    assert (
        f"its owner grants access by request; ask at {hub.url}/owner/gated and set HF_TOKEN, or download" in said
    )
    assert "the repository has no revision v9" in refused("--encoder", "hf:owner/open@v9")
    for name in ("hf:nothing", "hf:owner/open:config.json"):
        said = refused("--encoder", name)
        assert (
            f"'{name}' is not a name of a model; give hf:OWNER/NAME or hf:OWNER/NAME@REVISION, or a folder" in said
        )
    assert hub.downloads == []
    hub.use(monkeypatch, tmp_path / "huggingface", offline=True)
    said = refused("--encoder", "hf:owner/open")
    assert "HF_HUB_OFFLINE forbids to download it; unset that, or download the repository by hand from" in said
