"""AdaTAD in BiTAD and in OpenTAD, on this machine: a forward pass over one window, and a training step.

    git clone https://github.com/sming256/OpenTAD
    python benchmarks/beside_opentad.py OpenTAD [--precision fp32 bf16] [--frames 768] [--rounds 2]
    python benchmarks/beside_opentad.py OpenTAD --whole
    python benchmarks/beside_opentad.py OpenTAD --end-to-end
    python benchmarks/beside_opentad.py OpenTAD --quick

Without an option the backbone alone: a step is then the forward and the backward pass of the adapters. ``--whole``: the
detector; a forward pass ends with segments and scores, a step has losses, backward pass, clipping, optimizer, schedule
and average of the weights. ``--end-to-end``: training from video files to updated weights, in one process that reads
and takes steps in turns; needs ``pip install decord opencv-python-headless``, with which OpenTAD reads.

OpenTAD's code is imported from the clone (``opentad_imports``, ``opentad_networks`` and ``opentad_videos`` say what is
replaced), and has its own configuration of AdaTAD on THUMOS14: activation checkpointing of the blocks, and autocast of
single-precision weights in bf16. BiTAD has the same recipe, but drops no paths in frozen blocks, and in bf16 holds
frozen weights in bf16, as in training. ``blocks`` and ``selective`` are its activation checkpointing; ``beside`` is
another network, with the adapters beside the blocks. First, both are compared with the same weights: in fp32 they must
give the same features, segments and scores.

Each runs in its own processes, alternating, so that other load on the machine affects both equally; the fastest round
counts. A pass and a step are measured after a warm-up, training from files without.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measuring import Alone, FailedError, Measured, alone, machine, now, parser_of, seconds, timed
from networks import CLASSES, annotate, configuration
from opentad_networks import Backbone, TrainingStep, build_detector, settings_of
from reading import frames_of_video, render
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bitad.config.loading import override_config
from bitad.config.names import Precision
from bitad.config.schema import Config
from bitad.data.samples import Batch
from bitad.models.build import BACKBONES, autocast, build_network, hold_frozen
from bitad.models.network import Detector
from bitad.models.vit import is_adapter
from bitad.reports.tables import Cell, Table
from bitad.runtime.distributed import process_group
from bitad.runtime.environment import set_up_process
from bitad.runtime.files import write_json
from bitad.runtime.progress import Meter
from bitad.timeline import Grid
from bitad.training.step import TrainStep
from bitad.training.trainer import Trainer
from bitad.weights.loading import Weights, load_weights

THEIRS, OURS = "OpenTAD", "bitad"
FORWARD, STEP, TRAINING = "forward", "training step", "training from files"
FILE = Path("opentad/models/backbones/vit_adapter.py")
PIXELS = 160
CPU = torch.device("cpu")
VARIANTS: dict[str, tuple[str, ...]] = {
    "blocks": ("model.backbone.checkpointing=blocks",),
    "selective": ("model.backbone.checkpointing=selective",),
    "beside": ("model.backbone.adapter_placement=beside",),
}
WHOSE: dict[str, tuple[str, ...]] = {
    FORWARD: (THEIRS, "blocks", "beside"),
    STEP: (THEIRS, *VARIANTS),
    TRAINING: (THEIRS, *VARIANTS),
}
COLUMNS = (
    "precision",
    "work",
    "whose",
    "CPU",
    "of OpenTAD's",
    "clock",
    "of OpenTAD's",
    "frames/s",
    "peak MiB",
    "of OpenTAD's",
)


class Row(NamedTuple):
    precision: Precision
    what: str
    whose: str


def configuration_of(folder: str | Path, whose: str, precision: Precision, *, size: str, frames: int) -> Config:
    """BiTAD's configuration of a variant: the published recipe, with random weights and without change of colours."""
    overrides = (
        *VARIANTS[whose],
        f"training.precision={precision}",
        "training.augmentation.colour=0",
        "training.windows_per_video=1",
        "model.backbone.weights=null",
        "model.backbone.random=true",
    )
    return override_config(configuration(folder, size=size, frames=frames, pixels=PIXELS), overrides)


def ours(config: Config) -> Detector:
    """BiTAD's network."""
    network = build_network(config, len(CLASSES))
    assert isinstance(network, Detector)
    return network


def our_backbone(config: Config) -> nn.Module:
    """BiTAD's backbone alone, whose adapters train."""
    model = config.model.backbone
    assert model is not None
    network = BACKBONES[model.type](model, config)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(is_adapter(name))
    return network


