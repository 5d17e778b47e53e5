"""What cannot work is refused before anything is loaded, each fault by its path, with its value and what to do."""

from __future__ import annotations

import json
from contextlib import chdir
from pathlib import Path

import pytest
from test_config import FEATURES, VIDEOS

from bitad.cli import main
from bitad.config.loading import ConfigError, load_config, override_config, parse_config, presets

RANGES = "model.regression_ranges="

# Override -> what its line says: the path, the value and the remedy. On features.
IMPOSSIBLE = {
    # A value that makes no sense alone.
    "name=''": "name: '' is not a name; give one",
    "name=' '": "name: ' ' is not a name; give one",
    "name=a/b": "name: 'a/b' cannot begin the name of a folder; leave out /",
    f"name={'x' * 201}": "is too long to begin the name of a folder; use at most 200 bytes",
    "name=true": "name: true is not a name; give one, in quotes",
    "name=null": "name: null is not a name; give one, in quotes",
    "seed=-1": "seed: Input should be greater than or equal to 0 (is -1)",
    "threads=0": "threads: Input should be greater than or equal to 1 (is 0)",
    "output=''": "output: '' is not a path; give a file or folder",
    "data.features=''": "data.features: '' is not a path; give a file or folder",
    "data.annotations=null": "data.annotations: null is not a path; give a file or folder",
    "data.classes=false": "data.classes: false is not a path; give a file or folder",
    "data.classes=[a]": "data.classes: ['a'] is not a path; give a file or folder",
    'output="\\ud800"': "output: '\\ud800' is not a path; give a file or folder",
    "data.training_subset=''": "data.training_subset: '' is not a name; give one",
    "data.feature_channels=0": "data.feature_channels: Input should be greater than or equal to 1 (is 0)",
    "data.feature_stride_frames=0": "data.feature_stride_frames: Input should be greater than 0 (is 0)",
    "data.feature_stride_frames=1e300": "data.feature_stride_frames: single precision cannot compute with 1e+300; use",
    "data.feature_offset_frames=.nan": "data.feature_offset_frames: Input should be a finite number (is nan)",
    "data.feature_fps=-25": "data.feature_fps: Input should be greater than 0 (is -25)",
    "window.steps=0": "window.steps: Input should be greater than or equal to 1 (is 0)",
    "window.overlap=1": "window.overlap: Input should be less than 1 (is 1)",
    "window.completeness=0": "window.completeness: Input should be greater than 0 (is 0)",
    "window.crop=[0, 0]": "window.crop.1: Input should be greater than 0 (is 0)",
    "window.crop=[1, 0.5]": "window.crop: [1.0, 0.5] must be [smallest, largest]",
    "model.levels=0": "model.levels: Input should be greater than or equal to 1 (is 0)",
    "model.levels=5000": "model.levels: Input should be less than or equal to 30 (is 5000)",
    "model.heads=0": "model.heads: Input should be greater than or equal to 1 (is 0)",
    "model.stem_blocks=-1": "model.stem_blocks: Input should be greater than or equal to 0 (is -1)",
    "model.embed_convolutions=0": "model.embed_convolutions: Input should be greater than or equal to 1 (is 0)",
    "model.dropout=1": "model.dropout: Input should be less than 1 (is 1)",
    "model.input_dropout=1": "model.input_dropout: Input should be less than 1 (is 1)",
    "model.drop_path=1": "model.drop_path: Input should be less than 1 (is 1)",
    "model.layer_scale=0": "model.layer_scale: Input should be greater than 0 (is 0)",
    "model.prior_probability=1": "model.prior_probability: Input should be less than 1 (is 1)",
    "model.attention_window=1": "model.attention_window: Input should be greater than or equal to 3 (is 1)",
    "model.attention_window=[3, 1, null]": "model.attention_window.1: Input should be greater than or equal to 3",
    "model.attention_window=0": "model.attention_window: Input should be greater than or equal to 1 (is 0)",
    "model.attention_window=8": "model.attention_window: 8 must be odd, so that it has a centre; use 9",
    f"{RANGES}[[4, 0], [4, 8], [8, 99]]": "model.regression_ranges: no distance is in the range [4, 0]; give each as",
    f"{RANGES}[[0, 4], [4, 4], [4, 99]]": "model.regression_ranges: no distance is in the range [4, 4]; give each as",
    f"{RANGES}[[-9, -4], [0, 8], [8, 99]]": "model.regression_ranges: no distance is in the range [-9, -4]; give each",
    f"{RANGES}[[0, 4], [6, 8], [8, 99]]": "distances between 4 and 6 steps are in no range",
    f"{RANGES}[[0, .inf], [4, 8], [8, 99]]": "model.regression_ranges.0.1: Input should be a finite number (is inf)",
    "training.epochs=0": "training.epochs: Input should be greater than or equal to 1 (is 0)",
    "training.epochs=1e300": "training.epochs: Input should be a valid integer, unable to parse string",
    "training.warmup_epochs=-1": "training.warmup_epochs: Input should be greater than or equal to 0 (is -1)",
    "training.batch=0": "training.batch: Input should be greater than or equal to 1 (is 0)",
    "training.accumulate=0": "training.accumulate: Input should be greater than or equal to 1 (is 0)",
    "training.reference_batch=0": "training.reference_batch: Input should be greater than or equal to 1 (is 0)",
    "training.windows_per_video=0": "training.windows_per_video: Input should be greater than or equal to 1 (is 0)",
    "training.lr=0": "training.lr: Input should be greater than 0 (is 0)",
    "training.lr=nan": "training.lr: Input should be a finite number (is 'nan')",
    "training.lr=inf": "training.lr: Input should be a finite number (is 'inf')",
    "training.lr=1e300": "training.lr: single precision cannot compute with 1e+300; use a value from 1e-12 to 1e+12",
    "training.lr=1e-300": "training.lr: single precision cannot compute with 1e-300; use a value from 1e-12 to 1e+12",
    "training.lr=true": "training.lr: true is not a number",
    "training.epochs=on": "training.epochs: Input should be a valid integer, unable to parse string",
    "training.adapter_lr=-1": "training.adapter_lr: Input should be greater than 0 (is -1)",
    "training.weight_decay=-1": "training.weight_decay: Input should be greater than or equal to 0 (is -1)",
    "training.clip_norm=0": "training.clip_norm: Input should be greater than 0 (is 0)",
    "training.ema_decay=1": "training.ema_decay: Input should be less than 1 (is 1)",
    "training.centre_radius=0.1": "training.centre_radius: Input should be greater than or equal to 0.5 (is 0.1)",
    "training.label_smoothing=1": "training.label_smoothing: Input should be less than 1 (is 1)",
    "training.loss_normaliser=0": "training.loss_normaliser: Input should be greater than 0 (is 0)",
    "training.regression_weight=0": "training.regression_weight: Input should be greater than 0 (is 0)",
    "training.evaluate_every=0": "training.evaluate_every: Input should be greater than or equal to 1 (is 0)",
    "training.evaluate_from=-1": "training.evaluate_from: Input should be greater than or equal to 0 (is -1)",
    "training.workers=-1": "training.workers: Input should be greater than or equal to 0 (is -1)",
    "training.checkpoint_steps=0": "training.checkpoint_steps: Input should be greater than or equal to 1 (is 0)",
    "training.keep_last=0": "training.keep_last: Input should be greater than or equal to 1 (is 0)",
    "training.max_nonfinite_steps=0": "training.max_nonfinite_steps: Input should be greater than or equal to 1 (is 0)",
    "training.read_timeout_s=0": "training.read_timeout_s: Input should be greater than 0 (is 0)",
    "training.augmentation.crop_area=[0, 0]": "training.augmentation.crop_area.1: Input should be greater than 0",
    "training.augmentation.crop_aspect=[0, 1]": "training.augmentation.crop_aspect.0: Input should be greater than 0",
    "training.augmentation.hue=0.6": "training.augmentation.hue: Input should be less than or equal to 0.5 (is 0.6)",
    "pair.agreement=0": "pair.agreement: Input should be greater than 0 (is 0)",
    "test.batch=0": "test.batch: Input should be greater than or equal to 1 (is 0)",
    "test.workers=-1": "test.workers: Input should be greater than or equal to 0 (is -1)",
    "test.score_threshold=1": "test.score_threshold: Input should be less than 1 (is 1)",
    "test.candidates=0": "test.candidates: Input should be greater than or equal to 1 (is 0)",
    "test.video_classes=0": "test.video_classes: Input should be greater than or equal to 1 (is 0)",
    "test.nms.sigma=0": "test.nms.sigma: Input should be greater than 0 (is 0)",
    "test.nms.sigma=1e-300": "test.nms.sigma: single precision cannot compute with 1e-300; use a value from",
    "test.nms.iou_threshold=0": "test.nms.iou_threshold: Input should be greater than 0 (is 0)",
    "test.nms.iou_threshold=1.5": "test.nms.iou_threshold: Input should be less than or equal to 1 (is 1.5)",
    "test.nms.voting_threshold=-1": "test.nms.voting_threshold: Input should be greater than or equal to 0 (is -1)",
    "test.nms.max_segments=0": "test.nms.max_segments: Input should be greater than or equal to 1 (is 0)",
    "test.nms.min_score=1": "test.nms.min_score: Input should be less than 1 (is 1)",
    "test.nms.method=soft": "test.nms.method: Input should be 'gaussian', 'linear', 'vanilla', 'hard' or 'none'",
    "test.tiou=[]": "test.tiou: Tuple should have at least 1 item after validation, not 0",
    "test.tiou=[0.5, 0.5, 0.7]": "test.tiou: 0.5 counts twice in the average; give it once",
    "test.tiou=[0.5, 1.5]": "test.tiou.1: Input should be less than or equal to 1 (is 1.5)",
    "test.tiou=[0]": "test.tiou.0: Input should be greater than 0 (is 0)",
    "test.tiou=[true]": "test.tiou: [true] is not a number",
    "training=5": "training: a section of keys (training.epochs, training.schedule_epochs, training.warmup_epochs,",
    "test=null": "test: a section of keys (test.backbone, test.precision, test.batch, ...), not a value (is None)",
    # Values that make no sense together.
    "model.channels=18": "model.channels: 18 channels are not a multiple of 4 heads (model.heads)",
    "model.levels=8": "model.levels: window.steps 64 has room for 7 levels, not 8; use fewer",
    "window.steps=66": "window.steps 66 is not a multiple of the coarsest stride 4; use 68",
    "model.attention_window=[3, 5]": "model.attention_window: 2 windows for 3 levels; give one each",
    f"{RANGES}[]": "model.regression_ranges: 0 regression ranges for 3 levels; give one each",
    f"{RANGES}[[0, 4], [4, 99]]": "model.regression_ranges: 2 regression ranges for 3 levels; give one each",
    f"{RANGES}[[64, 128], [128, 256], [256, 999]]": "distances from 64 steps do not fit into 64 steps",
    "training.schedule_epochs=59": "training.schedule_epochs: the learning rate is 0 after 59 epochs, but "
    "training.epochs is 60; use 60 or more, or null",
    "training.warmup_epochs=60": "training.warmup_epochs: 60 must be less than the 60 epochs of the schedule; use 6",
    "training.weight_decay=1e5": "training.weight_decay: 100000 times training.lr 0.0001 removes every weight",
    "data.feature_channels=null": "data.features needs data.feature_channels",
    "data.reversed_features=features": "data.reversed_features: features is also data.features; give features of",
}

