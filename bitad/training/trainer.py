"""A training run: a configuration -> a run directory with checkpoints, metrics and a log."""

from __future__ import annotations

import itertools
import math
import signal
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch.utils.data import Sampler

from bitad.config.loading import absolute_paths
from bitad.config.schema import Config
from bitad.data.dataset import TrainingWindows
from bitad.data.fingerprints import TEACHER, Fingerprints, fingerprints
from bitad.data.reversal import reversal_in_words
from bitad.data.samples import Batch, collate
from bitad.data.sources import (
    build_source,
    read_evaluation_ground_truth,
    read_ground_truth,
    read_test_ground_truth,
)
from bitad.evaluation.mean_average_precision import Evaluation, evaluate
from bitad.evaluation.operating_points import OperatingPoints
from bitad.inference.detect import DETECTION_FILES, detect
from bitad.inference.validate import validate_data
from bitad.models.build import build_network, hold_frozen
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
from bitad.runtime.progress import Meter, duration_text
from bitad.runtime.workers import Stop, Stopped, catch_signals
from bitad.training.checkpoints import (
    CheckpointManager,
    check_data,
    load_initial,
    load_saved_weights,
    lock_run,
    random_state,
    saved_run,
    schedule_changes,
    set_random_state,
)
from bitad.training.distillation import load_teacher
from bitad.training.metrics import METRICS
from bitad.training.records import Records
from bitad.training.step import StepOutput, TrainStep
from bitad.video.indexing import INDEX_FOLDER, IndexCache
from bitad.weights.checkpoint import Checkpoint
from bitad.weights.loading import load_pretrained, require_pretrained

STEPS_BETWEEN_RECORDS = 10


