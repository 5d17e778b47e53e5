"""A detector that knows the truth is heard correctly: in either direction, across windows, padding and batches."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from builders import CLASSES, FPS, config_of, feature_data, numbered_picture, video_data
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from bitad.cli import main
from bitad.config.loading import override_config
from bitad.config.schema import Config
from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.detections import Detections, read_detections
from bitad.data.formats.database import read_annotations
from bitad.data.sources import (
    Sampling,
    Source,
    VideoFiles,
    build_source,
    read_ground_truth,
    read_test_ground_truth,
)
from bitad.evaluation.mean_average_precision import evaluate
from bitad.inference.detect import _consecutive_batches, detect, detect_videos, run_test
from bitad.inference.merge import merge
from bitad.inference.nms import nms
from bitad.models.build import build_network
from bitad.models.fusion import ColumnFusion
from bitad.models.heads import Points, Prediction
from bitad.models.network import Detector, Pair, Side
from bitad.runtime.distributed import Ranks
from bitad.runtime.files import write_json
from bitad.timeline import Direction, Grid
from bitad.video import indexing as index_cache
from bitad.video.indexing import IndexCache
from bitad.video.writer import write_video
from bitad.weights.checkpoint import Checkpoint, save_checkpoint

ALONE = Ranks(rank=0, world=1, device=torch.device("cpu"))
INIT = ("init.forward=f", "init.reverse=b")  # asked for; nothing here reads them
EXACT = (
    "test.rounding=false",
    "test.nms.voting_threshold=0",
    "test.nms.method=vanilla",
    "test.nms.iou_threshold=0.9",
)


class TruthOnTheGrid:
    """A source whose features say, at every grid step, which class goes on and how far its two ends are.

    Channels: one a class, then the steps to the nearer and to the farther end of time, forwards.
    """

    has_reversed_copies = False
    repeated = 0

    def __init__(self, source: Source) -> None:
        self.source = source

    def grid(self, video: AnnotatedVideo) -> Grid:
        return self.source.grid(video)

    def read(
        self, video: AnnotatedVideo, grid: Grid, *, view: Direction = "forward", margin: float = 1.0
    ) -> Tensor:
        features = torch.zeros(grid.steps, len(CLASSES) + 2)
        for (start, end), label in zip(grid.to_steps(video.segments), video.labels, strict=True):
            for x in range(max(0, int(np.ceil(start))), min(grid.steps, int(end) + 1)):
                features[x, CLASSES.index(label)] = 1
                features[x, -2:] = torch.tensor([x - start, end - x])
        return features


class Oracle(Detector):
    """Reads off the features what :class:`TruthOnTheGrid` says, and adds nothing; stride 1.

    Args:
        reverse: it watches in reverse, so what was to the start is to the end.
    """

    def __init__(self, *, reverse: bool) -> None:
        nn.Module.__init__(self)
        self.backbone, self.reverse = None, reverse
        self.lengths: list[int] = []

    def predict_features(self, inputs: Tensor, mask: Tensor) -> Prediction:  # [B, C, T], [B, T]
        self.lengths += mask.sum(1).tolist()
        steps = inputs.shape[2]
        distances = inputs[:, -2:].transpose(1, 2)
        return Prediction(
            logits=inputs[:, :-2].transpose(1, 2) * 12 - 10,
            distances=distances.flip(2) if self.reverse else distances,
            mask=mask,
            points=Points.of_levels([steps], [1], [(0, 1e4)]),
        )


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return feature_data(tmp_path_factory.mktemp("features") / "data")


def truth_of(config: Config) -> Annotations:
    return read_annotations(config.data.annotations, classes=config.data.classes).subset("validation")


def heard(config: Config, *, ranks: Ranks = ALONE, **keywords: Any) -> Detections:
    """What is found with an oracle that watches in the configuration's direction."""
    oracle = Oracle(reverse=config.direction == "reverse")
    source = TruthOnTheGrid(build_source(config))
    return detect(oracle, truth_of(config), source, config, ranks, **keywords).merged


