"""The controls of reverse playback: flipped frames, reversed features, another encoder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from builders import CLASSES, PIXELS, config_of, feature_data, video_data
from runs import ALONE, assert_same, assert_same_run, baseline
from torch import nn

from bitad.cli import main
from bitad.config.loading import ConfigError
from bitad.config.names import SIZES
from bitad.data.dataset import TestWindows, TrainingWindows
from bitad.data.detections import read_detections
from bitad.data.formats.database import read_annotations
from bitad.data.samples import Sample, collate
from bitad.data.sources import FramesInMemory, Sampling, build_source
from bitad.inference.detect import detect
from bitad.inference.encoders import load_encoder
from bitad.models.build import build_network
from bitad.models.network import Detector
from bitad.models.vit import VisionTransformer
from bitad.timeline import Grid, View, clock_of
from bitad.training.trainer import Trainer
from bitad.video.reader import VideoReader
from bitad.weights.checkpoint import load_checkpoint
from bitad.weights.files import read_weights, write_safetensors

pytestmark = pytest.mark.usefixtures("one_thread")

UNMIRRORED = "training.augmentation.flip=0"
VIEWS: tuple[View, ...] = get_args(View)


def write_vit(path: Path, seed: int) -> Path:
    """A file of a transformer of the data set's size."""
    torch.manual_seed(seed)
    size = SIZES["tiny"]
    vit = VisionTransformer(
        dim=size.dim, depth=size.depth, heads=size.heads, mlp_dim=size.mlp_dim, image_size=PIXELS
    )
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.05)
    write_safetensors(dict(vit.state_dict()), path)
    return path


