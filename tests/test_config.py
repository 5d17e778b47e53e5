"""A configuration says all that is wrong with it before anything is loaded, and is what it says it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from bitad.config.loading import ConfigError, load_config, override_config, parse_config, presets
from bitad.config.names import EXPERIMENTS, RENAMED_KEYS, VitSize
from bitad.runtime.log import _logged_once

FEATURES = """
name: small
data: {annotations: gt.json, features: features, feature_channels: 8}
window: {steps: 64}
model: {channels: 16, levels: 3}
"""
VIDEOS = """
name: small
data: {annotations: gt.json, videos: videos}
window: {steps: 64}
model: {channels: 16, levels: 3, backbone: {size: tiny, pixels: 64}}
"""


@pytest.fixture
def features(tmp_path: Path) -> Path:
    return written(tmp_path / "features.yaml", FEATURES)


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    return written(tmp_path / "videos.yaml", VIDEOS)


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def refusal(source: Path | str, *overrides: str) -> str:
    """The message with which a configuration is refused; one line."""
    with pytest.raises(ConfigError) as refused:
        load_config(source, overrides)
    message = str(refused.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", presets())
def test_every_preset_loads_and_comes_back_from_its_yaml(name: str) -> None:
    config = load_config(name)
    assert parse_config(yaml.safe_load(config.to_yaml()), "again") == config


def test_there_is_a_preset_for_the_demo() -> None:
    assert "playroom" in presets()


def test_the_resolved_configuration_names_every_key_and_comes_back_equal(videos: Path, tmp_path: Path) -> None:
    config = load_config(
        videos, ["training.augmentation.hue=0.05", "model.regression_ranges=[[0,4],[4,8],[8,1000]]"]
    )
    resolved = written(tmp_path / "resolved.yaml", config.to_yaml())
    assert load_config(resolved) == config
    assert yaml.safe_load(resolved.read_text())["test"]["nms"]["sigma"] == 0.7


def test_every_fault_is_reported_at_once_by_its_path(features: Path) -> None:
    message = refusal(
        features,
        "training.epochs=none",
        "training.lr=-1",
        "window.stepz=64",
        "model.backbone.size=xxl",
        "data.annotations=null",
        "test.tiou=[0.3, 1.2]",
        "threads=0",
        "experiment=1-7",
    )
    for path in (
        "training.epochs",
        "training.lr",
        "window.stepz: unknown key",
        "model.backbone",
        "data.annotations",
        "test.tiou.1",
        "threads",
        "experiment: unknown experiment '1-7'",
    ):
        assert path in message
    for value in ("'none'", "-1", "'xxl'", "1.2"):
        assert value in message


def test_all_faults_of_one_section_are_reported_at_once(videos: Path) -> None:
    message = refusal(videos, "model.channels=18", "model.attention_window=8", "model.regression_ranges=[[0, 4]]")
    for said in (
        "18 channels are not a multiple of 4 heads",
        "8 must be odd",
        "1 regression ranges for",
    ):
        assert said in message
    message = refusal(videos, "window.steps=50", "experiment=3-1", "data.videos=null", "data.features=f")
    assert "data.feature_channels" in message
    message = refusal(videos, "window.steps=50", "experiment=3-1", "model.backbone=null", "direction=reverse")
    for said in (
        "window.steps 50",
        "experiment 3-1 starts from two finished baselines",
        "no effect in experiment 3-1, which has a network for each direction",
        "data.videos needs model.backbone",
    ):
        assert said in message


def test_a_warm_up_as_long_as_the_schedule_is_refused_with_both(features: Path) -> None:
    message = refusal(features, "training.epochs=4", "training.warmup_epochs=4")
    assert "warmup_epochs: 4 must be less than the 4 epochs of the schedule" in message


@pytest.mark.parametrize(
    ("base", "file", "overrides", "warm_up"),
    [
        ("", "", ("training.epochs=1",), 0.1),
        ("", "", ("training={epochs: 5}",), 0.5),
        ("", "", ("training.epochs=9", "training.schedule_epochs=5"), 5.0),  # refused: the schedule ends before
        ("", "training: {epochs: 3}", (), 0.3),
        ("", "training: {epochs: 3}", ("training.lr=1e-3",), 0.3),
        ("training: {epochs: 40, warmup_epochs: 20}", "training: {epochs: 10}", (), 1.0),
        ("training: {epochs: 40, warmup_epochs: 20}", "training: {epochs: 21}", (), 20.0),
        ("training: {epochs: 40, warmup_epochs: 20}", "", ("training.epochs=20",), 2.0),
        ("training: {epochs: 40, warmup_epochs: 0}", "", ("training.epochs=1",), 0.0),
        ("", "training: {epochs: 6}", (), 5.0),
    ],
)
def test_a_warm_up_that_nobody_asked_for_is_cut_to_the_schedule_and_said(
    features: Path,
    base: str,
    file: str,
    overrides: tuple[str, ...],
    warm_up: float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    below, path = features.with_name("below.yaml"), features.with_name("above.yaml")
    below.write_text(f"{features.read_text()}\n{base}\n")
    path.write_text(f"base: below.yaml\n{file}\n")
    _logged_once.clear()
    caplog.set_level("INFO")
    if "training.schedule_epochs=5" in overrides:
        with pytest.raises(ConfigError, match="schedule_epochs"):
            load_config(path, overrides)
        return
    training = load_config(path, overrides).training
    assert training.warmup_epochs == pytest.approx(warm_up)
    assert bool(caplog.messages) == (warm_up in (0.1, 0.5, 0.3, 1.0, 2.0))
    assert all(f"training.warmup_epochs is {warm_up:g}, a tenth of the" in line for line in caplog.messages)


@pytest.mark.parametrize(
    ("file", "overrides"),
    [
        ("training: {epochs: 4, warmup_epochs: 4}", ()),
        ("training: {epochs: 4, warmup_epochs: 5}", ("training.lr=1e-3",)),
        ("training: {epochs: 4}", ("training.warmup_epochs=4",)),
        ("training: {warmup_epochs: 60}", ()),
    ],
)
def test_a_warm_up_that_was_asked_for_is_refused_where_it_does_not_fit(
    features: Path, file: str, overrides: tuple[str, ...]
) -> None:
    path = features.with_name("above.yaml")
    path.write_text(f"base: {features.name}\n{file}\n")
    with pytest.raises(ConfigError, match=r"warmup_epochs: \d+ must be less than the \d+ epochs"):
        load_config(path, overrides)


@pytest.mark.parametrize(
    ("override", "path"),
    [("modle.levels=3", "modle"), ("model.level=3", "model.level"), ("test.nms.sigm=1", "test.nms.sigm")],
)
def test_unknown_keys_are_refused_by_path(features: Path, override: str, path: str) -> None:
    assert f"{path}: unknown key" in refusal(features, override)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("training.lr=1e-4", ("training", "lr"), 1e-4),
        ("training.lr=.002", ("training", "lr"), 0.002),
        ("training.epochs=7", ("training", "epochs"), 7),
        ("model.layer_scale=null", ("model", "layer_scale"), None),
        ("test.tiou=[0.5]", ("test", "tiou"), (0.5,)),
        ("window.crop=[0.5, 1]", ("window", "crop"), (0.5, 1.0)),
        ("data.features=a=b", ("data", "features"), Path("a=b")),
        ("data.test_subset=2", ("data", "test_subset"), "2"),
        ("direction=reverse", ("direction",), "reverse"),
    ],
)
def test_an_override_is_read_as_yaml_and_numbers_as_numbers(
    features: Path, override: str, key: tuple[str, ...], value: Any
) -> None:
    found: Any = load_config(features, [override])
    for part in key:
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value) or isinstance(found, Path)


def test_an_override_leaves_the_neighbours_of_its_key_as_they_are(features: Path) -> None:
    config = load_config(features, ["training.lr=2"])
    assert config.training.lr == 2
    assert config.model.channels == 16


def test_overriding_a_configuration_is_loading_it_with_the_overrides(features: Path) -> None:
    config = load_config(features)
    changed = override_config(config, ["training.lr=0.5", "test.nms.method=hard"])
    assert changed == load_config(features, ["training.lr=0.5", "test.nms.method=hard"])
    assert override_config(config, []) == config


@pytest.mark.parametrize("override", ["training.lr", "=3", "training.lr=[1"])
def test_an_override_of_another_form_is_refused_and_shown(features: Path, override: str) -> None:
    assert f"'{override}'" in refusal(features, override)


@pytest.mark.parametrize("override", ["experiment=4", "experiment=1-2", "experiment=3", "experiment=best"])
def test_an_unknown_experiment_is_refused_with_those_there_are(features: Path, override: str) -> None:
    message = refusal(features, override)
    assert f"unknown experiment '{override.removeprefix('experiment=')}'" in message
    assert f"one of {', '.join(EXPERIMENTS)}" in message


def test_an_experiment_is_named_by_a_string_even_where_yaml_reads_a_number(features: Path) -> None:
    assert load_config(features, ["experiment=1"]).experiment == "1"
    init = ["init.forward=f", "init.reverse=b"]
    assert load_config(features, ["experiment=1-1", *init]).design is EXPERIMENTS["1-1"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("window.steps=50",), "window.steps 50 is not a multiple of the coarsest stride 4; use 52"),
        (
            ("window.steps=760", "model.levels=6"),
            "window.steps 760 is not a multiple of the coarsest stride 32; use 768",
        ),
    ],
)
def test_a_window_that_the_pyramid_cannot_halve_is_refused_with_a_better_one(
    features: Path, overrides: tuple[str, ...], said: str
) -> None:
    assert said in refusal(features, *overrides)


@pytest.mark.parametrize(("steps", "better"), [(40, 48), (50, 64), (8, 16)])
def test_a_window_that_is_no_number_of_clips_is_refused_with_one_that_fits_all(
    videos: Path, steps: int, better: int
) -> None:
    assert f"use {better}" in refusal(videos, f"window.steps={steps}")
    assert load_config(videos, [f"window.steps={better}"]).window.steps == better


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("data.videos=v",), "exactly one of data.videos and data.features"),
        (("data.features=null",), "exactly one of data.videos and data.features"),
        (("data.feature_channels=null",), "data.feature_channels"),
        (("data.reversed_videos=r",), "data.reversed_videos needs data.videos"),
        (("model.backbone.size=s",), "data.features a model without one"),
        (("window.overlap=1",), "window.overlap"),
        (("window.crop=[0.9, 0.5]",), "window.crop"),
        (("training.augmentation.crop_area=[1, 0.1]",), "training.augmentation.crop_area"),
        (("training.augmentation.crop_aspect=[2, 1]",), "training.augmentation.crop_aspect"),
        (("test.tiou=[]",), "test.tiou"),
        (("test.tiou=[0]",), "test.tiou"),
        (("model.prior_probability=0",), "model.prior_probability"),
        (("model.drop_path=1",), "model.drop_path"),
        (("seed=-1",), "seed"),
        (("data.features=null", "data.reversed_features=r"), "data.reversed_features needs data.features"),
        (("window.resized_clock=edge",), "window.resized_clock=edge has no effect with window.layout=sliding"),
        (("window.frames_per_step=2",), "window.frames_per_step=2 has no effect on features"),
        (("model.attention_window=[3, null]",), "2 windows for 3 levels"),
        (("model.attention_window=[3, 4, null]",), "model.attention_window.1: 4 must be odd"),
        (
            ("window.layout=whole", "experiment=3-1", "init.forward=f", "init.reverse=b"),
            "window.layout=whole: experiment 3-1 fuses windows",
        ),
        (("test.nms.method=none", "experiment=1"), "choose another method"),
    ],
)
def test_what_could_not_run_is_refused_before_anything_is_loaded(
    features: Path, overrides: tuple[str, ...], said: str
) -> None:
    assert said in refusal(features, *overrides)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("model.backbone.size=xl",), "unknown backbone size 'xl'; one of tiny, s, b, l, h, v2-g"),
        (
            ("model.backbone.size={dim: 32, depth: 2, heads: 3, mlp_dim: 8}",),
            "32 is not a multiple of 3 attention heads",
        ),
        (("model.backbone.size={dim: 32, depth: 2, heads: 2}",), "mlp_dim"),
        (("model.backbone.first_adapter=4",), "first_adapter: 4 is after the last of the 4 blocks"),
        (("window.stride_frames=4", "window.frames_per_step=3"), "4 is not a multiple of 3 frames per step"),
    ],
)
def test_what_could_not_run_on_videos_is_refused(videos: Path, overrides: tuple[str, ...], said: str) -> None:
    assert said in refusal(videos, *overrides)


def test_a_backbone_may_have_a_size_that_is_published_nowhere(videos: Path) -> None:
    config = load_config(videos, ["model.backbone.size={dim: 32, depth: 2, heads: 2, mlp_dim: 128}"])
    assert config.model.backbone is not None
    assert config.model.backbone.vit == VitSize(32, 2, 2, 128, 16)
    assert parse_config(yaml.safe_load(config.to_yaml()), "again") == config


INIT = ("init.forward=f", "init.reverse=b")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        *[
            (
                (f"experiment={experiment}", *init),
                f"experiment {experiment} starts from two finished baselines: give",
            )
            for experiment in ("1-1", "1x", "3-1", "3-2", "3-3")
            for init in ((), INIT[:1], INIT[1:])
        ],
        (
            INIT,
            "experiment baseline starts from the pre-trained backbone: leave out init.forward and init.reverse",
        ),
        (("experiment=1", INIT[0]), "experiment 1 starts from the pre-trained backbone: leave out init.forward"),
        *[
            (
                (f"experiment={experiment}", "direction=reverse", *INIT),
                f"direction=reverse has no effect in experiment {experiment}, which has a network for each direction",
            )
            for experiment in ("1-1", "3-1")
        ],
        (
            ("experiment=1", "direction=reverse"),
            "direction=reverse has no effect in experiment 1, which has a network",
        ),
        *[
            (
                (f"experiment={experiment}", *INIT),
                f"experiment {experiment} adds modules to the backbone's blocks, but",
            )
            for experiment in ("2", "2x")
        ],
        (
            ("pair.second=forward",),
            "pair.second=forward has no effect in experiment baseline, which has one network",
        ),
        (("pair.align=naive",), "pair.align=naive has no effect in experiment baseline"),
        (("experiment=1-1", "pair.align=naive", *INIT), "pair.align=naive has no effect in experiment 1-1"),
        (
            ("experiment=3-1", "pair.align=naive", "pair.second=forward", *INIT),
            "pair.align=naive has no effect with pair.second=forward, where both networks share a clock",
        ),
        (
            ("experiment=1x", "pair.fusion_init=random", *INIT),
            "pair.fusion_init=random has no effect in experiment 1x, which has no fusion",
        ),
        (
            ("experiment=3-2", "pair.train_detector=true", *INIT),
            "pair.train_detector=true has no effect in experiment 3-2",
        ),
        (("experiment=3-1", "pair.align=best", *INIT), "pair.align"),
        (("experiment=3-1", "pair.second=both", *INIT), "pair.second"),
        (("experiment=1x", "pair.agreement=0", *INIT), "pair.agreement"),
    ],
)
def test_what_is_of_no_use_to_an_experiment_or_missing_is_refused(
    features: Path, overrides: tuple[str, ...], said: str
) -> None:
    assert said in refusal(features, *overrides)


def test_each_option_of_a_pair_is_accepted_where_it_counts(features: Path, videos: Path) -> None:
    for overrides in (
        ("experiment=1x", "pair.align=naive"),
        ("experiment=3-2", "pair.align=naive", "pair.fusion_init=random"),
        ("experiment=3-3", "pair.second=forward", "pair.fusion_init=random"),
        ("experiment=1-1", "pair.second=forward"),
    ):
        assert load_config(features, [*overrides, *INIT]).design.networks == 2
    for experiment in ("2", "2x"):
        config = load_config(videos, [f"experiment={experiment}", "pair.train_detector=true", *INIT])
        assert config.trains_detectors
        assert not load_config(videos, [f"experiment={experiment}", *INIT]).trains_detectors


def test_a_pair_watches_forwards_and_in_reverse_and_the_control_forwards_twice(features: Path) -> None:
    assert load_config(features).views == ("forward",)
    assert load_config(features, ["direction=reverse"]).views == ("reverse",)
    assert load_config(features, ["experiment=3-1", *INIT]).views == ("forward", "reverse")
    assert load_config(features, ["experiment=3-1", "pair.second=forward", *INIT]).views == ("forward", "forward")


def test_a_picture_must_hold_a_patch(videos: Path) -> None:
    assert "15 pixels are less than a patch of 16" in refusal(videos, "model.backbone.pixels=15")


def test_a_file_stands_on_its_base_and_a_base_on_another(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    written(tmp_path / "below" / "first.yaml", FEATURES)
    written(tmp_path / "below" / "second.yaml", "base: first.yaml\ntraining: {lr: 0.5, epochs: 9}\n")
    top = written(tmp_path / "top.yaml", "base: below/second.yaml\ntraining: {epochs: 7}\nmodel: {channels: 32}\n")
    config = load_config(top)
    assert (config.training.lr, config.training.epochs) == (0.5, 7)
    assert (config.model.channels, config.model.levels) == (32, 3)


def test_a_preset_can_be_the_base(tmp_path: Path) -> None:
    top = written(tmp_path / "mine.yaml", "base: playroom\nname: mine\n")
    assert load_config(top) == load_config("playroom", ["name=mine"])


def test_a_file_that_stands_on_itself_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "a.yaml", "base: b.yaml\n")
    assert "a.yaml" in refusal(written(tmp_path / "b.yaml", "base: a.yaml\n"))


def test_an_unknown_configuration_is_refused_with_the_presets() -> None:
    with pytest.raises(FileNotFoundError, match=r"'thumos15'.*playroom"):
        load_config("thumos15")


def test_an_unknown_base_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_config(written(tmp_path / "a.yaml", "base: nowhere\n"))


@pytest.mark.parametrize(("text", "said"), [("a: [1", "not YAML"), ("- 1\n- 2", "a list"), ("", "nothing")])
def test_a_file_without_keys_and_values_is_refused(tmp_path: Path, text: str, said: str) -> None:
    assert said in refusal(written(tmp_path / "odd.yaml", text))


def test_a_configuration_is_frozen(features: Path) -> None:
    config = load_config(features)
    with pytest.raises(ValidationError, match="frozen"):
        config.training.lr = 1.0
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1


def test_ranges_double_from_level_to_level_and_the_last_has_no_end(features: Path) -> None:
    assert load_config(features, ["model.levels=4"]).model.ranges == ((0, 4), (4, 8), (8, 16), (16, 10000))
    assert load_config(features, ["model.regression_ranges=[[0,1],[1,2],[2,9]]"]).model.ranges == (
        (0, 1),
        (1, 2),
        (2, 9),
    )


def test_runs_of_other_names_directions_and_seeds_have_other_directories(features: Path) -> None:
    variants = [(), ("direction=reverse",), ("seed=1",), ("name=other",), ("output=elsewhere",)]
    assert len({load_config(features, overrides).run_directory for overrides in variants}) == len(variants)


# A value of each renamed key that is not its default.
RENAMED_VALUES = {
    "data.damaged_frames": "repeat",
    "init.backward": "/runs/b",
    "pair.detector_too": True,
    "training.bad_steps": 7,
    "training.bad_videos": "skip",
    "training.keep": 5,
    "training.reading_s": 11.0,
    "test.bad_videos": "skip",
    "test.reading_s": 12.0,
}


def test_there_is_a_value_of_each_renamed_key() -> None:
    assert RENAMED_VALUES.keys() == RENAMED_KEYS.keys()


@pytest.mark.parametrize("old", RENAMED_KEYS)
def test_a_former_name_of_a_key_is_read_with_a_warning(
    videos: Path, tmp_path: Path, old: str, caplog: pytest.LogCaptureFixture
) -> None:
    new, value = RENAMED_KEYS[old], RENAMED_VALUES[old]
    others = {
        "init.backward": ("experiment=1-1", "init.forward=/runs/f"),
        "pair.detector_too": ("experiment=2", "init.forward=/runs/f", "init.reverse=/runs/b"),
    }.get(old, ())
    wanted = load_config(videos, [*others, f"{new}={value}"])
    assert wanted != load_config(videos, [*others, *(["init.reverse=other"] if old == "init.backward" else [])])
    section, _, key = old.partition(".")
    file = written(tmp_path / "former.yaml", yaml.safe_dump({"base": str(videos), section: {key: value}}))
    for source, overrides, where in ((videos, [f"{old}={value}"], "override"), (file, [], "former.yaml")):
        caplog.clear()
        assert load_config(source, [*others, *overrides]) == wanted
        (said,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
        assert where in said
        assert f"{old} is now called {new}" in said
    caplog.clear()
    document = wanted.model_dump(mode="json")
    document[section][key] = document[section].pop(new.partition(".")[2])
    assert parse_config(document, "a checkpoint's") == wanted
    assert not caplog.records  # a user cannot change what is in a checkpoint


def test_a_key_under_both_its_names_is_refused(videos: Path, tmp_path: Path) -> None:
    both = written(tmp_path / "both.yaml", f"base: {videos}\ntraining: {{keep: 3, keep_last: 3}}\n")
    assert "training.keep is the former name of training.keep_last, and both are given" in refusal(both)
    message = refusal(videos, "training.keep=3", "training.keep_last=3")
    assert "both set training.keep_last; give one" in message
