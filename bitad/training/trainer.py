"""A training run: from a configuration to a run directory with checkpoints, metrics and a log."""

from __future__ import annotations

import itertools
import math
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from bitad.config.schema import Config
from bitad.data.dataset import Batch, TrainingWindows, collate
from bitad.data.fingerprints import fingerprints
from bitad.data.sources import build_source, read_ground_truth, read_test_ground_truth
from bitad.evaluation.mean_average_precision import Evaluation, evaluate
from bitad.inference.detect import DETECTION_FILES, detect
from bitad.inference.validate import validate_data
from bitad.models.build import build_network
from bitad.runtime.distributed import Ranks, full_tensor, process_group
from bitad.runtime.environment import (
    ENVIRONMENT,
    environment,
    log_repeated_frames,
    log_skipped_windows,
    set_up_process,
)
from bitad.runtime.files import atomic_write, check_replaceable, remove_leftovers, write_json
from bitad.runtime.log import LOG_FILE, log
from bitad.runtime.progress import Meter
from bitad.runtime.signals import Stop, Stopped, catch_signals, ignore_signals
from bitad.training.checkpoints import (
    CheckpointManager,
    check_data,
    load_initial,
    load_saved_weights,
    lock_run,
    random_state,
    saved_run,
    set_random_state,
)
from bitad.training.metrics import METRICS, Records
from bitad.training.sampler import EpochSampler
from bitad.training.step import StepOutput, TrainStep
from bitad.video.indexing import INDEX_FOLDER, IndexCache
from bitad.weights.checkpoint import Checkpoint
from bitad.weights.loading import load_pretrained, require_pretrained

STEPS_BETWEEN_RECORDS = 10


