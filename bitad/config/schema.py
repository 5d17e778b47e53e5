"""The configuration: one frozen, validated :class:`Config`, and the types of its fields.

:mod:`bitad.config.loading` reads it, :mod:`bitad.config.rules` checks values against each other.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from bitad.config.names import (
    DETECTION_SUFFIXES,
    EXPERIMENTS,
    SIZES,
    UNKNOWN,
    AdapterPlacement,
    Alignment,
    Checkpointing,
    Experiment,
    FusionInit,
    MergeMethod,
    NmsMethod,
    OnDecodeError,
    OnReadError,
    Padding,
    Precision,
    VitSize,
)
from bitad.config.rules import broken_rules
from bitad.runtime.log import did_you_mean
from bitad.timeline import Direction, ResizedClock, TrainingView, View, clock_of

_SMALLEST, LARGEST = 1e-12, 1e12
_NAME_BYTES = 200  # file systems allow 255, and a run appends its variant and seed


def _computable(value: float) -> float:
    if not _SMALLEST <= abs(value) <= LARGEST:
        raise ValueError(
            f"single precision cannot compute with {value:g}; use a value from {_SMALLEST:g} to {LARGEST:g}"
        )
    return value


def _ascending(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[0] > limits[1]:
        raise ValueError(f"{list(limits)} must be [smallest, largest]")
    return limits


def _distinct(thresholds: tuple[float, ...]) -> tuple[float, ...]:
    if twice := sorted({one for one in thresholds if thresholds.count(one) > 1}):
        raise ValueError(f"{', '.join(f'{one:g}' for one in twice)} counts twice in the average; give it once")
    return thresholds


def given_path(value: object) -> str | Path:
    """A value of the configuration as a path; raises ValueError if it is none."""
    if isinstance(value, str | int | float | Path) and not isinstance(value, bool):
        text = str(value)
        with suppress(UnicodeEncodeError):
            if os.fsencode(text).strip() and "\0" not in text:
                return value if isinstance(value, Path) else text
    raise ValueError(f"{_as_yaml(value)} is not a path; give a file or folder")


def _as_involution(reversal: dict[str, str]) -> dict[str, str]:
    """The mapping with an entry for each partner; ValueError if reversing twice would give another class."""
    completed = dict(reversal)
    for name, other in reversal.items():
        if other == UNKNOWN:
            continue
        if name == UNKNOWN:
            raise ValueError(f"{UNKNOWN} means no class; rename the class {UNKNOWN} that becomes {other}")
        back = completed.setdefault(other, name)
        if back != name:
            raise ValueError(
                f"{name} becomes {other}, but {other} becomes {back}; reversing twice must give {name} again"
            )
    return completed


def _text(value: object) -> object:
    # `experiment=1` is a number in YAML, but experiments are named by strings.
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, bool) or value is None or not str(value).strip():
        raise ValueError(f"{_as_yaml(value)} is not a name; give one, in quotes if YAML reads it as another type")
    return value


def _as_yaml(value: object) -> str:
    return json.dumps(value) if isinstance(value, bool | None) else repr(value)


def _check_folder_name(name: str) -> str:
    if not name.strip() or any(letter in "/\\" or not letter.isprintable() for letter in name):
        raise ValueError(f"{name!r} cannot begin the name of a folder; leave out /, \\ and line ends")
    if len(name.encode(errors="replace")) > _NAME_BYTES:
        raise ValueError(
            f"'{name[:40]}...' is too long to begin the name of a folder; use at most {_NAME_BYTES} bytes"
        )
    return name


Share = Annotated[float, Field(ge=0, le=1)]
ShareBelowAll = Annotated[float, Field(ge=0, lt=1)]
ShareAboveNothing = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0), AfterValidator(_computable)]
LearningRate = Annotated[Positive, Field(le=1000)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Layers = Annotated[int, Field(ge=0, le=1000)]
Workers = Annotated[int, Field(ge=0, le=4096)]
Mebibytes = Annotated[int, Field(ge=0, le=2**30)]
# The seeds that PyTorch accepts.
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Name = Annotated[str, BeforeValidator(_text), WithJsonSchema({"type": ["string", "number"]})]
FolderName = Annotated[Name, AfterValidator(_check_folder_name)]
Place = Annotated[Path, BeforeValidator(given_path)]
ShareRange = Annotated[tuple[Share, ShareAboveNothing], AfterValidator(_ascending)]
PositiveRange = Annotated[tuple[Positive, Positive], AfterValidator(_ascending)]
Reversal = Annotated[dict[Name, Name], AfterValidator(_as_involution)]
Thresholds = Annotated[tuple[ShareAboveNothing, ...], Field(min_length=1), AfterValidator(_distinct)]


class Section(BaseModel):
    """A frozen part of the configuration that accepts exactly its own keys."""

    # The written configuration cannot hold infinite numbers.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_truth_value_for_number(cls, value: object, info: ValidationInfo) -> object:
        """Python's ``True`` would count as 1."""
        assert info.field_name is not None
        takes_numbers = re.search(r"\b(int|float)\b", str(cls.model_fields[info.field_name].annotation))
        given = value if isinstance(value, list | tuple) else [value]
        if takes_numbers and any(isinstance(one, bool) for one in given):
            raise ValueError(f"{str(value).lower()} is not a number")
        return value


