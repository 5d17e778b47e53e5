"""A training run: from a configuration to a run directory with checkpoints, metrics and a log."""

from __future__ import annotations

import json
import logging
import math
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler

import bitad
from bitad.config import Config
from bitad.data.annotations import read_annotations
from bitad.data.dataset import Batch, TrainingWindows, build_source, collate
from bitad.data.detections import write_detections
from bitad.data.files import replacing, write_json
from bitad.data.transforms import recolour
from bitad.evaluation.mean_average_precision import Evaluation, evaluate
from bitad.inference.detect import detect
from bitad.models.build import build_detector, load_pretrained
from bitad.progress import Meter
from bitad.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from bitad.training.distributed import Processes
from bitad.training.ema import Ema
from bitad.training.losses import DetectionLoss, Losses
from bitad.training.optimizer import LearningRates, build_optimizer, build_schedule
from bitad.training.targets import assign

log = logging.getLogger("bitad")
STEPS_BETWEEN_RECORDS = 10
# A resumed run may change these: its results do not depend on them.
WITHOUT_EFFECT = ("threads ", "output ", "training.workers ")


class EpochSampler(Sampler[list[int]]):
    """This rank's batches of an epoch: one order for all ranks, drawn from (seed, epoch), dealt out in turn.

    Every rank gets the same number of batches; the windows left over by an uneven division sit out this epoch.
    """

    def __init__(self, windows: int, batch: int, team: Processes, seed: int) -> None:
        self.windows, self.batch, self.team, self.seed, self.epoch = windows, batch, team, seed, 0
        if len(self) == 0:
            raise ValueError(
                f"{windows} training windows an epoch do not fill one batch of {batch} on {team.world} processes; "
                "lower training.batch or raise training.windows_per_video"
            )

    def __len__(self) -> int:
        return self.windows // (self.batch * self.team.world)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.windows)
        effective = self.batch * self.team.world
        for start in range(0, len(self) * effective, effective):
            mine = order[start : start + effective][self.team.rank :: self.team.world]
            yield [int(i) for i in mine]


