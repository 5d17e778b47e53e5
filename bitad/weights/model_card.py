"""The model card of a shared detector: what it finds, on which data it was trained, how good it is, how it is run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from textwrap import dedent

import yaml

import bitad
from bitad.config.loading import without_folders
from bitad.config.schema import Config
from bitad.weights.checkpoint import Checkpoint

_MOST_CLASSES = 100  # that are listed


def model_card(checkpoint: Checkpoint, repository: str) -> str:
    """The card in Markdown, with the Hub's metadata. Paths are without their folders.

    Args:
        checkpoint: of the detector.
        repository: ``OWNER/NAME``.
    """
    config = without_folders(checkpoint.config)
    metadata = {
        "library_name": "bitad",
        "tags": ["bitad", "temporal-action-detection", "temporal-action-localization"],
        "pipeline_tag": "video-classification",  # the nearest that the Hub has
    }
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---",
        f"# {repository.partition('/')[2]}",
        f"This detector finds actions in videos, of {_count(len(checkpoint.classes), 'class', 'classes')}, with their "
        "start and end. It was trained with BiTAD (bidirectional temporal action detection).",
        _table(("", ""), _properties(checkpoint, config)),
        "## Data",
        _table(("", ""), _data(checkpoint, config)),
        "## Metrics",
        _metrics(checkpoint, config),
        "## How to run",
        _how_to_run(config, repository),
        "## Classes",
        _classes(checkpoint.classes),
        "## Configuration",
        f"```yaml\n{config.to_yaml()}```",
    ]
    return "\n\n".join(parts) + "\n"


def _properties(checkpoint: Checkpoint, config: Config) -> Iterator[tuple[str, object]]:
    yield "experiment", f"{config.experiment}: {config.design.summary}"
    yield "sees", " and ".join(dict.fromkeys(config.views))
    backbone = config.model.backbone
    if backbone is None:
        yield "input", f"features of {config.data.feature_channels} channels"
    else:
        size = backbone.size if isinstance(backbone.size, str) else f"of width {backbone.size.dim}"
        yield "input", f"videos; {backbone.type} backbone {size}, {backbone.pixels} x {backbone.pixels} pixels"
    yield "pyramid, head", f"{config.model.pyramid.type}, {config.model.head.type}"
    steps = config.window.steps
    yield "window", f"{steps} grid steps, about {steps / checkpoint.rate_hz:.1f} s of a video"
    yield "parameters", f"{sum(tensor.numel() for tensor in checkpoint.model.values()):,}"
    yield "trained epochs", checkpoint.epoch
    yield "BiTAD", bitad.__version__


def _data(checkpoint: Checkpoint, config: Config) -> Iterator[tuple[str, object]]:
    data = config.data
    yield "annotations", f"`{data.annotations}`"
    yield "trained on", f"subset `{data.training_subset}`"
    if data.validation_subset is not None:
        yield "chosen on", f"subset `{data.validation_subset}`"
    yield "tested on", f"subset `{data.test_subset}`"
    yield "grid steps a second", f"{checkpoint.rate_hz:g}, the median of the training videos"


def _metrics(checkpoint: Checkpoint, config: Config) -> str:
    figures = checkpoint.evaluation
    if figures is None:
        return "These weights were not evaluated in their training."
    chosen = config.training.select == "best" and config.data.validation_subset is None
    note = "; the epoch with the highest average was chosen on these videos, so it is optimistic" if chosen else ""
    subsets = ", ".join(f"`{name}`" for name in figures.get("subsets", [])) or "its test subset"
    columns = [
        (f"{tiou:g}", f"{100 * value:.2f}")
        for tiou, value in zip(figures.get("tiou", ()), figures.get("map", ()), strict=True)
    ]
    columns.append(("average", f"{100 * figures['average_map']:.2f}"))
    names, values = zip(*columns, strict=True)
    videos = _count(figures.get("videos", 0), "video", "videos")
    rule = figures.get("rule", "activitynet")
    return f"mAP (%) by temporal IoU, of {videos} of {subsets}, by the rule `{rule}`{note}.\n\n" + _table(
        names, [values]
    )


def _how_to_run(config: Config, repository: str) -> str:
    if config.model.backbone is None:
        use = f"""\
            bitad test hub:{repository} data.annotations=ANNOTATIONS.json data.features=FEATURES --out results
            """
        note = "The features must be of the same encoder, at the same stride."
    else:
        use = f"bitad detect VIDEO.mp4 --checkpoint hub:{repository} --out found\n"
        note = f'In Python: `bitad.load("hub:{repository}").detect("VIDEO.mp4")`.'
    pull = f"bitad weights pull {repository} FOLDER  # or into a folder\n"
    return f"```shell\n{dedent(use)}{pull}```\n\n{note}"


def _classes(classes: Sequence[str]) -> str:
    more = f" and {len(classes) - _MOST_CLASSES} more" if len(classes) > _MOST_CLASSES else ""
    return ", ".join(f"`{name}`" for name in classes[:_MOST_CLASSES]) + more


def _table(header: Sequence[str], rows: Iterator[tuple[str, object]] | Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines)


def _count(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"
