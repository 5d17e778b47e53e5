"""What two networks are in each experiment: what of them trains, and what they say before they have learnt together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from builders import CHANNELS, CLASSES, PIXELS, config_of, feature_data, video_data
from torch import Tensor, nn

from bitad.config.schema import Config
from bitad.models.alignment import aligned
from bitad.models.build import build_network
from bitad.models.fusion import ColumnFusion, ConvolutionFusion, MeanFusion
from bitad.models.heads import Prediction
from bitad.models.network import Detector, Pair
from bitad.models.vit import is_adapter
from bitad.weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from bitad.weights.loading import load_weights

INIT = ("init.forward=f.pt", "init.reverse=b.pt")  # asked for, and not read by what is tested here
TWO_FORWARD = "pair.second=forward"
FUSIONS = {"3-1": ColumnFusion, "3-2": ConvolutionFusion, "3-3": MeanFusion}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return video_data(tmp_path_factory.mktemp("videos") / "data", training=1, test=0)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return feature_data(tmp_path_factory.mktemp("features") / "data", training=1, test=0)


def configured(path: Path, experiment: str, *overrides: str) -> Config:
    init = INIT if experiment not in ("baseline", "1") else ()
    return config_of(path, f"experiment={experiment}", *init, *overrides)


def pair_of(config: Config) -> Pair:
    torch.manual_seed(0)
    pair = build_network(config, len(CLASSES))
    assert isinstance(pair, Pair)
    return pair


def trained_like(config: Config, seed: int) -> Detector:
    """A baseline none of whose weights are as at the beginning."""
    detector = build_network(config, len(CLASSES))
    assert isinstance(detector, Detector)
    torch.manual_seed(seed)
    for parameter in detector.parameters():
        nn.init.normal_(parameter, std=0.2)
    return detector.eval()


def loaded(config: Config, baselines: tuple[Detector, Detector]) -> Pair:
    """The pair of a configuration with the weights of two baselines, as at the first step."""
    pair = pair_of(config)
    for side, detector in zip(pair.sides, baselines, strict=True):
        load_weights(side.network, detector.state_dict(), source="a baseline", may_lack=r"\.bi_adapter\.")
    return pair.eval()


def windows(*real: int, length: int = 32, seed: int = 0, frames: bool = False) -> tuple[Tensor, Tensor]:
    """Inputs of windows with so many real steps, and their mask."""
    torch.manual_seed(seed)
    mask = torch.arange(length) < torch.tensor(real)[:, None]
    if frames:
        return torch.randint(0, 256, (len(real), length, PIXELS, PIXELS, 3), dtype=torch.uint8), mask
    return torch.randn(len(real), CHANNELS, length).masked_fill(~mask[:, None], 0), mask


def assert_equal(a: Prediction, b: Prediction) -> None:
    """To the bit."""
    assert torch.equal(a.logits, b.logits)
    assert torch.equal(a.distances, b.distances)
    assert torch.equal(a.mask, b.mask)


# What there is, and what of it trains.


def trainable(network: nn.Module) -> set[str]:
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("experiment", ["1", "1-1", "1x", "3-1", "3-2", "3-3"])
def test_on_features_all_of_both_networks_trains(features: Path, experiment: str) -> None:
    config = configured(features, experiment)
    pair = pair_of(config)
    assert trainable(pair) == {name for name, _ in pair.named_parameters()}
    for side in pair.sides:
        assert side.cross_adapters is None
        assert type(side.fusion) is FUSIONS.get(experiment, type(None))


@pytest.mark.parametrize("experiment", ["1", "1-1", "1x", "3-1"])
def test_on_videos_all_but_the_transformers_trains_and_their_adapters_do(videos: Path, experiment: str) -> None:
    pair = pair_of(configured(videos, experiment))
    names = {name for name, _ in pair.named_parameters()}
    assert trainable(pair) == {name for name in names if ".vit." not in name or ".adapter." in name}
    assert not any("bi_adapter" in name or "cross_adapters" in name for name in names)


@pytest.mark.parametrize(("experiment", "added"), [("2", ".bi_adapter."), ("2x", ".cross_adapters.")])
def test_only_what_is_added_trains_unless_the_detectors_shall_too(
    videos: Path, experiment: str, added: str
) -> None:
    pair = pair_of(configured(videos, experiment))
    names = {name for name, _ in pair.named_parameters()}
    baseline = build_network(config_of(videos), len(CLASSES))
    of_baselines = {
        f"{side}.network.{name}" for side in ("first", "second") for name, _ in baseline.named_parameters()
    }
    assert trainable(pair) == {name for name in names if added in name} == names - of_baselines
    depth = len(pair.first.network.backbone.vit.blocks)
    assert sum(name.endswith(".up.weight") for name in trainable(pair)) == 2 * depth
    too = pair_of(configured(videos, experiment, "pair.train_detector=true"))
    assert trainable(too) == {name for name in names if ".vit." not in name or is_adapter(name)}
    assert trainable(too) > trainable(pair)


@pytest.mark.parametrize("experiment", ["1", "2", "2x", "3-2"])
def test_the_two_networks_share_nothing(videos: Path, experiment: str) -> None:
    pair = pair_of(configured(videos, experiment))
    first, second = ({tensor.data_ptr() for tensor in side.state_dict().values()} for side in pair.sides)
    assert first.isdisjoint(second)
    assert len(first) == len(pair.first.state_dict())


def test_what_is_frozen_and_the_same_is_kept_once_and_says_the_same(videos: Path) -> None:
    pair = pair_of(configured(videos, "1")).eval()
    one, two = (dict(side.named_parameters()) for side in pair.sides)
    pair.second.load_state_dict(pair.first.state_dict())
    other = next(name for name, parameter in two.items() if not parameter.requires_grad)
    with torch.no_grad():
        two[other].add_(1)
    inputs, mask = windows(32, 20, frames=True)
    before = pair((inputs, inputs), mask)
    pair.share_frozen()
    shared = {name for name in one if one[name].data_ptr() == two[name].data_ptr()}
    assert shared == {name for name in one if not one[name].requires_grad} - {other}
    for basis, same in zip(pair((inputs, inputs), mask).predictions, before.predictions, strict=True):
        assert_equal(basis, same)


def test_what_is_kept_once_is_written_and_read_as_ever(videos: Path, tmp_path: Path) -> None:
    config = configured(videos, "1")
    pair = pair_of(config)
    pair.second.load_state_dict(pair.first.state_dict())
    pair.share_frozen()
    for name in ("pair.pt", "pair.safetensors"):
        save_checkpoint(Checkpoint(config, CLASSES, pair.state_dict(), 0, 4.0), tmp_path / name)
        again = load_checkpoint(tmp_path / name).network().state_dict()
        assert all(torch.equal(again[key], tensor) for key, tensor in pair.state_dict().items())


@pytest.mark.parametrize(("steps", "points"), [(32, 32 + 16 + 8), (64, 64 + 32 + 16)])
def test_a_fusion_has_an_input_for_every_point_of_a_window(features: Path, steps: int, points: int) -> None:
    pair = pair_of(configured(features, "3-1", f"window.steps={steps}"))
    for side in pair.sides:
        assert isinstance(side.fusion, ColumnFusion)
        assert side.fusion.columns.linear.weight.shape == (points, 2 * points)


# Before the first step.


@pytest.mark.parametrize("experiment", ["2", "2x"])
@pytest.mark.parametrize("second", ["reverse", "forward"])
def test_what_is_added_changes_nothing_at_first_to_the_bit(videos: Path, experiment: str, second: str) -> None:
    baselines = trained_like(config_of(videos), 1), trained_like(config_of(videos), 2)
    pair = loaded(configured(videos, experiment, f"pair.second={second}"), baselines)
    (one, mask), (two, _) = (windows(32, 21, 20, seed=seed, frames=True) for seed in (3, 4))
    with torch.no_grad():
        both = pair((one, two), mask)
        alone = baselines[0].predict(one, mask), baselines[1].predict(two, mask)
    assert_equal(both.predictions[0], alone[0])
    assert_equal(both.predictions[1], alone[1])
    assert not torch.equal(both.predictions[0].logits, both.predictions[1].logits)


@pytest.mark.parametrize("experiment", FUSIONS)
@pytest.mark.parametrize(
    "options", [(), ("pair.align=naive",), (TWO_FORWARD,)], ids=["exact", "naive", "two-forward"]
)
def test_a_fusion_is_at_first_the_mean_of_the_aligned_predictions(
    features: Path, experiment: str, options: tuple[str, ...]
) -> None:
    baselines = trained_like(config_of(features), 1), trained_like(config_of(features), 2)
    pair = loaded(configured(features, experiment, *options), baselines)
    (one, mask), (two, _) = (windows(32, 21, 20, 1, seed=seed) for seed in (3, 4))
    with torch.no_grad():
        both = pair((one, two), mask)
        first, second = baselines[0].predict(one, mask), baselines[1].predict(two, mask)
    how = pair.align
    assert how is not None
    other = (second, first) if TWO_FORWARD in options else (aligned(second, how=how), aligned(first, how=how))
    for fused, own, met in zip((both.predictions[0], both.predictions[1]), (first, second), other, strict=True):
        real = own.mask
        torch.testing.assert_close(fused.logits[real], ((own.logits + met.logits) / 2)[real], rtol=1e-5, atol=1e-5)
        expected = ((own.distances + met.distances) / 2)[real]
        torch.testing.assert_close(fused.distances[real], expected, rtol=1e-5, atol=1e-5)
        assert fused.logits[~real].abs().sum() == fused.distances[~real].abs().sum() == 0
        assert (own.logits - met.logits)[real].abs().max() > 0.1
    assert_equal(both.own[0], first)
    assert_equal(both.own[1], second)
    assert both.aligned is not None
    assert_equal(both.aligned[0], other[0])
    assert_equal(both.aligned[1], other[1])


@pytest.mark.parametrize("experiment", FUSIONS)
def test_a_fusion_made_at_random_is_far_from_the_mean(features: Path, experiment: str) -> None:
    pair = pair_of(configured(features, experiment, "pair.fusion_init=random")).eval()
    inputs, mask = windows(32)
    with torch.no_grad():
        both = pair((inputs, inputs), mask)
    assert both.aligned is not None
    mean = (both.own[0].distances + both.aligned[0].distances) / 2
    assert (both.predictions[0].distances - mean).abs().mean() > 0.3 * mean.mean()
    assert (both.predictions[0].distances == 0).float().mean() > 0.2  # a ReLU that is dead


@pytest.mark.parametrize("experiment", ["1", "1-1"])
def test_without_anything_between_them_both_networks_are_as_alone(features: Path, experiment: str) -> None:
    baselines = trained_like(config_of(features), 1), trained_like(config_of(features), 2)
    pair = loaded(configured(features, experiment), baselines)
    (one, mask), (two, _) = (windows(32, 9, seed=seed) for seed in (3, 4))
    both = pair((one, two), mask)
    assert both.aligned is None
    assert_equal(both.predictions[0], baselines[0].predict(one, mask))
    assert_equal(both.predictions[1], baselines[1].predict(two, mask))


@pytest.mark.parametrize(
    ("experiment", "heard"), [("1", False), ("2", False), ("2x", True), ("3-1", True), ("3-3", True)]
)
def test_what_the_other_network_sees_counts_only_where_it_is_meant_to(
    videos: Path, experiment: str, heard: bool
) -> None:
    pair = pair_of(configured(videos, experiment)).eval()
    torch.manual_seed(5)
    for name, parameter in pair.named_parameters():
        if is_adapter(name):
            nn.init.normal_(parameter, std=0.2)
    one, mask = windows(20, frames=True)
    others = [windows(20, seed=seed, frames=True)[0] for seed in (1, 2)]
    with torch.no_grad():
        first, again = (pair((one, other), mask).predictions[0] for other in others)
    assert torch.equal(first.logits, again.logits) != heard