IMPOSSIBLE_ON_VIDEOS = {
    "data.reversed_videos=videos": "data.reversed_videos: videos is also data.videos; give videos of",
    "model.backbone.pixels=15": "model.backbone.pixels: 15 pixels are less than a patch of 16; use 16 or more",
    "model.backbone.table_pixels=15": "model.backbone.table_pixels: 15 pixels are less than a patch of 16; use 16",
    "model.backbone.adapter_reduction=1000": "model.backbone.adapter_reduction: 1000 leaves the adapters no",
    "model.backbone.first_adapter=12": "model.backbone.first_adapter: 12 is after the last of the 4",
    "model.backbone.drop_path=1": "model.backbone.drop_path: Input should be less than 1 (is 1)",
    "model.backbone.size=xxl": "model.backbone.size: unknown backbone size 'xxl'; one of tiny, s, b, l, h, v2-g",
    "model.backbone.size={dim: 32, depth: 2, heads: 3, mlp_dim: 8}": "model.backbone.size: a width of 32 is not a "
    "multiple of 3 attention heads",
    "model.backbone.size={dim: 32, depth: 2, heads: 2}": "model.backbone.size.mlp_dim: missing",
    "model.backbone.weights=''": "model.backbone.weights: '' is not a path; give a file or folder",
    "window.frames_per_step=3": "window.stride_frames 4 is not a multiple of 3 frames per step",
}

