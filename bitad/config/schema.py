"""The configuration: one frozen, validated :class:`Config`, and the types of its fields.

:mod:`bitad.config.loading` reads it, :mod:`bitad.config.rules` says which values exclude one another.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

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
    field_validator,
    model_validator,
)

from bitad.config.experiments import EXPERIMENTS, Experiment
from bitad.config.names import (
    SIZES,
    Alignment,
    Checkpointing,
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
from bitad.timeline import Direction, ResizedClock

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


def _more_than_nothing(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[1] == 0:
        raise ValueError(f"{list(limits)} leaves nothing; the largest share must be more than 0")
    return limits


def _distinct(thresholds: tuple[float, ...]) -> tuple[float, ...]:
    if twice := sorted({one for one in thresholds if thresholds.count(one) > 1}):
        raise ValueError(f"{', '.join(f'{one:g}' for one in twice)} counts twice in the average; give it once")
    return thresholds


def _path(value: object) -> object:
    if value is None:
        raise ValueError("no path is given; name a file or folder")
    if isinstance(value, bool) or not isinstance(value, str | int | float | Path):
        raise ValueError(f"{_as_yaml(value)} is no path; name a file or folder")
    text = str(value)
    if "\0" in text or not text.strip() or not _is_encodable(text):
        raise ValueError(f"{text!r} is no path; name a file or folder")
    return value if isinstance(value, Path) else text


def _text(value: object) -> object:
    # `experiment=1` is a number in YAML, but experiments are named by strings.
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, bool) or value is None:
        raise ValueError(f"{_as_yaml(value)} is no name; give one, in quotes if it is that")
    if isinstance(value, str) and not value.strip():
        raise ValueError(f"{value!r} is no name; give one")
    return value


def _as_yaml(value: object) -> str:
    return {True: "true", False: "false", None: "null"}[value] if isinstance(value, bool | None) else repr(value)


def _is_encodable(path: str) -> bool:
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return True


def _of_a_folder(name: str) -> str:
    if not name.strip() or any(letter in "/\\" or not letter.isprintable() for letter in name):
        raise ValueError(f"{name!r} cannot begin a folder's name; give one without / and \\ and line ends")
    if len(name.encode(errors="replace")) > _NAME_BYTES:
        raise ValueError(f"'{name[:40]}...' is too long to begin a folder's name; use {_NAME_BYTES} bytes at most")
    return name


Share = Annotated[float, Field(ge=0, le=1)]
# Of all, nothing would be left.
ShareBelowAll = Annotated[float, Field(ge=0, lt=1)]
ShareAboveNothing = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0), AfterValidator(_computable)]
LearningRate = Annotated[Positive, Field(le=1000)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Layers = Annotated[int, Field(ge=0, le=1000)]
Workers = Annotated[int, Field(ge=0, le=4096)]
# fp32: single; bf16, fp16: autocast, the latter with scaled losses.
# What PyTorch takes for a seed, of any process of a run.
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Name = Annotated[str, BeforeValidator(_text)]
FolderName = Annotated[Name, AfterValidator(_of_a_folder)]
Place = Annotated[Path, BeforeValidator(_path)]
ShareRange = Annotated[tuple[Share, Share], AfterValidator(_ascending), AfterValidator(_more_than_nothing)]
PositiveRange = Annotated[tuple[Positive, Positive], AfterValidator(_ascending)]
Thresholds = Annotated[tuple[ShareAboveNothing, ...], Field(min_length=1), AfterValidator(_distinct)]


class Section(BaseModel):
    """A frozen part of the configuration that knows exactly its own keys."""

    # A file of YAML cannot say that a number is infinite and have it read back.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        """Python's ``True`` would count as 1."""
        assert info.field_name is not None
        takes_numbers = re.search(r"\b(int|float)\b", str(cls.model_fields[info.field_name].annotation))
        given = value if isinstance(value, list | tuple) else [value]
        if takes_numbers and any(isinstance(one, bool) for one in given):
            raise ValueError(f"{str(value).lower()} is no number")
        return value