@pytest.mark.parametrize("steps", [16, 32, 64])
@pytest.mark.parametrize("overlap", [0, 0.5])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_an_oracle_is_heard_at_the_right_seconds(
    features: Path, direction: str, overlap: float, steps: int
) -> None:
    config = config_of(
        features, f"direction={direction}", f"window.overlap={overlap}", f"window.steps={steps}", *EXACT
    )
    found, truth = heard(config), truth_of(config)
    assert found.basis == "forward"
    for name, video in truth.videos.items():
        mine = found.of_video(name)
        assert set(mine.labels.tolist()) <= {CLASSES.index(label) for label in video.labels}
        for segment, label in zip(video.segments, video.labels, strict=True):
            same_class = mine.segments[mine.labels == CLASSES.index(label)]
            assert np.abs(same_class - segment).max(axis=1).min() < 1e-4
        # And nothing else is: every detection is one of the actions.
        nearest = [np.abs(video.segments - segment).max(axis=1).min() for segment in mine.segments]
        assert max(nearest) < 1e-4
    assert evaluate(truth, found, tiou=[0.95]).average_map == 1


@pytest.mark.parametrize("layout", ["whole", "resized"])
@pytest.mark.parametrize("steps", [16, 64])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_videos_of_one_window_are_heard_at_the_right_seconds(
    features: Path, direction: str, steps: int, layout: str
) -> None:
    config = config_of(
        features, f"direction={direction}", f"window.layout={layout}", f"window.steps={steps}", *EXACT
    )
    found, truth = heard(config), truth_of(config)
    for name, video in truth.videos.items():
        mine = found.of_video(name)
        nearest = [np.abs(video.segments - segment).max(axis=1).min() for segment in mine.segments]
        assert max(nearest) < 1e-4
        if steps == 64:  # of 16, whole actions may lie between two
            assert all(np.abs(mine.segments - segment).max(axis=1).min() < 1e-4 for segment in video.segments)


@pytest.mark.parametrize("layout", ["whole", "resized"])
def test_a_video_of_one_window_is_suppressed_in_grid_steps_before_anything_is_rounded(
    features: Path, layout: str
) -> None:
    config = config_of(features, f"window.layout={layout}")
    unsuppressed = heard(override_config(config, ["test.nms.method=none", "test.rounding=false"]))
    kept = heard(config)
    for name in kept.videos:
        everything = unsuppressed.of_video(name)
        # In seconds or in steps: the overlaps are the same ones.
        suppressed = nms(everything.segments, everything.scores, everything.labels, config.test.nms)
        mine = kept.of_video(name)
        # Scores of 1 tie: in order of time.
        for one, other in zip(
            in_order_of_time(mine.segments, mine.scores, mine.labels), in_order_of_time(*suppressed), strict=True
        ):
            np.testing.assert_allclose(one, other, atol=0.0051)


def in_order_of_time(segments: NDArray[Any], scores: NDArray[Any], labels: NDArray[Any]) -> list[NDArray[Any]]:
    order = np.lexsort((scores, labels, segments[:, 1].round(2), segments[:, 0].round(2)))
    return [column[order] for column in (segments, scores, labels)]


def test_a_video_of_one_window_is_whole_whatever_the_length_of_a_window(features: Path) -> None:
    config = config_of(features, "window.layout=whole", "window.steps=16", "test.batch=3", *EXACT)
    oracle = Oracle(reverse=False)
    detect(oracle, truth_of(config), TruthOnTheGrid(build_source(config)), config, ALONE)
    source = build_source(config)
    assert oracle.lengths == [source.grid(video).steps for video in truth_of(config).videos.values()]