class Trainer:
    """One run of a configuration, new or resumed.

    Args:
        config: what to run.
        team: the processes of the run.
        resume: go on from the run directory's `last.pt`; without it an existing run is never overwritten.

    Raises:
        ValueError, FileNotFoundError: for whatever of data, weights or checkpoint does not fit, before training starts.
    """

    def __init__(self, config: Config, team: Processes, *, resume: bool = False) -> None:
        self.config, self.team = config, team
        self.directory = config.run_directory
        self.last = self.directory / "last.pt"
        saved = self._saved_run() if resume else None
        if not resume and self.last.exists():
            raise ValueError(
                f"run {self.directory} exists; go on with --resume, or choose another name, seed or output"
            )
        self.annotations = read_annotations(config.data.annotations, classes=config.data.classes)
        self.test_annotations = self.annotations.subset(config.data.test_subset)
        self.source = build_source(config)
        self.windows = TrainingWindows(self.annotations.subset(config.data.training_subset), self.source, config)
        self.sampler = EpochSampler(len(self.windows), config.training.batch, team, config.seed)
        torch.manual_seed(config.seed)  # every rank starts from the same weights
        self.detector = build_detector(config, len(self.annotations.classes))
        load_pretrained(self.detector, config)
        torch.manual_seed(config.seed + 1000003 * team.rank)  # and drops other things
        self.detector.to(team.device)
        training = config.training
        self.loss = DetectionLoss(
            label_smoothing=training.label_smoothing,
            initial_normaliser=training.loss_normaliser,
            processes=team.world,
            total=team.total,
        ).to(team.device)
        self.rates = LearningRates(
            training.lr, training.adapter_lr, training.reference_batch, training.batch * team.world
        )
        self.optimizer = build_optimizer(self.detector, self.rates, weight_decay=training.weight_decay)
        self.schedule = build_schedule(
            self.optimizer,
            warmup_steps=round(training.warmup_epochs * len(self.sampler)),
            total_steps=(training.schedule_epochs or training.epochs) * len(self.sampler),
        )
        self.ema = Ema(self.detector, decay=training.ema_decay)
        self.epoch, self.step, self.best = 0, 0, -math.inf
        self.loader = DataLoader(
            self.windows,
            batch_sampler=self.sampler,
            num_workers=training.workers,
            collate_fn=partial(collate, length=config.window.steps),
            persistent_workers=training.workers > 0,
            pin_memory=team.device.type == "cuda",
            # A loader draws a seed for its workers each time it begins; a resumed run's begins more often.
            generator=torch.Generator(),
        )
        if saved is not None:
            self._restore(saved)

    def run(self, *, until: int | None = None) -> float:
        """Trains to the last epoch, or to the end of epoch number ``until``.

        Returns:
            the best average mAP of the evaluations so far, from 0 to 1.
        """
        self._begin()
        end = self.config.training.epochs if until is None else min(self.config.training.epochs, until)
        model = self.team.wrap(self.detector)
        while self.epoch < end:
            self._train_epoch(model)
            self.epoch += 1
            checkpoint = self._checkpoint()
            if self._evaluation_is_due():
                evaluation = self._evaluate()
                checkpoint.evaluation = evaluation.to_json()
                if evaluation.average_map > self.best:
                    self.best = evaluation.average_map
                    self._save(checkpoint, self.directory / "best.pt", for_resume=False)
            self._save(checkpoint, self.last, for_resume=True)
        return self.best

    def _evaluation_is_due(self) -> bool:
        training = self.config.training
        if self.epoch == training.epochs:
            return True
        return self.epoch > training.evaluate_from and self.epoch % training.evaluate_every == 0

    def _train_epoch(self, model: nn.Module) -> None:
        self.windows.set_epoch(self.epoch)
        self.sampler.epoch = self.epoch
        model.train()
        self.loss.train()
        what = f"epoch {self.epoch + 1} of {self.config.training.epochs}"
        with Meter(what, len(self.loader), show=self.team.is_main) as meter:
            for batch in self.loader:
                losses, norm = self._train_step(model, batch)
                self.step += 1
                meter.advance(note=f"loss {losses.total.item():.3f}")
                if self.step % STEPS_BETWEEN_RECORDS == 0:
                    self._record_step(losses, norm)
                self.schedule.step()

    def _train_step(self, model: nn.Module, batch: Batch) -> tuple[Losses, float]:
        """One step of gradient descent; the losses and the gradient's norm before clipping."""
        losses = self.compute_losses(model, batch)
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        trainable = [p for p in self.detector.parameters() if p.requires_grad]
        norm = float(nn.utils.clip_grad_norm_(trainable, self.config.training.clip_norm))
        if not math.isfinite(norm):
            raise ValueError(
                f"loss {losses.total.item()} has a gradient that is not finite at step {self.step} (videos "
                f"{', '.join(batch.videos)}); resume from {self.last} with a lower training.lr"
            )
        self.optimizer.step()
        self.ema.update(self.detector)
        return losses, norm

    def compute_losses(self, model: nn.Module, batch: Batch) -> Losses:
        """The losses of a batch under the model's present weights."""
        device = self.team.device
        inputs = batch.inputs.to(device, non_blocking=True)
        if batch.colour is not None:
            inputs = recolour(inputs, batch.colour.to(device, non_blocking=True))
        prediction = model(inputs, batch.mask.to(device, non_blocking=True))
        targets = assign(
            prediction.points,
            [segments.to(device) for segments in batch.segments],
            [labels.to(device) for labels in batch.labels],
            len(self.annotations.classes),
            radius=self.config.training.centre_radius,
        )
        losses: Losses = self.loss(prediction, targets)
        return losses

    def _evaluate(self) -> Evaluation:
        """Tests the averaged weights on the test subset."""
        began = time.monotonic()
        self.detector.eval()
        with self.ema.applied(self.detector):
            details = {"run": str(self.directory), "epoch": self.epoch, "direction": self.config.direction}
            detections = detect(
                self.detector, self.test_annotations, self.source, self.config, self.team, details=details
            )
        evaluation = evaluate(self.test_annotations, detections, tiou=self.config.test.tiou)
        if self.team.is_main:
            if evaluation.average_map > self.best:
                write_detections(detections, self.directory / "detections.json")
            self._record(
                {
                    "kind": "evaluation",
                    "epoch": self.epoch,
                    "step": self.step,
                    "average_map": evaluation.average_map,
                    "map_per_tiou": evaluation.map_per_tiou.tolist(),
                    "seconds": time.monotonic() - began,
                }
            )
            log.info("epoch %d: average mAP %.2f", self.epoch, 100 * evaluation.average_map)
        return evaluation

    def _begin(self) -> None:
        """The run directory and the first lines of its log."""
        if not self.team.is_main:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        self._forget_after(self.step)
        with replacing(self.directory / "config.yaml") as partial_file:
            partial_file.write_text(self.config.to_yaml(), encoding="utf-8")
        write_json(environment(self.team), self.directory / "environment.json")
        trainable = sum(p.numel() for p in self.detector.parameters() if p.requires_grad)
        total = sum(p.numel() for p in self.detector.parameters())
        log.info("run %s, epochs %d to %d", self.directory, self.epoch + 1, self.config.training.epochs)
        log.info("%d parameters, of which %d train", total, trainable)
        log.info("%s", self.rates)
        log.info(
            "%d training videos, %d windows and %d steps an epoch; %d test videos",
            len(self.windows.videos),
            len(self.windows),
            len(self.sampler),
            len(self.test_annotations.videos),
        )
        if self.windows.skipped:
            log.info("training videos without ground truth, left out: %s", ", ".join(self.windows.skipped))

    def _record_step(self, losses: Losses, norm: float) -> None:
        figures = torch.stack([loss.detach() for loss in losses])
        figures = torch.stack([torch.as_tensor(other) for other in self.team.gather(figures.cpu())]).mean(0)
        if not self.team.is_main:
            return
        classification, regression, total = figures.tolist()
        self._record(
            {
                "kind": "training",
                "epoch": self.epoch,
                "step": self.step,
                "loss": total,
                "classification": classification,
                "regression": regression,
                "gradient_norm": norm,
                "lr": self.optimizer.param_groups[0]["lr"],
            }
        )

    def _record(self, record: dict[str, Any]) -> None:
        with (self.directory / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def _checkpoint(self) -> Checkpoint:
        """Of the present moment: averaged weights to test with; raw ones and the rest to go on with."""
        state = dict(self.detector.state_dict())
        raw = {name: state[name] for name in self.ema.average}
        return Checkpoint(
            config=self.config,
            classes=self.annotations.classes,
            model={**state, **self.ema.average},
            epoch=self.epoch,
            rate_hz=self.windows.median_rate_hz(),
            training={
                "step": self.step,
                "best": self.best,
                "world": self.team.world,
                "raw": raw,
                "loss": self.loss.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "ema_updates": self.ema.updates,
                "rng": self.team.gather(self._rng()),
            },
        )

    def _save(self, checkpoint: Checkpoint, path: Path, *, for_resume: bool) -> None:
        if checkpoint.training is not None:
            checkpoint.training["best"] = self.best
        if self.team.is_main:
            kept = checkpoint if for_resume else Checkpoint(**{**vars(checkpoint), "training": None})
            save_checkpoint(kept, path)

    def _rng(self) -> dict[str, torch.Tensor]:
        state = {"cpu": torch.get_rng_state()}
        if self.team.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.team.device)
        return state

    def _saved_run(self) -> Checkpoint:
        if not self.last.exists():
            raise FileNotFoundError(f"no run to resume: {self.last} does not exist; start it without --resume")
        saved = load_checkpoint(self.last)
        if saved.training is None:
            raise ValueError(f"{self.last} holds weights only and cannot be resumed")
        before, now = saved.config.model_dump(mode="json"), self.config.model_dump(mode="json")
        changed = [change for change in sorted(_differences(before, now)) if not change.startswith(WITHOUT_EFFECT)]
        if changed:
            raise ValueError(
                f"the configuration is not that of run {self.directory}: {'; '.join(changed)}; "
                "resume with the run's own, or start another run"
            )
        return saved

    def _restore(self, saved: Checkpoint) -> None:
        if saved.classes != self.annotations.classes:
            raise ValueError(f"{self.last} was trained on the classes {saved.classes}, not {self.annotations.classes}")
        training = saved.training
        assert training is not None
        self.detector.load_state_dict({**saved.model, **training["raw"]})
        self.loss.load_state_dict(training["loss"])
        self.optimizer.load_state_dict(training["optimizer"])
        self.schedule.load_state_dict(training["schedule"])
        average = {name: saved.model[name] for name in self.ema.average}
        self.ema.load_state_dict({"updates": training["ema_updates"], "average": average})
        self.epoch, self.step, self.best = saved.epoch, training["step"], training["best"]
        if training["world"] == self.team.world:
            rng = training["rng"][self.team.rank]
            torch.set_rng_state(rng["cpu"])
            if "cuda" in rng and self.team.device.type == "cuda":
                torch.cuda.set_rng_state(rng["cuda"], self.team.device)
        else:
            log.info(
                "the run had %d processes and now has %d: its random numbers go on anew",
                training["world"],
                self.team.world,
            )

    def _forget_after(self, step: int) -> None:
        """Drops the records of later steps, of a run that died (half a line at the end, too): they are made again."""
        path = self.directory / "metrics.jsonl"
        if path.exists():
            whole = path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
            lines = [line for line in whole if json.loads(line)["step"] <= step]
            with replacing(path) as partial_file:
                partial_file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def environment(team: Processes) -> dict[str, Any]:
    """What a run was made with."""
    return {
        "bitad": bitad.__version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": torch.cuda.get_device_name(team.device) if team.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "processes": team.world,
        "command": sys.argv[1:],
    }


def _differences(before: dict[str, Any], now: dict[str, Any], path: str = "") -> Iterator[str]:
    """The keys in which two resolved configurations differ, with both values."""
    for key in now:
        old, new = before.get(key), now[key]
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{path}{key}.")
        elif old != new:
            yield f"{path}{key} was {old}, is {new}"


def set_up_logging(directory: Path | None, *, show: bool = True) -> None:
    """The project's log: lines on standard error, and in `log.txt` of a run directory if one is given."""
    handlers: Sequence[logging.Handler] = [logging.StreamHandler()] if show else []
    if directory is not None and show:
        directory.mkdir(parents=True, exist_ok=True)
        handlers = [*handlers, logging.FileHandler(directory / "log.txt", encoding="utf-8")]
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    for handler in log.handlers:
        handler.close()
    log.handlers = list(handlers)
    log.setLevel(logging.INFO)
    log.propagate = False


def set_threads(threads: int | None) -> None:
    """CPU threads of this process, where the configuration says so; torchrun's and the environment's otherwise."""
    if threads is not None:
        torch.set_num_threads(threads)