CLIP_FRAMES = 16  # of VideoMAE

# Context of a validation that looks at each field alone, and leaves the rules of :mod:`bitad.config.rules` out.
FIELDS_ALONE = object()

# Of values that have one of two forms; part of the location of a fault, but of no path.
KINDS = BY_NAME, BY_MEASURES, ONE, EACH = ("<name>", "<measures>", "<one>", "<each>")


def _known_experiment(name: str) -> str:
    if name not in EXPERIMENTS:
        raise ValueError(f"unknown experiment '{name}'; one of {', '.join(EXPERIMENTS)}")
    return name


class DataConfig(Section):
    """Where the data set lies. Exactly one of ``videos`` and ``features`` is given."""

    annotations: Place
    classes: Place | None = Field(
        default=None, description="a class name a line; else the order of the annotation file"
    )
    videos: Place | None = Field(default=None, description="folder of video files, named as in the annotations")
    reversed_videos: Place | None = Field(
        default=None, description="folder of their reverse-playback twins; none: windows are flipped"
    )
    on_decode_error: OnDecodeError = Field(
        default="error",
        description="of video files: those that cannot be decoded, or that a cut-off file has lost; `repeat` shows the "
        "last good one in their place, and the log says how often",
    )
    features: Place | None = Field(default=None, description="folder of .npy/.npz files, or one .npz of all videos")
    reversed_features: Place | None = Field(
        default=None,
        description="features of reversed playback, in forward time as `bitad features` writes them; none: windows are "
        "flipped",
    )
    feature_channels: Count | None = None
    feature_stride_frames: Positive = Field(default=1.0, description="video frames from one feature to the next")
    feature_offset_frames: float = Field(
        default=0.0, ge=-1e9, le=1e9, description="frame at the centre of the first feature's snippet"
    )
    feature_fps: Positive | None = Field(
        default=None, description="frames a second that the strides count; none: the annotations' rate of each video"
    )
    allow_clock_mismatch: bool = Field(
        default=False,
        description="continue, with a warning, where features, videos and annotations disagree about a video's time",
    )
    class_agnostic: bool = Field(default=False, description="learn one class of all: when, and not what")
    training_subset: Name = "training"
    test_subset: Name = "validation"


class WindowConfig(Section):
    """The stretch of a video that the detector sees."""

    steps: Count = Field(default=768, description="T, grid steps of a window")
    layout: Literal["sliding", "whole", "resized"] = Field(
        default="sliding",
        description="how testing cuts a video: `whole`: into one window as long as it is, all of it in memory; "
        "`resized`: into one of T steps, at even distances over the video, in training too",
    )
    stride_frames: Count = Field(default=4, description="video frames from one grid step to the next (videos only)")
    resized_clock: ResizedClock = Field(
        default="centre",
        description="where in its share of a resized video a step stands; `edge`: at its beginning, as in OpenTAD's "
        "released weights",
    )
    frames_per_step: Count = Field(default=1, description="frames that the backbone sees of each grid step")
    overlap: ShareBelowAll = Field(default=0.5, description="of neighbouring windows in testing")
    completeness: ShareAboveNothing = Field(
        default=0.75, description="share of an action that must lie in a training window"
    )
    crop: ShareRange = Field(default=(0.9, 1.0), description="random share of a video shorter than a window")

    @property
    def resized_steps(self) -> int | None:
        """The grid steps that every video is resized to, if any."""
        return self.steps if self.layout == "resized" else None


class SizeConfig(Section):
    """A transformer of a size that is published nowhere."""

    dim: Count
    depth: Annotated[Layers, Field(ge=1)]
    heads: Count
    mlp_dim: Count
    patch_size: Count = 16


def _policy(checkpointing: object) -> object:
    """Of older configurations, which knew two."""
    return {True: "blocks", False: "none"}[checkpointing] if isinstance(checkpointing, bool) else checkpointing