class Trainer:
    """One run of a configuration, new or resumed.

    Args:
        config: what to run.
        ranks: the processes of the run.
        resume: go on from the run directory's `last.pt`; without it an existing run is never overwritten.
        allow_changed_data: resume although annotations, features or videos have changed since, and log what has.

    Raises:
        ValueError, FileNotFoundError: for whatever of data, weights or checkpoint does not fit, before training starts.
    """

    def __init__(self, config: Config, ranks: Ranks, *, resume: bool = False, allow_changed_data: bool = False) -> None:
        self.config, self.ranks = config, ranks
        self.directory = config.run_directory
        self.keeper = CheckpointManager(self.directory, config.training.keep_last)
        self.records = Records(self.directory, ranks)
        written = ("config.yaml", ENVIRONMENT, LOG_FILE, METRICS, *DETECTION_FILES)
        check_replaceable([*self.keeper.files, *(self.directory / name for name in written)])
        saved = saved_run(self.keeper, config) if resume else None
        if not resume and self.keeper.exists:
            raise self.keeper.in_the_way()
        if saved is None:
            require_pretrained(config)
        self.annotations = read_ground_truth(config.data)
        self.test_annotations = read_test_ground_truth(config)
        self.indices = IndexCache(self.directory / INDEX_FOLDER)
        self.source = build_source(config, self.indices)
        self.windows = TrainingWindows(self.annotations.subset(config.data.training_subset), self.source, config)
        found = fingerprints(config, self.windows.videos, self.test_annotations) if ranks.is_main else {}
        self.fingerprints = ranks.gather(found)[0]
        if saved is not None:
            check_data(saved, self.fingerprints, allow=allow_changed_data, show=ranks.is_main)
        validate_data(self.windows, self.test_annotations, self.source, self.indices, config, ranks)
        self.sampler = EpochSampler(
            len(self.windows), config.training.batch, ranks, config.seed, accumulate=config.training.accumulate
        )
        torch.manual_seed(config.seed)  # every rank starts from the same weights
        self.network = build_network(config, len(self.annotations.classes))
        if saved is None:
            self._load_first_weights()
        else:
            load_saved_weights(self.network, saved, self.annotations.classes)
        torch.manual_seed(config.seed + 1000003 * ranks.rank)  # and drops other things
        self.network.to(ranks.device)
        self.network.share_frozen()
        self.train_step = TrainStep(
            self.network,
            config,
            ranks,
            num_classes=len(self.annotations.classes),
            steps_per_epoch=self.sampler.steps,
        )
        # Finished epochs, steps of the present one, steps of all; whether the last finished epoch is yet to be tested.
        self.epoch, self.done, self.step, self.best, self.untested = 0, 0, 0, -math.inf, False
        self.nonfinite_steps = 0
        self.stop = Stop()
        self.loader = DataLoader(
            self.windows,
            batch_sampler=self.sampler,
            num_workers=config.training.workers,
            collate_fn=partial(collate, length=config.window.steps),
            persistent_workers=config.training.workers > 0,
            worker_init_fn=ignore_signals,
            pin_memory=ranks.device.type == "cuda",
            # A loader draws a seed for its workers each time it begins; a resumed run's begins more often.
            generator=torch.Generator(),
        )
        if saved is not None:
            self._restore(saved)

    def _load_first_weights(self) -> None:
        if self.config.plan.starts_from == "backbone":
            load_pretrained(self.network, self.config)
        else:
            load_initial(self.network, self.config, self.annotations.classes)

    def run(self, *, until: int | None = None) -> float:
        """Trains to the last epoch, or to the end of epoch number ``until``.

        Returns:
            the best average mAP of the evaluations so far, from 0 to 1.

        Raises:
            Stopped: by SIGTERM or SIGINT, behind the step at which it came, with a checkpoint to go on from.
        """
        self._begin()
        end = self.config.training.epochs if until is None else min(self.config.training.epochs, until)
        with catch_signals() as self.stop:
            if self.untested:
                self._test_epoch(self._checkpoint())
            while self.epoch < end:
                self._train_epoch()
                self.epoch, self.done = self.epoch + 1, 0
                self.untested = self._evaluation_is_due()
                checkpoint = self._checkpoint()
                self._save(checkpoint)  # before testing, which may take as long
                if self.untested:
                    self._test_epoch(checkpoint)
        return self.best

    def _test_epoch(self, checkpoint: Checkpoint) -> None:
        """Tests the epoch that has ended, whose checkpoint is written again with what was found."""
        with self.stop.interruptible(f"while testing epoch {self.epoch}; go on from {self.keeper.last} with --resume"):
            evaluation = self._evaluate()
        checkpoint.evaluation = evaluation.to_json()
        if evaluation.average_map > self.best:
            self.best = evaluation.average_map
            if self.ranks.is_main:
                self.keeper.save_best(checkpoint)
        self.untested = False
        self._save(checkpoint, again=True)

    def _evaluation_is_due(self) -> bool:
        training = self.config.training
        if self.epoch == training.epochs:
            return True
        return self.epoch > training.evaluate_from and self.epoch % training.evaluate_every == 0

    def _train_epoch(self) -> None:
        self.windows.set_epoch(self.epoch)
        self.sampler.epoch, self.sampler.done = self.epoch, self.done
        self.train_step.train()
        what = f"epoch {self.epoch + 1} of {self.config.training.epochs}"
        repeated, skipped = 0, Counter[str]()
        with (
            self.windows.readers.watched(),
            Meter(what, self.sampler.steps - self.done, show=self.ranks.is_main) as meter,
        ):
            batches = iter(self.loader)
            while parts := list(itertools.islice(batches, self.config.training.accumulate)):
                step = self._step(parts)
                self.step, self.done = self.step + 1, self.done + 1
                repeated += sum(batch.repeated for batch in parts)
                skipped.update(one for batch in parts for one in batch.skipped)
                meter.advance(note=f"loss {sum(losses.total.item() for losses in step.losses.values()):.3f}")
                if self.step == 1 or self.step % STEPS_BETWEEN_RECORDS == 0:
                    self.records.add_step(step, epoch=self.epoch, number=self.step, lr=self.train_step.lr)
                self.train_step.advance()
                self._keep_step()
        log_repeated_frames(repeated, what, self.ranks)
        log_skipped_windows(skipped, what, self.ranks)

    def _keep_step(self) -> None:
        """A checkpoint within the epoch, where one is due; and the end of the run, where any process is to stop.

        Raises:
            Stopped: it is.
        """
        # Whichever process was asked: all stop behind the same step.
        asked = int(self.ranks.total(torch.tensor(self.stop.asked, device=self.ranks.device))) and (
            self.stop.asked or int(signal.SIGTERM)
        )
        every = self.config.training.checkpoint_steps
        if asked or (every is not None and self.step % every == 0):
            self._save(self._checkpoint())
        if asked:
            where = f"behind step {self.done} of {self.sampler.steps} of epoch {self.epoch + 1}"
            raise Stopped(asked, f"{where}; go on from {self.keeper.last} with --resume")

    def _step(self, batches: Sequence[Batch]) -> StepOutput:
        """One step of gradient descent; one that cannot be taken is left out.

        Raises:
            ValueError: there were too many of these in a row.
        """
        step = self.train_step(batches)
        if step.fault is None:
            self.nonfinite_steps = 0
            return step
        self.nonfinite_steps += 1
        videos = ", ".join(video for batch in batches for video in batch.videos)
        loss = sum(one.total.item() for one in step.losses.values())
        said = f"{step.fault} at step {self.step}, with a loss of {loss} (videos {videos})"
        if self.nonfinite_steps < self.config.training.max_nonfinite_steps:
            log.warning("%s; left out", said)
            return step
        saved = f"{self.keeper.last} is as it was before" if self.keeper.exists else "nothing is saved yet"
        raise ValueError(
            f"{said}; {saved}; look at these videos and go on with --resume, or start another run with a lower "
            "training.lr"
        )

    def _evaluate(self) -> Evaluation:
        """Tests the averaged weights on the test subset."""
        began = time.monotonic()
        with self.train_step.averaged_network() as network:
            details = {"run": str(self.directory), "epoch": self.epoch, "variant": self.config.variant}
            results = detect(network, self.test_annotations, self.source, self.config, self.ranks, details=details)
        evaluations = {
            name: evaluate(self.test_annotations, found, tiou=self.config.test.tiou)
            for name, found in results.named().items()
        }
        *bases, (_, evaluation) = evaluations.items()
        if self.ranks.is_main:
            if evaluation.average_map > self.best:
                results.write(self.directory)
            self.records.add(
                {
                    "kind": "evaluation",
                    "epoch": self.epoch,
                    "step": self.step,
                    "average_map": evaluation.average_map,
                    "map_per_tiou": evaluation.map_per_tiou.tolist(),
                    "average_map_per_basis": {name: basis.average_map for name, basis in bases},
                    "seconds": time.monotonic() - began,
                }
            )
            said = ", ".join(f"{name} {100 * found.average_map:.2f}" for name, found in evaluations.items())
            log.info("epoch %d: average mAP %s", self.epoch, said)
        return evaluation

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.keeper.last

    def _begin(self) -> None:
        """The run directory, the frozen transformer, and the first lines of the log."""
        state = {name: full_tensor(tensor) for name, tensor in self.network.state_dict().items()}
        if not self.ranks.is_main:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        for folder in (self.directory, self.directory / INDEX_FOLDER):
            remove_leftovers(folder)
        self.keeper.save_backbone(state)
        self.indices.begin()
        self.records.drop_after_checkpoint(untested=self.untested)
        with atomic_write(self.directory / "config.yaml") as partial_file:
            partial_file.write_text(self.config.to_yaml(), encoding="utf-8")
        write_json(environment(self.ranks), self.directory / ENVIRONMENT)
        trainable = sum(p.numel() for p in self.network.parameters() if p.requires_grad)
        total = sum(p.numel() for p in self.network.parameters())
        log.info("experiment %s: %s", self.config.experiment, self.config.plan.says)
        log.info("run %s, epochs %d to %d", self.directory, self.epoch + 1, self.config.training.epochs)
        log.info("%d parameters, of which %d train", total, trainable)
        log.info("%s", self.train_step.rates)
        log.info(
            "%d training videos, %d windows and %d steps an epoch; %d test videos",
            len(self.windows.videos),
            len(self.windows),
            self.sampler.steps,
            len(self.test_annotations.videos),
        )
        if self.windows.skipped:
            log.info("training videos without ground truth, left out: %s", ", ".join(self.windows.skipped))

    def _checkpoint(self) -> Checkpoint:
        """Of the present moment: averaged weights to test with; raw ones and the rest to go on with."""
        return Checkpoint(
            config=self.config,
            classes=self.annotations.classes,
            model=self.train_step.averaged_weights(),
            epoch=self.epoch,
            rate_hz=self.windows.median_rate_hz(),
            training={
                "step": self.step,
                "done": self.done,
                "untested": self.untested,
                "best": self.best,
                "world": self.ranks.world,
                **self.train_step.state_dict(),
                "rng": self.ranks.gather(random_state(self.ranks.device)),
            },
            data=self.fingerprints,
        )

    def _save(self, checkpoint: Checkpoint, *, again: bool = False) -> None:
        """Writes the newest checkpoint to go on from; ``again``, what has been found of it since."""
        assert checkpoint.training is not None
        checkpoint.training |= {"best": self.best, "untested": self.untested}
        if self.ranks.is_main:
            self.keeper.save_last(checkpoint, again=again)

    def _restore(self, saved: Checkpoint) -> None:
        """Goes on where a checkpoint stands; its averaged weights are the network's already."""
        training = saved.training
        assert training is not None
        try:
            self.train_step.load_state_dict(training)
            self.epoch, self.done, self.step = saved.epoch, training["done"], training["step"]
            self.best, self.untested, self.records.step = training["best"], training["untested"], training["step"]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{saved.source} is damaged and cannot be resumed ({type(error).__name__}: {error}); start the run "
                "anew under another name"
            ) from None
        if training["world"] == self.ranks.world:
            set_random_state(training["rng"][self.ranks.rank], self.ranks.device)
        elif self.ranks.is_main:
            log.warning(
                "the run had %d processes and now has %d: its batches, learning rates and steps are those of %d, and "
                "its random numbers begin again",
                training["world"],
                self.ranks.world,
                self.ranks.world,
            )
        if training["world"] != self.ranks.world or self.step != self.epoch * self.sampler.steps + self.done:
            self._resume_with_other_batches(training["world"])

    def _resume_with_other_batches(self, world: int) -> None:
        """Resumes with other batches: of another number of processes than ``world`` before, or of changed data."""
        # The windows of a step that would begin within another one are seen twice.
        self.done = min(self.done * world // self.ranks.world, self.sampler.steps)
        self.step = self.epoch * self.sampler.steps + self.done
        self.train_step.resume_at(self.step)


@contextmanager
def open_run(
    config: Config, *, device: str | None = None, resume: bool = False, allow_changed_data: bool = False
) -> Iterator[Trainer]:
    """Within, these processes hold the run directory, and the yielded trainer is ready to run.

    PyTorch's random numbers and number of threads are afterwards what they were before.

    Args:
        device: see :func:`~bitad.runtime.distributed.process_group`.
        config, resume, allow_changed_data: see :class:`Trainer`. A run that torchrun restarts is resumed in any case.

    Raises:
        ValueError, FileNotFoundError: as :class:`Trainer` and :func:`~bitad.training.checkpoints.lock_run`.
    """
    threads = torch.get_num_threads()
    set_up_process(config.threads)
    try:
        with (
            process_group(device) as ranks,
            lock_run(config, ranks, resume=resume) as resumes,
            torch.random.fork_rng([ranks.device] if ranks.device.type == "cuda" else []),
        ):
            yield Trainer(config, ranks, resume=resumes, allow_changed_data=allow_changed_data)
    finally:
        torch.set_num_threads(threads)