CLIP_FRAMES = 16  # of VideoMAE

# Context of a validation without :mod:`bitad.config.rules`.
FIELDS_ALONE = object()

# Tags of unions: :mod:`bitad.config.loading` removes tags of this form from the location of a fault.
BY_NAME, BY_MEASURES, ONE, EACH = "<name>", "<measures>", "<one>", "<each>"


def _one_of(what: str, names: Collection[str]) -> AfterValidator:
    def check(name: str) -> str:
        if name not in names:
            raise ValueError(f"unknown {what} '{name}'; one of {', '.join(names)}{did_you_mean(name, names)}")
        return name

    return AfterValidator(check)


class DataConfig(Section):
    """The files of the data set. Exactly one of ``videos`` and ``features`` is given."""

    annotations: Place
    classes: Place | None = None  # class names, one per line; none: the order of the annotation file
    videos: Place | None = None  # folder of video files, named as in the annotations
    reversed_videos: Place | None = None  # their time-reversed copies; none: windows are flipped
    # For frames that cannot be decoded; `repeat`: the last good one replaces them.
    on_decode_error: OnDecodeError = "error"
    # Memory for decoded frames, in MiB for each process that reads: the first videos that fit are decoded only once.
    keep_frames_mib: Mebibytes = 0
    # Folder of these frames, for all processes and runs that read the same videos; none: each process's memory.
    frame_cache: Place | None = None
    features: Place | None = None  # folder of .npy/.npz files, or one .npz of all videos
    # Features of reversed playback, in forward time; none: flipped.
    reversed_features: Place | None = None
    feature_channels: Count | None = None
    feature_stride_frames: Positive = 1.0  # video frames from one feature to the next
    # Frame at the centre of the first feature's snippet.
    feature_offset_frames: float = Field(default=0.0, ge=-1e9, le=1e9)
    feature_fps: Positive | None = None  # frame rate of the strides; none: the annotated rate of each video
    # Continue with a warning although the times of features, videos and annotations disagree.
    allow_clock_mismatch: bool = False
    class_agnostic: bool = False  # treat all segments as one class: learn when, not what
    # By class, the class that it looks like on reversed playback ({rise: fall}), itself, or `unknown`; others are
    # themselves. Of a network that learns from both directions (experiment 1s, direction=both): a reversed window
    # teaches that class, or no class.
    reversal: Reversal | None = None
    training_subset: Name = "training"
    # The subset that a training evaluates and on which it chooses best.pt; none: `test_subset`.
    validation_subset: Name | None = None
    test_subset: Name = "validation"

    @property
    def evaluation_subset(self) -> str:
        """The subset that a training evaluates."""
        return self.test_subset if self.validation_subset is None else self.validation_subset