def _of_a_size(value: object) -> str:
    return BY_NAME if isinstance(value, str) else BY_MEASURES


def _known_size(name: str) -> str:
    if name not in SIZES:
        raise ValueError(f"unknown backbone size '{name}'; one of {', '.join(SIZES)}")
    return name


# Told apart by their form, so that a fault is told of what was meant.
Size = Annotated[
    Annotated[str, AfterValidator(_known_size), Tag(BY_NAME)] | Annotated[SizeConfig, Tag(BY_MEASURES)],
    Discriminator(_of_a_size),
]


class BackboneConfig(Section):
    """VideoMAE with AdaTAD's adapters."""

    type: Literal["videomae"] = "videomae"
    size: Size = Field(default="s", description="a published size's name, or {dim, depth, heads, mlp_dim}")
    weights: Place | None = Field(default=None, description="pre-trained VideoMAE file, or `package:NAME` for ours")
    random: bool = Field(
        default=False,
        description="train around random weights where `weights` names none, which else is refused: they never train",
    )
    pixels: Count = Field(
        default=160,
        description="height and width of the frames; what is left over of whole patches, at the right and at the "
        "bottom, is not seen",
    )
    table_pixels: Count = Field(default=224, description="picture size the position table is made for")
    drop_path: ShareBelowAll = Field(
        default=0.0, description="rate of the last block; the blocks are frozen, so 0 is the better default"
    )
    first_adapter: Layers = Field(default=0, description="block from which on there are adapters")
    adapter_reduction: Count = Field(default=4, description="the backbone's width over the adapters'")
    checkpointing: Annotated[Checkpointing | None, BeforeValidator(_policy)] = Field(
        default=None,
        description="what the backward pass recomputes to save memory: none, the blocks, or (selective) the blocks but "
        "their attention; null: blocks where two networks share a graph, else none",
    )
    compile: bool = Field(
        default=False, description="have torch.compile make programs of the blocks, which takes minutes at the start"
    )

    @property
    def vit(self) -> VitSize:
        """The transformer's measures."""
        return SIZES[self.size] if isinstance(self.size, str) else VitSize(**self.size.model_dump())


def _one_or_each(value: object) -> str:
    return EACH if isinstance(value, list | tuple) else ONE


AttentionWindow = Annotated[
    Annotated[Count, Tag(ONE)] | Annotated[tuple[Count | None, ...], Tag(EACH)], Discriminator(_one_or_each)
]


def _odd(size: int) -> int:
    if size % 2 == 0:
        raise ValueError(f"{size} must be odd, so that it has a centre; use {size + 1}")
    return size


OddCount = Annotated[Count, AfterValidator(_odd)]


class TransformerPyramidConfig(Section):
    """ActionFormer's pyramid. Its keys are those of :class:`ModelConfig`."""

    type: Literal["transformer"] = "transformer"


class SgpPyramidConfig(Section):
    """TriDet's pyramid."""

    groups: ClassVar[int] = 16  # of its group norms
    type: Literal["sgp"] = "sgp"
    window: Annotated[
        Annotated[OddCount, Tag(ONE)] | Annotated[tuple[OddCount, ...], Tag(EACH)], Discriminator(_one_or_each)
    ] = Field(default=1, description="positions that the narrow convolutions see, odd, of all levels or of each")
    k: Annotated[Positive, Field(le=1000)] = Field(
        default=5.0, description="the wide convolutions see k (window + 1) positions, and one more if that is even"
    )
    mlp_channels: Count | None = Field(default=None, description="none: one and a half times model.channels")
    init_std: Annotated[float, Field(ge=0, le=100)] = Field(
        default=0.1, description="of the convolutions' first weights; 0, as OpenTAD on THUMOS14: they never train"
    )
    input_noise: Annotated[float, Field(ge=0, le=LARGEST)] = Field(
        default=0.0, description="standard deviation of noise that training adds to the features"
    )


