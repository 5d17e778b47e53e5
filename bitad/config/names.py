"""The choices of the configuration and the command line, each listed once, and the experiments.

Imports neither PyTorch nor pydantic, so ``--help`` is fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Precision = Literal["fp32", "bf16", "fp16"]
OnDecodeError = Literal["error", "repeat"]
OnReadError = Literal["error", "skip"]
# Whether gradients run through the transformer to its adapters.
AdapterPlacement = Literal["inside", "beside"]
# What the backward pass recomputes of the transformer; the more, the later.
Checkpointing = Literal["none", "selective", "blocks"]
Padding = Literal["reference", "strict"]
Alignment = Literal["exact", "naive"]
FusionInit = Literal["mean", "random"]
NmsMethod = Literal["gaussian", "linear", "vanilla", "hard", "none"]
MergeMethod = Literal["soft-nms", "mean", "product", "wsf"]
# What `bitad evaluate` measures.
Metric = Literal["map", "ar", "frame-map", "segmental"]
# By whose rule mAP is computed.
MapRule = Literal["activitynet", "thumos-kit"]
# By whose code average recall is computed.
RecallRule = Literal["opentad", "activitynet"]
# The frames of per-frame mAP.
FrameRule = Literal["dense", "charades-25", "sampled-25"]
# Of equally overlapping segments, the one that decides the kind of an error: of the detection's own label, or the
# first of the file.
Ties = Literal["own", "file"]
# Where the bins of segments' coverage, length and number begin and end: at the data's quantiles, or as published.
Bins = Literal["quantiles", "thumos14", "activitynet"]

AnnotationFormat = Literal["native", "actionformer"]
# For segments beyond their video, and for other defects of annotations.
DefectPolicy = Literal["keep", "clip", "drop", "error"]
AmbiguousPolicy = Literal["keep", "drop"]
MissingPolicy = Literal["error", "drop"]

FeatureDirection = Literal["forward", "reverse", "both"]
FeaturePrecision = Literal["float32", "bfloat16"]
RowsOf = Literal["clip", "tubelet"]
StarterBackbone = Literal["tiny", "s", "b"]
PlanDevice = Literal["cpu", "gpu"]
TrackerName = Literal["tensorboard", "mlflow", "wandb"]
WeightsAction = Literal["inspect", "convert", "download", "push", "pull"]

# In `data.reversal`: what a class looks like on reversed playback has no name.
UNKNOWN = "unknown"

# Keys whose value is a mapping, not a section of keys.
MAPPING_KEYS = ("data.reversal",)

# How names of weights that are no paths begin: of a file in this package, and on the Hugging Face Hub.
WEIGHTS_BY_NAME = ("package:", "hub:")

# How names of detection files end, where weights could be named instead.
DETECTION_SUFFIXES = (".json", ".json.gz", ".csv")

# Keys of earlier versions and their present names. They are read for one release, with a warning.
RENAMED_KEYS = {
    "data.damaged_frames": "data.on_decode_error",
    "init.backward": "init.reverse",
    "pair.detector_too": "pair.train_detector",
    "training.bad_steps": "training.max_nonfinite_steps",
    "training.bad_videos": "training.on_read_error",
    "training.keep": "training.keep_last",
    "training.reading_s": "training.read_timeout_s",
    "test.bad_videos": "test.on_read_error",
    "test.reading_s": "test.read_timeout_s",
}


@dataclass(frozen=True)
class VitSize:
    """Width, depth, heads and MLP width of a published VideoMAE; ``patch_size`` in pixels."""

    dim: int
    depth: int
    heads: int
    mlp_dim: int
    patch_size: int = 16


SIZES = {
    "tiny": VitSize(dim=96, depth=4, heads=3, mlp_dim=384),  # the demo's
    "s": VitSize(dim=384, depth=12, heads=6, mlp_dim=1536),
    "b": VitSize(dim=768, depth=12, heads=12, mlp_dim=3072),
    "l": VitSize(dim=1024, depth=24, heads=16, mlp_dim=4096),
    "h": VitSize(dim=1280, depth=32, heads=16, mlp_dim=5120),
    # VideoMAEv2, arXiv:2303.16727
    "v2-g": VitSize(dim=1408, depth=40, heads=16, mlp_dim=6144, patch_size=14),
}


@dataclass(frozen=True)
class Experiment:
    """One experiment.

    Args:
        networks: one, or two that see the same windows (the second in reverse, or as ``pair.second`` says).
        shared: whether one network sees every window in both playing directions, with the same weights.
        starts_from: the pre-trained backbone, or the EMA weights of two finished baselines.
        adds: the only module that trains, after every adapter of the frozen networks: a second adapter, or one that
            also sees the other network's features.
        fusion: how the two aligned predictions become one, in training and testing.
        agreement: whether the loss has a term for the difference of the two aligned predictions.
        teacher: whether a finished teacher's predictions train the network too.
    """

    name: str
    summary: str
    networks: Literal[1, 2] = 2
    shared: bool = False
    starts_from: Literal["backbone", "baselines"] = "baselines"
    adds: Literal["adapter", "cross-adapter"] | None = None
    fusion: str | None = None
    agreement: bool = False
    teacher: bool = False

    @property
    def joint(self) -> bool:
        """Whether a loss depends on both networks, or on both views of one, so that they need one graph.

        Otherwise one's backward pass can end before the other's forward pass.
        """
        return self.fusion is not None or self.agreement or self.adds == "cross-adapter" or self.shared

    @property
    def aligns(self) -> bool:
        """Whether training aligns the predictions of one network to the clock of the other."""
        return self.fusion is not None or self.agreement

    @property
    def extra_loss(self) -> str | None:
        """The name of the loss beside those of detection, if there is one."""
        return "agreement" if self.agreement else "distillation" if self.teacher else None


# The results of two networks, or of two views of one, and their files, by the clock of the second. The last result
# merges the others.
RESULTS_OF_PAIRS: Mapping[str, Mapping[str, str]] = {
    "reverse": {
        "forward basis": "detections.forward.json",
        "reverse basis": "detections.reverse.json",
        "merged": "detections.json",
    },
    "forward": {
        "first network": "detections.forward.json",
        "second network": "detections.second.json",
        "merged": "detections.json",
    },
}

EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment("baseline", "one network, one playing direction", networks=1, starts_from="backbone"),
        Experiment("1", "two networks, the two losses added", starts_from="backbone"),
        Experiment(
            "1s", "one network sees windows in both directions", networks=1, shared=True, starts_from="backbone"
        ),
        Experiment("1-1", "as 1, from the baselines' weights"),
        Experiment("1x", "as 1-1, with a loss that makes the aligned predictions agree", agreement=True),
        Experiment("2", "as 1-1, the networks frozen, a second adapter in each block trained", adds="adapter"),
        Experiment("2x", "as 2, the new adapter also seeing the other network's features", adds="cross-adapter"),
        Experiment("3-1", "a layer along the points fuses start, end and class logits", fusion="columns"),
        Experiment("3-2", "the layer fuses start and end, a 3-D convolution the logits", fusion="convolution"),
        Experiment("3-3", "the layer fuses start and end, logits are averaged", fusion="mean"),
        Experiment(
            "distil",
            "one network, which a finished teacher's predictions train too",
            networks=1,
            starts_from="backbone",
            teacher=True,
        ),
    )
}
