"""Distillation: the predictions of finished networks, or detections, as soft targets of one network.

The loss is that of Yang et al. 2023 for dense detectors (arXiv:2308.14286): binary cross-entropies of the classes,
weighted by the difference of the probabilities as in the quality focal loss (Li et al. 2020, arXiv:2006.04388), and
1 - DIoU of the segments, weighted by the teacher's confidence. A softmax over classes would lose how probable an action
is at all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bitad.config.schema import Config
from bitad.data.detections import VideoColumns, read_detections
from bitad.data.samples import Batch
from bitad.models.alignment import aligned
from bitad.models.build import build_network, hold_frozen
from bitad.models.heads import Points, Prediction
from bitad.models.network import Network, Output
from bitad.runtime.log import shortlist
from bitad.runtime.signatures import file_digest
from bitad.timeline import View
from bitad.training.checkpoints import COMMON_INPUT
from bitad.training.losses import candidates, diou_loss
from bitad.weights.checkpoint import Checkpoint, input_differences, open_checkpoint
from bitad.weights.files import weights_path

# Detections of a window that teach, those of the highest scores.
MOST_DETECTIONS = 200
# The least probability that detections stand for: its logit is finite.
_LEAST_PROBABILITY = 1e-4


class SoftTargets(NamedTuple):
    """What a teacher predicts at the points of a batch of windows; N points, K classes.

    Args:
        logits: ``[B, N, K]``.
        distances: as of a :class:`~bitad.models.heads.Prediction`: ``[B, N, 2]`` or ``[B, N, K, 2]``, in strides.
    """

    logits: Tensor
    distances: Tensor


class Teacher(ABC):
    """Gives soft targets for windows on the forward clock.

    Args:
        digests: of its files, by number.
    """

    # What its networks see.
    views: tuple[View, ...] = ()

    def __init__(self, digests: dict[str, str]) -> None:
        self.digests = digests

    @abstractmethod
    def __call__(self, batch: Batch, network_input: Callable[[Batch], Tensor]) -> SoftTargets:
        """The soft targets of windows in the forward view; ``network_input`` gives a detector's input."""

    @abstractmethod
    def to(self, device: torch.device) -> None:
        """Moves its tensors to a device."""


class NetworkTeacher(Teacher):
    """Frozen networks, which see the windows that the student sees, each in its own views.

    Their mean teaches: of a pair with a fusion its forward basis, of others each network's prediction, aligned to the
    forward clock.
    """

    def __init__(self, networks: Sequence[tuple[Network, Config]], digests: dict[str, str]) -> None:
        super().__init__(digests)
        self.networks = [(network.eval().requires_grad_(False), config) for network, config in networks]
        self.views = tuple(dict.fromkeys(view for _, config in networks for view in config.views))

    def to(self, device: torch.device) -> None:
        for network, _ in self.networks:
            network.to(device)
            network.share_frozen()

    @torch.no_grad()
    def __call__(self, batch: Batch, network_input: Callable[[Batch], Tensor]) -> SoftTargets:
        found: list[Prediction] = []
        for network, config in self.networks:
            _, *views = batch.in_views(("forward", *config.views))
            found += _forward_predictions(network([network_input(view) for view in views], batch.mask), config)
        distances = [one.distances for one in found]
        if len({one.ndim for one in distances}) > 1:  # some depend on the class
            classes = found[0].logits.shape[2]
            distances = [
                one if one.ndim == 4 else one[:, :, None].expand(-1, -1, classes, -1) for one in distances
            ]
        return SoftTargets(torch.stack([one.logits for one in found]).mean(0), torch.stack(distances).mean(0))


def _forward_predictions(output: Output, config: Config) -> list[Prediction]:
    """The predictions of a network or pair on the forward clock: one if they are fused."""
    if config.design.fusion is not None:
        return [output.predictions[0]]
    pairs = zip(output.own, config.clocks, strict=True)
    return [one if clock == "forward" else aligned(one) for one, clock in pairs]