class WindowConfig(Section):
    """The part of a video that the detector sees at a time."""

    steps: Count = 768  # T, grid steps of a window
    # How testing divides a video; `whole`: one window as long as the video; `resized`: one window of T steps
    # evenly spaced over the video, also in training.
    layout: Literal["sliding", "whole", "resized"] = "sliding"
    stride_frames: Count = 4  # video frames from one grid step to the next (videos only)
    # Grid steps per second instead of a stride, for videos of several frame rates: each takes the nearest stride.
    steps_per_second: Positive | None = None
    # The position of a step in its part of a resized video; `edge`: its start, as in OpenTAD.
    resized_clock: ResizedClock = "centre"
    frames_per_step: Count = 1  # frames per grid step that the backbone sees
    overlap: ShareBelowAll = 0.5  # of neighbouring windows in testing
    completeness: ShareAboveNothing = 0.75  # share of an action that must lie in a training window
    crop: ShareRange = (0.9, 1.0)  # random share kept of a video shorter than a window

    @property
    def resized_steps(self) -> int | None:
        """The grid steps that every video is resized to; None: videos are not resized."""
        return self.steps if self.layout == "resized" else None


class SizeConfig(Section):
    """A transformer of a custom size."""

    dim: Count
    depth: Annotated[Layers, Field(ge=1)]
    heads: Count
    mlp_dim: Count
    patch_size: Count = 16


def _checkpointing(checkpointing: object) -> object:
    """Earlier configurations have true or false."""
    return {True: "blocks", False: "none"}[checkpointing] if isinstance(checkpointing, bool) else checkpointing


def _size_type(value: object) -> str:
    return BY_NAME if isinstance(value, str) else BY_MEASURES


# What editors suggest; YAML reads some of these names as numbers.
_EXPERIMENT_NAMES = WithJsonSchema(
    {"enum": [*EXPERIMENTS, *(int(name) for name in EXPERIMENTS if name.isdigit())]}
)
_CHECKPOINTING_NAMES = WithJsonSchema({"enum": [*get_args(Checkpointing), True, False, None]})

# The type of the value selects the alternative that a fault refers to.
Size = Annotated[
    Annotated[str, _one_of("backbone size", SIZES), WithJsonSchema({"enum": [*SIZES]}), Tag(BY_NAME)]
    | Annotated[SizeConfig, Tag(BY_MEASURES)],
    Discriminator(_size_type),
]


class BackboneConfig(Section):
    """VideoMAE or V-JEPA 2, with AdaTAD's adapters."""

    type: Literal["videomae", "vjepa2"] = "videomae"
    size: Size = "s"  # the name of a published size, or {dim, depth, heads, mlp_dim}
    # Pre-trained file of it; `hub:OWNER/NAME`: of the Hugging Face Hub, downloaded; `package:NAME`: of this package.
    weights: Place | None = None
    random: bool = False  # allow random frozen weights where `weights` is none
    pixels: Count = 160  # height and width of the frames
    table_pixels: Count = 224  # frame size of the position table, which V-JEPA 2 has not
    drop_path: ShareBelowAll = 0.0  # rate of the last block; 0 because the blocks are frozen
    first_adapter: Layers = 0  # first block with an adapter
    adapter_reduction: Count = 4  # width of the backbone over the width of the adapters
    # inside: adapters change the tokens between blocks; beside: they read them and add to the features, and no gradient
    # runs through the blocks (a cheaper step).
    adapter_placement: AdapterPlacement = "inside"
    # Activation checkpointing: none, blocks, or (selective) blocks without attention; null: blocks if two
    # networks, or two views, share a graph, else none. With adapters beside the blocks there is nothing to recompute.
    checkpointing: Annotated[Checkpointing | None, BeforeValidator(_checkpointing), _CHECKPOINTING_NAMES] = None
    compile: bool = False  # compile the blocks, which takes minutes at the start

    @property
    def vit(self) -> VitSize:
        size = self.size
        if isinstance(size, str):
            return SIZES[size]
        return VitSize(size.dim, size.depth, size.heads, size.mlp_dim, size.patch_size)


def _one_or_each(value: object) -> str:
    return EACH if isinstance(value, list | tuple) else ONE


def _odd(size: int) -> int:
    if size % 2 == 0:
        raise ValueError(f"{size} must be odd, so that it has a centre; use {size + 1}")
    return size


OddCount = Annotated[Count, AfterValidator(_odd)]
# With 1, a position would attend only to itself.
Attended = Annotated[OddCount, Field(ge=3)]
AttentionWindow = Annotated[
    Annotated[Attended, Tag(ONE)] | Annotated[tuple[Attended | None, ...], Tag(EACH)], Discriminator(_one_or_each)
]