UNUSUAL = (
    ("training.epochs=1", "training.warmup_epochs=0"),
    ("training.epochs=1", "training.schedule_epochs=100"),
    ("training.schedule_epochs=60",),
    ("training.evaluate_every=1000", "training.evaluate_from=1000"),
    ("training.lr=1", "training.weight_decay=0", "training.ema_decay=0"),
    ("training.lr=1e-10",),
    ("training.checkpoint_steps=1", "training.keep_last=1", "training.workers=0"),
    ("model.levels=1", "window.steps=1", "model.heads=1"),
    ("model.levels=7",),
    ("model.attention_window=3",),
    ("model.attention_window=[129, null, 3]",),
    (f"{RANGES}[[0, 4], [2, 8], [4, 99]]",),
    (f"{RANGES}[[-1, 8], [8, 16], [16, 32]]",),
    (f"{RANGES}[[1, 2], [2, 3], [3, 9]]",),
    ("window.overlap=0", "window.completeness=1", "window.crop=[0, 1]"),
    ("test.tiou=[1]",),
    ("test.tiou=[0.7, 0.3]",),
    ("test.score_threshold=0", "test.nms.min_score=0", "test.nms.voting_threshold=0", "test.nms.iou_threshold=1"),
    ("test.nms.voting_threshold=1", "test.candidates=1", "test.nms.max_segments=1"),
    ("data.feature_offset_frames=-8",),
    ("data.training_subset=validation",),
    ("data.test_subset=2",),
    ("name=playroom v2.1",),
)


