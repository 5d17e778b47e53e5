"""The detection files, runs and ground truth that ``bitad diagnose`` is given."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bitad.data.annotations import Annotations
from bitad.data.classes import UNDECIDED
from bitad.data.formats.database import read_annotations
from bitad.reports.runs import find_runs
from bitad.runtime.log import log, shortlist

if TYPE_CHECKING:
    from bitad.reports.comparison import Run


@dataclass(frozen=True)
class DiagnosisInputs:
    """What to diagnose.

    Args:
        truth: the ground truth of all.
        source: what errors call it.
        files: detection files by the name of their result and by seed, in the order given. Of a run, this is its
            final result; a file that is named has the seed "".
        tiou: the thresholds of the runs; None if there are none.
    """

    truth: Annotations
    source: str
    files: dict[str, dict[str, Path]]
    tiou: tuple[float, ...] | None = None


def read_diagnosis_inputs(
    places: Sequence[Path], ground_truth: Path | None = None, subset: str | None = None
) -> DiagnosisInputs:
    """The results that places stand for.

    Args:
        places: detection files; run directories, folders of them and patterns, as for :func:`find_runs`.
        ground_truth: an annotation file; None: the ground truth of the runs.
        subset: of that file; None: its only one.

    Raises:
        FileNotFoundError: no such file or run, or a run without detections.
        ValueError: no ground truth is named and there is no run; no or no such subset; a result given twice; runs of
            different ground truth or tIoU.
    """
    found: list[Path | Run] = []
    for place in places:
        found += [place] if _is_file(place) else _runs_at(place)
    runs = [one for one in found if not isinstance(one, Path)]
    paths = Counter((one if isinstance(one, Path) else one.result_file).resolve() for one in found)
    if repeated := [path for path, count in paths.items() if count > 1]:
        raise ValueError(f"{repeated[0]} is given twice; leave one out")
    files = _by_name_and_seed(found)
    tiou = tuple(runs[0].config.test.tiou) if runs else None
    if ground_truth is not None:
        for run in runs:
            if run.config.test.tiou != runs[0].config.test.tiou:
                raise ValueError(
                    f"run {run.directory} was tested at another tIoU than run {runs[0].directory}; diagnose runs of "
                    "one tIoU, or their detection files"
                )
        return DiagnosisInputs(_read_truth(ground_truth, subset), str(ground_truth), files, tiou)
    if not runs:
        raise ValueError(f"{places[0]} is a detection file; name its annotations with --ground-truth")
    from bitad.reports.comparison import common_ground_truth

    return DiagnosisInputs(common_ground_truth(runs), "the runs' ground truth", files, tiou)


def _is_file(place: Path) -> bool:
    """Whether a place is a detection file, also a missing one; a pattern and a name without suffix are of runs."""
    return place.is_file() or (not place.exists() and bool(place.suffix) and not glob.has_magic(str(place)))


def _runs_at(place: Path) -> list[Run]:
    directories = find_runs([place])  # fails before PyTorch is loaded
    from bitad.reports.comparison import Run

    return [Run.read(directory) for directory in directories]


def _by_name_and_seed(found: Sequence[Path | Run]) -> dict[str, dict[str, Path]]:
    """Files by their names, or paths where names are equal; runs by their labels, and names where these differ."""
    file_names = Counter(one.name for one in found if isinstance(one, Path))
    run_names = {one.config.name for one in found if not isinstance(one, Path)}
    files: dict[str, dict[str, Path]] = {}
    for one in found:
        if isinstance(one, Path):
            name, seed, path = one.name if file_names[one.name] == 1 else str(one), "", one
        else:
            name, seed, path = one.label, str(one.config.seed), one.result_file
            if len(run_names) > 1:
                name += f" ({one.config.name})"
        seeds = files.setdefault(name, {})
        if seed in seeds:
            raise ValueError(
                f"{seeds[seed]} and {path} are both {name}{f', seed {seed}' * bool(seed)}; leave one out"
            )
        seeds[seed] = path
    return files


def _read_truth(path: Path, subset: str | None) -> Annotations:
    annotations = read_annotations(path, ignore=())
    if undecided := sum(video.labels.count(label) for video in annotations.videos.values() for label in UNDECIDED):
        log.info("%s: %d segments of no class (%s) are left out", path, undecided, ", ".join(UNDECIDED))
        classes = tuple(name for name in annotations.classes if name not in UNDECIDED)
        annotations = replace(annotations, classes=classes).only_classes()
    if subset is None:
        subsets = list(annotations.subsets())
        if len(subsets) > 1:
            raise ValueError(f"{path} has the subsets {shortlist(subsets)}; name one with --subset")
        return annotations
    return annotations.subset(subset)