def test_both_directions_hear_the_same(features: Path) -> None:
    forward = heard(config_of(features, *EXACT))
    reverse = heard(config_of(features, "direction=reverse", *EXACT))
    assert len(forward) == len(reverse) > 0
    for name in forward.videos:
        a, b = forward.of_video(name), reverse.of_video(name)
        in_order = [np.lexsort((d.labels, d.segments[:, 1].round(4), d.segments[:, 0].round(4))) for d in (a, b)]
        np.testing.assert_allclose(a.segments[in_order[0]], b.segments[in_order[1]], atol=1e-5)


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_the_size_of_batches_does_not_matter(features: Path, batch: int) -> None:
    one, other = heard(config_of(features)), heard(config_of(features, f"test.batch={batch}"))
    np.testing.assert_array_equal(one.segments, other.segments)
    np.testing.assert_array_equal(one.scores, other.scores)


def test_every_window_is_seen_once_and_no_padding_counts(features: Path) -> None:
    config = config_of(features, "window.steps=64")  # longer than any video
    oracle, truth = Oracle(reverse=False), truth_of(config)
    source = TruthOnTheGrid(build_source(config))
    detect(oracle, truth, source, config, ALONE)
    assert oracle.lengths == [source.grid(video).steps for video in truth.videos.values()]


def test_a_video_in_which_nothing_is_found_is_listed_all_the_same(features: Path) -> None:
    found = heard(config_of(features, "test.score_threshold=0.999999"))
    assert len(found) == 0
    assert found.videos == ("test_0", "test_1", "test_2")


def test_what_is_found_says_what_it_is_of(features: Path) -> None:
    config = config_of(features)
    found = heard(config, details={"run": "r", "epoch": 3})
    truth = truth_of(config)
    assert found.classes == CLASSES
    assert found.details == {"run": "r", "epoch": 3, "view": "forward"}
    assert found.durations_s == {name: video.duration_s for name, video in truth.videos.items()}
    assert (found.segments >= 0).all()


def test_ground_truth_is_not_looked_at(features: Path) -> None:
    config = config_of(features)
    torch.manual_seed(0)
    detector, truth = build_network(config, len(CLASSES)).eval(), truth_of(config)
    blind = replace(
        truth,
        videos={name: replace(v, segments=np.zeros((0, 2)), labels=()) for name, v in truth.videos.items()},
    )
    seeing, not_seeing = (detect(detector, a, build_source(config), config, ALONE).merged for a in (truth, blind))
    np.testing.assert_array_equal(seeing.scores, not_seeing.scores)
    np.testing.assert_array_equal(seeing.segments, not_seeing.segments)


def test_worker_processes_read_the_same_windows(features: Path) -> None:
    alone, ahead = (heard(config_of(features, f"test.workers={workers}")) for workers in (0, 1))
    np.testing.assert_array_equal(alone.segments, ahead.segments)


def test_the_suppression_is_what_the_configuration_says(features: Path) -> None:
    assert len(heard(config_of(features, "test.nms.max_segments=2"))) == 2 * 3


# Two networks.


def pair_of_oracles(config: Config) -> Pair:
    """One for each view, with the fusion that the configuration names."""
    oracles = (Oracle(reverse=view == "reverse") for view in config.views)
    points = config.window.steps
    sides = [
        Side(cast(Detector, oracle), fusion=None if config.design.fusion is None else ColumnFusion(points))
        for oracle in oracles
    ]
    mirrored = config.views[1] == "reverse"
    return Pair(*sides, mirrored=mirrored, align="exact" if config.design.fusion else None)