class DetectionTeacher(Teacher):
    """Detections of the training videos, whose scores are probabilities at the points that would learn the segments.

    Args:
        found: by video, segments in seconds on the forward clock, scores and labels.
        points: of the student.
        num_classes: K.
        radius: see :func:`bitad.training.losses.assign`.
        completeness: the share of a detection that must lie in a window.
    """

    def __init__(
        self,
        found: dict[str, VideoColumns],
        points: Points,
        digests: dict[str, str],
        *,
        num_classes: int,
        radius: float,
        completeness: float,
    ) -> None:
        super().__init__(digests)
        self.found, self.points, self.num_classes = found, points, num_classes
        self.radius, self.completeness = radius, completeness

    def to(self, device: torch.device) -> None:
        self.points = self.points.to(device)

    def __call__(self, batch: Batch, network_input: Callable[[Batch], Tensor]) -> SoftTargets:
        windows = [self._in_window(batch, number) for number in range(len(batch.videos))]
        segments, scores, labels = (
            pad_sequence([torch.from_numpy(column) for column in columns], batch_first=True).to(
                batch.mask.device, non_blocking=True
            )
            for columns in zip(*windows, strict=True)
        )
        return soft_assign(
            self.points, segments.float(), scores.float(), labels, self.num_classes, radius=self.radius
        )

    def _in_window(self, batch: Batch, number: int) -> VideoColumns:
        """The best detections in a window, at least an empty one, in its grid steps."""
        grid = batch.grids[number]
        segments, scores, labels = self.found[batch.videos[number]]
        steps = grid.to_steps(segments)
        inside = np.clip(steps, 0, grid.steps)
        lengths = np.diff(steps, axis=1)[:, 0]
        kept = np.diff(inside, axis=1)[:, 0] >= self.completeness * np.maximum(lengths, 1e-9)
        rows = np.flatnonzero(kept)
        rows = rows[np.argsort(-scores[rows], kind="stable")[:MOST_DETECTIONS]]
        return (
            np.concatenate((inside[rows], np.zeros((1, 2)))),  # no point lies in the empty one
            np.concatenate((scores[rows], np.zeros(1))),
            np.concatenate((labels[rows], np.zeros(1, np.int64))),
        )


def soft_assign(
    points: Points, segments: Tensor, scores: Tensor, labels: Tensor, num_classes: int, *, radius: float
) -> SoftTargets:
    """Assigns detections to the points that would learn them as ground truth (:func:`bitad.training.losses.assign`).

    The probability of a class at a point is the highest score of its detections there; the distances are those of the
    point's detection of the highest score, 0 without one.

    Args:
        segments: ``[B, M, 2]`` in grid steps; empty ones are assigned to no point.
        scores: ``[B, M]``, probabilities.
        labels: int ``[B, M]``.
    """
    to_ends, candidate = candidates(points, segments, radius=radius)
    score = torch.where(candidate, scores[:, None], 0)  # [B, N, M]
    count, number = score.shape[:2]
    probability = score.new_zeros(count, number, num_classes)
    probability.scatter_reduce_(2, labels[:, None].expand_as(score), score, "amax")
    highest, index = score.max(-1)
    distances = to_ends.gather(2, index[..., None, None].expand(-1, -1, -1, 2)).squeeze(2) / points.stride[:, None]
    return SoftTargets(torch.logit(probability, _LEAST_PROBABILITY), distances * (highest > 0)[..., None])


def distillation_loss(
    prediction: Prediction, soft: SoftTargets, *, temperature: float = 1.0, regression_weight: float = 1.0
) -> Tensor:
    """The distance of a student from its teacher, summed over real points; 0 if they are equal.

    Args:
        temperature: divides the logits of both (Hinton et al. 2015, arXiv:1503.02531); the class loss is multiplied by
            its square, so that gradients keep their size. Chen et al. 2017 (Learning efficient object detection models
            with knowledge distillation) found 1 best for detection.
        regression_weight: of the segments' loss.
    """
    logits, wanted_logits = prediction.logits / temperature, soft.logits / temperature
    wanted = wanted_logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    entropy = F.binary_cross_entropy_with_logits(wanted_logits, wanted, reduction="none")
    apart = (logits.detach().sigmoid() - wanted).abs()
    classification = apart * (cross_entropy - entropy) * temperature**2
    distances, confidence = _taught_distances(prediction, soft)
    segments = confidence * diou_loss(prediction.distances, distances)
    mask = prediction.mask
    mask_of_segments = mask if segments.ndim == 2 else mask[..., None]
    return (classification * mask[..., None]).sum() + regression_weight * (segments * mask_of_segments).sum()


def _taught_distances(prediction: Prediction, soft: SoftTargets) -> tuple[Tensor, Tensor]:
    """The distances that a student learns, in the form of its own, and the weights of their losses.

    The weight is the teacher's probability of its best class at the point, or of each class where the teacher's
    distances and the student's depend on it. Empty segments weigh nothing.
    """
    probability, distances = soft.logits.sigmoid(), soft.distances
    best, index = probability.max(-1, keepdim=True)
    per_class = prediction.distances.ndim == 4
    if distances.ndim == 4 and not per_class:
        distances = distances.take_along_dim(index[..., None], dim=2).squeeze(2)
    elif distances.ndim == 3 and per_class:
        distances = distances[:, :, None].expand_as(prediction.distances)
        probability = torch.zeros_like(probability).scatter(2, index, best)
    weight = probability if per_class else best.squeeze(2)
    return distances, weight * (distances.sum(-1) > 0)