@pytest.fixture
def features(tmp_path: Path) -> str:
    return written(tmp_path / "features.yaml", FEATURES)


@pytest.fixture
def videos(tmp_path: Path) -> str:
    return written(tmp_path / "videos.yaml", VIDEOS)


def written(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def faults(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """What ``bitad train`` says of a configuration that it refuses: one line, here at its semicolons."""
    assert main(["train", *arguments]) != 0
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said.strip().partition(".yaml: ")[2].split("; ")


def refusal(source: str, *overrides: str) -> str:
    with chdir(Path(source).parent), pytest.raises(ConfigError) as refused:
        load_config(source, overrides)
    return str(refused.value)


@pytest.mark.parametrize("override", IMPOSSIBLE)
def test_an_impossible_value_is_refused_by_its_path_with_a_remedy(features: str, override: str) -> None:
    assert IMPOSSIBLE[override] in refusal(features, override)


@pytest.mark.parametrize("override", IMPOSSIBLE_ON_VIDEOS)
def test_an_impossible_value_on_videos_is_refused_by_its_path_with_a_remedy(videos: str, override: str) -> None:
    assert IMPOSSIBLE_ON_VIDEOS[override] in refusal(videos, override)


@pytest.mark.parametrize("overrides", UNUSUAL, ids=" ".join)
def test_an_unusual_value_that_can_work_is_accepted(features: str, overrides: tuple[str, ...]) -> None:
    load_config(features, overrides)


def test_a_network_trained_under_other_rules_can_still_be_tested(features: str) -> None:
    """A schedule shorter than the training is refused, but not where the training is over."""
    stored = load_config(features).model_dump(mode="json")
    stored["training"] |= {"schedule_epochs": 1, "epochs": 9}
    with pytest.raises(ConfigError):
        load_config(written(Path(features).with_name("stored.yaml"), json.dumps(stored)))
    config = override_config(parse_config(stored, "in a checkpoint"), ["test.nms.sigma=0.4"])
    assert (config.training.schedule_epochs, config.test.nms.sigma) == (1, 0.4)
    with pytest.raises(ConfigError, match="iou_threshold"):
        override_config(config, ["test.nms.iou_threshold=0"])


@pytest.mark.parametrize("name", presets())
def test_a_preset_may_be_tried_for_one_epoch(name: str) -> None:
    load_config(name, ["training.epochs=1", "training.schedule_epochs=1", "training.warmup_epochs=0"])
    assert load_config(name, ["training.epochs=1", "training.schedule_epochs=1"]).training.warmup_epochs < 1
    load_config(name, ["training.epochs=1"])


@pytest.mark.parametrize("name", presets())
def test_a_presets_own_warm_up_stays_to_the_bit(name: str) -> None:
    own = load_config(name).training
    assert load_config(name, [f"training.epochs={own.epochs}"]).training == own


def test_train_refuses_before_it_writes_anything(
    features: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert faults(capsys, features, "test.nms.iou_threshold=0") == [
        "test.nms.iou_threshold: Input should be greater than 0 (is 0)"
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["features.yaml"]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("train", "playroom", "--until", "0"), "--until 0 is not an epoch; the first is 1"),
        (("train", "playroom", "--until", "-3"), "--until -3 is not an epoch; the first is 1"),
        (("demo", "--seed", "-1"), "--seed -1 is out of range; use 0 to 2^63 - 1"),
    ],
)
def test_an_option_out_of_range_is_refused_before_anything_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*command]) == 1
    assert capsys.readouterr().err == f"bitad {command[0]}: error: {said}\n"
    assert not [*tmp_path.iterdir()]