def window_of(frames: int) -> Tensor:
    """Random pixels, ``[1, T, H, W, 3]``."""
    return torch.randint(256, (1, frames, PIXELS, PIXELS, 3), dtype=torch.uint8)


def in_their_order(window: Tensor) -> Tensor:
    """Frames ``[B, T, H, W, 3]`` -> ``[B, 1, 3, T, H, W]``."""
    return window.permute(0, 4, 1, 2, 3).unsqueeze(1).contiguous()


def truth_of(frames: int) -> tuple[list[Tensor], list[Tensor]]:
    """Segments and labels of two actions."""
    return [torch.tensor([[0.1, 0.3], [0.5, 0.9]]) * frames], [torch.tensor([0, 1])]


def backbone(
    clone: str, threads: int, *, what: str, whose: str, precision: Precision, size: str, frames: int
) -> Measured:
    """A forward pass or a training step of a backbone on one window, after a warm-up."""
    network: nn.Module
    window = window_of(frames)
    if whose == THEIRS:
        torch.set_num_threads(threads)
        network, window = Backbone(Path(clone), settings_of(Path(clone), size, frames)), in_their_order(window)
    else:
        set_up_process(threads)
        network = our_backbone(configuration_of(".", whose, precision, size=size, frames=frames))
        hold_frozen(network, precision)

    def features() -> Tensor:
        with autocast(CPU, precision):
            out: Tensor = network(window)
        return out

    def step() -> None:
        features().square().mean().backward()

    return _measured(network, features if what == FORWARD else step, what, frames)


def detector(
    clone: str, threads: int, *, what: str, whose: str, precision: Precision, size: str, frames: int
) -> Measured:
    """A forward pass or a training step of a detector on one window, after a warm-up."""
    if whose == THEIRS:
        torch.set_num_threads(threads)
        network, run = _their_detector(Path(clone), what, precision, size, frames)
    else:
        set_up_process(threads)
        config = configuration_of(".", whose, precision, size=size, frames=frames)
        network, run = _our_detector(config, what)
    return _measured(network, run, what, frames)


def _their_detector(
    clone: Path, what: str, precision: Precision, size: str, frames: int
) -> tuple[nn.Module, Callable[[], object]]:
    settings = settings_of(clone, size, frames)
    network = build_detector(clone, settings)
    if what == FORWARD:
        return network, partial(their_proposals, network, window_of(frames), precision)
    segments, labels = truth_of(frames)
    data = {
        "inputs": in_their_order(window_of(frames)),
        "masks": torch.ones(1, frames, dtype=torch.bool),
        "metas": [{}],
        "gt_segments": segments,
        "gt_labels": labels,
    }
    return network, partial(TrainingStep(clone, network, settings, precision), data)


def _our_detector(config: Config, what: str) -> tuple[nn.Module, Callable[[], object]]:
    network, frames = ours(config), config.window.steps
    if what == FORWARD:
        hold_frozen(network, config.test_precision)
        return network, partial(our_proposals, network, window_of(frames), config.test_precision)
    with process_group("cpu") as ranks:
        step = TrainStep(network, config, ranks, num_classes=len(CLASSES), steps_per_epoch=100)
    hold_frozen(network, config.training.precision)
    segments, labels = truth_of(frames)
    mask, grids = torch.ones(1, frames, dtype=torch.bool), [Grid(1.0, 1.0, 0.0, frames)]
    batch = Batch(window_of(frames), mask, segments, labels, grids, ["random"])
    return network, partial(_take_step, step, batch)


def their_proposals(network: Any, window: Tensor, precision: Precision) -> tuple[Tensor, Tensor]:
    """Segments and scores of all points of one window."""
    with autocast(CPU, precision):
        mask = torch.ones(window.shape[:2], dtype=torch.bool)
        (segments,), (scores,) = network.forward_test(in_their_order(window), mask)
    return segments, scores


def our_proposals(network: Detector, window: Tensor, precision: Precision) -> tuple[Tensor, Tensor]:
    """Segments and scores of all points of one window."""
    with autocast(CPU, precision):
        logits, distances, mask, points = network.predict(window, torch.ones(window.shape[:2], dtype=torch.bool))
    return points.segments(distances)[mask], logits.sigmoid()[mask]


def _measured(network: nn.Module, run: Callable[[], object], what: str, frames: int) -> Measured:
    network.train(what == STEP)
    with torch.inference_mode(what == FORWARD):
        run()
        return Measured(timed(run), frames, "frames")