class Trainer:
    """One run of a configuration, new or resumed.

    Args:
        resume: resume from the run's `last.pt`; without it, an existing run is never overwritten.
        allow_changed_data: resume although the data have changed, and log the changes.

    Attributes:
        epoch: finished epochs.
        epoch_step: steps taken in the current epoch.
        step: steps taken in all epochs.
        saved_step: ``step`` of the checkpoint to resume from.
        has_one_encoder: whether two networks have the same frozen transformer.
        step_s, evaluation_s: seconds of a step and of an evaluation, in this process.
        epoch_loss: of the steps read in the current epoch.
        nonfinite_steps: skipped in a row.
        best: the average mAP of the weights in `best.pt`.
        is_untested: the last finished epoch has an evaluation to come.
        is_backbone_saved: this object has written the frozen transformer, in single precision.

    Raises:
        ValueError, FileNotFoundError: data, weights or checkpoint do not fit.
    """

    def __init__(
        self, config: Config, ranks: Ranks, *, resume: bool = False, allow_changed_data: bool = False
    ) -> None:
        self.config, self.ranks = config, ranks
        self.directory = config.run_directory
        self.checkpoints = CheckpointManager(self.directory, config.training.keep_last)
        self.records = Records(self.directory, ranks, tensorboard=config.training.tensorboard)
        self.stop = Stop()
        self.step_s, self.evaluation_s, self.epoch_loss = Mean(), Mean(), Mean()
        self._loss = ""
        self._unread: deque[tuple[StepOutput, int, str]] = deque()
        self.epoch = self.epoch_step = self.step = self.saved_step = self.nonfinite_steps = 0
        self.best, self.is_untested, self.is_backbone_saved = -math.inf, False, False
        saved = self._find_checkpoint(resume)
        self._set_up_data(saved, allow_changed_data)
        self._set_up_network(saved)
        if saved is not None:
            self._resume(saved)

    def _find_checkpoint(self, resume: bool) -> Checkpoint | None:
        """The checkpoint to resume from; None for a new run."""
        written = ("config.yaml", ENVIRONMENT, LOG_FILE, METRICS, *DETECTION_FILES)
        check_replaceable([*self.checkpoints.files, *(self.directory / name for name in written)])
        self.checkpoints.require(resume=resume)
        if resume:
            return saved_run(self.checkpoints, self.config)
        require_pretrained(self.config)
        return None

    def _set_up_data(self, saved: Checkpoint | None, allow_changed_data: bool) -> None:
        config, training, ranks = self.config, self.config.training, self.ranks
        self.annotations = read_ground_truth(config.data)
        tested = read_test_ground_truth(config)
        self.evaluation_annotations, validated = tested, None
        if config.data.validation_subset is not None:
            self.evaluation_annotations = validated = read_evaluation_ground_truth(config)
        self.indices = IndexCache(self.directory / INDEX_FOLDER)
        trained = self.annotations.subset(config.data.training_subset)
        annotated = [name for name, video in trained.videos.items() if video.labels]
        self.teacher = load_teacher(config, self.annotations.classes, annotated)
        views = () if self.teacher is None else self.teacher.views
        self.source = build_source(config, self.indices, views=views)
        self.windows = TrainingWindows(trained, self.source, config, views=views)
        found: Fingerprints = {}
        if ranks.is_main:
            found = fingerprints(config, self.windows.videos, tested, validated, views=views)
            if self.teacher is not None:
                found[TEACHER] = self.teacher.digests
        self.fingerprints = ranks.gather(found)[0]
        if saved is not None:
            check_data(saved, self.fingerprints, allow=allow_changed_data, show=ranks.is_main)
        validate_data(self.windows, self.evaluation_annotations, self.source, self.indices, config, ranks)
        self.sampler = EpochSampler(
            len(self.windows), training.batch, ranks, config.seed, accumulate=training.accumulate
        )
        self.loader = self.windows.readers.loader(
            self.windows,
            batch_sampler=self.sampler,
            collate_fn=partial(collate, length=config.window.steps),
            persistent_workers=training.workers > 0,
            pin_memory=ranks.device.type == "cuda",
        )

    def _set_up_network(self, saved: Checkpoint | None) -> None:
        torch.manual_seed(self.config.seed)  # the same weights on every rank
        classes = self.annotations.classes
        self.network = build_network(self.config, len(classes))
        if saved is None:
            self._load_initial_weights()
        else:
            load_saved_weights(self.network, saved, classes)
        torch.manual_seed(self.config.seed + 1000003 * self.ranks.rank)  # and different dropout
        self.network.to(self.ranks.device)
        self.has_one_encoder = self.network.share_frozen()
        if self.teacher is not None:
            self.teacher.to(self.ranks.device)
        self.train_step = TrainStep(
            self.network,
            self.config,
            self.ranks,
            num_classes=len(classes),
            steps_per_epoch=self.sampler.steps,
            teacher=self.teacher,
        )

    def _load_initial_weights(self) -> None:
        if self.config.starts_from == "backbone":
            load_pretrained(self.network, self.config)
        else:
            load_initial(self.network, self.config, self.annotations.classes)

    def run(self, *, until: int | None = None) -> float:
        """Trains to the last epoch, or to the end of epoch ``until``.

        Returns:
            the average mAP of the weights in `best.pt`, from 0 to 1.

        Raises:
            Stopped: after the current step, on SIGTERM or SIGINT, with a checkpoint to resume from.
        """
        if self.ranks.is_main:
            self._prepare_directory()
            self._log_run()
        self._save_and_hold_backbone()
        epochs = self.config.training.epochs
        end = epochs if until is None else min(epochs, until)
        with self.records.opened(self.saved_step), catch_signals() as self.stop:
            if self.is_untested:
                self._test_epoch(self._checkpoint())
            while self.epoch < end:
                self._train_epoch(end)
                self.epoch, self.epoch_step = self.epoch + 1, 0
                self.is_untested = self._is_evaluation_due()
                checkpoint = self._checkpoint()
                self._save(checkpoint)  # before the test, which may take as long as the epoch
                if self.is_untested:
                    self._test_epoch(checkpoint)
        if end < epochs and self.ranks.is_main:
            log.info("stopped at the end of epoch %d of %d; --resume continues", self.epoch, epochs)
        return self.best

    def _prepare_directory(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        for folder in (self.directory, self.directory / INDEX_FOLDER):
            remove_leftovers(folder)
        self.indices.begin()
        self.records.drop_after_checkpoint(self.saved_step, untested=self.is_untested)
        with atomic_write(self.directory / "config.yaml") as partial_file:
            partial_file.write_text(absolute_paths(self.config).to_yaml(), encoding="utf-8")
        write_json(environment(self.ranks), self.directory / ENVIRONMENT)

    def _save_and_hold_backbone(self) -> None:
        """Saves the frozen transformer, then holds it in the precision of the computation if no file needs it again."""
        if self.is_backbone_saved:
            return
        full = partial(full_tensor, keep=self.ranks.is_main)
        state = {name: full(tensor) for name, tensor in self.network.state_dict().items()}  # on every rank
        if self.ranks.is_main:
            self.checkpoints.save_backbone(state)
        self.is_backbone_saved = True
        # A second, different transformer is not in that file, but in the checkpoints.
        if self.has_one_encoder and self.config.can_hold_frozen:
            hold_frozen(self.network, self.config.training.precision)

    def _log_run(self) -> None:
        total = sum(p.numel() for p in self.network.parameters())
        trainable = sum(p.numel() for p in self.network.parameters() if p.requires_grad)
        log.info("experiment %s: %s", self.config.experiment, self.config.design.summary)
        log.info("run %s, epochs %d to %d", self.directory, self.epoch + 1, self.config.training.epochs)
        log.info("%d parameters, %d trainable", total, trainable)
        if not self.has_one_encoder:
            are_named = self.config.pair.second_weights or self.config.design.starts_from == "backbone"
            hint = "" if are_named else "; with pair.second_weights=FILE, the name of the run and reports say so"
            log.info("the two networks have different frozen transformers%s", hint)
        log.info("%s", self.train_step.learners[0].rates)
        data, training = self.config.data, self.config.training
        log.info(
            "%d training videos, %d windows and %d steps per epoch; %d %s videos",
            len(self.windows.videos),
            len(self.windows),
            self.sampler.steps,
            len(self.evaluation_annotations.videos),
            "test" if data.validation_subset is None else "validation",
        )
        if self.config.learns_both_directions:
            log.info("in reversed windows, %s", reversal_in_words(self.config.reversal, self.annotations.classes))
            if data.reversal is None:
                log.info(
                    "data.reversal can name the classes that look like others, or like none, on reversed playback"
                )
        elif data.reversal is not None:
            log.info("data.reversal does not change this training: each network learns from one playing direction")
        if training.select == "last":
            log.info("best.pt will have the weights of the last epoch (training.select=last)")
        elif data.evaluation_subset == data.training_subset:
            log.warning(
                "best.pt is chosen on the subset that is also trained on, %s, so its mAP says little about other "
                "videos; data.validation_subset or data.test_subset can name another one",
                data.training_subset,
            )
        elif data.evaluation_subset == data.test_subset:
            log.info(
                "best.pt is chosen on the subset that is also tested, %s, so its mAP is optimistic; "
                "data.validation_subset or training.select=last avoid that",
                data.test_subset,
            )
        else:
            log.info("best.pt is chosen on the validation subset, %s", data.validation_subset)
        if self.windows.unannotated:
            log.info("training videos without ground truth are skipped: %s", ", ".join(self.windows.unannotated))

    def _train_epoch(self, end: int) -> None:
        """Trains the next epoch of those up to ``end``."""
        self.windows.set_epoch(self.epoch)
        self.sampler.epoch, self.sampler.first_step = self.epoch, self.epoch_step
        self.train_step.train()
        what = f"epoch {self.epoch + 1} of {self.config.training.epochs}"
        self.epoch_loss = Mean()
        skipped, rate = Counter[str](), self.train_step.lr
        start = before = time.monotonic()
        with (
            self.windows.readers.watched(),
            Meter(what, self.sampler.steps - self.epoch_step, show=self.ranks.is_main) as meter,
        ):
            loader = iter(self.loader)
            while batches := list(itertools.islice(loader, self.config.training.accumulate)):
                step = self._take_step(batches)
                self.step, self.epoch_step = self.step + 1, self.epoch_step + 1
                skipped.update(one for batch in batches for one in batch.skipped)
                rate = self.train_step.lr
                now = time.monotonic()
                self.step_s.add(now - before)
                before = now
                meter.advance(note=f"{self._loss}{self._time_left(end)} left in all")
                if self.step == 1 or self.step % STEPS_BETWEEN_RECORDS == 0:
                    self._read_steps()
                    self.records.add_step(step, epoch=self.epoch, number=self.step, lr=self.train_step.lr)
                self.train_step.advance()
                self._save_or_stop()
        self._read_steps()
        log_repeated_frames(self.windows.readers.pop_repeated(), what, self.ranks)
        log_skipped_windows(skipped, what, self.ranks)
        losses = [mean for mean in self.ranks.gather(self.epoch_loss.value) if mean is not None]
        if losses and self.ranks.is_main:
            took = duration_text(time.monotonic() - start)
            left = f"; {self._time_left(end)} left in all" if self.epoch + 1 < end else ""
            mean = sum(losses) / len(losses)
            log.info("%s: mean loss %.4f, learning rate %.3g, %s%s", what, mean, rate, took, left)

    def _time_left(self, end: int) -> str:
        """The time of the steps and evaluations to the end of epoch ``end``; evaluations count once one is measured."""
        training = self.config.training
        steps = (end - self.epoch) * self.sampler.steps - self.epoch_step
        every, first = training.evaluate_every, max(self.epoch, training.evaluate_from)
        evaluations = max(0, end // every - first // every)
        evaluations += end == training.epochs and (end % every > 0 or end <= first)  # the last epoch's
        return duration_text(steps * (self.step_s.value or 0.0) + evaluations * (self.evaluation_s.value or 0.0))

    def _take_step(self, batches: Sequence[Batch]) -> StepOutput:
        """One training step; errors as :meth:`_read_steps`.

        If the device skips steps, the host reads the step before, so that it never waits for the one it has launched.
        """
        step = self.train_step(batches)
        self._unread.append((step, self.step, ", ".join(video for batch in batches for video in batch.videos)))
        self._read_steps(but=1 if self.train_step.on_device else 0)
        return step

    def _read_steps(self, *, but: int = 0) -> None:
        """Reads the figures of the steps taken, except for the last ``but``.

        Raises:
            ValueError: too many in a row had gradients that are not finite.
        """
        while len(self._unread) > but:
            self._read_step(*self._unread.popleft())

    def _read_step(self, step: StepOutput, number: int, videos: str) -> None:
        self.epoch_loss.add(step.whole_loss)
        self._loss = f"loss {step.loss:.3f}, "
        if step.fault is None:
            self.nonfinite_steps = 0
            return
        self.nonfinite_steps += 1
        fault = f"{step.fault} at step {number}, with a loss of {step.loss} (videos {videos})"
        if self.nonfinite_steps < self.config.training.max_nonfinite_steps:
            log.warning("%s; the step is skipped", fault)
            return
        remedy = "no checkpoint is saved yet; check these videos and start again"
        if self.checkpoints.exists:
            remedy = f"{self.checkpoints.last} is unchanged; check these videos and resume with --resume"
        raise ValueError(f"{fault}; {remedy}, or start another run with a lower training.lr")

    def _save_or_stop(self) -> None:
        """Saves a checkpoint if one is due; raises Stopped if any process got a signal."""
        is_stopping = bool(self.ranks.total(torch.tensor(self.stop.asked)))
        every = self.config.training.checkpoint_steps
        if is_stopping or (every is not None and self.step % every == 0):
            self._save(self._checkpoint())
        if is_stopping:
            raise Stopped(
                self.stop.asked or int(signal.SIGTERM),
                f"after step {self.epoch_step} of {self.sampler.steps} of epoch {self.epoch + 1}; "
                f"resume from {self.checkpoints.last} with --resume",
            )

    def _is_evaluation_due(self) -> bool:
        training = self.config.training
        is_due = self.epoch > training.evaluate_from and self.epoch % training.evaluate_every == 0
        return is_due or self.epoch == training.epochs

    def _test_epoch(self, checkpoint: Checkpoint) -> None:
        """Tests the last finished epoch, and adds the evaluation to its checkpoint."""
        where = f"while testing epoch {self.epoch}; resume from {self.checkpoints.last} with --resume"
        with self.stop.interruptible(where):
            evaluation, points = self._evaluate()
        checkpoint.evaluation, checkpoint.operating_points = evaluation.to_json(), points.to_json()
        if self._is_selected(evaluation):
            self.best = evaluation.average_map
            if self.ranks.is_main:
                self.checkpoints.save_best(checkpoint)
        self.is_untested = False
        self._save(checkpoint, again=True)

    def _is_selected(self, evaluation: Evaluation) -> bool:
        """Whether the weights of an evaluation become those of `best.pt`."""
        return self.config.training.select == "last" or evaluation.average_map > self.best

    def _evaluate(self) -> tuple[Evaluation, OperatingPoints]:
        start = time.monotonic()
        with self.train_step.averaged_network() as network:
            details = {"run": str(self.directory), "epoch": self.epoch, "variant": self.config.variant}
            results = detect(
                network, self.evaluation_annotations, self.source, self.config, self.ranks, details=details
            )
        evaluations = {
            name: evaluate(self.evaluation_annotations, detections, tiou=self.config.test.tiou)
            for name, detections in results.named().items()
        }
        results, points = results.with_min_scores(self.evaluation_annotations)
        *bases, (_, evaluation) = evaluations.items()
        seconds = time.monotonic() - start
        self.evaluation_s.add(seconds)
        if self.ranks.is_main:
            if self._is_selected(evaluation):
                results.write(self.directory)
            self.records.add(
                {
                    "kind": "evaluation",
                    "epoch": self.epoch,
                    "step": self.step,
                    "average_map": evaluation.average_map,
                    "map_per_tiou": evaluation.map_per_tiou.tolist(),
                    "average_map_per_basis": {name: basis.average_map for name, basis in bases},
                    "seconds": seconds,
                }
            )
            values = ", ".join(f"{name} {100 * one.average_map:.2f}" for name, one in evaluations.items())
            log.info("epoch %d: average mAP %s", self.epoch, values)
        return evaluation, points

    def _checkpoint(self) -> Checkpoint:
        self._read_steps()  # a run that has to stop saves nothing
        return Checkpoint(
            config=self.config,
            classes=self.annotations.classes,
            model=self.train_step.averaged_weights(everywhere=False),
            epoch=self.epoch,
            rate_hz=self.windows.median_rate_hz(),
            training={
                "step": self.step,
                "done": self.epoch_step,
                "untested": self.is_untested,
                "best": self.best,
                "world": self.ranks.world,
                **self.train_step.state_dict(),
                "rng": self.ranks.gather(random_state(self.ranks.device)),
            },
            data=self.fingerprints,
        )

    def _save(self, checkpoint: Checkpoint, *, again: bool = False) -> None:
        assert checkpoint.training is not None
        checkpoint.training |= {"best": self.best, "untested": self.is_untested}
        if self.ranks.is_main:
            self.checkpoints.save_last(checkpoint, again=again)

    def _resume(self, saved: Checkpoint) -> None:
        """Continues from a checkpoint; the network has its averaged weights."""
        training = saved.training
        assert training is not None
        try:
            self.train_step.load_state_dict(training)
            self.epoch, self.epoch_step, self.step = saved.epoch, training["done"], training["step"]
            self.best, self.is_untested, self.saved_step = training["best"], training["untested"], training["step"]
            if self.epoch == self.config.training.epochs and saved.evaluation is None:
                self.is_untested = True  # it has become the last epoch
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{saved.source} is damaged and cannot be resumed ({type(error).__name__}: {error}); start the run "
                "under another name"
            ) from None
        world, processes = self.ranks.world, training["world"]
        if processes == world:
            set_random_state(training["rng"][self.ranks.rank], self.ranks.device)
        elif self.ranks.is_main:
            log.warning(
                "the run had %d processes and now has %d; batches, learning rates, steps and random numbers change",
                processes,
                world,
            )
        if changed := schedule_changes(saved, self.config.training):
            self.train_step.resume_at(self.step)
            if self.ranks.is_main:
                log.warning("%s; the next step has a rate of %.3g", "; ".join(changed), self.train_step.lr)
        if processes != world or self.step != self.epoch * self.sampler.steps + self.epoch_step:
            # Another number of processes, or changed data, gives other steps. If the next one begins within a
            # finished one, their common windows are seen twice.
            self.epoch_step = min(self.epoch_step * processes // world, self.sampler.steps)
            self.step = self.epoch * self.sampler.steps + self.epoch_step
            self.train_step.resume_at(self.step)


class Mean:
    """The mean of the finite numbers that it is given."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, number: float) -> None:
        if math.isfinite(number):
            self.total, self.count = self.total + number, self.count + 1

    @property
    def value(self) -> float | None:
        """None without numbers."""
        return self.total / self.count if self.count else None


@contextmanager
def open_run(
    config: Config, *, device: str | None = None, resume: bool = False, allow_changed_data: bool = False
) -> Iterator[Trainer]:
    """Within, these processes hold the run directory, and the yielded trainer is ready to run.

    Restores PyTorch's random numbers and number of threads. Resumes a run that torchrun restarts in any case.
    Arguments and errors as :class:`Trainer` and :func:`~bitad.training.checkpoints.lock_run`.
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


class EpochSampler(Sampler[list[int]]):
    """This rank's batches of an epoch, in an order of windows that depends on (seed, epoch) alone.

    A step takes the next windows in that order; windows that fill no step are not seen. Iteration begins at
    ``first_step`` of ``epoch``.
    """

    def __init__(self, windows: int, batch: int, ranks: Ranks, seed: int, *, accumulate: int = 1) -> None:
        self.windows, self.batch, self.ranks, self.seed, self.accumulate = windows, batch, ranks, seed, accumulate
        self.windows_per_step = batch * accumulate * ranks.world
        self.epoch = self.first_step = 0
        if self.steps == 0:
            several = f"{accumulate} batches of {batch}" if accumulate > 1 else f"one batch of {batch}"
            raise ValueError(
                f"{windows} training windows per epoch do not fill {several} on {ranks.world} processes; "
                "lower training.batch or raise training.windows_per_video"
            )

    @property
    def steps(self) -> int:
        """Steps per epoch."""
        return self.windows // self.windows_per_step

    def __len__(self) -> int:
        """Batches per epoch."""
        return self.steps * self.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.windows)
        for step in range(self.first_step, self.steps):
            windows = order[step * self.windows_per_step :][: self.windows_per_step]
            own = windows[self.ranks.rank :: self.ranks.world]
            for first in range(0, len(own), self.batch):
                yield [int(i) for i in own[first : first + self.batch]]