class ActionFormerHeadConfig(Section):
    """ActionFormer's head. Its keys are those of :class:`ModelConfig`."""

    iou_weight_power: ClassVar[float] = 0.0
    type: Literal["actionformer"] = "actionformer"


class TridentHeadConfig(Section):
    """TriDet's head."""

    type: Literal["trident"] = "trident"
    bins: Annotated[Count, Field(le=10_000)] = Field(
        default=16, description="the largest distance from a point to an action's start or end, in strides of the level"
    )
    iou_weight_power: Annotated[float, Field(ge=0, le=100)] = Field(
        default=0.2, description="a class's loss is weighted by the tIoU of its segment to this power"
    )


def tag_of(section: type[Section]) -> str:
    """What stands for the type of a section in the location of a fault."""
    return f"<{section.model_fields['type'].default}>" if "type" in section.model_fields else ""


def _by_type(*sections: type[Section]) -> Discriminator:
    """Tells sections of several types apart by the key ``type``; without it, the type is that of the first."""
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
    attention_window: AttentionWindow | None = Field(
        default=None, description="positions of local attention, odd, of all levels or of each; none: global"
    )
    position_embedding: bool = Field(
        default=False, description="a sinusoid over the window, scaled by 1/sqrt(channels)"
    )
    input_dropout: ShareBelowAll = Field(default=0.0, description="of whole channels of the features")
    drop_path: ShareBelowAll = 0.1
    layer_scale: Positive | None = Field(default=1e-4, description="first size of the blocks' branches; none: 1, fixed")
    level_norms: bool = Field(
        default=True, description="a layer norm ends each level; false: ActionFormer's `fpn_with_ln: false`"
    )
    dropout: ShareBelowAll = 0.0
    padding: Padding = Field(default="strict", description="released weights need `reference`")
    head_convolutions: Annotated[Layers, Field(ge=1)] = 2
    prior_probability: float = Field(default=0.01, gt=0, lt=1)
    regression_ranges: tuple[tuple[float, float], ...] | None = Field(
        default=None, description="per level in grid steps; none: [0, 4], [4, 8], ... doubling"
    )

    @property
    def ranges(self) -> tuple[tuple[float, float], ...]:
        """The regression range of each level in grid steps."""
        if self.regression_ranges is not None:
            return self.regression_ranges
        edges = [0.0, *(4.0 * 2**level for level in range(self.levels - 1)), 10000.0]
        return tuple(itertools.pairwise(edges))


class AugmentationConfig(Section):
    """Changes of the picture, the same for all frames of a window."""

    crop_area: ShareRange = Field(default=(0.08, 1.0), description="share of the picture a crop keeps")
    crop_aspect: PositiveRange = (0.75, 4 / 3)
    flip: Share = 0.5
    brightness: Share = 0.5
    contrast: Share = 0.5
    saturation: Share = 0.5
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    colour: Share = Field(default=0.5, description="probability that the colours change at all")


