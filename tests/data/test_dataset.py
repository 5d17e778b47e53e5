"""What the detector sees: the same windows from either playing direction, and from nothing but seed, epoch and item."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import (
    CHANNELS,
    CLASSES,
    FEATURE_OFFSET,
    FEATURE_STRIDE,
    FPS,
    PIXELS,
    config_of,
    feature_data,
    numbers_shown,
    video_data,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from bitad.config.schema import Config, WindowConfig
from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.dataset import TestWindows, TrainingWindows, ground_truth_in_steps
from bitad.data.formats.database import read_annotations
from bitad.data.samples import Batch, Sample, collate
from bitad.data.sources import Sampling, Source, VideoFiles, build_source
from bitad.demo.playroom import render, sample_scene
from bitad.timeline import Direction, Grid
from bitad.video.indexing import IndexCache
from bitad.video.reader import VideoReader
from bitad.video.reverse import reverse_folder, reverse_video
from bitad.video.writer import write_video

PAIR = ("experiment=1",)  # two networks on the same windows, the second in reverse
FRAMES = 75  # of a video: 38 grid steps, so a window of 32 does not hold it


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return feature_data(tmp_path_factory.mktemp("features") / "data")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos") / "data"
    path = video_data(folder, frames=FRAMES)
    assert not reverse_folder(folder / "videos", folder / "reversed", workers=0).failed
    return path


def annotations_of(config: Config) -> Annotations:
    return read_annotations(config.data.annotations, classes=config.data.classes)


def training_windows(config: Config, source: Source | None = None) -> TrainingWindows:
    return TrainingWindows(annotations_of(config).subset("training"), source or build_source(config), config)


def windows_to_test(config: Config, source: Source | None = None) -> TestWindows:
    return TestWindows(annotations_of(config).subset("validation"), source or build_source(config), config)


class CountingSource:
    """A source that remembers which views were read."""

    def __init__(self, source: Source) -> None:
        self.source, self.reads = source, list[Direction]()

    @property
    def has_reversed_copies(self) -> bool:
        return self.source.has_reversed_copies

    @property
    def repeated(self) -> int:
        return self.source.repeated

    def grid(self, video: AnnotatedVideo) -> Grid:
        return self.source.grid(video)

    def read(
        self, video: AnnotatedVideo, grid: Grid, *, view: Direction = "forward", margin: float = 1.0
    ) -> torch.Tensor:
        self.reads.append(view)
        return self.source.read(video, grid, view=view, margin=margin)


def every(stride: int) -> Sampling:
    return Sampling(WindowConfig(stride_frames=stride))


def same(a: Sample, b: Sample) -> bool:
    return (
        (a.video, a.grid, a.view, a.reversed_copy is None) == (b.video, b.grid, b.view, b.reversed_copy is None)
        and torch.equal(a.content, b.content)
        and (a.reversed_copy is None or b.reversed_copy is None or torch.equal(a.reversed_copy, b.reversed_copy))
        and np.array_equal(a.segments, b.segments)
        and np.array_equal(a.labels, b.labels)
        and np.array_equal(np.asarray(a.colour), np.asarray(b.colour))  # both may be None
    )


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio in dB of each frame of ``[T, H, W, 3]``."""
    squared_error = np.square(a.astype(np.float64) - b).mean(axis=(1, 2, 3))
    return 10 * np.log10(255**2 / np.maximum(squared_error, 1e-9))


# Both directions.


@pytest.mark.parametrize("data", ["features", "videos"])
def test_a_sample_reversed_twice_is_itself(data: str, request: pytest.FixtureRequest) -> None:
    sample = training_windows(config_of(request.getfixturevalue(data)))[0]
    reverse = sample.reversed()
    assert reverse.view == "reverse"
    assert torch.equal(reverse.content, sample.content.flip(0))
    assert reverse.grid == sample.grid  # on the forward clock, whatever the view
    assert same(reverse.reversed(), replace(sample, segments=reverse.reversed().segments))
    np.testing.assert_allclose(reverse.reversed().segments, sample.segments, atol=1e-9)