def training(
    clone: str,
    threads: int,
    *,
    what: str,
    whose: str,
    precision: Precision,
    size: str,
    frames: int,
    folder: str,
) -> Measured:
    """An epoch of training on the videos of :func:`make_videos`, from the files to updated weights."""
    if whose == THEIRS:
        torch.set_num_threads(threads)
        batches, step = _their_training(Path(clone), Path(folder), precision, size, frames)
    else:
        set_up_process(threads)
        batches, step = _our_training(configuration_of(folder, whose, precision, size=size, frames=frames))

    def epoch() -> None:
        for batch in batches:
            step(batch)

    return Measured(timed(epoch), len(batches) * frames, "frames")


def _their_training(
    clone: Path, folder: Path, precision: Precision, size: str, frames: int
) -> tuple[DataLoader[Any], Callable[[Any], object]]:
    from opentad_videos import build_loader  # needs decord and OpenCV

    settings = settings_of(clone, size, frames)
    network = build_detector(clone, settings).train()
    step = TrainingStep(clone, network, settings, precision)
    return build_loader(clone, folder, settings, frames=frames), step


def _our_training(config: Config) -> tuple[DataLoader[Any], Callable[[Any], object]]:
    with process_group("cpu") as ranks:
        trainer = Trainer(config, ranks)
    hold_frozen(trainer.network, config.training.precision)
    trainer.train_step.train()
    return trainer.loader, partial(_take_step, trainer.train_step)


def _take_step(step: TrainStep, batch: Batch) -> None:
    step([batch])
    step.advance()


def make_videos(folder: Path, *, frames: int, count: int) -> None:
    """Writes one H.264 video, under the names of ``count`` training videos and a test video, with an action."""
    length = frames_of_video(frames)
    render(folder / "videos" / "video.mp4", length)
    names = {f"train_{i}": ("training", length) for i in range(count)} | {"test": ("validation", length)}
    for name in names:
        (folder / "videos" / f"{name}.mp4").symlink_to("video.mp4")
    annotate(folder, names)


def agreement(clone: str, threads: int, *, size: str, precisions: Sequence[Precision]) -> Measured:
    """The differences to OpenTAD in fp32, relative to the largest value, with the same random weights.

    Returns:
        those of features, segments and scores, by precision and whose, as ``facts``.
    """
    set_up_process(threads)
    torch.manual_seed(0)
    began, frames = now(), 32
    theirs: Any = build_detector(Path(clone), settings_of(Path(clone), size, frames)).eval()
    for name, parameter in theirs.named_parameters():
        if "adapter" in name or not name.startswith("backbone."):
            parameter.data += 0.05 * torch.randn_like(parameter)
    mine: Any = ours(configuration_of(".", "blocks", "fp32", size=size, frames=frames)).eval()
    load_weights(mine, Weights.of(theirs.state_dict()).tensors, source=THEIRS)
    window = window_of(frames)

    def outputs(whose: str, precision: Precision) -> tuple[Tensor, ...]:
        if whose == THEIRS:
            network, inputs, propose = theirs, in_their_order(window), their_proposals
        else:
            network, inputs, propose = mine, window, our_proposals
        with autocast(CPU, precision):
            features = network.backbone(inputs)
        return features, *propose(network, window, precision)

    facts: dict[str, dict[str, list[float]]] = {}
    with torch.inference_mode():
        wanted = outputs(THEIRS, "fp32")
        for precision in dict.fromkeys(("fp32", *precisions)):
            hold_frozen(mine, precision)
            for whose in (THEIRS, OURS):
                pairs = zip(outputs(whose, precision), wanted, strict=True)
                apart = [float((one - other).abs().max() / other.abs().max()) for one, other in pairs]
                facts.setdefault(precision, {})[whose] = apart
    return Measured(now() - began, frames, "frames", facts=facts)


class Mode(NamedTuple):
    """What is measured: a workload of this module, and its kinds of work."""

    title: str
    work: Callable[..., Measured]
    works: tuple[str, ...]


ALONE = Mode("AdaTAD's backbone in OpenTAD and in BiTAD", backbone, (FORWARD, STEP))
WHOLE = Mode("AdaTAD, the whole detector, in OpenTAD and in BiTAD", detector, (FORWARD, STEP))
END_TO_END = Mode("Training of AdaTAD from video files in OpenTAD and in BiTAD", training, (TRAINING,))


def table_of(title: str, best: Mapping[Row, Alone], *, notes: Sequence[str]) -> Table:
    """The cost of each, beside OpenTAD's at the same work in the same precision."""
    rows: list[tuple[Cell, ...]] = []
    for row, done in best.items():
        took, theirs = done.measured.took, best[row._replace(whose=THEIRS)]
        reference = theirs.measured.took
        rows.append(
            (
                row.precision,
                row.what,
                THEIRS if row.whose == THEIRS else f"{OURS}, {row.whose}",
                seconds(took.cpu_s),
                took.cpu_s / reference.cpu_s,
                seconds(took.wall_s),
                took.wall_s / reference.wall_s,
                f"{done.measured.amount / took.wall_s:.3g}",
                round(done.peak_mib),
                done.peak_mib / theirs.peak_mib,
            )
        )
    return Table(title, COLUMNS, tuple(rows), tuple(notes))