class TrainingConfig(Section):
    """The recipe. Learning rates are stated for ``reference_batch`` windows a step and scaled to the real number."""

    epochs: Count = 60
    schedule_epochs: Count | None = Field(default=None, description="epochs until the cosine reaches 0; none: `epochs`")
    warmup_epochs: Annotated[float, Field(ge=0)] = 5.0
    windows_per_video: Count = Field(default=1, description="random windows an epoch draws from each video")
    batch: Count = Field(default=2, description="windows a process that are in memory at a time")
    accumulate: Count = Field(
        default=1, description="such batches to a step, whose gradients are those of one batch of all their windows"
    )
    reference_batch: Count = 2
    precision: Precision = Field(
        default="fp32",
        description="of the networks' computation; weights, losses and averages are in single precision all the same",
    )
    lr: LearningRate = 1e-4
    adapter_lr: LearningRate = 2e-4
    fusion_lr: LearningRate = Field(
        default=1e-3, description="of a fusion's weights, divided by the number of inputs that an output sums"
    )
    weight_decay: Annotated[float, Field(ge=0, le=LARGEST)] = 0.05
    shard: bool = Field(
        default=False,
        description="divide weights, gradients and the optimiser's state among the processes (FSDP2), for what "
        "outgrows a GPU; testing takes a whole copy of the weights",
    )
    clip_norm: Positive = 1.0
    ema_decay: ShareBelowAll = 0.999
    centre_radius: Annotated[float, Field(ge=0.5, le=LARGEST)] = Field(
        default=1.5, description="points so many of their strides from an action's middle learn it; below 0.5 none may"
    )
    label_smoothing: ShareBelowAll = 0.0
    loss_normaliser: Positive = 100.0
    regression_weight: Positive = Field(default=1.0, description="of the segments' loss beside the classes'")
    evaluate_every: Count = 5
    evaluate_from: Annotated[int, Field(ge=0, le=10**9)] = 0
    workers: Workers = 2
    checkpoint_steps: Count | None = Field(
        default=None, description="a checkpoint every so many steps; none: at epochs' ends, and when asked to stop"
    )
    keep_last: Count = Field(default=2, description="checkpoints to go on from: the last one and those before it")
    on_read_error: OnReadError = Field(
        default="error",
        description="of windows that cannot be read, or not in time: `skip` takes another video's in their place, and "
        "the log says of which how many",
    )
    read_timeout_s: Positive | None = Field(
        default=300.0, description="seconds that reading a window may take; none: any time"
    )
    max_nonfinite_steps: Count = Field(
        default=1, description="stop at so many steps in a row whose loss or gradient is not finite; fewer are left out"
    )
    augmentation: AugmentationConfig = AugmentationConfig()


class NmsConfig(Section):
    """Non-maximum suppression: how detections that overlap a better one are weakened or dropped."""

    method: NmsMethod = Field(
        default="gaussian",
        description="`gaussian`: multiplies scores by exp(-tIoU^2 / sigma); `linear`: by 1 - tIoU, `vanilla`: by 0, "
        "both from `iou_threshold` on; `hard`: drops what overlaps by `iou_threshold`; `none`: keeps all",
    )
    sigma: Positive = 0.7
    iou_threshold: ShareAboveNothing = Field(
        default=0.5, description="tIoU from which two segments compete (hard, linear, vanilla, and merging)"
    )
    max_segments: Count = Field(default=2000, description="of a video, the best")
    multiclass: bool = Field(default=True, description="segments compete within their class; false: with all")
    voting_threshold: Share = Field(
        default=0.7,
        description="with `multiclass: false`, a kept segment becomes the score-weighted mean of all that overlap it "
        "by this tIoU; 0: it stays",
    )
    min_score: ShareBelowAll | None = Field(
        default=None,
        description="lower scores are dropped: by soft methods after each weakening, so that the best segment stays "
        "in any case; by `hard` before, and the score must be above it",
    )

    @property
    def suppression(self) -> NmsConfig | None:
        """Itself, or None for the method ``none``."""
        return None if self.method == "none" else self


class TestConfig(Section):
    """From videos to detections and figures."""

    backbone: Literal["window", "video"] = Field(
        default="window",
        description="`video`: once over each whole video, so that adapters see across the borders of windows, and only "
        "pyramid and head in windows; nearly twice as fast where these overlap by half",
    )
    precision: Precision = Field(default="fp32", description="of the networks' computation")
    batch: Count = 2
    workers: Workers | None = Field(default=None, description="processes that read videos; none: training.workers")
    on_read_error: OnReadError = Field(
        default="error",
        description="that cannot be read, or not in time: `skip` finds nothing in them, which counts against the mAP, "
        "and the log names them",
    )
    read_timeout_s: Positive | None = Field(
        default=300.0, description="seconds that reading a window may take; none: any time"
    )
    score_threshold: ShareBelowAll = 0.001
    candidates: Count = Field(default=2000, description="kept of each window before the NMS")
    rounding: bool = Field(default=True, description="2 decimals of a second, 4 of a score, as the reference")
    merge: MergeMethod = Field(default="soft-nms", description="how the detections of two networks become one set")
    nms: NmsConfig = NmsConfig()
    video_scores: Place | None = Field(
        default=None, description="JSON with the classes' scores in each whole video, which name what is found"
    )
    video_classes: Count = Field(default=2, description="of these classes, how many a video")
    tiou: Thresholds = (0.3, 0.4, 0.5, 0.6, 0.7)