class TransformerPyramidConfig(Section):
    """ActionFormer's pyramid. Its keys are those of :class:`ModelConfig`."""

    type: Literal["transformer"] = "transformer"


class SgpPyramidConfig(Section):
    """TriDet's pyramid."""

    groups: ClassVar[int] = 16  # of its group norms
    type: Literal["sgp"] = "sgp"
    # Positions that the narrow convolutions see, of all levels or of each.
    window: Annotated[
        Annotated[OddCount, Tag(ONE)] | Annotated[tuple[OddCount, ...], Tag(EACH)], Discriminator(_one_or_each)
    ] = 1
    # The wide convolutions see k (window + 1) positions, and one more if that is even.
    k: Annotated[Positive, Field(le=1000)] = 5.0
    mlp_channels: Count | None = None  # none: one and a half times model.channels
    # Of the convolutions' first weights; 0, as OpenTAD on THUMOS14: they never train.
    init_std: Annotated[float, Field(ge=0, le=100)] = 0.1
    input_noise: Annotated[float, Field(ge=0, le=LARGEST)] = 0.0  # standard deviation, in training


class ActionFormerHeadConfig(Section):
    """ActionFormer's head. Its keys are those of :class:`ModelConfig`."""

    iou_weight_power: ClassVar[float] = 0.0
    type: Literal["actionformer"] = "actionformer"


class TridentHeadConfig(Section):
    """TriDet's head."""

    type: Literal["trident"] = "trident"
    # The largest distance from a point to an action's start or end, in strides of the level.
    bins: Annotated[Count, Field(le=10_000)] = 16
    # A class's loss is weighted by the tIoU of its segment to this power.
    iou_weight_power: Annotated[float, Field(ge=0, le=100)] = 0.2


def _by_type(*sections: type[Section]) -> Discriminator:
    """Tells sections apart by the key ``type``; without it, the first is meant."""
    types = [section.model_fields["type"].default for section in sections]

    def tag(value: Any) -> str:
        found = value.get("type", types[0]) if isinstance(value, dict) else getattr(value, "type", types[0])
        return f"<{found}>"

    return Discriminator(
        tag, custom_error_type="unknown_type", custom_error_message=f"unknown type; one of {', '.join(types)}"
    )


PyramidConfig = Annotated[
    Annotated[TransformerPyramidConfig, Tag("<transformer>")] | Annotated[SgpPyramidConfig, Tag("<sgp>")],
    _by_type(TransformerPyramidConfig, SgpPyramidConfig),
]
HeadConfig = Annotated[
    Annotated[ActionFormerHeadConfig, Tag("<actionformer>")] | Annotated[TridentHeadConfig, Tag("<trident>")],
    _by_type(ActionFormerHeadConfig, TridentHeadConfig),
]


class ModelConfig(Section):
    """The detector: backbone (none for features), pyramid and head.

    The keys of ``pyramid`` and ``head`` are those that only their type has. Of the others, ``heads``,
    ``attention_window`` and ``dropout`` are of transformers.
    """

    backbone: BackboneConfig | None = None
    pyramid: PyramidConfig = TransformerPyramidConfig()
    head: HeadConfig = ActionFormerHeadConfig()
    channels: Count = 512
    levels: Annotated[int, Field(ge=1, le=30)] = 6
    embed_convolutions: Annotated[Layers, Field(ge=1)] = 2
    stem_blocks: Layers = 2
    heads: Count = 4
    attention_window: AttentionWindow | None = None  # positions of local attention, of all levels or of each
    position_embedding: bool = False  # a sinusoid over the window, scaled by 1/sqrt(channels)
    input_dropout: ShareBelowAll = 0.0  # of whole channels of the features
    drop_path: ShareBelowAll = 0.1
    layer_scale: Positive | None = 1e-4  # first size of the blocks' branches; none: 1, fixed
    level_norms: bool = True  # a layer norm ends each level; false: ActionFormer's `fpn_with_ln: false`
    dropout: ShareBelowAll = 0.0
    padding: Padding = "strict"  # released weights need `reference`
    head_convolutions: Annotated[Layers, Field(ge=1)] = 2
    prior_probability: Annotated[float, Field(gt=0, lt=1)] = 0.01
    # Per level in grid steps; none: [0, 4], [4, 8], ... doubling.
    regression_ranges: tuple[tuple[float, float], ...] | None = None

    @property
    def ranges(self) -> tuple[tuple[float, float], ...]:
        """The regression range of each level in grid steps."""
        if self.regression_ranges is not None:
            return self.regression_ranges
        edges = [0.0, *(4.0 * 2**level for level in range(self.levels - 1)), 10000.0]
        return tuple(itertools.pairwise(edges))