def test_a_broken_rule_is_told_once(features: str) -> None:
    assert refusal(features, "model.channels=18").count("18 channels") == 1
    assert refusal(features, f"{RANGES}[[4, 0], [4, 0], [0, 99]]").count("[4, 0]") == 1


# A value that cannot be read -> rules that have nothing to do with it.
UNREAD = {
    "training.lr=abc": ("training.warmup_epochs=70", "warmup_epochs: 70 must be less"),
    "training.lr={a: 1}": ("training.schedule_epochs=3", "the learning rate is 0 after 3 epochs"),
    "window.steps=many": ("model.channels=18", "18 channels are not a multiple"),
    "window=3": ("model.channels=18", "18 channels are not a multiple"),
    "experiment=9-9": ("window.steps=66", "window.steps 66 is not a multiple"),
    "model.attention_window=[3, x, 3]": ("model.channels=18", "18 channels are not a multiple"),
    "data.annotations=null": ("data.videos=v", "give exactly one of data.videos and data.features"),
    "data=null": ("model.channels=18", "18 channels are not a multiple"),
    "name=null": ("model.channels=18", "18 channels are not a multiple"),
    "model.backbone={size: {dim: 8}}": ("model.channels=18", "18 channels are not a multiple"),
    "test.tiou=[0.5, 7]": ("training.warmup_epochs=70", "warmup_epochs: 70 must be less"),
    "training.unknown=3": ("training.warmup_epochs=70", "warmup_epochs: 70 must be less"),
    "training.lr=[": ("training.warmup_epochs=70", "warmup_epochs: 70 must be less"),
    "training.lr": ("training.warmup_epochs=70", "warmup_epochs: 70 must be less"),
}


@pytest.mark.parametrize("unread", UNREAD)
def test_a_value_that_cannot_be_read_hides_no_other_fault(features: str, unread: str) -> None:
    rule, said = UNREAD[unread]
    alone, both = refusal(features, unread), refusal(features, unread, rule)
    assert said in both
    assert said not in alone
    key = unread.partition("=")[0]
    assert key in alone
    assert key in both


@pytest.mark.parametrize(
    ("unread", "rule"),
    [
        ("window.steps=many", "model.levels=12"),  # whatever the steps are meant to be
        ("training.epochs=all", "training.warmup_epochs=70"),
        ("model.channels=x", "model.heads=5"),
        ("experiment=9-9", "init.forward=run"),
        ("model.levels=[", "model.attention_window=[3, 3]"),
    ],
)
def test_a_rule_says_nothing_of_a_value_that_cannot_be_read(features: str, unread: str, rule: str) -> None:
    assert refusal(features, unread) == refusal(features, unread, rule)