@dataclass(frozen=True)
class Data:
    """A data set of videos, two transformers, and a baseline of each view on the first and of F on the second."""

    path: Path
    weights: tuple[Path, Path]
    runs: dict[str, Path]

    def pair(self, second: str, *overrides: str, experiment: str = "3-3") -> tuple[str, ...]:
        """The overrides of a pair; ``second`` is a view or `encoder`."""
        own = [f"pair.second={second}"]
        if second == "encoder":
            own = ["pair.second=forward", f"pair.second_weights={self.weights[1]}"]
        return (
            *(f"experiment={experiment}", *own, UNMIRRORED, f"model.backbone.weights={self.weights[0]}"),
            *(f"init.forward={self.runs['forward']}", f"init.reverse={self.runs[second]}", *overrides),
        )


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Data:
    folder = tmp_path_factory.mktemp("videos")
    path = video_data(folder / "data")
    weights = write_vit(folder / "one.safetensors", 1), write_vit(folder / "two.safetensors", 2)
    runs = {}
    for view in ("forward", "flipped", "reversed-features"):
        runs[view] = baseline(path, f"direction={view}", UNMIRRORED, f"model.backbone.weights={weights[0]}")
    runs["encoder"] = baseline(path, "name=encoder", UNMIRRORED, f"model.backbone.weights={weights[1]}")
    return Data(path, weights, runs)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return feature_data(tmp_path_factory.mktemp("features") / "data")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line with which a command ends."""

    def fail(*command: object) -> str:
        capsys.readouterr()
        assert main([str(word) for word in command]) == 1
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        return err

    return fail


# Training, resuming, testing.

THREE_STEPS = ("training.epochs=3", "training.evaluate_every=3", "test.candidates=40")


@pytest.mark.parametrize(
    ("second", "experiment", "variant"),
    [
        ("flipped", "3-1", "3-1-flipped"),
        ("reversed-features", "3-3", "3-3-reversed-features"),
        ("encoder", "3-2", "3-2-two-forward-second-encoder"),
    ],
)
def test_a_control_trains_goes_on_to_the_bit_and_is_tested(
    videos: Data, second: str, experiment: str, variant: str, tmp_path: Path
) -> None:
    common = (*videos.pair(second, *THREE_STEPS, experiment=experiment), "model.dropout=0.1")
    whole, parts = (config_of(videos.path, *common, f"output={tmp_path / name}") for name in ("whole", "parts"))
    assert whole.variant == variant
    for output, *options in (("whole",), ("parts", "--until", "1"), ("parts", "--resume")):
        command = ["train", str(videos.path), *common, f"output={tmp_path / output}", "--device", "cpu"]
        assert main([*command, *options]) == 0
    assert_same_run(whole.run_directory, parts.run_directory)
    saved = load_checkpoint(whole.run_directory)
    for prefix, name in (("first.network.", "forward"), ("second.network.", second)):
        frozen = load_checkpoint(videos.runs[name]).model
        inner = ".vit.blocks.0.attn.qkv.weight"
        assert torch.equal(saved.model[f"{prefix}backbone{inner}"], frozen[f"backbone{inner}"])
    test = ["test", str(whole.run_directory), "--out", str(tmp_path / "test"), "--device", "cpu"]
    assert main(test) == 0
    mirrored = second == "reversed-features"
    names = ["forward basis", "reverse basis"] if mirrored else ["first network", "second network"]
    assert list(json.loads((tmp_path / "test" / "metrics.json").read_text())) == [*names, "merged"]
    file = tmp_path / "test" / f"detections.{'reverse' if mirrored else 'second'}.json"
    found = read_detections(file)
    assert found.basis == ("reverse" if mirrored else "forward")
    assert len(found) > 0


@pytest.mark.parametrize("view", ["flipped", "reversed-features"])
def test_one_network_of_a_control_goes_on_to_the_bit_and_is_tested(
    videos: Data, view: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = (f"direction={view}", UNMIRRORED, *THREE_STEPS)
    for output, *options in (("whole",), ("parts", "--until", "1"), ("parts", "--resume")):
        command = ["train", str(videos.path), *common, f"output={tmp_path / output}", "--device", "cpu"]
        assert main([*command, *options]) == 0
    runs = [tmp_path / output / f"tiny-{view}-seed0" for output in ("whole", "parts")]
    assert_same_run(*runs)
    capsys.readouterr()
    assert main(["test", str(runs[0]), "--device", "cpu"]) == 0
    assert view in capsys.readouterr().out
    assert read_detections(runs[0] / "test" / "detections.json").basis == "forward"


# What the networks see.


def windows(*steps: int) -> list[Sample]:
    """Windows of frames, in the forward view."""
    rng = np.random.default_rng(0)
    frames = [torch.from_numpy(rng.integers(0, 256, (2 * count, 4, 6, 3), dtype=np.uint8)) for count in steps]
    grids = [Grid(16.0, 2.0, 0.0, count) for count in steps]
    truth = {"segments": np.array([[0.5, 2.0], [1.0, 4.0]]), "labels": np.array([0, 1])}
    return [Sample("v", content, grid, **truth) for content, grid in zip(frames, grids, strict=True)]


@pytest.mark.parametrize("view", VIEWS)
def test_a_batch_in_a_view_is_the_batch_of_the_samples_in_that_view(view: View) -> None:
    samples = windows(7, 5)
    batch = collate(samples, 8)
    _, seen = batch.in_views(("forward", view))
    alone = collate([sample.seen_as(view) for sample in samples], 8)
    assert torch.equal(seen.inputs, alone.inputs)
    assert_same((seen.segments, seen.labels), (alone.segments, alone.labels))
    shows_forward = view in ("forward", "reversed-features")
    assert torch.equal(seen.inputs, batch.inputs) == shows_forward
    assert torch.equal(seen.segments[0], batch.segments[0]) == (clock_of(view) == "forward")


def test_a_flipped_network_gets_the_windows_of_a_forward_one_mirrored(videos: Data) -> None:
    for subset, kind in (("training", TrainingWindows), ("validation", TestWindows)):
        found = []
        for view in ("forward", "flipped"):
            config = config_of(videos.path, f"direction={view}", UNMIRRORED, "training.augmentation.colour=1")
            truth = read_annotations(config.data.annotations, classes=config.data.classes).subset(subset)
            found.append(kind(truth, build_source(config), config))
        for number in range(len(found[0])):
            forward, flipped = (of_view[number] for of_view in found)
            assert torch.equal(flipped.content, forward.content.flip(2))
            assert not torch.equal(flipped.content, forward.content)
            assert (flipped.segments.tolist(), flipped.grid) == (forward.segments.tolist(), forward.grid)
            assert kind is TestWindows or np.array_equal(flipped.colour, forward.colour)


def test_of_mirrored_frames_a_flipped_network_says_what_it_says_of_frames_seen_unflipped(videos: Data) -> None:
    saved = load_checkpoint(videos.runs["flipped"])
    config = saved.config
    truth = read_annotations(config.data.annotations, classes=config.data.classes).subset("validation")
    with VideoReader(config.data.videos / "test_0.mp4") as reader:
        frames = reader.read(np.arange(75))
    found = []
    for direction, images in (("flipped", frames), ("forward", frames[:, :, ::-1].copy()), ("forward", frames)):
        seen = config.model_copy(update={"direction": direction})
        source = FramesInMemory(images, 16.0, pixels=PIXELS, sampling=Sampling(config.window))
        found.append(detect(saved.network(), truth, source, seen, ALONE).merged)
    mirrored, same, other = found
    assert len(same) > 0
    assert (mirrored.segments.tolist(), mirrored.scores.tolist()) == (same.segments.tolist(), same.scores.tolist())
    assert same.scores.tolist() != other.scores.tolist()


@torch.no_grad()
def test_reversed_features_are_the_features_of_forward_frames_in_reverse_order(videos: Data) -> None:
    network = load_checkpoint(videos.runs["reversed-features"]).network()
    assert isinstance(network, Detector)
    frames = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (2, 32, PIXELS, PIXELS, 3), dtype=np.uint8)
    )
    real = torch.tensor([32, 21])
    mask = torch.arange(32) < real[:, None]
    backwards = torch.zeros(2, network.backbone.vit.dim, 32)
    for row, features, steps in zip(backwards, network.backbone(frames), real.tolist(), strict=True):
        row[:, :steps] = features[:, :steps].flip(1)
    expected = network.head(network.pyramid(backwards, mask))
    found = network.predict(frames, mask)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.distances, expected.distances)


@torch.no_grad()
def test_cross_adapters_meet_the_tokens_of_the_same_frames(videos: Data) -> None:
    """Also if the predictions of the second network are on the other clock."""
    frames = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (1, 32, PIXELS, PIXELS, 3), dtype=np.uint8)
    )
    mask = torch.arange(32)[None] < 32
    found = []
    for second in ("forward", "reversed-features"):
        pair = videos.pair(second, experiment="2x")
        network = build_network(config_of(videos.path, *pair), len(CLASSES)).eval()
        generator = torch.Generator().manual_seed(0)
        for parameter in network.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
        found.append(network([frames, frames], mask))
    same, other = found
    assert torch.equal(same.own[0].logits, other.own[0].logits)
    assert not torch.equal(same.own[1].logits, other.own[1].logits)  # from reversed features


def test_on_fixed_features_reversed_features_are_reverse_playback(features: Path, tmp_path: Path) -> None:
    """To the bit, alone and in a pair, also where losses of several batches are normalised together."""
    short = (*THREE_STEPS, "training.accumulate=2", "training.batch=2", f"output={tmp_path}")
    forward = baseline(features, f"output={tmp_path}")
    models, files = [], []
    for view in ("reverse", "reversed-features"):
        alone = config_of(features, f"direction={view}", *short)
        Trainer(alone, ALONE).run()
        init = (f"init.forward={forward}", f"init.reverse={alone.run_directory}")
        pair = config_of(features, "experiment=3-3", f"pair.second={view}", *init, *short)
        Trainer(pair, ALONE).run()
        runs = (alone.run_directory, pair.run_directory)
        models.append([load_checkpoint(run / "last.pt").model for run in runs])
        names = [runs[0] / "detections.json", *(runs[1] / f"detections{of}.json" for of in ("", ".reverse"))]
        files.append([read_detections(name) for name in names])
    assert_same(*models)
    for one, other in zip(*files, strict=True):
        assert len(one) > 0
        assert one.basis == other.basis
        assert_same(
            (one.segments.tolist(), one.scores.tolist(), one.labels.tolist()),
            (other.segments.tolist(), other.scores.tolist(), other.labels.tolist()),
        )


@torch.no_grad()
def test_features_of_a_run_are_those_of_the_frames_that_it_sees(videos: Data, tmp_path: Path) -> None:
    pictures = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (75, PIXELS, PIXELS, 3), dtype=np.uint8))
    for view in ("flipped", "reversed-features"):
        encoder = load_encoder(videos.runs[view])
        network = load_checkpoint(videos.runs[view]).network()
        (chunk, *_) = encoder.chunks(64)
        seen = pictures[chunk.frames]
        rows = encoder.encode(seen, chunk, "forward")
        expected = network.detectors[0].backbone((seen.flip(2) if view == "flipped" else seen)[None])[0].T
        torch.testing.assert_close(rows, expected[chunk.first : chunk.stop])


# What is refused.


def test_values_that_do_not_fit_together_are_refused_with_what_to_do(videos: Data, features: Path) -> None:
    pair = ("experiment=3-3", "init.forward=f", "init.reverse=b")
    encoder = "pair.second_weights=vit.pth"
    cases = [
        (features, ("direction=flipped",), "direction=flipped mirrors frames, and features have none"),
        (features, (*pair, "pair.second=flipped"), "pair.second=flipped mirrors frames, and features have none"),
        (
            videos.path,
            ("direction=flipped",),
            "it mirrors 0.5 of the windows at random, so direction=flipped would",
        ),
        (
            videos.path,
            (*pair, "pair.second=flipped", "training.augmentation.flip=1"),
            "it mirrors 1 of the windows at random, so pair.second=flipped would show nothing else; use 0",
        ),
        (
            videos.path,
            (*pair, "pair.second=flipped", UNMIRRORED, "pair.align=naive"),
            "pair.align=naive has no effect with pair.second=flipped, where both networks share a clock",
        ),
        (
            videos.path,
            (*pair, "experiment=2x", "pair.second=flipped", UNMIRRORED),
            "in experiment 2x the networks exchange tokens of one place in the frame",
        ),
        (videos.path, (encoder,), f"{encoder} has no effect in experiment baseline, which has one network"),
        (features, (*pair, encoder), f"{encoder} has no effect on features, which need no backbone"),
        (videos.path, ("direction=mirrored",), "direction: Input should be 'forward', 'reverse', 'flipped', 'rev"),
    ]
    for path, overrides, said in cases:
        with pytest.raises(ConfigError) as error:
            config_of(path, *overrides)
        assert said in str(error.value)


@pytest.mark.parametrize(
    ("second", "given", "said"),
    [
        ("flipped", "forward", "it was trained with direction=forward, this network needs flipped"),
        ("reversed-features", "flipped", "trained with direction=flipped, this network needs reversed-features"),
        ("encoder", "forward", "does not stand on pair.second_weights="),
        (
            "flipped",
            "mirrored at random",
            "training.augmentation.flip is 0.5 there, so it has seen flipped frames",
        ),
    ],
)
def test_a_baseline_of_another_view_or_encoder_is_refused(
    videos: Data, second: str, given: str, said: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    runs = {**videos.runs, second: videos.runs.get(given, videos.runs["flipped"])}
    if given == "mirrored at random":
        runs["forward"] = baseline(videos.path, f"output={tmp_path}")
    pair = replace(videos, runs=runs).pair(second)
    err = refused("train", videos.path, *pair, "name=refused")
    assert said in err
    assert f"init.{'forward' if given == 'mirrored at random' else 'reverse'}=" in err
    assert list(videos.path.parent.glob("runs/refused*")) == []


# Another encoder.


def test_two_encoders_are_kept_apart_and_equal_ones_are_shared(
    videos: Data, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    name = "backbone.vit.blocks.0.attn.qkv.weight"
    for second, others in (("encoder", True), ("flipped", False)):
        caplog.clear()
        config = config_of(videos.path, *videos.pair(second, *THREE_STEPS, f"output={tmp_path}"))
        trainer = Trainer(config, ALONE)
        with caplog.at_level("INFO", "bitad"):
            trainer.run(until=1)
        one, two = (detector.get_parameter(name) for detector in trainer.network.detectors)
        assert (one.data_ptr() != two.data_ptr()) == others
        assert ("the two networks have different frozen transformers" in caplog.text) == others
        assert "pair.second_weights=FILE" not in caplog.text


def test_without_its_name_a_second_encoder_is_used_and_told(
    videos: Data, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    unnamed = (*videos.pair("encoder", *THREE_STEPS, f"output={tmp_path}"), "pair.second_weights=null")
    config = config_of(videos.path, *unnamed)
    assert config.variant == "3-3-two-forward"
    with caplog.at_level("INFO", "bitad"):
        Trainer(config, ALONE).run(until=1)
    assert "different frozen transformers; with pair.second_weights=FILE, the name of the run" in caplog.text


def test_a_pair_on_two_encoders_needs_no_other_file_once_it_has_begun(
    videos: Data, tmp_path: Path, refused: Callable[..., str]
) -> None:
    """It is moved, and neither its baselines nor the transformers' files are there any more."""
    copies = {name: Path(shutil.copytree(run, tmp_path / "baselines" / name)) for name, run in videos.runs.items()}
    weights = tuple(Path(shutil.copy(file, tmp_path / file.name)) for file in videos.weights)
    pair = replace(videos, runs=copies, weights=weights).pair("encoder", *THREE_STEPS)
    whole, parts = (config_of(videos.path, *pair, f"output={tmp_path / name}") for name in ("whole", "parts"))
    Trainer(whole, ALONE).run()
    Trainer(parts, ALONE).run(until=1)
    shutil.rmtree(tmp_path / "baselines")
    for file in weights:
        file.unlink()
    moved = Path(shutil.copytree(parts.run_directory, tmp_path / "elsewhere" / parts.run_directory.name))
    resume = ["train", str(moved / "config.yaml"), f"output={moved.parent}", "--resume", "--device", "cpu"]
    assert main(resume) == 0
    assert_same_run(whole.run_directory, moved)
    test = ["test", str(moved), "--out", str(tmp_path / "test"), "--device", "cpu"]
    assert main(test) == 0
    assert main([*test, f"pair.second_weights={videos.weights[1]}"]) == 0
    another = write_vit(tmp_path / "another.safetensors", 3)
    err = refused(*test, f"pair.second_weights={another}")
    assert f"pair.second_weights={another} is not the transformer of {moved / 'best.pt'}" in err
    assert f"pair.second_weights was {weights[1]}, is {another}" in refused(
        *resume, f"pair.second_weights={another}"
    )


def test_a_pair_from_the_backbone_starts_from_both_files(videos: Data) -> None:
    one, two = videos.weights
    config = config_of(
        videos.path,
        "experiment=1",
        f"model.backbone.weights={one}",
        f"pair.second_weights={two}",
        "pair.second=forward",
    )
    trainer = Trainer(config, ALONE)
    for detector, file in zip(trainer.network.detectors, (one, two), strict=True):
        state = detector.state_dict()
        for name, tensor in read_weights(file).items():
            assert torch.equal(state[f"backbone.vit.{name}"], tensor)