@pytest.mark.parametrize("second", ["reverse", "forward"])
@pytest.mark.parametrize("experiment", ["1-1", "3-1"])
def test_a_pair_is_heard_at_the_right_seconds_in_both_bases_and_merged(
    features: Path, experiment: str, second: str
) -> None:
    config = config_of(features, f"experiment={experiment}", *INIT, f"pair.second={second}", *EXACT)
    truth = truth_of(config)
    results = detect(pair_of_oracles(config), truth, TruthOnTheGrid(build_source(config)), config, ALONE)
    assert list(results.bases) == ["forward", "reverse"]
    assert results.views == ("forward", second)
    names = ["forward basis", "reverse basis"] if second == "reverse" else ["first network", "second network"]
    assert list(results.named()) == [*names, "merged"]
    for found in results.named().values():
        assert found.basis == "forward"
        for name, video in truth.videos.items():
            segments = found.of_video(name).segments
            for segment in video.segments:
                assert np.abs(segments - segment).max(axis=1).min() < 1e-4
        assert evaluate(truth, found, tiou=[0.95]).average_map == 1
    assert results.bases["forward"].details == {"view": "forward"}
    assert results.bases["reverse"].details == {"view": second}


@pytest.mark.parametrize("method", ["soft-nms", "mean", "product", "wsf"])
def test_both_bases_are_merged_by_the_configurations_method_and_suppression(
    features: Path, tmp_path: Path, method: str
) -> None:
    few = ("test.nms.max_segments=30", "test.nms.iou_threshold=0.1")
    config = config_of(features, "experiment=1", f"test.merge={method}", *few)
    torch.manual_seed(0)
    pair = build_network(config, len(CLASSES)).eval()
    results = detect(pair, truth_of(config), build_source(config), config, ALONE)
    expected = merge(*results.bases.values(), method=method, settings=config.test.nms)
    np.testing.assert_array_equal(results.merged.segments, expected.segments)
    np.testing.assert_array_equal(results.merged.scores, expected.scores)
    assert 0 < len(results.merged) <= 30 * 3
    results.write(tmp_path)
    reverse = read_detections(tmp_path / "detections.reverse.json")
    assert reverse.basis == "reverse"
    np.testing.assert_allclose(reverse.forward().segments, results.bases["reverse"].segments, atol=1e-6)


def test_nothing_of_two_forward_networks_is_called_reverse(features: Path, tmp_path: Path) -> None:
    config = config_of(features, "experiment=1-1", *INIT, "pair.second=forward", *EXACT)
    results = detect(
        pair_of_oracles(config), truth_of(config), TruthOnTheGrid(build_source(config)), config, ALONE
    )
    (tmp_path / "detections.reverse.json").write_text("an earlier version's")
    results.write(tmp_path)
    files = {file.name for file in tmp_path.iterdir()}
    assert files == {"detections.json", "detections.forward.json", "detections.second.json"}
    assert not any("reverse" in name for name in results.named())
    second = read_detections(tmp_path / "detections.second.json")
    assert second.basis == "forward"
    np.testing.assert_array_equal(second.segments, results.bases["reverse"].segments)