def measure(
    mode: Mode,
    rows: Sequence[Row],
    given: Mapping[str, Any],
    *,
    rounds: int,
    on_row: Callable[[Mapping[Row, Alone]], None],
) -> dict[Row, Alone]:
    """The best of all rounds for each row, which alternate; ``on_row`` is given the best until then."""
    best: dict[Row, Alone] = {}
    with Meter("measuring", rounds * len(rows)) as meter:
        for row in [*rows] * rounds:
            done = alone(mode.work, {**given, **row._asdict()}, threads=given["threads"])
            least = best.setdefault(row, done)
            if done.measured.took.cpu_s < least.measured.took.cpu_s:
                best[row] = done
            on_row(best)
            meter.advance(1, ", ".join(row))
    return best


def write_figures(path: Path | None, apart: Mapping[str, Any], best: Mapping[Row, Alone]) -> None:
    """Replaces the JSON file, if one was given."""
    if path is None:
        return
    figures = {
        ", ".join(row): {
            **one.measured.took._asdict(),
            "frames_per_s": one.measured.amount / one.measured.took.wall_s,
            "peak_mib": one.peak_mib,
        }
        for row, one in best.items()
    }
    write_json({"apart": apart, "measured": figures}, path)


def notes_of(apart: Mapping[str, Mapping[str, Sequence[float]]], *, size: str, frames: int) -> Iterator[str]:
    """What was measured, and how far the results of both are apart."""
    yield f"VideoMAE-{size.upper()} with adapters, windows of {frames} frames of {PIXELS}x{PIXELS}, one at a time."
    what = "the largest difference of features, segments and scores, relative to the largest value"
    for precision, of in apart.items():
        if precision == "fp32":
            yield f"The same weights, fp32: {what}, is {_in_words(of[OURS])}."
        else:
            both = " and ".join(f"{_in_words(of[whose])} in {whose}" for whose in (THEIRS, OURS))
            yield f"In {precision}, beside OpenTAD in fp32: {both}."


def _in_words(differences: Sequence[float]) -> str:
    return ", ".join(f"{difference:.0e}" for difference in differences)


def parser() -> ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("clone", type=Path, help="of OpenTAD")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32"])
    parser.add_argument("--frames", type=int, default=768, help="of a window, a multiple of 32 (default: 768)")
    parser.add_argument("--rounds", type=int, default=2)
    modes = parser.add_mutually_exclusive_group()
    for flag, mode in (("--whole", WHOLE), ("--end-to-end", END_TO_END)):
        modes.add_argument(flag, dest="mode", action="store_const", const=mode, default=ALONE, help=mode.title)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    mode: Mode = options.mode
    try:
        if not (options.clone / FILE).exists():
            raise FailedError(f"{options.clone} is not a clone of OpenTAD: it has no {FILE}")
        if mode is END_TO_END and not all(map(importlib.util.find_spec, ("cv2", "decord"))):
            raise FailedError("OpenTAD reads with OpenCV and decord; pip install decord opencv-python-headless")
        size, frames, windows = ("tiny", 32, 2) if options.quick else ("s", options.frames, 3)
        given = {"clone": str(options.clone.resolve()), "threads": options.threads, "size": size}
        compared = alone(agreement, {**given, "precisions": options.precision}, threads=options.threads)
        apart = compared.measured.facts
        if (most := max(apart["fp32"][OURS])) > 1e-4:
            raise FailedError(f"the results differ by {most:.1e}, so the costs cannot be compared")
        rows = [
            Row(precision, what, whose)
            for precision in options.precision
            for what in mode.works
            for whose in WHOSE[what]
        ]
        with tempfile.TemporaryDirectory() as folder:
            given["frames"] = frames
            if mode is END_TO_END:
                make_videos(Path(folder), frames=frames, count=windows)
                given["folder"] = folder
            on_row = partial(write_figures, options.json, apart)
            best = measure(mode, rows, given, rounds=options.rounds, on_row=on_row)
    except FailedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    notes = (
        *notes_of(apart, size=size, frames=frames),
        f"{machine()}, {options.threads} threads; the best of {options.rounds} in turns. In the peak: Python, PyTorch.",
    )
    print(table_of(mode.title, best, notes=notes).text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