@pytest.mark.parametrize("data", ["features", "videos"])
def test_the_reverse_direction_sees_the_forward_windows_flipped(data: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(data)
    forward, reverse = config_of(path), config_of(path, "direction=reverse")
    for make in (training_windows, windows_to_test):
        ahead, back = make(forward), make(reverse)
        assert len(ahead) == len(back) > 0
        assert all(same(ahead[i].reversed(), back[i]) for i in range(len(ahead)))


def test_a_window_holds_the_frames_that_its_grid_names(videos: Path) -> None:
    windows = windows_to_test(config_of(videos))
    assert [sample.grid.first_frame for sample in map(windows.__getitem__, range(len(windows)))] == [0, 12]
    for i in range(len(windows)):
        sample = windows[i]
        assert numbers_shown(sample.content.numpy()) == sample.grid.frames().tolist()
        assert numbers_shown(sample.reversed().content.numpy()) == sample.grid.frames()[::-1].tolist()


def test_reversed_files_give_the_forward_windows_flipped_frame_for_frame(videos: Path) -> None:
    flipped = windows_to_test(config_of(videos, "direction=reverse"))
    from_copies = windows_to_test(
        config_of(videos, "direction=reverse", f"data.reversed_videos={videos.parent / 'reversed'}")
    )
    assert len(flipped) == len(from_copies) == 2
    for i in range(len(flipped)):
        a, b = flipped[i], from_copies[i]
        assert (a.grid, a.view) == (b.grid, b.view)
        assert numbers_shown(b.content.numpy()) == a.grid.frames()[::-1].tolist()
        assert psnr(a.content.numpy(), b.content.numpy()).min() > 30


def test_reversed_files_give_the_same_training_examples(videos: Path) -> None:
    plain = ("training.augmentation.flip=0", "training.augmentation.crop_area=[1, 1]", "direction=reverse")
    flipped = training_windows(config_of(videos, *plain))
    from_copies = training_windows(config_of(videos, *plain, f"data.reversed_videos={videos.parent / 'reversed'}"))
    for i in range(len(flipped)):
        a, b = flipped[i], from_copies[i]
        assert same(replace(a, content=b.content), b)
        assert psnr(a.content.numpy(), b.content.numpy()).min() > 30


@pytest.mark.parametrize("stride", [1, 3])
def test_rendered_videos_reversed_match_frame_by_frame_and_no_neighbour_does(tmp_path: Path, stride: int) -> None:
    fps, frames = 8.0, 41
    scene = replace(sample_scene((3, 1), frames / fps, gap_s=(0.1, 0.4)), noise=0.0, pan=(0.05, 3.0, 0.03, 2.0))
    pictures = render(scene, (np.arange(frames) / fps).astype(np.float32), 64)
    write_video(tmp_path / "a.mp4", pictures, fps=fps, crf=12)
    reverse_video(tmp_path / "a.mp4", tmp_path / "b.mp4")
    video = AnnotatedVideo("a", "test", frames / fps, np.zeros((0, 2)), ())

    def source(find_reversed: Callable[[str], Path] | None) -> VideoFiles:
        return VideoFiles(
            lambda name: tmp_path / "a.mp4", pixels=64, sampling=every(stride), find_reversed=find_reversed
        )

    direct, reversed_copy = source(None), source(lambda name: tmp_path / "b.mp4")
    grid = direct.grid(video).window(2, 11)
    assert reversed_copy.grid(video) == direct.grid(video)
    ours, theirs = direct.read(video, grid).numpy(), reversed_copy.read(video, grid, view="reverse").numpy()
    assert psnr(ours, theirs).min() > 32
    assert (psnr(ours, theirs) > psnr(ours[1:], theirs[:-1]).max() + 3).all()
    assert (psnr(ours, theirs) > psnr(ours[:-1], theirs[1:]).max() + 3).all()


def test_a_reversed_file_of_another_length_is_refused(tmp_path: Path, videos: Path) -> None:
    folder = videos.parent / "videos"
    source = VideoFiles(
        lambda name: folder / f"{name}.mp4",
        pixels=PIXELS,
        sampling=every(1),
        find_reversed=lambda name: tmp_path / "short.mp4",
    )
    write_video(tmp_path / "short.mp4", np.zeros((FRAMES - 1, PIXELS, PIXELS, 3), np.uint8), fps=FPS)
    video = AnnotatedVideo("train_0", "training", FRAMES / FPS, np.zeros((0, 2)), ())
    with pytest.raises(ValueError, match=rf"short.mp4 has {FRAMES - 1} frames.*has {FRAMES}.*bitad reverse"):
        source.read(video, source.grid(video), view="reverse")


def test_a_video_keeps_the_rate_asked_for_whatever_its_own(videos: Path) -> None:
    video = AnnotatedVideo("train_0", "training", FRAMES / FPS, np.zeros((0, 2)), ())
    for rate_hz, stride in ((16, 1), (8, 2), (3, 5), (100, 1)):
        source = VideoFiles(
            lambda name: videos.parent / "videos" / f"{name}.mp4",
            pixels=PIXELS,
            sampling=replace(every(1), rate_hz=rate_hz),
        )
        base = source.grid(video)
        assert (base.fps, base.stride_frames, base.steps) == (FPS, stride, -(-FRAMES // stride))
        assert base.frames()[-1] < FRAMES


@pytest.mark.parametrize(("pixels", "side"), [(28, 32), (30, 32), (32, 32), (40, 44), (20, 22)])
def test_a_margin_does_not_enlarge_pictures_that_are_large_enough(tmp_path: Path, pixels: int, side: int) -> None:
    """The file's pictures of 32 pixels stay as they are where the network's and those with the margin lie around."""
    frames = np.random.default_rng(0).integers(0, 256, (4, 32, 48, 3), np.uint8)
    write_video(tmp_path / "a.mp4", frames, fps=FPS)
    source = VideoFiles(lambda name: tmp_path / "a.mp4", pixels=pixels, sampling=every(1))
    video = AnnotatedVideo("a", "training", 4 / FPS, np.zeros((0, 2)), ())
    margin = 1.0 if pixels == 32 else side / pixels if side != 32 else 1.15
    content = source.read(video, source.grid(video), margin=margin)
    assert content.shape == (4, side, round(side * 1.5), 3)
    if side == 32:
        with VideoReader(tmp_path / "a.mp4") as reader:
            assert (content.numpy() == reader.read(range(4))).all()


# Two networks on the same windows.


def every_item(windows: TrainingWindows | TestWindows) -> list[Sample]:
    return [windows[i] for i in range(len(windows))]


@pytest.mark.parametrize("data", ["features", "videos"])
@pytest.mark.parametrize("make", [training_windows, windows_to_test])
@pytest.mark.parametrize("pair", [PAIR, (*PAIR, "pair.second=forward")], ids=["both directions", "two forward"])
def test_two_networks_get_the_windows_of_one_and_each_is_read_once(
    data: str, make: Callable[..., TrainingWindows], pair: tuple[str, ...], request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(data)
    config = config_of(path, *pair)
    counting = CountingSource(build_source(config))
    items = every_item(make(config, counting))
    assert counting.reads == ["forward"] * len(items)
    assert all(map(same, items, every_item(make(config_of(path)))))
    alone_in_reverse = every_item(make(config_of(path, "direction=reverse")))
    assert all(map(same, [item.reversed() for item in items], alone_in_reverse))


@pytest.mark.parametrize("make", [training_windows, windows_to_test])
def test_with_reversed_files_each_network_of_two_gets_what_it_gets_alone_and_each_file_is_read_once(
    videos: Path, make: Callable[..., TrainingWindows]
) -> None:
    reversed_copies = f"data.reversed_videos={videos.parent / 'reversed'}"
    config = config_of(videos, *PAIR, reversed_copies)
    counting = CountingSource(build_source(config))
    items = every_item(make(config, counting))
    assert counting.reads == ["forward", "reverse"] * len(items)
    assert all(
        same(item.reversed().reversed(), replace(item, segments=item.reversed().reversed().segments))
        for item in items
    )
    forward = every_item(make(config_of(videos, reversed_copies)))
    reverse = every_item(make(config_of(videos, reversed_copies, "direction=reverse")))
    assert all(map(same, [replace(item, reversed_copy=None) for item in items], forward))
    assert all(map(same, [replace(item.reversed(), reversed_copy=None) for item in items], reverse))
    for item in items:
        assert item.reversed_copy is not None
        assert not torch.equal(item.reversed_copy, item.content)  # it went through the codec twice
        assert psnr(item.content.numpy(), item.reversed_copy.numpy()).min() > 30


def test_two_forward_networks_have_no_use_for_reversed_files(videos: Path) -> None:
    config = config_of(videos, *PAIR, "pair.second=forward", f"data.reversed_videos={videos.parent / 'nowhere'}")
    assert not build_source(config).has_reversed_copies
    assert all(item.reversed_copy is None for item in every_item(training_windows(config)))


def test_both_sources_give_two_networks_the_same_training_examples(videos: Path) -> None:
    # Uncut and not flipped, so that the pictures' numbers can be read.
    uncut = [f"training.augmentation.{how}" for how in ("flip=0", "crop_area=[1, 1]", "crop_aspect=[1, 1]")]
    flipped, from_files = (
        training_windows(config_of(videos, *PAIR, *uncut, *more))
        for more in ((), (f"data.reversed_videos={videos.parent / 'reversed'}",))
    )
    for epoch in range(2):
        flipped.set_epoch(epoch)
        from_files.set_epoch(epoch)
        one, other = (collate(every_item(windows), 32) for windows in (flipped, from_files))
        for a, b, order in ((one, other, 1), (one.reversed(), other.reversed(), -1)):
            assert (a.videos, a.grids) == (b.videos, b.grids)
            assert torch.equal(a.mask, b.mask)
            assert all(map(torch.equal, a.segments, b.segments))
            assert all(map(torch.equal, a.labels, b.labels))
            for i, grid in enumerate(a.grids):
                numbers = grid.frames()[::order].tolist()
                assert numbers_shown(a.inputs[i, : grid.steps].numpy()) == numbers
                assert numbers_shown(b.inputs[i, : grid.steps].numpy()) == numbers


def test_a_reversed_file_of_another_shape_is_refused(tmp_path: Path, videos: Path) -> None:
    config = config_of(videos, *PAIR)
    folder = videos.parent / "videos"
    write_video(tmp_path / "wide.mp4", np.zeros((FRAMES, PIXELS, 2 * PIXELS, 3), np.uint8), fps=FPS)
    source = VideoFiles(
        lambda name: folder / f"{name}.mp4",
        pixels=PIXELS,
        sampling=every(1),
        find_reversed=lambda name: tmp_path / "wide.mp4",
    )
    with pytest.raises(ValueError, match=r"test_0 is \[32, 32, 32, 3\].* \[32, 32, 64, 3\].*bitad reverse"):
        windows_to_test(config, source)[0]


# Batches turned round.


@st.composite
def windows_of_a_batch(draw: st.DrawFn) -> tuple[list[Sample], int]:
    """Samples of frames or features, with time-reversed copies or without, and the length of their batch."""
    frames, reversed_copies = draw(st.booleans()), draw(st.booleans())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    steps = draw(st.lists(st.integers(1, 12), min_size=1, max_size=3))

    def content(count: int) -> torch.Tensor:
        if frames:
            return torch.from_numpy(rng.integers(0, 256, (count, 2, 3, 3), dtype=np.uint8))
        return torch.from_numpy(rng.standard_normal((count, 4), dtype=np.float32))

    def sample(count: int) -> Sample:
        n = int(rng.integers(0, 4))
        return Sample(
            f"v{rng.integers(9)}",
            content(count),
            Grid(FPS, 2.0, float(rng.integers(100)), count),
            np.sort(rng.uniform(0, count, (n, 2)), axis=1),
            rng.integers(0, 3, n),
            colour=rng.standard_normal((3, 4), dtype=np.float32) if rng.random() < 0.5 else None,
            reversed_copy=content(count) if reversed_copies else None,
        )

    return [sample(count) for count in steps], draw(st.integers(max(steps), 14))


def assert_same_batch(a: Batch, b: Batch) -> None:
    assert (a.grids, a.videos, a.colour is None, a.reversed_copy is None) == (
        b.grids,
        b.videos,
        b.colour is None,
        b.reversed_copy is None,
    )
    for one, other in (
        (a.inputs, b.inputs),
        (a.mask, b.mask),
        (a.colour, b.colour),
        (a.reversed_copy, b.reversed_copy),
        *zip(a.segments, b.segments, strict=True),
        *zip(a.labels, b.labels, strict=True),
    ):
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=0, atol=0)  # dtype and shape too


@settings(deadline=None)
@given(windows_of_a_batch())
def test_a_batch_turned_round_is_the_batch_of_the_samples_turned_round(drawn: tuple[list[Sample], int]) -> None:
    samples, length = drawn
    batch = collate(samples, length)
    assert_same_batch(batch.reversed(), collate([sample.reversed() for sample in samples], length))
    assert batch.reversed().inputs.dtype == samples[0].content.dtype
    again = batch.reversed().reversed()
    for a, b in zip(again.segments, batch.segments, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)
    assert_same_batch(replace(again, segments=batch.segments), batch)


def test_every_tensor_of_a_batch_goes_to_the_device_and_turns_round_there() -> None:
    frames = torch.zeros(3, 4, 4, 3, dtype=torch.uint8)
    sample = replace(sample_of(frames), reversed_copy=frames, colour=np.eye(3, 4, dtype=np.float32))
    moved = collate([sample], 4).to(torch.device("meta"))
    for batch in (moved, moved.reversed()):
        assert batch.colour is not None
        assert batch.reversed_copy is not None
        tensors = [batch.inputs, batch.mask, batch.colour, batch.reversed_copy, *batch.segments, *batch.labels]
        assert {tensor.device.type for tensor in tensors} == {"meta"}


# Padding.


def sample_of(content: torch.Tensor) -> Sample:
    grid = Grid(FPS, 2.0, 10.0, len(content))
    return Sample("v", content, grid, np.array([[1.0, 2.5]]), np.array([1], np.int64))


def test_padding_repeats_the_last_real_frame_behind_the_real_ones() -> None:
    frames = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 4, 4, 3)
    batch = collate([sample_of(frames), sample_of(frames[:3])], 8)
    assert batch.inputs[:, :, 0, 0, 0].tolist() == [[0, 1, 2, 3, 4, 4, 4, 4], [0, 1, 2, 2, 2, 2, 2, 2]]
    assert batch.mask.sum(1).tolist() == [5, 3]
    assert batch.mask[:, :3].all()
    assert batch.inputs.dtype == torch.uint8


def test_the_reverse_view_of_a_padded_window_keeps_the_padding_at_its_end() -> None:
    frames = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 4, 4, 3)
    forward, reverse = collate([sample_of(frames)], 8), collate([sample_of(frames).reversed()], 8)
    assert torch.equal(forward.mask, reverse.mask)
    assert reverse.inputs[0, :, 0, 0, 0].tolist() == [4, 3, 2, 1, 0, 0, 0, 0]
    assert reverse.segments[0].tolist() == [[1.5, 3.0]]  # of 5 real steps, whatever the window's length


def test_features_are_padded_with_zeros_and_time_stands_last() -> None:
    features = torch.randn(5, 3)
    batch = collate([sample_of(features), sample_of(features[:2])], 8)
    assert batch.inputs.shape == (2, 3, 8)
    assert torch.equal(batch.inputs[0, :, :5], features.T)
    assert torch.equal(batch.inputs[1, :, :2], features[:2].T)
    assert (batch.inputs.masked_select(~batch.mask[:, None].expand_as(batch.inputs)) == 0).all()


def test_a_batch_recolours_if_any_of_its_windows_does_and_leaves_the_others_as_they_are() -> None:
    plain = sample_of(torch.zeros(2, 4, 4, 3, dtype=torch.uint8))
    coloured = replace(plain, colour=np.full((3, 4), 0.5, np.float32))
    assert collate([plain, plain], 4).colour is None
    colour = collate([plain, coloured], 4).colour
    assert colour is not None
    assert torch.equal(colour, torch.stack([torch.eye(3, 4), torch.full((3, 4), 0.5)]))


# What an item depends on.


@pytest.mark.parametrize("data", ["features", "videos"])
def test_an_item_depends_on_seed_epoch_and_number_only(data: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(data)
    first, second = training_windows(config_of(path)), training_windows(config_of(path, "training.lr=1"))
    first.set_epoch(3)
    second.set_epoch(3)
    first[1], second[0], torch.rand(3), np.random.default_rng().random()  # whatever happened before
    assert same(first[0], second[0])
    assert same(first[0], first[0])
    second.set_epoch(4)
    assert not same(first[0], second[0])
    assert not same(first[0], training_windows(config_of(path, "seed=1"))[0])


def test_the_windows_of_one_video_in_an_epoch_differ(features: Path) -> None:
    windows = training_windows(config_of(features, "training.windows_per_video=3"))
    count = len(windows.videos)
    assert len(windows) == 3 * count
    same_video = [windows[i] for i in range(0, len(windows), count)]
    assert {sample.video for sample in same_video} == {windows.videos[0].name}
    assert len({sample.grid.first_frame for sample in same_video}) > 1


def test_workers_that_live_on_see_the_epoch_change(features: Path) -> None:
    windows = training_windows(config_of(features))
    loader = DataLoader(windows, batch_size=None, num_workers=1, persistent_workers=True)
    for epoch in range(3):
        windows.set_epoch(epoch)
        assert all(same(a, windows[i]) for i, a in enumerate(loader))


def test_training_windows_hold_an_action_and_all_of_it_that_lies_in_them(features: Path) -> None:
    config = config_of(features)
    windows = training_windows(config)
    for epoch in range(10):
        windows.set_epoch(epoch)
        for sample in map(windows.__getitem__, range(len(windows))):
            assert len(sample.content) == sample.grid.steps == 32
            assert len(sample.labels) == len(sample.segments) > 0
            assert (sample.segments >= 0).all()
            assert (sample.segments <= sample.grid.steps).all()
            # An action in the middle of the window is the one that the features show there.
            for (start, end), label in zip(sample.segments, sample.labels, strict=True):
                middle = round((start + end) / 2)
                assert sample.content[middle, : len(CLASSES)].argmax() == label


# Ground truth.


def test_ground_truth_beyond_the_end_is_cut_or_dropped(features: Path) -> None:
    config = config_of(features)
    source = build_source(config)
    video = next(iter(annotations_of(config).videos.values()))
    base = source.grid(video)
    last = base.to_seconds(float(base.steps))
    odd = replace(
        video,
        segments=np.array([[0.0, 1.0], [last - 1, last + 5], [last + 0.1, last + 2], [1.0, 2.0]]),
        labels=("gamma", "alpha", "beta", "beta"),
    )
    segments, labels = ground_truth_in_steps(odd, base, CLASSES)
    assert labels.tolist() == [2, 0, 1]
    np.testing.assert_allclose(base.to_seconds(segments[1:]), [[last - 1, last], [1, 2]])
    assert segments[0, 0] == 0  # the first feature is later than the video's start
    assert segments.max() == base.steps


def test_a_video_without_ground_truth_is_left_out_and_named(features: Path) -> None:
    config = config_of(features)
    annotations = annotations_of(config).subset("training")
    bare = replace(annotations.videos["train_1"], segments=np.zeros((0, 2)), labels=())
    videos = {**annotations.videos, "train_1": bare}
    windows = TrainingWindows(replace(annotations, videos=videos), build_source(config), config)
    assert windows.unannotated == ["train_1"]
    assert [video.name for video in windows.videos] == ["train_0", "train_2", "train_3"]
    with pytest.raises(ValueError, match="'training'"):
        TrainingWindows(replace(annotations, videos={"train_1": bare}), build_source(config), config)


# Features.


def test_a_window_of_features_holds_the_rows_at_its_seconds(features: Path) -> None:
    config = config_of(features)
    for sample in map(windows_to_test(config).__getitem__, range(3)):
        rows = np.load(features.parent / "features" / f"{sample.video}.npy")
        seconds = sample.grid.to_seconds(np.arange(sample.grid.steps))
        # Row r is the snippet around frame offset + stride * r.
        wanted = (seconds * FPS - FEATURE_OFFSET) / FEATURE_STRIDE
        np.testing.assert_allclose(wanted, np.round(wanted), atol=1e-9)
        np.testing.assert_array_equal(sample.content.numpy(), rows[np.round(wanted).astype(int)])


def test_the_rate_of_features_comes_from_fps_or_from_the_frame_count(features: Path) -> None:
    config = config_of(features)
    source = build_source(config)
    video = next(iter(annotations_of(config).videos.values()))
    counted = replace(video, fps=None, frames=round(FPS * video.duration_s))
    assert source.grid(counted).fps == pytest.approx(FPS)
    assert source.grid(video).first_frame == FEATURE_OFFSET
    with pytest.raises(ValueError, match=f"{video.name} has neither `fps` nor `frame`"):
        source.grid(replace(video, fps=None))


def test_features_of_reversed_playback_are_what_the_reverse_view_shows(tmp_path: Path, features: Path) -> None:
    store = features.parent / "features"
    for path in store.iterdir():
        np.save(tmp_path / path.name, np.load(path) + 100)  # row by row of the same frames
    config = config_of(features, *PAIR, f"data.reversed_features={tmp_path}")
    for sample in every_item(windows_to_test(config)):
        torch.testing.assert_close(sample.reversed().content, sample.content.flip(0) + 100)
        assert same(sample.reversed().reversed(), sample)
    alone = config_of(features, "direction=reverse", f"data.reversed_features={tmp_path}")
    for one, other in zip(every_item(windows_to_test(alone)), every_item(windows_to_test(config)), strict=True):
        assert torch.equal(one.content, other.reversed().content)


def test_features_of_reversed_playback_of_another_length_are_refused(tmp_path: Path, features: Path) -> None:
    for path in (features.parent / "features").iterdir():
        np.save(tmp_path / path.name, np.load(path)[:-1])
    config = config_of(features, "direction=reverse", f"data.reversed_features={tmp_path}")
    with pytest.raises(ValueError, match=r"rows of test_0, .*bitad features --direction both"):
        windows_to_test(config)[0]


def test_the_rate_of_features_may_be_stated(features: Path) -> None:
    config = config_of(features, "data.feature_fps=30")
    (video, *_) = annotations_of(config).videos.values()
    assert build_source(config).grid(video).fps == 30


def test_test_windows_cover_every_step_of_every_video(features: Path) -> None:
    config = config_of(features)
    windows = windows_to_test(config)
    for video in annotations_of(config).subset("validation").videos.values():
        grids = [
            sample.grid for sample in map(windows.__getitem__, range(len(windows))) if sample.video == video.name
        ]
        base = build_source(config).grid(video)
        rows = {(f - FEATURE_OFFSET) / FEATURE_STRIDE for grid in grids for f in grid.frames()}
        assert rows == set(range(base.steps))


PER_STEP = ("window.stride_frames=6", "window.frames_per_step=3")


def test_many_frames_a_step_are_those_of_the_finer_grid(videos: Path) -> None:
    (sample,) = every_item(windows_to_test(config_of(videos, *PER_STEP)))
    assert sample.grid.steps == 13
    assert numbers_shown(sample.content.numpy()) == [
        *range(0, FRAMES, 2),
        FRAMES - 1,
    ]  # of the last step there is less


def test_many_frames_a_step_are_padded_and_turned_round_with_it(videos: Path) -> None:
    samples = every_item(windows_to_test(config_of(videos, *PER_STEP)))
    batch = collate(samples, 32)
    assert batch.mask.sum(1).tolist() == [13]
    assert batch.inputs.shape[:2] == (1, 96)
    assert set(numbers_shown(batch.inputs[0, 39:].numpy())) == {FRAMES - 1}
    assert_same_batch(batch.reversed(), collate([sample.reversed() for sample in samples], 32))


def test_many_frames_a_step_of_reversed_files_are_the_forward_ones_flipped(videos: Path) -> None:
    flipped = every_item(windows_to_test(config_of(videos, *PER_STEP, "direction=reverse")))
    reversed_copies = f"data.reversed_videos={videos.parent / 'reversed'}"
    from_files = every_item(windows_to_test(config_of(videos, *PER_STEP, "direction=reverse", reversed_copies)))
    for one, other in zip(flipped, from_files, strict=True):
        assert numbers_shown(one.content.numpy()) == numbers_shown(other.content.numpy())


def test_many_frames_a_step_of_a_resized_video_lie_evenly_over_it(videos: Path) -> None:
    config = config_of(videos, "window.layout=resized", "window.frames_per_step=4", "window.steps=16")
    (sample,) = every_item(windows_to_test(config))
    expected = np.round((np.arange(64) + 0.5) * FRAMES / 64 - 0.5).astype(int).tolist()
    assert numbers_shown(sample.content.numpy()) == expected


@pytest.mark.parametrize("steps", [8, 32, 128])
def test_resized_features_lie_where_the_grid_says(tmp_path: Path, features: Path, steps: int) -> None:
    config = config_of(features, f"window.steps={steps}", "window.layout=resized", f"data.features={tmp_path}")
    for video in annotations_of(config).videos.values():
        frames = FEATURE_OFFSET + FEATURE_STRIDE * np.arange(41)  # each feature says at which frame it is
        np.save(tmp_path / f"{video.name}.npy", np.repeat(frames[:, None], CHANNELS, axis=1))
    for sample in every_item(windows_to_test(config)):
        assert sample.content.shape == (steps, CHANNELS)
        expected = sample.grid.first_frame + sample.grid.stride_frames * np.arange(steps)
        expected = expected.clip(FEATURE_OFFSET, FEATURE_OFFSET + FEATURE_STRIDE * 40)  # held at the ends
        np.testing.assert_allclose(sample.content[:, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("data", ["features", "videos"])
def test_the_clock_of_resized_videos_moves_their_times_and_not_their_content(
    data: str, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(data)
    resized = ("window.layout=resized", "window.steps=16")
    centre, edge = (
        every_item(windows_to_test(config_of(path, *resized, f"window.resized_clock={clock}")))
        for clock in ("centre", "edge")
    )
    for one, other in zip(centre, edge, strict=True):
        assert torch.equal(one.content, other.content)
        half_a_step = one.grid.stride_frames / 2
        assert one.grid.first_frame - other.grid.first_frame == pytest.approx(half_a_step)


def test_a_resized_video_is_one_window_in_training_and_testing(videos: Path) -> None:
    config = config_of(videos, "window.layout=resized", "window.crop=[1, 1]", "window.steps=16")
    for windows in (training_windows(config), windows_to_test(config)):
        for sample in every_item(windows):
            shown = numbers_shown(sample.content.numpy()) if isinstance(windows, TestWindows) else None
            expected = np.round((np.arange(16) + 0.5) * FRAMES / 16 - 0.5).astype(int).tolist()
            assert sample.grid.frames().tolist() == expected
            assert shown in (None, expected)


def test_features_of_another_width_are_refused(features: Path) -> None:
    with pytest.raises(ValueError, match=f"{CHANNELS + 1} channels are expected"):
        training_windows(config_of(features, f"data.feature_channels={CHANNELS + 1}"))[0]


# Reading: what neighbours share once, in processes of its own.


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long") / "data"
    path = video_data(folder, training=2, test=2, frames=150)
    assert not reverse_folder(folder / "videos", folder / "reversed", workers=0).failed
    return path


@pytest.mark.parametrize("overlap", [0, 0.3, 0.75])
@pytest.mark.parametrize("kind", ["features", "frames", "reverse", "pair", "pair of files"])
def test_windows_in_their_order_are_those_read_each_alone(
    features: Path, long: Path, kind: str, overlap: float
) -> None:
    reversed_copies = f"data.reversed_videos={long.parent / 'reversed'}"
    path, *overrides = {
        "features": (features,),
        "frames": (long, "window.frames_per_step=2"),
        "reverse": (long, "direction=reverse", reversed_copies),
        "pair": (long, *PAIR),
        "pair of files": (long, *PAIR, reversed_copies),
    }[kind]
    config = config_of(path, f"window.overlap={overlap}", "window.steps=16", *overrides)
    windows = windows_to_test(config)
    assert len(windows) > 4
    in_order = every_item(windows)
    alone = [windows[i] for i in reversed(range(len(windows)))][::-1]
    assert all(map(same, in_order, alone))
    assert all(map(same, in_order, [windows_to_test(config).read(window) for window in windows.windows]))


def test_windows_in_their_order_decode_each_frame_once(long: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, decoded = VideoReader.read, Counter[tuple[str, int]]()

    def counting(self: VideoReader, frames: NDArray[np.int64], **how: Any) -> NDArray[np.uint8]:
        decoded.update((self.path.name, int(frame)) for frame in frames)
        return read(self, frames, **how)

    monkeypatch.setattr(VideoReader, "read", counting)
    every_item(windows_to_test(config_of(long, "window.steps=16")))
    assert decoded == {(f"test_{i}.mp4", frame): 1 for i in range(2) for frame in range(0, 150, 2)}


def test_what_stands_in_the_place_of_damaged_frames_depends_on_the_window_alone(
    long: Path, tmp_path: Path
) -> None:
    for i in range(2):
        content = bytearray((long.parent / "videos" / f"test_{i}.mp4").read_bytes())
        start, end = content.index(b"mdat") + 4, content.index(b"moov") - 4
        content[(start + end) // 2 : (start + 2 * end) // 3] = bytes((start + 2 * end) // 3 - (start + end) // 2)
        (tmp_path / f"test_{i}.mp4").write_bytes(content)
    config = config_of(long, f"data.videos={tmp_path}", "data.on_decode_error=repeat", "window.steps=16")
    windows = windows_to_test(config)
    in_order = every_item(windows)
    assert sum(sample.repeated for sample in in_order) > 0
    assert all(map(same, in_order, [windows.read(window) for window in windows.windows]))


@pytest.mark.parametrize("in_folder", [False, True])
@pytest.mark.parametrize("make", [training_windows, windows_to_test])
def test_kept_frames_are_those_of_the_windows_and_are_decoded_once(
    long: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[..., Any], in_folder: bool
) -> None:
    keeping = ["data.keep_frames_mib=64", *([f"data.frame_cache={tmp_path / 'frames'}"] if in_folder else [])]
    options = ("window.steps=16", "training.windows_per_video=4")
    expected = every_item(make(config_of(long, *options)))
    opened, begin = list[Path](), VideoReader.__init__

    def noting(self: VideoReader, path: Path, **keywords: Any) -> None:
        opened.append(path)
        begin(self, path, **keywords)

    monkeypatch.setattr(VideoReader, "__init__", noting)
    windows = make(config_of(long, *options, *keeping))
    assert all(map(same, every_item(windows), expected))
    assert sorted(opened) == sorted(set(opened))
    assert all(map(same, every_item(windows), expected))
    assert len(opened) == len(windows.videos)
    # Another process finds the files of the folder.
    assert all(map(same, every_item(make(config_of(long, *options, *keeping))), expected))
    assert len(opened) == len(windows.videos) * (1 if in_folder else 2)


def test_kept_frames_are_not_sent_to_other_processes(long: Path) -> None:
    source = build_source(config_of(long, "window.steps=16", "data.keep_frames_mib=64"))
    windows = windows_to_test(config_of(long, "window.steps=16"), source)
    before = every_item(windows)
    assert isinstance(source, VideoFiles)
    assert source.kept is not None
    assert source.kept.bytes
    sent = pickle.loads(pickle.dumps(source))
    assert not sent.kept.bytes
    windows.source = sent
    assert all(map(same, [windows.read(window) for window in windows.windows], before))


def test_a_video_with_damaged_frames_is_not_kept(long: Path, tmp_path: Path) -> None:
    content = bytearray((long.parent / "videos" / "test_0.mp4").read_bytes())
    start, end = content.index(b"mdat") + 4, content.index(b"moov") - 4
    content[(start + end) // 2 : (start + 2 * end) // 3] = bytes((start + 2 * end) // 3 - (start + end) // 2)
    (tmp_path / "test_0.mp4").write_bytes(content)
    (tmp_path / "test_1.mp4").write_bytes((long.parent / "videos" / "test_1.mp4").read_bytes())
    options = (f"data.videos={tmp_path}", "data.on_decode_error=repeat", "window.steps=16")
    expected = every_item(windows_to_test(config_of(long, *options)))
    windows = windows_to_test(config_of(long, *options, "data.keep_frames_mib=64"))
    assert all(map(same, every_item(windows), expected))
    assert sum(sample.repeated for sample in every_item(windows)) > 0


@pytest.mark.parametrize("make", [training_windows, windows_to_test])
def test_each_worker_opens_videos_itself_and_decodes_on_one_thread(
    long: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[..., Any]
) -> None:
    opened, begin = tmp_path / "opened", VideoReader.__init__

    def noting(self: VideoReader, *arguments: Any, **keywords: Any) -> None:
        begin(self, *arguments, **keywords)
        context = self._stream.stream.codec_context
        with opened.open("a") as file:
            file.write(f"{os.getpid()} {context.thread_count} {context.thread_type}\n")

    monkeypatch.setattr(VideoReader, "__init__", noting)
    windows = make(config_of(long, "window.steps=16", "training.windows_per_video=4"))
    read = [item.video for item in DataLoader(windows, batch_size=None, num_workers=2)]
    assert len(read) == len(windows) >= 8
    said = [line.split(" ", 1) for line in opened.read_text().splitlines()]
    assert len(said) == len(read)
    assert {threads for _, threads in said} == {"1 ThreadType.NONE"}
    assert len({process for process, _ in said} - {str(os.getpid())}) == 2


def test_workers_that_are_started_and_not_forked_read_the_same(long: Path, tmp_path: Path) -> None:
    cache = IndexCache(tmp_path / "index")
    config = config_of(
        long, "window.steps=16", "test.workers=1", f"data.reversed_videos={long.parent / 'reversed'}", *PAIR
    )
    windows = windows_to_test(config, build_source(config, cache))
    loader = DataLoader(windows, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    assert all(map(same, loader, every_item(windows)))


def test_a_twin_of_another_length_is_refused_before_anything_is_read(long: Path, tmp_path: Path) -> None:
    for i in range(2):
        write_video(tmp_path / f"test_{i}.mp4", np.zeros((80, PIXELS, PIXELS, 3), np.uint8), fps=FPS)
    with pytest.raises(ValueError, match=r"test_0\.mp4 has 80 frames, .* has 150; repeat"):
        windows_to_test(config_of(long, *PAIR, f"data.reversed_videos={tmp_path}"))