class AugmentationConfig(Section):
    """Changes of the frames, the same for all frames of a window."""

    crop_area: ShareRange = (0.08, 1.0)  # share of the frame that a crop keeps
    crop_aspect: PositiveRange = (0.75, 4 / 3)
    flip: Share = 0.5
    brightness: Share = 0.5
    contrast: Share = 0.5
    saturation: Share = 0.5
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    colour: Share = 0.5  # probability of a change of colours


class TrainingConfig(Section):
    """The recipe. Learning rates are for ``reference_batch`` windows a step, and scaled."""

    epochs: Count = 60
    schedule_epochs: Count | None = None  # epochs until the cosine reaches 0; none: `epochs`
    warmup_epochs: Annotated[float, Field(ge=0)] = 5.0
    windows_per_video: Count = 1  # random windows of each video in an epoch
    batch: Count = 2  # windows per process and forward pass
    accumulate: Count = 1  # gradient accumulation: batches per step
    reference_batch: Count = 2
    # Autocast precision of the networks (fp16 with loss scaling); weights, losses and EMA are in fp32.
    precision: Precision = "fp32"
    lr: LearningRate = 1e-4
    adapter_lr: LearningRate = 2e-4
    fusion_lr: LearningRate = 1e-3  # learning rate of a fusion, divided by its fan-in
    weight_decay: Annotated[float, Field(ge=0, le=LARGEST)] = 0.05
    # Shard weights, gradients and optimizer state over the processes (FSDP2).
    shard: bool = False
    clip_norm: Positive = 1.0
    ema_decay: ShareBelowAll = 0.999
    # Points within this many strides of an action's centre learn it; below 0.5 none may.
    centre_radius: Annotated[float, Field(ge=0.5, le=LARGEST)] = 1.5
    label_smoothing: ShareBelowAll = 0.0
    loss_normaliser: Positive = 100.0
    regression_weight: Positive = 1.0  # weight of the segment loss relative to the class loss
    evaluate_every: Count = 5
    evaluate_from: Annotated[int, Field(ge=0, le=10**9)] = 0
    # The weights of best.pt: those of the best evaluation, or of the last one, which is of the final epoch.
    select: Literal["best", "last"] = "best"
    workers: Workers = 2
    # Steps between checkpoints; none: only after epochs and when the run is stopped.
    checkpoint_steps: Count | None = None
    keep_last: Count = 2  # number of latest checkpoints to keep
    # For windows that cannot be read, or not in time; `skip`: a window of another video replaces them.
    on_read_error: OnReadError = "error"
    read_timeout_s: Positive | None = 300.0  # for reading a window; none: no limit
    # Stop after this many consecutive steps with a loss or gradient that is not finite.
    max_nonfinite_steps: Count = 1
    tensorboard: bool = False  # also write event files for TensorBoard
    augmentation: AugmentationConfig = AugmentationConfig()

    @property
    def schedule_length(self) -> int:
        """The epochs until the learning rate is 0."""
        return self.schedule_epochs or self.epochs


class NmsConfig(Section):
    """Non-maximum suppression: detections that overlap a better one lose score or are dropped."""

    # `gaussian`: multiplies scores by exp(-tIoU^2 / sigma); `linear`: by 1 - tIoU, `vanilla`: by 0, both from
    # `iou_threshold`; `hard`: drops overlaps of `iou_threshold`; `none`: keeps all.
    method: NmsMethod = "gaussian"
    sigma: Positive = 0.7
    # The tIoU from which two segments compete (hard, linear, vanilla, and merging).
    iou_threshold: ShareAboveNothing = 0.5
    max_segments: Count = 2000  # highest-scored detections kept per video
    multiclass: bool = True  # segments compete within their class; false: across classes
    # With `multiclass: false`, a kept segment becomes the score-weighted mean of those that overlap it by this
    # tIoU; 0: off.
    voting_threshold: Share = 0.7
    # Lower scores are dropped: by soft methods after each change, which keeps the best segment; by `hard` first,
    # where the score must be above it.
    min_score: ShareBelowAll | None = None

    @property
    def suppression(self) -> NmsConfig | None:
        return None if self.method == "none" else self