# Loading.


def load_teacher(config: Config, classes: tuple[str, ...], videos: Sequence[str]) -> Teacher | None:
    """The teacher of a configuration; None if it has none.

    Args:
        classes: of the student, in the order of its logits.
        videos: names of the training videos, which detections must have.

    Raises:
        FileNotFoundError: no such run, checkpoint or file.
        ConnectionError: one is named ``hub:...`` and cannot be downloaded.
        ValueError: one is of other classes, windows, features or points.
    """
    if config.init.teacher is None:
        return None
    with torch.device("meta"):
        student = build_network(config, len(classes))
    points = student.detectors[0].points(config.window.steps)
    if config.init.teaches_by_detections:
        (path,) = config.init.teacher
        found = _read_teaching_detections(path, classes, videos)
        return DetectionTeacher(
            found,
            points,
            {"1": file_digest(path)},
            num_classes=len(classes),
            radius=config.training.centre_radius,
            completeness=config.window.completeness,
        )
    networks, digests = [], {}
    for number, path in enumerate(config.init.teacher, start=1):
        checkpoint = _open_teacher(path)
        faults = list(_mismatches(checkpoint, config, classes))
        if faults:
            raise ValueError(f"init.teacher={path} does not fit this run: {'; '.join(faults)}")
        network = checkpoint.network()
        hold_frozen(network, config.training.precision)
        theirs = network.detectors[0].points(config.window.steps)
        if not (torch.equal(theirs.position, points.position) and torch.equal(theirs.stride, points.stride)):
            raise ValueError(
                f"init.teacher={path} predicts at {len(theirs)} points of a window, this network at {len(points)}; "
                "use the teacher's model.levels and attention windows"
            )
        networks.append((network, checkpoint.config))
        digests[str(number)] = file_digest(weights_path(path))
    return NetworkTeacher(networks, digests)


def _open_teacher(path: Path) -> Checkpoint:
    try:
        found = open_checkpoint(path)
    except (FileNotFoundError, ConnectionError, ValueError) as error:
        raise type(error)(f"init.teacher: {error}") from None
    if isinstance(found, Checkpoint):
        return found
    raise ValueError(
        f"init.teacher={path} is {found.format.title}, without a configuration; give a run, or first convert it: "
        "bitad weights convert"
    )


def _mismatches(checkpoint: Checkpoint, config: Config, classes: tuple[str, ...]) -> Iterator[str]:
    """Why a checkpoint cannot teach the network of a run."""
    theirs = checkpoint.config
    if checkpoint.classes != classes:
        yield f"its classes are {', '.join(checkpoint.classes)}, here {', '.join(classes)}"
    keys = [*COMMON_INPUT, "model.levels", "model.backbone.pixels"]
    for key, old, new in input_differences(theirs, config, keys):
        yield f"{key} is {old} there and {new} here"
    for here, there in ((config, theirs), (theirs, config)):
        if here.model.backbone is None and there.model.backbone is not None:
            yield f"it watches {'videos' if there is theirs else 'features'}, this network " + (
                "features" if there is theirs else "videos"
            )
    if theirs.design.shared and theirs.reversal:
        yield "data.reversal gives its reverse view other labels; give a run without it"
    if theirs.window.resized_steps != config.window.resized_steps:
        yield f"window.layout is {theirs.window.layout} there and {config.window.layout} here"
    before, now = theirs.data.reversed_features, config.data.reversed_features
    if "reverse" in theirs.views and (before is None) != (now is None):  # they are not flipped features
        yield f"data.reversed_features is {before} there and {now} here"


def _read_teaching_detections(
    path: Path, classes: tuple[str, ...], videos: Sequence[str]
) -> dict[str, VideoColumns]:
    """By training video, the detections of a file."""
    try:
        detections = read_detections(path).forward()
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"init.teacher: {error}") from None
    what = f"init.teacher={path}"
    if other := [name for name in detections.classes if name not in classes]:
        raise ValueError(
            f"{what} does not fit this run: it has the classes {shortlist(other)}, which are not here"
        )
    if missing := [name for name in videos if name not in detections.videos]:
        raise ValueError(
            f"{what} has no detections of {len(missing)} training videos ({shortlist(missing)}); "
            "`bitad test RUN data.test_subset=SUBSET` writes those of the training subset"
        )
    if len(detections) and not 0 <= detections.scores.min() <= detections.scores.max() <= 1:
        low, high = detections.scores.min(), detections.scores.max()
        raise ValueError(f"{what} has scores from {low:g} to {high:g}; give probabilities from 0 to 1")
    index = np.array([classes.index(name) for name in detections.classes], np.int64)
    found = {}
    for name in videos:
        own = detections.of_video(name)
        found[name] = (own.segments, own.scores, index[own.labels])
    return found