def test_a_missing_key_hides_no_other_fault() -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config({"model": {"channels": 18}}, "of nothing")
    for said in ("name: missing", "data: missing", "18 channels are not a multiple"):
        assert said in str(refused.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("traning.lr=1", "traning: unknown key; did you mean training?"),
        ("training.epoch=1", "training.epoch: unknown key; did you mean training.epochs?"),
        ("test.nms.sigm=1", "test.nms.sigm: unknown key; did you mean test.nms.sigma?"),
        ("lr=1", "lr: unknown key; did you mean training.lr?"),
        ("training.sigma=1", "training.sigma: unknown key; did you mean test.nms.sigma?"),
        ("drop_path=0", "drop_path: unknown key; did you mean model.backbone.drop_path or model.drop_path?"),
    ],
)
def test_a_misspelt_key_is_refused_with_the_one_that_is_meant(features: str, override: str, said: str) -> None:
    assert said in refusal(features, override)


def test_a_key_like_no_other_is_refused_without_a_guess(features: str) -> None:
    assert refusal(features, "zzzzzz=1").endswith("zzzzzz: unknown key")


@pytest.mark.parametrize(
    ("first", "second", "key"),
    [
        ("training.lr=1", "training.lr=2", "training.lr"),
        ("training.lr=1", "training.lr=1", "training.lr"),
        ("training={lr: 1, epochs: 30}", "training.lr=2", "training.lr"),
        ("model.backbone=null", "model.backbone.size=s", "model.backbone.size"),
        ("model.backbone.size=s", "model.backbone=null", "model.backbone.size"),
    ],
)
def test_a_key_that_two_overrides_set_is_refused_with_both(
    features: str, capsys: pytest.CaptureFixture[str], first: str, second: str, key: str
) -> None:
    assert f"overrides '{first}' and '{second}' both set {key}" in faults(capsys, features, first, second)


def test_overrides_of_different_keys_of_a_section_are_both_taken(features: str) -> None:
    config = load_config(features, ["training={lr: 1}", "training.epochs=7"])
    assert (config.training.lr, config.training.epochs) == (1, 7)


def test_all_overrides_that_cannot_be_read_are_told_at_once(
    features: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = "; ".join(faults(capsys, features, "training.lr=[", "training.epochs", "..=3", "model.heads=0"))
    for said in (
        "override 'training.lr=['",
        "override 'training.epochs' is not of the form key.sub=value",
        "override '..=3' is not of the form key.sub=value",
        "model.heads: Input should be greater than or equal to 1 (is 0)",
    ):
        assert said in told


@pytest.mark.parametrize("typed", ["007", "12:30", "0x10", "nan", "1e5", "1.50", "no", "2026-01-31", "1_000", "="])
@pytest.mark.parametrize("where", ["file", "override"])
def test_a_name_is_taken_as_it_is_typed(features: str, where: str, typed: str) -> None:
    if where == "file":
        written(Path(features), FEATURES.replace("small", typed))
    config = load_config(features, [f"name={typed}"] if where == "override" else [])
    assert config.name == typed


@pytest.mark.parametrize(
    ("typed", "number"),
    [("010", 10), ("1_0", 10), ("+7", 7), ("12:30", None), ("0x10", None), ("0o17", None), ("2026-01-31", None)],
)
@pytest.mark.parametrize("where", ["file", "override"])
def test_a_number_is_what_people_read_or_refused(
    features: str, where: str, typed: str, number: int | None
) -> None:
    """YAML 1.1 reads 12:30 as 750, and 010 as 8."""
    if where == "file":
        written(Path(features), f"{FEATURES}seed: {typed}\n")
    overrides = [f"seed={typed}"] if where == "override" else []
    if number is None:
        assert f"unable to parse string as an integer (is '{typed}')" in refusal(features, *overrides)
    else:
        assert load_config(features, overrides).seed == number


@pytest.mark.parametrize(("typed", "value"), [("no", False), ("on", True), ("true", True), ("False", False)])
def test_a_truth_value_may_be_written_in_any_usual_way(features: str, typed: str, value: bool) -> None:
    assert load_config(features, [f"test.rounding={typed}"]).test.rounding is value


def test_a_path_in_one_key_of_a_file_is_explained(features: str) -> None:
    written(Path(features), f"{FEATURES}training.lr: 0.5\n")
    assert "training.lr: unknown key; in a file, write each part of its path as a key of its own" in refusal(
        features
    )
