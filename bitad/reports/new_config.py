"""Writes a configuration that fits a data set: what ``bitad init`` does."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bitad.config.loading import load_config
from bitad.config.names import MissingPolicy, OnDecodeError, StarterBackbone
from bitad.config.schema import Config, DataConfig, WindowConfig
from bitad.config.text import SCHEMA_FILE, commented_yaml, flat, write_schema
from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.classes import alike
from bitad.data.convert import Conversion, convert_annotations, segment_defects
from bitad.data.feature_files import FeatureStore
from bitad.data.feature_folder import SIDECAR, read_own_sidecar
from bitad.data.fit import Fit
from bitad.data.formats.database import read_annotations, write_annotations
from bitad.data.sources import FeatureFiles, FileSource, Sampling, VideoFiles
from bitad.data.split import choose_validation
from bitad.reports.new_config_windows import (
    MOST_PADDING,
    BackboneChoice,
    Plan,
    Settings,
    choose_windows,
    padding_warning,
)
from bitad.reports.tables import Table
from bitad.runtime.files import atomic_write, check_file, check_replaceable
from bitad.runtime.log import quoted, shortlist
from bitad.video.files import video_folders
from bitad.video.indexing import INDEX_FOLDER, IndexCache
from bitad.video.names import VideoFinder

# Words in class names that a left-right flip of the frames makes wrong.
_SIDED = re.compile(
    r"(?i)(?<![a-z])(left|right|clockwise|counterclockwise|anticlockwise)(?![a-z])|links|rechts|왼쪽|오른쪽"
)


@dataclass(frozen=True)
class NewConfig:
    """A fitted configuration and its reasons.

    Args:
        path: of the written YAML file.
        annotations: the ground truth that it names.
        written: the files written, the annotations only if they had to be changed.
        conversion: how the annotations were read.
        segments: their number.
        updates: training steps that suit the detector.
        fit: the chosen settings.
        others: other settings, by the overrides of the configuration that choose them.
        choices: the configurations of all backbones, the chosen one included, by name, with descriptions.
        notes: what was changed, assumed, or looks wrong; a line each.
    """

    path: Path
    config: Config
    annotations: Path
    written: tuple[Path, ...]
    conversion: Conversion
    segments: int
    updates: int
    fit: Fit
    others: Mapping[str, Fit]
    choices: Mapping[str, tuple[Config, str]]
    notes: tuple[str, ...]

    def tables(self) -> tuple[Table, ...]:
        """What was chosen and why, and the alternatives."""
        chosen, window = self.fit, self.config.window
        stride = f"{chosen.rate_hz:.3g} grid steps per second"
        if self.config.data.features is not None:
            grid = ("data.feature_stride_frames", f"{self.config.data.feature_stride_frames:g}", stride)
        elif window.steps_per_second is not None:
            grid = ("window.steps_per_second", f"{window.steps_per_second:g}", "the videos' frame rates differ")
        else:
            grid = ("window.stride_frames", f"{window.stride_frames}", stride)
        rows = (
            grid,
            ("window.steps", f"{window.steps}", f"{chosen.window_s:.3g} s; {chosen.padding:.0%} padding"),
            ("model.levels", f"{chosen.levels}", _levels_text(chosen)),
            ("window.crop", f"{list(chosen.crop)}", "share of a video shorter than a window"),
            (
                "training.windows_per_video",
                f"{chosen.windows_per_video}",
                "random windows of each video in an epoch",
            ),
            (
                "training.epochs",
                f"{self.config.training.epochs}",
                f"at least {self.updates:,} training steps, as suits the detector",
            ),
        )
        settings = Table(f"Chosen settings, in {self.path}", ("key", "value", "reason"), rows)
        alternatives = tuple(
            (
                name,
                f"{one.steps}",
                f"{one.window_s:.3g} s",
                f"{one.padding:.0%}",
                f"{len(one.missed)}",
                f"{one.work / chosen.work:.2g}",
            )
            for name, one in self.others.items()
        )
        if not alternatives:
            return (settings,)
        columns = ("change", "window.steps", "window", "padding", "segments without a point", "cost")
        note = "Cost: grid steps of all windows, relative to the chosen settings."
        return settings, Table("Alternatives", columns, alternatives, (note,))

    def costs(self, on_progress: Callable[[int, int], None] = lambda done, total: None) -> Table:
        """The estimated time and memory of a training with each backbone."""
        from bitad.reports.estimate import cost_table

        configs = {name: config for name, (config, _) in self.choices.items()}
        return cost_table(configs, {name: text for name, (_, text) in self.choices.items()}, on_progress)


def _levels_text(chosen: Fit) -> str:
    counts = ", ".join(str(count) for count in chosen.per_level)
    return f"segments learned at each level, finest first: {counts}"


def new_config(
    src: str | Path,
    *,
    videos: Path | None = None,
    features: Path | None = None,
    out: Path,
    backbone: StarterBackbone = "tiny",
    format: str | None = None,
    video_info: Path | None = None,
    missing: MissingPolicy = "error",
    share: float = 0.25,
    seed: int = 0,
    overwrite: bool = False,
    damaged: OnDecodeError = "error",
    on_progress: Callable[[int, int], None] | None = None,
) -> NewConfig:
    """Writes a configuration that fits annotations and videos, and where needed annotations that it can use.

    Args:
        src: annotations of any known format.
        videos: folder of the video files.
        features: folder or ``.npz`` of pre-computed features, instead of videos.
        out: the YAML file; annotations that had to be completed are written beside it.
        backbone: of :data:`BACKBONES`; for videos.
        format: of the annotations; None: recognised.
        video_info: a list of videos that states their durations, as of
            :func:`~bitad.data.clocks.read_clocks`; None: ``features.json``, if there is one.
        missing: whether a video without a file is an error, or is left out.
        share: of the videos that become the validation subset, if there is none.
        seed: of that choice.
        overwrite: replace files of an earlier call.

    Raises:
        FileNotFoundError: no such file or folder, or a video without a file.
        ValueError: annotations that cannot be read, fewer than two videos with segments, or an unusable ``out``.
        FileExistsError: a file exists that would be written, without ``overwrite``.
    """
    src = Path(src)
    _check_out(out, (src, video_info), overwrite)
    if features is not None:
        video_info = _check_features(features, video_info)
    data = _read(
        src,
        videos=videos,
        features=features,
        format=format,
        video_info=video_info,
        missing=missing,
        damaged=damaged,
        share=share,
        seed=seed,
        on_progress=on_progress,
    )
    target = src
    if data.is_changed:
        target = _beside(out, (src, video_info))
        _check_new(target, overwrite)
    plan = choose_windows(data.source, data.annotated, backbone)
    draft = _Draft(out.stem, target, data, plan)
    configs = {
        name: Config.model_validate(_nested(draft.settings(choice, plan.fit_of(choice), Path())))
        for name, choice in plan.choices.items()
    }
    if data.is_changed:
        write_annotations(data.annotations, target)
    schema = out.with_name(SCHEMA_FILE)
    write_schema(schema)
    header = (
        f"# yaml-language-server: $schema={SCHEMA_FILE}",
        f"# Written by `bitad init`; `bitad config --show {out}` shows all keys.",
    )
    settings = draft.settings(plan.choices[plan.name], plan.fit, out.parent)
    with atomic_write(out) as partial:
        partial.write_text("\n".join([*header, commented_yaml(settings)]), encoding="utf-8")
    return NewConfig(
        path=out,
        config=load_config(str(out)),
        annotations=target,
        written=(out, target, schema) if data.is_changed else (out, schema),
        conversion=data.conversion,
        segments=sum(len(video.labels) for video in data.annotated),
        updates=plan.choices[plan.name].updates,
        fit=plan.fit,
        others=plan.others,
        choices={name: (config, plan.choices[name].description) for name, config in configs.items()},
        notes=(*data.notes, *plan.notes, *_warnings(src, data, plan)),
    )


@dataclass(frozen=True)
class _Data:
    """A data set as a training uses it.

    Args:
        content: the key of the configuration that names the videos or features, and their folder.
        subsets: to train on, to validate on and to test on.
        is_changed: whether the annotations must be written.
        notes: what was left out or split off; a line each.
    """

    conversion: Conversion
    annotations: Annotations
    source: FileSource
    content: Mapping[str, Path]
    subsets: tuple[str, str, str]
    is_changed: bool
    notes: Sequence[str]

    @cached_property
    def annotated(self) -> list[AnnotatedVideo]:
        """The videos with segments."""
        return [video for video in self.annotations.videos.values() if video.labels]


def _read(
    src: Path,
    *,
    videos: Path | None,
    features: Path | None,
    format: str | None,
    video_info: Path | None,
    missing: MissingPolicy,
    damaged: OnDecodeError,
    share: float,
    seed: int,
    on_progress: Callable[[int, int], None] | None,
) -> _Data:
    """The annotations of the videos that have a file, with subsets."""
    indices = IndexCache(Path(INDEX_FOLDER))  # which is not begun, so nothing is written
    converted = convert_annotations(
        src,
        format=format,
        videos=videos,
        video_info=video_info,
        missing=missing,
        undecided="drop",
        index=indices.index,
        on_progress=on_progress,
    )
    source, content = _source(converted.annotations, videos, features, damaged, indices)
    annotations, left_out = _with_files(converted.annotations, source, missing)
    annotations, subsets, split = with_subsets(annotations, share=share, seed=seed)
    is_changed = bool(left_out or split) or not _is_complete(src, converted)
    return _Data(converted, annotations, source, content, subsets, is_changed, (*left_out, *split))


@dataclass(frozen=True)
class _Draft:
    """What a configuration states."""

    name: str
    annotations: Path
    data: _Data
    plan: Plan

    def settings(self, choice: BackboneChoice, fitted: Fit, folder: Path) -> Settings:
        """The keys of a file in a folder."""
        training, *evaluated = self.data.subsets
        count = sum(bool(video.labels) for video in self.data.annotations.subset(training).videos.values())
        grid = self.plan.candidate.settings
        return {
            "name": (self.name, "runs are runs/NAME-forward-seed0, ..."),
            "data.annotations": (_relative(self.annotations, folder), "paths are relative to this file"),
            "data.training_subset": (training, ""),
            **_evaluated(*evaluated),
            **{key: (_relative(path, folder), "") for key, path in self.data.content.items()},
            **{key: value for key, value in grid.items() if not key.startswith("window.")},
            **_settings(choice, fitted, grid, count, self.data.annotations.classes),
        }


def _warnings(src: Path, data: _Data, plan: Plan) -> Iterator[str]:
    """What looks wrong; a line each."""
    defects = [video for video in data.annotated for _ in segment_defects(video)]
    if defects:
        yield (
            f"warning: defective segments, kept: {len(defects)}; `bitad annotations check {src}` names them, "
            "`bitad annotations convert ... --defects clip` corrects or drops them"
        )
    yield from _class_warnings(data)
    if unused := _unused(data):
        yield (
            f"files that are not used: {shortlist(unused, 5)}; a row with the name alone adds a video "
            "without actions to a CSV"
        )
    if plan.fit.padding > MOST_PADDING:
        yield padding_warning(plan.fit, plan.others, plan.videos)


def _unused(data: _Data) -> list[str]:
    """The names of video files of no video in the annotations, or of one that is left out."""
    source = data.source
    if not isinstance(source, VideoFiles):
        return []
    found = {source.find(name) for name in data.annotations.videos}
    files = video_folders(data.content["data.videos"])
    return sorted(name for name, folders in files.items() if not any(one / name in found for one in folders))


def _class_warnings(data: _Data) -> Iterator[str]:
    """Classes with similar names, and those that a subset lacks; a line each."""
    for names in alike(data.annotations.classes):
        yield f"warning: classes {shortlist(names, 3, quote=quoted)} have nearly the same name"
    training, *evaluated = data.subsets
    with_segments = {
        subset: {label for video in data.annotations.subset(subset).videos.values() for label in video.labels}
        for subset in data.subsets
    }
    learned = with_segments[training]
    if missing := sorted(set().union(*(with_segments[subset] for subset in evaluated)) - learned):
        yield (
            f"warning: no segment in subset {training!r}, so not learned: {shortlist(missing, 5, quote=quoted)}; "
            "annotate more videos of them"
        )
    for subset in dict.fromkeys(evaluated):
        if missing := sorted(learned - with_segments[subset]):
            yield (
                f"warning: no segment in subset {subset!r}, so not measured there: "
                f"{shortlist(missing, 5, quote=quoted)}"
            )


def _check_out(out: Path, inputs: Sequence[Path | None], overwrite: bool) -> None:
    if out.suffix.lower() not in (".yaml", ".yml"):
        raise ValueError(
            f"--out {out}: a configuration is a .yaml file; name one, such as {out.with_suffix('.yaml')}"
        )
    check_file(out, inputs=inputs)
    check_replaceable([out.with_name(SCHEMA_FILE)])
    _check_new(out, overwrite)


def _check_features(features: Path, video_info: Path | None) -> Path | None:
    """Raises where there are no features. Returns the list of videos: by default, their description."""
    FeatureStore(features)
    if (features / "forward" / SIDECAR).is_file():
        raise ValueError(f"{features} holds two folders of features; name one: {features / 'forward'}")
    if video_info is None and read_own_sidecar(features) is not None:
        return features / SIDECAR
    return video_info


def _beside(out: Path, inputs: Sequence[Path | None]) -> Path:
    """The file for changed annotations; inputs are not replaced."""
    target = out.with_suffix(".json")
    if target.resolve() in {path.resolve() for path in inputs if path is not None}:
        return target.with_name(f"{out.stem}-annotations.json")
    return target


def _check_new(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; choose another --out, or replace it with --overwrite")


def _is_complete(src: Path, converted: Conversion) -> bool:
    """Whether a training can use the file as it is: nothing needed was unstated, and nothing is left out."""
    if converted.format != "native" or not src.is_file():
        return False
    if any(lines for kind, lines in converted.report.items() if kind != "durations"):
        return False
    return all(math.isfinite(video.duration_s) for video in read_annotations(src).videos.values())


def _source(
    annotations: Annotations,
    videos: Path | None,
    features: Path | None,
    damaged: OnDecodeError,
    indices: IndexCache,
) -> tuple[FileSource, dict[str, Path]]:
    """The videos or features on a grid of single frames or rows, and the key of the configuration that names them."""

    def wanted() -> tuple[str, ...]:
        return tuple(annotations.videos)

    if videos is not None and features is None:
        find = VideoFinder(videos, wanted)
        sampling = Sampling(WindowConfig(stride_frames=1))
        return VideoFiles(find, pixels=1, sampling=sampling, damaged=damaged, cache=indices), {
            "data.videos": videos
        }
    if features is not None and videos is None:
        data = DataConfig(annotations=Path(), features=features, feature_fps=1.0)
        store = FeatureStore(features, wanted=wanted)
        store.channels = _width(store, annotations)
        return FeatureFiles(store, data, WindowConfig()), {"data.features": features}
    raise ValueError("give either videos or features")


def _width(store: FeatureStore, annotations: Annotations) -> int | None:
    """The width of the features: as described, or that of most videos; None if none can be read."""
    if (sidecar := read_own_sidecar(store.path)) is not None:
        return sidecar.settings.feature_channels
    widths: Counter[int] = Counter()
    for name in annotations.videos:
        with suppress(FileNotFoundError, ValueError):  # named later, with all others
            widths[store.shape(name)[1]] += 1
    return widths.most_common(1)[0][0] if widths else None


def _with_files(
    annotations: Annotations, source: FileSource, missing: MissingPolicy
) -> tuple[Annotations, list[str]]:
    """The videos that have a file, and lines about the others."""
    faults: dict[str, FileNotFoundError | ValueError] = {}
    for video in annotations.videos.values():
        try:
            source.grid(video)
        except (FileNotFoundError, ValueError) as error:
            faults[video.name] = error
    if faults and missing == "error":
        first = next(iter(faults.values()))
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise type(first)(f"{first}{more}; or leave such videos out with --missing drop")
    notes = [f"{name}: left out: {error}" for name, error in faults.items()]
    return annotations.map(lambda video: None if video.name in faults else video), notes


def with_subsets(
    annotations: Annotations, *, share: float, seed: int
) -> tuple[Annotations, tuple[str, str, str], list[str]]:
    """Ground truth with subsets to train on, to validate on and to test on, their names, and a line about a split.

    Those to validate and to test on are the same, unless there are three.
    """
    with_segments = Counter(video.subset for video in annotations.videos.values() if video.labels)
    names = list(with_segments)
    if not names:
        raise ValueError("no video has a segment of a class; there is nothing to learn")
    training = next((name for name in names if name.lower().startswith("train")), names[0])
    others = [name for name in names if name != training]
    if others:
        validation = next((name for name in others if name.lower().startswith("val")), others[0])
        tested = next((name for name in others if name.lower().startswith("test")), validation)
        return annotations, (training, validation, tested), []
    chosen = set(choose_validation(list(annotations.videos.values()), share=share, seed=seed))
    videos = {
        name: replace(video, subset="validation" if name in chosen else video.subset)
        for name, video in annotations.videos.items()
    }
    note = f"validation subset: {len(chosen)} of {with_segments[training]} videos, by class (seed {seed}): "
    return (
        replace(annotations, videos=videos),
        (training, "validation", "validation"),
        [note + shortlist(sorted(chosen), 5)],
    )


def _settings(
    choice: BackboneChoice, chosen: Fit, grid: Settings, videos: int, classes: Sequence[str]
) -> Settings:
    """The settings of windows, model and training."""
    sided = [name for name in classes if _SIDED.search(name)]
    epoch = math.ceil(chosen.windows_per_video * videos / choice.training["batch"])
    epochs = max(6, math.ceil(choice.updates / epoch))
    has_videos = "backbone" in choice.model
    flip = "0 if a class has a left and a right side"
    if sided:
        flip = f"mirrored frames would swap {shortlist(sided, 2)}"
    return {
        "window.steps": (chosen.steps, f"grid steps of a window: {chosen.window_s:.3g} s"),
        **{key: value for key, value in grid.items() if key.startswith("window.")},
        "window.overlap": (0.25, "of neighbouring windows in testing"),
        "window.crop": (list(chosen.crop), "random share of a video shorter than a window"),
        "model.levels": (chosen.levels, _levels_text(chosen)),
        **{f"model.{key}": (value, "") for key, value in flat(choice.model).items()},
        "training.epochs": (epochs, f"{epoch} steps each"),
        "training.windows_per_video": (chosen.windows_per_video, ""),
        "training.evaluate_every": (max(1, epochs // 3), "epochs; the best evaluation becomes best.pt"),
        **{f"training.{key}": (value, "") for key, value in flat(choice.training).items()},
        **({"training.augmentation.flip": (0.0 if sided else 0.5, flip)} if has_videos else {}),
        "training.workers": (
            2 if choice.model.get("backbone", {}).get("size") in ("s", "b") else 0,
            "reading processes",
        ),
    }


def _evaluated(validation: str, test: str) -> Settings:
    chosen = "best.pt is chosen on it"
    if test == validation:
        return {"data.test_subset": (test, chosen)}
    return {"data.validation_subset": (validation, chosen), "data.test_subset": (test, "")}


def _relative(path: Path, folder: Path) -> str:
    """A path as seen from a folder."""
    return Path(os.path.relpath(str(path), str(folder))).as_posix()


def _nested(settings: Settings) -> dict[str, Any]:
    """The document of dotted keys."""
    document: dict[str, Any] = {}
    for dotted, (value, _) in settings.items():
        *path, key = dotted.split(".")
        section = document
        for name in path:
            section = section.setdefault(name, {})
        section[key] = value
    return document