class InitConfig(Section):
    """The finished baselines whose averaged weights two networks start from: run directories or checkpoints."""

    forward: Place | None = Field(default=None, description="baseline of the first network")
    reverse: Place | None = Field(default=None, description="baseline of the second network")


class PairConfig(Section):
    """What can be chosen where two networks learn together."""

    second: Direction = Field(
        default="reverse",
        description="playing direction of the second network; `forward`: the control, two forward ones",
    )
    align: Alignment = Field(
        default="exact", description="`naive`: each level turned round whole, as the research group did"
    )
    fusion_init: FusionInit = Field(
        default="mean", description="`random`: the layers' own initialisation, as the research group did"
    )
    train_detector: bool = Field(
        default=False, description="experiments 2 and 2x train the detectors too, as the research group did"
    )
    agreement: Positive = Field(default=1.0, description="weight of experiment 1x's agreement loss")


class Config(Section):
    """One run."""

    name: FolderName
    seed: Seed = 0
    direction: Direction = Field(default="forward", description="playing direction it learns from")
    experiment: Annotated[Name, AfterValidator(_known_experiment)] = "baseline"
    output: Place = Field(default=Path("runs"), description="folder of the run directories")
    threads: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        default=None, description="CPU threads of a process; none: PyTorch's choice"
    )
    data: DataConfig
    init: InitConfig = InitConfig()
    pair: PairConfig = PairConfig()
    window: WindowConfig = WindowConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    test: TestConfig = TestConfig()

    @model_validator(mode="after")
    def _fits(self, info: ValidationInfo) -> Config:
        if info.context is not FIELDS_ALONE and (faults := broken_rules(self)):
            raise ValueError("; ".join(faults))
        return self

    @property
    def plan(self) -> Experiment:
        """The row of :data:`bitad.config.experiments.EXPERIMENTS` that this run is one of."""
        return EXPERIMENTS[self.experiment]

    @property
    def clip_steps(self) -> int:
        """Whole clips of the backbone are multiples of so many grid steps; 1 of features."""
        if self.model.backbone is None:
            return 1
        return CLIP_FRAMES // math.gcd(CLIP_FRAMES, self.window.frames_per_step)

    @property
    def trains_detectors(self) -> bool:
        """Whether the networks train, or only what an experiment adds to them."""
        return self.plan.adds is None or self.pair.train_detector

    @property
    def views(self) -> tuple[Direction, ...]:
        """The playing direction of each network."""
        return (self.direction,) if self.plan.networks == 1 else ("forward", self.pair.second)

    @property
    def learner_names(self) -> tuple[str, ...]:
        """A name for each network in logs and checkpoints: its playing direction; its number if both have the same."""
        return self.views if len(set(self.views)) == len(self.views) else ("first", "second")

    @property
    def variant(self) -> str:
        """What this run is a repetition of, whatever its seed: `forward`, `reverse`, `3-1`, `3-1-naive-random`, ..."""
        if self.plan.networks == 1:
            return self.direction
        words = (
            (self.pair.second == "forward", "two-forward"),
            (self.pair.align == "naive", "naive"),
            (self.pair.fusion_init == "random", "random"),
            (self.pair.train_detector, "detector-too"),
        )
        return "-".join([self.experiment, *(word for holds, word in words if holds)])

    @property
    def run_directory(self) -> Path:
        """Where this run writes: output / name-variant-seed."""
        return self.output / f"{self.name}-{self.variant}-seed{self.seed}"

    def to_yaml(self) -> str:
        """The resolved configuration; reading it again gives an equal one."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
