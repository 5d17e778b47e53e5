"""Finished runs, as reports read them: what was configured, what was found, and the losses on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitad.config import Config
from bitad.config_files import load_config
from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.ground_truth import read_test_ground_truth
from bitad.experiments import EXPERIMENTS, RESULTS_OF_PAIRS
from bitad.training.metrics import METRICS, read_metrics

# Where earlier versions wrote what the control's second network found, though that is in forward time.
_EARLIER = {"detections.second.json": "detections.reverse.json"}


def label_of(config: Config) -> str:
    """What a run is called in tables, whatever its seed: "F", "B", "3-1", "3-1, naive, random", ..."""
    if config.plan.networks == 1:
        return "F" if config.direction == "forward" else "B"
    words = (
        (config.pair.second == "forward", "two forward networks"),
        (config.pair.align == "naive", "naive"),
        (config.pair.fusion_init == "random", "random"),
        (config.pair.detector_too, "detector too"),
    )
    return ", ".join([config.experiment, *(word for holds, word in words if holds)])


@dataclass(frozen=True)
class Run:
    """A run directory and its configuration."""

    directory: Path
    config: Config

    @staticmethod
    def read(directory: Path) -> Run:
        """The run in a directory.

        Raises:
            FileNotFoundError: it is no run directory.
            ConfigError: its configuration is not one of ours.
        """
        if not (directory / "config.yaml").is_file():
            raise FileNotFoundError(
                f"{directory} is no run directory: it has no config.yaml; give a folder that `bitad train` wrote"
            )
        return Run(directory, load_config(directory / "config.yaml"))

    @property
    def label(self) -> str:
        """:func:`label_of` its configuration."""
        return label_of(self.config)

    @property
    def is_ablation(self) -> bool:
        """Whether it departs from its experiment's defaults."""
        return self.config.plan.networks == 2 and self.config.variant != self.config.experiment

    @property
    def rank(self) -> tuple[bool, int, str]:
        """Its place in tables: baselines, experiments in their order, then what departs from an experiment."""
        config = self.config
        return self.is_ablation, list(EXPERIMENTS).index(config.experiment), config.variant

    def detection_files(self) -> dict[str, Path]:
        """The files of detections by what they are of; of one network just one, called "".

        Raises:
            FileNotFoundError: one is missing.
        """
        names = {"": "detections.json"} if self.config.plan.networks == 1 else RESULTS_OF_PAIRS[self.config.pair.second]
        files = {what: self.directory / name for what, name in names.items()}
        for what, name in names.items():
            if not files[what].is_file() and (earlier := self.directory / _EARLIER.get(name, name)).is_file():
                files[what] = earlier
        for path in files.values():
            if not path.is_file():
                raise FileNotFoundError(
                    f"run {self.directory} has no {path.name} yet; train it to its end first (bitad train ... --resume)"
                )
        return files

    def records(self) -> list[dict[str, Any]]:
        """The records of its ``metrics.jsonl``; none where it has no such file. Raises as ``read_metrics``."""
        path = self.directory / METRICS
        return read_metrics(path) if path.is_file() else []

    def ground_truth(self) -> Annotations:
        """What it was tested against.

        Raises:
            FileNotFoundError: the annotations are not where the configuration says.
            ValueError: they cannot be read, or no video is in the test subset.
        """
        data = self.config.data
        for path in (data.annotations, data.classes):
            if path is not None and not path.is_file():
                raise FileNotFoundError(
                    f"the ground truth of run {self.directory}, {path}, is not there; run this in the folder that it "
                    "was trained in, or correct its config.yaml"
                )
        return read_test_ground_truth(self.config)


def read_runs(directories: Sequence[Path]) -> list[Run]:
    """The runs in the order of tables, each once.

    Raises:
        FileNotFoundError: as ``Run.read``.
        ValueError: no run, a directory given twice, or two runs of one name, variant and seed.
    """
    if not directories:
        raise ValueError("no runs to compare; give at least one run directory")
    seen: set[Path] = set()
    for directory in directories:
        if directory.resolve() in seen:
            raise ValueError(f"run {directory} is given twice; give each run once")
        seen.add(directory.resolve())
    runs = [Run.read(directory) for directory in directories]
    known: dict[tuple[str, str, int], Run] = {}
    for run in runs:
        config = run.config
        first = known.setdefault((config.name, config.variant, config.seed), run)
        if first is not run:
            raise ValueError(
                f"{first.directory} and {run.directory} are both {config.name}-{config.variant} of seed {config.seed}; "
                "leave one out, or train it under another name or seed"
            )
    return sorted(runs, key=lambda run: (run.rank, run.config.name, run.config.seed))


def common_ground_truth(runs: Sequence[Run]) -> Annotations:
    """The one ground truth that all runs were tested against.

    Raises:
        ValueError: they were tested against different videos, segments or classes, or at different tIoU.
    """
    first, *others = runs
    truths: dict[tuple[Any, ...], Annotations] = {}

    def truth_of(run: Run) -> Annotations:
        data = run.config.data
        key = (data.annotations, data.classes, data.test_subset)
        if key not in truths:
            truths[key] = run.ground_truth()
        return truths[key]

    for run in others:
        if run.config.test.tiou != first.config.test.tiou:
            raise ValueError(
                f"run {first.directory} was tested at tIoU {_listed(first)}, run {run.directory} at {_listed(run)}; "
                "compare runs that were tested alike"
            )
        if _contents(truth_of(run)) != _contents(truth_of(first)):
            mine, its = first.config.data, run.config.data
            raise ValueError(
                f"run {first.directory} was tested on other ground truth ({mine.annotations}, subset "
                f"{mine.test_subset}) than run {run.directory} ({its.annotations}, subset {its.test_subset}); compare "
                "runs of one test set"
            )
    return truth_of(first)


def _listed(run: Run) -> str:
    return ", ".join(f"{threshold:.4g}" for threshold in run.config.test.tiou)


def _contents(truth: Annotations) -> tuple[Any, ...]:
    def of_video(video: AnnotatedVideo) -> tuple[Any, ...]:
        return video.name, video.duration_s, video.segments.tolist(), video.labels

    return truth.classes, sorted(of_video(video) for video in truth.videos.values())