class TestConfig(Section):
    """How a run is tested."""

    # `video`: the backbone runs once over each video, so that adapters see beyond windows; nearly twice as fast
    # where windows overlap by half.
    backbone: Literal["window", "video"] = "window"
    precision: Precision | None = None  # autocast precision of the networks; none: training.precision
    batch: Count = 2
    workers: Workers | None = None  # processes that read videos; none: training.workers
    # For windows that cannot be read, or not in time; `skip`: they have no detections.
    on_read_error: OnReadError = "error"
    read_timeout_s: Positive | None = 300.0  # for reading a window; none: no limit
    score_threshold: ShareBelowAll = 0.001
    candidates: Count = 2000  # detections kept of each window before the NMS
    rounding: bool = True  # round seconds to 2 decimals and scores to 4, as the reference does
    merge: MergeMethod = "soft-nms"  # how the detections of two networks are merged
    nms: NmsConfig = NmsConfig()
    # JSON with class scores of each whole video, which name the classes of the detections.
    video_scores: Place | None = None
    video_classes: Count = 2  # how many of these classes are used per video
    tiou: Thresholds = (0.3, 0.4, 0.5, 0.6, 0.7)


def _as_list(value: object) -> object:
    return value if isinstance(value, list | tuple) or value is None else [value]


_PLACE_OR_PLACES = WithJsonSchema(
    {
        "anyOf": [
            {"type": "string"},
            {"type": "array", "minItems": 1, "items": {"type": "string"}},
            {"type": "null"},
        ]
    }
)


class InitConfig(Section):
    """Finished runs: the baselines whose EMA weights networks start from, and the teacher of experiment distil."""

    forward: Place | None = None  # baseline of the first network; in experiment distil, optional
    reverse: Place | None = None  # baseline of the second network
    # Teacher of experiment distil: a run or checkpoint, a list of them (their mean teaches), or a file of detections
    # on the training videos (.json, .json.gz, .csv).
    teacher: Annotated[
        Annotated[tuple[Place, ...], Field(min_length=1)] | None, BeforeValidator(_as_list), _PLACE_OR_PLACES
    ] = None

    @property
    def teaches_by_detections(self) -> bool:
        """Whether a teacher is a file of detections."""
        return any(str(one).lower().endswith(DETECTION_SUFFIXES) for one in self.teacher or ())


class PairConfig(Section):
    """Options of experiments with two networks."""

    # What the second network sees; all but `reverse` are controls. `forward`: the same as the first; `flipped`: every
    # frame mirrored left to right; `reversed-features`: the features of forward playback in reverse order.
    second: View = "reverse"
    # Pre-trained file of the second network's backbone, if it is another one than model.backbone.weights.
    second_weights: Place | None = None
    align: Alignment = "exact"  # `naive`: each level is reversed as a whole, as the research group did
    # `random`: the default initialisation of the layers, as the research group did.
    fusion_init: FusionInit = "mean"
    fusion: Name | None = None  # name of a fusion (docs/extending.md); none: the experiment's own
    train_detector: bool = False  # in experiments 2 and 2x, as the research group did
    agreement: Positive = 1.0  # weight of experiment 1x's agreement loss
    # In experiment 1s: a learned vector for each direction is added to the features.
    direction_embedding: bool = False


class DistilConfig(Section):
    """Options of experiment distil."""

    weight: Positive = 1.0  # weight of the distillation loss beside the detection loss
    temperature: Positive = 1.0  # the logits of both networks are divided by it; higher: softer targets