def test_of_one_network_there_is_one_result(features: Path, tmp_path: Path) -> None:
    config = config_of(features, "direction=reverse")
    oracle, source = Oracle(reverse=True), TruthOnTheGrid(build_source(config))
    results = detect(oracle, truth_of(config), source, config, ALONE)
    assert results.named() == {"reverse": results.merged}
    assert results.bases == {"reverse": results.merged}
    results.write(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["detections.json"]
    assert read_detections(tmp_path / "detections.json").basis == "forward"


# Testing a checkpoint.


def checkpoint_of(config: Config, *, rate_hz: float = 4.0) -> Checkpoint:
    torch.manual_seed(0)
    return Checkpoint(config, CLASSES, build_network(config, len(CLASSES)).state_dict(), epoch=2, rate_hz=rate_hz)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_results_are_written_in_forward_and_in_reverse_time(
    features: Path, tmp_path: Path, direction: str
) -> None:
    config = config_of(features, f"direction={direction}")
    evaluations = run_test(checkpoint_of(config), tmp_path, ALONE)
    forward, reverse = (read_detections(tmp_path / f"detections{part}.json") for part in ("", ".reverse"))
    assert (forward.basis, reverse.basis) == ("forward", "reverse")
    assert len(forward) > 0
    durations = np.array([truth_of(config).videos[name].duration_s for name in forward.videos])[forward.video]
    np.testing.assert_allclose(reverse.segments, durations[:, None] - forward.segments[:, ::-1], atol=1e-9)
    np.testing.assert_allclose(reverse.forward().segments, forward.segments, atol=1e-6)
    details = {"variant": direction, "view": direction, "epoch": 2, "name": "tiny", "seed": 0}
    assert forward.with_min_scores({}).details == {**details, "min_scores": {}}
    assert list(evaluations) == [direction]
    evaluation = evaluations[direction]
    assert json.loads((tmp_path / "metrics.json").read_text()) == {direction: evaluation.to_json()}
    assert evaluate(truth_of(config), reverse, tiou=config.test.tiou).average_map == pytest.approx(
        evaluation.average_map
    )


def test_a_data_set_of_other_classes_is_refused(features: Path, tmp_path: Path) -> None:
    checkpoint = replace(checkpoint_of(config_of(features)), classes=("alpha", "beta", "delta"))
    with pytest.raises(ValueError, match=r"alpha, beta, gamma.*alpha, beta, delta.*data\.classes"):
        run_test(checkpoint, tmp_path, ALONE)


# Videos of any sort.


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return video_data(tmp_path_factory.mktemp("videos") / "data")


def test_videos_are_detected_in_as_in_testing(videos: Path) -> None:
    config = config_of(videos)
    checkpoint = checkpoint_of(config, rate_hz=FPS / 2)
    file = videos.parent / "videos" / "test_0.mp4"
    found = detect_videos(checkpoint, {"test_0": file}, ALONE)
    assert found.unread == {}
    tested = detect(checkpoint.network(), truth_of(config), build_source(config), config, ALONE).merged
    assert found.videos == tested.videos == ("test_0",)
    assert len(found) > 0
    np.testing.assert_array_equal(found.segments, tested.segments)
    np.testing.assert_array_equal(found.scores, tested.scores)
    assert found.durations_s == pytest.approx(tested.durations_s)


def test_a_pair_detects_in_videos_what_it_finds_in_testing_merged(videos: Path) -> None:
    config = config_of(videos, "experiment=2x", *INIT)
    checkpoint = checkpoint_of(config, rate_hz=FPS / 2)
    found = detect_videos(checkpoint, {"test_0": videos.parent / "videos" / "test_0.mp4"}, ALONE)
    tested = detect(checkpoint.network(), truth_of(config), build_source(config), config, ALONE).merged
    assert len(found) > 0
    np.testing.assert_array_equal(found.segments, tested.segments)
    np.testing.assert_array_equal(found.scores, tested.scores)


def test_a_video_of_another_rate_is_sampled_at_that_of_the_training(videos: Path, tmp_path: Path) -> None:
    """The same scene at twice the rate: nearly the same windows, so nearly the same scores."""
    checkpoint = checkpoint_of(config_of(videos), rate_hz=FPS / 2)
    frames = [numbered_picture(i // 2) for i in range(150)]
    write_video(tmp_path / "fast.mp4", frames, fps=2 * FPS, crf=12)
    slow = detect_videos(checkpoint, {"test_0": videos.parent / "videos" / "test_0.mp4"}, ALONE)
    fast = detect_videos(checkpoint, {"fast": tmp_path / "fast.mp4"}, ALONE)
    assert fast.durations_s["fast"] == pytest.approx(slow.durations_s["test_0"])
    assert abs(len(slow) - len(fast)) < 0.1 * len(slow)
    np.testing.assert_allclose(fast.scores[:20], slow.scores[:20], rtol=0.1)
    source = VideoFiles(
        {"v": tmp_path / "fast.mp4"}.__getitem__,
        pixels=32,
        sampling=Sampling(checkpoint.config.window, checkpoint.rate_hz),
    )
    assert source.grid(AnnotatedVideo("v", "", 1.0, np.zeros((0, 2)), ())).stride_frames == 4


def scores_of_videos(path: Path, truth: Annotations) -> Path:
    """A classifier that knows: 0.8 for the class that a video shows most, 0.1 for the others."""
    results = {
        name: [0.8 if label == max(CLASSES, key=video.labels.count) else 0.1 for label in CLASSES]
        for name, video in truth.videos.items()
    }
    write_json({"results": results, "class": list(CLASSES)}, path)
    return path


def test_a_class_agnostic_detector_is_named_by_the_scores_of_whole_videos(features: Path, tmp_path: Path) -> None:
    agnostic = config_of(features, "data.class_agnostic=true", "test.rounding=false")
    assert read_ground_truth(agnostic.data).classes == ("action",)
    truth = truth_of(agnostic)
    scores = scores_of_videos(tmp_path / "scores.json", truth)
    named = override_config(agnostic, [f"test.video_scores={scores}", "test.video_classes=1"])
    assert read_test_ground_truth(named).classes == CLASSES
    plain, found = heard(agnostic), heard(named)
    assert len(plain) == len(found) > 0
    for name, video in truth.videos.items():
        mine, unnamed = found.of_video(name), plain.of_video(name)
        assert set(mine.labels.tolist()) == {CLASSES.index(max(CLASSES, key=video.labels.count))}
        np.testing.assert_allclose(np.sort(mine.scores), np.sort(np.sqrt(0.8 * unnamed.scores)))


def test_a_class_agnostic_run_trains_is_tested_and_reported_with_and_without_scores(
    features: Path, tmp_path: Path
) -> None:
    scores = scores_of_videos(tmp_path / "scores.json", truth_of(config_of(features)))
    overrides = ["data.class_agnostic=true", f"output={tmp_path}", "training.epochs=1"]
    assert main(["train", str(features), *overrides]) == 0
    run = tmp_path / "tiny-forward-seed0"
    assert read_detections(run / "detections.json").classes == ("action",)
    assert main(["test", str(run), f"test.video_scores={scores}"]) == 0
    assert set(read_detections(run / "test/detections.json").classes) == set(CLASSES)
    assert main(["report", str(run), "--out", str(tmp_path / "report")]) == 0


def test_scores_of_videos_need_a_detector_that_does_not_name_what_it_finds(features: Path) -> None:
    with pytest.raises(
        ValueError, match=r"test.video_scores names the classes of segments; set data.class_agnostic"
    ):
        config_of(features, "test.video_scores=scores.json")


@given(first=st.integers(0, 5), count=st.integers(0, 40), batch=st.integers(1, 4), readers=st.integers(1, 5))
@settings(deadline=None)
def test_each_reader_in_turn_gets_a_stretch_of_all_windows(
    first: int, count: int, batch: int, readers: int
) -> None:
    batches = _consecutive_batches(first, first + count, batch=batch, readers=readers)
    assert sorted(window for one in batches for window in one) == list(range(first, first + count))
    for reader in range(readers):
        own = [window for one in batches[reader::readers] for window in one]
        assert own == list(range(own[0], own[0] + len(own))) if own else True


def test_a_test_of_a_run_does_not_read_videos_through_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(video_data(tmp_path / "data", test=2), f"output={tmp_path / 'runs'}")
    run = tmp_path / "moved"
    cache = IndexCache(run / "index")
    cache.begin()
    for i in range(2):
        cache.index(tmp_path / "data" / "videos" / f"test_{i}.mp4")
    torch.manual_seed(0)
    weights = build_network(config, len(CLASSES)).state_dict()
    save_checkpoint(Checkpoint(config, CLASSES, weights, 1, rate_hz=8.0), run / "best.pt")
    monkeypatch.setattr(index_cache, "index_video", lambda path: pytest.fail(f"{path} was read through again"))
    assert main(["test", str(run), "--device", "cpu"]) == 0
    assert (run / "test" / "metrics.json").is_file()