class Config(Section):
    """One run."""

    name: FolderName
    seed: Seed = 0
    # What the network sees, as pair.second; `reverse`: reverse playback; `both`: trained on windows in a random playing
    # direction, tested forward.
    direction: TrainingView = "forward"
    experiment: Annotated[Name, _one_of("experiment", EXPERIMENTS), _EXPERIMENT_NAMES] = "baseline"
    output: Place = Path("runs")  # folder of the run directories
    # CPU threads per process; none: PyTorch's default.
    threads: Annotated[int, Field(ge=1, le=4096)] | None = None
    data: DataConfig
    init: InitConfig = InitConfig()
    pair: PairConfig = PairConfig()
    distil: DistilConfig = DistilConfig()
    window: WindowConfig = WindowConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    test: TestConfig = TestConfig()

    @model_validator(mode="after")
    def _check_rules(self, info: ValidationInfo) -> Config:
        if info.context is not FIELDS_ALONE and (faults := broken_rules(self)):
            raise ValueError("; ".join(faults))
        return self

    @property
    def design(self) -> Experiment:
        return EXPERIMENTS[self.experiment]

    @property
    def starts_from(self) -> Literal["backbone", "baselines"]:
        """What the networks start from; a distilled network may start from a baseline."""
        starts_from_baseline = self.design.teacher and self.init.forward is not None
        return "baselines" if starts_from_baseline else self.design.starts_from

    @property
    def clip_steps(self) -> int:
        """The grid steps of a clip of the backbone; 1 for features."""
        if self.model.backbone is None:
            return 1
        return CLIP_FRAMES // math.gcd(CLIP_FRAMES, self.window.frames_per_step)

    @property
    def trains_detectors(self) -> bool:
        """Whether the networks train, and not only what an experiment adds."""
        return self.design.adds is None or self.pair.train_detector

    @property
    def test_precision(self) -> Precision:
        """Autocast's precision in testing."""
        return self.test.precision or self.training.precision

    @property
    def can_hold_frozen(self) -> bool:
        """Whether training may hold frozen weights in its precision: testing uses the same, and they are whole."""
        return not self.training.shard and self.test_precision == self.training.precision

    @property
    def views(self) -> tuple[View, ...]:
        """What each network sees in testing, or each view of a shared one."""
        if self.design.shared:
            return ("forward", "reverse")
        if self.design.networks == 2:
            return ("forward", self.pair.second)
        return ("forward",) if self.direction == "both" else (self.direction,)

    @property
    def watched(self) -> tuple[View, ...]:
        """What networks see in training and testing."""
        return ("forward", "reverse") if self.direction == "both" else self.views

    @property
    def learns_both_directions(self) -> bool:
        """Whether a network learns from both playing directions, so that ``data.reversal`` has an effect."""
        return self.design.shared or self.direction == "both"

    @property
    def reversal(self) -> Mapping[str, str]:
        """What classes look like on reversed playback to the networks; other classes look like themselves."""
        return (self.data.reversal or {}) if self.learns_both_directions else {}

    @property
    def clocks(self) -> tuple[Direction, ...]:
        """The clock of each network's predictions."""
        return tuple(map(clock_of, self.views))

    @property
    def learner_names(self) -> tuple[str, ...]:
        """The names of the networks in logs and checkpoints."""
        if self.design.shared:
            return ("shared",)
        return self.views if len(set(self.views)) == len(self.views) else ("first", "second")

    @property
    def pair_changes(self) -> tuple[str, ...]:
        """How the pair differs from its experiment's default, in words."""
        pair = self.pair
        words = (
            (pair.second == "forward", "two forward"),
            (pair.second == "flipped", "flipped"),
            (pair.second == "reversed-features", "reversed features"),
            (pair.second_weights is not None, "second encoder"),
            (pair.align == "naive", "naive"),
            (pair.fusion is not None, f"{pair.fusion} fusion"),
            (pair.fusion_init == "random", "random"),
            (pair.train_detector, "detector too"),
            (pair.direction_embedding, "direction embedding"),
        )
        return tuple(word for holds, word in words if holds)

    @property
    def variant(self) -> str:
        """The name of the setting, without the seed: `forward`, `3-1-naive-random`, ..."""
        if self.experiment == "baseline":
            return self.direction
        return "-".join([self.experiment, *(change.replace(" ", "-") for change in self.pair_changes)])

    @property
    def run_directory(self) -> Path:
        return self.output / f"{self.name}-{self.variant}-seed{self.seed}"

    def to_yaml(self) -> str:
        """The resolved configuration; reading it again gives an equal one."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
